//! Owing mail again from the body frames alone, when the records are lost.
//!
//! Recipe: for each body that store's salvage found, call [`Queue::salvage`] on a queue opened over
//! a new, empty data folder. Easy to get wrong: recipients that have a `settled` frame are never
//! owed again, and the others keep their numbers, so that a second salvage still fits its frames; a message
//! keeps the time at which it was accepted, from which its sender's wishes and expiry count.

use std::collections::BTreeSet;
use std::time::Duration;

use super::clock::DOWNTIME_MAX;
use super::enqueue::{BodyEnvelope, Since, Times};
use super::record::{NewMessage, NewRecipient};
use super::{Queue, schedule};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{BodyId, Domain, QueueId, Sealed, Signed};
use crate::records::AdminError;
use crate::store::{CommitError, StoreError};

/// One body that store's salvage found.
#[derive(Clone, Debug)]
pub struct FoundBody<'a> {
    /// Its name.
    pub body: BodyId,
    /// What lies beside it in its frame.
    pub envelope: &'a [u8],
    /// Its bytes.
    pub message: Sealed,
    /// Recipients with a `settled` frame, of this message.
    pub settled: BTreeSet<u16>,
}

/// The time nobody served the mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last sign of life of the instance that lost its records.
    pub from: Timestamp,
    /// Now.
    pub to: Timestamp,
}

impl Gap {
    /// How long mail that was accepted then has waited: of the gap a day counts at most, as of every downtime.
    fn waited(self, accepted: Timestamp) -> Duration {
        let from = self.from.max(accepted).min(self.to);
        from.since(accepted).saturating_add(self.to.since(from).min(DOWNTIME_MAX))
    }
}

/// What became of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Salvaged {
    /// Owed again, to so many recipients.
    Owed(usize),
    /// Every recipient was settled.
    Settled,
    /// It is in this queue already.
    Known,
}

/// Why a body could not be owed again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SalvageError {
    /// Its envelope cannot be read.
    #[error("the envelope of {0} cannot be read: {1}")]
    Envelope(QueueId, StoreError),
    /// It could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Queue {
    /// Owes one body again from its own envelope, without the recipients in `settled`.
    pub async fn salvage(&self, found: FoundBody<'_>, gap: Gap) -> Result<Salvaged, SalvageError> {
        let FoundBody { body, envelope, message, settled } = found;
        let id = body.queue_id;
        let envelope = BodyEnvelope::from_bytes(envelope).map_err(|error| SalvageError::Envelope(id, error))?;
        let times = self.times_again(&envelope, gap);
        // What else it was sent as counts at acceptance, which was before.
        let signed = signer_of(&envelope).map(|by| Signed { by, offers_one_click: false });
        let mut owed = Vec::new();
        let mut recipients = Vec::with_capacity(envelope.recipients.len());
        for (number, recipient) in (0_u16..).zip(envelope.recipients) {
            let lane = recipient.lane.filter(|_| !settled.contains(&number));
            if lane.is_some() {
                owed.push(number);
            }
            let (address, notify, orcpt) = (recipient.address, recipient.notify, recipient.orcpt);
            recipients.push(NewRecipient { address, notify, orcpt, lane });
        }
        if owed.is_empty() {
            return Ok(Salvaged::Settled);
        }
        let count = owed.len();
        let again = NewMessage {
            id,
            tenant: envelope.tenant,
            account: envelope.account,
            vip: envelope.vip,
            class: envelope.class,
            source: envelope.source,
            reverse_path: envelope.reverse_path,
            parameters: envelope.parameters,
            message,
            needs_8bit: envelope.needs_8bit,
            subject: envelope.subject,
            message_id: envelope.message_id,
            header_from: envelope.header_from,
            signatures: envelope.signatures,
            recipients,
            labels: Default::default(),
            return_path: None,
            signed,
            notice_about: None,
            beside: Default::default(),
        };
        match self.owe(again, Since::Salvaged(owed, times), gap.to).await {
            Ok(()) => Ok(Salvaged::Owed(count)),
            Err(CommitError::Conflict) => Ok(Salvaged::Known),
            Err(error) => Err(error.into()),
        }
    }

    /// Holds everything in a queue that was filled by [`Queue::salvage`]; the number of messages.
    pub async fn hold_salvaged(&self, now: Timestamp) -> Result<u64, AdminError> {
        let held = self.hold_all(&Actor::system("salvaged without the records"), now).await?;
        Ok(held.messages)
    }

    fn times_again(&self, envelope: &BodyEnvelope, gap: Gap) -> Times {
        let (now, accepted) = (self.now(), envelope.accepted);
        let accepted_at = now.before(gap.waited(accepted));
        // What the sender asked for is a moment on the wall clock.
        let wanted = accepted.plus(schedule::held_back(&envelope.parameters, accepted));
        Times { accepted, accepted_at, due: now.plus(wanted.since(gap.to)) }
    }
}

