//! Finding messages of a whole daemon: handed in by SMTP and HTTP, found by each of what people remember, shown
//! after they left the queue, and by nobody else.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::access::{Actor, Role};
use postern::ext::Timestamp;
use postern::net::{Zone, ZoneServer};
use postern::records::AdminError;
use postern::search::Criteria;
use postern::sink::Sink;
use postern::vips::Owner;
use serde_json::{Value, json};

use crate::harness::daemon::{Running, certificate_folder, config, new_folder, operator};
use crate::sending_by_http::ask;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PATIENCE: Duration = Duration::from_secs(60);

fn zone() -> Zone {
    Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", LOCALHOST)
}

fn sink(folder: &Path) -> Sink {
    let folder = certificate_folder(&folder.join("sink"), "mx.receiver.test");
    Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &folder).unwrap()
}

/// A tenant that may send by a shared virtual IP.
async fn shop(running: &Running, name: &str) {
    let tenant = running.tenant(name).await;
    if let Some(vip) = running.daemon.vips.by_address(LOCALHOST.into()) {
        let accounts = &running.daemon.accounts;
        accounts
            .change_tenant(
                &operator(),
                tenant,
                postern::accounts::TenantChange { default_vip: Some(Some(vip.clone())), ..Default::default() },
                Timestamp::now(),
            )
            .await
            .unwrap();
    }
    running.trusted_domain(tenant, &format!("{name}.example.com")).await;
}

/// What a search answers.
async fn found(running: &Running, query: &str) -> Vec<Value> {
    let (status, _, page) = ask(running, "GET", &format!("/messages?{query}"), None, Value::Null).await;
    assert_eq!(status, 200, "{query}: {page}");
    page["rows"].as_array().unwrap().clone()
}

