//! Whether a virtual IP or a tenant still has mail here: exact, however long the queue is.
//!
//! Easy to get wrong: a held recipient has no due key, and a notice owed leaves by the virtual IP its
//! message was accepted for; so the records decide, and the index only makes "yes" quick.

use super::Queue;
use super::key;
use super::record::{LaneRecord, QueuedMessage, RecipientState};
use crate::mail::{TenantId, VipId};
use crate::store::{Key, StoreError, after_prefix, prefix};

/// Records read at once.
const PAGE: usize = 512;

impl Queue {
    /// Whether mail that is not settled leaves by the virtual IP or was accepted for it (a notice about
    /// it leaves by it too). Blocks on the disk: reads every record if the answer is no.
    pub fn has_mail_at(&self, vip: VipId) -> Result<bool, StoreError> {
        let due = key::due_of(vip);
        if !self.store.range(&due, &after_prefix(&due), 1)?.is_empty() {
            return Ok(true);
        }
        let is_own = |bytes: &[u8]| QueuedMessage::from_bytes(bytes).is_ok_and(|message| message.vip == vip);
        Ok(self.any(prefix::MESSAGE, &is_own)? || self.any(prefix::LANE, &|bytes| leaves_by(bytes, vip))?)
    }

    /// Whether a tenant has mail that is not retired. Blocks on the disk: reads every message record
    /// if the answer is no.
    pub fn has_mail_of(&self, tenant: TenantId) -> Result<bool, StoreError> {
        let is_own = |bytes: &[u8]| QueuedMessage::from_bytes(bytes).is_ok_and(|message| message.tenant == tenant);
        self.any(prefix::MESSAGE, &is_own)
    }

    fn any(&self, kind: u8, is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<bool, StoreError> {
        let (mut from, end): (Key, Key) = (vec![kind], after_prefix(&[kind]));
        loop {
            let page = self.store.range(&from, &end, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(false) };
            from.clone_from(last);
            from.push(0);
            if page.iter().any(|(_, bytes)| is_wanted(bytes)) {
                return Ok(true);
            }
        }
    }
}

fn leaves_by(bytes: &[u8], vip: VipId) -> bool {
    let Ok(record) = LaneRecord::from_bytes(bytes) else { return false };
    let is_open = |state: RecipientState| !matches!(state, RecipientState::Done(_));
    record.lane.vip == vip && record.recipients.iter().any(|recipient| is_open(recipient.state))
}
