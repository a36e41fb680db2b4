//! A second copy of the records in a file of its own, so that damage in the record engine's files costs nothing.
//!
//! The file begins with everything the records held (the base); each checkpoint appends what changed
//! since, synced before the records are, and a file that has grown is written anew. With the journal
//! behind it, it gives the records as they were acknowledged ([`rebuild`](super::rebuild)).
//! Easy to get wrong: a copy that missed one change is worth nothing, so any doubt about it ends it
//! and a new base is written from the records; mail never waits for that.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::copy_group::{EXTENT_KEY, FRAME_BYTES, Group, Writer};
use super::durable::{forgive_full, is_failed_sync, settle, sync_all, sync_data, sync_folder};
use super::format::Newer;
use super::frame::{Kind, Salt, le32};
use super::layers::Layer;
use super::record::{self, Operation, POSITION_KEY, Position, locations_range};
use super::scan::{self, Found, Frames, Placed};
use super::sled::{Extent, Records};
use super::space::Space;
use super::{Key, StoreError, prefix};
use crate::ext::{self, Timestamp};

/// A base in the making.
const PARTIAL: &str = "new";
/// Where it lies in the store's folder.
pub const FOLDER: &str = "copy";
const MAGIC: &[u8; 8] = b"PSTNCPY1";
/// The form of the files, and the highest that is read.
pub const FORMAT: u32 = 1;
const HEAD_BYTES: u64 = 64;
/// Records read at a time for a base.
const PAGE: usize = 256;
/// A file is written anew when what was appended exceeds its base by this much ...
const GROWTH_BYTES: u64 = 16 * 1024 * 1024;
/// ... or after this long, so that what was erased from the records does not stay in it for ever.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A file is given up when what was appended exceeds its base four times and by this much.
const OVERGROWTH_BYTES: u64 = 128 * 1024 * 1024;
/// A base that could not be written is tried again after this, then after twice as long, and so on ...
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// ... up to this.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// Records that may be damaged are not read for a base in this time: what cannot be read ends the process.
const DOUBTED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// A base goes to the disk in pieces of this size, so that nobody else waits long for theirs.
const SYNCED_AT_ONCE: u64 = 16 * 1024 * 1024;
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

/// The copy of an open store.
pub struct RecordsCopy {
    folder: PathBuf,
    kept: Mutex<Kept>,
}

struct Kept {
    /// `None` while there is none that can be believed.
    file: Option<CopyFile>,
    /// Other files may be there, which must not be taken for the copy.
    has_leftovers: bool,
    /// A base is not tried before this.
    again: Option<Instant>,
    /// How long it waits after the next try that comes to nothing.
    pause: Duration,
}

