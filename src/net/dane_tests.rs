//! Certificates of our own making against records of every usage, selector and kind of match.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// A chain: the server's certificate for `name`, and its issuer's.
fn chain(name: &str) -> [CertificateDer<'static>; 2] {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "issuer");
    let key = KeyPair::generate().unwrap();
    let issuer = authority.self_signed(&key).unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &Issuer::from_params(&authority, &key)).unwrap();
    [leaf.der().clone(), issuer.der().clone()]
}

fn record(usage: u8, selector: u8, matching: u8, certificate: &CertificateDer<'_>) -> Tlsa {
    let bytes = if selector == 0 { certificate.as_ref() } else { public_key(certificate).unwrap() };
    let data = match matching {
        0 => bytes.to_vec(),
        1 => Sha256::digest(bytes).to_vec(),
        _ => Sha512::digest(bytes).to_vec(),
    };
    Tlsa { usage, selector, matching, data }
}

fn name(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn verifies(found: Vec<Tlsa>, chain: &[CertificateDer<'static>], at: &str) -> bool {
    let Dane::Pins(pins) = Dane::of(found, &name(at)) else { panic!("no usable record") };
    let verifier = DaneVerifier { pins, provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()) };
    let asked = ServerName::try_from(at.to_owned()).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &asked, &[], UnixTime::now()).is_ok()
}

#[test]
fn every_usable_kind_of_record_takes_its_own_certificate_and_no_other() {
    let (own, other) = (chain("mx.shop.example"), chain("mx.shop.example"));
    for (usage, pinned, wrong) in [(DANE_EE, &own[0], &other[0]), (DANE_TA, &own[1], &other[1])] {
        for selector in 0..=1 {
            for matching in 0..=2 {
                // The bare key of an issuer, matched whole, needs the issuer in the chain like any other.
                let what = format!("{usage} {selector} {matching}");
                assert!(verifies(vec![record(usage, selector, matching, pinned)], &own, "mx.shop.example"), "{what}");
                assert!(!verifies(vec![record(usage, selector, matching, wrong)], &own, "mx.shop.example"), "{what}");
            }
        }
    }
}

#[test]
fn a_servers_own_record_asks_for_no_name_and_an_issuers_record_does() {
    let chain = chain("somebody.else.example");
    assert!(verifies(vec![record(DANE_EE, 1, 1, &chain[0])], &chain, "mx.shop.example"));
    assert!(!verifies(vec![record(DANE_TA, 1, 1, &chain[1])], &chain, "mx.shop.example"));
    assert!(verifies(vec![record(DANE_TA, 1, 1, &chain[1])], &chain, "somebody.else.example"));
}

#[test]
fn an_issuer_that_stands_in_dns_whole_need_not_be_sent() {
    let chain = chain("mx.shop.example");
    assert!(verifies(vec![record(DANE_TA, 0, 0, &chain[1])], &chain[..1], "mx.shop.example"));
    assert!(!verifies(vec![record(DANE_TA, 0, 1, &chain[1])], &chain[..1], "mx.shop.example"));
}

#[test]
fn a_record_of_an_issuer_is_not_satisfied_by_the_servers_own_certificate() {
    let chain = chain("mx.shop.example");
    assert!(!verifies(vec![record(DANE_TA, 1, 1, &chain[0])], &chain, "mx.shop.example"));
}

#[test]
fn records_that_mail_cannot_use_are_unusable_all_together() {
    let [leaf, _] = chain("mx.shop.example");
    let good = record(DANE_EE, 1, 1, &leaf);
    let odd = [
        Tlsa { usage: 0, ..good.clone() },
        Tlsa { usage: 1, ..good.clone() },
        Tlsa { usage: 255, ..good.clone() },
        Tlsa { selector: 2, ..good.clone() },
        Tlsa { matching: 3, ..good.clone() },
        Tlsa { data: good.data[1..].to_vec(), ..good.clone() },
        Tlsa { matching: 0, data: Vec::new(), ..good.clone() },
    ];
    assert_eq!(Dane::of(odd.to_vec(), &name("mx.shop.example")), Dane::Unusable);
    let mut mixed = odd.to_vec();
    mixed.push(good.clone());
    let Dane::Pins(pins) = Dane::of(mixed, &name("mx.shop.example")) else { panic!("one is usable") };
    assert_eq!(pins.records, [good]);
}

#[test]
fn of_two_digests_of_one_thing_the_stronger_counts() {
    let (own, other) = (chain("mx.shop.example"), chain("mx.shop.example"));
    let records = vec![record(DANE_EE, 1, 1, &own[0]), record(DANE_EE, 1, 2, &other[0])];
    assert!(!verifies(records, &own, "mx.shop.example"), "RFC 7671 s9");
    let records = vec![record(DANE_EE, 1, 1, &own[0]), record(DANE_EE, 0, 2, &other[0])];
    assert!(verifies(records, &own, "mx.shop.example"), "another selector is another thing");
}

#[test]
fn bytes_that_are_no_certificate_match_nothing_and_break_nothing() {
    let [leaf, issuer] = chain("mx.shop.example");
    let rubbish = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff]);
    let records = vec![record(DANE_EE, 1, 1, &leaf), record(DANE_TA, 0, 1, &issuer)];
    assert!(!verifies(records, &[rubbish.clone(), rubbish], "mx.shop.example"));
}
