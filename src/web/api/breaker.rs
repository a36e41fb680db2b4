//! `/breaker` and the pauses of SMTP accounts: what was paused, why, by which limits, and the release.
//!
//! Easy to get wrong: a tenant's people may see that their account is paused and why; whoever could
//! also end it would let the thief of a password do so.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::smtp_accounts::called;
use super::{Answer, Shared, tenant_called, tenant_name};
use crate::access::Actor;
use crate::breaker::{LimitScope, LimitSet, Limits, Override, Pause, Picture};
use crate::ext::Timestamp;
use crate::mail::{Class, SmtpAccountId};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A paused SMTP account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseJson {
    /// Its login.
    pub login: String,
    /// Whose it is.
    pub tenant: String,
    /// Why it was paused.
    pub cause: String,
    /// Who paused it.
    pub by: String,
    /// Since when.
    pub since: String,
}

/// Why it is to be paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPauseJson {
    /// Why; the account's programs are told.
    pub reason: String,
}

/// Limits; 0 switches one off, absent is not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerLimitsJson {
    /// Of recipients within an hour, so many in 100 may not exist.
    pub failures_percent: Option<u32>,
    /// Of recipients within an hour, so many in 100 may be refused for reputation or content.
    pub blocks_percent: Option<u32>,
    /// Recipients within an hour, before these two are judged.
    pub recipients_min: Option<u64>,
    /// Of deliveries within a day, so many in 1,000 may be complained about.
    pub complaints_per_thousand: Option<u32>,
    /// Messages within an hour, in multiples of what is usual.
    pub volume_factor: Option<u32>,
    /// Messages within an hour, before the volume is judged.
    pub volume_min: Option<u64>,
}

/// Limits of a class, a tenant or an account: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerOverrideJson {
    /// `transactional` or `marketing`: every account of that class.
    #[schema(value_type = Option<String>)]
    pub class: Option<Class>,
    /// Every account of this tenant.
    pub tenant: Option<String>,
    /// The account with this login.
    pub login: Option<String>,
    /// The limits.
    pub limits: BreakerLimitsJson,
}

/// A waiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaiverJson {
    /// Why.
    pub reason: String,
    /// Who gave it.
    pub by: String,
    /// Since when.
    pub since: String,
    /// When it ends by itself.
    pub until: Option<String>,
}

/// A waiver to be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWaiverJson {
    /// Why.
    pub reason: String,
    /// For how long; absent is until somebody ends it.
    pub seconds: Option<u64>,
}

/// All that is counted of an account, and what that is judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakerJson {
    /// Its login.
    pub login: String,
    /// Its pause, if it is paused.
    pub pause: Option<PauseJson>,
    /// Its waiver, if it has one.
    pub waiver: Option<WaiverJson>,
    /// The limits that hold for it.
    pub limits: BreakerLimitsJson,
    /// Messages accepted within an hour.
    pub messages: u64,
    /// Messages in an hour in which it sends; absent before there are enough of them.
    pub usual: Option<u64>,
    /// Recipients within an hour of whom it was decided: delivered or given up.
    pub finished: u64,
    /// Of these, those that do not exist.
    pub gone: u64,
    /// Of these, those refused for reputation or content.
    pub blocked: u64,
    /// Recipients delivered within a day.
    pub delivered: u64,
    /// Complaints within a day.
    pub complaints: u64,
}

fn pause_json(parts: &Parts, pause: Pause) -> PauseJson {
    PauseJson {
        login: pause.login,
        tenant: tenant_name(parts, pause.tenant),
        cause: pause.cause.to_string(),
        by: pause.by,
        since: pause.since.rfc3339(),
    }
}

fn limits_json(limits: Limits) -> BreakerLimitsJson {
    BreakerLimitsJson {
        failures_percent: Some(limits.failures_percent),
        blocks_percent: Some(limits.blocks_percent),
        recipients_min: Some(limits.recipients_min),
        complaints_per_thousand: Some(limits.complaints_per_thousand),
        volume_factor: Some(limits.volume_factor),
        volume_min: Some(limits.volume_min),
    }
}

