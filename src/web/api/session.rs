//! `/session`: logging in and out, one-time links, and one's own second factor. Passkeys are in `passkeys`.
//!
//! Easy to get wrong: the secret of a session is in the cookie only, never in a body, so that no
//! script can read it; the token against forged requests is in the body only.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::users::UserJson;
use super::{Answer, Shared, users};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::notifications::NewPassword;
use crate::people::{Credentials, LoggedIn, Refused, csrf_token};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::identity::{self, From, Stay};
use crate::web::problem::Problem;

/// What somebody who logs in gives.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginJson {
    /// The e-mail address.
    pub email: String,
    /// The tenant's name, or `@instance`; needed if the address is known in several.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The password.
    pub password: String,
    /// The code of the second factor, or a recovery code.
    #[serde(default)]
    pub code: Option<String>,
    /// What the browser made with a passkey (`PublicKeyCredential.toJSON()`), in the place of a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub passkey: Option<Value>,
}

/// A fresh proof: a code or a passkey where there is a second factor, else the password.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfirmJson {
    /// The password.
    pub password: Option<String>,
    /// The code of the second factor, or a recovery code.
    pub code: Option<String>,
    /// What the browser made with a passkey (`PublicKeyCredential.toJSON()`), in the place of a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub passkey: Option<Value>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionJson {
    /// Who.
    pub user: UserJson,
    /// To be sent as `X-CSRF-Token` with every request that changes something.
    pub csrf_token: String,
    /// Whether nothing works until a second factor is set up.
    pub must_enrol: bool,
    /// When the session began.
    pub began: String,
    /// When every factor was last given.
    pub proved: String,
}

/// A one-time link that is followed.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedeemJson {
    /// What the link says after `#`.
    pub token: String,
    /// The password from now on.
    pub password: String,
    /// The address of the instance's first admin; for the set-up link only.
    #[serde(default)]
    pub email: Option<String>,
}

/// What an authenticator program needs; shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct EnrolmentJson {
    /// To type in.
    pub secret: String,
    /// What the QR code says.
    pub address: String,
    /// The QR code as SVG.
    pub qr_svg: String,
}

/// A code.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeJson {
    /// Six digits.
    pub code: String,
}

/// Somebody who has forgotten his password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgottenJson {
    /// The e-mail address he logs in with.
    pub email: String,
    /// The tenant's name; needed if the address is known in several.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// A new password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordJson {
    /// The password from now on.
    pub password: String,
}

/// Codes that each replace a second factor once; shown this once. None where another second factor was there
/// before: its codes stay.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoveryCodesJson {
    /// Keep them where the device is not.
    pub recovery_codes: Vec<String>,
}

fn json(parts: &Parts, logged_in: &Stay) -> SessionJson {
    SessionJson {
        user: users::json(parts, &logged_in.user),
        csrf_token: logged_in.csrf.clone(),
        must_enrol: parts.people.must_enrol(&logged_in.user),
        began: logged_in.session.began.rfc3339(),
        proved: logged_in.session.proved.rfc3339(),
    }
}

type WithCookie<T> = Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<T>), Problem>;

fn entered(parts: &Parts, entered: LoggedIn, status: StatusCode) -> WithCookie<SessionJson> {
    let cookie = identity::cookie_of(&entered.secret);
    let csrf = csrf_token(&entered.secret);
    let stay = Stay { user: entered.user, session: entered.session, csrf };
    Ok((status, [(header::SET_COOKIE, cookie)], Json(json(parts, &stay))))
}

/// Waits as long as a refusal says, then answers it.
async fn refused(refused: Refused) -> Problem {
    match refused {
        Refused::Wrong(delay) => {
            tokio::time::sleep(delay).await;
            let detail = "address, password or code is wrong, or the account is locked or not from here";
            Problem::new(StatusCode::UNAUTHORIZED, "wrong_credentials", detail)
        }
        Refused::NeedsFactor(passkey) => {
            let detail = match passkey {
                Some(_) => "prove a passkey, or give a code of your second factor too",
                None => "give the code of your second factor too",
            };
            Problem::new(StatusCode::UNAUTHORIZED, "second_factor_required", detail).with_passkey(passkey)
        }
        Refused::Slowed(wait) => {
            let detail = format!("too many failed logins; again in {} s", wait.as_secs());
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail).again_in(wait.as_secs())
        }
        Refused::Failed(error) => error.into(),
    }
}

