//! The unit file's exposure, as systemd itself counts it, and that what is left out is explained.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::not_run;
use crate::harness::process::Instance;
use crate::harness::zone::zone_of_sink;

/// `systemd-analyze security` counts in tenths; the goal is 2.0.
const EXPOSURE_MAX: &str = "20";

#[test]
fn systemd_scores_the_unit_at_two_or_better() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/postern.service");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        not_run("systemd_scores_the_unit_at_two_or_better", "systemd-analyze is not installed");
        return;
    }
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX];
    let done = Command::new("systemd-analyze").args(arguments).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("Overall exposure level"), "{said}");
}

#[test]
fn the_unit_gives_more_time_to_stop_than_a_drain_takes() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/postern.service");
    let text = fs::read_to_string(unit).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let seconds: u64 = line.trim_end_matches('s').parse().unwrap();
    assert!(seconds > 30 + 15, "{seconds}");
    assert!(text.contains("RestartPreventExitStatus=77 78"));
}

/// A user of its own, as the unit gives it one.
const NOBODY: &str = "65534";

/// The limit of core files says nothing to a handler that dumps are piped into, so the process is not dumpable at all:
/// then the kernel writes no core, and nobody but root may look into its memory, the same user included.
#[test]
fn no_core_is_written_and_the_same_user_does_not_read_the_memory_either() {
    let name = "hardening::no_core_is_written_and_the_same_user_does_not_read_the_memory_either";
    let program = env!("CARGO_BIN_EXE_postern");
    let user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let as_nobody = |words: &[&str]| Command::new(user[0]).args(&user[1..]).args(words).output();
    if !as_nobody(&["test", "-x", program]).is_ok_and(|output| output.status.success()) {
        return not_run(name, "not run by root, or the program cannot be run by another user");
    }
    let folder = tempfile::tempdir().unwrap();
    let zone = zone_of_sink(&["there.test"]);
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), zone.address, 25);
    let owned = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(folder.path()).status();
    assert!(owned.unwrap().success());
    instance.wrapper = user.map(str::to_owned).to_vec();
    instance.start();
    let process = Path::new("/proc").join(instance.pid().to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(uid.split_whitespace().all(|uid| uid == NOBODY), "{uid}");
    assert_eq!(fs::metadata(process.join("mem")).unwrap().uid(), 0, "what is not dumpable belongs to root");
    for file in ["environ", "maps", "mem"] {
        let read = as_nobody(&["head", "-c", "1", &process.join(file).display().to_string()]).unwrap();
        assert!(!read.status.success(), "{file} is read by the same user");
    }
    // The gate still sees how full its own process is.
    let status: serde_json::Value = serde_json::from_str(&instance.tool(&["status", "--json"])).unwrap();
    for figure in ["memory_used", "descriptors_open", "descriptors_limit"] {
        assert!(status[figure].as_u64().is_some_and(|number| number > 3), "{figure}: {status}");
    }
    let open = fs::read_dir(process.join("fd")).unwrap().count() as u64;
    assert!(status["descriptors_open"].as_u64().unwrap().abs_diff(open) < 20, "{open} are open: {status}");
    let sent = Command::new("kill").args(["-ABRT", &instance.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = loop {
        match instance.ended() {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(ended.signal().is_some() && !ended.core_dumped(), "{ended}");
}
