//! What an operator does to tenants. Each act is one conditional batch with its audit event.
//!
//! It refuses to know what other rooms keep for a tenant; whoever removes one asks them first.

use std::sync::Arc;

use super::stored::{stored_tenant, tenant_bytes};
use super::{Accounts, DelayNotices, Limits, MoveToShared, Sending, Tenant, limits, tenant_key, tenant_name_key};
use crate::access::{Actor, Permission};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, codec};
use crate::vips::Vip;

/// Characters of a region, at most.
pub const REGION_CHARACTERS_MAX: usize = 60;
/// Days of a tenant's own retention, at most; the instance's own end counts if it is earlier.
pub const RETENTION_DAYS_MAX: u16 = 3650;
/// Octets of a tenant's name, at most: a DNS label, since names end up in logins and host names.
const NAME_OCTETS_MAX: usize = 63;

impl Accounts {
    /// Makes a tenant without limits, virtual IP or SMTP account.
    pub async fn add_tenant(&self, actor: &Actor, name: &str, now: Timestamp) -> Result<Tenant, AdminError> {
        actor.require(Permission::ManageInstance)?;
        check_name(name)?;
        let tenant = Tenant {
            id: TenantId::random(),
            name: name.to_owned(),
            sending: Sending::Allowed,
            limits: Limits::default(),
            delay_notices: DelayNotices::WhenAsked,
            default_vip: None,
            move_to_shared: MoveToShared::Forbidden,
            created: now,
            region: String::new(),
            retention_days: None,
        };
        let turn = self.desk.turn().await;
        if self.tenant_named(name).is_some() {
            return Err(AdminError::Exists(format!("tenant {name}")));
        }
        let mut batch = Batch::new();
        batch.if_absent(tenant_key(tenant.id)).set(tenant_key(tenant.id), tenant_bytes(&tenant));
        batch.if_absent(tenant_name_key(name)).set(tenant_name_key(name), codec::encode(&tenant.id));
        let act = Act::new("tenant.add", format!("{name} {}", tenant.id)).of(tenant.id);
        records::record(&mut batch, actor, act, now);
        let (memory, added) = (Arc::clone(&self.memory), tenant.clone());
        turn.commit(batch, move || records::write(&memory.records).put_tenant(added)).await?;
        Ok(tenant)
    }

    /// Suspends a tenant's sending, or takes the suspension back.
    pub async fn set_sending(
        &self,
        actor: &Actor,
        id: TenantId,
        sending: Sending,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        let act = match sending {
            Sending::Allowed => "tenant.resume",
            Sending::Suspended => "tenant.suspend",
        };
        self.change_tenant((actor, now), id, act, |tenant| tenant.sending = sending).await
    }

    /// Sets how many messages a tenant may submit.
    pub async fn set_tenant_limits(
        &self,
        actor: &Actor,
        id: TenantId,
        limits: Limits,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        self.change_tenant((actor, now), id, "tenant.limits", |tenant| tenant.limits = limits).await
    }

    /// Sets whether delay notices go to senders who did not ask.
    pub async fn set_delay_notices(
        &self,
        actor: &Actor,
        id: TenantId,
        delay_notices: DelayNotices,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        self.change_tenant((actor, now), id, "tenant.delay-notices", |tenant| tenant.delay_notices = delay_notices)
            .await
    }

    /// Permits or forbids moving a tenant's waiting mail to a shared virtual IP.
    pub async fn set_move_to_shared(
        &self,
        actor: &Actor,
        id: TenantId,
        move_to_shared: MoveToShared,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        self.change_tenant((actor, now), id, "tenant.move-to-shared", |tenant| tenant.move_to_shared = move_to_shared)
            .await
    }

    /// Chooses the virtual IP for mail that did not come by SMTP; `None` leaves it to
    /// [`crate::vips::Vips::default_for`].
    pub async fn set_default_vip(
        &self,
        actor: &Actor,
        id: TenantId,
        vip: Option<&Vip>,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        if let Some(foreign) = vip.filter(|vip| !vip.serves(id)) {
            return Err(AdminError::Invalid(format!("virtual IP {} does not serve this tenant", foreign.id)));
        }
        let chosen = vip.map(|vip| vip.id);
        self.change_tenant((actor, now), id, "tenant.default-vip", |tenant| tenant.default_vip = chosen).await
    }

