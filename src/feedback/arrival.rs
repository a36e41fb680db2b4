//! One message that arrived: what it is, whom it is about, and the batch that records what follows from it.
//!
//! Everything is on disk before the peer hears 250. Easy to get wrong: the same report may come twice, because a
//! peer that lost our answer sends again, or because somebody wants it to count twice; each fact about a
//! recipient is recorded once.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::mailbox::Letter;
use super::onward::{News, Onward};
use super::tag::{Purpose, Tagged};
use super::verdict::{self, Verdict};
use super::{Feedback, Kind};
use crate::events::{self, Event, EventKind, History, MailEvent, NoticeKind, history_key};
use crate::ext::Timestamp;
use crate::mail::returned::{self, Complaint, ComplaintKind, Report, Returned};
use crate::mail::{
    Address, Domain, Draft, EnhancedStatus, Envelope, Masks, QueueId, Refusal, Reply, VipId, printable, proven_domains,
    signature_keys, without_addresses,
};
use crate::metrics::FEEDBACK;
use crate::net::LookupError;
use crate::store::{Batch, CommitError, Key, codec, prefix};

/// Characters of a name that a peer gave itself.
const NAME_CHARACTERS_MAX: usize = 200;
/// Why a complaint is doubted whose message is known, and whose reporter is nothing to its recipient.
const NOT_FOR_THEM: &str = "the message went to several, and its reporter is not the recipient's provider";

/// A message at our door, whole.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What SMTP said about it; every recipient was accepted by [`Feedback::recipient`].
    pub envelope: Envelope,
    /// The message.
    pub draft: Draft,
    /// What the peer called itself.
    pub helo: String,
    /// Who it is.
    pub peer: SocketAddr,
    /// The virtual IP it came to, if it is one.
    pub vip: Option<VipId>,
}

/// What was read of it, off the async workers.
struct Read {
    octets: Vec<u8>,
    returned: Returned,
    keys: Vec<Domain>,
    subject: String,
}

/// Who proves a complaint.
enum Proof {
    /// The reporter's signature.
    Signed(Domain),
    /// Nobody; why.
    None(&'static str),
}

/// Whom a complaint is about.
struct About {
    tagged: Tagged,
    /// Only who speaks for this domain may complain; `None` where what proves the message proves the recipient too.
    spoken_for: Option<Domain>,
}

/// A batch being put together for one arrival.
struct Entry<'a> {
    feedback: &'a Feedback,
    arrival: &'a Arrival,
    batch: Batch,
    wants_letter: bool,
    now: Timestamp,
}

impl Feedback {
    /// Takes a message: when this returns `Ok`, what follows from it survives a power cut.
    ///
    /// # Errors
    /// The refusal for the peer: it keeps the message, or gives it up.
    pub async fn accept(&self, arrival: Arrival, now: Timestamp) -> Result<(), Refusal> {
        let recipients = arrival.envelope.recipients.iter();
        let kinds: Vec<(Address, Kind)> = recipients
            .map(|path| Ok((path.address.clone(), self.kind(&path.address, now)?)))
            .collect::<Result<_, Refusal>>()?;
        let draft = arrival.draft.clone();
        let read = tokio::task::spawn_blocking(move || read(&draft)).await;
        let read = read.map_err(|error| later(&error))?.map_err(|error| later(&error))?;
        let proof = match &read.returned {
            Returned::Complaint(complaint) => Some(self.prove(complaint, &read).await?),
            _ => None,
        };
        let mut entry = Entry { feedback: self, arrival: &arrival, batch: Batch::new(), wants_letter: false, now };
        for (_, kind) in &kinds {
            entry.note(kind, &read.returned, proof.as_ref()).map_err(|error| later(&error))?;
        }
        let is_kept = entry.wants_letter;
        if is_kept {
            self.mailbox.has_room(arrival.peer.ip(), self.settings().letters_per_hour_max, now)?;
            let to = kinds.iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>().join(", ");
            entry.keep(to, read).map_err(|error| later(&error))?;
        }
        let Entry { batch, .. } = entry;
        if !batch.changes.is_empty() {
            self.parts.store.commit(batch).await.map_err(not_stored)?;
            self.parts.bell.ring();
            self.owed.notify_one();
        }
        if is_kept {
            self.mailbox.count(arrival.peer.ip(), now);
        }
        Ok(())
    }

