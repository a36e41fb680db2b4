//! Passkeys: set up, asked for, proved; and everything a stranger could send instead.

use serde_json::Value;

use super::*;
use crate::accounts::Network;
use crate::people::authenticator::{Authenticator, ORIGIN, tampered};
use crate::people::ceremonies::{self, Occasion, Refusal};
use crate::records::Audit;

const ANNA: &str = "anna@example.com";

/// A network nobody has logged in from.
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

fn people_at(origin: &str) -> (Arc<MemoryStore>, People) {
    let (store, people) = people();
    (store, people.reached_at(Some(Site::parse(origin).unwrap())))
}

fn octets(answer: &Value) -> Vec<u8> {
    answer.to_string().into_bytes()
}

/// Somebody, logged in.
struct Person {
    user: User,
    actor: Actor,
    session: Session,
}

impl Person {
    async fn of(people: &People, email: &str) -> Self {
        let user = person(people, email, Role::TenantOwner(SHOP)).await;
        let entered = enter(people, email, None, NOW).await.unwrap();
        let (actor, _, session) = people.session_actor(&entered.secret, Some(HOME), NOW).unwrap();
        Self { user, actor, session }
    }

    fn entered(people: &People, entered: &LoggedIn) -> Self {
        let (actor, user, session) = people.session_actor(&entered.secret, Some(HOME), NOW).unwrap();
        Self { user, actor, session }
    }

    fn place(&self) -> (UserId, [u8; 32]) {
        (self.user.id, self.session.digest)
    }

    fn offer(&self, people: &People, now: Timestamp) -> Value {
        people.offer_passkey(&self.actor, self.place(), now).unwrap()
    }

    async fn add(&self, people: &People, answer: &Value) -> Result<(Passkey, Vec<Zeroizing<String>>), AdminError> {
        people.add_passkey(&self.actor, self.place(), ("key", &octets(answer)), NOW).await
    }

    /// With a passkey on a new device.
    async fn enrolled(&self, people: &People) -> (Authenticator, Passkey, Vec<Zeroizing<String>>) {
        let mut device = Authenticator::new();
        let answer = device.make(&self.offer(people, NOW));
        let (passkey, codes) = self.add(people, &answer).await.unwrap();
        (device, passkey, codes)
    }
}

/// What a login asks a browser for.
async fn asked(people: &People, email: &str, now: Timestamp) -> Value {
    let Refused::NeedsFactor(Some(options)) = refusal(enter(people, email, None, now).await) else {
        panic!("a passkey should be asked for")
    };
    options
}

async fn enter_with(people: &People, email: &str, answer: &Value, now: Timestamp) -> Result<LoggedIn, Refused> {
    let answer = octets(answer);
    let given = Credentials { passkey: Some(&answer), ..given(email, PASSWORD, None, HOME) };
    people.log_in(given, now).await
}

fn is_wrong<T>(result: Result<T, Refused>) {
    let refused = refusal(result);
    assert!(matches!(refused, Refused::Wrong(_)), "{refused:?}");
}

