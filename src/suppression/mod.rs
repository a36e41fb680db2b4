//! Suppression: recipients a tenant's mail is never sent to, by address and by whole domain, and those that
//! are mailed all the same.
//!
//! Recipe: `contains` before a recipient is queued, and again before it is tried. Lists are per tenant
//! and per SMTP account ([`Place`]) and live in the store: a look is two reads, four with an account, and as
//! many more only if something was found. Addresses are compared folded.
//! Easy to get wrong: an entry that cannot be read still suppresses; mailing it would be the harm. A whitelist
//! never outweighs a recipient who complained or unsubscribed.

mod feed;
mod place;
mod rules;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::{Action, Actor, Permission, Resource};
use crate::ext::Timestamp;
use crate::mail::{Address, Domain, SmtpAccountId, TenantId, printable};
use crate::records::{self, Act, AdminError, Desk};
use crate::store::{Batch, Key, Store, StoreError, after_prefix, codec, prefix};

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use feed::Hits;
pub use feed::{Failure, Feed, Suppresses};
pub use place::{Colour, Place};
pub use rules::{DAYS_MAX, HARD_BOUNCES_MAX, Rules, Scope};

/// Entries in one page of [`Suppression::list`] or one call of [`Suppression::add_many`], at most.
pub const PAGE_MAX: usize = 1000;
/// Entries looked at for one page of a search, at most; the page may then hold fewer than were asked for.
pub const LOOKED_AT_MAX: usize = 10_000;
/// Octets of a note, at most; the rest is cut.
pub const NOTE_OCTETS_MAX: usize = 500;

/// What is suppressed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// One mailbox, kept folded.
    Address(Address),
    /// Every mailbox of exactly this domain; not of its subdomains.
    Domain(Domain),
}

impl Subject {
    /// Reads what a person typed: `a@example.com`, `example.com` or `@example.com`.
    pub fn parse(text: &str) -> Result<Self, crate::mail::AddressError> {
        let text = text.trim();
        if let Some(domain) = text.strip_prefix('@') {
            return Domain::parse(domain).map(Self::Domain);
        }
        if text.contains('@') {
            Address::parse(text).map(|address| Self::Address(address.folded()))
        } else {
            Domain::parse(text).map(Self::Domain)
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(formatter, "{address}"),
            Self::Domain(domain) => write!(formatter, "{domain}"),
        }
    }
}

/// Why it is suppressed. Append new variants at the end: the stored form numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Somebody put it there by hand.
    Manual,
    /// It came with a list from elsewhere.
    Import,
    /// The mailbox does not exist.
    HardBounce,
    /// The recipient complained.
    Complaint,
    /// The recipient unsubscribed.
    Unsubscribe,
}

impl Reason {
    /// Every reason with its word.
    const WORDS: [(Self, &'static str); 5] = [
        (Self::Manual, "manual"),
        (Self::Import, "import"),
        (Self::HardBounce, "hard_bounce"),
        (Self::Complaint, "complaint"),
        (Self::Unsubscribe, "unsubscribe"),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(reason, _)| *reason == self).map_or("manual", |(_, word)| word)
    }

    /// The reason of that word, in any case; `-` or a space will do for `_`.
    pub fn called(word: &str) -> Option<Self> {
        let word = word.trim().to_lowercase().replace([' ', '-'], "_");
        Self::WORDS.iter().find(|(_, known)| *known == word).map(|(reason, _)| *reason)
    }
}

/// Who put it there. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The operator of the instance.
    Operator,
    /// Somebody of the tenant.
    Tenant,
    /// The recipient.
    Recipient,
    /// The daemon, from what happened to mail.
    System,
}

/// An entry to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// What.
    pub subject: Subject,
    /// Why.
    pub reason: Reason,
    /// By whom.
    pub origin: Origin,
    /// Free text for people: the reply of the bounce, a ticket number.
    pub note: String,
    /// When it lapses; never if `None`.
    pub expires: Option<Timestamp>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What.
    pub subject: Subject,
    /// Why.
    pub reason: Reason,
    /// By whom.
    pub origin: Origin,
    /// When it was first put there.
    pub added: Timestamp,
    /// Free text for people.
    pub note: String,
    /// When it lapses; never if `None`. A lapsed one counts no more and stays listed until it is removed or
    /// added anew.
    pub expires: Option<Timestamp>,
    /// Who put it there, as the audit log names it; empty for what the first release stored.
    pub by: String,
}

