//! Tests of the accounts room as a whole, over the engine for tests.

use super::*;
use crate::mail::Domain;
use crate::records::AdminError;
use crate::store::{CommitError, MemoryStore};
use crate::vips::Owner;

const START: Timestamp = Timestamp(1_800_000_000_000);

struct Room {
    store: Arc<MemoryStore>,
    accounts: Accounts,
    actor: Actor,
}

impl Room {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let store = Arc::new(MemoryStore::new());
        let accounts = Accounts::open(store.clone(), settings).unwrap();
        Self { store, accounts, actor: Actor::system("test") }
    }

    fn reopened(&self) -> Self {
        let accounts = Accounts::open(self.store.clone(), self.accounts.settings()).unwrap();
        Self { store: self.store.clone(), accounts, actor: self.actor.clone() }
    }

    async fn tenant(&self, name: &str) -> Tenant {
        self.accounts.add_tenant(&self.actor, name, START).await.unwrap()
    }

    async fn account(&self, tenant: TenantId) -> (SmtpAccount, String) {
        let new = NewSmtpAccount::default();
        let (account, password) = self.accounts.add_smtp_account(&self.actor, tenant, new, START).await.unwrap();
        (account, password.to_string())
    }

    async fn login(&self, login: &str, password: &str, peer: &str) -> Login {
        self.login_at(login, password, peer, START).await
    }

    async fn login_at(&self, login: &str, password: &str, peer: &str, now: Timestamp) -> Login {
        let vip = vip(Owner::Shared);
        let attempt = LoginAttempt { login, password, peer: peer.parse().unwrap(), vip: &vip, tls: "TLSv1.3" };
        self.accounts.authenticate(&attempt, now).await
    }

    fn events(&self) -> Vec<String> {
        let rows = self.store.range(&[prefix::EVENT], &[prefix::EVENT + 1], 10_000).unwrap();
        let decoded = rows.iter().map(|(_, value)| crate::store::codec::decode::<crate::events::Event>(value).unwrap());
        decoded.map(|event| format!("{:?}", event.kind)).collect()
    }
}

fn vip(owner: Owner) -> Vip {
    Vip {
        id: VipId(7),
        ipv4: Some([127, 0, 0, 1].into()),
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: Domain::parse("mx.example.com").unwrap(),
        owner,
    }
}

fn is_accepted(login: &Login) -> bool {
    matches!(login, Login::Accepted(_))
}

fn of_state(state: LoginState) -> AccountChange {
    AccountChange { login_state: Some(state), ..AccountChange::default() }
}

fn of_limits(limits: Limits) -> TenantChange {
    TenantChange { limits: Some(limits), ..TenantChange::default() }
}

fn of_vip(vip: &Vip) -> TenantChange {
    TenantChange { default_vip: Some(Some(vip.clone())), ..TenantChange::default() }
}

