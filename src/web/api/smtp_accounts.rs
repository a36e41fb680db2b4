//! `/smtp-accounts`: logins of shops, sites and mail programs, named by their login.
//!
//! Easy to get wrong: a password is in exactly one answer, that of the request which made it.

use std::net::IpAddr;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tenants::LimitsJson;
use super::{Answer, Shared, tenant_called, tenant_name};
use crate::access::{Action, Actor};
use crate::accounts::{LoginState, NewSmtpAccount, SmtpAccount};
use crate::ext::Timestamp;
use crate::mail::{Class, TenantId};
use crate::net;
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

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
}

/// What is to change; each given field is one change with its own audit event.
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
    let (hourly, daily) = parts.accounts.account_usage(account.id, Timestamp::now());
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
        passwords: account.secrets.len(),
        created: account.created.rfc3339(),
    }
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
    texts.iter().enumerate().map(read).collect()
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
    let allowed_from = networks(&asked.allowed_from)?;
    let new = NewSmtpAccount { class: asked.class, allowed_from, limits: asked.limits.into() };
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
    let mut account = called(&parts, &actor, &login)?;
    let (id, now, accounts) = (account.id, Timestamp::now(), &parts.accounts);
    if let Some(texts) = &asked.allowed_from {
        account = accounts.set_allowed_from(&actor, id, networks(texts)?, now).await?;
    }
    if let Some(class) = asked.class {
        account = accounts.set_class(&actor, id, class, now).await?;
    }
    if let Some(limits) = asked.limits {
        account = accounts.set_account_limits(&actor, id, limits.into(), now).await?;
    }
    if let Some(disabled) = asked.disabled {
        let state = if disabled { LoginState::Disabled } else { LoginState::Enabled };
        account = accounts.set_login_state(&actor, id, state, now).await?;
    }
    Ok(Json(json(&parts, account)))
}

#[utoipa::path(
    post,
    path = "/smtp-accounts/{login}/rotate",
    operation_id = "smtp_accounts_rotate",
    tag = "smtp-accounts",
    summary = "Rotate: smtp accounts.",
    params(("login" = String, Path)),
    responses((status = 200, body = NewPasswordJson, description = "done"))
)]
pub(super) async fn rotate(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(login): Path<String>,
) -> Answer<NewPasswordJson> {
    let account = called(&parts, &actor, &login)?;
    let (account, password) = parts.accounts.rotate_password(&actor, account.id, Timestamp::now()).await?;
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
