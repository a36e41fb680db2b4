//! Addresses: one spelling, one comparison, everywhere.
//!
//! A domain is kept as lower-case A-labels; a local part is kept as its meaning (unquoted) and
//! quoted again whenever it is written, so that a local part can never carry a fake parameter
//! (RFC 5321 s4.1.2). Source routes, address literals, `%` and `!` routing are not spoken here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Octets in a local part, at most (RFC 5321 s4.5.3.1.1).
pub const LOCAL_PART_OCTETS_MAX: usize = 64;
/// Octets in a domain, at most (RFC 5321 s4.5.3.1.2; 253 visible ones, RFC 1035 s2.3.4).
pub const DOMAIN_OCTETS_MAX: usize = 253;

/// A domain name in lower-case A-labels, without a trailing dot. Never an address literal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

/// What keeps a text from being an address or a domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `@`, or nothing before it.
    #[error("an address is written local-part@domain")]
    Shape,
    /// The local part breaks RFC 5321 s4.1.2 or its length limit.
    #[error("the part before @ is not a valid local part")]
    LocalPart,
    /// The domain is not a valid host name (RFC 1123 s2.1, RFC 5890).
    #[error("{0:?} is not a valid domain name")]
    Domain(String),
    /// `user@[192.0.2.1]`: refused by default.
    #[error("address literals are not accepted here")]
    Literal,
}

impl Domain {
    /// Reads a domain in any case, as A-labels or U-labels; one trailing dot is dropped.
    /// Underscores are allowed in labels (service names), empty labels are not.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError::Domain(super::status::printable(text));
        if text.starts_with('[') {
            return Err(AddressError::Literal);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let name = if name.is_ascii() {
            name.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(name).map_err(|_| refused())?
        };
        let label_is_sound = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > DOMAIN_OCTETS_MAX || !name.split('.').all(label_is_sound) {
            return Err(refused());
        }
        // A name of digits and dots only would be taken for an IPv4 address by the next reader.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(refused());
        }
        Ok(Self(name))
    }

    /// The name, lower case, A-labels.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `parent` or a name below it.
    pub fn is_within(&self, parent: &Self) -> bool {
        self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The name one label up, if it still has a dot in it.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_once('.')?;
        rest.contains('.').then(|| Self(rest.to_owned()))
    }
}

impl FromStr for Domain {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Domain {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A mailbox: `local-part@domain`.
///
/// Compared with the local part byte for byte (RFC 5321 s2.4 leaves its case to the owner);
/// [`Address::folded`] is for lists, where people do not expect case to matter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    local: String,
    domain: Domain,
}

impl Address {
    /// Reads `local@domain`, the local part quoted or not, UTF-8 allowed (RFC 6531 s3.3).
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = split_at_domain(text)?;
        let local = if let Some(inner) = local.strip_prefix('"') {
            unquote(inner.strip_suffix('"').ok_or(AddressError::LocalPart)?)?
        } else {
            if !is_dot_string(local) {
                return Err(AddressError::LocalPart);
            }
            local.to_owned()
        };
        Self::from_parts(local, Domain::parse(domain)?)
    }

    /// Builds from an already unquoted local part.
    pub fn from_parts(local: String, domain: Domain) -> Result<Self, AddressError> {
        if local.is_empty() || local.len() > LOCAL_PART_OCTETS_MAX || local.chars().any(char::is_control) {
            return Err(AddressError::LocalPart);
        }
        Ok(Self { local, domain })
    }

    /// The local part, without quotes or escapes.
    pub fn local_part(&self) -> &str {
        &self.local
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether SMTPUTF8 is needed to write it (RFC 6531).
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }

