//! Figures for `docs/benchmarks.md`: `cargo test --release --lib store::bench -- --ignored --nocapture --test-threads=1`.
//!
//! Accept-only rate of the engine beside a raw segment log in the same run, and the two ways a batch
//! could rest on disk. Not a test of anything: it prints.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::record::{Before, Operation, Position};
use super::sled::Records;
use super::{Batch, Faults, NewBody, Settings};
use crate::ext::random_bytes;
use crate::mail::{Body, BodyId, QueueId, Sealed};

const TASKS: usize = 64;
const SECONDS: u64 = 5;
const BODY_BYTES: usize = 20 * 1024;

/// A batch like the queue's: message, lane record, due index, history, one event.
fn batch_like_the_queues(body: &Bytes, at: u64) -> Batch {
    let queue_id = QueueId({
        let mut id = random_bytes::<16>();
        id[..8].copy_from_slice(&at.to_be_bytes());
        id
    });
    let mut batch = Batch::new();
    let key = |prefix: u8| [&[prefix][..], &queue_id.0].concat();
    batch.if_absent(key(b'm')).make(key(b'm'), vec![7; 200]).make(key(b'l'), vec![7; 250]);
    batch.make([b"q", &at.to_be_bytes()[..], &queue_id.0].concat(), Vec::new());
    batch.set(key(b'h'), vec![7; 150]).append(b"e".to_vec(), vec![7; 120]);
    let message = Sealed { head: Bytes::from_static(&[b'h'; 600]), body: Body::Memory(body.clone()) };
    batch.bodies.push(NewBody { id: BodyId { queue_id, number: 0 }, envelope: vec![7; 300], message });
    batch
}

struct Load {
    waits: Vec<Duration>,
    seconds: f64,
}

impl Load {
    fn print(mut self, name: &str) -> f64 {
        self.waits.sort_unstable();
        let rate = self.waits.len() as f64 / self.seconds;
        let part = |part: f64| self.waits[((self.waits.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
        println!(
            "{name:44} {rate:8.0}/s  p50 {:6.2} ms  p99 {:6.2} ms  max {:7.2} ms",
            part(0.5),
            part(0.99),
            part(1.0)
        );
        rate
    }
}

/// Runs `accept` from many tasks; a pause between two accepts of a task if one is given.
async fn load<F>(accept: impl Fn(Bytes, u64) -> F + Send + Sync + 'static, pause: Duration) -> Load
where
    F: Future<Output = ()> + Send,
{
    let accept = Arc::new(accept);
    let count = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (accept, count, done) = (accept.clone(), count.clone(), done.clone());
            let body: Bytes = (0..BODY_BYTES / 16).flat_map(|_| random_bytes::<16>()).collect::<Vec<u8>>().into();
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    accept(body.clone(), count.fetch_add(1, Ordering::Relaxed)).await;
                    waits.push(begun.elapsed());
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                waits
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    done.store(true, Ordering::Relaxed);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    Load { waits, seconds: start.elapsed().as_secs_f64() }
}

type Append = (Bytes, Batch, oneshot::Sender<()>);

/// The bare minimum: one thread appends what waits to a growing file and syncs; no checksum, no records.
fn raw_log(folder: &Path, records: Option<Records>) -> Sender<Append> {
    let (sender, receiver): (Sender<Append>, Receiver<Append>) = channel();
    let path = folder.join("log");
    std::thread::spawn(move || {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
        let (mut at, mut commit) = (0, 0);
        while let Ok(first) = receiver.recv() {
            let mut group = vec![first];
            group.extend(receiver.try_iter().take(511));
            let slices: Vec<_> = group.iter().map(|(body, ..)| IoSlice::new(body)).collect();
            for part in slices.chunks(1024) {
                at += rustix::io::pwritev(&file, part, at).unwrap() as u64;
            }
            file.sync_data().unwrap();
            if let Some(records) = &records {
                let changes = group.iter().flat_map(|(_, batch, _)| &batch.changes);
                let operations: Vec<_> = changes
                    .map(|change| match change {
                        super::Change::Set(key, value) | super::Change::Make(key, value) => Operation::Set(key, value),
                        super::Change::Remove(key) => Operation::Remove(key),
                    })
                    .collect();
                commit += 1;
                records
                    .apply(
                        operations.iter().map(|operation| (*operation, Before::Unknown)),
                        Position { commit, segment: 1, offset: at },
                    )
                    .unwrap();
                records.flush().unwrap();
            }
            group.into_iter().for_each(|(.., reply)| reply.send(()).unwrap_or(()));
        }
    });
    sender
}

async fn measure_log(name: &str, folder: &Path, records: Option<Records>) -> f64 {
    let log = raw_log(folder, records);
    let accept = move |body: Bytes, at: u64| {
        let log = log.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let batch = batch_like_the_queues(&body, at);
            log.send((body, batch, reply)).unwrap();
            answer.await.unwrap();
        }
    };
    load(accept, Duration::ZERO).await.print(name)
}

async fn measure_engine(name: &str, folder: &Path, pause: Duration) -> f64 {
    let settings = Settings { folder: folder.join("store"), ..Settings::default() };
    let opened = super::open(settings).unwrap();
    let records = opened.records.clone();
    let accept = move |body: Bytes, at: u64| {
        let records = records.clone();
        async move { records.commit(batch_like_the_queues(&body, at)).await.unwrap() }
    };
    load(accept, pause).await.print(name)
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn accept_rates() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for round in 1..=2 {
            println!("round {round}: {TASKS} tasks, {BODY_BYTES} bytes, {SECONDS} s each");
            let folder = tempfile::tempdir().unwrap();
            let raw = measure_log("raw log: append and fdatasync", folder.path(), None).await;
            let folder = tempfile::tempdir().unwrap();
            let records = Records::open(&folder.path().join("records"), 64 << 20, None).unwrap();
            let a = measure_log("(a) body sync, then sled flush, per group", folder.path(), Some(records)).await;
            let folder = tempfile::tempdir().unwrap();
            let b = measure_engine("(b) the engine: one sync per group", folder.path(), Duration::ZERO).await;
            println!("(a) {:.2} of raw, (b) {:.2} of raw", a / raw, b / raw);
            let folder = tempfile::tempdir().unwrap();
            let pause = Duration::from_secs_f64(TASKS as f64 / (b / 2.0));
            measure_engine("(b) at about half of that load", folder.path(), pause).await;
        }
    });
}

/// Processor time of this process, and bytes it has written.
fn spent() -> (Duration, u64) {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap());
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap();
    (used, written)
}

