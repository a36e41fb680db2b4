//! `Idempotency-Key`: a request that is repeated is carried out once. One layer around every route
//! that wants an actor, for every POST.
//!
//! Before the request is carried out a mark is durable, afterwards the answer is; so a repeat finds the
//! answer, or that the first one is under way, or (after a crash) that its outcome is not known. A request
//! that was refused did nothing and leaves no mark. Easy to get wrong: an answer that shows a secret is
//! never stored; a client that goes away must not take the work with it, or nobody learns how it ended.

mod kept;

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::burden::Held;
use super::problem::Problem;
use super::server::STREAMED;
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::QueueId;

#[cfg(test)]
pub use kept::KEYS_PER_ACTOR_MAX;
use kept::{Begun, Kept, Mark, Name, Turn};
pub use kept::{KEYS_TIME, Record, Replays};

/// What a client gives a request it may have to repeat.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was given before.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Characters of a key, at most.
const KEY_CHARACTERS_MAX: usize = 255;
/// Octets of an answer that is kept, at most.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Fields that show a secret, wherever they are in an answer.
pub const SECRET_FIELDS: &[&str] =
    &["password", "text", "token", "secret", "signing_secret", "csrf_token", "qr_svg", "codes", "recovery_codes"];
/// Where in such an answer the id is of what was made.
const ID_POINTERS: &[&str] =
    &["/id", "/key/id", "/user/id", "/passkey/id", "/account/login", "/account/id", "/webhook/id"];
/// Routes that know by the id reserved for them what was done before a crash, and may be carried out again.
const REPEATABLE: &[&str] = &["/messages", "/messages/batch"];

/// A request with a key whose handler takes the body itself.
#[derive(Clone)]
pub struct Deferred {
    replays: Arc<Replays>,
    name: Name,
    head: Sha256,
}

impl Deferred {
    /// Carries `work` out once for a request whose body has this SHA-256, or answers as the first one was.
    pub async fn once<F>(self, body: [u8; 32], work: F) -> Response
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let Self { replays, name, mut head } = self;
        add(&mut head, &body);
        to_the_end(async move {
            match admit(&replays, (name, head.finalize().into()), false).await {
                Ok((mark, _turn)) => finish(&replays, name, mark, work.await).await,
                Err(answer) => *answer,
            }
        })
        .await
    }
}

/// The id that a request is to give what it makes, the same when it is repeated after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved(pub QueueId);

/// Carries a POST with an `Idempotency-Key` out once.
pub async fn once(State(replays): State<Arc<Replays>>, mut request: Request, next: Next) -> Response {
    let key = match key_of(request.method(), request.headers()) {
        Ok(Some(key)) => key,
        Ok(None) => return next.run(request).await,
        Err(problem) => return problem.into_response(),
    };
    let Some(actor) = request.extensions().get::<Actor>().map(|actor| actor.name.clone()) else {
        return next.run(request).await;
    };
    // Too large to be held: their handlers take the body in pieces first, and end by [`Deferred::once`].
    if is_route(request.extensions(), STREAMED) {
        let (parts, body) = request.into_parts();
        let deferred = Deferred { replays, name: Name::of(&actor, &key), head: head(&parts) };
        request = Request::from_parts(parts, body);
        request.extensions_mut().insert(deferred);
        return next.run(request).await;
    }
    to_the_end(async move { carry_out(&replays, (&actor, &key), request, next).await }).await
}

fn is_route(extensions: &axum::http::Extensions, routes: &[&str]) -> bool {
    let matched = extensions.get::<MatchedPath>();
    matched.is_some_and(|path| routes.iter().any(|end| path.as_str().ends_with(end)))
}

/// Whoever asked may go away: the work and its mark go on together.
async fn to_the_end(work: impl Future<Output = Response> + Send + 'static) -> Response {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        let detail = "the request failed inside; the log has the details";
        Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail, error).into_response()
    })
}

