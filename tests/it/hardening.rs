//! The unit file's exposure, as systemd itself counts it, and that what is left out is explained.

use std::path::Path;
use std::process::Command;

use crate::harness::not_run;

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
    let text = std::fs::read_to_string(unit).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let seconds: u64 = line.trim_end_matches('s').parse().unwrap();
    assert!(seconds > 30 + 15, "{seconds}");
    assert!(text.contains("RestartPreventExitStatus=77 78"));
}
