//! The breaker: pauses an SMTP account whose mail looks as if somebody else were sending it.
//!
//! Recipe: run it as an [`events::Tally`] with [`events::drive_exactly`], and [`Breaker::hold`] beside
//! it; [`Breaker::refusal`] for whoever takes mail, [`Breaker::why`] for whoever sends it. Operators
//! `pause`, `release`, `waive` and set limits.
//! Easy to get wrong: a pause holds from the moment it is decided, in memory; what is decided is a
//! function of the events alone, so a crash before it is stored decides it again.

mod forgetting;
mod limits;
mod tally;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use limits::{LimitScope, LimitSet, Limits, Override, Waiver};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use watch::Watch;
pub use watch::{COMPLAINTS_MIN, Cause, Figures, USUAL_HOURS_MIN};

use crate::access::{Action, Actor, Permission};
use crate::accounts::{Accounts, SmtpAccount};
use crate::background::Shutdown;
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::mail::{QueueId, Refusal, Reply, SmtpAccountId, TenantId};
use crate::metrics::ACCOUNTS_TRIPPED;
use crate::queue::Queue;
use crate::records::{self, Act, AdminError, Damage, Desk};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Sets of limits, at most.
pub const OVERRIDES_MAX: usize = 10_000;
/// Waivers, at most.
pub const WAIVERS_MAX: usize = 10_000;
/// Characters of a reason, at most.
pub const REASON_CHARACTERS_MAX: usize = 200;
/// How often mail of paused accounts is looked for that was on its way in.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure to hold or release mail, it is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// One paused account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Which.
    pub account: SmtpAccountId,
    /// Whose.
    pub tenant: TenantId,
    /// Its login, for people.
    pub login: String,
    /// Why.
    pub cause: Cause,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// How far a pause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Nothing is taken or sent; what was queued is being marked as held.
    Holding,
    /// All of it is.
    Held,
    /// It was released: mail is taken, and what was held goes on by and by.
    Releasing,
}

/// All about one account, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The account.
    pub account: SmtpAccount,
    /// What was counted of it.
    pub figures: Figures,
    /// What that is judged by.
    pub limits: Limits,
    /// Its waiver, if it has one that holds.
    pub waiver: Option<Waiver>,
    /// Its pause, if it is paused.
    pub pause: Option<Pause>,
}

#[derive(Default)]
struct Memory {
    watches: HashMap<SmtpAccountId, Watch>,
    /// Watches that differ from what is stored.
    changed: HashSet<SmtpAccountId>,
    overrides: Vec<Override>,
    waivers: HashMap<SmtpAccountId, Waiver>,
    /// Paused by the tally and not stored yet.
    tripped: Vec<SmtpAccountId>,
    /// Whose a message is, of those seen lately.
    known: HashMap<QueueId, Option<SmtpAccountId>>,
}

type Pauses = RwLock<HashMap<SmtpAccountId, Pause>>;

/// Watches all SMTP accounts.
pub struct Breaker {
    desk: Desk,
    accounts: Arc<Accounts>,
    settings: RwLock<Limits>,
    memory: Arc<Mutex<Memory>>,
    /// Read for each message; never held while another lock is asked for.
    pauses: Arc<Pauses>,
    changed: Arc<Notify>,
    damaged: Vec<Damage>,
}

