//! A list written to a CSV file, a page at a time. Begun anew after a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::csv;
use super::record::{Form, Operation};
use super::{Ended, Operations, Part};
use crate::access::{Actor, Role};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::suppression::{Entry, PAGE_MAX};

/// Hexadecimal digits.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl Operations {
    pub(super) fn export_all(
        &self,
        operation: &mut Operation,
        form: Form,
        (_, stop): (&Handle, &Shutdown),
    ) -> io::Result<Ended> {
        let by = Actor::of(operation.by.clone(), Role::InstanceAdmin);
        let path = self.path(operation.id, Part::Result);
        let partial = path.with_extension("part");
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        let mut out = BufWriter::new(file);
        out.write_all(heading(form).as_bytes())?;
        operation.written = 0;
        let mut from = None;
        loop {
            if self.is_cancelled(operation) {
                fs::remove_file(&partial)?;
                return Ok(Ended::Cancelled);
            }
            if stop.is_cancelled() {
                return Ok(Ended::Stopped);
            }
            let page = self.suppression.list(&by, operation.place(), from.as_ref(), PAGE_MAX);
            let page = page.map_err(io::Error::other)?;
            for entry in &page.entries {
                out.write_all(line(entry, form).as_bytes())?;
            }
            operation.written = operation.written.saturating_add(page.entries.len() as u64);
            self.show(operation);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&partial, &path)?;
        Ok(Ended::Done)
    }
}

fn heading(form: Form) -> String {
    match form {
        Form::Plain => csv::write_line(&["subject", "reason", "note", "expires", "added", "origin", "by"]),
        Form::Hashed => csv::write_line(&["sha256", "reason"]),
    }
}

fn line(entry: &Entry, form: Form) -> String {
    let subject = entry.subject.to_string();
    match form {
        Form::Plain => {
            let expires = entry.expires.map(Timestamp::rfc3339).unwrap_or_default();
            let (added, origin) = (entry.added.rfc3339(), format!("{:?}", entry.origin).to_lowercase());
            csv::write_line(&[&subject, entry.reason.word(), &entry.note, &expires, &added, &origin, &entry.by])
        }
        Form::Hashed => {
            let digest = Sha256::digest(subject.to_lowercase().as_bytes());
            let digit = |value: u8| char::from(DIGITS.get(usize::from(value)).copied().unwrap_or(b'0'));
            let hex: String = digest.iter().flat_map(|octet| [digit(octet >> 4), digit(octet & 15)]).collect();
            csv::write_line(&[&hex, entry.reason.word()])
        }
    }
}
