//! TLS as a client: an opportunistic handshake that takes any certificate and says whether it
//! would have passed, one verified by known roots, and one by what DNS pins (DANE).
//!
//! It refuses to decide whether TLS is required. Easy to get wrong: an opportunistic handshake
//! still proves that the peer holds the key of the certificate it showed; only the chain and the
//! name are not insisted upon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dane::{DanePins, DaneVerifier};
use crate::mail::printable;

/// Octets kept of what TLS says is wrong: a certificate for another name is told with all its names, of
/// which a peer may have thousands, and the text is kept with each recipient.
const REASON_OCTETS_MAX: usize = 300;
/// What stands where the rest was cut off.
const CUT: &str = " [...]";

/// How much a handshake insists on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Any certificate will do; whether it would have passed is reported.
    Opportunistic,
    /// The chain must end at a known root and the name must match.
    Required,
    /// DNS vouches for it, by DANE (RFC 7672); known roots do not count.
    Dane(Arc<DanePins>),
}

/// What vouched for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A known root, for the host's name.
    Root,
    /// A TLSA record.
    Dane,
}

/// Why no handshake came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct HandshakeError {
    /// For people, printable.
    pub reason: String,
    /// Whether trying again can end otherwise.
    pub kind: HandshakeFault,
}

/// Kinds of failed handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFault {
    /// The two sides have no version or suite in common: the peer's TLS is too old for us.
    Incompatible,
    /// The certificate is not good enough.
    Certificate(CertificateFault),
    /// The connection broke before the peer had said anything about TLS.
    Lost,
    /// Anything else: nonsense, an alert.
    Other,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// It is for other names.
    OtherName,
    /// It has expired, or is not valid yet.
    Expired,
    /// Nobody we know vouches for it, it does not match its TLSA record, or its chain is broken.
    Untrusted,
}

impl CertificateFault {
    fn of(error: &rustls::CertificateError) -> Self {
        use rustls::CertificateError as Wrong;
        match error {
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => Self::OtherName,
            Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
                Self::Expired
            }
            _ => Self::Untrusted,
        }
    }
}

impl HandshakeError {
    fn of(error: &std::io::Error) -> Self {
        use rustls::{AlertDescription, Error};
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let kind = match inner {
            Some(
                Error::PeerIncompatible(_)
                | Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure),
            ) => HandshakeFault::Incompatible,
            Some(error) => certificate_fault(error).map_or(HandshakeFault::Other, HandshakeFault::Certificate),
            None => HandshakeFault::Lost,
        };
        Self { reason: told(&error.to_string()), kind }
    }
}

/// Whether a connection broke by what its other end's TLS said or did, and not by the network.
pub fn is_tls_fault(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// What is wrong with the certificate, if that is what is wrong.
fn certificate_fault(error: &rustls::Error) -> Option<CertificateFault> {
    match error {
        rustls::Error::InvalidCertificate(wrong) => Some(CertificateFault::of(wrong)),
        rustls::Error::NoCertificatesPresented => Some(CertificateFault::Untrusted),
        _ => None,
    }
}

/// What a handshake agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: String,
    /// The suite's registered name.
    pub suite: String,
    /// What vouched for the certificate; if nothing, why not.
    pub verified: Result<Proof, HandshakeError>,
}

impl Secured {
    /// One line for the trail: `TLSv1.3 TLS13_AES_256_GCM_SHA384, certificate verified`.
    pub fn describe(&self) -> String {
        match &self.verified {
            Ok(Proof::Root) => format!("{} {}, certificate verified", self.version, self.suite),
            Ok(Proof::Dane) => format!("{} {}, certificate matches its TLSA record", self.version, self.suite),
            Err(reason) => format!("{} {}, certificate not verified: {reason}", self.version, self.suite),
        }
    }
}

/// Roots besides the built-in ones cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct RootsUnreadable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: String,
}

