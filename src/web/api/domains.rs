//! `/tenants/{tenant}/domains`: what a tenant sends as, the records to publish, the keys.
//!
//! The tenant `@instance` owns the names of the instance's own notices. Easy to get wrong: private
//! keys have no place in any answer.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called};
use crate::access::Actor;
use crate::domains::{
    self, DnsRecord, Finding, Findings, INSTANCE, MayGo, Need, Published, SendingDomain, Status, Subdomains, Trust,
    Turn,
};
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// How the instance itself is named where a tenant is asked for.
pub const INSTANCE_NAME: &str = "@instance";

/// A sending domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DomainJson {
    /// Whose; `@instance` for names of notices.
    pub tenant: String,
    /// Its name.
    pub domain: String,
    /// `pending`, `verified`, `unverified`, or `trusted` by the operator.
    pub state: String,
    /// `pending`, `verified`, `warning` (its record has been gone for a day), `suspended` (for so long that it
    /// may not be used any more), `trusted`.
    #[serde(default)]
    pub standing: String,
    /// When it was verified or lost its verification.
    pub since: Option<String>,
    /// Since when its record is proven absent, while it is still verified.
    pub absent_since: Option<String>,
    /// Whether it covers names below it.
    pub covers_subdomains: bool,
    /// Whether new keys wait for their records.
    pub rotating: bool,
    /// When DNS was last asked.
    pub last_check: Option<String>,
    /// Records to publish.
    pub records: Vec<RecordJson>,
    /// What else helps.
    pub hints: Vec<String>,
    /// Selectors used before.
    pub retired: Vec<RetiredJson>,
}

/// A DNS record to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordJson {
    /// Its full name, without the last dot.
    pub name: String,
    /// `TXT`, `MX`, `A`, `AAAA`, `PTR`.
    pub kind: String,
    /// Its value in one piece.
    pub value: String,
    /// Why.
    pub purpose: String,
    /// Whether nothing is sent without it.
    pub required: bool,
    /// Whether it was there when DNS was last asked; absent if that is not looked for.
    pub published: Option<bool>,
    /// As a line of a zone file.
    pub zone_line: String,
}

/// A pair of selectors used before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetiredJson {
    /// Names of the records.
    pub names: Vec<String>,
    /// When their keys were erased.
    pub since: String,
    /// Whether the records may be taken out of DNS now.
    pub may_go_now: bool,
    /// When they may go, if that is known.
    pub may_go_at: Option<String>,
}

/// A domain to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDomainJson {
    /// Its name.
    #[schema(value_type = String)]
    pub domain: Domain,
}

/// What is to change; each given field is one change with its own audit event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DomainChangeJson {
    /// Let it be used without proof, or ask for proof again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
    /// Whether it covers names below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covers_subdomains: Option<bool>,
}

/// How a look into DNS ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerificationJson {
    /// The domain as it is now.
    pub domain: DomainJson,
    /// What was found, one per record looked for.
    pub found: Vec<FoundJson>,
    /// What followed, in sentences.
    pub turns: Vec<String>,
}

/// What was found at one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FoundJson {
    /// `RSA key`, `Ed25519 key`, `next RSA key`, `next Ed25519 key`.
    pub what: String,
    /// `published`, `absent`, `different`, `unknown`.
    pub finding: String,
    /// The foreign text, or why DNS did not answer.
    pub detail: Option<String>,
}

pub(super) fn owner(parts: &Parts, actor: &Actor, text: &str) -> Result<TenantId, Problem> {
    if text == INSTANCE_NAME { Ok(INSTANCE) } else { Ok(tenant_called(parts, actor, text)?.id) }
}

pub(super) fn name(field: &str, text: &str) -> Result<Domain, Problem> {
    Domain::parse(text).map_err(|error| Problem::field(field, error.to_string()))
}

async fn json(parts: &Parts, actor: &Actor, domain: &SendingDomain) -> Result<DomainJson, Problem> {
    let rows = all_json(parts, actor, domain.tenant, std::slice::from_ref(domain)).await?;
    rows.into_iter().next().ok_or_else(|| Problem::missing(format!("domain {}", domain.domain)))
}