#[tokio::test]
async fn a_passkey_is_set_up_asked_for_and_lets_in_and_its_counter_moves_on() {
    let (store, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let other = enter(&people, ANNA, None, NOW).await.unwrap();
    let offer = anna.offer(&people, NOW);
    assert_eq!(offer["rp"]["id"], "mx.example.com");
    assert_eq!((&offer["user"]["name"], &offer["user"]["displayName"]), (&ANNA.into(), &"N".into()));
    assert_eq!(offer["authenticatorSelection"]["userVerification"], "preferred");
    assert_eq!(offer["attestation"], "none");
    let mut device = Authenticator::new();
    let (passkey, codes) = anna.add(&people, &device.make(&offer)).await.unwrap();
    assert_eq!((passkey.name.as_str(), codes.len(), passkey.last_used), ("key", RECOVERY_CODES, None));
    assert!(people.session_actor(&other.secret, Some(HOME), NOW).is_none(), "the other sessions end");
    assert_eq!(people.sessions(&anna.actor, anna.user.id).unwrap().len(), 1, "and one's own stays");
    let options = asked(&people, ANNA, NOW).await;
    assert_eq!((&options["rpId"], &options["userVerification"]), (&"mx.example.com".into(), &"preferred".into()));
    let allowed = options["allowCredentials"].as_array().unwrap();
    assert_eq!(allowed.len(), 1);
    assert_eq!(allowed[0]["transports"], serde_json::json!(["nfc", "usb"]));
    assert!(enter_with(&people, ANNA, &device.prove(&options), later(9)).await.is_ok());
    let known = &people.passkeys(&anna.actor, anna.user.id).unwrap()[0];
    assert_eq!((known.last_used, known.copied), (Some(later(9)), None));
    assert_ne!(known.state, passkey.state, "the counter");
    let reopened = over(&store).reached_at(Some(Site::parse(ORIGIN).unwrap()));
    let again = device.prove(&asked(&reopened, ANNA, later(10)).await);
    assert!(enter_with(&reopened, ANNA, &again, later(10)).await.is_ok(), "it survives a restart");
}

#[tokio::test]
async fn a_challenge_is_good_once_for_its_time_its_person_and_its_occasion() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let eve = Person::of(&people, "eve@example.com").await;
    let (mut device, ..) = anna.enrolled(&people).await;
    let (mut of_eve, ..) = eve.enrolled(&people).await;
    let answer = device.prove(&asked(&people, ANNA, NOW).await);
    assert!(enter_with(&people, ANNA, &answer, NOW).await.is_ok());
    is_wrong(enter_with(&people, ANNA, &answer, NOW).await);
    // A wrong answer spends it, too.
    let options = asked(&people, ANNA, NOW).await;
    let right = device.prove(&options);
    is_wrong(enter_with(&people, ANNA, &tampered(&right, "signature", |octets| octets[8] ^= 1), NOW).await);
    is_wrong(enter_with(&people, ANNA, &right, NOW).await);
    // It ends by itself; and one from a clock that was ahead is no better.
    for late in [NOW.plus(CHALLENGE_LASTS), later(86_400)] {
        let answer = device.prove(&asked(&people, ANNA, NOW).await);
        is_wrong(enter_with(&people, ANNA, &answer, late).await);
    }
    let ahead = device.prove(&asked(&people, ANNA, later(86_400)).await);
    is_wrong(enter_with(&people, ANNA, &ahead, later(86_400 - 301)).await);
    // Another person's challenge, whoever's passkey answers it.
    let of_anna = asked(&people, ANNA, NOW).await;
    is_wrong(enter_with(&people, "eve@example.com", &of_eve.prove(&of_anna), NOW).await);
    let of_anna = asked(&people, ANNA, NOW).await;
    is_wrong(enter_with(&people, "eve@example.com", &device.prove(&of_anna), NOW).await);
    // One of a confirmation logs nobody in, and the other way round.
    let confirm = people.confirm(&anna.session, given("", "", None, HOME), NOW).await;
    let Refused::NeedsFactor(Some(options)) = refusal(confirm) else { panic!() };
    is_wrong(enter_with(&people, ANNA, &device.prove(&options), NOW).await);
    let answer = octets(&device.prove(&asked(&people, ANNA, NOW).await));
    let swapped = Credentials { passkey: Some(&answer), ..given("", "", None, HOME) };
    is_wrong(people.confirm(&anna.session, swapped, NOW).await);
    let made_up =
        Authenticator::new().prove(&serde_json::json!({"rpId": "mx.example.com", "challenge": "A".repeat(22)}));
    is_wrong(enter_with(&people, ANNA, &made_up, NOW).await);
}

