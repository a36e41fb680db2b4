//! The door over the network: TLS with the instance's certificate, then the same API as on the
//! local socket, for people with sessions and machines with keys.
//!
//! Easy to get wrong: the handshake is a peer's to stall, so it has a permit and a time limit of its
//! own, and a slow one keeps nobody else waiting.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::background::{Shutdown, Tasks};

/// A handshake that takes longer is given up.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// A client that does not finish its request's header within this is cut off.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Running requests get this long at shutdown.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where a request over the network came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkPeer(pub IpAddr);

/// The TLS settings to use for a connection made now.
pub type TlsNow = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Serves `router` on `listener` until `shutdown`; `connections_max` at the same time.
pub async fn serve(listener: TcpListener, tls: TlsNow, router: Router, connections_max: usize, shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(connections_max.max(1)));
    let tasks = Tasks::new();
    loop {
        let accept = async {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(std::io::Error::other)?;
            listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let (tls, router, shutdown) = (tls(), router.clone(), shutdown.clone());
                tasks.spawn(async move {
                    converse((stream, peer), tls, router, shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    let _ = tokio::time::timeout(DRAIN_PATIENCE, tasks.wait()).await;
}

async fn converse(
    (stream, peer): (TcpStream, SocketAddr),
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: Shutdown,
) {
    let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, TlsAcceptor::from(tls).accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, %peer, "a handshake on the admin port failed"),
        Err(_) => return tracing::debug!(%peer, "a handshake on the admin port took too long"),
    };
    let from = NetworkPeer(peer.ip().to_canonical());
    let router = router.layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
        request.extensions_mut().insert(from);
        next.run(request)
    }));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection on the admin port ended early");
    }
}