/// Domains of one tenant. The queue is asked once for all of them.
async fn all_json(
    parts: &Parts,
    actor: &Actor,
    tenant: TenantId,
    domains: &[SendingDomain],
) -> Result<Vec<DomainJson>, Problem> {
    let names: Vec<Domain> = domains.iter().map(|domain| domain.domain.clone()).collect();
    let all = parts.domains.status(actor, tenant, &names, Timestamp::now()).await?;
    Ok(all.into_iter().map(|status| one_json(parts, status)).collect())
}

fn one_json(parts: &Parts, status: Status) -> DomainJson {
    let domain = &status.domain;
    let retired = status.retired.into_iter().map(|retired| RetiredJson {
        names: retired.names.to_vec(),
        since: retired.at.rfc3339(),
        may_go_now: retired.may_go == MayGo::Now,
        may_go_at: match retired.may_go {
            MayGo::At(moment) => Some(moment.rfc3339()),
            MayGo::NotYet | MayGo::Now => None,
        },
    });
    let (state, since) = match (domain.trust, domain.state) {
        (_, domains::State::Verified(since)) => ("verified", Some(since)),
        (Trust::ByOperator, _) => ("trusted", None),
        (Trust::NeedsProof, domains::State::Pending) => ("pending", None),
        (Trust::NeedsProof, domains::State::Unverified(since)) => ("unverified", Some(since)),
    };
    DomainJson {
        tenant: if domain.tenant == INSTANCE {
            INSTANCE_NAME.to_owned()
        } else {
            super::tenant_name(parts, domain.tenant)
        },
        domain: domain.domain.to_string(),
        state: state.to_owned(),
        standing: domain.standing(Timestamp::now()).word().to_owned(),
        since: since.map(Timestamp::rfc3339),
        absent_since: domain.absent_since.map(Timestamp::rfc3339),
        covers_subdomains: domain.subdomains == Subdomains::Covered,
        rotating: domain.next_keys.is_some(),
        last_check: domain.last_check.map(Timestamp::rfc3339),
        records: records(parts, domain),
        hints: domains::domain_hints(domain),
        retired: retired.collect(),
    }
}

fn records(parts: &Parts, domain: &SendingDomain) -> Vec<RecordJson> {
    let vips: Vec<_> = parts.vips.all().iter().filter(|vip| vip.serves(domain.tenant)).cloned().collect();
    let pairs = std::iter::once(&domain.keys).chain(&domain.next_keys);
    let keys: Vec<_> = pairs.flat_map(|pair| [&pair.rsa, &pair.ed25519]).collect();
    let published = |record: &DnsRecord| {
        let key = keys.iter().find(|key| domain.key_name(&key.selector) == record.name);
        key.map(|key| key.published == Published::Yes)
    };
    let all = domains::domain_records_with(domain, &vips, parts.domains.spf_include());
    all.iter().map(|record| RecordJson::of(record, published(record))).collect()
}

impl RecordJson {
    /// A record, and whether it was found.
    pub(super) fn of(record: &DnsRecord, published: Option<bool>) -> Self {
        Self {
            published,
            zone_line: record.zone_line(),
            required: record.need == Need::Required,
            name: record.name.clone(),
            kind: record.kind.to_owned(),
            value: record.value.clone(),
            purpose: record.purpose.clone(),
        }
    }
}

