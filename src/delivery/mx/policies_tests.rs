//! Policies announced by a real DNS server and fetched from a real HTTPS server, over days of made-up time.

use super::*;
use crate::net::pages_tests::{Pages, page};
use crate::net::{ClientTls, DnsSettings, Reach, SystemResolver, Trouble, Zone, ZoneServer};
use crate::store::MemoryStore;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

struct Stage {
    store: Arc<MemoryStore>,
    pages: Pages,
    zone: ZoneServer,
    resolver: Arc<SystemResolver>,
    fetcher: Fetcher,
}

fn domain() -> Domain {
    Domain::parse("shop.example").unwrap()
}

fn zone(id: &str) -> Zone {
    Zone::new()
        .txt("_mta-sts.shop.example", &format!("v=STSv1; id={id};"))
        .ipv4("mta-sts.shop.example", "127.0.0.1".parse().unwrap())
}

fn text(mode: &str, max_age: u64) -> Vec<u8> {
    let body = format!("version: STSv1\r\nmode: {mode}\r\nmx: *.shop.example\r\nmax_age: {max_age}\r\n");
    page("200 OK", "Content-Type: text/plain\r\n", &body)
}

impl Stage {
    async fn new() -> Self {
        let pages = Pages::start("mta-sts.shop.example").await;
        let zone = ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone("1")).await.unwrap();
        let dns = DnsSettings {
            servers: vec![zone.address()],
            timeout: Duration::from_millis(500),
            attempts: 1,
            // Each look asks anew.
            ttl_max: Duration::ZERO,
            negative_ttl_max: Duration::ZERO,
            ..DnsSettings::default()
        };
        let resolver = Arc::new(SystemResolver::new(&dns).unwrap());
        let tls = ClientTls::with_roots(vec![pages.certificate.clone()]).unwrap();
        let fetcher = Fetcher::new(resolver.clone(), Arc::new(tls));
        Self { store: Arc::new(MemoryStore::new()), pages, zone, resolver, fetcher }
    }

    fn asking(&self) -> Asking<'_> {
        let limits = FetchLimits {
            port: self.pages.address.port(),
            reach: Reach::Anywhere,
            patience: Duration::from_secs(20),
            body_bytes_max: 64 * 1024,
        };
        Asking { resolver: &*self.resolver, fetcher: &self.fetcher, limits }
    }

    fn open(&self) -> TlsPolicies {
        TlsPolicies::open(self.store.clone()).unwrap()
    }

    async fn mode(&self, policies: &TlsPolicies, now: Timestamp) -> Option<&'static str> {
        policies.policy(&domain(), &self.asking(), now).await.map(|policy| policy.mode.word())
    }
}

#[tokio::test]
async fn a_policy_is_fetched_once_and_kept_over_a_restart() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    assert_eq!(stage.mode(&policies, NOW).await, Some("enforce"));
    assert_eq!(stage.mode(&policies, NOW.plus(HOUR)).await, Some("enforce"));
    let reopened = stage.open();
    assert_eq!(stage.mode(&reopened, NOW.plus(HOUR)).await, Some("enforce"));
    assert_eq!(stage.pages.asked(), 1);
    assert!(policies.policy(&domain(), &stage.asking(), NOW).await.unwrap().names("mx.shop.example"));
}

#[tokio::test]
async fn another_id_has_the_policy_fetched_anew() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    assert_eq!(stage.mode(&policies, NOW).await, Some("enforce"));
    stage.pages.say(text("none", 86_400), false);
    assert_eq!(stage.mode(&policies, NOW).await, Some("enforce"), "nobody announced it yet");
    stage.zone.replace(zone("2"));
    assert_eq!(stage.mode(&policies, NOW).await, Some("none"));
    assert_eq!(policies.kept(&domain(), NOW).unwrap().id, "2");
}

#[tokio::test]
async fn a_kept_policy_outlives_silence_until_it_runs_out() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    stage.mode(&policies, NOW).await;
    let before = NOW.plus(6 * DAY);
    for (what, zone) in [
        ("the record is gone", Zone::new()),
        ("DNS fails", zone("2").trouble("_mta-sts.shop.example", Trouble::ServerFailure)),
        ("two records", zone("2").txt("_mta-sts.shop.example", "v=STSv1; id=3;")),
    ] {
        stage.zone.replace(zone);
        assert_eq!(stage.mode(&policies, before).await, Some("enforce"), "{what}");
        assert_eq!(stage.mode(&policies, NOW.plus(7 * DAY)).await, None, "{what}");
    }
}

