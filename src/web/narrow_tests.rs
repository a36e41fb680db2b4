//! Who is bound to some SMTP accounts or sending domains, over the API: each sees and changes its part in every
//! room, and nothing of the whole tenant. And changes of several fields, which are made whole or not at all.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Settings;
use super::door_tests::{Sent, ask, log_in, two_shops};
use super::tests::call;

/// Makes an SMTP account of the shop with an entry on its blacklist; its login.
async fn account(api: &axum::Router) -> String {
    let (_, made) = call(api, "POST", "/smtp-accounts", json!({"tenant": "shop"})).await;
    let login = made["account"]["login"].as_str().unwrap().to_owned();
    let list = format!("/tenants/shop/suppressions?smtp_account={login}");
    for subject in ["x@example.org", "z@example.org"] {
        assert_eq!(call(api, "POST", &list, json!({"subject": subject})).await.0, StatusCode::CREATED);
    }
    login
}

/// A person of the shop bound to these accounts, logged in.
async fn bound(api: &axum::Router, role: &str, matrix: Value) -> Sent {
    let email = format!("{role}-bound@example.com");
    let new = json!({"tenant": "shop", "email": email, "role": role, "smtp_accounts": matrix});
    let (status, link) = call(api, "POST", "/users", new).await;
    assert_eq!(status, StatusCode::CREATED, "{link}");
    let follow = json!({"token": link["token"], "password": super::door_tests::PASSWORD});
    assert_eq!(ask(api, &Sent::default(), "POST", "/session/redeem", follow).await.status, StatusCode::OK);
    let (cookie, token) = log_in(api, &email).await;
    Sent::default().with("cookie", cookie).with("x-csrf-token", token)
}

