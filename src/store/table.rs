//! The segments in use and the files that wait to be used again.
//!
//! Readers find a segment by number, the committer begins new ones, housekeeping gives them back.
//! Easy to get wrong: a reader may hold a segment whose bodies were moved or freed meanwhile, so a
//! file is reused only when the table holds the last reference to it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::BlobsUsage;
use super::durable;
use super::segment::{self, Filling, InHand, Segment, SegmentHeader, SpareFile, Use};

/// The segments of one folder.
pub struct Segments {
    folder: PathBuf,
    segment_bytes: u64,
    spares_max: usize,
    used: Mutex<BTreeMap<u64, Arc<Segment>>>,
    spares: Mutex<Vec<SpareFile>>,
    next_number: AtomicU64,
}

impl Segments {
    /// A table over what was found; numbers begin above `last_number`.
    pub fn new(
        folder: PathBuf,
        segment_bytes: u64,
        spares_max: usize,
        used: BTreeMap<u64, Arc<Segment>>,
        last_number: u64,
    ) -> Self {
        Self {
            folder,
            segment_bytes,
            spares_max,
            used: Mutex::new(used),
            spares: Mutex::new(Vec::new()),
            next_number: AtomicU64::new(last_number.saturating_add(1)),
        }
    }

    /// The segment of that number, if it is in use.
    pub fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.used().get(&number).cloned()
    }

    /// Every segment in use, by number.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.used().values().cloned().collect()
    }

    /// A file with room for `bytes` of frames. Where there is none, nothing on the disk speaks of it.
    pub fn spare_for(&self, bytes: u64) -> io::Result<SpareFile> {
        let needed = segment::DATA_START.saturating_add(bytes);
        let spare = if needed <= self.segment_bytes { self.spares().pop() } else { None };
        match spare {
            Some(spare) => Ok(spare),
            None => segment::create(&self.folder, needed.max(self.segment_bytes), Filling::Reserve),
        }
    }

    /// Begins a journal segment in a file. Its header is durable then: should its first groups fail, what it
    /// says of its predecessor's end must still be found. If this fails it may be on the disk all the same.
    pub fn begin_shared(&self, spare: SpareFile, chain: Chain) -> io::Result<Arc<Segment>> {
        let mut header = SegmentHeader::new(Use::Shared, self.number());
        (header.previous, header.previous_end, header.commits_before) =
            (chain.previous, chain.previous_end, chain.commits);
        self.enter(header, spare, durable::sync_data)
    }

    /// Begins a segment of its own size for one body whose frame takes `bytes`.
    pub fn begin_own(&self, bytes: u64) -> io::Result<InHand> {
        let spare = segment::create(&self.folder, segment::DATA_START.saturating_add(bytes), Filling::Reserve)?;
        self.enter(SegmentHeader::new(Use::Own, self.number()), spare, |_| Ok(())).map(InHand::new)
    }

    fn enter(
        &self,
        header: SegmentHeader,
        spare: SpareFile,
        sync: impl Fn(&std::fs::File) -> io::Result<()>,
    ) -> io::Result<Arc<Segment>> {
        if let Err(error) = header.write(&spare.file).and_then(|()| sync(&spare.file)) {
            // The name would be found again at open; nothing in it is valid under any header we wrote.
            let _ = std::fs::remove_file(&spare.path);
            return Err(error);
        }
        let segment = Segment::new(header, spare);
        segment.in_hand.store(true, Ordering::Release);
        self.used().insert(header.number, Arc::clone(&segment));
        Ok(segment)
    }

    /// Takes a segment nobody needs out of use, durably, and keeps or removes its file.
    /// `Ok(false)` if somebody still reads from it.
    pub fn give_back(&self, number: u64) -> io::Result<bool> {
        let segment = {
            let mut used = self.used();
            let Some(segment) = used.remove(&number) else { return Ok(false) };
            match Arc::try_unwrap(segment) {
                Ok(segment) => segment,
                Err(still_read) => {
                    used.insert(number, still_read);
                    return Ok(false);
                }
            }
        };
        let spare = SpareFile { file: segment.file, path: segment.path, size: segment.size };
        self.keep_or_remove(number, spare)?;
        Ok(true)
    }

    /// Keeps a free file for later if it has the usual size and few wait already.
    pub fn keep_or_remove(&self, number: u64, spare: SpareFile) -> io::Result<()> {
        if spare.size != self.segment_bytes || self.spares().len() >= self.spares_max {
            std::fs::remove_file(&spare.path)?;
            return durable::sync_folder(&self.folder);
        }
        let freed = SegmentHeader::new(Use::Free, number);
        freed.write(&spare.file)?;
        durable::sync_data(&spare.file)?;
        self.spares().push(spare);
        Ok(())
    }

    /// Fills one file with zeros ahead of need, if none waits.
    pub fn prepare_spare(&self) -> io::Result<()> {
        if self.spares_max == 0 || !self.spares().is_empty() {
            return Ok(());
        }
        let spare = segment::create(&self.folder, self.segment_bytes, Filling::Zeros)?;
        self.spares().push(spare);
        Ok(())
    }

    /// Bytes of live bodies and of all files.
    pub fn usage(&self) -> BlobsUsage {
        let used = self.used();
        let live_bodies = used.values().map(|segment| segment.live_bodies.load(Ordering::Acquire)).sum();
        let live_bytes = used.values().map(|segment| segment.live_bytes.load(Ordering::Acquire)).sum();
        let in_use: u64 = used.values().map(|segment| segment.size).sum();
        let spare: u64 = self.spares().iter().map(|spare| spare.size).sum();
        BlobsUsage { live_bodies, live_bytes, file_bytes: in_use + spare }
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::AcqRel)
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spares(&self) -> MutexGuard<'_, Vec<SpareFile>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a new journal segment says about the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its number, 0 if there is none.
    pub previous: u64,
    /// Where its last acknowledged group ended.
    pub previous_end: u64,
    /// Commits acknowledged so far.
    pub commits: u64,
}
