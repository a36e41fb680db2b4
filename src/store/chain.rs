//! Chained facts: each entry carries a hash over the one before it, so that a change, a removal or
//! an insertion in the past is found by whoever walks the chain.
//!
//! The committer links entries in the order of commits, so a caller names the chain and nothing
//! else. Easy to get wrong: whoever can write the store can compute a whole new chain; only a head
//! that was written down elsewhere proves that the past is the same.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::{Batch, Key, Store, StoreError, after_prefix};

/// Marks the key of a chain's head.
const HEAD: u8 = 0;
/// Marks the key of an entry.
const ENTRY: u8 = 1;
/// Octets of a hash.
const HASH_OCTETS: usize = 32;
/// Octets an entry and the head take beside the chain's name (twice) and the entry itself.
pub const LINK_OCTETS: usize = 2 * (1 + 8 + HASH_OCTETS) + 8;
/// Entries read at once while walking.
const WALK_AT_ONCE: usize = 500;

/// Where a chain stands: how many entries, and the hash of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Entries so far; also the number of the last one, counted from 1.
    pub count: u64,
    /// Its hash; zeros before the first.
    pub hash: [u8; HASH_OCTETS],
}

/// One entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its place, counted from 1.
    pub number: u64,
    /// Its hash.
    pub hash: [u8; HASH_OCTETS],
    /// What was appended.
    pub entry: Vec<u8>,
}

/// What a walk along a chain found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The last sound entry.
    pub head: Head,
    /// The first thing that is wrong, as a sentence.
    pub broken: Option<String>,
}

impl Head {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (count, hash) = bytes.split_first_chunk::<8>()?;
        Some(Self { count: u64::from_be_bytes(*count), hash: hash.try_into().ok()? })
    }

    fn to_bytes(self) -> Vec<u8> {
        [&self.count.to_be_bytes()[..], &self.hash].concat()
    }

    /// What reading the head's record gave, as a head; a record that is none is damage.
    pub fn read(stored: Option<Vec<u8>>) -> Result<Self, StoreError> {
        let Some(bytes) = stored else { return Ok(Self::default()) };
        Self::from_bytes(&bytes).ok_or_else(|| StoreError::Damaged("the head of a chain".into()))
    }
}

/// The key of a chain's head.
pub fn head_key(chain: &[u8]) -> Key {
    [chain, &[HEAD]].concat()
}

fn entry_key(chain: &[u8], number: u64) -> Key {
    [chain, &[ENTRY], &number.to_be_bytes()].concat()
}

fn hash(chain: &[u8], before: &Head, entry: &[u8]) -> [u8; HASH_OCTETS] {
    let mut hasher = Sha256::new();
    hasher.update((chain.len() as u64).to_be_bytes());
    hasher.update(chain);
    hasher.update(before.count.to_be_bytes());
    hasher.update(before.hash);
    hasher.update(entry);
    hasher.finalize().into()
}

/// Links `entry` behind `head`: the new head, and the two records to set.
pub fn link(chain: &[u8], head: &Head, entry: &[u8]) -> (Head, [(Key, Vec<u8>); 2]) {
    let next = Head { count: head.count.saturating_add(1), hash: hash(chain, head, entry) };
    let value = [&next.hash[..], entry].concat();
    (next, [(entry_key(chain, next.count), value), (head_key(chain), next.to_bytes())])
}

/// Chains as the batches seen so far will leave them.
#[derive(Default)]
pub struct Heads<'a>(HashMap<&'a [u8], Head>);

