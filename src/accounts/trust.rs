//! Networks that logged in: what keeps others' failures from locking a shop out.
//!
//! Kept in memory, stored lazily (at most once a day for each), read again at open. Pure but for
//! that. Easy to get wrong: trust is about (tenant, network) and helps only a login that proves
//! itself; it must not make an unknown login look different from a wrong password.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::network::Network;
use crate::ext::Timestamp;
use crate::mail::TenantId;

/// Networks remembered for one tenant, at most; the one unused longest goes first.
pub const NETWORKS_PER_TENANT_MAX: usize = 4096;
/// A network that keeps logging in is stored again after this long.
const STORED_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// As stored under tenant and network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenNetwork {
    /// Whose login.
    pub tenant: TenantId,
    /// From where.
    pub network: Network,
    /// When last, to a day.
    pub last: Timestamp,
}

/// All networks that logged in lately.
#[derive(Default)]
pub struct Trust {
    by_tenant: HashMap<TenantId, HashMap<Network, Seen>>,
    changed: BTreeSet<(TenantId, Network)>,
}

#[derive(Clone, Copy)]
struct Seen {
    last: Timestamp,
    stored: Option<Timestamp>,
}

impl Trust {
    /// What was stored.
    pub fn from_stored(stored: impl IntoIterator<Item = SeenNetwork>) -> Self {
        let mut trust = Self::default();
        for SeenNetwork { tenant, network, last } in stored {
            trust.by_tenant.entry(tenant).or_default().insert(network, Seen { last, stored: Some(last) });
        }
        trust
    }

    /// Whether `network` logged in for `tenant` within `span`.
    pub fn is_trusted(&self, tenant: TenantId, network: Network, span: Duration, now: Timestamp) -> bool {
        let seen = self.by_tenant.get(&tenant).and_then(|networks| networks.get(&network));
        seen.is_some_and(|seen| now.since(seen.last) <= span)
    }

    /// Books a login that proved itself.
    pub fn logged_in(&mut self, tenant: TenantId, network: Network, now: Timestamp) {
        let networks = self.by_tenant.entry(tenant).or_default();
        if !networks.contains_key(&network) && networks.len() >= NETWORKS_PER_TENANT_MAX {
            let oldest = networks.iter().min_by_key(|(_, seen)| seen.last).map(|(network, _)| *network);
            if let Some(oldest) = oldest {
                networks.remove(&oldest);
                self.changed.insert((tenant, oldest));
            }
        }
        let seen = networks.entry(network).or_insert(Seen { last: now, stored: None });
        seen.last = seen.last.max(now);
        if seen.stored.is_none_or(|stored| now.since(stored) >= STORED_AGAIN) {
            self.changed.insert((tenant, network));
        }
    }

    /// Forgets a tenant.
    pub fn forget(&mut self, tenant: TenantId) {
        for network in self.by_tenant.remove(&tenant).unwrap_or_default().into_keys() {
            self.changed.insert((tenant, network));
        }
    }

    /// What is to be stored (`Some`) or removed (`None`) since the last call; networks not seen
    /// for `span` are forgotten.
    pub fn take_changes(&mut self, span: Duration, now: Timestamp) -> Vec<(TenantId, Network, Option<SeenNetwork>)> {
        for (tenant, networks) in &mut self.by_tenant {
            networks.retain(|network, seen| {
                let keep = now.since(seen.last) <= span;
                if !keep {
                    self.changed.insert((*tenant, *network));
                }
                keep
            });
        }
        let changed = std::mem::take(&mut self.changed);
        let mut changes = Vec::with_capacity(changed.len());
        for (tenant, network) in changed {
            let seen = self.by_tenant.get_mut(&tenant).and_then(|networks| networks.get_mut(&network));
            let stored = seen.map(|seen| {
                seen.stored = Some(seen.last);
                SeenNetwork { tenant, network, last: seen.last }
            });
            changes.push((tenant, network, stored));
        }
        changes
    }

    /// Gives back changes that could not be stored.
    pub fn put_back(&mut self, tenant: TenantId, network: Network) {
        self.changed.insert((tenant, network));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: Network = Network::V4([192, 0, 2]);
    const TENANT: TenantId = TenantId(1);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const START: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn trust_lasts_its_span_and_is_per_tenant() {
        let mut trust = Trust::default();
        trust.logged_in(TENANT, NETWORK, START);
        let span = DAY * 30;
        assert!(trust.is_trusted(TENANT, NETWORK, span, START.plus(span)));
        assert!(!trust.is_trusted(TENANT, NETWORK, span, START.plus(span + Duration::from_millis(1))));
        assert!(!trust.is_trusted(TenantId(2), NETWORK, span, START));
    }

    #[test]
    fn a_busy_network_is_stored_once_a_day_and_removed_when_its_time_is_over() {
        let mut trust = Trust::default();
        let span = DAY * 30;
        for minute in 0..3000 {
            trust.logged_in(TENANT, NETWORK, START.plus(Duration::from_secs(60 * minute)));
            let changes = trust.take_changes(span, START.plus(Duration::from_secs(60 * minute)));
            assert_eq!(changes.len(), usize::from(minute % 1440 == 0), "minute {minute}");
        }
        let changes = trust.take_changes(span, START.plus(DAY * 40));
        assert_eq!(changes, [(TENANT, NETWORK, None)]);
    }

    #[test]
    fn one_tenants_networks_are_bounded_and_the_oldest_goes_first() {
        let mut trust = Trust::default();
        for count in 0..5000_u64 {
            trust.logged_in(TENANT, Network::V6(count.to_be_bytes()), START.plus(Duration::from_secs(count)));
        }
        assert_eq!(trust.by_tenant[&TENANT].len(), NETWORKS_PER_TENANT_MAX);
        assert!(trust.is_trusted(TENANT, Network::V6(4999_u64.to_be_bytes()), DAY, START));
        assert!(!trust.is_trusted(TENANT, Network::V6(0_u64.to_be_bytes()), DAY, START));
    }
}