/// As the first release stored it.
#[derive(Serialize, Deserialize)]
struct FirstEntry {
    subject: Subject,
    reason: Reason,
    origin: Origin,
    added: Timestamp,
    note: String,
}

impl From<FirstEntry> for Entry {
    fn from(first: FirstEntry) -> Self {
        let FirstEntry { subject, reason, origin, added, note } = first;
        Self { subject, reason, origin, added, note, expires: None, by: String::new() }
    }
}

impl Entry {
    /// Reads what [`Entry::to_bytes`] or an earlier release wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstEntry, Self>(bytes)
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Whether it counts.
    pub fn is_current(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// What of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Only subjects that begin with this, in lower case.
    pub beginning: String,
    /// Only those with this reason.
    pub reason: Option<Reason>,
}

/// What changing several entries at once did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Entries made.
    pub added: usize,
    /// Entries removed.
    pub removed: usize,
}

/// Makes a record to be stored beside new entries, of how many there were.
pub type Beside<'a> = dyn Fn(usize) -> (Key, Vec<u8>) + Sync + 'a;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In the order of their text, addresses first.
    pub entries: Vec<Entry>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<Subject>,
}

/// Every tenant's list.
pub struct Suppression {
    desk: Desk,
}

impl Suppression {
    /// Opens the lists; reads nothing yet.
    pub fn open(store: Arc<dyn Store>) -> Self {
        Self { desk: Desk::new(store) }
    }

    /// Whether mail of `tenant`, handed in by `account`, must not go to `address`.
    pub fn contains(
        &self,
        tenant: TenantId,
        account: Option<SmtpAccountId>,
        address: &Address,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let black = self.found(Place::from(tenant), account, address, now)?;
        if black.is_empty() {
            return Ok(false);
        }
        // What cannot be read has no reason, and counts as the strongest.
        let is_the_recipients = |found: &Option<Reason>| {
            found.is_none_or(|reason| matches!(reason, Reason::Complaint | Reason::Unsubscribe))
        };
        if black.iter().any(is_the_recipients) {
            return Ok(true);
        }
        let white = Place { colour: Colour::White, ..Place::from(tenant) };
        let white = self.found(white, account, address, now)?;
        Ok(!white.iter().any(Option::is_some))
    }

    /// The reasons of current entries for an address and its domain, of the tenant and of the account; `None`
    /// for one that cannot be read.
    fn found(
        &self,
        of_tenant: Place,
        account: Option<SmtpAccountId>,
        address: &Address,
        now: Timestamp,
    ) -> Result<Vec<Option<Reason>>, StoreError> {
        let of_account = account.map(|account| Place { account: Some(account), ..of_tenant });
        let mut found = Vec::new();
        for place in [Some(of_tenant), of_account].into_iter().flatten() {
            for key in [place.of_address(address), place.of_domain(address.domain())] {
                let Some(bytes) = self.desk.store().get(&key)? else { continue };
                match Entry::from_bytes(&bytes) {
                    Ok(entry) if !entry.is_current(now) => {}
                    Ok(entry) => found.push(Some(entry.reason)),
                    Err(_) => found.push(None),
                }
            }
        }
        Ok(found)
    }

    /// The entry of `subject` itself, for people.
    pub fn entry(
        &self,
        actor: &Actor,
        place: impl Into<Place>,
        subject: &Subject,
    ) -> Result<Option<Entry>, AdminError> {
        let place = place.into();
        require(actor, place, Action::Read)?;
        let bytes = self.desk.store().get(&place.of(subject))?;
        Ok(bytes.map(|bytes| Entry::from_bytes(&bytes)).transpose()?)
    }

    /// Adds one entry. One that is there already stays as it was: `Exists`.
    pub async fn add(
        &self,
        actor: &Actor,
        place: impl Into<Place>,
        new: NewEntry,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let subject = new.subject.to_string();
        match self.add_many(actor, place, vec![new], now).await? {
            0 => Err(AdminError::Exists(format!("an entry for {subject}"))),
            _ => Ok(()),
        }
    }

    /// Adds up to [`PAGE_MAX`] entries in one step and says how many were new. Those that are there already and
    /// have not lapsed stay as they were, so an import may be repeated.
    pub async fn add_many(
        &self,
        actor: &Actor,
        place: impl Into<Place>,
        new: Vec<NewEntry>,
        now: Timestamp,
    ) -> Result<usize, AdminError> {
        Ok(self.change(actor, place.into(), (new, Vec::new()), now).await?.added)
    }

