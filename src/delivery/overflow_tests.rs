//! What may leave by a shared virtual IP, and by which.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::access::Actor;
use crate::background::Shutdown;
use crate::events::{EventKind, MailEvent};
use crate::mail::{Address, Body, Class, MailParameters, Notify, QueueId, ReversePath, Sealed, TenantId};
use crate::net::{LookupError, Mx};
use crate::queue::{self, Needs8bit, NewMessage, NewRecipient, Policy};
use crate::routing::TransportName;
use crate::store::MemoryStore;

const WARMED: VipId = VipId(1);
const NOW: Timestamp = Timestamp(1_795_342_500_000);

/// Answers by the sender's domain and the address; counts what it is asked.
#[derive(Default)]
pub(in crate::delivery) struct Records {
    permits: Vec<(&'static str, &'static str, Spf)>,
    asked: AtomicUsize,
    /// Nothing is answered.
    is_silent: AtomicBool,
}

impl Records {
    pub(in crate::delivery) fn new(permits: &[(&'static str, &'static str, Spf)]) -> Arc<Self> {
        Arc::new(Self { permits: permits.to_vec(), ..Self::default() })
    }
}

#[async_trait]
impl Resolver for Records {
    async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn txt(&self, _: &Domain) -> Result<Vec<String>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn spf(&self, asked: &SpfQuestion<'_>) -> SpfAnswer {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let (_, domain) = asked.sender.rsplit_once('@').unwrap();
        let address = asked.address.to_string();
        let found = self.permits.iter().find(|(own, permitted, _)| *own == domain && *permitted == address);
        SpfAnswer { result: found.map_or(Spf::Fail, |(_, _, spf)| *spf), good_until: None }
    }
}

