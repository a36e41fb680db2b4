//! `/operations` and `/tenants/{tenant}/operations`: imports and exports of lists, their progress and their files.
//!
//! Easy to get wrong: a file comes and goes in pieces; nothing here holds one whole.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use utoipa::ToSchema;

use super::suppressions::{Asked, Asking};
use super::{Answer, Shared, tenant_called};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId};
use crate::operations::{Form, KIND_WORDS, Kind, Operation, OperationId, Part, STATE_WORDS, State as Standing, Wanted};
use crate::suppression::{Colour, Reason};
use crate::web::Parts;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;
use crate::web::replay::Deferred;

/// Octets of a file sent at a time.
const PIECE_OCTETS: usize = 64 * 1024;
/// Octets of a text that is looked for, at most.
const TEXT_OCTETS_MAX: usize = 200;

/// Work that takes longer than a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationJson {
    /// Its id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// `import`, `export`, `tenant-export`.
    pub kind: String,
    /// `black`, `white`.
    #[schema(value_type = String)]
    pub list: Colour,
    /// The list of this SMTP account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp_account: Option<String>,
    /// Who began it, as the audit log names it.
    pub by: String,
    /// When it was begun.
    pub began: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// `waiting`, `running`, `done`, `cancelled`, `failed`.
    pub state: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of what came in, how much is dealt with, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
    /// Lines dealt with.
    pub lines: u64,
    /// Entries made.
    pub added: u64,
    /// Lines whose entry was there already.
    pub present: u64,
    /// Lines rejected.
    pub rejected: u64,
    /// Entries written to the result.
    pub written: u64,
}

/// What people call an SMTP account.
fn login(parts: &Parts, id: SmtpAccountId) -> String {
    parts.accounts.smtp_account(id).map_or_else(|| format!("{id} (removed)"), |account| account.login)
}

fn json(parts: &Parts, operation: Operation) -> OperationJson {
    OperationJson {
        id: operation.id.to_string(),
        tenant: super::tenant_name(parts, operation.tenant),
        kind: operation.kind.word().to_owned(),
        list: operation.colour,
        smtp_account: operation.account.map(|id| login(parts, id)),
        by: operation.by,
        began: operation.began.rfc3339(),
        finished: operation.finished.map(Timestamp::rfc3339),
        state: operation.state.word().to_owned(),
        progress: operation.at.saturating_mul(100).checked_div(operation.octets),
        why: match operation.state {
            Standing::Failed(why) => Some(why),
            _ => None,
        },
        lines: operation.lines,
        added: operation.added,
        present: operation.present,
        rejected: operation.rejected,
        written: operation.written,
    }
}

fn read_id(text: &str) -> Result<OperationId, Problem> {
    text.parse().map_err(|_| Problem::missing(format!("operation {text}")))
}

