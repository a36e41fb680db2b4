//! Recording how a claim ended, in one batch: states, due key, events, notices owed, retirement.
//!
//! Easy to get wrong: once an attempt has been made its outcome must not be forgotten. It stays in
//! memory until its commit succeeded (see `keep`), and the claim stays taken as long.

use std::sync::Arc;

use super::key::{self, Entry};
use super::lanes::WhileClaimed;
use super::record::{Claim, LaneRecord, Outcome, QueueTime, QueuedMessage};
use super::verdict::{self, Case, Verdict};
use super::{Beat, Queue};
use crate::events::{MailEvent, NoticeKind};
use crate::ext::Timestamp;
use crate::mail::{BodyId, QueueId};
use crate::metrics::{BOUNCED, DEFERRED, DELIVERED, OUTCOMES};
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix};

/// How often a settlement is decided anew because the record changed, before it is left to the chores.
const CONFLICTS_MAX: usize = 8;

/// A claim with its outcomes, until it is recorded.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) claim: Claim,
    pub(super) outcomes: Vec<(u16, Outcome)>,
    pub(super) at: Timestamp,
    /// When the outcomes were given: recording them may take longer than mail waits, and an attempt may have
    /// ended before that.
    pub(super) given: QueueTime,
}

/// Hands the settlement to the chores unless it was recorded, also if the caller goes away.
struct Unrecorded<'a> {
    queue: &'a Queue,
    settlement: Option<Settlement>,
}

impl Drop for Unrecorded<'_> {
    fn drop(&mut self) {
        if let Some(settlement) = self.settlement.take() {
            let again = self.queue.now();
            self.queue.chores().keep_settlement(settlement, 0, again);
            self.queue.chore_nudge.notify_one();
        }
    }
}

impl Queue {
    /// Records outcomes by recipient number. A waiting recipient without an outcome stays waiting: due
    /// at once if all outcomes are final, else due again like a deferred one. Somebody who was never
    /// tried keeps the attempt from being counted, so that pauses do not grow before his first.
    ///
    /// On `Err` the outcomes are kept and their commit is repeated by [`Queue::keep`]; nothing of
    /// this claim is handed out again before. [`CommitError::Conflict`] means the claim was given
    /// back already. The outcomes are kept also if the future is dropped, even before its first poll.
    pub fn settle(
        &self,
        claim: Claim,
        outcomes: Vec<(u16, Outcome)>,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + '_ {
        self.settle_as_of((claim, outcomes), now, self.now())
    }

    /// As [`Queue::settle`], with outcomes of an attempt that ended at `given`: one that ended before the message
    /// had waited too long is not its last.
    pub fn settle_as_of(
        &self,
        (claim, outcomes): (Claim, Vec<(u16, Outcome)>),
        now: Timestamp,
        given: QueueTime,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + '_ {
        let is_claimed = self.in_memory().claimed((claim.queue_id, claim.number), claim.token).is_some();
        let settlement = Settlement { claim, outcomes, at: now, given };
        // Outside the future: an attempt may be aborted between here and the first poll.
        let mut unrecorded = Unrecorded { queue: self, settlement: is_claimed.then_some(settlement) };
        async move {
            let Some(settlement) = &unrecorded.settlement else { return Err(CommitError::Conflict) };
            self.write_settlement(settlement).await?;
            drop(unrecorded.settlement.take());
            Ok(())
        }
    }

