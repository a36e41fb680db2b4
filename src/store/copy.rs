//! A second copy of the records in a file of its own, so that damage in the record engine's files costs nothing.
//!
//! The file begins with everything the records held (the base); each checkpoint appends what changed
//! since, synced before the records are, and a file that has grown is written anew. With the journal
//! behind it, it gives the records as they were acknowledged ([`rebuild`](super::rebuild)).
//! Easy to get wrong: a copy that missed one change is worth nothing, so any doubt about it ends it
//! and a new base is written from the records; mail never waits for that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::format::Newer;
use super::frame::{HEADER_BYTES, Header, Kind, NO_BODY, Salt, Seal, frame_bytes, le32};
use super::layers::Layer;
use super::record::{self, Before, Operation, Operations, POSITION_KEY, Position, locations_range};
use super::scan::{self, Found, Frames};
use super::segment::sync_folder;
use super::sled::Records;
use super::space::Space;
use super::{Key, StoreError, prefix};
use crate::ext;

/// A base in the making.
const PARTIAL: &str = "new";
/// Where it lies in the store's folder.
pub const FOLDER: &str = "copy";
const MAGIC: &[u8; 8] = b"PSTNCPY1";
const FORMAT: u32 = 1;
const HEAD_BYTES: u64 = 64;
/// Bytes of records in one frame of a base.
const FRAME_BYTES: usize = 1024 * 1024;
/// Records read at a time for a base.
const PAGE: usize = 256;
/// A file is written anew when what was appended exceeds its base by this much ...
const GROWTH_BYTES: u64 = 16 * 1024 * 1024;
/// ... or after this long, so that what was erased from the records does not stay in it for ever.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A base that could not be written is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// More than this must not be noted while a base is written; it is tried again later.
const NOTED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes whose checksums are computed at each checkpoint, until all that was found at the open are.
const CHECKED_AT_ONCE: u64 = 8 * 1024 * 1024;

/// Whether a record is part of the copy. Facts about the past are not: there are very many of them,
/// the journal has the latest, and files of their own have the rest.
pub fn is_copied(key: &[u8]) -> bool {
    match key.first() {
        None => false,
        Some(&prefix::ENGINE) => key.starts_with(&record::LOCATION_PREFIX),
        Some(first) => !is_fact(*first),
    }
}

/// Whether records under this prefix are facts about the past.
pub fn is_fact(first: u8) -> bool {
    matches!(first, prefix::EVENT | prefix::HISTORY)
}

/// The ranges of everything [`is_copied`].
pub fn copied_ranges() -> Vec<(Key, Key)> {
    let mut ranges = vec![locations_range()];
    let mut from = vec![prefix::ENGINE + 1];
    let mut facts = [prefix::EVENT, prefix::HISTORY];
    facts.sort_unstable();
    for fact in facts {
        ranges.push((from, vec![fact]));
        from = vec![fact + 1];
    }
    ranges.push((from, vec![u8::MAX; 64]));
    ranges
}

/// What was applied to the records and is not in the file yet; the last value of each key counts, and what
/// was made and removed leaves no trace.
#[derive(Default)]
struct Pending {
    changes: Layer,
    position: Position,
    /// A base was begun since the last append: what is made now may be in it.
    is_read_for_base: bool,
}

/// The copy of an open store.
pub struct RecordsCopy {
    folder: PathBuf,
    pending: Mutex<Pending>,
    kept: Mutex<Kept>,
}

struct Kept {
    /// `None` while there is none that can be believed.
    file: Option<CopyFile>,
    /// A base is not tried before this.
    again: Option<Instant>,
}

