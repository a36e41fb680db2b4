//! One session as reports see it: which policies were in force, what TLS came to, and so which of the result
//! types of RFC 8460 s4.3 it is. Pure.
//!
//! Easy to get wrong: a policy in testing mode changes nothing about the delivery, and its failures are the
//! very thing its domain wants to hear of; and where no policy is, any encryption is a success.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::mail::{Domain, VipId};

/// Characters kept of a reason.
const REASON_CHARACTERS_MAX: usize = 200;
/// Strings kept of a policy.
const STRINGS_MAX: usize = 50;
/// Characters kept of one of them.
const STRING_CHARACTERS_MAX: usize = 600;
/// What stands for the rest.
const CUT: &str = "[...]";

/// Of which kind a policy is (RFC 8460 s4.4). Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyType {
    /// DANE.
    Tlsa,
    /// MTA-STS.
    Sts,
    /// There was none.
    NoPolicyFound,
}

impl PolicyType {
    /// As it is written in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tlsa => "tlsa",
            Self::Sts => "sts",
            Self::NoPolicyFound => "no-policy-found",
        }
    }
}

/// A policy, as a report names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// Of which kind.
    pub kind: PolicyType,
    /// Whose: the recipient domain, or the name the TLSA records are at (RFC 8460 s1.1).
    pub domain: Domain,
    /// Its text, by line or record.
    pub strings: Vec<String>,
    /// The hosts that an MTA-STS policy names.
    pub mx: Vec<String>,
}

impl Policy {
    /// None was found.
    pub fn none(domain: &Domain) -> Self {
        Self { kind: PolicyType::NoPolicyFound, domain: domain.clone(), strings: Vec::new(), mx: Vec::new() }
    }

    /// An MTA-STS policy of these lines, naming these hosts.
    pub fn sts(domain: &Domain, lines: Vec<String>, mx: Vec<String>) -> Self {
        Self { kind: PolicyType::Sts, domain: domain.clone(), strings: bounded(lines), mx: bounded(mx) }
    }

    /// TLSA records at `base`.
    pub fn tlsa(base: &Domain, records: Vec<String>) -> Self {
        Self { kind: PolicyType::Tlsa, domain: base.clone(), strings: bounded(records), mx: Vec::new() }
    }

    /// About how much memory it takes.
    pub(super) fn octets(&self) -> usize {
        let of = |texts: &[String]| texts.iter().map(|text| text.len().saturating_add(24)).sum::<usize>();
        of(&self.strings).saturating_add(of(&self.mx)).saturating_add(128)
    }
}

/// Strangers' texts: no more of them than anybody reads.
fn bounded(mut texts: Vec<String>) -> Vec<String> {
    if texts.len() > STRINGS_MAX {
        texts.truncate(STRINGS_MAX);
        texts.push(CUT.to_owned());
    }
    for text in &mut texts {
        if text.chars().count() > STRING_CHARACTERS_MAX {
            *text = text.chars().take(STRING_CHARACTERS_MAX).collect::<String>() + " " + CUT;
        }
    }
    texts
}

/// A policy in force for a host, and what is wrong with the policy itself, if anything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// It.
    pub policy: Policy,
    /// Whatever a session comes to, it is this.
    pub fault: Option<(ResultType, String)>,
}

impl From<Policy> for Applied {
    fn from(policy: Policy) -> Self {
        Self { policy, fault: None }
    }
}

/// The result types of RFC 8460 s4.3 that we can find out. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResultType {
    /// The host does not offer it, or refused it.
    StarttlsNotSupported,
    /// The certificate is for other names, or does not match its TLSA record.
    CertificateHostMismatch,
    /// It has expired, or is not valid yet.
    CertificateExpired,
    /// Nobody we know vouches for it.
    CertificateNotTrusted,
    /// Anything else; the reason says what.
    ValidationFailure,
    /// There are TLSA records, and none can be used.
    TlsaInvalid,
    /// DNSSEC refutes the answer.
    DnssecInvalid,
    /// DANE is required and not there; nothing here requires it.
    DaneRequired,
    /// The MTA-STS policy could not be fetched.
    StsPolicyFetchError,
    /// It was fetched and is none.
    StsPolicyInvalid,
    /// The certificate of its host is not good.
    StsWebpkiInvalid,
}

impl ResultType {
    /// As it is written in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::StarttlsNotSupported => "starttls-not-supported",
            Self::CertificateHostMismatch => "certificate-host-mismatch",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateNotTrusted => "certificate-not-trusted",
            Self::ValidationFailure => "validation-failure",
            Self::TlsaInvalid => "tlsa-invalid",
            Self::DnssecInvalid => "dnssec-invalid",
            Self::DaneRequired => "dane-required",
            Self::StsPolicyFetchError => "sts-policy-fetch-error",
            Self::StsPolicyInvalid => "sts-policy-invalid",
            Self::StsWebpkiInvalid => "sts-webpki-invalid",
        }
    }
}

