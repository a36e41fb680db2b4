//! What operators do to queued mail: retry, hold, release, cancel, move. Each is checked, and its
//! audit event is in the batch of the change.
//!
//! Easy to get wrong: a record in flight is changed in the store at once, but its attempt goes on;
//! the settlement reads the record again and keeps what was asked (see `verdict`).

use super::Queue;
use super::key::{self, Entry};
use super::lanes::{Name, Seized};
use super::record::{Ending, LaneRecord, QueueTime, QueuedMessage, QueuedRecipient, RecipientState};
use super::show::may;
use super::verdict;
use crate::access::{Action, Actor};
use crate::events::{MailEvent, NoticeKind};
use crate::ext::Timestamp;
use crate::mail::{QueueId, TenantId, VipId};
use crate::records::{Act, AdminError, record};
use crate::routing::Lane;
use crate::store::{Batch, Key, after_prefix};

/// Lane records of one message, at most: every recipient in a lane of its own.
pub(super) const RECORDS_MAX: usize = 65_536;

/// What the notice says about mail that was given up before anybody answered.
const NOT_TRIED: &str = "given up by an operator before anybody answered";

/// What a verb did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Recipients it applied to, by number.
    pub recipients: Vec<u16>,
    /// Of these, those being tried right now: it takes effect when their attempt has ended.
    pub in_flight: Vec<u16>,
}

/// What is asked of the recipients of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Retry,
    Hold,
    Release,
    Cancel,
    /// Give up as if it had waited too long: its sender is told.
    Expire,
    Move(VipId),
    /// Leave by `to`, because the warm-up of `from` has no room; only what waits there.
    Overflow {
        from: VipId,
        to: VipId,
    },
    /// Wait with the SMTP account.
    Pause,
    /// The SMTP account is released: as before the pause.
    Resume,
}

/// Who writes the audit entry of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audited {
    /// It has its own.
    Alone,
    /// One entry is about many orders.
    Together,
}

/// One lane record on its way from one state to another.
struct Change {
    name: Name,
    raw: Vec<u8>,
    old: LaneRecord,
    new: LaneRecord,
    recipients: Vec<u16>,
    seized: Seized,
}

/// What an order comes to.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    /// Records left as they are.
    untouched: usize,
    /// Keys of records that cannot be read and are dropped.
    unreadable: Vec<Key>,
}

/// One order of an actor about one message.
pub(super) struct Order<'a> {
    pub(super) actor: &'a Actor,
    pub(super) id: QueueId,
    pub(super) verb: Verb,
    /// Recipient numbers; empty is all.
    pub(super) only: &'a [u16],
    pub(super) audited: Audited,
}

