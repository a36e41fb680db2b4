//! `/queue`: mail that is still owed, what happened to it, and what an operator may do about it.
//!
//! Reading walks the store, so it runs off the async workers. Easy to get wrong: a message that was
//! delivered meanwhile is not an error of the person who typed its id.

mod filter;
pub(super) mod sweeps;

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::filter::Filtered;
use super::{Answer, Shared, dialogues, off_workers, scan, tenant_name, vip_called};
use crate::access::Actor;
use crate::events::{EventKind, MailEvent, Peer};
use crate::ext::Timestamp;
use crate::mail::{Class, QueueId, VipId};
use crate::queue::{Changed, Listed, RecipientState, Shown, WhyLine};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::Problem;

pub use self::filter::QueueFilterJson;
pub use self::sweeps::{
    NewQueueSweepJson, QueueShapeJson, QueueShapeRowJson, QueueSweepJson, QueueTotalsJson, SweepActJson,
};

/// A message in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueRowJson {
    /// Its queue id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// When it was accepted.
    pub accepted: String,
    /// Octets.
    pub size_bytes: u64,
    /// The envelope's sender; `<>` for notices.
    pub reverse_path: String,
    /// Subject, if it was not erased.
    pub subject: Option<String>,
    /// Recipients, if they were not erased; the first few.
    pub to: Vec<String>,
    /// How many recipients in all.
    pub recipients: u16,
    /// Recipients that wait, are being tried now, are held.
    pub waiting: usize,
    /// Recipients being tried now.
    pub in_flight: usize,
    /// Recipients held.
    pub held: usize,
    /// Recipients whose SMTP account is paused.
    #[serde(default)]
    pub paused: usize,
    /// Attempts of the recipients that were tried most.
    #[serde(default)]
    pub attempts: u32,
    /// `transactional`, `marketing`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub class: Class,
    /// Seconds until the next of them is due.
    pub due_in_secs: Option<u64>,
    /// The last reply or cause of one of them.
    pub last: Option<String>,
}

/// Everything known of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuedJson {
    /// Its queue id.
    pub id: String,
    /// Whose.
    pub tenant: Option<String>,
    /// When it was accepted.
    pub accepted: Option<String>,
    /// Whether everything is settled and the body is gone.
    pub retired: bool,
    /// Octets.
    pub size_bytes: Option<u64>,
    /// The virtual IP it was accepted for: its EHLO name.
    pub vip: Option<String>,
    /// The envelope's sender.
    pub reverse_path: Option<String>,
    /// The header From.
    pub header_from: Option<String>,
    /// Subject.
    pub subject: Option<String>,
    /// The Message-ID header.
    pub message_id: Option<String>,
    /// `selector._domainkey.domain` of each signature.
    pub signatures: Vec<String>,
    /// What its sender counts it by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What its sender attached for itself.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Each recipient.
    pub recipients: Vec<RecipientJson>,
    /// What is damaged about it.
    pub damaged: Vec<String>,
    /// What happened, oldest first.
    pub events: Vec<EventJson>,
}

/// One recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipientJson {
    /// Its number in the message.
    pub number: u16,
    /// Where to.
    pub address: String,
    /// `waiting`, `held`, `paused` with its SMTP account, or how it ended.
    pub state: String,
    /// What it waits for, or how it ended: a sentence, with the lines of a peer's reply.
    pub why: String,
    /// The one thing it waits for: `schedule`, `attempt`, `limit`, `pause`, `parked`, `virtual-ip`, `hold`,
    /// `account-pause`, `suspension`, `dns`, `tls-policy`; `nothing` if it is done.
    #[serde(default)]
    pub waits_for: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventJson {
    /// When.
    pub at: String,
    /// What; a peer's reply of several lines has a line for each.
    pub text: String,
}

/// Which recipients an act is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueActJson {
    /// By number; empty is all.
    pub recipients: Vec<u16>,
}

/// Where waiting mail is to leave by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueMoveJson {
    /// A virtual IP's address, id or EHLO name.
    pub to: String,
}

/// What an act did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueChangeJson {
    /// Recipients it applied to, by number.
    pub recipients: Vec<u16>,
    /// Of these, those being tried now: it takes effect when their attempt has ended.
    pub in_flight: Vec<u16>,
}

/// Recipients shown in a row, at most.
const ROW_RECIPIENTS_MAX: usize = 3;

pub(super) fn read_id(text: &str) -> Result<QueueId, Problem> {
    text.parse()
        .map_err(|_| Problem::field("id", format!("{text:?} is not a queue id; postern queue list prints them")))
}

