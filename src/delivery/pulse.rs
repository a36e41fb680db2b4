//! What happens at this moment, for `postern top`: how much was accepted and what attempts came to in the last
//! minute, by provider, and how long mail took.
//!
//! Pure but for its lock; in memory only. Easy to get wrong: it must cost next to nothing, and no more
//! memory with more receivers: sites that are no known provider count together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::ext::Timestamp;
use crate::queue::Beat;
use crate::records;

/// Seconds that are counted apart.
const SECONDS: usize = 60;
/// Providers counted apart, at most.
const PROVIDERS_MAX: usize = 200;
/// The latest deliveries of a provider whose time is remembered.
const SAMPLES: usize = 512;
/// Sites that are no known provider.
pub const OTHERS: &str = "other";

/// How often something happened in the last minute.
#[derive(Clone, Debug)]
struct LastMinute {
    counts: [u64; SECONDS],
    second: u64,
}

impl Default for LastMinute {
    fn default() -> Self {
        Self { counts: [0; SECONDS], second: 0 }
    }
}

impl LastMinute {
    fn add(&mut self, count: u64, second: u64) {
        self.forget(second);
        if let Some(own) = self.counts.get_mut(place(second)) {
            *own = own.saturating_add(count);
        }
    }

    fn sum(&mut self, second: u64) -> u64 {
        self.forget(second);
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Empties the places of seconds that have passed since the last one.
    fn forget(&mut self, second: u64) {
        let passed = second.saturating_sub(self.second).min(SECONDS as u64);
        for gone in 1..=passed {
            if let Some(own) = self.counts.get_mut(place(self.second.saturating_add(gone))) {
                *own = 0;
            }
        }
        self.second = self.second.max(second);
    }
}

fn place(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).unwrap_or(0)
}

#[derive(Debug, Default)]
struct Line {
    delivered: LastMinute,
    deferred: LastMinute,
    given_up: LastMinute,
    /// How long the latest deliveries took since acceptance, and when they were.
    took: VecDeque<(u64, Duration)>,
}

#[derive(Debug, Default)]
struct State {
    accepted: LastMinute,
    lines: BTreeMap<Arc<str>, Line>,
}

/// What happens at this moment.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<State>);

/// One provider in the last minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulseLine {
    /// Its name; [`OTHERS`] for sites that are none.
    pub provider: Arc<str>,
    /// Recipients delivered.
    pub delivered: u64,
    /// Recipients put off.
    pub deferred: u64,
    /// Recipients given up.
    pub given_up: u64,
    /// From acceptance to delivery, of the last minute's latest 512 deliveries: half of them took less.
    pub took_half: Option<Duration>,
    /// The same, 99 in 100.
    pub took_most: Option<Duration>,
}

/// The last minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastMinuteOf {
    /// Messages accepted.
    pub accepted: u64,
    /// By provider.
    pub lines: Vec<PulseLine>,
}

impl Pulse {
    /// Nothing happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts it for a provider, if it has one.
    pub fn feel(&self, beat: &Beat<'_>, provider: Option<Arc<str>>, now: Timestamp) {
        let second = now.as_secs();
        let mut state = records::lock(&self.0);
        match beat {
            Beat::Accepted => state.accepted.add(1, second),
            Beat::Tried { delivered, deferred, given_up, accepted, .. } => {
                let others: Arc<str> = Arc::from(OTHERS);
                let name = provider.unwrap_or_else(|| Arc::clone(&others));
                let is_full = state.lines.len() >= PROVIDERS_MAX && !state.lines.contains_key(&name);
                let line = state.lines.entry(if is_full { others } else { name }).or_default();
                line.delivered.add(*delivered, second);
                line.deferred.add(*deferred, second);
                line.given_up.add(*given_up, second);
                if *delivered > 0 {
                    if line.took.len() >= SAMPLES {
                        line.took.pop_front();
                    }
                    line.took.push_back((second, now.since(*accepted)));
                }
            }
        }
    }

    /// The last minute as of `now`; providers that had nothing are left out.
    pub fn last_minute(&self, now: Timestamp) -> LastMinuteOf {
        let second = now.as_secs();
        let mut state = records::lock(&self.0);
        let accepted = state.accepted.sum(second);
        let mut lines = Vec::new();
        for (provider, line) in &mut state.lines {
            let since = second.saturating_sub(SECONDS as u64);
            let mut took: Vec<Duration> =
                line.took.iter().filter(|(at, _)| *at >= since).map(|(_, took)| *took).collect();
            took.sort_unstable();
            let at = |part: usize| took.get(took.len().saturating_sub(1) * part / 100).copied();
            let told = PulseLine {
                provider: Arc::clone(provider),
                delivered: line.delivered.sum(second),
                deferred: line.deferred.sum(second),
                given_up: line.given_up.sum(second),
                took_half: at(50),
                took_most: at(99),
            };
            if told.delivered > 0 || told.deferred > 0 || told.given_up > 0 {
                lines.push(told);
            }
        }
        LastMinuteOf { accepted, lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Domain;

    #[test]
    fn what_happened_counts_for_a_minute_by_provider() {
        let (pulse, start) = (Pulse::new(), Timestamp(1_000_000_000));
        let at = |secs: u64| start.plus(Duration::from_secs(secs));
        let domain = Domain::parse("shop.example").unwrap();
        let tried =
            |delivered, deferred| Beat::Tried { next_hop: &domain, delivered, deferred, given_up: 0, accepted: start };
        pulse.feel(&Beat::Accepted, None, at(0));
        pulse.feel(&tried(3, 0), Some("gmail".into()), at(1));
        pulse.feel(&tried(1, 1), Some("gmail".into()), at(30));
        pulse.feel(&tried(0, 2), None, at(30));
        let now = pulse.last_minute(at(31));
        assert_eq!(now.accepted, 1);
        let counts: Vec<(&str, u64, u64)> =
            now.lines.iter().map(|line| (&*line.provider, line.delivered, line.deferred)).collect();
        assert_eq!(counts, [("gmail", 4, 1), (OTHERS, 0, 2)]);
        assert_eq!(now.lines[0].took_half, Some(Duration::from_secs(1)));
        assert_eq!(now.lines[1].took_half, None);
        let later = pulse.last_minute(at(61));
        assert_eq!((later.accepted, later.lines[0].delivered), (0, 1), "the first second is past");
        assert_eq!(pulse.last_minute(at(1_000)), LastMinuteOf::default());
    }

    #[test]
    fn many_receivers_take_no_more_memory() {
        let (pulse, now) = (Pulse::new(), Timestamp(1_000_000_000));
        let domain = Domain::parse("shop.example").unwrap();
        let beat = Beat::Tried { next_hop: &domain, delivered: 1, deferred: 0, given_up: 0, accepted: now };
        for number in 0..10_000 {
            pulse.feel(&beat, Some(format!("p{number}").into()), now);
        }
        assert!(records::lock(&pulse.0).lines.len() <= PROVIDERS_MAX + 1);
        let sum: u64 = pulse.last_minute(now).lines.iter().map(|line| line.delivered).sum();
        assert_eq!(sum, 10_000);
    }
}
