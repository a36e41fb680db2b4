//! Size, by hand: `cargo test --release --test it scale -- --ignored --nocapture`.
//!
//! Two measurements that print and judge: what a message costs while more and more of them wait,
//! within one process; and how a daemon starts, holds and accepts with them in its store.
//! `POSTERN_SCALE_MESSAGES` says how many (a million), `POSTERN_SCALE_FOLDER` where (the temp folder).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern::background::Background;
use postern::events::{self, Archive, Consumer, LogFormat, LogLine, Peer};
use postern::ext::Timestamp;
use postern::mail::{
    Address, Body, Class, Domain, Hold, MailParameters, Notify, QueueId, Reply, ReversePath, Sealed, TenantId, VipId,
};
use postern::queue::{Needs8bit, NewMessage, NewRecipient, Outcome, Queue};
use postern::routing::{Lane, TransportName};
use postern::store::{self, Opened};

use crate::harness::load::SinkMood;
use crate::harness::promise::Promise;

/// Messages, unless `POSTERN_SCALE_MESSAGES` says otherwise.
const MESSAGES: usize = 1_000_000;
/// Recipient domains they go to.
const DOMAINS: usize = 10_000;
/// Octets of each.
const MESSAGE_BYTES: usize = 2_048;
/// Enqueues at the same time.
const WRITERS: usize = 256;
/// How long an accept rate is measured, each time.
const MEASURED: Duration = Duration::from_secs(10);
/// Messages that are accepted, claimed and settled to see what one costs.
const PROBES: usize = 20_000;
/// Of these, so many are accepted before they are delivered, as in a daemon that delivers at once.
const PROBES_AT_ONCE: usize = 1_000;
/// Deliveries of probes at the same time.
const DELIVERIES: usize = 64;
/// Linux counts processor time for its users in hundredths of a second.
const TICKS_PER_SECOND: u64 = 100;
/// Goals.
const SERVING_MAX: Duration = Duration::from_secs(5);
const RESIDENT_MIB_MAX: u64 = 1024;
/// A daemon with nothing to do takes less than this, in MiB.
const IDLE_MIB_MAX: u64 = 40;
const ACCEPT_RATIO_MIN: f64 = 0.8;
const SLOPE_MAX: f64 = 1.2;
/// A process that takes less than this share of a processor ...
const STILL_SHARE: f64 = 0.1;
/// ... for this long has nothing left to catch up with.
const STILL_FOR: Duration = Duration::from_secs(5);
/// How long that may take.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(15 * 60);

