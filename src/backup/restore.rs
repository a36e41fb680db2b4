//! Makes folders from a backup: a data folder, and the configuration with keys and certificates beside it.
//!
//! Works without a daemon. Everything is written under another name and gets its own when the file has
//! proved to be whole. Easy to get wrong: the mail in it was owed when it was taken and may have been
//! delivered since; it is left out, or every recipient is held and every notice dropped on record. Acts on many
//! messages that were under way are over: one of them would let go what is held.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use super::BackupError;
use super::entry::{Entry, Place, strange};
use super::put::Filling;
use super::read::{Contents, Entries};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{BodyId, BodyWriter};
use crate::queue::{self, HeldAll, Queue};
use crate::seal::BackupKey;
use crate::store::{Opened, prefix};

/// What becomes of the mail that was owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mail {
    /// It is not restored.
    LeftOut,
    /// It is restored and held: each message waits for its release.
    Held,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What the file holds.
    pub contents: Contents,
    /// What is held.
    pub held: HeldAll,
    /// The data folder.
    pub data: PathBuf,
    /// The folder of configuration, keys and certificates.
    pub configuration: PathBuf,
}

/// Restores `file` into the new folders `into/data` and `into/config`. Blocks on the disk: for a blocking
/// thread, whose runtime is `handle`.
pub fn restore(
    file: impl Read,
    key: &BackupKey,
    (into, mail): (&Path, Mail),
    handle: &Handle,
) -> Result<Restored, BackupError> {
    let reading = |error: io::Error| BackupError::reading(&error);
    // The key is compared before anything is made.
    let mut entries = Entries::open(file, key).map_err(reading)?;
    let (data, configuration) = (into.join("data"), into.join("config"));
    for folder in [&data, &configuration] {
        if fs::symlink_metadata(folder).is_ok() {
            return Err(BackupError::Files(format!("{} is there already; name a new folder", folder.display())));
        }
    }
    make_folder(into)?;
    let partial = tempfile::Builder::new().prefix("restoring-").tempdir_in(into)?;
    let mut restoring = Restoring::new(partial.path(), mail, handle)?;
    let mut manifest = None;
    loop {
        let mut broken = None;
        match entries.next().map_err(reading)? {
            None => break,
            Some(Entry::Manifest(found)) => manifest = Some(found),
            Some(Entry::MasterKey(wrapped)) => {
                key.unwrap_key(wrapped)?.save(&restoring.configuration.join("master.key"))?;
            }
            Some(entry) => broken = restoring.take(entry)?,
        }
        if let Some(length) = broken {
            entries.take_back(length);
        }
    }
    let manifest = manifest.ok_or_else(|| BackupError::Damaged("damaged: it does not say who made it".to_owned()))?;
    let contents = entries.contents(manifest);
    let held = restoring.finish(handle)?;
    fs::rename(partial.path().join("data"), &data)?;
    fs::rename(partial.path().join("config"), &configuration)?;
    File::open(into)?.sync_all()?;
    Ok(Restored { contents, held, data, configuration })
}

/// What began last and is not at its end.
enum Begun {
    Nothing,
    File(File),
    Body {
        id: BodyId,
        envelope: Vec<u8>,
        length: u64,
        message: BodyWriter,
    },
    /// A body that is not restored.
    Skipped(BodyId, u64),
}

struct Restoring<'a> {
    data: PathBuf,
    configuration: PathBuf,
    mail: Mail,
    handle: &'a Handle,
    filling: Option<Filling>,
    begun: Begun,
}

impl<'a> Restoring<'a> {
    fn new(folder: &Path, mail: Mail, handle: &'a Handle) -> Result<Self, BackupError> {
        let (data, configuration) = (folder.join("data"), folder.join("config"));
        make_folder(&data)?;
        make_folder(&configuration)?;
        Ok(Self { data, configuration, mail, handle, filling: None, begun: Begun::Nothing })
    }

    fn filling(&mut self) -> Result<&mut Filling, BackupError> {
        self.filling.as_mut().ok_or_else(|| BackupError::reading(&strange("records before the store begins")))
    }

