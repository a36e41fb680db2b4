//! Reads the whole log in order, wherever its events are by now: past ones in the files, recent ones in the store.
//!
//! For whoever may fall far behind, or starts long after: a lane whose receiver is down, counters built anew.
//! It never keeps events from being moved. Easy to get wrong: events move from the store into files while
//! somebody reads; so the store is read first, and how far events were moved is asked afterwards.

use std::sync::Arc;

use super::Event;
use super::archive::{Archive, MOVED, Place, Stored};
use super::driver::{passed, read_after};
use crate::ext::Timestamp;
use crate::store::{Key, Store, StoreError, codec, prefix};

/// The log: the store, and the files of past events if there are any.
#[derive(Clone)]
pub struct EventLog {
    store: Arc<dyn Store>,
    archive: Option<Arc<Archive>>,
}

/// Some events in order.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Each with its key, which grows and never repeats. Damaged ones are left out.
    pub events: Vec<(Key, Event)>,
    /// Nothing was behind them when they were read.
    pub is_end: bool,
}

impl EventLog {
    /// A log in `store` alone.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, archive: None }
    }

    /// And in the files of past events.
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<Archive>) -> Self {
        self.archive = Some(archive);
        self
    }

    /// The store it is in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// A key before every event.
    pub fn beginning() -> Key {
        vec![prefix::EVENT]
    }

    /// The key of the last event there is now; [`EventLog::beginning`] if the store holds none. Blocks on the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn end(&self) -> Result<Key, StoreError> {
        let mut at = passed(&*self.store, MOVED)?.unwrap_or_else(Self::beginning);
        loop {
            let page = read_after(&*self.store, &at, SKIPPED_AT_ONCE)?;
            match page.into_iter().next_back() {
                Some((last, _)) => at = last,
                None => return Ok(at),
            }
        }
    }

    /// Reads on behind `at`.
    pub fn reader(&self, at: Key) -> Reader {
        Reader { log: self.clone(), at, place: None }
    }

    /// Reads from the first event that may have happened at `moment` or later; earlier ones may come first.
    pub fn reader_since(&self, moment: Timestamp) -> Reader {
        Reader { log: self.clone(), at: Self::beginning(), place: Some(Place::before(moment)) }
    }

    /// One event. `None` if it is no longer kept. Blocks on the disk.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn event(&self, key: &[u8]) -> Result<Option<Event>, StoreError> {
        if key.first() != Some(&prefix::EVENT) {
            return Ok(None);
        }
        if let Some(bytes) = self.store.get(key)? {
            return codec::decode(&bytes).map(Some);
        }
        let Some(archive) = &self.archive else { return Ok(None) };
        // The key before this one.
        let mut before = key.to_vec();
        for byte in before.iter_mut().skip(1).rev() {
            *byte = byte.wrapping_sub(1);
            if *byte != u8::MAX {
                break;
            }
        }
        let mut place = archive.place_of(&before).map_err(failed)?;
        let frame = archive.frame_after(&before, &mut place).map_err(failed)?;
        let found = frame.into_iter().find(|(own, _)| own == key);
        found.map(|(_, bytes)| codec::decode(&bytes)).transpose()
    }
}

/// Somebody's place in the log.
pub struct Reader {
    log: EventLog,
    at: Key,
    /// Found when it is first needed.
    place: Option<Place>,
}

impl Reader {
    /// The key of the last event that was read, or where it began.
    pub fn at(&self) -> &Key {
        &self.at
    }

    /// The next events: about `limit` of them, or what a file keeps together. Blocks on the disk.
    ///
    /// # Errors
    /// If the log cannot be read; then nothing was passed.
    pub fn next_page(&mut self, limit: usize) -> Result<Page, StoreError> {
        let recent = read_after(&*self.log.store, &self.at, limit)?;
        let is_end = recent.len() < limit;
        if let Some(archive) = &self.log.archive
            && passed(&*self.log.store, MOVED)?.is_some_and(|moved| moved > self.at)
        {
            let place = match &mut self.place {
                Some(place) => place,
                None => self.place.insert(archive.place_of(&self.at).map_err(failed)?),
            };
            let past = archive.frame_after(&self.at, place).map_err(failed)?;
            // None: their files are gone, or a clock that was wrong hid them.
            if !past.is_empty() {
                return Ok(self.pass(past, false));
            }
        }
        Ok(self.pass(recent, is_end))
    }

    fn pass(&mut self, stored: Vec<Stored>, is_end: bool) -> Page {
        if let Some((last, _)) = stored.last() {
            self.at.clone_from(last);
        }
        let readable = stored.into_iter().filter_map(|(key, bytes)| Some((key, codec::decode(&bytes).ok()?)));
        Page { events: readable.collect(), is_end }
    }
}

fn failed(error: std::io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// Events passed at once while looking for the last one.
const SKIPPED_AT_ONCE: usize = 10_000;
