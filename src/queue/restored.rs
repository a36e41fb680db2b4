//! Mail that comes back from a backup: nobody knows what became of it since, so nothing of it may move.
//!
//! Recipe: open the queue over the restored store, with nothing running beside it, and call
//! [`Queue::hold_all`] before any daemon opens it.

use super::Queue;
use super::filter::Filter;
use super::key;
use super::record::NoticeOwed;
use super::show::PAGE_MAX;
use crate::access::{Actor, Permission};
use crate::ext::Timestamp;
use crate::records::AdminError;
use crate::store::{Key, prefix};

/// What was held, and what was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldAll {
    /// Messages of which recipients are held now.
    pub messages: u64,
    /// Notices to senders that were owed; sent since or not, they are dropped on record.
    pub notices_dropped: u64,
}

/// Whether a record speaks of mail that is still owed, and means nothing without it.
pub fn is_of_owed_mail(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(prefix::MESSAGE | prefix::LANE | prefix::DUE | prefix::NOTICE)))
        || key.starts_with(&key::damaged(&[]))
}

impl Queue {
    /// Holds every recipient that is not done, and drops every notice owed, on record.
    pub async fn hold_all(&self, actor: &Actor, now: Timestamp) -> Result<HeldAll, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let mut held = HeldAll::default();
        let mut cursor = None;
        loop {
            let page = self.list(actor, &Filter::default(), cursor, PAGE_MAX)?;
            for listed in page.messages {
                let changed = self.hold(actor, listed.id, &[], now).await?;
                held.messages += u64::from(!changed.recipients.is_empty());
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let owed: Vec<Key> = self.notices_owed().all();
        for own in owed {
            let Some(bytes) = self.store.get(&own)? else { continue };
            // An unreadable one is set aside by the housekeeping, and was never sent.
            if let Ok(notice) = NoticeOwed::from_bytes(&bytes) {
                self.drop_notice(&notice, now).await?;
                held.notices_dropped += 1;
            }
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::QueueId;

    #[test]
    fn records_of_owed_mail_are_told_from_those_that_stay() {
        let id = QueueId([7; 16]);
        for of_mail in [key::message(id), key::lane_record(id, 1), key::damaged(b"x")] {
            assert!(is_of_owed_mail(&of_mail), "{of_mail:?}");
        }
        for stays in [key::clock(), vec![prefix::TENANT, 1], vec![prefix::HISTORY, 1], vec![prefix::EVENT, 1], vec![]] {
            assert!(!is_of_owed_mail(&stays), "{stays:?}");
        }
    }
}
