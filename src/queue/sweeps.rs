//! Acts on many messages from their beginning to their end: each is a record, is carried out in the
//! background, goes on after a restart, and may last for a while, for mail that comes to fit later.
//!
//! Recipe: [`Queue::begin_sweep`]; [`Queue::run_sweeps`] does the work; [`Queue::sweeps`] shows it.
//! Easy to get wrong: from the moment it has begun, nothing that a hold, cancel or expire means is
//! handed out any more, however long the walk through the queue takes: each claim is looked at too.

mod forgetting;
mod stored;
mod turns;
mod work;

pub use stored::ended_sweep;
pub(super) use turns::Pages;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Queue;
use super::bulk::{BulkAct, Counts, Done};
use super::filter::{Addresses, Filter, Standing};
use super::record::{Claim, RecipientState};
use crate::access::{Actor, Permission};
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId, TenantId};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, Key, StoreError, prefix};

/// Acts that are not over, at most.
pub const SWEEPS_MAX: usize = 200;
/// With so many open only who runs the instance begins another, so that there is always room for a hold of theirs.
pub const SWEEPS_OF_TENANTS_MAX: usize = 180;
/// Of one tenant, at most, begun by its own people and keys.
pub const SWEEPS_PER_TENANT_MAX: usize = 20;
/// Whoever met one of these ceilings may ask again after this, in seconds.
const AGAIN_SECS: u64 = 30;
/// Acts that are over and kept to be looked at, at most.
const KEPT_MAX: usize = 500;
/// Of one tenant, so that it does not push out what others look at.
const KEPT_PER_TENANT_MAX: usize = 100;
/// How long they are kept.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The longest time an act may last.
pub const LASTING_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Characters of a reason, at most.
const REASON_CHARACTERS_MAX: usize = 500;
/// A claim that an act means is put back for so long, in memory; the act reaches it before that is over.
const PUT_BACK: Duration = Duration::from_secs(5);
/// Messages noted at their claim, at most; beyond that the whole queue is walked through again.
const FOUND_MAX: usize = 10_000;

/// One act on many messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// Its number.
    pub number: u64,
    /// What is done.
    pub act: BulkAct,
    /// To what.
    pub filter: Filter,
    /// Why, in the words of whoever asked.
    pub reason: String,
    /// Who asked.
    pub by: String,
    /// When.
    pub began: Timestamp,
    /// Until when it applies to what comes to fit; `None` is what fits now.
    pub until: Option<Timestamp>,
    /// How far it is.
    pub state: SweepState,
    /// What it came to so far; a crash may leave some of the last messages out of it.
    pub done: Done,
    /// When it was over.
    pub finished: Option<Timestamp>,
    /// Messages of which nobody knew at its last walk whether they go to the provider it means.
    pub undecided: u64,
    course: Course,
    /// Why it does not get on now; it is tried again.
    #[serde(skip)]
    pub trouble: Option<String>,
}

/// How far the walk of an act that does not last came, so that it touches nothing twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Course {
    /// Up to this message everything is done.
    reached: Option<QueueId>,
    /// If there are any, the walk is only about mail that goes there: of the rest it was known before.
    only_to: BTreeSet<Domain>,
    /// Messages passed of which nobody knows yet whether they go to the provider that is meant.
    undecided: u64,
    /// Where their mail goes.
    unknown: BTreeSet<Domain>,
    /// There were more such domains than are noted: the next walk is about all mail again.
    overflows: bool,
}

/// Whether mail goes to the provider that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heading {
    There,
    Elsewhere,
    /// Nobody asked DNS yet since the daemon started.
    Unknown,
}

/// How far an act is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SweepState {
    /// Walks through the queue.
    Running,
    /// Was through it, and applies to what comes to fit.
    Lasting,
    /// Over.
    Done,
    /// Ended by somebody before it was over.
    Ended(String),
    /// The records could not be read or written; what was done stays done.
    Failed(String),
}

impl SweepState {
    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        !matches!(self, Self::Running | Self::Lasting)
    }

    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Lasting => "lasting",
            Self::Done => "done",
            Self::Ended(_) => "ended",
            Self::Failed(_) => "failed",
        }
    }
}

