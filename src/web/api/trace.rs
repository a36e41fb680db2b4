//! `/traces`: live sessions, followed by whoever may read the mail they are about.
//!
//! Easy to get wrong: a session belongs to no tenant before it has logged in; a tenant's people see it
//! from then on only, and never anybody else's.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called, tenant_name, vip_called};
use crate::access::{Action, Actor, Permission};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::{self, Act, AdminError, pseudonym};
use crate::store::Batch;
use crate::trace::{Direction, Side, TraceFilter, TracedLine};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::problem::Problem;

/// How long an answer waits for something to be said.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which sessions are followed: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewTraceJson {
    /// `in`: clients hand mail in; `out`: we deliver.
    pub direction: Option<String>,
    /// Of this tenant, once that is known.
    pub tenant: Option<String>,
    /// On this virtual IP.
    pub vip: Option<String>,
    /// With this peer.
    #[schema(value_type = Option<String>)]
    pub peer: Option<IpAddr>,
    /// Towards a mail host or domain with this in its name.
    pub to: Option<String>,
    /// That name this address in MAIL or RCPT; followed from that line on.
    pub address: Option<String>,
}

/// Somebody follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceJson {
    /// What to read by; gone after a minute in which nobody read.
    pub trace: u64,
}

/// What was said since the last reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedJson {
    /// In the order it was said.
    pub lines: Vec<TracedLineJson>,
    /// Lines left out because nobody read in time.
    pub left_out: u64,
}

/// One line of a session. Secrets and the text of messages are never in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedLineJson {
    /// When.
    pub at: String,
    /// Of which session.
    pub session: u64,
    /// `in`, `out`.
    pub direction: String,
    /// Whose, once that is known.
    pub tenant: Option<String>,
    /// On which virtual IP: its EHLO name.
    pub vip: String,
    /// With whom.
    pub peer: String,
    /// Where to.
    pub to: Option<String>,
    /// Who said it: `ours`, `theirs`; `note` is something that happened.
    pub side: String,
    /// What.
    pub text: String,
}

fn filter(parts: &Parts, actor: &Actor, asked: NewTraceJson) -> Result<TraceFilter, Problem> {
    let direction = match asked.direction.as_deref() {
        None => None,
        Some("in") => Some(Direction::In),
        Some("out") => Some(Direction::Out),
        Some(_) => return Err(Problem::field("direction", "is in or out")),
    };
    let tenant = match &asked.tenant {
        Some(name) => Some(tenant_called(parts, actor, name)?.id),
        None => actor.role.tenant(),
    };
    let vip = asked.vip.as_deref().map(|vip| vip_called(parts, actor, vip)).transpose()?;
    let (to, peer) = (asked.to, asked.peer.map(|peer| peer.to_canonical()));
    let filter =
        TraceFilter { direction, tenant, vip: vip.map(|vip| vip.id), peer, towards: to, address: asked.address };
    require(actor, &filter)?;
    Ok(filter)
}

/// Whoever may read a tenant's queue may follow its sessions; everybody's is the instance's.
fn require(actor: &Actor, filter: &TraceFilter) -> Result<(), Problem> {
    // Sessions are of a tenant, not of an SMTP account: nobody who is narrowed to some follows them.
    let may = match filter.tenant {
        Some(tenant) => actor.require_mail((tenant, Action::Read), None, None),
        None => actor.require(Permission::ManageInstance),
    };
    Ok(may.map_err(AdminError::from)?)
}