impl RecordsCopy {
    /// Takes up the copy in the store's folder, if there is one. What is wrong with it is only said: the
    /// records are there, and a new copy is made from them. Changes nothing but the torn end of a file.
    pub fn open(store: &Path) -> io::Result<Self> {
        let folder = store.join(FOLDER);
        let file = match CopyFile::newest(&folder) {
            Ok(file) => file,
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Newer>()) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the copy of the records cannot be used; a new one is made");
                None
            }
        };
        let kept = Kept { file, has_leftovers: true, again: None, pause: AGAIN_AFTER };
        Ok(Self { folder, kept: Mutex::new(kept) })
    }

    /// The records met damage and could not be made anew: no base is read from them for a day, in which
    /// they serve as far as they can.
    pub fn put_off(&self) {
        lock(&self.kept).again = Some(Instant::now() + DOUBTED_FOR);
    }

    /// It cannot be what the records are to be made anew from, whatever its last commit is.
    pub fn give_up(&self) {
        lock(&self.kept).lose();
    }

    /// The last commit in it, if there is one.
    pub fn commit(&self) -> Option<u64> {
        lock(&self.kept).file.as_ref().map(|file| file.position.commit)
    }

    /// Whether all of it can be read.
    pub fn is_whole(&self) -> bool {
        lock(&self.kept).file.as_ref().is_some_and(|file| file.check().is_ok())
    }

    /// The records were opened and stand at `position`: a copy that ends before it missed something.
    pub fn begin(&self, position: Position) {
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
            kept.lose();
        }
    }

    /// Makes what a flush is about to make durable in the records durable in the copy, so that it is never
    /// behind them. `extent` is how far the record files reached before.
    ///
    /// # Errors
    /// A failed sync alone. Whatever else goes wrong costs the copy and nobody else anything.
    pub fn append(&self, layer: &Layer, extent: Option<&Extent>) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        let position = layer.value(&POSITION_KEY).and_then(|bytes| Position::from_bytes(bytes));
        let Some(position) = position else { return Ok(()) };
        let Some(file) = kept.file.as_mut().filter(|file| file.position.commit < position.commit) else {
            return Ok(());
        };
        match file.append(layer, position, extent) {
            Ok(()) if !file.is_overgrown() => {}
            Ok(()) => {
                tracing::warn!("the copy of the records has outgrown them before it could be made anew");
                kept.lose();
            }
            Err(error) => {
                tracing::warn!(%error, "the copy of the records could not be written; a new one is made");
                kept.lose();
                if is_failed_sync(&error) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Removes, durably, what is no copy any more. Once the journal at which such a file ends is given back
    /// nothing else would tell that it is behind: where this fails the records must not be flushed.
    ///
    /// A folder that lets nothing be removed is given another name, so that a fault in the copy alone stops
    /// nobody.
    pub fn clear(&self) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        if !kept.has_leftovers {
            return Ok(());
        }
        if let Err(error) = remove_all_but(&self.folder, kept.file.as_ref()) {
            kept.lose();
            let aside = match put_aside(&self.folder) {
                Ok(aside) => aside,
                Err(worse) if is_failed_sync(&worse) => return Err(worse),
                Err(_) => return Err(error),
            };
            tracing::error!(folder = %aside.display(), "a copy of the records could not be removed and was set aside");
            kept.has_leftovers = false;
            return if is_failed_sync(&error) { Err(error) } else { Ok(()) };
        }
        kept.has_leftovers = false;
        Ok(())
    }

    /// Checks some of the file, and writes a new one if it is time. For the flusher alone, between two
    /// flushes.
    ///
    /// # Errors
    /// A failed sync alone; anything else is said and tried again.
    pub fn tend(&self, records: &Records, space: &Space, gives_up: &dyn Fn() -> bool) -> io::Result<()> {
        self.check_some();
        if self.is_due(space) {
            let gives_up = || gives_up() || !space.has_room_above_floor(2 * FRAME_BYTES as u64);
            let written = write_base(&self.folder, records, &gives_up);
            let mut kept = lock(&self.kept);
            kept.has_leftovers = true;
            kept.again = Some(Instant::now() + kept.pause);
            kept.pause = (kept.pause * 2).min(AGAIN_AFTER_MAX);
            match written {
                Ok(None) => {}
                Ok(Some(file)) => (kept.file, kept.again, kept.pause) = (Some(file), None, AGAIN_AFTER),
                Err(error) if is_failed_sync(&error) => return Err(error),
                Err(error) => tracing::warn!(%error, "a new copy of the records could not be written yet"),
            }
        }
        match self.clear() {
            Err(error) if is_failed_sync(&error) => return Err(error),
            Err(error) => tracing::warn!(%error, "what is left of a copy of the records could not be removed yet"),
            Ok(()) => {}
        }
        Ok(())
    }

    fn check_some(&self) {
        let mut kept = lock(&self.kept);
        if let Some(file) = kept.file.as_mut()
            && let Err(error) = file.check_some()
        {
            tracing::error!(%error, "damage in the copy of the records; a new one is made");
            kept.lose();
        }
    }

    /// Whether a new base is to be begun, and may be.
    fn is_due(&self, space: &Space) -> bool {
        let mut kept = lock(&self.kept);
        let (is_due, bytes) = kept.file.as_ref().map_or((true, 0), |file| (file.is_due(), file.end));
        if !is_due || kept.again.is_some_and(|again| Instant::now() < again) {
            return false;
        }
        let has_room = space.has_room_above_floor(bytes.saturating_add(GROWTH_BYTES));
        if !has_room {
            kept.again = Some(Instant::now() + AGAIN_AFTER);
        }
        has_room
    }
}

impl Kept {
    /// Ends the copy; its file goes with the next [`RecordsCopy::clear`].
    fn lose(&mut self) {
        (self.file, self.has_leftovers) = (None, true);
    }
}

/// Gives the folder a name under which nobody looks for a copy, durably; where it is then.
fn put_aside(folder: &Path) -> io::Result<PathBuf> {
    let store = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = store.join(format!("{FOLDER}.unusable-{}", Timestamp::now().0));
    fs::rename(folder, &aside)?;
    sync_folder(store)?;
    Ok(aside)
}

