//! `/smtp-accounts`: logins of shops, sites and mail programs, named by their login.
//!
//! Easy to get wrong: a password is in exactly one answer, that of the request which made it.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tenants::LimitsJson;
use super::{Answer, Shared, tenant_called, tenant_name};
use crate::access::{Action, Actor};
use crate::accounts::{AccountChange, AllowedSender, Limits, LoginSeen, LoginState, NewSmtpAccount, SmtpAccount};
use crate::ext::Timestamp;
use crate::mail::{Class, HeaderDialect, TenantId};
use crate::net;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::{Problem, all_read, both};

/// Hours an old password may stay valid beside the new one, at most.
const OLD_VALID_HOURS_MAX: u32 = 720;

/// An SMTP account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SmtpAccountJson {
    /// Its id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// What it logs in with.
    pub login: String,
    /// `transactional` or `marketing`.
    #[schema(value_type = String)]
    pub class: Class,
    /// Where it may log in from; empty is anywhere.
    #[schema(value_type = Vec<String>)]
    pub allowed_from: Vec<IpNet>,
    /// Messages it may hand in.
    pub limits: LimitsJson,
    /// Messages it handed in within the last hour and day.
    pub used: LimitsJson,
    /// Whether its logins are refused.
    pub disabled: bool,
    /// Why its mail is neither taken nor sent, if it is paused.
    pub paused: Option<String>,
    /// Valid passwords: two while a rotation is under way.
    pub passwords: usize,
    /// When it was made.
    pub created: String,
    /// What people call it; may be empty.
    #[serde(default)]
    pub name: String,
    /// Domains and addresses it may send as; empty is everything its tenant may.
    #[serde(default)]
    pub allowed_senders: Vec<String>,
    /// From when on it may neither log in nor send.
    #[serde(default)]
    pub expires: Option<String>,
    /// Until when the older of two passwords is valid, if that was said.
    #[serde(default)]
    pub old_password_until: Option<String>,
    /// Services whose header fields are read beside ours: `mailgun`, `postmark`, `sendgrid`, `postal`, `emaillabs`.
    #[serde(default)]
    pub header_dialects: Vec<String>,
}

/// One login of an SMTP account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginSeenJson {
    /// When.
    pub at: String,
    /// From where.
    pub peer: String,
    /// The virtual IP it came in on.
    pub virtual_ip: String,
    /// TLS version and suite.
    pub tls: String,
    /// Whether it was let in.
    pub accepted: bool,
    /// Why it was not.
    pub reason: Option<String>,
}

/// An SMTP account to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSmtpAccountJson {
    /// Whose.
    pub tenant: String,
    /// `transactional` or `marketing`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub class: Class,
    /// Where it may log in from: addresses or networks; empty is anywhere.
    #[serde(default)]
    pub allowed_from: Vec<String>,
    /// Messages it may hand in.
    #[serde(default)]
    pub limits: LimitsJson,
    /// What people call it.
    #[serde(default)]
    pub name: String,
    /// Domains and addresses it may send as; empty is everything its tenant may.
    #[serde(default)]
    pub allowed_senders: Vec<String>,
    /// From when on it may neither log in nor send (RFC 3339).
    #[serde(default)]
    pub expires: Option<String>,
    /// Services whose header fields are read beside ours.
    #[serde(default)]
    pub header_dialects: Vec<String>,
}

/// What is to change: all of it, or nothing if something is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SmtpAccountChangeJson {
    /// Refuse its logins, or take them again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Where it may log in from; empty is anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_from: Option<Vec<String>>,
    /// `transactional` or `marketing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub class: Option<Class>,
    /// Both limits anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsJson>,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Domains and addresses it may send as; empty is everything its tenant may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_senders: Option<Vec<String>>,
    /// From when on it may neither log in nor send (RFC 3339); `never` takes that back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Services whose header fields are read beside ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_dialects: Option<Vec<String>>,
}

/// An SMTP account with a password that is shown this once, and where to connect to.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewPasswordJson {
    /// The account.
    pub account: SmtpAccountJson,
    /// The password; it is stored nowhere.
    pub password: String,
    /// Servers its mail can be handed to, its own virtual IPs first.
    pub servers: Vec<ServerJson>,
}

