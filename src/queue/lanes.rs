//! The lanes in memory: which exist, when each is due first, what is ready, what is in flight.
//!
//! Each lane keeps a window of its earliest entries: everything of the lane that is not in flight
//! and sorts before `horizon` is in the window; what sorts behind it is only in the store and is
//! read when the window runs dry. No horizon: the window is complete and claims need no read.
//! Easy to get wrong: a refill may see keys of commits that are not finished yet. Whatever is
//! being written is in `flights` and skipped, and put in place when its commit has ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::key::Entry;
use super::record::{LaneRecord, QueueTime, QueuedMessage};
use super::ring::Ring;
use crate::mail::{Class, QueueId, TenantId};
use crate::routing::Lane;
use crate::store::StoreError;

/// Entries read at once when a window has run dry.
const REFILL_ENTRIES: usize = 256;
/// Entries in all windows together; above it new ones stay in the store only.
const ENTRIES_MAX: usize = 200_000;
/// Decoded records in all windows together.
const RECORDS_MAX: usize = 50_000;
/// Bytes of decoded records in all windows together, estimated.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One part in so many of the lanes looked at is kept for marketing, if as many are due.
const MARKETING_SHARE: usize = 5;
/// Entries of one lane that were given back with a pause, about so many at most: with more the lane rests until
/// the first pause ends. While an act on many messages walks through the queue, what it means is put back at
/// each claim; a lane full of that would otherwise be read through to its end, again and again.
const PAUSED_PER_LANE_MAX: usize = 1_000;
/// The same of all lanes together; above it each lane that has one rests.
const PAUSED_MAX: usize = 20_000;
/// Entries of one lane that are counted, at most.
const COUNTED_MAX: usize = 1_000;
/// A lane whose entries could not be read is left alone this long, in milliseconds.
const READ_FAILURE_PAUSE_MS: u64 = 5_000;

/// Names one lane record.
pub(super) type Name = (QueueId, u16);

/// A record decoded ahead, so that a claim needs no read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) message: Arc<QueuedMessage>,
    pub(super) record: LaneRecord,
}

impl Loaded {
    /// An estimate of the memory it takes.
    fn bytes(&self) -> usize {
        400 + self.record.recipients.len() * 250
    }
}

/// Why an entry is not for claiming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    /// Being accepted, changed or set aside.
    Busy,
    /// Claimed; `changed` if the stored record was changed meanwhile.
    Claimed { token: u64, changed: bool },
    /// Given back with a pause that is only in memory, until then.
    Paused(QueueTime),
}

#[derive(Debug)]
struct LaneState {
    lane: Lane,
    window: BTreeMap<Entry, Option<Box<Loaded>>>,
    /// Released with a pause: the entry's due is the pause's end; the stored one is beside it.
    paused: BTreeMap<Entry, (QueueTime, Option<Box<Loaded>>)>,
    horizon: Option<Entry>,
    not_before: QueueTime,
    first: Option<QueueTime>,
}

/// One entry taken by a claim.
#[derive(Debug)]
pub(super) struct Taken {
    /// As it is stored.
    pub(super) entry: Entry,
    pub(super) loaded: Option<Box<Loaded>>,
    pub(super) token: u64,
}

/// Some of the lanes that are due.
pub(super) struct Due {
    /// Each with how much of it is known to be ready.
    pub(super) lanes: Vec<(Lane, usize)>,
    /// See [`super::Look::is_start`].
    pub(super) is_start: bool,
    /// See [`super::Look::is_end`].
    pub(super) is_end: bool,
}

/// All lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    numbers: HashMap<Lane, u32>,
    states: Vec<Option<LaneState>>,
    free: Vec<u32>,
    /// First due time of each lane, transactional and marketing apart.
    due: [Ring; 2],
    /// Rounds that are over: in each, all that was due was looked at.
    rounds: u64,
    is_within_round: bool,
    flights: HashMap<Name, Flight>,
    entries: usize,
    records: usize,
    record_bytes: usize,
    /// Entries given back with a pause, of all lanes.
    paused: usize,
    tokens: u64,
}

/// Reads up to `limit` entries of a lane from `from` on; fewer mean the end was reached.
pub(super) type Refill<'a> = &'a dyn Fn(&Lane, Entry, usize) -> Result<Vec<Entry>, StoreError>;

impl Lanes {
    /// Makes a lane known whose first stored entry is `first`.
    pub(super) fn discover(&mut self, lane: Lane, first: Entry) {
        let number = self.number(&lane);
        if let Some(state) = self.state(number) {
            state.horizon = Some(state.horizon.map_or(first, |old| old.min(first)));
        }
        self.refresh(number);
    }

