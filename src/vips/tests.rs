//! Tests of the virtual IPs' records.

use super::*;
use crate::store::{CommitError, MemoryStore};

const START: Timestamp = Timestamp(1_800_000_000_000);

fn new(ipv4: &str, owner: Owner) -> NewVip {
    NewVip {
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: Domain::parse("mx.example.com").unwrap(),
        owner,
    }
}

fn room() -> (Arc<MemoryStore>, Vips, Actor) {
    let store = Arc::new(MemoryStore::new());
    let vips = Vips::open(store.clone()).unwrap();
    (store, vips, Actor::system("test"))
}

#[tokio::test]
async fn a_virtual_ip_is_found_by_id_and_address_and_survives_a_restart() {
    let (store, vips, actor) = room();
    let mut changed = vips.changed();
    let both = NewVip { ipv6: Some("2001:db8::7".parse().unwrap()), ..new("203.0.113.7", Owner::Shared) };
    let vip = vips.add(&actor, both, START).await.unwrap();
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    for vips in [&vips, &Vips::open(store.clone()).unwrap()] {
        for address in ["203.0.113.7", "::ffff:203.0.113.7", "2001:db8::7"] {
            assert_eq!(vips.by_address(address.parse().unwrap()).as_ref(), Some(&vip), "{address}");
        }
        assert_eq!(vips.get(vip.id).as_ref(), Some(&vip));
    }
    vips.remove(&actor, vip.id, START).await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert!(vips.all().is_empty() && Vips::open(store).unwrap().all().is_empty());
    vips.add(&actor, new("203.0.113.7", Owner::Shared), START).await.unwrap();
}

#[tokio::test]
async fn an_address_belongs_to_one_virtual_ip_only() {
    let (_, vips, actor) = room();
    vips.add(&actor, new("203.0.113.7", Owner::Shared), START).await.unwrap();
    let again = vips.add(&actor, new("203.0.113.7", Owner::Tenant(TenantId(1))), START).await;
    assert!(matches!(again, Err(AdminError::Exists(_))));
}

#[tokio::test]
async fn what_cannot_be_an_address_to_send_from_is_refused() {
    let (store, vips, actor) = room();
    let base = || new("203.0.113.7", Owner::Shared);
    let ipv6 = |text: &str| NewVip { ipv4: None, ipv6: Some(text.parse().unwrap()), ..base() };
    let bad = [
        NewVip { ipv4: None, ..base() },
        new("0.0.0.0", Owner::Shared),
        new("224.0.0.1", Owner::Shared),
        new("255.255.255.255", Owner::Shared),
        ipv6("::"),
        ipv6("fe80::1"),
        ipv6("::ffff:203.0.113.7"),
        NewVip { public_ipv6: Some("2001:db8::7".parse().unwrap()), ..base() },
        NewVip { ehlo: Domain::parse("localhost").unwrap(), ..base() },
    ];
    for new in bad {
        let refused = vips.add(&actor, new.clone(), START).await;
        assert!(matches!(refused, Err(AdminError::Invalid(_))), "{new:?}");
    }
    assert_eq!(store.commits(), 0);
    assert!(vips.add(&actor, new("127.0.0.2", Owner::Shared), START).await.is_ok(), "trials live on loopback");
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
    assert!(matches!(vips.add(&owner, base(), START).await, Err(AdminError::Forbidden(_))));
}

#[tokio::test]
async fn the_default_is_the_chosen_one_else_the_oldest_of_its_own_never_a_shared_one_by_itself() {
    let (store, vips, actor) = room();
    let tenant = TenantId(1);
    let shared = vips.add(&actor, new("203.0.113.1", Owner::Shared), START).await.unwrap();
    assert_eq!(vips.default_for(tenant, None), None);
    assert_eq!(vips.default_for(tenant, Some(shared.id)).as_ref(), Some(&shared));
    let foreign = vips.add(&actor, new("203.0.113.2", Owner::Tenant(TenantId(2))), START).await.unwrap();
    let mut own = Vec::new();
    for last in 3..6 {
        let at = START.plus(std::time::Duration::from_secs(last));
        own.push(vips.add(&actor, new(&format!("203.0.113.{last}"), Owner::Tenant(tenant)), at).await.unwrap());
    }
    for vips in [&vips, &Vips::open(store).unwrap()] {
        assert_eq!(vips.default_for(tenant, None).as_ref(), own.first());
        assert_eq!(vips.default_for(tenant, Some(own[2].id)).as_ref(), own.get(2));
        assert_eq!(vips.default_for(tenant, Some(foreign.id)).as_ref(), own.first(), "never another tenant's");
    }
}