impl RecordsCopy {
    /// Takes up the copy in the store's folder, if there is one. What is wrong with it is only said:
    /// the records are there, and a new copy is made from them.
    pub fn open(store: &Path) -> io::Result<Self> {
        let folder = store.join(FOLDER);
        fs::create_dir_all(&folder)?;
        remove(&folder.join(PARTIAL))?;
        let file = match CopyFile::newest(&folder) {
            Ok(file) => file,
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Newer>()) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the copy of the records cannot be used; a new one is made");
                remove_all_but(&folder, None)?;
                None
            }
        };
        Ok(Self { folder, pending: Mutex::default(), kept: Mutex::new(Kept { file, again: None }) })
    }

    /// The last commit in it, if there is one.
    pub fn commit(&self) -> Option<u64> {
        lock(&self.kept).file.as_ref().map(|file| file.position.commit)
    }

    /// The records were opened and stand at `position`: a copy that ends before it missed something.
    pub fn begin(&self, position: Position) -> io::Result<()> {
        lock(&self.pending).position = position;
        self.keep_if("behind them", |copy| copy.commit >= position.commit)
    }

    /// The journal has been replayed up to commit `last`. What it could not give the records may be
    /// in the copy, and then the two differ.
    pub fn replayed(&self, last: u64, is_whole: bool) -> io::Result<()> {
        self.keep_if("not what the journal gave them", |copy| is_whole && copy.commit <= last)
    }

    fn keep_if(&self, why: &str, is_good: impl Fn(Position) -> bool) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        if let Some(file) = kept.file.as_ref()
            && !is_good(file.position)
        {
            tracing::warn!(commit = file.position.commit, "the copy of the records is {why}; a new one is made");
            self.lose(&mut kept)?;
        }
        Ok(())
    }

    /// Ends the copy, on the disk too: once the journal it ends at is gone, nothing else would tell that
    /// it is behind.
    fn lose(&self, kept: &mut Kept) -> io::Result<()> {
        kept.file = None;
        remove_all_but(&self.folder, None)
    }

    /// Applies to the records and notes it, so that whoever appends after a flush has begun finds noted
    /// all that the flush makes durable.
    pub fn apply(
        &self,
        records: &Records,
        operations: &[(Operation<'_>, Before)],
        position: Position,
    ) -> Result<(), StoreError> {
        let mut pending = lock(&self.pending);
        records.apply(operations.iter().copied(), position)?;
        for (operation, before) in operations.iter().filter(|(operation, _)| is_copied(operation.key())) {
            let before = if pending.is_read_for_base { Before::Unknown } else { *before };
            pending.changes.apply(operation, before);
        }
        pending.position = position;
        Ok(())
    }

    /// Makes everything noted so far durable in the file. For the flusher alone, between the begin of a
    /// flush and its first write: the copy is never behind the records. An error says that a copy which
    /// is behind could not even be removed: then the flush must not be.
    pub fn append(&self) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        let Pending { changes, position, .. } = {
            let mut pending = lock(&self.pending);
            let position = pending.position;
            std::mem::replace(&mut *pending, Pending { position, ..Pending::default() })
        };
        let Some(file) = kept.file.as_mut().filter(|file| file.position.commit < position.commit) else {
            return Ok(());
        };
        match file.append(&changes, position) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the copy of the records could not be written; a new one is made");
                self.lose(&mut kept)
            }
        }
    }

    /// Where a base that is read from now on stands.
    fn begin_base(&self) -> Position {
        let mut pending = lock(&self.pending);
        pending.changes.forget_what_was_made();
        pending.is_read_for_base = true;
        pending.position
    }

    /// Checks some of the file, and writes a new one if it is time. For the flusher alone, after
    /// [`RecordsCopy::append`] and the flush.
    pub fn tend(&self, records: &Records, space: &Space, gives_up: &dyn Fn() -> bool) {
        let mut kept = lock(&self.kept);
        if let Some(file) = kept.file.as_mut()
            && let Err(error) = file.check_some()
        {
            tracing::error!(%error, "damage in the copy of the records; a new one is made");
            if let Err(error) = self.lose(&mut kept) {
                tracing::error!(%error, "the damaged copy could not be removed");
            }
        }
        let (is_due, bytes) = kept.file.as_ref().map_or((true, 0), |file| (file.is_due(), file.end));
        if !is_due || kept.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        if !space.has_room_above_floor(bytes.saturating_add(GROWTH_BYTES)) {
            kept.again = Some(Instant::now() + AGAIN_AFTER);
            return;
        }
        let gives_up = || {
            let noted = lock(&self.pending).changes.bytes();
            gives_up() || noted > NOTED_BYTES_MAX || !space.has_room_above_floor(2 * FRAME_BYTES as u64)
        };
        let written = write_base(&self.folder, records, self.begin_base(), &gives_up);
        if !matches!(written, Ok(Some(_)))
            && let Err(error) = remove(&self.folder.join(PARTIAL))
        {
            tracing::warn!(%error, "half a copy of the records could not be removed");
        }
        match written {
            Ok(None) => kept.again = Some(Instant::now() + AGAIN_AFTER),
            Ok(Some(file)) => *kept = Kept { file: Some(file), again: None },
            Err(error) => {
                tracing::warn!(%error, "a new copy of the records could not be written yet");
                kept.again = Some(Instant::now() + AGAIN_AFTER);
            }
        }
        // Also one that got its name and may not be durable.
        if let Err(error) = remove_all_but(&self.folder, kept.file.as_ref()) {
            tracing::warn!(%error, "an old copy of the records could not be removed");
        }
    }
}

