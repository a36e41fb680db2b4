//! Requests that are repeated, and changes of what is not any more what somebody saw.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::Settings;
use super::replay::Replays;
use super::tests::{api_over, call};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::store::{CommitError, MemoryStore, Store, after_prefix, prefix};

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn is_replayed(&self) -> bool {
        self.headers.get("idempotency-replayed").is_some_and(|value| value == "true")
    }

    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

async fn ask(api: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    ask_as(api, Actor::local(0), (method, path), headers, body).await
}

async fn ask_as(
    api: &Router,
    actor: Actor,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: Value,
) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let content = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = request.body(content).unwrap();
    request.extensions_mut().insert(actor);
    let answer = api.clone().oneshot(request).await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

async fn api() -> (Arc<MemoryStore>, Router) {
    let store = Arc::new(MemoryStore::new());
    let api = api_over(Arc::clone(&store), Settings::default()).await;
    (store, api)
}

fn kept(store: &MemoryStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.range(&[prefix::REPLAY], &after_prefix(&[prefix::REPLAY]), 1000).unwrap()
}

const KEY: (&str, &str) = ("idempotency-key", "order-4711");

#[tokio::test]
async fn a_repeated_request_is_carried_out_once_and_answered_as_the_first_was() {
    let (store, api) = api().await;
    let new = || json!({"name": "shop"});
    let first = ask(&api, "POST", "/tenants", &[KEY], new()).await;
    assert_eq!((first.status, first.is_replayed()), (StatusCode::CREATED, false));
    let again = ask(&api, "POST", "/tenants", &[KEY], new()).await;
    assert_eq!((again.status, again.is_replayed()), (StatusCode::CREATED, true), "{}", again.body);
    assert_eq!(again.body, first.body);
    // It outlives the process.
    let restarted = api_over(store, Settings::default()).await;
    let again = ask(&restarted, "POST", "/tenants", &[KEY], new()).await;
    assert_eq!((again.status, again.is_replayed(), again.body), (StatusCode::CREATED, true, first.body));
    let without = ask(&restarted, "POST", "/tenants", &[], new()).await;
    assert_eq!((without.status, without.code()), (StatusCode::CONFLICT, "exists"));
}

#[tokio::test]
async fn a_key_belongs_to_one_request_of_one_actor() {
    let (_, api) = api().await;
    assert_eq!(ask(&api, "POST", "/tenants", &[KEY], json!({"name": "shop"})).await.status, StatusCode::CREATED);
    for (path, body) in [("/tenants", json!({"name": "other"})), ("/tenants?x=1", json!({"name": "shop"}))] {
        let answer = ask(&api, "POST", path, &[KEY], body).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "invalid_idempotent_request"), "{path}");
    }
    let other = ask_as(&api, Actor::local(7), ("POST", "/tenants"), &[KEY], json!({"name": "other"})).await;
    assert_eq!((other.status, other.is_replayed()), (StatusCode::CREATED, false), "another actor's keys are others");
}

#[tokio::test]
async fn a_refused_request_did_nothing_and_leaves_the_key_free() {
    let (store, api) = api().await;
    let refused = ask(&api, "POST", "/tenants", &[KEY], json!({"name": "Bad Name"})).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(kept(&store).is_empty());
    let mended = ask(&api, "POST", "/tenants", &[KEY], json!({"name": "shop"})).await;
    assert_eq!((mended.status, mended.is_replayed()), (StatusCode::CREATED, false));
}

