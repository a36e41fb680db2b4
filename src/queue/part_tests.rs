//! Claims that are settled a part at a time, and when those who are left are due again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::mishap_tests::Slow;
use super::tests::{Bench, WALL, all, bounced, deferred, delivered, lane_to, message};
use super::*;
use crate::access::Actor;
use crate::events::MailEvent;
use crate::store::{MemoryStore, prefix};

const THREE: [&str; 3] = ["a@one.example", "b@one.example", "c@one.example"];
const MINUTE: u64 = 60_000;

async fn bench_with_three() -> (Bench, QueueId) {
    let bench = Bench::new().await;
    let new = message(&THREE);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    (bench, id)
}

fn states(claim: &Claim) -> Vec<RecipientState> {
    claim.record.recipients.iter().map(|recipient| recipient.state).collect()
}

const WAITING: RecipientState = RecipientState::Waiting;
const DELIVERED: RecipientState = RecipientState::Done(Ending::Delivered);

#[tokio::test]
async fn what_is_over_is_on_disk_while_the_attempt_goes_on_with_the_others() {
    let (mut bench, _) = bench_with_three().await;
    let claim = bench.claim_all().remove(0);
    let part = bench.queue.settle_part(claim, vec![(0, delivered()), (1, deferred())], WALL).await.unwrap();
    let (claim, left) = part.unwrap();
    assert_eq!((states(&claim), left), (vec![DELIVERED, WAITING, WAITING], vec![(1, deferred())]));
    assert!(bench.claim_all().is_empty(), "it is still claimed");
    assert!(matches!(bench.mail_events().last(), Some(MailEvent::Delivered { recipients, .. }) if recipients == &[0]));
    // A crash now forgets the deferral, which costs nothing, and no delivery.
    bench.reopen().await;
    bench.pass(1);
    let claim = bench.claim_all().remove(0);
    assert_eq!((states(&claim), claim.record.attempts), (vec![DELIVERED, WAITING, WAITING], 0));
    let part = bench.queue.settle_part(claim, vec![(1, bounced())], WALL).await.unwrap();
    let (claim, left) = part.unwrap();
    assert!(left.is_empty());
    bench.queue.settle(claim, vec![(2, delivered())], WALL).await.unwrap();
    assert_eq!((bench.count(prefix::LANE), bench.count(prefix::DUE), bench.queue.totals().notices), (0, 0, 1));
    bench.pass(60 * MINUTE);
    let notice = bench.queue.owed_notices(1).unwrap().remove(0);
    assert_eq!(notice.recipients.iter().map(|one| one.number).collect::<Vec<_>>(), [1]);
    bench.queue.drop_notice(&notice, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_claim_released_after_a_part_of_it_comes_back_with_the_others_only() {
    let (bench, _) = bench_with_three().await;
    let claim = bench.claim_all().remove(0);
    let part = bench.queue.settle_part(claim, vec![(1, delivered())], WALL).await.unwrap();
    bench.queue.release(part.unwrap().0, Duration::ZERO);
    assert_eq!(bench.count(prefix::DUE), 1);
    let claim = bench.claim_all().remove(0);
    assert_eq!(states(&claim), [WAITING, DELIVERED, WAITING]);
    bench.queue.settle(claim, vec![(0, delivered()), (2, delivered())], WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_part_without_anything_final_writes_nothing() {
    let (bench, _) = bench_with_three().await;
    let claim = bench.claim_all().remove(0);
    let before = bench.store.commits();
    let (_, left) = bench.queue.settle_part(claim, vec![(1, deferred())], WALL).await.unwrap().unwrap();
    assert_eq!((left.len(), bench.store.commits()), (1, before));
}

#[tokio::test]
async fn what_an_operator_asked_meanwhile_holds_from_the_next_part_on() {
    let (bench, id) = bench_with_three().await;
    let claim = bench.claim_all().remove(0);
    bench.queue.hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    let part = bench.queue.settle_part(claim, vec![(0, delivered())], WALL).await.unwrap();
    assert!(part.is_none(), "nobody else is tried");
    assert!(bench.claim_all().is_empty());
    bench.queue.release_hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    assert_eq!(states(&claim), [DELIVERED, WAITING, WAITING]);
}

#[tokio::test]
async fn a_part_that_cannot_be_recorded_is_kept_with_its_claim() {
    let (bench, _) = bench_with_three().await;
    let claim = bench.claim_all().remove(0);
    bench.store.fail_next(1, CommitError::Full("full".into()));
    let outcomes = vec![(0, delivered()), (1, deferred())];
    assert!(bench.queue.settle_part(claim, outcomes, WALL).await.is_err());
    assert!(bench.claim_all().is_empty(), "nobody of it is tried before that is recorded");
    bench.queue.do_chores(WALL).await;
    bench.pass(6 * MINUTE);
    let claim = bench.claim_all().remove(0);
    assert_eq!(states(&claim), [DELIVERED, WAITING, WAITING]);
    assert!(claim.record.recipients[1].last_attempt.is_some(), "the deferral is recorded too");
}

#[tokio::test]
async fn a_part_whose_caller_went_away_is_recorded_once() {
    for permits_before in [0, 1] {
        let (memory, gate) = (Arc::new(MemoryStore::new()), Arc::new(Semaphore::new(2)));
        let store = Slow::new(Arc::clone(&memory), Arc::clone(&gate));
        let queue = Queue::open(store, memory, Settings::default()).await.unwrap();
        let new = message(&THREE);
        let id = new.id;
        queue.enqueue(new, WALL).await.unwrap();
        let claim = queue.claim(&lane_to("one.example"), 1).remove(0);
        assert!(queue.settle_part(claim, vec![(0, delivered())], WALL).now_or_never().is_none());
        assert!(queue.claim(&lane_to("one.example"), 1).is_empty());
        gate.add_permits(permits_before);
        tokio::task::yield_now().await;
        gate.add_permits(100);
        for _ in 0..2 {
            queue.do_chores(WALL).await;
        }
        let claim = loop {
            match queue.claim(&lane_to("one.example"), 1).pop() {
                Some(claim) => break claim,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        assert_eq!(states(&claim), [DELIVERED, WAITING, WAITING]);
        let told = queue.show(&Actor::local(0), id).unwrap().events;
        let is_delivery =
            |event: &&events::Event| matches!(&event.kind, events::EventKind::Mail(_, MailEvent::Delivered { .. }));
        assert_eq!(told.iter().filter(is_delivery).count(), 1);
    }
}

#[tokio::test]
async fn whoever_is_left_is_due_at_once_if_nothing_was_put_off_and_no_attempt_is_counted() {
    let (bench, _) = bench_with_three().await;
    for (number, outcome) in [(0, delivered()), (1, bounced())] {
        let claim = bench.claim_all().remove(0);
        bench.queue.settle(claim, vec![(number, outcome)], WALL).await.unwrap();
        bench.pass(1);
    }
    let claim = bench.claim_all().remove(0);
    assert_eq!(claim.record.attempts, 0);
    bench.queue.settle(claim, vec![(2, Outcome::Suppressed)], WALL).await.unwrap();
    assert_eq!(bench.count(prefix::LANE), 0);
}

#[tokio::test]
async fn pauses_do_not_grow_before_everybody_was_tried() {
    let (bench, _) = bench_with_three().await;
    for (number, attempts) in [(0, 0), (1, 0), (2, 1), (0, 2)] {
        let claim = bench.claim_all().remove(0);
        bench.queue.settle(claim, vec![(number, deferred())], WALL).await.unwrap();
        let pause = bench.queue.next_due().unwrap();
        assert!(pause >= Duration::from_secs(5 * 60), "like a deferred one: {pause:?}");
        bench.pass(u64::try_from(pause.as_millis()).unwrap());
        let claim = bench.claim_all().remove(0);
        assert_eq!(claim.record.attempts, attempts, "after {number}");
        bench.queue.release(claim, Duration::ZERO);
    }
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}
