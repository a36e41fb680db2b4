//! TLS towards peers that do it well, badly, or with ill intent.

use std::time::Duration;

use postern::access::Actor;
use postern::delivery::{Destination, Diversion, MxTls};
use postern::events::{InstanceEvent, MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::net::Zone;
use postern::routing::{NewRoute, RelayTls, RouteScope, TransportName};

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};

fn zone() -> Zone {
    Zone::new().mx("shop.example", 10, "mx.shop.example").ipv4("mx.shop.example", "127.0.1.1".parse().unwrap())
}

async fn verdict(script: Script, tls: MxTls) -> (MailEvent, Peer) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let mut settings = settings(peer.address.port());
    settings.mx_tls = tls;
    let outbound = Outbound::start("127.0.2.1", zone(), settings).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    (outbound.verdict(id).await, peer)
}

fn tls_used(event: &MailEvent) -> String {
    let MailEvent::Delivered { peer, .. } = event else { panic!("{event:?}") };
    peer.tls.clone()
}

#[tokio::test]
async fn starttls_is_used_where_offered_even_with_a_certificate_nobody_vouches_for() {
    let (script, _) = Script::polite().with_tls("somebody.else.example");
    let (event, peer) = verdict(script, MxTls::Opportunistic).await;
    assert!(peer.taken()[0].tls);
    let used = tls_used(&event);
    assert!(used.starts_with("TLSv1.3 ") && used.contains("not verified"), "{used}");
}

#[tokio::test]
async fn where_a_verified_certificate_is_required_a_bad_one_makes_the_mail_wait() {
    let (script, _) = Script::polite().with_tls("somebody.else.example");
    let (event, peer) = verdict(script, MxTls::Verified).await;
    assert!(matches!(event, MailEvent::Deferred { why: Why::Network, .. }), "{event:?}");
    assert!(peer.taken().is_empty());
}

#[tokio::test]
async fn a_certificate_that_verifies_is_recorded_as_verified() {
    let (script, certificate) = Script::polite().with_tls("mx.shop.example");
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    for tls in [MxTls::Opportunistic, MxTls::Verified] {
        let mut settings = settings(peer.address.port());
        settings.mx_tls = tls;
        let outbound = Outbound::start_trusting("127.0.2.1", zone(), settings, vec![certificate.clone()]).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let used = tls_used(&outbound.verdict(id).await);
        assert!(used.ends_with("certificate verified"), "{used}");
    }
}

#[tokio::test]
async fn a_connection_verified_for_one_name_carries_no_mail_for_another_name_at_its_address() {
    let (script, certificate) = Script::polite().with_tls("mx.shop.example");
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let zone = zone().mx("bank.example", 10, "mx.bank.example").ipv4("mx.bank.example", "127.0.1.1".parse().unwrap());
    let mut settings = settings(peer.address.port());
    settings.mx_tls = MxTls::Verified;
    settings.connection_idle_max = Duration::from_secs(60);
    let outbound = Outbound::start_trusting("127.0.2.1", zone, settings, vec![certificate]).await;
    let of_shop = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(of_shop).await, MailEvent::Delivered { .. }));
    // The connection goes into the pool; its certificate says nothing about mx.bank.example.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let of_bank = outbound.owe(&["ann@bank.example"]).await;
    let verdict = outbound.verdict(of_bank).await;
    assert!(matches!(verdict, MailEvent::Deferred { why: Why::Network, .. }), "{verdict:?}");
    assert_eq!((peer.taken().len(), peer.connections()), (1, 2));
}

#[tokio::test]
async fn a_broken_handshake_is_retried_once_in_plain_text_and_recorded() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    for act in [Act::BrokenHandshake, Act::SayAndClose("220 go ahead")] {
        let (event, peer) = verdict(script.clone().once("STARTTLS", act), MxTls::Opportunistic).await;
        let used = tls_used(&event);
        assert!(used.starts_with("none (TLS failed"), "{used}");
        assert_eq!(peer.connections(), 2);
    }
}

/// Whatever a peer does at the command itself instead of answering it.
fn instead_of_an_answer() -> [Act; 3] {
    [Act::Close, Act::Reset, Act::Silence]
}

#[tokio::test]
async fn a_peer_that_hangs_up_resets_or_is_silent_at_starttls_gets_the_mail_in_plain_text() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    for act in instead_of_an_answer() {
        let (event, peer) = verdict(script.clone().always("STARTTLS", act.clone()), MxTls::Opportunistic).await;
        let used = tls_used(&event);
        assert!(used.starts_with("none (TLS failed: ") && used.contains("after STARTTLS"), "{act:?}: {used}");
        assert_eq!((peer.connections(), peer.taken().len()), (2, 1), "{act:?}");
        assert!(!peer.taken()[0].tls);
    }
}

