//! Tries to pay what the queue owes: finds out where mail goes, speaks SMTP there, tells the queue
//! what became of each recipient.
//!
//! Recipe: build [`Parts`] and [`NoticeParts`], run [`run`] and [`pay_notices`] as tasks; operators
//! speak through [`Delivery`].
//! Easy to get wrong: a message leaves by its own virtual IP or not at all; and a 4xx, a 5xx or a
//! timeout is an outcome, never an error of ours.

mod board;
mod bounce;
mod client;
mod dispatcher;
mod lanes;
mod mx;
mod outcome;
mod overflow;
mod pacing;
mod progress;
mod pulse;
mod replies;
mod settings;
mod settle;
mod shaping;
mod sharers;
mod shares;
mod smarthost;
mod sources;
mod transport;

use std::sync::Arc;

use tokio::sync::watch;

pub use board::{Delivery, Halt, Scope, Suspension};
pub use client::{Client, Connection, Pool, ReturnAddress};
pub use mx::{
    Destination, DestinationRule, Destinations, Diversion, DomainRule, DomainTls, FailingTls, KeptPolicy, Mx,
    Parts as MxParts, SeenTls, Spoken, StsMode, StsPolicy, TlsLevel, TlsMemory, TlsPolicies,
};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use mx::announced_policy;
pub use outcome::{Phase, Verdict, classify};
#[doc(hidden)]
pub use pacing::Record as SiteRecord;
pub use pacing::{Complaints, OVERRIDES_MAX, Pacing, scope_words, words as limit_words};
pub use pulse::{LastMinuteOf, OTHERS, Pulse, PulseLine};
pub use replies::{Action, Judgement, ReplyClass, Rules as ReplyRules, read_reply};
pub use settings::{MxTls, PrivateAddresses, Settings, Timeouts};
pub use settle::SuppressedLookup;
pub use shaping::{
    Answer, Ask, Bound, Controller, Day, Hold, Judged, Knob, LADDER, LimitScope, LimitSet, Limits, Memory, Origin,
    Override, Pacer, Park, Part, Path, Permit, Picture, Provider, Providers, Quota, Resolved, Said, Signal, Step,
    Target, UNLIMITED, Warmup,
};
pub use smarthost::Smarthost;
pub use transport::{
    ClaimMore, Ending, Families, Hand, Held, Host, Job, Late, Login, Moves, NoSite, OpenBody, Outcomes, Progress,
    RecordPart, Release, Report, SetAside, Settled, Site, Source, Standing, TlsUse, Transport,
};

use self::dispatcher::{Dispatcher, Wiring};
use self::overflow::Overflows;
use self::settle::Screen;
use self::sources::Sources;
use crate::background::Shutdown;
use crate::gate::Gate;
use crate::intake::Intake;
use crate::net::{ClientTls, Dialer, Fetcher, Resolver};
use crate::queue::Queue;
use crate::routing::Routes;
use crate::store::Store;
use crate::tlsrpt::TlsReports;
use crate::trace::Tracer;
use crate::vips::Vips;

/// The rooms delivery works with.
pub struct Parts {
    /// What is owed.
    pub queue: Arc<Queue>,
    /// Whether there is room for one more connection.
    pub gate: Arc<Gate>,
    /// Our addresses and names.
    pub vips: Arc<Vips>,
    /// Relays.
    pub routes: Arc<Routes>,
    /// `Suppression::contains`: looked at again before mail that has waited is tried.
    pub suppressed: SuppressedLookup,
    /// Events about virtual IPs are written here.
    pub store: Arc<dyn Store>,
    /// DNS.
    pub resolver: Arc<dyn Resolver>,
    /// Connections out.
    pub dialer: Arc<dyn Dialer>,
    /// TLS as a client.
    pub tls: Arc<ClientTls>,
    /// The operators' hand.
    pub delivery: Arc<Delivery>,
    /// `Feedback::return_address`: what is said in MAIL of mail that has return-paths.
    pub return_path: ReturnAddress,
    /// The pace of what leaves.
    pub pacing: Arc<Pacing>,
    /// TLS policies of recipient domains.
    pub tls_policies: Arc<TlsPolicies>,
    /// Destinations that are blocked or go another way.
    pub destinations: Arc<Destinations>,
    /// What TLS came to.
    pub tls_memory: Arc<TlsMemory>,
    /// What is reported to recipient domains.
    pub tls_reports: Arc<TlsReports>,
    /// Shows sessions to whoever follows them.
    pub tracer: Arc<Tracer>,
    /// Settings, followed as they change.
    pub settings: watch::Receiver<Arc<Settings>>,
}

/// Delivers until `shutdown`; returns once running attempts finished or gave their mail back.
pub async fn run(parts: Parts, shutdown: Shutdown) {
    let Parts { queue, gate, vips, routes, suppressed, store, resolver, dialer, tls, .. } = parts;
    let Parts { delivery, pacing, tls_policies, destinations, return_path, settings, .. } = parts;
    let (tracer, tls_memory, reports) = (parts.tracer, parts.tls_memory, parts.tls_reports);
    let overflows = Overflows::new(resolver.clone(), return_path.clone());
    let client = Client::new(dialer, tls.clone(), return_path, tracer);
    let client = Arc::new(client.remembering(tls_memory.clone()).reporting(reports.clone()));
    let smarthost = Arc::new(Smarthost::new(resolver.clone(), routes, client.clone()));
    let mx = Arc::new(Mx::new(MxParts {
        resolver: resolver.clone(),
        vips: vips.clone(),
        client,
        destinations,
        relays: smarthost.clone(),
        policies: tls_policies,
        reports,
        fetcher: Fetcher::new(resolver, tls),
        settings: settings.clone(),
    }));
    let reasons = delivery.clone();
    queue.explain_lanes_with(Box::new(move |lane| reasons.why(lane)));
    let screen = Screen { queue: queue.clone(), suppressed };
    let wiring = Wiring { queue, gate, screen, mx: mx.clone(), smarthost, delivery, pacing, settings, overflows };
    let dispatcher = Dispatcher::new(wiring, Sources::new(vips, store));
    tokio::join!(dispatcher.run(shutdown.clone()), mx.keep_policies(&shutdown), tls_memory.keep(&shutdown));
}

/// The rooms paying notices works with.
pub struct NoticeParts {
    /// Knows which notices are owed.
    pub queue: Arc<Queue>,
    /// A notice enters like any other mail.
    pub intake: Arc<Intake>,
    /// A notice leaves by the virtual IP of the message it reports.
    pub vips: Arc<Vips>,
    /// Settings, followed as they change.
    pub settings: watch::Receiver<Arc<Settings>>,
}

/// Pays owed notices until `shutdown`.
pub async fn pay_notices(parts: NoticeParts, shutdown: Shutdown) {
    let NoticeParts { queue, intake, vips, settings } = parts;
    bounce::run(bounce::Cashier { queue, intake, vips }, settings, shutdown).await;
}