impl Queue {
    /// Makes waiting recipients due now. `only` names recipients by number, empty is all of them.
    pub async fn retry(&self, actor: &Actor, id: QueueId, only: &[u16], now: Timestamp) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Retry, only, audited: Audited::Alone }, now).await
    }

    /// Keeps recipients from being tried until they are released.
    pub async fn hold(&self, actor: &Actor, id: QueueId, only: &[u16], now: Timestamp) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Hold, only, audited: Audited::Alone }, now).await
    }

    /// Ends a hold; what was held is due now.
    pub async fn release_hold(
        &self,
        actor: &Actor,
        id: QueueId,
        only: &[u16],
        now: Timestamp,
    ) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Release, only, audited: Audited::Alone }, now).await
    }

    /// Drops recipients for good; nobody is told but the record.
    pub async fn cancel(
        &self,
        actor: &Actor,
        id: QueueId,
        only: &[u16],
        now: Timestamp,
    ) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Cancel, only, audited: Audited::Alone }, now).await
    }

    /// Gives recipients up now, as if they had waited too long; their sender is told. Those being tried are
    /// left alone.
    pub async fn expire(
        &self,
        actor: &Actor,
        id: QueueId,
        only: &[u16],
        now: Timestamp,
    ) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Expire, only, audited: Audited::Alone }, now).await
    }

    /// Lets what is left of a message leave by another virtual IP: only by a shared one, and only if
    /// the tenant permits it (see [`super::Policy::may_move`]).
    pub async fn move_to(&self, actor: &Actor, id: QueueId, to: VipId, now: Timestamp) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb: Verb::Move(to), only: &[], audited: Audited::Alone }, now).await
    }

    pub(super) async fn obey(&self, order: Order<'_>, now: Timestamp) -> Result<Changed, AdminError> {
        let id = order.id;
        let _lock = self.locks.lock(id).await;
        let message = self.message(id)?.ok_or_else(|| AdminError::Missing(format!("message {id} in the queue")))?;
        may(order.actor, Action::Write, &message)?;
        let pausing = self.pausing(message.account.filter(|_| order.verb == Verb::Pause)).await;
        if order.verb == Verb::Pause && pausing.is_none() {
            // The pause is over: what would be marked now would not be seen by the walk that lets it go on.
            return Ok(Changed::default());
        }
        if let Verb::Move(to) = order.verb {
            (self.policy.may_move)(message.tenant, to).map_err(AdminError::Invalid)?;
        }
        if let Verb::Overflow { to, .. } = order.verb
            && !self.overflow_to(message.tenant).contains(&to)
        {
            let detail = "its tenant does not name this virtual IP for what a warm-up has no room for";
            return Err(AdminError::Invalid(detail.to_owned()));
        }
        let Plan { mut changes, untouched, unreadable } = self.plan(&order)?;
        if changes.is_empty() && unreadable.is_empty() {
            return Ok(Changed::default());
        }
        {
            let mut lanes = self.in_memory();
            for change in &mut changes {
                change.seized = lanes.seize(&change.old.lane, change.name, change.old.due);
            }
        }
        // A retry of something in flight would change nothing but its due time behind its back; giving it
        // up would tell its sender of a failure that may yet be a delivery.
        let mut running = Vec::new();
        if matches!(order.verb, Verb::Retry | Verb::Expire) {
            let left_alone = changes.extract_if(.., |change| change.seized == Seized::InFlight);
            running.extend(left_alone.flat_map(|change| change.recipients));
        }
        let seized = SeizedRecords { queue: self, names: names(&changes) };
        let mut batch = Batch::new();
        let left =
            changes.iter().filter(|change| change.stays()).count() + untouched + usize::from(!running.is_empty());
        changes.iter().for_each(|change| change.write(&mut batch));
        for own in &unreadable {
            batch.remove(own.clone()).remove(key::damaged(own));
        }
        write_events(&mut batch, (&order, message.tenant), &changes, now);

        let owed = self.end_of((&order, &message), (&changes, left), &mut batch, now).await?;
        let doubt = self.in_doubt(id, owed.as_slice());
        if !changes.is_empty() || !unreadable.is_empty() {
            self.commit(batch).await?;
        }
        doubt.ended();
        if !owed.is_empty() {
            self.notices_owed().added(owed);
            self.notice_nudge.notify_one();
        }
        drop(seized.forget());
        let mut changed = self.obeyed(changes);
        if order.verb == Verb::Expire {
            changed.in_flight.extend(running);
        }
        Ok(changed)
    }

    /// What follows where mail is dropped or given up: its sender's notice, the message's end if `left` is
    /// nothing. The keys of new notices.
    async fn end_of(
        &self,
        (order, message): (&Order<'_>, &QueuedMessage),
        (changes, left): (&[Change], usize),
        batch: &mut Batch,
        now: Timestamp,
    ) -> Result<Vec<Key>, AdminError> {
        if !matches!(order.verb, Verb::Cancel | Verb::Expire) {
            return Ok(Vec::new());
        }
        self.sure_of_notices(order.id).await?;
        let mut owed = Vec::new();
        if order.verb == Verb::Expire {
            let given_up = changes.iter().flat_map(|change| {
                let own = change.new.recipients.iter();
                own.filter(|recipient| change.recipients.contains(&recipient.number))
            });
            // Whose sender is told is settled with the notice.
            let is_told = |recipient: &&QueuedRecipient| message.reverse_path.0.is_some() && recipient.notify.failure;
            let (told, untold): (Vec<_>, Vec<_>) = given_up.partition(is_told);
            if !untold.is_empty() {
                batch.settled.push((order.id, untold.into_iter().map(|recipient| recipient.number).collect()));
            }
            let told: Vec<QueuedRecipient> = told.into_iter().cloned().collect();
            owed.extend(self.owe_notice(batch, order.id, NoticeKind::Failure, &told));
        }
        if left == 0 && owed.is_empty() && self.notices_about(order.id) == 0 {
            Self::retire(batch, order.id, now);
        }
        Ok(owed)
    }

    /// The records the order changes, and how many it leaves as they are. Nobody knows which
    /// recipients an unreadable one holds: it goes when the whole message is cancelled.
    fn plan(&self, order: &Order<'_>) -> Result<Plan, AdminError> {
        let records = key::lane_records(order.id);
        let stored = self.store.range(&records, &after_prefix(&records), RECORDS_MAX)?;
        let mut plan = Plan::default();
        for (own, raw) in stored {
            let number = key::number_of(&own);
            let (Some(number), Ok(old)) = (number, LaneRecord::from_bytes(&raw)) else {
                match order.verb {
                    Verb::Cancel if order.only.is_empty() => plan.unreadable.push(own),
                    _ => plan.untouched += 1,
                }
                continue;
            };
            let (new, recipients) = order.apply(&old, self.now());
            if recipients.is_empty() {
                plan.untouched += 1;
            } else {
                plan.changes.push(Change { name: (order.id, number), raw, old, new, recipients, seized: Seized::Busy });
            }
        }
        Ok(plan)
    }

    /// Puts what was committed into memory.
    fn obeyed(&self, changes: Vec<Change>) -> Changed {
        let mut changed = Changed::default();
        for change in changes {
            changed.recipients.extend_from_slice(&change.recipients);
            match change.seized {
                Seized::InFlight => changed.in_flight.extend_from_slice(&change.recipients),
                Seized::Busy => self.look_again(change.name),
                Seized::Yours if verdict::waits(&change.new) => {
                    let entry = change.entry(change.new.due);
                    self.in_memory().put(&change.new.lane, entry, None);
                }
                Seized::Yours => self.in_memory().gone(change.name),
            }
        }
        self.nudge.notify_one();
        changed
    }
}

