//! What is still owed. Only this room changes it; state and event are in one batch.
//!
//! Recipe: intake calls `enqueue`; the dispatcher asks `lanes`, then `claim`s, and gives every claim
//! back to `settle` or `release` exactly once: the token decides. `keep` runs beside them: it stores
//! the clock, repeats commits that failed and sets damaged records aside.
//! Easy to get wrong: all times here are [`QueueTime`], which no wall-clock jump moves.

mod bulk;
mod claim;
mod clock;
mod enqueue;
mod filter;
mod keep;
mod key;
mod lanes;
mod locks;
mod notices;
mod outage;
mod overflow;
mod paused;
mod record;
mod restored;
mod retention;
mod ring;
mod salvage;
mod schedule;
mod selectors;
mod settle;
mod shape;
mod show;
mod stored;
mod stuck;
mod sweeps;
mod usage;
mod verbs;
mod verdict;
mod walk;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify as Nudge;

pub use bulk::{BulkAct, Done, Sum};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use clock::Stored as StoredClock;
#[doc(hidden)]
pub use enqueue::BodyEnvelope;
pub use filter::{Filter, SenderIs, Standing};
pub use record::{
    Claim, Conversation, Ending, LANE_RECIPIENTS_MAX, LaneRecord, Needs8bit, NewMessage, NewRecipient, NoticeOwed,
    Onward, Outcome, QueueTime, QueuedMessage, QueuedRecipient, RecipientState, SAID_OCTETS_MAX,
};
pub use restored::{HeldAll, is_of_owed_mail};
pub use salvage::{FoundBody, Gap, SalvageError, Salvaged};
pub use shape::{AGES_MINUTES, DESTINATIONS_MAX, Shape, ShapeRow};
pub use show::{Histories, LaneWait, Listed, PAGE_MAX, Page, Shown, WaitsFor, WhyLine};
pub use sweeps::{
    LASTING_MAX, NewSweep, SWEEPS_MAX, SWEEPS_OF_TENANTS_MAX, SWEEPS_PER_TENANT_MAX, Sweep, SweepState, ended_sweep,
};
pub use verbs::Changed;

use crate::calendar::Calendar;
use crate::events;
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId, SmtpAccountId, TenantId, VipId};
use crate::routing::Lane;
use crate::store::{Batch, Blobs, CommitError, Health, Sharing, Store, StoreError, prefix};
use clock::Clock;
use lanes::Lanes;
use locks::MessageLocks;

/// With so many outcomes waiting to be recorded, nothing more is handed out.
const UNRECORDED_MAX: usize = 64;

/// Pages of the due index read at open; most queues are shorter.
const DISCOVERED_AT_OPEN: usize = 16;

/// When to try, when to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// First retry after this (5 minutes).
    pub retry_first: Duration,
    /// Longest pause between tries (4 hours).
    pub retry_max: Duration,
    /// Given up after this much waiting (3 days), and only after an attempt beyond it.
    pub expire_after: Duration,
    /// Delay notice after this (4 hours).
    pub delay_notice_after: Duration,
    /// Failures of one message gather this long for one notice (10 minutes).
    pub notice_gather: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(5 * 60),
            retry_max: Duration::from_secs(4 * 60 * 60),
            expire_after: Duration::from_secs(3 * 24 * 60 * 60),
            delay_notice_after: Duration::from_secs(4 * 60 * 60),
            notice_gather: Duration::from_secs(10 * 60),
        }
    }
}

/// What the queue asks of records it may not read itself; the composition root fills it in.
#[derive(Clone)]
pub struct Policy {
    /// Whether the tenant turned delay notices on for senders who did not ask.
    pub tells_delays: Arc<dyn Fn(TenantId) -> bool + Send + Sync>,
    /// Whether the tenant's mail may be moved to this virtual IP: it must be shared and the tenant
    /// must permit it. The text of a refusal is shown to the operator.
    pub may_move: Arc<dyn Fn(TenantId, VipId) -> Result<(), String> + Send + Sync>,
    /// The shared virtual IPs that the tenant named for what a warm-up of its own has no room for.
    pub overflow_to: Arc<dyn Fn(TenantId) -> Vec<VipId> + Send + Sync>,
    /// Why nothing of an SMTP account is sent now, for people; `None` if it is not paused.
    pub paused: Arc<dyn Fn(SmtpAccountId) -> Option<String> + Send + Sync>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tells_delays: Arc::new(|_| false),
            may_move: Arc::new(|_, _| Err("moving mail is not permitted".to_owned())),
            overflow_to: Arc::new(|_| Vec::new()),
            paused: Arc::new(|_| None),
        }
    }
}

/// Says what a lane waits for.
pub type LaneReasons = Box<dyn Fn(&Lane) -> Option<LaneWait> + Send + Sync>;

/// The name of a site by something, if it is known.
pub type SiteOf<T> = Box<dyn Fn(&T) -> Option<Arc<str>> + Send + Sync>;

