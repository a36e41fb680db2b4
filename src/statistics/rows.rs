//! How counts are stored: one record for each row of an hour or a day of one tenant. Pure.
//!
//! Three faces of the same facts: by destination (domain and provider), by tag and by sending domain, each with
//! the SMTP account and the virtual IP. Easy to get wrong: what is counted in one face is counted in the others
//! too, so a sum takes one of them; and a message with two tags is in two rows, so the sum of tags is no total.

use std::cmp::Ordering;

use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId, VipId};
use crate::store::{Key, after_prefix, prefix};

/// Octets of what the keys of a bucket begin with: prefix, span, number, tenant.
const BUCKET_OCTETS: usize = 14;
const HOUR_MILLIS: u64 = 3_600_000;
const DAY_MILLIS: u64 = 24 * HOUR_MILLIS;
/// Stands for what has no row of its own; neither a domain nor a tag can be it.
pub const OTHER: &str = "\u{1}";

/// How long a row's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// An hour.
    Hour,
    /// A day, in UTC.
    Day,
}

impl Span {
    /// Its length.
    pub fn millis(self) -> u64 {
        match self {
            Self::Hour => HOUR_MILLIS,
            Self::Day => DAY_MILLIS,
        }
    }

    /// The number of the hour or day, counted from 1970, that `at` is in.
    pub fn number(self, at: Timestamp) -> u32 {
        u32::try_from(at.0.checked_div(self.millis()).unwrap_or_default()).unwrap_or(u32::MAX)
    }

    /// When it begins.
    pub fn begins(self, number: u32) -> Timestamp {
        Timestamp(u64::from(number).saturating_mul(self.millis()))
    }

    fn byte(self) -> u8 {
        match self {
            Self::Hour => b'h',
            Self::Day => b'd',
        }
    }
}

/// By what a row tells its counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Face {
    /// By where the mail went.
    Destination,
    /// By what its sender counts it by.
    Tag,
    /// By the sending domain that signed it.
    SendingDomain,
}

impl Face {
    fn byte(self) -> u8 {
        match self {
            Self::Destination => b'd',
            Self::Tag => b't',
            Self::SendingDomain => b's',
        }
    }
}

/// Which hour or day of which tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Hour or day.
    pub span: Span,
    /// Its number.
    pub number: u32,
    /// Whose.
    pub tenant: TenantId,
}

/// What a row's counts are of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Of which face.
    pub face: Face,
    /// The SMTP account, if it came by one.
    pub account: Option<SmtpAccountId>,
    /// The virtual IP it was accepted for.
    pub vip: VipId,
    /// The provider's name, or [`OTHER`]; empty in the faces of tags and of sending domains.
    pub provider: String,
    /// The domain, tag or sending domain, or [`OTHER`].
    pub value: String,
}

/// Every row of a span begins so.
pub fn of_span(span: Span) -> Key {
    vec![prefix::STATISTICS, span.byte()]
}

/// The number of the hour or day that a row is of, however the rest of its key reads.
pub fn number_of(key: &[u8]) -> Option<u32> {
    key.get(2..).and_then(<[u8]>::first_chunk).map(|number| u32::from_be_bytes(*number))
}

/// Every row of a span from this number on.
pub fn from_number(span: Span, number: u32) -> Key {
    [&of_span(span)[..], &number.to_be_bytes()].concat()
}

impl Bucket {
    /// Every row of it begins so.
    pub fn key(self) -> Key {
        [&from_number(self.span, self.number)[..], &self.tenant.0.to_be_bytes()].concat()
    }

    /// The key of one of its rows.
    pub fn row(self, labels: &Labels) -> Key {
        let mut key = self.key();
        key.push(labels.face.byte());
        key.extend_from_slice(&labels.account.map_or(0, |account| account.0).to_be_bytes());
        key.extend_from_slice(&labels.vip.0.to_be_bytes());
        let provider = labels.provider.as_bytes();
        let octets = u8::try_from(provider.len()).unwrap_or(u8::MAX);
        key.push(octets);
        key.extend_from_slice(provider.get(..usize::from(octets)).unwrap_or(provider));
        key.extend_from_slice(labels.value.as_bytes());
        key
    }
}

