//! Checks of SPF by inclusion: the record of the service, and whether domains that include it permit their addresses.
//!
//! It judges as receivers do, by evaluation (RFC 7208): what a record names may be anything that comes to the
//! same. Easy to get wrong: a question that DNS did not answer is no mistake of the record.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::Finding;
use crate::mail::Domain;
use crate::net::{LookupError, Resolver, SPF_OCTETS_MAX, Spf, is_spf_record, spf_of_each};
use crate::web::ServiceSpfJson;

const REMEDY: &str = "publish exactly what this prints: postern vip spf";
/// Addresses named in a line, at most.
const NAMED_MAX: usize = 8;

/// The addresses of one record are judged within this time; of those that are left DNS did not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What came of asking for addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// The record gives them no pass.
    pub(super) refused: Vec<IpAddr>,
    /// DNS did not answer.
    pub(super) unanswered: Vec<IpAddr>,
    /// Nobody can evaluate the record.
    pub(super) is_unreadable: bool,
}

/// The service's record, and what it says of the virtual IPs' addresses.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: Domain,
    pub(super) judged: Judged,
}

/// Whether the record at `name` permits these addresses, as far as DNS says so by `until`.
pub(super) async fn judge(resolver: &dyn Resolver, name: &Domain, addresses: &[IpAddr], until: Instant) -> Judged {
    let mut judged = Judged::default();
    for (address, said) in spf_of_each(resolver, name, addresses, until).await {
        match said {
            Spf::Pass => {}
            Spf::TemporaryError => judged.unanswered.push(address),
            Spf::PermanentError => {
                judged.is_unreadable = true;
                judged.refused.push(address);
            }
            Spf::Fail | Spf::SoftFail | Spf::Neutral | Spf::None => judged.refused.push(address),
        }
    }
    judged
}

/// The record of the service against the virtual IPs; nothing if tenants name each address.
pub(super) async fn check_service(
    resolver: &dyn Resolver,
    service: Option<&ServiceSpfJson>,
) -> Option<(Finding, Option<Service>)> {
    let service = service?;
    let name = Domain::parse(service.name.as_deref()?).ok()?;
    let check = format!("SPF of the service at {name}");
    let texts = match resolver.txt(&name).await {
        Ok(texts) => texts,
        Err(LookupError::NoRecord | LookupError::NoSuchName) => Vec::new(),
        Err(error) => return Some((Finding::warn(check, error.to_string(), "try again"), None)),
    };
    let judged = judge(resolver, &name, &service.addresses, Instant::now() + PATIENCE).await;
    let finding = finding(check, (&name, &texts), &judged, service.addresses.len());
    Some((finding, Some(Service { name, judged })))
}

fn finding(check: String, (name, texts): (&Domain, &[String]), judged: &Judged, asked: usize) -> Finding {
    let records: Vec<&String> = texts.iter().filter(|text| is_spf_record(text)).collect();
    let [only] = records.as_slice() else {
        let text = match records.len() {
            0 => "there is none, and tenants include it".to_owned(),
            more => format!("{more} SPF records: receivers take that for an error (RFC 7208 s4.5)"),
        };
        return Finding::fail(check, text, REMEDY);
    };
    if judged.is_unreadable {
        let why = "it cannot be evaluated (permerror): it or a name it includes includes itself, asks more than 10 \
                   questions, has no record or several, or a term is misspelt";
        return Finding::fail(check, why, REMEDY);
    }
    if !judged.refused.is_empty() {
        return Finding::fail(check, format!("it does not permit {}", some(&judged.refused)), REMEDY);
    }
    if !judged.unanswered.is_empty() {
        let text = format!("DNS did not answer about {}", some(&judged.unanswered));
        return Finding::warn(check, text, "try again");
    }
    let octets = only.len().saturating_add(name.as_str().len());
    if octets > SPF_OCTETS_MAX {
        let text = format!(
            "it permits all, but has {octets} octets with its name: beyond {SPF_OCTETS_MAX} the answer may not reach \
             every receiver (RFC 7208 s3.4)"
        );
        return Finding::warn(check, text, REMEDY);
    }
    Finding::ok(check, format!("permits all {asked} addresses"))
}