/// One that is not over, as claims are held against it.
#[derive(Debug)]
struct Watched {
    act: BulkAct,
    filter: Filter,
    began: Timestamp,
    until: Option<Timestamp>,
    counts: Arc<Counts>,
    /// Messages that came up for delivery although it means them.
    found: HashSet<QueueId>,
    /// More came up than were noted.
    again: bool,
    /// See [`Course::only_to`].
    only_to: BTreeSet<Domain>,
    /// When the last look began that saw everything; `None` before the first.
    looked: Option<Timestamp>,
    /// It goes on when it looks next.
    rests: bool,
    /// When it looks next at what came in; `None` is at once.
    look_at: Option<Instant>,
    trouble: Option<String>,
}

/// All acts.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    all: BTreeMap<u64, Sweep>,
    watched: BTreeMap<u64, Watched>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSweep {
    /// What is to be done.
    pub act: BulkAct,
    /// To what.
    pub filter: Filter,
    /// Why.
    pub reason: String,
    /// For how long it applies to what comes to fit later; `None` is what fits now.
    pub lasting: Option<Duration>,
}

impl Queue {
    /// Reads the acts that were begun.
    pub(super) fn discover_sweeps(&self) -> Result<(), StoreError> {
        let (stored, damaged) = records::load_with(&*self.store, &[prefix::SWEEP], Sweep::from_bytes)?;
        for damage in damaged {
            tracing::error!(?damage, "an act on many messages cannot be read and is left out");
        }
        let mut sweeps = self.sweeps_kept();
        for (_, mut sweep) in stored {
            if sweep.state == SweepState::Lasting {
                // What came in just before the stop was perhaps not looked at.
                sweep.state = SweepState::Running;
            }
            sweeps.watch(&sweep);
            sweeps.all.insert(sweep.number, sweep);
        }
        Ok(())
    }

    /// Begins an act on everything that fits. Once this has returned, nothing that a hold, a cancel or an
    /// expire means is handed out any more, and a crash does not end it.
    ///
    /// # Errors
    /// If the actor may not, if it cannot be done so, or the record could not be written.
    pub async fn begin_sweep(&self, actor: &Actor, asked: NewSweep, now: Timestamp) -> Result<Sweep, AdminError> {
        asked.filter.require_change(actor)?;
        if matches!(asked.act, BulkAct::Cancel | BulkAct::Expire) {
            actor.require_fresh(now)?;
        }
        check(&asked)?;
        let turn = self.sweep_turn.lock().await;
        let number = {
            let sweeps = self.sweeps_kept();
            sweeps.room_for(actor, asked.filter.tenant)?;
            sweeps.all.keys().next_back().map_or(1, |last| last.saturating_add(1))
        };
        let NewSweep { act, filter, reason, lasting } = asked;
        let sweep = Sweep {
            number,
            act,
            filter,
            reason: reason.trim().to_owned(),
            by: actor.name.clone(),
            began: now,
            until: lasting.map(|lasting| now.plus(lasting)),
            state: SweepState::Running,
            done: Done::default(),
            finished: None,
            undecided: 0,
            course: Course::default(),
            trouble: None,
        };
        let mut batch = Batch::new();
        batch.set(key(number), sweep.to_bytes());
        records::record(&mut batch, actor, sweep.entry(act.name().to_owned()), now);
        self.commit(batch).await?;
        {
            let mut sweeps = self.sweeps_kept();
            sweeps.watch(&sweep);
            sweeps.all.insert(number, sweep.clone());
        }
        drop(turn);
        self.sweep_nudge.notify_one();
        Ok(sweep)
    }

    /// Ends an act that is not over; what it did stays done.
    ///
    /// # Errors
    /// If there is none, the actor may not, or the record could not be written.
    pub async fn end_sweep(&self, actor: &Actor, number: u64, now: Timestamp) -> Result<Sweep, AdminError> {
        let sweep = self.sweep_numbered(actor, number)?;
        sweep.filter.require_change(actor)?;
        if sweep.state.is_over() {
            return Err(AdminError::Invalid(format!("act {number} is over")));
        }
        let ended = SweepState::Ended(actor.name.clone());
        self.finish_sweep(actor, number, ended, now).await?;
        self.nudge.notify_one();
        self.sweep_numbered(actor, number)
    }

