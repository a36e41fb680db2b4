//! `postern backup` and `postern restore`: fetching a sealed copy from the daemon, checking one, making
//! folders from one.
//!
//! Easy to get wrong: a file under its final name is whole; what is being fetched has another name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::Session;
use super::arguments::{Backup, Everywhere, Restore};
use super::client::Fault;
use super::output::{print, print_json, size};
use crate::backup::{self, BackupError, Contents, Mail, Restored};
use crate::config::{Config, SecretPlace};
use crate::seal::BackupKey;

/// How often the file to fetch into is opened, while others make and remove it.
const PARTIAL_TRIES: u32 = 10;

impl From<BackupError> for Fault {
    fn from(error: BackupError) -> Self {
        let text = error.to_string();
        match error {
            BackupError::Newer(_) => Self::Configuration(text),
            BackupError::Damaged(_) => Self::Damaged(text),
            _ => Self::Failed(text),
        }
    }
}

/// Fetches a backup into `file`, which must not exist.
pub async fn make(session: &Session, file: &Path) -> Result<(), Fault> {
    let failed = |path: &Path, error: &io::Error| Fault::Failed(format!("{}: {error}", path.display()));
    if fs::symlink_metadata(file).is_ok() {
        return Err(Fault::Failed(format!("{} is there already; a backup is never overwritten", file.display())));
    }
    let partial = partial_name(file);
    let mut out = tokio::fs::File::from_std(open_partial(&partial).map_err(|error| failed(&partial, &error))?);
    let fetched = async {
        let bytes = session.client.fetch("/backup", &mut out).await?;
        out.flush().await.map_err(|error| failed(&partial, &error))?;
        out.sync_all().await.map_err(|error| failed(&partial, &error))?;
        fs::hard_link(&partial, file).map_err(|error| failed(file, &error))?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed(folder, &error))?;
        Ok(bytes)
    };
    let fetched: Result<u64, Fault> = fetched.await;
    let _ = fs::remove_file(&partial);
    let bytes = fetched?;
    if session.is_json() {
        print_json(&json!({ "file": file.display().to_string(), "bytes": bytes }));
    } else {
        print(&format!(
            "{} of {}; check it with: postern backup verify {}\n",
            size(bytes),
            file.display(),
            file.display()
        ));
    }
    Ok(())
}

fn partial_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// The file a backup is fetched into, empty, and locked until it is closed: only whoever has the lock of the file that
/// has this name writes to it, gives it another name, or removes it. What a fetch that was cut off left is emptied, or
/// removed if it has another name as well: it is a whole backup then.
fn open_partial(path: &Path) -> io::Result<File> {
    for _ in 0..PARTIAL_TRIES {
        // No symbolic link is followed, and no pipe waited for.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits().cast_signed());
        let file = options.open(path)?;
        lock(&file)?;
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("is no file of yours; remove it"));
        }
        // Whoever had the lock before may have removed it.
        let is_named = fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()));
        match (is_named, found.nlink()) {
            (true, 1) => {
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                file.set_len(0)?;
                return Ok(file);
            }
            (true, _) => fs::remove_file(path)?,
            (false, _) => {}
        }
    }
    Err(io::Error::other("other backups are being fetched into it"))
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another backup is being fetched into it"),
        TryLockError::Error(error) => error,
    })
}

/// The commands that need no daemon.
pub fn offline(
    everywhere: &Everywhere,
    config: impl FnOnce() -> Result<Config, Fault>,
    command: &Backup,
) -> Result<(), Fault> {
    match command {
        Backup::Verify { file, key } => {
            let key = match key {
                Some(key) => key.clone(),
                None => key_file(&config()?)?,
            };
            let contents = backup::verify(open(file)?, &load(&key)?)?;
            show(everywhere, &contents, json!({}), "The backup is whole.\n")
        }
        Backup::Key => make_key(everywhere, &config()?),
        Backup::Make { .. } => Err(Fault::Failed("this command needs the daemon".to_owned())),
    }
}

