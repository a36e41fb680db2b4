//! When a request that failed is made again, and when an endpoint is given up. Pure: times are values.
//!
//! The plan is that of Standard Webhooks: ten attempts over 76 hours, each pause longer than the last and a
//! little random, so that a receiver that comes back is not met by everything at once.

use std::time::Duration;

use crate::ext::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;

/// Pauses after each attempt that failed.
pub const PAUSES: [u64; 9] =
    [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
/// An endpoint at which nothing succeeded for so long is disabled at the next failure.
pub const FAILING_MAX: Duration = Duration::from_secs(5 * 24 * HOUR);
/// While an endpoint fails, one new event in so long is tried at once, to see whether it is back.
pub const PROBE_PERIOD: Duration = Duration::from_secs(MINUTE);
/// A receiver may ask for a later attempt, but not later than this.
const ASKED_MAX: Duration = Duration::from_secs(24 * HOUR);
/// Pauses vary by so many percent to either side.
const JITTER_PERCENT: u64 = 10;
/// No pause is longer: the last of [`PAUSES`], a tenth longer by chance, which is more than may be asked for.
const PAUSE_MAX: Duration = Duration::from_secs(24 * HOUR * (100 + JITTER_PERCENT) / 100);

/// How long to wait after `attempts` attempts that failed; `None` if that was the last. `luck` is random,
/// `asked` what the receiver asked for.
pub fn pause(attempts: usize, luck: u16, asked: Option<Duration>) -> Option<Duration> {
    let planned = PAUSES.get(attempts.checked_sub(1)?)?.saturating_mul(1_000);
    // From 100 - JITTER_PERCENT to 100 + JITTER_PERCENT percent.
    let spread = planned * 2 * JITTER_PERCENT / 100;
    let chosen = planned - spread / 2 + spread * u64::from(luck) / u64::from(u16::MAX);
    Some(Duration::from_millis(chosen).max(asked.unwrap_or_default().min(ASKED_MAX)))
}

/// Whether what is due then is due now. A moment further ahead than any pause was noted while the clock was
/// wrong: it is due too.
pub fn is_due(due: Timestamp, now: Timestamp) -> bool {
    due <= now || due.since(now) > PAUSE_MAX
}

/// Whether an endpoint that has failed since then is given up now.
pub fn is_given_up(failing_since: Option<Timestamp>, now: Timestamp) -> bool {
    failing_since.is_some_and(|since| now.since(since) >= FAILING_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_are_made_over_76_hours_with_a_spread() {
        let all = |luck| -> Duration { (1..=PAUSES.len()).map(|made| pause(made, luck, None).unwrap()).sum() };
        let middle = all(u16::MAX / 2).as_secs();
        assert_eq!(middle.div_ceil(HOUR), 76, "{middle} s");
        assert_eq!(pause(PAUSES.len() + 1, 0, None), None, "the tenth is the last");
        let (least, most) = (all(0), all(u16::MAX));
        assert!(least < most && least * 100 >= Duration::from_secs(middle) * 89, "{least:?} {most:?}");
        assert_eq!(pause(0, 0, None), None);
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_but_not_for_less_and_not_for_ever() {
        let asked = |secs| pause(1, 0, Some(Duration::from_secs(secs))).unwrap();
        assert_eq!(asked(120), Duration::from_secs(120));
        assert!(asked(1) > Duration::from_secs(4));
        assert_eq!(asked(u64::MAX / 2), ASKED_MAX);
    }

    #[test]
    fn what_a_wrong_clock_put_off_for_years_is_due_and_what_the_plan_puts_off_is_not() {
        let now = Timestamp(1_795_342_500_000);
        for made in 1..=PAUSES.len() {
            for asked in [None, Some(Duration::MAX)] {
                let pause = pause(made, u16::MAX, asked).unwrap();
                assert!(pause <= PAUSE_MAX, "{made} {pause:?}");
                assert!(!is_due(now.plus(pause), now), "{made}");
                assert!(is_due(now, now) && is_due(now, now.plus(pause)));
            }
        }
        assert!(is_due(now.plus(Duration::from_secs(3_650 * 24 * HOUR)), now));
    }

    #[test]
    fn an_endpoint_is_given_up_after_five_days_of_nothing_but_failures() {
        let since = Timestamp(1_795_342_500_000);
        assert!(!is_given_up(None, since));
        assert!(!is_given_up(Some(since), since.plus(FAILING_MAX - Duration::from_millis(1))));
        assert!(is_given_up(Some(since), since.plus(FAILING_MAX)));
    }
}
