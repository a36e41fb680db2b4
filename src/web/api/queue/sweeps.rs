//! `/queue-sweeps`: acts on everything a filter means; `/queue-totals` and `/queue-shape`: how much that is.
//!
//! Easy to get wrong: an act is begun here and carried out in the background; whoever asked looks at
//! what it came to, and an answer says that it was begun, not that it is done.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{Answer, Shared, scan};
use super::filter::{self, Filtered, QueueFilterJson};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::queue::{AGES_MINUTES, BulkAct, NewSweep, ShapeRow, Sweep, SweepState};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// What is to be done with everything that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SweepActJson {
    /// Make it due now.
    Retry,
    /// Keep it from being tried until it is released.
    Hold,
    /// End a hold.
    Release,
    /// Drop it for good; nobody is told.
    Cancel,
    /// Give it up as if it had waited too long; senders are told.
    Expire,
}

/// An act on everything that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewQueueSweepJson {
    /// What is to be done.
    pub act: SweepActJson,
    /// To what; nothing said is all of it.
    pub filter: QueueFilterJson,
    /// Why, for the audit log.
    #[serde(default)]
    pub reason: String,
    /// For how long it applies to mail that comes to fit later too; absent is what fits now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// An act on many messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueSweepJson {
    /// Its number.
    pub number: u64,
    /// What is done.
    pub act: SweepActJson,
    /// To what; ages are as of its beginning.
    pub filter: QueueFilterJson,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub by: String,
    /// When.
    pub began: String,
    /// Until when it applies to what comes to fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// `running`, `lasting`, `done`, `ended`, `failed`.
    pub state: String,
    /// Why it failed or does not get on, or who ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Messages it was applied to so far.
    pub messages: u64,
    /// Recipients.
    pub recipients: u64,
    /// Of these, those being tried meanwhile: it takes effect when their attempt has ended. What is to
    /// expire is left alone then.
    pub in_flight: u64,
    /// Messages that somebody else changed at the same moment, or whose records are damaged: left as they were.
    pub failed: u64,
    /// Messages of which it was not known at the last walk through the queue whether they go to the provider
    /// that is meant: while there are any, an act on what is queued goes on.
    #[serde(default)]
    pub undecided: u64,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
}

/// How much fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueTotalsJson {
    /// Messages.
    pub messages: u64,
    /// Octets of these.
    pub bytes: u64,
    /// Recipients that wait.
    pub waiting: u64,
    /// Recipients being tried now.
    pub in_flight: u64,
    /// Recipients held.
    pub held: u64,
    /// Recipients whose SMTP account is paused.
    pub paused: u64,
    /// When the oldest was accepted.
    pub oldest: Option<String>,
}

/// Unfinished recipients of one destination by the age of their message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueShapeRowJson {
    /// The recipient domain.
    pub to: String,
    /// All of them.
    pub total: u64,
    /// By age, as many as `ages_minutes` and one more for the older ones.
    pub by_age: Vec<u64>,
}

/// Unfinished recipients by destination and age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueShapeJson {
    /// Upper bounds of the ages, in minutes.
    pub ages_minutes: Vec<u64>,
    /// All destinations together.
    pub total: QueueShapeRowJson,
    /// Those with most, most first.
    pub rows: Vec<QueueShapeRowJson>,
    /// Destinations that are not among the rows.
    pub others: QueueShapeRowJson,
}

impl SweepActJson {
    fn act(self) -> BulkAct {
        match self {
            Self::Retry => BulkAct::Retry,
            Self::Hold => BulkAct::Hold,
            Self::Release => BulkAct::Release,
            Self::Cancel => BulkAct::Cancel,
            Self::Expire => BulkAct::Expire,
        }
    }

    fn of(act: BulkAct) -> Self {
        match act {
            BulkAct::Retry => Self::Retry,
            BulkAct::Hold => Self::Hold,
            BulkAct::Release => Self::Release,
            BulkAct::Cancel => Self::Cancel,
            BulkAct::Expire => Self::Expire,
        }
    }
}

fn json(parts: &Parts, sweep: &Sweep) -> QueueSweepJson {
    let why = match &sweep.state {
        SweepState::Ended(why) | SweepState::Failed(why) => Some(why.clone()),
        SweepState::Running | SweepState::Lasting | SweepState::Done => sweep.trouble.clone(),
    };
    QueueSweepJson {
        number: sweep.number,
        act: SweepActJson::of(sweep.act),
        filter: filter::json(parts, &sweep.filter, sweep.began),
        reason: sweep.reason.clone(),
        by: sweep.by.clone(),
        began: sweep.began.rfc3339(),
        until: sweep.until.map(Timestamp::rfc3339),
        state: sweep.state.word().to_owned(),
        why,
        messages: sweep.done.messages,
        recipients: sweep.done.recipients,
        in_flight: sweep.done.in_flight,
        failed: sweep.done.failed,
        undecided: sweep.undecided,
        finished: sweep.finished.map(Timestamp::rfc3339),
    }
}

fn numbered(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::missing(format!("act {text} on the queue")))
}

#[derive(Deserialize)]
pub(in crate::web::api) struct OfTenant {
    tenant: Option<String>,
}

