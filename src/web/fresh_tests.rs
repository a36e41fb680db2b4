//! Every operation as a person sees it whose last proof is old: what is in the table asks, and nothing else does.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Settings;
use super::document::{FRESH, asks};
use super::door_tests::{Sent, ask, log_in, operations, person};
use super::tests::{api_over, call};
use crate::access::PROOF_FRESH;
use crate::events::{History, history_key};
use crate::ext::Timestamp;
use crate::mail::{Address, QueueId, ReversePath, TenantId};
use crate::people::Session;
use crate::store::{Batch, MemoryStore, Store, codec, prefix};

fn settings() -> Settings {
    Settings { requests_per_minute_max: 1_000_000, ..Settings::default() }
}

async fn made(api: &Router, path: &str, body: Value) -> Value {
    let (status, made) = call(api, "POST", path, body).await;
    assert!(status.is_success(), "{path}: {made}");
    made
}

/// A message of which only the history is left.
async fn finished_message(store: &MemoryStore, tenant: TenantId) -> QueueId {
    let id = QueueId::new(Timestamp::now());
    let history = History {
        tenant,
        accepted: Timestamp::now(),
        reverse_path: ReversePath(None),
        header_from: String::new(),
        subject: String::new(),
        message_id: String::new(),
        recipients: vec![Address::parse("x@example.org").unwrap()],
        labels: Default::default(),
        entry: None,
        returns: None,
        signed: None,
    };
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    store.commit(batch).await.unwrap();
    id
}

/// One of each, and what stands for it in a path.
async fn things(api: &Router, store: &MemoryStore) -> Vec<(&'static str, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    made(api, "/tenants", json!({"name": "shop"})).await;
    let tenant = {
        let stored = store.range(&[prefix::AUDIT], &[prefix::AUDIT + 1], 100).unwrap();
        let chain = stored.iter().find(|(key, _)| key.get(1) == Some(&b't')).unwrap();
        TenantId(u64::from_be_bytes(chain.0[2..10].try_into().unwrap()))
    };
    made(api, "/tenants/shop/domains", json!({"domain": "shop.example.com"})).await;
    let account = made(api, "/smtp-accounts", json!({"tenant": "shop"})).await;
    let vip = made(api, "/vips", json!({"ipv4": "192.0.2.9", "ehlo": "a.example.com", "shared": true})).await;
    let relay = json!({"to": "x.example", "host": "relay.example", "port": 587, "tls": "starttls"});
    let route = made(api, "/routes", relay).await;
    let key = made(api, "/keys", json!({"tenant": "shop", "scopes": ["queue:read"]})).await;
    let webhook = made(api, "/tenants/shop/webhooks", json!({"url": "https://hook.example.com/in"})).await;
    let export = made(api, "/tenants/shop/export", Value::Null).await;
    let user = person(api, "shop", "anna@example.com", "owner").await;
    vec![
        ("tenant", "shop".to_owned()),
        ("domain", "shop.example.com".to_owned()),
        ("subject", "x@example.org".to_owned()),
        ("login", text(&account["account"]["login"])),
        ("user", text(&user)),
        ("key", text(&key["key"]["id"])),
        ("session", "0".repeat(52)),
        ("id", finished_message(store, tenant).await.to_string()),
        ("vip", text(&vip["id"])),
        ("route", text(&route["id"])),
        ("site", "gmail".to_owned()),
        ("operation", text(&export["id"])),
        ("webhook", text(&webhook["webhook"]["id"])),
        ("attempt", "0".repeat(26)),
        ("letter", "0".repeat(20)),
        ("sweep", "0".to_owned()),
        ("trace", "0".to_owned()),
        ("passkey", "0".repeat(16)),
        ("rule", "0".to_owned()),
    ]
}

/// What is asked, whole where it must get as far as the room.
fn body(method: &str, path: &str) -> Value {
    match (method, path) {
        ("post", "/users") => json!({"tenant": "shop", "email": "new@example.com", "role": "support"}),
        ("patch", "/users/{user}") => json!({"locked": true}),
        ("put", "/second-factor-policy") => json!({"required_of": ["owner"]}),
        ("post", "/session/password") => json!({"password": "another horse entirely"}),
        ("post", "/session/second-factor/prove") => json!({"code": "123456"}),
        ("post", "/session/passkeys") => json!({"name": "key", "credential": {}}),
        ("patch", "/session/passkeys/{passkey}") => json!({"name": "another"}),
        ("post", "/keys") => json!({"tenant": "shop", "scopes": ["queue:read"]}),
        ("patch", "/keys/{key}") => json!({"name": "another"}),
        ("post", "/smtp-accounts") => json!({"tenant": "shop"}),
        ("post", "/tenants/{tenant}/webhooks") => json!({"url": "https://hook.example.com/other"}),
        ("patch", "/tenants/{tenant}/webhooks/{webhook}") => json!({"name": "another"}),
        ("post", "/queue-sweeps") => json!({"act": "cancel", "filter": {"tenant": "shop"}, "reason": "x"}),
        ("post", "/routes") => json!({"to": "y.example", "host": "relay.example", "port": 587, "tls": "starttls"}),
        ("patch", "/routes/{route}") => json!({"port": 588}),
        ("get", _) | ("delete", _) => Value::Null,
        _ => json!({}),
    }
}

