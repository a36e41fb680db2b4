//! Figures with a long queue, by hand: `cargo test --release --lib queue::scale -- --ignored --nocapture`.

use std::time::Instant;

use super::tests::{Bench, WALL, all, delivered, message};

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
