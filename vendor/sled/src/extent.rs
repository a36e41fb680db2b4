//! postern: how far the metadata reached, so that whoever noted it finds out that a file was cut off or
//! changed since. A log is read as far as its frames are whole, which is right for one torn by a crash; but a
//! log that lost frames which were durable points at slots that have been written to anew, and nothing in a
//! slot tells.

use std::fs;
use std::io;
use std::path::Path;

use crate::metadata_store::{
    enumerate_logs_and_snapshot, log_path, read_log, LogEnd,
};

/// The metadata at a moment at which nobody wrote to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    /// The number of the snapshot, 0 if there is none.
    pub snapshot: u64,
    /// The numbers of the logs behind it, and their lengths.
    pub logs: Vec<(u64, u64)>,
}

impl Extent {
    /// How far the metadata of the database in `folder` reach. For the one who flushes, between two flushes.
    pub fn of<P: AsRef<Path>>(folder: P) -> io::Result<Extent> {
        let folder = folder.as_ref().join("metadata");
        let (logs, snapshot) = enumerate_logs_and_snapshot(&folder, false)?;
        let mut extent = Extent { snapshot: snapshot.unwrap_or(0), logs: Vec::new() };
        for log in logs {
            match fs::metadata(log_path(&folder, log)) {
                // One that was just begun has nothing that could be missed.
                Ok(metadata) if metadata.len() == 0 => {}
                Ok(metadata) => extent.logs.push((log, metadata.len())),
                // It has become part of a snapshot meanwhile, and then it need not be there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // A name seen may be one that a crash would take away again.
        fs::File::open(&folder)?.sync_all()?;
        Ok(extent)
    }

    /// Fails with `InvalidData` if the metadata of the database in `folder`, which nobody has open, do not
    /// reach so far. Changes nothing.
    pub fn check<P: AsRef<Path>>(&self, folder: P) -> io::Result<()> {
        let folder = folder.as_ref().join("metadata");
        let lacking = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        let (logs, snapshot) = match enumerate_logs_and_snapshot(&folder, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return lacking("the metadata are gone".into()),
            found => found?,
        };
        let snapshot = snapshot.unwrap_or(0);
        if snapshot < self.snapshot {
            return lacking(format!("snapshot {} of the metadata is gone", self.snapshot));
        }
        for (log, length) in self.logs.iter().filter(|(log, _)| *log > snapshot) {
            if !logs.contains(log) {
                return lacking(format!("log {log} of the metadata is gone"));
            }
            let (_, whole) = read_log(&folder, *log, LogEnd::MayBeTorn)?;
            if whole < *length {
                return lacking(format!("log {log} of the metadata ends at byte {whole}, and once reached {length}"));
            }
        }
        Ok(())
    }
}
