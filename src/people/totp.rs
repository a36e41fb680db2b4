//! Time-based one-time passwords (RFC 6238) over HMAC-SHA-1 (RFC 4226), six digits, steps of 30 s.
//!
//! Pure: the time is a value. SHA-1 because that is what every authenticator program can do; HMAC
//! does not need its collision resistance. Easy to get wrong: a code is good once, so whoever
//! accepts one remembers its step and never takes that step or an earlier one again.

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;

use crate::ext::Timestamp;

/// Seconds of a step (RFC 6238 s5.2 recommends 30).
pub const STEP_SECONDS: u64 = 30;
/// Steps a clock may be off, either way (RFC 6238 s5.2).
const SKEW_STEPS: u64 = 1;
/// Octets of a secret: RFC 4226 s4 recommends 160 bits.
pub const SECRET_OCTETS: usize = 20;
/// RFC 4648 s6, which authenticator programs read.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

fn code(secret: &[u8], step: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let octets = tag.as_ref();
    // RFC 4226 s5.3, dynamic truncation.
    let offset = usize::from(octets.last().copied().unwrap_or_default() & 0xf);
    let four = octets.get(offset..offset + 4).unwrap_or(&[0; 4]);
    let number = four.iter().fold(0_u32, |number, octet| (number << 8) | u32::from(*octet)) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

/// The step for which `typed` is the code: now, one earlier or one later, and after `last_step`.
/// Takes the same time whatever is typed.
pub fn accepts(secret: &[u8], typed: &str, last_step: u64, now: Timestamp) -> Option<u64> {
    let current = now.as_secs() / STEP_SECONDS;
    let typed: String = typed.chars().filter(|character| *character != ' ').collect();
    let mut found = None;
    for step in current.saturating_sub(SKEW_STEPS)..=current.saturating_add(SKEW_STEPS) {
        let is_it = bool::from(code(secret, step).as_bytes().ct_eq(typed.as_bytes()));
        if is_it && step > last_step {
            found = Some(step);
        }
    }
    found
}

/// The secret as people type it into an authenticator program.
pub fn written(secret: &[u8]) -> String {
    let mut text = String::with_capacity(32);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for octet in secret {
        bits = (bits << 8) | u32::from(*octet);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(BASE32[(bits >> held) as usize & 31]));
        }
        bits &= (1 << held) - 1;
    }
    text
}

/// What a QR code says: the form authenticator programs read.
pub fn address(secret: &[u8], issuer: &str, label: &str) -> String {
    let encoded = |text: &str| {
        let octet = |octet: u8| match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(octet).to_string(),
            other => format!("%{other:02X}"),
        };
        text.bytes().map(octet).collect::<String>()
    };
    let (issuer, label) = (encoded(issuer), encoded(label));
    format!("otpauth://totp/{issuer}:{label}?secret={}&issuer={issuer}", written(secret))
}

/// The code for `now`, for tests of whoever asks for codes.
#[doc(hidden)]
pub fn code_at(secret: &[u8], now: Timestamp) -> String {
    code(secret, now.as_secs() / STEP_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"12345678901234567890";

    #[test]
    fn the_values_of_rfc_6238_appendix_b_come_out() {
        for (seconds, expected) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code_at(SECRET, Timestamp(seconds * 1000)), expected);
        }
    }

    #[test]
    fn a_code_is_good_one_step_around_and_once() {
        let now = Timestamp(1_234_567_890_000);
        let step = now.as_secs() / STEP_SECONDS;
        let code = code_at(SECRET, now);
        assert_eq!(accepts(SECRET, &code, 0, now), Some(step));
        assert_eq!(accepts(SECRET, &code, step, now), None, "used already");
        let later = |seconds: u64| Timestamp(now.0 + seconds * 1000);
        assert_eq!(accepts(SECRET, &code, 0, later(STEP_SECONDS)), Some(step));
        assert_eq!(accepts(SECRET, &code, 0, later(2 * STEP_SECONDS)), None);
        assert_eq!(accepts(SECRET, &code_at(SECRET, later(2 * STEP_SECONDS)), 0, now), None, "two steps ahead");
        assert_eq!(accepts(SECRET, "", 0, now), None);
        let (first, last) = code.split_at(3);
        assert_eq!(accepts(SECRET, &format!("{first} {last}"), 0, now), Some(step), "as programs show it");
    }

    #[test]
    fn a_secret_is_written_as_rfc_4648_says_and_the_address_is_encoded() {
        assert_eq!(written(b"fooba"), "MZXW6YTB");
        assert_eq!(
            address(b"12345", "mx example", "a@b.example"),
            "otpauth://totp/mx%20example:a%40b.example?secret=GEZDGNBV&issuer=mx%20example"
        );
    }
}
