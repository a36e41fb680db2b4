//! HTTPS as a client: one GET, for what others publish under their name (policy files).
//!
//! Recipe: [`Fetcher::get`] with limits. It refuses to follow redirects, to speak without TLS, and
//! to know what it fetched. Easy to get wrong: the name comes from a stranger, so every address it
//! has is looked at before anybody connects to it, and nothing it sends may take long or much room.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::tls::{ClientTls, Verify};
use super::{LookupError, Resolver, is_public};
use crate::mail::{Domain, printable};

/// Addresses of a host tried, at most.
const ADDRESSES_TRIED_MAX: usize = 4;
/// Octets of the header of an answer, at most.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Where a fetch may lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Public addresses only.
    #[default]
    Public,
    /// Loopback and private networks too: trials, tests and closed networks.
    Anywhere,
}

/// Limits of one fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// The port; 443 but in tests.
    pub port: u16,
    /// Where it may lead.
    pub reach: Reach,
    /// All of it, from the question for addresses to the last octet.
    pub patience: Duration,
    /// Octets of the body, at most.
    pub body_bytes_max: usize,
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The status.
    pub status: u16,
    /// The media type, lower case, without parameters.
    pub media_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The name leads nowhere, or DNS did not answer.
    #[error("{0}")]
    Lookup(#[from] LookupError),
    /// It leads only where a fetch may not go.
    #[error("{0} has only private addresses")]
    Private(Domain),
    /// Nobody could be connected to.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The handshake failed, or the certificate is not good.
    #[error("TLS: {0}")]
    Tls(String),
    /// What came is no HTTP, or broke off.
    #[error("HTTP: {0}")]
    Http(String),
    /// More than the limit.
    #[error("the body has more than {0} octets")]
    TooLarge(usize),
    /// It took too long.
    #[error("no whole answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Fetches over HTTPS.
#[derive(Clone)]
pub struct Fetcher {
    resolver: Arc<dyn Resolver>,
    tls: Arc<ClientTls>,
}

impl Fetcher {
    /// A fetcher that finds hosts by `resolver` and trusts the roots of `tls`.
    pub fn new(resolver: Arc<dyn Resolver>, tls: Arc<ClientTls>) -> Self {
        Self { resolver, tls }
    }

    /// GET `https://host/path`. A redirect is an answer like any other.
    ///
    /// # Errors
    /// See [`FetchError`]; a status of 404 is no error.
    pub async fn get(&self, host: &Domain, path: &str, limits: &FetchLimits) -> Result<Fetched, FetchError> {
        let answer = tokio::time::timeout(limits.patience, self.get_patiently(host, path, limits)).await;
        answer.unwrap_or(Err(FetchError::TimedOut(limits.patience)))
    }

    async fn get_patiently(&self, host: &Domain, path: &str, limits: &FetchLimits) -> Result<Fetched, FetchError> {
        let plain = self.dial(host, limits).await?;
        let shaken = self.tls.connect(&Verify::Required, host.as_str(), plain).await;
        let (stream, _) = shaken.map_err(|error| FetchError::Tls(error.reason))?;
        let broken = |error: hyper::Error| FetchError::Http(printable(&error.to_string()));
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let named = if limits.port == 443 { host.to_string() } else { format!("{host}:{}", limits.port) };
        let request = Request::get(path)
            .header(header::HOST, named)
            .header(header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| FetchError::Http(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default();
        let media_type = printable(&kind.trim().to_ascii_lowercase());
        let body = Limited::new(answer.into_body(), limits.body_bytes_max).collect().await;
        let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => FetchError::TooLarge(limits.body_bytes_max),
            None => FetchError::Http(printable(&error.to_string())),
        })?;
        Ok(Fetched { status, media_type, body: body.to_bytes().to_vec() })
    }

    async fn dial(&self, host: &Domain, limits: &FetchLimits) -> Result<TcpStream, FetchError> {
        let mut last = None;
        for address in self.addresses(host, limits.reach).await?.into_iter().take(ADDRESSES_TRIED_MAX) {
            match TcpStream::connect(SocketAddr::new(address, limits.port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(format!("{address}: {error}")),
            }
        }
        Err(FetchError::Unreachable(last.unwrap_or_else(|| "no address".to_owned())))
    }

    async fn addresses(&self, host: &Domain, reach: Reach) -> Result<Vec<IpAddr>, FetchError> {
        let (ipv4, ipv6) = tokio::join!(self.resolver.ipv4(host), self.resolver.ipv6(host));
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
            return Err(FetchError::Lookup(failed.unwrap_or(LookupError::NoRecord)));
        }
        if reach == Reach::Public {
            found.retain(|address| is_public(*address));
        }
        if found.is_empty() { Err(FetchError::Private(host.clone())) } else { Ok(found) }
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