/// What a browser made, as the room reads it.
pub(super) fn octets(made: &Value) -> Vec<u8> {
    made.to_string().into_bytes()
}

fn agent(headers: &HeaderMap) -> &str {
    headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn no_session() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "no_session", "this is for people who are logged in (POST /api/v1/session)")
}

pub(super) fn stay(stay: Option<Extension<Stay>>) -> Result<Stay, Problem> {
    stay.map(|Extension(stay)| stay).ok_or_else(no_session)
}

#[utoipa::path(
    post,
    path = "/session",
    operation_id = "session_log_in",
    tag = "session",
    summary = "Log in: session.",
    request_body = LoginJson,
    responses((status = 201, body = SessionJson, description = "done"))
)]
pub(super) async fn log_in(
    State(parts): State<Shared>,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
    JsonBody(asked): JsonBody<LoginJson>,
) -> WithCookie<SessionJson> {
    identity::check_origin(&headers)?;
    let password = Zeroizing::new(asked.password);
    let tenant = named(&parts, asked.tenant.as_deref());
    let (email, code, passkey) = (asked.email.as_str(), asked.code.as_deref(), asked.passkey.as_ref().map(octets));
    let (passkey, agent) = (passkey.as_deref(), agent(&headers));
    let given = Credentials { email, tenant, password: &password, code, passkey, from, agent };
    match parts.people.log_in(given, Timestamp::now()).await {
        Ok(done) => entered(&parts, done, StatusCode::CREATED),
        Err(why) => Err(refused(why).await),
    }
}

/// The tenant somebody says he is of. A name nobody has is a tenant nobody is in: the same answer, after the same work.
fn named(parts: &Parts, tenant: Option<&str>) -> Option<Option<TenantId>> {
    match tenant {
        None => None,
        Some(super::INSTANCE_NAME) => Some(None),
        Some(name) => Some(Some(parts.accounts.tenant_named(name).map_or(TenantId(0), |tenant| tenant.id))),
    }
}

#[utoipa::path(
    post,
    path = "/session/forgotten",
    operation_id = "session_forgotten",
    tag = "session",
    summary = "Ask: for a link to choose a new password, by mail; the answer is the same whether there is such a person.",
    request_body = ForgottenJson,
    responses((status = 202, description = "if there is such a person, a mail is on its way"))
)]
pub(super) async fn forgotten(
    State(parts): State<Shared>,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
    JsonBody(asked): JsonBody<ForgottenJson>,
) -> Result<StatusCode, Problem> {
    identity::check_origin(&headers)?;
    let now = Timestamp::now();
    if let Err(why) = parts.people.book_forgotten(from, now) {
        return Err(refused(why).await);
    }
    // Behind the answer, which so takes as long whoever is asked for.
    tokio::spawn(async move {
        let tenant = named(&parts, asked.tenant.as_deref());
        let made = parts.people.forgotten((&asked.email, tenant), from, now).await;
        let Ok(Some((user, link))) = made.inspect_err(|error| tracing::warn!(%error, "a link could not be made"))
        else {
            return;
        };
        let mail = NewPassword { user: user.id, token: &link.token, expires: link.expires };
        if let Err(error) = parts.notifications.mail_new_password(mail, now).await {
            tracing::warn!(user = %user.id, %error, "a link for a new password could not be mailed");
        }
    });
    Ok(StatusCode::ACCEPTED)
}

#[utoipa::path(
    post,
    path = "/session/confirm",
    operation_id = "session_confirm",
    tag = "session",
    summary = "Confirm: session.",
    request_body = ConfirmJson,
    responses((status = 200, body = SessionJson, description = "done"))
)]
pub(super) async fn confirm(
    State(parts): State<Shared>,
    Extension(From(from)): Extension<From>,
    own: Option<Extension<Stay>>,
    headers: HeaderMap,
    JsonBody(asked): JsonBody<ConfirmJson>,
) -> WithCookie<SessionJson> {
    let own = stay(own)?;
    let password = Zeroizing::new(asked.password.unwrap_or_default());
    let (email, code, passkey) = (own.user.email.as_str(), asked.code.as_deref(), asked.passkey.as_ref().map(octets));
    let (passkey, agent) = (passkey.as_deref(), agent(&headers));
    let given = Credentials { email, tenant: None, password: &password, code, passkey, from, agent };
    match parts.people.confirm(&own.session, given, Timestamp::now()).await {
        Ok(done) => entered(&parts, done, StatusCode::OK),
        Err(why) => Err(refused(why).await),
    }
}

