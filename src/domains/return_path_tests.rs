//! Return-paths, with what DNS says as a value.

use super::*;
use crate::mail::Domain;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn path() -> ReturnPath {
    ReturnPath {
        tenant: TenantId(1),
        domain: domain("shop.example"),
        name: domain("bounce.shop.example"),
        added: Timestamp(0),
        state: State::Pending,
        absent_since: None,
        last_check: None,
        mx: RecordState::Unknown,
        spf: RecordState::Unknown,
    }
}

fn wrong() -> RecordState {
    RecordState::Wrong("bounce.shop.example has no MX record".to_owned())
}

#[test]
fn it_is_used_once_both_records_are_found_and_not_before() {
    let mut path = path();
    assert_eq!(path.apply(RecordState::Found, wrong(), Timestamp(1)), None);
    assert_eq!(path.apply(RecordState::Found, RecordState::Unknown, Timestamp(2)), None, "SPF is still wrong");
    assert_eq!(path.apply(RecordState::Unknown, RecordState::Found, Timestamp(3)), Some(Ok(())));
    assert!(matches!(path.state, State::Verified(_)));
}

#[test]
fn only_a_proven_absence_of_a_day_turns_it_off() {
    let mut path = path();
    path.apply(RecordState::Found, RecordState::Found, Timestamp(0));
    let later = |days: u32| Timestamp(0).plus(DAY * days);
    assert_eq!(path.apply(RecordState::Unknown, RecordState::Unknown, later(5)), None, "DNS did not answer");
    assert_eq!(path.apply(wrong(), RecordState::Found, later(6)), None);
    assert_eq!(path.apply(RecordState::Unknown, RecordState::Unknown, later(6).plus(DAY / 2)), None);
    assert!(matches!(path.state, State::Verified(_)));
    let turned = path.apply(wrong(), RecordState::Found, later(7));
    assert_eq!(turned, Some(Err("bounce.shop.example has no MX record".to_owned())));
    assert_eq!(path.apply(RecordState::Found, RecordState::Found, later(8)), Some(Ok(())), "and on again");
}

#[test]
fn the_records_to_publish_lead_here_and_permit_our_addresses() {
    let expected = Expected {
        names: vec![domain("mx.host.example")],
        addresses: vec!["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        include: None,
    };
    let lines: Vec<String> = path().records(&expected).iter().map(DnsRecord::zone_line).collect();
    assert_eq!(
        lines,
        [
            "bounce.shop.example. IN MX 10 mx.host.example.",
            "bounce.shop.example. IN TXT \"v=spf1 ip4:203.0.113.7 ip6:2001:db8::7 -all\"",
        ]
    );
    let expected = Expected { include: Some(domain("spf.host.example")), ..expected };
    assert_eq!(path().records(&expected)[1].value, "v=spf1 include:spf.host.example -all");
    let expected = Expected { addresses: Vec::new(), ..expected };
    assert_eq!(path().records(&expected)[1].value, "v=spf1 -all", "there is nothing to permit");
}

#[test]
fn a_name_is_known_as_long_as_some_domain_has_it() {
    let mut all = ReturnPaths::of(vec![path(), ReturnPath { tenant: TenantId(2), ..path() }]);
    let (name, own) = (domain("bounce.shop.example"), domain("shop.example"));
    all.forget(TenantId(1), &own);
    assert!(all.names.contains_key(&name));
    all.put(ReturnPath { tenant: TenantId(2), name: domain("r.shop.example"), ..path() });
    assert!(!all.names.contains_key(&name) && all.names.contains_key(&domain("r.shop.example")));
    all.forget(TenantId(2), &own);
    assert!(all.names.is_empty() && all.paths.is_empty());
}
