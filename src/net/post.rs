//! HTTPS as a client: one POST to an address a tenant chose, which is why it trusts nothing about it.
//!
//! Recipe: [`Target::parse`] when the address is set, [`Poster::post`] for each request; a [`Line`] keeps
//! connections to one receiver for the next request. Every address the name has is checked before anybody
//! connects, and the connection goes to the checked address; redirects are answers like any other.
//! Easy to get wrong: a name that was public yesterday may be private now, so it is looked up again for every
//! new connection, and a kept one is not kept for long.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::tls::{ClientTls, Verify};
use super::{LookupError, Reach, Resolver, is_public};
use crate::mail::{Domain, printable};

/// Octets of an address, at most.
pub const TARGET_OCTETS_MAX: usize = 2_048;
/// Octets kept of what is answered; the rest is not read.
pub const ANSWER_OCTETS_MAX: usize = 4_096;
/// Addresses of a host tried, at most.
const ADDRESSES_TRIED_MAX: usize = 3;
/// Octets of the header of an answer, at most.
const HEAD_OCTETS_MAX: usize = 16 * 1024;
/// Fields of it, at most.
const HEAD_FIELDS_MAX: usize = 64;
/// A connection is made to one address for so long; the others get their turn then.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may lie idle, so that its receiver's name is looked up often enough.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// How old a connection may become.
const AGE_MAX: Duration = Duration::from_secs(60);
/// Connections kept idle on one line, at most.
const KEPT_MAX: usize = 4;
/// The port of an address that names none.
const HTTPS: u16 = 443;
/// Lower ports are other protocols', and none of our business.
const UNPRIVILEGED: u16 = 1024;

/// An address that cannot be posted to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetUnusable(String);

/// An address to post to: `https://host[:port][/path][?query]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: Host,
    port: u16,
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Name(Domain),
    Address(IpAddr),
}

impl Target {
    /// Reads an address as people write it.
    ///
    /// # Errors
    /// With a sentence, if it is no `https` address, has a login or fragment in it, or a port of something else.
    pub fn parse(text: &str) -> Result<Self, TargetUnusable> {
        let unusable = |why: &str| Err(TargetUnusable(why.to_owned()));
        if text.len() > TARGET_OCTETS_MAX {
            return Err(TargetUnusable(format!("is longer than {TARGET_OCTETS_MAX} octets")));
        }
        if text.contains('#') {
            return unusable("has a fragment (#), which is never sent");
        }
        let Ok(uri) = text.parse::<hyper::Uri>() else { return unusable("is not an address such as https://...") };
        if uri.scheme_str() != Some("https") {
            return unusable("must begin with https://");
        }
        let Some(authority) = uri.authority() else { return unusable("names no host") };
        if authority.as_str().contains('@') {
            return unusable("has a login in it; give user and password apart");
        }
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default().strip_prefix(':') {
            None => HTTPS,
            Some(port) => match port.parse() {
                Ok(port) => port,
                Err(_) => return unusable("has a port that is no number up to 65535"),
            },
        };
        if port != HTTPS && port < UNPRIVILEGED {
            return Err(TargetUnusable(format!("names port {port}; use {HTTPS}, or one from {UNPRIVILEGED} on")));
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match (bare, host.parse()) {
            (Some(bare), _) => match bare.parse() {
                Ok(address) => Host::Address(IpAddr::V6(address)),
                Err(_) => return unusable("names no host"),
            },
            (None, Ok(address)) => Host::Address(IpAddr::V4(address)),
            (None, Err(_)) => match Domain::parse(host) {
                // 2130706433, 0x7f.1: what some read as an address is not a name either.
                Ok(name) if name.as_str().rsplit('.').next().is_some_and(is_top_level) => Host::Name(name),
                _ => return unusable("names no host"),
            },
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, path })
    }

    /// Refuses an address that is written as a number and may not be reached.
    ///
    /// # Errors
    /// With a sentence. A name is looked up, and judged, when it is posted to.
    pub fn check(&self, reach: Reach) -> Result<(), TargetUnusable> {
        match &self.host {
            Host::Address(address) if !may_reach(*address, reach) => {
                Err(TargetUnusable(format!("leads to {address}, which is not a public address")))
            }
            _ => Ok(()),
        }
    }

