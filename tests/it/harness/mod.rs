//! What tests of the whole daemon share: peers, zones, and the way to say that a check could not run.

pub mod apart;
pub mod daemon;
pub mod disk;
pub mod door;
pub mod https;
pub mod load;
pub mod moments;
pub mod outbound;
pub mod peer;
pub mod policy_host;
pub mod process;
pub mod promise;
pub mod shop;
pub mod zone;

use std::io::Write;

/// Records that a check could not run on this machine; `tests/run` prints and counts these.
pub fn not_run(name: &str, reason: &str) {
    let reason = reason.lines().collect::<Vec<_>>().join("; ");
    eprintln!("NOT RUN: {name} ({reason})");
    if let Some(path) = std::env::var_os("POSTERN_NOT_RUN") {
        let line = format!("{name} ({reason})\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of checks not run is writable");
    }
}
