//! The API as somebody over the network sees it: keys, sessions, forged requests, other tenants.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::tests::{api_with, call};
use super::{NetworkPeer, Settings};

const HOME: NetworkPeer = NetworkPeer(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)));
pub(super) const PASSWORD: &str = "correct horse battery";

/// What a browser or machine sends beside the path.
#[derive(Clone, Default)]
pub(super) struct Sent {
    headers: Vec<(&'static str, String)>,
}

impl Sent {
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn without(&self, name: &str) -> Self {
        Self { headers: self.headers.iter().filter(|(known, _)| *known != name).cloned().collect() }
    }

    pub(super) fn key(text: &Value) -> Self {
        Self::default().with("authorization", format!("Bearer {}", text.as_str().unwrap()))
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: axum::http::HeaderMap,
    pub(super) body: Value,
}

pub(super) async fn ask(api: &Router, sent: &Sent, method: &str, path: &str, body: Value) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
    for (name, value) in &sent.headers {
        request = request.header(*name, value);
    }
    let content = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = request.header("content-type", "application/json").body(content).unwrap();
    request.extensions_mut().insert(HOME);
    let answer = api.clone().oneshot(request).await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

/// An API with two tenants, each with a domain and an SMTP account.
pub(super) async fn two_shops(settings: Settings) -> Router {
    let api = api_with(settings).await;
    for name in ["shop", "rival"] {
        call(&api, "POST", "/tenants", json!({"name": name})).await;
        let domain = json!({"domain": format!("{name}.example.com")});
        assert_eq!(call(&api, "POST", &format!("/tenants/{name}/domains"), domain).await.0, StatusCode::CREATED);
        assert_eq!(call(&api, "POST", "/smtp-accounts", json!({"tenant": name})).await.0, StatusCode::CREATED);
    }
    api
}

pub(super) async fn person(api: &Router, tenant: &str, email: &str, role: &str) -> Value {
    let new = json!({"tenant": tenant, "email": email, "role": role});
    let (status, link) = call(api, "POST", "/users", new).await;
    assert_eq!(status, StatusCode::CREATED, "{link}");
    let follow = json!({"token": link["token"], "password": PASSWORD});
    assert_eq!(ask(api, &Sent::default(), "POST", "/session/redeem", follow).await.status, StatusCode::OK);
    link["user"]["id"].clone()
}

/// Logs in and returns the cookie and the token.
pub(super) async fn log_in(api: &Router, email: &str) -> (String, String) {
    let answer = ask(api, &Sent::default(), "POST", "/session", json!({"email": email, "password": PASSWORD})).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    for attribute in ["__Host-postern=", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let secret = cookie.split(';').next().unwrap().to_owned();
    assert!(!answer.body.to_string().contains(secret.split_once('=').unwrap().1), "the secret is in the cookie only");
    (secret, answer.body["csrf_token"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn nobody_comes_in_over_the_network_without_a_key_or_a_session() {
    let api = two_shops(Settings::default()).await;
    let answer = ask(&api, &Sent::default(), "GET", "/tenants", Value::Null).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::UNAUTHORIZED, &json!("missing_api_key")));
    assert!(answer.headers.contains_key("www-authenticate"));
    let bad = Sent::default().with("authorization", "Bearer pk_shop_0000000000000_x");
    let answer = ask(&api, &bad, "GET", "/tenants", Value::Null).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::UNAUTHORIZED, &json!("invalid_api_key")));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("strict-transport-security", "max-age=31536000"),
    ] {
        assert_eq!(answer.headers[name], value);
    }
    assert!(answer.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let foreign = Sent::default().with("origin", "https://evil.example");
    let answer = ask(&api, &foreign, "OPTIONS", "/tenants", Value::Null).await;
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control")), "CORS is closed");
}

#[tokio::test]
async fn who_asks_for_a_link_by_mail_gets_the_same_answer_whoever_is_meant_until_it_is_too_often() {
    let api = two_shops(Settings::default()).await;
    person(&api, "shop", "anna@example.com", "owner").await;
    let nobody = Sent::default();
    for email in ["anna@example.com", "nobody@example.com", "no address"] {
        for tenant in [Value::Null, json!("shop"), json!("none"), json!("@instance")] {
            let asked = json!({"email": email, "tenant": tenant});
            let answer = ask(&api, &nobody, "POST", "/session/forgotten", asked).await;
            assert_eq!((answer.status, answer.body), (StatusCode::ACCEPTED, Value::Null), "{email}");
        }
    }
    let foreign = Sent::default().with("origin", "https://evil.example");
    let asked = || json!({"email": "anna@example.com"});
    assert_eq!(ask(&api, &foreign, "POST", "/session/forgotten", asked()).await.status, StatusCode::FORBIDDEN);
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(ask(&api, &nobody, "POST", "/session/forgotten", asked()).await.status);
    }
    assert_eq!(answers.last(), Some(&StatusCode::TOO_MANY_REQUESTS));
    let accepted = answers.iter().filter(|status| **status == StatusCode::ACCEPTED).count();
    assert!((88..100).contains(&accepted), "{accepted}");
}

#[tokio::test]
async fn a_session_changes_nothing_without_its_token_or_from_another_site() {
    let api = two_shops(Settings::default()).await;
    person(&api, "shop", "anna@example.com", "owner").await;
    let (cookie, token) = log_in(&api, "anna@example.com").await;
    let browser = Sent::default().with("cookie", &*cookie).with("host", "mx.example.com");
    assert_eq!(ask(&api, &browser, "GET", "/tenants/shop", Value::Null).await.status, StatusCode::OK);
    let new = || json!({"subject": "x@example.org"});
    let path = "/tenants/shop/suppressions";
    let forged = ask(&api, &browser, "POST", path, new()).await;
    assert_eq!((forged.status, &forged.body["code"]), (StatusCode::FORBIDDEN, &json!("csrf")));
    let guessed = browser.clone().with("x-csrf-token", "0".repeat(32));
    assert_eq!(ask(&api, &guessed, "POST", path, new()).await.status, StatusCode::FORBIDDEN);
    let framed = browser.clone().with("x-csrf-token", &*token).with("origin", "https://evil.example");
    assert_eq!(ask(&api, &framed, "POST", path, new()).await.status, StatusCode::FORBIDDEN);
    let own = browser.with("x-csrf-token", &*token).with("origin", "https://mx.example.com");
    assert_eq!(ask(&api, &own, "POST", path, new()).await.status, StatusCode::CREATED);
    assert_eq!(ask(&api, &own, "DELETE", "/session", Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&api, &own, "GET", "/session", Value::Null).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_planted_session_is_worth_nothing_after_the_login_of_its_victim() {
    let api = two_shops(Settings::default()).await;
    person(&api, "shop", "anna@example.com", "owner").await;
    let planted = "__Host-postern=planted000000000000000000000000000000000000000000000".to_owned();
    let victim = Sent::default().with("cookie", &*planted);
    let login = json!({"email": "anna@example.com", "password": PASSWORD});
    let answer = ask(&api, &victim, "POST", "/session", login).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert!(!answer.headers["set-cookie"].to_str().unwrap().contains("planted"));
    assert_eq!(ask(&api, &victim, "GET", "/session", Value::Null).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_person_get_the_same_answer() {
    let api = two_shops(Settings::default()).await;
    person(&api, "shop", "anna@example.com", "owner").await;
    let mut bodies = Vec::new();
    for (email, tenant) in [
        ("anna@example.com", Value::Null),
        ("nobody@example.com", Value::Null),
        ("anna@example.com", json!("rival")),
        ("anna@example.com", json!("nowhere")),
    ] {
        let login = json!({"email": email, "password": "wrong but long enough", "tenant": tenant});
        let mut answer = ask(&api, &Sent::default(), "POST", "/session", login).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        answer.body["request_id"].take();
        bodies.push(answer.body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
}

#[tokio::test]
async fn a_role_that_must_have_a_second_factor_sets_one_up_before_anything_else() {
    let api = two_shops(Settings::default()).await;
    person(&api, "shop", "anna@example.com", "owner").await;
    let policy = json!({"required_of": ["owner"]});
    let (status, _) = call(&api, "PUT", "/second-factor-policy?tenant=shop", policy).await;
    assert_eq!(status, StatusCode::OK);
    let (cookie, token) = log_in(&api, "anna@example.com").await;
    let browser = Sent::default().with("cookie", &*cookie).with("x-csrf-token", &*token);
    let answer = ask(&api, &browser, "GET", "/tenants/shop", Value::Null).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::FORBIDDEN, &json!("second_factor_enrolment")));
    let offer = ask(&api, &browser, "POST", "/session/second-factor", Value::Null).await;
    assert!(offer.body["qr_svg"].as_str().unwrap().contains("<svg"), "{}", offer.body);
    let wrong = ask(&api, &browser, "POST", "/session/second-factor/prove", json!({"code": "abc"})).await;
    assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn too_many_requests_are_told_when_to_come_back() {
    let api = two_shops(Settings { requests_per_minute_max: 3, ..Settings::default() }).await;
    let new = json!({"tenant": "shop", "scopes": ["tenant:read"]});
    let (_, made) = call(&api, "POST", "/keys", new).await;
    let machine = Sent::key(&made["text"]);
    for left in ["2", "1", "0"] {
        let answer = ask(&api, &machine, "GET", "/tenants/shop", Value::Null).await;
        assert_eq!((answer.status, answer.headers["x-ratelimit-remaining"].to_str().unwrap()), (StatusCode::OK, left));
    }
    let answer = ask(&api, &machine, "GET", "/tenants/shop", Value::Null).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limit_exceeded")));
    assert!(answer.headers.contains_key("retry-after") && answer.headers["x-ratelimit-limit"] == "3");
}

#[tokio::test]
async fn what_belongs_to_another_tenant_looks_like_what_does_not_exist() {
    let api = two_shops(Settings::default()).await;
    let user = person(&api, "rival", "eve@example.com", "owner").await;
    let (_, key) = call(&api, "POST", "/keys", json!({"tenant": "rival", "scopes": ["queue:read"]})).await;
    let (_, accounts) = call(&api, "GET", "/smtp-accounts?tenant=rival", Value::Null).await;
    let scopes = ["tenant", "users", "keys", "smtp-accounts", "domains", "suppressions", "queue"];
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("{scope}:write")).collect();
    let (_, mine) = call(&api, "POST", "/keys", json!({"tenant": "shop", "scopes": scopes})).await;
    let machine = Sent::key(&mine["text"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = [
        ("GET", "/tenants/rival".to_owned(), "/tenants/nowhere".to_owned()),
        ("GET", "/tenants/rival/domains".to_owned(), "/tenants/nowhere/domains".to_owned()),
        (
            "GET",
            "/tenants/rival/domains/rival.example.com".to_owned(),
            "/tenants/shop/domains/none.example.com".to_owned(),
        ),
        ("GET", "/tenants/rival/suppressions".to_owned(), "/tenants/nowhere/suppressions".to_owned()),
        ("GET", "/audit?tenant=rival".to_owned(), "/audit?tenant=nowhere".to_owned()),
        ("GET", "/users?tenant=rival".to_owned(), "/users?tenant=nowhere".to_owned()),
        ("GET", format!("/users/{}", text(&user)), "/users/0000000000000".to_owned()),
        ("DELETE", format!("/users/{}", text(&user)), "/users/0000000000000".to_owned()),
        ("GET", format!("/users/{}/sessions", text(&user)), "/users/0000000000000/sessions".to_owned()),
        ("GET", format!("/keys/{}", text(&key["key"]["id"])), "/keys/0000000000000".to_owned()),
        ("DELETE", format!("/keys/{}", text(&key["key"]["id"])), "/keys/0000000000000".to_owned()),
        ("GET", format!("/smtp-accounts/{}", text(&accounts["rows"][0]["login"])), "/smtp-accounts/none".to_owned()),
        ("DELETE", format!("/smtp-accounts/{}", text(&accounts["rows"][0]["login"])), "/smtp-accounts/none".to_owned()),
    ];
    for (method, foreign, nowhere) in pairs {
        let mut bodies = Vec::new();
        for path in [&foreign, &nowhere] {
            let mut answer = ask(&api, &machine, method, path, Value::Null).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}: {}", answer.body);
            answer.body["request_id"].take();
            bodies.push(answer.body);
        }
        assert_eq!(bodies[0], bodies[1], "{method} {foreign}");
    }
    assert_eq!(ask(&api, &machine, "GET", "/vips", Value::Null).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_door_speaks_tls_and_says_who_came() {
    use crate::background::Shutdown;
    use crate::net::Certificates;
    let folder = tempfile::tempdir().unwrap();
    let name = crate::mail::Domain::parse("mx.example.com").unwrap();
    Certificates::write_self_signed(folder.path(), &name).unwrap();
    let certificates = Certificates::open(folder.path(), &name).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
    let tls: super::TlsNow = std::sync::Arc::new(move || certificates.server_config(&name));
    let api = two_shops(Settings::default()).await;
    let gate = std::sync::Arc::new(crate::gate::Gate::new(crate::gate::Settings::default()));
    let (door, stop) = (super::door::Door::new(tls, api, gate, 8), shutdown.clone());
    let served = tokio::spawn(async move { door.serve(listener, stop).await });
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();

    use rustls_pki_types::pem::PemObject;
    let file = folder.path().join("mx.example.com/fullchain.pem");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(file).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = std::sync::Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let server = rustls_pki_types::ServerName::try_from("mx.example.com").unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(server, stream).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(Request::get("/api/v1/status").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "nobody is an admin by being near");
    drop((silent, sender));
    shutdown.cancel();
    served.await.unwrap();
}

/// A machine whose memory is full or not, as told.
struct Memory(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl crate::gate::Probe for Memory {
    fn memory(&self) -> Option<crate::gate::Fill> {
        let used = if self.0.load(std::sync::atomic::Ordering::SeqCst) { 99 } else { 1 };
        Some(crate::gate::Fill { used, limit: 100, of: "test" })
    }

    fn descriptors(&self) -> Option<crate::gate::Fill> {
        Some(crate::gate::Fill { used: 10, limit: 160, of: "test" })
    }
}

/// How many of these were closed by the other side.
async fn closed(streams: &mut [tokio::net::TcpStream]) -> usize {
    let mut count = 0;
    for stream in streams {
        let mut octet = [0; 1];
        count += usize::from(matches!(stream.try_read(&mut octet), Ok(0)));
    }
    count
}

#[tokio::test]
async fn while_memory_is_short_the_door_has_eight_places_and_takes_idle_ones_back() {
    use crate::background::Shutdown;
    use crate::gate::{Gate, Settings as Marks};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let name = crate::mail::Domain::parse("mx.example.com").unwrap();
    crate::net::Certificates::write_self_signed(folder.path(), &name).unwrap();
    let certificates = crate::net::Certificates::open(folder.path(), &name).unwrap();
    let tls: super::TlsNow = Arc::new(move || certificates.server_config(&name));
    let is_short = Arc::new(AtomicBool::new(false));
    let gate = Gate::with_probe(Marks::default(), Box::new(Memory(Arc::clone(&is_short))));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
    let door = super::door::Door::new(tls, two_shops(Settings::default()).await, Arc::new(gate), 256);
    let stop = shutdown.clone();
    let served = tokio::spawn(async move { door.serve(listener, stop).await });
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let until = async |silent: &mut Vec<tokio::net::TcpStream>, count: usize| {
        for _ in 0..500 {
            if closed(silent).await == count {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{} of {} are closed, not {count}", closed(silent).await, silent.len());
    };
    // An eighth of 160 descriptors is 20 places: the first ten made room.
    until(&mut silent, 10).await;
    is_short.store(true, Ordering::SeqCst);
    until(&mut silent, 30 - super::SHORT_CONNECTIONS_MAX).await;
    // Somebody who comes now still finds a place.
    silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    until(&mut silent, 31 - super::SHORT_CONNECTIONS_MAX).await;
    shutdown.cancel();
    drop(silent);
    served.await.unwrap();
}

/// Every operation of the document: method, path.
pub(super) fn operations() -> Vec<(String, String)> {
    let document = super::document::document();
    let paths = document["paths"].as_object().unwrap().clone();
    let of = |(path, operations): (&String, &Value)| {
        let methods: Vec<String> = operations.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        methods.into_iter().map(|method| (method, path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}
