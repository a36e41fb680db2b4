//! The queue's housekeeping: stores the clock, repeats commits that failed, sets damage aside.
//!
//! Easy to get wrong: everything here is taken from memory lists that only this task works off; a
//! chore that fails goes back into its list.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Queue;
use super::claim::Discovery;
use super::key::{self, Entry};
use super::lanes::{Flight, Name};
use super::record::{QueueTime, RecipientState};
use super::settle::Settlement;
use super::verdict;
use crate::background::Shutdown;
use crate::events::{Event, EventKind, InstanceEvent, MailEvent, record};
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::store::{Batch, CommitError, Key, StoreError};

/// How often the clock is stored.
const CLOCK_PERIOD: Duration = Duration::from_secs(60);
/// How often history records past retention are looked for.
const FORGET_PERIOD: Duration = Duration::from_secs(60 * 60);
/// How often the chores are looked at without being nudged.
const CHORE_PERIOD: Duration = Duration::from_secs(1);
/// Pages of the due index read in one go while lanes are looked for.
const DISCOVERY_PAGES: usize = 4;
/// The first and the longest pause before a failed commit is repeated.
const REPEAT_FIRST: Duration = Duration::from_millis(500);
const REPEAT_MAX: Duration = Duration::from_secs(30);

/// Something that cannot be read.
#[derive(Debug)]
pub(super) enum Damage {
    /// A key of the due index or a notice's that is no such key.
    Key(Key),
    /// A lane record, its message record, or a due key without a lane record.
    Record { name: Name, due_key: Key, detail: String },
    /// A notice owed.
    Notice { key: Key, detail: String },
}

/// What is to be done by and by.
#[derive(Debug, Default)]
pub(super) struct Chores {
    settlements: Vec<(Settlement, u32, QueueTime)>,
    looks: BTreeSet<Name>,
    damage: Vec<Damage>,
    /// From this key on the due index may name lanes that are not known yet.
    pub(super) undiscovered: Option<Key>,
    stuck: BTreeSet<Name>,
    /// Attempts the watchdog ended, to be told.
    pub(super) stalls: Vec<(QueueId, MailEvent)>,
}

impl Chores {
    pub(super) fn unrecorded(&self) -> usize {
        self.settlements.len()
    }

    pub(super) fn keep_settlement(&mut self, settlement: Settlement, tries: u32, again: QueueTime) {
        self.settlements.push((settlement, tries, again));
    }

    /// No settlement waits for its next try any longer: there will be no later one.
    fn hurry(&mut self) {
        self.settlements.iter_mut().for_each(|(_, _, again)| *again = QueueTime(0));
    }

    pub(super) fn stuck(&mut self, name: Name) {
        self.stuck.insert(name);
    }

    pub(super) fn damaged(&mut self, damage: Damage) {
        self.damage.push(damage);
    }
}

