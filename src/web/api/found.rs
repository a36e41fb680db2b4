//! `/messages`: finding messages, and the page of one, whether it is still owed or not.
//!
//! Sending them is in `messages`. Easy to get wrong: what the index says is shown only together with the history
//! record, and a message of somebody else looks like one that never was.

#![allow(unused_qualifications, reason = "the macro that documents parameters writes them")]

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::statistics::{account_called, moment};
use super::{
    Answer, DialogueJson, Shared, dialogues, off_workers, queue, require_instance, scan, tenant_called, tenant_name,
};
use crate::access::{Action, Actor, Permission, Resource};
use crate::events::{EventKind, MailEvent, Peer};
use crate::ext::Timestamp;
use crate::mail::Address;
use crate::queue::Shown;
use crate::records::AdminError;
use crate::search::{Criteria, Hit};
use crate::statistics::{STATUSES, Status};
use crate::web::Parts;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::Problem;

/// Recipients shown in a row, at most.
const ROW_RECIPIENTS_MAX: usize = 3;

/// What is looked for; everything that is given must fit.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Whose; without it, a tenant's own or everybody's.
    tenant: Option<String>,
    /// Accepted at this moment or later: a day, or a date and time of RFC 3339.
    from: Option<String>,
    /// Accepted before this moment.
    until: Option<String>,
    /// The queue id.
    id: Option<String>,
    /// The Message-ID, with or without brackets.
    message_id: Option<String>,
    /// A recipient's whole address.
    recipient: Option<String>,
    /// The sender's whole address, or its domain: of the envelope or the header.
    sender: Option<String>,
    /// The beginning of a recipient's domain.
    domain: Option<String>,
    /// The beginning of a provider's name.
    provider: Option<String>,
    /// The beginning of a tag.
    tag: Option<String>,
    /// Beginnings of words of the subject.
    subject: Option<String>,
    /// Beginnings of words of what peers answered, or of what went wrong; the host's name too.
    reply: Option<String>,
    /// A state some recipient is in, or what it did: `injected` (not tried yet), `ok`, `deferred`, `softbounce`,
    /// `hardbounce`, `spambounce`, `dropped`, `cancelled`, `complaint`, `unsubscribe`.
    status: Option<String>,
    /// The login it came by.
    smtp_account: Option<String>,
}

/// A message that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FoundMessageJson {
    /// Its queue id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// The login, if it came by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp_account: Option<String>,
    /// When it was accepted.
    pub accepted: String,
    /// When something last happened to it.
    pub changed: String,
    /// The envelope's sender; `<>` for notices.
    pub reverse_path: String,
    /// The header From.
    pub header_from: String,
    /// Subject.
    pub subject: String,
    /// The Message-ID header.
    pub message_id: String,
    /// Recipients; the first few.
    pub to: Vec<String>,
    /// How many recipients in all.
    pub recipients: usize,
    /// The states its recipients are in, and what they did.
    pub statuses: Vec<String>,
    /// What its sender counts it by.
    pub tags: Vec<String>,
    /// Who received, or was to.
    pub providers: Vec<String>,
    /// The latest reply or cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// One try to deliver to some recipients, or what ended it without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageAttemptJson {
    /// When its outcome was known.
    pub at: String,
    /// Seconds since acceptance.
    pub after_secs: u64,
    /// Recipients by number.
    pub recipients: Vec<u16>,
    /// `ok`, `deferred`, `softbounce`, `hardbounce`, `spambounce`.
    pub status: String,
    /// The class of the reply or cause, such as `mailbox-full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// What the peer said at the end, addresses of the message left out; or what went wrong.
    pub reply: String,
    /// The host that was spoken to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The address the connection left from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Version and cipher of TLS, or `none` with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Seconds until the next try was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_in_secs: Option<u64>,
    /// Milliseconds it took, from connecting or the first command to the last reply; not there if nothing is kept of
    /// what was said, or nobody was spoken to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// What was said in it: places in `dialogues`, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialogues: Vec<usize>,
}

/// Everything known of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageJson {
    /// What the queue knows of it, its events included.
    #[serde(flatten)]
    pub queued: super::QueuedJson,
    /// The login, if it came by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp_account: Option<String>,
    /// `smtp`, `api`, `notice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Seconds from acceptance until nothing was owed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_after_secs: Option<u64>,
    /// Every try, oldest first.
    pub attempts: Vec<MessageAttemptJson>,
    /// What was said in them: one for each transaction, which several tries by recipient may share. Nothing of a
    /// message that was erased.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialogues: Vec<DialogueJson>,
    /// Earlier ones that are not shown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dialogues_left_out: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// How far the index of messages is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchJson {
    /// How long ago the last event happened that is in it, while there are later ones; else 0.
    pub behind_secs: u64,
    /// It is being made anew: not everything is found yet.
    pub rebuilding: bool,
    /// Messages in it.
    pub messages: u64,
    /// Days, in UTC, of which it has messages.
    pub days: u64,
}