    /// Does what an entry says; the length of a body that turned out to be unreadable.
    fn take(&mut self, entry: Entry<'_>) -> Result<Option<u64>, BackupError> {
        match entry {
            Entry::File(place, name) => self.begun = Begun::File(self.new_file(place, name)?),
            Entry::Part(part) => match &mut self.begun {
                Begun::File(file) => file.write_all(part)?,
                Begun::Body { message, .. } => message.write(part)?,
                Begun::Skipped(..) => {}
                Begun::Nothing => return Err(BackupError::reading(&strange("a part of nothing"))),
            },
            Entry::End => self.end()?,
            Entry::Store(commit) => {
                self.filling = Some(Filling::begin(&self.data.join("store"), commit, self.handle.clone())?);
            }
            Entry::Set(key, value) if key.first() == Some(&prefix::SWEEP) => {
                let ended = queue::ended_sweep(value, "restored from a backup", Timestamp::now());
                self.filling()?.set(key, ended.as_deref().unwrap_or(value))?;
            }
            Entry::Set(key, value) => {
                if !is_of_the_moment(key) && (self.mail == Mail::Held || !queue::is_of_owed_mail(key)) {
                    self.filling()?.set(key, value)?;
                }
            }
            Entry::Remove(key) => self.filling()?.remove(key)?,
            Entry::Body(id, envelope, length) => {
                let message = self.filling()?.writer();
                self.begun = match self.mail {
                    Mail::Held => Begun::Body { id, envelope: envelope.to_vec(), length, message },
                    Mail::LeftOut => Begun::Skipped(id, length),
                };
            }
            Entry::Unreadable(id, _) => {
                return Ok(match std::mem::replace(&mut self.begun, Begun::Nothing) {
                    Begun::Body { id: begun, length, .. } | Begun::Skipped(begun, length) if begun == id => {
                        Some(length)
                    }
                    _ => None,
                });
            }
            Entry::Manifest(_) | Entry::MasterKey(_) | Entry::Finished(_) => {}
        }
        Ok(None)
    }

    fn end(&mut self) -> Result<(), BackupError> {
        match std::mem::replace(&mut self.begun, Begun::Nothing) {
            Begun::File(file) => file.sync_all()?,
            Begun::Body { id, envelope, length, message } => {
                if message.length() != length {
                    return Err(BackupError::reading(&strange("a message is not as long as it says")));
                }
                self.filling()?.body(id, envelope, message)?;
            }
            Begun::Nothing | Begun::Skipped(..) => {}
        }
        Ok(())
    }

    fn new_file(&self, place: Place, name: &str) -> Result<File, BackupError> {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if name.is_empty() || !Path::new(name).components().all(is_plain) {
            return Err(BackupError::reading(&strange("a file with a strange name")));
        }
        let path = match place {
            Place::Configuration => self.configuration.join(name),
            Place::Certificates => self.configuration.join("certificates").join(name),
            Place::History => self.data.join("history").join(name),
        };
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| named(&path, &error))
    }

    fn finish(mut self, handle: &Handle) -> Result<HeldAll, BackupError> {
        let filling = self.filling.take().ok_or_else(|| BackupError::reading(&strange("there is no store in it")))?;
        let opened = filling.finish()?;
        match self.mail {
            Mail::LeftOut => Ok(HeldAll::default()),
            Mail::Held => handle.block_on(hold(opened)),
        }
    }
}

/// Sessions, one-time links and answers to repeated requests: whoever had one has it no more.
fn is_of_the_moment(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(prefix::SESSION | prefix::ONE_TIME | prefix::REPLAY)))
}

async fn hold(opened: Opened) -> Result<HeldAll, BackupError> {
    let settings = queue::Settings::default();
    let queue = Queue::open(Arc::clone(&opened.records), opened.bodies, settings).await?;
    let held = queue.hold_all(&Actor::system("restored from a backup"), Timestamp::now()).await;
    held.map_err(|error| BackupError::Files(format!("the restored mail could not be held: {error}")))
}

fn make_folder(folder: &Path) -> Result<(), BackupError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| named(folder, &error))
}

fn named(path: &Path, error: &io::Error) -> BackupError {
    BackupError::Files(format!("{}: {error}", path.display()))
}