/// Where rows of `face` go on behind the row of this key, if that is of another one.
pub fn next_of_face(key: &[u8], face: Face) -> Option<Key> {
    let (head, rest) = key.split_at_checked(BUCKET_OCTETS)?;
    match rest.first()?.cmp(&face.byte()) {
        Ordering::Less => Some([head, &[face.byte()]].concat()),
        Ordering::Equal => None,
        Ordering::Greater => Some(after_prefix(head)),
    }
}

/// What a key is the row of; `None` if it is none.
pub fn read(key: &[u8]) -> Option<(Bucket, Labels)> {
    let (head, rest) = key.split_first_chunk::<2>()?;
    let span = match head {
        [prefix::STATISTICS, b'h'] => Span::Hour,
        [prefix::STATISTICS, b'd'] => Span::Day,
        _ => return None,
    };
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let (tenant, rest) = rest.split_first_chunk::<8>()?;
    let (face, rest) = rest.split_first()?;
    let face = match face {
        b'd' => Face::Destination,
        b't' => Face::Tag,
        b's' => Face::SendingDomain,
        _ => return None,
    };
    let (account, rest) = rest.split_first_chunk::<8>()?;
    let (vip, rest) = rest.split_first_chunk::<8>()?;
    let (octets, rest) = rest.split_first()?;
    let (provider, value) = rest.split_at_checked(usize::from(*octets))?;
    let account = u64::from_be_bytes(*account);
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let labels = Labels {
        face,
        account: (account != 0).then_some(SmtpAccountId(account)),
        vip: VipId(u64::from_be_bytes(*vip)),
        provider: text(provider)?,
        value: text(value)?,
    };
    let tenant = TenantId(u64::from_be_bytes(*tenant));
    Some((Bucket { span, number: u32::from_be_bytes(*number), tenant }, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_back_from_its_key() {
        for (span, face) in [(Span::Hour, Face::Destination), (Span::Day, Face::Tag), (Span::Hour, Face::SendingDomain)]
        {
            for account in [None, Some(SmtpAccountId(7))] {
                let bucket = Bucket { span, number: span.number(Timestamp(1_795_342_500_123)), tenant: TenantId(5) };
                let labels =
                    Labels {
                        face, account, vip: VipId(9), provider: "gmail".to_owned(), value: "zażółć".to_owned()
                    };
                assert_eq!(read(&bucket.row(&labels)), Some((bucket, labels)));
            }
        }
        assert_eq!(read(b"x"), None);
        assert_eq!(read(&from_number(Span::Day, 3)), None);
    }

    #[test]
    fn an_hour_begins_when_it_is_full_and_a_day_at_midnight_in_utc() {
        let at = Timestamp::from_rfc3339("2026-11-29T23:59:59Z").unwrap();
        let begins = |span: Span| span.begins(span.number(at)).rfc3339();
        assert!(begins(Span::Hour).starts_with("2026-11-29T23:00:00"), "{}", begins(Span::Hour));
        assert!(begins(Span::Day).starts_with("2026-11-29T00:00:00"), "{}", begins(Span::Day));
    }

    #[test]
    fn from_a_row_of_another_face_the_way_leads_to_the_next_one_of_the_face_that_is_asked() {
        let bucket = |tenant| Bucket { span: Span::Hour, number: 7, tenant: TenantId(tenant) };
        let row = |tenant, face| {
            let value = "x".to_owned();
            bucket(tenant).row(&Labels { face, account: None, vip: VipId(9), provider: String::new(), value })
        };
        let [destination, sender, tag] = [Face::Destination, Face::SendingDomain, Face::Tag].map(|face| row(5, face));
        assert!(destination < sender && sender < tag);
        let next = next_of_face(&destination, Face::SendingDomain).unwrap();
        assert!(destination < next && next <= sender, "{next:?}");
        assert_eq!(next_of_face(&sender, Face::SendingDomain), None);
        let next = next_of_face(&tag, Face::SendingDomain).unwrap();
        assert!(tag < next && next <= row(6, Face::Destination), "{next:?}");
        assert_eq!(next_of_face(b"short", Face::Tag), None);
    }
}
