//! Destinations an operator blocks or sends another way, and mail left alone for a tenant.

use postern::access::Actor;
use postern::delivery::{Destination, Diversion, Halt, Scope};
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::net::Zone;
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