#[utoipa::path(
    get,
    path = "/queue",
    operation_id = "queue_list",
    tag = "queue",
    summary = "List: queue.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), QueueFilterJson),
    responses((status = 200, body = PageJson<QueueRowJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Filtered(asked): Filtered,
    paging: Paging,
) -> Answer<PageJson<QueueRowJson>> {
    let filter = filter::read(&parts, &actor, &asked)?;
    let after = paging.after.map(|text| read_id(&text)).transpose()?;
    let queue = parts.queue.clone();
    let page = scan(&parts, move || queue.list(&actor, &filter, after, paging.limit)).await?;
    let next = page.next.map(|id| paging::wrap(&id.to_string()));
    Ok(Json(PageJson { rows: page.messages.into_iter().map(|message| row(&parts, message)).collect(), next }))
}

fn row(parts: &Parts, listed: Listed) -> QueueRowJson {
    let to = listed.history.as_ref().map(|history| history.recipients.as_slice()).unwrap_or_default();
    QueueRowJson {
        id: listed.id.to_string(),
        tenant: tenant_name(parts, listed.message.tenant),
        accepted: listed.message.accepted.rfc3339(),
        size_bytes: listed.message.size_bytes,
        reverse_path: listed.message.reverse_path.to_string(),
        to: to.iter().take(ROW_RECIPIENTS_MAX).map(ToString::to_string).collect(),
        subject: listed.history.map(|history| history.subject),
        recipients: listed.message.recipients,
        waiting: listed.waiting,
        in_flight: listed.in_flight,
        held: listed.held,
        paused: listed.paused,
        attempts: listed.attempts,
        class: listed.message.class,
        due_in_secs: listed.due_in.map(|due| due.as_secs()),
        last: listed.last,
    }
}

#[utoipa::path(
    get,
    path = "/queue/{id}",
    operation_id = "queue_show",
    tag = "queue",
    summary = "Show: queue.",
    params(("id" = String, Path)),
    responses((status = 200, body = QueuedJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Answer<QueuedJson> {
    let id = read_id(&id)?;
    let shown = off_workers(move || {
        let queue = &parts.queue;
        Ok(json(&parts, queue.show(&actor, id)?, queue.why(&actor, id)?))
    });
    Ok(Json(shown.await?))
}

/// Everything known of a message.
pub(super) fn json(parts: &Parts, shown: Shown, why: Vec<WhyLine>) -> QueuedJson {
    let recipients = why.into_iter().map(|line| RecipientJson {
        state: state_of(&shown, line.recipient).to_owned(),
        number: line.recipient,
        address: line.address,
        waits_for: line.waits_for.word().to_owned(),
        why: line.sentence,
    });
    let recipients = recipients.collect();
    let tenant = shown.message.as_ref().map(|message| message.tenant);
    let tenant = tenant.or(shown.history.as_ref().map(|history| history.tenant));
    let accepted = shown.message.as_ref().map(|message| message.accepted);
    let accepted = accepted.or(shown.history.as_ref().map(|history| history.accepted));
    // What a retired message was is in its first event, as long as that is kept.
    let at_first = shown.events.iter().find_map(|event| match &event.kind {
        EventKind::Mail(_, MailEvent::Accepted(facts)) => Some(facts),
        _ => None,
    });
    let message = shown.message.as_ref();
    let vip = message.map(|message| message.vip).or(at_first.map(|facts| facts.vip));
    let signatures = message.map(|message| &message.signatures).or(at_first.map(|facts| &facts.signatures));
    let history = shown.history.as_ref();
    QueuedJson {
        id: shown.id.to_string(),
        tenant: tenant.map(|tenant| tenant_name(parts, tenant)),
        accepted: accepted.map(Timestamp::rfc3339),
        retired: shown.message.is_none(),
        size_bytes: message.map(|message| message.size_bytes).or(at_first.map(|facts| facts.size_bytes)),
        vip: vip.map(|vip| vip_name(parts, vip)),
        reverse_path: history.map(|history| history.reverse_path.to_string()),
        header_from: history.map(|history| history.header_from.clone()),
        subject: history.map(|history| history.subject.clone()),
        message_id: history.map(|history| history.message_id.clone()),
        signatures: signatures.cloned().unwrap_or_default(),
        tags: history.map(|history| history.labels.tags().to_vec()).unwrap_or_default(),
        metadata: history.map(|history| history.labels.metadata().iter().cloned().collect()).unwrap_or_default(),
        recipients,
        damaged: shown.damaged.clone(),
        events: shown.events.iter().map(event).collect(),
    }
}

pub(super) fn vip_name(parts: &Parts, id: VipId) -> String {
    parts.vips.get(id).map_or_else(|| format!("{id} (removed)"), |vip| vip.ehlo.to_string())
}

fn state_of(shown: &Shown, number: u16) -> &'static str {
    let mut all = shown.records.iter().flat_map(|(_, record)| &record.recipients);
    match all.find(|recipient| recipient.number == number).map(|recipient| recipient.state) {
        Some(RecipientState::Waiting) => "waiting",
        Some(RecipientState::Held) => "held",
        Some(RecipientState::Paused) => "paused",
        Some(RecipientState::Done(ending)) => ending.as_str(),
        None => "done",
    }
}

fn event(event: &crate::events::Event) -> EventJson {
    let text = match &event.kind {
        EventKind::Mail(_, event) => happened(event),
        EventKind::Audit(audit) => format!("{} by {}: {}", audit.act, audit.actor, audit.subject),
        EventKind::Instance(event) => format!("{event:?}"),
    };
    EventJson { at: event.at.rfc3339(), text }
}

/// An event of a message in words; recipients by number.
fn happened(event: &MailEvent) -> String {
    let at = |peer: &Option<Peer>| peer.as_ref().map(|peer| format!(" by {}", place(peer))).unwrap_or_default();
    match event {
        MailEvent::Accepted(accepted) => format!(
            "accepted by {} for {}, {} octets, signed by {}",
            accepted.source,
            match accepted.recipients {
                1 => "1 recipient".to_owned(),
                more => format!("{more} recipients"),
            },
            accepted.size_bytes,
            if accepted.signatures.is_empty() { "nobody".to_owned() } else { accepted.signatures.join(" and ") }
        ),
        MailEvent::Suppressed { recipients } => format!("{}: suppressed, never mailed", to(recipients)),
        MailEvent::Delivered { recipients, peer, reply } => {
            format!("{}: delivered to {}: {}", to(recipients), place(peer), reply.whole())
        }
        MailEvent::Deferred { recipients, peer, why, detail, due_in_secs } => {
            let due = span(*due_in_secs);
            format!("{}: deferred{} ({}), due again in {due}: {detail}", to(recipients), at(peer), words(why))
        }
        MailEvent::Bounced { recipients, peer, why, detail } => {
            format!("{}: given up{} ({}): {detail}", to(recipients), at(peer), words(why))
        }
        MailEvent::Expired { recipients, last } => {
            format!("{}: given up after waiting too long: {last}", to(recipients))
        }
        MailEvent::Held { recipients, by } => format!("{}: held by {by}", to(recipients)),
        MailEvent::Released { recipients, by } => format!("{}: released by {by}", to(recipients)),
        MailEvent::Retried { recipients, by } => format!("{}: an attempt was asked for by {by}", to(recipients)),
        MailEvent::Cancelled { recipients, by } => format!("{}: cancelled by {by}", to(recipients)),
        MailEvent::VipMissing { recipients, vip } => {
            format!("{}: waits, virtual IP {vip} is not on this host", to(recipients))
        }
        MailEvent::Moved { recipients, from, to: vip, by } => {
            format!("{}: moved from virtual IP {from} to {vip} by {by}", to(recipients))
        }
        MailEvent::NoticeSent { recipients, kind, notice } => {
            format!("{}: {} notice sent as {notice}", to(recipients), words(kind))
        }
        MailEvent::NoticeDropped { recipients, kind } => {
            format!("{}: {} notice dropped, nobody could be told", to(recipients), words(kind))
        }
        MailEvent::NoticeUnsigned => "this notice left unsigned: no key covers its sender".to_owned(),
        MailEvent::Damaged { detail } => format!("damaged: {detail}"),
        MailEvent::Retired => "done: nothing is owed any more, the body is erased".to_owned(),
        MailEvent::Faulted { detail } => format!("set apart: {detail}"),
        MailEvent::Stalled { recipients, phase } => {
            format!("{}: no progress after {phase}, the attempt was ended by the watchdog", to(recipients))
        }
        MailEvent::Attempted { recipients, dialogue } => {
            format!("{}: {}", to(recipients), dialogues::summary(dialogue))
        }
        MailEvent::Complained { recipients, reporter } => {
            format!("{}: a complaint came in by {reporter}", to(recipients))
        }
        MailEvent::BouncedLater { recipients, reporter, why, detail } => {
            format!("{}: came back from {reporter} after delivery ({}): {detail}", to(recipients), words(why))
        }
        MailEvent::ReportedLater { recipients, kind, reporter, detail } => {
            format!("{}: a {} notice came from {reporter}: {detail}", to(recipients), words(kind))
        }
        MailEvent::ComplaintDoubted { recipients, reporter, doubt } => {
            format!("{}: a complaint came in by {reporter} that counts for nothing: {doubt}", to(recipients))
        }
        MailEvent::Unsubscribed { recipients, way } => format!("{}: unsubscribed by {way}", to(recipients)),
        MailEvent::AutoReplied { recipients, reporter } => {
            format!("{}: an automatic reply came from {reporter}", to(recipients))
        }
        MailEvent::Salvaged { recipients } => format!("{}: saved from the segments, owed again", to(recipients)),
    }
}

/// The name of a variant as words: `RecipientGone` is `recipient gone`.
fn words(variant: &impl std::fmt::Debug) -> String {
    let name = format!("{variant:?}");
    let mut words = String::with_capacity(name.len().saturating_add(4));
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

fn span(seconds: u64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}

fn place(peer: &Peer) -> String {
    format!("{} ({}, from {}, TLS {})", peer.host, peer.address, peer.source, peer.tls)
}

fn to(recipients: &[u16]) -> String {
    let numbers: Vec<String> = recipients.iter().map(u16::to_string).collect();
    format!("recipient {}", numbers.join(", "))
}

#[utoipa::path(
    get,
    path = "/queue/{id}/why",
    operation_id = "queue_why",
    tag = "queue",
    summary = "Why: queue.",
    params(("id" = String, Path)),
    responses((status = 200, body = Vec<RecipientJson>, description = "done"))
)]
pub(super) async fn why(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Answer<Vec<RecipientJson>> {
    let id = read_id(&id)?;
    let queue = parts.queue.clone();
    let (shown, why) = off_workers(move || Ok((queue.show(&actor, id)?, queue.why(&actor, id)?))).await?;
    let one = |line: WhyLine| RecipientJson {
        state: state_of(&shown, line.recipient).to_owned(),
        number: line.recipient,
        address: line.address,
        waits_for: line.waits_for.word().to_owned(),
        why: line.sentence,
    };
    Ok(Json(why.into_iter().map(one).collect()))
}

fn changed(changed: Changed) -> Json<QueueChangeJson> {
    Json(QueueChangeJson { recipients: changed.recipients, in_flight: changed.in_flight })
}

#[utoipa::path(
    post,
    path = "/queue/{id}/retry",
    operation_id = "queue_retry",
    tag = "queue",
    summary = "Retry: queue.",
    params(("id" = String, Path)),
    request_body = QueueActJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn retry(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueActJson>,
) -> Answer<QueueChangeJson> {
    let id = read_id(&id)?;
    Ok(changed(parts.queue.retry(&actor, id, &asked.recipients, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/queue/{id}/hold",
    operation_id = "queue_hold",
    tag = "queue",
    summary = "Hold: queue.",
    params(("id" = String, Path)),
    request_body = QueueActJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn hold(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueActJson>,
) -> Answer<QueueChangeJson> {
    let id = read_id(&id)?;
    Ok(changed(parts.queue.hold(&actor, id, &asked.recipients, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/queue/{id}/release",
    operation_id = "queue_release",
    tag = "queue",
    summary = "Release: queue.",
    params(("id" = String, Path)),
    request_body = QueueActJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn release(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueActJson>,
) -> Answer<QueueChangeJson> {
    let id = read_id(&id)?;
    Ok(changed(parts.queue.release_hold(&actor, id, &asked.recipients, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/queue/{id}/cancel",
    operation_id = "queue_cancel",
    tag = "queue",
    summary = "Cancel: queue.",
    params(("id" = String, Path)),
    request_body = QueueActJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn cancel(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueActJson>,
) -> Answer<QueueChangeJson> {
    let id = read_id(&id)?;
    Ok(changed(parts.queue.cancel(&actor, id, &asked.recipients, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/queue/{id}/expire",
    operation_id = "queue_expire",
    tag = "queue",
    summary = "Expire: queue.",
    params(("id" = String, Path)),
    request_body = QueueActJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn expire(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueActJson>,
) -> Answer<QueueChangeJson> {
    let id = read_id(&id)?;
    Ok(changed(parts.queue.expire(&actor, id, &asked.recipients, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/queue/{id}/erase",
    operation_id = "queue_erase",
    tag = "queue",
    summary = "Erase: queue.",
    params(("id" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn erase(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.queue.erase(&actor, read_id(&id)?, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post,
    path = "/queue/{id}/move",
    operation_id = "queue_move_to",
    tag = "queue",
    summary = "Move to: queue.",
    params(("id" = String, Path)),
    request_body = QueueMoveJson,
    responses((status = 200, body = QueueChangeJson, description = "done"))
)]
pub(super) async fn move_to(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    JsonBody(asked): JsonBody<QueueMoveJson>,
) -> Answer<QueueChangeJson> {
    let (id, vip) = (read_id(&id)?, vip_called(&parts, &actor, &asked.to)?);
    Ok(changed(parts.queue.move_to(&actor, id, vip.id, Timestamp::now()).await?))
}
