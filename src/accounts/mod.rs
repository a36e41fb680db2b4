//! Tenants and SMTP accounts: who may log in, from where, how much they may send.
//!
//! Recipe: `authenticate` turns a login into a [`Sender`]; `count` checks and books limits.
//! Easy to get wrong: an unknown login, a wrong password, a disabled account, a foreign virtual IP
//! and a forbidden source address must look and last the same from outside.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{Class, Refusal, SmtpAccountId, TenantId, VipId};
use crate::store::{Store, StoreError};
use crate::vips::Vip;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its unique short name: lower-case letters, digits, `-`, 1 to 63.
    pub name: String,
    /// Whether it may send.
    pub sending: Sending,
    /// Messages it may submit.
    pub limits: Limits,
    /// Whether delay notices go to senders who did not ask for them.
    pub delay_notices: DelayNotices,
    /// For mail that did not come by SMTP and for notices to it.
    pub default_vip: Option<VipId>,
    /// Whether the operator's queue verb may move its waiting mail to a shared virtual IP.
    pub move_to_shared: MoveToShared,
    /// When it was made.
    pub created: Timestamp,
}

/// Whether mail is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sending {
    /// Yes.
    Allowed,
    /// No: 451 at MAIL.
    Suspended,
}

/// Delay notices by tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelayNotices {
    /// Only to senders who gave `NOTIFY=DELAY`.
    WhenAsked,
    /// To every sender who did not give `NOTIFY=NEVER`.
    Always,
}

/// Permission to leave by another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveToShared {
    /// Never.
    Forbidden,
    /// By an explicit queue verb, with an event.
    Permitted,
}

/// Messages per hour and day; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Messages in any hour.
    pub hourly_max: Option<u64>,
    /// Messages in any day.
    pub daily_max: Option<u64>,
}

/// One SMTP account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmtpAccount {
    /// Its id.
    pub id: SmtpAccountId,
    /// Whose.
    pub tenant: TenantId,
    /// What the client logs in with; unique in the instance.
    pub login: String,
    /// SHA-256 of each valid password, at most two (rotation).
    pub secrets: Vec<[u8; 32]>,
    /// Part of every lane.
    pub class: Class,
    /// Where it may log in from; empty is anywhere.
    pub allowed_from: Vec<IpNet>,
    /// Messages it may submit.
    pub limits: Limits,
    /// Whether it may log in.
    pub login_state: LoginState,
    /// When it was made.
    pub created: Timestamp,
}

/// Whether an account may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginState {
    /// Yes.
    Enabled,
    /// No; looks like a wrong password.
    Disabled,
}

/// Who is sending: proof of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The tenant.
    pub tenant: TenantId,
    /// The SMTP account.
    pub account: SmtpAccountId,
    /// Its class.
    pub class: Class,
    /// The login, for the log.
    pub login: String,
}

/// A login as it was tried.
#[derive(Clone, Copy, Debug)]
pub struct LoginAttempt<'a> {
    /// What the client calls itself.
    pub login: &'a str,
    /// The password, never logged.
    pub password: &'a str,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The virtual IP it came in on.
    pub vip: &'a Vip,
}

/// How a login ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Proved.
    Accepted(Sender),
    /// 535; answer only after `delay`, the same for every reason.
    Refused {
        /// How long to wait before answering.
        delay: Duration,
    },
    /// 454: too many failures from there; come back later.
    Slowed {
        /// How long to wait before answering.
        delay: Duration,
    },
    /// 454: the records could not be read.
    Unavailable(String),
}

pub use crate::records::AdminError;

/// How login failures slow a peer. Defaults in `config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures of one (login, network) before answers are delayed.
    pub login_failures_free_max: u32,
    /// Failures of one network (/24 or /64) in an hour before it is answered 454.
    pub network_failures_max: u32,
    /// The longest delay of an answer.
    pub login_delay_max: Duration,
    /// How long a network that logged in is never blocked by others' failures.
    pub network_trust: Duration,
}

/// Tenants and SMTP accounts in memory, backed by the store.
pub struct Accounts {
    store: Arc<dyn Store>,
    settings: Settings,
}

#[expect(clippy::todo, reason = "face first")]
impl Accounts {
    /// Reads all records.
    pub fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Self, StoreError> {
        Ok(Self { store, settings })
    }

    /// Checks a login; takes the same path and time whatever is wrong with it.
    pub async fn authenticate(&self, attempt: &LoginAttempt<'_>, now: Timestamp) -> Login {
        let _ = (&self.store, self.settings, attempt, now);
        todo!("accounts room")
    }

    /// Checks the limits of tenant and account and books one message; 452 with the time when it lifts.
    pub fn count(&self, tenant: TenantId, account: Option<SmtpAccountId>, now: Timestamp) -> Result<(), Refusal> {
        let _ = (tenant, account, now);
        todo!("accounts room")
    }

    /// One tenant.
    pub fn tenant(&self, id: TenantId) -> Option<Tenant> {
        let _ = id;
        todo!("accounts room")
    }

    /// One tenant by its name.
    pub fn tenant_named(&self, name: &str) -> Option<Tenant> {
        let _ = name;
        todo!("accounts room")
    }

    /// Makes a tenant.
    pub async fn add_tenant(&self, actor: &Actor, name: &str, now: Timestamp) -> Result<Tenant, AdminError> {
        let _ = (actor, name, now);
        todo!("accounts room")
    }
}
