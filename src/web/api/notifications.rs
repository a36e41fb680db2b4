//! `/notifications`: what people should know without looking for it, and what they have read of it;
//! `/users/{user}/notification-mail`: what of it is mailed to them.
//!
//! Without `tenant` it is about the tenant of whoever asks, or about the instance.

use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, tenant_called};
use crate::access::{Action, Actor};
use crate::ext::{self, Timestamp};
use crate::mail::TenantId;
use crate::notifications::{INSTANCE, KINDS, Kind, Marked, NotificationId, Shown, Which, Wish};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// Ids in one request, at most.
const IDS_MAX: usize = 500;

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotificationJson {
    /// Its id.
    pub id: String,
    /// To whom; absent if it is about the instance.
    pub tenant: Option<String>,
    /// When it was met.
    pub at: String,
    /// `domain-failing`, `address-listed`, `webhook-disabled`, `account-paused`, `quota-near`, `address-missing`,
    /// `record-damaged`, `backup-failed`, `backup-overdue`; `login-security` is told to the person it is about alone.
    pub kind: String,
    /// The thing: a name or an id.
    pub subject: String,
    /// One sentence.
    pub text: String,
    /// Whether whoever asks has read it.
    pub read: bool,
}

/// Which are to be marked as read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReadNotificationsJson {
    /// Whose; without it those of the tenant of whoever asks, or of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// All of them.
    pub all: bool,
    /// These, up to 500.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
}

/// How many were marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotificationsReadJson {
    /// Those that were not read before.
    pub marked: usize,
}

/// What of them is mailed to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationMailJson {
    /// Whether any is. Only to an active person, and at most one mail in ten minutes.
    pub mail: bool,
    /// Only these kinds; empty is every kind.
    #[serde(default)]
    pub kinds: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct Filter {
    tenant: Option<String>,
    unread: Option<bool>,
}

fn whose(parts: &Parts, actor: &Actor, tenant: Option<&str>) -> Result<TenantId, Problem> {
    match tenant {
        Some(name) => Ok(tenant_called(parts, actor, name)?.id),
        None => Ok(actor.role.tenant().unwrap_or(INSTANCE)),
    }
}

fn json(parts: &Parts, shown: Shown) -> NotificationJson {
    let Shown { notification, is_read } = shown;
    let tenant = (notification.tenant != INSTANCE).then(|| super::tenant_name(parts, notification.tenant));
    NotificationJson {
        id: ext::base32(&notification.id),
        tenant,
        at: notification.at.rfc3339(),
        kind: notification.kind.word().to_owned(),
        subject: notification.subject,
        text: notification.text,
        read: is_read,
    }
}

#[utoipa::path(
    get,
    path = "/notifications",
    operation_id = "notifications_list",
    tag = "notifications",
    summary = "List: notifications, newest first.",
    params(
        ("tenant" = Option<String>, Query),
        ("unread" = Option<bool>, Query, description = "only those not read by whoever asks"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = PageJson<NotificationJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
    paging: Paging,
) -> Answer<PageJson<NotificationJson>> {
    let Query(filter) = filter.map_err(|error| Problem::field("query", error.body_text()))?;
    let tenant = whose(&parts, &actor, filter.tenant.as_deref())?;
    let which = if filter.unread == Some(true) { Which::Unread } else { Which::All };
    let all = parts.notifications.list(&actor, tenant, which)?;
    // Ids begin with the time; turned round they are in the order of the list.
    let key = |shown: &Shown| shown.notification.id.iter().map(|octet| format!("{:02x}", !octet)).collect::<String>();
    let page = paging.of(all, key);
    let rows = page.rows.into_iter().map(|shown| json(&parts, shown)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    post,
    path = "/notifications/read",
    operation_id = "notifications_read",
    tag = "notifications",
    summary = "Mark: notifications as read by whoever asks.",
    request_body = ReadNotificationsJson,
    responses((status = 200, body = NotificationsReadJson, description = "done"))
)]
pub(super) async fn read(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<ReadNotificationsJson>,
) -> Answer<NotificationsReadJson> {
    let tenant = whose(&parts, &actor, asked.tenant.as_deref())?;
    if asked.all != asked.ids.is_empty() || asked.ids.len() > IDS_MAX {
        return Err(Problem::field("ids", format!("name 1 to {IDS_MAX}, or say all")));
    }
    let marked = if asked.all { Marked::All } else { Marked::These(ids(&asked.ids)?) };
    Ok(Json(NotificationsReadJson { marked: parts.notifications.mark(&actor, tenant, marked).await? }))
}

fn ids(texts: &[String]) -> Result<Vec<NotificationId>, Problem> {
    let read = |(at, text): (usize, &String)| {
        ext::from_base32(text).ok_or_else(|| Problem::field(format!("ids[{at}]"), "is no id of a notification"))
    };
    texts.iter().enumerate().map(read).collect()
}

fn mailed(wish: Option<Wish>) -> NotificationMailJson {
    let kinds = wish.iter().flat_map(|wish| &wish.kinds).map(|kind| kind.word().to_owned()).collect();
    NotificationMailJson { mail: wish.is_some(), kinds }
}

#[utoipa::path(
    get,
    path = "/users/{user}/notification-mail",
    operation_id = "notifications_mail_show",
    tag = "notifications",
    summary = "Show: what notifications are mailed to a person.",
    params(("user" = String, Path)),
    responses((status = 200, body = NotificationMailJson, description = "done"))
)]
pub(super) async fn mail(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Answer<NotificationMailJson> {
    let user = parts.people.user_for(&actor, super::users::read_id(&user)?, Action::Read)?;
    Ok(Json(mailed(parts.notifications.wish(&actor, user.id)?)))
}

#[utoipa::path(
    put,
    path = "/users/{user}/notification-mail",
    operation_id = "notifications_mail_set",
    tag = "notifications",
    summary = "Set: what notifications are mailed to a person.",
    params(("user" = String, Path)),
    request_body = NotificationMailJson,
    responses((status = 200, body = NotificationMailJson, description = "done"))
)]
pub(super) async fn set_mail(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
    JsonBody(asked): JsonBody<NotificationMailJson>,
) -> Answer<NotificationMailJson> {
    let user = parts.people.user_for(&actor, super::users::read_id(&user)?, Action::Read)?;
    let unknown = || {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.word()).collect();
        Problem::field("kinds", format!("must be among {}", known.join(", ")))
    };
    let kinds = asked.kinds.iter().map(|word| Kind::called(word).ok_or_else(unknown)).collect::<Result<_, _>>()?;
    let wish = asked.mail.then_some(Wish { kinds });
    parts.notifications.set_wish(&actor, user.id, wish.clone(), Timestamp::now()).await?;
    Ok(Json(mailed(wish)))
}
