//! People and keys over a store in memory: links, logins, second factors, sessions, keys.

mod passkeys;
mod proofs;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::*;
use crate::access::{Permission, Resource, Sight};
use crate::store::MemoryStore;

const SHOP: TenantId = TenantId(7);
const OTHER: TenantId = TenantId(8);
const PASSWORD: &str = "correct horse battery";
const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

fn people() -> (Arc<MemoryStore>, People) {
    let store = Arc::new(MemoryStore::new());
    let people = over(&store);
    (store, people)
}

fn over(store: &Arc<MemoryStore>) -> People {
    let key = Arc::new(MasterKey::from_bytes([7; 32]));
    People::open(store.clone(), key, accounts::Settings::default()).unwrap()
}

fn admin() -> Actor {
    Actor::local(0)
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

async fn person(people: &People, email: &str, role: Role) -> User {
    let new = NewUser { email: email.to_owned(), name: "N".to_owned(), role, accounts: None };
    let (user, link) = people.invite(&admin(), new, NOW).await.unwrap();
    assert_eq!(user.state, UserState::Invited);
    people.redeem(&link.token, secret(PASSWORD), None, NOW).await.unwrap()
}

fn given<'a>(email: &'a str, password: &'a str, code: Option<&'a str>, from: IpAddr) -> Credentials<'a> {
    Credentials { email, tenant: None, password, code, passkey: None, from, agent: "test" }
}

async fn enter(people: &People, email: &str, code: Option<&str>, now: Timestamp) -> Result<LoggedIn, Refused> {
    people.log_in(given(email, PASSWORD, code, HOME), now).await
}

async fn enrol(people: &People, user: &User, now: Timestamp) -> (Vec<u8>, Vec<Zeroizing<String>>) {
    let own = Actor::of(name_of(user.id), user.role);
    let enrolment = people.offer_totp(&own, user.id, "mx", now).await.unwrap();
    assert!(enrolment.qr_svg.contains("<svg") && enrolment.address.contains(enrolment.secret.as_str()));
    let sealed = people.user(user.id).unwrap().totp.clone().unwrap().sealed;
    let opened = people.key.open(&format!("totp {}", user.id), &sealed).unwrap().to_vec();
    let code = totp_code_at(&opened, now);
    let codes = people.prove_totp(&own, (user.id, None), &code, now).await.unwrap();
    (opened, codes)
}

fn refusal<T>(result: Result<T, Refused>) -> Refused {
    match result {
        Ok(_) => panic!("should have been refused"),
        Err(refused) => refused,
    }
}

#[tokio::test]
async fn a_link_is_good_once_and_for_its_time_and_the_password_is_checked() {
    let (store, people) = people();
    let new =
        || NewUser { email: "Anna@Example.com".into(), name: String::new(), role: Role::Support(SHOP), accounts: None };
    let (user, link) = people.invite(&admin(), new(), NOW).await.unwrap();
    assert_eq!(user.email, "anna@example.com");
    assert!(matches!(people.invite(&admin(), new(), NOW).await, Err(AdminError::Exists(_))));
    assert!(matches!(people.redeem(&link.token, secret("password1234"), None, NOW).await, Err(AdminError::Fields(_))));
    let late = NOW.plus(ACTIVATION_LASTS + Duration::from_secs(1));
    assert!(matches!(people.redeem(&link.token, secret(PASSWORD), None, late).await, Err(AdminError::Missing(_))));
    let (first, second) = tokio::join!(
        people.redeem(&link.token, secret(PASSWORD), None, NOW),
        people.redeem(&link.token, secret("another horse entirely"), None, NOW)
    );
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|done| **done).count(), 1, "two at once: one wins");
    let everything = store.range(&[0], &[255], usize::MAX).unwrap();
    let holds = |needle: &str| {
        everything.iter().any(|(_, value)| value.windows(needle.len()).any(|part| part == needle.as_bytes()))
    };
    assert!(!holds(&link.token) && !holds(PASSWORD), "neither token nor password is stored");
}

