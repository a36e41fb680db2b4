//! The lane of one endpoint: takes what happened from its place in the log, makes requests, writes down what
//! became of them and how far it has come, in one batch.
//!
//! A request that fails is written down and made again by the plan, and the lane goes on; while nothing at all
//! succeeds, it only probes, and the log itself is the queue. Easy to get wrong: the place moves only with the
//! batch that holds the failures, so that a crash repeats requests and never leaves one out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::attempt::{self, Lines, Tried};
use super::feed::{Seen, Wanted, Witness};
use super::payload::Told;
use super::record::{self, After, Attempt, Pending, Progress, Replay, Webhook};
use super::{ATTEMPTS_KEPT, ATTEMPTS_MAX, Handle, Order, PENDING_MAX, Shared, Webhooks, replay, schedule};
use crate::background::Shutdown;
use crate::events::Reader;
use crate::ext::{self, Timestamp};
use crate::mail::{TenantId, WebhookId};
use crate::records;
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix, codec};

/// Requests between two batches, at most.
const ROUND_REQUESTS: usize = 64;
/// Requests to one endpoint at the same time.
const AT_ONCE: usize = 4;
/// Of a failing endpoint's waiting requests, so many are made between two batches.
const ROUND_FAILING: usize = 4;
/// So many different requests that fail in a row are an outage, and not the fault of one of them.
const OUTAGE_REQUESTS: usize = 2;
/// Events read at once by a lane that fell behind.
const PAGE_EVENTS: usize = 512;
/// A lane's place is stored this often, though nothing concerned it.
const STORE_PERIOD: Duration = Duration::from_secs(60);
/// An endpoint made later than this from now was made while the clock was wrong: it hears of everything.
const AHEAD_MAX: Duration = Duration::from_secs(60 * 60);
/// A lane looks at least this often.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// After a failure of our own.
const RETRY: Duration = Duration::from_secs(2);
/// Attempts written between two prunings.
const PRUNE_EVERY: usize = 500;

/// A request that was made: its stored key if it was waiting, itself, and what became of it.
type Made = (Option<Key>, Pending, Vec<Tried>);

/// What one round will send, and how far the lane has come then.
#[derive(Default)]
pub(super) struct Round {
    pub(super) requests: Vec<(Option<Key>, Pending)>,
    pub(super) at: Option<Key>,
    /// What is left of the replay; the inner `None` is nothing.
    pub(super) replay: Option<Option<Replay>>,
}

pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    pub(super) webhook: Arc<Webhook>,
    progress: Progress,
    pending: Vec<(Key, Pending)>,
    pub(super) replay: Option<Replay>,
    pub(super) replay_reader: Option<Reader>,
    pub(super) witness: Witness,
    reader: Option<Reader>,
    lines: Lines,
    probe_due: Timestamp,
    /// Requests that failed since something last succeeded, a few of them.
    failed: BTreeSet<String>,
    stored: Timestamp,
    written: usize,
}

