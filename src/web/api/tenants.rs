//! `/tenants`: who sends through this instance, and who leaves it.
//!
//! Easy to get wrong: removing a tenant asks every room that keeps something for it first; its mail
//! would otherwise be owed for nobody.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, off_workers, tenant_called, vip_called};
use crate::access::{Actor, Permission, Resource};
use crate::accounts::{DelayNotices, Limits, MoveToShared, Sending, Tenant, TenantChange};
use crate::ext::Timestamp;
use crate::records::AdminError;
use crate::tenancy::{Deletion, GRACE};
use crate::vips::Owner;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantJson {
    /// Its id.
    pub id: String,
    /// Its short name.
    pub name: String,
    /// Whether its mail is taken.
    pub suspended: bool,
    /// Messages it may hand in.
    pub limits: LimitsJson,
    /// Messages it handed in within the last hour and day.
    pub used: LimitsJson,
    /// Whether delay notices go to senders who did not ask for them.
    pub delay_notices_always: bool,
    /// Whether its waiting mail may be moved to a shared virtual IP.
    pub may_move_to_shared: bool,
    /// Ids of the shared virtual IPs that mail moves to by itself which the warm-up of its virtual IP has no room for,
    /// where the SPF record of the return-path's domain permits that.
    #[serde(default)]
    pub warm_up_overflow: Vec<String>,
    /// Its chosen virtual IP for mail that did not come by SMTP.
    pub default_vip: Option<String>,
    /// When it was made.
    pub created: String,
    /// Where its data may be kept, in the operator's words.
    #[serde(default)]
    pub region: String,
    /// After how many days what is kept of its finished messages is forgotten; as the instance does if absent.
    #[serde(default)]
    pub retention_days: Option<u16>,
    /// Its deletion, if one was asked for.
    #[serde(default)]
    pub deletion: Option<DeletionJson>,
}

/// A deletion of a tenant that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletionJson {
    /// When it was asked for.
    pub asked: String,
    /// When its grace ends, and with it the time to take it back.
    pub due: String,
    /// Who asked, as the audit log names it.
    pub by: String,
}

/// A deletion to be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewDeletionJson {
    /// Days within which it may be taken back, 0 to 90; 7 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 90)]
    pub grace_days: Option<u16>,
}

/// Numbers of messages per hour and day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsJson {
    /// In an hour; absent or null: no limit.
    #[serde(default)]
    pub hourly: Option<u64>,
    /// In a day; absent or null: no limit.
    #[serde(default)]
    pub daily: Option<u64>,
}

impl From<Limits> for LimitsJson {
    fn from(limits: Limits) -> Self {
        Self { hourly: limits.hourly_max, daily: limits.daily_max }
    }
}

impl From<LimitsJson> for Limits {
    fn from(limits: LimitsJson) -> Self {
        Self { hourly_max: limits.hourly, daily_max: limits.daily }
    }
}

/// A tenant to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenantJson {
    /// Its short name: lower-case letters, digits, `-`.
    pub name: String,
}

/// What is to change: all of it, or nothing if something is wrong; each given field is an audit event of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantChangeJson {
    /// Stop or resume taking its mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// Both limits anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsJson>,
    /// Delay notices to senders who did not ask for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_notices_always: Option<bool>,
    /// Permit moving its waiting mail to a shared virtual IP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_move_to_shared: Option<bool>,
    /// Addresses or ids of the shared virtual IPs, 16 at most, that mail moves to by itself which the warm-up of its
    /// virtual IP has no room for, where the SPF record of the return-path's domain permits that; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 16)]
    pub warm_up_overflow: Option<Vec<String>>,
    /// Address or id of its virtual IP for mail that does not come by SMTP; empty for none chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_vip: Option<String>,
    /// Where its data may be kept, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Days after which what is kept of its finished messages is forgotten; 0 is when the instance does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u16>,
}

fn deletion_json(deletion: Deletion) -> DeletionJson {
    DeletionJson { asked: deletion.asked.rfc3339(), due: deletion.due.rfc3339(), by: deletion.by }
}