/// The first of them, and how many more there are.
pub(super) fn some(addresses: &[IpAddr]) -> String {
    let named: Vec<String> = addresses.iter().take(NAMED_MAX).map(IpAddr::to_string).collect();
    match addresses.len().saturating_sub(named.len()) {
        0 => named.join(" "),
        more => format!("{} and {more} more", named.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::super::Grade;
    use super::*;
    use crate::net::{DnsSettings, SystemResolver, Trouble, Zone, ZoneServer};

    async fn checked(zone: Zone) -> (Grade, String) {
        let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        let resolver =
            SystemResolver::new(&DnsSettings { servers: vec![server.address()], ..DnsSettings::default() }).unwrap();
        let addresses = ["203.0.113.7", "203.0.113.8", "2001:db8::7"].map(|text| text.parse().unwrap()).to_vec();
        let name = Some("spf.mx.example".to_owned());
        let service = ServiceSpfJson { name, records: Vec::new(), addresses, left_out: 0, hidden: Vec::new() };
        let (found, _) = check_service(&resolver, Some(&service)).await.unwrap();
        assert_eq!(found.remedy.is_some(), found.grade != Grade::Ok);
        (found.grade, found.found)
    }

    #[tokio::test]
    async fn the_mistakes_of_operators_are_found_and_told_apart() {
        let at = |text: &str| Zone::new().txt("spf.mx.example", text);
        let full = "v=spf1 ip4:203.0.113.7 ip4:203.0.113.8 ip6:2001:db8::7 ~all";
        let padding = "ip6:2001:db8:1111:2222:3333:4444:5555:6666 ".repeat(10);
        for (zone, grade, found) in [
            (at(full), Grade::Ok, "permits all 3 addresses"),
            // Anything that comes to the same is as good.
            (at("v=spf1 ip4:203.0.113.0/24 ip6:2001:db8::/32 ~all"), Grade::Ok, "permits all 3"),
            (at("v=spf1 include:p1.spf.mx.example ~all").txt("p1.spf.mx.example", full), Grade::Ok, "permits all 3"),
            (at("v=spf1 ip4:203.0.113.7 ~all"), Grade::Fail, "does not permit 203.0.113.8 2001:db8::7"),
            (Zone::new(), Grade::Fail, "there is none"),
            (at(full).txt("spf.mx.example", "v=spf1 -all"), Grade::Fail, "2 SPF records"),
            (at("v=spf1 include:spf.mx.example ~all"), Grade::Fail, "includes itself"),
            (
                at("v=spf1 include:p1.spf.mx.example ~all")
                    .txt("p1.spf.mx.example", "v=spf1 include:spf.mx.example ~all"),
                Grade::Fail,
                "includes itself",
            ),
            (at("v=spf1 include:p1.spf.mx.example ~all"), Grade::Fail, "has no record"),
            (
                at(&format!("v=spf1 ip4:203.0.113.0/24 ip6:2001:db8::7 {padding}~all")),
                Grade::Warn,
                "octets with its name",
            ),
            (at(full).trouble("spf.mx.example", Trouble::ServerFailure), Grade::Warn, "DNS did not answer"),
        ] {
            let (seen, text) = checked(zone).await;
            assert!(seen == grade && text.contains(found), "{found}: {seen:?} {text}");
        }
    }

    #[tokio::test]
    async fn without_a_name_there_is_nothing_to_check() {
        let resolver = SystemResolver::new(&DnsSettings::default()).unwrap();
        assert!(check_service(&resolver, Some(&ServiceSpfJson::default())).await.is_none());
        let many: Vec<IpAddr> = (0..10).map(|host| IpAddr::from(Ipv4Addr::new(192, 0, 2, host))).collect();
        assert!(some(&many).ends_with("192.0.2.7 and 2 more"));
    }
}
