//! Groups that are written while the one before is being synced: what each may rest on, and what is left of
//! them when a sync or a write fails, or the power does.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::conformance::{key, new_body, new_id, read};
use super::durable::{Call, faults};
use super::tests::{Place, eventually, segments, writable};
use super::{Batch, CommitError, Faults, Health, Opened, open, verify};
use crate::mail::BodyId;

type Answer = JoinHandle<Result<(), CommitError>>;

/// A store in which every group is settled beside the committer, with a body that was acknowledged.
struct Bench {
    place: Place,
    opened: Arc<Opened>,
    kept: (BodyId, Vec<u8>),
}

impl Bench {
    fn new() -> Self {
        let mut place = Place::new().without_checkpoints();
        // Large enough that nobody begins another segment, which waits for the group before.
        place.settings.segment_bytes = 1024 * 1024;
        place.faults.settles_beside.store(true, Ordering::Release);
        let opened = Arc::new(place.open());
        let kept = place.put(&opened, "Tkept", 300);
        Self { place, opened, kept }
    }

    fn begin(&self, batch: Batch) -> Answer {
        let opened = Arc::clone(&self.opened);
        self.place.runtime.spawn(async move { opened.records.commit(batch).await })
    }

    fn end(&self, answer: Answer) -> Result<(), CommitError> {
        self.place.runtime.block_on(answer).unwrap()
    }

    fn journal(&self) -> std::path::PathBuf {
        segments(&self.place.settings.folder).pop().unwrap()
    }

    /// Begins to commit and waits until the group lies in the journal, but for its seal if another is being
    /// settled.
    fn begin_written(&self, batch: Batch) -> Answer {
        let journal = std::fs::File::open(self.journal()).unwrap();
        let octets = || {
            let mut bytes = vec![0; 1024 * 1024];
            journal.read_exact_at(&mut bytes, 0).unwrap();
            bytes.iter().filter(|byte| **byte != 0).count()
        };
        let before = octets();
        let answer = self.begin(batch);
        eventually("its frames are written", || octets() > before);
        // The last frames of it.
        let mut seen = 0;
        eventually("all of them", || {
            std::thread::sleep(Duration::from_millis(20));
            std::mem::replace(&mut seen, octets()) == octets()
        });
        answer
    }
}

/// Keeps every sync of a group waiting.
fn hold(faults: &Faults) -> MutexGuard<'_, ()> {
    faults.sync_gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.set(key(name), key(value));
    batch
}

fn with_body(name: &str, length: usize) -> (Batch, BodyId) {
    let id = new_id();
    let mut batch = setting(name, "owed");
    batch.bodies.push(new_body(id, length).0);
    (batch, id)
}

#[test]
fn a_group_is_written_during_the_sync_of_the_one_before_and_nobody_hears_of_either_until_it_is_synced() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_written(with_body("T1", 3000).0);
    let second = bench.begin_written(with_body("T2", 3000).0);
    for name in ["T1", "T2"] {
        assert_eq!(bench.opened.records.get(&key(name)), Ok(None));
    }
    assert!(!first.is_finished() && !second.is_finished());
    assert!(bench.opened.records.writing_since().is_some());
    drop(gate);
    assert_eq!((bench.end(first), bench.end(second)), (Ok(()), Ok(())));
    for name in ["T1", "T2"] {
        assert_eq!(bench.opened.records.get(&key(name)), Ok(Some(key("owed"))));
    }
}

#[test]
fn conditions_on_what_a_group_being_settled_changes_are_checked_when_it_is() {
    let bench = Bench::new();
    let (id, freed_twice) = (new_id(), bench.kept.0);
    let mut first = setting("T1", "one");
    first.bodies.push(new_body(id, 400).0);
    first.freed.push(freed_twice);
    first.remove(key("Tkept")).chain(b"C".to_vec(), b"first".to_vec());
    let gate = hold(&bench.place.faults);
    let first = bench.begin_written(first);
    // Each of these must wait for it, and sees what it made.
    let mut equal = setting("T2", "two");
    equal.if_equals(key("T1"), key("one"));
    let mut absent = setting("T3", "three");
    absent.if_absent(key("T1"));
    let mut gone = setting("T4", "four");
    gone.if_absent(key("Tkept"));
    let mut same_name = setting("T5", "five");
    same_name.bodies.push(new_body(id, 500).0);
    let mut frees = setting("T6", "six");
    frees.freed.extend([id, freed_twice]);
    let mut chained = setting("T7", "seven");
    chained.chain(b"C".to_vec(), b"second".to_vec());
    let answers: Vec<_> = [equal, absent, gone, same_name, frees, chained].map(|batch| bench.begin(batch)).into();
    std::thread::sleep(Duration::from_millis(50));
    assert!(answers.iter().all(|answer| !answer.is_finished()));
    drop(gate);
    assert_eq!(bench.end(first), Ok(()));
    let heard: Vec<_> = answers.into_iter().map(|answer| bench.end(answer)).collect();
    let conflict = Err(CommitError::Conflict);
    assert_eq!(heard, [Ok(()), conflict.clone(), Ok(()), conflict, Ok(()), Ok(())]);
    for freed in [id, freed_twice] {
        assert!(bench.opened.bodies.open(freed).unwrap().is_none());
    }
    let walk = super::chain_walk(&*bench.opened.records, b"C", |_| ()).unwrap();
    assert_eq!((walk.head.count, walk.broken), (2, None));
}

