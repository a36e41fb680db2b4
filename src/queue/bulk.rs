//! Acts on everything a filter means: hold, release, retry, cancel, expire; and counting it without an act.
//!
//! An act applies to the recipients that fit, message by message, a page at a time, so memory does not
//! grow with the queue. Easy to get wrong: it is not one batch. What it has reached is done, what
//! comes in behind it is not: that is for `sweeps`, which gives an act a beginning and an end.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use super::filter::{Filter, Standing};
use super::verbs::{Audited, Order, Verb};
use super::walk::{Budget, Meant, Walk};
use super::{Changed, Queue};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::records::AdminError;
use crate::store::CommitError;

/// Messages changed at a time, so that they share syncs.
const AT_ONCE: usize = 64;
/// Messages noted before they are changed.
const NOTED_MAX: usize = 1_024;

/// What is to be done with everything that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkAct {
    /// Make it due now.
    Retry,
    /// Keep it from being tried until it is released.
    Hold,
    /// End a hold.
    Release,
    /// Drop it for good.
    Cancel,
    /// Give it up now as if it had waited too long; senders are told.
    Expire,
}

impl BulkAct {
    /// The word people use for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }

    /// Whether it may go on for what comes to fit later.
    pub fn may_last(self) -> bool {
        matches!(self, Self::Hold | Self::Cancel | Self::Expire)
    }

    /// Its name in the audit log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Retry => "queue.retry-matching",
            Self::Hold => "queue.hold-matching",
            Self::Release => "queue.release-matching",
            Self::Cancel => "queue.cancel-matching",
            Self::Expire => "queue.expire-matching",
        }
    }

    pub(super) fn verb(self) -> Verb {
        match self {
            Self::Retry => Verb::Retry,
            Self::Hold => Verb::Hold,
            Self::Release => Verb::Release,
            Self::Cancel => Verb::Cancel,
            Self::Expire => Verb::Expire,
        }
    }

    /// Whether it does something to a recipient that stands so. What is being tried now cannot be
    /// made due, nor given up.
    pub(super) fn applies(self, standing: Standing) -> bool {
        match (self, standing) {
            (Self::Retry, standing) => standing == Standing::Waiting,
            (Self::Hold, standing) => standing != Standing::Held,
            (Self::Release, standing) => standing == Standing::Held,
            (Self::Cancel, _) => true,
            (Self::Expire, standing) => standing != Standing::InFlight,
        }
    }
}

/// What an act on many came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Messages it applied to.
    pub messages: u64,
    /// Recipients it applied to.
    pub recipients: u64,
    /// Of these, those being tried meanwhile: it takes effect when their attempt has ended.
    pub in_flight: u64,
    /// Messages it could not be applied to, because somebody else changed them at the same moment.
    pub failed: u64,
}

/// What a filter means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Messages.
    pub messages: u64,
    /// Octets of these.
    pub bytes: u64,
    /// Recipients that wait.
    pub waiting: u64,
    /// Recipients being tried now.
    pub in_flight: u64,
    /// Recipients held by an operator.
    pub held: u64,
    /// Recipients that wait for the release of their SMTP account.
    pub paused: u64,
    /// When the oldest of the messages was accepted.
    pub oldest: Option<Timestamp>,
}

/// Counts of an act under way.
#[derive(Debug, Default)]
pub(super) struct Counts {
    messages: AtomicU64,
    recipients: AtomicU64,
    in_flight: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    pub(super) fn done(&self) -> Done {
        let read = |count: &AtomicU64| count.load(Ordering::Acquire);
        Done {
            messages: read(&self.messages),
            recipients: read(&self.recipients),
            in_flight: read(&self.in_flight),
            failed: read(&self.failed),
        }
    }

    pub(super) fn add(&self, changed: &Changed) {
        let length = |numbers: &[u16]| u64::try_from(numbers.len()).unwrap_or(u64::MAX);
        if !changed.recipients.is_empty() {
            self.messages.fetch_add(1, Ordering::AcqRel);
        }
        self.recipients.fetch_add(length(&changed.recipients), Ordering::AcqRel);
        self.in_flight.fetch_add(length(&changed.in_flight), Ordering::AcqRel);
    }
}

impl Queue {
    /// What a filter means, or of that what an act would apply to. Looks at the whole queue: blocks
    /// on the disk, for seconds if there are millions.
    ///
    /// # Errors
    /// If the actor may not, or the records could not be read.
    pub fn sum(&self, actor: &Actor, filter: &Filter, act: Option<BulkAct>) -> Result<Sum, AdminError> {
        filter.require(actor)?;
        let (mut sum, filter) = (Sum::default(), self.resolved(filter.clone()));
        self.walk(&filter, None, Budget::WHOLE, &mut |meant| {
            sum.add(&meant, act);
            Ok(Walk::GoOn)
        })?;
        Ok(sum)
    }

    /// Applies a verb to everything that is meant, or until `is_over` says so, which is asked at each page.
    /// `Err` leaves what was done until then. Blocks on the disk.
    pub(super) async fn sweep(
        &self,
        actor: &Actor,
        (verb, filter): (Verb, &Filter),
        (counts, is_over): (&Counts, &(dyn Fn() -> bool + Sync)),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        let whole = !filter.asks_of_recipients() && filter.vip.is_none();
        let mut after = None;
        loop {
            let mut noted = Vec::new();
            after = self.walk(filter, after, Budget::PAGE, &mut |meant| {
                let numbers = meant.numbers();
                // Of a whole message also what cannot be read goes.
                if whole || !numbers.is_empty() {
                    noted.push((meant.id, if whole { Vec::new() } else { numbers }));
                }
                Ok(if noted.len() >= NOTED_MAX { Walk::Stop } else { Walk::GoOn })
            })?;
            let (mut left, mut running) = (noted.into_iter(), FuturesUnordered::new());
            loop {
                while running.len() < AT_ONCE {
                    let Some((id, only)) = left.next() else { break };
                    running.push(self.apply((actor, verb), id, only, now));
                }
                match running.next().await {
                    None => break,
                    Some(Ok(changed)) => counts.add(&changed),
                    Some(Err(AdminError::Missing(_))) => {}
                    Some(Err(AdminError::Commit(CommitError::Conflict))) => {
                        counts.failed.fetch_add(1, Ordering::AcqRel);
                    }
                    Some(Err(error)) => return Err(error),
                }
            }
            if after.is_none() || is_over() {
                return Ok(counts.done());
            }
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn apply(
        &self,
        (actor, verb): (&Actor, Verb),
        id: QueueId,
        only: Vec<u16>,
        now: Timestamp,
    ) -> Result<Changed, AdminError> {
        self.obey(Order { actor, id, verb, only: &only, audited: Audited::Together }, now).await
    }
}

impl Sum {
    fn add(&mut self, meant: &Meant, act: Option<BulkAct>) {
        let mut applies = act.is_none();
        for one in meant.unfinished.iter().filter(|one| one.is_meant) {
            if act.is_some_and(|act| !act.applies(one.standing)) {
                continue;
            }
            applies = true;
            let count = match one.standing {
                Standing::Waiting => &mut self.waiting,
                Standing::InFlight => &mut self.in_flight,
                Standing::Held => &mut self.held,
                Standing::Paused => &mut self.paused,
            };
            *count = count.saturating_add(1);
        }
        if applies {
            self.messages = self.messages.saturating_add(1);
            self.bytes = self.bytes.saturating_add(meant.message.size_bytes);
            let accepted = meant.message.accepted;
            self.oldest = Some(self.oldest.map_or(accepted, |oldest| oldest.min(accepted)));
        }
    }
}
