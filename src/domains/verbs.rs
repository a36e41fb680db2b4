//! What people do to sending domains: add, verify, rotate, trust, remove.
//!
//! Easy to get wrong: DNS is asked without holding the room's turn, so what it said is applied
//! only if the keys it was asked about are still the ones in the record.

use std::sync::Arc;

use super::advice::{DnsRecord, domain_records};
use super::record::{KeyPair, SendingDomain, State, Subdomains, Trust, store_key};
use super::verification::{self, Findings, Turn};
use super::{Domains, Entry, INSTANCE, missing, return_path};
use crate::access::{Actor, Permission, Resource};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::records::{self, Act, AdminError};
use crate::seal::MasterKey;
use crate::store::{Batch, Store, codec};

/// Domains of one tenant, at most.
pub const DOMAINS_PER_TENANT_MAX: usize = 10_000;
/// Octets of a selector, used to see early whether the names of the keys are too long.
const LONGEST_SELECTOR: &str = "p00000000";

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The domain as it is now.
    pub domain: SendingDomain,
    /// What DNS said about the keys in use (before any rotation).
    pub current: Findings,
    /// What it said about the next ones, if a rotation was under way.
    pub next: Option<Findings>,
    /// What followed.
    pub turns: Vec<Turn>,
}

/// Makes the instance's own key in a store that no daemon has open, for `postern init`; what to publish.
/// One that is there already stays.
pub async fn make_instance_key(
    store: &dyn Store,
    key: Arc<MasterKey>,
    hostname: &Domain,
    now: Timestamp,
) -> Result<Vec<DnsRecord>, AdminError> {
    let own = store_key(INSTANCE, hostname);
    if let Some(bytes) = store.get(&own)? {
        return Ok(domain_records(&codec::decode(&bytes)?, &[]));
    }
    let name = hostname.clone();
    let record = off_workers(move || SendingDomain::make(INSTANCE, name, &key, now)).await?;
    let mut batch = Batch::new();
    batch.if_absent(own.clone()).set(own, codec::encode(&record));
    records::record(&mut batch, &Actor::system("postern init"), act_on("domain.add", &record), now);
    store.commit(batch).await?;
    Ok(domain_records(&record, &[]))
}

impl Domains {
    /// Adds a domain with new keys, pending until `verify` finds their records;
    /// [`super::domain_records`] are what to publish. For [`INSTANCE`] it is the name of notices.
    pub async fn add(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        if !domain.as_str().contains('.') {
            return Err(AdminError::Invalid(format!("{domain} is a top-level name, nobody sends mail as that")));
        }
        verification::key_name(domain, LONGEST_SELECTOR).map_err(AdminError::Invalid)?;
        let (key, name) = (Arc::clone(&self.key), domain.clone());
        let record = off_workers(move || SendingDomain::make(tenant, name, &key, now)).await?;
        let turn = self.desk.turn().await;
        if self.entry(tenant, domain).is_some() {
            return Err(AdminError::Exists(format!("sending domain {domain}")));
        }
        if records::read(&self.memory).get(&tenant).is_some_and(|own| own.len() >= DOMAINS_PER_TENANT_MAX) {
            return Err(AdminError::Invalid(format!("a tenant has at most {DOMAINS_PER_TENANT_MAX} sending domains")));
        }
        let mut batch = Batch::new();
        batch.if_absent(store_key(tenant, domain)).set(store_key(tenant, domain), codec::encode(&record));
        records::record(&mut batch, actor, act_on("domain.add", &record), now);
        self.store_in(turn, batch, record.clone()).await?;
        Ok(record)
    }

