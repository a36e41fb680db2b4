//! Sending past events again: one request, or all of a window, from the log as it is now.
//!
//! Each keeps the id it had, so that a receiver that remembers ids takes it once. Easy to get wrong: what was
//! erased since is not in the log any more, and must not come back from somewhere else.

use std::sync::Arc;

use serde_json::Value;

use super::feed::{Wanted, Witness};
use super::lane::{Lane, Round};
use super::payload::{Payload, Told};
use super::record::{Attempt, Pending, Replay, Webhook};
use super::{Names, Shared};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::store::StoreError;

/// Events read at once.
const PAGE_EVENTS: usize = 512;

/// The request that holds these payloads; `None` of none. With `batch` at 1 it is the payload itself.
pub fn request(payloads: &[Payload], batch: u16) -> Option<Pending> {
    let first = payloads.first()?;
    let (id, body) = if batch <= 1 {
        (first.id.clone(), first.json.to_string())
    } else {
        let all: Vec<Value> = payloads.iter().map(|payload| payload.json.clone()).collect();
        (format!("{}_x{}", first.id, payloads.len()), Value::Array(all).to_string())
    };
    Some(Pending {
        id,
        kind: first.json.get("type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        message: first.message,
        events: payloads.iter().map(|payload| payload.event.clone()).collect(),
        body,
        attempts: 0,
        due: Timestamp(0),
    })
}

/// Adds what comes next of the window being replayed. Blocks on the disk.
pub(super) fn gather(lane: &mut Lane, round: &mut Round, most: usize) -> Result<(), StoreError> {
    let Some(mut replay) = lane.replay.clone() else { return Ok(()) };
    let log = &lane.shared.parts.log;
    let mut reader = match (lane.replay_reader.take(), &replay.at) {
        (Some(reader), Some(at)) if reader.at() == at => reader,
        (_, Some(at)) => log.reader(at.clone()),
        (_, None) => log.reader_since(replay.from),
    };
    let page = reader.next_page(PAGE_EVENTS)?;
    let webhook = Arc::clone(&lane.webhook);
    let limit = most.saturating_sub(round.requests.len()).max(1) * usize::from(webhook.batch.max(1));
    let wanted = Wanted { tenant: webhook.tenant, kinds: &webhook.kinds, limit };
    let (mut told, mut upto, mut is_over) = (Vec::new(), reader.at().clone(), page.is_end);
    for (key, event) in page.events {
        if key > replay.until || told.len() == limit {
            // What is left of the page comes next, also if it is the log's last.
            is_over = key > replay.until;
            upto = told.last().map_or_else(|| upto.clone(), |last: &Arc<Told>| last.key.clone());
            break;
        }
        if event.at < replay.from || event.at >= replay.to {
            continue;
        }
        let found = lane.witness.tell(key, event, &|_: Option<TenantId>| true);
        told.extend(found.filter(|found| wanted.is(found)).map(Arc::new));
    }
    is_over |= upto >= replay.until;
    lane.add_requests(told.into_iter(), &mut round.requests);
    if *reader.at() == upto {
        lane.replay_reader = Some(reader);
    }
    replay.at = Some(upto);
    round.replay = Some((!is_over).then_some(replay));
    Ok(())
}

/// The request of a past attempt, made of the log as it is now. Blocks on the disk.
///
/// # Errors
/// If the log cannot be read, or nothing of it is kept any more: a sentence.
pub(super) fn again(shared: &Shared, webhook: &Webhook, attempt: &Attempt) -> Result<Pending, String> {
    let log = &shared.parts.log;
    let mut witness = Witness::new(Arc::clone(log.store()));
    let mut payloads = Vec::new();
    for part in &attempt.events {
        let event = log.event(&part.key).map_err(|error| error.to_string())?;
        let told = event.and_then(|event| witness.tell(part.key.clone(), event, &|_: Option<TenantId>| true));
        let told = told.filter(|told| told.tenant == webhook.tenant);
        payloads.extend(told.and_then(|told| told.payload(part.part, &shared.parts.names)));
    }
    let is_alone = payloads.first().is_some_and(|payload| payload.id == attempt.id);
    let made = request(&payloads, if is_alone { 1 } else { webhook.batch.max(2) });
    let gone = || "its event is no longer kept, so it cannot be sent again".to_owned();
    made.map(|made| Pending { id: attempt.id.clone(), ..made }).ok_or_else(gone)
}

/// A window to be replayed, as it begins.
pub(super) fn window(shared: &Shared, from: Timestamp, to: Timestamp) -> Result<Replay, StoreError> {
    Ok(Replay { from, to, at: None, until: shared.parts.log.end()? })
}

/// A request that says it is a test.
pub(super) fn test(names: &Names, webhook: &Webhook, id: String, now: Timestamp) -> Pending {
    let json = super::payload::test_payload(&id, &(names.tenant)(webhook.tenant), now);
    Pending {
        id,
        kind: super::payload::TEST.to_owned(),
        message: None,
        events: Vec::new(),
        body: json.to_string(),
        attempts: 0,
        due: now,
    }
}
