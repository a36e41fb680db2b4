//! The time by which things are done that cannot be undone: forgetting, deleting, giving up.
//!
//! A wall clock that is set ten years ahead must not delete in one round what was to be kept for thirty
//! days. So the calendar goes on with the monotonic clock; a wall clock that leaves it by more than an
//! hour is believed only after it went on evenly for three days. Until then whoever removes something
//! asks [`Calendar::cap`]. Easy to get wrong: a wall clock that is behind needs no such care, since it
//! removes too little; and what is begun (retries, sessions, dates in mail) goes by the wall clock as ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;

/// A wall clock this close to the calendar is right: it is corrected, or drifts.
pub const SLACK: Duration = Duration::from_secs(60 * 60);
/// A wall clock that left the calendar is believed once it went on evenly for so long.
pub const PROBATION: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// Of the time the daemon was down so much is believed at once: less than anything is kept.
pub const DOWNTIME_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// What is stored now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The calendar.
    pub believed: Timestamp,
    /// The wall clock at the same moment.
    pub wall: Timestamp,
    /// How long that wall clock has gone on evenly, in milliseconds, if it is in doubt.
    pub even_ms: Option<u64>,
}

/// A wall clock that is not believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Where it stands.
    pub wall: Timestamp,
    /// What is believed instead.
    pub believed: Timestamp,
    /// When it will be believed, if it goes on evenly.
    pub believed_in: Duration,
}

impl Doubt {
    /// One sentence for people.
    pub fn words(&self) -> String {
        let (apart, side) =
            (self.wall.apart(self.believed), if self.wall > self.believed { "ahead" } else { "behind" });
        format!(
            "the clock was set: it says {}, {} {side} of the time that passed; nothing is deleted on its word for \
             another {}; if it is wrong, set it right",
            self.wall,
            rounded(apart),
            rounded(self.believed_in)
        )
    }
}

fn rounded(span: Duration) -> String {
    match span.as_secs().div_ceil(3_600) {
        hours @ 0..=72 => format!("{hours} h"),
        hours => format!("{} days", hours.div_ceil(24)),
    }
}

/// The calendar, shared by all rooms. The default believes every wall clock.
#[derive(Clone, Debug, Default)]
pub struct Calendar(Option<Arc<Running>>);

#[derive(Debug)]
struct Running {
    since: Instant,
    reckoning: Mutex<Reckoning>,
}

impl Calendar {
    /// Goes on from what was stored; from the wall clock if nothing was.
    pub fn resume(kept: Option<Kept>, wall: Timestamp) -> Self {
        let (since, reckoning) = (Instant::now(), Mutex::new(Reckoning::resume(kept, wall)));
        Self(Some(Arc::new(Running { since, reckoning })))
    }

    /// `now` by the wall clock, or what is believed if that is much earlier: by this moment things may lapse.
    pub fn cap(&self, now: Timestamp) -> Timestamp {
        self.with(|reckoning, elapsed| reckoning.cap(now, elapsed)).unwrap_or(now)
    }

    /// Looks at the wall clock; to be called every minute or so. Says in the log when it ceases to be believed,
    /// and when it is believed again. What is to be stored.
    pub fn look(&self, wall: Timestamp) -> Option<Kept> {
        self.with(|reckoning, elapsed| {
            let before = reckoning.doubt.is_some();
            reckoning.look(wall, elapsed);
            match (before, reckoning.doubted(wall, elapsed)) {
                (false, Some(doubt)) => tracing::warn!("{}", doubt.words()),
                (true, None) => tracing::info!(%wall, "the clock is believed again"),
                _ => {}
            }
            reckoning.kept(wall, elapsed)
        })
    }

    /// The doubt about the wall clock, if there is any.
    pub fn doubt(&self, wall: Timestamp) -> Option<Doubt> {
        self.with(|reckoning, elapsed| reckoning.doubted(wall, elapsed)).flatten()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Reckoning, Duration) -> T) -> Option<T> {
        let running = self.0.as_ref()?;
        let mut reckoning = running.reckoning.lock().unwrap_or_else(PoisonError::into_inner);
        Some(work(&mut reckoning, running.since.elapsed()))
    }
}