async fn begun(api: &axum::Router, login: Option<&str>) -> String {
    let query = login.map(|login| format!("?smtp_account={login}")).unwrap_or_default();
    let path = format!("/tenants/shop/suppression-exports{query}");
    let (status, made) = call(api, "POST", &path, Value::Null).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_matrix_of_none_read_and_write_holds_in_every_room() {
    let api = two_shops(Settings { requests_per_minute_max: 1_000_000, ..Settings::default() }).await;
    let logins = [account(&api).await, account(&api).await, account(&api).await];
    // Three operations per account would be more than a tenant may have under way.
    let mut operations = Vec::new();
    for login in &logins {
        operations.push(begun(&api, Some(login)).await);
    }
    let person = bound(&api, "developer", json!({&logins[1]: "read", &logins[2]: "write"})).await;
    let (hidden, refused) = (StatusCode::NOT_FOUND, StatusCode::FORBIDDEN);
    let (ok, created, accepted, empty) =
        (StatusCode::OK, StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::NO_CONTENT);
    let readable = |answer| [hidden, answer, answer];
    let writable = |answer| [hidden, refused, answer];
    let add = json!({"subject": "y@example.org"});
    let change = json!({"add": [{"subject": "w@example.org"}], "remove": ["z@example.org"]});
    let letter = json!({"tenant": "shop", "from": "a@shop.example.com", "to": ["b@example.org"], "subject": "s",
        "text": "t", "smtp_account": "LOGIN"});
    for (method, path, body, expected) in [
        ("GET", "/smtp-accounts/LOGIN", Value::Null, readable(ok)),
        ("GET", "/smtp-accounts/LOGIN/logins", Value::Null, readable(ok)),
        ("PATCH", "/smtp-accounts/LOGIN", json!({"name": "Web shop"}), writable(ok)),
        ("POST", "/smtp-accounts/LOGIN/rotate", Value::Null, writable(ok)),
        ("POST", "/smtp-accounts/LOGIN/finish-rotation", Value::Null, writable(ok)),
        ("GET", "/tenants/shop/suppressions?smtp_account=LOGIN", Value::Null, readable(ok)),
        ("GET", "/tenants/shop/suppressions/x%40example.org?smtp_account=LOGIN", Value::Null, readable(ok)),
        ("POST", "/tenants/shop/suppressions?smtp_account=LOGIN", add, writable(created)),
        ("PATCH", "/tenants/shop/suppressions?smtp_account=LOGIN", change, writable(ok)),
        ("DELETE", "/tenants/shop/suppressions/x%40example.org?smtp_account=LOGIN", Value::Null, writable(empty)),
        ("GET", "/tenants/shop/operations/OPERATION", Value::Null, readable(ok)),
        ("POST", "/tenants/shop/operations/OPERATION/cancel", Value::Null, writable(ok)),
        ("GET", "/statistics?smtp_account=LOGIN", Value::Null, readable(ok)),
        ("GET", "/queue?tenant=shop&smtp_account=LOGIN", Value::Null, readable(ok)),
        ("GET", "/messages?smtp_account=LOGIN", Value::Null, readable(ok)),
        // Without a virtual IP nothing can leave: who may send gets that far.
        ("POST", "/messages", letter, writable(StatusCode::UNPROCESSABLE_ENTITY)),
    ] {
        for ((login, operation), expected) in logins.iter().zip(&operations).zip(expected) {
            let named = |text: &str| text.replace("LOGIN", login).replace("OPERATION", operation);
            let body: Value = serde_json::from_str(&named(&body.to_string())).unwrap();
            let answer = ask(&api, &person, method, &named(path), body).await;
            assert_eq!(answer.status, expected, "{method} {path} {login}: {}", answer.body);
        }
    }
    let exported = |login: &str| format!("/tenants/shop/suppression-exports?smtp_account={login}");
    assert_eq!(ask(&api, &person, "POST", &exported(&logins[0]), Value::Null).await.status, hidden);
    assert_eq!(ask(&api, &person, "POST", &exported(&logins[1]), Value::Null).await.status, accepted);
    let listed = ask(&api, &person, "GET", "/tenants/shop/operations", Value::Null).await;
    let own: Vec<&str> = listed.body["rows"].as_array().unwrap().iter().filter_map(|row| row["id"].as_str()).collect();
    assert!(own.len() == 3 && !own.contains(&operations[0].as_str()), "{own:?}");
    let listed = ask(&api, &person, "GET", "/smtp-accounts", Value::Null).await;
    assert_eq!(listed.body["rows"].as_array().unwrap().len(), 2, "of four");
}

/// What is of the whole tenant, each with what is asked.
fn of_the_whole(webhook: &str, operation: &str) -> Vec<(&'static str, String, Value)> {
    let hook = json!({"url": "https://evil.example.com/in"});
    let window = json!({"from": "2027-01-01T00:00:00Z", "to": "2027-01-02T00:00:00Z"});
    let add = json!({"subject": "y@example.org"});
    let own = |path: &str| format!("/tenants/shop/webhooks/{webhook}{path}");
    let list = "/tenants/shop/suppressions";
    vec![
        ("GET", "/tenants/shop/webhooks".to_owned(), Value::Null),
        ("POST", "/tenants/shop/webhooks".to_owned(), hook.clone()),
        ("GET", own(""), Value::Null),
        ("PATCH", own(""), hook),
        ("DELETE", own(""), Value::Null),
        ("POST", own("/rotate"), json!({})),
        ("POST", own("/test"), Value::Null),
        ("GET", own("/attempts"), Value::Null),
        ("POST", own("/replay"), window),
        ("GET", list.to_owned(), Value::Null),
        ("GET", format!("{list}/t%40example.org"), Value::Null),
        ("POST", list.to_owned(), add.clone()),
        ("POST", format!("{list}?list=white"), add.clone()),
        ("PATCH", list.to_owned(), json!({"add": [add]})),
        ("DELETE", format!("{list}/t%40example.org"), Value::Null),
        ("POST", "/tenants/shop/suppression-exports".to_owned(), Value::Null),
        ("POST", "/tenants/shop/suppression-imports".to_owned(), json!("x@example.org")),
        ("GET", "/tenants/shop/suppression-rules".to_owned(), Value::Null),
        ("GET", format!("/tenants/shop/operations/{operation}"), Value::Null),
        ("POST", format!("/tenants/shop/operations/{operation}/cancel"), Value::Null),
        ("POST", "/tenants/shop/export".to_owned(), Value::Null),
        ("POST", "/traces".to_owned(), json!({"tenant": "shop"})),
        ("GET", "/audit?tenant=shop".to_owned(), Value::Null),
        ("GET", "/audit/verify?tenant=shop".to_owned(), Value::Null),
    ]
}

#[tokio::test]
async fn nothing_of_the_whole_tenant_is_for_whoever_is_bound_to_accounts_or_domains() {
    let api = two_shops(Settings { requests_per_minute_max: 1_000_000, ..Settings::default() }).await;
    let login = account(&api).await;
    call(&api, "POST", "/tenants/shop/suppressions", json!({"subject": "t@example.org"})).await;
    let hook = json!({"url": "https://hook.example.com/in"});
    let (_, made) = call(&api, "POST", "/tenants/shop/webhooks", hook).await;
    let webhook = made["webhook"]["id"].as_str().unwrap().to_owned();
    let operation = begun(&api, None).await;
    let scopes: Vec<String> =
        ["tenant", "users", "keys", "smtp-accounts", "domains", "suppressions", "queue", "messages", "webhooks"]
            .iter()
            .map(|scope| format!("{scope}:write"))
            .chain(["statistics:read".to_owned(), "audit:read".to_owned()])
            .collect();
    let new = json!({"tenant": "shop", "scopes": scopes, "domains": ["shop.example.com"]});
    let (status, key) = call(&api, "POST", "/keys", new).await;
    assert_eq!(status, StatusCode::CREATED, "{key}");
    let key = Sent::key(&key["text"]);
    let owner = bound(&api, "owner", json!({&login: "write"})).await;
    let (_, before) = call(&api, "GET", "/audit?tenant=shop&limit=1", Value::Null).await;
    for (who, sent) in [("owner", &owner), ("key", &key)] {
        for (method, path, body) in of_the_whole(&webhook, &operation) {
            let answer = ask(&api, sent, method, &path, body).await;
            let is_kept_out = [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&answer.status);
            assert!(is_kept_out, "{who} {method} {path}: {} {}", answer.status, answer.body);
        }
    }
    let (_, after) = call(&api, "GET", "/audit?tenant=shop&limit=1", Value::Null).await;
    assert_eq!(before["rows"][0]["number"], after["rows"][0]["number"], "nothing was done");
    let why = ask(&api, &owner, "GET", "/tenants/shop/webhooks", Value::Null).await;
    assert!(why.body["detail"].as_str().unwrap().contains("bound to some SMTP accounts"), "{}", why.body);

    // What a sending domain does not tell apart is not for a key that is bound to some.
    let path = format!("/smtp-accounts/{login}");
    for (method, path, body) in [
        ("GET", "/statistics".to_owned(), Value::Null),
        ("GET", "/statistics?by=domain".to_owned(), Value::Null),
        ("GET", "/statistics/csv".to_owned(), Value::Null),
        ("GET", "/tenants/shop/operations".to_owned(), Value::Null),
        ("GET", format!("/tenants/shop/suppressions?smtp_account={login}"), Value::Null),
        ("PATCH", path.clone(), json!({"allowed_senders": ["shop.example.com"]})),
        ("DELETE", path, Value::Null),
    ] {
        let answer = ask(&api, &key, method, &path, body).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}: {}", answer.body);
    }
    for query in ["by=sending_domain", "sending_domain=shop.example.com", "by=sending_domain&step=hour"] {
        for path in ["/statistics", "/statistics/csv"] {
            let answer = ask(&api, &key, "GET", &format!("{path}?{query}"), Value::Null).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}?{query}: {}", answer.body);
        }
    }
    for path in ["/tenants/shop/domains/shop.example.com", "/messages", "/queue?tenant=shop&sender=shop.example.com"] {
        let answer = ask(&api, &key, "GET", path, Value::Null).await;
        assert!([StatusCode::OK, StatusCode::NOT_FOUND].contains(&answer.status), "{path}: {}", answer.body);
    }
    assert_eq!(ask(&api, &owner, "GET", "/statistics", Value::Null).await.status, StatusCode::OK, "its own part");
}

