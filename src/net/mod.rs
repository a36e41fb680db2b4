//! The network, at the bottom: names, connections from a chosen address, TLS.
//!
//! Two seams for tests: [`Resolver`] (a zone made of maps) and [`Dialer`] (scripted peers).

mod certificates;
mod dane;
mod dial;
mod dns;
mod fetch;
#[cfg(test)]
pub(crate) mod pages_tests;
mod post;
mod reach;
mod spf;
mod tls;
mod validated;
mod zone;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;

use crate::mail::Domain;

pub use certificates::{CERTIFICATE_POLL, Certificates, Expiry, Issuer, Reloaded};
pub use dane::{Dane, DanePins, Tlsa};
pub use dial::{BoundDialer, is_present};
pub use dns::{DnsSettings, ResolverUnusable, SystemResolver};
pub use fetch::{FetchError, FetchLimits, Fetched, Fetcher, Reach};
pub use post::{Answer, Line, Outgoing, Post, PostError, Poster, TARGET_OCTETS_MAX, Target, TargetUnusable};
pub use reach::{is_public, seen_from_outside};
pub use spf::{SPF_OCTETS_MAX, Spf, SpfAnswer, SpfQuestion, is_spf_record, spf_of, spf_of_each};
pub use tls::{
    CertificateFault, ClientTls, HandshakeError, HandshakeFault, Proof, RootsUnreadable, Secured, Verify, is_tls_fault,
};
pub use validated::Validation;
pub use zone::{Trouble, Zone, ZoneServer};

/// Why a lookup gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The name does not exist (NXDOMAIN).
    #[error("the name does not exist")]
    NoSuchName,
    /// The name exists and has no record of that type.
    #[error("no such record")]
    NoRecord,
    /// Timeout, SERVFAIL, refused, bogus: try again later. Never permanent.
    #[error("DNS did not answer: {0}")]
    Temporary(String),
    /// There is an answer, and DNSSEC refutes it: try again later. Only questions that ask for proof end so.
    #[error("DNSSEC refutes the answer: {0}")]
    Bogus(String),
}

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mx {
    /// Lower is tried first.
    pub preference: u16,
    /// The host; `None` is the root, which alone means null MX (RFC 7505).
    pub host: Option<Domain>,
}

/// DNS.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// MX records of `domain`.
    async fn mx(&self, domain: &Domain) -> Result<Vec<Mx>, LookupError>;
    /// A records of `host`, CNAMEs followed.
    async fn ipv4(&self, host: &Domain) -> Result<Vec<Ipv4Addr>, LookupError>;
    /// AAAA records of `host`, CNAMEs followed.
    async fn ipv6(&self, host: &Domain) -> Result<Vec<Ipv6Addr>, LookupError>;
    /// TXT records of `name`, each with its strings joined.
    async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError>;
    /// PTR names of `address`.
    async fn ptr(&self, address: IpAddr) -> Result<Vec<Domain>, LookupError>;

    /// The mail exchangers of `domain` (itself, if it has no MX record) if DNSSEC proves them; `None`
    /// if nothing does. Answers that DNSSEC refutes are [`LookupError::Bogus`].
    async fn proven_mx(&self, domain: &Domain) -> Result<Option<Vec<Domain>>, LookupError> {
        let _ = domain;
        Ok(None)
    }

    /// What DNSSEC proves about the certificate of `host` at `port` (RFC 7672); `None` if nothing.
    /// Answers that DNSSEC refutes are [`LookupError::Bogus`].
    async fn dane(&self, host: &Domain, port: u16) -> Result<Option<Dane>, LookupError> {
        let _ = (host, port);
        Ok(None)
    }

    /// What the SPF record of a sender's domain says of an address.
    async fn spf(&self, asked: &SpfQuestion<'_>) -> SpfAnswer {
        let _ = asked;
        SpfAnswer { result: Spf::TemporaryError, good_until: None }
    }
}

/// Why a connection could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Our own address is not on this host: the mail waits, it never leaves by another.
    #[error("the source address {0} is not on this host")]
    SourceMissing(IpAddr),
    /// Refused, unreachable, timed out.
    #[error("{0}")]
    Failed(String),
}

/// Connecting out.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Connects to `target` from exactly `source` and checks the local address afterwards.
    async fn dial(&self, source: IpAddr, target: SocketAddr, patience: Duration) -> Result<TcpStream, DialError>;
}
