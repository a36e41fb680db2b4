//! What TLS came to with real peers is what is counted for reports (RFC 8460), and a report leaves once, signed,
//! whatever its receiver demands of TLS.

use std::net::Ipv4Addr;
use std::time::Duration;

use postern::access::Actor;
use postern::delivery::{DomainTls, Settings};
use postern::domains::{INSTANCE, Trust};
use postern::events::MailEvent;
use postern::ext::Timestamp;
use postern::mail::{Domain, VipId};
use postern::net::{Tlsa, Zone};
use postern::routing::TransportName;
use postern::tlsrpt::{self, Applied, Policy, Protection, Sending, Session};
use postern::vips::Owner;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::harness::daemon::{self, HOSTNAME, Running, operator};
use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};
use crate::harness::policy_host::PolicyHost;

const MX: &str = "mx.shop.example";

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn zone() -> Zone {
    Zone::new().mx("shop.example", 10, MX).ipv4(MX, "127.0.1.1".parse().unwrap())
}

fn announcing() -> Zone {
    zone().txt("_mta-sts.shop.example", "v=STSv1; id=1;").ipv4("mta-sts.shop.example", "127.0.1.2".parse().unwrap())
}

async fn peer(script: Script) -> Peer {
    Peer::start("127.0.1.1:0".parse().unwrap(), script).await
}

/// What is counted about a domain: `policy good/failed result=sessions@host`.
fn counted(outbound: &Outbound, name: &str) -> Vec<String> {
    let Ok((_, report)) = outbound.tls_reports.preview(&Actor::local(0), &domain(name)) else { return Vec::new() };
    let of_policy = |one: &tlsrpt::ReportedPolicy| {
        let mut text = format!(
            "{} {}/{}",
            one.policy.policy_type, one.summary.total_successful_session_count, one.summary.total_failure_session_count
        );
        for detail in &one.failure_details {
            let host = detail.receiving_mx_hostname.as_deref().unwrap_or("-");
            text.push_str(&format!(" {}={}@{host}", detail.result_type, detail.failed_session_count));
        }
        text
    };
    report.policies.iter().map(of_policy).collect()
}

/// One message to ann@shop.example, and what is counted then.
async fn after_one(outbound: &Outbound) -> (MailEvent, Vec<String>) {
    let id = outbound.owe(&["ann@shop.example"]).await;
    let event = outbound.verdict(id).await;
    (event, counted(outbound, "shop.example"))
}

#[tokio::test]
async fn without_a_policy_any_encryption_is_a_success_and_its_lack_is_told_with_host_and_addresses() {
    let (script, _) = Script::polite().with_tls("anything.example");
    let encrypted = peer(script).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(encrypted.address.port())).await;
    assert_eq!(after_one(&outbound).await.1, ["no-policy-found 1/0"]);
    drop(encrypted);
    let plain = peer(Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(plain.address.port())).await;
    assert_eq!(after_one(&outbound).await.1, ["no-policy-found 0/1 starttls-not-supported=1@mx.shop.example"]);
    let (_, report) = outbound.tls_reports.preview(&Actor::local(0), &domain("shop.example")).unwrap();
    let detail = &report.policies[0].failure_details[0];
    assert_eq!(detail.sending_mta_ip, Some("127.0.2.1".parse().unwrap()));
    assert_eq!(detail.receiving_ip, Some("127.0.1.1".parse().unwrap()));
}