#[utoipa::path(
    get,
    path = "/session",
    operation_id = "session_show",
    tag = "session",
    summary = "Show: session.",
    responses((status = 200, body = SessionJson, description = "done"))
)]
pub(super) async fn show(State(parts): State<Shared>, own: Option<Extension<Stay>>) -> Answer<SessionJson> {
    Ok(Json(json(&parts, &stay(own)?)))
}

#[utoipa::path(
    delete,
    path = "/session",
    operation_id = "session_log_out",
    tag = "session",
    summary = "Log out: session.",
    responses((status = 204, description = "done"))
)]
pub(super) async fn log_out(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1]), Problem> {
    let own = stay(own)?;
    parts.people.end_session(&actor, own.user.id, Some(own.session.digest), Timestamp::now()).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, identity::no_cookie())]))
}

#[utoipa::path(
    post,
    path = "/session/redeem",
    operation_id = "session_redeem",
    tag = "session",
    summary = "Redeem: session.",
    request_body = RedeemJson,
    responses((status = 200, body = UserJson, description = "done"))
)]
pub(super) async fn redeem(
    State(parts): State<Shared>,
    headers: HeaderMap,
    JsonBody(asked): JsonBody<RedeemJson>,
) -> Answer<UserJson> {
    identity::check_origin(&headers)?;
    let password = Zeroizing::new(asked.password);
    let user = parts.people.redeem(&asked.token, password, asked.email.as_deref(), Timestamp::now()).await?;
    Ok(Json(users::json(&parts, &user)))
}

#[utoipa::path(
    post,
    path = "/session/password",
    operation_id = "session_change_password",
    tag = "session",
    summary = "Change: one's own password; the other sessions end.",
    request_body = PasswordJson,
    responses((status = 204, description = "done"))
)]
pub(super) async fn change_password(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
    JsonBody(asked): JsonBody<PasswordJson>,
) -> Result<StatusCode, Problem> {
    let own = stay(own)?;
    let whose = (own.user.id, Some(own.session.digest));
    parts.people.change_password(&actor, whose, Zeroizing::new(asked.password), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post,
    path = "/session/second-factor",
    operation_id = "session_offer_factor",
    tag = "session",
    summary = "Offer factor: session.",
    responses((status = 200, body = EnrolmentJson, description = "done"))
)]
pub(super) async fn offer_factor(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Answer<EnrolmentJson> {
    let own = stay(own)?;
    let issuer = parts.about.hostname.to_string();
    let made = parts.people.offer_totp(&actor, own.user.id, &issuer, Timestamp::now()).await?;
    Ok(Json(EnrolmentJson {
        secret: made.secret.to_string(),
        address: made.address.to_string(),
        qr_svg: made.qr_svg.to_string(),
    }))
}

fn codes(codes: Vec<Zeroizing<String>>) -> Json<RecoveryCodesJson> {
    Json(RecoveryCodesJson { recovery_codes: codes.iter().map(|code| code.to_string()).collect() })
}

#[utoipa::path(
    post,
    path = "/session/second-factor/prove",
    operation_id = "session_prove_factor",
    tag = "session",
    summary = "Prove factor: session.",
    request_body = CodeJson,
    responses((status = 200, body = RecoveryCodesJson, description = "done"))
)]
pub(super) async fn prove_factor(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
    JsonBody(asked): JsonBody<CodeJson>,
) -> Answer<RecoveryCodesJson> {
    let own = stay(own)?;
    let whose = (own.user.id, Some(own.session.digest));
    Ok(codes(parts.people.prove_totp(&actor, whose, &asked.code, Timestamp::now()).await?))
}

#[utoipa::path(
    post,
    path = "/session/recovery-codes",
    operation_id = "session_new_codes",
    tag = "session",
    summary = "New codes: session.",
    responses((status = 200, body = RecoveryCodesJson, description = "done"))
)]
pub(super) async fn new_codes(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Answer<RecoveryCodesJson> {
    let own = stay(own)?;
    Ok(codes(parts.people.new_recovery_codes(&actor, (own.user.id, own.session.digest), Timestamp::now()).await?))
}

#[utoipa::path(
    delete,
    path = "/session/second-factor",
    operation_id = "session_remove_factor",
    tag = "session",
    summary = "Remove factor: session.",
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove_factor(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Result<StatusCode, Problem> {
    let own = stay(own)?;
    let people = Arc::clone(&parts.people);
    people.remove_totp(&actor, (own.user.id, own.session.digest), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
