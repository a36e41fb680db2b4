//! Which addresses belong to the public Internet. Names that others publish (mail exchangers, policy
//! hosts) must not lead us into networks of our own.
//!
//! Easy to get wrong: IPv6 has many ways to write an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address may be named by a public host: not loopback, private, link-local, CGNAT,
/// documentation, multicast, unspecified, or one of these in IPv6 clothes.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_ipv4(address),
        IpAddr::V6(address) => is_public_ipv6(address),
    }
}

/// Of the addresses of one virtual IP, those that receivers may see: one that is not of the public Internet is left
/// out beside one that is, and kept where there is no other, as in a network of one's own.
pub fn seen_from_outside(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (public, others): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|one| is_public(*one));
    if public.is_empty() { others } else { public }
}

fn is_public_ipv4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_special = matches!(
        (first, second, third),
        // "This network", CGNAT (RFC 6598), IETF assignments, benchmarks (RFC 2544), reserved.
        (0, _, _) | (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) | (240.., _, _)
    );
    !(is_special
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || address.is_broadcast())
}

fn is_public_ipv6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_ipv4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Unspecified, loopback, IPv4-compatible (deprecated) and IPv4-mapped.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => segments[5] == 0xffff && embedded(high, low),
        // NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, ..] => false,
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo and other IETF assignments, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,
        // Only global unicast 2000::/3; not ULA, link-local, site-local, multicast, discard.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_address_is_seen_only_where_there_is_no_public_one() {
        let seen = |texts: &[&str]| {
            let all = texts.iter().map(|text| text.parse::<IpAddr>().unwrap());
            seen_from_outside(all).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(seen(&["8.8.8.8", "fd12::1"]), ["8.8.8.8"]);
        assert_eq!(seen(&["100.64.0.1", "2a00:1450::1"]), ["2a00:1450::1"]);
        assert_eq!(seen(&["10.0.0.7", "fd12::1"]), ["10.0.0.7", "fd12::1"]);
        assert!(seen(&[]).is_empty());
    }

    #[test]
    fn only_public_addresses_are_public() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:db8::1",
            "2001::1",
            "100::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "203.0.114.1", "100.128.0.1", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
