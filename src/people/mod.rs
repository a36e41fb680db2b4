//! People and machines that administer: users with their passwords, second factors and sessions,
//! and API keys.
//!
//! Recipe: `invite`, then `redeem` the one-time link with a password; `log_in` gives a session whose
//! secret `session_actor` turns into an [`Actor`]; `key_actor` does so for an API key. Secrets are
//! shown once and kept as digests. Easy to get wrong: an unknown user, a wrong password and a locked
//! user look and last the same; and nobody may lock somebody else out by failing on purpose.

mod ceremonies;
mod factors;
mod keys;
mod links;
mod login;
mod passkeys;
mod password;
mod resealing;
mod sessions;
mod stored;
mod totp;
mod users;

pub use resealing::reseal;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, RwLock};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::access::{Action, Actor, Role, Scope};
use crate::accounts;
use crate::ext::Timestamp;
use crate::mail::{Domain, KeyId, SmtpAccountId, TenantId, UserId};
use crate::records::{self, AdminError, Damage, Desk};
use crate::seal::MasterKey;
use crate::store::{Key, Store, StoreError, prefix};

pub use ceremonies::{CHALLENGE_LASTS, Site};
pub use factors::{Enrolment, RECOVERY_CODES};
pub use keys::{KeyChange, MadeKey, NewKey, OVERLAP_DEFAULT, OVERLAP_MAX, SCOPES_MAX};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use links::Stored as StoredLink;
pub use links::{ACTIVATION_LASTS, OneTimeLink, RESET_LASTS, SET_UP_LASTS};
pub use login::{Credentials, LINK_MAILED_EVERY, LoggedIn, Refused, WRONG_CONFIRMATIONS_MAX};
pub use passkeys::{PASSKEYS_MAX, Passkey};
pub use password::CHARACTERS_MIN as PASSWORD_CHARACTERS_MIN;
pub use sessions::{SESSION_IDLE_MAX, SESSION_LASTS, csrf_token};
#[doc(hidden)]
pub use stored::{read_user, user_bytes};
pub use totp::code_at as totp_code_at;
pub use users::{NETWORKS_MAX, NewUser, UserChange};

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// What it logs in with: its e-mail address, folded. Unique within its tenant.
    pub email: String,
    /// For people.
    pub name: String,
    /// What it may.
    pub role: Role,
    /// Whether it may log in.
    pub state: UserState,
    /// Argon2id, with its parameters.
    pub password: Option<String>,
    /// Where it may log in from; empty is anywhere.
    pub allowed_from: Vec<IpNet>,
    /// Only these SMTP accounts; `None` is as the role says.
    pub accounts: Option<BTreeMap<SmtpAccountId, Action>>,
    /// The second factor, proved or still being set up.
    pub totp: Option<Totp>,
    /// SHA-256 of each recovery code that was not used.
    pub recovery: Vec<[u8; 32]>,
    /// When it was made.
    pub created: Timestamp,
    /// When it last logged in.
    pub last_login: Option<Timestamp>,
    /// Passkeys, each a second factor.
    pub passkeys: Vec<Passkey>,
}

impl User {
    /// Whether something is asked of it beside the password.
    pub fn has_factor(&self) -> bool {
        self.totp.as_ref().is_some_and(|totp| totp.state == TotpState::Proved) || !self.passkeys.is_empty()
    }
}

/// Whether a person may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserState {
    /// Not yet: it has not followed its link.
    Invited,
    /// Yes.
    Active,
    /// No: an admin locked it.
    Locked,
}

/// A second factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totp {
    /// The secret, sealed under the master key.
    pub sealed: Vec<u8>,
    /// The step of the last code that was accepted.
    pub last_step: u64,
    /// Whether a code has proved that the person has it.
    pub state: TotpState,
}

/// How far a second factor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TotpState {
    /// Shown, not asked for yet.
    Offered,
    /// Asked for at every login.
    Proved,
}

/// A person's stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose.
    pub user: UserId,
    /// SHA-256 of its secret; also its name in lists.
    pub digest: [u8; 32],
    /// When it began.
    pub began: Timestamp,
    /// When it was last used, to within a few minutes.
    pub used: Timestamp,
    /// Where it began.
    pub from: IpAddr,
    /// What the browser called itself.
    pub agent: String,
    /// When the person last gave every factor.
    pub proved: Timestamp,
}

/// A machine's access.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id, part of its text.
    pub id: KeyId,
    /// Whose; `None` for the instance.
    pub tenant: Option<TenantId>,
    /// For people.
    pub name: String,
    /// What it may.
    pub scopes: Vec<Scope>,
    /// Where it may come from; empty is anywhere.
    pub allowed_from: Vec<IpNet>,
    /// Only these sending domains; empty is all.
    pub domains: Vec<Domain>,
    /// Its valid secrets, newest first: two while one takes over from the other.
    pub secrets: Vec<KeySecret>,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// When it was made.
    pub created: Timestamp,
    /// By whom.
    pub created_by: String,
}

/// One secret of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySecret {
    /// SHA-256 of the whole key text.
    pub digest: [u8; 32],
    /// Its last four characters, to be told apart.
    pub ending: String,
    /// When it ends, if another has taken over.
    pub expires: Option<Timestamp>,
}

