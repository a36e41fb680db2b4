//! What earlier releases stored is opened by this one: every folder of tests/data/stores, by the daemon, by the
//! tools, and after a crash. How a fixture is made is in docs/how-to/README.md, "a stored format".

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postern::ext::Timestamp;
use postern::mail::{Address, QueueId};
use postern::net::{Zone, ZoneServer};
use postern::queue::Filter;
use postern::routing::{NewRoute, RelayTls, RouteScope};
use postern::sink::Sink;
use postern::store::{self, Batch, Faults, Settings};
use postern::suppression::{NewEntry, Origin, Reason, Subject};
use postern::vips::Owner;
use zeroize::Zeroizing;

use crate::harness::daemon::{Login, Running, certificate_folder, config_text, domain, operator};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Made by `POSTERN_MAKE_FIXTURE=NAME cargo test --test it upgrade`; the name is the store's format.
const MAKE: &str = "POSTERN_MAKE_FIXTURE";
/// Longer than what lies beside others in a segment: it has one of its own.
const LARGE_BYTES: usize = 5 * 1024 * 1024;

fn stores() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stores")
}

fn zone() -> Zone {
    Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", LOCALHOST)
}

fn sink(folder: &Path) -> Sink {
    let folder = certificate_folder(&folder.join("sink"), "mx.receiver.test");
    Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &folder).unwrap()
}

fn message(subject: &str, bytes: usize) -> String {
    let line = format!("{}\r\n", "x".repeat(70));
    let body = line.repeat(bytes / line.len() + 1);
    format!("From: <orders@shop.example.com>\r\nTo: <someone@receiver.test>\r\nSubject: {subject}\r\n\r\n{body}")
}

fn tar(arguments: &[&str], folder: &Path) {
    let done = Command::new("tar").args(arguments).current_dir(folder).status().unwrap();
    assert!(done.success());
}

fn pack(folder: &Path, names: &[&str], file: &Path) {
    let plain = folder.join("packed.tar");
    let mut arguments = vec!["--sparse", "--numeric-owner", "-cf", "packed.tar"];
    arguments.extend(names);
    tar(&arguments, folder);
    fs::write(file, zstd::encode_all(fs::File::open(&plain).unwrap(), 19).unwrap()).unwrap();
    fs::remove_file(plain).unwrap();
}

