//! `/keys`: API keys of a tenant, or of the instance.
//!
//! Easy to get wrong: the text of a key is in exactly one answer, that of the request which made it.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::smtp_accounts::networks;
use super::users::{place, whose};
use super::{Answer, Shared, tenant_name};
use crate::access::{Action, Actor, Scope};
use crate::ext::Timestamp;
use crate::mail::{Domain, KeyId};
use crate::people::{ApiKey, KeyChange, MadeKey, NewKey, OVERLAP_DEFAULT};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// An API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyJson {
    /// Its id, part of its text.
    pub id: String,
    /// Whose; `@instance` for the instance's.
    pub tenant: String,
    /// For people.
    pub name: String,
    /// What it may: `resource:action`.
    pub scopes: Vec<String>,
    /// Where it may come from; empty is anywhere.
    pub allowed_from: Vec<String>,
    /// Only these sending domains; empty is all.
    pub domains: Vec<String>,
    /// Last four characters of each good text, newest first.
    pub endings: Vec<String>,
    /// When it ends.
    pub expires: Option<String>,
    /// When the older text ends, if there are two.
    pub old_text_expires: Option<String>,
    /// When it was made.
    pub created: String,
    /// By whom.
    pub created_by: String,
    /// When it was last used, to within a minute.
    pub last_used: Option<String>,
    /// From where.
    pub last_used_from: Option<String>,
}

/// A key to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeyJson {
    /// Whose; `@instance` for the instance's.
    pub tenant: String,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// What it may: `resource:action`, such as `domains:read`.
    pub scopes: Vec<String>,
    /// Where it may come from: addresses or networks; empty is anywhere.
    #[serde(default)]
    pub allowed_from: Vec<String>,
    /// Only these sending domains and the names below them; empty is all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub domains: Vec<Domain>,
    /// When it ends (RFC 3339).
    #[serde(default)]
    pub expires: Option<String>,
}

/// What is to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyChangeJson {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it may come from; empty is anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_from: Option<Vec<String>>,
    /// When it ends (RFC 3339); empty is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// How a key is given a new text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotationJson {
    /// How many hours the old text stays good; 24 if absent, 0 ends it at once, 720 at most.
    pub overlap_hours: Option<u32>,
}

/// A key with its text, which is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeKeyJson {
    /// What is kept.
    pub key: KeyJson,
    /// For `Authorization: Bearer`.
    pub text: String,
}

fn json(parts: &Parts, key: &ApiKey) -> KeyJson {
    let words = |all: Vec<String>| all;
    let used = parts.people.key_use(key.id);
    KeyJson {
        id: key.id.to_string(),
        tenant: whose(parts, key.tenant),
        name: key.name.clone(),
        scopes: words(key.scopes.iter().map(ToString::to_string).collect()),
        allowed_from: words(key.allowed_from.iter().map(ToString::to_string).collect()),
        domains: words(key.domains.iter().map(ToString::to_string).collect()),
        endings: key.secrets.iter().map(|secret| secret.ending.clone()).collect(),
        expires: key.expires.map(Timestamp::rfc3339),
        old_text_expires: key.secrets.iter().find_map(|secret| secret.expires).map(Timestamp::rfc3339),
        created: key.created.rfc3339(),
        created_by: key.created_by.clone(),
        last_used: used.map(|used| used.at.rfc3339()),
        last_used_from: used.and_then(|used| used.from).map(|from| from.to_string()),
    }
}

fn made(parts: &Parts, made: &MadeKey) -> MadeKeyJson {
    MadeKeyJson { key: json(parts, &made.key), text: made.text.to_string() }
}

fn scopes(texts: &[String]) -> Result<Vec<Scope>, Problem> {
    let one = |(at, text): (usize, &String)| {
        text.parse()
            .map_err(|error: crate::access::ScopeUnreadable| Problem::field(format!("scopes[{at}]"), error.to_string()))
    };
    texts.iter().enumerate().map(one).collect()
}

fn moment(text: &str) -> Result<Timestamp, Problem> {
    Timestamp::from_rfc3339(text)
        .ok_or_else(|| Problem::field("expires", "must be a time such as 2027-01-31T12:00:00Z"))
}

