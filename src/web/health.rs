//! `/health/live`, `/health/ready` and `/metrics`, on a loopback listener without login.
//!
//! Live means the process answers; ready means it accepts mail now. It refuses to know why:
//! the daemon gives it a function that lists the reasons against.
//! Easy to get wrong: nothing here may name a tenant, a login or an address.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpListener;

use super::connections::{Connections, Turn};
use super::server::{ACCEPT_PAUSE, DRAIN_PATIENCE, speak};
use crate::background::{Shutdown, Tasks};

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

/// Connections at the same time, at most; the one that has been idle longest makes room for another.
pub const CONNECTIONS_MAX: usize = 32;

/// Serves until `shutdown`.
pub async fn serve(listener: TcpListener, monitor: Arc<Monitor>, shutdown: Shutdown) {
    let (router, connections, tasks) = (router(monitor), Arc::<Connections>::default(), Tasks::new());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the monitor port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some((place, _)) = connections.enter(peer.ip(), CONNECTIONS_MAX, Instant::now()) else { continue };
        let (place, shutdown) = (Arc::new(place), shutdown.clone());
        let taken = Arc::clone(&place);
        let router = router.clone().layer(from_fn(move |request: Request, next: Next| {
            Turn::answer(Arc::clone(&taken), request, |request| {
                // Whoever reaches this port is the operator's.
                Turn::known_in(&request);
                next.run(request)
            })
        }));
        tasks.spawn(async move {
            tokio::select! {
                _ = speak(TokioIo::new(stream), router, shutdown) => {}
                () = place.displaced() => {}
            }
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(DRAIN_PATIENCE, tasks.wait()).await;
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
        served.await.unwrap();
    }
}
