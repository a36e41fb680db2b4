//! Whose turn it is among acts on many messages: which may be worked on beside each other, and who changes the
//! next page.
//!
//! Of one tenant one page is worked on at a time, of all tenants [`PAGES_AT_ONCE`], and who waits is served in
//! order: so a long act of one tenant costs another's a page's time, and not its own length. Easy to get wrong: of
//! two acts that undo each other, the later one must not overtake the earlier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Sweep, SweepState, Sweeps};
use crate::mail::TenantId;
use crate::queue::BulkAct;

/// Pages (of up to 1,024 messages) that are changed at once, of all tenants.
const PAGES_AT_ONCE: usize = 4;

/// Turns at changing a page.
#[derive(Debug)]
pub(in crate::queue) struct Pages {
    all: Arc<Semaphore>,
    /// Those of each tenant, and of the instance, that have one or wait for one.
    own: Mutex<BTreeMap<Option<TenantId>, Arc<Semaphore>>>,
}

/// The right to change a page, until it is dropped.
pub(super) struct Page {
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(PAGES_AT_ONCE)), own: Mutex::default() }
    }
}

impl Pages {
    /// Waits for a turn of that tenant; `None` is the instance.
    pub(super) async fn turn(&self, whose: Option<TenantId>) -> Page {
        let own = {
            let mut lines = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            lines.retain(|_, line| Arc::strong_count(line) > 1);
            Arc::clone(lines.entry(whose).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // Never closed. The permit holds the line, so that it stays in the map.
        let own = own.acquire_owned().await.ok();
        let all = Arc::clone(&self.all).acquire_owned().await.ok();
        Page { _all: all, _own: own }
    }
}

/// When acts look at what came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// Each when it is time for it.
    InTime,
    /// All of them, or none: for tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests"))]
    Always(bool),
}

impl Sweeps {
    /// Acts that may be worked on now beside those that are `busy`, in the order they were asked for, each with
    /// whether it looks at what came in. None that is in `begun` is named.
    pub(super) fn up_next(
        &mut self,
        (busy, begun): (&BTreeSet<u64>, &BTreeSet<u64>),
        looks: Looks,
    ) -> Vec<(Sweep, bool)> {
        let (now, mut found, mut earlier) = (Instant::now(), Vec::new(), Vec::<&Sweep>::new());
        for sweep in self.all.values().filter(|sweep| !sweep.state.is_over()) {
            let Some(own) = self.watched.get_mut(&sweep.number) else { continue };
            let looks = match looks {
                Looks::InTime => own.look_at.is_none_or(|at| at <= now),
                Looks::Always(looks) => looks,
            };
            let is_busy = busy.contains(&sweep.number);
            if !is_busy {
                own.rests &= !looks;
            }
            let is_next = !own.rests
                && !begun.contains(&sweep.number)
                && !is_busy
                && !earlier.iter().any(|before| sweep.waits_for(before));
            if sweep.state == SweepState::Running && (is_busy || !own.rests) {
                earlier.push(sweep);
            }
            if is_next {
                found.push((sweep.clone(), looks));
            }
        }
        found
    }
}

impl Sweep {
    /// Whether it waits until an earlier act, which walks through the queue, is through.
    fn waits_for(&self, earlier: &Self) -> bool {
        match (self.filter.tenant, earlier.filter.tenant) {
            // Each tenant's are carried out as it asked for them.
            (own, other) if own == other => self.state == SweepState::Running,
            (Some(_), Some(_)) => false,
            _ => self.state == SweepState::Running && is_undone(self.act, earlier.act),
        }
    }
}

/// Whether it matters which of two acts comes first, if they mean the same mail.
fn is_undone(one: BulkAct, other: BulkAct) -> bool {
    use BulkAct::{Hold, Release, Retry};
    matches!((one, other), (Hold | Retry, Release) | (Release, Hold | Retry))
}
