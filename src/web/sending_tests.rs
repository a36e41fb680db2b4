//! Mail handed in over HTTP, down to what is stored: final bytes, recipients, labels, and nothing twice.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::Settings;
use super::replay::tests_of_marks::undo_answers;
use super::tests::{add_shop_and_rival, api_over, call};
use crate::access::{Actor, Narrowing, Role};
use crate::mail::{Domain, TenantId};
use crate::store::{Blobs, MemoryStore};

struct Bench {
    store: Arc<MemoryStore>,
    api: Router,
}

/// A shop that may send as shop.example.com.
async fn bench() -> Bench {
    let store = Arc::new(MemoryStore::new());
    let api = api_over(Arc::clone(&store), Settings::default()).await;
    add_shop_and_rival(&api).await;
    let gone = json!({"subject": "gone@x.example"});
    let (status, answer) = call(&api, "POST", "/tenants/shop/suppressions", gone).await;
    assert!(status.is_success(), "{answer}");
    Bench { store, api }
}

fn letter() -> Value {
    json!({
        "tenant": "shop",
        "from": "Größe & Shop <orders@shop.example.com>",
        "to": ["Ann <ann@x.example>"],
        "subject": "Your order – 4711",
        "text": "Thank you.\nRegards",
    })
}

fn with(more: Value) -> Value {
    let mut letter = letter();
    for (name, value) in more.as_object().unwrap() {
        letter[name] = value.clone();
    }
    letter
}

impl Bench {
    async fn send(&self, body: Value) -> (StatusCode, Value) {
        call(&self.api, "POST", "/messages", body).await
    }

