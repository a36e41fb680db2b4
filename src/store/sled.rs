//! The ordered map under the engine: sled, every call guarded, nothing else of it visible, and above it
//! the changes since the last checkpoint (see `layers`), which only `flush` carries down.
//!
//! Its `Db` is `Send` but not `Sync`, so callers borrow a clone from a pool. A panic or error in any
//! call is final: the clone is leaked, `broken` is set, and only a new process opens it again.
//! Easy to get wrong: a range with an end reads to the end of the tree; with sled's timer switched off every drop of a `Db`, a `Tree` or an iterator
//! flushes; with a timer of ten years none does, and the one flusher stays the only one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use super::engine::{LOCK_PAUSE, LOCK_TRIES};
use super::layers::{Held, Layer, Layers};
use super::record::{Before, Operation, POSITION_KEY, Position};
use super::{Key, StoreError};

type Db = sled::Db<LEAF_KEYS>;

/// Keys in one leaf, at most. Cannot change once a folder exists.
const LEAF_KEYS: usize = 256;
/// Ten years: sled's own timer never fires.
const NEVER_MS: usize = 10 * 365 * 24 * 3600 * 1000;
/// zstd level of stored leaves; the higher ones cost the committer time.
const COMPRESSION_LEVEL: i32 = 1;

/// Keys carried down at once: while they are, their leaves are locked for readers.
const SUNK_AT_ONCE: usize = 256;

/// The map.
pub struct Records {
    layers: RwLock<Layers>,
    /// Held by the one who carries a layer down.
    flushing: Mutex<()>,
    pool: Mutex<Vec<Db>>,
    template: Mutex<Option<Db>>,
    broken: OnceLock<String>,
    room: sled::room::Room,
}

