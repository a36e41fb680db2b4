//! `/statistics`: what happened to recipients, per hour or day, grouped and narrowed; as JSON and as CSV.
//!
//! Easy to get wrong: names of SMTP accounts and virtual IPs are looked up as the actor sees them, so that a
//! filter never tells whether somebody else's exists.

#![allow(unused_qualifications, reason = "the macro that documents parameters writes them")]

use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Answer, Shared, scan, tenant_called, tenant_name, vip_called};
use crate::access::{Action, Actor};
use crate::ext::Timestamp;
use crate::operations;
use crate::records::AdminError;
use crate::statistics::{
    self, Counts, DELAYS_SECS, Dimension, Face, Group, Labels, Narrow, Question, STATUSES, Span, Status, Step,
};
use crate::web::Parts;
use crate::web::paging::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::web::problem::Problem;

/// Without a beginning, the period is so long.
const PERIOD_DEFAULT_MILLIS: u64 = 30 * 24 * 3_600_000;
/// How what has no row of its own is called.
pub const OTHER_NAME: &str = "(other)";
/// How mail that came by no SMTP account is called.
const NO_ACCOUNT_NAME: &str = "(none)";

/// What is asked.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Whose mail; without it, a tenant's own or everybody's.
    tenant: Option<String>,
    /// From when on: a day, `2026-11-01`, or a date and time of RFC 3339; 30 days ago if absent. UTC.
    from: Option<String>,
    /// Up to when, not included, likewise; now if absent.
    until: Option<String>,
    /// `hour`, `day` (as if absent) or `total`.
    step: Option<String>,
    /// By what rows are told apart: `tenant`, `smtp_account`, `tag`, `domain`, `provider`, `vip`, `class`,
    /// `sending_domain`.
    by: Option<String>,
    /// Only mail of this login.
    smtp_account: Option<String>,
    /// Only mail with this tag.
    tag: Option<String>,
    /// Only mail to this domain.
    domain: Option<String>,
    /// Only mail to this provider.
    provider: Option<String>,
    /// Only mail accepted for this virtual IP: its address, id or EHLO name.
    vip: Option<String>,
    /// Only mail signed by this sending domain.
    sending_domain: Option<String>,
    /// Groups with rows of their own, 1 to 250; the others are counted together.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 250)]
    limit: Option<String>,
    /// The most frequent by this status come first; `injected` if absent.
    order: Option<String>,
}

/// Counts of recipients by what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CountsJson {
    /// Messages handed in; one counts where its first recipient is.
    pub messages: u64,
    /// Octets of them.
    pub bytes: u64,
    /// Recipients handed in.
    pub injected: u64,
    /// Delivered.
    pub ok: u64,
    /// Given up for a cause that may pass.
    pub softbounce: u64,
    /// Given up because mailbox or domain do not exist.
    pub hardbounce: u64,
    /// Given up because the peer dislikes sender or content.
    pub spambounce: u64,
    /// On the suppression list, never mailed.
    pub dropped: u64,
    /// Put off, once for each time.
    pub deferred: u64,
    /// Dropped by an operator.
    pub cancelled: u64,
    /// Opened.
    pub open: u64,
    /// Links followed.
    pub click: u64,
    /// Asked not to be mailed any more.
    pub unsubscribe: u64,
    /// Complained about.
    pub complaint: u64,
    /// Messages of class marketing handed in.
    #[serde(default)]
    pub marketing: u64,
    /// Of these, those that can be unsubscribed from with one click (RFC 8058).
    #[serde(default)]
    pub one_click: u64,
    /// Deliveries within 10 s of acceptance, 1 min, 5 min, 30 min, 1 h, 4 h, 24 h, and later.
    #[serde(default)]
    pub delays: Vec<u64>,
}

/// Counts of one step and group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatisticsRowJson {
    /// When the hour or day begins; absent if the period is not cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// What it is told apart by; `(other)` is everything without a row of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The counts.
    #[serde(flatten)]
    pub counts: CountsJson,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatisticsJson {
    /// When the first step begins.
    pub from: String,
    /// When the last one ends.
    pub until: String,
    /// `UTC`: where hours and days begin.
    pub time_zone: String,
    /// `hour`, `day` or `total`.
    pub step: String,
    /// By what rows are told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// By time, then the most frequent group first. Steps in which nothing happened are left out.
    pub rows: Vec<StatisticsRowJson>,
    /// Of the whole period.
    pub totals: CountsJson,
    /// Groups that are under `(other)` because of `limit`.
    pub groups_left_out: usize,
}

