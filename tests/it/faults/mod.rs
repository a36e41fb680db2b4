//! Faults made from outside, one kind per file, all judged by the same books ([`Promise`]): what was
//! acknowledged arrives, nothing arrives that was not sent, and the daemon comes back.
//!
//! `POSTERN_FAULTS_LONG` makes the rounds long (`tests/faults/run --long`); short ones are part of
//! every test run.
//!
//! [`Promise`]: crate::harness::promise::Promise

mod damage;
mod hung_write;
mod lost_replies;
mod storage_calls;

use std::process::Command;

/// Whether strace can trace here.
fn can_trace() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}
