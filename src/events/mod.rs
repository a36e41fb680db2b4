//! The append-only log of what happened. Every state change writes its event in the same batch.
//!
//! Recipe: `record(&mut batch, &event)` puts an event into a batch; [`drive`] runs a [`Consumer`] from
//! its own durable cursor, at least once; [`drive_exactly`] a [`Tally`], which counts each event once;
//! [`EventLog`] reads everything from any point; [`Archive`] moves what all have passed into per-day files;
//! [`Trail`] reads back what happened to one message. Events name (queue id, recipient number); addresses live
//! once, in the queue's per-message history record, so that erasing is one overwrite.

mod archive;
mod driver;
mod exact;
mod facts;
mod log_line;
mod reader;
mod said;
mod trail;

use std::sync::Arc;
use std::time::Duration;

pub use archive::Archive;
pub use driver::drive;
pub use exact::{Tally, Urgency, drive_exactly};
pub use facts::{ERASED, Entry, History, HistoryRef, Returns, history_key};
pub use log_line::{LogFormat, LogLine};
pub use reader::{EventLog, Page, Reader};
pub use said::{AFTER_MAIL, AFTER_RCPT, Audience, Said};
pub use trail::Trail;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::{Class, Domain, QueueId, Reply, SmtpAccountId, StoredDialogue, TenantId, VipId, WebhookId};
use crate::store::{Batch, CommitError, codec};

/// What happened, and when by the wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
}

/// Everything that can happen. Past tense; one level deep. Append new variants at the end:
/// the stored form numbers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// About one message.
    Mail(QueueId, MailEvent),
    /// About the instance: logins, virtual IPs, storage, configuration.
    Instance(InstanceEvent),
    /// A person or the daemon changed a record.
    Audit(AuditEvent),
}

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum MailEvent {
    /// We took responsibility.
    Accepted(Accepted),
    /// These recipients are on the tenant's suppression list and are never mailed.
    Suppressed { recipients: Vec<u16> },
    /// The peer took responsibility for these recipients.
    Delivered { recipients: Vec<u16>, peer: Peer, reply: Reply },
    /// To be tried again; `due_in_secs` from now.
    Deferred { recipients: Vec<u16>, peer: Option<Peer>, why: Why, detail: String, due_in_secs: u64 },
    /// Given up for good because of `why`.
    Bounced { recipients: Vec<u16>, peer: Option<Peer>, why: Why, detail: String },
    /// Given up because it waited too long.
    Expired { recipients: Vec<u16>, last: String },
    /// An operator holds it.
    Held { recipients: Vec<u16>, by: String },
    /// The hold ended.
    Released { recipients: Vec<u16>, by: String },
    /// An operator asked for an attempt now.
    Retried { recipients: Vec<u16>, by: String },
    /// An operator dropped it.
    Cancelled { recipients: Vec<u16>, by: String },
    /// It waits because its virtual IP is not on this host.
    VipMissing { recipients: Vec<u16>, vip: VipId },
    /// An operator moved it to another virtual IP that the tenant permits.
    Moved { recipients: Vec<u16>, from: VipId, to: VipId, by: String },
    /// A notice about these recipients was accepted as `notice`.
    NoticeSent { recipients: Vec<u16>, kind: NoticeKind, notice: QueueId },
    /// A notice left unsigned, for want of a verified key of the virtual IP's name.
    NoticeUnsigned,
    /// Its stored record or body is damaged and was set aside.
    Damaged { detail: String },
    /// Every recipient is done and no notice is owed: the body is gone.
    Retired,
    /// A notice that was owed is not sent, because it cannot be made or delivered.
    NoticeDropped { recipients: Vec<u16>, kind: NoticeKind },
    /// These recipients are owed again from the body's own frame, after the records were lost.
    Salvaged { recipients: Vec<u16> },
    /// Attempts ended in a fault of ours too often: it is held until somebody looks at it.
    Faulted { detail: String },
    /// A recipient told its provider that this is unwanted; `reporter` is who passed that on. Written by
    /// whoever receives feedback, however late: the history record says whose mail it was.
    Complained { recipients: Vec<u16>, reporter: String },
    /// A failure notice of `reporter` came back after the peer had taken responsibility.
    BouncedLater { recipients: Vec<u16>, reporter: String, why: Why, detail: String },
    /// Another notice of `reporter` came back: it still tries, or it delivered or passed the message on.
    ReportedLater { recipients: Vec<u16>, kind: NoticeKind, reporter: String, detail: String },
    /// A complaint came in that nothing proves, because of `doubt`: it counts for nothing by itself.
    ComplaintDoubted { recipients: Vec<u16>, reporter: String, doubt: String },
    /// A recipient asked not to be mailed any more, in the way named: `mail`.
    Unsubscribed { recipients: Vec<u16>, way: String },
    /// A program answered for a recipient: an absence note, a confirmation. It says nothing about delivery.
    AutoReplied { recipients: Vec<u16>, reporter: String },
    /// An attempt made no progress in this phase and was ended by the watchdog; it is made again.
    Stalled { recipients: Vec<u16>, phase: String },
    /// What was said in an attempt about these recipients, in the order of their RCPTs; what it came to is told by
    /// the events after it.
    Attempted { recipients: Vec<u16>, dialogue: StoredDialogue },
}

