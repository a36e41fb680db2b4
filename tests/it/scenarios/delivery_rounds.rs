//! A message to several recipients of a server that takes few of them at a time: one claim, several
//! transactions, and what is known of each when something ends them early.

use std::time::Duration;

use bytes::Bytes;
use postern::access::Actor;
use postern::delivery;
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::{Body, QueueId};
use postern::net::Zone;

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};

const SIX: [&str; 6] =
    ["r0@shop.example", "r1@shop.example", "r2@shop.example", "r3@shop.example", "r4@shop.example", "r5@shop.example"];

/// Takes one recipient for each message.
fn one_at_a_time() -> Script {
    Script::polite().offering(&["PIPELINING", "8BITMIME", "SIZE 10000000", "LIMITS RCPTMAX=1"])
}

async fn world(script: Script, adjust: impl Fn(&mut delivery::Settings)) -> (Peer, Outbound) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let zone =
        Zone::new().mx("shop.example", 10, "mx.shop.example").ipv4("mx.shop.example", "127.0.1.1".parse().unwrap());
    let mut settings = settings(peer.address.port());
    settings.timeouts.final_dot = Duration::from_secs(60);
    adjust(&mut settings);
    (peer, Outbound::start("127.0.2.1", zone, settings).await)
}

/// Who was delivered to, in the order of the trail.
fn delivered(verdicts: &[MailEvent]) -> Vec<u16> {
    let of = |verdict: &MailEvent| match verdict {
        MailEvent::Delivered { recipients, .. } => recipients.clone(),
        _ => Vec::new(),
    };
    verdicts.iter().flat_map(of).collect()
}

/// How often each recipient of a message was taken.
fn copies(peer: &Peer, to: &str) -> usize {
    let taken = peer.taken();
    taken.iter().flat_map(|taken| &taken.recipients).filter(|line| line.contains(to)).count()
}

/// Every recipient is delivered to, as the trail has it and as the peer does: once.
async fn each_got_one_copy(peer: &Peer, outbound: &Outbound, id: QueueId) {
    assert!(until(|| delivered(&outbound.verdicts(id)).len() >= 6).await, "{:?}", outbound.verdicts(id));
    // The peer notes a copy after it answered.
    assert!(until(|| SIX.iter().all(|to| copies(peer, to) > 0)).await);
    let mut told = delivered(&outbound.verdicts(id));
    told.sort_unstable();
    assert_eq!(told, [0, 1, 2, 3, 4, 5]);
    assert_eq!(SIX.map(|to| copies(peer, to)), [1; 6]);
}

#[tokio::test]
async fn a_delivery_is_recorded_before_the_next_transaction_of_its_message_begins() {
    let script = one_at_a_time().times(".", 2, Act::Drip(Duration::ZERO)).always(".", Act::Silence);
    let (peer, outbound) = world(script, |_| {}).await;
    let id = outbound.owe(&SIX).await;
    assert!(until(|| peer.lines().iter().filter(|line| line.starts_with("DATA")).count() == 3).await);
    // The third hangs after its dot, and nobody ended anything: as a crash would find it.
    assert_eq!(delivered(&outbound.verdicts(id)), [0, 1]);
}

#[tokio::test]
async fn who_was_delivered_to_before_a_stop_gets_no_second_copy_after_it() {
    for is_watchdog in [false, true] {
        let script = one_at_a_time().times(".", 2, Act::Drip(Duration::ZERO)).once(".", Act::Silence);
        let (peer, mut outbound) = world(script, |settings| {
            settings.grace = Duration::from_millis(100);
            settings.given_back_pause = Duration::ZERO;
            // The watchdog's abort counts as a failure of the site.
            settings.shaping.pause_first = Duration::from_millis(10);
            settings.timeouts.stall = Duration::from_secs(if is_watchdog { 1 } else { 600 });
        })
        .await;
        let id = outbound.owe(&SIX).await;
        assert!(until(|| peer.lines().iter().filter(|line| line.starts_with("DATA")).count() == 3).await);
        if is_watchdog {
            outbound.keep_queue();
            let is_put_off = |event: &MailEvent| matches!(event, MailEvent::Deferred { .. });
            assert!(until(|| outbound.verdicts(id).iter().any(is_put_off)).await, "it counts as an attempt");
            outbound.queue.retry(&Actor::local(0), id, &[], Timestamp::now()).await.unwrap();
        } else {
            outbound.stop().await;
            outbound.go_on();
        }
        each_got_one_copy(&peer, &outbound, id).await;
    }
}

#[tokio::test]
async fn a_stop_begins_no_further_transaction_and_leaves_the_rest_due_at_once() {
    let script = one_at_a_time().always(".", Act::Drip(Duration::from_millis(20)));
    let (peer, mut outbound) = world(script, |_| {}).await;
    let id = outbound.owe(&SIX).await;
    assert!(until(|| !peer.taken().is_empty()).await);
    outbound.stop().await;
    let before = delivered(&outbound.verdicts(id)).len();
    assert!((1..6).contains(&before), "stopped in between, with what was taken recorded: {before}");
    assert_eq!(outbound.queue.next_due(), Some(Duration::ZERO));
    outbound.go_on();
    each_got_one_copy(&peer, &outbound, id).await;
}

