//! The composition root: builds every room from a [`Config`], starts their tasks, and stops them
//! in order. The only file that knows how everything is connected; nothing here decides about mail.
//!
//! Recipe: [`Daemon::start`], then [`Daemon::stop`]. [`serve`] puts a process around it (signals,
//! systemd, exit codes). Easy to get wrong: the order of stopping. The doors close and attempts end
//! first, while what they report to (queue, events) still runs; only then the rest is stopped.

mod administrators;
mod calendar;
mod files;
mod log;
mod prepare;
mod process;
mod readiness;
mod returning;
mod rooms;
mod telling;
mod watches;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::accounts::Accounts;
use crate::background::{Background, periodically};
use crate::breaker::Breaker;
use crate::config::{Config, LogFormat};
use crate::delivery::{self, Delivery};
use crate::domains::Domains;
use crate::events::{self, Archive, Consumer, LogLine, Tally};
use crate::ext::Timestamp;
use crate::feedback::Feedback;
use crate::metrics;
use crate::net::{CERTIFICATE_POLL, Certificates, ClientTls, Dialer, Resolver};
use crate::people::People;
use crate::pipeline::Pipeline;
use crate::queue::Queue;
use crate::routing::Routes;
use crate::seal::MasterKey;
use crate::search::Search;
use crate::store::{Health, Store};
use crate::submission::{self, GivenSocket};
use crate::suppression::Suppression;
use crate::tenancy::Tenancy;
use crate::tlsrpt::TlsReports;
use crate::vips::Vips;
use crate::web::{self, Monitor, Readiness};
use crate::webhooks::Webhooks;

pub use files::{Look, look};
pub use prepare::prepare;
pub use process::{EXIT_FALLEN, EXIT_ROOT, EXIT_START, EXIT_STOPPED, EXIT_STORE, keep_memory_private, serve};

use readiness::{Phase, State};
use rooms::Rooms;
use world::{Folders, World};

/// Running messages and attempts may finish within this; then they are given back.
pub const DRAIN: Duration = Duration::from_secs(30);
/// Beyond [`DRAIN`]: rooms write down what they were given back.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// Consumers and the operator's sockets end within this.
const CLOSE: Duration = Duration::from_secs(10);
/// How often gauges are set.
const MEASURE: Duration = Duration::from_secs(10);
/// How often the gate looks by itself.
const RELIEVE: Duration = Duration::from_secs(1);
/// How often counters of limits and logins are written.
const PERSIST: Duration = Duration::from_secs(10);

/// Why the daemon could not start. A variant per exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or what it points to, is not usable: an operator must act.
    #[error("{0}")]
    Configuration(String),
    /// The machine did not give what is needed: a disk, a lock, a port. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
}

/// What tests and trials put in place of the world.
#[derive(Default)]
pub struct Overrides {
    /// Instead of the configured DNS servers.
    pub resolver: Option<Arc<dyn Resolver>>,
    /// Instead of sockets bound to virtual IPs.
    pub dialer: Option<Arc<dyn Dialer>>,
    /// Instead of the key file.
    pub master_key: Option<MasterKey>,
    /// Served beside those of the virtual IPs; a session belongs to the virtual IP of its local address.
    pub sockets: Vec<GivenSocket>,
    /// Verifies relays with these roots too.
    pub client_tls: Option<ClientTls>,
    /// Where the mail log goes.
    pub mail_log: MailLog,
}

/// Where the mail log, a line per event, goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MailLog {
    /// To standard error.
    #[default]
    Shown,
    /// Nowhere: the trial prints a trail of its own.
    Silent,
}

/// A running daemon and the handles of its rooms.
pub struct Daemon {
    /// Virtual IPs.
    pub vips: Arc<Vips>,
    /// Tenants and SMTP accounts.
    pub accounts: Arc<Accounts>,
    /// Watches SMTP accounts.
    pub breaker: Arc<Breaker>,
    /// Sending domains.
    pub domains: Arc<Domains>,
    /// What came back.
    pub feedback: Arc<Feedback>,
    /// Suppression lists.
    pub suppression: Arc<Suppression>,
    /// Relays.
    pub routes: Arc<Routes>,
    /// What is owed.
    pub queue: Arc<Queue>,
    /// The operators' hand on delivery.
    pub delivery: Arc<Delivery>,
    /// Records.
    pub store: Arc<dyn Store>,
    /// Where health and metrics are served, if they are.
    pub monitor: Option<SocketAddr>,
    /// Where the admin API is served over TLS.
    pub admin: Vec<SocketAddr>,
    /// Who administers.
    pub people: Arc<People>,
    /// Who is told what happened.
    pub webhooks: Arc<Webhooks>,
    /// Which messages fit.
    pub search: Arc<Search>,
    /// What is reported about TLS.
    pub tls_reports: Arc<TlsReports>,
    /// The local socket.
    pub socket: PathBuf,
    certificates: Arc<Certificates>,
    delivery_settings: Arc<watch::Sender<Arc<delivery::Settings>>>,
    submission_settings: watch::Sender<Arc<submission::Settings>>,
    pipeline: Arc<Pipeline>,
    state: Arc<State>,
    /// Doors and delivery: stopped first.
    flow: Background,
    /// Consumers, watchers, operator's sockets: stopped last.
    rest: Background,
}

