//! The record of an operation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::access::Actor;
use crate::ext::{self, Timestamp};
use crate::mail::{IdUnreadable, SmtpAccountId, TenantId};
use crate::store::{Key, prefix};
use crate::suppression::{Colour, Origin, Place, Reason};

/// Names an operation: the milliseconds it was begun at, then random octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(pub [u8; 16]);

impl OperationId {
    /// A new one; `now` only gives the order.
    pub fn new(now: Timestamp) -> Self {
        let mut octets = ext::random_bytes::<16>();
        octets[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
        Self(octets)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&ext::base32(&self.0))
    }
}

impl FromStr for OperationId {
    type Err = IdUnreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ext::from_base32(text).map(Self).ok_or_else(|| IdUnreadable(text.to_owned()))
    }
}

/// What is done. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A CSV file is put on a list.
    Import {
        /// For lines that name no reason.
        reason: Reason,
    },
    /// A list becomes a CSV file.
    Export {
        /// How.
        form: Form,
    },
    /// Everything of a tenant becomes a compressed file of JSON lines.
    Tenant,
}

/// The word of every kind.
pub const KIND_WORDS: &[&str] = &["import", "export", "tenant-export"];
/// The word of every state.
pub const STATE_WORDS: &[&str] = &["waiting", "running", "done", "cancelled", "failed"];

impl Kind {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Import { .. } => "import",
            Self::Export { .. } => "export",
            Self::Tenant => "tenant-export",
        }
    }
}

/// What of an entry an export shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Everything.
    #[default]
    Plain,
    /// SHA-256 of the subject in lower case, and nothing that people wrote: to compare lists with others.
    Hashed,
}

/// Where an operation stands. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Others come first.
    Waiting,
    /// Being carried out.
    Running,
    /// All of it was done.
    Done,
    /// Somebody stopped it; what it did stays.
    Cancelled,
    /// It could not go on: why.
    Failed(String),
}

impl State {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether nothing more happens.
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed(_))
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// Whose list.
    pub tenant: TenantId,
    /// The list of this SMTP account.
    pub account: Option<SmtpAccountId>,
    /// Which list.
    pub colour: Colour,
    /// What is done.
    pub kind: Kind,
    /// Who began it, as the audit log names it.
    pub by: String,
    /// For entries it makes.
    pub origin: Origin,
    /// When it was begun.
    pub began: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Where it stands.
    pub state: State,
    /// Octets of what came in; zero if nothing did.
    pub octets: u64,
    /// Of these, octets dealt with.
    pub at: u64,
    /// Lines dealt with, the first line with names left out.
    pub lines: u64,
    /// Entries made.
    pub added: u64,
    /// Lines whose entry was there already.
    pub present: u64,
    /// Lines rejected.
    pub rejected: u64,
    /// Octets of the file of rejected lines.
    pub rejected_octets: u64,
    /// Entries written to the result.
    pub written: u64,
    /// SHA-256 of what came in.
    pub input: Option<[u8; 32]>,
}

impl Operation {
    pub(super) fn new(id: OperationId, place: Place, kind: Kind, (actor, now): (&Actor, Timestamp)) -> Self {
        Self {
            id,
            tenant: place.tenant,
            account: place.account,
            colour: place.colour,
            kind,
            by: actor.name.clone(),
            origin: if actor.role.tenant().is_some() { Origin::Tenant } else { Origin::Operator },
            began: now,
            finished: None,
            state: State::Waiting,
            octets: 0,
            at: 0,
            lines: 0,
            added: 0,
            present: 0,
            rejected: 0,
            rejected_octets: 0,
            written: 0,
            input: None,
        }
    }

    /// The list it is about.
    pub fn place(&self) -> Place {
        Place { tenant: self.tenant, account: self.account, colour: self.colour }
    }

    pub(super) fn key(&self) -> Key {
        [&[prefix::OPERATION][..], &self.tenant.0.to_be_bytes(), &self.id.0].concat()
    }
}
