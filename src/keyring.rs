//! Changing the master key: every sealed value under a new one, and no moment at which the daemon could not start.
//!
//! Recipe, in this order, each step as often as it takes: [`reseal`] under the store's lock; put the key it
//! returns in the place of the old one's file; [`forget`] under the store's lock. At every start
//! [`with_other`] is asked. Easy to get wrong: between the first step and the last both keys are needed and
//! only one has a file. The *crossing*, a record that holds each key sealed under the other, gives the one
//! who has either of them both.

use serde::{Deserialize, Serialize};

use crate::records::AdminError;
use crate::seal::{MasterKey, SealError};
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};
use crate::{domains, feedback, people, routing, webhooks};

/// Each key, sealed under the other.
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
#[derive(Serialize, Deserialize)]
pub struct Crossing {
    new_by_old: Vec<u8>,
    old_by_new: Vec<u8>,
}

/// What the keys in a crossing are sealed as.
const NEW: &str = "the next master key";
const OLD: &str = "the last master key";

/// Why the key was not changed, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The key is neither of the two that a change was between.
    #[error(
        "a change of the master key was not finished, and the key file holds neither the old key nor the new one; \
         put one of them back"
    )]
    Stranger,
    /// The records could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A record of sealed values could not be changed.
    #[error(transparent)]
    Record(#[from] AdminError),
    /// A key could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Values that open under neither key.
    #[error("{} sealed values do not open under the new key ({}); nothing was forgotten", .0.len(), .0.join("; "))]
    Unopened(Vec<String>),
}

/// What resealing did.
#[derive(Debug)]
pub struct Resealed {
    /// The key to put in the old one's place; the same one if that was done already.
    pub new: MasterKey,
    /// Values sealed under it now, by this run.
    pub values: u64,
    /// Values that open under neither key, and did not before: named, and left as they are.
    pub unopened: Vec<String>,
}

/// Which side of a change a key is on.
enum Side {
    /// No change is under way.
    None,
    /// It is the old one; this is the new one.
    Old(MasterKey),
    /// It is the new one; this is the old one.
    New(MasterKey),
}

fn key() -> Key {
    vec![prefix::KEYRING, b'c']
}

fn side(store: &dyn Store, mine: &MasterKey) -> Result<Side, KeyringError> {
    let Some(bytes) = store.get(&key())? else { return Ok(Side::None) };
    let crossing: Crossing = codec::decode(&bytes)?;
    if let Ok(new) = mine.unwrap_key(NEW, &crossing.new_by_old) {
        return Ok(Side::Old(new));
    }
    mine.unwrap_key(OLD, &crossing.old_by_new).map(Side::New).map_err(|_| KeyringError::Stranger)
}

/// The key to work with: `mine`, and while a change is under way the other one beside it. It seals
/// under the new one as soon as there is one.
pub fn with_other(store: &dyn Store, mine: MasterKey) -> Result<MasterKey, KeyringError> {
    Ok(match side(store, &mine)? {
        Side::None => mine,
        Side::Old(new) => new.with_other(&mine),
        Side::New(old) => mine.with_other(&old),
    })
}

/// Seals every value under a new key, or goes on where an earlier run was interrupted.
pub async fn reseal(store: &dyn Store, mine: &MasterKey) -> Result<Resealed, KeyringError> {
    let (new, both) = match side(store, mine)? {
        Side::None => {
            let new = MasterKey::random();
            let crossing = Crossing { new_by_old: mine.wrap(NEW, &new), old_by_new: new.wrap(OLD, mine) };
            let mut batch = Batch::new();
            // Before anything is sealed under a key that has no file.
            batch.if_absent(key()).set(key(), codec::encode(&crossing));
            store.commit(batch).await?;
            (new.clone(), new.with_other(mine))
        }
        Side::Old(new) => (new.clone(), new.with_other(mine)),
        Side::New(old) => (mine.clone(), mine.clone().with_other(&old)),
    };
    let (values, unopened) = reseal_all(store, &new, &both).await?;
    Ok(Resealed { new, values, unopened })
}

/// Every room that seals. `tidy` knows them too: one that is missing here would lose its secrets.
async fn reseal_all(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), KeyringError> {
    let (mut values, mut unopened) = (0, Vec::new());
    let parts = [
        domains::reseal(store, new, both).await?,
        routing::reseal(store, new, both).await?,
        people::reseal(store, new, both).await?,
        webhooks::reseal(store, new, both).await?,
        feedback::reseal(store, new, both).await?,
    ];
    for part in parts {
        values += part.0;
        unopened.extend(part.1);
    }
    Ok((values, unopened))
}