impl Daemon {
    /// Opens everything and begins to serve.
    ///
    /// # Errors
    /// The first step that failed, as a sentence that names the setting or path.
    pub async fn start(config: Config, mut overrides: Overrides) -> Result<Self, StartError> {
        let started = Timestamp::now();
        let world = World::open(&config, &mut overrides).await?;
        let key = world::master_key(&config, overrides.master_key)?;
        let opened = world::open_store(&config).await?;
        let key = world::with_other_key(&*opened.records, key)?;
        let folders = Folders::open(&config)?;
        let tls = world::client_tls(&config, overrides.client_tls)?;
        let rooms = Rooms::open(&config, opened, key, (&world, &folders, &tls)).await?;
        rooms.report_damage(started).await;
        // Before anything is told.
        rooms.notifications.mail_with(telling::post(&rooms, config.hostname.to_string()));
        if let Err(error) = rooms.domains.ensure_instance_key(&config.hostname, started).await {
            tracing::warn!(%error, "the instance's own key could not be made; notices may leave unsigned");
        }
        let tenancy = rooms.tenancy()?;
        let state = State::new(&rooms, Arc::clone(&world.certificates), started);
        let daemon = Self::around(&config, &rooms, &world, state);
        daemon.start_rest(&config, &rooms, (folders.archive, overrides.mail_log, Arc::clone(&tenancy)));
        daemon.start_tls_reports(&rooms);
        administrators::welcome(&rooms.people, &daemon.admin).await;
        daemon.start_returning(&config, &rooms, &folders.drafts);
        daemon.start_doors(config, &rooms, world, (folders.drafts, tls, started, tenancy));
        daemon.state.enter(Phase::Serving);
        Ok(daemon)
    }

    fn around(config: &Config, rooms: &Rooms, world: &World, state: State) -> Self {
        let rooms = rooms.clone();
        Self {
            vips: rooms.vips,
            accounts: rooms.accounts,
            breaker: rooms.breaker,
            domains: rooms.domains,
            feedback: rooms.feedback,
            suppression: rooms.suppression,
            routes: rooms.routes,
            queue: rooms.queue,
            store: rooms.store,
            monitor: world.monitor.as_ref().and_then(|listener| listener.local_addr().ok()),
            admin: world.admin.iter().filter_map(|listener| listener.local_addr().ok()).collect(),
            people: rooms.people,
            webhooks: rooms.webhooks,
            search: rooms.search,
            tls_reports: rooms.tls_reports,
            socket: config.web.socket.clone(),
            delivery: rooms.delivery,
            certificates: Arc::clone(&world.certificates),
            delivery_settings: rooms.delivery_settings,
            submission_settings: watch::Sender::new(Arc::new(config.submission.clone())),
            pipeline: rooms.pipeline,
            state: Arc::new(state),
            flow: Background::new(),
            rest: Background::new(),
        }
    }

