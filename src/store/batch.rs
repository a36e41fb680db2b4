//! What every engine does with a batch in the same way: its limits, and the keys of appended facts.
//!
//! An engine calls [`check_shape`] before anything else, so that a batch too large for one engine
//! is too large for all of them.

use super::chain::LINK_OCTETS;
use super::{Batch, Change, CommitError, Key, prefix};

/// Appended facts in one batch, at most: their position is two bytes of the key.
pub const APPENDS_MAX: usize = 1 << 16;
/// Bytes of keys, values and conditions in one batch, at most.
pub const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of one key, at most.
pub const KEY_BYTES_MAX: usize = 4096;
/// Bytes of one envelope beside a body, at most.
pub const ENVELOPE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Refuses a batch that no engine can take: a key that is empty, too long or the engine's own,
/// too many appends, too many bytes. A fault of the caller, so nothing else was looked at.
pub fn check_shape(batch: &Batch) -> Result<(), CommitError> {
    let keys =
        batch.changes.iter().map(changed_key).chain(batch.appends.iter().chain(&batch.chained).map(|(key, _)| key));
    for key in keys {
        if key.is_empty() || key[0] == prefix::ENGINE || key.len() > KEY_BYTES_MAX {
            return Err(CommitError::Failed("a key is empty, too long or the engine's own".into()));
        }
    }
    if batch.appends.len() > APPENDS_MAX {
        return Err(CommitError::Failed(format!("more than {APPENDS_MAX} appended facts in a batch")));
    }
    if batch.bodies.iter().any(|body| body.envelope.len() > ENVELOPE_BYTES_MAX) {
        return Err(CommitError::Failed(format!("an envelope of more than {ENVELOPE_BYTES_MAX} bytes")));
    }
    if record_bytes(batch) > BATCH_BYTES_MAX {
        return Err(CommitError::Failed(format!("a batch of more than {BATCH_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// The key of an appended fact: the caller's prefix, then 10 bytes that grow and never repeat.
pub fn appended_key(mut key: Key, commit: u64, position: u16) -> Key {
    key.extend_from_slice(&commit.to_be_bytes());
    key.extend_from_slice(&position.to_be_bytes());
    key
}

/// Bytes of keys and values of a batch; bodies not counted.
pub fn record_bytes(batch: &Batch) -> usize {
    let changes: usize = batch.changes.iter().map(|change| changed_key(change).len() + changed_value(change)).sum();
    let appends: usize = batch.appends.iter().map(|(key, value)| key.len() + 10 + value.len()).sum();
    let chained: usize = batch.chained.iter().map(|(chain, entry)| 2 * chain.len() + LINK_OCTETS + entry.len()).sum();
    let settled: usize = batch.settled.iter().map(|(_, numbers)| 24 + 2 * numbers.len()).sum();
    changes + appends + chained + settled + 32 * batch.freed.len()
}

fn changed_key(change: &Change) -> &Key {
    match change {
        Change::Set(key, _) | Change::Make(key, _) | Change::Remove(key) => key,
    }
}

fn changed_value(change: &Change) -> usize {
    match change {
        Change::Set(_, value) | Change::Make(_, value) => value.len(),
        Change::Remove(_) => 0,
    }
}
