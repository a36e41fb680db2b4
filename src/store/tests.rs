//! What only the built-in engine promises: crashes, damage, faults, space that returns.
//!
//! A crash is a copy of a live folder with checkpoints left out: the copy holds the journal and
//! records that never heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::conformance::{key, new_body, new_id, read};
use super::segment::{DATA_START, SegmentHeader};
use super::{
    Batch, CommitError, Faults, Health, OpenError, Opened, Settings, StoreError, open, open_with, salvage, verify,
};
use crate::mail::{BodyId, QueueId};

pub(super) struct Place {
    pub(super) folder: tempfile::TempDir,
    pub(super) settings: Settings,
    pub(super) faults: Arc<Faults>,
    pub(super) runtime: Runtime,
}

impl Place {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            folder: folder.path().join("store"),
            segment_bytes: 64 * 1024,
            own_segment_bytes_min: 40_000,
            free_bytes_min: 0,
            checkpoint_every: Duration::from_millis(20),
            ..Settings::default()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        Self { folder, settings, faults: Arc::default(), runtime }
    }

    /// Nothing reaches the records' disk: all is left to replay.
    pub(super) fn without_checkpoints(self) -> Self {
        self.faults.checkpoints_skipped.store(true, Ordering::Release);
        self
    }

    pub(super) fn open(&self) -> Opened {
        open_with(self.settings.clone(), self.faults.clone()).unwrap()
    }

    pub(super) fn commit(&self, opened: &Opened, batch: Batch) -> Result<(), CommitError> {
        self.runtime.block_on(opened.records.commit(batch))
    }

    /// The folder as a crash now would leave it, under another name.
    pub(super) fn crash_copy(&self, name: &str) -> Settings {
        let to = self.folder.path().join(name);
        copy(&self.settings.folder, &to);
        Settings { folder: to, ..self.settings.clone() }
    }

    pub(super) fn put(&self, opened: &Opened, name: &str, length: usize) -> (BodyId, Vec<u8>) {
        let id = new_id();
        let (body, whole) = new_body(id, length);
        let mut batch = Batch::new();
        batch.set(key(name), key("owed"));
        batch.bodies.push(body);
        self.commit(opened, batch).unwrap();
        (id, whole)
    }

    pub(super) fn free(&self, opened: &Opened, id: BodyId) {
        let mut batch = Batch::new();
        batch.freed.push(id);
        self.commit(opened, batch).unwrap();
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

pub(super) fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| fs::File::open(path).is_ok_and(|file| SegmentHeader::read(&file).unwrap().is_some()));
    files.sort_by_key(|path| SegmentHeader::read(&fs::File::open(path).unwrap()).unwrap().unwrap().number);
    files
}

