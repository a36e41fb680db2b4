//! What earlier releases stored is opened by this one: every folder of tests/data/stores, by the daemon, by the
//! tools, and after a crash. How a fixture is made is in docs/how-to/README.md, "a stored format".

mod making;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postern::ext::Timestamp;
use postern::mail::Address;
use postern::net::{Zone, ZoneServer};
use postern::people::Credentials;
use postern::queue::Filter;
use postern::sink::Sink;
use postern::store::{self, Batch, Settings};

use crate::fuzz::targets::kinds::KINDS;
use crate::harness::daemon::{Login, Running, certificate_folder, config_text, domain, operator};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Made by `POSTERN_MAKE_FIXTURE=NAME cargo test --test it upgrade`; the name is the store's format.
const MAKE: &str = "POSTERN_MAKE_FIXTURE";
/// Longer than what lies beside others in a segment: it has one of its own.
const LARGE_BYTES: usize = 5 * 1024 * 1024;

/// A daemon's folder after an orderly stop.
const STOPPED: &str = "stopped.tar.zst";
/// A store whose records are behind its journal.
const CRASHED: &str = "crashed.tar.zst";
/// Kinds of record that are there for moments only: notices that are owed, a change of the master key under way.
const PASSING: &[&str] = &["NOTICE", "KEYRING"];

/// The SHA-256 before each entry of a chain, and what its head is made of: a number and such a hash.
const CHAIN_LINK_OCTETS: usize = 32;
const CHAIN_HEAD_OCTETS: usize = 40;

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

/// Where a fixture is to be made, if somebody asks for one.
fn to_make() -> Option<PathBuf> {
    let folder = stores().join(std::env::var_os(MAKE)?);
    fs::create_dir_all(&folder).unwrap();
    Some(folder)
}

/// The version byte of a record; 0 where there is none, as in an index.
fn version(first: u8, value: &[u8]) -> u8 {
    let record = match first {
        // An entry comes after its link in the chain; what has no entry is the chain's head.
        store::prefix::AUDIT if value.len() > CHAIN_HEAD_OCTETS => &value[CHAIN_LINK_OCTETS..],
        store::prefix::AUDIT => &[],
        _ => value,
    };
    record.first().copied().unwrap_or(0)
}

/// Every record in a packed folder.
fn records(packed: &Path) -> Vec<(store::Key, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    unpack(packed, folder.path());
    let opened = store::open(Settings { folder: folder.path().join("data/store"), ..Settings::default() }).unwrap();
    opened.records.range(&[1], &[u8::MAX; 64], usize::MAX).unwrap()
}

/// The kinds of record in a packed folder, as prefix and version byte.
fn kinds(packed: &Path) -> BTreeSet<(u8, u8)> {
    records(packed).iter().map(|(key, value)| (key[0], version(key[0], value))).collect()
}

#[test]
fn every_record_of_the_fixtures_is_read_by_a_kind_that_is_fuzzed() {
    let mut versions = 0;
    for entry in fs::read_dir(stores()).unwrap() {
        let path = entry.unwrap().path();
        let is_own = path.ends_with(store::FORMAT.to_string());
        versions += 1;
        for (key, value) in records(&path.join(STOPPED)).iter().filter(|(_, value)| !value.is_empty()) {
            let own = KINDS.iter().filter(|kind| kind.prefix == key[0]);
            let again: Vec<_> = own.filter_map(|kind| (kind.again)(value)).collect();
            let shown = format!("{} {}: {}", path.display(), key.escape_ascii(), value.escape_ascii());
            assert!(!again.is_empty(), "no kind in tests/fuzz/targets/kinds.rs reads {shown}");
            assert!(!is_own || again.contains(value), "no kind in tests/fuzz/targets/kinds.rs writes {shown}");
        }
    }
    assert!(versions >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_in_a_new_form_or_of_a_new_kind_asks_for_a_new_format_and_its_fixture() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join(STOPPED);
    making::make(&packed).await;
    let new = kinds(&packed);
    let own = stores().join(store::FORMAT.to_string()).join(STOPPED);
    let known = kinds(&own);
    let firsts: BTreeSet<u8> = known.iter().map(|(first, _)| *first).collect();
    let shown = |kinds: BTreeSet<(u8, u8)>| -> Vec<_> {
        kinds.into_iter().map(|(first, version)| (char::from(first), version)).collect()
    };
    assert_eq!(shown(new), shown(known), "raise FORMAT and make its fixture: docs/how-to/README.md, a stored format");
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/mod.rs")).unwrap();
    let declared = source.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": u8 = b'"));
    let declared: Vec<_> = declared.filter(|(name, _)| !PASSING.contains(name)).collect();
    assert!(declared.len() > 30, "{declared:?}");
    for (name, prefix) in declared {
        let first = prefix.as_bytes()[0];
        assert!(firsts.contains(&first), "no record of {name} in the fixture: making.rs is to make one");
    }
}

