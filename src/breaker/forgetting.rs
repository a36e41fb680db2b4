//! What is forgotten with a tenant that is deleted: counts, pauses, waivers and limits of its SMTP accounts.

use std::sync::Arc;

use super::{Breaker, LimitScope, PAUSE, WAIVER, WATCH, key, limits_key};
use crate::access::{Actor, Permission};
use crate::mail::{SmtpAccountId, TenantId};
use crate::records::{self, AdminError};
use crate::store::Batch;

impl Breaker {
    /// Forgets what is kept of SMTP accounts and of the tenant itself, which is deleted.
    ///
    /// # Errors
    /// If the actor may not.
    pub async fn forget_tenant(
        &self,
        actor: &Actor,
        (tenant, accounts): (TenantId, &[SmtpAccountId]),
    ) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        for account in accounts {
            for kind in [WATCH, PAUSE, WAIVER] {
                batch.remove(key(kind, *account));
            }
        }
        let is_own = |scope: &LimitScope| match scope {
            LimitScope::Class(_) => false,
            LimitScope::Tenant(other) => *other == tenant,
            LimitScope::Account(account) => accounts.contains(account),
        };
        let mut overrides = records::lock(&self.memory).overrides.clone();
        for set in overrides.iter().filter(|set| is_own(&set.scope)) {
            batch.remove(limits_key(&set.scope));
        }
        overrides.retain(|set| !is_own(&set.scope));
        let (memory, pauses, gone) = (Arc::clone(&self.memory), Arc::clone(&self.pauses), accounts.to_vec());
        turn.commit(batch, move || {
            let mut memory = records::lock(&memory);
            memory.overrides = overrides;
            for account in &gone {
                memory.watches.remove(account);
                memory.changed.remove(account);
                memory.waivers.remove(account);
                records::write(&pauses).remove(account);
            }
        })
        .await?;
        Ok(())
    }
}