#[tokio::test]
async fn the_set_up_link_makes_the_first_admin_and_no_second() {
    let (_, people) = people();
    let one = people.set_up_link(&admin(), NOW).await.unwrap().unwrap();
    let two = people.set_up_link(&admin(), NOW).await.unwrap().unwrap();
    assert!(matches!(people.redeem(&one.token, secret(PASSWORD), None, NOW).await, Err(AdminError::Fields(_))));
    let root = people.redeem(&one.token, secret(PASSWORD), Some("root@example.com"), NOW).await.unwrap();
    assert_eq!((root.role, root.state), (Role::InstanceAdmin, UserState::Active));
    assert!(people.redeem(&two.token, secret(PASSWORD), Some("evil@example.com"), NOW).await.is_err());
    assert!(people.set_up_link(&admin(), NOW).await.unwrap().is_none());
}

#[tokio::test]
async fn every_login_is_a_new_session_and_survives_a_restart_until_it_is_over() {
    let (store, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let one = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let two = enter(&people, "ANNA@example.com", None, NOW).await.unwrap();
    assert_ne!(one.secret, two.secret);
    assert_ne!(csrf_token(&one.secret), csrf_token(&two.secret));
    let reopened = over(&store);
    let (actor, _, _) = reopened.session_actor(&one.secret, Some(HOME), NOW).unwrap();
    assert_eq!((actor.role, actor.from), (Role::TenantOwner(SHOP), Some(HOME)));
    assert!(reopened.session_actor("made up", Some(HOME), NOW).is_none());
    let idle = NOW.plus(SESSION_IDLE_MAX + Duration::from_secs(1));
    assert!(reopened.session_actor(&one.secret, Some(HOME), idle).is_none());
    assert_eq!(people.sessions(&admin(), user.id).unwrap().len(), 2);
    people.end_session(&admin(), user.id, Some(one.session.digest), NOW).await.unwrap();
    assert!(
        people.session_actor(&one.secret, None, NOW).is_none()
            && people.session_actor(&two.secret, None, NOW).is_some()
    );
    people
        .change_user(&admin(), user.id, UserChange { locked: Some(true), ..UserChange::default() }, NOW)
        .await
        .unwrap();
    assert!(people.session_actor(&two.secret, None, NOW).is_none(), "a locked person's sessions end");
    people.persist(idle).await.unwrap();
}

#[tokio::test]
async fn failures_slow_the_network_they_come_from_and_nobody_else() {
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok());
    let mut delays = Vec::new();
    for second in [0, 0, 0, 0, 1, 2] {
        let refused = refusal(people.log_in(given("anna@example.com", "wrong", None, AWAY), later(second)).await);
        let Refused::Wrong(delay) = refused else { panic!("{refused:?}") };
        delays.push(delay.as_millis());
    }
    assert_eq!(delays, [0, 0, 0, 500, 1000, 2000]);
    let unknown = refusal(people.log_in(given("nobody@example.com", "wrong", None, AWAY), NOW).await);
    assert_eq!(unknown, Refused::Wrong(Duration::ZERO), "each address is counted by itself");
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok(), "from home she still gets in");
    for number in 0..200 {
        people.log_in(given(&format!("x{number}@example.com"), "w", None, HOME), NOW).await.err();
    }
    let stranger = refusal(people.log_in(given("bert@example.com", "w", None, HOME), NOW).await);
    assert!(matches!(stranger, Refused::Slowed(_)), "{stranger:?}");
    assert!(
        enter(&people, "anna@example.com", None, NOW).await.is_ok(),
        "a network she logged in from stays open to her"
    );
}

#[tokio::test]
async fn a_code_is_good_once_and_so_is_a_recovery_code() {
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let (totp, recovery) = enrol(&people, &user, NOW).await;
    assert_eq!(recovery.len(), RECOVERY_CODES);
    assert_eq!(refusal(enter(&people, "anna@example.com", None, NOW).await), Refused::NeedsFactor(None));
    let spent = totp_code_at(&totp, NOW);
    let again = refusal(enter(&people, "anna@example.com", Some(&spent), NOW).await);
    assert!(matches!(again, Refused::Wrong(_)), "the code that proved it is spent: {again:?}");
    let fresh = totp_code_at(&totp, later(60));
    assert!(enter(&people, "anna@example.com", Some(&fresh), later(60)).await.is_ok());
    assert!(enter(&people, "anna@example.com", Some(&fresh), later(61)).await.is_err());
    let code = recovery[3].to_uppercase();
    assert!(enter(&people, "anna@example.com", Some(&code), later(61)).await.is_ok());
    assert!(enter(&people, "anna@example.com", Some(&code), later(61)).await.is_err());
    assert_eq!(people.user(user.id).unwrap().recovery.len(), RECOVERY_CODES - 1);
    let two = totp_code_at(&totp, later(120));
    let (first, second) = tokio::join!(
        enter(&people, "anna@example.com", Some(&two), later(120)),
        enter(&people, "anna@example.com", Some(&two), later(120))
    );
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "two at once: one wins");
}

