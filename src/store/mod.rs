//! Durable records and message bodies behind two traits, so that an engine can be changed.
//!
//! Recipe: build a [`Batch`] (conditions, changes, appended facts, body frames), `commit` it,
//! and only after that returned `Ok` tell anybody. `get` and `range` show what is committed.
//! Easy to get wrong: a failed write clears by itself, a failed *sync* does not: after one the
//! engine refuses every commit until it has been reopened from disk (the next sync may lie).

mod batch;
mod bell;
mod blobs;
mod census;
mod chain;
mod checker;
pub mod codec;
mod committer;
mod copy;
mod copy_group;
mod durable;
mod engine;
mod format;
mod frame;
mod housekeeping;
mod layers;
mod layout;
pub mod lease;
mod memory;
mod offline;
mod plan;
mod rebuild;
mod record;
mod replay;
mod scan;
mod segment;
mod settings;
mod settler;
mod shared;
mod sled;
mod snapshot;
mod space;
mod table;

/// What [`bell`] is built on; `tests/models` puts loom's in its place.
mod sync {
    pub use std::sync::{Condvar, Mutex, PoisonError};
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod copy_format_tests;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod settling_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
mod tests;

pub use batch::{APPENDS_MAX, BATCH_BYTES_MAX, ENVELOPE_BYTES_MAX, KEY_BYTES_MAX};
pub use chain::{Head, Link, Walk, head as chain_head, newest as chain_newest, walk as chain_walk};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use copy::{CopyFile, FOLDER as COPY_FOLDER, FORMAT as COPY_FORMAT, head as copy_head, is_copied};
#[doc(hidden)]
pub use copy_group::{Group as CopyGroup, Writer as CopyWriter};
pub use durable::settle;
#[doc(hidden)]
pub use engine::open_with;
pub use engine::{SledStore, closed, open};
pub use format::FORMAT;
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use frame::{
    HEADER_BYTES as FRAME_HEADER_BYTES, Header as FrameHeader, Kind as FrameKind, NO_BODY, Salt as FrameSalt,
    Seal as FrameSeal, dead_entries, settled_entries,
};
pub use memory::MemoryStore;
pub use offline::{Salvage, Salvaged, VerifyReport, create_at, salvage, verify};
pub use rebuild::{FoundRecords, salvage_records};
#[doc(hidden)]
pub use record::{Location, Operation, Operations, Position, operations};
#[doc(hidden)]
pub use scan::{Frames, Group, Placed, next_group};
pub use settings::{OpenError, Opened, Settings};
#[doc(hidden)]
pub use shared::Faults;
#[doc(hidden)]
pub use sled::Extent;
pub use snapshot::{Piece, Snapshots, Taker};

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use crate::mail::{BodyId, QueueId, Sealed};

/// A key; rooms own a prefix each (see [`prefix`]).
pub type Key = Vec<u8>;

/// One prefix for each kind of record, in one place so that two rooms never share one.
/// `0x00` is the engine's own.
pub mod prefix {
    /// Engine: body locations, checkpoint, counters.
    pub const ENGINE: u8 = 0x00;
    /// vips: `VipId` -> record.
    pub const VIP: u8 = b'V';
    /// accounts: `TenantId` -> tenant.
    pub const TENANT: u8 = b'T';
    /// accounts: `SmtpAccountId` -> SMTP account.
    pub const SMTP_ACCOUNT: u8 = b'A';
    /// accounts: login -> `SmtpAccountId`; tenant name -> `TenantId`.
    pub const NAME: u8 = b'N';
    /// accounts: networks that logged in, counters of limits.
    pub const USAGE: u8 = b'U';
    /// domains: tenant and domain -> sending domain with its keys.
    pub const DOMAIN: u8 = b'D';
    /// routing: routes people manage.
    pub const ROUTE: u8 = b'R';
    /// delivery: what operators suspended.
    pub const SUSPENSION: u8 = b'x';
    /// suppression: tenant and address -> entry.
    pub const SUPPRESSION: u8 = b'S';
    /// operations: tenant and id -> import or export.
    pub const OPERATION: u8 = b'O';
    /// queue: message records.
    pub const MESSAGE: u8 = b'm';
    /// queue: lane records.
    pub const LANE: u8 = b'l';
    /// queue: due index.
    pub const DUE: u8 = b'q';
    /// queue: notices owed.
    pub const NOTICE: u8 = b'n';
    /// queue: per-message history (addresses, subject), erasable.
    pub const HISTORY: u8 = b'h';
    /// queue: its clock and other single values. daemon: the calendar.
    pub const QUEUE_STATE: u8 = b'c';
    /// queue: acts on many messages that are under way or last.
    pub const SWEEP: u8 = b'w';
    /// keyring: a change of the master key under way.
    pub const KEYRING: u8 = b'M';
    /// delivery: limits operators set, and what was learnt about sites.
    pub const SHAPING: u8 = b'z';
    /// delivery: TLS policies of recipient domains.
    pub const TLS_POLICY: u8 = b't';
    /// delivery: what TLS came to with recipient domains and hosts.
    pub const TLS_SEEN: u8 = b'L';
    /// tlsrpt: what TLS came to with recipient domains, by day, and reports of it.
    pub const TLS_REPORT: u8 = b'r';
    /// breaker: counts, pauses, limits and waivers of SMTP accounts.
    pub const BREAKER: u8 = b'b';
    /// events: the log, appended.
    pub const EVENT: u8 = b'e';
    /// events: consumers' cursors.
    pub const CURSOR: u8 = b'k';
    /// records: the audit chains, one per tenant and one of the instance.
    pub const AUDIT: u8 = b'a';
    /// tenancy: tenants that are to be deleted.
    pub const TENANCY: u8 = b'E';
    /// notifications: tenant and id -> notification; who has read which.
    pub const NOTIFICATION: u8 = b'Y';
    /// people: `UserId` -> user.
    pub const USER: u8 = b'P';
    /// people: `KeyId` -> API key.
    pub const API_KEY: u8 = b'K';
    /// people: digest of a session's id -> session.
    pub const SESSION: u8 = b's';
    /// people: digest of a one-time link's token -> what it is for.
    pub const ONE_TIME: u8 = b'o';
    /// webhooks: endpoints, lanes, requests to be made again, attempts.
    pub const WEBHOOK: u8 = b'W';
    /// domains: tenant and domain -> the return-path of a sending domain.
    pub const RETURN_PATH: u8 = b'F';
    /// feedback: the key of tags, what came back, letters, what is owed onward.
    pub const FEEDBACK: u8 = b'f';
    /// statistics: counts of hours and days.
    pub const STATISTICS: u8 = b'G';
    /// web: what was answered to requests with an `Idempotency-Key`; intake: messages with an `X-Idempotency-Key`.
    pub const REPLAY: u8 = b'i';
}

/// What must hold for a batch to be applied; checked by the committer in arrival order, against
/// the state that includes earlier batches of the same group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent(Key),
    /// The key has exactly this value.
    Equals(Key, Vec<u8>),
}

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets the value.
    Set(Key, Vec<u8>),
    /// Sets the value of a key that has none and never had one, such as a key with an id that was drawn for
    /// this batch. The engine relies on it: if it is removed again soon, nothing older may be under it.
    Make(Key, Vec<u8>),
    /// Removes the value, if there is one.
    Remove(Key),
}

