//! Failed logins, counted by (login, network) and by network. Pure: `now` is a value.
//!
//! Recipe: `failed` after a login that failed. Where looking at a try takes long, `tries` before and
//! `failed_from` after it, so that tries at the same moment do not escape the delay.
//!
//! Both tables are bounded: an attacker who floods them with names pushes out old entries, mostly
//! his own, and is still counted by network. Easy to get wrong: nothing here may depend on
//! whether the login exists, so logins are kept as a keyed hash of what was typed; and a clock that is
//! set back keeps nobody out: what lies further ahead than any delay is over.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use super::Settings;
use super::network::Network;
use crate::ext::Timestamp;

/// (login, network) pairs remembered, at most; also networks remembered, at most.
pub const REMEMBERED_MAX: usize = 65_536;
/// A pair is forgotten after this long without a failure.
const PAIR_MEMORY: Duration = Duration::from_secs(3600);
/// The first delay of an answer; doubles with each further failure.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// A network's level is kept in these units, so that it drains smoothly: one failure.
const ONE_FAILURE: u64 = 3_600_000;
/// The first failures of a network that are each told; after them every power of two.
const TOLD_FIRST: u64 = 10;

/// All failures remembered.
pub struct Failures {
    pairs: Recent<(u64, Network), Pair>,
    networks: Recent<Network, Level>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Default)]
struct Pair {
    count: u32,
    last: Option<Timestamp>,
    /// The next try is not looked at for so long after the last one.
    delay: Duration,
}

#[derive(Clone, Copy, Default)]
struct Level {
    units: u64,
    at: Option<Timestamp>,
    failures: u64,
}

/// What one failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// How long to wait before answering.
    pub delay: Duration,
    /// Whether it is worth an event; a flood is told in powers of two.
    pub tell: bool,
    /// Whether the network is answered 454 from now on.
    pub now_slowed: bool,
}

impl Default for Failures {
    fn default() -> Self {
        Self::bounded(REMEMBERED_MAX)
    }
}

impl Failures {
    fn bounded(remembered_max: usize) -> Self {
        Self { pairs: Recent::new(remembered_max), networks: Recent::new(remembered_max), hasher: RandomState::new() }
    }

    /// Whether `network` failed so often in the last hour that it is answered 454. It drains by
    /// `network_failures_max` an hour, so that a network is let in again little by little.
    pub fn is_slowed(&mut self, network: Network, settings: &Settings, now: Timestamp) -> bool {
        let full = full(settings);
        self.networks.existing(&network).is_some_and(|level| {
            level.drain(settings, now);
            level.units.saturating_add(ONE_FAILURE) > full
        })
    }

    /// Books one failure.
    pub fn failed(&mut self, login: &str, network: Network, settings: &Settings, now: Timestamp) -> Failed {
        let delay = self.pairs.entry((self.hasher.hash_one(login), network)).book(settings, now);
        self.failed_from(network, delay, settings, now)
    }

