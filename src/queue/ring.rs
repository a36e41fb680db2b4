//! Whose lanes are looked at next: tenants take turns by weight, each going round its own lanes. Pure.
//!
//! A round is over once every tenant was all the way through its lanes since the round began.
//! Easy to get wrong: a tenant with few lanes is through them many times in one round; that of a
//! tenant with many ends no sooner for it, and nobody's mail waits until that is through.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use super::record::QueueTime;
use crate::mail::TenantId;

/// When a lane is due first, and its number.
pub(super) type Key = (QueueTime, u32);

/// Lanes looked at in one turn of a tenant, at most, whatever its weight.
const WEIGHT_MAX: u32 = 100;

/// Lanes that are due, by tenant.
#[derive(Debug, Default)]
pub(super) struct Ring {
    tenants: HashMap<TenantId, Own>,
    /// When each tenant's first lane is due.
    firsts: BTreeSet<(QueueTime, TenantId)>,
    /// Who had the last turn.
    turn: Option<TenantId>,
}

/// One tenant's lanes.
#[derive(Debug, Default)]
struct Own {
    due: BTreeSet<Key>,
    /// Looked at last.
    turn: Option<Key>,
    /// In which round it goes through them.
    round: u64,
    /// Where it began with that; `None` is at the beginning.
    from: Option<Key>,
    /// It was at the end and went on at the beginning.
    is_over_the_end: bool,
    /// It was all the way through, and begins anew.
    is_through: bool,
    /// The last round in which it was.
    walked: u64,
}

impl Ring {
    /// A lane is due first at that time.
    pub(super) fn insert(&mut self, tenant: TenantId, key: Key) {
        let own = self.tenants.entry(tenant).or_default();
        let before = own.first();
        own.due.insert(key);
        let first = own.first();
        self.refresh(tenant, before, first);
    }

    /// It is not any more.
    pub(super) fn remove(&mut self, tenant: TenantId, key: Key) {
        let Some(own) = self.tenants.get_mut(&tenant) else { return };
        let before = own.first();
        own.due.remove(&key);
        let first = own.first();
        if first.is_none() {
            self.tenants.remove(&tenant);
        }
        self.refresh(tenant, before, first);
    }

    fn refresh(&mut self, tenant: TenantId, before: Option<QueueTime>, first: Option<QueueTime>) {
        if before == first {
            return;
        }
        if let Some(before) = before {
            self.firsts.remove(&(before, tenant));
        }
        if let Some(first) = first {
            self.firsts.insert((first, tenant));
        }
    }

    /// When the first lane is due.
    pub(super) fn first(&self) -> Option<QueueTime> {
        self.firsts.first().map(|(due, _)| *due)
    }

    /// How many lanes are due, counted up to `most`.
    pub(super) fn count(&self, now: QueueTime, most: usize) -> usize {
        let mut count = 0;
        for tenant in self.due(now) {
            let Some(own) = self.tenants.get(&tenant) else { continue };
            count += own.due.range(..=(now, u32::MAX)).take(most - count).count();
            if count >= most {
                break;
            }
        }
        count
    }

    /// Numbers of up to `most` lanes that are due, by turns; a tenant's turn is as many lanes as it has weight.
    pub(super) fn look(
        &mut self,
        (now, round): (QueueTime, u64),
        most: usize,
        weight: &dyn Fn(TenantId) -> u32,
    ) -> Vec<u32> {
        let mut tenants: Vec<TenantId> = self.due(now).collect();
        tenants.sort_unstable();
        let first = self.turn.map_or(0, |turn| tenants.partition_point(|tenant| *tenant <= turn));
        if first < tenants.len() {
            tenants.rotate_left(first);
        }
        let weighted = tenants.into_iter().map(|tenant| (tenant, weight(tenant).clamp(1, WEIGHT_MAX), 0_usize));
        let mut waiting: VecDeque<(TenantId, u32, usize)> = weighted.collect();
        let mut found = Vec::new();
        while found.len() < most {
            let Some((tenant, weight, had)) = waiting.pop_front() else { break };
            let Some(own) = self.tenants.get_mut(&tenant) else { continue };
            self.turn = Some(tenant);
            let room = most.saturating_sub(found.len()).min(usize::try_from(weight).unwrap_or(usize::MAX));
            let before = found.len();
            own.walk((now, round), (had == 0, room), &mut found);
            if !own.is_through {
                waiting.push_back((tenant, weight, had + found.len() - before));
            }
        }
        found
    }

    /// Whether every tenant with something due was through its lanes in this round.
    pub(super) fn is_through(&self, (now, round): (QueueTime, u64)) -> bool {
        self.due(now).filter_map(|tenant| self.tenants.get(&tenant)).all(|own| own.walked == round)
    }

    fn due(&self, now: QueueTime) -> impl Iterator<Item = TenantId> {
        self.firsts.range(..=(now, TenantId(u64::MAX))).map(|(_, tenant)| *tenant)
    }
}

