//! Warming a virtual IP: so many messages a day to one site, more each day that went well. Pure.
//!
//! Easy to get wrong: what is counted is what was allowed, not what was delivered, so that a day
//! never holds more than its step; and the count that is stored runs ahead of the true one, so that
//! a crash cannot make a day begin again.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::queue::QueueTime;

/// Messages a day, step by step.
pub const LADDER: [u32; 13] = [50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 25_000, 50_000, 100_000, 200_000];
/// Steps of a ladder, at most.
pub const STEPS_MAX: usize = 60;
/// One step's day, by the queue's clock.
pub const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Thousandths of the messages that may meet trouble on a day that went well.
const TROUBLE_WELL: u64 = 50;
/// From so many thousandths on the next day is a step back.
const TROUBLE_BACK: u64 = 150;
/// From so many thousandths of complaints on the next day is a step back.
const COMPLAINTS_BACK: u64 = 3;
/// Days kept for people.
const DAYS_KEPT: usize = 30;
/// The stored count runs ahead by one part in so many of the step.
const AHEAD_PART: u32 = 20;

/// What a day came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Judged {
    /// The next step.
    Advance,
    /// The same again.
    Hold,
    /// A step back.
    Back,
}

/// A day that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// Messages allowed on it.
    pub allowed: u32,
    /// Messages sent.
    pub sent: u32,
    /// Answers that were trouble.
    pub trouble: u32,
    /// Complaints that came in.
    pub complaints: u32,
    /// What followed.
    pub judged: Judged,
}

/// A virtual IP being warmed for one site. Stored as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmup {
    ladder: Vec<u32>,
    step: u32,
    began: QueueTime,
    sent: u32,
    trouble: u32,
    complaints: u32,
    listed: bool,
    /// Messages of today that left by other virtual IPs: complaints about them count here, so they do too. Not
    /// stored: after a restart a day is judged by more complaints for what it sent, never by fewer.
    #[serde(skip)]
    moved: u32,
    /// Days that are over, oldest first.
    pub days: VecDeque<Day>,
}

impl Warmup {
    /// From the first step of `ladder` on.
    ///
    /// # Errors
    /// A sentence, if the ladder is not one.
    pub fn new(ladder: &[u32], now: QueueTime) -> Result<Self, String> {
        if ladder.is_empty() || ladder.len() > STEPS_MAX || ladder.contains(&0) {
            return Err(format!("a ladder has 1 to {STEPS_MAX} steps of at least one message a day"));
        }
        if ladder.windows(2).any(|pair| matches!(pair, [one, next] if next <= one)) {
            return Err("each step of a ladder must be more than the one before".to_owned());
        }
        Ok(Self {
            ladder: ladder.to_vec(),
            step: 0,
            began: now,
            sent: 0,
            trouble: 0,
            complaints: 0,
            listed: false,
            moved: 0,
            days: VecDeque::new(),
        })
    }

    /// Messages allowed today.
    pub fn allowed(&self) -> u32 {
        let step = usize::try_from(self.step).unwrap_or(usize::MAX);
        self.ladder.get(step).or(self.ladder.last()).copied().unwrap_or(1)
    }

    /// When today began.
    pub fn began(&self) -> QueueTime {
        self.began
    }

    /// Messages counted today.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Messages left today.
    pub fn left(&self) -> u32 {
        self.allowed().saturating_sub(self.sent)
    }

    /// Which step of how many, from 1.
    pub fn step(&self) -> (u32, usize) {
        (self.step.saturating_add(1), self.ladder.len())
    }

    /// When today ends.
    pub fn ends(&self) -> QueueTime {
        self.began.plus(DAY)
    }

    /// Counts messages that are allowed now.
    pub fn take(&mut self, count: u32) {
        self.sent = self.sent.saturating_add(count);
    }

    /// Takes back what was allowed and not used, or counts what was used beyond.
    pub fn settle(&mut self, taken: u32, used: u32) {
        self.sent = self.sent.saturating_add(used).saturating_sub(taken);
    }

    /// An answer that was trouble.
    pub fn met_trouble(&mut self) {
        self.trouble = self.trouble.saturating_add(1);
    }

    /// The site says that our address is listed: today did not go well.
    pub fn was_listed(&mut self) {
        self.listed = true;
    }

    /// So many complaints about messages sent here came in.
    pub fn met_complaints(&mut self, count: u32) {
        self.complaints = self.complaints.saturating_add(count);
    }

    /// So many messages left by other virtual IPs, because today had no room for them.
    pub fn overflowed(&mut self, count: u32) {
        self.moved = self.moved.saturating_add(count);
    }

    /// Complaints that came in today.
    pub fn complaints(&self) -> u32 {
        self.complaints
    }

    /// Ends days that are over; whether the ladder is climbed.
    pub fn roll(&mut self, now: QueueTime) -> Climb {
        while now >= self.ends() {
            let judged = self.judge();
            let day = Day {
                allowed: self.allowed(),
                sent: self.sent,
                trouble: self.trouble,
                complaints: self.complaints,
                judged,
            };
            let is_idle = self.sent == 0;
            if !is_idle {
                if self.days.len() >= DAYS_KEPT {
                    self.days.pop_front();
                }
                self.days.push_back(day);
            }
            (self.sent, self.trouble, self.complaints, self.listed, self.moved) = (0, 0, 0, false, 0);
            // A day without mail says nothing, however many of them there were.
            self.began = if is_idle { now } else { self.ends() };
            match judged {
                Judged::Advance => self.step = self.step.saturating_add(1),
                Judged::Back => self.step = self.step.saturating_sub(1),
                Judged::Hold => {}
            }
            if usize::try_from(self.step).is_ok_and(|step| step >= self.ladder.len()) {
                return Climb::Done;
            }
            if is_idle {
                break;
            }
        }
        Climb::Going
    }

