//! The admin API's resources, one file per room behind them. JSON types live here and only here.
//!
//! A handler reads what was asked, calls one method of one room with the actor first, and writes
//! what came back. Easy to get wrong: people name a tenant by its short name; a name always wins
//! over an id that looks the same.

mod audit;
mod domains;
mod keys;
mod queue;
mod routes;
mod session;
mod smtp_accounts;
mod status;
mod suppressions;
mod tenants;
mod users;
mod vips;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};

use super::Parts;
use super::problem::Problem;
use crate::access::{Actor, Permission};
use crate::accounts::Tenant;
use crate::mail::{Domain, TenantId};
use crate::records::AdminError;
use crate::vips::Vip;

pub use audit::{AuditEntryJson, AuditVerifiedJson, DifferenceJson};
pub use domains::{
    DomainChangeJson, DomainJson, FoundJson, INSTANCE_NAME, NewDomainJson, RecordJson, RetiredJson, VerificationJson,
};
pub use keys::{KeyChangeJson, KeyJson, MadeKeyJson, NewKeyJson, RotationJson};
pub use queue::{EventJson, QueueActJson, QueueChangeJson, QueueMoveJson, QueueRowJson, QueuedJson, RecipientJson};
pub use routes::{NewRouteJson, RouteJson};
pub use session::{CodeJson, ConfirmJson, EnrolmentJson, LoginJson, RecoveryCodesJson, RedeemJson, SessionJson};
pub use smtp_accounts::{NewPasswordJson, NewSmtpAccountJson, ServerJson, SmtpAccountChangeJson, SmtpAccountJson};
pub use status::StatusJson;
pub use suppressions::{NewSuppressionJson, SuppressionJson};
pub use tenants::{LimitsJson, NewTenantJson, TenantChangeJson, TenantJson};
pub use users::{FactorPolicyJson, LinkJson, NewUserJson, StayJson, UserChangeJson, UserJson};
pub use vips::{NewVipJson, VipJson};

type Shared = Arc<Parts>;
type Answer<T> = Result<axum::Json<T>, Problem>;

/// Every route below `/api/v1`.
pub(super) fn router(parts: Shared) -> Router {
    Router::new()
        .route("/status", get(status::show))
        .route("/tenants", get(tenants::list).post(tenants::add))
        .route("/tenants/{tenant}", get(tenants::show).patch(tenants::change).delete(tenants::remove))
        .route("/tenants/{tenant}/suppressions", get(suppressions::list).post(suppressions::add))
        .route("/tenants/{tenant}/suppressions/{subject}", get(suppressions::show).delete(suppressions::remove))
        .route("/audit", get(audit::list))
        .route("/audit/verify", get(audit::verify))
        .route("/vips", get(vips::list).post(vips::add))
        .route("/vips/{vip}", get(vips::show).delete(vips::remove))
        .route("/routes", get(routes::list).post(routes::add))
        .route("/routes/{route}", delete(routes::remove))
        .merge(accounts_and_domains())
        .merge(queue_routes())
        .merge(people_routes())
        .with_state(parts)
}

fn accounts_and_domains() -> Router<Shared> {
    Router::new()
        .route("/tenants/{tenant}/domains", get(domains::list).post(domains::add))
        .route("/tenants/{tenant}/domains/{domain}", get(domains::show).patch(domains::change).delete(domains::remove))
        .route("/tenants/{tenant}/domains/{domain}/verify", post(domains::verify))
        .route("/tenants/{tenant}/domains/{domain}/rotate", post(domains::rotate))
        .route("/smtp-accounts", get(smtp_accounts::list).post(smtp_accounts::add))
        .route(
            "/smtp-accounts/{login}",
            get(smtp_accounts::show).patch(smtp_accounts::change).delete(smtp_accounts::remove),
        )
        .route("/smtp-accounts/{login}/rotate", post(smtp_accounts::rotate))
        .route("/smtp-accounts/{login}/finish-rotation", post(smtp_accounts::finish_rotation))
}

/// What anybody may ask, to become somebody.
pub(super) fn open_router(parts: Shared) -> Router {
    Router::new()
        .route("/session", post(session::log_in))
        .route("/session/redeem", post(session::redeem))
        .with_state(parts)
}

fn people_routes() -> Router<Shared> {
    Router::new()
        .route("/session", get(session::show).delete(session::log_out))
        .route("/session/confirm", post(session::confirm))
        .route("/session/second-factor", post(session::offer_factor).delete(session::remove_factor))
        .route("/session/second-factor/prove", post(session::prove_factor))
        .route("/session/recovery-codes", post(session::new_codes))
        .route("/users", get(users::list).post(users::invite))
        .route("/users/{user}", get(users::show).patch(users::change).delete(users::remove))
        .route("/users/{user}/reset", post(users::reset))
        .route("/users/{user}/second-factor", delete(users::remove_factor))
        .route("/users/{user}/sessions", get(users::sessions).delete(users::end_sessions))
        .route("/users/{user}/sessions/{session}", delete(users::end_session))
        .route("/set-up-link", post(users::set_up))
        .route("/second-factor-policy", get(users::factor_policy).put(users::set_factor_policy))
        .route("/keys", get(keys::list).post(keys::add))
        .route("/keys/{key}", get(keys::show).patch(keys::change).delete(keys::remove))
        .route("/keys/{key}/rotate", post(keys::rotate))
}

fn queue_routes() -> Router<Shared> {
    Router::new()
        .route("/queue", get(queue::list))
        .route("/queue/{id}", get(queue::show))
        .route("/queue/{id}/why", get(queue::why))
        .route("/queue/{id}/retry", post(queue::retry))
        .route("/queue/{id}/hold", post(queue::hold))
        .route("/queue/{id}/release", post(queue::release))
        .route("/queue/{id}/cancel", post(queue::cancel))
        .route("/queue/{id}/move", post(queue::move_to))
}

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
