//! Reads a backup file: unseals, unpacks, and gives out its entries in an order that makes sense.
//!
//! Easy to get wrong: a file is whole only once its last entry was read *and* the sealed stream behind
//! it ended; everything before was genuine and yet may be the beginning of more.

use std::io::{self, BufReader, Read};

use super::BackupError;
use super::entry::{self, Counts, Entry, Manifest, strange};
use crate::ext::Timestamp;
use crate::seal::{BackupKey, OpeningReader};

/// zstd may ask for this much memory at most (8 MiB); our own files need a quarter.
const WINDOW_LOG_MAX: u32 = 23;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The machine's name.
    pub hostname: String,
    /// The release that made it.
    pub release: String,
    /// When.
    pub taken: Timestamp,
    /// Records given.
    pub records: u64,
    /// Messages.
    pub bodies: u64,
    /// Their octets.
    pub body_bytes: u64,
    /// Messages that could not be read when it was made.
    pub unreadable: u64,
    /// Files beside the store.
    pub files: u64,
}

/// A file being read.
pub(super) struct Entries<R: Read> {
    input: BufReader<zstd::stream::read::Decoder<'static, BufReader<OpeningReader<R>>>>,
    buffer: Vec<u8>,
    seen: Counts,
}

impl<R: Read> Entries<R> {
    pub(super) fn open(file: R, key: &BackupKey) -> io::Result<Self> {
        let mut unpacked = zstd::stream::read::Decoder::new(OpeningReader::new(file, key)?)?;
        unpacked.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Self { input: BufReader::with_capacity(256 * 1024, unpacked), buffer: Vec::new(), seen: Counts::default() })
    }

    /// The next entry; `None` once the file has proved to be whole.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry<'_>>> {
        entry::fill(&mut self.input, &mut self.buffer)?;
        if let Entry::Finished(counts) = entry::parse(&self.buffer)? {
            let mut more = [0; 1];
            if self.input.read(&mut more)? != 0 {
                return Err(strange("something follows the last entry"));
            }
            if counts != self.seen {
                return Err(strange("the counts at its end are not those of its entries"));
            }
            return Ok(None);
        }
        let entry = entry::parse(&self.buffer)?;
        match &entry {
            Entry::Set(..) | Entry::Remove(_) => self.seen.records += 1,
            Entry::Body(_, _, length) => {
                self.seen.bodies += 1;
                let body_bytes = self.seen.body_bytes.checked_add(*length);
                self.seen.body_bytes = body_bytes.ok_or_else(|| strange("its messages are longer than any may be"))?;
            }
            Entry::File(..) => self.seen.files += 1,
            Entry::Unreadable(..) => self.seen.unreadable += 1,
            _ => {}
        }
        Ok(Some(entry))
    }

    /// The body that began last could not be read to its end when the file was made.
    pub(super) fn take_back(&mut self, length: u64) {
        self.seen.bodies = self.seen.bodies.saturating_sub(1);
        self.seen.body_bytes = self.seen.body_bytes.saturating_sub(length);
    }

    pub(super) fn contents(&self, manifest: Manifest) -> Contents {
        let Manifest { hostname, release, taken, store_format: _ } = manifest;
        let Counts { records, bodies, body_bytes, unreadable, files } = self.seen;
        Contents { hostname, release, taken, records, bodies, body_bytes, unreadable, files }
    }
}

/// Reads a whole file and opens the master key in it.
pub fn verify(file: impl Read, key: &BackupKey) -> Result<Contents, BackupError> {
    let reading = |error: io::Error| BackupError::reading(&error);
    let mut entries = Entries::open(file, key).map_err(reading)?;
    let (mut manifest, mut has_key, mut open) = (None, false, None);
    loop {
        let mut broken = None;
        match entries.next().map_err(reading)? {
            None => break,
            Some(Entry::Manifest(found)) => manifest = Some(found),
            Some(Entry::MasterKey(wrapped)) => {
                key.unwrap_key(wrapped)?;
                has_key = true;
            }
            Some(Entry::Body(id, _, length)) => open = Some((id, length)),
            Some(Entry::End) => open = None,
            Some(Entry::Unreadable(id, _)) => broken = open.take_if(|(body, _)| *body == id),
            Some(_) => {}
        }
        if let Some((_, length)) = broken {
            entries.take_back(length);
        }
    }
    match manifest {
        Some(manifest) if has_key => Ok(entries.contents(manifest)),
        _ => Err(BackupError::Damaged("damaged: it does not say who made it".to_owned())),
    }
}
