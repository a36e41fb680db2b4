//! What asks for a fresh proof, how often one may be tried, and who may open the way to somebody else.

use futures_util::future::join_all;

use super::*;
use crate::people::login::WRONG_CONFIRMATIONS_MAX;
use crate::records::{Audit, Numbered};

/// What a session may do at that moment.
fn actor_of(people: &People, entered: &LoggedIn, now: Timestamp) -> (Actor, Session) {
    let (actor, _, session) = people.session_actor(&entered.secret, Some(HOME), now).unwrap();
    (actor, session)
}

fn asks_for_a_proof<T>(result: Result<T, AdminError>) {
    let refused = result.map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, AdminError::Forbidden(forbidden) if forbidden.sight == Sight::ProofIsOld),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_session_that_was_left_open_sets_up_no_factor_to_confirm_itself_with() {
    let (_, people) = people();
    let anna = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (stale, session) = actor_of(&people, &entered, later(3 * 3600));
    asks_for_a_proof(people.offer_totp(&stale, anna.id, "mx", later(3 * 3600)).await);
    assert!(people.user(anna.id).unwrap().totp.is_none());
    // Offered while the proof was fresh, and left lying: the first code asks again.
    let (fresh, _) = actor_of(&people, &entered, later(60));
    people.offer_totp(&fresh, anna.id, "mx", later(60)).await.unwrap();
    let sealed = people.user(anna.id).unwrap().totp.clone().unwrap().sealed;
    let secret = people.key.open(&format!("totp {}", anna.id), &sealed).unwrap().to_vec();
    let code = totp_code_at(&secret, later(700));
    asks_for_a_proof(people.prove_totp(&stale, (anna.id, Some(session.digest)), &code, later(700)).await);
    // Such a factor confirms nothing either: the password is still what is asked for.
    let with_code = people.confirm(&session, given("", "", Some(&code), HOME), later(700)).await;
    assert!(matches!(refusal(with_code), Refused::Wrong(_)));
    let confirmed = people.confirm(&session, given("", PASSWORD, None, HOME), later(700)).await.unwrap();
    let (proved, session) = actor_of(&people, &confirmed, later(701));
    people.prove_totp(&proved, (anna.id, Some(session.digest)), &code, later(701)).await.unwrap();
    asks_for_a_proof(people.new_recovery_codes(&stale, (anna.id, session.digest), later(1400)).await);
    asks_for_a_proof(people.remove_totp(&stale, (anna.id, session.digest), later(1400)).await);
}

#[tokio::test]
async fn whoever_must_have_a_factor_sets_it_up_right_after_the_login() {
    let (_, people) = people();
    let anna = person(&people, "anna@example.com", Role::Developer(SHOP)).await;
    let policy = FactorPolicy { required_of: vec!["developer".to_owned()] };
    people.set_factor_policy(&admin(), Some(SHOP), policy, NOW).await.unwrap();
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    assert!(people.must_enrol(&entered.user));
    let (actor, session) = actor_of(&people, &entered, later(300));
    people.offer_totp(&actor, anna.id, "mx", later(300)).await.unwrap();
    let sealed = people.user(anna.id).unwrap().totp.clone().unwrap().sealed;
    let secret = people.key.open(&format!("totp {}", anna.id), &sealed).unwrap().to_vec();
    let code = totp_code_at(&secret, later(301));
    people.prove_totp(&actor, (anna.id, Some(session.digest)), &code, later(301)).await.unwrap();
    assert!(!people.must_enrol(&people.user(anna.id).unwrap()));
}