#[tokio::test]
async fn a_confirmation_takes_a_passkey_of_that_session_only() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    let second = enter_with(&people, ANNA, &device.prove(&asked(&people, ANNA, NOW).await), NOW).await.unwrap();
    let ask = async |session: &Session| {
        let confirm = people.confirm(session, given("", "", None, HOME), later(700)).await;
        let Refused::NeedsFactor(Some(options)) = refusal(confirm) else { panic!() };
        options
    };
    let answer = octets(&device.prove(&ask(&anna.session).await));
    let with = Credentials { passkey: Some(&answer), ..given("", "", None, HOME) };
    is_wrong(people.confirm(&second.session, with, later(700)).await);
    is_wrong(people.confirm(&anna.session, with, later(700)).await);
    let answer = octets(&device.prove(&ask(&anna.session).await));
    let with = Credentials { passkey: Some(&answer), ..given("", "", None, HOME) };
    let confirmed = people.confirm(&anna.session, with, later(700)).await.unwrap();
    let (actor, ..) = people.session_actor(&confirmed.secret, Some(HOME), later(700)).unwrap();
    assert!(actor.require_fresh(later(700)).is_ok());
    let password_alone = people.confirm(&confirmed.session, given("", PASSWORD, None, HOME), later(701)).await;
    assert!(matches!(refusal(password_alone), Refused::NeedsFactor(Some(_))));
}

#[tokio::test]
async fn what_is_signed_for_another_page_host_or_purpose_is_refused() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    type Lie = (&'static str, fn(&mut Authenticator));
    let lies: &[Lie] = &[
        ("another site", |device| device.origin = "https://evil.example".to_owned()),
        ("without TLS", |device| device.origin = "http://mx.example.com".to_owned()),
        ("another port", |device| device.origin = "https://mx.example.com:8443".to_owned()),
        ("a host below", |device| device.origin = "https://www.mx.example.com".to_owned()),
        ("a longer host", |device| device.origin = "https://mx.example.com.evil.example".to_owned()),
        ("another host is signed for", |device| device.host = Some("evil.example".to_owned())),
        ("the host above is signed for", |device| device.host = Some("example.com".to_owned())),
        ("the other ceremony", |device| {
            device.kind = Some(if device.counter == 0 { "webauthn.get" } else { "webauthn.create" });
        }),
        ("nobody touched it", |device| device.is_touched = false),
    ];
    for (what, lie) in lies {
        let mut liar = Authenticator::new();
        lie(&mut liar);
        let made = liar.make(&anna.offer(&people, NOW));
        let refused = anna.add(&people, &made).await;
        assert!(matches!(refused, Err(AdminError::Fields(_))), "{what}: {refused:?}");
        lie(&mut device);
        let proved = device.prove(&asked(&people, ANNA, NOW).await);
        is_wrong(enter_with(&people, ANNA, &proved, NOW).await);
        let honest = Authenticator::new();
        (device.origin, device.host, device.kind, device.is_touched) = (honest.origin, None, None, true);
        let proved = device.prove(&asked(&people, ANNA, NOW).await);
        assert!(enter_with(&people, ANNA, &proved, NOW).await.is_ok(), "{what}");
    }
    assert_eq!(people.passkeys(&anna.actor, anna.user.id).unwrap().len(), 1);
}