    /// Asks DNS for the records of the domain's keys, and puts what it says to work at once.
    pub async fn verify(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
        now: Timestamp,
    ) -> Result<Verification, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let entry = self.entry(tenant, domain).ok_or_else(|| missing(domain))?;
        let keys = entry.keys.as_ref().map_err(|error| AdminError::Invalid(error.clone()))?;
        let current = verification::look(&*self.resolver, domain, &entry.record.keys, keys).await;
        let next = match (&entry.record.next_keys, &entry.next_keys) {
            (Some(pair), Some(Ok(keys))) => Some(verification::look(&*self.resolver, domain, pair, keys).await),
            _ => None,
        };
        let turn = self.desk.turn().await;
        let before = self.entry(tenant, domain).ok_or_else(|| missing(domain))?.record.clone();
        if !has_same_keys(&before, &entry.record) {
            return Err(AdminError::Invalid(format!("the keys of {domain} changed meanwhile: verify again")));
        }
        let mut record = before.clone();
        let turns = verification::decide(&mut record, &current, next.as_ref(), (self.settings.absent_max, now));
        let mut batch = Batch::new();
        batch.if_equals(store_key(tenant, domain), codec::encode(&before));
        batch.set(store_key(tenant, domain), codec::encode(&record));
        for one in &turns {
            tell(&mut batch, actor, (&record, one), now);
        }
        self.store_in(turn, batch, record.clone()).await?;
        Ok(Verification { domain: record, current, next, turns })
    }

    /// Makes the next keys. Those of a verified domain are used once DNS has their RSA record
    /// (`verify`, or the daily look); until then the old ones sign. A domain that is not verified
    /// changes over at once. The keys that are replaced are erased at that moment; their records
    /// must stay, see [`Domains::status`].
    pub async fn rotate(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        self.entry(tenant, domain).ok_or_else(|| missing(domain))?;
        let (key, name) = (Arc::clone(&self.key), domain.clone());
        let next = off_workers(move || KeyPair::make(tenant, &name, &key, now)).await?;
        self.change((actor, now), (tenant, domain), "domain.rotate", |record| {
            if record.next_keys.is_some() {
                let text =
                    format!("a rotation of {} is under way: publish its new records, then verify", record.domain);
                return Err(AdminError::Exists(text));
            }
            record.next_keys = Some(next);
            if !matches!(record.state, State::Verified(_)) {
                record.use_next_keys(now);
            }
            Ok(())
        })
        .await
    }

    /// Drops the next keys of a rotation that is not to be finished.
    pub async fn cancel_rotation(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        self.change((actor, now), (tenant, domain), "domain.rotate-cancel", |record| match record.next_keys.take() {
            Some(_) => Ok(()),
            None => Err(AdminError::Missing(format!("rotation of {}", record.domain))),
        })
        .await
    }

    /// Lets a domain be used without proof, or not any more. The operator's word only.
    pub async fn set_trust(
        &self,
        actor: &Actor,
        which: (TenantId, &Domain),
        trust: Trust,
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        self.set_words(actor, which, (Some(trust), None), now).await
    }

    /// Sets whether a domain may be used without proof, and whether it covers names below it: what is given, in one
    /// step. The operator's word only.
    ///
    /// # Errors
    /// If the actor may not, or there is no such domain.
    pub async fn set_words(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        (trust, subdomains): (Option<Trust>, Option<Subdomains>),
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let before = self.entry(tenant, domain).ok_or_else(|| missing(domain))?.record.clone();
        let (mut record, mut batch) = (before.clone(), Batch::new());
        if let Some(trust) = trust {
            record.trust = trust;
            let act = if trust == Trust::ByOperator { "domain.trust" } else { "domain.distrust" };
            records::record(&mut batch, actor, act_on(act, &record).changes(facts(&before), facts(&record)), now);
        }
        if let Some(subdomains) = subdomains {
            let earlier = facts(&record);
            record.subdomains = subdomains;
            let act = act_on("domain.subdomains", &record).changes(earlier, facts(&record));
            records::record(&mut batch, actor, act, now);
        }
        if trust.is_none() && subdomains.is_none() {
            return Ok(record);
        }
        batch.if_equals(store_key(tenant, domain), codec::encode(&before));
        batch.set(store_key(tenant, domain), codec::encode(&record));
        self.store_in(turn, batch, record.clone()).await?;
        Ok(record)
    }

    /// Removes a domain and erases its keys. Mail signed before still needs the DNS records until
    /// it is delivered: the record that is returned names them.
    pub async fn remove(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
        now: Timestamp,
    ) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let turn = self.desk.turn().await;
        let record = self.entry(tenant, domain).ok_or_else(|| missing(domain))?.record.clone();
        let mut batch = Batch::new();
        batch.if_equals(store_key(tenant, domain), codec::encode(&record)).remove(store_key(tenant, domain));
        batch.remove(return_path::key(tenant, domain));
        records::record(&mut batch, actor, act_on("domain.remove", &record), now);
        let (memory, name, returns) = (Arc::clone(&self.memory), domain.clone(), Arc::clone(&self.returns));
        turn.commit(batch, move || {
            records::write(&returns).forget(tenant, &name);
            if let Some(own) = records::write(&memory).get_mut(&tenant) {
                own.remove(&name);
            }
        })
        .await?;
        Ok(record)
    }

    /// One change of one record, with its audit event.
    pub(super) async fn change(
        &self,
        (actor, now): (&Actor, Timestamp),
        (tenant, domain): (TenantId, &Domain),
        act: &str,
        change: impl FnOnce(&mut SendingDomain) -> Result<(), AdminError> + Send,
    ) -> Result<SendingDomain, AdminError> {
        let turn = self.desk.turn().await;
        let before = self.entry(tenant, domain).ok_or_else(|| missing(domain))?.record.clone();
        let mut record = before.clone();
        change(&mut record)?;
        let mut batch = Batch::new();
        batch.if_equals(store_key(tenant, domain), codec::encode(&before));
        batch.set(store_key(tenant, domain), codec::encode(&record));
        let act = act_on(act, &record).changes(facts(&before), facts(&record));
        records::record(&mut batch, actor, act, now);
        self.store_in(turn, batch, record.clone()).await?;
        Ok(record)
    }

    pub(super) async fn store_in(
        &self,
        turn: records::Turn,
        batch: Batch,
        record: SendingDomain,
    ) -> Result<(), AdminError> {
        let known = self.entry(record.tenant, &record.domain);
        let entry = Arc::new(Entry::new(record, &self.key, known.as_deref()));
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let (tenant, domain) = (entry.record.tenant, entry.record.domain.clone());
            records::write(&memory).entry(tenant).or_default().insert(domain, entry);
        })
        .await?;
        Ok(())
    }
}

