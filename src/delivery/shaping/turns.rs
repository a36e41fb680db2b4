//! Whose turn it is at a site: tenants share it by weight, whatever they have waiting. Pure.
//!
//! Each message moves its tenant's clock on, the more the less its weight; the tenant whose clock
//! is furthest behind goes first. Easy to get wrong: a tenant that had nothing to send must not
//! come back with all the turns it missed, so it begins at the clock of those who are there.

use std::collections::HashMap;

use super::Path;
use crate::mail::{Class, TenantId};

/// One message of a tenant of weight 1.
const MESSAGE: u64 = 1_000_000;
/// Marketing goes before transactional mail once for so many jobs of the latter.
const MARKETING_EVERY: u32 = 10;

/// Clocks of tenants, by site and virtual IP.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    sites: HashMap<Path, Site>,
}

#[derive(Clone, Debug, Default)]
struct Site {
    now: u64,
    clocks: HashMap<TenantId, u64>,
    transactional: u32,
}

impl Turns {
    /// Orders what waits: by class, then so that each tenant's first comes before any tenant's
    /// second, the one whose clock is furthest behind first.
    pub fn order<T>(&self, waiting: &mut Vec<T>, facts: impl Fn(&T) -> (Path, TenantId, Class)) {
        let mut seen: HashMap<(Path, TenantId, Class), u64> = HashMap::new();
        let mut keyed: Vec<((u8, u64, u64), T)> = Vec::with_capacity(waiting.len());
        for one in waiting.drain(..) {
            let (path, tenant, class) = facts(&one);
            let site = self.sites.get(&path);
            let clock = site.map_or(0, |site| site.clock(tenant).saturating_sub(site.now));
            let rank = match class {
                _ if site.is_some_and(|site| site.owes_marketing()) => u8::from(class == Class::Transactional),
                class => u8::from(class == Class::Marketing),
            };
            let round = seen.entry((path, tenant, class)).or_default();
            keyed.push(((rank, *round, clock), one));
            *round = round.saturating_add(1);
        }
        keyed.sort_by_key(|(key, _)| *key);
        waiting.extend(keyed.into_iter().map(|(_, one)| one));
    }

    /// A job of that class goes out.
    pub fn went(&mut self, path: &Path, class: Class) {
        let site = self.sites.entry(path.clone()).or_default();
        match class {
            Class::Transactional => site.transactional = site.transactional.saturating_add(1),
            Class::Marketing => site.transactional = 0,
        }
    }

    /// So many messages of a tenant are allowed to go.
    pub fn granted(&mut self, path: &Path, tenant: TenantId, messages: u32, weight: u32) {
        let site = self.sites.entry(path.clone()).or_default();
        let clock = site.clock(tenant);
        // The clock of the one served is the site's: nobody who comes later begins behind it.
        site.now = site.now.max(clock);
        site.clocks.insert(tenant, clock.saturating_add(cost(messages, weight)));
    }

    /// Of so many allowed so many went.
    pub fn finished(&mut self, path: &Path, tenant: TenantId, (allowed, used): (u32, u32), weight: u32) {
        let Some(site) = self.sites.get_mut(path) else { return };
        if let Some(clock) = site.clocks.get_mut(&tenant) {
            *clock = clock.saturating_add(cost(used, weight)).saturating_sub(cost(allowed, weight));
        }
        // Whoever is not ahead of the site's clock is where a newcomer begins.
        let now = site.now;
        site.clocks.retain(|_, clock| *clock > now);
    }

    /// Forgets sites that are not known any more.
    pub fn forget(&mut self, is_known: impl Fn(&Path) -> bool) {
        self.sites.retain(|path, _| is_known(path));
    }
}

impl Site {
    fn clock(&self, tenant: TenantId) -> u64 {
        self.clocks.get(&tenant).copied().unwrap_or(0).max(self.now)
    }

    fn owes_marketing(&self) -> bool {
        self.transactional >= MARKETING_EVERY
    }
}

fn cost(messages: u32, weight: u32) -> u64 {
    u64::from(messages).saturating_mul(MESSAGE) / u64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::VipId;

    fn path() -> Path {
        Path { site: "gmail".into(), vip: VipId(1) }
    }

    fn ordered(turns: &Turns, waiting: &[(u64, Class)]) -> Vec<(u64, Class)> {
        let mut waiting = waiting.to_vec();
        turns.order(&mut waiting, |(tenant, class)| (path(), TenantId(*tenant), *class));
        waiting
    }

    #[test]
    fn transactional_mail_goes_first_and_each_tenant_once_before_anybody_twice() {
        use Class::{Marketing as M, Transactional as T};
        let waiting = [(1, M), (1, T), (1, T), (1, T), (2, T), (3, M)];
        let order = ordered(&Turns::default(), &waiting);
        assert_eq!(order, [(1, T), (2, T), (1, T), (1, T), (1, M), (3, M)]);
    }

    #[test]
    fn turns_follow_the_weights_whatever_waits() {
        let mut turns = Turns::default();
        let weight = |tenant: u64| if tenant == 3 { 2 } else { 1 };
        let mut sent: HashMap<u64, u32> = HashMap::new();
        for _ in 0..4_000 {
            let mut waiting = vec![(1, Class::Transactional); 50];
            waiting.extend([(2, Class::Transactional), (3, Class::Transactional)]);
            let (tenant, _) = ordered(&turns, &waiting)[0];
            turns.granted(&path(), TenantId(tenant), 5, weight(tenant));
            turns.finished(&path(), TenantId(tenant), (5, 4), weight(tenant));
            *sent.entry(tenant).or_default() += 4;
        }
        assert!(sent[&1].abs_diff(4_000) < 100 && sent[&2].abs_diff(4_000) < 100, "{sent:?}");
        assert!(sent[&3].abs_diff(8_000) < 100, "{sent:?}");
    }

    #[test]
    fn a_tenant_that_comes_back_goes_next_and_gets_no_turns_it_missed() {
        let mut turns = Turns::default();
        for _ in 0..10_000 {
            turns.granted(&path(), TenantId(1), 1, 1);
            turns.finished(&path(), TenantId(1), (1, 1), 1);
        }
        let both = [(1, Class::Transactional), (2, Class::Transactional)];
        let mut firsts = Vec::new();
        for _ in 0..10 {
            let (tenant, _) = ordered(&turns, &both)[0];
            turns.granted(&path(), TenantId(tenant), 1, 1);
            turns.finished(&path(), TenantId(tenant), (1, 1), 1);
            firsts.push(tenant);
        }
        assert!(firsts[..2].contains(&2), "{firsts:?}");
        assert!((4..=6).contains(&firsts.iter().filter(|tenant| **tenant == 2).count()), "{firsts:?}");
    }

    #[test]
    fn marketing_is_not_starved_by_transactional_mail() {
        let mut turns = Turns::default();
        let waiting = [(1, Class::Transactional), (2, Class::Marketing)];
        let mut marketing = 0;
        for _ in 0..110 {
            let (_, class) = ordered(&turns, &waiting)[0];
            turns.went(&path(), class);
            marketing += u32::from(class == Class::Marketing);
        }
        assert_eq!(marketing, 10);
    }
}
