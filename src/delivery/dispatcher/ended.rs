//! What the loop learns when one of its tasks ended: about the site, the pace, where lanes go.
//!
//! Easy to get wrong: every permit comes back, also that of a job that panicked or was aborted; of
//! such a job all it was allowed counts as done.

use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError};

use super::super::shaping::{Path, Permit, Quota, Signal, Use};
use super::super::sources::after;
use super::super::transport::{Ending, Report};
use super::{AVOID_FOR, AVOIDED_MAX, Dispatcher, Done, Running};
use crate::metrics::{ATTEMPTS, LOOKUPS};
use crate::routing::Lane;

impl Dispatcher {
    /// A task ended: on its own, aborted by the watchdog, or by a panic.
    pub(super) fn finished(&mut self, ended: Result<(Id, Done), JoinError>, now: Instant) {
        let (id, done, is_panic) = match ended {
            Ok((id, done)) => (id, Some(done), false),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("an attempt panicked; its mail was given back: {error}");
                }
                (error.id(), None, error.is_panic())
            }
        };
        match (self.running.remove(&id), done) {
            (Some(Running::Job { lane, path, pace, permit, progress, .. }), done) => {
                self.jobs.give_back(lane.tenant);
                metrics::gauge!(ATTEMPTS).decrement(1);
                self.uncount(&lane);
                self.sharers.left(&pace, &lane);
                match done {
                    Some(Done::Job(report)) => {
                        self.pace(&pace, &permit, &report);
                        self.learn(&lane, &path, *report, now);
                    }
                    _ => {
                        // What it did is not known: all it was allowed counts as done.
                        self.wiring.pacing.finished(&pace, &permit, permit.quota, self.wiring.queue.now());
                        if is_panic {
                            // A fault of ours says nothing about the site: its other mail goes on.
                            self.shaper.returned(&path);
                        } else {
                            let reason = format!("an attempt was ended in the phase {}", progress.phase().name());
                            self.shaper.finished(&path, Use::Failed(reason), now);
                        }
                    }
                }
            }
            (Some(Running::Lookup { place, tenant, share }), done) => {
                self.shares(share).give_back(tenant);
                metrics::gauge!(LOOKUPS).decrement(1);
                match done {
                    Some(Done::Lookup(place, result)) => self.places.learn(place, result, &self.settings, now),
                    _ => self.places.forget(&place),
                }
            }
            (Some(Running::Fate(lane)), _) => self.uncount(&lane),
            (Some(Running::Overflow(lane)), done) => {
                self.uncount(&lane);
                let swept = if let Some(Done::Overflow(swept)) = done { Some(swept) } else { None };
                self.swept(&lane, swept, now);
            }
            (None, _) => {}
        }
    }

    /// The pace learns what a job did and what was said to it.
    fn pace(&self, pace: &Path, permit: &Permit, report: &Report) {
        let now = self.wiring.queue.now();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let used = Quota { messages: small(report.transactions), connections: small(report.dialled) };
        self.wiring.pacing.finished(pace, permit, used, now);
        let served = report.messages.saturating_sub(report.signals.len());
        for signal in &report.signals {
            self.wiring.pacing.hear(pace, signal.clone(), now);
        }
        if served > 0 {
            self.wiring.pacing.hear(pace, Signal::Served(small(served)), now);
        }
        match &report.ending {
            Ending::Unreachable(reason, _) | Ending::Failed(reason) if report.signals.is_empty() && served == 0 => {
                // What a peer said begins with its code (RFC 5321 s4.2.1): 421 is a connection it does not serve.
                let is_sent_away = reason.starts_with("421");
                let signal = if is_sent_away { Signal::SentAway } else { Signal::Failed };
                self.wiring.pacing.hear(pace, signal(reason.clone()), now);
            }
            _ => {}
        }
    }

    fn learn(&mut self, lane: &Lane, path: &Path, report: Report, now: Instant) {
        for address in &report.reached {
            self.avoided.remove(address);
        }
        for address in report.failed.into_iter().take(AVOIDED_MAX.saturating_sub(self.avoided.len())) {
            self.avoided.insert(address, after(now, AVOID_FOR));
        }
        if let Some(connection) = report.idle {
            let surplus = self.pool.put(connection, &self.settings, now);
            self.close(surplus);
        }
        let is_served = report.messages > 0 || !report.reached.is_empty();
        // Whoever speaks of our pace is there; what follows from that is the pace's.
        let is_told = !report.signals.is_empty();
        let said = report.said;
        match report.ending {
            Ending::Unreachable(_, outcome) if is_told => {
                self.shaper.returned(path);
                self.fate(lane, (outcome, said), Duration::ZERO);
            }
            Ending::Failed(_) if is_told => self.shaper.finished(path, Use::Served, now),
            Ending::Drained | Ending::TurnOver | Ending::Stopped if is_served => {
                self.fates.remove(path);
                self.shaper.finished(path, Use::Served, now);
            }
            Ending::Drained | Ending::TurnOver | Ending::Stopped => self.shaper.returned(path),
            Ending::SourceMissing(address) => {
                self.shaper.returned(path);
                self.sources.missing(lane.vip, address, now);
            }
            // The domain's policy is not met: its own mail waits, that of others at the site does not.
            Ending::Unmet(outcome) if !self.jobs_of.contains_key(lane) => {
                self.shaper.returned(path);
                self.fate(lane, (outcome, said), Duration::ZERO);
            }
            // Another connection of the same mail may be served: no more than that for now.
            Ending::Unmet(_) => self.shaper.finished(path, Use::Crowded, now),
            Ending::Unreachable(..) if self.shaper.running(path) > 1 => {
                self.shaper.finished(path, Use::Crowded, now);
            }
            Ending::Unreachable(reason, outcome) => {
                self.shaper.finished(path, Use::Failed(reason), now);
                self.fates.insert(path.clone(), (now, outcome.clone()));
                self.fate(lane, (outcome, said), Duration::ZERO);
            }
            Ending::Failed(_) if report.messages > 0 => self.shaper.finished(path, Use::Served, now),
            Ending::Failed(reason) => self.shaper.finished(path, Use::Failed(reason), now),
        }
    }
}