    /// Whether the reporter's own signature proves a complaint (RFC 5965 s8.1 leaves that to whoever reads one).
    async fn prove(&self, complaint: &Complaint, read: &Read) -> Result<Proof, Refusal> {
        let Ok(reporter) = Domain::parse(&complaint.reporter) else { return Ok(Proof::None("it names no reporter")) };
        let is_own = |name: &Domain| is_within_signer(&reporter, name);
        let names: Vec<&Domain> = read.keys.iter().filter(|name| is_own(name)).collect();
        if names.is_empty() {
            return Ok(Proof::None("its reporter did not sign it"));
        }
        let (mut records, mut failure) = (HashMap::new(), None);
        for name in names {
            match self.parts.resolver.txt(name).await {
                Ok(texts) => drop(records.insert(name.clone(), texts)),
                Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => failure = Some(why),
                Err(LookupError::NoSuchName | LookupError::NoRecord) => {}
            }
        }
        let octets = read.octets.clone();
        let proven = tokio::task::spawn_blocking(move || proven_domains(&octets, &records)).await;
        let proven = proven.map_err(|error| later(&error))?;
        match (proven.into_iter().find(|domain| reporter.is_within(domain) || reporter == *domain), failure) {
            (Some(domain), _) => Ok(Proof::Signed(domain)),
            // Perhaps it can be proved later; the reporter keeps it meanwhile.
            (None, Some(why)) => {
                let reply = Reply::enhanced(451, 4, 3, "The signature cannot be checked now; try again later");
                Err(Refusal::with_cause(reply, why))
            }
            (None, None) => Ok(Proof::None("its signature does not verify")),
        }
    }

    fn history(&self, id: QueueId) -> Result<Option<History>, crate::store::StoreError> {
        let bytes = self.parts.store.get(&history_key(id))?;
        Ok(bytes.and_then(|bytes| History::from_bytes(&bytes).ok()))
    }

    /// The recipient a complaint is about, by what proves it: a return-path of ours, or our trace. Every copy of a
    /// message to several has the same trace, so that names one of them only in the mouth of who speaks for his domain.
    fn complained(&self, complaint: &Complaint, now: Timestamp) -> Result<Option<About>, crate::store::StoreError> {
        let age = (now, self.settings().tag_age_max);
        let returns = complaint.reverse_paths.iter().filter(|path| self.parts.domains.is_return_name(path.domain()));
        let tagged =
            returns.filter_map(|path| self.tags.read(path, age).ok()).find(|tagged| tagged.purpose == Purpose::Return);
        if let Some(tagged) = tagged {
            return Ok(Some(About { tagged, spoken_for: None }));
        }
        let traced = complaint.trace.as_deref().and_then(|trace| self.tags.read_trace(trace, age).ok());
        let Some(id) = traced else { return Ok(None) };
        let Some(history) = self.history(id)? else { return Ok(None) };
        let named: Vec<Address> = complaint.recipients.iter().map(Address::folded).collect();
        let (number, spoken_for) = match history.recipients.as_slice() {
            [_] => (Some(0), None),
            many => {
                let found = many.iter().enumerate().find(|(_, own)| named.contains(&own.folded()));
                (found.map(|(number, _)| number), found.map(|(_, own)| own.domain().clone()))
            }
        };
        let number = number.and_then(|number| u16::try_from(number).ok());
        Ok(number.map(|number| About { tagged: Tagged { purpose: Purpose::Return, id, number }, spoken_for }))
    }

    /// Whether a reporter may complain for recipients in `domain`: it is theirs, or their provider's.
    fn speaks_for(&self, reporter: &Domain, domain: &Domain) -> bool {
        reporter.is_within(domain) || domain.is_within(reporter) || (self.parts.speaks_for)(reporter, domain)
    }
}

