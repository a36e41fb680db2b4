//! `/messages`: handing mail in over HTTP, through the same intake as SMTP and under the same rules.
//!
//! An answer of 202 is what 250 is there: the message is on disk. Easy to get wrong: a request that is
//! repeated after a crash must find what the first one did, so the queue id is the one reserved for the
//! request, and is looked for before anything is handed in.

mod letter;

use axum::body::Bytes;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::{Shared, tenant_called};
use crate::access::{Action, Actor, Permission, Resource};
use crate::accounts::{SmtpAccount, Tenant};
use crate::ext::Timestamp;
use crate::intake::{HttpFacts, Source, Submission, Taken, Way};
use crate::mail::{Class, QueueId, Refusal, Severity};
use crate::records::AdminError;
use crate::web::Parts;
use crate::web::body;
use crate::web::problem::{Problem, ProblemJson};
use crate::web::replay::Reserved;
use letter::Letter;

/// Messages of one batch, at most.
pub const BATCH_MAX: usize = 500;
/// Messages of one batch handed in at the same time: their syncs are shared.
const BATCH_AT_ONCE: usize = 16;
/// `Content-Type` of a message that is whole.
const WHOLE: &str = "message/rfc822";
/// A limit is reached: looking again earlier than this, in seconds, is of no use.
const LIMIT_AGAIN_SECS: u64 = 60;
/// The same of a tenant without a virtual IP.
const NO_VIRTUAL_IP_AGAIN_SECS: u64 = 60;

/// A message to be sent: its parts, or `raw` for one that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewMessageJson {
    /// Whose mail; needed only from the instance's keys and people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The login of an SMTP account whose class and limits apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtp_account: Option<String>,
    /// `transactional` or `marketing`; that of the SMTP account if absent, else transactional.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// `Name <address>` or an address, in a verified domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Recipients: `Name <address>` or addresses. With `raw`: where it goes, if not to those in its header.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Further recipients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<String>,
    /// Further recipients whom the others do not see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<String>,
    /// Where answers go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reply_to: Vec<String>,
    /// Where notices go; the address of `from` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_path: Option<String>,
    /// The subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The HTML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Further header fields.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentJson>,
    /// The whole message in base64 instead of its parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
    /// What it is counted by; recipients do not see it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What comes back with everything told of it; recipients do not see it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Not to be tried before this (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_at: Option<String>,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentJson {
    /// Its name.
    pub name: String,
    /// `type/subtype`; `application/octet-stream` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its octets in base64.
    pub content: String,
    /// What the HTML calls it (`cid:`): shown there instead of listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentJson {
    /// Its queue id.
    pub id: String,
    /// Its Message-ID field.
    pub message_id: String,
    /// When it is tried first, if that is not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<String>,
    /// Each recipient, in order.
    pub recipients: Vec<SentRecipientJson>,
}

/// One recipient of what was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentRecipientJson {
    /// Where to.
    pub address: String,
    /// `queued`; `suppressed`: on the suppression list, never mailed; `accepted`: by an earlier request.
    pub status: String,
}

/// Several messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchJson {
    /// Up to 500.
    #[schema(value_type = Vec<NewMessageJson>)]
    pub messages: Vec<Value>,
}

/// What became of several messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchSentJson {
    /// How many were taken.
    pub accepted: usize,
    /// How many were not.
    pub refused: usize,
    /// Each message, in order.
    pub results: Vec<BatchResultJson>,
}

/// What became of one message of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchResultJson {
    /// The status it would have had alone.
    pub status: u16,
    /// If it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<SentJson>,
    /// If it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemJson>,
}

/// What is said beside a message that is the body.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Beside {
    tenant: Option<String>,
    smtp_account: Option<String>,
    to: Option<String>,
    return_path: Option<String>,
}

