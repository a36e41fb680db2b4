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
use crate::vips::{Owner, Vip};

/// Characters of a region, at most.
pub const REGION_CHARACTERS_MAX: usize = 60;
/// Days of a tenant's own retention, at most; the instance's own end counts if it is earlier.
pub const RETENTION_DAYS_MAX: u16 = 3650;
/// Virtual IPs that a tenant names for what a warm-up has no room for, at most.
pub const OVERFLOW_VIPS_MAX: usize = 16;
/// Octets of a tenant's name, at most: a DNS label, since names end up in logins and host names.
const NAME_OCTETS_MAX: usize = 63;

/// What of a tenant is to change; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct TenantChange {
    /// Stop or resume taking its mail.
    pub sending: Option<Sending>,
    /// How many messages it may submit.
    pub limits: Option<Limits>,
    /// Whether delay notices go to senders who did not ask.
    pub delay_notices: Option<DelayNotices>,
    /// Whether its waiting mail may be moved to a shared virtual IP.
    pub move_to_shared: Option<MoveToShared>,
    /// Where its data may be kept, in words of at most [`REGION_CHARACTERS_MAX`] characters.
    pub region: Option<String>,
    /// After how many days what is kept of its finished messages is forgotten, 1 to [`RETENTION_DAYS_MAX`];
    /// `Some(None)` is when the instance does it.
    pub retention_days: Option<Option<u16>>,
    /// The virtual IP for mail that did not come by SMTP; `Some(None)` leaves it to
    /// [`crate::vips::Vips::default_for`].
    pub default_vip: Option<Option<Vip>>,
    /// The shared virtual IPs, at most [`OVERFLOW_VIPS_MAX`], that mail moves to by itself which a warm-up has no room
    /// for; an empty list ends that.
    pub overflow_to: Option<Vec<Vip>>,
}

impl TenantChange {
    fn check(&self, id: TenantId) -> Result<(), AdminError> {
        let is_unsound =
            |region: &String| region.chars().count() > REGION_CHARACTERS_MAX || region.chars().any(char::is_control);
        let region = match self.region.as_ref().is_some_and(is_unsound) {
            true => Err(AdminError::field(
                "region",
                format!("a region has at most {REGION_CHARACTERS_MAX} printable characters"),
            )),
            false => Ok(()),
        };
        let days = self.retention_days.flatten().filter(|days| !(1..=RETENTION_DAYS_MAX).contains(days));
        let retention = match days {
            Some(_) => {
                Err(AdminError::field("retention_days", format!("a retention is 1 to {RETENTION_DAYS_MAX} days")))
            }
            None => Ok(()),
        };
        let vip = match self.default_vip.iter().flatten().find(|vip| !vip.serves(id)) {
            Some(foreign) => {
                let detail = format!("virtual IP {} does not serve this tenant", foreign.id);
                Err(AdminError::field("default_vip", detail))
            }
            None => Ok(()),
        };
        records::all_of([region, retention, vip, self.check_overflow()])
    }

    /// Overflow only ever goes to virtual IPs that every tenant may use.
    fn check_overflow(&self) -> Result<(), AdminError> {
        let field = "warm_up_overflow";
        let named = self.overflow_to.as_deref().unwrap_or_default();
        if let Some(own) = named.iter().find(|vip| vip.owner != Owner::Shared) {
            return Err(AdminError::field(field, format!("virtual IP {} is not shared", own.id)));
        }
        if named.len() > OVERFLOW_VIPS_MAX {
            return Err(AdminError::field(field, format!("at most {OVERFLOW_VIPS_MAX} virtual IPs can be named")));
        }
        Ok(())
    }

    /// One step for each field that is given, with the name of the act.
    fn steps(self) -> Vec<(&'static str, Self)> {
        let Self { sending, limits, delay_notices, move_to_shared, region, retention_days, .. } = self;
        let Self { default_vip, overflow_to, .. } = self;
        let sending_act = if sending == Some(Sending::Suspended) { "tenant.suspend" } else { "tenant.resume" };
        let none = Self::default;
        let steps = [
            sending.map(|sending| (sending_act, Self { sending: Some(sending), ..none() })),
            limits.map(|limits| ("tenant.limits", Self { limits: Some(limits), ..none() })),
            delay_notices.map(|notices| ("tenant.delay-notices", Self { delay_notices: Some(notices), ..none() })),
            move_to_shared.map(|may| ("tenant.move-to-shared", Self { move_to_shared: Some(may), ..none() })),
            region.map(|region| ("tenant.region", Self { region: Some(region), ..none() })),
            retention_days.map(|days| ("tenant.retention", Self { retention_days: Some(days), ..none() })),
            default_vip.map(|vip| ("tenant.default-vip", Self { default_vip: Some(vip), ..none() })),
            overflow_to.map(|vips| ("tenant.warm-up-overflow", Self { overflow_to: Some(vips), ..none() })),
        ];
        steps.into_iter().flatten().collect()
    }