#[tokio::test]
async fn a_generated_login_works_from_anywhere_until_it_is_disabled_or_removed() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    assert!(account.login.starts_with("shop-") && account.login.len() == 11, "{}", account.login);
    assert!(is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    assert!(is_accepted(&room.login(&account.login.to_uppercase(), &password, "192.0.2.1").await));
    let state = LoginState::Disabled;
    room.accounts.change_smtp_account(&room.actor, account.id, of_state(state), START).await.unwrap();
    assert!(!is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    assert!(room.accounts.may_send(tenant.id, Some(account.id)).is_err(), "an open session ends too");
    let room = room.reopened();
    assert!(!is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    room.accounts.change_smtp_account(&room.actor, account.id, of_state(LoginState::Enabled), START).await.unwrap();
    assert!(is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    room.accounts.remove_smtp_account(&room.actor, account.id, START).await.unwrap();
    assert!(!is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    assert!(!is_accepted(&room.reopened().login(&account.login, &password, "192.0.2.1").await));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_login_the_answer_is_the_same() {
    let room = Room::new();
    let (own, other) = (room.tenant("shop").await, room.tenant("other").await);
    let (account, password) = room.account(own.id).await;
    let (bound, bound_password) = room.account(own.id).await;
    let networks = vec!["198.51.100.0/24".parse().unwrap()];
    room.accounts
        .change_smtp_account(
            &room.actor,
            bound.id,
            AccountChange { allowed_from: Some(networks), ..Default::default() },
            START,
        )
        .await
        .unwrap();
    let foreign = vip(Owner::Tenant(other.id));
    let shared = vip(Owner::Shared);
    let cases = [
        ("wrong password", account.login.as_str(), "no", &shared),
        ("unknown login", "nobody", "no", &shared),
        ("empty", "", "", &shared),
        ("another tenant's virtual IP", account.login.as_str(), password.as_str(), &foreign),
        ("a source that is not allowed", bound.login.as_str(), bound_password.as_str(), &shared),
    ];
    for (number, (what, login, password, vip)) in cases.into_iter().enumerate() {
        for _ in 0..5 {
            // A network of its own, so that the counts are alike too.
            let peer = format!("203.0.{number}.1").parse().unwrap();
            room.accounts.authenticate(&LoginAttempt { login, password, peer, vip, tls: "TLSv1.3" }, START).await;
        }
        let peer = format!("203.0.{number}.2").parse().unwrap();
        let answer =
            room.accounts.authenticate(&LoginAttempt { login, password, peer, vip, tls: "TLSv1.3" }, START).await;
        assert_eq!(answer, Login::Refused { delay: Duration::from_millis(2000) }, "{what}");
    }
    let answer = room.login(&bound.login, &bound_password, "198.51.100.9").await;
    assert!(is_accepted(&answer), "the allowed source gets in");
}

#[tokio::test]
async fn an_unknown_login_costs_the_same_work_as_a_wrong_password() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    let compared = || secret::COMPARED.with(std::cell::Cell::take);
    compared();
    for (login, password) in [("nobody", "x"), (account.login.as_str(), "x"), (account.login.as_str(), &password)] {
        room.login(login, password, "192.0.2.1").await;
        assert_eq!(compared(), SECRETS_MAX, "{login}");
    }
    room.accounts.rotate_password(&room.actor, account.id, None, START).await.unwrap();
    room.login(&account.login, &password, "192.0.2.1").await;
    assert_eq!(compared(), SECRETS_MAX);
}

#[tokio::test]
async fn both_passwords_are_valid_until_the_old_one_is_dropped() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, old) = room.account(tenant.id).await;
    let (_, new) = room.accounts.rotate_password(&room.actor, account.id, None, START).await.unwrap();
    assert!(is_accepted(&room.login(&account.login, &old, "192.0.2.1").await));
    assert!(is_accepted(&room.login(&account.login, &new, "192.0.2.1").await));
    let third = room.accounts.rotate_password(&room.actor, account.id, None, START).await;
    assert!(matches!(third, Err(AdminError::Invalid(_))));
    room.accounts.drop_old_password(&room.actor, account.id, START).await.unwrap();
    assert!(!is_accepted(&room.login(&account.login, &old, "192.0.2.1").await));
    assert!(is_accepted(&room.login(&account.login, &new, "192.0.2.1").await));
    assert!(room.accounts.drop_old_password(&room.actor, account.id, START).await.is_err());
}

#[tokio::test]
async fn nobody_can_lock_out_a_network_that_logged_in_before() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    let (second, second_password) = room.account(tenant.id).await;
    assert!(is_accepted(&room.login(&account.login, &password, "192.0.2.1").await));
    room.accounts.persist(START).await.unwrap();
    let room = room.reopened();
    let later = START.plus(Duration::from_secs(29 * 24 * 3600));
    for count in 0..1000 {
        room.login_at(&account.login, "guess", &format!("192.0.2.{}", count % 250), later).await;
    }
    let guess = room.login_at(&account.login, "guess", "192.0.2.1", later).await;
    assert!(matches!(guess, Login::Slowed { .. }));
    let unknown = room.login_at("nobody", "guess", "192.0.2.1", later).await;
    assert_eq!(unknown, guess, "and nobody can tell that the login exists");
    assert!(is_accepted(&room.login_at(&account.login, &password, "192.0.2.1", later).await));
    assert!(is_accepted(&room.login_at(&second.login, &second_password, "192.0.2.99", later).await));
}

#[tokio::test]
async fn a_network_that_never_logged_in_is_slowed_whatever_the_password_and_by_itself_let_in_again() {
    let room = Room::with(Settings { network_failures_max: 10, ..Settings::default() });
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    for _ in 0..10 {
        room.login("x", "guess", "2001:db8::1").await;
    }
    assert!(matches!(room.login(&account.login, &password, "2001:db8::2").await, Login::Slowed { .. }));
    assert!(is_accepted(&room.login(&account.login, &password, "2001:db8:0:1::2").await), "the next /64 is not");
    let later = START.plus(Duration::from_secs(360));
    assert!(is_accepted(&room.login_at(&account.login, &password, "2001:db8::2", later).await));
}

#[tokio::test]
async fn a_flood_of_failures_writes_few_events_and_no_password() {
    let room = Room::new();
    for count in 0..5000 {
        room.login(&format!("u{count}"), "secret-guess", &format!("10.0.{}.1", count % 200)).await;
    }
    room.accounts.persist(START).await.unwrap();
    let events = room.events();
    assert!((1..=200).contains(&events.len()), "{}", events.len());
    assert!(events.iter().all(|event| !event.contains("secret-guess")));
    let commits = room.store.commits();
    room.accounts.persist(START).await.unwrap();
    assert_eq!(room.store.commits(), commits, "nothing new, nothing written");
}

#[tokio::test]
async fn a_login_that_is_refused_or_slowed_is_told() {
    let room = Room::with(Settings { network_failures_max: 2, ..Settings::default() });
    room.login("nobody\r\n", "x", "192.0.2.1").await;
    room.login("nobody", "x", "192.0.2.1").await;
    room.accounts.persist(START).await.unwrap();
    let events = room.events().join("\n");
    assert!(events.contains("LoginRefused") && events.contains("unknown login") && events.contains("nobody??"));
    assert_eq!(events.matches("LoginSlowed").count(), 1, "{events}");
    assert!(events.contains("192.0.2.0/24"));
}

#[tokio::test]
async fn limits_of_tenant_and_account_hold_across_a_restart_and_name_when_they_lift() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, _) = room.account(tenant.id).await;
    let (second, _) = room.account(tenant.id).await;
    let limits = Limits { hourly_max: Some(2), daily_max: None };
    room.accounts
        .change_smtp_account(
            &room.actor,
            account.id,
            AccountChange { limits: Some(limits), ..Default::default() },
            START,
        )
        .await
        .unwrap();
    let limits = Limits { hourly_max: None, daily_max: Some(3) };
    room.accounts.change_tenant(&room.actor, tenant.id, of_limits(limits), START).await.unwrap();
    for _ in 0..2 {
        room.accounts.count(tenant.id, Some(account.id), START).unwrap();
    }
    let refusal = room.accounts.count(tenant.id, Some(account.id), START).unwrap_err();
    assert!(refusal.reply.one_line().starts_with("452 4.7.0 The limit of this SMTP account is reached (2 messages"));
    assert!(refusal.reply.one_line().contains("try again after 2027-01-15T09:01:00.000Z"), "{refusal}");
    assert_eq!(room.accounts.tenant_usage(tenant.id, START), (2, 2), "a refused message is not counted");
    room.accounts.persist(START).await.unwrap();
    let room = room.reopened();
    assert!(room.accounts.count(tenant.id, Some(account.id), START).is_err());
    room.accounts.count(tenant.id, Some(second.id), START).unwrap();
    let refusal = room.accounts.count(tenant.id, Some(second.id), START).unwrap_err();
    assert!(refusal.reply.one_line().contains("this tenant is reached (3 messages a day)"));
    room.accounts.uncount(tenant.id, Some(second.id));
    assert!(room.accounts.count(tenant.id, Some(second.id), START).is_ok());
}