    /// Acts on what the actor may see, the latest first; of one tenant if it is named.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn sweeps(&self, actor: &Actor, tenant: Option<TenantId>) -> Result<Vec<Sweep>, AdminError> {
        Filter { tenant, ..Filter::default() }.require(actor)?;
        let sweeps = self.sweeps_kept();
        let fits = |sweep: &&Sweep| tenant.is_none() || sweep.filter.tenant == tenant;
        Ok(sweeps.all.values().rev().filter(fits).map(|sweep| sweeps.shown(sweep)).collect())
    }

    /// One of them; one that the actor may not see does not exist.
    ///
    /// # Errors
    /// If there is none for this actor.
    pub fn sweep_numbered(&self, actor: &Actor, number: u64) -> Result<Sweep, AdminError> {
        let sweeps = self.sweeps_kept();
        let found = sweeps.all.get(&number).filter(|sweep| sweep.filter.require(actor).is_ok());
        let found = found.map(|sweep| sweeps.shown(sweep));
        found.ok_or_else(|| AdminError::Missing(format!("act {number} on the queue")))
    }

    /// The claim, unless an act means it: then it is put back, to be reached by that act.
    pub(super) fn unless_swept(&self, claim: Claim) -> Option<Claim> {
        let now = Timestamp::now();
        let is_meant = {
            let mut sweeps = self.sweeps_kept();
            if sweeps.watched.is_empty() {
                return Some(claim);
            }
            let goes_there = |filter: &Filter| {
                filter.provider.is_none()
                    || self.goes_there(&self.resolved(filter.clone()), &claim.record.lane.next_hop)
            };
            let mut meant = sweeps.watched.values_mut().filter(|own| own.means(&claim, now) && goes_there(&own.filter));
            match meant.next() {
                Some(watched) if watched.found.len() < FOUND_MAX => {
                    watched.found.insert(claim.queue_id);
                    true
                }
                Some(watched) => {
                    watched.again = true;
                    true
                }
                None => false,
            }
        };
        if !is_meant {
            return Some(claim);
        }
        self.release(claim, PUT_BACK);
        self.sweep_nudge.notify_one();
        None
    }

    async fn finish_sweep(
        &self,
        actor: &Actor,
        number: u64,
        state: SweepState,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let _turn = self.sweep_turn.lock().await;
        let found = {
            let sweeps = self.sweeps_kept();
            sweeps.all.get(&number).filter(|sweep| !sweep.state.is_over()).map(|sweep| sweeps.shown(sweep))
        };
        let Some(mut sweep) = found else { return Ok(()) };
        (sweep.state, sweep.finished) = (state, Some(now));
        let mut batch = Batch::new();
        batch.set(key(number), sweep.to_bytes());
        let act = sweep.entry(format!("queue.{}-over", sweep.act.word()));
        let messages = usize::try_from(sweep.done.messages).unwrap_or(usize::MAX);
        records::record(&mut batch, actor, act.many(messages, number.to_string().as_bytes()), now);
        self.commit(batch).await?;
        let mut sweeps = self.sweeps_kept();
        sweeps.watched.remove(&number);
        sweeps.all.insert(number, sweep);
        Ok(())
    }

    /// How many of them go on.
    pub fn sweeps_running(&self) -> usize {
        self.sweeps_kept().all.values().filter(|sweep| !sweep.state.is_over()).count()
    }

    fn sweeps_kept(&self) -> std::sync::MutexGuard<'_, Sweeps> {
        self.sweeps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The filter with the site of the provider it names, as that is known now.
    pub(super) fn resolved(&self, filter: Filter) -> Filter {
        let site = filter.provider.as_deref().and_then(|provider| (self.site_names.get()?.called)(provider));
        Filter { site, ..filter }
    }

    /// Whether mail to a domain goes to the provider a resolved filter names.
    pub(super) fn goes_there(&self, filter: &Filter, next_hop: &Domain) -> bool {
        self.heading(filter, next_hop) == Heading::There
    }

    /// The same, as far as it is known.
    pub(super) fn heading(&self, filter: &Filter, next_hop: &Domain) -> Heading {
        if filter.provider.is_none() {
            return Heading::There;
        }
        let Some(names) = self.site_names.get() else { return Heading::Unknown };
        match (&filter.site, (names.of)(next_hop)) {
            (_, None) => Heading::Unknown,
            (Some(meant), Some(site)) if *meant == site => Heading::There,
            _ => Heading::Elsewhere,
        }
    }
}

