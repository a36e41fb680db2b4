//! Mail that waits for a virtual IP, mail whose attempts panic, and whether anything is left of it.

use super::tests::*;
use super::*;
use crate::access::Actor;
use crate::events::MailEvent;
use crate::mail::QueueId;
use crate::store::prefix;

fn waits(bench: &Bench, id: QueueId) -> usize {
    let shown = bench.queue.show(&Actor::local(0), id).unwrap();
    let is_told =
        |event: &&events::Event| matches!(&event.kind, events::EventKind::Mail(_, MailEvent::VipMissing { .. }));
    shown.events.iter().filter(is_told).count()
}

async fn owed(bench: &Bench, to: &[&str]) -> (QueueId, VipId) {
    let new = message(to);
    let (id, vip) = (new.id, new.recipients[0].lane.as_ref().unwrap().vip);
    bench.queue.enqueue(new, WALL).await.unwrap();
    (id, vip)
}

#[tokio::test]
async fn each_message_is_told_once_per_outage_of_its_virtual_ip_over_restarts_too() {
    let mut bench = Bench::new().await;
    let (id, vip) = owed(&bench, &["a@one.example", "b@two.example"]).await;
    for _ in 0..3 {
        bench.queue.vip_missing(vip, WALL);
        bench.queue.do_chores(WALL).await;
        bench.pass(60_000);
    }
    assert_eq!(waits(&bench, id), 1, "not once per look");
    let told = bench.mail_events().into_iter().find(|event| matches!(event, MailEvent::VipMissing { .. }));
    assert_eq!(told, Some(MailEvent::VipMissing { recipients: vec![0, 1], vip }));
    bench.reopen().await;
    bench.queue.vip_missing(vip, Timestamp(WALL.0 + 9));
    bench.queue.do_chores(WALL).await;
    assert_eq!(waits(&bench, id), 1, "the outage goes on over a restart");
    // Mail that comes in later in the same outage is told too.
    let (late, _) = owed(&bench, &["c@one.example"]).await;
    bench.pass(60_000);
    bench.queue.do_chores(WALL).await;
    assert_eq!((waits(&bench, id), waits(&bench, late)), (1, 1));
    bench.queue.vip_present(vip);
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.store.range(&key::outages(), &crate::store::after_prefix(&key::outages()), 9).unwrap(), []);
    bench.queue.vip_missing(vip, Timestamp(WALL.0 + 99));
    bench.queue.do_chores(WALL).await;
    assert_eq!((waits(&bench, id), waits(&bench, late)), (2, 2), "another outage is told again");
}

#[tokio::test]
async fn only_what_is_due_waits_for_the_virtual_ip() {
    let bench = Bench::new().await;
    let (id, vip) = owed(&bench, &["a@one.example"]).await;
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &deferred());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.queue.vip_missing(vip, WALL);
    bench.queue.do_chores(WALL).await;
    assert_eq!(waits(&bench, id), 0);
    bench.pass(24 * 60 * 60 * 1_000);
    // The end of one round, and the next.
    for _ in 0..2 {
        bench.queue.do_chores(WALL).await;
        bench.pass(60_000);
    }
    assert_eq!(waits(&bench, id), 1);
}

#[tokio::test]
async fn more_mail_than_fits_a_page_is_told_all_the_same() {
    let bench = Bench::new().await;
    let mut ids = Vec::new();
    let mut at = VipId(0);
    for _ in 0..450 {
        let (id, vip) = owed(&bench, &["a@one.example"]).await;
        (at, _) = (vip, ids.push(id));
    }
    for round in 0..4 {
        bench.queue.vip_missing(at, WALL);
        bench.queue.do_chores(WALL).await;
        let told =
            bench.mail_events().into_iter().filter(|event| matches!(event, MailEvent::VipMissing { .. })).count();
        assert_eq!(told, ((round + 1) * 200).min(450));
    }
    bench.queue.vip_present(at);
    for _ in 0..3 {
        bench.queue.do_chores(WALL).await;
    }
    let marks = key::told_at(at);
    assert_eq!(bench.store.range(&marks, &crate::store::after_prefix(&marks), 9).unwrap(), [], "marks are removed");
}

