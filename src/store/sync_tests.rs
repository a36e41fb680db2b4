//! Syncs that fail, one of each kind the engine makes: nothing it covered is acknowledged, nothing more is
//! accepted, and what was acknowledged before is there when the folder is opened again. What merely lacks
//! room for a file that nothing rests on is refused, and heals.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::conformance::{key, new_body, new_id, read};
use super::durable::{Call, faults};
use super::tests::{Place, eventually};
use super::{Batch, CommitError, Health, OpenError, Opened, open_with, verify};
use crate::mail::BodyId;

/// It gets a segment of its own.
const LARGE: usize = 50_000;
/// Too much of a segment for housekeeping to move it elsewhere.
const KEPT: usize = 20_000;

/// A store that has acknowledged one body, opened again: its next commit begins a new journal segment.
struct Begun {
    place: Place,
    opened: Opened,
    kept: (BodyId, Vec<u8>),
}

impl Begun {
    fn new(spare_segments: usize) -> Self {
        let mut place = Place::new();
        place.settings.spare_segments = 0;
        let opened = place.open();
        let kept = place.put(&opened, "Tkept", KEPT);
        drop(opened);
        place.settings.spare_segments = spare_segments;
        let opened = place.open();
        Self { place, opened, kept }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.place.settings.folder.join(name)
    }

    fn try_put(&self, name: &str, length: usize) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        batch.set(key(name), key("owed"));
        batch.bodies.push(new_body(new_id(), length).0);
        self.place.commit(&self.opened, batch)
    }

    /// It has stopped for good, reads go on, and another opening has what was acknowledged and goes on.
    fn assert_stopped(self, what: &str) {
        let (store, id) = (&self.opened, self.kept.0);
        assert!(matches!(store.records.health(), Health::Stopped(why) if why.contains("a sync failed")), "{what}");
        assert!(matches!(self.try_put("Tlater", 10), Err(CommitError::Stopped(_))), "{what}");
        // Reading goes on, or fails after a checkpoint; it gives nothing wrong.
        assert!(matches!(store.records.get(b"Tlater"), Ok(None) | Err(_)), "{what}");
        let kept = store.records.get(b"Tkept");
        assert!(kept.is_err() || kept == Ok(Some(key("owed"))), "{what}: {kept:?}");
        let Self { mut place, opened, kept } = self;
        drop(opened);
        // A record engine that broke keeps its files locked until its process has ended.
        place.settings = place.crash_copy("again");
        assert_eq!(verify(&place.settings.folder).unwrap().damaged, Vec::<String>::new(), "{what}");
        let opened = place.open();
        assert_eq!(opened.records.health(), Health::Accepting, "{what}");
        assert_eq!(read(&*opened.bodies, id).unwrap(), Some(kept.1), "{what}");
        place.put(&opened, "Tafter", 300);
    }
}

#[test]
fn a_failed_sync_of_anything_a_commit_writes_stops_everything_until_the_folder_is_reopened() {
    // In the order in which a commit makes them, after a start and without a spare file.
    let syncs = [
        ("a new segment", Call::All, 0, 300),
        ("the folder of a new segment", Call::Folder, 0, 300),
        ("the header of a new segment", Call::Data, 0, 300),
        ("a group", Call::Data, 1, 300),
        ("a large body's new file", Call::All, 0, LARGE),
        ("the folder of a large body's file", Call::Folder, 0, LARGE),
        ("a large body", Call::Data, 0, LARGE),
    ];
    for (what, call, passes, length) in syncs {
        for errno in [Errno::IO, Errno::NOSPC] {
            let begun = Begun::new(0);
            faults::plan(&begun.folder("segments"), call, passes, errno);
            let refused = begun.try_put("Trefused", length).unwrap_err();
            assert!(faults::are_met(&begun.folder("segments")), "{what}");
            assert_eq!(begun.opened.records.get(b"Trefused"), Ok(None), "{what}");
            // The one file that nothing is in yet.
            if call == Call::All && errno == Errno::NOSPC {
                assert!(matches!(refused, CommitError::Full(_)), "{what}: {refused}");
                assert_eq!(begun.try_put("Tsecond", length), Ok(()), "{what}: it heals");
                continue;
            }
            assert!(matches!(refused, CommitError::Stopped(_)), "{what} {errno}: {refused}");
            begun.assert_stopped(what);
        }
    }
}

