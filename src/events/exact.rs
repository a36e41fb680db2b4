//! Drives what must count every event once and only once: what it keeps and where it stands in the
//! log are one commit, so a crash takes it back to both or neither.
//!
//! Recipe: implement [`Tally`], run [`drive_exactly`]. Easy to get wrong: memory runs ahead of what is
//! stored by up to [`KEPT_PERIOD`]; whatever is decided must be a function of the events alone, so
//! that reading them again after a crash decides the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::driver::{
    Cursor, LOOK_PERIOD, PAGE_EVENTS, Progress, RETRY_FIRST, RETRY_MAX, read_after, read_cursor, readable, wait,
};
use super::{Bell, Event, Retry};
use crate::background::Shutdown;
use crate::store::{Batch, Store, codec};

/// What was counted is stored after this much time with news...
const KEPT_PERIOD: Duration = Duration::from_secs(10);
/// ...or this many events.
const KEPT_EVENTS: usize = 20_000;

/// Whether something may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It must be durable at once.
    Now,
    /// By and by.
    WhenDue,
}

/// Counts events exactly once.
#[async_trait]
pub trait Tally: Send + Sync {
    /// Names the durable cursor; never changes.
    fn name(&self) -> &'static str;

    /// Takes some events in order, in memory. `Err`, before anything was taken, means: the same
    /// again, later.
    fn take(&self, events: &[Event]) -> Result<Urgency, Retry>;

    /// Stores what changed since the last time in `batch`, which moves the cursor already.
    async fn keep(&self, batch: Batch) -> Result<(), Retry>;
}

/// Runs `tally` until `shutdown`, and stores what it counted once more then.
pub async fn drive_exactly(store: &dyn Store, tally: &Arc<dyn Tally>, bell: &Bell, shutdown: &Shutdown) {
    let mut rings = bell.listen();
    let mut retry = RETRY_FIRST;
    let mut cursor = None;
    loop {
        let is_last = shutdown.is_cancelled();
        let urgency = if is_last { Urgency::Now } else { Urgency::WhenDue };
        let (pause, listens) = match step(store, &**tally, &mut cursor, urgency).await {
            Ok(progress) => {
                retry = RETRY_FIRST;
                (if let Progress::More = progress { Duration::ZERO } else { LOOK_PERIOD }, true)
            }
            Err(error) => {
                tracing::warn!(tally = tally.name(), error, "events could not be counted yet; they are read again");
                retry = retry.saturating_mul(2).min(RETRY_MAX);
                (retry, false)
            }
        };
        if is_last {
            return;
        }
        if !pause.is_zero() {
            wait(pause, listens, &mut rings, shutdown).await;
        }
    }
}

async fn step(
    store: &dyn Store,
    tally: &dyn Tally,
    cursor: &mut Option<Cursor>,
    mut urgency: Urgency,
) -> Result<Progress, String> {
    let cursor = match cursor {
        Some(cursor) => cursor,
        None => cursor.insert(read_cursor(store, tally.name()).map_err(|error| error.to_string())?),
    };
    let page = read_after(store, &cursor.at, PAGE_EVENTS).map_err(|error| error.to_string())?;
    if let Some((last, _)) = page.last() {
        let events: Vec<Event> = page.iter().filter_map(|(key, bytes)| readable(key, bytes)).collect();
        if tally.take(&events).map_err(|retry| retry.0)? == Urgency::Now {
            urgency = Urgency::Now;
        }
        cursor.at.clone_from(last);
        cursor.moved = cursor.moved.saturating_add(page.len());
    }
    let is_due = cursor.moved >= KEPT_EVENTS || cursor.stored.elapsed() >= KEPT_PERIOD || urgency == Urgency::Now;
    if cursor.moved > 0 && is_due {
        let mut batch = Batch::new();
        batch.set(cursor.key.clone(), codec::encode(&cursor.at));
        tally.keep(batch).await.map_err(|retry| retry.0)?;
        (cursor.moved, cursor.stored) = (0, Instant::now());
    }
    Ok(if page.len() == PAGE_EVENTS { Progress::More } else { Progress::CaughtUp })
}
