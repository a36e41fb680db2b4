//! How many connections a site may get from one virtual IP, and when. Pure: time is a value.
//!
//! [`Shaper`] knows each group of MX hosts and whether it can be reached; [`Pacer`] knows whose
//! mailboxes these are (a provider, where one is recognised), what it may be sent, and what it says
//! to that. A job needs a yes from both.
//! They refuse to know lanes, hosts and sockets. Easy to get wrong: what is counted is granted
//! permits, not open sockets, so every permit must come back: [`Shaper::finished`] or
//! [`Shaper::returned`], and [`Pacer::finished`].

mod bucket;
mod controller;
mod gate;
mod limits;
mod pacer;
mod providers;
mod turns;
mod warmup;

#[cfg(test)]
#[path = "shaping/model_tests.rs"]
mod model;
#[cfg(test)]
#[path = "shaping/plot_tests.rs"]
mod plot;
#[cfg(test)]
#[path = "shaping/simulation_tests.rs"]
mod simulation;

pub use controller::{Controller, Park, Said, Signal, Step};
pub use gate::Quota;
pub use limits::{
    Bound, Knob, LOGIN_MARK, LimitSet, Origin, Override, Part, Resolved, Scope as LimitScope, Target, UNLIMITED,
    is_called,
};
pub use pacer::{Answer, Ask, Hold, Memory, Pacer, Permit, Picture};
pub use providers::{Provider, Providers};
pub use warmup::{DAY as WARMUP_DAY, Day, Judged, LADDER, Warmup};

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::mail::{Class, VipId};

/// Who is paced: a site as one virtual IP sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// The site's name: its sorted MX hosts; for the [`Pacer`] the provider's, where there is one.
    pub site: std::sync::Arc<str>,
    /// The virtual IP.
    pub vip: VipId,
}

/// Limits of shaping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections from one virtual IP to one site, at most.
    pub connections_max: usize,
    /// The pause after the first failed connection.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

/// What waits for a site, and how many connections that may get at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Messages known to be ready.
    pub messages: usize,
    /// Connections.
    pub connections_max: usize,
}

/// The answer to "one more connection?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes; the permit is counted from now on.
    Admitted,
    /// There are as many as the backlog deserves; ask again when one finished.
    Enough,
    /// Not before this moment, for this reason.
    Wait(Instant, String),
}

/// How a permit was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// The peer was reached and served us.
    Served,
    /// It could not be reached, or sent us away, for this reason.
    Failed(String),
    /// It takes no further connection while it serves those that run.
    Crowded,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    failures: u32,
    pause: Option<(Instant, String)>,
    ceiling: Option<(usize, Instant)>,
    touched: Option<Instant>,
}

/// The pace of every site. One owner, no lock.
#[derive(Debug)]
pub struct Shaper {
    limits: Limits,
    paths: HashMap<Path, State>,
}

/// A path without connections and failures is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

impl Shaper {
    /// A shaper that knows no site yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, paths: HashMap::new() }
    }

    /// Other limits from now on; what runs keeps running.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether one more connection may be made for a backlog of so many messages.
    pub fn admit(&mut self, path: &Path, class: Class, waiting: Backlog, now: Instant) -> Admission {
        let Backlog { messages: backlog, connections_max } = waiting;
        let state = self.state(path);
        if let Some((until, reason)) = &state.pause
            && now < *until
        {
            return Admission::Wait(*until, reason.clone());
        }
        // After a pause one connection shows first whether the site is back.
        let allowed = if state.failures > 0 { 1 } else { allowance(backlog, class, connections_max) };
        let ceiling = state.ceiling.filter(|(_, until)| now < *until).map_or(usize::MAX, |(most, _)| most);
        if state.running >= allowed.min(ceiling) {
            return Admission::Enough;
        }
        state.running = state.running.saturating_add(1);
        state.touched = Some(now);
        Admission::Admitted
    }

    /// A permit comes back, with news of the peer.
    pub fn finished(&mut self, path: &Path, used: Use, now: Instant) {
        let limits = self.limits;
        let state = self.state(path);
        state.running = state.running.saturating_sub(1);
        state.touched = Some(now);
        match used {
            Use::Served => {
                state.failures = 0;
                state.pause = None;
            }
            Use::Crowded => state.ceiling = Some((state.running.max(1), at(now, limits.pause_first))),
            Use::Failed(reason) => {
                // Connections that were made together fail together: that is one failure.
                if state.pause.as_ref().is_none_or(|(until, _)| *until <= now) {
                    state.failures = state.failures.saturating_add(1);
                }
                state.pause = Some((at(now, pause(state.failures, &limits)), reason));
            }
        }
    }

    /// A permit comes back without news: nothing was tried.
    pub fn returned(&mut self, path: &Path) {
        let state = self.state(path);
        state.running = state.running.saturating_sub(1);
    }

    /// Whether nothing is sent there for now, because it could not be reached.
    pub fn pauses(&self, path: &Path, now: Instant) -> bool {
        let pause = self.paths.get(path).and_then(|state| state.pause.as_ref());
        pause.is_some_and(|(until, _)| now < *until)
    }

    /// How many permits of that path are out.
    pub fn running(&self, path: &Path) -> usize {
        self.paths.get(path).map_or(0, |state| state.running)
    }

    /// Forgets paths that have been quiet for an hour, so that memory follows what is used.
    pub fn forget_quiet(&mut self, now: Instant) {
        self.paths.retain(|_, state| {
            let is_quiet = state.touched.is_none_or(|touched| now.duration_since(touched) > FORGET_AFTER);
            state.running > 0 || !is_quiet
        });
    }

    /// Ends the pause of every path of a site, because an operator said so.
    pub fn resume(&mut self, site: &str) {
        for (_, state) in self.paths.iter_mut().filter(|(path, _)| is_called(&path.site, site)) {
            state.pause = None;
            state.failures = 0;
        }
    }

    fn state(&mut self, path: &Path) -> &mut State {
        self.paths.entry(path.clone()).or_default()
    }
}

