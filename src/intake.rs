//! The only way mail gets in. The 250 that ends DATA is said only after [`Intake::accept`]
//! returned `Ok`: body and records are on disk then.
//!
//! The pipeline makes the draft final, each recipient gets its lane, the queue owes it. Whatever
//! fails before that is a [`Refusal`] whose reply tells the client what to do; nothing is kept of
//! such a message but an event.

mod once;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::background::Shutdown;

use crate::calendar::Calendar;
use crate::events::{self, Event, EventKind, InstanceEvent, MailEvent};
use crate::ext::Timestamp;
use crate::mail::{
    Domain, Draft, Envelope, QueueId, Refusal, Reply, SmtpAccountId, TenantId, VipId, without_addresses,
};
use crate::metrics::REFUSED;
use crate::pipeline::{About, Octets, Pipeline, Prepared};
use crate::queue::{Needs8bit, NewMessage, NewRecipient, Queue};
use crate::routing::{Lane, Routes, TransportName};
use crate::store::{Batch, CommitError, Store};
use once::{Keyed, Known};

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use once::Record as OnceRecord;
pub use once::{KEY_CHARACTERS_MAX as ONCE_CHARACTERS_MAX, KEYS_TIME as ONCE_TIME};

pub use crate::pipeline::{HttpFacts, SmtpFacts, Source, Way};

/// Events written beside the path of the mail at once; more are only counted and logged.
const EVENTS_IN_FLIGHT_MAX: usize = 64;
/// `NewMessage::source` of mail by SMTP.
const SOURCE_SMTP: &str = "smtp";
/// `NewMessage::source` of mail by the API.
const SOURCE_API: &str = "api";
/// `NewMessage::source` of our notices.
const SOURCE_NOTICE: &str = "notice";

/// Everything known about a message on its way in.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What SMTP (or the API) said about it.
    pub envelope: Envelope,
    /// The message.
    pub draft: Draft,
    /// Where it comes from.
    pub source: Source,
}

/// Who hands something in, and to where: what decides whether it is taken at all.
#[derive(Clone, Copy, Debug)]
pub struct Entering<'a> {
    /// Whose mail.
    pub tenant: TenantId,
    /// By which login, if by one.
    pub account: Option<SmtpAccountId>,
    /// By which virtual IP it is to leave.
    pub vip: VipId,
    /// To which recipient domain; `None` asks about the sender alone.
    pub to: Option<&'a Domain>,
}

/// Whether new mail is taken now; the refusal is temporary and says of what none is.
pub type MayEnter = Arc<dyn Fn(&Entering<'_>, Timestamp) -> Result<(), Refusal> + Send + Sync>;

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its id.
    pub id: QueueId,
    /// Its Message-ID field.
    pub message_id: String,
    /// Numbers of recipients that are on the suppression list and never mailed, ascending.
    pub suppressed: Vec<u16>,
}

/// The rooms it connects.
pub struct Parts {
    /// Makes drafts final.
    pub pipeline: Arc<Pipeline>,
    /// Gives each recipient its lane.
    pub routes: Arc<Routes>,
    /// Owes the message.
    pub queue: Arc<Queue>,
    /// For events about messages that are not owed.
    pub store: Arc<dyn Store>,
    /// Whether new mail is taken.
    pub may_enter: MayEnter,
    /// By which the keys of messages lapse.
    pub calendar: Calendar,
}

/// The way in.
pub struct Intake {
    parts: Parts,
    events: Arc<Semaphore>,
}

impl Intake {
    /// Connects the rooms.
    pub fn new(parts: Parts) -> Self {
        Self { parts, events: Arc::new(Semaphore::new(EVENTS_IN_FLIGHT_MAX)) }
    }

    /// Takes responsibility for a message: when this returns `Ok` it survives a power cut.
    /// All recipients suppressed is `Ok` too, with events and nothing queued.
    pub async fn accept(&self, submission: Submission, now: Timestamp) -> Result<QueueId, Refusal> {
        self.accept_as(QueueId::new(now), submission, now).await.map(|taken| taken.id)
    }

    /// The same under an id that the caller made and never gives to another message.
    pub async fn accept_as(&self, id: QueueId, submission: Submission, now: Timestamp) -> Result<Taken, Refusal> {
        let Submission { envelope, draft, source } = submission;
        let (tenant, account) = (source.tenant, source.account);
        let accepted = self.owe(id, draft, About::new(id, now, source, envelope)).await;
        accepted.inspect_err(|refusal| {
            metrics::counter!(REFUSED, "code" => refusal.reply.code.0.to_string()).increment(1);
            // For good, and about no message that could be erased: without what it quotes.
            let (reply, cause) = (refusal.kept_reply(), without_addresses(&refusal.cause).into_owned());
            self.tell(EventKind::Instance(InstanceEvent::Refused { tenant, account, reply, cause }), now);
        })
    }

