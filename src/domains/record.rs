//! A sending domain as it is stored: its state, its keys (sealed), and selectors that were used before.
//!
//! Easy to get wrong: private keys exist only sealed here and loaded in memory; when keys are
//! replaced their sealed form leaves the record in the same batch.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ext::{self, Timestamp};
use crate::mail::dkim::{self, Algorithm, SigningKeys};
use crate::mail::{Domain, TenantId};
use crate::seal::MasterKey;
use crate::store::{Key as StoreKey, prefix};

/// Whose domains the instance's own are: the names notices are signed with when the tenant's keys
/// do not cover them. Random tenant ids never become this one in practice.
pub const INSTANCE: TenantId = TenantId(0);
/// Random octets in a selector, written in base 32 after a letter.
const SELECTOR_OCTETS: usize = 5;

/// How long a record must be proven absent before people are warned: time to mend what was an oversight.
pub const WARNING_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How a domain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits for its record.
    Pending,
    /// It may be used.
    Verified,
    /// It may be used, but its record has been gone for a day.
    Warning,
    /// It may not be used any more: its record was gone for too long.
    Suspended,
    /// It may be used because the operator says so.
    Trusted,
}

impl Standing {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Verified => "verified",
            Self::Warning => "warning",
            Self::Suspended => "suspended",
            Self::Trusted => "trusted",
        }
    }
}

/// One sending domain of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendingDomain {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub domain: Domain,
    /// When it was added.
    pub added: Timestamp,
    /// Whether it may be used.
    pub state: State,
    /// Since when its RSA record is proven absent, while it is still verified.
    pub absent_since: Option<Timestamp>,
    /// Whether the operator lets it be used without proof.
    pub trust: Trust,
    /// Whether it covers names below it.
    pub subdomains: Subdomains,
    /// The keys in use.
    pub keys: KeyPair,
    /// Their successors, until they are found in DNS.
    pub next_keys: Option<KeyPair>,
    /// Selectors used before.
    pub retired: Vec<Retired>,
    /// When DNS was last asked, whatever it said.
    pub last_check: Option<Timestamp>,
}

/// Whether a tenant has proved that a domain is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Not yet.
    Pending,
    /// Its record was found, first at this moment.
    Verified(Timestamp),
    /// It had, but the record was absent for too long.
    Unverified(Timestamp),
}

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// DNS must prove the domain.
    NeedsProof,
    /// The operator knows that it belongs to the tenant.
    ByOperator,
}

/// Whether a domain covers names below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subdomains {
    /// Yes, the default.
    Covered,
    /// No: each needs its own record.
    NotCovered,
}

/// An RSA and an Ed25519 key, each with a selector of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// RSA, 2048 bits.
    pub rsa: Key,
    /// Ed25519.
    pub ed25519: Key,
    /// When they were made.
    pub made: Timestamp,
}

/// One key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its selector.
    pub selector: String,
    /// The TXT text to publish.
    pub record: String,
    /// Whether that text was there when DNS last answered.
    pub published: Published,
    /// The private key, PKCS#8, sealed under the master key.
    sealed: Vec<u8>,
}

/// Whether a record was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Published {
    /// No, or never looked for.
    No,
    /// Yes.
    Yes,
}

/// Selectors used before; their keys are gone, their records must stay for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// RSA selector.
    pub rsa_selector: String,
    /// Ed25519 selector.
    pub ed25519_selector: String,
    /// When their keys were erased.
    pub at: Timestamp,
    /// Since when no queued message is known to name one of them.
    pub unnamed_since: Option<Timestamp>,
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({}, {:?})", self.selector, self.published)
    }
}

impl SendingDomain {
    /// A new one with new keys. Makes an RSA key: not for async workers.
    pub(super) fn make(tenant: TenantId, domain: Domain, key: &MasterKey, now: Timestamp) -> Result<Self, String> {
        let keys = KeyPair::make(tenant, &domain, key, now)?;
        Ok(Self {
            tenant,
            domain,
            added: now,
            state: State::Pending,
            absent_since: None,
            trust: Trust::NeedsProof,
            subdomains: Subdomains::Covered,
            keys,
            next_keys: None,
            retired: Vec::new(),
            last_check: None,
        })
    }

