//! Reading the queue for people: list, show, and why each recipient is still here.
//!
//! Easy to get wrong: these read the store and may take a while on a long queue; a page looks at a
//! bounded number of records and says where the next one begins, even if it found nothing.

use std::collections::HashMap;
use std::time::Duration;

use super::Queue;
use super::filter::{Filter, Standing};
use super::key;
use super::lanes::{Flight, Name};
use super::record::{Ending, LaneRecord, NoticeOwed, QueuedMessage, QueuedRecipient, RecipientState};
use super::verbs::RECORDS_MAX;
use super::walk::{Budget, Meant, Walk};
use crate::access::{Action, Actor, Forbidden};
use crate::events::{Event, EventKind, History, MailEvent, NoticeKind, Why, history_key};
use crate::mail::{Address, QueueId, SmtpAccountId, TenantId};
use crate::records::AdminError;
use crate::store::{Key, StoreError, after_prefix, prefix};

/// Messages in one page, at most.
pub const PAGE_MAX: usize = 1_000;

/// What is kept of some messages, and where the next ones begin.
pub type Histories = (Vec<(QueueId, History)>, Option<QueueId>);

/// One message in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: QueueId,
    /// Its record.
    pub message: QueuedMessage,
    /// Addresses and header facts, if they were not erased.
    pub history: Option<History>,
    /// Recipients that wait.
    pub waiting: usize,
    /// Recipients being tried now.
    pub in_flight: usize,
    /// Recipients held.
    pub held: usize,
    /// Recipients that wait for the release of their SMTP account.
    pub paused: usize,
    /// Attempts of the recipients that were tried most.
    pub attempts: u32,
    /// When the next of them is due; zero if one is.
    pub due_in: Option<Duration>,
    /// The last reply or cause of one of them.
    pub last: Option<String>,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Oldest first.
    pub messages: Vec<Listed>,
    /// Ask for what follows this; `None` at the end.
    pub next: Option<QueueId>,
}

/// Everything known of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: QueueId,
    /// Its record, unless it is retired.
    pub message: Option<QueuedMessage>,
    /// Addresses and header facts, unless erased or past retention.
    pub history: Option<History>,
    /// The lane records left, by number.
    pub records: Vec<(u16, LaneRecord)>,
    /// Lane records that cannot be read.
    pub damaged: Vec<String>,
    /// Notices owed.
    pub notices: Vec<NoticeOwed>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
}

/// The one thing a recipient, or a lane, waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitsFor {
    /// Nothing: it is done.
    Nothing,
    /// Its next due time.
    Schedule,
    /// An attempt that is running, or about to begin.
    Attempt,
    /// A limit: of a site, of connections, of a warm-up.
    Limit,
    /// The end of a pause after trouble with the site.
    Pause,
    /// The end of a pause because our address is listed.
    Parked,
    /// Its virtual IP, which is not on this host or does not serve its tenant.
    VirtualIp,
    /// An operator, who holds it.
    Hold,
    /// The release of its SMTP account.
    AccountPause,
    /// The end of a suspension.
    Suspension,
    /// An answer of DNS.
    Dns,
    /// A TLS policy of its domain, which the peer does not meet.
    TlsPolicy,
}

impl WaitsFor {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Schedule => "schedule",
            Self::Attempt => "attempt",
            Self::Limit => "limit",
            Self::Pause => "pause",
            Self::Parked => "parked",
            Self::VirtualIp => "virtual-ip",
            Self::Hold => "hold",
            Self::AccountPause => "account-pause",
            Self::Suspension => "suspension",
            Self::Dns => "dns",
            Self::TlsPolicy => "tls-policy",
        }
    }
}

/// What a lane waits for, as delivery says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneWait {
    /// What.
    pub waits_for: WaitsFor,
    /// For people: "suspended until ...", "virtual IP is not on this host".
    pub words: String,
}

impl LaneWait {
    /// A lane waits for that.
    pub fn new(waits_for: WaitsFor, words: impl Into<String>) -> Self {
        Self { waits_for, words: words.into() }
    }
}