    /// The same address with the local part in lower case, for suppression and other lists. A local
    /// part that would grow over its limit by that (some letters do) stays as it is.
    #[must_use]
    pub fn folded(&self) -> Self {
        let lower = self.local.to_lowercase();
        let local = if lower.len() <= LOCAL_PART_OCTETS_MAX { lower } else { self.local.clone() };
        Self { local, domain: self.domain.clone() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_string(&self.local) {
            return write!(formatter, "{}@{}", self.local, self.domain);
        }
        formatter.write_str("\"")?;
        for character in self.local.chars() {
            if matches!(character, '"' | '\\') {
                formatter.write_str("\\")?;
            }
            write!(formatter, "{character}")?;
        }
        write!(formatter, "\"@{}", self.domain)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// The local part as written and the domain: split at the last `@`, which no domain can hold.
fn split_at_domain(text: &str) -> Result<(&str, &str), AddressError> {
    let (local, domain) = text.rsplit_once('@').ok_or(AddressError::Shape)?;
    if local.is_empty() {
        return Err(AddressError::Shape);
    }
    Ok((local, domain))
}

/// Dot-string of RFC 5321 s4.1.2 with the UTF-8 of RFC 6531 s3.3.
fn is_dot_string(local: &str) -> bool {
    let is_atext = |character: char| {
        character.is_ascii_alphanumeric()
            || "!#$%&'*+-/=?^_`{|}~".contains(character)
            || (!character.is_ascii() && !character.is_control())
    };
    local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// Quoted-string content of RFC 5321 s4.1.2 without its escapes.
fn unquote(quoted: &str) -> Result<String, AddressError> {
    let mut local = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Err(AddressError::LocalPart),
            '\\' => match characters.next() {
                Some(escaped) if !escaped.is_control() => local.push(escaped),
                _ => return Err(AddressError::LocalPart),
            },
            other => local.push(other),
        }
    }
    Ok(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_a_domain() {
        for text in ["Example.COM", "example.com.", "example.com"] {
            assert_eq!(Domain::parse(text).map(String::from), Ok("example.com".to_owned()));
        }
        assert_eq!(Domain::parse("żółw.example").map(String::from), Ok("xn--w-uga1v8h.example".to_owned()));
    }

    #[test]
    fn texts_that_are_no_domain_are_refused() {
        for text in ["", ".", "a..b", "-a.example", "a-.example", "a b", "a\r\nb", "192.0.2.1", "[192.0.2.1]", "a@b"] {
            assert!(Domain::parse(text).is_err(), "{text:?}");
        }
        assert!(Domain::parse(&"a".repeat(64)).is_err());
        assert!(Domain::parse(&vec!["a"; 128].join(".")).is_err());
    }

    #[test]
    fn within_means_the_same_name_or_below_it() {
        let parent = Domain("example.com".to_owned());
        for (name, is_within) in
            [("example.com", true), ("a.example.com", true), ("notexample.com", false), ("com", false)]
        {
            assert_eq!(Domain(name.to_owned()).is_within(&parent), is_within, "{name}");
        }
    }

    #[test]
    fn a_quoted_local_part_is_kept_by_meaning_and_quoted_again() {
        for (text, local, written) in [
            ("a.b@example.com", "a.b", "a.b@example.com"),
            ("\"a.b\"@example.com", "a.b", "a.b@example.com"),
            ("\"a b\"@example.com", "a b", "\"a b\"@example.com"),
            ("\"a\\\"> SIZE=1\"@example.com", "a\"> SIZE=1", "\"a\\\"> SIZE=1\"@example.com"),
            ("\"a@b\"@example.com", "a@b", "\"a@b\"@example.com"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.local_part(), address.to_string().as_str()), (local, written));
            assert_eq!(Address::parse(written), Ok(address));
        }
    }

    #[test]
    fn a_folded_address_is_an_address() {
        assert_eq!(Address::parse("Ann@Example.com").unwrap().folded().to_string(), "ann@example.com");
        // In lower case this letter is three octets instead of two.
        for (count, local) in [(21, "i\u{307}".repeat(21)), (32, "\u{130}".repeat(32))] {
            let folded = Address::parse(&format!("{}@example.com", "\u{130}".repeat(count))).unwrap().folded();
            assert_eq!(folded.local_part(), local);
            assert_eq!(Address::parse(&folded.to_string()).as_ref(), Ok(&folded));
            assert_eq!(folded.folded(), folded);
        }
    }

    #[test]
    fn texts_that_are_no_address_are_refused() {
        for text in [
            "",
            "a",
            "@example.com",
            "a@",
            ".a@example.com",
            "a..b@example.com",
            "a b@example.com",
            "\"a@example.com",
            "\"a\"b\"@example.com",
            "a@[192.0.2.1]",
            "a\r\n@example.com",
            "\"a\r\nb\"@example.com",
            "@a,@b:c@example.com",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        assert!(Address::parse(&format!("{}@example.com", "a".repeat(65))).is_err());
    }
}
