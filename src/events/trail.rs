//! Everything that happened to one message: recent events from the store, past ones from the files.
//!
//! Easy to get wrong: an event may be in both for a moment, while it is being moved; its key tells.

use std::sync::Arc;

use super::Event;
use super::archive::{Archive, speaks_of};
use super::driver::read_after;
use crate::mail::QueueId;
use crate::store::{Store, StoreError, codec, prefix};

/// Events read at once.
const READ_AT_ONCE: usize = 2_000;

/// Reads the trails of messages.
#[derive(Clone)]
pub struct Trail {
    store: Arc<dyn Store>,
    archive: Option<Arc<Archive>>,
}

impl Trail {
    /// Reads the store only.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, archive: None }
    }

    /// Reads past events too.
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<Archive>) -> Self {
        self.archive = Some(archive);
        self
    }

    /// Every event of the message, in the order they were committed. Looks through all recent
    /// events: for people's questions, off the async workers.
    pub fn of_message(&self, id: QueueId) -> Result<Vec<Event>, StoreError> {
        let mut found = Vec::new();
        let mut at = vec![prefix::EVENT];
        loop {
            let page = read_after(&*self.store, &at, READ_AT_ONCE)?;
            let Some((last, _)) = page.last() else { break };
            at.clone_from(last);
            found.extend(page.into_iter().filter(|(_, bytes)| speaks_of(bytes, id)));
        }
        // The files after the store: what moves meanwhile is seen twice rather than missed.
        if let Some(archive) = &self.archive {
            found.extend(archive.of_message(id).map_err(|error| StoreError::Failed(error.to_string()))?);
        }
        found.sort_by(|one, two| one.0.cmp(&two.0));
        found.dedup_by(|one, two| one.0 == two.0);
        Ok(found.iter().filter_map(|(_, bytes)| codec::decode(bytes).ok()).collect())
    }
}