#[tokio::test]
async fn codes_cannot_be_guessed_even_with_the_password_and_the_lock_opens_again() {
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let (totp, _) = enrol(&people, &user, NOW).await;
    for number in 0_u8..10 {
        let from = IpAddr::from([10, number, 0, 1]);
        people.log_in(given("anna@example.com", PASSWORD, Some("000000"), from), later(60)).await.err().unwrap();
    }
    let right = totp_code_at(&totp, later(60));
    let refused = refusal(enter(&people, "anna@example.com", Some(&right), later(60)).await);
    assert!(matches!(refused, Refused::Slowed(_)), "{refused:?}");
    let right = totp_code_at(&totp, later(3700));
    assert!(enter(&people, "anna@example.com", Some(&right), later(3700)).await.is_ok());
}

#[tokio::test]
async fn an_admin_takes_a_second_factor_away_and_a_role_can_be_made_to_have_one() {
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::Developer(SHOP)).await;
    enrol(&people, &user, NOW).await;
    let peer = Actor::of("user x", Role::Developer(SHOP));
    assert!(people.reset_factors(&peer, user.id, NOW).await.is_err());
    let owner = Actor { proof: crate::access::Proof::At(NOW), ..Actor::of("user y", Role::TenantOwner(SHOP)) };
    let stale = people.reset_factors(&owner, user.id, later(700)).await.unwrap_err();
    assert!(matches!(stale, AdminError::Forbidden(ref refused) if refused.sight == Sight::ProofIsOld), "{stale:?}");
    people.reset_factors(&owner, user.id, NOW).await.unwrap();
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok());
    assert!(!people.must_enrol(&user));
    let policy = FactorPolicy { required_of: vec!["developer".to_owned()] };
    people.set_factor_policy(&owner, Some(SHOP), policy, NOW).await.unwrap();
    assert!(people.must_enrol(&people.user(user.id).unwrap()));
    let nonsense = FactorPolicy { required_of: vec!["king".to_owned()] };
    assert!(people.set_factor_policy(&owner, Some(SHOP), nonsense, NOW).await.is_err());
}

#[tokio::test]
async fn a_confirmation_makes_a_new_session_with_a_fresh_proof() {
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let old = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (actor, _, session) = people.session_actor(&old.secret, Some(HOME), later(700)).unwrap();
    assert!(actor.require_fresh(later(700)).is_err());
    assert!(people.confirm(&session, given("anna@example.com", "wrong", None, HOME), later(700)).await.is_err());
    let new = people.confirm(&session, given("", PASSWORD, None, HOME), later(700)).await.unwrap();
    assert!(people.session_actor(&old.secret, Some(HOME), later(700)).is_none(), "the old one is worth nothing");
    let (actor, _, _) = people.session_actor(&new.secret, Some(HOME), later(700)).unwrap();
    assert!(actor.require_fresh(later(700)).is_ok());
}

