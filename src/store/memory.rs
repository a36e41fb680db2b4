//! The engine for tests and trials: everything in one ordered map, nothing on disk.
//!
//! It keeps every promise of the traits but durability, and can be told to fail: the next commits
//! with a chosen error, all reads, one body's checksum. It refuses to know what the keys mean.
//! Easy to get wrong in a test: a `MemoryStore` outlives a "restart" only through its `Arc`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::batch::{appended_key, check_shape};
use super::chain::Heads;
use super::{
    Batch, Blobs, BlobsUsage, BodyReader, Change, CommitError, Condition, Health, Key, NewBody, Piece, Sharing,
    Snapshots, Store, StoreError, Taker,
};
use crate::mail::{BodyId, QueueId};

/// Bytes given out at a time by a body's reader.
const SLICE_BYTES: usize = 256 * 1024;

/// Records and bodies in memory.
#[derive(Debug)]
pub struct MemoryStore {
    sharing: Sharing,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    records: BTreeMap<Key, Vec<u8>>,
    bodies: HashMap<BodyId, StoredBody>,
    settled: Vec<(QueueId, Vec<u16>)>,
    commits: u64,
    failures: VecDeque<CommitError>,
    reads_fail: Option<StoreError>,
    health: Health,
}

#[derive(Clone, Debug)]
struct StoredBody {
    envelope: Vec<u8>,
    message: Bytes,
    damaged: bool,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty engine, opened exclusively.
    pub fn new() -> Self {
        Self::with_sharing(Sharing::Exclusive)
    }

    /// An empty engine that says whether others may have it open too.
    pub fn with_sharing(sharing: Sharing) -> Self {
        let state = State {
            records: BTreeMap::new(),
            bodies: HashMap::new(),
            settled: Vec::new(),
            commits: 0,
            failures: VecDeque::new(),
            reads_fail: None,
            health: Health::Accepting,
        };
        Self { sharing, state: Mutex::new(state) }
    }

    /// The next `times` commits fail with `error` and change nothing.
    /// [`CommitError::Stopped`] sticks, as it does on a real engine, until [`MemoryStore::reopen`].
    pub fn fail_next(&self, times: usize, error: CommitError) {
        let mut state = self.lock();
        for _ in 0..times {
            state.failures.push_back(error.clone());
        }
    }

    /// Every read fails with `error`; `None` ends it.
    pub fn fail_reads(&self, error: Option<StoreError>) {
        self.lock().reads_fail = error;
    }

    /// What `health` says from now on. `LowSpace` refuses batches with bodies, `Stopped` all.
    pub fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    /// As after a restart of the daemon: faults are forgotten, records and bodies stay.
    pub fn reopen(&self) {
        let mut state = self.lock();
        state.failures.clear();
        state.reads_fail = None;
        state.health = Health::Accepting;
    }

    /// Reading this body to its end will report damage. `false` if there is no such body.
    pub fn damage_body(&self, id: BodyId) -> bool {
        self.lock().bodies.get_mut(&id).is_some_and(|body| {
            body.damaged = true;
            true
        })
    }

    /// The live bodies, ordered by name.
    pub fn bodies(&self) -> Vec<BodyId> {
        let mut ids: Vec<BodyId> = self.lock().bodies.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The envelope written beside a live body.
    pub fn envelope(&self, id: BodyId) -> Option<Vec<u8>> {
        self.lock().bodies.get(&id).map(|body| body.envelope.clone())
    }

    /// Every settled frame so far, in order.
    pub fn settled(&self) -> Vec<(QueueId, Vec<u16>)> {
        self.lock().settled.clone()
    }

    /// How many commits succeeded.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.lock().records.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admit(&mut self, batch: &Batch) -> Result<(), CommitError> {
        if let Health::Stopped(why) = &self.health {
            return Err(CommitError::Stopped(why.clone()));
        }
        if let Some(error) = self.failures.pop_front() {
            if let CommitError::Stopped(why) = &error {
                self.health = Health::Stopped(why.clone());
            }
            return Err(error);
        }
        if let (Health::LowSpace(why), false) = (&self.health, batch.bodies.is_empty()) {
            return Err(CommitError::Full(why.clone()));
        }
        check_shape(batch)?;
        let all_hold = batch.conditions.iter().all(|condition| match condition {
            Condition::Absent(key) => !self.records.contains_key(key),
            Condition::Equals(key, value) => self.records.get(key) == Some(value),
        });
        let new_names = batch.bodies.iter().all(|body| !self.bodies.contains_key(&body.id));
        if all_hold && new_names { Ok(()) } else { Err(CommitError::Conflict) }
    }

