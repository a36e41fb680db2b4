//! Past events in per-day files: append-only frames, checksummed and compressed. The store keeps
//! only what some consumer has not passed yet, and the last few minutes.
//!
//! A frame names the messages it speaks about before its compressed part, so that looking for one
//! message skips the others. Files in the order of their names hold events in the order of their keys:
//! one committed after another of a later day lies in that day's file. Easy to get wrong: a crash between
//! writing a frame and removing its events from the store repeats them; whoever writes skips what the
//! day's file has already.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::driver::{cursor_key, passed, read_after};
use super::{Event, EventKind};
use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::store::{Batch, Key, Store, StoreError, codec, prefix, settle};

/// Events in one frame, at most.
const FRAME_EVENTS: usize = 4_096;
/// Fewer events than a frame's are moved once the oldest of them is this old.
const RECENT: Duration = Duration::from_secs(10 * 60);
/// How often the archiver looks.
const PERIOD: Duration = Duration::from_secs(30);
/// How far a clock may be ahead and still be believed.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Looking for a frame reads on from so close before it.
const NEAR_BYTES: u64 = 512 * 1024;
/// What a frame begins with.
const MAGIC: [u8; 8] = *b"postern1";
/// Magic, length of the index, length of the compressed part, checksum of both.
const HEAD_BYTES: usize = 8 + 4 + 4 + 4;
/// Bytes of one frame, at most: what claims more is damage.
const FRAME_BYTES_MAX: usize = 256 * 1024 * 1024;
/// zstd's level: three compresses a frame in a few milliseconds.
const LEVEL: i32 = 3;
/// Names the cursor that says how far events were moved; stored with their removal.
pub(super) const MOVED: &str = "archive";
/// A file's name is its day and this.
const SUFFIX: &str = ".events";

/// What lies before the compressed part of a frame.
#[derive(Debug, Serialize, Deserialize)]
struct FrameIndex {
    last: Key,
    /// Hashes of the queue ids it speaks about, sorted.
    messages: Vec<u32>,
}

/// One event with its key in the store.
pub(super) type Stored = (Key, Vec<u8>);

/// Where somebody reads in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    day: String,
    offset: u64,
}

impl Place {
    /// Before everything that was committed at `moment` or later.
    pub(super) fn before(moment: Timestamp) -> Self {
        Self { day: day_of(moment), offset: 0 }
    }
}

/// The folder of past events.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    /// The last key in each day's file, as far as it was needed.
    last: Mutex<HashMap<String, Key>>,
    /// The sync that failed, if one did: the next one may say that all is well and be wrong. The events stay in the
    /// store, which accepts nothing more.
    not_synced: OnceLock<String>,
}