/// Where a client connects to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerJson {
    /// The name: that of the virtual IP, which its certificate should have.
    pub host: String,
    /// Its addresses as the world sees them.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Ports where TLS comes first.
    pub tls_ports: Vec<u16>,
    /// Ports with STARTTLS.
    pub starttls_ports: Vec<u16>,
    /// Whether all of its local addresses are on this host.
    pub present: bool,
}

fn json(parts: &Parts, account: SmtpAccount) -> SmtpAccountJson {
    let now = Timestamp::now();
    let (hourly, daily) = parts.accounts.account_usage(account.id, now);
    let passwords = account.valid_secrets(now).len();
    SmtpAccountJson {
        id: account.id.to_string(),
        tenant: tenant_name(parts, account.tenant),
        login: account.login,
        class: account.class,
        allowed_from: account.allowed_from,
        limits: account.limits.into(),
        used: LimitsJson { hourly: Some(hourly), daily: Some(daily) },
        disabled: account.login_state == LoginState::Disabled,
        paused: parts.breaker.pause_of(account.id).map(|pause| pause.cause.to_string()),
        passwords,
        created: account.created.rfc3339(),
        name: account.name,
        allowed_senders: account.allowed_senders.iter().map(ToString::to_string).collect(),
        expires: account.expires.map(Timestamp::rfc3339),
        old_password_until: account.old_until.map(Timestamp::rfc3339),
        header_dialects: account.dialects.iter().map(|dialect| dialect.word().to_owned()).collect(),
    }
}

fn senders(texts: &[String]) -> Result<Vec<AllowedSender>, Problem> {
    let read = |(at, text): (usize, &String)| {
        AllowedSender::parse(text).map_err(|error| Problem::field(format!("allowed_senders[{at}]"), error))
    };
    all_read(texts.iter().enumerate().map(read))
}

fn dialects(words: &[String]) -> Result<Vec<HeaderDialect>, Problem> {
    let read = |(at, word): (usize, &String)| {
        let known: Vec<&str> = HeaderDialect::ALL.iter().map(|dialect| dialect.word()).collect();
        let detail = || format!("{word:?} is not known; there are {}", known.join(", "));
        HeaderDialect::called(word).ok_or_else(|| Problem::field(format!("header_dialects[{at}]"), detail()))
    };
    let mut dialects = all_read(words.iter().enumerate().map(read))?;
    dialects.sort_unstable();
    dialects.dedup();
    Ok(dialects)
}

fn end(text: &str) -> Result<Timestamp, Problem> {
    let detail = "must be a time such as 2027-01-31T12:00:00Z";
    Timestamp::from_rfc3339(text).ok_or_else(|| Problem::field("expires", detail))
}

fn changed(asked: &SmtpAccountChangeJson) -> Result<AccountChange, Problem> {
    let expires = match asked.expires.as_deref() {
        None => Ok(None),
        Some("never") => Ok(Some(None)),
        Some(text) => end(text).map(|end| Some(Some(end))),
    };
    let allowed_from = asked.allowed_from.as_deref().map(networks).transpose();
    let allowed_senders = asked.allowed_senders.as_deref().map(senders).transpose();
    let dialects = asked.header_dialects.as_deref().map(dialects).transpose();
    let ((allowed_from, allowed_senders), (expires, dialects)) =
        both(both(allowed_from, allowed_senders), both(expires, dialects))?;
    Ok(AccountChange {
        login_state: asked.disabled.map(|off| if off { LoginState::Disabled } else { LoginState::Enabled }),
        allowed_from,
        class: asked.class,
        limits: asked.limits.map(Limits::from),
        name: asked.name.clone(),
        allowed_senders,
        expires,
        dialects,
    })
}

