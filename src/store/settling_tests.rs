//! Groups that are written while the one before is being synced: what each may rest on, and what is left of
//! them when a sync or a write fails, a thread panics, or the power goes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::{JoinHandle, JoinSet};

use super::conformance::{key, new_body, new_id, read};
use super::durable::{Call, faults};
use super::frame::Kind;
use super::scan::{Found, Frames, payload};
use super::segment::{DATA_START, SegmentHeader};
use super::tests::{Place, eventually, segments, writable};
use super::{Batch, CommitError, Faults, Health, Opened, open, salvage, verify};
use crate::mail::BodyId;

type Answer = JoinHandle<Result<(), CommitError>>;

const SEGMENT_BYTES: u64 = 1024 * 1024;

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
        place.settings.segment_bytes = SEGMENT_BYTES;
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

    fn journal(&self) -> PathBuf {
        segments(&self.place.settings.folder).pop().unwrap()
    }

    /// Batches whose frames lie in the journal, sealed or not.
    fn written(&self) -> usize {
        let file = File::open(self.journal()).unwrap();
        let salt = SegmentHeader::read(&file).unwrap().unwrap().salt;
        let (mut frames, mut batches) = (Frames::new(&file, salt, DATA_START, SEGMENT_BYTES), 0);
        while let Some(found) = frames.next_found().unwrap() {
            if let Found::Frame(frame) = found
                && frame.header.kind == Kind::Batch
                && payload(&file, &frame).unwrap().is_some()
            {
                batches += 1;
            }
        }
        batches
    }

    /// Begins to commit and waits until all of the group lies in the journal, but for its seal if another
    /// group is being settled.
    fn begin_written(&self, batch: Batch) -> Answer {
        let before = self.written();
        let answer = self.begin(batch);
        eventually("its frames are written", || self.written() > before);
        answer
    }

    /// The same of a group that is on its way to be synced, and waits there.
    fn begin_held(&self, batch: Batch) -> Answer {
        let answer = self.begin_written(batch);
        let settling = &self.opened.engine.shared().settling_since;
        eventually("it is being settled", || settling.lock().unwrap().is_some());
        answer
    }
}

/// Keeps every sync of a group waiting.
fn hold(faults: &Faults) -> MutexGuard<'_, ()> {
    faults.sync_gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str) -> Batch {
    let mut batch = Batch::new();
    batch.set(key(name), key("owed"));
    batch
}

fn with_body(name: &str, id: BodyId) -> Batch {
    let mut batch = setting(name);
    batch.bodies.push(new_body(id, 3000).0);
    batch
}

fn names(opened: &Opened) -> Vec<String> {
    let pairs = opened.records.range(b"T", b"U", 100).unwrap();
    pairs.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn a_group_is_written_during_the_sync_of_the_one_before_and_nobody_hears_of_either_until_it_is_synced() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_held(with_body("T1", new_id()));
    let second = bench.begin_written(with_body("T2", new_id()));
    assert_eq!(names(&bench.opened), ["Tkept"]);
    assert!(!first.is_finished() && !second.is_finished());
    assert!(bench.opened.records.writing_since().is_some());
    drop(gate);
    assert_eq!((bench.end(first), bench.end(second)), (Ok(()), Ok(())));
    assert_eq!(names(&bench.opened), ["T1", "T2", "Tkept"]);
    eventually("nobody writes", || bench.opened.records.writing_since().is_none());
}

