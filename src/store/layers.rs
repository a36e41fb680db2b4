//! What was committed since the last checkpoint, in memory above the record engine.
//!
//! The settler writes into the current layer; a checkpoint begins a new one and carries the old one
//! down into the engine. A record that is made and removed between two checkpoints, as most of a message
//! that is delivered at once is, never reaches the engine at all.
//! Easy to get wrong: a removal is kept until it was carried down, because the engine may hold the key;
//! only a record that is known to have had nothing under it leaves no trace.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use super::Key;
use super::record::{Before, Operation};

/// What an entry takes beside its key and value, about.
const ENTRY_BYTES: usize = 96;

/// What a layer says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// It has this value.
    Set(Vec<u8>),
    /// It has this value, and nothing below this layer has the key.
    Made(Vec<u8>),
    /// It has no value.
    Removed,
}

impl Held {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Set(value) | Self::Made(value) => Some(value),
            Self::Removed => None,
        }
    }
}

/// The changes between two checkpoints.
#[derive(Debug, Default)]
pub struct Layer {
    entries: BTreeMap<Key, Held>,
    bytes: usize,
}

impl Layer {
    /// Every key that changed, in order.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.entries.iter()
    }

    fn apply(&mut self, operation: &Operation<'_>, before: Before) {
        match operation {
            Operation::Set(key, value) => self.set(key, value.to_vec(), before),
            Operation::Remove(key) => self.remove(key),
        }
    }

    /// From now on somebody else may have the keys this layer made: their removal is kept.
    fn forget_what_was_made(&mut self) {
        for held in self.entries.values_mut() {
            if let Held::Made(value) = held {
                *held = Held::Set(std::mem::take(value));
            }
        }
    }

    /// Its value of one key.
    pub fn value(&self, key: &[u8]) -> Option<&Vec<u8>> {
        self.entries.get(key).and_then(Held::value)
    }

    fn set(&mut self, key: &[u8], value: Vec<u8>, before: Before) {
        self.bytes += value.len();
        match self.entries.entry(key.to_vec()) {
            Place::Vacant(place) => {
                self.bytes += key.len() + ENTRY_BYTES;
                place.insert(match before {
                    Before::Absent => Held::Made(value),
                    Before::Unknown => Held::Set(value),
                });
            }
            Place::Occupied(mut place) => {
                self.bytes = self.bytes.saturating_sub(place.get().value().map_or(0, Vec::len));
                let is_made = matches!(place.get(), Held::Made(_));
                place.insert(if is_made { Held::Made(value) } else { Held::Set(value) });
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        match self.entries.get_mut(key) {
            Some(Held::Made(value)) => {
                self.bytes = self.bytes.saturating_sub(key.len() + value.len() + ENTRY_BYTES);
                self.entries.remove(key);
            }
            Some(held) => {
                self.bytes = self.bytes.saturating_sub(held.value().map_or(0, Vec::len));
                *held = Held::Removed;
            }
            None => {
                self.bytes += key.len() + ENTRY_BYTES;
                self.entries.insert(key.to_vec(), Held::Removed);
            }
        }
    }

    fn range<'a>(&'a self, from: &[u8], to: &[u8]) -> Peekable<impl Iterator<Item = (&'a Key, &'a Held)> + use<'a>> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        self.entries.range::<[u8], _>(bounds).peekable()
    }
}

/// The current layer, and the one that is being carried down.
#[derive(Debug)]
pub struct Layers {
    /// Bytes of one layer beyond which commits wait for the checkpoint: the engine is slower than they are.
    pub bytes_max: usize,
    current: Layer,
    /// Whether the current layer keeps every removal.
    keeps_removals: bool,
    sinking: Option<Arc<Layer>>,
    turn: u64,
}

/// What the layers say about a part of a range.
#[derive(Debug)]
pub struct Part {
    /// Keys in order with their values, `None` for what was removed.
    pub entries: Vec<(Key, Option<Vec<u8>>)>,
    /// Behind this key nothing was looked at; `None`: the whole range was.
    pub end: Option<Key>,
    /// The layers' turn: once another has come, the engine below may hold what is not told here.
    pub turn: u64,
}

