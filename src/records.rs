//! What the rooms of records share: reading all of a kind at open, changing one at a time, and
//! the errors of administrative acts.
//!
//! Recipe: `load` at open; for a change take a [`Turn`], decide, build a batch with `audit` in it,
//! `commit` with the change of memory as its second half. Easy to get wrong: a caller may go away
//! between commit and memory, so both run in a task of their own.

mod audit;

pub use audit::{Act, Audit, AuditEntry, Difference, Numbered, Verified, pseudonym, record};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::de::DeserializeOwned;
use tokio::sync::OwnedMutexGuard;

use crate::access::{Actor, Forbidden};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::store::{Batch, CommitError, Key, Store, StoreError, after_prefix, codec};

/// Why an administrative act was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Not permitted.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such record.
    #[error("there is no {0}")]
    Missing(String),
    /// A record of that name is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// A value is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Fields that were given are not acceptable.
    #[error("{}", sentences(.0))]
    Fields(Vec<WrongField>),
    /// The records could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A field that was given and is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongField {
    /// Its path, as the API calls it: `region`, `allowed_from`.
    pub field: String,
    /// A sentence that says what is wrong.
    pub detail: String,
}

impl AdminError {
    /// One field is not acceptable.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Fields(vec![WrongField { field: field.into(), detail: detail.into() }])
    }
}

/// Tells everything that is wrong with some fields at once; an error that is about no field goes first.
///
/// # Errors
/// If any of the checks says so.
pub fn all_of(checks: impl IntoIterator<Item = Result<(), AdminError>>) -> Result<(), AdminError> {
    let mut wrong = Vec::new();
    for check in checks {
        match check {
            Ok(()) => {}
            Err(AdminError::Fields(fields)) => wrong.extend(fields),
            Err(other) => return Err(other),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(AdminError::Fields(wrong)) }
}

fn sentences(wrong: &[WrongField]) -> String {
    let details: Vec<&str> = wrong.iter().map(|wrong| wrong.detail.as_str()).collect();
    details.join("; ")
}

/// A record that could not be read at open. It stays in the store, untouched and unused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its key, printable.
    pub key: String,
    /// What is wrong with it.
    pub detail: String,
}

/// Every record of a kind with its key, and those that could not be read.
pub type Loaded<T> = (Vec<(Key, T)>, Vec<Damage>);

/// Records read at a time at open.
const LOAD_PAGE: usize = 1000;

/// Reads every record under `prefix`; one that does not decode is set aside, logged and returned
/// in the second list, and never stops the others.
pub fn load<T: DeserializeOwned>(store: &dyn Store, prefix: &[u8]) -> Result<Loaded<T>, StoreError> {
    load_with(store, prefix, codec::decode)
}

/// The same for records that `read` knows how to read, such as those whose shape has changed.
pub fn load_with<T>(
    store: &dyn Store,
    prefix: &[u8],
    read: impl Fn(&[u8]) -> Result<T, StoreError>,
) -> Result<Loaded<T>, StoreError> {
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    let (mut from, to) = (prefix.to_vec(), after_prefix(prefix));
    loop {
        let page = store.range(&from, &to, LOAD_PAGE)?;
        let Some((last, _)) = page.last() else { return Ok((records, damaged)) };
        from.clone_from(last);
        from.push(0);
        for (key, value) in page {
            match read(&value) {
                Ok(record) => records.push((key, record)),
                Err(error) => damaged.push(set_aside(&key, &error.to_string())),
            }
        }
    }
}

/// Logs a record that cannot be used and describes it.
pub fn set_aside(key: &[u8], detail: &str) -> Damage {
    let damage = Damage { key: key.escape_ascii().to_string(), detail: detail.to_owned() };
    tracing::error!(key = damage.key, detail, "a stored record cannot be read and is set aside");
    damage
}

/// Writes one `RecordDamaged` event for each.
pub async fn report(store: &dyn Store, damaged: &[Damage], now: Timestamp) -> Result<(), CommitError> {
    if damaged.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for Damage { key, detail } in damaged {
        let told = InstanceEvent::RecordDamaged { key: key.clone(), detail: detail.clone() };
        events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
    }
    store.commit(batch).await
}

/// Puts an act on something of the instance into its batch; [`record`] says more.
pub fn audit(batch: &mut Batch, actor: &Actor, act: &str, subject: impl Into<String>, now: Timestamp) {
    record(batch, actor, Act::new(act, subject), now);
}

/// Where a room's changes queue up: one at a time, so that each decides on the state it changes.
pub struct Desk {
    store: Arc<dyn Store>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Desk {
    /// A desk over `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, turn: Arc::default() }
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Waits until no other change is under way.
    pub async fn turn(&self) -> Turn {
        Turn { store: Arc::clone(&self.store), guard: Arc::clone(&self.turn).lock_owned().await }
    }
}

/// The right to change a room's records.
pub struct Turn {
    store: Arc<dyn Store>,
    guard: OwnedMutexGuard<()>,
}

impl Turn {
    /// Commits `batch`, then calls `remember` to change what is in memory. Both happen, or
    /// neither, even if the caller is dropped meanwhile.
    pub async fn commit(self, batch: Batch, remember: impl FnOnce() + Send + 'static) -> Result<(), CommitError> {
        let task = tokio::spawn(async move {
            let committed = self.store.commit(batch).await;
            if committed.is_ok() {
                remember();
            }
            drop(self.guard);
            committed
        });
        task.await.unwrap_or_else(|error| Err(CommitError::Failed(error.to_string())))
    }
}

/// Reads a lock. A panic elsewhere does not make what it guards unreadable: records are changed by whole values.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a lock; see [`read`].
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a mutex; see [`read`].
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
