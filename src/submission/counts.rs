//! How many of something are there at one moment, by key: sessions by peer and by account, and
//! octets of drafts. A permit gives its place back when it is dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Places by key.
#[derive(Debug)]
pub(super) struct Counts<K: Eq + Hash> {
    held: Mutex<HashMap<K, usize>>,
    max: usize,
}

/// One place.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash + Copy> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Eq + Hash + Copy> Counts<K> {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), max })
    }

    /// A place for `key`, unless all of its places are held.
    pub(super) fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&key).copied().unwrap_or(0);
        if count >= self.max {
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

/// Octets that may be held in all.
#[derive(Debug)]
pub(super) struct Octets {
    held: AtomicU64,
    max: u64,
}

/// Octets held by one draft.
#[derive(Debug)]
pub(super) struct Reservation {
    octets: Arc<Octets>,
    held: u64,
}

impl Octets {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), max })
    }

    /// Whether `more` octets would find room now.
    pub(super) fn has_room(&self, more: u64) -> bool {
        self.held.load(Ordering::Relaxed).saturating_add(more) <= self.max
    }

    pub(super) fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { octets: Arc::clone(self), held: 0 }
    }
}

impl Reservation {
    /// Holds `total` octets from now on, if there is room; if not, what is held stays.
    pub(super) fn grow_to(&mut self, total: u64) -> bool {
        let more = total.saturating_sub(self.held);
        if more == 0 {
            return true;
        }
        let before = self.octets.held.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.octets.max {
            self.octets.held.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.held = total;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.octets.held.fetch_sub(self.held, Ordering::Relaxed);
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
        let octets = Octets::new(100);
        let mut one = octets.reserve();
        assert!(one.grow_to(60) && one.grow_to(60) && octets.has_room(40) && !octets.has_room(41));
        let mut two = octets.reserve();
        assert!(!two.grow_to(41) && two.grow_to(40));
        drop(one);
        assert!(two.grow_to(100));
        drop(two);
        assert_eq!(octets.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_ipv6_peer_is_counted_with_its_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