#[tokio::test]
async fn a_store_that_takes_no_mark_refuses_before_anything_is_done() {
    let (store, api) = api().await;
    store.fail_next(1, CommitError::Full("disk".to_owned()));
    let refused = ask(&api, "POST", "/tenants", &[KEY], json!({"name": "shop"})).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::SERVICE_UNAVAILABLE, "storage_full"));
    assert_eq!(ask(&api, "GET", "/tenants/shop", &[], Value::Null).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_secret_is_never_stored_and_a_repeat_is_told_what_was_made() {
    let (store, api) = api().await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let user = json!({"tenant": "shop", "email": "anna@example.com", "role": "owner"});
    for (number, (path, new, id, secret)) in [
        ("/keys", json!({"tenant": "shop", "scopes": ["queue:read"]}), "/key/id", "/text"),
        ("/smtp-accounts", json!({"tenant": "shop"}), "/account/login", "/password"),
        ("/users", user, "/user/id", "/token"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("secret-{number}");
        let made = ask(&api, "POST", path, &[("idempotency-key", &name)], new.clone()).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let secret = made.body.pointer(secret).and_then(Value::as_str).unwrap().to_owned();
        let again = ask(&api, "POST", path, &[("idempotency-key", &name)], new).await;
        assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "idempotent_answer_not_kept"), "{path}");
        assert!(again.is_replayed());
        let id = made.body.pointer(id).and_then(Value::as_str).unwrap();
        assert!(again.body["detail"].as_str().unwrap().contains(id), "{}", again.body);
        let holds = |value: &[u8]| value.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!kept(&store).iter().any(|(_, value)| holds(value)), "{path} left its secret in the store");
    }
}

#[tokio::test]
async fn a_request_under_way_is_not_begun_again_and_what_a_crash_left_is_not_guessed() {
    use super::replay::tests_of_marks as marks;
    let (store, _) = api().await;
    let replays = Replays::new(store.clone());
    let now = Timestamp(1_800_000_000_000);
    let turn = marks::begin(&replays, "a", now).await.unwrap();
    let told = marks::begin(&replays, "a", now).await.unwrap_err();
    assert_eq!(told, "concurrent_idempotent_requests");
    // The process ends here: nobody finishes.
    drop(turn);
    let api = api_over(store.clone(), Settings::default()).await;
    assert_eq!(marks::begin(&Replays::new(store.clone()), "a", now).await.unwrap(), marks::How::Crashed);
    // The same over HTTP: a mark of this very request, made by a process that ended.
    let first = ask(&api, "POST", "/tenants", &[KEY], json!({"name": "shop"})).await;
    assert_eq!(first.status, StatusCode::CREATED);
    marks::undo_answers(&store).await;
    let restarted = api_over(store, Settings::default()).await;
    let again = ask(&restarted, "POST", "/tenants", &[KEY], json!({"name": "shop"})).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "idempotent_outcome_unknown"));
}

#[tokio::test]
async fn a_key_lapses_after_a_day_and_its_record_goes() {
    use super::replay::tests_of_marks as marks;
    let (store, _) = api().await;
    let replays = Replays::new(store.clone());
    let now = Timestamp(1_800_000_000_000);
    drop(marks::begin(&replays, "a", now).await.unwrap());
    let later = now.plus(super::replay::KEYS_TIME);
    drop(marks::begin(&replays, "b", later).await.unwrap());
    assert_eq!(kept(&store).len(), 4);
    assert_eq!(marks::begin(&replays, "a", later).await.unwrap(), marks::How::First, "as if it had never been");
    assert_eq!(kept(&store).len(), 4, "the old one's place in time is gone");
    let much_later = later.plus(super::replay::KEYS_TIME * 2);
    assert_eq!(marks::sweep(&replays, much_later).await, 2);
    assert!(kept(&store).is_empty());
}

#[tokio::test]
async fn a_clock_ten_years_ahead_lets_no_key_lapse() {
    use super::replay::tests_of_marks as marks;
    let (store, _) = api().await;
    let now = Timestamp(1_800_000_000_000);
    let replays = Replays::new(store.clone()).with_calendar(crate::calendar::Calendar::resume(None, now));
    let jumped = now.plus(std::time::Duration::from_secs(3_650 * 86_400));
    drop(marks::begin(&replays, "a", now).await.unwrap());
    assert_eq!(marks::begin(&replays, "a", jumped).await.unwrap(), marks::How::Crashed, "it is known");
    drop(marks::begin(&replays, "b", jumped).await.unwrap());
    assert_eq!(marks::begin(&replays, "b", now).await.unwrap(), marks::How::Crashed, "and so is a new one");
}

