//! Drives one consumer: reads events behind its durable cursor, hands them over in order, moves on.
//!
//! The cursor is stored lazily, so a busy consumer costs about one small commit every few seconds
//! and an idle one none. Easy to get wrong: after a crash the same events come again, which is why
//! consumers must be idempotent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exact::Urgency;
use super::{Bell, Consumer, Event};
use crate::background::Shutdown;
use crate::store::{Batch, Key, Store, StoreError, after_prefix, codec, prefix};

/// Events handed over at once.
pub(super) const PAGE_EVENTS: usize = 512;
/// Look again after this, even without a ring of the bell.
pub(super) const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// Wait this long after a ring, so that one look serves many commits.
const GATHER: Duration = Duration::from_millis(50);
/// The cursor is stored after this much time with news...
const CURSOR_PERIOD: Duration = Duration::from_secs(2);
/// ...or this many events.
const CURSOR_EVENTS: usize = 10_000;
/// A consumer that failed sees its events again after this, doubling...
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(500);
/// ...up to this.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(60);

/// Where a consumer stands.
pub(super) struct Cursor {
    pub(super) key: Key,
    /// The last event that was consumed; the prefix alone before the first.
    pub(super) at: Key,
    pub(super) moved: usize,
    pub(super) stored: Instant,
}

/// Runs `consumer` until `shutdown`.
pub async fn drive(store: &dyn Store, consumer: &Arc<dyn Consumer>, bell: &Bell, shutdown: &Shutdown) {
    let mut rings = bell.listen();
    let mut retry = RETRY_FIRST;
    let mut cursor = None;
    loop {
        let step = step(store, &**consumer, &mut cursor).await;
        let pause = match &step {
            Ok(Progress::More) => {
                retry = RETRY_FIRST;
                Duration::ZERO
            }
            Ok(Progress::CaughtUp) => {
                retry = RETRY_FIRST;
                LOOK_PERIOD
            }
            Err(error) => {
                tracing::warn!(consumer = consumer.name(), error, "events could not be consumed; they are read again");
                retry = retry.saturating_mul(2).min(RETRY_MAX);
                retry
            }
        };
        if let Some(cursor) = &mut cursor {
            let last = shutdown.is_cancelled();
            store_cursor(store, cursor, if last { Urgency::Now } else { Urgency::WhenDue }).await;
        }
        if shutdown.is_cancelled() {
            return;
        }
        if !pause.is_zero() {
            wait(pause, step.is_ok(), &mut rings, shutdown).await;
        }
    }
}

pub(super) async fn wait(
    pause: Duration,
    listens: bool,
    rings: &mut tokio::sync::watch::Receiver<u64>,
    shutdown: &Shutdown,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
        rung = rings.changed(), if listens => {
            if rung.is_ok() {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(GATHER) => {}
                }
            } else {
                // Nobody is left to ring: look by the clock.
                tokio::time::sleep(pause).await;
            }
        }
    }
}

pub(super) enum Progress {
    More,
    CaughtUp,
}

async fn step(store: &dyn Store, consumer: &dyn Consumer, cursor: &mut Option<Cursor>) -> Result<Progress, String> {
    let cursor = match cursor {
        Some(cursor) => cursor,
        None => cursor.insert(read_cursor(store, consumer.name()).map_err(|error| error.to_string())?),
    };
    let page = read_after(store, &cursor.at, PAGE_EVENTS).map_err(|error| error.to_string())?;
    let Some((last, _)) = page.last() else { return Ok(Progress::CaughtUp) };
    let (last, full) = (last.clone(), page.len() == PAGE_EVENTS);
    let events: Vec<Event> = page.iter().filter_map(|(key, bytes)| readable(key, bytes)).collect();
    if !events.is_empty() {
        consumer.consume(&events).await.map_err(|retry| retry.0)?;
    }
    cursor.at = last;
    cursor.moved += page.len();
    Ok(if full { Progress::More } else { Progress::CaughtUp })
}

/// The event, unless it is damaged; that is logged, and the others go on.
pub(super) fn readable(key: &[u8], bytes: &[u8]) -> Option<Event> {
    codec::decode(bytes)
        .inspect_err(|error| {
            let key = key.escape_ascii();
            tracing::error!(%key, %error, "an event cannot be read and is skipped");
        })
        .ok()
}

async fn store_cursor(store: &dyn Store, cursor: &mut Cursor, urgency: Urgency) {
    let due = cursor.moved >= CURSOR_EVENTS || cursor.stored.elapsed() >= CURSOR_PERIOD;
    if cursor.moved == 0 || !(due || matches!(urgency, Urgency::Now)) {
        return;
    }
    let mut batch = Batch::new();
    batch.set(cursor.key.clone(), codec::encode(&cursor.at));
    match store.commit(batch).await {
        Ok(()) => cursor.moved = 0,
        Err(error) => tracing::warn!(%error, "a consumer's cursor could not be stored yet"),
    }
    cursor.stored = Instant::now();
}

/// Up to `limit` events behind `at`.
pub(super) fn read_after(store: &dyn Store, at: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
    let mut from = at.to_vec();
    from.push(0);
    store.range(&from, &after_prefix(&[prefix::EVENT]), limit)
}

/// Where the cursor of that name is.
pub(super) fn cursor_key(name: &str) -> Key {
    let mut key = vec![prefix::CURSOR];
    key.extend_from_slice(name.as_bytes());
    key
}

/// The last event the consumer of that name is known to have passed; `None` if it never stored one.
pub(super) fn passed(store: &dyn Store, name: &str) -> Result<Option<Key>, StoreError> {
    store.get(&cursor_key(name))?.map(|bytes| codec::decode(&bytes)).transpose()
}

pub(super) fn read_cursor(store: &dyn Store, name: &str) -> Result<Cursor, StoreError> {
    let at = match passed(store, name) {
        Ok(at) => at,
        Err(StoreError::Damaged(detail)) => {
            tracing::error!(consumer = name, detail, "a cursor is damaged; the consumer sees all events again");
            None
        }
        Err(error) => return Err(error),
    };
    let at = at.unwrap_or_else(|| vec![prefix::EVENT]);
    Ok(Cursor { key: cursor_key(name), at, moved: 0, stored: Instant::now() })
}