fn found(prefix: &str, findings: &Findings) -> [FoundJson; 2] {
    let one = |what: &str, finding: &Finding| {
        let (word, detail) = match finding {
            Finding::Published => ("published", None),
            Finding::Absent => ("absent", None),
            Finding::Different(text) => ("different", Some(text.clone())),
            Finding::Unknown(text) => ("unknown", Some(text.clone())),
        };
        FoundJson { what: format!("{prefix}{what}"), finding: word.to_owned(), detail }
    };
    [one("RSA key", &findings.rsa), one("Ed25519 key", &findings.ed25519)]
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains",
    operation_id = "domains_list",
    tag = "domains",
    summary = "List: domains.",
    params(("tenant" = String, Path), ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<DomainJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    paging: Paging,
) -> Answer<PageJson<DomainJson>> {
    let tenant = owner(&parts, &actor, &tenant)?;
    let page = paging.of(parts.domains.list(&actor, tenant)?, |domain| domain.domain.to_string());
    let rows = all_json(&parts, &actor, tenant, &page.rows).await?;
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/domains",
    operation_id = "domains_add",
    tag = "domains",
    summary = "Make: domains.",
    params(("tenant" = String, Path)),
    request_body = NewDomainJson,
    responses((status = 201, body = DomainJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(tenant): Path<String>,
    JsonBody(asked): JsonBody<NewDomainJson>,
) -> Result<(StatusCode, Json<DomainJson>), Problem> {
    let tenant = owner(&parts, &actor, &tenant)?;
    let domain = parts.domains.add(&actor, tenant, &asked.domain, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(json(&parts, &actor, &domain).await?)))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains/{domain}",
    operation_id = "domains_show",
    tag = "domains",
    summary = "Show: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = DomainJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<DomainJson> {
    let domain = parts.domains.get(&actor, owner(&parts, &actor, &tenant)?, &name("domain", &domain)?)?;
    Ok(Json(json(&parts, &actor, &domain).await?))
}

#[utoipa::path(
    patch,
    path = "/tenants/{tenant}/domains/{domain}",
    operation_id = "domains_change",
    tag = "domains",
    summary = "Change: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    request_body = DomainChangeJson,
    responses((status = 200, body = DomainJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
    JsonBody(asked): JsonBody<DomainChangeJson>,
) -> Answer<DomainJson> {
    let (tenant, domain, now) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?, Timestamp::now());
    let trust = asked.trusted.map(|trusted| if trusted { Trust::ByOperator } else { Trust::NeedsProof });
    let covered = asked.covers_subdomains;
    let subdomains = covered.map(|covered| if covered { Subdomains::Covered } else { Subdomains::NotCovered });
    let domain = parts.domains.set_words(&actor, (tenant, &domain), (trust, subdomains), now).await?;
    Ok(Json(json(&parts, &actor, &domain).await?))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/domains/{domain}/verify",
    operation_id = "domains_verify",
    tag = "domains",
    summary = "Verify: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = VerificationJson, description = "done"))
)]
pub(super) async fn verify(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<VerificationJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let seen = parts.domains.verify(&actor, tenant, &domain, Timestamp::now()).await?;
    let mut all: Vec<FoundJson> = found("", &seen.current).into();
    all.extend(seen.next.iter().flat_map(|next| found("next ", next)));
    let turn = |turn: &Turn| match turn {
        Turn::Verified => "the domain is verified and may be used".to_owned(),
        Turn::Unverified(reason) => format!("the domain is no longer verified: {reason}"),
        Turn::Rotated => "the new keys are in use, the old ones are erased".to_owned(),
    };
    let turns = seen.turns.iter().map(turn).collect();
    Ok(Json(VerificationJson { domain: json(&parts, &actor, &seen.domain).await?, found: all, turns }))
}

#[utoipa::path(
    post,
    path = "/tenants/{tenant}/domains/{domain}/rotate",
    operation_id = "domains_rotate",
    tag = "domains",
    summary = "Rotate: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = DomainJson, description = "done"))
)]
pub(super) async fn rotate(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<DomainJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let domain = parts.domains.rotate(&actor, tenant, &domain, Timestamp::now()).await?;
    Ok(Json(json(&parts, &actor, &domain).await?))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/domains/{domain}/rotate",
    operation_id = "domains_cancel_rotation",
    tag = "domains",
    summary = "Cancel rotation: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = DomainJson, description = "done"))
)]
pub(super) async fn cancel_rotation(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<DomainJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let domain = parts.domains.cancel_rotation(&actor, tenant, &domain, Timestamp::now()).await?;
    Ok(Json(json(&parts, &actor, &domain).await?))
}

#[utoipa::path(
    delete,
    path = "/tenants/{tenant}/domains/{domain}",
    operation_id = "domains_remove",
    tag = "domains",
    summary = "Remove: domains.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    parts.domains.remove(&actor, tenant, &domain, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
