//! Mail with return-paths of its own: each recipient has one in a transaction of its own; what comes back to
//! them later is an event, stops the address, and is told to the client; a forged or unproved report does nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use postern::events::{EventKind, MailEvent, Trail};
use postern::ext::Timestamp;
use postern::mail::dkim::{self, Algorithm, Algorithms, SignAs, SigningKeys};
use postern::mail::{Address, QueueId, SmtpAccountId, TenantId, read_whole};
use postern::net::Zone;
use postern::vips::Owner;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

use crate::harness::daemon::{Client, HOSTNAME, Login, Running, domain, operator};
use crate::harness::peer::{Peer, Script};
use crate::sending_by_http::ask;

const MESSAGE: &str = "From: shop@shop.test\r\nSubject: Order 17\r\nMessage-ID: <17@shop.test>\r\n\r\nhello\r\n";

/// Waits up to two minutes for something to become true.
async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}

/// Brings one message to the door for what comes back; the first refusal, or the reply to its end.
async fn bring(door: SocketAddr, from: &str, to: &str, message: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    let stream = loop {
        match TcpStream::connect(door).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut stream = BufStream::new(stream);
    let mut reply = heard(&mut stream).await;
    let commands = ["EHLO mx.there.test".to_owned(), format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>")];
    for line in commands.into_iter().chain(["DATA".to_owned(), format!("{message}\r\n.")]) {
        if !reply.starts_with(['2', '3']) {
            return reply;
        }
        stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        reply = heard(&mut stream).await;
    }
    reply
}

async fn heard(stream: &mut BufStream<TcpStream>) -> String {
    let mut reply = String::new();
    loop {
        let start = reply.len();
        let read = stream.read_line(&mut reply).await.unwrap();
        if read == 0 || reply.as_bytes()[start..].get(3) != Some(&b'-') {
            return reply;
        }
    }
}

struct Shop {
    running: Running,
    door: SocketAddr,
    peer: Peer,
    zone: Zone,
    tenant: TenantId,
    login: Login,
    account: SmtpAccountId,
}

impl Shop {
    async fn open() -> Self {
        let peer = Peer::start("127.0.1.88:0".parse().unwrap(), Script::polite()).await;
        let zone = Zone::new()
            .mx("there.test", 10, "mx.there.test")
            .mx("shop.test", 10, "mx.there.test")
            .ipv4("mx.there.test", Ipv4Addr::new(127, 0, 1, 88))
            .mx("bounce.shop.test", 10, HOSTNAME)
            .txt("bounce.shop.test", "v=spf1 -all");
        let (running, door) = Running::start_with_feedback(zone.clone(), peer.address.port()).await;
        let tenant = running.tenant("shop").await;
        running.vip(Ipv4Addr::LOCALHOST, "out.shop.test", Owner::Tenant(tenant)).await;
        running.trusted_domain(tenant, "shop.test").await;
        let login = running.account(tenant).await;
        let account = running.daemon.accounts.smtp_account_named(&login.login).unwrap().id;
        Self { running, door, peer, zone, tenant, login, account }
    }

    /// `postern domain return-path`, and its verification.
    async fn set_return_path(&self) {
        let (domains, own, now) = (&self.running.daemon.domains, domain("shop.test"), Timestamp::now());
        domains.set_return_path(&operator(), (self.tenant, &own), None, now).await.unwrap();
        domains.verify_return_path(&operator(), (self.tenant, &own), now).await.unwrap();
        assert_eq!(domains.return_name(self.tenant, &own), Some(domain("bounce.shop.test")));
    }

    async fn submit(&self, to: &str) -> QueueId {
        let reply = self.running.submit(&self.login, "shop@shop.test", to, MESSAGE).await;
        let (_, id) = reply.trim_end().rsplit_once(' ').unwrap();
        id.parse().unwrap_or_else(|_| panic!("{reply}"))
    }

    fn stops(&self, address: &str) -> bool {
        let list = &self.running.daemon.suppression;
        list.contains(self.tenant, Some(self.account), &Address::parse(address).unwrap(), Timestamp::now()).unwrap()
    }

    fn trail(&self, id: QueueId) -> Vec<MailEvent> {
        let events = Trail::new(self.running.daemon.store.clone()).of_message(id).unwrap();
        let mail = events.into_iter().filter_map(|event| match event.kind {
            EventKind::Mail(_, event) => Some(event),
            _ => None,
        });
        mail.collect()
    }

    /// The return-path said for the mail to `to`.
    async fn return_path_of(&self, to: &str) -> String {
        let is_there = || self.peer.taken().iter().any(|taken| taken.recipients.iter().any(|path| path.contains(to)));
        assert!(until(is_there).await, "mail to {to} is delivered");
        let taken = self.peer.taken();
        let own = taken.iter().find(|taken| taken.recipients.iter().any(|path| path.contains(to))).unwrap();
        own.mail.split(['<', '>']).nth(1).unwrap().to_owned()
    }
}

fn bounce(to: &str) -> String {
    format!(
        "From: MAILER-DAEMON@mx.there.test\r\nTo: <{to}>\r\nSubject: Undelivered\r\nAuto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nIt did not work.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n\
         Reporting-MTA: dns; mx.there.test\r\n\r\nFinal-Recipient: rfc822; ann@there.test\r\nAction: failed\r\n\
         Status: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 <ann@there.test> is gone\r\n\r\n--b--"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounce_that_comes_later_stops_the_address_and_is_told_to_the_client() {
    let shop = Shop::open().await;
    let before = shop.submit("first@there.test").await;
    assert_eq!(shop.return_path_of("first@there.test").await, "shop@shop.test", "without it the client's is kept");
    shop.set_return_path().await;
    let id = shop.submit("ann@there.test").await;
    let returned = shop.return_path_of("ann@there.test").await;
    assert!(returned.ends_with("@bounce.shop.test"), "{returned}");
    // What is not ours, and what is forged, is refused at RCPT.
    for (to, code) in [
        ("b0000@bounce.shop.test".to_owned(), "550 5.1.1"),
        (
            format!("b{}", returned.trim_start_matches('b').replacen(|digit: char| digit.is_ascii_digit(), "z", 1)),
            "550 5.1.1",
        ),
        ("ann@elsewhere.test".to_owned(), "550 5.7.1"),
    ] {
        let reply = bring(shop.door, "", &to, &bounce(&to)).await;
        assert!(reply.starts_with(code), "{to}: {reply}");
    }
    assert!(!shop.stops("ann@there.test"));
    let reply = bring(shop.door, "", &returned.to_uppercase(), &bounce(&returned)).await;
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    assert!(until(|| shop.stops("ann@there.test")).await, "the address is stopped");
    assert!(
        shop.trail(id)
            .iter()
            .any(|event| matches!(event, MailEvent::BouncedLater { recipients, .. } if recipients == &[0]))
    );
    assert!(!shop.trail(before).iter().any(|event| matches!(event, MailEvent::BouncedLater { .. })));
    // The client is told by a notice of ours, from nobody.
    assert!(until(|| shop.peer.taken().iter().any(|taken| taken.mail.contains("<>"))).await, "a notice goes out");
    let taken = shop.peer.taken();
    let notice = taken.iter().find(|taken| taken.mail.contains("<>")).unwrap();
    assert!(notice.recipients[0].contains("shop@shop.test"), "{:?}", notice.recipients);
    let text = String::from_utf8_lossy(&notice.text).into_owned();
    assert!(text.contains("Status: 5.1.1") && text.contains("Remote-MTA: dns; mx.there.test"), "{text}");
    // The next message to it shows `suppressed`, and none leaves.
    let (count, next) = (shop.peer.taken().len(), shop.submit("ann@there.test").await);
    assert!(
        shop.trail(next)
            .iter()
            .any(|event| matches!(event, MailEvent::Suppressed { recipients } if recipients == &[0]))
    );
    assert_eq!(shop.peer.taken().len(), count);
    shop.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_recipient_has_its_own_transaction_over_one_connection() {
    let shop = Shop::open().await;
    shop.set_return_path().await;
    let mut client = Client::connect(shop.running.tls).await;
    let plain = {
        use base64::Engine as _;
        let credentials = format!("\0{}\0{}", shop.login.login, shop.login.password);
        base64::engine::general_purpose::STANDARD.encode(credentials)
    };
    for line in [
        "EHLO client.test".to_owned(),
        format!("AUTH PLAIN {plain}"),
        "MAIL FROM:<shop@shop.test> ENVID=e1".to_owned(),
        "RCPT TO:<ann@there.test>".to_owned(),
        "RCPT TO:<bob@there.test>".to_owned(),
        "RCPT TO:<cat@there.test>".to_owned(),
        "DATA".to_owned(),
        format!("{MESSAGE}\r\n."),
    ] {
        let reply = client.say(&line).await;
        assert!(reply.starts_with(['2', '3']), "{line}: {reply}");
    }
    assert!(until(|| shop.peer.taken().len() == 3).await, "{} transactions", shop.peer.taken().len());
    let taken = shop.peer.taken();
    let mut paths: Vec<String> = taken.iter().map(|taken| taken.mail.clone()).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 3, "a return-path each: {paths:?}");
    assert!(taken.iter().all(|taken| taken.recipients.len() == 1));
    assert_eq!(shop.peer.connections(), 1, "over one connection");
    shop.running.stop().await;
}

/// A report about a message with that return-path, signed by reports.test if `keys` are given.
fn complaint(returned: &str, keys: Option<&SigningKeys>) -> String {
    let text = format!(
        "From: <fbl@reports.test>\r\nTo: fbl@{HOSTNAME}\r\nSubject: report\r\nDate: Sun, 22 Nov 2026 10:15:09 +0000\r\n\
         MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\n\
         Original-Mail-From: <{returned}>\r\n\r\n--b--\r\n"
    );
    let mut draft = read_whole(text.as_bytes(), 100_000).unwrap();
    if let Some(keys) = keys {
        let own = domain("reports.test");
        let sign_as = SignAs { domain: &own, rsa_selector: "r", ed25519_selector: "e", keys };
        for field in dkim::sign(&draft, &sign_as, Algorithms::RsaOnly, Timestamp::now()).unwrap() {
            draft.header.prepend_field(field);
        }
    }
    let mut octets = draft.header.to_bytes();
    octets.extend_from_slice(b"\r\n");
    draft.body.slices().for_each(|slice| octets.extend_from_slice(&slice.unwrap()));
    String::from_utf8(octets).unwrap().trim_end_matches("\r\n").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complaint_stops_the_address_and_counts_only_if_it_is_proved() {
    let shop = Shop::open().await;
    shop.set_return_path().await;
    let id = shop.submit("bob@there.test").await;
    let returned = shop.return_path_of("bob@there.test").await;
    let fbl = format!("fbl@{HOSTNAME}");
    let reply = bring(shop.door, "fbl@reports.test", &fbl, &complaint(&returned, None)).await;
    assert!(reply.starts_with("250"), "{reply}");
    let is_doubted = |event: &MailEvent| matches!(event, MailEvent::ComplaintDoubted { .. });
    assert!(until(|| shop.trail(id).iter().any(is_doubted)).await);
    let new = dkim::generate().unwrap();
    let keys = SigningKeys::from_pkcs8(&new.rsa, &new.ed25519).unwrap();
    shop.running.zone.replace(shop.zone.clone().txt("r._domainkey.reports.test", &keys.public_record(Algorithm::Rsa)));
    assert!(!shop.stops("bob@there.test"), "an unsigned report stops nobody");
    let reply = bring(shop.door, "fbl@reports.test", &fbl, &complaint(&returned, Some(&keys))).await;
    assert!(reply.starts_with("250"), "{reply}");
    assert!(until(|| shop.stops("bob@there.test")).await, "a signed one does");
    let complaints = || {
        let picture = shop.running.daemon.breaker.picture(&operator(), shop.account, Timestamp::now());
        picture.unwrap().figures.complaints
    };
    assert!(until(|| complaints() == 1).await, "the breaker counts it: {}", complaints());
    shop.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_to_the_postmaster_is_kept_and_forwarded_once() {
    let shop = Shop::open().await;
    let address = Ipv4Addr::new(127, 0, 1, 89);
    shop.running.vip(address, "shared.postern.test", Owner::Shared).await;
    let text = "From: <somebody@elsewhere.test>\r\nSubject: your mail\r\n\r\nPlease look at this.\r\n";
    for to in ["postmaster@shared.postern.test".to_owned(), format!("Abuse@{HOSTNAME}")] {
        let reply = bring(shop.door, "somebody@elsewhere.test", &to, text).await;
        assert!(reply.starts_with("250"), "{to}: {reply}");
    }
    assert!(until(|| shop.peer.taken().len() == 2).await, "both are forwarded");
    let taken = shop.peer.taken();
    assert!(taken.iter().all(|taken| taken.mail.contains("<>") && taken.recipients[0].contains("ops@there.test")));
    assert!(taken.iter().all(|taken| taken.from == std::net::IpAddr::V4(address)), "by a shared address only");
    let feedback = &shop.running.daemon.feedback;
    let letters = feedback.letters(&operator(), None, 10).unwrap().letters;
    assert_eq!(letters.iter().map(|letter| letter.subject.as_str()).collect::<Vec<_>>(), ["your mail", "your mail"]);
    // What was forwarded once, and comes back, is kept and goes no further.
    let again = String::from_utf8(taken[0].text.clone()).unwrap();
    let reply = bring(shop.door, "", &format!("postmaster@{HOSTNAME}"), again.trim_end_matches("\r\n")).await;
    assert!(reply.starts_with("250"), "{reply}");
    assert!(until(|| feedback.letters(&operator(), None, 10).unwrap().letters.len() == 3).await);
    let marker = bring(shop.door, "somebody@elsewhere.test", &format!("postmaster@{HOSTNAME}"), text).await;
    assert!(marker.starts_with("250"), "{marker}");
    assert!(until(|| shop.peer.taken().len() == 3).await, "one more, and not two");
    shop.running.stop().await;
}

/// 100 recipients of one message by HTTP, which knows no SMTP account.
async fn send_a_hundred(shop: &Shop, from: &str, headers: Value) {
    let to: Vec<String> = (0..100).map(|number| format!("r{number}@there.test")).collect();
    let message = json!({
        "tenant": "shop", "from": from, "to": to, "subject": "News", "text": "new", "class": "marketing",
        "headers": headers,
    });
    let (status, _, answer) = ask(&shop.running, "POST", "/messages", None, message).await;
    assert_eq!(status, 202, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_card_of_each_sending_domain_tells_its_own_rate_of_mail_by_http_too() {
    let shop = Shop::open().await;
    shop.set_return_path().await;
    shop.running.trusted_domain(shop.tenant, "other.test").await;
    let one_click = json!({
        "List-Unsubscribe": "<https://other.test/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    });
    send_a_hundred(&shop, "news@shop.test", json!({})).await;
    send_a_hundred(&shop, "news@other.test", one_click).await;
    let returned = shop.return_path_of("r7@there.test").await;
    let new = dkim::generate().unwrap();
    let keys = SigningKeys::from_pkcs8(&new.rsa, &new.ed25519).unwrap();
    shop.running.zone.replace(shop.zone.clone().txt("r._domainkey.reports.test", &keys.public_record(Algorithm::Rsa)));
    let reply =
        bring(shop.door, "fbl@reports.test", &format!("fbl@{HOSTNAME}"), &complaint(&returned, Some(&keys))).await;
    assert!(reply.starts_with("250"), "{reply}");

    let deadline = Instant::now() + Duration::from_secs(120);
    let query = "/statistics?by=sending_domain&step=total&tenant=shop";
    loop {
        let (_, _, told) = ask(&shop.running, "GET", query, None, Value::Null).await;
        let mut rows: Vec<_> = told["rows"].as_array().unwrap().iter().collect();
        rows.sort_by_key(|row| row["group"].as_str().unwrap().to_owned());
        let counted: Vec<Value> = rows
            .iter()
            .map(|row| json!([row["group"], row["ok"], row["complaint"], row["marketing"], row["one_click"]]))
            .collect();
        if counted == [json!(["other.test", 100, 0, 1, 1]), json!(["shop.test", 100, 1, 1, 0])] {
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let everything = [
        ("shop.test", "failing", "failing", "1 complaints about 100"),
        ("other.test", "met", "met", "0 complaints about 100"),
    ];
    for (name, complaints, one_click, told) in everything {
        let path = format!("/tenants/shop/domains/{name}/readiness");
        let (_, _, card) = ask(&shop.running, "GET", &path, None, Value::Null).await;
        let rule = |rule: &str| card["rules"].as_array().unwrap().iter().find(|own| own["rule"] == rule).unwrap();
        assert_eq!(
            (&rule("complaints")["stand"], &rule("one-click")["stand"]),
            (&json!(complaints), &json!(one_click)),
            "{card}"
        );
        assert!(rule("complaints")["detail"].as_str().unwrap().starts_with(told), "{card}");
    }
    shop.running.stop().await;
}
