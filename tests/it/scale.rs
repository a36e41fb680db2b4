//! Start-up and acceptance with a long queue, by hand:
//! `cargo test --release --test it scale -- --ignored --nocapture`.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern::ext::Timestamp;
use postern::mail::{
    Address, Body, Class, Domain, Hold, MailParameters, Notify, QueueId, ReversePath, Sealed, TenantId, VipId,
};
use postern::queue::{Needs8bit, NewMessage, NewRecipient, Queue};
use postern::routing::{Lane, TransportName};
use postern::store;

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
/// How long the accept rate is measured.
const MEASURED: Duration = Duration::from_secs(20);

fn message(number: usize, tenant: TenantId, vip: VipId) -> NewMessage {
    let domain = format!("d{}.test", number % DOMAINS);
    let lane = Lane {
        vip,
        tenant,
        class: Class::Transactional,
        transport: TransportName::Mx,
        next_hop: Domain::parse(&domain).unwrap(),
    };
    let address = Address::parse(&format!("user{number}@{domain}")).unwrap();
    NewMessage {
        id: QueueId::new(Timestamp::now()),
        tenant,
        account: None,
        vip,
        class: Class::Transactional,
        source: "smtp".into(),
        reverse_path: ReversePath(Some(Address::parse("orders@shop.test").unwrap())),
        // Waits, as mail does that was tried and put off.
        parameters: MailParameters {
            hold: Some(Hold::For(Duration::from_secs(24 * 3600))),
            ..MailParameters::default()
        },
        message: Sealed {
            head: Bytes::from_static(b"From: orders@shop.test\r\nSubject: your order\r\n\r\n"),
            body: Body::Memory(Bytes::from(vec![b'x'; MESSAGE_BYTES])),
        },
        needs_8bit: Needs8bit::No,
        subject: "your order".into(),
        message_id: format!("<{number}@shop.test>"),
        header_from: "orders@shop.test".into(),
        signatures: Vec::new(),
        recipients: vec![NewRecipient { address, notify: Notify::default(), orcpt: None, lane: Some(lane) }],
        notice_about: None,
    }
}

fn fill(promise: &Promise, messages: usize, tenant: TenantId, vip: VipId) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let settings = store::Settings { folder: promise.instance.data.join("store"), ..store::Settings::default() };
    let opened = store::open(settings).unwrap();
    runtime.block_on(async {
        let queue = Queue::open(opened.records.clone(), opened.bodies.clone(), postern::queue::Settings::default());
        let queue = Arc::new(queue.await.unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let queue = queue.clone();
            writers.spawn(async move {
                for number in (writer..messages).step_by(WRITERS) {
                    queue.enqueue(message(number, tenant, vip), Timestamp::now()).await.unwrap();
                }
            });
        }
        writers.join_all().await;
    });
}

/// Messages accepted in a second while nothing else is measured.
fn accept_rate(promise: &Promise) -> f64 {
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(2));
    let (before, began) = (promise.ledger.len(), Instant::now());
    thread::sleep(MEASURED);
    let rate = (promise.ledger.len() - before) as f64 / began.elapsed().as_secs_f64();
    senders.stop();
    rate
}

fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn with_a_million_messages_queued_the_daemon_serves_at_once() {
    let messages = std::env::var("POSTERN_SCALE_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(MESSAGES);
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    promise.load.senders = 20;
    promise.load.sizes = vec![2_048];
    let vips: serde_json::Value = serde_json::from_str(&promise.instance.tool(&["vip", "list", "--json"])).unwrap();
    let tenants: serde_json::Value =
        serde_json::from_str(&promise.instance.tool(&["tenant", "list", "--json"])).unwrap();
    let id = |list: &serde_json::Value| list["rows"][0]["id"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    let (tenant, vip) = (id(&tenants).parse().unwrap(), id(&vips).parse().unwrap());
    let empty = accept_rate(&promise);
    println!("empty queue: {empty:.0} accepted/s, {} MiB resident", resident_mib(promise.instance.pid()));
    assert!(promise.settle().is_empty());
    assert!(promise.instance.stop().success());

    let began = Instant::now();
    fill(&promise, messages, tenant, vip);
    println!("{messages} messages queued in {:?}", began.elapsed());
    let serving = {
        let began = Instant::now();
        promise.instance.start();
        promise.instance.wait_for_door();
        began.elapsed()
    };
    let resident = resident_mib(promise.instance.pid());
    println!("serving after {serving:?}, {resident} MiB resident");
    let full = accept_rate(&promise);
    let after = resident_mib(promise.instance.pid());
    println!("with {messages} queued: {full:.0} accepted/s ({:.2} of empty), {after} MiB resident", full / empty);
    assert!(serving < Duration::from_secs(5) && after < 1024 && full >= 0.8 * empty);
    assert!(promise.settle().is_empty());
}