pub(super) fn writable(path: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_was_acknowledged_is_replayed_after_a_crash() {
    let place = Place::new().without_checkpoints();
    let opened = place.open();
    let bodies: Vec<_> = (0..40).map(|number| place.put(&opened, &format!("T{number:03}"), number * 1500)).collect();
    place.free(&opened, bodies[7].0);
    let mut batch = Batch::new();
    batch.remove(key("T005")).append(key("e"), key("fact"));
    place.commit(&opened, batch).unwrap();
    let crashed = place.crash_copy("crashed");
    drop(opened);
    let report = verify(&crashed.folder).unwrap();
    assert_eq!((report.records, report.bodies, report.damaged), (40, 39, Vec::new()));
    for round in 0..2 {
        let opened = open(crashed.clone()).unwrap();
        assert_eq!(opened.replayed_batches, if round == 0 { 42 } else { 0 });
        assert_eq!(opened.engine.damage(), Vec::<String>::new());
        assert_eq!(opened.records.range(b"T", b"U", 100).unwrap().len(), 39);
        assert_eq!(opened.records.range(b"e", b"f", 100).unwrap().len(), 1);
        for (number, (id, whole)) in bodies.iter().enumerate() {
            let wanted = (number != 7).then_some(whole.clone());
            assert_eq!(read(&*opened.bodies, *id).unwrap(), wanted);
        }
    }
    assert_eq!(verify(&crashed.folder).unwrap().damaged, Vec::<String>::new());
}

#[test]
fn a_tail_cut_anywhere_ends_replay_before_the_cut_group() {
    let place = Place::new().without_checkpoints();
    let opened = place.open();
    let mut ends = vec![DATA_START];
    for number in 0..4 {
        place.put(&opened, &format!("T{number}"), 300);
        ends.push(opened.engine.journal_end());
    }
    let crashed = place.crash_copy("crashed");
    drop(opened);
    let last = segments(&crashed.folder).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    let cuts = (ends[2]..=ends[4]).step_by(83).chain([ends[3] - 1, ends[3], ends[3] + 1, ends[4] - 1, ends[4]]);
    for cut in cuts {
        let folder = place.folder.path().join(format!("cut{cut}"));
        copy(&crashed.folder, &folder);
        let file = folder.join("segments").join(last.file_name().unwrap());
        let mut bytes = whole.clone();
        bytes[cut as usize..].fill(0);
        fs::write(&file, &bytes).unwrap();
        let opened = open(Settings { folder: folder.clone(), ..crashed.clone() }).unwrap();
        // A cut through zeros changes nothing, so what counts is which groups still have all their bytes.
        let is_whole = |end: &u64| bytes[..*end as usize] == whole[..*end as usize];
        let complete = ends.iter().skip(1).filter(|end| is_whole(end)).count();
        assert_eq!(opened.records.range(b"T", b"U", 100).unwrap().len(), complete, "cut at {cut}");
        assert_eq!(opened.engine.damage(), Vec::<String>::new());
        place.put(&opened, "Tnew", 300);
        drop(opened);
        let opened = open(Settings { folder: folder.clone(), ..crashed.clone() }).unwrap();
        assert_eq!(opened.records.range(b"T", b"U", 100).unwrap().len(), complete + 1);
        drop(opened);
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_flipped_byte_in_the_middle_is_reported_and_harms_only_its_own_frame() {
    let place = Place::new().without_checkpoints();
    let opened = place.open();
    let mut ends = vec![DATA_START];
    let mut bodies = Vec::new();
    for number in 0..4 {
        bodies.push(place.put(&opened, &format!("T{number}"), 300));
        ends.push(opened.engine.journal_end());
    }
    let crashed = place.crash_copy("crashed");
    drop(opened);
    let last = segments(&crashed.folder).pop().unwrap();
    for at in (ends[1]..ends[2]).step_by(53) {
        let folder = place.folder.path().join(format!("flip{at}"));
        copy(&crashed.folder, &folder);
        let file = writable(&folder.join("segments").join(last.file_name().unwrap()));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        drop(file);
        let opened = open(Settings { folder: folder.clone(), ..crashed.clone() }).unwrap();
        let names: Vec<_> = opened.records.range(b"T", b"U", 100).unwrap().into_iter().map(|pair| pair.0).collect();
        for other in ["T0", "T2", "T3"] {
            assert!(names.contains(&key(other)), "flip at {at}: {other} is lost");
        }
        for number in [0, 2, 3] {
            assert_eq!(read(&*opened.bodies, bodies[number].0).unwrap().as_ref(), Some(&bodies[number].1));
        }
        match read(&*opened.bodies, bodies[1].0) {
            Ok(Some(whole)) => assert_eq!(whole, bodies[1].1),
            Ok(None) => assert!(!names.contains(&key("T1"))),
            Err(error) => assert!(matches!(error, StoreError::Damaged(_))),
        }
        let harmed = !names.contains(&key("T1")) || read(&*opened.bodies, bodies[1].0).is_err();
        assert!(!harmed || !opened.engine.damage().is_empty(), "flip at {at} went unreported");
        drop(opened);
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn records_older_than_the_journal_are_made_anew_or_refused() {
    let place = Place::new();
    let opened = place.open();
    place.put(&opened, "T0", 100);
    drop(opened);
    let old = place.crash_copy("old");
    let mut opened = place.open();
    for number in 0..60 {
        let (id, _) = place.put(&opened, &format!("U{number}"), 9_000);
        place.free(&opened, id);
        if number % 20 == 0 {
            drop(opened);
            opened = place.open();
        }
    }
    eventually("segments return", || opened.bodies.usage().file_bytes <= 4 * 64 * 1024);
    drop(opened);
    fs::remove_dir_all(place.settings.folder.join("records")).unwrap();
    copy(&old.folder.join("records"), &place.settings.folder.join("records"));
    let without = place.crash_copy("without a copy");
    fs::remove_dir_all(without.folder.join("copy")).unwrap();
    assert!(matches!(open(without), Err(OpenError::WentBack { .. })));
    let opened = place.open();
    assert_eq!(opened.records.range(b"T", b"V", 100).unwrap().len(), 61);
    assert!(opened.engine.damage()[0].contains("made anew"), "{:?}", opened.engine.damage());
}

#[test]
fn a_second_opener_is_told_the_folder_is_in_use() {
    let place = Place::new();
    let opened = place.open();
    assert!(matches!(open(place.settings.clone()), Err(OpenError::InUse(_))));
    assert!(matches!(verify(&place.settings.folder), Err(OpenError::InUse(_))));
    drop(opened);
    place.open();
}

#[test]
fn damaged_record_files_are_an_error_and_not_a_panic() {
    let place = Place::new();
    place.put(&place.open(), "T0", 100);
    let records = place.settings.folder.join("records");
    for entry in fs::read_dir(records.join("metadata")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).unwrap();
    }
    fs::remove_dir_all(place.settings.folder.join("copy")).unwrap();
    assert!(open(place.settings.clone()).is_err());
    assert_eq!(salvage(&place.settings.folder).unwrap().count(), 1, "the mail is still there");
}

#[test]
fn a_failed_write_leaves_nothing_and_heals() {
    let place = Place::new().without_checkpoints();
    let opened = place.open();
    place.put(&opened, "T0", 2000);
    for (full, round) in [(true, 1), (false, 2)] {
        if full {
            place.faults.disk_is_full.store(true, Ordering::Release);
        } else {
            place.faults.writes_fail.store(1, Ordering::Release);
        }
        let mut batch = Batch::new();
        batch.set(key("Tlost"), key("x"));
        batch.bodies.push(new_body(new_id(), 5000).0);
        let error = place.commit(&opened, batch).unwrap_err();
        assert_eq!(matches!(error, CommitError::Full(_)), full);
        assert_eq!(matches!(error, CommitError::Failed(_)), !full);
        place.faults.disk_is_full.store(false, Ordering::Release);
        assert_eq!(opened.records.get(b"Tlost"), Ok(None));
        let crashed = open(place.crash_copy(&format!("before{round}"))).unwrap();
        assert_eq!(crashed.records.get(b"Tlost"), Ok(None), "not even after a crash");
        place.put(&opened, &format!("T{round}"), 100);
        let crashed = open(place.crash_copy(&format!("after{round}"))).unwrap();
        assert_eq!(crashed.records.range(b"T", b"U", 10).unwrap().len(), round + 1);
        assert_eq!(crashed.engine.damage(), Vec::<String>::new());
    }
}

#[test]
fn a_panic_of_the_committer_stops_and_nobody_waits_for_ever() {
    let place = Place::new();
    let opened = place.open();
    place.faults.committer_panics.store(true, Ordering::Release);
    for _ in 0..2 {
        let mut batch = Batch::new();
        batch.set(key("T1"), key("x"));
        assert!(matches!(place.commit(&opened, batch), Err(CommitError::Stopped(_))));
    }
    eventually("it says so", || matches!(opened.records.health(), Health::Stopped(_)));
    drop(opened);
    place.put(&place.open(), "T2", 100);
}

#[test]
fn low_space_refuses_mail_and_nothing_else() {
    let mut place = Place::new();
    place.settings.free_bytes_min = u64::MAX;
    let opened = place.open();
    let mut batch = Batch::new();
    batch.bodies.push(new_body(new_id(), 100).0);
    assert!(matches!(place.commit(&opened, batch), Err(CommitError::Full(_))));
    assert!(matches!(opened.records.health(), Health::LowSpace(_)));
    let mut batch = Batch::new();
    batch.set(key("T1"), key("x"));
    assert_eq!(place.commit(&opened, batch), Ok(()));
}

#[test]
fn space_returns_when_bodies_are_freed_and_stragglers_are_copied_out() {
    let place = Place::new();
    let opened = place.open();
    let bodies: Vec<_> = (0..200).map(|number| place.put(&opened, &format!("T{number}"), 8_000)).collect();
    assert!(opened.bodies.usage().file_bytes > 1_600_000);
    for (number, (id, _)) in bodies.iter().enumerate() {
        if number % 40 != 0 {
            place.free(&opened, *id);
        }
    }
    eventually("space returns", || opened.bodies.usage().file_bytes < 600_000);
    for (number, (id, whole)) in bodies.iter().enumerate() {
        assert_eq!(read(&*opened.bodies, *id).unwrap().as_ref(), (number % 40 == 0).then_some(whole));
    }
    drop(opened);
    let opened = place.open();
    eventually("the count after an open is the same", || opened.bodies.usage().live_bytes > 5 * 8_000);
    for (id, _) in bodies.iter().step_by(40) {
        assert!(read(&*opened.bodies, *id).unwrap().is_some());
        place.free(&opened, *id);
    }
    eventually("nothing is live", || opened.bodies.usage().live_bytes == 0);
    eventually("space returns after a reopen", || opened.bodies.usage().file_bytes <= 4 * 64 * 1024);
}

#[test]
fn a_large_body_has_a_file_of_its_own_which_goes_with_it() {
    let place = Place::new();
    let opened = place.open();
    let (id, whole) = place.put(&opened, "T", 2_000_000);
    assert_eq!(read(&*opened.bodies, id).unwrap(), Some(whole));
    assert!(opened.bodies.usage().file_bytes > 2_000_000);
    let mut refused = Batch::new();
    refused.if_absent(key("T")).bodies.push(new_body(new_id(), 2_000_000).0);
    assert_eq!(place.commit(&opened, refused), Err(CommitError::Conflict));
    place.free(&opened, id);
    eventually("both files go", || opened.bodies.usage().file_bytes < 1_000_000);
}

#[test]
fn salvage_gives_what_is_owed_and_never_what_is_done() {
    let place = Place::new();
    let opened = place.open();
    let (first, whole) = place.put(&opened, "T-first", 3_000);
    let (second, _) = place.put(&opened, "T-second", 100_000);
    let mut batch = Batch::new();
    batch.settled.extend([(first.queue_id, vec![0, 2]), (second.queue_id, vec![5])]);
    place.commit(&opened, batch).unwrap();
    let mut batch = Batch::new();
    batch.settled.push((first.queue_id, vec![7]));
    place.commit(&opened, batch).unwrap();
    // Much mail comes and goes, so that the segments of the first are emptied and reused.
    for number in 0..150 {
        let (id, _) = place.put(&opened, &format!("U{number}"), 8_000);
        place.free(&opened, id);
    }
    eventually("segments were reused", || opened.bodies.usage().file_bytes < 600_000);
    std::thread::sleep(Duration::from_millis(200));
    drop(opened);
    fs::remove_dir_all(place.settings.folder.join("records")).unwrap();
    let mut salvage = salvage(&place.settings.folder).unwrap();
    let mut saved: Vec<_> = salvage.by_ref().collect();
    saved.sort_by_key(|body| body.message.len());
    assert_eq!(salvage.damage(), Vec::<String>::new());
    assert_eq!(saved.iter().map(|body| body.id).collect::<Vec<_>>(), [first, second]);
    assert_eq!(saved[0].message, whole);
    assert_eq!(saved[0].envelope, b"envelope");
    assert_eq!(saved[0].settled, BTreeSet::from([0, 2, 7]));
    assert_eq!(saved[1].settled, BTreeSet::from([5]));
}

#[test]
fn what_was_settled_of_a_thousand_living_messages_outlives_its_segment() {
    let place = Place::new();
    let opened = place.open();
    let ids: Vec<BodyId> = (0..1_000).map(|_| new_id()).collect();
    for some in ids.chunks(100) {
        let mut batch = Batch::new();
        batch.bodies.extend(some.iter().map(|id| new_body(*id, 100).0));
        place.commit(&opened, batch).unwrap();
    }
    // Every third of them, and between them messages that are gone.
    let mut batch = Batch::new();
    let settled: BTreeSet<QueueId> = ids.iter().step_by(3).map(|id| id.queue_id).collect();
    batch.settled.extend(settled.iter().map(|id| (*id, vec![4])));
    batch.settled.extend((0..500).map(|_| (new_id().queue_id, vec![4])));
    place.commit(&opened, batch).unwrap();
    for number in 0..100 {
        let (id, _) = place.put(&opened, &format!("U{number}"), 8_000);
        place.free(&opened, id);
    }
    eventually("segments were reused", || opened.bodies.usage().file_bytes < 900_000);
    std::thread::sleep(Duration::from_millis(200));
    drop(opened);
    let saved: Vec<_> = salvage(&place.settings.folder).unwrap().collect();
    assert_eq!(saved.len(), ids.len());
    for body in saved {
        assert_eq!(body.settled.contains(&4), settled.contains(&body.id.queue_id));
    }
}

#[test]
fn verify_counts_and_names_a_damaged_body() {
    let place = Place::new();
    let opened = place.open();
    let (id, whole) = place.put(&opened, "T1", 3_000);
    place.put(&opened, "T2", 3_000);
    drop(opened);
    let report = verify(&place.settings.folder).unwrap();
    assert_eq!((report.records, report.bodies, report.damaged), (2, 2, Vec::new()));
    let file = segments(&place.settings.folder).pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    let at = memchr::memmem::find(&bytes, &whole).unwrap() as u64;
    writable(&file).write_all_at(b"X", at + 100).unwrap();
    let report = verify(&place.settings.folder).unwrap();
    assert!(report.damaged.iter().any(|what| what.contains(&id.queue_id.to_string())), "{:?}", report.damaged);
    let opened = place.open();
    assert!(matches!(read(&*opened.bodies, id), Err(StoreError::Damaged(_))));
}

#[test]
fn a_reader_that_began_before_a_free_is_never_given_other_bytes() {
    let place = Place::new();
    let opened = place.open();
    let (id, whole) = place.put(&opened, "T", 8_000);
    let mut reader = opened.bodies.open(id).unwrap().unwrap();
    place.free(&opened, id);
    for number in 0..100 {
        let (id, _) = place.put(&opened, &format!("U{number}"), 8_000);
        place.free(&opened, id);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(reader.next_slice().unwrap().as_deref(), Some(&whole[..]));
}

#[test]
fn groups_that_failed_one_after_another_stay_away_and_hide_nothing_after_a_crash() {
    let mut place = Place::new().without_checkpoints();
    let opened = place.open();
    let (first, _) = place.put(&opened, "T1", 3_000);
    for _ in 0..3 {
        place.faults.writes_fail.store(1, Ordering::Release);
        let mut batch = Batch::new();
        batch.bodies.push(new_body(new_id(), 9_000).0);
        assert!(place.commit(&opened, batch).is_err());
        // Housekeeping looks at the segment that holds nothing now.
        std::thread::sleep(Duration::from_millis(100));
    }
    place.free(&opened, first);
    let (second, whole) = place.put(&opened, "T2", 3_000);
    place.settings = crash(&place, opened, 1);
    let opened = place.open();
    assert_eq!(opened.engine.named_bodies(), [second]);
    assert_eq!(read(&*opened.bodies, second).unwrap(), Some(whole));
    assert_eq!(opened.engine.damage(), Vec::<String>::new());
}

#[test]
fn a_move_that_failed_hides_no_body_from_salvage_and_neither_does_one_that_was_cut_off() {
    let place = Place::new();
    let opened = place.open();
    // A segment that is full, and then nearly empty: what is left in it is moved.
    let bodies: Vec<_> = (0..10).map(|number| place.put(&opened, &format!("T{number}"), 8_000)).collect();
    let kept = [bodies[0].0, bodies[1].0];
    opened.engine.at_rest(|| {
        for (id, _) in &bodies[2..] {
            place.free(&opened, *id);
        }
        // The next write is housekeeping's.
        place.faults.writes_fail.store(1, Ordering::Release);
    });
    eventually("the move met the fault", || place.faults.writes_fail.load(Ordering::Acquire) == 0);
    let copied = opened.engine.at_rest(|| place.crash_copy("after"));
    drop(opened);
    let saved: BTreeSet<_> = salvage(&copied.folder).unwrap().map(|body| body.id).collect();
    assert!(kept.iter().all(|id| saved.contains(id)), "{saved:?}");
    // As a power cut leaves a group: its seal never arrived.
    let last = segments(&place.settings.folder).pop().unwrap();
    let header = SegmentHeader::read(&fs::File::open(&last).unwrap()).unwrap().unwrap();
    let file = writable(&last);
    let mut frames = super::scan::Frames::new(&file, header.salt, DATA_START, file.metadata().unwrap().len());
    let mut seal = None;
    while let Some(found) = frames.next_found().unwrap() {
        if let super::scan::Found::Frame(placed) = found
            && placed.header.kind == super::frame::Kind::Seal
        {
            seal = Some(placed.offset);
        }
    }
    file.write_all_at(&[0; 8], seal.unwrap()).unwrap();
    let cut: BTreeSet<_> = salvage(&place.settings.folder).unwrap().map(|body| body.id).collect();
    assert!(kept.iter().all(|id| cut.contains(id)), "{cut:?}");
    let opened = place.open();
    for (id, whole) in &bodies[..2] {
        assert_eq!(read(&*opened.bodies, *id).unwrap().as_ref(), Some(whole));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    Free(usize),
    Settle(usize, u16),
    FailWrite,
    Pause,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..12_000_usize).prop_map(Step::Put),
        1 => (40_000..200_000_usize).prop_map(Step::Put),
        9 => any::<usize>().prop_map(Step::Free),
        3 => (any::<usize>(), 0..50_u16).prop_map(|(which, number)| Step::Settle(which, number)),
        1 => Just(Step::FailWrite),
        2 => Just(Step::Pause),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

/// So many cases, unless `PROPTEST_CASES` says how many.
fn cases(usual: u32) -> u32 {
    std::env::var_os("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(4), ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_model_through_crashes_and_reuse(
        steps in prop::collection::vec(step(), 30..120),
        settles_beside: bool,
    ) {
        let mut place = Place::new();
        place.faults.settles_beside.store(settles_beside, Ordering::Release);
        let mut opened = place.open();
        let mut model: BTreeMap<BodyId, (Vec<u8>, BTreeSet<u16>)> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            let pick = |which: usize| model.keys().nth(which % model.len().max(1)).copied();
            match step {
                Step::Put(length) => {
                    let (id, whole) = place.put(&opened, &format!("T{number}"), length);
                    model.insert(id, (whole, BTreeSet::new()));
                }
                Step::Free(which) => if let Some(id) = pick(which) {
                    place.free(&opened, id);
                    model.remove(&id);
                },
                Step::Settle(which, recipient) => if let Some(id) = pick(which) {
                    let mut batch = Batch::new();
                    batch.settled.push((id.queue_id, vec![recipient]));
                    place.commit(&opened, batch).unwrap();
                    model.get_mut(&id).unwrap().1.insert(recipient);
                },
                Step::FailWrite => {
                    place.faults.writes_fail.store(1, Ordering::Release);
                    let mut batch = Batch::new();
                    batch.bodies.push(new_body(new_id(), 9_000).0);
                    // Housekeeping may have met the fault instead.
                    let id = batch.bodies[0].id;
                    let whole = new_body(id, 9_000).1;
                    if place.commit(&opened, batch).is_ok() {
                        model.insert(id, (whole, BTreeSet::new()));
                    }
                }
                Step::Pause => std::thread::sleep(Duration::from_millis(30)),
                Step::Reopen => {
                    drop(opened);
                    opened = place.open();
                }
                Step::Crash => {
                    place.settings = crash(&place, opened, number);
                    opened = place.open();
                }
            }
            prop_assert_eq!(opened.engine.named_bodies(), model.keys().copied().collect::<Vec<_>>());
        }
        prop_assert_eq!(opened.engine.damage(), Vec::<String>::new());
        for (id, (whole, _)) in &model {
            let found = read(&*opened.bodies, *id).unwrap();
            prop_assert_eq!(found.as_ref(), Some(whole));
        }
        drop(opened);
        let report = verify(&place.settings.folder).unwrap();
        prop_assert_eq!((report.bodies, report.damaged), (model.len() as u64, Vec::new()));
        let saved: BTreeMap<_, _> =
            salvage(&place.settings.folder).unwrap().map(|body| (body.id, (body.message.to_vec(), body.settled))).collect();
        let told = |one: Option<&(Vec<u8>, BTreeSet<u16>)>| one.map(|(octets, settled)| (octets.len(), settled.clone()));
        let differing: Vec<_> = model
            .iter()
            .filter(|(id, one)| saved.get(id) != Some(one))
            .map(|(id, one)| (*id, told(Some(one)), told(saved.get(id))))
            .collect();
        prop_assert!(saved == model, "salvage found {} of {}; put, found: {differing:?}", saved.len(), model.len());
    }
}

/// Goes on with a copy taken while the store is open and its threads are at work.
///
/// A copy is not taken at one instant, so housekeeping rests while it is made.
fn crash(place: &Place, opened: Opened, number: usize) -> Settings {
    let copied = opened.engine.at_rest(|| place.crash_copy(&format!("crash{number}")));
    drop(opened);
    assert_eq!(verify(&copied.folder).unwrap().damaged, Vec::<String>::new());
    copied
}
