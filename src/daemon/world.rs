//! What touches the world before any room is opened: folders, the master key, certificates, DNS,
//! sockets and the store. Each failure is one sentence that names the setting or path, and says
//! whether an operator must act (configuration) or trying again may help.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;

use super::{Overrides, StartError};
use crate::config::Config;
use crate::events::Archive;
use crate::keyring::{self, KeyringError};
use crate::net::{BoundDialer, Certificates, ClientTls, Dialer, Resolver, SystemResolver};
use crate::seal::MasterKey;
use crate::store::{OpenError, Opened, Store};
use crate::submission::{self, GivenSocket};
use crate::web;

/// Bodies on their way in; emptied at every start, since no 250 was said for what lies there.
const DRAFTS: &str = "drafts";
/// Files of imports and exports.
const OPERATIONS: &str = "operations";
/// The index of messages.
const SEARCH: &str = "search";
/// Past events.
pub(super) const HISTORY: &str = "history";

/// What was opened.
pub(super) struct World {
    pub(super) certificates: Arc<Certificates>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) monitor: Option<TcpListener>,
    pub(super) socket: web::Socket,
    pub(super) admin: Vec<TcpListener>,
    pub(super) given_sockets: Vec<GivenSocket>,
}

impl World {
    pub(super) async fn open(config: &Config, overrides: &mut Overrides) -> Result<Self, StartError> {
        prepare_data_folder(&config.data)?;
        // The socket first: a second daemon on the same machine fails before it touches anything.
        let socket = web::Socket::bind(&config.web).map_err(|error| {
            StartError::Unavailable(format!("admin.socket {}: {error}", config.web.socket.display()))
        })?;
        Ok(Self {
            certificates: certificates(config)?,
            resolver: resolver(config, overrides.resolver.take())?,
            dialer: overrides.dialer.take().unwrap_or_else(|| Arc::new(BoundDialer)),
            monitor: monitor_listener(config).await?,
            socket,
            admin: admin_listeners(config).await?,
            given_sockets: given_sockets(config, overrides)?,
        })
    }
}

/// Opens the store, which takes its lock, off the async workers: replaying may take a while.
pub(super) async fn open_store(config: &Config) -> Result<Opened, StartError> {
    let settings = config.store.clone();
    let folder = settings.folder.display().to_string();
    let opened = tokio::task::spawn_blocking(move || crate::store::open(settings)).await;
    let opened = opened.map_err(|error| StartError::Unavailable(format!("the store {folder}: {error}")))?;
    let opened = opened.map_err(|error| match error {
        // Only the operator can bring the right release or the right folder.
        error @ OpenError::Newer(_) => StartError::Configuration(error.to_string()),
        error => StartError::Unavailable(format!("the store {folder}: {error}")),
    })?;
    if opened.replayed_batches > 0 {
        tracing::info!(batches = opened.replayed_batches, "the store replayed what its last run had not checkpointed");
    }
    Ok(opened)
}

/// Folders within the data folder, beside the store's.
pub(super) struct Folders {
    /// Of bodies on their way in.
    pub(super) drafts: PathBuf,
    /// Of past events.
    pub(super) archive: Arc<Archive>,
    /// Of imports and exports.
    pub(super) operations: PathBuf,
    /// Of the index of messages.
    pub(super) search: PathBuf,
}

impl Folders {
    /// Empties the drafts and opens the rest. Only under the store's lock, so that no other
    /// daemon's drafts are removed.
    pub(super) fn open(config: &Config) -> Result<Self, StartError> {
        let failed =
            |folder: &Path, error: io::Error| StartError::Unavailable(format!("{}: {error}", folder.display()));
        let drafts = config.data.join(DRAFTS);
        match fs::remove_dir_all(&drafts) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&drafts, error)),
            _ => prepare_folder(&drafts)?,
        }
        let history = config.data.join(HISTORY);
        let archive = Archive::open(&history).map_err(|error| failed(&history, error))?;
        let operations = config.data.join(OPERATIONS);
        prepare_folder(&operations)?;
        let search = config.data.join(SEARCH);
        prepare_folder(&search)?;
        Ok(Self { drafts, archive: Arc::new(archive), operations, search })
    }
}

/// Handshakes towards peers.
pub(super) fn client_tls(config: &Config, given: Option<ClientTls>) -> Result<ClientTls, StartError> {
    match given {
        Some(tls) => Ok(tls),
        None => ClientTls::new(config.trusted_roots.as_deref())
            .map_err(|error| StartError::Configuration(format!("tls.trusted_roots: {error}"))),
    }
}

