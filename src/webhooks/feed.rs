//! Reads the log once for all lanes, and keeps the newest events that some endpoint may want in memory.
//!
//! A lane that keeps up takes them from here; one that fell behind reads the log for itself. Easy to get wrong:
//! the ring says which stretch of the log it covers, so that a lane never takes an old gap for silence.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use super::kind::Kind;
use super::payload::Told;
use crate::background::Shutdown;
use crate::events::{Bell, Event, EventKind, EventLog, History, InstanceEvent, MailEvent, Reader, history_key};
use crate::mail::{QueueId, TenantId};
use crate::store::{Key, Store, StoreError};

/// Events in the ring, at most.
const RING_EVENTS_MAX: usize = 8_192;
/// Recipients in the ring's histories, at most: what makes an event large.
const RING_RECIPIENTS_MAX: usize = 100_000;
/// Events read at once.
const PAGE_EVENTS: usize = 512;
/// Look again after this, even without a ring of the bell.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// Wait this long after a ring, so that one look serves many commits.
const GATHER: Duration = Duration::from_millis(50);
/// Look again after this when reading failed.
const RETRY: Duration = Duration::from_secs(5);
/// History records remembered, at most.
const REMEMBERED_MAX: usize = 1_024;

/// What a lane found.
pub enum Seen {
    /// These, and then nothing that concerns it up to that key.
    Told(Vec<Arc<Told>>, Key),
    /// The ring begins behind its place: it must read for itself.
    Behind,
}

/// Which events a lane wants.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Whose.
    pub tenant: TenantId,
    /// Which kinds.
    pub kinds: &'a [Kind],
    /// At most so many.
    pub limit: usize,
}

impl Wanted<'_> {
    /// Whether it is one of them.
    pub fn is(&self, told: &Told) -> bool {
        told.tenant == self.tenant && self.kinds.contains(&told.kind)
    }
}

struct Ring {
    told: VecDeque<Arc<Told>>,
    recipients: usize,
    /// Every wanted event behind this key...
    from: Key,
    /// ...up to this one is in it.
    until: Key,
}

/// The newest events.
pub struct Feed {
    ring: RwLock<Ring>,
    news: watch::Sender<u64>,
}

impl Feed {
    /// A feed that begins behind `end`, the last event there is.
    pub fn new(end: Key) -> Self {
        let ring = Ring { told: VecDeque::new(), recipients: 0, from: end.clone(), until: end };
        Self { ring: RwLock::new(ring), news: watch::Sender::new(0) }
    }

    /// How far the log was read.
    pub fn until(&self) -> Key {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).until.clone()
    }

    /// Sees every time that more was read.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Whether the ring no longer, or not yet, begins at `at`.
    pub fn begins_behind(&self, at: &Key) -> bool {
        *at < self.ring.read().unwrap_or_else(PoisonError::into_inner).from
    }

    /// What is wanted behind `at`.
    pub fn behind(&self, at: &Key, wanted: Wanted<'_>) -> Seen {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if *at < ring.from {
            return Seen::Behind;
        }
        let start = ring.told.partition_point(|told| told.key <= *at);
        let mut found = Vec::new();
        for told in ring.told.iter().skip(start).filter(|told| wanted.is(told)) {
            if found.len() == wanted.limit {
                let upto = found.last().map_or_else(|| at.clone(), |last: &Arc<Told>| last.key.clone());
                return Seen::Told(found, upto);
            }
            found.push(Arc::clone(told));
        }
        Seen::Told(found, ring.until.clone().max(at.clone()))
    }

    fn add(&self, more: Vec<Told>, until: Key) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for told in more {
            ring.recipients += weight(&told);
            ring.told.push_back(Arc::new(told));
        }
        while ring.told.len() > RING_EVENTS_MAX || ring.recipients > RING_RECIPIENTS_MAX {
            let Some(oldest) = ring.told.pop_front() else { break };
            ring.recipients = ring.recipients.saturating_sub(weight(&oldest));
            ring.from.clone_from(&oldest.key);
        }
        ring.until = until;
        drop(ring);
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Reads on until `shutdown`.
    pub async fn run(&self, log: &EventLog, bell: &Bell, is_wanted: Arc<Wants>, shutdown: &Shutdown) {
        let mut rings = bell.listen();
        let mut reader = Some((log.reader(self.until()), Witness::new(Arc::clone(log.store()))));
        loop {
            let (own, wanted) = (reader.take(), Arc::clone(&is_wanted));
            let fresh = || (log.reader(self.until()), Witness::new(Arc::clone(log.store())));
            let (mut place, mut witness) = own.unwrap_or_else(fresh);
            let read = tokio::task::spawn_blocking(move || {
                let page = read_page(&mut place, &mut witness, &*wanted)?;
                Ok::<_, StoreError>((page, place, witness))
            });
            let read = read.await.map_err(|error| error.to_string()).and_then(|read| read.map_err(|e| e.to_string()));
            let pause = match read {
                Ok(((told, is_end), place, witness)) => {
                    let until = place.at().clone();
                    reader = Some((place, witness));
                    if until != self.until() {
                        self.add(told, until);
                    }
                    if is_end { LOOK_PERIOD } else { Duration::ZERO }
                }
                Err(error) => {
                    tracing::warn!(error, "events could not be read for webhooks; they are read again");
                    RETRY
                }
            };
            if shutdown.is_cancelled() {
                return;
            }
            if !pause.is_zero() {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                    rung = rings.changed(), if pause == LOOK_PERIOD => {
                        // Nobody left to ring: look by the clock.
                        tokio::time::sleep(if rung.is_ok() { GATHER } else { pause }).await;
                    }
                }
            }
        }
    }
}