#[tokio::test]
async fn one_actor_cannot_fill_the_store_with_keys() {
    use super::replay::tests_of_marks as marks;
    let (store, _) = api().await;
    let replays = Replays::new(store.clone());
    let now = Timestamp(1_800_000_000_000);
    drop(marks::begin(&replays, "a", now).await.unwrap());
    marks::pretend_held(&replays, super::replay::KEYS_PER_ACTOR_MAX);
    assert_eq!(marks::begin(&replays, "b", now).await.unwrap_err(), "too_many_idempotency_keys");
    assert_eq!(marks::begin(&replays, "a", now).await.unwrap(), marks::How::Crashed, "known ones are answered");
}

#[tokio::test]
async fn a_malformed_key_is_refused_and_other_methods_have_none() {
    let (_, api) = api().await;
    let long = "x".repeat(256);
    for key in ["", "two words", &long] {
        let answer = ask(&api, "POST", "/tenants", &[("idempotency-key", key)], json!({"name": "shop"})).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_idempotency_key"), "{key:?}");
    }
    let twice = ask(&api, "POST", "/tenants", &[KEY, KEY], json!({"name": "shop"})).await;
    assert_eq!(twice.code(), "invalid_idempotency_key");
    assert_eq!(ask(&api, "GET", "/tenants", &[KEY], Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_change_of_what_somebody_else_changed_meanwhile_is_refused() {
    let (_, api) = api().await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let seen = ask(&api, "GET", "/tenants/shop", &[], Value::Null).await;
    let tag = seen.headers["etag"].to_str().unwrap().to_owned();
    let changed = ask(&api, "PATCH", "/tenants/shop", &[("if-match", &tag)], json!({"suspended": true})).await;
    assert_eq!(changed.status, StatusCode::OK);
    let new_tag = changed.headers["etag"].to_str().unwrap().to_owned();
    assert_ne!(tag, new_tag);
    for method in ["PATCH", "DELETE"] {
        let late = ask(&api, method, "/tenants/shop", &[("if-match", &tag)], json!({"suspended": false})).await;
        assert_eq!((late.status, late.code()), (StatusCode::PRECONDITION_FAILED, "precondition_failed"));
        assert_eq!(late.headers["etag"].to_str().unwrap(), new_tag, "it is told what it is now");
    }
    let (_, stands) = call(&api, "GET", "/tenants/shop", Value::Null).await;
    assert_eq!(stands["suspended"], true);
    let either = format!("\"other\", {new_tag}");
    let matched = ask(&api, "PATCH", "/tenants/shop", &[("if-match", &either)], json!({"suspended": false})).await;
    assert_eq!(matched.status, StatusCode::OK);
    let any = ask(&api, "DELETE", "/tenants/shop", &[("if-match", "*")], Value::Null).await;
    assert_eq!(any.status, StatusCode::NO_CONTENT);
    let gone = ask(&api, "DELETE", "/tenants/shop", &[("if-match", "*")], Value::Null).await;
    assert_eq!(gone.status, StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn of_many_changes_that_saw_the_same_one_is_made() {
    let (_, api) = api().await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let seen = ask(&api, "GET", "/tenants/shop", &[], Value::Null).await;
    let tag = seen.headers["etag"].to_str().unwrap().to_owned();
    let change = |hourly: u64| {
        let (api, tag) = (api.clone(), tag.clone());
        tokio::spawn(async move {
            let limits = json!({"limits": {"hourly": hourly}});
            ask(&api, "PATCH", "/tenants/shop", &[("if-match", &tag)], limits).await.status
        })
    };
    let asked: Vec<_> = (1..=16).map(change).collect();
    let mut made = 0;
    for answer in asked {
        match answer.await.unwrap() {
            StatusCode::OK => made += 1,
            other => assert_eq!(other, StatusCode::PRECONDITION_FAILED),
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn what_another_tenant_has_is_not_told_by_its_tag() {
    use crate::access::Role;
    use crate::mail::TenantId;
    let (_, api) = api().await;
    call(&api, "POST", "/tenants", json!({"name": "rival"})).await;
    let stranger = || Actor::of("key x", Role::TenantOwner(TenantId(9)));
    let headers = [("if-match", "*")];
    let answer = ask_as(&api, stranger(), ("PATCH", "/tenants/rival"), &headers, json!({"suspended": true})).await;
    let nothing = ask_as(&api, stranger(), ("PATCH", "/tenants/nowhere"), &headers, json!({"suspended": true})).await;
    assert_eq!((answer.status, nothing.status), (StatusCode::PRECONDITION_FAILED, StatusCode::PRECONDITION_FAILED));
    assert!(!answer.headers.contains_key("etag"));
    assert_eq!(answer.body["detail"], nothing.body["detail"]);
}

#[tokio::test]
async fn a_problem_says_where_it_is_explained() {
    let (_, api) = api().await;
    let answer = ask(&api, "GET", "/tenants/nobody", &[], Value::Null).await;
    assert_eq!(answer.body["doc"], "/api/reference#code-not_found");
}

async fn import(api: &Router, key: &str, pieces: Vec<Vec<u8>>) -> Answer {
    let path = "/api/v1/tenants/shop/suppression-imports";
    let request = Request::builder().method("POST").uri(path).header("content-type", "text/csv");
    let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let mut request = request.header("idempotency-key", key).body(body).unwrap();
    request.extensions_mut().insert(Actor::local(0));
    let answer = api.clone().oneshot(request).await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

#[tokio::test]
async fn a_large_file_with_a_key_is_imported_once() {
    let (store, api) = api().await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    // More than a body elsewhere may have.
    let piece = |letter: &str| format!("{}@example.org\n", letter.repeat(50)).repeat(1_000).into_bytes();
    let file = |letter: &str| vec![piece(letter); 40];
    let octets: usize = file("a").iter().map(Vec::len).sum();
    assert!(octets > Settings::default().body_bytes_max);
    let first = import(&api, "list-1", file("a")).await;
    assert_eq!((first.status, first.is_replayed()), (StatusCode::ACCEPTED, false), "{}", first.body);
    let again = import(&api, "list-1", file("a")).await;
    assert_eq!((again.status, again.is_replayed()), (StatusCode::ACCEPTED, true), "{}", again.body);
    assert_eq!(again.body, first.body);
    let other = import(&api, "list-1", file("b")).await;
    assert_eq!((other.status, other.code()), (StatusCode::CONFLICT, "invalid_idempotent_request"), "{}", other.body);
    let (_, list) = call(&api, "GET", "/tenants/shop/operations", Value::Null).await;
    assert_eq!(list["rows"].as_array().map(Vec::len), Some(1), "{list}");
    super::replay::tests_of_marks::undo_answers(&store).await;
    let api = api_over(store, Settings::default()).await;
    let crashed = import(&api, "list-1", file("a")).await;
    assert_eq!(crashed.code(), "idempotent_outcome_unknown", "{}", crashed.body);
}

#[tokio::test]
async fn a_file_that_stops_coming_is_given_up_and_leaves_nothing() {
    let settings = Settings { request_patience: std::time::Duration::from_millis(50), ..Settings::default() };
    let store = Arc::new(MemoryStore::new());
    let api = api_over(store, settings).await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("a@example.org\n")]);
    let stuck = futures_util::StreamExt::chain(begun, futures_util::stream::pending());
    let mut request = Request::builder()
        .method("POST")
        .uri("/api/v1/tenants/shop/suppression-imports")
        .header("content-type", "text/csv")
        .body(Body::from_stream(stuck))
        .unwrap();
    request.extensions_mut().insert(Actor::local(0));
    let answer = api.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(problem["code"], "too_slow");
}
