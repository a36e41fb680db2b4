//! TLSA records (RFC 6698) as mail uses them (RFC 7672): which are usable, and a verifier that
//! takes a certificate because DNS vouches for it.
//!
//! It refuses to know whether DNSSEC proved the records: whoever made the [`DanePins`] does.
//! Easy to get wrong: usage 3 pins the server's key alone, so neither its name nor its dates count
//! (RFC 7672 s3.1.1); usage 2 pins an issuer, so both do.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256, Sha512};

use crate::mail::Domain;

/// One TLSA record, its numbers as they are in DNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tlsa {
    /// Certificate usage: 3 is the server's own certificate, 2 an issuer of it.
    pub usage: u8,
    /// 0 is the whole certificate, 1 its public key.
    pub selector: u8,
    /// 0 is the thing itself, 1 its SHA-256, 2 its SHA-512.
    pub matching: u8,
    /// The thing or its digest.
    pub data: Vec<u8>,
}

/// Usage 2: an issuer of the server's certificate.
const DANE_TA: u8 = 2;
/// Usage 3: the server's certificate or key.
const DANE_EE: u8 = 3;

impl Tlsa {
    /// Whether mail may use it: usages 0 and 1 are not for SMTP (RFC 7672 s3.1.3), and a digest has
    /// the length of its kind.
    pub fn is_usable(&self) -> bool {
        let is_sound = match self.matching {
            0 => !self.data.is_empty(),
            1 => self.data.len() == 32,
            2 => self.data.len() == 64,
            _ => false,
        };
        is_sound && self.selector <= 1 && matches!(self.usage, DANE_TA | DANE_EE)
    }

    /// As zone files have it (RFC 6698 s2.2).
    pub fn presentation(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{} {} {} ", self.usage, self.selector, self.matching);
        for octet in &self.data {
            let _ = write!(text, "{octet:02x}");
        }
        text
    }

    fn matches(&self, certificate: &CertificateDer<'_>) -> bool {
        let selected = match self.selector {
            0 => Some(certificate.as_ref()),
            _ => public_key(certificate),
        };
        selected.is_some_and(|bytes| match self.matching {
            0 => bytes == self.data,
            1 => Sha256::digest(bytes).as_slice() == self.data,
            _ => Sha512::digest(bytes).as_slice() == self.data,
        })
    }
}

/// The public key as the certificate writes it (SubjectPublicKeyInfo).
fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.tbs_certificate.subject_pki.raw)
}

/// What DNS, proved by DNSSEC, says about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dane {
    /// One of these must match.
    Pins(Arc<DanePins>),
    /// There are records, and none that we can use: encryption is demanded, and no certificate
    /// (RFC 7672 s2.2).
    Unusable,
}

/// Records to match, and the names a certificate may bear.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DanePins {
    /// Usable ones, in order; never empty.
    pub records: Vec<Tlsa>,
    /// The name the records were found at: the server is asked for it (RFC 7672 s8.1). An issuer's
    /// record is satisfied by a certificate for one of these names.
    pub names: Vec<Domain>,
}

impl Dane {
    /// Sorts out what was found at `name`. Of digests of the same thing only the strongest kind
    /// counts (RFC 7671 s9).
    pub fn of(found: Vec<Tlsa>, name: &Domain) -> Self {
        let mut records: Vec<Tlsa> = found.into_iter().filter(Tlsa::is_usable).collect();
        records.sort();
        records.dedup();
        let strongest = |record: &Tlsa| {
            let alike = records.iter().filter(|one| (one.usage, one.selector) == (record.usage, record.selector));
            alike.map(|one| one.matching).max().unwrap_or(0)
        };
        let kept: Vec<Tlsa> = records
            .iter()
            .filter(|record| record.matching == 0 || record.matching == strongest(record))
            .cloned()
            .collect();
        match kept.is_empty() {
            true => Self::Unusable,
            false => Self::Pins(Arc::new(DanePins { records: kept, names: vec![name.clone()] })),
        }
    }
}

/// Takes what the pins vouch for and nothing else.
#[derive(Debug)]
pub(super) struct DaneVerifier {
    pub(super) pins: Arc<DanePins>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl DaneVerifier {
    /// Whether the chain ends at a pinned issuer and the certificate is for one of the names.
    fn is_issued(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let issuers: Vec<&Tlsa> = self.pins.records.iter().filter(|record| record.usage == DANE_TA).collect();
        let mut roots = RootCertStore::empty();
        for certificate in intermediates.iter().filter(|one| issuers.iter().any(|record| record.matches(one))) {
            // One that cannot be an anchor leads nowhere.
            let _ = roots.add(certificate.clone().into_owned());
        }
        for whole in issuers.iter().filter(|record| (record.selector, record.matching) == (0, 0)) {
            // RFC 7672 s3.1.2: the issuer itself may be in DNS and not in the chain.
            let _ = roots.add(CertificateDer::from(whole.data.clone()));
        }
        let mut last = rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        if roots.is_empty() {
            return Err(last);
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        for name in &self.pins.names {
            let Ok(name) = ServerName::try_from(name.as_str()) else { continue };
            match verifier.verify_server_cert(end_entity, intermediates, &name, &[], now) {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl ServerCertVerifier for DaneVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let own = self.pins.records.iter().filter(|record| record.usage == DANE_EE);
        if own.into_iter().any(|record| record.matches(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        self.is_issued(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
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
#[path = "dane_tests.rs"]
mod tests;