#[tokio::test]
async fn no_octet_of_an_answer_can_be_changed() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    let (site, waiting) = (people.site.as_ref().unwrap(), &people.memory.ceremonies);
    let mut user = User::clone(&people.user(anna.user.id).unwrap());
    let mut prove = |change: &mut dyn FnMut(&Value) -> Value| {
        let asked = records::lock(waiting).ask(site, &user, Occasion::Login(Network::of(HOME)), NOW).unwrap();
        let answer = octets(&change(&device.prove(&asked)));
        ceremonies::prove(waiting, site, (&mut user, Occasion::Login(Network::of(ELSEWHERE))), &answer, NOW)
    };
    assert_eq!(prove(&mut Value::clone), Ok(()));
    let mut count = 0;
    for field in ["signature", "authenticatorData", "clientDataJSON"] {
        for at in 0.. {
            let mut is_there = false;
            let proved = prove(&mut |proved| {
                tampered(proved, field, |octets| {
                    if let Some(octet) = octets.get_mut(at) {
                        (*octet, is_there) = (*octet ^ 0x20, true);
                    }
                })
            });
            if !is_there {
                break;
            }
            assert!(matches!(proved, Err(Refusal::Wrong(_))), "{field}[{at}]: {proved:?}");
            count += 1;
        }
    }
    assert!(count > 200, "{count}");
    for cut in [0, 1, 36, 37, 60] {
        let made = Authenticator::new().make(&anna.offer(&people, NOW));
        for field in ["attestationObject", "clientDataJSON"] {
            assert!(anna.add(&people, &tampered(&made, field, |octets| octets.truncate(cut))).await.is_err());
        }
    }
    for nonsense in [Value::Null, serde_json::json!({}), serde_json::json!({"response": {"clientDataJSON": "e30"}})] {
        assert!(anna.add(&people, &nonsense).await.is_err());
        is_wrong(enter_with(&people, ANNA, &nonsense, NOW).await);
    }
    let long = serde_json::json!({"response": {"clientDataJSON": "A".repeat(70_000)}});
    assert!(anna.add(&people, &long).await.unwrap_err().to_string().contains("too long"));
}

#[tokio::test]
async fn a_passkey_that_counts_backwards_is_refused_and_its_owner_is_told() {
    let (store, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    device.counter = 40;
    assert!(enter_with(&people, ANNA, &device.prove(&asked(&people, ANNA, NOW).await), NOW).await.is_ok());
    for counted in [10, 40] {
        device.counter = counted;
        is_wrong(enter_with(&people, ANNA, &device.prove(&asked(&people, ANNA, NOW).await), later(1)).await);
        device.counter = counted;
    }
    let known = &people.passkeys(&anna.actor, anna.user.id).unwrap()[0];
    assert_eq!((known.copied, known.last_used), (Some(later(1)), Some(NOW)));
    let told = Audit::open(store.clone()).list(&admin(), Some(SHOP), None, 10).unwrap();
    let entry = told.iter().find(|entry| entry.entry.act == crate::events::PASSKEY_COPIED_ACT).unwrap();
    assert_eq!(entry.entry.subject, format!("user {}", anna.user.id));
    device.counter = 41;
    let proved = device.prove(&asked(&people, ANNA, NOW).await);
    assert!(enter_with(&people, ANNA, &proved, NOW).await.is_ok(), "the device itself still lets in");
    // One that never counts is no copy.
    let bert = Person::of(&people, "bert@example.com").await;
    let mut silent = Authenticator::new();
    silent.counts = false;
    bert.add(&people, &silent.make(&bert.offer(&people, NOW))).await.unwrap();
    for _ in 0..2 {
        let proved = silent.prove(&asked(&people, "bert@example.com", NOW).await);
        assert!(enter_with(&people, "bert@example.com", &proved, NOW).await.is_ok());
    }
}

#[tokio::test]
async fn a_passkey_is_one_factor_of_several_and_codes_come_with_the_first_and_go_with_the_last() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, passkey, codes) = anna.enrolled(&people).await;
    assert_eq!(codes.len(), RECOVERY_CODES);
    let (totp, more) = enrol(&people, &anna.user, NOW).await;
    assert!(more.is_empty(), "those that are there stay");
    let anna = Person::entered(&people, &enter(&people, ANNA, Some(&codes[0]), NOW).await.unwrap());
    let code = totp_code_at(&totp, later(60));
    assert!(enter(&people, ANNA, Some(&code), later(60)).await.is_ok());
    assert!(enter_with(&people, ANNA, &device.prove(&asked(&people, ANNA, NOW).await), NOW).await.is_ok());
    let (second, passkey2, none) = anna.enrolled(&people).await;
    assert!(none.is_empty() && second.credential != device.credential && passkey2.id() != passkey.id());
    people.remove_totp(&anna.actor, anna.place(), NOW).await.unwrap();
    let ended = people.remove_passkey(&anna.actor, anna.place(), &passkey.id(), NOW).await;
    assert!(matches!(ended, Err(AdminError::Missing(_))), "its sessions ended");
    let ended = people.new_recovery_codes(&anna.actor, anna.place(), NOW).await;
    assert!(matches!(ended, Err(AdminError::Missing(_))), "and codes are made in none that has ended");
    let answer = device.prove(&asked(&people, ANNA, NOW).await);
    let anna = Person::entered(&people, &enter_with(&people, ANNA, &answer, NOW).await.unwrap());
    assert_eq!(people.user(anna.user.id).unwrap().recovery.len(), RECOVERY_CODES - 1);
    let options = asked(&people, ANNA, NOW).await;
    assert_eq!(options["allowCredentials"].as_array().unwrap().len(), 2);
    people.remove_passkey(&anna.actor, anna.place(), &passkey.id(), NOW).await.unwrap();
    is_wrong(enter_with(&people, ANNA, &device.prove(&options), NOW).await);
    let again = people.remove_passkey(&anna.actor, anna.place(), &passkey.id(), NOW).await;
    assert!(matches!(again, Err(AdminError::Missing(_))));
    assert!(matches!(refusal(enter(&people, ANNA, None, NOW).await), Refused::NeedsFactor(Some(_))));
    people.remove_passkey(&anna.actor, anna.place(), &passkey2.id(), NOW).await.unwrap();
    assert!(people.user(anna.user.id).unwrap().recovery.is_empty());
    assert!(enter(&people, ANNA, None, NOW).await.is_ok(), "the password alone lets in again");
}