impl Breaker {
    /// Reads what was counted, and what is paused.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(store: Arc<dyn Store>, accounts: Arc<Accounts>, settings: Limits) -> Result<Self, StoreError> {
        let (watches, mut damaged) = records::load::<Watch>(&*store, &[prefix::BREAKER, WATCH])?;
        let (pauses, more) = records::load::<Pause>(&*store, &[prefix::BREAKER, PAUSE])?;
        damaged.extend(more);
        let (overrides, more) = records::load::<Override>(&*store, &[prefix::BREAKER, LIMITS])?;
        damaged.extend(more);
        let (waivers, more) = records::load::<Waiver>(&*store, &[prefix::BREAKER, WAIVER])?;
        damaged.extend(more);
        let watches = watches.into_iter().filter_map(|(key, watch)| Some((account_of(&key)?, watch)));
        let memory = Memory {
            watches: watches.collect(),
            overrides: overrides.into_iter().map(|(_, set)| set).collect(),
            waivers: waivers.into_iter().map(|(_, waiver)| (waiver.account, waiver)).collect(),
            ..Memory::default()
        };
        let pauses = pauses.into_iter().map(|(_, pause)| (pause.account, pause)).collect();
        Ok(Self {
            desk: Desk::new(store),
            accounts,
            settings: RwLock::new(settings),
            memory: Arc::new(Mutex::new(memory)),
            pauses: Arc::new(RwLock::new(pauses)),
            changed: Arc::default(),
            damaged,
        })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Other limits of the instance from now on.
    pub fn adjust(&self, settings: Limits) {
        *records::write(&self.settings) = settings;
    }

    /// The pause of an account, if it is paused.
    pub fn pause_of(&self, account: SmtpAccountId) -> Option<Pause> {
        let pauses = records::read(&self.pauses);
        pauses.get(&account).filter(|pause| pause.stage != Stage::Releasing).cloned()
    }

    /// The reply to mail of a paused account.
    pub fn refusal(&self, account: SmtpAccountId) -> Option<Refusal> {
        let pause = self.pause_of(account)?;
        let cause = pause.cause.to_string();
        // A reply is one line of ASCII; what a person wrote may be more than that.
        let told = if cause.is_ascii() { format!(": {cause}") } else { String::new() };
        let text = format!("Sending by this SMTP account is paused{told}; ask the operator of this server");
        Some(Refusal::with_cause(Reply::enhanced(451, 7, 1, text), format!("SMTP account {} is paused", pause.login)))
    }

    /// Why nothing of an account is sent, and what ends that.
    pub fn why(&self, account: SmtpAccountId) -> Option<String> {
        let pause = self.pause_of(account)?;
        let Pause { login, cause, .. } = &pause;
        Some(format!(
            "SMTP account {login} is paused since {}: {cause}; postern smtp-account release {login}",
            pause.since
        ))
    }

    /// How many accounts are paused.
    pub fn paused(&self) -> usize {
        records::read(&self.pauses).values().filter(|pause| pause.stage != Stage::Releasing).count()
    }

    /// What is paused and the actor may see, the oldest first.
    pub fn pauses(&self, actor: &Actor) -> Vec<Pause> {
        let mut pauses: Vec<Pause> = records::read(&self.pauses).values().cloned().collect();
        pauses.retain(|pause| pause.stage != Stage::Releasing);
        pauses.retain(|pause| actor.require_account((pause.tenant, pause.account), Action::Read).is_ok());
        pauses.sort_by(|one, other| (one.since, &one.login).cmp(&(other.since, &other.login)));
        pauses
    }

    /// All about one account.
    ///
    /// # Errors
    /// If there is none, or the actor may not see it.
    pub fn picture(&self, actor: &Actor, id: SmtpAccountId, now: Timestamp) -> Result<Picture, AdminError> {
        let account = self.account(id)?;
        actor.require_account((account.tenant, id), Action::Read)?;
        let limits = self.limits_of(&account);
        let pause = self.pause_of(id);
        let memory = records::lock(&self.memory);
        let figures = memory.watches.get(&id).map(|watch| watch.figures(now)).unwrap_or_default();
        let waiver = memory.waivers.get(&id).filter(|waiver| waiver.holds(now)).cloned();
        Ok(Picture { account, figures, limits, waiver, pause })
    }

