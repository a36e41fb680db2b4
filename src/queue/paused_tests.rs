//! How mail of paused SMTP accounts is held and let go on.

use std::sync::Mutex as StdMutex;

use async_trait::async_trait;

use super::tests::{Bench, WALL, deferred, delivered, message};
use super::*;
use crate::access::Actor;
use crate::events::MailEvent;
use crate::store::{Key, MemoryStore};

const ACCOUNT: SmtpAccountId = SmtpAccountId(7);

fn admin() -> Actor {
    Actor::local(0)
}

/// A queue whose accounts are paused by what is in the set.
async fn with_pauses() -> (Bench, Arc<StdMutex<Option<SmtpAccountId>>>) {
    let paused = Arc::new(StdMutex::new(None));
    let asked = paused.clone();
    let says = move |account| (*asked.lock().unwrap() == Some(account)).then(|| "SMTP account x is paused".to_owned());
    let policy = Policy { paused: Arc::new(says), ..Policy::default() };
    (Bench::with_policy(policy).await, paused)
}

#[tokio::test]
async fn mail_of_a_paused_account_is_held_over_a_restart_and_goes_on_when_it_is_released() {
    let (mut bench, paused) = with_pauses().await;
    let own = bench.owe(&["a@one.example"], |new| new.account = Some(ACCOUNT)).await;
    let held = bench.owe(&["h@one.example"], |new| new.account = Some(ACCOUNT)).await;
    let other = bench.owe(&["b@one.example"], |_| {}).await;
    bench.queue.hold(&admin(), held, &[], WALL).await.unwrap();
    *paused.lock().unwrap() = Some(ACCOUNT);
    let done = bench.queue.pause_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    assert_eq!(done.messages, 1);
    bench.reopen().await;
    let claims = bench.claim_all();
    assert_eq!(claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [other]);
    let why = bench.queue.why(&admin(), own).unwrap();
    assert!(
        why[0].sentence.starts_with("held with its SMTP account, not tried yet: SMTP account x is paused"),
        "{why:?}"
    );
    assert_eq!(bench.listed(&Filter { state: Some(Standing::Paused), ..Filter::default() }), [own]);
    *paused.lock().unwrap() = None;
    bench.queue.resume_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    let claims = bench.claim_all();
    assert_eq!(
        claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(),
        [own],
        "what an operator holds stays held"
    );
}

#[tokio::test]
async fn mail_that_comes_in_while_its_account_is_paused_is_stored_so_and_stops_nobody() {
    let (bench, paused) = with_pauses().await;
    *paused.lock().unwrap() = Some(ACCOUNT);
    for number in 0..20 {
        let late = bench.owe(&["a@one.example", "b@two.example"], |new| new.account = Some(ACCOUNT)).await;
        let other = bench.owe(&[&format!("b{number}@one.example")], |_| {}).await;
        let claims = bench.claim_all();
        assert_eq!(claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [other]);
        let why = bench.queue.why(&admin(), late).unwrap();
        assert!(why[0].sentence.starts_with("held with its SMTP account"), "{why:?}");
    }
    assert_eq!(bench.count(prefix::DUE), 20, "only the others' are ever looked at");
    let held = |event: &&MailEvent| matches!(event, MailEvent::Held { recipients, .. } if *recipients == [0, 1]);
    assert_eq!(bench.mail_events().iter().filter(held).count(), 20, "the trail says that it was held");
    bench.pass(30 * 24 * 3_600_000);
    *paused.lock().unwrap() = None;
    let done = bench.queue.resume_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    assert_eq!((done.messages, bench.claim_all().len()), (20, 40), "and goes on, however long that was");
}

