//! Many tasks at the queue at once, over an engine whose commits take a while and sometimes fail.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::tests::{WALL, all, bounced, deferred, delivered, message};
use super::*;
use crate::access::Actor;
use crate::mail::BodyId;
use crate::store::{BlobsUsage, BodyReader, Health, Key, MemoryStore, Store, after_prefix, prefix};

/// Lets others run before and after each commit, and fails every so often.
struct Slow {
    inner: MemoryStore,
    commits: AtomicU64,
    fails: AtomicBool,
}

#[async_trait]
impl Store for Slow {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.inner.range(from, to, limit)
    }
    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let number = self.commits.fetch_add(1, Ordering::AcqRel);
        if self.fails.load(Ordering::Acquire) && number % 13 == 12 {
            return Err(CommitError::Failed("every thirteenth".into()));
        }
        tokio::time::sleep(Duration::from_micros(number % 7 * 50)).await;
        let done = self.inner.commit(batch).await;
        tokio::time::sleep(Duration::from_micros(number % 5 * 50)).await;
        done
    }
    fn health(&self) -> Health {
        self.inner.health()
    }
    fn sharing(&self) -> Sharing {
        self.inner.sharing()
    }
}

impl Blobs for Slow {
    fn open(&self, id: BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError> {
        self.inner.open(id)
    }
    fn usage(&self) -> BlobsUsage {
        self.inner.usage()
    }
}

struct Crowd {
    queue: Queue,
    clock: Arc<AtomicU64>,
    store: Arc<Slow>,
    /// How often each recipient was delivered or given up, as the transport sees it.
    ended: Mutex<HashMap<(QueueId, u16), u32>>,
    ids: Mutex<Vec<QueueId>>,
    accepting: AtomicBool,
}

impl Crowd {
    async fn submit(&self, from: usize) {
        for number in 0..60 {
            let to: Vec<String> =
                (0..=number % 4).map(|at| format!("r{at}@d{}.example", (from + number + at) % 5)).collect();
            let new = message(&to.iter().map(String::as_str).collect::<Vec<_>>());
            let id = new.id;
            if self.queue.enqueue(new, WALL).await.is_ok() {
                self.ids.lock().unwrap().push(id);
            }
        }
    }