#[tokio::test]
async fn a_code_of_a_device_that_is_still_being_set_up_proves_nothing_beside_a_passkey() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (.., codes) = anna.enrolled(&people).await;
    people.offer_totp(&anna.actor, anna.user.id, "mx", NOW).await.unwrap();
    let sealed = people.user(anna.user.id).unwrap().totp.clone().unwrap().sealed;
    let secret = people.key.open(&format!("totp {}", anna.user.id), &sealed).unwrap().to_vec();
    is_wrong(enter(&people, ANNA, Some(&totp_code_at(&secret, NOW)), NOW).await);
    assert!(enter(&people, ANNA, Some(&codes[1]), NOW).await.is_ok());
}

#[tokio::test]
async fn a_passkey_is_set_up_by_its_person_with_a_fresh_proof_in_one_session_and_belongs_to_it_alone() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let eve = Person::of(&people, "eve@example.com").await;
    assert!(people.offer_passkey(&eve.actor, anna.place(), NOW).is_err());
    assert!(people.offer_passkey(&admin(), anna.place(), NOW).is_err());
    let old = people.offer_passkey(&anna.actor, anna.place(), later(700)).unwrap_err();
    assert!(matches!(old, AdminError::Forbidden(ref refused) if refused.sight == Sight::ProofIsOld), "{old:?}");
    let mut device = Authenticator::new();
    let made = device.make(&anna.offer(&people, NOW));
    assert!(eve.add(&people, &made).await.is_err(), "somebody else's challenge");
    assert!(anna.add(&people, &made).await.is_err(), "which is spent now");
    let made = device.make(&anna.offer(&people, NOW));
    let elsewhere = people.add_passkey(&anna.actor, (anna.user.id, [9; 32]), ("key", &octets(&made)), NOW).await;
    assert!(elsewhere.is_err(), "another session's challenge");
    let made = device.make(&anna.offer(&people, NOW));
    let late = people.add_passkey(&anna.actor, anna.place(), ("key", &octets(&made)), later(301)).await;
    assert!(late.is_err());
    let made = device.make(&anna.offer(&people, NOW));
    let unnamed = people.add_passkey(&anna.actor, anna.place(), (" ", &octets(&made)), NOW).await;
    assert!(matches!(unnamed, Err(AdminError::Fields(_))));
    anna.add(&people, &made).await.unwrap();
    let again = anna.offer(&people, NOW);
    assert_eq!(again["excludeCredentials"].as_array().unwrap().len(), 1);
    assert!(matches!(anna.add(&people, &device.make(&again)).await, Err(AdminError::Exists(_))));
    let taken = device.make(&eve.offer(&people, NOW));
    assert!(matches!(eve.add(&people, &taken).await, Err(AdminError::Exists(_))), "another person's credential");
}

