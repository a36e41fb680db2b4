//! How operator verbs, lists and explanations behave.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use super::tests::{Bench, WALL, all, bounced, deferred, delivered, lane_to, message};
use super::*;
use crate::access::{Actor, Role};
use crate::events::{EventKind, MailEvent};
use crate::records::AdminError;
use crate::store::{Store, prefix};

fn admin() -> Actor {
    Actor::local(0)
}

async fn bench_with(to: &[&str]) -> (Bench, QueueId) {
    let bench = Bench::new().await;
    let new = message(to);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    (bench, id)
}

#[tokio::test]
async fn held_mail_waits_over_a_restart_until_it_is_released() {
    let (mut bench, id) = bench_with(&["a@one.example", "b@two.example"]).await;
    let changed = bench.queue.hold(&admin(), id, &[], WALL).await.unwrap();
    assert_eq!((changed.recipients.len(), changed.in_flight.len()), (2, 0));
    assert!(bench.queue.lanes().is_empty());
    bench.reopen().await;
    assert!(bench.queue.lanes().is_empty());
    let why = bench.queue.why(&admin(), id).unwrap();
    assert!(why[0].sentence.starts_with("held by an operator"), "{why:?}");
    bench.queue.release_hold(&admin(), id, &[1], WALL).await.unwrap();
    let claims = bench.claim_all();
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].record.lane.next_hop.as_str(), "two.example");
    let audits = bench.events().into_iter().filter(|kind| matches!(kind, EventKind::Audit(_))).count();
    assert_eq!(audits, 2);
}

#[tokio::test]
async fn cancelled_mail_is_dropped_on_record_and_nobody_is_told() {
    let (bench, id) = bench_with(&["a@one.example", "b@two.example"]).await;
    bench.queue.cancel(&admin(), id, &[0], WALL).await.unwrap();
    assert_eq!(bench.count(prefix::LANE), 1);
    bench.queue.cancel(&admin(), id, &[], WALL).await.unwrap();
    bench.assert_empty();
    assert_eq!(bench.mail_events().last(), Some(&MailEvent::Retired));
    let why = bench.queue.why(&admin(), id).unwrap();
    assert!(why.iter().all(|line| line.sentence.starts_with("cancelled by uid 0")), "{why:?}");
    let again = bench.queue.cancel(&admin(), id, &[], WALL).await;
    assert!(matches!(again, Err(AdminError::Missing(_))));
}