/// The key, if there is one on a request that may have one.
fn key_of(method: &Method, headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(KEY_HEADER).into_iter();
    let (Some(key), further) = (given.next(), given.next()) else { return Ok(None) };
    if method != Method::POST {
        return Ok(None);
    }
    let text = key.to_str().ok().filter(|text| {
        (1..=KEY_CHARACTERS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match (text, further) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => {
            let detail = format!("Idempotency-Key must be 1 to {KEY_CHARACTERS_MAX} printable ASCII characters, once");
            Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", detail))
        }
    }
}

async fn carry_out(replays: &Replays, (actor, key): (&str, &str), request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // What was reserved for it is held to the end, whoever else goes away.
    let _held = parts.extensions.get::<Held>().cloned();
    let is_repeatable = is_route(&parts.extensions, REPEATABLE);
    // Sizes were bounded by a layer further out, which this extractor obeys.
    let whole = Request::from_parts(parts.clone(), body);
    let body = match Bytes::from_request(whole, &()).await {
        Ok(body) => body,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large").into_response();
        }
        Err(error) => return Problem::new(error.status(), "unreadable", "the body could not be read").into_response(),
    };
    let mut fingerprint = head(&parts);
    add(&mut fingerprint, &body);
    let name = Name::of(actor, key);
    let (mark, _turn) = match admit(replays, (name, fingerprint.finalize().into()), is_repeatable).await {
        Ok(admitted) => admitted,
        Err(answer) => return *answer,
    };
    parts.extensions.insert(Reserved(mark.reserved));
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    finish(replays, name, mark, answer).await
}

/// A turn for the request if it is to be carried out, else the answer.
async fn admit(
    replays: &Replays,
    (name, fingerprint): (Name, [u8; 32]),
    is_repeatable: bool,
) -> Result<(Mark, Turn), Box<Response>> {
    let begun = replays.begin(name, fingerprint, Timestamp::now()).await;
    match begun.map_err(|problem| Box::new(problem.into_response()))? {
        Begun::First(mark, turn) => Ok((mark, turn)),
        Begun::Crashed(mark, turn) if is_repeatable => Ok((mark, turn)),
        Begun::Crashed(..) => {
            let detail = "the daemon stopped while it carried this request out, and whether it was done is not known: \
                          look, then send what is missing with another key";
            let problem = Problem::new(StatusCode::CONFLICT, "idempotent_outcome_unknown", detail);
            Err(Box::new(problem.into_response()))
        }
        Begun::Done(kept) => Err(Box::new(replayed(kept))),
    }
}

/// Method, path, query and kind: what makes a request another one, its octets left out.
fn head(parts: &axum::http::request::Parts) -> Sha256 {
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut digest = Sha256::new();
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    for piece in [parts.method.as_str().as_bytes(), target.as_bytes(), kind] {
        add(&mut digest, piece);
    }
    digest
}

fn add(digest: &mut Sha256, piece: &[u8]) {
    digest.update((piece.len() as u64).to_be_bytes());
    digest.update(piece);
}

/// Writes down how it ended, and gives the answer on. The name is free for the next one only afterwards.
async fn finish(replays: &Replays, name: Name, mark: Mark, answer: Response) -> Response {
    if !answer.status().is_success() {
        replays.forget(name, &mark).await;
        return answer;
    }
    let (kept, answer) = keep(answer).await;
    if let Err(error) = replays.finish(name, mark, kept).await {
        // It was done. The mark stays, so that it is not done again.
        tracing::warn!(%error, "the answer to a request with an Idempotency-Key could not be kept");
    }
    answer
}

/// What is kept of an answer, and the answer.
async fn keep(answer: Response) -> (Kept, Response) {
    let status = answer.status().as_u16();
    let not_kept = |id| Kept::Unkept { status, id };
    let is_json = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/json");
    let has_body = answer.status() != StatusCode::NO_CONTENT;
    if has_body && !answer.headers().get(header::CONTENT_TYPE).is_some_and(is_json) {
        return (not_kept(None), answer);
    }
    let (parts, body) = answer.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => {
            let detail = "the answer could not be made; the log has the details";
            let problem = Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail, error);
            return (not_kept(None), problem.into_response());
        }
    };
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let kept = if shows_a_secret(&value) || bytes.len() > ANSWER_BYTES_MAX {
        not_kept(ID_POINTERS.iter().find_map(|pointer| value.pointer(pointer)?.as_str().map(str::to_owned)))
    } else {
        Kept::Answer { status, body: bytes.to_vec() }
    };
    (kept, Response::from_parts(parts, Body::from(bytes)))
}

pub(super) fn shows_a_secret(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| (SECRET_FIELDS.contains(&name.as_str()) && !value.is_null()) || shows_a_secret(value)),
        Value::Array(values) => values.iter().any(shows_a_secret),
        _ => false,
    }
}

fn replayed(kept: Kept) -> Response {
    let mut response = match kept {
        Kept::Answer { status, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let mut response = (status, body).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Kept::Unkept { id, .. } => {
            let made = id.map(|id| format!("; what was made is {id}")).unwrap_or_default();
            let detail = format!("this was done already, and its answer is not kept{made}");
            Problem::new(StatusCode::CONFLICT, "idempotent_answer_not_kept", detail).into_response()
        }
    };
    response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    response
}

/// What the tests of the layer do to marks without HTTP.
#[cfg(test)]
pub mod tests_of_marks {
    use super::kept::{Begun, Name, Replays};
    use crate::ext::Timestamp;
    use crate::store::MemoryStore;

    /// How a request began.
    #[derive(Debug, PartialEq, Eq)]
    pub enum How {
        First,
        Crashed,
        Done,
    }

    /// What a test holds: [`How`], compared, and the turn, dropped.
    pub async fn begin(replays: &Replays, key: &str, now: Timestamp) -> Result<Beginning, String> {
        let begun = replays.begin(Name::of("actor", key), [7; 32], now).await;
        begun.map(Beginning).map_err(|problem| problem.code().to_owned())
    }

    /// A request that began.
    #[derive(Debug)]
    pub struct Beginning(Begun);

    impl PartialEq<How> for Beginning {
        fn eq(&self, how: &How) -> bool {
            let own = match self.0 {
                Begun::First(..) => How::First,
                Begun::Crashed(..) => How::Crashed,
                Begun::Done(_) => How::Done,
            };
            own == *how
        }
    }

    /// Removes what has lapsed.
    pub async fn sweep(replays: &Replays, now: Timestamp) -> usize {
        replays.sweep(now).await.unwrap()
    }

    /// As if the actor of [`begin`] held so many keys.
    pub fn pretend_held(replays: &Replays, keys: u64) {
        replays.pretend_held(Name::of("actor", ""), keys);
    }

    /// Leaves the marks of requests as they are while one is under way.
    pub async fn undo_answers(store: &MemoryStore) {
        super::kept::undo_answers(store).await;
    }

    #[test]
    fn a_secret_is_seen_wherever_it_is_in_an_answer() {
        use serde_json::json;
        assert!(super::shows_a_secret(&json!({"key": {"id": 1}, "text": "pk_1"})));
        assert!(super::shows_a_secret(&json!({"rows": [{"deep": {"token": "x"}}]})));
        assert!(!super::shows_a_secret(&json!({"id": 1, "note": "password", "token": null})));
    }
}
