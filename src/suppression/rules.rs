//! When what happens to mail puts a recipient on the list: how many hard bounces it takes, on whose list, and for
//! how long. One set per tenant; without one the usual rules hold.
//!
//! Easy to get wrong: rules say what is done from now on; entries that are there already keep what they were
//! given.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Reason, Suppression, require};
use crate::access::{Action, Actor};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, Key, StoreError, codec, prefix};

/// Hard bounces that may be asked for before an address is stopped.
pub const HARD_BOUNCES_MAX: u8 = 3;
/// Days an entry may be good for.
pub const DAYS_MAX: u32 = 3_650;

/// Whose list an entry goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The tenant's: none of its mail goes there any more.
    #[default]
    Tenant,
    /// The SMTP account's that sent the message; the tenant's, if none did.
    Account,
}

/// The rules of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Hard bounces before an address is stopped (1 to 3; 1).
    pub hard_bounces: u8,
    /// Whose list (the tenant's).
    pub scope: Scope,
    /// Days an entry for hard bounces is good for; 0 for ever.
    pub hard_bounce_days: u32,
    /// The same for complaints.
    pub complaint_days: u32,
    /// The same for those who unsubscribed.
    pub unsubscribe_days: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { hard_bounces: 1, scope: Scope::Tenant, hard_bounce_days: 0, complaint_days: 0, unsubscribe_days: 0 }
    }
}

impl Rules {
    /// When an entry made now lapses.
    pub(super) fn expires(&self, reason: Reason, now: Timestamp) -> Option<Timestamp> {
        let days = match reason {
            Reason::HardBounce => self.hard_bounce_days,
            Reason::Complaint => self.complaint_days,
            Reason::Unsubscribe => self.unsubscribe_days,
            Reason::Manual | Reason::Import => 0,
        };
        (days > 0).then(|| now.plus(Duration::from_secs(u64::from(days) * 24 * 3600)))
    }

    fn check(&self) -> Result<(), AdminError> {
        let mut checks = Vec::new();
        if !(1..=HARD_BOUNCES_MAX).contains(&self.hard_bounces) {
            let detail = format!("hard bounces are 1 to {HARD_BOUNCES_MAX}, not {}", self.hard_bounces);
            checks.push(Err(AdminError::field("hard_bounces", detail)));
        }
        for (field, what, days) in [
            ("hard_bounce_days", "hard bounces", self.hard_bounce_days),
            ("complaint_days", "complaints", self.complaint_days),
            ("unsubscribe_days", "those who unsubscribed", self.unsubscribe_days),
        ] {
            if days > DAYS_MAX {
                let detail = format!("entries for {what} are good for {DAYS_MAX} days at most (0 for ever)");
                checks.push(Err(AdminError::field(field, detail)));
            }
        }
        records::all_of(checks)
    }
}

impl Suppression {
    /// A tenant's rules.
    ///
    /// # Errors
    /// If the actor may not, or they cannot be read.
    pub fn rules(&self, actor: &Actor, tenant: TenantId) -> Result<Rules, AdminError> {
        require(actor, tenant.into(), Action::Read)?;
        Ok(self.rules_of(tenant)?)
    }

    pub(super) fn rules_of(&self, tenant: TenantId) -> Result<Rules, StoreError> {
        let bytes = self.desk.store().get(&key(tenant))?;
        bytes.map_or_else(|| Ok(Rules::default()), |bytes| codec::decode(&bytes))
    }

    /// Sets them.
    ///
    /// # Errors
    /// If a number is out of its range, or the actor may not.
    pub async fn set_rules(
        &self,
        actor: &Actor,
        tenant: TenantId,
        rules: Rules,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        require(actor, tenant.into(), Action::Write)?;
        rules.check()?;
        let turn = self.desk.turn().await;
        let before = self.rules_of(tenant)?;
        let mut batch = Batch::new();
        batch.set(key(tenant), codec::encode(&rules));
        let act = Act::new("suppression.rules", format!("tenant {tenant}")).of(tenant);
        records::record(&mut batch, actor, act.changes(facts(&before), facts(&rules)), now);
        turn.commit(batch, || ()).await?;
        Ok(())
    }
}

fn facts(rules: &Rules) -> Vec<(&'static str, String)> {
    vec![
        ("hard_bounces", rules.hard_bounces.to_string()),
        ("scope", format!("{:?}", rules.scope)),
        ("hard_bounce_days", rules.hard_bounce_days.to_string()),
        ("complaint_days", rules.complaint_days.to_string()),
        ("unsubscribe_days", rules.unsubscribe_days.to_string()),
    ]
}

/// Beside the lists of the tenant: `S tenant r`.
pub(super) fn key(tenant: TenantId) -> Key {
    [&[prefix::SUPPRESSION][..], &tenant.0.to_be_bytes(), b"r"].concat()
}