    /// Books a try before it is looked at, as one that fails until [`Failures::succeeded`] or
    /// [`Failures::excused`] says otherwise: how long its answer is delayed if it does.
    ///
    /// # Errors
    /// How long no try of that login from that network is looked at: the delay of the last one is not over.
    pub fn tries(
        &mut self,
        login: &str,
        network: Network,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Duration, Duration> {
        let pair = self.pairs.entry((self.hasher.hash_one(login), network));
        match pair.rest_of_delay(now) {
            Duration::ZERO => Ok(pair.book(settings, now)),
            rest => Err(rest),
        }
    }

    /// A try that was booked by [`Failures::tries`] did not fail, and proved nothing either.
    pub fn excused(&mut self, login: &str, network: Network) {
        if let Some(pair) = self.pairs.existing(&(self.hasher.hash_one(login), network)) {
            pair.count = pair.count.saturating_sub(1);
            pair.delay = Duration::ZERO;
        }
    }

    /// Books a failure of `network` alone; `delay` is that of its answer.
    pub fn failed_from(&mut self, network: Network, delay: Duration, settings: &Settings, now: Timestamp) -> Failed {
        let level = self.networks.entry(network);
        level.drain(settings, now);
        level.units = level.units.saturating_add(ONE_FAILURE);
        level.failures = level.failures.saturating_add(1);
        let now_slowed = level.units.saturating_add(ONE_FAILURE) > full(settings);
        Failed { delay, tell: level.failures <= TOLD_FIRST || level.failures.is_power_of_two(), now_slowed }
    }

    /// A login proved: its own failures from there are forgiven, the network's stay.
    pub fn succeeded(&mut self, login: &str, network: Network) {
        self.pairs.forget(&(self.hasher.hash_one(login), network));
    }
}

impl Pair {
    /// One failure more; how long its answer is delayed.
    fn book(&mut self, settings: &Settings, now: Timestamp) -> Duration {
        if self.last.is_some_and(|last| now.apart(last) > PAIR_MEMORY) {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.last = Some(now);
        self.delay = delay(self.count, settings);
        self.delay
    }

    /// What is left of the delay of the last failure. None if that seems to lie ahead: the clock was set back.
    fn rest_of_delay(&self, now: Timestamp) -> Duration {
        let passed = self.last.filter(|last| *last <= now).map(|last| now.since(last));
        passed.map_or(Duration::ZERO, |passed| self.delay.saturating_sub(passed))
    }
}

impl Level {
    fn drain(&mut self, settings: &Settings, now: Timestamp) {
        let passed = u64::try_from(now.since(self.at.unwrap_or(now)).as_millis()).unwrap_or(u64::MAX);
        self.units = self.units.saturating_sub(passed.saturating_mul(failures_max(settings)));
        self.at = Some(now);
        if self.units == 0 {
            self.failures = 0;
        }
    }
}

fn failures_max(settings: &Settings) -> u64 {
    u64::from(settings.network_failures_max.max(1))
}

fn full(settings: &Settings) -> u64 {
    failures_max(settings).saturating_mul(ONE_FAILURE)
}

fn delay(count: u32, settings: &Settings) -> Duration {
    let Some(over) = count.checked_sub(settings.login_failures_free_max.saturating_add(1)) else {
        return Duration::ZERO;
    };
    FIRST_DELAY.saturating_mul(1_u32.checked_shl(over).unwrap_or(u32::MAX)).min(settings.login_delay_max)
}

/// A map that keeps the entries used most recently: two generations, the older one is dropped
/// when the younger is half of the limit.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half_max: usize,
}

impl<K: Eq + Hash + Copy, V: Default + Copy> Recent<K, V> {
    fn new(entries_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half_max: (entries_max / 2).max(1) }
    }

    fn entry(&mut self, key: K) -> &mut V {
        let known = self.old.remove(&key);
        if !self.young.contains_key(&key) && self.young.len() >= self.half_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.entry(key).or_insert_with(|| known.unwrap_or_default())
    }