    /// Marks a lane record as being written: nobody claims it until [`Lanes::put`] or [`Lanes::gone`].
    /// What the window had of it is returned.
    pub(super) fn seize(&mut self, lane: &Lane, name: Name, due: QueueTime) -> Seized {
        match self.flights.get_mut(&name) {
            Some(Flight::Claimed { changed, .. }) => {
                *changed = true;
                return Seized::InFlight;
            }
            Some(Flight::Busy) => return Seized::Busy,
            Some(Flight::Paused(_)) | None => {}
        }
        if let Some(&number) = self.numbers.get(lane) {
            let entry = Entry { due, queue_id: name.0, number: name.1 };
            self.remove_entry(number, entry);
            if let Some(Flight::Paused(until)) = self.flights.get(&name).copied() {
                self.remove_paused(number, Entry { due: until, ..entry });
            }
            self.refresh(number);
        }
        self.flights.insert(name, Flight::Busy);
        Seized::Yours
    }

    /// Marks records of a message that is being accepted.
    pub(super) fn expect(&mut self, names: impl Iterator<Item = Name>) {
        self.flights.extend(names.map(|name| (name, Flight::Busy)));
    }

    /// The record is in the store with this due key: it may be claimed from then on.
    pub(super) fn put(&mut self, lane: &Lane, entry: Entry, loaded: Option<Box<Loaded>>) {
        self.flights.remove(&(entry.queue_id, entry.number));
        let number = self.number(lane);
        let keep = self.records < RECORDS_MAX && self.record_bytes < RECORD_BYTES_MAX;
        let loaded = loaded.filter(|_| keep);
        let full = self.entries >= ENTRIES_MAX;
        let Some(state) = self.states.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if state.horizon.is_some_and(|horizon| entry >= horizon) {
            // It sorts behind what was read so far and is found there.
        } else if full {
            state.horizon = Some(entry);
            let behind = state.window.split_off(&entry);
            self.entries -= behind.len();
            for loaded in behind.into_values().flatten() {
                self.uncount(&loaded);
            }
        } else {
            self.count(loaded.as_deref());
            self.insert(number, entry, loaded);
        }
        self.refresh(number);
    }

    /// The record is not to be claimed any more: settled for good, held, set aside.
    pub(super) fn gone(&mut self, name: Name) {
        self.flights.remove(&name);
    }

