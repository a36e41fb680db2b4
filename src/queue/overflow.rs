//! Mail that the warm-up of a virtual IP has no room for changes its lane, durably, before it is tried.
//!
//! Recipe: delivery claims what waits, finds out by which shared virtual IP it may leave, and gives each
//! claim to [`Queue::overflow`].
//! Easy to get wrong: what counts is the record as it is stored at that moment, not the claim: it may have
//! been held, cancelled or moved by hand since; and a message overflows once in its life, from the virtual
//! IP it was accepted for, so that it cannot go to and fro.

use std::time::Duration;

use super::Queue;
use super::record::{Claim, RecipientState};
use super::verbs::{Audited, Order, Verb};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{TenantId, VipId};
use crate::records::AdminError;
use crate::routing::Lane;

impl Queue {
    /// The shared virtual IPs that the tenant named for what a warm-up has no room for.
    pub fn overflow_to(&self, tenant: TenantId) -> Vec<VipId> {
        (self.policy.overflow_to)(tenant)
    }

    /// How many records of a lane are ready, counted to 2,000 at most; [`usize::MAX`] if some of them are not in
    /// memory.
    pub fn ready(&self, lane: &Lane) -> usize {
        self.in_memory().ready_in(lane, self.now())
    }

    /// Moves what a claim is for to the shared virtual IP `to`, which its tenant named, for `reason`, and gives the claim back: due at
    /// once there, or due after `pause` where it was. Whether it was moved.
    ///
    /// # Errors
    /// If it may not be moved any more, or that could not be written; the claim is given back then, too.
    pub async fn overflow(
        &self,
        claim: Claim,
        (to, reason): (VipId, &str),
        pause: Duration,
        now: Timestamp,
    ) -> Result<bool, AdminError> {
        // Looked at again, since it may have been claimed for a while.
        let Some(claim) = self.unless_paused(claim).and_then(|claim| self.unless_swept(claim)) else {
            return Ok(false);
        };
        let from = claim.message.vip;
        let only: Vec<u16> = {
            let waiting = claim.record.recipients.iter().filter(|one| one.state == RecipientState::Waiting);
            waiting.map(|recipient| recipient.number).collect()
        };
        let id = claim.queue_id;
        // However this ends, also if nobody waits for its end any more.
        let _back = GivenBack { queue: self, claim: Some(claim), pause };
        if only.is_empty() {
            return Ok(false);
        }
        let actor = Actor::system(reason);
        let order =
            Order { actor: &actor, id, verb: Verb::Overflow { from, to }, only: &only, audited: Audited::Together };
        let changed = self.obey(order, now).await?;
        Ok(!changed.recipients.is_empty())
    }
}

/// A claim that is released when this goes.
struct GivenBack<'a> {
    queue: &'a Queue,
    claim: Option<Claim>,
    pause: Duration,
}

impl Drop for GivenBack<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.queue.release(claim, self.pause);
        }
    }
}