#[tokio::test]
async fn mail_whose_attempts_panic_is_held_after_three_and_can_be_released() {
    let bench = Bench::new().await;
    let (id, _) = owed(&bench, &["a@one.example"]).await;
    for attempt in 1..=3 {
        let claim = bench.claim_all().pop().unwrap_or_else(|| panic!("due for attempt {attempt}"));
        bench.queue.panicked(claim, Duration::ZERO);
        bench.queue.do_chores(WALL).await;
    }
    assert!(bench.claim_all().is_empty());
    let events = bench.mail_events();
    assert!(events.contains(&MailEvent::Held { recipients: vec![0], by: "the daemon".to_owned() }), "{events:?}");
    assert!(events.iter().any(|event| matches!(event, MailEvent::Faulted { .. })));
    let actor = Actor::local(0);
    assert!(bench.queue.why(&actor, id).unwrap()[0].sentence.starts_with("held"));
    assert_eq!(bench.queue.release_hold(&actor, id, &[], WALL).await.unwrap().recipients, [0]);
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn what_a_verb_put_back_is_not_held_under_the_attempt_that_has_it_since() {
    let bench = Bench::new().await;
    let (id, _) = owed(&bench, &["a@one.example"]).await;
    for _ in 0..3 {
        let claim = bench.claim_all().pop().unwrap();
        bench.queue.panicked(claim, Duration::ZERO);
    }
    // Both are asked for: to hold it, and to look at it. It is held, and not handed out.
    bench.queue.hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    bench.queue.release_hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    bench.queue.do_chores(WALL).await;
    assert!(bench.claim_all().is_empty());
    assert_eq!(bench.count(prefix::DUE), 0);
    bench.queue.release_hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    bench.queue.chores().stuck((id, 0));
    bench.queue.do_chores(WALL).await;
    assert_eq!(bench.count(prefix::DUE), 1, "it is claimed, and stays as it is");
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn held_mail_and_owed_notices_count_as_mail_of_their_virtual_ip_and_tenant() {
    let bench = Bench::new().await;
    let (id, vip) = owed(&bench, &["a@one.example"]).await;
    let tenant = bench.queue.message(id).unwrap().unwrap().tenant;
    let holds = |expected: bool| {
        assert_eq!(bench.queue.has_mail_at(vip).unwrap(), expected);
        assert_eq!(bench.queue.has_mail_of(tenant).unwrap(), expected);
        assert!(!bench.queue.has_mail_at(VipId(777)).unwrap());
        assert!(!bench.queue.has_mail_of(TenantId(777)).unwrap());
    };
    holds(true);
    let actor = Actor::local(0);
    bench.queue.hold(&actor, id, &[], WALL).await.unwrap();
    assert_eq!(bench.count(prefix::DUE), 0, "nothing in the index");
    holds(true);
    bench.queue.release_hold(&actor, id, &[], WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &bounced());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert_eq!((bench.count(prefix::LANE), bench.queue.totals().notices), (0, 1));
    holds(true);
    bench.pass(60 * 60 * 1_000);
    let notice = bench.queue.owed_notices(1).unwrap().remove(0);
    bench.queue.drop_notice(&notice, WALL).await.unwrap();
    holds(false);
}

#[tokio::test]
async fn a_route_has_mail_until_nobody_in_its_lanes_waits_or_is_held() {
    let bench = Bench::new().await;
    let mut new = message(&["a@one.example"]);
    let id = new.id;
    new.recipients[0].lane.as_mut().unwrap().transport = crate::routing::TransportName::Smarthost(7);
    bench.queue.enqueue(new, WALL).await.unwrap();
    owed(&bench, &["b@two.example"]).await;
    let has = || (bench.queue.has_mail_by(7).unwrap(), bench.queue.has_mail_by(8).unwrap());
    assert_eq!(has(), (true, false));
    bench.queue.hold(&Actor::local(0), id, &[], WALL).await.unwrap();
    assert_eq!(has(), (true, false), "held mail goes that way once it is released");
    bench.queue.cancel(&Actor::local(0), id, &[], WALL).await.unwrap();
    assert_eq!(has(), (false, false));
}
