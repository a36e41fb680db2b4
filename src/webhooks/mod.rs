//! Webhooks: endpoints of tenants that are told what happened to their mail, by signed HTTPS requests.
//!
//! Recipe: [`Webhooks::open`], then [`Webhooks::run`] beside everything else; people's acts are methods with
//! the actor first. Each endpoint has a lane: a task with a durable place in the event log, so that one that is
//! down keeps nobody waiting and loses nothing. Requests come at least once, each with the same id every time.
//! Easy to get wrong: nothing here may slow mail; the log is read behind it, and never held back.

mod attempt;
mod feed;
mod kind;
mod lane;
mod payload;
mod record;
mod replay;
mod resealing;
mod schedule;
mod signature;
mod verbs;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::events::{Bell, EventLog};
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId, WebhookId};
use crate::net::{Post, Reach};
use crate::records::{self, Damage, Desk};
use crate::seal::MasterKey;
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix};
use feed::Feed;

pub use kind::{KINDS, Kind};
pub use payload::TEST;
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
pub use record::{After, Attempt, Ending, Progress, Standing, Webhook, attempt_name};
#[doc(hidden)]
pub use record::{Pending, Replay};
pub use resealing::reseal;
pub use verbs::{Doing, Made, NewLogin, NewWebhook, OVERLAP_DEFAULT, OVERLAP_MAX, WebhookChange};

/// Webhooks of one tenant, at most.
pub const WEBHOOKS_MAX: usize = 20;
/// Events in one request, at most.
pub const BATCH_MAX: u16 = 100;
/// Requests of one endpoint that wait to be made again, at most; beyond that the log itself is the queue.
pub const PENDING_MAX: usize = 1_000;
/// How long attempts are shown.
pub const ATTEMPTS_KEPT: Duration = Duration::from_secs(14 * 24 * 3_600);
/// Attempts of one endpoint that are kept, at most; older ones go first.
pub const ATTEMPTS_MAX: usize = 10_000;

/// How endpoints are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where requests may lead: public addresses.
    pub reach: Reach,
    /// Requests at one moment, of all endpoints (64).
    pub requests_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reach: Reach::Public, requests_max: 64 }
    }
}

/// What people call things, for payloads.
#[derive(Clone)]
pub struct Names {
    /// A tenant.
    pub tenant: Arc<dyn Fn(TenantId) -> String + Send + Sync>,
    /// An SMTP account: its login.
    pub account: Arc<dyn Fn(SmtpAccountId) -> String + Send + Sync>,
}

/// What the room is built from.
pub struct Parts {
    /// The events.
    pub log: EventLog,
    /// Rung when there are new ones.
    pub bell: Bell,
    /// Seals secrets.
    pub key: Arc<MasterKey>,
    /// Makes requests.
    pub post: Arc<dyn Post>,
    /// Names for payloads.
    pub names: Names,
    /// Tells the time; a value in tests.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// By which an endpoint that fails is given up, and attempts are forgotten.
    pub calendar: Calendar,
    /// How endpoints are reached.
    pub settings: Settings,
}

/// What all lanes share.
struct Shared {
    parts: Parts,
    feed: Feed,
    /// One for each request under way.
    permits: Semaphore,
}

impl Shared {
    fn now(&self) -> Timestamp {
        (self.parts.clock)()
    }

    /// As [`Shared::now`], for what cannot be undone.
    fn lapsing(&self) -> Timestamp {
        self.parts.calendar.cap(self.now())
    }

    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.parts.log.store().commit(batch).await
    }
}

/// One endpoint in memory, between those who manage it and its lane.
struct Handle {
    webhook: watch::Sender<Arc<Webhook>>,
    /// Cancelled when it is removed.
    removed: Shutdown,
    orders: Mutex<Vec<Order>>,
    nudge: Notify,
}

/// What people ask of a lane; stored before it is told.
enum Order {
    /// A request that is to be made.
    Send(Key, Pending),
    /// A window of past events.
    Replay(Replay),
}

impl Handle {
    fn new(webhook: Webhook) -> Arc<Self> {
        let webhook = watch::Sender::new(Arc::new(webhook));
        Arc::new(Self { webhook, removed: Shutdown::new(), orders: Mutex::default(), nudge: Notify::new() })
    }

    fn now(&self) -> Arc<Webhook> {
        Arc::clone(&self.webhook.borrow())
    }

    fn order(&self, order: Order) {
        records::lock(&self.orders).push(order);
        self.nudge.notify_one();
    }
}

