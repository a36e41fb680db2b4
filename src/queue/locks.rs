//! One lock per message, so that settlements, verbs and notices of one message follow each other.
//!
//! Exists only while somebody holds or waits for it. Easy to get wrong: it serialises this process
//! only; on an engine that others share, the batch's conditions decide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::mail::QueueId;

type Table = Mutex<HashMap<QueueId, Arc<tokio::sync::Mutex<()>>>>;

/// The locks that are in use.
#[derive(Debug, Default)]
pub(super) struct MessageLocks(Table);

/// Held until dropped.
pub(super) struct MessageLock<'a> {
    table: &'a Table,
    id: QueueId,
    held: Option<OwnedMutexGuard<()>>,
}

impl MessageLocks {
    /// Waits for the message's lock.
    pub(super) async fn lock(&self, id: QueueId) -> MessageLock<'_> {
        let own = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
        // Made before the wait, so that a cancelled wait cleans up too.
        let mut lock = MessageLock { table: &self.0, id, held: None };
        lock.held = Some(own.lock_owned().await);
        lock
    }
}

impl Drop for MessageLock<'_> {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        if table.get(&self.id).is_some_and(|own| Arc::strong_count(own) == 1) {
            table.remove(&self.id);
        }
    }
}