    fn apply(&mut self, batch: Batch, messages: Vec<(BodyId, StoredBody)>) -> Result<(), StoreError> {
        let linked = Heads::default().link(&batch, |key| Ok::<_, StoreError>(self.records.get(key).cloned()))?;
        self.commits += 1;
        self.records.extend(linked);
        for change in batch.changes {
            match change {
                Change::Set(key, value) | Change::Make(key, value) => self.records.insert(key, value),
                Change::Remove(key) => self.records.remove(&key),
            };
        }
        for (position, (prefix, value)) in (0_u16..).zip(batch.appends) {
            self.records.insert(appended_key(prefix, self.commits, position), value);
        }
        self.bodies.extend(messages);
        for id in &batch.freed {
            self.bodies.remove(id);
        }
        self.settled.extend(batch.settled);
        Ok(())
    }
}

fn stored(body: &NewBody) -> Result<(BodyId, StoredBody), CommitError> {
    let mut message = Vec::from(&body.message.head[..]);
    for slice in body.message.body.slices() {
        message.extend_from_slice(&slice.map_err(|error| CommitError::Failed(format!("spill file: {error}")))?);
    }
    Ok((body.id, StoredBody { envelope: body.envelope.clone(), message: Bytes::from(message), damaged: false }))
}

#[async_trait]
impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let state = self.lock();
        match &state.reads_fail {
            Some(error) => Err(error.clone()),
            None => Ok(state.records.get(key).cloned()),
        }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        let state = self.lock();
        if let Some(error) = &state.reads_fail {
            return Err(error.clone());
        }
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let pairs = state.records.range::<[u8], _>(bounds).take(limit);
        Ok(pairs.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let messages = batch.bodies.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        let mut state = self.lock();
        state.admit(&batch)?;
        state.apply(batch, messages).map_err(|error| CommitError::Failed(error.to_string()))
    }

    fn health(&self) -> Health {
        self.lock().health.clone()
    }

    fn sharing(&self) -> Sharing {
        self.sharing
    }
}

impl Snapshots for MemoryStore {
    fn snapshot(&self, take: Taker<'_>) -> std::io::Result<u64> {
        let (commits, records, mut bodies) = {
            let state = self.lock();
            (state.commits, state.records.clone(), Vec::from_iter(state.bodies.clone()))
        };
        bodies.sort_by_key(|(id, _)| *id);
        take(Piece::Begin(commits))?;
        records.iter().try_for_each(|(key, value)| take(Piece::Set(key, value)))?;
        for (id, StoredBody { envelope, message, damaged }) in bodies {
            let mut reader = MemoryReader { length: message.len() as u64, left: message, damaged };
            take(Piece::Body(id, &envelope, &mut reader))?;
        }
        Ok(commits)
    }
}

impl Blobs for MemoryStore {
    fn open(&self, id: BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError> {
        let state = self.lock();
        if let Some(error) = &state.reads_fail {
            return Err(error.clone());
        }
        Ok(state.bodies.get(&id).map(|body| {
            let length = body.message.len() as u64;
            Box::new(MemoryReader { length, left: body.message.clone(), damaged: body.damaged }) as Box<dyn BodyReader>
        }))
    }

    fn usage(&self) -> BlobsUsage {
        let live_bodies = self.lock().bodies.len() as u64;
        let bytes = self.lock().bodies.values().map(|body| body.message.len() as u64).sum();
        BlobsUsage { live_bodies, live_bytes: bytes, file_bytes: bytes }
    }
}

struct MemoryReader {
    length: u64,
    left: Bytes,
    damaged: bool,
}

impl BodyReader for MemoryReader {
    fn length(&self) -> u64 {
        self.length
    }

    fn next_slice(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.left.is_empty() {
            return if self.damaged { Err(StoreError::Damaged("checksum of a body".into())) } else { Ok(None) };
        }
        Ok(Some(self.left.split_to(self.left.len().min(SLICE_BYTES))))
    }
}
