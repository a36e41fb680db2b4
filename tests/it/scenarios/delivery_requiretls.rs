//! Mail that asked for TLS all the way (REQUIRETLS, RFC 8689), and peers that keep it or do not.

use postern::delivery::Settings;
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::{QueueId, RequireTls, ReversePath};
use postern::net::Zone;
use rustls_pki_types::CertificateDer;

use crate::harness::outbound::{Outbound, settings};
use crate::harness::peer::{Act, Peer, Script};
use crate::harness::policy_host::PolicyHost;

const MX: &str = "mx.shop.example";

fn zone() -> Zone {
    Zone::new()
        .mx("shop.example", 10, MX)
        .ipv4(MX, "127.0.1.1".parse().unwrap())
        .txt("_mta-sts.shop.example", "v=STSv1; id=1;")
        .ipv4("mta-sts.shop.example", "127.0.1.2".parse().unwrap())
}

/// A peer that keeps TLS: a good certificate, and REQUIRETLS offered.
fn keeping() -> (Script, CertificateDer<'static>) {
    Script::polite().offering(&["PIPELINING", "8BITMIME", "REQUIRETLS"]).with_tls(MX)
}

async fn outbound(mode: &str, peer: &Peer, trusted: &[CertificateDer<'static>]) -> (Outbound, PolicyHost) {
    let host = PolicyHost::start("127.0.1.2", "shop.example").await;
    if mode != "nothing" {
        host.publish(mode, &[MX]);
    }
    let settings = Settings { policy_port: host.address.port(), ..settings(peer.address.port()) };
    let roots = trusted.iter().cloned().chain([host.certificate.clone()]).collect();
    (Outbound::start_trusting("127.0.2.1", zone(), settings, roots).await, host)
}

/// Owes a message that asks for TLS all the way.
async fn owe(outbound: &Outbound, to: &str) -> QueueId {
    let mut message = outbound.message(&[to]);
    message.parameters.require_tls = RequireTls::Asked;
    let id = message.id;
    outbound.queue.enqueue(message, Timestamp::now()).await.unwrap();
    id
}

fn bounced(event: &MailEvent) -> String {
    let MailEvent::Bounced { why: Why::TlsPolicy, detail, .. } = event else { panic!("{event:?}") };
    detail.clone()
}

#[tokio::test]
async fn a_proven_peer_that_offers_it_is_told_and_gets_the_mail() {
    for mode in ["enforce", "testing"] {
        let (script, certificate) = keeping();
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let (outbound, _host) = outbound(mode, &peer, &[certificate]).await;
        let id = owe(&outbound, "ann@shop.example").await;
        assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }), "{mode}");
        assert!(peer.taken()[0].mail.ends_with(" REQUIRETLS") && peer.taken()[0].tls, "{:?}", peer.taken()[0].mail);
        // Who did not ask for it does not demand it of others.
        let plain = outbound.owe(&["bob@shop.example"]).await;
        outbound.verdict(plain).await;
        assert!(!peer.taken()[1].mail.contains("REQUIRETLS"));
    }
}

#[tokio::test]
async fn a_peer_that_does_not_offer_it_gets_nothing_and_the_sender_is_told() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let (outbound, _host) = outbound("enforce", &peer, &[certificate]).await;
    let id = owe(&outbound, "ann@shop.example").await;
    let detail = bounced(&outbound.verdict(id).await);
    assert_eq!(detail, "550 5.7.30 REQUIRETLS: mx.shop.example does not offer it");
    assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")));
    // The mail behind it leaves all the same.
    let other = outbound.owe(&["bob@shop.example"]).await;
    assert!(matches!(outbound.verdict(other).await, MailEvent::Delivered { .. }));
}

