//! When to try again, when to give up, when to tell the sender. Pure: no clock, no randomness.
//!
//! Easy to get wrong: expiry is asked only after a failed attempt, so mail that could not be tried
//! at all (a missing virtual IP, a long downtime) is never given up unseen.

use std::time::Duration;

use super::Settings;
use super::record::{QueueTime, QueuedMessage};
use crate::ext::Timestamp;
use crate::mail::{Hold, MailParameters, QueueId};

impl QueueTime {
    /// This moment plus `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    /// How long after `earlier` this moment is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How long the sender asked to hold the message back (RFC 4865), counted from acceptance.
pub(super) fn held_back(parameters: &MailParameters, accepted: Timestamp) -> Duration {
    match parameters.hold {
        None => Duration::ZERO,
        Some(Hold::For(span)) => span,
        Some(Hold::Until(moment)) => moment.since(accepted),
    }
}

/// How long the message has waited for delivery: a FUTURERELEASE hold does not count.
pub(super) fn waited(message: &QueuedMessage, now: QueueTime) -> Duration {
    now.since(message.accepted_at.plus(held_back(&message.parameters, message.accepted)))
}

/// The pause after `attempts` attempts: doubling from the first to the longest, spread by up to a
/// fifth so that what failed together does not come back together. `seed` decides the spread.
pub(super) fn pause(settings: &Settings, attempts: u32, seed: u64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let base = settings.retry_first.saturating_mul(1_u32 << doublings).min(settings.retry_max);
    let spread = millis(base) / 5;
    let part = if spread == 0 { 0 } else { mix(seed) % spread };
    let part = Duration::from_millis(part);
    if base < settings.retry_max { base.saturating_add(part) } else { base.saturating_sub(part) }
}

/// What decides the spread of one pause: different for each lane record and attempt.
pub(super) fn seed(id: QueueId, number: u16, attempts: u32) -> u64 {
    let (_, random) = id.0.split_at(8);
    let random = random.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    random ^ (u64::from(number) << 32) ^ u64::from(attempts)
}

/// Whether a failed attempt now is the last one.
pub(super) fn has_expired(settings: &Settings, waited: Duration) -> bool {
    waited >= settings.expire_after
}

/// Whether the sender who wants to know of delays is told now.
pub(super) fn is_late(settings: &Settings, waited: Duration) -> bool {
    waited >= settings.delay_notice_after
}

/// A finaliser that spreads every bit of the seed (splitmix64's constants).
fn mix(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_five_minutes_to_four_hours_and_spread() {
        let settings = Settings::default();
        for (attempts, minutes) in [(0, 5), (1, 5), (2, 10), (3, 20), (4, 40), (5, 80), (6, 160)] {
            for seed in 0..50 {
                let pause = pause(&settings, attempts, seed);
                assert!(pause >= Duration::from_secs(minutes * 60), "{attempts} {pause:?}");
                assert!(pause <= Duration::from_secs(minutes * 72), "{attempts} {pause:?}");
            }
        }
        for attempts in [7, 8, 100, u32::MAX] {
            let pause = pause(&settings, attempts, 7);
            assert!(pause <= settings.retry_max && pause >= settings.retry_max * 4 / 5);
        }
        assert_ne!(pause(&settings, 3, 1), pause(&settings, 3, 2));
    }

    #[test]
    fn a_hold_of_the_sender_counts_from_acceptance() {
        let accepted = Timestamp(1_000);
        let with = |hold| MailParameters { hold, ..MailParameters::default() };
        assert_eq!(held_back(&with(None), accepted), Duration::ZERO);
        assert_eq!(held_back(&with(Some(Hold::For(Duration::from_secs(9)))), accepted), Duration::from_secs(9));
        assert_eq!(held_back(&with(Some(Hold::Until(Timestamp(61_000)))), accepted), Duration::from_secs(60));
        assert_eq!(held_back(&with(Some(Hold::Until(Timestamp(5)))), accepted), Duration::ZERO);
    }
}
