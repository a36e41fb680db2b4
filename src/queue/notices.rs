//! Notices owed to senders: gathered, handed out when due, paid in the batch that accepts them.
//!
//! Easy to get wrong: what was handed out must not change under the notice being written. A later
//! failure starts a new notice then, and paying asks that the stored bytes are still the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Queue;
use super::keep::Damage;
use super::key;
use super::record::{NoticeOwed, QueueTime, QueuedMessage, QueuedRecipient};
use super::schedule;
use super::settle::refused;
use crate::events::{MailEvent, NoticeKind};
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix, prefix};

/// A notice of this size takes no further recipients: it must fit into a batch, and into the mail.
const NOTICE_BYTES_MAX: usize = 1024 * 1024;
/// Keys read at a time when the queue opens.
const PAGE: usize = 1_000;

/// The notices owed, in memory by key only.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Key, and the stored bytes if it was handed out.
    keys: BTreeMap<Key, Option<Vec<u8>>>,
    about: HashMap<QueueId, Vec<Key>>,
    /// About these messages there may be some in the store, or on their way to it, that are not known here.
    doubtful: HashSet<QueueId>,
}

impl Owed {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many are owed about a message.
    pub(super) fn about(&self, id: QueueId) -> usize {
        self.about.get(&id).map_or(0, Vec::len)
    }

    /// More may be owed about this message than is known: see [`Queue::sure_of_notices`].
    pub(super) fn doubt(&mut self, id: QueueId) {
        self.doubtful.insert(id);
    }

    /// What is owed about this message is known.
    pub(super) fn sure(&mut self, id: QueueId) {
        self.doubtful.remove(&id);
    }

    /// The keys of all of them.
    pub(super) fn all(&self) -> Vec<Key> {
        self.keys.keys().cloned().collect()
    }

    /// The keys of those owed about a message.
    pub(super) fn keys_about(&self, id: QueueId) -> Vec<Key> {
        self.about.get(&id).cloned().unwrap_or_default()
    }

    pub(super) fn added(&mut self, keys: impl IntoIterator<Item = Key>) {
        for new in keys {
            let Some((_, id, _)) = key::read_notice(&new) else { continue };
            if !self.keys.contains_key(&new) {
                self.keys.insert(new.clone(), None);
                self.about.entry(id).or_default().push(new);
            }
        }
    }

    pub(super) fn paid(&mut self, paid: &Key) {
        self.keys.remove(paid);
        let Some((_, id, _)) = key::read_notice(paid) else { return };
        if let Some(keys) = self.about.get_mut(&id) {
            keys.retain(|other| other != paid);
            if keys.is_empty() {
                self.about.remove(&id);
            }
        }
    }

    /// A notice of that kind that was not handed out yet.
    fn gathering(&self, id: QueueId, kind: NoticeKind) -> Option<&Key> {
        let keys = self.about.get(&id)?;
        // The latest: those before it may be full.
        keys.iter().rev().find(|own| {
            key::read_notice(own).is_some_and(|read| read.2 == kind) && matches!(self.keys.get(*own), Some(None))
        })
    }

    fn handed_out(&self, id: QueueId) -> Option<(&Key, &Vec<u8>)> {
        let keys = self.about.get(&id)?;
        keys.iter().find_map(|own| self.keys.get(own)?.as_ref().map(|bytes| (own, bytes)))
    }

    fn first_due(&self) -> Option<QueueTime> {
        self.keys.keys().next().and_then(|first| key::read_notice(first)).map(|read| read.0)
    }
}

/// Notices on their way to the store. Unless that is known to have ended, what is owed about the
/// message is in doubt. Dropped before the message's lock is.
pub(super) struct InDoubt<'a> {
    owed: &'a Mutex<Owed>,
    id: Option<QueueId>,
}

impl InDoubt<'_> {
    /// They are there.
    pub(super) fn ended(mut self) {
        self.id = None;
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.owed.lock().unwrap_or_else(PoisonError::into_inner).doubt(id);
        }
    }
}

