//! The admin API's resources, one file per room behind them. JSON types live here and only here.
//!
//! A handler reads what was asked, calls one method of one room with the actor first, and writes
//! what came back. Easy to get wrong: people name a tenant by its short name; a name always wins
//! over an id that looks the same.

mod audit;
mod backup;
mod breaker;
mod destinations;
mod dialogues;
mod domains;
mod found;
mod keys;
mod mailbox;
mod messages;
mod notifications;
mod operations;
mod passkeys;
mod queue;
mod readiness;
mod return_paths;
mod routes;
mod session;
mod sites;
mod smtp_accounts;
pub(super) mod statistics;
mod status;
mod suppression_rules;
mod suppressions;
mod suspensions;
mod tenants;
mod tls;
mod tls_reports;
mod top;
mod trace;
mod users;
mod vips;
mod webhooks;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Parts;
use super::problem::Problem;
use crate::access::{Actor, Permission};
use crate::accounts::Tenant;
use crate::mail::{Domain, TenantId};
use crate::records::AdminError;
use crate::vips::Vip;

pub use audit::{AuditEntryJson, AuditVerifiedJson, DifferenceJson};
pub use breaker::{
    BreakerJson, BreakerLimitsJson, BreakerOverrideJson, NewPauseJson, NewWaiverJson, PauseJson, WaiverJson,
};
pub use destinations::{DestinationRuleJson, NewDestinationRuleJson};
pub use dialogues::{DialogueJson, DialogueStepJson};
pub use domains::{
    DomainChangeJson, DomainJson, FoundJson, INSTANCE_NAME, NewDomainJson, RecordJson, RetiredJson, VerificationJson,
};
pub use found::{FoundMessageJson, MessageAttemptJson, MessageJson, SearchJson};
pub use keys::{KeyChangeJson, KeyJson, MadeKeyJson, NewKeyJson, RotationJson};
pub use mailbox::LetterJson;
pub use messages::{
    AttachmentJson, BatchJson, BatchResultJson, BatchSentJson, NewMessageJson, SentJson, SentRecipientJson,
};
pub use notifications::{NotificationJson, NotificationMailJson, NotificationsReadJson, ReadNotificationsJson};
pub use operations::OperationJson;
pub use passkeys::{MadePasskeyJson, NewPasskeyJson, PasskeyJson, PasskeyNameJson, PasskeyOfferJson};
pub use queue::{
    EventJson, NewQueueSweepJson, QueueActJson, QueueChangeJson, QueueFilterJson, QueueMoveJson, QueueRowJson,
    QueueShapeJson, QueueShapeRowJson, QueueSweepJson, QueueTotalsJson, QueuedJson, RecipientJson, SweepActJson,
};
pub use readiness::{InspectedJson, InspectionJson, ReadinessJson, ReadinessRuleJson};
pub use return_paths::{NewReturnPathJson, ReturnPathJson};
pub use routes::{NewRouteJson, RouteChangeJson, RouteJson};
pub use session::{CodeJson, ConfirmJson, EnrolmentJson, LoginJson, RecoveryCodesJson, RedeemJson, SessionJson};
pub use sites::{
    SaidJson, SiteActJson, SiteControllerJson, SiteDoneJson, SiteJson, SiteLimitJson, SiteLimitsJson, SiteOverrideJson,
    SiteScopeJson, WarmUpJson,
};
pub use smtp_accounts::{
    LoginSeenJson, NewPasswordJson, NewSmtpAccountJson, ServerJson, SmtpAccountChangeJson, SmtpAccountJson,
};
pub use statistics::{CountsJson, StatisticsJson, StatisticsRowJson};
pub use status::StatusJson;
pub use suppression_rules::{SuppressionRulesChangeJson, SuppressionRulesJson};
pub use suppressions::{NewSuppressionJson, SuppressionChangesJson, SuppressionJson, SuppressionsChangedJson};
pub use suspensions::{NewSuspensionJson, ResumedJson, SuspensionJson};
pub use tenants::{DeletionJson, LimitsJson, NewDeletionJson, NewTenantJson, TenantChangeJson, TenantJson};
pub use tls::{NewTlsRuleJson, SeenTlsJson, StsPolicyJson, TlsFailingJson, TlsPolicyJson, TlsRuleJson};
pub use tls_reports::{TlsReportJson, TlsReportRowJson};
pub use top::{TopJson, TopProviderJson};
pub use trace::{NewTraceJson, TraceJson, TracedJson, TracedLineJson};
pub use users::{FactorPolicyJson, LinkJson, NewUserJson, StayJson, UserChangeJson, UserJson};
pub use vips::{NewVipJson, ServiceSpfJson, VipChangeJson, VipJson};
pub use webhooks::{
    AttemptJson, MadeWebhookJson, NewWebhookJson, WebhookChangeJson, WebhookJson, WebhookProgressJson,
    WebhookWindowJson,
};