#[tokio::test]
async fn a_change_with_one_wrong_field_changes_nothing() {
    let api = two_shops(Settings::default()).await;
    let vip = json!({"ipv4": "192.0.2.9", "ehlo": "rival.example.com", "tenant": "rival"});
    assert_eq!(call(&api, "POST", "/vips", vip).await.0, StatusCode::CREATED);
    let (_, accounts) = call(&api, "GET", "/smtp-accounts?tenant=shop", Value::Null).await;
    let account = format!("/smtp-accounts/{}", accounts["rows"][0]["login"].as_str().unwrap());
    let long = "x".repeat(1_000);
    for (path, change) in [
        ("/tenants/shop", json!({"suspended": true, "limits": {"hourly": 1}, "region": long})),
        ("/tenants/shop", json!({"suspended": true, "delay_notices_always": true, "retention_days": 60_000})),
        ("/tenants/shop", json!({"suspended": true, "region": "EU", "default_vip": "192.0.2.77"})),
        ("/tenants/shop", json!({"suspended": true, "region": "EU", "default_vip": "192.0.2.9"})),
        (&account, json!({"class": "marketing", "allowed_from": ["192.0.2.0/24"], "name": long})),
        (&account, json!({"disabled": true, "limits": {"daily": 1}, "allowed_senders": ["not a domain"]})),
        (&account, json!({"class": "marketing", "allowed_from": vec!["192.0.2.0/24"; 51]})),
    ] {
        let (_, before) = call(&api, "GET", path, Value::Null).await;
        let (status, problem) = call(&api, "PATCH", path, change.clone()).await;
        assert!(status.is_client_error(), "{change}: {problem}");
        let (_, after) = call(&api, "GET", path, Value::Null).await;
        assert_eq!(before, after, "{change}");
    }
    let both = json!({"suspended": true, "region": "EU"});
    assert_eq!(call(&api, "PATCH", "/tenants/shop", both).await.1["region"], "EU");
    let (_, audit) = call(&api, "GET", "/audit?tenant=shop&limit=2", Value::Null).await;
    let acts = json!([audit["rows"][0]["act"], audit["rows"][1]["act"]]);
    assert_eq!(acts, json!(["tenant.region", "tenant.suspend"]), "each field is an act of its own");
}