/// Client handshakes.
#[derive(Clone)]
pub struct ClientTls {
    opportunistic: TlsConnector,
    required: TlsConnector,
    verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ClientTls {
    /// Mozilla's roots, and those of the PEM file `extra_roots` if one is given (a private CA of
    /// a smarthost, tests).
    pub fn new(extra_roots: Option<&Path>) -> Result<Self, RootsUnreadable> {
        let mut extra = Vec::new();
        if let Some(path) = extra_roots {
            let unreadable = |cause: String| RootsUnreadable { path: path.to_owned(), cause: printable(&cause) };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))? {
                extra.push(certificate.map_err(|error| unreadable(error.to_string()))?);
            }
            if extra.is_empty() {
                return Err(unreadable("no certificate in it".to_owned()));
            }
        }
        Self::with_roots(extra)
            .map_err(|cause| RootsUnreadable { path: extra_roots.map(Path::to_owned).unwrap_or_default(), cause })
    }

    /// Mozilla's roots and `extra`.
    pub fn with_roots(extra: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for certificate in extra {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            opportunistic: connector(&provider, Arc::new(AnyCertificate { provider: provider.clone() }))?,
            required: connector(&provider, verifier.clone())?,
            verifier,
            provider,
        })
    }

    /// Shakes hands with `host` (a name or an address) over `stream`; by DANE with the name its
    /// records were found at. The stream is spent if that fails.
    pub async fn connect(
        &self,
        verify: &Verify,
        host: &str,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Secured), HandshakeError> {
        let other = |reason: String| HandshakeError { reason, kind: HandshakeFault::Other };
        let asked = match verify {
            Verify::Dane(pins) => pins.names.first().map_or(host, |name| name.as_str()),
            Verify::Opportunistic | Verify::Required => host,
        };
        let name =
            ServerName::try_from(asked.to_owned()).map_err(|_| other("not a name TLS can ask for".to_owned()))?;
        let pinned;
        let connector = match verify {
            Verify::Opportunistic => &self.opportunistic,
            Verify::Required => &self.required,
            Verify::Dane(pins) => {
                let verifier = DaneVerifier { pins: pins.clone(), provider: self.provider.clone() };
                pinned = connector(&self.provider, Arc::new(verifier)).map_err(other)?;
                &pinned
            }
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(|error| HandshakeError::of(&error))?;
        let (_, session) = stream.get_ref();
        let verified = match verify {
            Verify::Required => Ok(Proof::Root),
            Verify::Dane(_) => Ok(Proof::Dane),
            Verify::Opportunistic => self.would_verify(&name, session.peer_certificates().unwrap_or_default()),
        };
        let secured = Secured {
            version: session
                .protocol_version()
                .and_then(|version| version.as_str())
                .map_or_else(String::new, |text| text.replace('_', ".")),
            suite: session
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or("unknown suite")
                .to_owned(),
            verified,
        };
        Ok((stream, secured))
    }

    fn would_verify(&self, name: &ServerName<'_>, chain: &[CertificateDer<'_>]) -> Result<Proof, HandshakeError> {
        let untrusted = HandshakeFault::Certificate(CertificateFault::Untrusted);
        let Some((leaf, rest)) = chain.split_first() else {
            return Err(HandshakeError { reason: "no certificate".to_owned(), kind: untrusted });
        };
        let verified = self.verifier.verify_server_cert(leaf, rest, name, &[], UnixTime::now());
        verified.map(|_| Proof::Root).map_err(|error| {
            let kind = certificate_fault(&error).map_or(untrusted, HandshakeFault::Certificate);
            HandshakeError { reason: told(&error.to_string()), kind }
        })
    }
}

/// A reason as it is kept: printable, and cut off with a mark if it is long.
fn told(reason: &str) -> String {
    let mut text = printable(reason);
    if text.len() > REASON_OCTETS_MAX {
        let end = (0..=REASON_OCTETS_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

fn connector(provider: &Arc<CryptoProvider>, verifier: Arc<dyn ServerCertVerifier>) -> Result<TlsConnector, String> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any chain; still checks that the peer holds the key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_certificate_of_many_names_says_is_cut_with_a_mark() {
        let names: Vec<String> = (0..5_000).map(|number| format!("host-{number}.\u{e9}.peer.example")).collect();
        let named = rcgen::generate_simple_self_signed(
            (0..200).map(|number| format!("host-{number}.peer.example")).collect::<Vec<_>>(),
        )
        .unwrap();
        let chain = [named.cert.der().clone()];
        let tls = ClientTls::with_roots(vec![chain[0].clone()]).unwrap();
        let asked = ServerName::try_from("mx.other.example").unwrap();
        let HandshakeError { reason, kind } = tls.would_verify(&asked, &chain).unwrap_err();
        assert_eq!(kind, HandshakeFault::Certificate(CertificateFault::OtherName));
        assert!(reason.starts_with("invalid peer certificate: certificate not valid for name"), "{reason}");
        assert!(reason.ends_with(CUT) && reason.len() <= REASON_OCTETS_MAX + CUT.len(), "{}", reason.len());
        let error = rustls::Error::General(names.join(" "));
        let failed = HandshakeError::of(&std::io::Error::other(error));
        assert!(failed.reason.ends_with(CUT) && failed.reason.len() <= REASON_OCTETS_MAX + CUT.len());
        assert_eq!(told("received fatal alert: BadCertificate"), "received fatal alert: BadCertificate");
    }
}
