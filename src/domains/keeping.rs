//! What happens to domains by itself: DNS is asked again, old selectors come of age.
//!
//! [`Domains::keep`] is idempotent and takes only the time. Easy to get wrong: an old selector's
//! record may go only when no queued message names it and a week has passed since.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::record::{Retired, SendingDomain, State};
use super::{Domains, missing, verification};
use crate::access::{Actor, Permission, Resource};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::records::{self, AdminError};
use crate::store::StoreError;

/// The signatures (`selector._domainkey.domain`) that messages in the queue name. It may read the
/// whole queue, so this room calls it on a blocking thread only.
pub type SelectorUsage = Arc<dyn Fn() -> Result<HashSet<String>, StoreError> + Send + Sync>;

/// How often [`Domains::run`] looks for old selectors, for which the queue is read.
const KEPT_EVERY: Duration = Duration::from_secs(600);
/// How often it looks for domains to look up.
const LOOKED_EVERY: Duration = Duration::from_secs(60);
/// A domain that has waited for less than this is looked up most often.
const SOON: Duration = Duration::from_secs(3600);
/// One that has waited for less than this, less often.
const LATER: Duration = Duration::from_secs(24 * 3600);
/// One that has waited for longer than this is looked up as one that waits for nothing.
const LONG: Duration = Duration::from_secs(7 * 24 * 3600);
/// Domains looked up at the same time.
const LOOKUPS_AT_ONCE: usize = 8;

/// A domain and what is left of its past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The domain.
    pub domain: SendingDomain,
    /// Selectors used before, oldest first.
    pub retired: Vec<RetiredSelectors>,
}

/// Selectors used before, and when their records may be taken out of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetiredSelectors {
    /// Their names, `selector._domainkey.domain`.
    pub names: [String; 2],
    /// When their keys were erased.
    pub at: Timestamp,
    /// Whether the records may go.
    pub may_go: MayGo,
}

/// When a record may be taken out of DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayGo {
    /// Queued mail still names it, or the queue could not be asked.
    NotYet,
    /// Not before this moment, if no queued message names it until then.
    At(Timestamp),
    /// Now.
    Now,
}

impl Domains {
    /// Tells the room how to find out which selectors the queue names. Until then, and while
    /// that fails, no old selector may go.
    pub fn ask_usage_of(&self, usage: SelectorUsage) {
        if self.usage.set(usage).is_err() {
            tracing::debug!("the queue was named twice as the user of selectors");
        }
    }

    /// Domains of a tenant and their old selectors, in the order asked for. The queue is asked once,
    /// and only if one of them has old selectors.
    pub async fn status(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domains: &[Domain],
        now: Timestamp,
    ) -> Result<Vec<Status>, AdminError> {
        actor.require(Permission::Read(Resource::Domains, tenant))?;
        let mut records = Vec::with_capacity(domains.len());
        for domain in domains {
            actor.require_domain(domain)?;
            records.push(self.entry(tenant, domain).ok_or_else(|| missing(domain))?.record.clone());
        }
        let has_past = records.iter().any(|record| !record.retired.is_empty());
        let named = if has_past { self.named().await } else { None };
        let status = |record: SendingDomain| {
            let retired = record.retired.iter().map(|retired| RetiredSelectors {
                names: names(&record, retired),
                at: retired.at,
                may_go: self.may_go(&record, retired, named.as_ref(), now),
            });
            Status { retired: retired.collect(), domain: record }
        };
        Ok(records.into_iter().map(status).collect())
    }

    /// Does what is due: looks domains up again, notes which old selectors no message names any
    /// more, and forgets those that are gone from DNS too.
    pub async fn keep(&self, now: Timestamp) {
        self.note_unnamed(&Actor::system("domain verification"), now).await;
        self.look_again(now).await;
    }

    /// Looks domains up again whose time has come.
    async fn look_again(&self, now: Timestamp) {
        let actor = Actor::system("domain verification");
        let due: Vec<(TenantId, Domain)> = {
            let memory = records::read(&self.memory);
            let entries = memory.values().flat_map(|own| own.values());
            let due = entries.filter(|entry| self.is_due(&entry.record, now) && entry.keys.is_ok());
            due.map(|entry| (entry.record.tenant, entry.record.domain.clone())).collect()
        };
        let actor = &actor;
        let checks = due.into_iter().map(|(tenant, domain)| async move {
            if let Err(error) = self.verify(actor, tenant, &domain, now).await {
                tracing::warn!(%tenant, %domain, %error, "a sending domain could not be verified again");
            }
        });
        futures_util::stream::iter(checks).for_each_concurrent(LOOKUPS_AT_ONCE, |check| check).await;
        let checks = self.returns_due(now).into_iter().map(|(tenant, domain)| async move {
            if let Err(error) = self.verify_return_path(actor, (tenant, &domain), now).await {
                tracing::warn!(%tenant, %domain, %error, "a return-path could not be looked up again");
            }
        });
        futures_util::stream::iter(checks).for_each_concurrent(LOOKUPS_AT_ONCE, |check| check).await;
    }