#[utoipa::path(
    post,
    path = "/messages",
    operation_id = "messages_send",
    tag = "messages",
    summary = "Send: one message.",
    params(
        ("tenant" = Option<String>, Query, description = "for message/rfc822 only"),
        ("smtp_account" = Option<String>, Query, description = "for message/rfc822 only"),
        ("to" = Option<String>, Query, description = "for message/rfc822 only: recipients, with commas between"),
        ("return_path" = Option<String>, Query, description = "for message/rfc822 only")
    ),
    request_body(content((NewMessageJson = "application/json"), (String = "message/rfc822"))),
    responses((status = 202, body = SentJson, description = "on disk, and owed to each recipient that is not suppressed"))
)]
pub(super) async fn send(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Handed { id, now, asked }: Handed,
) -> Result<(StatusCode, Json<SentJson>), Problem> {
    let sent = hand_in(&parts, &actor, id, asked, now).await?;
    Ok((StatusCode::ACCEPTED, Json(sent)))
}

/// A request with one message: JSON, or the message itself with what is said in the query.
pub(super) struct Handed {
    id: QueueId,
    now: Timestamp,
    asked: letter::Asked,
}

impl<S: Send + Sync> FromRequest<S> for Handed {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let now = Timestamp::now();
        let id = request.extensions().get::<Reserved>().map_or_else(|| QueueId::new(now), |reserved| reserved.0);
        let beside = Query::<Beside>::try_from_uri(request.uri());
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let octets = body::whole(Bytes::from_request(request, state).await)?;
        if !kind.eq_ignore_ascii_case(WHOLE) {
            body::require_json(&kind)?;
            return Ok(Self { id, now, asked: letter::Asked { asked: body::read(&octets)?, whole: None } });
        }
        let Query(beside) = beside.map_err(|error| Problem::field("query", error.body_text()))?;
        let to = beside.to.unwrap_or_default();
        let to = to.split(',').map(str::trim).filter(|to| !to.is_empty()).map(str::to_owned).collect();
        let (tenant, smtp_account, return_path) = (beside.tenant, beside.smtp_account, beside.return_path);
        let asked = NewMessageJson { tenant, smtp_account, return_path, to, ..NewMessageJson::default() };
        Ok(Self { id, now, asked: letter::Asked { asked, whole: Some(octets.to_vec()) } })
    }
}

#[utoipa::path(
    post,
    path = "/messages/batch",
    operation_id = "messages_send_batch",
    tag = "messages",
    summary = "Send: several messages, each for itself.",
    request_body = BatchJson,
    responses((status = 200, body = BatchSentJson, description = "what became of each; those that were taken are on disk"))
)]
pub(super) async fn send_batch(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    reserved: Option<Extension<Reserved>>,
    Extension(request): Extension<crate::web::server::RequestId>,
    body::JsonBody(asked): body::JsonBody<BatchJson>,
) -> Result<Json<BatchSentJson>, Problem> {
    if asked.messages.is_empty() || asked.messages.len() > BATCH_MAX {
        return Err(Problem::field("messages", format!("must be 1 to {BATCH_MAX}")));
    }
    let now = Timestamp::now();
    let first = reserved.map_or_else(|| QueueId::new(now), |Extension(reserved)| reserved.0);
    let (parts, actor) = (&parts, &actor);
    let each = asked.messages.into_iter().zip(0_u16..).map(|(value, number)| async move {
        let asked = letter::Asked { asked: body::read_value(value)?, whole: None };
        hand_in(parts, actor, nth(first, number), asked, now).await
    });
    let results: Vec<Result<SentJson, Problem>> =
        futures_util::stream::iter(each).buffered(BATCH_AT_ONCE).collect().await;
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let refused = results.len().saturating_sub(accepted);
    let results = results.into_iter().map(|result| match result {
        Ok(sent) => BatchResultJson { status: StatusCode::ACCEPTED.as_u16(), message: Some(sent), problem: None },
        Err(problem) => {
            let problem = if actor.role.tenant().is_some() { problem.without_a_trace() } else { problem };
            let problem = problem.into_json(&request.0);
            BatchResultJson { status: problem.status, message: None, problem: Some(problem) }
        }
    });
    Ok(Json(BatchSentJson { accepted, refused, results: results.collect() }))
}

