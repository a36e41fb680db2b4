//! A disk that does not answer a sync: nothing fails and nothing returns, so only the watchdog can tell.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::can_trace;
use crate::harness::load::SinkMood;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_quick};

/// How long the sync takes: longer than the daemon's patience with a write, which is 10 s.
const HANG_MICROS: u64 = 17_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_sync_that_does_not_return_keeps_the_watchdog_from_being_told_that_all_is_well() {
    if is_quick() {
        return not_run("hung sync", "left out of the quick run");
    }
    if !can_trace() {
        return not_run("hung sync", "strace cannot trace here");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    assert!(promise.instance.stop().success());
    let hang = format!("inject=fdatasync:delay_enter={HANG_MICROS}:when=10");
    let strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &hang];
    promise.instance.wrapper = strace.map(str::to_owned).to_vec();
    promise.instance.start();
    promise.instance.wait_for_door();
    let senders = promise.senders();
    let deadline = Instant::now() + PATIENCE;
    let is_noticed = |log: &str| log.contains("a write does not end; the watchdog is not told that all is well");
    while !is_noticed(&fs::read_to_string(promise.instance.log()).unwrap()) {
        assert!(Instant::now() < deadline, "nobody noticed:\n{}", promise.instance.log_tail());
        thread::sleep(Duration::from_millis(100));
    }
    // It is only slow: once it returns everything goes on, and nothing was promised before.
    let acknowledged = promise.ledger.len();
    while promise.ledger.len() <= acknowledged {
        assert!(Instant::now() < deadline + PATIENCE, "it never went on:\n{}", promise.instance.log_tail());
        thread::sleep(Duration::from_millis(100));
    }
    promise.instance.kill();
    senders.stop();
    promise.instance.wrapper.clear();
    promise.instance.start();
    let missing = promise.settle();
    promise.report("hung sync", 1);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
}
