//! What goes on from here: notices of ours about what came back later, for the clients that sent the mail, and
//! letters to the operator's own address. Both through the intake, like any mail.
//!
//! Easy to get wrong: what is owed has the id of the message that pays it, so that a crash between paying and
//! forgetting pays once; and what came by the null reverse-path and is itself forwarded is never forwarded again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Feedback;
use super::arrival::{fact_accepted, facts_beginning};
use super::mailbox::Letter;
use crate::background::Shutdown;
use crate::events::{History, NoticeKind, history_key};
use crate::ext::{self, Timestamp};
use crate::intake::{Intake, Source, Submission, Way};
use crate::mail::dsn::{self, Action, Diagnostic, Kind, Notice, Reported};
use crate::mail::{
    Address, Body, Class, Domain, Draft, EnhancedStatus, Envelope, ForwardPath, HeaderBlock, MailParameters, Notify,
    QueueId, Ret, ReversePath, Severity, Smtputf8, VipId, to_base64,
};
use crate::store::{Batch, Key, StoreError, after_prefix, codec, prefix};

/// What is owed is looked at so often, also when nobody said that something is.
const EVERY: Duration = Duration::from_secs(60);
/// Debts paid at a time.
const ROUND_MAX: usize = 64;
/// Old facts are forgotten so often...
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// ...and so many at a time.
const FORGET_MAX: usize = 1_000;
/// The field that a forwarded letter carries.
const FORWARDED: &str = "X-Postern-Forwarded";

/// A debt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Onward {
    /// A notice for a client.
    Notice(News),
    /// A letter for the operator.
    Letter {
        /// Which.
        id: String,
        /// The virtual IP it came to.
        vip: Option<VipId>,
    },
}

/// What came back about one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    pub(super) about: QueueId,
    pub(super) number: u16,
    pub(super) kind: NoticeKind,
    pub(super) reporter: String,
    pub(super) detail: String,
    pub(super) status: EnhancedStatus,
}

impl Onward {
    /// Puts the debt into `batch`, under the id of the message that will pay it.
    pub(super) fn owe(self, batch: &mut Batch, now: Timestamp) {
        let key = [&beginning()[..], &QueueId::new(now).0].concat();
        batch.set(key, codec::encode(&self));
    }
}

/// What became of a debt.
enum Paid {
    /// It is paid, or nobody is there to be paid.
    Yes,
    /// It stays.
    Later,
}