    fn apply(self, tenant: &mut Tenant) {
        let Self { sending, limits, delay_notices, move_to_shared, region, retention_days, .. } = self;
        let Self { default_vip, overflow_to, .. } = self;
        tenant.sending = sending.unwrap_or(tenant.sending);
        tenant.limits = limits.unwrap_or(tenant.limits);
        tenant.delay_notices = delay_notices.unwrap_or(tenant.delay_notices);
        tenant.move_to_shared = move_to_shared.unwrap_or(tenant.move_to_shared);
        tenant.retention_days = retention_days.unwrap_or(tenant.retention_days);
        if let Some(region) = region {
            tenant.region = region;
        }
        if let Some(vip) = default_vip {
            tenant.default_vip = vip.map(|vip| vip.id);
        }
        if let Some(vips) = overflow_to {
            tenant.overflow_to = vips.into_iter().map(|vip| vip.id).collect();
            tenant.overflow_to.sort_unstable();
            tenant.overflow_to.dedup();
        }
    }
}

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
            overflow_to: Vec::new(),
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
    ///
    /// # Errors
    /// As [`Accounts::change_tenant`].
    pub async fn set_sending(
        &self,
        actor: &Actor,
        id: TenantId,
        sending: Sending,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        self.change_tenant(actor, id, TenantChange { sending: Some(sending), ..TenantChange::default() }, now).await
    }

    /// Changes a tenant: all that is given, or, if any of it is not acceptable, nothing. Each field that is given is
    /// an act of its own in the audit log.
    ///
    /// # Errors
    /// If the actor may not, there is no such tenant, or a value is not acceptable.
    pub async fn change_tenant(
        &self,
        actor: &Actor,
        id: TenantId,
        change: TenantChange,
        now: Timestamp,
    ) -> Result<Tenant, AdminError> {
        actor.require(Permission::ManageInstance)?;
        change.check(id)?;
        let turn = self.desk.turn().await;
        let mut tenant = self.tenant(id).ok_or_else(|| AdminError::Missing(format!("tenant {id}")))?;
        let (steps, mut batch) = (change.steps(), Batch::new());
        if steps.is_empty() {
            return Ok(tenant);
        }
        for (act, step) in steps {
            let before = facts(&tenant);
            step.apply(&mut tenant);
            let act = Act::new(act, format!("{} {id}", tenant.name)).of(id).changes(before, facts(&tenant));
            records::record(&mut batch, actor, act, now);
        }
        let stored = stored_tenant(&**self.desk.store(), id)?;
        batch.if_equals(tenant_key(id), stored).set(tenant_key(id), tenant_bytes(&tenant));
        let (memory, changed) = (Arc::clone(&self.memory), tenant.clone());
        turn.commit(batch, move || records::write(&memory.records).put_tenant(changed)).await?;
        Ok(tenant)
    }

    /// Tenants with a retention of their own, and its days.
    pub fn retentions(&self) -> Vec<(TenantId, u16)> {
        let known = records::read(&self.memory.records);
        known.tenants.values().filter_map(|tenant| Some((tenant.id, tenant.retention_days?))).collect()
    }

    /// Removes a tenant without SMTP accounts; the caller has seen to what other rooms keep for it.
    pub async fn remove_tenant(&self, actor: &Actor, id: TenantId, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let tenant = self.tenant(id).ok_or_else(|| AdminError::Missing(format!("tenant {id}")))?;
        let accounts = self.accounts_of(id).len();
        if accounts > 0 {
            return Err(AdminError::Invalid(format!("tenant {} still has {accounts} SMTP accounts", tenant.name)));
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
        ("warm_up_overflow", tenant.overflow_to.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
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
    Err(AdminError::field(
        "name",
        format!("a tenant's name has 1 to {NAME_OCTETS_MAX} lower-case letters, digits or inner hyphens, like shop-2"),
    ))
}
