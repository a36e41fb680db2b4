//! An authenticator and its browser in one, for tests: makes and proves passkeys as WebAuthn s6 and s5.8.1 say, and
//! lies where a test tells it to. P-256 only; its CBOR is the few bytes that are needed.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ext;

/// Where the tests' people reach the API.
pub(crate) const ORIGIN: &str = "https://mx.example.com";
/// What comes before an uncompressed P-256 point in a SubjectPublicKeyInfo.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;
const HAS_CREDENTIAL: u8 = 0x40;

/// One passkey on a device, and what it says of itself.
pub(crate) struct Authenticator {
    key: EcdsaKeyPair,
    /// What it calls the passkey.
    pub(crate) credential: Vec<u8>,
    /// Signatures it says it has made.
    pub(crate) counter: u32,
    /// What its browser says the page is.
    pub(crate) origin: String,
    /// The host it signs for, if not the one it is asked for.
    pub(crate) host: Option<String>,
    /// The kind of ceremony its browser says it is, if not the right one.
    pub(crate) kind: Option<&'static str>,
    /// Whether somebody touched it.
    pub(crate) is_touched: bool,
    /// Whether it counts what it signs; many do not.
    pub(crate) counts: bool,
}

impl Authenticator {
    pub(crate) fn new() -> Self {
        Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
            credential: ext::random_bytes::<32>().to_vec(),
            counter: 0,
            origin: ORIGIN.to_owned(),
            host: None,
            kind: None,
            is_touched: true,
            counts: true,
        }
    }

    /// What `navigator.credentials.create` gives for these options, as `toJSON` writes it.
    pub(crate) fn make(&mut self, options: &Value) -> Value {
        self.counter += u32::from(self.counts);
        let point = self.key.public_key().as_ref();
        let length = u16::try_from(self.credential.len()).unwrap().to_be_bytes();
        let mut data = self.data(options["rp"]["id"].as_str().unwrap(), HAS_CREDENTIAL);
        // No AAGUID; the key as COSE: {1: 2, 3: -7, -1: 1, -2: x, -3: y}.
        data.extend([[0; 16].as_slice(), &length, &self.credential].concat());
        data.extend([&[0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32], &point[1..33]].concat());
        data.extend([&[0x22, 0x58, 32], &point[33..65]].concat());
        // {"fmt": "none", "attStmt": {}, "authData": data}
        let attested = [b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x58".as_slice(), &[data.len() as u8], &data];
        json!({
            "id": encoded(&self.credential),
            "rawId": encoded(&self.credential),
            "type": "public-key",
            "authenticatorAttachment": "cross-platform",
            "clientExtensionResults": {"credProps": {"rk": false}},
            "response": {
                "clientDataJSON": encoded(&self.client_data("webauthn.create", options)),
                "authenticatorData": encoded(&data),
                "attestationObject": encoded(&attested.concat()),
                "transports": ["usb", "nfc"],
                "publicKey": encoded(&[SPKI.as_slice(), point].concat()),
                "publicKeyAlgorithm": -7,
            },
        })
    }

    /// What `navigator.credentials.get` gives for these options, as `toJSON` writes it.
    pub(crate) fn prove(&mut self, options: &Value) -> Value {
        self.counter += u32::from(self.counts);
        let data = self.data(options["rpId"].as_str().unwrap(), 0);
        let client = self.client_data("webauthn.get", options);
        let signed = [data.as_slice(), &Sha256::digest(&client)].concat();
        let signature = self.key.sign(&SystemRandom::new(), &signed).unwrap();
        json!({
            "id": encoded(&self.credential),
            "rawId": encoded(&self.credential),
            "type": "public-key",
            "authenticatorAttachment": "cross-platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": encoded(&client),
                "authenticatorData": encoded(&data),
                "signature": encoded(signature.as_ref()),
                "userHandle": null,
            },
        })
    }

    fn data(&self, host: &str, flags: u8) -> Vec<u8> {
        let host = self.host.as_deref().unwrap_or(host);
        let touched = if self.is_touched { USER_PRESENT | USER_VERIFIED } else { 0 };
        let hash: [u8; 32] = Sha256::digest(host.as_bytes()).into();
        [hash.as_slice(), &[flags | touched], &self.counter.to_be_bytes()].concat()
    }

    fn client_data(&self, kind: &str, options: &Value) -> Vec<u8> {
        let kind = self.kind.unwrap_or(kind);
        let said = json!({
            "type": kind, "challenge": options["challenge"], "origin": self.origin, "crossOrigin": false,
        });
        said.to_string().into_bytes()
    }
}

pub(crate) fn encoded(octets: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// The octets of a field of an answer, changed.
pub(crate) fn tampered(answer: &Value, field: &str, change: impl FnOnce(&mut Vec<u8>)) -> Value {
    let mut answer = answer.clone();
    let mut octets = URL_SAFE_NO_PAD.decode(answer["response"][field].as_str().unwrap()).unwrap();
    change(&mut octets);
    answer["response"][field] = json!(encoded(&octets));
    answer
}