    /// What runs behind the doors: housekeeping, consumers of events, watchers.
    fn start_rest(
        &self,
        config: &Config,
        rooms: &Rooms,
        (archive, mail_log, tenancy): (Arc<Archive>, MailLog, Arc<Tenancy>),
    ) {
        let shutdown = || self.rest.shutdown().clone();
        let (queue, stop) = (Arc::clone(&self.queue), shutdown());
        self.rest.vital("queue", async move { queue.keep(&stop).await });
        self.rest.vital("queue acts", Arc::clone(&self.queue).run_sweeps(shutdown()));
        let (pacing, stop) = (Arc::clone(&rooms.pacing), shutdown());
        self.rest.vital("pacing", async move { pacing.keep(&stop).await });
        let (domains, stop) = (Arc::clone(&self.domains), shutdown());
        self.rest.vital("domains", async move { domains.run(stop).await });
        self.rest.vital("certificates", Arc::clone(&self.certificates).watch(CERTIFICATE_POLL, shutdown()));
        self.rest.vital("people", administrators::persist(Arc::clone(&rooms.people), shutdown()));
        self.rest.vital("accounts", persist_accounts(Arc::clone(&self.accounts), shutdown()));
        let stop = shutdown();
        self.rest.vital("tenancy", async move { tenancy.run(stop).await });
        let (intake, stop) = (Arc::clone(&rooms.intake), shutdown());
        self.rest.vital("intake", async move { intake.keep(&stop).await });
        self.rest.vital("operations", Arc::clone(&rooms.operations).run(shutdown()));
        let format = match config.log.format {
            LogFormat::Text => events::LogFormat::Text,
            LogFormat::Json => events::LogFormat::Json,
        };
        let log_line = match mail_log {
            MailLog::Shown => LogLine::new(Arc::clone(&self.store), format),
            MailLog::Silent => LogLine::to(Arc::clone(&self.store), format, Box::new(std::io::sink())),
        };
        let notifications = Arc::clone(&rooms.notifications);
        let consumers: Vec<Arc<dyn Consumer>> = vec![
            Arc::new(log_line),
            Arc::clone(&notifications) as Arc<dyn Consumer>,
            Arc::new(returning::feed(&self.suppression, &self.delivery_settings.subscribe(), &rooms.pacing)),
        ];
        let (watches, stop) = (watches::watches(rooms), shutdown());
        self.rest.vital("notifications", async move { notifications.run(watches, stop).await });
        let names = consumers.iter().map(|consumer| consumer.name()).chain(self.start_tallies(rooms)).collect();
        self.rest.vital("old statistics", Arc::clone(&rooms.statistics).keep_short(shutdown()));
        let (breaker, queue, stop) = (Arc::clone(&self.breaker), Arc::clone(&self.queue), shutdown());
        self.rest.vital("pauses", async move { breaker.hold(&queue, &stop).await });
        for consumer in consumers {
            let (store, bell, stop) = (Arc::clone(&self.store), rooms.bell.clone(), shutdown());
            self.rest.vital("events", async move { events::drive(&*store, &consumer, &bell, &stop).await });
        }
        let (store, stop, retention) = (Arc::clone(&self.store), shutdown(), config.history_kept);
        let kept = (retention, rooms.calendar.clone());
        self.rest.vital("history", async move { archive.run(store, names, kept, &stop).await });
        self.rest.vital("calendar", calendar::keep(rooms.calendar.clone(), Arc::clone(&self.store), shutdown()));
        let (webhooks, stop) = (Arc::clone(&rooms.webhooks), shutdown());
        self.rest.spawn("webhooks", async move { webhooks.run(stop).await });
        self.rest.spawn("search", Arc::clone(&rooms.search).run(shutdown()));
        let (gate, stop) = (Arc::clone(&rooms.gate), shutdown());
        self.rest.spawn("gate", async move {
            periodically(RELIEVE, &Notify::new(), &stop, || async {
                let gate = Arc::clone(&gate);
                let _ = tokio::task::spawn_blocking(move || gate.relieve()).await;
            })
            .await;
        });
        let (state, stop) = (Arc::clone(&self.state), shutdown());
        self.rest.spawn("gauges", async move {
            let exporter = metrics::exporter();
            periodically(MEASURE, &Notify::new(), &stop, || async {
                state.measure();
                if let Ok(exporter) = &exporter {
                    exporter.run_upkeep();
                }
            })
            .await;
        });
    }

    /// What counts each event once; their names.
    fn start_tallies(&self, rooms: &Rooms) -> [&'static str; 3] {
        let tallies = [
            ("breaker", Arc::clone(&self.breaker) as Arc<dyn Tally>),
            ("statistics", Arc::clone(&rooms.statistics) as Arc<dyn Tally>),
            ("complaints", returning::complaints(&rooms.pacing, &self.queue)),
        ];
        tallies.map(|(task, tally)| {
            let name = tally.name();
            let (store, bell, stop) = (Arc::clone(&self.store), rooms.bell.clone(), self.rest.shutdown().clone());
            self.rest.vital(task, async move { events::drive_exactly(&*store, &tally, &bell, &stop).await });
            name
        })
    }