/// Delivery's names of sites, as far as they are known.
pub struct SiteNames {
    /// The site that people call so: a provider, a domain, a site's own name.
    pub called: SiteOf<str>,
    /// The site a domain's mail goes to: the provider, where there is one.
    pub of: SiteOf<Domain>,
}

/// Something that happens to mail, as it happens, for those who watch.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum Beat<'a> {
    /// A message was accepted.
    Accepted,
    /// So many recipients of one message were tried, on the way to `next_hop`; accepted when.
    Tried { next_hop: &'a Domain, delivered: u64, deferred: u64, given_up: u64, accepted: Timestamp },
}

/// Is told of every [`Beat`]; must be quick.
pub type Beats = Box<dyn Fn(&Beat<'_>) + Send + Sync>;

/// What is owed.
pub struct Queue {
    store: Arc<dyn Store>,
    blobs: Arc<dyn Blobs>,
    settings: RwLock<Settings>,
    policy: Policy,
    clock: Clock,
    lanes: Mutex<Lanes>,
    locks: MessageLocks,
    notices: Mutex<notices::Owed>,
    chores: Mutex<keep::Chores>,
    outages: Mutex<outage::Outages>,
    panics: Mutex<stuck::Panics>,
    found: Mutex<paused::Found>,
    pausings: tokio::sync::RwLock<()>,
    sweeps: Mutex<sweeps::Sweeps>,
    sweep_turn: tokio::sync::Mutex<()>,
    sweep_nudge: Nudge,
    sweep_pages: sweeps::Pages,
    nudge: Nudge,
    notice_nudge: Nudge,
    chore_nudge: Nudge,
    bell: events::Bell,
    trail: events::Trail,
    history_retention: Duration,
    calendar: Calendar,
    lane_reasons: OnceLock<LaneReasons>,
    site_names: OnceLock<SiteNames>,
    beats: OnceLock<Beats>,
}

/// A lane with something due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueLane {
    /// The lane.
    pub lane: Lane,
    /// How many records are known to be ready; a lower bound.
    pub ready: usize,
}

/// Some of the lanes with something due; see [`Queue::look_at_lanes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Transactional ones first.
    pub lanes: Vec<DueLane>,
    /// A round began with this: nothing was looked at before.
    pub is_start: bool,
    /// A round ended with this: since it began each lane that is due was looked at.
    pub is_end: bool,
}

/// What is in memory of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Lanes with something waiting.
    pub lanes: usize,
    /// Claims that were not given back yet.
    pub claimed: usize,
    /// Notices owed.
    pub notices: usize,
    /// Settlements whose commit failed and is being repeated.
    pub unrecorded: usize,
}

impl Queue {
    /// Opens the queue: reads its clock, its first lanes and the notices owed, not its messages.
    /// [`Queue::keep`] finds the other lanes by and by, so that nobody waits for a long queue.
    pub async fn open(store: Arc<dyn Store>, blobs: Arc<dyn Blobs>, settings: Settings) -> Result<Self, StoreError> {
        let clock = Clock::resume(&*store, Timestamp::now())?;
        Self::open_with(store, blobs, settings, clock).await
    }

    async fn open_with(
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
        settings: Settings,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        if store.sharing() == Sharing::Shared {
            return Err(StoreError::Failed("this release keeps claims in memory: it cannot share its records".into()));
        }
        let queue = Self {
            trail: events::Trail::new(Arc::clone(&store)),
            store,
            blobs,
            settings: RwLock::new(settings),
            policy: Policy::default(),
            clock,
            lanes: Mutex::default(),
            locks: MessageLocks::default(),
            notices: Mutex::default(),
            chores: Mutex::default(),
            outages: Mutex::default(),
            panics: Mutex::default(),
            found: Mutex::default(),
            pausings: tokio::sync::RwLock::default(),
            sweeps: Mutex::default(),
            sweep_turn: tokio::sync::Mutex::default(),
            sweep_nudge: Nudge::new(),
            sweep_pages: sweeps::Pages::default(),
            nudge: Nudge::new(),
            notice_nudge: Nudge::new(),
            chore_nudge: Nudge::new(),
            bell: events::Bell::default(),
            history_retention: events::Settings::default().retention,
            calendar: Calendar::default(),
            lane_reasons: OnceLock::new(),
            site_names: OnceLock::new(),
            beats: OnceLock::new(),
        };
        queue.chores().undiscovered = Some(vec![prefix::DUE]);
        queue.discover_lanes(DISCOVERED_AT_OPEN)?;
        queue.discover_notices()?;
        queue.discover_outages()?;
        queue.discover_sweeps()?;
        queue.keep_clock(Timestamp::now()).await;
        Ok(queue)
    }

