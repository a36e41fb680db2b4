//! Copies: taken from the running binary, checked, restored on a machine that has nothing but the file and
//! its key, and copied from one store to another.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::ext::Timestamp;
use postern::net::Zone;
use postern::sink::Sink;
use postern::vips::Owner;
use serde_json::Value;

use crate::harness::daemon::{Login, Running, certificate_folder, config_text, domain, http_get, operator};
use crate::sending_by_http::ask;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn zone() -> Zone {
    Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", LOCALHOST)
}

fn message(number: usize) -> String {
    format!(
        "From: Shop <orders@shop.example.com>\r\nTo: <someone@receiver.test>\r\nSubject: Order {number}\r\n\r\n{}\r\n",
        "Thank you for your order. ".repeat(number * 40)
    )
}

fn closed_port() -> u16 {
    std::net::TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// `postern ARGUMENTS` with the configuration of `folder`, off the async workers.
async fn tool(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("--config").arg(folder.join("postern.toml")).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A daemon with a tenant, a virtual IP, a domain, a login, and mail that nobody takes.
struct Shop {
    running: Running,
    login: Login,
    folder: PathBuf,
    key: PathBuf,
    file: PathBuf,
}

impl Shop {
    async fn open() -> Self {
        let running = Running::start(zone(), closed_port()).await;
        let folder = running.folder.path().to_owned();
        fs::write(folder.join("postern.toml"), config_text(&folder, "")).unwrap();
        let tenant = running.tenant("shop").await;
        running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
        running.trusted_domain(tenant, "shop.example.com").await;
        let login = running.account(tenant).await;
        let made = tool(&folder, &["backup", "key"]).await;
        assert!(made.status.success(), "{}", said(&made));
        let (key, file) = (folder.join("backup.key"), folder.join("copy.postern"));
        Self { running, login, folder, key, file }
    }

    async fn submit(&self, number: usize) {
        let to = "someone@receiver.test";
        let reply = self.running.submit(&self.login, "orders@shop.example.com", to, &message(number)).await;
        assert!(reply.starts_with("250 "), "{reply}");
    }

    async fn back_up(&self) {
        let made = tool(&self.folder, &["backup", "make", &text(&self.file)]).await;
        assert!(made.status.success(), "{}", said(&made));
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_under_load_restores_logins_keys_and_mail_that_arrives_once() {
    let shop = Shop::open().await;
    for number in 0..8 {
        shop.submit(number).await;
    }
    // Mail goes on coming in while the backup is taken; what had a 250 before it began must be in it.
    let file_text = text(&shop.file);
    let arguments = ["backup", "make", file_text.as_str()];
    let (made, ()) = tokio::join!(tool(&shop.folder, &arguments), async {
        for number in 8..20 {
            shop.submit(number).await;
        }
    });
    assert!(made.status.success(), "{}", said(&made));
    let verified = tool(&shop.folder, &["--json", "backup", "verify", &text(&shop.file)]).await;
    assert!(verified.status.success(), "{}", said(&verified));
    let counted: Value = serde_json::from_slice(&verified.stdout).unwrap();
    let in_it = usize::try_from(counted["messages"].as_u64().unwrap()).unwrap();
    assert!((8..=20).contains(&in_it), "{counted}");
    let Shop { login, folder, key, file, running } = shop;
    let (old_folder, _) = running.stop().await;
    let shop_files = (folder, key, file);

    let sink_folder = tempfile::tempdir().unwrap();
    let sink_folder = certificate_folder(sink_folder.path(), "mx.receiver.test");
    let sink = Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &sink_folder).unwrap();
    let zone = postern::net::ZoneServer::bind(SocketAddr::from((LOCALHOST, 0)), zone()).await.unwrap();
    let new_folder = restore_from(&shop_files, &["--with-queue"]).await;
    drop(old_folder);
    let again = Running::start_in(new_folder, Arc::new(zone), sink.address.port()).await;

    // Everything is held: nothing leaves by itself, and what was queued is there.
    let page = again.daemon.queue.list(&operator(), &postern::queue::Filter::default(), None, 100).unwrap();
    assert_eq!(page.messages.len(), in_it);
    assert_eq!(again.daemon.queue.totals().claimed, 0);
    // The login works and the domain's restored keys sign: a new message goes out at once, alone.
    let to = "someone@receiver.test";
    let reply = again.submit(&login, "orders@shop.example.com", to, &message(99)).await;
    assert!(reply.starts_with("250 "), "{reply}");
    let (sink, first) = received(sink).await;
    assert!(first.contains("Subject: Order 99") && first.matches("DKIM-Signature:").count() == 2, "{first}");
    assert!(again.daemon.domains.unusable_keys().is_empty());
    // Released, each arrives once, byte for byte what was signed then.
    for listed in &page.messages {
        again.daemon.queue.release_hold(&operator(), listed.id, &[], Timestamp::now()).await.unwrap();
    }
    let mut sink = sink;
    let mut subjects = Vec::new();
    for _ in 0..in_it {
        let (back, message) = received(sink).await;
        sink = back;
        assert_eq!(message.matches("DKIM-Signature:").count(), 2, "{message}");
        subjects.extend(message.lines().find_map(|line| line.strip_prefix("Subject: ")).map(str::to_owned));
    }
    until("the queue to be empty", || again.daemon.queue.totals().lanes == 0).await;
    assert!(sink.received.try_recv().is_err(), "nothing arrived twice");
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), in_it, "{subjects:?}");
    for number in 0..8 {
        assert!(subjects.contains(&format!("Order {number}")), "acknowledged before the backup: {number}");
    }
    again.stop().await;
}

/// Restores on a machine that has nothing but the file and its key; the folders are arranged as
/// [`Running::start_in`] expects them. `files` are the old folder, the key, the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_finished_is_known_to_status_doctor_and_the_metrics() {
    let shop = Shop::open().await;
    let (_, _, before) = ask(&shop.running, "GET", "/status", None, Value::Null).await;
    assert_eq!((&before["last_backup"], &before["backup_overdue"]), (&Value::Null, &Value::Bool(false)));
    let began = Timestamp::now();
    shop.back_up().await;
    let mut last = Value::Null;
    while last.is_null() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(Timestamp::now().since(began) < Duration::from_secs(60), "it is never known");
        last = ask(&shop.running, "GET", "/status", None, Value::Null).await.2["last_backup"].clone();
    }
    let at = Timestamp::from_rfc3339(last.as_str().unwrap()).unwrap();
    assert!(at.as_secs() >= began.as_secs(), "{last}");
    let doctor = tool(&shop.folder, &["doctor", "--offline"]).await;
    assert!(said(&doctor).contains("the last was finished at"), "{}", said(&doctor));
    let metrics = http_get(shop.running.daemon.monitor.unwrap(), "/metrics").await;
    assert!(metrics.contains(&format!("postern_backup_last_time_seconds {}", at.as_secs())), "{metrics}");
    shop.running.stop().await;
}