    /// What recipient domains are told about TLS; it outlives delivery, whose last sessions it counts.
    fn start_tls_reports(&self, rooms: &Rooms) {
        let (reports, intake) = (Arc::clone(&self.tls_reports), Arc::clone(&rooms.intake));
        let stop = self.rest.shutdown().clone();
        self.rest.vital("TLS reports", async move { reports.run(intake, stop).await });
    }

    /// The door for what comes back, and what goes on from there.
    fn start_returning(&self, config: &Config, rooms: &Rooms, drafts: &Path) {
        if let Some(door) = returning::door(config, rooms, (&self.certificates, drafts)) {
            self.flow.vital("feedback", submission::run(door, self.flow.shutdown().clone()));
        }
        let (feedback, intake) = (Arc::clone(&rooms.feedback), Arc::clone(&rooms.intake));
        let stop = self.flow.shutdown().clone();
        self.flow.vital("onward", async move { feedback.run(intake, stop).await });
        let (notifications, stop) = (Arc::clone(&rooms.notifications), self.flow.shutdown().clone());
        self.flow.vital("mail of notifications", async move { notifications.run_mailing(stop).await });
    }

    /// What mail is delivered with.
    fn delivery_parts(
        &self,
        rooms: &Rooms,
        (resolver, dialer, tls): (Arc<dyn Resolver>, Arc<dyn Dialer>, ClientTls),
    ) -> delivery::Parts {
        let suppression = Arc::clone(&self.suppression);
        delivery::Parts {
            queue: Arc::clone(&self.queue),
            gate: Arc::clone(&rooms.gate),
            vips: Arc::clone(&self.vips),
            routes: Arc::clone(&self.routes),
            suppressed: Arc::new(move |tenant, account, address| {
                suppression.contains(tenant, account, address, Timestamp::now()).map_err(|error| error.to_string())
            }),
            store: Arc::clone(&self.store),
            resolver,
            dialer,
            tls: Arc::new(tls),
            delivery: Arc::clone(&self.delivery),
            return_path: returning::return_address(&rooms.feedback),
            pacing: Arc::clone(&rooms.pacing),
            tls_policies: Arc::clone(&rooms.tls_policies),
            destinations: Arc::clone(&rooms.destinations),
            tls_memory: Arc::clone(&rooms.tls_memory),
            tls_reports: Arc::clone(&rooms.tls_reports),
            tracer: Arc::clone(&rooms.tracer),
            settings: self.delivery_settings.subscribe(),
        }
    }

    /// What the world may knock at, and delivery.
    fn start_doors(
        &self,
        config: Config,
        rooms: &Rooms,
        world: World,
        given: (PathBuf, ClientTls, Timestamp, Arc<Tenancy>),
    ) {
        let (drafts_folder, tls, started, tenancy) = given;
        let parts = self.delivery_parts(rooms, (world.resolver, world.dialer, tls));
        self.flow.vital("delivery", delivery::run(parts, self.flow.shutdown().clone()));
        let parts = delivery::NoticeParts {
            queue: Arc::clone(&self.queue),
            intake: Arc::clone(&rooms.intake),
            vips: Arc::clone(&self.vips),
            settings: self.delivery_settings.subscribe(),
        };
        self.flow.vital("notices", delivery::pay_notices(parts, self.flow.shutdown().clone()));
        let hostname = config.hostname.clone();
        let about = web::About {
            hostname: config.hostname,
            tls_ports: config.submission.tls_ports.clone(),
            starttls_ports: config.submission.starttls_ports.clone(),
            started,
        };
        let sending = web::SendingLimits {
            message_bytes_max: config.submission.session.message_bytes_max,
            header_bytes_max: config.submission.header_bytes_max,
            recipients_max: config.submission.session.recipients_max,
            hold_max: config.submission.session.hold_max,
        };
        let parts = submission::Parts {
            settings: self.submission_settings.subscribe(),
            gate: Arc::clone(&rooms.gate),
            duty: submission::Duty::Submission(submission::Submitting {
                accounts: Arc::clone(&self.accounts),
                may_send_from: rooms.sender_rule(),
                may_enter: rooms.may_enter(),
                accept: rooms.accept(),
            }),
            vips: Arc::clone(&self.vips),
            certificates: Arc::clone(&self.certificates),
            drafts_folder,
            tracer: Arc::clone(&rooms.tracer),
            given_sockets: world.given_sockets,
        };
        self.flow.vital("submission", submission::run(parts, self.flow.shutdown().clone()));
        let (settings, stop) = (config.web, self.rest.shutdown().clone());
        let (parts, certificates, name) =
            (rooms.for_web(tenancy, about, sending), Arc::clone(&self.certificates), hostname);
        let doors = (world.socket, world.admin, Arc::new(move || certificates.server_config(&name)) as web::TlsNow);
        self.rest.vital("admin", async move { web::serve(parts, &settings, doors, stop).await });
        if let Some(listener) = world.monitor {
            let (monitor, stop) = (Arc::new(monitor(&self.state)), self.rest.shutdown().clone());
            self.rest.spawn("monitor", web::serve_monitor(listener, monitor, stop));
        }
    }

