//! Copies the store of a data folder into a new one, engine to engine, and compares the two.
//!
//! Works without a daemon, under the locks of both folders. Easy to get wrong: the old folder is opened
//! like at any start (what its journal holds is applied), and otherwise stays as it is.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::BackupError;
use super::put::Filling;
use super::take::files_in;
use crate::store::{self, BodyReader, Piece, Settings, Snapshots};

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Records.
    pub records: u64,
    /// Message bodies.
    pub bodies: u64,
    /// Bodies that could not be read, and why; they are missing in the new store.
    pub unreadable: Vec<String>,
    /// Files of past events.
    pub files: u64,
}

/// Copies the store at `old` and the past events beside it into the new data folder `into`. Blocks on the
/// disk: for a blocking thread, whose runtime is `handle`.
pub fn migrate(old: Settings, into: &Path, handle: &Handle) -> Result<Migrated, BackupError> {
    let history = old.folder.parent().map(|data| data.join("history"));
    let new_store = into.join("store");
    let old = store::open(old)?.engine;
    let (migrated, from) = copy(&*old, &new_store, handle)?;
    drop(old);
    let new =
        store::open(Settings { folder: new_store, free_bytes_min: 0, free_inodes_min: 0, ..Settings::default() })?;
    let to = digest(&*new.engine)?;
    if from != to {
        return Err(BackupError::Damaged("the new store does not read back as what was put into it".to_owned()));
    }
    let mut files = 0;
    if let Some(history) = history {
        fs::create_dir_all(into.join("history"))?;
        for (name, path) in files_in(&history)? {
            let copy = into.join("history").join(name);
            fs::copy(path, &copy)?;
            fs::File::open(&copy)?.sync_all()?;
            files += 1;
        }
        fs::File::open(into.join("history"))?.sync_all()?;
    }
    fs::File::open(into)?.sync_all()?;
    Ok(Migrated { files, ..migrated })
}

fn copy(old: &dyn Snapshots, into: &Path, handle: &Handle) -> Result<(Migrated, Sum), BackupError> {
    let (mut migrated, mut sum, mut failed) = (Migrated::default(), Sum::default(), None);
    let mut filling: Option<Filling> = None;
    let copied = old.snapshot(&mut |piece| {
        let done = match (piece, &mut filling) {
            (Piece::Begin(commit), filling) => {
                Filling::begin(into, commit, handle.clone()).map(|new| *filling = Some(new))
            }
            (Piece::Set(key, value), Some(filling)) => {
                migrated.records += 1;
                sum.record(key, value);
                filling.set(key, value)
            }
            (Piece::Remove(key), Some(filling)) => filling.remove(key),
            (Piece::Unreadable(id, why), _) => {
                migrated.unreadable.push(format!("{}/{}: {why}", id.queue_id, id.number));
                Ok(())
            }
            (Piece::Body(id, envelope, reader), Some(filling)) => {
                let mut writer = filling.writer();
                match sum.body(envelope, reader, &mut |slice| writer.write(slice))? {
                    Ok(()) => {
                        migrated.bodies += 1;
                        filling.body(id, envelope.to_vec(), writer)
                    }
                    Err(why) => {
                        migrated.unreadable.push(why);
                        Ok(())
                    }
                }
            }
            (_, None) => Ok(()),
        };
        done.map_err(|error| {
            let text = error.to_string();
            failed = Some(error);
            std::io::Error::other(text)
        })
    });
    match (copied, failed) {
        (Err(_), Some(error)) => return Err(error),
        (Err(error), None) => return Err(error.into()),
        (Ok(_), _) => {}
    }
    if let Some(filling) = filling {
        drop(filling.finish()?);
    }
    Ok((migrated, sum))
}

fn digest(store: &dyn Snapshots) -> Result<Sum, BackupError> {
    let mut sum = Sum::default();
    store.snapshot(&mut |piece| {
        match piece {
            Piece::Set(key, value) => sum.record(key, value),
            Piece::Body(_, envelope, reader) => {
                // What cannot be read is not added, and the sums differ.
                let _ = sum.body(envelope, reader, &mut |_| Ok(()))?;
            }
            Piece::Begin(_) | Piece::Remove(_) | Piece::Unreadable(..) => {}
        }
        Ok(())
    })?;
    Ok(sum)
}

/// SHA-256 of records in their order, and of bodies in theirs.
#[derive(Clone, Default)]
struct Sum {
    records: Sha256,
    bodies: Sha256,
}

impl PartialEq for Sum {
    fn eq(&self, other: &Self) -> bool {
        let ended = |sum: &Self| (sum.records.clone().finalize(), sum.bodies.clone().finalize());
        ended(self) == ended(other)
    }
}

impl Sum {
    fn record(&mut self, key: &[u8], value: &[u8]) {
        self.records.update((key.len() as u64).to_le_bytes());
        self.records.update(key);
        self.records.update((value.len() as u64).to_le_bytes());
        self.records.update(value);
    }

    /// Adds a body that reads to its end; says why if it does not.
    fn body(
        &mut self,
        envelope: &[u8],
        reader: &mut dyn BodyReader,
        also: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<Result<(), String>> {
        let mut own = self.bodies.clone();
        own.update((envelope.len() as u64).to_le_bytes());
        own.update(envelope);
        own.update(reader.length().to_le_bytes());
        loop {
            match reader.next_slice() {
                Ok(Some(slice)) => {
                    own.update(&slice);
                    also(&slice)?;
                }
                Ok(None) => {
                    self.bodies = own;
                    return Ok(Ok(()));
                }
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }
}
