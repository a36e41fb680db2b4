//! The work on acts on many messages: running ones walk through the queue, lasting ones look at what comes.
//!
//! Easy to get wrong: an act that does not last must not touch again what it has passed, since people may have
//! decided otherwise in between; so how far it came is stored page by page. One that lasts means what fits
//! at any time, and begins anew.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};

use super::turns::Looks;
use super::{Course, KEPT_FOR, Sweep, SweepState, key};
use crate::access::{Actor, Role};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::queue::bulk::{Counts, Passed, Round};
use crate::queue::{Filter, Queue};
use crate::records::AdminError;
use crate::store::Batch;

/// How often lasting acts look for mail that came in, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two looks is at least so many times what the last took.
const LOOK_REST: u32 = 4;
/// A message is acknowledged so long after the moment of its acceptance, at most, that a look would miss.
const LATE: Duration = Duration::from_secs(30);
/// How often it is seen whether an act is over, or was ended.
const TICK: Duration = Duration::from_millis(500);
/// Messages that came up for delivery and are reached in one turn.
const REACHED_A_TURN: usize = 64;
/// Domains noted of which it is not known whether their mail goes to the provider that is meant.
const UNKNOWN_MAX: usize = 2_000;

/// Acts being worked on.
#[derive(Default)]
struct Shift<'a> {
    working: FuturesUnordered<LocalBoxFuture<'a, u64>>,
    busy: BTreeSet<u64>,
    /// These, and those that were worked on since the last tick.
    begun: BTreeSet<u64>,
}

impl Queue {
    /// Carries acts out until `shutdown`, tenants taking turns; what is under way then goes on at the next start.
    pub async fn run_sweeps(self: Arc<Self>, shutdown: Shutdown) {
        loop {
            if shutdown.is_cancelled() {
                return;
            }
            let (own, stop, handle) = (Arc::clone(&self), shutdown.clone(), tokio::runtime::Handle::current());
            let work = tokio::task::spawn_blocking(move || handle.block_on(own.work_while_open(&stop)));
            if let Err(error) = work.await {
                tracing::error!(%error, "acts on many messages cannot be carried out now");
            }
            let is_idle = self.sweeps_kept().watched.is_empty();
            let pause = if is_idle { KEPT_FOR / 100 } else { TICK };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.sweep_nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Works until no act is open, or `shutdown`.
    async fn work_while_open(&self, shutdown: &Shutdown) {
        let mut shift = Shift::default();
        while !shutdown.is_cancelled() && !self.sweeps_kept().watched.is_empty() {
            self.begin_next(&mut shift, Looks::InTime, shutdown);
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(number) = shift.working.next() => drop(shift.busy.remove(&number)),
                () = self.sweep_nudge.notified() => shift.begun.clone_from(&shift.busy),
                () = tokio::time::sleep(TICK) => {
                    shift.begun.clone_from(&shift.busy);
                    self.forget_sweeps(Timestamp::now()).await;
                }
            }
        }
        // Each sees by itself that it is to stop.
        while shift.working.next().await.is_some() {}
        self.forget_sweeps(Timestamp::now()).await;
    }

    /// One round: every running act is carried out, every lasting one looks at what came up, and if it
    /// `looks` at what came in.
    #[cfg(test)]
    pub(in crate::queue) async fn work_off(&self, shutdown: &Shutdown, looks: bool) {
        let mut shift = Shift::default();
        loop {
            self.begin_next(&mut shift, Looks::Always(looks), shutdown);
            let Some(number) = shift.working.next().await else { break };
            shift.busy.remove(&number);
        }
        self.forget_sweeps(Timestamp::now()).await;
    }

    fn begin_next<'a>(&'a self, shift: &mut Shift<'a>, looks: Looks, shutdown: &'a Shutdown) {
        if shutdown.is_cancelled() {
            return;
        }
        let next = self.sweeps_kept().up_next((&shift.busy, &shift.begun), looks);
        for (sweep, looks) in next {
            shift.busy.insert(sweep.number);
            shift.begun.insert(sweep.number);
            shift.working.push(self.work_on_it(sweep, looks, shutdown).boxed_local());
        }
    }

    /// Works on an act until it is through, or for as long as it looks; its number.
    async fn work_on_it(&self, sweep: Sweep, looks: bool, shutdown: &Shutdown) -> u64 {
        let began = Instant::now();
        let worked = self.work_on(&sweep, looks, shutdown).await;
        if let Err(error) = &worked {
            // A full disk, or one that fails: the act stays open and is tried again.
            tracing::warn!(%error, number = sweep.number, "an act on many messages does not get on; it is tried again");
        }
        let mut sweeps = self.sweeps_kept();
        if let Some(watched) = sweeps.watched.get_mut(&sweep.number) {
            watched.rests |= worked.is_err();
            watched.trouble = worked.err().map(|error| error.to_string());
            if looks || watched.rests {
                let took = if sweep.state == SweepState::Lasting { began.elapsed() } else { Duration::ZERO };
                let rest = LOOK_EVERY.max(took.saturating_mul(LOOK_REST));
                watched.look_at = Instant::now().checked_add(rest);
            }
        }
        sweep.number
    }

