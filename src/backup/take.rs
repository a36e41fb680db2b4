//! Takes a backup from the running daemon: reads everything, compresses, seals, and gives it out in chunks.
//!
//! Memory is bounded by the chunks that wait for whoever fetches them. Easy to get wrong: while a backup
//! runs the store gives no space back, so one that nobody fetches, or that fills the disk, is ended.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::BackupError;
use super::entry::{self, Counts, Entry, Manifest, PART_BYTES, Place};
use crate::access::{Actor, Permission};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::records;
use crate::seal::{BackupKey, MasterKey, SealingWriter};
use crate::store::{Batch, FORMAT, Health, Piece, Snapshots};

/// zstd's level: three is fast, and mail gains little from more.
const LEVEL: i32 = 3;
/// Bytes of one chunk on its way to whoever fetches it.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that may wait.
const CHUNKS_MAX: usize = 4;
/// A backup of which nobody takes a chunk for so long is ended.
const STALL: Duration = Duration::from_secs(60);
/// A longer file in the certificate folder is not a certificate.
const CERTIFICATE_BYTES_MAX: u64 = 1024 * 1024;

/// Where things are that are not in the store.
#[derive(Clone, Debug)]
pub struct Places {
    /// The machine's name.
    pub hostname: String,
    /// The configuration file.
    pub configuration: PathBuf,
    /// The certificate folder.
    pub certificates: PathBuf,
    /// The folder of past events.
    pub history: PathBuf,
    /// The file of the backup key, or why there is none.
    pub backup_key: Result<PathBuf, String>,
}

/// Takes backups, one at a time.
pub struct Backup {
    engine: Arc<dyn Snapshots>,
    master: Arc<MasterKey>,
    places: Places,
    is_running: Arc<AtomicBool>,
}

impl Backup {
    /// Of this store and these places.
    pub fn new(engine: Arc<dyn Snapshots>, master: Arc<MasterKey>, places: Places) -> Self {
        Self { engine, master, places, is_running: Arc::default() }
    }

    /// Begins one; its bytes, chunk by chunk. An error among them, or an end without the sealed
    /// stream's own end, means that the file is of no use. One that fails is an event.
    pub async fn take(&self, actor: &Actor, now: Timestamp) -> Result<Receiver<io::Result<Bytes>>, BackupError> {
        actor.require(Permission::ManageInstance)?;
        let begun = self.begin(actor, now).await;
        // Whoever finds one under way hears from that one how it ended.
        if let Err(error) = begun.as_ref()
            && !matches!(error, BackupError::Busy)
        {
            tell_failed(&*self.engine, error, now).await;
        }
        begun
    }

    async fn begin(&self, actor: &Actor, now: Timestamp) -> Result<Receiver<io::Result<Bytes>>, BackupError> {
        let path = self.places.backup_key.clone().map_err(BackupError::Key)?;
        let loaded = tokio::task::spawn_blocking(move || {
            BackupKey::load(&path).map_err(|error| {
                let remedy = if path.exists() { "" } else { "; postern backup key makes one" };
                BackupError::Key(format!("{error}{remedy}"))
            })
        });
        let key = loaded.await.map_err(|error| BackupError::Files(error.to_string()))??;
        if self.is_running.swap(true, Ordering::AcqRel) {
            return Err(BackupError::Busy);
        }
        let running = Running(Arc::clone(&self.is_running));
        let mut batch = Batch::new();
        records::audit(&mut batch, actor, "backup", format!("under key {}", key.id()), now);
        self.engine.commit(batch).await?;
        let (sender, receiver) = channel(CHUNKS_MAX);
        let (engine, master, places) = (Arc::clone(&self.engine), Arc::clone(&self.master), self.places.clone());
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let _running = running;
            let own = handle.clone();
            let out = ChunkWriter { sender: sender.clone(), handle, waiting: Vec::with_capacity(CHUNK_BYTES) };
            let manifest = Manifest {
                hostname: places.hostname.clone(),
                release: env!("CARGO_PKG_VERSION").to_owned(),
                store_format: FORMAT,
                taken: now,
            };
            let written = write((&*engine, &places), (&key, &master), manifest, out);
            match written.and_then(|counts| fetched(&sender, &own).map(|()| counts)) {
                Ok(counts) => {
                    tracing::info!(?counts, key = key.id(), "a backup was taken");
                    let (messages, unreadable) = (counts.bodies, counts.unreadable);
                    let taken = InstanceEvent::BackupTaken { key: key.id(), messages, unreadable };
                    own.block_on(tell(&*engine, taken, Timestamp::now()));
                }
                Err(error) => {
                    tracing::error!(%error, "a backup was not finished; what was fetched of it is of no use");
                    own.block_on(tell_failed(&*engine, &error, Timestamp::now()));
                    let _ = sender.try_send(Err(error));
                }
            }
        });
        Ok(receiver)
    }
}

async fn tell_failed(engine: &dyn Snapshots, why: &(dyn std::fmt::Display + Sync), now: Timestamp) {
    tell(engine, InstanceEvent::BackupFailed { reason: why.to_string() }, now).await;
}

/// Writes down how a backup ended, for whoever is told; a store that is the reason of a failure cannot.
async fn tell(engine: &dyn Snapshots, told: InstanceEvent, now: Timestamp) {
    let mut batch = Batch::new();
    events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
    if let Err(error) = engine.commit(batch).await {
        tracing::warn!(%error, "how a backup ended could not be recorded");
    }
}

