//! How many of something are there at one moment, by key: sessions by peer and by account, and
//! octets of drafts. A permit gives its place back when it is dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mail::TenantId;

/// Places by key.
#[derive(Debug)]
pub(super) struct Counts<K: Eq + Hash> {
    held: Mutex<HashMap<K, usize>>,
    max: AtomicUsize,
}

/// One place.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash + Copy> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Eq + Hash + Copy> Counts<K> {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), max: AtomicUsize::new(max) })
    }

    /// Another number of places; those held stay held.
    pub(super) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// A place for `key`, unless all of its places are held.
    pub(super) fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&key).copied().unwrap_or(0);
        if count >= self.max.load(Ordering::Relaxed) {
            return None;
        }
        held.insert(key, count + 1);
        Some(Place { counts: Arc::clone(self), key })
    }
}

impl<K: Eq + Hash + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        let mut held = self.counts.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                held.remove(&self.key);
            }
        }
    }
}

/// What a peer is counted as: its IPv4 address, or its IPv6 /64.
pub(super) fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Octets that may be held in all, and by one tenant, so that none keeps the others out.
#[derive(Debug)]
pub(super) struct Octets {
    held: AtomicU64,
    max: AtomicU64,
    by_tenant: Mutex<HashMap<TenantId, u64>>,
    tenant_max: AtomicU64,
}

/// Octets held by one draft.
#[derive(Debug)]
pub(super) struct Reservation {
    octets: Arc<Octets>,
    tenant: TenantId,
    held: u64,
}

impl Octets {
    pub(super) fn new(max: u64, tenant_max: u64) -> Arc<Self> {
        let (max, tenant_max) = (AtomicU64::new(max), AtomicU64::new(tenant_max));
        Arc::new(Self { held: AtomicU64::new(0), max, by_tenant: Mutex::default(), tenant_max })
    }

    /// Other limits; what is held stays held.
    pub(super) fn set_max(&self, max: u64, tenant_max: u64) {
        self.max.store(max, Ordering::Relaxed);
        self.tenant_max.store(tenant_max, Ordering::Relaxed);
    }

    /// Whether `more` octets of the tenant would find room now.
    pub(super) fn has_room(&self, tenant: TenantId, more: u64) -> bool {
        let own = self.of_tenants().get(&tenant).copied().unwrap_or(0);
        own.saturating_add(more) <= self.tenant_max.load(Ordering::Relaxed)
            && self.held.load(Ordering::Relaxed).saturating_add(more) <= self.max.load(Ordering::Relaxed)
    }

    pub(super) fn reserve(self: &Arc<Self>, tenant: TenantId) -> Reservation {
        Reservation { octets: Arc::clone(self), tenant, held: 0 }
    }

    fn of_tenants(&self) -> MutexGuard<'_, HashMap<TenantId, u64>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `more` for the tenant, unless that is over its share.
    fn take(&self, tenant: TenantId, more: u64) -> bool {
        let mut of_tenants = self.of_tenants();
        let own = of_tenants.entry(tenant).or_default();
        let fits = own.saturating_add(more) <= self.tenant_max.load(Ordering::Relaxed);
        if fits {
            *own = own.saturating_add(more);
        }
        if *own == 0 {
            of_tenants.remove(&tenant);
        }
        fits
    }

    fn give_back(&self, tenant: TenantId, octets: u64) {
        let mut of_tenants = self.of_tenants();
        if let Some(own) = of_tenants.get_mut(&tenant) {
            *own = own.saturating_sub(octets);
            if *own == 0 {
                of_tenants.remove(&tenant);
            }
        }
    }
}

impl Reservation {
    /// Holds `total` octets from now on, if there is room; if not, what is held stays.
    pub(super) fn grow_to(&mut self, total: u64) -> bool {
        let more = total.saturating_sub(self.held);
        if more == 0 {
            return true;
        }
        if !self.octets.take(self.tenant, more) {
            return false;
        }
        let before = self.octets.held.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.octets.max.load(Ordering::Relaxed) {
            self.octets.held.fetch_sub(more, Ordering::Relaxed);
            self.octets.give_back(self.tenant, more);
            return false;
        }
        self.held = total;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.octets.held.fetch_sub(self.held, Ordering::Relaxed);
        self.octets.give_back(self.tenant, self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_when_dropped() {
        let counts = Counts::new(2);
        let (first, second) = (counts.take('a'), counts.take('a'));
        assert!(first.is_some() && second.is_some() && counts.take('a').is_none() && counts.take('b').is_some());
        drop(first);
        assert!(counts.take('a').is_some());
        drop(second);
        assert!(counts.held.lock().unwrap().is_empty());
    }

    #[test]
    fn octets_are_given_back_when_dropped_and_refused_over_the_limit() {
        let (octets, tenant) = (Octets::new(100, 100), TenantId(1));
        let mut one = octets.reserve(tenant);
        assert!(one.grow_to(60) && one.grow_to(60) && octets.has_room(tenant, 40) && !octets.has_room(tenant, 41));
        let mut two = octets.reserve(tenant);
        assert!(!two.grow_to(41) && two.grow_to(40));
        drop(one);
        assert!(two.grow_to(100));
        drop(two);
        assert_eq!(octets.held.load(Ordering::Relaxed), 0);
        assert!(octets.of_tenants().is_empty());
    }

    #[test]
    fn one_tenant_cannot_take_the_room_of_the_others() {
        let octets = Octets::new(100, 50);
        let (mut loud, mut again) = (octets.reserve(TenantId(1)), octets.reserve(TenantId(1)));
        assert!(loud.grow_to(30) && again.grow_to(20) && !again.grow_to(21) && !octets.has_room(TenantId(1), 1));
        let mut quiet = octets.reserve(TenantId(2));
        assert!(octets.has_room(TenantId(2), 50) && quiet.grow_to(50));
        drop((loud, again));
        assert!(octets.has_room(TenantId(1), 50));
    }

    #[test]
    fn an_ipv6_peer_is_counted_with_its_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
