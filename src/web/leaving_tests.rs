//! Tenants that leave: deletion with its grace, and the export of everything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::tests::{call, parts_over};
use super::{Parts, Settings, router};
use crate::access::{Actor, Proof, Role};
use crate::background::Background;
use crate::events::{self, Accepted, Event, EventKind, MailEvent, Tally};
use crate::ext::Timestamp;
use crate::store::{Batch, MemoryStore, Store, prefix};
use crate::tenancy::Outcome;

/// A tenant with something in every room; what else is there before is another tenant's.
async fn furnished() -> (Arc<MemoryStore>, Parts, Router, BTreeSet<Vec<u8>>) {
    let store = Arc::new(MemoryStore::new());
    let parts = parts_over(Arc::clone(&store)).await;
    let api = router(parts.clone(), &Settings::default());
    make(&api, "/tenants", json!({"name": "stays"})).await;
    make(&api, "/tenants/stays/domains", json!({"domain": "stays.example"})).await;
    let before = keys(&store);
    make(&api, "/tenants", json!({"name": "leaves"})).await;
    make(&api, "/tenants/leaves/domains", json!({"domain": "leaves.example"})).await;
    let account = make(&api, "/smtp-accounts", json!({"tenant": "leaves", "name": "Web shop"})).await;
    let login = account["account"]["login"].as_str().unwrap().to_owned();
    make(&api, "/users", json!({"email": "o@leaves.example", "name": "O", "role": "owner", "tenant": "leaves"})).await;
    make(&api, "/keys", json!({"tenant": "leaves", "name": "k", "scopes": ["queue:read"]})).await;
    make(&api, "/tenants/leaves/suppressions", json!({"subject": "no@x.example", "reason": "manual"})).await;
    let white = format!("/tenants/leaves/suppressions?list=white&smtp_account={login}");
    make(&api, &white, json!({"subject": "yes@x.example", "reason": "manual"})).await;
    let hook = json!({"name": "h", "url": "https://hooks.example/in", "events": ["message.delivered"]});
    make(&api, "/tenants/leaves/webhooks", hook).await;
    let vip = json!({"ipv4": "192.0.2.7", "ehlo": "leaves.example", "tenant": "leaves"});
    make(&api, "/vips", vip).await;
    make(&api, "/routes", json!({"tenant": "leaves", "host": "relay.example", "port": 587, "tls": "starttls"})).await;
    make(&api, &format!("/smtp-accounts/{login}/pause"), json!({"reason": "looks wrong"})).await;
    for scope in [json!({"tenant": "leaves"}), json!({"smtp_account": login}), json!({"vip": "leaves.example"})] {
        let mut asked = json!({"reason": "they asked"});
        asked.as_object_mut().unwrap().extend(scope.as_object().unwrap().clone());
        make(&api, "/suspensions", asked).await;
    }
    let act = json!({"act": "hold", "filter": {"tenant": "leaves", "recipient": "no@x.example"}, "seconds": 3600,
        "reason": "until they call"});
    assert_eq!(make(&api, "/queue-sweeps", act).await["number"], 1);
    (store, parts, api, before)
}

async fn make(api: &Router, path: &str, body: Value) -> Value {
    let (status, made) = call(api, "POST", path, body).await;
    assert!(status.is_success(), "{path}: {made}");
    made
}

