//! The configuration file: only what a machine needs to start; everything people manage is in
//! the store.
//!
//! Recipe: [`load`] a path (or [`read`] a text), get a [`Config`] with one `Settings` per room, or
//! *every* problem at once, each with file, line and key. [`reference()`] and [`example`] write the
//! documents; both come from the same table as the checks.
//! Easy to get wrong: rooms never see `Config`; the daemon hands each its own part.

mod beside;
mod check;
mod file;
mod reference;
mod secret;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::mail::{Domain, printable};
use crate::net::DnsSettings;
use crate::{accounts, breaker, delivery, domains, feedback, pipeline, queue, store, submission, web};

pub use reference::{example, reference};
pub use secret::SecretPlace;
pub use settings::{Applied, Presence, Setting};

/// Where the file is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/postern/postern.toml";
/// The exit code for a configuration that does not check (`EX_CONFIG` of sysexits).
pub const EXIT_CONFIG: u8 = 78;
/// A longer file is not a configuration.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A configuration that checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// This machine's name.
    pub hostname: Domain,
    /// The data folder.
    pub data: PathBuf,
    /// Whether it may serve as root.
    pub root: RootPolicy,
    /// The certificate folder.
    pub certificates: PathBuf,
    /// Authorities trusted beside Mozilla's.
    pub trusted_roots: Option<PathBuf>,
    /// Where the master key is.
    pub master_key: SecretPlace,
    /// Where the backup key is.
    pub backup_key: SecretPlace,
    /// For `submission`.
    pub submission: submission::Settings,
    /// For `feedback` and its door.
    pub feedback: Feedback,
    /// For `pipeline`.
    pub pipeline: pipeline::Settings,
    /// For `store`; its folder is within the data folder.
    pub store: store::Settings,
    /// For `domains`.
    pub domains: domains::Settings,
    /// For `delivery`.
    pub delivery: delivery::Settings,
    /// For `tlsrpt`.
    pub tls_reports: crate::tlsrpt::Settings,
    /// How long past events are kept.
    pub history_kept: Duration,
    /// For `notifications`.
    pub notifications: crate::notifications::Settings,
    /// For `search`.
    pub search: crate::search::Settings,
    /// For `statistics`.
    pub statistics: crate::statistics::Settings,
    /// For `webhooks`.
    pub webhooks: crate::webhooks::Settings,
    /// For `accounts`.
    pub accounts: accounts::Settings,
    /// For `breaker`.
    pub breaker: breaker::Limits,
    /// For `queue`.
    pub queue: queue::Settings,
    /// For `net`'s resolver.
    pub dns: DnsSettings,
    /// The gate before new work.
    pub gate: crate::gate::Settings,
    /// For `web`'s local socket.
    pub web: web::Settings,
    /// Where health and metrics are served.
    pub monitor: Option<SocketAddr>,
    /// Logging.
    pub log: Log,
    effective: BTreeMap<&'static str, value::Value>,
}

/// Whether the daemon may serve as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootPolicy {
    /// No.
    Refuse,
    /// The operator said so.
    Allow,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// For `feedback`.
    pub room: feedback::Settings,
    /// When its door is open.
    pub door: FeedbackDoor,
    /// Ports and limits of the door.
    pub submission: submission::Settings,
    /// Where it listens besides the virtual IPs.
    pub listen: Vec<SocketAddr>,
}

/// When the door for what comes back is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackDoor {
    /// As soon as a domain has a return-path.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or machines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, if the problem has one.
    pub line: Option<usize>,
    /// The key; empty if the problem is not about one.
    pub key: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        // A key or value may hold anything; a problem is one line all the same.
        let text = printable(&self.text);
        match self.key.as_str() {
            "" => write!(formatter, ": {text}"),
            key => write!(formatter, ": {}: {text}", printable(key)),
        }
    }
}

/// Reads and checks a file.
///
/// # Errors
/// Every problem, by line; one without a line if the file cannot be read at all.
pub fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    let unreadable = |text: String| vec![Problem { file: path.to_owned(), line: None, key: String::new(), text }];
    let metadata = std::fs::metadata(path).map_err(|error| {
        let remedy = if error.kind() == std::io::ErrorKind::NotFound { "; postern init makes one" } else { "" };
        unreadable(format!("cannot be read: {error}{remedy}"))
    })?;
    let length = metadata.len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(format!("is larger than {FILE_BYTES_MAX} bytes; this is not a configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let config = read(path, &text);
    beside::add(path, config)
}

/// Checks a text; `path` is only named in problems.
///
/// # Errors
/// Every problem, by line.
pub fn read(path: &Path, text: &str) -> Result<Config, Vec<Problem>> {
    check::check(path, text)
}
