//! The envelope: what SMTP says about a message outside of it (RFC 5321 s2.3.1), with the
//! parameters of 8BITMIME, SMTPUTF8, DSN, FUTURERELEASE and REQUIRETLS.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use crate::ext::Timestamp;

/// Where a notice goes; `None` is the null reverse-path `<>` (RFC 5321 s4.5.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReversePath(pub Option<Address>);

impl fmt::Display for ReversePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(address) => write!(formatter, "<{address}>"),
            None => formatter.write_str("<>"),
        }
    }
}

/// `BODY=` of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyType {
    /// Not given, or `7BIT`.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
}

/// Whether `SMTPUTF8` was given (RFC 6531 s3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Smtputf8 {
    /// Addresses and headers are ASCII.
    #[default]
    NotNeeded,
    /// The peer must offer SMTPUTF8.
    Needed,
}

/// Whether `REQUIRETLS` was given (RFC 8689 s2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequireTls {
    /// The message goes as the recipient domain's policy and ours have it.
    #[default]
    NotAsked,
    /// Every peer on its way must be proved, encrypt, and offer REQUIRETLS too.
    Asked,
}

/// `RET=` of MAIL: how much of the message a failure notice carries (RFC 3461 s4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header block only.
    Headers,
}

/// `HOLDFOR=` or `HOLDUNTIL=` of MAIL (RFC 4865).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hold {
    /// Not before this span has passed since acceptance.
    For(Duration),
    /// Not before this moment.
    Until(Timestamp),
}

/// `NOTIFY=` of RCPT (RFC 3461 s4.1): which notices this recipient's sender wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// A notice on failure. The default when nothing is said.
    pub failure: bool,
    /// A notice on delay, only if asked.
    pub delay: bool,
    /// A notice on success, only if asked.
    pub success: bool,
}

impl Notify {
    /// `NOTIFY=NEVER`.
    pub const NEVER: Self = Self { failure: false, delay: false, success: false };
}

impl Default for Notify {
    fn default() -> Self {
        Self { failure: true, delay: false, success: false }
    }
}

/// What MAIL said besides the address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailParameters {
    /// `BODY=`.
    pub body: BodyType,
    /// `SMTPUTF8`.
    pub smtputf8: Smtputf8,
    /// `RET=`.
    pub ret: Option<Ret>,
    /// `ENVID=`, decoded from xtext (RFC 3461 s4.4), printable.
    pub envid: Option<String>,
    /// `HOLDFOR=` or `HOLDUNTIL=`.
    pub hold: Option<Hold>,
    /// `REQUIRETLS`.
    pub require_tls: RequireTls,
}

/// One RCPT: the forward-path and its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardPath {
    /// Where the message goes.
    pub address: Address,
    /// `NOTIFY=`.
    pub notify: Notify,
    /// `ORCPT=` as `type;address`, decoded from xtext (RFC 3461 s4.2), printable.
    pub orcpt: Option<String>,
}

impl ForwardPath {
    /// A forward-path without parameters.
    pub fn plain(address: Address) -> Self {
        Self { address, notify: Notify::default(), orcpt: None }
    }

    /// Whether its local part asks the next hop to route it on, by `%`, `!` or `@`: the way into open
    /// relays of old (RFC 5321 s4.1.2, appendix F.2).
    pub fn routes_on(&self) -> bool {
        self.address.local_part().contains(['%', '!', '@'])
    }
}

/// One transaction's envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// MAIL's address.
    pub reverse_path: ReversePath,
    /// MAIL's parameters.
    pub parameters: MailParameters,
    /// RCPT's addresses in order; at least one when it reaches intake.
    pub recipients: Vec<ForwardPath>,
}

/// What kind of mail an SMTP account sends; part of every lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Password resets, orders, notices: goes first.
    #[default]
    Transactional,
    /// Newsletters and campaigns.
    Marketing,
}