#[test]
fn whoever_asks_about_what_a_group_being_settled_changes_waits_until_it_is() {
    type Ask = fn(&mut Batch, BodyId, BodyId);
    // What is asked about, and what is heard: of the new body's name, and of the one that is freed.
    let cases: [(Ask, Result<(), CommitError>); 8] = [
        (
            |batch, _, _| {
                batch.if_equals(key("T1"), key("owed"));
            },
            Ok(()),
        ),
        (
            |batch, _, _| {
                batch.if_absent(key("T1"));
            },
            Err(CommitError::Conflict),
        ),
        (
            |batch, _, _| {
                batch.if_absent(key("Tkept"));
            },
            Ok(()),
        ),
        (|batch, new, _| batch.bodies.push(new_body(new, 10).0), Err(CommitError::Conflict)),
        (|batch, _, freed| batch.bodies.push(new_body(freed, 10).0), Ok(())),
        (|batch, new, _| batch.freed.push(new), Ok(())),
        (|batch, _, freed| batch.freed.push(freed), Ok(())),
        (
            |batch, _, _| {
                batch.chain(b"C".to_vec(), b"second".to_vec());
            },
            Ok(()),
        ),
    ];
    for (number, (ask, wanted)) in cases.into_iter().enumerate() {
        let bench = Bench::new();
        let (new, freed) = (new_id(), bench.kept.0);
        let mut first = with_body("T1", new);
        first.freed.push(freed);
        first.remove(key("Tkept")).chain(b"C".to_vec(), b"first".to_vec());
        let gate = hold(&bench.place.faults);
        let first = bench.begin_held(first);
        let mut asking = setting("T2");
        ask(&mut asking, new, freed);
        let (before, asking) = (bench.written(), bench.begin(asking));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(bench.written(), before, "case {number} does not wait");
        drop(gate);
        assert_eq!((bench.end(first), bench.end(asking)), (Ok(()), wanted), "case {number}");
        assert!(bench.opened.bodies.open(freed).unwrap().is_none() || number == 4);
    }
}

#[test]
fn many_callers_who_compare_and_set_lose_no_turn_and_break_no_chain() {
    let bench = Bench::new();
    let won = Arc::new([const { AtomicU64::new(0) }; 3]);
    let linked: usize = bench.place.runtime.block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..16_usize {
            let (opened, won) = (Arc::clone(&bench.opened), Arc::clone(&won));
            callers.spawn(async move {
                let (mut linked, which) = (0, caller % 3);
                for _ in 0..40 {
                    let name = key(&format!("N{which}"));
                    let now = opened.records.get(&name).unwrap();
                    let mut batch = Batch::new();
                    match &now {
                        Some(value) => batch.if_equals(name.clone(), value.clone()),
                        None => batch.if_absent(name.clone()),
                    };
                    let count = now.map_or(0, |value| u64::from_be_bytes(value.try_into().unwrap()));
                    batch.set(name, (count + 1).to_be_bytes().to_vec()).chain(b"C".to_vec(), vec![caller as u8]);
                    match opened.records.commit(batch).await {
                        Ok(()) => {
                            won[which].fetch_add(1, Ordering::AcqRel);
                            linked += 1;
                        }
                        Err(error) => assert_eq!(error, CommitError::Conflict),
                    }
                }
                linked
            });
        }
        callers.join_all().await.into_iter().sum()
    });
    for which in 0..3 {
        let value = bench.opened.records.get(&key(&format!("N{which}"))).unwrap().unwrap();
        assert_eq!(u64::from_be_bytes(value.try_into().unwrap()), won[which].load(Ordering::Acquire));
    }
    let walk = super::chain_walk(&*bench.opened.records, b"C", |_| ()).unwrap();
    assert_eq!((walk.head.count, walk.broken), (linked as u64, None));
    assert!(linked >= 40, "{linked}");
}