    async fn work_on(&self, sweep: &Sweep, looks: bool, shutdown: &Shutdown) -> Result<(), AdminError> {
        let by = Actor::of(sweep.by.clone(), Role::InstanceAdmin);
        if sweep.state == SweepState::Running {
            return match self.walk_on((&by, sweep), None, shutdown).await? {
                Some(course) => self.went_through(&by, sweep, course).await,
                None => Ok(()),
            };
        }
        self.catch_up((&by, sweep), looks, shutdown).await?;
        let now = Timestamp::now();
        if sweep.until.is_some_and(|until| until > now) || shutdown.is_cancelled() {
            return Ok(());
        }
        self.finish_sweep(&by, sweep.number, SweepState::Done, now).await
    }

    /// The walk is through: the act is over, or lasts, or waits until it is known where the rest goes.
    async fn went_through(&self, by: &Actor, sweep: &Sweep, course: Course) -> Result<(), AdminError> {
        let now = Timestamp::now();
        let undecided = course.undecided;
        if sweep.until.is_some_and(|until| until > now) {
            let lasts = |sweep: &mut Sweep| (sweep.state, sweep.undecided) = (SweepState::Lasting, undecided);
            return self.change(sweep.number, lasts).await;
        }
        if sweep.until.is_some() || undecided == 0 {
            self.change(sweep.number, |sweep| sweep.undecided = undecided).await?;
            return self.finish_sweep(by, sweep.number, SweepState::Done, now).await;
        }
        let only_to = if course.overflows { BTreeSet::new() } else { course.unknown };
        let next = Course { only_to: only_to.clone(), ..Course::default() };
        self.change(sweep.number, |sweep| (sweep.undecided, sweep.course) = (undecided, next)).await?;
        if let Some(watched) = self.sweeps_kept().watched.get_mut(&sweep.number) {
            (watched.only_to, watched.rests) = (only_to, true);
            // The next walk reaches them.
            watched.found.clear();
        }
        Ok(())
    }

    /// Walks through the queue, or through what was accepted `since`, from where the act stands; how the walk
    /// went once it is at its end, and nothing if the act or the daemon ended before.
    async fn walk_on(
        &self,
        (by, sweep): (&Actor, &Sweep),
        since: Option<Timestamp>,
        shutdown: &Shutdown,
    ) -> Result<Option<Course>, AdminError> {
        let Some(counts) = self.counts_of(sweep.number) else { return Ok(None) };
        let began = Timestamp::now();
        let lasts = sweep.until.is_some();
        let mut course = if lasts { Course::default() } else { sweep.course.clone() };
        let only_to = course.only_to.clone();
        let is_over = || shutdown.is_cancelled() || self.is_ended(sweep.number);
        loop {
            let page = self.sweep_pages.turn(sweep.filter.tenant).await;
            let filter = self.resolved(sweep.bounded(since));
            let (verb, counts) = (sweep.act.verb(), &*counts);
            let round = Round { actor: by, verb, filter: &filter, counts, is_over: &is_over, only_to: &only_to };
            let passed = self.sweep_page(&round, course.reached, Timestamp::now()).await?;
            course.add(&passed);
            if passed.is_end {
                if let Some(watched) = self.sweeps_kept().watched.get_mut(&sweep.number) {
                    watched.looked = Some(began);
                }
                return Ok(Some(course));
            }
            if !lasts {
                self.change(sweep.number, |sweep| sweep.course.clone_from(&course)).await?;
            }
            drop(page);
            if let Some(trouble) = passed.trouble {
                return Err(trouble);
            }
            if is_over() {
                return Ok(None);
            }
            tokio::task::yield_now().await;
        }
    }

    /// What came up for delivery, or came in, since the last time.
    async fn catch_up(
        &self,
        (by, sweep): (&Actor, &Sweep),
        looks: bool,
        shutdown: &Shutdown,
    ) -> Result<(), AdminError> {
        let (found, again, looked) = {
            let mut sweeps = self.sweeps_kept();
            let Some(watched) = sweeps.watched.get_mut(&sweep.number) else { return Ok(()) };
            (std::mem::take(&mut watched.found), std::mem::take(&mut watched.again), watched.looked)
        };
        // Whatever was accepted since the last look began; everything, if there was none.
        let since = looked.map(|looked| Timestamp(looked.0.saturating_sub(millis(LATE))));
        if again || (looks && (sweep.undecided > 0 || since.is_none())) {
            let walked = self.walk_on((by, sweep), None, shutdown).await;
            if !matches!(walked, Ok(Some(_))) {
                self.note_found(sweep.number, HashSet::new());
            }
            return match walked? {
                Some(course) if course.undecided != sweep.undecided => {
                    self.change(sweep.number, |sweep| sweep.undecided = course.undecided).await
                }
                _ => Ok(()),
            };
        }
        self.reach((by, sweep), found, shutdown).await?;
        if looks && !shutdown.is_cancelled() {
            self.walk_on((by, sweep), since, shutdown).await?;
        }
        Ok(())
    }