type Handles = Arc<RwLock<BTreeMap<WebhookId, Arc<Handle>>>>;

/// Every tenant's webhooks.
pub struct Webhooks {
    shared: Arc<Shared>,
    desk: Desk,
    handles: Handles,
    changed: Arc<Notify>,
    damaged: Vec<Damage>,
}

impl Webhooks {
    /// Reads the endpoints, and where the log ends now. Blocks on the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(parts: Parts) -> Result<Self, StoreError> {
        let store = Arc::clone(parts.log.store());
        let (found, damaged) = records::load::<Webhook>(&*store, &record::webhooks())?;
        let handles = found.into_iter().map(|(_, webhook)| (webhook.id, Handle::new(webhook))).collect();
        let (feed, permits) = (Feed::new(parts.log.end()?), Semaphore::new(parts.settings.requests_max.max(1)));
        Ok(Self {
            shared: Arc::new(Shared { parts, feed, permits }),
            desk: Desk::new(store),
            handles: Arc::new(RwLock::new(handles)),
            changed: Arc::default(),
            damaged,
        })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Tells endpoints what happens, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        self.sweep().await;
        let handles = Arc::clone(&self.handles);
        let is_wanted = move |tenant: Option<TenantId>| {
            let handles = records::read(&handles);
            handles.values().any(|handle| tenant.is_none_or(|tenant| handle.now().tenant == tenant))
        };
        let Parts { log, bell, .. } = &self.shared.parts;
        tokio::join!(self.shared.feed.run(log, bell, Arc::new(is_wanted), &shutdown), self.supervise(&shutdown));
    }

    /// One task for each endpoint; one that fell is begun again.
    async fn supervise(self: &Arc<Self>, shutdown: &Shutdown) {
        let mut lanes: JoinSet<WebhookId> = JoinSet::new();
        let mut running = BTreeMap::new();
        loop {
            let missing: Vec<(WebhookId, Arc<Handle>)> = {
                let handles = records::read(&self.handles);
                let is_missing = |id: &WebhookId| !running.values().any(|own| own == id);
                handles.iter().filter(|(id, _)| is_missing(id)).map(|(id, own)| (*id, Arc::clone(own))).collect()
            };
            for (id, handle) in missing {
                let (room, stop) = (Arc::clone(self), shutdown.clone());
                let task = lanes.spawn(async move {
                    lane::run(&room, &handle, &stop).await;
                    id
                });
                running.insert(task.id(), id);
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.changed.notified() => {}
                Some(ended) = lanes.join_next_with_id(), if !lanes.is_empty() => {
                    let task = match &ended {
                        Ok((task, _)) => *task,
                        Err(error) => error.id(),
                    };
                    let id = running.remove(&task);
                    if let Err(error) = ended {
                        tracing::error!(webhook = ?id, %error, "the lane of a webhook fell; it is begun again");
                        tokio::select! {
                            () = shutdown.cancelled() => break,
                            () = tokio::time::sleep(FALLEN_PAUSE) => {}
                        }
                    }
                }
            }
        }
        // Requests under way end without an answer, and are made again after the next start.
        lanes.shutdown().await;
    }

    /// Removes what is left of endpoints whose removal was cut off.
    async fn sweep(&self) {
        for kind in record::MANY {
            let mut from = record::many(kind, None);
            loop {
                let found = self.desk.store().range(&from, &after_prefix(&record::many(kind, None)), 1);
                let Ok(Some((key, _))) = found.map(|found| found.into_iter().next()) else { break };
                let Some(id) = record::webhook_of(&key) else { break };
                let own = record::many(kind, Some(id));
                if !records::read(&self.handles).contains_key(&id) && remove_all(&self.shared, &own).await.is_err() {
                    break;
                }
                from = after_prefix(&own);
            }
        }
    }
}

/// A lane that panicked is begun again after this.
const FALLEN_PAUSE: Duration = Duration::from_secs(5);
/// Records removed in one batch, at most.
const REMOVED_AT_ONCE: usize = 1_000;

/// Removes everything below a key.
async fn remove_all(shared: &Shared, below: &[u8]) -> Result<(), CommitError> {
    loop {
        let found = shared.parts.log.store().range(below, &after_prefix(below), REMOVED_AT_ONCE);
        let found = found.map_err(|error| CommitError::Failed(error.to_string()))?;
        if found.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (key, _) in found {
            batch.remove(key);
        }
        shared.commit(batch).await?;
    }
}

#[cfg(test)]
mod tests;
