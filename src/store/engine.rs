//! The built-in engine: opens a folder, hands batches to the committer, reads for everybody.
//!
//! Order at open: lock, records, segments, replay, threads. Order at close: committer, settler, flusher,
//! housekeeping, a last checkpoint. Easy to get wrong: everything that blocks on the disk and is not the
//! committer runs on the blocking threads, never on an async worker.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::FlockOperation;
use tokio::sync::{Semaphore, oneshot};

use super::batch::{check_shape, record_bytes};
use super::bell::Bell;
use super::blobs;
use super::census::Census;
use super::committer::{Beside, Committer, ReadyBody, Waiting, Work};
use super::copy::RecordsCopy;
use super::durable;
use super::format;
use super::frame::{HEADER_BYTES, Header, Kind, padding};
use super::housekeeping;
use super::rebuild::{self, OpenedRecords};
use super::record::Location;
use super::replay::{self, Replayed};
use super::segment::{self, DATA_START};
use super::settler::Settler;
use super::shared::{Faults, Shared};
use super::sled::{Records, panic_text};
use super::space::Space;
use super::table::{Chain, Segments};
use super::{
    Batch, Blobs, BlobsUsage, BodyReader, CommitError, Health, Key, NewBody, OpenError, Opened, Settings, Sharing,
    Store, StoreError, prefix,
};
use crate::mail::{Body, BodyId};

/// The file in the store's folder that whoever has it open has locked.
const LOCK: &str = "lock";
/// One permit of the waiting room stands for this many bytes.
const PERMIT_BYTES: usize = 1024;
/// Bytes read from a spill file at a time.
const SPILL_BYTES: usize = 256 * 1024;
/// How often a folder in use is asked for before the opener gives up.
pub const LOCK_TRIES: u32 = 25;
/// Pause between two tries.
pub const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The engine over one folder.
pub struct SledStore {
    shared: Arc<Shared>,
    inbox: Mutex<Option<Sender<Work>>>,
    room: Arc<Semaphore>,
    room_permits: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: File,
}

/// Opens or creates the store in `settings.folder`. Blocks; may take seconds after a crash.
pub fn open(settings: Settings) -> Result<Opened, OpenError> {
    open_with(settings, Arc::new(Faults::default()))
}

/// As [`open`], with faults a test may switch on.
#[doc(hidden)]
pub fn open_with(settings: Settings, faults: Arc<Faults>) -> Result<Opened, OpenError> {
    let lock = lock_folder(&settings.folder)?;
    format::check(&settings.folder)?;
    let segments_folder = settings.folder.join("segments");
    make_folder(&segments_folder)?;
    let Brought { records, copy, replayed, free } = bring_up(&settings)?;
    let Replayed { used, chain, last_number, damage, batches } = replayed;
    for what in &damage {
        tracing::error!(what, "damage in the store");
    }
    let segments = Segments::new(segments_folder, settings.segment_bytes, settings.spare_segments, used, last_number);
    for (number, spare) in free {
        segments.keep_or_remove(number, spare).map_err(OpenError::Files)?;
    }
    records.begin_work(settings.layer_bytes_max);
    let shared = Arc::new(Shared {
        records,
        copy,
        segments,
        space: Space::new(settings.folder.clone(), settings.free_bytes_min, settings.free_inodes_min),
        faults,
        applied: AtomicU64::new(chain.commits),
        checkpointed: AtomicU64::new(chain.commits),
        unflushed_bytes: AtomicU64::new(0),
        checkpoint_waits: AtomicBool::new(false),
        is_counted: AtomicBool::new(false),
        writing_since: Mutex::new(None),
        settling_since: Mutex::new(None),
        at_work: [Mutex::new(()), Mutex::new(())],
        flush_bell: Bell::default(),
        house_bell: Bell::default(),
        pins: AtomicU32::new(0),
        damage: Mutex::new(damage),
        stopped: OnceLock::new(),
        settings,
    });
    let census = Census::new(last_number.saturating_add(1));
    let store = Arc::new(SledStore::start(shared, chain, census, lock).map_err(OpenError::Files)?);
    Ok(Opened { records: store.clone(), bodies: store.clone(), replayed_batches: batches, engine: store })
}

/// The records as they were acknowledged.
struct Brought {
    records: Records,
    copy: RecordsCopy,
    replayed: Replayed,
    free: Vec<(u64, segment::SpareFile)>,
}

