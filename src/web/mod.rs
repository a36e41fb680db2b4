//! Doors over HTTP: health and metrics on a loopback listener; the admin API on the local socket.
//!
//! Recipe: [`Socket::bind`] early, so that a second daemon fails at once; then [`serve`] with the
//! rooms in [`Parts`]. It translates JSON to the rooms' methods and back and never decides.
//! Easy to get wrong: stored records and API types are different types; the latter live in `api`.

mod api;
mod body;
mod burden;
mod codes;
mod conditional;
mod connections;
mod document;
mod door;
mod guard;
mod health;
mod identity;
mod leaving;
mod paging;
mod problem;
mod rate;
mod replay;
mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::accounts::Accounts;
use crate::background::Shutdown;
use crate::backup::Backup;
use crate::breaker::Breaker;
use crate::calendar::Calendar;
use crate::delivery::{Delivery, Destinations, Pacing, Pulse, TlsMemory, TlsPolicies};
use crate::domains::Domains;
use crate::ext::Timestamp;
use crate::feedback::Feedback;
use crate::gate::Gate;
use crate::intake::Intake;
use crate::mail::Domain;
use crate::notifications::Notifications;
use crate::operations::Operations;
use crate::people::People;
use crate::queue::Queue;
use crate::routing::Routes;
use crate::search::Search;
use crate::statistics::Statistics;
use crate::store::{Blobs, Store};
use crate::suppression::Suppression;
use crate::tenancy::Tenancy;
use crate::tlsrpt::TlsReports;
use crate::trace::Tracer;
use crate::vips::Vips;
use crate::webhooks::Webhooks;

pub use crate::suppression::Colour;
pub use api::{
    AttachmentJson, AttemptJson, AuditEntryJson, AuditVerifiedJson, BatchJson, BatchResultJson, BatchSentJson,
    BreakerJson, BreakerLimitsJson, BreakerOverrideJson, CodeJson, ConfirmJson, CountsJson, DeletionJson,
    DestinationRuleJson, DialogueJson, DialogueStepJson, DifferenceJson, DomainChangeJson, DomainJson, EnrolmentJson,
    EventJson, FactorPolicyJson, FoundJson, FoundMessageJson, INSTANCE_NAME, InspectedJson, InspectionJson,
    KeyChangeJson, KeyJson, LetterJson, LimitsJson, LinkJson, LoginJson, LoginSeenJson, MadeKeyJson, MadePasskeyJson,
    MadeWebhookJson, MessageAttemptJson, MessageJson, NewDeletionJson, NewDestinationRuleJson, NewDomainJson,
    NewKeyJson, NewMessageJson, NewPasskeyJson, NewPasswordJson, NewPauseJson, NewQueueSweepJson, NewReturnPathJson,
    NewRouteJson, NewSmtpAccountJson, NewSuppressionJson, NewSuspensionJson, NewTenantJson, NewTlsRuleJson,
    NewTraceJson, NewUserJson, NewVipJson, NewWaiverJson, NewWebhookJson, NotificationJson, NotificationMailJson,
    NotificationsReadJson, OperationJson, PasskeyJson, PasskeyNameJson, PasskeyOfferJson, PauseJson, QueueActJson,
    QueueChangeJson, QueueFilterJson, QueueMoveJson, QueueRowJson, QueueShapeJson, QueueShapeRowJson, QueueSweepJson,
    QueueTotalsJson, QueuedJson, ReadNotificationsJson, ReadinessJson, ReadinessRuleJson, RecipientJson, RecordJson,
    RecoveryCodesJson, RedeemJson, ResumedJson, RetiredJson, ReturnPathJson, RotationJson, RouteChangeJson, RouteJson,
    SaidJson, SearchJson, SeenTlsJson, SentJson, SentRecipientJson, ServerJson, ServiceSpfJson, SessionJson,
    SiteActJson, SiteControllerJson, SiteDoneJson, SiteJson, SiteLimitJson, SiteLimitsJson, SiteOverrideJson,
    SiteScopeJson, SmtpAccountChangeJson, SmtpAccountJson, StatisticsJson, StatisticsRowJson, StatusJson, StayJson,
    StsPolicyJson, SuppressionChangesJson, SuppressionJson, SuppressionRulesChangeJson, SuppressionRulesJson,
    SuppressionsChangedJson, SuspensionJson, SweepActJson, TenantChangeJson, TenantJson, TlsFailingJson, TlsPolicyJson,
    TlsReportJson, TlsReportRowJson, TlsRuleJson, TopJson, TopProviderJson, TraceJson, TracedJson, TracedLineJson,
    UserChangeJson, UserJson, VerificationJson, VipChangeJson, VipJson, WaiverJson, WarmUpJson, WebhookChangeJson,
    WebhookJson, WebhookProgressJson, WebhookWindowJson,
};
pub use door::{NetworkPeer, SHORT_CONNECTIONS_MAX, TlsNow};
pub use guard::PeerUser;
pub use health::{Monitor, Readiness, Remark, serve as serve_monitor};
pub use paging::{LIMIT_DEFAULT, LIMIT_MAX, PageJson};
pub use problem::{FieldJson, ProblemJson};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use replay::Record as ReplayRecord;
pub use server::{SOCKET_CONNECTIONS_MAX, Settings, Socket};