impl From<LimitSet> for BreakerLimitsJson {
    fn from(set: LimitSet) -> Self {
        Self {
            failures_percent: set.failures_percent,
            blocks_percent: set.blocks_percent,
            recipients_min: set.recipients_min,
            complaints_per_thousand: set.complaints_per_thousand,
            volume_factor: set.volume_factor,
            volume_min: set.volume_min,
        }
    }
}

impl From<BreakerLimitsJson> for LimitSet {
    fn from(asked: BreakerLimitsJson) -> Self {
        Self {
            failures_percent: asked.failures_percent,
            blocks_percent: asked.blocks_percent,
            recipients_min: asked.recipients_min,
            complaints_per_thousand: asked.complaints_per_thousand,
            volume_factor: asked.volume_factor,
            volume_min: asked.volume_min,
        }
    }
}

fn picture_json(parts: &Parts, picture: Picture) -> BreakerJson {
    let figures = picture.figures;
    BreakerJson {
        login: picture.account.login,
        pause: picture.pause.map(|pause| pause_json(parts, pause)),
        waiver: picture.waiver.map(waiver_json),
        limits: limits_json(picture.limits),
        messages: figures.messages,
        usual: figures.usual,
        finished: figures.finished,
        gone: figures.gone,
        blocked: figures.blocked,
        delivered: figures.delivered,
        complaints: figures.complaints,
    }
}

fn waiver_json(waiver: crate::breaker::Waiver) -> WaiverJson {
    WaiverJson {
        reason: waiver.reason,
        by: waiver.by,
        since: waiver.since.rfc3339(),
        until: waiver.until.map(|until| until.rfc3339()),
    }
}

/// The account people call `login`; one that was removed while it was paused is still known.
fn paused_called(parts: &Parts, actor: &Actor, login: &str) -> Result<SmtpAccountId, Problem> {
    let of_pause = || parts.breaker.pauses(actor).into_iter().find(|pause| pause.login == login);
    match called(parts, actor, login) {
        Ok(account) => Ok(account.id),
        Err(problem) => of_pause().map(|pause| pause.account).ok_or(problem),
    }
}

fn override_json(parts: &Parts, set: Override) -> BreakerOverrideJson {
    let (class, tenant, login) = match set.scope {
        LimitScope::Class(class) => (Some(class), None, None),
        LimitScope::Tenant(tenant) => (None, Some(tenant_name(parts, tenant)), None),
        LimitScope::Account(id) => {
            let account = parts.accounts.smtp_account(id);
            (None, None, Some(account.map_or_else(|| id.to_string(), |account| account.login)))
        }
    };
    BreakerOverrideJson { class, tenant, login, limits: set.limits.into() }
}

fn scope(parts: &Parts, actor: &Actor, asked: &BreakerOverrideJson) -> Result<LimitScope, Problem> {
    match (asked.class, &asked.tenant, &asked.login) {
        (Some(class), None, None) => Ok(LimitScope::Class(class)),
        (None, Some(tenant), None) => Ok(LimitScope::Tenant(tenant_called(parts, actor, tenant)?.id)),
        (None, None, Some(login)) => {
            // Of an account that is gone only the id is left.
            let by_id = || login.parse::<SmtpAccountId>().ok();
            let id = called(parts, actor, login).map(|account| account.id);
            id.or_else(|problem| by_id().ok_or(problem)).map(LimitScope::Account)
        }
        _ => Err(Problem::field("class", "name exactly one of class, tenant and login")),
    }
}

