//! How fast one virtual IP may send to one site just now, by what the site answers. Pure.
//!
//! Trouble lowers rate and connections one step, success raises them step by step, and below the
//! rate at which trouble began the steps are small and far apart: it neither flaps nor stays down.
//! Easy to get wrong: connections that run together meet the same trouble together; that is one
//! incident and one step. A reply that says our address is listed parks the pair altogether.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::UNLIMITED;
use crate::mail::without_addresses;
use crate::queue::QueueTime;

/// Trouble within this after a step is the same incident.
const INCIDENT: Duration = Duration::from_secs(60);
/// A step down keeps this many hundredths of the rate.
const DOWN_PERCENT: u32 = 65;
/// A step up adds one part in so many of the rate, far from trouble...
const UP_PART: u32 = 4;
/// ...and one part in so many near it.
const UP_PART_NEAR: u32 = 20;
/// Near is from so many hundredths of the rate at which trouble began.
const NEAR_PERCENT: u32 = 80;
/// From so many hundredths of that rate on the site takes more than it did then.
const REFUTED_PERCENT: u32 = 115;
/// Time between two steps up.
const PATIENCE_MIN: Duration = Duration::from_secs(5 * 60);
/// The same, after steps up that brought trouble back.
const PATIENCE_MAX: Duration = Duration::from_secs(40 * 60);
/// Messages that must be served between two steps up, at most.
const SERVED_MAX: u32 = 20;
/// A rate that is not used is raised all the same so long after trouble.
const UNUSED_AFTER: Duration = Duration::from_secs(3_600);
/// The rate at which trouble began is believed so long.
const TROUBLE_KEPT: Duration = Duration::from_secs(6 * 3_600);
/// Nothing is sent for so long after a step down; it doubles while nothing is served...
const REST_FIRST: Duration = Duration::from_secs(30);
/// ...up to this.
const REST_MAX: Duration = Duration::from_secs(15 * 60);
/// The first pause after a reply that our address is listed; it doubles with each...
const PARK_FIRST: Duration = Duration::from_secs(15 * 60);
/// ...up to this.
const PARK_MAX: Duration = Duration::from_secs(12 * 3_600);
/// So long after a pause a new one is the first again.
const PARK_REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// Connections that fail in a row before that counts as trouble.
const FAILURES_MAX: u32 = 3;
/// The lowest rate, in messages a minute, of a site without a limit.
const FLOOR_UNLIMITED: u32 = 10;
/// Of a site with a limit: one part in so many of it, at least one.
const FLOOR_PART: u32 = 50;
/// A site without a limit is free again at this rate.
const FREE_FROM: u32 = 6_000;
/// Replies kept for people.
const REPLIES_MAX: usize = 5;
/// Octets kept of a reply.
const REPLY_OCTETS_MAX: usize = 300;

/// What was heard from a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It took so many messages, or answered about recipients as it should.
    Served(u32),
    /// It asked us to slow down, in these words.
    SlowDown(String),
    /// It says our address is listed.
    Listed(String),
    /// It could not be reached.
    Failed(String),
    /// It sent a connection away in these words, which no rule speaks of; it may serve others meanwhile.
    SentAway(String),
}

/// The limits as they stand, and what is done within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// Messages a minute allowed.
    pub rate_max: u32,
    /// Connections allowed.
    pub connections_max: u32,
    /// Messages in the last minute.
    pub rate: u32,
    /// Connections at a time in the last minute.
    pub connections: u32,
}

/// A step that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Down, because of these words.
    Slowed(String),
    /// Up.
    Raised,
    /// Up, and the limits are all that holds it now.
    Recovered,
    /// Nothing is sent until then, because of these words.
    Parked(QueueTime, String),
}

/// A pause because our address is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Park {
    /// Until when.
    pub until: QueueTime,
    /// What was said.
    pub reply: String,
}

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When.
    pub at: QueueTime,
    /// What.
    pub reply: String,
}

