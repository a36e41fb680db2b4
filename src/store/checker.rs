//! What the conditions of a group are checked against, and what a group touches that others wait for.
//!
//! Conditions are checked in arrival order, against the records and the group so far. Never against a
//! group that is not settled yet: who asks about anything [`Touched`] by it waits until it is.
//! Easy to get wrong: a name that is looked up here and not in [`Touched::concerns`] would be read as
//! it was before the group that is being settled.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::chain::{Heads, head_key};
use super::committer::{MovedBody, Waiting, Work};
use super::record::{Location, location_key};
use super::shared::Shared;
use super::{Change, CommitError, Condition, Key, StoreError};
use crate::mail::BodyId;

/// What a freed body's place is known to be when it is freed.
pub(super) type Freed = (BodyId, Option<Location>);

/// What became of one piece of work after its conditions were checked.
pub(super) enum Verdict {
    Refused(CommitError),
    Accepted { freed: Vec<Freed>, linked: Vec<(Key, Vec<u8>)> },
    Moves(Vec<usize>),
    Carried,
}

/// Bodies named in this group: where they lie after the work so far.
#[derive(Clone, Copy)]
enum Named {
    InGroup,
    At(Location),
    Gone,
}

/// Checks every condition of a group in arrival order, each against the work accepted before it.
pub(super) fn check(shared: &Shared, group: &[Work]) -> Result<Vec<Verdict>, StoreError> {
    let mut checker = Checker {
        shared,
        is_alone: group.len() == 1,
        keys: HashMap::new(),
        names: HashMap::new(),
        heads: Heads::default(),
    };
    group
        .iter()
        .map(|work| match work {
            Work::Commit(waiting) => checker.check_batch(waiting),
            Work::Move(bodies, _) => checker.check_moves(bodies),
            Work::Carry(..) | Work::Close => Ok(Verdict::Carried),
        })
        .collect()
}

/// The records as the group so far will leave them.
struct Checker<'a> {
    shared: &'a Shared,
    /// Nothing comes after the first piece of work: what it sets need not be remembered.
    is_alone: bool,
    keys: HashMap<&'a [u8], Option<&'a [u8]>>,
    names: HashMap<BodyId, Named>,
    /// Where chains stand after the group so far.
    heads: Heads<'a>,
}

impl<'a> Checker<'a> {
    fn check_batch(&mut self, waiting: &'a Waiting) -> Result<Verdict, StoreError> {
        for condition in &waiting.batch.conditions {
            let holds = match condition {
                Condition::Absent(key) => self.value_is(key, None)?,
                Condition::Equals(key, value) => self.value_is(key, Some(value))?,
            };
            if !holds {
                return Ok(Verdict::Refused(CommitError::Conflict));
            }
        }
        for (position, body) in waiting.bodies.iter().enumerate() {
            // A name already used in this group would have two places in it.
            let twice = waiting.bodies.iter().take(position).any(|earlier| earlier.id == body.id);
            if twice || self.names.contains_key(&body.id) || self.shared.location(body.id)?.is_some() {
                return Ok(Verdict::Refused(CommitError::Conflict));
            }
        }
        for body in &waiting.bodies {
            let named = body.own.as_ref().map_or(Named::InGroup, |(location, _)| Named::At(*location));
            self.names.insert(body.id, named);
        }
        let mut freed = Vec::with_capacity(waiting.batch.freed.len());
        for id in &waiting.batch.freed {
            match self.place_of(*id)? {
                Named::InGroup => freed.push((*id, None)),
                Named::At(location) => freed.push((*id, Some(location))),
                Named::Gone => continue,
            }
            self.names.insert(*id, Named::Gone);
        }
        if !self.is_alone {
            for change in &waiting.batch.changes {
                match change {
                    Change::Set(key, value) | Change::Make(key, value) => self.keys.insert(key, Some(value)),
                    Change::Remove(key) => self.keys.insert(key, None),
                };
            }
        }
        let records = &self.shared.records;
        let linked = self.heads.link(&waiting.batch, |key| records.get(key))?;
        Ok(Verdict::Accepted { freed, linked })
    }

    fn check_moves(&mut self, bodies: &[MovedBody]) -> Result<Verdict, StoreError> {
        let mut still = Vec::with_capacity(bodies.len());
        for (index, moved) in bodies.iter().enumerate() {
            if matches!(self.place_of(moved.body.id)?, Named::At(location) if location == moved.from) {
                self.names.insert(moved.body.id, Named::InGroup);
                still.push(index);
            }
        }
        Ok(if still.is_empty() { Verdict::Carried } else { Verdict::Moves(still) })
    }

    fn value_is(&self, key: &[u8], wanted: Option<&Vec<u8>>) -> Result<bool, StoreError> {
        let wanted = wanted.map(Vec::as_slice);
        match self.keys.get(key) {
            Some(value) => Ok(*value == wanted),
            None => Ok(self.shared.records.get(key)?.as_deref() == wanted),
        }
    }

    fn place_of(&self, id: BodyId) -> Result<Named, StoreError> {
        match self.names.get(&id) {
            Some(named) => Ok(*named),
            None => Ok(self.shared.location(id)?.map_or(Named::Gone, Named::At)),
        }
    }
}

/// What a group may change of what others can ask about, each key, body and chain as a hash: two that share
/// one are taken for the same, which costs a wait. Keys of appended facts and of entries of chains are not
/// among them: nobody can name them before they are there.
pub(super) struct Touched {
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Touched {
    /// By this group, whatever of it was refused.
    pub(super) fn by(group: &[Work]) -> Self {
        let mut touched = Self { hashes: HashSet::new(), hasher: RandomState::new() };
        for work in group {
            if let Work::Commit(waiting) = work {
                for change in &waiting.batch.changes {
                    let (Change::Set(key, _) | Change::Make(key, _) | Change::Remove(key)) = change;
                    touched.add(key);
                }
            }
            all_named(work, |name| {
                touched.add(name);
                true
            });
        }
        touched
    }

    /// Whether checking that group would look at any of it.
    pub(super) fn concerns(&self, group: &[Work]) -> bool {
        let asks = |condition: &Condition| {
            let (Condition::Absent(key) | Condition::Equals(key, _)) = condition;
            self.has(key)
        };
        group.iter().any(|work| {
            matches!(work, Work::Commit(waiting) if waiting.batch.conditions.iter().any(asks))
                || !all_named(work, |name| !self.has(name))
        })
    }

    fn add(&mut self, name: &[u8]) {
        self.hashes.insert(self.hasher.hash_one(name));
    }

    fn has(&self, name: &[u8]) -> bool {
        self.hashes.contains(&self.hasher.hash_one(name))
    }
}

/// Whether `holds` for the records of all bodies that a piece of work brings, frees or moves, and of all chains it
/// adds to.
fn all_named(work: &Work, mut holds: impl FnMut(&[u8]) -> bool) -> bool {
    match work {
        Work::Commit(waiting) => {
            let mut bodies = waiting.bodies.iter().map(|body| body.id).chain(waiting.batch.freed.iter().copied());
            bodies.all(|id| holds(&location_key(id)))
                && waiting.batch.chained.iter().all(|(chain, _)| holds(&head_key(chain)))
        }
        Work::Move(bodies, _) => bodies.iter().all(|moved| holds(&location_key(moved.body.id))),
        Work::Carry(..) | Work::Close => true,
    }
}
