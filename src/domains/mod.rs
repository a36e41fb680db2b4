//! Sending domains: which tenant may use which domain in From and MAIL, and the keys that sign.
//!
//! Recipe: `add` a domain, publish [`domain_records`], `verify`; then [`Domains::signer`] gives
//! what signs its mail, and `run` looks at DNS again by and by.
//! Verified means: the TXT record at this tenant's own selector holds the public key made for this
//! tenant and domain. Another tenant's record proves nothing; several tenants may verify one domain.
//! Easy to get wrong: a failed lookup never unverifies; only a proven absence of 7 days does.

mod advice;
mod inspection;
mod keeping;
mod readiness;
mod record;
mod resealing;
mod return_path;
mod service_spf;
mod spf;
mod verbs;
mod verification;

pub use advice::{DnsRecord, Need, domain_hints, domain_records, domain_records_with, vip_records};
pub use inspection::{Inspected, Purpose, Verdict};
pub use keeping::{MayGo, RetiredSelectors, SelectorUsage, Status};
pub use readiness::{AddressNames, Counted, Item, Rule, Stand, ToGmail, Traffic};
pub use record::{INSTANCE, Key, KeyPair, Published, Retired, SendingDomain, Standing, State, Subdomains, Trust};
pub use resealing::reseal;
pub use return_path::{Expectations, Expected, RecordState, ReturnPath, USUAL_LABEL};
pub use service_spf::{SPF_NAME_OCTETS_MAX, SPF_PARTS_MAX, ServiceSpf, service_spf};
pub use verbs::{Verification, make_instance_key};
pub use verification::{Finding, Findings, Turn};

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use crate::access::{Actor, Permission, Resource};
use crate::ext::Timestamp;
use crate::mail::dkim::{Algorithms, SigningKeys};
use crate::mail::{Domain, Refusal, Reply, TenantId};
use crate::net::Resolver;
use crate::records::{self, AdminError, Damage, Desk};
use crate::seal::MasterKey;
use crate::store::{Store, StoreError, prefix};
use crate::vips::{Owner, Vip};

/// What may sign mail of a domain: a loaded, decrypted pair of keys.
pub struct Signer {
    /// `d=`: the verified domain that covers the header From.
    pub domain: Domain,
    /// RSA-2048 selector.
    pub rsa_selector: String,
    /// Ed25519 selector.
    pub ed25519_selector: String,
    /// The keys whose public halves those selectors publish.
    pub keys: SigningKeys,
    /// The algorithms whose records are there: RSA alone until the Ed25519 record is found.
    pub algorithms: Algorithms,
}

impl Signer {
    /// Of the algorithms `wanted`, those whose records are in DNS: a signature without one only
    /// gives verifiers something to complain about.
    pub fn algorithms_of(&self, wanted: Algorithms) -> Algorithms {
        match (wanted, self.algorithms) {
            (Algorithms::Both, Algorithms::Both) => Algorithms::Both,
            _ => Algorithms::RsaOnly,
        }
    }
}

/// What tenants are told to publish, when DNS is asked, and how long things wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A verified domain is looked up again after this long. Default 24 h.
    pub verified_again: Duration,
    /// A domain that has waited for its record for less than an hour is looked up again after this long. Default 5 min.
    pub first_again: Duration,
    /// One that has waited for less than a day. Default 1 h.
    pub pending_again: Duration,
    /// One that has waited for less than a week; later it is looked up as a verified one. Default 6 h.
    pub later_again: Duration,
    /// How long its record must be proven absent before a domain is unverified. Default 7 days.
    pub absent_max: Duration,
    /// How long an old selector's record stays after the last queued message that names it. Default 7 days.
    pub retired_wait: Duration,
    /// The name whose SPF record permits every virtual IP, for tenants to include; `None`: they name each address.
    pub spf_include: Option<Domain>,
}

impl Default for Settings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            verified_again: day,
            first_again: Duration::from_secs(300),
            pending_again: Duration::from_secs(3600),
            later_again: Duration::from_secs(6 * 3600),
            absent_max: day * 7,
            retired_wait: day * 7,
            spf_include: None,
        }
    }
}

/// All sending domains, in memory with their keys.
pub struct Domains {
    desk: Desk,
    key: Arc<MasterKey>,
    resolver: Arc<dyn Resolver>,
    settings: Settings,
    memory: Arc<RwLock<Memory>>,
    usage: OnceLock<SelectorUsage>,
    returns: Arc<RwLock<return_path::ReturnPaths>>,
    expectations: OnceLock<Expectations>,
    damaged: Vec<Damage>,
}

type Memory = HashMap<TenantId, HashMap<Domain, Arc<Entry>>>;

/// One record with its keys loaded, or the reason why they are not.
struct Entry {
    record: SendingDomain,
    keys: Result<SigningKeys, String>,
    next_keys: Option<Result<SigningKeys, String>>,
    signer: Result<Arc<Signer>, String>,
}

