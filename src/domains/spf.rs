//! Whether an SPF record permits an address (RFC 7208), as far as our own records need it: all, ip4, ip6, a, mx,
//! include, redirect. Macros, ptr and exists match nobody here.
//!
//! Easy to get wrong: a lookup that failed proves nothing, and ten lookups are the most (s4.6.4).

use std::net::IpAddr;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ipnet::IpNet;

use crate::mail::Domain;
use crate::net::{LookupError, Resolver};

/// Lookups for one judgement (RFC 7208 s4.6.4).
const LOOKUPS_MAX: usize = 10;

/// What a record says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spf {
    /// It may send.
    Pass,
    /// It may not, or the record does not say.
    Other,
    /// There is no record.
    None,
}

/// What the record of `domain` says of `address`.
///
/// # Errors
/// What DNS did not answer.
pub(super) async fn judge(resolver: &dyn Resolver, domain: &Domain, address: IpAddr) -> Result<Spf, String> {
    let mut look = Look { resolver, address, lookups: 0 };
    look.record(domain.clone()).await
}

struct Look<'a> {
    resolver: &'a dyn Resolver,
    address: IpAddr,
    lookups: usize,
}

impl Look<'_> {
    fn record(&mut self, domain: Domain) -> BoxFuture<'_, Result<Spf, String>> {
        async move {
            let texts = match self.resolver.txt(&domain).await {
                Ok(texts) => texts,
                Err(LookupError::NoSuchName | LookupError::NoRecord) => return Ok(Spf::None),
                Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => return Err(why),
            };
            let is_spf =
                |text: &&String| text.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case("v=spf1"));
            let mut records = texts.iter().filter(is_spf);
            let (Some(record), None) = (records.next(), records.next()) else { return Ok(Spf::None) };
            let mut redirect = None;
            for term in record.split_ascii_whitespace().skip(1) {
                let term = term.to_ascii_lowercase();
                if let Some(to) = term.strip_prefix("redirect=") {
                    redirect = Domain::parse(to).ok();
                    continue;
                }
                let (permits, mechanism) = match term.strip_prefix(['+', '-', '~', '?']) {
                    Some(rest) => (term.starts_with('+'), rest),
                    None => (true, term.as_str()),
                };
                if self.matches(mechanism, &domain).await? {
                    return Ok(if permits { Spf::Pass } else { Spf::Other });
                }
            }
            match redirect {
                Some(to) if self.may_look() => self.record(to).await,
                _ => Ok(Spf::Other),
            }
        }
        .boxed()
    }

    fn may_look(&mut self) -> bool {
        self.lookups = self.lookups.saturating_add(1);
        self.lookups <= LOOKUPS_MAX
    }

    async fn matches(&mut self, mechanism: &str, domain: &Domain) -> Result<bool, String> {
        let (name, value) = mechanism.split_once(':').unwrap_or((mechanism, ""));
        let (name, _) = name.split_once('/').unwrap_or((name, ""));
        // `a/24` matches a whole network; here its hosts alone, which is never too much.
        let value = match name {
            "ip4" | "ip6" => value,
            _ => value.split_once('/').map_or(value, |(value, _)| value),
        };
        let target = if value.is_empty() { Some(domain.clone()) } else { Domain::parse(value).ok() };
        match name {
            "all" => Ok(true),
            "ip4" | "ip6" => Ok(network(value).is_some_and(|network| network.contains(&self.address))),
            "a" => match target.filter(|_| self.may_look()) {
                Some(host) => self.is_at(&host).await,
                None => Ok(false),
            },
            "mx" => match target.filter(|_| self.may_look()) {
                Some(host) => self.is_exchanger(&host).await,
                None => Ok(false),
            },
            "include" => match target.filter(|_| self.may_look()) {
                Some(other) => Ok(self.record(other).await? == Spf::Pass),
                None => Ok(false),
            },
            _ => Ok(false),
        }
    }

    async fn is_at(&self, host: &Domain) -> Result<bool, String> {
        let found = match self.address {
            IpAddr::V4(own) => self.resolver.ipv4(host).await.map(|all| all.contains(&own)),
            IpAddr::V6(own) => self.resolver.ipv6(host).await.map(|all| all.contains(&own)),
        };
        match found {
            Ok(is_there) => Ok(is_there),
            Err(LookupError::NoSuchName | LookupError::NoRecord) => Ok(false),
            Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => Err(why),
        }
    }

    async fn is_exchanger(&mut self, domain: &Domain) -> Result<bool, String> {
        let exchangers = match self.resolver.mx(domain).await {
            Ok(exchangers) => exchangers,
            Err(LookupError::NoSuchName | LookupError::NoRecord) => return Ok(false),
            Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => return Err(why),
        };
        for host in exchangers.into_iter().filter_map(|exchanger| exchanger.host).take(LOOKUPS_MAX) {
            if self.is_at(&host).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use async_trait::async_trait;

    use super::*;
    use crate::net::Mx;

    /// Lines of `name TYPE value`.
    struct Lines(&'static str);

    impl Lines {
        fn of(&self, name: &Domain, kind: &str) -> Result<Vec<&'static str>, LookupError> {
            let words = self.0.lines().filter_map(|line| line.trim().split_once(' '));
            let own = words.filter(|(own, _)| *own == name.as_str());
            let found: Vec<&str> = own.filter_map(|(_, rest)| rest.strip_prefix(kind)).map(str::trim).collect();
            if found.is_empty() { Err(LookupError::NoRecord) } else { Ok(found) }
        }
    }

    #[async_trait]
    impl Resolver for Lines {
        async fn mx(&self, domain: &Domain) -> Result<Vec<Mx>, LookupError> {
            let hosts = self.of(domain, "MX")?.into_iter();
            Ok(hosts.map(|host| Mx { preference: 10, host: Domain::parse(host).ok() }).collect())
        }
        async fn ipv4(&self, host: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
            Ok(self.of(host, "A ")?.into_iter().filter_map(|text| text.parse().ok()).collect())
        }
        async fn ipv6(&self, host: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
            Ok(self.of(host, "AAAA")?.into_iter().filter_map(|text| text.parse().ok()).collect())
        }
        async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError> {
            Ok(self.of(name, "TXT")?.into_iter().map(str::to_owned).collect())
        }
        async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
            Err(LookupError::NoRecord)
        }
    }

    async fn judged(zone: &'static str, address: &str) -> Result<Spf, String> {
        judge(&Lines(zone), &Domain::parse("bounce.shop.example").unwrap(), address.parse().unwrap()).await
    }

    #[tokio::test]
    async fn mechanisms_are_tried_in_order_and_includes_are_followed() {
        let zone = "bounce.shop.example TXT v=spf1 -ip4:192.0.2.9 ip4:192.0.2.0/24 include:_spf.host.example ?all
                    _spf.host.example TXT v=spf1 mx:host.example ip6:2001:db8::/32 -all
                    host.example MX mx.host.example
                    mx.host.example A 203.0.113.7";
        for (address, expected) in [
            ("192.0.2.9", Spf::Other),
            ("192.0.2.8", Spf::Pass),
            ("203.0.113.7", Spf::Pass),
            ("203.0.113.8", Spf::Other),
            ("2001:db8::1", Spf::Pass),
        ] {
            assert_eq!(judged(zone, address).await, Ok(expected), "{address}");
        }
        assert_eq!(judged("shop.example TXT v=spf1 +all", "192.0.2.1").await, Ok(Spf::None));
        let circle = "bounce.shop.example TXT v=spf1 redirect=bounce.shop.example";
        assert_eq!(judged(circle, "192.0.2.1").await, Ok(Spf::Other), "a circle ends");
    }
}
