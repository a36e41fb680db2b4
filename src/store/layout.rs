//! One group on its way into a segment: frames laid out one behind the other, sealed, and written
//! with vectored writes, so that bodies are never copied.
//!
//! It decides nothing. The seal is written apart: without it nothing of the group counts.
//! Easy to get wrong: the offset of a frame is part of its checksum, so the layout begins only when the
//! segment and the offset are known.

use std::time::Instant;

use crate::metrics::{STORE_GROUP, STORE_SYNC};
use std::io::{self, IoSlice};
use std::ops::Range;

use rustix::io::Errno;

use super::frame::{self, Header, Kind, Salt, Seal};
use super::segment::{PAGE_BYTES, Segment};
use crate::mail::BodyId;

/// Slices in one system call, at most (IOV_MAX of Linux).
const SLICES_MAX: usize = 1024;

/// Frames of one group.
pub struct Layout<'a> {
    salt: Salt,
    group: u64,
    start: u64,
    at: u64,
    frames: u32,
    group_crc: u32,
    arena: Vec<u8>,
    pieces: Vec<Piece<'a>>,
}

enum Piece<'a> {
    Arena(Range<usize>),
    Slice(&'a [u8]),
}

/// A body's payload and checksum.
#[derive(Clone, Copy)]
pub struct BodyParts<'a> {
    /// Its name.
    pub id: BodyId,
    /// First part of the payload.
    pub envelope: &'a [u8],
    /// The message, in two parts that may be empty.
    pub message: [&'a [u8]; 2],
    /// CRC32C of all three.
    pub crc: u32,
}

/// Measures the sync of a group of so many batches.
pub fn group_synced<T>(batches: usize, sync: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let synced = sync();
    metrics::histogram!(STORE_SYNC).record(began.elapsed().as_secs_f64());
    metrics::histogram!(STORE_GROUP).record(f64::from(u32::try_from(batches).unwrap_or(u32::MAX)));
    synced
}

impl<'a> Layout<'a> {
    /// An empty group at `start`.
    pub fn new(salt: Salt, group: u64, start: u64) -> Self {
        Self { salt, group, start, at: start, frames: 0, group_crc: 0, arena: Vec::new(), pieces: Vec::new() }
    }

    /// Adds a body frame; returns its offset.
    pub fn body(&mut self, body: BodyParts<'a>) -> u64 {
        let length = body.envelope.len() as u64 + body.message.iter().map(|part| part.len() as u64).sum::<u64>();
        let header = Header {
            kind: Kind::Body,
            group: self.group,
            payload_bytes: length,
            body: body.id,
            envelope_bytes: u32::try_from(body.envelope.len()).unwrap_or(u32::MAX),
            payload_crc: body.crc,
        };
        self.frame(header, [body.envelope, body.message[0], body.message[1]])
    }

    /// Adds a frame of another kind with a payload that outlives the layout.
    pub fn plain(&mut self, kind: Kind, payload: &'a [u8]) {
        self.frame(Header::plain(kind, self.group, payload), [payload, &[], &[]]);
    }

    fn frame(&mut self, header: Header, payload: [&'a [u8]; 3]) -> u64 {
        let offset = self.at;
        self.small(&header.to_bytes(&self.salt, offset));
        self.pieces.extend(payload.into_iter().filter(|part| !part.is_empty()).map(Piece::Slice));
        self.small(&[0; frame::ALIGNMENT as usize][..frame::padding(header.payload_bytes)]);
        self.at += header.frame_bytes();
        self.frames += 1;
        self.group_crc = header.fold_into(self.group_crc);
        offset
    }

    fn small(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let from = self.arena.len();
            self.arena.extend_from_slice(bytes);
            self.pieces.push(Piece::Arena(from..self.arena.len()));
        }
    }

    /// Writes everything but the seal, which gets its place behind it. Nothing is synced yet.
    pub fn write(mut self, segment: &Segment) -> io::Result<SealFrame> {
        let seal = Seal { start: self.start, frames: self.frames, group_crc: self.group_crc }.to_bytes();
        let header = Header::plain(Kind::Seal, self.group, &seal);
        let mut bytes = header.to_bytes(&self.salt, self.at).to_vec();
        bytes.extend_from_slice(&seal);
        let frame = SealFrame { at: self.at, bytes, end: self.at + header.frame_bytes() };
        // Zeros in the seal's place, and up to the end of its page, so that no page is read from the disk to be
        // written in part.
        let page_end = frame.end.next_multiple_of(PAGE_BYTES).min(segment.size.max(frame.end));
        self.small(&[0; 2 * PAGE_BYTES as usize][..usize::try_from(page_end - self.at).unwrap_or(0)]);
        let arena = &self.arena;
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            slices.push(IoSlice::new(match piece {
                Piece::Arena(range) => arena.get(range.clone()).unwrap_or_default(),
                Piece::Slice(slice) => slice,
            }));
        }
        write_all(segment, &mut slices, self.start)?;
        Ok(frame)
    }
}

/// The seal of a group whose frames are written: what makes them count.
pub struct SealFrame {
    at: u64,
    bytes: Vec<u8>,
    /// Where the group ends.
    pub end: u64,
}

impl SealFrame {
    /// Writes it. Nothing is synced yet.
    pub fn write(&self, segment: &Segment) -> io::Result<()> {
        write_all(segment, &mut [IoSlice::new(&self.bytes)], self.at)
    }
}

fn write_all(segment: &Segment, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    while !slices.is_empty() {
        let part = slices.get(..slices.len().min(SLICES_MAX)).unwrap_or_default();
        match rustix::io::pwritev(&segment.file, part, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Bytes a seal takes.
pub fn seal_bytes() -> u64 {
    frame::frame_bytes(Seal::BYTES as u64)
}
