//! Fills a new store with records and bodies, many in one commit.
//!
//! Blocks: it runs on a blocking thread and waits there for the store's commits. Easy to get wrong:
//! commits are numbered on from the old store's, or the facts appended later would sort before those put in.

use std::path::Path;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::BackupError;
use crate::mail::{BodyId, BodyWriter, Sealed};
use crate::store::{self, Batch, NewBody, Opened, Settings};

/// Bytes of records in one commit.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bodies in one commit; each may hold a file or up to 256 KiB of memory.
const BATCH_BODIES: usize = 32;
/// Beyond the commits of the old store at the snapshot's begin: more than it can have made until its end.
const COMMITS_BETWEEN: u64 = 1 << 32;
/// A disk that is nearly full is the operator's to judge when a copy is restored.
const FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// A store being filled.
pub(super) struct Filling {
    /// The store.
    pub(super) opened: Opened,
    handle: Handle,
    folder: std::path::PathBuf,
    batch: Batch,
    bytes: usize,
}

impl Filling {
    /// A new store in `folder`, on from `commit`.
    pub(super) fn begin(folder: &Path, commit: u64, handle: Handle) -> Result<Self, BackupError> {
        let settings = Settings { folder: folder.to_owned(), free_bytes_min: FREE_BYTES_MIN, ..Settings::default() };
        store::create_at(&settings, commit.saturating_add(COMMITS_BETWEEN))?;
        let opened = store::open(settings)?;
        Ok(Self { opened, handle, folder: folder.to_owned(), batch: Batch::new(), bytes: 0 })
    }

    /// Where messages on their way in may be spilled.
    pub(super) fn writer(&self) -> BodyWriter {
        BodyWriter::new(&self.folder)
    }

    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.batch.set(key.to_vec(), value.to_vec());
        self.grow(key.len().saturating_add(value.len()))
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), BackupError> {
        self.batch.remove(key.to_vec());
        self.grow(key.len())
    }

    pub(super) fn body(&mut self, id: BodyId, envelope: Vec<u8>, message: BodyWriter) -> Result<(), BackupError> {
        let bytes = envelope.len();
        let message = Sealed { head: Bytes::new(), body: message.finish()? };
        self.batch.bodies.push(NewBody { id, envelope, message });
        self.grow(bytes)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), BackupError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= BATCH_BYTES || self.batch.bodies.len() >= BATCH_BODIES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), BackupError> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        Ok(self.handle.block_on(self.opened.records.commit(batch))?)
    }

    /// Commits what is left; the store, still open.
    pub(super) fn finish(mut self) -> Result<Opened, BackupError> {
        self.commit()?;
        Ok(self.opened)
    }
}
