//! The k-th storage call of every thread fails with EIO, or with ENOSPC, or is the process's last, for
//! every kind of call that the daemon makes in the data folder: whatever was acknowledged then is
//! delivered, no file is left that the next start trips over, and nothing panics. A sync in the store that
//! fails ends the process, whatever it was of.
//!
//! strace counts the calls of each thread apart. Calls that are also made for other purposes (`write`,
//! `openat`, what reads) are limited to what lies in the data folder before the start, and the record
//! engine's next logs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postern::store::VerifyReport;

use super::can_trace;
use crate::harness::load::SinkMood;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_long, is_quick};

/// What is done to a call, and how strace says it.
const WAYS: [(&str, &str); 3] = [("EIO", "error=EIO"), ("ENOSPC", "error=ENOSPC"), (KILLED, "signal=SIGKILL")];
const KILLED: &str = "killed";
/// Which of them a call can meet: all, or what does not say that there is no room.
const ANY: &[usize] = &[0, 1, 2];
const NOT_FULL: &[usize] = &[0, 2];

/// A kind of call.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// It is made for other purposes too, and must be limited to the data folder.
    is_limited: bool,
    /// How many a thread makes at most in a short life; the long round ends earlier where one is not reached.
    most: usize,
    ways: &'static [usize],
    /// The short round tries every way, not one of them.
    is_vital: bool,
}

const fn kind(name: &'static str, is_limited: bool, most: usize, ways: &'static [usize]) -> Kind {
    Kind { name, is_limited, most, ways, is_vital: false }
}

const fn vital(name: &'static str, most: usize) -> Kind {
    Kind { name, is_limited: false, most, ways: ANY, is_vital: true }
}

/// What strace shows of a daemon at work in its data folder, but for what cannot fail in a way that matters
/// (`close` and `fcntl`, whose results nobody can use; `mmap` and `readlink`, which the store does not make).
const CALLS: [Kind; 20] = [
    vital("pwritev", 30),
    vital("pwrite64", 40),
    vital("fdatasync", 30),
    vital("fsync", 30),
    kind("fallocate", false, 1, ANY),
    kind("rename", false, 1, ANY),
    kind("renameat", false, 4, ANY),
    kind("write", true, 10, ANY),
    kind("openat", true, 40, ANY),
    kind("read", true, 20, NOT_FULL),
    kind("pread64", true, 60, NOT_FULL),
    kind("ftruncate", false, 4, ANY),
    kind("unlink", false, 4, NOT_FULL),
    kind("unlinkat", false, 4, NOT_FULL),
    kind("mkdir", false, 3, ANY),
    kind("getdents64", true, 12, NOT_FULL),
    kind("lseek", false, 6, NOT_FULL),
    kind("statx", true, 12, NOT_FULL),
    kind("statfs", false, 4, NOT_FULL),
    kind("flock", false, 3, NOT_FULL),
];
/// How long senders work until the call must have been made, else there is no such call.
const REACH: Duration = Duration::from_secs(5);
/// Work goes on so long after the fault.
const AFTERMATH: Duration = Duration::from_millis(150);
const SIGKILL: i32 = 9;
/// The process's own say: out of storage, could not start. Everything else would be a fall.
const EXITS: [i32; 2] = [74, 1];

/// Lives until the first sync that fails in one is a segment's.
const SEGMENT_TRIES: usize = 6;
/// How long the daemon may take to end after a sync failed.
const END_PATIENCE: Duration = Duration::from_secs(30);

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
        let mut line: Vec<String> = ["strace", "-f", "-y"].map(str::to_owned).to_vec();
        // With it strace 6.1 counts calls and sends no signal.
        if self.way.0 != KILLED {
            line.push("--seccomp-bpf".to_owned());
        }
        line.push("-o".to_owned());
        line.push(trace.to_string_lossy().into_owned());
        line.extend(["-e".to_owned(), format!("trace={}", self.call)]);
        line.extend(["-e".to_owned(), format!("inject={}:{}:when={}", self.call, self.way.1, self.nth)]);
        if self.is_limited {
            let mut files = Vec::new();
            files.push(data.to_owned());
            all_below(data, &mut files);
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

fn all_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_below(&path, found);
        }
        found.push(path);
    }
}