#[test]
fn a_failed_sync_refuses_the_group_that_was_written_meanwhile_too() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_held(with_body("T1", new_id()));
    let second = bench.begin_written(with_body("T2", new_id()));
    faults::plan(&bench.place.settings.folder.join("segments"), Call::Data, 0, Errno::IO);
    drop(gate);
    for answer in [first, second] {
        assert!(matches!(bench.end(answer), Err(CommitError::Stopped(_))));
    }
    assert!(matches!(bench.opened.records.health(), Health::Stopped(_)));
    assert!(matches!(bench.end(bench.begin(setting("T3"))), Err(CommitError::Stopped(_))));
    assert_eq!(names(&bench.opened), ["Tkept"]);
    // On the disk the first may be whole, of which nobody was told; the second has no seal.
    let again = bench.place.crash_copy("again");
    assert_eq!(verify(&again.folder).unwrap().damaged, Vec::<String>::new());
    let opened = open(again).unwrap();
    assert_eq!(opened.engine.damage(), Vec::<String>::new());
    assert_eq!(names(&opened), ["T1", "Tkept"]);
    assert_eq!(read(&*opened.bodies, bench.kept.0).unwrap(), Some(bench.kept.1.clone()));
}

#[test]
fn a_panic_of_the_settling_thread_stops_everything_and_nobody_waits_for_ever() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    let first = bench.begin_held(with_body("T1", new_id()));
    let second = bench.begin_written(with_body("T2", new_id()));
    bench.place.faults.settler_panics.store(true, Ordering::Release);
    drop(gate);
    for answer in [first, second, bench.begin(setting("T3"))] {
        assert!(matches!(bench.end(answer), Err(CommitError::Stopped(_))));
    }
    assert!(matches!(bench.opened.records.health(), Health::Stopped(why) if why.contains("panicked")));
    assert_eq!(names(&open(bench.place.crash_copy("again")).unwrap()), ["T1", "Tkept"], "the second has no seal");
}

#[test]
fn a_close_takes_along_what_is_being_settled_and_what_is_written_behind_it() {
    let bench = Bench::new();
    let gate = hold(&bench.place.faults);
    for answer in [bench.begin_held(setting("T1")), bench.begin_written(setting("T2"))] {
        // Its caller goes away, so that nobody holds the store.
        answer.abort();
        assert!(bench.place.runtime.block_on(answer).unwrap_err().is_cancelled());
    }
    let Bench { place, opened, .. } = &bench;
    let settings = place.settings.clone();
    assert_eq!(Arc::strong_count(opened), 1);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| drop(Arc::into_inner(bench.opened)));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!closing.is_finished());
        drop(gate);
    });
    assert_eq!(names(&open(settings).unwrap()), ["T1", "T2", "Tkept"]);
}

#[test]
fn a_write_that_fails_harms_neither_the_group_being_synced_nor_the_next() {
    for is_of_the_seal in [false, true] {
        for is_full in [false, true] {
            let bench = Bench::new();
            let gate = hold(&bench.place.faults);
            let first = bench.begin_held(with_body("T1", new_id()));
            let fails = if is_of_the_seal { &bench.place.faults.seals_fail } else { &bench.place.faults.writes_fail };
            fails.store(1, Ordering::Release);
            let id = new_id();
            let second = if is_of_the_seal {
                let second = bench.begin_written(with_body("T2", id));
                bench.place.faults.disk_is_full.store(is_full, Ordering::Release);
                second
            } else {
                bench.place.faults.disk_is_full.store(is_full, Ordering::Release);
                bench.begin_written(with_body("T2", id))
            };
            drop(gate);
            assert_eq!(bench.end(first), Ok(()));
            let refused = bench.end(second).unwrap_err();
            bench.place.faults.disk_is_full.store(false, Ordering::Release);
            let what = format!("of the seal: {is_of_the_seal}, full: {is_full}");
            assert!(format!("{refused:?}").starts_with(if is_full { "Full" } else { "Failed" }), "{what}: {refused:?}");
            let crashed = bench.place.crash_copy("crashed");
            bench.place.put(&bench.opened, "T3", 200);
            let later = open(bench.place.crash_copy("later")).unwrap();
            for (opened, wanted) in [
                (&open(crashed).unwrap(), vec!["T1", "Tkept"]),
                (&*bench.opened, vec!["T1", "T3", "Tkept"]),
                (&later, vec!["T1", "T3", "Tkept"]),
            ] {
                assert_eq!(
                    (names(opened), opened.engine.damage()),
                    (wanted.into_iter().map(str::to_owned).collect(), Vec::new()),
                    "{what}"
                );
                assert!(opened.bodies.open(id).unwrap().is_none(), "{what}");
            }
        }
    }
}