#[tokio::test]
async fn nobody_gives_more_than_he_has_or_locks_himself_out() {
    let (_, people) = people();
    let owner = person(&people, "owner@example.com", Role::TenantOwner(SHOP)).await;
    let own = Actor { from: Some(HOME), ..Actor::of(name_of(owner.id), owner.role) };
    let boss = Actor::of("user admin", Role::TenantAdmin(SHOP));
    let new = |role| NewUser { email: "x@example.com".into(), name: String::new(), role, accounts: None };
    assert!(people.invite(&boss, new(Role::TenantOwner(SHOP)), NOW).await.is_err());
    assert!(people.invite(&own, new(Role::InstanceAdmin), NOW).await.is_err());
    assert!(people.invite(&own, new(Role::Support(OTHER)), NOW).await.is_err());
    let up = UserChange { role: Some(Role::TenantOwner(SHOP)), ..UserChange::default() };
    assert!(
        people.change_user(&boss, owner.id, UserChange::default(), NOW).await.is_err(),
        "an admin does not touch owners"
    );
    assert!(people.change_user(&Actor::of("user z", Role::TenantOwner(OTHER)), owner.id, up, NOW).await.is_err());
    let narrow = |text: &str| UserChange { allowed_from: Some(vec![text.parse().unwrap()]), ..UserChange::default() };
    let refused = people.change_user(&own, owner.id, narrow("203.0.113.0/24"), NOW).await.unwrap_err();
    assert!(refused.to_string().contains("lock yourself out"), "{refused}");
    people.change_user(&own, owner.id, narrow("192.0.2.0/24"), NOW).await.unwrap();
    assert!(people.log_in(given("owner@example.com", PASSWORD, None, AWAY), NOW).await.is_err());
    assert!(enter(&people, "owner@example.com", None, NOW).await.is_ok());
    assert!(
        people
            .change_user(&own, owner.id, UserChange { locked: Some(true), ..UserChange::default() }, NOW)
            .await
            .is_err()
    );
    assert!(people.remove_user(&own, owner.id, NOW).await.is_err());
}

/// Whatever is done to a person between the check of its password and the turn stays done: `change`
/// takes the turn after the login has read the record, and before the login itself does.
async fn change_during_login(change: impl FnOnce(&mut User) + Send) -> (People, User, Result<LoggedIn, Refused>) {
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantAdmin(SHOP)).await;
    let held = people.desk.turn().await;
    let actor = admin();
    let altered = people.alter((&actor, NOW), user.id, "user.change", |user| {
        change(user);
        Ok(())
    });
    let (altered, entered, ()) = tokio::join!(altered, enter(&people, "anna@example.com", None, NOW), async {
        drop(held);
    });
    (people, altered.unwrap(), entered)
}

#[tokio::test]
async fn a_login_under_way_does_not_undo_a_lock_a_reset_or_a_list_of_networks() {
    let (people, locked, entered) = change_during_login(|user| user.state = UserState::Locked).await;
    assert!(matches!(refusal(entered), Refused::Wrong(_)), "a locked person and a wrong password look the same");
    assert_eq!(*people.user(locked.id).unwrap(), locked);
    let (people, reset, entered) = change_during_login(|user| user.password = Some("another".to_owned())).await;
    assert!(matches!(refusal(entered), Refused::Wrong(_)));
    assert_eq!(*people.user(reset.id).unwrap(), reset);
    let away = |user: &mut User| user.allowed_from = vec!["198.51.100.0/24".parse().unwrap()];
    let (people, bound, entered) = change_during_login(away).await;
    assert!(matches!(refusal(entered), Refused::Wrong(_)));
    assert_eq!(*people.user(bound.id).unwrap(), bound);
    assert!(people.sessions(&admin(), bound.id).unwrap().is_empty());
}

#[tokio::test]
async fn a_login_under_way_enters_with_the_role_it_has_by_then() {
    let (people, demoted, entered) = change_during_login(|user| user.role = Role::Support(SHOP)).await;
    let entered = entered.unwrap();
    assert_eq!(entered.user.role, Role::Support(SHOP));
    assert_eq!(people.user(demoted.id).unwrap().role, Role::Support(SHOP));
    assert_eq!(people.session_actor(&entered.secret, Some(HOME), NOW).unwrap().0.role, Role::Support(SHOP));
}

#[tokio::test]
async fn a_password_that_was_set_anew_during_a_login_is_the_only_one_afterwards() {
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let link = people.reset_link(&admin(), user.id, NOW).await.unwrap();
    let (redeemed, _) = tokio::join!(
        people.redeem(&link.token, secret("another horse entirely"), None, NOW),
        enter(&people, "anna@example.com", None, NOW)
    );
    redeemed.unwrap();
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_err(), "the old one is worth nothing");
    assert!(people.log_in(given("anna@example.com", "another horse entirely", None, HOME), NOW).await.is_ok());
}

