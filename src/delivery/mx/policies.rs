//! The MTA-STS policies of recipient domains, kept: fetched when a domain announces one, in the
//! store until they run out, fetched anew before that.
//!
//! Recipe: [`TlsPolicies::open`]; [`TlsPolicies::policy`] for each domain that mail goes to; one task
//! calls [`TlsPolicies::refresh`] now and then. Easy to get wrong: what protects a domain is the kept
//! policy, so neither silence of DNS nor of the policy host may end it early (RFC 8461 s5.1).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::mta_sts::{Policy, announced};
use super::rules::DomainRule;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::metrics::STS_FETCHES;
use crate::net::{FetchError, FetchLimits, Fetcher, LookupError, Resolver};
use crate::records::{self, Damage, Desk};
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};
use crate::tlsrpt::ResultType;

/// Policies kept, at most; beyond, a policy holds for the attempt at hand alone.
const KEPT_MAX: usize = 50_000;
/// A policy that could not be fetched is not asked for again within this (RFC 8461 s3.3).
const FETCH_PAUSE: Duration = Duration::from_secs(300);
/// Failed fetches remembered, at most.
const FAILED_MAX: usize = 10_000;
/// A policy is fetched anew once it is this old, or half as old as it may get.
const REFRESH_AFTER: Duration = Duration::from_secs(86_400);
/// Policies of domains that had no mail for this long are left to run out.
const USED_WITHIN: Duration = Duration::from_secs(30 * 86_400);
/// When a domain last had mail is written no more often than this.
const USE_NOTED_EVERY: Duration = Duration::from_secs(86_400);
/// Policies fetched anew at a time.
const REFRESHED_AT_ONCE: usize = 8;
/// Where a policy is (s3.2).
const PATH: &str = "/.well-known/mta-sts.txt";

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPolicy {
    /// Whose.
    pub domain: Domain,
    /// The id that was announced when it was fetched.
    pub id: String,
    /// What it says.
    pub policy: Policy,
    /// When it was fetched.
    pub fetched: Timestamp,
    /// When the domain last had mail, to the day.
    pub used: Timestamp,
}

impl KeptPolicy {
    /// When it runs out.
    pub fn until(&self) -> Timestamp {
        self.fetched.plus(self.policy.max_age)
    }

    fn is_good(&self, now: Timestamp) -> bool {
        now < self.until()
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let age = now.since(self.fetched);
        age >= REFRESH_AFTER.min(self.policy.max_age / 2) && now.since(self.used) < USED_WITHIN
    }
}

/// A policy that is announced and could not be had.
#[derive(Clone, Debug)]
struct Failed {
    at: Timestamp,
    fault: (ResultType, String),
}

/// How policies are found and fetched.
pub(super) struct Asking<'a> {
    pub(super) resolver: &'a dyn Resolver,
    pub(super) fetcher: &'a Fetcher,
    pub(super) limits: FetchLimits,
}

/// The policies of recipient domains, and what operators say about them.
pub struct TlsPolicies {
    store: Arc<dyn Store>,
    pub(super) desk: Desk,
    pub(super) rules: Arc<Mutex<BTreeMap<Domain, DomainRule>>>,
    kept: Mutex<HashMap<Domain, KeptPolicy>>,
    failed: Mutex<HashMap<Domain, Failed>>,
    damaged: Vec<Damage>,
}

