//! Which hosts are tried, how connections are shared, and what happens without an address or at
//! the end of the daemon.

use std::time::{Duration, Instant};

use postern::access::Actor;
use postern::delivery::{Halt, Scope};
use postern::events::{InstanceEvent, MailEvent, Why};
use postern::ext::Timestamp;
use postern::net::{Trouble, Zone};

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};

const LOCAL: [&str; 2] = ["127.0.1.1", "127.0.1.2"];

fn zone() -> Zone {
    Zone::new()
        .mx("shop.example", 10, "mx1.shop.example")
        .mx("shop.example", 20, "mx2.shop.example")
        .ipv4("mx1.shop.example", LOCAL[0].parse().unwrap())
        .ipv4("mx2.shop.example", LOCAL[1].parse().unwrap())
}

#[tokio::test]
async fn the_next_host_is_tried_when_the_best_one_is_away_or_says_421() {
    let second = Peer::start("127.0.1.2:0".parse().unwrap(), Script::polite()).await;
    let port = second.address.port();
    let outbound = Outbound::start("127.0.2.1", zone(), settings(port)).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { peer, .. } if peer.host == "mx2.shop.example"));
    let script = Script::polite().always("", Act::SayAndClose("421 busy"));
    let _first = Peer::start(format!("127.0.1.1:{port}").parse().unwrap(), script).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(port)).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { peer, .. } if peer.host == "mx2.shop.example"));
}

#[tokio::test]
async fn many_messages_share_few_connections() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let started = Instant::now();
    for _ in 0..400 {
        outbound.owe(&["ann@shop.example"]).await;
    }
    assert!(until(|| peer.taken().len() >= 400).await, "{}", peer.taken().len());
    assert!(peer.connections() <= 12, "{} connections", peer.connections());
    eprintln!("400 messages in {:?} over {} connections", started.elapsed(), peer.connections());
    assert!(until(|| outbound.queue.totals().lanes == 0).await);
    assert_eq!(peer.taken().len(), 400, "none twice");
}

#[tokio::test]
async fn who_was_suppressed_while_mail_waited_is_never_mailed_and_the_others_are() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let (queue, stop) = (outbound.queue.clone(), outbound.shutdown.clone());
    tokio::spawn(async move { queue.keep(&stop).await });
    let waited = Timestamp(Timestamp::now().0 - 120_000);
    let mut ids = Vec::new();
    for to in [&["suppressed@shop.example"][..], &["suppressed@shop.example", "ann@shop.example"]] {
        let message = outbound.message(to);
        ids.push(message.id);
        outbound.queue.enqueue(message, waited).await.unwrap();
    }
    let told = || ids.iter().all(|id| outbound.happened(*id).contains(&MailEvent::Suppressed { recipients: vec![0] }));
    assert!(until(told).await, "{:?}", outbound.happened(ids[1]));
    // The others in the record are due again at once.
    assert!(matches!(outbound.verdict(ids[1]).await, MailEvent::Delivered { recipients, .. } if recipients == [1]));
    assert!(until(|| outbound.queue.totals().lanes == 0).await);
    assert!(outbound.happened(ids[0]).contains(&MailEvent::Retired));
    assert_eq!((peer.taken().len(), outbound.queue.totals().notices), (1, 0));
}

#[tokio::test]
async fn an_idle_connection_is_used_again_and_a_dead_one_is_replaced_without_a_word() {
    let script = Script::polite();
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script.clone()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    for _ in 0..2 {
        let id = outbound.owe(&["ann@shop.example"]).await;
        assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
    }
    assert_eq!(peer.connections(), 1);
    // The peer hangs up at the next MAIL of the kept connection: nobody is told, a new one is made.
    let _script = script.once("MAIL", Act::Close);
    let id = outbound.owe(&["ann@shop.example"]).await;
    let verdicts = outbound.judged(id, 1).await;
    assert!(matches!(verdicts[..], [MailEvent::Delivered { .. }]), "{verdicts:?}");
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn a_connection_carries_no_more_recipient_domains_than_its_peer_takes() {
    let script = Script::polite().offering(&["PIPELINING", "LIMITS RCPTDOMAINMAX=2"]);
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let zone = zone().mx("b.example", 10, "mx.c.example").mx("c.example", 10, "mx.c.example");
    let zone = zone.mx("d.example", 10, "mx.c.example").ipv4("mx.c.example", LOCAL[0].parse().unwrap());
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    // Two domains share a connection, the third gets another, and the first finds its own again.
    for (to, connections) in [("a@b.example", 1), ("a@c.example", 1), ("a@d.example", 2), ("z@b.example", 2)] {
        let id = outbound.owe(&[to]).await;
        assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }), "{to}");
        assert!(until(|| outbound.queue.totals().lanes == 0).await);
        assert_eq!(peer.connections(), connections, "{to}");
    }
}

