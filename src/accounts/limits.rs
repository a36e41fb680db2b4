//! Limits at work: counters in memory for tenants and SMTP accounts, written by and by.
//!
//! At most [`WRITTEN_EVERY`] of counting is lost in a crash. Easy to get wrong: tenant and account
//! are checked before either is booked, under one lock, or a refused message would count.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::usage::{Counts, Over, Window};
use super::{Accounts, Limits, LoginState, Sending};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::{Address, HeaderDialect, Refusal, Reply, SmtpAccountId, TenantId};
use crate::records::{self, Damage};
use crate::store::{Batch, Change, CommitError, Key, Store, StoreError, codec, prefix};

/// How often counters and trusted networks are written; a crash loses at most this much counting.
const WRITTEN_EVERY: Duration = Duration::from_secs(30);
/// How often login events are written, if there are any.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Counters written in one batch, at most; the rest follows in the next.
const WRITTEN_MAX: usize = 500;

/// Whose messages are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// All of a tenant's.
    Tenant(TenantId),
    /// One SMTP account's.
    Account(SmtpAccountId),
}

/// All counters.
#[derive(Default)]
pub struct Counters {
    counts: HashMap<Counted, Counts>,
    changed: HashSet<Counted>,
}

impl Counters {
    /// Reads what was written.
    pub fn open(store: &dyn Store, damaged: &mut Vec<Damage>) -> Result<Self, StoreError> {
        let mut counters = Self::default();
        let (stored, more) = records::load::<Counts>(store, &[prefix::USAGE, b'c'])?;
        damaged.extend(more);
        for (key, counts) in stored {
            if let Some(counted) = counted_of(&key) {
                counters.counts.insert(counted, counts);
            }
        }
        Ok(counters)
    }

    /// Forgets a removed record's counter.
    pub fn forget(&mut self, counted: Counted) {
        self.counts.remove(&counted);
        self.changed.remove(&counted);
    }

    fn write(&mut self, batch: &mut Batch, now: Timestamp) -> Vec<Counted> {
        let changed: Vec<Counted> = self.changed.iter().copied().take(WRITTEN_MAX).collect();
        for counted in &changed {
            self.changed.remove(counted);
            let Some(counts) = self.counts.get_mut(counted) else { continue };
            if counts.is_empty(now) {
                self.counts.remove(counted);
                batch.changes.push(Change::Remove(key(*counted)));
            } else {
                batch.changes.push(Change::Set(key(*counted), codec::encode(counts)));
            }
        }
        changed
    }

    /// Marks counters that have run empty, so that the next write removes them.
    fn sweep(&mut self, now: Timestamp) {
        let empty = self.counts.iter_mut().filter_map(|(counted, counts)| counts.is_empty(now).then_some(*counted));
        self.changed.extend(empty);
    }
}

impl Accounts {
    /// Checks the limits of tenant and account and books one message; 452 with the time when it lifts.
    pub fn count(&self, tenant: TenantId, account: Option<SmtpAccountId>, now: Timestamp) -> Result<(), Refusal> {
        if let Some(account) = account {
            self.may_go(account)?;
        }
        let limited = {
            let known = records::read(&self.memory.records);
            let Some(tenant_limits) = known.tenants.get(&tenant).map(|tenant| tenant.limits) else {
                return Err(gone());
            };
            let mut limited = vec![(Counted::Tenant(tenant), tenant_limits)];
            if let Some(id) = account {
                let limits = known.accounts.get(&id).map(|account| account.limits).ok_or_else(gone)?;
                limited.push((Counted::Account(id), limits));
            }
            limited
        };
        let mut counters = records::lock(&self.memory.counters);
        for (counted, limits) in &limited {
            if let Some(over) = over(&mut counters, *counted, limits, now) {
                return Err(refusal(*counted, &over));
            }
        }
        for (counted, _) in limited {
            counters.counts.entry(counted).or_default().add(now);
            counters.changed.insert(counted);
        }
        Ok(())
    }

    /// Takes back a message that was counted and then not accepted for a fault of ours.
    pub fn uncount(&self, tenant: TenantId, account: Option<SmtpAccountId>) {
        let mut counters = records::lock(&self.memory.counters);
        for counted in [Some(Counted::Tenant(tenant)), account.map(Counted::Account)].into_iter().flatten() {
            if let Some(counts) = counters.counts.get_mut(&counted) {
                counts.take_back();
                counters.changed.insert(counted);
            }
        }
    }

    /// Messages of a tenant in the last hour and day.
    pub fn tenant_usage(&self, tenant: TenantId, now: Timestamp) -> (u64, u64) {
        self.usage(Counted::Tenant(tenant), now)
    }

    /// Messages of an SMTP account in the last hour and day.
    pub fn account_usage(&self, account: SmtpAccountId, now: Timestamp) -> (u64, u64) {
        self.usage(Counted::Account(account), now)
    }

    fn usage(&self, counted: Counted, now: Timestamp) -> (u64, u64) {
        records::lock(&self.memory.counters).counts.get_mut(&counted).map_or((0, 0), |counts| counts.totals(now))
    }

