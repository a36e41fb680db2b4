//! So many in any minute, never more: tokens that come by and by. Pure.
//!
//! Tokens are taken when something is allowed and settled when it is known how many were used.
//! Easy to get wrong: taken tokens keep their room until they are settled; otherwise what was
//! allowed in one minute and done in the next would come on top of that next one's.

use std::time::Duration;

use super::limits::UNLIMITED;
use crate::queue::QueueTime;

/// Parts of one token: as many as a minute has milliseconds, so that a limit is a whole gain per millisecond.
const TOKEN: i64 = 60_000;
/// More time than this since the last look adds nothing: by then every bucket is full.
const LOOK_BACK_MAX: Duration = Duration::from_secs(3_600);

/// Tokens of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    limit: u32,
    level: i64,
    taken: i64,
    at: QueueTime,
}

impl Bucket {
    /// A full bucket for `limit` a minute.
    pub fn new(limit: u32, now: QueueTime) -> Self {
        Self { limit, level: capacity(limit), taken: 0, at: now }
    }

    /// Another limit from now on; what is there beyond its room is lost.
    pub fn set_limit(&mut self, limit: u32, now: QueueTime) {
        if limit != self.limit {
            self.advance(now);
            self.limit = limit;
            self.level = self.level.min(self.room());
        }
    }

    /// How many may be taken now.
    pub fn available(&mut self, now: QueueTime) -> u32 {
        if self.limit == UNLIMITED {
            return UNLIMITED;
        }
        self.advance(now);
        u32::try_from(self.level / TOKEN).unwrap_or(0)
    }

    /// When the next one may be taken; `None` if first something taken must be settled.
    pub fn next(&mut self, now: QueueTime) -> Option<QueueTime> {
        if self.available(now) > 0 {
            return Some(now);
        }
        if self.taken.saturating_add(TOKEN) > capacity(self.limit) {
            return None;
        }
        let missing = TOKEN.saturating_sub(self.level);
        let gain = gain(self.limit);
        let wait = missing.saturating_add(gain.saturating_sub(1)) / gain;
        Some(QueueTime(now.0.saturating_add(u64::try_from(wait).unwrap_or(0))))
    }

    /// Takes tokens that are there.
    pub fn take(&mut self, count: u32) {
        if self.limit != UNLIMITED {
            let parts = i64::from(count).saturating_mul(TOKEN);
            self.level = self.level.saturating_sub(parts);
            self.taken = self.taken.saturating_add(parts);
        }
    }

    /// Of `taken` tokens so many were used: what was not comes back, what was used beyond is owed.
    pub fn settle(&mut self, taken: u32, used: u32, now: QueueTime) {
        if self.limit == UNLIMITED {
            return;
        }
        self.advance(now);
        self.taken = self.taken.saturating_sub(i64::from(taken).saturating_mul(TOKEN)).max(0);
        let back = i64::from(taken).saturating_sub(i64::from(used)).saturating_mul(TOKEN);
        self.level = self.level.saturating_add(back).min(self.room());
    }

    fn room(&self) -> i64 {
        capacity(self.limit).saturating_sub(self.taken).max(0)
    }

    fn advance(&mut self, now: QueueTime) {
        let passed = now.since(self.at).min(LOOK_BACK_MAX);
        self.at = now.max(self.at);
        if self.limit == UNLIMITED {
            return;
        }
        let gained = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX).saturating_mul(gain(self.limit));
        self.level = self.level.saturating_add(gained).min(self.room());
    }
}

/// A tenth of a minute's worth may go at once, but always one.
fn capacity(limit: u32) -> i64 {
    i64::from((limit / 10).max(1)).saturating_mul(TOKEN)
}

/// Per millisecond, in parts. The rest of the minute's worth comes by and by, so that a full
/// bucket and a minute's gain are the limit together.
fn gain(limit: u32) -> i64 {
    i64::from(limit).saturating_sub(capacity(limit) / TOKEN).saturating_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses tokens as fast as they come; when, in milliseconds.
    fn greedy(limit: u32, at_a_time: u32, held_ms: u64) -> Vec<u64> {
        let mut bucket = Bucket::new(limit, QueueTime(0));
        let (mut used, mut held) = (Vec::new(), std::collections::VecDeque::new());
        for now in 0..600_000_u64 {
            while held.front().is_some_and(|(until, _)| *until <= now) {
                let (_, count) = held.pop_front().unwrap();
                used.extend((0..count).map(|_| now));
                bucket.settle(count, count, QueueTime(now));
            }
            let count = bucket.available(QueueTime(now)).min(at_a_time);
            if count > 0 {
                bucket.take(count);
                held.push_back((now + held_ms, count));
            }
        }
        used
    }

    #[test]
    fn no_minute_holds_more_than_the_limit_however_late_what_was_allowed_is_done() {
        for limit in [1, 2, 3, 7, 10, 20, 60, 600, 1_200] {
            for (at_a_time, held_ms) in [(1, 0), (5, 0), (3, 700), (50, 20_000)] {
                let used = greedy(limit, at_a_time, held_ms);
                let most = usize::try_from(limit).unwrap();
                for window in used.windows(most + 1) {
                    assert!(window[most] - window[0] >= 60_000, "{limit} {at_a_time} {held_ms}: {window:?}");
                }
                if held_ms == 0 {
                    assert!(used.len() >= most * 8, "{limit} is nearly reached: {}", used.len());
                }
            }
        }
    }

    #[test]
    fn what_was_used_beyond_is_owed_and_what_was_not_comes_back() {
        let mut bucket = Bucket::new(60, QueueTime(0));
        assert_eq!(bucket.available(QueueTime(0)), 6);
        bucket.take(6);
        bucket.settle(6, 2, QueueTime(0));
        assert_eq!(bucket.available(QueueTime(0)), 4);
        bucket.take(4);
        bucket.settle(4, 6, QueueTime(0));
        assert_eq!(bucket.available(QueueTime(0)), 0);
        let next = bucket.next(QueueTime(0)).unwrap();
        assert!((3_000..3_500).contains(&next.0), "{next:?}");
        assert_eq!(bucket.available(next), 1);
    }

    #[test]
    fn a_bucket_that_is_all_taken_waits_for_what_was_taken() {
        let mut bucket = Bucket::new(5, QueueTime(0));
        bucket.take(1);
        assert_eq!(bucket.next(QueueTime(100_000)), None);
        bucket.settle(1, 1, QueueTime(100_000));
        assert!(bucket.next(QueueTime(100_000)).is_some());
    }

    #[test]
    fn a_lower_limit_holds_at_once() {
        let mut bucket = Bucket::new(600, QueueTime(0));
        bucket.set_limit(10, QueueTime(0));
        assert_eq!(bucket.available(QueueTime(0)), 1);
        bucket.set_limit(UNLIMITED, QueueTime(0));
        assert_eq!(bucket.available(QueueTime(0)), UNLIMITED);
    }
}
