//! The suite every engine passes: what rooms rely on, said once and run against each engine.
//!
//! An engine takes part by implementing [`Subject`]. Easy to get wrong: a promise that only one
//! engine can keep does not belong here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::lease;
use super::{
    Batch, Blobs, CommitError, Faults, Key, MemoryStore, NewBody, Opened, Settings, Store, StoreError, after_prefix,
};
use crate::ext::{Timestamp, random_bytes};
use crate::mail::{Body, BodyId, QueueId, Sealed};

/// An engine under test.
trait Subject {
    fn records(&self) -> Arc<dyn Store>;
    fn bodies(&self) -> Arc<dyn Blobs>;
    /// Closes and opens again.
    fn reopen(&mut self);
}

struct InMemory(Arc<MemoryStore>);

impl Subject for InMemory {
    fn records(&self) -> Arc<dyn Store> {
        self.0.clone()
    }

    fn bodies(&self) -> Arc<dyn Blobs> {
        self.0.clone()
    }

    fn reopen(&mut self) {
        self.0.reopen();
    }
}

struct OnDisk {
    opened: Option<Opened>,
    settings: Settings,
    faults: Arc<Faults>,
    _folder: tempfile::TempDir,
}

impl OnDisk {
    fn new(settles_beside: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            folder: folder.path().join("store"),
            segment_bytes: 256 * 1024,
            own_segment_bytes_min: 100_000,
            free_bytes_min: 0,
            ..Settings::default()
        };
        let faults = Arc::new(Faults::default());
        faults.settles_beside.store(settles_beside, Ordering::Release);
        let mut made = Self { opened: None, settings, faults, _folder: folder };
        made.reopen();
        made
    }
}

impl Subject for OnDisk {
    fn records(&self) -> Arc<dyn Store> {
        self.opened.as_ref().unwrap().records.clone()
    }

    fn bodies(&self) -> Arc<dyn Blobs> {
        self.opened.as_ref().unwrap().bodies.clone()
    }

    fn reopen(&mut self) {
        self.opened = None;
        self.opened = Some(super::open_with(self.settings.clone(), Arc::clone(&self.faults)).unwrap());
    }
}

/// Runs one sentence of the suite against both engines, and against the one on disk with every group settled by
/// the thread beside the committer.
macro_rules! both {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&mut super::InMemory(std::sync::Arc::new(super::MemoryStore::new()))).await;
            })*
        }
        mod sled {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&mut super::OnDisk::new(false)).await;
            })*
        }
        mod sled_settled_beside {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&mut super::OnDisk::new(true)).await;
            })*
        }
    };
}

both! {
    committed_values_are_read_back_and_removed_ones_are_not
    ranges_are_ordered_and_exclude_their_end
    a_condition_that_does_not_hold_refuses_its_batch_alone
    conditions_see_earlier_batches_of_the_same_group
    appended_facts_grow_and_never_repeat_across_reopens
    a_refused_batch_leaves_nothing
    bodies_of_every_size_read_back_whole
    spilled_bodies_read_back_whole
    a_freed_body_is_gone
    a_body_name_is_used_once
    keys_of_the_engine_are_refused_and_hidden
    a_lease_is_held_by_one_until_it_expires
    many_tasks_each_win_once
    a_chain_is_linked_in_the_order_of_commits_by_many_tasks_and_across_a_reopen
    everything_survives_a_reopen
}

pub(super) fn new_id() -> BodyId {
    BodyId { queue_id: QueueId(random_bytes()), number: 0 }
}

pub(super) fn new_body(id: BodyId, length: usize) -> (NewBody, Vec<u8>) {
    let body: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251 + usize::from(id.queue_id.0[3])) as u8).collect();
    let head = Bytes::from_static(b"Subject: test\r\n\r\n");
    let whole = [&head[..], &body[..]].concat();
    let message = Sealed { head, body: Body::Memory(Bytes::from(body)) };
    (NewBody { id, envelope: b"envelope".to_vec(), message }, whole)
}

pub(super) fn read(bodies: &dyn Blobs, id: BodyId) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(mut reader) = bodies.open(id)? else { return Ok(None) };
    let mut whole = Vec::new();
    while let Some(slice) = reader.next_slice()? {
        assert!(slice.len() <= 256 * 1024);
        whole.extend_from_slice(&slice);
    }
    assert_eq!(reader.length(), whole.len() as u64);
    Ok(Some(whole))
}