    async fn deliver(&self, salt: usize) {
        let mut turn = salt;
        while self.accepting.load(Ordering::Acquire) || self.queue.next_due().is_some() {
            self.clock.fetch_add(30_000, Ordering::AcqRel);
            for due in self.queue.some_lanes(3) {
                for claim in self.queue.claim(&due.lane, 3) {
                    turn += 1;
                    tokio::task::yield_now().await;
                    self.end(claim, turn).await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends the first recipient while the attempt goes on with the others.
    async fn part(&self, claim: Claim, turn: usize) -> Option<Claim> {
        let first = claim.record.recipients.iter().find(|one| one.state == RecipientState::Waiting)?.number;
        *self.ended.lock().unwrap().entry((claim.queue_id, first)).or_default() += 1;
        let settling = self.queue.settle_part(claim, vec![(first, delivered())], WALL);
        let patience = if turn.is_multiple_of(10) { Duration::from_micros(100) } else { Duration::from_secs(60) };
        tokio::time::timeout(patience, settling).await.ok()?.ok().flatten().map(|(claim, _)| claim)
    }

    async fn end(&self, mut claim: Claim, turn: usize) {
        if turn.is_multiple_of(5) {
            let Some(left) = self.part(claim, turn).await else { return };
            claim = left;
        }
        let outcome = match turn % 7 {
            0 => return self.queue.release(claim, Duration::from_secs(40)),
            1 | 2 => deferred(),
            3 => bounced(),
            _ => delivered(),
        };
        let waiting = |number: u16| {
            claim.record.recipients.iter().any(|one| one.number == number && one.state == RecipientState::Waiting)
        };
        let outcomes: Vec<_> = all(&claim, &outcome).into_iter().filter(|(number, _)| waiting(*number)).collect();
        if !matches!(outcome, Outcome::Deferred { .. }) {
            let mut ended = self.ended.lock().unwrap();
            for (number, _) in &outcomes {
                *ended.entry((claim.queue_id, *number)).or_default() += 1;
            }
        }
        if turn.is_multiple_of(11) {
            // A caller that goes away in the middle.
            let _ = tokio::time::timeout(Duration::from_micros(100), self.queue.settle(claim, outcomes, WALL)).await;
        } else {
            let _ = self.queue.settle(claim, outcomes, WALL).await;
        }
    }

    async fn meddle(&self) {
        let actor = Actor::local(0);
        let mut turn = 0;
        while self.accepting.load(Ordering::Acquire) {
            turn += 1;
            let id = self.ids.lock().unwrap().get(turn * 7 % 200).copied();
            if let Some(id) = id {
                let _ = self.queue.hold(&actor, id, &[], WALL).await;
                tokio::task::yield_now().await;
                let _ = self.queue.retry(&actor, id, &[], WALL).await;
                let _ = self.queue.show(&actor, id);
                while self.queue.release_hold(&actor, id, &[], WALL).await.is_err_and(|error| error_is_ours(&error)) {}
            }
            tokio::task::yield_now().await;
        }
    }

    async fn notify(&self) {
        while self.accepting.load(Ordering::Acquire) || self.queue.totals().notices > 0 {
            for notice in self.queue.owed_notices(5).unwrap() {
                let mut dsn = message(&["shop@d1.example"]);
                dsn.reverse_path = crate::mail::ReversePath(None);
                dsn.notice_about = Some(notice.queue_id);
                let _ = self.queue.enqueue(dsn, WALL).await;
            }
            self.queue.do_chores(WALL).await;
            self.clock.fetch_add(1_000, Ordering::AcqRel);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
}

fn error_is_ours(error: &crate::records::AdminError) -> bool {
    matches!(error, crate::records::AdminError::Commit(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_crowd_loses_nothing_and_ends_nothing_twice() {
    let store = Arc::new(Slow { inner: MemoryStore::new(), commits: AtomicU64::new(0), fails: AtomicBool::new(true) });
    let clock = Arc::new(AtomicU64::new(1_000_000));
    // Mail must not expire while the test makes the clock run.
    let settings = Settings { expire_after: Duration::from_secs(10_000_000), ..Settings::default() };
    let manual = Clock::Manual(Arc::clone(&clock));
    let queue = Queue::open_with(store.clone(), store.clone(), settings, manual).await.unwrap();
    let crowd = Arc::new(Crowd {
        queue,
        clock,
        store,
        ended: Mutex::default(),
        ids: Mutex::default(),
        accepting: AtomicBool::new(true),
    });
    let spawn = |work: fn(Arc<Crowd>, usize) -> futures_util::future::BoxFuture<'static, ()>, salt| {
        tokio::spawn(work(Arc::clone(&crowd), salt))
    };
    let mut workers = Vec::new();
    for salt in 0..4 {
        workers.push(spawn(|crowd, salt| Box::pin(async move { crowd.deliver(salt * 3).await }), salt));
    }
    workers.push(spawn(|crowd, _| Box::pin(async move { crowd.meddle().await }), 0));
    workers.push(spawn(|crowd, _| Box::pin(async move { crowd.notify().await }), 0));
    let mut submitters = Vec::new();
    for salt in 0..4 {
        submitters.push(spawn(|crowd, salt| Box::pin(async move { crowd.submit(salt).await }), salt));
    }
    for submitter in submitters {
        submitter.await.unwrap();
    }
    crowd.accepting.store(false, Ordering::Release);
    crowd.store.fails.store(false, Ordering::Release);
    for (number, worker) in workers.into_iter().enumerate() {
        let ended = tokio::time::timeout(Duration::from_secs(12), worker).await;
        assert!(ended.is_ok(), "worker {number} does not end: {:?}", crowd.queue.totals());
        ended.unwrap().unwrap();
    }
    // What the last ones left over.
    for _ in 0..50 {
        crowd.clock.fetch_add(3_600_000, Ordering::AcqRel);
        crowd.queue.do_chores(WALL).await;
        for due in crowd.queue.lanes() {
            for claim in crowd.queue.claim(&due.lane, 100) {
                crowd.end(claim, 4).await;
            }
        }
        for notice in crowd.queue.owed_notices(100).unwrap() {
            crowd.queue.drop_notice(&notice, WALL).await.unwrap();
        }
    }
    assert_eq!(crowd.queue.totals(), Totals { lanes: 0, claimed: 0, notices: 0, unrecorded: 0 });
    for kind in [prefix::MESSAGE, prefix::LANE, prefix::DUE, prefix::NOTICE] {
        let left = crowd.store.range(&[kind], &after_prefix(&[kind]), usize::MAX).unwrap().len();
        assert_eq!(left, 0, "records of kind {}", char::from(kind));
    }
    let ended = crowd.ended.lock().unwrap();
    let twice: Vec<_> = ended.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let accepted = crowd.ids.lock().unwrap();
    for (at, id) in accepted.iter().enumerate() {
        assert!(ended.contains_key(&(*id, 0)), "message {at} was never ended");
    }
}