#[tokio::test]
async fn a_fetch_that_fails_keeps_the_policy_and_is_not_repeated_at_once() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    stage.mode(&policies, NOW).await;
    stage.zone.replace(zone("2"));
    let html = page("200 OK", "Content-Type: text/html\r\n", "<p>hello</p>");
    let moved = page("301 Moved", "Location: https://elsewhere.example/\r\nContent-Type: text/plain\r\n", "");
    let rubbish = page("200 OK", "Content-Type: text/plain\r\n", "version: STSv1\r\nmode: enforce\r\n");
    let mut now = NOW;
    for (number, said) in [html, moved, rubbish, b"no http\r\n\r\n".to_vec()].into_iter().enumerate() {
        stage.pages.say(said, false);
        assert_eq!(stage.mode(&policies, now).await, Some("enforce"), "{number}");
        assert_eq!(stage.mode(&policies, now).await, Some("enforce"), "{number}");
        assert_eq!(stage.pages.asked(), number + 2, "RFC 8461 s3.3: not at once again");
        now = now.plus(FETCH_PAUSE);
    }
    stage.pages.say(text("testing", 86_400), false);
    assert_eq!(stage.mode(&policies, now).await, Some("testing"));
}

#[tokio::test]
async fn without_a_policy_kept_a_failed_fetch_is_no_policy() {
    let stage = Stage::new().await;
    let policies = stage.open();
    assert_eq!(stage.mode(&policies, NOW).await, None);
    assert_eq!(stage.pages.asked(), 1);
    let other = Domain::parse("other.example").unwrap();
    assert_eq!(policies.policy(&other, &stage.asking(), NOW).await, None);
    assert_eq!(stage.pages.asked(), 1, "nothing is announced, so nothing is asked");
}

#[tokio::test]
async fn policies_in_use_are_fetched_anew_before_they_run_out_and_others_are_not() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    stage.mode(&policies, NOW).await;
    policies.refresh(&stage.asking(), NOW.plus(23 * HOUR)).await;
    assert_eq!(stage.pages.asked(), 1, "too early");
    policies.refresh(&stage.asking(), NOW.plus(DAY)).await;
    assert_eq!(stage.pages.asked(), 2);
    assert_eq!(policies.kept(&domain(), NOW.plus(DAY)).unwrap().until(), NOW.plus(8 * DAY));
    // The policy host is down for two days: what is kept holds, and is tried again and again.
    stage.pages.say(page("500 Oops", "", ""), false);
    for days in [2, 3] {
        policies.refresh(&stage.asking(), NOW.plus(days * DAY)).await;
        assert_eq!(stage.pages.asked(), usize::try_from(days).unwrap() + 1);
    }
    assert_eq!(policies.kept(&domain(), NOW.plus(4 * DAY)).unwrap().until(), NOW.plus(8 * DAY));
    // Nobody sends there any more.
    stage.pages.say(text("enforce", 31_557_600), false);
    policies.refresh(&stage.asking(), NOW.plus(4 * DAY)).await;
    let asked = stage.pages.asked();
    policies.refresh(&stage.asking(), NOW.plus(40 * DAY)).await;
    assert_eq!(stage.pages.asked(), asked);
}

#[tokio::test]
async fn a_policy_that_has_run_out_leaves_the_store() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 3_600), false);
    let policies = stage.open();
    stage.mode(&policies, NOW).await;
    stage.zone.replace(Zone::new());
    assert!(stage.store.get(&key(&domain())).unwrap().is_some());
    policies.refresh(&stage.asking(), NOW.plus(HOUR)).await;
    assert_eq!(stage.store.get(&key(&domain())).unwrap(), None);
    assert_eq!(policies.kept(&domain(), NOW), None);
}

#[tokio::test]
async fn a_policy_that_cannot_be_written_holds_all_the_same() {
    let stage = Stage::new().await;
    stage.pages.say(text("enforce", 604_800), false);
    let policies = stage.open();
    stage.store.fail_next(1, CommitError::Failed("by the test".to_owned()));
    assert_eq!(stage.mode(&policies, NOW).await, Some("enforce"));
    assert_eq!(stage.mode(&policies, NOW).await, Some("enforce"));
    assert_eq!(stage.pages.asked(), 1);
}