impl Entry {
    /// Builds an entry; keys whose selectors `known` has already are not opened again.
    fn new(record: SendingDomain, key: &MasterKey, known: Option<&Self>) -> Self {
        let load = |pair: &KeyPair| {
            let loaded = known.and_then(|known| known.loaded(&pair.rsa.selector)).cloned();
            loaded.map_or_else(|| pair.load(record.tenant, &record.domain, key), Ok)
        };
        let keys = load(&record.keys);
        let next_keys = record.next_keys.as_ref().map(load);
        let both = record.keys.ed25519.published == Published::Yes || !matches!(record.state, State::Verified(_));
        let signer = keys.clone().map(|keys| {
            Arc::new(Signer {
                domain: record.domain.clone(),
                rsa_selector: record.keys.rsa.selector.clone(),
                ed25519_selector: record.keys.ed25519.selector.clone(),
                keys,
                algorithms: if both { Algorithms::Both } else { Algorithms::RsaOnly },
            })
        });
        Self { record, keys, next_keys, signer }
    }

    fn loaded(&self, rsa_selector: &str) -> Option<&SigningKeys> {
        if self.record.keys.rsa.selector == rsa_selector {
            return self.keys.as_ref().ok();
        }
        let next = self.record.next_keys.as_ref().filter(|pair| pair.rsa.selector == rsa_selector);
        next.and(self.next_keys.as_ref()).and_then(|keys| keys.as_ref().ok())
    }
}

impl Domains {
    /// Reads all records and opens their keys. A key that does not open is logged, and mail of
    /// its domain is refused with 451.
    pub fn open(
        store: Arc<dyn Store>,
        key: Arc<MasterKey>,
        resolver: Arc<dyn Resolver>,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let (records, mut damaged) = records::load::<SendingDomain>(&*store, &[prefix::DOMAIN])?;
        let (mut memory, mut sound) = (Memory::new(), Vec::with_capacity(records.len()));
        for (store_key, record) in records {
            if store_key != record::store_key(record.tenant, &record.domain) {
                damaged.push(records::set_aside(&store_key, "the record is another domain's"));
                continue;
            }
            sound.push(record);
        }
        for entry in open_keys(sound, &key) {
            if let Err(error) = &entry.signer {
                tracing::error!(domain = %entry.record.domain, tenant = %entry.record.tenant, error, "mail cannot be signed");
            }
            let domain = entry.record.domain.clone();
            memory.entry(entry.record.tenant).or_default().insert(domain, Arc::new(entry));
        }
        let (paths, more) = records::load::<ReturnPath>(&*store, &[prefix::RETURN_PATH])?;
        damaged.extend(more);
        let paths = return_path::ReturnPaths::of(paths.into_iter().map(|(_, path)| path).collect());
        let (desk, memory) = (Desk::new(store), Arc::new(RwLock::new(memory)));
        let (returns, expectations) = (Arc::new(RwLock::new(paths)), OnceLock::new());
        Ok(Self { desk, key, resolver, settings, memory, usage: OnceLock::new(), returns, expectations, damaged })
    }