    /// Takes up to `most` due entries of a lane in flight.
    pub(super) fn take(&mut self, lane: &Lane, now: QueueTime, most: usize, refill: Refill<'_>) -> Vec<Taken> {
        let Some(&number) = self.numbers.get(lane) else { return Vec::new() };
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some((entry, loaded)) = self.pop(number, now) else {
                if !self.refill(number, now, most, refill) {
                    break;
                }
                continue;
            };
            self.tokens += 1;
            let token = self.tokens;
            self.flights.insert((entry.queue_id, entry.number), Flight::Claimed { token, changed: false });
            taken.push(Taken { entry, loaded, token });
        }
        self.refresh(number);
        taken
    }

    /// What is known of a claim; `None` if the token is not the current one.
    pub(super) fn claimed(&self, name: Name, token: u64) -> Option<WhileClaimed> {
        match self.flights.get(&name) {
            Some(Flight::Claimed { token: own, changed }) if *own == token => {
                Some(if *changed { WhileClaimed::Changed } else { WhileClaimed::Unchanged })
            }
            _ => None,
        }
    }

    /// Turns a claim into a record being written.
    pub(super) fn claim_is_busy(&mut self, name: Name) {
        self.flights.insert(name, Flight::Busy);
    }

    /// Where a record stands, if it is not simply waiting.
    pub(super) fn flight(&self, name: Name) -> Option<Flight> {
        self.flights.get(&name).copied()
    }

    /// Gives an entry back, to be claimed again at `until`.
    pub(super) fn pause(&mut self, lane: &Lane, entry: Entry, until: QueueTime, loaded: Option<Box<Loaded>>) {
        let name = (entry.queue_id, entry.number);
        let number = self.number(lane);
        let keep = self.records < RECORDS_MAX && self.record_bytes < RECORD_BYTES_MAX;
        let loaded = loaded.filter(|_| keep);
        self.count(loaded.as_deref());
        self.flights.insert(name, Flight::Paused(until));
        if let Some(state) = self.state(number) {
            let before = state.paused.insert(Entry { due: until, ..entry }, (entry.due, loaded));
            self.paused += usize::from(before.is_none());
        }
        self.refresh(number);
    }

    /// Up to `most` lanes with something due, transactional ones first, tenants by turns: the next call
    /// goes on where this one stopped.
    pub(super) fn due(&mut self, now: QueueTime, most: usize, weight: &dyn Fn(TenantId) -> u32) -> Due {
        let at = (now, self.rounds.saturating_add(1));
        // However many transactional lanes are due and cannot run, marketing ones get their look.
        let share = (most / MARKETING_SHARE).max(usize::from(most > 1));
        let [transactional, marketing] = &mut self.due;
        let kept_back = marketing.count(now, share);
        let mut numbers = transactional.look(at, most.saturating_sub(kept_back), weight);
        numbers.extend(marketing.look(at, most.saturating_sub(numbers.len()), weight));
        let is_end = self.due.iter().all(|ring| ring.is_through(at));
        let is_start = !self.is_within_round;
        self.is_within_round = !is_end;
        self.rounds = self.rounds.saturating_add(u64::from(is_end));
        let paused = self.paused;
        let states = numbers.into_iter().filter_map(|number| self.states.get(number as usize)?.as_ref());
        let lanes = states.map(|state| (state.lane.clone(), ready(state, now, paused))).collect();
        Due { lanes, is_start, is_end }
    }

    /// How many entries of a lane are ready; more than can be counted if some of them are not read yet.
    pub(super) fn ready_in(&self, lane: &Lane, now: QueueTime) -> usize {
        let state = self.numbers.get(lane).and_then(|number| self.states.get(*number as usize)?.as_ref());
        match state {
            None => 0,
            Some(state) if state.horizon.is_some_and(|horizon| horizon.due <= now) => usize::MAX,
            Some(state) => due_of(&mut state.window.keys(), now) + due_of(&mut state.paused.keys(), now),
        }
    }

    /// When the first lane is due.
    pub(super) fn first_due(&self) -> Option<QueueTime> {
        self.due.iter().filter_map(Ring::first).min()
    }

    /// How many entries were given back and wait for the end of their pause.
    #[cfg(test)]
    pub(super) fn paused(&self) -> usize {
        self.paused
    }

    /// How many lanes there are, and how many claims are out.
    pub(super) fn totals(&self) -> (usize, usize) {
        let claimed = self.flights.values().filter(|flight| matches!(flight, Flight::Claimed { .. })).count();
        (self.numbers.len(), claimed)
    }

    fn refill(&mut self, number: u32, now: QueueTime, most: usize, refill: Refill<'_>) -> bool {
        let limit = if self.entries >= ENTRIES_MAX { most.max(1) } else { REFILL_ENTRIES.max(most) };
        let paused = self.paused;
        let Some(state) = self.states.get_mut(number as usize).and_then(Option::as_mut) else { return false };
        if state.rests(paused) {
            return false;
        }
        let Some(horizon) = state.horizon.filter(|horizon| horizon.due <= now && state.not_before <= now) else {
            return false;
        };
        if state.window.keys().next().is_some_and(|first| first.due <= now) {
            return true;
        }
        match refill(&state.lane, horizon, limit) {
            Ok(read) => {
                state.horizon = if read.len() < limit { None } else { read.last().map(|last| last.next()) };
                let before = state.window.len();
                for entry in read {
                    if !self.flights.contains_key(&(entry.queue_id, entry.number)) {
                        state.window.entry(entry).or_insert(None);
                    }
                }
                self.entries += state.window.len() - before;
                true
            }
            Err(error) => {
                tracing::error!(%error, "due records of a lane cannot be read now");
                state.not_before = QueueTime(now.0.saturating_add(READ_FAILURE_PAUSE_MS));
                false
            }
        }
    }

    fn pop(&mut self, number: u32, now: QueueTime) -> Option<(Entry, Option<Box<Loaded>>)> {
        let state = self.states.get_mut(number as usize)?.as_mut()?;
        let waiting = state.window.keys().next().copied().filter(|_| !state.rests(self.paused));
        let paused = state.paused.keys().next().copied();
        let from_pause = match (waiting, paused) {
            (Some(waiting), Some(paused)) => paused < waiting,
            (None, Some(_)) => true,
            _ => false,
        };
        let (entry, loaded) = if from_pause {
            let (pause, (due, loaded)) =
                state.paused.first_entry().filter(|first| first.key().due <= now)?.remove_entry();
            self.paused -= 1;
            (Entry { due, ..pause }, loaded)
        } else {
            waiting?;
            let first = state.window.first_entry().filter(|first| first.key().due <= now)?.remove_entry();
            self.entries -= 1;
            first
        };
        if let Some(loaded) = &loaded {
            self.uncount(loaded);
        }
        Some((entry, loaded))
    }

    fn remove_entry(&mut self, number: u32, entry: Entry) {
        let removed = self.state(number).and_then(|state| state.window.remove(&entry));
        if let Some(loaded) = removed {
            self.entries -= 1;
            if let Some(loaded) = loaded {
                self.uncount(&loaded);
            }
        }
    }

    fn remove_paused(&mut self, number: u32, entry: Entry) {
        let Some((_, loaded)) = self.state(number).and_then(|state| state.paused.remove(&entry)) else { return };
        self.paused -= 1;
        if let Some(loaded) = loaded {
            self.uncount(&loaded);
        }
    }

    fn insert(&mut self, number: u32, entry: Entry, loaded: Option<Box<Loaded>>) {
        let Some(state) = self.state(number) else { return };
        let before = state.window.insert(entry, loaded);
        match before {
            None => self.entries += 1,
            Some(Some(loaded)) => self.uncount(&loaded),
            Some(None) => {}
        }
    }

    fn count(&mut self, loaded: Option<&Loaded>) {
        if let Some(loaded) = loaded {
            self.records += 1;
            self.record_bytes += loaded.bytes();
        }
    }

    fn uncount(&mut self, loaded: &Loaded) {
        self.records -= 1;
        self.record_bytes -= loaded.bytes();
    }

    fn number(&mut self, lane: &Lane) -> u32 {
        if let Some(&number) = self.numbers.get(lane) {
            return number;
        }
        let state = LaneState {
            lane: lane.clone(),
            window: BTreeMap::new(),
            paused: BTreeMap::new(),
            horizon: None,
            not_before: QueueTime(0),
            first: None,
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.states.push(None);
            u32::try_from(self.states.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(place) = self.states.get_mut(number as usize) {
            *place = Some(state);
        }
        self.numbers.insert(lane.clone(), number);
        number
    }

    fn state(&mut self, number: u32) -> Option<&mut LaneState> {
        self.states.get_mut(number as usize).and_then(Option::as_mut)
    }

    /// Keeps the ordered set of first due times true, and forgets a lane with nothing in it.
    fn refresh(&mut self, number: u32) {
        let paused = self.paused;
        let Some(state) = self.states.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let firsts = match state.rests(paused) {
            true => [None, state.paused.keys().next(), None],
            false => [state.window.keys().next(), state.paused.keys().next(), state.horizon.as_ref()],
        };
        let first = firsts.into_iter().flatten().map(|entry| entry.due).min().map(|due| due.max(state.not_before));
        let class = match state.lane.class {
            Class::Transactional => 0,
            Class::Marketing => 1,
        };
        let tenant = state.lane.tenant;
        if first != state.first {
            if let Some(old) = state.first {
                self.due[class].remove(tenant, (old, number));
            }
            if let Some(new) = first {
                self.due[class].insert(tenant, (new, number));
            }
            state.first = first;
        }
        if first.is_none() {
            if let Some(state) = self.states.get_mut(number as usize).and_then(Option::take) {
                self.numbers.remove(&state.lane);
            }
            self.free.push(number);
        }
    }
}

/// What became of [`Lanes::seize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seized {
    /// Nobody claims it until it is put back.
    Yours,
    /// It is claimed; its settlement will read the stored record again.
    InFlight,
    /// Somebody else is writing it; cannot happen under the message's lock.
    Busy,
}

/// Whether the stored record was changed while it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhileClaimed {
    /// The claim's copy is the truth.
    Unchanged,
    /// Read it again.
    Changed,
}

impl LaneState {
    /// Whether so much of it was given back, or of all lanes so much, that nothing more is begun before a pause ends.
    fn rests(&self, paused_in_all: usize) -> bool {
        self.paused.len() >= PAUSED_PER_LANE_MAX || (paused_in_all >= PAUSED_MAX && !self.paused.is_empty())
    }
}

/// How many entries of the lane are known to be ready; at least one if it is due.
fn ready(state: &LaneState, now: QueueTime, paused_in_all: usize) -> usize {
    let waiting = if state.rests(paused_in_all) { 0 } else { due_of(&mut state.window.keys(), now) };
    (waiting + due_of(&mut state.paused.keys(), now)).max(1)
}

fn due_of(keys: &mut dyn Iterator<Item = &Entry>, now: QueueTime) -> usize {
    keys.take(COUNTED_MAX).take_while(|entry| entry.due <= now).count()
}
