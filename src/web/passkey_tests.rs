//! Passkeys as a browser meets them at the API: set up, asked for at the login and for a fresh proof, taken away.

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Settings;
use super::door_tests::{Answer, PASSWORD, Sent, ask, log_in, person, two_shops};
use super::tests::call;
use crate::people::authenticator::{Authenticator, ORIGIN, tampered};

const ANNA: &str = "anna@example.com";

/// A browser with a session.
fn browser(answer: &Answer) -> Sent {
    let cookie = answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let token = answer.body["csrf_token"].as_str().unwrap().to_owned();
    with_session(cookie, token)
}

fn with_session(cookie: String, token: String) -> Sent {
    let browser = Sent::default().with("host", "mx.example.com").with("origin", ORIGIN);
    browser.with("cookie", cookie).with("x-csrf-token", token)
}

async fn sent(api: &Router, browser: &Sent, (method, path): (&str, &str), body: Value) -> Answer {
    ask(api, browser, method, path, body).await
}

async fn try_to_enter(api: &Router, email: &str, passkey: Option<&Value>) -> Answer {
    let mut login = json!({"email": email, "password": PASSWORD});
    if let Some(passkey) = passkey {
        login["passkey"] = passkey.clone();
    }
    ask(api, &Sent::default(), "POST", "/session", login).await
}

/// What a login asks for.
async fn asked(api: &Router, email: &str) -> Value {
    let answer = try_to_enter(api, email, None).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::UNAUTHORIZED, &json!("second_factor_required")));
    answer.body["passkey"].clone()
}

/// Somebody with a passkey: its device, its browser, and the answer when the passkey was set up.
async fn enrolled(api: &Router, email: &str) -> (Authenticator, Sent, Value) {
    person(api, "shop", email, "owner").await;
    let (cookie, token) = log_in(api, email).await;
    let own = with_session(cookie, token);
    let offer = sent(api, &own, ("POST", "/session/passkeys/offer"), Value::Null).await;
    assert_eq!(offer.status, StatusCode::OK, "{}", offer.body);
    let mut device = Authenticator::new();
    let new = json!({"name": "blue key", "credential": device.make(&offer.body["public_key"])});
    let made = sent(api, &own, ("POST", "/session/passkeys"), new).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    (device, own, made.body)
}

