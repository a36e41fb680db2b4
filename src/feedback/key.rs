//! The instance's key of tags: made once, sealed under the master key, sealed anew when that changes.
//!
//! Easy to get wrong: with another key every return-path that is out there is refused, so one that cannot be
//! opened is never replaced in the store.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::tag::KEY_OCTETS;
use crate::ext;
use crate::records::AdminError;
use crate::seal::{MasterKey, SealError};
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};

/// What it is sealed as.
const PURPOSE: &str = "key of return-path tags";

/// As stored.
#[derive(Serialize, Deserialize)]
pub struct Record {
    sealed: Vec<u8>,
}

/// Why the key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// It is sealed under another master key.
    #[error("the key of return-path tags cannot be opened: {0}")]
    Seal(#[from] SealError),
}

fn key() -> Key {
    vec![prefix::FEEDBACK, b'k']
}

/// The key; made if there is none. One that cannot be opened stays as it is and stops nobody's mail: a key
/// for this process alone stands in for it.
pub(super) async fn open(store: &dyn Store, master: &MasterKey) -> Result<Zeroizing<[u8; KEY_OCTETS]>, KeyError> {
    if let Some(bytes) = store.get(&key())? {
        return Ok(opened(master, &bytes).unwrap_or_else(|error| {
            tracing::error!("{error}; return-paths of before are refused until the right key is back");
            Zeroizing::new(ext::random_bytes::<KEY_OCTETS>())
        }));
    }
    let octets = Zeroizing::new(ext::random_bytes::<KEY_OCTETS>());
    let mut batch = Batch::new();
    batch.if_absent(key()).set(key(), codec::encode(&seal(master, octets.as_slice())));
    store.commit(batch).await?;
    Ok(octets)
}

fn opened(master: &MasterKey, bytes: &[u8]) -> Result<Zeroizing<[u8; KEY_OCTETS]>, KeyError> {
    let record: Record = codec::decode(bytes)?;
    let plain = master.open(PURPOSE, &record.sealed)?;
    let octets = <[u8; KEY_OCTETS]>::try_from(plain.as_slice()).map_err(|_| SealError::Format)?;
    Ok(Zeroizing::new(octets))
}

fn seal(key: &MasterKey, plain: &[u8]) -> Record {
    Record { sealed: key.seal(PURPOSE, plain) }
}

/// Seals the key under `new` unless it opens it already; `both` opens what either sealed. How many were sealed
/// anew, and which open under neither.
pub async fn reseal(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), AdminError> {
    let Some(bytes) = store.get(&key())? else { return Ok((0, Vec::new())) };
    let record: Record = codec::decode(&bytes)?;
    if new.open(PURPOSE, &record.sealed).is_ok() {
        return Ok((0, Vec::new()));
    }
    let Ok(plain) = both.open(PURPOSE, &record.sealed) else { return Ok((0, vec![PURPOSE.to_owned()])) };
    let mut batch = Batch::new();
    batch.if_equals(key(), bytes).set(key(), codec::encode(&seal(new, &plain)));
    store.commit(batch).await?;
    Ok((1, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn the_key_stays_the_same_also_when_the_master_key_changes() {
        let store = MemoryStore::new();
        let (old, new) = (MasterKey::from_bytes([1; 32]), MasterKey::from_bytes([2; 32]));
        let first = open(&store, &old).await.unwrap();
        assert_eq!(open(&store, &old).await.unwrap(), first);
        assert_ne!(open(&store, &new).await.unwrap(), first, "another one stands in");
        assert_eq!(open(&store, &old).await.unwrap(), first, "never replaced");
        let both = new.clone().with_other(&old);
        assert_eq!(reseal(&store, &new, &both).await.unwrap(), (1, Vec::new()));
        assert_eq!(reseal(&store, &new, &both).await.unwrap(), (0, Vec::new()));
        assert_eq!(open(&store, &new).await.unwrap(), first);
    }
}
