//! How far an attempt has come, told by whoever carries it out and read by the watchdog.
//!
//! Easy to get wrong: nothing here waits or orders anything else; a number that is a moment old is good enough.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::outcome::Phase;

/// Where an attempt is, for the watchdog: every step forward counts.
#[derive(Debug, Default)]
pub struct Progress {
    steps: AtomicU64,
    phase: AtomicU8,
    stalled: AtomicBool,
}

impl Progress {
    /// A step forward, in `phase`.
    pub fn step(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The watchdog ends the attempt.
    pub fn stall(&self) {
        self.stalled.store(true, Ordering::Release);
    }

    /// Whether it did.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// The phase of the last step.
    pub fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Relaxed))
    }
}