#[derive(Debug, Deserialize)]
pub(super) struct Shape {
    form: Option<Form>,
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/suppression-imports",
    operation_id = "suppressions_import",
    tag = "operations",
    summary = "Begin: an import of suppressions from CSV.",
    params(
        ("tenant" = String, Path),
        ("list" = Option<String>, Query, description = "`black` (if absent) or `white`"),
        ("smtp_account" = Option<String>, Query, description = "the list of this login"),
        ("reason" = Option<String>, Query, description = "for lines that name none; `import` if absent")
    ),
    request_body(content = String, content_type = "text/csv"),
    responses((status = 202, body = OperationJson, description = "the file is on disk"))
)]
pub(super) async fn import(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    asking: Asking,
    deferred: Option<Extension<Deferred>>,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let asked = Asked::read(asking)?;
    let (place, reason) = (asked.place(&parts, tenant.id)?, asked.reason.unwrap_or(Reason::Import));
    let mut upload = parts.operations.upload(&actor, place, reason, Timestamp::now()).await?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let broken = |_| Problem::new(StatusCode::BAD_REQUEST, "unreadable", "the body could not be read");
        upload.write(&piece.map_err(broken)?).await?;
    }
    let digest = upload.digest();
    let begin = async move {
        let begun = parts.operations.uploaded(&actor, upload, Timestamp::now()).await;
        let told = begun.map(|operation| (StatusCode::ACCEPTED, Json(json(&parts, operation))).into_response());
        told.unwrap_or_else(|error| Problem::from(error).into_response())
    };
    Ok(match deferred {
        Some(Extension(deferred)) => deferred.once(digest, begin).await,
        None => begin.await,
    })
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/suppression-exports",
    operation_id = "suppressions_export",
    tag = "operations",
    summary = "Begin: an export of suppressions to CSV.",
    params(
        ("tenant" = String, Path),
        ("list" = Option<String>, Query, description = "`black` (if absent) or `white`"),
        ("smtp_account" = Option<String>, Query, description = "the list of this login"),
        ("form" = Option<String>, Query, description = "`plain` (if absent), or `hashed`: SHA-256 of each subject")
    ),
    responses((status = 202, body = OperationJson, description = "it will be made"))
)]
pub(super) async fn export(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    asking: Asking,
    shape: Result<Query<Shape>, axum::extract::rejection::QueryRejection>,
) -> Result<(StatusCode, Json<OperationJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let place = Asked::read(asking)?.place(&parts, tenant.id)?;
    let Query(shape) = shape.map_err(|error| Problem::field("form", error.body_text()))?;
    let form = shape.form.unwrap_or_default();
    let operation = parts.operations.export(&actor, place, form, Timestamp::now()).await?;
    Ok((StatusCode::ACCEPTED, Json(json(&parts, operation))))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/export",
    operation_id = "tenants_export",
    tag = "operations",
    summary = "Begin: an export of everything that is kept of a tenant.",
    params(("tenant" = String, Path)),
    responses((status = 202, body = OperationJson, description = "it will be made"))
)]
pub(super) async fn export_tenant(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
) -> Result<(StatusCode, Json<OperationJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let operation = parts.operations.export_tenant(&actor, tenant.id, Timestamp::now()).await?;
    Ok((StatusCode::ACCEPTED, Json(json(&parts, operation))))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/operations",
    operation_id = "operations_list",
    tag = "operations",
    summary = "List: operations of a tenant that fit, newest first.",
    params(
        ("tenant" = String, Path),
        ("kind" = Option<String>, Query, description = "`import`, `export`, `tenant-export`"),
        ("state" = Option<String>, Query, description = "`waiting`, `running`, `done`, `cancelled`, `failed`"),
        ("text" = Option<String>, Query, description = "part of its id, who began it, the SMTP account, why it failed"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = PageJson<OperationJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    looked: LookedFor,
    paging: Paging,
) -> Answer<PageJson<OperationJson>> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    found(&parts, &actor, (Some(tenant.id), looked), &paging)
}

#[utoipa::path(
    get,
    path = "/operations",
    operation_id = "operations_search",
    tag = "operations",
    summary = "List: operations that fit, of all tenants or of that of whoever asks, newest first.",
    params(
        ("tenant" = Option<String>, Query, description = "only of this one"),
        ("kind" = Option<String>, Query, description = "`import`, `export`, `tenant-export`"),
        ("state" = Option<String>, Query, description = "`waiting`, `running`, `done`, `cancelled`, `failed`"),
        ("text" = Option<String>, Query, description = "part of its id, who began it, the SMTP account, why it failed"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = PageJson<OperationJson>, description = "done"))
)]
pub(super) async fn search(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    looked: LookedFor,
    paging: Paging,
) -> Answer<PageJson<OperationJson>> {
    let named = match &looked {
        Ok(Query(looked)) => looked.tenant.as_deref(),
        Err(_) => None,
    };
    let tenant = match named {
        Some(name) => Some(tenant_called(&parts, &actor, name)?.id),
        None => actor.role.tenant(),
    };
    found(&parts, &actor, (tenant, looked), &paging)
}

/// What is looked for.
#[derive(Debug, Deserialize)]
pub(super) struct Looked {
    tenant: Option<String>,
    kind: Option<String>,
    state: Option<String>,
    text: Option<String>,
}

type LookedFor = Result<Query<Looked>, axum::extract::rejection::QueryRejection>;