    /// Pauses an account by hand.
    ///
    /// # Errors
    /// If there is none, it is paused already, the reason is none, or the actor may not.
    pub async fn pause(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Pause, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let reason = checked_reason(reason)?;
        let account = self.account(id)?;
        let turn = self.desk.turn().await;
        if self.pause_of(id).is_some() {
            return Err(AdminError::Exists(format!("a pause of SMTP account {}", account.login)));
        }
        let pause = Pause {
            account: id,
            tenant: account.tenant,
            login: account.login,
            cause: Cause::ByHand { reason },
            by: actor.name.clone(),
            since: now,
            stage: Stage::Holding,
        };
        let mut batch = Batch::new();
        write_pause(&mut batch, &pause);
        let act = Act::new("smtp-account.pause", pause.login.clone()).of(pause.tenant);
        let shown = format!("{}: {}", pause.login, pause.cause);
        records::record(&mut batch, actor, act.shown(shown), now);
        let (pauses, made) = (Arc::clone(&self.pauses), pause.clone());
        turn.commit(batch, move || {
            metrics::counter!(ACCOUNTS_TRIPPED, "cause" => made.cause.word()).increment(1);
            records::write(&pauses).insert(id, made);
        })
        .await?;
        self.changed.notify_one();
        Ok(pause)
    }

