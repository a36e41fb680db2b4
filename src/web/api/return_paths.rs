//! `/tenants/{tenant}/domains/{domain}/return-path`: the name below a domain to which notices about its mail come.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::domains::{RecordJson, name, owner};
use super::{Answer, Shared};
use crate::access::Actor;
use crate::domains::{RecordState, ReturnPath, State as DomainState};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::problem::Problem;

/// The return-path of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReturnPathJson {
    /// The sending domain.
    pub domain: String,
    /// The name below it.
    pub name: String,
    /// `pending`, `verified` (mail uses it), `unverified` (its records are gone).
    pub state: String,
    /// Since when.
    pub since: Option<String>,
    /// When DNS was last asked.
    pub last_check: Option<String>,
    /// What is wrong with its MX, if something is.
    pub mx_problem: Option<String>,
    /// What is wrong with its SPF record, if something is.
    pub spf_problem: Option<String>,
    /// Records to publish.
    pub records: Vec<RecordJson>,
}

/// A return-path to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewReturnPathJson {
    /// A name below the domain; `bounce` below it if absent.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Domain>,
}

fn json(parts: &Parts, path: &ReturnPath) -> ReturnPathJson {
    let (state, since) = match path.state {
        DomainState::Pending => ("pending", None),
        DomainState::Verified(since) => ("verified", Some(since)),
        DomainState::Unverified(since) => ("unverified", Some(since)),
    };
    let problem = |record: &RecordState| match record {
        RecordState::Wrong(why) => Some(why.clone()),
        RecordState::Unknown | RecordState::Found => None,
    };
    let records = path.records(&parts.domains.expected(path.tenant));
    let published = [&path.mx, &path.spf].map(|record| match record {
        RecordState::Unknown => None,
        RecordState::Found => Some(true),
        RecordState::Wrong(_) => Some(false),
    });
    ReturnPathJson {
        domain: path.domain.to_string(),
        name: path.name.to_string(),
        state: state.to_owned(),
        since: since.map(Timestamp::rfc3339),
        last_check: path.last_check.map(Timestamp::rfc3339),
        mx_problem: problem(&path.mx),
        spf_problem: problem(&path.spf),
        records: records.iter().zip(published).map(|(record, published)| RecordJson::of(record, published)).collect(),
    }
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains/{domain}/return-path",
    operation_id = "return_paths_show",
    tag = "domains",
    summary = "Show: return-path of a domain.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = ReturnPathJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<ReturnPathJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    parts.domains.get(&actor, tenant, &domain)?;
    let path = parts.domains.return_path(&actor, tenant, &domain)?;
    let missing = || Problem::missing(format!("return-path of {domain}"));
    path.map(|path| Json(json(&parts, &path))).ok_or_else(missing)
}

#[utoipa::path(
    put,
    path = "/tenants/{tenant}/domains/{domain}/return-path",
    operation_id = "return_paths_set",
    tag = "domains",
    summary = "Set: return-path of a domain.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    request_body = NewReturnPathJson,
    responses((status = 200, body = ReturnPathJson, description = "used once its records are found"))
)]
pub(super) async fn set(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
    JsonBody(asked): JsonBody<NewReturnPathJson>,
) -> Answer<ReturnPathJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let path = parts.domains.set_return_path(&actor, (tenant, &domain), asked.name, Timestamp::now()).await?;
    Ok(Json(json(&parts, &path)))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/domains/{domain}/return-path/verify",
    operation_id = "return_paths_verify",
    tag = "domains",
    summary = "Verify: return-path of a domain.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = ReturnPathJson, description = "as it is now"))
)]
pub(super) async fn verify(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<ReturnPathJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let path = parts.domains.verify_return_path(&actor, (tenant, &domain), Timestamp::now()).await?;
    let missing = || Problem::missing(format!("return-path of {domain}"));
    path.map(|path| Json(json(&parts, &path))).ok_or_else(missing)
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/domains/{domain}/return-path",
    operation_id = "return_paths_remove",
    tag = "domains",
    summary = "Remove: return-path of a domain.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    parts.domains.remove_return_path(&actor, (tenant, &domain), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