    /// The host as the certificate must have it.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// What the `Host` header says (RFC 9110 s7.2).
    fn authority(&self) -> String {
        let host = match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host(),
        };
        if self.port == HTTPS { host } else { format!("{host}:{}", self.port) }
    }
}

/// A top-level domain has a letter and is no hexadecimal number.
fn is_top_level(label: &str) -> bool {
    !label.starts_with("0x") && label.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// IPv4 in IPv6 clothes (mapped, NAT64, 6to4) is nobody's public name, even where what it hides is public.
fn may_reach(address: IpAddr, reach: Reach) -> bool {
    let is_disguised = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => matches!(address.segments(), [0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, ..] | [0x2002, ..]),
    };
    reach == Reach::Anywhere || (is_public(address) && !is_disguised)
}

/// One request.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Header fields beside `Host`, `User-Agent` and the length.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

/// What was answered, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What `Retry-After` asks for, if it is a number of seconds.
    pub retry_after: Option<Duration>,
    /// The first `ANSWER_OCTETS_MAX` octets of the body.
    pub body: Vec<u8>,
    /// Who answered.
    pub peer: SocketAddr,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The name leads nowhere, or DNS did not answer.
    #[error("{0}: {1}")]
    Lookup(String, LookupError),
    /// One of its addresses is not public.
    #[error("{0} leads to {1}, which is not a public address")]
    Private(String, IpAddr),
    /// Nobody could be connected to.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The handshake failed, or the certificate is not good.
    #[error("TLS: {0}")]
    Tls(String),
    /// What came is no HTTP, or broke off.
    #[error("HTTP: {0}")]
    Http(String),
    /// It took too long.
    #[error("no whole answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Posts; a seam for tests.
#[async_trait]
pub trait Post: Send + Sync {
    /// POSTs `request` to `target`; the whole of it takes `patience` at most.
    async fn post(
        &self,
        line: &Line,
        target: &Target,
        request: Outgoing,
        patience: Duration,
    ) -> Result<Answer, PostError>;
}

/// Connections to one receiver that may be used again.
#[derive(Default)]
pub struct Line {
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
    authority: String,
    peer: SocketAddr,
    made: Instant,
    used: Instant,
}

impl Line {
    /// A connection to `authority` that is fresh and whole.
    fn take(&self, authority: &str) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| {
            one.authority == authority
                && one.sender.is_ready()
                && one.made.elapsed() < AGE_MAX
                && one.used.elapsed() < IDLE_MAX
        });
        kept.pop()
    }

    fn put(&self, mut one: Kept) {
        one.used = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(one);
        }
    }
}

/// Posts over the network.
pub struct Poster {
    resolver: Arc<dyn Resolver>,
    tls: ClientTls,
    reach: Reach,
}

impl Poster {
    /// Finds hosts by `resolver` and trusts the roots of `tls`.
    pub fn new(resolver: Arc<dyn Resolver>, tls: ClientTls, reach: Reach) -> Self {
        Self { resolver, tls, reach }
    }

    async fn post_patiently(&self, line: &Line, target: &Target, request: &Outgoing) -> Result<Answer, PostError> {
        let authority = target.authority();
        if let Some(kept) = line.take(&authority) {
            // A receiver may have hung up a moment ago; then nothing was answered, and a new connection decides.
            if let Ok(answer) = converse(kept, line, target, request).await {
                return Ok(answer);
            }
        }
        let (stream, peer) = self.dial(target).await?;
        let shaken = self.tls.connect(&Verify::Required, &target.host(), stream).await;
        let (stream, _) = shaken.map_err(|error| PostError::Tls(error.reason))?;
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(HEAD_OCTETS_MAX).max_headers(HEAD_FIELDS_MAX);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(async move {
            // Its errors are those of the requests on it.
            let _ = connection.await;
        });
        let now = Instant::now();
        let fresh = Kept { sender, _driver: AbortOnDropHandle::new(driver), authority, peer, made: now, used: now };
        converse(fresh, line, target, request).await
    }