#[tokio::test]
async fn a_tenant_that_has_nothing_any_more_leaves_nothing_behind() {
    use crate::store::{MemoryStore, Store, prefix};
    let store = std::sync::Arc::new(MemoryStore::new());
    let api = super::tests::api_over(store.clone(), Settings::default()).await;
    let keys = || store.range(&[0], &[u8::MAX], usize::MAX).unwrap().into_iter().map(|(key, _)| key);
    call(&api, "POST", "/tenants", json!({"name": "stays"})).await;
    let before: std::collections::BTreeSet<Vec<u8>> = keys().collect();
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let list = "/tenants/shop/suppressions";
    assert_eq!(call(&api, "POST", list, json!({"subject": "x@example.org"})).await.0, StatusCode::CREATED);
    let rules = json!({"hard_bounces": 3});
    assert!(call(&api, "PATCH", "/tenants/shop/suppression-rules", rules).await.0.is_success());
    let policy = json!({"required_of": ["owner"]});
    assert!(call(&api, "PUT", "/second-factor-policy?tenant=shop", policy).await.0.is_success());
    let (status, problem) = call(&api, "DELETE", "/tenants/shop", Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    assert_eq!(problem["detail"], "tenant shop still has entries of black- or whitelists");
    let (_, operation) = call(&api, "POST", "/tenants/shop/suppression-exports", Value::Null).await;
    assert_eq!(call(&api, "DELETE", &format!("{list}/x%40example.org"), Value::Null).await.0, StatusCode::NO_CONTENT);
    let (_, problem) = call(&api, "DELETE", "/tenants/shop", Value::Null).await;
    assert_eq!(problem["detail"], "tenant shop still has 1 imports or exports under way", "{operation}");
    let parts = super::tests::parts_over(store.clone()).await;
    let shutdown = crate::background::Shutdown::new();
    let running = tokio::spawn(parts.operations.clone().run(shutdown.clone()));
    let tenant = parts.accounts.tenant_named("shop").unwrap().id;
    while parts.operations.unfinished_of(tenant) > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    shutdown.cancel();
    running.await.unwrap();
    let api = super::router(parts, &Settings::default());
    assert_eq!(call(&api, "DELETE", "/tenants/shop", Value::Null).await.0, StatusCode::NO_CONTENT);
    let left: Vec<String> = keys()
        .filter(|key| !before.contains(key) && ![prefix::AUDIT, prefix::EVENT].contains(&key[0]))
        .map(|key| key.escape_ascii().to_string())
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(call(&api, "GET", "/tenants/stays", Value::Null).await.0, StatusCode::OK);
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once_whoever_finds_it() {
    let api = two_shops(Settings::default()).await;
    let (_, accounts) = call(&api, "GET", "/smtp-accounts?tenant=shop", Value::Null).await;
    let account = format!("/smtp-accounts/{}", accounts["rows"][0]["login"].as_str().unwrap());
    let (_, hook) = call(&api, "POST", "/tenants/shop/webhooks", json!({"url": "https://hook.example.com/in"})).await;
    let hook = format!("/tenants/shop/webhooks/{}", hook["webhook"]["id"].as_str().unwrap());
    let long = "x".repeat(1_000);
    let many = vec!["192.0.2.0/24"; 1_000];
    for (method, path, body, fields) in [
        ("POST", "/tenants", json!({"name": "Bad Name"}), vec!["name"]),
        ("PATCH", "/tenants/shop", json!({"region": long, "retention_days": 9_999}), vec!["region", "retention_days"]),
        ("POST", "/tenants/shop/deletion", json!({"grace_days": 91}), vec!["grace_days"]),
        ("PATCH", &account, json!({"name": long, "allowed_from": many}), vec!["allowed_from", "name"]),
        (
            "PATCH",
            &account,
            json!({"allowed_from": ["x", "192.0.2.1", "y"], "allowed_senders": ["a b"], "expires": "soon",
                "header_dialects": ["pigeon"]}),
            vec!["allowed_from[0]", "allowed_from[2]", "allowed_senders[0]", "expires", "header_dialects[0]"],
        ),
        ("PATCH", &hook, json!({"url": "http://a.example/", "batch": 0}), vec!["url", "batch"]),
        ("PATCH", &hook, json!({"events": ["message.lost", "message.bounced", "x"]}), vec!["events[0]", "events[2]"]),
        ("PATCH", &hook, json!({"user": "a:b", "password": "c"}), vec!["user"]),
        ("POST", &format!("{hook}/rotate"), json!({"overlap_hours": 9_999}), vec!["overlap_hours"]),
        (
            "PATCH",
            "/tenants/shop/suppression-rules",
            json!({"hard_bounces": 0, "complaint_days": 60_000}),
            vec!["hard_bounces", "complaint_days"],
        ),
        (
            "PATCH",
            "/tenants/shop/suppressions",
            json!({"add": [{"subject": "a b"}, {"subject": "x@example.org"}], "remove": ["c d"]}),
            vec!["add[0].subject", "remove[0]"],
        ),
        ("POST", "/keys", json!({"tenant": "shop", "scopes": []}), vec!["scopes"]),
        ("POST", "/users", json!({"tenant": "shop", "email": "nobody", "role": "support"}), vec!["email"]),
        ("PUT", "/second-factor-policy?tenant=shop", json!({"required_of": ["king"]}), vec!["required_of"]),
        ("POST", "/routes", json!({"to": "a.example", "host": "a b", "port": 25, "tls": "starttls"}), vec!["host"]),
    ] {
        let (status, problem) = call(&api, method, path, body.clone()).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid")),
            "{body}: {problem}"
        );
        let named: Vec<&str> =
            problem["errors"].as_array().into_iter().flatten().filter_map(|error| error["field"].as_str()).collect();
        assert_eq!(named, fields, "{body}: {problem}");
    }
}
