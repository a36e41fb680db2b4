//! Owing mail again from the body frames alone, when the records are lost.
//!
//! Recipe: for each body that store's salvage found, call [`Queue::salvage`] on a queue opened over
//! a new, empty data folder. Easy to get wrong: recipients that have a `settled` frame are never
//! owed again, and the others keep their numbers, so that a second salvage still fits its frames.

use std::collections::BTreeSet;

use super::Queue;
use super::enqueue::BodyEnvelope;
use super::record::{NewMessage, NewRecipient};
use crate::ext::Timestamp;
use crate::mail::{BodyId, QueueId, Sealed};
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
    pub async fn salvage(&self, found: FoundBody<'_>, now: Timestamp) -> Result<Salvaged, SalvageError> {
        let FoundBody { body, envelope, message, settled } = found;
        let id = body.queue_id;
        let envelope = BodyEnvelope::from_bytes(envelope).map_err(|error| SalvageError::Envelope(id, error))?;
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
            notice_about: None,
            beside: Default::default(),
        };
        match self.owe(again, Some(owed), now).await {
            Ok(()) => Ok(Salvaged::Owed(count)),
            Err(CommitError::Conflict) => Ok(Salvaged::Known),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::{Bench, WALL, all, delivered, message};
    use crate::store::Blobs;

    #[tokio::test]
    async fn salvage_owes_what_was_not_settled_and_nothing_twice() {
        let old = Bench::new().await;
        let new = message(&["a@one.example", "b@two.example", "c@two.example"]);
        let (id, sealed) = (new.id, new.message.clone());
        old.queue.enqueue(new, WALL).await.unwrap();
        let claim = old.claim_all().into_iter().find(|claim| claim.record.recipients.len() == 1).unwrap();
        let outcomes = all(&claim, &delivered());
        old.queue.settle(claim, outcomes, WALL).await.unwrap();
        let body = BodyId { queue_id: id, number: 0 };
        let envelope = old.store.envelope(body).unwrap();
        let settled: BTreeSet<u16> = old.store.settled().into_iter().flat_map(|(_, numbers)| numbers).collect();

        let fresh = Bench::new().await;
        let found = FoundBody { body, envelope: &envelope, message: sealed, settled };
        assert_eq!(fresh.queue.salvage(found.clone(), WALL).await, Ok(Salvaged::Owed(2)));
        assert_eq!(fresh.queue.salvage(found.clone(), WALL).await, Ok(Salvaged::Known));
        assert!(fresh.queue.salvage(FoundBody { envelope: b"", ..found.clone() }, WALL).await.is_err());
        let everybody = FoundBody { settled: BTreeSet::from([0, 1, 2]), ..found };
        assert_eq!(fresh.queue.salvage(everybody, WALL).await, Ok(Salvaged::Settled));
        let claim = fresh.claim_all().remove(0);
        let numbers: Vec<u16> = claim.record.recipients.iter().map(|recipient| recipient.number).collect();
        assert_eq!(numbers, [1, 2]);
        assert!(fresh.store.open(body).unwrap().is_some());
        let outcomes = all(&claim, &delivered());
        fresh.queue.settle(claim, outcomes, WALL).await.unwrap();
        fresh.assert_empty();
    }
}
