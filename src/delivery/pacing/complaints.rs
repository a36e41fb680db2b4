//! Complaints, from the log of events to the warm-up of the address they are about, each once.
//!
//! Recipe: run [`Complaints`] with [`events::drive_exactly`]. Easy to get wrong: a warm-up's record is written for
//! many reasons, and no count may be stored before the place in the log is; so it reaches the pacer only with the
//! commit that holds both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::{Pacing, memory_key, stored};
use crate::delivery::shaping::{Path, WARMUP_DAY};
use crate::events::{self, Event, EventKind, History, MailEvent, Retry, Urgency, history_key};
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId, VipId};
use crate::queue::QueueTime;
use crate::records;
use crate::store::{Batch, StoreError};

/// Counts complaints for warm-ups.
pub struct Complaints {
    pacing: Arc<Pacing>,
    /// The queue's time, by which days of warm-ups go.
    clock: Arc<dyn Fn() -> QueueTime + Send + Sync>,
    /// Counted and not stored yet.
    met: Mutex<HashMap<Path, u32>>,
}

impl Complaints {
    /// For the warm-ups of `pacing`; `clock` tells the queue's time.
    pub fn new(pacing: Arc<Pacing>, clock: Arc<dyn Fn() -> QueueTime + Send + Sync>) -> Self {
        Self { pacing, clock, met: Mutex::default() }
    }

    /// The warm-ups that complaints count for: of the virtual IP the message was accepted for, towards the receivers
    /// of those who complained. None, mostly: then nothing more is read.
    fn concerned(&self, id: QueueId, recipients: &[u16]) -> Result<Vec<Path>, Retry> {
        if self.pacing.pacer().warming() == 0 {
            return Ok(Vec::new());
        }
        let read = self.pacing.desk.store().get(&history_key(id));
        let history = match read.and_then(|bytes| bytes.map(|bytes| History::from_bytes(&bytes)).transpose()) {
            Ok(history) => history,
            // It stays damaged.
            Err(StoreError::Damaged(_)) => None,
            Err(error @ StoreError::Failed(_)) => return Err(Retry(error.to_string())),
        };
        let Some(history) = history else { return Ok(Vec::new()) };
        let Some(vip) = history.entry.as_ref().map(|entry| entry.vip) else { return Ok(Vec::new()) };
        let complained = recipients.iter().filter_map(|number| history.recipients.get(usize::from(*number)));
        Ok(complained.filter_map(|address| self.warming(address.domain(), vip)).collect())
    }

    fn warming(&self, domain: &Domain, vip: VipId) -> Option<Path> {
        let path = Path { site: self.pacing.site_of(domain)?, vip };
        self.pacing.pacer().memory(&path).warmup.is_some().then_some(path)
    }
}

#[async_trait]
impl events::Tally for Complaints {
    fn name(&self) -> &'static str {
        "warm-up"
    }

    fn take(&self, events: &[Event]) -> Result<Urgency, Retry> {
        let now = Timestamp::now();
        let mut met = Vec::new();
        for event in events {
            let EventKind::Mail(id, MailEvent::Complained { recipients, .. }) = &event.kind else { continue };
            // What was told before this day began, while nobody counted, is none of its complaints.
            if now.since(event.at) < WARMUP_DAY {
                met.extend(self.concerned(*id, recipients)?);
            }
        }
        if met.is_empty() {
            return Ok(Urgency::WhenDue);
        }
        let mut counts = records::lock(&self.met);
        for path in met {
            let count = counts.entry(path).or_default();
            *count = count.saturating_add(1);
        }
        Ok(Urgency::Now)
    }

    async fn keep(&self, mut batch: Batch) -> Result<(), Retry> {
        // Whoever else writes these records waits meanwhile.
        let turn = self.pacing.desk.turn().await;
        let met = std::mem::take(&mut *records::lock(&self.met));
        let now = (self.clock)();
        for (path, count) in &met {
            if let Some(memory) = self.pacing.pacer().with_complaints(path, *count, now) {
                batch.set(memory_key(path), stored(path, memory));
            }
        }
        let (pacer, counted) = (Arc::clone(&self.pacing.pacer), met.clone());
        let committed = turn.commit(batch, move || {
            let mut pacer = records::lock(&pacer);
            counted.iter().for_each(|(path, count)| pacer.complained(path, *count, now));
        });
        if let Err(error) = committed.await {
            records::lock(&self.met).extend(met);
            return Err(error.into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "complaints_tests.rs"]
mod tests;