#[tokio::test]
async fn an_admin_takes_passkeys_away_too_and_they_are_a_second_factor_where_one_is_demanded() {
    let (_, people) = people_at(ORIGIN);
    let policy = FactorPolicy { required_of: vec!["owner".to_owned()] };
    people.set_factor_policy(&admin(), Some(SHOP), policy, NOW).await.unwrap();
    let anna = Person::of(&people, ANNA).await;
    assert!(people.must_enrol(&anna.user));
    anna.enrolled(&people).await;
    assert!(!people.must_enrol(&people.user(anna.user.id).unwrap()));
    people.reset_factors(&admin(), anna.user.id, NOW).await.unwrap();
    let user = people.user(anna.user.id).unwrap();
    assert!(user.passkeys.is_empty() && user.recovery.is_empty() && people.must_enrol(&user));
    assert!(people.sessions(&admin(), anna.user.id).unwrap().is_empty());
    assert!(enter(&people, ANNA, None, NOW).await.is_ok());
}

#[tokio::test]
async fn a_person_has_as_many_passkeys_as_may_be_and_calls_them_as_it_likes() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    for _ in 0..PASSKEYS_MAX {
        anna.enrolled(&people).await;
    }
    assert!(people.offer_passkey(&anna.actor, anna.place(), NOW).unwrap_err().to_string().contains("at most 10"));
    let first = people.passkeys(&anna.actor, anna.user.id).unwrap()[0].id();
    let whose = (anna.user.id, first.as_str());
    let renamed = people.rename_passkey(&anna.actor, whose, "  the blue one ", NOW).await.unwrap();
    assert_eq!((renamed.name.as_str(), renamed.id()), ("the blue one", first.clone()));
    assert!(people.rename_passkey(&anna.actor, (anna.user.id, "none"), "x", NOW).await.is_err());
    let eve = Person::of(&people, "eve@example.com").await;
    assert!(people.rename_passkey(&eve.actor, whose, "x", NOW).await.is_err());
    assert!(people.remove_passkey(&eve.actor, (anna.user.id, [0; 32]), &first, NOW).await.is_err());
}

#[tokio::test]
async fn challenges_of_one_person_do_not_pile_up() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    let first = asked(&people, ANNA, NOW).await;
    for second in 1..20 {
        asked(&people, ANNA, later(second)).await;
    }
    let last = asked(&people, ANNA, later(20)).await;
    is_wrong(enter_with(&people, ANNA, &device.prove(&first), later(20)).await);
    assert!(enter_with(&people, ANNA, &device.prove(&last), later(20)).await.is_ok());
}

#[tokio::test]
async fn whoever_has_only_the_password_ends_no_challenge_of_the_person_itself() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (mut device, ..) = anna.enrolled(&people).await;
    let login = asked(&people, ANNA, NOW).await;
    let confirm = people.confirm(&anna.session, given("", "", None, HOME), NOW).await;
    let Refused::NeedsFactor(Some(confirm)) = refusal(confirm) else { panic!() };
    for second in 1..20 {
        let asks = people.log_in(given(ANNA, PASSWORD, None, ELSEWHERE), later(second)).await;
        assert!(matches!(refusal(asks), Refused::NeedsFactor(Some(_))));
    }
    assert!(enter_with(&people, ANNA, &device.prove(&login), later(20)).await.is_ok());
    let answer = octets(&device.prove(&confirm));
    let proved = Credentials { passkey: Some(&answer), ..given("", "", None, HOME) };
    assert!(people.confirm(&anna.session, proved, later(20)).await.is_ok());
}

