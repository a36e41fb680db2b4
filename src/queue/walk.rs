//! Walks through what is queued, oldest first, and hands out what a filter means.
//!
//! Message records and lane records are both keyed by queue id, so both are read in order, by the
//! page; what a filter asks of messages is decided before their lane records are read. Easy to get
//! wrong: a walk for a page looks at a bounded number of records, however few of them fit, and says
//! where the next one begins.

use std::collections::VecDeque;

use super::Queue;
use super::filter::{Filter, Standing};
use super::key;
use super::record::{LaneRecord, QueuedMessage};
use super::show::LaneRecords;
use crate::mail::QueueId;
use crate::store::{Key, Store, StoreError, after_prefix};

/// Message records looked at for one page, at most.
const PAGE_MESSAGES: usize = 50_000;
/// Lane records looked at for one page, at most.
const PAGE_RECORDS: usize = 20_000;
/// Message records read at once.
const MESSAGES_AT_ONCE: usize = 512;
/// Lane records read at once.
const RECORDS_AT_ONCE: usize = 64;

/// How many records a walk may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    messages: usize,
    records: usize,
}

impl Budget {
    /// For one page of a list.
    pub(super) const PAGE: Self = Self { messages: PAGE_MESSAGES, records: PAGE_RECORDS };
    /// To the end of the queue.
    pub(super) const WHOLE: Self = Self { messages: usize::MAX, records: usize::MAX };

    /// So many.
    #[cfg(test)]
    pub(super) const fn of(messages: usize, records: usize) -> Self {
        Self { messages, records }
    }
}

/// One message that is meant.
pub(super) struct Meant {
    pub(super) id: QueueId,
    pub(super) message: QueuedMessage,
    /// Its lane records by number; those that cannot be read are left out.
    pub(super) records: Vec<(u16, LaneRecord)>,
    /// Its unfinished recipients.
    pub(super) unfinished: Vec<Unfinished>,
}

/// One unfinished recipient of a message that is meant.
pub(super) struct Unfinished {
    /// Place of its record in [`Meant::records`], and its own in there.
    pub(super) place: (usize, usize),
    pub(super) standing: Standing,
    /// Whether it fits the filter.
    pub(super) is_meant: bool,
}

impl Meant {
    /// Numbers of the recipients that fit.
    pub(super) fn numbers(&self) -> Vec<u16> {
        let meant = self.unfinished.iter().filter(|one| one.is_meant);
        meant.filter_map(|one| self.recipient(one).map(|recipient| recipient.number)).collect()
    }

    /// The recipient itself.
    pub(super) fn recipient(&self, of: &Unfinished) -> Option<&super::QueuedRecipient> {
        self.record(of)?.recipients.get(of.place.1)
    }

    /// Its lane record.
    pub(super) fn record(&self, of: &Unfinished) -> Option<&LaneRecord> {
        self.records.get(of.place.0).map(|(_, record)| record)
    }
}

/// Whether to walk on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    GoOn,
    Stop,
}

impl Queue {
    /// Gives each message that is meant to `each`, behind `after`; the id to go on from if `each` or
    /// the budget ended it. Blocks on the disk.
    pub(super) fn walk(
        &self,
        filter: &Filter,
        after: Option<QueueId>,
        mut budget: Budget,
        each: &mut dyn FnMut(Meant) -> Result<Walk, StoreError>,
    ) -> Result<Option<QueueId>, StoreError> {
        let (mut from, end) = filter.bounds();
        if let Some(after) = after {
            let mut behind = key::message(after);
            behind.push(0);
            from = from.max(behind);
        }
        let mut lane_records = InOrder { store: &*self.store, page: VecDeque::new(), read: 0 };
        loop {
            let page = self.store.range(&from, &end, MESSAGES_AT_ONCE)?;
            let is_end = page.len() < MESSAGES_AT_ONCE;
            for (own, bytes) in page {
                let Some(id) = key::id_of(&own) else { continue };
                from.clone_from(&own);
                from.push(0);
                budget.messages = budget.messages.saturating_sub(1);
                // A damaged message record is reported when it is claimed, not here.
                let fitting = QueuedMessage::from_bytes(&bytes).ok().filter(|message| filter.fits_message(message));
                let mut walk = Walk::GoOn;
                if let Some(message) = fitting {
                    let (records, _) = lane_records.of(id)?;
                    if let Some(meant) = self.meant(filter, (id, message), records) {
                        walk = each(meant)?;
                    }
                }
                if walk == Walk::Stop || budget.messages == 0 || lane_records.read >= budget.records {
                    return Ok(Some(id));
                }
            }
            if is_end {
                return Ok(None);
            }
        }
    }

    /// The message, if the filter means it.
    pub(super) fn meant(
        &self,
        filter: &Filter,
        (id, message): (QueueId, QueuedMessage),
        records: Vec<(u16, LaneRecord)>,
    ) -> Option<Meant> {
        let mut unfinished = Vec::new();
        for (at, (number, record)) in records.iter().enumerate() {
            let goes_there = self.goes_there(filter, &record.lane.next_hop);
            for (place, recipient) in record.recipients.iter().enumerate() {
                let Some(standing) = self.standing((id, *number), recipient) else { continue };
                let is_meant = goes_there && filter.fits(record, recipient, standing);
                unfinished.push(Unfinished { place: (at, place), standing, is_meant });
            }
        }
        // Notices about it leave by the virtual IP it was accepted for, wherever the mail itself was moved.
        let as_a_whole = !filter.asks_of_recipients() && filter.vip.is_none_or(|vip| vip == message.vip);
        let is_meant = as_a_whole || unfinished.iter().any(|one| one.is_meant);
        is_meant.then_some(Meant { id, message, records, unfinished })
    }
}

/// Lane records, read in the order of their messages.
pub(super) struct InOrder<'a> {
    pub(super) store: &'a dyn Store,
    /// Read and not handed out; everything stored between the first and the last of them is in here.
    pub(super) page: VecDeque<(Key, Vec<u8>)>,
    /// Records read so far.
    pub(super) read: usize,
}

impl InOrder<'_> {
    /// Those of one message. Ids that are asked for must ascend.
    pub(super) fn of(&mut self, id: QueueId) -> Result<LaneRecords, StoreError> {
        let first = key::lane_records(id);
        let end = after_prefix(&first);
        while self.page.front().is_some_and(|(own, _)| *own < first) {
            self.page.pop_front();
        }
        if self.page.is_empty() {
            self.fill(&first)?;
        }
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        while let Some((own, bytes)) = self.page.pop_front() {
            if own >= end {
                self.page.push_front((own, bytes));
                break;
            }
            match (key::number_of(&own), LaneRecord::from_bytes(&bytes)) {
                (Some(number), Ok(record)) => found.push((number, record)),
                (_, Err(error)) => damaged.push(error.to_string()),
                (None, _) => damaged.push("not a lane record's key".to_owned()),
            }
            if self.page.is_empty() {
                let mut next = own;
                next.push(0);
                self.fill(&next)?;
            }
        }
        Ok((found, damaged))
    }

    fn fill(&mut self, from: &[u8]) -> Result<(), StoreError> {
        let page = self.store.range(from, &after_prefix(&[crate::store::prefix::LANE]), RECORDS_AT_ONCE)?;
        self.read = self.read.saturating_add(page.len());
        self.page.extend(page);
        Ok(())
    }
}