    /// The name whose SPF record tenants include, if there is one.
    pub fn spf_include(&self) -> Option<&Domain> {
        self.settings.spf_include.as_ref()
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Domains whose keys cannot be used, with the reason: for doctor and readiness.
    pub fn unusable_keys(&self) -> Vec<(TenantId, Domain, String)> {
        let memory = records::read(&self.memory);
        let entries = memory.values().flat_map(HashMap::values);
        let failed = entries.filter_map(|entry| entry.signer.as_ref().err().map(|error| (entry, error)));
        failed.map(|(entry, error)| (entry.record.tenant, entry.record.domain.clone(), error.clone())).collect()
    }

    /// Whether `tenant` may send as `domain`, and what signs it: the longest usable domain of the
    /// tenant's that covers it.
    /// `Err` is the refusal of RFC 5321's 550 5.7.1 naming the domain and what to do,
    /// or 451 if the keys cannot be used now.
    pub fn signer(&self, tenant: TenantId, domain: &Domain) -> Result<Arc<Signer>, Refusal> {
        let entry = self.covering(tenant, domain)?;
        entry.signer.clone().map_err(|error| {
            let text = format!("Mail of {domain} cannot be signed now; try again later");
            Refusal::with_cause(Reply::enhanced(451, 7, 5, text), error)
        })
    }

    /// Whether `tenant` may use `domain` in MAIL FROM: the same rule, without asking for keys.
    pub fn may_use_in_mail_from(&self, tenant: TenantId, domain: &Domain) -> Result<(), Refusal> {
        self.covering(tenant, domain).map(|_| ())
    }

    /// What signs a notice to `tenant` from a virtual IP's EHLO name: the owner's key if it covers the
    /// name, else the instance's key for that name, else the tenant's if that covers it, else any
    /// verified key of the instance (the signature then names who runs the service, though it does not
    /// align with From), else nothing: a notice, and only a notice, then leaves unsigned.
    pub fn name_signer(&self, vip: &Vip, tenant: TenantId) -> Option<Arc<Signer>> {
        let of_owner = match vip.owner {
            Owner::Tenant(tenant) => self.signer(tenant, &vip.ehlo).ok(),
            Owner::Shared => None,
        };
        of_owner
            .or_else(|| self.signer(INSTANCE, &vip.ehlo).ok())
            .or_else(|| self.signer(tenant, &vip.ehlo).ok())
            .or_else(|| self.instance_signer())
    }

    fn instance_signer(&self) -> Option<Arc<Signer>> {
        let mut names: Vec<Domain> = {
            let memory = records::read(&self.memory);
            memory.get(&INSTANCE).into_iter().flat_map(HashMap::keys).cloned().collect()
        };
        names.sort();
        names.iter().find_map(|name| self.signer(INSTANCE, name).ok())
    }

    /// Makes the instance's own key for `hostname` unless it has one; pending until its records are
    /// in DNS. Called at every start, so the first one makes it.
    pub async fn ensure_instance_key(&self, hostname: &Domain, now: Timestamp) -> Result<(), AdminError> {
        if self.entry(INSTANCE, hostname).is_some() {
            return Ok(());
        }
        let actor = Actor::system("the instance's own key, made at the first start");
        match self.add(&actor, INSTANCE, hostname, now).await {
            Ok(_) | Err(AdminError::Exists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One domain of a tenant's.
    pub fn get(&self, actor: &Actor, tenant: TenantId, domain: &Domain) -> Result<SendingDomain, AdminError> {
        actor.require(Permission::Read(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        self.entry(tenant, domain).map(|entry| entry.record.clone()).ok_or_else(|| missing(domain))
    }

    /// A tenant's domains, by name. [`INSTANCE`] has the instance's own.
    pub fn list(&self, actor: &Actor, tenant: TenantId) -> Result<Vec<SendingDomain>, AdminError> {
        actor.require(Permission::Read(Resource::Domains, tenant))?;
        let memory = records::read(&self.memory);
        let own = memory.get(&tenant).into_iter().flat_map(HashMap::values);
        let own = own.filter(|entry| actor.require_domain(&entry.record.domain).is_ok());
        let mut domains: Vec<SendingDomain> = own.map(|entry| entry.record.clone()).collect();
        domains.sort_by(|one, other| one.domain.cmp(&other.domain));
        Ok(domains)
    }

    fn entry(&self, tenant: TenantId, domain: &Domain) -> Option<Arc<Entry>> {
        records::read(&self.memory).get(&tenant)?.get(domain).cloned()
    }

    fn covering(&self, tenant: TenantId, name: &Domain) -> Result<Arc<Entry>, Refusal> {
        let memory = records::read(&self.memory);
        let own = memory.get(&tenant);
        let (mut nearest, mut candidate) = (None, Some(name.clone()));
        while let Some(domain) = candidate {
            if let Some(entry) = own.and_then(|own| own.get(&domain)) {
                if entry.record.is_usable() && entry.record.covers(name) {
                    return Ok(Arc::clone(entry));
                }
                nearest.get_or_insert_with(|| Arc::clone(entry));
            }
            candidate = domain.parent();
        }
        Err(refusal(name, nearest.as_deref()))
    }
}

/// Opens the keys of many domains on every processor: each takes most of a millisecond, and a
/// service with thousands of them shall still start at once.
fn open_keys(mut records: Vec<SendingDomain>, key: &MasterKey) -> Vec<Entry> {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let part = records.len().div_ceil(processors).max(1);
    std::thread::scope(|scope| {
        let mut parts = Vec::new();
        while !records.is_empty() {
            let own = records.split_off(records.len().saturating_sub(part));
            let open = move || own.into_iter().map(|record| Entry::new(record, key, None)).collect::<Vec<_>>();
            parts.push(scope.spawn(open));
        }
        let ended = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.flatten().collect()
    })
}

fn missing(domain: &Domain) -> AdminError {
    AdminError::Missing(format!("sending domain {domain}"))
}

/// Says which domain is refused and what to do about it. `nearest` is what the tenant has for it.
fn refusal(name: &Domain, nearest: Option<&Entry>) -> Refusal {
    let text = match nearest.map(|entry| &entry.record) {
        None => format!(
            "{name} is not one of your sending domains: add it, publish the DNS record you are given, and verify it"
        ),
        Some(known) if known.is_usable() => {
            format!("{} does not cover names below it: add {name} as a sending domain and verify it", known.domain)
        }
        Some(known) => format!(
            "{} is not verified: publish the TXT record {} you were given, then verify the domain",
            known.domain,
            known.key_name(&known.keys.rsa.selector)
        ),
    };
    Refusal::plain(Reply::enhanced(550, 7, 1, text))
}

#[cfg(test)]
mod tests;