    async fn ask(
        &self,
        actor: Actor,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder().method("POST").uri(format!("/api/v1{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body.into()).unwrap();
        request.extensions_mut().insert(actor);
        let answer = self.api.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// The final bytes of the one message that is owed.
    fn only(&self) -> String {
        let bodies = self.store.bodies();
        assert_eq!(bodies.len(), 1);
        let mut reader = self.store.open(bodies[0]).unwrap().unwrap();
        let mut octets = Vec::new();
        while let Some(slice) = reader.next_slice().unwrap() {
            octets.extend_from_slice(&slice);
        }
        String::from_utf8(octets).unwrap()
    }

    async fn shown(&self, id: &Value) -> Value {
        call(&self.api, "GET", &format!("/queue/{}", id.as_str().unwrap()), Value::Null).await.1
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_message_of_parts_is_signed_and_owed_when_202_is_said() {
    let bench = bench().await;
    let (status, sent) = bench
        .send(with(json!({
            "cc": ["bob@y.example"],
            "bcc": ["secret@z.example", "ANN@x.example"],
            "reply_to": ["help@shop.example.com"],
            "html": "<p>Thank you.</p>",
            "headers": {"X-Campaign": "winter"},
            "attachments": [{"name": "bill.pdf", "content_type": "application/pdf", "content": "AAEC/w=="}],
            "tags": ["order"],
            "metadata": {"order-id": "4711"},
        })))
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{sent}");
    let statuses: Vec<_> = sent["recipients"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, ["queued", "queued", "queued"], "an address given twice is one recipient: {sent}");
    let text = bench.only();
    assert!(text.is_ascii(), "encoded before it was signed");
    assert_eq!(text.matches("DKIM-Signature:").count(), 2, "{text}");
    for part in ["with HTTP", "Reply-To: help@shop.example.com\r\n", "X-Campaign: winter\r\n", "filename=\"bill.pdf\""]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.contains(&format!("Message-ID: {}", sent["message_id"].as_str().unwrap())));
    for hidden in ["secret@z.example", "Bcc", "order-id"] {
        assert!(!text.contains(hidden), "{hidden} is shown to recipients");
    }
    let shown = bench.shown(&sent["id"]).await;
    assert_eq!(shown["reverse_path"], "<orders@shop.example.com>");
    assert_eq!((&shown["tags"], &shown["metadata"]), (&json!(["order"]), &json!({"order-id": "4711"})));
    assert_eq!(shown["recipients"].as_array().unwrap().len(), 3);
    assert!(shown["events"][0]["text"].as_str().unwrap().contains("accepted by api"), "{shown}");
}

#[tokio::test]
async fn who_is_suppressed_is_told_and_not_mailed() {
    let bench = bench().await;
    let (status, sent) = bench.send(with(json!({"to": ["ann@x.example", "gone@x.example"]}))).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(
        (&sent["recipients"][0]["status"], &sent["recipients"][1]["status"]),
        (&json!("queued"), &json!("suppressed"))
    );
    let (status, sent) = bench.send(with(json!({"to": ["gone@x.example"]}))).await;
    assert_eq!((status, &sent["recipients"][0]["status"]), (StatusCode::ACCEPTED, &json!("suppressed")));
    assert_eq!(bench.store.bodies().len(), 1, "of the second nothing is owed");
}

#[tokio::test]
async fn a_message_that_is_whole_keeps_its_bytes_and_tells_its_labels_by_fields() {
    let whole = "From: orders@shop.example.com\r\nTo: ann@x.example, bob@y.example\r\nBcc: eve@z.example\r\n\
        Subject: whole\r\nMessage-ID: <1@shop.example.com>\r\nX-Tag: order\r\nX-Metadata-Order-Id: 4711\r\n\r\nbody\r\n";
    let as_json = bench().await;
    use base64::Engine;
    let raw = base64::engine::general_purpose::STANDARD.encode(whole);
    let (status, first) = as_json.send(json!({"tenant": "shop", "raw": raw})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{first}");
    let as_body = bench().await;
    let kind = ("content-type", "message/rfc822");
    let (status, second) = as_body.ask(Actor::local(0), "/messages?tenant=shop", &[kind], whole).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{second}");
    for (bench, sent) in [(&as_json, &first), (&as_body, &second)] {
        assert_eq!(sent["recipients"].as_array().unwrap().len(), 3, "{sent}");
        let text = bench.only();
        assert!(
            text.contains("\r\nSubject: whole\r\nMessage-ID: <1@shop.example.com>\r\n")
                && text.ends_with("\r\n\r\nbody\r\n")
        );
        assert!(!text.contains("X-Tag") && !text.contains("4711") && !text.contains("eve@"), "{text}");
        assert_eq!(bench.shown(&sent["id"]).await["metadata"], json!({"order-id": "4711"}));
    }
    let path = "/messages?tenant=shop&to=only@x.example";
    let (_, chosen) = as_body.ask(Actor::local(0), path, &[kind], whole).await;
    assert_eq!(chosen["recipients"], json!([{"address": "only@x.example", "status": "queued"}]), "the envelope counts");
}

#[tokio::test]
async fn a_scheduled_message_waits_until_its_time() {
    let bench = bench().await;
    let later = crate::ext::Timestamp::now().plus(std::time::Duration::from_secs(3600)).rfc3339();
    let (status, sent) = bench.send(with(json!({"send_at": later}))).await;
    assert_eq!((status, &sent["send_at"]), (StatusCode::ACCEPTED, &json!(later)));
    let (_, list) = call(&bench.api, "GET", "/queue", Value::Null).await;
    let due = list["rows"][0]["due_in_secs"].as_u64().unwrap();
    assert!((3000..=3600).contains(&due), "{due}");
    for wrong in ["tomorrow", "2999-01-01T00:00:00Z"] {
        let (status, problem) = bench.send(with(json!({"send_at": wrong}))).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("send_at")));
    }
}

#[tokio::test]
async fn the_rules_of_smtp_hold_and_nothing_is_kept_of_what_is_refused() {
    let bench = bench().await;
    for (change, status, code) in [
        (json!({"from": "a@evil.example"}), 422, "message_refused"),
        (json!({"return_path": "a@evil.example"}), 422, "message_refused"),
        (json!({"headers": {"Sender": "a@evil.example"}}), 422, "message_refused"),
        (json!({"to": ["a%b.example@x.example"]}), 422, "invalid"),
        (json!({"tenant": "nobody"}), 404, "not_found"),
        (json!({"tenant": "rival"}), 422, "message_refused"),
        (json!({"smtp_account": "none-000000"}), 404, "not_found"),
        (json!({"text": "x".repeat(120_000)}), 413, "too_large"),
    ] {
        let (got, problem) = bench.send(with(change.clone())).await;
        assert_eq!((got.as_u16(), problem["code"].as_str()), (status, Some(code)), "{change}: {problem}");
    }
    call(&bench.api, "PATCH", "/tenants/shop", json!({"limits": {"hourly": 0}})).await;
    let (status, problem) = bench.send(letter()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("message_refused")), "a limit of nothing never lifts");
    call(&bench.api, "PATCH", "/tenants/shop", json!({"limits": {"hourly": 1}})).await;
    assert_eq!(bench.send(letter()).await.0, StatusCode::ACCEPTED);
    let (status, problem) = bench.send(letter()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (429, &json!("limit_reached")));
    call(&bench.api, "PATCH", "/tenants/shop", json!({"suspended": true})).await;
    let (status, problem) = bench.send(letter()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("sending_suspended")));
    assert_eq!(bench.store.bodies().len(), 1);
}

#[tokio::test]
async fn each_field_that_is_wrong_is_named() {
    let bench = bench().await;
    for (change, field) in [
        (json!({"from": null}), "from"),
        (json!({"from": "nobody"}), "from"),
        (json!({"to": []}), "to"),
        (json!({"to": ["ann@x.example", "bob"]}), "to[1]"),
        (json!({"cc": ["a@x.example, b@x.example"]}), "cc[0]"),
        (json!({"text": null}), "text"),
        (json!({"subject": "a\r\nBcc: b@x.example"}), "subject"),
        (json!({"headers": {"Bcc": "b@x.example"}}), "headers.Bcc"),
        (json!({"attachments": [{"name": "a", "content": "?"}]}), "attachments[0].content"),
        (json!({"attachments": [{"name": "a"}]}), "attachments[0]"),
        (json!({"tags": ["ok", "a,b"]}), "tags[1]"),
        (json!({"metadata": {"a b": "c"}}), "metadata.a b"),
        (json!({"raw": "AAAA"}), "from"),
        (json!({"return_path": "x"}), "return_path"),
        (json!({"to": (0..11).map(|number| format!("a{number}@x.example")).collect::<Vec<_>>()}), "to"),
    ] {
        let (status, problem) = bench.send(with(change.clone())).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{change}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{change}: {problem}");
    }
    assert!(bench.store.bodies().is_empty());
}

#[tokio::test]
async fn a_key_sends_within_its_scopes_its_tenant_and_its_domains() {
    let bench = bench().await;
    let (_, tenant) = call(&bench.api, "GET", "/tenants/shop", Value::Null).await;
    let own: TenantId = tenant["id"].as_str().unwrap().parse().unwrap();
    let mut body = letter();
    body.as_object_mut().unwrap().remove("tenant");
    let body = body.to_string();
    let ask = |actor: Actor| bench.ask(actor, "/messages", &[JSON], body.clone());
    let narrowed =
        |narrowing: Narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("k", Role::TenantAdmin(own)) };
    let scopes = |scope: &str| Some(vec![scope.parse().unwrap()]);
    let sender = narrowed(Narrowing { scopes: scopes("messages:write"), ..Narrowing::default() });
    assert_eq!(ask(sender).await.0, StatusCode::ACCEPTED, "its own tenant needs no name");
    let reader = narrowed(Narrowing { scopes: scopes("messages:read"), ..Narrowing::default() });
    assert_eq!(ask(reader).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(Actor::of("a", Role::Analyst(own))).await.0, StatusCode::FORBIDDEN);
    let elsewhere = Some(vec![Domain::parse("other.example.com").unwrap()]);
    let other = narrowed(Narrowing { domains: elsewhere, ..Narrowing::default() });
    assert_eq!(ask(other).await.0, StatusCode::FORBIDDEN);
    let of_accounts = narrowed(Narrowing { accounts: Some(Default::default()), ..Narrowing::default() });
    assert_eq!(ask(of_accounts).await.0, StatusCode::UNPROCESSABLE_ENTITY, "it must name an account");
    let stranger = Actor::of("s", Role::TenantOwner(TenantId(9)));
    assert_eq!(bench.ask(stranger, "/messages", &[JSON], letter().to_string()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        ask(Actor::local(0)).await.0,
        StatusCode::UNPROCESSABLE_ENTITY,
        "the instance must say whose mail it is"
    );
    assert_eq!(bench.store.bodies().len(), 1);
}

#[tokio::test]
async fn of_a_batch_each_message_is_judged_for_itself() {
    let bench = bench().await;
    let good = |to: &str| with(json!({"to": [to]}));
    let messages = json!([good("a@x.example"), {"tenant": "shop", "colour": 1}, good("b@x.example"), with(json!({"from": "a@evil.example"}))]);
    let (status, answer) = call(&bench.api, "POST", "/messages/batch", json!({"messages": messages})).await;
    assert_eq!((status, &answer["accepted"], &answer["refused"]), (StatusCode::OK, &json!(2), &json!(2)), "{answer}");
    let statuses: Vec<u64> =
        answer["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 422, 202, 422]);
    assert_eq!(answer["results"][3]["problem"]["code"], "message_refused");
    assert_eq!(bench.store.bodies().len(), 2);
    for wrong in [json!([]), json!(vec![letter(); 501])] {
        let (status, _) = call(&bench.api, "POST", "/messages/batch", json!({"messages": wrong})).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    }
}

#[tokio::test]
async fn a_repeated_message_is_owed_once_even_if_the_daemon_stopped_in_between() {
    let mut bench = bench().await;
    let headers = [JSON, ("idempotency-key", "order-4711")];
    let batch = json!({"messages": [letter(), with(json!({"to": ["bob@y.example"]}))]});
    for (path, body, count) in [("/messages", letter(), 1), ("/messages/batch", batch, 3)] {
        let headers = if count == 1 { headers } else { [JSON, ("idempotency-key", "order-4712")] };
        let ask = |bench: &Bench| {
            let api = Bench { store: Arc::clone(&bench.store), api: bench.api.clone() };
            let body = body.to_string();
            async move { api.ask(Actor::local(0), path, &headers, body).await }
        };
        let (status, first) = ask(&bench).await;
        assert!(status.is_success(), "{first}");
        assert_eq!(ask(&bench).await, (status, first.clone()));
        assert_eq!(bench.store.bodies().len(), count);
        // The daemon stops after the message is on disk and before its answer is: it begins anew with the store.
        undo_answers(&bench.store).await;
        bench.api = api_over(Arc::clone(&bench.store), Settings::default()).await;
        let (status, again) = ask(&bench).await;
        assert!(status.is_success(), "{again}");
        assert_eq!(bench.store.bodies().len(), count, "handed in twice");
        let id = |answer: &Value| answer.pointer("/results/1/message/id").unwrap_or(&answer["id"]).clone();
        assert!(id(&first).is_string());
        assert_eq!(id(&first), id(&again));
    }
}

#[tokio::test]
async fn a_tenant_without_a_virtual_ip_is_told_to_come_back_and_its_message_is_taken_then() {
    let bench = bench().await;
    for (method, path, body) in [
        ("POST", "/tenants/rival/domains", json!({"domain": "rival.example.com"})),
        ("PATCH", "/tenants/rival/domains/rival.example.com", json!({"trusted": true})),
    ] {
        let (status, answer) = call(&bench.api, method, path, body).await;
        assert!(status.is_success(), "{path}: {answer}");
    }
    let letter = with(json!({"tenant": "rival", "from": "orders@rival.example.com"}));
    let request = |key: &str| {
        let request = Request::builder().method("POST").uri("/api/v1/messages").header(JSON.0, JSON.1);
        let mut request = request.header("idempotency-key", key).body(Body::from(letter.to_string())).unwrap();
        request.extensions_mut().insert(Actor::local(0));
        request
    };
    let answer = bench.api.clone().oneshot(request("order-1")).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"60".parse().unwrap())
    );
    let told = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&told).unwrap()["code"], "no_virtual_ip");
    assert!(bench.store.bodies().is_empty());
    let vip = json!({"ipv4": "192.0.2.10", "ehlo": "mx.rival.example.com", "tenant": "rival"});
    assert_eq!(call(&bench.api, "POST", "/vips", vip).await.0, StatusCode::CREATED);
    let answer = bench.api.clone().oneshot(request("order-1")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED, "the same key is good still");
    assert_eq!(bench.store.bodies().len(), 1);
}
