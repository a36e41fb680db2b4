//! Addresses, domains, ids, xtext, published keys.

use std::sync::LazyLock;

use postern::mail::dkim::{self, Algorithm, SigningKeys};
use postern::mail::{Address, DOMAIN_OCTETS_MAX, Domain, LOCAL_PART_OCTETS_MAX, QueueId, TenantId};
use postern::smtp::{decode_xtext, encode_xtext};
use postern::suppression::Subject;

use super::feed::Feed;

/// Decoded and encoded again it means the same; any printable text survives.
pub fn xtext(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(decoded) = decode_xtext(text) {
        assert!(!decoded.chars().any(char::is_control));
        assert_eq!(decode_xtext(&encode_xtext(&decoded)), Some(decoded));
    }
    let encoded = encode_xtext(text);
    assert!(encoded.bytes().all(|byte| (33..=126).contains(&byte) && byte != b'='), "{encoded}");
    let is_printable = !text.chars().any(char::is_control);
    assert_eq!(decode_xtext(&encoded), is_printable.then(|| text.to_owned()));
}

/// One spelling: what was read is written so that it is read again as the same.
pub fn address(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(domain) = Domain::parse(text) {
        assert_domain(&domain);
    }
    if let Ok(address) = Address::parse(text) {
        assert_address(&address);
        let folded = address.folded();
        assert_eq!(folded.folded(), folded, "folded twice it is another");
        assert_address(&folded);
        assert_eq!(folded.domain(), address.domain());
    }
    if let Ok(subject) = Subject::parse(text) {
        assert_eq!(Subject::parse(&subject.to_string()), Ok(subject));
    }
}

fn assert_domain(domain: &Domain) {
    let name = domain.as_str();
    assert_eq!(Domain::parse(name).as_ref(), Ok(domain));
    assert!((1..=DOMAIN_OCTETS_MAX).contains(&name.len()));
    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte)));
    assert!(name.parse::<std::net::IpAddr>().is_err());
    assert!(domain.is_within(domain));
    if let Some(parent) = domain.parent() {
        assert!(domain.is_within(&parent) && !parent.is_within(domain));
        assert_eq!(Domain::parse(parent.as_str()).as_ref(), Ok(&parent));
    }
}

fn assert_address(address: &Address) {
    let written = address.to_string();
    assert_eq!(Address::parse(&written).as_ref(), Ok(address), "{written:?} is read as another");
    assert!((1..=LOCAL_PART_OCTETS_MAX).contains(&address.local_part().len()));
    assert!(!written.chars().any(char::is_control));
    assert_eq!(address.needs_smtputf8(), !written.is_ascii());
    let stored = serde_json::to_string(address).unwrap();
    assert_eq!(serde_json::from_str::<Address>(&stored).ok().as_ref(), Some(address));
    assert_domain(address.domain());
}

/// An id has one spelling besides its case.
pub fn ids(input: &[u8]) {
    if let Ok(bytes) = <[u8; 16]>::try_from(input) {
        assert_eq!(QueueId(bytes).to_string().parse(), Ok(QueueId(bytes)));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(id) = text.parse::<QueueId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(id) = text.parse::<TenantId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}

static KEYS: LazyLock<SigningKeys> = LazyLock::new(|| {
    let made = dkim::generate().unwrap();
    SigningKeys::from_pkcs8(&made.rsa, &made.ed25519).unwrap()
});

/// Only a record with this very key counts as publishing it, however it is cut and spaced.
pub fn dkim_record(input: &[u8]) {
    let mut feed = Feed(input);
    let algorithm = if feed.flag() { Algorithm::Rsa } else { Algorithm::Ed25519 };
    let other = if algorithm == Algorithm::Rsa { Algorithm::Ed25519 } else { Algorithm::Rsa };
    let record = KEYS.public_record(algorithm);
    let public = record.split("p=").nth(1).unwrap();
    // `$` in the input stands for the key and `%` for the record, which no input could guess.
    let text = String::from_utf8_lossy(feed.rest()).replace('%', &record).replace('$', public);
    if KEYS.is_published_by(algorithm, &text) {
        let packed: String = text.chars().filter(|character| !" \t\r\n".contains(*character)).collect();
        assert!(packed.contains(&format!("p={public}")), "{text}");
        assert!(!KEYS.is_published_by(other, &text), "one record for two algorithms");
    }
    let spaced: String = record.split(' ').collect::<Vec<_>>().join("\t ");
    assert!(KEYS.is_published_by(algorithm, &spaced));
    assert!(!KEYS.is_published_by(algorithm, &record.replace("p=", "p=A")));
}
