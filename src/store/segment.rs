//! Segment files: their header, how they are made, reused and given back.
//!
//! A file keeps its name for life; each use of it writes a new header with a number that never
//! repeats and a random salt. Two copies of the header, so that one bad sector does not hide the rest.
//! Easy to get wrong: a file that is free still holds old frames; its header must say so durably
//! before anything forgets which bodies in it were dead.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, OFlags};

use super::durable;
use super::format::Newer;
use super::frame::{Salt, le32, le64};
use crate::ext;

/// Where the first frame begins; the header's copies lie at 0 and at half of this.
pub const DATA_START: u64 = 8192;

const COPY_AT: u64 = 4096;
const MAGIC: &[u8; 8] = b"PSTNSEG1";
const FORMAT: u32 = 1;
const BYTES: usize = 96;
const ZEROS_BYTES: usize = 1024 * 1024;
/// What direct writes keep to, whatever the disk's sectors are; a page of memory.
pub const PAGE_BYTES: u64 = 4096;

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing: nothing in it is to be believed.
    Free,
    /// The journal.
    Shared,
    /// One large body.
    Own,
}

/// The header of one use of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What for.
    pub usage: Use,
    /// Never repeats.
    pub number: u64,
    /// Mixed into every frame.
    pub salt: Salt,
    /// The journal segment before this one, 0 if none.
    pub previous: u64,
    /// Where that one's last acknowledged group ended.
    pub previous_end: u64,
    /// Commits acknowledged before this use began.
    pub commits_before: u64,
}

impl SegmentHeader {
    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12] = match self.usage {
            Use::Free => 0,
            Use::Shared => 1,
            Use::Own => 2,
        };
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..48].copy_from_slice(&self.salt.0);
        bytes[48..56].copy_from_slice(&self.previous.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.commits_before.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..BYTES - 4]);
        bytes[BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BYTES]) -> Option<Self> {
        if bytes[..8] != *MAGIC || le32(&bytes[BYTES - 4..]) != crc32c::crc32c(&bytes[..BYTES - 4]) {
            return None;
        }
        if le32(&bytes[8..12]) != FORMAT {
            return None;
        }
        let mut salt = [0; 24];
        salt.copy_from_slice(&bytes[24..48]);
        Some(Self {
            usage: [Use::Free, Use::Shared, Use::Own].get(usize::from(bytes[12])).copied()?,
            number: le64(&bytes[16..24]),
            salt: Salt(salt),
            previous: le64(&bytes[48..56]),
            previous_end: le64(&bytes[56..64]),
            commits_before: le64(&bytes[64..72]),
        })
    }

    /// Reads whichever copy is whole; `None` if neither is.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        for at in [0, COPY_AT] {
            let mut bytes = [0; BYTES];
            match file.read_exact_at(&mut bytes, at) {
                Ok(()) => {
                    if let Some(header) = Self::from_bytes(&bytes) {
                        return Ok(Some(header));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes both copies; durable with the next sync of the file.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let bytes = self.to_bytes();
        file.write_all_at(&bytes, 0)?;
        file.write_all_at(&bytes, COPY_AT)
    }

    /// A header for a new use with a salt of its own.
    pub fn new(usage: Use, number: u64) -> Self {
        Self { usage, number, salt: Salt(ext::random_bytes()), previous: 0, previous_end: 0, commits_before: 0 }
    }
}

/// One segment in use.
#[derive(Debug)]
pub struct Segment {
    /// Its header.
    pub header: SegmentHeader,
    /// The open file; positioned reads and writes only.
    pub file: File,
    /// Its name.
    pub path: PathBuf,
    /// Bytes of the file.
    pub size: u64,
    /// End of the last acknowledged group.
    pub end: AtomicU64,
    /// The last commit with a batch in it.
    pub last_commit: AtomicU64,
    /// Frames of bodies not freed yet.
    pub live_bodies: AtomicU64,
    /// Their bytes.
    pub live_bytes: AtomicU64,
    /// Still written to, or written by somebody whose batch is not decided yet: not to be freed.
    pub in_hand: AtomicBool,
    /// A live body in it cannot be read: left where it is.
    pub stuck: AtomicBool,
}

impl Segment {
    /// A segment around an open file.
    pub fn new(header: SegmentHeader, opened: SpareFile) -> Arc<Self> {
        Arc::new(Self {
            header,
            file: opened.file,
            path: opened.path,
            size: opened.size,
            end: AtomicU64::new(DATA_START),
            last_commit: AtomicU64::new(0),
            live_bodies: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            in_hand: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        })
    }

    /// Counts a body that lies here.
    pub fn gained(&self, bytes: u64) {
        self.live_bodies.fetch_add(1, Ordering::AcqRel);
        self.live_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Counts a body that is gone.
    pub fn lost(&self, bytes: u64) {
        let less = |value: u64, by: u64| Some(value.saturating_sub(by));
        let _ = self.live_bodies.fetch_update(Ordering::AcqRel, Ordering::Acquire, |value| less(value, 1));
        let _ = self.live_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |value| less(value, bytes));
    }
}

/// A file that is ready for a new use.
#[derive(Debug)]
pub struct SpareFile {
    /// Open for reading and writing.
    pub file: File,
    /// Its name.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
}

/// How a new file gets its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Zeros are written, past the page cache: later overwrites need no file-system journal. For files made ahead of
    /// need.
    Zeros,
    /// Blocks are reserved only: quick, and a full disk still shows now. For files needed at once.
    Reserve,
}

