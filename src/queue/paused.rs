//! Mail of SMTP accounts that are paused: it is held with them, and goes on with them.
//!
//! Recipe: whoever pauses an account makes [`Policy::paused`](super::Policy::paused) say so, and calls
//! [`Queue::pause_account`] until it succeeds; [`Queue::put_found_aside`] now and then; after the end
//! [`Queue::resume_account`]. What comes in meanwhile is stored as paused.
//! Easy to get wrong: an account has no lanes of its own, so its mail lies between that of others and is put
//! aside message by message; and whatever is marked as paused must be seen by the walk that lets it go on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::RwLockReadGuard;

use super::Queue;
use super::bulk::{Counts, Done};
use super::filter::Filter;
use super::record::Claim;
use super::verbs::Verb;
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{QueueId, SmtpAccountId, TenantId};
use crate::records::AdminError;
use crate::store::Batch;

/// A claim of a paused account is put back for so long, in memory; it is held before that is over.
const PUT_BACK: Duration = Duration::from_secs(1);
/// Messages of one account noted at their claims, at most. With more nothing of its tenant is handed out
/// until the queue was walked through, so that not all of it is claimed and put back again and again.
const FOUND_MAX: usize = 5_000;
/// Messages put aside at a time, so that they share syncs.
const AT_ONCE: usize = 64;

/// Whose account, and which.
type Of = (TenantId, SmtpAccountId);

/// What came up for delivery although its SMTP account is paused.
#[derive(Debug, Default)]
pub(super) struct Found {
    messages: HashMap<Of, HashSet<QueueId>>,
    /// Accounts with more of it than was noted.
    crowded: BTreeSet<Of>,
}

impl Found {
    /// Whether nothing of the tenant is handed out.
    pub(super) fn stops(&self, tenant: TenantId) -> bool {
        let own = (tenant, SmtpAccountId(0))..=(tenant, SmtpAccountId(u64::MAX));
        !self.crowded.is_empty() && self.crowded.range(own).next().is_some()
    }

    fn note(&mut self, of: Of, id: QueueId) {
        let messages = self.messages.entry(of).or_default();
        if messages.len() < FOUND_MAX {
            messages.insert(id);
        } else {
            self.crowded.insert(of);
        }
    }

    /// What was noted; whoever is crowded stays so and is among it each time, since nothing of his comes up.
    fn take(&mut self) -> HashMap<Of, HashSet<QueueId>> {
        let mut found = std::mem::take(&mut self.messages);
        for of in &self.crowded {
            found.entry(*of).or_default();
        }
        found
    }

    fn forget(&mut self, of: Of) {
        self.messages.remove(&of);
        self.crowded.remove(&of);
    }
}

impl Queue {
    /// Holds all mail of a paused SMTP account; how much there was. None of it is handed out meanwhile; after
    /// an error, call it again.
    ///
    /// # Errors
    /// If the records could not be read or written.
    pub async fn pause_account(
        &self,
        actor: &Actor,
        (tenant, account): (TenantId, SmtpAccountId),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        let done = self.sweep_account(actor, (tenant, account), Verb::Pause, now).await?;
        self.go_on((tenant, account));
        Ok(done)
    }

    /// Lets mail go on that was held with an SMTP account, unless that is paused for another reason; how much
    /// there was. What an operator holds stays held.
    ///
    /// # Errors
    /// If the records could not be read or written; call it again.
    pub async fn resume_account(
        &self,
        actor: &Actor,
        (tenant, account): (TenantId, SmtpAccountId),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        if self.is_paused(account) {
            return Ok(Done::default());
        }
        self.pausings_ended().await?;
        self.go_on((tenant, account));
        self.sweep_account(actor, (tenant, account), Verb::Resume, now).await
    }

