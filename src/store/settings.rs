//! What the configuration file may set for the store, and what opening it gives or refuses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Blobs, SledStore, Store};

/// How the built-in engine works. The defaults suit a small server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where everything lies: `records/`, `segments/`, `lock`. Default `/var/lib/postern/store`.
    pub folder: PathBuf,
    /// Below this many free bytes no new mail is taken. Default 512 MiB.
    pub free_bytes_min: u64,
    /// Below this many free inodes no new mail is taken. Default 1,000.
    pub free_inodes_min: u64,
    /// Bytes of one segment file. Default 64 MiB.
    pub segment_bytes: u64,
    /// Free segment files kept for reuse, zero-filled or used before. Default 2.
    pub spare_segments: usize,
    /// A message of at least this many bytes gets a segment of its own. Default 4 MiB.
    pub own_segment_bytes_min: u64,
    /// The records are made durable at least this often. Default 5 s.
    pub checkpoint_every: Duration,
    /// ... and after this many bytes of journal. Default 64 MiB.
    pub checkpoint_bytes: u64,
    /// Bytes of changes since the last checkpoint held in memory, at most; commits wait for the next
    /// checkpoint then. Default 128 MiB.
    pub layer_bytes_max: usize,
    /// ... so long, and are refused after. Default 60 s.
    pub checkpoint_wait_max: Duration,
    /// Bytes of batches waiting for the committer, at most; more wait their turn. Default 64 MiB.
    pub waiting_bytes_max: usize,
    /// Bytes of records kept in memory once read. Default 64 MiB.
    pub cache_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("/var/lib/postern/store"),
            free_bytes_min: 512 * 1024 * 1024,
            free_inodes_min: 1000,
            segment_bytes: 64 * 1024 * 1024,
            spare_segments: 2,
            own_segment_bytes_min: 4 * 1024 * 1024,
            checkpoint_every: Duration::from_secs(5),
            checkpoint_bytes: 64 * 1024 * 1024,
            layer_bytes_max: 128 * 1024 * 1024,
            checkpoint_wait_max: Duration::from_secs(60),
            waiting_bytes_max: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
        }
    }
}

/// An open store.
#[derive(Clone)]
pub struct Opened {
    /// The records.
    pub records: Arc<dyn Store>,
    /// The bodies.
    pub bodies: Arc<dyn Blobs>,
    /// The engine behind both, for its list of damage.
    pub engine: Arc<SledStore>,
    /// Batches the journal held beyond the records, applied at this open.
    pub replayed_batches: u64,
}

/// Why a folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A file or folder could not be read or written.
    #[error("the store's files: {0}")]
    Files(#[source] std::io::Error),
    /// Written by a newer release; nothing was touched.
    #[error("{0}: it was written by a newer release; use that one, or restore a backup made by this one")]
    Newer(String),
    /// The records are damaged or cannot be opened; the segments may still hold the mail (`salvage`).
    #[error("the store's records: {0}; the mail may still be salvaged from the segments")]
    Records(String),
    /// The records are older than what the journal still covers.
    #[error(
        "the records end at commit {commit}, {missing} later commits are in neither journal nor records; the mail may still be salvaged from the segments"
    )]
    WentBack {
        /// The last commit there is.
        commit: u64,
        /// How many are known to be missing.
        missing: u64,
    },
}
