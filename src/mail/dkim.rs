//! DKIM keys and signatures (RFC 6376, Ed25519 by RFC 8463): relaxed/relaxed, no `x=`, no `l=`.
//!
//! Recipe: `generate` keys, keep their PKCS#8 sealed, load them once into [`SigningKeys`], publish
//! [`SigningKeys::public_record`], and `sign` each draft when nothing will change it any more.
//! The body is hashed once for both algorithms. Easy to get wrong: `h=` must name the over-signed
//! fields once more than they occur, or somebody can add a second From that still verifies.

use std::fmt;
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_auth::common::crypto::Algorithm as TagAlgorithm;
use mail_auth::dkim::{Canonicalization, Signature};
use zeroize::Zeroizing;

use super::address::Domain;
use super::canonical::{self, BodyHasher, LineEnd};
use super::header::{Field, HeaderBlock};
use super::message::{Body, Draft};
use crate::ext::Timestamp;

/// The name of the field a signature is written in.
pub const FIELD_NAME: &str = "DKIM-Signature";

/// A signature algorithm that we make keys for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// `rsa-sha256` with a key of 2048 bits.
    Rsa,
    /// `ed25519-sha256` (RFC 8463).
    Ed25519,
}

/// Which signatures a message gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithms {
    /// RSA and Ed25519, one field each. The default.
    #[default]
    Both,
    /// RSA alone, which every verifier knows.
    RsaOnly,
}

/// A freshly made pair of private keys, each as PKCS#8 DER. Seal them before they are stored.
pub struct NewKeys {
    /// RSA, 2048 bits.
    pub rsa: Zeroizing<Vec<u8>>,
    /// Ed25519.
    pub ed25519: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NewKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NewKeys")
    }
}

/// A key that could not be made or read. Says nothing about its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DKIM key: {0}")]
pub struct KeyError(pub String);

/// Why a message was not signed. It is then refused with 451, never sent unsigned.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The spilled body could not be read.
    #[error("the body could not be read for signing: {0}")]
    Body(#[from] io::Error),
    /// The crypto library refused.
    #[error("signing failed: {0}")]
    Crypto(&'static str),
    /// There is no From, without which no signature is valid (RFC 6376 s5.4).
    #[error("there is no From field to sign")]
    NoFrom,
}

/// Makes a new pair. Takes up to a second of CPU for RSA: not for async workers.
pub fn generate() -> Result<NewKeys, KeyError> {
    let failed = |_| KeyError("the crypto library could not make it".to_owned());
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
    let rsa = AsDer::<Pkcs8V1Der>::as_der(&rsa).map_err(failed)?;
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
    Ok(NewKeys { rsa: Zeroizing::new(rsa.as_ref().to_vec()), ed25519: Zeroizing::new(ed25519.as_ref().to_vec()) })
}

/// A loaded pair of private keys. Cheap to clone and to share.
#[derive(Clone)]
pub struct SigningKeys(Arc<Loaded>);

struct Loaded {
    rsa: RsaKeyPair,
    ed25519: Ed25519KeyPair,
    rsa_public: String,
    ed25519_public: String,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SigningKeys")
    }
}

impl SigningKeys {
    /// Loads what [`generate`] made.
    pub fn from_pkcs8(rsa: &[u8], ed25519: &[u8]) -> Result<Self, KeyError> {
        let rsa = RsaKeyPair::from_pkcs8(rsa).map_err(|error| KeyError(error.to_string()))?;
        let ed25519 = Ed25519KeyPair::from_pkcs8(ed25519).map_err(|error| KeyError(error.to_string()))?;
        let rsa_public = AsDer::<PublicKeyX509Der>::as_der(rsa.public_key())
            .map_err(|_| KeyError("its public half cannot be written".to_owned()))?;
        let rsa_public = BASE64.encode(rsa_public.as_ref());
        let ed25519_public = BASE64.encode(ed25519.public_key().as_ref());
        Ok(Self(Arc::new(Loaded { rsa, ed25519, rsa_public, ed25519_public })))
    }

