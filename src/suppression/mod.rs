//! Suppression: recipients a tenant's mail is never sent to, by address and by whole domain.
//!
//! Recipe: `contains` before a recipient is queued, and again before it is tried. The list is per
//! tenant and lives in the store: a look is two reads. Addresses are compared folded.
//! Easy to get wrong: an entry that cannot be read still suppresses; mailing it would be the harm.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::{Actor, Permission, Resource};
use crate::ext::Timestamp;
use crate::mail::{Address, Domain, TenantId, printable};
use crate::records::{self, Act, AdminError, Desk};
use crate::store::{Batch, Key, Store, StoreError, after_prefix, codec, prefix};

/// Entries in one page of [`Suppression::list`] or one call of [`Suppression::add_many`], at most.
pub const PAGE_MAX: usize = 1000;
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
}

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

    /// Whether `tenant` must not mail `address`: two reads at most.
    pub fn contains(&self, tenant: TenantId, address: &Address) -> Result<bool, StoreError> {
        let store = self.desk.store();
        if store.get(&key(tenant, &Subject::Address(address.folded())))?.is_some() {
            return Ok(true);
        }
        Ok(store.get(&domain_key(tenant, address.domain()))?.is_some())
    }

    /// The entry that suppresses `subject` itself, for people.
    pub fn entry(&self, actor: &Actor, tenant: TenantId, subject: &Subject) -> Result<Option<Entry>, AdminError> {
        actor.require(Permission::Read(Resource::Suppressions, tenant))?;
        let bytes = self.desk.store().get(&key(tenant, subject))?;
        Ok(bytes.map(|bytes| codec::decode(&bytes)).transpose()?)
    }

    /// Adds one entry. One that is there already stays as it was: `Exists`.
    pub async fn add(&self, actor: &Actor, tenant: TenantId, new: NewEntry, now: Timestamp) -> Result<(), AdminError> {
        let subject = new.subject.to_string();
        match self.add_many(actor, tenant, vec![new], now).await? {
            0 => Err(AdminError::Exists(format!("a suppression of {subject}"))),
            _ => Ok(()),
        }
    }

    /// Adds up to [`PAGE_MAX`] entries in one step and says how many were new. Those that are
    /// there already stay as they were, so an import may be repeated.
    pub async fn add_many(
        &self,
        actor: &Actor,
        tenant: TenantId,
        new: Vec<NewEntry>,
        now: Timestamp,
    ) -> Result<usize, AdminError> {
        actor.require(Permission::Write(Resource::Suppressions, tenant))?;
        if new.len() > PAGE_MAX {
            return Err(AdminError::Invalid(format!("at most {PAGE_MAX} entries at a time")));
        }
        let turn = self.desk.turn().await;
        let (mut batch, mut added) = (Batch::new(), std::collections::BTreeSet::new());
        for NewEntry { subject, reason, origin, note } in new {
            let subject = folded(subject);
            let key = key(tenant, &subject);
            if added.contains(&subject) || self.desk.store().get(&key)?.is_some() {
                continue;
            }
            let entry = Entry { subject: subject.clone(), reason, origin, added: now, note: shortened(&note) };
            batch.if_absent(key.clone()).set(key, codec::encode(&entry));
            added.insert(subject);
        }
        let act = match (added.len(), added.first()) {
            (0, _) | (_, None) => return Ok(0),
            (1, Some(subject)) => act_on("suppression.add", tenant, subject),
            (count, _) => {
                let input: String = added.iter().map(|subject| format!("{subject}\n")).collect();
                Act::new("suppression.add", format!("{count} entries")).of(tenant).many(count, input.as_bytes())
            }
        };
        records::record(&mut batch, actor, act, now);
        turn.commit(batch, || ()).await?;
        Ok(added.len())
    }

    /// Removes one entry.
    pub async fn remove(
        &self,
        actor: &Actor,
        tenant: TenantId,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::Write(Resource::Suppressions, tenant))?;
        let subject = folded(subject.clone());
        let turn = self.desk.turn().await;
        let key = key(tenant, &subject);
        let missing = || AdminError::Missing(format!("suppression of {subject}"));
        let before = self.desk.store().get(&key)?.ok_or_else(missing)?;
        let mut batch = Batch::new();
        batch.if_equals(key.clone(), before).remove(key);
        records::record(&mut batch, actor, act_on("suppression.remove", tenant, &subject), now);
        turn.commit(batch, || ()).await?;
        Ok(())
    }

    /// A page of at most `limit` entries, from `from` (the `next` of the page before) on.
    pub fn list(
        &self,
        actor: &Actor,
        tenant: TenantId,
        from: Option<&Subject>,
        limit: usize,
    ) -> Result<Page, AdminError> {
        actor.require(Permission::Read(Resource::Suppressions, tenant))?;
        let limit = limit.clamp(1, PAGE_MAX);
        let of_tenant = tenant_key(tenant);
        let start = from.map_or_else(|| of_tenant.clone(), |subject| key(tenant, subject));
        let mut rows = self.desk.store().range(&start, &after_prefix(&of_tenant), limit.saturating_add(1))?;
        let next = (rows.len() > limit).then(|| rows.pop()).flatten();
        let next = next.and_then(|(key, _)| subject_of(&key));
        let entries = rows.iter().filter_map(|(key, value)| match codec::decode(value) {
            Ok(entry) => Some(entry),
            Err(error) => {
                records::set_aside(key, &error.to_string());
                None
            }
        });
        Ok(Page { entries: entries.collect(), next })
    }
}

/// An act on one entry; the audit log has a pseudonym of the address, not the address.
fn act_on(name: &str, tenant: TenantId, subject: &Subject) -> Act {
    let shown = format!("{subject} of tenant {tenant}");
    Act::new(name, records::pseudonym(tenant, &subject.to_string())).of(tenant).shown(shown)
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

fn tenant_key(tenant: TenantId) -> Key {
    [&[prefix::SUPPRESSION][..], &tenant.0.to_be_bytes()].concat()
}

fn domain_key(tenant: TenantId, domain: &Domain) -> Key {
    [&tenant_key(tenant)[..], b"d", domain.as_str().as_bytes()].concat()
}

fn key(tenant: TenantId, subject: &Subject) -> Key {
    match subject {
        Subject::Address(address) => [&tenant_key(tenant)[..], b"a", address.folded().to_string().as_bytes()].concat(),
        Subject::Domain(domain) => domain_key(tenant, domain),
    }
}

/// The subject a key was made of; the key says it even where the entry is damaged.
fn subject_of(key: &[u8]) -> Option<Subject> {
    let (kind, text) = key.get(9..)?.split_first()?;
    let text = std::str::from_utf8(text).ok()?;
    match kind {
        b'a' => Address::parse(text).ok().map(Subject::Address),
        _ => Domain::parse(text).ok().map(Subject::Domain),
    }
}

#[cfg(test)]
mod tests;
