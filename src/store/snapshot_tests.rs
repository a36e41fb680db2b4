//! A snapshot is one moment of the store's history, however busily it is written meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Batch, NewBody, Opened, Piece, Settings, Snapshots, open};
use crate::mail::{Body, BodyId, QueueId, Sealed};

const WRITERS: u8 = 4;
/// Pairs of records that always have the same value.
const PAIRS: u64 = 300;

fn settings(folder: &std::path::Path) -> Settings {
    Settings {
        folder: folder.to_owned(),
        free_bytes_min: 0,
        free_inodes_min: 0,
        segment_bytes: 256 * 1024,
        spare_segments: 1,
        own_segment_bytes_min: 20_000,
        checkpoint_every: Duration::from_millis(20),
        ..Settings::default()
    }
}

fn body_id(writer: u8, number: u64) -> BodyId {
    let mut id = [writer; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    BodyId { queue_id: QueueId(id), number: 0 }
}

fn message(writer: u8, number: u64) -> Vec<u8> {
    let length = if number.is_multiple_of(40) { 25_000 } else { 300 + usize::try_from(number % 7).unwrap() * 500 };
    vec![writer.wrapping_add(number as u8); length]
}

fn value(writer: u8, number: u64) -> Vec<u8> {
    [&[writer][..], &number.to_be_bytes()].concat()
}

fn key(side: u8, writer: u8, pair: u64) -> Vec<u8> {
    [&[side, writer][..], &pair.to_be_bytes()].concat()
}

/// Each commit gives a pair a new value and a body of that name, and frees the body it had; now and then a
/// pair goes, with its body.
async fn write(opened: Opened, writer: u8, done: Arc<AtomicBool>, commits: Arc<AtomicU64>) {
    let mut now: BTreeMap<u64, u64> = BTreeMap::new();
    let mut number = 0_u64;
    while !done.load(Ordering::Acquire) {
        number += 1;
        let pair = number.wrapping_mul(2_654_435_761) % PAIRS;
        let mut batch = Batch::new();
        if let Some(old) = now.remove(&pair) {
            batch.freed.push(body_id(writer, old));
        }
        if number.is_multiple_of(11) {
            batch.remove(key(b'T', writer, pair)).remove(key(b'q', writer, pair));
        } else {
            batch.set(key(b'T', writer, pair), value(writer, number));
            batch.set(key(b'q', writer, pair), value(writer, number));
            let message = Sealed { head: Bytes::from(message(writer, number)), body: Body::Memory(Bytes::new()) };
            batch.bodies.push(NewBody { id: body_id(writer, number), envelope: value(writer, number), message });
            now.insert(pair, number);
        }
        opened.records.commit(batch).await.unwrap();
        commits.fetch_add(1, Ordering::AcqRel);
    }
}

/// What a snapshot gave, checked for being of one moment. How many pairs there were.
fn check(opened: &Opened) -> usize {
    let mut records = BTreeMap::new();
    let mut bodies = BTreeSet::new();
    let last = opened.engine.snapshot(&mut |piece| {
        match piece {
            Piece::Set(key, value) => {
                assert!(bodies.is_empty(), "records after bodies");
                records.insert(key.to_vec(), value.to_vec());
            }
            Piece::Remove(key) => {
                records.remove(key);
            }
            Piece::Body(id, envelope, reader) => {
                let mut whole = Vec::new();
                while let Some(slice) = reader.next_slice().unwrap() {
                    whole.extend_from_slice(&slice);
                }
                let number = u64::from_be_bytes(envelope[1..].try_into().unwrap());
                assert_eq!(id, body_id(envelope[0], number));
                assert!(whole == message(envelope[0], number));
                assert!(bodies.insert(envelope.to_vec()), "a body twice");
            }
            Piece::Unreadable(id, why) => panic!("{id:?}: {why}"),
            Piece::Begin(_) => {}
        }
        Ok(())
    });
    assert!(last.unwrap() > 0);
    let one = |side: u8| records.iter().filter(move |(key, _)| key[0] == side);
    let left: Vec<_> = one(b'T').map(|(key, value)| (key[1..].to_vec(), value.clone())).collect();
    let right: Vec<_> = one(b'q').map(|(key, value)| (key[1..].to_vec(), value.clone())).collect();
    assert!(left == right, "the two halves of a commit are apart");
    let named: BTreeSet<Vec<u8>> = left.iter().map(|(_, value)| value.clone()).collect();
    assert!(named == bodies, "{} bodies named, {} given", named.len(), bodies.len());
    left.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_taken_while_the_store_is_written_is_the_state_after_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(settings(folder.path())).unwrap();
    let (done, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(opened.clone(), writer, done.clone(), commits.clone()))).collect();
    let mut seen = 0;
    for round in 1..=8_u64 {
        while commits.load(Ordering::Acquire) < round * 150 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let store = opened.clone();
        seen = tokio::task::spawn_blocking(move || check(&store)).await.unwrap();
    }
    done.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(seen > 100, "{seen} pairs: too few to mean anything");
    assert!(opened.engine.damage().is_empty());
    // Nothing stays pinned: what was freed meanwhile is given back once snapshots are over.
    assert_eq!(opened.engine.shared().pins.load(Ordering::Acquire), 0);
}