/// The pace of one virtual IP towards one site. Stored as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Messages a minute; `None` is as many as the limits say.
    pub rate: Option<u32>,
    /// Connections; `None` is as many as the limits say.
    pub connections: Option<u32>,
    /// Nothing is sent until then, after trouble.
    pub rest: Option<QueueTime>,
    /// Our address is, or was lately, listed.
    pub park: Option<Park>,
    /// What the last step down was for.
    pub cause: Option<String>,
    /// The last words of the site that were trouble, oldest first.
    pub said: VecDeque<Said>,
    trouble: Option<(u32, QueueTime)>,
    slowed: Option<QueueTime>,
    raised: Option<QueueTime>,
    patience_secs: u64,
    served: u32,
    in_a_row: u32,
    failures: u32,
    parks: u32,
    park_ended: Option<QueueTime>,
}

impl Controller {
    /// Whether it holds nothing back.
    pub fn is_idle(&self) -> bool {
        self.rate.is_none() && self.connections.is_none() && self.park.is_none()
    }

    /// Until when nothing is sent at all, and whether that is because our address is listed.
    pub fn pause(&self, now: QueueTime) -> Option<(QueueTime, Pause<'_>)> {
        if let Some(park) = self.park.as_ref().filter(|park| park.until > now) {
            return Some((park.until, Pause::Listed(&park.reply)));
        }
        let rest = self.rest.filter(|until| *until > now)?;
        Some((rest, Pause::Resting(self.cause.as_deref().unwrap_or("trouble"))))
    }

    /// When it was said that our address is listed, if a pause for that was begun.
    pub fn listed_since(&self) -> Option<QueueTime> {
        let park = self.park.as_ref()?;
        Some(park.until.before(doubled(PARK_FIRST, self.parks, PARK_MAX)))
    }

    /// An operator says that it may send at once and as fast as the limits say.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Learns from what was heard.
    pub fn hear(&mut self, signal: Signal, doing: Doing, now: QueueTime) -> Option<Step> {
        match signal {
            Signal::Served(count) => self.served(count, doing, now),
            Signal::SlowDown(reply) => self.slow_down(reply, doing, now),
            Signal::Listed(reply) => self.listed(reply, doing, now),
            Signal::Failed(reason) => self.failed(reason, doing, now),
            Signal::SentAway(reply) => {
                // Served connections between them are no excuse for several in a minute.
                let lately = self.said.iter().filter(|said| now.since(said.at) < INCIDENT).count();
                if u32::try_from(lately).unwrap_or(u32::MAX).saturating_add(1) >= FAILURES_MAX {
                    self.failures = 0;
                    return self.slow_down(reply, doing, now);
                }
                let step = self.failed(reply.clone(), doing, now);
                if step.is_none() {
                    self.remember(&kept_of(&reply), now);
                }
                step
            }
        }
    }