#[tokio::test]
async fn a_confirmation_under_way_does_not_outlive_a_lock_a_reset_or_the_end_of_its_session() {
    type Change = fn(&mut User);
    let changes: [Change; 2] =
        [|user| user.state = UserState::Locked, |user| user.password = Some("another".to_owned())];
    for change in changes {
        let (_, people) = people();
        let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
        let old = enter(&people, "anna@example.com", None, NOW).await.unwrap();
        let (held, actor) = (people.desk.turn().await, admin());
        let altered = people.alter((&actor, NOW), user.id, "user.change", |user| {
            change(user);
            Ok(())
        });
        let confirmed = people.confirm(&old.session, given("", PASSWORD, None, HOME), NOW);
        let (altered, confirmed, ()) = tokio::join!(altered, confirmed, async { drop(held) });
        assert!(matches!(refusal(confirmed), Refused::Wrong(_)));
        assert_eq!(*people.user(user.id).unwrap(), altered.unwrap());
    }
    let (_, people) = people();
    let user = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let old = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (held, actor) = (people.desk.turn().await, admin());
    let ended = people.end_session(&actor, user.id, None, NOW);
    let confirmed = people.confirm(&old.session, given("", PASSWORD, None, HOME), NOW);
    let (ended, confirmed, ()) = tokio::join!(ended, confirmed, async { drop(held) });
    assert_eq!(ended.unwrap(), 1);
    assert!(matches!(refusal(confirmed), Refused::Wrong(_)));
    assert!(people.sessions(&admin(), user.id).unwrap().is_empty(), "an ended session does not come back");
}

#[tokio::test]
async fn the_same_address_in_two_tenants_is_two_people_and_neither_tenant_learns_of_the_other() {
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    person(&people, "anna@example.com", Role::Support(OTHER)).await;
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_err(), "which one is not said");
    let named = Credentials { tenant: Some(Some(OTHER)), ..given("anna@example.com", PASSWORD, None, HOME) };
    assert_eq!(people.log_in(named, NOW).await.unwrap().user.role, Role::Support(OTHER));
}