impl Queue {
    /// Guards the commit of these new notices about a message.
    pub(super) fn in_doubt(&self, id: QueueId, new: &[Key]) -> InDoubt<'_> {
        InDoubt { owed: &self.notices, id: (!new.is_empty()).then_some(id) }
    }

    /// Notices that are due now, at most one per message. The same ones are returned until they are
    /// paid (by [`Queue::enqueue`] with `notice_about`) or dropped.
    pub fn owed_notices(&self, most: usize) -> Result<Vec<NoticeOwed>, StoreError> {
        self.owed_notices_but(most, &|_| false)
    }

    /// As [`Queue::owed_notices`], without those about messages that `is_skipped` names, so that
    /// notices which cannot be paid now do not stand before the others.
    pub fn owed_notices_but(
        &self,
        most: usize,
        is_skipped: &dyn Fn(QueueId) -> bool,
    ) -> Result<Vec<NoticeOwed>, StoreError> {
        let now = self.now();
        let mut owed = self.notices_owed();
        let due = owed.keys.keys().take_while(|own| key::read_notice(own).is_some_and(|read| read.0 <= now));
        let mut messages = HashSet::new();
        // What is handed out already goes before anything else about that message.
        let ids: Vec<QueueId> = due
            .filter_map(|own| key::read_notice(own).map(|read| read.1))
            .filter(|id| !is_skipped(*id) && messages.insert(*id))
            .take(most)
            .collect();
        let mut notices = Vec::with_capacity(ids.len());
        for id in ids {
            let handed = owed.handed_out(id).map(|(own, _)| own.clone());
            let first = handed.or_else(|| owed.about.get(&id)?.iter().min().cloned());
            let Some(own) = first else { continue };
            match self.store.get(&own)?.map(|bytes| (NoticeOwed::from_bytes(&bytes), bytes)) {
                Some((Ok(notice), bytes)) => {
                    owed.keys.insert(own, Some(bytes));
                    notices.push(notice);
                }
                Some((Err(error), _)) => {
                    owed.paid(&own);
                    self.chores().damaged(Damage::Notice { key: own, detail: error.to_string() });
                    self.chore_nudge.notify_one();
                }
                None => owed.paid(&own),
            }
        }
        Ok(notices)
    }

    /// When the next notice is due, zero if one is; `None` if none is owed.
    pub fn next_notice_due(&self) -> Option<Duration> {
        let first = self.notices_owed().first_due()?;
        Some(first.since(self.now()))
    }

    /// How much longer the message is tried, as far as can be said now: the last attempt comes after that.
    pub fn tried_for(&self, message: &QueuedMessage) -> Duration {
        self.settings().expire_after.saturating_sub(schedule::waited(message, self.now()))
    }

    /// The notice cannot be made (null reverse-path, suppressed...): forgets it on record.
    pub async fn drop_notice(&self, notice: &NoticeOwed, now: Timestamp) -> Result<(), CommitError> {
        let id = notice.queue_id;
        let _lock = self.locks.lock(id).await;
        self.sure_of_notices(id).await?;
        let own = key::notice(notice.due, id, notice.kind);
        let Some(bytes) = self.store.get(&own).map_err(refused)? else { return Ok(()) };
        let mut batch = Batch::new();
        batch.if_equals(own.clone(), bytes).remove(own.clone());
        let recipients = Self::told_of(&mut batch, notice);
        Self::note(&mut batch, id, MailEvent::NoticeDropped { recipients, kind: notice.kind }, now);
        self.retire_after_notice(&mut batch, id, now)?;
        self.commit(batch).await?;
        self.notices_owed().paid(&own);
        Ok(())
    }

    /// Puts the payment of the notice handed out about `about` into the batch that accepts it.
    pub(super) fn pay_notice(
        &self,
        batch: &mut Batch,
        about: QueueId,
        notice: QueueId,
        now: Timestamp,
    ) -> Result<Key, CommitError> {
        let handed = self.notices_owed().handed_out(about).map(|(own, bytes)| (own.clone(), bytes.clone()));
        let (own, bytes) = handed.ok_or(CommitError::Conflict)?;
        let owed = NoticeOwed::from_bytes(&bytes).map_err(refused)?;
        batch.if_equals(own.clone(), bytes).remove(own.clone());
        let recipients = Self::told_of(batch, &owed);
        Self::note(batch, about, MailEvent::NoticeSent { recipients, kind: owed.kind, notice }, now);
        self.retire_after_notice(batch, about, now)?;
        Ok(own)
    }

    /// The recipients of a notice that is owed no longer. Salvage need not owe a failed one again from now on.
    fn told_of(batch: &mut Batch, notice: &NoticeOwed) -> Vec<u16> {
        let recipients: Vec<u16> = notice.recipients.iter().map(|recipient| recipient.number).collect();
        if notice.kind == NoticeKind::Failure {
            batch.settled.push((notice.queue_id, recipients.clone()));
        }
        recipients
    }

    /// Makes what is owed about a message known for sure, under its lock. Whoever went away while a
    /// settlement was being written may have left it with the committer: once an empty batch is through,
    /// so is theirs, and what is read then is what is owed.
    pub(super) async fn sure_of_notices(&self, id: QueueId) -> Result<(), CommitError> {
        if !self.notices_owed().doubtful.contains(&id) {
            return Ok(());
        }
        self.store.commit(Batch::new()).await?;
        self.discover_notices().map_err(refused)?;
        self.notices_owed().sure(id);
        self.notice_nudge.notify_one();
        Ok(())
    }

    /// How many notices are owed about a message, after [`Queue::sure_of_notices`] and under the same
    /// lock. To retire it on that ground, look first whether its lane records are gone: whatever removed
    /// one owed its notices in the same batch.
    pub(super) fn notices_about(&self, id: QueueId) -> usize {
        self.notices_owed().about(id)
    }

    fn retire_after_notice(&self, batch: &mut Batch, id: QueueId, now: Timestamp) -> Result<(), CommitError> {
        let records = key::lane_records(id);
        let open = self.store.range(&records, &after_prefix(&records), 1).map_err(refused)?;
        if open.is_empty() && self.notices_about(id) <= 1 {
            Self::retire(batch, id, now);
        }
        Ok(())
    }

    /// Adds recipients to the notice of that kind that is gathering, or owes a new one.
    /// Returns the key of a new one. Called under the message's lock.
    pub(super) fn owe_notice(
        &self,
        batch: &mut Batch,
        id: QueueId,
        kind: NoticeKind,
        recipients: &[QueuedRecipient],
    ) -> Option<Key> {
        if recipients.is_empty() {
            return None;
        }
        let gathering = self.notices_owed().gathering(id, kind).cloned();
        if let Some(own) = gathering
            && let Ok(Some(bytes)) = self.store.get(&own)
            && bytes.len() < NOTICE_BYTES_MAX
            && let Ok(mut notice) = NoticeOwed::from_bytes(&bytes)
        {
            notice.recipients.extend_from_slice(recipients);
            batch.if_equals(own.clone(), bytes).set(own, notice.to_bytes());
            return None;
        }
        let mut due = self.now().plus(self.settings().notice_gather);
        let mut own = key::notice(due, id, kind);
        while self.notices_owed().keys.contains_key(&own) {
            due = QueueTime(due.0.saturating_add(1));
            own = key::notice(due, id, kind);
        }
        let notice = NoticeOwed { queue_id: id, kind, due, recipients: recipients.to_vec() };
        batch.set(own.clone(), notice.to_bytes());
        Some(own)
    }

    /// Reads the keys of all notices owed; those known already stay as they are.
    pub(super) fn discover_notices(&self) -> Result<(), StoreError> {
        let end = after_prefix(&[prefix::NOTICE]);
        let mut from = vec![prefix::NOTICE];
        loop {
            let page = self.store.range(&from, &end, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
            for (own, _) in page {
                if key::read_notice(&own).is_some() {
                    self.notices_owed().added([own]);
                } else {
                    self.chores().damaged(Damage::Key(own));
                }
            }
        }
    }
}
