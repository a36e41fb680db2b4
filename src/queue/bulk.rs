//! Acts on everything a filter means: hold, release, retry, cancel, expire; and counting it without an act.
//!
//! An act applies to the recipients that fit, message by message, a page at a time, so memory does not
//! grow with the queue. Easy to get wrong: it is not one batch. What it has reached is done, what
//! comes in behind it is not: that is for `sweeps`, which gives an act a beginning and an end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use super::filter::{Filter, Standing};
use super::sweeps::Heading;
use super::verbs::{Audited, Order, Verb};
use super::walk::{Budget, Meant, Walk};
use super::{Changed, Queue};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId};
use crate::records::AdminError;
use crate::store::{CommitError, StoreError};

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

    /// Whether it does something to a recipient that stands so.
    pub(super) fn applies(self, standing: Standing) -> bool {
        self.verb().applies(standing)
    }
}

impl Verb {
    /// Whether it does something to a recipient that stands so. What is being tried now cannot be
    /// made due, nor given up.
    fn applies(self, standing: Standing) -> bool {
        match self {
            Self::Retry => standing == Standing::Waiting,
            Self::Hold => standing != Standing::Held,
            Self::Release => standing == Standing::Held,
            Self::Expire => standing != Standing::InFlight,
            _ => true,
        }
    }
}

/// One walk through the queue that changes what is meant.
pub(super) struct Round<'a> {
    pub(super) actor: &'a Actor,
    pub(super) verb: Verb,
    /// What is meant, its provider resolved.
    pub(super) filter: &'a Filter,
    pub(super) counts: &'a Counts,
    /// Asked before each message.
    pub(super) is_over: &'a (dyn Fn() -> bool + Sync),
    /// If there are any, only recipients whose mail goes there are meant.
    pub(super) only_to: &'a BTreeSet<Domain>,
}

/// How far a page of it came.
#[derive(Default)]
pub(super) struct Passed {
    /// There is nothing left behind it.
    pub(super) is_end: bool,
    /// Up to this message everything is done.
    pub(super) reached: Option<QueueId>,
    /// Messages of which nobody knows yet whether they go to the provider that is meant.
    pub(super) undecided: u64,
    /// Where their mail goes.
    pub(super) unknown: BTreeSet<Domain>,
    /// What ended it before its time.
    pub(super) trouble: Option<AdminError>,
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
    /// Messages it could not be applied to, because somebody else changed them at the same moment, or because
    /// their records are damaged.
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

    /// Counts on from what a stored act came to.
    pub(super) fn from(done: &Done) -> Self {
        Self {
            messages: done.messages.into(),
            recipients: done.recipients.into(),
            in_flight: done.in_flight.into(),
            failed: done.failed.into(),
        }
    }

    /// What became of one message; `Err` if that is no matter of this message, and is to be tried again.
    pub(super) fn note(&self, result: Result<Changed, AdminError>) -> Result<(), AdminError> {
        match result {
            Ok(changed) => self.add(&changed),
            Err(AdminError::Missing(_)) => {}
            Err(AdminError::Commit(CommitError::Conflict) | AdminError::Store(StoreError::Damaged(_))) => {
                self.failed.fetch_add(1, Ordering::AcqRel);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn add(&self, changed: &Changed) {
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

    /// Applies a verb to everything that is meant. `Err` leaves what was done until then. Blocks on the disk.
    pub(super) async fn sweep(
        &self,
        actor: &Actor,
        (verb, filter): (Verb, &Filter),
        now: Timestamp,
    ) -> Result<Done, AdminError> {
        let counts = Counts::default();
        let only_to = BTreeSet::new();
        let round = Round { actor, verb, filter, counts: &counts, is_over: &|| false, only_to: &only_to };
        let mut after = None;
        loop {
            let passed = self.sweep_page(&round, after, now).await?;
            if let Some(trouble) = passed.trouble {
                return Err(trouble);
            }
            if passed.is_end {
                return Ok(counts.done());
            }
            after = passed.reached;
            tokio::task::yield_now().await;
        }
    }

    /// One page of that, behind `after`. Blocks on the disk.
    pub(super) async fn sweep_page(
        &self,
        round: &Round<'_>,
        after: Option<QueueId>,
        now: Timestamp,
    ) -> Result<Passed, StoreError> {
        let whole = !round.filter.asks_of_recipients() && round.filter.vip.is_none();
        // Whether they go to the provider is asked of each recipient below, since it may not be known.
        let anywhere = Filter { provider: None, site: None, ..round.filter.clone() };
        let (mut passed, mut noted) = (Passed::default(), Vec::new());
        let next = self.walk(&anywhere, after, Budget::PAGE, &mut |meant| {
            let numbers = self.sort_out(round, &meant, &mut passed);
            // Of a whole message also what cannot be read goes.
            if whole || !numbers.is_empty() {
                noted.push((meant.id, if whole { Vec::new() } else { numbers }));
            }
            Ok(if noted.len() >= NOTED_MAX { Walk::Stop } else { Walk::GoOn })
        })?;
        let all = noted.len();
        let begun = self.apply_all(round, (noted, &mut passed), now).await;
        if passed.trouble.is_none() && begun.len() == all {
            (passed.is_end, passed.reached) = (next.is_none(), next);
        } else {
            passed.reached = begun.last().copied().or(after);
        }
        Ok(passed)
    }

    /// Changes message by message, many at a time, until it is over or one cannot be changed; those that
    /// need not be looked at again, in order.
    async fn apply_all(
        &self,
        round: &Round<'_>,
        (noted, passed): (Vec<(QueueId, Vec<u16>)>, &mut Passed),
        now: Timestamp,
    ) -> Vec<QueueId> {
        let (mut left, mut running) = (noted.into_iter(), FuturesUnordered::new());
        let (mut begun, mut first_failed) = (Vec::new(), None::<QueueId>);
        loop {
            while running.len() < AT_ONCE && passed.trouble.is_none() && !(round.is_over)() {
                let Some((id, only)) = left.next() else { break };
                begun.push(id);
                running.push(async move { (id, self.apply((round.actor, round.verb), id, only, now).await) });
            }
            let Some((id, result)) = running.next().await else { break };
            if let Err(error) = round.counts.note(result) {
                first_failed = Some(first_failed.map_or(id, |first| first.min(id)));
                passed.trouble.get_or_insert(error);
            }
        }
        begun.retain(|id| first_failed.is_none_or(|failed| *id < failed));
        begun
    }

    /// Numbers of the recipients it is about; of a message with others of whom that is not known, it is noted.
    fn sort_out(&self, round: &Round<'_>, meant: &Meant, passed: &mut Passed) -> Vec<u16> {
        let (mut numbers, mut is_undecided) = (Vec::new(), false);
        for one in meant.unfinished.iter().filter(|one| one.is_meant) {
            let (Some(record), Some(recipient)) = (meant.record(one), meant.recipient(one)) else { continue };
            let next_hop = &record.lane.next_hop;
            if !round.only_to.is_empty() && !round.only_to.contains(next_hop) {
                continue;
            }
            match self.heading(round.filter, next_hop) {
                Heading::There => numbers.push(recipient.number),
                Heading::Unknown if round.verb.applies(one.standing) => {
                    is_undecided = true;
                    passed.unknown.insert(next_hop.clone());
                }
                Heading::Elsewhere | Heading::Unknown => {}
            }
        }
        passed.undecided = passed.undecided.saturating_add(u64::from(is_undecided));
        numbers
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