impl Default for Layers {
    fn default() -> Self {
        let bytes_max = super::Settings::default().layer_bytes_max;
        Self { bytes_max, current: Layer::default(), keeps_removals: false, sinking: None, turn: 0 }
    }
}

impl Layers {
    /// Does one operation.
    pub fn apply(&mut self, operation: &Operation<'_>, before: Before) {
        let before = if self.keeps_removals { Before::Unknown } else { before };
        self.current.apply(operation, before);
    }

    /// Until the next layer is begun, what is made and removed leaves a trace: whoever reads everything
    /// meanwhile may have seen it.
    pub fn keep_removals(&mut self) {
        self.current.forget_what_was_made();
        self.keeps_removals = true;
    }

    /// Bytes that wait for a checkpoint.
    pub fn bytes(&self) -> usize {
        self.current.bytes
    }

    /// Whether so much waits for a checkpoint that commits must wait for it.
    pub fn is_full(&self) -> bool {
        self.current.bytes >= self.bytes_max
    }

    /// What is known about a key, `None` if the engine below must be asked.
    pub fn get(&self, key: &[u8]) -> Option<&Held> {
        self.current.entries.get(key).or_else(|| self.sinking.as_ref()?.entries.get(key))
    }

    /// Which layers these are: grows whenever a new one is begun.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// Begins a new layer and gives the one to be carried down; readers see both until [`Layers::sunk`].
    pub fn begin(&mut self) -> Arc<Layer> {
        self.turn += 1;
        self.keeps_removals = false;
        let layer = Arc::new(std::mem::take(&mut self.current));
        self.sinking = Some(Arc::clone(&layer));
        layer
    }

    /// The engine holds what the last layer said.
    pub fn sunk(&mut self) {
        self.sinking = None;
    }

    /// What is known of `from <= key < to`, up to `limit` values.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Part {
        let mut upper = self.current.range(from, to);
        let mut lower = self.sinking.as_ref().map(|layer| layer.range(from, to));
        let (mut entries, mut values) = (Vec::new(), 0);
        let mut end = None;
        loop {
            let below = lower.as_mut().and_then(|lower| lower.peek().copied());
            let next = match (upper.peek().copied(), below) {
                (None, None) => break,
                (Some(above), Some(below)) if below.0 < above.0 => below,
                (Some(above), _) => above,
                (None, Some(below)) => below,
            };
            let (key, held) = next;
            upper.next_if(|(other, _)| *other == key);
            if let Some(lower) = &mut lower {
                lower.next_if(|(other, _)| *other == key);
            }
            values += usize::from(held.value().is_some());
            entries.push((key.clone(), held.value().cloned()));
            if values >= limit {
                let mut behind = key.clone();
                behind.push(0);
                end = Some(behind);
                break;
            }
        }
        Part { entries, end, turn: self.turn }
    }
}

impl Part {
    /// The values of this part and of `below`, which is in order and ends where this part does; what this
    /// part says about a key counts. At most `limit`.
    pub fn over<E>(
        self,
        below: impl Iterator<Item = Result<(Key, Vec<u8>), E>>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, E> {
        let mut pairs = Vec::with_capacity(limit.min(64));
        let mut held = self.entries.into_iter().peekable();
        for pair in below {
            let (key, value) = pair?;
            while let Some((key, value)) = held.next_if(|(other, _)| *other < key) {
                pairs.extend(value.map(|value| (key, value)));
            }
            match held.next_if(|(other, _)| *other == key) {
                Some((key, value)) => pairs.extend(value.map(|value| (key, value))),
                None => pairs.push((key, value)),
            }
            if pairs.len() >= limit {
                pairs.truncate(limit);
                return Ok(pairs);
            }
        }
        pairs.extend(held.filter_map(|(key, value)| Some((key, value?))));
        pairs.truncate(limit);
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is done in one test: a set, a removal, or a step of a checkpoint.
    #[derive(Clone, Debug)]
    enum Act {
        Set(u8, u8),
        Remove(u8),
        Begin,
        Sunk,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0_u8..12, any::<u8>()).prop_map(|(key, value)| Act::Set(key, value)),
            3 => (0_u8..12).prop_map(Act::Remove),
            1 => Just(Act::Begin),
            1 => Just(Act::Sunk),
        ];
        proptest::collection::vec(act, 0..60)
    }

