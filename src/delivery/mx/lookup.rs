//! From a domain to the hosts that take its mail (RFC 5321 s5.1), without ourselves and without
//! addresses that no public MX has any business naming.
//!
//! Easy to get wrong: only a proven absence (NXDOMAIN, null MX, no address of any host) is final;
//! an answer that cannot be right (loopback, private, ourselves) may be right tomorrow. One unanswered question among many leaves
//! the domain undecided, unless another host was found to go to.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::delivery::settings::{PrivateAddresses, Settings};
use crate::delivery::transport::{Families, Host, NoSite, Standing, TlsUse};
use crate::events::Why;
use crate::mail::Domain;
use crate::net::{LookupError, Mx, Resolver, is_public};
use crate::vips::Vip;

/// How we may be named or addressed.
#[derive(Debug, Default)]
pub(super) struct Ourselves {
    pub(super) names: HashSet<String>,
    pub(super) addresses: HashSet<IpAddr>,
}

impl Ourselves {
    /// Every virtual IP, with what the world sees of it.
    pub(super) fn of(vips: &[Vip]) -> Self {
        let mut ourselves = Self::default();
        for vip in vips {
            ourselves.names.insert(vip.ehlo.as_str().to_owned());
            ourselves.addresses.extend(vip.addresses());
            ourselves.addresses.extend(vip.public_ipv4.map(IpAddr::V4));
            ourselves.addresses.extend(vip.public_ipv6.map(IpAddr::V6));
        }
        ourselves
    }
}

/// What became of one MX host.
enum Found {
    Host(Host),
    /// It is us.
    Loop(u16),
    /// It has no address of any type we asked for.
    Absent,
    /// It has none of our families, but one of the other.
    OtherFamily(u16),
    /// Every address is private, loopback or the like.
    Private(u16, String),
    /// DNS did not answer.
    Unanswered(u16, String),
}

/// Where a domain's mail can go.
#[derive(Debug)]
pub(super) struct Exchangers {
    /// The hosts to try, by preference.
    pub(super) hosts: Vec<Host>,
    /// Why a host that is preferred over all of these is not among them, if that may change.
    pub(super) better: Option<NoSite>,
}

/// The hosts to try for `domain`, by preference.
pub(super) async fn hosts(
    resolver: &dyn Resolver,
    domain: &Domain,
    families: Families,
    ourselves: &Ourselves,
    settings: &Settings,
) -> Result<Exchangers, NoSite> {
    let candidates = exchangers(resolver, domain, settings.mx_hosts_max).await?;
    let examine = |(preference, host): (u16, Domain)| async move {
        examine(resolver, preference, &host, families, (ourselves, settings)).await
    };
    let found = join_all(candidates.into_iter().map(examine)).await;
    choose(domain, found)
}

/// Lanes whose domains are served by the same hosts share a site.
pub(super) fn site_name(hosts: &[Host]) -> String {
    let mut names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(",")
}

/// MX records by preference, or the domain itself where there are none (implicit MX).
async fn exchangers(resolver: &dyn Resolver, domain: &Domain, hosts_max: usize) -> Result<Vec<(u16, Domain)>, NoSite> {
    let mut records = match resolver.mx(domain).await {
        Ok(records) => records,
        Err(LookupError::NoRecord) => return Ok(vec![(0, domain.clone())]),
        Err(LookupError::NoSuchName) => {
            return Err(NoSite::Bounced(Why::NoSuchDomain, format!("550 5.1.2 the domain {domain} does not exist")));
        }
        Err(LookupError::Temporary(reason) | LookupError::Bogus(reason)) => {
            return Err(NoSite::Deferred(Why::Dns, format!("451 4.4.3 MX of {domain}: {reason}")));
        }
    };
    records.sort_by_key(|mx| mx.preference);
    let hosts: Vec<(u16, Domain)> = records
        .iter()
        .filter_map(|Mx { preference, host }| host.clone().map(|host| (*preference, host)))
        .take(hosts_max)
        .collect();
    if hosts.is_empty() {
        // RFC 7505 s3: the domain says it takes no mail.
        return Err(NoSite::Bounced(
            Why::NoSuchDomain,
            format!("556 5.1.10 the domain {domain} takes no mail (null MX)"),
        ));
    }
    Ok(hosts)
}