#[tokio::test]
async fn counters_that_could_not_be_written_are_written_later_and_removed_when_empty() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    room.accounts.count(tenant.id, None, START).unwrap();
    room.store.fail_next(1, CommitError::Full("test".into()));
    assert!(room.accounts.persist(START).await.is_err());
    room.accounts.persist(START).await.unwrap();
    assert_eq!(room.reopened().accounts.tenant_usage(tenant.id, START), (1, 1));
    let later = START.plus(Duration::from_secs(3 * 24 * 3600));
    room.accounts.persist(later).await.unwrap();
    assert!(room.store.get(&limits::key(limits::Counted::Tenant(tenant.id))).unwrap().is_none());
}

#[tokio::test]
async fn a_tenant_is_found_by_name_changed_and_removed_only_when_empty() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    assert!(matches!(room.accounts.add_tenant(&room.actor, "shop", START).await, Err(AdminError::Exists(_))));
    for name in ["", "Shop", "-shop", "shop-", "sh op", "sh.op", &"a".repeat(64)] {
        let refused = room.accounts.add_tenant(&room.actor, name, START).await;
        assert!(matches!(refused, Err(AdminError::Fields(_))), "{name:?}");
    }
    room.accounts.set_sending(&room.actor, tenant.id, Sending::Suspended, START).await.unwrap();
    let room = room.reopened();
    assert_eq!(room.accounts.tenant_named("shop").unwrap().sending, Sending::Suspended);
    assert_eq!(room.accounts.may_send(tenant.id, None).unwrap_err().reply.code.0, 451);
    let (account, _) = room.account(tenant.id).await;
    let refused = room.accounts.remove_tenant(&room.actor, tenant.id, START).await.unwrap_err();
    assert_eq!(refused.to_string(), "tenant shop still has 1 SMTP accounts");
    room.accounts.remove_smtp_account(&room.actor, account.id, START).await.unwrap();
    room.accounts.remove_tenant(&room.actor, tenant.id, START).await.unwrap();
    assert!(room.reopened().accounts.tenant_named("shop").is_none());
    room.tenant("shop").await;
}

