//! Tenants and SMTP accounts: who may log in, from where, how much they may send.
//!
//! Recipe: `authenticate` turns a login into a [`Sender`]; `may_send` at each MAIL; `count` checks
//! and books limits; `run` writes counters, trusted networks and login events by and by.
//! Easy to get wrong: an unknown login, a wrong password, a disabled account, a foreign virtual IP
//! and a forbidden source address must look and last the same from outside.

mod authenticate;
mod failures;
mod limits;
mod network;
mod rules;
mod secret;
mod seen;
mod smtp_accounts;
mod stored;
mod tenants;
mod trust;
mod usage;

pub use failures::{Failed, Failures, REMEMBERED_MAX};
pub use network::Network;
pub use rules::{ALLOWED_SENDERS_MAX, AllowedSender, NAME_CHARACTERS_MAX};
pub use secret::SECRETS_MAX;
pub use seen::{LOGINS_SEEN_MAX, LoginSeen, LoginWay};
pub use smtp_accounts::{ALLOWED_FROM_MAX, AccountChange, NewSmtpAccount};
pub use tenants::{OVERFLOW_VIPS_MAX, REGION_CHARACTERS_MAX, RETENTION_DAYS_MAX, TenantChange};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use stored::{account_bytes, read_account, read_tenant, tenant_bytes};
pub use trust::NETWORKS_PER_TENANT_MAX;
#[doc(hidden)]
pub use trust::SeenNetwork;
#[doc(hidden)]
pub use usage::Counts as UsageCounts;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::access::{Actor, Permission, Resource};
use crate::ext::Timestamp;
use crate::mail::{Class, HeaderDialect, Refusal, SmtpAccountId, TenantId, VipId};
use crate::records::{self, Damage, Desk};
use crate::store::{Key, Store, StoreError, prefix};
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
    /// For mail that did not come by SMTP.
    pub default_vip: Option<VipId>,
    /// Whether the operator's queue verb may move its waiting mail to a shared virtual IP.
    pub move_to_shared: MoveToShared,
    /// When it was made.
    pub created: Timestamp,
    /// Where its data may be kept, in the operator's words; may be empty. It changes nothing by itself.
    pub region: String,
    /// After how many days what is kept of its finished messages is forgotten, if that is earlier than the
    /// instance does it.
    pub retention_days: Option<u16>,
    /// The shared virtual IPs that mail may move to by itself which a warm-up has no room for; none is the default.
    pub overflow_to: Vec<VipId>,
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

impl Limits {
    /// For people: `10 an hour, 50 a day`.
    pub fn words(self) -> String {
        let most = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |most| most.to_string());
        format!("{} an hour, {} a day", most(self.hourly_max), most(self.daily_max))
    }
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
    /// What people call it; may be empty.
    pub name: String,
    /// Whom it may send as, of what its tenant may; empty is everybody.
    pub allowed_senders: Vec<AllowedSender>,
    /// From when on it may neither log in nor send.
    pub expires: Option<Timestamp>,
    /// Until when the older of two passwords is valid; `None` is until it is dropped.
    pub old_until: Option<Timestamp>,
    /// Whose header fields are read beside our own.
    pub dialects: Vec<HeaderDialect>,
}

impl SmtpAccount {
    /// The digests of the passwords that are valid at `now`, the newer first.
    pub fn valid_secrets(&self, now: Timestamp) -> &[[u8; 32]] {
        let is_over = self.old_until.is_some_and(|until| until <= now);
        let most = if is_over { 1 } else { SECRETS_MAX };
        self.secrets.get(..self.secrets.len().min(most)).unwrap_or_default()
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|moment| moment <= now)
    }
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
    /// What protects it, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub tls: &'a str,
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

/// How login failures slow a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures of one (login, network) before answers are delayed. Default 3.
    pub login_failures_free_max: u32,
    /// Failures of one network (/24 or /64) in an hour before it is answered 454. Default 100.
    pub network_failures_max: u32,
    /// The longest delay of an answer. Default 10 s.
    pub login_delay_max: Duration,
    /// How long a network that logged in is never blocked by others' failures. Default 30 days.
    pub network_trust: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            login_failures_free_max: 3,
            network_failures_max: 100,
            login_delay_max: Duration::from_secs(10),
            network_trust: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Says why no mail of an SMTP account is taken at this moment; `None` if it is.
pub type AccountStop = Box<dyn Fn(SmtpAccountId) -> Option<Refusal> + Send + Sync>;

/// Tenants and SMTP accounts in memory, backed by the store.
pub struct Accounts {
    desk: Desk,
    stop: OnceLock<AccountStop>,
    settings: RwLock<Settings>,
    /// What a login without an account is compared with.
    dummy: secret::Candidates,
    memory: Arc<Memory>,
    damaged: Vec<Damage>,
}

