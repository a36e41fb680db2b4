//! What the queue does when callers go away, commits fail, and something cannot be paid for long.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::tests::{Bench, WALL, all, bounced, deferred, delivered, lane_to, message};
use super::*;
use crate::access::Actor;
use crate::background::Shutdown;
use crate::events::MailEvent;
use crate::mail::Class;
use crate::store::{Key, MemoryStore, prefix};

type Waiting = (Batch, oneshot::Sender<Result<(), CommitError>>);

/// Commits in order like the real engine, each only when let through.
pub(super) struct Slow {
    memory: Arc<MemoryStore>,
    inbox: mpsc::UnboundedSender<Waiting>,
}

impl Slow {
    pub(super) fn new(memory: Arc<MemoryStore>, gate: Arc<Semaphore>) -> Arc<Self> {
        let (inbox, mut work) = mpsc::unbounded_channel::<Waiting>();
        let target = Arc::clone(&memory);
        tokio::spawn(async move {
            while let Some((batch, reply)) = work.recv().await {
                gate.acquire().await.unwrap().forget();
                let _ = reply.send(target.commit(batch).await);
            }
        });
        Arc::new(Self { memory, inbox })
    }
}

#[async_trait]
impl Store for Slow {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.memory.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.memory.range(from, to, limit)
    }

    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send((batch, reply)).unwrap();
        answer.await.unwrap()
    }

    fn health(&self) -> Health {
        self.memory.health()
    }

    fn sharing(&self) -> Sharing {
        Sharing::Exclusive
    }
}

#[tokio::test]
async fn a_message_whose_caller_went_away_is_owed_even_if_its_commit_ends_later() {
    let (memory, gate) = (Arc::new(MemoryStore::new()), Arc::new(Semaphore::new(1)));
    let store = Slow::new(Arc::clone(&memory), Arc::clone(&gate));
    let queue = Queue::open(store, memory, Settings::default()).await.unwrap();
    // Polled once: the batch is with the store, then nobody waits for it any more.
    assert!(queue.enqueue(message(&["a@one.example"]), WALL).now_or_never().is_none());
    let opened = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.add_permits(100);
    };
    tokio::join!(queue.do_chores(WALL), opened);
    assert_eq!(queue.claim(&lane_to("one.example"), 10).len(), 1);
}

#[tokio::test]
async fn outcomes_that_wait_for_their_next_try_are_recorded_before_the_end() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    bench.store.fail_next(3, CommitError::Full("full".into()));
    assert!(bench.queue.settle(claim, outcomes, WALL).await.is_err());
    bench.queue.do_chores(WALL).await;
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.queue.totals().unrecorded, 1);
    let stop = Shutdown::new();
    stop.cancel();
    bench.store.reopen();
    bench.queue.keep(&stop).await;
    bench.assert_empty();
}

#[tokio::test]
async fn outcomes_nobody_waits_for_are_recorded_by_the_chores() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    bench.queue.settle_later((claim, outcomes), WALL, bench.queue.now());
    assert_eq!(bench.queue.totals().unrecorded, 1);
    bench.queue.do_chores(WALL).await;
    bench.assert_empty();
}

#[tokio::test]
async fn nothing_is_handed_out_while_outcomes_cannot_be_recorded() {
    let bench = Bench::new().await;
    for _ in 0..70 {
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    }
    bench.store.fail_next(64, CommitError::Full("full".into()));
    for claim in bench.queue.claim(&lane_to("one.example"), 64) {
        let outcomes = all(&claim, &delivered());
        assert!(bench.queue.settle(claim, outcomes, WALL).await.is_err());
    }
    assert!(!bench.queue.can_record() && bench.claim_all().is_empty());
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.claim_all().len(), 6);
    bench.store.fail_next(1, CommitError::Stopped("sync".into()));
    assert!(bench.queue.enqueue(message(&["b@two.example"]), WALL).await.is_err());
    assert!(!bench.queue.can_record());
}

#[tokio::test]
async fn marketing_is_looked_at_however_many_transactional_lanes_are_due() {
    let bench = Bench::new().await;
    for number in 0..20 {
        bench.queue.enqueue(message(&[&format!("a@t{number}.example")]), WALL).await.unwrap();
    }
    let mut new = message(&["a@m.example"]);
    new.recipients.iter_mut().filter_map(|to| to.lane.as_mut()).for_each(|lane| lane.class = Class::Marketing);
    bench.queue.enqueue(new, WALL).await.unwrap();
    for most in [2, 5, 10] {
        let due = bench.queue.some_lanes(most);
        assert_eq!(due.len(), most);
        assert_eq!(due.iter().filter(|due| due.lane.class == Class::Marketing).count(), 1, "{most}");
    }
}

