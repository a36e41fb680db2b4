//! Mail handed in over the API of a whole daemon: delivered signed, labels for ourselves only, once.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use postern::net::Zone;
use postern::sink::{Received, Sink};
use postern::vips::Owner;
use serde_json::{Value, json};

use crate::harness::daemon::{Running, certificate_folder};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn zone() -> Zone {
    Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", LOCALHOST)
}

fn sink(folder: &Path) -> Sink {
    let folder = certificate_folder(&folder.join("sink"), "mx.receiver.test");
    Sink::start(SocketAddr::from((LOCALHOST, 0)), "mx.receiver.test", &folder).unwrap()
}

async fn shop(running: &Running) {
    let tenant = running.tenant("shop").await;
    running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
}

/// One request over the local socket: status, whether it was answered before, body.
pub async fn ask(running: &Running, method: &str, path: &str, key: Option<&str>, body: Value) -> (u16, bool, Value) {
    let stream = tokio::net::UnixStream::connect(&running.daemon.socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(format!("/api/v1{path}")).header("host", "postern");
    request = request.header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let answer = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (status, replayed) = (answer.status().as_u16(), answer.headers().contains_key("idempotency-replayed"));
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, replayed, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn next(sink: Sink) -> (Sink, Received) {
    let waited = tokio::task::spawn_blocking(move || {
        let received = sink.received.recv_timeout(Duration::from_secs(120)).unwrap();
        (sink, received)
    });
    waited.await.unwrap()
}

fn letter(subject: &str) -> Value {
    json!({
        "tenant": "shop",
        "from": "Shop <orders@shop.example.com>",
        "to": ["someone@receiver.test"],
        "bcc": ["hidden@receiver.test"],
        "subject": subject,
        "text": "Grüße",
        "tags": ["order"],
        "metadata": {"order-id": "4711"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_by_http_is_delivered_signed_and_its_labels_stay_with_us() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    shop(&running).await;
    let (status, _, sent) = ask(&running, "POST", "/messages", None, letter("By HTTP")).await;
    assert_eq!((status, &sent["recipients"][0]["status"]), (202, &json!("queued")), "{sent}");
    let (sink, received) = next(sink).await;
    let message = String::from_utf8(received.message.clone()).unwrap();
    assert!(message.contains("DKIM-Signature:") && message.contains("Subject: By HTTP\r\n"), "{message}");
    for hidden in ["4711", "hidden@", "X-Tag", "X-Metadata"] {
        assert!(!message.contains(hidden), "{hidden} is shown: {message}");
    }
    let path = format!("/queue/{}", sent["id"].as_str().unwrap());
    let (_, _, shown) = ask(&running, "GET", &path, None, Value::Null).await;
    assert_eq!((&shown["tags"], &shown["metadata"]["order-id"]), (&json!(["order"]), &json!("4711")));
    drop(sink);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_a_restart_is_answered_and_not_delivered_again() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let port = sink.address.port();
    let running = Running::start(zone(), port).await;
    shop(&running).await;
    let (status, _, first) = ask(&running, "POST", "/messages", Some("order-1"), letter("Once")).await;
    assert_eq!(status, 202, "{first}");
    let (sink, _) = next(sink).await;
    let (folder, zone) = running.stop().await;
    let running = Running::start_in(folder, zone, port).await;
    let again = ask(&running, "POST", "/messages", Some("order-1"), letter("Once")).await;
    assert_eq!(again, (202, true, first));
    // What comes next is what is handed in next.
    ask(&running, "POST", "/messages", Some("order-2"), letter("Twice")).await;
    let (_sink, received) = next(sink).await;
    assert!(String::from_utf8_lossy(&received.message).contains("Subject: Twice"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_in_fields_of_a_message_by_smtp_are_read_and_taken_out() {
    let beside = tempfile::tempdir().unwrap();
    let sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    shop(&running).await;
    let tenant = running.daemon.accounts.tenant_named("shop").unwrap().id;
    let login = running.account(tenant).await;
    let message = "From: <orders@shop.example.com>\r\nTo: <someone@receiver.test>\r\nX-Tag: order\r\n\
        X-Metadata-Order-Id: 4711\r\nSubject: labelled\r\n\r\nx";
    let reply = running.submit(&login, "orders@shop.example.com", "someone@receiver.test", message).await;
    let id = reply.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(reply.starts_with("250 "), "{reply}");
    let (_sink, received) = next(sink).await;
    let text = String::from_utf8_lossy(&received.message).into_owned();
    assert!(text.contains("Subject: labelled") && !text.contains("X-Tag") && !text.contains("4711"), "{text}");
    let (_, _, shown) = ask(&running, "GET", &format!("/queue/{id}"), None, Value::Null).await;
    assert_eq!((&shown["tags"], &shown["metadata"]), (&json!(["order"]), &json!({"order-id": "4711"})), "{shown}");
    let wrong = message.replace("X-Tag: order", "X-Send-At: soon");
    let reply = running.submit(&login, "orders@shop.example.com", "someone@receiver.test", &wrong).await;
    assert!(reply.starts_with("550 5.6.0 ") && reply.contains("X-Send-At"), "{reply}");
    running.stop().await;
}

/// What would write a line of its own if a field let it: ends of lines of every kind, what decodes or
/// truncates to one, and the end of the octets for whoever counts in C.
const INJECTIONS: [&str; 9] = [
    "x\r\nX-Injected: yes\r\n",
    "x\nX-Injected: yes",
    "x\rX-Injected: yes",
    "x\r\n\r\nX-Injected: in the body",
    "x%0d%0aX-Injected: yes",
    "x=?utf-8?q?=0d=0aX-Injected:_yes?=",
    "x\u{560d}\u{560a}X-Injected: yes",
    "x\u{85}\u{2028}X-Injected: yes",
    "x\u{0}\r\nX-Injected: yes",
];

/// The letter with a text in one of its fields.
fn with(field: &str, text: &str) -> Value {
    let mut letter = letter("injected");
    match field {
        "from name" => letter["from"] = json!(format!("{text} <orders@shop.example.com>")),
        "from quoted" => letter["from"] = json!(format!("\"{text}\" <orders@shop.example.com>")),
        "from local part" => letter["from"] = json!(format!("\"{text}\"@shop.example.com")),
        "to name" => letter["to"] = json!([format!("{text} <someone@receiver.test>")]),
        "to local part" => letter["to"] = json!([format!("\"{text}\"@receiver.test")]),
        "cc" | "bcc" | "reply_to" => letter[field] = json!([format!("\"{text}\" <someone@receiver.test>")]),
        "header name" => letter["headers"] = json!({text: "value"}),
        "header value" => letter["headers"] = json!({"X-Own": text}),
        "tag" => letter["tags"] = json!([text]),
        "metadata name" => letter["metadata"] = json!({text: "value"}),
        "metadata value" => letter["metadata"] = json!({"order-id": text}),
        "attachment name" => {
            letter["attachments"] = json!([{"name": text, "content": "eA==", "content_type": "text/plain"}])
        }
        "attachment type" => letter["attachments"] = json!([{"name": "x", "content": "eA==", "content_type": text}]),
        "attachment id" => {
            letter["attachments"] =
                json!([{"name": "x", "content": "eA==", "content_type": "image/png", "content_id": text}]);
        }
        field => letter[field] = json!(text),
    }
    letter
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_in_any_field_of_a_message_by_http_becomes_a_line_or_a_recipient() {
    let beside = tempfile::tempdir().unwrap();
    let mut sink = sink(beside.path());
    let running = Running::start(zone(), sink.address.port()).await;
    shop(&running).await;
    let fields = [
        "from name",
        "from quoted",
        "from local part",
        "to name",
        "to local part",
        "cc",
        "bcc",
        "reply_to",
        "subject",
        "header name",
        "header value",
        "tag",
        "metadata name",
        "metadata value",
        "attachment name",
        "attachment type",
        "attachment id",
        "return_path",
        "send_at",
        "tenant",
    ];
    let (mut refused, mut taken) = (0, 0);
    for field in fields {
        for text in INJECTIONS {
            let (status, _, answer) = ask(&running, "POST", "/messages", None, with(field, text)).await;
            assert!(status == 202 || (400..500).contains(&status), "{field} {text:?}: {status} {answer}");
            if status != 202 {
                refused += 1;
                continue;
            }
            taken += 1;
            let received;
            (sink, received) = next(sink).await;
            let is_ours = |address: &String| address.contains("@receiver.test");
            assert!(received.recipients.iter().all(is_ours) && received.recipients.len() <= 2, "{field} {text:?}");
            let message = String::from_utf8_lossy(&received.message).into_owned();
            let (header, _) = message.split_once("\r\n\r\n").unwrap();
            for line in header.split("\r\n") {
                let line = line.to_ascii_lowercase();
                assert!(!line.starts_with("x-injected") && !line.starts_with("bcc"), "{field} {text:?}:\n{header}");
                assert!(!line.contains(['\r', '\n', '\0']), "{field} {text:?}:\n{header}");
            }
            assert!(!message.replace("\r\n", "").contains(['\r', '\n', '\0']), "{field} {text:?}: {message:?}");
        }
    }
    println!("{refused} refused, {taken} taken");
    assert!(refused > 50 && taken > 10, "{refused} refused, {taken} taken");
    drop(sink);
    running.stop().await;
}