#[test]
fn what_a_failed_write_left_is_synced_away_or_everything_stops_also_when_the_disk_is_full() {
    for is_full in [false, true] {
        for is_synced in [true, false] {
            let begun = Begun::new(0);
            begun.try_put("Tfirst", 300).unwrap();
            begun.place.faults.disk_is_full.store(is_full, Ordering::Release);
            begun.place.faults.writes_fail.store(1, Ordering::Release);
            if !is_synced {
                faults::plan(&begun.folder("segments"), Call::Data, 0, if is_full { Errno::NOSPC } else { Errno::IO });
            }
            let refused = begun.try_put("Trefused", 300).unwrap_err();
            begun.place.faults.disk_is_full.store(false, Ordering::Release);
            let what = format!("full: {is_full}, synced: {is_synced}");
            assert_eq!(begun.opened.records.get(b"Trefused"), Ok(None), "{what}");
            if is_synced {
                let wanted = if is_full { "Full" } else { "Failed" };
                assert!(format!("{refused:?}").starts_with(wanted), "{what}: {refused:?}");
                assert_eq!(begun.try_put("Tsecond", 300), Ok(()), "{what}");
                continue;
            }
            assert!(matches!(refused, CommitError::Stopped(_)), "{what}: {refused}");
            begun.assert_stopped(&what);
        }
    }
}

#[test]
fn a_failed_sync_of_a_file_kept_ready_stops_everything_and_want_of_room_for_it_nothing() {
    for errno in [Errno::IO, Errno::NOSPC] {
        let begun = Begun::new(0);
        let Begun { mut place, opened, kept } = begun;
        drop(opened);
        place.settings.spare_segments = 1;
        faults::plan(&place.settings.folder.join("segments"), Call::All, 0, errno);
        let begun = Begun { opened: place.open(), place, kept };
        eventually("housekeeping makes one", || faults::are_met(&begun.folder("segments")));
        if errno == Errno::IO {
            eventually("it stops", || matches!(begun.opened.records.health(), Health::Stopped(_)));
            begun.assert_stopped("a file kept ready");
        } else {
            let files = || std::fs::read_dir(begun.folder("segments")).unwrap().count();
            eventually("another one is made", || files() >= 2);
            assert_eq!(begun.try_put("T1", 300), Ok(()));
            assert_eq!(begun.opened.records.health(), Health::Accepting);
        }
    }
}

#[test]
fn a_failed_sync_while_space_is_given_back_stops_everything() {
    // A file is kept for later, or removed.
    for (spares, call) in [(4, Call::Data), (0, Call::Folder)] {
        let begun = Begun::new(spares);
        let put = |number: usize| begun.place.put(&begun.opened, &format!("T{number}"), 8_000).0;
        let bodies: Vec<_> = (0..12).map(put).collect();
        begun.opened.engine.at_rest(|| {
            let mut batch = Batch::new();
            batch.freed.extend(&bodies[..11]);
            begun.place.commit(&begun.opened, batch).unwrap();
            faults::plan(&begun.folder("segments"), call, 0, Errno::IO);
        });
        eventually("space is given back", || faults::are_met(&begun.folder("segments")));
        eventually("it stops", || matches!(begun.opened.records.health(), Health::Stopped(_)));
        begun.assert_stopped("space that is given back");
    }
}

#[test]
fn a_failed_sync_of_the_copy_of_the_records_stops_everything_and_want_of_room_costs_the_copy_alone() {
    for (call, errno) in [(Call::Data, Errno::IO), (Call::Data, Errno::NOSPC), (Call::Folder, Errno::IO)] {
        let begun = Begun::new(0);
        eventually("there is a copy", || begun.folder("copy").exists());
        begun.opened.engine.at_rest(|| faults::plan(&begun.folder("copy"), call, 0, errno));
        begun.try_put("T1", 300).unwrap();
        if call == Call::Folder {
            // What is there is no copy any more, and its removal is synced.
            begun.opened.engine.shared().copy.give_up();
            let _ = begun.try_put("T2", 300);
        }
        eventually("a checkpoint meets it", || faults::are_met(&begun.folder("copy")));
        if errno == Errno::IO {
            eventually("it stops", || matches!(begun.opened.records.health(), Health::Stopped(_)));
            begun.assert_stopped("the copy of the records");
        } else {
            assert_eq!(begun.try_put("T3", 300), Ok(()));
            eventually("a new copy is made", || begun.opened.engine.shared().copy.commit().is_some());
            assert_eq!(begun.opened.records.health(), Health::Accepting);
        }
    }
}

#[test]
fn what_a_start_replays_is_synced_before_the_records_hear_of_it_and_a_failure_refuses_the_start() {
    let place = Place::new().without_checkpoints();
    let opened = place.open();
    let (id, whole) = place.put(&opened, "T0", 300);
    drop(opened);
    faults::plan(&place.settings.folder.join("segments"), Call::Data, 0, Errno::IO);
    let refused = open_with(place.settings.clone(), place.faults.clone()).map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::Files(error) if error.to_string().contains("a sync failed")), "{refused}");
    let opened = place.open();
    assert_eq!(opened.replayed_batches, 1);
    assert_eq!(read(&*opened.bodies, id).unwrap(), Some(whole));
}
