//! `/tenants/{tenant}/suppressions`: addresses and domains a tenant never mails.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::suppression::{Entry, NewEntry, Origin, Reason, Subject};
use crate::web::body::JsonBody;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::Problem;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuppressionJson {
    /// The address, or the domain for all of its addresses.
    pub subject: String,
    /// `manual`, `import`, `hard_bounce`, `complaint`, `unsubscribe`.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// `operator`, `tenant`, `recipient`, `system`.
    #[schema(value_type = String)]
    pub origin: Origin,
    /// When it was first put there.
    pub added: String,
    /// For people.
    pub note: String,
}

/// An entry to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSuppressionJson {
    /// An address, or a domain for all of its addresses.
    pub subject: String,
    /// For people.
    #[serde(default)]
    pub note: String,
}

fn json(entry: Entry) -> SuppressionJson {
    SuppressionJson {
        subject: entry.subject.to_string(),
        reason: entry.reason,
        origin: entry.origin,
        added: entry.added.rfc3339(),
        note: entry.note,
    }
}

fn read(field: &str, text: &str) -> Result<Subject, Problem> {
    let unread = |error| Problem::field(field, format!("{text:?} is neither an address nor a domain: {error}"));
    Subject::parse(text).map_err(unread)
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/suppressions",
    operation_id = "suppressions_list",
    tag = "suppressions",
    summary = "List: suppressions.",
    params(("tenant" = String, Path), ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<SuppressionJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    paging: Paging,
) -> Answer<PageJson<SuppressionJson>> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let from = paging.after.as_deref().map(|text| read("cursor", text)).transpose()?;
    let page = parts.suppression.list(&actor, tenant.id, from.as_ref(), paging.limit)?;
    let next = page.next.map(|subject| paging::wrap(&subject.to_string()));
    Ok(Json(PageJson { rows: page.entries.into_iter().map(json).collect(), next }))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/suppressions/{subject}",
    operation_id = "suppressions_show",
    tag = "suppressions",
    summary = "Show: suppressions.",
    params(("tenant" = String, Path), ("subject" = String, Path)),
    responses((status = 200, body = SuppressionJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, subject)): Path<(String, String)>,
) -> Answer<SuppressionJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let subject = read("subject", &subject)?;
    let entry = parts.suppression.entry(&actor, tenant.id, &subject)?;
    let missing = || Problem::missing(format!("suppression of {subject}"));
    entry.map(|entry| Json(json(entry))).ok_or_else(missing)
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/suppressions",
    operation_id = "suppressions_add",
    tag = "suppressions",
    summary = "Make: suppressions.",
    params(("tenant" = String, Path)),
    request_body = NewSuppressionJson,
    responses((status = 201, body = SuppressionJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    JsonBody(asked): JsonBody<NewSuppressionJson>,
) -> Result<(StatusCode, Json<SuppressionJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let subject = read("subject", &asked.subject)?;
    let new = NewEntry { subject: subject.clone(), reason: Reason::Manual, origin: Origin::Operator, note: asked.note };
    parts.suppression.add(&actor, tenant.id, new, Timestamp::now()).await?;
    let entry = parts.suppression.entry(&actor, tenant.id, &subject)?;
    let gone = || Problem::missing(format!("suppression of {subject} any more"));
    entry.map(|entry| (StatusCode::CREATED, Json(json(entry)))).ok_or_else(gone)
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/suppressions/{subject}",
    operation_id = "suppressions_remove",
    tag = "suppressions",
    summary = "Remove: suppressions.",
    params(("tenant" = String, Path), ("subject" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, subject)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let subject = read("subject", &subject)?;
    parts.suppression.remove(&actor, tenant.id, &subject, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