/// Ends a change: `mine` must be the new key, and every value that opened must open under it alone.
/// After this the old key opens nothing any more.
pub async fn forget(store: &dyn Store, mine: &MasterKey) -> Result<(), KeyringError> {
    let old = match side(store, mine)? {
        Side::None => return Ok(()),
        Side::Old(_) => return Err(KeyringError::Unopened(vec!["the key file still holds the old key".to_owned()])),
        Side::New(old) => old,
    };
    // Whatever a daemon sealed between the steps was sealed under the new key, and this finds nothing.
    let both = mine.clone().with_other(&old);
    let (values, _) = reseal_all(store, mine, &both).await?;
    if values > 0 {
        tracing::info!(values, "values were still sealed under the old master key");
    }
    let mut batch = Batch::new();
    batch.remove(key());
    Ok(store.commit(batch).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Actor;
    use crate::ext::Timestamp;
    use crate::routing::{NewRoute, RelayTls, RouteScope, Routes};
    use crate::store::MemoryStore;
    use std::sync::Arc;
    use zeroize::Zeroizing;

    const NOW: Timestamp = Timestamp(1_795_342_500_000);

    /// A store with sealed passwords of relays, and the key's two octets that make it.
    async fn sealed(count: u32) -> (Arc<MemoryStore>, MasterKey) {
        let (store, mine) = (Arc::new(MemoryStore::new()), MasterKey::from_bytes([7; 32]));
        let routes = Routes::open(store.clone(), Arc::new(mine.clone())).unwrap();
        for number in 0..count {
            let to = crate::mail::Domain::parse(&format!("d{number}.example")).unwrap();
            let login = Some(("user".to_owned(), Zeroizing::new(format!("password {number}"))));
            let scope = RouteScope::RecipientDomain(to);
            let new = NewRoute { scope, host: "relay.example".into(), port: 587, tls: RelayTls::Starttls, login };
            routes.add(&Actor::local(0), new, NOW).await.unwrap();
        }
        (store, mine)
    }

    fn readable(store: &Arc<MemoryStore>, mine: &MasterKey) -> usize {
        let key = with_other(&**store, mine.clone()).unwrap();
        let routes = Routes::open(store.clone(), Arc::new(key)).unwrap();
        let all = routes.table();
        all.routes.iter().filter(|route| routes.login(route).is_some()).count()
    }

    #[tokio::test]
    async fn at_every_point_of_a_change_whoever_has_the_file_opens_everything() {
        let (store, old) = sealed(250).await;
        let mut commits_before = 0;
        loop {
            // The next run is cut off one commit later than the last one.
            let cut = commits_before;
            let (again, old_again) = (MemoryStoreCut::over(store.clone(), cut), old.clone());
            let done = reseal(&again, &old_again).await;
            assert_eq!(readable(&store, &old), 250, "cut after {cut} commits");
            commits_before += 1;
            if let Ok(done) = done {
                assert!(done.unopened.is_empty());
                // The file changes between two starts, and both find everything.
                assert_eq!(readable(&store, &old), 250);
                assert_eq!(readable(&store, &done.new), 250);
                assert!(matches!(forget(&*store, &old).await, Err(KeyringError::Unopened(_))), "too early");
                forget(&*store, &done.new).await.unwrap();
                forget(&*store, &done.new).await.unwrap();
                assert_eq!(readable(&store, &done.new), 250);
                assert_eq!(readable(&store, &old), 0, "the old key opens nothing any more");
                break;
            }
        }
        assert!(commits_before > 3, "several commits were cut off");
    }

    #[tokio::test]
    async fn a_key_of_neither_side_is_told_apart_and_changes_nothing() {
        let (store, old) = sealed(2).await;
        let done = reseal(&*store, &old).await.unwrap();
        let stranger = MasterKey::from_bytes([9; 32]);
        assert!(matches!(with_other(&*store, stranger.clone()), Err(KeyringError::Stranger)));
        assert!(matches!(reseal(&*store, &stranger).await, Err(KeyringError::Stranger)));
        assert_eq!(readable(&store, &done.new), 2);
    }

    /// A store that takes so many commits, then fails: a process killed there.
    struct MemoryStoreCut {
        inner: Arc<MemoryStore>,
        left: std::sync::atomic::AtomicUsize,
    }

    impl MemoryStoreCut {
        fn over(inner: Arc<MemoryStore>, commits: usize) -> Self {
            Self { inner, left: commits.into() }
        }
    }

    #[async_trait::async_trait]
    impl Store for MemoryStoreCut {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.inner.get(key)
        }
        fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
            self.inner.range(from, to, limit)
        }
        async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
            use std::sync::atomic::Ordering::{AcqRel, Acquire};
            if self.left.fetch_update(AcqRel, Acquire, |left| left.checked_sub(1)).is_err() {
                return Err(CommitError::Stopped("cut".into()));
            }
            self.inner.commit(batch).await
        }
        fn health(&self) -> crate::store::Health {
            self.inner.health()
        }
        fn sharing(&self) -> crate::store::Sharing {
            self.inner.sharing()
        }
    }
}
