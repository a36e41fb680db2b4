//! Between attempts and the queue: claims out, outcomes in, several being recorded at a time so
//! that they share syncs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::transport::{Hand, Moves, Outcomes, Settled, is_waiting};
use crate::ext::Timestamp;
use crate::mail::{Address, Dialogue, SmtpAccountId, TenantId};
use crate::queue::{Claim, Outcome, Queue, QueueTime};
use crate::routing::Lane;

/// Claims that were not tried, because the suppression list cannot be read, are due again after this.
const UNSCREENED_PAUSE: Duration = Duration::from_secs(10);

/// `QueuedMessage::source` of our notices: whoever owes one has decided that it is sent.
const NOTICE: &str = "notice";
/// Mail accepted less than this ago was held against the suppression list just now.
const SCREENED_AT_ACCEPTANCE: Duration = Duration::from_secs(60);

/// Whether a tenant's suppression list holds an address; `Err` is why it cannot be read.
pub type SuppressedLookup =
    Arc<dyn Fn(TenantId, Option<SmtpAccountId>, &Address) -> Result<bool, String> + Send + Sync>;

/// Looks at the suppression list again before mail that has waited is tried: who was put there
/// meanwhile is never mailed.
#[derive(Clone)]
pub(super) struct Screen {
    pub(super) queue: Arc<Queue>,
    pub(super) suppressed: SuppressedLookup,
}

impl Screen {
    /// Who in a claim is not to be tried; `Err` is how long it waits if that cannot be told.
    fn screen(&self, claim: &Claim) -> Result<Outcomes, Duration> {
        let now = Timestamp::now();
        // By both clocks: with a wall clock set back all mail would seem to be new.
        let age = now.since(claim.message.accepted).max(self.queue.now().since(claim.message.accepted_at));
        if age < SCREENED_AT_ACCEPTANCE || claim.message.source == NOTICE {
            return Ok(Outcomes::new());
        }
        let mut outcomes = Outcomes::new();
        for recipient in claim.record.recipients.iter().filter(|recipient| is_waiting(recipient)) {
            match (self.suppressed)(claim.message.tenant, claim.message.account, &recipient.address) {
                Ok(true) => outcomes.push((recipient.number, Outcome::Suppressed)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(queue_id = %claim.queue_id, "mail waits, the suppression list cannot be read: {error}");
                    return Err(UNSCREENED_PAUSE);
                }
            }
        }
        Ok(outcomes)
    }
}

/// A hand for claims of `lane`; what it drops (aborted, panicked, source missing) is due again after `pause`.
pub(super) fn hand(screen: &Screen, lane: &Lane, settled: mpsc::Sender<Settled>, pause: Duration) -> Hand {
    Hand::new(moves(screen, lane, None), settled, pause)
}

/// What a hand does with the queue; `given` is when its outcomes were, if not as they are recorded.
fn moves(screen: &Screen, lane: &Lane, given: Option<QueueTime>) -> Moves {
    let queue = &screen.queue;
    let (claims, bodies, releases, screen) = (queue.clone(), queue.clone(), queue.clone(), screen.clone());
    let (late, damaged, panics, parts) = (queue.clone(), queue.clone(), queue.clone(), queue.clone());
    let stalls = queue.clone();
    let lane = lane.clone();
    Moves {
        more: Arc::new(move |most| claims.claim(&lane, most)),
        screen: Arc::new(move |claim| screen.screen(claim)),
        open: Arc::new(move |body| bodies.open_body(body)),
        record: Arc::new(move |claim, outcomes| Box::pin(record_part(parts.clone(), claim, outcomes))),
        release: Arc::new(move |claim, pause| releases.release(claim, pause)),
        panicked: Arc::new(move |claim, pause| panics.panicked(claim, pause)),
        late: Arc::new(move |claim, outcomes| {
            late.settle_later((claim, outcomes), Timestamp::now(), given.unwrap_or_else(|| late.now()));
        }),
        set_aside: Arc::new(move |claim, how| damaged.set_aside(claim, how)),
        stalled: Arc::new(move |claim, recipients, phase| stalls.stalled(claim.queue_id, recipients, phase.name())),
    }
}

/// Records what is final of an attempt that goes on; `None` ends it.
async fn record_part(queue: Arc<Queue>, claim: Claim, outcomes: Outcomes) -> Option<(Claim, Outcomes)> {
    queue.settle_part(claim, outcomes, Timestamp::now()).await.unwrap_or_else(|error| {
        // The queue repeats it by itself; what is left of the claim is tried after that.
        tracing::warn!("an outcome was not recorded at once: {error}");
        None
    })
}

/// Records outcomes until the job's hand is gone and everything is written.
pub(super) async fn record_outcomes(queue: Arc<Queue>, outcomes: mpsc::Receiver<Settled>, at_once_max: usize) {
    record_as_of(queue, outcomes, at_once_max, None).await;
}

/// The same, of outcomes that were `given` then, if not as they are recorded.
async fn record_as_of(
    queue: Arc<Queue>,
    mut outcomes: mpsc::Receiver<Settled>,
    at_once_max: usize,
    given: Option<QueueTime>,
) {
    let mut recording = FuturesUnordered::new();
    let mut is_open = true;
    while is_open || !recording.is_empty() {
        tokio::select! {
            biased;
            Some(recorded) = recording.next(), if !recording.is_empty() => {
                if let Err(error) = recorded {
                    // The queue repeats it by itself, or the record was changed by an operator.
                    tracing::warn!("an outcome was not recorded at once: {error}");
                }
            }
            settled = outcomes.recv(), if is_open && recording.len() < at_once_max.max(1) => match settled {
                Some(settled) => {
                    let given = given.unwrap_or_else(|| queue.now());
                    let taken = settled.take().into_iter();
                    recording.extend(taken.map(|settled| queue.settle_as_of(settled, Timestamp::now(), given)));
                }
                None => is_open = false,
            },
        }
    }
}

/// What others came to, and what that means for mail that was not tried itself.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    pub(super) outcome: Outcome,
    /// What was said before it, if that was just now.
    pub(super) said: Option<Dialogue>,
    /// When that was. Mail that had not waited too long by then does not expire on it.
    pub(super) given: QueueTime,
}

/// Everything ready in `lane`, up to `most`, shares this fate.
pub(super) async fn share_fate(screen: Screen, lane: &Lane, fate: Fate, most: usize, at_once_max: usize) {
    let (settled, outcomes) = mpsc::channel(8);
    let Fate { outcome, said, given } = fate;
    let mut hand = Hand::new(moves(&screen, lane, Some(given)), settled, UNSCREENED_PAUSE);
    let settling = async move {
        hand.settle_all(&outcome, said.as_ref(), most).await;
        hand.give_back();
    };
    tokio::join!(settling, record_as_of(screen.queue, outcomes, at_once_max, Some(given)));
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
