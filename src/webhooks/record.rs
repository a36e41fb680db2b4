//! What is stored of webhooks, and under which keys: endpoints, how far each lane has come, requests to be made
//! again, windows being replayed, and what became of each attempt.
//!
//! Easy to get wrong: attempts are listed newest first, so their keys hold the time upside down.

use serde::{Deserialize, Serialize};

use super::kind::Kind;
use crate::ext::{self, Timestamp};
use crate::mail::{QueueId, TenantId, WebhookId};
use crate::store::{Key, prefix};

/// An endpoint. Secrets are sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose.
    pub tenant: TenantId,
    /// For people.
    pub name: String,
    /// Where requests go.
    pub url: String,
    /// Where they go when that one does not take them.
    pub secondary_url: Option<String>,
    /// What it is told of.
    pub kinds: Vec<Kind>,
    /// Events in one request, at most; 1 sends each alone.
    pub batch: u16,
    /// What requests are signed with, newest first: two while one is being replaced.
    pub secrets: Vec<Secret>,
    /// What it asks for beside the signature.
    pub login: Option<BasicLogin>,
    /// Whether it is told anything.
    pub standing: Standing,
    /// When it was made.
    pub created: Timestamp,
    /// By whom.
    pub created_by: String,
}

/// A secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its octets, sealed under the master key.
    pub sealed: Vec<u8>,
    /// When it ends; `None` is never.
    pub expires: Option<Timestamp>,
}

/// A login by basic authentication (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasicLogin {
    /// The user name.
    pub user: String,
    /// The password, sealed under the master key.
    pub sealed_password: Vec<u8>,
}

/// Whether an endpoint is told anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Yes.
    Enabled,
    /// No, since then and because of this.
    Disabled {
        /// When.
        at: Timestamp,
        /// A sentence.
        reason: String,
    },
}

impl Webhook {
    /// Whether it is told anything.
    pub fn is_enabled(&self) -> bool {
        self.standing == Standing::Enabled
    }
}

/// How far a lane has come, and how its endpoint does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The last event that was sent, or written down to be sent again.
    pub at: Key,
    /// Since when nothing succeeded.
    pub failing_since: Option<Timestamp>,
    /// When the last request was taken.
    pub last_success: Option<Timestamp>,
    /// When the last request was not.
    pub last_failure: Option<Timestamp>,
    /// Why it was not.
    pub last_reason: String,
}

/// One event, or a part of its recipients, as a request names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRef {
    /// Its key in the log.
    pub key: Key,
    /// Which part of its recipients.
    pub part: u16,
}

/// A request that is to be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// `webhook-id`: the same at every attempt.
    pub id: String,
    /// The kind of its event, or of the first of them.
    pub kind: String,
    /// The message it is about, or the first of them.
    pub message: Option<QueueId>,
    /// The events in it.
    pub events: Vec<EventRef>,
    /// The body.
    pub body: String,
    /// Attempts made so far.
    pub attempts: u16,
    /// When the next one is due.
    pub due: Timestamp,
}

/// A window of past events being sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Events that happened before are left out...
    pub from: Timestamp,
    /// ...and those that happened at this moment or later.
    pub to: Timestamp,
    /// The last event that was sent again; before the first, none.
    pub at: Option<Key>,
    /// The last event there was when it was asked for.
    pub until: Key,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// With an answer of this status.
    Answered(u16),
    /// Without one: a sentence.
    Failed(String),
}

/// What is done after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// Nothing: it was taken.
    Done,
    /// Another attempt at that time.
    Again(Timestamp),
    /// Another attempt at once, at the secondary address.
    Secondary,
    /// Nothing: that was the last attempt, or a test.
    GivenUp,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// `webhook-id`.
    pub id: String,
    /// The kind of its event, or of the first of them.
    pub kind: String,
    /// The message it is about, or the first of them.
    pub message: Option<QueueId>,
    /// The events in it.
    pub events: Vec<EventRef>,
    /// When it began.
    pub at: Timestamp,
    /// The first is 1.
    pub number: u16,
    /// Whether it went to the secondary address.
    pub is_secondary: bool,
    /// How it ended.
    pub ending: Ending,
    /// How long it took, in milliseconds.
    pub took_ms: u32,
    /// The beginning of what was answered.
    pub answer: String,
    /// What is done now.
    pub after: After,
}

impl Attempt {
    /// Whether the endpoint took it.
    pub fn is_success(&self) -> bool {
        matches!(self.ending, Ending::Answered(200..300))
    }
}

/// Kinds of records below the room's prefix.
const WEBHOOK: u8 = b'e';
const PROGRESS: u8 = b's';
const PENDING: u8 = b'p';
const REPLAY: u8 = b'r';
const ATTEMPT: u8 = b'h';

/// Everything of one kind.
fn of_kind(kind: u8) -> Key {
    vec![prefix::WEBHOOK, kind]
}

fn of_webhook(kind: u8, id: WebhookId) -> Key {
    [&of_kind(kind)[..], &id.0.to_be_bytes()].concat()
}

/// Where all endpoints are.
pub fn webhooks() -> Key {
    of_kind(WEBHOOK)
}

/// Kinds whose records are many for one endpoint.
pub const MANY: [u8; 2] = [PENDING, ATTEMPT];

/// All records of one of the kinds [`MANY`], and of one endpoint if it is given.
pub fn many(kind: u8, id: Option<WebhookId>) -> Key {
    id.map_or_else(|| of_kind(kind), |id| of_webhook(kind, id))
}

/// The endpoint a key is about.
pub fn webhook_of(key: &[u8]) -> Option<WebhookId> {
    key.get(2..10)?.try_into().ok().map(|octets| WebhookId(u64::from_be_bytes(octets)))
}

/// An endpoint's own record.
pub fn webhook_key(id: WebhookId) -> Key {
    of_webhook(WEBHOOK, id)
}

/// How far its lane has come.
pub fn progress_key(id: WebhookId) -> Key {
    of_webhook(PROGRESS, id)
}

/// The window that is replayed for it.
pub fn replay_key(id: WebhookId) -> Key {
    of_webhook(REPLAY, id)
}

/// Requests of it to be made again.
pub fn pendings(id: WebhookId) -> Key {
    of_webhook(PENDING, id)
}

/// A new key for a request to be made again.
pub fn new_pending_key(id: WebhookId) -> Key {
    [&pendings(id)[..], &ext::random_bytes::<8>()].concat()
}

/// Attempts of it, newest first.
pub fn attempts(id: WebhookId) -> Key {
    of_webhook(ATTEMPT, id)
}

/// A new key for an attempt.
pub fn new_attempt_key(id: WebhookId, at: Timestamp) -> Key {
    [&attempts_before(id, at)[..], &ext::random_bytes::<8>()].concat()
}

/// Where attempts that began at `at` or earlier start.
pub fn attempts_before(id: WebhookId, at: Timestamp) -> Key {
    [&attempts(id)[..], &(!at.0).to_be_bytes()].concat()
}

/// What an attempt's key says of it, for people: the part behind the endpoint.
pub fn attempt_name(key: &[u8]) -> String {
    let octets = key.get(10..26).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).unwrap_or_default();
    ext::base32(&octets)
}

/// The key of the attempt people call `name`.
pub fn attempt_called(id: WebhookId, name: &str) -> Option<Key> {
    ext::from_base32::<16>(name).map(|octets| [&attempts(id)[..], &octets].concat())
}