pub(super) fn key(text: &str) -> Key {
    text.as_bytes().to_vec()
}

async fn set(store: &dyn Store, name: &str, value: &str) {
    let mut batch = Batch::new();
    batch.set(key(name), key(value));
    store.commit(batch).await.unwrap();
}

async fn committed_values_are_read_back_and_removed_ones_are_not(subject: &mut dyn Subject) {
    let store = subject.records();
    set(&*store, "Ta", "1").await;
    assert_eq!(store.get(b"Ta"), Ok(Some(key("1"))));
    let mut batch = Batch::new();
    batch.remove(key("Ta")).set(key("Tb"), Vec::new()).set(key("Tc"), key("x")).remove(key("Tc"));
    store.commit(batch).await.unwrap();
    assert_eq!(store.get(b"Ta"), Ok(None));
    assert_eq!(store.get(b"Tb"), Ok(Some(Vec::new())));
    assert_eq!(store.get(b"Tc"), Ok(None), "changes apply in order");
}

async fn ranges_are_ordered_and_exclude_their_end(subject: &mut dyn Subject) {
    let store = subject.records();
    let mut batch = Batch::new();
    for number in (0..2000_u32).rev() {
        batch.set([b"T", &number.to_be_bytes()[..]].concat(), number.to_le_bytes().to_vec());
    }
    store.commit(batch).await.unwrap();
    let at = |number: u32| [b"T", &number.to_be_bytes()[..]].concat();
    let some = store.range(&at(500), &at(1500), usize::MAX).unwrap();
    assert_eq!(some.len(), 1000);
    assert_eq!(some[0].0, at(500));
    assert_eq!(some[999].0, at(1499));
    assert!(some.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(store.range(&at(0), &after_prefix(b"T"), 7).unwrap().len(), 7);
    assert!(store.range(&at(9), &at(9), 10).unwrap().is_empty());
    assert!(store.range(&at(9), &at(8), 10).unwrap().is_empty());
    let mut batch = Batch::new();
    for number in 0..1999 {
        batch.remove(at(number));
    }
    store.commit(batch).await.unwrap();
    assert_eq!(store.range(b"T", &after_prefix(b"T"), 10).unwrap().len(), 1, "emptied stretches are passed over");
}

async fn a_condition_that_does_not_hold_refuses_its_batch_alone(subject: &mut dyn Subject) {
    let store = subject.records();
    set(&*store, "Ta", "1").await;
    let mut wrong = Batch::new();
    wrong.if_equals(key("Ta"), key("2")).set(key("Tb"), key("x"));
    let mut right = Batch::new();
    right.if_equals(key("Ta"), key("1")).if_absent(key("Tz")).set(key("Tc"), key("x"));
    let (wrong, right) = tokio::join!(store.commit(wrong), store.commit(right));
    assert_eq!((wrong, right), (Err(CommitError::Conflict), Ok(())));
    assert_eq!(store.get(b"Tb"), Ok(None));
    let mut taken = Batch::new();
    taken.if_absent(key("Ta"));
    assert_eq!(store.commit(taken).await, Err(CommitError::Conflict));
}

async fn conditions_see_earlier_batches_of_the_same_group(subject: &mut dyn Subject) {
    let store = subject.records();
    let claims = (0..100).map(|number: u32| {
        let mut batch = Batch::new();
        batch.if_absent(key("Tclaim")).set(key("Tclaim"), number.to_be_bytes().to_vec());
        store.commit(batch)
    });
    let results = futures_util::future::join_all(claims).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let steps = (0..20_u8).map(|step| {
        let mut batch = Batch::new();
        match step {
            0 => batch.if_absent(key("Tstep")),
            _ => batch.if_equals(key("Tstep"), vec![step - 1]),
        };
        batch.set(key("Tstep"), vec![step]);
        store.commit(batch)
    });
    let results = futures_util::future::join_all(steps).await;
    assert!(results.iter().all(Result::is_ok), "arrival order is kept: {results:?}");
}

async fn appended_facts_grow_and_never_repeat_across_reopens(subject: &mut dyn Subject) {
    let mut expected = Vec::new();
    for round in 0..3_u8 {
        let store = subject.records();
        for number in 0..20_u8 {
            let mut batch = Batch::new();
            batch.append(key("e"), vec![round, number, 0]).append(key("e"), vec![round, number, 1]);
            store.commit(batch).await.unwrap();
            expected.extend([vec![round, number, 0], vec![round, number, 1]]);
        }
        drop(store);
        subject.reopen();
    }
    let facts = subject.records().range(b"e", b"f", usize::MAX).unwrap();
    assert!(facts.iter().all(|(key, _)| key.len() == 11));
    assert_eq!(facts.into_iter().map(|(_, value)| value).collect::<Vec<_>>(), expected);
}

async fn a_refused_batch_leaves_nothing(subject: &mut dyn Subject) {
    let store = subject.records();
    set(&*store, "Ta", "1").await;
    let id = new_id();
    let mut batch = Batch::new();
    batch.if_absent(key("Ta")).set(key("Tb"), key("x")).append(key("e"), key("x"));
    batch.bodies.push(new_body(id, 500_000).0);
    assert_eq!(store.commit(batch).await, Err(CommitError::Conflict));
    assert_eq!(store.get(b"Tb"), Ok(None));
    assert!(store.range(b"e", b"f", 10).unwrap().is_empty());
    assert!(subject.bodies().open(id).unwrap().is_none());
}

async fn bodies_of_every_size_read_back_whole(subject: &mut dyn Subject) {
    let store = subject.records();
    for length in [0, 1, 7, 8, 4096, 65_536, 99_000, 262_100, 262_127, 262_128, 300_000, 3_000_000] {
        let id = new_id();
        let (body, whole) = new_body(id, length);
        let mut batch = Batch::new();
        batch.bodies.push(body);
        store.commit(batch).await.unwrap();
        assert_eq!(read(&*subject.bodies(), id).unwrap().as_deref(), Some(&whole[..]), "{length}");
    }
    assert!(subject.bodies().usage().live_bytes > 3_000_000);
}

async fn spilled_bodies_read_back_whole(subject: &mut dyn Subject) {
    let store = subject.records();
    for length in [10_usize, 90_000, 1_000_000] {
        let id = new_id();
        let (mut body, whole) = new_body(id, length);
        let Body::Memory(bytes) = body.message.body else { panic!("made in memory") };
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        body.message.body = Body::Spilled(Arc::new(crate::mail::Spill { file, length: length as u64 }));
        let mut batch = Batch::new();
        batch.bodies.push(body);
        store.commit(batch).await.unwrap();
        assert_eq!(read(&*subject.bodies(), id).unwrap().as_deref(), Some(&whole[..]), "{length}");
    }
}

async fn a_freed_body_is_gone(subject: &mut dyn Subject) {
    let store = subject.records();
    let (kept, freed) = (new_id(), new_id());
    let mut batch = Batch::new();
    batch.bodies.push(new_body(kept, 1000).0);
    batch.bodies.push(new_body(freed, 1000).0);
    store.commit(batch).await.unwrap();
    let mut batch = Batch::new();
    batch.freed.extend([freed, new_id()]);
    batch.settled.push((freed.queue_id, vec![0, 1]));
    store.commit(batch).await.unwrap();
    assert!(subject.bodies().open(freed).unwrap().is_none());
    assert!(subject.bodies().open(kept).unwrap().is_some());
    drop(store);
    subject.reopen();
    assert!(subject.bodies().open(freed).unwrap().is_none());
    assert!(read(&*subject.bodies(), kept).unwrap().is_some());
}

async fn a_body_name_is_used_once(subject: &mut dyn Subject) {
    let store = subject.records();
    let id = new_id();
    let commits = (0..2).map(|_| {
        let mut batch = Batch::new();
        batch.bodies.push(new_body(id, 100).0);
        store.commit(batch)
    });
    let results = futures_util::future::join_all(commits).await;
    assert_eq!(results, [Ok(()), Err(CommitError::Conflict)]);
}

async fn keys_of_the_engine_are_refused_and_hidden(subject: &mut dyn Subject) {
    let store = subject.records();
    let mut batch = Batch::new();
    batch.bodies.push(new_body(new_id(), 100).0);
    store.commit(batch).await.unwrap();
    for name in [vec![0, b'p'], Vec::new(), vec![b'T'; super::KEY_BYTES_MAX + 1]] {
        let mut batch = Batch::new();
        batch.set(name.clone(), key("x"));
        assert!(matches!(store.commit(batch).await, Err(CommitError::Failed(_))));
        assert_eq!(store.get(&name), Ok(None));
    }
    assert!(store.range(&[], &[u8::MAX; 8], 100).unwrap().is_empty());
}

async fn a_lease_is_held_by_one_until_it_expires(subject: &mut dyn Subject) {
    let store = subject.records();
    let (span, start) = (Duration::from_secs(60), Timestamp(1_000_000));
    let late = start.plus(Duration::from_secs(61));
    let mine = lease::take(&*store, b"Tlease", "one", span, start).await.unwrap().unwrap();
    assert_eq!(lease::take(&*store, b"Tlease", "two", span, start).await, Ok(None));
    let mine = lease::renew(&*store, b"Tlease", &mine, span, start.plus(span)).await.unwrap().unwrap();
    assert_eq!(lease::take(&*store, b"Tlease", "two", span, late).await, Ok(None), "it was renewed");
    let later = mine.expires;
    let theirs = lease::take(&*store, b"Tlease", "two", span, later).await.unwrap().unwrap();
    assert_eq!(lease::renew(&*store, b"Tlease", &mine, span, later).await, Ok(None), "it was lost");
    let mut settle = Batch::new();
    settle.conditions.push(mine.condition(key("Tlease")));
    assert_eq!(store.commit(settle).await, Err(CommitError::Conflict), "what it covered settles nothing");
    lease::release(&*store, b"Tlease", &mine).await.unwrap();
    assert_eq!(lease::take(&*store, b"Tlease", "one", span, later).await, Ok(None), "only the holder gives it back");
    lease::release(&*store, b"Tlease", &theirs).await.unwrap();
    assert!(lease::take(&*store, b"Tlease", "one", span, later).await.unwrap().is_some());
}

async fn many_tasks_each_win_once(subject: &mut dyn Subject) {
    let tasks: Vec<_> = (0..16_u64)
        .map(|_| {
            let store = subject.records();
            tokio::spawn(async move {
                for _ in 0..20 {
                    loop {
                        let before = store.get(b"Tcount").unwrap();
                        let count =
                            before.as_ref().map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()));
                        let mut batch = Batch::new();
                        match before {
                            None => batch.if_absent(key("Tcount")),
                            Some(before) => batch.if_equals(key("Tcount"), before),
                        };
                        batch.set(key("Tcount"), (count + 1).to_be_bytes().to_vec());
                        match store.commit(batch).await {
                            Ok(()) => break,
                            Err(error) => assert_eq!(error, CommitError::Conflict),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(subject.records().get(b"Tcount"), Ok(Some(320_u64.to_be_bytes().to_vec())));
}

async fn a_chain_is_linked_in_the_order_of_commits_by_many_tasks_and_across_a_reopen(subject: &mut dyn Subject) {
    for round in 1..=2_u64 {
        let add = |number: u64| {
            let store = subject.records();
            tokio::spawn(async move {
                for entry in 0..20_u64 {
                    let mut batch = Batch::new();
                    batch.chain(b"achain".to_vec(), [number.to_be_bytes(), entry.to_be_bytes()].concat());
                    store.commit(batch).await.unwrap();
                }
            })
        };
        for task in (0..8).map(add).collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let mut refused = Batch::new();
        refused.if_equals(key("Tnothing"), vec![1]).chain(b"achain".to_vec(), b"refused".to_vec());
        assert_eq!(subject.records().commit(refused).await, Err(CommitError::Conflict));
        let mut seen = 0_u64;
        let walk = super::chain_walk(&*subject.records(), b"achain", |link| {
            seen += 1;
            assert_ne!(link.entry, b"refused");
        })
        .unwrap();
        assert_eq!((walk.broken, walk.head.count, seen), (None, 160 * round, 160 * round));
        subject.reopen();
    }
}

async fn everything_survives_a_reopen(subject: &mut dyn Subject) {
    let mut bodies = Vec::new();
    for round in 0..5_u8 {
        let store = subject.records();
        for number in 0..20_u8 {
            let id = new_id();
            let (body, whole) = new_body(id, usize::from(number) * 2000);
            let mut batch = Batch::new();
            batch.set(vec![b'T', round, number], whole.clone());
            batch.bodies.push(body);
            store.commit(batch).await.unwrap();
            bodies.push((id, whole));
        }
        drop(store);
        subject.reopen();
    }
    assert_eq!(subject.records().range(b"T", b"U", usize::MAX).unwrap().len(), 100);
    for (id, whole) in bodies {
        assert_eq!(read(&*subject.bodies(), id).unwrap(), Some(whole));
    }
}