/// The rooms behind the API.
#[derive(Clone)]
pub struct Parts {
    /// Tenants and SMTP accounts.
    pub accounts: Arc<Accounts>,
    /// Watches SMTP accounts.
    pub breaker: Arc<Breaker>,
    /// Virtual IPs.
    pub vips: Arc<Vips>,
    /// Sending domains.
    pub domains: Arc<Domains>,
    /// Suppression lists.
    pub suppression: Arc<Suppression>,
    /// Imports and exports.
    pub operations: Arc<Operations>,
    /// Relays.
    pub routes: Arc<Routes>,
    /// Takes backups.
    pub backup: Arc<Backup>,
    /// What is owed.
    pub queue: Arc<Queue>,
    /// Where messages are handed in.
    pub intake: Arc<Intake>,
    /// Limits of a message handed in over HTTP.
    pub sending: SendingLimits,
    /// Who administers.
    pub people: Arc<People>,
    /// The operators' hand on delivery.
    pub delivery: Arc<Delivery>,
    /// The pace of what leaves.
    pub pacing: Arc<Pacing>,
    /// What is demanded of TLS towards recipient domains.
    pub tls_policies: Arc<TlsPolicies>,
    /// Destinations that are blocked or go another way.
    pub destinations: Arc<Destinations>,
    /// What TLS came to with receivers.
    pub tls_memory: Arc<TlsMemory>,
    /// What is reported about TLS to them.
    pub tls_reports: Arc<TlsReports>,
    /// What happens at this moment.
    pub pulse: Arc<Pulse>,
    /// Live sessions.
    pub tracer: Arc<Tracer>,
    /// For its health.
    pub store: Arc<dyn Store>,
    /// For the space it takes.
    pub blobs: Arc<dyn Blobs>,
    /// How full the process is.
    pub gate: Arc<Gate>,
    /// Who is told what happened.
    pub webhooks: Arc<Webhooks>,
    /// Tenants that leave.
    pub tenancy: Arc<Tenancy>,
    /// What people should know.
    pub notifications: Arc<Notifications>,
    /// What came back, and letters.
    pub feedback: Arc<Feedback>,
    /// Which messages fit.
    pub search: Arc<Search>,
    /// What happened to recipients, in numbers.
    pub statistics: Arc<Statistics>,
    /// Turns for reads that walk much.
    pub scans: Scans,
    /// By which idempotency keys lapse.
    pub calendar: Calendar,
    /// What else people are told.
    pub about: About,
}

/// Reads that may walk much (searches, statistics, totals and shapes of the queue) at a time.
pub const SCANS_MAX: usize = 2;

/// Turns for them.
#[derive(Clone, Debug)]
pub struct Scans(pub(crate) Arc<Semaphore>);

impl Default for Scans {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SCANS_MAX)))
    }
}

/// Limits of a message handed in over HTTP: those of the SMTP door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendingLimits {
    /// Octets of a message.
    pub message_bytes_max: u64,
    /// Octets of its header.
    pub header_bytes_max: usize,
    /// Its recipients.
    pub recipients_max: usize,
    /// How far ahead it may be scheduled.
    pub hold_max: Duration,
}

