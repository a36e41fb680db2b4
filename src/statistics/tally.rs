//! Counts events exactly once: what was counted and the place in the log are one commit.
//!
//! An event names a message; whose it is and where it goes stands in its history record. Easy to get wrong:
//! nothing may be counted before every lookup of the page has succeeded, or a page that is read again counts
//! twice; and which domain gets a row of its own must follow from the events alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::counts::{Counts, Said, Status};
use super::rows::{self, Bucket, Face, Labels, OTHER, Span};
use super::{IsTenant, ProviderOf, Statistics};
use crate::events::{Accepted, Event, EventKind, History, MailEvent, Retry, Tally, Urgency, history_key};
use crate::ext::Timestamp;
use crate::mail::{Class, QueueId, Signed, SmtpAccountId, TenantId, VipId, parse_mailboxes};
use crate::records;
use crate::store::{Batch, Change, Key, Store, StoreError, after_prefix};

/// Domains with a row of their own in an hour of one tenant, at most; those of known providers come on top.
pub const DOMAINS_PER_HOUR_MAX: usize = 250;
/// Domains with a row of their own in a day of one tenant, at most; those of known providers come on top.
pub const DOMAINS_PER_DAY_MAX: usize = 500;
/// Tags with a row of their own in an hour or a day of one tenant, at most.
pub const TAGS_MAX: usize = 100;
/// Rows of an hour or a day of one tenant by destination and tag, after which nothing gets a further row but the
/// one for the rest.
pub const ROWS_MAX: usize = 2_000;
/// Sending domains with a row of their own in an hour or a day of one tenant, at most.
pub const SENDING_DOMAINS_MAX: usize = 1_000;
/// Rows of an hour or a day of one tenant by sending domain, after which each of them gets one further row, without
/// account and virtual IP. So there are at most this many and one for each of [`SENDING_DOMAINS_MAX`] and for the rest.
pub const SENDING_DOMAIN_ROWS_MAX: usize = 1_000;
/// Messages remembered, at most, so that later events of one need no lookup.
const KNOWN_MAX: usize = 20_000;
/// Recipients of remembered messages, at most.
const KNOWN_RECIPIENTS_MAX: usize = 500_000;
/// So many changed rows are stored at once.
const CHANGED_MAX: usize = 20_000;
/// Rows kept in memory after they were stored, at most.
const ROWS_KEPT_MAX: usize = 100_000;
/// Mail that is not a tenant's own: notices about it.
const NOTICE: &str = "notice";

/// What is counted of a message.
struct Known {
    tenant: TenantId,
    account: Option<SmtpAccountId>,
    vip: VipId,
    accepted: Timestamp,
    tags: Vec<String>,
    /// The sending domain it was signed by, or [`OTHER`].
    sending_domain: String,
    /// How many messages of class marketing it is, and how many that offer one-click unsubscribing: 0 or 1.
    marketing: (u64, u64),
    /// Each once.
    domains: Vec<String>,
    /// By recipient number: which of them.
    recipients: Vec<u16>,
}

/// One thing to be counted in one row.
struct Fact {
    labels: Labels,
    tenant: TenantId,
    at: Timestamp,
    counted: Counts,
}

/// The rows of one hour or day.
#[derive(Default)]
struct Open {
    rows: HashMap<Key, Counts>,
    domains: HashSet<String>,
    tags: HashSet<String>,
    sending_domains: HashSet<String>,
    /// How many of the rows are of sending domains.
    sending_domain_rows: usize,
}

/// What was counted and is not stored yet, and what is near it.
#[derive(Default)]
pub(super) struct Memory {
    open: HashMap<Bucket, Open>,
    changed: HashSet<(Bucket, Key)>,
    known: HashMap<QueueId, Option<Arc<Known>>>,
    known_recipients: usize,
    /// Tenants that were deleted since the start.
    gone: HashSet<TenantId>,
}