impl Entry<'_> {
    /// What the message means for one of its recipients.
    fn note(
        &mut self,
        kind: &Kind,
        returned: &Returned,
        proof: Option<&Proof>,
    ) -> Result<(), crate::store::StoreError> {
        match (kind, returned) {
            (Kind::Tag(_), Returned::Complaint(complaint)) if complaint.is_attached => {
                self.wants_letter = true;
                Ok(())
            }
            (_, Returned::Complaint(complaint)) => self.complaint(complaint, proof),
            (Kind::Tag(Tagged { purpose: Purpose::Unsubscribe, .. }), Returned::Report(_) | Returned::AutoReply) => {
                Ok(())
            }
            (Kind::Tag(tagged @ Tagged { purpose: Purpose::Unsubscribe, .. }), Returned::Other) => {
                let event = MailEvent::Unsubscribed { recipients: vec![tagged.number], way: "mail".to_owned() };
                self.fact(*tagged, Fact::Unsubscribed, event)
            }
            (Kind::Tag(tagged), Returned::Report(report)) => self.report(*tagged, report),
            (Kind::Tag(tagged), Returned::AutoReply) => {
                let event = MailEvent::AutoReplied { recipients: vec![tagged.number], reporter: self.helo() };
                self.fact(*tagged, Fact::AutoReplied, event)
            }
            // A form that is not known yet, or a person: somebody should look at it.
            (_, _) => {
                self.wants_letter = true;
                Ok(())
            }
        }
    }

    fn helo(&self) -> String {
        printable(&self.arrival.helo).chars().take(NAME_CHARACTERS_MAX).collect()
    }

    fn report(&mut self, tagged: Tagged, report: &Report) -> Result<(), crate::store::StoreError> {
        let history = self.feedback.history(tagged.id)?;
        let ours = history.as_ref().and_then(|history| history.recipients.get(usize::from(tagged.number)));
        let Some(verdict) = verdict::of(report, ours) else {
            self.wants_letter = true;
            return Ok(());
        };
        let reporter = if report.reporter.is_empty() { self.helo() } else { report.reporter.clone() };
        let recipients = vec![tagged.number];
        let masked = |detail: &str| match &history {
            Some(history) => Masks::of(history.reverse_path.0.as_ref(), &history.recipients).apply(detail).into_owned(),
            None => without_addresses(detail).into_owned(),
        };
        let (fact, event, news) = match verdict {
            Verdict::Failed { detail, status } => {
                let domain = ours.map(Address::domain);
                let judge = |reply: &Reply| (self.feedback.parts.judge)(reply, domain, &reporter);
                let why = verdict::why(&detail, &judge);
                let event =
                    MailEvent::BouncedLater { recipients, reporter: reporter.clone(), why, detail: masked(&detail) };
                (Fact::Bounced, event, (NoticeKind::Failure, detail, status))
            }
            Verdict::News { kind, detail, status } => {
                let event =
                    MailEvent::ReportedLater { recipients, kind, reporter: reporter.clone(), detail: masked(&detail) };
                let fact = if kind == NoticeKind::Delay { Fact::Delayed } else { Fact::Succeeded };
                (fact, event, (kind, detail, status))
            }
        };
        if self.is_known(tagged, fact)? {
            return Ok(());
        }
        self.fact(tagged, fact, event)?;
        if let Some(history) = history {
            self.owe_notice((tagged, &history), reporter, news);
        }
        Ok(())
    }

    /// The client that asked for such a notice (or did not refuse it) gets one of ours, as if the peer had said it.
    fn owe_notice(
        &mut self,
        (tagged, history): (Tagged, &History),
        reporter: String,
        (kind, detail, status): (NoticeKind, String, EnhancedStatus),
    ) {
        let notify = history.returns.as_ref().and_then(|returns| returns.notify.get(usize::from(tagged.number)));
        let is_wanted = notify.is_some_and(|notify| match kind {
            NoticeKind::Failure => notify.failure,
            NoticeKind::Delay => notify.delay,
            NoticeKind::Success => notify.success,
        });
        if is_wanted && history.reverse_path.0.is_some() {
            let news = News { about: tagged.id, number: tagged.number, kind, reporter, detail, status };
            Onward::Notice(news).owe(&mut self.batch, self.now);
        }
    }

    fn complaint(&mut self, complaint: &Complaint, proof: Option<&Proof>) -> Result<(), crate::store::StoreError> {
        let is_about_us = matches!(complaint.kind, ComplaintKind::Unwanted | ComplaintKind::OptOut);
        let tagged = if is_about_us { self.feedback.complained(complaint, self.now)? } else { None };
        let Some(About { tagged, spoken_for }) = tagged else {
            // Not about a message that is known to be ours: a person decides what it is worth.
            self.wants_letter = true;
            return Ok(());
        };
        let recipients = vec![tagged.number];
        let stranger = |domain: &Domain| spoken_for.is_some_and(|whose| !self.feedback.speaks_for(domain, &whose));
        match proof {
            Some(Proof::Signed(domain)) if stranger(domain) => {
                let (reporter, doubt) = (domain.to_string(), NOT_FOR_THEM.to_owned());
                self.fact(tagged, Fact::Doubted, MailEvent::ComplaintDoubted { recipients, reporter, doubt })
            }
            Some(Proof::Signed(domain)) if complaint.kind == ComplaintKind::OptOut => {
                let event = MailEvent::Unsubscribed { recipients, way: format!("feedback report of {domain}") };
                self.fact(tagged, Fact::Unsubscribed, event)
            }
            Some(Proof::Signed(domain)) => {
                let event = MailEvent::Complained { recipients, reporter: domain.to_string() };
                self.fact(tagged, Fact::Complained, event)
            }
            Some(Proof::None(doubt)) => {
                let (reporter, doubt) = (complaint.reporter.clone(), (*doubt).to_owned());
                self.fact(tagged, Fact::Doubted, MailEvent::ComplaintDoubted { recipients, reporter, doubt })
            }
            None => Ok(()),
        }
    }

    fn is_known(&self, tagged: Tagged, fact: Fact) -> Result<bool, crate::store::StoreError> {
        Ok(self.feedback.parts.store.get(&fact_key(tagged, fact))?.is_some())
    }

    /// Records an event, once.
    fn fact(&mut self, tagged: Tagged, fact: Fact, event: MailEvent) -> Result<(), crate::store::StoreError> {
        metrics::counter!(FEEDBACK, "kind" => fact.word()).increment(1);
        if self.is_known(tagged, fact)? || self.has_noted(tagged, fact) {
            return Ok(());
        }
        self.batch.set(fact_key(tagged, fact), codec::encode(&self.now));
        events::record(&mut self.batch, &Event { at: self.now, kind: EventKind::Mail(tagged.id, event) });
        Ok(())
    }

    /// Whether this very batch has it: one message to several of our addresses.
    fn has_noted(&self, tagged: Tagged, fact: Fact) -> bool {
        let key = fact_key(tagged, fact);
        self.batch.changes.iter().any(|change| matches!(change, crate::store::Change::Set(own, _) if *own == key))
    }

    fn keep(&mut self, to: String, read: Read) -> Result<(), crate::store::StoreError> {
        metrics::counter!(FEEDBACK, "kind" => "letter").increment(1);
        let Read { octets, subject, .. } = read;
        let letter = Letter {
            id: String::new(),
            at: self.now,
            to: printable(&to).chars().take(2 * NAME_CHARACTERS_MAX).collect(),
            from: self.arrival.envelope.reverse_path.to_string(),
            peer: format!("{} ({})", self.arrival.peer.ip().to_canonical(), self.helo()),
            subject,
            size_bytes: octets.len() as u64,
            octets,
        };
        let settings = self.feedback.settings();
        let id = self.feedback.mailbox.put(&mut self.batch, letter, settings.letters_max)?;
        if settings.forward_to.is_some() {
            Onward::Letter { id, vip: self.arrival.vip }.owe(&mut self.batch, self.now);
        }
        Ok(())
    }
}

