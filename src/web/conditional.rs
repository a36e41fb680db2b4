//! `ETag` and `If-Match`: a change is made only to what its sender has seen (RFC 9110 s13.1.1).
//!
//! One layer: an ETag is made of what GET of the same path answers, and a change with `If-Match` asks
//! that GET first, while no other change of the same thing is under way. Easy to get wrong: counters and
//! the time of the last use are no part of it, or whoever edits a busy tenant would never be let through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tower::ServiceExt;

use super::identity;
use super::problem::Problem;
use super::server::RequestId;
use crate::access::Actor;
use crate::ext;
use crate::records;

/// Fields that change by themselves.
const MOVING_FIELDS: &[&str] =
    &["used", "last_used", "last_used_from", "last_login", "last_check", "missing", "due_in_secs", "progress"];
/// Path segments that name a thing: what hangs on the same thing is changed one after the other.
const THING_SEGMENTS: usize = 2;
/// Locks in the map before it is tidied.
const LOCKS_MAX: usize = 1024;

/// What the layer asks, and what is being changed.
pub struct Conditional {
    /// The routes without layers.
    router: Router,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Conditional {
    /// Asks `router`, whose paths begin behind the version.
    pub fn new(router: Router) -> Self {
        Self { router, locks: Mutex::default() }
    }

    /// Waits until no other change of that thing is under way.
    async fn turn(&self, thing: String) -> Turn<'_> {
        let lock = {
            let mut locks = records::lock(&self.locks);
            if locks.len() >= LOCKS_MAX {
                // Those whose waiter went away.
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(thing.clone()).or_default())
        };
        let guard = lock.lock_owned().await;
        Turn { of: self, thing, guard: Some(guard) }
    }

    /// The ETag of what `asked` shows now.
    async fn current(&self, asked: Request) -> Option<HeaderValue> {
        let answer = self.router.clone().oneshot(asked).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let bytes = answer.into_body().collect().await.ok()?.to_bytes();
        tag(&bytes)
    }
}

/// GET of the same path by whoever asks.
fn reading(request: &Request) -> Request {
    let mut asked = Request::new(Body::empty());
    *asked.uri_mut() = request.uri().clone();
    let (own, theirs) = (asked.extensions_mut(), request.extensions());
    theirs.get::<Actor>().cloned().map(|actor| own.insert(actor));
    theirs.get::<identity::From>().copied().map(|from| own.insert(from));
    theirs.get::<identity::Stay>().cloned().map(|stay| own.insert(stay));
    theirs.get::<RequestId>().cloned().map(|id| own.insert(id));
    asked
}

struct Turn<'a> {
    of: &'a Conditional,
    thing: String,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = records::lock(&self.of.locks);
        // The map holds one; nobody waits if that is all.
        if locks.get(&self.thing).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.thing);
        }
    }
}

/// Puts an ETag on answers that show one thing, and holds changes to what `If-Match` says.
pub async fn hold(State(conditional): State<Arc<Conditional>>, request: Request, next: Next) -> Response {
    match *request.method() {
        Method::GET => tagged(next.run(request).await).await,
        Method::PATCH | Method::PUT | Method::DELETE => change(&conditional, request, next).await,
        Method::POST if is_act(request.uri().path()) => {
            let _turn = conditional.turn(thing(request.uri().path())).await;
            next.run(request).await
        }
        _ => next.run(request).await,
    }
}

async fn change(conditional: &Conditional, request: Request, next: Next) -> Response {
    let turn = conditional.turn(thing(request.uri().path())).await;
    if let Some(wanted) = wanted(request.headers()) {
        let current = conditional.current(reading(&request)).await;
        let is_met = match (&wanted, &current) {
            (_, None) => false,
            (Wanted::Any, Some(_)) => true,
            (Wanted::OneOf(tags), Some(current)) => tags.iter().any(|tag| tag.as_bytes() == current.as_bytes()),
        };
        if !is_met {
            let detail = "it is not, or not any more, what If-Match names; read it again";
            let mut response =
                Problem::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail).into_response();
            if let Some(current) = current {
                response.headers_mut().insert(header::ETAG, current);
            }
            return response;
        }
    }
    let answer = next.run(request).await;
    drop(turn);
    tagged(answer).await
}

