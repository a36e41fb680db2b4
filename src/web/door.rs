//! The door over the network: TLS with the instance's certificate, then the same API as on the
//! local socket, for people with sessions and machines with keys.
//!
//! Whoever comes is accepted at once and then either has a place or is closed: nobody waits in the kernel's queue
//! behind the silent. While memory or descriptors run short there are few places.
//! Easy to get wrong: the handshake is a peer's to stall, so it has a place and a time limit of its
//! own, and a slow one keeps nobody else waiting.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::connections::{Connections, Place, Turn};
use super::server::{ACCEPT_PAUSE, DRAIN_PATIENCE, speak};
use crate::background::{Shutdown, Tasks};
use crate::gate::{Gate, Shortage, Work};
use crate::metrics::{ADMIN_BEGUN, ADMIN_CONNECTIONS, ADMIN_DISPLACED, ADMIN_REFUSED};

/// A handshake that takes longer is given up.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Places while memory or file descriptors run short.
pub const SHORT_CONNECTIONS_MAX: usize = 8;
/// The port takes at most this part of the file descriptors: an eighth.
const DESCRIPTORS_PART: u64 = 8;
/// How often idle connections are looked for while something runs short.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Refusals are told no more often than this.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Where a request over the network came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkPeer(pub IpAddr);

/// The TLS settings to use for a connection made now.
pub type TlsNow = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// What is served, and to how many.
pub(super) struct Door {
    tls: TlsNow,
    router: Router,
    gate: Arc<Gate>,
    connections: Arc<Connections>,
    connections_max: usize,
}

impl Door {
    /// A door that holds `connections_max` connections at the same time, on all of its listeners.
    pub(super) fn new(tls: TlsNow, router: Router, gate: Arc<Gate>, connections_max: usize) -> Self {
        Self { tls, router, gate, connections: Arc::default(), connections_max: connections_max.max(1) }
    }

    /// Serves what comes to `listener` until `shutdown`.
    pub(super) async fn serve(&self, listener: TcpListener, shutdown: Shutdown) {
        let (tasks, mut told) = (Tasks::new(), None);
        loop {
            let is_worth_a_look = self.connections.len() > SHORT_CONNECTIONS_MAX;
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
                () = tokio::time::sleep(LOOK_EVERY), if is_worth_a_look => {
                    self.look();
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => match self.admit(peer.ip()) {
                    Some(place) => {
                        let (tls, router, shutdown) = ((self.tls)(), self.router.clone(), shutdown.clone());
                        let (place, connections) = (Arc::new(place), Arc::clone(&self.connections));
                        tasks.spawn(async move {
                            tokio::select! {
                                () = converse((stream, peer), tls, guest(router, peer, &place), shutdown) => {}
                                () = place.displaced() => tracing::debug!(%peer, "made room on the admin port"),
                            }
                            drop(place);
                            count(&connections);
                        });
                    }
                    None if told.is_none_or(|told: Instant| told.elapsed() > TELL_EVERY) => {
                        told = Some(Instant::now());
                        tracing::warn!(%peer, "the admin port has no place left; the local socket has its own");
                    }
                    None => {}
                },
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot accept");
                    self.look();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(DRAIN_PATIENCE, tasks.wait()).await;
    }

    /// How many places there are now, and why not all.
    fn places(&self) -> (usize, Option<Shortage>) {
        let descriptors = self.gate.load().descriptors.map_or(u64::MAX, |fill| fill.limit / DESCRIPTORS_PART);
        let places = self.connections_max.min(usize::try_from(descriptors).unwrap_or(usize::MAX)).max(1);
        match self.gate.shortage_of(Work::Administration) {
            Some(shortage) => (places.min(SHORT_CONNECTIONS_MAX), Some(shortage)),
            None => (places, None),
        }
    }

    /// A place for a connection that was accepted.
    fn admit(&self, peer: IpAddr) -> Option<Place> {
        let (places, shortage) = self.places();
        let Some((place, gone)) = self.connections.enter(peer, places, Instant::now()) else {
            match shortage {
                Some(shortage) => self.gate.shed(Work::Administration, shortage),
                None => metrics::counter!(ADMIN_REFUSED, "reason" => "connections-max").increment(1),
            }
            return None;
        };
        self.gate.count_taken();
        metrics::counter!(ADMIN_DISPLACED).increment(gone as u64);
        metrics::counter!(ADMIN_BEGUN).increment(1);
        count(&self.connections);
        Some(place)
    }

    /// Ends idle connections for which there is no place any more.
    fn look(&self) {
        let (places, _) = self.places();
        metrics::counter!(ADMIN_DISPLACED).increment(self.connections.shrink(places, Instant::now()) as u64);
        count(&self.connections);
    }
}

fn count(connections: &Connections) {
    metrics::gauge!(ADMIN_CONNECTIONS).set(connections.len() as f64);
}

/// The API for one connection: each request says where it came from, and has a turn.
fn guest(router: Router, peer: SocketAddr, place: &Arc<Place>) -> Router {
    let (from, place) = (NetworkPeer(peer.ip().to_canonical()), Arc::clone(place));
    router.layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
        request.extensions_mut().insert(from);
        Turn::answer(Arc::clone(&place), request, |request| next.run(request))
    }))
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
    if let Err(error) = speak(TokioIo::new(stream), router, shutdown).await {
        tracing::debug!(%error, %peer, "a connection on the admin port ended early");
    }
}
