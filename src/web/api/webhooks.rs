//! `/tenants/{tenant}/webhooks`: endpoints that are told what happened, and what became of each request.
//!
//! Easy to get wrong: the secret of a webhook is in exactly one answer, that of the request which made it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::keys::RotationJson;
use super::{Answer, Shared, off_workers, tenant_called};
use crate::access::{Action, Actor};
use crate::ext::Timestamp;
use crate::mail::{TenantId, WebhookId};
use crate::store::Key;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::{Problem, all_read};
use crate::webhooks::{
    After, Attempt, Doing, Ending, KINDS, Kind, Made, NewLogin, NewWebhook, OVERLAP_DEFAULT, Standing, Webhook,
    WebhookChange, attempt_name,
};

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookJson {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// Where requests go.
    pub url: String,
    /// Where they go when that one does not take them.
    pub secondary_url: Option<String>,
    /// What it is told of.
    pub events: Vec<String>,
    /// Events in one request, at most; 1 sends each alone, as an object instead of an array.
    pub batch: u16,
    /// The user of its basic authentication.
    pub user: Option<String>,
    /// Whether it is told anything.
    pub enabled: bool,
    /// Since when it is not.
    pub disabled: Option<String>,
    /// Why it is not.
    pub disabled_reason: Option<String>,
    /// When the older secret ends, if there are two.
    pub old_secret_expires: Option<String>,
    /// How it does.
    pub progress: WebhookProgressJson,
    /// When it was made.
    pub created: String,
    /// By whom.
    pub created_by: String,
}

/// How a webhook does: what changes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookProgressJson {
    /// Since when nothing succeeded, if nothing does.
    pub failing_since: Option<String>,
    /// When the last request was taken.
    pub last_success: Option<String>,
    /// When the last request was not.
    pub last_failure: Option<String>,
    /// Why it was not.
    pub last_reason: Option<String>,
    /// Requests that wait to be made again.
    pub waiting: usize,
    /// Whether a window of past events is being sent again.
    pub replaying: bool,
}

/// A webhook to be made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhookJson {
    /// Where requests go: an `https` address, at port 443 or one from 1024 on.
    pub url: String,
    /// Where they go when that one does not take them.
    #[serde(default)]
    pub secondary_url: Option<String>,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// What it is told of, such as `message.delivered`; empty is all but `message.deferred`.
    #[serde(default)]
    pub events: Vec<String>,
    /// Events in one request, at most 100; 1 if absent.
    #[serde(default)]
    pub batch: Option<u16>,
    /// The user of basic authentication, with `password`.
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<String>,
}

/// What is to change.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookChangeJson {
    /// Where requests go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where they go when that one does not take them; empty is nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secondary_url: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is told of; empty is all but `message.deferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// Events in one request, at most 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u16>,
    /// The user of basic authentication, with `password`; empty is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Whether it is told anything; one that is enabled again is told of what happens from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// A webhook with its secret, which is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeWebhookJson {
    /// What is kept.
    pub webhook: WebhookJson,
    /// What the receiver verifies signatures with: `whsec_...`.
    pub secret: String,
}

/// A window of past events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookWindowJson {
    /// Events from this moment on (RFC 3339)...
    pub from: String,
    /// ...and before this one; now if absent.
    #[serde(default)]
    pub to: Option<String>,
}

/// One request that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptJson {
    /// Its name, for replaying it.
    pub id: String,
    /// `webhook-id`: the same at every attempt of one request.
    pub webhook_id: String,
    /// The kind of its event, or of the first of them.
    pub event: String,
    /// The queue id it is about, or the first of them.
    pub message: Option<String>,
    /// How many events were in it.
    pub events: usize,
    /// When it began.
    pub at: String,
    /// The first is 1.
    pub number: u16,
    /// Whether it went to the secondary address.
    pub secondary: bool,
    /// Whether it was taken.
    pub taken: bool,
    /// The status that was answered.
    pub status: Option<u16>,
    /// Why there was no answer.
    pub error: Option<String>,
    /// How long it took.
    pub took_ms: u32,
    /// The beginning of what was answered.
    pub answer: String,
    /// `done`, `again`, `secondary`, `given_up`.
    pub then: String,
    /// When it is made again.
    pub again: Option<String>,
}

fn json(webhook: &Webhook, doing: Doing) -> WebhookJson {
    let disabled = match &webhook.standing {
        Standing::Enabled => None,
        Standing::Disabled { at, reason } => Some((at.rfc3339(), reason.clone())),
    };
    let (disabled, disabled_reason) = disabled.unzip();
    let progress = doing.progress;
    WebhookJson {
        id: webhook.id.to_string(),
        name: webhook.name.clone(),
        url: webhook.url.clone(),
        secondary_url: webhook.secondary_url.clone(),
        events: webhook.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        batch: webhook.batch,
        user: webhook.login.as_ref().map(|login| login.user.clone()),
        enabled: webhook.is_enabled(),
        disabled,
        disabled_reason,
        old_secret_expires: webhook.secrets.iter().find_map(|secret| secret.expires).map(Timestamp::rfc3339),
        progress: WebhookProgressJson {
            failing_since: progress.failing_since.map(Timestamp::rfc3339),
            last_success: progress.last_success.map(Timestamp::rfc3339),
            last_failure: progress.last_failure.map(Timestamp::rfc3339),
            last_reason: Some(progress.last_reason).filter(|reason| !reason.is_empty()),
            waiting: doing.waiting,
            replaying: doing.is_replaying,
        },
        created: webhook.created.rfc3339(),
        created_by: webhook.created_by.clone(),
    }
}

