//! Counts, after an open, the live bodies of the segments that were there before it.
//!
//! The committer counts a few between groups, so serving never waits for it; the settler holds it while a
//! group is applied, so no count races with a free.
//! Easy to get wrong: a body freed before the count came to it must not be subtracted.

use std::sync::atomic::Ordering;

use super::Key;
use super::record::{Location, location_key, location_key_id, locations_range};
use super::shared::Shared;
use crate::mail::BodyId;

/// Bodies counted between two groups.
const STEP: usize = 512;

/// How far the count has come.
pub struct Census {
    /// The next key to look at; `None` when done.
    next: Option<Key>,
    /// Segments from this number on were begun after the open and count themselves.
    first_new: u64,
}

impl Census {
    /// A count over segments below `first_new`.
    pub fn new(first_new: u64) -> Self {
        Self { next: Some(locations_range().0), first_new }
    }

    /// Whether every body is counted.
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// Counts the next few.
    pub fn count_some(&mut self, shared: &Shared) {
        let Some(from) = self.next.take() else { return };
        let Ok(pairs) = shared.records.range(&from, &locations_range().1, STEP) else {
            return; // The records broke: everything has stopped, and nothing may be given back.
        };
        let full = pairs.len() == STEP;
        for (key, value) in &pairs {
            let Some(location) = Location::from_bytes(value) else {
                let name = location_key_id(key).map(|id| format!("{}/{}", id.queue_id, id.number));
                shared.damaged(format!("the location of body {} is unreadable", name.unwrap_or_default()));
                continue;
            };
            if location.segment < self.first_new {
                match shared.segments.get(location.segment) {
                    Some(segment) => segment.gained(location.frame_bytes()),
                    None => shared.damaged(format!("segment {} with live bodies is missing", location.segment)),
                }
            }
        }
        match pairs.last() {
            Some((last, _)) if full => {
                let mut next = last.clone();
                next.push(0);
                self.next = Some(next);
            }
            _ => {
                shared.is_counted.store(true, Ordering::Release);
                shared.house_bell.ring();
            }
        }
    }

    /// A body is gone from where it lay.
    pub fn lost(&self, shared: &Shared, id: BodyId, location: &Location) {
        let uncounted = self.next.as_ref().is_some_and(|next| location_key(id)[..] >= next[..]);
        if location.segment < self.first_new && uncounted {
            return;
        }
        if let Some(segment) = shared.segments.get(location.segment) {
            segment.lost(location.frame_bytes());
        }
    }
}