#[tokio::test]
async fn where_encryption_is_required_mail_waits_for_a_peer_that_hangs_up_resets_or_is_silent_at_starttls() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    for act in instead_of_an_answer() {
        let (event, peer) = verdict(script.clone().always("STARTTLS", act.clone()), MxTls::Encrypted).await;
        assert!(matches!(event, MailEvent::Deferred { why: Why::Network, .. }), "{act:?}: {event:?}");
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{act:?}");
    }
}

#[tokio::test]
async fn a_peer_that_demands_a_certificate_of_ours_gets_the_mail_in_plain_text_under_either_version() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (script, _) = Script::polite().with_tls_for_known_clients("mx.shop.example", version);
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script.clone()).await;
        let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let used = tls_used(&outbound.verdict(id).await);
        assert!(used.starts_with("none (TLS failed: ") && used.contains("alert"), "{version:?}: {used}");
        assert_eq!((peer.connections(), peer.taken().len()), (2, 1), "{version:?}");
        // What its TLS said is held against it.
        let failing = outbound.tls_memory.failing(&Actor::local(0), Timestamp::now()).unwrap();
        assert_eq!(failing.len(), 1, "{version:?}");
        let (event, peer) = verdict(script, MxTls::Encrypted).await;
        assert!(matches!(event, MailEvent::Deferred { why: Why::Network, .. }), "{version:?}: {event:?}");
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{version:?}");
    }
}

#[tokio::test]
async fn a_connection_lost_at_the_first_command_under_tls_is_retried_once_in_plain_text_and_a_later_one_is_not() {
    let offer = Act::SayRaw(b"250-mx.example\r\n250 STARTTLS\r\n");
    for (script, expected) in [
        (Script::polite().once("EHLO", offer.clone()).once("EHLO", Act::Close), 2),
        (Script::polite().once("EHLO", offer).once("EHLO", Act::Say("500 what")).once("HELO", Act::Close), 1),
    ] {
        let (script, _) = script.with_tls("mx.shop.example");
        let (event, peer) = verdict(script, MxTls::Opportunistic).await;
        assert_eq!(peer.connections(), expected, "{event:?}");
        assert_eq!(matches!(event, MailEvent::Delivered { .. }), expected == 2, "{event:?}");
    }
}

/// Two failures count only if they are some minutes apart.
fn fails_twice(outbound: &Outbound, host: &str) {
    let now = Timestamp::now();
    for at in [Timestamp(now.0 - 600_000), now] {
        outbound.tls_memory.failed(host, "no common version", at);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_or_in_the_handshake_is_not_held_against_the_host() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    for act in instead_of_an_answer().into_iter().chain([Act::SayAndClose("220 go ahead")]) {
        let script = script.clone().always("STARTTLS", act);
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let used = tls_used(&outbound.verdict(id).await);
        assert!(used.starts_with("none (TLS failed"), "{used}");
        assert_eq!(outbound.tls_memory.failing(&Actor::local(0), Timestamp::now()).unwrap(), []);
    }
}

#[tokio::test]
async fn a_relay_is_asked_for_tls_each_time_and_what_it_says_is_remembered_of_no_host() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    fails_twice(&outbound, "127.0.1.1");
    let new = NewRoute {
        scope: RouteScope::OnDemand,
        host: "127.0.1.1".to_owned(),
        port: peer.address.port(),
        tls: RelayTls::Opportunistic,
        login: None,
    };
    let route = outbound.routes.add(&Actor::local(0), new, Timestamp::now()).await.unwrap();
    let to = Domain::parse("shop.example").unwrap();
    let rule = (Destination::Domain(to), Diversion::Reroute(route.id));
    outbound.destinations.add(&Actor::local(0), rule, "by the relay", Timestamp::now()).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    let used = tls_used(&outbound.verdict(id).await);
    assert!(used.starts_with("TLSv1.3 "), "{used}");
}

#[tokio::test]
async fn a_host_with_which_tls_failed_is_not_asked_for_it_again_where_nobody_demands_it() {
    for (tls, expected) in [
        (MxTls::Opportunistic, "none (TLS failed before: no common version; tried again after "),
        (MxTls::Encrypted, "TLSv1.3 "),
    ] {
        let (script, _) = Script::polite().with_tls("mx.shop.example");
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let mut settings = settings(peer.address.port());
        settings.mx_tls = tls;
        let outbound = Outbound::start("127.0.2.1", zone(), settings).await;
        fails_twice(&outbound, "mx.shop.example");
        let id = outbound.owe(&["ann@shop.example"]).await;
        let used = tls_used(&outbound.verdict(id).await);
        assert!(used.starts_with(expected), "{used}");
        assert_eq!(peer.connections(), 1);
    }
}

