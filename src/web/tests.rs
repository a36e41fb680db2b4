//! The admin API over rooms on a store in memory, and the guard on a real socket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{About, Parts, Settings, Socket, router};
use crate::access::{Actor, Role};
use crate::accounts::Accounts;
use crate::background::Shutdown;
use crate::backup::{Backup, Places};
use crate::breaker::Breaker;
use crate::calendar::Calendar;
use crate::delivery::Delivery;
use crate::domains::Domains;
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::net::{LookupError, Mx, Resolver};
use crate::people::People;
use crate::queue::Queue;
use crate::routing::Routes;
use crate::seal::MasterKey;
use crate::store::MemoryStore;
use crate::suppression::Suppression;
use crate::vips::Vips;
use crate::webhooks::{self, Webhooks};

/// A DNS in which nothing exists.
struct EmptyDns;

#[async_trait::async_trait]
impl Resolver for EmptyDns {
    async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
        Err(LookupError::NoSuchName)
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<std::net::Ipv4Addr>, LookupError> {
        Err(LookupError::NoSuchName)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<std::net::Ipv6Addr>, LookupError> {
        Err(LookupError::NoSuchName)
    }
    async fn txt(&self, _: &Domain) -> Result<Vec<String>, LookupError> {
        Err(LookupError::NoSuchName)
    }
    async fn ptr(&self, _: std::net::IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoSuchName)
    }
}

/// Nobody is ever told anything: the lanes do not run.
fn webhooks(store: Arc<MemoryStore>, key: Arc<MasterKey>) -> webhooks::Parts {
    let tls = crate::net::ClientTls::with_roots(Vec::new()).unwrap();
    webhooks::Parts {
        log: crate::events::EventLog::new(store),
        bell: crate::events::Bell::default(),
        key,
        post: Arc::new(crate::net::Poster::new(Arc::new(EmptyDns), tls, crate::net::Reach::Public)),
        names: webhooks::Names { tenant: Arc::new(|id| id.to_string()), account: Arc::new(|id| id.to_string()) },
        clock: Arc::new(Timestamp::now),
        settings: webhooks::Settings::default(),
        calendar: Calendar::default(),
    }
}

async fn feedback(
    store: &Arc<MemoryStore>,
    (domains, vips): (&Arc<Domains>, &Arc<Vips>),
    key: &MasterKey,
) -> Arc<crate::feedback::Feedback> {
    let parts = crate::feedback::Parts {
        store: store.clone(),
        domains: domains.clone(),
        vips: vips.clone(),
        resolver: Arc::new(EmptyDns),
        judge: Arc::new(|_, _, _| crate::events::Why::Other),
        speaks_for: Arc::new(|_, _| false),
        hostname: Domain::parse("mx.example.com").unwrap(),
        bell: crate::events::Bell::default(),
        calendar: Calendar::default(),
    };
    Arc::new(crate::feedback::Feedback::open(parts, key, Default::default()).await.unwrap())
}

async fn api() -> Router {
    api_with(Settings { body_bytes_max: 4096, ..Settings::default() }).await
}

pub(super) async fn api_with(settings: Settings) -> Router {
    api_over(Arc::new(MemoryStore::new()), settings).await
}

fn intake(
    store: Arc<MemoryStore>,
    (accounts, domains, suppression, vips): (&Arc<Accounts>, &Arc<Domains>, &Arc<Suppression>, &Arc<Vips>),
    (routes, queue): (&Arc<Routes>, &Arc<Queue>),
) -> Arc<crate::intake::Intake> {
    let stages = crate::pipeline::Parts::of_rooms(accounts.clone(), domains.clone(), suppression.clone(), vips.clone());
    let spill_folder = std::env::temp_dir();
    let pipeline =
        crate::pipeline::Pipeline::new(stages, crate::pipeline::Settings { spill_folder, ..Default::default() });
    Arc::new(crate::intake::Intake::new(crate::intake::Parts {
        pipeline: Arc::new(pipeline),
        routes: routes.clone(),
        queue: queue.clone(),
        store,
        may_enter: Arc::new(|_, _| Ok(())),
        calendar: Calendar::default(),
    }))
}

fn notifications(store: Arc<MemoryStore>) -> Arc<crate::notifications::Notifications> {
    let of_instance = Arc::new(|vip: crate::mail::VipId| (crate::notifications::INSTANCE, vip.to_string()));
    Arc::new(crate::notifications::Notifications::open(store, of_instance).unwrap())
}

fn leaving_parts(
    store: Arc<MemoryStore>,
    (accounts, domains, vips, people): (&Arc<Accounts>, &Arc<Domains>, &Arc<Vips>, &Arc<People>),
    (routes, hooks, suppression, operations): (
        &Arc<Routes>,
        &Arc<Webhooks>,
        &Arc<Suppression>,
        &Arc<crate::operations::Operations>,
    ),
    (queue, breaker, delivery): (&Arc<Queue>, &Arc<Breaker>, &Arc<Delivery>),
) -> crate::tenancy::Parts {
    crate::tenancy::Parts {
        store,
        accounts: accounts.clone(),
        domains: domains.clone(),
        vips: vips.clone(),
        people: people.clone(),
        routes: routes.clone(),
        webhooks: hooks.clone(),
        suppression: suppression.clone(),
        operations: operations.clone(),
        queue: queue.clone(),
        breaker: breaker.clone(),
        delivery: delivery.clone(),
        further: Vec::new(),
        calendar: Calendar::default(),
    }
}