/// Opens the records and replays what they lack; if they are damaged, or behind what the journal still
/// covers, they are made anew.
fn bring_up(settings: &Settings) -> Result<Brought, OpenError> {
    let segments_folder = settings.folder.join("segments");
    let mut opened = rebuild::open_records(settings)?;
    format::stamp(&settings.folder)?;
    let mut is_copy_bad = false;
    // A process that was killed may have made and removed names that a power cut would still undo.
    durable::sync_folder(&segments_folder).map_err(OpenError::Files)?;
    loop {
        let may_rebuild = opened.rebuilt.is_none() && !is_copy_bad;
        let found = segment::open_all(&segments_folder).map_err(format::files)?;
        let copy = RecordsCopy::open(&settings.folder).map_err(format::files)?;
        if is_copy_bad {
            copy.give_up();
        }
        if opened.doubt.is_some() {
            copy.put_off();
        }
        let error = match replay::replay(&opened.records, &copy, found, may_rebuild) {
            Ok((mut replayed, free)) => {
                rebuild::clear_up(&settings.folder, opened.rebuilt.is_some()).map_err(OpenError::Files)?;
                replayed.damage.splice(0..0, opened.rebuilt.into_iter().chain(opened.doubt));
                return Ok(Brought { records: opened.records, copy, replayed, free });
            }
            Err(error) => error,
        };
        let is_mendable = match &error {
            OpenError::Records(_) => opened.records.is_damaged(),
            OpenError::WentBack { commit, .. } => copy.commit().is_some_and(|copied| copied > *commit),
            _ => false,
        };
        if !(may_rebuild && is_mendable) {
            return Err(error);
        }
        if matches!(error, OpenError::WentBack { .. }) && !copy.is_whole() {
            // Of two that are damaged the records have more, and what they lack is said.
            tracing::error!(%error, "the copy of the records is damaged too");
            is_copy_bad = true;
            continue;
        }
        let OpenedRecords { records, .. } = opened;
        drop(records);
        // Where that fails nothing is opened in its place: the copy has more than the records.
        opened = rebuild::rebuild(settings, &error.to_string()).map_err(|refusal| {
            tracing::error!(%refusal, "the records could not be made anew");
            error
        })?;
    }
}

fn make_folder(folder: &Path) -> Result<(), OpenError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(OpenError::Files)
}

/// Holds the folder for this process alone until the file is dropped.
pub fn lock_folder(folder: &Path) -> Result<File, OpenError> {
    make_folder(folder)?;
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(OpenError::Files)?;
    // A child between fork and exec holds our locks for a moment: ask a few times.
    match lock_by(&file, Instant::now() + LOCK_TRIES * LOCK_PAUSE) {
        Ok(true) => Ok(file),
        Ok(false) => Err(OpenError::InUse(folder.to_owned())),
        Err(error) => Err(OpenError::Files(error)),
    }
}

