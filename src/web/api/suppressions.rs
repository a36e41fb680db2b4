//! `/tenants/{tenant}/suppressions`: addresses and domains a tenant never mails, and those it mails all the
//! same; for all of its mail, or for that of one SMTP account.
//!
//! Easy to get wrong: `list` and `smtp_account` in the query say which list is meant; without them it is the
//! tenant's own blacklist.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::suppression::{Colour, Entry, NewEntry, Origin, PAGE_MAX, Place, Reason, Search, Subject};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::{Problem, all_read, both};

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
    /// When it was put there.
    pub added: String,
    /// Who put it there, as the audit log names it.
    #[serde(default)]
    pub by: String,
    /// When it lapses; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Whether it has lapsed and counts no more.
    #[serde(default)]
    pub lapsed: bool,
    /// For people.
    pub note: String,
}

/// An entry to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSuppressionJson {
    /// An address, or a domain for all of its addresses.
    pub subject: String,
    /// `manual` if absent; `hard_bounce`, `complaint` or `unsubscribe` for what another system found out.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When it lapses (RFC 3339); absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// For people.
    #[serde(default)]
    pub note: String,
}

/// Entries to be made and removed in one step, 1000 together at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SuppressionChangesJson {
    /// To be made; one that is there already stays as it was.
    pub add: Vec<NewSuppressionJson>,
    /// Addresses and domains to be removed; one that is not there is no mistake.
    pub remove: Vec<String>,
}

/// What a change of several entries did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuppressionsChangedJson {
    /// Entries made.
    pub added: usize,
    /// Entries removed.
    pub removed: usize,
}

/// Which list, and what of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    list: Option<Colour>,
    smtp_account: Option<String>,
    beginning: Option<String>,
    /// With this reason.
    pub(super) reason: Option<Reason>,
}

pub(super) type Asking = Result<Query<Asked>, axum::extract::rejection::QueryRejection>;

impl Asked {
    pub(super) fn read(asking: Asking) -> Result<Self, Problem> {
        let Query(asked) = asking.map_err(|error| Problem::field("query", error.body_text()))?;
        Ok(asked)
    }

    pub(super) fn place(&self, parts: &Parts, tenant: TenantId) -> Result<Place, Problem> {
        let account = match &self.smtp_account {
            None => None,
            Some(login) => {
                let found = parts.accounts.smtp_account_named(login).filter(|account| account.tenant == tenant);
                Some(found.ok_or_else(|| Problem::missing(format!("SMTP account {login}")))?.id)
            }
        };
        Ok(Place { tenant, account, colour: self.list.unwrap_or_default() })
    }
}

fn json(entry: Entry, now: Timestamp) -> SuppressionJson {
    SuppressionJson {
        subject: entry.subject.to_string(),
        reason: entry.reason,
        origin: entry.origin,
        added: entry.added.rfc3339(),
        lapsed: !entry.is_current(now),
        expires: entry.expires.map(Timestamp::rfc3339),
        by: entry.by,
        note: entry.note,
    }
}

fn read(field: &str, text: &str) -> Result<Subject, Problem> {
    let unread = |error| Problem::field(field, format!("{text:?} is neither an address nor a domain: {error}"));
    Subject::parse(text).map_err(unread)
}

