//! The loop that pays what is owed; sole owner of shaper, sites and pool.
//!
//! Recipe: [`Dispatcher::run`]. Each pass asks the queue for lanes with something due, finds out
//! where they go and from where, and starts one job per admitted connection.
//! Easy to get wrong: the loop itself never waits for DNS, disk or a peer (tasks do), and a lane
//! that may not run now must never make it spin: every reason to wait has a moment or an event.

mod ended;
mod overflowing;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::client::{Connection, Pool, pool_keys};
use super::lanes::{Places, Standing};
use super::overflow::Overflows;
use super::settle::{Fate, Screen, record_outcomes, share_fate};
use super::shaping::{Admission, Answer, Ask, Backlog, Hold, Knob, Path, Permit, Shaper, allowance, is_called};
use super::sharers::Sharers;
use super::shares::{Full, Shares, Supply};
use super::sources::{Sources, after, earlier};
use super::transport::{Hand, Job, NoSite, Progress, Report, Site, Source, Transport};
use super::{Delivery, Pacing, Settings};
use crate::background::Shutdown;
use crate::events::Why;
use crate::ext::Timestamp;
use crate::gate::{Gate, Work};
use crate::mail::{Dialogue, TenantId};
use crate::metrics::{ATTEMPTS, LOOKUPS};
use crate::queue::{LaneWait, Look, Outcome, Queue, QueueTime, WaitsFor};
use crate::routing::{Lane, TransportName};

/// Lanes looked at in one pass, at most; the next pass goes on from there.
const LANES_PER_PASS: usize = 1_000;
/// Passes are at least so far apart. After a pause the first comes at once; under load a connection
/// finds more of its lane to take, and fewer jobs are begun and ended.
const PASS_GAP_MIN: Duration = Duration::from_millis(10);
/// The loop may use one part in so many of a core.
const PASS_SHARE: u32 = 5;
/// How often pool and watchdog are looked at while there is something in them.
const TICK: Duration = Duration::from_secs(1);
/// The longest sleep of an idle loop.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// An address that failed is tried last for so long.
const AVOID_FOR: Duration = Duration::from_secs(300);
/// Addresses remembered as failing, at most.
const AVOIDED_MAX: usize = 10_000;
/// A lookup of all of a lane's hosts that took so long is given up; its lane asks again later.
const LOOKUP_MAX: Duration = Duration::from_secs(120);
/// Mail for a site that pauses longer than this is deferred at once, with the reason.
const PATIENCE_WITH_PAUSE: Duration = Duration::from_secs(60);

/// All that can stir the loop.
enum Wake {
    /// Something may have become ready.
    Nudge,
    /// A moment came that was waited for.
    Due,
    /// A task ended.
    Finished(Result<(Id, Done), JoinError>),
    /// Settings changed.
    Settings,
    /// The daemon stops.
    Stop,
}

/// What a task brings back.
pub(super) enum Done {
    Job(Box<Report>),
    Lookup(super::lanes::Place, Result<Site, NoSite>),
    Fate,
    Overflow(super::overflow::Swept),
}

/// A task of the loop.
enum Running {
    Job {
        lane: Lane,
        path: Path,
        pace: Path,
        permit: Permit,
        progress: Arc<Progress>,
        steps: u64,
        since: Instant,
        handle: AbortHandle,
    },
    Lookup {
        place: super::lanes::Place,
        tenant: TenantId,
        share: Share,
    },
    Fate(Lane),
    Overflow(Lane),
}

/// What a lookup is counted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// Places that nothing is known of.
    Unknown,
    /// Places whose answer is too old: they never wait for the others.
    Refresh,
}

/// What the loop works with.
pub(super) struct Wiring {
    pub(super) queue: Arc<Queue>,
    pub(super) gate: Arc<Gate>,
    pub(super) screen: Screen,
    pub(super) mx: Arc<dyn Transport>,
    pub(super) smarthost: Arc<dyn Transport>,
    pub(super) delivery: Arc<Delivery>,
    pub(super) pacing: Arc<Pacing>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) overflows: Overflows,
}