#[utoipa::path(
    get,
    path = "/queue-sweeps",
    operation_id = "queue_sweeps_list",
    tag = "queue",
    summary = "List: acts on many messages.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = PageJson<QueueSweepJson>, description = "done"))
)]
pub(in crate::web::api) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<OfTenant>,
    paging: Paging,
) -> Answer<PageJson<QueueSweepJson>> {
    let asked = QueueFilterJson { tenant: asked.tenant, ..QueueFilterJson::default() };
    let tenant = filter::read(&parts, &actor, &asked)?.tenant;
    let all = parts.queue.sweeps(&actor, tenant)?;
    // The latest first.
    let page = paging.of(all, |sweep| format!("{:020}", u64::MAX - sweep.number));
    Ok(Json(PageJson { rows: page.rows.iter().map(|sweep| json(&parts, sweep)).collect(), next: page.next }))
}

#[utoipa::path(
    post,
    path = "/queue-sweeps",
    operation_id = "queue_sweeps_add",
    tag = "queue",
    summary = "Begin: an act on many messages.",
    request_body = NewQueueSweepJson,
    responses((status = 202, body = QueueSweepJson, description = "begun"))
)]
pub(in crate::web::api) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewQueueSweepJson>,
) -> Result<(StatusCode, Json<QueueSweepJson>), Problem> {
    let filter = filter::read(&parts, &actor, &asked.filter)?;
    let lasting = asked.seconds.map(Duration::from_secs);
    let new = NewSweep { act: asked.act.act(), filter, reason: asked.reason, lasting };
    let begun = parts.queue.begin_sweep(&actor, new, Timestamp::now()).await?;
    Ok((StatusCode::ACCEPTED, Json(json(&parts, &begun))))
}

#[utoipa::path(
    get,
    path = "/queue-sweeps/{sweep}",
    operation_id = "queue_sweeps_show",
    tag = "queue",
    summary = "Show: an act on many messages.",
    params(("sweep" = String, Path)),
    responses((status = 200, body = QueueSweepJson, description = "done"))
)]
pub(in crate::web::api) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(sweep): Path<String>,
) -> Answer<QueueSweepJson> {
    let found = parts.queue.sweep_numbered(&actor, numbered(&sweep)?)?;
    Ok(Json(json(&parts, &found)))
}

#[utoipa::path(
    post,
    path = "/queue-sweeps/{sweep}/end",
    operation_id = "queue_sweeps_end",
    tag = "queue",
    summary = "End: an act on many messages that is not over.",
    params(("sweep" = String, Path)),
    responses((status = 200, body = QueueSweepJson, description = "done"))
)]
pub(in crate::web::api) async fn end(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(sweep): Path<String>,
) -> Answer<QueueSweepJson> {
    let ended = parts.queue.end_sweep(&actor, numbered(&sweep)?, Timestamp::now()).await?;
    Ok(Json(json(&parts, &ended)))
}

#[derive(Deserialize)]
pub(in crate::web::api) struct OfAct {
    act: Option<SweepActJson>,
}

#[utoipa::path(
    get,
    path = "/queue-totals",
    operation_id = "queue_totals_show",
    tag = "queue",
    summary = "Show: how much is queued, or what an act would apply to.",
    params(QueueFilterJson, ("act" = Option<String>, Query)),
    responses((status = 200, body = QueueTotalsJson, description = "done"))
)]
pub(in crate::web::api) async fn totals(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<OfAct>,
    Filtered(of): Filtered,
) -> Answer<QueueTotalsJson> {
    let filter = filter::read(&parts, &actor, &of)?;
    let (queue, act) = (parts.queue.clone(), asked.act.map(SweepActJson::act));
    let sum = scan(&parts, move || queue.sum(&actor, &filter, act)).await?;
    Ok(Json(QueueTotalsJson {
        messages: sum.messages,
        bytes: sum.bytes,
        waiting: sum.waiting,
        in_flight: sum.in_flight,
        held: sum.held,
        paused: sum.paused,
        oldest: sum.oldest.map(Timestamp::rfc3339),
    }))
}

#[utoipa::path(
    get,
    path = "/queue-shape",
    operation_id = "queue_shape_show",
    tag = "queue",
    summary = "Show: how much waits for whom, by age.",
    params(QueueFilterJson, ("limit" = Option<u16>, Query, minimum = 1, maximum = 250)),
    responses((status = 200, body = QueueShapeJson, description = "done"))
)]
pub(in crate::web::api) async fn shape(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Filtered(of): Filtered,
    paging: Paging,
) -> Answer<QueueShapeJson> {
    let filter = filter::read(&parts, &actor, &of)?;
    let queue = parts.queue.clone();
    let shape = scan(&parts, move || queue.shape(&actor, &filter, Timestamp::now())).await?;
    let (shown, left) = shape.destinations.split_at(paging.limit.min(shape.destinations.len()));
    let mut others = shape.others;
    left.iter().for_each(|(_, row)| others.join(row));
    Ok(Json(QueueShapeJson {
        ages_minutes: AGES_MINUTES.to_vec(),
        total: shape_row("TOTAL", &shape.total),
        rows: shown.iter().map(|(to, row)| shape_row(to.as_str(), row)).collect(),
        others: shape_row("others", &others),
    }))
}

fn shape_row(to: &str, row: &ShapeRow) -> QueueShapeRowJson {
    QueueShapeRowJson { to: to.to_owned(), total: row.total(), by_age: row.by_age.to_vec() }
}
