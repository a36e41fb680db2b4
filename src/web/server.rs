//! The Unix socket: binding it, accepting with a permit, asking the kernel who the peer is, and
//! the outermost layer of every request (id, time limit, problem documents).
//!
//! Easy to get wrong: a socket file outlives its daemon. A dead one is replaced, a living one is
//! an error, and anything that is not a socket is never touched.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::guard::{self, Guard, PeerUser};
use super::problem::Problem;
use crate::background::{Shutdown, Tasks};
use crate::ext;
use crate::people::Site;

/// Where the admin API listens, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The socket file.
    pub socket: PathBuf,
    /// Members of this Unix group may administer; empty for none.
    pub group: String,
    /// Octets of a request's body, at most (1 MiB).
    pub body_bytes_max: usize,
    /// A request that takes longer is answered 503 (60 s: DNS may be asked); one that brings a large file, if for so
    /// long no piece of it came, or after `UPLOAD_TIME_MAX`.
    pub request_patience: Duration,
    /// Where the API is served over TLS; empty for the local socket only.
    pub listen: Vec<std::net::SocketAddr>,
    /// Where people's browsers reach it; without it there are no passkeys.
    pub site: Option<Site>,
    /// Requests a minute of one person or key over the network; twice that of one network (600).
    pub requests_per_minute_max: u64,
    /// Connections over TLS at the same time, at most (256), and an eighth of the file descriptors; the local socket
    /// has [`SOCKET_CONNECTIONS_MAX`] of its own.
    pub connections_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/postern/admin.sock"),
            group: String::new(),
            body_bytes_max: 1024 * 1024,
            request_patience: Duration::from_secs(60),
            listen: vec![std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 8443))],
            site: None,
            requests_per_minute_max: 600,
            connections_max: 256,
        }
    }
}

/// Connections at the local socket at the same time, at most; further ones wait. Whatever comes over the network
/// takes none of these.
pub const SOCKET_CONNECTIONS_MAX: usize = 64;
/// A client that does not finish its request's header within this is cut off.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Running requests get this long at shutdown.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, so that a full file table does not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A bound socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    guard: Guard,
}

