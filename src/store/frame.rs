//! Frames: the only thing that is written into segments, and how each proves that it is whole.
//!
//! A frame is a header of [`HEADER_BYTES`] and a payload, padded to 8 bytes. The header's checksum
//! covers the segment's salt and the frame's own offset, so that a frame left over from an earlier
//! use of the file, or moved within it, never reads as valid; the payload's checksum is in the
//! header. Easy to get wrong: a valid header says nothing about the payload until that was read.

use crate::mail::{BodyId, QueueId};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 56;
/// Frames begin at multiples of this.
pub const ALIGNMENT: u64 = 8;
/// The first bytes of every frame, searched for after damage.
pub const MAGIC: [u8; 4] = *b"\xf5PsF";

/// Makes one use of a segment file different from every other use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 24]);

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Envelope, then message.
    Body,
    /// One accepted batch, see the module `record`.
    Batch,
    /// Recipients settled: entries of queue id, count, numbers.
    Settled,
    /// Bodies whose frame must no longer be believed: entries of body id and segment number.
    Dead,
    /// The end of a group: a group counts only if this is there and fits its frames.
    Seal,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Body => 1,
            Self::Batch => 2,
            Self::Settled => 3,
            Self::Dead => 4,
            Self::Seal => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Body, Self::Batch, Self::Settled, Self::Dead, Self::Seal].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// The group it was written with; grows within a segment, a failed group's is not used again.
    pub group: u64,
    /// Bytes of the payload, padding not counted.
    pub payload_bytes: u64,
    /// Which body; zeros for other kinds.
    pub body: BodyId,
    /// Bytes of the envelope at the start of a body's payload; 0 for other kinds.
    pub envelope_bytes: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

/// The body id of frames that are not bodies.
pub const NO_BODY: BodyId = BodyId { queue_id: QueueId([0; 16]), number: 0 };

impl Header {
    /// Of a frame that is not a body.
    pub fn plain(kind: Kind, group: u64, payload: &[u8]) -> Self {
        Self {
            kind,
            group,
            payload_bytes: payload.len() as u64,
            body: NO_BODY,
            envelope_bytes: 0,
            payload_crc: crc32c::crc32c(payload),
        }
    }

    /// The header's bytes for a frame at `offset` of the segment with this `salt`.
    pub fn to_bytes(self, salt: &Salt, offset: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind.byte();
        bytes[8..16].copy_from_slice(&self.group.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[24..42].copy_from_slice(&body_id_bytes(self.body));
        bytes[44..48].copy_from_slice(&self.envelope_bytes.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(salt, offset, &bytes);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if it is not one of this segment at this offset.
    pub fn from_bytes(bytes: &[u8], salt: &Salt, offset: u64) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        if bytes[..4] != MAGIC || le32(&bytes[52..56]) != header_crc(salt, offset, bytes) {
            return None;
        }
        Some(Self {
            kind: Kind::from_byte(bytes[4])?,
            group: le64(&bytes[8..16]),
            payload_bytes: le64(&bytes[16..24]),
            body: body_id_from(&bytes[24..42])?,
            envelope_bytes: le32(&bytes[44..48]),
            payload_crc: le32(&bytes[48..52]),
        })
    }

    /// Bytes of the whole frame, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.payload_bytes)
    }

    /// What goes into the seal's checksum of its group.
    pub fn fold_into(&self, group_crc: u32) -> u32 {
        crc32c::crc32c_append(group_crc, &self.payload_crc.to_le_bytes())
    }
}

/// Bytes of a frame with this much payload, padding included.
pub fn frame_bytes(payload_bytes: u64) -> u64 {
    (HEADER_BYTES as u64).saturating_add(payload_bytes).saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// How many zero bytes follow a payload of this length.
pub fn padding(payload_bytes: u64) -> usize {
    usize::try_from(frame_bytes(payload_bytes) - HEADER_BYTES as u64 - payload_bytes).unwrap_or(0)
}

fn header_crc(salt: &Salt, offset: u64, bytes: &[u8; HEADER_BYTES]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.0), &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &bytes[..52])
}

/// Payload of a seal: where its group began, how many frames came before it, their checksums folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Offset of the first frame of the group.
    pub start: u64,
    /// Frames before the seal.
    pub frames: u32,
    /// [`Header::fold_into`] over them, in order.
    pub group_crc: u32,
}

impl Seal {
    /// Its length.
    pub const BYTES: usize = 16;

    /// As payload.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.frames.to_le_bytes());
        bytes[12..].copy_from_slice(&self.group_crc.to_le_bytes());
        bytes
    }

    /// From a payload whose checksum matched.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        Some(Self { start: le64(&bytes[..8]), frames: le32(&bytes[8..12]), group_crc: le32(&bytes[12..]) })
    }
}

/// One entry of a `Dead` frame: this body's frame in that segment must no longer be believed.
pub type DeadEntry = (BodyId, u64);

/// Appends an entry of a `Dead` frame.
pub fn push_dead(payload: &mut Vec<u8>, (id, segment): DeadEntry) {
    payload.extend_from_slice(&body_id_bytes(id));
    payload.extend_from_slice(&segment.to_le_bytes());
}

/// Reads a `Dead` frame; a strange tail is left out.
pub fn dead_entries(payload: &[u8]) -> Vec<DeadEntry> {
    let entries = payload.chunks_exact(26);
    entries.filter_map(|entry| Some((body_id_from(&entry[..18])?, le64(&entry[18..26])))).collect()
}

/// Appends an entry of a `Settled` frame; more than 65,535 numbers take several entries.
pub fn push_settled(payload: &mut Vec<u8>, queue_id: QueueId, numbers: &[u16]) {
    for part in numbers.chunks(usize::from(u16::MAX)) {
        payload.extend_from_slice(&queue_id.0);
        payload.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
        for number in part {
            payload.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// Reads a `Settled` frame; a strange tail is left out.
pub fn settled_entries(mut payload: &[u8]) -> Vec<(QueueId, Vec<u16>)> {
    let mut entries = Vec::new();
    while let Some((head, rest)) = payload.split_at_checked(18) {
        let count = usize::from(le16(&head[16..18]));
        let Some((numbers, rest)) = rest.split_at_checked(count * 2) else { break };
        let mut queue_id = [0; 16];
        queue_id.copy_from_slice(&head[..16]);
        entries.push((QueueId(queue_id), numbers.chunks_exact(2).map(le16).collect()));
        payload = rest;
    }
    entries
}

/// A body id as 18 bytes that sort as it does.
pub fn body_id_bytes(id: BodyId) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&id.queue_id.0);
    bytes[16..].copy_from_slice(&id.number.to_be_bytes());
    bytes
}

/// The reverse of [`body_id_bytes`].
pub fn body_id_from(bytes: &[u8]) -> Option<BodyId> {
    let bytes: &[u8; 18] = bytes.try_into().ok()?;
    let mut queue_id = [0; 16];
    queue_id.copy_from_slice(&bytes[..16]);
    Some(BodyId { queue_id: QueueId(queue_id), number: u16::from_be_bytes([bytes[16], bytes[17]]) })
}

/// Little-endian numbers from exactly as many bytes; 0 from any other count.
pub fn le64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// See [`le64`].
pub fn le32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

fn le16(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_le_bytes)
}
