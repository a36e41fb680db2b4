//! Keyed tags: which message and which recipient an address of ours stands for. Pure.
//!
//! A tag is base 32 in lower case, so that it survives systems that fold local parts (RFC 5321 s2.4 forbids it,
//! and they do). It holds the queue id, which begins with the time, the recipient's number and 72 bits of an
//! HMAC over both, the purpose and the domain. Easy to get wrong: whoever can read a tag can use it, so what it
//! proves is that we sent that message to that recipient, and nothing of who says so now.

use std::time::Duration;

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq as _;

use crate::ext::{self, Timestamp};
use crate::mail::{Address, Domain, QueueId};

/// Octets of the key.
pub const KEY_OCTETS: usize = 32;
/// Octets of the HMAC that a tag keeps.
const MAC_OCTETS: usize = 9;
/// Queue id, recipient number, HMAC.
const TAG_OCTETS: usize = 16 + 2 + MAC_OCTETS;
/// Queue id, HMAC.
const TRACE_OCTETS: usize = 16 + MAC_OCTETS;
/// A tag from so far ahead was made before the clock was set back; one from further is none of ours.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);

/// What an address is for: its first letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Notices: a return-path.
    Return,
    /// Unsubscribing.
    Unsubscribe,
}

impl Purpose {
    fn letter(self) -> char {
        match self {
            Self::Return => 'b',
            Self::Unsubscribe => 'u',
        }
    }
}

/// Whom a tag stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tagged {
    /// What the address is for.
    pub purpose: Purpose,
    /// The message.
    pub id: QueueId,
    /// The recipient's number.
    pub number: u16,
}

/// Why a local part is no tag that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagError {
    /// It is not one, or it is forged.
    Unknown,
    /// It was one, and is too old.
    Lapsed,
}

/// Makes and reads tags.
pub struct Tags {
    key: hmac::Key,
}

impl Tags {
    /// With the instance's key.
    pub fn new(key: &[u8; KEY_OCTETS]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The address at `domain` that stands for a recipient of a message.
    ///
    /// # Panics
    /// Never: a tag is a short local part of letters and digits.
    #[expect(clippy::expect_used, reason = "45 letters and digits are a local part")]
    pub fn address(&self, tagged: Tagged, domain: &Domain) -> Address {
        let Tagged { purpose, id, number } = tagged;
        let mut octets = Vec::with_capacity(TAG_OCTETS);
        octets.extend_from_slice(&id.0);
        octets.extend_from_slice(&number.to_be_bytes());
        octets.extend_from_slice(&self.mac(purpose.letter(), &octets, domain.as_str()));
        let local = format!("{}{}", purpose.letter(), ext::base32(&octets));
        Address::from_parts(local, domain.clone()).expect("letters and digits are a local part")
    }

    /// Reads [`Tags::address`]: in whatever case, and not older than `age_max`.
    ///
    /// # Errors
    /// If it is none of ours, or too old.
    pub fn read(&self, address: &Address, (now, age_max): (Timestamp, Duration)) -> Result<Tagged, TagError> {
        let local = address.local_part();
        let (letter, rest) = local.split_at_checked(1).ok_or(TagError::Unknown)?;
        let purposes = [Purpose::Return, Purpose::Unsubscribe];
        let purpose =
            purposes.into_iter().find(|purpose| letter.eq_ignore_ascii_case(purpose.letter().encode_utf8(&mut [0; 4])));
        let purpose = purpose.ok_or(TagError::Unknown)?;
        let octets = ext::from_base32::<TAG_OCTETS>(rest).ok_or(TagError::Unknown)?;
        let (said, mac) = octets.split_at(TAG_OCTETS - MAC_OCTETS);
        self.check((purpose.letter(), said, address.domain().as_str()), mac)?;
        let (id, number) = said.split_at(16);
        let id = QueueId(id.try_into().map_err(|_| TagError::Unknown)?);
        let number = u16::from_be_bytes(number.try_into().map_err(|_| TagError::Unknown)?);
        is_of_its_time(id, (now, age_max))?;
        Ok(Tagged { purpose, id, number })
    }

    /// The value of the trace field of a message.
    pub fn trace(&self, id: QueueId) -> String {
        let mac = self.mac('t', &id.0, "");
        ext::base32(&[&id.0[..], &mac].concat())
    }

    /// Reads [`Tags::trace`].
    ///
    /// # Errors
    /// If it is none of ours, or too old.
    pub fn read_trace(&self, text: &str, age: (Timestamp, Duration)) -> Result<QueueId, TagError> {
        let octets = ext::from_base32::<TRACE_OCTETS>(text.trim()).ok_or(TagError::Unknown)?;
        let (said, mac) = octets.split_at(16);
        self.check(('t', said, ""), mac)?;
        let id = QueueId(said.try_into().map_err(|_| TagError::Unknown)?);
        is_of_its_time(id, age)?;
        Ok(id)
    }

    fn check(&self, (letter, said, domain): (char, &[u8], &str), mac: &[u8]) -> Result<(), TagError> {
        let expected = self.mac(letter, said, domain);
        if bool::from(expected.as_slice().ct_eq(mac)) { Ok(()) } else { Err(TagError::Unknown) }
    }

    fn mac(&self, letter: char, said: &[u8], domain: &str) -> [u8; MAC_OCTETS] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(letter.encode_utf8(&mut [0; 4]).as_bytes());
        context.update(said);
        context.update(domain.as_bytes());
        let whole = context.sign();
        let mut kept = [0; MAC_OCTETS];
        kept.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
        kept
    }
}

