//! Stored leases: who may work on something, and until when, on engines that several nodes share.
//!
//! Recipe: `take`, work, `renew` well before `expires`, `release`. A lease is a record under a key
//! of the caller's choosing; every step is one conditional batch. Easy to get wrong: `now` comes from
//! the caller's clock, so spans must be long beside the difference of the nodes' clocks, and work
//! that ends after `expires` must check by settling conditionally (see [`Lease::condition`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Batch, CommitError, Condition, Key, Store, StoreError, codec};
use crate::ext::{self, Timestamp};

/// Permission to work on something, held until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it, the node's name.
    pub holder: String,
    /// Tells two leases of one holder apart.
    pub token: u64,
    /// From this moment on anybody may take it.
    pub expires: Timestamp,
}

impl Lease {
    /// A condition that holds as long as this very lease is stored: add it to the batch that
    /// settles the work, so that a lease lost meanwhile settles nothing.
    pub fn condition(&self, key: Key) -> Condition {
        Condition::Equals(key, codec::encode(self))
    }
}

/// Why a lease could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The record could not be read.
    #[error(transparent)]
    Read(#[from] StoreError),
    /// The record could not be written; a conflict is not an error here.
    #[error(transparent)]
    Write(CommitError),
}

/// Takes the lease under `key` if nobody holds it or its time has passed.
/// `None` if another holds it, or was quicker.
pub async fn take(
    store: &dyn Store,
    key: &[u8],
    holder: &str,
    span: Duration,
    now: Timestamp,
) -> Result<Option<Lease>, LeaseError> {
    let condition = match store.get(key)? {
        None => Condition::Absent(key.to_vec()),
        Some(stored) => {
            if codec::decode::<Lease>(&stored)?.expires > now {
                return Ok(None);
            }
            Condition::Equals(key.to_vec(), stored)
        }
    };
    let token = u64::from_be_bytes(ext::random_bytes());
    let lease = Lease { holder: holder.to_owned(), token, expires: now.plus(span) };
    write(store, key, condition, Some(lease)).await
}

/// Extends a lease. `None` if it is no longer ours: stop the work.
pub async fn renew(
    store: &dyn Store,
    key: &[u8],
    lease: &Lease,
    span: Duration,
    now: Timestamp,
) -> Result<Option<Lease>, LeaseError> {
    let renewed = Lease { expires: now.plus(span), ..lease.clone() };
    write(store, key, lease.condition(key.to_vec()), Some(renewed)).await
}

/// Gives a lease back. Nothing happens if it is no longer ours.
pub async fn release(store: &dyn Store, key: &[u8], lease: &Lease) -> Result<(), LeaseError> {
    write(store, key, lease.condition(key.to_vec()), None).await.map(drop)
}

async fn write(
    store: &dyn Store,
    key: &[u8],
    condition: Condition,
    lease: Option<Lease>,
) -> Result<Option<Lease>, LeaseError> {
    let mut batch = Batch::new();
    batch.conditions.push(condition);
    match &lease {
        Some(lease) => batch.set(key.to_vec(), codec::encode(lease)),
        None => batch.remove(key.to_vec()),
    };
    match store.commit(batch).await {
        Ok(()) => Ok(lease),
        Err(CommitError::Conflict) => Ok(None),
        Err(error) => Err(LeaseError::Write(error)),
    }
}
