//! Finding what is due and handing it out: lanes by page and skip, claims, releases, bodies.
//!
//! Easy to get wrong: a claim taken from memory costs no read, any other reads its two records;
//! one that cannot be decoded is set aside and never stops the others.

use std::sync::Arc;
use std::time::Duration;

use super::Queue;
use super::keep::Damage;
use super::key::{self, Entry};
use super::lanes::{Loaded, Taken, WhileClaimed};
use super::record::{Claim, LaneRecord, QueuedMessage, RecipientState};
use crate::mail::{BodyId, QueueId};
use crate::routing::Lane;
use crate::store::{BodyReader, Key, StoreError, after_prefix, prefix};

/// A claim whose records could not be read now is tried again after this.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(30);

/// Entries looked at in one claim, about so many at most, if they are put back and not handed out.
const LOOKED_AT_MAX: usize = 256;
/// Keys read at once while lanes are looked for.
const DISCOVERY_KEYS: usize = 256;

/// Whether lanes are left to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discovery {
    /// Every lane that was stored is known.
    Done,
    /// There may be more.
    GoesOn,
}

impl Queue {
    /// Claims up to `most` ready records of a lane, the longest due first; none while
    /// [`Queue::can_record`] says no. May read the store.
    pub fn claim(&self, lane: &Lane, most: usize) -> Vec<Claim> {
        if !self.can_record() || self.found().stops(lane.tenant) {
            return Vec::new();
        }
        let now = self.now();
        let refill = |lane: &Lane, from: Entry, limit: usize| self.entries(lane, from, limit);
        let (mut claims, mut looked_at) = (Vec::new(), 0);
        // What is put back here has no end of an attempt: whoever asks would ask again at once, by a new attempt.
        while claims.len() < most && looked_at < LOOKED_AT_MAX {
            let taken = self.in_memory().take(lane, now, most - claims.len(), &refill);
            if taken.is_empty() {
                break;
            }
            looked_at += taken.len();
            let loaded = taken.into_iter().filter_map(|taken| self.load(lane, taken));
            claims.extend(loaded.filter_map(|claim| self.unless_swept(self.unless_paused(claim)?)));
            // Of a paused account so much came up that its tenant waits until the queue was walked through.
            if self.found().stops(lane.tenant) {
                break;
            }
        }
        claims
    }

    /// Gives a claim back untouched, due after `pause` (in memory only, no attempt counted).
    pub fn release(&self, claim: Claim, pause: Duration) {
        let name = (claim.queue_id, claim.number);
        let until = self.now().plus(pause);
        let mut lanes = self.in_memory();
        match lanes.claimed(name, claim.token) {
            Some(WhileClaimed::Unchanged) => {
                let lane = claim.record.lane.clone();
                let loaded = Loaded { message: claim.message, record: claim.record };
                let entry = Entry { due: loaded.record.due, queue_id: name.0, number: name.1 };
                lanes.pause(&lane, entry, until, Some(Box::new(loaded)));
                drop(lanes);
                self.nudge.notify_one();
            }
            Some(WhileClaimed::Changed) => {
                lanes.claim_is_busy(name);
                drop(lanes);
                self.look_again(name);
            }
            None => tracing::warn!(queue_id = %claim.queue_id, "a claim was given back twice"),
        }
    }

    /// Sets a claim aside whose body is damaged: it is not tried again, on record, and what is left
    /// of the body is kept.
    pub fn set_aside(&self, claim: Claim, detail: &str) {
        let name = (claim.queue_id, claim.number);
        let known = self.in_memory().claimed(name, claim.token);
        let Some(known) = known else { return };
        self.in_memory().claim_is_busy(name);
        if known == WhileClaimed::Changed {
            // Perhaps nobody is to be tried any more; if somebody is, it is found damaged again.
            self.look_again(name);
            return;
        }
        let entry = Entry { due: claim.record.due, queue_id: name.0, number: name.1 };
        let due_key = key::due(&claim.record.lane, entry);
        self.chores().damaged(Damage::Record { name, due_key, detail: detail.to_owned() });
        self.chore_nudge.notify_one();
    }

