//! The whole daemon from start to stop: a message's path through every room, a restart with mail
//! owed, and the process around it (signals, systemd's notifications, exit codes).

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::access::Actor;
use postern::delivery::{Halt, Scope};
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::net::Zone;
use postern::sink::Sink;
use postern::vips::Owner;

use crate::harness::daemon::{Running, certificate_folder, config_text, http_get, new_folder};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const MESSAGE: &str = "From: Shop <orders@shop.example.com>\r\nTo: <someone@receiver.test>\r\nSubject: Your order\r\n\
                       \r\nThank you.\r\n";

fn zone() -> Zone {
    Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", LOCALHOST)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_from_a_login_to_the_mail_exchanger_signed() {
    let folder = new_folder();
    let sink_folder = certificate_folder(&folder.path().join("sink"), "mx.receiver.test");
    let sink = Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &sink_folder).unwrap();
    let running = Running::start(zone(), sink.address.port()).await;
    let tenant = running.tenant("shop").await;
    running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let login = running.account(tenant).await;

    let reply = running.submit(&login, "orders@shop.example.com", "someone@receiver.test", MESSAGE).await;
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    let received = tokio::task::spawn_blocking(move || sink.received.recv_timeout(Duration::from_secs(20)));
    let received = received.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&received.message).into_owned();
    assert_eq!(received.helo, "shop.example.com");
    assert_eq!(text.matches("DKIM-Signature:").count(), 2, "{text}");
    assert!(text.contains("d=shop.example.com"), "{text}");
    until("the queue to forget it", || running.daemon.queue.totals().lanes == 0).await;

    let monitor = running.daemon.monitor.unwrap();
    let ready = http_get(monitor, "/health/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("\"ready\":true"), "{ready}");
    assert!(http_get(monitor, "/metrics").await.contains("\npostern_ready 1"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_is_drained_no_new_mail_is_taken_while_the_queued_goes_out() {
    let folder = new_folder();
    let sink_folder = certificate_folder(&folder.path().join("sink"), "mx.receiver.test");
    let sink = Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &sink_folder).unwrap();
    let running = Running::start(zone(), sink.address.port()).await;
    let tenant = running.tenant("shop").await;
    let vip = running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let login = running.account(tenant).await;
    let (delivery, actor, now) = (&running.daemon.delivery, Actor::local(0), Timestamp::now());
    let hand_in = || running.submit(&login, "orders@shop.example.com", "someone@receiver.test", MESSAGE);

    // One is queued before and cannot leave yet.
    delivery.suspend(&actor, (Halt::Sending, Scope::All), ("wait", None), now).await.unwrap();
    let reply = hand_in().await;
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    let to = Domain::parse("receiver.test").unwrap();
    for (scope, expected) in [
        (Scope::Vip(vip.id), "451 4.3.2 No new mail is taken from here for now; try again later\r\n"),
        (Scope::Domain(to), "451 4.3.2 No new mail for receiver.test is taken from here for now; try again later\r\n"),
    ] {
        delivery.suspend(&actor, (Halt::Taking, scope.clone()), ("we move", None), now).await.unwrap();
        assert_eq!(hand_in().await, expected);
        assert!(delivery.resume(&actor, &scope, now).await.unwrap());
    }
    delivery.suspend(&actor, (Halt::Taking, Scope::All), ("we move", None), now).await.unwrap();
    assert!(hand_in().await.starts_with("451 4.3.2 "));
    assert_eq!(running.daemon.queue.totals().lanes, 1);
    // Resuming ends both; the drain is said again first thing.
    delivery.resume(&actor, &Scope::All, now).await.unwrap();
    delivery.suspend(&actor, (Halt::Taking, Scope::Vip(vip.id)), ("we move", None), now).await.unwrap();
    let received = tokio::task::spawn_blocking(move || sink.received.recv_timeout(Duration::from_secs(20)));
    assert_eq!(received.await.unwrap().unwrap().helo, "shop.example.com");
    assert!(hand_in().await.starts_with("451 4.3.2 "));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_is_owed_survives_a_restart() {
    // Nothing listens at the port of mail exchangers.
    let closed = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let running = Running::start(zone(), closed).await;
    let tenant = running.tenant("shop").await;
    running.vip(LOCALHOST, "shop.example.com", Owner::Shared).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let login = running.account(tenant).await;
    let reply = running.submit(&login, "orders@shop.example.com", "someone@receiver.test", MESSAGE).await;
    assert!(reply.starts_with("250 "), "{reply}");
    let (folder, zone) = running.stop().await;

    let sink_folder = certificate_folder(&folder.path().join("sink"), "mx.receiver.test");
    let sink = Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &sink_folder).unwrap();
    let running = Running::start_in(folder, Arc::clone(&zone), sink.address.port()).await;
    assert_eq!(running.daemon.accounts.tenant_named("shop").unwrap().id, tenant);
    assert_eq!(running.daemon.queue.totals().lanes, 1);
    running.stop().await;
}

struct Process {
    child: Child,
    notifications: UnixDatagram,
    folder: Arc<tempfile::TempDir>,
}

impl Process {
    fn start(more: &str) -> Self {
        let folder = new_folder();
        let path = folder.path().join("notify.sock");
        let notifications = UnixDatagram::bind(&path).unwrap();
        notifications.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        std::fs::write(folder.path().join("postern.toml"), config_text(folder.path(), more)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(["--config", &folder.path().join("postern.toml").display().to_string(), "serve"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000")
            .stderr(Stdio::from(std::fs::File::create(folder.path().join("log")).unwrap()))
            .spawn()
            .unwrap();
        Self { child, notifications, folder }
    }

    /// Waits for a notification that contains `wanted`.
    fn notified(&self, wanted: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            let read = self.notifications.recv(&mut bytes).unwrap_or_else(|error| {
                panic!("no {wanted}: {error}\n{}", self.log());
            });
            let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_ports() -> String {
    let ports: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind((LOCALHOST, 0)).unwrap()).collect();
    let port = |index: usize| ports[index].local_addr().unwrap().port();
    format!(
        "submission.tls_ports = [{}]\nsubmission.starttls_ports = [{}]\nmonitor.listen = \"127.0.0.1:{}\"\n",
        port(0),
        port(1),
        port(2)
    )
}

#[test]
fn systemd_is_told_ready_reloading_watchdog_and_stopping() {
    let mut process = Process::start(&free_ports());
    assert!(process.notified("READY=1").contains("STATUS=accepting mail"));
    process.notified("WATCHDOG=1");

    let path = process.folder.path().join("postern.toml");
    let sound = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{sound}\nlog.level = \"loud\"\n")).unwrap();
    process.signal(rustix::process::Signal::HUP);
    assert!(process.notified("RELOADING=1").contains("MONOTONIC_USEC="));
    process.notified("READY=1");
    assert!(process.log().contains("log.level: must be one of"), "{}", process.log());
    assert!(process.log().contains("the old one stays in use"));

    let live = "log.level = \"debug\"\nqueue.retry_first = \"7m\"\nsubmission.recipients_max = 200";
    std::fs::write(&path, format!("{sound}\n{live}\nstore.cache_bytes = \"32 MiB\"\n")).unwrap();
    process.signal(rustix::process::Signal::HUP);
    process.notified("RELOADING=1");
    process.notified("READY=1");
    for key in ["log.level", "queue.retry_first", "submission.recipients_max"] {
        assert!(process.log().contains(&format!("taken over setting=\"{key}\"")), "{}", process.log());
    }
    assert!(
        process.log().contains("changed; a restart takes it over setting=\"store.cache_bytes\""),
        "{}",
        process.log()
    );

    process.signal(rustix::process::Signal::TERM);
    process.notified("STOPPING=1");
    assert_eq!(process.child.wait().unwrap().code(), Some(0), "{}", process.log());
}

#[test]
fn a_daemon_that_crashes_leaves_no_core_with_its_keys() {
    let mut process = Process::start(&free_ports());
    process.notified("READY=1");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{line}");
    process.signal(rustix::process::Signal::ABORT);
    let ended = process.child.wait().unwrap();
    assert!(!std::os::unix::process::ExitStatusExt::core_dumped(&ended), "{ended}");
}

#[test]
fn no_secret_is_in_the_log_at_any_level() {
    let process = Process::start(&format!("log.level = \"trace\"\n{}", free_ports()));
    process.notified("READY=1");
    let folder = process.folder.path();
    let tool = |arguments: &[&str]| {
        let config = folder.join("postern.toml").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        let done = command.args(["--json", "--config", &config]).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    tool(&["tenant", "add", "shop"]);
    tool(&["vip", "add", "127.0.0.1", "--ehlo", "shop.example.com", "--tenant", "shop"]);
    tool(&["domain", "add", "shop", "shop.example.com"]);
    let key: serde_json::Value = serde_json::from_str(&tool(&["backup", "key"])).unwrap();
    let account: serde_json::Value = serde_json::from_str(&tool(&["smtp-account", "add", "shop"])).unwrap();
    let password = account["password"].as_str().unwrap();
    std::fs::write(folder.join("relay"), "relay-password-planted\n").unwrap();
    let relay = folder.join("relay").display().to_string();
    tool(&["route", "add", "relay.test", "--to", "relayed.test", "--user", "u", "--password-file", &relay]);
    tool(&["backup", "make", &folder.join("copy").display().to_string()]);
    let login = account["account"]["login"].as_str().unwrap();
    let exchange = log_in(folder, login, password);
    let master = std::fs::read_to_string(folder.join("master.key")).unwrap();
    let log = process.log();
    assert!(log.contains("DEBUG"), "the log is not at its most talkative");
    let secrets = [password, "relay-password-planted", key["key"].as_str().unwrap(), master.trim(), &exchange];
    for secret in secrets {
        assert!(secret.len() > 8 && !log.contains(secret), "{secret} is in the log");
    }
}

/// Logs in at the STARTTLS port in the clear first, which must be refused, then as it should be; what was
/// said after AUTH.
fn log_in(folder: &std::path::Path, login: &str, password: &str) -> String {
    use base64::Engine;
    let exchange = base64::engine::general_purpose::STANDARD.encode(format!("\0{login}\0{password}"));
    let text = std::fs::read_to_string(folder.join("postern.toml")).unwrap();
    let port = |key: &str| -> u16 {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let (tls, starttls) = (port("submission.tls_ports"), port("submission.starttls_ports"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clear = tokio::net::TcpStream::connect((LOCALHOST, starttls)).await.unwrap();
        let said = format!("EHLO c.test\r\nAUTH PLAIN {exchange}\r\nQUIT\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut clear, said.as_bytes()).await.unwrap();
        let mut reply = String::new();
        let _ = tokio::io::AsyncReadExt::read_to_string(&mut clear, &mut reply).await;
        assert!(!reply.contains("235"), "{reply}");
        let mut client = crate::harness::daemon::Client::connect((LOCALHOST, tls).into()).await;
        client.say("EHLO c.test").await;
        let reply = client.say(&format!("AUTH PLAIN {exchange}")).await;
        assert!(reply.starts_with("235"), "{reply}");
    });
    exchange
}

#[test]
fn a_second_daemon_in_the_same_folder_does_not_start() {
    let ports = free_ports();
    let mut first = Process::start(&ports);
    first.notified("READY=1");
    let config = first.folder.path().join("postern.toml").display().to_string();
    let second = Command::new(env!("CARGO_BIN_EXE_postern")).args(["--config", &config, "serve"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(String::from_utf8_lossy(&second.stderr).contains("admin.socket"));
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_wrong_configuration_exits_with_78_and_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postern.toml");
    std::fs::write(&path, "hostnam = \"mx.example.com\"\n[log]\nlevel = \"loud\"\n").unwrap();
    let config = path.display().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_postern")).args(["--config", &config, "serve"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(78), "{said}");
    assert!(said.contains(":1: hostnam: ") && said.contains(":3: log.level: "), "{said}");
}

#[test]
fn root_is_refused_unless_told() {
    if !rustix::process::geteuid().is_root() {
        crate::harness::not_run("root_is_refused_unless_told", "not run by root");
        return;
    }
    let folder = new_folder();
    let path = folder.path().join("postern.toml");
    let text = config_text(folder.path(), &free_ports()).replace("allow_root = true\n", "");
    std::fs::write(&path, text).unwrap();
    let config = path.display().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_postern")).args(["--config", &config, "serve"]).output().unwrap();
    assert_eq!(done.status.code(), Some(77), "{}", String::from_utf8_lossy(&done.stderr));
}