/// Removes every file of a copy but this one, durably.
fn remove_all_but(folder: &Path, kept: Option<&CopyFile>) -> io::Result<()> {
    let others: Vec<_> = names(folder)?.into_iter().filter(|path| kept.is_none_or(|file| file.path != *path)).collect();
    if others.is_empty() {
        return Ok(());
    }
    others.iter().try_for_each(|other| remove(other))?;
    sync_folder(folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One file of a copy.
pub struct CopyFile {
    file: File,
    path: PathBuf,
    salt: Salt,
    group: u64,
    base_end: u64,
    /// Behind the last whole group.
    end: u64,
    /// Up to here the checksums have been computed since the open.
    checked: u64,
    made: Instant,
    /// What it covers.
    pub position: Position,
}

impl CopyFile {
    /// The newest file of a folder, opened without computing the checksums of all it holds, to be gone on with.
    pub fn newest(folder: &Path) -> io::Result<Option<Self>> {
        names(folder)?.pop().map(|path| Self::open(path, true)).transpose()
    }

    /// The same, to be read alone.
    pub fn look(folder: &Path) -> io::Result<Option<Self>> {
        names(folder)?.pop().map(|path| Self::open(path, false)).transpose()
    }

    fn open(path: PathBuf, writes: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writes).open(&path)?;
        let length = file.metadata()?.len();
        let salt = read_head(&file, &path)?;
        let mut frames = Frames::new(&file, salt, HEAD_BYTES, length);
        let (mut base_end, mut end, mut group, mut last) = (0, HEAD_BYTES, 0, None);
        let (mut in_group, mut whole) = (None, None);
        while let Some(found) = frames.next_found()? {
            let Found::Frame(placed) = found else { return Err(damaged("bytes that cannot be read")) };
            match placed.header.kind {
                Kind::Batch => in_group = Some(placed),
                Kind::Seal => {
                    (end, group, last) = (frames.position(), placed.header.group, in_group.take());
                    whole = whole.or(Some(end));
                    base_end = whole.unwrap_or(end);
                }
                _ => return Err(damaged("a frame of another kind")),
            }
        }
        let last = last.ok_or_else(|| damaged("no whole base"))?;
        let payload = scan::payload(&file, &last)?.ok_or_else(|| damaged("its last change"))?;
        let position = position_in(&payload).ok_or_else(|| damaged("the position of its last change"))?;
        if end < length && writes {
            // A group cut off by a crash: the records were not flushed after it either.
            file.set_len(end)?;
        }
        // The age counts from when the file was begun, however often it is opened.
        let age = file.metadata()?.created().ok().and_then(|begun| begun.elapsed().ok()).unwrap_or_default();
        let made = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        Ok(Self { file, path, salt, group, base_end, end, checked: HEAD_BYTES, made, position })
    }

    fn create(folder: &Path, path: &Path) -> io::Result<(File, Salt)> {
        let _ = fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let salt = Salt(ext::random_bytes());
        let mut head = [0; HEAD_BYTES as usize];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        head[12..36].copy_from_slice(&salt.0);
        let crc = crc32c::crc32c(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&head, 0)?;
        sync_folder(folder)?;
        Ok((file, salt))
    }

    fn is_due(&self) -> bool {
        let appended = self.end - self.base_end;
        appended > self.base_end + GROWTH_BYTES || (appended > 0 && self.made.elapsed() > AGE_MAX)
    }

    fn append(&mut self, changes: &Layer, position: Position) -> io::Result<()> {
        let writer = Writer { file: &self.file, salt: self.salt, group: self.group + 1, at: self.end };
        let mut group = Group::begin(writer, position);
        for (key, held) in changes.entries() {
            group.put(key, held.value().map(Vec::as_slice))?;
        }
        let end = group.end()?;
        self.file.sync_data()?;
        (self.end, self.group, self.position) = (end, self.group + 1, position);
        Ok(())
    }

    /// Computes the checksums of a part of what was there at the open.
    fn check_some(&mut self) -> io::Result<()> {
        let from = self.checked;
        let mut frames = Frames::new(&self.file, self.salt, from, self.end);
        while frames.position() < self.end && frames.position() - from < CHECKED_AT_ONCE {
            match frames.next_found()? {
                Some(Found::Frame(placed)) if scan::payload_is_whole(&self.file, &placed)? => {}
                _ => return Err(damaged(&format!("behind byte {}", frames.position()))),
            }
        }
        self.checked = frames.position();
        Ok(())
    }

    /// Gives every change in order, after the checksums of all of them have been computed.
    pub fn each(&self, take: &mut dyn FnMut(Vec<Operation<'_>>) -> io::Result<()>) -> io::Result<()> {
        for is_rehearsal in [true, false] {
            let mut frames = Frames::new(&self.file, self.salt, HEAD_BYTES, self.end);
            while let Some(group) = scan::next_group(&mut frames)? {
                if !group.is_complete {
                    return Err(damaged(&group.faults.join("; ")));
                }
                for frame in group.frames.iter().filter(|_| !is_rehearsal) {
                    let payload = scan::payload(&self.file, frame)?.ok_or_else(|| damaged("a change"))?;
                    let (_, operations) = record::operations(&payload).ok_or_else(|| damaged("an unknown change"))?;
                    take(operations.into_iter().filter(|operation| !is_position(operation)).collect())?;
                }
            }
        }
        Ok(())
    }
}

/// Files of copies, oldest first.
fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "records") {
            names.push(path);
        }
    }
    names.sort();
    Ok(names)
}