impl Queue {
    /// The housekeeping loop: runs beside everything else until `shutdown`, and once more then.
    pub async fn keep(&self, shutdown: &Shutdown) {
        let mut clock_due = QueueTime(0);
        let mut forget_due = self.now().plus(CLOCK_PERIOD);
        loop {
            // Asked before the work: what came in meanwhile gets a round of its own.
            let is_last = shutdown.is_cancelled();
            let now = self.now();
            if now >= clock_due || is_last {
                self.keep_clock(Timestamp::now()).await;
                clock_due = now.plus(CLOCK_PERIOD);
            }
            if is_last {
                self.chores().hurry();
            }
            self.do_chores(Timestamp::now()).await;
            if now >= forget_due {
                forget_due = now.plus(FORGET_PERIOD);
                self.forget_old(Timestamp::now()).await;
            }
            if is_last {
                return;
            }
            if self.discovers_more() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.chore_nudge.notified() => {}
                () = tokio::time::sleep(CHORE_PERIOD) => {}
            }
        }
    }

    /// Looks for some more of the lanes that were stored before the start; whether to go on at once.
    fn discovers_more(&self) -> bool {
        match self.discover_lanes(DISCOVERY_PAGES) {
            Ok(discovery) => discovery == Discovery::GoesOn,
            Err(error) => {
                tracing::error!(%error, "the queue's lanes cannot be read now; what waits in them is not tried yet");
                false
            }
        }
    }

    /// Stores the clock; a failure is only logged, the next time is soon.
    pub(super) async fn keep_clock(&self, wall: Timestamp) {
        let mut batch = Batch::new();
        batch.set(key::clock(), self.clock.stored(wall));
        if let Err(error) = self.store.commit(batch).await {
            tracing::warn!(%error, "the queue clock could not be stored");
        }
    }

    pub(super) async fn forget_old(&self, wall: Timestamp) {
        let kept = u64::try_from(self.history_retention.as_millis()).unwrap_or(u64::MAX);
        let wall = self.calendar.cap(wall);
        match self.forget_histories(Timestamp(wall.0.saturating_sub(kept))).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "history records past retention were removed"),
            Err(error) => tracing::warn!(%error, "history records past retention could not be removed yet"),
        }
    }

    /// The stored state of a record decides what memory says about it; done by the chores.
    pub(super) fn look_again(&self, name: Name) {
        self.chores().looks.insert(name);
        self.chore_nudge.notify_one();
    }

    /// Works the lists off once.
    pub(super) async fn do_chores(&self, wall: Timestamp) {
        self.repeat_settlements().await;
        // Before the looks: one of them would hand out what is to be held.
        let stuck = std::mem::take(&mut self.chores().stuck);
        for name in stuck {
            if let Err(error) = self.hold_stuck(name, wall).await {
                tracing::warn!(queue_id = %name.0, %error, "a message whose attempts panic could not be held yet");
                self.chores().stuck(name);
            }
        }
        self.look_at_all(wall).await;
        self.tell_stalls(wall).await;
        self.tell_outages(wall).await;
        let damage = std::mem::take(&mut self.chores().damage);
        for damaged in damage {
            if let Err(error) = self.set_damage_aside(&damaged, wall).await {
                tracing::warn!(%error, "a damaged record could not be set aside yet");
                self.chores().damage.push(damaged);
            }
        }
    }

    async fn look_at_all(&self, wall: Timestamp) {
        let looks = std::mem::take(&mut self.chores().looks);
        if looks.is_empty() {
            return;
        }
        // Whoever went away may have left a batch with the committer: once this empty one is
        // through, so is theirs, and what is read is what stays.
        if let Err(error) = self.store.commit(Batch::new()).await {
            tracing::warn!(%error, "queued records could not be put in order yet");
            self.chores().looks.extend(looks);
            return;
        }
        for name in looks {
            if let Err(error) = self.look(name, wall).await {
                tracing::warn!(queue_id = %name.0, %error, "a queued record could not be put in order yet");
                self.chores().looks.insert(name);
            }
        }
    }

    async fn repeat_settlements(&self) {
        let now = self.now();
        let kept = std::mem::take(&mut self.chores().settlements);
        for (settlement, tries, again) in kept {
            if again > now {
                self.chores().keep_settlement(settlement, tries, again);
                continue;
            }
            if let Err(error) = self.write_settlement(&settlement).await {
                let pause = REPEAT_FIRST.saturating_mul(1_u32 << tries.min(10)).min(REPEAT_MAX);
                tracing::warn!(queue_id = %settlement.claim.queue_id, %error, "an outcome could not be recorded yet");
                self.chores().keep_settlement(settlement, tries.saturating_add(1), now.plus(pause));
            }
        }
    }

    async fn look(&self, name: Name, wall: Timestamp) -> Result<(), CommitError> {
        let _lock = self.locks.lock(name.0).await;
        // Two looks may have been asked for, and the first has put it back: it may be claimed by now.
        if self.in_memory().flight(name) != Some(Flight::Busy) {
            return Ok(());
        }
        let stored = match self.stored_record(name) {
            Ok(stored) => stored,
            Err(StoreError::Damaged(detail)) => {
                self.chores().damaged(Damage::Record { name, due_key: Vec::new(), detail });
                return Ok(());
            }
            Err(error @ StoreError::Failed(_)) => return Err(CommitError::Failed(error.to_string())),
        };
        let Some((record, _)) = stored else {
            self.in_memory().gone(name);
            return Ok(());
        };
        if verdict::waits(&record) {
            let entry = Entry { due: record.due, queue_id: name.0, number: name.1 };
            self.in_memory().put(&record.lane, entry, None);
            self.nudge.notify_one();
            return Ok(());
        }
        if record.recipients.iter().all(|recipient| matches!(recipient.state, RecipientState::Done(_))) {
            self.finish(name, record, wall).await?;
        }
        self.in_memory().gone(name);
        Ok(())
    }

    /// Takes what is damaged out of the way, on record. The bytes stay where they are, so that
    /// the message is not retired and its body is kept.
    async fn set_damage_aside(&self, damage: &Damage, wall: Timestamp) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        match damage {
            Damage::Key(own) => {
                batch.remove(own.clone()).set(key::damaged(own), b"not a key".to_vec());
                record_damage(&mut batch, own, "not a key of the queue", wall);
            }
            Damage::Notice { key: own, detail } => {
                let bytes = self.store.get(own).ok().flatten().unwrap_or_default();
                batch.remove(own.clone()).set(key::damaged(own), bytes);
                record_damage(&mut batch, own, detail, wall);
            }
            Damage::Record { name, due_key, detail } => {
                if !due_key.is_empty() {
                    batch.remove(due_key.clone());
                }
                let own = key::lane_record(name.0, name.1);
                batch.set(key::damaged(&own), detail.clone().into_bytes());
                Self::note(&mut batch, name.0, MailEvent::Damaged { detail: detail.clone() }, wall);
            }
        }
        self.commit(batch).await?;
        if let Damage::Record { name, detail, .. } = damage {
            tracing::error!(queue_id = %name.0, %detail, "a queued record is damaged and was set aside");
            self.in_memory().gone(*name);
        }
        Ok(())
    }
}

fn record_damage(batch: &mut Batch, own: &[u8], detail: &str, at: Timestamp) {
    let key = own.iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = EventKind::Instance(InstanceEvent::RecordDamaged { key, detail: detail.to_owned() });
    record(batch, &Event { at, kind });
}