    /// Records what is final among the outcomes, while the attempt goes on with others of the claim: a
    /// delivery is on disk before anything else happens to that message.
    ///
    /// Gives back the claim, its record as it is stored now, and the outcomes to be settled with it in
    /// the end: deferrals, which move the due time of the whole record. `None` says that the attempt is
    /// over, since an operator changed the record meanwhile or nobody is left to be tried: everything is
    /// settled then. So it is on `Err`, which is as that of [`Queue::settle`].
    pub async fn settle_part(
        &self,
        claim: Claim,
        outcomes: Vec<(u16, Outcome)>,
        now: Timestamp,
    ) -> Result<Option<(Claim, Vec<(u16, Outcome)>)>, CommitError> {
        if self.in_memory().claimed((claim.queue_id, claim.number), claim.token).is_none() {
            return Err(CommitError::Conflict);
        }
        if !outcomes.iter().any(|(_, outcome)| outcome.is_final()) {
            return Ok(Some((claim, outcomes)));
        }
        let settlement = Settlement { claim, outcomes, at: now, given: self.now() };
        let mut unrecorded = Unrecorded { queue: self, settlement: Some(settlement) };
        let Some(settlement) = &unrecorded.settlement else { return Ok(None) };
        let left = self.write_part(settlement).await?;
        let settlement = unrecorded.settlement.take();
        Ok(settlement.zip(left).map(|(Settlement { claim, mut outcomes, .. }, record)| {
            outcomes.retain(|(_, outcome)| !outcome.is_final());
            (Claim { record, said: Vec::new(), ..claim }, outcomes)
        }))
    }

