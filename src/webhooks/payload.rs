//! Events as endpoints are told of them: `type`, `timestamp`, `id` and `data`, as Standard Webhooks has it.
//!
//! An event speaks of recipients by number; their addresses are in the message's history, and gone once that is
//! erased. Easy to get wrong: what is sent twice must look the same, so everything here is made of what is stored.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Names;
use super::kind::Kind;
use super::record::EventRef;
use crate::events::{EventKind, History, InstanceEvent, MailEvent, Peer};
use crate::ext::{self, Timestamp};
use crate::mail::{QueueId, Reply, TenantId, printable_lines};
use crate::store::Key;

/// Recipients in one payload, at most; the rest are told of in further ones.
pub const RECIPIENTS_MAX: usize = 50;
/// Characters of a text from elsewhere (a reply, a subject), at most.
const TEXT_CHARACTERS_MAX: usize = 1_000;

/// An event that somebody wants to be told of.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its key in the log.
    pub key: Key,
    /// When it happened.
    pub at: Timestamp,
    /// Its kind.
    pub kind: Kind,
    /// Whose it is.
    pub tenant: TenantId,
    /// The event.
    pub event: EventKind,
    /// What is known of its message.
    pub history: Option<Arc<History>>,
}

/// One payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// `webhook-id` if it is sent alone.
    pub id: String,
    /// The message it is about.
    pub message: Option<QueueId>,
    /// Which event, and which part of it.
    pub event: EventRef,
    /// The JSON.
    pub json: Value,
}

impl Told {
    /// The payloads of the event, in parts if it is about many recipients.
    pub fn payloads(&self, names: &Names) -> Vec<Payload> {
        let recipients = self.recipients();
        let parts = recipients.len().div_ceil(RECIPIENTS_MAX).max(1);
        (0..parts).filter_map(|part| self.payload(u16::try_from(part).ok()?, names)).collect()
    }

    /// One part of them; `None` if there is no such part.
    pub fn payload(&self, part: u16, names: &Names) -> Option<Payload> {
        let recipients = self.recipients();
        let skipped = usize::from(part).checked_mul(RECIPIENTS_MAX)?;
        if part > 0 && skipped >= recipients.len() {
            return None;
        }
        let some: Vec<u16> = recipients.into_iter().skip(skipped).take(RECIPIENTS_MAX).collect();
        let id = self.id(part);
        let mut data = Map::new();
        data.insert("tenant".into(), (names.tenant)(self.tenant).into());
        let message = match &self.event {
            EventKind::Mail(id, event) => {
                data.insert("message".into(), self.message(*id, names));
                data.insert("recipients".into(), self.addresses(&some));
                facts(event, &mut data);
                Some(*id)
            }
            EventKind::Instance(event) => {
                instance_facts(event, &mut data);
                None
            }
            EventKind::Audit(_) => None,
        };
        let json = json!({"id": id, "type": self.kind.name(), "timestamp": self.at.rfc3339(), "data": data});
        Some(Payload { id, message, event: EventRef { key: self.key.clone(), part }, json })
    }

    /// The same at every attempt, and after a restart: made of the event's key.
    fn id(&self, part: u16) -> String {
        let name = ext::base32(self.key.get(1..).unwrap_or_default());
        if part == 0 { format!("evt_{name}") } else { format!("evt_{name}_{part}") }
    }

    /// By number; all of the message's where the event does not say.
    fn recipients(&self) -> Vec<u16> {
        let EventKind::Mail(_, event) = &self.event else { return Vec::new() };
        match event {
            MailEvent::Accepted(facts) => (0..facts.recipients).collect(),
            MailEvent::Suppressed { recipients }
            | MailEvent::Delivered { recipients, .. }
            | MailEvent::Deferred { recipients, .. }
            | MailEvent::Bounced { recipients, .. }
            | MailEvent::Expired { recipients, .. }
            | MailEvent::Held { recipients, .. }
            | MailEvent::Released { recipients, .. }
            | MailEvent::Cancelled { recipients, .. }
            | MailEvent::BouncedLater { recipients, .. }
            | MailEvent::Complained { recipients, .. }
            | MailEvent::Unsubscribed { recipients, .. } => recipients.clone(),
            _ => Vec::new(),
        }
    }