/// What a change names in `If-Match`.
enum Wanted {
    /// `*`: anything that is there.
    Any,
    /// One of these.
    OneOf(Vec<String>),
}

fn wanted(headers: &HeaderMap<HeaderValue>) -> Option<Wanted> {
    let given: Vec<&str> =
        headers.get_all(header::IF_MATCH).into_iter().map(|value| value.to_str().unwrap_or_default()).collect();
    if given.is_empty() {
        return None;
    }
    let mut tags = given.iter().flat_map(|value| value.split(',')).map(str::trim);
    if tags.clone().any(|tag| tag == "*") {
        return Some(Wanted::Any);
    }
    Some(Wanted::OneOf(tags.by_ref().map(str::to_owned).collect()))
}

/// The thing a path is about: `/keys/ID/rotate` is about `/keys/ID`.
fn thing(path: &str) -> String {
    path.trim_start_matches('/').split('/').take(THING_SEGMENTS).collect::<Vec<_>>().join("/")
}

/// Whether a POST acts on a thing; making one does not, nor does a file that is taken for long.
fn is_act(path: &str) -> bool {
    thing(path).len() < path.len().saturating_sub(1) && !path.ends_with("-imports")
}

async fn tagged(answer: Response) -> Response {
    let kind = answer.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if answer.status() != StatusCode::OK || !kind.starts_with(b"application/json") {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => {
            let detail = "the answer could not be made; the log has the details";
            return Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail, error).into_response();
        }
    };
    if let Some(tag) = tag(&bytes) {
        parts.headers.insert(header::ETAG, tag);
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// The ETag of what an answer shows; a list has none.
fn tag(bytes: &Bytes) -> Option<HeaderValue> {
    let mut shown: Value = serde_json::from_slice(bytes).ok()?;
    let fields = shown.as_object_mut()?;
    if fields.contains_key("rows") {
        return None;
    }
    MOVING_FIELDS.iter().for_each(|moving| {
        fields.remove(*moving);
    });
    // Maps of serde_json are in the order of their keys: the same thing is the same text.
    let digest: [u8; 32] = Sha256::digest(shown.to_string().as_bytes()).into();
    HeaderValue::from_str(&format!("\"{}\"", ext::base32(&digest[..10]))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_do_not_change_the_tag_and_what_people_set_does() {
        let tag = |text: &str| tag(&Bytes::copy_from_slice(text.as_bytes()));
        let one = tag(r#"{"name":"shop","suspended":false,"used":{"hourly":1}}"#);
        assert!(one.is_some());
        assert_eq!(one, tag(r#"{"name":"shop","suspended":false,"used":{"hourly":9}}"#));
        assert_ne!(one, tag(r#"{"name":"shop","suspended":true,"used":{"hourly":1}}"#));
        assert_eq!(tag(r#"{"rows":[]}"#), None);
    }

    #[test]
    fn what_hangs_on_a_thing_is_that_thing() {
        assert_eq!(thing("/keys/a/rotate"), thing("/keys/a"));
        assert_ne!(thing("/keys/a"), thing("/keys/b"));
    }

    #[tokio::test]
    async fn a_turn_leaves_nothing_behind_and_others_do_not_wait_for_it() {
        let conditional = Arc::new(Conditional::new(Router::new()));
        let first = conditional.turn("keys/a".to_owned()).await;
        let _other = conditional.turn("keys/b".to_owned()).await;
        let waiting = Arc::clone(&conditional);
        let second = tokio::spawn(async move { drop(waiting.turn("keys/a".to_owned()).await) });
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap();
        assert_eq!(conditional.locks.lock().unwrap().len(), 1);
    }
}