#[tokio::test]
async fn a_default_virtual_ip_must_serve_the_tenant() {
    let room = Room::new();
    let (own, other) = (room.tenant("shop").await, room.tenant("other").await);
    let foreign = vip(Owner::Tenant(other.id));
    assert!(room.accounts.change_tenant(&room.actor, own.id, of_vip(&foreign), START).await.is_err());
    let shared = vip(Owner::Shared);
    let tenant = room.accounts.change_tenant(&room.actor, own.id, of_vip(&shared), START).await.unwrap();
    assert_eq!(tenant.default_vip, Some(shared.id));
}

#[tokio::test]
async fn people_of_one_tenant_reach_no_other() {
    let room = Room::new();
    let (own, other) = (room.tenant("shop").await, room.tenant("other").await);
    let (foreign, _) = room.account(other.id).await;
    let owner = Actor::of("owner", crate::access::Role::TenantOwner(own.id));
    let forbidden = |error: AdminError| matches!(error, AdminError::Forbidden(_));
    assert!(forbidden(room.accounts.rotate_password(&owner, foreign.id, None, START).await.unwrap_err()));
    assert!(forbidden(room.accounts.remove_smtp_account(&owner, foreign.id, START).await.unwrap_err()));
    assert!(forbidden(room.accounts.remove_smtp_account(&owner, SmtpAccountId(1), START).await.unwrap_err()));
    assert!(forbidden(room.accounts.smtp_accounts(&owner, other.id).unwrap_err()));
    assert!(forbidden(
        room.accounts.change_tenant(&owner, own.id, of_limits(Limits::default()), START).await.unwrap_err()
    ));
    assert_eq!(room.accounts.tenants(&owner).len(), 1);
    let new = NewSmtpAccount::default();
    assert!(room.accounts.add_smtp_account(&owner, own.id, new, START).await.is_ok());
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_stops_no_other() {
    let room = Room::new();
    let (own, other) = (room.tenant("shop").await, room.tenant("other").await);
    let mut batch = crate::store::Batch::new();
    batch.set(tenant_key(other.id), vec![1, 2, 3]);
    room.store.commit(batch).await.unwrap();
    let room = room.reopened();
    assert_eq!(room.accounts.damaged().len(), 1);
    assert!(room.accounts.tenant(own.id).is_some() && room.accounts.tenant(other.id).is_none());
}

#[tokio::test]
async fn a_change_that_was_not_made_durable_is_not_remembered() {
    let room = Room::new();
    room.store.fail_next(1, CommitError::Full("test".into()));
    assert!(room.accounts.add_tenant(&room.actor, "shop", START).await.is_err());
    assert!(room.accounts.tenant_named("shop").is_none());
    room.tenant("shop").await;
}

#[tokio::test]
async fn every_change_is_in_the_audit_trail_without_its_secrets() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    let (_, second) = room.accounts.rotate_password(&room.actor, account.id, None, START).await.unwrap();
    let events = room.events().join("\n");
    for act in ["tenant.add", "smtp-account.add", "smtp-account.rotate", "system: test", &account.login] {
        assert!(events.contains(act), "{act}");
    }
    assert!(!events.contains(&password) && !events.contains(second.as_str()));
}

