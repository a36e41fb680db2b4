//! What a tenant or operator should publish in DNS. Pure: texts out of records.
//!
//! Only the DKIM records are needed for sending; the rest decides whether the mail is believed.
//! Easy to get wrong: the addresses to publish are the public ones where a virtual IP is behind NAT.

use std::net::IpAddr;

use super::record::{KeyPair, SendingDomain};
use crate::mail::Domain;
use crate::net::{is_public, seen_from_outside};
use crate::vips::Vip;

/// Octets in one string of a TXT record (RFC 1035 s3.3.14).
const TXT_STRING_OCTETS_MAX: usize = 255;

/// One record to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRecord {
    /// Its full name, without the last dot.
    pub name: String,
    /// Its type: `TXT`, `A`, `AAAA`, `PTR`.
    pub kind: &'static str,
    /// Its value, in one piece; see [`DnsRecord::zone_line`].
    pub value: String,
    /// Why, in one sentence.
    pub purpose: String,
    /// How much depends on it.
    pub need: Need,
}

/// How much depends on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it nothing is sent.
    Required,
    /// Without it peers will trust the mail less, or refuse it.
    Advised,
}

impl DnsRecord {
    /// As a line of a zone file; a long TXT is split into strings (RFC 7208 s3.3, RFC 6376 s3.6.2.2).
    pub fn zone_line(&self) -> String {
        if self.kind != "TXT" {
            return format!("{}. IN {} {}", self.name, self.kind, self.value);
        }
        let characters: Vec<char> = self.value.chars().collect();
        let strings = characters.chunks(TXT_STRING_OCTETS_MAX).map(|chunk| {
            let text: String = chunk.iter().collect();
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        });
        format!("{}. IN TXT {}", self.name, strings.collect::<Vec<_>>().join(" "))
    }
}

/// The records of a sending domain whose mail leaves by `vips`; SPF names each address.
pub fn domain_records(domain: &SendingDomain, vips: &[Vip]) -> Vec<DnsRecord> {
    domain_records_with(domain, vips, None)
}

/// The same; SPF includes the service's name instead, if it has one.
pub fn domain_records_with(domain: &SendingDomain, vips: &[Vip], include: Option<&Domain>) -> Vec<DnsRecord> {
    let mut records = key_records(domain, &domain.keys);
    if let Some(next) = &domain.next_keys {
        records.extend(key_records(domain, next));
    }
    let addresses: Vec<IpAddr> = vips.iter().flat_map(public_addresses).collect();
    if !addresses.is_empty() {
        let terms = spf_terms(&domain.domain, &addresses, include);
        records.push(DnsRecord {
            name: domain.domain.to_string(),
            kind: "TXT",
            value: format!("v=spf1 {terms} ~all"),
            purpose: format!("SPF, at the domain of MAIL FROM; if there is a v=spf1 record already, add {terms} to it"),
            need: Need::Advised,
        });
    }
    records.push(DnsRecord {
        name: format!("_dmarc.{}", domain.domain),
        kind: "TXT",
        value: "v=DMARC1; p=none".to_owned(),
        purpose: "DMARC; keep an existing record, and tighten p= once reports look well".to_owned(),
        need: Need::Advised,
    });
    records
}

/// What else helps, in sentences.
pub fn domain_hints(domain: &SendingDomain) -> Vec<String> {
    let name = &domain.domain;
    vec![
        format!("Bounces go to the MAIL FROM address: {name} (or the domain used there) needs an MX that takes them."),
        format!("Use a MAIL FROM address at {name} or below it, so that SPF aligns with the header From too."),
    ]
}

/// The records of a virtual IP: its name, and the way back.
pub fn vip_records(vip: &Vip) -> Vec<DnsRecord> {
    let mut records = Vec::new();
    for address in public_addresses(vip) {
        let (kind, reverse) = match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                ("A", format!("{d}.{c}.{b}.{a}.in-addr.arpa"))
            }
            IpAddr::V6(address) => {
                let digits = format!("{:032x}", address.to_bits());
                let reversed: Vec<String> = digits.chars().rev().map(String::from).collect();
                ("AAAA", format!("{}.ip6.arpa", reversed.join(".")))
            }
        };
        records.push(DnsRecord {
            name: vip.ehlo.to_string(),
            kind,
            value: address.to_string(),
            purpose: "the name said in EHLO must lead to the address".to_owned(),
            need: Need::Advised,
        });
        records.push(DnsRecord {
            name: reverse,
            kind: "PTR",
            value: format!("{}.", vip.ehlo),
            purpose: "set at the provider of the address; many peers refuse mail without it".to_owned(),
            need: Need::Advised,
        });
    }
    records
}

fn key_records(domain: &SendingDomain, pair: &KeyPair) -> Vec<DnsRecord> {
    let record = |key: &super::record::Key, purpose: &str, need| DnsRecord {
        name: domain.key_name(&key.selector),
        kind: "TXT",
        value: key.record.clone(),
        purpose: purpose.to_owned(),
        need,
    };
    vec![
        record(&pair.rsa, "DKIM key (RSA); proves that the domain is yours", Need::Required),
        record(&pair.ed25519, "DKIM key (Ed25519); a second, shorter signature", Need::Advised),
    ]
}

/// What permits the addresses in the SPF record of a name: the service's record, unless it is that of the name itself.
pub(super) fn spf_terms(name: &Domain, addresses: &[IpAddr], include: Option<&Domain>) -> String {
    match include.filter(|include| *include != name) {
        Some(include) => format!("include:{include}"),
        None => addresses.iter().map(mechanism).collect::<Vec<_>>().join(" "),
    }
}

pub(super) fn mechanism(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("ip4:{address}"),
        IpAddr::V6(address) => format!("ip6:{address}"),
    }
}

/// What the world sees of a virtual IP.
pub(super) fn public_addresses(vip: &Vip) -> Vec<IpAddr> {
    let seen = seen_from_outside(vip.public_addresses());
    seen.into_iter().filter(|address| !address.is_loopback()).collect()
}

/// Addresses that no receiver sees, with no word of what it sees instead.
pub(super) fn hidden_addresses(vip: &Vip) -> Vec<IpAddr> {
    vip.public_addresses().filter(|address| !is_public(*address) && !address.is_loopback()).collect()
}
