//! Makes the fixture of a format: a daemon's folder with every kind of record in it, and a journal ahead of its records.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern::access::Role;
use postern::ext::Timestamp;
use postern::mail::QueueId;
use postern::people::{Credentials, NewUser};
use postern::queue::Filter;
use postern::routing::{NewRoute, RelayTls, RouteScope};
use postern::store::{self, Batch, Faults, Settings};
use postern::suppression::{NewEntry, Origin, Reason, Subject};
use postern::tlsrpt;
use postern::vips::Owner;
use postern::webhooks::{Kind, NewWebhook};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{LARGE_BYTES, LOCALHOST, message, received, sink, tar, tool, zone};
use crate::harness::daemon::{Running, config_text, domain, operator};
use crate::sending_by_http::ask;

/// Somebody who administers, and his password.
const EMAIL: &str = "anna@shop.example.com";
const PASSWORD: &str = "a password for a fixture";

fn pack(folder: &Path, names: &[&str], file: &Path) {
    let plain = folder.join("packed.tar");
    let mut arguments = vec!["--sparse", "--numeric-owner", "-cf", "packed.tar"];
    arguments.extend(names);
    tar(&arguments, folder);
    fs::write(file, zstd::encode_all(fs::File::open(&plain).unwrap(), 19).unwrap()).unwrap();
    fs::remove_file(plain).unwrap();
}

/// Makes everything a store can hold, and a backup of it, packed in `file`.
pub async fn make(file: &Path) {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    // Nobody answers there, so what is sent to it waits.
    let dead = zone().mx("elsewhere.test", 10, "mx.dead.test").ipv4("mx.dead.test", Ipv4Addr::new(127, 0, 0, 2));
    let running = Running::start(dead, sink.address.port()).await;
    let folder = running.folder.path().to_owned();
    fs::write(folder.join("postern.toml"), config_text(&folder, "")).unwrap();
    tool(&folder, &["backup", "key"]).await;
    let (now, actor) = (Timestamp::now(), operator());
    let tenant = running.tenant("shop").await;
    running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    running.daemon.domains.rotate(&actor, tenant, &domain("shop.example.com"), now).await.unwrap();
    let login = running.account(tenant).await;
    furnish(&running, &folder, &login.login).await;
    let from = "orders@shop.example.com";
    let sent = running.submit(&login, from, "someone@receiver.test", &message("Sent", 10)).await;
    assert!(sent.starts_with("250 "), "{sent}");
    let (_sink, _) = received(sink).await;
    while running.daemon.queue.totals().lanes > 0 || running.daemon.tls_reports.list(&actor).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (subject, bytes) in [("Small", 10), ("Large", LARGE_BYTES)] {
        let reply = running.submit(&login, from, "someone@elsewhere.test", &message(subject, bytes)).await;
        assert!(reply.starts_with("250 "), "{reply}");
    }
    let queued = running.daemon.queue.list(&actor, &Filter::default(), None, 10).unwrap().messages;
    assert_eq!(queued.len(), 2);
    for listed in queued {
        let held = running.daemon.queue.hold(&actor, listed.id, &[], now).await.unwrap();
        assert_eq!(held.recipients, [0]);
    }
    // One that is due and waits: what is sent there is suspended.
    let reply = running.submit(&login, from, "someone@suspended.test", &message("Waits", 10)).await;
    assert!(reply.starts_with("250 "), "{reply}");
    while running.daemon.queue.totals().claimed > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Events become past events once they are old enough, and every consumer has passed them.
    let archive = Arc::new(postern::events::Archive::open(folder.join("data/history")).unwrap());
    let later = now.plus(Duration::from_secs(3600));
    while archive.move_some(&running.daemon.store, &["log-line"], later).await.unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tool(&folder, &["backup", "make", &folder.join("backup.postern").display().to_string()]).await;
    let id = sent.split_whitespace().find_map(|word| word.parse::<QueueId>().ok()).unwrap();
    let facts = json!({
        "login": login.login, "password": login.password, "sent": id.to_string(),
        "queued": 3, "email": EMAIL, "email_password": PASSWORD,
    });
    fs::write(folder.join("facts.json"), facts.to_string()).unwrap();
    let (_kept, _) = running.stop().await;
    // Closing writes the copy of the records; whoever holds the store lets go of it only then.
    let lock = fs::File::open(folder.join("data/store/lock")).unwrap();
    let closed = tokio::task::spawn_blocking(move || lock.lock());
    closed.await.unwrap().unwrap();
    let names = ["data", "master.key", "backup.key", "backup.postern", "facts.json", "certificates"];
    pack(&folder, &names, file);
}

