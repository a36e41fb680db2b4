//! Mail whose attempts end in a panic of ours: after a few it is held, on record, so that the other
//! mail of its lane flows and a person looks at it.
//!
//! Easy to get wrong: counts are in memory. After a restart a message gets its few attempts again,
//! which is bounded too, and what was held stays held.

use std::collections::HashMap;
use std::time::Duration;

use super::Queue;
use super::key::{self, Entry};
use super::lanes::{Flight, Name, WhileClaimed};
use super::record::{Claim, RecipientState};
use super::settle::refused;
use crate::events::MailEvent;
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::store::{Batch, CommitError};

/// Attempts of one lane record that may end in a panic; after the last it is held.
pub(super) const PANICS_MAX: u32 = 3;
/// Lane records whose panics are counted, at most; the counts begin anew beyond that.
const COUNTED_MAX: usize = 10_000;
/// Stalls that wait to be written, at most.
const STALLS_MAX: usize = 1_000;
/// Who held it, for people.
const BY: &str = "the daemon";

/// How many attempts of which lane records ended in a panic.
#[derive(Debug, Default)]
pub(super) struct Panics(HashMap<Name, u32>);

impl Panics {
    /// Counts one; how many there are now.
    fn count(&mut self, name: Name) -> u32 {
        if self.0.len() >= COUNTED_MAX && !self.0.contains_key(&name) {
            self.0.clear();
        }
        let count = self.0.entry(name).or_default();
        *count = count.saturating_add(1);
        *count
    }

    fn forget(&mut self, name: Name) {
        self.0.remove(&name);
    }
}

impl Queue {
    /// Gives a claim back whose attempt panicked: due again after `pause`, or held once that has
    /// happened too often.
    pub fn panicked(&self, claim: Claim, pause: Duration) {
        let name = (claim.queue_id, claim.number);
        if self.panics().count(name) < PANICS_MAX {
            self.release(claim, pause);
            return;
        }
        match self.in_memory().claimed(name, claim.token) {
            None => return,
            Some(WhileClaimed::Changed | WhileClaimed::Unchanged) => {}
        }
        self.in_memory().claim_is_busy(name);
        self.chores().stuck(name);
        self.chore_nudge.notify_one();
    }

    /// Notes in the trail that an attempt for these recipients was ended by the watchdog, and in which phase.
    pub fn stalled(&self, id: QueueId, recipients: Vec<u16>, phase: &str) {
        if !recipients.is_empty() {
            self.chores().stalls.push((id, MailEvent::Stalled { recipients, phase: phase.to_owned() }));
            self.chore_nudge.notify_one();
        }
    }

    /// Writes what was noted.
    pub(super) async fn tell_stalls(&self, wall: Timestamp) {
        let stalls = std::mem::take(&mut self.chores().stalls);
        if stalls.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for (id, event) in &stalls {
            Self::note(&mut batch, *id, event.clone(), wall);
        }
        if let Err(error) = self.commit(batch).await {
            tracing::warn!(%error, "events about attempts without progress could not be written yet");
            let mut chores = self.chores();
            chores.stalls.extend(stalls);
            chores.stalls.truncate(STALLS_MAX);
        }
    }

    /// Holds what is left of a record, as it is stored.
    pub(super) async fn hold_stuck(&self, name: Name, wall: Timestamp) -> Result<(), CommitError> {
        let _lock = self.locks.lock(name.0).await;
        // Put back meanwhile, and perhaps claimed: if its attempts go on panicking, it comes here again.
        if self.in_memory().flight(name) != Some(Flight::Busy) {
            return Ok(());
        }
        let Some((old, raw)) = self.stored_record(name).map_err(refused)? else {
            self.in_memory().gone(name);
            return Ok(());
        };
        let mut new = old.clone();
        let mut recipients = Vec::new();
        for recipient in new.recipients.iter_mut().filter(|one| one.state == RecipientState::Waiting) {
            recipient.state = RecipientState::Held;
            recipients.push(recipient.number);
        }
        let own = key::lane_record(name.0, name.1);
        let entry = Entry { due: old.due, queue_id: name.0, number: name.1 };
        let mut batch = Batch::new();
        batch.if_equals(own.clone(), raw).remove(key::due(&old.lane, entry)).set(own, new.to_bytes());
        Self::note(&mut batch, name.0, MailEvent::Held { recipients, by: BY.to_owned() }, wall);
        let detail = format!("{PANICS_MAX} attempts ended in a fault of ours; it is held, see the log");
        Self::note(&mut batch, name.0, MailEvent::Faulted { detail }, wall);
        self.commit(batch).await?;
        tracing::error!(queue_id = %name.0, "attempts of this message end in a panic; it is held until it is released");
        self.panics().forget(name);
        self.in_memory().gone(name);
        Ok(())
    }
}