#[test]
fn a_failed_sync_refuses_the_group_that_was_written_meanwhile_too() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_written(with_body("T1", 3000).0);
    let second = bench.begin_written(with_body("T2", 3000).0);
    faults::plan(&bench.place.settings.folder.join("segments"), Call::Data, 0, Errno::IO);
    drop(gate);
    for answer in [first, second] {
        assert!(matches!(bench.end(answer), Err(CommitError::Stopped(_))));
    }
    assert!(matches!(bench.opened.records.health(), Health::Stopped(_)));
    assert!(matches!(bench.end(bench.begin(setting("T3", "x"))), Err(CommitError::Stopped(_))));
    for name in ["T1", "T2", "T3"] {
        assert_eq!(bench.opened.records.get(&key(name)), Ok(None), "{name}");
    }
    // On the disk the first may be whole, of which nobody was told; the second has no seal.
    let again = bench.place.crash_copy("again");
    assert_eq!(verify(&again.folder).unwrap().damaged, Vec::<String>::new());
    let opened = open(again).unwrap();
    assert_eq!(opened.engine.damage(), Vec::<String>::new());
    assert_eq!(opened.records.get(&key("T2")), Ok(None));
    assert_eq!(read(&*opened.bodies, bench.kept.0).unwrap(), Some(bench.kept.1.clone()));
}

#[test]
fn a_write_that_fails_harms_neither_the_group_being_synced_nor_the_next() {
    for is_of_the_seal in [false, true] {
        for is_full in [false, true] {
            if is_of_the_seal && is_full {
                continue; // its place is written already
            }
            let bench = Bench::new();
            let gate = hold(&bench.place.faults);
            let first = bench.begin_written(with_body("T1", 3000).0);
            let fails = if is_of_the_seal { &bench.place.faults.seals_fail } else { &bench.place.faults.writes_fail };
            fails.store(1, Ordering::Release);
            bench.place.faults.disk_is_full.store(is_full, Ordering::Release);
            let (batch, id) = with_body("T2", 3000);
            let second = bench.begin_written(batch);
            bench.place.faults.disk_is_full.store(false, Ordering::Release);
            drop(gate);
            assert_eq!(bench.end(first), Ok(()));
            let refused = bench.end(second).unwrap_err();
            let wanted = if is_full { "Full" } else { "Failed" };
            assert!(format!("{refused:?}").starts_with(wanted), "{refused:?}");
            bench.place.put(&bench.opened, "T3", 200);
            let crashed = bench.place.crash_copy("crashed");
            for opened in [&*bench.opened, &open(crashed).unwrap()] {
                assert_eq!(opened.engine.damage(), Vec::<String>::new());
                let names: Vec<_> =
                    opened.records.range(b"T", b"U", 10).unwrap().into_iter().map(|(name, _)| name).collect();
                assert_eq!(names, [key("T1"), key("T3"), key("Tkept")]);
                assert!(opened.bodies.open(id).unwrap().is_none());
            }
        }
    }
}

#[test]
fn a_power_cut_during_the_sync_leaves_out_what_was_written_behind_it_whatever_of_either_reached_the_disk() {
    let bench = Bench::new();
    let begins = bench.opened.engine.journal_end();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_written(with_body("T1", 3000).0);
    let second = bench.begin_written(with_body("T2", 3000).0);
    let whole = bench.place.crash_copy("whole");
    let mut torn = Vec::new();
    // A sector of either is not there: pages reach the disk in any order.
    for at in (begins.next_multiple_of(512)..begins + 8192).step_by(512) {
        let settings = bench.place.crash_copy(&format!("torn{at}"));
        let journal = segments(&settings.folder).pop().unwrap();
        writable(&journal).write_all_at(&[0; 512], at).unwrap();
        torn.push((at, settings));
    }
    drop(gate);
    assert_eq!((bench.end(first), bench.end(second)), (Ok(()), Ok(())));
    // Both are of one length.
    let end = begins + (bench.opened.engine.journal_end() - begins) / 2;
    let names = |opened: &Opened| -> Vec<_> {
        opened.records.range(b"T", b"U", 10).unwrap().into_iter().map(|(name, _)| name).collect()
    };
    let opened = open(whole).unwrap();
    assert_eq!((names(&opened), opened.engine.damage()), (vec![key("T1"), key("Tkept")], Vec::new()));
    let mut left_out = 0;
    for (at, settings) in torn {
        let verified = verify(&settings.folder).unwrap();
        assert_eq!(verified.damaged, Vec::<String>::new(), "at {at}");
        let opened = open(settings).unwrap();
        assert_eq!(opened.engine.damage(), Vec::<String>::new(), "at {at}");
        let there = names(&opened);
        assert!(there == [key("Tkept")] || there == [key("T1"), key("Tkept")], "at {at}: {there:?}");
        left_out += usize::from(there.len() == 1);
        if at >= end {
            assert_eq!(there.len(), 2, "at {at}: nothing of the first is gone");
        }
        bench.place.put(&opened, "T9", 100);
        assert_eq!(names(&opened).len(), there.len() + 1);
    }
    assert!(left_out >= 5, "{left_out}");
}
