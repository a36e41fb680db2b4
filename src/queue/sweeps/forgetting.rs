//! Acts on many messages that are no longer shown: those over for long, and those of a tenant that was deleted.
//!
//! Easy to get wrong: the record with the last number stays, or that number were given twice and the audit log
//! told of two acts by one name.

use std::collections::{HashMap, HashSet};

use super::{Course, KEPT_FOR, KEPT_MAX, KEPT_PER_TENANT_MAX, Sweep, SweepState, key};
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId};
use crate::queue::{Filter, Queue};
use crate::records::AdminError;
use crate::store::Batch;

impl Queue {
    /// Removes the acts that were asked for on mail of a tenant, or of its SMTP accounts, whether they are over
    /// or not. Of the latest act of all only the number stays.
    ///
    /// # Errors
    /// If the records could not be written; then all are still there.
    pub async fn forget_sweeps_of(
        &self,
        (tenant, accounts): (TenantId, &[SmtpAccountId]),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let _turn = self.sweep_turn.lock().await;
        let is_of = |filter: &Filter| {
            filter.tenant == Some(tenant) || filter.account.is_some_and(|account| accounts.contains(&account))
        };
        let (gone, last) = {
            let sweeps = self.sweeps_kept();
            let gone: Vec<Sweep> = sweeps.all.values().filter(|sweep| is_of(&sweep.filter)).cloned().collect();
            (gone, sweeps.all.keys().next_back().copied())
        };
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        let mut emptied = None;
        for sweep in &gone {
            if Some(sweep.number) == last {
                let kept = emptied_of(sweep, now);
                batch.set(key(sweep.number), kept.to_bytes());
                emptied = Some(kept);
            } else {
                batch.remove(key(sweep.number));
            }
        }
        self.commit(batch).await?;
        let mut sweeps = self.sweeps_kept();
        for sweep in &gone {
            sweeps.watched.remove(&sweep.number);
            sweeps.all.remove(&sweep.number);
        }
        sweeps.all.extend(emptied.map(|kept| (kept.number, kept)));
        Ok(())
    }

    pub(super) async fn forget_sweeps(&self, now: Timestamp) {
        let now = self.calendar.cap(now);
        let old: Vec<u64> = {
            let sweeps = self.sweeps_kept();
            let over: Vec<&Sweep> = sweeps.all.values().filter(|sweep| sweep.state.is_over()).collect();
            let surplus = over.len().saturating_sub(KEPT_MAX);
            let crowded = beyond_their_share(&over);
            let is_old = |sweep: &Sweep| {
                sweep.finished.is_none_or(|finished| now.since(finished) > KEPT_FOR) || crowded.contains(&sweep.number)
            };
            // The last number stays, so that none is given twice.
            let last = sweeps.all.keys().next_back().copied();
            let old = over.iter().enumerate().filter(|(place, sweep)| *place < surplus || is_old(sweep));
            old.map(|(_, sweep)| sweep.number).filter(|number| Some(*number) != last).collect()
        };
        if old.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for number in &old {
            batch.remove(key(*number));
        }
        if let Err(error) = self.commit(batch).await {
            return tracing::warn!(%error, "old acts on the queue could not be removed yet");
        }
        let mut sweeps = self.sweeps_kept();
        sweeps.all.retain(|number, _| !old.contains(number));
    }
}

/// Of each tenant the oldest, beyond what is kept of it. The acts are in order.
fn beyond_their_share(over: &[&Sweep]) -> HashSet<u64> {
    let mut kept: HashMap<TenantId, usize> = HashMap::new();
    let mut is_beyond = |sweep: &Sweep| {
        let Some(tenant) = sweep.filter.tenant else { return false };
        let own = kept.entry(tenant).or_default();
        *own += 1;
        *own > KEPT_PER_TENANT_MAX
    };
    over.iter().rev().filter(|sweep| is_beyond(sweep)).map(|sweep| sweep.number).collect()
}

/// What stays of an act: that there was one.
fn emptied_of(sweep: &Sweep, now: Timestamp) -> Sweep {
    Sweep {
        filter: Filter::default(),
        reason: "of a tenant that was deleted".to_owned(),
        by: String::new(),
        until: None,
        state: SweepState::Done,
        finished: Some(sweep.finished.unwrap_or(now)),
        course: Course::default(),
        ..sweep.clone()
    }
}