fn criteria(parts: &Parts, actor: &Actor, asked: Asked) -> Result<Criteria, Problem> {
    let tenant = asked.tenant.as_deref().map(|name| tenant_called(parts, actor, name)).transpose()?;
    let status = asked.status.as_deref().map(|word| {
        let words = STATUSES.map(Status::word).join(", ");
        Status::called(word).ok_or_else(|| Problem::field("status", format!("is one of {words}")))
    });
    let account = asked.smtp_account.as_deref().map(|login| account_called(parts, actor, login)).transpose()?;
    Ok(Criteria {
        tenant: tenant.map(|tenant| tenant.id),
        granted: None,
        account,
        from: asked.from.as_deref().map(|text| moment("from", text)).transpose()?,
        until: asked.until.as_deref().map(|text| moment("until", text)).transpose()?,
        id: asked.id.as_deref().map(queue::read_id).transpose()?,
        message_id: asked.message_id,
        recipient: asked.recipient,
        sender: asked.sender,
        domain: asked.domain,
        provider: asked.provider,
        tag: asked.tag,
        subject: asked.subject,
        reply: asked.reply,
        status: status.transpose()?,
    })
}

fn row(parts: &Parts, hit: Hit) -> FoundMessageJson {
    let Hit { id, history, fate } = hit;
    let account = history.entry.as_ref().and_then(|entry| entry.account);
    FoundMessageJson {
        id: id.to_string(),
        tenant: tenant_name(parts, history.tenant),
        smtp_account: account.map(|account| login(parts, account)),
        accepted: history.accepted.rfc3339(),
        changed: Timestamp(fate.changed).rfc3339(),
        reverse_path: history.reverse_path.to_string(),
        header_from: history.header_from,
        subject: history.subject,
        message_id: history.message_id,
        to: history.recipients.iter().take(ROW_RECIPIENTS_MAX).map(ToString::to_string).collect(),
        recipients: history.recipients.len(),
        statuses: fate.statuses().into_iter().map(|status| status.word().to_owned()).collect(),
        tags: history.labels.tags().to_vec(),
        providers: fate.providers,
        last: fate.replies.last().cloned(),
    }
}

fn login(parts: &Parts, account: crate::mail::SmtpAccountId) -> String {
    parts.accounts.smtp_account(account).map_or_else(|| format!("{account} (removed)"), |account| account.login)
}

#[utoipa::path(
    get,
    path = "/messages",
    operation_id = "messages_search",
    tag = "messages",
    summary = "Search: messages, newest first.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), Asked),
    responses((status = 200, body = PageJson<FoundMessageJson>, description = "done"))
)]
pub(super) async fn search(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<Asked>,
    paging: Paging,
) -> Answer<PageJson<FoundMessageJson>> {
    let criteria = criteria(&parts, &actor, asked)?;
    let before = paging.after.map(|text| queue::read_id(&text)).transpose()?;
    let own = parts.search.clone();
    let page = scan(&parts, move || own.find(&actor, criteria, before, paging.limit)).await?;
    let next = page.next.map(|id| paging::wrap(&id.to_string()));
    Ok(Json(PageJson { rows: page.hits.into_iter().map(|hit| row(&parts, hit)).collect(), next }))
}