/// Why one recipient is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhyLine {
    /// Its number.
    pub recipient: u16,
    /// Where to, if that was not erased.
    pub address: String,
    /// The one thing it waits for.
    pub waits_for: WaitsFor,
    /// A sentence.
    pub sentence: String,
}

/// Whether `actor` may do that to a message that is owed.
pub(super) fn may(actor: &Actor, action: Action, message: &QueuedMessage) -> Result<(), Forbidden> {
    let sender = message.reverse_path.0.as_ref().map(Address::domain);
    actor.require_mail((message.tenant, action), message.account, sender)
}

/// The same for one that is finished.
pub(super) fn may_by_history(actor: &Actor, action: Action, history: &History) -> Result<(), Forbidden> {
    let sender = history.reverse_path.0.as_ref().map(Address::domain);
    let account = history.entry.as_ref().and_then(|entry| entry.account);
    actor.require_mail((history.tenant, action), account, sender)
}

impl Queue {
    /// Up to `most` messages that fit the filter, oldest first, after `after`. A page may be short, or
    /// empty, and have a next one: a bounded number of records is looked at. Blocks on the disk.
    pub fn list(
        &self,
        actor: &Actor,
        filter: &Filter,
        after: Option<QueueId>,
        most: usize,
    ) -> Result<Page, AdminError> {
        filter.require(actor)?;
        let (most, filter) = (most.clamp(1, PAGE_MAX), self.resolved(filter.clone()));
        let mut messages = Vec::new();
        let next = self.walk(&filter, after, Budget::PAGE, &mut |meant| {
            messages.push(self.listed(meant)?);
            Ok(if messages.len() >= most { Walk::Stop } else { Walk::GoOn })
        })?;
        Ok(Page { messages, next })
    }

    fn listed(&self, meant: Meant) -> Result<Listed, StoreError> {
        let count = |standing| meant.unfinished.iter().filter(|one| one.standing == standing).count();
        let of_waiting = meant.unfinished.iter().filter(|one| one.standing == Standing::Waiting);
        let due = of_waiting.filter_map(|one| meant.record(one)).map(|record| record.due).min();
        // Rather of somebody who fits than of anybody, rather of somebody unfinished than of somebody done.
        let said = |one: &super::walk::Unfinished| meant.recipient(one).and_then(|one| one.last_detail.clone());
        let last = (meant.unfinished.iter().filter(|one| one.is_meant).find_map(said))
            .or_else(|| meant.unfinished.iter().find_map(said))
            .or_else(|| {
                let mut all = meant.records.iter().flat_map(|(_, record)| &record.recipients);
                all.find_map(|recipient| recipient.last_detail.clone())
            });
        let (waiting, in_flight) = (count(Standing::Waiting), count(Standing::InFlight));
        let (held, paused) = (count(Standing::Held), count(Standing::Paused));
        let due_in = due.map(|due| due.since(self.now()));
        let history = self.history(meant.id)?;
        let attempts = meant.records.iter().map(|(_, record)| record.attempts).max().unwrap_or(0);
        let (id, message) = (meant.id, meant.message);
        Ok(Listed { id, message, history, waiting, in_flight, held, paused, attempts, due_in, last })
    }

    /// Everything about one message, retired ones included as far as retention reaches.
    /// Blocks on the disk.
    pub fn show(&self, actor: &Actor, id: QueueId) -> Result<Shown, AdminError> {
        let message = self.message(id)?;
        let history = self.history(id)?;
        let missing = || AdminError::Missing(format!("message {id}"));
        match (&message, &history) {
            (Some(message), _) => may(actor, Action::Read, message)?,
            (None, history) => may_by_history(actor, Action::Read, history.as_ref().ok_or_else(missing)?)?,
        }
        let (records, damaged) = self.lane_records_of(id)?;
        let mut notices = Vec::new();
        for own in self.notices_owed().keys_about(id) {
            if let Some(bytes) = self.store.get(&own)? {
                notices.push(NoticeOwed::from_bytes(&bytes)?);
            }
        }
        let mut events = self.trail.of_message(id)?;
        events.sort_by_key(|event| event.at);
        Ok(Shown { id, message, history, records, damaged, notices, events })
    }