impl Records {
    /// Opens or creates the map in `folder`. Damage and panics come back as text.
    pub fn open(folder: &Path, cache_bytes: usize) -> Result<Self, String> {
        let room = sled::room::Room::default();
        let mut config = sled::Config::new()
            .path(folder)
            .cache_capacity_bytes(cache_bytes)
            .zstd_compression_level(COMPRESSION_LEVEL)
            .flush_every_ms(Some(NEVER_MS));
        config.room = room.clone();
        guard_snapshot(&folder.join("metadata")).map_err(|error| format!("the record files: {error}"))?;
        let mut tries = LOCK_TRIES;
        let db = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open::<LEAF_KEYS>())) {
                Ok(Ok(db)) => break db,
                // sled locks its folder too; see `lock_folder`.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Ok(Err(error)) => return Err(format!("the record files could not be opened: {error}")),
                Err(panic) => return Err(format!("the record files are damaged: {}", panic_text(&*panic))),
            }
        };
        Ok(Self {
            layers: RwLock::default(),
            flushing: Mutex::default(),
            pool: Mutex::new(Vec::new()),
            template: Mutex::new(Some(db)),
            broken: OnceLock::new(),
            room,
        })
    }

    /// Readies them for a daemon's work: a write of the record engine that finds the disk full waits for
    /// room instead of failing for good, and `layer_bytes_max` is applied before [`Records::is_full`].
    pub fn begin_work(&self, layer_bytes_max: usize) {
        self.layers.write().unwrap_or_else(PoisonError::into_inner).bytes_max = layer_bytes_max;
        self.room.wait();
    }

    /// A write that waits for room waits no longer, it fails: the work is ending.
    pub fn end_work(&self) {
        self.room.give_up();
    }

    /// Whether a write of the record engine waits for room at this moment.
    pub fn waits_for_room(&self) -> bool {
        self.room.is_waited_for()
    }

    /// Whether every write of the record engine finds the disk full.
    #[cfg(test)]
    pub fn pretend_full(&self, is_full: bool) {
        self.room.pretend_full(is_full);
    }

    /// Why nothing works any more, if so.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(held) = self.read_layers().get(key) {
            return Ok(held.value().cloned());
        }
        self.with(|db| Ok(db.get(key)?.map(|value| value.to_vec())))
    }

    /// Pairs of `from <= key < to`, in order, at most `limit`.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        loop {
            let part = self.read_layers().range(from, to, limit);
            let turn = part.turn;
            let end = part.end.clone();
            let end = end.as_deref().unwrap_or(to);
            let pairs = self.with(|db| {
                // Without an end: given one, this release reads on behind it to the last leaf of all
                // whenever fewer than `limit` pairs are in the range.
                let pairs = db.range(from..).map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
                part.over(pairs.take_while(|pair| pair.as_ref().map_or(true, |(key, _)| &key[..] < end)), limit)
            })?;
            // Had another layer been begun meanwhile, the map below might hold some of it already.
            if self.read_layers().turn() == turn {
                return Ok(pairs);
            }
        }
    }

    /// Does the operations in order, then notes the position. For the committer alone.
    pub fn apply<'a>(
        &self,
        operations: impl IntoIterator<Item = (Operation<'a>, Before)>,
        position: Position,
    ) -> Result<(), StoreError> {
        if let Some(why) = self.broken() {
            return Err(StoreError::Failed(why.to_owned()));
        }
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        for (operation, before) in operations {
            layers.apply(&operation, before);
        }
        layers.apply(&Operation::Set(&POSITION_KEY, &position.to_bytes()), Before::Unknown);
        Ok(())
    }

    /// Whether so much was applied since the last flush that commits must wait for the next.
    pub fn is_full(&self) -> bool {
        self.read_layers().is_full()
    }

    /// Makes what was applied before this call durable. For the flusher, and at open and close.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _flushing = lock(&self.flushing);
        let layer = self.layers.write().unwrap_or_else(PoisonError::into_inner).begin();
        self.with(|db| {
            sink(db, &layer)?;
            db.flush().map(drop)
        })?;
        self.layers.write().unwrap_or_else(PoisonError::into_inner).sunk();
        Ok(())
    }

    fn read_layers(&self) -> std::sync::RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where replay begins; zeros for a new folder.
    pub fn position(&self) -> Result<Position, StoreError> {
        match self.get(&POSITION_KEY)? {
            None => Ok(Position::default()),
            Some(bytes) => Position::from_bytes(&bytes)
                .ok_or_else(|| StoreError::Damaged("the replay position is unreadable".into())),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Db) -> std::io::Result<T>) -> Result<T, StoreError> {
        if let Some(why) = self.broken() {
            return Err(StoreError::Failed(why.to_owned()));
        }
        let db = self.borrow()?;
        match catch_unwind(AssertUnwindSafe(|| work(&db))) {
            Ok(Ok(value)) => {
                lock(&self.pool).push(db);
                Ok(value)
            }
            Ok(Err(error)) => Err(self.break_down(db, format!("sled: {error}"))),
            Err(panic) => Err(self.break_down(db, format!("sled panicked: {}", panic_text(&*panic)))),
        }
    }

    fn borrow(&self) -> Result<Db, StoreError> {
        if let Some(db) = lock(&self.pool).pop() {
            return Ok(db);
        }
        let template = lock(&self.template);
        template.clone().ok_or_else(|| StoreError::Failed("the records are closed".into()))
    }

    fn break_down(&self, db: Db, why: String) -> StoreError {
        // Dropping a broken one would flush, and abort the process if that fails: leak it.
        std::mem::forget(db);
        let _ = self.broken.set(why.clone());
        tracing::error!(why, "the record engine broke; no commit is accepted until restart");
        StoreError::Failed(why)
    }
}

