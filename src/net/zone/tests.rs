//! The server and the real resolver judged against each other.

use std::time::Duration;

use super::*;
use crate::mail::Domain;
use crate::net::{DnsSettings, LookupError, Mx, Resolver, SystemResolver};

async fn resolver(zone: Zone) -> (ZoneServer, SystemResolver) {
    let server = ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone).await.unwrap();
    let settings = DnsSettings {
        servers: vec![server.address()],
        timeout: Duration::from_millis(300),
        attempts: 1,
        ..DnsSettings::default()
    };
    let resolver = SystemResolver::new(&settings).unwrap();
    (server, resolver)
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

#[tokio::test]
async fn records_of_every_type_are_found() {
    let zone = Zone::new()
        .mx("shop.example", 10, "mx1.shop.example")
        .mx("shop.example", 20, "MX2.Shop.Example.")
        .mx("null.example", 0, ".")
        .ipv4("mx1.shop.example", "192.0.2.1".parse().unwrap())
        .ipv6("mx1.shop.example", "2001:db8::1".parse().unwrap())
        .cname("alias.example", "mx1.shop.example")
        .txt("key.shop.example", &"k".repeat(600))
        .ptr("192.0.2.1".parse().unwrap(), "mx1.shop.example");
    let (_server, resolver) = resolver(zone).await;
    let mut mx = resolver.mx(&domain("shop.example")).await.unwrap();
    mx.sort_by_key(|mx| mx.preference);
    assert_eq!(
        mx,
        [
            Mx { preference: 10, host: Some(domain("mx1.shop.example")) },
            Mx { preference: 20, host: Some(domain("mx2.shop.example")) }
        ]
    );
    assert_eq!(resolver.mx(&domain("null.example")).await.unwrap(), [Mx { preference: 0, host: None }]);
    let ipv4 = Ok(vec!["192.0.2.1".parse().unwrap()]);
    assert_eq!(resolver.ipv4(&domain("mx1.shop.example")).await, ipv4);
    assert_eq!(resolver.ipv4(&domain("alias.example")).await, ipv4);
    assert_eq!(resolver.ipv6(&domain("mx1.shop.example")).await, Ok(vec!["2001:db8::1".parse().unwrap()]));
    assert_eq!(resolver.txt(&domain("key.shop.example")).await, Ok(vec!["k".repeat(600)]));
    assert_eq!(resolver.ptr("192.0.2.1".parse().unwrap()).await, Ok(vec![domain("mx1.shop.example")]));
}

#[tokio::test]
async fn the_kinds_of_nothing_are_told_apart() {
    let zone = Zone::new()
        .ipv4("a.host.example", "192.0.2.1".parse().unwrap())
        .empty("empty.example")
        .cname("dangling.example", "nowhere.example")
        .trouble("failing.example", Trouble::ServerFailure)
        .trouble("refused.example", Trouble::Refused)
        .trouble("silent.example", Trouble::Silence);
    let (_server, resolver) = resolver(zone).await;
    assert_eq!(resolver.mx(&domain("nowhere.example")).await, Err(LookupError::NoSuchName));
    assert_eq!(resolver.ipv4(&domain("dangling.example")).await, Err(LookupError::NoSuchName));
    for name in ["a.host.example", "empty.example", "host.example"] {
        assert_eq!(resolver.mx(&domain(name)).await, Err(LookupError::NoRecord), "{name}");
    }
    for name in ["failing.example", "refused.example", "silent.example"] {
        let found = resolver.mx(&domain(name)).await;
        assert!(matches!(found, Err(LookupError::Temporary(_))), "{name}: {found:?}");
    }
}

#[tokio::test]
async fn a_loop_of_aliases_ends_and_is_never_final() {
    let zone = Zone::new().cname("a.example", "b.example").cname("b.example", "a.example");
    let (_server, resolver) = resolver(zone).await;
    let found = tokio::time::timeout(Duration::from_secs(5), resolver.ipv4(&domain("a.example"))).await.unwrap();
    assert!(matches!(found, Err(LookupError::Temporary(_))), "{found:?}");
}

#[tokio::test]
async fn an_answer_too_long_for_udp_is_asked_again_over_tcp() {
    let zone = (0..200_u16)
        .fold(Zone::new(), |zone, number| zone.mx("many.example", number, &format!("mx{number}.many.example")));
    let (_server, resolver) = resolver(zone).await;
    assert_eq!(resolver.mx(&domain("many.example")).await.unwrap().len(), 200);
}