    /// Ends a pause: mail is taken again, what was held goes on, and counting begins anew.
    ///
    /// # Errors
    /// If the account is not paused, or the actor may not.
    pub async fn release(&self, actor: &Actor, id: SmtpAccountId, now: Timestamp) -> Result<Pause, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let pause = self.pause_of(id).ok_or_else(|| AdminError::Missing(format!("pause of SMTP account {id}")))?;
        let pause = Pause { stage: Stage::Releasing, ..pause };
        let mut watch = records::lock(&self.memory).watches.get(&id).cloned().unwrap_or_default();
        watch.begin_anew(now);
        let mut batch = Batch::new();
        batch.set(pause_key(id), codec::encode(&pause)).set(watch_key(id), codec::encode(&watch));
        let told = InstanceEvent::AccountReleased {
            tenant: pause.tenant,
            account: id,
            login: pause.login.clone(),
            by: actor.name.clone(),
        };
        events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
        let act = Act::new("smtp-account.release", pause.login.clone()).of(pause.tenant);
        records::record(&mut batch, actor, act, now);
        let (memory, pauses, released) = (Arc::clone(&self.memory), Arc::clone(&self.pauses), pause.clone());
        turn.commit(batch, move || {
            {
                let mut memory = records::lock(&memory);
                memory.watches.entry(id).or_default().begin_anew(now);
                memory.tripped.retain(|tripped| *tripped != id);
            }
            records::write(&pauses).insert(id, released);
        })
        .await?;
        self.changed.notify_one();
        Ok(pause)
    }

    /// Leaves an account alone whatever the limits say, until the moment `until` if there is one.
    ///
    /// # Errors
    /// If there is no such account, the reason is none, or the actor may not.
    pub async fn waive(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        (reason, until): (&str, Option<Timestamp>),
        now: Timestamp,
    ) -> Result<Waiver, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let reason = checked_reason(reason)?;
        let account = self.account(id)?;
        if until.is_some_and(|until| until <= now) {
            return Err(AdminError::Invalid("a waiver cannot end before it begins".to_owned()));
        }
        let turn = self.desk.turn().await;
        let count = records::lock(&self.memory).waivers.len();
        if count >= WAIVERS_MAX {
            return Err(AdminError::Invalid(format!("there are {count} waivers already; end some first")));
        }
        let waiver = Waiver { account: id, reason, by: actor.name.clone(), since: now, until };
        let mut batch = Batch::new();
        batch.set(key(WAIVER, id), codec::encode(&waiver));
        let ends = until.map(|until| format!(" until {until}")).unwrap_or_default();
        let shown = format!("{}{ends}: {}", account.login, waiver.reason);
        let act = Act::new("smtp-account.waive", account.login).of(account.tenant).shown(shown);
        records::record(&mut batch, actor, act, now);
        let (memory, made) = (Arc::clone(&self.memory), waiver.clone());
        turn.commit(batch, move || {
            records::lock(&memory).waivers.insert(id, made);
        })
        .await?;
        Ok(waiver)
    }

    /// Ends a waiver.
    ///
    /// # Errors
    /// If there is none, or the actor may not.
    pub async fn end_waiver(&self, actor: &Actor, id: SmtpAccountId, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        if !records::lock(&self.memory).waivers.contains_key(&id) {
            return Err(AdminError::Missing(format!("waiver of SMTP account {id}")));
        }
        let mut batch = Batch::new();
        batch.remove(key(WAIVER, id));
        let account = self.accounts.smtp_account(id);
        let name = account.as_ref().map_or_else(|| id.to_string(), |account| account.login.clone());
        let act = Act::new("smtp-account.end-waiver", name);
        let act = match account {
            Some(account) => act.of(account.tenant),
            None => act,
        };
        records::record(&mut batch, actor, act, now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            records::lock(&memory).waivers.remove(&id);
        })
        .await?;
        Ok(())
    }

    /// Limits operators set.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn overrides(&self, actor: &Actor) -> Result<Vec<Override>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        Ok(records::lock(&self.memory).overrides.clone())
    }

    /// Sets limits of a scope; those left out stay as they were set before.
    ///
    /// # Errors
    /// If a value is out of range, or the actor may not.
    pub async fn set_limits(&self, actor: &Actor, asked: Override, now: Timestamp) -> Result<Override, AdminError> {
        actor.require(Permission::ManageInstance)?;
        if let Some(problem) = asked.limits.problem() {
            return Err(AdminError::Invalid(problem.to_owned()));
        }
        if asked.limits.is_empty() {
            return Err(AdminError::Invalid("give at least one limit to set".to_owned()));
        }
        let turn = self.desk.turn().await;
        let mut overrides = records::lock(&self.memory).overrides.clone();
        let before = overrides.iter().find(|set| set.scope == asked.scope).map(|set| set.limits);
        let limits = asked.limits.over(before.unwrap_or_default());
        let merged = Override { scope: asked.scope, limits };
        overrides.retain(|set| set.scope != asked.scope);
        if overrides.len() >= OVERRIDES_MAX {
            return Err(AdminError::Invalid(format!("{OVERRIDES_MAX} sets of limits are there already")));
        }
        overrides.push(merged);
        let mut batch = Batch::new();
        batch.set(limits_key(&merged.scope), codec::encode(&merged));
        let subject = format!("{:?}: {:?}", merged.scope, merged.limits);
        records::record(&mut batch, actor, Act::new("breaker.set", subject), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || records::lock(&memory).overrides = overrides).await?;
        Ok(merged)
    }

    /// Takes back the limits of a scope.
    ///
    /// # Errors
    /// If there are none, or the actor may not.
    pub async fn clear_limits(&self, actor: &Actor, scope: LimitScope, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut overrides = records::lock(&self.memory).overrides.clone();
        let count = overrides.len();
        overrides.retain(|set| set.scope != scope);
        if overrides.len() == count {
            return Err(AdminError::Missing("limit set for exactly this".to_owned()));
        }
        let mut batch = Batch::new();
        batch.remove(limits_key(&scope));
        records::record(&mut batch, actor, Act::new("breaker.clear", format!("{scope:?}")), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || records::lock(&memory).overrides = overrides).await?;
        Ok(())
    }

    /// Holds the mail of paused accounts and lets that of released ones go on, until `shutdown`.
    pub async fn hold(&self, queue: &Queue, shutdown: &Shutdown) {
        loop {
            let held = tokio::select! {
                () = shutdown.cancelled() => return,
                held = self.hold_some(queue) => held,
            };
            let pause = match held {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(%error, "mail of a paused or released SMTP account could not be marked yet");
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One account's failure keeps no other from its turn; the first is told.
    async fn hold_some(&self, queue: &Queue) -> Result<(), AdminError> {
        let moving: Vec<Pause> = {
            let pauses = records::read(&self.pauses);
            pauses.values().filter(|pause| pause.stage != Stage::Held).cloned().collect()
        };
        let mut all = Ok(());
        for pause in moving {
            all = all.and(self.move_on(queue, &pause).await);
        }
        let found = queue.put_found_aside(&Actor::system("its SMTP account is paused"), Timestamp::now()).await;
        all.and(found)
    }

    async fn move_on(&self, queue: &Queue, pause: &Pause) -> Result<(), AdminError> {
        let (of, now) = ((pause.tenant, pause.account), Timestamp::now());
        if pause.stage == Stage::Holding {
            let by = Actor::system(&format!("SMTP account {} is paused", pause.login));
            let done = queue.pause_account(&by, of, now).await?;
            tracing::info!(login = pause.login, messages = done.messages, "mail of a paused SMTP account is held");
            self.reached(pause, Some(Stage::Held)).await
        } else {
            let by = Actor::system(&format!("SMTP account {} was released", pause.login));
            let done = queue.resume_account(&by, of, now).await?;
            tracing::info!(login = pause.login, messages = done.messages, "mail of a released SMTP account goes on");
            self.reached(pause, None).await
        }
    }

    /// Stores how far a pause is, unless somebody said otherwise meanwhile; `None` is its end.
    async fn reached(&self, pause: &Pause, stage: Option<Stage>) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        if records::read(&self.pauses).get(&pause.account) != Some(pause) {
            return Ok(());
        }
        let (account, pauses) = (pause.account, Arc::clone(&self.pauses));
        let mut batch = Batch::new();
        let next = stage.map(|stage| Pause { stage, ..pause.clone() });
        match &next {
            Some(next) => batch.set(pause_key(account), codec::encode(next)),
            None => batch.remove(pause_key(account)),
        };
        turn.commit(batch, move || {
            let mut pauses = records::write(&pauses);
            match next {
                Some(next) => pauses.insert(account, next),
                None => pauses.remove(&account),
            };
        })
        .await?;
        Ok(())
    }

    fn account(&self, id: SmtpAccountId) -> Result<SmtpAccount, AdminError> {
        self.accounts.smtp_account(id).ok_or_else(|| AdminError::Missing(format!("SMTP account {id}")))
    }

    fn limits_of(&self, account: &SmtpAccount) -> Limits {
        let base = *records::read(&self.settings);
        let memory = records::lock(&self.memory);
        limits::resolve(base, &memory.overrides, (account.class, account.tenant, account.id))
    }
}

/// The record of a pause, and the event that tells of it.
fn write_pause(batch: &mut Batch, pause: &Pause) {
    batch.set(pause_key(pause.account), codec::encode(pause));
    let told = InstanceEvent::AccountPaused {
        tenant: pause.tenant,
        account: pause.account,
        login: pause.login.clone(),
        cause: pause.cause.to_string(),
        by: pause.by.clone(),
    };
    events::record(batch, &Event { at: pause.since, kind: EventKind::Instance(told) });
}

fn checked_reason(reason: &str) -> Result<String, AdminError> {
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().count() > REASON_CHARACTERS_MAX || reason.contains(char::is_control) {
        let text = format!("give a reason, one line of at most {REASON_CHARACTERS_MAX} characters");
        return Err(AdminError::Invalid(text));
    }
    Ok(reason.to_owned())
}

/// Kinds of records under the room's prefix.
const WATCH: u8 = b'w';
const PAUSE: u8 = b'p';
const LIMITS: u8 = b'l';
const WAIVER: u8 = b'v';

fn key(kind: u8, account: SmtpAccountId) -> Key {
    [&[prefix::BREAKER, kind][..], &account.0.to_be_bytes()].concat()
}

fn watch_key(account: SmtpAccountId) -> Key {
    key(WATCH, account)
}

fn pause_key(account: SmtpAccountId) -> Key {
    key(PAUSE, account)
}

fn limits_key(scope: &LimitScope) -> Key {
    let mut key = vec![prefix::BREAKER, LIMITS];
    key.extend(codec::encode(scope));
    key
}

fn account_of(key: &[u8]) -> Option<SmtpAccountId> {
    let id = key.get(2..)?.try_into().ok()?;
    Some(SmtpAccountId(u64::from_be_bytes(id)))
}

#[cfg(test)]
mod tests;
