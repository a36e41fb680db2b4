//! Clients of the API over TLS that keep their connection, each asking again as soon as it was answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;

use super::percentile;
use crate::harness::door::Anyone;

/// Asked before the span that counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// One connection.
pub struct Caller {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
    key: String,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Caller {
    pub async fn connect(address: SocketAddr, key: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from("mx.test").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        Self { sender, driver, key: key.to_owned() }
    }

    /// One request: status and body.
    pub async fn ask(&mut self, method: &str, path: &str, body: Option<String>) -> (u16, Bytes) {
        let request = hyper::Request::builder().method(method).uri(format!("/api/v1{path}")).header("host", "mx.test");
        let request = request.header("authorization", format!("Bearer {}", self.key));
        let request = request.header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).unwrap();
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    }

    /// One that must succeed, and its answer.
    pub async fn json(&mut self, method: &str, path: &str, body: Option<String>) -> Value {
        let (status, bytes) = self.ask(method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap_or(Value::Null)
    }
}

/// A kind of request; `{n}` in its path and body is another number each time, `{known}` a multiple of ten below
/// `known`.
#[derive(Clone)]
pub struct Question {
    pub name: &'static str,
    pub method: &'static str,
    pub path: String,
    pub body: Option<String>,
    pub known: u64,
}

/// What asking came to, within the span that counts.
#[derive(Default)]
pub struct Answered {
    /// How long each took, in microseconds, sorted.
    pub waits: Vec<u32>,
    /// Answers that are no success, by status.
    pub failed: BTreeMap<u16, usize>,
    pub seconds: f64,
}

impl Answered {
    pub fn per_second(&self) -> f64 {
        self.waits.len() as f64 / self.seconds
    }

    pub fn wait(&self, part: f64) -> f64 {
        percentile(&self.waits, part)
    }
}

/// When it counts.
#[derive(Clone, Copy)]
pub struct Span {
    pub from: Instant,
    pub until: Instant,
}

impl Span {
    pub fn after_warm_up(length: Duration) -> Self {
        let from = Instant::now() + WARM_UP;
        Self { from, until: from + length }
    }

    pub async fn begins(&self) {
        tokio::time::sleep_until(self.from.into()).await;
    }

    pub async fn ends(&self) {
        tokio::time::sleep_until(self.until.into()).await;
    }
}

/// Asks by all clients until the span is over. Whatever was asked and answered within it counts.
pub async fn ask_all(callers: Vec<Caller>, question: &Question, span: Span) -> Answered {
    let mut tasks = tokio::task::JoinSet::new();
    let step = callers.len();
    for (place, caller) in callers.into_iter().enumerate() {
        tasks.spawn(ask_on(caller, question.clone(), (place, step), span));
    }
    let mut all = Answered { seconds: (span.until - span.from).as_secs_f64(), ..Answered::default() };
    while let Some(one) = tasks.join_next().await {
        let one = one.unwrap();
        all.waits.extend(one.waits);
        one.failed.into_iter().for_each(|(status, count)| *all.failed.entry(status).or_default() += count);
    }
    all.waits.sort_unstable();
    all
}

async fn ask_on(mut caller: Caller, question: Question, (first, step): (usize, usize), span: Span) -> Answered {
    let mut own = Answered::default();
    for number in (first..).step_by(step) {
        let began = Instant::now();
        if began >= span.until {
            break;
        }
        let known = (number as u64 * 10) % question.known.next_multiple_of(10);
        let number = number.to_string();
        let path = question.path.replace("{n}", &number).replace("{known}", &known.to_string());
        let body = question.body.as_ref().map(|body| body.replace("{n}", &number));
        let (status, _) = caller.ask(question.method, &path, body).await;
        let ended = Instant::now();
        if began < span.from || ended > span.until {
            continue;
        }
        own.waits.push(u32::try_from((ended - began).as_micros()).unwrap_or(u32::MAX));
        if !(200..300).contains(&status) {
            *own.failed.entry(status).or_default() += 1;
        }
    }
    own
}
