//! The hand-over to the committer under stress: callers that go away, writes that fail, a store that
//! closes in between. Whoever heard `Ok` finds the whole batch after a reopen, whoever heard an error
//! finds nothing, and whoever did not wait finds all of it or nothing.
//!
//! A model checker of threads (loom, shuttle) would need the hand-over apart from what the committer
//! does; it is three channels of std, one oneshot and one semaphore of tokio, and no code of ours lies
//! between them that could be checked alone. So the real thing is run often instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::conformance::{key, new_body, new_id, read};
use super::{Batch, CommitError, Faults, Opened, Settings, open_with, verify};
use crate::mail::BodyId;

/// What a caller knows of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Ok,
    Refused,
    Nothing,
}

struct Known {
    name: String,
    body: Option<(BodyId, usize)>,
    heard: Heard,
}

const CALLERS: usize = 12;
const BATCHES: usize = 40;

/// One batch of two keys and perhaps a body.
fn batch(name: &str, length: usize) -> (Batch, Option<BodyId>) {
    let mut batch = Batch::new();
    batch.if_absent(key(&format!("{name}/one")));
    batch.set(key(&format!("{name}/one")), key(name)).set(key(&format!("{name}/two")), key(name));
    if length == 0 {
        return (batch, None);
    }
    let id = new_id();
    batch.bodies.push(new_body(id, length).0);
    (batch, Some(id))
}

async fn call(opened: Arc<Opened>, faults: Arc<Faults>, caller: usize, failed: Arc<AtomicUsize>) -> Vec<Known> {
    let mut known = Vec::new();
    for number in 0..BATCHES {
        let name = format!("m{caller}-{number}");
        let turn = caller * 7 + number;
        // None, small ones, and some that get a segment of their own.
        let length = [0, 100, 9_000, 0, 50_000][turn % 5];
        let (batch, body) = batch(&name, length);
        if turn.is_multiple_of(31) {
            faults.writes_fail.fetch_add(1, Ordering::AcqRel);
        }
        let commit = opened.records.commit(batch);
        let heard = if turn.is_multiple_of(3) {
            // Goes away at some point of the wait.
            match tokio::time::timeout(Duration::from_micros((turn as u64 * 37) % 900), commit).await {
                Err(_) => Heard::Nothing,
                Ok(Ok(())) => Heard::Ok,
                Ok(Err(_)) => Heard::Refused,
            }
        } else {
            match commit.await {
                Ok(()) => Heard::Ok,
                Err(CommitError::Failed(_)) => {
                    failed.fetch_add(1, Ordering::AcqRel);
                    Heard::Refused
                }
                Err(other) => panic!("{other}"),
            }
        };
        if heard == Heard::Ok {
            assert!(opened.records.get(&key(&format!("{name}/two"))).unwrap().is_some(), "told before it shows");
        }
        known.push(Known { name, body: body.map(|id| (id, length)), heard });
    }
    known
}

fn check(opened: &Opened, known: &Known) {
    let there = |suffix: &str| opened.records.get(&key(&format!("{}/{suffix}", known.name))).unwrap().is_some();
    let (one, two) = (there("one"), there("two"));
    assert_eq!(one, two, "half a batch: {}", known.name);
    match known.heard {
        Heard::Ok => assert!(one, "{} was acknowledged and is gone", known.name),
        Heard::Refused => assert!(!one, "{} was refused and is there", known.name),
        Heard::Nothing => {}
    }
    if let Some((id, length)) = known.body {
        let found = read(&*opened.bodies, id).unwrap();
        assert_eq!(found, one.then(|| new_body(id, length).1), "the body of {}", known.name);
    }
}

#[test]
fn whoever_heard_ok_finds_all_of_it_and_nobody_waits_for_ever() {
    // Settled beside the committer when more waits, and always.
    for settles_beside in [false, true] {
        whoever_heard_ok_finds_all_of_it(settles_beside);
    }
}

fn whoever_heard_ok_finds_all_of_it(settles_beside: bool) {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        folder: folder.path().join("store"),
        segment_bytes: 64 * 1024,
        own_segment_bytes_min: 40_000,
        free_bytes_min: 0,
        checkpoint_every: Duration::from_millis(5),
        ..Settings::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let (faults, failed) = (Arc::new(Faults::default()), Arc::new(AtomicUsize::new(0)));
    faults.settles_beside.store(settles_beside, Ordering::Release);
    let opened = Arc::new(open_with(settings.clone(), faults.clone()).unwrap());
    let known: Vec<Known> = runtime.block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(call(opened.clone(), faults.clone(), caller, failed.clone()));
        }
        callers.join_all().await.into_iter().flatten().collect()
    });
    assert_eq!(known.len(), CALLERS * BATCHES);
    // Callers that went away left their work behind: closing takes it along.
    drop(Arc::into_inner(opened).expect("no caller holds the store"));
    faults.writes_fail.store(0, Ordering::Release);
    let reopened = open_with(settings.clone(), faults).unwrap();
    known.iter().for_each(|one| check(&reopened, one));
    for heard in [Heard::Ok, Heard::Refused] {
        assert!(known.iter().any(|one| one.heard == heard), "no caller heard {heard:?}: the test proves nothing");
    }
    assert!(failed.load(Ordering::Acquire) > 0);
    drop(reopened);
    assert_eq!(verify(&settings.folder).unwrap().damaged, Vec::<String>::new());
}
