//! `/sites`: what receivers are sent, how fast, and why not faster.
//!
//! Easy to get wrong: a site is named by a provider, by a recipient domain or by its own name, and
//! always seen from one virtual IP.

use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called, vip_called};
use crate::access::Actor;
use crate::delivery::{
    Bound, Hold, Knob, LADDER, LimitScope, LimitSet, Origin, Override, Part, Path as Way, Picture, Target, UNLIMITED,
    Warmup, scope_words,
};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::queue::QueueTime;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::PageJson;
use crate::web::problem::Problem;

/// A site as one virtual IP sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteJson {
    /// The provider, or else the sorted MX hosts.
    pub site: String,
    /// The virtual IP: its EHLO name.
    pub vip: String,
    /// Connections now.
    pub connections: u32,
    /// Messages in the last minute.
    pub messages_per_minute: u32,
    /// `full`, `slowed`, `resting`, `parked`, `warming`.
    pub state: String,
    /// What would hold the next message back; nothing if it could go.
    pub binds: Option<String>,
    /// Until when, if time ends it.
    pub until: Option<String>,
    /// Every limit with where it comes from.
    pub limits: Vec<SiteLimitJson>,
    /// What the controller allows, if that is less than the limits.
    pub controller: Option<SiteControllerJson>,
    /// The warm-up, if there is one.
    pub warm_up: Option<WarmUpJson>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteLimitJson {
    /// `all mail`, `domain shop.example`, `tenant shop`.
    pub of: String,
    /// `connections`, `messages_per_minute`, ...
    pub limit: String,
    /// How much; nothing is no limit.
    pub value: Option<u32>,
    /// Who says so.
    pub from: String,
}

/// What a controller has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteControllerJson {
    /// Messages a minute.
    pub messages_per_minute: Option<u32>,
    /// Connections.
    pub connections: Option<u32>,
    /// What it was lowered for.
    pub cause: Option<String>,
    /// The last words of the site that were trouble, oldest first.
    pub said: Vec<SaidJson>,
}

/// Something a site said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SaidJson {
    /// When.
    pub at: String,
    /// What.
    pub reply: String,
}

/// A warm-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WarmUpJson {
    /// Messages allowed today.
    pub allowed: u32,
    /// Messages counted today.
    pub sent: u32,
    /// Complaints that came in today.
    #[serde(default)]
    pub complaints: u32,
    /// Which step, from 1.
    pub step: u32,
    /// Of how many.
    pub steps: usize,
    /// When the next day begins.
    pub next: String,
}

/// What limits are for. None of `site` and `domain`: every site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SiteScopeJson {
    /// A provider, a recipient domain or a site's name.
    pub site: Option<String>,
    /// One recipient domain, beside the limits of its site.
    #[schema(value_type = Option<String>)]
    pub domain: Option<Domain>,
    /// One virtual IP.
    pub vip: Option<String>,
    /// One tenant, beside the limits of the site.
    pub tenant: Option<String>,
}

/// Limits to be set; those left out stay as they are. 4294967295 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SiteLimitsJson {
    /// For what.
    pub scope: SiteScopeJson,
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Messages over one connection.
    pub messages_per_connection: Option<u32>,
    /// New connections in any minute.
    pub connections_per_minute: Option<u32>,
    /// Messages in any minute.
    pub messages_per_minute: Option<u32>,
    /// Recipients in one transaction.
    pub recipients_per_transaction: Option<u32>,
    /// Messages of this tenant for each of another when both wait.
    pub weight: Option<u32>,
}

/// Limits that are set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteOverrideJson {
    /// For what, in words.
    pub scope: String,
    /// Each with its value.
    pub limits: Vec<SiteLimitJson>,
}

/// From which virtual IP; steps of a warm-up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SiteActJson {
    /// The virtual IP.
    pub vip: String,
    /// Messages a day, step by step; empty is the usual ladder.
    pub ladder: Vec<u32>,
}

