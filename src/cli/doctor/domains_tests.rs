//! Tests of the checks of sending domains.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;

use super::*;
use crate::net::{DnsSettings, SystemResolver, Trouble, Zone, ZoneServer};
use crate::web::ServiceSpfJson;

const KEY: &str = "v=DKIM1; k=rsa; p=AAAA";
const SPF: &str = "v=spf1 ip4:203.0.113.7 ip6:2001:db8::7 ~all";

fn domain(tenant: &str, name: &str, state: &str) -> DomainJson {
    let record = |name: &str, value: &str, required: bool| {
        json!({
            "name": name, "kind": "TXT", "value": value, "purpose": "", "required": required,
            "published": null, "zone_line": "",
        })
    };
    let key = format!("r1._domainkey.{name}");
    serde_json::from_value(json!({
        "tenant": tenant, "domain": name, "state": state, "since": null, "absent_since": null,
        "covers_subdomains": true, "rotating": false, "last_check": null, "hints": [], "retired": [],
        "records": [
            record(&key, KEY, true), record(&format!("e1._domainkey.{name}"), "v=DKIM1; k=ed25519; p=BB", false),
            record(name, SPF, false), record(&format!("_dmarc.{name}"), "v=DMARC1; p=none", false),
        ],
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
fn each_state_of_a_domain_has_its_grade_and_the_command_that_helps() {
    let since =
        |since: &str| DomainJson { absent_since: Some(since.to_owned()), ..domain("shop", "s.example", "verified") };
    for (one, grade, found) in [
        (domain("shop", "s.example", "verified"), Grade::Ok, "verified"),
        (domain("shop", "s.example", "trusted"), Grade::Warn, "trusted without proof: DKIM may fail at the peers"),
        (domain("shop", "s.example", "pending"), Grade::Fail, "pending: its mail is refused"),
        (domain("shop", "s.example", "unverified"), Grade::Fail, "unverified: its mail is refused"),
        (since("yesterday"), Grade::Fail, "its record is absent since yesterday"),
    ] {
        let line = check_domains(&[one, domain(INSTANCE_NAME, "h.example", "pending")]).remove(0);
        assert_eq!((line.grade, line.found.as_str()), (grade, found));
        assert_eq!(line.remedy.as_deref(), (grade != Grade::Ok).then_some("postern domain verify shop s.example"));
    }
}

/// The line about the records of `shop.example` in a zone.
async fn line(zone: Zone) -> Finding {
    let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
    let settings = DnsSettings { servers: vec![server.address()], ..DnsSettings::default() };
    let resolver = SystemResolver::new(&settings).unwrap();
    check_records(&resolver, &[domain("shop", "shop.example", "verified")], (&[], None)).await.remove(0)
}

#[tokio::test]
async fn each_record_of_a_domain_that_is_missing_or_wrong_is_named() {
    let keys = || {
        Zone::new()
            .txt("r1._domainkey.shop.example", "v=DKIM1; k=rsa; p=AA AA")
            .txt("e1._domainkey.shop.example", "v=DKIM1;k=ed25519;p=BB")
    };
    let spf = |text: &str| keys().txt("shop.example", text).txt("_dmarc.shop.example", "v=DMARC1; p=reject");
    for (zone, grade, found) in [
        (spf(SPF), Grade::Ok, "4 of 4 are in DNS"),
        (spf("v=spf1 include:_spf.provider.example ~all"), Grade::Ok, "4 of 4"),
        (spf("v=spf1 ip4:203.0.113.0/24 ip6:2001:db8::/32 -all"), Grade::Ok, "4 of 4"),
        (spf("v=spf1 mx -all"), Grade::Ok, "4 of 4"),
        (spf("v=spf1 ip4:203.0.113.7 -all"), Grade::Warn, "does not name ip6:2001:db8::7"),
        (spf("V=SPF1 -all"), Grade::Warn, "does not name ip4:203.0.113.7 ip6:2001:db8::7"),
        (spf(SPF).txt("shop.example", "v=spf1 -all"), Grade::Fail, "2 SPF records at shop.example"),
        (spf("v=spf10 -all"), Grade::Warn, "no SPF record at shop.example"),
        (keys().txt("shop.example", SPF), Grade::Warn, "no DMARC record at _dmarc.shop.example"),
        (Zone::new(), Grade::Fail, "no key at r1._domainkey.shop.example; no key at e1._domainkey"),
        (spf(SPF).trouble("_dmarc.shop.example", Trouble::ServerFailure), Grade::Warn, "DNS did not answer"),
    ] {
        let line = line(zone).await;
        assert_eq!((line.grade, line.check.as_str()), (grade, "records of shop.example"), "{line:?}");
        assert!(line.found.contains(found), "{line:?}");
        assert_eq!(line.remedy.is_some(), grade != Grade::Ok);
        assert!(line.remedy.is_none_or(|remedy| remedy == "postern domain status shop shop.example"));
    }
    let foreign = Zone::new().txt("r1._domainkey.shop.example", "v=DKIM1; k=rsa; p=CCCC");
    assert!(line(foreign).await.found.starts_with("another key at r1._domainkey.shop.example"));
}

#[tokio::test]
async fn a_policy_above_the_domain_counts_and_new_keys_may_wait() {
    let zone = Zone::new().txt("_dmarc.shop.example", "v=DMARC1; p=none");
    let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
    let settings = DnsSettings { servers: vec![server.address()], ..DnsSettings::default() };
    let resolver = SystemResolver::new(&settings).unwrap();
    let below = DomainJson { rotating: true, ..domain("shop", "news.shop.example", "verified") };
    let line = check_records(&resolver, &[below], (&[], None)).await.remove(0);
    assert_eq!(line.grade, Grade::Warn, "{line:?}");
    assert!(!line.found.contains("DMARC") && line.found.contains("no key"), "{line:?}");
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

/// The line about a domain that should include `spf.mx.example`, with what that and its own record say.
async fn line_of_including(record: &str, of_service: &str) -> Finding {
    let zone = Zone::new()
        .txt("r1._domainkey.shop.example", KEY)
        .txt("e1._domainkey.shop.example", "v=DKIM1; k=ed25519; p=BB")
        .txt("_dmarc.shop.example", "v=DMARC1; p=none")
        .txt("spf.mx.example", of_service)
        .txt("shop.example", record);
    let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
    let settings = DnsSettings { servers: vec![server.address()], ..DnsSettings::default() };
    let resolver = SystemResolver::new(&settings).unwrap();
    let mut own = domain("shop", "shop.example", "verified");
    own.records[2].value = "v=spf1 include:spf.mx.example ~all".to_owned();
    let mut foreign = vip("other.example", Some("other"));
    foreign.ipv4 = Some(Ipv4Addr::new(192, 0, 2, 200));
    let vips = [vip("mx.example", Some("shop")), foreign];
    let addresses = vips.iter().flat_map(VipJson::public_addresses).collect();
    let name = Some("spf.mx.example".to_owned());
    let service = ServiceSpfJson { name, addresses, ..ServiceSpfJson::default() };
    let (_, service) = spf::check_service(&resolver, Some(&service)).await.unwrap();
    check_records(&resolver, &[own], (&vips, service.as_ref())).await.remove(0)
}

#[tokio::test]
async fn a_domain_that_should_include_the_record_of_the_service_is_judged_by_evaluation() {
    for (record, grade, found) in [
        ("v=spf1 include:spf.mx.example ~all", Grade::Ok, "4 of 4 are in DNS"),
        ("v=spf1 ip4:192.0.2.1 ~all", Grade::Ok, "4 of 4 are in DNS"),
        ("v=spf1 include:other.example ~all", Grade::Fail, "cannot be evaluated"),
        ("v=spf1 ip4:192.0.2.9 ~all", Grade::Warn, "the SPF record at shop.example does not permit 192.0.2.1"),
    ] {
        let line = line_of_including(record, "v=spf1 ip4:192.0.2.1 ~all").await;
        assert!(line.grade == grade && line.found.contains(found), "{record}: {:?} {}", line.grade, line.found);
    }
}

#[tokio::test]
async fn a_domain_is_not_blamed_for_what_the_record_of_the_service_lacks() {
    let of_service = "the record of this service at spf.mx.example, not the domain's own, does not permit 192.0.2.1";
    for broken in ["v=spf1 ip4:192.0.2.9 ~all", "v=spf1 include:spf.mx.example ~all", "some other text"] {
        let line = line_of_including("v=spf1 include:spf.mx.example ~all", broken).await;
        assert!(line.grade == Grade::Warn && line.found.contains(of_service), "{broken}: {line:?}");
    }
    let line = line_of_including("v=spf1 ip4:192.0.2.1 ~all", "v=spf1 -all").await;
    assert_eq!(line.grade, Grade::Ok, "it names the address itself: {line:?}");
}