    /// The TXT text to publish at `selector._domainkey.domain` (RFC 6376 s3.6.1, RFC 8463 s4).
    /// The RSA one is longer than 255 octets: in a zone file it is written as several strings.
    pub fn public_record(&self, algorithm: Algorithm) -> String {
        let (kind, public) = self.public(algorithm);
        format!("v=DKIM1; k={kind}; p={public}")
    }

    /// Whether a TXT text found in DNS publishes this very key: tags in any order, white space and
    /// further tags allowed, `v=` and `k=` as they must be. A revoked (`p=`) or foreign key does not.
    /// A record that forbids mail (`s=`) or SHA-256 (`h=`) is of no use and does not count either.
    pub fn is_published_by(&self, algorithm: Algorithm, text: &str) -> bool {
        let (kind, public) = self.public(algorithm);
        let mut found_key = false;
        let mut found_kind = "rsa".to_owned();
        for (position, tag) in text.split(';').enumerate() {
            let Some((name, value)) = tag.split_once('=') else {
                if tag.trim_matches(is_folding_white_space).is_empty() {
                    continue;
                }
                return false;
            };
            let value: String = value.chars().filter(|character| !is_folding_white_space(*character)).collect();
            match name.trim_matches(is_folding_white_space) {
                "v" if position != 0 || value != "DKIM1" => return false,
                "k" => found_kind = value.to_ascii_lowercase(),
                "p" if found_key || value != public => return false,
                "p" => found_key = true,
                "s" if !value.split(':').any(|service| matches!(service, "*" | "email")) => return false,
                "h" if !value.split(':').any(|hash| hash == "sha256") => return false,
                _ => {}
            }
        }
        found_key && found_kind == kind
    }

    fn public(&self, algorithm: Algorithm) -> (&'static str, &str) {
        match algorithm {
            Algorithm::Rsa => ("rsa", &self.0.rsa_public),
            Algorithm::Ed25519 => ("ed25519", &self.0.ed25519_public),
        }
    }

    fn sign(&self, algorithm: Algorithm, text: &[u8]) -> Result<Vec<u8>, SignError> {
        match algorithm {
            Algorithm::Rsa => {
                let mut signature = vec![0; self.0.rsa.public_modulus_len()];
                self.0
                    .rsa
                    .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature)
                    .map_err(|_| SignError::Crypto("rsa-sha256"))?;
                Ok(signature)
            }
            // RFC 8463 s3: Ed25519 signs the SHA-256 hash, not the text.
            Algorithm::Ed25519 => self
                .0
                .ed25519
                .try_sign(digest(&SHA256, text).as_ref())
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SignError::Crypto("ed25519-sha256")),
        }
    }
}

/// FWS of RFC 6376 s2.8; other blanks, such as a no-break space that came along when the record was
/// copied, are none to a verifier.
fn is_folding_white_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

/// In whose name a message is signed.
#[derive(Clone, Copy, Debug)]
pub struct SignAs<'a> {
    /// `d=`.
    pub domain: &'a Domain,
    /// `s=` of the RSA signature.
    pub rsa_selector: &'a str,
    /// `s=` of the Ed25519 signature.
    pub ed25519_selector: &'a str,
    /// The keys whose records those selectors publish.
    pub keys: &'a SigningKeys,
}

impl SignAs<'_> {
    /// The signatures `algorithms` asks for, each as `selector._domainkey.domain`.
    pub fn names(&self, algorithms: Algorithms) -> Vec<String> {
        self.wanted(algorithms).map(|(_, selector)| format!("{selector}._domainkey.{}", self.domain)).collect()
    }

    fn wanted(&self, algorithms: Algorithms) -> impl Iterator<Item = (Algorithm, &str)> {
        let ed25519 = (algorithms == Algorithms::Both).then_some((Algorithm::Ed25519, self.ed25519_selector));
        std::iter::once((Algorithm::Rsa, self.rsa_selector)).chain(ed25519)
    }
}