fn json(parts: &Parts, actor: &Actor, tenant: Tenant) -> TenantJson {
    let (hourly, daily) = parts.accounts.tenant_usage(tenant.id, Timestamp::now());
    TenantJson {
        id: tenant.id.to_string(),
        name: tenant.name,
        suspended: tenant.sending == Sending::Suspended,
        limits: tenant.limits.into(),
        used: LimitsJson { hourly: Some(hourly), daily: Some(daily) },
        delay_notices_always: tenant.delay_notices == DelayNotices::Always,
        may_move_to_shared: tenant.move_to_shared == MoveToShared::Permitted,
        warm_up_overflow: tenant.overflow_to.iter().map(ToString::to_string).collect(),
        default_vip: tenant.default_vip.map(|id| id.to_string()),
        created: tenant.created.rfc3339(),
        region: tenant.region,
        retention_days: tenant.retention_days,
        deletion: parts.tenancy.deletion(actor, tenant.id).ok().flatten().map(deletion_json),
    }
}

#[utoipa::path(
    get,
    path = "/tenants",
    operation_id = "tenants_list",
    tag = "tenants",
    summary = "List: tenants.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<TenantJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<TenantJson>> {
    let page = paging.of(parts.accounts.tenants(&actor), |tenant| tenant.name.clone());
    let rows = page.rows.into_iter().map(|tenant| json(&parts, &actor, tenant)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    post,
    path = "/tenants",
    operation_id = "tenants_add",
    tag = "tenants",
    summary = "Make: tenants.",
    request_body = NewTenantJson,
    responses((status = 201, body = TenantJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewTenantJson>,
) -> Result<(StatusCode, Json<TenantJson>), Problem> {
    let tenant = parts.accounts.add_tenant(&actor, &asked.name, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(json(&parts, &actor, tenant))))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}",
    operation_id = "tenants_show",
    tag = "tenants",
    summary = "Show: tenants.",
    params(("tenant" = String, Path)),
    responses((status = 200, body = TenantJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<TenantJson> {
    let tenant = tenant_called(&parts, &actor, &name)?;
    actor.require(Permission::Read(Resource::Tenant, tenant.id)).map_err(AdminError::from)?;
    Ok(Json(json(&parts, &actor, tenant)))
}

#[utoipa::path(
    patch,
    path = "/tenants/{tenant}",
    operation_id = "tenants_change",
    tag = "tenants",
    summary = "Change: tenants.",
    params(("tenant" = String, Path)),
    request_body = TenantChangeJson,
    responses((status = 200, body = TenantJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    JsonBody(asked): JsonBody<TenantChangeJson>,
) -> Answer<TenantJson> {
    let id = tenant_called(&parts, &actor, &name)?.id;
    if asked.suspended == Some(false) && parts.tenancy.is_leaving(id) {
        let detail = "a deletion was asked for: take it back first, and it sends again if it did before";
        return Err(AdminError::Invalid(detail.to_owned()).into());
    }
    let vip = |named: &String| if named.is_empty() { Ok(None) } else { vip_called(&parts, &actor, named).map(Some) };
    let shared = |named: &Vec<String>| named.iter().map(|named| vip_called(&parts, &actor, named)).collect();
    let change = TenantChange {
        sending: asked.suspended.map(|suspended| if suspended { Sending::Suspended } else { Sending::Allowed }),
        limits: asked.limits.map(Limits::from),
        delay_notices: asked
            .delay_notices_always
            .map(|always| if always { DelayNotices::Always } else { DelayNotices::WhenAsked }),
        move_to_shared: asked
            .may_move_to_shared
            .map(|permitted| if permitted { MoveToShared::Permitted } else { MoveToShared::Forbidden }),
        default_vip: asked.default_vip.as_ref().map(vip).transpose()?,
        overflow_to: asked.warm_up_overflow.as_ref().map(shared).transpose()?,
        region: asked.region,
        retention_days: asked.retention_days.map(|days| (days > 0).then_some(days)),
    };
    let tenant = parts.accounts.change_tenant(&actor, id, change, Timestamp::now()).await?;
    Ok(Json(json(&parts, &actor, tenant)))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}",
    operation_id = "tenants_remove",
    tag = "tenants",
    summary = "Remove: a tenant that has nothing any more, with all that is kept of it.",
    params(("tenant" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let tenant = tenant_called(&parts, &actor, &name)?;
    let mut held = held_for(&parts, &actor, &tenant)?;
    let (queue, id) = (parts.queue.clone(), tenant.id);
    if off_workers(move || Ok(queue.has_mail_of(id)?)).await? {
        held.push("queued mail".to_owned());
    }
    parts.tenancy.remove_emptied(&actor, (tenant.id, &held), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What rooms keep for a tenant that somebody would miss, in words.
fn held_for(parts: &Parts, actor: &Actor, tenant: &Tenant) -> Result<Vec<String>, AdminError> {
    let mut held = Vec::new();
    let accounts = parts.accounts.smtp_accounts(actor, tenant.id)?.len();
    if accounts > 0 {
        held.push(format!("{accounts} SMTP accounts"));
    }
    let domains = parts.domains.list(actor, tenant.id)?.len();
    if domains > 0 {
        held.push(format!("{domains} domains"));
    }
    let vips = parts.vips.all().iter().filter(|vip| vip.owner == Owner::Tenant(tenant.id)).count();
    if vips > 0 {
        held.push(format!("{vips} virtual IPs"));
    }
    let scope = crate::routing::RouteScope::Tenant(tenant.id);
    if parts.routes.table().routes.iter().any(|route| route.scope == scope) {
        held.push("a route".to_owned());
    }
    let webhooks = parts.webhooks.list(actor, tenant.id)?.len();
    if webhooks > 0 {
        held.push(format!("{webhooks} webhooks"));
    }
    let (users, keys) = parts.people.held_for(tenant.id);
    if users + keys > 0 {
        held.push(format!("{users} people and {keys} API keys"));
    }
    if parts.suppression.has_entries_of(tenant.id)? {
        held.push("entries of black- or whitelists".to_owned());
    }
    let unfinished = parts.operations.unfinished_of(tenant.id);
    if unfinished > 0 {
        held.push(format!("{unfinished} imports or exports under way"));
    }
    Ok(held)
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/deletion",
    operation_id = "tenants_delete",
    tag = "tenants",
    summary = "Ask: that a tenant and everything kept of it is deleted after a grace period.",
    params(("tenant" = String, Path)),
    request_body = NewDeletionJson,
    responses((status = 202, body = TenantJson, description = "its sending is suspended; it is deleted when the grace is over and its mail is done"))
)]
pub(super) async fn ask_deletion(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    JsonBody(asked): JsonBody<NewDeletionJson>,
) -> Result<(StatusCode, Json<TenantJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &name)?;
    let grace = asked.grace_days.map_or(GRACE, |days| std::time::Duration::from_secs(u64::from(days) * 86_400));
    parts.tenancy.ask(&actor, tenant.id, grace, Timestamp::now()).await?;
    let tenant = tenant_called(&parts, &actor, &name)?;
    Ok((StatusCode::ACCEPTED, Json(json(&parts, &actor, tenant))))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/deletion",
    operation_id = "tenants_delete_undo",
    tag = "tenants",
    summary = "Take back: a deletion, within its grace.",
    params(("tenant" = String, Path)),
    responses((status = 200, body = TenantJson, description = "done"))
)]
pub(super) async fn undo_deletion(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<TenantJson> {
    let tenant = tenant_called(&parts, &actor, &name)?;
    parts.tenancy.undo(&actor, tenant.id, Timestamp::now()).await?;
    let tenant = tenant_called(&parts, &actor, &name)?;
    Ok(Json(json(&parts, &actor, tenant)))
}