impl Own {
    fn first(&self) -> Option<QueueTime> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Goes on with up to `most` lanes. If it is the first turn of a look and it is through, it begins anew.
    fn walk(&mut self, (now, round): (QueueTime, u64), (is_first, most): (bool, usize), found: &mut Vec<u32>) {
        if is_first && (self.is_through || self.round != round) {
            self.begin(round);
        }
        let mut may_begin = is_first;
        for _ in 0..most {
            let mut next = self.next(now);
            if next.is_none() {
                (self.is_through, self.walked) = (true, round);
                if may_begin {
                    // It was through at the very end of the look before.
                    self.begin(round);
                    next = self.next(now);
                    self.is_through = next.is_none();
                }
            }
            let Some(number) = next else { return };
            may_begin = false;
            found.push(number);
        }
    }

    fn begin(&mut self, round: u64) {
        (self.round, self.from, self.is_over_the_end, self.is_through) = (round, self.turn, false, false);
    }

    fn next(&mut self, now: QueueTime) -> Option<u32> {
        let last = (now, u32::MAX);
        if !self.is_over_the_end {
            if let Some(key) = self.between(last) {
                self.turn = Some(key);
                return Some(key.1);
            }
            (self.is_over_the_end, self.turn) = (true, None);
        }
        let key = self.between(self.from?.min(last))?;
        self.turn = Some(key);
        Some(key.1)
    }

    /// The next after the one that was looked at last, up to `end`.
    fn between(&self, end: Key) -> Option<Key> {
        if self.turn.is_some_and(|turn| turn >= end) {
            return None;
        }
        self.due.range((self.turn.map_or(Bound::Unbounded, Bound::Excluded), Bound::Included(end))).next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: QueueTime = QueueTime(1_000_000);

    fn ring(lanes: &[(u64, u32)]) -> Ring {
        let (mut ring, mut number) = (Ring::default(), 0);
        for (tenant, count) in lanes {
            for _ in 0..*count {
                ring.insert(TenantId(*tenant), (QueueTime(u64::from(number) % 7_000), number));
                number += 1;
            }
        }
        ring
    }

    #[test]
    fn a_tenant_with_one_lane_is_looked_at_each_time_beside_one_with_a_hundred_thousand() {
        let mut ring = ring(&[(1, 100_000), (2, 1)]);
        let (mut seen, mut looks) = (BTreeSet::new(), 0);
        while !ring.is_through((NOW, 1)) {
            let found = ring.look((NOW, 1), 1_000, &|_| 1);
            assert!(found.len() <= 1_000 && found.contains(&100_000), "{looks}");
            assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "none twice in one look");
            seen.extend(found);
            looks += 1;
        }
        assert_eq!((seen.len(), looks), (100_001, 101));
        let found = ring.look((NOW, 2), 1_000, &|_| 1);
        assert!(found.contains(&100_000) && !ring.is_through((NOW, 2)), "a new round");
    }

    #[test]
    fn tenants_take_turns_by_weight_and_what_one_does_not_use_the_others_have() {
        let mut ring = ring(&[(1, 5_000), (2, 5_000), (3, 10)]);
        let count = |found: &[u32], from: u32, to: u32| found.iter().filter(|one| (from..to).contains(*one)).count();
        let found = ring.look((NOW, 1), 1_000, &|tenant| if tenant == TenantId(2) { 2 } else { 1 });
        let of = [count(&found, 0, 5_000), count(&found, 5_000, 10_000), count(&found, 10_000, 10_010)];
        assert_eq!(of, [330, 660, 10]);
        for _ in 0..3 {
            let found = ring.look((NOW, 1), 2, &|_| 1);
            assert_eq!(found.len(), 2);
        }
    }

    #[test]
    fn a_short_look_goes_on_with_the_tenant_whose_turn_it_is() {
        let mut ring = ring(&[(1, 3), (2, 3), (3, 3)]);
        let looks: Vec<u32> = (0..4).flat_map(|_| ring.look((NOW, 1), 1, &|_| 1)).collect();
        assert_eq!(looks, [0, 3, 6, 1]);
    }

    #[test]
    fn lanes_that_come_and_go_between_the_looks_are_seen_and_none_is_forgotten() {
        let mut ring = ring(&[(1, 2_500)]);
        let first = ring.look((NOW, 1), 1_000, &|_| 1);
        for number in &first {
            ring.remove(TenantId(1), (QueueTime(u64::from(*number) % 7_000), *number));
        }
        ring.insert(TenantId(1), (QueueTime(2_600), 2_600));
        ring.insert(TenantId(1), (QueueTime(NOW.0 + 1), 2_601));
        let mut seen: BTreeSet<u32> = ring.look((NOW, 1), 1_000, &|_| 1).into_iter().collect();
        assert!(!ring.is_through((NOW, 1)));
        seen.extend(ring.look((NOW, 1), 1_000, &|_| 1));
        assert!(ring.is_through((NOW, 1)));
        assert_eq!((seen.len(), ring.count(NOW, 5_000), ring.count(NOW, 10)), (1_501, 1_501, 10));
        for number in seen {
            let due = if number == 2_600 { 2_600 } else { u64::from(number) };
            ring.remove(TenantId(1), (QueueTime(due), number));
        }
        assert_eq!((ring.first(), ring.count(NOW, 9)), (Some(QueueTime(NOW.0 + 1)), 0));
        ring.remove(TenantId(1), (QueueTime(NOW.0 + 1), 2_601));
        assert!(ring.tenants.is_empty() && ring.firsts.is_empty());
        assert!(ring.is_through((NOW, 9)), "there is nothing");
    }
}
