//! What narrows one SMTP account beyond what its tenant may: whom it sends as, and its name for people. Pure.
//!
//! Easy to get wrong: an empty list is no rule at all, and a domain covers its subdomains as a verified
//! domain does.

use serde::{Deserialize, Serialize};

use crate::mail::{Address, Domain};
use crate::records::AdminError;

/// Senders one account may be bound to, at most.
pub const ALLOWED_SENDERS_MAX: usize = 50;
/// Characters of an account's name, at most.
pub const NAME_CHARACTERS_MAX: usize = 100;

/// Whom an account may send as. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowedSender {
    /// Every address of a domain and of its subdomains.
    Domain(Domain),
    /// One address.
    Address(Address),
}

impl AllowedSender {
    /// Reads `shop.example` or `orders@shop.example`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.contains('@') {
            return Address::parse(text).map(Self::Address).map_err(|error| format!("{text:?}: {error}"));
        }
        Domain::parse(text).map(Self::Domain).map_err(|error| format!("{text:?}: {error}"))
    }

    /// Whether it is this address.
    pub fn covers(&self, address: &Address) -> bool {
        match self {
            Self::Domain(domain) => address.domain().is_within(domain),
            Self::Address(own) => own.folded() == address.folded(),
        }
    }
}

impl std::fmt::Display for AllowedSender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Domain(domain) => domain.fmt(formatter),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// Refuses a name that is too long or holds control characters.
pub fn check_name(name: &str) -> Result<(), AdminError> {
    if name.chars().count() > NAME_CHARACTERS_MAX || name.chars().any(char::is_control) {
        return Err(AdminError::field(
            "name",
            format!("a name has at most {NAME_CHARACTERS_MAX} printable characters"),
        ));
    }
    Ok(())
}

/// Refuses more senders than an account may be bound to.
pub fn check_senders(senders: &[AllowedSender]) -> Result<(), AdminError> {
    if senders.len() > ALLOWED_SENDERS_MAX {
        return Err(AdminError::field(
            "allowed_senders",
            format!("at most {ALLOWED_SENDERS_MAX} senders for one account"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_covers_its_subdomains_and_an_address_only_itself_in_any_case() {
        let covers =
            |rule: &str, address: &str| AllowedSender::parse(rule).unwrap().covers(&Address::parse(address).unwrap());
        assert!(covers("shop.example", "a@shop.example") && covers("shop.example", "a@news.shop.example"));
        assert!(!covers("shop.example", "a@myshop.example"));
        assert!(covers("Orders@shop.example", "orders@SHOP.example"));
        assert!(!covers("orders@shop.example", "other@shop.example"));
        assert!(AllowedSender::parse("no domain").is_err() && AllowedSender::parse("a@b@c").is_err());
    }
}