    fn judge(&self) -> Judged {
        if self.sent == 0 {
            return Judged::Hold;
        }
        let thousandths = |count: u32| u64::from(count) * 1_000 / u64::from(self.sent);
        let complaints = u64::from(self.complaints) * 1_000 / (u64::from(self.sent) + u64::from(self.moved));
        if self.listed || thousandths(self.trouble) >= TROUBLE_BACK || complaints >= COMPLAINTS_BACK {
            return Judged::Back;
        }
        let is_used = self.sent >= self.allowed() / 2;
        if is_used && thousandths(self.trouble) < TROUBLE_WELL { Judged::Advance } else { Judged::Hold }
    }

    /// As it is stored: its count runs ahead of the true one.
    #[must_use]
    pub fn ahead(&self) -> Self {
        let part = (self.allowed() / AHEAD_PART).max(1);
        let sent = if self.sent == 0 { 0 } else { (self.sent / part).saturating_add(1).saturating_mul(part) };
        Self { sent, moved: 0, ..self.clone() }
    }
}

/// Whether there are further steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Climb {
    /// There are.
    Going,
    /// The last day of the last step went well.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn day(warmup: &mut Warmup, number: u64, sent: u32, trouble: u32) -> u32 {
        warmup.take(sent);
        (0..trouble).for_each(|_| warmup.met_trouble());
        warmup.roll(QueueTime(number * DAY_MS));
        warmup.allowed()
    }

    #[test]
    fn days_that_go_well_advance_others_hold_or_step_back() {
        let mut warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
        assert_eq!(day(&mut warmup, 1, 50, 0), 100);
        assert_eq!(day(&mut warmup, 2, 49, 0), 100, "too little was sent to say");
        assert_eq!(day(&mut warmup, 3, 100, 5), 100, "5 % trouble holds");
        assert_eq!(day(&mut warmup, 4, 100, 4), 200);
        assert_eq!(day(&mut warmup, 5, 200, 30), 100, "15 % steps back");
        warmup.was_listed();
        assert_eq!(day(&mut warmup, 6, 100, 1), 50, "a listing steps back");
        assert_eq!(day(&mut warmup, 7, 50, 50), 50, "and never below the first step");
        warmup.met_complaints(1);
        assert_eq!(day(&mut warmup, 8, 50, 0), 50, "2 % complaints do not advance");
        let judged: Vec<_> = warmup.days.iter().map(|day| day.judged).collect();
        use Judged::{Advance, Back, Hold};
        assert_eq!(judged, [Advance, Hold, Hold, Advance, Back, Back, Back, Back]);
    }

    #[test]
    fn complaints_are_set_against_what_overflowed_too() {
        for (moved, complaints, judged) in
            [(0, 1, Judged::Back), (5_000, 10, Judged::Advance), (5_000, 16, Judged::Back)]
        {
            let mut warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
            warmup.overflowed(moved);
            warmup.met_complaints(complaints);
            day(&mut warmup, 1, 50, 0);
            assert_eq!(warmup.days[0].judged, judged, "{complaints} of {moved}");
            warmup.met_complaints(1);
            day(&mut warmup, 2, 50, 0);
            assert_eq!(warmup.days[1].judged, Judged::Back, "what moved the day before does not count");
        }
    }

    #[test]
    fn no_day_holds_more_than_its_step_and_the_ladder_ends() {
        let mut warmup = Warmup::new(&[2, 4], QueueTime(0)).unwrap();
        warmup.take(2);
        assert_eq!(warmup.left(), 0);
        warmup.settle(2, 1);
        assert_eq!(warmup.left(), 1);
        warmup.take(1);
        assert_eq!(warmup.roll(QueueTime(DAY_MS)), Climb::Going);
        assert_eq!(warmup.left(), 4);
        warmup.take(4);
        assert_eq!(warmup.roll(QueueTime(2 * DAY_MS)), Climb::Done);
    }

    #[test]
    fn days_without_mail_change_nothing() {
        let mut warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
        day(&mut warmup, 1, 50, 0);
        assert_eq!(warmup.roll(QueueTime(40 * DAY_MS)), Climb::Going);
        assert_eq!((warmup.allowed(), warmup.days.len()), (100, 1));
        assert_eq!(warmup.ends(), QueueTime(41 * DAY_MS));
    }

    #[test]
    fn what_is_stored_is_never_less_than_what_was_allowed() {
        let mut warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
        assert_eq!(warmup.ahead().sent(), 0);
        for _ in 0..50 {
            warmup.take(1);
            let stored = warmup.ahead().sent();
            assert!(stored > warmup.sent() && stored <= warmup.sent() + 2, "{stored}");
        }
    }

    #[test]
    fn a_ladder_must_climb() {
        for ladder in [&[][..], &[0], &[5, 5], &[9, 3]] {
            assert!(Warmup::new(ladder, QueueTime(0)).is_err(), "{ladder:?}");
        }
    }
}
