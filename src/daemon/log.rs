//! Where log lines go: standard error, for people or as JSON, at a level that a reload may change.
//!
//! No environment variable has a say. Easy to get wrong: under systemd the journal adds the time
//! and the level itself, so plain lines carry neither colours nor a second timestamp.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{Log, LogFormat};

/// The installed log, of which the level can still be changed.
pub(super) struct Logging {
    filter: Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Installs the log of the process; only the first call in a process has an effect on where lines go.
    pub(super) fn install(log: &Log) -> Self {
        let (filter, handle) = reload::Layer::new(filter(&log.level));
        let lines = match log.format {
            LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
            LogFormat::Text => text(),
        };
        if tracing_subscriber::registry().with(filter).with(lines).try_init().is_err() {
            tracing::debug!("a log is installed already");
        }
        Self { filter: handle }
    }

    /// Takes over another level.
    pub(super) fn set_level(&self, level: &str) {
        if let Err(error) = self.filter.reload(filter(level)) {
            tracing::warn!(%error, "the log level could not be changed");
        }
    }
}

fn text<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() { layer.without_time().boxed() } else { layer.boxed() }
}

/// Our own lines at `level`; libraries only when something is wrong, since theirs may hold contents.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("error,postern={level}"))
}
