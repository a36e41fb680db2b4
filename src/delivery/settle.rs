//! Between attempts and the queue: claims out, outcomes in, several being recorded at a time so
//! that they share syncs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::transport::{Hand, Moves, Settled};
use crate::ext::Timestamp;
use crate::queue::{Outcome, Queue};
use crate::routing::Lane;

/// Claims that an attempt dropped (aborted, panicked, source missing) are due again after this.
const DROPPED_PAUSE: Duration = Duration::from_secs(10);

/// A hand for claims of `lane`.
pub(super) fn hand(queue: &Arc<Queue>, lane: &Lane, settled: mpsc::Sender<Settled>) -> Hand {
    let (claims, bodies, releases) = (queue.clone(), queue.clone(), queue.clone());
    let (late, damaged) = (queue.clone(), queue.clone());
    let lane = lane.clone();
    let moves = Moves {
        more: Arc::new(move |most| claims.claim(&lane, most)),
        open: Arc::new(move |claim| bodies.open_body(claim)),
        release: Arc::new(move |claim, pause| releases.release(claim, pause)),
        late: Arc::new(move |claim, outcomes| late.settle_later(claim, outcomes, Timestamp::now())),
        set_aside: Arc::new(move |claim, how| damaged.set_aside(claim, how)),
    };
    Hand::new(moves, settled, DROPPED_PAUSE)
}

/// Records outcomes until the job's hand is gone and everything is written.
pub(super) async fn record_outcomes(queue: Arc<Queue>, mut outcomes: mpsc::Receiver<Settled>, at_once_max: usize) {
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
                    let taken = settled.take().into_iter();
                    recording.extend(taken.map(|(claim, outcomes)| queue.settle(claim, outcomes, Timestamp::now())));
                }
                None => is_open = false,
            },
        }
    }
}

/// Everything ready in `lane`, up to `most`, gets the same outcome.
pub(super) async fn share_fate(queue: Arc<Queue>, lane: &Lane, outcome: Outcome, most: usize, at_once_max: usize) {
    let (settled, outcomes) = mpsc::channel(8);
    let mut hand = hand(&queue, lane, settled);
    let settling = async move {
        hand.settle_all(&outcome, most).await;
        hand.give_back();
    };
    tokio::join!(settling, record_outcomes(queue, outcomes, at_once_max));
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
