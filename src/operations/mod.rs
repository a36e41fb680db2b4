//! Work that takes longer than a request: imports and exports of lists, exports of whole tenants. Each is a durable record with
//! progress, files for what comes in and goes out, and can be cancelled; one is carried out at a time.
//!
//! Recipe: [`Operations::upload`] or [`Operations::export`] begins one; [`Operations::run`] carries them out,
//! goes on after a restart where it stopped, and forgets old ones. Easy to get wrong: progress is in the batch
//! of the entries it tells of, so that a crash neither repeats nor skips lines.

mod csv;
mod export;
mod import;
mod record;
mod tenant;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::access::{Actor, Permission, Resource, Role};
use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId};
use crate::records::{self, Act, AdminError, Damage};
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};
use crate::suppression::{Place, Suppression};

pub use csv::write_line as csv_line;
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use csv::{LINE_OCTETS_MAX, Line, cells, next_line, separator as csv_separator};
#[doc(hidden)]
pub use import::{Columns as ImportColumns, LINES_AT_ONCE, Lines as ImportLines};
pub use import::{IMPORT_BYTES_MAX, Upload};
pub use record::{Form, KIND_WORDS, Kind, Operation, OperationId, STATE_WORDS, State};
pub use tenant::Lines;

/// Operations of one tenant that are not finished, files on their way in included, at most.
pub const UNFINISHED_MAX: usize = 4;
/// Whoever met that ceiling may ask again after this, in seconds.
pub const ROOM_AGAIN_SECS: u64 = 30;
/// Finished operations of one tenant that are kept, at most.
pub const FINISHED_MAX: usize = 50;
/// How long a finished operation and its files are kept.
pub const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How often old ones are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// Pause before a commit that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

type Name = (TenantId, OperationId);

/// Everything under way, and what was.
pub struct Operations {
    store: Arc<dyn Store>,
    suppression: Arc<Suppression>,
    folder: PathBuf,
    all: Mutex<BTreeMap<Name, Operation>>,
    cancelled: Mutex<HashSet<Name>>,
    coming: import::Coming,
    nudge: Notify,
    lines: OnceLock<Lines>,
    damaged: Vec<Damage>,
    calendar: Calendar,
}

/// Which file of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What came in.
    Input,
    /// What was made.
    Result,
    /// Lines that were rejected.
    Rejected,
}

/// Which operations are looked for; each part that is there must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whose; `None` is everybody's, for the instance's own people.
    pub tenant: Option<TenantId>,
    /// One of [`KIND_WORDS`].
    pub kind: Option<&'static str>,
    /// One of [`STATE_WORDS`].
    pub state: Option<&'static str>,
    /// In any case, part of: its id, who began it, the SMTP account, why it failed.
    pub text: Option<String>,
}

impl Wanted {
    fn fits(&self, operation: &Operation, account: Option<String>) -> bool {
        let why = if let State::Failed(why) = &operation.state { why.as_str() } else { "" };
        let holds = |text: &String| {
            let text = text.to_lowercase();
            let parts = [operation.id.to_string(), operation.by.clone(), account.unwrap_or_default(), why.to_owned()];
            parts.iter().any(|part| part.to_lowercase().contains(&text))
        };
        self.tenant.is_none_or(|tenant| operation.tenant == tenant)
            && self.kind.is_none_or(|kind| operation.kind.word() == kind)
            && self.state.is_none_or(|state| operation.state.word() == state)
            && self.text.as_ref().is_none_or(holds)
    }
}

/// How carrying one out ended.
enum Ended {
    Done,
    Cancelled,
    /// The daemon stops: it goes on at the next start.
    Stopped,
}

