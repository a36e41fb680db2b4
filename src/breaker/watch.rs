//! What is counted of one SMTP account, and what it comes to. Pure: time is a value.
//!
//! Counts are kept in rows of buckets: minutes for an hour, quarters of an hour for a day, hours for a
//! week. Easy to get wrong: an account that has hardly sent before has no usual volume, and a clock
//! that went back must neither trip nor free anybody.

use std::collections::VecDeque;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::ext::Timestamp;

const MINUTE_MILLIS: u64 = 60_000;
const QUARTER_MILLIS: u64 = 15 * MINUTE_MILLIS;
const HOUR_MILLIS: u64 = 60 * MINUTE_MILLIS;
const MINUTES: u64 = 60;
const QUARTERS: u64 = 96;
const HOURS: u64 = 168;
/// Hours of the last 7 days in which it sent, before there is a usual volume.
pub const USUAL_HOURS_MIN: usize = 24;
/// Complaints within a day, before they are held against what was delivered.
pub const COMPLAINTS_MIN: u64 = 5;

/// Counts of an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sent {
    messages: u64,
    finished: u64,
    gone: u64,
    blocked: u64,
}

impl AddAssign for Sent {
    fn add_assign(&mut self, more: Self) {
        self.messages = self.messages.saturating_add(more.messages);
        self.finished = self.finished.saturating_add(more.finished);
        self.gone = self.gone.saturating_add(more.gone);
        self.blocked = self.blocked.saturating_add(more.blocked);
    }
}

/// Counts of a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Liked {
    delivered: u64,
    complaints: u64,
}

impl AddAssign for Liked {
    fn add_assign(&mut self, more: Self) {
        self.delivered = self.delivered.saturating_add(more.delivered);
        self.complaints = self.complaints.saturating_add(more.complaints);
    }
}

/// (bucket number since 1970, counts), oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row<T>(VecDeque<(u64, T)>);

impl<T: AddAssign + Copy + Default> Row<T> {
    fn add(&mut self, bucket: u64, kept: u64, more: T) {
        self.add_to(bucket, (bucket, kept), more);
    }

    /// Adds to a bucket that may be past; to one that counts no more, nothing.
    fn add_to(&mut self, bucket: u64, (now, kept): (u64, u64), more: T) {
        self.tidy(now, kept);
        if bucket.saturating_add(kept) <= now {
            return;
        }
        match self.0.binary_search_by_key(&bucket.min(now), |(at, _)| *at) {
            Ok(place) => self.0.get_mut(place).into_iter().for_each(|(_, counts)| *counts += more),
            Err(place) => self.0.insert(place, (bucket.min(now), more)),
        }
    }

    fn total(&self, bucket: u64, kept: u64) -> T {
        let mut total = T::default();
        let counts = self.0.iter().filter(|(at, _)| at.saturating_add(kept) > bucket);
        counts.for_each(|(_, counts)| total += *counts);
        total
    }

    /// Drops what counts no more. Buckets from a future (the clock went back) become the present one.
    fn tidy(&mut self, bucket: u64, kept: u64) {
        let mut future = T::default();
        let mut has_future = false;
        while let Some((_, counts)) = self.0.back().filter(|(newest, _)| *newest > bucket).copied() {
            future += counts;
            has_future = true;
            self.0.pop_back();
        }
        if has_future {
            match self.0.back_mut() {
                Some((newest, counts)) if *newest == bucket => *counts += future,
                _ => self.0.push_back((bucket, future)),
            }
        }
        while self.0.front().is_some_and(|(oldest, _)| oldest.saturating_add(kept) <= bucket) {
            self.0.pop_front();
        }
    }
}

/// Something that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A message was accepted.
    Accepted,
    /// So many recipients were delivered.
    Delivered(u64),
    /// So many do not exist.
    Gone(u64),
    /// So many were refused for good because of the sender, its address or the content.
    Blocked(u64),
    /// So many were given up for another reason.
    GivenUp(u64),
    /// So many complained.
    Complained(u64),
    /// Of those delivered, so many came back later.
    Returned {
        /// How many.
        count: u64,
        /// As what.
        as_what: Return,
        /// When their message was accepted: with that hour's mail they are counted.
        accepted: Timestamp,
    },
}

/// What a notice that came back says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The recipient does not exist.
    Gone,
    /// Refused because of the sender, its address or the content.
    Blocked,
}

/// What is counted of one SMTP account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// What happened before this moment (milliseconds since 1970) does not count: it was released then.
    from_millis: u64,
    hour: Row<Sent>,
    day: Row<Liked>,
    week: Row<u64>,
}