/// A body to make durable together with the batch that names it.
#[derive(Clone, Debug)]
pub struct NewBody {
    /// Its name.
    pub id: BodyId,
    /// What the queue needs to owe the mail again from the segments alone (salvage):
    /// opaque here, written and read by the queue.
    pub envelope: Vec<u8>,
    /// The final bytes.
    pub message: Sealed,
}

/// All or nothing, durable before `commit` returns.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Checked first; one that does not hold refuses this batch alone.
    pub conditions: Vec<Condition>,
    /// Applied in order.
    pub changes: Vec<Change>,
    /// Facts appended under a prefix: the engine makes the rest of the key, 10 bytes that grow
    /// with every commit and never repeat (commit number, then position in the batch).
    pub appends: Vec<(Key, Vec<u8>)>,
    /// Facts linked behind the last one of a chain: the chain's key, the fact. See [`Link`].
    pub chained: Vec<(Key, Vec<u8>)>,
    /// Bodies sealed with this batch.
    pub bodies: Vec<NewBody>,
    /// Bodies no longer needed; their space returns by and by.
    pub freed: Vec<BodyId>,
    /// Recipients settled for good: a small frame beside the bodies, so that salvage owes
    /// only what has none.
    pub settled: Vec<(QueueId, Vec<u16>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `Set`.
    pub fn set(&mut self, key: Key, value: Vec<u8>) -> &mut Self {
        self.changes.push(Change::Set(key, value));
        self
    }

    /// Adds `Make`.
    pub fn make(&mut self, key: Key, value: Vec<u8>) -> &mut Self {
        self.changes.push(Change::Make(key, value));
        self
    }

    /// Adds `Remove`.
    pub fn remove(&mut self, key: Key) -> &mut Self {
        self.changes.push(Change::Remove(key));
        self
    }

    /// Adds `Absent`.
    pub fn if_absent(&mut self, key: Key) -> &mut Self {
        self.conditions.push(Condition::Absent(key));
        self
    }

    /// Adds `Equals`.
    pub fn if_equals(&mut self, key: Key, value: Vec<u8>) -> &mut Self {
        self.conditions.push(Condition::Equals(key, value));
        self
    }

    /// Links a fact behind the last one of `chain`, in the order of commits.
    pub fn chain(&mut self, chain: Key, entry: Vec<u8>) -> &mut Self {
        self.chained.push((chain, entry));
        self
    }

    /// Adds an append.
    pub fn append(&mut self, key_prefix: Key, value: Vec<u8>) -> &mut Self {
        self.appends.push((key_prefix, value));
        self
    }
}

