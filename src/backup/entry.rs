//! What a backup file holds, entry by entry, before it is compressed and sealed.
//!
//! An entry is its length and the entry in postcard's form. Large things come in parts, so that neither
//! side ever holds more than one part of a file or message. Easy to get wrong: these are read by later
//! releases; variants and fields are only added at the end, and anything else raises the sealed
//! stream's version.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::BodyId;

/// Bytes of one part of a file or message, at most.
pub const PART_BYTES: usize = 256 * 1024;
/// Bytes of one entry, at most: the largest record and envelope fit.
const ENTRY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry<'a> {
    /// The first: who made the file, and when.
    Manifest(Manifest),
    /// The master key, sealed under a key made from the backup key.
    MasterKey(&'a [u8]),
    /// A file begins; its parts follow.
    File(Place, &'a str),
    /// A part of the file or message that began last.
    Part(&'a [u8]),
    /// The file or message that began last is whole.
    End,
    /// The store's records begin; commits up to this number are in them.
    Store(u64),
    /// A record has this value.
    Set(&'a [u8], &'a [u8]),
    /// There is no such record any more.
    Remove(&'a [u8]),
    /// A message's body begins, with its envelope and its length; its parts follow.
    Body(BodyId, &'a [u8], u64),
    /// The body that began last, or this one, could not be read.
    Unreadable(BodyId, &'a str),
    /// The last: how much there was.
    Finished(Counts),
}

/// Who made a backup, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The machine's name.
    pub hostname: String,
    /// The release.
    pub release: String,
    /// The store's format.
    pub store_format: u32,
    /// When it began.
    pub taken: Timestamp,
}

/// Where a file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Beside the configuration: its name is `postern.toml`.
    Configuration,
    /// In the certificate folder.
    Certificates,
    /// Among the files of past events.
    History,
}

/// How much a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records given, those changed meanwhile counted again.
    pub records: u64,
    /// Message bodies.
    pub bodies: u64,
    /// Their octets.
    pub body_bytes: u64,
    /// Bodies that could not be read.
    pub unreadable: u64,
    /// Files.
    pub files: u64,
}

/// Writes one entry.
pub fn put(out: &mut impl Write, entry: &Entry<'_>) -> io::Result<()> {
    let bytes = postcard::to_allocvec(entry).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= ENTRY_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("an entry is too large for a backup"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)
}

/// Reads the bytes of the next entry into `buffer`.
pub fn fill(input: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length as usize > ENTRY_BYTES_MAX {
        return Err(strange("an entry is longer than any may be"));
    }
    buffer.clear();
    input.take(u64::from(length)).read_to_end(buffer)?;
    if buffer.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The entry that [`fill`] read.
pub fn parse(buffer: &[u8]) -> io::Result<Entry<'_>> {
    match postcard::take_from_bytes(buffer) {
        Ok((entry, [])) => Ok(entry),
        _ => Err(strange("an entry cannot be read")),
    }
}

/// Whole and genuine, and yet not what a backup holds.
pub fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