    /// Whether mail is accepted now, and why not.
    pub fn readiness(&self) -> Readiness {
        self.state.readiness()
    }

    /// One line for systemd and people.
    pub fn status(&self) -> String {
        let totals = self.queue.totals();
        let vips = self.vips.all().len();
        let doing = match self.state.readiness().reasons.first() {
            None => "accepting mail".to_owned(),
            Some(reason) => format!("not accepting mail ({})", reason.text),
        };
        format!("{doing}; virtual IPs: {vips}; lanes with mail: {}; in flight: {}", totals.lanes, totals.claimed)
    }

    /// Why the store has stopped, if it has: only opening it anew mends that.
    pub fn store_stopped(&self) -> Option<String> {
        match self.store.health() {
            Health::Stopped(why) => Some(why),
            Health::Accepting | Health::LowSpace(_) => None,
        }
    }

    /// Whether the store answers a read within `patience` and has not been writing one group for
    /// longer than that, for the watchdog.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        if self.store.writing_since().is_some_and(|since| since.elapsed() > patience) {
            return false;
        }
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.get(ALIVE_KEY).is_ok());
        matches!(tokio::time::timeout(patience, read).await, Ok(Ok(true)))
    }

    /// Takes over what a reload may change, and looks at the certificate folder now.
    pub fn reload(&self, config: &Config) {
        adopt(&self.delivery_settings, &config.delivery);
        adopt(&self.submission_settings, &config.submission);
        self.queue.adjust(config.queue);
        self.accounts.adjust(config.accounts);
        self.breaker.adjust(config.breaker);
        self.pipeline.adjust(&config.pipeline);
        self.tls_reports.adjust(&config.tls_reports);
        if let Err(error) = self.certificates.reload() {
            tracing::warn!(%error, "the certificate folder cannot be read; what was loaded stays in use");
        }
    }

    /// Resolves when a task without which nothing works has ended before its time.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.flow.shutdown().cancelled() => {}
            () = self.rest.shutdown().cancelled() => {}
        }
    }

    /// Which task ended before its time, if one did.
    pub fn fallen(&self) -> Option<String> {
        self.flow.fallen().or_else(|| self.rest.fallen())
    }

    /// No new sessions; running messages and attempts finish within [`DRAIN`] or are given back;
    /// then the rest ends. The number of tasks that did not end in time.
    pub async fn stop(&self) -> usize {
        self.state.enter(Phase::Draining);
        let left = self.flow.stop(DRAIN + DRAIN_MARGIN).await;
        left + self.rest.stop(CLOSE).await
    }
}

/// Hands settings over, if they differ.
fn adopt<T: Clone + PartialEq>(sender: &watch::Sender<Arc<T>>, new: &T) {
    sender.send_if_modified(|settings| {
        let changed = **settings != *new;
        if changed {
            *settings = Arc::new(new.clone());
        }
        changed
    });
}

/// Any key will do: what counts is that the store answers.
const ALIVE_KEY: &[u8] = &[crate::store::prefix::QUEUE_STATE];

async fn persist_accounts(accounts: Arc<Accounts>, shutdown: crate::background::Shutdown) {
    let write = || async {
        if let Err(error) = accounts.persist(Timestamp::now()).await {
            tracing::warn!(%error, "counters of limits and logins could not be written yet");
        }
    };
    periodically(PERSIST, &Notify::new(), &shutdown, write).await;
    write().await;
}

fn monitor(state: &Arc<State>) -> Monitor {
    let (asked, measured) = (Arc::clone(state), Arc::clone(state));
    Monitor {
        readiness: Box::new(move || asked.readiness()),
        metrics: Box::new(move || {
            measured.measure();
            metrics::exporter().map(|exporter| exporter.render()).unwrap_or_default()
        }),
    }
}
