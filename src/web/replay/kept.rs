//! The marks and answers of requests with an `Idempotency-Key`, in the store for [`KEYS_TIME`].
//!
//! `i k actor name` -> record, and beside it `i t time actor name` so that what has lapsed is found first.
//! Bounded: so many keys and octets of one actor. Easy to get wrong: who asks and which key are digests,
//! so that the store shows neither; and the mark that says "under way" is believed only while this process
//! knows of it, since a crash leaves it behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::records;
use crate::store::{Batch, CommitError, Key, Store, StoreError, after_prefix, codec, prefix};
use crate::web::problem::Problem;

/// How long a key is remembered.
pub const KEYS_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Keys of one actor at a time.
pub const KEYS_PER_ACTOR_MAX: u64 = 100_000;
/// Octets of one actor's answers at a time.
const BYTES_PER_ACTOR_MAX: u64 = 256 * 1024 * 1024;
/// Actors whose counts are in memory; more are counted anew.
const ACTORS_MAX: usize = 4096;
/// Records read at a time.
const PAGE: usize = 500;
/// How often lapsed records are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);
/// A client that meets its own request under way asks again after this, in seconds.
const AGAIN_SECS: u64 = 1;

/// Who asked, and with which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    actor: [u8; 16],
    key: [u8; 16],
}

impl Name {
    /// Of an actor's name and a key.
    pub fn of(actor: &str, key: &str) -> Self {
        Self { actor: short(actor), key: short(key) }
    }

    fn record(self) -> Key {
        [&[prefix::REPLAY, b'k'][..], &self.actor, &self.key].concat()
    }

    fn lapse(self, at: Timestamp) -> Key {
        [&[prefix::REPLAY, b't'][..], &at.0.to_be_bytes(), &self.actor, &self.key].concat()
    }

    /// The name in a [`Name::lapse`] key, and its time.
    fn of_lapse(key: &[u8]) -> Option<(Self, Timestamp)> {
        let at = u64::from_be_bytes(key.get(2..10)?.try_into().ok()?);
        let name = Self { actor: key.get(10..26)?.try_into().ok()?, key: key.get(26..42)?.try_into().ok()? };
        Some((name, Timestamp(at)))
    }
}

fn short(text: &str) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

/// A request that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at: Timestamp,
    /// What makes it this request.
    pub fingerprint: [u8; 32],
    /// The id that what it makes is to have.
    pub reserved: QueueId,
}

/// What is kept of an answer. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// All of it.
    Answer {
        /// Its HTTP status.
        status: u16,
        /// Its JSON; empty if it had none.
        body: Vec<u8>,
    },
    /// That it was done: the answer shows a secret, is too large or is no JSON.
    Unkept {
        /// Its HTTP status.
        status: u16,
        /// What was made.
        id: Option<String>,
    },
}

/// As stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    mark: Mark,
    /// `None` while it is under way, or after a crash.
    kept: Option<Kept>,
}

/// How a request with a key begins.
#[derive(Debug)]
pub enum Begun {
    /// It is the first: carry it out.
    First(Mark, Turn),
    /// It was begun by a process that ended before it did.
    Crashed(Mark, Turn),
    /// It was done.
    Done(Kept),
}

/// What is under way, until dropped.
#[derive(Debug)]
pub struct Turn {
    name: Name,
    under_way: Arc<Mutex<HashSet<Name>>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        records::lock(&self.under_way).remove(&self.name);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    keys: u64,
    bytes: u64,
}

/// All marks and answers.
pub struct Replays {
    store: Arc<dyn Store>,
    under_way: Arc<Mutex<HashSet<Name>>>,
    held: Mutex<HashMap<[u8; 16], Held>>,
    calendar: Calendar,
}

