//! The last logins of each SMTP account: when, from where, under which TLS, and how they ended.
//!
//! Kept in memory and written by and by with what else logins teach. Bounded: [`LOGINS_SEEN_MAX`] of an
//! account, whatever a peer does. Easy to get wrong: only accounts that exist have a row, or a flood of
//! made-up logins would grow it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::LoginAttempt;
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, VipId, printable};
use crate::records::{self, Damage};
use crate::store::{Batch, Change, Key, Store, StoreError, codec, prefix};

/// Logins remembered of one account.
pub const LOGINS_SEEN_MAX: usize = 20;
/// Accounts written in one batch, at most; the rest follows in the next.
const WRITTEN_MAX: usize = 500;
/// Characters kept of what protects a login.
const TLS_CHARACTERS_MAX: usize = 64;

/// One login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginSeen {
    /// When.
    pub at: Timestamp,
    /// From where.
    pub peer: IpAddr,
    /// On which virtual IP.
    pub vip: VipId,
    /// TLS version and suite.
    pub tls: String,
    /// By which way.
    pub way: LoginWay,
    /// Why it was refused; `None` if it was not.
    pub refused: Option<String>,
}

/// By which way a login came. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginWay {
    /// SMTP AUTH.
    Smtp,
}

impl LoginSeen {
    /// Of an attempt that ended now.
    pub fn of(attempt: &LoginAttempt<'_>, refused: Option<&str>, now: Timestamp) -> Self {
        Self {
            at: now,
            peer: attempt.peer,
            vip: attempt.vip.id,
            tls: printable(&attempt.tls.chars().take(TLS_CHARACTERS_MAX).collect::<String>()),
            way: LoginWay::Smtp,
            refused: refused.map(str::to_owned),
        }
    }
}

/// The last logins of all accounts.
#[derive(Default)]
pub struct Seen {
    rows: HashMap<SmtpAccountId, VecDeque<LoginSeen>>,
    changed: BTreeSet<SmtpAccountId>,
    /// Logins of nobody, noted so that they take as long as others; never shown nor written.
    nobody: VecDeque<LoginSeen>,
}

impl Seen {
    /// Reads what was written.
    pub fn open(store: &dyn Store, damaged: &mut Vec<Damage>) -> Result<Self, StoreError> {
        let (stored, more) = records::load::<VecDeque<LoginSeen>>(store, &[prefix::USAGE, b'l'])?;
        damaged.extend(more);
        let rows = stored.into_iter().filter_map(|(key, row)| Some((account_of(&key)?, row)));
        Ok(Self { rows: rows.collect(), ..Self::default() })
    }

    /// Remembers a login, the latest first; without an account it does the same work for nothing.
    pub fn note(&mut self, account: Option<SmtpAccountId>, login: LoginSeen) {
        let row = match account {
            Some(account) => {
                self.changed.insert(account);
                self.rows.entry(account).or_default()
            }
            None => &mut self.nobody,
        };
        row.push_front(login);
        row.truncate(LOGINS_SEEN_MAX);
    }

    /// Those of one account, the latest first.
    pub fn of(&self, account: SmtpAccountId) -> Vec<LoginSeen> {
        self.rows.get(&account).into_iter().flatten().cloned().collect()
    }

    /// Forgets a removed account.
    pub fn forget(&mut self, account: SmtpAccountId) {
        if self.rows.remove(&account).is_some() {
            self.changed.insert(account);
        }
    }

    /// Puts what is new into `batch`; of which accounts.
    pub fn write(&mut self, batch: &mut Batch) -> Vec<SmtpAccountId> {
        let changed: Vec<SmtpAccountId> = self.changed.iter().copied().take(WRITTEN_MAX).collect();
        for account in &changed {
            self.changed.remove(account);
            batch.changes.push(match self.rows.get(account) {
                Some(row) => Change::Set(key(*account), codec::encode(row)),
                None => Change::Remove(key(*account)),
            });
        }
        changed
    }

    /// Gives back what could not be written.
    pub fn put_back(&mut self, accounts: Vec<SmtpAccountId>) {
        self.changed.extend(accounts);
    }
}

fn key(account: SmtpAccountId) -> Key {
    [&[prefix::USAGE, b'l'][..], &account.0.to_be_bytes()].concat()
}

fn account_of(key: &[u8]) -> Option<SmtpAccountId> {
    key.get(2..)?.try_into().ok().map(u64::from_be_bytes).map(SmtpAccountId)
}
