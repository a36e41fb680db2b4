//! The audit log: one chain per tenant and one of the instance, each entry in the batch of the
//! change it tells of.
//!
//! Recipe: describe what was done as an [`Act`] and give it to [`record`]; read with [`Audit`]. An
//! entry holds ids and names, never an address and never a secret, so that erasing a person or a
//! recipient elsewhere does not break the chain. Easy to get wrong: what concerns one tenant belongs
//! in that tenant's chain, or its owner never sees it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::AdminError;
use crate::access::{Actor, Permission, Resource};
use crate::events::{self, AuditEvent, Event, EventKind};
use crate::ext::{self, Timestamp};
use crate::mail::TenantId;
use crate::store::{self, Batch, Key, Link, Store, StoreError, codec, prefix};

/// Characters of a value that an entry keeps of before and after.
const VALUE_CHARACTERS_MAX: usize = 300;
/// Entries of one page, at most.
const PAGE_MAX: usize = 250;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who: a name with an id.
    pub actor: String,
    /// Where the request came from, if it came over a network.
    pub from: Option<String>,
    /// The request, as the daemon's log names it.
    pub request_id: Option<String>,
    /// What: `tenant.add`, `queue.cancel`.
    pub act: String,
    /// To what: ids and names.
    pub subject: String,
    /// What changed.
    pub changes: Vec<Difference>,
    /// How many records, if one act concerned many.
    pub count: Option<u64>,
    /// SHA-256 of what was handed in, if one act concerned many.
    pub input: Option<[u8; 32]>,
}

/// One value that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which.
    pub field: String,
    /// What it was; `None` if there was none.
    pub before: Option<String>,
    /// What it is; `None` if there is none any more.
    pub after: Option<String>,
}

/// Something done, to be recorded.
#[derive(Clone, Debug)]
pub struct Act {
    name: String,
    tenant: Option<TenantId>,
    subject: String,
    shown: Option<String>,
    changes: Vec<Difference>,
    count: Option<u64>,
    input: Option<[u8; 32]>,
}

impl Act {
    /// An act on something of the instance.
    pub fn new(name: impl Into<String>, subject: impl Into<String>) -> Self {
        let (name, subject) = (name.into(), subject.into());
        Self { name, tenant: None, subject, shown: None, changes: Vec::new(), count: None, input: None }
    }

