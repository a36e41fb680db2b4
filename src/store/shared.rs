//! What the committer, the settler, the flusher, housekeeping and the readers of one open folder share.
//!
//! It holds state and no threads. Easy to get wrong: `stopped` is set once and never cleared; only
//! a new opening of the folder reads from disk what really arrived there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::bell::Bell;
use super::copy::RecordsCopy;
use super::durable;
use super::record::{Location, location_key};
use super::sled::Records;
use super::space::Space;
use super::table::Segments;
use super::{CommitError, Settings, StoreError};
use crate::mail::BodyId;

/// Problems remembered for [`super::Opened::damage`]; later ones are only logged.
const DAMAGE_MAX: usize = 1000;

/// What a group may hang in, if the disk does.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// It is checked and written.
    Writing,
    /// It is synced and applied.
    Settling,
}

/// The state of one open folder.
pub struct Shared {
    /// The ordered map.
    pub records: Records,
    /// Their second copy.
    pub copy: RecordsCopy,
    /// The segments.
    pub segments: Segments,
    /// As given.
    pub settings: Settings,
    /// Room on the disk.
    pub space: Space,
    /// For tests.
    pub faults: std::sync::Arc<Faults>,
    /// The last commit applied to the records.
    pub applied: AtomicU64,
    /// The last commit the records hold durably.
    pub checkpointed: AtomicU64,
    /// Bytes of journal since the last checkpoint.
    pub unflushed_bytes: AtomicU64,
    /// Whether the last checkpoint was put off for want of room.
    pub checkpoint_waits: AtomicBool,
    /// Whether every body that was here at open is counted.
    pub is_counted: AtomicBool,
    /// Since when a group is being written.
    pub writing_since: Mutex<Option<Instant>>,
    /// Since when one is being settled.
    pub settling_since: Mutex<Option<Instant>>,
    /// Held during a checkpoint, and during a round of housekeeping.
    pub at_work: [Mutex<()>; 2],
    /// Wakes the flusher.
    pub flush_bell: Bell,
    /// Wakes housekeeping.
    pub house_bell: Bell,
    /// Snapshots under way: no segment is given back and no body moved.
    pub pins: AtomicU32,
    /// What was found damaged.
    pub damage: Mutex<Vec<String>>,
    /// Why no commit succeeds any more.
    pub stopped: OnceLock<String>,
}

impl Shared {
    /// Stops everything for good; the first reason stays.
    pub fn stop(&self, why: String) -> CommitError {
        tracing::error!(why, "storage has stopped accepting");
        let _ = self.stopped.set(why.clone());
        CommitError::Stopped(why)
    }

    /// What an error of the files means for a commit: a full disk heals by itself, anything else may not,
    /// and a sync that failed stops everything.
    pub fn refuse(&self, error: &io::Error) -> CommitError {
        match error {
            error if durable::is_failed_sync(error) => self.stop(error.to_string()),
            error if durable::is_full(error) => CommitError::Full(error.to_string()),
            error => CommitError::Failed(error.to_string()),
        }
    }

    /// Why it stopped, if it did.
    pub fn stop_reason(&self) -> Option<String> {
        self.stopped.get().map(String::as_str).or_else(|| self.records.broken()).map(str::to_owned)
    }

    /// Whether a checkpoint waits for room on the disk: put off before it began, or met in its midst.
    pub fn lacks_room(&self) -> bool {
        self.checkpoint_waits.load(Ordering::Acquire) || self.records.waits_for_room()
    }

    /// Does `work`, and lets it be known meanwhile since when.
    pub fn while_at<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let since = match stage {
            Stage::Writing => &self.writing_since,
            Stage::Settling => &self.settling_since,
        };
        let note = |began| *since.lock().unwrap_or_else(PoisonError::into_inner) = began;
        note(Some(Instant::now()));
        let done = work();
        note(None);
        done
    }

    /// Since when somebody waits for the disk with a group, if so.
    pub fn busy_since(&self) -> Option<Instant> {
        let both = [&self.writing_since, &self.settling_since];
        both.iter().filter_map(|since| *since.lock().unwrap_or_else(PoisonError::into_inner)).min()
    }

    /// Where a body lies.
    pub fn location(&self, id: BodyId) -> Result<Option<Location>, StoreError> {
        match self.records.get(&location_key(id))? {
            None => Ok(None),
            Some(bytes) => Location::from_bytes(&bytes)
                .map(Some)
                .ok_or_else(|| StoreError::Damaged(format!("the location of body {}/{}", id.queue_id, id.number))),
        }
    }

    /// Reports damage: once in the log, and in the list.
    pub fn damaged(&self, what: String) {
        tracing::error!(what, "damage in the store");
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        if damage.len() < DAMAGE_MAX {
            damage.push(what);
        }
    }
}

/// Faults a test can ask for. All off by default; nothing in the daemon sets them.
#[derive(Debug, Default)]
pub struct Faults {
    /// This many group writes fail halfway.
    pub writes_fail: AtomicU32,
    /// This many seals of groups fail when they are written.
    pub seals_fail: AtomicU32,
    /// Every group is settled beside the committer, as if more waited.
    pub settles_beside: AtomicBool,
    /// A group that is synced waits here while somebody holds it.
    pub sync_gate: Mutex<()>,
    /// Nothing is written, as if the disk were full; or what fails halfway, fails so.
    pub disk_is_full: AtomicBool,
    /// The thread that settles groups panics at its next one.
    pub settler_panics: AtomicBool,
    /// The committer panics at its next group.
    pub committer_panics: AtomicBool,
    /// Checkpoints are left out, so that everything is replayed at the next open of a copy.
    pub checkpoints_skipped: AtomicBool,
    /// No copy of the records is made, to see what it costs.
    pub copy_left_out: AtomicBool,
}

impl Faults {
    pub(super) fn take(counter: &AtomicU32) -> bool {
        counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
    }
}