    fn addresses(&self, numbers: &[u16]) -> Value {
        let address = |number: u16| {
            let history = self.history.as_ref()?;
            history.recipients.get(usize::from(number)).map(ToString::to_string)
        };
        numbers.iter().map(|number| json!({"number": number, "address": address(*number)})).collect()
    }

    fn message(&self, id: QueueId, names: &Names) -> Value {
        let Some(history) = &self.history else { return json!({"id": id.to_string()}) };
        let entry = history.entry.as_ref();
        let pairs = history.labels.metadata().iter();
        let metadata: Map<String, Value> = pairs.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({
            "id": id.to_string(),
            "message_id": shortened(&history.message_id),
            "subject": shortened(&history.subject),
            "reverse_path": history.reverse_path.to_string(),
            "header_from": shortened(&history.header_from),
            "accepted": history.accepted.rfc3339(),
            "smtp_account": entry.and_then(|entry| entry.account).map(|account| (names.account)(account)),
            "tags": history.labels.tags(),
            "metadata": metadata,
        })
    }
}

fn facts(event: &MailEvent, data: &mut Map<String, Value>) {
    match event {
        MailEvent::Accepted(facts) => {
            data.insert("source".into(), facts.source.clone().into());
            data.insert("size_bytes".into(), facts.size_bytes.into());
        }
        MailEvent::Delivered { peer, reply, .. } => {
            data.insert("reply".into(), reply_json(reply));
            data.insert("peer".into(), peer_json(peer));
        }
        MailEvent::Deferred { peer, why, detail, due_in_secs, .. } => {
            data.insert("class".into(), why.word().into());
            data.insert("detail".into(), shortened(detail).into());
            data.insert("peer".into(), peer.as_ref().map(peer_json).into());
            data.insert("next_attempt_secs".into(), (*due_in_secs).into());
        }
        MailEvent::Bounced { peer, why, detail, .. } => {
            data.insert("class".into(), why.word().into());
            data.insert("detail".into(), shortened(detail).into());
            data.insert("peer".into(), peer.as_ref().map(peer_json).into());
        }
        MailEvent::Expired { last, .. } => {
            data.insert("detail".into(), shortened(last).into());
        }
        MailEvent::BouncedLater { reporter, why, detail, .. } => {
            data.insert("class".into(), why.word().into());
            data.insert("detail".into(), shortened(detail).into());
            data.insert("reporter".into(), shortened(reporter).into());
        }
        MailEvent::Complained { reporter, .. } => {
            data.insert("reporter".into(), shortened(reporter).into());
        }
        MailEvent::Unsubscribed { way, .. } => {
            data.insert("way".into(), shortened(way).into());
        }
        _ => {}
    }
}

fn instance_facts(event: &InstanceEvent, data: &mut Map<String, Value>) {
    match event {
        InstanceEvent::DomainVerified { domain, .. } => {
            data.insert("domain".into(), domain.to_string().into());
        }
        InstanceEvent::DomainUnverified { domain, reason, .. } => {
            data.insert("domain".into(), domain.to_string().into());
            data.insert("reason".into(), shortened(reason).into());
        }
        InstanceEvent::WebhookDisabled { webhook, reason, .. } => {
            data.insert("webhook".into(), webhook.to_string().into());
            data.insert("reason".into(), shortened(reason).into());
        }
        _ => {}
    }
}

fn reply_json(reply: &Reply) -> Value {
    json!({
        "code": reply.code.0,
        "enhanced": reply.status.map(|status| status.to_string()),
        "text": shortened(&reply.text.join("\n")),
    })
}

fn peer_json(peer: &Peer) -> Value {
    json!({"host": peer.host, "address": peer.address, "source": peer.source, "tls": peer.tls})
}

/// Printable, with the line ends of replies, and not longer than [`TEXT_CHARACTERS_MAX`].
fn shortened(text: &str) -> String {
    printable_lines(text).chars().take(TEXT_CHARACTERS_MAX).collect()
}

/// What a test request says.
pub fn test_payload(id: &str, tenant: &str, at: Timestamp) -> Value {
    json!({
        "id": id,
        "type": TEST,
        "timestamp": at.rfc3339(),
        "data": {"tenant": tenant, "text": "This is a test; nothing has happened."},
    })
}

/// The `type` of a test request.
pub const TEST: &str = "webhook.test";