#[tokio::test]
async fn whoever_is_bound_to_accounts_or_domains_gets_no_other_login() {
    use crate::access::{Action, Narrowing, Role};
    let room = Room::new();
    let tenant = room.tenant("shop").await.id;
    let (own, _) = room.account(tenant).await;
    let narrowed = |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("user d", Role::Developer(tenant)) };
    let accounts = Some([(own.id, Action::Write)].into());
    let person = narrowed(Narrowing { accounts, ..Narrowing::default() });
    let key = narrowed(Narrowing { domains: Some(vec![Domain::parse("a.example").unwrap()]), ..Narrowing::default() });
    for actor in [&person, &key] {
        let made = room.accounts.add_smtp_account(actor, tenant, NewSmtpAccount::default(), START).await;
        assert!(matches!(made, Err(AdminError::Forbidden(_))), "{}", actor.name);
    }
    assert!(room.accounts.rotate_password(&person, own.id, None, START).await.is_ok(), "its own account");
    let rotated = room.accounts.rotate_password(&key, own.id, None, START).await;
    assert!(matches!(rotated, Err(AdminError::Forbidden(_))), "that login sends as every domain");
}

#[tokio::test]
async fn an_account_bound_to_senders_or_over_its_end_is_held_to_that_after_a_restart_too() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    let change = AccountChange {
        name: Some("Web shop".into()),
        allowed_senders: Some(vec![AllowedSender::parse("orders@shop.example").unwrap()]),
        expires: Some(Some(START.plus(Duration::from_secs(60)))),
        dialects: Some(vec![HeaderDialect::Mailgun]),
        ..AccountChange::default()
    };
    room.accounts.change_smtp_account(&room.actor, account.id, change, START).await.unwrap();
    let room = room.reopened();
    let may = |address: &str| room.accounts.may_send_as(account.id, &address.parse().unwrap()).is_ok();
    assert!(may("Orders@shop.example") && !may("other@shop.example"));
    assert_eq!(room.accounts.dialects(account.id), [HeaderDialect::Mailgun]);
    assert!(is_accepted(&room.login_at(&account.login, &password, "192.0.2.1", START).await));
    let over = START.plus(Duration::from_secs(60));
    assert!(!is_accepted(&room.login_at(&account.login, &password, "192.0.2.1", over).await));
    assert!(room.accounts.may_send(tenant.id, Some(account.id)).is_err() || Timestamp::now() < over);
    let never = AccountChange { expires: Some(None), ..AccountChange::default() };
    room.accounts.change_smtp_account(&room.actor, account.id, never, START).await.unwrap();
    assert!(is_accepted(&room.login_at(&account.login, &password, "192.0.2.1", over).await));
    let long = AccountChange { name: Some("x".repeat(NAME_CHARACTERS_MAX + 1)), ..AccountChange::default() };
    assert!(room.accounts.change_smtp_account(&room.actor, account.id, long, START).await.is_err());
}