/// What the hot path reads and books.
struct Memory {
    records: RwLock<Records>,
    logins: Mutex<authenticate::Logins>,
    counters: Mutex<limits::Counters>,
}

#[derive(Default)]
struct Records {
    tenants: HashMap<TenantId, Arc<Tenant>>,
    tenant_names: HashMap<String, TenantId>,
    accounts: HashMap<SmtpAccountId, Arc<SmtpAccount>>,
    logins: HashMap<String, SmtpAccountId>,
}

impl Records {
    fn put_tenant(&mut self, tenant: Tenant) {
        self.tenant_names.insert(tenant.name.clone(), tenant.id);
        self.tenants.insert(tenant.id, Arc::new(tenant));
    }

    fn put_account(&mut self, account: SmtpAccount) {
        self.logins.insert(account.login.clone(), account.id);
        self.accounts.insert(account.id, Arc::new(account));
    }
}

impl Accounts {
    /// Other settings from now on; what was counted stays counted.
    pub fn adjust(&self, settings: Settings) {
        *records::write(&self.settings) = settings;
    }

    fn settings(&self) -> Settings {
        *records::read(&self.settings)
    }

    /// Asks `stop` about an SMTP account at each MAIL and for each message; the first one stays.
    pub fn stop_with(&self, stop: AccountStop) {
        let _ = self.stop.set(stop);
    }

    /// Whether the account's mail is taken, as far as whoever was given to `stop_with` knows.
    fn may_go(&self, account: SmtpAccountId) -> Result<(), Refusal> {
        match self.stop.get().and_then(|stop| stop(account)) {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Reads all records.
    pub fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Self, StoreError> {
        let (tenants, mut damaged) = records::load_with(&*store, &[prefix::TENANT], read_tenant)?;
        let (accounts, more) = stored::load_accounts(&*store)?;
        damaged.extend(more);
        let mut known = Records::default();
        tenants.into_iter().for_each(|(_, tenant)| known.put_tenant(tenant));
        accounts.into_iter().for_each(|account| known.put_account(account));
        let logins = authenticate::Logins::open(&*store, &mut damaged)?;
        let counters = limits::Counters::open(&*store, &mut damaged)?;
        let memory = Memory { records: RwLock::new(known), logins: Mutex::new(logins), counters: Mutex::new(counters) };
        let dummy = secret::Candidates::dummy();
        let (desk, settings) = (Desk::new(store), RwLock::new(settings));
        Ok(Self { desk, stop: OnceLock::new(), settings, dummy, memory: Arc::new(memory), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// One tenant.
    pub fn tenant(&self, id: TenantId) -> Option<Tenant> {
        records::read(&self.memory.records).tenants.get(&id).map(|tenant| Tenant::clone(tenant))
    }

    /// One tenant by its name.
    pub fn tenant_named(&self, name: &str) -> Option<Tenant> {
        let id = records::read(&self.memory.records).tenant_names.get(name).copied();
        id.and_then(|id| self.tenant(id))
    }

    /// The tenants `actor` may read, by name.
    pub fn tenants(&self, actor: &Actor) -> Vec<Tenant> {
        let known = records::read(&self.memory.records);
        let may_read = |tenant: &&Arc<Tenant>| actor.require(Permission::Read(Resource::Tenant, tenant.id)).is_ok();
        let readable = known.tenants.values().filter(may_read);
        let mut tenants: Vec<Tenant> = readable.map(|tenant| Tenant::clone(tenant)).collect();
        tenants.sort_by(|one, other| one.name.cmp(&other.name));
        tenants
    }

    /// One SMTP account.
    pub fn smtp_account(&self, id: SmtpAccountId) -> Option<SmtpAccount> {
        records::read(&self.memory.records).accounts.get(&id).map(|account| SmtpAccount::clone(account))
    }

    /// One SMTP account by its login, in any case.
    pub fn smtp_account_named(&self, login: &str) -> Option<SmtpAccount> {
        let id = records::read(&self.memory.records).logins.get(&login.to_ascii_lowercase()).copied();
        id.and_then(|id| self.smtp_account(id))
    }
}

fn tenant_key(id: TenantId) -> Key {
    [&[prefix::TENANT][..], &id.0.to_be_bytes()].concat()
}

fn account_key(id: SmtpAccountId) -> Key {
    [&[prefix::SMTP_ACCOUNT][..], &id.0.to_be_bytes()].concat()
}

fn tenant_name_key(name: &str) -> Key {
    [&[prefix::NAME, b't'][..], name.as_bytes()].concat()
}

fn login_key(login: &str) -> Key {
    [&[prefix::NAME, b'l'][..], login.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