impl Feedback {
    /// Pays what is owed and forgets what is too old to matter, until `shutdown`.
    pub async fn run(&self, intake: Arc<Intake>, shutdown: Shutdown) {
        let _ = self.intake.set(Arc::downgrade(&intake));
        let mut forgot = None::<std::time::Instant>;
        loop {
            let has_more = match self.pay_round().await {
                Ok(has_more) => has_more,
                Err(error) => {
                    tracing::warn!(error, "what came back could not be passed on yet");
                    false
                }
            };
            if forgot.is_none_or(|last| last.elapsed() >= FORGET_EVERY) {
                forgot = Some(std::time::Instant::now());
                if let Err(error) = self.forget_old(self.parts.calendar.cap(Timestamp::now())).await {
                    tracing::warn!(error, "old facts of what came back could not be forgotten");
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
            if !has_more {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.owed.notified() => {}
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
        }
    }

    /// Whether there is more to pay at once.
    async fn pay_round(&self) -> Result<bool, String> {
        let store = &self.parts.store;
        let words = |error: StoreError| error.to_string();
        let debts = store.range(&beginning(), &after_prefix(&beginning()), ROUND_MAX).map_err(words)?;
        let (is_full, mut paid) = (debts.len() == ROUND_MAX, 0_usize);
        for (key, bytes) in debts {
            let done = match (id_of(&key), codec::decode::<Onward>(&bytes)) {
                (Some(id), Ok(debt)) => self.pay(id, debt).await,
                (_, read) => {
                    let why = read.err().map_or_else(|| "its key is damaged".to_owned(), |error| error.to_string());
                    crate::records::set_aside(&key, &why);
                    Paid::Yes
                }
            };
            if let Paid::Yes = done {
                let mut batch = Batch::new();
                batch.if_equals(key.clone(), bytes).remove(key);
                store.commit(batch).await.map_err(|error| error.to_string())?;
                paid = paid.saturating_add(1);
            }
        }
        Ok(is_full && paid > 0)
    }

    async fn pay(&self, id: QueueId, debt: Onward) -> Paid {
        let now = Timestamp::now();
        let submission = match debt {
            Onward::Notice(news) => self.notice(&news, now),
            Onward::Letter { id, vip } => self.forwarded(&id, vip, now),
        };
        let submission = match submission {
            Ok(Some(submission)) => submission,
            Ok(None) => return Paid::Yes,
            Err(error) => {
                tracing::warn!(%error, "what came back waits, its records cannot be read");
                return Paid::Later;
            }
        };
        // Accepted by an earlier run that did not come to forget the debt.
        match self.parts.store.get(&history_key(id)) {
            Ok(Some(_)) => return Paid::Yes,
            Ok(None) => {}
            Err(_) => return Paid::Later,
        }
        let Some(intake) = self.intake.get().and_then(Weak::upgrade) else { return Paid::Later };
        match intake.accept_as(id, submission, now).await {
            Ok(_) => Paid::Yes,
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => {
                tracing::warn!("what came back cannot be passed on: {refusal}");
                Paid::Yes
            }
            Err(refusal) => {
                tracing::warn!("what came back waits: {refusal}");
                Paid::Later
            }
        }
    }

    /// Our own notice for the client; `None` if nobody can be told.
    fn notice(&self, news: &News, now: Timestamp) -> Result<Option<Submission>, StoreError> {
        let Some(bytes) = self.parts.store.get(&history_key(news.about))? else { return Ok(None) };
        let history = History::from_bytes(&bytes)?;
        let recipient = history.recipients.get(usize::from(news.number));
        let (Some(to), Some(address), Some(entry)) = (&history.reverse_path.0, recipient, &history.entry) else {
            return Ok(None);
        };
        let Some(vip) = self.parts.vips.get(entry.vip) else { return Ok(None) };
        let returns = history.returns.as_ref();
        let orcpt = returns.and_then(|returns| returns.orcpt.get(usize::from(news.number)).cloned().flatten());
        let reported = Reported {
            address: address.clone(),
            orcpt,
            action: match news.kind {
                NoticeKind::Failure => Action::Failed,
                NoticeKind::Delay => Action::Delayed,
                NoticeKind::Success => Action::Relayed,
            },
            status: news.status,
            remote_mta: Some(news.reporter.clone()).filter(|name| Domain::parse(name).is_ok()),
            diagnostic: Some(Diagnostic::Smtp(news.detail.clone())),
            last_attempt: None,
            will_retry_until: None,
        };
        let original = beginning_of(&history);
        let draft = dsn::write(
            &Notice {
                kind: match news.kind {
                    NoticeKind::Failure => Kind::Failure,
                    NoticeKind::Delay => Kind::Delay,
                    NoticeKind::Success => Kind::Success,
                },
                reporting_mta: &vip.ehlo,
                to,
                about: news.about,
                envid: returns.and_then(|returns| returns.envid.as_deref()),
                ret: Some(Ret::Headers),
                arrival: history.accepted,
                recipients: &[reported],
                original: original.as_bytes(),
                original_length: entry.size_bytes,
            },
            now,
        );
        let source = Source {
            tenant: history.tenant,
            account: None,
            vip: vip.id,
            vip_name: vip.ehlo,
            class: entry.class,
            way: Way::Report,
        };
        Ok(Some(submission(to, draft, source)))
    }

    /// A letter as an attachment of a message of ours; `None` if it is gone, or would go in a circle.
    fn forwarded(&self, id: &str, vip: Option<VipId>, now: Timestamp) -> Result<Option<Submission>, StoreError> {
        let (Some(letter), Some(to)) = (self.mailbox.get(id)?, self.settings().forward_to) else { return Ok(None) };
        let Some((vip, tenant)) = self.egress(vip) else {
            tracing::warn!(letter = letter.id, "a letter is not forwarded: no virtual IP may send it");
            return Ok(None);
        };
        let is_ours = self.parts.domains.is_return_name(to.domain()) || self.is_own_name(to.domain());
        if is_ours || is_forwarded(&letter) {
            tracing::info!(letter = letter.id, "a letter is not forwarded: it would come back here");
            return Ok(None);
        }
        let draft = wrapped(&letter, &to, &vip.ehlo, now);
        let (vip_name, class) = (vip.ehlo.clone(), Class::Transactional);
        let source = Source { tenant, account: None, vip: vip.id, vip_name, class, way: Way::Report };
        Ok(Some(submission(&to, draft, source)))
    }

    /// Facts of messages whose tags are too old are not needed: nothing more comes of those.
    async fn forget_old(&self, now: Timestamp) -> Result<(), String> {
        let age_max = self.settings().tag_age_max.saturating_add(Duration::from_secs(2 * 24 * 3600));
        loop {
            let beginning = facts_beginning();
            let page = self.parts.store.range(&beginning, &after_prefix(&beginning), FORGET_MAX);
            let page = page.map_err(|error| error.to_string())?;
            let is_old = |key: &[u8]| fact_accepted(key).is_none_or(|accepted| now.since(accepted) > age_max);
            let old: Vec<Key> = page.into_iter().map(|(key, _)| key).take_while(|key| is_old(key)).collect();
            if old.is_empty() {
                return Ok(());
            }
            let is_full = old.len() == FORGET_MAX;
            let mut batch = Batch::new();
            old.into_iter().for_each(|key| {
                batch.remove(key);
            });
            self.parts.store.commit(batch).await.map_err(|error| error.to_string())?;
            if !is_full {
                return Ok(());
            }
        }
    }
}

/// From nobody, and nobody is told of it.
fn submission(to: &Address, draft: Draft, source: Source) -> Submission {
    let smtputf8 = if to.needs_smtputf8() { Smtputf8::Needed } else { Smtputf8::NotNeeded };
    Submission {
        envelope: Envelope {
            reverse_path: ReversePath(None),
            parameters: MailParameters { smtputf8, ..MailParameters::default() },
            recipients: vec![ForwardPath { address: to.clone(), notify: Notify::NEVER, orcpt: None }],
        },
        draft,
        source,
    }
}

/// What is still known of the message's header: its body is gone.
fn beginning_of(history: &History) -> String {
    let mut header = HeaderBlock::default();
    for (name, value) in
        [("From", &history.header_from), ("Subject", &history.subject), ("Message-ID", &history.message_id)]
    {
        if !value.is_empty() {
            header.append(name, value);
        }
    }
    header.append("Date", &history.accepted.rfc5322());
    format!("{}\r\n", String::from_utf8_lossy(&header.to_bytes()))
}

fn is_forwarded(letter: &Letter) -> bool {
    let text = String::from_utf8_lossy(&letter.octets);
    text.lines().any(|line| line.get(..FORWARDED.len()).is_some_and(|name| name.eq_ignore_ascii_case(FORWARDED)))
}

/// The letter as it came, in an attachment.
fn wrapped(letter: &Letter, to: &Address, host: &Domain, now: Timestamp) -> Draft {
    let boundary = format!("=_{}", ext::base32(&ext::random_bytes::<10>()));
    let mut header = HeaderBlock::default();
    header.append("Date", &now.rfc5322());
    header.append("From", &format!("Postmaster <postmaster@{host}>"));
    header.append("To", &format!("<{to}>"));
    header.append("Subject", &format!("Letter {} to this mail server", letter.id));
    header.append("Message-ID", &format!("<{}@{host}>", QueueId::new(now)));
    // RFC 3834 s5: other programs must not answer it.
    header.append("Auto-Submitted", "auto-generated");
    header.append(FORWARDED, &letter.id);
    header.append("MIME-Version", "1.0");
    header.append("Content-Type", &format!("multipart/mixed;\r\n\tboundary=\"{boundary}\""));
    let is_cut = letter.size_bytes > letter.octets.len() as u64;
    let cut = if is_cut { ", of which the beginning is attached" } else { "" };
    let text = format!(
        "This came to {} on {}\r\nfrom {}, reverse-path {}: {} octets{cut}.\r\n\
         postern mailbox show {} shows it, postern mailbox delete {} removes it.\r\n",
        ascii(&letter.to),
        letter.at.rfc5322(),
        ascii(&letter.peer),
        ascii(&letter.from),
        letter.size_bytes,
        letter.id,
        letter.id,
    );
    let mut body = format!("--{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{text}").into_bytes();
    // As octets and not as message/rfc822: it may be cut, and nothing reads it by itself.
    let head = format!(
        "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\
         Content-Disposition: attachment; filename=\"{}.eml\"\r\n\r\n",
        letter.id
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(&to_base64(&letter.octets));
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    Draft { header, body: Body::Memory(Bytes::from(body)) }
}

fn ascii(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_ascii() && !character.is_control() { character } else { '?' })
        .collect()
}

fn beginning() -> Key {
    vec![prefix::FEEDBACK, b'o']
}

fn id_of(key: &[u8]) -> Option<QueueId> {
    key.get(2..)?.try_into().ok().map(QueueId)
}