/// Where a wall clock in doubt stood, by which it is seen whether it goes on evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    wall: Timestamp,
    at: Duration,
    /// How long it had gone on evenly at an earlier run.
    before: Duration,
}

/// Pure: wall clock and time since the start are values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reckoning {
    /// The calendar at `at`; it goes on from there.
    base: Timestamp,
    at: Duration,
    doubt: Option<Seen>,
}

impl Reckoning {
    fn resume(kept: Option<Kept>, wall: Timestamp) -> Self {
        let Some(kept) = kept else { return Self { base: wall, at: Duration::ZERO, doubt: None } };
        let downtime = wall.since(kept.wall).min(DOWNTIME_MAX);
        let is_even = wall >= kept.wall && wall.since(kept.wall) <= DOWNTIME_MAX;
        let before = kept.even_ms.filter(|_| is_even).map(Duration::from_millis);
        let doubt = before.map(|before| Seen { wall, at: Duration::ZERO, before });
        Self { base: kept.believed.plus(downtime), at: Duration::ZERO, doubt }
    }

    fn reckoned(&self, elapsed: Duration) -> Timestamp {
        self.base.plus(elapsed.saturating_sub(self.at))
    }

    fn cap(&self, now: Timestamp, elapsed: Duration) -> Timestamp {
        let reckoned = self.reckoned(elapsed);
        if now.since(reckoned) <= SLACK { now } else { reckoned }
    }

    fn look(&mut self, wall: Timestamp, elapsed: Duration) {
        let even = self.doubt.filter(|seen| wall.apart(seen.expected(elapsed)) <= SLACK);
        let is_right = wall.apart(self.reckoned(elapsed)) <= SLACK;
        if is_right || even.is_some_and(|seen| seen.even_for(elapsed) >= PROBATION) {
            *self = Self { base: wall, at: elapsed, doubt: None };
        } else {
            self.doubt = Some(even.unwrap_or(Seen { wall, at: elapsed, before: Duration::ZERO }));
        }
    }

    fn doubted(&self, wall: Timestamp, elapsed: Duration) -> Option<Doubt> {
        let believed = self.reckoned(elapsed);
        let even_for = self.doubt.map_or(Duration::ZERO, |seen| seen.even_for(elapsed));
        let doubt = Doubt { wall, believed, believed_in: PROBATION.saturating_sub(even_for) };
        (wall.apart(believed) > SLACK).then_some(doubt)
    }

    fn kept(&self, wall: Timestamp, elapsed: Duration) -> Kept {
        let even_ms = self.doubt.map(|seen| u64::try_from(seen.even_for(elapsed).as_millis()).unwrap_or(u64::MAX));
        Kept { believed: self.reckoned(elapsed), wall, even_ms }
    }
}

impl Seen {
    fn expected(&self, elapsed: Duration) -> Timestamp {
        self.wall.plus(elapsed.saturating_sub(self.at))
    }