/// As after a wait: the proof of every session is old.
async fn let_proofs_age(store: &Arc<MemoryStore>) {
    let mut batch = Batch::new();
    for (key, value) in store.range(&[prefix::SESSION], &[prefix::SESSION + 1], 100).unwrap() {
        let mut session: Session = codec::decode(&value).unwrap();
        let age = u64::try_from(PROOF_FRESH.as_millis()).unwrap() + 60_000;
        session.proved = Timestamp(session.proved.0 - age);
        batch.set(key, codec::encode(&session));
    }
    store.commit(batch).await.unwrap();
}

#[tokio::test]
async fn what_is_in_the_table_asks_a_person_for_a_fresh_proof_and_nothing_else_does() {
    let store = Arc::new(MemoryStore::new());
    let api = api_over(store.clone(), settings()).await;
    let names = things(&api, &store).await;
    person(&api, "@instance", "root@example.com", "instance-admin").await;
    let (cookie, token) = log_in(&api, "root@example.com").await;
    let root = Sent::default().with("cookie", cookie).with("x-csrf-token", token);
    let filled = |path: &str| {
        names.iter().fold(path.to_owned(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value))
    };
    let_proofs_age(&store).await;
    let api = api_over(store.clone(), settings()).await;
    let count = || store.range(&[prefix::AUDIT], &[prefix::AUDIT + 1], usize::MAX).unwrap().len();
    let before = count();
    let mut silent = Vec::new();
    for (method, path, act) in FRESH {
        let sent = if *path == "/second-factor-policy" { "/second-factor-policy?tenant=shop" } else { path };
        let answer = ask(&api, &root, &method.to_uppercase(), &filled(sent), body(method, path)).await;
        if answer.status != StatusCode::FORBIDDEN || answer.body["code"] != "confirm_identity" {
            silent.push(format!("{act}: {method} {path} {} {}", answer.status, answer.body));
        }
    }
    assert!(silent.is_empty(), "these ask nothing: {silent:#?}");
    assert_eq!(count(), before, "nothing was done");
    let mut asked = 0;
    for (method, path) in operations() {
        let method = method.to_lowercase();
        // Logging out, what waits for something to happen, and rejected lines, of which an export has none: all
        // files of a whole tenant's export are asked for alike.
        let is_other = path == "/session" || path.starts_with("/traces/{trace}") || path.ends_with("/rejected");
        if asks(&method, &path) || is_other {
            continue;
        }
        let answer = ask(&api, &root, &method.to_uppercase(), &filled(&path), body(&method, &path)).await;
        assert_ne!(answer.body["code"], "confirm_identity", "{method} {path} is not in the table");
        asked += 1;
    }
    assert!(asked > 60, "{asked}");
    let hold = json!({"act": "hold", "filter": {"tenant": "shop"}, "seconds": 60});
    assert!(ask(&api, &root, "POST", "/queue-sweeps", hold).await.status.is_success());
}

#[tokio::test]
async fn a_confirmation_opens_the_way_and_a_key_needs_none() {
    let store = Arc::new(MemoryStore::new());
    let api = api_over(store.clone(), settings()).await;
    things(&api, &store).await;
    let (cookie, token) = log_in(&api, "anna@example.com").await;
    let scopes = json!({"tenant": "shop", "scopes": ["domains:write"]});
    let key = Sent::key(&made(&api, "/keys", scopes).await["text"]);
    let_proofs_age(&store).await;
    let api = api_over(store.clone(), settings()).await;
    let anna = Sent::default().with("cookie", cookie).with("x-csrf-token", token);
    let rotation = "/tenants/shop/domains/shop.example.com/rotate";
    assert_eq!(ask(&api, &anna, "POST", rotation, Value::Null).await.status, StatusCode::FORBIDDEN);
    let password = json!({"password": super::door_tests::PASSWORD});
    let confirmed = ask(&api, &anna, "POST", "/session/confirm", password).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{}", confirmed.body);
    let cookie = confirmed.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let token = confirmed.body["csrf_token"].as_str().unwrap().to_owned();
    let anew = Sent::default().with("cookie", cookie).with("x-csrf-token", token);
    assert_eq!(ask(&api, &anna, "POST", rotation, Value::Null).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&api, &anew, "POST", rotation, Value::Null).await.status, StatusCode::OK);
    assert_eq!(ask(&api, &key, "POST", rotation, Value::Null).await.status, StatusCode::OK);
}
