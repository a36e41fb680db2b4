//! Settles a group that is written: syncs it, tells the records, answers its callers.
//!
//! The committer does it itself while nothing waits for it. Otherwise a thread beside it does, and the
//! committer checks the next group and writes its frames meanwhile, all but the seal: see [`Committer`].
//! Groups are settled in the order they were written, one at a time. Easy to get wrong: only after the
//! sync the records change, and only after that callers hear `Ok`; a sync that fails stops it all.
//!
//! [`Committer`]: super::committer::Committer

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CommitError;
use super::census::Census;
use super::checker::Verdict;
use super::committer::{Work, answer};
use super::durable;
use super::layout::group_synced;
use super::record::{self, Before, Location, Position};
use super::segment::Segment;
use super::shared::{Shared, Stage};
use super::sled::panic_text;
use crate::mail::BodyId;

/// Counts that change once the group is durable.
pub(super) enum Tally {
    Gained(Location),
    Lost(BodyId, Location),
}

/// A group on its way from the committer to its callers.
pub(super) struct Written {
    /// The work.
    pub(super) group: Vec<Work>,
    /// What was decided about each piece.
    pub(super) verdicts: Vec<Verdict>,
    /// What lies in the journal, nothing if all was refused; or why it does not.
    pub(super) journaled: Result<Option<Journaled>, CommitError>,
}

/// What a group is in the journal: whole, and not synced.
pub(super) struct Journaled {
    pub(super) segment: Arc<Segment>,
    pub(super) start: u64,
    pub(super) position: Position,
    pub(super) payloads: Vec<Vec<u8>>,
    /// What stood under the key of each operation of the payloads.
    pub(super) before: Vec<Before>,
    pub(super) tally: Vec<Tally>,
}

/// Settles groups, on whichever thread.
pub(super) struct Settler {
    shared: Arc<Shared>,
    census: Mutex<Census>,
}

impl Settler {
    /// One for an open folder.
    pub(super) fn new(shared: Arc<Shared>, census: Census) -> Self {
        Self { shared, census: Mutex::new(census) }
    }

    /// The settling thread: `settled` hears of each group when its callers have.
    pub(super) fn run(&self, written: &Receiver<Written>, settled: &Sender<()>) {
        for group in written {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.settle(group))) {
                self.shared.stop(format!("settling a group panicked: {}", panic_text(&*panic)));
            }
            if settled.send(()).is_err() {
                return;
            }
        }
    }

    /// Settles one group.
    pub(super) fn settle(&self, written: Written) {
        let Written { group, verdicts, journaled } = written;
        let outcome = match journaled {
            Ok(Some(journaled)) => self.shared.while_at(Stage::Settling, || self.make_durable(group.len(), &journaled)),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        for (work, verdict) in group.into_iter().zip(verdicts) {
            match (verdict, &outcome) {
                (Verdict::Refused(error), _) => answer(work, Err(error)),
                (_, outcome) => answer(work, outcome.clone()),
            }
        }
    }

    fn make_durable(&self, batches: usize, journaled: &Journaled) -> Result<(), CommitError> {
        let (segment, position) = (&journaled.segment, journaled.position);
        group_synced(batches, || self.sync(segment))?;
        segment.end.store(position.offset, Ordering::Release);
        segment.last_commit.store(position.commit, Ordering::Release);
        self.apply(journaled)?;
        let bytes = position.offset - journaled.start;
        let unflushed = self.shared.unflushed_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if unflushed >= self.shared.settings.checkpoint_bytes {
            self.shared.flush_bell.ring();
        }
        Ok(())
    }

    fn sync(&self, segment: &Segment) -> Result<(), CommitError> {
        let faults = &self.shared.faults;
        drop(faults.sync_gate.lock());
        assert!(!faults.settler_panics.swap(false, Ordering::AcqRel), "a test asked for this panic");
        durable::sync_data(&segment.file).map_err(|error| self.shared.refuse(&error))?;
        // One that failed meanwhile, of another file or of the group before, may have cost this one what the
        // device held of it.
        self.shared.stop_reason().map_or(Ok(()), |why| Err(CommitError::Stopped(why)))
    }

    fn apply(&self, journaled: &Journaled) -> Result<(), CommitError> {
        let lists = journaled.payloads.iter().map(|payload| record::operations(payload)).collect::<Option<Vec<_>>>();
        let lists = lists.ok_or_else(|| self.shared.stop("a batch of our own cannot be read back".into()))?;
        let operations = lists.into_iter().flat_map(|(_, operations)| operations).zip(journaled.before.iter().copied());
        // Counts go up before a body can be found and down after it cannot, so that no segment
        // with a body in it ever looks empty.
        for change in &journaled.tally {
            if let Tally::Gained(location) = change
                && let Some(segment) = self.shared.segments.get(location.segment)
            {
                segment.gained(location.frame_bytes());
            }
        }
        // What is counted and what goes meanwhile must not be counted twice, or never.
        let census = self.census();
        let applied = self.shared.records.apply(operations, journaled.position);
        applied.map_err(|error| self.shared.stop(format!("the records refused a synced batch: {error}")))?;
        for change in &journaled.tally {
            if let Tally::Lost(id, location) = change {
                census.lost(&self.shared, *id, location);
            }
        }
        self.shared.applied.store(journaled.position.commit, Ordering::Release);
        Ok(())
    }

    /// Whether every body that was here at open is counted.
    pub(super) fn has_counted(&self) -> bool {
        self.census().is_done()
    }

    /// Counts a few of them.
    pub(super) fn count_some(&self) {
        let mut census = self.census();
        if !census.is_done() {
            census.count_some(&self.shared);
        }
    }

    fn census(&self) -> MutexGuard<'_, Census> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