#[async_trait]
impl Tally for Statistics {
    fn name(&self) -> &'static str {
        super::CURSOR
    }

    fn take(&self, events: &[Event]) -> Result<Urgency, Retry> {
        let mut memory = records::lock(&self.memory);
        let facts = facts(&mut memory, (&*self.store, &self.provider_of, &self.is_tenant), events)?;
        for fact in &facts {
            for span in [Span::Hour, Span::Day] {
                let bucket = Bucket { span, number: span.number(fact.at), tenant: fact.tenant };
                open(&mut memory, &*self.store, bucket)?;
            }
        }
        for fact in facts {
            for span in [Span::Hour, Span::Day] {
                memory.count(span, &fact, &self.is_known_domain);
            }
        }
        Ok(if memory.changed.len() >= CHANGED_MAX { Urgency::Now } else { Urgency::WhenDue })
    }

    async fn keep(&self, mut batch: Batch) -> Result<(), Retry> {
        let _storing = self.storing.lock().await;
        let changed = {
            let mut memory = records::lock(&self.memory);
            let changed = std::mem::take(&mut memory.changed);
            for (bucket, key) in &changed {
                if let Some(counts) = memory.open.get(bucket).and_then(|open| open.rows.get(key)) {
                    batch.changes.push(Change::Set(key.clone(), counts.to_bytes()));
                }
            }
            changed
        };
        let committed = self.store.commit(batch).await;
        let mut memory = records::lock(&self.memory);
        match committed {
            Ok(()) => memory.let_go(),
            Err(error) => {
                memory.changed.extend(changed);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Memory {
    /// From now on nothing of a tenant is counted, and what was counted is not stored.
    pub(super) fn leave_out(&mut self, tenant: TenantId) {
        self.open.retain(|bucket, _| bucket.tenant != tenant);
        self.changed.retain(|(bucket, _)| bucket.tenant != tenant);
        self.known.retain(|_, known| known.as_ref().is_none_or(|known| known.tenant != tenant));
        self.known_recipients = self.known.values().flatten().map(|known| known.recipients.len()).sum();
        self.gone.insert(tenant);
    }

    /// Counts a fact in its hour or day; that is open.
    fn count(&mut self, span: Span, fact: &Fact, is_known_domain: &super::IsKnownDomain) {
        if self.gone.contains(&fact.tenant) {
            return;
        }
        let bucket = Bucket { span, number: span.number(fact.at), tenant: fact.tenant };
        let Some(open) = self.open.get_mut(&bucket) else { return };
        let key = open.place(bucket, &fact.labels, is_known_domain);
        open.add(key.clone(), fact.labels.face).add(&fact.counted);
        self.changed.insert((bucket, key));
    }

    /// Forgets rows of past hours and days, which will hardly change again, and all if there are many.
    fn let_go(&mut self) {
        let newest = |span: Span| {
            self.open.keys().filter(|bucket| bucket.span == span).map(|bucket| bucket.number).max().unwrap_or_default()
        };
        let (hour, day) = (newest(Span::Hour), newest(Span::Day));
        let changed: HashSet<Bucket> = self.changed.iter().map(|(bucket, _)| *bucket).collect();
        self.open.retain(|bucket, _| {
            let newest = if bucket.span == Span::Hour { hour } else { day };
            bucket.number >= newest || changed.contains(bucket)
        });
        let rows: usize = self.open.values().map(|open| open.rows.len()).sum();
        if rows > ROWS_KEPT_MAX {
            self.open.retain(|bucket, _| changed.contains(bucket));
        }
    }

    fn remember(&mut self, id: QueueId, known: Option<Known>) -> Option<Arc<Known>> {
        let recipients = known.as_ref().map_or(0, |known| known.recipients.len());
        if self.known.len() >= KNOWN_MAX || self.known_recipients.saturating_add(recipients) > KNOWN_RECIPIENTS_MAX {
            self.known.clear();
            self.known_recipients = 0;
        }
        self.known_recipients = self.known_recipients.saturating_add(recipients);
        let known = known.map(Arc::new);
        self.known.insert(id, known.clone());
        known
    }
}

impl Open {
    /// The counts of a row, which is made if it is not there.
    fn add(&mut self, key: Key, face: Face) -> &mut Counts {
        let sending_domain_rows = &mut self.sending_domain_rows;
        self.rows.entry(key).or_insert_with(|| {
            *sending_domain_rows = sending_domain_rows.saturating_add(usize::from(face == Face::SendingDomain));
            Counts::default()
        })
    }

    /// The row a fact is counted in: its own while there is room, else that of the rest.
    fn place(&mut self, bucket: Bucket, labels: &Labels, is_known_domain: &super::IsKnownDomain) -> Key {
        let own = bucket.row(labels);
        if self.rows.contains_key(&own) {
            return own;
        }
        let (values, most) = match (labels.face, bucket.span) {
            (Face::Destination, Span::Hour) => (&mut self.domains, DOMAINS_PER_HOUR_MAX),
            (Face::Destination, Span::Day) => (&mut self.domains, DOMAINS_PER_DAY_MAX),
            (Face::Tag, _) => (&mut self.tags, TAGS_MAX),
            (Face::SendingDomain, _) => return self.place_sending_domain(bucket, labels),
        };
        let is_full = self.rows.len().saturating_sub(self.sending_domain_rows) >= ROWS_MAX;
        let is_welcome = labels.value == OTHER
            || values.contains(&labels.value)
            || values.len() < most
            || (labels.face == Face::Destination && is_known_domain(&labels.value));
        if is_welcome && !is_full {
            if labels.value != OTHER {
                values.insert(labels.value.clone());
            }
            return own;
        }
        let rest = bucket.row(&Labels { value: OTHER.to_owned(), ..labels.clone() });
        if !is_full || self.rows.contains_key(&rest) {
            return rest;
        }
        let provider = if labels.face == Face::Destination { OTHER.to_owned() } else { String::new() };
        bucket.row(&Labels { face: labels.face, account: None, vip: VipId(0), provider, value: OTHER.to_owned() })
    }

    /// The same of a sending domain, which is told apart before account and virtual IP are: how it stands is judged
    /// by its counts.
    fn place_sending_domain(&mut self, bucket: Bucket, labels: &Labels) -> Key {
        let is_known = labels.value == OTHER || self.sending_domains.contains(&labels.value);
        let value = if is_known || self.sending_domains.len() < SENDING_DOMAINS_MAX {
            labels.value.clone()
        } else {
            OTHER.to_owned()
        };
        if value != OTHER {
            self.sending_domains.insert(value.clone());
        }
        let own = bucket.row(&Labels { value: value.clone(), ..labels.clone() });
        if self.sending_domain_rows < SENDING_DOMAIN_ROWS_MAX || self.rows.contains_key(&own) {
            return own;
        }
        bucket.row(&Labels { face: Face::SendingDomain, account: None, vip: VipId(0), provider: String::new(), value })
    }
}

/// Reads the rows of an hour or day, unless they are in memory.
fn open(memory: &mut Memory, store: &dyn Store, bucket: Bucket) -> Result<(), Retry> {
    if memory.open.contains_key(&bucket) {
        return Ok(());
    }
    let mut open = Open::default();
    let all = bucket.key();
    let read = store.range(&all, &after_prefix(&all), usize::MAX).map_err(|error| Retry(error.to_string()))?;
    for (key, bytes) in read {
        let (Some((_, labels)), Ok(counts)) = (rows::read(&key), Counts::from_bytes(&bytes)) else {
            records::set_aside(&key, "counts of statistics");
            continue;
        };
        *open.add(key, labels.face) = counts;
        if labels.value != OTHER {
            let values = match labels.face {
                Face::Destination => &mut open.domains,
                Face::Tag => &mut open.tags,
                Face::SendingDomain => &mut open.sending_domains,
            };
            values.insert(labels.value);
        }
    }
    memory.open.insert(bucket, open);
    Ok(())
}

/// What the events are to be counted as. Changes nothing that counts.
fn facts(
    memory: &mut Memory,
    (store, provider_of, is_tenant): (&dyn Store, &ProviderOf, &IsTenant),
    events: &[Event],
) -> Result<Vec<Fact>, Retry> {
    let mut facts = Vec::new();
    for event in events {
        let EventKind::Mail(id, told) = &event.kind else { continue };
        if let MailEvent::Accepted(accepted) = told {
            if let Some(known) = known(memory, (store, is_tenant), *id, Some(accepted))? {
                injected(&known, (accepted, event.at), provider_of, &mut facts);
            }
        } else if let Some(said) = Said::by(told)
            && let Some(known) = known(memory, (store, is_tenant), *id, None)?
        {
            ended(&known, (&said, event.at), provider_of, &mut facts);
        }
    }
    Ok(facts)
}

/// What is known of a message; `None` if it is a notice, or if its history or its tenant is gone.
fn known(
    memory: &mut Memory,
    (store, is_tenant): (&dyn Store, &IsTenant),
    id: QueueId,
    accepted: Option<&Accepted>,
) -> Result<Option<Arc<Known>>, Retry> {
    if let Some(known) = memory.known.get(&id) {
        return Ok(known.clone());
    }
    let read = store.get(&history_key(id));
    let history = match read.and_then(|bytes| bytes.map(|bytes| History::from_bytes(&bytes)).transpose()) {
        Ok(history) => history,
        // It stays damaged: the other mail is counted.
        Err(StoreError::Damaged(_)) => None,
        Err(error @ StoreError::Failed(_)) => return Err(Retry(error.to_string())),
    };
    let known = match (history, accepted) {
        (Some(history), _) => Known::of(&history),
        (None, Some(accepted)) if !is_tenant(accepted.tenant) => None,
        (None, Some(accepted)) => Known::without_history(accepted),
        (None, None) => None,
    };
    Ok(memory.remember(id, known))
}

impl Known {
    fn of(history: &History) -> Option<Self> {
        let entry = history.entry.as_ref();
        if entry.is_some_and(|entry| entry.source == NOTICE) {
            return None;
        }
        let (mut domains, mut places): (Vec<String>, HashMap<&str, u16>) = (Vec::new(), HashMap::new());
        let mut recipients = Vec::with_capacity(history.recipients.len());
        for address in &history.recipients {
            let domain = address.domain().as_str();
            let place = *places.entry(domain).or_insert_with(|| {
                // An erased address has no domain any more.
                domains.push(if domain == ERASED_DOMAIN { OTHER.to_owned() } else { domain.to_owned() });
                u16::try_from(domains.len().saturating_sub(1)).unwrap_or(u16::MAX)
            });
            recipients.push(place);
        }
        Some(Self {
            tenant: history.tenant,
            account: entry.and_then(|entry| entry.account),
            vip: entry.map_or(VipId(0), |entry| entry.vip),
            accepted: history.accepted,
            tags: history.labels.tags().to_vec(),
            sending_domain: sending_domain(history).unwrap_or_else(|| OTHER.to_owned()),
            marketing: marketing(entry.map(|entry| entry.class), history.signed.as_ref()),
            domains,
            recipients,
        })
    }

    /// Of what its acceptance alone says, where the record is damaged or was forgotten.
    fn without_history(accepted: &Accepted) -> Option<Self> {
        if accepted.source == NOTICE {
            return None;
        }
        Some(Self {
            tenant: accepted.tenant,
            account: accepted.account,
            vip: accepted.vip,
            accepted: Timestamp(u64::MAX),
            tags: Vec::new(),
            sending_domain: signed_by(&accepted.signatures).unwrap_or_else(|| OTHER.to_owned()),
            // Whether it offered one-click unsubscribing is not known, so it is no evidence.
            marketing: (0, 0),
            domains: vec![OTHER.to_owned()],
            recipients: vec![0; usize::from(accepted.recipients)],
        })
    }

    /// How many of these recipients are in each domain, in the order of the domains.
    fn by_domain(&self, recipients: impl Iterator<Item = u16>) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for number in recipients {
            let place = self.recipients.get(usize::from(number)).copied().unwrap_or_default();
            let count = counts.entry(place).or_insert(0_u64);
            *count = count.saturating_add(1);
        }
        counts
    }

    fn domain(&self, place: u16) -> &str {
        self.domains.get(usize::from(place)).map_or(OTHER, String::as_str)
    }

    fn labels(&self, face: Face, provider: &str, value: &str) -> Labels {
        let (provider, value) = (provider.to_owned(), value.to_owned());
        Labels { face, account: self.account, vip: self.vip, provider, value }
    }

    /// A row for each domain, one for each tag and one for who sent it; `domains` gives counts and provider.
    fn tell(&self, at: Timestamp, domains: Vec<(u16, String, Counts)>, facts: &mut Vec<Fact>) {
        let mut all = Counts::default();
        domains.iter().for_each(|(_, _, counted)| all.add(counted));
        let fact = |labels, counted| Fact { labels, tenant: self.tenant, at, counted };
        for tag in &self.tags {
            facts.push(fact(self.labels(Face::Tag, "", tag), all.clone()));
        }
        facts.push(fact(self.labels(Face::SendingDomain, "", &self.sending_domain), all));
        for (place, provider, counted) in domains {
            facts.push(fact(self.labels(Face::Destination, &provider, self.domain(place)), counted));
        }
    }
}

/// How many messages of class marketing one is, and how many that offer one-click unsubscribing. One of which it is
/// not known whether it does is no evidence.
fn marketing(class: Option<Class>, signed: Option<&Signed>) -> (u64, u64) {
    match (class, signed) {
        (Some(Class::Marketing), Some(signed)) => (1, u64::from(signed.offers_one_click)),
        _ => (0, 0),
    }
}

/// The sending domain that signed a message. Records of earlier shapes do not say: there it is that of the header
/// From, which it signed or is above.
fn sending_domain(history: &History) -> Option<String> {
    if let Some(signed) = &history.signed {
        return Some(signed.by.to_string());
    }
    let from = parse_mailboxes(history.header_from.as_bytes()).ok()?;
    from.first().map(|mailbox| mailbox.address.domain().to_string())
}

/// The domain of the first of `selector._domainkey.domain`.
fn signed_by(signatures: &[String]) -> Option<String> {
    signatures.first()?.split_once("._domainkey.").map(|(_, domain)| domain.to_owned())
}

/// As `queue` writes it over an address.
const ERASED_DOMAIN: &str = "erased.invalid";

fn injected(known: &Known, (accepted, at): (&Accepted, Timestamp), provider_of: &ProviderOf, facts: &mut Vec<Fact>) {
    let by_domain = known.by_domain(0..accepted.recipients);
    let domains = by_domain.into_iter().enumerate().map(|(row, (place, recipients))| {
        let mut counted = Counts::default();
        counted.count(Status::Injected, recipients);
        if row == 0 {
            (counted.messages, counted.bytes) = (1, accepted.size_bytes);
            (counted.marketing, counted.one_click) = known.marketing;
        }
        (place, provider_of(None, known.domain(place)).unwrap_or_else(|| OTHER.to_owned()), counted)
    });
    let domains = domains.collect();
    known.tell(at, domains, facts);
}

fn ended(known: &Known, (said, at): (&Said<'_>, Timestamp), provider_of: &ProviderOf, facts: &mut Vec<Fact>) {
    let domains = known.by_domain(said.recipients.iter().copied()).into_iter().map(|(place, recipients)| {
        let mut counted = Counts::default();
        counted.count(said.status, recipients);
        if let Some(why) = said.why {
            counted.count_class(why, said.status, recipients);
        }
        if said.status == Status::Ok && known.accepted.0 != u64::MAX {
            let delay: Duration = at.since(known.accepted);
            counted.count_delay(delay, recipients);
        }
        (place, provider_of(said.host, known.domain(place)).unwrap_or_else(|| OTHER.to_owned()), counted)
    });
    let domains = domains.collect();
    known.tell(at, domains, facts);
}