/// When and from where a key was last used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// Which.
    pub id: KeyId,
    /// When.
    pub at: Timestamp,
    /// From where, if over a network.
    pub from: Option<IpAddr>,
}

/// Which roles of a tenant, or of the instance, must have a second factor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactorPolicy {
    /// Words of roles.
    pub required_of: Vec<String>,
}

/// People and keys in memory, backed by the store.
pub struct People {
    desk: Desk,
    key: Arc<MasterKey>,
    settings: accounts::Settings,
    hashes: password::Hashes,
    site: Option<Site>,
    memory: Arc<Memory>,
    damaged: Vec<Damage>,
}

#[derive(Default)]
struct Memory {
    records: RwLock<Records>,
    tries: Mutex<login::Tries>,
    ceremonies: Mutex<ceremonies::Ceremonies>,
}

#[derive(Default)]
struct Records {
    users: HashMap<UserId, Arc<User>>,
    keys: HashMap<KeyId, Arc<ApiKey>>,
    uses: HashMap<KeyId, KeyUse>,
    unsaved_uses: Vec<KeyId>,
    sessions: HashMap<[u8; 32], Session>,
    policies: HashMap<Option<TenantId>, FactorPolicy>,
}

impl People {
    /// Reads all records.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(store: Arc<dyn Store>, key: Arc<MasterKey>, settings: accounts::Settings) -> Result<Self, StoreError> {
        let (users, mut damaged) = records::load_with(&*store, &[prefix::USER, b'r'], read_user)?;
        let (policies, more) = records::load::<(Option<TenantId>, FactorPolicy)>(&*store, &[prefix::USER, b'p'])?;
        damaged.extend(more);
        let (keys, more) = records::load::<ApiKey>(&*store, &[prefix::API_KEY, b'r'])?;
        damaged.extend(more);
        let (uses, more) = records::load::<KeyUse>(&*store, &[prefix::API_KEY, b'u'])?;
        damaged.extend(more);
        let (sessions, more) = records::load::<Session>(&*store, &[prefix::SESSION])?;
        damaged.extend(more);
        let known = Records {
            users: users.into_iter().map(|(_, user)| (user.id, Arc::new(user))).collect(),
            keys: keys.into_iter().map(|(_, key)| (key.id, Arc::new(key))).collect(),
            uses: uses.into_iter().map(|(_, used)| (used.id, used)).collect(),
            unsaved_uses: Vec::new(),
            sessions: sessions.into_iter().map(|(_, session)| (session.digest, session)).collect(),
            policies: policies.into_iter().map(|(_, policy)| policy).collect(),
        };
        let memory = Arc::new(Memory { records: RwLock::new(known), ..Memory::default() });
        let (desk, hashes) = (Desk::new(store), password::Hashes::default());
        Ok(Self { desk, key, settings, hashes, site: None, memory, damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    fn user(&self, id: UserId) -> Option<Arc<User>> {
        records::read(&self.memory.records).users.get(&id).cloned()
    }

    fn policy(&self, tenant: Option<TenantId>) -> FactorPolicy {
        records::read(&self.memory.records).policies.get(&tenant).cloned().unwrap_or_default()
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// Whether `networks` let `from` in; empty is anywhere.
fn is_allowed(networks: &[IpNet], from: Option<IpAddr>) -> bool {
    let Some(from) = from else { return true };
    let from = from.to_canonical();
    networks.is_empty() || networks.iter().any(|network| network.contains(&from))
}

fn check_networks(networks: &[IpNet]) -> Result<(), AdminError> {
    if networks.len() > NETWORKS_MAX {
        return Err(AdminError::field("allowed_from", format!("at most {NETWORKS_MAX} networks")));
    }
    Ok(())
}

fn user_key(id: UserId) -> Key {
    [&[prefix::USER, b'r'][..], &id.0.to_be_bytes()].concat()
}

fn email_key(tenant: Option<TenantId>, email: &str) -> Key {
    let tenant = tenant.map_or(0, |tenant| tenant.0);
    [&[prefix::USER, b'n'][..], &tenant.to_be_bytes(), email.as_bytes()].concat()
}

fn policy_key(tenant: Option<TenantId>) -> Key {
    [&[prefix::USER, b'p'][..], &tenant.map_or(0, |tenant| tenant.0).to_be_bytes()].concat()
}

fn api_key_key(id: KeyId) -> Key {
    [&[prefix::API_KEY, b'r'][..], &id.0.to_be_bytes()].concat()
}

fn key_use_key(id: KeyId) -> Key {
    [&[prefix::API_KEY, b'u'][..], &id.0.to_be_bytes()].concat()
}

fn session_key(digest: &[u8; 32]) -> Key {
    [&[prefix::SESSION][..], digest].concat()
}

/// An actor's name of a person.
fn name_of(user: UserId) -> String {
    format!("user {user}")
}

fn is_self(actor: &Actor, user: UserId) -> bool {
    actor.name == name_of(user)
}

#[cfg(test)]
#[path = "tests/authenticator.rs"]
pub(crate) mod authenticator;
#[cfg(test)]
mod tests;
