//! The limits of one part of a site's mail at work: connections that are out, tokens that are left. Pure.

use super::bucket::Bucket;
use super::limits::{Knob, Resolved, UNLIMITED};
use crate::queue::QueueTime;

/// What is there is parted among no more jobs than this at once.
const WORTHWHILE_PARTS: u32 = 4;

/// What one job may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Messages (transactions).
    pub messages: u32,
    /// New connections.
    pub connections: u32,
}

/// What the controller allows, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceiling {
    /// Messages a minute.
    pub rate: Option<u32>,
    /// Connections.
    pub connections: Option<u32>,
}

/// A gate.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Its limits.
    pub limits: Resolved,
    running: u32,
    messages: Bucket,
    connections: Bucket,
}

/// Why a gate is closed: which limit, and until when, if time opens it.
pub type Closed = (Knob, Option<QueueTime>);

impl Gate {
    /// An open gate.
    pub fn new(limits: Resolved, now: QueueTime) -> Self {
        let messages = Bucket::new(limits.value(Knob::MessagesPerMinute), now);
        let connections = Bucket::new(limits.value(Knob::ConnectionsPerMinute), now);
        Self { limits, running: 0, messages, connections }
    }

    /// Other limits from now on; what is out stays out.
    pub fn set_limits(&mut self, limits: Resolved) {
        self.limits = limits;
    }

    /// Jobs that are out.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Connections allowed now.
    pub fn connections_max(&self, ceiling: Ceiling) -> u32 {
        self.limits.value(Knob::Connections).min(ceiling.connections.unwrap_or(u32::MAX)).max(1)
    }

    /// A limit as it stands under that ceiling.
    pub fn value(&self, knob: Knob, ceiling: Ceiling) -> u32 {
        let limit = self.limits.value(knob);
        match knob {
            Knob::Connections => self.connections_max(ceiling),
            Knob::MessagesPerMinute => limit.min(ceiling.rate.unwrap_or(u32::MAX)),
            _ => limit,
        }
    }

    /// What one more job could be given, of `wanted`.
    /// It goes only if it gets `needs` new connections, 0 or 1: one that is kept needs none.
    pub fn look(&mut self, wanted: Quota, needs: u32, ceiling: Ceiling, now: QueueTime) -> Result<Quota, Closed> {
        let rate = self.value(Knob::MessagesPerMinute, ceiling);
        self.messages.set_limit(rate, now);
        self.connections.set_limit(self.limits.value(Knob::ConnectionsPerMinute), now);
        let most = self.connections_max(ceiling);
        if self.running >= most {
            return Err((Knob::Connections, None));
        }
        // Only what it cannot do without, so that no job keeps others from their connections.
        let is_limited = self.limits.value(Knob::ConnectionsPerMinute) != UNLIMITED;
        let connections = self.connections.available(now).min(if is_limited { needs } else { UNLIMITED });
        if connections < needs {
            return Err((Knob::ConnectionsPerMinute, self.connections.next(now)));
        }
        let connections = connections.min(wanted.connections);
        let available = self.messages.available(now);
        if available == 0 {
            return Err((Knob::MessagesPerMinute, self.messages.next(now)));
        }
        // Each connection that may still come gets its share, but few worthwhile ones are better than
        // many for one message each.
        let idle = most.saturating_sub(self.running).max(1);
        let share = (available / idle).max(available / WORTHWHILE_PARTS).max(1);
        Ok(Quota { messages: share.min(wanted.messages), connections })
    }

    /// A job with that quota goes out.
    pub fn take(&mut self, quota: Quota) {
        self.running = self.running.saturating_add(1);
        self.messages.take(quota.messages);
        self.connections.take(quota.connections);
    }

    /// It came back and used so much of it.
    pub fn settle(&mut self, quota: Quota, used: Quota, now: QueueTime) {
        self.running = self.running.saturating_sub(1);
        self.messages.settle(quota.messages, used.messages, now);
        self.connections.settle(quota.connections, used.connections, now);
    }
}

/// How much there was in the last minute, roughly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    minute: u64,
    this: u32,
    before: u32,
}

impl Meter {
    /// Counts messages.
    pub fn add(&mut self, count: u32, now: QueueTime) {
        self.turn(now);
        self.this = self.this.saturating_add(count);
    }

    /// Remembers a number of which the most in a minute counts.
    pub fn most(&mut self, number: u32, now: QueueTime) {
        self.turn(now);
        self.this = self.this.max(number);
    }

    /// Messages in this minute or the one before, whichever had more.
    pub fn rate(&mut self, now: QueueTime) -> u32 {
        self.turn(now);
        self.this.max(self.before)
    }

    fn turn(&mut self, now: QueueTime) {
        let minute = now.0 / 60_000;
        if minute != self.minute {
            self.before = if minute == self.minute.saturating_add(1) { self.this } else { 0 };
            self.this = 0;
            self.minute = minute;
        }
    }
}