/// Says in the audit log whose sessions somebody follows: the tenant's, if it is one tenant's. Addresses are said by
/// their pseudonyms.
async fn write_down(parts: &Parts, actor: &Actor, (trace, filter): (u64, &TraceFilter)) -> Result<(), AdminError> {
    let act = Act::new("trace.begin", format!("trace {trace}"));
    let act = act.of_any(filter.tenant);
    let hidden = |text: &String| pseudonym(filter.tenant.unwrap_or(TenantId(0)), &text.to_ascii_lowercase());
    let mut facts = vec![
        ("vip", filter.vip.map(|vip| vip.to_string())),
        ("peer", filter.peer.map(|peer| peer.to_string())),
        ("to", filter.towards.clone()),
        ("address", filter.address.as_ref().map(hidden)),
    ];
    facts.retain(|(_, value)| value.is_some());
    let act = facts.into_iter().fold(act, |act, (field, value)| act.changed(field, None, value));
    let mut batch = Batch::new();
    records::record(&mut batch, actor, act, Timestamp::now());
    Ok(parts.store.commit(batch).await?)
}

/// A trace that the actor may read; another one does not exist.
fn called(parts: &Parts, actor: &Actor, text: &str) -> Result<u64, Problem> {
    let missing = || Problem::missing(format!("trace {text}; it ends after a minute in which nobody read"));
    let number = text.parse().map_err(|_| missing())?;
    let filter = parts.tracer.filter_of(number).ok_or_else(missing)?;
    require(actor, &filter).map_err(|_| missing())?;
    Ok(number)
}

fn json(parts: &Parts, line: TracedLine) -> TracedLineJson {
    TracedLineJson {
        at: line.at.rfc3339(),
        session: line.session,
        direction: if line.facts.direction == Direction::In { "in" } else { "out" }.to_owned(),
        tenant: line.facts.tenant.map(|tenant| tenant_name(parts, tenant)),
        vip: parts.vips.get(line.facts.vip).map_or_else(|| line.facts.vip.to_string(), |vip| vip.ehlo.to_string()),
        peer: line.facts.peer.to_string(),
        to: line.facts.towards.clone(),
        side: match line.side {
            Side::Ours => "ours",
            Side::Theirs => "theirs",
            Side::Note => "note",
        }
        .to_owned(),
        text: line.text,
    }
}

#[utoipa::path(
    post,
    path = "/traces",
    operation_id = "traces_add",
    tag = "traces",
    summary = "Follow: live sessions.",
    request_body = NewTraceJson,
    responses((status = 201, body = TraceJson, description = "followed"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewTraceJson>,
) -> Result<(StatusCode, Json<TraceJson>), Problem> {
    let filter = filter(&parts, &actor, asked)?;
    // What is followed is written down before anything of it is shown.
    let trace = parts.tracer.follow(filter.clone()).map_err(AdminError::Invalid)?;
    if let Err(error) = write_down(&parts, &actor, (trace, &filter)).await {
        parts.tracer.leave(trace);
        return Err(error.into());
    }
    Ok((StatusCode::CREATED, Json(TraceJson { trace })))
}

#[utoipa::path(
    get,
    path = "/traces/{trace}",
    operation_id = "traces_read",
    tag = "traces",
    summary = "Read: what was said since the last reading; waits up to 10 seconds for something.",
    params(("trace" = String, Path)),
    responses((status = 200, body = TracedJson, description = "done"))
)]
pub(super) async fn read(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(trace): Path<String>,
) -> Answer<TracedJson> {
    let number = called(&parts, &actor, &trace)?;
    let traced = parts.tracer.read(number, PATIENCE).await;
    let traced = traced.ok_or_else(|| Problem::missing(format!("trace {trace}")))?;
    let lines = traced.lines.into_iter().map(|line| json(&parts, line)).collect();
    Ok(Json(TracedJson { lines, left_out: traced.left_out }))
}

#[utoipa::path(
    delete,
    path = "/traces/{trace}",
    operation_id = "traces_leave",
    tag = "traces",
    summary = "End: following live sessions.",
    params(("trace" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn leave(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(trace): Path<String>,
) -> Result<StatusCode, Problem> {
    let number = called(&parts, &actor, &trace)?;
    parts.tracer.leave(number);
    Ok(StatusCode::NO_CONTENT)
}
