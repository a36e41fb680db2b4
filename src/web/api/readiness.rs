//! `/tenants/{tenant}/domains/{domain}/records`, `/zone`, `/readiness`: what DNS holds beside what should be there.
//!
//! Each asks DNS at that moment and changes nothing.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::domains::{name, owner};
use super::{Answer, Shared, scan};
use crate::access::{Action, Actor};
use crate::delivery::TlsLevel;
use crate::domains::{Counted, Inspected, Item, Need, Purpose, Rule, Stand, ToGmail, Traffic, Verdict};
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::records::AdminError;
use crate::statistics::{Counts, Narrow, OTHER, Question, Status, Step};
use crate::vips::Vip;
use crate::web::Parts;
use crate::web::problem::Problem;

/// A recipient domain of Gmail.
const GMAIL: &str = "gmail.com";
/// How far back deliveries and complaints are counted.
const DAY_MILLIS: u64 = 86_400_000;

/// Every record of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectionJson {
    /// Each as it should be and as it is.
    pub records: Vec<InspectedJson>,
}

/// One record as it should be and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectedJson {
    /// `ownership`, `dkim`, `spf`, `dmarc`, `mx`, `bimi`; `return-path-mx`, `return-path-spf` if the domain has a
    /// return-path.
    pub what: String,
    /// Its full name, without the last dot.
    pub name: String,
    /// `TXT` or `MX`.
    pub kind: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: Vec<String>,
    /// `found`, `missing`, `different`, `unknown` if DNS did not answer.
    pub verdict: String,
    /// Whether nothing is sent without it.
    pub required: bool,
    /// Why it should be there.
    pub purpose: String,
    /// What to do.
    pub advice: Option<String>,
}

/// How a domain stands against the rules for whoever sends much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadinessJson {
    /// Whether no rule is failing.
    pub ready: bool,
    /// Each rule.
    pub rules: Vec<ReadinessRuleJson>,
}

/// One rule and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadinessRuleJson {
    /// `spf`, `dkim`, `dmarc`, `alignment`, `reverse-name`, `tls`, `one-click`, `complaints`; `return-path` if the
    /// domain has one.
    pub rule: String,
    /// Who asks it: `gmail`, `yahoo`, `microsoft`; nobody asks for a return-path.
    pub asked_by: Vec<String>,
    /// `met`, `warning`, `failing`, `unknown`, `up-to-sender`.
    pub stand: String,
    /// Why, and what to do.
    pub detail: String,
}

fn inspected(seen: Inspected) -> InspectedJson {
    let what = match seen.purpose {
        Purpose::Ownership => "ownership",
        Purpose::Dkim => "dkim",
        Purpose::Spf => "spf",
        Purpose::Dmarc => "dmarc",
        Purpose::Exchanger => "mx",
        Purpose::Bimi => "bimi",
        Purpose::ReturnPathExchanger => "return-path-mx",
        Purpose::ReturnPathSpf => "return-path-spf",
    };
    let verdict = match seen.verdict {
        Verdict::Found => "found",
        Verdict::Missing => "missing",
        Verdict::Different => "different",
        Verdict::Unknown => "unknown",
    };
    InspectedJson {
        what: what.to_owned(),
        name: seen.expected.name,
        kind: seen.expected.kind.to_owned(),
        expected: seen.expected.value,
        found: seen.found,
        verdict: verdict.to_owned(),
        required: seen.expected.need == Need::Required,
        purpose: seen.expected.purpose,
        advice: seen.advice,
    }
}

fn rule(item: Item) -> ReadinessRuleJson {
    let rule = match item.rule {
        Rule::Spf => "spf",
        Rule::Dkim => "dkim",
        Rule::Dmarc => "dmarc",
        Rule::Alignment => "alignment",
        Rule::ReverseName => "reverse-name",
        Rule::Tls => "tls",
        Rule::OneClick => "one-click",
        Rule::Complaints => "complaints",
        Rule::ReturnPath => "return-path",
    };
    let stand = match item.stand {
        Stand::Met => "met",
        Stand::Warning => "warning",
        Stand::Failing => "failing",
        Stand::Unknown => "unknown",
        Stand::UpToSender => "up-to-sender",
    };
    ReadinessRuleJson {
        rule: rule.to_owned(),
        asked_by: item.asked_by.iter().map(|name| (*name).to_owned()).collect(),
        stand: stand.to_owned(),
        detail: item.detail,
    }
}

