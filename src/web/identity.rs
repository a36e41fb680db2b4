//! Who is asking over the network: a key in `Authorization`, or a session in the cookie.
//!
//! A cookie comes with every request a browser makes, whoever caused it; so a request that changes
//! something must also carry the session's token, and come from our own pages if it says where it
//! comes from. Easy to get wrong: a key is never taken from a cookie, a session never from a header.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::Parts;
use super::connections::Turn;
use super::door::NetworkPeer;
use super::problem::Problem;
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::people::{self, Session, User};

/// The cookie: `__Host-` binds it to this host, to TLS and to the whole path.
const COOKIE: &str = "__Host-postern";
/// Where the session's token goes.
pub const CSRF_HEADER: &str = "x-csrf-token";
/// What a session may reach before a second factor that it must have is set up.
const BEFORE_ENROLMENT: &str = "/session";

/// The session a request came with.
#[derive(Clone, Debug)]
pub struct Stay {
    /// Who.
    pub user: User,
    /// The stay.
    pub session: Session,
    /// Its token against forged requests.
    pub csrf: String,
}

/// Where a request came from; the local socket counts as this host.
#[derive(Clone, Copy, Debug)]
pub struct From(pub IpAddr);

/// Turns what a request carries into an [`Actor`], if it is good. One that came by the local socket
/// has its actor already.
pub async fn identify(State(parts): State<Arc<Parts>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<NetworkPeer>().copied();
    let from = peer.map_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), |peer| peer.0);
    request.extensions_mut().insert(From(from));
    let request_id = request.extensions().get::<super::server::RequestId>().map(|id| id.0.clone());
    if let Some(actor) = request.extensions_mut().get_mut::<Actor>() {
        actor.request_id = request_id;
        return next.run(request).await;
    }
    if peer.is_none() {
        return next.run(request).await;
    }
    let now = Timestamp::now();
    match presented(&parts, &request, from, now) {
        Ok(None) => {}
        Ok(Some((mut actor, stay))) => {
            actor.request_id = request_id;
            Turn::known_in(&request);
            request.extensions_mut().insert(actor);
            if let Some(stay) = stay {
                request.extensions_mut().insert(stay);
            }
        }
        Err(problem) => return problem.into_response(),
    }
    next.run(request).await
}

type Presented = Option<(Actor, Option<Stay>)>;

fn presented(parts: &Parts, request: &Request, from: IpAddr, now: Timestamp) -> Result<Presented, Problem> {
    let headers = request.headers();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let bad =
            || Problem::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "this key is not good, or not from here");
        let key = value.to_str().ok().and_then(key_in).ok_or_else(bad)?;
        let actor = parts.people.key_actor(&key, Some(from), now).ok_or_else(bad)?;
        return Ok(Some((actor, None)));
    }
    let Some(secret) = cookie(headers) else { return Ok(None) };
    let Some((actor, user, session)) = parts.people.session_actor(&secret, Some(from), now) else { return Ok(None) };
    let csrf = people::csrf_token(&secret);
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if is_change {
        check_origin(headers)?;
        let given = headers.get(CSRF_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
        if !bool::from(given.ct_eq(csrf.as_bytes())) {
            let detail = "send the session's token in X-CSRF-Token; GET /api/v1/session tells it";
            return Err(Problem::new(StatusCode::FORBIDDEN, "csrf", detail));
        }
    }
    let path = request.uri().path().strip_prefix("/api/v1").unwrap_or_default();
    if parts.people.must_enrol(&user) && !path.starts_with(BEFORE_ENROLMENT) {
        let detail = "your role must have a second factor: set one up first (POST /api/v1/session/second-factor or \
                      /api/v1/session/passkeys/offer)";
        return Err(Problem::new(StatusCode::FORBIDDEN, "second_factor_enrolment", detail));
    }
    Ok(Some((actor, Some(Stay { user, session, csrf }))))
}

/// A bearer token, or the password of basic authentication.
fn key_in(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Requests that say where they come from must come from our own pages.
pub fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let foreign = || Problem::new(StatusCode::FORBIDDEN, "csrf", "this request was caused by a page of another site");
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if text(header::HeaderName::from_static("sec-fetch-site"))
        .is_some_and(|site| site != "same-origin" && site != "none")
    {
        return Err(foreign());
    }
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => Ok(()),
        (Some(origin), Some(host)) if origin.strip_prefix("https://") == Some(host) => Ok(()),
        _ => Err(foreign()),
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

/// The cookie of a new session.
pub fn cookie_of(secret: &str) -> HeaderValue {
    let lasts = people::SESSION_LASTS.as_secs();
    let text = format!("{COOKIE}={secret}; Path=/; Max-Age={lasts}; Secure; HttpOnly; SameSite=Strict");
    HeaderValue::from_str(&text).unwrap_or_else(|_| no_cookie())
}

/// Takes the cookie back.
pub fn no_cookie() -> HeaderValue {
    HeaderValue::from_static("__Host-postern=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_as_bearer_or_as_basic_password() {
        assert_eq!(key_in("Bearer pk_x").as_deref(), Some("pk_x"));
        assert_eq!(key_in(&format!("basic {}", STANDARD.encode("any:pk_x"))).as_deref(), Some("pk_x"));
        assert_eq!((key_in("pk_x"), key_in("Digest x"), key_in("Basic ???")), (None, None, None));
    }

    #[test]
    fn a_request_of_another_sites_page_is_refused() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        assert!(check_origin(&headers(&[("host", "mx.example:8443")])).is_ok(), "no browser");
        assert!(check_origin(&headers(&[("host", "mx.example:8443"), ("origin", "https://mx.example:8443")])).is_ok());
        for origin in ["https://evil.example", "http://mx.example:8443", "null", "https://mx.example:8443.evil.example"]
        {
            assert!(check_origin(&headers(&[("host", "mx.example:8443"), ("origin", origin)])).is_err(), "{origin}");
        }
        assert!(check_origin(&headers(&[("host", "mx.example"), ("sec-fetch-site", "cross-site")])).is_err());
        assert!(check_origin(&headers(&[("host", "mx.example"), ("sec-fetch-site", "same-site")])).is_err());
    }
}
