//! `X-Idempotency-Key`: a message that an SMTP client hands in again, because it did not see the 250, is taken once.
//!
//! The record of a key is in the batch that accepts the message: there is never one without the other, whatever
//! crashes. Kept for [`KEYS_TIME`], per SMTP account: `i s account digest` -> record, and beside it
//! `i u time account digest`, so that what has lapsed is found first. Easy to get wrong: a client that gives the
//! same key to every message must not lose them, so a message that is another one is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::mail::{Draft, Envelope, QueueId, Refusal, Reply, SmtpAccountId};
use crate::pipeline::ONCE;
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};

/// How long a key is remembered.
pub const KEYS_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Characters of a key, at most.
pub const KEY_CHARACTERS_MAX: usize = 255;
/// Lapsed records read at a time.
const PAGE: usize = 500;
/// How often lapsed records are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);

/// As stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    at: Timestamp,
    id: QueueId,
    fingerprint: [u8; 16],
}

/// A message that came with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    account: SmtpAccountId,
    digest: [u8; 16],
    fingerprint: [u8; 16],
}

/// What is known of a key.
#[derive(Debug)]
pub enum Known {
    /// Nothing, or it has lapsed: this is to be written with the message.
    New(Batch),
    /// The message was taken under this id.
    Taken(QueueId),
}

impl Keyed {
    /// The key of a message handed in by `account`, if it has one.
    pub fn of(account: SmtpAccountId, draft: &Draft, envelope: &Envelope) -> Result<Option<Self>, Refusal> {
        let mut fields = draft.header.all(ONCE);
        let (Some(field), further) = (fields.next(), fields.next()) else { return Ok(None) };
        let key = field.text();
        let is_sound = (1..=KEY_CHARACTERS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_sound || further.is_some() {
            let text = format!("{ONCE}: must be 1 to {KEY_CHARACTERS_MAX} printable ASCII characters, once");
            return Err(Refusal::plain(Reply::enhanced(550, 6, 0, text)));
        }
        let fingerprint = fingerprint(draft, envelope);
        Ok(Some(Self { account, digest: short(&Sha256::digest(key.as_bytes())), fingerprint }))
    }

    /// Whether the message was taken already; else what is to be written with it.
    pub fn look(&self, store: &dyn Store, id: QueueId, now: Timestamp) -> Result<Known, Refusal> {
        let before = store.get(&self.record()).map_err(unreadable)?;
        let found: Option<Record> = before.as_deref().map(codec::decode).transpose().map_err(unreadable)?;
        if let Some(found) = found.as_ref().filter(|found| now.since(found.at) < KEYS_TIME) {
            if found.fingerprint == self.fingerprint {
                return Ok(Known::Taken(found.id));
            }
            let text = format!(
                "{ONCE}: was given to another message within the last 24 hours; give each message a key of its own"
            );
            return Err(Refusal::plain(Reply::enhanced(550, 6, 0, text)));
        }
        let mut batch = Batch::new();
        match before {
            None => batch.if_absent(self.record()),
            Some(lapsed) => batch.if_equals(self.record(), lapsed),
        };
        if let Some(old) = found {
            batch.remove(self.lapse(old.at));
        }
        batch.set(self.record(), codec::encode(&Record { at: now, id, fingerprint: self.fingerprint }));
        batch.set(self.lapse(now), Vec::new());
        Ok(Known::New(batch))
    }

    fn record(&self) -> Key {
        record_key(&self.account.0.to_be_bytes(), &self.digest)
    }

    fn lapse(&self, at: Timestamp) -> Key {
        let at = at.0.to_be_bytes();
        [&[prefix::REPLAY, b'u'][..], &at, &self.account.0.to_be_bytes(), &self.digest].concat()
    }
}

fn record_key(account: &[u8], digest: &[u8]) -> Key {
    [&[prefix::REPLAY, b's'][..], account, digest].concat()
}

/// What makes a message another one, and is the same when a program makes it anew: whom it is from and to, and
/// its subject. Not its Date or Message-ID.
fn fingerprint(draft: &Draft, envelope: &Envelope) -> [u8; 16] {
    let mut recipients: Vec<String> =
        envelope.recipients.iter().map(|recipient| recipient.address.folded().to_string()).collect();
    recipients.sort_unstable();
    let from = envelope.reverse_path.0.as_ref().map(|address| address.folded().to_string()).unwrap_or_default();
    let subject = draft.header.text("Subject").unwrap_or_default();
    let mut digest = Sha256::new();
    for piece in [&from, &subject].into_iter().chain(&recipients) {
        digest.update((piece.len() as u64).to_be_bytes());
        digest.update(piece.as_bytes());
    }
    short(&digest.finalize())
}

fn short(digest: &[u8]) -> [u8; 16] {
    digest.first_chunk().copied().unwrap_or_default()
}

fn unreadable(error: StoreError) -> Refusal {
    let text = "whether the message was taken already cannot be read now, please try again later";
    Refusal::with_cause(Reply::enhanced(451, 3, 0, text), error)
}

/// Removes lapsed keys while the daemon lives.
pub async fn keep(store: &dyn Store, calendar: &Calendar, shutdown: &Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(error) = sweep(store, calendar.cap(Timestamp::now())).await {
            tracing::warn!(%error, "lapsed keys of messages could not be removed");
        }
    }
}

/// Removes what has lapsed; how many records.
pub async fn sweep(store: &dyn Store, now: Timestamp) -> Result<usize, CommitError> {
    let kept = u64::try_from(KEYS_TIME.as_millis()).unwrap_or(u64::MAX);
    let Some(until) = now.0.checked_sub(kept) else { return Ok(0) };
    let start = vec![prefix::REPLAY, b'u'];
    let end = [&start[..], &until.to_be_bytes()].concat();
    let mut removed: usize = 0;
    loop {
        let page = store.range(&start, &end, PAGE).map_err(|error| CommitError::Failed(error.to_string()))?;
        if page.is_empty() {
            return Ok(removed);
        }
        let mut batch = Batch::new();
        removed = removed.saturating_add(page.len());
        for (key, _) in page {
            if let (Some(account), Some(digest)) = (key.get(10..18), key.get(18..)) {
                let record = record_key(account, digest);
                let bytes = store.get(&record).map_err(|error| CommitError::Failed(error.to_string()))?;
                // A key used anew after it lapsed has a younger record.
                let is_lapsed = |bytes: &Vec<u8>| {
                    codec::decode::<Record>(bytes).is_ok_and(|record| now.since(record.at) >= KEYS_TIME)
                };
                if let Some(bytes) = bytes.filter(is_lapsed) {
                    batch.if_equals(record.clone(), bytes).remove(record);
                }
            }
            batch.remove(key);
        }
        match store.commit(batch).await {
            Ok(()) | Err(CommitError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}
