//! Whether a virtual IP, a relay or a tenant still has mail here: exact, however long the queue is.
//!
//! Easy to get wrong: a held recipient has no due key, and a notice owed leaves by the virtual IP its
//! message was accepted for; so the records decide, and the index only makes "yes" quick.

use super::Queue;
use super::key;
use super::record::{LaneRecord, QueuedMessage, RecipientState};
use crate::mail::{TenantId, VipId};
use crate::routing::{Lane, TransportName};
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
        Ok(self.any(prefix::MESSAGE, &is_own)?
            || self.any(prefix::LANE, &|bytes| is_open_lane(bytes, |lane| lane.vip == vip))?)
    }

    /// Whether mail that is not settled goes by a relay. Blocks on the disk: reads every lane record if the
    /// answer is no.
    pub fn has_mail_by(&self, route: u64) -> Result<bool, StoreError> {
        let transport = TransportName::Smarthost(route);
        self.any(prefix::LANE, &|bytes| is_open_lane(bytes, |lane| lane.transport == transport))
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

/// Whether a lane record is of such a lane and somebody in it is still to be served.
fn is_open_lane(bytes: &[u8], is_wanted: impl Fn(&Lane) -> bool) -> bool {
    let Ok(record) = LaneRecord::from_bytes(bytes) else { return false };
    let is_open = |state: RecipientState| !matches!(state, RecipientState::Done(_));
    is_wanted(&record.lane) && record.recipients.iter().any(|recipient| is_open(recipient.state))
}