impl Replays {
    /// Over the store; reads nothing yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, under_way: Arc::default(), held: Mutex::default(), calendar: Calendar::default() }
    }

    /// The same, lapsing by this calendar.
    #[must_use]
    pub fn with_calendar(mut self, calendar: Calendar) -> Self {
        self.calendar = calendar;
        self
    }

    /// Says whether the request is the first of its name, and marks it durably if it is.
    pub async fn begin(&self, name: Name, fingerprint: [u8; 32], now: Timestamp) -> Result<Begun, Problem> {
        if !records::lock(&self.under_way).insert(name) {
            let detail = "the first request with this Idempotency-Key is still under way";
            let problem = Problem::new(StatusCode::CONFLICT, "concurrent_idempotent_requests", detail);
            return Err(problem.again_in(AGAIN_SECS));
        }
        let turn = Turn { name, under_way: Arc::clone(&self.under_way) };
        let now = self.calendar.cap(now);
        let before = self.store.get(&name.record())?;
        let found: Option<Record> = before.as_deref().map(codec::decode).transpose()?;
        let Some(found) = found.filter(|found| now.since(found.mark.at) < KEYS_TIME) else {
            let mark = Mark { at: now, fingerprint, reserved: QueueId::new(now) };
            self.write_mark(name, mark, before).await?;
            return Ok(Begun::First(mark, turn));
        };
        if found.mark.fingerprint != fingerprint {
            let detail = "this Idempotency-Key was used for another request within the last 24 hours";
            return Err(Problem::new(StatusCode::CONFLICT, "invalid_idempotent_request", detail));
        }
        Ok(match found.kept {
            Some(kept) => Begun::Done(kept),
            None => Begun::Crashed(found.mark, turn),
        })
    }

    async fn write_mark(&self, name: Name, mark: Mark, before: Option<Vec<u8>>) -> Result<(), Problem> {
        let held = self.held_by(name.actor).await?;
        if held.keys >= KEYS_PER_ACTOR_MAX || held.bytes >= BYTES_PER_ACTOR_MAX {
            let detail = format!(
                "at most {KEYS_PER_ACTOR_MAX} keys and {} MiB of answers are remembered within 24 hours; \
                 send without a key, or several messages with one key",
                BYTES_PER_ACTOR_MAX / (1024 * 1024)
            );
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_idempotency_keys", detail);
            return Err(problem.again_in(SWEEP_EVERY.as_secs()));
        }
        let mut batch = Batch::new();
        match before {
            None => batch.if_absent(name.record()),
            Some(lapsed) => {
                if let Ok(old) = codec::decode::<Record>(&lapsed) {
                    batch.remove(name.lapse(old.mark.at));
                }
                batch.if_equals(name.record(), lapsed)
            }
        };
        batch.set(name.record(), codec::encode(&Record { mark, kept: None }));
        batch.set(name.lapse(mark.at), Vec::new());
        self.store.commit(batch).await?;
        self.changed(name.actor, |held| held.keys = held.keys.saturating_add(1));
        Ok(())
    }

    /// Keeps how it ended.
    pub async fn finish(&self, name: Name, mark: Mark, kept: Kept) -> Result<(), CommitError> {
        let bytes = octets(&kept);
        let mut batch = Batch::new();
        batch.set(name.record(), codec::encode(&Record { mark, kept: Some(kept) }));
        self.store.commit(batch).await?;
        self.changed(name.actor, |held| held.bytes = held.bytes.saturating_add(bytes));
        Ok(())
    }

    /// Nothing was done: the key is free again.
    pub async fn forget(&self, name: Name, mark: &Mark) {
        let mut batch = Batch::new();
        batch.remove(name.record()).remove(name.lapse(mark.at));
        match self.store.commit(batch).await {
            Ok(()) => self.changed(name.actor, |held| held.keys = held.keys.saturating_sub(1)),
            Err(error) => tracing::warn!(%error, "the mark of a refused request could not be taken back"),
        }
    }

    /// Removes what has lapsed, every now and then.
    pub async fn keep(&self, shutdown: &Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            if let Err(error) = self.sweep(self.calendar.cap(Timestamp::now())).await {
                tracing::warn!(%error, "lapsed idempotency keys could not be removed");
            }
        }
    }

    /// Removes what has lapsed; how many records.
    pub(super) async fn sweep(&self, now: Timestamp) -> Result<usize, CommitError> {
        let Some(until) = now.0.checked_sub(u64::try_from(KEYS_TIME.as_millis()).unwrap_or(u64::MAX)) else {
            return Ok(0);
        };
        let start = vec![prefix::REPLAY, b't'];
        let end = [&start[..], &until.to_be_bytes()].concat();
        let mut removed = 0;
        loop {
            let page = self.store.range(&start, &end, PAGE).map_err(|error| CommitError::Failed(error.to_string()))?;
            if page.is_empty() {
                return Ok(removed);
            }
            let (mut batch, mut actors) = (Batch::new(), HashSet::new());
            removed = page.len().saturating_add(removed);
            for (key, _) in page {
                if let Some((name, record)) = Name::of_lapse(&key).and_then(|(name, at)| self.lapsed(name, at)) {
                    batch.if_equals(name.record(), record).remove(name.record());
                    actors.insert(name.actor);
                }
                batch.remove(key);
            }
            self.store.commit(batch).await?;
            // They are counted anew when they ask next.
            records::lock(&self.held).retain(|actor, _| !actors.contains(actor));
        }
    }

    /// The record of that name, if it is still the one begun then.
    fn lapsed(&self, name: Name, at: Timestamp) -> Option<(Name, Vec<u8>)> {
        let bytes = self.store.get(&name.record()).ok().flatten()?;
        let record = codec::decode::<Record>(&bytes).ok()?;
        (record.mark.at == at).then_some((name, bytes))
    }

    fn changed(&self, actor: [u8; 16], change: impl FnOnce(&mut Held)) {
        if let Some(held) = records::lock(&self.held).get_mut(&actor) {
            change(held);
        }
    }

    async fn held_by(&self, actor: [u8; 16]) -> Result<Held, Problem> {
        if let Some(held) = records::lock(&self.held).get(&actor) {
            return Ok(*held);
        }
        let store = Arc::clone(&self.store);
        let counted = tokio::task::spawn_blocking(move || count(&*store, actor)).await;
        let counted = counted.map_err(|error| StoreError::Failed(error.to_string()))??;
        let mut held = records::lock(&self.held);
        if held.len() >= ACTORS_MAX {
            held.clear();
        }
        Ok(*held.entry(actor).or_insert(counted))
    }
}

