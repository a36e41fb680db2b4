//! A message on its way in: the header block in memory, the body in memory or in a spill file.
//!
//! Stages edit a `Draft`; `Sealed` bytes never change again. A spill file is counted, never
//! synced, and unlinked when its `Body` is dropped: only the segment frame is durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::header::HeaderBlock;

/// Bytes of a body kept in memory; a longer body goes to a spill file.
pub const BODY_IN_MEMORY_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a spilled body read at a time.
pub const SLICE_BYTES: usize = 64 * 1024;

/// A body without its header block, lines ended by CRLF, dots not stuffed.
#[derive(Clone, Debug)]
pub enum Body {
    /// Short enough for memory.
    Memory(Bytes),
    /// In an unlinked spill file.
    Spilled(Arc<Spill>),
}

/// An open, already unlinked file that holds one body.
#[derive(Debug)]
pub struct Spill {
    /// Read with positioned reads only, so that several readers may share it.
    pub file: File,
    /// Its length.
    pub length: u64,
}

impl Body {
    /// Its length in octets.
    pub fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled(spill) => spill.length,
        }
    }

    /// The body slice by slice, each at most [`SLICE_BYTES`] if spilled.
    /// Blocks on a spill file: not for async workers.
    pub fn slices(&self) -> impl Iterator<Item = io::Result<Bytes>> + '_ {
        let mut offset = 0_u64;
        let length = self.length();
        std::iter::from_fn(move || {
            if offset >= length {
                return None;
            }
            match self {
                Self::Memory(bytes) => {
                    offset = length;
                    Some(Ok(bytes.clone()))
                }
                Self::Spilled(spill) => {
                    let wanted = usize::try_from(length - offset).unwrap_or(SLICE_BYTES).min(SLICE_BYTES);
                    let mut slice = vec![0; wanted];
                    let read = spill.file.read_exact_at(&mut slice, offset);
                    offset = match read {
                        Ok(()) => offset + wanted as u64,
                        Err(_) => length,
                    };
                    Some(read.map(|()| Bytes::from(slice)))
                }
            }
        })
    }
}

/// A message that is not final yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The header fields in order; edited by stages.
    pub header: HeaderBlock,
    /// What follows the empty line.
    pub body: Body,
}

impl Draft {
    /// Octets of the whole message as it would be sent, without dot-stuffing.
    pub fn length(&self) -> u64 {
        self.header.length() as u64 + 2 + self.body.length()
    }

    /// The final bytes.
    pub fn seal(self) -> Sealed {
        let mut head = self.header.to_bytes();
        head.extend_from_slice(b"\r\n");
        Sealed { head: Bytes::from(head), body: self.body }
    }
}

/// Final bytes: `head` (header block and the empty line), then the body.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Header block and the empty line that ends it.
    pub head: Bytes,
    /// The body.
    pub body: Body,
}

impl Sealed {
    /// Octets in all.
    pub fn length(&self) -> u64 {
        self.head.len() as u64 + self.body.length()
    }
}