/// Waits until every chunk was taken: what nobody has is no backup.
fn fetched(sender: &Sender<io::Result<Bytes>>, handle: &Handle) -> io::Result<()> {
    match handle.block_on(async { tokio::time::timeout(STALL, sender.reserve_many(CHUNKS_MAX)).await }) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(gone_away()),
        Err(_) => Err(nobody_takes()),
    }
}

fn gone_away() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "whoever fetched it went away")
}

fn nobody_takes() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nobody took a chunk of it for a minute")
}

/// Gives the turn back, however the backup ends.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn write(
    (engine, places): (&dyn Snapshots, &Places),
    (key, master): (&BackupKey, &MasterKey),
    manifest: Manifest,
    out: impl Write,
) -> io::Result<Counts> {
    let mut packed = zstd::stream::write::Encoder::new(SealingWriter::new(out, key)?, LEVEL)?;
    let mut counts = Counts::default();
    entry::put(&mut packed, &Entry::Manifest(manifest))?;
    entry::put(&mut packed, &Entry::MasterKey(&key.wrap(master)))?;
    put_file(&mut packed, (Place::Configuration, "postern.toml"), &places.configuration, &mut counts)?;
    for (name, path) in certificates(&places.certificates)? {
        put_file(&mut packed, (Place::Certificates, &name), &path, &mut counts)?;
    }
    let had_room = engine.health() == Health::Accepting;
    engine.snapshot(&mut |piece| {
        check_health(engine, had_room)?;
        put_piece(&mut packed, piece, &mut counts)
    })?;
    // After the records: what was moved out of them before their end is in the files by now.
    for (name, path) in files_in(&places.history)? {
        put_file(&mut packed, (Place::History, &name), &path, &mut counts)?;
    }
    entry::put(&mut packed, &Entry::Finished(counts))?;
    packed.finish()?.finish()?;
    Ok(counts)
}

/// Taking mail goes before copying it.
fn check_health(engine: &dyn Snapshots, had_room: bool) -> io::Result<()> {
    match engine.health() {
        Health::LowSpace(why) if had_room => {
            Err(io::Error::new(io::ErrorKind::StorageFull, format!("ended, because the disk is running full: {why}")))
        }
        Health::Stopped(why) => Err(io::Error::other(why)),
        _ => Ok(()),
    }
}

fn put_piece(out: &mut impl Write, piece: Piece<'_>, counts: &mut Counts) -> io::Result<()> {
    match piece {
        Piece::Begin(commit) => entry::put(out, &Entry::Store(commit)),
        Piece::Set(key, value) => {
            counts.records += 1;
            entry::put(out, &Entry::Set(key, value))
        }
        Piece::Remove(key) => {
            counts.records += 1;
            entry::put(out, &Entry::Remove(key))
        }
        Piece::Unreadable(id, why) => {
            counts.unreadable += 1;
            entry::put(out, &Entry::Unreadable(id, why.as_str()))
        }
        Piece::Body(id, envelope, reader) => {
            let length = reader.length();
            entry::put(out, &Entry::Body(id, envelope, length))?;
            loop {
                match reader.next_slice() {
                    Ok(Some(slice)) => {
                        slice.chunks(PART_BYTES).try_for_each(|part| entry::put(out, &Entry::Part(part)))?;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        counts.unreadable += 1;
                        return entry::put(out, &Entry::Unreadable(id, error.to_string().as_str()));
                    }
                }
            }
            counts.bodies += 1;
            counts.body_bytes += length;
            entry::put(out, &Entry::End)
        }
    }
}

fn put_file(out: &mut impl Write, named: (Place, &str), path: &Path, counts: &mut Counts) -> io::Result<()> {
    let named_error = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = match File::open(path) {
        // A day's events may be past their retention, a certificate may be renewed: since the folder was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(named_error)?,
    };
    let length = file.metadata().map_err(named_error)?.len();
    entry::put(out, &Entry::File(named.0, named.1))?;
    let (mut left, mut buffer) = (file.take(length), vec![0; PART_BYTES]);
    loop {
        let count = left.read(&mut buffer).map_err(named_error)?;
        if count == 0 {
            break;
        }
        entry::put(out, &Entry::Part(buffer.get(..count).unwrap_or_default()))?;
    }
    counts.files += 1;
    entry::put(out, &Entry::End)
}

/// NAME/fullchain.pem and NAME/privkey.pem, and whatever else small lies beside them.
fn certificates(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        for (file, path) in files_in(&entry.path())? {
            if fs::metadata(&path).is_ok_and(|found| found.len() <= CERTIFICATE_BYTES_MAX) {
                found.push((format!("{name}/{file}"), path));
            }
        }
    }
    Ok(found)
}

/// Files of a folder, by name; links are followed, as certbot makes them.
pub(super) fn files_in(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let mut files: Vec<_> =
        files.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    files.sort();
    Ok(files)
}

/// Hands bytes to whoever fetches them; waits while they are slow, but not for ever.
struct ChunkWriter {
    sender: Sender<io::Result<Bytes>>,
    handle: Handle,
    waiting: Vec<u8>,
}

impl ChunkWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.waiting, Vec::with_capacity(CHUNK_BYTES)));
        let sender = &self.sender;
        let sent = self.handle.block_on(async { tokio::time::timeout(STALL, sender.send(Ok(chunk))).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(gone_away()),
            Err(_) => Err(nobody_takes()),
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
