//! The ordered map under the engine: sled, every call guarded, nothing else of it visible, and above it
//! the changes since the last checkpoint (see `layers`), which only `flush` carries down.
//!
//! Its `Db` is `Send` but not `Sync`, so callers borrow a clone from a pool. A panic or error in any
//! call is final: the clone is leaked, `broken` is set, and only a new process opens it again.
//! Easy to get wrong: a range with an end reads to the end of the tree; with sled's timer switched off every drop of a `Db`, a `Tree` or an iterator
//! flushes; with a timer of ten years none does, and the one flusher stays the only one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use super::engine::{LOCK_PAUSE, LOCK_TRIES};
use super::frame::le64;
use super::layers::{Held, Layer, Layers};
use super::record::{Before, Operation, POSITION_KEY, Position};
use super::{Key, StoreError};
use crate::ext;

type Db = sled::Db<LEAF_KEYS>;

/// Keys in one leaf, at most. Cannot change once a folder exists.
const LEAF_KEYS: usize = 256;
/// Ten years: sled's own timer never fires.
const NEVER_MS: usize = 10 * 365 * 24 * 3600 * 1000;
/// zstd level of stored leaves; the higher ones cost the committer time.
const COMPRESSION_LEVEL: i32 = 1;

/// How what is said of a panic begins.
pub const PANICKED: &str = "sled panicked";

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
    is_damaged: AtomicBool,
    note: Option<PathBuf>,
    folder: PathBuf,
    room: sled::room::Room,
}

/// Why the map could not be opened, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// What is in the files is wrong.
    Damaged(String),
    /// The device or the system refused; nothing is known to be wrong with the files.
    Failed(String),
}

impl Broken {
    /// What is wrong.
    pub fn text(&self) -> &str {
        match self {
            Self::Damaged(why) | Self::Failed(why) => why,
        }
    }
}

/// Whether an error is about what the files hold. The engine's checksums say so by these kinds, and a file
/// that is cut off or gone has them; whatever the system refuses (room, memory, a thread, a descriptor, a
/// permission, a bad device) has others.
fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof) && !is_refusal(&error.to_string())
}

/// Whether what a panic said is about something that the system refused: the engine unwraps some of that,
/// and what follows from it in other threads.
fn is_refusal(text: &str) -> bool {
    const OF_THE_SYSTEM: [&str; 6] = ["Os {", "os error", "memory", "thread", "SendError", "Poison"];
    OF_THE_SYSTEM.iter().any(|words| text.contains(words)) && !text.contains("os error 2)")
}

/// How far the record files reached, and which they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    instance: [u8; INSTANCE_BYTES],
    engine: sled::extent::Extent,
}

const INSTANCE_BYTES: usize = 16;
/// A file with a random name of these record files: what was noted of others does not count for them.
const INSTANCE: &str = "instance";

impl Extent {
    /// Of the record files in `folder`, if it can be told; for the flusher, between two flushes.
    fn of(folder: &Path) -> Option<Self> {
        let instance = std::fs::read(folder.join(INSTANCE)).ok()?.try_into().ok()?;
        Some(Self { instance, engine: sled::extent::Extent::of(folder).ok()? })
    }

    /// Whether the record files in `folder`, which nobody has open, still reach so far; other files always
    /// do. A flush that is not there any more could be told from nothing else: its places in the files may
    /// have been written to again.
    pub fn check(&self, folder: &Path) -> Result<(), Broken> {
        match std::fs::read(folder.join(INSTANCE)) {
            Ok(instance) if instance == self.instance => {}
            _ => return Ok(()),
        }
        // The engine has names of its files that it cannot bear.
        match catch_unwind(AssertUnwindSafe(|| self.engine.check(folder))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if !is_damage(&error) => Err(Broken::Failed(format!("the record files: {error}"))),
            Ok(Err(error)) => Err(Broken::Damaged(format!("the record files are damaged: {error}"))),
            Err(panic) => Err(Broken::Damaged(format!("the record files are damaged: {}", panic_text(&*panic)))),
        }
    }