    /// Whether mail may be sent as this domain.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, State::Verified(_)) || self.trust == Trust::ByOperator
    }

    /// Whether this record speaks for `name`.
    pub fn covers(&self, name: &Domain) -> bool {
        *name == self.domain || (self.subdomains == Subdomains::Covered && name.is_within(&self.domain))
    }

    /// Puts the next keys in the place of those in use, whose private halves are gone with that.
    pub(super) fn use_next_keys(&mut self, now: Timestamp) {
        if let Some(next) = self.next_keys.take() {
            let old = std::mem::replace(&mut self.keys, next);
            self.retired.push(Retired {
                rsa_selector: old.rsa.selector,
                ed25519_selector: old.ed25519.selector,
                at: now,
                unnamed_since: None,
            });
        }
    }

    /// The names of all its keys in DNS, the RSA one in use first.
    pub fn key_names(&self) -> Vec<String> {
        let pairs = std::iter::once(&self.keys).chain(&self.next_keys);
        pairs.flat_map(|pair| [&pair.rsa, &pair.ed25519]).map(|key| self.key_name(&key.selector)).collect()
    }

    /// How it stands, in one word for people. A proven absence is told of after `WARNING_AFTER`, and takes a
    /// domain out of use only much later.
    pub fn standing(&self, now: Timestamp) -> Standing {
        match (self.state, self.absent_since) {
            (State::Verified(_), Some(since)) if now.since(since) >= WARNING_AFTER => Standing::Warning,
            (State::Verified(_), _) => Standing::Verified,
            _ if self.trust == Trust::ByOperator => Standing::Trusted,
            (State::Pending, _) => Standing::Pending,
            (State::Unverified(_), _) => Standing::Suspended,
        }
    }

    /// `selector._domainkey.domain`.
    pub fn key_name(&self, selector: &str) -> String {
        format!("{selector}._domainkey.{}", self.domain)
    }
}

impl KeyPair {
    /// New keys under new selectors. Makes an RSA key: not for async workers.
    pub(super) fn make(tenant: TenantId, domain: &Domain, key: &MasterKey, now: Timestamp) -> Result<Self, String> {
        let new = dkim::generate().map_err(|error| error.to_string())?;
        let loaded = SigningKeys::from_pkcs8(&new.rsa, &new.ed25519).map_err(|error| error.to_string())?;
        let sealed = |algorithm: Algorithm, pkcs8: &[u8]| {
            let selector = format!("p{}", ext::base32(&ext::random_bytes::<SELECTOR_OCTETS>()));
            let sealed = key.seal(&purpose(tenant, domain, &selector), pkcs8);
            Key { record: loaded.public_record(algorithm), published: Published::No, selector, sealed }
        };
        let (rsa, ed25519) = (sealed(Algorithm::Rsa, &new.rsa), sealed(Algorithm::Ed25519, &new.ed25519));
        Ok(Self { rsa, ed25519, made: now })
    }

    /// Opens and loads both keys.
    pub(super) fn load(&self, tenant: TenantId, domain: &Domain, key: &MasterKey) -> Result<SigningKeys, String> {
        let open = |one: &Key| -> Result<Zeroizing<Vec<u8>>, String> {
            let opened = key.open(&purpose(tenant, domain, &one.selector), &one.sealed);
            opened.map_err(|error| format!("the DKIM key {} cannot be opened: {error}", one.selector))
        };
        SigningKeys::from_pkcs8(&open(&self.rsa)?, &open(&self.ed25519)?).map_err(|error| error.to_string())
    }
}

/// Seals every key of a record that `new` alone does not open under `new`. Those that open under
/// neither are left as they are, and named.
pub(super) fn reseal(record: &mut SendingDomain, new: &MasterKey, both: &MasterKey) -> Vec<String> {
    let (tenant, domain) = (record.tenant, record.domain.clone());
    let pairs = std::iter::once(&mut record.keys).chain(&mut record.next_keys);
    let mut unopened = Vec::new();
    for key in pairs.flat_map(|pair| [&mut pair.rsa, &mut pair.ed25519]) {
        let purpose = purpose(tenant, &domain, &key.selector);
        if new.open(&purpose, &key.sealed).is_ok() {
            continue;
        }
        match both.open(&purpose, &key.sealed) {
            Ok(plain) => key.sealed = new.seal(&purpose, &plain),
            Err(_) => unopened.push(purpose),
        }
    }
    unopened
}

/// Bound to tenant, domain and selector, so that no key can be moved to another record.
fn purpose(tenant: TenantId, domain: &Domain, selector: &str) -> String {
    format!("DKIM key {selector}._domainkey.{domain} of {tenant}")
}

/// Where a domain is stored.
pub(super) fn store_key(tenant: TenantId, domain: &Domain) -> StoreKey {
    [&[prefix::DOMAIN][..], &tenant.0.to_be_bytes(), domain.as_str().as_bytes()].concat()
}