    /// Sets where a tenant's data may be kept, in words.
    pub async fn set_region(
        &self,
        actor: &Actor,
        id: TenantId,
        region: &str,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        if region.chars().count() > REGION_CHARACTERS_MAX || region.chars().any(char::is_control) {
            return Err(AdminError::Invalid(format!(
                "a region has at most {REGION_CHARACTERS_MAX} printable characters"
            )));
        }
        self.change_tenant((actor, now), id, "tenant.region", |tenant| region.clone_into(&mut tenant.region)).await
    }

    /// Sets after how many days what is kept of a tenant's finished messages is forgotten; `None` is when the
    /// instance does it.
    pub async fn set_retention(
        &self,
        actor: &Actor,
        id: TenantId,
        days: Option<u16>,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        if days.is_some_and(|days| !(1..=RETENTION_DAYS_MAX).contains(&days)) {
            return Err(AdminError::Invalid(format!("a retention is 1 to {RETENTION_DAYS_MAX} days")));
        }
        self.change_tenant((actor, now), id, "tenant.retention", |tenant| tenant.retention_days = days).await
    }

    /// Tenants with a retention of their own, and its days.
    pub fn retentions(&self) -> Vec<(TenantId, u16)> {
        let known = records::read(&self.memory.records);
        known.tenants.values().filter_map(|tenant| Some((tenant.id, tenant.retention_days?))).collect()
    }

    /// Removes an empty tenant. `held` are the words for what other rooms still keep for it
    /// (virtual IPs, domains, queued mail); the caller has asked them.
    pub async fn remove_tenant(
        &self,
        actor: &Actor,
        id: TenantId,
        held: &[String],
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let tenant = self.tenant(id).ok_or_else(|| AdminError::Missing(format!("tenant {id}")))?;
        let accounts = self.accounts_of(id).len();
        let mut held = held.to_vec();
        if accounts > 0 {
            held.push(format!("{accounts} SMTP accounts"));
        }
        if !held.is_empty() {
            return Err(AdminError::Invalid(format!("tenant {} still has {}", tenant.name, held.join(", "))));
        }
        let mut batch = Batch::new();
        batch.if_equals(tenant_key(id), stored_tenant(&**self.desk.store(), id)?).remove(tenant_key(id));
        batch.remove(tenant_name_key(&tenant.name)).remove(limits::key(limits::Counted::Tenant(id)));
        records::audit(&mut batch, actor, "tenant.remove", format!("{} {id}", tenant.name), now);
        let memory = Arc::clone(&self.memory);
        let name = tenant.name;
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            known.tenants.remove(&id);
            known.tenant_names.remove(&name);
            records::lock(&memory.counters).forget(limits::Counted::Tenant(id));
            records::lock(&memory.logins).forget(id);
        })
        .await?;
        Ok(())
    }

    async fn change_tenant(
        &self,
        (actor, now): (&Actor, Timestamp),
        id: TenantId,
        act: &str,
        change: impl FnOnce(&mut Tenant) + Send,
    ) -> Result<Tenant, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let before = self.tenant(id).ok_or_else(|| AdminError::Missing(format!("tenant {id}")))?;
        let mut tenant = before.clone();
        change(&mut tenant);
        let mut batch = Batch::new();
        let stored = stored_tenant(&**self.desk.store(), id)?;
        batch.if_equals(tenant_key(id), stored).set(tenant_key(id), tenant_bytes(&tenant));
        let act = Act::new(act, format!("{} {id}", tenant.name)).of(id).changes(facts(&before), facts(&tenant));
        records::record(&mut batch, actor, act, now);
        let (memory, changed) = (Arc::clone(&self.memory), tenant.clone());
        turn.commit(batch, move || records::write(&memory.records).put_tenant(changed)).await?;
        Ok(tenant)
    }
}

/// What an audit entry may tell of a tenant before and after.
fn facts(tenant: &Tenant) -> Vec<(&'static str, String)> {
    vec![
        ("sending", format!("{:?}", tenant.sending)),
        ("limits", tenant.limits.words()),
        ("delay_notices", format!("{:?}", tenant.delay_notices)),
        ("move_to_shared", format!("{:?}", tenant.move_to_shared)),
        ("region", tenant.region.clone()),
        ("retention_days", tenant.retention_days.map_or_else(|| "as the instance".to_owned(), |days| days.to_string())),
        ("default_vip", tenant.default_vip.map_or_else(|| "none".to_owned(), |id| id.to_string())),
    ]
}

fn check_name(name: &str) -> Result<(), AdminError> {
    let is_sound = (1..=NAME_OCTETS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_sound {
        return Ok(());
    }
    Err(AdminError::Invalid(format!(
        "a tenant's name has 1 to {NAME_OCTETS_MAX} lower-case letters, digits or inner hyphens, like shop-2"
    )))
}
