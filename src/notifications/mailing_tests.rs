//! Notifications by mail: who gets which, how often, and once.

use std::collections::HashMap;
use std::sync::Mutex;

use super::super::{INSTANCE, Kind, News, Notifications};
use super::*;
use crate::mail::{Body, Reply};
use crate::store::{MemoryStore, after_prefix};

pub(in super::super) const START: Timestamp = Timestamp(1_800_000_000_000);
pub(in super::super) const SHOP: TenantId = TenantId(7);
pub(in super::super) const OTHER: TenantId = TenantId(8);
pub(in super::super) const OWNER: UserId = UserId(1);
pub(in super::super) const STRANGER: UserId = UserId(2);
const OPERATOR: UserId = UserId(3);

/// Mail that was handed in: its id, to whom, all its text.
pub(in super::super) type Sent = Vec<(QueueId, String, String)>;

#[derive(Default)]
pub(in super::super) struct World {
    pub(in super::super) people: Mutex<HashMap<UserId, Person>>,
    sent: Mutex<Sent>,
    refusal: Mutex<Option<Refusal>>,
}

fn person(name: &str, role: Role) -> Person {
    let address = Address::parse(&format!("{name}@people.example")).unwrap();
    let (narrowing, place) = (Arc::default(), "shop".to_owned());
    Person { address, role, narrowing, is_active: true, has_followed_link: true, place }
}

impl World {
    pub(in super::super) fn new() -> Arc<Self> {
        let people = HashMap::from([
            (OWNER, person("owner", Role::TenantOwner(SHOP))),
            (STRANGER, person("stranger", Role::TenantOwner(OTHER))),
            (OPERATOR, person("operator", Role::InstanceAdmin)),
        ]);
        Arc::new(Self { people: Mutex::new(people), ..Self::default() })
    }

    fn post(self: &Arc<Self>) -> Post {
        let (people, handed) = (Arc::clone(self), Arc::clone(self));
        let name = Domain::parse("mx.shop.example").unwrap();
        Post {
            person: Arc::new(move |user| people.people.lock().unwrap().get(&user).cloned()),
            egress: Arc::new(move |tenant| Some(Egress { tenant, vip: VipId(1), name: name.clone() })),
            hand_in: Arc::new(move |id, envelope, draft, _| {
                let handed = Arc::clone(&handed);
                Box::pin(async move {
                    if let Some(refusal) = handed.refusal.lock().unwrap().clone() {
                        return Err(refusal);
                    }
                    assert_eq!(envelope.reverse_path, ReversePath(None));
                    let Body::Memory(body) = &draft.body else { panic!("short mail is in memory") };
                    let text = format!(
                        "{}{}",
                        String::from_utf8_lossy(&draft.header.to_bytes()),
                        String::from_utf8_lossy(body).replace("=\r\n", "")
                    );
                    handed.sent.lock().unwrap().push((id, envelope.recipients[0].address.to_string(), text));
                    Ok(())
                })
            }),
        }
    }

    pub(in super::super) fn sent(&self) -> Sent {
        self.sent.lock().unwrap().clone()
    }

    fn receivers(&self) -> Vec<String> {
        self.sent().into_iter().map(|(_, to, _)| to).collect()
    }
}

pub(in super::super) fn open(store: &Arc<MemoryStore>, world: &Arc<World>) -> Notifications {
    let room = Notifications::open(store.clone(), Arc::new(|_| (SHOP, "mx.shop.example".to_owned()))).unwrap();
    room.mail_with(world.post());
    room
}

pub(in super::super) fn news(tenant: TenantId, kind: Kind, subject: &str) -> News {
    News { tenant, kind, subject: subject.to_owned(), text: format!("{subject} needs you") }
}

pub(in super::super) async fn wish(room: &Notifications, user: UserId, kinds: &[Kind]) {
    let wish = Wish { kinds: kinds.iter().copied().collect() };
    room.set_wish(&Actor::local(0), user, Some(wish), START).await.unwrap();
}

pub(in super::super) fn minutes(count: u64) -> Timestamp {
    START.plus(Duration::from_secs(60 * count))
}

