//! `/tls-rules` and `/tls-policies`: what is demanded of TLS towards recipient domains.
//!
//! Easy to get wrong: a rule is an operator's word about one domain; a policy is that domain's own,
//! and cannot be changed here.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::access::Actor;
use crate::delivery::{DomainRule, DomainTls, FailingTls, KeptPolicy, SeenTls};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// What an operator demands of TLS towards a recipient domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsRuleJson {
    /// The recipient domain.
    pub domain: String,
    /// `plaintext`, `encrypted` or `verified`.
    pub tls: String,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: String,
}

/// A rule to be set; it replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTlsRuleJson {
    /// The recipient domain.
    #[schema(value_type = String)]
    pub domain: Domain,
    /// `plaintext` (its policies are not heeded), `encrypted` or `verified`.
    pub tls: String,
}

/// What is known about TLS towards a recipient domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsPolicyJson {
    /// The recipient domain.
    pub domain: String,
    /// What an operator said.
    pub rule: Option<TlsRuleJson>,
    /// Its MTA-STS policy, if one is kept and still good.
    pub mta_sts: Option<StsPolicyJson>,
    /// What connections came to, if mail went there.
    #[serde(default)]
    pub seen: Option<SeenTlsJson>,
}

/// What connections for a recipient domain came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SeenTlsJson {
    /// The best level there ever was: `plaintext`, `encrypted`, `verified`.
    pub best: String,
    /// With which host.
    pub best_host: String,
    /// Since when it is the best.
    pub since: String,
    /// The level of the last connection.
    pub last: String,
    /// What it was, in words.
    pub last_words: String,
    /// When that was, to the day unless it changed.
    pub seen: String,
    /// When it was told last that there was less than the best.
    pub told: Option<String>,
}

/// A mail host with which TLS fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsFailingJson {
    /// Its name.
    pub host: String,
    /// Why.
    pub reason: String,
    /// When TLS is tried again; until then it is spoken to in the clear, where nobody demands more.
    pub until: String,
}

/// An MTA-STS policy (RFC 8461).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StsPolicyJson {
    /// `enforce`, `testing` or `none`.
    pub mode: String,
    /// The hosts it names.
    pub mx: Vec<String>,
    /// Its id, as announced when it was fetched.
    pub id: String,
    /// When it was fetched.
    pub fetched: String,
    /// When it runs out, unless it is fetched anew.
    pub until: String,
}

fn rule_json(rule: &DomainRule) -> TlsRuleJson {
    TlsRuleJson {
        domain: rule.domain.to_string(),
        tls: rule.tls.word().to_owned(),
        by: rule.by.clone(),
        since: rule.since.rfc3339(),
    }
}

fn policy_json(kept: &KeptPolicy) -> StsPolicyJson {
    StsPolicyJson {
        mode: kept.policy.mode.word().to_owned(),
        mx: kept.policy.mx.clone(),
        id: kept.id.clone(),
        fetched: kept.fetched.rfc3339(),
        until: kept.until().rfc3339(),
    }
}

fn domain_called(text: &str) -> Result<Domain, Problem> {
    Domain::parse(text).map_err(|error| Problem::field("domain", error.to_string()))
}

#[utoipa::path(
    get,
    path = "/tls-rules",
    operation_id = "tls_rules_list",
    tag = "tls",
    summary = "List: TLS rules for recipient domains.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<TlsRuleJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<TlsRuleJson>> {
    let page = paging.of(parts.tls_policies.rules(&actor)?, |rule| rule.domain.to_string());
    Ok(Json(PageJson { rows: page.rows.iter().map(rule_json).collect(), next: page.next }))
}

#[utoipa::path(
    post,
    path = "/tls-rules",
    operation_id = "tls_rules_set",
    tag = "tls",
    summary = "Set: the TLS rule for a recipient domain.",
    request_body = NewTlsRuleJson,
    responses((status = 200, body = TlsRuleJson, description = "done"))
)]
pub(super) async fn set(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewTlsRuleJson>,
) -> Answer<TlsRuleJson> {
    let wrong = || Problem::field("tls", "one of plaintext, encrypted and verified");
    let tls = DomainTls::called(&asked.tls).ok_or_else(wrong)?;
    let made = parts.tls_policies.set_rule(&actor, asked.domain, tls, Timestamp::now()).await?;
    Ok(Json(rule_json(&made)))
}

#[utoipa::path(
    delete,
    path = "/tls-rules/{domain}",
    operation_id = "tls_rules_clear",
    tag = "tls",
    summary = "Take back: the TLS rule for a recipient domain.",
    params(("domain" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn clear(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(domain): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.tls_policies.clear_rule(&actor, &domain_called(&domain)?, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/tls-policies/{domain}",
    operation_id = "tls_policies_show",
    tag = "tls",
    summary = "Show: what is known about TLS towards a recipient domain.",
    params(("domain" = String, Path)),
    responses((status = 200, body = TlsPolicyJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(domain): Path<String>,
) -> Answer<TlsPolicyJson> {
    let domain = domain_called(&domain)?;
    let rules = parts.tls_policies.rules(&actor)?;
    let rule = rules.iter().find(|rule| rule.domain == domain).map(rule_json);
    let mta_sts = parts.tls_policies.kept(&domain, Timestamp::now()).as_ref().map(policy_json);
    let seen = parts.tls_memory.seen(&actor, &domain)?.map(seen_json);
    Ok(Json(TlsPolicyJson { domain: domain.to_string(), rule, mta_sts, seen }))
}

fn seen_json(seen: SeenTls) -> SeenTlsJson {
    SeenTlsJson {
        best: seen.best.word().to_owned(),
        best_host: seen.best_host,
        since: seen.since.rfc3339(),
        last: seen.last.word().to_owned(),
        last_words: seen.last_words,
        seen: seen.seen.rfc3339(),
        told: seen.told.map(Timestamp::rfc3339),
    }
}

#[utoipa::path(
    get,
    path = "/tls-failing",
    operation_id = "tls_failing_list",
    tag = "tls",
    summary = "List: mail hosts with which TLS fails.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<TlsFailingJson>, description = "done"))
)]
pub(super) async fn failing(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<TlsFailingJson>> {
    let all = parts.tls_memory.failing(&actor, Timestamp::now())?;
    let page = paging.of(all, |known| known.host.clone());
    let json =
        |known: FailingTls| TlsFailingJson { host: known.host, reason: known.reason, until: known.until.rfc3339() };
    Ok(Json(PageJson { rows: page.rows.into_iter().map(json).collect(), next: page.next }))
}