impl Archive {
    /// Opens or makes the folder.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, last: Mutex::default(), not_synced: OnceLock::new() })
    }

    /// Moves events into files until `shutdown`, once every consumer in `consumers` has passed them,
    /// and deletes the files of days past `retention` by the calendar.
    pub async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        consumers: Vec<&'static str>,
        (retention, calendar): (Duration, Calendar),
        shutdown: &Shutdown,
    ) {
        if let Err(error) = self.drop_moved(&store).await {
            tracing::warn!(error, "events that had been moved already could not be removed again");
        }
        let nudge = tokio::sync::Notify::new();
        crate::background::periodically(PERIOD, &nudge, shutdown, || async {
            let now = Timestamp::now();
            loop {
                match self.move_some(&store, &consumers, now).await {
                    Ok(0) => break,
                    Ok(_) if shutdown.is_cancelled() => break,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error, "past events could not be moved into their files yet");
                        break;
                    }
                }
            }
            if let Err(error) = self.expire(calendar.cap(now), retention) {
                tracing::warn!(%error, "files of past events could not be deleted yet");
            }
        })
        .await;
    }

    /// Removes what the files have already: records made anew may have it again from the journal, and nobody
    /// would move it, or delete it with its day, any more.
    pub(super) async fn drop_moved(&self, store: &Arc<dyn Store>) -> Result<(), String> {
        loop {
            let source = Arc::clone(store);
            let read = tokio::task::spawn_blocking(move || -> Result<Vec<Key>, String> {
                let Some(moved) = passed(&*source, MOVED).map_err(|error| error.to_string())? else {
                    return Ok(Vec::new());
                };
                let page = read_after(&*source, &[prefix::EVENT], FRAME_EVENTS).map_err(|error| error.to_string())?;
                Ok(page.into_iter().map(|(key, _)| key).take_while(|key| *key <= moved).collect())
            });
            let keys = read.await.map_err(|error| error.to_string())??;
            if keys.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for key in keys {
                batch.remove(key);
            }
            store.commit(batch).await.map_err(|error| error.to_string())?;
        }
    }

    /// Moves up to one frame's worth of events; returns how many.
    pub async fn move_some(
        self: &Arc<Self>,
        store: &Arc<dyn Store>,
        consumers: &[&'static str],
        now: Timestamp,
    ) -> Result<usize, String> {
        let (archive, source, names) = (Arc::clone(self), Arc::clone(store), consumers.to_vec());
        let moved = tokio::task::spawn_blocking(move || archive.write_some(&*source, &names, now));
        let moved = moved.await.map_err(|error| error.to_string())?;
        if let Some(why) = self.not_synced.get() {
            // Files of past events lie on the device of the mail, and a flush is of the whole device.
            store.stop(&format!("a sync of past events failed: {why}"));
        }
        let keys = moved?;
        let count = keys.len();
        if count > 0 {
            let mut batch = Batch::new();
            if let Some(last) = keys.last() {
                batch.set(cursor_key(MOVED), codec::encode(last));
            }
            for key in keys {
                batch.remove(key);
            }
            store.commit(batch).await.map_err(|error| error.to_string())?;
        }
        Ok(count)
    }

    /// Writes frames and syncs them; returns the keys to be removed from the store.
    fn write_some(&self, store: &dyn Store, consumers: &[&str], now: Timestamp) -> Result<Vec<Key>, String> {
        if let Some(why) = self.not_synced.get() {
            return Err(format!("a sync of theirs failed ({why}); none is moved by this process"));
        }
        let Some(limit) = limit(store, consumers).map_err(|error| error.to_string())? else { return Ok(Vec::new()) };
        // Not from the first event of all: those that were moved since the last checkpoint are passed over
        // one by one, however many they are.
        let from = passed(store, MOVED).map_err(|error| error.to_string())?.unwrap_or_else(|| vec![prefix::EVENT]);
        let page = read_after(store, &from, FRAME_EVENTS).map_err(|error| error.to_string())?;
        let full = page.len() == FRAME_EVENTS;
        let passed: Vec<Stored> = page.into_iter().take_while(|(key, _)| *key <= limit).collect();
        let oldest = passed.iter().find_map(|(_, bytes)| codec::decode::<Event>(bytes).ok()).map(|event| event.at);
        if !full && oldest.is_none_or(|oldest| now.apart(oldest) < RECENT) {
            return Ok(Vec::new());
        }
        let keys = passed.iter().map(|(key, _)| key.clone()).collect();
        let mut days = BTreeMap::<String, Vec<Stored>>::new();
        let newest = self.newest_day(now).map_err(|error| error.to_string())?;
        let mut day = newest.unwrap_or_else(|| day_of(oldest.unwrap_or(now)));
        for (key, bytes) in passed {
            // A damaged event is kept with its neighbours, as it is.
            if let Ok(event) = codec::decode::<Event>(&bytes) {
                day = day.max(day_of(event.at));
            }
            days.entry(day.clone()).or_default().push((key, bytes));
        }
        for (day, events) in days {
            self.append(&day, events).map_err(|error| format!("{}: {error}", self.path(&day).display()))?;
        }
        Ok(keys)
    }

    fn append(&self, day: &str, mut events: Vec<Stored>) -> io::Result<()> {
        if let Some(last) = self.last_key(day)? {
            events.retain(|(key, _)| *key > last);
        }
        let Some((last, _)) = events.last() else { return Ok(()) };
        let last = last.clone();
        let bytes = frame(&events)?;
        let path = self.path(day);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let folder = File::open(&self.folder)?;
        add_durably(&file, &bytes, |file| self.note(file.sync_data().and_then(|()| folder.sync_all())))?;
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(day.to_owned(), last);
        Ok(())
    }

    /// No later event goes into a file before this one. A file a wrong clock made far in the future does not count.
    fn newest_day(&self, now: Timestamp) -> io::Result<Option<String>> {
        let believable = day_of(now.plus(A_DAY));
        Ok(self.days()?.into_iter().rfind(|day| *day <= believable))
    }

    fn last_key(&self, day: &str) -> io::Result<Option<Key>> {
        if let Some(last) = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(day) {
            return Ok(Some(last.clone()));
        }
        let (path, mut last) = (self.path(day), None);
        if path.exists() {
            // A process that was killed between write and sync left what a power cut would still take away; nothing
            // of it can be cut off again, so that want of room is no excuse here.
            let (file, folder) = (File::open(&path)?, File::open(&self.folder)?);
            let synced = settle(&file).and_then(|()| folder.sync_all());
            synced.inspect_err(|error| drop(self.not_synced.set(error.to_string())))?;
        }
        each_frame(&path, |index, _| last = Some(index.last))?;
        Ok(last)
    }

    /// What a sync came to. That there was no room is about what was written alone, which is cut off again.
    fn note(&self, synced: io::Result<()>) -> io::Result<()> {
        synced.inspect_err(|error| {
            if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                let _ = self.not_synced.set(error.to_string());
            }
        })
    }

    /// Events of one message in the files, in the order they were written. Blocks on the disk.
    pub fn of_message(&self, id: QueueId) -> io::Result<Vec<Stored>> {
        let first =
            id.0.get(..6).unwrap_or_default().iter().fold(0_u64, |millis, byte| (millis << 8) | u64::from(*byte));
        // A day of grace: the clock may have been set back after the id was made.
        let first = day_of(Timestamp(first.saturating_sub(24 * 60 * 60 * 1_000)));
        let mut found = Vec::new();
        for day in self.days()?.into_iter().filter(|day| *day >= first) {
            each_frame(&self.path(&day), |index, packed| {
                if index.messages.binary_search(&hash(id)).is_ok() {
                    let events = unpack(packed).unwrap_or_default();
                    found.extend(events.into_iter().filter(|(_, bytes)| speaks_of(bytes, id)));
                }
            })?;
        }
        found.sort_by(|one, two| one.0.cmp(&two.0));
        found.dedup_by(|one, two| one.0 == two.0);
        Ok(found)
    }

    /// Where the frame with the first event behind `at` may begin: not far before it. Blocks on the disk.
    pub(super) fn place_of(&self, at: &[u8]) -> io::Result<Place> {
        let mut days = self.days()?;
        while let Some(day) = days.pop() {
            let path = self.path(&day);
            let mut begins_behind = false;
            frames_from(&path, 0, |index, _| {
                begins_behind = index.last.as_slice() > at;
                false
            })?;
            if !begins_behind || days.is_empty() {
                let offset = frame_near(&path, at)?;
                return Ok(Place { day, offset });
            }
        }
        Ok(Place { day: String::new(), offset: 0 })
    }

    /// The events behind `at` of the first frame that has any, at `place` or behind; none at the end.
    /// Moves `place` behind that frame. Blocks on the disk.
    pub(super) fn frame_after(&self, at: &[u8], place: &mut Place) -> io::Result<Vec<Stored>> {
        let first = place.day.clone();
        for day in self.days()?.into_iter().filter(|day| *day >= first) {
            if day != place.day {
                *place = Place { day, offset: 0 };
            }
            let path = self.path(&place.day);
            let mut found = Vec::new();
            let ended = frames_from(&path, place.offset, |index, packed| {
                if index.last.as_slice() > at {
                    found = unpack(packed).unwrap_or_default();
                    found.retain(|(key, _)| key.as_slice() > at);
                }
                found.is_empty()
            })?;
            place.offset = ended;
            if !found.is_empty() {
                found.sort_by(|one, two| one.0.cmp(&two.0));
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// The days there are files of, oldest first.
    pub fn days(&self) -> io::Result<Vec<String>> {
        let mut days = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            if let Some(day) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(SUFFIX)) {
                days.push(day.to_owned());
            }
        }
        days.sort();
        Ok(days)
    }

    /// Deletes the files of days that ended more than `retention` ago.
    pub fn expire(&self, now: Timestamp, retention: Duration) -> io::Result<()> {
        let kept = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let first = day_of(Timestamp(now.0.saturating_sub(kept)));
        for day in self.days()?.into_iter().filter(|day| *day < first) {
            fs::remove_file(self.path(&day))?;
            self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(&day);
        }
        Ok(())
    }

    fn path(&self, day: &str) -> PathBuf {
        self.folder.join(format!("{day}{SUFFIX}"))
    }
}

