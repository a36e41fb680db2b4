//! `/users`: the people of a tenant, or of the instance.
//!
//! Easy to get wrong: a one-time link is in exactly one answer, that of the request which made it.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::smtp_accounts::networks;
use super::{Answer, INSTANCE_NAME, Shared, tenant_called, tenant_name};
use crate::access::{Action, Actor, Role};
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, TenantId, UserId};
use crate::people::{FactorPolicy, NewUser, OneTimeLink, User, UserChange, UserState};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserJson {
    /// Its id.
    pub id: String,
    /// Whose; `@instance` for the instance's admins.
    pub tenant: String,
    /// What it logs in with.
    pub email: String,
    /// For people.
    pub name: String,
    /// `instance-admin`, `owner`, `admin`, `developer`, `analyst`, `support`.
    pub role: String,
    /// `invited`, `active`, `locked`.
    pub state: String,
    /// Where it may log in from; empty is anywhere.
    pub allowed_from: Vec<String>,
    /// Only these SMTP accounts, by login, each `read` or `write`; absent: as the role says.
    pub smtp_accounts: Option<BTreeMap<String, String>>,
    /// Whether it has a second factor.
    pub second_factor: bool,
    /// Passkeys among its second factors.
    pub passkeys: usize,
    /// Recovery codes that were not used.
    pub recovery_codes: usize,
    /// When it was made.
    pub created: String,
    /// When it last logged in.
    pub last_login: Option<String>,
}

/// Somebody to be invited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUserJson {
    /// The tenant; `@instance` for an admin of the instance.
    pub tenant: String,
    /// The e-mail address it logs in with.
    pub email: String,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// `instance-admin`, `owner`, `admin`, `developer`, `analyst`, `support`.
    pub role: String,
    /// Only these SMTP accounts, by login, each `read` or `write`.
    #[serde(default)]
    pub smtp_accounts: Option<BTreeMap<String, String>>,
}

/// What is to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserChangeJson {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another role of the same tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Lock it, or let it in again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
    /// Where it may log in from; empty is anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_from: Option<Vec<String>>,
    /// Only these SMTP accounts, by login, each `read` or `write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtp_accounts: Option<BTreeMap<String, String>>,
    /// As the role says: takes the list of SMTP accounts away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_smtp_accounts: Option<bool>,
}

/// A one-time link, shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct LinkJson {
    /// Whom it is for; absent for the set-up link.
    pub user: Option<UserJson>,
    /// What `POST /api/v1/session/redeem` and `postern user redeem` take.
    pub token: String,
    /// Until when it is good.
    pub expires: String,
}

/// A stay of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StayJson {
    /// Its id.
    pub id: String,
    /// When it began.
    pub began: String,
    /// When it was last used, to within a few minutes.
    pub used: String,
    /// Where it began.
    pub from: String,
    /// What the browser called itself.
    pub agent: String,
}

/// Who must have a second factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FactorPolicyJson {
    /// Roles.
    pub required_of: Vec<String>,
}

pub(super) fn json(parts: &Parts, user: &User) -> UserJson {
    let login = |id: &SmtpAccountId| parts.accounts.smtp_account(*id).map_or_else(|| id.to_string(), |own| own.login);
    let accounts = user.accounts.as_ref();
    UserJson {
        id: user.id.to_string(),
        tenant: whose(parts, user.role.tenant()),
        email: user.email.clone(),
        name: user.name.clone(),
        role: user.role.word().to_owned(),
        state: match user.state {
            UserState::Invited => "invited",
            UserState::Active => "active",
            UserState::Locked => "locked",
        }
        .to_owned(),
        allowed_from: user.allowed_from.iter().map(ToString::to_string).collect(),
        smtp_accounts: accounts
            .map(|own| own.iter().map(|(id, action)| (login(id), action.word().to_owned())).collect()),
        second_factor: user.has_factor(),
        passkeys: user.passkeys.len(),
        recovery_codes: user.recovery.len(),
        created: user.created.rfc3339(),
        last_login: user.last_login.map(Timestamp::rfc3339),
    }
}

pub(super) fn whose(parts: &Parts, tenant: Option<TenantId>) -> String {
    tenant.map_or_else(|| INSTANCE_NAME.to_owned(), |tenant| tenant_name(parts, tenant))
}

/// The tenant people call `text`, or the instance; without a name, the actor's own.
pub(super) fn place(parts: &Parts, actor: &Actor, text: Option<&str>) -> Result<Option<TenantId>, Problem> {
    match text {
        None => Ok(actor.role.tenant()),
        Some(INSTANCE_NAME) if actor.role.tenant().is_none() => Ok(None),
        Some(name) => Ok(Some(tenant_called(parts, actor, name)?.id)),
    }
}

