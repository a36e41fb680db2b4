//! A CSV file put on a list, line by line: what can be read becomes an entry, what cannot is kept with the
//! reason in a file of rejected lines.
//!
//! Easy to get wrong: after a crash the file of rejected lines may be longer than what was committed; it is cut
//! to that before the next lines.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

use super::csv::{self, Line};
use super::record::{Kind, Operation, OperationId};
use super::{AGAIN_AFTER, Ended, Operations, Part};
use crate::access::{Actor, Role};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::{self, AdminError};
use crate::store::codec;
use crate::suppression::{NewEntry, Place, Reason, Subject};

/// Octets of a file, at most (256 MiB: some millions of lines).
pub const IMPORT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Lines in one commit.
pub const LINES_AT_ONCE: usize = 500;

/// A file on its way in; it is gone if it is not finished.
pub struct Upload {
    operation: Operation,
    file: tokio::fs::File,
    path: std::path::PathBuf,
    digest: Sha256,
    is_finished: bool,
    _arrival: Arrival,
}

/// Files of each tenant on their way in.
pub(super) type Coming = Arc<Mutex<HashMap<TenantId, usize>>>;

/// One of them, counted until it is dropped.
struct Arrival {
    coming: Coming,
    tenant: TenantId,
}

impl Arrival {
    fn new(coming: &Coming, tenant: TenantId) -> Self {
        let mut counts = records::lock(coming);
        let count = counts.entry(tenant).or_default();
        *count = count.saturating_add(1);
        Self { coming: Arc::clone(coming), tenant }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut counts = records::lock(&self.coming);
        let left = counts.get(&self.tenant).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            counts.remove(&self.tenant)
        } else {
            counts.insert(self.tenant, left)
        };
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Operations {
    /// Begins to take a file for a list.
    pub async fn upload(
        &self,
        actor: &Actor,
        place: Place,
        reason: Reason,
        now: Timestamp,
    ) -> Result<Upload, AdminError> {
        // Nothing is changed by this: it asks whether the actor may change that very list.
        self.suppression.change(actor, place, (Vec::new(), Vec::new()), now).await?;
        let arrival = Arrival::new(&self.coming, place.tenant);
        self.room_for(place.tenant, 1)?;
        let operation = Operation::new(OperationId::new(now), place, Kind::Import { reason }, (actor, now));
        let path = self.path(operation.id, Part::Input);
        let made = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await;
        let file = made.map_err(|error| unwritten(&error))?;
        Ok(Upload { operation, file, path, digest: Sha256::new(), is_finished: false, _arrival: arrival })
    }

    /// The file is whole: it survives a power cut, and is put on the list by and by.
    pub async fn uploaded(&self, actor: &Actor, mut upload: Upload, now: Timestamp) -> Result<Operation, AdminError> {
        upload.file.flush().await.map_err(|error| unwritten(&error))?;
        upload.file.sync_all().await.map_err(|error| unwritten(&error))?;
        let folder = tokio::fs::File::open(&self.folder).await.map_err(|error| unwritten(&error))?;
        folder.sync_all().await.map_err(|error| unwritten(&error))?;
        let mut operation = upload.operation.clone();
        operation.input = Some(upload.digest());
        // Whoever asked may go away while this is being recorded; a file of nothing recorded is removed at a start.
        upload.is_finished = true;
        let begun = self.begin(actor, operation, now).await;
        upload.is_finished = begun.is_ok();
        begun
    }

    pub(super) fn import(
        &self,
        operation: &mut Operation,
        reason: Reason,
        (handle, stop): (&Handle, &Shutdown),
    ) -> io::Result<Ended> {
        let mut input = BufReader::new(File::open(self.path(operation.id, Part::Input))?);
        let columns = Columns::of(&mut input, operation)?;
        input.seek(SeekFrom::Start(operation.at))?;
        let path = self.path(operation.id, Part::Rejected);
        let mut rejected = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        loop {
            if self.is_cancelled(operation) {
                return Ok(Ended::Cancelled);
            }
            if stop.is_cancelled() {
                return Ok(Ended::Stopped);
            }
            let lines = Lines::read(&mut input, &columns, (operation, reason))?;
            if lines.octets == 0 {
                return Ok(Ended::Done);
            }
            rejected.set_len(operation.rejected_octets)?;
            rejected.seek(SeekFrom::Start(operation.rejected_octets))?;
            if !lines.rejected.is_empty() {
                rejected.write_all(lines.rejected.as_bytes())?;
                rejected.sync_data()?;
            }
            while !handle.block_on(self.put(operation, &lines)) {
                if stop.is_cancelled() {
                    return Ok(Ended::Stopped);
                }
                std::thread::sleep(AGAIN_AFTER);
            }
            self.show(operation);
        }
    }

    /// Commits some lines together with the progress they make; whether that worked.
    async fn put(&self, operation: &mut Operation, lines: &Lines) -> bool {
        let by = Actor::of(operation.by.clone(), Role::InstanceAdmin);
        let record = |added: usize| {
            let after = advanced(operation, lines, added);
            (after.key(), codec::encode(&after))
        };
        let put = self.suppression.import(&by, operation.place(), (lines.entries.clone(), &record), Timestamp::now());
        match put.await {
            Ok(added) => {
                *operation = advanced(operation, lines, added);
                true
            }
            Err(error) => {
                tracing::warn!(operation = %operation.id, %error, "lines of an import could not be written yet");
                false
            }
        }
    }
}

/// The operation with these lines dealt with.
fn advanced(operation: &Operation, lines: &Lines, added: usize) -> Operation {
    let (added, count) = (added as u64, lines.entries.len() as u64);
    let mut after = operation.clone();
    after.at = after.at.saturating_add(lines.octets);
    after.lines = after.lines.saturating_add(count).saturating_add(lines.refused);
    after.added = after.added.saturating_add(added);
    after.present = after.present.saturating_add(count.saturating_sub(added));
    after.rejected = after.rejected.saturating_add(lines.refused);
    after.rejected_octets = after.rejected_octets.saturating_add(lines.rejected.len() as u64);
    after
}

impl Upload {
    /// SHA-256 of what came so far.
    pub fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    /// Takes the next octets of the file.
    ///
    /// # Errors
    /// If it is too large now, or cannot be written.
    pub async fn write(&mut self, octets: &[u8]) -> Result<(), AdminError> {
        self.operation.octets = self.operation.octets.saturating_add(octets.len() as u64);
        if self.operation.octets > IMPORT_BYTES_MAX {
            let max = IMPORT_BYTES_MAX / (1024 * 1024);
            return Err(AdminError::Invalid(format!("the file is larger than {max} MiB; send it in several parts")));
        }
        self.digest.update(octets);
        self.file.write_all(octets).await.map_err(|error| unwritten(&error))
    }
}

fn unwritten(error: &io::Error) -> AdminError {
    AdminError::Commit(crate::store::CommitError::Failed(format!("the file of an operation: {error}")))
}

/// Which cell of a line is what.
pub struct Columns {
    separator: char,
    subject: usize,
    reason: Option<usize>,
    note: Option<usize>,
    expires: Option<usize>,
}

impl Columns {
    /// By the names in the first line, if it has names; then it is passed over.
    pub fn of(input: &mut impl BufRead, operation: &mut Operation) -> io::Result<Self> {
        let plain = |separator| Self { separator, subject: 0, reason: Some(1), note: Some(2), expires: Some(3) };
        let Some((Line::Text(first), octets)) = csv::next_line(input)? else { return Ok(plain(',')) };
        let separator = csv::separator(&first);
        let names = csv::cells(&first, separator).unwrap_or_default();
        let names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
        let place = |known: &[&str]| names.iter().position(|name| known.contains(&name.as_str()));
        let Some(subject) = place(&["subject", "email", "e-mail", "address", "domain", "recipient"]) else {
            return Ok(plain(separator));
        };
        if operation.at == 0 {
            operation.at = octets;
        }
        let (reason, note) = (place(&["reason"]), place(&["note", "comment"]));
        Ok(Self { separator, subject, reason, note, expires: place(&["expires", "until", "valid until"]) })
    }

