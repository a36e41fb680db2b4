//! `postern masterkey rotate`: a new master key, while the daemon is stopped.
//!
//! The key's file belongs to the configuration, the sealed values to the data folder, and the two often to
//! different users. So the steps on the store run in a child process as the store's owner, and the one
//! between them, the change of the file, here. Easy to get wrong: each step may be the last before a crash;
//! `keyring` makes every state between them one in which the daemon starts.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::arguments::{Everywhere, MasterKey as Asked};
use super::client::Fault;
use super::output::{print, print_json};
use crate::config::Config;
use crate::keyring;
use crate::seal::MasterKey;
use crate::store::{self, OpenError};

/// What the child says when all is sealed: the key, for the parent's pipe alone.
#[derive(serde::Serialize, serde::Deserialize)]
struct Told {
    key: String,
    values: u64,
    unopened: Vec<String>,
}

/// Carries out one of the commands.
pub async fn run(everywhere: &Everywhere, config: &Config, asked: &Asked) -> Result<(), Fault> {
    match asked {
        Asked::Rotate { file } => rotate(everywhere, config, &place(config, file.as_deref())?),
        Asked::Reseal { file } => reseal(config, file).await,
        Asked::Forget { file } => forget(config, file).await,
    }
}

fn place(config: &Config, file: Option<&Path>) -> Result<PathBuf, Fault> {
    match file {
        Some(file) => Ok(file.to_owned()),
        None => config
            .master_key_file(None)
            .map_err(|error| Fault::Failed(format!("{error}; name the file that LoadCredential= reads: --file FILE"))),
    }
}

fn rotate(everywhere: &Everywhere, config: &Config, file: &Path) -> Result<(), Fault> {
    let told = child(everywhere, config, ("reseal", file))?;
    let told: Told = serde_json::from_slice(&told).map_err(|error| Fault::Failed(error.to_string()))?;
    let new = MasterKey::from_line(&told.key).map_err(|error| Fault::Failed(error.to_string()))?;
    put(&new, file).map_err(|error| Fault::Failed(format!("{}: {error}; run this again", file.display())))?;
    child(everywhere, config, ("forget", file))?;
    if everywhere.json {
        print_json(&serde_json::json!({
            "file": file.display().to_string(), "values": told.values, "unopened": told.unopened,
        }));
    } else {
        print(&format!(
            "{} holds a new key, and {} records are sealed under it. Copies of the old key open old copies of the data \
             folder only; keep a copy of the new one.\n",
            file.display(),
            told.values
        ));
        told.unopened.iter().for_each(|what| print(&format!("left as it was, opens under neither key: {what}\n")));
    }
    Ok(())
}

/// The new key takes the old one's name at once, with its owner and mode.
fn put(new: &MasterKey, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut next = file.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    // Left by a run that was cut off; what it held is in the store, sealed under the old key.
    if next.exists() {
        fs::remove_file(&next)?;
    }
    new.save(&next)?;
    let old = fs::metadata(file)?;
    let made = fs::metadata(&next)?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        chown(&next, Some(old.uid()), Some(old.gid()))?;
    }
    fs::set_permissions(&next, fs::Permissions::from_mode(old.mode() & 0o777))?;
    fs::rename(&next, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Runs a step as the user the store belongs to; what it printed.
fn child(everywhere: &Everywhere, config: &Config, (step, file): (&str, &Path)) -> Result<Vec<u8>, Fault> {
    let folder = &config.store.folder;
    let owner = fs::metadata(folder).map_err(|error| Fault::Failed(format!("{}: {error}", folder.display())))?;
    let failed = |error: std::io::Error| Fault::Failed(format!("masterkey {step}: {error}"));
    let key = File::open(file).map_err(|error| Fault::Failed(format!("{}: {error}", file.display())))?;
    drop(key);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("--config").arg(&everywhere.config).args(["masterkey", step]).arg(file);
    let own = rustix::process::geteuid();
    if own.is_root() && owner.uid() != own.as_raw() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let done = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().map_err(failed)?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.trim().trim_start_matches("postern: ").to_owned();
    let code = done.status.code().and_then(|code| u8::try_from(code).ok());
    Err(if code == Some(super::exit::CONFIGURATION) { Fault::Configuration(said) } else { Fault::Failed(said) })
}

async fn reseal(config: &Config, file: &Path) -> Result<(), Fault> {
    let (opened, mine) = open(config, file)?;
    let done = keyring::reseal(&*opened.records, &mine).await.map_err(|error| Fault::Failed(error.to_string()))?;
    let told = Told { key: done.new.line().to_string(), values: done.values, unopened: done.unopened };
    let text = serde_json::to_vec(&told).map_err(|error| Fault::Failed(error.to_string()))?;
    std::io::stdout().write_all(&text).map_err(|error| Fault::Failed(error.to_string()))
}

async fn forget(config: &Config, file: &Path) -> Result<(), Fault> {
    let (opened, mine) = open(config, file)?;
    keyring::forget(&*opened.records, &mine).await.map_err(|error| Fault::Failed(error.to_string()))
}

fn open(config: &Config, file: &Path) -> Result<(store::Opened, MasterKey), Fault> {
    super::store::may_open(&config.store.folder, rustix::process::geteuid().as_raw()).map_err(Fault::Failed)?;
    let mine = MasterKey::load(file).map_err(|error| Fault::Failed(error.to_string()))?;
    let opened = store::open(config.store.clone())
        .map_err(|error: OpenError| super::store::unopened(&config.store.folder, &error))?;
    Ok((opened, mine))
}