fn role(word: &str, tenant: Option<TenantId>) -> Result<Role, Problem> {
    let detail = match tenant {
        None => "must be instance-admin for @instance",
        Some(_) => "must be owner, admin, developer, analyst or support",
    };
    Role::called(word, tenant).ok_or_else(|| Problem::field("role", detail))
}

fn accounts(
    parts: &Parts,
    tenant: Option<TenantId>,
    given: &BTreeMap<String, String>,
) -> Result<BTreeMap<SmtpAccountId, Action>, Problem> {
    let one = |(login, action): (&String, &String)| {
        let field = format!("smtp_accounts.{login}");
        let account = parts.accounts.smtp_account_named(login).filter(|account| Some(account.tenant) == tenant);
        let account = account.ok_or_else(|| Problem::field(&field, "there is no such SMTP account of this tenant"))?;
        match action.as_str() {
            "read" => Ok((account.id, Action::Read)),
            "write" => Ok((account.id, Action::Write)),
            _ => Err(Problem::field(field, "must be read or write; leave the account out for none")),
        }
    };
    given.iter().map(one).collect()
}

pub(super) fn read_id(text: &str) -> Result<UserId, Problem> {
    text.parse().map_err(|_| Problem::missing(format!("user {text}")))
}

fn link(user: Option<UserJson>, link: OneTimeLink) -> LinkJson {
    LinkJson { user, token: link.token.to_string(), expires: link.expires.rfc3339() }
}

#[derive(Deserialize)]
pub(super) struct Chosen {
    tenant: Option<String>,
}

#[utoipa::path(
    get,
    path = "/users",
    operation_id = "users_list",
    tag = "users",
    summary = "List: users.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = PageJson<UserJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(chosen): Query<Chosen>,
    paging: Paging,
) -> Answer<PageJson<UserJson>> {
    let tenant = place(&parts, &actor, chosen.tenant.as_deref())?;
    let page = paging.of(parts.people.users(&actor, tenant)?, |user| user.email.clone());
    Ok(Json(PageJson { rows: page.rows.iter().map(|user| json(&parts, user)).collect(), next: page.next }))
}

#[utoipa::path(
    post,
    path = "/users",
    operation_id = "users_invite",
    tag = "users",
    summary = "Invite: users.",
    request_body = NewUserJson,
    responses((status = 201, body = LinkJson, description = "done"))
)]
pub(super) async fn invite(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewUserJson>,
) -> Result<(StatusCode, Json<LinkJson>), Problem> {
    let tenant = place(&parts, &actor, Some(&asked.tenant))?;
    let role = role(&asked.role, tenant)?;
    let accounts = asked.smtp_accounts.as_ref().map(|given| accounts(&parts, tenant, given)).transpose()?;
    let new = NewUser { email: asked.email, name: asked.name, role, accounts };
    let (user, made) = parts.people.invite(&actor, new, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(link(Some(json(&parts, &user)), made))))
}

