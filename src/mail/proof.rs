//! Which domains a message's DKIM signatures prove (RFC 6376 s6), with mail-auth's verifier. Pure: the keys are
//! looked up by the caller, with [`signature_keys`] first and [`proven_domains`] after.
//!
//! Easy to get wrong: a signature with `l=` leaves the end of the message to anybody, so it proves nothing here;
//! and the verifier must never ask DNS by itself: what was not looked up counts as not there.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use futures_util::FutureExt as _;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::{
    AuthenticatedMessage, DkimResult, DnsError, Error, MessageAuthenticator, Parameters, ResolverCache, Txt,
};

use super::address::Domain;

/// Signatures of one message that are looked at.
pub const SIGNATURES_MAX: usize = 8;

/// The names whose TXT records hold the keys of a message's signatures: `selector._domainkey.domain`.
pub fn signature_keys(message: &[u8]) -> Vec<Domain> {
    let Some(parsed) = AuthenticatedMessage::parse(message) else { return Vec::new() };
    let signatures = parsed.dkim_headers.iter().map(|header| &header.header).take(SIGNATURES_MAX);
    let mut names: Vec<Domain> = signatures
        .filter_map(|signature| Domain::parse(&format!("{}._domainkey.{}", signature.s, signature.d)).ok())
        .collect();
    names.dedup();
    names
}

/// The domains (`d=`) whose signature of the whole message verifies with `records`: TXT records by name, as
/// [`signature_keys`] asked for them.
pub fn proven_domains(message: &[u8], records: &HashMap<Domain, Vec<String>>) -> Vec<Domain> {
    let Some(parsed) = AuthenticatedMessage::parse(message) else { return Vec::new() };
    // It is made of addresses that are never asked: every answer is in the cache.
    let Ok(judge) = MessageAuthenticator::new_cloudflare() else { return Vec::new() };
    let known = Known::of(records);
    let parameters = Parameters::new(&parsed).with_txt_cache(&known);
    let Some(outputs) = judge.verify_dkim(parameters).now_or_never() else { return Vec::new() };
    let passed = outputs.iter().filter(|output| *output.result() == DkimResult::Pass);
    let signatures = passed.filter_map(|output| output.signature()).take(SIGNATURES_MAX);
    let mut domains: Vec<Domain> = signatures
        .filter(|signature| signature.l == 0)
        .filter_map(|signature| Domain::parse(&signature.d).ok())
        .collect();
    domains.dedup();
    domains
}

/// Every answer there is.
struct Known(HashMap<Box<str>, Txt>);

impl Known {
    fn of(records: &HashMap<Domain, Vec<String>>) -> Self {
        let mut known = HashMap::new();
        for (name, texts) in records {
            let key = texts.iter().find_map(|text| DomainKey::parse(text.as_bytes()).ok());
            let answer = key.map_or_else(|| Txt::Error(Error::Dns(DnsError::InvalidRecordType)), Txt::from);
            known.insert(format!("{name}.").into_boxed_str(), answer.clone());
            known.insert(name.as_str().into(), answer);
        }
        Self(known)
    }
}

impl ResolverCache<Box<str>, Txt> for Known {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known = self.0.get(name).cloned();
        Some(known.unwrap_or(Txt::Error(Error::Dns(DnsError::InvalidRecordType))))
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext::Timestamp;
    use crate::mail::dkim::{Algorithm, Algorithms, SignAs, SigningKeys, generate, sign};
    use crate::mail::{Draft, read_whole};

    fn signed() -> (Vec<u8>, HashMap<Domain, Vec<String>>) {
        let new = generate().unwrap();
        let keys = SigningKeys::from_pkcs8(&new.rsa, &new.ed25519).unwrap();
        let domain = Domain::parse("reports.example").unwrap();
        let text = b"From: fbl@reports.example\r\nTo: x@y.example\r\nSubject: a\r\nDate: Tue, 1 Sep 2026 10:00:00 +0000\r\n\r\nbody\r\n";
        let mut draft: Draft = read_whole(text, 10_000).unwrap();
        let sign_as = SignAs { domain: &domain, rsa_selector: "r", ed25519_selector: "e", keys: &keys };
        for field in sign(&draft, &sign_as, Algorithms::Both, Timestamp::now()).unwrap() {
            draft.header.prepend_field(field);
        }
        let mut message = draft.header.to_bytes();
        message.extend_from_slice(b"\r\n");
        draft.body.slices().for_each(|slice| message.extend_from_slice(&slice.unwrap()));
        let name = |selector: &str| Domain::parse(&format!("{selector}._domainkey.reports.example")).unwrap();
        let records = HashMap::from([
            (name("r"), vec![keys.public_record(Algorithm::Rsa)]),
            (name("e"), vec![keys.public_record(Algorithm::Ed25519)]),
        ]);
        (message, records)
    }

    #[tokio::test]
    async fn a_signature_proves_its_domain_with_its_key_and_for_these_octets_only() {
        let (message, records) = signed();
        let mut asked = signature_keys(&message);
        asked.sort();
        let mut names: Vec<Domain> = records.keys().cloned().collect();
        names.sort();
        assert_eq!(asked, names);
        assert_eq!(proven_domains(&message, &records), [Domain::parse("reports.example").unwrap()]);
        assert!(proven_domains(&message, &HashMap::new()).is_empty(), "no key, no proof, and nobody is asked");
        let mut changed = message;
        let at = changed.len() - 4;
        changed[at] ^= 1;
        assert!(proven_domains(&changed, &records).is_empty());
    }
}