/// Waits until a search finds so many.
async fn until_found(running: &Running, query: &str, count: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let rows = found(running, query).await;
        if rows.len() == count {
            return rows;
        }
        assert!(began.elapsed() < PATIENCE, "{query}: {} instead of {count}: {:?}", rows.len(), rows.first());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The page of a delivered message has what was said, and so has the command line if it is asked for.
async fn what_was_said(running: &Running, id: &str, page: &Value) {
    let (attempt, dialogue) = (&page["attempts"][0], &page["dialogues"][0]);
    assert_eq!((&attempt["dialogues"], &attempt["took_ms"]), (&json!([0]), &dialogue["took_ms"]), "{page}");
    let steps = dialogue["steps"].as_array().unwrap();
    let sent = |wanted: &str| steps.iter().find(|step| step["sent"].as_str().is_some_and(|sent| sent == wanted));
    assert!(sent("RCPT TO:<Someone@receiver.test>").is_some(), "{dialogue}");
    assert_eq!(sent(".").unwrap()["code"], json!(250), "{dialogue}");
    let tool = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(["messages", "show", id, "--socket"]).arg(&running.daemon.socket).args(more);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let short = String::from_utf8(tool(&[]).await.unwrap().stdout).unwrap();
    assert!(!short.contains("RCPT TO") && short.contains("--dialogue shows what was said"), "{short}");
    let long = String::from_utf8(tool(&["--dialogue"]).await.unwrap().stdout).unwrap();
    assert!(long.contains("> RCPT TO:<Someone@receiver.test>\n") && long.contains("< 354"), "{long}");
    assert!(long.lines().any(|line| line.starts_with("      < 250") && line.ends_with(" ms]")), "{long}");
}

/// The page of an erased message has its attempts, and nothing of what was said in them.
async fn nothing_was_said(running: &Running, id: &str) {
    let (_, _, page) = ask(running, "GET", &format!("/messages/{id}"), None, Value::Null).await;
    assert!(page["attempts"][0]["reply"].is_string() && page.get("dialogues").is_none(), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_by_everything_people_remember_of_it_and_by_nobody_else() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    let vip = running.vip(LOCALHOST, "out.example.com", Owner::Shared).await;
    assert_eq!(vip.ehlo.to_string(), "out.example.com");
    shop(&running, "shop").await;
    shop(&running, "rival").await;
    let tenant = running.daemon.accounts.tenant_named("shop").unwrap().id;
    let login = running.account(tenant).await;
    let letter = json!({
        "tenant": "shop", "from": "Shop <orders@shop.example.com>", "to": ["Someone@receiver.test"],
        "subject": "Your order 4711", "text": "x", "tags": ["invoice-eu"],
    });
    let (status, _, sent) = ask(&running, "POST", "/messages", None, letter).await;
    assert_eq!(status, 202, "{sent}");
    let (id, message_id) = (sent["id"].as_str().unwrap(), sent["message_id"].as_str().unwrap());
    let by_smtp = "From: <news@shop.example.com>\r\nTo: <other@receiver.test>\r\nSubject: Something else\r\n\r\nx";
    let reply = running.submit(&login, "news@shop.example.com", "other@receiver.test", by_smtp).await;
    assert!(reply.starts_with("250 "), "{reply}");
    let theirs = json!({
        "tenant": "rival", "from": "orders@rival.example.com", "to": ["someone@receiver.test"], "subject": "order",
        "text": "x",
    });
    let (_, _, theirs) = ask(&running, "POST", "/messages", None, theirs).await;

    let day = &Timestamp::now().rfc3339()[..10];
    let message_id = message_id.trim_matches(['<', '>']).replace('@', "%40");
    until_found(&running, "status=ok", 3).await;
    for query in [
        format!("id={id}"),
        format!("message_id={message_id}"),
        "tenant=shop&recipient=someone%40receiver.test".to_owned(),
        "sender=orders%40shop.example.com".to_owned(),
        "sender=shop.example.com&subject=ord%204711".to_owned(),
        "tag=invoice".to_owned(),
        "status=ok&subject=order&tenant=shop".to_owned(),
        "domain=receiv&tag=INVOICE-EU".to_owned(),
        "reply=mx.receiver.test%20250&subject=your".to_owned(),
        format!("from={day}&tag=invoice"),
    ] {
        let rows = found(&running, &query).await;
        let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(ids, [id], "{query}");
    }
    for query in ["until=2026-01-01", "recipient=some", "subject=zzz", "status=deferred", "domain=eceiver"] {
        assert_eq!(found(&running, query).await, Vec::<Value>::new(), "{query}");
    }
    let by_login = found(&running, &format!("smtp_account={}", login.login)).await;
    assert_eq!((by_login.len(), &by_login[0]["subject"]), (1, &json!("Something else")));

    let (status, _, page) = ask(&running, "GET", &format!("/messages/{id}"), None, Value::Null).await;
    assert_eq!((status, &page["retired"], &page["source"]), (200, &json!(true), &json!("api")), "{page}");
    let attempt = &page["attempts"][0];
    assert_eq!((&attempt["status"], &attempt["host"]), (&json!("ok"), &json!("mx.receiver.test")), "{page}");
    assert!(attempt["reply"].as_str().unwrap().starts_with("250") && attempt["tls"].is_string(), "{attempt}");
    assert_eq!(attempt["source"], json!("127.0.0.1"), "{attempt}");
    what_was_said(&running, id, &page).await;

    // Erased, it is nobody's to find.
    let (status, _, _) = ask(&running, "POST", &format!("/queue/{id}/erase"), None, Value::Null).await;
    assert_eq!(status, 204);
    nothing_was_said(&running, id).await;
    assert_eq!(found(&running, "tag=invoice").await, Vec::<Value>::new());
    let theirs = theirs["id"].as_str().unwrap();
    assert_eq!(found(&running, &format!("id={theirs}")).await.len(), 1);
    let owner = Actor::of("x", Role::TenantOwner(tenant));
    let criteria = Criteria { id: Some(theirs.parse().unwrap()), ..Criteria::default() };
    let search = Arc::clone(&running.daemon.search);
    assert!(search.find(&owner, criteria, None, 10).unwrap().hits.is_empty(), "another tenant's is not there");
    let rival = running.daemon.accounts.tenant_named("rival").unwrap().id;
    let criteria = Criteria { tenant: Some(rival), ..Criteria::default() };
    assert!(matches!(search.find(&owner, criteria, None, 10), Err(AdminError::Forbidden(_))));
    drop(sink);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_neither_gap_nor_repetition_and_a_lost_index_is_made_again() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    running.vip(LOCALHOST, "out.example.com", Owner::Shared).await;
    shop(&running, "shop").await;
    let mut sent = 0;
    let mut send = async |running: &Running, count: usize| {
        let mut ids = BTreeSet::new();
        for _ in 0..count {
            sent += 1;
            let letter = json!({
                "tenant": "shop", "from": "orders@shop.example.com", "to": ["a@receiver.test"],
                "subject": format!("number {sent}"), "text": "x",
            });
            let (status, _, answer) = ask(running, "POST", "/messages", None, letter).await;
            assert_eq!(status, 202, "{answer}");
            ids.insert(answer["id"].as_str().unwrap().to_owned());
        }
        ids
    };
    let first = send(&running, 30).await;
    until_found(&running, "subject=number&limit=250", 30).await;
    let (mut seen, mut cursor, mut all) = (Vec::new(), String::new(), first.len());
    loop {
        let path = format!("/messages?subject=number&limit=4{cursor}");
        let (_, _, page) = ask(&running, "GET", &path, None, Value::Null).await;
        seen.extend(page["rows"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
        all += send(&running, 2).await.len();
    }
    assert_eq!((seen.len(), seen.into_iter().collect::<BTreeSet<_>>()), (30, first));
    let before = until_found(&running, "status=ok&limit=250", all).await;
    let (folder, zone) = running.stop().await;
    std::fs::remove_dir_all(folder.path().join("data/search")).unwrap();
    let running = Running::start_in(folder, zone, sink.address.port()).await;
    assert_eq!(until_found(&running, "status=ok&limit=250", before.len()).await, before);
    drop(sink);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_says_how_long_its_messages_are_kept() {
    let zone = ZoneServer::bind(SocketAddr::from((LOCALHOST, 0)), Zone::new()).await.unwrap();
    let (folder, zone) = (new_folder(), Arc::new(zone));
    assert_eq!(config(folder.path(), &zone, 1).search.kept, Duration::from_secs(15 * 86_400));
    let running = Running::start_in(folder, zone, 1).await;
    shop(&running, "shop").await;
    let tenant = running.daemon.accounts.tenant_named("shop").unwrap().id;
    let kept = || running.daemon.search.kept(tenant);
    assert_eq!(kept(), Duration::from_secs(15 * 86_400));
    let accounts = &running.daemon.accounts;
    accounts
        .change_tenant(
            &operator(),
            tenant,
            postern::accounts::TenantChange { retention_days: Some(Some(30)), ..Default::default() },
            Timestamp::now(),
        )
        .await
        .unwrap();
    assert_eq!(kept(), Duration::from_secs(30 * 86_400));
    running.stop().await;
}

/// Messages in the index, and notes beside it of what is still to be taken off the disk.
async fn indexed(running: &Running) -> (Value, usize) {
    let (_, _, index) = ask(running, "GET", "/search", None, Value::Null).await;
    let forms = std::fs::read_dir(running.folder.path().join("data/search")).unwrap().flatten();
    let entries = forms.flat_map(|form| std::fs::read_dir(form.path()).unwrap().flatten());
    let is_note = |name: String| name.starts_with("gone-") || name.starts_with("purge-");
    let notes = entries.filter(|entry| is_note(entry.file_name().to_string_lossy().into_owned()));
    (index["messages"].clone(), notes.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_deleted_tenant_neither_counts_nor_messages_are_left() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    running.vip(LOCALHOST, "out.example.com", Owner::Shared).await;
    shop(&running, "shop").await;
    shop(&running, "rival").await;
    for (tenant, to) in [("shop", "zacharias@receiver.test"), ("rival", "anna@receiver.test")] {
        let letter = json!({
            "tenant": tenant, "from": format!("orders@{tenant}.example.com"), "to": [to], "subject": "order",
            "text": "x",
        });
        let (status, _, answer) = ask(&running, "POST", "/messages", None, letter).await;
        assert_eq!(status, 202, "{answer}");
    }
    until_found(&running, "status=ok", 2).await;
    let began = Instant::now();
    let counted = async || {
        let (status, _, page) = ask(&running, "GET", "/statistics?step=total&by=tenant", None, Value::Null).await;
        assert_eq!(status, 200, "{page}");
        let rows = page["rows"].as_array().unwrap().iter();
        let mut rows: Vec<(String, Value)> =
            rows.map(|row| (row["group"].as_str().unwrap().to_owned(), row["ok"].clone())).collect();
        rows.sort_by(|one, two| one.0.cmp(&two.0));
        rows
    };
    while counted().await != [("rival".to_owned(), json!(1)), ("shop".to_owned(), json!(1))] {
        assert!(began.elapsed() < PATIENCE, "{:?}", counted().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(indexed(&running).await, (json!(2), 0));
    let path = "/tenants/shop/deletion";
    let (status, _, answer) = ask(&running, "POST", path, None, json!({"grace_days": 0})).await;
    assert_eq!(status, 202, "{answer}");
    while ask(&running, "GET", "/tenants/shop", None, Value::Null).await.0 != 404
        || indexed(&running).await != (json!(1), 0)
    {
        assert!(began.elapsed() < 2 * PATIENCE, "it is still there: {:?}", indexed(&running).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(counted().await, [("rival".to_owned(), json!(1))]);
    assert_eq!(found(&running, "subject=order").await.len(), 1);
    drop(sink);
    running.stop().await;
}
