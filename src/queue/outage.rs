//! Mail that waits for a virtual IP that is not on this host: each message says so once per outage.
//!
//! Recipe: delivery says [`Queue::vip_missing`] and [`Queue::vip_present`] as often as it likes; the
//! chores write one event for each message that is due meanwhile, a page at a time.
//! Easy to get wrong: an outage survives a restart, so what was told is kept beside the mail; a mark
//! carries the moment its outage began, and one of an earlier outage counts for nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::Queue;
use super::key;
use super::record::{QueueTime, RecipientState};
use super::settle::refused;
use crate::events::MailEvent;
use crate::ext::Timestamp;
use crate::mail::{QueueId, VipId};
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix, codec};

/// Due keys looked at for one batch.
const PAGE: usize = 200;
/// Outages read at start, at most.
const OUTAGES_MAX: usize = 65_536;
/// After a whole round through what is due, the next begins after this.
const ROUND_PAUSE: Duration = Duration::from_secs(5);

/// One virtual IP's outage.
#[derive(Clone, Debug)]
struct Outage {
    since: Timestamp,
    is_stored: bool,
    is_over: bool,
    /// Where the round goes on; empty between rounds.
    cursor: Key,
    /// When the next page is looked at.
    again: QueueTime,
}

/// The outages known.
#[derive(Debug, Default)]
pub(super) struct Outages(HashMap<VipId, Outage>);

impl Queue {
    /// None of the virtual IP's addresses is on this host: its mail waits. Cheap to repeat.
    pub fn vip_missing(&self, vip: VipId, now: Timestamp) {
        let mut outages = self.outages();
        let outage = outages.0.entry(vip).or_insert_with(|| {
            self.chore_nudge.notify_one();
            Outage { since: now, is_stored: false, is_over: false, cursor: Key::new(), again: QueueTime(0) }
        });
        if outage.is_over {
            // It came and went within one round: that is another outage.
            *outage = Outage { since: now, is_stored: false, is_over: false, cursor: Key::new(), again: QueueTime(0) };
        }
    }

    /// An address of the virtual IP is on this host. Cheap to repeat.
    pub fn vip_present(&self, vip: VipId) {
        if let Some(outage) = self.outages().0.get_mut(&vip)
            && !outage.is_over
        {
            outage.is_over = true;
            outage.again = QueueTime(0);
            self.chore_nudge.notify_one();
        }
    }

    /// Outages that had begun before the restart go on.
    pub(super) fn discover_outages(&self) -> Result<(), StoreError> {
        let prefix = key::outages();
        for (own, bytes) in self.store.range(&prefix, &after_prefix(&prefix), OUTAGES_MAX)? {
            let (Some(vip), Ok(since)) = (key::read_outage(&own), codec::decode::<Timestamp>(&bytes)) else { continue };
            let again = QueueTime(0);
            self.outages().0.insert(vip, Outage { since, is_stored: true, is_over: false, cursor: Key::new(), again });
        }
        Ok(())
    }

    /// A page of each outage that is due for one.
    pub(super) async fn tell_outages(&self, wall: Timestamp) {
        let now = self.now();
        let due: Vec<(VipId, Outage)> = {
            let outages = self.outages();
            outages.0.iter().filter(|(_, outage)| outage.again <= now).map(|(vip, own)| (*vip, own.clone())).collect()
        };
        for (vip, outage) in due {
            let done =
                if outage.is_over { self.end_outage(vip, &outage).await } else { self.tell(vip, outage, wall).await };
            if let Err(error) = done {
                tracing::warn!(%vip, %error, "that mail waits for a virtual IP could not be written down yet");
            }
        }
    }

    /// One page of the virtual IP's due mail: who was not told yet in this outage is told.
    async fn tell(&self, vip: VipId, outage: Outage, wall: Timestamp) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        if !outage.is_stored {
            batch.set(key::outage(vip), codec::encode(&outage.since));
        }
        let mut told = HashSet::new();
        let next = self.page(vip, &outage, &mut told).map_err(refused)?;
        for id in &told {
            let recipients = self.waiting_at(*id, vip).map_err(refused)?;
            if !recipients.is_empty() {
                Self::note(&mut batch, *id, MailEvent::VipMissing { recipients, vip }, wall);
                batch.set(key::told(vip, *id), codec::encode(&outage.since));
            }
        }
        if !batch.changes.is_empty() {
            self.commit(batch).await?;
        }
        if let Some(known) = self.outages().0.get_mut(&vip)
            && known.since == outage.since
        {
            known.is_stored = true;
            known.again = if next.is_empty() { self.now().plus(ROUND_PAUSE) } else { QueueTime(0) };
            known.cursor = next;
            if known.again == QueueTime(0) {
                self.chore_nudge.notify_one();
            }
        }
        Ok(())
    }

    /// Collects messages that are due and were not told; gives where the next page begins, empty at the end.
    fn page(&self, vip: VipId, outage: &Outage, told: &mut HashSet<QueueId>) -> Result<Key, StoreError> {
        let (prefix, now) = (key::due_of(vip), self.now());
        let from = if outage.cursor.is_empty() { prefix.clone() } else { outage.cursor.clone() };
        let read = self.store.range(&from, &after_prefix(&prefix), PAGE)?;
        let is_end = read.len() < PAGE;
        let mark = codec::encode(&outage.since);
        let mut next = Key::new();
        for (own, _) in read {
            next.clone_from(&own);
            next.push(0);
            let Some((lane, entry)) = key::read_due(&own) else { continue };
            if entry.due > now {
                // What follows in this lane is due later still.
                return Ok(after_prefix(&key::lane(&lane)));
            }
            if self.store.get(&key::told(vip, entry.queue_id))?.as_ref() != Some(&mark) {
                told.insert(entry.queue_id);
            }
        }
        Ok(if is_end { Key::new() } else { next })
    }

    fn waiting_at(&self, id: QueueId, vip: VipId) -> Result<Vec<u16>, StoreError> {
        let (records, _) = self.lane_records_of(id)?;
        let here = records.iter().map(|(_, record)| record).filter(|record| record.lane.vip == vip);
        let waiting = here.flat_map(|record| &record.recipients).filter(|one| one.state == RecipientState::Waiting);
        Ok(waiting.map(|recipient| recipient.number).collect())
    }

    /// Forgets what was told in an outage that is over, then the outage itself.
    async fn end_outage(&self, vip: VipId, outage: &Outage) -> Result<(), CommitError> {
        let prefix = key::told_at(vip);
        let marks = self.store.range(&prefix, &after_prefix(&prefix), PAGE).map_err(refused)?;
        let is_last = marks.len() < PAGE;
        let mut batch = Batch::new();
        marks.into_iter().for_each(|(own, _)| {
            batch.remove(own);
        });
        if is_last {
            batch.remove(key::outage(vip));
        }
        self.commit(batch).await?;
        if is_last {
            let mut outages = self.outages();
            if outages.0.get(&vip).is_some_and(|known| known.is_over && known.since == outage.since) {
                outages.0.remove(&vip);
            }
        } else {
            self.chore_nudge.notify_one();
        }
        Ok(())
    }
}