    /// A connection came to nothing. Several in a row mean fewer of them, and one step of the rate until
    /// something is served again: that nobody could be reached says nothing of which rate was too much.
    fn failed(&mut self, reason: String, doing: Doing, now: QueueTime) -> Option<Step> {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return None;
        }
        self.failures = 0;
        self.served = 0;
        if self.slowed.is_some_and(|slowed| now.since(slowed) < INCIDENT) {
            return None;
        }
        let reason = kept_of(&reason);
        self.remember(&reason, now);
        let allowed = self.rate.unwrap_or(doing.rate_max);
        if self.in_a_row == 0 && allowed != UNLIMITED {
            self.rate = Some(lowered(allowed).max(floor(doing.rate_max)).min(allowed));
        }
        // What was open in the last minute is nothing to go by where nothing opens.
        let ran = self.connections.unwrap_or(doing.connections_max).min(doing.connections_max);
        self.connections = Some((ran.saturating_mul(3) / 4).max(1));
        self.stepped_down(reason, now)
    }

    fn slow_down(&mut self, reply: String, doing: Doing, now: QueueTime) -> Option<Step> {
        let reply = kept_of(&reply);
        self.remember(&reply, now);
        self.served = 0;
        if self.slowed.is_some_and(|slowed| now.since(slowed) < INCIDENT) {
            return None;
        }
        let floor = floor(doing.rate_max);
        let allowed = self.rate.unwrap_or(doing.rate_max);
        // What we really did is what was too much, not what we might have done.
        let did = allowed.min(doing.rate.max(floor));
        let rate = lowered(did).max(floor);
        let ran = self.connections.unwrap_or(doing.connections_max).min(doing.connections.max(1));
        self.rate = Some(rate.min(allowed));
        // The rate does most of it; fewer connections are for those who count these.
        self.connections = Some((ran.saturating_mul(3) / 4).max(1));
        self.trouble = Some((did, now));
        self.patience_secs = self.patience_after(now).as_secs();
        self.stepped_down(reply, now)
    }

    fn stepped_down(&mut self, cause: String, now: QueueTime) -> Option<Step> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.rest = Some(now.plus(doubled(REST_FIRST, self.in_a_row, REST_MAX)));
        self.slowed = Some(now);
        self.cause = Some(cause.clone());
        Some(Step::Slowed(cause))
    }

    /// Trouble soon after a step up means that the steps came too fast.
    fn patience_after(&self, now: QueueTime) -> Duration {
        let patience = self.patience();
        match self.raised {
            Some(raised) if now.since(raised) < patience.saturating_mul(2) => {
                patience.saturating_mul(2).min(PATIENCE_MAX)
            }
            _ => patience,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_secs).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    fn listed(&mut self, reply: String, doing: Doing, now: QueueTime) -> Option<Step> {
        let reply = kept_of(&reply);
        self.remember(&reply, now);
        self.served = 0;
        if self.park.as_ref().is_some_and(|park| now < park.until) {
            return None;
        }
        let ended = self.park.as_ref().map(|park| park.until).or(self.park_ended);
        if ended.is_none_or(|ended| now.since(ended) > PARK_REMEMBERED) {
            self.parks = 0;
        }
        self.parks = self.parks.saturating_add(1);
        let until = now.plus(doubled(PARK_FIRST, self.parks, PARK_MAX));
        self.park = Some(Park { until, reply: reply.clone() });
        self.park_ended = Some(until);
        // One connection at the lowest rate shows first whether it is over.
        self.rate = Some(floor(doing.rate_max).min(self.rate.unwrap_or(doing.rate_max)));
        self.connections = Some(1);
        self.slowed = Some(now);
        self.cause = Some(reply.clone());
        Some(Step::Parked(until, reply))
    }

    fn served(&mut self, count: u32, doing: Doing, now: QueueTime) -> Option<Step> {
        if count == 0 {
            return None;
        }
        self.in_a_row = 0;
        self.failures = 0;
        // What was under way when it was parked says nothing about it.
        if self.park.as_ref().is_some_and(|park| now >= park.until) {
            self.park = None;
        }
        let Some(rate) = self.rate else {
            self.served = 0;
            return self.raise_connections(doing, now);
        };
        self.served = self.served.saturating_add(count);
        if !self.may_raise(rate, now) {
            return None;
        }
        let trouble = self.trouble.filter(|(_, at)| now.since(*at) < TROUBLE_KEPT);
        let is_near =
            trouble.is_some_and(|(trouble, _)| u64::from(rate) * 100 >= u64::from(trouble) * u64::from(NEAR_PERCENT));
        let part = if is_near { UP_PART_NEAR } else { UP_PART };
        if trouble.is_some_and(|(trouble, _)| u64::from(rate) * 100 > u64::from(trouble) * u64::from(REFUTED_PERCENT)) {
            // It takes more than it did: what was learnt there holds no longer.
            (self.trouble, self.patience_secs) = (None, 0);
        }
        let next = rate.saturating_add((rate / part).max(1));
        if self.slowed.is_some_and(|slowed| now.since(slowed) > self.patience().saturating_mul(3)) {
            self.patience_secs /= 2;
        }
        self.stepped(now);
        let is_free = next >= doing.rate_max || (doing.rate_max == UNLIMITED && next >= FREE_FROM);
        // A rate that is not used says nothing of whether more would be taken.
        let is_used = u64::from(doing.rate) * 4 >= u64::from(rate) * 3;
        if is_used || self.slowed.is_none_or(|slowed| now.since(slowed) > UNUSED_AFTER) {
            self.rate = if is_free { None } else { Some(next) };
        }
        self.more_connections(doing);
        if self.rate.is_none() && self.connections.is_none() {
            return Some(self.recovered());
        }
        Some(Step::Raised)
    }

    fn raise_connections(&mut self, doing: Doing, now: QueueTime) -> Option<Step> {
        self.connections?;
        if !self.may_raise(0, now) {
            return None;
        }
        self.stepped(now);
        self.more_connections(doing);
        Some(if self.connections.is_none() { self.recovered() } else { Step::Raised })
    }

    fn may_raise(&self, rate: u32, now: QueueTime) -> bool {
        let since = [self.slowed, self.raised, self.park_ended].into_iter().flatten().max();
        let is_time = since.is_none_or(|since| now >= since && now.since(since) >= self.patience());
        is_time && self.served >= rate.clamp(1, SERVED_MAX).min(rate)
    }

    fn stepped(&mut self, now: QueueTime) {
        self.served = 0;
        self.rest = None;
        self.raised = Some(now);
    }

    fn more_connections(&mut self, doing: Doing) {
        if let Some(connections) = self.connections {
            let next = connections.saturating_add((connections / 2).max(1));
            self.connections = (next < doing.connections_max).then_some(next);
        }
    }

    fn recovered(&mut self) -> Step {
        self.cause = None;
        self.said.clear();
        Step::Recovered
    }

    fn remember(&mut self, reply: &str, at: QueueTime) {
        if self.said.len() >= REPLIES_MAX {
            self.said.pop_front();
        }
        self.said.push_back(Said { at, reply: reply.to_owned() });
    }
}