/// Carries a layer down, the position last, so that a flush in between would replay all of it.
///
/// Sets go in batches, removals one by one, because only those merge emptied leaves.
fn sink(db: &Db, layer: &Layer) -> std::io::Result<()> {
    let entries: Vec<_> = layer.entries().filter(|(key, _)| key[..] != POSITION_KEY).collect();
    for some in entries.chunks(SUNK_AT_ONCE) {
        let mut sets = sled::Batch::default();
        for (key, held) in some {
            match held {
                Held::Set(value) | Held::Made(value) => sets.insert(key.as_slice(), value.as_slice()),
                Held::Removed => {}
            }
        }
        db.apply_batch(sets)?;
        for (key, _) in some.iter().filter(|(_, held)| **held == Held::Removed) {
            db.remove(key)?;
        }
    }
    let position = layer.entries().find(|(key, _)| key[..] == POSITION_KEY);
    if let Some(value) = position.and_then(|(_, held)| held.value()) {
        db.insert(POSITION_KEY, value.as_slice())?;
    }
    Ok(())
}

impl Drop for Records {
    fn drop(&mut self) {
        if self.broken().is_some() {
            std::mem::forget(std::mem::take(&mut *lock(&self.pool)));
            std::mem::forget(lock(&self.template).take());
        }
    }
}