    /// One line per recipient: what it waits for, or how it ended. Blocks on the disk.
    pub fn why(&self, actor: &Actor, id: QueueId) -> Result<Vec<WhyLine>, AdminError> {
        let shown = self.show(actor, id)?;
        let mut sentences = HashMap::<u16, (WaitsFor, String)>::new();
        for event in &shown.events {
            if let EventKind::Mail(_, event) = &event.kind {
                let (recipients, sentence) = ending(event);
                let told = |recipient: &u16| (*recipient, (WaitsFor::Nothing, sentence.clone()));
                sentences.extend(recipients.iter().map(told));
            }
        }
        let mut addresses = HashMap::<u16, String>::new();
        let account = shown.message.as_ref().and_then(|message| message.account);
        for (number, record) in &shown.records {
            for recipient in &record.recipients {
                addresses.insert(recipient.number, recipient.address.to_string());
                if let Some(sentence) = self.sentence(((id, *number), account), record, recipient) {
                    sentences.insert(recipient.number, sentence);
                }
            }
        }
        for notice in &shown.notices {
            let told = notice_sentence(notice, notice.due.since(self.now()));
            for recipient in &notice.recipients {
                let sentence = sentences.entry(recipient.number).or_insert((WaitsFor::Nothing, String::new()));
                sentence.1.push_str(&told);
            }
        }
        let history = shown.history.map(|history| history.recipients).unwrap_or_default();
        addresses.extend((0_u16..).zip(&history).map(|(number, address)| (number, address.to_string())));
        let count = shown.message.map_or(history.len(), |message| usize::from(message.recipients));
        let lines = (0_u16..).take(count).map(|recipient| {
            let unknown = || (WaitsFor::Nothing, "nothing is recorded about it".to_owned());
            let (waits_for, sentence) = sentences.remove(&recipient).unwrap_or_else(unknown);
            let address = addresses.remove(&recipient).unwrap_or_else(|| "(erased)".to_owned());
            WhyLine { recipient, address, waits_for, sentence }
        });
        Ok(lines.collect())
    }

    /// The history record of a message.
    pub fn history(&self, id: QueueId) -> Result<Option<History>, StoreError> {
        self.store.get(&history_key(id))?.map(|bytes| History::from_bytes(&bytes)).transpose()
    }

    /// What is kept of messages of a tenant, from `from` on, and where the next page begins. Blocks on the disk.
    pub fn histories_of(&self, tenant: TenantId, from: Option<QueueId>, limit: usize) -> Result<Histories, StoreError> {
        let start = from.map_or_else(|| vec![prefix::HISTORY], history_key);
        let page = self.store.range(&start, &after_prefix(&[prefix::HISTORY]), limit.saturating_add(1))?;
        let next = page.get(limit).and_then(|(key, _)| key::id_of(key));
        let read = |(key, bytes): &(Key, Vec<u8>)| Some((key::id_of(key)?, History::from_bytes(bytes).ok()?));
        let own = page.iter().take(limit).filter_map(read).filter(|(_, history)| history.tenant == tenant);
        Ok((own.collect(), next))
    }

    pub(super) fn lane_records_of(&self, id: QueueId) -> Result<LaneRecords, StoreError> {
        let records = key::lane_records(id);
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for (own, bytes) in self.store.range(&records, &after_prefix(&records), RECORDS_MAX)? {
            match (key::number_of(&own), LaneRecord::from_bytes(&bytes)) {
                (Some(number), Ok(record)) => found.push((number, record)),
                (_, Err(error)) => damaged.push(error.to_string()),
                (None, _) => damaged.push("not a lane record's key".to_owned()),
            }
        }
        Ok((found, damaged))
    }

    pub(super) fn standing(&self, name: (QueueId, u16), recipient: &QueuedRecipient) -> Option<Standing> {
        match recipient.state {
            RecipientState::Done(_) => None,
            RecipientState::Held => Some(Standing::Held),
            RecipientState::Paused => Some(Standing::Paused),
            RecipientState::Waiting => match self.in_memory().flight(name) {
                Some(Flight::Claimed { .. }) => Some(Standing::InFlight),
                _ => Some(Standing::Waiting),
            },
        }
    }

