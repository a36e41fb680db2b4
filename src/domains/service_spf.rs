//! The SPF record of the service, which tenants include instead of naming each virtual IP. Pure.
//!
//! Easy to get wrong: it may name no address that no virtual IP has; each name that it includes is a question of the
//! ten that a tenant's whole record may ask (RFC 7208 s4.6.4); and while an operator publishes, or a cache holds what
//! was there, some of the names are seen as they were.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::advice::{DnsRecord, Need, hidden_addresses, public_addresses};
use crate::mail::Domain;
use crate::net::SPF_OCTETS_MAX;
use crate::vips::Vip;

/// Names that the record of the service includes, at most. With the service's own that is seven of the ten questions,
/// and three are left for what else a tenant's record asks.
pub const SPF_PARTS_MAX: usize = 6;
/// Octets of the service's name, at most, so that its record has room to include all parts.
pub const SPF_NAME_OCTETS_MAX: usize = 47;

/// Octets of the first label of a part: hexadecimal, so 32 bits of what it holds.
const LABEL_OCTETS: usize = 8;
const HEAD: &str = "v=spf1";
const TAIL: &str = "~all";

/// What an operator publishes so that tenants can include it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpf {
    /// In the order to publish them: the one that tenants include is last.
    pub records: Vec<DnsRecord>,
    /// Every public address of the virtual IPs.
    pub addresses: Vec<IpAddr>,
    /// How many of them the records have no room for.
    pub left_out: usize,
    /// Those that are not of the public Internet, without word of what receivers see instead (NAT).
    pub hidden: Vec<IpAddr>,
}

/// The records at `name` that permit every virtual IP and nothing else.
///
/// What has no room there is in parts, each at a name made of what it holds. So a part never changes: other addresses
/// are other parts at other names, and every record that includes parts finds in them what it was published for.
pub fn service_spf(name: &Domain, vips: &[Vip]) -> ServiceSpf {
    let mut addresses: Vec<IpAddr> = vips.iter().flat_map(public_addresses).collect();
    let mut hidden: Vec<IpAddr> = vips.iter().flat_map(hidden_addresses).collect();
    for all in [&mut addresses, &mut hidden] {
        all.sort_unstable();
        all.dedup();
    }
    // Neighbours become a network if all of it is ours.
    let networks = IpNet::aggregate(&addresses.iter().copied().map(IpNet::from).collect());
    let (own, rest) = packed(name.as_str().len(), &networks);
    if rest.is_empty() {
        return ServiceSpf { records: vec![record(name.to_string(), &own)], addresses, left_out: 0, hidden };
    }
    let (mut parts, mut includes, mut rest) = (Vec::new(), Vec::new(), networks.as_slice());
    while parts.len() < SPF_PARTS_MAX && !rest.is_empty() {
        let (terms, more) = packed(name.as_str().len().saturating_add(LABEL_OCTETS + 1), rest);
        rest = more;
        let part = format!("{}.{name}", label(&terms));
        includes.push(format!("include:{part}"));
        parts.push(record(part, &terms));
    }
    let is_left = |address: &&IpAddr| rest.iter().any(|network| network.contains(*address));
    let left_out = addresses.iter().filter(is_left).count();
    // In the order to publish them: a part that is named before it is there is an error to receivers.
    parts.push(record(name.to_string(), &includes));
    ServiceSpf { records: parts, addresses, left_out, hidden }
}

/// What a part that holds these terms is called, in [`LABEL_OCTETS`].
fn label(terms: &[String]) -> String {
    let digest = Sha256::digest(terms.join(" "));
    digest.iter().take(LABEL_OCTETS / 2).map(|octet| format!("{octet:02x}")).collect()
}

/// As many of the networks as there is room for in a record whose name has so many octets, and the others.
fn packed(name_octets: usize, networks: &[IpNet]) -> (Vec<String>, &[IpNet]) {
    let mut octets = name_octets.saturating_add(HEAD.len()).saturating_add(TAIL.len()).saturating_add(1);
    let mut terms = Vec::new();
    for network in networks {
        let term = mechanism(network);
        octets = octets.saturating_add(term.len()).saturating_add(1);
        if octets > SPF_OCTETS_MAX {
            break;
        }
        terms.push(term);
    }
    let rest = networks.get(terms.len()..).unwrap_or_default();
    (terms, rest)
}