/// What people keep in it besides: a record of every kind that stays.
async fn furnish(running: &Running, folder: &Path, login: &str) {
    fs::write(folder.join("list.csv"), "left@receiver.test,manual,left\n").unwrap();
    let list = folder.join("list.csv").display().to_string();
    let acts: &[&[&str]] = &[
        &["domain", "return-path", "shop", "shop.example.com"],
        &["user", "invite", "shop", "invited@shop.example.com", "--role", "support"],
        &["key", "add", "shop", "--scope", "domains:read", "--name", "reader"],
        &["breaker", "set", "--tenant", "shop", "--volume", "7"],
        &["breaker", "waive", login, "--reason", "a fixture"],
        &["site", "set", "outlook", "--connections", "2"],
        &["site", "warm", "--ip", "127.0.0.1", "gmail"],
        &["tls", "set", "sealed.test", "encrypted"],
        &["delivery", "suspend", "--to", "suspended.test", "--reason", "a fixture"],
        &["suppression", "import", "shop", &list],
        &["queue", "hold", "--to", "held.test", "--for", "1d", "--reason", "a fixture"],
        &["tenant", "add", "leaving"],
        &["tenant", "delete", "leaving", "--grace-days", "30"],
    ];
    let told = tlsrpt::Settings { sending: tlsrpt::Sending::On, ..tlsrpt::Settings::default() };
    running.daemon.tls_reports.adjust(&told);
    for act in acts {
        tool(folder, act).await;
    }
    let (daemon, now, actor) = (&running.daemon, Timestamp::now(), operator());
    let tenant = daemon.accounts.tenant_named("shop").unwrap().id;
    let entry = NewEntry {
        subject: Subject::parse("gone@receiver.test").unwrap(),
        reason: Reason::Manual,
        origin: Origin::Operator,
        note: "left".to_owned(),
        expires: None,
    };
    daemon.suppression.add(&actor, tenant, entry, now).await.unwrap();
    let password = Zeroizing::new("relay password".to_owned());
    let route = NewRoute {
        scope: RouteScope::RecipientDomain(domain("relayed.test")),
        host: "relay.test".into(),
        port: 587,
        tls: RelayTls::Starttls,
        login: Some(("user".to_owned(), password)),
    };
    daemon.routes.add(&actor, route, now).await.unwrap();
    let new =
        NewUser { email: EMAIL.to_owned(), name: "Anna".to_owned(), role: Role::TenantOwner(tenant), accounts: None };
    let (_, link) = daemon.people.invite(&actor, new, now).await.unwrap();
    daemon.people.redeem(&link.token, Zeroizing::new(PASSWORD.to_owned()), None, now).await.unwrap();
    let from = IpAddr::V4(LOCALHOST);
    let (email, password, agent) = (EMAIL, PASSWORD, "a browser");
    let given = Credentials { email, tenant: None, password, code: None, passkey: None, from, agent };
    assert!(daemon.people.log_in(given, now).await.is_ok());
    let new = NewWebhook {
        name: "shop".to_owned(),
        url: "https://hooks.shop.example.com/".to_owned(),
        secondary_url: None,
        kinds: Kind::usual(),
        batch: 1,
        login: None,
    };
    daemon.webhooks.add(&actor, tenant, new, now).await.unwrap();
    let letter = json!({
        "tenant": "shop", "from": "orders@shop.example.com", "to": ["someone@receiver.test"], "subject": "Once", "text": "once",
    });
    let (status, _, answer): (u16, bool, Value) = ask(running, "POST", "/messages", Some("order-1"), letter).await;
    assert_eq!(status, 202, "{answer}");
}

/// Makes a store whose records are behind its journal, as after a power cut.
pub async fn make_crashed(file: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    faults.checkpoints_skipped.store(true, std::sync::atomic::Ordering::Release);
    let settings = Settings { folder: folder.path().join("open"), spare_segments: 0, ..Settings::default() };
    let opened = store::open_with(settings, faults).unwrap();
    for number in 0..5_u8 {
        let mut batch = Batch::new();
        batch.set(vec![b'T', number], vec![number; 10]).append(vec![b'e'], vec![number]);
        opened.records.commit(batch).await.unwrap();
    }
    let mut batch = Batch::new();
    batch.remove(vec![b'T', 0]);
    opened.records.commit(batch).await.unwrap();
    tar(&["--sparse", "-cf", "copy.tar", "open"], folder.path());
    drop(opened);
    fs::remove_dir_all(folder.path().join("open")).unwrap();
    tar(&["-xf", "copy.tar"], folder.path());
    fs::rename(folder.path().join("open"), folder.path().join("store")).unwrap();
    pack(folder.path(), &["store"], file);
}