#[utoipa::path(
    get,
    path = "/users/{user}",
    operation_id = "users_show",
    tag = "users",
    summary = "Show: users.",
    params(("user" = String, Path)),
    responses((status = 200, body = UserJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Answer<UserJson> {
    Ok(Json(json(&parts, &parts.people.user_for(&actor, read_id(&user)?, Action::Read)?)))
}

#[utoipa::path(
    patch,
    path = "/users/{user}",
    operation_id = "users_change",
    tag = "users",
    summary = "Change: users.",
    params(("user" = String, Path)),
    request_body = UserChangeJson,
    responses((status = 200, body = UserJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
    JsonBody(asked): JsonBody<UserChangeJson>,
) -> Answer<UserJson> {
    let before = parts.people.user_for(&actor, read_id(&user)?, Action::Read)?;
    let tenant = before.role.tenant();
    let accounts = match (asked.smtp_accounts.as_ref(), asked.all_smtp_accounts) {
        (Some(_), Some(true)) => {
            return Err(Problem::field("all_smtp_accounts", "give smtp_accounts or this, not both"));
        }
        (None, Some(true)) => Some(None),
        (given, _) => given.map(|given| accounts(&parts, tenant, given).map(Some)).transpose()?,
    };
    let change = UserChange {
        name: asked.name,
        role: asked.role.map(|word| role(&word, tenant)).transpose()?,
        locked: asked.locked,
        allowed_from: asked.allowed_from.map(|texts| networks(&texts)).transpose()?,
        accounts,
    };
    let user = parts.people.change_user(&actor, before.id, change, Timestamp::now()).await?;
    Ok(Json(json(&parts, &user)))
}

#[utoipa::path(
    delete,
    path = "/users/{user}",
    operation_id = "users_remove",
    tag = "users",
    summary = "Remove: users.",
    params(("user" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.people.remove_user(&actor, read_id(&user)?, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post,
    path = "/users/{user}/reset",
    operation_id = "users_reset",
    tag = "users",
    summary = "Reset: users.",
    params(("user" = String, Path)),
    responses((status = 200, body = LinkJson, description = "done"))
)]
pub(super) async fn reset(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Answer<LinkJson> {
    let id = read_id(&user)?;
    let made = parts.people.reset_link(&actor, id, Timestamp::now()).await?;
    let user = parts.people.user_for(&actor, id, Action::Read)?;
    Ok(Json(link(Some(json(&parts, &user)), made)))
}

#[utoipa::path(
    post,
    path = "/set-up-link",
    operation_id = "users_set_up",
    tag = "users",
    summary = "Set up: users.",
    responses((status = 200, body = LinkJson, description = "done"))
)]
pub(super) async fn set_up(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Answer<LinkJson> {
    let made = parts.people.set_up_link(&actor, Timestamp::now()).await?;
    let made = made.ok_or_else(|| Problem::in_use("the instance has an admin already: invite further ones"))?;
    Ok(Json(link(None, made)))
}

#[utoipa::path(
    delete,
    path = "/users/{user}/second-factor",
    operation_id = "users_remove_factor",
    tag = "users",
    summary = "Remove factor: users.",
    params(("user" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove_factor(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.people.reset_factors(&actor, read_id(&user)?, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn written(digest: &[u8; 32]) -> String {
    crate::ext::base32(digest)
}

#[utoipa::path(
    get,
    path = "/users/{user}/sessions",
    operation_id = "users_sessions",
    tag = "users",
    summary = "Sessions: users.",
    params(("user" = String, Path)),
    responses((status = 200, body = Vec<StayJson>, description = "done"))
)]
pub(super) async fn sessions(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Answer<Vec<StayJson>> {
    let one = |session: crate::people::Session| StayJson {
        id: written(&session.digest),
        began: session.began.rfc3339(),
        used: session.used.rfc3339(),
        from: session.from.to_string(),
        agent: session.agent,
    };
    Ok(Json(parts.people.sessions(&actor, read_id(&user)?)?.into_iter().map(one).collect()))
}

#[utoipa::path(
    delete,
    path = "/users/{user}/sessions",
    operation_id = "users_end_sessions",
    tag = "users",
    summary = "End sessions: users.",
    params(("user" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn end_sessions(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.people.end_session(&actor, read_id(&user)?, None, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    delete,
    path = "/users/{user}/sessions/{session}",
    operation_id = "users_end_session",
    tag = "users",
    summary = "End session: users.",
    params(("user" = String, Path), ("session" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn end_session(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((user, session)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let digest = crate::ext::from_base32::<32>(&session).ok_or_else(|| Problem::missing("such session"))?;
    parts.people.end_session(&actor, read_id(&user)?, Some(digest), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/second-factor-policy",
    operation_id = "users_factor_policy",
    tag = "users",
    summary = "Factor policy: users.",
    params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = FactorPolicyJson, description = "done"))
)]
pub(super) async fn factor_policy(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(chosen): Query<Chosen>,
) -> Answer<FactorPolicyJson> {
    let tenant = place(&parts, &actor, chosen.tenant.as_deref())?;
    Ok(Json(FactorPolicyJson { required_of: parts.people.factor_policy(&actor, tenant)?.required_of }))
}

#[utoipa::path(
    put,
    path = "/second-factor-policy",
    operation_id = "users_set_factor_policy",
    tag = "users",
    summary = "Set factor policy: users.",
    params(("tenant" = Option<String>, Query)),
    request_body = FactorPolicyJson,
    responses((status = 200, body = FactorPolicyJson, description = "done"))
)]
pub(super) async fn set_factor_policy(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(chosen): Query<Chosen>,
    JsonBody(asked): JsonBody<FactorPolicyJson>,
) -> Answer<FactorPolicyJson> {
    let tenant = place(&parts, &actor, chosen.tenant.as_deref())?;
    let policy = FactorPolicy { required_of: asked.required_of.clone() };
    parts.people.set_factor_policy(&actor, tenant, policy, Timestamp::now()).await?;
    Ok(Json(asked))
}
