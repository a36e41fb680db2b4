//! The store's bell under loom. The file is the daemon's own; only the locks below it are loom's.

#![cfg(test)]
// The file says more than these models ask.
#![allow(dead_code)]

mod sync {
    pub use loom::sync::{Condvar, Mutex};
    pub use std::sync::PoisonError;
}

#[path = "../../../src/store/bell.rs"]
mod bell;

use std::time::Duration;

use bell::{Bell, Woken};
use loom::sync::Arc;
use loom::thread;

/// Loom's waits never run out, so whoever misses a ring waits for ever, and loom says so.
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn a_ring_before_or_during_a_wait_wakes_it() {
    loom::model(|| {
        let bell = Arc::new(Bell::default());
        let ringing = bell.clone();
        let committer = thread::spawn(move || ringing.ring());
        assert_eq!(bell.wait(NEVER), Woken::Work);
        committer.join().unwrap();
    });
}

#[test]
fn two_rings_wake_at_least_once_and_a_later_one_again() {
    loom::model(|| {
        let bell = Arc::new(Bell::default());
        let (first, second) = (bell.clone(), bell.clone());
        let committers = [thread::spawn(move || first.ring()), thread::spawn(move || second.ring())];
        assert_eq!(bell.wait(NEVER), Woken::Work);
        committers.into_iter().for_each(|committer| committer.join().unwrap());
        bell.ring();
        assert_eq!(bell.wait(NEVER), Woken::Work);
    });
}

#[test]
fn a_close_ends_every_wait_whatever_is_rung_beside_it() {
    loom::model(|| {
        let bell = Arc::new(Bell::default());
        let (closing, ringing) = (bell.clone(), bell.clone());
        let closer = thread::spawn(move || closing.close());
        let committer = thread::spawn(move || ringing.ring());
        // As the flusher's loop: it goes on until it is told to end, and it is told.
        while bell.wait(NEVER) != Woken::Closing {}
        closer.join().unwrap();
        committer.join().unwrap();
        assert!(bell.is_closing());
        assert_eq!(bell.wait(NEVER), Woken::Closing, "and it stays closed");
    });
}