/// This release of sled, opened with a snapshot and no metadata log after it, writes the snapshot
/// anew under the same name and then removes it. A crash during an open can leave that state behind:
/// an empty log beside the snapshot makes the next open take another name.
fn guard_snapshot(metadata: &Path) -> std::io::Result<()> {
    let (mut snapshot, mut log) = (None, None);
    let entries = match std::fs::read_dir(metadata) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = |prefix: &str| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok();
        snapshot = snapshot.max(number("snapshot_"));
        log = log.max(number("log_"));
    }
    let Some(snapshot) = snapshot.filter(|snapshot| log.is_none_or(|log| log <= *snapshot)) else { return Ok(()) };
    std::fs::File::create(metadata.join(format!("log_{:016x}", snapshot + 1)))?.sync_all()?;
    super::segment::sync_folder(metadata)
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn apply(records: &Records, operations: &[Operation<'_>], position: Position) {
        records.apply(operations.iter().map(|operation| (*operation, Before::Unknown)), position).unwrap();
    }

    #[test]
    fn what_was_flushed_is_there_after_a_reopen_however_writes_and_flushes_met() {
        let folder = tempfile::tempdir().unwrap();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut random = 88_172_645_463_325_252_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for round in 0..8 {
            let records = Arc::new(Records::open(folder.path(), 1 << 20).unwrap());
            let found: BTreeMap<_, _> = records.range(b"T", b"U", usize::MAX).unwrap().into_iter().collect();
            assert!(found == model, "round {round}: {} found, {} expected", found.len(), model.len());
            let done = Arc::new(AtomicBool::new(false));
            let flusher = {
                let (records, done) = (records.clone(), done.clone());
                std::thread::spawn(move || {
                    while !done.load(Ordering::Acquire) {
                        records.flush().unwrap();
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                })
            };
            for commit in 0..200 {
                let key = |number: u64| [b"T", &(number % 3000).to_be_bytes()[..]].concat();
                let pairs: Vec<_> = (0..5).map(|_| (key(next()), vec![next() as u8; 40])).collect();
                let gone: Vec<_> = (0..if round % 2 == 0 { 3 } else { 12 }).map(|_| key(next())).collect();
                let mut operations: Vec<_> = pairs.iter().map(|(key, value)| Operation::Set(key, value)).collect();
                operations.extend(gone.iter().map(|key| Operation::Remove(key)));
                apply(&records, &operations, Position { commit, segment: 1, offset: 1 });
                model.extend(pairs.clone());
                gone.iter().for_each(|key| drop(model.remove(key)));
            }
            done.store(true, Ordering::Release);
            flusher.join().unwrap();
            records.flush().unwrap();
        }
    }

    fn leaves_looked_at(records: &Records) -> u64 {
        records.with(|db| Ok(db.stats().cache)).map(|cache| cache.cache_hits + cache.cache_misses).unwrap()
    }

    #[test]
    fn a_range_that_ends_before_its_limit_reads_nothing_far_behind_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 1 << 20).unwrap();
        let keys: Vec<_> = (0..20_000_u32).map(|number| [b"z", &number.to_be_bytes()[..]].concat()).collect();
        let mut operations: Vec<_> = keys.iter().map(|key| Operation::Set(key, b"value")).collect();
        operations.push(Operation::Set(b"T", b"one"));
        apply(&records, &operations, Position { commit: 1, segment: 1, offset: 1 });
        records.flush().unwrap();
        let before = leaves_looked_at(&records);
        assert_eq!(records.range(b"T", b"U", usize::MAX).unwrap(), [(b"T".to_vec(), b"one".to_vec())]);
        assert_eq!(records.range(b"A", b"B", 10).unwrap(), []);
        let looked_at = leaves_looked_at(&records) - before;
        assert!((1..10).contains(&looked_at), "{looked_at} leaves for two small ranges");
    }

    #[test]
    fn what_was_flushed_is_in_a_copy_of_the_open_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut here = folder.path().join("0");
        let mut commit = 0;
        for round in 1..12_u64 {
            let records = Records::open(&here, 1 << 20).unwrap();
            assert_eq!(records.position().unwrap().commit, commit, "round {round}");
            for _ in 0..round % 4 {
                commit += 1;
                let key = [b"T", &commit.to_be_bytes()[..]].concat();
                let gone = [b"T", &(commit / 2).to_be_bytes()[..]].concat();
                let operations = [Operation::Set(&key, b"value"), Operation::Remove(&gone)];
                let operations = if commit % 3 == 0 { &operations[1..] } else { &operations[..] };
                apply(&records, operations, Position { commit, segment: 1, offset: 1 });
                records.flush().unwrap();
            }
            let next = folder.path().join(round.to_string());
            std::process::Command::new("cp").arg("-r").args([&here, &next]).status().unwrap();
            drop(records);
            here = next;
        }
    }

    /// A log that was finished cannot have been cut off by a crash. What it says that is missing would be
    /// missing for good, since the open makes one snapshot of all logs and removes them.
    #[test]
    fn damage_in_a_finished_log_of_metadata_is_no_end_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 1 << 20).unwrap();
        let mut position = Position { commit: 0, segment: 1, offset: 1 };
        for number in 0..20_u32 {
            position.commit += 1;
            apply(&records, &[Operation::Set(&number.to_be_bytes().map(|byte| byte + b'T'), &[7; 300])], position);
            records.flush().unwrap();
        }
        drop(records);
        let metadata = folder.path().join("metadata");
        let logs = || {
            let paths = std::fs::read_dir(&metadata).unwrap().map(|entry| entry.unwrap().path());
            paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log_")).collect::<Vec<_>>()
        };
        let [log] = &logs()[..] else { panic!("one log was expected: {:?}", logs()) };
        let number = u64::from_str_radix(&log.file_name().unwrap().to_str().unwrap()[4..], 16).unwrap();
        std::fs::write(metadata.join(format!("log_{:016x}", number + 1)), b"").unwrap();
        let whole = std::fs::read(log).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut harmed = whole.clone();
            harmed[at] ^= 1;
            std::fs::write(log, harmed).unwrap();
            assert!(Records::open(folder.path(), 1 << 20).is_err(), "flipped at {at}");
            std::fs::write(log, &whole[..at]).unwrap();
            assert!(at == 0 || Records::open(folder.path(), 1 << 20).is_err(), "cut at {at}");
            assert!(log.exists(), "it is still there to be mended");
        }
        std::fs::write(log, &whole).unwrap();
        let records = Records::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(records.position(), Ok(position));
        assert_eq!(records.range(b"T", b"t", 100).unwrap().len(), 20);
    }

    #[test]
    fn a_crash_between_the_two_steps_of_an_open_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 1 << 20).unwrap();
        let place = Position { commit: 1, segment: 1, offset: 1 };
        apply(&records, &[Operation::Set(b"T", b"kept")], place);
        records.flush().unwrap();
        drop(records);
        for _ in 0..3 {
            drop(Records::open(folder.path(), 1 << 20).unwrap());
            for entry in std::fs::read_dir(folder.path().join("metadata")).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("log_") {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        let records = Records::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(records.get(b"T"), Ok(Some(b"kept".to_vec())));
    }
}