/// Makes a file of `size` bytes under a name that is not taken; it and its name are durable. If not, it is
/// gone again; its error may be a failed sync.
pub fn create(folder: &Path, size: u64, filling: Filling) -> io::Result<SpareFile> {
    let path = folder.join(format!("{}.segment", ext::base32(&ext::random_bytes::<10>())));
    let made = create_at(&path, size, filling);
    match made {
        Ok(file) => Ok(SpareFile { file, path, size }),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

fn create_at(path: &Path, size: u64, filling: Filling) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    if filling == Filling::Reserve || size < ZEROS_BYTES as u64 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size)?,
            Err(errno) => return Err(errno.into()),
        }
    } else {
        fill(&file, path, size)?;
    }
    // Nothing of anybody's is in it yet. Its folder has other names in it, and is not forgiven.
    durable::sync_all(&file).map_err(durable::forgive_full)?;
    if let Some(folder) = path.parent() {
        durable::sync_folder(folder)?;
    }
    Ok(file)
}

/// Writes zeros past the page cache where the file system lets us: nothing of them is copied or kept in
/// memory, and no sync of a group waits for all of them at once.
fn fill(file: &File, path: &Path, size: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES + PAGE_BYTES as usize];
    let aligned = zeros.as_ptr().align_offset(PAGE_BYTES as usize);
    let zeros = zeros.get(aligned..aligned.saturating_add(ZEROS_BYTES)).unwrap_or(&zeros);
    let past_the_cache = OFlags::DIRECT.bits().cast_signed();
    // Not every file system knows the flag (EINVAL), here or at the first write.
    let direct = OpenOptions::new().write(true).custom_flags(past_the_cache).open(path).ok();
    let mut at = 0;
    while at < size {
        let left = usize::try_from(size - at).unwrap_or(ZEROS_BYTES);
        let part = zeros.get(..left).unwrap_or(zeros);
        match direct.as_ref().map(|direct| direct.write_all_at(part, at)) {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
            Some(Err(_)) | None => file.write_all_at(part, at)?,
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// Opens every segment file of a folder: those in use, those free, and the names of unreadable ones.
pub fn open_all(folder: &Path) -> io::Result<Found> {
    let mut found = Found { used: Vec::new(), free: Vec::new(), unreadable: Vec::new() };
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "segment") {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let size = file.metadata()?.len();
        durable::forget(&file, NonZeroU64::new(DATA_START));
        let header = SegmentHeader::read(&file)?;
        let spare = SpareFile { file, path, size };
        match header {
            Some(header) if header.usage == Use::Free => found.free.push((header.number, spare)),
            Some(header) => found.used.push((header, spare)),
            None if starts_with_zeros(&spare)? => found.free.push((0, spare)),
            None => {
                if let Some(newer) = newer_format(&spare)? {
                    let what = spare.path.display().to_string();
                    return Err(io::Error::other(Newer { what, found: newer, known: FORMAT }));
                }
                found.unreadable.push(spare);
            }
        }
    }
    found.used.sort_by_key(|(header, _)| header.number);
    Ok(found)
}

/// The format a whole header of a newer release names.
fn newer_format(spare: &SpareFile) -> io::Result<Option<u32>> {
    for at in [0, COPY_AT] {
        let mut bytes = [0; BYTES];
        if spare.size < at.saturating_add(BYTES as u64) {
            return Ok(None);
        }
        spare.file.read_exact_at(&mut bytes, at)?;
        let format = le32(&bytes[8..12]);
        let is_whole = bytes[..8] == *MAGIC && le32(&bytes[BYTES - 4..]) == crc32c::crc32c(&bytes[..BYTES - 4]);
        if is_whole && format > FORMAT {
            return Ok(Some(format));
        }
    }
    Ok(None)
}

/// What a folder of segments holds.
#[derive(Debug)]
pub struct Found {
    /// In use, ordered by number.
    pub used: Vec<(SegmentHeader, SpareFile)>,
    /// Free, with the number of the last use.
    pub free: Vec<(u64, SpareFile)>,
    /// Neither header could be read.
    pub unreadable: Vec<SpareFile>,
}

/// A file made ahead and never used has zeros where the headers would be.
fn starts_with_zeros(spare: &SpareFile) -> io::Result<bool> {
    let length = usize::try_from(spare.size.min(DATA_START)).unwrap_or(0);
    let mut head = vec![0; length];
    spare.file.read_exact_at(&mut head, 0)?;
    Ok(head.iter().all(|byte| *byte == 0))
}

/// Keeps a segment from being given back while a batch that may name it is undecided.
#[derive(Debug)]
pub struct InHand(Arc<Segment>);

impl InHand {
    /// Takes it in hand.
    pub fn new(segment: Arc<Segment>) -> Self {
        segment.in_hand.store(true, Ordering::Release);
        Self(segment)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.store(false, Ordering::Release);
    }
}

impl std::ops::Deref for InHand {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_made_ahead_has_all_its_blocks_and_zeros_in_them_whatever_its_size() {
        // Memory has a file system that may not know direct writes.
        for folder in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            for size in [ZEROS_BYTES as u64, 3 * ZEROS_BYTES as u64 + 100, 2 * ZEROS_BYTES as u64 + PAGE_BYTES] {
                let made = create(folder.path(), size, Filling::Zeros).unwrap();
                assert_eq!((made.size, made.file.metadata().unwrap().len()), (size, size));
                assert!(
                    made.file.metadata().unwrap().blocks() * 512 >= size,
                    "nothing is left to be found at a full disk"
                );
                let mut bytes = vec![1; size as usize];
                made.file.read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes.iter().all(|byte| *byte == 0), "{size}");
            }
        }
    }
}