fn messages_wanted() -> usize {
    std::env::var("POSTERN_SCALE_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(MESSAGES)
}

fn folder() -> tempfile::TempDir {
    match std::env::var_os("POSTERN_SCALE_FOLDER") {
        Some(folder) => tempfile::tempdir_in(PathBuf::from(folder)).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// Whether a message may leave now, or waits as mail does that was tried and put off.
#[derive(Clone, Copy)]
enum When {
    Now,
    Tomorrow,
}

fn message(number: usize, (tenant, vip): (TenantId, VipId), when: When) -> NewMessage {
    let domain = format!("d{}.test", number % DOMAINS);
    let lane = Lane {
        vip,
        tenant,
        class: Class::Transactional,
        transport: TransportName::Mx,
        next_hop: Domain::parse(&domain).unwrap(),
    };
    let address = Address::parse(&format!("user{number}@{domain}")).unwrap();
    let hold = match when {
        When::Now => None,
        When::Tomorrow => Some(Hold::For(Duration::from_secs(24 * 3600))),
    };
    NewMessage {
        id: QueueId::new(Timestamp::now()),
        tenant,
        account: None,
        vip,
        class: Class::Transactional,
        source: "smtp".into(),
        reverse_path: ReversePath(Some(Address::parse("orders@shop.test").unwrap())),
        parameters: MailParameters { hold, ..MailParameters::default() },
        message: Sealed {
            head: Bytes::from_static(b"From: orders@shop.test\r\nSubject: your order\r\n\r\n"),
            body: Body::Memory(Bytes::from(vec![b'x'; MESSAGE_BYTES])),
        },
        needs_8bit: Needs8bit::No,
        subject: "your order".into(),
        message_id: format!("<{number}@shop.test>"),
        header_from: "orders@shop.test".into(),
        signatures: vec!["s1a2b3._domainkey.shop.test".into(), "s1a2b3-ed._domainkey.shop.test".into()],
        recipients: vec![NewRecipient { address, notify: Notify::default(), orcpt: None, lane: Some(lane) }],
        labels: Default::default(),
        return_path: None,
        signed: None,
        notice_about: None,
        beside: Default::default(),
    }
}

/// A store and its queue as the daemon runs them: housekeeping, mail log and archive beside them.
struct Engine {
    queue: Arc<Queue>,
    background: Background,
    opened: Opened,
    owner: (TenantId, VipId),
}

impl Engine {
    async fn open(data: &std::path::Path, owner: (TenantId, VipId)) -> Self {
        let settings = store::Settings { folder: data.join("store"), ..store::Settings::default() };
        let opened = store::open(settings).unwrap();
        let bell = events::Bell::default();
        let queue = Queue::open(opened.records.clone(), opened.bodies.clone(), postern::queue::Settings::default());
        let queue = Arc::new(queue.await.unwrap().with_bell(bell.clone()));
        let background = Background::new();
        let (kept, stop) = (queue.clone(), background.shutdown().clone());
        background.spawn("queue", async move { kept.keep(&stop).await });
        let log_line = LogLine::to(opened.records.clone(), LogFormat::Text, Box::new(std::io::sink()));
        let consumer: Arc<dyn Consumer> = Arc::new(log_line);
        let (names, records, stop) = (vec![consumer.name()], opened.records.clone(), background.shutdown().clone());
        background.spawn("events", async move { events::drive(&*records, &consumer, &bell, &stop).await });
        let archive = Arc::new(Archive::open(data.join("history")).unwrap());
        let (records, stop) = (opened.records.clone(), background.shutdown().clone());
        background.spawn("history", async move {
            let kept = (Duration::from_secs(30 * 24 * 3600), Default::default());
            archive.run(records, names, kept, &stop).await;
        });
        Self { queue, background, opened, owner }
    }

    /// Owes the messages of these numbers.
    async fn accept(&self, numbers: std::ops::Range<usize>, when: When) {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (queue, owner, numbers) = (self.queue.clone(), self.owner, numbers.clone());
            writers.spawn(async move {
                for number in numbers.skip(writer).step_by(WRITERS) {
                    queue.enqueue(message(number, owner, when), Timestamp::now()).await.unwrap();
                }
            });
        }
        writers.join_all().await;
    }

    /// Claims what is due and records it as delivered, until so many are.
    async fn deliver(&self, count: usize) {
        let peer = Peer {
            host: "mx.d.test".into(),
            address: "127.0.0.1:25".into(),
            source: "127.0.0.1".into(),
            tls: "TLSv1.3 TLS_AES_256_GCM_SHA384".into(),
        };
        let outcome = Outcome::Delivered {
            peer,
            reply: Reply::enhanced(250, 0, 0, "ok"),
            onward: postern::queue::Onward::Ourselves,
        };
        let (mut settled, mut running) = (0, tokio::task::JoinSet::new());
        while settled < count {
            for due in self.queue.some_lanes(DELIVERIES) {
                for claim in self.queue.claim(&due.lane, 10) {
                    while running.len() >= DELIVERIES {
                        running.join_next().await.unwrap().unwrap();
                    }
                    let (queue, outcome) = (self.queue.clone(), outcome.clone());
                    settled += 1;
                    running.spawn(async move {
                        let outcomes = claim.record.recipients.iter().map(|one| (one.number, outcome.clone()));
                        let outcomes = outcomes.collect();
                        queue.settle(claim, outcomes, Timestamp::now()).await.unwrap();
                    });
                }
            }
        }
        running.join_all().await;
    }

    async fn close(self) {
        assert_eq!(self.background.stop(Duration::from_secs(120)).await, 0);
        drop(self.queue);
        drop(self.opened);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Processor time this process has used.
fn cpu() -> Duration {
    cpu_of(std::process::id())
}

fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn a_message_costs_the_same_however_many_wait() {
    let wanted = messages_wanted();
    let folder = folder();
    println!(
        "messages waiting | resident MiB | CPU us to queue one | accepted and settled/s | CPU us for each \
         | CPU us for each if it outlives a checkpoint"
    );
    let costs = runtime().block_on(async {
        let engine = Engine::open(folder.path(), (TenantId(1), VipId(1))).await;
        let (mut waiting, mut costs) = (0, Vec::new());
        for depth in [wanted / 100, wanted / 10, wanted] {
            let (before, added) = (cpu(), depth - waiting);
            engine.accept(waiting..depth, When::Tomorrow).await;
            let to_queue = (cpu() - before).as_secs_f64() * 1e6 / added as f64;
            waiting = depth;
            // What the filling left to do by and by is not the probes' cost.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (before, began) = (cpu(), Instant::now());
            for first in (waiting..waiting + PROBES).step_by(PROBES_AT_ONCE) {
                engine.accept(first..first + PROBES_AT_ONCE, When::Now).await;
                engine.deliver(PROBES_AT_ONCE).await;
            }
            let rate = PROBES as f64 / began.elapsed().as_secs_f64();
            let cost = (cpu() - before).as_secs_f64() * 1e6 / PROBES as f64;
            let before = cpu();
            engine.accept(waiting..waiting + PROBES, When::Now).await;
            tokio::time::sleep(2 * store::Settings::default().checkpoint_every).await;
            engine.deliver(PROBES).await;
            let late = (cpu() - before).as_secs_f64() * 1e6 / PROBES as f64;
            let resident = resident_mib(std::process::id());
            println!("{waiting} | {resident} | {to_queue:.0} | {rate:.0} | {cost:.0} | {late:.0}");
            costs.push(cost);
        }
        engine.close().await;
        costs
    });
    let slope = costs.last().unwrap() / costs.first().unwrap();
    println!("the last depth costs {slope:.2} of the first");
    assert!(slope < SLOPE_MAX);
}

/// Messages accepted in a second while nothing else is measured; and the daemon's processor time for each of all
/// that were accepted and delivered, in microseconds.
fn accept_rate(promise: &Promise) -> (f64, f64) {
    let (all_before, cpu_before) = (promise.ledger.len(), cpu_of(promise.instance.pid()));
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(2));
    let (before, began) = (promise.ledger.len(), Instant::now());
    thread::sleep(MEASURED);
    let rate = (promise.ledger.len() - before) as f64 / began.elapsed().as_secs_f64();
    senders.stop();
    assert!(promise.settle().is_empty());
    let spent = cpu_of(promise.instance.pid()) - cpu_before;
    (rate, spent.as_secs_f64() * 1e6 / (promise.ledger.len() - all_before) as f64)
}

/// The queue was filled without the daemon: its consumers of events (search, statistics, webhooks...) have all of
/// it before them, which no daemon that accepted the messages itself would have. How long they take until the
/// process is still.
fn catch_up(pid: u32) -> Duration {
    let began = Instant::now();
    let mut still_since = Instant::now();
    while still_since.elapsed() < STILL_FOR {
        assert!(began.elapsed() < CAUGHT_UP_MAX, "the consumers are still at work");
        let before = cpu_of(pid);
        thread::sleep(Duration::from_secs(1));
        if (cpu_of(pid) - before).as_secs_f64() > STILL_SHARE {
            still_since = Instant::now();
        }
    }
    began.elapsed() - STILL_FOR
}

/// The one in the middle.
fn middle(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// How long until the door answers, from the start of the process.
fn start(promise: &mut Promise) -> Duration {
    let began = Instant::now();
    promise.instance.start();
    promise.instance.wait_for_door();
    began.elapsed()
}

fn owner(promise: &Promise) -> (TenantId, VipId) {
    let list = |what: &str| -> serde_json::Value {
        serde_json::from_str(&promise.instance.tool(&[what, "list", "--json"])).unwrap()
    };
    let id = |list: &serde_json::Value| list["rows"][0]["id"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    (id(&list("tenant")).parse().unwrap(), id(&list("vip")).parse().unwrap())
}

/// What a daemon with nothing to do takes, in MiB; said, and asserted of what is installed: debug builds are larger.
fn assert_idle(promise: &Promise) {
    let idle = resident_mib(promise.instance.pid());
    println!("idle, just made: {idle} MiB resident");
    assert!(cfg!(debug_assertions) || idle < IDLE_MIB_MAX, "{idle} MiB");
}

#[test]
#[ignore = "a measurement, of a release build"]
fn an_idle_daemon_is_small() {
    let folder = folder();
    let promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    thread::sleep(Duration::from_secs(10));
    assert_idle(&promise);
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn with_a_million_messages_queued_the_daemon_serves_at_once() {
    let wanted = messages_wanted();
    let folder = folder();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    promise.load.senders = 20;
    promise.load.sizes = vec![MESSAGE_BYTES];
    let owner = owner(&promise);
    let (empty, empty_cost): (Vec<_>, Vec<_>) = (0..3).map(|_| accept_rate(&promise)).unzip();
    println!("empty queue: {empty:.0?} accepted/s, {} MiB resident", resident_mib(promise.instance.pid()));
    assert!(promise.instance.stop().success());

    let began = Instant::now();
    runtime().block_on(async {
        let engine = Engine::open(&promise.instance.data, owner).await;
        engine.accept(0..wanted, When::Tomorrow).await;
        println!("{wanted} messages queued in {:?}", began.elapsed());
        engine.close().await;
    });
    println!("the filling process, which wrote them all: {} MiB resident", resident_mib(std::process::id()));
    let serving = start(&mut promise);
    println!("serving after {serving:?}, {} MiB resident", resident_mib(promise.instance.pid()));
    let caught_up = catch_up(promise.instance.pid());
    println!("its consumers caught up {caught_up:?} later: {} MiB resident", resident_mib(promise.instance.pid()));
    let (full, full_cost): (Vec<_>, Vec<_>) = (0..3).map(|_| accept_rate(&promise)).unzip();
    let resident = resident_mib(promise.instance.pid());
    println!("with {wanted} queued: {full:.0?} accepted/s, {resident} MiB resident");
    promise.instance.kill();
    let again = start(&mut promise);
    println!("killed; serving again after {again:?}, {} MiB resident", resident_mib(promise.instance.pid()));
    let (ratio, slope) = (middle(full) / middle(empty), middle(full_cost.clone()) / middle(empty_cost.clone()));
    println!("the full queue's middle rate is {ratio:.2} of the empty queue's");
    println!(
        "processor for each message, all of it: {empty_cost:.0?} us empty, {full_cost:.0?} full, {slope:.2} times"
    );
    assert!(serving < SERVING_MAX && again < SERVING_MAX);
    assert!(resident < RESIDENT_MIB_MAX);
    assert!(ratio >= ACCEPT_RATIO_MIN);
    assert!(slope < SLOPE_MAX);
}