    /// Writes the final ones of a settlement and leaves its claim out; the record as it is stored then.
    /// `None`: the settlement was written as a whole.
    async fn write_part(&self, settlement: &Settlement) -> Result<Option<LaneRecord>, CommitError> {
        let claim = &settlement.claim;
        let name = (claim.queue_id, claim.number);
        {
            let _lock = self.locks.lock(claim.queue_id).await;
            if self.in_memory().claimed(name, claim.token) == Some(WhileClaimed::Unchanged) {
                let is_final = |(_, outcome): &&(u16, Outcome)| outcome.is_final();
                let finals: Vec<(u16, Outcome)> = settlement.outcomes.iter().filter(is_final).cloned().collect();
                match self.write_verdict((settlement, &finals), claim.record.clone(), None).await {
                    Ok((verdict, owed)) if verdict.waits() => {
                        self.told(&verdict, claim.message.accepted, owed);
                        return Ok(Some(verdict.record));
                    }
                    Ok((verdict, owed)) => {
                        self.recorded(claim, &verdict, owed);
                        return Ok(None);
                    }
                    // What that means is found out below.
                    Err(CommitError::Conflict) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.write_settlement(settlement).await.map(|()| None)
    }

    /// As [`Queue::settle_as_of`], for those who cannot wait: [`Queue::keep`] records the outcomes.
    pub fn settle_later(&self, (claim, outcomes): (Claim, Vec<(u16, Outcome)>), now: Timestamp, given: QueueTime) {
        let known = self.in_memory().claimed((claim.queue_id, claim.number), claim.token);
        if known.is_some() {
            let settlement = Settlement { claim, outcomes, at: now, given };
            drop(Unrecorded { queue: self, settlement: Some(settlement) });
        }
    }

    /// Writes a settlement; `Ok` also if an earlier, abandoned try had written it.
    pub(super) async fn write_settlement(&self, settlement: &Settlement) -> Result<(), CommitError> {
        let claim = &settlement.claim;
        let name = (claim.queue_id, claim.number);
        let _lock = self.locks.lock(claim.queue_id).await;
        for _ in 0..CONFLICTS_MAX {
            let stored = match self.in_memory().claimed(name, claim.token) {
                None => return Ok(()),
                Some(WhileClaimed::Unchanged) => None,
                Some(WhileClaimed::Changed) => Some(self.stored_record(name).map_err(refused)?),
            };
            let (record, raw) = match stored {
                None => (claim.record.clone(), None),
                Some(Some((record, raw))) => (record, Some(raw)),
                Some(None) => return self.was_recorded(name),
            };
            match self.write_verdict((settlement, &settlement.outcomes), record, raw).await {
                Ok((verdict, owed)) => {
                    self.recorded(claim, &verdict, owed);
                    return Ok(());
                }
                Err(CommitError::Conflict) if self.stored_differs(claim)? => return self.was_recorded(name),
                Err(CommitError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CommitError::Conflict)
    }

    /// Writes what these outcomes of a settlement make of the record, which `raw` is the stored form of if
    /// it is not the claim's. Returns the keys of new notices too. Memory is not told yet.
    async fn write_verdict(
        &self,
        (settlement, outcomes): (&Settlement, &[(u16, Outcome)]),
        record: LaneRecord,
        raw: Option<Vec<u8>>,
    ) -> Result<(Verdict, Vec<Key>), CommitError> {
        let claim = &settlement.claim;
        let id = claim.queue_id;
        let old_due = key::due(&record.lane, Entry { due: record.due, queue_id: id, number: claim.number });
        let mut batch = Batch::new();
        match raw {
            None => batch.if_equals(old_due.clone(), Vec::new()),
            Some(raw) => batch.if_equals(key::lane_record(id, claim.number), raw),
        };
        batch.remove(old_due);
        let verdict = verdict::judge(Case {
            queue_id: id,
            number: claim.number,
            message: &claim.message,
            record,
            outcomes,
            said: &claim.said,
            now: self.now(),
            given: settlement.given,
            at: settlement.at,
            settings: &self.settings(),
            tells_delays: (self.policy.tells_delays)(claim.message.tenant),
        });
        self.sure_of_notices(id).await?;
        let owed = self.write(&mut batch, &verdict, claim, settlement.at)?;
        let doubt = self.in_doubt(id, &owed);
        self.commit(batch).await?;
        doubt.ended();
        Ok((verdict, owed))
    }

    /// Fills the batch with the verdict; returns the keys of new notices.
    fn write(
        &self,
        batch: &mut Batch,
        verdict: &Verdict,
        claim: &Claim,
        at: Timestamp,
    ) -> Result<Vec<Key>, CommitError> {
        let (id, number) = (claim.queue_id, claim.number);
        if verdict.is_done() {
            batch.remove(key::lane_record(id, number));
        } else {
            batch.set(key::lane_record(id, number), verdict.record.to_bytes());
        }
        if verdict.waits() {
            let entry = Entry { due: verdict.record.due, queue_id: id, number };
            batch.set(key::due(&verdict.record.lane, entry), Vec::new());
        }
        for event in &verdict.events {
            Self::note(batch, id, event.clone(), at);
        }
        // Whose failure the sender is still to be told of is settled with the notice: until then salvage owes it.
        let is_to_be_told = |number: &u16| verdict.failed.iter().any(|failed| failed.number == *number);
        let settled: Vec<u16> = verdict.done.iter().copied().filter(|number| !is_to_be_told(number)).collect();
        if !settled.is_empty() {
            batch.settled.push((id, settled));
        }
        let mut owed = Vec::new();
        for (kind, recipients) in [
            (NoticeKind::Failure, &verdict.failed),
            (NoticeKind::Delay, &verdict.delayed),
            (NoticeKind::Success, &verdict.succeeded),
        ] {
            owed.extend(self.owe_notice(batch, id, kind, recipients));
        }
        if verdict.is_done()
            && owed.is_empty()
            && !self.others_open(id, &claim.message, number)?
            && self.notices_about(id) == 0
        {
            Self::retire(batch, id, at);
        }
        Ok(owed)
    }

    /// Puts what was committed into memory, and ends the claim.
    fn recorded(&self, claim: &Claim, verdict: &Verdict, owed: Vec<Key>) {
        let name = (claim.queue_id, claim.number);
        let waits = verdict.waits();
        {
            let mut lanes = self.in_memory();
            if waits {
                let entry = Entry { due: verdict.record.due, queue_id: name.0, number: name.1 };
                lanes.put(&verdict.record.lane, entry, None);
            } else {
                lanes.gone(name);
            }
        }
        if waits {
            self.nudge.notify_one();
        }
        self.told(verdict, claim.message.accepted, owed);
    }

    /// Tells of what was committed: notices owed, and what is counted.
    fn told(&self, verdict: &Verdict, accepted: Timestamp, owed: Vec<Key>) {
        if !owed.is_empty() {
            self.notices_owed().added(owed);
            self.notice_nudge.notify_one();
        }
        verdict.events.iter().for_each(count_outcome);
        let [delivered, deferred, bounced] = verdict.counts;
        let next_hop = &verdict.record.lane.next_hop;
        self.beat(&Beat::Tried { next_hop, delivered, deferred, given_up: bounced, accepted });
        for (metric, count) in [(DELIVERED, delivered), (DEFERRED, deferred), (BOUNCED, bounced)] {
            if count > 0 {
                metrics::counter!(metric).increment(count);
            }
        }
    }

    /// Whether a lane record of the message other than `number` still has somebody to try or held.
    /// Called under the message's lock.
    pub(super) fn others_open(&self, id: QueueId, message: &QueuedMessage, number: u16) -> Result<bool, CommitError> {
        if message.lanes == 1 {
            return Ok(false);
        }
        let own = key::lane_record(id, number);
        let records = key::lane_records(id);
        let open = self.store.range(&records, &after_prefix(&records), 2).map_err(refused)?;
        Ok(open.iter().any(|(other, _)| *other != own))
    }

    /// The end of a message: nothing is owed about it any more. Its history stays.
    pub(super) fn retire(batch: &mut Batch, id: QueueId, at: Timestamp) {
        batch.remove(key::message(id));
        batch.freed.push(BodyId { queue_id: id, number: 0 });
        Self::note(batch, id, MailEvent::Retired, at);
    }

    fn stored_differs(&self, claim: &Claim) -> Result<bool, CommitError> {
        let name = (claim.queue_id, claim.number);
        let changed = self.in_memory().claimed(name, claim.token) == Some(WhileClaimed::Changed);
        if changed {
            return Ok(false);
        }
        let stored = self.stored_record(name).map_err(refused)?;
        Ok(stored.is_none_or(|(record, _)| record != claim.record))
    }

    fn was_recorded(&self, name: (QueueId, u16)) -> Result<(), CommitError> {
        self.in_memory().claim_is_busy(name);
        self.look_again(name);
        // The try that was abandoned may have owed a notice that memory does not know. It came before
        // the one that found out, so it is through.
        self.discover_notices().map_err(refused)?;
        self.notices_owed().sure(name.0);
        self.notice_nudge.notify_one();
        Ok(())
    }

    /// Finishes a record in which nobody is left to try; under the message's lock.
    pub(super) async fn finish(
        &self,
        name: (QueueId, u16),
        record: LaneRecord,
        at: Timestamp,
    ) -> Result<(), CommitError> {
        let Some(message) = self.message(name.0).map_err(refused)? else { return Ok(()) };
        let (queue_id, number, message) = (name.0, name.1, Arc::new(message));
        let claim = Claim { queue_id, number, message, record, token: 0, said: Vec::new() };
        let mut batch = Batch::new();
        let entry = Entry { due: claim.record.due, queue_id: name.0, number: name.1 };
        batch.remove(key::due(&claim.record.lane, entry)).remove(key::lane_record(name.0, name.1));
        self.sure_of_notices(name.0).await?;
        if !self.others_open(name.0, &claim.message, name.1)? && self.notices_about(name.0) == 0 {
            Self::retire(&mut batch, name.0, at);
        }
        self.commit(batch).await
    }
}

/// Counts what an attempt came to, by class: a few dozen series at most.
fn count_outcome(event: &MailEvent) {
    let (outcome, class, recipients) = match event {
        MailEvent::Delivered { recipients, .. } => ("delivered", "none", recipients),
        MailEvent::Deferred { recipients, why, .. } => ("deferred", why.word(), recipients),
        MailEvent::Bounced { recipients, why, .. } => ("bounced", why.word(), recipients),
        MailEvent::Expired { recipients, .. } => ("expired", "none", recipients),
        _ => return,
    };
    let count = u64::try_from(recipients.len()).unwrap_or(u64::MAX);
    metrics::counter!(OUTCOMES, "outcome" => outcome, "class" => class).increment(count);
}

/// A read that failed while something was to be written.
pub(super) fn refused(error: StoreError) -> CommitError {
    CommitError::Failed(error.to_string())
}