fn serving(parts: &Parts, tenant: TenantId) -> Vec<Vip> {
    parts.vips.all().iter().filter(|vip| vip.serves(tenant)).cloned().collect()
}

/// What was counted within a day of the mail that a domain signed, however it was handed in, and how mail goes to
/// Gmail. Those counts are not for whoever is narrowed to some SMTP accounts.
async fn traffic(parts: &Shared, asker: &Actor, (tenant, domain): (TenantId, &Domain)) -> Result<Traffic, Problem> {
    let (actor, now) = (Actor::system("readiness of a domain"), Timestamp::now());
    let seen = match Domain::parse(GMAIL) {
        Ok(domain) => parts.tls_memory.seen(&actor, &domain)?,
        Err(_) => None,
    };
    let to_gmail = match seen.map(|seen| seen.last) {
        None => ToGmail::Nothing,
        Some(TlsLevel::Plain) => ToGmail::Plain,
        Some(TlsLevel::Encrypted | TlsLevel::Verified) => ToGmail::Encrypted,
    };
    if !asker.has_part_in(Action::Read, None, Some(domain)) {
        return Ok(Traffic { to_gmail, counted: Counted::Hidden });
    }
    let question = |sender: &str| Question {
        tenant: Some(tenant),
        from: Timestamp(now.0.saturating_sub(DAY_MILLIS)),
        until: now,
        step: Step::Total,
        by: None,
        narrow: Narrow { sending_domain: Some(sender.to_owned()), ..Narrow::default() },
        groups_max: 1,
        order: Status::Ok,
    };
    let (own, others) = (question(domain.as_str()), question(OTHER));
    let statistics = Arc::clone(&parts.statistics);
    let ask =
        move || Ok::<_, AdminError>((statistics.ask(&actor, &own)?.totals, statistics.ask(&actor, &others)?.totals));
    let (own, others) = scan(parts, ask).await?;
    let counted = if others == Counts::default() {
        Counted::Apart {
            delivered: own.of(Status::Ok),
            complaints: own.of(Status::Complaint),
            marketing: own.marketing,
            one_click: own.one_click,
        }
    } else {
        Counted::Together
    };
    Ok(Traffic { to_gmail, counted })
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains/{domain}/records",
    operation_id = "domains_records",
    tag = "domains",
    summary = "Inspect: every record of a domain, as it should be and as DNS has it now.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = InspectionJson, description = "done"))
)]
pub(super) async fn records(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<InspectionJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let seen = parts.domains.inspect(&actor, (tenant, &domain), &serving(&parts, tenant)).await?;
    Ok(Json(InspectionJson { records: seen.into_iter().map(inspected).collect() }))
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains/{domain}/zone",
    operation_id = "domains_zone",
    tag = "domains",
    summary = "Fetch: the records of a domain as lines of a zone file.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, content_type = "text/dns", body = String, description = "to be put into the zone (RFC 1035 s5)"))
)]
pub(super) async fn zone(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    let records = parts.domains.records_to_publish(&actor, (tenant, &domain), &serving(&parts, tenant))?;
    let mut text = format!("; {domain}: records for sending by this service\n");
    for line in records {
        text.push_str(&format!("; {}\n{}\n", line.purpose, line.zone_line()));
    }
    let kind = (header::CONTENT_TYPE, "text/dns; charset=utf-8".to_owned());
    let name = (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{domain}.zone\""));
    Ok(([kind, name], text).into_response())
}

#[utoipa::path(
    get,
    path = "/tenants/{tenant}/domains/{domain}/readiness",
    operation_id = "domains_readiness",
    tag = "domains",
    summary = "Judge: a domain by the rules of Gmail, Yahoo and Microsoft for whoever sends much.",
    params(("tenant" = String, Path), ("domain" = String, Path)),
    responses((status = 200, body = ReadinessJson, description = "done"))
)]
pub(super) async fn readiness(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((tenant, domain)): Path<(String, String)>,
) -> Answer<ReadinessJson> {
    let (tenant, domain) = (owner(&parts, &actor, &tenant)?, name("domain", &domain)?);
    parts.domains.get(&actor, tenant, &domain)?;
    let (vips, traffic) = (serving(&parts, tenant), traffic(&parts, &actor, (tenant, &domain)).await?);
    let items = parts.domains.readiness(&actor, (tenant, &domain), &vips, traffic).await?;
    let ready = items.iter().all(|item| item.stand != Stand::Failing);
    Ok(Json(ReadinessJson { ready, rules: items.into_iter().map(rule).collect() }))
}