/// What is recorded once of each recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    Bounced,
    Delayed,
    Succeeded,
    Complained,
    Doubted,
    Unsubscribed,
    AutoReplied,
}

impl Fact {
    fn word(self) -> &'static str {
        match self {
            Self::Bounced => "bounced-later",
            Self::Delayed => "delayed-later",
            Self::Succeeded => "succeeded-later",
            Self::Complained => "complained",
            Self::Doubted => "complaint-doubted",
            Self::Unsubscribed => "unsubscribed",
            Self::AutoReplied => "auto-replied",
        }
    }

    fn letter(self) -> u8 {
        match self {
            Self::Bounced => b'b',
            Self::Delayed => b'd',
            Self::Succeeded => b's',
            Self::Complained => b'c',
            Self::Doubted => b'?',
            Self::Unsubscribed => b'u',
            Self::AutoReplied => b'a',
        }
    }
}

/// Where facts begin; they are in the order of their messages.
pub(super) fn facts_beginning() -> Key {
    vec![prefix::FEEDBACK, b's']
}

fn fact_key(tagged: Tagged, fact: Fact) -> Key {
    let mut key = facts_beginning();
    key.extend_from_slice(&tagged.id.0);
    key.extend_from_slice(&tagged.number.to_be_bytes());
    key.push(fact.letter());
    key
}

/// The message a fact is about.
pub(super) fn fact_accepted(key: &[u8]) -> Option<Timestamp> {
    let id = key.get(2..18)?.try_into().ok().map(QueueId)?;
    Some(id.made())
}

/// Whether the key name `selector._domainkey.domain` is of a domain that may speak for `reporter`.
fn is_within_signer(reporter: &Domain, name: &Domain) -> bool {
    let signer = name.as_str().split_once("._domainkey.").and_then(|(_, domain)| Domain::parse(domain).ok());
    signer.is_some_and(|signer| reporter.is_within(&signer))
}

fn read(draft: &Draft) -> std::io::Result<Read> {
    let mut octets = draft.header.to_bytes();
    octets.extend_from_slice(b"\r\n");
    for slice in draft.body.slices() {
        octets.extend_from_slice(&slice?);
    }
    let returned = returned::read(&octets);
    let keys = match &returned {
        Returned::Complaint(_) => signature_keys(&octets),
        _ => Vec::new(),
    };
    let subject = printable(&draft.header.text("Subject").unwrap_or_default());
    let subject = subject.chars().take(NAME_CHARACTERS_MAX).collect();
    Ok(Read { octets, returned, keys, subject })
}

fn later(cause: &dyn std::fmt::Display) -> Refusal {
    Refusal::with_cause(Reply::enhanced(451, 3, 0, "The message cannot be taken now; try again later"), cause)
}

fn not_stored(error: CommitError) -> Refusal {
    let reply = match &error {
        CommitError::Full(_) => Reply::enhanced(452, 3, 1, "No room for the message now; try again later"),
        _ => Reply::enhanced(451, 3, 0, "The message could not be stored; try again later"),
    };
    Refusal::with_cause(reply, error)
}