impl Operations {
    /// Reads the records; files in `folder` that belong to none are removed.
    pub fn open(store: Arc<dyn Store>, suppression: Arc<Suppression>, folder: &Path) -> Result<Self, StoreError> {
        let (records, damaged) = records::load::<Operation>(&*store, &[prefix::OPERATION])?;
        let all: BTreeMap<Name, Operation> =
            records.into_iter().map(|(_, operation)| ((operation.tenant, operation.id), operation)).collect();
        let known: HashSet<String> = all.values().map(|operation| operation.id.to_string()).collect();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.split('.').next().is_none_or(|id| !known.contains(id)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let (all, cancelled, coming) = (Mutex::new(all), Mutex::default(), import::Coming::default());
        let (folder, nudge, lines) = (folder.to_owned(), Notify::new(), OnceLock::new());
        let calendar = Calendar::default();
        Ok(Self { store, suppression, folder, all, cancelled, coming, nudge, lines, damaged, calendar })
    }

    /// The same, forgetting by this calendar.
    #[must_use]
    pub fn with_calendar(mut self, calendar: Calendar) -> Self {
        self.calendar = calendar;
        self
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Operations of a tenant, or of all, newest first, as far as the actor has a part in their lists. `called` is
    /// what people call an SMTP account.
    pub fn list(
        &self,
        actor: &Actor,
        wanted: &Wanted,
        called: impl Fn(SmtpAccountId) -> String,
    ) -> Result<Vec<Operation>, AdminError> {
        actor.require_undivided(match wanted.tenant {
            Some(tenant) => Permission::Read(Resource::Suppressions, tenant),
            None => Permission::ReadInstance,
        })?;
        let fits = |operation: &&Operation| {
            has_part(actor, operation) && wanted.fits(operation, operation.account.map(&called))
        };
        let mut found: Vec<Operation> = records::lock(&self.all).values().filter(fits).cloned().collect();
        found.sort_by_key(|operation| std::cmp::Reverse(operation.id));
        Ok(found)
    }

    /// One of them. One whose list the actor has no part in does not exist.
    pub fn get(&self, actor: &Actor, tenant: TenantId, id: OperationId) -> Result<Operation, AdminError> {
        actor.require_undivided(Permission::Read(Resource::Suppressions, tenant))?;
        let found = records::lock(&self.all).get(&(tenant, id)).cloned();
        found
            .filter(|operation| has_part(actor, operation))
            .ok_or_else(|| AdminError::Missing(format!("operation {id}")))
    }

    /// A file of a finished operation, if it has one. That of a whole tenant is a dangerous thing to have.
    pub fn file(
        &self,
        actor: &Actor,
        (tenant, id): (TenantId, OperationId),
        part: Part,
        now: Timestamp,
    ) -> Result<PathBuf, AdminError> {
        let operation = self.get(actor, tenant, id)?;
        if operation.kind == Kind::Tenant {
            tenant::require_all(actor, tenant, now)?;
        }
        let path = self.path(id, part);
        if !operation.state.is_finished() || !path.exists() {
            return Err(AdminError::Missing(format!("such file of operation {id}, or not yet")));
        }
        Ok(path)
    }

    /// Stops one that is not finished; what it did stays.
    pub async fn cancel(
        &self,
        actor: &Actor,
        tenant: TenantId,
        id: OperationId,
        now: Timestamp,
    ) -> Result<Operation, AdminError> {
        let permission = Permission::Write(Resource::Suppressions, tenant);
        actor.require_undivided(permission)?;
        let operation = self.get(actor, tenant, id)?;
        actor.require_part(permission, operation.account)?;
        if operation.state.is_finished() {
            return Err(AdminError::Invalid(format!("operation {id} is finished")));
        }
        let mut batch = Batch::new();
        records::record(&mut batch, actor, Act::new("operation.cancel", id.to_string()).of(tenant), now);
        self.store.commit(batch).await?;
        records::lock(&self.cancelled).insert((tenant, id));
        self.nudge.notify_one();
        Ok(operation)
    }

    /// Removes the records and files of a tenant that is deleted. One that is under way is cancelled first, and
    /// its removal is to be asked for again.
    pub async fn forget_tenant(&self, actor: &Actor, tenant: TenantId) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let (mut gone, mut is_busy) = (Vec::new(), false);
        {
            let all = records::lock(&self.all);
            for (name, operation) in all.iter().filter(|(name, _)| name.0 == tenant) {
                if operation.state.is_finished() {
                    gone.push((*name, operation.key()));
                } else {
                    is_busy = true;
                    records::lock(&self.cancelled).insert(*name);
                }
            }
        }
        if is_busy {
            self.nudge.notify_one();
            return Err(AdminError::Invalid("an operation of the tenant is under way and being cancelled".into()));
        }
        self.remove(gone).await.map_err(AdminError::from)
    }

    /// Begins an export of a list.
    pub async fn export(
        &self,
        actor: &Actor,
        place: Place,
        form: Form,
        now: Timestamp,
    ) -> Result<Operation, AdminError> {
        // Reading a list is reading it whole; but somebody's addresses leave, so it is written down who asked.
        self.suppression.list(actor, place, None, 1)?;
        actor.require_fresh(now)?;
        self.room_for(place.tenant, 0)?;
        let operation = Operation::new(OperationId::new(now), place, Kind::Export { form }, (actor, now));
        self.begin(actor, operation, now).await
    }

    /// How many of a tenant are not finished.
    pub fn unfinished_of(&self, tenant: TenantId) -> usize {
        let all = records::lock(&self.all);
        all.values().filter(|own| own.tenant == tenant && !own.state.is_finished()).count()
    }

    /// Whether a tenant may begin another one; `own` of the files on their way in are the asker's.
    fn room_for(&self, tenant: TenantId, own: usize) -> Result<(), AdminError> {
        let coming = records::lock(&self.coming).get(&tenant).copied().unwrap_or_default().saturating_sub(own);
        if self.unfinished_of(tenant).saturating_add(coming) < UNFINISHED_MAX {
            return Ok(());
        }
        let detail = format!("{UNFINISHED_MAX} operations are under way; wait for one, or cancel it");
        Err(AdminError::Full(detail, ROOM_AGAIN_SECS))
    }

    async fn begin(&self, actor: &Actor, operation: Operation, now: Timestamp) -> Result<Operation, AdminError> {
        let act = Act::new(format!("operation.begin {}", operation.kind.word()), operation.id.to_string());
        let mut batch = Batch::new();
        batch.if_absent(operation.key()).set(operation.key(), codec::encode(&operation));
        records::record(&mut batch, actor, act.of(operation.tenant), now);
        self.store.commit(batch).await?;
        records::lock(&self.all).insert((operation.tenant, operation.id), operation.clone());
        self.nudge.notify_one();
        Ok(operation)
    }

    /// Carries operations out until `shutdown`, oldest first; what is under way then goes on at the next start.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        let mut forgotten = None::<Instant>;
        loop {
            if forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
                forgotten = Some(Instant::now());
                self.forget(self.calendar.cap(Timestamp::now())).await;
            }
            let next = {
                let all = records::lock(&self.all);
                let waiting = all.values().filter(|operation| !operation.state.is_finished());
                waiting.min_by_key(|operation| (operation.began, operation.id)).cloned()
            };
            if let (Some(operation), false) = (next, shutdown.is_cancelled()) {
                self.carry_out(operation, &shutdown).await;
            } else {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.nudge.notified() => {}
                    () = tokio::time::sleep(FORGET_EVERY) => {}
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    async fn carry_out(self: &Arc<Self>, operation: Operation, shutdown: &Shutdown) {
        let (own, stop, handle) = (Arc::clone(self), shutdown.clone(), tokio::runtime::Handle::current());
        let name = (operation.tenant, operation.id);
        let work = tokio::task::spawn_blocking(move || {
            let mut operation = operation;
            operation.state = State::Running;
            let ended = match operation.kind.clone() {
                Kind::Import { reason } => own.import(&mut operation, reason, (&handle, &stop)),
                Kind::Export { form } => own.export_all(&mut operation, form, (&handle, &stop)),
                Kind::Tenant => own.write_tenant(&mut operation, (&handle, &stop)),
            };
            (operation, ended)
        });
        let (mut operation, ended) = match work.await {
            Ok(ended) => ended,
            Err(error) => {
                let Some(operation) = records::lock(&self.all).get(&name).cloned() else { return };
                (operation, Err(io::Error::other(error)))
            }
        };
        operation.state = match ended {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Done) => State::Done,
            Ok(Ended::Cancelled) => State::Cancelled,
            Err(error) => {
                tracing::error!(operation = %operation.id, %error, "an operation failed");
                State::Failed(error.to_string())
            }
        };
        self.finish(operation, shutdown).await;
    }

    /// Writes down how it ended, with one entry in the audit log for all it did.
    async fn finish(&self, mut operation: Operation, shutdown: &Shutdown) {
        let now = Timestamp::now();
        operation.finished = Some(now);
        let by = Actor::of(operation.by.clone(), Role::InstanceAdmin);
        loop {
            let shown = format!("{} {}", operation.id, operation.state.word());
            let act = match operation.kind {
                Kind::Tenant => Act::new("tenant.export", shown),
                Kind::Import { .. } | Kind::Export { .. } => {
                    Act::new(format!("suppression.{}", operation.kind.word()), shown)
                }
            };
            let act = act.of(operation.tenant);
            let act = act.counted(operation.added.max(operation.written), operation.input);
            let mut batch = Batch::new();
            batch.set(operation.key(), codec::encode(&operation));
            records::record(&mut batch, &by, act, now);
            match self.store.commit(batch).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "the end of an operation could not be written down yet"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
        let name = (operation.tenant, operation.id);
        records::lock(&self.cancelled).remove(&name);
        let _ = fs::remove_file(self.path(operation.id, Part::Input));
        records::lock(&self.all).insert(name, operation);
    }

    /// Removes what has been finished for long, and the oldest of too many.
    async fn forget(&self, now: Timestamp) {
        let mut gone = Vec::new();
        {
            let all = records::lock(&self.all);
            let mut kept: BTreeMap<TenantId, usize> = BTreeMap::new();
            for (name, operation) in all.iter().rev() {
                let Some(finished) = operation.finished else { continue };
                let count = kept.entry(operation.tenant).or_default();
                *count = count.saturating_add(1);
                if *count > FINISHED_MAX || now.since(finished) > KEPT {
                    gone.push((*name, operation.key()));
                }
            }
        }
        if let Err(error) = self.remove(gone).await {
            tracing::warn!(%error, "old operations could not be removed");
        }
    }

    /// Removes records and their files.
    async fn remove(&self, gone: Vec<(Name, Key)>) -> Result<(), CommitError> {
        for (name, key) in gone {
            let mut batch = Batch::new();
            batch.remove(key);
            self.store.commit(batch).await?;
            records::lock(&self.all).remove(&name);
            for part in [Part::Input, Part::Result, Part::Rejected] {
                let _ = fs::remove_file(self.path(name.1, part));
            }
        }
        Ok(())
    }

    fn is_cancelled(&self, operation: &Operation) -> bool {
        records::lock(&self.cancelled).contains(&(operation.tenant, operation.id))
    }

    /// Shows progress that is durable, or not worth being.
    fn show(&self, operation: &Operation) {
        records::lock(&self.all).insert((operation.tenant, operation.id), operation.clone());
    }

    fn path(&self, id: OperationId, part: Part) -> PathBuf {
        let ending = match part {
            Part::Input => "in",
            Part::Result => "out",
            Part::Rejected => "rejected",
        };
        self.folder.join(format!("{id}.{ending}"))
    }
}

fn has_part(actor: &Actor, operation: &Operation) -> bool {
    actor.require_part(Permission::Read(Resource::Suppressions, operation.tenant), operation.account).is_ok()
}

#[cfg(test)]
mod tests;
