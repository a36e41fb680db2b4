//! What the loop does beside its passes: the pool, the watchdog, suspensions that ended, the end.
//!
//! Easy to get wrong: nothing here waits; an attempt that is aborted gives its mail back as it is dropped.

use std::time::{Duration, Instant};

use super::super::sources::after;
use super::{Dispatcher, Running};
use crate::ext::Timestamp;
use crate::metrics::STALLED;

impl Dispatcher {
    /// Pool and watchdog.
    pub(super) fn tick(&mut self, now: Instant) {
        let old = self.pool.sweep(&self.settings, now);
        self.close(old);
        self.shaper.forget_quiet(now);
        self.wiring.pacing.forget_quiet(self.wiring.queue.now());
        self.places.forget_old(self.settings.site_stale_max, now);
        self.wiring.overflows.forget_old(now);
        self.fates.retain(|_, (since, _)| now.duration_since(*since) < self.settings.shaping.pause_max);
        let delivery = self.wiring.delivery.clone();
        if delivery.begins_to_forget(Timestamp::now()) {
            let queue = self.wiring.queue.clone();
            let handle = tokio::runtime::Handle::current();
            // It may walk through the whole queue: not on a worker of the others.
            tokio::task::spawn_blocking(move || handle.block_on(delivery.forget_ended(&queue, Timestamp::now())));
        }
        self.watch(now);
    }

    /// Ends attempts that make no progress: every step has a deadline of its own, so such a one is stuck
    /// for a reason nobody thought of.
    fn watch(&mut self, now: Instant) {
        for running in self.running.values_mut() {
            let Running::Job { lane, progress, steps, since, handle, .. } = running else { continue };
            if progress.steps() != *steps {
                (*steps, *since) = (progress.steps(), now);
            } else if now.duration_since(*since) > self.settings.timeouts.stall && !progress.is_stalled() {
                let phase = progress.phase().name();
                tracing::warn!(to = %lane.next_hop, phase, "an attempt made no progress and was aborted; its mail waits");
                metrics::counter!(STALLED, "phase" => phase).increment(1);
                // As it is dropped, its trail says where it was stuck and it is put off; what was not begun is released.
                progress.stall();
                handle.abort();
            }
        }
    }

    /// Running attempts finish within the grace period; what is left is aborted, which gives its
    /// mail back.
    pub(super) async fn wind_up(mut self) {
        self.stop.cancel();
        let until = tokio::time::Instant::from_std(after(Instant::now(), self.settings.grace));
        while let Ok(Some(ended)) = tokio::time::timeout_at(until, self.tasks.join_next_with_id()).await {
            self.finished(ended, Instant::now());
        }
        let left = self.tasks.len();
        if left > 0 {
            tracing::warn!("{left} attempts did not finish in time; their mail was given back");
        }
        self.tasks.shutdown().await;
        let quits = self.pool.drain().into_iter().map(|connection| connection.quit(Duration::from_millis(500)));
        futures_util::future::join_all(quits).await;
    }
}