/// The loop's state.
pub(super) struct Dispatcher {
    wiring: Wiring,
    settings: Arc<Settings>,
    sources: Sources,
    shaper: Shaper,
    pool: Pool,
    places: Places,
    tasks: JoinSet<Done>,
    running: HashMap<Id, Running>,
    jobs_of: HashMap<Lane, usize>,
    sharers: Sharers,
    fates: HashMap<Path, (Instant, Outcome)>,
    avoided: HashMap<SocketAddr, Instant>,
    /// Connections to other servers.
    jobs: Shares,
    lookups: Shares,
    refreshes: Shares,
    waits: Option<Instant>,
    /// Jobs, lookups and fates begun so far.
    begun: u64,
    /// In this round of looks nothing was begun and nothing stirred the loop.
    is_idle_round: bool,
    /// When pool and watchdog are looked at next.
    next_tick: Instant,
    stop: Shutdown,
}

/// A lane that could run now.
struct Candidate {
    lane: Lane,
    ready: usize,
    source: Arc<Source>,
    site: Arc<Site>,
    path: Path,
    /// The same for the pace: the provider, where there is one.
    pace: Path,
}

/// A lane waits for a limit.
fn limit(words: &str) -> LaneWait {
    LaneWait::new(WaitsFor::Limit, words)
}

impl Dispatcher {
    pub(super) fn new(wiring: Wiring, sources: Sources) -> Self {
        let settings = wiring.settings.borrow().clone();
        Self {
            shaper: Shaper::new(settings.shaping),
            wiring,
            settings,
            sources,
            pool: Pool::new(),
            places: Places::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            jobs_of: HashMap::new(),
            sharers: Sharers::default(),
            fates: HashMap::new(),
            avoided: HashMap::new(),
            jobs: Shares::default(),
            lookups: Shares::default(),
            refreshes: Shares::default(),
            waits: None,
            begun: 0,
            is_idle_round: false,
            next_tick: Instant::now(),
            stop: Shutdown::new(),
        }
    }