    /// Other settings from now on. What is due already keeps its due time; the next try after it, expiry
    /// and notices go by the new ones.
    pub fn adjust(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same queue, asking this policy.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The same queue, ringing this bell after each commit with events.
    #[must_use]
    pub fn with_bell(mut self, bell: events::Bell) -> Self {
        self.bell = bell;
        self
    }

    /// The same queue, showing past events from this archive too.
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<events::Archive>) -> Self {
        self.trail = self.trail.with_archive(archive);
        self
    }

    /// The same queue, keeping history records this long after acceptance (30 days), and longer
    /// as long as the message is owed.
    #[must_use]
    pub fn with_history_retention(mut self, retention: Duration) -> Self {
        self.history_retention = retention;
        self
    }

    /// The same queue, forgetting by this calendar.
    #[must_use]
    pub fn with_calendar(mut self, calendar: Calendar) -> Self {
        self.calendar = calendar;
        self
    }

    /// Delivery's answer to why a lane waits; the first one stays.
    pub fn explain_lanes_with(&self, reasons: LaneReasons) {
        let _ = self.lane_reasons.set(reasons);
    }

    /// Delivery's names of sites; the first ones stay.
    pub fn name_sites_with(&self, names: SiteNames) {
        let _ = self.site_names.set(names);
    }

    /// Who is told what happens, as it happens; the first one stays.
    pub fn tell_beats_to(&self, beats: Beats) {
        let _ = self.beats.set(beats);
    }

    fn beat(&self, beat: &Beat<'_>) {
        if let Some(beats) = self.beats.get() {
            beats(beat);
        }
    }

    /// The queue clock now.
    pub fn now(&self) -> QueueTime {
        self.clock.now()
    }

    /// All lanes with something due, transactional ones first. With very many lanes ask
    /// [`Queue::some_lanes`] instead.
    pub fn lanes(&self) -> Vec<DueLane> {
        self.some_lanes(usize::MAX)
    }

    /// Up to `most` lanes with something due, transactional ones first. The next call continues
    /// where this one stopped and goes round, so that none is forgotten.
    pub fn some_lanes(&self, most: usize) -> Vec<DueLane> {
        self.look_at_lanes(most, &|_| 1).lanes
    }

    /// As [`Queue::some_lanes`], with what is needed to know whether all of them were looked at. Tenants take
    /// turns: in each as many lanes of one are looked at as it has `weight`, and a tenant with few of them
    /// has them looked at each time, however many others have.
    pub fn look_at_lanes(&self, most: usize, weight: &dyn Fn(TenantId) -> u32) -> Look {
        let due = self.in_memory().due(self.now(), most, weight);
        let found = self.found();
        let moves = due.lanes.into_iter().filter(|(lane, _)| !found.stops(lane.tenant));
        let lanes = moves.map(|(lane, ready)| DueLane { lane, ready }).collect();
        Look { lanes, is_start: due.is_start, is_end: due.is_end }
    }

    /// When the next record will be due, zero if one is; `None` if nothing waits.
    pub fn next_due(&self) -> Option<Duration> {
        let first = self.in_memory().first_due()?;
        Some(first.since(self.now()))
    }

    /// Resolves when something may have become ready earlier than [`Queue::next_due`] said.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// Resolves when a notice may be due earlier than [`Queue::next_notice_due`] said.
    pub async fn notice_nudged(&self) {
        self.notice_nudge.notified().await;
    }

    /// Whether the outcome of an attempt made now could be recorded. If not, nothing is handed out:
    /// what cannot be recorded is forgotten at a crash, and would be delivered again.
    pub fn can_record(&self) -> bool {
        self.chores().unrecorded() < UNRECORDED_MAX && !matches!(self.store.health(), Health::Stopped(_))
    }

    /// Figures of what is in memory, for metrics and the status line.
    pub fn totals(&self) -> Totals {
        let (lanes, claimed) = self.in_memory().totals();
        let notices = self.notices_owed().len();
        let unrecorded = self.chores().unrecorded();
        Totals { lanes, claimed, notices, unrecorded }
    }

    /// The domain a lane delivers to.
    pub fn next_hop(lane: &Lane) -> &Domain {
        &lane.next_hop
    }

    fn in_memory(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notices_owed(&self) -> MutexGuard<'_, notices::Owed> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chores(&self) -> MutexGuard<'_, keep::Chores> {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outages(&self) -> MutexGuard<'_, outage::Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, paused::Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn panics(&self) -> MutexGuard<'_, stuck::Panics> {
        self.panics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.store.commit(batch).await?;
        self.bell.ring();
        Ok(())
    }

    /// Puts an event about one message into a batch.
    fn note(batch: &mut Batch, id: QueueId, event: events::MailEvent, now: Timestamp) {
        events::record(batch, &events::Event { at: now, kind: events::EventKind::Mail(id, event) });
    }
}

#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod crowd_tests;
#[cfg(test)]
mod mishap_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod overflow_tests;
#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod paused_tests;
#[cfg(test)]
mod said_tests;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod sweep_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod verb_tests;
#[cfg(test)]
mod waiting_tests;