#[tokio::test]
async fn a_session_ends_after_a_few_wrong_confirmations_however_many_come_at_once() {
    let (store, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (_, session) = actor_of(&people, &entered, NOW);
    for _ in 1..WRONG_CONFIRMATIONS_MAX {
        assert!(people.confirm(&session, given("", "wrong", None, HOME), NOW).await.is_err());
        assert!(people.session_actor(&entered.secret, Some(HOME), NOW).is_some());
    }
    assert!(people.confirm(&session, given("", "wrong", None, HOME), NOW).await.is_err());
    assert!(people.session_actor(&entered.secret, Some(HOME), NOW).is_none(), "one too many");
    assert!(people.confirm(&session, given("", PASSWORD, None, HOME), NOW).await.is_err(), "even the right one");
    let told = Audit::open(store.clone()).list(&admin(), Some(SHOP), None, 10).unwrap();
    let ends = |entry: &Numbered| entry.entry.act == crate::events::SESSION_UNPROVED_ACT;
    assert!(told.iter().any(ends), "{told:?}");

    let entered = enter(&people, "anna@example.com", None, later(60)).await.unwrap();
    let (_, session) = actor_of(&people, &entered, later(60));
    let tries = (0..40).map(|number| {
        let password = if number == 39 { PASSWORD } else { "wrong" };
        people.confirm(&session, given("", password, None, HOME), later(60))
    });
    let answers = join_all(tries).await;
    assert!(answers.iter().all(Result::is_err), "the right one came after the last that was looked at");
    assert!(people.session_actor(&entered.secret, Some(HOME), later(60)).is_none());
}

#[tokio::test]
async fn guesses_at_the_same_moment_do_not_escape_the_delay_in_whatever_spelling() {
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    for (known, from) in [(false, AWAY), (true, HOME)] {
        if known {
            people.log_in(given("anna@example.com", PASSWORD, None, from), NOW).await.unwrap();
        }
        for email in ["anna@example.com", "nobody@example.com"] {
            let spelled = |number: usize| {
                let quoted = format!("\"{}\"@EXAMPLE.com", email.split('@').next().unwrap());
                [email.to_owned(), email.to_uppercase(), quoted][number % 3].clone()
            };
            let emails: Vec<String> = (0..40).map(spelled).collect();
            let tries = emails.iter().enumerate().map(|(number, email)| {
                let password = if number == 39 { PASSWORD } else { "wrong" };
                people.log_in(given(email, password, None, from), NOW)
            });
            let answers: Vec<Refused> = join_all(tries).await.into_iter().map(refusal).collect();
            let is_wrong = |answer: &&Refused| matches!(answer, Refused::Wrong(_));
            assert_eq!(answers.iter().filter(is_wrong).count(), 4, "{email} from {from}: {answers:?}");
            assert!(matches!(answers[39], Refused::Slowed(_)), "{:?}", answers[39]);
        }
    }
    let entered = people.log_in(given("anna@example.com", PASSWORD, None, AWAY), later(1)).await;
    assert!(entered.is_ok(), "half a second later the next one is looked at");
}

#[tokio::test]
async fn from_a_slowed_network_every_wrong_login_looks_the_same_and_a_known_person_gets_in() {
    let (_, people) = people();
    person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    person(&people, "bert@example.com", Role::TenantOwner(SHOP)).await;
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok());
    for number in 0..200 {
        people.log_in(given(&format!("x{number}@example.com"), "w", None, HOME), NOW).await.err();
    }
    let asked = |email, password| people.log_in(given(email, password, None, HOME), NOW);
    let known = refusal(asked("anna@example.com", "wrong").await);
    assert!(matches!(known, Refused::Slowed(_)), "{known:?}");
    assert_eq!(refusal(asked("bert@example.com", "wrong").await), known, "nobody learns who was here");
    assert_eq!(refusal(asked("nobody@example.com", "wrong").await), known);
    assert_eq!(refusal(asked("bert@example.com", PASSWORD).await), known, "she never was here");
    assert!(asked("anna@example.com", PASSWORD).await.is_ok());
    for number in 0..200 {
        people.log_in(given(&format!("x{number}@example.com"), "w", None, AWAY), NOW).await.err();
    }
    let stranger = people.log_in(given("anna@example.com", PASSWORD, None, AWAY), NOW).await;
    assert_eq!(refusal(stranger), known, "a network nobody ever logged in from");
}

#[tokio::test]
async fn who_lets_somebody_in_again_or_from_elsewhere_could_give_him_his_role() {
    let (_, people) = people();
    let anna = person(&people, "anna@example.com", Role::TenantAdmin(SHOP)).await;
    let owner = Actor::of("user o", Role::TenantOwner(SHOP));
    let key = key_of(&people, new_key(Some(SHOP), &["users:write"])).await;
    let locked = |locked| UserChange { locked: Some(locked), ..UserChange::default() };
    let from = |networks: &[&str]| {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        UserChange { allowed_from: Some(networks), ..UserChange::default() }
    };
    people.change_user(&owner, anna.id, from(&["192.0.2.0/24"]), NOW).await.unwrap();
    refused_as_more(people.change_user(&key, anna.id, from(&[]), NOW).await);
    refused_as_more(people.change_user(&key, anna.id, from(&["0.0.0.0/0"]), NOW).await);
    people.change_user(&owner, anna.id, locked(true), NOW).await.unwrap();
    refused_as_more(people.change_user(&key, anna.id, locked(false), NOW).await);
    let stands = people.user(anna.id).unwrap();
    assert_eq!((stands.state, stands.allowed_from.len()), (UserState::Locked, 1));
    people.change_user(&owner, anna.id, locked(false), NOW).await.unwrap();
    people.change_user(&key, anna.id, locked(true), NOW).await.unwrap();
    people.change_user(&owner, anna.id, locked(false), NOW).await.unwrap();
    // Whoever is bound to some SMTP accounts still narrows where he himself comes from.
    let own = BTreeMap::from([(SmtpAccountId(1), Action::Write)]);
    let bind = UserChange { accounts: Some(Some(own)), ..UserChange::default() };
    people.change_user(&owner, anna.id, bind, NOW).await.unwrap();
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (actor, _) = actor_of(&people, &entered, NOW);
    people.change_user(&actor, anna.id, from(&["192.0.2.7/32"]), NOW).await.unwrap();
}