    fn entry(&self, text: &str, (operation, default): (&Operation, Reason)) -> Result<NewEntry, String> {
        let cells = csv::cells(text, self.separator)?;
        let cell =
            |at: Option<usize>| at.and_then(|at| cells.get(at)).map(String::as_str).filter(|cell| !cell.is_empty());
        let subject = cell(Some(self.subject)).ok_or("there is no address or domain")?;
        let subject = Subject::parse(subject).map_err(|error| format!("{error}"))?;
        if matches!(&subject, Subject::Domain(domain) if !domain.as_str().contains('.')) {
            // One word is more likely a slip than a domain somebody mails to.
            return Err("neither an address nor a domain with a dot".to_owned());
        }
        let reason = match cell(self.reason) {
            None => default,
            Some(word) => Reason::called(word).ok_or_else(|| format!("{word:?} is no reason"))?,
        };
        let expires = cell(self.expires).map(|text| {
            Timestamp::from_rfc3339(text).ok_or_else(|| format!("{text:?} is no time such as 2027-01-31T12:00:00Z"))
        });
        let note = cell(self.note).unwrap_or_default().to_owned();
        Ok(NewEntry { subject, reason, origin: operation.origin, note, expires: expires.transpose()? })
    }
}

/// Some lines of a file.
pub struct Lines {
    /// How long they are, line ends included.
    pub octets: u64,
    /// What goes on the list.
    pub entries: Vec<NewEntry>,
    /// How many cannot.
    pub refused: u64,
    /// What goes to the file of rejected lines.
    pub rejected: String,
}

impl Lines {
    /// The next ones, at most as many as are committed at once.
    pub fn read(
        input: &mut impl BufRead,
        columns: &Columns,
        (operation, reason): (&Operation, Reason),
    ) -> io::Result<Self> {
        let mut lines = Self { octets: 0, entries: Vec::new(), refused: 0, rejected: String::new() };
        if operation.rejected_octets == 0 {
            lines.rejected.push_str(&csv::write_line(&["line", "why", "text"]));
        }
        let (heading, mut number) = (lines.rejected.len(), operation.lines);
        while lines.entries.len().saturating_add(usize::try_from(lines.refused).unwrap_or(usize::MAX)) < LINES_AT_ONCE {
            let Some((line, octets)) = csv::next_line(input)? else { break };
            lines.octets = lines.octets.saturating_add(octets);
            let (text, read) = match line {
                Line::Text(text) if text.trim().is_empty() => continue,
                Line::Text(text) => {
                    let read = columns.entry(&text, (operation, reason));
                    (text, read)
                }
                Line::Unreadable(why) => (String::new(), Err(why.to_owned())),
            };
            number = number.saturating_add(1);
            match read {
                Ok(entry) => lines.entries.push(entry),
                Err(why) => {
                    lines.refused = lines.refused.saturating_add(1);
                    lines.rejected.push_str(&csv::write_line(&[&number.to_string(), &why, &text]));
                }
            }
        }
        if lines.rejected.len() == heading {
            lines.rejected.clear();
        }
        Ok(lines)
    }
}