/// Whether the lock could be had until then. Blocks.
fn lock_by(file: &File, until: Instant) -> std::io::Result<bool> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() >= until => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until nobody has the store in `folder` open any more, `patience` at most; whether that came true. A store
/// closes when the last who holds it lets go of it, which may be somebody who was just reading. Makes and writes
/// nothing: the disk may be why the store ends.
pub async fn closed(folder: &Path, patience: Duration) -> bool {
    let (until, path) = (Instant::now() + patience, folder.join(LOCK));
    let wait = move || match File::open(path) {
        Ok(file) => lock_by(&file, until).unwrap_or(false),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    // A disk that hangs keeps the thread, and not whoever waits here.
    tokio::time::timeout(patience + LOCK_PAUSE, tokio::task::spawn_blocking(wait))
        .await
        .is_ok_and(|held| held.unwrap_or(false))
}

impl SledStore {
    fn start(shared: Arc<Shared>, chain: Chain, census: Census, lock: File) -> std::io::Result<Self> {
        let (inbox, work) = channel();
        let (written, to_settle) = channel();
        let (settled, has_settled) = channel();
        let settler = Arc::new(Settler::new(Arc::clone(&shared), census));
        let committer = Committer::new(
            Arc::clone(&shared),
            chain,
            Beside { settler: settler.clone(), written, settled: has_settled },
        );
        let room_permits = (shared.settings.waiting_bytes_max / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let store = Self {
            shared: Arc::clone(&shared),
            inbox: Mutex::new(Some(inbox.clone())),
            room: Arc::new(Semaphore::new(room_permits)),
            room_permits,
            threads: Mutex::new(Vec::new()),
            _lock: lock,
        };
        let (commit, flush, house) = (Arc::clone(&shared), Arc::clone(&shared), shared);
        store.spawn("store-commit", move || run_committer(&commit, committer, &work))?;
        store.spawn("store-settle", move || settler.run(&to_settle, &settled))?;
        store.spawn("store-flush", move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| housekeeping::flush_loop(&flush))) {
                flush.stop(format!("the flusher panicked: {}", panic_text(&*panic)));
            }
        })?;
        store.spawn("store-house", move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| housekeeping::house_loop(&house, &inbox))) {
                house.damaged(format!("housekeeping ended: {}", panic_text(&*panic)));
            }
        })?;
        Ok(store)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// What the engine's threads share, for a snapshot.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What was found damaged since the open, in words.
    pub fn damage(&self) -> Vec<String> {
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `work` while neither a checkpoint nor housekeeping is under way.
    #[cfg(test)]
    pub(super) fn at_rest<T>(&self, work: impl FnOnce() -> T) -> T {
        let _rest = self.shared.at_work.each_ref().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        work()
    }

    /// The bodies the records name.
    #[cfg(test)]
    pub(super) fn named_bodies(&self) -> Vec<BodyId> {
        let (from, to) = super::record::locations_range();
        let pairs = self.shared.records.range(&from, &to, usize::MAX).unwrap_or_default();
        pairs.iter().filter_map(|(key, _)| super::record::location_key_id(key)).collect()
    }

    /// Where the last group in the newest journal segment ends.
    #[cfg(test)]
    pub(super) fn journal_end(&self) -> u64 {
        self.shared.segments.all().last().map_or(DATA_START, |segment| segment.end.load(Ordering::Acquire))
    }

    fn stopped(&self) -> CommitError {
        CommitError::Stopped(self.shared.stop_reason().unwrap_or_else(|| "the store is closed".into()))
    }

    /// Computes checksums, reads spilled bodies, puts large ones into segments of their own.
    async fn ready(&self, bodies: Vec<NewBody>) -> Result<Vec<ReadyBody>, CommitError> {
        if bodies.iter().all(|body| matches!(body.message.body, Body::Memory(_)) && !self.is_large(body)) {
            return Ok(bodies.into_iter().map(ready_in_memory).collect());
        }
        let shared = Arc::clone(&self.shared);
        let work = move || ready_from_disk(&shared, bodies);
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(CommitError::Failed(error.to_string())))
    }

    fn is_large(&self, body: &NewBody) -> bool {
        body.message.length() >= self.shared.settings.own_segment_bytes_min
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = inbox.send(Work::Close);
        }
        self.shared.records.end_work();
        self.shared.house_bell.close();
        self.shared.flush_bell.close();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        if self.shared.stop_reason().is_none() {
            housekeeping::checkpoint(&self.shared);
        }
    }
}

fn run_committer(shared: &Shared, committer: Committer, inbox: &Receiver<Work>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| committer.run(inbox))) {
        shared.stop(format!("the committer panicked: {}", panic_text(&*panic)));
    }
}

fn ready_in_memory(body: NewBody) -> ReadyBody {
    let NewBody { id, envelope, message } = body;
    let rest = match message.body {
        Body::Memory(rest) => rest,
        Body::Spilled(_) => Bytes::new(),
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&envelope), &message.head);
    let crc = crc32c::crc32c_append(crc, &rest);
    ReadyBody { id, envelope, message: [message.head, rest], crc, own: None }
}

fn ready_from_disk(shared: &Shared, bodies: Vec<NewBody>) -> Result<Vec<ReadyBody>, CommitError> {
    let mut ready = Vec::with_capacity(bodies.len());
    for body in bodies {
        let made = if body.message.length() >= shared.settings.own_segment_bytes_min {
            write_own(shared, &body)
        } else {
            read_spilled(body)
        };
        ready.push(made?);
    }
    Ok(ready)
}

fn read_spilled(mut body: NewBody) -> Result<ReadyBody, CommitError> {
    if let Body::Spilled(spill) = &body.message.body {
        let length =
            usize::try_from(spill.length).map_err(|_| CommitError::Failed("a body too long for memory".into()))?;
        let mut bytes = vec![0; length];
        spill.file.read_exact_at(&mut bytes, 0).map_err(|error| CommitError::Failed(format!("spill file: {error}")))?;
        body.message.body = Body::Memory(Bytes::from(bytes));
    }
    Ok(ready_in_memory(body))
}

/// Streams a large body into a segment of its own and syncs it.
fn write_own(shared: &Shared, body: &NewBody) -> Result<ReadyBody, CommitError> {
    let envelope_bytes = u32::try_from(body.envelope.len()).unwrap_or(u32::MAX);
    let message_bytes = body.message.length();
    let mut location = Location { segment: 0, offset: DATA_START, envelope_bytes, message_bytes };
    let segment = shared.segments.begin_own(location.frame_bytes()).map_err(|error| shared.refuse(&error))?;
    location.segment = segment.header.number;
    match stream(body, &segment, location) {
        Ok(crc) => {
            durable::sync_data(&segment.file).map_err(|error| shared.refuse(&error))?;
            segment.end.store(segment.size, Ordering::Release);
            let message = [Bytes::new(), Bytes::new()];
            Ok(ReadyBody { id: body.id, envelope: Vec::new(), message, crc, own: Some((location, segment)) })
        }
        Err(error) => Err(shared.refuse(&error)),
    }
}