fn number_of(path: &Path) -> u64 {
    path.file_stem().and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok()).unwrap_or(0)
}

fn read_head(file: &File, path: &Path) -> io::Result<Salt> {
    let mut head = [0; HEAD_BYTES as usize];
    file.read_exact_at(&mut head, 0)?;
    if head[..8] != *MAGIC || le32(&head[60..]) != crc32c::crc32c(&head[..60]) {
        return Err(damaged("its head"));
    }
    let found = le32(&head[8..12]);
    if found > FORMAT {
        return Err(io::Error::other(Newer { what: path.display().to_string(), found, known: FORMAT }));
    }
    let mut salt = [0; 24];
    salt.copy_from_slice(&head[12..36]);
    Ok(Salt(salt))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the copy of the records is damaged: {what}"))
}

fn is_position(operation: &Operation<'_>) -> bool {
    matches!(operation, Operation::Set(key, _) if **key == POSITION_KEY)
}

fn position_in(payload: &[u8]) -> Option<Position> {
    let (_, operations) = record::operations(payload)?;
    operations.into_iter().rev().find_map(|operation| match operation {
        Operation::Set(key, value) if *key == POSITION_KEY => Position::from_bytes(value),
        _ => None,
    })
}

/// Writes groups of frames, one behind the other.
struct Writer<'a> {
    file: &'a File,
    salt: Salt,
    group: u64,
    at: u64,
}