    /// Runs until `shutdown`, then lets running attempts finish within the grace period.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut is_dirty = true;
        let mut not_before = Instant::now();
        loop {
            let until = if is_dirty { not_before } else { self.next_moment(Instant::now()) };
            match self.wake(until, &shutdown).await {
                Wake::Stop => break,
                // Whatever stirs the loop may be about any lane: a whole round follows.
                Wake::Nudge => (is_dirty, self.is_idle_round) = (true, false),
                Wake::Settings => {
                    self.adopt_settings();
                    (is_dirty, self.is_idle_round) = (true, false);
                }
                Wake::Finished(ended) => {
                    self.finished(ended, Instant::now());
                    (is_dirty, self.is_idle_round) = (true, false);
                }
                Wake::Due => {
                    let began = Instant::now();
                    if began >= self.next_tick {
                        self.next_tick = after(began, TICK);
                        self.tick(began);
                    }
                    is_dirty = self.pass(began);
                    let gap = began.elapsed().saturating_mul(PASS_SHARE.saturating_sub(1)).max(PASS_GAP_MIN);
                    not_before = after(Instant::now(), gap);
                }
            }
        }
        self.wind_up().await;
    }

    async fn wake(&mut self, until: Instant, shutdown: &Shutdown) -> Wake {
        let Self { wiring, sources, tasks, .. } = self;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Wake::Stop,
            Some(ended) = tasks.join_next_with_id() => Wake::Finished(ended),
            Ok(()) = wiring.settings.changed() => Wake::Settings,
            () = sources.changed() => Wake::Nudge,
            () = wiring.delivery.nudged() => Wake::Nudge,
            () = wiring.pacing.nudged() => Wake::Nudge,
            () = tokio::time::sleep_until(until.into()) => Wake::Due,
            () = wiring.queue.nudged() => Wake::Nudge,
        }
    }

    /// When to look again if nothing else happens.
    fn next_moment(&self, now: Instant) -> Instant {
        let tick = if self.jobs.total() > 0 || !self.pool.is_empty() { TICK } else { SLEEP_MAX };
        let mut moment = after(now, tick);
        if let Some(waits) = self.waits {
            moment = moment.min(waits.max(after(now, PASS_GAP_MIN)));
        }
        // Zero means a lane is ready and waits for something that wakes us by itself.
        match self.wiring.queue.next_due() {
            Some(due) if !due.is_zero() => moment.min(after(now, due)),
            _ => moment,
        }
    }

    fn adopt_settings(&mut self) {
        self.settings = self.wiring.settings.borrow_and_update().clone();
        self.shaper.set_limits(self.settings.shaping);
        self.wiring.pacing.adopt(&self.settings);
        self.places.forget_all();
    }

    /// One look at lanes that are due; whether lanes are left to look at now.
    fn pass(&mut self, now: Instant) -> bool {
        if !self.wiring.queue.can_record() {
            self.waits = earlier(self.waits, after(now, TICK));
            return false;
        }
        let begun = self.begun;
        for site in self.wiring.delivery.take_resumed() {
            self.shaper.resume(&site);
            self.fates.retain(|path, _| !is_called(&path.site, &site));
        }
        let weights = self.wiring.pacing.weights();
        let weight = |tenant| weights.get(&tenant).copied().unwrap_or(1);
        let Look { lanes: due, is_start, is_end } = self.wiring.queue.look_at_lanes(LANES_PER_PASS, &weight);
        if is_start {
            (self.waits, self.is_idle_round) = (None, true);
        }
        let mut backlog: HashMap<Path, usize> = HashMap::new();
        let mut candidates = Vec::new();
        for due in due {
            match self.candidate(&due.lane, due.ready, now) {
                Ok(Some(candidate)) => {
                    let of_path = backlog.entry(candidate.path.clone()).or_default();
                    *of_path = of_path.saturating_add(candidate.ready);
                    candidates.push(candidate);
                }
                Ok(None) => {}
                Err(reason) => self.wiring.delivery.waits(&due.lane, reason),
            }
        }
        self.wiring
            .pacing
            .order(&mut candidates, |candidate| (candidate.pace.clone(), candidate.lane.tenant, candidate.lane.class));
        // One job per lane and round, so that lanes of one site share its connections.
        while !candidates.is_empty() {
            candidates.retain(|candidate| {
                let of_path = backlog.get(&candidate.path).copied().unwrap_or(candidate.ready);
                self.start_one(candidate, of_path, now)
            });
        }
        self.wiring.delivery.pass_done();
        // A round that is one look has begun all that could be; of a longer one, what it began may let lanes
        // go that were looked at before. If a whole round began nothing, all of them wait.
        self.is_idle_round &= self.begun == begun || (is_start && is_end);
        !(is_end && self.is_idle_round)
    }

    /// Where a due lane would go, `None` if something is under way for it, `Err` why it waits.
    fn candidate(&mut self, lane: &Lane, ready: usize, now: Instant) -> Result<Option<Candidate>, LaneWait> {
        self.suspended(lane, None, now)?;
        let source = self.sources.source(lane.vip, &self.settings, now);
        match &source {
            Ok(_) => self.wiring.queue.vip_present(lane.vip),
            Err(_) => {
                self.wiring.queue.vip_missing(lane.vip, Timestamp::now());
                self.waits = earlier(self.waits, after(now, self.settings.vip_check));
            }
        }
        let missing = |words: String| LaneWait::new(WaitsFor::VirtualIp, words);
        let source = source.map_err(missing)?;
        self.sources.serves(lane.vip, lane.tenant).map_err(missing)?;
        let looked_up = || LaneWait::new(WaitsFor::Dns, "looking up where its mail goes");
        let settings = Arc::clone(&self.settings);
        let standing = (lane, self.transport(lane).revision());
        let site = match self.places.standing(standing, (&source, &settings), now) {
            Standing::At(site) => site,
            Standing::Old(site, place) => {
                if self.looks_up((lane, Share::Refresh), place, now) {
                    self.waits = earlier(self.waits, after(now, settings.refresh_patience));
                    return Err(looked_up());
                }
                site
            }
            Standing::Unknown(place) => {
                self.looks_up((lane, Share::Unknown), place, now);
                return Err(looked_up());
            }
            Standing::Refreshing(until) => {
                self.waits = earlier(self.waits, until);
                return Err(looked_up());
            }
            Standing::LookingUp => return Err(looked_up()),
            Standing::Nowhere(no_site) => {
                // The answer is at most as old as it is kept.
                self.fate(lane, (no_site.outcome(), None), self.settings.lookup_pause);
                return Ok(None);
            }
        };
        self.suspended(lane, Some(&site.name), now)?;
        self.suspended(lane, site.provider.as_deref(), now)?;
        let path = Path { site: site.name.clone(), vip: lane.vip };
        let pace = Path { site: site.paced_as().clone(), vip: lane.vip };
        self.wiring.pacing.leads_to(&lane.next_hop, &pace.site);
        Ok(Some(Candidate { lane: lane.clone(), ready, source, site, path, pace }))
    }

    /// `Err` if an operator suspended the lane or its site.
    fn suspended(&mut self, lane: &Lane, site: Option<&str>, now: Instant) -> Result<(), LaneWait> {
        self.wiring.delivery.suspension(lane, site, Timestamp::now()).map_err(|suspended| {
            if let Some(left) = suspended.left {
                self.waits = earlier(self.waits, after(now, left));
            }
            LaneWait::new(WaitsFor::Suspension, suspended.reason)
        })
    }

    /// Starts a job for the lane if it may have one more; false once it may not.
    fn start_one(&mut self, candidate: &Candidate, backlog: usize, now: Instant) -> bool {
        let (lane, path) = (&candidate.lane, &candidate.path);
        let running = self.jobs_of.get(lane).copied().unwrap_or(0);
        let connections_max = self.wiring.pacing.connections_max(&candidate.pace);
        if running >= allowance(candidate.ready, lane.class, connections_max) {
            return false;
        }
        let supply =
            Supply { max: self.settings.connections_max, per_tenant_max: self.settings.connections_per_tenant_max };
        if let Err(full) = self.jobs.room(lane.tenant, supply) {
            let words = match full {
                Full::Altogether => "all connections are in use",
                Full::OfTenant => "all connections its tenant may have are in use",
            };
            self.wiring.delivery.waits(lane, limit(words));
            return false;
        }
        if !self.has_descriptor(now) {
            self.wiring.delivery.waits(lane, limit("file descriptors run short"));
            return false;
        }
        let messages = backlog.saturating_add(self.shaper.running(path));
        match self.shaper.admit(path, lane.class, Backlog { messages, connections_max }, now) {
            Admission::Admitted => self.start_paced(candidate, now),
            Admission::Enough => {
                let reason = format!("as many connections to {} as it may have are in use", path.site);
                self.wiring.delivery.waits(lane, limit(&reason));
                self.sharers.ask(&candidate.pace, lane);
                false
            }
            Admission::Wait(until, reason) => {
                self.waits = earlier(self.waits, until);
                let is_long = until.saturating_duration_since(now) > PATIENCE_WITH_PAUSE;
                if let Some((since, outcome)) = self.fates.get(path).filter(|_| is_long).cloned() {
                    self.fate(lane, (outcome, None), now.saturating_duration_since(since));
                } else {
                    let words = format!("{} pauses: {reason}", path.site);
                    self.wiring.delivery.waits(lane, LaneWait::new(WaitsFor::Pause, words));
                }
                false
            }
        }
    }

    /// Whether a socket may be opened; if not, it is looked again soon. What was accepted waits, and
    /// no peer is blamed.
    fn has_descriptor(&mut self, now: Instant) -> bool {
        let has = self.wiring.gate.admit(Work::Delivery).is_ok();
        if !has {
            self.waits = earlier(self.waits, after(now, TICK));
        }
        has
    }

    /// Starts it if the pace allows; the site has said yes.
    fn start_paced(&mut self, candidate: &Candidate, now: Instant) -> bool {
        let (lane, queue_now) = (&candidate.lane, self.wiring.queue.now());
        let has_idle = self.pool.has(pool_keys(&candidate.site, &candidate.source).into_iter(), &lane.next_hop);
        let ask = Ask {
            path: &candidate.pace,
            tenant: lane.tenant,
            domain: &lane.next_hop,
            class: lane.class,
            messages: u32::try_from(self.settings.messages_per_turn_max).unwrap_or(u32::MAX),
            needs: u32::from(!has_idle),
        };
        let (hold, until) = match self.wiring.pacing.admit(&ask, queue_now) {
            Answer::Go(permit) => {
                self.start(candidate, permit, now);
                return true;
            }
            Answer::Wait(hold, until) => (hold, until),
        };
        self.shaper.returned(&candidate.path);
        let span = until.map(|until| until.since(queue_now));
        if let Some(span) = span {
            self.waits = earlier(self.waits, after(now, span.max(PASS_GAP_MIN)));
        }
        if matches!(hold, Hold::Limit { knob: Knob::Connections, .. }) {
            self.sharers.ask(&candidate.pace, lane);
        }
        let mut detail = hold.describe(&candidate.pace.site, span.map(|span| Timestamp::now().plus(span)));
        if matches!(hold, Hold::WarmingUp(_)) {
            detail.push_str(&self.overflow(candidate, span.unwrap_or_default(), now));
        }
        let is_long = span.is_some_and(|span| span > PATIENCE_WITH_PAUSE);
        if is_long && matches!(hold, Hold::Listed(_)) {
            // Each try of the schedule is recorded as one, so that waiting for a listing to end has an end too.
            let detail = format!("not tried: {detail}");
            let listed = self.wiring.pacing.listed_since(&candidate.pace).unwrap_or(QueueTime(0));
            let outcome = Outcome::Deferred { why: Why::PolicyOrReputation, detail, peer: None };
            self.fate(lane, (outcome, None), queue_now.since(listed));
        } else {
            self.wiring.delivery.waits(lane, LaneWait::new(hold.waits_for(), detail));
        }
        false
    }

    fn start(&mut self, candidate: &Candidate, permit: Permit, now: Instant) {
        let (settled, outcomes) = mpsc::channel(8);
        let keys = pool_keys(&candidate.site, &candidate.source).into_iter();
        let idle = self.pool.take((keys, &candidate.lane.next_hop), &self.settings, now);
        let progress = Arc::new(Progress::default());
        let hand = self.hand(&candidate.lane, settled).watched(Arc::clone(&progress));
        self.avoided.retain(|_, until| *until > now);
        let job = Job {
            lane: candidate.lane.clone(),
            site: candidate.site.clone(),
            source: candidate.source.clone(),
            idle,
            hand,
            avoid: Arc::new(self.avoided_of(&candidate.site)),
            settings: self.settings.clone(),
            stop: self.stop.clone(),
            progress: progress.clone(),
            permit: permit.clone(),
            yields: self.sharers.joined(&candidate.pace, &candidate.lane),
        };
        let transport = self.transport(&candidate.lane);
        let recording = record_outcomes(self.wiring.queue.clone(), outcomes, self.settings.settling_max);
        let task = self.tasks.spawn(async move {
            // The job's hand is dropped with it, which ends the recording once all is written.
            let (report, ()) = tokio::join!(transport.attempt(job), recording);
            Done::Job(Box::new(report))
        });
        let (lane, path, pace) = (candidate.lane.clone(), candidate.path.clone(), candidate.pace.clone());
        self.jobs.take(lane.tenant);
        metrics::gauge!(ATTEMPTS).increment(1);
        self.count(&lane);
        self.wiring.delivery.runs(&lane);
        let running = Running::Job { lane, path, pace, permit, progress, steps: 0, since: now, handle: task.clone() };
        self.running.insert(task.id(), running);
        self.begun = self.begun.wrapping_add(1);
    }

    /// Addresses of the site that failed lately.
    fn avoided_of(&self, site: &Site) -> HashSet<SocketAddr> {
        let addresses = site.hosts.iter().flat_map(|host| &host.addresses);
        let addresses = addresses.map(|address| SocketAddr::new(*address, site.port));
        addresses.filter(|address| self.avoided.contains_key(address)).collect()
    }

    fn hand(&self, lane: &Lane, settled: mpsc::Sender<super::transport::Settled>) -> Hand {
        super::settle::hand(&self.wiring.screen, lane, settled, self.settings.given_back_pause)
    }

    fn transport(&self, lane: &Lane) -> Arc<dyn Transport> {
        match lane.transport {
            TransportName::Mx | TransportName::MxDespiteTls => self.wiring.mx.clone(),
            TransportName::Smarthost(_) => self.wiring.smarthost.clone(),
        }
    }

    /// Looks a place up if there is room for that; whether it does.
    fn looks_up(&mut self, (lane, share): (&Lane, Share), place: super::lanes::Place, now: Instant) -> bool {
        let settings = &self.settings;
        let supply = match share {
            Share::Unknown => Supply { max: settings.lookups_max, per_tenant_max: settings.lookups_per_tenant_max },
            Share::Refresh => Supply { max: settings.refreshes_max, per_tenant_max: settings.refreshes_per_tenant_max },
        };
        let has_room = self.shares(share).room(lane.tenant, supply).is_ok() && self.has_descriptor(now);
        if !has_room {
            return false;
        }
        let tenant = lane.tenant;
        let (transport, lane) = (self.transport(lane), lane.clone());
        let (asked, families) = (place.clone(), place.families);
        let task = self.tasks.spawn(async move {
            let found = tokio::time::timeout(LOOKUP_MAX, transport.site(&lane, families)).await;
            let late = |_| Err(NoSite::Deferred(Why::Dns, "451 4.4.3 DNS did not answer in time".to_owned()));
            Done::Lookup(asked, found.unwrap_or_else(late))
        });
        self.places.looking_up(place.clone(), &self.settings, now);
        self.shares(share).take(tenant);
        metrics::gauge!(LOOKUPS).increment(1);
        self.running.insert(task.id(), Running::Lookup { place, tenant, share });
        self.begun = self.begun.wrapping_add(1);
        true
    }

    fn shares(&mut self, share: Share) -> &mut Shares {
        match share {
            Share::Unknown => &mut self.lookups,
            Share::Refresh => &mut self.refreshes,
        }
    }

    /// What is ready in the lane shares this outcome, which is so old, and what was said before it.
    fn fate(&mut self, lane: &Lane, (outcome, said): (Outcome, Option<Dialogue>), age: Duration) {
        if self.jobs_of.contains_key(lane) {
            return;
        }
        let (screen, most) = (self.wiring.screen.clone(), self.settings.failed_together_max);
        let (of, settling) = (lane.clone(), self.settings.settling_max);
        let fate = Fate { outcome, said, given: self.wiring.queue.now().before(age) };
        let task = self.tasks.spawn(async move {
            share_fate(screen, &of, fate, most, settling).await;
            Done::Fate
        });
        self.count(lane);
        self.running.insert(task.id(), Running::Fate(lane.clone()));
        self.begun = self.begun.wrapping_add(1);
    }

    fn count(&mut self, lane: &Lane) {
        let jobs = self.jobs_of.entry(lane.clone()).or_default();
        *jobs = jobs.saturating_add(1);
    }

    fn uncount(&mut self, lane: &Lane) {
        if let Some(jobs) = self.jobs_of.get_mut(lane) {
            *jobs = jobs.saturating_sub(1);
            if *jobs == 0 {
                self.jobs_of.remove(lane);
            }
        }
    }

    /// Closes politely, without anybody waiting for it.
    fn close(&self, connections: impl IntoIterator<Item = Connection>) {
        for connection in connections {
            tokio::spawn(connection.quit(self.settings.timeouts.quit));
        }
    }
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;
