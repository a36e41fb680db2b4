//! A second copy of the records in a file of its own, so that damage in the record engine's files costs nothing.
//!
//! The file begins with everything the records held (the base); each checkpoint appends what changed
//! since, synced before the records are, and a file that has grown is written anew. With the journal
//! behind it, it gives the records as they were acknowledged ([`rebuild`](super::rebuild)).
//! Easy to get wrong: a copy that missed one change is worth nothing, so any doubt about it ends it
//! and a new base is written from the records; mail never waits for that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::format::Newer;
use super::frame::{HEADER_BYTES, Header, Kind, NO_BODY, Salt, Seal, frame_bytes, le32};
use super::record::{self, Before, Operation, Operations, POSITION_KEY, Position, locations_range};
use super::scan::{self, Found, Frames};
use super::segment::sync_folder;
use super::sled::Records;
use super::space::Space;
use super::{Key, StoreError, prefix};
use crate::ext;

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

/// What was applied to the records and is not in the file yet; the last value of each key counts.
#[derive(Default)]
struct Pending {
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    position: Position,
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
        let file = match CopyFile::newest(&folder) {
            Ok(file) => file,
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Newer>()) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the copy of the records cannot be used; a new one is made");
                None
            }
        };
        Ok(Self { folder, pending: Mutex::default(), kept: Mutex::new(Kept { file, again: None }) })
    }

    /// The records were opened and stand at `position`: a copy that ends before it missed something.
    pub fn begin(&self, position: Position) {
        lock(&self.pending).position = position;
        self.keep_if("behind them", |copy| copy.commit >= position.commit);
    }

    /// The journal has been replayed up to commit `last`. What it could not give the records may be
    /// in the copy, and then the two differ.
    pub fn replayed(&self, last: u64, is_whole: bool) {
        self.keep_if("not what the journal gave them", |copy| is_whole && copy.commit <= last);
    }

    fn keep_if(&self, why: &str, is_good: impl Fn(Position) -> bool) {
        let mut kept = lock(&self.kept);
        if let Some(file) = kept.file.as_ref()
            && !is_good(file.position)
        {
            tracing::warn!(commit = file.position.commit, "the copy of the records is {why}; a new one is made");
            kept.file = None;
        }
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
        for (operation, _) in operations {
            match operation {
                Operation::Set(key, value) if is_copied(key) => {
                    pending.changes.insert(key.to_vec(), Some(value.to_vec()));
                }
                Operation::Remove(key) if is_copied(key) => {
                    pending.changes.insert(key.to_vec(), None);
                }
                _ => {}
            }
        }
        pending.position = position;
        Ok(())
    }

    /// Makes everything noted so far durable in the file. For the flusher alone, between the begin of a
    /// flush and its first write: the copy is never behind the records.
    pub fn append(&self) {
        let mut kept = lock(&self.kept);
        let Pending { changes, position } = {
            let mut pending = lock(&self.pending);
            let position = pending.position;
            std::mem::replace(&mut *pending, Pending { changes: BTreeMap::new(), position })
        };
        let Some(file) = kept.file.as_mut().filter(|file| file.position.commit < position.commit) else { return };
        if let Err(error) = file.append(&changes, position) {
            tracing::warn!(%error, "the copy of the records could not be written; a new one is made");
            kept.file = None;
        }
    }

    /// Checks some of the file, and writes a new one if it is time. For the flusher alone, after
    /// [`RecordsCopy::append`] and the flush.
    pub fn tend(&self, records: &Records, space: &Space, gives_up: &dyn Fn() -> bool) {
        let mut kept = lock(&self.kept);
        if let Some(file) = kept.file.as_mut()
            && let Err(error) = file.check_some()
        {
            tracing::error!(%error, "damage in the copy of the records; a new one is made");
            kept.file = None;
        }
        let (is_due, bytes) = kept.file.as_ref().map_or((true, 0), |file| (file.is_due(), file.end));
        if !is_due || kept.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        if !space.has_room_for(bytes.saturating_add(GROWTH_BYTES)) {
            kept.again = Some(Instant::now() + AGAIN_AFTER);
            return;
        }
        let position = lock(&self.pending).position;
        match write_base(&self.folder, records, position, gives_up) {
            Ok(None) => {}
            Ok(Some(file)) => {
                *kept = Kept { file: Some(file), again: None };
                self.remove_others(&kept);
            }
            Err(error) => {
                tracing::warn!(%error, "a new copy of the records could not be written yet");
                kept.again = Some(Instant::now() + AGAIN_AFTER);
            }
        }
    }

    fn remove_others(&self, kept: &Kept) {
        let Some(file) = &kept.file else { return };
        let others = names(&self.folder).unwrap_or_default().into_iter().filter(|path| *path != file.path);
        for other in others {
            if let Err(error) = fs::remove_file(&other) {
                tracing::warn!(%error, path = %other.display(), "an old copy of the records could not be removed");
            }
        }
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
    /// The newest file of a folder, opened without computing the checksums of all it holds.
    pub fn newest(folder: &Path) -> io::Result<Option<Self>> {
        names(folder)?.pop().map(Self::open).transpose()
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
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
        if end < length {
            // A group cut off by a crash: the records were not flushed after it either.
            file.set_len(end)?;
        }
        Ok(Self { file, path, salt, group, base_end, end, checked: HEAD_BYTES, made: Instant::now(), position })
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

    fn append(&mut self, changes: &BTreeMap<Key, Option<Vec<u8>>>, position: Position) -> io::Result<()> {
        let mut operations = Operations::new(position.commit, 256);
        for (key, value) in changes {
            match value {
                Some(value) => operations.set(key, value),
                None => operations.remove(key),
            }
        }
        operations.set(&POSITION_KEY, &position.to_bytes());
        let mut writer = Writer { file: &self.file, salt: self.salt, group: self.group + 1, at: self.end };
        let group = writer.group(&[operations.into_bytes()])?;
        self.file.sync_data()?;
        (self.end, self.group, self.position) = (group, self.group + 1, position);
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

    fn seal(&mut self, start: u64, frames: u32, group_crc: u32) -> io::Result<()> {
        self.frame(Kind::Seal, &Seal { start, frames, group_crc }.to_bytes()).map(drop)
    }

    /// One whole group; where it ends.
    fn group(&mut self, payloads: &[Vec<u8>]) -> io::Result<u64> {
        let (start, mut crc, mut frames) = (self.at, 0, 0);
        for payload in payloads {
            crc = self.frame(Kind::Batch, payload)?.fold_into(crc);
            frames += 1;
        }
        self.seal(start, frames, crc)?;
        Ok(self.at)
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
    let (path, partial) = (folder.join(format!("{number:016x}.records")), folder.join("new"));
    let (file, salt) = CopyFile::create(folder, &partial)?;
    let mut writer = Writer { file: &file, salt, group: 1, at: HEAD_BYTES };
    let (mut crc, mut frames) = (0, 0);
    let (mut operations, mut bytes) = (Operations::new(position.commit, FRAME_BYTES), 0);
    for (mut from, to) in copied_ranges() {
        loop {
            if gives_up() {
                drop(fs::remove_file(&partial));
                return Ok(None);
            }
            let page = records.range(&from, &to, PAGE).map_err(broken)?;
            for (key, value) in &page {
                operations.set(key, value);
                bytes += key.len() + value.len();
            }
            if bytes >= FRAME_BYTES {
                let full = std::mem::replace(&mut operations, Operations::new(position.commit, FRAME_BYTES));
                crc = writer.frame(Kind::Batch, &full.into_bytes())?.fold_into(crc);
                (bytes, frames) = (0, frames + 1);
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
    operations.set(&POSITION_KEY, &position.to_bytes());
    crc = writer.frame(Kind::Batch, &operations.into_bytes())?.fold_into(crc);
    writer.seal(HEAD_BYTES, frames + 1, crc)?;
    let end = writer.at;
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
