//! Doors over HTTP: health and metrics on a loopback listener; the admin API on the local socket.
//!
//! Recipe: [`Socket::bind`] early, so that a second daemon fails at once; then [`serve`] with the
//! rooms in [`Parts`]. It translates JSON to the rooms' methods and back and never decides.
//! Easy to get wrong: stored records and API types are different types; the latter live in `api`.

mod api;
mod body;
mod guard;
mod health;
mod paging;
mod problem;
mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};

use crate::accounts::Accounts;
use crate::background::Shutdown;
use crate::domains::Domains;
use crate::ext::Timestamp;
use crate::gate::Gate;
use crate::mail::Domain;
use crate::queue::Queue;
use crate::routing::Routes;
use crate::store::{Blobs, Store};
use crate::suppression::Suppression;
use crate::vips::Vips;

pub use api::{
    AuditEntryJson, AuditVerifiedJson, DifferenceJson, DomainChangeJson, DomainJson, EventJson, FoundJson,
    INSTANCE_NAME, LimitsJson, NewDomainJson, NewPasswordJson, NewRouteJson, NewSmtpAccountJson, NewSuppressionJson,
    NewTenantJson, NewVipJson, QueueActJson, QueueChangeJson, QueueMoveJson, QueueRowJson, QueuedJson, RecipientJson,
    RecordJson, RetiredJson, RouteJson, ServerJson, SmtpAccountChangeJson, SmtpAccountJson, StatusJson,
    SuppressionJson, TenantChangeJson, TenantJson, VerificationJson, VipJson,
};
pub use guard::PeerUser;
pub use health::{Monitor, Readiness, Remark, serve as serve_monitor};
pub use paging::{LIMIT_DEFAULT, LIMIT_MAX, PageJson};
pub use problem::{FieldJson, ProblemJson};
pub use server::{Settings, Socket};

/// The rooms behind the API.
#[derive(Clone)]
pub struct Parts {
    /// Tenants and SMTP accounts.
    pub accounts: Arc<Accounts>,
    /// Virtual IPs.
    pub vips: Arc<Vips>,
    /// Sending domains.
    pub domains: Arc<Domains>,
    /// Suppression lists.
    pub suppression: Arc<Suppression>,
    /// Relays.
    pub routes: Arc<Routes>,
    /// What is owed.
    pub queue: Arc<Queue>,
    /// For its health.
    pub store: Arc<dyn Store>,
    /// For the space it takes.
    pub blobs: Arc<dyn Blobs>,
    /// How full the process is.
    pub gate: Arc<Gate>,
    /// What else people are told.
    pub about: About,
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

/// The whole API. A request needs an [`crate::access::Actor`] in its extensions; the socket puts it there.
pub fn router(parts: Parts, settings: &Settings) -> Router {
    let patience: Duration = settings.request_patience;
    Router::new()
        .nest("/api/v1", api::router(Arc::new(parts)))
        .fallback(|| async { problem::Problem::missing("such resource") })
        .layer(middleware::from_fn(guard::require_actor))
        .layer(DefaultBodyLimit::max(settings.body_bytes_max))
        .layer(middleware::from_fn(move |request: Request, next: Next| server::frame(patience, request, next)))
}

/// Serves the API on `socket` until `shutdown`.
pub async fn serve(parts: Parts, settings: &Settings, socket: Socket, shutdown: Shutdown) {
    socket.serve(router(parts, settings), shutdown).await;
}

#[cfg(test)]
mod tests;