#[utoipa::path(
    get,
    path = "/breaker",
    operation_id = "breaker_list",
    tag = "breaker",
    summary = "List: paused SMTP accounts.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<PauseJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<PauseJson>> {
    let page = paging.of(parts.breaker.pauses(&actor), |pause| pause.login.clone());
    let rows = page.rows.into_iter().map(|pause| pause_json(&parts, pause)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    get,
    path = "/smtp-accounts/{login}/breaker",
    operation_id = "breaker_show",
    tag = "breaker",
    summary = "Show: what is counted of an SMTP account, and its limits.",
    params(("login" = String, Path)),
    responses((status = 200, body = BreakerJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<BreakerJson> {
    let account = called(&parts, &actor, &login)?;
    let picture = parts.breaker.picture(&actor, account.id, Timestamp::now())?;
    Ok(Json(picture_json(&parts, picture)))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts/{login}/pause",
    operation_id = "breaker_pause",
    tag = "breaker",
    summary = "Pause: an SMTP account.",
    params(("login" = String, Path)),
    request_body = NewPauseJson,
    responses((status = 200, body = PauseJson, description = "done"))
)]
pub(super) async fn pause(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
    JsonBody(asked): JsonBody<NewPauseJson>,
) -> Answer<PauseJson> {
    let account = called(&parts, &actor, &login)?;
    let paused = parts.breaker.pause(&actor, account.id, &asked.reason, Timestamp::now()).await?;
    Ok(Json(pause_json(&parts, paused)))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts/{login}/release",
    operation_id = "breaker_release",
    tag = "breaker",
    summary = "Release: a paused SMTP account.",
    params(("login" = String, Path)),
    responses((status = 200, body = PauseJson, description = "done"))
)]
pub(super) async fn release(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<PauseJson> {
    let id = paused_called(&parts, &actor, &login)?;
    let released = parts.breaker.release(&actor, id, Timestamp::now()).await?;
    Ok(Json(pause_json(&parts, released)))
}

#[utoipa::path(
    put,
    path = "/smtp-accounts/{login}/waiver",
    operation_id = "breaker_waive",
    tag = "breaker",
    summary = "Waive: the limits for an SMTP account.",
    params(("login" = String, Path)),
    request_body = NewWaiverJson,
    responses((status = 200, body = WaiverJson, description = "done"))
)]
pub(super) async fn waive(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
    JsonBody(asked): JsonBody<NewWaiverJson>,
) -> Answer<WaiverJson> {
    let (account, now) = (called(&parts, &actor, &login)?, Timestamp::now());
    let until = asked.seconds.map(|seconds| now.plus(std::time::Duration::from_secs(seconds)));
    let waiver = parts.breaker.waive(&actor, account.id, (&asked.reason, until), now).await?;
    Ok(Json(waiver_json(waiver)))
}

#[utoipa::path(
    delete,
    path = "/smtp-accounts/{login}/waiver",
    operation_id = "breaker_end_waiver",
    tag = "breaker",
    summary = "End: a waiver of an SMTP account.",
    params(("login" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn end_waiver(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Result<StatusCode, Problem> {
    let account = called(&parts, &actor, &login)?;
    parts.breaker.end_waiver(&actor, account.id, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/breaker/limits",
    operation_id = "breaker_limits",
    tag = "breaker",
    summary = "List: limits that were set.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<BreakerOverrideJson>, description = "done"))
)]
pub(super) async fn limits(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<BreakerOverrideJson>> {
    let page = paging.of(parts.breaker.overrides(&actor)?, |set| format!("{:?}", set.scope));
    let rows = page.rows.into_iter().map(|set| override_json(&parts, set)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    put,
    path = "/breaker/limits",
    operation_id = "breaker_set_limits",
    tag = "breaker",
    summary = "Set: limits; those left out stay as they are.",
    request_body = BreakerOverrideJson,
    responses((status = 200, body = BreakerOverrideJson, description = "done"))
)]
pub(super) async fn set_limits(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<BreakerOverrideJson>,
) -> Answer<BreakerOverrideJson> {
    let set = Override { scope: scope(&parts, &actor, &asked)?, limits: asked.limits.into() };
    let merged = parts.breaker.set_limits(&actor, set, Timestamp::now()).await?;
    Ok(Json(override_json(&parts, merged)))
}

#[utoipa::path(
    post,
    path = "/breaker/limits/clear",
    operation_id = "breaker_clear_limits",
    tag = "breaker",
    summary = "Clear: the limits set for exactly this.",
    request_body = BreakerOverrideJson,
    responses((status = 204, description = "done"))
)]
pub(super) async fn clear_limits(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<BreakerOverrideJson>,
) -> Result<StatusCode, Problem> {
    let scope = scope(&parts, &actor, &asked)?;
    parts.breaker.clear_limits(&actor, scope, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
