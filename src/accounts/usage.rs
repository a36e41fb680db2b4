//! How many messages were submitted in the last hour and day, in sliding windows. Pure.
//!
//! A window is a row of small buckets (a minute, a quarter of an hour). A message counts for at
//! least the whole window, so that "in any hour" holds exactly; it lifts at most one bucket late.
//! Easy to get wrong: a clock that went back must neither free a limit nor block for ever.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::ext::Timestamp;

/// Messages of one tenant or SMTP account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    hour: Row,
    day: Row,
}

/// (bucket number since 1970, messages), oldest first.
type Row = VecDeque<(u64, u64)>;

/// Which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// 60 buckets of a minute.
    Hour,
    /// 96 buckets of a quarter of an hour.
    Day,
}

impl Window {
    fn bucket_millis(self) -> u64 {
        match self {
            Self::Hour => 60_000,
            Self::Day => 900_000,
        }
    }

    fn buckets(self) -> u64 {
        match self {
            Self::Hour => 60,
            Self::Day => 96,
        }
    }

    fn bucket(self, now: Timestamp) -> u64 {
        now.0 / self.bucket_millis()
    }

    /// When what was counted in `bucket` counts no more.
    fn freed_at(self, bucket: u64) -> Timestamp {
        Timestamp(bucket.saturating_add(self.buckets()).saturating_add(1).saturating_mul(self.bucket_millis()))
    }
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Which window.
    pub window: Window,
    /// Messages allowed in it.
    pub max: u64,
    /// When the next message is allowed; `None` if none ever is.
    pub lifts: Option<Timestamp>,
}

impl Counts {
    /// Messages in the last hour and day.
    pub fn totals(&mut self, now: Timestamp) -> (u64, u64) {
        (total(tidy(&mut self.hour, Window::Hour, now)), total(tidy(&mut self.day, Window::Day, now)))
    }

    /// The limit one more message would break; of two the one that lifts later.
    pub fn over(&mut self, limits: &Limits, now: Timestamp) -> Option<Over> {
        let hour = over(tidy(&mut self.hour, Window::Hour, now), Window::Hour, limits.hourly_max);
        let day = over(tidy(&mut self.day, Window::Day, now), Window::Day, limits.daily_max);
        let lifts = |over: &Over| over.lifts.map_or(u64::MAX, |lifts| lifts.0);
        [hour, day].into_iter().flatten().max_by_key(lifts)
    }

    /// Books one message.
    pub fn add(&mut self, now: Timestamp) {
        for (row, window) in [(&mut self.hour, Window::Hour), (&mut self.day, Window::Day)] {
            let bucket = window.bucket(now);
            match tidy(row, window, now).back_mut() {
                Some((newest, count)) if *newest == bucket => *count = count.saturating_add(1),
                _ => row.push_back((bucket, 1)),
            }
        }
    }

    /// Takes back one message booked lately.
    pub fn take_back(&mut self) {
        for row in [&mut self.hour, &mut self.day] {
            if let Some((_, count)) = row.back_mut() {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Whether nothing is counted any more.
    pub fn is_empty(&mut self, now: Timestamp) -> bool {
        self.totals(now) == (0, 0)
    }
}

/// Drops what counts no more. Buckets from a future (the clock went back) become the present one.
fn tidy(row: &mut Row, window: Window, now: Timestamp) -> &mut Row {
    let bucket = window.bucket(now);
    if row.back().is_some_and(|(newest, _)| *newest > bucket) {
        let future: u64 = row.iter().filter(|(at, _)| *at >= bucket).map(|(_, count)| *count).sum();
        row.retain(|(at, _)| *at < bucket);
        row.push_back((bucket, future));
    }
    while row.front().is_some_and(|(oldest, _)| oldest.saturating_add(window.buckets()) < bucket) {
        row.pop_front();
    }
    row
}

fn total(row: &Row) -> u64 {
    row.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

fn over(row: &Row, window: Window, max: Option<u64>) -> Option<Over> {
    let max = max?;
    let mut excess = total(row).saturating_add(1).checked_sub(max).filter(|excess| *excess > 0)?;
    for (bucket, count) in row {
        match excess.checked_sub(*count) {
            Some(0) | None => return Some(Over { window, max, lifts: Some(window.freed_at(*bucket)) }),
            Some(left) => excess = left,
        }
    }
    Some(Over { window, max, lifts: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a bucket's edge in both windows.
    const START: u64 = 1_800_000_000_000;

    fn minute(minute: u64) -> Timestamp {
        Timestamp(START + minute * 60_000)
    }

    fn limits(hourly_max: Option<u64>, daily_max: Option<u64>) -> Limits {
        Limits { hourly_max, daily_max }
    }

    #[test]
    fn a_limit_is_reached_slides_and_names_when_it_lifts() {
        let mut counts = Counts::default();
        let limits = limits(Some(3), None);
        for at in [0, 10, 20] {
            assert_eq!(counts.over(&limits, minute(at)), None);
            counts.add(minute(at));
        }
        let over = counts.over(&limits, minute(30)).unwrap();
        assert_eq!(over, Over { window: Window::Hour, max: 3, lifts: Some(minute(61)) });
        assert!(counts.over(&limits, minute(60)).is_some());
        assert_eq!(counts.over(&limits, minute(61)), None);
        counts.add(minute(61));
        assert_eq!(counts.over(&limits, minute(61)).unwrap().lifts, Some(minute(71)));
    }

    #[test]
    fn no_hour_ever_holds_more_than_the_limit() {
        let limits = limits(Some(50), None);
        let (mut counts, mut accepted) = (Counts::default(), Vec::new());
        for second in 0..20_000_u64 {
            let now = Timestamp(START + 12_345 + second * 1000);
            if counts.over(&limits, now).is_none() {
                counts.add(now);
                accepted.push(now);
            }
        }
        for window in accepted.windows(51) {
            assert!(window[50].since(window[0]).as_secs() >= 3600);
        }
        assert!(accepted.len() >= 250, "and it does not starve: {}", accepted.len());
    }

    #[test]
    fn of_two_limits_the_one_that_lifts_later_is_named() {
        let mut counts = Counts::default();
        counts.add(minute(0));
        let over = counts.over(&limits(Some(1), Some(1)), minute(1)).unwrap();
        assert_eq!((over.window, over.lifts), (Window::Day, Some(minute(97 * 15))));
    }

    #[test]
    fn a_limit_of_nothing_never_lifts() {
        assert_eq!(Counts::default().over(&limits(Some(0), None), minute(0)).unwrap().lifts, None);
    }

    #[test]
    fn a_clock_that_went_back_neither_frees_nor_blocks_for_ever() {
        let mut counts = Counts::default();
        let limits = limits(Some(2), None);
        counts.add(minute(100_000));
        counts.add(minute(100_000));
        assert!(counts.over(&limits, minute(0)).is_some());
        assert_eq!(counts.over(&limits, minute(61)), None);
    }

    #[test]
    fn a_message_taken_back_is_not_counted() {
        let mut counts = Counts::default();
        counts.add(minute(0));
        counts.add(minute(0));
        counts.take_back();
        assert_eq!(counts.totals(minute(0)), (1, 1));
        assert!(counts.is_empty(minute(2000)));
    }
}