    /// Calls [`Domains::keep`] while the daemon lives.
    pub async fn run(&self, shutdown: Shutdown) {
        let never = tokio::sync::Notify::new();
        let kept = crate::background::periodically(KEPT_EVERY, &never, &shutdown, || self.keep(Timestamp::now()));
        let looked =
            crate::background::periodically(LOOKED_EVERY, &never, &shutdown, || self.look_again(Timestamp::now()));
        tokio::join!(kept, looked);
    }

    /// Whether it is time to look a domain up. One that waits for something is looked up more often, the more so
    /// the shorter it has waited: somebody has just published the record, and is looking.
    fn is_due(&self, record: &SendingDomain, now: Timestamp) -> bool {
        let again = self.looked_up_after(record, now);
        match record.last_check {
            None => now.since(record.added) >= again || now < record.added,
            // A check in the future was made by a clock that has since been set back.
            Some(last) => now.since(last) >= again || now < last,
        }
    }

    fn looked_up_after(&self, record: &SendingDomain, now: Timestamp) -> Duration {
        let settings = &self.settings;
        let waits_since = match record.state {
            State::Verified(_) => record.absent_since,
            State::Pending => Some(record.added),
            State::Unverified(since) => Some(since),
        };
        match waits_since.map(|since| now.since(since)) {
            None if record.next_keys.is_some() => settings.pending_again,
            None => settings.verified_again,
            Some(waited) if waited < SOON => settings.first_again,
            Some(waited) if waited < LATER => settings.pending_again,
            Some(waited) if waited < LONG => settings.later_again,
            Some(_) => settings.verified_again,
        }
    }

    /// Asks the queue, off the async workers.
    async fn named(&self) -> Option<HashSet<String>> {
        let usage = Arc::clone(self.usage.get()?);
        let refused = match tokio::task::spawn_blocking(move || usage()).await {
            Ok(Ok(named)) => return Some(named),
            Ok(Err(error)) => error.to_string(),
            Err(panicked) => panicked.to_string(),
        };
        tracing::warn!(error = refused, "the queue cannot say which selectors it names");
        None
    }

    fn may_go(
        &self,
        record: &SendingDomain,
        retired: &Retired,
        named: Option<&HashSet<String>>,
        now: Timestamp,
    ) -> MayGo {
        let Some(named) = named else { return MayGo::NotYet };
        if names(record, retired).iter().any(|name| named.contains(name)) {
            return MayGo::NotYet;
        }
        let at = retired.unnamed_since.unwrap_or(now).plus(self.settings.retired_wait);
        if at <= now { MayGo::Now } else { MayGo::At(at) }
    }

    async fn note_unnamed(&self, actor: &Actor, now: Timestamp) {
        let with_past: Vec<SendingDomain> = {
            let memory = records::read(&self.memory);
            let records = memory.values().flat_map(|own| own.values()).map(|entry| &entry.record);
            records.filter(|record| !record.retired.is_empty()).cloned().collect()
        };
        if with_past.is_empty() {
            return;
        }
        let Some(named) = self.named().await else { return };
        for record in with_past {
            let mut retired = Vec::new();
            for mut old in record.retired.clone() {
                let is_named = names(&record, &old).iter().any(|name| named.contains(name));
                let may_go = self.may_go(&record, &old, Some(&named), now);
                if may_go == MayGo::Now && self.is_gone(&record, &old).await {
                    continue;
                }
                old.unnamed_since = if is_named { None } else { old.unnamed_since.or(Some(now)) };
                retired.push(old);
            }
            if retired == record.retired {
                continue;
            }
            let noted = self.change((actor, now), (record.tenant, &record.domain), "domain.selectors", |current| {
                if current.retired == record.retired {
                    current.retired = retired;
                }
                Ok(())
            });
            if let Err(error) = noted.await {
                tracing::warn!(domain = %record.domain, %error, "old selectors could not be noted");
            }
        }
    }

    async fn is_gone(&self, record: &SendingDomain, old: &Retired) -> bool {
        verification::is_gone(&*self.resolver, &record.domain, &old.rsa_selector).await
            && verification::is_gone(&*self.resolver, &record.domain, &old.ed25519_selector).await
    }
}

fn names(record: &SendingDomain, retired: &Retired) -> [String; 2] {
    [record.key_name(&retired.rsa_selector), record.key_name(&retired.ed25519_selector)]
}
