//! The login itself. Reads memory only; what it learns is written later by `persist`.
//!
//! Easy to get wrong: whatever is wrong with a login, the same work is done, the same failure is
//! booked and the same answer given. Only a login that proves itself is treated apart: from a
//! network that logged in for its tenant lately it gets through whatever others did there, so
//! nobody can lock a shop out, and nobody without its password can tell.

use std::collections::VecDeque;
use std::time::Duration;

use super::failures::Failures;
use super::network::Network;
use super::secret::Candidates;
use super::seen::{LoginSeen, Seen};
use super::trust::{SeenNetwork, Trust};
use super::{Accounts, Login, LoginAttempt, LoginState, Sender, SmtpAccount};
use crate::events::{Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId, printable};
use crate::records::{self, Damage};
use crate::store::{Batch, Change, Key, Store, StoreError, codec, prefix};

/// Login events kept until the next write, at most; the rest is counted and logged as a number.
const TOLD_MAX: usize = 200;
/// Characters of a tried login that reach an event.
const LOGIN_SHOWN_MAX: usize = 64;

/// What logins have taught us.
#[derive(Default)]
pub struct Logins {
    failures: Failures,
    trust: Trust,
    seen: Seen,
    told: VecDeque<Event>,
    untold: u64,
}

impl Accounts {
    /// Checks a login; takes the same path and time whatever is wrong with it.
    ///
    /// The answer is given after the delay in it. A wrong password is one failure of (login,
    /// network) and of the network. A network with too many failures is answered 454 whatever the
    /// password, except for a tenant that has logged in from it within `network_trust`.
    pub async fn authenticate(&self, attempt: &LoginAttempt<'_>, now: Timestamp) -> Login {
        let account = self.smtp_account_named(attempt.login);
        let (candidates, sender) = match &account {
            Some(account) => (Candidates::of(account.valid_secrets(now), self.dummy), Some(sender(account))),
            None => (Candidates::of(&[], self.dummy), None),
        };
        let proven = candidates.prove(attempt.password);
        let obstacle = self.obstacle(account.as_ref(), attempt, now);
        let network = Network::of(attempt.peer);
        let mut logins = records::lock(&self.memory.logins);
        let slowed = logins.failures.is_slowed(network, &self.settings(), now);
        if let (Some(sender), true, None) = (sender, proven, obstacle) {
            let trusted = logins.trust.is_trusted(sender.tenant, network, self.settings().network_trust, now);
            if trusted || !slowed {
                logins.failures.succeeded(&sender.login, network);
                logins.trust.logged_in(sender.tenant, network, now);
                logins.seen.note(Some(sender.account), LoginSeen::of(attempt, None, now));
                return Login::Accepted(sender);
            }
        }
        let reason = if slowed { "too many failures from there" } else { obstacle.unwrap_or("wrong password") };
        logins.seen.note(account.as_ref().map(|account| account.id), LoginSeen::of(attempt, Some(reason), now));
        if slowed {
            return Login::Slowed { delay: self.settings().login_delay_max };
        }
        let failed = logins.failures.failed(&attempt.login.to_ascii_lowercase(), network, &self.settings(), now);
        if failed.tell {
            let reason = obstacle.unwrap_or("wrong password");
            logins.tell(refused(attempt, reason, now));
        }
        if failed.now_slowed {
            let told = InstanceEvent::LoginSlowed { login: shown(attempt.login), network: network.to_string() };
            logins.tell(Event { at: now, kind: EventKind::Instance(told) });
        }
        Login::Refused { delay: failed.delay }
    }

