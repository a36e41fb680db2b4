//! Keeps the index up with the event log, on a thread of its own with low priority.
//!
//! How far it came is in a file beside the index, written after the index was; what a crash leaves between is
//! read again, which changes nothing. Easy to get wrong: nothing here may slow mail, so events are read behind
//! it, never held back, and not at all while the disk is nearly full.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::day::{DayError, Writer};
use super::{Fate, Search, Standing, day_of};
use crate::background::Shutdown;
use crate::events::{ERASE_ACT, Event, EventKind, EventLog, MailEvent, Reader};
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::metrics;
use crate::records;
use crate::store::{Health, Key, StoreError, codec};

/// Events read at once.
const PAGE_EVENTS: usize = 2_048;
/// Messages gathered before the index is written, at most.
const GATHERED_MAX: usize = 20_000;
/// Recipients of them, at most.
const GATHERED_RECIPIENTS_MAX: usize = 200_000;
/// While there is more to read, the index is written so often.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// When there is not, what was gathered waits so long for company.
const COMPANY: Duration = Duration::from_secs(1);
/// Look again after this, even without a ring of the bell.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// Pauses after a failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A thread that fell is begun again after this.
const FALLEN_PAUSE: Duration = Duration::from_secs(30);
/// How often messages past their time are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// Added to the thread's nice value.
const NICE: i32 = 10;
/// Names the file that says how far the index is.
pub(super) const PLACE: &str = "place";
/// Begins the names of files that say: something was erased from that day and may still be on the disk.
pub(super) const PURGE: &str = "purge-";

/// What a thread holds between steps.
pub(super) struct Work {
    reader: Reader,
    gathered: HashMap<QueueId, Fate>,
    gathered_recipients: usize,
    erased: HashSet<QueueId>,
    /// Of the newest day, which is written again and again.
    pub(super) writer: Option<(String, Writer)>,
    written: Instant,
    forgotten: Option<Instant>,
    last_at: Timestamp,
}

/// Why a step failed.
pub(super) enum Failure {
    Day(DayError),
    Other(String),
}

impl From<DayError> for Failure {
    fn from(error: DayError) -> Self {
        Self::Day(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Day(error) => error.fmt(formatter),
            Self::Other(error) => formatter.write_str(error),
        }
    }
}