#[tokio::test]
async fn a_browser_sets_up_a_passkey_logs_in_with_it_and_confirms_itself() {
    let api = two_shops(Settings::default()).await;
    let (mut device, own, made) = enrolled(&api, ANNA).await;
    assert_eq!(made["recovery_codes"].as_array().unwrap().len(), 10);
    assert_eq!((&made["passkey"]["name"], &made["passkey"]["last_used"]), (&json!("blue key"), &Value::Null));
    let options = asked(&api, ANNA).await;
    assert_eq!(
        (&options["rpId"], options["allowCredentials"].as_array().unwrap().len()),
        (&json!("mx.example.com"), 1)
    );
    let entered = try_to_enter(&api, ANNA, Some(&device.prove(&options))).await;
    assert_eq!(entered.status, StatusCode::CREATED, "{}", entered.body);
    assert_eq!((&entered.body["user"]["second_factor"], &entered.body["user"]["passkeys"]), (&json!(true), &json!(1)));
    let anew = browser(&entered);
    let wanted = sent(&api, &anew, ("POST", "/session/confirm"), json!({})).await;
    assert_eq!(wanted.body["code"], "second_factor_required");
    let proof = json!({"passkey": device.prove(&wanted.body["passkey"])});
    let confirmed = sent(&api, &anew, ("POST", "/session/confirm"), proof).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{}", confirmed.body);
    assert_eq!(sent(&api, &anew, ("GET", "/session"), Value::Null).await.status, StatusCode::UNAUTHORIZED);
    let anew = browser(&confirmed);
    let list = sent(&api, &anew, ("GET", "/session/passkeys"), Value::Null).await;
    assert!(list.body[0]["last_used"].is_string() && list.body[0]["copied"].is_null(), "{}", list.body);
    let path = format!("/session/passkeys/{}", list.body[0]["id"].as_str().unwrap());
    let renamed = sent(&api, &anew, ("PATCH", &path), json!({"name": "red key"})).await;
    assert_eq!((renamed.status, &renamed.body["name"]), (StatusCode::OK, &json!("red key")));
    assert_eq!(sent(&api, &anew, ("DELETE", &path), Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(sent(&api, &anew, ("DELETE", &path), Value::Null).await.status, StatusCode::NOT_FOUND);
    assert_eq!(try_to_enter(&api, ANNA, None).await.status, StatusCode::CREATED, "the last factor is gone");
    assert_eq!(sent(&api, &own, ("GET", "/session"), Value::Null).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_is_replayed_foreign_forged_or_gone_lets_nobody_in() {
    let api = two_shops(Settings::default()).await;
    let (mut device, own, made) = enrolled(&api, ANNA).await;
    let (mut of_eve, ..) = enrolled(&api, "eve@example.com").await;
    let refused = async |email: &'static str, answer: Value, what: &str| {
        let refused = try_to_enter(&api, email, Some(&answer)).await;
        let told = (refused.status, &refused.body["code"]);
        assert_eq!(told, (StatusCode::UNAUTHORIZED, &json!("wrong_credentials")), "{what}: {}", refused.body);
    };
    let good = device.prove(&asked(&api, ANNA).await);
    assert_eq!(try_to_enter(&api, ANNA, Some(&good)).await.status, StatusCode::CREATED);
    refused(ANNA, good, "replayed").await;
    let of_anna = asked(&api, ANNA).await;
    refused("eve@example.com", of_eve.prove(&of_anna), "another person's challenge").await;
    refused(ANNA, of_eve.prove(&asked(&api, ANNA).await), "another person's passkey").await;
    let signed = device.prove(&asked(&api, ANNA).await);
    refused(ANNA, tampered(&signed, "signature", |octets| octets[10] ^= 1), "a forged signature").await;
    device.origin = "https://evil.example".to_owned();
    refused(ANNA, device.prove(&asked(&api, ANNA).await), "another page").await;
    (device.origin, device.host) = (ORIGIN.to_owned(), Some("evil.example".to_owned()));
    refused(ANNA, device.prove(&asked(&api, ANNA).await), "another host").await;
    (device.host, device.counter) = (None, 0);
    refused(ANNA, device.prove(&asked(&api, ANNA).await), "a copy").await;
    device.counter = 100;
    let options = asked(&api, ANNA).await;
    let path = format!("/session/passkeys/{}", made["passkey"]["id"].as_str().unwrap());
    let offer = sent(&api, &own, ("POST", "/session/passkeys/offer"), Value::Null).await.body["public_key"].take();
    let new = json!({"name": "another", "credential": Authenticator::new().make(&offer)});
    assert_eq!(sent(&api, &own, ("POST", "/session/passkeys"), new).await.status, StatusCode::CREATED);
    assert_eq!(sent(&api, &own, ("DELETE", &path), Value::Null).await.status, StatusCode::NO_CONTENT);
    refused(ANNA, device.prove(&options), "it was taken away").await;
}

#[tokio::test]
async fn nobody_sets_up_a_passkey_without_a_session_its_token_and_what_was_offered_to_it() {
    let api = two_shops(Settings::default()).await;
    let (_, own, _) = enrolled(&api, ANNA).await;
    let (_, of_eve, _) = enrolled(&api, "eve@example.com").await;
    let offer = sent(&api, &own, ("POST", "/session/passkeys/offer"), Value::Null).await.body["public_key"].take();
    let new = json!({"name": "key", "credential": Authenticator::new().make(&offer)});
    let nobody = sent(&api, &Sent::default(), ("POST", "/session/passkeys"), new.clone()).await;
    assert_eq!((nobody.status, &nobody.body["code"]), (StatusCode::UNAUTHORIZED, &json!("missing_api_key")));
    let forged = own.without("x-csrf-token");
    let forged = sent(&api, &forged, ("POST", "/session/passkeys"), new.clone()).await;
    assert_eq!((forged.status, &forged.body["code"]), (StatusCode::FORBIDDEN, &json!("csrf")));
    let stolen = sent(&api, &of_eve, ("POST", "/session/passkeys"), new.clone()).await;
    assert_eq!((stolen.status, &stolen.body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid")));
    assert_eq!(stolen.body["errors"][0]["field"], "credential");
    let scopes = json!({"tenant": "shop", "scopes": ["users:write"]});
    let (_, key) = call(&api, "POST", "/keys", scopes).await;
    let machine = sent(&api, &Sent::key(&key["text"]), ("POST", "/session/passkeys/offer"), Value::Null).await;
    assert_eq!((machine.status, &machine.body["code"]), (StatusCode::UNAUTHORIZED, &json!("no_session")));
}

#[tokio::test]
async fn an_admin_takes_a_persons_passkeys_away_with_its_other_factors() {
    let api = two_shops(Settings::default()).await;
    let (_, own, _) = enrolled(&api, ANNA).await;
    let (_, users) = call(&api, "GET", "/users?tenant=shop", Value::Null).await;
    assert_eq!(users["rows"][0]["passkeys"], 1, "{users}");
    let path = format!("/users/{}/second-factor", users["rows"][0]["id"].as_str().unwrap());
    assert_eq!(call(&api, "DELETE", &path, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(sent(&api, &own, ("GET", "/session"), Value::Null).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(try_to_enter(&api, ANNA, None).await.status, StatusCode::CREATED);
    let (_, audit) = call(&api, "GET", "/audit?tenant=shop", Value::Null).await;
    let acts: Vec<&str> = audit["rows"].as_array().unwrap().iter().filter_map(|row| row["act"].as_str()).collect();
    assert!(acts.contains(&"second-factor.passkey-add") && acts.contains(&"second-factor.remove"), "{acts:?}");
}