/// The event up to which every consumer has come; `None` if one has not begun.
fn limit(store: &dyn Store, consumers: &[&str]) -> Result<Option<Key>, StoreError> {
    let mut least: Option<Key> = None;
    for name in consumers {
        let Some(own) = passed(store, name)? else { return Ok(None) };
        least = Some(least.map_or(own.clone(), |least| least.min(own)));
    }
    Ok(least)
}

fn day_of(at: Timestamp) -> String {
    let mut text = at.rfc3339();
    text.truncate(10);
    text
}

fn hash(id: QueueId) -> u32 {
    crc32c::crc32c(&id.0)
}

/// Whether the stored event is about the message, without decoding what is about others.
pub(super) fn speaks_of(bytes: &[u8], id: QueueId) -> bool {
    memchr::memmem::find(bytes, &id.0).is_some()
        && codec::decode::<Event>(bytes).is_ok_and(|event| matches!(event.kind, EventKind::Mail(own, _) if own == id))
}

fn frame(events: &[Stored]) -> io::Result<Vec<u8>> {
    let mut messages = Vec::new();
    for (_, bytes) in events {
        if let Ok(Event { kind: EventKind::Mail(id, _), .. }) = codec::decode::<Event>(bytes) {
            messages.push(hash(id));
        }
    }
    messages.sort_unstable();
    messages.dedup();
    let last = events.last().map(|(key, _)| key.clone()).unwrap_or_default();
    let index = codec::encode(&FrameIndex { last, messages });
    let packed = zstd::bulk::compress(&codec::encode(&events), LEVEL)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| io::Error::other("a frame too long"));
    let sum = crc32c::crc32c_append(crc32c::crc32c(&index), &packed);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + index.len() + packed.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&length(&index)?.to_le_bytes());
    bytes.extend_from_slice(&length(&packed)?.to_le_bytes());
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

