//! Acts on many messages as they are stored, and as earlier releases stored them.

use serde::{Deserialize, Serialize};

use super::{Course, Sweep, SweepState};
use crate::ext::Timestamp;
use crate::queue::bulk::{BulkAct, Done};
use crate::queue::filter::Filter;
use crate::store::{StoreError, codec};

impl Sweep {
    /// As it is stored.
    #[doc(hidden)]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Reads what this or an earlier release stored.
    #[doc(hidden)]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstSweep, Self>(bytes)
    }
}

/// A stored act as it is after a restore: over, if it was not. `None` if it cannot be read.
pub fn ended_sweep(bytes: &[u8], why: &str, now: Timestamp) -> Option<Vec<u8>> {
    let mut sweep = Sweep::from_bytes(bytes).ok()?;
    if !sweep.state.is_over() {
        (sweep.state, sweep.finished) = (SweepState::Ended(why.to_owned()), Some(now));
    }
    Some(sweep.to_bytes())
}

/// An act as it was stored first.
#[derive(Serialize, Deserialize)]
struct FirstSweep {
    number: u64,
    act: BulkAct,
    filter: Filter,
    reason: String,
    by: String,
    began: Timestamp,
    until: Option<Timestamp>,
    state: SweepState,
    done: Done,
    finished: Option<Timestamp>,
}

impl From<FirstSweep> for Sweep {
    fn from(first: FirstSweep) -> Self {
        let FirstSweep { number, act, filter, reason, by, began, until, state, done, finished } = first;
        let (undecided, course, trouble) = (0, Course::default(), None);
        Self { number, act, filter, reason, by, began, until, state, done, finished, undecided, course, trouble }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_an_earlier_release_stored_is_read_and_written_anew() {
        let first = FirstSweep {
            number: 7,
            act: BulkAct::Hold,
            filter: Filter { attempts_min: Some(2), ..Filter::default() },
            reason: "x".to_owned(),
            by: "ann".to_owned(),
            began: Timestamp(5),
            until: None,
            state: SweepState::Running,
            done: Done { messages: 3, ..Done::default() },
            finished: None,
        };
        let read = Sweep::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.number, read.done.messages, read.filter.attempts_min), (7, 3, Some(2)));
        assert_eq!(Sweep::from_bytes(&read.to_bytes()).unwrap(), read);
    }
}