#[tokio::test]
async fn the_last_twenty_logins_are_told_the_latest_first_and_survive_a_restart() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, password) = room.account(tenant.id).await;
    for second in 0..25 {
        let now = START.plus(Duration::from_secs(second * 60));
        room.login_at(&account.login, if second == 24 { "wrong" } else { &password }, "192.0.2.1", now).await;
    }
    room.login("nobody-at-all", "x", "192.0.2.2").await;
    room.accounts.persist(START).await.unwrap();
    let room = room.reopened();
    let seen = room.accounts.last_logins(&room.actor, account.id).unwrap();
    assert_eq!(seen.len(), LOGINS_SEEN_MAX);
    assert_eq!(seen[0].refused.as_deref(), Some("wrong password"));
    assert_eq!((seen[1].refused.as_deref(), seen[1].at), (None, START.plus(Duration::from_secs(23 * 60))));
    assert_eq!((seen[1].tls.as_str(), seen[1].peer), ("TLSv1.3", "192.0.2.1".parse().unwrap()));
    room.accounts.remove_smtp_account(&room.actor, account.id, START).await.unwrap();
    room.accounts.persist(START).await.unwrap();
    assert!(room.store.range(&[prefix::USAGE, b'l'], &[prefix::USAGE, b'm'], 10).unwrap().is_empty());
}

#[tokio::test]
async fn an_old_password_ends_by_itself_when_a_time_was_said() {
    let room = Room::new();
    let tenant = room.tenant("shop").await;
    let (account, old) = room.account(tenant.id).await;
    let until = START.plus(Duration::from_secs(3600));
    let (_, new) = room.accounts.rotate_password(&room.actor, account.id, Some(until), START).await.unwrap();
    assert!(is_accepted(&room.login_at(&account.login, &old, "192.0.2.1", START).await));
    assert!(!is_accepted(&room.login_at(&account.login, &old, "192.0.2.1", until).await));
    assert!(is_accepted(&room.login_at(&account.login, &new, "192.0.2.1", until).await));
    let (account, third) = room.accounts.rotate_password(&room.actor, account.id, None, until).await.unwrap();
    assert_eq!(account.secrets.len(), 2, "the lapsed one made room");
    assert!(is_accepted(&room.login_at(&account.login, &new, "192.0.2.1", until).await));
    assert!(is_accepted(&room.login_at(&account.login, &third, "192.0.2.1", until).await));
}

#[tokio::test]
async fn overflow_goes_to_shared_virtual_ips_that_were_named_and_may_be_taken_back() {
    let room = Room::new();
    let id = room.tenant("shop").await.id;
    let of = |named: &[Vip]| TenantChange { overflow_to: Some(named.to_vec()), ..TenantChange::default() };
    let shared = |number: u64| Vip { id: VipId(number), ..vip(Owner::Shared) };
    let own = |owner| Vip { id: VipId(99), ..vip(Owner::Tenant(owner)) };
    let many: Vec<Vip> = (0..17).map(shared).collect();
    let change = |named: Vec<Vip>| room.accounts.change_tenant(&room.actor, id, of(&named), START);
    assert_eq!(room.accounts.tenant(id).unwrap().overflow_to, [], "none is the default");
    // Not even one of its own: overflow is about what everybody may use.
    for refused in [vec![shared(1), own(TenantId(77))], vec![own(id)], many] {
        assert!(change(refused).await.is_err());
    }
    assert_eq!(room.accounts.tenant(id).unwrap().overflow_to, []);
    let changed = change(vec![shared(3), shared(1), shared(3)]).await.unwrap();
    assert_eq!(changed.overflow_to, [VipId(1), VipId(3)]);
    assert_eq!(changed.move_to_shared, MoveToShared::Forbidden, "one is not the other");
    assert_eq!(room.reopened().accounts.tenant(id).unwrap().overflow_to, [VipId(1), VipId(3)]);
    assert_eq!(change(Vec::new()).await.unwrap().overflow_to, []);
}