fn unpack(packed: &[u8]) -> io::Result<Vec<Stored>> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(packed)?.take(FRAME_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    codec::decode(&bytes).map_err(io::Error::other)
}

/// Adds a frame, or leaves the file as it was: what could not be made durable must not be found there by the
/// next try, which would take it for moved.
fn add_durably(mut file: &File, bytes: &[u8], sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.write_all(bytes).and_then(|()| sync(file)).inspect_err(|_| {
        if let Err(error) = file.set_len(length) {
            tracing::error!(%error, "a frame of past events that may not be durable could not be removed");
        }
    })
}

/// Reads a file frame by frame. Bytes that are no sound frame are skipped up to the next one: the
/// torn end of a crash, with newer frames behind it, or damage.
fn each_frame(path: &Path, mut look: impl FnMut(FrameIndex, &[u8])) -> io::Result<()> {
    frames_from(path, 0, |index, packed| {
        look(index, packed);
        true
    })
    .map(|_| ())
}

/// The same from `offset` on, for as long as `look` says so; where the last frame it saw ends.
fn frames_from(path: &Path, offset: u64, mut look: impl FnMut(FrameIndex, &[u8]) -> bool) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(offset),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let (mut offset, mut seen) = (offset, offset);
    while let Some(start) = next_magic(&mut file, offset)? {
        match read_frame(&mut file, start, length)? {
            Some((index, packed, end)) => {
                (offset, seen) = (end, end);
                if !look(index, &packed) {
                    break;
                }
            }
            None => offset = start + 1,
        }
    }
    Ok(seen)
}