#[tokio::test]
async fn a_domain_that_gave_tls_and_gives_none_is_told_of() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script.always("STARTTLS", Act::Say("454 not now"))).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let domain = Domain::parse("shop.example").unwrap();
    let before = postern::delivery::Spoken {
        domain: &domain,
        host: "mx.shop.example",
        level: postern::delivery::TlsLevel::Verified,
        words: "TLSv1.3",
    };
    outbound.tls_memory.spoke(&before, Timestamp::now());
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(tls_used(&outbound.verdict(id).await).contains("none (refused"));
    let told = || {
        let mut events = outbound.instance_events().into_iter();
        events.any(|event| match event {
            InstanceEvent::TlsDowngraded { from, to, .. } => from == "verified" && to == "plaintext",
            _ => false,
        })
    };
    assert!(until(told).await);
}

#[tokio::test]
async fn a_refused_starttls_goes_on_in_plain_text_unless_tls_is_required() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    let script = script.always("STARTTLS", Act::Say("454 4.7.0 not now"));
    let (event, peer) = verdict(script.clone(), MxTls::Opportunistic).await;
    assert!(tls_used(&event).contains("none (refused: 454"), "{event:?}");
    assert_eq!(peer.connections(), 1);
    let (event, peer) = verdict(script, MxTls::Encrypted).await;
    assert!(matches!(event, MailEvent::Deferred { .. }), "{event:?}");
    assert!(peer.taken().is_empty());
}

#[tokio::test]
async fn plain_text_injected_before_the_handshake_ends_the_attempt() {
    let (script, _) = Script::polite().with_tls("mx.shop.example");
    let script = script.always("STARTTLS", Act::SayRaw(b"220 go ahead\r\n250 2.0.0 injected\r\n"));
    let (event, peer) = verdict(script, MxTls::Opportunistic).await;
    let MailEvent::Deferred { detail, .. } = &event else { panic!("{event:?}") };
    assert!(detail.contains("injected"), "{detail}");
    assert!(peer.taken().is_empty());
    assert_eq!(peer.connections(), 1, "no fallback to plain text");
}

/// A relay by address with TLS as given and a login.
async fn relayed(
    script: Script,
    tls: RelayTls,
    trusted: Vec<rustls_pki_types::CertificateDer<'static>>,
) -> (MailEvent, Peer) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let zone = Zone::new().ipv4("relay.example", "127.0.1.1".parse().unwrap());
    let outbound = Outbound::start_trusting("127.0.2.1", zone, settings(1), trusted).await;
    let new = NewRoute {
        scope: RouteScope::Instance,
        host: "relay.example".to_owned(),
        port: peer.address.port(),
        tls,
        login: Some(("me".to_owned(), "secret".to_owned().into())),
    };
    let route = outbound.routes.add(&Actor::local(0), new, Timestamp::now()).await.unwrap();
    let mut message = outbound.message(&["ann@anywhere.example"]);
    for recipient in &mut message.recipients {
        recipient.lane.as_mut().unwrap().transport = TransportName::Smarthost(route.id);
    }
    let id = message.id;
    outbound.queue.enqueue(message, Timestamp::now()).await.unwrap();
    (outbound.verdict(id).await, peer)
}

#[tokio::test]
async fn a_relay_is_logged_in_to_under_verified_tls() {
    let (script, certificate) = Script::polite().with_tls("relay.example");
    let with_auth = script.clone().offering(&["PIPELINING", "AUTH PLAIN LOGIN", "STARTTLS"]);
    for (script, tls) in [(with_auth.clone(), RelayTls::Starttls), (with_auth.implicit(), RelayTls::Implicit)] {
        let (event, peer) = relayed(script, tls, vec![certificate.clone()]).await;
        assert!(tls_used(&event).ends_with("certificate verified"), "{event:?}");
        assert!(peer.lines().contains(&"AUTH PLAIN AG1lAHNlY3JldA==".to_owned()), "{:?}", peer.lines());
    }
}

#[tokio::test]
async fn the_password_is_not_shown_to_a_relay_whose_certificate_does_not_verify() {
    let (script, _) = Script::polite().with_tls("relay.example");
    let script = script.offering(&["AUTH PLAIN", "STARTTLS"]);
    let (event, peer) = relayed(script, RelayTls::Starttls, Vec::new()).await;
    assert!(matches!(event, MailEvent::Deferred { .. }), "{event:?}");
    assert!(!peer.lines().iter().any(|line| line.starts_with("AUTH")));
}

#[tokio::test]
async fn a_refused_login_waits_for_the_operator_and_bounces_nothing() {
    let (script, certificate) = Script::polite().with_tls("relay.example");
    let script = script.offering(&["AUTH PLAIN", "STARTTLS"]).always("AUTH", Act::Say("535 5.7.8 wrong"));
    let (event, _peer) = relayed(script, RelayTls::Starttls, vec![certificate]).await;
    assert!(matches!(event, MailEvent::Deferred { why: Why::OurConfiguration, .. }), "{event:?}");
}