impl<'a> Heads<'a> {
    /// The records to set for what `batch` links; `stored` reads those of earlier groups.
    pub fn link<E: From<StoreError>>(
        &mut self,
        batch: &'a Batch,
        stored: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Vec<(Key, Vec<u8>)>, E> {
        let mut linked = Vec::with_capacity(2 * batch.chained.len());
        for (name, entry) in &batch.chained {
            let head = match self.0.get(name.as_slice()) {
                Some(head) => *head,
                None => Head::read(stored(&head_key(name))?)?,
            };
            let (next, records) = link(name, &head, entry);
            self.0.insert(name, next);
            linked.extend(records);
        }
        Ok(linked)
    }
}

/// Where `chain` stands now.
pub fn head(store: &dyn Store, chain: &[u8]) -> Result<Head, StoreError> {
    Head::read(store.get(&head_key(chain))?)
}

/// Up to `limit` entries with numbers below `before`, newest first. Hashes are not checked.
pub fn newest(store: &dyn Store, chain: &[u8], before: u64, limit: usize) -> Result<Vec<Link>, StoreError> {
    let first = before.saturating_sub(limit as u64).max(1);
    let (from, to) = (entry_key(chain, first), entry_key(chain, before));
    let rows = store.range(&from, &to, limit)?;
    let mut links: Vec<Link> = rows.into_iter().filter_map(|(key, value)| read(chain, &key, &value)).collect();
    links.reverse();
    Ok(links)
}

fn read(chain: &[u8], key: &[u8], value: &[u8]) -> Option<Link> {
    let number = key.strip_prefix(chain)?.strip_prefix(&[ENTRY])?.try_into().ok().map(u64::from_be_bytes)?;
    let (hash, entry) = value.split_first_chunk::<HASH_OCTETS>()?;
    Some(Link { number, hash: *hash, entry: entry.to_vec() })
}

/// Walks the whole chain and checks every link, and that it ends where the head says. `seen` is
/// called with each sound entry.
pub fn walk(store: &dyn Store, chain: &[u8], mut seen: impl FnMut(&Link)) -> Result<Walk, StoreError> {
    // The head first: what is appended meanwhile is walked too and is no fault.
    let promised = store.get(&head_key(chain))?;
    let (mut at, end) = (Head::default(), after_prefix(&[chain, &[ENTRY]].concat()));
    let mut from = entry_key(chain, 0);
    loop {
        let rows = store.range(&from, &end, WALK_AT_ONCE)?;
        let Some((last, _)) = rows.last() else { break };
        from.clone_from(last);
        from.push(0);
        for (key, value) in rows {
            let expected = at.count.saturating_add(1);
            let Some(link) = read(chain, &key, &value) else {
                return Ok(broken(at, format!("entry {expected} cannot be read")));
            };
            if link.number != expected {
                return Ok(broken(at, format!("entry {expected} is missing, the next one is {}", link.number)));
            }
            if link.hash != hash(chain, &at, &link.entry) {
                return Ok(broken(at, format!("entry {expected} is not what was written")));
            }
            at = Head { count: link.number, hash: link.hash };
            seen(&link);
        }
    }
    let head = Head::read(promised)?;
    if at.count < head.count {
        return Ok(broken(at, format!("the chain ends at {} and should have {} entries", at.count, head.count)));
    }
    if at.count > 0 && head.count == 0 {
        return Ok(broken(at, "the chain has entries and no head".to_owned()));
    }
    Ok(Walk { head: at, broken: None })
}

fn broken(head: Head, what: String) -> Walk {
    Walk { head, broken: Some(what) }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStore;
    use super::*;

    const CHAIN: &[u8] = b"xchain";

    async fn chained(entries: &[&[u8]]) -> MemoryStore {
        let store = MemoryStore::new();
        for entry in entries {
            let mut batch = Batch::new();
            batch.chain(CHAIN.to_vec(), entry.to_vec());
            store.commit(batch).await.unwrap();
        }
        store
    }

    async fn write(store: &MemoryStore, key: Key, value: Option<Vec<u8>>) {
        let mut batch = Batch::new();
        match value {
            Some(value) => batch.set(key, value),
            None => batch.remove(key),
        };
        store.commit(batch).await.unwrap();
    }

    #[tokio::test]
    async fn a_chain_nobody_touched_walks_to_its_head_and_lists_newest_first() {
        let store = chained(&[b"one", b"two", b"three"]).await;
        let mut seen = Vec::new();
        let walk = walk(&store, CHAIN, |link| seen.push(link.entry.clone())).unwrap();
        assert_eq!((walk.head, walk.broken), (head(&store, CHAIN).unwrap(), None));
        assert_eq!(seen, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let page = newest(&store, CHAIN, u64::MAX, 2).unwrap();
        assert!(page.is_empty(), "numbers end at the head: {page:?}");
        let page = newest(&store, CHAIN, 4, 2).unwrap();
        assert_eq!(page.iter().map(|link| link.number).collect::<Vec<_>>(), [3, 2]);
    }

    #[tokio::test]
    async fn a_changed_a_removed_an_inserted_and_a_cut_off_entry_are_found() {
        let entries: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];
        let found = |store: &MemoryStore| walk(store, CHAIN, |_| ()).unwrap().broken;

        let store = chained(&entries).await;
        let mut value = store.get(&entry_key(CHAIN, 2)).unwrap().unwrap();
        *value.last_mut().unwrap() ^= 1;
        write(&store, entry_key(CHAIN, 2), Some(value)).await;
        assert_eq!(found(&store).as_deref(), Some("entry 2 is not what was written"));

        let store = chained(&entries).await;
        write(&store, entry_key(CHAIN, 2), None).await;
        assert_eq!(found(&store).as_deref(), Some("entry 2 is missing, the next one is 3"));

        let store = chained(&entries).await;
        let copied = store.get(&entry_key(CHAIN, 4)).unwrap();
        write(&store, entry_key(CHAIN, 5), copied).await;
        assert_eq!(found(&store).as_deref(), Some("entry 5 is not what was written"));

        let store = chained(&entries).await;
        write(&store, entry_key(CHAIN, 4), None).await;
        assert_eq!(found(&store).as_deref(), Some("the chain ends at 3 and should have 4 entries"));
    }

    #[tokio::test]
    async fn two_chains_in_one_batch_do_not_know_of_each_other_and_one_batch_may_add_twice() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.chain(CHAIN.to_vec(), b"a".to_vec()).chain(b"xother".to_vec(), b"b".to_vec());
        batch.chain(CHAIN.to_vec(), b"c".to_vec());
        store.commit(batch).await.unwrap();
        assert_eq!(head(&store, CHAIN).unwrap().count, 2);
        assert_eq!(head(&store, b"xother").unwrap().count, 1);
        assert_eq!(walk(&store, CHAIN, |_| ()).unwrap().broken, None);
    }
}