    /// It concerns one tenant.
    #[must_use]
    pub fn of(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// On something of that tenant, or of the instance.
    #[must_use]
    pub fn of_any(mut self, tenant: Option<TenantId>) -> Self {
        self.tenant = tenant;
        self
    }

    /// What the short-lived log of events shows as the subject, if it may say more.
    #[must_use]
    pub fn shown(mut self, subject: impl Into<String>) -> Self {
        self.shown = Some(subject.into());
        self
    }

    /// A value that may have changed; the same before and after is left out.
    #[must_use]
    pub fn changed(mut self, field: &str, before: Option<String>, after: Option<String>) -> Self {
        if before != after {
            let (before, after) = (before.map(shortened), after.map(shortened));
            self.changes.push(Difference { field: field.to_owned(), before, after });
        }
        self
    }

    /// Values that may have changed, by field.
    #[must_use]
    pub fn changes(self, before: Vec<(&'static str, String)>, after: Vec<(&'static str, String)>) -> Self {
        let pairs = before.into_iter().zip(after);
        pairs.fold(self, |act, ((field, before), (_, after))| act.changed(field, Some(before), Some(after)))
    }

    /// It concerned `count` records, made of `input`.
    #[must_use]
    pub fn many(mut self, count: usize, input: &[u8]) -> Self {
        self.count = Some(count as u64);
        self.input = Some(Sha256::digest(input).into());
        self
    }

    /// It concerned `count` records, made of an input with this SHA-256.
    #[must_use]
    pub fn counted(mut self, count: u64, input: Option<[u8; 32]>) -> Self {
        self.count = Some(count);
        self.input = input;
        self
    }
}

/// Puts an act into the batch of its change: into the chain, and into the log of events.
pub fn record(batch: &mut Batch, actor: &Actor, act: Act, now: Timestamp) {
    let shown = act.shown.unwrap_or_else(|| act.subject.clone());
    let told = AuditEvent { actor: actor.name.clone(), act: act.name.clone(), subject: shown };
    events::record(batch, &Event { at: now, kind: EventKind::Audit(told) });
    let entry = AuditEntry {
        at: now,
        actor: actor.name.clone(),
        from: actor.from.map(|address| address.to_string()),
        request_id: actor.request_id.clone(),
        act: act.name,
        subject: act.subject,
        changes: act.changes,
        count: act.count,
        input: act.input,
    };
    batch.chain(chain_key(act.tenant), codec::encode(&entry));
}

/// A name for an address or another text that must not be in the log itself: the same text of the
/// same tenant has the same name.
pub fn pseudonym(tenant: TenantId, text: &str) -> String {
    let digest = Sha256::new().chain_update(tenant.0.to_be_bytes()).chain_update(text.as_bytes()).finalize();
    format!("#{}", ext::base32(digest.get(..10).unwrap_or_default()))
}

fn chain_key(tenant: Option<TenantId>) -> Key {
    match tenant {
        None => vec![prefix::AUDIT, b'i'],
        Some(tenant) => [&[prefix::AUDIT, b't'][..], &tenant.0.to_be_bytes()].concat(),
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(VALUE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// An entry with its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its place, counted from 1.
    pub number: u64,
    /// Its hash: covers it and everything before.
    pub hash: [u8; 32],
    /// What was written.
    pub entry: AuditEntry,
}

/// How checking a chain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Sound entries from the start.
    pub count: u64,
    /// The hash of the last of them.
    pub hash: [u8; 32],
    /// The first thing that is wrong.
    pub broken: Option<String>,
}

/// Reads the audit log.
#[derive(Clone)]
pub struct Audit {
    store: Arc<dyn Store>,
}

impl Audit {
    /// Over the store the rooms write to.
    pub fn open(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Up to `limit` entries of a chain with numbers below `before`, newest first.
    ///
    /// # Errors
    /// If the actor may not, or the store cannot be read.
    pub fn list(
        &self,
        actor: &Actor,
        tenant: Option<TenantId>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Numbered>, AdminError> {
        require(actor, tenant)?;
        let chain = chain_key(tenant);
        let end = store::chain_head(&*self.store, &chain)?.count.saturating_add(1);
        let before = before.map_or(end, |before| before.min(end));
        let links = store::chain_newest(&*self.store, &chain, before, limit.clamp(1, PAGE_MAX))?;
        Ok(links.into_iter().map(numbered).collect::<Result<_, _>>()?)
    }

    /// Walks a whole chain and checks every link; `expected` is an entry's number and hash that were
    /// written down elsewhere.
    ///
    /// # Errors
    /// If the actor may not, or the store cannot be read.
    pub fn verify(
        &self,
        actor: &Actor,
        tenant: Option<TenantId>,
        expected: Option<(u64, [u8; 32])>,
    ) -> Result<Verified, AdminError> {
        require(actor, tenant)?;
        let mut met = expected.is_none();
        let walk = store::chain_walk(&*self.store, &chain_key(tenant), |link| {
            met |= expected == Some((link.number, link.hash));
        })?;
        let unlike = || "the entry that was written down is not in this chain: it was rewritten or cut off".to_owned();
        let broken = walk.broken.or_else(|| (!met).then(unlike));
        Ok(Verified { count: walk.head.count, hash: walk.head.hash, broken })
    }
}

fn require(actor: &Actor, tenant: Option<TenantId>) -> Result<(), AdminError> {
    let permission = match tenant {
        None => Permission::ReadInstance,
        Some(tenant) => Permission::Read(Resource::Audit, tenant),
    };
    Ok(actor.require_part(permission, None)?)
}

fn numbered(link: Link) -> Result<Numbered, StoreError> {
    Ok(Numbered { number: link.number, hash: link.hash, entry: codec::decode(&link.entry)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::store::MemoryStore;

    const SHOP: TenantId = TenantId(7);

    async fn written(store: &Arc<MemoryStore>, act: Act) {
        let mut batch = Batch::new();
        record(&mut batch, &Actor::local(0), act, Timestamp(1_800_000_000_000));
        store.commit(batch).await.unwrap();
    }

    #[tokio::test]
    async fn an_act_is_in_the_chain_it_belongs_to_with_what_changed() {
        let store = Arc::new(MemoryStore::new());
        let limits = |value: &str| vec![("limits.hourly", value.to_owned()), ("name", "shop".to_owned())];
        written(&store, Act::new("tenant.limits", "shop").of(SHOP).changes(limits("none"), limits("10"))).await;
        written(&store, Act::new("vip.add", "192.0.2.1")).await;
        let (audit, admin) = (Audit::open(store), Actor::local(0));
        let of_shop = audit.list(&admin, Some(SHOP), None, 10).unwrap();
        assert_eq!(of_shop.len(), 1);
        let change =
            Difference { field: "limits.hourly".into(), before: Some("none".into()), after: Some("10".into()) };
        assert_eq!(of_shop[0].entry.changes, [change], "what stayed the same is not told");
        assert_eq!(audit.list(&admin, None, None, 10).unwrap()[0].entry.act, "vip.add");
        let owner = Actor::of("o", Role::TenantOwner(SHOP));
        assert!(audit.list(&owner, Some(SHOP), None, 10).is_ok());
        assert!(audit.list(&owner, None, None, 10).is_err() && audit.list(&owner, Some(TenantId(8)), None, 1).is_err());
    }

    #[tokio::test]
    async fn pages_follow_each_other_and_a_rewritten_chain_does_not_have_the_hash_that_was_noted() {
        let store = Arc::new(MemoryStore::new());
        for number in 0..5 {
            written(&store, Act::new("test", number.to_string()).of(SHOP)).await;
        }
        let (audit, admin) = (Audit::open(store.clone()), Actor::local(0));
        let first = audit.list(&admin, Some(SHOP), None, 3).unwrap();
        let second = audit.list(&admin, Some(SHOP), first.last().map(|entry| entry.number), 3).unwrap();
        let numbers: Vec<u64> = first.iter().chain(&second).map(|entry| entry.number).collect();
        assert_eq!(numbers, [5, 4, 3, 2, 1]);
        let noted = (first[2].number, first[2].hash);
        assert_eq!(audit.verify(&admin, Some(SHOP), Some(noted)).unwrap().broken, None);

        let other = Arc::new(MemoryStore::new());
        for number in 0..5 {
            written(&other, Act::new("test", (number * 2).to_string()).of(SHOP)).await;
        }
        let verified = Audit::open(other).verify(&admin, Some(SHOP), Some(noted)).unwrap();
        assert!(verified.broken.unwrap().contains("rewritten"), "its own links are all sound");
    }

    #[test]
    fn a_pseudonym_is_the_same_for_the_same_text_and_does_not_show_it() {
        let name = pseudonym(SHOP, "anna@example.com");
        assert_eq!(name, pseudonym(SHOP, "anna@example.com"));
        assert_ne!(name, pseudonym(TenantId(8), "anna@example.com"));
        assert!(!name.contains("anna") && name.len() == 17);
    }
}
