//! `/tls-reports`: what is counted about TLS towards recipient domains, and what they are told (RFC 8460).

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::tlsrpt::{Listed, Stage, begins, day_of};
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// One recipient domain and day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsReportRowJson {
    /// The recipient domain.
    pub domain: String,
    /// The day (UTC), such as `2026-11-22`.
    pub date: String,
    /// `counting` (the day is not over), `waiting` (for its hour), `retrying` or `sent`.
    pub state: String,
    /// Sessions that satisfied the policies in force.
    pub successful: u64,
    /// Sessions that did not.
    pub failed: u64,
    /// Sessions that were not counted, for want of room.
    pub left_out: u64,
    /// When the report is tried next, if the domain asks for one then.
    pub next: Option<String>,
    /// When it was sent.
    pub sent: Option<String>,
    /// To whom.
    pub to: Vec<String>,
    /// Why the last try failed.
    pub error: Option<String>,
}

/// A report as it would be sent now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TlsReportJson {
    /// The recipient domain.
    pub domain: String,
    /// The day (UTC).
    pub date: String,
    /// The report (RFC 8460 s4.4).
    #[schema(value_type = Object)]
    pub report: serde_json::Value,
}

fn date(day: u32) -> String {
    begins(day).rfc3339().chars().take(10).collect()
}

fn row_json(listed: Listed, now: Timestamp) -> TlsReportRowJson {
    let (state, sent, to, error) = match listed.stage {
        Stage::Counting if listed.day >= day_of(now) => ("counting", None, Vec::new(), None),
        Stage::Counting => ("waiting", None, Vec::new(), None),
        Stage::Due(due) => ("retrying", None, Vec::new(), Some(due.error).filter(|error| !error.is_empty())),
        Stage::Sent(sent) => ("sent", Some(sent.at.rfc3339()), sent.to, None),
    };
    TlsReportRowJson {
        domain: listed.domain.to_string(),
        date: date(listed.day),
        state: state.to_owned(),
        successful: listed.successful,
        failed: listed.failed,
        left_out: listed.left_out,
        next: listed.next.map(Timestamp::rfc3339),
        sent,
        to,
        error,
    }
}

#[utoipa::path(
    get,
    path = "/tls-reports",
    operation_id = "tls_reports_list",
    tag = "tls",
    summary = "List: what is counted about TLS, by recipient domain and day, newest day first.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<TlsReportRowJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<TlsReportRowJson>> {
    let (all, now) = (parts.tls_reports.list(&actor)?, Timestamp::now());
    let page = paging.of(all, |listed| format!("{:010} {}", u32::MAX.saturating_sub(listed.day), listed.domain));
    let rows = page.rows.into_iter().map(|listed| row_json(listed, now)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    get,
    path = "/tls-reports/{domain}",
    operation_id = "tls_reports_show",
    tag = "tls",
    summary = "Show: the report about TLS as it would be sent to a recipient domain now.",
    params(("domain" = String, Path)),
    responses((status = 200, body = TlsReportJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(domain): Path<String>,
) -> Answer<TlsReportJson> {
    let domain = Domain::parse(&domain).map_err(|error| Problem::field("domain", error.to_string()))?;
    let (day, report) = parts.tls_reports.preview(&actor, &domain)?;
    let report = serde_json::to_value(&report).unwrap_or_default();
    Ok(Json(TlsReportJson { domain: day.domain.to_string(), date: date(day.day), report }))
}