fn prepare_folder(folder: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| StartError::Unavailable(format!("the data folder {}: {error}", folder.display())))
}

/// The data folder, made if need be, and writable for whoever we are.
fn prepare_data_folder(folder: &Path) -> Result<(), StartError> {
    prepare_folder(folder)?;
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(folder, access).map_err(|errno| {
        let owner =
            fs::metadata(folder).map_or_else(|_| "another user".to_owned(), |found| format!("uid {}", found.uid()));
        let own = rustix::process::geteuid().as_raw();
        StartError::Unavailable(format!(
            "the data folder {folder} belongs to {owner}, and the daemon runs as uid {own}: {error}; \
             start it as the folder's owner, or: chown -R {own} {folder}",
            folder = folder.display(),
            error = io::Error::from(errno),
        ))
    })
}

pub(super) fn master_key(config: &Config, given: Option<MasterKey>) -> Result<MasterKey, StartError> {
    if let Some(key) = given {
        return Ok(key);
    }
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let path = config.master_key_file(credentials.as_deref()).map_err(StartError::Configuration)?;
    let key = MasterKey::load(&path).map_err(|error| {
        let remedy = if path.exists() { "" } else { "; postern init makes one" };
        StartError::Configuration(format!("{error}{remedy}"))
    })?;
    Ok(key)
}

/// The key, and beside it the other one if a change of it was interrupted.
pub(super) fn with_other_key(store: &dyn Store, key: MasterKey) -> Result<Arc<MasterKey>, StartError> {
    let key = keyring::with_other(store, key).map_err(|error| match error {
        KeyringError::Stranger => StartError::Configuration(error.to_string()),
        error => StartError::Unavailable(error.to_string()),
    })?;
    Ok(Arc::new(key))
}

pub(super) fn certificates(config: &Config) -> Result<Arc<Certificates>, StartError> {
    let folder = config.certificates.display();
    let certificates = Certificates::open(&config.certificates, &config.hostname)
        .map_err(|error| unreadable(&format!("the certificate folder {folder}"), &error))?;
    if certificates.expiries().is_empty() {
        let remedy = "postern init writes a self-signed one to begin with";
        return Err(StartError::Configuration(format!("there is no usable certificate in {folder}; {remedy}")));
    }
    Ok(Arc::new(certificates))
}

/// What is not there, or not ours to read, only an operator can put right; a disk that errs, or a table of
/// descriptors that is full, may be better at the next try.
fn unreadable(what: &str, error: &io::Error) -> StartError {
    use io::ErrorKind::{InvalidData, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    let text = format!("{what}: {error}");
    match error.kind() {
        NotFound | NotADirectory | PermissionDenied | InvalidData | InvalidInput => StartError::Configuration(text),
        _ => StartError::Unavailable(text),
    }
}

fn resolver(config: &Config, given: Option<Arc<dyn Resolver>>) -> Result<Arc<dyn Resolver>, StartError> {
    match given {
        Some(resolver) => Ok(resolver),
        None => match SystemResolver::new(&config.dns) {
            Ok(resolver) => Ok(Arc::new(resolver)),
            Err(error) => Err(StartError::Unavailable(error.to_string())),
        },
    }
}

async fn monitor_listener(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = config.monitor else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|error| StartError::Unavailable(format!("monitor.listen {address}: {error}")))
}

async fn admin_listeners(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    for address in &config.web.listen {
        let bound = TcpListener::bind(address).await;
        let failed = |error| StartError::Unavailable(format!("admin.listen {address}: {error}"));
        listeners.push(bound.map_err(failed)?);
    }
    Ok(listeners)
}

/// Sockets of a test or trial, else those systemd opened for us.
fn given_sockets(config: &Config, overrides: &mut Overrides) -> Result<Vec<GivenSocket>, StartError> {
    if !overrides.sockets.is_empty() {
        return Ok(std::mem::take(&mut overrides.sockets));
    }
    let inherited = submission::inherited_sockets(&config.submission);
    inherited.map_err(|error| StartError::Unavailable(format!("the sockets systemd gave: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_errs_is_tried_again_and_what_an_operator_must_mend_is_not() {
        use rustix::io::Errno;
        for (errno, is_tried_again) in [
            (Errno::IO, true),
            (Errno::MFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
        ] {
            let error = unreadable("the certificate folder", &errno.into());
            assert_eq!(matches!(error, StartError::Unavailable(_)), is_tried_again, "{errno}");
        }
    }
}