    fn existing(&mut self, key: &K) -> Option<&mut V> {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: Network = Network::V4([192, 0, 2]);
    const OTHER: Network = Network::V4([198, 51, 100]);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_800_000_000_000 + seconds * 1000)
    }

    #[test]
    fn answers_are_delayed_more_and_more_after_the_free_failures() {
        let settings = Settings { login_failures_free_max: 2, ..Settings::default() };
        let mut failures = Failures::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            delays.push(failures.failed("shop", NETWORK, &settings, at(0)).delay.as_millis());
        }
        assert_eq!(delays, [0, 0, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(failures.failed("shop", OTHER, &settings, at(0)).delay, Duration::ZERO);
        failures.succeeded("shop", NETWORK);
        assert_eq!(failures.failed("shop", NETWORK, &settings, at(0)).delay, Duration::ZERO);
    }

    #[test]
    fn tries_at_the_same_moment_do_not_escape_the_delay() {
        let (settings, mut failures) = (Settings::default(), Failures::default());
        let mut looked_at =
            |at_second| (0..1000).filter(|_| failures.tries("anna", NETWORK, &settings, at(at_second)).is_ok()).count();
        assert_eq!(looked_at(0), 4, "the free ones, and the one whose answer is delayed");
        assert_eq!((looked_at(1), looked_at(2), looked_at(3), looked_at(4)), (1, 1, 0, 1));
        assert_eq!((5..3600).map(&mut looked_at).sum::<usize>(), 360, "one in ten seconds, then");
        let waits = failures.tries("anna", NETWORK, &settings, at(3600)).unwrap_err();
        assert!(waits <= settings.login_delay_max, "{waits:?}");
        assert!(failures.tries("anna", OTHER, &settings, at(3600)).is_ok(), "other networks are not concerned");
        failures.succeeded("anna", NETWORK);
        for _ in 0..1000 {
            assert_eq!(failures.tries("anna", NETWORK, &settings, at(3600)), Ok(Duration::ZERO));
            failures.excused("anna", NETWORK);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_or_ahead_keeps_nobody_out() {
        const DAY: u64 = 86_400;
        const TEN_YEARS: u64 = 3_650 * DAY;
        let settings = Settings { network_failures_max: 10, ..Settings::default() };
        for (before, after) in [(DAY, 0), (TEN_YEARS, 0), (TEN_YEARS, DAY), (0, TEN_YEARS)] {
            for wrong in 1..=20 {
                let mut failures = Failures::default();
                for _ in 0..wrong {
                    failures.failed("anna", NETWORK, &settings, at(before));
                }
                let tried = failures.tries("anna", NETWORK, &settings, at(after));
                assert_eq!(tried, Ok(Duration::ZERO), "{wrong} wrong ones at {before}, then a try at {after}");
                failures.is_slowed(NETWORK, &settings, at(after));
                assert!(!failures.is_slowed(NETWORK, &settings, at(after + 7_200)), "it drains from then on");
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_back_by_seconds_does_not_take_delays_away() {
        let (settings, mut failures) = (Settings::default(), Failures::default());
        let wrong = |failures: &mut Failures, second| failures.failed("anna", NETWORK, &settings, at(second)).delay;
        for _ in 0..20 {
            wrong(&mut failures, 60);
        }
        assert!(failures.tries("anna", NETWORK, &settings, at(61)).is_err());
        assert_eq!(failures.tries("anna", NETWORK, &settings, at(58)), Ok(settings.login_delay_max), "still counted");
    }

    #[test]
    fn a_network_is_slowed_after_its_failures_and_let_in_again_little_by_little() {
        let settings = Settings { network_failures_max: 4, ..Settings::default() };
        let mut failures = Failures::default();
        for count in 0..4 {
            assert!(!failures.is_slowed(NETWORK, &settings, at(0)), "{count}");
            let failed = failures.failed(&format!("login{count}"), NETWORK, &settings, at(0));
            assert_eq!(failed.now_slowed, count == 3);
        }
        assert!(failures.is_slowed(NETWORK, &settings, at(0)));
        assert!(!failures.is_slowed(OTHER, &settings, at(0)), "other networks are not concerned");
        assert!(failures.is_slowed(NETWORK, &settings, at(899)));
        assert!(!failures.is_slowed(NETWORK, &settings, at(900)), "a quarter of an hour frees one of four");
    }

    #[test]
    fn a_flood_of_names_neither_grows_the_memory_nor_clears_the_network() {
        let settings = Settings { network_failures_max: 50, ..Settings::default() };
        let mut failures = Failures::bounded(1000);
        for count in 0..100_000 {
            failures.failed(&format!("login{count}"), NETWORK, &settings, at(0));
        }
        assert!(failures.pairs.len() <= 1000);
        assert!(failures.is_slowed(NETWORK, &settings, at(0)));
    }

    #[test]
    fn a_flood_of_failures_is_told_in_powers_of_two() {
        let mut failures = Failures::default();
        let settings = Settings::default();
        let told = (0..10_000).filter(|_| failures.failed("x", NETWORK, &settings, at(0)).tell).count();
        assert!(told < 25, "{told}");
    }
}