/// Runs until `shutdown`, or until the endpoint is removed.
pub(super) async fn run(room: &Webhooks, handle: &Handle, shutdown: &Shutdown) {
    let (mut webhook, mut news) = (handle.webhook.subscribe(), room.shared.feed.news());
    let mut lane = None;
    loop {
        let now = Arc::clone(&webhook.borrow_and_update());
        if !now.is_enabled() {
            lane = None;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = handle.removed.cancelled() => return,
                _ = webhook.changed() => {}
            }
            continue;
        }
        let turn = async {
            let mut own = match lane.take() {
                Some(own) => own,
                None => Lane::load(Arc::clone(&room.shared), Arc::clone(&now))?,
            };
            own.webhook = now;
            own.take(std::mem::take(&mut *records::lock(&handle.orders)));
            own.turn(room).await
        };
        let turned = tokio::select! {
            () = shutdown.cancelled() => return,
            () = handle.removed.cancelled() => return,
            turned = turn => turned,
        };
        let pause = match turned {
            Ok((own, pause)) => {
                lane = Some(own);
                pause
            }
            Err(_) if handle.removed.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(webhook = %handle.now().id, error, "a webhook's lane could not go on; it tries again");
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = handle.removed.cancelled() => return,
            _ = webhook.changed() => {}
            () = handle.nudge.notified() => {}
            _ = news.changed(), if !pause.is_zero() && lane.as_ref().is_some_and(Lane::listens) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Lane {
    fn load(shared: Arc<Shared>, webhook: Arc<Webhook>) -> Result<Self, String> {
        let (id, store) = (webhook.id, Arc::clone(shared.parts.log.store()));
        let read = |key: Key| store.get(&key).map_err(|error| error.to_string());
        let progress = read(record::progress_key(id))?.map(|bytes| codec::decode(&bytes)).transpose();
        let progress: Option<Progress> = progress.map_err(|error| error.to_string())?;
        // A record that is damaged costs that one request or window, and says so.
        let replay = read(record::replay_key(id))?.and_then(|bytes| codec::decode(&bytes).ok());
        let all = record::pendings(id);
        let found = store.range(&all, &after_prefix(&all), usize::MAX).map_err(|error| error.to_string())?;
        let pending = found.into_iter().filter_map(|(key, bytes)| match codec::decode(&bytes) {
            Ok(pending) => Some((key, pending)),
            Err(error) => {
                records::set_aside(&key, &error.to_string());
                None
            }
        });
        let (pending, now) = (pending.collect(), shared.now());
        let witness = Witness::new(store);
        let progress = progress.unwrap_or_else(|| Progress { at: shared.feed.until(), ..Progress::default() });
        Ok(Self {
            shared,
            webhook,
            progress,
            pending,
            replay,
            replay_reader: None,
            witness,
            reader: None,
            lines: Lines::default(),
            probe_due: now,
            failed: BTreeSet::new(),
            stored: now,
            written: 0,
        })
    }

    fn take(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                // Stored before it was told: after a restart it may be in memory already.
                Order::Send(key, _) if self.pending.iter().any(|(own, _)| *own == key) => {}
                Order::Send(key, pending) => self.pending.push((key, pending)),
                Order::Replay(replay) => (self.replay, self.replay_reader) = (Some(replay), None),
            }
        }
    }

    fn is_failing(&self) -> bool {
        self.progress.failing_since.is_some()
    }

    /// Whether new events are sent as they come.
    fn flows(&self) -> bool {
        !self.is_failing() && self.pending.len() < PENDING_MAX
    }

    /// Whether one new event is tried though the endpoint fails.
    fn probes(&self, now: Timestamp) -> bool {
        self.is_failing() && self.pending.len() < PENDING_MAX && self.until_probe(now).is_zero()
    }

    /// How long until the next probe; a moment further ahead than one pause was noted while the clock was wrong.
    fn until_probe(&self, now: Timestamp) -> Duration {
        Some(self.probe_due.since(now)).filter(|wait| *wait <= schedule::PROBE_PERIOD).unwrap_or_default()
    }

    /// Whether more of the log would be looked at now.
    fn listens(&self) -> bool {
        self.flows() || self.probes(self.shared.now())
    }

    /// One round; itself again, and how long it may rest.
    async fn turn(mut self, room: &Webhooks) -> Result<(Self, Duration), String> {
        let now = self.shared.now();
        let reads_disk = self.replay.is_some() || self.shared.feed.begins_behind(&self.progress.at);
        let gathered = if reads_disk {
            let work = move || self.gather(now).map(|round| (self, round));
            tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
        } else {
            self.gather(now).map(|round| (self, round))
        };
        let (mut own, round) = gathered.map_err(|error: StoreError| error.to_string())?;
        if round.requests.is_empty() && round.replay.is_none() {
            own.rest(room, round.at, now).await?;
            let pause = own.pause(now);
            return Ok((own, pause));
        }
        let done = own.make(&round).await;
        let is_gone = done.iter().any(|(_, _, tried)| tried.iter().any(Tried::is_gone));
        let given_up = own.settle(room, round, done).await?;
        if is_gone {
            own.disable(room, "it answered 410 Gone".to_owned()).await?;
        } else if given_up {
            let reason = format!("nothing succeeded for 5 days; the last reason: {}", own.progress.last_reason);
            own.disable(room, reason).await?;
        }
        Ok((own, Duration::ZERO))
    }

    /// What is due, then what is new, then what is replayed. Blocks on the disk.
    fn gather(&mut self, now: Timestamp) -> Result<Round, StoreError> {
        let most = if self.is_failing() { ROUND_FAILING } else { ROUND_REQUESTS };
        let mut round = Round::default();
        for (key, pending) in self.pending.iter().filter(|(_, pending)| schedule::is_due(pending.due, now)).take(most) {
            round.requests.push((Some(key.clone()), pending.clone()));
        }
        let room = most.saturating_sub(round.requests.len());
        if self.flows() && room > 0 {
            self.gather_new(&mut round, room)?;
        } else if self.probes(now) {
            let before = round.requests.len();
            self.gather_new(&mut round, 1)?;
            if round.requests.len() > before {
                self.probe_due = now.plus(schedule::PROBE_PERIOD);
            }
        }
        if !self.is_failing() && round.requests.len() < most {
            replay::gather(self, &mut round, most)?;
        }
        Ok(round)
    }

    fn gather_new(&mut self, round: &mut Round, requests: usize) -> Result<(), StoreError> {
        let webhook = Arc::clone(&self.webhook);
        let batch = usize::from(webhook.batch.max(1));
        let limit = requests.saturating_mul(batch);
        let wanted = Wanted { tenant: webhook.tenant, kinds: &webhook.kinds, limit };
        let (told, upto) = match self.shared.feed.behind(&self.progress.at, wanted) {
            Seen::Told(told, upto) => (told, upto),
            Seen::Behind => self.read_behind(wanted)?,
        };
        let is_ahead = webhook.created.since(self.shared.now()) > AHEAD_MAX;
        let told = told.into_iter().filter(|told| is_ahead || told.at >= webhook.created);
        self.add_requests(told, &mut round.requests);
        if upto != self.progress.at {
            round.at = Some(upto);
        }
        Ok(())
    }

    /// A page of the log for a lane that fell behind the feed.
    fn read_behind(&mut self, wanted: Wanted<'_>) -> Result<(Vec<Arc<Told>>, Key), StoreError> {
        let at = &self.progress.at;
        let own = self.reader.take().filter(|reader| reader.at() == at);
        let mut reader = own.unwrap_or_else(|| self.shared.parts.log.reader(at.clone()));
        let page = reader.next_page(PAGE_EVENTS)?;
        let (mut told, mut upto) = (Vec::new(), reader.at().clone());
        let everybody = |_: Option<TenantId>| true;
        for (key, event) in page.events {
            let Some(found) = self.witness.tell(key, event, &everybody).filter(|found| wanted.is(found)) else {
                continue;
            };
            if told.len() == wanted.limit {
                upto = told.last().map_or(upto, |last: &Arc<Told>| last.key.clone());
                return Ok((told, upto));
            }
            told.push(Arc::new(found));
        }
        self.reader = Some(reader);
        Ok((told, upto))
    }

    /// Payloads in requests, several in one if the endpoint takes that.
    pub(super) fn add_requests(
        &self,
        told: impl Iterator<Item = Arc<Told>>,
        requests: &mut Vec<(Option<Key>, Pending)>,
    ) {
        let names = &self.shared.parts.names;
        let payloads: Vec<_> = told.flat_map(|told| told.payloads(names)).collect();
        for some in payloads.chunks(usize::from(self.webhook.batch.max(1))) {
            requests.extend(replay::request(some, self.webhook.batch).map(|request| (None, request)));
        }
    }

    /// Makes the requests of a round, a few at the same time.
    async fn make(&self, round: &Round) -> Vec<Made> {
        let mut all = Vec::with_capacity(round.requests.len());
        for (key, request) in &round.requests {
            all.push(self.make_one(key.clone(), request.clone()));
        }
        stream::iter(all).buffer_unordered(AT_ONCE).collect().await
    }

    async fn make_one(&self, key: Option<Key>, request: Pending) -> Made {
        let tried = attempt::carry_out(&self.shared, &self.webhook, &self.lines, &request).await;
        (key, request, tried)
    }

    /// Writes down what became of a round; whether the endpoint is to be given up.
    async fn settle(&mut self, room: &Webhooks, round: Round, done: Vec<Made>) -> Result<bool, String> {
        let (id, mut batch, now) = (self.webhook.id, Batch::new(), self.shared.now());
        let mut progress = self.progress.clone();
        let (mut added, mut removed, mut failed) = (Vec::new(), Vec::new(), self.failed.clone());
        let has_success = done.iter().any(|(_, _, tried)| tried.iter().any(Tried::is_success));
        for (key, mut request, tried) in done {
            request.attempts = request.attempts.saturating_add(1);
            let after = judge(&request, &tried);
            for (attempt_key, attempt) in attempts(id, &request, &tried, after) {
                batch.set(attempt_key, codec::encode(&attempt));
                self.written += 1;
            }
            note(&mut progress, &tried, has_success);
            if after != After::Done && failed.len() < OUTAGE_REQUESTS {
                failed.insert(request.id.clone());
            }
            let own = key.clone().unwrap_or_else(|| record::new_pending_key(id));
            match after {
                After::Again(due) => {
                    request.due = due;
                    batch.set(own.clone(), codec::encode(&request));
                    added.push((own, request));
                }
                _ if key.is_some() => drop(batch.remove(own)),
                _ => {}
            }
            removed.extend(key);
        }
        // Noted while the clock was ahead.
        progress.failing_since = progress.failing_since.map(|since| since.min(now));
        if let Some(at) = &round.at {
            progress.at.clone_from(at);
        }
        match &round.replay {
            Some(Some(left)) => drop(batch.set(record::replay_key(id), codec::encode(left))),
            Some(None) => drop(batch.remove(record::replay_key(id))),
            None => {}
        }
        batch.set(record::progress_key(id), codec::encode(&progress));
        self.commit(room, batch).await?;
        let was_failing = std::mem::replace(&mut self.progress, progress).failing_since.is_some();
        self.pending.retain(|(key, _)| !removed.contains(key));
        self.pending.extend(added);
        if let Some(left) = round.replay {
            self.replay = left;
        }
        self.stored = now;
        if !was_failing && self.is_failing() {
            self.probe_due = now;
        }
        if was_failing && !self.is_failing() && self.failed.len() >= OUTAGE_REQUESTS {
            // It is back: whatever waits need not wait any longer. One request that fails alone keeps to the plan.
            self.pending.iter_mut().for_each(|(_, pending)| pending.due = now);
        }
        self.failed = if self.is_failing() { failed } else { BTreeSet::new() };
        self.prune(self.shared.lapsing()).await;
        Ok(self.is_failing() && schedule::is_given_up(self.progress.failing_since, self.shared.lapsing()))
    }

    /// Commits, unless the endpoint was removed or changed meanwhile. Tries until it is done.
    async fn commit(&self, room: &Webhooks, batch: Batch) -> Result<(), String> {
        loop {
            let Some(webhook) = room.webhook(self.webhook.id) else { return Err("it was removed".to_owned()) };
            let mut own = batch.clone();
            own.if_equals(record::webhook_key(webhook.id), codec::encode(&*webhook));
            match self.shared.commit(own).await {
                Ok(()) => return Ok(()),
                // Changed between the look and the commit.
                Err(CommitError::Conflict) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::warn!(webhook = %self.webhook.id, %error, "what a webhook was told could not be noted yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Nothing to send: the place moves in memory, and on the disk now and then.
    async fn rest(&mut self, room: &Webhooks, at: Option<Key>, now: Timestamp) -> Result<(), String> {
        let Some(at) = at else { return Ok(()) };
        self.progress.at = at;
        if now.apart(self.stored) >= STORE_PERIOD {
            let mut batch = Batch::new();
            batch.set(record::progress_key(self.webhook.id), codec::encode(&self.progress));
            self.commit(room, batch).await?;
            self.stored = now;
        }
        Ok(())
    }

    /// Until something is due.
    fn pause(&self, now: Timestamp) -> Duration {
        let is_behind = self.flows() && self.progress.at < self.shared.feed.until();
        if is_behind {
            return Duration::ZERO;
        }
        let wait = |due| if schedule::is_due(due, now) { Duration::ZERO } else { due.since(now) };
        let due = self.pending.iter().map(|(_, pending)| wait(pending.due)).min();
        let probe = (self.is_failing() && self.pending.len() < PENDING_MAX).then(|| self.until_probe(now));
        // A probe that is due and finds nothing waits for news like everybody.
        let probe = probe.filter(|probe| !probe.is_zero() || self.progress.at < self.shared.feed.until());
        let soonest = due.into_iter().chain(probe).min().unwrap_or(LOOK_PERIOD);
        soonest.clamp(Duration::from_millis(10), LOOK_PERIOD)
    }

    async fn disable(&mut self, room: &Webhooks, reason: String) -> Result<(), String> {
        room.disable(self.webhook.id, reason, self.shared.now()).await.map_err(|error| error.to_string())
    }

    /// Forgets attempts that are too old, or too many.
    async fn prune(&mut self, now: Timestamp) {
        if self.written < PRUNE_EVERY {
            return;
        }
        self.written = 0;
        let pruned = prune(&self.shared, &self.webhook, now).await;
        if let Err(error) = pruned {
            tracing::warn!(webhook = %self.webhook.id, error, "old attempts could not be forgotten yet");
        }
    }
}

/// What follows the attempts of one request.
fn judge(request: &Pending, tried: &[Tried]) -> After {
    if tried.iter().any(Tried::is_success) {
        return After::Done;
    }
    let luck = u16::from_be_bytes(ext::random_bytes());
    let asked = tried.iter().filter_map(|one| one.retry_after).max();
    let ended = tried.last().map_or(Timestamp(0), |last| last.at.plus(Duration::from_millis(last.took_ms.into())));
    match schedule::pause(usize::from(request.attempts), luck, asked) {
        Some(pause) => After::Again(ended.plus(pause)),
        None => After::GivenUp,
    }
}

/// A row for each attempt; `after` is what follows the last of them.
pub(super) fn attempts(id: WebhookId, request: &Pending, tried: &[Tried], after: After) -> Vec<(Key, Attempt)> {
    let count = tried.len();
    let row = |(at, one): (usize, &Tried)| {
        let attempt = Attempt {
            id: request.id.clone(),
            kind: request.kind.clone(),
            message: request.message,
            events: request.events.clone(),
            at: one.at,
            number: request.attempts,
            is_secondary: one.is_secondary,
            ending: one.ending.clone(),
            took_ms: one.took_ms,
            answer: one.answer.clone(),
            after: if at + 1 == count { after } else { After::Secondary },
        };
        (record::new_attempt_key(id, one.at), attempt)
    };
    tried.iter().enumerate().map(row).collect()
}

/// How the endpoint does, after one request of a round.
fn note(progress: &mut Progress, tried: &[Tried], has_success: bool) {
    for one in tried {
        if one.is_success() {
            progress.last_success = progress.last_success.max(Some(one.at));
        } else {
            progress.last_failure = progress.last_failure.max(Some(one.at));
            progress.last_reason = one.reason();
        }
    }
    if has_success {
        progress.failing_since = None;
    } else if let (None, Some(first)) = (progress.failing_since, tried.first()) {
        progress.failing_since = Some(first.at);
    }
}

async fn prune(shared: &Shared, webhook: &Webhook, now: Timestamp) -> Result<(), String> {
    let (id, store) = (webhook.id, Arc::clone(shared.parts.log.store()));
    let oldest = Timestamp(now.0.saturating_sub(u64::try_from(ATTEMPTS_KEPT.as_millis()).unwrap_or(u64::MAX)));
    let found = tokio::task::spawn_blocking(move || {
        let all = record::attempts(id);
        let end = after_prefix(&all);
        let mut kept = store.range(&all, &end, ATTEMPTS_MAX + 1)?;
        let surplus = kept.pop().filter(|_| kept.len() == ATTEMPTS_MAX).map_or_else(|| end.clone(), |(key, _)| key);
        store.range(&surplus.min(record::attempts_before(id, oldest)), &end, usize::MAX)
    });
    let found = found.await.map_err(|error| error.to_string())?.map_err(|error: StoreError| error.to_string())?;
    let mut batch = Batch::new();
    for (key, _) in found {
        batch.remove(key);
    }
    shared.commit(batch).await.map_err(|error| error.to_string())
}
