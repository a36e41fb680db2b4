//! Figures with a long queue, by hand: `cargo test --release --lib queue::scale -- --ignored --nocapture`.
//! `POSTERN_SCALE` is how many messages, `POSTERN_SCALE_DIR` where the store on the disk is.

use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::tests::{Bench, WALL, all, delivered, message};
use super::*;
use crate::access::Actor;

/// Messages and lanes; the engine in memory needs about 2 KB for each message.
const MESSAGES: usize = 1_000_000;
const LANES: usize = 100_000;

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok()).unwrap_or(0) / 1024
}

#[tokio::test]
#[ignore = "takes minutes and gigabytes"]
async fn a_million_messages_are_opened_and_claimed_at_once() {
    let mut bench = Bench::new().await;
    let start = Instant::now();
    for number in 0..MESSAGES {
        let to = format!("someone@d{}.example", number % LANES);
        bench.queue.enqueue(message(&[&to]), WALL).await.unwrap();
    }
    println!("enqueue: {:?} each", start.elapsed() / u32::try_from(MESSAGES).unwrap());
    println!("resident with records, bodies and the queue's windows: {} MiB", resident_mib());
    let start = Instant::now();
    bench.reopen().await;
    println!("open: {:?}, {:?}", start.elapsed(), bench.queue.totals());
    println!("resident after opening: {} MiB", resident_mib());
    let start = Instant::now();
    let due = bench.queue.some_lanes(64);
    println!("64 of {LANES} lanes: {:?}; next due {:?}", start.elapsed(), bench.queue.next_due());
    let start = Instant::now();
    let claims = bench.queue.claim(&due[0].lane, 10);
    println!("first claim: {:?} for {}", start.elapsed(), claims.len());
    let start = Instant::now();
    println!("all lanes: {} in {:?}", bench.queue.lanes().len(), start.elapsed());
    let start = Instant::now();
    let mut settled = 0_u32;
    for claim in claims {
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        settled += 1;
    }
    while settled < 20_000 {
        for due in bench.queue.some_lanes(64) {
            for claim in bench.queue.claim(&due.lane, 10) {
                let outcomes = all(&claim, &delivered());
                bench.queue.settle(claim, outcomes, WALL).await.unwrap();
                settled += 1;
            }
        }
    }
    println!("claim and settle: {:?} each", start.elapsed() / settled);
}

/// Messages put in at a time.
const TOGETHER: usize = 512;

/// How many, from the environment.
fn wanted() -> usize {
    std::env::var("POSTERN_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(MESSAGES)
}

fn admin() -> Actor {
    Actor::local(0)
}

/// The whole time of a page, and how many pages a command asks for until it has its rows.
fn page(queue: &Queue, what: &str, filter: &Filter) {
    let (start, mut after, mut rows, mut pages, mut slowest) = (Instant::now(), None, 0, 0, Duration::ZERO);
    loop {
        let began = Instant::now();
        let page = queue.list(&admin(), filter, after, 50 - rows).unwrap();
        slowest = slowest.max(began.elapsed());
        (rows, pages) = (rows + page.messages.len(), pages + 1);
        after = page.next;
        if rows >= 50 || after.is_none() {
            break;
        }
    }
    println!("{what:44} {rows:3} rows in {:?}: {pages} pages, the slowest {slowest:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and gigabytes"]
async fn pages_totals_and_a_bulk_cancel_of_a_long_queue_on_the_disk() {
    let folder = tempfile::tempdir_in(std::env::var_os("POSTERN_SCALE_DIR").unwrap_or_else(|| "/tmp".into())).unwrap();
    let disk = crate::store::Settings { folder: folder.path().to_owned(), ..Default::default() };
    let opened = crate::store::open(disk).unwrap();
    let queue = Queue::open(opened.records, opened.bodies, Settings::default()).await.unwrap();
    let queue = Arc::new(queue);
    let (count, start) = (wanted(), Instant::now());
    let mut running = FuturesUnordered::new();
    for number in 0..count {
        let to = format!("someone{number}@d{}.example", number % 1_000);
        let mut new = message(&[&to]);
        new.tenant = TenantId(2 + (number % 10) as u64);
        running.push(queue.enqueue(new, Timestamp::now()));
        if running.len() >= TOGETHER {
            running.next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = running.next().await {
        done.unwrap();
    }
    println!("{count} messages in {:?}, resident {} MiB", start.elapsed(), resident_mib());
    let none = Filter::default;
    let to = |text: &str| Some(Domain::parse(text).unwrap());
    page(&queue, "the first 50", &none());
    page(&queue, "50 of one tenant of ten", &Filter { tenant: Some(TenantId(7)), ..none() });
    page(&queue, "50 to one domain of a thousand", &Filter { recipient_domain: to("d999.example"), ..none() });
    let last =
        Some(crate::mail::Address::parse(&format!("someone{}@d{}.example", count - 1, (count - 1) % 1_000)).unwrap());
    page(&queue, "one address, at the end", &Filter { recipient: last, ..none() });
    page(&queue, "a text nobody said", &Filter { last: Some("4.7.28".to_owned()), ..none() });
    let began = Instant::now();
    let sum = queue.sum(&admin(), &none(), None).unwrap();
    println!("totals of {}: {:?}", sum.messages, began.elapsed());
    let began = Instant::now();
    let shape = queue.shape(&admin(), &none(), Timestamp::now()).unwrap();
    println!("shape with {} destinations: {:?}", shape.destinations.len(), began.elapsed());
    let began = Instant::now();
    let asked = NewSweep { act: BulkAct::Cancel, filter: none(), reason: "a figure".to_owned(), lasting: None };
    let sweep = queue.begin_sweep(&admin(), asked, Timestamp::now()).await.unwrap();
    println!("begun, nothing is handed out any more: {:?}", began.elapsed());
    queue.work_off(&crate::background::Shutdown::new(), true).await;
    let done = queue.sweep_numbered(&admin(), sweep.number).unwrap().done;
    println!("cancelled {} messages: {:?}", done.messages, began.elapsed());
    assert_eq!(done.messages, count as u64);
}