impl From<&Counts> for CountsJson {
    fn from(counts: &Counts) -> Self {
        Self {
            messages: counts.messages,
            bytes: counts.bytes,
            injected: counts.of(Status::Injected),
            ok: counts.of(Status::Ok),
            softbounce: counts.of(Status::SoftBounce),
            hardbounce: counts.of(Status::HardBounce),
            spambounce: counts.of(Status::SpamBounce),
            dropped: counts.of(Status::Dropped),
            deferred: counts.of(Status::Deferred),
            cancelled: counts.of(Status::Cancelled),
            open: counts.of(Status::Open),
            click: counts.of(Status::Click),
            unsubscribe: counts.of(Status::Unsubscribe),
            complaint: counts.of(Status::Complaint),
            marketing: counts.marketing,
            one_click: counts.one_click,
            delays: counts.delays().to_vec(),
        }
    }
}

/// A day or a moment.
pub(super) fn moment(field: &'static str, text: &str) -> Result<Timestamp, Problem> {
    let read = Timestamp::from_rfc3339(text).or_else(|| Timestamp::from_rfc3339(&format!("{text}T00:00:00Z")));
    read.ok_or_else(|| {
        Problem::field(field, "write a day, 2026-11-01, or a date and time of RFC 3339, 2026-11-01T12:00:00Z")
    })
}

fn question(parts: &Parts, actor: &Actor, asked: &Asked) -> Result<Question, Problem> {
    let tenant = asked.tenant.as_deref().map(|name| tenant_called(parts, actor, name)).transpose()?;
    let account = asked.smtp_account.as_deref().map(|login| account_called(parts, actor, login)).transpose()?;
    let vip = asked.vip.as_deref().map(|text| vip_called(parts, actor, text)).transpose()?;
    let until = asked.until.as_deref().map(|text| moment("until", text)).transpose()?.unwrap_or_else(Timestamp::now);
    let from = asked.from.as_deref().map(|text| moment("from", text)).transpose()?;
    let step = match asked.step.as_deref() {
        None | Some("day") => Step::Day,
        Some("hour") => Step::Hour,
        Some("total") => Step::Total,
        Some(_) => return Err(Problem::field("step", "is hour, day or total")),
    };
    let by = asked.by.as_deref().map(|word| match word {
        "tenant" => Ok(Dimension::Tenant),
        "smtp_account" => Ok(Dimension::Account),
        "tag" => Ok(Dimension::Tag),
        "domain" => Ok(Dimension::Domain),
        "provider" => Ok(Dimension::Provider),
        "vip" => Ok(Dimension::Vip),
        "class" => Ok(Dimension::Class),
        "sending_domain" => Ok(Dimension::SendingDomain),
        _ => {
            let words = "is tenant, smtp_account, tag, domain, provider, vip, class or sending_domain";
            Err(Problem::field("by", words))
        }
    });
    let groups_max = match &asked.limit {
        None => LIMIT_DEFAULT,
        Some(text) => (text.parse().ok())
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .ok_or_else(|| Problem::field("limit", format!("must be a number from 1 to {LIMIT_MAX}")))?,
    };
    let order = asked.order.as_deref().map(|word| {
        let words = STATUSES.map(Status::word).join(", ");
        Status::called(word).ok_or_else(|| Problem::field("order", format!("is one of {words}")))
    });
    Ok(Question {
        tenant: tenant.map(|tenant| tenant.id),
        from: from.unwrap_or(Timestamp(until.0.saturating_sub(PERIOD_DEFAULT_MILLIS))),
        until,
        step,
        by: by.transpose()?,
        narrow: Narrow {
            account,
            tag: asked.tag.clone(),
            domain: asked.domain.as_ref().map(|domain| domain.to_ascii_lowercase()),
            provider: asked.provider.clone(),
            vip: vip.map(|vip| vip.id),
            sending_domain: asked.sending_domain.as_ref().map(|domain| domain.to_ascii_lowercase()),
        },
        groups_max,
        order: order.transpose()?.unwrap_or(Status::Injected),
    })
}

/// The SMTP account with this login, if the actor may see it.
pub(super) fn account_called(parts: &Parts, actor: &Actor, login: &str) -> Result<crate::mail::SmtpAccountId, Problem> {
    let missing = || Problem::missing(format!("SMTP account {login}"));
    let found = parts.accounts.smtp_account_named(login).filter(|account| actor.sees(account.tenant));
    let account = found.ok_or_else(missing)?;
    actor.require_account((account.tenant, account.id), Action::Read).map_err(AdminError::from)?;
    Ok(account.id)
}

async fn answered(parts: &Shared, actor: Actor, asked: &Asked) -> Result<StatisticsJson, Problem> {
    let question = question(parts, &actor, asked)?;
    let statistics = parts.statistics.clone();
    let answer = scan(parts, move || statistics.ask(&actor, &question)).await?;
    Ok(json(parts, asked, &answer))
}