async fn restore_from(files: &(PathBuf, PathBuf, PathBuf), more: &[&str]) -> Arc<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("copied.key");
    fs::copy(&files.1, &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let into = folder.path().join("into");
    let (file, key, into_text) = (text(&files.2), text(&key), text(&into));
    let mut arguments = vec!["restore", file.as_str(), "--key", &key, "--into", &into_text];
    arguments.extend(more);
    let done = tool(folder.path(), &arguments).await;
    assert!(done.status.success(), "{}", said(&done));
    for (from, to) in [("data", "data"), ("config/master.key", "master.key"), ("config/certificates", "certificates")] {
        fs::rename(into.join(from), folder.path().join(to)).unwrap();
    }
    assert!(into.join("config/postern.toml").is_file());
    Arc::new(folder)
}

/// The next message at the sink, off the async workers.
async fn received(sink: Sink) -> (Sink, String) {
    let waited = tokio::task::spawn_blocking(move || {
        let message = sink.received.recv_timeout(Duration::from_secs(60)).unwrap();
        (sink, String::from_utf8_lossy(&message.message).into_owned())
    });
    waited.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_leaves_the_mail_out_unless_asked_and_never_overwrites() {
    let shop = Shop::open().await;
    shop.submit(1).await;
    let asked = postern::queue::NewSweep {
        act: postern::queue::BulkAct::Cancel,
        filter: postern::queue::Filter {
            recipient_domain: Some(domain("gone.test")),
            ..postern::queue::Filter::default()
        },
        reason: "gone".to_owned(),
        lasting: Some(Duration::from_secs(86_400)),
    };
    let queue = Arc::clone(&shop.running.daemon.queue);
    queue.begin_sweep(&operator(), asked, Timestamp::now()).await.unwrap();
    drop(queue);
    shop.back_up().await;
    let again = tool(&shop.folder, &["backup", "make", &text(&shop.file)]).await;
    assert!(!again.status.success() && said(&again).contains("never overwritten"), "{}", said(&again));
    let Shop { login, folder, key, file, running } = shop;
    let _kept = running.stop().await;
    let new = restore_from(&(folder, key, file), &[]).await;
    let zone = postern::net::ZoneServer::bind(SocketAddr::from((LOCALHOST, 0)), zone()).await.unwrap();
    let again = Running::start_in(new, Arc::new(zone), closed_port()).await;
    let page = again.daemon.queue.list(&operator(), &postern::queue::Filter::default(), None, 10).unwrap();
    assert!(page.messages.is_empty(), "{page:?}");
    let acts = again.daemon.queue.sweeps(&operator(), None).unwrap();
    let states: Vec<_> = acts.into_iter().map(|act| (act.number, act.state)).collect();
    assert_eq!(states, [(1, postern::queue::SweepState::Ended("restored from a backup".to_owned()))]);
    let tenant = again.daemon.accounts.tenant_named("shop").unwrap().id;
    assert!(again.daemon.domains.signer(tenant, &domain("shop.example.com")).is_ok());
    let to = "someone@receiver.test";
    assert!(again.submit(&login, "orders@shop.example.com", to, &message(2)).await.starts_with("250 "));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_genuine_ours_or_known_is_refused_with_its_own_exit_code() {
    let shop = Shop::open().await;
    shop.submit(30).await;
    shop.back_up().await;
    let whole = fs::read(&shop.file).unwrap();
    let spoilt = shop.folder.join("spoilt");
    let other = shop.folder.join("other.key");
    postern::seal::BackupKey::generate(&other).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let mut newer = whole.clone();
    newer[8] = 9;
    let cases: [(&str, &[u8], &Path, i32, &str); 5] = [
        ("cut off", &whole[..whole.len() - 20], &shop.key, 65, "cut off"),
        ("a flipped bit", &flipped, &shop.key, 65, "d"),
        (
            "another file",
            b"PK something that is long enough to have had a header in it, had it been one",
            &shop.key,
            65,
            "not a postern backup",
        ),
        ("another key", &whole, &other, 1, "another backup key"),
        ("a newer form", &newer, &shop.key, 78, "newer release"),
    ];
    for (what, bytes, key, code, words) in cases {
        fs::write(&spoilt, bytes).unwrap();
        let (file, key) = (text(&spoilt), text(key));
        let done = tool(&shop.folder, &["backup", "verify", &file, "--key", &key]).await;
        assert_eq!(done.status.code(), Some(code), "{what}: {}", said(&done));
        assert!(said(&done).contains(words), "{what}: {}", said(&done));
        let into = shop.folder.join(format!("into-{code}-{}", bytes.len()));
        let done = tool(&shop.folder, &["restore", &file, "--key", &key, "--into", &text(&into)]).await;
        assert_eq!(done.status.code(), Some(code), "{what}: {}", said(&done));
        assert!(!into.join("data").exists() && !into.join("config").exists(), "{what}: nothing that looks usable");
    }
    shop.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_in_a_backup_as_they_are_nor_in_any_answer() {
    let shop = Shop::open().await;
    shop.submit(1).await;
    shop.back_up().await;
    let master = fs::read_to_string(shop.folder.join("master.key")).unwrap();
    let backup = fs::read_to_string(&shop.key).unwrap();
    let (file, password) = (fs::read(&shop.file).unwrap(), shop.login.password.clone());
    let raw = |line: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(line.trim()).unwrap()
    };
    let secrets = [
        master.trim().as_bytes().to_vec(),
        raw(&master),
        backup.trim().as_bytes().to_vec(),
        raw(&backup),
        password.clone().into_bytes(),
    ];
    let holds = |bytes: &[u8], secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    let mut answers = Vec::new();
    for command in [
        &["status"][..],
        &["tenant", "show", "shop"],
        &["smtp-account", "list"],
        &["domain", "list"],
        &["queue", "list"],
        &["vip", "list"],
        &["route", "list"],
    ] {
        let mut arguments = vec!["--json"];
        arguments.extend(command);
        let answer = tool(&shop.folder, &arguments).await;
        assert!(answer.status.success(), "{}", said(&answer));
        answers.extend(answer.stdout);
    }
    for secret in &secrets {
        assert!(!holds(&file, secret) && !holds(&answers, secret));
    }
    shop.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_copied_into_a_new_folder_serves_as_the_old_one_did() {
    let shop = Shop::open().await;
    for number in 0..5 {
        shop.submit(number).await;
    }
    let busy = tool(&shop.folder, &["store", "migrate", "--into", &text(&shop.folder.join("new"))]).await;
    assert!(said(&busy).contains("in use by another process"), "{}", said(&busy));
    let Shop { folder, running, login, .. } = shop;
    let (kept, zone) = running.stop().await;
    fs::remove_dir_all(folder.join("new")).unwrap_or_default();
    let done = tool(&folder, &["store", "migrate", "--into", &text(&folder.join("new"))]).await;
    assert!(done.status.success() && said(&done).contains("read back as they were"), "{}", said(&done));
    fs::rename(folder.join("data"), folder.join("old")).unwrap();
    fs::rename(folder.join("new"), folder.join("data")).unwrap();
    let again = Running::start_in(kept, zone, closed_port()).await;
    let page = again.daemon.queue.list(&operator(), &postern::queue::Filter::default(), None, 10).unwrap();
    assert_eq!(page.messages.len(), 5);
    let to = "someone@receiver.test";
    assert!(again.submit(&login, "orders@shop.example.com", to, &message(2)).await.starts_with("250 "));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_release_is_refused_with_78_by_daemon_and_tools() {
    let shop = Shop::open().await;
    let Shop { folder, running, .. } = shop;
    let (kept, _) = running.stop().await;
    fs::write(folder.join("data/store/format"), "postern store 99\n").unwrap();
    for command in [&["serve"][..], &["store", "verify"], &["store", "salvage"]] {
        let done = tool(&folder, command).await;
        assert_eq!(done.status.code(), Some(78), "{command:?}: {}", said(&done));
        assert!(said(&done).contains("newer release"), "{command:?}: {}", said(&done));
    }
    drop(kept);
}

/// The exit of a process that may have been killed.
async fn cut_off(folder: &Path, arguments: &[&str], after: Duration) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("--config").arg(folder.join("postern.toml")).args(arguments);
    // A group of its own, so that the steps it starts are killed with it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(after);
        let group = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        child.wait().unwrap().success()
    });
    ended.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_cut_off_anywhere_has_no_file_under_its_name_and_is_made_again_by_the_same_command() {
    let shop = Shop::open().await;
    for number in 0..8 {
        shop.submit(number).await;
    }
    let make = ["backup", "make", &text(&shop.file)];
    let verify = ["backup", "verify", &text(&shop.file)];
    let mut cut = 0;
    for round in 0..12 {
        let ended = cut_off(&shop.folder, &make, Duration::from_millis(4 * round)).await;
        if !shop.file.exists() {
            assert!(!ended, "round {round}: success without a file");
            cut += 1;
            let made = tool(&shop.folder, &make).await;
            assert!(made.status.success(), "round {round}: {}", said(&made));
        }
        let verified = tool(&shop.folder, &verify).await;
        assert!(verified.status.success(), "round {round}: {}", said(&verified));
        fs::remove_file(&shop.file).unwrap();
    }
    assert!(cut > 0, "none was cut off");

    // Two at once, and somebody who would have another file written to.
    let part = shop.folder.join("copy.postern.part");
    let other = fs::File::create(&part).unwrap();
    other.lock().unwrap();
    let refused = tool(&shop.folder, &make).await;
    assert!(!refused.status.success() && said(&refused).contains("another backup is being fetched"));
    drop(other);
    fs::remove_file(&part).unwrap();
    std::os::unix::fs::symlink(shop.folder.join("postern.toml"), &part).unwrap();
    let before = fs::read(shop.folder.join("postern.toml")).unwrap();
    assert!(!tool(&shop.folder, &make).await.status.success());
    assert_eq!(fs::read(shop.folder.join("postern.toml")).unwrap(), before);
    shop.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_master_key_killed_anywhere_leaves_a_daemon_that_signs() {
    let shop = Shop::open().await;
    let Shop { folder, mut running, login, .. } = shop;
    let busy = tool(&folder, &["masterkey", "rotate"]).await;
    assert!(!busy.status.success() && said(&busy).contains("in use by another process"), "{}", said(&busy));
    let key_file = folder.join("master.key");
    let first = fs::read(&key_file).unwrap();
    let tenant = running.daemon.accounts.tenant_named("shop").unwrap().id;
    let mut finished = 0;
    for round in 0..12_u64 {
        let (kept, zone) = running.stop().await;
        if cut_off(&folder, &["masterkey", "rotate"], Duration::from_millis(15 * round)).await {
            finished += 1;
        }
        running = Running::start_in(kept, zone, closed_port()).await;
        assert!(running.daemon.domains.unusable_keys().is_empty(), "round {round}");
        assert!(running.daemon.domains.signer(tenant, &domain("shop.example.com")).is_ok(), "round {round}");
    }
    let (kept, zone) = running.stop().await;
    let done = tool(&folder, &["masterkey", "rotate"]).await;
    assert!(done.status.success() && said(&done).contains("holds a new key"), "{finished}: {}", said(&done));
    assert_ne!(fs::read(&key_file).unwrap(), first);
    assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    let running = Running::start_in(kept, zone, closed_port()).await;
    assert!(running.daemon.domains.unusable_keys().is_empty());
    let to = "someone@receiver.test";
    assert!(running.submit(&login, "orders@shop.example.com", to, &message(3)).await.starts_with("250 "));
    let (kept, zone) = running.stop().await;

    // The first key opens nothing any more: the daemon says whose mail it cannot sign.
    fs::write(&key_file, first).unwrap();
    let running = Running::start_in(kept, zone, closed_port()).await;
    assert!(!running.daemon.domains.unusable_keys().is_empty());
    running.stop().await;
}
