//! What recipient domains demand of TLS (MTA-STS, DANE), and peers and attackers that do not give it.

use postern::access::Actor;
use postern::delivery::{DomainTls, MxTls, Settings, TlsLevel, TlsPolicies};
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::net::{Tlsa, Trouble, Zone};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};
use crate::harness::policy_host::PolicyHost;

const MX: &str = "mx.shop.example";

fn domain() -> Domain {
    Domain::parse("shop.example").unwrap()
}

fn zone() -> Zone {
    Zone::new().mx("shop.example", 10, MX).ipv4(MX, "127.0.1.1".parse().unwrap())
}

/// The zone of a domain that announces a policy.
fn announcing(id: &str) -> Zone {
    zone()
        .txt("_mta-sts.shop.example", &format!("v=STSv1; id={id};"))
        .ipv4("mta-sts.shop.example", "127.0.1.2".parse().unwrap())
}

async fn policy_host(mode: &str, hosts: &[&str]) -> PolicyHost {
    let host = PolicyHost::start("127.0.1.2", "shop.example").await;
    host.publish(mode, hosts);
    host
}

/// Delivery to `peer` of domains whose policies are at `host`, trusting further certificates.
async fn outbound(zone: Zone, peer: &Peer, host: &PolicyHost, trusted: &[CertificateDer<'static>]) -> Outbound {
    let settings = Settings { policy_port: host.address.port(), ..settings(peer.address.port()) };
    let roots = trusted.iter().cloned().chain([host.certificate.clone()]).collect();
    Outbound::start_trusting("127.0.2.1", zone, settings, roots).await
}

async fn peer(script: Script) -> Peer {
    Peer::start("127.0.1.1:0".parse().unwrap(), script).await
}

fn tls_used(event: &MailEvent) -> String {
    let MailEvent::Delivered { peer, .. } = event else { panic!("{event:?}") };
    peer.tls.clone()
}

/// The reason of a deferral for a policy.
fn unmet(event: &MailEvent) -> String {
    let MailEvent::Deferred { why: Why::TlsPolicy, detail, .. } = event else { panic!("{event:?}") };
    detail.clone()
}

#[tokio::test]
async fn under_enforce_mail_leaves_with_a_certificate_that_verifies_and_the_trail_says_why() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let (peer, host) = (peer(script).await, policy_host("enforce", &["*.shop.example"]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[certificate]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let used = tls_used(&outbound.verdict(id).await);
    assert!(used.ends_with("certificate verified; policy: MTA-STS of shop.example (enforce)"), "{used}");
    assert!(peer.taken()[0].tls);
}

#[tokio::test]
async fn starttls_stripped_from_the_offer_under_enforce_makes_mail_wait_and_says_so() {
    let (peer, host) = (peer(Script::polite()).await, policy_host("enforce", &[MX]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let detail = unmet(&outbound.verdict(id).await);
    assert_eq!(
        detail,
        "451 4.7.4 mx.shop.example: required, and the peer does not offer STARTTLS; \
         demanded by MTA-STS of shop.example (enforce)"
    );
    assert!(peer.taken().is_empty() && !peer.lines().iter().any(|line| line.starts_with("MAIL")));
}

#[tokio::test]
async fn starttls_refused_or_broken_under_enforce_makes_mail_wait() {
    for (act, status) in [
        (Act::Say("454 4.7.0 not now"), "451 4.7.4 "),
        (Act::BrokenHandshake, "451 4.7.5 "),
        (Act::SayAndClose("220 go ahead"), "451 4.7.5 "),
        (Act::Close, "451 4.7.5 "),
        (Act::Reset, "451 4.7.5 "),
        (Act::Silence, "451 4.7.5 "),
    ] {
        let (script, certificate) = Script::polite().with_tls(MX);
        let script = script.always("STARTTLS", act);
        let (peer, host) = (peer(script).await, policy_host("enforce", &[MX]).await);
        let outbound = outbound(announcing("1"), &peer, &host, &[certificate]).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let detail = unmet(&outbound.verdict(id).await);
        assert!(detail.starts_with(status), "{detail}");
        assert!(peer.taken().is_empty());
    }
}

#[tokio::test]
async fn a_peer_that_refuses_us_under_tls_gets_nothing_in_the_clear_under_enforce_or_dane() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (script, certificate) = Script::polite().with_tls_for_known_clients(MX, version);
        let (peer, host) = (peer(script).await, policy_host("enforce", &[MX]).await);
        let outbound = outbound(announcing("1"), &peer, &host, std::slice::from_ref(&certificate)).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let (by_dane, _kept) = by_dane(pinned(&peer, &pin(&certificate)), &peer).await;
        for detail in [unmet(&outbound.verdict(id).await), unmet(&by_dane)] {
            assert!(detail.starts_with("451 4.7.5 ") && detail.contains("alert"), "{version:?}: {detail}");
        }
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{version:?}");
    }
}

#[tokio::test]
async fn a_pinned_host_that_cuts_the_connection_at_starttls_gets_nothing_in_the_clear() {
    let (script, certificate) = Script::polite().with_tls(MX);
    for act in [Act::Close, Act::Reset, Act::Silence] {
        let peer = peer(script.clone().always("STARTTLS", act)).await;
        let (event, _outbound) = by_dane(pinned(&peer, &pin(&certificate)), &peer).await;
        assert!(unmet(&event).starts_with("451 4.7.5 "));
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")));
    }
}

#[tokio::test]
async fn a_wrong_certificate_under_enforce_makes_mail_wait() {
    let (for_another, trusted) = Script::polite().with_tls("mx.somebody.example");
    let (nobody_vouches, _) = Script::polite().with_tls(MX);
    for (script, roots) in [(for_another, vec![trusted]), (nobody_vouches, Vec::new())] {
        let (peer, host) = (peer(script).await, policy_host("enforce", &[MX]).await);
        let outbound = outbound(announcing("1"), &peer, &host, &roots).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let detail = unmet(&outbound.verdict(id).await);
        assert!(detail.starts_with("451 4.7.5 mx.shop.example: "), "{detail}");
        assert!(peer.taken().is_empty());
    }
}

#[tokio::test]
async fn a_host_that_the_policy_does_not_name_is_not_even_connected_to() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let (peer, host) = (peer(script).await, policy_host("enforce", &["mx.real.example"]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[certificate]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let detail = unmet(&outbound.verdict(id).await);
    assert_eq!(detail, "451 4.7.4 the MTA-STS policy of shop.example (enforce) does not name mx.shop.example");
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn of_several_hosts_those_that_the_policy_names_get_the_mail() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let (peer, host) = (peer(script).await, policy_host("enforce", &[MX]).await);
    let evil =
        Peer::start(std::net::SocketAddr::new("127.0.1.66".parse().unwrap(), peer.address.port()), Script::polite());
    let evil = evil.await;
    let zone =
        announcing("1").mx("shop.example", 1, "mx.evil.example").ipv4("mx.evil.example", "127.0.1.66".parse().unwrap());
    let outbound = outbound(zone, &peer, &host, &[certificate]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    tls_used(&outbound.verdict(id).await);
    assert_eq!((peer.taken().len(), evil.connections()), (1, 0));
}

#[tokio::test]
async fn under_testing_mail_leaves_as_before_and_the_trail_names_the_policy() {
    let (peer, host) = (peer(Script::polite()).await, policy_host("testing", &[MX]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let used = tls_used(&outbound.verdict(id).await);
    assert_eq!(used, "none (not offered); policy: MTA-STS of shop.example (testing)");
}

#[tokio::test]
async fn what_was_fetched_is_in_the_store_and_holds_for_the_next_message_when_its_host_is_gone() {
    let (peer, host) = (peer(Script::polite()).await, policy_host("enforce", &[MX]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    unmet(&outbound.verdict(id).await);
    let kept = TlsPolicies::open(outbound.store.clone()).unwrap().kept(&domain(), Timestamp::now()).unwrap();
    assert_eq!((kept.id.as_str(), kept.policy.mx), ("1", vec![MX.to_owned()]));
    let port = host.address.port();
    drop(host);
    // Other settings have everything looked up anew.
    outbound.set(Settings { policy_port: port, connections_max: 999, ..settings(peer.address.port()) });
    let id = outbound.owe(&["bob@shop.example"]).await;
    unmet(&outbound.verdict(id).await);
    assert!(peer.taken().is_empty());
}

/// Two domains at one host: one enforces, the other has no policy.
fn neighbours() -> Zone {
    announcing("1").mx("free.example", 10, MX)
}

#[tokio::test]
async fn a_policy_that_is_not_met_delays_its_own_domain_and_not_its_neighbour_at_the_same_host() {
    let (peer, host) = (peer(Script::polite()).await, policy_host("enforce", &[MX]).await);
    let outbound = outbound(neighbours(), &peer, &host, &[]).await;
    let strict = outbound.owe(&["ann@shop.example"]).await;
    unmet(&outbound.verdict(strict).await);
    // Nothing of that is remembered against the site.
    let free = outbound.owe(&["bob@free.example"]).await;
    assert_eq!(tls_used(&outbound.verdict(free).await), "none (not offered)");
    assert_eq!(peer.taken().len(), 1);
}

#[tokio::test]
async fn a_connection_opened_for_a_neighbour_is_never_used_for_a_domain_that_demands_more() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let (peer, host) = (peer(script).await, policy_host("enforce", &[MX]).await);
    let outbound = outbound(neighbours(), &peer, &host, &[certificate]).await;
    let free = outbound.owe(&["bob@free.example"]).await;
    assert!(tls_used(&outbound.verdict(free).await).ends_with("certificate verified"));
    let strict = outbound.owe(&["ann@shop.example"]).await;
    assert!(tls_used(&outbound.verdict(strict).await).ends_with("(enforce)"));
    let again = outbound.owe(&["eve@free.example"]).await;
    assert!(tls_used(&outbound.verdict(again).await).ends_with("certificate verified"));
    // One for each demand, and the idle one is found again by those who opened it.
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn a_connection_proved_for_one_name_is_not_used_for_another_at_the_same_address() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let peer = peer(script).await;
    let zone =
        zone().mx("other.example", 10, "mx.other.example").ipv4("mx.other.example", "127.0.1.1".parse().unwrap());
    let settings = Settings { mx_tls: MxTls::Verified, ..settings(peer.address.port()) };
    let outbound = Outbound::start_trusting("127.0.2.1", zone, settings, vec![certificate]).await;
    let fine = outbound.owe(&["ann@shop.example"]).await;
    assert!(tls_used(&outbound.verdict(fine).await).ends_with("certificate verified"));
    let other = outbound.owe(&["bob@other.example"]).await;
    let event = outbound.verdict(other).await;
    assert!(matches!(event, MailEvent::Deferred { .. }), "its certificate is for {MX}: {event:?}");
    assert_eq!(peer.taken().len(), 1);
}

/// The record that pins a certificate's key.
fn pin(certificate: &CertificateDer<'_>) -> Tlsa {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let data = Sha256::digest(parsed.tbs_certificate.subject_pki.raw).to_vec();
    Tlsa { usage: 3, selector: 1, matching: 1, data }
}

/// A signed zone whose host is pinned.
fn pinned(peer: &Peer, record: &Tlsa) -> Zone {
    zone().signed("shop.example").tlsa(&format!("_{}._tcp.{MX}", peer.address.port()), record)
}

async fn by_dane(zone: Zone, peer: &Peer) -> (MailEvent, Outbound) {
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    (outbound.verdict(id).await, outbound)
}

#[tokio::test]
async fn a_pinned_certificate_that_no_root_vouches_for_is_taken_and_the_trail_names_dane() {
    // RFC 7672 s3.1.1: neither name nor root counts.
    let (script, certificate) = Script::polite().with_tls("anything.example");
    let peer = peer(script).await;
    let (event, _outbound) = by_dane(pinned(&peer, &pin(&certificate)), &peer).await;
    let used = tls_used(&event);
    assert!(used.ends_with("certificate matches its TLSA record; policy: DANE of mx.shop.example"), "{used}");
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_makes_mail_wait_even_if_a_root_vouches_for_it() {
    let (_, pinned_one) = Script::polite().with_tls(MX);
    let (script, shown) = Script::polite().with_tls(MX);
    let peer = peer(script).await;
    let settings = settings(peer.address.port());
    let zone = pinned(&peer, &pin(&pinned_one));
    let outbound = Outbound::start_trusting("127.0.2.1", zone, settings, vec![shown]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let detail = unmet(&outbound.verdict(id).await);
    assert!(detail.starts_with("451 4.7.5 ") && detail.ends_with("demanded by DANE of mx.shop.example"), "{detail}");
    assert!(peer.taken().is_empty());
}

#[tokio::test]
async fn starttls_stripped_from_a_pinned_host_makes_mail_wait() {
    let (_, certificate) = Script::polite().with_tls(MX);
    let peer = peer(Script::polite()).await;
    let (event, _outbound) = by_dane(pinned(&peer, &pin(&certificate)), &peer).await;
    let detail = unmet(&event);
    assert!(detail.starts_with("451 4.7.4 "), "{detail}");
}

#[tokio::test]
async fn without_the_word_of_a_validating_resolver_there_is_no_dane() {
    let (script, certificate) = Script::polite().with_tls("anything.example");
    let peer = peer(script).await;
    let unsigned = zone().tlsa(&format!("_{}._tcp.{MX}", peer.address.port()), &pin(&certificate));
    let (event, _outbound) = by_dane(unsigned, &peer).await;
    let used = tls_used(&event);
    assert!(used.contains("not verified") && !used.contains("policy"), "{used}");
}

#[tokio::test]
async fn a_bogus_answer_about_a_pin_makes_mail_wait_for_dns() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let peer = peer(script).await;
    let name = format!("_{}._tcp.{MX}", peer.address.port());
    let (event, _outbound) =
        by_dane(pinned(&peer, &pin(&certificate)).trouble(&name, Trouble::ServerFailure), &peer).await;
    let MailEvent::Deferred { why: Why::Dns, detail, .. } = &event else { panic!("{event:?}") };
    assert!(detail.starts_with("451 4.4.3 TLSA of mx.shop.example"), "{detail}");
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn records_that_cannot_be_used_demand_encryption_and_no_certificate() {
    let odd = Tlsa { usage: 1, selector: 1, matching: 1, data: vec![0; 32] };
    let (script, _) = Script::polite().with_tls("anything.example");
    let encrypted = peer(script).await;
    let (event, _outbound) = by_dane(pinned(&encrypted, &odd), &encrypted).await;
    assert!(tls_used(&event).contains("not verified"), "{event:?}");
    drop(encrypted);
    let plain = peer(Script::polite()).await;
    let (event, _outbound) = by_dane(pinned(&plain, &odd), &plain).await;
    assert!(unmet(&event).starts_with("451 4.7.4 "));
}

#[tokio::test]
async fn where_dane_speaks_mta_sts_does_not() {
    let (script, certificate) = Script::polite().with_tls("anything.example");
    let (peer, host) = (peer(script).await, policy_host("enforce", &["mx.real.example"]).await);
    let tlsa = format!("_{}._tcp.{MX}", peer.address.port());
    let zone = announcing("1").signed("shop.example").tlsa(&tlsa, &pin(&certificate));
    let outbound = outbound(zone, &peer, &host, &[]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert!(tls_used(&outbound.verdict(id).await).ends_with("policy: DANE of mx.shop.example"));
}

#[tokio::test]
async fn mail_that_waited_for_a_policy_leaves_once_it_is_met() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let peer = peer(script.once("STARTTLS", Act::Say("454 4.7.0 not now"))).await;
    let host = policy_host("enforce", &[MX]).await;
    let outbound = outbound(announcing("1"), &peer, &host, &[certificate]).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    unmet(&outbound.verdict(id).await);
    outbound.queue.retry(&Actor::local(0), id, &[], Timestamp::now()).await.unwrap();
    assert!(until(|| outbound.verdicts(id).len() == 2).await, "{:?}", outbound.verdicts(id));
    assert!(tls_used(&outbound.verdicts(id)[1]).ends_with("(enforce)"));
}

#[tokio::test]
async fn an_operator_may_waive_what_a_domain_demands_and_the_trail_says_so() {
    let (peer, host) = (peer(Script::polite()).await, policy_host("enforce", &["mx.real.example"]).await);
    let outbound = outbound(announcing("1"), &peer, &host, &[]).await;
    let (actor, now) = (Actor::local(0), Timestamp::now());
    outbound.tls_policies.set_rule(&actor, domain(), DomainTls::Plaintext, now).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    let used = tls_used(&outbound.verdict(id).await);
    assert_eq!(used, "none (not offered); policy: the operator allows plain text to shop.example");
}

#[tokio::test]
async fn an_operator_may_demand_more_of_one_domain_than_of_others() {
    let (script, _) = Script::polite().with_tls(MX);
    let peer = peer(script).await;
    let zone = zone().mx("free.example", 10, MX);
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    let (actor, now) = (Actor::local(0), Timestamp::now());
    outbound.tls_policies.set_rule(&actor, domain(), DomainTls::Verified, now).await.unwrap();
    let strict = outbound.owe(&["ann@shop.example"]).await;
    let detail = unmet(&outbound.verdict(strict).await);
    assert!(detail.ends_with("demanded by the operator for shop.example"), "{detail}");
    let free = outbound.owe(&["bob@free.example"]).await;
    assert!(tls_used(&outbound.verdict(free).await).contains("not verified"));
}

/// Mail to `shop.example` and then to `free.example` over one connection: what is told of each.
async fn one_after_the_other(outbound: &Outbound, peer: &Peer) -> [postern::events::Peer; 2] {
    let mut told = Vec::new();
    for to in ["ann@shop.example", "bob@free.example"] {
        let id = outbound.owe(&[to]).await;
        let MailEvent::Delivered { peer, .. } = outbound.verdict(id).await else {
            panic!("{:?}", outbound.verdicts(id))
        };
        told.push(peer);
    }
    assert_eq!(peer.connections(), 1, "it was used again");
    [told.remove(0), told.remove(0)]
}

#[tokio::test]
async fn over_a_connection_used_again_each_domain_is_told_its_own_policy_and_host_and_no_others() {
    let peer = peer(Script::polite()).await;
    // Another name of the same machine.
    let zone = zone().mx("free.example", 10, "mx.free.example").ipv4("mx.free.example", "127.0.1.1".parse().unwrap());
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    let (actor, now) = (Actor::local(0), Timestamp::now());
    outbound.tls_policies.set_rule(&actor, domain(), DomainTls::Plaintext, now).await.unwrap();
    let [first, second] = one_after_the_other(&outbound, &peer).await;
    let waived = "none (not offered); policy: the operator allows plain text to shop.example";
    assert_eq!((first.host.as_str(), first.tls.as_str()), (MX, waived));
    assert_eq!((second.host.as_str(), second.tls.as_str()), ("mx.free.example", "none (not offered)"));
    let free = Domain::parse("free.example").unwrap();
    let seen = outbound.tls_memory.seen(&actor, &free).unwrap().expect("how its mail left is remembered");
    assert_eq!((seen.last_words.as_str(), seen.best_host.as_str()), ("none (not offered)", "mx.free.example"));
    // And back again.
    let id = outbound.owe(&["ann@shop.example"]).await;
    assert_eq!(tls_used(&outbound.verdict(id).await), waived);
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn domains_of_equal_demand_at_one_host_share_connections_and_not_the_words_for_it() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let peer = peer(script).await;
    let (zone, settings) = (zone().mx("free.example", 10, MX), settings(peer.address.port()));
    let outbound = Outbound::start_trusting("127.0.2.1", zone, settings, vec![certificate]).await;
    let (actor, now) = (Actor::local(0), Timestamp::now());
    let free = Domain::parse("free.example").unwrap();
    for domain in [domain(), free.clone()] {
        outbound.tls_policies.set_rule(&actor, domain, DomainTls::Verified, now).await.unwrap();
    }
    let [first, second] = one_after_the_other(&outbound, &peer).await;
    assert!(first.tls.ends_with("certificate verified; policy: the operator for shop.example"), "{}", first.tls);
    assert!(second.tls.ends_with("certificate verified; policy: the operator for free.example"), "{}", second.tls);
    let level = |domain: &Domain| outbound.tls_memory.seen(&actor, domain).unwrap().map(|seen| seen.best);
    assert_eq!(level(&free), Some(TlsLevel::Verified), "of each it is remembered");
    assert_eq!(level(&domain()), level(&free));
}