#[tokio::test]
async fn what_the_world_sees_may_change_and_a_failed_change_is_not_remembered() {
    let (store, vips, actor) = room();
    let vip = vips.add(&actor, new("10.0.0.7", Owner::Shared), START).await.unwrap();
    let public: IpAddr = [203, 0, 113, 7].into();
    let seen = Seen { ehlo: Some(Domain::parse("mail.example.com").unwrap()), public: Some(vec![public]) };
    store.fail_next(1, CommitError::Full("test".into()));
    assert!(vips.describe_anew(&actor, vip.id, seen.clone(), START).await.is_err());
    assert_eq!(vips.get(vip.id).as_ref(), Some(&vip));
    let changed = vips.describe_anew(&actor, vip.id, seen, START).await.unwrap();
    assert_eq!((changed.ipv4, changed.ehlo.as_str()), (vip.ipv4, "mail.example.com"));
    assert_eq!(Vips::open(store.clone()).unwrap().get(vip.id), Some(changed.clone()));
    let same = vips.describe_anew(&actor, vip.id, Seen::default(), START).await.unwrap();
    assert_eq!(same, changed, "what is left out stays");
    let commits = store.commits();
    for bad in [vec![public, public], vec!["2001:db8::7".parse().unwrap()], vec![[224, 0, 0, 1].into()]] {
        let refused = vips.describe_anew(&actor, vip.id, Seen { public: Some(bad), ..Seen::default() }, START).await;
        assert!(matches!(refused, Err(AdminError::Invalid(_))), "{refused:?}");
    }
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
    let refused = vips.describe_anew(&owner, vip.id, Seen::default(), START).await;
    assert!(matches!(refused, Err(AdminError::Forbidden(_))), "{refused:?}");
    assert_eq!(store.commits(), commits);
    let bare = vips.describe_anew(&actor, vip.id, Seen { public: Some(Vec::new()), ..Seen::default() }, START).await;
    assert_eq!(bare.unwrap().public_ipv4, None);
}

#[tokio::test]
async fn a_damaged_record_stops_no_other_and_keeps_its_address() {
    let (store, vips, actor) = room();
    let vip = vips.add(&actor, new("203.0.113.7", Owner::Shared), START).await.unwrap();
    let fine = vips.add(&actor, new("203.0.113.8", Owner::Shared), START).await.unwrap();
    let mut batch = Batch::new();
    batch.set(key(vip.id), vec![9, 9]);
    store.commit(batch).await.unwrap();
    let vips = Vips::open(store.clone()).unwrap();
    assert_eq!((vips.damaged().len(), vips.all().as_slice()), (1, [fine].as_slice()));
    assert!(vips.add(&actor, new("203.0.113.7", Owner::Shared), START).await.is_err());
    records::report(&*store, vips.damaged(), START).await.unwrap();
    let events = store.range(&[prefix::EVENT], &[prefix::EVENT + 1], 10).unwrap();
    assert_eq!(events.len(), 3);
}

#[tokio::test]
async fn a_lost_virtual_ip_is_made_again_under_its_id_but_no_id_is_there_twice() {
    let (_, vips, actor) = room();
    let id = VipId::random();
    let vip = vips.add_as(&actor, id, new("203.0.113.7", Owner::Shared), START).await.unwrap();
    assert_eq!((vip.id, vips.get(id)), (id, Some(vip)));
    let again = vips.add_as(&actor, id, new("203.0.113.8", Owner::Shared), START).await;
    assert!(matches!(again, Err(AdminError::Exists(_))), "{again:?}");
}
