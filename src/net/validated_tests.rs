//! Real packets to the zone server, which says of its signed names that it validated them.

use std::sync::Arc;

use super::*;
use crate::net::{DanePins, Trouble, Zone, ZoneServer};

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn pin(last: u8) -> Tlsa {
    Tlsa { usage: 3, selector: 1, matching: 1, data: vec![last; 32] }
}

async fn asked(zone: Zone) -> (Validators, ZoneServer) {
    let server = ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone).await.unwrap();
    let settings = DnsSettings { timeout: Duration::from_millis(500), attempts: 1, ..DnsSettings::default() };
    (Validators::of(&settings, &[server.address()]), server)
}

fn zone() -> Zone {
    Zone::new()
        .mx("shop.example", 10, "mx.shop.example")
        .ipv4("mx.shop.example", "192.0.2.1".parse().unwrap())
        .tlsa("_25._tcp.mx.shop.example", &pin(1))
}

fn pins(found: Option<Dane>) -> Arc<DanePins> {
    match found {
        Some(Dane::Pins(pins)) => pins,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_signed_is_proved_and_what_is_not_is_not() {
    let (validators, _server) = asked(zone().signed("shop.example")).await;
    assert_eq!(validators.mx_hosts(&domain("shop.example")).await.unwrap(), Some(vec![domain("mx.shop.example")]));
    let found = pins(validators.dane(&domain("mx.shop.example"), 25).await.unwrap());
    assert_eq!((found.records.clone(), found.names.clone()), (vec![pin(1)], vec![domain("mx.shop.example")]));
    let (validators, _server) = asked(zone()).await;
    assert_eq!(validators.mx_hosts(&domain("shop.example")).await.unwrap(), None);
    assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), None);
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_proven_host_and_one_that_does_not_exist_has_none() {
    let zone = Zone::new().ipv4("shop.example", "192.0.2.1".parse().unwrap()).signed("example");
    let (validators, _server) = asked(zone).await;
    assert_eq!(validators.mx_hosts(&domain("shop.example")).await.unwrap(), Some(vec![domain("shop.example")]));
    assert_eq!(validators.mx_hosts(&domain("no.such.example")).await.unwrap(), Some(Vec::new()));
}

#[tokio::test]
async fn tlsa_records_are_not_asked_for_where_the_addresses_are_not_proved() {
    let zone = zone().signed("_25._tcp.mx.shop.example").trouble("_25._tcp.mx.shop.example", Trouble::ServerFailure);
    let (validators, _server) = asked(zone).await;
    assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), None, "RFC 7672 s2.2.2");
}

#[tokio::test]
async fn a_bogus_answer_is_no_answer() {
    for bogus in ["shop.example", "mx.shop.example", "_25._tcp.mx.shop.example"] {
        for trouble in [Trouble::ServerFailure, Trouble::Refused, Trouble::Silence] {
            let (validators, _server) = asked(zone().signed("shop.example").trouble(bogus, trouble)).await;
            let mx = validators.mx_hosts(&domain("shop.example")).await;
            let dane = validators.dane(&domain("mx.shop.example"), 25).await;
            let failed = if bogus == "shop.example" { mx.err() } else { dane.err() };
            assert!(matches!(failed, Some(LookupError::Temporary(_))), "{bogus} {trouble:?}: {failed:?}");
        }
    }
}

#[tokio::test]
async fn no_tlsa_record_is_no_dane_and_unusable_ones_are_told_apart() {
    let bare = || Zone::new().ipv4("mx.shop.example", "192.0.2.1".parse().unwrap()).signed("shop.example");
    let (validators, _server) = asked(bare()).await;
    assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), None);
    let odd = Tlsa { usage: 1, ..pin(1) };
    let (validators, _server) = asked(bare().tlsa("_25._tcp.mx.shop.example", &odd)).await;
    assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), Some(Dane::Unusable));
}

#[tokio::test]
async fn an_alias_is_asked_for_under_its_real_name_first() {
    let alias = || {
        Zone::new()
            .cname("mx.shop.example", "host.provider.example")
            .ipv4("host.provider.example", "192.0.2.1".parse().unwrap())
            .tlsa("_25._tcp.mx.shop.example", &pin(1))
    };
    let (validators, _server) = asked(alias().signed("example")).await;
    assert_eq!(pins(validators.dane(&domain("mx.shop.example"), 25).await.unwrap()).records, [pin(1)]);
    let both = alias().tlsa("_25._tcp.host.provider.example", &pin(2)).signed("example");
    let (validators, _server) = asked(both).await;
    let found = pins(validators.dane(&domain("mx.shop.example"), 25).await.unwrap());
    assert_eq!((found.records.clone(), found.names.clone()), (vec![pin(2)], vec![domain("host.provider.example")]));
    let (validators, _server) = asked(alias().signed("shop.example")).await;
    assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), None, "half a chain proves nothing");
}

#[tokio::test]
async fn many_records_come_over_tcp() {
    let many =
        (0..40).fold(zone().signed("shop.example"), |zone, last| zone.tlsa("_25._tcp.mx.shop.example", &pin(last)));
    let (validators, _server) = asked(many).await;
    assert_eq!(pins(validators.dane(&domain("mx.shop.example"), 25).await.unwrap()).records.len(), 40);
}

#[tokio::test]
async fn only_the_word_of_those_who_are_trusted_counts() {
    let (_, server) = asked(zone().signed("shop.example")).await;
    let far: SocketAddr = "192.0.2.53:53".parse().unwrap();
    for (validation, near, count) in [
        (Validation::Loopback, true, 1),
        (Validation::Loopback, false, 0),
        (Validation::Trusted, false, 1),
        (Validation::Off, true, 0),
    ] {
        let settings = DnsSettings { validation, ..DnsSettings::default() };
        let validators = Validators::of(&settings, &[if near { server.address() } else { far }]);
        assert_eq!(validators.servers.len(), count, "{validation:?}");
        if count == 0 {
            assert_eq!(validators.mx_hosts(&domain("shop.example")).await.unwrap(), None);
            assert_eq!(validators.dane(&domain("mx.shop.example"), 25).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn whether_the_resolver_validates_is_seen_at_the_root() {
    for (zone, validates) in [(Zone::new().signed("."), true), (Zone::new(), false)] {
        let (validators, _server) = asked(zone).await;
        assert_eq!(validators.validate().await.unwrap(), validates);
    }
}