#[tokio::test]
async fn a_handshake_that_fails_and_the_conversation_in_the_clear_after_it_are_one_failed_session() {
    let (script, _) = Script::polite().with_tls(MX);
    let peer = peer(script.always("STARTTLS", Act::BrokenHandshake)).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let (event, counted) = after_one(&outbound).await;
    assert!(matches!(event, MailEvent::Delivered { .. }), "{event:?}");
    assert_eq!(counted, ["no-policy-found 0/1 validation-failure=1@mx.shop.example"]);
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn tls_that_fails_at_the_command_or_after_the_handshake_is_one_failed_session_too() {
    let (script, certificate) = Script::polite().with_tls(MX);
    let (known_only, of_known) = Script::polite().with_tls_for_known_clients(MX, &rustls::version::TLS13);
    for script in [script.clone().always("STARTTLS", Act::Close), known_only.clone()] {
        let peer = peer(script).await;
        let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
        let (event, counted) = after_one(&outbound).await;
        assert!(matches!(event, MailEvent::Delivered { .. }), "{event:?}");
        assert_eq!(counted, ["no-policy-found 0/1 validation-failure=1@mx.shop.example"]);
    }
    for (script, root) in [(script.always("STARTTLS", Act::Close), certificate), (known_only, of_known)] {
        let (peer, host) = (peer(script).await, PolicyHost::start("127.0.1.2", "shop.example").await);
        host.publish("enforce", &[MX]);
        let outbound = trusting(announcing(), &peer, &host, &[root]).await;
        let (event, counted) = after_one(&outbound).await;
        assert!(matches!(event, MailEvent::Deferred { .. }), "{event:?}");
        assert_eq!(counted, ["sts 0/1 validation-failure=1@mx.shop.example"]);
    }
}

#[tokio::test]
async fn under_mta_sts_each_lack_is_told_as_the_rfc_names_it_in_testing_mode_too() {
    let (for_another, trusted) = Script::polite().with_tls("mx.somebody.example");
    let (nobody_vouches, _) = Script::polite().with_tls(MX);
    let (fine, fine_root) = Script::polite().with_tls(MX);
    for (script, roots, expected) in [
        (Script::polite(), vec![], "sts 0/1 starttls-not-supported=1@mx.shop.example"),
        (for_another, vec![trusted], "sts 0/1 certificate-host-mismatch=1@mx.shop.example"),
        (nobody_vouches, vec![], "sts 0/1 certificate-not-trusted=1@mx.shop.example"),
        (fine, vec![fine_root], "sts 1/0"),
    ] {
        for mode in ["testing", "enforce"] {
            let peer = peer(script.clone()).await;
            let host = PolicyHost::start("127.0.1.2", "shop.example").await;
            host.publish(mode, &[MX]);
            let outbound = trusting(announcing(), &peer, &host, &roots).await;
            let (event, counted) = after_one(&outbound).await;
            assert_eq!(counted, [expected], "{mode}");
            let is_delivered = matches!(event, MailEvent::Delivered { .. });
            assert_eq!(is_delivered, mode == "testing" || expected == "sts 1/0", "{event:?}");
        }
    }
}

async fn trusting(zone: Zone, peer: &Peer, host: &PolicyHost, roots: &[CertificateDer<'static>]) -> Outbound {
    let settings = Settings { policy_port: host.address.port(), ..settings(peer.address.port()) };
    let roots = roots.iter().cloned().chain([host.certificate.clone()]).collect();
    Outbound::start_trusting("127.0.2.1", zone, settings, roots).await
}

#[tokio::test]
async fn a_policy_that_cannot_be_had_and_one_that_does_not_name_the_host_are_told() {
    let (peer, host) = (peer(Script::polite()).await, PolicyHost::start("127.0.1.2", "shop.example").await);
    host.publish("enforce", &["mx.real.example"]);
    let outbound = trusting(announcing(), &peer, &host, &[]).await;
    assert_eq!(after_one(&outbound).await.1, ["sts 0/1 validation-failure=1@mx.shop.example"]);
    host.publish("nonsense", &[MX]);
    let outbound = trusting(announcing(), &peer, &host, &[]).await;
    assert_eq!(after_one(&outbound).await.1, ["sts 0/1 sts-policy-invalid=1@mx.shop.example"]);
    host.publish("enforce", &[MX]);
    let port = host.address.port();
    let settings = || Settings { policy_port: port, ..settings(peer.address.port()) };
    let outbound = Outbound::start("127.0.2.1", announcing(), settings()).await;
    assert_eq!(after_one(&outbound).await.1, ["sts 0/1 sts-webpki-invalid=1@mx.shop.example"]);
    drop(host);
    let outbound = Outbound::start("127.0.2.1", announcing(), settings()).await;
    assert_eq!(after_one(&outbound).await.1, ["sts 0/1 sts-policy-fetch-error=1@mx.shop.example"]);
}

#[tokio::test]
async fn dane_is_reported_under_the_name_of_its_records() {
    let pin = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let data = Sha256::digest(parsed.tbs_certificate.subject_pki.raw).to_vec();
        Tlsa { usage: 3, selector: 1, matching: 1, data }
    };
    let (script, certificate) = Script::polite().with_tls(MX);
    let (_, another) = Script::polite().with_tls(MX);
    let odd = Tlsa { usage: 1, selector: 1, matching: 1, data: vec![0; 32] };
    let peer = peer(script).await;
    for (record, expected) in [
        (pin(&certificate), "tlsa 1/0"),
        (pin(&another), "tlsa 0/1 certificate-host-mismatch=1@mx.shop.example"),
        (odd, "tlsa 0/1 tlsa-invalid=1@mx.shop.example"),
    ] {
        let signed = zone().signed("shop.example").tlsa(&format!("_{}._tcp.{MX}", peer.address.port()), &record);
        let outbound = Outbound::start("127.0.2.1", signed, settings(peer.address.port())).await;
        assert_eq!(after_one(&outbound).await.1, [expected]);
        let (_, report) = outbound.tls_reports.preview(&Actor::local(0), &domain("shop.example")).unwrap();
        assert_eq!(report.policies[0].policy.policy_domain, MX);
    }
}

#[tokio::test]
async fn a_connection_that_serves_a_second_domain_is_a_session_of_that_one_too_and_once() {
    let peer = peer(Script::polite()).await;
    let zone = zone().mx("free.example", 10, MX);
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    for to in ["ann@shop.example", "bob@free.example", "eve@shop.example", "joe@free.example"] {
        let id = outbound.owe(&[to]).await;
        outbound.verdict(id).await;
    }
    assert_eq!(peer.connections(), 1);
    for name in ["shop.example", "free.example"] {
        assert_eq!(counted(&outbound, name), ["no-policy-found 0/1 starttls-not-supported=1@mx.shop.example"]);
    }
}

#[tokio::test]
async fn what_an_operator_waived_is_not_reported() {
    let (peer, host) = (peer(Script::polite()).await, PolicyHost::start("127.0.1.2", "shop.example").await);
    host.publish("enforce", &[MX]);
    let outbound = trusting(announcing(), &peer, &host, &[]).await;
    let (rules, now) = (&outbound.tls_policies, Timestamp::now());
    rules.set_rule(&Actor::local(0), domain("shop.example"), DomainTls::Plaintext, now).await.unwrap();
    let (event, counted) = after_one(&outbound).await;
    assert!(matches!(event, MailEvent::Delivered { .. }) && counted.is_empty(), "{event:?} {counted:?}");
}

#[tokio::test]
async fn a_report_leaves_despite_the_policies_it_is_about_and_is_not_counted_itself() {
    let (peer, host) = (peer(Script::polite()).await, PolicyHost::start("127.0.1.2", "shop.example").await);
    host.publish("enforce", &[MX]);
    let outbound = trusting(announcing(), &peer, &host, &[]).await;
    let (rules, now) = (&outbound.tls_policies, Timestamp::now());
    rules.set_rule(&Actor::local(0), domain("shop.example"), DomainTls::Verified, now).await.unwrap();
    let (event, before) = after_one(&outbound).await;
    assert!(matches!(event, MailEvent::Deferred { .. }), "other mail waits: {event:?}");
    let mut message = outbound.message(&["tls@shop.example"]);
    let id = message.id;
    for recipient in &mut message.recipients {
        recipient.lane.as_mut().unwrap().transport = TransportName::MxDespiteTls;
    }
    outbound.queue.enqueue(message, Timestamp::now()).await.unwrap();
    let event = outbound.verdict(id).await;
    assert!(matches!(event, MailEvent::Delivered { .. }), "{event:?}");
    assert_eq!((peer.taken().len(), counted(&outbound, "shop.example")), (1, before));
}

/// A day that ended more than four and less than 48 hours ago: all its reports are due.
fn day_that_is_due() -> Timestamp {
    let four_hours_ago = Timestamp(Timestamp::now().0 - 4 * 3_600_000);
    tlsrpt::begins(tlsrpt::day_of(four_hours_ago) - 1).plus(Duration::from_secs(43_200))
}

#[tokio::test]
async fn a_daemon_counts_its_own_sessions_and_mails_what_is_due_once_over_restarts() {
    let peer = Peer::start("127.0.1.89:0".parse().unwrap(), Script::polite()).await;
    let (there, port) = (domain("there.test"), peer.address.port());
    let zone = Zone::new()
        .mx("there.test", 10, "mx.there.test")
        .ipv4("mx.there.test", Ipv4Addr::new(127, 0, 1, 89))
        .txt("_smtp._tls.there.test", "v=TLSRPTv1; rua=mailto:tls@there.test");
    let running = Running::start(zone, port).await;
    let on = |running: &Running| {
        let mut config = daemon::config(running.folder.path(), &running.zone, port);
        config.tls_reports.sending = Sending::On;
        running.daemon.reload(&config);
    };
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "out.postern.test", Owner::Shared).await;
    running.trusted_domain(tenant, "shop.test").await;
    let (own, now) = (domain(HOSTNAME), Timestamp::now());
    running.daemon.domains.set_trust(&operator(), (INSTANCE, &own), Trust::ByOperator, now).await.unwrap();
    on(&running);
    let login = running.account(tenant).await;
    let said = running.submit(&login, "a@shop.test", "ann@there.test", "From: a@shop.test\r\n\r\nhello\r\n").await;
    assert!(said.starts_with("250 "), "{said}");
    let reports = &running.daemon.tls_reports;
    let today = || reports.list(&operator()).unwrap().into_iter().find(|one| one.domain == there);
    assert!(until(|| today().is_some_and(|one| (one.successful, one.failed) == (0, 1))).await);
    // The day before yesterday, perhaps.
    let session = Session { domain: &there, vip: VipId(0), source: None, host: Some("mx.there.test"), address: None };
    let none: [Applied; 1] = [Policy::none(&there).into()];
    reports.count(&session, &none, &Protection::Verified, day_that_is_due());
    on(&running);
    let report = || peer.taken().into_iter().find(|one| one.recipients.iter().any(|to| to.contains("tls@there.test")));
    assert!(until(|| report().is_some()).await, "{:?}", reports.list(&operator()));
    let text = String::from_utf8(report().unwrap().text).unwrap();
    for line in [
        "DKIM-Signature: ",
        "TLS-Report-Domain: there.test\r\n",
        "TLS-Report-Submitter: mx.postern.test\r\n",
        "From: <postmaster@mx.postern.test>\r\n",
        "Content-Type: multipart/report; report-type=\"tlsrpt\";",
        "Content-Type: application/tlsrpt+gzip\r\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (folder, zone) = running.stop().await;
    let running = Running::start_in(folder, zone, port).await;
    on(&running);
    let listed = running.daemon.tls_reports.list(&operator()).unwrap();
    let states: Vec<bool> = listed.iter().map(|one| matches!(one.stage, tlsrpt::Stage::Sent(_))).collect();
    assert_eq!(states.iter().filter(|is_sent| **is_sent).count(), 1, "{listed:?}");
    assert!(listed.iter().any(|one| one.failed == 1), "today's counts survive: {listed:?}");
    running.stop().await;
    assert_eq!(peer.taken().len(), 2, "the mail and one report");
}