fn search(store: &Arc<MemoryStore>) -> Arc<crate::search::Search> {
    let parts = crate::search::Parts {
        log: crate::events::EventLog::new(store.clone()),
        bell: crate::events::Bell::default(),
        provider_of: Arc::new(|_| None),
        clock: Arc::new(Timestamp::now),
        days_kept: Arc::new(|_| None),
        forget: Arc::new(|_| Box::pin(async { Ok(Vec::new()) })),
        settings: Default::default(),
    };
    Arc::new(crate::search::Search::open(parts, &tempfile::tempdir().unwrap().keep()).unwrap())
}

fn statistics(store: &Arc<MemoryStore>) -> Arc<crate::statistics::Statistics> {
    Arc::new(crate::statistics::Statistics::open(crate::statistics::Parts {
        store: store.clone(),
        provider_of: Arc::new(|_, _| None),
        is_known_domain: Arc::new(|_| false),
        is_tenant: Arc::new(|_| true),
        settings: Default::default(),
        calendar: Calendar::default(),
    }))
}

/// As after a start of the daemon with this store.
pub(super) async fn api_over(store: Arc<MemoryStore>, settings: Settings) -> Router {
    router(parts_over(store).await, &settings)
}

/// As in the daemon, for tenants that permit it.
fn moving_to_shared(vips: &Arc<Vips>) -> crate::queue::Policy {
    let vips = Arc::clone(vips);
    let is_shared = move |vip| vips.get(vip).is_some_and(|vip| vip.owner == crate::vips::Owner::Shared);
    let may_move = move |_, vip| if is_shared(vip) { Ok(()) } else { Err("only to a shared one".to_owned()) };
    crate::queue::Policy { may_move: Arc::new(may_move), ..Default::default() }
}

fn places() -> Places {
    let nowhere = std::path::PathBuf::from("/nonexistent");
    Places {
        hostname: "mx.example.com".to_owned(),
        configuration: nowhere.clone(),
        certificates: nowhere.clone(),
        history: nowhere.clone(),
        backup_key: Ok(nowhere),
    }
}

/// The rooms over this store.
pub(super) async fn parts_over(store: Arc<MemoryStore>) -> Parts {
    let key = Arc::new(MasterKey::from_bytes([7; 32]));
    let accounts = Arc::new(Accounts::open(store.clone(), Default::default()).unwrap());
    let domains = Domains::open(store.clone(), key.clone(), Arc::new(EmptyDns), Default::default()).unwrap();
    let (domains, vips) = (Arc::new(domains), Arc::new(Vips::open(store.clone()).unwrap()));
    let suppression = Arc::new(Suppression::open(store.clone()));
    let routes = Arc::new(Routes::open(store.clone(), key.clone()).unwrap());
    let queue = Queue::open(store.clone(), store.clone(), Default::default()).await.unwrap();
    let queue = Arc::new(queue.with_policy(moving_to_shared(&vips)));
    let intake = intake(store.clone(), (&accounts, &domains, &suppression, &vips), (&routes, &queue));
    // Its files are for nobody to see; the folder goes with the process's temporary ones.
    let files = tempfile::tempdir().unwrap().keep();
    let operations = crate::operations::Operations::open(store.clone(), suppression.clone(), &files).unwrap();
    let operations = Arc::new(operations);
    let feedback = feedback(&store, (&domains, &vips), &key).await;
    let breaker = Arc::new(Breaker::open(store.clone(), accounts.clone(), Default::default()).unwrap());
    let delivery = Delivery::open(store.clone()).unwrap();
    let people = People::open(store.clone(), Arc::new(MasterKey::from_bytes([7; 32])), Default::default()).unwrap();
    let people = Arc::new(people.reached_at(crate::people::Site::parse("https://mx.example.com").ok()));
    let hooks = Arc::new(Webhooks::open(webhooks(store.clone(), key.clone())).unwrap());
    let people_and_means = (&accounts, &domains, &vips, &people);
    let rest = (&routes, &hooks, &suppression, &operations);
    let leaving = leaving_parts(store.clone(), people_and_means, rest, (&queue, &breaker, &delivery));
    Parts {
        calendar: Calendar::default(),
        operations,
        breaker,
        notifications: notifications(store.clone()),
        tenancy: Arc::new(crate::tenancy::Tenancy::open(leaving).unwrap()),
        accounts,
        vips,
        domains,
        suppression,
        intake,
        sending: super::SendingLimits {
            message_bytes_max: 100_000,
            header_bytes_max: 20_000,
            recipients_max: 10,
            hold_max: std::time::Duration::from_secs(7 * 86_400),
        },
        pacing: Arc::new(
            crate::delivery::Pacing::open(store.clone(), &Default::default(), crate::queue::QueueTime(0)).unwrap(),
        ),
        tls_policies: Arc::new(crate::delivery::TlsPolicies::open(store.clone()).unwrap()),
        destinations: Arc::new(crate::delivery::Destinations::open(store.clone()).unwrap()),
        tls_memory: Arc::new(crate::delivery::TlsMemory::open(store.clone()).unwrap()),
        tls_reports: Arc::new(crate::tlsrpt::idle(store.clone())),
        pulse: Arc::default(),
        tracer: Arc::default(),
        people,
        routes,
        backup: Arc::new(Backup::new(store.clone(), key.clone(), places())),
        queue,
        delivery,
        store: store.clone(),
        blobs: store.clone(),
        gate: Arc::new(crate::gate::Gate::new(crate::gate::Settings::default())),
        search: search(&store),
        statistics: statistics(&store),
        webhooks: hooks,
        feedback,
        scans: Default::default(),
        about: About {
            hostname: Domain::parse("mx.example.com").unwrap(),
            tls_ports: vec![465],
            starttls_ports: vec![587],
            started: Timestamp(1_795_342_500_000),
        },
    }
}