/// Signs a draft that will not change any more except for the fields returned here, which go on top
/// of it in the order given. `t=` is `now`. Costs about 0.3 ms for RSA and reads a spilled body
/// from disk: not for async workers.
pub fn sign(
    draft: &Draft,
    signer: &SignAs<'_>,
    algorithms: Algorithms,
    now: Timestamp,
) -> Result<Vec<Field>, SignError> {
    if draft.header.count("From") == 0 {
        return Err(SignError::NoFrom);
    }
    let body_hash = hash_body(&draft.body)?;
    let names = signed_names(&draft.header);
    let mut signed_text = Vec::with_capacity(draft.header.length() + 512);
    write_signed_fields(&draft.header, &names, &mut signed_text);
    let fields_end = signed_text.len();
    let mut fields = Vec::with_capacity(2);
    for (algorithm, selector) in signer.wanted(algorithms) {
        let mut signature = Signature {
            v: 1,
            a: match algorithm {
                Algorithm::Rsa => TagAlgorithm::RsaSha256,
                Algorithm::Ed25519 => TagAlgorithm::Ed25519Sha256,
            },
            d: signer.domain.as_str().to_owned(),
            s: selector.to_owned(),
            bh: body_hash.clone(),
            h: names.iter().map(|name| (*name).to_owned()).collect(),
            t: now.as_secs(),
            ch: Canonicalization::Relaxed,
            cb: Canonicalization::Relaxed,
            ..Signature::default()
        };
        let unsigned = written(&signature);
        signed_text.truncate(fields_end);
        canonical::write_header(FIELD_NAME, &unsigned.raw_value, LineEnd::Dropped, &mut signed_text);
        signature.b = signer.keys.sign(algorithm, &signed_text)?;
        fields.push(written(&signature));
    }
    Ok(fields)
}

/// The SHA-256 of the body in relaxed form. Blocks on a spilled body.
fn hash_body(body: &Body) -> io::Result<Vec<u8>> {
    let mut hasher = BodyHasher::new();
    for slice in body.slices() {
        hasher.update(&slice?);
    }
    Ok(hasher.finish().as_ref().to_vec())
}

/// The names for `h=`: each signed field as often as it occurs, the over-signed ones once more.
fn signed_names(header: &HeaderBlock) -> Vec<&'static str> {
    let mut names = Vec::with_capacity(SIGNED.len() * 2);
    for (name, over_signed) in SIGNED {
        let count = header.count(name) + usize::from(*over_signed);
        names.extend(std::iter::repeat_n(*name, count));
    }
    names
}

/// Writes the named fields in relaxed form: of a name given several times the last occurrence
/// first (RFC 6376 s5.4.2); a name without a field left adds nothing.
fn write_signed_fields(header: &HeaderBlock, names: &[&'static str], out: &mut Vec<u8>) {
    for (position, name) in names.iter().enumerate() {
        if position > 0 && names.get(position - 1) == Some(name) {
            continue; // all occurrences were written with the first mention
        }
        let fields: Vec<&Field> = header.all(name).collect();
        for field in fields.iter().rev() {
            canonical::write_header(&field.name, &field.raw_value, LineEnd::Kept, out);
        }
    }
}

/// The signature as a field, folded.
fn written(signature: &Signature) -> Field {
    let mut bytes = Vec::with_capacity(1024);
    signature.write(&mut bytes, true);
    let raw_value = bytes.split_off(FIELD_NAME.len() + 1);
    Field { name: FIELD_NAME.to_owned(), raw_value }
}

/// What is signed when present, and whether it is over-signed.
const SIGNED: &[(&str, bool)] = &[
    ("From", true),
    ("Sender", false),
    ("Reply-To", true),
    ("To", true),
    ("Cc", true),
    ("Subject", true),
    ("Date", true),
    ("Message-ID", true),
    ("In-Reply-To", false),
    ("References", false),
    ("MIME-Version", true),
    ("Content-Type", true),
    ("Content-Transfer-Encoding", false),
    ("List-Id", false),
    ("List-Unsubscribe", false),
    ("List-Unsubscribe-Post", false),
    ("X-Postern-Trace", false),
    ("TLS-Report-Domain", false),
    ("TLS-Report-Submitter", false),
];

#[cfg(test)]
#[path = "dkim_tests.rs"]
mod tests;