impl Socket {
    /// Binds the socket file. Needs a running tokio.
    ///
    /// # Errors
    /// If another daemon answers there, if the path is something else than a socket, or if it
    /// cannot be made.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let path = settings.socket.clone();
        clear_the_way(&path)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let listener = UnixListener::bind(&path)?;
        let socket = Self { listener, path, guard: Guard::new(&settings.group) };
        std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(socket.mode(&settings.group)))?;
        Ok(socket)
    }

    /// 0660 if the file could be given to the group, else 0600.
    fn mode(&self, group: &str) -> u32 {
        let Some(gid) = guard::group_number(group) else { return 0o600 };
        match std::os::unix::fs::chown(&self.path, None, Some(gid)) {
            Ok(()) => 0o660,
            Err(error) => {
                tracing::warn!(group, %error, "the socket cannot be given to its group: root and the daemon's user only");
                0o600
            }
        }
    }

    /// Serves `router` until `shutdown`, then lets running requests finish for a short while.
    pub async fn serve(self, router: Router, shutdown: Shutdown) {
        let permits = Arc::new(Semaphore::new(SOCKET_CONNECTIONS_MAX));
        let tasks = Tasks::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.accept(&permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (router, guard, shutdown) = (router.clone(), self.guard.clone(), shutdown.clone());
                    tasks.spawn(async move {
                        converse(stream, router, &guard, shutdown).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the local socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(DRAIN_PATIENCE, tasks.wait()).await;
    }

    async fn accept(&self, permits: &Arc<Semaphore>) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = self.listener.accept().await?;
        Ok((stream, permit))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket file nobody listens on any more.
fn clear_the_way(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let text = format!("{} is there and is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let text = "another daemon listens there already".to_owned();
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

async fn converse(stream: UnixStream, router: Router, guard: &Guard, shutdown: Shutdown) {
    let peer = stream.peer_cred().map(|peer| PeerUser { uid: peer.uid(), gid: peer.gid() });
    let actor = peer.as_ref().ok().and_then(|peer| guard.admit(*peer));
    if actor.is_none() {
        tracing::warn!(?peer, "a user who may not administer came to the local socket");
    }
    let router = router.layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
        if let Some(actor) = actor.clone() {
            request.extensions_mut().insert(actor);
        }
        next.run(request)
    }));
    if let Err(error) = speak(TokioIo::new(stream), router, shutdown).await {
        tracing::debug!(%error, "a connection on the local socket ended early");
    }
}

/// Answers what comes over one connection until it ends, or until `shutdown` and the request under way.
pub(super) async fn speak<S>(stream: S, router: Router, shutdown: Shutdown) -> hyper::Result<()>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(stream, TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// A request's name in the daemon's log.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// On every answer that does not say otherwise: nothing is kept, framed, sniffed or told to others.
/// No `Access-Control-*`: pages of other sites get nothing.
const SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Routes that take a large body in pieces, by the end of their path: a request of theirs may last as long as pieces
/// of its body come.
pub(super) const STREAMED: &[&str] = &["/suppression-imports"];
/// How long it may last at most: 256 MiB at 100 kbit/s.
pub const UPLOAD_TIME_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// The answer, unless the request took too long: longer than `patience`, or, if it brings a large body, if for
/// that long neither a piece of it nor the answer came.
async fn patiently(patience: Duration, request: Request, next: Next) -> Option<Response> {
    if !STREAMED.iter().any(|end| request.uri().path().ends_with(end)) {
        return tokio::time::timeout(patience, next.run(request)).await.ok();
    }
    let (came, heard) = watch::channel(());
    let note = move |_: &Result<_, axum::Error>| came.send_replace(());
    let request = request.map(|body| Body::from_stream(body.into_data_stream().inspect(note)));
    let answer = while_heard(next.run(request), heard, || tokio::time::sleep(patience));
    tokio::time::timeout(UPLOAD_TIME_MAX, answer).await.ok().flatten()
}

/// What `work` comes to, unless a whole `pause` goes by in which nothing was heard.
async fn while_heard<T, P: Future<Output = ()>>(
    work: impl Future<Output = T>,
    mut heard: watch::Receiver<()>,
    pause: impl Fn() -> P,
) -> Option<T> {
    tokio::pin!(work);
    let mut goes_on = true;
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            // An error says that the body is over: what follows has one pause more.
            changed = heard.changed(), if goes_on => goes_on = changed.is_ok(),
            () = pause() => return None,
        }
    }
}

/// The outermost layer: gives the request an id, bounds its time, writes problem documents.
pub(super) async fn frame(patience: Duration, mut request: Request, next: Next) -> Response {
    let id = ext::base32(&ext::random_bytes::<10>());
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match patiently(patience, request, next).await {
        Some(response) => response,
        None => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_slow", "this took too long and was given up")
            .into_response(),
    };
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| bare_failure(&response));
    if let Some(problem) = problem {
        // What the layers within said of rates and allowed methods stays; the body is another.
        let mut said = std::mem::take(response.headers_mut());
        said.remove(header::CONTENT_TYPE);
        said.remove(header::CONTENT_LENGTH);
        response = problem.into_document(&id);
        response.headers_mut().extend(said);
    }
    tracing::debug!(request_id = id, %method, path, status = response.status().as_u16(), "request");
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Failures axum answers by itself have no document yet.
fn bare_failure(response: &Response) -> Option<Problem> {
    let (code, detail) = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this resource does not know that method"),
        StatusCode::BAD_REQUEST => ("malformed", "the path or query could not be read"),
        status if status.is_client_error() || status.is_server_error() => ("failed", "the request failed"),
        _ => return None,
    };
    Some(Problem::new(response.status(), code, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_request_lasts_while_pieces_of_its_body_come_and_one_pause_longer() {
        let (came, heard) = watch::channel(());
        let (begun, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, ending) = (Arc::clone(&begun), Arc::clone(&over));
        let pause = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let ending = Arc::clone(&ending);
            async move { ending.notified().await }
        };
        let waiting = tokio::spawn(while_heard(std::future::pending::<()>(), heard, pause));
        for pauses in 1..=50 {
            while begun.load(Ordering::SeqCst) < pauses {
                tokio::task::yield_now().await;
            }
            assert!(!waiting.is_finished(), "each piece begins another pause");
            came.send_replace(());
        }
        over.notify_waiters();
        while !waiting.is_finished() {
            over.notify_waiters();
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.await.unwrap(), None, "nothing came any more");
        let (_, heard) = watch::channel(());
        let done = while_heard(async { 7 }, heard, std::future::pending::<()>).await;
        assert_eq!(done, Some(7));
    }
}