/// Facts of acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Whose mail.
    pub tenant: TenantId,
    /// The login, if it came by SMTP.
    pub account: Option<SmtpAccountId>,
    /// The virtual IP it leaves by.
    pub vip: VipId,
    /// Transactional or marketing.
    pub class: Class,
    /// `smtp`, `notice`, `api`.
    pub source: String,
    /// Octets of the final message.
    pub size_bytes: u64,
    /// How many recipients, suppressed ones included.
    pub recipients: u16,
    /// `selector._domainkey.domain` of each signature made.
    pub signatures: Vec<String>,
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The MX host or smarthost.
    pub host: String,
    /// `address:port`.
    pub address: String,
    /// The address the connection left from.
    pub source: String,
    /// `TLSv1.3 ...`, or `none` with the reason.
    pub tls: String,
}

/// Class of a deferral or bounce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Why {
    /// The mailbox does not exist or is disabled.
    RecipientGone,
    /// The mailbox is full.
    MailboxFull,
    /// The peer dislikes the sender, the address or the rate.
    PolicyOrReputation,
    /// The peer dislikes the content.
    Content,
    /// The message is too large for the peer.
    TooLarge,
    /// Something on our side or in the sender's set-up.
    OurConfiguration,
    /// The domain does not exist or takes no mail.
    NoSuchDomain,
    /// DNS did not answer.
    Dns,
    /// Connecting, TLS, a timeout or an early disconnect.
    Network,
    /// Greylisting and other "come back later".
    TryLater,
    /// The peer lacks an extension the message needs.
    Unsupported,
    /// The final dot was sent and no reply came: it may have been taken.
    UnknownOutcome,
    /// None of the above.
    Other,
    /// A TLS policy of the recipient domain, or of the message, is not met.
    TlsPolicy,
}

impl Why {
    /// One word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::RecipientGone => "recipient-gone",
            Self::MailboxFull => "mailbox-full",
            Self::PolicyOrReputation => "policy",
            Self::Content => "content",
            Self::TooLarge => "too-large",
            Self::OurConfiguration => "our-configuration",
            Self::NoSuchDomain => "no-such-domain",
            Self::Dns => "dns",
            Self::Network => "network",
            Self::TryLater => "try-later",
            Self::Unsupported => "unsupported",
            Self::UnknownOutcome => "unknown-outcome",
            Self::Other => "other",
            Self::TlsPolicy => "tls-policy",
        }
    }
}

/// Which notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NoticeKind {
    /// Given up.
    Failure,
    /// Still trying.
    Delay,
    /// Delivered or relayed, if asked for.
    Success,
}

