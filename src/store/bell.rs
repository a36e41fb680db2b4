//! How the committer wakes the flusher and housekeeping, and how a close ends their waits.
//!
//! `tests/models` compiles this very file with loom's locks and tries every order of steps. Easy to
//! get wrong: a ring before the wait must not be lost, and nobody waits on after a close.

use std::time::{Duration, Instant};

use super::sync::{Condvar, Mutex, PoisonError};

/// Wakes a thread that waits with a time limit.
#[derive(Debug, Default)]
pub struct Bell {
    state: Mutex<BellState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct BellState {
    is_rung: bool,
    is_closing: bool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody rang, or time passed.
    Work,
    /// The store is closing.
    Closing,
}

impl Bell {
    /// Wakes the thread now, or at its next wait.
    pub fn ring(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_rung = true;
        self.changed.notify_all();
    }

    /// Wakes the thread for the last time.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closing = true;
        self.changed.notify_all();
    }

    /// Whether the store is closing.
    pub fn is_closing(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closing
    }

    /// Waits until rung, closed, or `limit` passed.
    pub fn wait(&self, limit: Duration) -> Woken {
        let until = Instant::now() + limit;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.is_closing {
                return Woken::Closing;
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.is_rung || left.is_zero() {
                state.is_rung = false;
                return Woken::Work;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