impl Writer<'_> {
    fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<Header> {
        let header = Header {
            kind,
            group: self.group,
            payload_bytes: payload.len() as u64,
            body: NO_BODY,
            envelope_bytes: 0,
            payload_crc: crc32c::crc32c(payload),
        };
        let length = usize::try_from(frame_bytes(header.payload_bytes)).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&header.to_bytes(&self.salt, self.at));
        bytes.extend_from_slice(payload);
        bytes.resize(length.max(HEADER_BYTES), 0);
        self.file.write_all_at(&bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(header)
    }
}

/// One group in the making: what is put into it goes to the file a frame at a time.
struct Group<'a> {
    writer: Writer<'a>,
    start: u64,
    position: Position,
    frames: u32,
    crc: u32,
    operations: Operations,
    /// Bytes in `operations`.
    bytes: usize,
}

impl<'a> Group<'a> {
    fn begin(writer: Writer<'a>, position: Position) -> Self {
        let operations = Operations::new(position.commit, 256);
        Self { start: writer.at, writer, position, frames: 0, crc: 0, operations, bytes: 0 }
    }

    fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        match value {
            Some(value) => self.operations.set(key, value),
            None => self.operations.remove(key),
        }
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        if self.bytes >= FRAME_BYTES { self.frame() } else { Ok(()) }
    }

    fn frame(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.operations, Operations::new(self.position.commit, FRAME_BYTES));
        self.crc = self.writer.frame(Kind::Batch, &full.into_bytes())?.fold_into(self.crc);
        (self.bytes, self.frames) = (0, self.frames + 1);
        Ok(())
    }

    /// Seals it; where it ends. Its position is in the last frame.
    fn end(mut self) -> io::Result<u64> {
        self.operations.set(&POSITION_KEY, &self.position.to_bytes());
        self.frame()?;
        let seal = Seal { start: self.start, frames: self.frames, group_crc: self.crc };
        self.writer.frame(Kind::Seal, &seal.to_bytes())?;
        Ok(self.writer.at)
    }
}

/// A new file with everything the records hold now, all of which was applied at `position` or later:
/// what comes later is appended later, and wins. `None` if `gives_up` said so.
fn write_base(
    folder: &Path,
    records: &Records,
    position: Position,
    gives_up: &dyn Fn() -> bool,
) -> io::Result<Option<CopyFile>> {
    let number = names(folder)?.last().map_or(0, |path| number_of(path)) + 1;
    let (path, partial) = (folder.join(format!("{number:016x}.records")), folder.join(PARTIAL));
    let (file, salt) = CopyFile::create(folder, &partial)?;
    let mut group = Group::begin(Writer { file: &file, salt, group: 1, at: HEAD_BYTES }, position);
    for (mut from, to) in copied_ranges() {
        loop {
            if gives_up() {
                return Ok(None);
            }
            let page = records.range(&from, &to, PAGE).map_err(broken)?;
            for (key, value) in &page {
                group.put(key, Some(value))?;
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => break,
            }
        }
    }
    let end = group.end()?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    sync_folder(folder)?;
    Ok(Some(CopyFile { file, path, salt, group: 1, base_end: end, end, checked: end, made: Instant::now(), position }))
}

fn broken(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