    fn even_for(&self, elapsed: Duration) -> Duration {
        self.before.saturating_add(elapsed.saturating_sub(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_795_342_500_000);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);
    const TEN_YEARS: Duration = Duration::from_secs(3_650 * 86_400);

    fn back(at: Timestamp, span: Duration) -> Timestamp {
        Timestamp(at.0 - u64::try_from(span.as_millis()).unwrap())
    }

    /// A machine whose wall clock and time since the start are turned by hand; it looks every minute.
    struct Machine {
        reckoning: Reckoning,
        wall: Timestamp,
        elapsed: Duration,
    }

    impl Machine {
        fn new() -> Self {
            Self { reckoning: Reckoning::resume(None, START), wall: START, elapsed: Duration::ZERO }
        }

        fn passes(&mut self, span: Duration) {
            let end = self.elapsed + span;
            while self.elapsed < end {
                self.elapsed += MINUTE;
                self.wall = self.wall.plus(MINUTE);
                self.reckoning.look(self.wall, self.elapsed);
            }
        }

        fn cap(&self) -> Timestamp {
            self.reckoning.cap(self.wall, self.elapsed)
        }

        fn doubt(&self) -> Option<Doubt> {
            self.reckoning.doubted(self.wall, self.elapsed)
        }

        fn restarts(&mut self) {
            let kept = self.reckoning.kept(self.wall, self.elapsed);
            self.elapsed = Duration::ZERO;
            self.reckoning = Reckoning::resume(Some(kept), self.wall);
        }
    }

    #[test]
    fn a_clock_that_goes_on_or_is_corrected_a_little_is_followed() {
        let mut machine = Machine::new();
        for _ in 0..10 {
            machine.passes(DAY);
            machine.wall = machine.wall.plus(HOUR / 2);
            assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None));
            machine.passes(HOUR);
            machine.wall = back(machine.wall, HOUR / 2);
            assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None));
        }
    }

    #[test]
    fn a_jump_ahead_counts_for_nothing_until_the_clock_went_on_evenly_for_three_days() {
        for jump in [2 * HOUR, DAY, TEN_YEARS] {
            let mut machine = Machine::new();
            machine.wall = machine.wall.plus(jump);
            assert_eq!(machine.cap(), START, "at once, before anybody looked");
            machine.passes(PROBATION - HOUR);
            assert_eq!(machine.cap(), START.plus(PROBATION - HOUR));
            let doubt = machine.doubt().unwrap();
            assert!(doubt.believed_in <= HOUR + MINUTE && doubt.wall.since(doubt.believed) == jump, "{doubt:?}");
            machine.passes(HOUR + MINUTE);
            assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None));
        }
    }

    #[test]
    fn a_clock_set_back_is_followed_at_once_and_its_return_is_no_jump() {
        let mut machine = Machine::new();
        machine.wall = back(machine.wall, DAY);
        machine.passes(HOUR);
        assert_eq!(machine.cap(), machine.wall);
        assert!(machine.doubt().unwrap().words().contains("24 h behind"), "{:?}", machine.doubt());
        machine.wall = machine.wall.plus(DAY);
        machine.passes(MINUTE);
        assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None));
        machine.wall = back(machine.wall, DAY);
        machine.passes(PROBATION + MINUTE);
        assert_eq!(machine.doubt(), None, "a clock that stays back becomes the calendar");
    }

    #[test]
    fn a_clock_that_keeps_jumping_is_never_believed() {
        let mut machine = Machine::new();
        for _ in 0..20 {
            machine.wall = machine.wall.plus(TEN_YEARS);
            machine.passes(2 * DAY);
        }
        assert_eq!(machine.cap(), START.plus(40 * DAY));
    }

    #[test]
    fn a_restart_counts_half_a_day_at_most_and_does_not_begin_the_three_days_anew() {
        let mut machine = Machine::new();
        machine.wall = machine.wall.plus(HOUR * 12);
        machine.reckoning = Reckoning::resume(Some(machine_kept(START)), machine.wall);
        assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None), "half a day of downtime");
        machine.wall = START.plus(TEN_YEARS);
        machine.reckoning = Reckoning::resume(Some(machine_kept(START)), machine.wall);
        assert_eq!(machine.cap(), START.plus(DOWNTIME_MAX));
        machine.passes(2 * DAY);
        machine.restarts();
        machine.passes(DAY - HOUR);
        assert!(machine.doubt().is_some());
        machine.restarts();
        machine.passes(HOUR + 2 * MINUTE);
        assert_eq!((machine.cap(), machine.doubt()), (machine.wall, None));
    }

    fn machine_kept(at: Timestamp) -> Kept {
        Kept { believed: at, wall: at, even_ms: None }
    }

    #[test]
    fn the_default_believes_every_clock_and_a_running_one_only_its_own() {
        let later = START.plus(TEN_YEARS);
        let (trusting, running) = (Calendar::default(), Calendar::resume(None, START));
        assert_eq!((trusting.cap(later), trusting.look(later), trusting.doubt(later)), (later, None, None));
        assert!(running.cap(later) < START.plus(DAY));
        assert_eq!(running.cap(START), START);
        let kept = running.look(later).unwrap();
        assert!(kept.believed < START.plus(DAY) && kept.even_ms.is_some(), "{kept:?}");
        let words = running.doubt(later).unwrap().words();
        assert!(words.contains("3650 days ahead"), "{words}");
    }
}
