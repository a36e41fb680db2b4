//! `/destination-rules`: destinations that are blocked, or whose mail goes another way.
//!
//! Easy to get wrong: one destination is named each time, and without a route it is blocked.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::access::Actor;
use crate::delivery::{Destination, DestinationRule, Diversion};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::routing::RouteScope;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A rule about destinations; what it does not name is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DestinationRuleJson {
    /// Its number; of several that fit the first counts, those by recipient domain before the others.
    pub number: u64,
    /// Which destinations, in words.
    pub what: String,
    /// `block`, `reroute`.
    pub act: String,
    /// The route their mail goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Why.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: String,
}

/// Exactly one of `mx`, `network`, `to` and `provider`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDestinationRuleJson {
    /// Domains with a best mail host of this name, or with `*.` before it of a name below.
    pub mx: Option<String>,
    /// Domains with a best mail host in this network.
    #[schema(value_type = Option<String>)]
    pub network: Option<IpNet>,
    /// This recipient domain and those below.
    #[schema(value_type = Option<String>)]
    pub to: Option<Domain>,
    /// Recipient domains of this provider.
    pub provider: Option<String>,
    /// The id of the route their mail goes by; absent is blocked.
    pub route: Option<String>,
    /// Why; senders of blocked mail are told.
    pub reason: String,
}

fn json(rule: DestinationRule) -> DestinationRuleJson {
    let route = match rule.diversion {
        Diversion::Block => None,
        Diversion::Reroute(route) => Some(super::routes::written(route)),
    };
    DestinationRuleJson {
        number: rule.number,
        what: rule.destination.to_string(),
        act: if route.is_some() { "reroute" } else { "block" }.to_owned(),
        route,
        reason: rule.reason,
        by: rule.by,
        since: rule.since.rfc3339(),
    }
}

fn destination(parts: &Parts, asked: &NewDestinationRuleJson) -> Result<Destination, Problem> {
    let NewDestinationRuleJson { mx, network, to, provider, .. } = asked;
    match (mx, network, to, provider) {
        (Some(mx), None, None, None) => Ok(Destination::MxHost(mx.clone())),
        (None, Some(network), None, None) => Ok(Destination::MxNetwork(*network)),
        (None, None, Some(to), None) => Ok(Destination::Domain(to.clone())),
        (None, None, None, Some(provider)) => {
            let providers = parts.pacing.providers();
            let known = providers.named(provider).map(|known| known.name.to_string());
            known.map(Destination::Provider).ok_or_else(|| {
                Problem::field("provider", format!("{provider} is not a provider of etc/providers.toml or of yours"))
            })
        }
        _ => Err(Problem::field("mx", "name exactly one of mx, network, to and provider")),
    }
}

#[utoipa::path(
    get,
    path = "/destination-rules",
    operation_id = "destination_rules_list",
    tag = "destinations",
    summary = "List: rules about destinations.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<DestinationRuleJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<DestinationRuleJson>> {
    let page = paging.of(parts.destinations.list(&actor)?, |rule| format!("{:020}", rule.number));
    Ok(Json(PageJson { rows: page.rows.into_iter().map(json).collect(), next: page.next }))
}

/// The route, if everybody's mail may go by it: a tenant's own is paid for by that tenant, and knows it by its login.
fn anybodys(parts: &Parts, id: u64) -> Result<u64, Problem> {
    match parts.routes.route(id).map(|route| route.scope) {
        Some(RouteScope::Instance | RouteScope::OnDemand) => Ok(id),
        _ => Err(Problem::field(
            "route",
            "mail of all tenants would go by it: only a relay that was added with --all or --on-demand may be named",
        )),
    }
}

#[utoipa::path(
    post,
    path = "/destination-rules",
    operation_id = "destination_rules_add",
    tag = "destinations",
    summary = "Block, or send another way: destinations.",
    request_body = NewDestinationRuleJson,
    responses((status = 201, body = DestinationRuleJson, description = "made"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewDestinationRuleJson>,
) -> Result<(StatusCode, Json<DestinationRuleJson>), Problem> {
    super::require_instance(&actor)?;
    let diversion = match &asked.route {
        None => Diversion::Block,
        Some(text) => Diversion::Reroute(anybodys(&parts, super::routes::called(&parts, text)?)?),
    };
    let destination = destination(&parts, &asked)?;
    let made = parts.destinations.add(&actor, (destination, diversion), &asked.reason, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(json(made))))
}

#[utoipa::path(
    delete,
    path = "/destination-rules/{rule}",
    operation_id = "destination_rules_remove",
    tag = "destinations",
    summary = "Remove: a rule about destinations.",
    params(("rule" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(rule): Path<String>,
) -> Result<StatusCode, Problem> {
    super::require_instance(&actor)?;
    let number = rule.parse().map_err(|_| Problem::missing(format!("destination rule {rule}")))?;
    parts.destinations.remove(&actor, number, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