fn json(parts: &Parts, asked: &Asked, answer: &statistics::Answer) -> StatisticsJson {
    let row = |row: &statistics::Row| StatisticsRowJson {
        at: row.at.map(Timestamp::rfc3339),
        group: row.group.as_ref().map(|group| name(parts, group)),
        counts: CountsJson::from(&row.counts),
    };
    StatisticsJson {
        from: answer.from.rfc3339(),
        until: answer.until.rfc3339(),
        time_zone: "UTC".to_owned(),
        step: asked.step.clone().unwrap_or_else(|| "day".to_owned()),
        by: asked.by.clone(),
        rows: answer.rows.iter().map(row).collect(),
        totals: CountsJson::from(&answer.totals),
        groups_left_out: answer.groups_left_out,
    }
}

/// What people call a group.
fn name(parts: &Parts, group: &Group) -> String {
    match group {
        Group::Tenant(tenant) => tenant_name(parts, *tenant),
        Group::Account(None) => NO_ACCOUNT_NAME.to_owned(),
        Group::Account(Some(id)) => {
            parts.accounts.smtp_account(*id).map_or_else(|| format!("{id} (removed)"), |account| account.login)
        }
        Group::Vip(id) => super::queue::vip_name(parts, *id),
        Group::Text(text) => text.clone(),
        Group::Class(word) => (*word).to_owned(),
        Group::Other => OTHER_NAME.to_owned(),
    }
}

/// Counts of an hour or a day as they are stored, for a copy of everything of a tenant.
pub(in crate::web) fn copied_row(
    parts: &Parts,
    (at, span): (Timestamp, Span),
    (labels, counts): &(Labels, Counts),
) -> serde_json::Value {
    let text = |text: &str| if text == statistics::OTHER { OTHER_NAME.to_owned() } else { text.to_owned() };
    let mut row = serde_json::json!({
        "at": at.rfc3339(),
        "step": match span {
            Span::Hour => "hour",
            Span::Day => "day",
        },
        "smtp_account": name(parts, &Group::Account(labels.account)),
        "vip": name(parts, &Group::Vip(labels.vip)),
        "counts": CountsJson::from(counts),
    });
    let told_apart = match labels.face {
        Face::Destination => vec![("provider", text(&labels.provider)), ("domain", text(&labels.value))],
        Face::Tag => vec![("tag", text(&labels.value))],
        Face::SendingDomain => vec![("sending_domain", text(&labels.value))],
    };
    if let Some(cells) = row.as_object_mut() {
        cells.extend(told_apart.into_iter().map(|(cell, text)| (cell.to_owned(), text.into())));
    }
    row
}

#[utoipa::path(
    get,
    path = "/statistics",
    operation_id = "statistics_show",
    tag = "statistics",
    summary = "Show: what happened to recipients, per hour or day.",
    params(Asked),
    responses((status = 200, body = StatisticsJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<Asked>,
) -> Answer<StatisticsJson> {
    Ok(Json(answered(&parts, actor, &asked).await?))
}

#[utoipa::path(
    get,
    path = "/statistics/csv",
    operation_id = "statistics_csv",
    tag = "statistics",
    summary = "Fetch: the same as a CSV file.",
    params(Asked),
    responses((status = 200, content_type = "text/csv", body = String, description = "the file"))
)]
pub(super) async fn csv(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let shown = answered(&parts, actor, &asked).await?;
    let mut response = file(&shown).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
    let name = HeaderValue::from_static("attachment; filename=\"statistics.csv\"");
    headers.insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// A line for each row; the totals are the last, called so.
fn file(shown: &StatisticsJson) -> String {
    let mut heading = vec!["at_utc", "group", "messages", "bytes"];
    heading.extend(STATUSES.map(Status::word));
    let bounds: Vec<String> = DELAYS_SECS.iter().map(|bound| format!("ok_within_{bound}s")).collect();
    heading.extend(bounds.iter().map(String::as_str));
    heading.extend(["ok_later", "marketing", "one_click"]);
    let mut text = operations::csv_line(&heading);
    let mut line = |at: &str, group: &str, counts: &CountsJson| {
        let c = counts;
        let numbers = [
            c.messages,
            c.bytes,
            c.injected,
            c.ok,
            c.softbounce,
            c.hardbounce,
            c.spambounce,
            c.dropped,
            c.deferred,
            c.cancelled,
            c.open,
            c.click,
            c.unsubscribe,
            c.complaint,
        ];
        let numbers: Vec<String> =
            numbers.iter().chain(&c.delays).chain(&[c.marketing, c.one_click]).map(u64::to_string).collect();
        let mut cells = vec![at, group];
        cells.extend(numbers.iter().map(String::as_str));
        text.push_str(&operations::csv_line(&cells));
    };
    for row in &shown.rows {
        line(row.at.as_deref().unwrap_or_default(), row.group.as_deref().unwrap_or_default(), &row.counts);
    }
    line("total", "", &shown.totals);
    text
}