/// Removes every file of a copy but this one, durably.
fn remove_all_but(folder: &Path, kept: Option<&CopyFile>) -> io::Result<()> {
    let mut others = names(folder)?;
    others.retain(|path| kept.is_none_or(|file| file.path != *path));
    let partial = folder.join(PARTIAL);
    if partial.symlink_metadata().is_ok() {
        others.push(partial);
    }
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
    /// How far the record files reached at its last change.
    pub extent: Option<Extent>,
}

impl CopyFile {
    /// The newest file of a folder, opened without computing the checksums of all it holds, to be gone on with.
    pub fn newest(folder: &Path) -> io::Result<Option<Self>> {
        names(folder)?.pop().map(|path| Self::open(path, true)).transpose()
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// The same, to be read alone.
    pub fn look(folder: &Path) -> io::Result<Option<Self>> {
        names(folder)?.pop().map(|path| Self::open(path, false)).transpose()
    }

    fn open(path: PathBuf, writes: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writes).open(&path)?;
        if writes {
            // A group that was not synced must not be taken for one that is there.
            settle(&file)?;
        }
        let length = file.metadata()?.len();
        let salt = read_head(&file, &path)?;
        let (base_end, last) = last_group(&file, salt, length)?.ok_or_else(|| damaged("no whole base"))?;
        let (end, group) = (last.end, last.number);
        let payload = last.frames.last().map(|frame| scan::payload(&file, frame)).transpose()?.flatten();
        let payload = payload.ok_or_else(|| damaged("its last change"))?;
        let position = own_value(&payload, &POSITION_KEY).and_then(|value| Position::from_bytes(&value));
        let position = position.ok_or_else(|| damaged("the position of its last change"))?;
        let extent = own_value(&payload, &EXTENT_KEY).and_then(|value| Extent::from_bytes(&value));
        if end < length && writes {
            // A group cut off by a crash: the records were not flushed after it either. If it was no crash, the
            // copy is behind them, which is found out.
            file.set_len(end)?;
        }
        // The age counts from when the file was begun, however often it is opened.
        let age = file.metadata()?.created().ok().and_then(|begun| begun.elapsed().ok()).unwrap_or_default();
        let made = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        Ok(Self { file, path, salt, group, base_end, end, checked: HEAD_BYTES, made, position, extent })
    }

    fn create(folder: &Path, path: &Path) -> io::Result<(File, Salt)> {
        let _ = fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let salt = Salt(ext::random_bytes());
        file.write_all_at(&head(salt, FORMAT), 0)?;
        sync_folder(folder)?;
        Ok((file, salt))
    }

    fn is_due(&self) -> bool {
        let appended = self.end - self.base_end;
        appended > self.base_end + GROWTH_BYTES || (appended > 0 && self.made.elapsed() > AGE_MAX)
    }

    /// It could not be made anew for a long time: rather none than one that fills the disk.
    fn is_overgrown(&self) -> bool {
        self.end - self.base_end > 4 * self.base_end + OVERGROWTH_BYTES
    }

    fn append(&mut self, changes: &Layer, position: Position, extent: Option<&Extent>) -> io::Result<()> {
        let writer = Writer { file: &self.file, salt: self.salt, group: self.group + 1, at: self.end };
        let mut group = Group::begin(writer, position);
        for (key, held) in changes.entries().filter(|(key, _)| is_copied(key)) {
            group.put(key, held.value().map(Vec::as_slice))?;
        }
        let end = group.end(extent)?;
        // It is removed if this fails, and the records have all that is in it.
        sync_data(&self.file).map_err(forgive_full)?;
        (self.end, self.group, self.position) = (end, self.group + 1, position);
        self.extent = extent.cloned();
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
        self.check()?;
        self.each_group(&mut |group| {
            for frame in &group.frames {
                let payload = scan::payload(&self.file, frame)?.ok_or_else(|| damaged("a change"))?;
                let (_, operations) = record::operations(&payload).ok_or_else(|| damaged("an unknown change"))?;
                take(operations.into_iter().filter(|operation| is_copied(operation.key())).collect())?;
            }
            Ok(())
        })
    }

    /// Computes all checksums.
    pub fn check(&self) -> io::Result<()> {
        self.each_group(&mut |_| Ok(()))
    }

