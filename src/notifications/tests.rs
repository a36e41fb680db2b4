//! Tests of the room, over the engine for tests.

use super::*;
use crate::access::{Narrowing, Role};
use crate::events::{Consumer, Event, EventKind, InstanceEvent};
use crate::store::MemoryStore;

const START: Timestamp = Timestamp(1_800_000_000_000);
const SHOP: TenantId = TenantId(7);
const OTHER: TenantId = TenantId(8);

fn open(store: &Arc<MemoryStore>) -> Notifications {
    Notifications::open(store.clone(), Arc::new(|_| (SHOP, "mx.shop.example".to_owned()))).unwrap()
}

fn news(tenant: TenantId, subject: &str) -> News {
    News { tenant, kind: Kind::QuotaNear, subject: subject.to_owned(), text: format!("{subject} is near") }
}

fn owner(tenant: TenantId) -> Actor {
    Actor::of(format!("owner of {tenant}"), Role::TenantOwner(tenant))
}

fn subjects(room: &Notifications, actor: &Actor, which: Which) -> Vec<String> {
    let list = room.list(actor, SHOP, which).unwrap();
    list.into_iter().map(|shown| shown.notification.subject).collect()
}

#[tokio::test]
async fn what_is_told_is_listed_newest_first_and_read_by_each_for_itself() {
    let store = Arc::new(MemoryStore::new());
    let room = open(&store);
    for (number, subject) in ["one", "two", "three"].into_iter().enumerate() {
        room.tell(news(SHOP, subject), START.plus(Duration::from_secs(number as u64))).await.unwrap();
    }
    room.tell(news(OTHER, "foreign"), START).await.unwrap();
    let (mine, support) = (owner(SHOP), Actor::of("s", Role::Support(SHOP)));
    assert_eq!(subjects(&room, &mine, Which::Unread), ["three", "two", "one"]);
    let first = room.list(&mine, SHOP, Which::All).unwrap()[0].notification.id;
    assert_eq!(room.mark(&mine, SHOP, Marked::These(vec![first, [9; 16]])).await.unwrap(), 1);
    let room = open(&store);
    assert_eq!(subjects(&room, &mine, Which::Unread), ["two", "one"]);
    assert_eq!(subjects(&room, &support, Which::Unread).len(), 3, "others have not read it");
    assert_eq!(room.mark(&mine, SHOP, Marked::All).await.unwrap(), 2);
    assert_eq!((subjects(&room, &mine, Which::Unread).len(), subjects(&room, &mine, Which::All).len()), (0, 3));
}

#[tokio::test]
async fn nobody_reads_what_another_tenant_or_the_instance_is_told() {
    let room = open(&Arc::new(MemoryStore::new()));
    for tenant in [OTHER, INSTANCE] {
        assert!(room.list(&owner(SHOP), tenant, Which::All).is_err());
        assert!(room.mark(&owner(SHOP), tenant, Marked::All).await.is_err());
    }
    assert!(room.list(&Actor::local(0), INSTANCE, Which::All).is_ok());
}

#[tokio::test]
async fn the_same_trouble_is_told_once_a_day_and_a_flood_pushes_out_the_oldest() {
    let room = open(&Arc::new(MemoryStore::new()));
    for minute in 0..60 * 24 {
        room.tell(news(SHOP, "limit"), START.plus(Duration::from_secs(60 * minute))).await.unwrap();
    }
    assert_eq!(subjects(&room, &owner(SHOP), Which::All).len(), 1);
    room.tell(news(SHOP, "limit"), START.plus(TOLD_AGAIN)).await.unwrap();
    assert_eq!(subjects(&room, &owner(SHOP), Which::All).len(), 2);
    for number in 0..KEPT_MAX + 10 {
        room.tell(news(SHOP, &number.to_string()), START.plus(TOLD_AGAIN * 2)).await.unwrap();
    }
    let left = subjects(&room, &owner(SHOP), Which::All);
    assert_eq!(left.len(), KEPT_MAX);
    assert!(!left.contains(&"limit".to_owned()));
    room.tell(news(SHOP, "much later"), START.plus(KEPT * 2)).await.unwrap();
    assert_eq!(subjects(&room, &owner(SHOP), Which::All), ["much later"]);
}