fn stream(body: &NewBody, segment: &segment::Segment, location: Location) -> std::io::Result<u32> {
    let mut at = location.offset + HEADER_BYTES as u64;
    let mut crc = 0;
    let mut put = |part: &[u8]| {
        crc = crc32c::crc32c_append(crc, part);
        let here = at;
        at += part.len() as u64;
        segment.file.write_all_at(part, here)
    };
    put(&body.envelope)?;
    put(&body.message.head)?;
    match &body.message.body {
        Body::Memory(bytes) => put(bytes)?,
        Body::Spilled(spill) => {
            let mut buffer = vec![0; SPILL_BYTES];
            let mut read = 0;
            while read < spill.length {
                let part = usize::try_from(spill.length - read).unwrap_or(SPILL_BYTES).min(SPILL_BYTES);
                spill.file.read_exact_at(&mut buffer[..part], read)?;
                put(&buffer[..part])?;
                read += part as u64;
            }
        }
    }
    let payload_bytes = u64::from(location.envelope_bytes) + location.message_bytes;
    put_padding(segment, at, payload_bytes)?;
    let header = Header {
        kind: Kind::Body,
        group: 1,
        payload_bytes,
        body: body.id,
        envelope_bytes: location.envelope_bytes,
        payload_crc: crc,
    };
    segment.file.write_all_at(&header.to_bytes(&segment.header.salt, location.offset), location.offset)?;
    Ok(crc)
}

fn put_padding(segment: &segment::Segment, at: u64, payload_bytes: u64) -> std::io::Result<()> {
    segment.file.write_all_at(&[0; 8][..padding(payload_bytes)], at)
}

#[async_trait]
impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if key.first().is_none_or(|first| *first == prefix::ENGINE) {
            return Ok(None);
        }
        self.shared.records.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        // The engine's own records come first of all keys and are not shown.
        self.shared.records.range(from.max(&[prefix::ENGINE + 1]), to, limit)
    }

    async fn commit(&self, mut batch: Batch) -> Result<(), CommitError> {
        if self.shared.stop_reason().is_some() {
            return Err(self.stopped());
        }
        check_shape(&batch)?;
        if !batch.bodies.is_empty()
            && let Some(lacking) = self.shared.space.shortage()
        {
            return Err(CommitError::Full(lacking));
        }
        let new_bodies = std::mem::take(&mut batch.bodies);
        let in_memory = |body: &NewBody| if self.is_large(body) { 0 } else { body.message.length() };
        let body_bytes: u64 = new_bodies.iter().map(|body| body.envelope.len() as u64 + in_memory(body)).sum();
        let bytes = record_bytes(&batch).saturating_add(usize::try_from(body_bytes).unwrap_or(usize::MAX));
        let permits = u32::try_from((bytes / PERMIT_BYTES + 1).min(self.room_permits)).unwrap_or(u32::MAX);
        let permit = match Arc::clone(&self.room).try_acquire_many_owned(permits) {
            Ok(permit) => permit,
            Err(_) => Arc::clone(&self.room).acquire_many_owned(permits).await.map_err(|_| self.stopped())?,
        };
        let bodies = self.ready(new_bodies).await?;
        let (reply, answer) = oneshot::channel();
        let work = Work::Commit(Box::new(Waiting { batch, bodies, reply, permit }));
        {
            let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            let inbox = inbox.as_ref().ok_or_else(|| self.stopped())?;
            inbox.send(work).map_err(|_| self.stopped())?;
        }
        answer.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn health(&self) -> Health {
        if let Some(why) = self.shared.stop_reason() {
            return Health::Stopped(why);
        }
        self.shared.space.shortage().map_or(Health::Accepting, Health::LowSpace)
    }

    fn writing_since(&self) -> Option<Instant> {
        self.shared.busy_since()
    }

    fn stop(&self, why: &str) {
        self.shared.stop(why.to_owned());
    }

    fn sharing(&self) -> Sharing {
        Sharing::Exclusive
    }
}

impl Blobs for SledStore {
    fn open(&self, id: BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError> {
        Ok(blobs::open(&self.shared, id)?.map(|reader| Box::new(reader) as Box<dyn BodyReader>))
    }

    fn usage(&self) -> BlobsUsage {
        self.shared.segments.usage()
    }
}