#[tokio::test]
async fn nobody_takes_the_duty_of_a_second_factor_off_whom_he_does_not_outrank() {
    let (_, people) = people();
    let (owner, boss) = (Actor::of("user o", Role::TenantOwner(SHOP)), Actor::of("user a", Role::TenantAdmin(SHOP)));
    let key = key_of(&people, new_key(Some(SHOP), &["users:write"])).await;
    let policy = |roles: &[&str]| FactorPolicy { required_of: roles.iter().map(|role| (*role).to_owned()).collect() };
    let set = |actor, roles| {
        let people = &people;
        async move { people.set_factor_policy(actor, Some(SHOP), policy(roles), NOW).await }
    };
    set(&owner, &["owner", "admin"]).await.unwrap();
    refused_as_more(set(&boss, &["admin"]).await);
    refused_as_more(set(&key, &["owner"]).await);
    set(&boss, &["owner", "admin", "developer"]).await.unwrap();
    set(&boss, &["owner", "developer"]).await.unwrap();
    set(&key, &["owner", "developer", "support"]).await.unwrap();
    assert_eq!(people.policy(Some(SHOP)), policy(&["owner", "developer", "support"]));
    set(&owner, &[]).await.unwrap();
    refused_as_more(set(&boss, &["owner"]).await);
}

fn acts(store: &Arc<MemoryStore>) -> Vec<String> {
    let told = Audit::open(store.clone()).list(&admin(), Some(SHOP), None, 100).unwrap();
    told.into_iter().map(|numbered| numbered.entry.act).collect()
}

#[tokio::test]
async fn whoever_uses_a_link_for_a_new_password_makes_all_others_worth_nothing() {
    let (_, people) = people();
    let anna = person(&people, "anna@example.com", Role::Support(SHOP)).await;
    let stolen = people.reset_link(&admin(), anna.id, NOW).await.unwrap();
    let (_, mailed) = people.forgotten(("anna@example.com", None), HOME, NOW).await.unwrap().unwrap();
    people.redeem(&mailed.token, secret("another horse entirely"), None, NOW).await.unwrap();
    assert!(people.redeem(&stolen.token, secret(PASSWORD), None, NOW).await.is_err());
    people.log_in(given("anna@example.com", "another horse entirely", None, HOME), later(1)).await.unwrap();
}

#[tokio::test]
async fn a_person_chooses_a_new_password_and_the_other_sessions_and_links_end() {
    let (store, people) = people();
    let anna = person(&people, "anna@example.com", Role::Support(SHOP)).await;
    let link = people.reset_link(&admin(), anna.id, NOW).await.unwrap();
    let other = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let entered = enter(&people, "anna@example.com", None, NOW).await.unwrap();
    let (actor, session) = actor_of(&people, &entered, NOW);
    let whose = (anna.id, Some(session.digest));
    let new = || secret("another horse entirely");
    let (stale, _) = actor_of(&people, &entered, later(700));
    asks_for_a_proof(people.change_password(&stale, whose, new(), later(700)).await);
    let weak = people.change_password(&actor, whose, secret("password1234"), NOW).await;
    assert!(matches!(weak, Err(AdminError::Invalid(_) | AdminError::Fields(_))));
    for somebody in [admin(), Actor::of("user o", Role::TenantOwner(SHOP)), Actor::of("key k", anna.role)] {
        assert!(people.change_password(&somebody, whose, new(), NOW).await.is_err(), "{somebody:?}");
    }
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok(), "nothing was changed yet");
    people.change_password(&actor, whose, new(), NOW).await.unwrap();
    assert!(people.session_actor(&other.secret, Some(HOME), NOW).is_none());
    assert!(people.session_actor(&entered.secret, Some(HOME), NOW).is_some(), "the one it was changed in stays");
    assert!(people.redeem(&link.token, secret(PASSWORD), None, NOW).await.is_err(), "a link made before is no good");
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_err());
    people.log_in(given("anna@example.com", "another horse entirely", None, HOME), later(1)).await.unwrap();
    assert_eq!(acts(&store).iter().filter(|act| *act == "user.password").count(), 1);
}

