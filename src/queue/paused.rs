//! Mail of SMTP accounts that are paused: it is held with them, and goes on with them.
//!
//! Recipe: whoever pauses an account makes [`Policy::paused`](super::Policy::paused) say so, and calls
//! [`Queue::pause_account`] until it succeeds, for that account and for those
//! [`Queue::found_paused`] names; [`Queue::resume_account`] after the end.
//! Easy to get wrong: an account has no lanes of its own. Until all of its mail is held, no mail of
//! its tenant is handed out, so that nothing is claimed, looked at and put back again and again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Queue;
use super::bulk::Done;
use super::filter::Filter;
use super::record::Claim;
use super::verbs::Verb;
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId};
use crate::records::AdminError;

/// A claim of a paused account is put back for so long, in memory; it is held before that is over.
const PUT_BACK: Duration = Duration::from_secs(1);

/// Tenants of whom nothing is handed out now, and the accounts whose mail is being held.
#[derive(Debug, Default)]
pub(super) struct Standstill(HashMap<TenantId, BTreeSet<SmtpAccountId>>);

impl Standstill {
    /// Whether nothing of the tenant is handed out.
    pub(super) fn includes(&self, tenant: TenantId) -> bool {
        !self.0.is_empty() && self.0.contains_key(&tenant)
    }
}

impl Queue {
    /// Holds all mail of a paused SMTP account; how much there was. Until this has succeeded nothing
    /// of its tenant is handed out: after an error, call it again.
    ///
    /// # Errors
    /// If the records could not be read or written.
    pub async fn pause_account(
        &self,
        actor: &Actor,
        (tenant, account): (TenantId, SmtpAccountId),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        self.standstill().0.entry(tenant).or_default().insert(account);
        let done = self.sweep_account(actor, (tenant, account), Verb::Pause, now).await?;
        self.go_on((tenant, account));
        Ok(done)
    }

    /// Lets mail go on that was held with an SMTP account; how much there was. What an operator holds
    /// stays held.
    ///
    /// # Errors
    /// If the records could not be read or written; call it again.
    pub async fn resume_account(
        &self,
        actor: &Actor,
        (tenant, account): (TenantId, SmtpAccountId),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        self.go_on((tenant, account));
        self.sweep_account(actor, (tenant, account), Verb::Resume, now).await
    }

    /// As [`Queue::resume_account`], whosever the account is; unless it is paused for another reason.
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
        let filter = Filter { account: Some(account), ..Filter::default() };
        self.sweep_all(actor, (Verb::Resume, &filter), now).await.map(|_| ())
    }

    /// Whether nothing of an SMTP account is sent now.
    pub fn is_paused(&self, account: SmtpAccountId) -> bool {
        (self.policy.paused)(account).is_some()
    }

    /// SMTP accounts of which mail came up for delivery although they are paused: it was on its way in,
    /// or was released by hand. Each is to be paused again.
    pub fn found_paused(&self) -> Vec<(TenantId, SmtpAccountId)> {
        let standstill = self.standstill();
        standstill.0.iter().flat_map(|(tenant, own)| own.iter().map(|account| (*tenant, *account))).collect()
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

    fn go_on(&self, (tenant, account): (TenantId, SmtpAccountId)) {
        let mut standstill = self.standstill();
        if let Some(own) = standstill.0.get_mut(&tenant) {
            own.remove(&account);
            if own.is_empty() {
                standstill.0.remove(&tenant);
            }
        }
        drop(standstill);
        self.nudge.notify_one();
    }

    /// The claim, unless its SMTP account is paused: then it is put back, and the account is named
    /// by [`Queue::found_paused`].
    pub(super) fn unless_paused(&self, claim: Claim) -> Option<Claim> {
        let Some(account) = claim.message.account else { return Some(claim) };
        if (self.policy.paused)(account).is_none() {
            return Some(claim);
        }
        self.standstill().0.entry(claim.message.tenant).or_default().insert(account);
        self.release(claim, PUT_BACK);
        None
    }
}