    /// Whether mail is taken from a tenant, and from this login of it, at this moment: a session
    /// may be older than a suspension. For every MAIL.
    pub fn may_send(&self, tenant: TenantId, account: Option<SmtpAccountId>) -> Result<(), Refusal> {
        let known = records::read(&self.memory.records);
        match known.tenants.get(&tenant).map(|tenant| tenant.sending) {
            None => return Err(gone()),
            Some(Sending::Suspended) => {
                let text = "Sending is suspended for this tenant; ask the operator of this server";
                return Err(Refusal::plain(Reply::enhanced(451, 7, 1, text)));
            }
            Some(Sending::Allowed) => {}
        }
        let Some(id) = account else { return Ok(()) };
        match known.accounts.get(&id) {
            Some(account) if account.login_state == LoginState::Enabled && !account.has_expired(Timestamp::now()) => {
                self.may_go(id)
            }
            _ => Err(gone()),
        }
    }

    /// Whether mail of this login may be from `address`, as far as the login narrows what its tenant may.
    pub fn may_send_as(&self, account: SmtpAccountId, address: &Address) -> Result<(), Refusal> {
        let known = records::read(&self.memory.records);
        let Some(account) = known.accounts.get(&account) else { return Err(gone()) };
        if account.allowed_senders.is_empty() || account.allowed_senders.iter().any(|sender| sender.covers(address)) {
            return Ok(());
        }
        let text = format!("This SMTP account may not send as {}; its owner may allow it", address.domain());
        Err(Refusal::plain(Reply::enhanced(550, 7, 1, text)))
    }

    /// Whose header fields are read in mail of this login.
    pub fn dialects(&self, account: SmtpAccountId) -> Vec<HeaderDialect> {
        let known = records::read(&self.memory.records);
        known.accounts.get(&account).map(|account| account.dialects.clone()).unwrap_or_default()
    }

    /// Writes counters, networks and login events that are new. Idempotent; call it at the end too.
    pub async fn persist(&self, now: Timestamp) -> Result<(), CommitError> {
        records::lock(&self.memory.counters).sweep(now);
        loop {
            let mut batch = Batch::new();
            let counted = records::lock(&self.memory.counters).write(&mut batch, now);
            let logins = records::lock(&self.memory.logins).write(&mut batch, self.settings().network_trust, now);
            if batch.changes.is_empty() && batch.appends.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.desk.store().commit(batch).await {
                records::lock(&self.memory.counters).changed.extend(counted);
                records::lock(&self.memory.logins).put_back(logins);
                return Err(error);
            }
            if counted.len() < WRITTEN_MAX {
                return Ok(());
            }
        }
    }

    /// Calls `persist` while the daemon lives, and once more at its end.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut waited = Duration::ZERO;
        loop {
            let stop = tokio::select! {
                () = shutdown.cancelled() => true,
                () = tokio::time::sleep(TOLD_EVERY) => false,
            };
            waited = waited.saturating_add(TOLD_EVERY);
            if !stop && waited < WRITTEN_EVERY && !records::lock(&self.memory.logins).has_told() {
                continue;
            }
            waited = Duration::ZERO;
            if let Err(error) = self.persist(Timestamp::now()).await {
                tracing::warn!(%error, "counters and login events could not be written");
            }
            if stop {
                return;
            }
        }
    }
}

fn over(counters: &mut Counters, counted: Counted, limits: &Limits, now: Timestamp) -> Option<Over> {
    match counters.counts.get_mut(&counted) {
        Some(counts) => counts.over(limits, now),
        None => Counts::default().over(limits, now),
    }
}

/// The tenant or account was removed or disabled while its session went on.
fn gone() -> Refusal {
    Refusal::plain(Reply::enhanced(451, 7, 0, "This login is not valid any more; log in again"))
}

fn refusal(counted: Counted, over: &Over) -> Refusal {
    let whose = match counted {
        Counted::Tenant(_) => "this tenant",
        Counted::Account(_) => "this SMTP account",
    };
    let per = match over.window {
        Window::Hour => "an hour",
        Window::Day => "a day",
    };
    let Some(lifts) = over.lifts else {
        let text = format!("The limit of {whose} is {} messages {per}: it may not send", over.max);
        return Refusal::plain(Reply::enhanced(550, 7, 1, text));
    };
    let text = format!("The limit of {whose} is reached ({} messages {per}); try again after {lifts}", over.max);
    Refusal::plain(Reply::enhanced(452, 7, 0, text))
}

/// Where a counter is stored.
pub fn key(counted: Counted) -> Key {
    match counted {
        Counted::Tenant(id) => [&[prefix::USAGE, b'c', b't'][..], &id.0.to_be_bytes()].concat(),
        Counted::Account(id) => [&[prefix::USAGE, b'c', b'a'][..], &id.0.to_be_bytes()].concat(),
    }
}

fn counted_of(key: &[u8]) -> Option<Counted> {
    let (kind, id) = key.get(2..)?.split_first()?;
    let id = u64::from_be_bytes(id.try_into().ok()?);
    match kind {
        b't' => Some(Counted::Tenant(TenantId(id))),
        b'a' => Some(Counted::Account(SmtpAccountId(id))),
        _ => None,
    }
}