fn has_same_keys(one: &SendingDomain, other: &SendingDomain) -> bool {
    let selectors = |record: &SendingDomain| {
        let next = record.next_keys.as_ref().map(|pair| pair.rsa.selector.clone());
        (record.keys.rsa.selector.clone(), next)
    };
    selectors(one) == selectors(other)
}

fn tell(batch: &mut Batch, actor: &Actor, (record, turn): (&SendingDomain, &Turn), now: Timestamp) {
    let (tenant, domain) = (record.tenant, record.domain.clone());
    let told = match turn {
        Turn::Verified => InstanceEvent::DomainVerified { tenant, domain },
        Turn::Unverified(reason) => InstanceEvent::DomainUnverified { tenant, domain, reason: reason.clone() },
        Turn::Rotated => return records::record(batch, actor, act_on("domain.rotated", record), now),
    };
    events::record(batch, &Event { at: now, kind: EventKind::Instance(told) });
}

fn act_on(name: &str, record: &SendingDomain) -> Act {
    let act = Act::new(name, record.domain.to_string());
    match record.tenant {
        INSTANCE => act.shown(format!("{} of the instance", record.domain)),
        tenant => act.of(tenant).shown(format!("{} of tenant {tenant}", record.domain)),
    }
}

/// What an audit entry may tell of a domain before and after.
fn facts(record: &SendingDomain) -> Vec<(&'static str, String)> {
    let rotating = if record.next_keys.is_some() { "new keys wait" } else { "no" };
    vec![
        ("state", format!("{:?}", record.state)),
        ("trust", format!("{:?}", record.trust)),
        ("subdomains", format!("{:?}", record.subdomains)),
        ("selector", record.keys.rsa.selector.clone()),
        ("rotation", rotating.to_owned()),
    ]
}

/// Makes keys off the async workers: RSA takes up to a second of CPU.
async fn off_workers<T: Send + 'static>(
    make: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, AdminError> {
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|error| error.to_string()).and_then(|made| made).map_err(AdminError::Invalid)
}