impl Sweeps {
    fn watch(&mut self, sweep: &Sweep) {
        if sweep.state.is_over() {
            return;
        }
        let watched = Watched {
            act: sweep.act,
            filter: sweep.filter.clone(),
            began: sweep.began,
            until: sweep.until,
            counts: Arc::new(Counts::from(&sweep.done)),
            found: HashSet::new(),
            again: false,
            only_to: sweep.course.only_to.clone(),
            looked: None,
            rests: false,
            look_at: None,
            trouble: None,
        };
        self.watched.insert(sweep.number, watched);
    }

    /// Whether there is room for another act of this actor on mail of that tenant.
    fn room_for(&self, actor: &Actor, tenant: Option<TenantId>) -> Result<(), AdminError> {
        let open = self.all.values().filter(|sweep| !sweep.state.is_over());
        let of_tenant = open.clone().filter(|sweep| sweep.filter.tenant == tenant).count();
        let (open, runs_instance) = (open.count(), actor.require(Permission::ManageInstance).is_ok());
        let text = if !runs_instance && of_tenant >= SWEEPS_PER_TENANT_MAX {
            format!("{of_tenant} acts on the tenant's mail are not over, as many as may be")
        } else if open >= if runs_instance { SWEEPS_MAX } else { SWEEPS_OF_TENANTS_MAX } {
            format!("{open} acts on the queue are not over, as many as may be of all tenants")
        } else {
            return Ok(());
        };
        Err(AdminError::Full(format!("{text}; wait until one is over, or end one"), AGAIN_SECS))
    }

    /// The act with its counts as they are now.
    fn shown(&self, sweep: &Sweep) -> Sweep {
        let watched = self.watched.get(&sweep.number);
        let done = watched.map_or(sweep.done, |watched| watched.counts.done());
        let trouble = watched.and_then(|watched| watched.trouble.clone());
        Sweep { done, trouble, ..sweep.clone() }
    }
}

impl Watched {
    /// Whether a claim is to be put back.
    fn means(&self, claim: &Claim, now: Timestamp) -> bool {
        let is_late = match self.until {
            Some(until) => until <= now,
            // What fits now is what was there when it was asked.
            None => claim.message.accepted > self.began,
        };
        // What it has passed already, and somebody released since, it leaves alone.
        let is_passed = !self.only_to.is_empty() && !self.only_to.contains(&claim.record.lane.next_hop);
        if is_late || is_passed || !self.act.may_last() || !self.filter.fits_message(&claim.message) {
            return false;
        }
        let mut waiting = claim.record.recipients.iter().filter(|one| one.state == RecipientState::Waiting);
        waiting.any(|recipient| self.filter.fits(&claim.record, recipient, Standing::Waiting))
    }
}

impl Sweep {
    /// The entry in the audit log.
    fn entry(&self, act: String) -> Act {
        let until = self.until.map(|until| format!(", and what comes until {}", until.rfc3339())).unwrap_or_default();
        let came_to = match self.state.is_over() {
            true => format!(": {}, {} recipients", self.state.word(), self.done.recipients),
            false => String::new(),
        };
        let subject = |addresses| {
            format!("act {}: {}{until}{came_to}; reason: {}", self.number, self.filter.words(addresses), self.reason)
        };
        let entry = Act::new(act, subject(Addresses::Left)).shown(subject(Addresses::Shown));
        match self.filter.tenant {
            Some(tenant) => entry.of(tenant),
            None => entry,
        }
    }

    /// What it applies to, in words.
    pub fn words(&self) -> String {
        self.filter.words(Addresses::Shown)
    }
}

fn check(asked: &NewSweep) -> Result<(), AdminError> {
    let invalid = |text: String| Err(AdminError::Invalid(text));
    let reason = asked.reason.trim();
    if reason.chars().count() > REASON_CHARACTERS_MAX || reason.contains(char::is_control) {
        return invalid(format!("a reason is one line of at most {REASON_CHARACTERS_MAX} characters"));
    }
    let Some(lasting) = asked.lasting else { return Ok(()) };
    if !asked.act.may_last() {
        return invalid(format!(
            "{} applies to what is queued now; only hold, cancel and expire last",
            asked.act.word()
        ));
    }
    if lasting > LASTING_MAX || lasting.is_zero() {
        return invalid(format!("an act lasts between a second and {} days", LASTING_MAX.as_secs() / 86_400));
    }
    if asked.filter.accepted_before.is_some() {
        return invalid("what comes later is never older than it is now: leave the age out, or the time".to_owned());
    }
    Ok(())
}

fn key(number: u64) -> Key {
    [&[prefix::SWEEP][..], &number.to_be_bytes()].concat()
}
