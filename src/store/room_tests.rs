//! A disk that fills up, or is slow, in the midst of a checkpoint: commits are refused instead of waiting
//! without end, what was acknowledged is on the disk, and a close does not hang.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::time::Duration;

use super::conformance::key;
use super::tests::{Place, eventually};
use super::{Batch, CommitError, Opened, Settings, open, verify};

const VALUE_BYTES: usize = 4 * 1024;
const LAYER_BYTES: usize = 64 * 1024;
/// No test waits so long unless something hangs.
const NEVER: Duration = Duration::from_secs(60 * 60);

fn place(checkpoint_wait_max: Duration) -> Place {
    let mut place = Place::new();
    place.settings.layer_bytes_max = LAYER_BYTES;
    place.settings.checkpoint_wait_max = checkpoint_wait_max;
    place
}

fn numbered(number: usize) -> Batch {
    let mut batch = Batch::new();
    batch.set(key(&format!("T{number:04}")), vec![7; VALUE_BYTES]);
    batch
}

/// Commits until one is refused; how many were not, and what the refusal says.
fn commit_until_refused(place: &Place, opened: &Opened, from: usize) -> (usize, CommitError) {
    for number in from..from + 10 * LAYER_BYTES / VALUE_BYTES {
        if let Err(error) = place.commit(opened, numbered(number)) {
            return (number, error);
        }
    }
    panic!("memory holds more than it may");
}

fn assert_holds(settings: &Settings, acknowledged: usize, what: &str) {
    assert_eq!(verify(&settings.folder).unwrap().damaged, Vec::<String>::new(), "{what}");
    assert_shows(&open(settings.clone()).unwrap(), acknowledged, what);
}

fn assert_shows(opened: &Opened, acknowledged: usize, what: &str) {
    let found = opened.records.range(b"T", b"U", usize::MAX).unwrap();
    let wanted: Vec<_> = (0..acknowledged).map(|number| key(&format!("T{number:04}"))).collect();
    assert_eq!(found.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), wanted, "{what}");
}

/// Closes the store, which must not hang.
fn close(opened: Opened) {
    let (done, closed) = channel();
    std::thread::spawn(move || {
        drop(opened);
        let _ = done.send(());
    });
    closed.recv_timeout(Duration::from_secs(60)).expect("the close ends");
}

/// A store whose records engine has found the disk full in the midst of a checkpoint, and has so much
/// behind it in memory that the next commit is refused; how many commits it acknowledged.
fn filled_up(place: &Place) -> (Opened, usize) {
    let opened = place.open();
    place.commit(&opened, numbered(0)).unwrap();
    opened.engine.shared().records.pretend_full(true);
    place.commit(&opened, numbered(1)).unwrap();
    eventually("a checkpoint waits for room", || opened.engine.shared().records.waits_for_room());
    assert!(!opened.engine.shared().checkpoint_waits.load(Ordering::Acquire), "it was met in its midst");
    let (acknowledged, refusal) = commit_until_refused(place, &opened, 2);
    assert!(matches!(refusal, CommitError::Full(_)), "{refusal}");
    (opened, acknowledged)
}

#[test]
fn a_disk_that_fills_up_in_the_midst_of_a_checkpoint_refuses_and_clears_by_itself() {
    let place = place(NEVER);
    let (opened, acknowledged) = filled_up(&place);
    assert!(acknowledged > 10, "{acknowledged}");
    assert_shows(&opened, acknowledged, "while it waits");
    assert_holds(&place.crash_copy("crashed"), acknowledged, "after a crash while it waits");
    opened.engine.shared().records.pretend_full(false);
    eventually("there is room again", || place.commit(&opened, numbered(acknowledged)).is_ok());
    close(opened);
    assert_holds(&place.settings, acknowledged + 1, "after it found room");
}

#[test]
fn a_close_does_not_wait_for_room_and_what_was_acknowledged_is_replayed() {
    let place = place(NEVER);
    let (opened, acknowledged) = filled_up(&place);
    close(opened);
    assert_holds(&place.crash_copy("closed"), acknowledged, "closed without room");
}

#[test]
fn commits_wait_for_a_slow_checkpoint_so_long_and_no_longer() {
    let place = place(Duration::from_millis(200));
    let opened = place.open();
    let (acknowledged, refusal) = opened.engine.at_rest(|| commit_until_refused(&place, &opened, 0));
    assert!(matches!(refusal, CommitError::Failed(_)), "{refusal}");
    eventually("the checkpoint was made", || place.commit(&opened, numbered(acknowledged)).is_ok());
    assert_shows(&opened, acknowledged + 1, "afterwards");
}

#[test]
fn a_commit_that_waits_for_a_checkpoint_is_refused_by_a_close() {
    let place = place(NEVER);
    place.faults.checkpoints_skipped.store(true, Ordering::Release);
    let opened = place.open();
    let mut acknowledged = 0;
    while !opened.engine.shared().records.is_full() {
        place.commit(&opened, numbered(acknowledged)).unwrap();
        acknowledged += 1;
    }
    let records = Arc::clone(&opened.records);
    place.runtime.block_on(async {
        // Handed to the committer by the first poll, and not waited for: its caller went away.
        let mut waiting = pin!(records.commit(numbered(acknowledged)));
        let polled = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await;
        assert!(polled.is_pending(), "{polled:?}");
    });
    drop(records);
    close(opened);
    place.faults.checkpoints_skipped.store(false, Ordering::Release);
    assert_holds(&place.settings, acknowledged, "after the close");
}