/// The sending domain that signed a tenant's mail, as its signatures say.
fn signer_of(envelope: &BodyEnvelope) -> Option<Domain> {
    let is_own = envelope.source != "notice";
    let signature = envelope.signatures.first().filter(|_| is_own)?;
    Domain::parse(signature.split_once("._domainkey.")?.1).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::mail::Hold;
    use crate::queue::tests::{Bench, WALL, all, bounced, deferred, delivered, message};
    use crate::queue::{Outcome, RecipientState, Settings};
    use crate::store::Blobs;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(24 * 3_600);

    /// No time has passed.
    const AT_ONCE: Gap = Gap { from: WALL, to: WALL };

    /// What lies in the segments of `old` about the message `new` was made of.
    struct Left {
        body: BodyId,
        envelope: Vec<u8>,
        message: Sealed,
        settled: BTreeSet<u16>,
    }

    impl Left {
        fn of(old: &Bench, (id, message): (QueueId, Sealed)) -> Self {
            let body = BodyId { queue_id: id, number: 0 };
            let envelope = old.store.envelope(body).unwrap();
            let settled = old.store.settled().into_iter().filter(|(of, _)| *of == id).flat_map(|(_, numbers)| numbers);
            Self { body, envelope, message, settled: settled.collect() }
        }

        fn found(&self) -> FoundBody<'_> {
            let (body, message, settled) = (self.body, self.message.clone(), self.settled.clone());
            FoundBody { body, envelope: &self.envelope, message, settled }
        }
    }

    #[tokio::test]
    async fn salvage_owes_what_was_not_settled_and_nothing_twice() {
        let old = Bench::new().await;
        let new = message(&["a@one.example", "b@two.example", "c@two.example"]);
        let kept = (new.id, new.message.clone());
        old.queue.enqueue(new, WALL).await.unwrap();
        let claim = old.claim_all().into_iter().find(|claim| claim.record.recipients.len() == 1).unwrap();
        let outcomes = all(&claim, &delivered());
        old.queue.settle(claim, outcomes, WALL).await.unwrap();
        let left = Left::of(&old, kept);

        let fresh = Bench::new().await;
        assert_eq!(fresh.queue.salvage(left.found(), AT_ONCE).await, Ok(Salvaged::Owed(2)));
        assert_eq!(fresh.queue.salvage(left.found(), AT_ONCE).await, Ok(Salvaged::Known));
        assert!(fresh.queue.salvage(FoundBody { envelope: b"", ..left.found() }, AT_ONCE).await.is_err());
        let everybody = FoundBody { settled: BTreeSet::from([0, 1, 2]), ..left.found() };
        assert_eq!(fresh.queue.salvage(everybody, AT_ONCE).await, Ok(Salvaged::Settled));
        let claim = fresh.claim_all().remove(0);
        let numbers: Vec<u16> = claim.record.recipients.iter().map(|recipient| recipient.number).collect();
        assert_eq!(numbers, [1, 2]);
        assert!(fresh.store.open(left.body).unwrap().is_some());
        let outcomes = all(&claim, &delivered());
        fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
        fresh.assert_empty();
    }

    #[test]
    fn of_the_time_nobody_served_the_mail_a_day_counts_at_most() {
        let gap = Gap { from: WALL.plus(2 * HOUR), to: WALL.plus(5 * HOUR) };
        assert_eq!(gap.waited(WALL), 5 * HOUR);
        assert_eq!(Gap { to: WALL.plus(2 * HOUR + 9 * DAY), ..gap }.waited(WALL), 2 * HOUR + DAY);
        // Clocks that went back.
        assert_eq!(gap.waited(WALL.plus(3 * HOUR)), 2 * HOUR);
        assert_eq!(gap.waited(WALL.plus(9 * HOUR)), Duration::ZERO);
        assert_eq!(Gap { from: WALL.plus(9 * DAY), ..gap }.waited(WALL), 5 * HOUR);
    }

    /// A message salvaged so long after its acceptance, with nothing recorded about it.
    async fn salvaged_after(hold: Option<Hold>, passed: Duration) -> (Bench, QueueId) {
        let old = Bench::new().await;
        let mut new = message(&["a@one.example"]);
        new.parameters.hold = hold;
        let kept = (new.id, new.message.clone());
        old.queue.enqueue(new, WALL).await.unwrap();
        let left = Left::of(&old, kept);
        let now = WALL.plus(passed);
        let fresh = Bench::new().await;
        // A new queue's clock starts from the wall clock.
        fresh.clock.store(now.0, Ordering::Release);
        let gap = Gap { from: now, to: now };
        assert_eq!(fresh.queue.salvage(left.found(), gap).await, Ok(Salvaged::Owed(1)));
        (fresh, left.body.queue_id)
    }

    #[tokio::test]
    async fn a_message_keeps_the_time_it_was_accepted_and_its_next_failure_after_expiry_is_the_last() {
        let (fresh, id) = salvaged_after(None, Settings::default().expire_after - HOUR).await;
        assert_eq!(fresh.queue.message(id).unwrap().unwrap().accepted, WALL, "Arrival-Date of notices");
        let claim = fresh.claim_all().remove(0);
        let outcomes = all(&claim, &deferred());
        fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
        fresh.pass(schedule::millis(HOUR));
        let claim = fresh.claim_all().remove(0);
        let outcomes = all(&claim, &deferred());
        fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
        assert_eq!(fresh.queue.totals().notices, 1, "{:?}", fresh.mail_events());
    }

    #[tokio::test]
    async fn salvaged_mail_can_be_held_as_a_whole() {
        let (fresh, id) = salvaged_after(None, HOUR).await;
        assert_eq!(fresh.queue.hold_salvaged(WALL).await.unwrap(), 1);
        assert!(fresh.claim_all().is_empty());
        fresh.queue.release_hold(&Actor::local(0), id, &[], WALL).await.unwrap();
        assert_eq!(fresh.claim_all().len(), 1);
    }

    #[tokio::test]
    async fn a_time_the_sender_asked_for_goes_on_from_acceptance() {
        for hold in [Hold::For(7 * DAY), Hold::Until(WALL.plus(7 * DAY))] {
            let (fresh, _) = salvaged_after(Some(hold), 6 * DAY).await;
            assert_eq!(fresh.queue.next_due(), Some(DAY), "{hold:?}");
            // None of that time counts as waiting.
            fresh.pass(schedule::millis(DAY));
            let claim = fresh.claim_all().remove(0);
            let outcomes = all(&claim, &deferred());
            fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
            assert_eq!(fresh.queue.totals().notices, 0, "{hold:?}");
            let (fresh, _) = salvaged_after(Some(hold), 8 * DAY).await;
            assert_eq!(fresh.queue.next_due(), Some(Duration::ZERO), "{hold:?}");
        }
    }

    /// What salvage owes of a message with one recipient after this outcome, before and after its notice was
    /// paid or dropped.
    async fn owed_after(outcome: &Outcome) -> (usize, usize) {
        let old = Bench::new().await;
        // The other recipient keeps the message.
        let new = message(&["a@one.example", "b@two.example"]);
        let kept = (new.id, new.message.clone());
        old.queue.enqueue(new, WALL).await.unwrap();
        let claim = old.claim_all().into_iter().find(|claim| claim.record.recipients[0].number == 0).unwrap();
        let outcomes = all(&claim, outcome);
        old.queue.settle(claim, outcomes, WALL).await.unwrap();
        let before = 2 - Left::of(&old, kept.clone()).settled.len();
        old.pass(schedule::millis(Settings::default().notice_gather));
        for notice in old.queue.owed_notices(9).unwrap() {
            old.queue.drop_notice(&notice, WALL).await.unwrap();
        }
        (before, 2 - Left::of(&old, kept).settled.len())
    }

    #[tokio::test]
    async fn a_failure_is_owed_again_until_its_sender_was_told_and_a_delivery_never() {
        assert_eq!(owed_after(&delivered()).await, (1, 1));
        assert_eq!(owed_after(&bounced()).await, (2, 1));
        assert_eq!(owed_after(&Outcome::Suppressed).await, (1, 1));
    }

    #[tokio::test]
    async fn a_failure_whose_notice_was_accepted_is_settled_in_the_same_batch_and_its_sender_is_told_once() {
        let old = Bench::new().await;
        let new = message(&["a@one.example"]);
        let kept = (new.id, new.message.clone());
        old.queue.enqueue(new, WALL).await.unwrap();
        let claim = old.claim_all().remove(0);
        let outcomes = all(&claim, &bounced());
        old.queue.settle(claim, outcomes, WALL).await.unwrap();
        // The records are lost here: the failure is found again, and so is the notice.
        let left = Left::of(&old, kept.clone());
        let fresh = Bench::new().await;
        assert_eq!(fresh.queue.salvage(left.found(), AT_ONCE).await, Ok(Salvaged::Owed(1)));
        let claim = fresh.claim_all().remove(0);
        assert_eq!(claim.record.recipients[0].state, RecipientState::Waiting);
        let outcomes = all(&claim, &bounced());
        fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
        assert_eq!(fresh.queue.totals().notices, 1);
        // Or here: the notice was accepted, and nothing is found but itself.
        old.pass(schedule::millis(Settings::default().notice_gather));
        assert_eq!(old.queue.owed_notices(9).unwrap().len(), 1);
        let mut notice = message(&["shop@shop.example"]);
        (notice.notice_about, notice.source) = (Some(kept.0), "notice".to_owned());
        old.queue.enqueue(notice, WALL).await.unwrap();
        assert_eq!(old.store.settled(), [(kept.0, vec![0])]);
    }

    #[tokio::test]
    async fn what_an_operator_gave_up_is_owed_again_until_its_sender_was_told() {
        for (reverse_path, owed) in [(true, 1), (false, 0)] {
            let old = Bench::new().await;
            let mut new = message(&["a@one.example"]);
            if !reverse_path {
                new.reverse_path.0 = None;
            }
            let id = new.id;
            old.queue.enqueue(new, WALL).await.unwrap();
            old.queue.expire(&Actor::local(0), id, &[], WALL).await.unwrap();
            assert_eq!(1 - old.store.settled().len(), owed);
        }
    }
}