fn is_of_its_time(id: QueueId, (now, age_max): (Timestamp, Duration)) -> Result<(), TagError> {
    let made = id.made();
    if now.since(made) > age_max {
        return Err(TagError::Lapsed);
    }
    if made.since(now) > AHEAD_MAX { Err(TagError::Unknown) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn tags(seed: u8) -> Tags {
        Tags::new(&[seed; KEY_OCTETS])
    }

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    fn any_tagged() -> impl Strategy<Value = Tagged> {
        (any::<[u8; 10]>(), any::<u16>(), any::<bool>(), 0..29_u64).prop_map(|(random, number, is_return, days)| {
            let made = Timestamp(NOW.0 - days * 86_400_000);
            let mut id = QueueId::new(made);
            id.0[6..].copy_from_slice(&random);
            let purpose = if is_return { Purpose::Return } else { Purpose::Unsubscribe };
            Tagged { purpose, id, number }
        })
    }

    proptest! {
        #[test]
        fn a_tag_reads_back_in_any_case_and_is_a_short_local_part(tagged in any_tagged(), folding in any::<u64>()) {
            let address = tags(1).address(tagged, &domain("bounce.shop.example"));
            prop_assert!(address.local_part().len() <= 64);
            let mixed: String = address.local_part().chars().enumerate()
                .map(|(at, letter)| if (folding >> (at % 64)) & 1 == 1 { letter.to_ascii_uppercase() } else { letter })
                .collect();
            let again = Address::parse(&format!("{mixed}@BOUNCE.shop.example")).unwrap();
            prop_assert_eq!(tags(1).read(&again, (NOW, 30 * DAY)), Ok(tagged));
            prop_assert_eq!(tags(2).read(&again, (NOW, 30 * DAY)), Err(TagError::Unknown));
            let elsewhere = Address::parse(&format!("{mixed}@bounce.other.example")).unwrap();
            prop_assert_eq!(tags(1).read(&elsewhere, (NOW, 30 * DAY)), Err(TagError::Unknown));
            prop_assert_eq!(tags(1).read(&again, (NOW.plus(60 * DAY), 30 * DAY)), Err(TagError::Lapsed));
        }

        #[test]
        fn a_changed_tag_is_refused(tagged in any_tagged(), at in 0..45_usize, to in 0..32_usize) {
            let address = tags(1).address(tagged, &domain("b.example"));
            let mut local: Vec<u8> = address.local_part().bytes().collect();
            let new = b"0123456789abcdefghjkmnpqrstvwxyz"[to];
            prop_assume!(local[at] != new);
            local[at] = new;
            let changed = Address::from_parts(String::from_utf8(local).unwrap(), domain("b.example")).unwrap();
            prop_assert!(tags(1).read(&changed, (NOW, 30 * DAY)).is_err());
        }

        #[test]
        fn whatever_a_peer_writes_is_read_without_a_panic_and_never_counts(local in "[a-z0-9.+=_-]{1,64}") {
            if let Ok(address) = Address::parse(&format!("{local}@b.example")) {
                prop_assert!(tags(1).read(&address, (NOW, 30 * DAY)).is_err());
            }
            prop_assert!(tags(1).read_trace(&local, (NOW, 30 * DAY)).is_err());
        }
    }

    #[test]
    fn a_trace_says_which_message_and_a_return_path_is_no_way_to_unsubscribe() {
        let id = QueueId::new(NOW);
        let trace = tags(1).trace(id);
        assert_eq!(tags(1).read_trace(&trace.to_uppercase(), (NOW, DAY)), Ok(id));
        assert_eq!(tags(1).read_trace(&trace, (NOW.plus(2 * DAY), DAY)), Err(TagError::Lapsed));
        assert_eq!(tags(2).read_trace(&trace, (NOW, DAY)), Err(TagError::Unknown));
        let tagged = Tagged { purpose: Purpose::Return, id, number: 3 };
        let address = tags(1).address(tagged, &domain("b.example"));
        let swapped = Address::parse(&format!("u{}", &address.to_string()[1..])).unwrap();
        assert_eq!(tags(1).read(&swapped, (NOW, DAY)), Err(TagError::Unknown));
    }
}
