//! `postern try --once`, as the README's first command runs it: the binary itself, judged by what it
//! prints and by its exit code.

use std::process::Command;

#[test]
fn try_once_delivers_one_signed_message_and_says_so_in_its_last_line() {
    // No configuration, no data and no socket of this machine has a part in it.
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(["try", "--once"])
        .current_dir(home.path())
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complained}");
    let last = said.lines().last().unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last:?}"));
    assert_eq!((&summary["accepted"], &summary["delivered"]), (&1.into(), &1.into()), "{said}");
    assert_eq!(summary["dkim"], "pass", "{said}");
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{said}");
    for step in ["accepted", "signed", "MX found", "connected", "delivered", "arrived", "verified"] {
        assert!(said.lines().any(|line| line.contains(&format!(" s  {step}"))), "no line about {step:?}:\n{said}");
    }
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!said.contains(" s  event "), "a fact that is shown as the program has it:\n{said}");
    assert!(left.is_empty(), "left behind: {left:?}\n{complained}");
}