/// An offset such that every frame that begins before it ends at `at` or before: found by halving, since the
/// keys in a file grow.
fn frame_near(path: &Path, at: &[u8]) -> io::Result<u64> {
    let length = fs::metadata(path)?.len();
    let (mut low, mut high) = (0, length);
    while high - low > NEAR_BYTES {
        let middle = low + (high - low) / 2;
        let mut is_before = false;
        let end = frames_from(path, middle, |index, _| {
            is_before = index.last.as_slice() <= at;
            false
        })?;
        if is_before && end > low && end <= high {
            low = end;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn read_frame(file: &mut File, start: u64, length: u64) -> io::Result<Option<(FrameIndex, Vec<u8>, u64)>> {
    let mut head = [0_u8; HEAD_BYTES];
    file.seek(SeekFrom::Start(start))?;
    if length.saturating_sub(start) < HEAD_BYTES as u64 {
        return Ok(None);
    }
    file.read_exact(&mut head)?;
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let (index, packed, sum) = (number(8) as usize, number(12) as usize, number(16));
    let end = start + (HEAD_BYTES + index + packed) as u64;
    if end > length || index + packed > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; index + packed];
    file.read_exact(&mut bytes)?;
    if crc32c::crc32c(&bytes) != sum {
        return Ok(None);
    }
    let packed = bytes.split_off(index);
    Ok(codec::decode(&bytes).ok().map(|index| (index, packed, end)))
}

/// Where the next frame may begin, at `offset` or behind.
fn next_magic(file: &mut File, mut offset: u64) -> io::Result<Option<u64>> {
    let mut window = vec![0; 64 * 1024];
    loop {
        file.seek(SeekFrom::Start(offset))?;
        let mut filled = 0;
        while filled < window.len() {
            match file.read(window.get_mut(filled..).unwrap_or_default())? {
                0 => break,
                read => filled += read,
            }
        }
        let seen = window.get(..filled).unwrap_or_default();
        if let Some(at) = memchr::memmem::find(seen, &MAGIC) {
            return Ok(Some(offset + at as u64));
        }
        if filled < window.len() {
            return Ok(None);
        }
        offset += (filled - MAGIC.len() + 1) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Health;

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_moved_or_accepted_any_more_and_a_full_disk_heals() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Arc::new(Archive::open(folder.path().join("history")).unwrap());
        let settings = crate::store::Settings { folder: folder.path().join("store"), ..Default::default() };
        let store: Arc<dyn Store> = crate::store::open(settings).unwrap().records;
        let moves = || archive.move_some(&store, &[], Timestamp::now());
        assert!(archive.note(Err(io::ErrorKind::StorageFull.into())).is_err());
        assert_eq!((moves().await, store.health()), (Ok(0), Health::Accepting));
        assert!(archive.note(Err(io::ErrorKind::Other.into())).is_err());
        assert!(archive.note(Ok(())).is_ok());
        assert!(moves().await.unwrap_err().contains("none is moved by this process"));
        assert!(matches!(store.health(), Health::Stopped(why) if why.contains("past events")));
    }

    #[test]
    fn a_frame_that_could_not_be_made_durable_is_not_found_by_the_next_try() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("day");
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        add_durably(&file, b"first", |_| Ok(())).unwrap();
        let failed = add_durably(&file, b"second", |_| Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        add_durably(&file, b"second", |_| Ok(())).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"firstsecond");
    }
}