fn read_id(text: &str) -> Result<KeyId, Problem> {
    text.parse().map_err(|_| Problem::missing(format!("key {text}")))
}

#[derive(Deserialize)]
pub(super) struct Chosen {
    tenant: Option<String>,
}

#[utoipa::path(
    get,
    path = "/keys",
    operation_id = "keys_list",
    tag = "keys",
    summary = "List: keys.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = PageJson<KeyJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(chosen): Query<Chosen>,
    paging: Paging,
) -> Answer<PageJson<KeyJson>> {
    let tenant = place(&parts, &actor, chosen.tenant.as_deref())?;
    let page = paging.of(parts.people.keys(&actor, tenant)?, |key| format!("{}\0{}", key.name, key.id));
    Ok(Json(PageJson { rows: page.rows.iter().map(|key| json(&parts, key)).collect(), next: page.next }))
}

#[utoipa::path(
    post,
    path = "/keys",
    operation_id = "keys_add",
    tag = "keys",
    summary = "Make: keys.",
    request_body = NewKeyJson,
    responses((status = 201, body = MadeKeyJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewKeyJson>,
) -> Result<(StatusCode, Json<MadeKeyJson>), Problem> {
    let tenant = place(&parts, &actor, Some(&asked.tenant))?;
    let new = NewKey {
        tenant,
        name: asked.name,
        scopes: scopes(&asked.scopes)?,
        allowed_from: networks(&asked.allowed_from)?,
        domains: asked.domains,
        expires: asked.expires.as_deref().map(moment).transpose()?,
    };
    let name = tenant.map(|tenant| tenant_name(&parts, tenant));
    let key = parts.people.add_key(&actor, (new, name.as_deref()), Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(made(&parts, &key))))
}

#[utoipa::path(
    get,
    path = "/keys/{key}",
    operation_id = "keys_show",
    tag = "keys",
    summary = "Show: keys.",
    params(("key" = String, Path)),
    responses((status = 200, body = KeyJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(key): Path<String>,
) -> Answer<KeyJson> {
    Ok(Json(json(&parts, &parts.people.key_for(&actor, read_id(&key)?, Action::Read)?)))
}

#[utoipa::path(
    patch,
    path = "/keys/{key}",
    operation_id = "keys_change",
    tag = "keys",
    summary = "Change: keys.",
    params(("key" = String, Path)),
    request_body = KeyChangeJson,
    responses((status = 200, body = KeyJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(key): Path<String>,
    JsonBody(asked): JsonBody<KeyChangeJson>,
) -> Answer<KeyJson> {
    let expires = match asked.expires.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(text) => Some(Some(moment(text)?)),
    };
    let allowed_from = asked.allowed_from.map(|texts| networks(&texts)).transpose()?;
    let change = KeyChange { name: asked.name, allowed_from, expires };
    let key = parts.people.change_key(&actor, read_id(&key)?, change, Timestamp::now()).await?;
    Ok(Json(json(&parts, &key)))
}

#[utoipa::path(
    post,
    path = "/keys/{key}/rotate",
    operation_id = "keys_rotate",
    tag = "keys",
    summary = "Rotate: keys.",
    params(("key" = String, Path)),
    request_body = RotationJson,
    responses((status = 200, body = MadeKeyJson, description = "done"))
)]
pub(super) async fn rotate(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(key): Path<String>,
    JsonBody(asked): JsonBody<RotationJson>,
) -> Answer<MadeKeyJson> {
    let before = parts.people.key_for(&actor, read_id(&key)?, Action::Write)?;
    let name = before.tenant.map(|tenant| tenant_name(&parts, tenant));
    let overlap = asked.overlap_hours.map_or(OVERLAP_DEFAULT, |hours| Duration::from_secs(u64::from(hours) * 3600));
    let which = (before.id, name.as_deref());
    let rotated = parts.people.rotate_key(&actor, which, overlap, Timestamp::now()).await?;
    Ok(Json(made(&parts, &rotated)))
}

#[utoipa::path(
    delete,
    path = "/keys/{key}",
    operation_id = "keys_remove",
    tag = "keys",
    summary = "Remove: keys.",
    params(("key" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(key): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.people.remove_key(&actor, read_id(&key)?, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
