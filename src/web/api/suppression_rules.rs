//! `/tenants/{tenant}/suppression-rules`: when what happens to mail puts a recipient on the list.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::suppression::{Rules, Scope};
use crate::web::body::JsonBody;

/// The rules of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuppressionRulesJson {
    /// Hard bounces before an address is stopped: 1 to 3.
    pub hard_bounces: u8,
    /// `tenant`: for all of its mail; `account`: for that of the SMTP account which sent the message.
    #[schema(value_type = String)]
    pub scope: Scope,
    /// Days an entry for hard bounces is good for; 0 for ever.
    pub hard_bounce_days: u32,
    /// The same for complaints.
    pub complaint_days: u32,
    /// The same for those who unsubscribed.
    pub unsubscribe_days: u32,
}

/// What is to change; absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SuppressionRulesChangeJson {
    /// Hard bounces before an address is stopped: 1 to 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_bounces: Option<u8>,
    /// `tenant` or `account`.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Days an entry for hard bounces is good for; 0 for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_bounce_days: Option<u32>,
    /// The same for complaints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complaint_days: Option<u32>,
    /// The same for those who unsubscribed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsubscribe_days: Option<u32>,
}

impl From<Rules> for SuppressionRulesJson {
    fn from(rules: Rules) -> Self {
        let Rules { hard_bounces, scope, hard_bounce_days, complaint_days, unsubscribe_days } = rules;
        Self { hard_bounces, scope, hard_bounce_days, complaint_days, unsubscribe_days }
    }
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/suppression-rules",
    operation_id = "suppression_rules_show",
    tag = "suppressions",
    summary = "Show: rules of suppressions.",
    params(("tenant" = String, Path)),
    responses((status = 200, body = SuppressionRulesJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
) -> Answer<SuppressionRulesJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    Ok(Json(parts.suppression.rules(&actor, tenant.id)?.into()))
}

#[utoipa::path(
    patch,
    path = "/tenants/{tenant}/suppression-rules",
    operation_id = "suppression_rules_change",
    tag = "suppressions",
    summary = "Change: rules of suppressions.",
    params(("tenant" = String, Path)),
    request_body = SuppressionRulesChangeJson,
    responses((status = 200, body = SuppressionRulesJson, description = "they hold for what happens from now on"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    JsonBody(asked): JsonBody<SuppressionRulesChangeJson>,
) -> Answer<SuppressionRulesJson> {
    let tenant = tenant_called(&parts, &actor, &tenant)?;
    let old = parts.suppression.rules(&actor, tenant.id)?;
    let rules = Rules {
        hard_bounces: asked.hard_bounces.unwrap_or(old.hard_bounces),
        scope: asked.scope.unwrap_or(old.scope),
        hard_bounce_days: asked.hard_bounce_days.unwrap_or(old.hard_bounce_days),
        complaint_days: asked.complaint_days.unwrap_or(old.complaint_days),
        unsubscribe_days: asked.unsubscribe_days.unwrap_or(old.unsubscribe_days),
    };
    parts.suppression.set_rules(&actor, tenant.id, rules, Timestamp::now()).await?;
    Ok(Json(rules.into()))
}