fn weight(told: &Told) -> usize {
    told.history.as_ref().map_or(1, |history| history.recipients.len().max(1))
}

/// Whether a tenant has an endpoint; of `None`, whether anybody has.
pub type Wants = dyn Fn(Option<TenantId>) -> bool + Send + Sync;

fn read_page(reader: &mut Reader, witness: &mut Witness, wanted: &Wants) -> Result<(Vec<Told>, bool), StoreError> {
    let page = reader.next_page(PAGE_EVENTS)?;
    let told = page.events.into_iter().filter_map(|(key, event)| witness.tell(key, event, wanted));
    Ok((told.collect(), page.is_end))
}

/// Finds out whose an event is.
pub struct Witness {
    store: Arc<dyn Store>,
    remembered: HashMap<QueueId, Option<Arc<History>>>,
}

impl Witness {
    /// Looks into `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, remembered: HashMap::new() }
    }

    /// The event with whose it is; `None` if nobody is told of it.
    pub fn tell(&mut self, key: Key, event: Event, wanted: &Wants) -> Option<Told> {
        let kind = Kind::of(&event.kind).filter(|_| wanted(None))?;
        let (tenant, history) = match &event.kind {
            EventKind::Mail(id, MailEvent::Accepted(facts)) => {
                let tenant = Some(facts.tenant).filter(|tenant| wanted(Some(*tenant)))?;
                (tenant, self.history(*id))
            }
            EventKind::Mail(id, _) => {
                let history = self.history(*id)?;
                let is_notice = history.entry.as_ref().is_some_and(|entry| entry.source == NOTICE);
                (Some(history.tenant).filter(|tenant| wanted(Some(*tenant)) && !is_notice)?, Some(history))
            }
            EventKind::Instance(
                InstanceEvent::DomainVerified { tenant, .. }
                | InstanceEvent::DomainUnverified { tenant, .. }
                | InstanceEvent::WebhookDisabled { tenant, .. },
            ) => (Some(*tenant).filter(|tenant| wanted(Some(*tenant)))?, None),
            EventKind::Instance(_) | EventKind::Audit(_) => return None,
        };
        Some(Told { key, at: event.at, kind, tenant, event: event.kind, history })
    }

    fn history(&mut self, id: QueueId) -> Option<Arc<History>> {
        if let Some(known) = self.remembered.get(&id) {
            return known.clone();
        }
        let read = self.store.get(&history_key(id)).ok().flatten();
        let read = read.and_then(|bytes| History::from_bytes(&bytes).ok()).map(Arc::new);
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.clear();
        }
        self.remembered.insert(id, read.clone());
        read
    }
}

/// The source of notices to senders, which are nobody's messages.
const NOTICE: &str = "notice";