    /// As a value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.instance.to_vec();
        bytes.extend_from_slice(&self.engine.snapshot.to_le_bytes());
        for (log, length) in &self.engine.logs {
            bytes.extend_from_slice(&log.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes
    }

    /// From a value.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (instance, rest) = bytes.split_first_chunk::<INSTANCE_BYTES>()?;
        let (snapshot, logs) = rest.split_first_chunk::<8>()?;
        let (logs, []) = logs.as_chunks::<16>() else { return None };
        let logs = logs.iter().map(|log| (le64(&log[..8]), le64(&log[8..]))).collect();
        let engine = sled::extent::Extent { snapshot: u64::from_le_bytes(*snapshot), logs };
        Some(Self { instance: *instance, engine })
    }
}

/// Names the record files in `folder`, if they have no name yet.
fn name(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(INSTANCE);
    // A power cut may have left one that is empty.
    match std::fs::read(&path) {
        Ok(name) if name.len() == INSTANCE_BYTES => return Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::write(&path, ext::random_bytes::<INSTANCE_BYTES>())?;
    sync_file(&path)
}

impl Records {
    /// Opens or creates the map in `folder`. If damage is met later, in the midst of work, `note` is
    /// written with what it was.
    pub fn open(folder: &Path, cache_bytes: usize, note: Option<PathBuf>) -> Result<Self, Broken> {
        let room = sled::room::Room::default();
        let mut config = sled::Config::new()
            .path(folder)
            .cache_capacity_bytes(cache_bytes)
            .zstd_compression_level(COMPRESSION_LEVEL)
            .flush_every_ms(Some(NEVER_MS));
        config.room = room.clone();
        guard_snapshot(&folder.join("metadata"))
            .map_err(|error| Broken::Failed(format!("the record files: {error}")))?;
        let mut tries = LOCK_TRIES;
        let db = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open::<LEAF_KEYS>())) {
                Ok(Ok(db)) => break db,
                // sled locks its folder too; see `lock_folder`.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Ok(Err(error)) if is_damage(&error) => {
                    return Err(Broken::Damaged(format!("the record files are damaged: {error}")));
                }
                Ok(Err(error)) => return Err(Broken::Failed(format!("the record files could not be opened: {error}"))),
                Err(panic) => {
                    let text = panic_text(&*panic);
                    return Err(match is_refusal(&text) {
                        true => Broken::Failed(format!("the record files could not be opened: {text}")),
                        false => Broken::Damaged(format!("the record files are damaged: {text}")),
                    });
                }
            }
        };
        name(folder).map_err(|error| Broken::Failed(format!("the record files: {error}")))?;
        Ok(Self {
            layers: RwLock::default(),
            flushing: Mutex::default(),
            pool: Mutex::new(Vec::new()),
            template: Mutex::new(Some(db)),
            broken: OnceLock::new(),
            is_damaged: AtomicBool::new(false),
            note,
            folder: folder.to_owned(),
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

    /// Whether it is because of what the files hold, and not of what the system refused.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire)
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(held) = self.read_layers().get(key) {
            return Ok(held.value().cloned());
        }
        self.with(|db| Ok(db.get(key)?.map(|value| value.to_vec())))
    }

    /// Reads every record, of those that were flushed.
    pub fn read_all(&self) -> Result<(), StoreError> {
        self.with(|db| db.iter().try_for_each(|pair| pair.map(drop)))
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

    /// Does the operations in order, then notes the position. For the settler alone.
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

    /// Bytes of records that were applied since the last flush.
    pub fn unflushed_bytes(&self) -> usize {
        self.read_layers().bytes()
    }

    /// Makes what was applied before this call durable. For the flusher, and at open and close.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_after(|_| Ok(()))
    }

    /// As [`Records::flush`], with something to be done with what becomes durable before any of it is. If
    /// that fails, nothing works any more.
    pub fn flush_after(&self, first: impl FnOnce(&Layer) -> std::io::Result<()>) -> Result<(), StoreError> {
        let _flushing = lock(&self.flushing);
        let layer = self.layers.write().unwrap_or_else(PoisonError::into_inner).begin();
        if let Err(error) = first(&layer) {
            let why = format!("before a flush: {error}");
            let _ = self.broken.set(why.clone());
            return Err(StoreError::Failed(why));
        }
        self.with(|db| {
            sink(db, &layer)?;
            db.flush().map(drop)
        })?;
        self.layers.write().unwrap_or_else(PoisonError::into_inner).sunk();
        Ok(())
    }

    /// Where somebody stands who reads everything from now on, until the next flush: what changes meanwhile
    /// becomes durable with that flush, and what is made and removed meanwhile leaves a trace in it.
    pub fn begin_reading(&self) -> Result<Position, StoreError> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner).keep_removals();
        self.position()
    }

    /// How far the files reach, if it can be told. For the flusher, between two flushes.
    pub fn extent(&self) -> Option<Extent> {
        Extent::of(&self.folder)
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
            Ok(Err(error)) if is_damage(&error) => Err(self.damaged(db, format!("sled: {error}"))),
            Ok(Err(error)) => Err(self.break_down(db, format!("sled: {error}"))),
            Err(panic) => match panic_text(&*panic) {
                text if is_refusal(&text) => Err(self.break_down(db, format!("{PANICKED}: {text}"))),
                text => Err(self.damaged(db, format!("{PANICKED}: {text}"))),
            },
        }
    }

    fn borrow(&self) -> Result<Db, StoreError> {
        if let Some(db) = lock(&self.pool).pop() {
            return Ok(db);
        }
        let template = lock(&self.template);
        template.clone().ok_or_else(|| StoreError::Failed("the records are closed".into()))
    }

    /// Breaks down, and leaves a note for the next opening. A panic counts: what the engine cannot
    /// bear once, it may not bear again.
    fn damaged(&self, db: Db, why: String) -> StoreError {
        // What comes after something was refused may be its consequence.
        if self.broken().is_some() {
            return self.break_down(db, why);
        }
        self.is_damaged.store(true, Ordering::Release);
        let written = self.note.as_ref().map(|note| std::fs::write(note, &why).and_then(|()| sync_file(note)));
        if let Some(Err(error)) = written {
            tracing::error!(%error, "the note that the records are damaged could not be written");
        }
        self.break_down(db, why)
    }

    fn break_down(&self, db: Db, why: String) -> StoreError {
        // Dropping a broken one would flush once more: leak it.
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
    super::durable::sync_folder(metadata)
}

