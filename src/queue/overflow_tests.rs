//! How mail leaves a warm-up that has no room for it: durably, once, and never against anybody's word.

use std::time::Duration;

use super::tests::{Bench, WALL, lane_to, message};
use super::*;
use crate::access::Actor;
use crate::events::{EventKind, MailEvent};
use crate::mail::SmtpAccountId;
use crate::records::AdminError;
use crate::store::{CommitError, prefix};

const SHARED: VipId = VipId(9);
const REASON: &str = "warm-up overflow, SPF of shop.example permits 192.0.2.9";
const PAUSE: Duration = Duration::from_secs(600);

/// Only to number nine.
fn permitting() -> Policy {
    Policy { overflow_to: Arc::new(|_| vec![SHARED]), ..Policy::default() }
}

async fn bench_with(to: &[&str]) -> (Bench, QueueId) {
    let bench = Bench::with_policy(permitting()).await;
    let new = message(to);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    (bench, id)
}

fn claim(bench: &Bench, domain: &str) -> Claim {
    bench.queue.claim(&lane_to(domain), 10).pop().unwrap()
}

fn there(domain: &str) -> Lane {
    Lane { vip: SHARED, ..lane_to(domain) }
}

#[tokio::test]
async fn what_overflows_is_due_at_the_shared_address_alone_also_after_a_restart() {
    let (mut bench, id) = bench_with(&["a@one.example", "b@two.example"]).await;
    let claim = claim(&bench, "one.example");
    assert!(bench.queue.overflow(claim, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    bench.queue.do_chores(WALL).await;
    assert_eq!((bench.queue.ready(&there("one.example")), bench.queue.ready(&lane_to("one.example"))), (1, 0));
    assert_eq!(bench.queue.ready(&lane_to("two.example")), 1, "what goes elsewhere stays");
    let moved = bench.mail_events().pop().unwrap();
    let by = format!("system: {REASON}");
    assert_eq!(moved, MailEvent::Moved { recipients: vec![0], from: VipId(1), to: SHARED, by });
    assert!(!bench.events().iter().any(|kind| matches!(kind, EventKind::Audit(_))), "no person asked for it");
    bench.reopen().await;
    let lanes: Vec<Lane> = bench.queue.lanes().into_iter().map(|due| due.lane).collect();
    assert_eq!(lanes.len(), 2, "{lanes:?}");
    assert!(lanes.contains(&there("one.example")) && lanes.contains(&lane_to("two.example")));
    assert_eq!(bench.count(prefix::DUE), 2);
    assert_eq!(bench.queue.message(id).unwrap().unwrap().vip, VipId(1), "its notices leave by the address it came by");
}

#[tokio::test]
async fn a_message_overflows_once_in_its_life_so_that_it_cannot_go_to_and_fro() {
    let everywhere = Policy { overflow_to: Arc::new(|_| vec![VipId(1), SHARED, VipId(10)]), ..Policy::default() };
    let bench = Bench::with_policy(everywhere).await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let first = claim(&bench, "one.example");
    assert!(bench.queue.overflow(first, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    bench.queue.do_chores(WALL).await;
    for back in [VipId(1), VipId(10)] {
        let second = bench.queue.claim(&there("one.example"), 10).pop().unwrap();
        assert!(!bench.queue.overflow(second, (back, REASON), Duration::ZERO, WALL).await.unwrap());
    }
    assert_eq!(bench.queue.ready(&there("one.example")), 1);
    let count = bench.mail_events().iter().filter(|event| matches!(event, MailEvent::Moved { .. })).count();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn what_may_not_move_is_given_back_and_waits_out_its_pause() {
    let (bench, _) = bench_with(&["a@one.example"]).await;
    let refused = bench.queue.overflow(claim(&bench, "one.example"), (VipId(8), REASON), PAUSE, WALL).await;
    assert!(matches!(&refused, Err(AdminError::Invalid(why)) if why.contains("does not name")), "{refused:?}");
    assert_eq!((bench.queue.ready(&lane_to("one.example")), bench.queue.totals().claimed), (0, 0));
    bench.pass(PAUSE.as_millis() as u64);
    assert_eq!(bench.queue.ready(&lane_to("one.example")), 1);
    bench.store.fail_next(1, CommitError::Full("full".into()));
    let full = bench.queue.overflow(claim(&bench, "one.example"), (SHARED, REASON), PAUSE, WALL).await;
    assert!(full.is_err(), "{full:?}");
    bench.queue.do_chores(WALL).await;
    assert_eq!(claim(&bench, "one.example").record.lane, lane_to("one.example"));
    assert!(!bench.mail_events().iter().any(|event| matches!(event, MailEvent::Moved { .. })));
}

#[tokio::test]
async fn what_was_held_or_cancelled_since_it_was_claimed_stays_so_and_stays_where_it_is() {
    let admin = Actor::local(0);
    let (bench, id) = bench_with(&["a@one.example"]).await;
    let held = claim(&bench, "one.example");
    bench.queue.hold(&admin, id, &[], WALL).await.unwrap();
    assert!(!bench.queue.overflow(held, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    bench.queue.do_chores(WALL).await;
    assert!(bench.queue.lanes().is_empty());
    bench.queue.release_hold(&admin, id, &[], WALL).await.unwrap();
    let cancelled = claim(&bench, "one.example");
    bench.queue.cancel(&admin, id, &[], WALL).await.unwrap();
    assert!(!bench.queue.overflow(cancelled, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    bench.queue.do_chores(WALL).await;
    bench.assert_empty();
}

#[tokio::test]
async fn a_record_in_which_somebody_is_held_is_not_moved_around_him() {
    let (bench, id) = bench_with(&["a@one.example", "b@one.example"]).await;
    bench.queue.hold(&Actor::local(0), id, &[1], WALL).await.unwrap();
    let partly = claim(&bench, "one.example");
    assert!(!bench.queue.overflow(partly, (SHARED, REASON), Duration::ZERO, WALL).await.unwrap());
    assert_eq!(bench.queue.ready(&lane_to("one.example")), 1);
}

#[tokio::test]
async fn mail_of_a_paused_account_or_meant_by_an_act_that_began_does_not_move() {
    let paused = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&paused);
    let is_paused = move |_| asked.load(std::sync::atomic::Ordering::SeqCst).then(|| "hacked".to_owned());
    let bench = Bench::with_policy(Policy { paused: Arc::new(is_paused), ..permitting() }).await;
    let mut new = message(&["a@one.example"]);
    new.account = Some(SmtpAccountId(5));
    bench.queue.enqueue(new, WALL).await.unwrap();
    let claimed = claim(&bench, "one.example");
    paused.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(!bench.queue.overflow(claimed, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    assert_eq!((bench.queue.ready(&there("one.example")), bench.queue.totals().claimed), (0, 0));
    bench.queue.put_found_aside(&Actor::local(0), WALL).await.unwrap();
    let is_held = |event: &MailEvent| matches!(event, MailEvent::Held { .. });
    assert!(bench.mail_events().iter().any(is_held), "it is put aside where it is");

    let (bench, _) = bench_with(&["a@one.example"]).await;
    let claimed = claim(&bench, "one.example");
    let filter = Filter { vip: Some(VipId(1)), ..Filter::default() };
    let hold = NewSweep { act: BulkAct::Hold, filter, reason: "x".into(), lasting: None };
    bench.queue.begin_sweep(&Actor::local(0), hold, Timestamp::now()).await.unwrap();
    assert!(!bench.queue.overflow(claimed, (SHARED, REASON), PAUSE, WALL).await.unwrap());
    assert_eq!(bench.queue.ready(&there("one.example")), 0);
}