#[tokio::test]
async fn a_long_message_reaches_everybody_in_one_attempt_however_few_are_taken_at_a_time() {
    let (peer, outbound) = world(one_at_a_time(), |_| {}).await;
    let mut message = outbound.message(&SIX);
    let text = "0123456789abcdef\r\n".repeat(20_000);
    message.message.body = Body::Memory(Bytes::from(text.clone()));
    let id = message.id;
    outbound.queue.enqueue(message, Timestamp::now()).await.unwrap();
    each_got_one_copy(&peer, &outbound, id).await;
    let taken = peer.taken();
    assert_eq!(taken.len(), 6);
    assert!(taken.iter().all(|taken| taken.text.ends_with(text.as_bytes())), "whole each time");
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn one_message_takes_no_more_transactions_over_a_connection_than_it_may_carry() {
    let by_peer = Script::polite().offering(&["PIPELINING", "8BITMIME", "SIZE 10000000", "LIMITS MAILMAX=2 RCPTMAX=1"]);
    for (script, most) in [(by_peer, 500), (one_at_a_time(), 2)] {
        let (peer, outbound) = world(script, |settings| settings.messages_per_connection_max = most).await;
        let id = outbound.owe(&SIX).await;
        each_got_one_copy(&peer, &outbound, id).await;
        let mut counts = Vec::new();
        for line in peer.lines() {
            if line.starts_with("EHLO") {
                counts.push(0);
            } else if line.starts_with("MAIL") {
                *counts.last_mut().unwrap() += 1;
            }
        }
        assert_eq!(counts, [2, 2, 2]);
    }
}

#[tokio::test]
async fn what_is_said_about_our_pace_is_heeded_before_the_next_transaction() {
    let script = one_at_a_time()
        .times(".", 2, Act::Drip(Duration::ZERO))
        .always(".", Act::Say("451 4.7.500 Server busy. Please try again later from [127.0.2.1]"));
    let (peer, outbound) = world(script, |_| {}).await;
    let id = outbound.owe(&SIX).await;
    assert!(until(|| outbound.verdicts(id).iter().any(|one| matches!(one, MailEvent::Deferred { .. }))).await);
    assert_eq!(delivered(&outbound.verdicts(id)), [0, 1]);
    assert_eq!(peer.lines().iter().filter(|line| line.starts_with("MAIL")).count(), 3);
}

#[tokio::test]
async fn when_time_runs_out_after_a_dot_the_trail_says_that_the_peer_may_have_taken_it() {
    let script = one_at_a_time().once(".", Act::Drip(Duration::ZERO)).always(".", Act::Silence);
    let (_peer, outbound) = world(script, |settings| settings.timeouts.transaction = Duration::from_secs(3)).await;
    let id = outbound.owe(&["r0@shop.example", "r1@shop.example", "r2@shop.example"]).await;
    let verdicts = outbound.judged(id, 3).await;
    assert_eq!(delivered(&verdicts), [0]);
    let deferrals: Vec<(Vec<u16>, Why)> = verdicts
        .iter()
        .filter_map(|verdict| match verdict {
            MailEvent::Deferred { recipients, why, .. } => Some((recipients.clone(), *why)),
            _ => None,
        })
        .collect();
    assert_eq!(deferrals, [(vec![1], Why::UnknownOutcome), (vec![2], Why::Network)]);
}

#[tokio::test]
async fn a_refusal_of_a_whole_transaction_is_told_apart_for_whom_it_names() {
    const SAID: &str = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient ann@shop.example not found";
    for (command, after) in [(".", "final dot"), ("DATA", "DATA")] {
        let (_peer, outbound) = world(Script::polite().always(command, Act::Say(SAID)), |_| {}).await;
        let alone = outbound.owe(&["bob@shop.example"]).await;
        let MailEvent::Bounced { why: Why::RecipientGone, detail, .. } = outbound.verdict(alone).await else {
            panic!()
        };
        assert_eq!(detail, format!("{SAID} (after {after})"), "who is not in the message is not masked");
        let id = outbound.owe(&["ann@shop.example", "bob@shop.example", "cid@shop.example"]).await;
        let told: Vec<(Vec<u16>, String)> = outbound
            .judged(id, 3)
            .await
            .into_iter()
            .map(|verdict| match verdict {
                MailEvent::Bounced { recipients, detail, .. } => (recipients, detail),
                other => panic!("{other:?}"),
            })
            .collect();
        let masked = SAID.replace("ann@shop.example", "<recipient>");
        assert_eq!(
            told,
            [
                (vec![0], format!("{masked} (after {after}, naming the recipient)")),
                (vec![1, 2], format!("{masked} (after {after} for 3 recipients)")),
            ]
        );
    }
}