/// The id of one of several, made of the first so that a repeat finds it again.
fn nth(first: QueueId, number: u16) -> QueueId {
    let QueueId(mut bytes) = first;
    let [.., high, low] = &mut bytes;
    let [mine_high, mine_low] = number.to_be_bytes();
    *high ^= mine_high;
    *low ^= mine_low;
    QueueId(bytes)
}

/// Hands one message in; when this returns `Ok` it survives a power cut.
async fn hand_in(
    parts: &Parts,
    actor: &Actor,
    id: QueueId,
    asked: letter::Asked,
    now: Timestamp,
) -> Result<SentJson, Problem> {
    let tenant = sender(parts, actor, asked.asked.tenant.as_deref())?;
    let account = account(parts, actor, &tenant, asked.asked.smtp_account.as_deref())?;
    let class = asked.asked.class.or(account.as_ref().map(|account| account.class)).unwrap_or_default();
    let limits = parts.sending;
    let worker = tokio::task::spawn_blocking(move || Letter::read(asked, &limits, now));
    let letter = worker.await.map_err(|error| {
        let detail = "the message could not be read; the log has the details";
        Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail, error)
    })??;
    for domain in letter.domains() {
        actor.require_domain(&domain).map_err(|_| {
            let detail = format!("this key may not send as {domain}");
            Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
        })?;
    }
    if let Some(history) = parts.queue.history(id)? {
        // A repeat: the first request got this far before the daemon stopped.
        let recipients = history.recipients.iter().map(|address| recipient(address.to_string(), "accepted"));
        let (id, message_id) = (id.to_string(), history.message_id);
        return Ok(SentJson { id, message_id, send_at: None, recipients: recipients.collect() });
    }
    parts.accounts.may_send(tenant.id, account.as_ref().map(|account| account.id)).map_err(refused)?;
    if let Some(address) = &letter.envelope.reverse_path.0 {
        parts.domains.may_use_in_mail_from(tenant.id, address.domain()).map_err(refused)?;
        if let Some(account) = &account {
            parts.accounts.may_send_as(account.id, address).map_err(refused)?;
        }
    }
    let vip = parts.vips.default_for(tenant.id, tenant.default_vip).ok_or_else(|| {
        // What SMTP would call 451: nothing is wrong with the message, and an operator ends it.
        let detail = format!(
            "tenant {} has no virtual IP to send from now; the message is welcome once it has one of its own, or a \
             shared one is chosen for it",
            tenant.name
        );
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_virtual_ip", detail).again_in(NO_VIRTUAL_IP_AGAIN_SECS)
    })?;
    let Letter { envelope, draft, labels, send_at } = letter;
    let addresses: Vec<String> = envelope.recipients.iter().map(|recipient| recipient.address.to_string()).collect();
    let source = Source {
        tenant: tenant.id,
        account: account.map(|account| account.id),
        vip: vip.id,
        vip_name: vip.ehlo,
        class,
        way: Way::Http(HttpFacts { peer: actor.from, labels }),
    };
    let taken = parts.intake.accept_as(id, Submission { envelope, draft, source }, now).await.map_err(refused)?;
    Ok(sent(taken, addresses, send_at))
}

fn sent(taken: Taken, addresses: Vec<String>, send_at: Option<Timestamp>) -> SentJson {
    let recipients = (0_u16..).zip(addresses).map(|(number, address)| {
        let is_suppressed = taken.suppressed.binary_search(&number).is_ok();
        recipient(address, if is_suppressed { "suppressed" } else { "queued" })
    });
    let recipients = recipients.collect();
    let send_at = send_at.map(Timestamp::rfc3339);
    SentJson { id: taken.id.to_string(), message_id: taken.message_id, send_at, recipients }
}