fn attempt_json((key, attempt): &(Key, Attempt)) -> AttemptJson {
    let (status, error) = match &attempt.ending {
        Ending::Answered(status) => (Some(*status), None),
        Ending::Failed(reason) => (None, Some(reason.clone())),
    };
    let (then, again) = match attempt.after {
        After::Done => ("done", None),
        After::Again(at) => ("again", Some(at.rfc3339())),
        After::Secondary => ("secondary", None),
        After::GivenUp => ("given_up", None),
    };
    AttemptJson {
        id: attempt_name(key),
        webhook_id: attempt.id.clone(),
        event: attempt.kind.clone(),
        message: attempt.message.map(|id| id.to_string()),
        events: attempt.events.len(),
        at: attempt.at.rfc3339(),
        number: attempt.number,
        secondary: attempt.is_secondary,
        taken: attempt.is_success(),
        status,
        error,
        took_ms: attempt.took_ms,
        answer: attempt.answer.clone(),
        then: then.to_owned(),
        again,
    }
}

/// Names the tenant and the webhook; one that is no id does not exist.
fn which(parts: &Parts, actor: &Actor, (tenant, webhook): (&str, &str)) -> Result<(TenantId, WebhookId), Problem> {
    let tenant = tenant_called(parts, actor, tenant)?;
    let id = webhook.parse().map_err(|_| Problem::missing(format!("webhook {webhook}")))?;
    Ok((tenant.id, id))
}

fn kinds(names: &[String]) -> Result<Vec<Kind>, Problem> {
    if names.is_empty() {
        return Ok(Kind::usual());
    }
    let unknown = |at: usize, name: &str| {
        let known: Vec<&str> = KINDS.iter().map(|(_, name, _)| *name).collect();
        Problem::field(format!("events[{at}]"), format!("{name:?} is no event; there are {}", known.join(", ")))
    };
    all_read(names.iter().enumerate().map(|(at, name)| Kind::called(name).ok_or_else(|| unknown(at, name))))
}

fn login(user: Option<String>, password: Option<String>) -> Result<Option<NewLogin>, Problem> {
    match (user, password) {
        (None, None) => Ok(None),
        (Some(user), Some(password)) => Ok(Some(NewLogin { user, password: Zeroizing::new(password) })),
        (Some(_), None) => Err(Problem::field("password", "is needed with user")),
        (None, Some(_)) => Err(Problem::field("user", "is needed with password")),
    }
}

fn moment(field: &str, text: &str) -> Result<Timestamp, Problem> {
    Timestamp::from_rfc3339(text).ok_or_else(|| Problem::field(field, "must be a time such as 2027-01-31T12:00:00Z"))
}

async fn told(parts: &Shared, webhook: Arc<Webhook>) -> Result<WebhookJson, Problem> {
    let webhooks = Arc::clone(&parts.webhooks);
    off_workers(move || Ok(json(&webhook, webhooks.doing(webhook.id)?))).await
}

async fn made(parts: &Shared, made: Made) -> Result<MadeWebhookJson, Problem> {
    Ok(MadeWebhookJson { webhook: told(parts, made.webhook).await?, secret: made.secret.to_string() })
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/webhooks",
    operation_id = "webhooks_list",
    tag = "webhooks",
    summary = "List: webhooks.",
    params(("tenant" = String, Path), ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<WebhookJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    paging: Paging,
) -> Answer<PageJson<WebhookJson>> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let webhooks = Arc::clone(&parts.webhooks);
    let rows = off_workers(move || {
        let own = webhooks.list(&actor, tenant.id)?;
        own.iter().map(|webhook| Ok(json(webhook, webhooks.doing(webhook.id)?))).collect::<Result<Vec<_>, _>>()
    });
    Ok(Json(paging.of(rows.await?, |row| row.id.clone())))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/webhooks",
    operation_id = "webhooks_add",
    tag = "webhooks",
    summary = "Make: webhooks.",
    params(("tenant" = String, Path)),
    request_body = NewWebhookJson,
    responses((status = 201, body = MadeWebhookJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    JsonBody(asked): JsonBody<NewWebhookJson>,
) -> Result<(StatusCode, Json<MadeWebhookJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let new = NewWebhook {
        name: asked.name,
        url: asked.url,
        secondary_url: asked.secondary_url,
        kinds: kinds(&asked.events)?,
        batch: asked.batch.unwrap_or(1),
        login: login(asked.user, asked.password)?,
    };
    let new = parts.webhooks.add(&actor, tenant.id, new, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(made(&parts, new).await?)))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/webhooks/{webhook}",
    operation_id = "webhooks_show",
    tag = "webhooks",
    summary = "Show: webhooks.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    responses((status = 200, body = WebhookJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
) -> Answer<WebhookJson> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let webhook = parts.webhooks.one(&actor, which, Action::Read)?;
    Ok(Json(told(&parts, webhook).await?))
}