    /// Applies an act to messages that came up for delivery.
    async fn reach(
        &self,
        (by, sweep): (&Actor, &Sweep),
        found: HashSet<QueueId>,
        shutdown: &Shutdown,
    ) -> Result<(), AdminError> {
        let Some(counts) = self.counts_of(sweep.number) else { return Ok(()) };
        let filter = self.resolved(sweep.filter.clone());
        let (mut left, mut page, mut reached) = (found.into_iter(), None, 0_usize);
        while let Some(id) = left.next() {
            if shutdown.is_cancelled() || self.is_ended(sweep.number) {
                return Ok(());
            }
            if reached.is_multiple_of(REACHED_A_TURN) {
                drop(page.take());
                page = Some(self.sweep_pages.turn(sweep.filter.tenant).await);
            }
            reached = reached.saturating_add(1);
            if let Err(error) = self.reach_one((by, sweep), (id, &filter), &counts).await {
                self.note_found(sweep.number, left.chain([id]).collect());
                return Err(error);
            }
        }
        Ok(())
    }

    async fn reach_one(
        &self,
        (by, sweep): (&Actor, &Sweep),
        (id, filter): (QueueId, &Filter),
        counts: &Counts,
    ) -> Result<(), AdminError> {
        let Some(message) = self.message(id)?.filter(|message| filter.fits_message(message)) else { return Ok(()) };
        let (records, _) = self.lane_records_of(id)?;
        let Some(meant) = self.meant(filter, (id, message), records) else { return Ok(()) };
        let numbers = meant.numbers();
        if numbers.is_empty() {
            return Ok(());
        }
        counts.note(self.apply((by, sweep.act.verb()), id, numbers, Timestamp::now()).await)
    }

    /// These are to be looked at again; without any, all mail is.
    fn note_found(&self, number: u64, messages: HashSet<QueueId>) {
        let mut sweeps = self.sweeps_kept();
        if let Some(watched) = sweeps.watched.get_mut(&number) {
            watched.again |= messages.is_empty();
            watched.found.extend(messages);
        }
    }

    fn is_ended(&self, number: u64) -> bool {
        self.sweeps_kept().all.get(&number).is_none_or(|sweep| sweep.state.is_over())
    }

    /// As if the last look had begun then.
    #[cfg(test)]
    pub(in crate::queue) fn looked_last(&self, number: u64, began: Timestamp) {
        let mut sweeps = self.sweeps_kept();
        if let Some(watched) = sweeps.watched.get_mut(&number) {
            watched.looked = Some(began);
        }
    }

    fn counts_of(&self, number: u64) -> Option<Arc<Counts>> {
        self.sweeps_kept().watched.get(&number).map(|watched| Arc::clone(&watched.counts))
    }

    /// Changes the record of an act that is not over.
    async fn change(&self, number: u64, change: impl FnOnce(&mut Sweep)) -> Result<(), AdminError> {
        let _turn = self.sweep_turn.lock().await;
        let found = {
            let sweeps = self.sweeps_kept();
            sweeps.all.get(&number).filter(|sweep| !sweep.state.is_over()).map(|sweep| sweeps.shown(sweep))
        };
        let Some(mut sweep) = found else { return Ok(()) };
        change(&mut sweep);
        let mut batch = Batch::new();
        batch.set(key(number), sweep.to_bytes());
        self.commit(batch).await?;
        self.sweeps_kept().all.insert(number, sweep);
        Ok(())
    }
}

impl Sweep {
    /// What a walk is about: what was accepted `since`, and unless the act lasts, nothing that came in later.
    fn bounded(&self, since: Option<Timestamp>) -> Filter {
        let own = self.filter.clone();
        let accepted_from = own.accepted_from.max(since);
        let end = self.until.is_none().then(|| Timestamp(self.began.0.saturating_add(1)));
        let accepted_before = match (own.accepted_before, end) {
            (Some(before), Some(end)) => Some(before.min(end)),
            (before, end) => before.or(end),
        };
        Filter { accepted_from, accepted_before, ..own }
    }
}

impl Course {
    fn add(&mut self, passed: &Passed) {
        self.reached = passed.reached;
        self.undecided = self.undecided.saturating_add(passed.undecided);
        for domain in &passed.unknown {
            if self.unknown.len() >= UNKNOWN_MAX && !self.unknown.contains(domain) {
                self.overflows = true;
                return;
            }
            self.unknown.insert(domain.clone());
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
