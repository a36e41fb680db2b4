//! Who uses the connections to a site now, and who should give one up next. Pure.
//!
//! Easy to get wrong: a batch keeps its connections for many messages; mail of somebody who has
//! none must not wait for the end of those turns, only for the end of one message.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::shaping::Path;
use crate::mail::{Class, TenantId};
use crate::routing::Lane;

/// Jobs of one tenant and class at one site.
struct Share {
    running: usize,
    yields: Arc<AtomicBool>,
}

/// Everybody's shares.
#[derive(Default)]
pub(super) struct Sharers {
    sites: HashMap<Path, HashMap<(TenantId, Class), Share>>,
}

impl Sharers {
    /// A job of the lane begins; it gives its connection up when what is returned is raised.
    pub(super) fn joined(&mut self, pace: &Path, lane: &Lane) -> Arc<AtomicBool> {
        let shares = self.sites.entry(pace.clone()).or_default();
        let share = shares
            .entry((lane.tenant, lane.class))
            .or_insert_with(|| Share { running: 0, yields: Arc::new(AtomicBool::new(false)) });
        share.running = share.running.saturating_add(1);
        Arc::clone(&share.yields)
    }

    /// A job of the lane ended.
    pub(super) fn left(&mut self, pace: &Path, lane: &Lane) {
        let Some(shares) = self.sites.get_mut(pace) else { return };
        if let Some(share) = shares.get_mut(&(lane.tenant, lane.class)) {
            share.running = share.running.saturating_sub(1);
            if share.running == 0 {
                shares.remove(&(lane.tenant, lane.class));
            }
        }
        if shares.is_empty() {
            self.sites.remove(pace);
        }
    }

    /// Mail of the lane waits for a connection: whoever has most of them gives one up, marketing
    /// before transactional, if that is fairer than it was.
    pub(super) fn ask(&self, pace: &Path, lane: &Lane) {
        let Some(shares) = self.sites.get(pace) else { return };
        let own = (lane.tenant, lane.class);
        let has = shares.get(&own).map_or(0, |share| share.running);
        let others = shares.iter().filter(|(whose, _)| **whose != own);
        let richest = others.max_by_key(|((_, class), share)| (*class == Class::Marketing, share.running));
        let Some(((_, class), share)) = richest else { return };
        let goes_first = lane.class == Class::Transactional && *class == Class::Marketing;
        if goes_first && has == 0 || share.running > has.saturating_add(1) || (has == 0 && lane.class <= *class) {
            share.yields.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Domain, VipId};
    use crate::routing::TransportName;

    fn lane(tenant: u64, class: Class) -> Lane {
        let next_hop = Domain::parse("shop.example").unwrap();
        Lane { vip: VipId(1), tenant: TenantId(tenant), class, transport: TransportName::Mx, next_hop }
    }

    fn is_asked(yields: &AtomicBool) -> bool {
        yields.swap(false, Ordering::AcqRel)
    }

    #[test]
    fn whoever_has_none_gets_one_from_whoever_has_most() {
        use Class::{Marketing, Transactional};
        let (mut sharers, pace) = (Sharers::default(), Path { site: "gmail".into(), vip: VipId(1) });
        let batch: Vec<_> = (0..9).map(|_| sharers.joined(&pace, &lane(1, Transactional))).collect();
        let batch = &batch[0];
        let other = sharers.joined(&pace, &lane(2, Transactional));
        sharers.ask(&pace, &lane(3, Transactional));
        assert!(is_asked(batch) && !is_asked(&other));
        sharers.ask(&pace, &lane(1, Transactional));
        assert!(!is_asked(batch) && !is_asked(&other), "it has most itself");
        sharers.ask(&pace, &lane(2, Transactional));
        assert!(is_asked(batch), "nine to one is not fair");
        let letter = sharers.joined(&pace, &lane(4, Marketing));
        sharers.ask(&pace, &lane(3, Transactional));
        assert!(is_asked(&letter) && !is_asked(batch), "marketing goes first");
        sharers.ask(&pace, &lane(5, Marketing));
        assert!(!is_asked(&other));
        for _ in 0..9 {
            sharers.left(&pace, &lane(1, Transactional));
        }
        sharers.left(&pace, &lane(2, Transactional));
        sharers.left(&pace, &lane(4, Marketing));
        assert!(sharers.sites.is_empty());
    }
}