    async fn dial(&self, target: &Target) -> Result<(TcpStream, SocketAddr), PostError> {
        let mut last = None;
        for address in self.addresses(target).await?.into_iter().take(ADDRESSES_TRIED_MAX) {
            let peer = SocketAddr::new(address, target.port);
            match tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(peer)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, peer));
                }
                Ok(Err(error)) => last = Some(format!("{peer}: {error}")),
                Err(_) => last = Some(format!("{peer}: no answer within {} s", CONNECT_PATIENCE.as_secs())),
            }
        }
        Err(PostError::Unreachable(last.unwrap_or_else(|| "no address".to_owned())))
    }

    /// Every address of the host, each of them one that may be reached; IPv4 first.
    async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, PostError> {
        let name = match &target.host {
            Host::Name(name) => name,
            Host::Address(address) => return self.checked(target, vec![*address]),
        };
        let (ipv4, ipv6) = tokio::join!(self.resolver.ipv4(name), self.resolver.ipv6(name));
        let mut found: Vec<IpAddr> = Vec::new();
        let mut failed = None;
        match ipv4 {
            Ok(addresses) => found.extend(addresses.into_iter().map(IpAddr::V4)),
            Err(error) => failed = Some(error),
        }
        match ipv6 {
            Ok(addresses) => found.extend(addresses.into_iter().map(IpAddr::V6)),
            Err(error @ (LookupError::Temporary(_) | LookupError::Bogus(_))) => failed = Some(error),
            Err(_) => {}
        }
        if found.is_empty() {
            return Err(PostError::Lookup(name.to_string(), failed.unwrap_or(LookupError::NoRecord)));
        }
        self.checked(target, found)
    }

    /// A host with one private address among public ones is up to no good, or set up wrongly.
    fn checked(&self, target: &Target, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, PostError> {
        match addresses.iter().find(|address| !may_reach(**address, self.reach)) {
            Some(private) => Err(PostError::Private(target.host(), *private)),
            None => Ok(addresses),
        }
    }
}

#[async_trait]
impl Post for Poster {
    async fn post(
        &self,
        line: &Line,
        target: &Target,
        request: Outgoing,
        patience: Duration,
    ) -> Result<Answer, PostError> {
        let answer = tokio::time::timeout(patience, self.post_patiently(line, target, &request)).await;
        answer.unwrap_or(Err(PostError::TimedOut(patience)))
    }
}

fn broken(error: hyper::Error) -> PostError {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    PostError::Http(printable(&format!("{error}{cause}")))
}

async fn converse(mut kept: Kept, line: &Line, target: &Target, request: &Outgoing) -> Result<Answer, PostError> {
    let mut built = Request::post(target.path.as_str())
        .header(header::HOST, target.authority())
        .header(header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &request.fields {
        built = built.header(*name, value);
    }
    let built = built.body(Full::new(request.body.clone())).map_err(|error| PostError::Http(error.to_string()))?;
    kept.sender.ready().await.map_err(broken)?;
    let answer = kept.sender.send_request(built).await.map_err(broken)?;
    let (status, retry_after) = (answer.status().as_u16(), retry_after(&answer));
    let (body, is_whole) = beginning(answer.into_body()).await;
    let peer = kept.peer;
    if is_whole {
        line.put(kept);
    }
    Ok(Answer { status, retry_after, body, peer })
}

fn retry_after(answer: &Response<Incoming>) -> Option<Duration> {
    let value = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// The beginning of a body, and whether that is all of it. What breaks off in the body was still answered.
async fn beginning(mut body: Incoming) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match body.frame().await {
            None => return (bytes, true),
            Some(Err(_)) => return (bytes, false),
            Some(Ok(frame)) => {
                let Ok(chunk) = frame.into_data() else { continue };
                let room = ANSWER_OCTETS_MAX - bytes.len();
                bytes.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
                if chunk.len() > room {
                    return (bytes, false);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "post_tests.rs"]
mod tests;
