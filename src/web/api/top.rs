//! `/top`: what happens at this moment: rates of the last minute, the queue, providers.
//!
//! It reads what the rooms count anyway; looking costs the daemon next to nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::access::Actor;
use crate::delivery::OTHERS;
use crate::ext::Timestamp;

/// What happens at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopJson {
    /// When.
    pub at: String,
    /// Messages accepted in the last minute.
    pub accepted: u64,
    /// Recipients delivered in the last minute.
    pub delivered: u64,
    /// Recipients put off in the last minute.
    pub deferred: u64,
    /// Recipients given up in the last minute.
    pub given_up: u64,
    /// Messages that are owed.
    pub queue_messages: u64,
    /// Lanes (virtual IP and receiving domain) with mail that waits.
    pub queue_lanes: usize,
    /// Attempts running now.
    pub queue_in_flight: usize,
    /// Suspensions of delivery in force.
    pub suspensions: usize,
    /// SMTP accounts that are paused.
    pub accounts_paused: usize,
    /// By provider, the most delivered first.
    pub providers: Vec<TopProviderJson>,
}

/// One provider at this moment; `other` is every site that is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopProviderJson {
    /// Its name.
    pub provider: String,
    /// Connections open now.
    pub connections: u64,
    /// Recipients delivered in the last minute.
    pub delivered: u64,
    /// Recipients put off in the last minute.
    pub deferred: u64,
    /// Recipients given up in the last minute.
    pub given_up: u64,
    /// Milliseconds from acceptance to delivery: half of the last minute's deliveries took less.
    pub took_half_ms: Option<u64>,
    /// The same, 99 in 100.
    pub took_most_ms: Option<u64>,
    /// Virtual IPs that get less there than the limits allow.
    pub slowed: u64,
    /// Virtual IPs that get nothing there, because their address is listed.
    pub parked: u64,
}

#[utoipa::path(
    get,
    path = "/top",
    operation_id = "top_show",
    tag = "status",
    summary = "Show: what happens at this moment.",
    responses((status = 200, body = TopJson, description = "done"))
)]
pub(super) async fn show(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Answer<TopJson> {
    super::require_instance(&actor)?;
    let now = Timestamp::now();
    let minute = parts.pulse.last_minute(now);
    let millis = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let mut providers = BTreeMap::<String, TopProviderJson>::new();
    for line in &minute.lines {
        let own = providers.entry(line.provider.to_string()).or_default();
        (own.delivered, own.deferred, own.given_up) = (line.delivered, line.deferred, line.given_up);
        (own.took_half_ms, own.took_most_ms) = (line.took_half.map(millis), line.took_most.map(millis));
    }
    let known = parts.pacing.providers();
    for (way, picture) in parts.pacing.sites(&actor, parts.queue.now())? {
        let name = known.named(&way.site).map_or(OTHERS, |provider| &*provider.name);
        let controller = &picture.memory.controller;
        let is_parked = matches!(picture.holds, Some((crate::delivery::Hold::Listed(_), _)));
        let is_slowed = !is_parked && (controller.rate.is_some() || controller.connections.is_some());
        let own = providers.entry(name.to_owned()).or_default();
        own.connections = own.connections.saturating_add(u64::from(picture.running));
        own.slowed = own.slowed.saturating_add(u64::from(is_slowed));
        own.parked = own.parked.saturating_add(u64::from(is_parked));
    }
    let mut rows: Vec<TopProviderJson> =
        providers.into_iter().map(|(provider, row)| TopProviderJson { provider, ..row }).collect();
    rows.sort_by(|one, other| other.delivered.cmp(&one.delivered).then_with(|| one.provider.cmp(&other.provider)));
    let sum = |of: fn(&TopProviderJson) -> u64| rows.iter().map(of).fold(0_u64, u64::saturating_add);
    let owed = parts.queue.totals();
    Ok(Json(TopJson {
        at: now.rfc3339(),
        accepted: minute.accepted,
        delivered: sum(|row| row.delivered),
        deferred: sum(|row| row.deferred),
        given_up: sum(|row| row.given_up),
        queue_messages: parts.blobs.usage().live_bodies,
        queue_lanes: owed.lanes,
        queue_in_flight: owed.claimed,
        suspensions: parts.delivery.suspensions(&actor, now).map_err(crate::records::AdminError::from)?.len(),
        accounts_paused: parts.breaker.paused(),
        providers: rows,
    }))
}