    /// Removes and adds up to [`PAGE_MAX`] entries in one step. What is not there is not removed.
    pub async fn change(
        &self,
        actor: &Actor,
        place: Place,
        (new, gone): (Vec<NewEntry>, Vec<Subject>),
        now: Timestamp,
    ) -> Result<Changed, AdminError> {
        require(actor, place, Action::Write)?;
        if new.len().saturating_add(gone.len()) > PAGE_MAX {
            return Err(AdminError::Invalid(format!("at most {PAGE_MAX} entries at a time")));
        }
        let turn = self.desk.turn().await;
        let mut plan = Plan::default();
        for subject in gone.into_iter().map(folded) {
            self.plan_removal(&mut plan, place, subject)?;
        }
        for new in new {
            self.plan_addition(&mut plan, place, (actor, now), new)?;
        }
        let Plan { mut batch, added, removed } = plan;
        let changed = Changed { added: added.len(), removed: removed.len() };
        for (name, subjects) in [("suppression.remove", &removed), ("suppression.add", &added)] {
            match (subjects.len(), subjects.first()) {
                (0, _) | (_, None) => continue,
                (1, Some(subject)) => records::record(&mut batch, actor, act_on(name, place, subject), now),
                (count, _) => {
                    let input: String = subjects.iter().map(|subject| format!("{subject}\n")).collect();
                    let act = Act::new(name, format!("{count} entries of {}", place.words())).of(place.tenant);
                    records::record(&mut batch, actor, act.many(count, input.as_bytes()), now);
                }
            }
        }
        if !batch.changes.is_empty() {
            turn.commit(batch, || ()).await?;
        }
        Ok(changed)
    }

    /// Adds what an operation read, together with the record that `beside` makes of how many were new. The act
    /// is in the audit log when the operation begins and when it ends, not for each of these.
    pub async fn import(
        &self,
        actor: &Actor,
        place: Place,
        (new, beside): (Vec<NewEntry>, &Beside<'_>),
        now: Timestamp,
    ) -> Result<usize, AdminError> {
        require(actor, place, Action::Write)?;
        let turn = self.desk.turn().await;
        let mut plan = Plan::default();
        for new in new {
            self.plan_addition(&mut plan, place, (actor, now), new)?;
        }
        let Plan { mut batch, added, .. } = plan;
        let (key, record) = beside(added.len());
        batch.set(key, record);
        turn.commit(batch, || ()).await?;
        Ok(added.len())
    }

    fn plan_removal(&self, plan: &mut Plan, place: Place, subject: Subject) -> Result<(), AdminError> {
        let key = place.of(&subject);
        if let Some(before) = self.desk.store().get(&key)?
            && plan.removed.insert(subject)
        {
            plan.batch.if_equals(key.clone(), before).remove(key);
        }
        Ok(())
    }

    fn plan_addition(
        &self,
        plan: &mut Plan,
        place: Place,
        (actor, now): (&Actor, Timestamp),
        new: NewEntry,
    ) -> Result<(), AdminError> {
        let NewEntry { subject, reason, origin, note, expires } = new;
        let subject = folded(subject);
        let key = place.of(&subject);
        if plan.added.contains(&subject) {
            return Ok(());
        }
        if plan.removed.contains(&subject) {
            return Err(AdminError::Invalid(format!("{subject} is to be added and removed at once")));
        }
        match self.desk.store().get(&key)? {
            None => {
                plan.batch.if_absent(key.clone());
            }
            Some(bytes) => match Entry::from_bytes(&bytes) {
                Ok(entry) if !entry.is_current(now) => {
                    plan.batch.if_equals(key.clone(), bytes);
                }
                // Damaged or current: it counts, and stays.
                _ => return Ok(()),
            },
        }
        let (note, by) = (shortened(&note), actor.name.clone());
        let entry = Entry { subject: subject.clone(), reason, origin, added: now, note, expires, by };
        plan.batch.set(key, entry.to_bytes());
        plan.added.insert(subject);
        Ok(())
    }

    /// Removes one entry.
    pub async fn remove(
        &self,
        actor: &Actor,
        place: impl Into<Place>,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let gone = (Vec::new(), vec![subject.clone()]);
        match self.change(actor, place.into(), gone, now).await?.removed {
            0 => Err(AdminError::Missing(format!("entry for {subject}"))),
            _ => Ok(()),
        }
    }

    /// Whether anything is on any list of a tenant, for whoever removes it.
    pub fn has_entries_of(&self, tenant: TenantId) -> Result<bool, StoreError> {
        let own = [&[prefix::SUPPRESSION][..], &tenant.0.to_be_bytes()].concat();
        // Its rules are no entry, so two rows are read.
        let rows = self.desk.store().range(&own, &after_prefix(&own), 2)?;
        Ok(rows.iter().any(|(key, _)| *key != rules::key(tenant)))
    }

    /// Removes every entry of every list of a tenant that is deleted; how many.
    pub async fn forget_tenant(&self, actor: &Actor, tenant: TenantId) -> Result<u64, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let own = [&[prefix::SUPPRESSION][..], &tenant.0.to_be_bytes()].concat();
        let (end, mut removed) = (after_prefix(&own), 0_u64);
        loop {
            let rows = self.desk.store().range(&own, &end, PAGE_MAX)?;
            if rows.is_empty() {
                return Ok(removed);
            }
            let mut batch = Batch::new();
            removed = removed.saturating_add(rows.len() as u64);
            for (key, _) in rows {
                batch.remove(key);
            }
            self.desk.turn().await.commit(batch, || {}).await?;
        }
    }