fn new_entry(path: &str, actor: &Actor, asked: NewSuppressionJson) -> Result<NewEntry, Problem> {
    let at = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    let moment = |text: String| {
        Timestamp::from_rfc3339(&text)
            .ok_or_else(|| Problem::field(at("expires"), "must be a time such as 2027-01-31T12:00:00Z"))
    };
    Ok(NewEntry {
        subject: read(&at("subject"), &asked.subject)?,
        reason: asked.reason.unwrap_or(Reason::Manual),
        origin: if actor.role.tenant().is_some() { Origin::Tenant } else { Origin::Operator },
        expires: asked.expires.map(moment).transpose()?,
        note: asked.note,
    })
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/suppressions",
    operation_id = "suppressions_list",
    tag = "suppressions",
    summary = "List: suppressions.",
    params(
        ("tenant" = String, Path),
        ("list" = Option<String>, Query, description = "`black` (if absent) or `white`"),
        ("smtp_account" = Option<String>, Query, description = "the list of this login"),
        ("beginning" = Option<String>, Query, description = "only what begins with this"),
        ("reason" = Option<String>, Query, description = "only what is there for this"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 250),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = PageJson<SuppressionJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    asking: Asking,
    paging: Paging,
) -> Answer<PageJson<SuppressionJson>> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let asked = Asked::read(asking)?;
    let place = asked.place(&parts, tenant.id)?;
    let from = paging.after.as_deref().map(|text| read("cursor", text)).transpose()?;
    let beginning = asked.beginning.unwrap_or_default().trim_start_matches('@').to_lowercase();
    let search = Search { beginning, reason: asked.reason };
    let (list, limit) = (parts.suppression.clone(), paging.limit);
    let page = super::off_workers(move || list.search(&actor, (place, &search), from.as_ref(), limit)).await?;
    let (next, now) = (page.next.map(|subject| paging::wrap(&subject.to_string())), Timestamp::now());
    Ok(Json(PageJson { rows: page.entries.into_iter().map(|entry| json(entry, now)).collect(), next }))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/suppressions/{subject}",
    operation_id = "suppressions_show",
    tag = "suppressions",
    summary = "Show: suppressions.",
    params(
        ("tenant" = String, Path),
        ("subject" = String, Path),
        ("list" = Option<String>, Query),
        ("smtp_account" = Option<String>, Query)
    ),
    responses((status = 200, body = SuppressionJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, subject)): Path<(String, String)>,
    asking: Asking,
) -> Answer<SuppressionJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let (place, subject) = (Asked::read(asking)?.place(&parts, tenant.id)?, read("subject", &subject)?);
    let entry = parts.suppression.entry(&actor, place, &subject)?;
    let missing = || Problem::missing(format!("entry for {subject}"));
    entry.map(|entry| Json(json(entry, Timestamp::now()))).ok_or_else(missing)
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/suppressions",
    operation_id = "suppressions_add",
    tag = "suppressions",
    summary = "Make: suppressions.",
    params(("tenant" = String, Path), ("list" = Option<String>, Query), ("smtp_account" = Option<String>, Query)),
    request_body = NewSuppressionJson,
    responses((status = 201, body = SuppressionJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    asking: Asking,
    JsonBody(asked): JsonBody<NewSuppressionJson>,
) -> Result<(StatusCode, Json<SuppressionJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let place = Asked::read(asking)?.place(&parts, tenant.id)?;
    let (new, now) = (new_entry("", &actor, asked)?, Timestamp::now());
    let subject = new.subject.clone();
    parts.suppression.add(&actor, place, new, now).await?;
    let entry = parts.suppression.entry(&actor, place, &subject)?;
    let gone = || Problem::missing(format!("entry for {subject} any more"));
    entry.map(|entry| (StatusCode::CREATED, Json(json(entry, now)))).ok_or_else(gone)
}

#[utoipa::path(
    patch,
    path = "/tenants/{tenant}/suppressions",
    operation_id = "suppressions_change",
    tag = "suppressions",
    summary = "Make and remove several: suppressions.",
    params(("tenant" = String, Path), ("list" = Option<String>, Query), ("smtp_account" = Option<String>, Query)),
    request_body = SuppressionChangesJson,
    responses((status = 200, body = SuppressionsChangedJson, description = "all of it, or nothing if something is wrong"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    asking: Asking,
    JsonBody(asked): JsonBody<SuppressionChangesJson>,
) -> Answer<SuppressionsChangedJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let place = Asked::read(asking)?.place(&parts, tenant.id)?;
    if asked.add.len().saturating_add(asked.remove.len()) > PAGE_MAX {
        return Err(Problem::field("add", format!("and remove are at most {PAGE_MAX} together")));
    }
    let new = asked.add.into_iter().enumerate();
    let new = new.map(|(at, new)| new_entry(&format!("add[{at}]"), &actor, new));
    let gone = asked.remove.iter().enumerate();
    let gone = gone.map(|(at, text)| read(&format!("remove[{at}]"), text));
    let (new, gone) = both(all_read(new), all_read(gone))?;
    let changed = parts.suppression.change(&actor, place, (new, gone), Timestamp::now()).await?;
    Ok(Json(SuppressionsChangedJson { added: changed.added, removed: changed.removed }))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/suppressions/{subject}",
    operation_id = "suppressions_remove",
    tag = "suppressions",
    summary = "Remove: suppressions.",
    params(
        ("tenant" = String, Path),
        ("subject" = String, Path),
        ("list" = Option<String>, Query),
        ("smtp_account" = Option<String>, Query)
    ),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, subject)): Path<(String, String)>,
    asking: Asking,
) -> Result<StatusCode, Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let (place, subject) = (Asked::read(asking)?.place(&parts, tenant.id)?, read("subject", &subject)?);
    parts.suppression.remove(&actor, place, &subject, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