/// What the counts come to at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages accepted within an hour.
    pub messages: u64,
    /// Recipients of whom it was decided within an hour: delivered or given up.
    pub finished: u64,
    /// Of these, those that do not exist, also where that came back after delivery.
    pub gone: u64,
    /// Of these, those refused because of the sender, its address or the content.
    pub blocked: u64,
    /// Recipients delivered within a day.
    pub delivered: u64,
    /// Complaints within a day.
    pub complaints: u64,
    /// Messages in an hour in which it sends, by the last 7 days; `None` before there are enough.
    pub usual: Option<u64>,
}

/// Why an account was paused. Append new variants at the end: the stored form numbers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum Cause {
    /// Of `of` recipients within an hour, `gone` do not exist; the limit is `percent`.
    Failures { gone: u64, of: u64, percent: u32 },
    /// Of `of` recipients within an hour, `blocked` were refused for reputation or content.
    Blocks { blocked: u64, of: u64, percent: u32 },
    /// `complaints` about `delivered` within a day; the limit is `per_thousand`.
    Complaints { complaints: u64, delivered: u64, per_thousand: u32 },
    /// `messages` within an hour, and `usual` are usual; the limit is `factor` times that.
    Volume { messages: u64, usual: u64, factor: u32 },
    /// An operator said so.
    ByHand { reason: String },
}

impl Cause {
    /// In a word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Failures { .. } => "failures",
            Self::Blocks { .. } => "blocks",
            Self::Complaints { .. } => "complaints",
            Self::Volume { .. } => "volume",
            Self::ByHand { .. } => "by-hand",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failures { gone, of, percent } => {
                write!(formatter, "{gone} of {of} recipients within an hour do not exist (limit {percent} %)")
            }
            Self::Blocks { blocked, of, percent } => write!(
                formatter,
                "{blocked} of {of} recipients within an hour were refused for reputation or content (limit {percent} %)"
            ),
            Self::Complaints { complaints, delivered, per_thousand } => write!(
                formatter,
                "{complaints} complaints about {delivered} deliveries within a day (limit {per_thousand} in 1,000)"
            ),
            Self::Volume { messages, usual, factor } => write!(
                formatter,
                "{messages} messages within an hour where {usual} are usual (limit {factor} times that)"
            ),
            Self::ByHand { reason } => formatter.write_str(reason),
        }
    }
}

impl Watch {
    /// Nothing before `from` counts; the usual volume stays known.
    pub fn begin_anew(&mut self, from: Timestamp) {
        self.from_millis = from.0;
        (self.hour, self.day) = (Row::default(), Row::default());
    }

    /// Counts a fact.
    pub fn count(&mut self, fact: Fact, at: Timestamp) {
        if at.0 < self.from_millis {
            return;
        }
        let sent = match fact {
            Fact::Returned { count, as_what, accepted } => return self.returned((count, as_what, accepted), at),
            Fact::Accepted => {
                self.week.add(at.0 / HOUR_MILLIS, HOURS + 2, 1);
                Sent { messages: 1, ..Sent::default() }
            }
            Fact::Delivered(count) | Fact::GivenUp(count) => Sent { finished: count, ..Sent::default() },
            Fact::Gone(count) => Sent { finished: count, gone: count, ..Sent::default() },
            Fact::Blocked(count) => Sent { finished: count, blocked: count, ..Sent::default() },
            Fact::Complained(_) => Sent::default(),
        };
        if sent != Sent::default() {
            self.hour.add(at.0 / MINUTE_MILLIS, MINUTES, sent);
        }
        let liked = match fact {
            Fact::Delivered(count) => Liked { delivered: count, complaints: 0 },
            Fact::Complained(count) => Liked { delivered: 0, complaints: count },
            _ => return,
        };
        self.day.add(at.0 / QUARTER_MILLIS, QUARTERS, liked);
    }

    /// They were counted as finished when they were delivered.
    fn returned(&mut self, (count, as_what, accepted): (u64, Return, Timestamp), now: Timestamp) {
        if accepted.0 < self.from_millis {
            return;
        }
        let sent = match as_what {
            Return::Gone => Sent { gone: count, ..Sent::default() },
            Return::Blocked => Sent { blocked: count, ..Sent::default() },
        };
        self.hour.add_to(accepted.0 / MINUTE_MILLIS, (now.0 / MINUTE_MILLIS, MINUTES), sent);
    }

    /// What it comes to at `now`.
    pub fn figures(&self, now: Timestamp) -> Figures {
        let sent = self.hour.total(now.0 / MINUTE_MILLIS, MINUTES);
        let liked = self.day.total(now.0 / QUARTER_MILLIS, QUARTERS);
        Figures {
            messages: sent.messages,
            finished: sent.finished,
            gone: sent.gone,
            blocked: sent.blocked,
            delivered: liked.delivered,
            complaints: liked.complaints,
            usual: self.usual(now),
        }
    }