/// Connections for a backlog: few for a small one, close to the cap from about a hundred messages
/// on (cap x (1 - e^(-0.023 n))), never more than messages. Marketing leaves a fifth of the cap to
/// transactional mail.
pub fn allowance(backlog: usize, class: Class, connections_max: usize) -> usize {
    let most = match class {
        Class::Transactional => connections_max,
        Class::Marketing => connections_max.saturating_sub(connections_max / 5),
    };
    let most = u16::try_from(most.max(1)).unwrap_or(u16::MAX);
    let messages = u16::try_from(backlog).unwrap_or(u16::MAX);
    let share = 1.0 - (-0.023 * f64::from(messages)).exp();
    let wanted = (f64::from(most) * share).ceil().clamp(0.0, f64::from(most));
    // In range by the clamp above.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=u16::MAX")]
    let wanted = wanted as usize;
    wanted.min(backlog).max(1)
}

/// Doubles from `pause_first` to `pause_max`.
fn pause(failures: u32, limits: &Limits) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    limits.pause_first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(limits.pause_max)
}

fn at(now: Instant, span: Duration) -> Instant {
    now.checked_add(span).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { connections_max: 10, pause_first: Duration::from_secs(30), pause_max: Duration::from_secs(600) };

    fn ready(messages: usize) -> Backlog {
        Backlog { messages, connections_max: LIMITS.connections_max }
    }

    fn path(site: &str) -> Path {
        Path { site: site.into(), vip: VipId(1) }
    }

    #[test]
    fn connections_follow_the_backlog_up_to_the_cap() {
        for (backlog, expected) in [(0, 1), (1, 1), (10, 3), (50, 7), (128, 10), (1_000_000, 10)] {
            assert_eq!(allowance(backlog, Class::Transactional, 10), expected, "{backlog}");
        }
        assert_eq!(allowance(1_000, Class::Marketing, 10), 8);
        assert_eq!(allowance(1_000, Class::Marketing, 1), 1);
    }

    #[test]
    fn a_site_gets_no_more_connections_than_its_cap_from_one_virtual_ip() {
        let (mut shaper, now) = (Shaper::new(LIMITS), Instant::now());
        for _ in 0..10 {
            assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
        }
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Enough);
        let other = Path { site: "a".into(), vip: VipId(2) };
        assert_eq!(shaper.admit(&other, Class::Transactional, ready(500), now), Admission::Admitted);
        shaper.finished(&path("a"), Use::Served, now);
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
    }

    #[test]
    fn failures_pause_a_site_longer_each_time_and_one_connection_probes_it() {
        let (mut shaper, mut now) = (Shaper::new(LIMITS), Instant::now());
        for secs in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
            assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(0), now), Admission::Enough);
            shaper.finished(&path("a"), Use::Failed("refused".to_owned()), now);
            let until = now + Duration::from_secs(secs);
            let waiting = Admission::Wait(until, "refused".to_owned());
            assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), waiting);
            now = until;
        }
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
        shaper.finished(&path("a"), Use::Served, now);
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
    }

    #[test]
    fn connections_that_fail_together_count_once() {
        let (mut shaper, now) = (Shaper::new(LIMITS), Instant::now());
        for _ in 0..5 {
            shaper.admit(&path("a"), Class::Transactional, ready(500), now);
        }
        for _ in 0..5 {
            shaper.finished(&path("a"), Use::Failed("x".to_owned()), now);
        }
        let waiting = Admission::Wait(now + Duration::from_secs(30), "x".to_owned());
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(1), now), waiting);
    }

    #[test]
    fn a_site_that_refuses_one_connection_more_keeps_those_it_serves() {
        let (mut shaper, now) = (Shaper::new(LIMITS), Instant::now());
        for _ in 0..4 {
            shaper.admit(&path("a"), Class::Transactional, ready(500), now);
        }
        shaper.finished(&path("a"), Use::Crowded, now);
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Enough);
        shaper.finished(&path("a"), Use::Served, now);
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), now), Admission::Admitted);
        let later = now + LIMITS.pause_first;
        assert_eq!(shaper.admit(&path("a"), Class::Transactional, ready(500), later), Admission::Admitted);
    }

    #[test]
    fn quiet_paths_are_forgotten() {
        let (mut shaper, now) = (Shaper::new(LIMITS), Instant::now());
        shaper.admit(&path("a"), Class::Transactional, ready(1), now);
        shaper.forget_quiet(now + Duration::from_secs(9_000));
        assert_eq!(shaper.running(&path("a")), 1);
        shaper.finished(&path("a"), Use::Served, now);
        shaper.forget_quiet(now + Duration::from_secs(9_000));
        assert!(shaper.paths.is_empty());
    }
}