#[tokio::test]
async fn what_was_queued_before_a_pause_is_put_aside_singly_while_the_tenant_s_other_mail_goes() {
    let (bench, paused) = with_pauses().await;
    let own = bench.owe(&["a@one.example"], |new| new.account = Some(ACCOUNT)).await;
    let early = bench.owe(&["b@one.example"], |_| {}).await;
    *paused.lock().unwrap() = Some(ACCOUNT);
    let claims = bench.claim_all();
    assert_eq!(claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [early]);
    let other = bench.owe(&["c@two.example"], |_| {}).await;
    let claims = bench.claim_all();
    assert_eq!(claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [other], "its tenant does not wait");
    bench.queue.put_found_aside(&admin(), WALL).await.unwrap();
    assert_eq!(bench.listed(&Filter { state: Some(Standing::Paused), ..Filter::default() }), [own]);
    bench.pass(60_000);
    assert!(bench.claim_all().is_empty());
    let all_of_it = Filter { account: Some(ACCOUNT), ..Filter::default() };
    let done = bench.queue.sum(&admin(), &all_of_it, Some(BulkAct::Cancel)).unwrap();
    assert_eq!(done.messages, 1, "what a thief left can be dropped");
}

#[tokio::test]
async fn a_long_queue_of_a_paused_account_is_not_claimed_and_put_back_for_ever() {
    let (bench, paused) = with_pauses().await;
    for number in 0..5_100 {
        let to = format!("a{number}@d{}.example", number % 10);
        bench.owe(&[&to], |new| new.account = Some(ACCOUNT)).await;
    }
    *paused.lock().unwrap() = Some(ACCOUNT);
    assert_eq!(bench.claim_all().len(), 0);
    for _ in 0..10 {
        bench.claim_all();
    }
    let other = bench.owe(&["c@two.example"], |_| {}).await;
    assert!(bench.queue.lanes().is_empty(), "its tenant waits for the walk");
    bench.queue.put_found_aside(&admin(), WALL).await.unwrap();
    assert_eq!(bench.count(prefix::DUE), 1);
    let claims = bench.claim_all();
    assert_eq!(claims.iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [other]);
}

#[tokio::test]
async fn a_failure_of_one_account_leaves_no_other_tenant_waiting_for_its_walk() {
    let (bench, paused) = with_pauses().await;
    let tenants = [TenantId(2), TenantId(3)];
    let of = |tenant: TenantId, account: Option<SmtpAccountId>| {
        move |new: &mut NewMessage| {
            (new.tenant, new.account) = (tenant, account);
            new.recipients.iter_mut().filter_map(|one| one.lane.as_mut()).for_each(|lane| lane.tenant = tenant);
        }
    };
    for number in 0..5_100 {
        let to = format!("a{number}@d{}.example", number % 10);
        for tenant in tenants {
            bench.owe(&[&to], of(tenant, Some(ACCOUNT))).await;
        }
    }
    *paused.lock().unwrap() = Some(ACCOUNT);
    while !bench.queue.lanes().is_empty() {
        assert!(bench.claim_all().is_empty());
    }
    let mut others = Vec::new();
    for tenant in tenants {
        others.push(bench.owe(&["c@two.example"], of(tenant, None)).await);
    }
    assert!(bench.claim_all().is_empty(), "both wait for the walk");
    bench.store.fail_next(1, CommitError::Full("full".into()));
    assert!(bench.queue.put_found_aside(&admin(), WALL).await.is_err());
    bench.queue.put_found_aside(&admin(), WALL).await.unwrap();
    let mut gone: Vec<QueueId> = bench.claim_all().iter().map(|claim| claim.queue_id).collect();
    gone.sort_unstable();
    others.sort_unstable();
    assert_eq!(gone, others);
}

#[tokio::test]
async fn a_lane_full_of_a_paused_account_s_mail_is_put_aside_by_and_by_and_the_rest_of_it_goes() {
    let (bench, paused) = with_pauses().await;
    for number in 0..2_500 {
        bench.owe(&[&format!("a{number}@one.example")], |new| new.account = Some(ACCOUNT)).await;
    }
    let same_lane = bench.owe(&["b@one.example"], |_| {}).await;
    let other_lane = bench.owe(&["c@two.example"], |_| {}).await;
    *paused.lock().unwrap() = Some(ACCOUNT);
    let mut gone = Vec::new();
    for round in 0..5 {
        gone.extend(bench.claim_all().iter().map(|claim| claim.queue_id));
        assert!(bench.queue.in_memory().paused() <= 1_500, "what is put back is bounded");
        assert!(round > 0 || gone.contains(&other_lane), "other lanes go on");
        bench.queue.put_found_aside(&admin(), WALL).await.unwrap();
        bench.pass(1_000);
    }
    gone.sort_unstable();
    let mut expected = [same_lane, other_lane];
    expected.sort_unstable();
    assert_eq!((gone.as_slice(), bench.count(prefix::DUE)), (&expected[..], 2));
}