    fn sentence(
        &self,
        (name, account): (Name, Option<SmtpAccountId>),
        record: &LaneRecord,
        recipient: &QueuedRecipient,
    ) -> Option<(WaitsFor, String)> {
        let last = match (&recipient.last_detail, &recipient.last_peer) {
            (Some(detail), Some(peer)) => format!("; last answer of {}: {detail}", peer.host),
            (Some(detail), None) => format!("; last cause: {detail}"),
            (None, _) => String::new(),
        };
        let attempts = match record.attempts {
            0 => "not tried yet".to_owned(),
            1 => "tried once".to_owned(),
            more => format!("tried {more} times"),
        };
        Some(match self.standing(name, recipient)? {
            Standing::Paused => {
                let why = account.and_then(|account| (self.policy.paused)(account));
                let why = why.unwrap_or_else(|| "that is over, it goes on in a moment".to_owned());
                (WaitsFor::AccountPause, format!("held with its SMTP account, {attempts}: {why}{last}"))
            }
            Standing::Held => (WaitsFor::Hold, format!("held by an operator until it is released, {attempts}{last}")),
            Standing::InFlight => (WaitsFor::Attempt, format!("being tried now, {attempts} before{last}")),
            Standing::Waiting => {
                let due = record.due.since(self.now());
                let wait = self.lane_reasons.get().and_then(|reasons| reasons(&record.lane));
                // What holds the lane back holds this one back only once it is due, except a suspension.
                let wait = wait.filter(|wait| due.is_zero() || wait.waits_for == WaitsFor::Suspension);
                let when = if due.is_zero() { "due now".to_owned() } else { format!("due in {}", words(due)) };
                match wait {
                    Some(wait) => (wait.waits_for, format!("{when}, {attempts}; its lane waits: {}{last}", wait.words)),
                    None if due.is_zero() => (WaitsFor::Attempt, format!("{when}, {attempts}{last}")),
                    None => (put_off_for(recipient), format!("{when}, {attempts}{last}")),
                }
            }
        })
    }
}

/// What a recipient that is due later was put off for.
fn put_off_for(recipient: &QueuedRecipient) -> WaitsFor {
    match (recipient.last_why, &recipient.last_peer) {
        (Some(Why::Dns), None) => WaitsFor::Dns,
        (Some(Why::TlsPolicy), _) => WaitsFor::TlsPolicy,
        // Only a site that is parked is said to without having been asked.
        (Some(Why::PolicyOrReputation), None) => WaitsFor::Parked,
        _ => WaitsFor::Schedule,
    }
}

/// Lane records by number, and what is wrong with those that cannot be read.
pub(super) type LaneRecords = (Vec<(u16, LaneRecord)>, Vec<String>);

/// How an event left its recipients.
fn ending(event: &MailEvent) -> (&[u16], String) {
    match event {
        MailEvent::Suppressed { recipients } => {
            (recipients, "suppressed: on the tenant's list, never mailed".to_owned())
        }
        MailEvent::Delivered { recipients, peer, reply } => {
            (recipients, format!("delivered to {}: {}", peer.host, reply.whole()))
        }
        MailEvent::Bounced { recipients, detail, .. } => (recipients, format!("given up: {detail}")),
        MailEvent::Expired { recipients, last } => (recipients, format!("given up after waiting too long: {last}")),
        MailEvent::Cancelled { recipients, by } => (recipients, format!("cancelled by {by}")),
        MailEvent::BouncedLater { recipients, reporter, detail, .. } => {
            (recipients, format!("delivered, and came back later from {reporter}: {detail}"))
        }
        _ => (&[], String::new()),
    }
}

fn notice_sentence(notice: &NoticeOwed, due: Duration) -> String {
    let kind = match notice.kind {
        NoticeKind::Failure => "failure",
        NoticeKind::Delay => "delay",
        NoticeKind::Success => "success",
    };
    if due.is_zero() {
        format!("; its {kind} notice is being made")
    } else {
        format!("; its {kind} notice gathers for another {}", words(due))
    }
}

/// A span of time as people say it.
fn words(span: Duration) -> String {
    match span.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

impl Ending {
    /// The ending as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Suppressed => "suppressed",
            Self::Cancelled => "cancelled",
        }
    }
}
