//! Stored records: one version byte, then the record in postcard's form.
//!
//! A record's struct never changes in place: a new shape gets a new version byte, and
//! `decode` of that type keeps reading the old one. A newer version than ours is refused, never guessed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// The only version there is yet.
const VERSION: u8 = 1;

/// Writes a record.
///
/// # Panics
/// Never for the record types of this crate: they hold nothing postcard cannot write.
#[expect(clippy::expect_used, reason = "our record types hold maps, strings and numbers only")]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_extend(record, vec![VERSION]).expect("records are made of what postcard can write")
}

/// Reads a record; trailing bytes are damage.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    let (version, rest) = bytes.split_first().ok_or_else(|| StoreError::Damaged("empty record".into()))?;
    if *version != VERSION {
        return Err(StoreError::Damaged(format!("record version {version} is not known to this release")));
    }
    let (record, left) = postcard::take_from_bytes(rest).map_err(|error| StoreError::Damaged(error.to_string()))?;
    if left.is_empty() { Ok(record) } else { Err(StoreError::Damaged("trailing bytes in a record".into())) }
}