impl Search {
    /// Keeps the index up until `shutdown`; a thread that fell is begun again.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        while !shutdown.is_cancelled() {
            let (own, stop, handle) = (Arc::clone(&self), shutdown.clone(), Handle::current());
            let (ended, when_ended) = oneshot::channel();
            let begun = std::thread::Builder::new().name("search".to_owned()).spawn(move || {
                let thread = rustix::thread::gettid();
                // Whatever it begins has the same; if that is not allowed, it goes on as it is.
                let _ = rustix::process::setpriority_process(Some(thread), NICE);
                own.keep_up(&handle, &stop);
                let _ = ended.send(());
            });
            let fell = begun.is_err() || when_ended.await.is_err();
            if fell {
                tracing::error!("the thread that keeps the search index up fell; the index is made anew");
                self.is_to_rebuild.store(true, Ordering::Release);
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(FALLEN_PAUSE) => {}
                }
            }
        }
    }

    fn keep_up(&self, handle: &Handle, shutdown: &Shutdown) {
        let mut rings = self.parts.bell.listen();
        let mut retry = RETRY_FIRST;
        self.verify_days();
        let mut work = self.begin();
        loop {
            let pause = match self.step(&mut work, (handle, shutdown)) {
                Ok(pause) => {
                    retry = RETRY_FIRST;
                    pause
                }
                Err(Failure::Day(error)) if self.is_lost(&error) => {
                    tracing::warn!(%error, "the search index is made anew from the event log");
                    self.is_to_rebuild.store(true, Ordering::Release);
                    retry = retry.saturating_mul(2).min(RETRY_MAX);
                    retry
                }
                Err(error) => {
                    tracing::warn!(%error, "the search index could not be kept up yet");
                    work = self.begin();
                    retry = retry.saturating_mul(2).min(RETRY_MAX);
                    retry
                }
            };
            if shutdown.is_cancelled() {
                self.end(&mut work);
                return;
            }
            if !pause.is_zero() {
                handle.block_on(wait(pause, &mut rings, shutdown));
            }
        }
    }

    /// Writes what was gathered for the last time. An index that is to be made anew is wiped instead, for nothing
    /// else remembers that until the next start.
    fn end(&self, work: &mut Work) {
        let is_lost = self.is_to_rebuild.load(Ordering::Acquire)
            || self.write(work).is_err_and(|error| {
                tracing::warn!(%error, "the search index is written at the next start");
                matches!(&error, Failure::Day(error) if self.is_lost(error))
            });
        if is_lost && let Err(error) = self.wipe() {
            tracing::error!(%error, "the search index may lack messages: postern messages rebuild");
        }
    }

    /// Whether what is there is not to be relied on any more. Where there is no room that is the likely reason why
    /// something could not be written, and it heals by itself.
    fn is_lost(&self, error: &DayError) -> bool {
        match error {
            DayError::Damaged(..) => true,
            DayError::Unsynced(..) => self.has_room(),
            DayError::Failed(..) => false,
        }
    }

    /// Reads every file once: what a disk has garbled is not searched.
    fn verify_days(&self) {
        let days: Vec<_> = records::read(&self.days).values().map(Arc::clone).collect();
        for day in days {
            match day.verify() {
                Ok(()) => {}
                Err(error @ DayError::Damaged(..)) => {
                    tracing::warn!(%error, "the search index is made anew from the event log");
                    self.is_to_rebuild.store(true, Ordering::Release);
                    return;
                }
                Err(error) => tracing::warn!(%error, "the search index could not be verified"),
            }
        }
    }

    fn begin(&self) -> Work {
        let at = self.place().unwrap_or_else(EventLog::beginning);
        records::lock(&self.standing).is_rebuilding = at == EventLog::beginning();
        Work {
            reader: self.parts.log.reader(at),
            gathered: HashMap::new(),
            gathered_recipients: 0,
            erased: HashSet::new(),
            writer: None,
            written: Instant::now(),
            forgotten: None,
            last_at: Timestamp::now(),
        }
    }

    /// Reads some events, and writes the index when it is time; how long to wait.
    fn step(&self, work: &mut Work, (handle, shutdown): (&Handle, &Shutdown)) -> Result<Duration, Failure> {
        if self.is_to_rebuild.swap(false, Ordering::AcqRel) {
            work.writer = None;
            self.wipe().inspect_err(|_| self.is_to_rebuild.store(true, Ordering::Release))?;
            *work = self.begin();
        }
        match self.parts.log.store().health() {
            Health::Accepting if self.has_room() => {}
            Health::Stopped(_) => return Ok(RETRY_MAX),
            _ => {
                self.take_away(work, (handle, shutdown))?;
                return Ok(RETRY_MAX);
            }
        }
        let page = work.reader.next_page(PAGE_EVENTS)?;
        for (_, event) in &page.events {
            self.take(work, event)?;
        }
        if let Some((_, last)) = page.events.last() {
            work.last_at = last.at;
        }
        let waited = work.written.elapsed();
        let is_full = work.gathered.len() >= GATHERED_MAX || work.gathered_recipients >= GATHERED_RECIPIENTS_MAX;
        let has_news = !(work.gathered.is_empty() && work.erased.is_empty());
        if is_full || (has_news && (waited >= WRITE_EVERY || (page.is_end && waited >= COMPANY))) {
            self.write(work)?;
        }
        let is_up = page.is_end && work.gathered.is_empty() && work.erased.is_empty();
        self.tell(work, is_up);
        if !page.is_end {
            return Ok(Duration::ZERO);
        }
        if !is_up {
            return Ok(COMPANY.saturating_sub(waited).max(Duration::from_millis(50)));
        }
        self.take_away(work, (handle, shutdown))?;
        Ok(LOOK_PERIOD)
    }

    /// Takes out what nobody may find any more.
    fn take_away(&self, work: &mut Work, (handle, shutdown): (&Handle, &Shutdown)) -> Result<(), Failure> {
        self.take_out_gone(work)?;
        if work.forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
            work.forgotten = Some(Instant::now());
            self.forget_past(&mut work.writer, (handle, shutdown))?;
        }
        self.purge(work)
    }

    fn has_room(&self) -> bool {
        // What cannot be told is not believed to be short.
        let Ok(free) = rustix::fs::statvfs(&self.folder) else { return true };
        free.f_bavail.saturating_mul(free.f_frsize) >= self.parts.settings.free_bytes_min
    }

    fn tell(&self, work: &Work, is_up: bool) {
        let behind = if is_up { Duration::ZERO } else { Timestamp::now().since(work.last_at) };
        let mut standing = records::lock(&self.standing);
        *standing = Standing { behind, is_rebuilding: standing.is_rebuilding && !is_up };
        metrics::set(metrics::SEARCH_BEHIND, behind.as_secs_f64());
    }

    /// What an event changes, in memory.
    fn take(&self, work: &mut Work, event: &Event) -> Result<(), Failure> {
        match &event.kind {
            EventKind::Mail(id, told) => {
                if !work.gathered.contains_key(id) {
                    let Some(fate) = self.fate_before(*id, (told, event.at))? else { return Ok(()) };
                    work.gathered_recipients = work.gathered_recipients.saturating_add(fate.recipients.len());
                    work.gathered.insert(*id, fate);
                }
                if let Some(fate) = work.gathered.get_mut(id) {
                    fate.apply(told, event.at, &*self.parts.provider_of);
                }
            }
            EventKind::Audit(audit) if audit.act == ERASE_ACT => {
                if let Ok(id) = audit.subject.parse() {
                    work.gathered.remove(&id);
                    work.erased.insert(id);
                }
            }
            EventKind::Audit(_) | EventKind::Instance(_) => {}
        }
        Ok(())
    }

    /// What was known of a message before an event; `None` if nobody may find it any more.
    fn fate_before(&self, id: QueueId, (told, at): (&MailEvent, Timestamp)) -> Result<Option<Fate>, Failure> {
        if let MailEvent::Accepted(accepted) = told {
            return Ok(Some(Fate::new(usize::from(accepted.recipients), at)));
        }
        if let Some(day) = self.known_day(&day_of(id))
            && let Some(fate) = day.fate(id)?
        {
            return Ok(Some(fate));
        }
        // Its acceptance is no longer in the log, or its records were salvaged.
        let history = self.history(id)?;
        Ok(history.map(|history| Fate::new(history.recipients.len(), history.accepted)))
    }

    /// Writes what was gathered, and how far that is.
    fn write(&self, work: &mut Work) -> Result<(), Failure> {
        let mut days = BTreeMap::<String, Vec<(QueueId, Option<Fate>)>>::new();
        for (id, fate) in work.gathered.drain() {
            days.entry(day_of(id)).or_default().push((id, Some(fate)));
        }
        for id in work.erased.drain() {
            let name = day_of(id);
            File::create(self.folder.join(format!("{PURGE}{name}")))?;
            days.entry(name).or_default().push((id, None));
        }
        work.gathered_recipients = 0;
        for (name, messages) in days {
            self.write_day(&mut work.writer, &name, messages)?;
        }
        self.store_place(work.reader.at())?;
        work.written = Instant::now();
        Ok(())
    }

    fn write_day(
        &self,
        kept: &mut Option<(String, Writer)>,
        name: &str,
        messages: Vec<(QueueId, Option<Fate>)>,
    ) -> Result<(), Failure> {
        self.change(kept, name, |writer| {
            for (id, fate) in messages {
                match (fate, self.history(id)?) {
                    (Some(fate), Some(history)) => writer.put(id, &history, &fate)?,
                    _ => writer.remove(id),
                }
            }
            Ok(())
        })
    }

    /// Changes a day's index, durably. The writer of the newest day is kept for the next time.
    pub(super) fn change(
        &self,
        kept: &mut Option<(String, Writer)>,
        name: &str,
        change: impl FnOnce(&mut Writer) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let day = self.day(name)?;
        let mut writer = match kept.take() {
            Some((own, writer)) if own == name => writer,
            other => {
                if let Some((own, writer)) = other {
                    if own.as_str() > name {
                        // A look back: that one is needed again.
                        let mut writer_of_past = day.writer()?;
                        *kept = Some((own, writer));
                        change(&mut writer_of_past)?;
                        writer_of_past.commit()?;
                        writer_of_past.close()?;
                        return Ok(day.refresh()?);
                    }
                    writer.close()?;
                }
                day.writer()?
            }
        };
        change(&mut writer)?;
        writer.commit()?;
        day.refresh()?;
        *kept = Some((name.to_owned(), writer));
        Ok(())
    }

    /// Makes what was erased vanish from the disk too.
    fn purge(&self, work: &mut Work) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_prefix(PURGE) else { continue };
            let mut is_gone = true;
            if self.known_day(name).is_some() {
                self.change(&mut work.writer, name, |writer| {
                    is_gone = writer.purge()?;
                    Ok(())
                })?;
            }
            if is_gone {
                fs::remove_file(entry.path())?;
            } else {
                tracing::warn!(day = name, "what was erased is still in files of the search index; tried again");
            }
        }
        Ok(())
    }

    fn place(&self) -> Option<Key> {
        let bytes = fs::read(self.folder.join(PLACE)).ok()?;
        codec::decode(&bytes).ok()
    }

    fn store_place(&self, at: &Key) -> io::Result<()> {
        let next = self.folder.join(format!("{PLACE}.next"));
        let mut file = File::create(&next)?;
        file.write_all(&codec::encode(at))?;
        file.sync_data()?;
        fs::rename(&next, self.folder.join(PLACE))?;
        File::open(&self.folder)?.sync_all()
    }
}

async fn wait(pause: Duration, rings: &mut watch::Receiver<u64>, shutdown: &Shutdown) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
        rung = rings.changed(), if pause == LOOK_PERIOD => {
            if rung.is_err() {
                // Nobody is left to ring: look by the clock.
                tokio::time::sleep(pause).await;
            }
        }
    }
}