/// `postern restore`.
pub async fn restore(everywhere: &Everywhere, asked: &Restore) -> Result<(), Fault> {
    let (file, key, into) = (open(&asked.file)?, load(&asked.key)?, asked.into.clone());
    let mail = if asked.with_queue { Mail::Held } else { Mail::LeftOut };
    let handle = tokio::runtime::Handle::current();
    let restored = tokio::task::spawn_blocking(move || backup::restore(file, &key, (&into, mail), &handle));
    let Restored { contents, held, data, configuration } =
        restored.await.map_err(|error| Fault::Failed(error.to_string()))??;
    let words = match mail {
        Mail::LeftOut => format!("The {} messages in it were not restored (--with-queue).\n", contents.bodies),
        Mail::Held => format!(
            "{} messages are held: postern queue release ID sends one. {} notices to senders were dropped.\n",
            held.messages, held.notices_dropped
        ),
    };
    let words = format!(
        "{words}Restored into {} and {}.\nNext: docs/operate/backup.md, \"Restore\".\n",
        data.display(),
        configuration.display()
    );
    let more = json!({
        "data": data.display().to_string(),
        "configuration": configuration.display().to_string(),
        "held": held.messages,
        "notices_dropped": held.notices_dropped,
    });
    show(everywhere, &contents, more, &words)
}

fn open(file: &Path) -> Result<File, Fault> {
    File::open(file).map_err(|error| Fault::Failed(format!("{}: {error}", file.display())))
}

fn load(path: &Path) -> Result<BackupKey, Fault> {
    BackupKey::load(path).map_err(|error| Fault::Failed(error.to_string()))
}

fn key_file(config: &Config) -> Result<PathBuf, Fault> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    config.backup_key.path(credentials.as_deref()).map_err(Fault::Failed)
}

/// Makes the backup key, hands it to the daemon's user, and shows it once.
fn make_key(everywhere: &Everywhere, config: &Config) -> Result<(), Fault> {
    let SecretPlace::File(path) = &config.backup_key else {
        let text = "secrets.backup_key is a credential: make the key with secrets.backup_key set to a file, then hand \
                    that file over with LoadCredential=";
        return Err(Fault::Failed(text.to_owned()));
    };
    let key = BackupKey::generate(path).map_err(|error| Fault::Failed(error.to_string()))?;
    if rustix::process::geteuid().is_root()
        && let Ok(owner) = fs::metadata(&config.data)
    {
        chown(path, Some(owner.uid()), Some(owner.gid()))
            .map_err(|error| Fault::Failed(format!("{}: {error}", path.display())))?;
    }
    let line = key.line();
    if everywhere.json {
        print_json(&json!({ "file": path.display().to_string(), "id": key.id(), "key": *line }));
    } else {
        print(&format!(
            "Made {}, id {}.\nKeep this line where the machine is not (a password manager, paper): a backup opens only \
             with it, and it is not shown again.\n\n  {}\n\n",
            path.display(),
            key.id(),
            *line
        ));
    }
    Ok(())
}

fn show(everywhere: &Everywhere, contents: &Contents, more: serde_json::Value, words: &str) -> Result<(), Fault> {
    let Contents { hostname, release, taken, records, bodies, body_bytes, unreadable, files } = contents;
    if everywhere.json {
        let mut all = json!({
            "hostname": hostname, "release": release, "taken": taken.rfc3339(), "records": records, "messages": bodies,
            "message_bytes": body_bytes, "unreadable": unreadable, "files": files,
        });
        if let (Some(all), serde_json::Value::Object(more)) = (all.as_object_mut(), more) {
            all.extend(more);
        }
        print_json(&all);
    } else {
        print(&format!(
            "{hostname}, taken {} by release {release}: {records} records, {bodies} messages of {}, {files} files\n{words}",
            taken.rfc3339(),
            size(*body_bytes)
        ));
    }
    match unreadable {
        0 => Ok(()),
        count => Err(Fault::Failed(format!("{count} messages could not be read when it was made; the rest is whole"))),
    }
}
