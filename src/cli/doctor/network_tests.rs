//! Tests of the checks that ask others: a zone of maps, and a dialer that says which source gets where.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde_json::json;
use tokio::net::TcpListener;

use super::super::Grade;
use super::*;
use crate::net::{Trouble, Zone, ZoneServer};

const V4: &str = "203.0.113.7";
const V6: &str = "2001:db8::7";

fn vip(ipv4: Option<&str>, ipv6: Option<&str>) -> VipJson {
    serde_json::from_value(json!({
        "id": "1", "ipv4": ipv4, "ipv6": ipv6, "public_ipv4": null, "public_ipv6": null,
        "ehlo": "mx.shop.example", "tenant": "shop", "missing": [],
    }))
    .unwrap()
}

async fn resolver(zone: Zone) -> (SystemResolver, ZoneServer) {
    let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
    let timeout = Duration::from_millis(300);
    let settings = DnsSettings { servers: vec![server.address()], timeout, attempts: 1, ..DnsSettings::default() };
    (SystemResolver::new(&settings).unwrap(), server)
}

/// Connects everybody to one listener of this test, but for the sources it refuses.
struct Wire {
    listener: SocketAddr,
    refused: Vec<IpAddr>,
    asked: std::sync::Mutex<Vec<(IpAddr, SocketAddr)>>,
}

#[async_trait]
impl Dialer for Wire {
    async fn dial(&self, source: IpAddr, target: SocketAddr, _: Duration) -> Result<TcpStream, DialError> {
        self.asked.lock().unwrap().push((source, target));
        if self.refused.contains(&source) {
            return Err(DialError::Failed("connect: no answer within 10 s".to_owned()));
        }
        Ok(TcpStream::connect(self.listener).await.unwrap())
    }
}

/// A host that greets with `greeting`, and the wire to it.
async fn wire(greeting: &'static str, refused: &[&str]) -> Wire {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(greeting.as_bytes()).await;
            if !greeting.is_empty() {
                let _ = stream.read_u8().await;
            }
        }
    });
    let refused = refused.iter().map(|address| address.parse().unwrap()).collect();
    Wire { listener: address, refused, asked: std::sync::Mutex::default() }
}

fn world<'a>(resolver: &'a dyn Resolver, dialer: &'a dyn Dialer) -> World<'a> {
    let is_present = |address: IpAddr| address.to_string() != "203.0.113.99";
    World { resolver, dialer, is_present, port: 2525, patience: Duration::from_secs(5) }
}

fn zone() -> Zone {
    Zone::new()
        .ipv4("probe.example", "192.0.2.25".parse().unwrap())
        .ipv6("probe.example", "2001:db8::25".parse().unwrap())
}

#[tokio::test]
async fn port_25_is_tried_from_every_address_of_every_virtual_ip_in_its_family() {
    let (resolver, _server) = resolver(zone()).await;
    let wire = wire("220 probe ESMTP\r\n", &[V6]).await;
    let world = world(&resolver, &wire);
    let (dns, probe) = world.dns("probe.example").await;
    assert_eq!(dns, [Finding::ok("DNS", "probe.example was found")]);
    let probe = probe.unwrap();
    let vips = [vip(Some(V4), Some(V6)), vip(Some("203.0.113.99"), None), vip(Some("127.0.0.9"), None)];
    let found = world.port_25(&probe, &vips, None).await;
    let blocked = "probe.example: connect: no answer within 10 s".to_owned();
    let expected = [
        Finding::ok(format!("port 25 from {V4}"), "probe.example answers"),
        Finding::fail(format!("port 25 from {V6}"), blocked.clone(), BLOCKED),
        Finding::warn(
            "port 25 from 203.0.113.99",
            "not checked: the address is not on this host",
            "put it back, then try again",
        ),
        Finding::warn(
            "port 25 from 127.0.0.9",
            "a loopback address reaches nobody",
            "only trials use loopback addresses",
        ),
    ];
    assert_eq!(found, expected);
    let asked = wire.asked.lock().unwrap().clone();
    let pair = |source: &str, target: &str| (source.parse::<IpAddr>().unwrap(), target.parse::<SocketAddr>().unwrap());
    assert_eq!(asked, [pair(V4, "192.0.2.25:2525"), pair(V6, "[2001:db8::25]:2525")]);
    // Who sends everything by a relay needs no port 25.
    let found = world.port_25(&probe, &[vip(None, Some(V6))], Some("relay.example:587")).await;
    assert_eq!(found[0].grade, Grade::Warn);
    assert_eq!(found[0].found, format!("{blocked}; all mail goes by the relay relay.example:587"));
}

#[test]
fn an_address_that_receivers_do_not_see_is_named_with_the_command_that_tells_what_they_see() {
    let mut told = vip(Some("10.0.0.8"), None);
    told.public_ipv4 = Some(Ipv4Addr::new(8, 8, 4, 4));
    let found = hidden(&[vip(Some("10.0.0.7"), Some("2a00:1450::7")), told, vip(Some("127.0.0.9"), Some("fd00::9"))]);
    let checks: Vec<&str> = found.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(checks, ["public address of 10.0.0.7", "public address of fd00::9"]);
    assert_eq!(found[0].remedy.as_deref(), Some("postern vip set mx.shop.example --public ADDRESS"));
}

