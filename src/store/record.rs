//! The engine's own words: what a batch frame holds, where a body lies, where replay begins.
//!
//! A batch frame is a commit number and a flat list of operations with final keys and values,
//! the engine's body locations among them, so that replay is nothing but doing them again.
//! Easy to get wrong: these records are read by later releases; change them only with a new version byte.

use super::frame::{body_id_bytes, body_id_from, le32, le64};
use super::{Key, prefix};
use crate::mail::BodyId;

/// Where replay begins: the last batch known to be applied, and the end of its group.
pub const POSITION_KEY: [u8; 2] = [prefix::ENGINE, b'p'];
/// Before every body id in a location's key.
pub const LOCATION_PREFIX: [u8; 2] = [prefix::ENGINE, b'b'];

const VERSION: u8 = 1;
const SET: u8 = 1;
const REMOVE: u8 = 2;

/// Where a body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of the frame in it.
    pub offset: u64,
    /// Bytes of the envelope, the first part of the payload.
    pub envelope_bytes: u32,
    /// Bytes of the message, the rest.
    pub message_bytes: u64,
}

impl Location {
    /// Its length as a value.
    pub const BYTES: usize = 29;

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        super::frame::frame_bytes(u64::from(self.envelope_bytes).saturating_add(self.message_bytes))
    }

    /// As the value of [`location_key`].
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [VERSION; Self::BYTES];
        bytes[1..9].copy_from_slice(&self.segment.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.offset.to_le_bytes());
        bytes[17..21].copy_from_slice(&self.envelope_bytes.to_le_bytes());
        bytes[21..].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes
    }

    /// From a value.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        (bytes[0] == VERSION).then(|| Self {
            segment: le64(&bytes[1..9]),
            offset: le64(&bytes[9..17]),
            envelope_bytes: le32(&bytes[17..21]),
            message_bytes: le64(&bytes[21..]),
        })
    }
}

/// The key under which a body's location is kept.
pub fn location_key(id: BodyId) -> [u8; 20] {
    let mut key = [0; 20];
    key[..2].copy_from_slice(&LOCATION_PREFIX);
    key[2..].copy_from_slice(&body_id_bytes(id));
    key
}

/// The body named by a [`location_key`].
pub fn location_key_id(key: &[u8]) -> Option<BodyId> {
    body_id_from(key.strip_prefix(&LOCATION_PREFIX)?)
}

/// Where replay begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Number of the last commit applied.
    pub commit: u64,
    /// Segment of its group.
    pub segment: u64,
    /// End of its group there.
    pub offset: u64,
}

impl Position {
    /// As the value of [`POSITION_KEY`].
    pub fn to_bytes(self) -> [u8; 25] {
        let mut bytes = [VERSION; 25];
        bytes[1..9].copy_from_slice(&self.commit.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.segment.to_le_bytes());
        bytes[17..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// From a value.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 25] = bytes.try_into().ok()?;
        (bytes[0] == VERSION).then(|| Self {
            commit: le64(&bytes[1..9]),
            segment: le64(&bytes[9..17]),
            offset: le64(&bytes[17..]),
        })
    }
}

/// Writes a batch frame's payload, one operation after the other.
pub struct Operations {
    bytes: Vec<u8>,
}

/// Bytes before the first operation.
pub const OPERATIONS_HEAD_BYTES: usize = 9;
/// Bytes around the key and value of an operation.
pub const OPERATION_EXTRA_BYTES: usize = 9;

impl Operations {
    /// An empty list for this commit.
    pub fn new(commit: u64, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(VERSION);
        bytes.extend_from_slice(&commit.to_le_bytes());
        Self { bytes }
    }

    /// Adds a `Set`.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.push(SET);
        self.part(key);
        self.part(value);
    }

    /// Adds a `Remove`.
    pub fn remove(&mut self, key: &[u8]) {
        self.bytes.push(REMOVE);
        self.part(key);
    }

    fn part(&mut self, part: &[u8]) {
        // Batches are limited to BATCH_BYTES_MAX, far below 4 GiB.
        self.bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.bytes.extend_from_slice(part);
    }

    /// The payload.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// One operation of a batch, borrowed from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Sets the value.
    Set(&'a [u8], &'a [u8]),
    /// Removes the key.
    Remove(&'a [u8]),
}

impl<'a> Operation<'a> {
    /// The key it is about.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key,
        }
    }
}

/// What stood under a key before an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing, for certain.
    Absent,
    /// Perhaps something.
    Unknown,
}

/// Reads a batch frame: its commit number and operations. `None` if the format is unknown.
pub fn operations(payload: &[u8]) -> Option<(u64, Vec<Operation<'_>>)> {
    let (head, mut rest) = payload.split_at_checked(OPERATIONS_HEAD_BYTES)?;
    if head[0] != VERSION {
        return None;
    }
    let mut list = Vec::new();
    while let Some((tag, after)) = rest.split_first() {
        let (key, after) = part(after)?;
        rest = match *tag {
            SET => {
                let (value, after) = part(after)?;
                list.push(Operation::Set(key, value));
                after
            }
            REMOVE => {
                list.push(Operation::Remove(key));
                after
            }
            _ => return None,
        };
    }
    Some((le64(&head[1..]), list))
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(4)?;
    rest.split_at_checked(usize::try_from(le32(length)).ok()?)
}

/// The keys of a range over all locations.
pub fn locations_range() -> (Key, Key) {
    (LOCATION_PREFIX.to_vec(), super::after_prefix(&LOCATION_PREFIX))
}