#[utoipa::path(
    get,
    path = "/messages/{id}",
    operation_id = "messages_show",
    tag = "messages",
    summary = "Show: one message, whether it is still owed or not.",
    params(("id" = String, Path)),
    responses((status = 200, body = MessageJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Answer<MessageJson> {
    let id = queue::read_id(&id)?;
    // The page is made there too: it may decode many dialogues.
    let page = off_workers(move || {
        // Whose it is stands in its record; until that was read nobody is told anything.
        let reader = Actor::system("a message's page");
        let shown = parts.queue.show(&reader, id)?;
        require(&actor, &shown, id)?;
        let why = parts.queue.why(&reader, id)?;
        Ok(json(&parts, shown, why))
    })
    .await?;
    Ok(Json(page))
}

/// Whether the actor may see the message.
fn require(actor: &Actor, shown: &Shown, id: crate::mail::QueueId) -> Result<(), AdminError> {
    let missing = || AdminError::Missing(format!("message {id}"));
    let (message, history) = (shown.message.as_ref(), shown.history.as_ref());
    let tenant = message.map(|message| message.tenant).or(history.map(|history| history.tenant)).ok_or_else(missing)?;
    if !actor.sees(tenant) {
        return Err(missing());
    }
    actor.require(Permission::Read(Resource::Messages, tenant))?;
    let entry = history.and_then(|history| history.entry.as_ref());
    let account = message.and_then(|message| message.account).or(entry.and_then(|entry| entry.account));
    let path = message.map(|message| &message.reverse_path).or(history.map(|history| &history.reverse_path));
    let sender = path.and_then(|path| path.0.as_ref()).map(Address::domain);
    if actor.has_part_in(Action::Read, account, sender) { Ok(()) } else { Err(missing()) }
}

fn json(parts: &Parts, shown: Shown, why: Vec<crate::queue::WhyLine>) -> MessageJson {
    let accepted = shown.message.as_ref().map(|message| message.accepted);
    let accepted = accepted.or(shown.history.as_ref().map(|history| history.accepted));
    let since = |at: Timestamp| accepted.map_or(0, |accepted| at.since(accepted).as_secs());
    let said = dialogues::told(parts, &shown);
    let mut attempts = Vec::new();
    let mut done = None;
    for (place, event) in shown.events.iter().enumerate() {
        let EventKind::Mail(_, told) = &event.kind else { continue };
        if *told == MailEvent::Retired {
            done = Some(since(event.at));
        }
        let one = attempt(told, (event.at, since(event.at)));
        attempts.extend(one.map(|one| {
            let (dialogues, took_ms) = said.led_to(place);
            MessageAttemptJson { dialogues, took_ms, ..one }
        }));
    }
    let entry = shown.history.as_ref().and_then(|history| history.entry.as_ref());
    let account = shown.message.as_ref().map_or(entry.and_then(|entry| entry.account), |message| message.account);
    let source = shown.message.as_ref().map(|message| message.source.clone());
    MessageJson {
        smtp_account: account.map(|account| login(parts, account)),
        source: source.or(entry.map(|entry| entry.source.clone())),
        done_after_secs: done,
        attempts,
        dialogues: said.dialogues,
        dialogues_left_out: said.left_out,
        queued: queue::json(parts, shown, why),
    }
}

fn attempt(told: &MailEvent, (at, after_secs): (Timestamp, u64)) -> Option<MessageAttemptJson> {
    let (reply, peer, due_in_secs): (String, Option<&Peer>, Option<u64>) = match told {
        MailEvent::Delivered { peer, reply, .. } => (reply.one_line(), Some(peer), None),
        MailEvent::Deferred { peer, detail, due_in_secs, .. } => (detail.clone(), peer.as_ref(), Some(*due_in_secs)),
        MailEvent::Bounced { peer, detail, .. } => (detail.clone(), peer.as_ref(), None),
        MailEvent::Expired { last, .. } => (last.clone(), None, None),
        _ => return None,
    };
    let said = crate::statistics::Said::by(told)?;
    Some(MessageAttemptJson {
        at: at.rfc3339(),
        after_secs,
        recipients: said.recipients.to_vec(),
        status: said.status.word().to_owned(),
        class: said.why.map(|why| why.word().to_owned()),
        reply,
        host: peer.map(|peer| peer.host.clone()),
        address: peer.map(|peer| peer.address.clone()),
        source: peer.map(|peer| peer.source.clone()),
        tls: peer.map(|peer| peer.tls.clone()),
        due_in_secs,
        took_ms: None,
        dialogues: Vec::new(),
    })
}

#[utoipa::path(
    get,
    path = "/search",
    operation_id = "search_show",
    tag = "messages",
    summary = "Show: how far the index of messages is.",
    responses((status = 200, body = SearchJson, description = "done"))
)]
pub(super) async fn standing(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Answer<SearchJson> {
    require_instance(&actor)?;
    let standing = parts.search.standing();
    let (messages, days) = parts.search.size();
    let (behind_secs, rebuilding) = (standing.behind.as_secs(), standing.is_rebuilding);
    Ok(Json(SearchJson { behind_secs, rebuilding, messages, days }))
}

#[utoipa::path(
    post,
    path = "/search/rebuild",
    operation_id = "search_rebuild",
    tag = "messages",
    summary = "Make anew: the index of messages, from the event log.",
    responses((status = 202, description = "begun"))
)]
pub(super) async fn rebuild(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
) -> Result<StatusCode, Problem> {
    parts.search.rebuild_for(&actor, Timestamp::now()).await?;
    Ok(StatusCode::ACCEPTED)
}