/// What happened to the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum InstanceEvent {
    /// The daemon serves.
    Started { version: String },
    /// The daemon stops.
    Stopping,
    /// A login was refused.
    LoginRefused { login: String, peer: String, vip: Option<VipId>, reason: String },
    /// A network is being slowed down for failing logins.
    LoginSlowed { login: String, network: String },
    /// A virtual IP is not on this host.
    VipMissing { vip: VipId, address: String },
    /// It is back.
    VipPresent { vip: VipId, address: String },
    /// A domain's verification changed.
    DomainVerified { tenant: TenantId, domain: Domain },
    /// Its record was absent for too long.
    DomainUnverified { tenant: TenantId, domain: Domain, reason: String },
    /// A record could not be read and was set aside.
    RecordDamaged { key: String, detail: String },
    /// A message was refused by the pipeline.
    Refused { tenant: TenantId, account: Option<SmtpAccountId>, reply: String, cause: String },
    /// A site asked a virtual IP to slow down; it gets so many messages a minute now.
    SiteSlowed { vip: VipId, site: String, per_minute: u32, reply: String },
    /// A site says that a virtual IP is listed; it gets nothing for so many seconds.
    SiteParked { vip: VipId, site: String, secs: u64, reply: String },
    /// A site is sent to as fast as its limits allow again.
    SiteRecovered { vip: VipId, site: String },
    /// A webhook gets nothing more until somebody enables it.
    WebhookDisabled { tenant: TenantId, webhook: WebhookId, reason: String },
    /// No mail of an SMTP account is taken or sent, because of `cause`.
    AccountPaused { tenant: TenantId, account: SmtpAccountId, login: String, cause: String, by: String },
    /// Its mail is taken and sent again.
    AccountReleased { tenant: TenantId, account: SmtpAccountId, login: String, by: String },
    /// The records of a domain's return-path are there: its mail is sent with return-paths of ours.
    ReturnPathVerified { tenant: TenantId, domain: Domain, name: Domain },
    /// They are not: its mail is sent with the client's reverse-path.
    ReturnPathUnverified { tenant: TenantId, domain: Domain, name: Domain, reason: String },
    /// Mail to a recipient domain left under less TLS than the best it ever gave.
    TlsDowngraded { domain: String, host: String, from: String, to: String, detail: String },
    /// A backup could not be begun or finished.
    BackupFailed { reason: String },
    /// A backup was finished, and its last octet fetched; it has so many messages in it, of which so many could not
    /// be read.
    BackupTaken { key: String, messages: u64, unreadable: u64 },
}

/// The act in the audit event of a message's erasure; its subject is the queue id. Whoever keeps
/// addresses of messages elsewhere, in memory too, drops them when it reads one.
pub const ERASE_ACT: &str = "queue.erase";
/// The act in the audit event of a passkey that was taken away while another second factor is left.
pub const PASSKEY_REMOVED_ACT: &str = "second-factor.passkey-remove";
/// The act in the audit event of the last second factor, a passkey, that was taken away.
pub const LAST_PASSKEY_REMOVED_ACT: &str = "second-factor.passkey-remove-last";
/// The act in the audit event of a passkey that came with an older counter than before.
pub const PASSKEY_COPIED_ACT: &str = "second-factor.passkey-copied";
/// The act in the audit event of a recovery code that was used in the place of a second factor.
pub const RECOVERY_USED_ACT: &str = "second-factor.recovery-used";
/// The act in the audit event of a session that ended for too many wrong confirmations.
pub const SESSION_UNPROVED_ACT: &str = "session.end-unproved";

/// A change made by somebody, written in the batch of the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Who.
    pub actor: String,
    /// The act: `tenant.add`, `queue.cancel`.
    pub act: String,
    /// What it was done to: ids and names, never secrets.
    pub subject: String,
}

/// Puts `event` into `batch`, so that fact and change are one.
pub fn record(batch: &mut Batch, event: &Event) {
    batch.append(vec![crate::store::prefix::EVENT], codec::encode(event));
}

/// How events are kept and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How lines of the mail log look (text).
    pub log_format: LogFormat,
    /// How long past events and the addresses of finished messages are kept (30 days).
    pub retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { log_format: LogFormat::Text, retention: Duration::from_secs(30 * 24 * 60 * 60) }
    }
}

/// Rung after a commit with events, so that consumers need not wait for their next look.
#[derive(Clone, Debug)]
pub struct Bell(Arc<tokio::sync::watch::Sender<u64>>);

impl Default for Bell {
    fn default() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(0)))
    }
}

impl Bell {
    /// Wakes the consumers; costs next to nothing.
    pub fn ring(&self) {
        self.0.send_modify(|rings| *rings = rings.wrapping_add(1));
    }

    /// Sees every ring from now on.
    pub fn listen(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// A consumer failed for now; it is called again with the same events.
#[derive(Clone, Debug, thiserror::Error)]
#[error("consumer must see these events again: {0}")]
pub struct Retry(pub String);

impl From<CommitError> for Retry {
    fn from(error: CommitError) -> Self {
        Self(error.to_string())
    }
}

/// Reacts to events at its own pace. Must be idempotent: events may come twice.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Names the durable cursor; never changes.
    fn name(&self) -> &'static str;

    /// Reacts to some events in order. `Err` means: the same again, later.
    async fn consume(&self, events: &[Event]) -> Result<(), Retry>;
}

#[cfg(test)]
mod tests;
