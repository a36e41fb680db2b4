//! The message text on its way from the disk to the wire.
//!
//! Easy to get wrong: reading blocks. A short body is one read of what was written moments ago, so
//! it is read in place; a long one is read slice by slice on the blocking threads. A short body is
//! checked to its end before the peer hears of the message at all.

use bytes::Bytes;

use crate::delivery::transport::OpenBody;
use crate::mail::BodyId;
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

/// Opens a body of so many octets; a short one is read, checked and dot-stuffed into `buffer`.
pub(super) async fn load(
    body: BodyId,
    size_bytes: u64,
    open: &OpenBody,
    buffer: &mut Vec<u8>,
) -> Result<Loaded, StoreError> {
    if size_bytes <= IN_PLACE_BYTES_MAX {
        return opened(open(body)).and_then(|reader| stuff(reader, buffer)).map(|()| Loaded::Whole);
    }
    stream(body, open).await
}

/// Opens a long body, from its beginning.
pub(super) async fn stream(body: BodyId, open: &OpenBody) -> Result<Loaded, StoreError> {
    let open = open.clone();
    match tokio::task::spawn_blocking(move || open(body)).await {
        Ok(reader) => opened(reader).map(Loaded::Streamed),
        Err(error) => match error.try_into_panic() {
            // As if it had happened here: the claim that was worked on is what it is about.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Failed(error.to_string())),
        },
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
