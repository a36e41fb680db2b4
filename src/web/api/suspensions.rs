//! `/suspensions`: what delivery leaves alone for now, because an operator said so.
//!
//! Easy to get wrong: one thing is named each time; a suspension is replaced, never added to.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called, tenant_name, vip_called};
use crate::access::Actor;
use crate::delivery::{Halt, Scope, Suspension};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::records::AdminError;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A suspension; what it does not name is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuspensionJson {
    /// What is suspended, in words.
    pub what: String,
    /// Mail to this recipient domain.
    pub to: Option<String>,
    /// Mail of this virtual IP: its EHLO name.
    pub vip: Option<String>,
    /// Mail to this site.
    pub site: Option<String>,
    /// Mail of this tenant.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Mail handed in with this SMTP account: its login.
    #[serde(default)]
    pub smtp_account: Option<String>,
    /// Whether it is a drain: no new mail of it is taken, and what is queued goes out.
    #[serde(default)]
    pub drains: bool,
    /// Why.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: String,
    /// When it ends by itself.
    pub until: Option<String>,
}

/// What is to be suspended, exactly one of `all`, `to`, `vip`, `site`, `tenant` and `smtp_account`; to resume,
/// only that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSuspensionJson {
    /// All mail.
    #[serde(default)]
    pub all: bool,
    /// Mail to this recipient domain.
    #[schema(value_type = Option<String>)]
    pub to: Option<Domain>,
    /// Mail of this virtual IP.
    pub vip: Option<String>,
    /// Mail to this site, as `queue why` names it, or to this provider.
    pub site: Option<String>,
    /// Mail of this tenant.
    pub tenant: Option<String>,
    /// Mail handed in with this SMTP account: its login.
    pub smtp_account: Option<String>,
    /// Drain instead: take no new mail of it (`451 4.3.2`), and send what is queued. Resuming ends both.
    #[serde(default)]
    pub drain: bool,
    /// Why; asked for when suspending.
    #[serde(default)]
    pub reason: String,
    /// For how long; absent is until somebody resumes it.
    pub seconds: Option<u64>,
}

/// What came of resuming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResumedJson {
    /// What, in words.
    pub what: String,
    /// Whether it was suspended.
    pub was_suspended: bool,
}

fn json(parts: &Parts, suspension: Suspension) -> SuspensionJson {
    let name = |vip| parts.vips.get(vip).map_or_else(|| format!("{vip} (removed)"), |vip| vip.ehlo.to_string());
    let login = |id| parts.accounts.smtp_account(id).map_or_else(|| format!("{id} (removed)"), |own| own.login);
    let scope = &suspension.scope;
    SuspensionJson {
        what: scope.to_string(),
        to: if let Scope::Domain(domain) = scope { Some(domain.to_string()) } else { None },
        vip: if let Scope::Vip(vip) = scope { Some(name(*vip)) } else { None },
        site: if let Scope::Site(site) = scope { Some(site.clone()) } else { None },
        tenant: if let Scope::Tenant(tenant) = scope { Some(tenant_name(parts, *tenant)) } else { None },
        smtp_account: if let Scope::Account(account) = scope { Some(login(*account)) } else { None },
        drains: suspension.halt == Halt::Taking,
        reason: suspension.reason,
        by: suspension.by,
        since: suspension.since.rfc3339(),
        until: suspension.until.map(|until| until.rfc3339()),
    }
}

fn scope(parts: &Parts, actor: &Actor, asked: &NewSuspensionJson) -> Result<Scope, Problem> {
    let NewSuspensionJson { all, to, vip, site, tenant, smtp_account, .. } = asked;
    let named = [to.is_some(), vip.is_some(), site.is_some(), tenant.is_some(), smtp_account.is_some(), *all];
    if named.iter().filter(|is_named| **is_named).count() != 1 {
        return Err(Problem::field("all", "name exactly one of all, to, vip, site, tenant and smtp_account"));
    }
    if let Some(domain) = to {
        return Ok(Scope::Domain(domain.clone()));
    }
    if let Some(vip) = vip {
        return Ok(Scope::Vip(vip_called(parts, actor, vip)?.id));
    }
    if let Some(tenant) = tenant {
        return Ok(Scope::Tenant(tenant_called(parts, actor, tenant)?.id));
    }
    if let Some(login) = smtp_account {
        return Ok(Scope::Account(super::smtp_accounts::called(parts, actor, login)?.id));
    }
    Ok(site.clone().map_or(Scope::All, Scope::Site))
}

#[utoipa::path(
    get,
    path = "/suspensions",
    operation_id = "suspensions_list",
    tag = "suspensions",
    summary = "List: suspensions of delivery.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<SuspensionJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<SuspensionJson>> {
    let all = parts.delivery.suspensions(&actor, Timestamp::now()).map_err(AdminError::from)?;
    let page = paging.of(all, |suspension| suspension.scope.to_string());
    let rows = page.rows.into_iter().map(|suspension| json(&parts, suspension)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    post,
    path = "/suspensions",
    operation_id = "suspensions_add",
    tag = "suspensions",
    summary = "Make: suspensions of delivery.",
    request_body = NewSuspensionJson,
    responses((status = 200, body = SuspensionJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewSuspensionJson>,
) -> Answer<SuspensionJson> {
    let (scope, now) = (scope(&parts, &actor, &asked)?, Timestamp::now());
    let until = asked.seconds.map(|seconds| now.plus(std::time::Duration::from_secs(seconds)));
    let halt = if asked.drain { Halt::Taking } else { Halt::Sending };
    let made = parts.delivery.suspend(&actor, (halt, scope), (&asked.reason, until), now).await?;
    Ok(Json(json(&parts, made)))
}

#[utoipa::path(
    post,
    path = "/suspensions/resume",
    operation_id = "suspensions_resume",
    tag = "suspensions",
    summary = "End: a suspension of delivery.",
    request_body = NewSuspensionJson,
    responses((status = 200, body = ResumedJson, description = "done"))
)]
pub(super) async fn resume(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewSuspensionJson>,
) -> Answer<ResumedJson> {
    let scope = scope(&parts, &actor, &asked)?;
    let was_suspended = parts.delivery.resume(&actor, &scope, Timestamp::now()).await?;
    Ok(Json(ResumedJson { what: scope.to_string(), was_suspended }))
}
