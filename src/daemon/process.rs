//! The process around the daemon: log, signals, systemd's notifications, exit codes.
//!
//! SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reloads. Easy to get wrong: a store
//! that has stopped (a failed sync) must not be retried in place. The process says not ready,
//! gives back what it holds and exits, so that systemd starts a new one that reads the disk again.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::Logging;
use super::{Daemon, Overrides, StartError};
use crate::config::{self, Applied, Config, EXIT_CONFIG, RootPolicy};
use crate::store;

/// Everything was stopped as asked.
pub const EXIT_STOPPED: u8 = 0;
/// It could not start: a disk, a lock, a port. Trying again may help.
pub const EXIT_START: u8 = 1;
/// A task without which the daemon is a lie ended before its time (`EX_SOFTWARE`).
pub const EXIT_FALLEN: u8 = 70;
/// The store has stopped until it is opened anew (`EX_IOERR`).
pub const EXIT_STORE: u8 = 74;
/// Started as root without leave (`EX_NOPERM`).
pub const EXIT_ROOT: u8 = 77;

/// How often the process looks after the daemon when systemd does not ask for more.
const BEAT: Duration = Duration::from_secs(5);
/// Whoever stops a process and its whole group (`timeout`, a terminal below `sudo`) makes it hear one
/// wish twice; what comes within this is the same wish.
const ECHO: Duration = Duration::from_secs(1);
/// A store that does not answer a read for so long, or does not finish a write, is no longer alive.
const ALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the process waits for its store to close once everything else has stopped.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What is in memory never lies on a disk after a crash, and no other process of the same user reads it. To be called
/// before any secret is read.
pub fn keep_memory_private() {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    // A handler that core(5) pipes dumps into is started whatever the limit is, but not for what is not dumpable.
    let limited = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let undumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    for error in [limited, undumpable].into_iter().filter_map(Result::err) {
        eprintln!("postern: core dumps could not be switched off: {error}");
    }
}

/// Runs the daemon from the file at `path` until it is told to stop; the code it exits with.
/// `root` is the command line's say, beside the file's.
pub fn serve(path: &Path, root: RootPolicy) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if rustix::process::geteuid().is_root() && root == RootPolicy::Refuse && config.root == RootPolicy::Refuse {
        eprintln!(
            "postern: refuses to serve as root; start it as a user of its own (systemd/postern.service does), \
             or say --allow-root (allow_root = true in the file) if root is the only user there is"
        );
        return ExitCode::from(EXIT_ROOT);
    }
    let logging = Logging::install(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime could not be started");
            return ExitCode::from(EXIT_START);
        }
    };
    let code = runtime.block_on(run(config, path, &logging));
    // Threads that hang in a system call do not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ExitCode::from(code)
}

async fn run(config: Config, path: &Path, logging: &Logging) -> u8 {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return EXIT_START;
        }
    };
    let daemon = match Daemon::start(config.clone(), Overrides::default()).await {
        Ok(daemon) => daemon,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            notify(&[NotifyState::Status(&format!("cannot start: {error}"))]);
            return match error {
                StartError::Configuration(_) => EXIT_CONFIG,
                StartError::Unavailable(_) => EXIT_START,
            };
        }
    };
    notify(&[NotifyState::Ready, NotifyState::Status(&daemon.status())]);
    tracing::info!(status = daemon.status(), "serving");
    let store_folder = config.store.folder.clone();
    let ending = attend(&daemon, &mut signals, config, (path, logging)).await;
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    let store_patience = tokio::select! {
        left = daemon.stop() => {
            match left {
                0 => tracing::info!("stopped"),
                left => tracing::warn!(left, "stopped with tasks still running; their mail is still owed"),
            }
            STORE_PATIENCE
        }
        () = signals.stop_again() => {
            tracing::warn!("stopped at once at a second signal; what ran is still owed");
            Duration::ZERO
        }
    };
    // A stopped store may have felled tasks that need it: the store is the cause.
    let ending = match (daemon.fallen(), daemon.store_stopped()) {
        (Some(_), Some(_)) => EXIT_STORE,
        (Some(_), None) => EXIT_FALLEN,
        (None, _) => ending,
    };
    // It closes with a checkpoint, so that the next start need not replay.
    drop(daemon);
    tokio::select! {
        is_closed = store::closed(&store_folder, store_patience) => if !is_closed {
            tracing::warn!("the store did not close in time; the next start replays its journal");
        },
        () = signals.stop_again() => {}
    }
    ending
}

/// Looks after the daemon until something ends it; the exit code.
async fn attend(daemon: &Daemon, signals: &mut Signals, mut config: Config, (path, logging): (&Path, &Logging)) -> u8 {
    let mut beat = tokio::time::interval(beat());
    loop {
        tokio::select! {
            () = daemon.ended() => return EXIT_FALLEN,
            asked = signals.next() => match asked {
                Asked::Stop => return EXIT_STOPPED,
                Asked::Reload => reload(daemon, &mut config, path, logging),
            },
            _ = beat.tick() => {
                if let Some(why) = daemon.store_stopped() {
                    tracing::error!(%why, "the store has stopped; the daemon ends so that it is opened anew");
                    notify(&[NotifyState::Status(&format!("the store has stopped: {why}"))]);
                    return EXIT_STORE;
                }
                if daemon.is_alive(ALIVE_PATIENCE).await {
                    notify(&[NotifyState::Watchdog, NotifyState::Status(&daemon.status())]);
                } else {
                    tracing::error!("the store does not answer, or a write does not end; the watchdog is not told that all is well");
                }
            }
        }
    }
}

/// Reads the file again; takes over what can change, or keeps the old and says why.
fn reload(daemon: &Daemon, config: &mut Config, path: &Path, logging: &Logging) {
    let now = NotifyState::monotonic_usec_now();
    match now {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    match config::load(path) {
        Err(problems) => {
            for problem in &problems {
                tracing::error!("{problem}");
            }
            tracing::error!(problems = problems.len(), "the configuration does not check; the old one stays in use");
        }
        Ok(new) => {
            let changed = new.changes_from(config);
            for setting in &changed {
                match setting.applied {
                    Applied::OnReload => tracing::info!(setting = setting.key, "taken over"),
                    Applied::AtStart => tracing::warn!(setting = setting.key, "changed; a restart takes it over"),
                }
            }
            logging.set_level(&new.log.level);
            tracing::info!(changed = changed.len(), "configuration read again");
            config.take_over(&new);
        }
    }
    daemon.reload(config);
    notify(&[NotifyState::Ready, NotifyState::Status(&daemon.status())]);
}

/// Twice within what systemd allows, and never less often than [`BEAT`].
fn beat() -> Duration {
    let mut micros = 0;
    if sd_notify::watchdog_enabled(false, &mut micros) {
        BEAT.min(Duration::from_micros(micros / 2)).max(Duration::from_millis(100))
    } else {
        BEAT
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not notified");
    }
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// A signal to stop that is a second one, not the first one's echo.
    async fn stop_again(&mut self) {
        let first = Instant::now();
        while !matches!(self.next().await, Asked::Stop) || first.elapsed() < ECHO {}
    }
}
