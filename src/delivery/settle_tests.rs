//! Outcomes between attempts and the queue, over the store in memory.

use super::*;
use crate::access::Actor;
use crate::background::Shutdown;
use crate::delivery::transport::same_for_all;
use crate::events::{Peer, Why};
use crate::mail::{Body, Class, Domain, MailParameters, Notify, QueueId, Reply, ReversePath, Sealed, VipId};
use crate::queue::{Needs8bit, NewMessage, NewRecipient, Settings};
use crate::routing::TransportName;
use crate::store::MemoryStore;

fn lane() -> Lane {
    Lane {
        vip: VipId(1),
        tenant: TenantId(1),
        class: Class::Transactional,
        transport: TransportName::Mx,
        next_hop: Domain::parse("shop.example").unwrap(),
    }
}

fn screen(queue: &Arc<Queue>) -> Screen {
    Screen { queue: queue.clone(), suppressed: Arc::new(|_, _, _| Ok(false)) }
}

async fn empty_queue() -> Arc<Queue> {
    let store = Arc::new(MemoryStore::new());
    Arc::new(Queue::open(store.clone(), store, Settings::default()).await.unwrap())
}

async fn queue_with_a_message() -> Arc<Queue> {
    let queue = empty_queue().await;
    enqueue(&queue, &["ann@shop.example"], Timestamp::now()).await;
    queue
}

async fn enqueue(queue: &Queue, to: &[&str], now: Timestamp) {
    let recipient = |address: &&str| NewRecipient {
        address: Address::parse(address).unwrap(),
        notify: Notify::default(),
        orcpt: None,
        lane: Some(lane()),
    };
    let body = Body::Memory(bytes::Bytes::from_static(b"hi\r\n"));
    let message = NewMessage {
        id: QueueId::new(now),
        tenant: TenantId(1),
        account: None,
        vip: VipId(1),
        class: Class::Transactional,
        source: "smtp".to_owned(),
        reverse_path: ReversePath(None),
        parameters: MailParameters::default(),
        message: Sealed { head: bytes::Bytes::from_static(b"Subject: s\r\n\r\n"), body },
        needs_8bit: Needs8bit::No,
        subject: String::new(),
        message_id: String::new(),
        header_from: String::new(),
        signatures: Vec::new(),
        recipients: to.iter().map(recipient).collect(),
        labels: Default::default(),
        return_path: None,
        signed: None,
        notice_about: None,
        beside: Default::default(),
    };
    queue.enqueue(message, now).await.unwrap();
}

/// Long enough ago that the suppression list is asked again.
fn a_while_ago() -> Timestamp {
    Timestamp(Timestamp::now().0 - 2 * SCREENED_AT_ACCEPTANCE.as_millis() as u64)
}

fn delivered() -> Outcome {
    let peer = Peer { host: String::new(), address: String::new(), source: String::new(), tls: String::new() };
    let reply = Reply::enhanced(250, 0, 0, "ok");
    Outcome::Delivered { peer, reply, onward: crate::queue::Onward::Ourselves }
}

#[tokio::test]
async fn outcomes_of_an_attempt_that_was_aborted_on_their_way_to_the_queue_are_recorded() {
    let outcome = delivered();
    for is_underway in [true, false] {
        let queue = queue_with_a_message().await;
        let (settled, outcomes) = mpsc::channel(1);
        let mut hand = hand(&screen(&queue), &lane(), settled, UNSCREENED_PAUSE);
        let held = hand.next_claim().await.unwrap();
        let all = same_for_all(held.claim().unwrap(), &outcome);
        if is_underway {
            hand.settle(held, all).await;
            drop((hand, outcomes));
        } else {
            drop(outcomes);
            hand.settle(held, all).await;
        }
        assert_eq!(queue.totals().unrecorded, 1);
        let stop = Shutdown::new();
        stop.cancel();
        queue.keep(&stop).await;
        let totals = queue.totals();
        assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 0));
    }
}

#[tokio::test]
async fn what_became_of_recipients_of_a_claim_that_was_dropped_is_recorded() {
    let outcome = delivered();
    for is_panic in [false, true] {
        let queue = queue_with_a_message().await;
        let (settled, _outcomes) = mpsc::channel(1);
        let mut hand = hand(&screen(&queue), &lane(), settled, UNSCREENED_PAUSE);
        let mut held = hand.next_claim().await.unwrap();
        held.decide(0, outcome.clone());
        assert!(held.undecided().is_empty());
        if is_panic {
            let attempt = tokio::spawn(async move {
                let _held = held;
                panic!("a fault of ours, made by a test");
            });
            assert!(attempt.await.unwrap_err().is_panic());
        } else {
            drop(held);
        }
        let stop = Shutdown::new();
        stop.cancel();
        queue.keep(&stop).await;
        let totals = queue.totals();
        assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 0), "panic: {is_panic}");
    }
}