fn sync_file(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()?;
    path.parent().map_or(Ok(()), super::durable::sync_folder)
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

    use super::*;

    fn apply(records: &Records, operations: &[Operation<'_>], position: Position) {
        records.apply(operations.iter().map(|operation| (*operation, Before::Unknown)), position).unwrap();
    }

    #[test]
    fn a_close_that_can_write_nothing_ends_no_process_and_loses_no_more_than_that() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
        apply(&records, &[Operation::Set(b"T1", b"flushed")], Position::default());
        records.flush().unwrap();
        // Something that only the engine's own flush at its end would write.
        records.with(|db| db.insert(b"T2", b"not flushed").map(drop)).unwrap();
        records.pretend_full(true);
        drop(records);
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
        let found = records.range(b"T", b"U", 9).unwrap();
        assert_eq!(found, [(b"T1".to_vec(), b"flushed".to_vec())]);
    }

    #[test]
    fn memory_holds_what_the_cache_may_hold_however_records_are_written_and_read() {
        const RECORDS: u32 = 160_000;
        const CACHE: usize = 8 << 20;
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), CACHE, None).unwrap();
        let resident = || records.with(|db| Ok(db.resident_bytes())).unwrap();
        let key = |number: u32| [&b"T"[..], &number.to_be_bytes()].concat();
        let (value, mut most) = ([7; 100], 0);
        for number in 0..RECORDS {
            // Every second one goes between those that are there.
            let number = if number % 2 == 0 { number } else { number.wrapping_mul(7919) % RECORDS };
            apply(&records, &[Operation::Set(&key(number), &value)], Position::default());
            if number % 4_000 == 0 {
                records.flush().unwrap();
                most = most.max(resident());
            }
        }
        records.flush().unwrap();
        let written = most;
        for from in (0..RECORDS).step_by(5) {
            // As a copy of everything and readers of events read, a little at a time.
            assert!(records.range(&key(from), &key(RECORDS), 5).unwrap().len() <= 5);
            if from % 4_000 == 0 {
                most = most.max(resident());
            }
        }
        // What was written last waits for the next flush, and sizes are rounded to powers of two.
        assert!((CACHE / 2..2 * CACHE).contains(&most), "{most} bytes in memory, {written} after writing");
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
            // With hardly any cache every leaf goes and comes back again and again.
            let cache = [1 << 20, 1 << 8][round % 2];
            let records = Arc::new(Records::open(folder.path(), cache, None).unwrap());
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
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
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
            let records = Records::open(&here, 1 << 20, None).unwrap();
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
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
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
            assert!(Records::open(folder.path(), 1 << 20, None).is_err(), "flipped at {at}");
            std::fs::write(log, &whole[..at]).unwrap();
            assert!(at == 0 || Records::open(folder.path(), 1 << 20, None).is_err(), "cut at {at}");
            assert!(log.exists(), "it is still there to be mended");
        }
        std::fs::write(log, &whole).unwrap();
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
        assert_eq!(records.position(), Ok(position));
        assert_eq!(records.range(b"T", b"t", 100).unwrap().len(), 20);
    }

    #[test]
    fn what_the_system_refuses_is_no_damage_however_the_engine_says_it() {
        use rustix::io::Errno;
        use std::io::{Error, ErrorKind};
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::ACCESS,
            Errno::PERM,
            Errno::IO,
            Errno::AGAIN,
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::ROFS,
            Errno::INVAL,
            Errno::INTR,
            Errno::BUSY,
        ] {
            let error = Error::from(errno);
            let annotated = Error::new(error.kind(), format!("src/heap.rs:1 -> {error}"));
            assert!(!is_damage(&error) && !is_damage(&annotated), "{error}");
            for refused in [Error::from(errno), annotated] {
                let refuse = || -> std::io::Result<()> { Err(refused) };
                let panic = catch_unwind(AssertUnwindSafe(|| refuse().unwrap())).unwrap_err();
                assert!(is_refusal(&panic_text(&*panic)), "{error}");
            }
        }
        let no_threads = "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(Os \
            { code: 11, kind: WouldBlock, message: \"Resource temporarily unavailable\" }) }";
        assert!(is_refusal(no_threads));
        let no_memory = Error::new(ErrorKind::InvalidData, "Allocation error : not enough memory");
        assert!(!is_damage(&no_memory));
        for kind in [ErrorKind::InvalidData, ErrorKind::UnexpectedEof] {
            assert!(is_damage(&Error::new(kind, "crc mismatch - data corruption detected")));
        }
        assert!(is_damage(&Error::from(Errno::NOENT)));
        assert!(!is_refusal("called `Option::unwrap()` on a `None` value"));
    }

    #[test]
    fn a_crash_between_the_two_steps_of_an_open_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
        let place = Position { commit: 1, segment: 1, offset: 1 };
        apply(&records, &[Operation::Set(b"T", b"kept")], place);
        records.flush().unwrap();
        drop(records);
        for _ in 0..3 {
            drop(Records::open(folder.path(), 1 << 20, None).unwrap());
            for entry in std::fs::read_dir(folder.path().join("metadata")).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("log_") {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        let records = Records::open(folder.path(), 1 << 20, None).unwrap();
        assert_eq!(records.get(b"T"), Ok(Some(b"kept".to_vec())));
    }
}
