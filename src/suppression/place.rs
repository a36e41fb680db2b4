//! Which list an entry is on, and the key it has in the store.
//!
//! Keys of a tenant's own blacklist are `S tenant a|d text`, as they were when there was no other list; the
//! other lists have a capital letter where that has `a` or `d`. Easy to get wrong: a list is the range from
//! its `a` to its `d`, or another list's entries would be listed with it.

use serde::{Deserialize, Serialize};

use super::Subject;
use crate::mail::{Address, Domain, SmtpAccountId, TenantId};
use crate::store::{Key, prefix};

const ADDRESS: u8 = b'a';
const DOMAIN: u8 = b'd';
const AFTER_DOMAINS: u8 = b'e';

/// What being on a list means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// Never mailed.
    #[default]
    Black,
    /// Mailed although it is on a blacklist, unless the recipient complained or unsubscribed.
    White,
}

/// One list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Whose.
    pub tenant: TenantId,
    /// For the mail of this SMTP account only.
    pub account: Option<SmtpAccountId>,
    /// What it is for.
    pub colour: Colour,
}

/// The blacklist for all of a tenant's mail.
impl From<TenantId> for Place {
    fn from(tenant: TenantId) -> Self {
        Self { tenant, account: None, colour: Colour::Black }
    }
}

impl Place {
    fn key(self) -> Key {
        let mut key = vec![prefix::SUPPRESSION];
        key.extend_from_slice(&self.tenant.0.to_be_bytes());
        match (self.colour, self.account) {
            (Colour::Black, None) => {}
            (Colour::White, None) => key.push(b'W'),
            (colour, Some(account)) => {
                key.push(if colour == Colour::Black { b'B' } else { b'V' });
                key.extend_from_slice(&account.0.to_be_bytes());
            }
        }
        key
    }

    /// Behind its last entry.
    pub(super) fn end(self) -> Key {
        [&self.key()[..], &[AFTER_DOMAINS]].concat()
    }

    /// The ranges of subjects whose text begins with `text`: addresses, then domains.
    pub(super) fn beginning_with(self, text: &str) -> [Key; 2] {
        [ADDRESS, DOMAIN].map(|kind| [&self.key()[..], &[kind], text.as_bytes()].concat())
    }

    /// The key of a subject.
    pub(super) fn of(self, subject: &Subject) -> Key {
        match subject {
            Subject::Address(address) => self.of_address(address),
            Subject::Domain(domain) => self.of_domain(domain),
        }
    }

    pub(super) fn of_address(self, address: &Address) -> Key {
        [&self.key()[..], &[ADDRESS], address.folded().to_string().as_bytes()].concat()
    }

    pub(super) fn of_domain(self, domain: &Domain) -> Key {
        [&self.key()[..], &[DOMAIN], domain.as_str().as_bytes()].concat()
    }

    /// The subject a key was made of; the key says it even where the entry is damaged.
    pub(super) fn subject(self, key: &[u8]) -> Option<Subject> {
        let (kind, text) = key.get(self.key().len()..)?.split_first()?;
        let text = std::str::from_utf8(text).ok()?;
        match *kind {
            ADDRESS => Address::parse(text).ok().map(Subject::Address),
            _ => Domain::parse(text).ok().map(Subject::Domain),
        }
    }

    /// In words, for the log.
    pub(super) fn words(self) -> String {
        let of = self.account.map(|account| format!("SMTP account {account} of ")).unwrap_or_default();
        let colour = if self.colour == Colour::Black { "blacklist" } else { "whitelist" };
        format!("the {colour} of {of}tenant {}", self.tenant)
    }
}
