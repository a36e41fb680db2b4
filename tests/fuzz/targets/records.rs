//! Records as they are stored, routes, sealed secrets.

use postern::mail::{Class, Domain, TenantId, VipId};
use postern::routing::{RelayTls, Route, RouteScope, RouteTable, TransportName};
use postern::seal::MasterKey;

use super::feed::Feed;
use super::kinds::KINDS;

/// Any bytes as any kind of record: damage is an error, and what is read is written as it was read.
pub fn stored(input: &[u8]) {
    let Some((number, bytes)) = input.split_first() else { return };
    let kind = &KINDS[usize::from(*number) % KINDS.len()];
    let Some(written) = (kind.again)(bytes) else { return };
    let under = char::from(kind.prefix);
    assert_eq!((kind.again)(&written).as_ref(), Some(&written), "under {under:?}: what was read is written and read");
    if kind.newest == 0 {
        return;
    }
    let longer = [&written[..], &[0]].concat();
    assert_eq!((kind.again)(&longer), None, "under {under:?}: trailing bytes are damage");
    for version in [0, kind.newest + 1, u8::MAX] {
        let strange = [&[version], &written[1..]].concat();
        assert_eq!((kind.again)(&strange), None, "under {under:?}: version {version} is not known");
    }
}

const DOMAINS: [&str; 6] = ["example", "a.example", "b.a.example", "xa.example", "a.example.net", "net"];

/// The narrowest route wins, in whatever order they were made.
pub fn routes(input: &[u8]) {
    let mut feed = Feed(input);
    let (tenant, to) = (TenantId(u64::from(feed.byte() % 3)), Domain::parse(DOMAINS[feed.below(6)]).unwrap());
    let mut routes: Vec<Route> = Vec::new();
    while !feed.is_empty() && routes.len() < 12 {
        let scope = match feed.below(3) {
            0 => RouteScope::Instance,
            1 => RouteScope::Tenant(TenantId(u64::from(feed.byte() % 3))),
            _ => RouteScope::RecipientDomain(Domain::parse(DOMAINS[feed.below(6)]).unwrap()),
        };
        // There is one route per scope.
        if routes.iter().all(|known| known.scope != scope) {
            let id = routes.len() as u64;
            routes.push(Route {
                id,
                scope,
                host: "relay.example".to_owned(),
                port: 587,
                tls: RelayTls::Starttls,
                login: None,
            });
        }
    }
    let find =
        |fits: &dyn Fn(&RouteScope) -> bool| routes.iter().find(|route| fits(&route.scope)).map(|route| route.id);
    let mut name = Some(to.as_str());
    let mut expected = None;
    while let Some(own) = name.filter(|_| expected.is_none()) {
        expected = find(&|scope| matches!(scope, RouteScope::RecipientDomain(domain) if domain.as_str() == own));
        name = own.split_once('.').map(|(_, parent)| parent);
    }
    let expected = expected
        .or_else(|| find(&|scope| *scope == RouteScope::Tenant(tenant)))
        .or_else(|| find(&|scope| *scope == RouteScope::Instance));
    let mut table = RouteTable { routes: routes.clone() };
    for _ in 0..2 {
        let lane = table.lane(VipId(9), tenant, Class::Marketing, &to);
        assert_eq!(lane.transport, expected.map_or(TransportName::Mx, TransportName::Smarthost));
        assert_eq!((lane.vip, lane.tenant, lane.class, &lane.next_hop), (VipId(9), tenant, Class::Marketing, &to));
        table.routes.reverse();
    }
}

/// A sealed secret opens under its key and purpose, and under no other bytes.
pub fn sealed(input: &[u8]) {
    let mut feed = Feed(input);
    let (purpose, place, mask) = (feed.text(), usize::from(feed.byte()), feed.byte());
    let key = MasterKey::from_bytes([7; 32]);
    let plain = feed.rest();
    let sealed = key.seal(&purpose, plain);
    assert_eq!(key.open(&purpose, &sealed).unwrap().as_slice(), plain);
    assert!(key.open(&format!("{purpose}x"), &sealed).is_err());
    assert!(MasterKey::from_bytes([8; 32]).open(&purpose, &sealed).is_err());
    let mut changed = sealed.clone();
    changed[place % sealed.len()] ^= mask;
    assert_eq!(key.open(&purpose, &changed).is_ok(), mask == 0);
    assert!(key.open(&purpose, &sealed[..place % sealed.len()]).is_err());
    assert!(key.open(&purpose, plain).is_err());
}
