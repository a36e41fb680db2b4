//! Tenants that were deleted: their counts go, and stay away.
//!
//! Easy to get wrong: events of a tenant may still be uncounted when it is deleted, so from that moment on it is
//! not counted any more: by memory at first, and after a restart because its messages have no history and the
//! tenant itself is unknown.

use super::Statistics;
use super::rows::{Bucket, Span};
use crate::mail::TenantId;
use crate::records;
use crate::store::{Batch, CommitError, StoreError, after_prefix};

/// Rows removed in one batch, at most.
const FORGOTTEN_AT_ONCE: usize = 2_000;

impl Statistics {
    /// Removes every count of a tenant, and counts nothing of it any more; returns how many rows went. Does
    /// nothing when it is repeated.
    ///
    /// # Errors
    /// If the store refuses; what was removed so far stays removed.
    pub async fn forget_tenant(&self, tenant: TenantId) -> Result<usize, CommitError> {
        // While this is held nothing that was counted before is stored.
        let _storing = self.storing.lock().await;
        records::lock(&self.memory).leave_out(tenant);
        let mut forgotten = 0_usize;
        for span in [Span::Hour, Span::Day] {
            let mut next = Some(0);
            while let Some(number) = next {
                let Some(number) = self.first_from(span, number).map_err(failed)? else { break };
                forgotten = forgotten.saturating_add(self.forget_bucket(Bucket { span, number, tenant }).await?);
                next = number.checked_add(1);
                tokio::task::yield_now().await;
            }
        }
        Ok(forgotten)
    }

    async fn forget_bucket(&self, bucket: Bucket) -> Result<usize, CommitError> {
        let (from, mut forgotten) = (bucket.key(), 0_usize);
        let to = after_prefix(&from);
        loop {
            let page = self.store.range(&from, &to, FORGOTTEN_AT_ONCE).map_err(failed)?;
            if page.is_empty() {
                return Ok(forgotten);
            }
            forgotten = forgotten.saturating_add(page.len());
            let mut batch = Batch::new();
            for (key, _) in page {
                batch.remove(key);
            }
            self.store.commit(batch).await?;
        }
    }
}

fn failed(error: StoreError) -> CommitError {
    CommitError::Failed(error.to_string())
}
