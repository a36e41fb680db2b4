//! `/routes`: relays for mail that cannot go straight to its recipients' servers.
//!
//! Easy to get wrong: a relay's password comes in and never goes out again.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{Answer, Shared, off_workers, require_instance, tenant_called, tenant_name};
use crate::access::Actor;
use crate::ext::{self, Timestamp};
use crate::mail::Domain;
use crate::routing::{LoginChange, NewRoute, RelayTls, Route, RouteChange, RouteScope};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteJson {
    /// Its id.
    pub id: String,
    /// Only mail of this tenant.
    pub tenant: Option<String>,
    /// Only mail to this domain and the names below it.
    pub to: Option<String>,
    /// Only mail that a rule about destinations sends here.
    #[serde(default)]
    pub on_demand: bool,
    /// Host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `implicit`, `starttls`, `opportunistic`, `none`.
    #[schema(value_type = String)]
    pub tls: RelayTls,
    /// The user name there, if it asks for a login.
    pub user: Option<String>,
}

/// A relay to be made: for exactly one of `all`, `tenant`, `to` and `on_demand`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRouteJson {
    /// All mail.
    #[serde(default)]
    pub all: bool,
    /// Only mail of this tenant.
    pub tenant: Option<String>,
    /// Only mail to this domain and the names below it.
    #[schema(value_type = Option<String>)]
    pub to: Option<Domain>,
    /// Only mail that a rule about destinations sends here.
    #[serde(default)]
    pub on_demand: bool,
    /// Host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `implicit`, `starttls`, `opportunistic`, `none`.
    #[schema(value_type = String)]
    pub tls: RelayTls,
    /// The user name there.
    pub user: Option<String>,
    /// The password there.
    pub password: Option<String>,
}

/// What is to change of a relay; what is left out stays.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteChangeJson {
    /// Host name or address.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// `implicit`, `starttls`, `opportunistic`, `none`.
    #[schema(value_type = Option<String>)]
    pub tls: Option<RelayTls>,
    /// The user name there.
    pub user: Option<String>,
    /// The password there.
    pub password: Option<String>,
    /// No login from now on.
    #[serde(default)]
    pub no_login: bool,
}

fn json(parts: &Parts, route: Route) -> RouteJson {
    let (tenant, to) = match route.scope.clone() {
        RouteScope::Instance | RouteScope::OnDemand => (None, None),
        RouteScope::Tenant(id) => (Some(tenant_name(parts, id)), None),
        RouteScope::RecipientDomain(domain) => (None, Some(domain.to_string())),
    };
    RouteJson {
        on_demand: route.scope == RouteScope::OnDemand,
        id: written(route.id),
        tenant,
        to,
        host: route.host,
        port: route.port,
        tls: route.tls,
        user: route.login.map(|login| login.user),
    }
}

pub(super) fn written(id: u64) -> String {
    ext::base32(&id.to_be_bytes())
}

/// The id of the route people call so.
pub(super) fn called(parts: &Parts, route: &str) -> Result<u64, Problem> {
    let id = ext::from_base32::<8>(route).map(u64::from_be_bytes);
    let found = id.and_then(|id| parts.routes.route(id));
    found.map(|route| route.id).ok_or_else(|| Problem::missing(format!("route {route}")))
}

#[utoipa::path(
    get,
    path = "/routes",
    operation_id = "routes_list",
    tag = "routes",
    summary = "List: routes.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<RouteJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<RouteJson>> {
    let page = paging.of(parts.routes.list(&actor)?, |route| format!("{} {}", route.host, written(route.id)));
    let rows = page.rows.into_iter().map(|route| json(&parts, route)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    post,
    path = "/routes",
    operation_id = "routes_add",
    tag = "routes",
    summary = "Make: routes.",
    request_body = NewRouteJson,
    responses((status = 201, body = RouteJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewRouteJson>,
) -> Result<(StatusCode, Json<RouteJson>), Problem> {
    let scope = match (asked.all, &asked.tenant, asked.to, asked.on_demand) {
        (true, None, None, false) => RouteScope::Instance,
        (false, Some(name), None, false) => RouteScope::Tenant(tenant_called(&parts, &actor, name)?.id),
        (false, None, Some(domain), false) => RouteScope::RecipientDomain(domain),
        (false, None, None, true) => RouteScope::OnDemand,
        _ => return Err(Problem::field("all", "give exactly one of all, tenant, to and on_demand")),
    };
    let login = match (asked.user, asked.password) {
        (Some(user), Some(password)) => Some((user, Zeroizing::new(password))),
        (None, None) => None,
        _ => return Err(Problem::field("password", "give user and password, or neither")),
    };
    let new = NewRoute { scope, host: asked.host, port: asked.port, tls: asked.tls, login };
    let route = parts.routes.add(&actor, new, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(json(&parts, route))))
}

#[utoipa::path(
    patch,
    path = "/routes/{route}",
    operation_id = "routes_change",
    tag = "routes",
    summary = "Change: routes.",
    params(("route" = String, Path)),
    request_body = RouteChangeJson,
    responses((status = 200, body = RouteJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(route): Path<String>,
    JsonBody(asked): JsonBody<RouteChangeJson>,
) -> Answer<RouteJson> {
    require_instance(&actor)?;
    let id = called(&parts, &route)?;
    let login = match (asked.no_login, asked.user, asked.password) {
        (true, None, None) => LoginChange::Removed,
        (true, _, _) => return Err(Problem::field("no_login", "give a login, or no_login, not both")),
        (false, None, None) => LoginChange::Kept,
        (false, user, password) => LoginChange::Set(user, password.map(Zeroizing::new)),
    };
    let change = RouteChange { host: asked.host, port: asked.port, tls: asked.tls, login };
    let route = parts.routes.change(&actor, id, change, Timestamp::now()).await?;
    Ok(Json(json(&parts, route)))
}

#[utoipa::path(
    delete,
    path = "/routes/{route}",
    operation_id = "routes_remove",
    tag = "routes",
    summary = "Remove: routes.",
    params(("route" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(route): Path<String>,
) -> Result<StatusCode, Problem> {
    require_instance(&actor)?;
    let id = called(&parts, &route)?;
    if let Some(rule) = parts.destinations.naming(id).first() {
        return Err(Problem::in_use(format!(
            "destination rule {rule} sends mail by it; take that rule back first (postern delivery unblock {rule})"
        )));
    }
    let queue = parts.queue.clone();
    if off_workers(move || Ok(queue.has_mail_by(id)?)).await? {
        return Err(Problem::in_use(
            "mail that goes by it is not settled yet and could go no other way; send it by another relay (postern route \
             set), wait, or cancel that mail (postern queue list, postern queue cancel)",
        ));
    }
    parts.routes.remove(&actor, id, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
