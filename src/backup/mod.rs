//! Copies of the instance: taken while it serves, sealed under a key of their own, restored into a new folder.
//!
//! Recipe: [`Backup::take`] gives the file chunk by chunk; [`verify`] reads one through; [`restore`] makes a
//! data folder and a configuration folder from one. What a file holds is in [`format`](self); how it is
//! sealed in `seal`; why it is of one moment in `store`'s snapshot.
//! Easy to get wrong: whoever restores must not send again what was sent since: mail comes back held, or not at all.

mod entry;
mod migrate;
mod put;
mod read;
mod restore;
mod take;

use std::io;

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use entry::{Counts, Entry, Manifest, Place, fill, parse, put};
pub use migrate::{Migrated, migrate};
pub use read::{Contents, verify};
pub use restore::{Mail, Restored, restore};
pub use take::{Backup, Places};

use crate::seal::{SealError, StreamError};
use crate::store::{CommitError, OpenError, StoreError};

/// Why a copy could not be made, read or restored. A variant per different action of the operator.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The actor may not.
    #[error(transparent)]
    Forbidden(#[from] crate::access::Forbidden),
    /// There is no backup key, or it cannot be used.
    #[error("{0}")]
    Key(String),
    /// One is being taken.
    #[error("a backup is being taken already; wait until it is done")]
    Busy,
    /// The file is sealed under another key.
    #[error("{0}")]
    OtherKey(String),
    /// The file was made by a newer release.
    #[error("{0}")]
    Newer(String),
    /// The file is not whole, or not a backup.
    #[error("{0}")]
    Damaged(String),
    /// A disk or folder did not do what it should.
    #[error("{0}")]
    Files(String),
}

impl BackupError {
    /// What an error while reading a sealed file means.
    fn reading(error: &io::Error) -> Self {
        let text = error.to_string();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<StreamError>()) {
            Some(StreamError::WrongKey { .. }) => Self::OtherKey(text),
            Some(StreamError::Newer(_)) => Self::Newer(text),
            Some(_) => Self::Damaged(text),
            None if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                Self::Damaged(format!("damaged: {text}"))
            }
            None => Self::Files(text),
        }
    }
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        Self::Files(error.to_string())
    }
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Newer(_) => Self::Newer(error.to_string()),
            error => Self::Files(error.to_string()),
        }
    }
}

impl From<CommitError> for BackupError {
    fn from(error: CommitError) -> Self {
        Self::Files(error.to_string())
    }
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Files(error.to_string())
    }
}

impl From<SealError> for BackupError {
    fn from(error: SealError) -> Self {
        Self::Key(error.to_string())
    }
}