fn servers(parts: &Parts, tenant: TenantId) -> Vec<ServerJson> {
    let all = parts.vips.all();
    let mut serving: Vec<_> = all.iter().filter(|vip| vip.serves(tenant)).collect();
    serving.sort_by_key(|vip| vip.owner == crate::vips::Owner::Shared);
    let server = |vip: &&crate::vips::Vip| ServerJson {
        host: vip.ehlo.to_string(),
        addresses: (vip.public_ipv4.or(vip.ipv4).map(IpAddr::V4).into_iter())
            .chain(vip.public_ipv6.or(vip.ipv6).map(IpAddr::V6))
            .collect(),
        tls_ports: parts.about.tls_ports.clone(),
        starttls_ports: parts.about.starttls_ports.clone(),
        present: vip.addresses().all(net::is_present),
    };
    serving.iter().map(server).collect()
}

pub(super) fn networks(texts: &[String]) -> Result<Vec<IpNet>, Problem> {
    let read = |(at, text): (usize, &String)| {
        let text = text.trim();
        let network = text.parse::<IpNet>().or_else(|error| text.parse::<IpAddr>().map(IpNet::from).map_err(|_| error));
        network.map_err(|_| {
            let detail = format!("{text:?} is neither an address nor a network such as 192.0.2.0/24");
            Problem::field(format!("allowed_from[{at}]"), detail)
        })
    };
    all_read(texts.iter().enumerate().map(read))
}

pub(super) fn called(parts: &Parts, actor: &Actor, login: &str) -> Result<SmtpAccount, Problem> {
    let by_id = || login.parse().ok().and_then(|id| parts.accounts.smtp_account(id));
    let found = parts.accounts.smtp_account_named(login).or_else(by_id);
    let found = found.filter(|account| actor.require_account((account.tenant, account.id), Action::Read).is_ok());
    found.ok_or_else(|| Problem::missing(format!("SMTP account {login}")))
}

#[derive(Deserialize)]
pub(super) struct Filter {
    tenant: Option<String>,
}

/// How long two passwords work.
#[derive(Deserialize)]
pub(super) struct Overlap {
    old_valid_hours: Option<u32>,
}