    /// Carries a layer down; a record that was made must find nothing there.
    fn sink(layer: &Layer, engine: &mut BTreeMap<Key, Vec<u8>>) {
        for (key, held) in layer.entries() {
            match held {
                Held::Set(value) => drop(engine.insert(key.clone(), value.clone())),
                Held::Made(value) => assert_eq!(engine.insert(key.clone(), value.clone()), None),
                Held::Removed => drop(engine.remove(key)),
            }
        }
    }

    fn read(
        layers: &Layers,
        engine: &BTreeMap<Key, Vec<u8>>,
        (from, to, limit): (u8, u8, usize),
    ) -> Vec<(Key, Vec<u8>)> {
        let part = layers.range(&[from], &[to], limit);
        let end = part.end.clone().unwrap_or(vec![to]);
        let below = engine.range(vec![from]..).take_while(|(key, _)| **key < end);
        part.over(below.map(|(key, value)| Ok::<_, ()>((key.clone(), value.clone()))), limit).unwrap()
    }

    proptest! {
        #[test]
        fn layers_over_an_engine_read_like_one_map(acts in acts(), from in 0_u8..12, length in 0_u8..12, limit in 1_usize..15) {
            let (mut layers, mut engine, mut model) = (Layers::default(), BTreeMap::new(), BTreeMap::new());
            let mut sinking: Option<Arc<Layer>> = None;
            for act in acts {
                match act {
                    Act::Set(key, value) => {
                        // Whoever knows that there is nothing says so.
                        let before = if model.contains_key(&vec![key]) { Before::Unknown } else { Before::Absent };
                        layers.apply(&Operation::Set(&[key], &[value]), before);
                        model.insert(vec![key], vec![value]);
                    }
                    Act::Remove(key) => {
                        layers.apply(&Operation::Remove(&[key]), Before::Unknown);
                        model.remove(&vec![key]);
                    }
                    Act::Begin if sinking.is_none() => sinking = Some(layers.begin()),
                    Act::Begin => {}
                    Act::Sunk => {
                        if let Some(layer) = sinking.take() {
                            sink(&layer, &mut engine);
                            layers.sunk();
                        }
                    }
                }
                let wanted: Vec<_> = model.range(vec![from]..vec![from.saturating_add(length)]).take(limit)
                    .map(|(key, value)| (key.clone(), value.clone())).collect();
                prop_assert_eq!(read(&layers, &engine, (from, from.saturating_add(length), limit)), wanted);
                for key in 0..12 {
                    let held = layers.get(&[key]).map(|held| held.value().cloned());
                    prop_assert_eq!(held.unwrap_or_else(|| engine.get(&vec![key]).cloned()), model.get(&vec![key]).cloned());
                }
            }
        }
    }

    #[test]
    fn what_was_made_and_removed_leaves_nothing_to_carry_down() {
        let mut layers = Layers::default();
        layers.apply(&Operation::Set(b"new", b"1"), Before::Absent);
        layers.apply(&Operation::Set(b"new", b"2"), Before::Unknown);
        layers.apply(&Operation::Set(b"old", b"1"), Before::Unknown);
        layers.apply(&Operation::Remove(b"new"), Before::Unknown);
        layers.apply(&Operation::Remove(b"old"), Before::Unknown);
        let left: Vec<_> = layers.begin().entries().map(|(key, held)| (key.clone(), held.clone())).collect();
        assert_eq!(left, [(b"old".to_vec(), Held::Removed)]);
        assert_eq!(layers.current.bytes, 0);
    }
}