/// What an act did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteDoneJson {
    /// The site.
    pub site: String,
    /// Whether there was anything to do.
    pub changed: bool,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    vip: String,
}

/// The queue's moment on the wall clock.
fn wall(moment: QueueTime, now: QueueTime) -> Timestamp {
    let at = Timestamp::now();
    match moment >= now {
        true => at.plus(moment.since(now)),
        false => Timestamp(at.0.saturating_sub(u64::try_from(now.since(moment).as_millis()).unwrap_or(0))),
    }
}

fn way(parts: &Parts, actor: &Actor, site: &str, vip: &str) -> Result<Way, Problem> {
    let vip = vip_called(parts, actor, vip)?.id;
    let site = parts.pacing.site_called(site).ok_or_else(|| {
        Problem::missing(format!(
            "site {site}: name a provider (site providers), or a domain that mail has gone to since the daemon started"
        ))
    })?;
    Ok(Way { site, vip })
}

fn origin(bound: &Bound, parts: &Parts, site: &str) -> String {
    match &bound.origin {
        Origin::Default if bound.value == UNLIMITED => "nobody limits it".to_owned(),
        Origin::Default => "postern.toml".to_owned(),
        Origin::Provider => {
            let source = parts.pacing.providers().named(site).map(|provider| provider.source.clone());
            format!("providers.toml: {}", source.unwrap_or_default())
        }
        Origin::Operator(scope) => format!("set for {}", scope_words(scope)),
    }
}

fn whose(part: &Part, parts: &Parts) -> String {
    match part {
        Part::Whole => "all mail".to_owned(),
        Part::Domain(domain) => format!("domain {domain}"),
        Part::Tenant(tenant) => format!("tenant {}", super::tenant_name(parts, *tenant)),
    }
}

fn some(value: u32) -> Option<u32> {
    (value != UNLIMITED).then_some(value)
}

fn json(parts: &Parts, way: &Way, picture: &Picture, now: QueueTime) -> SiteJson {
    let controller = &picture.memory.controller;
    let until = picture.holds.as_ref().and_then(|(_, until)| *until).map(|until| wall(until, now));
    let hold = picture.holds.as_ref().map(|(hold, _)| hold);
    let state = match hold {
        Some(Hold::Listed(_)) => "parked",
        Some(Hold::Resting(_)) => "resting",
        _ if controller.rate.is_some() || controller.connections.is_some() => "slowed",
        _ if picture.memory.warmup.is_some() => "warming",
        _ => "full",
    };
    let limits = picture.parts.iter().flat_map(|(part, resolved)| {
        let of = whose(part, parts);
        Knob::ALL.into_iter().filter_map(move |knob| {
            let bound = resolved.bound(knob);
            // Of a part only what was set for it says anything.
            let is_told = *part == Part::Whole || bound.value != UNLIMITED;
            is_told.then(|| SiteLimitJson {
                of: of.clone(),
                limit: knob.name().to_owned(),
                value: some(bound.value),
                from: origin(bound, parts, &way.site),
            })
        })
    });
    let warm_up = picture.memory.warmup.as_ref().map(|warmup: &Warmup| WarmUpJson {
        allowed: warmup.allowed(),
        sent: warmup.sent(),
        complaints: warmup.complaints(),
        step: warmup.step().0,
        steps: warmup.step().1,
        next: wall(warmup.ends(), now).rfc3339(),
    });
    SiteJson {
        site: way.site.to_string(),
        vip: parts.vips.get(way.vip).map_or_else(|| way.vip.to_string(), |vip| vip.ehlo.to_string()),
        connections: picture.running,
        messages_per_minute: picture.rate,
        state: state.to_owned(),
        binds: hold.map(|hold| hold.describe(&way.site, until)),
        until: until.map(Timestamp::rfc3339),
        limits: limits.collect(),
        controller: (!controller.is_idle()).then(|| SiteControllerJson {
            messages_per_minute: controller.rate,
            connections: controller.connections,
            cause: controller.cause.clone(),
            said: controller
                .said
                .iter()
                .map(|said| SaidJson { at: wall(said.at, now).rfc3339(), reply: said.reply.clone() })
                .collect(),
        }),
        warm_up,
    }
}

