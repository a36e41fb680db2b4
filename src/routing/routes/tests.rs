//! Tests of the routes' records.

use super::*;
use crate::mail::{Class, TenantId, VipId};
use crate::routing::TransportName;
use crate::store::MemoryStore;

const START: Timestamp = Timestamp(1_800_000_000_000);

fn route(scope: RouteScope) -> NewRoute {
    let login = Some(("shop".to_owned(), Zeroizing::new("relay-secret".to_owned())));
    NewRoute { scope, host: "relay.example.net".into(), port: 587, tls: RelayTls::Starttls, login }
}

fn room() -> (Arc<MemoryStore>, Routes, Actor) {
    let store = Arc::new(MemoryStore::new());
    let routes = Routes::open(store.clone(), Arc::new(MasterKey::from_bytes([3; 32]))).unwrap();
    (store, routes, Actor::system("test"))
}

#[tokio::test]
async fn a_route_takes_mail_by_its_scope_and_survives_a_restart() {
    let (store, routes, actor) = room();
    let all = routes.add(&actor, route(RouteScope::Instance), START).await.unwrap();
    let one = routes.add(&actor, route(RouteScope::Tenant(TenantId(1))), START).await.unwrap();
    let domain = Domain::parse("example.com").unwrap();
    let narrow = routes.add(&actor, route(RouteScope::RecipientDomain(domain)), START).await.unwrap();
    let reopened = Routes::open(store, Arc::new(MasterKey::from_bytes([3; 32]))).unwrap();
    for routes in [&routes, &reopened] {
        let transport = |tenant, to: &str| {
            let lane = routes.table().lane(VipId(1), TenantId(tenant), Class::Marketing, &Domain::parse(to).unwrap());
            lane.transport
        };
        assert_eq!(transport(2, "example.org"), TransportName::Smarthost(all.id));
        assert_eq!(transport(1, "example.org"), TransportName::Smarthost(one.id));
        assert_eq!(transport(1, "a.example.com"), TransportName::Smarthost(narrow.id));
        assert_eq!(routes.route(one.id).as_ref(), Some(&one));
    }
    routes.remove(&actor, all.id, START).await.unwrap();
    assert!(routes.route(all.id).is_none());
    assert_eq!(routes.list(&actor).unwrap().len(), 2);
    assert!(matches!(routes.remove(&actor, all.id, START).await, Err(AdminError::Missing(_))));
    routes.add(&actor, route(RouteScope::Instance), START).await.unwrap();
}

#[tokio::test]
async fn the_relays_password_is_sealed_and_opens_for_its_own_route_only() {
    let (store, routes, actor) = room();
    let one = routes.add(&actor, route(RouteScope::Instance), START).await.unwrap();
    let (user, password) = routes.login(&one).unwrap();
    assert_eq!((user.as_str(), password.as_str()), ("shop", "relay-secret"));
    let rows = store.range(&[0], &[255], 1000).unwrap();
    let leaks = rows.iter().filter(|(_, value)| value.windows(12).any(|window| window == b"relay-secret"));
    assert_eq!(leaks.count(), 0);
    let other = Route { id: 1, ..one.clone() };
    assert!(routes.login(&other).is_none());
    let wrong = Routes::open(store, Arc::new(MasterKey::from_bytes([4; 32]))).unwrap();
    assert!(wrong.login(&one).is_none());
}

#[tokio::test]
async fn a_login_never_goes_out_in_the_clear_and_bad_values_are_refused() {
    let (_, routes, actor) = room();
    let base = || route(RouteScope::Instance);
    let bad = [
        NewRoute { tls: RelayTls::None, ..base() },
        NewRoute { tls: RelayTls::Opportunistic, ..base() },
        NewRoute { port: 0, ..base() },
        NewRoute { host: "not a host".into(), ..base() },
        NewRoute { login: Some((String::new(), Zeroizing::new("x".into()))), ..base() },
    ];
    for new in bad {
        assert!(matches!(routes.add(&actor, new, START).await, Err(AdminError::Invalid(_))));
    }
    let local = NewRoute { host: "127.0.0.1".into(), tls: RelayTls::None, ..base() };
    assert!(routes.add(&actor, local, START).await.is_ok());
    assert!(matches!(routes.add(&actor, base(), START).await, Err(AdminError::Exists(_))), "one route per scope");
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
    assert!(matches!(routes.add(&owner, base(), START).await, Err(AdminError::Forbidden(_))));
}