impl TlsPolicies {
    /// Reads what is kept.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (stored, mut damaged) = records::load::<KeptPolicy>(&*store, &[prefix::TLS_POLICY, b's'])?;
        let kept = stored.into_iter().map(|(_, one)| (one.domain.clone(), one)).collect();
        let (rules, more) = records::load::<DomainRule>(&*store, &[prefix::TLS_POLICY, b'o'])?;
        damaged.extend(more);
        let rules = rules.into_iter().map(|(_, rule)| (rule.domain.clone(), rule)).collect();
        let (rules, desk) = (Arc::new(Mutex::new(rules)), Desk::new(store.clone()));
        Ok(Self { store, desk, rules, kept: Mutex::new(kept), failed: Mutex::default(), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// The policy kept for a domain, if it is still good.
    pub fn kept(&self, domain: &Domain, now: Timestamp) -> Option<KeptPolicy> {
        records::lock(&self.kept).get(domain).filter(|kept| kept.is_good(now)).cloned()
    }

    /// How many are kept.
    pub fn count(&self) -> usize {
        records::lock(&self.kept).len()
    }

    /// The policy that holds for mail to `domain` now. Fetches one that is announced and not known.
    pub(super) async fn policy(&self, domain: &Domain, asking: &Asking<'_>, now: Timestamp) -> Option<Policy> {
        let kept = self.kept(domain, now);
        let id = match announcement(domain, asking.resolver).await {
            Some(id) if kept.as_ref().is_none_or(|kept| kept.id != id) => id,
            // Nothing new, or no word at all: what is kept holds.
            _ => return self.use_of(kept, now).await,
        };
        if self.failed_lately(domain, now) {
            return self.use_of(kept, now).await;
        }
        match fetch(domain, asking).await {
            Ok(policy) => {
                let fresh = KeptPolicy { domain: domain.clone(), id, policy, fetched: now, used: now };
                let policy = fresh.policy.clone();
                self.keep_one(fresh).await;
                Some(policy)
            }
            Err(fault) => {
                tracing::warn!(%domain, why = fault.1, "its MTA-STS policy cannot be fetched");
                self.note_failure(domain, fault, now);
                self.use_of(kept, now).await
            }
        }
    }

    async fn use_of(&self, kept: Option<KeptPolicy>, now: Timestamp) -> Option<Policy> {
        let kept = kept?;
        let policy = kept.policy.clone();
        if now.since(kept.used) >= USE_NOTED_EVERY {
            self.keep_one(KeptPolicy { used: now, ..kept }).await;
        }
        Some(policy)
    }

    fn failed_lately(&self, domain: &Domain, now: Timestamp) -> bool {
        records::lock(&self.failed).get(domain).is_some_and(|failed| now.since(failed.at) < FETCH_PAUSE)
    }

    /// Why there is no policy of a domain that announces one, if it was asked for lately.
    pub(super) fn fault(&self, domain: &Domain, now: Timestamp) -> Option<(ResultType, String)> {
        let failed = records::lock(&self.failed);
        failed.get(domain).filter(|failed| now.since(failed.at) < FETCH_PAUSE).map(|failed| failed.fault.clone())
    }

    fn note_failure(&self, domain: &Domain, fault: (ResultType, String), now: Timestamp) {
        let mut failed = records::lock(&self.failed);
        if failed.len() >= FAILED_MAX {
            failed.retain(|_, failed| now.since(failed.at) < FETCH_PAUSE);
        }
        if failed.len() < FAILED_MAX {
            failed.insert(domain.clone(), Failed { at: now, fault });
        }
    }

    /// Remembers a policy, on disk first. Should that fail, it holds until the next start.
    async fn keep_one(&self, kept: KeptPolicy) {
        {
            let known = records::lock(&self.kept);
            if known.len() >= KEPT_MAX && !known.contains_key(&kept.domain) {
                tracing::warn!(domain = %kept.domain, "{KEPT_MAX} MTA-STS policies are kept, the most there may be");
                return;
            }
        }
        let mut batch = Batch::new();
        batch.set(key(&kept.domain), codec::encode(&kept));
        if let Err(error) = self.store.commit(batch).await {
            tracing::warn!(domain = %kept.domain, %error, "an MTA-STS policy could not be written");
        }
        records::lock(&self.failed).remove(&kept.domain);
        records::lock(&self.kept).insert(kept.domain.clone(), kept);
    }

    /// Fetches anew what is due, and forgets what has run out.
    pub(super) async fn refresh(&self, asking: &Asking<'_>, now: Timestamp) {
        let all: Vec<KeptPolicy> = records::lock(&self.kept).values().cloned().collect();
        let (good, over): (Vec<_>, Vec<_>) = all.into_iter().partition(|kept| kept.is_good(now));
        if let Err(error) = self.forget(&over, now).await {
            tracing::warn!(%error, "MTA-STS policies that have run out could not be removed yet");
        }
        let due = good.into_iter().filter(|kept| kept.is_due(now) && !self.failed_lately(&kept.domain, now));
        let renewed = futures_util::stream::iter(due).map(|kept| async move {
            match fetch(&kept.domain, asking).await {
                Ok(policy) => {
                    // What is announced by now is what was fetched; if DNS is silent, the old id stays.
                    let id = announcement(&kept.domain, asking.resolver).await.unwrap_or(kept.id);
                    self.keep_one(KeptPolicy { id, policy, fetched: now, ..kept }).await;
                }
                Err(fault) => {
                    let until = kept.until().rfc3339();
                    tracing::warn!(domain = %kept.domain, why = fault.1, until, "an MTA-STS policy cannot be fetched anew; it holds until");
                    self.note_failure(&kept.domain, fault, now);
                }
            }
        });
        renewed.buffer_unordered(REFRESHED_AT_ONCE).for_each(|()| async {}).await;
    }

    async fn forget(&self, over: &[KeptPolicy], now: Timestamp) -> Result<(), CommitError> {
        for some in over.chunks(500) {
            let mut batch = Batch::new();
            for kept in some {
                batch.remove(key(&kept.domain));
            }
            self.store.commit(batch).await?;
        }
        let mut known = records::lock(&self.kept);
        for kept in over {
            // Not one that was fetched meanwhile.
            if known.get(&kept.domain).is_some_and(|one| !one.is_good(now)) {
                known.remove(&kept.domain);
            }
        }
        Ok(())
    }
}

/// Fetches a policy, and counts that.
async fn fetch(domain: &Domain, asking: &Asking<'_>) -> Result<Policy, (ResultType, String)> {
    let fetched = fetch_once(domain, asking).await;
    let result = if fetched.is_ok() { "fetched" } else { "failed" };
    ::metrics::counter!(STS_FETCHES, "result" => result).increment(1);
    fetched
}

/// The id of the policy that the domain announces; `None` if it announces none, or DNS is silent.
async fn announcement(domain: &Domain, resolver: &dyn Resolver) -> Option<String> {
    let name = Domain::parse(&format!("_mta-sts.{domain}")).ok()?;
    match resolver.txt(&name).await {
        Ok(records) => announced(&records),
        Err(LookupError::Temporary(reason) | LookupError::Bogus(reason)) => {
            tracing::debug!(%domain, reason, "whether it has an MTA-STS policy is not known");
            None
        }
        Err(LookupError::NoSuchName | LookupError::NoRecord) => None,
    }
}

/// RFC 8461 s3.3: over HTTPS with a certificate for exactly that host, 200 and text/plain. `Err` says what a
/// report would call it, too.
async fn fetch_once(domain: &Domain, asking: &Asking<'_>) -> Result<Policy, (ResultType, String)> {
    let not_there = |why: String| (ResultType::StsPolicyFetchError, why);
    let host = Domain::parse(&format!("mta-sts.{domain}")).map_err(|error| not_there(error.to_string()))?;
    let fetched = asking.fetcher.get(&host, PATH, &asking.limits).await;
    let fetched = fetched.map_err(|error| {
        let result = match &error {
            FetchError::Tls(_) => ResultType::StsWebpkiInvalid,
            FetchError::TooLarge(_) => ResultType::StsPolicyInvalid,
            _ => ResultType::StsPolicyFetchError,
        };
        (result, format!("https://{host}{PATH}: {error}"))
    })?;
    if fetched.status != 200 {
        return Err(not_there(format!("https://{host}{PATH} said {}", fetched.status)));
    }
    let invalid = |why: String| (ResultType::StsPolicyInvalid, why);
    if fetched.media_type != "text/plain" {
        return Err(invalid(format!("https://{host}{PATH} is {:?}, not text/plain", fetched.media_type)));
    }
    let text = String::from_utf8(fetched.body).map_err(|_| invalid("the policy is not text".to_owned()))?;
    Policy::parse(&text).map_err(|why| invalid(format!("the policy cannot be used: {why}")))
}

fn key(domain: &Domain) -> Key {
    [&[prefix::TLS_POLICY, b's'][..], domain.as_str().as_bytes()].concat()
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