#[utoipa::path(
    get,
    path = "/sites",
    operation_id = "sites_list",
    tag = "sites",
    summary = "List: sites that mail goes to.",
    responses((status = 200, body = PageJson<SiteJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
) -> Answer<PageJson<SiteJson>> {
    let now = parts.queue.now();
    let sites = parts.pacing.sites(&actor, now)?;
    Ok(Json(PageJson {
        rows: sites.iter().map(|(way, picture)| json(&parts, way, picture, now)).collect(),
        next: None,
    }))
}

#[utoipa::path(
    get,
    path = "/sites/{site}",
    operation_id = "sites_show",
    tag = "sites",
    summary = "Show: one site as one virtual IP sees it.",
    params(("site" = String, Path), ("vip" = String, Query)),
    responses((status = 200, body = SiteJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(site): Path<String>,
    Query(asked): Query<Asked>,
) -> Answer<SiteJson> {
    super::require_instance(&actor)?;
    let (way, now) = (way(&parts, &actor, &site, &asked.vip)?, parts.queue.now());
    let picture = parts.pacing.site(&actor, &way, now)?;
    Ok(Json(json(&parts, &way, &picture, now)))
}

fn scope(parts: &Parts, actor: &Actor, asked: &SiteScopeJson) -> Result<LimitScope, Problem> {
    let target = match (&asked.site, &asked.domain) {
        (Some(_), Some(_)) => return Err(Problem::field("domain", "name a site or a domain, not both".to_owned())),
        (Some(site), None) => match parts.pacing.site_called(site) {
            Some(name) => Target::Site(name.to_string()),
            // Limits may be set before the first mail goes there: its MX hosts, sorted, with commas.
            None => Target::Site(site.to_ascii_lowercase()),
        },
        (None, Some(domain)) => Target::Domain(domain.clone()),
        (None, None) => Target::Every,
    };
    let vip = asked.vip.as_deref().map(|vip| vip_called(parts, actor, vip)).transpose()?.map(|vip| vip.id);
    let tenant = asked.tenant.as_deref().map(|name| tenant_called(parts, actor, name)).transpose()?;
    Ok(LimitScope { target, vip, tenant: tenant.map(|tenant| tenant.id) })
}

fn override_json(set: &Override) -> SiteOverrideJson {
    let words = scope_words(&set.scope);
    let limits = Knob::ALL.into_iter().filter_map(|knob| {
        let value = set.limits.get(knob)?;
        let limit = knob.name().to_owned();
        Some(SiteLimitJson { of: words.clone(), limit, value: some(value), from: "operator".to_owned() })
    });
    let weight = set.weight.map(|weight| SiteLimitJson {
        of: words.clone(),
        limit: "weight".to_owned(),
        value: Some(weight),
        from: "operator".to_owned(),
    });
    SiteOverrideJson { limits: limits.chain(weight).collect(), scope: words.clone() }
}

#[utoipa::path(
    get,
    path = "/site-limits",
    operation_id = "site_limits_list",
    tag = "sites",
    summary = "List: limits that were set.",
    responses((status = 200, body = PageJson<SiteOverrideJson>, description = "done"))
)]
pub(super) async fn overrides(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
) -> Answer<PageJson<SiteOverrideJson>> {
    let rows = parts.pacing.overrides(&actor)?.iter().map(override_json).collect();
    Ok(Json(PageJson { rows, next: None }))
}