#[tokio::test]
async fn nobody_gets_mail_who_did_not_ask_and_each_only_of_its_own() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    room.tell(news(SHOP, Kind::QuotaNear, "before"), START).await.unwrap();
    room.pay(START).await.unwrap();
    assert!(world.sent().is_empty(), "off unless somebody says so");
    for user in [OWNER, STRANGER, OPERATOR] {
        wish(&room, user, &[]).await;
    }
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), START).await.unwrap();
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), minutes(1)).await.unwrap();
    room.tell(news(INSTANCE, Kind::BackupFailed, "backup"), START).await.unwrap();
    room.pay(START).await.unwrap();
    assert_eq!(world.receivers(), ["owner@people.example", "operator@people.example"]);
    let (id, _, text) = world.sent().remove(0);
    for expected in [
        "From: Notifications <postmaster@mx.shop.example>\r\n",
        "Subject: [shop] quota-near: limit\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "limit needs you",
        &format!("Message-ID: <{id}@mx.shop.example>\r\n"),
        &format!("postern notification mail {OWNER} --off"),
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(!text.contains("before"), "what was told before the wish is not mailed");
}

#[tokio::test]
async fn only_the_kinds_somebody_chose_and_nothing_after_it_was_switched_off() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[Kind::DomainFailing]).await;
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), START).await.unwrap();
    room.pay(START).await.unwrap();
    assert!(world.sent().is_empty());
    room.tell(news(SHOP, Kind::DomainFailing, "shop.example"), START).await.unwrap();
    room.set_wish(&Actor::local(0), OWNER, None, START).await.unwrap();
    room.pay(START).await.unwrap();
    assert!(world.sent().is_empty(), "what was owed is not mailed either");
    assert_eq!(room.wish(&Actor::local(0), OWNER).unwrap(), None);
}

#[tokio::test]
async fn a_flood_is_one_mail_in_ten_minutes_of_bounded_length() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[]).await;
    for minute in 0..60 {
        for number in 0..20 {
            let subject = format!("thing {minute}-{number}");
            room.tell(news(SHOP, Kind::AddressListed, &subject), minutes(minute)).await.unwrap();
            room.pay(minutes(minute)).await.unwrap();
        }
    }
    let sent = world.sent();
    assert_eq!(sent.len(), 6, "one in ten minutes");
    let told = |text: &str| text.matches("  address-listed\r\n").count();
    assert!(sent.iter().all(|(_, _, text)| told(text) <= GATHERED_MAX));
    let (_, _, second) = &sent[1];
    assert_eq!(told(second), GATHERED_MAX);
    // Told since the first mail, of which the last one comes with the next: 19 of minute 0, 9 times 20, 1 of minute 10.
    assert!(second.contains(&format!("and {} more", 200 - GATHERED_MAX)), "{second}");
    room.pay(minutes(59)).await.unwrap();
    assert_eq!(world.sent().len(), 6);
    room.pay(minutes(60)).await.unwrap();
    room.pay(minutes(120)).await.unwrap();
    assert_eq!(world.sent().len(), 7, "the rest, and then nothing");
}

#[tokio::test]
async fn a_mail_that_was_handed_in_before_a_crash_is_not_handed_in_again() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[]).await;
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), START).await.unwrap();
    *world.refusal.lock().unwrap() = Some(Refusal::plain(Reply::enhanced(451, 3, 0, "later")));
    room.pay(START).await.unwrap();
    assert!(world.sent().is_empty());
    // It died after the message was accepted and before that was written down here.
    let going = records::read(&room.mailing).outboxes[&OWNER].going.unwrap();
    let mut batch = Batch::new();
    batch.set(history_key(going.id), b"any".to_vec());
    store.commit(batch).await.unwrap();
    *world.refusal.lock().unwrap() = None;
    let room = open(&store, &world);
    room.tell(news(SHOP, Kind::QuotaNear, "another limit"), START).await.unwrap();
    room.pay(minutes(1)).await.unwrap();
    assert!(world.sent().is_empty(), "the first was handed in");
    room.pay(minutes(20)).await.unwrap();
    let sent = world.sent();
    assert_eq!(sent.len(), 1);
    assert!(
        sent[0].2.contains("another limit needs you") && !sent[0].2.contains("    limit needs you"),
        "{}",
        sent[0].2
    );
}

