//! The removal itself: each room is asked to forget the tenant, the one that names it last.
//!
//! Every step does nothing when it is repeated, so a removal that was interrupted is begun anew. Easy to get
//! wrong: what is left is looked for in each room and never taken from a list made before.

use std::sync::Arc;

use super::{Tenancy, key, own_actor};
use crate::access::Actor;
use crate::delivery::Scope;
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId, VipId};
use crate::records::{self, AdminError};
use crate::routing::RouteScope;
use crate::store::Batch;
use crate::vips::Owner;

impl Tenancy {
    /// Removes a tenant whose grace is over, unless its mail is still owed; whether it did. `removing` is held.
    pub(super) async fn remove(&self, tenant: TenantId, now: Timestamp) -> Result<bool, AdminError> {
        let queue = Arc::clone(&self.parts.queue);
        let owed = tokio::task::spawn_blocking(move || queue.has_mail_of(tenant)).await;
        if owed.map_err(|error| AdminError::Invalid(error.to_string()))?? {
            return Ok(false);
        }
        let actor = &own_actor();
        self.remove_people(actor, tenant, now).await?;
        self.remove_means(actor, tenant, now).await?;
        self.parts.suppression.forget_tenant(actor, tenant).await?;
        self.parts.operations.forget_tenant(actor, tenant).await?;
        let all = |of: TenantId| (of == tenant).then_some(Timestamp(u64::MAX));
        self.parts.queue.forget_histories_of(&all, Timestamp(now.0.saturating_add(1))).await?;
        for forget in &self.parts.further {
            forget(tenant).await?;
        }
        if self.parts.accounts.tenant(tenant).is_some() {
            self.parts.accounts.remove_tenant(actor, tenant, now).await?;
        }
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        batch.remove(key(tenant));
        let all = Arc::clone(&self.all);
        turn.commit(batch, move || drop(records::write(&all).remove(&tenant))).await?;
        Ok(true)
    }

    async fn remove_people(&self, actor: &Actor, tenant: TenantId, now: Timestamp) -> Result<(), AdminError> {
        let (people, webhooks) = (&self.parts.people, &self.parts.webhooks);
        for key in people.keys(actor, Some(tenant))? {
            people.remove_key(actor, key.id, now).await?;
        }
        for user in people.users(actor, Some(tenant))? {
            people.remove_user(actor, user.id, now).await?;
        }
        people.forget_tenant(actor, tenant).await?;
        for webhook in webhooks.list(actor, tenant)? {
            webhooks.remove(actor, (tenant, webhook.id), now).await?;
        }
        Ok(())
    }

    /// What it sends with.
    async fn remove_means(&self, actor: &Actor, tenant: TenantId, now: Timestamp) -> Result<(), AdminError> {
        let parts = &self.parts;
        for domain in parts.domains.list(actor, tenant)? {
            parts.domains.remove(actor, tenant, &domain.domain, now).await?;
        }
        let accounts: Vec<SmtpAccountId> =
            parts.accounts.smtp_accounts(actor, tenant)?.into_iter().map(|account| account.id).collect();
        parts.breaker.forget_tenant(actor, (tenant, &accounts)).await?;
        parts.queue.forget_sweeps_of((tenant, &accounts), now).await?;
        let vips = parts.vips.all();
        let vips: Vec<VipId> = vips.iter().filter(|vip| vip.owner == Owner::Tenant(tenant)).map(|vip| vip.id).collect();
        let is_own = |scope: &Scope| match scope {
            Scope::Lane(lane) => lane.tenant == tenant,
            Scope::Tenant(own) => *own == tenant,
            Scope::Account(account) => accounts.contains(account),
            Scope::Vip(vip) => vips.contains(vip),
            Scope::All | Scope::Domain(_) | Scope::Site(_) => false,
        };
        parts.delivery.forget(actor, &is_own, now).await?;
        for account in accounts {
            parts.accounts.remove_smtp_account(actor, account, now).await?;
        }
        for route in parts.routes.list(actor)?.into_iter().filter(|route| route.scope == RouteScope::Tenant(tenant)) {
            parts.routes.remove(actor, route.id, now).await?;
        }
        for vip in vips {
            parts.vips.remove(actor, vip, now).await?;
        }
        Ok(())
    }
}