#[test]
fn a_power_cut_during_the_sync_leaves_out_what_has_no_whole_seal_and_nothing_it_says_is_believed() {
    let bench = Bench::new();
    let begins = bench.opened.engine.journal_end();
    let gate = hold(&bench.place.faults);
    // It says of the first body that it is gone, and of its message that a recipient is settled.
    let mut first = with_body("T1", new_id());
    first.freed.push(bench.kept.0);
    first.settled.push((bench.kept.0.queue_id, vec![7]));
    let first = bench.begin_held(first);
    let second = bench.begin_written(with_body("T2", new_id()));
    let crashed = bench.place.crash_copy("crashed");
    let whole = std::fs::read(segments(&crashed.folder).pop().unwrap()).unwrap();
    drop(gate);
    assert_eq!((bench.end(first), bench.end(second)), (Ok(()), Ok(())));
    let seal = end_of_the_next_group(&bench.journal(), begins);
    let end = seal + 72;
    // Each sector, what is between two pages, all of the first, its tail, its seal alone.
    let sectors = (begins / 512..(begins + 8192) / 512).map(|sector| (sector * 512, (sector + 1) * 512));
    let parts = sectors.chain([(begins, end), (end - 500, end), (seal, end), (seal - 8, seal), (end, end + 56)]);
    let (mut there, mut gone) = (0, 0);
    for (from, to) in parts {
        let (from, to) = (from.max(begins), to);
        let settings = bench.place.crash_copy(&format!("cut{from}-{to}"));
        super::tests::copy(&crashed.folder, &settings.folder);
        let journal = segments(&settings.folder).pop().unwrap();
        writable(&journal).write_all_at(&vec![0; (to - from) as usize], from).unwrap();
        let lost = whole.get(from as usize..to.min(end).max(from) as usize).unwrap();
        let is_whole = lost.iter().all(|byte| *byte == 0);
        *(if is_whole { &mut there } else { &mut gone }) += 1;
        assert_eq!(verify(&settings.folder).unwrap().damaged, Vec::<String>::new(), "{from} to {to}");
        let saved: Vec<_> = salvage(&settings.folder).unwrap().map(|body| (body.id, body.settled.len())).collect();
        assert_eq!(!saved.contains(&(bench.kept.0, 0)), is_whole, "{from} to {to}: {saved:?}");
        let opened = open(settings).unwrap();
        assert_eq!(opened.engine.damage(), Vec::<String>::new(), "{from} to {to}");
        let wanted = if is_whole { vec!["T1", "Tkept"] } else { vec!["Tkept"] };
        assert_eq!(names(&opened), wanted, "{from} to {to}");
        assert_eq!(opened.bodies.open(bench.kept.0).unwrap().is_none(), is_whole, "{from} to {to}");
        bench.place.put(&opened, "T9", 100);
        assert_eq!(names(&opened).len(), wanted.len() + 1);
    }
    assert!(there >= 5 && gone >= 9, "{there} {gone}");
}

/// Where the seal of the group at `begins` is.
fn end_of_the_next_group(journal: &std::path::Path, begins: u64) -> u64 {
    let file = File::open(journal).unwrap();
    let salt = SegmentHeader::read(&file).unwrap().unwrap().salt;
    let mut frames = Frames::new(&file, salt, begins, SEGMENT_BYTES);
    loop {
        match frames.next_found().unwrap() {
            Some(Found::Frame(frame)) if frame.header.kind == Kind::Seal => return frame.offset,
            Some(Found::Frame(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}