fn mechanism(network: &IpNet) -> String {
    let family = if network.addr().is_ipv4() { "ip4" } else { "ip6" };
    if network.prefix_len() == network.max_prefix_len() {
        format!("{family}:{}", network.addr())
    } else {
        format!("{family}:{network}")
    }
}

fn record(name: String, terms: &[String]) -> DnsRecord {
    let terms: Vec<&str> = std::iter::once(HEAD).chain(terms.iter().map(String::as_str)).chain([TAIL]).collect();
    DnsRecord {
        name,
        kind: "TXT",
        value: terms.join(" "),
        purpose: "SPF of the service, which tenants include".to_owned(),
        need: Need::Advised,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::mail::VipId;
    use crate::vips::Owner;

    fn vips(addresses: &[IpAddr]) -> Vec<Vip> {
        let vip = |(id, address): (u64, &IpAddr)| Vip {
            id: VipId(id),
            ipv4: if let IpAddr::V4(own) = address { Some(*own) } else { None },
            ipv6: if let IpAddr::V6(own) = address { Some(*own) } else { None },
            public_ipv4: None,
            public_ipv6: None,
            ehlo: Domain::parse("mx.example.com").unwrap(),
            owner: Owner::Shared,
        };
        (1..).zip(addresses).map(vip).collect()
    }

    fn name() -> Domain {
        Domain::parse("spf.mx.example.com").unwrap()
    }

    /// The networks of every record.
    fn networks(service: &ServiceSpf) -> Vec<IpNet> {
        let terms = service.records.iter().flat_map(|record| record.value.split(' '));
        let texts = terms.filter_map(|term| term.strip_prefix("ip4:").or(term.strip_prefix("ip6:")));
        texts.map(|text| text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))).collect()
    }

    #[test]
    fn few_addresses_are_one_record_and_neighbours_one_network() {
        let all: Vec<IpAddr> = ["192.0.2.6", "192.0.2.7", "192.0.2.9", "2001:db8::7", "192.0.2.9", "127.0.0.1"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let service = service_spf(&name(), &vips(&all));
        let lines: Vec<String> = service.records.iter().map(DnsRecord::zone_line).collect();
        assert_eq!(
            lines,
            ["spf.mx.example.com. IN TXT \"v=spf1 ip4:192.0.2.6/31 ip4:192.0.2.9 ip6:2001:db8::7 ~all\""]
        );
        assert_eq!((service.addresses.len(), service.left_out), (4, 0));
        assert_eq!(service_spf(&name(), &[]).records[0].value, "v=spf1 ~all");
    }

    #[test]
    fn many_addresses_are_split_and_what_has_no_room_is_told() {
        let all: Vec<IpAddr> = (0..100).map(|number| Ipv4Addr::new(203, 0, 113, number * 2).into()).collect();
        let service = service_spf(&name(), &vips(&all));
        let (own, parts) = service.records.split_last().unwrap();
        let includes: Vec<String> = parts.iter().map(|part| format!("include:{}", part.name)).collect();
        assert_eq!((own.name.as_str(), &own.value), (name().as_str(), &format!("v=spf1 {} ~all", includes.join(" "))));
        assert!(parts.iter().all(|part| part.name.strip_suffix(".spf.mx.example.com").is_some_and(|it| it.len() == 8)));
        assert_eq!((service.records.len(), service.left_out), (6, 0));
        let long = service.records[0].zone_line();
        assert!(long.matches('"').count() == 4 && long.split('"').all(|string| string.len() <= 255), "{long}");
        let too_many: Vec<IpAddr> =
            (0..=u8::MAX).flat_map(|net| [0, 2].map(|host| IpAddr::from(Ipv4Addr::new(203, 0, net, host)))).collect();
        let service = service_spf(&name(), &vips(&too_many));
        assert_eq!(service.records.len(), 1 + SPF_PARTS_MAX);
        assert_eq!(service.left_out + networks(&service).len(), too_many.len());
    }

    #[test]
    fn addresses_that_no_receiver_sees_are_left_out_beside_public_ones_and_told() {
        let mut all = vips(&["10.0.0.7", "192.168.0.8", "127.0.0.9"].map(|text| text.parse().unwrap()));
        all[0].public_ipv4 = Some(Ipv4Addr::new(8, 8, 4, 4));
        all[0].ipv6 = Some("fd00::7".parse().unwrap());
        let service = service_spf(&name(), &all[..1]);
        assert_eq!(service.records[0].value, "v=spf1 ip4:8.8.4.4 ~all");
        assert_eq!(service.hidden, ["fd00::7".parse::<IpAddr>().unwrap()]);
        // There is no other: a network of one's own, or a NAT that nobody has told of.
        let service = service_spf(&name(), &all[1..]);
        assert_eq!(service.records[0].value, "v=spf1 ip4:192.168.0.8 ~all");
        assert_eq!(service.hidden, ["192.168.0.8".parse::<IpAddr>().unwrap()]);
    }

    proptest! {
        /// Whatever mixture of old and new an operator or a cache has, a name holds what its includers were made for.
        #[test]
        fn a_part_holds_the_same_for_ever(
            hosts in prop::collection::btree_set(0_u32..2000, 60..100),
            other in 0_u32..2000,
        ) {
            let records = |hosts: &std::collections::BTreeSet<u32>| {
                let all: Vec<IpAddr> = hosts.iter().map(|host| Ipv4Addr::from(0xCB00_7100 + host * 2).into()).collect();
                service_spf(&name(), &vips(&all)).records
            };
            let mut changed = hosts.clone();
            if !changed.remove(&other) {
                changed.insert(other);
            }
            let (before, after) = (records(&hosts), records(&changed));
            for part in &before[..before.len() - 1] {
                let same = after.iter().find(|record| record.name == part.name);
                prop_assert!(same.is_none_or(|record| record.value == part.value), "{} {same:?}", part.value);
            }
            prop_assert_ne!(&before.last().unwrap().value, &after.last().unwrap().value);
        }

        /// RFC 7208 s3.4, s4.6.4: every record fits, and together they permit exactly the virtual IPs.
        #[test]
        fn the_records_fit_and_permit_every_virtual_ip_and_nothing_else(
            v4 in prop::collection::vec(0_u32..400, 0..150),
            v6 in prop::collection::vec(any::<u128>(), 0..10),
            label in "[a-z]{1,32}",
        ) {
            let v4 = v4.into_iter().map(|host| IpAddr::from(Ipv4Addr::from(0xCB00_7100 + host)));
            let v6 = v6.into_iter().map(|bits| IpAddr::from(std::net::Ipv6Addr::from(bits)));
            let all: Vec<IpAddr> = v4.chain(v6).collect();
            let name = Domain::parse(&format!("{label}.mx.example.com")).unwrap();
            let service = service_spf(&name, &vips(&all));
            prop_assert!(name.as_str().len() <= SPF_NAME_OCTETS_MAX);
            prop_assert!(service.records.len() <= 1 + SPF_PARTS_MAX);
            for record in &service.records {
                prop_assert!(record.name.len() + record.value.len() <= SPF_OCTETS_MAX, "{}", record.value);
                prop_assert!(record.value.starts_with("v=spf1 ") && record.value.ends_with(" ~all"));
            }
            let networks = networks(&service);
            let named = service.addresses.iter().filter(|own| networks.iter().any(|net| net.contains(*own))).count();
            prop_assert_eq!(named + service.left_out, service.addresses.len());
            let hosts: u128 = networks.iter().map(|net| 1 << u32::from(net.max_prefix_len() - net.prefix_len())).sum();
            prop_assert_eq!(hosts, named as u128, "no address that is not ours");
        }
    }
}