fn new_key(tenant: Option<TenantId>, scopes: &[&str]) -> NewKey {
    NewKey {
        tenant,
        name: "shop backend".to_owned(),
        scopes: scopes.iter().map(|scope| scope.parse().unwrap()).collect(),
        allowed_from: Vec::new(),
        domains: Vec::new(),
        expires: None,
    }
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_from_where_it_may_and_until_it_ends() {
    let (store, people) = people();
    let new = NewKey {
        allowed_from: vec!["192.0.2.0/24".parse().unwrap()],
        expires: Some(later(3600)),
        ..new_key(Some(SHOP), &["domains:read"])
    };
    let made = people.add_key(&admin(), (new, Some("shop")), NOW).await.unwrap();
    assert!(made.text.starts_with("pk_shop_") && made.text.rsplit('_').next().unwrap().len() * 5 >= 160);
    let actor = people.key_actor(&made.text, Some(HOME), NOW).unwrap();
    assert!(actor.require(Permission::Read(Resource::Domains, SHOP)).is_ok());
    assert!(actor.require(Permission::Write(Resource::Domains, SHOP)).is_err());
    assert!(actor.require(Permission::Read(Resource::Domains, OTHER)).is_err());
    assert!(people.key_actor(&made.text, Some(AWAY), NOW).is_none());
    assert!(people.key_actor(&made.text, Some(HOME), later(3600)).is_none());
    let mut wrong = made.text.to_string();
    wrong.pop();
    assert!(people.key_actor(&wrong, Some(HOME), NOW).is_none());
    assert_eq!(people.key_use(made.key.id).map(|used| used.at), Some(NOW));
    people.persist(NOW).await.unwrap();
    let reopened = over(&store);
    assert_eq!(reopened.key_use(made.key.id).map(|used| used.from), Some(Some(HOME)));
    let everything = store.range(&[0], &[255], usize::MAX).unwrap();
    assert!(
        !everything.iter().any(|(_, value)| value.windows(made.text.len()).any(|part| part == made.text.as_bytes()))
    );
}

#[tokio::test]
async fn a_rotated_key_has_two_good_texts_for_a_while() {
    let (_, people) = people();
    let made = people.add_key(&admin(), (new_key(Some(SHOP), &["queue:write"]), Some("shop")), NOW).await.unwrap();
    let hour = Duration::from_secs(3600);
    let rotated = people.rotate_key(&admin(), (made.key.id, Some("shop")), hour, NOW).await.unwrap();
    assert!(people.key_actor(&made.text, None, later(3599)).is_some());
    assert!(people.key_actor(&made.text, None, later(3600)).is_none());
    assert!(people.key_actor(&rotated.text, None, later(3600)).is_some());
    people.remove_key(&admin(), made.key.id, NOW).await.unwrap();
    assert!(people.key_actor(&rotated.text, None, NOW).is_none());
}

#[tokio::test]
async fn a_key_never_reaches_further_than_whoever_made_it() {
    let (_, people) = people();
    let developer = Actor::of("user d", Role::Developer(SHOP));
    assert!(people.add_key(&developer, (new_key(Some(SHOP), &["domains:write"]), None), NOW).await.is_ok());
    for (tenant, scope) in [
        (Some(SHOP), "users:write"),
        (Some(SHOP), "instance:read"),
        (Some(OTHER), "domains:read"),
        (None, "domains:read"),
    ] {
        assert!(people.add_key(&developer, (new_key(tenant, &[scope]), None), NOW).await.is_err(), "{scope}");
    }
    let small =
        people.add_key(&admin(), (new_key(Some(SHOP), &["keys:write", "queue:read"]), None), NOW).await.unwrap();
    let actor = people.key_actor(&small.text, None, NOW).unwrap();
    assert!(people.add_key(&actor, (new_key(Some(SHOP), &["queue:write"]), None), NOW).await.is_err());
    assert!(people.add_key(&actor, (new_key(Some(SHOP), &["queue:read"]), None), NOW).await.is_ok());
    let great = people.add_key(&admin(), (new_key(Some(SHOP), &["domains:write"]), None), NOW).await.unwrap();
    let stolen = people.rotate_key(&actor, (great.key.id, None), Duration::ZERO, NOW).await;
    assert!(stolen.is_err(), "rotating a greater key would hand it over");
    let narrowed =
        NewKey { domains: vec![Domain::parse("a.example").unwrap()], ..new_key(Some(SHOP), &["keys:write"]) };
    let narrowed = people.add_key(&admin(), (narrowed, None), NOW).await.unwrap();
    let actor = people.key_actor(&narrowed.text, None, NOW).unwrap();
    assert!(people.add_key(&actor, (new_key(Some(SHOP), &["keys:write"]), None), NOW).await.is_err(), "all domains");
}

async fn key_of(people: &People, new: NewKey) -> Actor {
    let made = people.add_key(&admin(), (new, None), NOW).await.unwrap();
    people.key_actor(&made.text, None, NOW).unwrap()
}

fn refused_as_more<T>(result: Result<T, AdminError>) {
    assert!(matches!(result.map(|_| ()), Err(AdminError::Forbidden(_))));
}

#[tokio::test]
async fn a_key_with_one_scope_makes_and_opens_nobody_who_may_do_more() {
    let (_, people) = people();
    let anna = person(&people, "anna@example.com", Role::TenantAdmin(SHOP)).await;
    enrol(&people, &anna, NOW).await;
    let key = key_of(&people, new_key(Some(SHOP), &["users:write"])).await;
    let new = |role| NewUser { email: "x@example.com".into(), name: String::new(), role, accounts: None };
    for role in [Role::TenantAdmin(SHOP), Role::Developer(SHOP), Role::Support(SHOP)] {
        refused_as_more(people.invite(&key, new(role), NOW).await);
    }
    refused_as_more(people.reset_link(&key, anna.id, NOW).await);
    refused_as_more(people.reset_factors(&key, anna.id, NOW).await);
    let up = UserChange { role: Some(Role::Developer(SHOP)), ..UserChange::default() };
    refused_as_more(people.change_user(&key, anna.id, up, NOW).await);
    let more = UserChange { accounts: Some(None), ..UserChange::default() };
    refused_as_more(people.change_user(&key, anna.id, more, NOW).await);
    let lock = UserChange { locked: Some(true), ..UserChange::default() };
    assert!(people.change_user(&key, anna.id, lock, NOW).await.is_ok(), "what gives nothing needs no more");
    let instance = key_of(&people, new_key(None, &["instance:write"])).await;
    refused_as_more(people.set_up_link(&instance, NOW).await);
    refused_as_more(people.add_key(&instance, (new_key(None, &["queue:write"]), None), NOW).await);
}

#[tokio::test]
async fn a_person_bound_to_some_smtp_accounts_does_not_get_to_the_others() {
    let (_, people) = people();
    let own = BTreeMap::from([(SmtpAccountId(1), Action::Write)]);
    let anna = person(&people, "anna@example.com", Role::TenantAdmin(SHOP)).await;
    let bert = person(&people, "bert@example.com", Role::TenantAdmin(SHOP)).await;
    enrol(&people, &bert, NOW).await;
    let bind = UserChange { accounts: Some(Some(own.clone())), ..UserChange::default() };
    people.change_user(&admin(), anna.id, bind, NOW).await.unwrap();
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (actor, _, _) = people.session_actor(&entered.secret, Some(HOME), NOW).unwrap();
    let wider = [None, Some(BTreeMap::from([(SmtpAccountId(2), Action::Write)]))];
    for accounts in wider {
        let change = UserChange { accounts: Some(accounts), ..UserChange::default() };
        refused_as_more(people.change_user(&actor, anna.id, change.clone(), NOW).await);
        refused_as_more(people.change_user(&actor, bert.id, change, NOW).await);
    }
    for accounts in [None, Some(own)] {
        let (email, role) = ("x@example.com".to_owned(), Role::TenantAdmin(SHOP));
        let new = NewUser { email, name: String::new(), role, accounts };
        refused_as_more(people.invite(&actor, new, NOW).await);
    }
    refused_as_more(people.reset_link(&actor, bert.id, NOW).await);
    refused_as_more(people.reset_factors(&actor, bert.id, NOW).await);
    let key = people.add_key(&admin(), (new_key(Some(SHOP), &["queue:read"]), None), NOW).await.unwrap().key;
    refused_as_more(people.rotate_key(&actor, (key.id, None), Duration::ZERO, NOW).await);
    let endless = KeyChange { expires: Some(None), ..KeyChange::default() };
    refused_as_more(people.change_key(&actor, key.id, endless, NOW).await);
}

#[tokio::test]
async fn a_key_bound_to_domains_gets_no_text_of_a_key_that_is_not() {
    let (_, people) = people();
    let bound = |domain: &str| NewKey {
        domains: vec![Domain::parse(domain).unwrap()],
        ..new_key(Some(SHOP), &["keys:write", "domains:write"])
    };
    let actor = key_of(&people, bound("a.example")).await;
    for (new, is_given) in [
        (new_key(Some(SHOP), &["domains:write"]), false),
        (bound("b.example"), false),
        (bound("a.example"), true),
        (bound("mail.a.example"), true),
    ] {
        let key = people.add_key(&admin(), (new, None), NOW).await.unwrap().key;
        let rotated = people.rotate_key(&actor, (key.id, None), Duration::ZERO, NOW).await;
        assert_eq!(rotated.is_ok(), is_given, "{:?}", key.domains);
    }
}

/// Whoever measures from outside must not learn which addresses exist. A gross difference fails, and one that is
/// larger than the spread of a wrong password's own times and than what a network hides, 200 us. A hundred tries of
/// each tell the medians apart to a fifth of that spread; at 14 ms for a hash of 19 MiB more would cost too long.
#[tokio::test]
async fn an_unknown_address_takes_about_as_long_as_a_wrong_password() {
    const TRIES: u8 = 100;
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let mut times: [Vec<u128>; 2] = [Vec::new(), Vec::new()];
    for round in 0..TRIES {
        for (at, email) in ["anna@example.com", "nobody@example.com"].into_iter().enumerate() {
            let began = std::time::Instant::now();
            let given = given(email, "a wrong password", None, IpAddr::from([10, round, 0, 1]));
            let refused = refusal(people.log_in(given, NOW).await);
            times[at].push(began.elapsed().as_micros());
            assert!(matches!(refused, Refused::Wrong(_)), "{refused:?}");
        }
    }
    for list in &mut times {
        list.sort_unstable();
    }
    let part = |at: usize, quarters: usize| times[at][usize::from(TRIES) * quarters / 4];
    let (known, unknown, spread) = (part(0, 2), part(1, 2), part(0, 3) - part(0, 1));
    println!("median of a wrong password {known} us (half within {spread}), of an unknown address {unknown} us");
    assert!(known < 3 * unknown && unknown < 3 * known, "{known} us and {unknown} us");
    assert!(known.abs_diff(unknown) <= spread.max(200), "{known} us and {unknown} us, half within {spread} us");
}
