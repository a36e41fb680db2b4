//! postern: the keys and values of a leaf, in order, in as much memory as they
//! need.
//!
//! Upstream's `StackMap` has room for `LEAF_FANOUT` pairs in every leaf,
//! however few there are, and what they take beside that was counted by no one:
//! the cache held several times of what it was given. The stored form is the
//! same.

use std::fmt;
use std::mem;

use inline_array::InlineArray;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Pair = (InlineArray, InlineArray);

/// Bytes that an array holds without an allocation.
const INLINE_BYTES_MAX: usize = 7;
/// What an array's own header and the allocator's add at most.
const ALLOCATION_BYTES: usize = 8 + 8;
/// What allocations are rounded up to.
const ALLOCATION_UNIT: usize = 16;
/// Pairs for which room is made before they are there: a stored length may be
/// damaged.
const TRUSTED_PAIRS_MAX: usize = 1024;

#[derive(Debug, Clone, Default)]
pub(crate) struct LeafMap {
    pairs: Vec<Pair>,
    /// Of all keys and values, outside of `pairs`.
    allocated: usize,
}

/// Bytes of memory of an array, outside of itself.
pub(crate) fn allocated(array: &InlineArray) -> usize {
    match array.len() {
        0..=INLINE_BYTES_MAX => 0,
        length => (length + ALLOCATION_BYTES).next_multiple_of(ALLOCATION_UNIT),
    }
}

impl LeafMap {
    /// Bytes of memory, without the map itself.
    pub(crate) fn memory(&self) -> usize {
        self.pairs.capacity() * mem::size_of::<Pair>() + self.allocated
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(crate) fn iter(
        &self,
    ) -> impl DoubleEndedIterator<Item = (&InlineArray, &InlineArray)> {
        self.pairs.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn first(&self) -> Option<&Pair> {
        self.pairs.first()
    }

    pub(crate) fn last(&self) -> Option<&Pair> {
        self.pairs.last()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&InlineArray> {
        let index = self.search(key).ok()?;
        Some(&self.pairs[index].1)
    }

    pub(crate) fn insert(
        &mut self,
        key: InlineArray,
        value: InlineArray,
    ) -> Option<InlineArray> {
        self.allocated += allocated(&value);
        match self.search(&key) {
            Ok(index) => {
                let old = mem::replace(&mut self.pairs[index].1, value);
                self.allocated -= allocated(&old);
                Some(old)
            }
            Err(index) => {
                self.allocated += allocated(&key);
                self.pairs.insert(index, (key, value));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<InlineArray> {
        let index = self.search(key).ok()?;
        let (key, value) = self.pairs.remove(index);
        self.allocated -= allocated(&key) + allocated(&value);
        Some(value)
    }

    /// Keeps the pairs before `index`; gives those from there on.
    pub(crate) fn split_off(&mut self, index: usize) -> Self {
        let mut right = Self::from(self.pairs.split_off(index));
        self.pairs.shrink_to_fit();
        right.pairs.shrink_to_fit();
        self.allocated -= right.allocated;
        right
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        // most keys come in order
        match self.pairs.last() {
            Some((last, _)) if last[..] < *key => Err(self.pairs.len()),
            _ => self.pairs.binary_search_by(|(held, _)| held[..].cmp(key)),
        }
    }
}

impl From<Vec<Pair>> for LeafMap {
    fn from(pairs: Vec<Pair>) -> Self {
        let of = |(key, value): &Pair| allocated(key) + allocated(value);
        let allocated = pairs.iter().map(of).sum();
        Self { pairs, allocated }
    }
}

impl Serialize for LeafMap {
    fn serialize<S: Serializer>(
        &self,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for LeafMap {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = LeafMap;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the keys and values of a leaf")
    }

    fn visit_map<M: MapAccess<'de>>(
        self,
        mut access: M,
    ) -> Result<Self::Value, M::Error> {
        let expected = access.size_hint().unwrap_or(0).min(TRUSTED_PAIRS_MAX);
        let mut map = LeafMap {
            pairs: Vec::with_capacity(expected),
            allocated: 0,
        };
        while let Some((key, value)) = access.next_entry()? {
            map.insert(key, value);
        }
        Ok(map)
    }
}