type Shared = Arc<Parts>;
type Answer<T> = Result<axum::Json<T>, Problem>;

/// Every route below `/api/v1`.
pub(super) fn router(parts: Shared) -> Router {
    guarded().with_state(parts).into()
}

fn guarded() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(status::show))
        .routes(routes!(top::show))
        .routes(routes!(trace::add))
        .routes(routes!(trace::read, trace::leave))
        .routes(routes!(backup::take))
        .routes(routes!(tenants::list, tenants::add))
        .routes(routes!(tenants::show, tenants::change, tenants::remove))
        .routes(routes!(tenants::ask_deletion, tenants::undo_deletion))
        .routes(routes!(suppressions::list, suppressions::add, suppressions::change))
        .routes(routes!(suppressions::show, suppressions::remove))
        .routes(routes!(notifications::list))
        .routes(routes!(notifications::read))
        .routes(routes!(notifications::mail, notifications::set_mail))
        .routes(routes!(suppression_rules::show, suppression_rules::change))
        .routes(routes!(mailbox::list))
        .routes(routes!(mailbox::show, mailbox::remove))
        .routes(routes!(audit::list))
        .routes(routes!(audit::verify))
        .routes(routes!(vips::spf))
        .routes(routes!(vips::list, vips::add))
        .routes(routes!(vips::show, vips::change, vips::remove))
        .routes(routes!(routes::list, routes::add))
        .routes(routes!(routes::change, routes::remove))
        .merge(operation_routes())
        .merge(accounts_and_domains())
        .merge(queue_routes())
        .merge(people_routes())
        .merge(site_routes())
        .merge(webhook_routes())
        .merge(breaker_routes())
        .merge(statistics_routes())
        .merge(message_routes())
}

fn operation_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(operations::import))
        .routes(routes!(operations::export))
        .routes(routes!(operations::export_tenant))
        .routes(routes!(operations::list))
        .routes(routes!(operations::search))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::result))
        .routes(routes!(operations::rejected))
}

fn accounts_and_domains() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(domains::list, domains::add))
        .routes(routes!(domains::show, domains::change, domains::remove))
        .routes(routes!(domains::verify))
        .routes(routes!(readiness::records))
        .routes(routes!(readiness::zone))
        .routes(routes!(readiness::readiness))
        .routes(routes!(return_paths::show, return_paths::set, return_paths::remove))
        .routes(routes!(return_paths::verify))
        .routes(routes!(domains::rotate, domains::cancel_rotation))
        .routes(routes!(smtp_accounts::list, smtp_accounts::add))
        .routes(routes!(smtp_accounts::show, smtp_accounts::change, smtp_accounts::remove))
        .routes(routes!(smtp_accounts::logins))
        .routes(routes!(smtp_accounts::rotate))
        .routes(routes!(smtp_accounts::finish_rotation))
}

/// What anybody may ask, to become somebody.
pub(super) fn open_router(parts: Shared) -> Router {
    unguarded().with_state(parts).into()
}

fn unguarded() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(session::log_in))
        .routes(routes!(session::redeem))
        .routes(routes!(session::forgotten))
}

fn people_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(session::show, session::log_out))
        .routes(routes!(session::confirm))
        .routes(routes!(session::offer_factor, session::remove_factor))
        .routes(routes!(session::prove_factor))
        .routes(routes!(session::change_password))
        .routes(routes!(session::new_codes))
        .routes(routes!(passkeys::list, passkeys::add))
        .routes(routes!(passkeys::offer))
        .routes(routes!(passkeys::rename, passkeys::remove))
        .routes(routes!(users::list, users::invite))
        .routes(routes!(users::show, users::change, users::remove))
        .routes(routes!(users::reset))
        .routes(routes!(users::remove_factor))
        .routes(routes!(users::sessions, users::end_sessions))
        .routes(routes!(users::end_session))
        .routes(routes!(users::set_up))
        .routes(routes!(users::factor_policy, users::set_factor_policy))
        .routes(routes!(keys::list, keys::add))
        .routes(routes!(keys::show, keys::change, keys::remove))
        .routes(routes!(keys::rotate))
}

fn site_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(sites::list))
        .routes(routes!(sites::show))
        .routes(routes!(sites::release))
        .routes(routes!(sites::warm))
        .routes(routes!(sites::stop_warming))
        .routes(routes!(sites::overrides, sites::set))
        .routes(routes!(sites::clear))
        .routes(routes!(tls::list, tls::set))
        .routes(routes!(tls::clear))
        .routes(routes!(tls::show))
        .routes(routes!(tls::failing))
        .routes(routes!(tls_reports::list))
        .routes(routes!(tls_reports::show))
}

fn webhook_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(webhooks::list, webhooks::add))
        .routes(routes!(webhooks::show, webhooks::change, webhooks::remove))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::replay))
        .routes(routes!(webhooks::attempts))
        .routes(routes!(webhooks::replay_attempt))
}