/// An engine whose commits wait while the test says so.
struct Gated {
    inner: Arc<MemoryStore>,
    open: tokio::sync::watch::Sender<bool>,
}

#[async_trait]
impl Store for Gated {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.inner.range(from, to, limit)
    }
    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.inner.commit(batch).await
    }
    fn health(&self) -> Health {
        self.inner.health()
    }
    fn sharing(&self) -> Sharing {
        self.inner.sharing()
    }
}

#[tokio::test]
async fn a_pause_that_ends_while_its_mail_is_being_written_leaves_none_of_it_behind() {
    let paused = Arc::new(StdMutex::new(Some(ACCOUNT)));
    let asked = paused.clone();
    let says = move |account| (*asked.lock().unwrap() == Some(account)).then(|| "paused".to_owned());
    let store = Arc::new(Gated { inner: Arc::default(), open: tokio::sync::watch::Sender::new(true) });
    let queue = Queue::open(store.clone(), store.inner.clone(), Settings::default()).await.unwrap();
    let queue = Arc::new(queue.with_policy(Policy { paused: Arc::new(says), ..Policy::default() }));
    let mut new = message(&["a@one.example"]);
    new.account = Some(ACCOUNT);
    store.open.send_replace(false);
    let (accepting, resuming) = (queue.clone(), queue.clone());
    let accepted = tokio::spawn(async move { accepting.enqueue(new, WALL).await });
    tokio::task::yield_now().await;
    *paused.lock().unwrap() = None;
    let resumed = tokio::spawn(async move { resuming.resume_account(&admin(), (TenantId(2), ACCOUNT), WALL).await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!resumed.is_finished(), "it waits for what is being written");
    store.open.send_replace(true);
    accepted.await.unwrap().unwrap();
    assert_eq!(resumed.await.unwrap().unwrap().messages, 1);
    assert_eq!(queue.lanes().iter().flat_map(|due| queue.claim(&due.lane, 10)).count(), 1);
}

#[tokio::test]
async fn mail_found_at_a_claim_is_not_held_once_the_pause_is_over() {
    let (bench, paused) = with_pauses().await;
    let own = bench.owe(&["a@one.example"], |new| new.account = Some(ACCOUNT)).await;
    *paused.lock().unwrap() = Some(ACCOUNT);
    assert!(bench.claim_all().is_empty());
    *paused.lock().unwrap() = None;
    bench.queue.put_found_aside(&admin(), WALL).await.unwrap();
    bench.queue.pause_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    bench.pass(2_000);
    assert_eq!(bench.claim_all().iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [own]);
}

#[tokio::test]
async fn an_attempt_under_way_when_its_account_is_paused_is_recorded_and_not_repeated() {
    let (bench, paused) = with_pauses().await;
    let own = bench.owe(&["a@one.example", "b@one.example"], |new| new.account = Some(ACCOUNT)).await;
    let claim = bench.claim_all().remove(0);
    *paused.lock().unwrap() = Some(ACCOUNT);
    let done = bench.queue.pause_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    assert_eq!(done.in_flight, 2);
    bench.queue.settle(claim, vec![(0, delivered()), (1, deferred())], WALL).await.unwrap();
    bench.pass(24 * 3_600_000);
    assert!(bench.claim_all().is_empty());
    *paused.lock().unwrap() = None;
    bench.queue.resume_account(&admin(), (TenantId(2), ACCOUNT), WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let states: Vec<RecipientState> = claim.record.recipients.iter().map(|recipient| recipient.state).collect();
    assert_eq!(states, [RecipientState::Done(Ending::Delivered), RecipientState::Waiting]);
    assert_eq!(claim.queue_id, own);
}
