//! Under which policies sessions with a host are reported to its domain (RFC 8460), and what kept sessions from
//! coming about. Pure.
//!
//! Easy to get wrong: where DANE speaks about a host, MTA-STS was not asked, so nothing is said about it; and
//! what the operator waived was not applied, so nothing is reported at all.

use super::mta_sts::{Mode, Policy as StsPolicy};
use super::tls_policy::{DomainTls, Voices};
use crate::mail::Domain;
use crate::net::Dane;
use crate::tlsrpt::{Applied, Policy, ResultType};

/// The policies in force for one host.
pub(super) fn applied(
    voices: &Voices<'_>,
    host: &Domain,
    dane: Option<&Dane>,
    fault: Option<(ResultType, String)>,
) -> Vec<Applied> {
    if voices.operator == Some(DomainTls::Plaintext) {
        return Vec::new();
    }
    match (dane, voices.sts) {
        (Some(Dane::Pins(pins)), _) => {
            let base = pins.names.first().unwrap_or(host);
            vec![Policy::tlsa(base, pins.records.iter().map(crate::net::Tlsa::presentation).collect()).into()]
        }
        (Some(Dane::Unusable), _) => {
            let reason = "none of the TLSA records can be used".to_owned();
            vec![Applied { policy: Policy::tlsa(host, Vec::new()), fault: Some((ResultType::TlsaInvalid, reason)) }]
        }
        (None, Some(policy)) if policy.mode != Mode::None => vec![sts(voices.domain, policy).into()],
        (None, None) if fault.is_some() => {
            vec![Applied { policy: Policy::sts(voices.domain, Vec::new(), Vec::new()), fault }]
        }
        (None, _) => vec![Policy::none(voices.domain).into()],
    }
}

/// A host that the policy in force does not name gets no mail, so there is no session.
pub(super) fn unnamed(voices: &Voices<'_>) -> Option<Applied> {
    let policy = sts(voices.domain, voices.sts?);
    Some(Applied {
        policy,
        fault: Some((ResultType::ValidationFailure, "the policy does not name this host".to_owned())),
    })
}

/// DNSSEC refutes what was asked about `name`.
pub(super) fn refuted(name: &Domain, reason: String) -> Applied {
    Applied { policy: Policy::tlsa(name, Vec::new()), fault: Some((ResultType::DnssecInvalid, reason)) }
}

fn sts(domain: &Domain, policy: &StsPolicy) -> Policy {
    Policy::sts(domain, policy.lines(), policy.mx.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::delivery::MxTls;
    use crate::net::Tlsa;

    fn words(all: &[Applied]) -> Vec<String> {
        let fault = |one: &Applied| one.fault.as_ref().map(|(result, _)| result.word()).unwrap_or("fine");
        all.iter().map(|one| format!("{} {} {}", one.policy.kind.word(), one.policy.domain, fault(one))).collect()
    }

    #[test]
    fn each_host_is_reported_under_what_was_applied_to_it() {
        let (domain, host) = (Domain::parse("shop.example").unwrap(), Domain::parse("mx.host.example").unwrap());
        let of = |mode| StsPolicy { mode, max_age: Duration::from_secs(60), mx: vec!["*.host.example".into()] };
        let (testing, none) = (of(Mode::Testing), of(Mode::None));
        let voices = |sts, operator| Voices { domain: &domain, local: MxTls::Opportunistic, operator, sts };
        let pins = Dane::of(vec![Tlsa { usage: 3, selector: 1, matching: 1, data: vec![0xab; 32] }], &host);
        let odd = Dane::of(vec![Tlsa { usage: 1, selector: 1, matching: 1, data: vec![0; 32] }], &host);
        let fault = || Some((ResultType::StsWebpkiInvalid, String::new()));
        for (sts, dane, fault, expected) in [
            (None, None, None, "no-policy-found shop.example fine"),
            (Some(&none), None, None, "no-policy-found shop.example fine"),
            (Some(&testing), None, None, "sts shop.example fine"),
            (Some(&testing), None, fault(), "sts shop.example fine"),
            (None, None, fault(), "sts shop.example sts-webpki-invalid"),
            (Some(&testing), Some(&pins), None, "tlsa mx.host.example fine"),
            (Some(&testing), Some(&odd), None, "tlsa mx.host.example tlsa-invalid"),
        ] {
            assert_eq!(words(&applied(&voices(sts, None), &host, dane, fault)), [expected]);
        }
        assert!(applied(&voices(None, Some(DomainTls::Plaintext)), &host, Some(&pins), None).is_empty());
        let told = applied(&voices(None, None), &host, Some(&pins), None);
        assert_eq!(told[0].policy.strings, [format!("3 1 1 {}", "ab".repeat(32))]);
        let told = applied(&voices(Some(&testing), None), &host, None, None);
        assert_eq!(told[0].policy.strings, ["version: STSv1", "mode: testing", "mx: *.host.example", "max_age: 60"]);
        assert_eq!(words(&[unnamed(&voices(Some(&testing), None)).unwrap()]), ["sts shop.example validation-failure"]);
        assert_eq!(words(&[refuted(&host, String::new())]), ["tlsa mx.host.example dnssec-invalid"]);
    }
}
