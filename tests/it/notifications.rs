//! Notifications by mail, from a whole daemon to a receiver: signed, from nobody, by the right virtual IP.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use postern::access::Role;
use postern::ext::Timestamp;
use postern::mail::UserId;
use postern::net::Zone;
use postern::people::NewUser;
use postern::vips::Owner;
use serde_json::{Value, json};

use crate::harness::daemon::{Running, operator};
use crate::harness::peer::{Peer, Script, Taken};
use crate::sending_by_http::ask;

const SHOP_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 71);
const SHARED_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 72);

/// The mail that is taken after `known` others.
async fn taken(peer: &Peer, known: usize) -> Taken {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(taken) = peer.taken().get(known) {
            return taken.clone();
        }
        assert!(Instant::now() < deadline, "no mail came: {:?}", peer.lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Its text without the line breaks of quoted-printable.
fn readable(mail: &Taken) -> String {
    String::from_utf8(mail.text.clone()).unwrap().replace("=\r\n", "")
}

impl Running {
    /// Somebody who has followed his link, or has not yet.
    async fn person(&self, email: &str, role: Role, is_active: bool) -> UserId {
        let (people, now) = (&self.daemon.people, Timestamp::now());
        let new = NewUser { email: email.to_owned(), name: String::new(), role, accounts: None };
        let (user, link) = people.invite(&operator(), new, now).await.unwrap();
        if is_active {
            let password = "a password of some length 4711".to_owned().into();
            people.redeem(&link.token, password, None, now).await.unwrap();
        }
        user.id
    }

    async fn wish(&self, user: UserId, body: Value) -> (u16, Value) {
        let (status, _, said) = ask(self, "PUT", &format!("/users/{user}/notification-mail"), None, body).await;
        (status, said)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_mailed_to_who_wished_it_signed_from_nobody_by_the_right_virtual_ip() {
    let peer = Peer::start("127.0.1.73:0".parse().unwrap(), Script::polite()).await;
    let zone = Zone::new().mx("people.test", 10, "mx.people.test").ipv4("mx.people.test", Ipv4Addr::new(127, 0, 1, 73));
    let running = Running::start(zone, peer.address.port()).await;
    let tenant = running.tenant("shop").await;
    running.vip(SHOP_ADDRESS, "out.shop.example.com", Owner::Tenant(tenant)).await;
    running.vip(SHARED_ADDRESS, "mx.shared.example.com", Owner::Shared).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let login = running.account(tenant).await;
    let analyst = running.person("analyst@people.test", Role::Analyst(tenant), true).await;
    let invited = running.person("invited@people.test", Role::TenantOwner(tenant), false).await;
    let admin = running.person("admin@people.test", Role::InstanceAdmin, true).await;

    let (status, shown) = running.wish(analyst, json!({"mail": true, "kinds": ["account-paused"]})).await;
    assert_eq!((status, &shown["kinds"]), (200, &json!(["account-paused"])));
    assert_eq!(running.wish(invited, json!({"mail": true})).await.0, 200);
    assert_eq!(running.wish(admin, json!({"mail": true})).await.0, 200);
    let (status, said) = running.wish(analyst, json!({"mail": true, "kinds": ["weather"]})).await;
    assert!(status == 422 || status == 400, "{status} {said}");
    let (_, _, shown) = ask(&running, "GET", &format!("/users/{analyst}/notification-mail"), None, Value::Null).await;
    assert_eq!(shown, json!({"mail": true, "kinds": ["account-paused"]}), "a mistake changed nothing");

    let account = running.daemon.accounts.smtp_account_named(&login.login).unwrap().id;
    running.daemon.breaker.pause(&operator(), account, "looks stolen", Timestamp::now()).await.unwrap();
    let mail = taken(&peer, 0).await;
    let text = readable(&mail);
    assert_eq!(mail.from, std::net::IpAddr::from(SHOP_ADDRESS), "by the tenant's own");
    assert!(mail.recipients.len() == 1 && mail.recipients[0].contains("analyst@people.test"), "{:?}", mail.recipients);
    assert!(mail.mail.starts_with("MAIL FROM:<>"), "from nobody: {}", mail.mail);
    for expected in
        ["DKIM-Signature:", "Auto-Submitted: auto-generated\r\n", "Subject: [shop] account-paused: ", "looks stolen"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }

    // There is no backup key, so a backup fails, and the instance's people are told.
    let (status, _, said) = ask(&running, "POST", "/backup", None, Value::Null).await;
    assert_eq!(status, 409, "{said}");
    let mail = taken(&peer, 1).await;
    let text = readable(&mail);
    assert_eq!(mail.from, std::net::IpAddr::from(SHARED_ADDRESS), "by a shared virtual IP");
    assert!(mail.recipients[0].contains("admin@people.test"), "{:?}", mail.recipients);
    assert!(text.contains("backup-failed: backup") && text.contains("postern backup key makes one"), "{text}");
    let (_, _, list) = ask(&running, "GET", "/notifications?unread=true", None, Value::Null).await;
    assert_eq!(list["rows"][0]["kind"], json!("backup-failed"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(peer.taken().len(), 2, "nobody else, and nothing twice: {:?}", peer.taken());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_a_persons_way_in_is_mailed_unasked_and_a_forgotten_password_is_chosen_anew_by_mail() {
    let peer = Peer::start("127.0.1.74:0".parse().unwrap(), Script::polite()).await;
    let zone = Zone::new().mx("people.test", 10, "mx.people.test").ipv4("mx.people.test", Ipv4Addr::new(127, 0, 1, 74));
    let running = Running::start(zone, peer.address.port()).await;
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::new(127, 0, 1, 75), "mx.shared.example.com", Owner::Shared).await;
    let anna = running.person("anna@people.test", Role::Developer(tenant), true).await;
    let boss = running.person("boss@people.test", Role::TenantOwner(tenant), true).await;

    let (status, _, link) = ask(&running, "POST", &format!("/users/{anna}/reset"), None, Value::Null).await;
    assert_eq!(status, 200, "{link}");
    let mail = taken(&peer, 0).await;
    let text = readable(&mail);
    assert!(mail.recipients.len() == 1 && mail.recipients[0].contains("anna@people.test"), "{:?}", mail.recipients);
    assert!(text.contains("login-security") && text.contains("a link to choose a new password for you"), "{text}");
    assert!(!text.contains(link["token"].as_str().unwrap()), "told of, not given: {text}");

    let (status, _, said) =
        ask(&running, "POST", "/session/forgotten", None, json!({"email": "nobody@people.test"})).await;
    assert_eq!((status, said), (202, Value::Null));
    let (status, _, said) =
        ask(&running, "POST", "/session/forgotten", None, json!({"email": "boss@people.test"})).await;
    assert_eq!((status, said), (202, Value::Null));
    let mail = taken(&peer, 1).await;
    let text = readable(&mail);
    assert!(mail.recipients.len() == 1 && mail.recipients[0].contains("boss@people.test"), "{:?}", mail.recipients);
    let token = text.split("\"token\": \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    let chosen = json!({"token": token, "password": "another horse entirely"});
    let (status, _, user) = ask(&running, "POST", "/session/redeem", None, chosen.clone()).await;
    assert_eq!((status, &user["id"]), (200, &json!(boss.to_string())), "{user}");
    assert_eq!(ask(&running, "POST", "/session/redeem", None, chosen).await.0, 404, "once");
    let mail = taken(&peer, 2).await;
    assert!(readable(&mail).contains("your password was changed"), "{}", readable(&mail));
    assert!(mail.recipients[0].contains("boss@people.test"), "{:?}", mail.recipients);
    running.stop().await;
}