#[tokio::test]
async fn a_probe_that_refuses_hangs_up_or_has_no_such_address_is_told_as_that() {
    let (resolver, _server) = resolver(Zone::new().ipv4("probe.example", "192.0.2.25".parse().unwrap())).await;
    for (greeting, vip, grade, text) in [
        (
            "554 5.7.1 you are listed\r\n",
            vip(Some(V4), None),
            Grade::Warn,
            "probe.example says 554 5.7.1 you are listed",
        ),
        ("", vip(Some(V4), None), Grade::Fail, "probe.example: hung up without a greeting"),
        ("220 hi\r\n", vip(None, Some(V6)), Grade::Warn, "not checked: probe.example has no IPv6 address"),
    ] {
        let wire = wire(greeting, &[]).await;
        let world = world(&resolver, &wire);
        let probe = world.dns("probe.example").await.1.unwrap();
        let found = world.port_25(&probe, &[vip], None).await.remove(0);
        assert_eq!((found.grade, found.found.as_str()), (grade, text));
        assert!(found.remedy.is_some());
    }
}

#[tokio::test]
async fn without_a_virtual_ip_port_25_is_tried_from_wherever_the_system_likes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (resolver, _server) = resolver(Zone::new().ipv4("probe.example", Ipv4Addr::LOCALHOST)).await;
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { listener.accept().await.unwrap().0.write_all(b"220 hi\r\n").await });
    let world = World { port, ..world(&resolver, &BoundDialer) };
    let probe = world.dns("probe.example").await.1.unwrap();
    let found = world.port_25(&probe, &[], None).await;
    assert_eq!(found, [Finding::ok("port 25", "probe.example answers")]);
}

#[tokio::test]
async fn a_resolver_that_does_not_answer_or_a_probe_that_is_none_is_a_failure_with_a_remedy() {
    let silent = Zone::new().trouble("probe.example", Trouble::Silence);
    let wire = wire("", &[]).await;
    for (zone, probe, check, text, remedy) in [
        (silent, "probe.example", "DNS", "DNS did not answer", "local resolver"),
        (Zone::new(), "probe.example", "DNS", "the name does not exist", "--probe"),
        (Zone::new().txt("probe.example", "x"), "probe.example", "DNS", "no such record", "--probe"),
        (Zone::new(), "no host", "port 25", "\"no host\" is not a host name", "--probe"),
    ] {
        let (resolver, _server) = resolver(zone).await;
        let (found, host) = world(&resolver, &wire).dns(probe).await;
        assert!(host.is_none());
        assert_eq!((found[0].check.as_str(), found[0].grade), (check, Grade::Fail));
        assert!(found[0].found.contains(text), "{found:?}");
        assert!(found[0].remedy.as_ref().unwrap().contains(remedy), "{found:?}");
    }
}

#[tokio::test]
async fn an_address_must_lead_to_its_name_and_the_name_back() {
    let (v4, v6): (IpAddr, IpAddr) = (V4.parse().unwrap(), V6.parse().unwrap());
    let ptr = |name: &str| Zone::new().ptr(v4, name);
    let both = || {
        let zone = Zone::new().ptr(v4, "mx.shop.example").ptr(v6, "mx.shop.example");
        zone.ipv4("mx.shop.example", V4.parse().unwrap()).ipv6("mx.shop.example", V6.parse().unwrap())
    };
    let wire = wire("", &[]).await;
    for (zone, ipv6, grade, text, remedy) in [
        (both(), false, Grade::Ok, "is mx.shop.example, which leads back", ""),
        (both(), true, Grade::Ok, "is mx.shop.example, which leads back", ""),
        (Zone::new(), false, Grade::Fail, "the name does not exist", "set it to mx.shop.example where you rent"),
        (ptr("other.example"), false, Grade::Fail, "is other.example, not mx.shop.example", "set it to mx.shop"),
        (ptr("mx.shop.example"), false, Grade::Fail, "leads nowhere", "publish mx.shop.example. A 203.0.113.7"),
        (
            ptr("mx.shop.example").ipv4("mx.shop.example", "192.0.2.1".parse().unwrap()),
            false,
            Grade::Fail,
            "is mx.shop.example, which leads elsewhere",
            "publish mx.shop.example. A 203.0.113.7",
        ),
        (
            Zone::new().ptr(v6, "mx.shop.example").ipv4("mx.shop.example", V4.parse().unwrap()),
            true,
            Grade::Fail,
            "leads nowhere",
            "publish mx.shop.example. AAAA 2001:db8::7",
        ),
        (
            ptr("mx.shop.example").trouble("mx.shop.example", Trouble::ServerFailure),
            false,
            Grade::Warn,
            "",
            "try again",
        ),
    ] {
        let (resolver, _server) = resolver(zone).await;
        let asked = if ipv6 { vip(None, Some(V6)) } else { vip(Some(V4), None) };
        let found = world(&resolver, &wire).ways_back(&[asked]).await.remove(0);
        assert_eq!(found.grade, grade, "{found:?}");
        assert!(found.found.contains(text) && found.check.starts_with("PTR of "), "{found:?}");
        assert!(found.remedy.unwrap_or_default().starts_with(remedy));
    }
    // Behind NAT the world sees another address.
    let natted = VipJson { public_ipv4: Some(V4.parse().unwrap()), ..vip(Some("10.0.0.7"), None) };
    let (resolver, _server) = resolver(both()).await;
    let found = world(&resolver, &wire).ways_back(&[natted]).await.remove(0);
    assert_eq!((found.check.as_str(), found.grade), ("PTR of 203.0.113.7", Grade::Ok));
}

#[test]
fn a_resolver_that_does_not_validate_is_a_warning_and_never_an_ok() {
    assert_eq!(validation(Ok(Some(true))).grade, Grade::Ok);
    let silent = LookupError::Temporary("SERVFAIL".to_owned());
    for said in [Ok(Some(false)), Ok(None), Err(silent)] {
        let found = validation(said);
        assert_eq!(found.grade, Grade::Warn, "{found:?}");
        assert!(found.remedy.is_some());
    }
}