#[tokio::test]
async fn what_waits_keeps_its_id_and_what_is_refused_for_good_is_dropped() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[]).await;
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), START).await.unwrap();
    *world.refusal.lock().unwrap() = Some(Refusal::plain(Reply::enhanced(451, 3, 0, "later")));
    room.pay(START).await.unwrap();
    let first = records::read(&room.mailing).outboxes[&OWNER].going.unwrap().id;
    let room = open(&store, &world);
    room.pay(minutes(1)).await.unwrap();
    assert_eq!(records::read(&room.mailing).outboxes[&OWNER].going.unwrap().id, first);
    *world.refusal.lock().unwrap() = Some(Refusal::plain(Reply::enhanced(554, 5, 0, "never")));
    room.pay(minutes(2)).await.unwrap();
    *world.refusal.lock().unwrap() = None;
    room.pay(minutes(60)).await.unwrap();
    assert!(world.sent().is_empty());
}

#[tokio::test]
async fn whoever_may_not_log_in_gets_none_and_whoever_is_gone_leaves_nothing() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[]).await;
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().is_active = false;
    room.tell(news(SHOP, Kind::QuotaNear, "limit"), START).await.unwrap();
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().is_active = true;
    room.tell(news(SHOP, Kind::QuotaNear, "another"), START).await.unwrap();
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().is_active = false;
    room.pay(minutes(1)).await.unwrap();
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().is_active = true;
    room.pay(minutes(60)).await.unwrap();
    assert!(world.sent().is_empty(), "told or mailed while locked: neither goes");
    world.people.lock().unwrap().remove(&OWNER);
    room.forget_tenant(SHOP).await.unwrap();
    for kind in [b'w', b'o'] {
        let own = [prefix::NOTIFICATION, kind];
        assert!(store.range(&own, &after_prefix(&own), 10).unwrap().is_empty());
    }
}

#[tokio::test]
async fn each_sets_its_own_wish_and_only_who_manages_people_that_of_others() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    let own = Actor::of(format!("user {OWNER}"), Role::Analyst(SHOP));
    let all = || Some(Wish { kinds: BTreeSet::new() });
    room.set_wish(&own, OWNER, all(), START).await.unwrap();
    assert_eq!(room.wish(&own, OWNER).unwrap(), all());
    for (role, may_read, may_write) in [
        (Role::TenantAdmin(SHOP), true, true),
        (Role::Support(SHOP), true, false),
        (Role::Analyst(SHOP), false, false),
        (Role::TenantOwner(OTHER), false, false),
    ] {
        let actor = Actor::of("somebody", role);
        assert_eq!(room.wish(&actor, OWNER).is_ok(), may_read, "{role:?}");
        assert_eq!(room.set_wish(&actor, OWNER, all(), START).await.is_ok(), may_write, "{role:?}");
        assert!(room.wish(&actor, OPERATOR).is_err());
    }
}

#[tokio::test]
async fn that_no_backup_is_made_is_mailed_once_to_who_runs_the_instance() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    for user in [OWNER, OPERATOR] {
        wish(&room, user, &[]).await;
    }
    for day in [0, 6, 7, 8, 30] {
        room.look_for_backups(minutes(day * 24 * 60)).await.unwrap();
        room.pay(minutes(day * 24 * 60)).await.unwrap();
    }
    assert_eq!(world.receivers(), ["operator@people.example"]);
    let (_, _, text) = world.sent().remove(0);
    for expected in ["backup-overdue: backup\r\n", "no backup was made in the 7 days since the first start"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[tokio::test]
async fn whoever_is_bound_to_accounts_gets_no_mail_about_others_also_if_it_was_owed_before() {
    let (world, store) = (World::new(), Arc::new(MemoryStore::new()));
    let room = open(&store, &world);
    let (own, other) = (crate::mail::SmtpAccountId(5), crate::mail::SmtpAccountId(6));
    wish(&room, OWNER, &[]).await;
    room.tell(news(SHOP, Kind::AccountPaused, &other.to_string()), START).await.unwrap();
    let accounts = Some(BTreeMap::from([(own, Action::Read)]));
    let narrowing = Arc::new(Narrowing { accounts, ..Narrowing::default() });
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().narrowing = narrowing;
    room.pay(START).await.unwrap();
    assert!(world.sent().is_empty(), "it was bound since");
    room.tell(news(SHOP, Kind::AccountPaused, &own.to_string()), minutes(1)).await.unwrap();
    room.tell(news(SHOP, Kind::WebhookDisabled, "hook"), minutes(1)).await.unwrap();
    room.pay(minutes(20)).await.unwrap();
    let [(_, _, text)] = &world.sent()[..] else { panic!("one mail: {:?}", world.sent()) };
    assert!(text.contains(&own.to_string()) && !text.contains("hook") && !text.contains(&other.to_string()), "{text}");
}