/// What to try of one kind of call: ways and numbers. The short round takes a sample: of vital calls one in
/// each way, in turn an early one, while the store is being opened, and a later one; of others an early one.
fn sample(kind: &Kind, index: usize) -> Vec<(usize, Vec<usize>)> {
    let early = |turn: usize| vec![1 + turn % kind.most.min(3)];
    let later = |turn: usize| vec![kind.most.min(4 + turn % 5)];
    match kind.ways {
        ways if is_long() => ways.iter().map(|way| (*way, (1..=kind.most).collect())).collect(),
        ways if kind.is_vital => {
            let turns = ways.iter().map(|way| (*way, index * ways.len() + way));
            turns.map(|(way, turn)| (way, if turn % 2 == 0 { early(turn) } else { later(turn) })).collect()
        }
        ways => vec![(ways[index % ways.len()], early(index / 2))],
    }
}

/// Whether the trace shows a sync in the store that failed and must have ended the daemon. `-y` names the file.
/// That there was no room for a file that nothing rests on yet is no such failure.
fn has_failed_sync(trace: &Path) -> bool {
    let seen = fs::read_to_string(trace).unwrap_or_default();
    seen.lines().filter(|line| line.contains("(INJECTED)")).any(|line| {
        let is_sync = line.contains("fsync(") || line.contains("fdatasync(");
        let may_be_full = line.contains("ENOSPC")
            && (line.contains("/store/copy/") || (line.contains("fsync(") && line.contains(".segment>")));
        is_sync && line.contains("/store/") && !may_be_full
    })
}

