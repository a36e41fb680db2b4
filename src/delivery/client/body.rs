//! The message text on its way from the disk to the wire.
//!
//! Easy to get wrong: reading blocks. A short body is one read of what was written moments ago, so
//! it is read in place; a long one is read slice by slice on the blocking threads. A short body is
//! checked to its end before the peer hears of the message at all.

use bytes::Bytes;

use crate::delivery::transport::{Held, OpenBody};
use crate::smtp::DotStuffer;
use crate::store::{BodyReader, StoreError};

/// Bodies up to this many octets are read in place, as one piece.
const IN_PLACE_BYTES_MAX: u64 = 256 * 1024;

/// The text of one transaction.
pub(super) enum Text<'a> {
    /// Dot-stuffed, with the final dot.
    Whole(&'a [u8]),
    /// To be read from the disk.
    Streamed(Option<Box<dyn BodyReader>>),
}

impl Text<'_> {
    /// The next slice of a streamed text; `Err` says why it cannot be used.
    pub(super) async fn next_slice(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Self::Streamed(slot) = self else { return Ok(None) };
        let Some(mut reader) = slot.take() else { return Err(StoreError::Failed("read beyond its end".to_owned())) };
        let read = tokio::task::spawn_blocking(move || {
            let slice = reader.next_slice();
            (reader, slice)
        });
        let (reader, slice) = read.await.map_err(|error| StoreError::Failed(error.to_string()))?;
        *slot = Some(reader);
        slice
    }
}

/// What was loaded.
pub(super) enum Loaded {
    /// The buffer holds the whole text.
    Whole,
    /// The text is to be streamed.
    Streamed(Box<dyn BodyReader>),
}

/// Opens the body of a claim; a short one is read, checked and dot-stuffed into `buffer`.
pub(super) async fn load(
    held: Held,
    open: &OpenBody,
    buffer: &mut Vec<u8>,
) -> (Option<Held>, Result<Loaded, StoreError>) {
    let Some(claim) = held.claim() else {
        return (Some(held), Err(StoreError::Failed("nothing is claimed".to_owned())));
    };
    if claim.message.size_bytes <= IN_PLACE_BYTES_MAX {
        let loaded = opened(open(claim)).and_then(|reader| stuff(reader, buffer));
        return (Some(held), loaded.map(|()| Loaded::Whole));
    }
    let open = open.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let reader = held.claim().map_or(Ok(None), |claim| open(claim));
        (held, reader)
    });
    match opening.await {
        Ok((held, reader)) => (Some(held), opened(reader).map(Loaded::Streamed)),
        // It panicked; the claim was released as it was dropped.
        Err(error) => (None, Err(StoreError::Failed(error.to_string()))),
    }
}

fn opened(reader: Result<Option<Box<dyn BodyReader>>, StoreError>) -> Result<Box<dyn BodyReader>, StoreError> {
    reader?.ok_or_else(|| StoreError::Damaged("its body is gone".to_owned()))
}

fn stuff(mut reader: Box<dyn BodyReader>, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
    buffer.clear();
    let mut stuffer = DotStuffer::new();
    while let Some(slice) = reader.next_slice()? {
        stuffer.write(&slice, buffer);
    }
    stuffer.end(buffer);
    Ok(())
}