#[utoipa::path(
    get,
    path = "/smtp-accounts",
    operation_id = "smtp_accounts_list",
    tag = "smtp-accounts",
    summary = "List: smtp accounts.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = PageJson<SmtpAccountJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(filter): Query<Filter>,
    paging: Paging,
) -> Answer<PageJson<SmtpAccountJson>> {
    let tenants = match filter.tenant {
        Some(name) => vec![tenant_called(&parts, &actor, &name)?],
        None => parts.accounts.tenants(&actor),
    };
    let mut rows = Vec::new();
    for tenant in tenants {
        rows.extend(parts.accounts.smtp_accounts(&actor, tenant.id)?);
    }
    let page = paging.of(rows, |account| account.login.clone());
    let rows = page.rows.into_iter().map(|account| json(&parts, account)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    get,
    path = "/smtp-accounts/{login}",
    operation_id = "smtp_accounts_show",
    tag = "smtp-accounts",
    summary = "Show: smtp accounts.",
    params(("login" = String, Path)),
    responses((status = 200, body = SmtpAccountJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<SmtpAccountJson> {
    let account = called(&parts, &actor, &login)?;
    Ok(Json(json(&parts, account)))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts",
    operation_id = "smtp_accounts_add",
    tag = "smtp-accounts",
    summary = "Make: smtp accounts.",
    request_body = NewSmtpAccountJson,
    responses((status = 201, body = NewPasswordJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewSmtpAccountJson>,
) -> Result<(StatusCode, Json<NewPasswordJson>), Problem> {
    let tenant = tenant_called(&parts, &actor, &asked.tenant)?;
    let lists = both(networks(&asked.allowed_from), senders(&asked.allowed_senders));
    let rest = both(asked.expires.as_deref().map(end).transpose(), dialects(&asked.header_dialects));
    let ((allowed_from, allowed_senders), (expires, dialects)) = both(lists, rest)?;
    let new = NewSmtpAccount {
        class: asked.class,
        allowed_from,
        limits: asked.limits.into(),
        name: asked.name,
        allowed_senders,
        expires,
        dialects,
    };
    let (account, password) = parts.accounts.add_smtp_account(&actor, tenant.id, new, Timestamp::now()).await?;
    let servers = servers(&parts, tenant.id);
    let made = NewPasswordJson { account: json(&parts, account), password: password.to_string(), servers };
    Ok((StatusCode::CREATED, Json(made)))
}

#[utoipa::path(
    patch,
    path = "/smtp-accounts/{login}",
    operation_id = "smtp_accounts_change",
    tag = "smtp-accounts",
    summary = "Change: smtp accounts.",
    params(("login" = String, Path)),
    request_body = SmtpAccountChangeJson,
    responses((status = 200, body = SmtpAccountJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
    JsonBody(asked): JsonBody<SmtpAccountChangeJson>,
) -> Answer<SmtpAccountJson> {
    let id = called(&parts, &actor, &login)?.id;
    let account = parts.accounts.change_smtp_account(&actor, id, changed(&asked)?, Timestamp::now()).await?;
    Ok(Json(json(&parts, account)))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts/{login}/rotate",
    operation_id = "smtp_accounts_rotate",
    tag = "smtp-accounts",
    summary = "Rotate: smtp accounts.",
    params(
        ("login" = String, Path),
        ("old_valid_hours" = Option<u32>, Query, minimum = 1, maximum = 720,
            description = "how long the old password works beside the new one; until finish-rotation if absent")
    ),
    responses((status = 200, body = NewPasswordJson, description = "done"))
)]
pub(super) async fn rotate(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
    Query(overlap): Query<Overlap>,
) -> Answer<NewPasswordJson> {
    let account = called(&parts, &actor, &login)?;
    let now = Timestamp::now();
    if overlap.old_valid_hours.is_some_and(|hours| !(1..=OLD_VALID_HOURS_MAX).contains(&hours)) {
        return Err(Problem::field("old_valid_hours", format!("must be 1 to {OLD_VALID_HOURS_MAX}")));
    }
    let until = overlap.old_valid_hours.map(|hours| now.plus(Duration::from_secs(u64::from(hours) * 3600)));
    let (account, password) = parts.accounts.rotate_password(&actor, account.id, until, now).await?;
    let servers = servers(&parts, account.tenant);
    Ok(Json(NewPasswordJson { account: json(&parts, account), password: password.to_string(), servers }))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts/{login}/finish-rotation",
    operation_id = "smtp_accounts_finish_rotation",
    tag = "smtp-accounts",
    summary = "Finish rotation: smtp accounts.",
    params(("login" = String, Path)),
    responses((status = 200, body = SmtpAccountJson, description = "done"))
)]
pub(super) async fn finish_rotation(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<SmtpAccountJson> {
    let account = called(&parts, &actor, &login)?;
    let account = parts.accounts.drop_old_password(&actor, account.id, Timestamp::now()).await?;
    Ok(Json(json(&parts, account)))
}

#[utoipa::path(
    delete,
    path = "/smtp-accounts/{login}",
    operation_id = "smtp_accounts_remove",
    tag = "smtp-accounts",
    summary = "Remove: smtp accounts.",
    params(("login" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Result<StatusCode, Problem> {
    let account = called(&parts, &actor, &login)?;
    parts.accounts.remove_smtp_account(&actor, account.id, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/smtp-accounts/{login}/logins",
    operation_id = "smtp_accounts_logins",
    tag = "smtp-accounts",
    summary = "List: the last logins, the latest first.",
    params(("login" = String, Path)),
    responses((status = 200, body = PageJson<LoginSeenJson>, description = "at most twenty, on one page"))
)]
pub(super) async fn logins(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<PageJson<LoginSeenJson>> {
    let account = called(&parts, &actor, &login)?;
    let seen = parts.accounts.last_logins(&actor, account.id)?;
    let row = |seen: LoginSeen| LoginSeenJson {
        at: seen.at.rfc3339(),
        peer: seen.peer.to_string(),
        virtual_ip: parts.vips.get(seen.vip).map_or_else(|| seen.vip.to_string(), |vip| vip.ehlo.to_string()),
        tls: seen.tls,
        accepted: seen.refused.is_none(),
        reason: seen.refused,
    };
    Ok(Json(PageJson { rows: seen.into_iter().map(row).collect(), next: None }))
}