#[tokio::test]
async fn a_recovery_code_that_is_used_is_written_down_and_a_code_of_the_device_is_not() {
    let (store, people) = people();
    let anna = person(&people, "anna@example.com", Role::TenantOwner(SHOP)).await;
    let (totp, recovery) = enrol(&people, &anna, NOW).await;
    let code = totp_code_at(&totp, later(60));
    let entered = enter(&people, "anna@example.com", Some(&code), later(60)).await.unwrap();
    let used = |store| acts(store).iter().filter(|act| *act == crate::events::RECOVERY_USED_ACT).count();
    assert_eq!(used(&store), 0);
    enter(&people, "anna@example.com", Some(&recovery[0]), later(61)).await.unwrap();
    assert_eq!(used(&store), 1);
    let (_, session) = actor_of(&people, &entered, later(61));
    people.confirm(&session, given("", "", Some(&recovery[1]), HOME), later(61)).await.unwrap();
    assert_eq!(used(&store), 2);
}

#[tokio::test]
async fn who_forgot_the_password_gets_a_link_once_in_a_while_and_nobody_else_learns_whether() {
    let (store, people) = people();
    let anna = person(&people, "anna@example.com", Role::Developer(SHOP)).await;
    let locked = person(&people, "locked@example.com", Role::Developer(SHOP)).await;
    let change = UserChange { locked: Some(true), ..UserChange::default() };
    people.change_user(&admin(), locked.id, change, NOW).await.unwrap();
    let bound = person(&people, "bound@example.com", Role::Developer(SHOP)).await;
    let change = UserChange { allowed_from: Some(vec!["198.51.100.0/24".parse().unwrap()]), ..UserChange::default() };
    people.change_user(&admin(), bound.id, change, NOW).await.unwrap();
    let new = NewUser {
        email: "invited@example.com".to_owned(),
        name: String::new(),
        role: Role::Developer(SHOP),
        accounts: None,
    };
    people.invite(&admin(), new, NOW).await.unwrap();
    let link = people.set_up_link(&admin(), NOW).await.unwrap().unwrap();
    people.redeem(&link.token, secret(PASSWORD), Some("root@example.com"), NOW).await.unwrap();
    let before = acts(&store).len();
    for email in ["nobody@example.com", "locked@example.com", "bound@example.com", "invited@example.com"] {
        assert!(people.forgotten((email, None), HOME, NOW).await.unwrap().is_none(), "{email}");
    }
    assert!(people.forgotten(("root@example.com", None), HOME, NOW).await.unwrap().is_none(), "by no mailbox");
    assert!(people.forgotten(("anna@example.com", Some(Some(OTHER))), HOME, NOW).await.unwrap().is_none());
    assert_eq!(acts(&store).len(), before);
    let (first, second) = tokio::join!(
        people.forgotten(("Anna@example.com", None), HOME, NOW),
        people.forgotten(("anna@example.com", None), AWAY, NOW)
    );
    let links: Vec<_> = [first, second].into_iter().filter_map(|made| made.unwrap()).collect();
    assert_eq!(links.len(), 1, "one within a quarter of an hour, from wherever");
    assert_eq!(links[0].0.id, anna.id);
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_ok(), "the old one is good until then");
    people.redeem(&links[0].1.token, secret("another horse entirely"), None, NOW).await.unwrap();
    assert!(enter(&people, "anna@example.com", None, NOW).await.is_err());
    let again = NOW.plus(LINK_MAILED_EVERY);
    assert!(people.forgotten(("anna@example.com", None), HOME, again).await.unwrap().is_some());
    let booked = (0..200).filter(|_| people.book_forgotten(AWAY, NOW).is_ok()).count();
    assert_eq!(booked, 100, "as many as logins may fail");
    assert!(people.book_forgotten(IpAddr::from([203, 0, 113, 1]), NOW).is_ok());
}