#[utoipa::path(
    patch,
    path = "/tenants/{tenant}/webhooks/{webhook}",
    operation_id = "webhooks_change",
    tag = "webhooks",
    summary = "Change: webhooks.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    request_body = WebhookChangeJson,
    responses((status = 200, body = WebhookJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
    JsonBody(asked): JsonBody<WebhookChangeJson>,
) -> Answer<WebhookJson> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let login = match (asked.user.as_deref(), &asked.password) {
        (Some(""), None) => Some(None),
        _ => login(asked.user, asked.password)?.map(Some),
    };
    let change = WebhookChange {
        name: asked.name,
        url: asked.url,
        secondary_url: asked.secondary_url.map(|url| Some(url).filter(|url| !url.is_empty())),
        kinds: asked.events.map(|names| kinds(&names)).transpose()?,
        batch: asked.batch,
        login,
        is_enabled: asked.enabled,
    };
    let webhook = parts.webhooks.change(&actor, which, change, Timestamp::now()).await?;
    Ok(Json(told(&parts, webhook).await?))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/webhooks/{webhook}",
    operation_id = "webhooks_remove",
    tag = "webhooks",
    summary = "Remove: webhooks.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    parts.webhooks.remove(&actor, which, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/webhooks/{webhook}/rotate",
    operation_id = "webhooks_rotate",
    tag = "webhooks",
    summary = "New secret: webhooks.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    request_body = RotationJson,
    responses((status = 200, body = MadeWebhookJson, description = "done"))
)]
pub(super) async fn rotate(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
    JsonBody(asked): JsonBody<RotationJson>,
) -> Answer<MadeWebhookJson> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let overlap = asked.overlap_hours.map_or(OVERLAP_DEFAULT, |hours| Duration::from_secs(u64::from(hours) * 3600));
    let new = parts.webhooks.rotate(&actor, which, overlap, Timestamp::now()).await?;
    Ok(Json(made(&parts, new).await?))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/webhooks/{webhook}/test",
    operation_id = "webhooks_test",
    tag = "webhooks",
    summary = "Test: webhooks. Makes one request now and says what became of it at each address.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    responses((status = 200, body = Vec<AttemptJson>, description = "done"))
)]
pub(super) async fn test(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
) -> Answer<Vec<AttemptJson>> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let made = parts.webhooks.test(&actor, which, Timestamp::now()).await?;
    Ok(Json(made.iter().map(attempt_json).collect()))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/webhooks/{webhook}/replay",
    operation_id = "webhooks_replay",
    tag = "webhooks",
    summary = "Send past events again: webhooks. Each keeps the id it had.",
    params(("tenant" = String, Path), ("webhook" = String, Path)),
    request_body = WebhookWindowJson,
    responses((status = 202, description = "begun"))
)]
pub(super) async fn replay(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
    JsonBody(asked): JsonBody<WebhookWindowJson>,
) -> Result<StatusCode, Problem> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let now = Timestamp::now();
    let from = moment("from", &asked.from)?;
    let to = asked.to.map(|text| moment("to", &text)).transpose()?.unwrap_or(now);
    parts.webhooks.replay_window(&actor, which, (from, to), now).await?;
    Ok(StatusCode::ACCEPTED)
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/webhooks/{webhook}/attempts",
    operation_id = "webhooks_attempts",
    tag = "webhooks",
    summary = "List: what became of each request, newest first.",
    params(("tenant" = String, Path), ("webhook" = String, Path), ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<AttemptJson>, description = "done"))
)]
pub(super) async fn attempts(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook)): Path<(String, String)>,
    paging: Paging,
) -> Answer<PageJson<AttemptJson>> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    let (webhooks, limit) = (Arc::clone(&parts.webhooks), paging.limit);
    let found = off_workers(move || webhooks.attempts(&actor, which, paging.after.as_deref(), limit.saturating_add(1)));
    let mut rows: Vec<AttemptJson> = found.await?.iter().map(attempt_json).collect();
    let is_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| is_more).map(|row| paging::wrap(&row.id));
    Ok(Json(PageJson { rows, next }))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/webhooks/{webhook}/attempts/{attempt}/replay",
    operation_id = "webhooks_replay_attempt",
    tag = "webhooks",
    summary = "Make one request again: webhooks. It keeps the id it had.",
    params(("tenant" = String, Path), ("webhook" = String, Path), ("attempt" = String, Path)),
    responses((status = 202, description = "begun"))
)]
pub(super) async fn replay_attempt(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, webhook, attempt)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    let which = which(&parts, &actor, (&tenant, &webhook))?;
    parts.webhooks.replay_one(&actor, which, &attempt, Timestamp::now()).await?;
    Ok(StatusCode::ACCEPTED)
}
