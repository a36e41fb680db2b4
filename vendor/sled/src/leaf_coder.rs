//! postern: leaves on their way to disk and back.
//!
//! Upstream made a streaming zstd context for each leaf, with buffers for
//! input of unknown length, and fed it key by key. Here every thread keeps a
//! context and encodes a leaf in one piece. The stored form is upstream's: a
//! zstd frame around bincode.

use std::cell::RefCell;
use std::io;

use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::get_frame_content_size;

/// A buffer that grew beyond this for a leaf of large values is not kept.
const KEPT_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static CODER: RefCell<Coder> = RefCell::new(Coder::default());
}

#[derive(Default)]
struct Coder {
    level: i32,
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    plain: Vec<u8>,
}

/// The stored form of a leaf.
pub(crate) fn encode(leaf: &impl Serialize, level: i32) -> Vec<u8> {
    CODER.with_borrow_mut(|coder| {
        if coder.level != level {
            coder.compressor.set_compression_level(level).unwrap();
            coder.level = level;
        }

        coder.plain.clear();
        bincode::serialize_into(&mut coder.plain, leaf).unwrap();
        let mut stored = coder.compressor.compress(&coder.plain).unwrap();
        stored.shrink_to_fit();
        coder.tidy();

        stored
    })
}

/// The leaf of a stored form.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(
    stored: &[u8],
) -> io::Result<T> {
    CODER.with_borrow_mut(|coder| {
        coder.plain.clear();
        match get_frame_content_size(stored) {
            Ok(Some(length)) => {
                coder.plain.reserve(length as usize);
                coder
                    .decompressor
                    .decompress_to_buffer(stored, &mut coder.plain)?;
            }
            // a frame of upstream's streaming encoder
            _ => zstd::stream::copy_decode(stored, &mut coder.plain)?,
        }
        let leaf = bincode::deserialize(&coder.plain).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        coder.tidy();

        Ok(leaf)
    })
}

impl Coder {
    fn tidy(&mut self) {
        if self.plain.capacity() > KEPT_BYTES_MAX {
            self.plain = Vec::new();
        }
    }
}