fn recipient(address: String, status: &str) -> SentRecipientJson {
    SentRecipientJson { address, status: status.to_owned() }
}

/// Whose mail it is.
fn sender(parts: &Parts, actor: &Actor, asked: Option<&str>) -> Result<Tenant, Problem> {
    let tenant = match (asked, actor.role.tenant()) {
        (Some(text), _) => tenant_called(parts, actor, text)?,
        (None, Some(own)) => {
            parts.accounts.tenant(own).ok_or_else(|| Problem::missing(format!("tenant {own} any more")))?
        }
        (None, None) => {
            return Err(Problem::field("tenant", "says whose mail it is; without it only a tenant's key can"));
        }
    };
    actor.require(Permission::Write(Resource::Messages, tenant.id)).map_err(AdminError::from)?;
    Ok(tenant)
}

/// The SMTP account whose class and limits apply. Who may use some accounts only must name one of them.
fn account(parts: &Parts, actor: &Actor, tenant: &Tenant, login: Option<&str>) -> Result<Option<SmtpAccount>, Problem> {
    let Some(login) = login else {
        if actor.narrowing.accounts.is_some() {
            return Err(Problem::field("smtp_account", "must name one of the SMTP accounts you may use"));
        }
        return Ok(None);
    };
    let found = parts.accounts.smtp_account_named(login).filter(|account| account.tenant == tenant.id);
    let account = found.ok_or_else(|| Problem::missing(format!("SMTP account {login}")))?;
    if actor.narrowing.accounts.is_some() {
        actor.require_account((tenant.id, account.id), Action::Write).map_err(AdminError::from)?;
    }
    Ok(Some(account))
}

/// What SMTP would have said, as HTTP says it.
fn refused(refusal: Refusal) -> Problem {
    let reply = &refusal.reply;
    let detail = reply.one_line();
    let status = reply.status.map(|status| (status.subject, status.detail));
    match (reply.severity(), reply.code.0, status) {
        (Severity::Transient, 452, Some((7, _))) => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "limit_reached", detail).again_in(LIMIT_AGAIN_SECS)
        }
        (Severity::Transient, 451, Some((7, 0 | 1))) => {
            Problem::new(StatusCode::FORBIDDEN, "sending_suspended", detail)
        }
        (Severity::Transient, 452, _) => {
            Problem::inner(StatusCode::SERVICE_UNAVAILABLE, "storage_full", detail, refusal.cause)
        }
        (Severity::Transient, ..) => {
            Problem::inner(StatusCode::SERVICE_UNAVAILABLE, "try_later", detail, refusal.cause)
        }
        _ => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "message_refused", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Reply;

    #[test]
    fn what_smtp_says_becomes_the_status_that_tells_a_client_the_same() {
        for (code, subject, detail, status, name) in [
            (550, 7, 1, 422, "message_refused"),
            (452, 7, 0, 429, "limit_reached"),
            (451, 7, 1, 403, "sending_suspended"),
            (452, 3, 1, 503, "storage_full"),
            (451, 3, 0, 503, "try_later"),
            (554, 6, 0, 422, "message_refused"),
        ] {
            let problem = refused(Refusal::plain(Reply::enhanced(code, subject, detail, "text")));
            let json = problem.into_json("id");
            assert_eq!((json.status, json.code.as_str()), (status, name), "{code} {subject}.{detail}");
        }
    }

    #[test]
    fn the_messages_of_a_batch_have_ids_of_their_own_that_are_the_same_again() {
        let first = QueueId::new(Timestamp(1_800_000_000_000));
        let ids: std::collections::BTreeSet<QueueId> = (0..500).map(|number| nth(first, number)).collect();
        assert_eq!((ids.len(), nth(first, 0)), (500, first));
    }
}