fn request(method: &str, path: &str, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let mut request = request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string()))).unwrap();
    request.extensions_mut().insert(Actor::local(0));
    request
}

async fn ask(api: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let answer = api.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    assert!(answer.headers().contains_key("x-request-id"));
    if !status.is_success() {
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A shop that may send as shop.example.com from an address of its own, and a rival.
pub(super) async fn add_shop_and_rival(api: &Router) {
    for (method, path, body) in [
        ("POST", "/tenants", json!({"name": "shop"})),
        ("POST", "/tenants", json!({"name": "rival"})),
        ("POST", "/vips", json!({"ipv4": "192.0.2.9", "ehlo": "mx.shop.example.com", "tenant": "shop"})),
        ("POST", "/tenants/shop/domains", json!({"domain": "shop.example.com"})),
        ("PATCH", "/tenants/shop/domains/shop.example.com", json!({"trusted": true})),
    ] {
        let (status, answer) = call(api, method, path, body).await;
        assert!(status.is_success(), "{path}: {answer}");
    }
}

pub(super) async fn call(api: &Router, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    ask(api, request(method, path, (!body.is_null()).then_some(body))).await
}

async fn shop() -> Router {
    let api = api().await;
    let (status, _) = call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    assert_eq!(status, StatusCode::CREATED);
    api
}

#[tokio::test]
async fn delivery_is_suspended_by_one_name_listed_and_resumed() {
    let api = shop().await;
    let asked = json!({"to": "slow.example", "reason": "they asked", "seconds": 3600});
    let (status, made) = call(&api, "POST", "/suspensions", asked).await;
    assert_eq!((status, &made["to"]), (StatusCode::OK, &json!("slow.example")), "{made}");
    let (_, list) = call(&api, "GET", "/suspensions", Value::Null).await;
    assert_eq!(list["rows"][0]["what"], "mail to slow.example");
    assert!(list["rows"][0]["until"].is_string());
    for wrong in [json!({"reason": "x"}), json!({"all": true, "site": "mx", "reason": "x"}), json!({"all": true})] {
        assert!(call(&api, "POST", "/suspensions", wrong.clone()).await.0.is_client_error(), "{wrong}");
    }
    let resumed = |was: bool| json!({"what": "mail to slow.example", "was_suspended": was});
    for was in [true, false] {
        let (_, answer) = call(&api, "POST", "/suspensions/resume", json!({"to": "slow.example"})).await;
        assert_eq!(answer, resumed(was));
    }
}

#[tokio::test]
async fn delivery_is_suspended_for_a_tenant_or_an_smtp_account() {
    let api = shop().await;
    let (_, account) = call(&api, "POST", "/smtp-accounts", json!({"tenant": "shop"})).await;
    let login = account["account"]["login"].as_str().or(account["login"].as_str()).unwrap().to_owned();
    for (field, name) in [("tenant", "shop"), ("smtp_account", login.as_str())] {
        let (status, made) = call(&api, "POST", "/suspensions", json!({field: name, "reason": "a look"})).await;
        assert_eq!((status, &made[field]), (StatusCode::OK, &json!(name)), "{made}");
        let (_, answer) = call(&api, "POST", "/suspensions/resume", json!({field: name})).await;
        assert_eq!(answer["was_suspended"], json!(true), "{answer}");
    }
    let unknown = json!({"tenant": "nobody", "reason": "x"});
    assert_eq!(call(&api, "POST", "/suspensions", unknown).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn destinations_are_blocked_or_rerouted_by_exactly_one_name() {
    let api = api().await;
    let blocked = json!({"mx": "*.parked.example", "reason": "nobody lives there"});
    let (status, made) = call(&api, "POST", "/destination-rules", blocked).await;
    assert_eq!((status, &made["act"], &made["number"]), (StatusCode::CREATED, &json!("block"), &json!(1)), "{made}");
    let relay = json!({"on_demand": true, "host": "relay.example", "port": 587, "tls": "starttls"});
    let (_, route) = call(&api, "POST", "/routes", relay).await;
    let own = json!({"to": "own.example", "host": "relay.example", "port": 587, "tls": "starttls"});
    let (_, of_domain) = call(&api, "POST", "/routes", own).await;
    let other = json!({"network": "198.51.100.0/24", "route": route["id"], "reason": "they like that one"});
    let (_, made) = call(&api, "POST", "/destination-rules", other).await;
    assert_eq!((&made["act"], &made["what"]), (&json!("reroute"), &json!("mail hosts in 198.51.100.0/24")), "{made}");
    for (wrong, status) in [
        (json!({"reason": "x"}), 422),
        (json!({"mx": "a.example", "to": "b.example", "reason": "x"}), 422),
        (json!({"to": "b.example", "reason": ""}), 422),
        (json!({"to": "b.example", "route": "0000000000000", "reason": "x"}), 404),
        (json!({"provider": "nobody", "reason": "x"}), 422),
        (json!({"to": "b.example", "route": of_domain["id"], "reason": "x"}), 422),
    ] {
        let (is, answer) = call(&api, "POST", "/destination-rules", wrong.clone()).await;
        assert_eq!(is.as_u16(), status, "{wrong} {answer}");
    }
    let (_, list) = call(&api, "GET", "/destination-rules", Value::Null).await;
    assert_eq!(list["rows"].as_array().map(Vec::len), Some(2));
    for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        assert_eq!(call(&api, "DELETE", "/destination-rules/1", Value::Null).await.0, expected);
    }
    let path = format!("/routes/{}", route["id"].as_str().unwrap());
    let (status, refused) = call(&api, "DELETE", &path, Value::Null).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    assert!(refused.to_string().contains("destination rule 2"), "{refused}");
    assert_eq!(call(&api, "DELETE", "/destination-rules/2", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(call(&api, "DELETE", &path, Value::Null).await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_act_on_many_messages_is_begun_shown_and_ended() {
    let api = shop().await;
    let asked =
        json!({"act": "hold", "filter": {"tenant": "shop", "to": "slow.example"}, "reason": "x", "seconds": 60});
    let (status, begun) = call(&api, "POST", "/queue-sweeps", asked).await;
    assert_eq!((status, &begun["state"]), (StatusCode::ACCEPTED, &json!("running")), "{begun}");
    assert_eq!(begun["filter"], json!({"tenant": "shop", "to": "slow.example"}));
    let path = format!("/queue-sweeps/{}", begun["number"]);
    assert_eq!(call(&api, "GET", &path, Value::Null).await.1["until"], begun["until"]);
    let (_, ended) = call(&api, "POST", &format!("{path}/end"), json!({})).await;
    assert_eq!(ended["state"], "ended", "{ended}");
    assert_eq!(call(&api, "POST", &format!("{path}/end"), json!({})).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let (_, list) = call(&api, "GET", "/queue-sweeps?tenant=shop", Value::Null).await;
    assert_eq!(list["rows"].as_array().map(Vec::len), Some(1), "{list}");
    for (act, filter, status) in [
        ("hold", json!({"tenant": "nobody"}), 404),
        ("hold", json!({"recepient": "a@b.example"}), 422),
        ("hold", json!({"state": "gone"}), 422),
        ("hold", json!({"provider": "nobody"}), 422),
        ("explode", json!({}), 422),
    ] {
        let asked = json!({"act": act, "filter": filter});
        let (is, answer) = call(&api, "POST", "/queue-sweeps", asked.clone()).await;
        assert_eq!(is.as_u16(), status, "{asked} {answer}");
    }
}

#[tokio::test]
async fn a_queue_is_listed_counted_and_shaped_by_the_same_filters_and_a_misspelt_one_is_refused() {
    let api = shop().await;
    let (_, totals) = call(&api, "GET", "/queue-totals?tenant=shop&attempts_min=2&act=cancel", Value::Null).await;
    assert_eq!((&totals["messages"], &totals["oldest"]), (&json!(0), &Value::Null), "{totals}");
    let (_, shape) = call(&api, "GET", "/queue-shape?class=marketing&limit=5", Value::Null).await;
    assert_eq!(shape["total"]["by_age"].as_array().map(Vec::len), Some(10), "{shape}");
    let (_, list) = call(&api, "GET", "/queue?last=4.7.28&older_secs=60&sender=%3C%3E&limit=5", Value::Null).await;
    assert_eq!(list["rows"], json!([]));
    for query in ["tennant=shop", "attempts_min=many", "class=other", "sender=a%20b@c", "vip=192.0.2.77"] {
        for path in ["/queue", "/queue-totals", "/queue-shape"] {
            let (status, answer) = call(&api, "GET", &format!("{path}?{query}"), Value::Null).await;
            assert!(status.is_client_error(), "{path}?{query}: {status} {answer}");
        }
    }
}

#[tokio::test]
async fn what_happens_now_is_shown_and_sessions_are_followed() {
    let api = api().await;
    let (status, top) = call(&api, "GET", "/top", Value::Null).await;
    assert_eq!((status, &top["accepted"], &top["providers"]), (StatusCode::OK, &json!(0), &json!([])), "{top}");
    let (status, trace) = call(&api, "POST", "/traces", json!({"direction": "out"})).await;
    assert_eq!(status, StatusCode::CREATED, "{trace}");
    let path = format!("/traces/{}", trace["trace"]);
    for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        assert_eq!(call(&api, "DELETE", &path, Value::Null).await.0, expected);
    }
    assert_eq!(call(&api, "GET", &path, Value::Null).await.0, StatusCode::NOT_FOUND);
    let (status, _) = call(&api, "POST", "/traces", json!({"direction": "sideways"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_tls_rule_is_set_replaced_listed_shown_and_taken_back() {
    let api = api().await;
    for tls in ["encrypted", "verified"] {
        let asked = json!({"domain": "Bank.example", "tls": tls});
        let (status, made) = call(&api, "POST", "/tls-rules", asked).await;
        assert_eq!((status, &made["domain"], &made["tls"]), (StatusCode::OK, &json!("bank.example"), &json!(tls)));
    }
    let (_, list) = call(&api, "GET", "/tls-rules", Value::Null).await;
    assert_eq!(list["rows"].as_array().map(Vec::len), Some(1), "{list}");
    let (_, shown) = call(&api, "GET", "/tls-policies/bank.example", Value::Null).await;
    assert_eq!((&shown["rule"]["tls"], &shown["mta_sts"]), (&json!("verified"), &Value::Null));
    let (status, problem) = call(&api, "POST", "/tls-rules", json!({"domain": "bank.example", "tls": "some"})).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("tls")));
    let (status, _) = call(&api, "GET", "/tls-policies/-bad-", Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        assert_eq!(call(&api, "DELETE", "/tls-rules/bank.example", Value::Null).await.0, expected);
    }
}

#[tokio::test]
async fn a_tenant_is_made_once_changed_and_removed() {
    let api = shop().await;
    let (status, problem) = call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("exists")));
    assert_eq!(problem["detail"], "tenant shop exists already");
    let (_, tenant) = call(&api, "PATCH", "/tenants/shop", json!({"suspended": true, "limits": {"hourly": 10}})).await;
    assert_eq!((&tenant["suspended"], &tenant["limits"]["hourly"]), (&json!(true), &json!(10)));
    let (status, _) = call(&api, "DELETE", "/tenants/shop", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, problem) = call(&api, "GET", "/tenants/shop", Value::Null).await;
    assert_eq!((status, &problem["detail"]), (StatusCode::NOT_FOUND, &json!("there is no tenant shop")));
}

#[tokio::test]
async fn mistakes_are_named_with_the_field_and_a_request_id() {
    let api = shop().await;
    let (status, problem) = call(&api, "POST", "/tenants", json!({"name": "Bad Name"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem["request_id"].as_str().is_some_and(|id| id.len() == 16), "{problem}");
    let (_, problem) =
        call(&api, "POST", "/vips", json!({"ipv4": "300.1.1.1", "ehlo": "a.example", "shared": true})).await;
    assert_eq!(problem["errors"][0]["field"], "ipv4");
    let (_, problem) =
        call(&api, "POST", "/vips", json!({"ipv4": "192.0.2.1", "ehlo": "a.example", "tenant": "nobody"})).await;
    assert_eq!(problem["detail"], "there is no tenant nobody");
    let (_, problem) = call(&api, "POST", "/tenants", json!({"name": "x", "colour": 1})).await;
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("unknown field `colour`")), "{problem}");
    let new = json!({"tenant": "shop", "allowed_from": ["192.0.2.0/24", "nonsense"]});
    let (_, problem) = call(&api, "POST", "/smtp-accounts", new).await;
    assert_eq!(problem["errors"][0]["field"], "allowed_from[1]");
    let (status, problem) = call(&api, "GET", "/tenants?limit=251", Value::Null).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("limit")));
    let (status, problem) = call(&api, "GET", "/queue/short", Value::Null).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("id")));
}

#[tokio::test]
async fn what_is_no_json_too_large_or_unknown_gets_a_problem_too() {
    let api = shop().await;
    let mut plain = request("POST", "/tenants", None);
    *plain.body_mut() = Body::from("name=x");
    let (status, problem) = ask(&api, plain).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNSUPPORTED_MEDIA_TYPE, &json!("not_json")));
    let (status, _) = call(&api, "POST", "/tenants", json!({"name": "x".repeat(5000)})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, problem) = call(&api, "PUT", "/tenants", Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed")));
    let (status, problem) = call(&api, "GET", "/nothing", Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
}

#[tokio::test]
async fn a_virtual_ip_is_added_once_and_kept_while_a_tenant_holds_it() {
    let api = shop().await;
    let new = json!({"ipv4": "192.0.2.9", "ehlo": "a.example.com", "tenant": "shop"});
    let (status, vip) = call(&api, "POST", "/vips", new.clone()).await;
    assert_eq!((status, &vip["missing"]), (StatusCode::CREATED, &json!(["192.0.2.9"])));
    let (status, problem) = call(&api, "POST", "/vips", new).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(problem["detail"], "a virtual IP with the address 192.0.2.9 exists already");
    let (_, problem) = call(&api, "DELETE", "/tenants/shop", Value::Null).await;
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("1 virtual IPs")), "{problem}");
    let change = json!({"ehlo": "b.example.com", "public": ["198.51.100.9"]});
    let (status, vip) = call(&api, "PATCH", "/vips/a.example.com", change).await;
    assert_eq!(
        (status, &vip["ehlo"], &vip["public_ipv4"]),
        (StatusCode::OK, &json!("b.example.com"), &json!("198.51.100.9"))
    );
    let (_, vip) = call(&api, "PATCH", "/vips/192.0.2.9", json!({"public": []})).await;
    assert_eq!((&vip["ehlo"], &vip["public_ipv4"]), (&json!("b.example.com"), &Value::Null), "what is left out stays");
    for bad in [json!({"ehlo": "flat"}), json!({"public": ["::1"]}), json!({"ipv4": "192.0.2.10"})] {
        let (status, problem) = call(&api, "PATCH", "/vips/192.0.2.9", bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    }
    let (status, _) = call(&api, "DELETE", "/vips/b.example.com", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_accounts_password_is_in_the_answer_that_made_it_and_nowhere_else() {
    let api = shop().await;
    let (_, made) = call(&api, "POST", "/smtp-accounts", json!({"tenant": "shop"})).await;
    let (login, password) = (made["account"]["login"].as_str().unwrap(), made["password"].as_str().unwrap());
    assert!(login.starts_with("shop-") && password.len() >= 20, "{made}");
    let (_, list) = call(&api, "GET", "/smtp-accounts?tenant=shop", Value::Null).await;
    assert_eq!(list["rows"][0]["login"], login);
    assert!(!list.to_string().contains(password));
    let (_, rotated) = call(&api, "POST", &format!("/smtp-accounts/{login}/rotate"), json!(null)).await;
    assert_eq!(rotated["account"]["passwords"], 2);
    assert_ne!(rotated["password"], password);
    let (_, account) = call(&api, "PATCH", &format!("/smtp-accounts/{login}"), json!({"disabled": true})).await;
    assert_eq!(account["disabled"], true);
}

#[tokio::test]
async fn lists_come_in_pages_that_follow_each_other() {
    let api = shop().await;
    for number in 0..5 {
        let new = json!({"subject": format!("u{number}@example.com"), "note": "asked"});
        let (status, _) = call(&api, "POST", "/tenants/shop/suppressions", new).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/tenants/shop/suppressions?limit=2{cursor}");
        let (_, page) = call(&api, "GET", &path, Value::Null).await;
        seen.extend(page["rows"].as_array().unwrap().iter().map(|row| row["subject"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, (0..5).map(|number| format!("u{number}@example.com")).collect::<Vec<_>>());
    let (status, _) = call(&api, "DELETE", "/tenants/shop/suppressions/u3%40example.com", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_domain_shows_its_records_and_no_private_key() {
    let api = shop().await;
    let (status, domain) = call(&api, "POST", "/tenants/shop/domains", json!({"domain": "shop.example.com"})).await;
    assert_eq!((status, &domain["state"]), (StatusCode::CREATED, &json!("pending")));
    let records = domain["records"].as_array().unwrap();
    assert!(records.iter().any(|record| record["value"].as_str().unwrap().starts_with("v=DKIM1")), "{domain}");
    assert!(!domain.to_string().contains("sealed") && !domain.to_string().contains("PRIVATE"));
    let (_, seen) = call(&api, "POST", "/tenants/shop/domains/shop.example.com/verify", json!(null)).await;
    assert_eq!((&seen["domain"]["state"], &seen["found"][0]["finding"]), (&json!("pending"), &json!("absent")));
    let (_, trusted) = call(&api, "PATCH", "/tenants/shop/domains/shop.example.com", json!({"trusted": true})).await;
    assert_eq!(trusted["state"], "trusted");
}

#[tokio::test]
async fn a_rotation_that_is_not_under_way_is_not_cancelled_and_an_unknown_message_not_erased() {
    let api = shop().await;
    call(&api, "POST", "/tenants/shop/domains", json!({"domain": "shop.example.com"})).await;
    let (status, problem) = call(&api, "DELETE", "/tenants/shop/domains/shop.example.com/rotate", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
    assert_eq!(problem["detail"], "there is no rotation of shop.example.com");
    let (status, problem) = call(&api, "POST", &format!("/queue/{}/erase", "0".repeat(26)), json!(null)).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
    let (status, _) = call(&api, "POST", "/queue/nonsense/erase", json!(null)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_relays_password_goes_in_and_never_comes_out() {
    let api = shop().await;
    let new = json!({"all": true, "host": "relay.example", "port": 587, "tls": "starttls", "user": "u", "password": "hush-hush"});
    let (status, route) = call(&api, "POST", "/routes", new).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, list) = call(&api, "GET", "/routes", Value::Null).await;
    assert!(!route.to_string().contains("hush") && !list.to_string().contains("hush"));
    let path = format!("/routes/{}", list["rows"][0]["id"].as_str().unwrap());
    let (status, changed) = call(&api, "PATCH", &path, json!({"password": "hush-anew", "port": 2587})).await;
    assert_eq!((status, &changed["port"], &changed["user"]), (StatusCode::OK, &json!(2587), &json!("u")));
    assert!(!changed.to_string().contains("hush"));
    let (status, problem) = call(&api, "PATCH", &path, json!({"tls": "none"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    let (status, _) = call(&api, "PATCH", &path, json!({"no_login": true, "user": "x"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (_, changed) = call(&api, "PATCH", &path, json!({"no_login": true, "tls": "none"})).await;
    assert_eq!((&changed["user"], &changed["tls"]), (&Value::Null, &json!("none")));
    assert_eq!(call(&api, "DELETE", &path, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(call(&api, "PATCH", &path, json!({"port": 25})).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nobody_is_answered_without_an_actor_and_a_tenants_reader_changes_nothing() {
    let api = shop().await;
    let mut stranger = request("GET", "/tenants", None);
    stranger.extensions_mut().clear();
    let (status, problem) = ask(&api, stranger).await;
    assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    let mut reader = request("POST", "/tenants", Some(json!({"name": "mine"})));
    reader.extensions_mut().insert(Actor::of("reader", Role::Support(TenantId(9))));
    assert_eq!(ask(&api, reader).await.0, StatusCode::FORBIDDEN);
    let mut foreign = request("GET", "/tenants/shop", None);
    foreign.extensions_mut().insert(Actor::of("reader", Role::Support(TenantId(9))));
    assert_eq!(ask(&api, foreign).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_socket_admits_its_own_user_and_a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { socket: folder.path().join("run/admin.sock"), ..Settings::default() };
    let socket = Socket::bind(&settings).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&settings.socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let shutdown = Shutdown::new();
    let task = tokio::spawn(socket.serve(api().await, shutdown.clone()));
    let stream = tokio::net::UnixStream::connect(&settings.socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(Request::get("/api/v1/status").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(Socket::bind(&settings).unwrap_err().to_string().contains("another daemon listens there"));
    shutdown.cancel();
    task.await.unwrap();
    assert!(!settings.socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&settings.socket).unwrap());
    assert!(Socket::bind(&settings).is_ok(), "a dead socket file is replaced");
    std::fs::write(&settings.socket, "precious").unwrap();
    assert!(Socket::bind(&settings).is_err(), "what is not a socket is left alone");
}

#[tokio::test]
async fn a_backup_without_its_key_is_refused_with_the_remedy() {
    let (status, said) = ask(&api().await, request("POST", "/backup", None)).await;
    assert_eq!((status, said["code"].as_str()), (StatusCode::CONFLICT, Some("no_backup_key")), "{said}");
    assert!(said["detail"].as_str().unwrap().contains("postern backup key makes one"), "{said}");
}

#[tokio::test]
async fn limits_of_a_site_are_set_shown_with_their_origin_and_taken_back() {
    let api = api().await;
    let vip = json!({ "ipv4": "127.0.0.1", "ehlo": "mx1.example.com", "shared": true });
    let (status, made) = call(&api, "POST", "/vips", vip).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let scope = json!({ "site": "gmail.com", "vip": "127.0.0.1" });
    let (status, set) = call(&api, "POST", "/site-limits", json!({ "scope": scope, "connections": 3 })).await;
    assert_eq!(status, StatusCode::OK, "{set}");
    let (_, site) = call(&api, "GET", "/sites/gmail.com?vip=127.0.0.1", Value::Null).await;
    let limit = |site: &Value| site["limits"][0].clone();
    assert_eq!((&site["site"], &site["state"], &site["binds"]), (&json!("gmail"), &json!("full"), &Value::Null));
    assert_eq!((&limit(&site)["limit"], &limit(&site)["value"]), (&json!("connections"), &json!(3)));
    assert!(limit(&site)["from"].as_str().unwrap().starts_with("set for gmail from virtual IP"), "{site}");
    assert!(site["limits"][1]["from"].as_str().unwrap().starts_with("providers.toml: "), "{site}");
    let (status, _) = call(&api, "POST", "/site-limits/clear", scope.clone()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = call(&api, "POST", "/site-limits/clear", scope).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let warm = json!({ "vip": "127.0.0.1", "ladder": [5, 10] });
    let (status, _) = call(&api, "POST", "/sites/gmail/warm-up", warm).await;
    assert_eq!(status, StatusCode::OK);
    let (_, site) = call(&api, "GET", "/sites/gmail?vip=127.0.0.1", Value::Null).await;
    assert_eq!((&site["state"], &site["warm_up"]["allowed"]), (&json!("warming"), &json!(5)));
    let (status, _) = call(&api, "GET", "/sites/nowhere.example?vip=127.0.0.1", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = call(&api, "POST", "/site-limits", json!({ "connections": 0 })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn black_and_white_lists_of_a_tenant_and_of_an_account_are_apart_and_searched() {
    let api = api_with(Settings::default()).await;
    call(&api, "POST", "/tenants", json!({"name": "shop"})).await;
    let (_, account) = call(&api, "POST", "/smtp-accounts", json!({"tenant": "shop"})).await;
    let login = account["account"]["login"].as_str().unwrap().to_owned();
    let base = "/tenants/shop/suppressions";
    let lists = ["".to_owned(), "?list=white".to_owned(), format!("?smtp_account={login}")];
    for (number, list) in lists.iter().enumerate() {
        let new = json!({"subject": format!("u{number}@example.com"), "reason": "complaint", "expires": "2999-01-01T00:00:00Z"});
        let (status, made) = call(&api, "POST", &format!("{base}{list}"), new).await;
        assert_eq!((status, &made["reason"]), (StatusCode::CREATED, &json!("complaint")), "{made}");
        assert_eq!((&made["by"], &made["lapsed"]), (&json!("uid 0 by local socket"), &json!(false)));
    }
    for (number, list) in lists.iter().enumerate() {
        let (_, page) = call(&api, "GET", &format!("{base}{list}"), Value::Null).await;
        let own = format!("u{number}@example.com");
        assert_eq!((page["rows"].as_array().unwrap().len(), &page["rows"][0]["subject"]), (1, &json!(own)));
    }
    let changes = json!({
        "add": [{"subject": "a1@example.com"}, {"subject": "A2@example.com", "note": "n"}, {"subject": "u0@example.com"}],
        "remove": ["nobody@example.com"],
    });
    let (status, changed) = call(&api, "PATCH", base, changes).await;
    assert_eq!((status, changed), (StatusCode::OK, json!({"added": 2, "removed": 0})));
    let (_, page) = call(&api, "GET", &format!("{base}?beginning=A&reason=manual"), Value::Null).await;
    assert_eq!(page["rows"].as_array().unwrap().len(), 2);
    for (wrong, field) in [
        (json!({"add": [{"subject": "a@b.example"}, {"subject": "@@"}]}), "add[1].subject"),
        (json!({"add": [{"subject": "a@b.example", "expires": "soon"}]}), "add[0].expires"),
        (json!({"remove": ["@@"]}), "remove[0]"),
        (json!({"remove": vec!["a@b.example"; 1001]}), "add"),
    ] {
        let (status, problem) = call(&api, "PATCH", base, wrong).await;
        assert_eq!(
            (status, &problem["errors"][0]["field"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(field)),
            "{problem}"
        );
    }
    let (status, _) = call(&api, "GET", &format!("{base}?list=grey"), Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, _) = call(&api, "DELETE", &format!("{base}/u1%40example.com"), Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "it is on the other list");
    let (status, _) = call(&api, "DELETE", &format!("{base}/u1%40example.com?list=white"), Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn who_verifies_tests_follows_or_makes_the_index_anew_is_in_the_audit_log() {
    let api = shop().await;
    call(&api, "POST", "/tenants/shop/domains", json!({"domain": "shop.example.com"})).await;
    let hook = json!({"url": "https://hook.example.com/in"});
    let (_, hook) = call(&api, "POST", "/tenants/shop/webhooks", hook).await;
    let test = format!("/tenants/shop/webhooks/{}/test", hook["webhook"]["id"].as_str().unwrap());
    let followed = json!({"tenant": "shop", "direction": "out", "address": "Anna@example.org"});
    for (path, body) in [
        ("/tenants/shop/domains/shop.example.com/verify", Value::Null),
        (test.as_str(), Value::Null),
        ("/traces", followed),
        ("/traces", json!({})),
        ("/search/rebuild", Value::Null),
    ] {
        let (status, answer) = call(&api, "POST", path, body).await;
        assert!(status.is_success(), "{path}: {answer}");
    }
    let written = |list: &Value| -> Vec<String> {
        list["rows"].as_array().unwrap().iter().map(|row| row["act"].as_str().unwrap().to_owned()).collect()
    };
    let (_, own) = call(&api, "GET", "/audit?tenant=shop", Value::Null).await;
    let acts = written(&own);
    for act in ["domain.verify", "webhook.test", "trace.begin"] {
        assert_eq!(acts.iter().filter(|one| *one == act).count(), 1, "{act} in {acts:?}");
    }
    assert!(!own.to_string().to_lowercase().contains("anna@"), "no address is in it: {own}");
    let (_, instance) = call(&api, "GET", "/audit", Value::Null).await;
    let acts = written(&instance);
    for act in ["trace.begin", "search.rebuild"] {
        assert_eq!(acts.iter().filter(|one| *one == act).count(), 1, "{act} in {acts:?}");
    }
}