/// In what way a session fell short of verified TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LackKind {
    /// STARTTLS is not offered, or was refused.
    NotOffered,
    /// The certificate is for other names.
    OtherName,
    /// The certificate has expired, or is not valid yet.
    Expired,
    /// Nobody vouches for the certificate.
    Untrusted,
    /// The handshake failed otherwise.
    Other,
}

impl LackKind {
    fn result(self, of: PolicyType) -> ResultType {
        match (self, of) {
            (Self::NotOffered, _) => ResultType::StarttlsNotSupported,
            (Self::OtherName, _) => ResultType::CertificateHostMismatch,
            (Self::Expired, _) => ResultType::CertificateExpired,
            // s4.3.1: "did not adhere to the constraints specified in the ... DANE policy".
            (Self::Untrusted, PolicyType::Tlsa) => ResultType::CertificateHostMismatch,
            (Self::Untrusted, _) => ResultType::CertificateNotTrusted,
            (Self::Other, _) => ResultType::ValidationFailure,
        }
    }
}

/// What a session lacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// In what way.
    pub kind: LackKind,
    /// For people.
    pub reason: String,
}

/// What TLS came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protection {
    /// The certificate verified, by a known root or by DANE.
    Verified,
    /// Encrypted, with a certificate that did not.
    Encrypted(Lack),
    /// No TLS.
    Plain(Lack),
}

/// A session that is counted, or what kept one from coming about.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// The recipient domain.
    pub domain: &'a Domain,
    /// The virtual IP.
    pub vip: VipId,
    /// Our address, if it came to a connection.
    pub source: Option<IpAddr>,
    /// The mail host, if it came to one.
    pub host: Option<&'a str>,
    /// Its address.
    pub address: Option<IpAddr>,
}

impl Applied {
    /// Whether a session satisfied the policy; if not, in which way and why.
    pub(super) fn judge(&self, protection: &Protection) -> Result<(), (ResultType, String)> {
        if let Some((result, reason)) = &self.fault {
            return Err((*result, shortened(reason)));
        }
        let kind = self.policy.kind;
        match (kind, protection) {
            (_, Protection::Verified) | (PolicyType::NoPolicyFound, Protection::Encrypted(_)) => Ok(()),
            (_, Protection::Encrypted(lack) | Protection::Plain(lack)) => {
                Err((lack.kind.result(kind), shortened(&lack.reason)))
            }
        }
    }
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_is_the_result_type_of_the_rfc_under_each_kind_of_policy() {
        use LackKind::{Expired, NotOffered, Other, OtherName, Untrusted};
        let domain = Domain::parse("shop.example").unwrap();
        let policies = [Policy::tlsa(&domain, vec![]), Policy::sts(&domain, vec![], vec![]), Policy::none(&domain)];
        for (kind, expected) in [
            (NotOffered, ["starttls-not-supported"; 3]),
            (OtherName, ["certificate-host-mismatch"; 3]),
            (Expired, ["certificate-expired"; 3]),
            (Untrusted, ["certificate-host-mismatch", "certificate-not-trusted", "certificate-not-trusted"]),
            (Other, ["validation-failure"; 3]),
        ] {
            let lack = || Lack { kind, reason: "because".into() };
            for (policy, expected) in policies.iter().zip(expected) {
                let applied = Applied::from(policy.clone());
                let (result, reason) = applied.judge(&Protection::Plain(lack())).unwrap_err();
                assert_eq!((result.word(), reason.as_str()), (expected, "because"));
                assert_eq!(applied.judge(&Protection::Verified), Ok(()));
                let encrypted = applied.judge(&Protection::Encrypted(lack()));
                assert_eq!(encrypted.is_ok(), policy.kind == PolicyType::NoPolicyFound, "{policy:?} {kind:?}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_policy_itself_is_the_result_whatever_the_session_came_to() {
        let domain = Domain::parse("shop.example").unwrap();
        let fault = Some((ResultType::StsPolicyInvalid, "x".repeat(1_000)));
        let applied = Applied { policy: Policy::sts(&domain, vec![], vec![]), fault };
        let (result, reason) = applied.judge(&Protection::Verified).unwrap_err();
        assert_eq!((result.word(), reason.len()), ("sts-policy-invalid", REASON_CHARACTERS_MAX));
    }

    #[test]
    fn of_a_strangers_policy_no_more_is_kept_than_people_read() {
        let domain = Domain::parse("shop.example").unwrap();
        let policy = Policy::tlsa(&domain, vec!["\u{e9}".repeat(100_000); 500]);
        assert_eq!(policy.strings.len(), STRINGS_MAX + 1);
        assert!(policy.strings[0].ends_with(CUT) && policy.octets() < 80_000, "{}", policy.octets());
    }
}
