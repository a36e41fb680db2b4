//! What a person alone is told, and mailed whatever it wishes.

use super::super::mailing::tests::*;
use super::super::{Kind, Marked, Which};
use super::*;
use crate::access::{Action, Role};
use crate::events::{Consumer, Event, EventKind};
use crate::store::{MemoryStore, Store, after_prefix};

fn event(actor: &str, act: &str, user: UserId, at: Timestamp) -> Event {
    let told = AuditEvent { actor: actor.to_owned(), act: act.to_owned(), subject: format!("user {user}") };
    Event { at, kind: EventKind::Audit(told) }
}

fn own(user: UserId, role: Role) -> Actor {
    Actor::of(format!("user {user}"), role)
}

fn told(room: &Notifications, actor: &Actor, which: Which) -> Vec<String> {
    let list = room.list(actor, actor.role.tenant().unwrap_or(INSTANCE), which).unwrap();
    list.into_iter().map(|shown| shown.notification.text).collect()
}

#[tokio::test]
async fn whose_factor_somebody_took_away_is_told_and_mailed_and_nobody_else_reads_it() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    let taken = event("user 0000000000abc", "second-factor.remove", OWNER, START);
    for _ in 0..3 {
        room.consume(std::slice::from_ref(&taken)).await.unwrap();
    }
    let owner = own(OWNER, Role::TenantOwner(SHOP));
    assert_eq!(told(&room, &owner, Which::All).len(), 1, "seen again it changes nothing");
    for other in [own(UserId(9), Role::TenantOwner(SHOP)), own(STRANGER, Role::TenantOwner(OTHER)), Actor::local(0)] {
        assert!(told(&room, &other, Which::All).is_empty(), "{other:?}");
    }
    assert!(room.list(&Actor::local(0), SHOP, Which::All).unwrap().is_empty(), "not even who runs the instance");
    room.pay(START).await.unwrap();
    let (_, to, text) = world.sent().remove(0);
    assert_eq!(to, "owner@people.example");
    for expected in ["taken away by user 0000000000abc", "If it was not you", "login-security"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(!text.contains("You asked for this mail"), "{text}");
    let room = open(&store, &world);
    assert_eq!(room.mark(&owner, SHOP, Marked::All).await.unwrap(), 1);
    assert_eq!((told(&room, &owner, Which::Unread).len(), told(&room, &owner, Which::All).len()), (0, 1));
    room.consume(&[taken]).await.unwrap();
    room.pay(minutes(60)).await.unwrap();
    assert_eq!(world.sent().len(), 1, "mailed once, over a restart too");
}

#[tokio::test]
async fn each_act_on_somebodys_way_in_is_told_in_words_and_others_are_not() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    let (me, owner) = (format!("user {OWNER}"), own(OWNER, Role::TenantOwner(SHOP)));
    let told_acts = [
        (me.as_str(), "second-factor.add", "a second factor was set up"),
        (&me, "second-factor.remove", "you took"),
        (&me, "second-factor.passkey-add", "a passkey was set up"),
        (&me, "second-factor.passkey-remove", "one of your passkeys was taken away"),
        (&me, "second-factor.passkey-remove-last", "your last passkey was taken away: your password alone lets you in"),
        ("system: a passkey's counter", events::PASSKEY_COPIED_ACT, "somebody may have a copy"),
        (&me, "second-factor.recovery-codes", "new recovery codes"),
        (&me, events::RECOVERY_USED_ACT, "a recovery code was used"),
        (&me, "user.password", "your password was changed"),
        ("key 0000000000abc", "user.reset-link", "made by key 0000000000abc"),
        ("system: x", events::SESSION_UNPROVED_ACT, "one of your sessions was ended"),
    ];
    for (number, (actor, act, words)) in told_acts.iter().enumerate() {
        room.consume(&[event(actor, act, OWNER, minutes(number as u64))]).await.unwrap();
        assert!(told(&room, &owner, Which::All)[0].contains(words), "{act}");
    }
    for act in [
        "session.begin",
        "session.confirm",
        "session.end",
        "user.change",
        "second-factor.offer",
        "second-factor.passkey-rename",
        "user.invite",
    ] {
        room.consume(&[event("uid 0 by local socket", act, OWNER, minutes(90))]).await.unwrap();
    }
    let of_key =
        AuditEvent { actor: me.clone(), act: "user.password".to_owned(), subject: "key 0000000000abc".to_owned() };
    room.consume(&[Event { at: START, kind: EventKind::Audit(of_key) }]).await.unwrap();
    assert_eq!(told(&room, &owner, Which::All).len(), told_acts.len());
}

#[tokio::test]
async fn switching_mail_off_a_lock_or_a_flood_does_not_keep_it_back() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    wish(&room, OWNER, &[]).await;
    for number in 0..2 * super::super::GATHERED_MAX {
        room.tell(news(SHOP, Kind::AddressListed, &format!("thing {number}")), START).await.unwrap();
    }
    room.consume(&[event("user 0000000000abc", "user.password", OWNER, START)]).await.unwrap();
    room.set_wish(&own(OWNER, Role::TenantOwner(SHOP)), OWNER, None, START).await.unwrap();
    world.people.lock().unwrap().get_mut(&OWNER).unwrap().is_active = false;
    let room = open(&store, &world);
    room.pay(START).await.unwrap();
    let sent = world.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].2.contains("your password was changed") && !sent[0].2.contains("thing"), "{}", sent[0].2);
    room.pay(minutes(60)).await.unwrap();
    assert_eq!(world.sent().len(), 1);
    // Whose address was never proved gets none.
    world.people.lock().unwrap().get_mut(&STRANGER).unwrap().has_followed_link = false;
    room.consume(&[event("user 0000000000abc", "user.reset-link", STRANGER, START)]).await.unwrap();
    room.pay(minutes(60)).await.unwrap();
    assert_eq!(world.sent().len(), 1);
}

#[tokio::test]
async fn a_bounded_number_is_kept_and_nothing_of_whoever_is_gone() {
    let (store, world) = (Arc::new(MemoryStore::new()), World::new());
    let room = open(&store, &world);
    for minute in 0..PERSONAL_KEPT_MAX as u64 + 20 {
        room.consume(&[event("key 0000000000abc", "user.reset-link", OWNER, minutes(minute))]).await.unwrap();
    }
    let owner = own(OWNER, Role::TenantOwner(SHOP));
    assert_eq!(told(&room, &owner, Which::All).len(), PERSONAL_KEPT_MAX);
    assert!(room.wish(&owner, OWNER).unwrap().is_none());
    assert!(room.of_person(&owner, OWNER, Action::Read).is_ok());
    room.consume(&[event("uid 0 by local socket", "user.remove", OWNER, minutes(200))]).await.unwrap();
    assert!(told(&room, &owner, Which::All).is_empty());
    let all = [prefix::NOTIFICATION];
    assert!(store.range(&all, &after_prefix(&all), 10).unwrap().is_empty());
}
