//! Search: which messages fit what somebody remembers of them, over an index made from the event log.
//!
//! Recipe: [`Search::open`], [`Search::run`] beside everything else, [`Search::find`] for people. There is an
//! index for each day; its folder may be removed at any time and is made again from the log. Easy to get wrong:
//! accepting mail never waits for it, so what was just accepted is found a few seconds later; and nobody is shown
//! what the index says before the history record was read, which is the one that is erased.

mod criteria;
mod day;
mod entry;
mod feed;
mod find;
mod leaving;
mod retention;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use crate::access::{Actor, Permission};
use crate::events::{Bell, EventLog, History};
use crate::ext::Timestamp;
use crate::mail::{QueueId, TenantId};
use crate::records::{self, AdminError};
use crate::store::{Batch, CommitError, StoreError};
use day::{Day, DayError};

pub use criteria::{BEGINNING_MIN, Criteria, WORDS_ASKED_MAX};
pub use entry::{Fate, REPLIES_MAX};
pub use find::{Hit, PAGE_MAX, Page};

/// The form of the index: another one is made anew.
const FORM: &str = "1";

/// How long messages can be found and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Unless a tenant has its own (15 days).
    pub kept: Duration,
    /// With less free on the disk nothing is added to the index (1 GiB: twice what new mail needs, so that the
    /// index is never what stops mail); what is to be forgotten is taken out all the same.
    pub free_bytes_min: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kept: Duration::from_secs(15 * 24 * 60 * 60), free_bytes_min: 1024 * 1024 * 1024 }
    }
}

/// Names the provider a host is of, if one is known.
pub type ProviderOf = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Forgets the histories of finished messages; says of which.
pub type Forget =
    Arc<dyn Fn(Vec<QueueId>) -> Pin<Box<dyn Future<Output = Result<Vec<QueueId>, CommitError>> + Send>> + Send + Sync>;

/// What the room is built from.
pub struct Parts {
    /// What the index is made from.
    pub log: EventLog,
    /// Rung when there is more of it.
    pub bell: Bell,
    /// Whose a receiving host is.
    pub provider_of: ProviderOf,
    /// Days a tenant has its messages kept, if it has its own word.
    pub days_kept: Arc<dyn Fn(TenantId) -> Option<u16> + Send + Sync>,
    /// Tells the time by which messages are past theirs; a value in tests.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Forgets histories.
    pub forget: Forget,
    /// How long messages are kept.
    pub settings: Settings,
}

/// How far the index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How long ago the last event happened that is in it, while there are later ones; zero if there are none.
    pub behind: Duration,
    /// It is being made from the beginning.
    pub is_rebuilding: bool,
}

/// The index of messages.
pub struct Search {
    parts: Parts,
    folder: PathBuf,
    days: RwLock<BTreeMap<String, Arc<Day>>>,
    standing: Mutex<Standing>,
    /// Somebody asked for a new index, or met damage.
    is_to_rebuild: std::sync::atomic::AtomicBool,
}

impl Search {
    /// Opens the index below `folder`, or makes an empty one if there is none that can be used. Blocks on the disk.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(parts: Parts, folder: &Path) -> io::Result<Self> {
        let own = folder.join(FORM);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // An index of another form.
            if entry.path() != own {
                fs::remove_dir_all(entry.path())?;
            }
        }
        fs::create_dir_all(&own)?;
        let search = Self {
            parts,
            folder: own,
            days: RwLock::default(),
            standing: Mutex::default(),
            is_to_rebuild: false.into(),
        };
        if let Err(error) = search.open_days() {
            tracing::warn!(%error, "the search index is made anew from the event log");
            search.wipe()?;
        }
        Ok(search)
    }

    /// How long a tenant's messages are kept.
    pub fn kept(&self, tenant: TenantId) -> Duration {
        let days = (self.parts.days_kept)(tenant);
        days.map_or(self.parts.settings.kept, |days| Duration::from_secs(u64::from(days).saturating_mul(86_400)))
    }

    /// How far it is.
    pub fn standing(&self) -> Standing {
        *records::lock(&self.standing)
    }

    /// The same because somebody asks for it.
    ///
    /// # Errors
    /// If the actor may not, or that could not be written down.
    pub async fn rebuild_for(&self, actor: &Actor, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let mut batch = Batch::new();
        records::audit(&mut batch, actor, "search.rebuild", "the index of messages", now);
        self.parts.log.store().commit(batch).await?;
        self.rebuild();
        Ok(())
    }

    /// Makes the index anew from the event log, beginning in a moment. What is not in it yet is not found.
    pub fn rebuild(&self) {
        self.is_to_rebuild.store(true, std::sync::atomic::Ordering::Release);
        self.parts.bell.ring();
    }

    /// Messages in it, and days that have an index.
    pub fn size(&self) -> (u64, u64) {
        let days = records::read(&self.days);
        let messages = days.values().fold(0, |sum: u64, day| sum.saturating_add(day.messages()));
        (messages, days.len() as u64)
    }

    fn open_days(&self) -> Result<(), DayError> {
        let failed = |error: io::Error| DayError::Failed("all days".to_owned(), error.to_string());
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                found.insert(name.clone(), Arc::new(Day::open(&name, &entry.path())?));
            }
        }
        *records::write(&self.days) = found;
        Ok(())
    }

    /// The index of a day; made if there is none.
    fn day(&self, name: &str) -> Result<Arc<Day>, DayError> {
        if let Some(day) = self.known_day(name) {
            return Ok(day);
        }
        let day = Arc::new(Day::open(name, &self.folder.join(name))?);
        records::write(&self.days).insert(name.to_owned(), Arc::clone(&day));
        Ok(day)
    }

    fn known_day(&self, name: &str) -> Option<Arc<Day>> {
        records::read(&self.days).get(name).map(Arc::clone)
    }

    /// Removes everything; first how far the index was, so that what is left by a failure is not believed.
    fn wipe(&self) -> io::Result<()> {
        records::write(&self.days).clear();
        match fs::remove_file(self.folder.join(feed::PLACE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_dir_all(&self.folder)?;
        fs::create_dir_all(&self.folder)
    }

    fn history(&self, id: QueueId) -> Result<Option<History>, StoreError> {
        let bytes = self.parts.log.store().get(&crate::events::history_key(id))?;
        let history = match bytes.map(|bytes| History::from_bytes(&bytes)).transpose() {
            // It stays damaged: the others are found.
            Err(StoreError::Damaged(_)) => None,
            read => read?,
        };
        Ok(history.filter(|history| !is_erased(history)))
    }
}

/// As `queue` writes it over an address.
const ERASED_DOMAIN: &str = "erased.invalid";

fn is_erased(history: &History) -> bool {
    !history.recipients.is_empty() && history.recipients.iter().all(|to| to.domain().as_str() == ERASED_DOMAIN)
}

/// The day, in UTC, that a message's id was made on.
fn day_of(id: QueueId) -> String {
    let octets = id.0.first_chunk::<6>().copied().unwrap_or_default();
    day_at(Timestamp(octets.iter().fold(0, |millis, octet| (millis << 8) | u64::from(*octet))))
}

fn day_at(at: Timestamp) -> String {
    let mut text = at.rfc3339();
    text.truncate(10);
    text
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;
