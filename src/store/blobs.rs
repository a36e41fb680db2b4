//! Reads one body from its segment: small ones in one read, large ones slice by slice.
//!
//! Nothing is given out as whole before the checksum matched: a small body is checked before its
//! only slice, a large one before the final `None`. Easy to get wrong: the frame's header is read
//! again from the file and must name this body, so that a stale location never shows another's mail.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{HEADER_BYTES, Header, Kind};
use super::record::Location;
use super::segment::Segment;
use super::shared::Shared;
use super::{BodyReader, StoreError};
use crate::mail::BodyId;

/// Bytes given out at a time, and the largest body read at once.
const SLICE_BYTES: usize = 256 * 1024;
/// A body may move between the look-up and the opening of its segment; it does not move often.
const LOOKUPS_MAX: usize = 16;

/// Finds a body and opens its segment.
pub fn open(shared: &Shared, id: BodyId) -> Result<Option<SegmentReader>, StoreError> {
    for _ in 0..LOOKUPS_MAX {
        let Some(location) = shared.location(id)? else { return Ok(None) };
        if let Some(segment) = shared.segments.get(location.segment) {
            return Ok(Some(SegmentReader::new(segment, id, location)));
        }
    }
    Err(StoreError::Damaged(format!("the segment of body {}/{} is missing", id.queue_id, id.number)))
}

/// Reads one body.
pub struct SegmentReader {
    segment: Arc<Segment>,
    id: BodyId,
    location: Location,
    given: u64,
    running: Option<Running>,
}

/// The header's checksum and what it is so far.
#[derive(Clone, Copy)]
struct Running {
    wanted: u32,
    crc: u32,
}

impl SegmentReader {
    /// A reader at the start.
    pub fn new(segment: Arc<Segment>, id: BodyId, location: Location) -> Self {
        Self { segment, id, location, given: 0, running: None }
    }

    /// Envelope and message in one buffer, checksum verified, with the checksum.
    pub fn whole(&self) -> Result<(Bytes, u32), StoreError> {
        let payload = u64::from(self.location.envelope_bytes).saturating_add(self.location.message_bytes);
        let length = usize::try_from(payload).map_err(|_| self.damaged("is too long for memory"))?;
        let mut buffer = vec![0; HEADER_BYTES.saturating_add(length)];
        self.read(&mut buffer, self.location.offset)?;
        let header = self.header(&buffer)?;
        let payload = Bytes::from(buffer).slice(HEADER_BYTES..);
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Err(self.damaged("fails its checksum"));
        }
        Ok((payload, header.payload_crc))
    }

    /// What lies beside the message. Its checksum is that of the whole and was not computed yet.
    pub fn envelope(&self) -> Result<Vec<u8>, StoreError> {
        let length = usize::try_from(self.location.envelope_bytes).unwrap_or(usize::MAX);
        let mut buffer = vec![0; HEADER_BYTES.saturating_add(length)];
        self.read(&mut buffer, self.location.offset)?;
        self.header(&buffer)?;
        Ok(buffer.split_off(HEADER_BYTES))
    }

    fn header(&self, bytes: &[u8]) -> Result<Header, StoreError> {
        let header = Header::from_bytes(bytes, &self.segment.header.salt, self.location.offset);
        header
            .filter(|header| {
                header.kind == Kind::Body
                    && header.body == self.id
                    && header.envelope_bytes == self.location.envelope_bytes
                    && header.payload_bytes == u64::from(self.location.envelope_bytes) + self.location.message_bytes
            })
            .ok_or_else(|| self.damaged("has no whole frame"))
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), StoreError> {
        self.segment.file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged("is cut off"),
            _ => StoreError::Failed(format!("reading segment {}: {error}", self.segment.header.number)),
        })
    }

    fn damaged(&self, how: &str) -> StoreError {
        let (id, segment) = (self.id, self.segment.header.number);
        StoreError::Damaged(format!("body {}/{} in segment {segment} {how}", id.queue_id, id.number))
    }

    /// Reads header and envelope of a large body.
    fn start(&self) -> Result<Running, StoreError> {
        let envelope = usize::try_from(self.location.envelope_bytes).unwrap_or(usize::MAX);
        let mut buffer = vec![0; HEADER_BYTES.saturating_add(envelope)];
        self.read(&mut buffer, self.location.offset)?;
        let header = self.header(&buffer)?;
        let crc = crc32c::crc32c(buffer.get(HEADER_BYTES..).unwrap_or_default());
        Ok(Running { wanted: header.payload_crc, crc })
    }
}

impl BodyReader for SegmentReader {
    fn length(&self) -> u64 {
        self.location.message_bytes
    }

    fn next_slice(&mut self) -> Result<Option<Bytes>, StoreError> {
        let left = self.location.message_bytes - self.given;
        if self.given == 0 && left <= SLICE_BYTES as u64 && self.running.is_none() {
            let (payload, crc) = self.whole()?;
            self.given = self.location.message_bytes;
            self.running = Some(Running { wanted: crc, crc });
            let message = payload.slice(usize::try_from(self.location.envelope_bytes).unwrap_or(usize::MAX)..);
            return Ok((!message.is_empty()).then_some(message));
        }
        let mut running = match self.running {
            Some(running) => running,
            None => self.start()?,
        };
        if left == 0 {
            return if running.crc == running.wanted { Ok(None) } else { Err(self.damaged("fails its checksum")) };
        }
        let mut slice = vec![0; usize::try_from(left).unwrap_or(SLICE_BYTES).min(SLICE_BYTES)];
        let before = HEADER_BYTES as u64 + u64::from(self.location.envelope_bytes) + self.given;
        self.read(&mut slice, self.location.offset + before)?;
        running.crc = crc32c::crc32c_append(running.crc, &slice);
        self.running = Some(running);
        self.given += slice.len() as u64;
        Ok(Some(Bytes::from(slice)))
    }
}