#[tokio::test]
async fn what_is_set_up_ends_with_its_session_and_goes_on_when_it_is_confirmed() {
    let (_, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let mut device = Authenticator::new();
    let made = device.make(&anna.offer(&people, NOW));
    let again = people.confirm(&anna.session, given("", PASSWORD, None, HOME), NOW).await.unwrap();
    let late = people.add_passkey(&anna.actor, anna.place(), ("key", &octets(&made)), NOW).await;
    assert!(matches!(late, Err(AdminError::Missing(_))), "the session has another secret");
    let (actor, _, session) = people.session_actor(&again.secret, Some(HOME), NOW).unwrap();
    let place = (anna.user.id, session.digest);
    people.add_passkey(&actor, place, ("key", &octets(&made)), NOW).await.unwrap();
    let made = Authenticator::new().make(&people.offer_passkey(&actor, place, NOW).unwrap());
    people.end_session(&actor, anna.user.id, Some(session.digest), NOW).await.unwrap();
    assert!(people.add_passkey(&actor, place, ("other", &octets(&made)), NOW).await.is_err());
    assert_eq!(people.passkeys(&actor, anna.user.id).unwrap().len(), 1);
}

#[tokio::test]
async fn passkeys_of_another_host_are_not_asked_for_and_the_password_alone_lets_nobody_in() {
    let (store, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (_, old, codes) = anna.enrolled(&people).await;
    let moved = over(&store).reached_at(Some(Site::parse("https://panel.example.net").unwrap()));
    assert!(matches!(refusal(enter(&moved, ANNA, None, NOW).await), Refused::NeedsFactor(None)));
    let entered = enter(&moved, ANNA, Some(codes[0].as_str()), NOW).await.unwrap();
    let anna = Person::entered(&moved, &entered);
    let mut device = Authenticator::new();
    "https://panel.example.net".clone_into(&mut device.origin);
    let (new, _) = anna.add(&moved, &device.make(&anna.offer(&moved, NOW))).await.unwrap();
    let hosts: Vec<_> = moved.passkeys(&anna.actor, anna.user.id).unwrap().into_iter().map(|one| one.host).collect();
    assert_eq!(hosts, [old.host, "panel.example.net".to_owned()]);
    let options = asked(&moved, ANNA, NOW).await;
    assert_eq!(options["allowCredentials"].as_array().unwrap().len(), 1, "{options}");
    assert!(enter_with(&moved, ANNA, &device.prove(&options), NOW).await.is_ok());
    assert_eq!(new.host, "panel.example.net");
}

#[tokio::test]
async fn without_a_place_to_be_bound_to_there_are_no_passkeys_and_codes_still_let_in() {
    let (store, people) = people_at(ORIGIN);
    let anna = Person::of(&people, ANNA).await;
    let (.., codes) = anna.enrolled(&people).await;
    let nowhere = over(&store);
    assert!(nowhere.offer_passkey(&anna.actor, anna.place(), NOW).is_err());
    assert_eq!(refusal(enter(&nowhere, ANNA, None, NOW).await), Refused::NeedsFactor(None));
    assert!(enter(&nowhere, ANNA, Some(&codes[0]), NOW).await.is_ok());
}

#[test]
fn a_place_is_a_name_with_tls_and_maybe_a_port() {
    let site = |text: &str| Site::parse(text);
    assert_eq!(site("https://MX.example.com:443"), site("https://mx.example.com"));
    assert_ne!(site("https://mx.example.com:8443"), site("https://mx.example.com"));
    assert!(site("https://localhost:8443").is_ok());
    for wrong in [
        "",
        "mx.example.com",
        "http://mx.example.com",
        "https://",
        "https://192.0.2.1",
        "https://[2001:db8::1]:8443",
        "https://mx.example.com/",
        "https://mx.example.com:0",
        "https://mx.example.com:x",
        "https://mx.example.com:+443",
        "https://mx.example.com.",
        "https://a b.example",
    ] {
        assert!(site(wrong).is_err(), "{wrong}");
    }
}