fn fixtures() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(stores()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_every_format_so_far_are_served_with_all_that_is_in_them() {
    if let Some(folder) = to_make() {
        making::make(&folder.join(STOPPED)).await;
    }
    let fixtures = fixtures();
    assert!(fixtures.iter().any(|path| path.ends_with(store::FORMAT.to_string())), "this release's own is missing");
    for fixture in fixtures {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        unpack(&fixture.join(STOPPED), folder.path());
        opens(Arc::clone(&folder), &fixture).await;
    }
}

async fn opens(folder: Arc<tempfile::TempDir>, fixture: &Path) {
    let (name, path) = (fixture.display(), folder.path().to_owned());
    fs::write(path.join("postern.toml"), config_text(&path, "")).unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&fs::read(path.join("facts.json")).unwrap()).unwrap();
    let queued = facts["queued"].as_u64().unwrap_or(2);
    let said = tool(&path, &["store", "verify"]).await;
    assert!(!said.contains("damaged"), "{name}: {said}");
    let file = path.join("backup.postern").display().to_string();
    tool(&path, &["backup", "verify", &file]).await;
    let key = path.join("backup.key").display().to_string();
    let into = path.join("into").display().to_string();
    let said = tool(&path, &["restore", &file, "--key", &key, "--into", &into, "--with-queue"]).await;
    assert!(said.contains(&format!("{queued} messages of")), "{name}: {said}");

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
    let held: Vec<_> = page.messages.iter().filter(|listed| listed.held == 1).collect();
    assert_eq!(held.len(), 2, "{name}");
    assert_eq!(page.messages.len() as u64, queued, "{name}");
    for listed in held {
        daemon.queue.release_hold(&operator(), listed.id, &[], Timestamp::now()).await.unwrap();
    }
    let (sink, one) = received(sink).await;
    let (sink, two) = received(sink).await;
    for subject in ["Subject: Small", "Subject: Large"] {
        assert_eq!([&one, &two].iter().filter(|text| text.contains(subject)).count(), 1, "{name}: {subject}");
    }
    assert!(one.len().max(two.len()) > LARGE_BYTES, "{name}");
    if let Some(email) = facts["email"].as_str() {
        let (password, from) = (fact("email_password"), LOCALHOST.into());
        let (password, agent) = (password.as_str(), "a browser");
        let given = Credentials { email, tenant: None, password, code: None, passkey: None, from, agent };
        assert!(daemon.people.log_in(given, Timestamp::now()).await.is_ok(), "{name}");
        assert_eq!(daemon.webhooks.list(&operator(), tenant).unwrap().len(), 1, "{name}");
        assert_eq!(daemon.people.keys(&operator(), Some(tenant)).unwrap().len(), 1, "{name}");
    }
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
    if let Some(folder) = to_make() {
        making::make_crashed(&folder.join(CRASHED)).await;
    }
    for fixture in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        unpack(&fixture.join(CRASHED), folder.path());
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
