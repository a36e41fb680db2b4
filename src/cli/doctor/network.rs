//! Checks that ask others: DNS, port 25, each virtual IP's name and the way back, each domain.

use std::net::IpAddr;
use std::time::Duration;

use super::Finding;
use crate::mail::Domain;
use crate::net::{DnsSettings, LookupError, Resolver, SystemResolver};
use crate::web::{DomainJson, INSTANCE_NAME, VipJson};

/// How long port 25 of the probe may take to answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn check(dns: &DnsSettings, vips: &[VipJson], probe: &str) -> Vec<Finding> {
    let resolver = match SystemResolver::new(dns) {
        Ok(resolver) => resolver,
        Err(error) => return vec![Finding::fail("DNS", error.to_string(), "correct dns.servers or /etc/resolv.conf")],
    };
    let mut found = Vec::new();
    let Ok(host) = Domain::parse(probe) else {
        return vec![Finding::fail("port 25", format!("{probe:?} is not a host name"), "give --probe another host")];
    };
    match resolver.ipv4(&host).await {
        Ok(addresses) => {
            found.push(Finding::ok("DNS", format!("{host} was found")));
            found.push(validation(resolver.validates().await));
            found.push(port_25(&host, addresses.first().copied().map(IpAddr::V4)).await);
        }
        Err(error) => {
            let remedy = "without DNS no mail leaves; a local resolver such as unbound is best";
            found.push(Finding::fail("DNS", format!("{host}: {error}"), remedy));
            found.push(Finding::warn("port 25", "not checked for want of DNS", "mend DNS first"));
            return found;
        }
    }
    for vip in vips {
        for address in public(vip) {
            found.push(way_back(&resolver, vip, address).await);
        }
    }
    found
}

/// Whether DANE can be used: somebody whose word counts must validate.
fn validation(said: Result<Option<bool>, LookupError>) -> Finding {
    let check = "DNSSEC";
    let remedy = "run a validating resolver such as unbound on this machine and set dns.servers = [\"127.0.0.1:53\"]";
    match said {
        Ok(Some(true)) => Finding::ok(check, "the resolver validates: receivers' TLSA records (DANE) are heeded"),
        Ok(Some(false)) => Finding::warn(check, "the resolver does not validate: no DANE", remedy),
        Ok(None) => Finding::warn(check, "no resolver whose validation counts (dns.validation): no DANE", remedy),
        Err(error) => {
            Finding::warn(check, format!("whether the resolver validates is not known: {error}"), "try again")
        }
    }
}

fn public(vip: &VipJson) -> impl Iterator<Item = IpAddr> {
    let ipv4 = vip.public_ipv4.or(vip.ipv4).map(IpAddr::V4);
    ipv4.into_iter().chain(vip.public_ipv6.or(vip.ipv6).map(IpAddr::V6))
}

async fn port_25(host: &Domain, address: Option<IpAddr>) -> Finding {
    let Some(address) = address else {
        return Finding::warn("port 25", format!("{host} has no IPv4 address"), "give --probe another host");
    };
    let connected = tokio::time::timeout(PROBE_PATIENCE, tokio::net::TcpStream::connect((address, 25))).await;
    match connected {
        Ok(Ok(_)) => Finding::ok("port 25", format!("{host} answers")),
        Ok(Err(error)) => Finding::fail("port 25", format!("{host}: {error}"), BLOCKED),
        Err(_) => Finding::fail("port 25", format!("{host} does not answer"), BLOCKED),
    }
}

const BLOCKED: &str = "ask your provider to open port 25 outbound, or send by a relay: postern route add";

/// The address must lead to the name (PTR) and the name back to the address.
async fn way_back(resolver: &dyn Resolver, vip: &VipJson, address: IpAddr) -> Finding {
    let check = format!("PTR of {address}");
    if address.is_loopback() {
        return Finding::warn(check, "a loopback address has none", "only trials use loopback addresses");
    }
    let Ok(name) = Domain::parse(&vip.ehlo) else {
        return Finding::fail(check, format!("{} is not a name", vip.ehlo), "remove the virtual IP and add it anew");
    };
    let set = format!("set it to {name} where you rent the address");
    match resolver.ptr(address).await {
        Ok(names) if names.contains(&name) => {}
        Ok(names) => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            return Finding::fail(check, format!("is {}, not {name}", names.join(", ")), set);
        }
        Err(LookupError::Temporary(text)) => return Finding::warn(check, text, "try again"),
        Err(error) => return Finding::fail(check, error.to_string(), set),
    }
    let forward: Result<Vec<IpAddr>, LookupError> = match address {
        IpAddr::V4(_) => resolver.ipv4(&name).await.map(|found| found.into_iter().map(IpAddr::V4).collect()),
        IpAddr::V6(_) => resolver.ipv6(&name).await.map(|found| found.into_iter().map(IpAddr::V6).collect()),
    };
    let kind = if address.is_ipv4() { "A" } else { "AAAA" };
    match forward {
        Ok(found) if found.contains(&address) => Finding::ok(check, format!("is {name}, which leads back")),
        Ok(_) => Finding::fail(check, format!("is {name}, which leads elsewhere"), format!("{name}. {kind} {address}")),
        Err(LookupError::Temporary(text)) => Finding::warn(check, text, "try again"),
        Err(error) => Finding::fail(check, format!("is {name}: {error}"), format!("publish {name}. {kind} {address}")),
    }
}