struct Bench {
    queue: Arc<Queue>,
    overflows: Overflows,
    records: Arc<Records>,
    moved: HashMap<VipId, usize>,
    stop: Shutdown,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bench {
    async fn new(permits: &[(&'static str, &'static str, Spf)]) -> Self {
        let store = Arc::new(MemoryStore::new());
        let queue = Queue::open(store.clone(), store, queue::Settings::default()).await.unwrap();
        let policy = Policy { overflow_to: Arc::new(|_| vec![VipId(8), VipId(9), VipId(10)]), ..Policy::default() };
        let records = Records::new(permits);
        let return_path: ReturnAddress =
            Arc::new(|_, number, name| Address::parse(&format!("tag{number}@{name}")).unwrap());
        let overflows = Overflows::new(records.clone(), return_path);
        let (queue, stop) = (Arc::new(queue.with_policy(policy)), Shutdown::new());
        let (keeper, keeping) = (queue.clone(), stop.clone());
        tokio::spawn(async move { keeper.keep(&keeping).await });
        Self { queue, overflows, records, moved: HashMap::new(), stop }
    }

    async fn owes(&self, reverse_path: &str, return_path: Option<&str>) -> QueueId {
        let mut new = message();
        new.reverse_path = ReversePath((!reverse_path.is_empty()).then(|| Address::parse(reverse_path).unwrap()));
        new.return_path = return_path.map(|name| Domain::parse(name).unwrap());
        let id = new.id;
        self.queue.enqueue(new, NOW).await.unwrap();
        id
    }

    async fn sweep(&mut self, offers: Vec<Offer>) -> Swept {
        let (day, now) = (Duration::from_secs(3_600), Instant::now());
        let of = (&self.queue, &lane(WARMED), &Arc::from("mx.peer.example"));
        let sweep = self.overflows.begin(of, offers, day, now);
        let swept = sweep.run().await;
        for (vip, count) in &swept.moved {
            *self.moved.entry(*vip).or_default() += *count as usize;
        }
        // What was moved is put in its place by housekeeping.
        for _ in 0..6_000 {
            if self.moved.iter().all(|(vip, count)| self.queue.ready(&lane(*vip)) == *count) {
                return swept;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within a minute: what was moved waits there");
    }

    fn waits_at(&self, vip: u64) -> usize {
        self.queue.ready(&lane(VipId(vip)))
    }
}

fn lane(vip: VipId) -> Lane {
    let (tenant, class) = (TenantId(2), Class::Transactional);
    Lane { vip, tenant, class, transport: TransportName::Mx, next_hop: Domain::parse("peer.example").unwrap() }
}

fn message() -> NewMessage {
    let address = Address::parse("r@peer.example").unwrap();
    NewMessage {
        id: QueueId::new(NOW),
        tenant: TenantId(2),
        account: None,
        vip: WARMED,
        class: Class::Transactional,
        source: "smtp".to_owned(),
        reverse_path: ReversePath(None),
        parameters: MailParameters::default(),
        message: Sealed {
            head: bytes::Bytes::from_static(b"Subject: s\r\n\r\n"),
            body: Body::Memory(bytes::Bytes::from_static(b"hi\r\n")),
        },
        needs_8bit: Needs8bit::No,
        subject: String::new(),
        message_id: String::new(),
        header_from: String::new(),
        signatures: Vec::new(),
        recipients: vec![NewRecipient { address, notify: Notify::NEVER, orcpt: None, lane: Some(lane(WARMED)) }],
        labels: Default::default(),
        return_path: None,
        signed: None,
        notice_about: None,
        beside: Default::default(),
    }
}

fn offer(vip: u64, addresses: &[&str]) -> Offer {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let ehlo = Domain::parse(&format!("mx{vip}.vips.example")).unwrap();
    Offer { vip: VipId(vip), ehlo, addresses, room: SWEEP_MAX, lent: 0 }
}

fn moved(swept: &Swept, vip: u64) -> u64 {
    swept.moved.get(&VipId(vip)).copied().unwrap_or(0)
}

#[tokio::test]
async fn only_a_pass_for_every_address_lets_mail_leave_by_a_shared_one() {
    let others = [Spf::Fail, Spf::SoftFail, Spf::Neutral, Spf::None, Spf::TemporaryError, Spf::PermanentError];
    for spf in others {
        let mut bench = Bench::new(&[("shop.example", "192.0.2.8", spf)]).await;
        bench.owes("s@shop.example", None).await;
        let swept = bench.sweep(vec![offer(8, &["192.0.2.8"])]).await;
        assert_eq!((moved(&swept, 8), bench.waits_at(1), bench.waits_at(8)), (0, 1, 0), "{spf:?}");
        let word = format!("SPF of shop.example does not permit 192.0.2.8 ({})", spf.word());
        assert_eq!(swept.kept, Some(word));
    }
    let both = [("shop.example", "192.0.2.8", Spf::Pass), ("shop.example", "2001:db8::8", Spf::Pass)];
    for (permits, count) in [(&both[..], 1), (&both[..1], 0)] {
        let mut bench = Bench::new(permits).await;
        bench.owes("s@shop.example", None).await;
        let swept = bench.sweep(vec![offer(8, &["192.0.2.8", "2001:db8::8"])]).await;
        assert_eq!((moved(&swept, 8), bench.waits_at(8)), (count, count as usize), "{permits:?}");
    }
}

#[tokio::test]
async fn the_domain_judged_is_the_one_that_will_be_said_in_mail() {
    let permits = [("bounce.shop.example", "192.0.2.8", Spf::Pass), ("mx9.vips.example", "192.0.2.9", Spf::Pass)];
    let mut bench = Bench::new(&permits).await;
    let own = bench.owes("s@shop.example", Some("bounce.shop.example")).await;
    bench.owes("s@shop.example", None).await;
    // Without a reverse-path the EHLO name stands for it (RFC 7208 s2.4).
    bench.owes("", None).await;
    let swept = bench.sweep(vec![offer(8, &["192.0.2.8"]), offer(9, &["192.0.2.9"])]).await;
    assert_eq!((moved(&swept, 8), moved(&swept, 9), bench.waits_at(1)), (1, 1, 1));
    assert_eq!(swept.kept.as_deref(), Some("SPF of shop.example does not permit 192.0.2.8 (fail)"));
    let events = bench.queue.show(&Actor::local(0), own).unwrap().events;
    let by = events.into_iter().find_map(|event| match event.kind {
        EventKind::Mail(_, MailEvent::Moved { by, .. }) => Some(by),
        _ => None,
    });
    assert_eq!(by.unwrap(), "system: warm-up overflow, SPF of bounce.shop.example permits 192.0.2.8");
}

#[tokio::test]
async fn dns_is_asked_once_for_a_domain_and_an_address_until_the_answer_is_old() {
    let mut bench = Bench::new(&[("shop.example", "192.0.2.8", Spf::Pass)]).await;
    for _ in 0..3 {
        for number in 0..20 {
            bench.owes(&format!("s{number}@shop.example"), None).await;
        }
        bench.sweep(vec![offer(8, &["192.0.2.8"]), offer(9, &["192.0.2.9"])]).await;
    }
    assert_eq!((bench.records.asked.load(Ordering::SeqCst), bench.waits_at(8)), (2, 60));
    let (domain, address) = (Domain::parse("shop.example").unwrap(), "192.0.2.8".parse().unwrap());
    let judgements = &bench.overflows.judgements;
    let now = Instant::now();
    assert_eq!(judgements.known(&domain, address, now), Some(Spf::Pass));
    assert_eq!(judgements.known(&domain, address, now + PASS_KEPT_MAX), None);
    let kept = |result, good_for| {
        let good_until = Some(now + Duration::from_secs(good_for));
        judgements.learn(domain.clone(), address, SpfAnswer { result, good_until }, now);
        let is_known = |secs: &u64| judgements.known(&domain, address, now + Duration::from_secs(*secs)).is_some();
        [0, 5, 59, 299, 599, 9_000].iter().take_while(|secs| is_known(secs)).count()
    };
    assert_eq!(
        (kept(Spf::Pass, 60), kept(Spf::Pass, 9_999)),
        (3, 5),
        "no longer than the records are good, nor than we say"
    );
    assert_eq!((kept(Spf::Fail, 9_999), kept(Spf::TemporaryError, 9_999), kept(Spf::Fail, 0)), (4, 3, 1));
}

#[tokio::test]
async fn judgements_are_bounded() {
    let (judgements, now) = (Judgements::default(), Instant::now());
    for number in 0..=JUDGEMENTS_MAX {
        let domain = Domain::parse(&format!("d{number}.example")).unwrap();
        let answer = SpfAnswer { result: Spf::Fail, good_until: None };
        judgements.learn(domain, "192.0.2.8".parse().unwrap(), answer, now);
    }
    assert!(records::lock(&judgements.0).len() <= JUDGEMENTS_MAX);
}

#[tokio::test]
async fn who_got_least_takes_it_and_nobody_gets_more_than_there_is_room_for() {
    let mut bench = Bench::new(&[
        ("shop.example", "192.0.2.8", Spf::Pass),
        ("shop.example", "192.0.2.9", Spf::Pass),
        ("shop.example", "192.0.2.10", Spf::Pass),
    ])
    .await;
    for _ in 0..30 {
        bench.owes("s@shop.example", None).await;
    }
    let offers = vec![
        Offer { lent: 4, ..offer(8, &["192.0.2.8"]) },
        offer(9, &["192.0.2.9"]),
        Offer { room: 3, ..offer(10, &["192.0.2.10"]) },
    ];
    let swept = bench.sweep(offers).await;
    // 3 to the one with little room; of the others the first was 4 ahead: 12 and 15, or the other way round.
    let (first, second, third) = (moved(&swept, 8), moved(&swept, 9), moved(&swept, 10));
    assert_eq!((third, first + second), (3, 27));
    assert!((first + 4).abs_diff(second) <= 1, "{first} and {second}");
    let lane = lane(WARMED);
    bench.overflows.ended(&lane, Some(swept), Instant::now());
    let path = Path { site: "mx.peer.example".into(), vip: VipId(9) };
    assert_eq!(bench.overflows.lent(&path), second);
}

#[tokio::test]
async fn one_sweep_moves_no_more_than_its_limit_and_gives_the_rest_its_turn() {
    let mut bench = Bench::new(&[("shop.example", "192.0.2.8", Spf::Pass)]).await;
    for number in 0..2 * SWEEP_MAX + 10 {
        let sender = if number % 2 == 0 { "s@shop.example" } else { "s@other.example" };
        bench.owes(sender, None).await;
    }
    let mut count = 0;
    for number in 0..3 {
        let swept = bench.sweep(vec![offer(8, &["192.0.2.8"])]).await;
        let own = moved(&swept, 8);
        count += own;
        assert!(own < SWEEP_MAX as u64 && swept.kept.is_some() && (number == 2 || own > 50), "{own}");
    }
    assert_eq!(count, SWEEP_MAX as u64 + 5, "those that may not go are not looked at again and again");
    assert!(bench.waits_at(1) <= 10, "they wait out their pause");
    assert_eq!(bench.queue.totals().claimed, 0);
}

#[tokio::test]
async fn a_lane_rests_between_its_sweeps_and_says_why() {
    let (mut bench, now) = (Bench::new(&[]).await, Instant::now());
    let lane = lane(WARMED);
    let kept = Some("SPF of shop.example does not permit 192.0.2.8 (fail)".to_owned());
    bench.overflows.ended(&lane, Some(Swept { kept: kept.clone(), ..Swept::default() }), now);
    let (until, words) = bench.overflows.rests(&lane, now).unwrap();
    assert_eq!(until, now + REST);
    assert_eq!(words, format!("; not moved to a shared virtual IP: {}", kept.clone().unwrap()));
    let moved = HashMap::from([(VipId(8), 7)]);
    bench.overflows.ended(&lane, Some(Swept { moved, kept, site: None }), now);
    let (until, words) = bench.overflows.rests(&lane, now).unwrap();
    assert_eq!(until, now + GAP);
    assert!(words.starts_with("; 7 messages were moved to a shared virtual IP just now; not moved"), "{words}");
    bench.overflows.forget_old(now + GAP);
    assert!(bench.overflows.rests(&lane, now).is_none());
    bench.overflows.ended(&lane, None, now);
    assert_eq!(bench.overflows.rests(&lane, now), Some((now + REST, "")));
}

#[tokio::test]
async fn one_tenant_s_sweeps_leave_room_for_another_s() {
    let (mut bench, now) = (Bench::new(&[]).await, Instant::now());
    let lane = |tenant, number| {
        let next_hop = Domain::parse(&format!("d{number}.example")).unwrap();
        Lane { tenant: TenantId(tenant), next_hop, ..lane(WARMED) }
    };
    let mut begun = 0;
    while bench.overflows.has_room(TenantId(2)) {
        let _ = bench.overflows.begin((&bench.queue, &lane(2, begun), &"mx".into()), Vec::new(), REST, now);
        begun += 1;
    }
    assert_eq!((begun, bench.overflows.has_room(TenantId(3))), (SWEEPS.per_tenant_max, true));
    bench.overflows.ended(&lane(2, 0), None, now);
    assert!(bench.overflows.has_room(TenantId(2)));
}

#[tokio::test]
async fn a_sweep_that_is_given_up_gives_everything_back() {
    let mut bench = Bench::new(&[("shop.example", "192.0.2.8", Spf::Pass)]).await;
    bench.records.is_silent.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        bench.owes("s@shop.example", None).await;
    }
    let of = (&bench.queue, &lane(WARMED), &Arc::from("mx.peer.example"));
    let sweep = bench.overflows.begin(of, vec![offer(8, &["192.0.2.8"])], REST, Instant::now());
    let mut run = Box::pin(sweep.run());
    assert!(futures_util::poll!(run.as_mut()).is_pending());
    assert_eq!(bench.queue.totals().claimed, 20);
    drop(run);
    assert_eq!((bench.queue.totals().claimed, bench.waits_at(1), bench.waits_at(8)), (0, 20, 0));
}

#[tokio::test]
async fn what_dns_does_not_say_in_time_is_not_known_and_the_mail_waits() {
    let mut bench = Bench::new(&[("shop.example", "192.0.2.8", Spf::Pass)]).await;
    bench.records.is_silent.store(true, Ordering::SeqCst);
    bench.owes("s@shop.example", None).await;
    let of = (&bench.queue, &lane(WARMED), &Arc::from("mx.peer.example"));
    let sweep = bench.overflows.begin(of, vec![offer(8, &["192.0.2.8"])], REST, Instant::now());
    let swept = sweep.run_within(Duration::from_millis(20)).await;
    assert_eq!((swept.count(), bench.waits_at(1), bench.waits_at(8)), (0, 1, 0));
    assert_eq!(swept.kept.as_deref(), Some("SPF of shop.example is not known yet"));
}
