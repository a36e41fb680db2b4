//! What TLS means towards one mail exchanger of one recipient domain. Pure.
//!
//! Four voices are heard: the setting for all, what an operator said about the domain, MTA-STS
//! (RFC 8461) and DANE (RFC 7672); the strictest wins, except that an operator may waive them all.
//! Easy to get wrong: this is decided for each domain before domains share a site or a connection;
//! and where DANE speaks about a host, MTA-STS does not (RFC 8461 s2).

use super::mta_sts::{Mode, Policy};
use crate::delivery::settings::MxTls;
use crate::delivery::transport::TlsUse;
use crate::mail::Domain;
use crate::net::{Dane, Verify};

/// What an operator said about mail to one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DomainTls {
    /// Policies of the domain are not heeded: it may have mail in plain text.
    Plaintext,
    /// Encryption or nothing, whatever the certificate.
    Encrypted,
    /// A certificate that verifies, or nothing.
    Verified,
}

/// What is known about the recipient domain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Voices<'a> {
    /// The recipient domain.
    pub(super) domain: &'a Domain,
    /// The setting for all domains.
    pub(super) local: MxTls,
    /// What an operator said about this one.
    pub(super) operator: Option<DomainTls>,
    /// Its MTA-STS policy, if it is good.
    pub(super) sts: Option<&'a Policy>,
}

/// What is required of connections to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// Of TLS.
    pub(super) tls: TlsUse,
    /// Who demands it, for people; `None` where only the setting for all speaks.
    pub(super) policy: Option<String>,
}

/// What is required of connections to `host`; `Err` if it gets no mail of this domain, and why.
pub(super) fn demand(voices: &Voices<'_>, host: &str, dane: Option<&Dane>) -> Result<Demand, String> {
    let domain = voices.domain;
    let floor = match (voices.operator, voices.local) {
        (Some(DomainTls::Plaintext), _) => {
            let policy = Some(format!("the operator allows plain text to {domain}"));
            return Ok(Demand { tls: TlsUse::Opportunistic, policy });
        }
        (Some(DomainTls::Verified), _) => demanded(Verify::Required, format!("the operator for {domain}")),
        (Some(DomainTls::Encrypted), MxTls::Opportunistic | MxTls::Encrypted) => {
            demanded(Verify::Opportunistic, format!("the operator for {domain}"))
        }
        (_, MxTls::Verified) => Demand { tls: TlsUse::Required(Verify::Required), policy: None },
        (_, MxTls::Encrypted) => Demand { tls: TlsUse::Required(Verify::Opportunistic), policy: None },
        (_, MxTls::Opportunistic) => Demand { tls: TlsUse::Opportunistic, policy: None },
    };
    let by_dane = match dane {
        // It proves more than a root would, and says so itself.
        Some(Dane::Pins(pins)) => {
            return Ok(demanded(Verify::Dane(pins.clone()), format!("DANE of {host}")));
        }
        Some(Dane::Unusable) => demanded(Verify::Opportunistic, format!("DANE of {host}, without a usable record")),
        None => floor.clone(),
    };
    let by_sts = match voices.sts.map(|policy| (policy.mode, policy.names(host))) {
        Some((Mode::Enforce, true)) => demanded(Verify::Required, format!("MTA-STS of {domain} (enforce)")),
        Some((Mode::Enforce, false)) => {
            return Err(format!("the MTA-STS policy of {domain} (enforce) does not name {host}"));
        }
        Some((Mode::Testing, true)) => noted(format!("MTA-STS of {domain} (testing)")),
        Some((Mode::Testing, false)) => noted(format!("MTA-STS of {domain} (testing) does not name this host")),
        Some((Mode::None, _)) | None => floor.clone(),
    };
    let strictest = [by_dane, by_sts].into_iter().fold(floor, |held, other| {
        let speaks_first = strength(&other.tls) == strength(&held.tls) && held.policy.is_none();
        if strength(&other.tls) > strength(&held.tls) || speaks_first { other } else { held }
    });
    Ok(strictest)
}

/// Whether the policy vouches that `host` is one of the domain's.
pub(super) fn vouches(sts: Option<&Policy>, host: &str) -> bool {
    sts.is_some_and(|policy| policy.mode != Mode::None && policy.names(host))
}

/// Who speaks in the words of a policy, for metrics.
pub(in crate::delivery) fn voice(policy: &str) -> &'static str {
    match policy {
        sts if sts.starts_with("MTA-STS") => "mta-sts",
        dane if dane.starts_with("DANE") => "dane",
        _ => "operator",
    }
}

fn demanded(verify: Verify, policy: String) -> Demand {
    Demand { tls: TlsUse::Required(verify), policy: Some(policy) }
}

fn noted(policy: String) -> Demand {
    Demand { tls: TlsUse::Opportunistic, policy: Some(policy) }
}

fn strength(tls: &TlsUse) -> u8 {
    match tls {
        TlsUse::Never => 0,
        TlsUse::Opportunistic => 1,
        TlsUse::Required(Verify::Opportunistic) => 2,
        TlsUse::Required(Verify::Required) | TlsUse::Implicit => 3,
        TlsUse::Required(Verify::Dane(_)) => 4,
    }
}

#[cfg(test)]
#[path = "tls_policy_tests.rs"]
mod tests;