/// Why a batch was not committed. A variant per different action of the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold: read again and decide anew.
    #[error("the record changed meanwhile")]
    Conflict,
    /// No space, or below the floor: nothing was written, it clears by itself. 452 for a peer.
    #[error("storage is full or nearly so: {0}")]
    Full(String),
    /// A write failed and was rolled back: nothing is known to be wrong with what is on disk.
    /// 451 for a peer.
    #[error("storage refused a write: {0}")]
    Failed(String),
    /// A sync failed or the engine broke: no commit succeeds until it is reopened from disk.
    #[error("storage has stopped until it is reopened: {0}")]
    Stopped(String),
}

/// A read that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The bytes are there and wrong (checksum, format): set the record aside.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The device or engine failed.
    #[error("storage failed: {0}")]
    Failed(String),
}

/// How an engine feels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Commits are accepted.
    Accepting,
    /// Free space or inodes are below the floor: only batches without bodies are accepted.
    LowSpace(String),
    /// Stopped, see [`CommitError::Stopped`].
    Stopped(String),
}

/// Whether several processes may open the same records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This process holds them alone: claims may live in memory.
    Exclusive,
    /// Other nodes see them too: claims are stored leases.
    Shared,
}

/// Ordered durable records.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Up to `limit` pairs with `from <= key < to`, in order.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError>;

    /// Makes the batch durable. On `Err` nothing of it is or will become visible.
    async fn commit(&self, batch: Batch) -> Result<(), CommitError>;

    /// How it feels now.
    fn health(&self) -> Health;

    /// Since when the present group is being written; `None` while nothing is. A disk that never
    /// answers a sync is seen by this alone: reads go on, and nothing fails.
    fn writing_since(&self) -> Option<Instant> {
        None
    }

    /// Accepts nothing more, for good: a sync that failed elsewhere on the device leaves nobody sure of what is on
    /// it. A store that is on no disk goes on.
    fn stop(&self, _why: &str) {}

    /// Whether others may have it open.
    fn sharing(&self) -> Sharing;
}

/// Message bodies.
pub trait Blobs: Send + Sync {
    /// Opens a body; `None` if there is none of that name. Blocks on the disk.
    fn open(&self, id: BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError>;

    /// Bytes of live bodies and of the files that hold them.
    fn usage(&self) -> BlobsUsage;
}

/// Space taken by bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobsUsage {
    /// Bodies not freed yet: messages that are owed. Counts up for a moment after an open.
    pub live_bodies: u64,
    /// Bytes in bodies not freed yet.
    pub live_bytes: u64,
    /// Bytes of the segment files.
    pub file_bytes: u64,
}

/// One body, read once from the start.
pub trait BodyReader: Send {
    /// Octets of the whole message.
    fn length(&self) -> u64;

    /// The next slice, at most 256 KiB; `None` at the end, and only if the checksum matched.
    /// `Damaged` at the end means the bytes given out before must not be used:
    /// never say the final dot after that. Blocks on the disk.
    fn next_slice(&mut self) -> Result<Option<Bytes>, StoreError>;
}

/// The key after every key that begins with `prefix`: the end of a range over it.
pub fn after_prefix(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; 64]
}