    /// A page of at most `limit` entries, from `from` (the `next` of the page before) on.
    pub fn list(
        &self,
        actor: &Actor,
        place: impl Into<Place>,
        from: Option<&Subject>,
        limit: usize,
    ) -> Result<Page, AdminError> {
        self.search(actor, (place.into(), &Search::default()), from, limit)
    }

    /// The same of what is searched for. A page may hold fewer entries than `limit` and have a next one.
    pub fn search(
        &self,
        actor: &Actor,
        (place, search): (Place, &Search),
        from: Option<&Subject>,
        limit: usize,
    ) -> Result<Page, AdminError> {
        require(actor, place, Action::Read)?;
        let limit = limit.clamp(1, PAGE_MAX);
        let (mut page, mut looked_at) = (Page { entries: Vec::new(), next: None }, 0_usize);
        let start = from.map(|subject| place.of(subject));
        for beginning in place.beginning_with(&search.beginning) {
            let end = after_prefix(&beginning).min(place.end());
            let mut at = start.clone().map_or_else(|| beginning.clone(), |start| start.max(beginning.clone()));
            while at < end {
                let rows = self.desk.store().range(&at, &end, PAGE_MAX)?;
                let Some((last, _)) = rows.last() else { break };
                at = [&last[..], &[0]].concat();
                for (key, value) in rows {
                    if page.entries.len() == limit || looked_at >= LOOKED_AT_MAX {
                        page.next = place.subject(&key);
                        return Ok(page);
                    }
                    looked_at = looked_at.saturating_add(1);
                    page.entries.extend(wanted(&key, &value, search));
                }
            }
        }
        Ok(page)
    }
}

/// A change being put together.
#[derive(Default)]
struct Plan {
    batch: Batch,
    added: std::collections::BTreeSet<Subject>,
    removed: std::collections::BTreeSet<Subject>,
}

fn wanted(key: &[u8], value: &[u8], search: &Search) -> Option<Entry> {
    match Entry::from_bytes(value) {
        Ok(entry) => search.reason.is_none_or(|reason| reason == entry.reason).then_some(entry),
        Err(error) => {
            records::set_aside(key, &error.to_string());
            None
        }
    }
}

fn require(actor: &Actor, place: Place, action: Action) -> Result<(), AdminError> {
    let permission = Permission::of(Resource::Suppressions, Some(place.tenant), action);
    Ok(actor.require_part(permission, place.account)?)
}

/// An act on one entry; the audit log has a pseudonym of the address, not the address.
fn act_on(name: &str, place: Place, subject: &Subject) -> Act {
    let shown = format!("{subject} on {}", place.words());
    Act::new(name, records::pseudonym(place.tenant, &subject.to_string())).of(place.tenant).shown(shown)
}

fn folded(subject: Subject) -> Subject {
    match subject {
        Subject::Address(address) => Subject::Address(address.folded()),
        Subject::Domain(domain) => Subject::Domain(domain),
    }
}

fn shortened(note: &str) -> String {
    let mut note = printable(note);
    let mut end = note.len().min(NOTE_OCTETS_MAX);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    note
}

#[cfg(test)]
mod tests;