#[tokio::test]
async fn a_hold_of_something_in_flight_applies_when_it_is_settled() {
    let (bench, id) = bench_with(&["a@one.example", "b@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    let changed = bench.queue.hold(&admin(), id, &[], WALL).await.unwrap();
    assert_eq!(changed.in_flight, [0, 1]);
    bench.queue.settle(claim, vec![(0, delivered()), (1, deferred())], WALL).await.unwrap();
    assert_eq!(bench.queue.next_due(), None, "the second one is held");
    bench.queue.release_hold(&admin(), id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    assert_eq!(claim.record.recipients[0].state, RecipientState::Done(Ending::Delivered));
    bench.queue.settle(claim, vec![(1, delivered())], WALL).await.unwrap();
    bench.assert_empty();
}

/// Polls once; whether it is done.
async fn is_done(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_ready())).await
}

#[tokio::test]
async fn a_record_looked_at_twice_is_not_put_back_under_the_attempt_that_has_it_since() {
    let (bench, id) = bench_with(&["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    bench.queue.hold(&admin(), id, &[], WALL).await.unwrap();
    bench.queue.release(claim, Duration::ZERO);
    // The first look waits for the message's lock, behind a verb that asks for a second look.
    let lock = bench.queue.locks.lock(id).await;
    let mut verb = Box::pin(async {
        let released = bench.queue.release_hold(&admin(), id, &[], WALL).await;
        assert_eq!(released.unwrap().recipients, [0]);
    });
    assert!(!is_done(&mut verb).await);
    let mut chores = Box::pin(bench.queue.do_chores(WALL));
    assert!(!is_done(&mut chores).await);
    drop(lock);
    verb.await;
    chores.await;
    let claim = bench.claim_all().remove(0);
    bench.queue.do_chores(WALL).await;
    assert!(bench.claim_all().is_empty(), "claimed twice");
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_cancel_in_flight_drops_deferrals_and_records_deliveries() {
    for (outcome, delivered_count) in [(delivered(), 1), (deferred(), 0), (bounced(), 0)] {
        let (bench, id) = bench_with(&["a@one.example"]).await;
        let claim = bench.claim_all().remove(0);
        bench.queue.cancel(&admin(), id, &[], WALL).await.unwrap();
        let outcomes = all(&claim, &outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        bench.assert_empty();
        let events = bench.mail_events();
        let told = events.iter().filter(|event| matches!(event, MailEvent::Delivered { .. })).count();
        assert_eq!(told, delivered_count);
    }
}

#[tokio::test]
async fn a_cancel_in_flight_survives_a_crash_and_a_release() {
    let (mut bench, id) = bench_with(&["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    bench.queue.cancel(&admin(), id, &[], WALL).await.unwrap();
    bench.queue.release(claim, Duration::ZERO);
    bench.queue.do_chores(WALL).await;
    bench.assert_empty();

    let new = message(&["a@one.example"]);
    let id = new.id;
    bench.queue.enqueue(new, WALL).await.unwrap();
    let _lost = bench.claim_all();
    bench.queue.cancel(&admin(), id, &[], WALL).await.unwrap();
    bench.reopen().await;
    assert!(bench.claim_all().is_empty());
    bench.queue.do_chores(WALL).await;
    bench.assert_empty();
}

#[tokio::test]
async fn retry_makes_deferred_and_paused_mail_due_now() {
    let (bench, id) = bench_with(&["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(bench.claim_all().is_empty());
    bench.queue.retry(&admin(), id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    bench.queue.release(claim, Duration::from_secs(3600));
    bench.queue.retry(&admin(), id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    assert_eq!(bench.queue.retry(&admin(), id, &[], WALL).await.unwrap(), Changed::default(), "in flight already");
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn mail_moves_to_another_virtual_ip_only_where_the_policy_permits_it() {
    let (mut bench, id) = bench_with(&["a@one.example"]).await;
    let refused = bench.queue.move_to(&admin(), id, VipId(9), WALL).await;
    assert!(matches!(refused, Err(AdminError::Invalid(_))));
    let only_nine = |_, to| if to == VipId(9) { Ok(()) } else { Err("not shared".to_owned()) };
    let policy = Policy { may_move: Arc::new(only_nine), ..Policy::default() };
    bench.queue = bench.queue.with_policy(policy);
    assert!(bench.queue.move_to(&admin(), id, VipId(8), WALL).await.is_err());
    bench.queue.move_to(&admin(), id, VipId(9), WALL).await.unwrap();
    assert!(bench.queue.claim(&lane_to("one.example"), 10).is_empty());
    let claim = bench.claim_all().remove(0);
    assert_eq!(claim.record.lane.vip, VipId(9));
    bench.queue.move_to(&admin(), id, VipId(9), WALL).await.unwrap();
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_verb_whose_commit_fails_changes_nothing() {
    let (bench, id) = bench_with(&["a@one.example"]).await;
    bench.store.fail_next(1, CommitError::Full("full".into()));
    assert!(bench.queue.cancel(&admin(), id, &[], WALL).await.is_err());
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.claim_all().len(), 1);
}

#[tokio::test]
async fn a_tenants_people_see_and_change_their_own_mail_only() {
    let (bench, id) = bench_with(&["a@one.example"]).await;
    let stranger = Actor::of("s", Role::TenantOwner(TenantId(99)));
    let reader = Actor::of("r", Role::Support(TenantId(2)));
    for refused in [
        bench.queue.show(&stranger, id).map(drop),
        bench.queue.why(&stranger, id).map(drop),
        bench.queue.list(&reader, &Filter::default(), None, 10).map(drop),
        bench.queue.cancel(&stranger, id, &[], WALL).await.map(drop),
        bench.queue.cancel(&reader, id, &[], WALL).await.map(drop),
    ] {
        assert!(matches!(refused, Err(AdminError::Forbidden(_))), "{refused:?}");
    }
    let own = Filter { tenant: Some(TenantId(2)), ..Filter::default() };
    assert_eq!(bench.queue.list(&reader, &own, None, 10).unwrap().messages.len(), 1);
}

#[tokio::test]
async fn lists_are_filtered_and_paged_and_cancel_by_filter_takes_what_they_show() {
    let bench = Bench::new().await;
    for number in 0..30 {
        let to = if number % 3 == 0 { "a@one.example" } else { "a@two.example" };
        bench.queue.enqueue(message(&[to]), WALL).await.unwrap();
    }
    let filter = Filter { recipient_domain: Some(Domain::parse("one.example").unwrap()), ..Filter::default() };
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = bench.queue.list(&admin(), &filter, cursor, 3).unwrap();
        seen.extend(page.messages.iter().map(|listed| listed.id));
        let Some(next) = page.next else { break };
        cursor = Some(next);
    }
    assert_eq!(seen.len(), 10);
    assert!(seen.is_sorted());
    bench.queue.hold(&admin(), seen[0], &[], WALL).await.unwrap();
    let held = Filter { state: Some(Standing::Held), ..Filter::default() };
    let page = bench.queue.list(&admin(), &held, None, 100).unwrap();
    assert_eq!((page.messages.len(), page.messages[0].held), (1, 1));
    let asked = NewSweep { act: BulkAct::Cancel, filter, reason: String::new(), lasting: None };
    let cancel = bench.queue.begin_sweep(&admin(), asked, WALL).await.unwrap();
    bench.queue.work_off(&crate::background::Shutdown::new(), true).await;
    assert_eq!(bench.queue.sweep_numbered(&admin(), cancel.number).unwrap().done.messages, 10);
    assert_eq!(bench.claim_all().len(), 20);
}

#[tokio::test]
async fn why_says_what_each_recipient_waits_for() {
    let (bench, id) = bench_with(&["a@one.example", "b@two.example", "c@three.example"]).await;
    bench.queue.explain_lanes_with(Box::new(|lane| {
        (lane.next_hop.as_str() == "two.example")
            .then(|| LaneWait::new(WaitsFor::VirtualIp, "virtual IP 192.0.2.7 is not on this host"))
    }));
    for claim in bench.claim_all() {
        match claim.record.lane.next_hop.as_str() {
            "one.example" => {
                let outcomes = all(&claim, &bounced());
                bench.queue.settle(claim, outcomes, WALL).await.unwrap();
            }
            "two.example" => bench.queue.release(claim, Duration::from_secs(60)),
            _ => {
                let outcomes = all(&claim, &deferred());
                bench.queue.settle(claim, outcomes, WALL).await.unwrap();
            }
        }
    }
    let why = bench.queue.why(&admin(), id).unwrap();
    assert_eq!(why[0].sentence, "given up: 550 5.1.1 no; its failure notice gathers for another 10 min");
    assert!(why[1].sentence.contains("virtual IP 192.0.2.7 is not on this host"), "{why:?}");
    assert!(why[2].sentence.contains("tried once; last answer of mx.example: 451 4.7.1 later"), "{why:?}");
    assert_eq!(why[2].address, "c@three.example");
    let shown = bench.queue.show(&admin(), id).unwrap();
    assert_eq!((shown.records.len(), shown.notices.len(), shown.events.len()), (2, 1, 3));
    assert_eq!(shown.history.unwrap().subject, "s");
}

#[tokio::test]
async fn a_selector_is_in_use_until_the_last_message_that_names_it_is_done() {
    let (bench, _) = bench_with(&["a@one.example"]).await;
    let name = "a._domainkey.shop.example";
    assert!(bench.queue.selector_is_used(name).unwrap());
    assert!(!bench.queue.selector_is_used("_domainkey.shop.example").unwrap());
    assert_eq!(bench.queue.selectors_in_use().unwrap().into_iter().collect::<Vec<_>>(), [name]);
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(!bench.queue.selector_is_used(name).unwrap());
}

#[tokio::test]
async fn a_settlement_abandoned_by_its_caller_is_still_recorded() {
    let (bench, _) = bench_with(&["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &bounced());
    let id = claim.queue_id;
    // Somebody holds the message's lock, so the settlement cannot go on before it is dropped.
    let lock = bench.queue.locks.lock(id).await;
    let abandoned = tokio::time::timeout(Duration::from_millis(5), bench.queue.settle(claim, outcomes, WALL)).await;
    assert!(abandoned.is_err());
    drop(lock);
    assert_eq!(bench.queue.totals().unrecorded, 1);
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.queue.totals().notices, 1);
    bench.clock.fetch_add(600_000, Ordering::AcqRel);
    assert_eq!(bench.queue.owed_notices(5).unwrap().len(), 1);
    assert!(bench.store.get(&key::lane_record(id, 0)).unwrap().is_none());
}

#[tokio::test]
async fn a_settlement_dropped_before_its_first_poll_is_still_recorded() {
    let (bench, _) = bench_with(&["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    drop(bench.queue.settle(claim, outcomes, WALL));
    assert_eq!(bench.queue.totals().unrecorded, 1);
    bench.queue.do_chores(WALL).await;
    bench.assert_empty();
    assert!(bench.mail_events().iter().any(|event| matches!(event, MailEvent::Delivered { .. })));
}

#[tokio::test]
async fn who_is_held_during_the_attempt_does_not_expire_by_it() {
    let (bench, id) = bench_with(&["a@one.example"]).await;
    bench.pass(100 * 3_600_000);
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.queue.hold(&admin(), id, &[], WALL).await.unwrap();
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    let why = bench.queue.why(&admin(), id).unwrap();
    assert!(why[0].sentence.starts_with("held by an operator"), "{why:?}");
    assert!(!bench.mail_events().iter().any(|event| matches!(event, MailEvent::Expired { .. })));
    // Released, it is tried once more, and then it may expire.
    bench.queue.release_hold(&admin(), id, &[], WALL).await.unwrap();
    bench.pass(100 * 3_600_000);
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(bench.mail_events().iter().any(|event| matches!(event, MailEvent::Expired { .. })));
}