    /// As [`Queue::resume_account`], whosever the account is.
    ///
    /// # Errors
    /// If the records could not be read or written; call it again.
    pub async fn resume_whole_account(
        &self,
        actor: &Actor,
        account: SmtpAccountId,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        if self.is_paused(account) {
            return Ok(());
        }
        self.pausings_ended().await?;
        let filter = Filter { account: Some(account), ..Filter::default() };
        self.sweep_all(actor, (Verb::Resume, &filter), now).await.map(|_| ())
    }

    /// Whether nothing of an SMTP account is sent now.
    pub fn is_paused(&self, account: SmtpAccountId) -> bool {
        (self.policy.paused)(account).is_some()
    }

    /// Holds mail that came up for delivery although its SMTP account is paused: it was queued before that,
    /// or was released by hand. Call it every now and then. One account's failure keeps no other from its turn.
    ///
    /// # Errors
    /// The first, if the records could not be read or written; what is left comes up again.
    pub async fn put_found_aside(&self, actor: &Actor, now: Timestamp) -> Result<(), AdminError> {
        let found = self.found().take();
        let mut all = Ok(());
        for (of, messages) in found {
            let put = if !self.is_paused(of.1) {
                self.go_on(of);
                Ok(())
            } else if self.found().crowded.contains(&of) {
                self.pause_account(actor, of, now).await.map(drop)
            } else {
                self.put_aside(actor, messages, now).await
            };
            all = all.and(put);
        }
        all
    }

    async fn put_aside(&self, actor: &Actor, messages: HashSet<QueueId>, now: Timestamp) -> Result<(), AdminError> {
        let counts = Counts::default();
        let apply = |id| self.apply((actor, Verb::Pause), id, Vec::new(), now);
        let mut put = stream::iter(messages).map(apply).buffer_unordered(AT_ONCE);
        while let Some(result) = put.next().await {
            counts.note(result)?;
        }
        Ok(())
    }

    /// While this is held, mail of the account may be marked as paused, up to the end of that commit;
    /// `None` if the account is not paused.
    pub(super) async fn pausing(&self, account: Option<SmtpAccountId>) -> Option<RwLockReadGuard<'_, ()>> {
        let account = account.filter(|account| self.is_paused(*account))?;
        let held = self.pausings.read().await;
        self.is_paused(account).then_some(held)
    }

    /// Waits until everything is stored that was begun to be marked as paused before the pause ended, so that
    /// a walk sees it.
    async fn pausings_ended(&self) -> Result<(), AdminError> {
        drop(self.pausings.write().await);
        // Whoever went away may have left a batch with the committer: once this empty one is through, so is that.
        self.store.commit(Batch::new()).await?;
        Ok(())
    }

    async fn sweep_account(
        &self,
        actor: &Actor,
        (tenant, account): (TenantId, SmtpAccountId),
        verb: Verb,
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        let filter = Filter { tenant: Some(tenant), account: Some(account), ..Filter::default() };
        self.sweep_all(actor, (verb, &filter), now).await
    }

    /// To the end of the queue; an error if something is left that has to be done again.
    async fn sweep_all(&self, actor: &Actor, of: (Verb, &Filter), now: Timestamp) -> Result<Done, AdminError> {
        let done = self.sweep(actor, of, now).await?;
        match done.failed {
            0 => Ok(done),
            failed => Err(AdminError::Invalid(format!("{failed} messages were changed by somebody else meanwhile"))),
        }
    }

    fn go_on(&self, of: Of) {
        self.found().forget(of);
        self.nudge.notify_one();
    }

    /// The claim, unless its SMTP account is paused: then it is put back, to be held by
    /// [`Queue::put_found_aside`].
    pub(super) fn unless_paused(&self, claim: Claim) -> Option<Claim> {
        let Some(account) = claim.message.account else { return Some(claim) };
        if !self.is_paused(account) {
            return Some(claim);
        }
        self.found().note((claim.message.tenant, account), claim.queue_id);
        self.release(claim, PUT_BACK);
        None
    }
}