/// One life of the daemon with the fault in it; whether the fault was reached, and how the daemon ended.
fn live_with(promise: &mut Promise, wrapper: Vec<String>, trace: &Path) -> (bool, Option<i32>) {
    promise.instance.wrapper = wrapper;
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
    if ended.is_none() && has_failed_sync(trace) {
        ended = Some(promise.wait_for_end(END_PATIENCE));
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

/// A life with the fault and one without; whether the fault was reached. What should not be goes into `wrong`.
fn meets(promise: &mut Promise, fault: &Fault, trace: &Path, wrong: &mut Vec<String>) -> bool {
    let wrapper = fault.wrapper(&promise.instance.data, trace);
    let (was_reached, ended) = live_with(promise, wrapper, trace);
    if let Some(code) = ended.filter(|code| !EXITS.contains(code)) {
        wrong.push(format!("{}: it ended with {code}\n{}", fault.name(), promise.instance.log_tail()));
    }
    promise.note_recorded();
    let VerifyReport { damaged, .. } = promise.store_report().unwrap();
    if !damaged.is_empty() {
        wrong.push(format!("{}: {damaged:?}", fault.name()));
    }
    if was_reached {
        promise.instance.try_start().unwrap_or_else(|why| panic!("after {}: {why}", fault.name()));
        promise.instance.kill();
        promise.note_recorded();
    }
    was_reached
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
    let (mut reached, mut wrong) = (BTreeMap::<&str, u64>::new(), Vec::new());
    let mut reached_ways = [0; WAYS.len()];
    for (index, kind) in CALLS.iter().enumerate() {
        for (way, numbers) in sample(kind, index) {
            for nth in numbers {
                let fault = Fault { call: kind.name, is_limited: kind.is_limited, way: WAYS[way], nth };
                under.insert(promise.next_serial(), fault.name());
                let trace = folder.path().join(format!("trace.{}", under.len()));
                if !meets(&mut promise, &fault, &trace, &mut wrong) {
                    println!("not reached: {}", fault.name());
                    break;
                }
                *reached.entry(kind.name).or_default() += 1;
                reached_ways[way] += 1;
            }
        }
    }
    promise.instance.start();
    let missing = promise.settle();
    promise.report("storage call fails", reached.values().sum());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let lost: Vec<_> =
        missing.iter().map(|serial| (serial, under.range(..serial).next_back().map(|(_, fault)| fault))).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {lost:?}\n{}", promise.instance.log_tail());
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(!log.contains("panicked at"), "something panicked:\n{}", promise.instance.log_tail());
    // A short life makes not every call; the vital ones it must make, and most of the others.
    let vital = CALLS.iter().filter(|kind| kind.is_vital);
    assert!(vital.clone().all(|kind| reached.contains_key(kind.name)), "only {reached:?} were reached");
    assert!(reached.len() > CALLS.len() / 2, "only {reached:?} were reached");
    assert!(reached_ways.iter().all(|times| *times > 2), "each way must be met: {reached_ways:?}");
    assert_eq!(promise.sink.arrivals.differing(), Vec::<u64>::new(), "a second copy has other bytes");
    assert_eq!(promise.sink.arrivals.invented(&promise.load), Vec::<u64>::new());
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.extra_copies_were_in_flight();
}

/// The sync of the segments' folder while the daemon starts, and while it serves, and that of a new segment.
#[test]
fn a_failed_sync_of_a_new_segment_or_of_its_folder_ends_the_process_and_nothing_acknowledged_is_lost() {
    if is_quick() {
        return not_run("failed sync of a new segment", "left out of the quick run");
    }
    if !can_trace() {
        return not_run("failed sync of a new segment", "strace cannot trace here");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::DefersEvery(10));
    assert!(promise.instance.stop().success());
    // The last of these gets a segment of its own.
    promise.load.sizes = [[2_000; 15].as_slice(), &[5_000_000]].concat();
    let segments = promise.instance.data.join("store/segments");
    let trace = folder.path().join("trace.folder");
    let strace = ["strace", "-f", "-y", "--seccomp-bpf", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"];
    let mut wrapper = strace.map(str::to_owned).to_vec();
    wrapper.extend(["-P", &segments.to_string_lossy(), "-o", &trace.to_string_lossy()].map(str::to_owned));
    let (was_reached, ended) = live_with(&mut promise, wrapper, &trace);
    assert!(was_reached && has_failed_sync(&trace), "the folder was not synced");
    assert!(ended.is_some_and(|code| code != 0), "it starts all the same\n{}", promise.instance.log_tail());
    promise.note_recorded();
    promise.verify();

    let folder_alone = segments.to_string_lossy();
    let seen = fails_while_serving(&mut promise, &["-P", &folder_alone], &folder.path().join("trace.serving"));
    assert!(seen.iter().all(|line| line.contains("/segments>")) && !seen.is_empty(), "{seen:?}");
    // Of any file: a checkpoint's sync may come first.
    let mut files = Vec::new();
    for attempt in 0..SEGMENT_TRIES {
        let trace = folder.path().join(format!("trace.segment.{attempt}"));
        files.extend(fails_while_serving(&mut promise, &[], &trace));
        if files.iter().any(|line| line.contains(".segment>")) {
            break;
        }
    }
    assert!(files.iter().any(|line| line.contains(".segment>")), "no segment's sync failed: {files:?}");
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(log.contains("a sync failed"), "{}", promise.instance.log_tail());
    promise.instance.start();
    let missing = promise.settle();
    promise.report("sync of a new segment fails", 2);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    promise.extra_copies_were_in_flight();
}

/// The daemon serves, and the next `fsync` of what `only` says fails: it ends with 74. The calls that failed.
fn fails_while_serving(promise: &mut Promise, only: &[&str], trace: &Path) -> Vec<String> {
    promise.instance.start();
    promise.instance.wait_for_door();
    let (senders, acknowledged) = (promise.senders(), promise.ledger.len());
    while promise.ledger.len() < acknowledged + 3 {
        assert!(promise.instance.ended().is_none(), "{}", promise.instance.log_tail());
        thread::sleep(Duration::from_millis(5));
    }
    let mut strace = attach(promise, only, trace);
    let status = promise.wait_for_end(END_PATIENCE);
    senders.stop();
    strace.wait().unwrap();
    promise.note_recorded();
    assert_eq!(status.code(), Some(74), "{}", promise.instance.log_tail());
    promise.verify();
    let seen = fs::read_to_string(trace).unwrap();
    seen.lines().filter(|line| line.contains("(INJECTED)")).map(str::to_owned).collect()
}

/// Lets the first `fsync` of each thread of the running daemon fail from now on.
fn attach(promise: &Promise, only: &[&str], trace: &Path) -> Child {
    let pid = promise.instance.pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"]);
    strace.args(only).args(["-p", &pid, "-o"]).arg(trace);
    let child = strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = Path::new("/proc").join(pid).join("status");
    let deadline = Instant::now() + END_PATIENCE;
    let is_traced = || !fs::read_to_string(&status).unwrap().contains("TracerPid:\t0\n");
    while !is_traced() {
        assert!(Instant::now() < deadline, "strace does not attach");
        thread::sleep(Duration::from_millis(10));
    }
    child
}