impl SendingLimits {
    /// Octets of a request: a message in base64 within JSON, and what is around it.
    fn body_bytes_max(self) -> u64 {
        (self.message_bytes_max / 3).saturating_mul(4).saturating_add(1024 * 1024)
    }
}

/// Facts of this daemon that people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The machine's name.
    pub hostname: Domain,
    /// Ports where TLS comes first.
    pub tls_ports: Vec<u16>,
    /// Ports with STARTTLS.
    pub starttls_ports: Vec<u16>,
    /// When it began to serve.
    pub started: Timestamp,
}

/// The whole API. A request over the local socket has an [`crate::access::Actor`] in its extensions,
/// one over the network says where it came from and carries a key or a session.
pub fn router(parts: Parts, settings: &Settings) -> Router {
    let replays = replay::Replays::new(Arc::clone(&parts.store)).with_calendar(parts.calendar.clone());
    let replays = Arc::new(replays);
    router_with(parts, settings, replays)
}

fn router_with(parts: Parts, settings: &Settings, replays: Arc<replay::Replays>) -> Router {
    let patience: Duration = settings.request_patience;
    let (parts, rates) = (Arc::new(parts), Arc::new(rate::Rates::new(settings.requests_per_minute_max)));
    let guarded = api::router(Arc::clone(&parts));
    let conditional = Arc::new(conditional::Conditional::new(guarded.clone()));
    parts.operations.write_tenants_with(leaving::lines(Arc::downgrade(&parts)));
    let guarded = guarded
        .layer(middleware::from_fn_with_state(conditional, conditional::hold))
        .layer(middleware::from_fn_with_state(Arc::clone(&replays), replay::once))
        .layer(middleware::from_fn(guard::require_actor));
    let sending_bytes_max = parts.sending.body_bytes_max();
    let burden = Arc::new(burden::Burden::new(Arc::clone(&parts.gate), sending_bytes_max));
    let sending = api::sending_router(Arc::clone(&parts))
        .layer(middleware::from_fn_with_state(Arc::clone(&replays), replay::once))
        .layer(middleware::from_fn_with_state(burden, burden::admit))
        .layer(middleware::from_fn(guard::require_actor))
        .layer(DefaultBodyLimit::max(usize::try_from(sending_bytes_max).unwrap_or(usize::MAX)));
    Router::new()
        .nest("/api/v1", guarded)
        .nest("/api/v1", sending)
        .nest("/api/v1", api::open_router(Arc::clone(&parts)))
        .merge(document::router())
        .fallback(|| async { problem::Problem::missing("such resource") })
        .layer(middleware::from_fn_with_state(Arc::clone(&rates), rate::by_actor))
        .layer(middleware::from_fn_with_state(parts, identity::identify))
        .layer(middleware::from_fn_with_state(rates, rate::by_network))
        .layer(DefaultBodyLimit::max(settings.body_bytes_max))
        .layer(middleware::from_fn(move |request: Request, next: Next| server::frame(patience, request, next)))
}

/// Serves the API on `socket` until `shutdown`, and on `listeners` with the TLS settings of the moment.
pub async fn serve(
    parts: Parts,
    settings: &Settings,
    (socket, listeners, tls): (Socket, Vec<TcpListener>, TlsNow),
    shutdown: Shutdown,
) {
    let replays = replay::Replays::new(Arc::clone(&parts.store)).with_calendar(parts.calendar.clone());
    let replays = Arc::new(replays);
    let gate = Arc::clone(&parts.gate);
    let router = router_with(parts, settings, Arc::clone(&replays));
    let door = door::Door::new(tls, router.clone(), gate, settings.connections_max);
    let serve = |listener| door.serve(listener, shutdown.clone());
    let doors = futures_util::future::join_all(listeners.into_iter().map(serve));
    tokio::join!(doors, socket.serve(router.clone(), shutdown.clone()), replays.keep(&shutdown));
}

#[cfg(test)]
mod dialogue_tests;
#[cfg(test)]
mod door_tests;
#[cfg(test)]
mod fresh_tests;
#[cfg(test)]
mod leaving_tests;
#[cfg(test)]
mod narrow_tests;
#[cfg(test)]
mod passkey_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod sending_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk_tests;