/// Why nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause<'a> {
    /// Our address is listed, in these words.
    Listed(&'a str),
    /// A short rest after trouble.
    Resting(&'a str),
}

/// The lowest rate a controller goes to.
pub fn floor(rate_max: u32) -> u32 {
    if rate_max == UNLIMITED { FLOOR_UNLIMITED } else { (rate_max / FLOOR_PART).max(1) }
}

/// A step down from that rate.
fn lowered(rate: u32) -> u32 {
    (u64::from(rate) * u64::from(DOWN_PERCENT) / 100).try_into().unwrap_or(rate)
}

/// `first` doubled for each after the first, up to `most`.
fn doubled(first: Duration, count: u32, most: Duration) -> Duration {
    let doublings = count.saturating_sub(1).min(20);
    first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(most)
}

/// What is kept of a reply: its beginning, without addresses. It belongs to no message that could be erased.
fn kept_of(reply: &str) -> String {
    let reply = &*without_addresses(reply);
    let cut = (0..=REPLY_OCTETS_MAX.min(reply.len())).rev().find(|at| reply.is_char_boundary(*at)).unwrap_or(0);
    reply.get(..cut).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn doing(rate_max: u32, rate: u32) -> Doing {
        Doing { rate_max, connections_max: 10, rate, connections: 8 }
    }

    fn slow(controller: &mut Controller, rate: u32, minute: u64) -> Option<Step> {
        controller.hear(Signal::SlowDown("421 4.7.28 slow".into()), doing(600, rate), QueueTime(minute * MINUTE))
    }

    #[test]
    fn trouble_lowers_rate_and_connections_once_for_each_incident_and_never_below_the_floor() {
        let mut controller = Controller::default();
        assert_eq!(slow(&mut controller, 400, 1), Some(Step::Slowed("421 4.7.28 slow".into())));
        assert_eq!((controller.rate, controller.connections), (Some(260), Some(6)));
        for _ in 0..10 {
            assert_eq!(slow(&mut controller, 400, 1), None);
        }
        assert_eq!(controller.rate, Some(260));
        for minute in 2..60 {
            let rate = controller.rate.unwrap();
            slow(&mut controller, rate, minute * 2);
        }
        assert_eq!((controller.rate, controller.connections), (Some(12), Some(1)));
        assert!(controller.said.len() <= REPLIES_MAX);
    }

    #[test]
    fn a_rest_after_trouble_grows_until_something_is_served() {
        let mut controller = Controller::default();
        let mut rests = Vec::new();
        for step in 1..8 {
            let now = QueueTime(step * 20 * MINUTE);
            slow(&mut controller, 100, step * 20);
            rests.push(controller.pause(now).unwrap().0.since(now).as_secs());
        }
        assert_eq!(rests, [30, 60, 120, 240, 480, 900, 900]);
        controller.hear(Signal::Served(1), doing(600, 10), QueueTime(200 * MINUTE));
        slow(&mut controller, 100, 201);
        assert_eq!(controller.rest, Some(QueueTime(201 * MINUTE + 30_000)));
    }

    #[test]
    fn success_raises_step_by_step_with_small_steps_near_the_trouble_until_the_limits_hold_alone() {
        let mut controller = Controller::default();
        slow(&mut controller, 400, 0);
        let (mut rates, mut steps) = (vec![260], Vec::new());
        for minute in 1..1_000 {
            let rate = controller.rate.unwrap_or(600);
            let heard = controller.hear(Signal::Served(rate), doing(600, rate), QueueTime(minute * MINUTE));
            if let Some(step) = heard {
                steps.push((minute, step));
                rates.extend(controller.rate);
            }
        }
        assert_eq!(steps.last().map(|(_, step)| step.clone()), Some(Step::Recovered), "{steps:?}");
        assert!(rates.windows(2).all(|pair| pair[1] > pair[0] && pair[1] <= pair[0] * 5 / 4 + 1), "{rates:?}");
        let near: Vec<_> = rates.windows(2).filter(|pair| pair[0] >= 320).collect();
        assert!(near[0][1] - near[0][0] <= near[0][0] / 20 + 1, "{near:?}");
        assert!(steps.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 5), "{steps:?}");
        assert!(controller.is_idle());
    }

    #[test]
    fn trouble_that_comes_back_makes_it_wait_longer_before_the_next_step() {
        let mut controller = Controller::default();
        // A site that takes 300 a minute and not one more.
        let (mut troubles, mut sent) = (Vec::new(), 0_u64);
        for minute in 0..24 * 60 {
            let now = QueueTime(minute * MINUTE);
            let rate = controller.rate.unwrap_or(600);
            if rate > 300 {
                slow(&mut controller, rate, minute);
                troubles.push(minute);
            }
            if controller.pause(now).is_none() {
                let served = rate.min(300);
                sent += u64::from(served);
                controller.hear(Signal::Served(served), doing(600, served), now);
            }
        }
        let day_max = 300 * 24 * 60;
        assert!(sent * 100 / day_max >= 75, "it does not stay down: {}%", sent * 100 / day_max);
        let late = troubles.iter().filter(|minute| **minute > 12 * 60).count();
        assert!(late <= 20, "it does not flap: {late} in the second half of the day");
    }

    #[test]
    fn a_listed_address_is_parked_with_growing_pauses_and_comes_back_slowly() {
        let mut controller = Controller::default();
        let mut now = QueueTime(0);
        let listed = |controller: &mut Controller, now| {
            controller.hear(Signal::Listed("550 listed".into()), doing(600, 100), now)
        };
        for minutes in [15, 30, 60, 120, 240, 480, 720, 720] {
            let until = now.plus(Duration::from_secs(minutes * 60));
            assert_eq!(listed(&mut controller, now), Some(Step::Parked(until, "550 listed".into())));
            assert_eq!(listed(&mut controller, now), None, "it is parked already");
            assert_eq!(controller.pause(now), Some((until, Pause::Listed("550 listed"))));
            assert_eq!(controller.listed_since(), Some(now));
            now = until;
            assert_eq!(controller.pause(now), None);
            assert_eq!((controller.rate, controller.connections), (Some(12), Some(1)));
        }
        controller.hear(Signal::Served(1), doing(600, 1), now);
        assert_eq!(controller.park, None);
        now = now.plus(Duration::from_secs(25 * 3_600));
        let until = now.plus(PARK_FIRST);
        assert_eq!(listed(&mut controller, now), Some(Step::Parked(until, "550 listed".into())));
    }

    #[test]
    fn single_failures_are_nothing_and_several_in_a_row_are_trouble() {
        let mut controller = Controller::default();
        let fail = |controller: &mut Controller| {
            controller.hear(Signal::Failed("refused".into()), doing(600, 100), QueueTime(MINUTE))
        };
        assert_eq!((fail(&mut controller), fail(&mut controller)), (None, None));
        controller.hear(Signal::Served(1), doing(600, 1), QueueTime(0));
        assert_eq!((fail(&mut controller), fail(&mut controller)), (None, None));
        assert_eq!(fail(&mut controller), Some(Step::Slowed("refused".into())));
    }

    #[test]
    fn an_outage_of_our_own_line_costs_one_step_of_the_rate_and_is_made_up_for_within_half_an_hour() {
        let mut controller = Controller::default();
        let (mut sent, mut free) = (Vec::new(), None);
        for minute in 0..60_u64 {
            let now = QueueTime(minute * MINUTE);
            let doing = |rate, connections| Doing { rate_max: 1_200, connections_max: 10, rate, connections };
            if (10..14).contains(&minute) {
                for _ in 0..3 {
                    // Nothing was sent any more: the last minute says nothing.
                    controller.hear(Signal::Failed("unreachable".into()), doing(0, 0), now);
                }
                assert_eq!(controller.rate, Some(780), "minute {minute}");
            }
            let allowed = controller.rate.unwrap_or(1_200).min(900);
            let may = !(10..14).contains(&minute) && controller.pause(now).is_none();
            sent.push(if may { allowed } else { 0 });
            if may {
                let connections = controller.connections.unwrap_or(10);
                controller.hear(Signal::Served(allowed), doing(allowed, connections), now);
            }
            if minute > 14 && controller.is_idle() {
                free.get_or_insert(minute);
            }
        }
        assert!(sent[25..].iter().all(|minute| *minute == 900), "{sent:?}");
        assert!(free.is_some_and(|free| free <= 14 + 30), "{free:?}");
    }

    #[test]
    fn a_site_that_sends_connections_away_while_it_serves_others_is_slowed_down() {
        let mut controller = Controller::default();
        let away = |controller: &mut Controller, secs: u64| {
            controller.hear(
                Signal::SentAway("421 bye (after greeting)".into()),
                doing(600, 400),
                QueueTime(secs * 1_000),
            )
        };
        for secs in 0..10 {
            assert_eq!(away(&mut controller, secs * 40), None, "now and then is nothing");
            controller.hear(Signal::Served(50), doing(600, 400), QueueTime(secs * 40_000));
        }
        assert!(controller.is_idle());
        assert_eq!(away(&mut controller, 1_000), None);
        controller.hear(Signal::Served(50), doing(600, 400), QueueTime(1_000_000));
        assert_eq!(away(&mut controller, 1_010), None);
        controller.hear(Signal::Served(50), doing(600, 400), QueueTime(1_011_000));
        assert_eq!(away(&mut controller, 1_020), Some(Step::Slowed("421 bye (after greeting)".into())));
        assert_eq!((controller.rate, controller.connections), (Some(260), Some(6)));
    }

    #[test]
    fn a_site_without_a_limit_is_slowed_from_what_it_really_got() {
        let mut controller = Controller::default();
        controller.hear(Signal::SlowDown("421".into()), doing(UNLIMITED, 1_000), QueueTime(0));
        assert_eq!(controller.rate, Some(650));
        let mut other = Controller::default();
        other.hear(Signal::SlowDown("421".into()), doing(UNLIMITED, 0), QueueTime(0));
        assert_eq!(other.rate, Some(FLOOR_UNLIMITED));
    }

    #[test]
    fn what_is_stored_reads_back_the_same() {
        let mut controller = Controller::default();
        slow(&mut controller, 400, 1);
        let bytes = crate::store::codec::encode(&controller);
        assert_eq!(crate::store::codec::decode::<Controller>(&bytes).unwrap(), controller);
    }
}