#[tokio::test]
async fn a_tenant_whose_recipients_are_all_suppressed_delays_nobody() {
    let queue = empty_queue().await;
    for number in 0..200 {
        enqueue(&queue, &[&format!("r{number}@shop.example")], a_while_ago()).await;
    }
    let screen = Screen { queue: queue.clone(), suppressed: Arc::new(|_, _, _| Ok(true)) };
    let (settled, outcomes) = mpsc::channel(8);
    let mut hand = hand(&screen, &lane(), settled, UNSCREENED_PAUSE);
    let watched = queue.clone();
    let working = async move {
        while watched.totals().lanes > 0 {
            assert!(hand.next_claim().await.is_none(), "nobody is left to try");
            assert_eq!(watched.totals().unrecorded, 0, "nothing is left to the chores");
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(working, record_outcomes(queue.clone(), outcomes, 16));
    let totals = queue.totals();
    assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 0));
}

#[tokio::test]
async fn who_is_suppressed_in_a_message_to_several_is_settled_with_the_others_who_are_tried() {
    let queue = empty_queue().await;
    enqueue(&queue, &["ann@shop.example", "gone@shop.example"], a_while_ago()).await;
    let suppressed: SuppressedLookup = Arc::new(|_, _, address| Ok(address.local_part() == "gone"));
    let (settled, outcomes) = mpsc::channel(8);
    let mut hand = hand(&Screen { queue: queue.clone(), suppressed }, &lane(), settled, UNSCREENED_PAUSE);
    let held = hand.next_claim().await.unwrap();
    assert_eq!(held.undecided(), [(0, 0)]);
    // Put back and taken again, nothing of it is counted twice.
    hand.put_back(held);
    let held = hand.next_claim().await.unwrap();
    assert_eq!((held.undecided(), held.outcomes().len()), (vec![(0, 0)], 1));
    hand.settle(held, vec![(0, delivered())]).await;
    drop(hand);
    record_outcomes(queue.clone(), outcomes, 16).await;
    let totals = queue.totals();
    assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 0));
}

#[tokio::test]
async fn mail_waits_while_the_suppression_list_cannot_be_read() {
    let queue = empty_queue().await;
    enqueue(&queue, &["ann@shop.example"], a_while_ago()).await;
    let screen = Screen { queue: queue.clone(), suppressed: Arc::new(|_, _, _| Err("gone".to_owned())) };
    let (settled, _outcomes) = mpsc::channel(8);
    let mut hand = hand(&screen, &lane(), settled, Duration::ZERO);
    assert!(hand.next_claim().await.is_none());
    let totals = queue.totals();
    assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 1));
    assert!(queue.lanes().iter().all(|due| due.ready == 0), "due again after the pause");
}

#[tokio::test]
async fn a_claim_put_back_with_a_verdict_is_recorded_and_not_tried_again() {
    let queue = queue_with_a_message().await;
    let (settled, _outcomes) = mpsc::channel(8);
    let mut hand = hand(&screen(&queue), &lane(), settled, UNSCREENED_PAUSE);
    let mut held = hand.next_claim().await.unwrap();
    held.decide(0, delivered());
    hand.put_back(held);
    assert!(hand.next_claim().await.is_none());
    let stop = Shutdown::new();
    stop.cancel();
    queue.keep(&stop).await;
    let totals = queue.totals();
    assert_eq!((totals.unrecorded, totals.claimed, totals.lanes), (0, 0, 0));
}

#[tokio::test]
async fn mail_expires_on_what_others_came_to_only_if_that_was_after_its_limit() {
    let queue = queue_with_a_message().await;
    let accepted = queue.now();
    let limit = Duration::from_millis(5);
    queue.adjust(Settings { expire_after: limit, ..Settings::default() });
    while queue.now().since(accepted) <= limit {
        tokio::time::sleep(limit).await;
    }
    let outcome = Outcome::Deferred { why: Why::Network, detail: "nobody is there".to_owned(), peer: None };
    let before = Fate { outcome: outcome.clone(), said: None, given: accepted };
    share_fate(screen(&queue), &lane(), before, 10, 10).await;
    assert_eq!(queue.totals().lanes, 1, "it waits");
    let actor = Actor::local(0);
    let id = queue.list(&actor, &Default::default(), None, 10).unwrap().messages[0].id;
    queue.retry(&actor, id, &[], Timestamp::now()).await.unwrap();
    let after = Fate { outcome, said: None, given: queue.now() };
    share_fate(screen(&queue), &lane(), after, 10, 10).await;
    assert_eq!(queue.totals().lanes, 0, "it was given up");
}