#[tokio::test]
async fn events_become_news_and_seen_again_change_nothing() {
    let store = Arc::new(MemoryStore::new());
    let room = open(&store);
    let (tenant, domain) = (SHOP, Domain::parse("shop.example").unwrap());
    let kinds = [
        InstanceEvent::DomainUnverified { tenant, domain, reason: "there is no TXT record".into() },
        InstanceEvent::SiteParked { vip: VipId(1), site: "mx.example".into(), secs: 60, reply: "554 listed".into() },
        InstanceEvent::Stopping,
    ];
    let events: Vec<Event> =
        kinds.into_iter().map(|kind| Event { at: START, kind: EventKind::Instance(kind) }).collect();
    for _ in 0..3 {
        room.consume(&events).await.unwrap();
    }
    let list = room.list(&owner(SHOP), SHOP, Which::All).unwrap();
    let kinds: BTreeSet<Kind> = list.iter().map(|shown| shown.notification.kind).collect();
    assert_eq!((list.len(), kinds), (2, BTreeSet::from([Kind::DomainFailing, Kind::AddressListed])));
    room.mark(&owner(SHOP), SHOP, Marked::All).await.unwrap();
    room.forget_tenant(SHOP).await.unwrap();
    assert!(room.list(&owner(SHOP), SHOP, Which::All).unwrap().is_empty());
    let own = [prefix::NOTIFICATION];
    assert!(store.range(&own, &after_prefix(&own), 10).unwrap().is_empty());
}

/// A failing domain, an account that is paused, limits of an account and of the tenant, a webhook, an address.
async fn tell_of_everything(room: &Notifications, account: SmtpAccountId) {
    for (kind, subject) in [
        (Kind::DomainFailing, "shop.example".to_owned()),
        (Kind::DomainFailing, "other.example (warning)".to_owned()),
        (Kind::AccountPaused, account.to_string()),
        (Kind::AccountPaused, SmtpAccountId(99).to_string()),
        (Kind::QuotaNear, account.to_string()),
        (Kind::QuotaNear, "tenant shop".to_owned()),
        (Kind::WebhookDisabled, "hook".to_owned()),
        (Kind::AddressListed, "mx.shop.example at gmail".to_owned()),
    ] {
        room.tell(News { kind, ..news(SHOP, &subject) }, START).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_is_bound_to_accounts_or_domains_is_told_of_those_alone() {
    let (room, account) = (open(&Arc::new(MemoryStore::new())), SmtpAccountId(5));
    tell_of_everything(&room, account).await;
    let bound = |narrowing| Actor { narrowing: Arc::new(narrowing), ..owner(SHOP) };
    let accounts = |account| Some(BTreeMap::from([(account, Action::Read)]));
    let domains = |name| Some(vec![Domain::parse(name).unwrap()]);
    let of_account = bound(Narrowing { accounts: accounts(account), ..Narrowing::default() });
    let of_other = bound(Narrowing { accounts: accounts(SmtpAccountId(6)), ..Narrowing::default() });
    let of_domain = bound(Narrowing { domains: domains("shop.example"), ..Narrowing::default() });
    let seen = |actor: &Actor| {
        let mut seen = subjects(&room, actor, Which::All);
        seen.sort();
        seen
    };
    let mut of_both = vec!["shop.example".to_owned(), "other.example (warning)".to_owned()];
    of_both.sort();
    assert_eq!(seen(&owner(SHOP)).len(), 8);
    assert_eq!(seen(&of_other), of_both, "domains are everybody's who sends as them");
    of_both.extend([account.to_string(), account.to_string()]);
    of_both.sort();
    assert_eq!(seen(&of_account), of_both);
    assert_eq!(seen(&of_domain), ["shop.example"]);
    assert_eq!(room.mark(&of_domain, SHOP, Marked::All).await.unwrap(), 1, "it reads what it sees");
}
