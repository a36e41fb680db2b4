//! The k-th storage call of every thread fails with EIO, or with ENOSPC, or is the process's last, for
//! every kind of call that writes to the data folder: whatever was acknowledged then is delivered, no
//! file is left that the next start trips over, and nothing panics.
//!
//! strace counts the calls of each thread apart. Calls that are also made for other purposes (`write`,
//! `openat`) are limited to the files that lie in the data folder before the start, and the record
//! engine's next logs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::can_trace;
use crate::harness::load::SinkMood;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_long, is_quick};

/// What is done to a call, and how strace says it.
const WAYS: [(&str, &str); 3] = [("EIO", "error=EIO"), ("ENOSPC", "error=ENOSPC"), ("killed", "signal=SIGKILL")];
/// Calls that change files, whether they must be limited to the data folder, and how many a thread
/// makes at most in a short life (the long round ends earlier where a call is not reached).
const CALLS: [(&str, bool, usize); 8] = [
    ("pwritev", false, 30),
    ("pwrite64", false, 40),
    ("fdatasync", false, 30),
    ("fsync", false, 30),
    ("fallocate", false, 1),
    ("rename", false, 1),
    ("write", true, 10),
    ("openat", true, 40),
];
/// How long senders work until the call must have been made, else there is no such call.
const REACH: Duration = Duration::from_secs(5);
/// Work goes on so long after the fault.
const AFTERMATH: Duration = Duration::from_millis(150);
const SIGKILL: i32 = 9;
/// The process's own say: out of storage, could not start. Everything else would be a fall.
const EXITS: [i32; 2] = [74, 1];

struct Fault {
    call: &'static str,
    is_limited: bool,
    way: (&'static str, &'static str),
    nth: usize,
}

impl Fault {
    fn name(&self) -> String {
        format!("{} {} at number {}", self.call, self.way.0, self.nth)
    }

    /// The wrapper that makes it; what strace saw goes to `trace`.
    fn wrapper(&self, data: &Path, trace: &Path) -> Vec<String> {
        let mut line: Vec<String> = ["strace", "-f", "--seccomp-bpf", "-o"].map(str::to_owned).to_vec();
        line.push(trace.to_string_lossy().into_owned());
        line.extend(["-e".to_owned(), format!("trace={}", self.call)]);
        line.extend(["-e".to_owned(), format!("inject={}:{}:when={}", self.call, self.way.1, self.nth)]);
        if self.is_limited {
            let mut files = Vec::new();
            files_below(data, &mut files);
            // The record engine begins a new log at each opening.
            let log = |path: &PathBuf| u64::from_str_radix(path.file_name()?.to_str()?.strip_prefix("log_")?, 16).ok();
            let next = files.iter().filter_map(log).max().unwrap_or(0) + 1;
            let metadata = data.join("store/records/metadata");
            files.extend((next..next + 3).map(|number| metadata.join(format!("log_{number:016x}"))));
            line.extend(files.iter().flat_map(|file| ["-P".to_owned(), file.to_string_lossy().into_owned()]));
        }
        line
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

/// Numbers to try of one kind of call.
fn numbers(most: usize, turn: usize) -> Vec<usize> {
    match is_long() {
        true => (1..=most).collect(),
        // In turn an early one, while the store is being opened, and a later one.
        false => vec![if turn.is_multiple_of(2) { 1 + turn % most.min(3) } else { most.min(4 + turn % 5) }],
    }
}

/// One life of the daemon with the fault in it; whether the fault was reached, and how the daemon ended.
fn live_with(promise: &mut Promise, fault: &Fault, trace: &Path) -> (bool, Option<i32>) {
    promise.instance.wrapper = fault.wrapper(&promise.instance.data, trace);
    promise.instance.spawn();
    let senders = promise.senders();
    let began = Instant::now();
    let is_reached = || {
        let seen = fs::read_to_string(trace).unwrap_or_default();
        seen.contains("(INJECTED)") || seen.contains("+++ killed by SIGKILL")
    };
    let mut ended = None;
    while !is_reached() && ended.is_none() && began.elapsed() < REACH {
        thread::sleep(Duration::from_millis(20));
        ended = promise.instance.ended();
    }
    if ended.is_none() {
        thread::sleep(AFTERMATH);
        ended = promise.instance.ended();
    }
    // strace dies the way of what it traced, and then its last lines may be missing.
    let reached = is_reached() || ended.is_some_and(|status| status.signal() == Some(SIGKILL));
    if ended.is_none() {
        promise.instance.kill();
    }
    senders.stop();
    promise.instance.wrapper.clear();
    (reached, ended.and_then(|status| status.code()))
}

#[test]
fn every_storage_call_may_fail_once_and_nothing_acknowledged_is_lost() {
    if is_quick() {
        return not_run("failing storage calls", "left out of the quick run");
    }
    if !can_trace() {
        return not_run("failing storage calls", "strace cannot trace here");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::DefersEvery(10));
    assert!(promise.instance.stop().success());
    // The first serial that was sent under each fault, to tell which one lost what is missing.
    let mut under: BTreeMap<u64, String> = BTreeMap::new();
    let (mut reached, mut turn) = (0, 0);
    for way in WAYS {
        for (call, is_limited, most) in CALLS {
            turn += 1;
            for nth in numbers(most, turn) {
                let fault = Fault { call, is_limited, way, nth };
                under.insert(promise.next_serial(), fault.name());
                let trace = folder.path().join(format!("trace.{}", under.len()));
                let (was_reached, ended) = live_with(&mut promise, &fault, &trace);
                assert!(ended.is_none_or(|code| EXITS.contains(&code)), "{}: it ended with {ended:?}", fault.name());
                promise.note_recorded();
                let report = promise.store_report().unwrap();
                assert!(report.damaged.is_empty(), "{}: {:?}", fault.name(), report.damaged);
                if !was_reached {
                    break;
                }
                reached += 1;
                promise.instance.try_start().unwrap_or_else(|why| panic!("after {}: {why}", fault.name()));
                promise.instance.kill();
            }
        }
    }
    promise.instance.start();
    let missing = promise.settle();
    promise.report("storage call fails", reached);
    let lost: Vec<_> =
        missing.iter().map(|serial| (serial, under.range(..serial).next_back().map(|(_, fault)| fault))).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {lost:?}\n{}", promise.instance.log_tail());
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(!log.contains("panicked at"), "something panicked:\n{}", promise.instance.log_tail());
    assert!(reached > CALLS.len() as u64, "only {reached} faults were reached");
    assert_eq!(promise.sink.arrivals.differing(), Vec::<u64>::new(), "a second copy has other bytes");
    assert_eq!(promise.sink.arrivals.invented(&promise.load), Vec::<u64>::new());
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
}
