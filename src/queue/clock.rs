//! The queue's own clock: grows with the monotonic clock, continues over restarts, never goes back.
//!
//! It starts once from the wall clock so that a lost clock record can be replaced by the wall clock
//! without making old due times absurd. Easy to get wrong: after the start the wall clock counts
//! only for the time the daemon was down, and for at most a day of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::record::QueueTime;
use super::schedule::millis;
use crate::ext::Timestamp;
use crate::store::{Store, StoreError, codec};

/// Downtime counted at one start, at most.
pub(super) const DOWNTIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What is stored each minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    queue: QueueTime,
    wall: Timestamp,
}

/// A source of queue time.
#[derive(Clone, Debug)]
pub(super) enum Clock {
    /// Runs by itself.
    Running { base: QueueTime, since: Instant },
    /// Stands until a test moves it; milliseconds.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests hold time still"))]
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Continues the stored clock; `wall` is the wall clock now.
    pub(super) fn resume(store: &dyn Store, wall: Timestamp) -> Result<Self, StoreError> {
        let stored = store.get(&super::key::clock())?.map(|bytes| codec::decode::<Stored>(&bytes));
        let base = match stored {
            None => QueueTime(wall.0),
            Some(Ok(stored)) => stored.queue.plus(wall.since(stored.wall).min(DOWNTIME_MAX)),
            Some(Err(error)) => {
                tracing::error!(%error, "the queue clock's record is damaged; it starts again from the wall clock");
                QueueTime(wall.0)
            }
        };
        Ok(Self::Running { base, since: Instant::now() })
    }

    pub(super) fn now(&self) -> QueueTime {
        match self {
            Self::Running { base, since } => QueueTime(base.0.saturating_add(millis(since.elapsed()))),
            Self::Manual(at) => QueueTime(at.load(Ordering::Acquire)),
        }
    }

    /// The value to store under [`super::key::clock`].
    pub(super) fn stored(&self, wall: Timestamp) -> Vec<u8> {
        codec::encode(&Stored { queue: self.now(), wall })
    }
}
