//! Stored records: one version byte, then the record in postcard's form.
//!
//! A record's struct never changes in place: a new shape gets a new version byte, and
//! `decode` of that type keeps reading the old one. A newer version than ours is refused, never guessed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// The version of records whose shape never changed.
const VERSION: u8 = 1;
/// The version of records whose shape changed once.
const SECOND: u8 = 2;
/// The version of records whose shape changed twice.
const THIRD: u8 = 3;
/// The version of records whose shape changed three times.
const FOURTH: u8 = 4;

/// Writes a record.
///
/// # Panics
/// Never for the record types of this crate: they hold nothing postcard cannot write.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    write(VERSION, record)
}

/// Writes a record of a type whose shape changed once; see [`decode_second`].
pub fn encode_second<T: Serialize>(record: &T) -> Vec<u8> {
    write(SECOND, record)
}

/// Writes a record of a type whose shape changed twice; see [`decode_third`].
pub fn encode_third<T: Serialize>(record: &T) -> Vec<u8> {
    write(THIRD, record)
}

/// Writes a record of a type whose shape changed three times; see [`decode_fourth`].
pub fn encode_fourth<T: Serialize>(record: &T) -> Vec<u8> {
    write(FOURTH, record)
}

#[expect(clippy::expect_used, reason = "our record types hold maps, strings and numbers only")]
fn write<T: Serialize>(version: u8, record: &T) -> Vec<u8> {
    postcard::to_extend(record, vec![version]).expect("records are made of what postcard can write")
}

/// Reads a record; trailing bytes are damage.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    match split(bytes)? {
        (VERSION, rest) => read(rest),
        (version, _) => Err(unknown(version)),
    }
}

/// Reads a record of a type whose shape changed once, in either shape.
pub fn decode_second<Old: DeserializeOwned, T: DeserializeOwned + From<Old>>(bytes: &[u8]) -> Result<T, StoreError> {
    match split(bytes)? {
        (VERSION, rest) => read::<Old>(rest).map(T::from),
        (SECOND, rest) => read(rest),
        (version, _) => Err(unknown(version)),
    }
}

/// Reads a record of a type whose shape changed twice, in any of its shapes.
pub fn decode_third<First, Second, T>(bytes: &[u8]) -> Result<T, StoreError>
where
    First: DeserializeOwned,
    Second: DeserializeOwned,
    T: DeserializeOwned + From<First> + From<Second>,
{
    match split(bytes)? {
        (VERSION, rest) => read::<First>(rest).map(T::from),
        (SECOND, rest) => read::<Second>(rest).map(T::from),
        (THIRD, rest) => read(rest),
        (version, _) => Err(unknown(version)),
    }
}

/// Reads a record of a type whose shape changed three times, in any of its shapes.
pub fn decode_fourth<First, Second, Third, T>(bytes: &[u8]) -> Result<T, StoreError>
where
    First: DeserializeOwned,
    Second: DeserializeOwned,
    Third: DeserializeOwned,
    T: DeserializeOwned + From<First> + From<Second> + From<Third>,
{
    match split(bytes)? {
        (VERSION, rest) => read::<First>(rest).map(T::from),
        (SECOND, rest) => read::<Second>(rest).map(T::from),
        (THIRD, rest) => read::<Third>(rest).map(T::from),
        (FOURTH, rest) => read(rest),
        (version, _) => Err(unknown(version)),
    }
}

fn split(bytes: &[u8]) -> Result<(u8, &[u8]), StoreError> {
    let (version, rest) = bytes.split_first().ok_or_else(|| StoreError::Damaged("empty record".into()))?;
    Ok((*version, rest))
}

fn read<T: DeserializeOwned>(rest: &[u8]) -> Result<T, StoreError> {
    let (record, left) = postcard::take_from_bytes(rest).map_err(|error| StoreError::Damaged(error.to_string()))?;
    if left.is_empty() { Ok(record) } else { Err(StoreError::Damaged("trailing bytes in a record".into())) }
}

fn unknown(version: u8) -> StoreError {
    StoreError::Damaged(format!("record version {version} is not known to this release"))
}