#[tokio::test]
async fn without_proof_whose_host_it_is_nobody_is_connected_to() {
    let (script, certificate) = keeping();
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let (outbound, _host) = outbound("nothing", &peer, &[certificate]).await;
    let id = owe(&outbound, "ann@shop.example").await;
    let detail = bounced(&outbound.verdict(id).await);
    assert!(detail.starts_with("550 5.7.30 REQUIRETLS: no mail host of shop.example is proved"), "{detail}");
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn without_verified_tls_the_mail_comes_back_whatever_the_policy_tolerates() {
    let (for_another, trusted) =
        Script::polite().offering(&["PIPELINING", "REQUIRETLS"]).with_tls("mx.somebody.example");
    let stripped = Script::polite().offering(&["PIPELINING", "REQUIRETLS"]);
    let (script, _) = keeping();
    let refused = script.always("STARTTLS", Act::Say("454 4.7.0 not now"));
    for mode in ["testing", "enforce"] {
        for script in [for_another.clone(), stripped.clone(), refused.clone()] {
            let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
            let (outbound, _host) = outbound(mode, &peer, std::slice::from_ref(&trusted)).await;
            let id = owe(&outbound, "ann@shop.example").await;
            let detail = bounced(&outbound.verdict(id).await);
            assert!(detail.starts_with("550 5.7.10 REQUIRETLS: mx.shop.example: "), "{mode}: {detail}");
            assert!(peer.taken().is_empty());
        }
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_tried_again() {
    let (script, certificate) = keeping();
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script.always("", Act::Close)).await;
    let (outbound, _host) = outbound("enforce", &peer, &[certificate]).await;
    let id = owe(&outbound, "ann@shop.example").await;
    let event = outbound.verdict(id).await;
    assert!(matches!(event, MailEvent::Deferred { why: Why::Network, .. }), "{event:?}");
}

#[tokio::test]
async fn a_host_that_cuts_the_connection_at_starttls_is_tried_again_and_gets_nothing_in_the_clear() {
    for mode in ["testing", "enforce"] {
        for act in [Act::Close, Act::Reset, Act::Silence] {
            let (script, certificate) = keeping();
            let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script.always("STARTTLS", act)).await;
            let (outbound, _host) = outbound(mode, &peer, &[certificate]).await;
            let id = owe(&outbound, "ann@shop.example").await;
            let event = outbound.verdict(id).await;
            assert!(matches!(event, MailEvent::Deferred { why: Why::Network, .. }), "{mode}: {event:?}");
            assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{mode}");
        }
    }
}

#[tokio::test]
async fn a_host_that_refuses_us_under_tls_gets_nothing_and_the_mail_comes_back() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let script = Script::polite().offering(&["PIPELINING", "REQUIRETLS"]);
        let (script, certificate) = script.with_tls_for_known_clients(MX, version);
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let (outbound, _host) = outbound("enforce", &peer, &[certificate]).await;
        let id = owe(&outbound, "ann@shop.example").await;
        let detail = bounced(&outbound.verdict(id).await);
        assert!(detail.starts_with("550 5.7.10 REQUIRETLS: mx.shop.example: "), "{version:?}: {detail}");
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{version:?}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_keep_tls_is_not_used_though_it_is_open() {
    // Opened for other mail under a policy that only notes, to a certificate nobody vouches for.
    let (script, _) = keeping();
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let (outbound, _host) = outbound("testing", &peer, &[]).await;
    let other = outbound.owe(&["bob@shop.example"]).await;
    assert!(matches!(outbound.verdict(other).await, MailEvent::Delivered { .. }));
    let id = owe(&outbound, "ann@shop.example").await;
    assert!(bounced(&outbound.verdict(id).await).starts_with("550 5.7.10 "));
    assert_eq!(peer.taken().len(), 1);
}

#[tokio::test]
async fn a_notice_asks_for_it_and_is_not_lost_for_want_of_it() {
    let (keeps, certificate) = keeping();
    let (does_not, other) = Script::polite().with_tls(MX);
    for (script, expected) in [(keeps, true), (does_not, false)] {
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let (outbound, _host) = outbound("enforce", &peer, &[certificate.clone(), other.clone()]).await;
        let mut notice = outbound.message(&["shop@shop.example"]);
        (notice.parameters.require_tls, notice.reverse_path) = (RequireTls::Asked, ReversePath(None));
        let id = notice.id;
        outbound.queue.enqueue(notice, Timestamp::now()).await.unwrap();
        assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }), "RFC 8689 s5");
        assert_eq!(peer.taken()[0].mail.contains(" REQUIRETLS"), expected, "{:?}", peer.taken()[0].mail);
    }
}
