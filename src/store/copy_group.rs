//! One group of changes on its way into the copy of the records: frames of the journal's kind, and a seal.
//!
//! It decides nothing. Easy to get wrong: the last frame names the position, so a group is worth nothing
//! before its seal is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::frame::{HEADER_BYTES, Header, Kind, Salt, Seal, frame_bytes};
use super::prefix;
use super::record::{Operations, POSITION_KEY, Position};
use super::sled::Extent;

/// Bytes of records in one frame.
pub const FRAME_BYTES: usize = 1024 * 1024;
/// How far the record files reached before what a group holds was flushed into them.
pub const EXTENT_KEY: [u8; 2] = [prefix::ENGINE, b'x'];

/// Writes groups of frames, one behind the other.
pub struct Writer<'a> {
    /// The copy's file.
    pub file: &'a File,
    /// Of the file.
    pub salt: Salt,
    /// The number of the group.
    pub group: u64,
    /// Where the next frame goes.
    pub at: u64,
}

impl Writer<'_> {
    fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<Header> {
        let header = Header::plain(kind, self.group, payload);
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
pub struct Group<'a> {
    /// Where it goes.
    pub writer: Writer<'a>,
    start: u64,
    position: Position,
    frames: u32,
    crc: u32,
    operations: Operations,
    /// Bytes in `operations`.
    bytes: usize,
}

impl<'a> Group<'a> {
    /// Begins one that gives the state at `position`.
    pub fn begin(writer: Writer<'a>, position: Position) -> Self {
        let operations = Operations::new(position.commit, 256);
        Self { start: writer.at, writer, position, frames: 0, crc: 0, operations, bytes: 0 }
    }

    /// Puts a record, or that there is none, into it.
    pub fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
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
    pub fn end(mut self, extent: Option<&Extent>) -> io::Result<u64> {
        if let Some(extent) = extent {
            self.operations.set(&EXTENT_KEY, &extent.to_bytes());
        }
        self.operations.set(&POSITION_KEY, &self.position.to_bytes());
        self.frame()?;
        let seal = Seal { start: self.start, frames: self.frames, group_crc: self.crc };
        self.writer.frame(Kind::Seal, &seal.to_bytes())?;
        Ok(self.writer.at)
    }
}