fn keys(store: &MemoryStore) -> BTreeSet<Vec<u8>> {
    store.range(&[0], &[u8::MAX], usize::MAX).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn id_of(parts: &Parts, name: &str) -> crate::mail::TenantId {
    parts.accounts.tenant_named(name).unwrap().id
}

#[tokio::test]
async fn a_deletion_waits_for_its_grace_and_can_be_taken_back() {
    let (_, parts, api, _) = furnished().await;
    let (status, asked) = call(&api, "POST", "/tenants/leaves/deletion", json!({"grace_days": 3})).await;
    assert_eq!((status, asked["suspended"].as_bool()), (StatusCode::ACCEPTED, Some(true)), "{asked}");
    assert!(asked["deletion"]["due"].is_string());
    let (status, _) = call(&api, "POST", "/tenants/leaves/deletion", json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT, "once is enough");
    let (status, _) = call(&api, "PATCH", "/tenants/leaves", json!({"suspended": false})).await;
    assert!(status.is_client_error(), "a tenant that leaves does not send");
    assert!(parts.tenancy.keep(Timestamp::now()).await.is_empty(), "not yet");
    let (status, undone) = call(&api, "DELETE", "/tenants/leaves/deletion", Value::Null).await;
    assert_eq!((status, undone["suspended"].as_bool()), (StatusCode::OK, Some(false)), "{undone}");
    assert!(undone["deletion"].is_null());
    let (status, _) = call(&api, "DELETE", "/tenants/leaves/deletion", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    for days in [json!(91), json!(-1)] {
        let (status, _) = call(&api, "POST", "/tenants/leaves/deletion", json!({"grace_days": days})).await;
        assert!(status.is_client_error());
    }
}

#[tokio::test]
async fn a_removal_that_mail_came_before_is_refused_and_not_done_later() {
    let (_, parts, api, _) = furnished().await;
    let (leaving, actor, now) = (id_of(&parts, "leaves"), Actor::local(0), Timestamp::now());
    let mut late = crate::queue::tests::message(&["b@there.example"]);
    late.tenant = leaving;
    parts.queue.enqueue(late, now).await.unwrap();
    assert!(parts.tenancy.remove_emptied(&actor, (leaving, &[]), now).await.is_err());
    assert!(!parts.tenancy.is_leaving(leaving));
    assert!(parts.tenancy.keep(now).await.is_empty());
    let (_, tenant) = call(&api, "GET", "/tenants/leaves", Value::Null).await;
    assert_eq!(tenant["suspended"], false, "it sends again: {tenant}");
    let (_, asked) = call(&api, "POST", "/tenants/leaves/deletion", json!({"grace_days": 3})).await;
    assert!(parts.tenancy.remove_emptied(&actor, (leaving, &[]), now).await.is_err());
    let (_, tenant) = call(&api, "GET", "/tenants/leaves", Value::Null).await;
    assert_eq!((&tenant["deletion"], &tenant["suspended"]), (&asked["deletion"], &json!(true)), "its grace goes on");
}

#[tokio::test]
async fn a_deletion_removes_every_record_but_the_logs_and_nothing_of_others() {
    let (store, parts, api, before) = furnished().await;
    call(&api, "POST", "/tenants/leaves/deletion", json!({"grace_days": 0})).await;
    let leaving = id_of(&parts, "leaves");
    let later = Timestamp::now().plus(Duration::from_secs(1));
    assert_eq!(parts.tenancy.keep(later).await, [(leaving, Outcome::Removed)]);
    parts.accounts.persist(later).await.unwrap();
    let after = keys(&store);
    let left: Vec<String> = after
        .difference(&before)
        .filter(|key| ![prefix::AUDIT, prefix::EVENT, prefix::SWEEP].contains(&key[0]))
        .map(|key| key.escape_ascii().to_string())
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(before.difference(&after).count(), 0, "what is others' stays");
    let (status, _) = call(&api, "GET", "/tenants/leaves", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, act) = call(&api, "GET", "/queue-sweeps/1", Value::Null).await;
    let all = json!([act["filter"], act["by"], act["state"]]);
    assert_eq!(all, json!([{}, "", "done"]), "of the last act its number stays: {act}");
    let chained = [&[prefix::AUDIT][..]].concat();
    assert!(!store.range(&chained, &[prefix::AUDIT + 1], 10).unwrap().is_empty(), "the audit log stays");
    assert!(parts.tenancy.keep(later).await.is_empty(), "and it is done");
}

#[tokio::test]
async fn a_deletion_begun_before_a_restart_is_gone_on_with_after_it() {
    let (store, _, api, _) = furnished().await;
    call(&api, "POST", "/tenants/leaves/deletion", json!({"grace_days": 0})).await;
    drop(api);
    let parts = parts_over(store).await;
    let leaving = id_of(&parts, "leaves");
    assert!(parts.tenancy.is_leaving(leaving));
    let later = Timestamp::now().plus(Duration::from_secs(1));
    assert_eq!(parts.tenancy.keep(later).await, [(leaving, Outcome::Removed)]);
}

#[tokio::test]
async fn only_the_instance_deletes_and_only_with_a_fresh_proof() {
    let (_, parts, _, _) = furnished().await;
    let (tenant, now) = (id_of(&parts, "leaves"), Timestamp::now());
    let owner = Actor::of("o", Role::TenantOwner(tenant));
    assert!(parts.tenancy.ask(&owner, tenant, Duration::ZERO, now).await.is_err());
    let old = Timestamp(now.0 - 3_600_000);
    let stale = Actor { proof: Proof::At(old), ..Actor::of("a", Role::InstanceAdmin) };
    let refused = parts.tenancy.ask(&stale, tenant, Duration::ZERO, now).await.unwrap_err();
    assert!(refused.to_string().contains("fresh proof"), "{refused}");
    let stale = Actor { proof: Proof::At(old), ..owner.clone() };
    assert!(parts.operations.export_tenant(&stale, tenant, now).await.is_err());
    for role in [Role::Developer(tenant), Role::Analyst(tenant), Role::Support(tenant)] {
        assert!(parts.operations.export_tenant(&Actor::of("p", role), tenant, now).await.is_err(), "{role:?}");
    }
    let other = Actor::of("x", Role::TenantOwner(id_of(&parts, "stays")));
    assert!(parts.operations.export_tenant(&other, tenant, now).await.is_err());
    assert!(parts.operations.export_tenant(&owner, tenant, now).await.is_ok());
}

/// A message to two recipients was accepted, and counted.
async fn count_a_message(parts: &Parts, tenant: crate::mail::TenantId) {
    let accepted = Accepted {
        tenant,
        account: None,
        vip: crate::mail::VipId(1),
        class: crate::mail::Class::Transactional,
        source: "api".to_owned(),
        size_bytes: 7,
        recipients: 2,
        signatures: vec!["s1._domainkey.leaves.example".to_owned()],
    };
    let now = Timestamp::now();
    let kind = EventKind::Mail(crate::mail::QueueId::new(now), MailEvent::Accepted(accepted));
    let mut batch = Batch::new();
    events::record(&mut batch, &Event { at: now, kind });
    parts.store.commit(batch).await.unwrap();
    let (tally, stop) = (Arc::clone(&parts.statistics) as Arc<dyn Tally>, crate::background::Shutdown::new());
    stop.cancel();
    events::drive_exactly(&*parts.store, &tally, &events::Bell::default(), &stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_what_every_room_has_and_no_secret() {
    let (_, parts, api, _) = furnished().await;
    let tasks = Background::new();
    tasks.spawn("operations", Arc::clone(&parts.operations).run(tasks.shutdown().clone()));
    count_a_message(&parts, id_of(&parts, "leaves")).await;
    let (status, begun) = call(&api, "POST", "/tenants/leaves/export", Value::Null).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{begun}");
    let path = format!("/tenants/leaves/operations/{}", begun["id"].as_str().unwrap());
    let mut operation = begun;
    for _ in 0..600 {
        operation = call(&api, "GET", &path, Value::Null).await.1;
        if operation["state"] == "done" {
            break;
        }
        assert_ne!(operation["state"], "failed", "{operation}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = operation["id"].as_str().unwrap().parse().unwrap();
    let tenant = id_of(&parts, "leaves");
    let actor = Actor::local(0);
    let file = parts.operations.file(&actor, (tenant, id), crate::operations::Part::Result, Timestamp::now()).unwrap();
    let text = String::from_utf8(zstd::decode_all(std::fs::File::open(file).unwrap()).unwrap()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(operation["written"], lines.len());
    let kinds: BTreeSet<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    for kind in [
        "tenant",
        "domain",
        "smtp_account",
        "user",
        "api_key",
        "webhook",
        "blacklist",
        "account_whitelist",
        "operation",
        "audit_entry",
        "statistics",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
    let counted = lines.iter().filter(|line| line["kind"] == "statistics");
    let counted: Vec<Value> = counted
        .map(|line| &line["row"])
        .map(|row| json!([row["step"], row["domain"], row["sending_domain"], row["counts"]["injected"]]))
        .collect();
    let rows = |step: &str| [json!([step, "(other)", null, 2]), json!([step, null, "leaves.example", 2])];
    assert_eq!(counted, [rows("day"), rows("hour")].concat());
    assert!(text.contains("leaves.example") && text.contains("no@x.example") && !text.contains("stays"));
    for line in &lines {
        let mut row = line["row"].clone();
        // How many there are, and none of them.
        assert!(row.as_object_mut().unwrap().remove("recovery_codes").is_none_or(|count| count.is_number()));
        assert!(!super::replay::shows_a_secret(&row), "{line}");
    }
    let support = Actor::of("s", Role::Support(tenant));
    let refused = parts.operations.file(&support, (tenant, id), crate::operations::Part::Result, Timestamp::now());
    assert!(refused.is_err(), "who may read operations may not have everything");
    tasks.stop(Duration::from_secs(5)).await;
}