fn breaker_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(breaker::list))
        .routes(routes!(breaker::show))
        .routes(routes!(breaker::pause))
        .routes(routes!(breaker::release))
        .routes(routes!(breaker::waive, breaker::end_waiver))
        .routes(routes!(breaker::limits, breaker::set_limits))
        .routes(routes!(breaker::clear_limits))
}

fn message_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(found::search))
        .routes(routes!(found::show))
        .routes(routes!(found::standing))
        .routes(routes!(found::rebuild))
}

fn statistics_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(statistics::show)).routes(routes!(statistics::csv))
}

fn queue_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(suspensions::list, suspensions::add))
        .routes(routes!(suspensions::resume))
        .routes(routes!(destinations::list, destinations::add))
        .routes(routes!(destinations::remove))
        .routes(routes!(queue::list))
        .routes(routes!(queue::show))
        .routes(routes!(queue::why))
        .routes(routes!(queue::retry))
        .routes(routes!(queue::hold))
        .routes(routes!(queue::release))
        .routes(routes!(queue::cancel))
        .routes(routes!(queue::expire))
        .routes(routes!(queue::sweeps::list, queue::sweeps::add))
        .routes(routes!(queue::sweeps::show))
        .routes(routes!(queue::sweeps::end))
        .routes(routes!(queue::sweeps::totals))
        .routes(routes!(queue::sweeps::shape))
        .routes(routes!(queue::move_to))
        .routes(routes!(queue::erase))
}

/// Handing messages in: larger bodies than elsewhere.
pub(super) fn sending_router(parts: Shared) -> Router {
    sending().with_state(parts).into()
}

fn sending() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(messages::send)).routes(routes!(messages::send_batch))
}

/// What the handlers say of themselves.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    let mut document = guarded().merge(sending()).merge(unguarded()).into_openapi();
    document.merge(ProblemDocument::openapi());
    document
}

#[derive(OpenApi)]
#[openapi(components(schemas(super::ProblemJson)))]
struct ProblemDocument;

/// For reading what belongs to the whole instance.
fn require_instance(actor: &Actor) -> Result<(), Problem> {
    Ok(actor.require(Permission::ReadInstance).map_err(AdminError::from)?)
}

/// Runs a read of the store off the async workers.
async fn off_workers<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, AdminError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| {
        let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        Problem::inner(status, "failed", "reading the queue failed; the log has the details", error)
    })??)
}

/// The same for a read that may walk much: only some run at a time, the others wait their turn.
async fn scan<T, F>(parts: &Parts, work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, AdminError> + Send + 'static,
{
    // Held by the work itself: it goes on when nobody waits for it any more.
    let turn = Arc::clone(&parts.scans.0).acquire_owned().await;
    off_workers(move || {
        let _turn = turn;
        work()
    })
    .await
}

/// The tenant people call `text`: its name, else its id. One the actor may not see does not exist.
fn tenant_called(parts: &Parts, actor: &Actor, text: &str) -> Result<Tenant, Problem> {
    let by_id = || text.parse::<TenantId>().ok().and_then(|id| parts.accounts.tenant(id));
    let found = parts.accounts.tenant_named(text).or_else(by_id).filter(|tenant| actor.sees(tenant.id));
    found.ok_or_else(|| Problem::missing(format!("tenant {text}")))
}

/// What people call a tenant.
fn tenant_name(parts: &Parts, id: TenantId) -> String {
    parts.accounts.tenant(id).map_or_else(|| id.to_string(), |tenant| tenant.name)
}

/// The virtual IP people call `text`: one of its addresses, its id, or its EHLO name if only one has
/// it. One that does not serve the actor's tenant does not exist.
fn vip_called(parts: &Parts, actor: &Actor, text: &str) -> Result<Vip, Problem> {
    let missing = || Problem::missing(format!("virtual IP {text}"));
    let is_seen = |vip: &Vip| actor.role.tenant().is_none_or(|tenant| vip.serves(tenant));
    if let Ok(address) = text.parse::<IpAddr>() {
        return parts.vips.by_address(address).filter(is_seen).ok_or_else(missing);
    }
    if let Some(vip) = text.parse().ok().and_then(|id| parts.vips.get(id)).filter(is_seen) {
        return Ok(vip);
    }
    let name = Domain::parse(text).map_err(|_| missing())?;
    let all = parts.vips.all();
    let mut named = all.iter().filter(|vip| vip.ehlo == name && is_seen(vip));
    match (named.next(), named.next()) {
        (Some(vip), None) => Ok(vip.clone()),
        (Some(_), Some(_)) => {
            Err(Problem::ambiguous(format!("several virtual IPs are called {text}; name an address")))
        }
        (None, _) => Err(missing()),
    }
}