    /// The mean of the hours in which it sent anything, of the 7 days before the hour that is being
    /// judged: what is sent now must not make itself usual.
    fn usual(&self, now: Timestamp) -> Option<u64> {
        let judged = (now.0 / HOUR_MILLIS).saturating_sub(1);
        let before = self.week.0.iter().filter(|(at, _)| *at < judged && at.saturating_add(HOURS) >= judged);
        let (hours, messages) = before
            .fold((0_usize, 0_u64), |(hours, sum), (_, count)| (hours.saturating_add(1), sum.saturating_add(*count)));
        if hours < USUAL_HOURS_MIN {
            return None;
        }
        messages.checked_div(u64::try_from(hours).unwrap_or(u64::MAX)).map(|mean| mean.max(1))
    }

    /// Whether nothing is counted any more.
    pub fn is_empty(&self, now: Timestamp) -> bool {
        let figures = self.figures(now);
        let is_quiet = Figures { usual: None, ..figures } == Figures::default();
        is_quiet && self.week.total(now.0 / HOUR_MILLIS, HOURS + 2) == 0
    }
}

/// The limit that is passed, if one is.
pub fn judge(figures: &Figures, limits: &Limits) -> Option<Cause> {
    let Figures { messages, finished, gone, blocked, delivered, complaints, usual } = *figures;
    let passes = |part: u64, whole: u64, of: u64, limit: u32| {
        limit > 0 && part.saturating_mul(of) > whole.saturating_mul(u64::from(limit))
    };
    if finished >= limits.recipients_min {
        if passes(gone, finished, 100, limits.failures_percent) {
            return Some(Cause::Failures { gone, of: finished, percent: limits.failures_percent });
        }
        if passes(blocked, finished, 100, limits.blocks_percent) {
            return Some(Cause::Blocks { blocked, of: finished, percent: limits.blocks_percent });
        }
    }
    if complaints >= COMPLAINTS_MIN && passes(complaints, delivered, 1_000, limits.complaints_per_thousand) {
        return Some(Cause::Complaints { complaints, delivered, per_thousand: limits.complaints_per_thousand });
    }
    let usual = usual.filter(|usual| messages > usual.saturating_mul(u64::from(limits.volume_factor)))?;
    let is_over = limits.volume_factor > 0 && messages >= limits.volume_min;
    is_over.then_some(Cause::Volume { messages, usual, factor: limits.volume_factor })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a bucket's edge in every row.
    const START: u64 = 1_800_000_000_000;

    fn minute(minute: u64) -> Timestamp {
        Timestamp(START + minute * MINUTE_MILLIS)
    }

    fn judged(watch: &Watch, now: Timestamp) -> Option<Cause> {
        judge(&watch.figures(now), &Limits::default())
    }

    #[test]
    fn more_than_a_tenth_of_at_least_200_recipients_that_do_not_exist_pass_the_limit() {
        let mut watch = Watch::default();
        watch.count(Fact::Delivered(179), minute(0));
        watch.count(Fact::Gone(20), minute(1));
        assert_eq!(judged(&watch, minute(1)), None, "199 are too few to judge by");
        watch.count(Fact::Delivered(1), minute(2));
        assert_eq!(judged(&watch, minute(2)), None, "a tenth is allowed");
        watch.count(Fact::Gone(1), minute(3));
        assert_eq!(judged(&watch, minute(3)), Some(Cause::Failures { gone: 21, of: 201, percent: 10 }));
        assert_eq!(judged(&watch, minute(64)), None, "an hour later it is forgotten");
    }

    #[test]
    fn what_comes_back_counts_with_the_hour_in_which_its_message_was_accepted() {
        let mut watch = Watch::default();
        let back = |count, accepted| Fact::Returned { count, as_what: Return::Gone, accepted };
        watch.count(Fact::Delivered(300), minute(100));
        watch.count(Fact::Delivered(10), minute(110));
        watch.count(back(31, minute(99)), minute(110));
        assert_eq!(judged(&watch, minute(110)), None, "a tenth is allowed");
        watch.count(back(1, minute(105)), minute(120));
        assert_eq!(judged(&watch, minute(120)), Some(Cause::Failures { gone: 32, of: 310, percent: 10 }));
        // Of mail of longer ago nobody knows any more how much there was.
        let mut watch = Watch::default();
        watch.count(Fact::Delivered(300), minute(200));
        watch.count(back(300, minute(140)), minute(200));
        assert_eq!(watch.figures(minute(200)).gone, 0);
        let blocked = Fact::Returned { count: 31, as_what: Return::Blocked, accepted: minute(199) };
        watch.count(blocked, minute(200));
        assert_eq!(judged(&watch, minute(200)), Some(Cause::Blocks { blocked: 31, of: 300, percent: 10 }));
        watch.begin_anew(minute(201));
        watch.count(back(300, minute(200)), minute(202));
        assert_eq!(watch.figures(minute(202)).gone, 0, "a release begins anew");
    }

    #[test]
    fn refusals_for_reputation_are_counted_apart_and_other_failures_not_at_all() {
        let mut watch = Watch::default();
        watch.count(Fact::Delivered(100), minute(0));
        watch.count(Fact::GivenUp(100), minute(0));
        assert_eq!(judged(&watch, minute(0)), None);
        watch.count(Fact::Blocked(23), minute(1));
        assert_eq!(judged(&watch, minute(1)), Some(Cause::Blocks { blocked: 23, of: 223, percent: 10 }));
    }

    #[test]
    fn complaints_count_for_a_day_and_a_few_of_them_never_trip() {
        let mut watch = Watch::default();
        watch.count(Fact::Delivered(1_000), minute(0));
        watch.count(Fact::Complained(4), minute(600));
        assert_eq!(judged(&watch, minute(600)), None);
        watch.count(Fact::Complained(1), minute(700));
        let cause = Cause::Complaints { complaints: 5, delivered: 1_000, per_thousand: 3 };
        assert_eq!(judged(&watch, minute(700)), Some(cause));
        watch.count(Fact::Delivered(10_000), minute(701));
        assert_eq!(judged(&watch, minute(701)), None);
    }

    #[test]
    fn ten_times_the_usual_volume_passes_once_there_is_a_usual_one() {
        let mut watch = Watch::default();
        let send = |watch: &mut Watch, hour: u64, messages: u64| {
            (0..messages).for_each(|_| watch.count(Fact::Accepted, minute(hour * 60 + 10)));
        };
        send(&mut watch, 0, 100_000);
        assert_eq!(judged(&watch, minute(10)), None, "a new account has no usual volume");
        let mut watch = Watch::default();
        (0..30).for_each(|hour| send(&mut watch, hour, 60));
        let now = minute(40 * 60 + 10);
        send(&mut watch, 40, 600);
        assert_eq!((watch.figures(now).usual, judged(&watch, now)), (Some(60), None));
        send(&mut watch, 40, 1);
        assert_eq!(judged(&watch, now), Some(Cause::Volume { messages: 601, usual: 60, factor: 10 }));
        // It does not become usual by going on.
        send(&mut watch, 41, 1_000);
        assert_eq!(watch.figures(minute(41 * 60 + 10)).usual, Some(60));
        // 9 days later nothing is known any more.
        assert!(watch.is_empty(minute(220 * 60)) && !watch.is_empty(minute(100 * 60)));
    }

    #[test]
    fn little_mail_never_passes_by_volume_and_a_limit_of_nothing_is_off() {
        let mut watch = Watch::default();
        (0..30).for_each(|hour| watch.count(Fact::Accepted, minute(hour * 60)));
        (0..499).for_each(|_| watch.count(Fact::Accepted, minute(40 * 60)));
        assert_eq!(judged(&watch, minute(40 * 60)), None);
        watch.count(Fact::Accepted, minute(40 * 60));
        assert!(matches!(judged(&watch, minute(40 * 60)), Some(Cause::Volume { .. })));
        watch.count(Fact::Gone(5_000), minute(40 * 60));
        let off = Limits { failures_percent: 0, volume_factor: 0, ..Limits::default() };
        assert_eq!(judge(&watch.figures(minute(40 * 60)), &off), None);
    }

    #[test]
    fn a_release_begins_anew_and_keeps_what_is_usual() {
        let mut watch = Watch::default();
        (0..30).for_each(|hour| watch.count(Fact::Accepted, minute(hour * 60)));
        watch.count(Fact::Gone(500), minute(40 * 60));
        watch.begin_anew(minute(41 * 60));
        watch.count(Fact::Gone(500), minute(40 * 60 + 59));
        assert_eq!(watch.figures(minute(41 * 60)), Figures { usual: Some(1), ..Figures::default() });
        watch.count(Fact::Delivered(1), minute(41 * 60));
        assert_eq!(watch.figures(minute(41 * 60)).finished, 1);
    }

    #[test]
    fn a_clock_that_went_back_keeps_the_counts_for_their_time() {
        let mut watch = Watch::default();
        watch.count(Fact::Gone(300), minute(10_000));
        watch.count(Fact::Delivered(1), minute(0));
        assert!(judged(&watch, minute(0)).is_some());
        assert_eq!(watch.figures(minute(61)).finished, 0);
    }
}
