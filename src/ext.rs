//! Small things std lacks, with no words of mail in them: wall-clock time, randomness, base 32.
//!
//! It refuses to know what anything is for. If three functions here share a subject,
//! they want a room of their own.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment of wall-clock time: milliseconds since 1970-01-01 UTC.
///
/// For people and protocols only. The queue's own arithmetic uses [`crate::queue::QueueTime`],
/// which no clock jump can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Reads the wall clock. Only drivers call this; decisions take `now` as a value.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Whole seconds since 1970.
    pub fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// This moment plus `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this moment is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// How far apart two moments are, whichever is later. For what was remembered shortly before: further apart
    /// than it is remembered means that the clock was set, back or ahead.
    pub fn apart(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    fn jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(i64::try_from(self.0).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::MAX)
    }

    /// RFC 3339, UTC, with milliseconds: `2026-11-22T10:15:00.123Z`.
    pub fn rfc3339(self) -> String {
        self.jiff().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }

    /// Reads a date and time of RFC 3339, with its zone. `None` if it is not one or before 1970.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let moment: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(moment.as_millisecond()).ok().map(Self)
    }

    /// RFC 5322 s3.3 date-time in UTC: `Sun, 22 Nov 2026 10:15:00 +0000`.
    pub fn rfc5322(self) -> String {
        self.jiff().strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.rfc3339())
    }
}

/// `N` bytes from the operating system's random source.
///
/// # Panics
/// If the operating system has no randomness to give; nothing safe can be done then.
#[expect(clippy::expect_used, reason = "without randomness no key, id or secret can be made")]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Crockford's base 32, lower case: no `i`, `l`, `o`, `u`, so that it can be read out loud.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Writes `bytes` in base 32, most significant bit first, without padding.
pub fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(BASE32[(bits >> held) as usize & 31]));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        text.push(char::from(BASE32[(bits << (5 - held)) as usize & 31]));
    }
    text
}

/// Reads what [`base32`] wrote (either case). `None` if a character does not belong
/// or the length is not that of exactly `N` bytes.
pub fn from_base32<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut out = [0; N];
    let (mut bits, mut held, mut at) = (0_u32, 0_u32, 0);
    for character in text.bytes() {
        let value = BASE32.iter().position(|known| *known == character.to_ascii_lowercase())?;
        bits = (bits << 5) | u32::try_from(value).ok()?;
        held += 5;
        if held >= 8 {
            held -= 8;
            *out.get_mut(at)? = u8::try_from((bits >> held) & 0xff).ok()?;
            at += 1;
            bits &= (1 << held) - 1;
        }
    }
    (at == N && bits == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_reads_back_what_it_wrote() {
        let bytes = random_bytes::<16>();
        let text = base32(&bytes);
        assert_eq!(text.len(), 26);
        assert_eq!(from_base32::<16>(&text), Some(bytes));
        assert_eq!(from_base32::<16>(&text.to_uppercase()), Some(bytes));
        assert_eq!(from_base32::<16>(&text[1..]), None);
        assert_eq!(from_base32::<16>(&text.replace(&text[3..4], "u")), None);
    }

    #[test]
    fn dates_are_written_as_the_standards_ask() {
        let moment = Timestamp(1_795_342_500_123);
        assert_eq!(moment.rfc3339(), "2026-11-22T10:15:00.123Z");
        assert_eq!(moment.rfc5322(), "Sun, 22 Nov 2026 10:15:00 +0000");
    }
}