fn unpack(file: &Path, folder: &Path) {
    let mut bytes = Vec::new();
    zstd::Decoder::new(fs::File::open(file).unwrap()).unwrap().read_to_end(&mut bytes).unwrap();
    fs::write(folder.join("packed.tar"), bytes).unwrap();
    tar(&["-xf", "packed.tar"], folder);
    fs::remove_file(folder.join("packed.tar")).unwrap();
    for key in ["master.key", "backup.key"] {
        if folder.join(key).exists() {
            fs::set_permissions(folder.join(key), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

async fn received(sink: Sink) -> (Sink, String) {
    let waited = tokio::task::spawn_blocking(move || {
        let message = sink.received.recv_timeout(Duration::from_secs(60)).unwrap();
        (sink, String::from_utf8_lossy(&message.message).into_owned())
    });
    waited.await.unwrap()
}

async fn tool(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("--config").arg(folder.join("postern.toml")).args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{arguments:?}: {said}");
    said
}

/// Makes everything a store can hold, and a backup of it.
async fn make(name: &str) {
    let into = stores().join(name);
    fs::create_dir_all(&into).unwrap();
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
    let entry = NewEntry {
        subject: Subject::parse("gone@receiver.test").unwrap(),
        reason: Reason::Manual,
        origin: Origin::Operator,
        note: "left".to_owned(),
        expires: None,
    };
    running.daemon.suppression.add(&actor, tenant, entry, now).await.unwrap();
    let password = Zeroizing::new("relay password".to_owned());
    let route = NewRoute {
        scope: RouteScope::RecipientDomain(domain("relayed.test")),
        host: "relay.test".into(),
        port: 587,
        tls: RelayTls::Starttls,
        login: Some(("user".to_owned(), password)),
    };
    running.daemon.routes.add(&actor, route, now).await.unwrap();
    let from = "orders@shop.example.com";
    let sent = running.submit(&login, from, "someone@receiver.test", &message("Sent", 10)).await;
    assert!(sent.starts_with("250 "), "{sent}");
    let (_sink, _) = received(sink).await;
    while running.daemon.queue.totals().lanes > 0 {
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
    let facts = serde_json::json!({ "login": login.login, "password": login.password, "sent": id.to_string() });
    fs::write(folder.join("facts.json"), facts.to_string()).unwrap();
    let (_kept, _) = running.stop().await;
    let names = ["data", "master.key", "backup.key", "backup.postern", "facts.json", "certificates"];
    pack(&folder, &names, &into.join("stopped.tar.zst"));
}

/// Makes a store whose records are behind its journal, as after a power cut.
async fn make_crashed(name: &str) {
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
    pack(folder.path(), &["store"], &stores().join(name).join("crashed.tar.zst"));
}

fn fixtures() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(stores()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_every_format_so_far_are_served_with_all_that_is_in_them() {
    if let Some(name) = std::env::var_os(MAKE) {
        make(&name.to_string_lossy()).await;
    }
    let fixtures = fixtures();
    assert!(fixtures.iter().any(|path| path.ends_with(store::FORMAT.to_string())), "this release's own is missing");
    for fixture in fixtures {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        unpack(&fixture.join("stopped.tar.zst"), folder.path());
        opens(Arc::clone(&folder), &fixture).await;
    }
}

async fn opens(folder: Arc<tempfile::TempDir>, fixture: &Path) {
    let (name, path) = (fixture.display(), folder.path().to_owned());
    fs::write(path.join("postern.toml"), config_text(&path, "")).unwrap();
    let said = tool(&path, &["store", "verify"]).await;
    assert!(!said.contains("damaged"), "{name}: {said}");
    let file = path.join("backup.postern").display().to_string();
    tool(&path, &["backup", "verify", &file]).await;
    let key = path.join("backup.key").display().to_string();
    let into = path.join("into").display().to_string();
    let said = tool(&path, &["restore", &file, "--key", &key, "--into", &into, "--with-queue"]).await;
    assert!(said.contains("2 messages of"), "{name}: {said}");

    let facts: serde_json::Value = serde_json::from_slice(&fs::read(path.join("facts.json")).unwrap()).unwrap();
    let fact = |key: &str| facts[key].as_str().unwrap().to_owned();
    let sink = sink(&path);
    let zone = zone().mx("elsewhere.test", 10, "mx.receiver.test");
    let zone = ZoneServer::bind(SocketAddr::from((LOCALHOST, 0)), zone).await.unwrap();
    let running = Running::start_in(folder, Arc::new(zone), sink.address.port()).await;
    let daemon = &running.daemon;
    let tenant = daemon.accounts.tenant_named("shop").unwrap().id;
    assert_eq!(daemon.vips.all().len(), 1, "{name}");
    assert!(daemon.domains.unusable_keys().is_empty(), "{name}");
    let status = daemon
        .domains
        .status(&operator(), tenant, &[domain("shop.example.com")], Timestamp::now())
        .await
        .unwrap()
        .remove(0);
    assert_eq!(status.retired.len(), 1, "{name}: the selectors before the rotation");
    assert!(
        daemon
            .suppression
            .contains(tenant, None, &Address::parse("gone@receiver.test").unwrap(), Timestamp::now())
            .unwrap(),
        "{name}"
    );
    let route = daemon.routes.table().routes.first().cloned().unwrap();
    assert_eq!(daemon.routes.login(&route).unwrap().1.as_str(), "relay password", "{name}");
    let shown = daemon.queue.show(&operator(), fact("sent").parse().unwrap()).unwrap();
    assert!(shown.message.is_none() && shown.history.is_some() && shown.events.len() >= 3, "{name}: {shown:?}");

    let page = daemon.queue.list(&operator(), &Filter::default(), None, 10).unwrap();
    assert_eq!(page.messages.len(), 2, "{name}");
    for listed in &page.messages {
        daemon.queue.release_hold(&operator(), listed.id, &[], Timestamp::now()).await.unwrap();
    }
    let (sink, one) = received(sink).await;
    let (sink, two) = received(sink).await;
    for subject in ["Subject: Small", "Subject: Large"] {
        assert_eq!([&one, &two].iter().filter(|text| text.contains(subject)).count(), 1, "{name}: {subject}");
    }
    assert!(one.len().max(two.len()) > LARGE_BYTES, "{name}");
    let login = Login { login: fact("login"), password: fact("password") };
    let from = "orders@shop.example.com";
    let reply = running.submit(&login, from, "someone@receiver.test", &message("New", 10)).await;
    assert!(reply.starts_with("250 "), "{name}: {reply}");
    let (_sink, new) = received(sink).await;
    assert_eq!(new.matches("DKIM-Signature:").count(), 2, "{name}");
    running.stop().await;
}

#[tokio::test]
async fn a_journal_of_every_format_so_far_is_replayed_after_a_crash() {
    if let Some(name) = std::env::var_os(MAKE) {
        make_crashed(&name.to_string_lossy()).await;
    }
    for fixture in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        unpack(&fixture.join("crashed.tar.zst"), folder.path());
        let opened = store::open(Settings { folder: folder.path().join("store"), ..Settings::default() }).unwrap();
        assert_eq!(opened.replayed_batches, 6, "{}", fixture.display());
        assert_eq!(opened.records.get(&[b'T', 0]), Ok(None));
        assert_eq!(opened.records.get(&[b'T', 4]), Ok(Some(vec![4; 10])));
        assert_eq!(opened.records.range(b"e", b"f", 100).unwrap().len(), 5);
        assert!(opened.engine.damage().is_empty());
    }
}

#[tokio::test]
async fn a_segment_of_a_newer_format_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { folder: folder.path().to_owned(), spare_segments: 0, ..Settings::default() };
    let opened = store::open(settings.clone()).unwrap();
    let mut batch = Batch::new();
    batch.set(vec![b'T'], vec![1]);
    opened.records.commit(batch).await.unwrap();
    drop(opened);
    let segment = fs::read_dir(folder.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    for at in [0, 4096] {
        bytes[at + 8..at + 12].copy_from_slice(&2_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[at..at + 92]);
        bytes[at + 92..at + 96].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&segment, &bytes).unwrap();
    let error = store::open(settings).err().unwrap();
    assert!(matches!(error, store::OpenError::Newer(_)), "{error}");
    assert!(error.to_string().contains("format 2"), "{error}");
    assert!(fs::read(&segment).unwrap() == bytes);
}
