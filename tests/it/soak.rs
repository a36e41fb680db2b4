//! The promise over hours, by hand: `tests/load/soak --minutes 120`.
//!
//! Each minute senders work for half of it, one fault falls at a random moment of that half (a kill,
//! an orderly stop, a reload), and the daemon rests for the other half. Afterwards the books are compared
//! as in the kill rounds. Memory and descriptors are written each few seconds into a file of samples.
//! With `--one-process` every fault is a reload, so that nothing a restart would give back is given back.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use postern::ext::random_bytes;

use crate::harness::load::SinkMood;
use crate::harness::promise::Promise;

const MINUTE: Duration = Duration::from_secs(60);
/// Senders work so long in each minute.
const WORK: Duration = Duration::from_secs(30);
/// Between two samples.
const SAMPLE: Duration = Duration::from_secs(5);
/// The daemon's memory after the first tenth of the run may grow by this factor, and by this much.
const GROWTH_MAX: f64 = 1.5;
const GROWTH_MIB: f64 = 64.0;
/// Descriptors at rest may differ by this many from the first minutes.
const DESCRIPTORS_MORE_MAX: usize = 32;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Reload,
}

impl Fault {
    /// One of all, or what leaves the process standing.
    fn any() -> Self {
        if std::env::var_os("POSTERN_SOAK_ONE_PROCESS").is_some() {
            return Self::Reload;
        }
        [Self::Kill, Self::Stop, Self::Reload][usize::from(random_bytes::<1>()[0] % 3)]
    }

    fn happen(self, promise: &mut Promise) {
        match self {
            Self::Kill => promise.instance.kill(),
            Self::Stop => assert!(promise.instance.stop().success(), "{}", promise.instance.log_tail()),
            Self::Reload => {
                let sent = Command::new("kill").arg("-HUP").arg(promise.instance.pid().to_string()).status();
                assert!(sent.unwrap().success());
                return;
            }
        }
        promise.note_recorded();
        promise.instance.start();
        promise.instance.wait_for_door();
    }
}

/// What the daemon takes, second by second.
struct Samples {
    began: Instant,
    /// Seconds, MiB resident, descriptors, while resting.
    resting: Vec<(f64, f64, usize)>,
    text: String,
}

impl Samples {
    fn take(&mut self, promise: &Promise, is_resting: bool) {
        let process = Path::new("/proc").join(promise.instance.pid().to_string());
        let Ok(status) = fs::read_to_string(process.join("status")) else { return };
        let Some(line) = status.lines().find(|line| line.starts_with("VmRSS")) else { return };
        let mib = line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0;
        let Ok(open) = fs::read_dir(process.join("fd")) else { return };
        let (seconds, open) = (self.began.elapsed().as_secs_f64(), open.count());
        writeln!(self.text, "sample {seconds:.1} {mib:.1} {open}").unwrap();
        if is_resting {
            self.resting.push((seconds, mib, open));
        }
    }

    /// Samples until so much time has passed.
    fn for_a_while(&mut self, promise: &Promise, time: Duration, is_resting: bool) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            thread::sleep(SAMPLE.min(until.saturating_duration_since(Instant::now())));
            self.take(promise, is_resting);
        }
    }
}

#[test]
#[ignore = "hours; see tests/load/soak"]
fn the_books_are_clean_and_memory_is_flat_after_a_fault_a_minute() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let minutes = number("POSTERN_SOAK_MINUTES").unwrap_or(120);
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::DefersEvery(10));
    promise.load.senders = 4;
    promise.load.pause = Duration::from_millis(number("POSTERN_SOAK_PAUSE_MS").unwrap_or(0));
    let mut samples = Samples { began: Instant::now(), resting: Vec::new(), text: String::new() };
    let mut happened = [0_u64; 3];
    for _ in 0..minutes {
        let (began, senders) = (Instant::now(), promise.senders());
        let moment = WORK.mul_f64(0.1 + 0.8 * f64::from(random_bytes::<1>()[0]) / 255.0);
        samples.for_a_while(&promise, moment, false);
        let fault = Fault::any();
        happened[fault as usize] += 1;
        writeln!(samples.text, "fault {:.1} {fault:?}", samples.began.elapsed().as_secs_f64()).unwrap();
        fault.happen(&mut promise);
        samples.for_a_while(&promise, WORK.saturating_sub(began.elapsed()), false);
        senders.stop();
        samples.for_a_while(&promise, MINUTE.saturating_sub(began.elapsed()), true);
        if let Some(path) = std::env::var_os("POSTERN_SOAK_SAMPLES") {
            fs::write(path, &samples.text).unwrap();
        }
    }
    let missing = promise.settle();
    promise.report("soak", minutes);
    println!("{} kills, {} stops, {} reloads", happened[0], happened[1], happened[2]);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    assert!(promise.sink.arrivals.differing().is_empty(), "a second copy has other bytes");
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.extra_copies_were_in_flight();
    let early: Vec<_> = samples.resting.iter().take((samples.resting.len() / 10).max(6)).collect();
    let (mib, open) = (early.iter().map(|one| one.1).fold(0.0, f64::max), early.iter().map(|one| one.2).max().unwrap());
    let (last_mib, last_open) = samples.resting.last().map(|last| (last.1, last.2)).unwrap();
    println!(
        "at rest in the first tenth: up to {mib:.0} MiB, {open} descriptors; at the end {last_mib:.0}, {last_open}"
    );
    assert!(last_mib <= (mib * GROWTH_MAX).max(mib + GROWTH_MIB), "memory grew");
    assert!(last_open <= open + DESCRIPTORS_MORE_MAX, "descriptors are left open");
}