    /// What keeps an attempt from succeeding even with the right password. For the log only.
    fn obstacle(
        &self,
        account: Option<&SmtpAccount>,
        attempt: &LoginAttempt<'_>,
        now: Timestamp,
    ) -> Option<&'static str> {
        let Some(account) = account else { return Some("unknown login") };
        let peer = attempt.peer.to_canonical();
        let is_allowed_from =
            account.allowed_from.is_empty() || account.allowed_from.iter().any(|network| network.contains(&peer));
        if self.tenant(account.tenant).is_none() {
            Some("its tenant is gone")
        } else if account.login_state == LoginState::Disabled {
            Some("the account is disabled")
        } else if account.has_expired(now) {
            Some("the account has expired")
        } else if !attempt.vip.serves(account.tenant) {
            Some("the virtual IP does not serve its tenant")
        } else if !is_allowed_from {
            Some("the source address is not allowed")
        } else {
            None
        }
    }
}

impl Logins {
    /// Reads the networks that logged in.
    pub fn open(store: &dyn Store, damaged: &mut Vec<Damage>) -> Result<Self, StoreError> {
        let (seen, more) = records::load::<SeenNetwork>(store, &[prefix::USAGE, b'n'])?;
        damaged.extend(more);
        let trust = Trust::from_stored(seen.into_iter().map(|(_, seen)| seen));
        Ok(Self { trust, seen: Seen::open(store, damaged)?, ..Self::default() })
    }

    /// The last logins of an account, the latest first.
    pub fn last_of(&self, account: SmtpAccountId) -> Vec<LoginSeen> {
        self.seen.of(account)
    }

    /// Forgets a removed account.
    pub fn forget_account(&mut self, account: SmtpAccountId) {
        self.seen.forget(account);
    }

    /// Forgets a removed tenant.
    pub fn forget(&mut self, tenant: TenantId) {
        self.trust.forget(tenant);
    }

    /// Whether events wait to be written.
    pub fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// Puts what is new into `batch`.
    pub fn write(&mut self, batch: &mut Batch, trust: Duration, now: Timestamp) -> Written {
        let mut written = Written::default();
        for (tenant, network, seen) in self.trust.take_changes(trust, now) {
            let key = network_key(tenant, network);
            batch.changes.push(match seen {
                Some(seen) => Change::Set(key, codec::encode(&seen)),
                None => Change::Remove(key),
            });
            written.networks.push((tenant, network));
        }
        written.accounts = self.seen.write(batch);
        for event in self.told.drain(..) {
            crate::events::record(batch, &event);
        }
        let untold = std::mem::take(&mut self.untold);
        if untold > 0 {
            tracing::warn!(untold, "more logins were refused than are written down one by one");
        }
        written
    }

    /// Gives back what could not be written. Events are not kept: under a failing store they
    /// would only pile up.
    pub fn put_back(&mut self, written: Written) {
        for (tenant, network) in written.networks {
            self.trust.put_back(tenant, network);
        }
        self.seen.put_back(written.accounts);
    }

    fn tell(&mut self, event: Event) {
        if self.told.len() >= TOLD_MAX {
            self.untold = self.untold.saturating_add(1);
        } else {
            self.told.push_back(event);
        }
    }
}

/// What a batch of [`Logins::write`] carries.
#[derive(Default)]
pub struct Written {
    networks: Vec<(TenantId, Network)>,
    accounts: Vec<SmtpAccountId>,
}

fn sender(account: &SmtpAccount) -> Sender {
    Sender { tenant: account.tenant, account: account.id, class: account.class, login: account.login.clone() }
}

fn refused(attempt: &LoginAttempt<'_>, reason: &str, now: Timestamp) -> Event {
    let told = InstanceEvent::LoginRefused {
        login: shown(attempt.login),
        peer: attempt.peer.to_string(),
        vip: Some(attempt.vip.id),
        reason: reason.to_owned(),
    };
    Event { at: now, kind: EventKind::Instance(told) }
}

fn shown(login: &str) -> String {
    printable(&login.chars().take(LOGIN_SHOWN_MAX).collect::<String>())
}

fn network_key(tenant: TenantId, network: Network) -> Key {
    let tenant = tenant.0.to_be_bytes();
    match network {
        Network::V4(octets) => [&[prefix::USAGE, b'n'][..], &tenant, b"4", &octets].concat(),
        Network::V6(octets) => [&[prefix::USAGE, b'n'][..], &tenant, b"6", &octets].concat(),
    }
}