#[tokio::test]
async fn mail_of_a_missing_virtual_ip_waits_and_leaves_by_no_other_address() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("192.0.2.55", zone(), settings(peer.address.port())).await;
    let message = outbound.message(&["ann@shop.example"]);
    let lane = message.recipients[0].lane.clone().unwrap();
    let id = message.id;
    outbound.queue.enqueue(message, Timestamp::now()).await.unwrap();
    let told =
        || outbound.instance_events().iter().filter(|event| matches!(event, InstanceEvent::VipMissing { .. })).count();
    assert!(until(|| told() == 1).await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(told(), 1, "told once");
    assert!(outbound.verdicts(id).is_empty(), "no attempt is counted");
    assert_eq!(peer.connections(), 0);
    assert!(outbound.delivery.why(&lane).unwrap().words.contains("192.0.2.55"), "{:?}", outbound.delivery.why(&lane));
}

#[tokio::test]
async fn what_dns_says_decides_between_bouncing_and_waiting() {
    let zone = Zone::new().mx("null.example", 0, ".").trouble("failing.example", Trouble::ServerFailure);
    let outbound = Outbound::start("127.0.2.1", zone, settings(1)).await;
    for (to, code) in [("a@null.example", "556 5.1.10"), ("a@nowhere.example", "550 5.1.2")] {
        let id = outbound.owe(&[to]).await;
        let MailEvent::Bounced { why, detail, .. } = outbound.verdict(id).await else { panic!("{to}") };
        assert_eq!(why, Why::NoSuchDomain);
        assert!(detail.starts_with(code), "{detail}");
    }
    let id = outbound.owe(&["a@failing.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { why: Why::Dns, .. }));
}

#[tokio::test]
async fn a_public_domain_that_points_inside_is_not_connected_to() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let mut settings = settings(peer.address.port());
    settings.private_addresses = postern::delivery::PrivateAddresses::Refused;
    let outbound = Outbound::start("127.0.2.1", zone(), settings).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    // An answer that cannot be right may be right tomorrow: it waits, and nobody is connected to.
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { .. }));
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn a_suspended_domain_waits_until_it_is_resumed() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let actor = Actor::local(0);
    let scope = Scope::Domain("shop.example".parse().unwrap());
    outbound
        .delivery
        .suspend(&actor, (Halt::Sending, scope.clone()), ("they asked", None), Timestamp::now())
        .await
        .unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(outbound.verdicts(id).is_empty());
    assert!(outbound.delivery.resume(&actor, &scope, Timestamp::now()).await.unwrap());
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
}

#[tokio::test]
async fn a_suspension_ends_by_itself() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let (actor, now) = (Actor::local(0), Timestamp::now());
    let until = Some(now.plus(Duration::from_millis(1_500)));
    outbound.delivery.suspend(&actor, (Halt::Sending, Scope::All), ("new rack", until), now).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(outbound.verdicts(id).is_empty());
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
}

#[tokio::test]
async fn an_attempt_that_makes_no_progress_is_freed_and_its_mail_waits() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite().once(".", Act::Silence)).await;
    let mut settings = settings(peer.address.port());
    settings.timeouts.final_dot = Duration::from_secs(60);
    settings.timeouts.stall = Duration::from_millis(800);
    let outbound = Outbound::start("127.0.2.1", zone(), settings).await;
    outbound.keep_queue();
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(until(|| peer.lines().iter().any(|line| line.starts_with("DATA"))).await);
    assert_eq!(outbound.queue.totals().claimed, 1);
    // Nobody knows what became of it behind the dot (RFC 5321 s4.5.4.1).
    let verdict = outbound.verdict(id).await;
    assert!(matches!(verdict, MailEvent::Deferred { why: Why::UnknownOutcome, .. }), "{verdict:?}");
    assert!(until(|| outbound.queue.totals().claimed == 0).await, "the claim was given back");
}

#[tokio::test]
async fn a_stop_lets_running_attempts_finish_and_gives_the_rest_back() {
    let script = Script::polite().always(".", Act::Drip(Duration::from_millis(30)));
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let mut outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(outbound.owe(&["ann@shop.example"]).await);
    }
    assert!(until(|| peer.lines().iter().any(|line| line.starts_with("DATA"))).await);
    let started = Instant::now();
    outbound.stop().await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let delivered = ids.iter().filter(|id| !outbound.verdicts(**id).is_empty()).count();
    assert_eq!(delivered, peer.taken().len(), "what was taken was recorded");
    assert_eq!(outbound.queue.totals().claimed, 0);
}