    /// Opens the body that a claim's record names. Blocks on the disk.
    pub fn open_body(&self, body: BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError> {
        self.blobs.open(body)
    }

    /// Opens the body of a message that is still owed something, for its notice. Blocks on the disk.
    pub fn open_message(&self, id: QueueId) -> Result<Option<Box<dyn BodyReader>>, StoreError> {
        self.blobs.open(BodyId { queue_id: id, number: 0 })
    }

    /// The record of a message that is still owed something.
    pub fn message(&self, id: QueueId) -> Result<Option<QueuedMessage>, StoreError> {
        self.store.get(&key::message(id))?.map(|bytes| QueuedMessage::from_bytes(&bytes)).transpose()
    }

    /// The lane record as it is stored, with its bytes.
    pub(super) fn stored_record(&self, name: (QueueId, u16)) -> Result<Option<(LaneRecord, Vec<u8>)>, StoreError> {
        let Some(bytes) = self.store.get(&key::lane_record(name.0, name.1))? else { return Ok(None) };
        Ok(Some((LaneRecord::from_bytes(&bytes)?, bytes)))
    }

    /// Looks for lanes from where the last look ended, at most so many pages; reads no message.
    ///
    /// Keys are read by the page, since reading one costs nearly as much; what is left of a lane
    /// that goes on behind its page is passed over. Mail accepted meanwhile is known already, and
    /// a lane that was emptied since its key was read is found empty when it is due.
    pub(super) fn discover_lanes(&self, pages: usize) -> Result<Discovery, StoreError> {
        let end = after_prefix(&[prefix::DUE]);
        for _ in 0..pages {
            let Some(from) = self.chores().undiscovered.clone() else { return Ok(Discovery::Done) };
            let page = self.store.range(&from, &end, DISCOVERY_KEYS)?;
            let (full, mut next, mut known) = (page.len() == DISCOVERY_KEYS, from, None);
            for (found, _) in page {
                // The rest of a lane, damaged keys in it too, is read when the lane is due.
                if known.as_ref().is_some_and(|known: &Key| found.starts_with(known)) {
                    continue;
                }
                match key::read_due(&found) {
                    Some((lane, first)) => {
                        let own = key::lane(&lane);
                        next = after_prefix(&own);
                        known = Some(own);
                        self.in_memory().discover(lane, first);
                    }
                    None => {
                        next.clone_from(&found);
                        next.push(0);
                        self.chores().damaged(Damage::Key(found));
                    }
                }
            }
            self.chores().undiscovered = full.then_some(next);
            self.nudge.notify_one();
        }
        Ok(if self.chores().undiscovered.is_some() { Discovery::GoesOn } else { Discovery::Done })
    }

    /// Up to `limit` entries of a lane from `from` on.
    fn entries(&self, lane: &Lane, from: Entry, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let lane_key = key::lane(lane);
        let mut start = lane_key.clone();
        key::push_entry(&mut start, from);
        let end = after_prefix(&lane_key);
        let mut entries = Vec::new();
        // A key that cannot be read is set aside; more is read in its place, since fewer than
        // `limit` entries mean the end of the lane.
        loop {
            let wanted = limit - entries.len();
            let read = self.store.range(&start, &end, wanted)?;
            let more = read.len() == wanted;
            for (found, _) in read {
                start.clone_from(&found);
                start.push(0);
                match found.get(lane_key.len()..).and_then(key::read_entry) {
                    Some(entry) => entries.push(entry),
                    None => self.chores().damaged(Damage::Key(found)),
                }
            }
            if !more || entries.len() >= limit {
                return Ok(entries);
            }
        }
    }

    fn load(&self, lane: &Lane, taken: Taken) -> Option<Claim> {
        let Taken { entry, loaded, token } = taken;
        let name = (entry.queue_id, entry.number);
        let loaded = match loaded {
            Some(loaded) => *loaded,
            None => match self.read(lane, name) {
                Ok(loaded) => loaded,
                Err(unreadable) => {
                    self.cannot_claim(lane, entry, unreadable);
                    return None;
                }
            },
        };
        let Loaded { message, record } = loaded;
        if !record.recipients.iter().any(|recipient| recipient.state == RecipientState::Waiting) {
            // Cancelled while in flight before a restart: nothing to try, only to be finished.
            self.in_memory().claim_is_busy(name);
            self.look_again(name);
            return None;
        }
        let (queue_id, number) = (entry.queue_id, entry.number);
        Some(Claim { queue_id, number, message, record, token, said: Vec::new() })
    }

    fn read(&self, lane: &Lane, name: (QueueId, u16)) -> Result<Loaded, Unreadable> {
        let damaged = |what: &str| Unreadable::Damaged(format!("{what} is missing"));
        let (record, _) = self.stored_record(name)?.ok_or_else(|| damaged("the lane record"))?;
        let message = self.message(name.0)?.ok_or_else(|| damaged("the message record"))?;
        if record.lane != *lane {
            return Err(Unreadable::Damaged("the lane record names another lane".to_owned()));
        }
        Ok(Loaded { message: Arc::new(message), record })
    }

    fn cannot_claim(&self, lane: &Lane, entry: Entry, unreadable: Unreadable) {
        let name = (entry.queue_id, entry.number);
        match unreadable {
            Unreadable::Damaged(detail) => {
                self.in_memory().claim_is_busy(name);
                let due_key = key::due(lane, entry);
                self.chores().damaged(Damage::Record { name, due_key, detail });
                self.chore_nudge.notify_one();
            }
            Unreadable::Now(error) => {
                tracing::error!(queue_id = %entry.queue_id, %error, "a queued record cannot be read now");
                let until = self.now().plus(UNREADABLE_PAUSE);
                self.in_memory().pause(lane, entry, until, None);
            }
        }
    }
}

/// Why a record could not be claimed.
enum Unreadable {
    /// Its bytes are wrong.
    Damaged(String),
    /// The device or engine failed.
    Now(String),
}

impl From<StoreError> for Unreadable {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged(detail) => Self::Damaged(detail),
            StoreError::Failed(detail) => Self::Now(detail),
        }
    }
}