async fn examine(
    resolver: &dyn Resolver,
    preference: u16,
    host: &Domain,
    families: Families,
    (ourselves, settings): (&Ourselves, &Settings),
) -> Found {
    if ourselves.names.contains(host.as_str()) {
        return Found::Loop(preference);
    }
    let (ipv4, ipv6) =
        tokio::join!(async { if families.ipv4 { resolver.ipv4(host).await } else { Ok(Vec::new()) } }, async {
            if families.ipv6 { resolver.ipv6(host).await } else { Ok(Vec::new()) }
        },);
    let mut unanswered = None;
    let mut addresses: Vec<IpAddr> = Vec::new();
    match ipv4 {
        Ok(found) => addresses.extend(found.into_iter().map(IpAddr::V4)),
        Err(LookupError::Temporary(reason) | LookupError::Bogus(reason)) => {
            unanswered = Some(format!("A of {host}: {reason}"))
        }
        Err(_) => {}
    }
    match ipv6 {
        Ok(found) => addresses.extend(found.into_iter().map(IpAddr::V6)),
        Err(LookupError::Temporary(reason) | LookupError::Bogus(reason)) => {
            unanswered = Some(format!("AAAA of {host}: {reason}"))
        }
        Err(_) => {}
    }
    if settings.private_addresses == PrivateAddresses::Refused {
        if addresses.iter().any(|address| ourselves.addresses.contains(&address.to_canonical())) {
            return Found::Loop(preference);
        }
        let all = addresses.len();
        addresses.retain(|address| is_public(*address));
        if addresses.is_empty() && all > 0 {
            return Found::Private(preference, format!("{host} has only private addresses"));
        }
    }
    addresses.truncate(settings.addresses_per_host_max);
    match (addresses.is_empty(), unanswered) {
        (false, _) => Found::Host(Host {
            name: host.as_str().to_owned(),
            preference,
            addresses,
            // Until policies were heard.
            tls: TlsUse::Opportunistic,
            policy: None,
            standing: Standing::Claimed,
            reported: Arc::default(),
        }),
        (true, Some(reason)) => Found::Unanswered(preference, reason),
        (true, None) => other_family(resolver, (preference, host), families).await,
    }
}

/// Nothing of our families: is there something of the other?
async fn other_family(resolver: &dyn Resolver, (preference, host): (u16, &Domain), families: Families) -> Found {
    let other = if !families.ipv4 {
        resolver.ipv4(host).await.map(|_| ())
    } else if !families.ipv6 {
        resolver.ipv6(host).await.map(|_| ())
    } else {
        Err(LookupError::NoRecord)
    };
    match other {
        Ok(()) => Found::OtherFamily(preference),
        Err(LookupError::Temporary(reason) | LookupError::Bogus(reason)) => {
            Found::Unanswered(preference, format!("address of {host}: {reason}"))
        }
        Err(LookupError::NoSuchName | LookupError::NoRecord) => Found::Absent,
    }
}

/// Hosts to try, or the strongest reason why there are none.
fn choose(domain: &Domain, found: Vec<Found>) -> Result<Exchangers, NoSite> {
    // RFC 5321 s5.1: hosts that are not preferred over ourselves would only send it back to us.
    let own = found.iter().filter_map(|found| if let Found::Loop(own) = found { Some(*own) } else { None }).min();
    let (mut hosts, mut left_out) = (Vec::new(), Vec::new());
    for found in found {
        match found {
            Found::Host(host) if own.is_none_or(|own| host.preference < own) => hosts.push(host),
            Found::Host(_) | Found::Loop(_) | Found::Absent => {}
            other => left_out.push(other),
        }
    }
    if let Some(best) = hosts.iter().map(|host| host.preference).min() {
        let better = left_out.iter().filter(|found| found.preference() < Some(best));
        let better = better.min_by_key(|found| found.preference()).and_then(|found| found.why_not(domain));
        return Ok(Exchangers { hosts, better });
    }
    let of_kind = |is_meant: fn(&Found) -> bool| {
        left_out.iter().rev().find(|found| is_meant(found)).and_then(|found| found.why_not(domain))
    };
    if let Some(unanswered) = of_kind(|found| matches!(found, Found::Unanswered(..))) {
        return Err(unanswered);
    }
    if own.is_some() {
        // RFC 5321 s5.1 has this reported as an error; whose it is (theirs, or a virtual IP's record
        // here), nobody knows yet, so the mail waits for it to be mended and expires like any other.
        let detail = format!("451 4.4.6 mail for {domain} would loop back to us");
        return Err(NoSite::Deferred(Why::OurConfiguration, detail));
    }
    let why_not = of_kind(|found| matches!(found, Found::OtherFamily(_)))
        .or_else(|| of_kind(|found| matches!(found, Found::Private(..))));
    Err(why_not.unwrap_or_else(|| {
        NoSite::Bounced(Why::NoSuchDomain, format!("550 5.4.4 no mail host of {domain} has an address"))
    }))
}

impl Found {
    /// Of a host that is left out, and may not be tomorrow.
    fn preference(&self) -> Option<u16> {
        match self {
            Self::OtherFamily(preference) | Self::Private(preference, _) | Self::Unanswered(preference, _) => {
                Some(*preference)
            }
            Self::Host(_) | Self::Loop(_) | Self::Absent => None,
        }
    }

    /// Why such a host is left out.
    fn why_not(&self, domain: &Domain) -> Option<NoSite> {
        let (why, detail) = match self {
            Self::Unanswered(_, reason) => (Why::Dns, format!("451 4.4.3 {reason}")),
            Self::OtherFamily(_) => (
                Why::OurConfiguration,
                format!("451 4.4.4 the mail hosts of {domain} have no address of a family this virtual IP has"),
            ),
            // Not an absence: a resolver that lies, or a zone of another network, looks like this too.
            Self::Private(_, detail) => (Why::Dns, format!("451 4.4.4 {detail}")),
            Self::Host(_) | Self::Loop(_) | Self::Absent => return None,
        };
        Some(NoSite::Deferred(why, detail))
    }
}

#[cfg(test)]
mod tests;
