//! An unknown login, a wrong password, a disabled account and another tenant's login are answered
//! alike, byte for byte, and in like time. The statistics are printed. A gross difference fails, and one that could
//! be told from afar: medians that lie apart by more than what a network hides, or a busy machine itself.

use std::time::{Duration, Instant};

use postern::accounts::{AccountChange, Accounts, Limits, Login, LoginAttempt, LoginState, NewSmtpAccount, Settings};
use postern::ext::Timestamp;
use postern::mail::{Class, Domain};
use postern::store::MemoryStore;
use postern::vips::{NewVip, Owner, Vips};

use crate::harness::daemon::operator;

const TRIES: usize = 200;
/// Medians further apart than this tell something.
const FACTOR_MAX: f64 = 3.0;
/// So far apart nobody tells them across a network, whose own noise is larger ...
const APART_MAX: Duration = Duration::from_micros(200);
/// ... nor where the machine's own is: so many times the spread of one case alone.
const SPREADS_MAX: u32 = 3;

struct Refused {
    what: &'static str,
    login: String,
    password: String,
    spans: Vec<Duration>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_logins_do_not_differ_in_answer_nor_grossly_in_time() {
    let store = std::sync::Arc::new(MemoryStore::new());
    // No delays: what is measured is the check, not the punishment.
    let settings =
        Settings { login_failures_free_max: 1_000_000, network_failures_max: 1_000_000, ..Settings::default() };
    let accounts = Accounts::open(store.clone(), settings).unwrap();
    let vips = Vips::open(store).unwrap();
    let now = Timestamp::now();
    let mut logins = Vec::new();
    for name in ["shop", "other"] {
        let tenant = accounts.add_tenant(&operator(), name, now).await.unwrap().id;
        for _ in 0..2 {
            let new = NewSmtpAccount {
                class: Class::Transactional,
                allowed_from: Vec::new(),
                limits: Limits::default(),
                ..Default::default()
            };
            let (account, password) = accounts.add_smtp_account(&operator(), tenant, new, now).await.unwrap();
            logins.push((tenant, account, password.to_string()));
        }
    }
    let ehlo = Domain::parse("mx.shop.test").unwrap();
    let ipv4 = Some([127, 0, 0, 1].into());
    let new =
        NewVip { ipv4, ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner: Owner::Tenant(logins[0].0) };
    let vip = vips.add(&operator(), new, now).await.unwrap();
    accounts
        .change_smtp_account(
            &operator(),
            logins[1].1.id,
            AccountChange { login_state: Some(LoginState::Disabled), ..AccountChange::default() },
            now,
        )
        .await
        .unwrap();
    let case = |what, login: &str, password: &str| Refused {
        what,
        login: login.to_owned(),
        password: password.to_owned(),
        spans: Vec::new(),
    };
    let unknown = "x".repeat(logins[0].1.login.len());
    let mut cases = [
        case("wrong password", &logins[0].1.login, &"w".repeat(logins[0].2.len())),
        case("unknown login", &unknown, &logins[0].2),
        case("disabled account", &logins[1].1.login, &logins[1].2),
        case("another tenant's login", &logins[2].1.login, &logins[2].2),
    ];
    // In turn, so that whatever the machine does meanwhile falls on all of them.
    for _ in 0..TRIES {
        for case in &mut cases {
            let peer = "192.0.2.1".parse().unwrap();
            let attempt =
                LoginAttempt { login: &case.login, password: &case.password, peer, vip: &vip, tls: "TLSv1.3" };
            let began = Instant::now();
            let answer = accounts.authenticate(&attempt, now).await;
            case.spans.push(began.elapsed());
            let Login::Refused { delay } = answer else { panic!("{}: not refused", case.what) };
            assert_eq!(delay, Duration::ZERO, "{}", case.what);
        }
    }
    judge(&cases);
}

/// Each of them beside the first.
fn judge(cases: &[Refused]) {
    let base = &cases[0].spans;
    for case in cases {
        let (middle, factor, z) = (median(&case.spans), ratio(&case.spans, base), rank_test(&case.spans, base));
        let own = spread(&case.spans);
        eprintln!(
            "{}: median {middle:?}, half within {own:?}, {factor:.2} of a wrong password's, z = {z:.1}",
            case.what
        );
        assert!((1.0 / FACTOR_MAX..FACTOR_MAX).contains(&factor), "{}: {factor}", case.what);
        let (apart, apart_max) = (middle.abs_diff(median(base)), APART_MAX.max(SPREADS_MAX * spread(base)));
        assert!(apart <= apart_max, "{}: {apart:?} apart, at most {apart_max:?}", case.what);
    }
}

fn median(spans: &[Duration]) -> Duration {
    part(spans, 2, 4)
}

/// Between the first and the last quarter.
fn spread(spans: &[Duration]) -> Duration {
    part(spans, 3, 4) - part(spans, 1, 4)
}

/// Below it lies that part of the spans.
fn part(spans: &[Duration], of: usize, parts: usize) -> Duration {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() * of / parts]
}

fn ratio(one: &[Duration], other: &[Duration]) -> f64 {
    median(one).as_secs_f64() / median(other).as_secs_f64()
}

/// Mann and Whitney's rank-sum test by its normal approximation: beyond 3 the two differ by more than chance.
fn rank_test(one: &[Duration], other: &[Duration]) -> f64 {
    let (count, others) = (one.len() as f64, other.len() as f64);
    let wins: f64 = one
        .iter()
        .flat_map(|left| other.iter().map(move |right| left.cmp(right)))
        .map(|order| match order {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        })
        .sum();
    let deviation = (count * others * (count + others + 1.0) / 12.0).sqrt();
    (wins - count * others / 2.0) / deviation
}