#[tokio::test]
async fn a_notice_that_cannot_be_paid_stands_before_no_other() {
    let bench = Bench::new().await;
    for _ in 0..3 {
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    }
    for claim in bench.claim_all() {
        let outcomes = all(&claim, &bounced());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    bench.pass(3_600_000);
    let of_vip = |vip| Filter { vip: Some(vip), ..Filter::default() };
    let listed = |vip| bench.queue.list(&Actor::local(0), &of_vip(vip), None, 10).unwrap().messages.len();
    assert_eq!((listed(VipId(1)), listed(VipId(2))), (3, 0), "their notices still leave by this virtual IP");
    let first = bench.queue.owed_notices(1).unwrap().remove(0).queue_id;
    let next = bench.queue.owed_notices_but(1, &|id| id == first).unwrap().remove(0).queue_id;
    assert_ne!(first, next);
    assert_eq!(bench.queue.owed_notices_but(10, &|id| id == first).unwrap().len(), 2);
}

#[tokio::test]
async fn a_message_with_a_damaged_lane_record_can_be_cancelled_as_a_whole() {
    let mut bench = Bench::new().await;
    let new = message(&["a@one.example", "b@two.example"]);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    let mut harm = Batch::new();
    harm.set(key::lane_record(id, 0), b"\x01garbage".to_vec());
    bench.store.commit(harm).await.unwrap();
    bench.reopen().await;
    bench.claim_all().into_iter().for_each(|claim| bench.queue.release(claim, Duration::ZERO));
    bench.queue.do_chores(WALL).await;
    let admin = Actor::local(0);
    assert_eq!(bench.queue.cancel(&admin, id, &[1], WALL).await.unwrap().recipients, [1]);
    assert_eq!(bench.count(prefix::MESSAGE), 1, "whom the damaged record concerns is not known");
    bench.queue.cancel(&admin, id, &[], WALL).await.unwrap();
    bench.assert_empty();
    assert!(bench.mail_events().contains(&MailEvent::Retired));
}

#[tokio::test]
async fn a_damaged_body_is_set_aside_on_record_until_it_is_cancelled() {
    let bench = Bench::new().await;
    let new = message(&["a@one.example"]);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    bench.queue.set_aside(claim, "its checksum fails");
    bench.queue.do_chores(WALL).await;
    bench.pass(24 * 3_600_000);
    assert!(bench.claim_all().is_empty());
    assert_eq!((bench.count(prefix::DUE), bench.store.bodies().len()), (0, 1));
    bench.queue.cancel(&Actor::local(0), id, &[], WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_message_is_not_forgotten_under_a_notice_that_an_abandoned_settlement_owed() {
    let (memory, gate) = (Arc::new(MemoryStore::new()), Arc::new(Semaphore::new(2)));
    let store = Slow::new(Arc::clone(&memory), Arc::clone(&gate));
    let queue = Queue::open(store, memory, Settings::default()).await.unwrap();
    queue.enqueue(message(&["a@one.example", "b@two.example"]), WALL).await.unwrap();
    let one = queue.claim(&lane_to("one.example"), 1).remove(0);
    let two = queue.claim(&lane_to("two.example"), 1).remove(0);
    let id = one.queue_id;
    let (bounces, deliveries) = (all(&one, &bounced()), all(&two, &delivered()));
    assert!(queue.settle(one, bounces, WALL).now_or_never().is_none());
    gate.add_permits(100);
    tokio::time::sleep(Duration::from_millis(20)).await;
    queue.settle(two, deliveries, WALL).await.unwrap();
    assert!(queue.message(id).unwrap().is_some(), "the notice still needs it");
    assert_eq!(queue.totals().notices, 1);
}

#[tokio::test]
async fn what_is_in_doubt_about_a_message_is_not_taken_for_sure_because_of_another() {
    let (memory, gate) = (Arc::new(MemoryStore::new()), Arc::new(Semaphore::new(3)));
    let store = Slow::new(Arc::clone(&memory), Arc::clone(&gate));
    let queue = Queue::open(store, memory.clone(), Settings::default()).await.unwrap();
    queue.enqueue(message(&["a@one.example", "b@two.example"]), WALL).await.unwrap();
    queue.enqueue(message(&["c@three.example"]), WALL).await.unwrap();
    let [one, two, three] =
        ["one.example", "two.example", "three.example"].map(|domain| queue.claim(&lane_to(domain), 1).remove(0));
    let (id, first) = (one.queue_id, key::lane_record(one.queue_id, one.number));
    let of_one = all(&one, &bounced());
    let (of_two, of_three) = (all(&two, &delivered()), all(&three, &delivered()));
    // Abandoned with the committer; then another message ends, and only then that batch is carried out.
    assert!(queue.settle(one, of_one, WALL).now_or_never().is_none());
    let other = queue.settle(three, of_three, WALL);
    let carried_out = async {
        tokio::task::yield_now().await;
        gate.add_permits(1);
        while memory.get(&first).unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let last = queue.settle(two, of_two, WALL);
        let opened = async {
            tokio::task::yield_now().await;
            gate.add_permits(100);
        };
        tokio::join!(last, opened).0.unwrap();
    };
    tokio::join!(other, carried_out).0.unwrap();
    assert!(queue.message(id).unwrap().is_some(), "the notice still needs it");
    assert_eq!(queue.totals().notices, 1);
}

#[tokio::test]
async fn a_record_found_damaged_after_a_pause_loses_its_due_key_all_the_same() {
    let mut bench = Bench::new().await;
    for _ in 0..2 {
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    }
    let ids: Vec<QueueId> = bench.claim_all().iter().map(|claim| claim.queue_id).collect();
    bench.reopen().await;
    // Both keys are in memory then, and the second record is not.
    let first = bench.queue.claim(&lane_to("one.example"), 1).remove(0);
    let other = ids.into_iter().find(|id| *id != first.queue_id).unwrap();
    bench.store.fail_reads(Some(StoreError::Failed("eio".into())));
    assert!(bench.claim_all().is_empty());
    bench.store.fail_reads(None);
    let mut harm = Batch::new();
    harm.set(key::lane_record(other, 0), b"\x01garbage".to_vec());
    bench.store.commit(harm).await.unwrap();
    bench.pass(60_000);
    assert!(bench.claim_all().is_empty());
    bench.queue.do_chores(WALL).await;
    let outcomes = all(&first, &delivered());
    bench.queue.settle(first, outcomes, WALL).await.unwrap();
    assert_eq!((bench.count(prefix::DUE), bench.count(prefix::LANE)), (0, 1));
}

#[tokio::test]
async fn very_many_failures_go_into_several_notices_and_nothing_gets_stuck() {
    let bench = Bench::new().await;
    let to: Vec<String> = (0..1_500).map(|number| format!("r{number}@one.example")).collect();
    bench.queue.enqueue(message(&to.iter().map(String::as_str).collect::<Vec<_>>()), WALL).await.unwrap();
    let said = Outcome::Bounced { why: events::Why::RecipientGone, detail: "5".repeat(1_024), peer: None };
    for claim in bench.claim_all() {
        let outcomes = all(&claim, &said);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    assert_eq!(bench.queue.totals().notices, 2);
    bench.pass(3_600_000);
    let mut told = 0;
    while let Some(notice) = bench.queue.owed_notices(1).unwrap().pop() {
        told += notice.recipients.len();
        bench.queue.drop_notice(&notice, WALL).await.unwrap();
    }
    assert_eq!(told, 1_500);
    bench.assert_empty();
}

#[tokio::test]
async fn an_attempt_in_time_that_is_recorded_late_is_not_the_last_one() {
    let bench = Bench::new().await;
    let has_expired = || bench.mail_events().iter().any(|event| matches!(event, MailEvent::Expired { .. }));
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.store.fail_next(1, CommitError::Full("full".into()));
    bench.queue.settle(claim, outcomes, WALL).await.unwrap_err();
    // The disk has room again when the message has waited longer than anything may.
    bench.pass(4 * 24 * 3_600_000);
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.queue.totals().unrecorded, 0);
    assert!(!has_expired(), "given up without an attempt beyond the limit");
    bench.pass(5 * 3_600_000);
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(has_expired());
}