/// What one message costs that is accepted, and if `is_delivered` done at once: microseconds of the
/// processor, bytes written.
async fn price(is_copied: bool, is_delivered: bool) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { folder: folder.path().join("store"), ..Settings::default() };
    let faults = Arc::new(Faults::default());
    faults.copy_left_out.store(!is_copied, Ordering::Release);
    let opened = super::open_with(settings, faults).unwrap();
    let (records, before) = (opened.records.clone(), spent());
    let accept = move |body: Bytes, at: u64| {
        let records = records.clone();
        async move {
            let batch = batch_like_the_queues(&body, at);
            let mut done = Batch::new();
            done.changes = batch.changes.iter().filter_map(gone).collect();
            done.freed = batch.bodies.iter().map(|body| body.id).collect();
            done.append(b"e".to_vec(), vec![7; 120]);
            records.commit(batch).await.unwrap();
            if is_delivered {
                records.commit(done).await.unwrap();
            }
        }
    };
    let accepted = load(accept, Duration::ZERO).await.waits.len() as f64;
    drop(opened);
    let after = spent();
    ((after.0 - before.0).as_secs_f64() * 1e6 / accepted, (after.1 - before.1) as f64 / accepted)
}

/// The removal of a record that lives as long as its message.
fn gone(change: &super::Change) -> Option<super::Change> {
    match change {
        super::Change::Make(key, _) => Some(super::Change::Remove(key.clone())),
        _ => None,
    }
}

#[test]
#[ignore = "a measurement, a minute of full load"]
fn price_of_the_copy() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for is_delivered in [false, true] {
            println!("{}", if is_delivered { "accepted and done at once" } else { "accepted" });
            for round in 1..=4 {
                let (without, with) = (price(false, is_delivered).await, price(true, is_delivered).await);
                println!(
                    "round {round}: {:.0} us and {:.0} bytes without, {:.0} us and {:.0} bytes with: {:.3} and {:.3}",
                    without.0,
                    without.1,
                    with.0,
                    with.1,
                    with.0 / without.0,
                    with.1 / without.1
                );
            }
        }
    });
}