    fn each_group(&self, take: &mut dyn FnMut(&scan::Group) -> io::Result<()>) -> io::Result<()> {
        let mut frames = Frames::new(&self.file, self.salt, HEAD_BYTES, self.end);
        while let Some(group) = scan::next_group(&mut frames)? {
            if !group.is_complete {
                return Err(damaged(&group.faults.join("; ")));
            }
            take(&group)?;
        }
        Ok(())
    }
}

/// A group of a copy's file, not read yet.
struct Sealed {
    /// Behind its seal.
    end: u64,
    number: u64,
    frames: Vec<Placed>,
    seal: Placed,
}

impl Sealed {
    fn is_whole(&self, file: &File) -> io::Result<bool> {
        for frame in self.frames.iter().chain([&self.seal]) {
            if !scan::payload_is_whole(file, frame)? {
                return Ok(false);
            }
        }
        Ok(!self.frames.is_empty())
    }
}

/// Where the base ends, and the last whole group: a power cut may leave any pages of what was written last,
/// its seal among them. A base was synced before it got its name.
fn last_group(file: &File, salt: Salt, length: u64) -> io::Result<Option<(u64, Sealed)>> {
    let mut frames = Frames::new(file, salt, HEAD_BYTES, length);
    let (mut base_end, mut before, mut last, mut in_group) = (0, None, None, Vec::new());
    while let Some(Found::Frame(placed)) = frames.next_found()? {
        match placed.header.kind {
            Kind::Batch => in_group.push(placed),
            Kind::Seal => {
                let (end, number) = (frames.position(), placed.header.group);
                let frames = std::mem::take(&mut in_group);
                before = last.replace(Sealed { end, number, frames, seal: placed });
                base_end = if base_end == 0 { end } else { base_end };
            }
            _ => return Err(damaged("a frame of another kind")),
        }
    }
    let is_whole = match &last {
        Some(last) if last.end != base_end => last.is_whole(file)?,
        _ => true,
    };
    Ok(if is_whole { last } else { before }.map(|group| (base_end, group)))
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

/// The first bytes of a file of a copy.
pub fn head(salt: Salt, format: u32) -> [u8; HEAD_BYTES as usize] {
    let mut head = [0; HEAD_BYTES as usize];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&format.to_le_bytes());
    head[12..36].copy_from_slice(&salt.0);
    let crc = crc32c::crc32c(&head[..60]);
    head[60..].copy_from_slice(&crc.to_le_bytes());
    head
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

/// The last value of a key of the copy's own.
fn own_value(payload: &[u8], own: &[u8]) -> Option<Vec<u8>> {
    let (_, operations) = record::operations(payload)?;
    operations.into_iter().rev().find_map(|operation| match operation {
        Operation::Set(key, value) if key == own => Some(value.to_vec()),
        _ => None,
    })
}

/// A new file with everything the records hold now, all of which was applied at its position or later:
/// what comes later is appended later, and wins. `None` if `gives_up` said so.
fn write_base(folder: &Path, records: &Records, gives_up: &dyn Fn() -> bool) -> io::Result<Option<CopyFile>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let number = names(folder)?.last().map_or(0, |path| number_of(path)) + 1;
    let (path, partial) = (folder.join(format!("{number:016x}.records")), folder.join(PARTIAL));
    let (file, salt) = CopyFile::create(folder, &partial)?;
    let (extent, position) = (records.extent(), records.begin_reading().map_err(broken)?);
    let mut group = Group::begin(Writer { file: &file, salt, group: 1, at: HEAD_BYTES }, position);
    let mut synced = 0;
    for (mut from, to) in copied_ranges() {
        loop {
            if gives_up() {
                return Ok(None);
            }
            let page = records.range(&from, &to, PAGE).map_err(broken)?;
            for (key, value) in &page {
                group.put(key, Some(value))?;
            }
            if group.writer.at - synced >= SYNCED_AT_ONCE {
                synced = group.writer.at;
                sync_data(&file).map_err(forgive_full)?;
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
    let end = group.end(extent.as_ref())?;
    sync_all(&file).map_err(forgive_full)?;
    fs::rename(&partial, &path)?;
    sync_folder(folder)?;
    let made = Instant::now();
    let base = CopyFile { file, path, salt, group: 1, base_end: end, end, checked: end, made, position, extent };
    Ok(Some(base))
}

fn broken(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
