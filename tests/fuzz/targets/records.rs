//! Records as they are stored, routes, sealed secrets.

use postern::accounts::{SmtpAccount, Tenant};
use postern::domains::SendingDomain;
use postern::events::{Event, History};
use postern::mail::{Class, Domain, TenantId, VipId};
use postern::queue::{LaneRecord, NoticeOwed, QueuedMessage};
use postern::routing::{RelayTls, Route, RouteScope, RouteTable, TransportName};
use postern::seal::MasterKey;
use postern::store::codec;
use postern::suppression;
use postern::vips::Vip;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::feed::Feed;

/// Any bytes under any key: damage is an error, and what is read is written as it was read.
pub fn stored(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 11 {
        0 => record::<QueuedMessage>(bytes),
        1 => record::<LaneRecord>(bytes),
        2 => record::<NoticeOwed>(bytes),
        3 => record::<Event>(bytes),
        4 => history(bytes),
        5 => entry(bytes),
        6 => record::<Vip>(bytes),
        7 => record::<Tenant>(bytes),
        8 => record::<SmtpAccount>(bytes),
        9 => record::<SendingDomain>(bytes),
        _ => record::<Route>(bytes),
    }
}

fn record<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(read) = codec::decode::<T>(bytes) else { return };
    let written = codec::encode(&read);
    let again = codec::decode::<T>(&written).expect("what was read can be written and read");
    assert_eq!(codec::encode(&again), written);
    let mut longer = written.clone();
    longer.push(0);
    assert!(codec::decode::<T>(&longer).is_err(), "trailing bytes are damage");
    let newer = [&[2], &written[1..]].concat();
    assert!(codec::decode::<T>(&newer).is_err(), "a newer version is never guessed");
}

fn entry(bytes: &[u8]) {
    let Ok(read) = suppression::Entry::from_bytes(bytes) else { return };
    assert_eq!(suppression::Entry::from_bytes(&read.to_bytes()).expect("what was read can be read"), read);
}

fn history(bytes: &[u8]) {
    let Ok(read) = History::from_bytes(bytes) else { return };
    assert_eq!(History::from_bytes(&read.to_bytes()).expect("what was read can be written and read"), read);
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