    async fn owe(&self, id: QueueId, draft: Draft, about: About) -> Result<Taken, Refusal> {
        let now = about.now;
        if about.envelope.recipients.is_empty() {
            return Err(Refusal::plain(Reply::enhanced(554, 5, 1, "there are no recipients")));
        }
        let is_notice = about.is_notice();
        // Before anything is counted or signed: what was taken already costs nothing.
        let keyed = match (&about.source.way, about.source.account) {
            (Way::Smtp(_), Some(account)) => Keyed::of(account, &draft, &about.envelope)?,
            _ => None,
        };
        let lapsing = self.parts.calendar.cap(now);
        let beside = match keyed.map(|keyed| keyed.look(&*self.parts.store, id, lapsing)).transpose()? {
            Some(Known::Taken(first)) => return Ok(self.taken_before(first)),
            Some(Known::New(beside)) => beside,
            None => Batch::new(),
        };
        if !is_notice {
            self.may_enter(&about)?;
        }
        let prepared = self.parts.pipeline.prepare(draft, about).await?;
        let is_unsigned = prepared.signatures.is_empty();
        let counted = prepared.counted;
        let (message_id, suppressed) = (prepared.message_id.clone(), prepared.suppressed.clone());
        let message = NewMessage { beside, ..self.addressed(id, prepared) };
        let (tenant, account) = (message.tenant, message.account);
        if let Err(error) = self.parts.queue.enqueue(message, now).await {
            self.parts.pipeline.not_accepted(counted, tenant, account);
            // Two with one key at the same time: one of them was taken.
            return match keyed.map(|keyed| keyed.look(&*self.parts.store, id, lapsing)).transpose()? {
                Some(Known::Taken(first)) if error == CommitError::Conflict => Ok(self.taken_before(first)),
                _ => Err(not_stored(error)),
            };
        }
        if is_notice && is_unsigned {
            self.tell(EventKind::Mail(id, MailEvent::NoticeUnsigned), now);
        }
        Ok(Taken { id, message_id, suppressed })
    }

    fn may_enter(&self, about: &About) -> Result<(), Refusal> {
        let (source, recipients) = (&about.source, &about.envelope.recipients);
        let of = Entering { tenant: source.tenant, account: source.account, vip: source.vip, to: None };
        (self.parts.may_enter)(&of, about.now)?;
        recipients.iter().try_for_each(|recipient| {
            (self.parts.may_enter)(&Entering { to: Some(recipient.address.domain()), ..of }, about.now)
        })
    }

    fn taken_before(&self, id: QueueId) -> Taken {
        tracing::info!(%id, "taken already: a message came again with its X-Idempotency-Key");
        let history = self.parts.queue.history(id).ok().flatten();
        Taken { id, message_id: history.map(|history| history.message_id).unwrap_or_default(), suppressed: Vec::new() }
    }

    /// Removes what has lapsed while the daemon lives.
    pub async fn keep(&self, shutdown: &Shutdown) {
        once::keep(&*self.parts.store, &self.parts.calendar, shutdown).await;
    }

    /// The message with a lane for each recipient that is to be mailed.
    fn addressed(&self, id: QueueId, prepared: Prepared) -> NewMessage {
        let Prepared { source, envelope, suppressed, .. } = prepared;
        let table = self.parts.routes.table();
        let recipients = envelope.recipients.into_iter().zip(0_u16..).map(|(recipient, number)| {
            let is_suppressed = suppressed.binary_search(&number).is_ok();
            let domain = recipient.address.domain();
            let lane = (!is_suppressed).then(|| {
                let lane = table.lane(source.vip, source.tenant, source.class, domain);
                match (lane.transport, &source.way) {
                    // RFC 8460 s3: delivered despite any failure of TLS.
                    (TransportName::Mx, Way::TlsReport) => Lane { transport: TransportName::MxDespiteTls, ..lane },
                    _ => lane,
                }
            });
            NewRecipient { address: recipient.address, notify: recipient.notify, orcpt: recipient.orcpt, lane }
        });
        let (source_name, notice_about) = match source.way {
            Way::Smtp(_) => (SOURCE_SMTP, None),
            Way::Http(_) => (SOURCE_API, None),
            Way::Notice { about } => (SOURCE_NOTICE, Some(about)),
            Way::Report | Way::TlsReport => (SOURCE_NOTICE, None),
        };
        NewMessage {
            id,
            tenant: source.tenant,
            account: source.account,
            vip: source.vip,
            class: source.class,
            source: source_name.to_owned(),
            reverse_path: envelope.reverse_path,
            parameters: envelope.parameters,
            message: prepared.sealed,
            needs_8bit: match prepared.octets {
                Octets::Seven => Needs8bit::No,
                Octets::Eight => Needs8bit::Yes,
            },
            subject: prepared.subject,
            message_id: prepared.message_id,
            header_from: prepared.header_from,
            signatures: prepared.signatures,
            recipients: recipients.collect(),
            labels: prepared.labels,
            return_path: prepared.return_path,
            signed: prepared.signed,
            notice_about,
            beside: Batch::new(),
        }
    }

    /// Writes an event beside the mail's path: nobody waits for it. Under a flood of refusals, or
    /// with a store that is stopped, the log line must do.
    fn tell(&self, kind: EventKind, now: Timestamp) {
        let Ok(permit) = Arc::clone(&self.events).try_acquire_owned() else {
            tracing::warn!(?kind, "too many events at once, this one is only logged");
            return;
        };
        let store = Arc::clone(&self.parts.store);
        tokio::spawn(async move {
            let _permit = permit;
            let mut batch = Batch::new();
            events::record(&mut batch, &Event { at: now, kind });
            if let Err(error) = store.commit(batch).await {
                tracing::warn!(%error, "an event was not recorded");
            }
        });
    }
}

/// The reply to a client whose message could not be made durable. It keeps the message and tries
/// again (RFC 5321 s4.5.4.1); the cause stays here.
fn not_stored(error: CommitError) -> Refusal {
    let reply = match &error {
        CommitError::Full(_) => Reply::enhanced(452, 3, 1, "the server is out of space, please try again later"),
        CommitError::Failed(_) | CommitError::Stopped(_) | CommitError::Conflict => {
            Reply::enhanced(451, 3, 0, "the message could not be stored, please try again later")
        }
    };
    Refusal::with_cause(reply, error)
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