fn found(
    parts: &Parts,
    actor: &Actor,
    (tenant, looked): (Option<TenantId>, LookedFor),
    paging: &Paging,
) -> Answer<PageJson<OperationJson>> {
    let Query(looked) = looked.map_err(|error| Problem::field("query", error.body_text()))?;
    if looked.text.as_ref().is_some_and(|text| text.len() > TEXT_OCTETS_MAX) {
        return Err(Problem::field("text", format!("has more than {TEXT_OCTETS_MAX} octets")));
    }
    let wanted = Wanted {
        tenant,
        kind: word("kind", looked.kind, KIND_WORDS)?,
        state: word("state", looked.state, STATE_WORDS)?,
        text: looked.text.filter(|text| !text.is_empty()),
    };
    // Ids begin with the time; turned round they are in the order of the list.
    let key = |operation: &Operation| operation.id.0.iter().map(|octet| format!("{:02x}", !octet)).collect::<String>();
    let page = paging.of(parts.operations.list(actor, &wanted, |id| login(parts, id))?, key);
    let rows = page.rows.into_iter().map(|operation| json(parts, operation)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

fn word(field: &str, given: Option<String>, known: &[&'static str]) -> Result<Option<&'static str>, Problem> {
    let Some(given) = given else { return Ok(None) };
    let found = known.iter().copied().find(|word| *word == given);
    found.map(Some).ok_or_else(|| Problem::field(field, format!("must be one of {}", known.join(", "))))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/operations/{operation}",
    operation_id = "operations_show",
    tag = "operations",
    summary = "Show: an operation.",
    params(("tenant" = String, Path), ("operation" = String, Path)),
    responses((status = 200, body = OperationJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, operation)): Path<(String, String)>,
) -> Answer<OperationJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let operation = parts.operations.get(&actor, tenant.id, read_id(&operation)?)?;
    Ok(Json(json(&parts, operation)))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/operations/{operation}/cancel",
    operation_id = "operations_cancel",
    tag = "operations",
    summary = "Cancel: an operation; what it did stays.",
    params(("tenant" = String, Path), ("operation" = String, Path)),
    responses((status = 200, body = OperationJson, description = "it stops soon"))
)]
pub(super) async fn cancel(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, operation)): Path<(String, String)>,
) -> Answer<OperationJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let id = read_id(&operation)?;
    let operation = parts.operations.cancel(&actor, tenant.id, id, Timestamp::now()).await?;
    Ok(Json(json(&parts, operation)))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/operations/{operation}/result",
    operation_id = "operations_result",
    tag = "operations",
    summary = "Fetch: what an export made.",
    params(("tenant" = String, Path), ("operation" = String, Path)),
    responses((status = 200, content((String = "text/csv"), (String = "application/zstd")), description = "the file: CSV of a list, compressed lines of JSON of a tenant"))
)]
pub(super) async fn result(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, operation)): Path<(String, String)>,
) -> Result<Response, Problem> {
    file(&parts, &actor, (&tenant, &operation), Part::Result).await
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/operations/{operation}/rejected",
    operation_id = "operations_rejected",
    tag = "operations",
    summary = "Fetch: the lines an import rejected.",
    params(("tenant" = String, Path), ("operation" = String, Path)),
    responses((status = 200, content_type = "text/csv", body = String, description = "the file"))
)]
pub(super) async fn rejected(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, operation)): Path<(String, String)>,
) -> Result<Response, Problem> {
    file(&parts, &actor, (&tenant, &operation), Part::Rejected).await
}

async fn file(parts: &Parts, actor: &Actor, (tenant, id): (&str, &str), part: Part) -> Result<Response, Problem> {
    let tenant = tenant_called(parts, actor, tenant)?;
    let (id, now) = (read_id(id)?, Timestamp::now());
    let path = parts.operations.file(actor, (tenant.id, id), part, now)?;
    let is_whole = parts.operations.get(actor, tenant.id, id)?.kind == Kind::Tenant;
    let unread = |error| {
        let detail = "the file could not be read; the log has the details";
        Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail, error)
    };
    let file = tokio::fs::File::open(path).await.map_err(unread)?;
    let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE_OCTETS];
        let read = file.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((piece, file)))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    let (kind, name) = if is_whole {
        ("application/zstd", "attachment; filename=\"tenant.jsonl.zst\"")
    } else {
        ("text/csv; charset=utf-8", "attachment; filename=\"list.csv\"")
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static(name));
    Ok(response)
}
