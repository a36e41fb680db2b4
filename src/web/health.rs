//! `/health/live`, `/health/ready` and `/metrics`, on a loopback listener without login.
//!
//! Live means the process answers; ready means it accepts mail now. It refuses to know why:
//! the daemon gives it a function that lists the reasons against.
//! Easy to get wrong: nothing here may name a tenant, a login or an address.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::background::Shutdown;

/// One thing worth saying about the daemon's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// For machines: `starting`, `draining`, `store-stopped`, ...
    pub code: &'static str,
    /// For people.
    pub text: String,
}

/// The state of the daemon as seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Why no mail is accepted now; empty means ready.
    pub reasons: Vec<Remark>,
    /// What deserves attention although mail is accepted.
    pub warnings: Vec<Remark>,
}

impl Readiness {
    /// Whether mail is accepted.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// What the listener asks when it is asked.
pub struct Monitor {
    /// The state now.
    pub readiness: Box<dyn Fn() -> Readiness + Send + Sync>,
    /// The metrics page.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// What the listener said, if it broke.
pub async fn serve(listener: TcpListener, monitor: Arc<Monitor>, shutdown: Shutdown) -> std::io::Result<()> {
    axum::serve(listener, router(monitor)).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}

fn router(monitor: Arc<Monitor>) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(monitor)
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(flatten)]
    readiness: Readiness,
}

async fn live() -> Json<Live> {
    Json(Live { live: true })
}

async fn ready(State(monitor): State<Arc<Monitor>>) -> Response {
    let readiness = (monitor.readiness)();
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready: readiness.is_ready(), readiness })).into_response()
}

async fn metrics(State(monitor): State<Arc<Monitor>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, (monitor.metrics)()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_is_told_with_its_reasons_and_metrics_as_text() {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let readiness = move || {
            let reason = Remark { code: "store-stopped", text: "a sync failed".to_owned() };
            let reasons = if seen.load(Ordering::SeqCst) { vec![reason] } else { Vec::new() };
            Readiness { reasons, warnings: Vec::new() }
        };
        let monitor = Monitor { readiness: Box::new(readiness), metrics: Box::new(|| "postern_ready 1\n".to_owned()) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let served = tokio::spawn(serve(listener, Arc::new(monitor), shutdown.clone()));

        assert!(ask(address, "/health/live").await.ends_with("{\"live\":true}"));
        assert!(ask(address, "/health/ready").await.ends_with(r#"{"ready":true,"reasons":[],"warnings":[]}"#));
        stopped.store(true, Ordering::SeqCst);
        let answer = ask(address, "/health/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#""reasons":[{"code":"store-stopped","text":"a sync failed"}]"#), "{answer}");
        assert!(ask(address, "/metrics").await.ends_with("\r\n\r\npostern_ready 1\n"));
        assert!(ask(address, "/else").await.starts_with("HTTP/1.1 404"));
        shutdown.cancel();
        served.await.unwrap().unwrap();
    }
}