impl Order<'_> {
    fn apply(&self, old: &LaneRecord, now: QueueTime) -> (LaneRecord, Vec<u16>) {
        let mut new = old.clone();
        let mut touched = Vec::new();
        if let Verb::Overflow { from, .. } = self.verb
            && !overflows(old, from)
        {
            return (new, touched);
        }
        for recipient in &mut new.recipients {
            if !self.only.is_empty() && !self.only.contains(&recipient.number) {
                continue;
            }
            let state = match (self.verb, recipient.state) {
                (Verb::Retry | Verb::Overflow { .. }, RecipientState::Waiting) => RecipientState::Waiting,
                (Verb::Hold, RecipientState::Waiting | RecipientState::Paused) => RecipientState::Held,
                (Verb::Release, RecipientState::Held) => RecipientState::Waiting,
                (Verb::Pause, RecipientState::Waiting) => RecipientState::Paused,
                (Verb::Resume, RecipientState::Paused) => RecipientState::Waiting,
                (Verb::Cancel, RecipientState::Waiting | RecipientState::Held | RecipientState::Paused) => {
                    RecipientState::Done(Ending::Cancelled)
                }
                (Verb::Expire, RecipientState::Waiting | RecipientState::Held | RecipientState::Paused) => {
                    // The notice says why, also where nobody has answered yet.
                    recipient.last_detail.get_or_insert_with(|| NOT_TRIED.to_owned());
                    RecipientState::Done(Ending::Expired)
                }
                (Verb::Move(to), state @ (RecipientState::Waiting | RecipientState::Held | RecipientState::Paused))
                    if old.lane.vip != to =>
                {
                    state
                }
                _ => continue,
            };
            recipient.state = state;
            touched.push(recipient.number);
        }
        if let (Verb::Move(to) | Verb::Overflow { to, .. }, false) = (self.verb, touched.is_empty()) {
            new.lane = Lane { vip: to, ..new.lane };
        }
        if matches!(self.verb, Verb::Retry | Verb::Release) {
            new.due = now;
        }
        (new, touched)
    }
}