/// What an actor holds, from the store; blocks on the disk.
fn count(store: &dyn Store, actor: [u8; 16]) -> Result<Held, StoreError> {
    let own = [&[prefix::REPLAY, b'k'][..], &actor].concat();
    let (mut from, end, mut held) = (own.clone(), after_prefix(&own), Held::default());
    loop {
        let page = store.range(&from, &end, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(held) };
        from.clone_from(last);
        from.push(0);
        for (_, bytes) in page {
            held.keys = held.keys.saturating_add(1);
            held.bytes = held.bytes.saturating_add(bytes.len() as u64);
        }
    }
}

fn octets(kept: &Kept) -> u64 {
    match kept {
        Kept::Answer { body, .. } => body.len() as u64,
        Kept::Unkept { .. } => 0,
    }
}

#[cfg(test)]
impl Replays {
    /// As if an actor held so many keys.
    pub(super) fn pretend_held(&self, name: Name, keys: u64) {
        records::lock(&self.held).insert(name.actor, Held { keys, bytes: 0 });
    }
}

/// Leaves marks as they are while a request is under way.
#[cfg(test)]
pub(super) async fn undo_answers(store: &dyn Store) {
    let own = [prefix::REPLAY, b'k'];
    let mut batch = Batch::new();
    for (key, bytes) in store.range(&own, &after_prefix(&own), PAGE).unwrap() {
        let record: Record = codec::decode(&bytes).unwrap();
        batch.set(key, codec::encode(&Record { kept: None, ..record }));
    }
    store.commit(batch).await.unwrap();
}
