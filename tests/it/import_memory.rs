//! Memory while a long list is imported, daemon and command line as processes of their own.
//!
//! A short list is part of every run; `POSTERN_IMPORT_LINES=1000000` measures what docs/benchmarks.md says.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::process::{Instance, free_port};

/// Lines, unless `POSTERN_IMPORT_LINES` says otherwise.
const LINES: usize = 20_000;
/// Every so many lines one is rejected.
const REJECTED_EVERY: usize = 1_000;
/// The command line holds a piece of the file, never the file: a million lines are 40 MiB.
const TOOL_KIB_MAX: u64 = 24 * 1024;
/// What the daemon may need beyond what it had: what the store holds in memory between checkpoints (64 MiB of
/// journal and its records), its cache, which with leaves being written is some 200 MiB, and nothing for the file.
const DAEMON_GROWTH_KIB_MAX: u64 = 384 * 1024;

/// A figure of `/proc/PID/status` in KiB; `None` once the process is gone.
fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn list(lines: usize) -> String {
    let mut text = "email,reason,note\r\n".to_owned();
    for number in 0..lines {
        if number % REJECTED_EVERY == REJECTED_EVERY - 1 {
            text.push_str("nonsense,unsubscribe,\r\n");
        } else {
            writeln!(text, "user{number}@d{}.receiver.test,unsubscribe,\r", number % 1000).unwrap();
        }
    }
    text
}

#[test]
fn a_long_list_is_imported_in_memory_that_does_not_grow_with_it() {
    let lines = std::env::var("POSTERN_IMPORT_LINES").ok().and_then(|text| text.parse().ok()).unwrap_or(LINES);
    let folder = tempfile::tempdir().unwrap();
    let dns = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, free_port()));
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), dns, free_port());
    instance.start();
    instance.tool(&["tenant", "add", "shop"]);
    let file = folder.path().join("list.csv");
    fs::write(&file, list(lines)).unwrap();
    let (size, pid) = (fs::metadata(&file).unwrap().len() / 1024, instance.pid());
    let before = status(pid, "VmRSS").unwrap();
    // The peak counts from here (proc(5), clear_refs).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();

    let began = Instant::now();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_postern"));
    tool.args(["suppression", "import", "shop"]).arg(&file).arg("--config").arg(instance.config()).arg("--json");
    let child = tool.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let (tool_pid, mut tool_peaks, mut resident) = (child.id(), Vec::new(), Vec::new());
    let output = thread::spawn(move || child.wait_with_output().unwrap());
    while !output.is_finished() {
        tool_peaks.extend(status(tool_pid, "RssAnon"));
        resident.extend(status(pid, "VmRSS"));
        thread::sleep(Duration::from_millis(10));
    }
    let output = output.join().unwrap();
    let took = began.elapsed();
    let (peak, after) = (status(pid, "VmHWM").unwrap(), status(pid, "VmRSS").unwrap());
    assert!(output.status.success(), "{}", instance.log_tail());
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rejected = lines / REJECTED_EVERY;
    assert_eq!((done["lines"].as_u64(), done["added"].as_u64()), (Some(lines as u64), Some((lines - rejected) as u64)));
    assert_eq!(done["rejected"].as_u64(), Some(rejected as u64));
    let tool_peak = *tool_peaks.iter().max().unwrap();
    println!(
        "{lines} lines, {size} KiB, {:.1} s: daemon {before} KiB before, {peak} at most, {after} after; command line \
         {tool_peak} KiB of its own at most, seen {} times",
        took.as_secs_f64(),
        tool_peaks.len()
    );
    let tenths: Vec<u64> = (1..=10).map(|tenth| resident[(resident.len() * tenth / 10).saturating_sub(1)]).collect();
    println!("the daemon after each tenth of that time, KiB: {tenths:?}");
    assert!(peak - before < DAEMON_GROWTH_KIB_MAX, "the daemon grew from {before} to {peak} KiB");
    assert!(tool_peak < TOOL_KIB_MAX, "the command line held {tool_peak} KiB");
    instance.stop();
}