impl Change {
    fn entry(&self, due: QueueTime) -> Entry {
        Entry { due, queue_id: self.name.0, number: self.name.1 }
    }

    fn due_key(&self, record: &LaneRecord) -> Key {
        key::due(&record.lane, self.entry(record.due))
    }

    /// Whether the lane record is still there afterwards. While it is in flight it stays until the
    /// settlement, even if everybody in it was cancelled.
    fn stays(&self) -> bool {
        let done = self.new.recipients.iter().all(|recipient| matches!(recipient.state, RecipientState::Done(_)));
        !done || self.seized != Seized::Yours
    }

    fn write(&self, batch: &mut Batch) {
        let own = key::lane_record(self.name.0, self.name.1);
        batch.if_equals(own.clone(), self.raw.clone());
        batch.remove(self.due_key(&self.old));
        if self.stays() {
            batch.set(own, self.new.to_bytes());
            // Cancelled in flight keeps its due key, so that after a crash it is found and finished.
            let done = self.new.recipients.iter().all(|recipient| matches!(recipient.state, RecipientState::Done(_)));
            if verdict::waits(&self.new) || done {
                batch.set(self.due_key(&self.new), Vec::new());
            }
        } else {
            // Its body may have been found damaged, which is noted beside it.
            batch.remove(key::damaged(&own)).remove(own);
        }
    }
}

/// Whether the warm-up of `from` is what keeps a record: nobody in it is held or paused, for those would
/// change their virtual IP with the others.
fn overflows(record: &LaneRecord, from: VipId) -> bool {
    let is_kept = |state| matches!(state, RecipientState::Held | RecipientState::Paused);
    record.lane.vip == from && !record.recipients.iter().any(|recipient| is_kept(recipient.state))
}

fn names(changes: &[Change]) -> Vec<Name> {
    changes.iter().filter(|change| change.seized == Seized::Yours).map(|change| change.name).collect()
}

fn write_events(batch: &mut Batch, (order, tenant): (&Order<'_>, TenantId), changes: &[Change], now: Timestamp) {
    let by = || order.actor.name.clone();
    let recipients: Vec<u16> = changes.iter().flat_map(|change| change.recipients.iter().copied()).collect();
    let (act, event) = match order.verb {
        Verb::Retry => ("queue.retry", MailEvent::Retried { recipients, by: by() }),
        Verb::Hold | Verb::Pause => ("queue.hold", MailEvent::Held { recipients, by: by() }),
        Verb::Release | Verb::Resume => ("queue.release", MailEvent::Released { recipients, by: by() }),
        Verb::Cancel => {
            batch.settled.push((order.id, recipients.clone()));
            ("queue.cancel", MailEvent::Cancelled { recipients, by: by() })
        }
        Verb::Expire => ("queue.expire", MailEvent::Expired { recipients, last: format!("given up by {}", by()) }),
        Verb::Move(to) | Verb::Overflow { to, .. } => {
            let from = changes.first().map_or(to, |change| change.old.lane.vip);
            ("queue.move", MailEvent::Moved { recipients, from, to, by: by() })
        }
    };
    Queue::note(batch, order.id, event, now);
    if order.audited == Audited::Alone {
        record(batch, order.actor, Act::new(act, order.id.to_string()).of(tenant), now);
    }
}

/// Lets the chores put seized records back if the change failed or was abandoned.
struct SeizedRecords<'a> {
    queue: &'a Queue,
    names: Vec<Name>,
}

impl SeizedRecords<'_> {
    fn forget(mut self) -> Self {
        self.names.clear();
        self
    }
}

impl Drop for SeizedRecords<'_> {
    fn drop(&mut self) {
        for name in self.names.drain(..) {
            self.queue.look_again(name);
        }
    }
}
