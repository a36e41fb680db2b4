//! What was said in the attempts of a message, over the API: to whom, and until when.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::tests::{add_shop_and_rival, call, parts_over};
use super::{Parts, Settings, router};
use crate::access::{Actor, Narrowing, Role};
use crate::events::{Peer, Why};
use crate::ext::Timestamp;
use crate::mail::{Dialogue, Heard, Over, Reply, Sent, Step, TenantId};
use crate::queue::{Conversation, Onward, Outcome, Queue};
use crate::store::MemoryStore;

struct Bench {
    queue: Arc<Queue>,
    api: Router,
    tenant: TenantId,
    rival: TenantId,
}

async fn bench() -> Bench {
    let parts: Parts = parts_over(Arc::new(MemoryStore::new())).await;
    let (queue, accounts) = (parts.queue.clone(), parts.accounts.clone());
    let api = router(parts, &Settings::default());
    add_shop_and_rival(&api).await;
    let id = |name| accounts.tenant_named(name).unwrap().id;
    Bench { queue, tenant: id("shop"), rival: id("rival"), api }
}

fn step(sent: Sent, heard: Heard, took_ms: u32) -> Step {
    Step { sent, heard, took_ms }
}

fn line(text: &str, reply: &Reply) -> Step {
    step(Sent::Line(text.to_owned()), Heard::reply(reply, 500), 3)
}

impl Bench {
    /// A message to two, one of whom was taken and the other put off in one transaction; its id.
    async fn tried(&self) -> String {
        let letter = json!({
            "tenant": "shop", "from": "orders@shop.example.com", "to": ["ann@x.example", "bob@x.example"],
            "subject": "s", "text": "t",
        });
        let (status, sent) = call(&self.api, "POST", "/messages", letter).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{sent}");
        let lane = self.queue.lanes().remove(0).lane;
        let mut claim = self.queue.claim(&lane, 1).remove(0);
        let (ok, later) = (Reply::enhanced(250, 0, 0, "queued as 4F2"), Reply::enhanced(450, 2, 1, "<bob@x.example>?"));
        let peer = Peer {
            host: "mx.x.example".into(),
            address: "192.0.2.1:25".into(),
            source: "192.0.2.9".into(),
            tls: "none".into(),
        };
        let steps = vec![
            step(Sent::Connecting("mx.x.example 192.0.2.1:25".into()), Heard::Done, 1),
            step(Sent::Greeting, Heard::reply(&Reply::new(220, None, "mx.x.example"), 500), 2),
            line("MAIL FROM:<orders@shop.example.com> SIZE=9", &Reply::enhanced(250, 1, 0, "ok")),
            line("RCPT TO:<bob@x.example>", &later),
            line("RCPT TO:<ann@x.example>", &Reply::enhanced(250, 1, 5, "ok")),
            step(Sent::Dot, Heard::reply(&ok, 500), 20),
        ];
        let dialogue = Dialogue { over: Over::New, steps, left_out: 0, took_ms: 40 };
        claim.note(Conversation { recipients: vec![1, 0], dialogue });
        let outcomes = vec![
            (0, Outcome::Delivered { peer: peer.clone(), reply: ok, onward: Onward::Ourselves }),
            (1, Outcome::Deferred { why: Why::TryLater, detail: later.whole(), peer: Some(peer) }),
        ];
        self.queue.settle(claim, outcomes, Timestamp::now()).await.unwrap();
        sent["id"].as_str().unwrap().to_owned()
    }

    async fn page(&self, actor: Actor, id: &str) -> (StatusCode, Value) {
        let mut request = Request::get(format!("/api/v1/messages/{id}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(actor);
        let answer = self.api.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

#[tokio::test]
async fn a_message_page_has_what_was_said_line_by_line_with_times() {
    let bench = bench().await;
    let id = bench.tried().await;
    let (status, page) = bench.page(Actor::of("x", Role::Support(bench.tenant)), &id).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let attempts = page["attempts"].as_array().unwrap();
    let of = |status: &str| attempts.iter().find(|one| one["status"] == status).unwrap();
    for status in ["ok", "deferred"] {
        assert_eq!((&of(status)["dialogues"], &of(status)["took_ms"]), (&json!([0]), &json!(40)), "{page}");
    }
    let dialogue = &page["dialogues"][0];
    assert_eq!((&dialogue["recipients"], &dialogue["connection"]), (&json!([1, 0]), &json!("new")));
    let steps = json!([
        {"step": "connect", "sent": "mx.x.example 192.0.2.1:25", "took_ms": 1},
        {"step": "greeting", "code": 220, "text": ["mx.x.example"], "took_ms": 2},
        {"step": "command", "sent": "MAIL FROM:<orders@shop.example.com> SIZE=9", "code": 250, "enhanced": "2.1.0",
            "text": ["ok"], "took_ms": 3},
        {"step": "command", "sent": "RCPT TO:<bob@x.example>", "code": 450, "enhanced": "4.2.1",
            "text": ["<recipient>?"], "took_ms": 3},
        {"step": "command", "sent": "RCPT TO:<ann@x.example>", "code": 250, "enhanced": "2.1.5", "text": ["ok"],
            "took_ms": 3},
        {"step": "dot", "sent": ".", "code": 250, "enhanced": "2.0.0", "text": ["queued as 4F2"], "took_ms": 20},
    ]);
    assert_eq!(dialogue["steps"], steps);
    let told: Vec<&str> = page["events"].as_array().unwrap().iter().filter_map(|one| one["text"].as_str()).collect();
    assert!(told.contains(&"recipient 1, 0: tried over a new connection: 6 steps in 40 ms"), "{told:?}");
}

#[tokio::test]
async fn whoever_has_no_part_in_a_message_sees_nothing_of_what_was_said() {
    let bench = bench().await;
    let id = bench.tried().await;
    let narrowed = |narrowing: Narrowing| Actor {
        narrowing: Arc::new(narrowing),
        ..Actor::of("k", Role::TenantAdmin(bench.tenant))
    };
    let elsewhere = Some(vec![crate::mail::Domain::parse("other.example.com").unwrap()]);
    for actor in [
        Actor::of("r", Role::TenantOwner(bench.rival)),
        narrowed(Narrowing { domains: elsewhere, ..Narrowing::default() }),
        narrowed(Narrowing { accounts: Some(Default::default()), ..Narrowing::default() }),
    ] {
        let (status, page) = bench.page(actor, &id).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{page}");
        assert!(!page.to_string().contains("RCPT") && !page.to_string().contains("mx.x.example"), "{page}");
    }
    // Whoever may read the queue alone is told that there was an attempt, and no line of it.
    let (_, queued) = call(&bench.api, "GET", &format!("/queue/{id}"), Value::Null).await;
    assert!(!queued.to_string().contains("RCPT"), "{queued}");
}

#[tokio::test]
async fn of_an_erased_message_nothing_is_shown() {
    let bench = bench().await;
    let id = bench.tried().await;
    for (verb, body) in [("cancel", json!({"recipients": []})), ("erase", Value::Null)] {
        let (status, answer) = call(&bench.api, "POST", &format!("/queue/{id}/{verb}"), body).await;
        assert!(status.is_success(), "{verb}: {answer}");
    }
    let (status, page) = bench.page(Actor::of("x", Role::TenantAdmin(bench.tenant)), &id).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.get("dialogues").is_none() && !page.to_string().contains("RCPT"), "{page}");
    assert!(page["attempts"].as_array().unwrap().iter().all(|one| one.get("dialogues").is_none()), "{page}");
}