#[utoipa::path(
    post,
    path = "/site-limits",
    operation_id = "site_limits_set",
    tag = "sites",
    summary = "Set: limits of sites.",
    request_body = SiteLimitsJson,
    responses((status = 200, body = SiteOverrideJson, description = "done"))
)]
pub(super) async fn set(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<SiteLimitsJson>,
) -> Answer<SiteOverrideJson> {
    super::require_instance(&actor)?;
    let mut limits = LimitSet::default();
    limits.set(Knob::Connections, asked.connections);
    limits.set(Knob::MessagesPerConnection, asked.messages_per_connection);
    limits.set(Knob::ConnectionsPerMinute, asked.connections_per_minute);
    limits.set(Knob::MessagesPerMinute, asked.messages_per_minute);
    limits.set(Knob::RecipientsPerTransaction, asked.recipients_per_transaction);
    let scope = scope(&parts, &actor, &asked.scope)?;
    let set = parts.pacing.set(&actor, Override { scope, limits, weight: asked.weight }, Timestamp::now()).await?;
    Ok(Json(override_json(&set)))
}

#[utoipa::path(
    post,
    path = "/site-limits/clear",
    operation_id = "site_limits_clear",
    tag = "sites",
    summary = "Take back: limits of sites.",
    request_body = SiteScopeJson,
    responses((status = 200, body = SiteDoneJson, description = "done"))
)]
pub(super) async fn clear(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<SiteScopeJson>,
) -> Answer<SiteDoneJson> {
    super::require_instance(&actor)?;
    let scope = scope(&parts, &actor, &asked)?;
    parts.pacing.clear(&actor, &scope, Timestamp::now()).await?;
    Ok(Json(SiteDoneJson { site: scope_words(&scope), changed: true }))
}

#[utoipa::path(
    post,
    path = "/sites/{site}/release",
    operation_id = "sites_release",
    tag = "sites",
    summary = "End: pauses and slow-downs of a site.",
    params(("site" = String, Path)),
    request_body = SiteActJson,
    responses((status = 200, body = SiteDoneJson, description = "done"))
)]
pub(super) async fn release(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(site): Path<String>,
    JsonBody(asked): JsonBody<SiteActJson>,
) -> Answer<SiteDoneJson> {
    super::require_instance(&actor)?;
    let way = way(&parts, &actor, &site, &asked.vip)?;
    let changed = parts.pacing.release(&actor, &way, Timestamp::now()).await?;
    Ok(Json(SiteDoneJson { site: way.site.to_string(), changed }))
}

#[utoipa::path(
    post,
    path = "/sites/{site}/warm-up",
    operation_id = "sites_warm",
    tag = "sites",
    summary = "Begin: a warm-up.",
    params(("site" = String, Path)),
    request_body = SiteActJson,
    responses((status = 200, body = SiteDoneJson, description = "done"))
)]
pub(super) async fn warm(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(site): Path<String>,
    JsonBody(asked): JsonBody<SiteActJson>,
) -> Answer<SiteDoneJson> {
    super::require_instance(&actor)?;
    let (way, now) = (way(&parts, &actor, &site, &asked.vip)?, parts.queue.now());
    let ladder = if asked.ladder.is_empty() { LADDER.to_vec() } else { asked.ladder };
    let warmup = Warmup::new(&ladder, now).map_err(|why| Problem::field("ladder", why))?;
    parts.pacing.warm(&actor, &way, Some(warmup), (now, Timestamp::now())).await?;
    Ok(Json(SiteDoneJson { site: way.site.to_string(), changed: true }))
}

#[utoipa::path(
    post,
    path = "/sites/{site}/warm-up/stop",
    operation_id = "sites_warm_stop",
    tag = "sites",
    summary = "End: a warm-up.",
    params(("site" = String, Path)),
    request_body = SiteActJson,
    responses((status = 200, body = SiteDoneJson, description = "done"))
)]
pub(super) async fn stop_warming(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(site): Path<String>,
    JsonBody(asked): JsonBody<SiteActJson>,
) -> Answer<SiteDoneJson> {
    super::require_instance(&actor)?;
    let (way, now) = (way(&parts, &actor, &site, &asked.vip)?, parts.queue.now());
    parts.pacing.warm(&actor, &way, None, (now, Timestamp::now())).await?;
    Ok(Json(SiteDoneJson { site: way.site.to_string(), changed: true }))
}