/// What the last look into DNS said about each domain.
pub(super) fn check_domains(domains: &[DomainJson]) -> Vec<Finding> {
    let one = |domain: &DomainJson| {
        let check = format!("domain {} of {}", domain.domain, domain.tenant);
        let remedy = format!("postern domain verify {} {}", domain.tenant, domain.domain);
        match (domain.state.as_str(), &domain.absent_since) {
            (_, Some(since)) => Finding::fail(check, format!("its record is absent since {since}"), remedy),
            ("verified", None) => Finding::ok(check, "verified"),
            ("trusted", None) => Finding::warn(check, "trusted without proof: DKIM may fail at the peers", remedy),
            (state, None) => Finding::fail(check, format!("{state}: its mail is refused"), remedy),
        }
    };
    domains.iter().filter(|domain| domain.tenant != INSTANCE_NAME).map(one).collect()
}

/// Whether notices to senders can be signed: by a verified domain of the virtual IP's owner that covers
/// its EHLO name, else by any verified name of the instance.
pub(super) fn check_notices(vips: &[VipJson], domains: &[DomainJson]) -> Vec<Finding> {
    let is_verified = |domain: &&DomainJson| matches!(domain.state.as_str(), "verified" | "trusted");
    let own = domains.iter().find(|domain| domain.tenant == INSTANCE_NAME);
    if domains.iter().filter(is_verified).any(|domain| domain.tenant == INSTANCE_NAME) {
        return vec![Finding::ok("notices", "are signed, at least with the instance's own key")];
    }
    let covers = |domain: &DomainJson, vip: &VipJson| {
        let is_below = vip.ehlo.strip_suffix(&domain.domain).is_some_and(|rest| rest.ends_with('.'));
        vip.tenant.as_ref() == Some(&domain.tenant)
            && (vip.ehlo == domain.domain || (is_below && domain.covers_subdomains))
    };
    let unsigned = vips.iter().filter(|vip| !domains.iter().filter(is_verified).any(|domain| covers(domain, vip)));
    let names: Vec<&str> = unsigned.map(|vip| vip.ehlo.as_str()).collect();
    if names.is_empty() {
        return vec![Finding::ok("notices", "are signed with the keys of the virtual IPs' owners")];
    }
    let remedy = match own {
        Some(own) => format!("publish the records of: postern domain status {INSTANCE_NAME} {}", own.domain),
        None => format!("postern domain add {INSTANCE_NAME} NAME"),
    };
    vec![Finding::warn("notices", format!("from {} leave unsigned", names.join(", ")), remedy)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn domain(tenant: &str, name: &str, state: &str) -> DomainJson {
        serde_json::from_value(json!({
            "tenant": tenant, "domain": name, "state": state, "since": null, "absent_since": null,
            "covers_subdomains": true, "rotating": false, "last_check": null, "records": [], "hints": [], "retired": [],
        }))
        .unwrap()
    }

    fn vip(ehlo: &str, tenant: Option<&str>) -> VipJson {
        serde_json::from_value(json!({
            "id": "1", "ipv4": "192.0.2.1", "ipv6": null, "public_ipv4": null, "public_ipv6": null,
            "ehlo": ehlo, "tenant": tenant, "missing": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_resolver_that_does_not_validate_is_a_warning_and_never_an_ok() {
        assert_eq!(validation(Ok(Some(true))).grade, super::super::Grade::Ok);
        let silent = LookupError::Temporary("SERVFAIL".to_owned());
        for said in [Ok(Some(false)), Ok(None), Err(silent)] {
            let found = validation(said);
            assert_eq!(found.grade, super::super::Grade::Warn, "{found:?}");
            assert!(found.remedy.is_some());
        }
    }

    #[test]
    fn notices_that_would_leave_unsigned_are_named_with_the_remedy() {
        let vips = [vip("mx.shop.example", Some("shop")), vip("out.host.example", None)];
        let pending = domain(INSTANCE_NAME, "host.example", "pending");
        let found = check_notices(&vips, &[domain("shop", "shop.example", "verified"), pending.clone()]);
        assert_eq!(found[0].found, "from out.host.example leave unsigned");
        assert!(found[0].remedy.as_deref().is_some_and(|remedy| remedy.ends_with("status @instance host.example")));
        let found = check_notices(&vips[..1], &[domain("shop", "shop.example", "verified"), pending]);
        assert_eq!(found[0].found, "are signed with the keys of the virtual IPs' owners");
        let found = check_notices(&vips, &[domain(INSTANCE_NAME, "host.example", "verified")]);
        assert!(found[0].found.contains("instance's own key"));
    }
}
