//! Outcomes between attempts and the queue, over the store in memory.

use super::*;
use crate::background::Shutdown;
use crate::delivery::transport::same_for_all;
use crate::events::Peer;
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

async fn queue_with_a_message() -> Arc<Queue> {
    let store = Arc::new(MemoryStore::new());
    let queue = Queue::open(store.clone(), store, Settings::default()).await.unwrap();
    let now = Timestamp::now();
    let recipient = NewRecipient {
        address: Address::parse("ann@shop.example").unwrap(),
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
        recipients: vec![recipient],
        labels: Default::default(),
        return_path: None,
        notice_about: None,
        beside: Default::default(),
    };
    queue.enqueue(message, now).await.unwrap();
    Arc::new(queue)
}

#[tokio::test]
async fn outcomes_of_an_attempt_that_was_aborted_on_their_way_to_the_queue_are_recorded() {
    let peer = Peer { host: String::new(), address: String::new(), source: String::new(), tls: String::new() };
    let reply = Reply::enhanced(250, 0, 0, "ok");
    let outcome = Outcome::Delivered { peer, reply, onward: crate::queue::Onward::Ourselves };
    for is_underway in [true, false] {
        let queue = queue_with_a_message().await;
        let (settled, outcomes) = mpsc::channel(1);
        let mut hand = hand(&screen(&queue), &lane(), settled, UNSCREENED_PAUSE);
        let held = hand.next_claim().unwrap();
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
    let peer = Peer { host: String::new(), address: String::new(), source: String::new(), tls: String::new() };
    let reply = Reply::enhanced(250, 0, 0, "ok");
    let outcome = Outcome::Delivered { peer, reply, onward: crate::queue::Onward::Ourselves };
    for is_panic in [false, true] {
        let queue = queue_with_a_message().await;
        let (settled, _outcomes) = mpsc::channel(1);
        let mut hand = hand(&screen(&queue), &lane(), settled, UNSCREENED_PAUSE);
        let mut held = hand.next_claim().unwrap();
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
