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

    /// This moment less `span`, not before the clock's beginning.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
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
    use proptest::prelude::*;

    use super::super::Needs8bit;
    use super::*;
    use crate::mail::{Class, ReversePath, TenantId, VipId};

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

    prop_compose! {
        fn any_settings()(first in 1_u64..100_000, longest in 1_u64..1_000_000, expire in 1_u64..10_000_000) -> Settings {
            let (retry_first, retry_max) = (Duration::from_secs(first), Duration::from_secs(first.max(longest)));
            Settings { retry_first, retry_max, expire_after: Duration::from_secs(expire), ..Settings::default() }
        }
    }

    fn message(accepted_at: u64, hold: Option<Hold>) -> QueuedMessage {
        QueuedMessage {
            tenant: TenantId(1),
            account: None,
            vip: VipId(1),
            class: Class::Transactional,
            source: "smtp".into(),
            reverse_path: ReversePath(None),
            parameters: MailParameters { hold, ..MailParameters::default() },
            needs_8bit: Needs8bit::No,
            size_bytes: 1,
            accepted: Timestamp(1_000),
            accepted_at: QueueTime(accepted_at),
            signatures: Vec::new(),
            lanes: 1,
            recipients: 1,
            return_path: None,
        }
    }

    proptest! {
        #[test]
        fn pauses_are_bounded_spread_by_a_fifth_and_never_shrink_by_more(
            settings in any_settings(), attempts: u32, one: u64, two: u64
        ) {
            let bare = |attempts: u32| {
                let doubled = settings.retry_first.saturating_mul(1 << attempts.saturating_sub(1).min(31));
                doubled.min(settings.retry_max)
            };
            let (now, next) = (pause(&settings, attempts, one), pause(&settings, attempts.saturating_add(1), two));
            let base = bare(attempts);
            prop_assert!(now >= base * 4 / 5 && now <= base + base / 5);
            prop_assert!(now >= settings.retry_first * 4 / 5 && now <= settings.retry_max + settings.retry_max / 5);
            prop_assert!(bare(attempts.saturating_add(1)) >= base);
            prop_assert!(next >= now * 2 / 3, "{now:?} then {next:?}");
            prop_assert_eq!(pause(&settings, attempts, one), now, "the seed alone decides");
        }

        #[test]
        fn seeds_of_records_and_attempts_differ(id: [u8; 16], number: u16, attempts in 0_u32..u32::MAX) {
            let own = seed(QueueId(id), number, attempts);
            prop_assert_ne!(own, seed(QueueId(id), number, attempts + 1));
            prop_assert_ne!(own, seed(QueueId(id), number.wrapping_add(1), attempts));
        }

        #[test]
        fn what_waited_grows_with_time_and_a_hold_does_not_count(
            settings in any_settings(), accepted: u64, hold in proptest::option::of(0_u64..10_000_000),
            first: u64, more: u64
        ) {
            let hold_for = Duration::from_secs(hold.unwrap_or(0));
            let message = message(accepted, hold.map(|_| Hold::For(hold_for)));
            let (now, later) = (QueueTime(first), QueueTime(first.saturating_add(more)));
            let (early, late) = (waited(&message, now), waited(&message, later));
            prop_assert!(early <= late);
            prop_assert_eq!(early, now.since(QueueTime(accepted)).saturating_sub(hold_for));
            prop_assert!(!has_expired(&settings, early) || has_expired(&settings, late), "what expired stays so");
            prop_assert!(has_expired(&settings, early) == (early >= settings.expire_after));
            prop_assert_eq!(waited(&message, QueueTime(accepted.saturating_sub(1))), Duration::ZERO, "never before");
        }
    }
}
