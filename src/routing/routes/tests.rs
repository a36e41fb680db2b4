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
        assert!(matches!(routes.add(&actor, new, START).await, Err(AdminError::Invalid(_) | AdminError::Fields(_))));
    }
    let local = NewRoute { host: "127.0.0.1".into(), tls: RelayTls::None, ..base() };
    assert!(routes.add(&actor, local, START).await.is_ok());
    assert!(matches!(routes.add(&actor, base(), START).await, Err(AdminError::Exists(_))), "one route per scope");
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
    assert!(matches!(routes.add(&owner, base(), START).await, Err(AdminError::Forbidden(_))));
}

#[tokio::test]
async fn a_route_is_mended_in_place_and_its_password_is_kept_unless_a_new_one_comes() {
    let (store, routes, actor) = room();
    let one = routes.add(&actor, route(RouteScope::Instance), START).await.unwrap();
    let secret = |text: &str| Some(Zeroizing::new(text.to_owned()));
    let login_of = |route: &Route| routes.login(route).map(|(user, password)| (user, password.to_string()));
    let moved = RouteChange { host: Some("other.example.net".into()), port: Some(465), ..Default::default() };
    let moved = RouteChange { tls: Some(RelayTls::Implicit), ..moved };
    let now = routes.change(&actor, one.id, moved, START).await.unwrap();
    assert_eq!((now.id, now.host.as_str(), now.port, now.tls), (one.id, "other.example.net", 465, RelayTls::Implicit));
    assert_eq!(now.scope, one.scope);
    assert_eq!(login_of(&now), Some(("shop".into(), "relay-secret".into())), "kept");
    for (login, expected) in [
        (LoginChange::Set(None, secret("better")), Some(("shop".into(), "better".into()))),
        (LoginChange::Set(Some("me".into()), None), Some(("me".into(), "better".into()))),
        (LoginChange::Removed, None),
        (LoginChange::Set(Some("you".into()), secret("third")), Some(("you".into(), "third".into()))),
    ] {
        let now = routes.change(&actor, one.id, RouteChange { login, ..Default::default() }, START).await.unwrap();
        assert_eq!(login_of(&now), expected);
        assert_eq!(routes.route(one.id).as_ref(), Some(&now));
        let reopened = Routes::open(store.clone(), Arc::new(MasterKey::from_bytes([3; 32]))).unwrap();
        assert_eq!(reopened.route(one.id), Some(now));
    }
    for bad in [
        RouteChange { tls: Some(RelayTls::None), ..Default::default() },
        RouteChange { host: Some("not a host".into()), ..Default::default() },
        RouteChange { port: Some(0), ..Default::default() },
        RouteChange { login: LoginChange::Set(None, secret("")), ..Default::default() },
    ] {
        assert!(matches!(
            routes.change(&actor, one.id, bad, START).await,
            Err(AdminError::Invalid(_) | AdminError::Fields(_))
        ));
    }
    routes
        .change(&actor, one.id, RouteChange { login: LoginChange::Removed, ..Default::default() }, START)
        .await
        .unwrap();
    let half = RouteChange { login: LoginChange::Set(None, secret("x")), ..Default::default() };
    assert!(matches!(
        routes.change(&actor, one.id, half, START).await,
        Err(AdminError::Invalid(_) | AdminError::Fields(_))
    ));
    let nobody = routes.change(&actor, 7, RouteChange::default(), START).await;
    assert!(matches!(nobody, Err(AdminError::Missing(_))), "{:?}", nobody.is_ok());
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
    assert!(matches!(
        routes.change(&owner, one.id, RouteChange::default(), START).await,
        Err(AdminError::Forbidden(_))
    ));
}
