//! Destinations an operator blocks or sends another way, and mail left alone for a tenant.

use postern::access::Actor;
use postern::delivery::{Destination, Diversion, Halt, Scope};
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::net::{Trouble, Zone};
use postern::queue::WaitsFor;
use postern::routing::{NewRoute, RelayTls, RouteScope};

use crate::harness::outbound::{Outbound, TENANT, settings, until};
use crate::harness::peer::{Peer, Script};

fn zone() -> Zone {
    Zone::new().mx("shop.example", 10, "a.parked.example").ipv4("a.parked.example", "127.0.1.1".parse().unwrap())
}

async fn ruled(diversion: impl AsyncFnOnce(&Outbound) -> Diversion) -> (MailEvent, Peer) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let diversion = diversion(&outbound).await;
    let parked = Destination::MxHost("*.parked.example".to_owned());
    let rules = &outbound.destinations;
    rules.add(&Actor::local(0), (parked, diversion), "nobody lives there", Timestamp::now()).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    (outbound.verdict(id).await, peer)
}

#[tokio::test]
async fn mail_to_a_blocked_mail_host_is_given_up_with_the_reason_and_nobody_is_asked() {
    let (event, peer) = ruled(async |_| Diversion::Block).await;
    let MailEvent::Bounced { why, detail, .. } = event else { panic!("{event:?}") };
    assert_eq!(why, Why::OurConfiguration);
    assert_eq!(
        detail,
        "550 5.7.1 mail to shop.example is blocked by this service (mail hosts *.parked.example): nobody lives there"
    );
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn mail_to_a_rerouted_mail_host_goes_by_the_relay() {
    let relay = Peer::start("127.0.1.9:0".parse().unwrap(), Script::polite()).await;
    let port = relay.address.port();
    let (event, peer) = ruled(async |outbound| {
        let scope = RouteScope::OnDemand;
        let new = NewRoute { scope, host: "127.0.1.9".to_owned(), port, tls: RelayTls::None, login: None };
        Diversion::Reroute(outbound.routes.add(&Actor::local(0), new, Timestamp::now()).await.unwrap().id)
    })
    .await;
    assert!(matches!(event, MailEvent::Delivered { .. }), "{event:?}");
    assert_eq!((relay.taken().len(), peer.connections()), (1, 0));
}

#[tokio::test]
async fn once_a_rule_is_taken_back_the_next_message_goes_as_if_it_had_never_been() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let (actor, rules) = (Actor::local(0), &outbound.destinations);
    let parked = Destination::MxHost("*.parked.example".to_owned());
    let rule = rules.add(&actor, (parked.clone(), Diversion::Block), "a mistake", Timestamp::now()).await.unwrap();
    let blocked = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(blocked).await, MailEvent::Bounced { .. }));
    rules.remove(&actor, rule.number, Timestamp::now()).await.unwrap();
    let free = outbound.owe(&["ann@shop.example"]).await;
    let event = outbound.verdict(free).await;
    assert!(matches!(event, MailEvent::Delivered { .. }), "{event:?}");
    rules.add(&actor, (parked, Diversion::Block), "no mistake", Timestamp::now()).await.unwrap();
    let blocked = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(blocked).await, MailEvent::Bounced { .. }));
}

#[tokio::test]
async fn a_route_that_was_removed_is_used_by_no_rule_from_then_on() {
    let relay = Peer::start("127.0.1.9:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(25)).await;
    let actor = Actor::local(0);
    let (host, port) = ("127.0.1.9".to_owned(), relay.address.port());
    let new = NewRoute { scope: RouteScope::OnDemand, host, port, tls: RelayTls::None, login: None };
    let route = outbound.routes.add(&actor, new, Timestamp::now()).await.unwrap().id;
    let rule = (Destination::MxHost("*.parked.example".to_owned()), Diversion::Reroute(route));
    outbound.destinations.add(&actor, rule, "by the relay", Timestamp::now()).await.unwrap();
    assert_eq!((outbound.destinations.naming(route), outbound.destinations.naming(0)), (vec![1], Vec::new()));
    let first = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(first).await, MailEvent::Delivered { .. }));
    outbound.routes.remove(&actor, route, Timestamp::now()).await.unwrap();
    let second = outbound.owe(&["ann@shop.example"]).await;
    let event = outbound.verdict(second).await;
    assert!(matches!(event, MailEvent::Deferred { why: Why::OurConfiguration, .. }), "{event:?}");
    assert_eq!(relay.taken().len(), 1);
}

#[tokio::test]
async fn mail_is_not_given_up_for_its_spare_host_while_dns_does_not_tell_of_the_best_one() {
    let zone = zone().mx("shop.example", 5, "mx.shop.example").trouble("mx.shop.example", Trouble::ServerFailure);
    let outbound = Outbound::start("127.0.2.1", zone, settings(25)).await;
    let parked = Destination::MxHost("*.parked.example".to_owned());
    let rules = &outbound.destinations;
    rules.add(&Actor::local(0), (parked, Diversion::Block), "nobody lives there", Timestamp::now()).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    let event = outbound.verdict(id).await;
    assert!(matches!(event, MailEvent::Deferred { why: Why::Dns, .. }), "{event:?}");
}

#[tokio::test]
async fn a_rule_by_recipient_domain_holds_also_while_the_domains_dns_fails() {
    let zone = Zone::new().trouble("shop.example", Trouble::ServerFailure);
    let outbound = Outbound::start("127.0.2.1", zone, settings(25)).await;
    let shop = Destination::Domain(Domain::parse("shop.example").unwrap());
    let rules = &outbound.destinations;
    rules.add(&Actor::local(0), (shop, Diversion::Block), "closed for good", Timestamp::now()).await.unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    let event = outbound.verdict(id).await;
    assert!(matches!(event, MailEvent::Bounced { why: Why::OurConfiguration, .. }), "{event:?}");
}

#[tokio::test]
async fn a_suspended_tenants_mail_waits_and_says_so_until_it_is_resumed() {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite()).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    let (actor, scope) = (Actor::local(0), Scope::Tenant(TENANT));
    outbound
        .delivery
        .suspend(&actor, (Halt::Sending, scope.clone()), ("unpaid", None), Timestamp::now())
        .await
        .unwrap();
    let id = outbound.owe(&["ann@shop.example"]).await;
    let waits = || {
        let why = outbound.queue.why(&actor, id).unwrap();
        why[0].waits_for == WaitsFor::Suspension && why[0].sentence.contains("unpaid")
    };
    assert!(until(waits).await, "{:?}", outbound.queue.why(&actor, id));
    assert_eq!(peer.connections(), 0);
    outbound.delivery.resume(&actor, &scope, Timestamp::now()).await.unwrap();
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
}
