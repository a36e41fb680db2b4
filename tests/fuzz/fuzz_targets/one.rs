//! One target under libFuzzer: the one that `POSTERN_FUZZ_TARGET` names. One program for all of
//! them, because linking one takes longer than most targets take to find something.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets/mod.rs"]
mod targets;

static RUN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("POSTERN_FUZZ_TARGET").unwrap_or_default();
    let target = targets::TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("POSTERN_FUZZ_TARGET={name} is no target; tests/fuzz/run lists them")).run
});

fuzz_target!(|input: &[u8]| RUN(input));
