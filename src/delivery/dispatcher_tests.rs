//! The loop with a transport of its own making: what a fault of ours does to other mail.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::access::Actor;
use crate::delivery::outcome::Phase;
use crate::delivery::overflow::tests::Records;
use crate::delivery::transport::{Ending, Families, same_for_all};
use crate::events::{EventKind, MailEvent, Peer};
use crate::mail::{
    Address, Body, Class, Domain, MailParameters, Notify, QueueId, Reply, ReversePath, Sealed, TenantId,
};
use crate::queue::{Needs8bit, NewMessage, NewRecipient, Onward};
use crate::store::MemoryStore;
use crate::vips::{NewVip, Owner, Vips};

/// Delivers everything but mail to `bad@`, at which it panics.
struct Faulty(AtomicUsize);

#[async_trait]
impl Transport for Faulty {
    async fn site(&self, _: &Lane, _: Families) -> Result<Site, NoSite> {
        Ok(Site { name: "mx".into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None })
    }

    async fn attempt(&self, mut job: Job) -> Report {
        let mut messages = 0;
        while let Some(held) = job.hand.next_claim().await {
            let claim = held.claim().unwrap();
            if claim.record.recipients[0].address.local_part() == "bad" {
                self.0.fetch_add(1, Ordering::SeqCst);
                panic!("a fault of ours, made by a test");
            }
            let peer = Peer { host: "mx".into(), address: "a".into(), source: "b".into(), tls: "none".into() };
            let onward = Onward::Ourselves;
            let outcome = Outcome::Delivered { peer, reply: Reply::enhanced(250, 0, 0, "ok"), onward };
            let outcomes = same_for_all(claim, &outcome);
            job.hand.settle(held, outcomes).await;
            messages += 1;
        }
        Report { messages, ..Report::default() }
    }
}

/// Gets as far as this, and no further.
struct Stuck(Phase);

#[async_trait]
impl Transport for Stuck {
    async fn site(&self, _: &Lane, _: Families) -> Result<Site, NoSite> {
        Ok(Site { name: "mx".into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None })
    }

    async fn attempt(&self, mut job: Job) -> Report {
        let held = job.hand.next_claim().await;
        job.progress.step(self.0);
        job.hand.script().sent(crate::mail::Sent::Text);
        std::future::pending::<()>().await;
        drop(held);
        Report::default()
    }
}

fn message(to: &str, vip: crate::mail::VipId) -> NewMessage {
    message_of(TenantId(1), to, vip)
}

fn message_of(tenant: TenantId, to: &str, vip: crate::mail::VipId) -> NewMessage {
    let address = Address::parse(to).unwrap();
    let next_hop = address.domain().clone();
    let lane = Lane { vip, tenant, class: Class::Transactional, transport: TransportName::Mx, next_hop };
    NewMessage {
        id: QueueId::new(Timestamp::now()),
        tenant,
        account: None,
        vip,
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
        recipients: vec![NewRecipient { address, notify: Notify::NEVER, orcpt: None, lane: Some(lane) }],
        labels: Default::default(),
        return_path: None,
        signed: None,
        notice_about: None,
        beside: Default::default(),
    }
}

fn told(queue: &Queue, id: QueueId) -> Vec<MailEvent> {
    let events = queue.show(&Actor::local(0), id).unwrap().events;
    let of_mail =
        |event: crate::events::Event| if let EventKind::Mail(_, event) = event.kind { Some(event) } else { None };
    events.into_iter().filter_map(of_mail).collect()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within a minute: {what}");
}

/// A loop over this transport, its queue, a virtual IP, and what stops it.
async fn looping(
    transport: Arc<dyn Transport>,
    settings: Settings,
) -> (Arc<Queue>, crate::mail::VipId, Shutdown, tokio::task::JoinHandle<()>, tokio::task::JoinHandle<()>) {
    let (dispatcher, queue, vip) = dispatcher(transport, settings).await;
    let stop = Shutdown::new();
    let (keeper, keeping) = (queue.clone(), stop.clone());
    let chores = tokio::spawn(async move { keeper.keep(&keeping).await });
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    (queue, vip, stop, running, chores)
}

/// The loop's state over this transport, its queue, and a virtual IP.
async fn dispatcher(transport: Arc<dyn Transport>, settings: Settings) -> (Dispatcher, Arc<Queue>, crate::mail::VipId) {
    let store = Arc::new(MemoryStore::new());
    let queue = Arc::new(Queue::open(store.clone(), store.clone(), crate::queue::Settings::default()).await.unwrap());
    let vips = Arc::new(Vips::open(store.clone()).unwrap());
    let new = NewVip {
        ipv4: Some([127, 0, 0, 1].into()),
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: Domain::parse("mx.example.com").unwrap(),
        owner: Owner::Shared,
    };
    let vip = vips.add(&Actor::local(0), new, Timestamp::now()).await.unwrap().id;
    let (_, settings) = watch::channel(Arc::new(settings));
    let return_path: crate::delivery::ReturnAddress =
        Arc::new(|_, _, name| Address::parse(&format!("t@{name}")).unwrap());
    let wiring = Wiring {
        queue: queue.clone(),
        screen: Screen { queue: queue.clone(), suppressed: Arc::new(|_, _, _| Ok(false)) },
        mx: transport.clone(),
        smarthost: transport,
        delivery: Delivery::open(store.clone()).unwrap(),
        pacing: Arc::new(Pacing::open(store.clone(), &Settings::default(), queue.now()).unwrap()),
        gate: Arc::new(Gate::new(crate::gate::Settings::default())),
        settings,
        overflows: Overflows::new(Records::new(&[]), return_path),
    };
    (Dispatcher::new(wiring, Sources::new(vips, store)), queue, vip)
}

#[tokio::test]
async fn an_attempt_that_is_stuck_is_ended_counted_and_its_trail_names_the_phase() {
    for (phase, expected) in [(Phase::Body, Why::Network), (Phase::FinalDot, Why::UnknownOutcome)] {
        let (queue, vip, stop, running, chores) = looping(Arc::new(Stuck(phase)), impatient()).await;
        let stuck = message("ann@shop.example", vip);
        let id = stuck.id;
        queue.enqueue(stuck, Timestamp::now()).await.unwrap();
        let is_told = |event: &MailEvent| match event {
            MailEvent::Stalled { recipients, phase: told } => *recipients == [0] && told == phase.name(),
            _ => false,
        };
        until("its trail says it", || told(&queue, id).iter().any(is_told)).await;
        let is_put_off = |event: &MailEvent| match event {
            MailEvent::Deferred { why, due_in_secs, .. } => *why == expected && *due_in_secs >= 240,
            _ => false,
        };
        until("it is put off", || told(&queue, id).iter().any(is_put_off)).await;
        // What was said until then is kept, and that it had no end.
        let said = told(&queue, id).into_iter().find_map(|event| match event {
            MailEvent::Attempted { recipients, dialogue } => Some((recipients, dialogue.read().unwrap().steps)),
            _ => None,
        });
        let (recipients, steps) = said.unwrap();
        assert_eq!((recipients, steps.len(), &steps[0].sent), (vec![0], 1, &crate::mail::Sent::Text));
        assert_eq!(steps[0].heard, crate::mail::Heard::Nothing);
        let shown = queue.show(&Actor::local(0), id).unwrap();
        assert_eq!(shown.records[0].1.attempts, 1, "{:?}", shown.events);
        stop.cancel();
        let _ = tokio::join!(running, chores);
    }
}

/// Settings whose watchdog bites soon.
fn impatient() -> Settings {
    let timeouts = crate::delivery::Timeouts { stall: Duration::from_millis(50), ..Default::default() };
    Settings { timeouts, ..Settings::default() }
}

#[tokio::test]
async fn mail_whose_attempts_are_stuck_expires() {
    let (queue, vip, stop, running, chores) = looping(Arc::new(Stuck(Phase::Body)), impatient()).await;
    queue.adjust(crate::queue::Settings { expire_after: Duration::from_millis(1), ..Default::default() });
    let stuck = message("ann@shop.example", vip);
    let id = stuck.id;
    queue.enqueue(stuck, Timestamp::now()).await.unwrap();
    let is_over = || told(&queue, id).iter().any(|event| matches!(event, MailEvent::Expired { .. }));
    until("it is given up", is_over).await;
    stop.cancel();
    let _ = tokio::join!(running, chores);
}

/// Nobody is there.
struct Gone;

#[async_trait]
impl Transport for Gone {
    async fn site(&self, _: &Lane, _: Families) -> Result<Site, NoSite> {
        Ok(Site { name: "mx".into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None })
    }

    async fn attempt(&self, mut job: Job) -> Report {
        job.hand.give_back();
        let outcome = Outcome::Deferred { why: Why::Network, detail: "nobody is there".to_owned(), peer: None };
        Report { ending: Ending::Unreachable("nobody is there".to_owned(), outcome), ..Report::default() }
    }
}

#[tokio::test]
async fn mail_does_not_expire_on_a_failure_of_before_it_had_waited_too_long() {
    // Two minutes of pause after a failure: what falls due meanwhile shares that failure.
    let mut settings = Settings::default();
    settings.shaping.pause_first = Duration::from_secs(120);
    let (queue, vip, stop, running, chores) = looping(Arc::new(Gone), settings).await;
    let waiting = message("ann@shop.example", vip);
    let id = waiting.id;
    queue.enqueue(waiting, Timestamp::now()).await.unwrap();
    let tries = || told(&queue, id).iter().filter(|event| matches!(event, MailEvent::Deferred { .. })).count();
    until("it failed", || tries() == 1).await;
    // From now on it has waited too long; the failure is older.
    let waited = || queue.now().since(queue.message(id).unwrap().unwrap().accepted_at);
    let limit = waited() + Duration::from_millis(1);
    queue.adjust(crate::queue::Settings { expire_after: limit, ..Default::default() });
    until("it has waited too long", || waited() > limit).await;
    queue.retry(&Actor::local(0), id, &[], Timestamp::now()).await.unwrap();
    until("it shared that failure", || tries() == 2).await;
    let events = told(&queue, id);
    assert!(!events.iter().any(|event| matches!(event, MailEvent::Expired { .. })), "{events:?}");
    stop.cancel();
    running.await.unwrap();
    chores.await.unwrap();
}

#[tokio::test]
async fn mail_at_which_attempts_panic_is_held_and_the_other_mail_of_its_site_goes_on() {
    let faulty = Arc::new(Faulty(AtomicUsize::new(0)));
    let settings = Settings { given_back_pause: Duration::from_millis(20), ..Settings::default() };
    let (queue, vip, stop, running, chores) = looping(faulty.clone(), settings).await;
    let (bad, good) = (message("bad@shop.example", vip), message("ann@shop.example", vip));
    let (bad_id, good_id) = (bad.id, good.id);
    queue.enqueue(bad, Timestamp::now()).await.unwrap();
    queue.enqueue(good, Timestamp::now()).await.unwrap();
    let is_delivered = |id| told(&queue, id).iter().any(|event| matches!(event, MailEvent::Delivered { .. }));
    until("the bad one is held", || told(&queue, bad_id).iter().any(|event| matches!(event, MailEvent::Held { .. })))
        .await;
    until("the good one is delivered", || is_delivered(good_id)).await;
    let late = message("bert@shop.example", vip);
    let late_id = late.id;
    queue.enqueue(late, Timestamp::now()).await.unwrap();
    until("later mail is delivered", || is_delivered(late_id)).await;
    assert_eq!(faulty.0.load(Ordering::SeqCst), 3, "no attempt after it was held");
    stop.cancel();
    running.await.unwrap();
    chores.await.unwrap();
}

/// Domains called `silent` are never found, peers called `tarpit` never answer; the others are found and take
/// everything at once.
#[derive(Default)]
struct Uneven(std::sync::Mutex<HashSet<Domain>>);

#[async_trait]
impl Transport for Uneven {
    async fn site(&self, lane: &Lane, _: Families) -> Result<Site, NoSite> {
        if lane.next_hop.as_str().starts_with("silent") {
            std::future::pending::<()>().await;
        }
        let name = lane.next_hop.as_str().into();
        Ok(Site { name, provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None })
    }

    async fn attempt(&self, mut job: Job) -> Report {
        let mut messages = 0;
        while let Some(held) = job.hand.next_claim().await {
            if job.lane.next_hop.as_str().starts_with("tarpit") {
                std::future::pending::<()>().await;
            }
            let peer = Peer { host: "mx".into(), address: "a".into(), source: "b".into(), tls: "none".into() };
            let onward = Onward::Ourselves;
            let outcome = Outcome::Delivered { peer, reply: Reply::enhanced(250, 0, 0, "ok"), onward };
            let outcomes = same_for_all(held.claim().unwrap(), &outcome);
            job.hand.settle(held, outcomes).await;
            self.0.lock().unwrap().insert(job.lane.next_hop.clone());
            messages += 1;
        }
        Report { messages, ..Report::default() }
    }
}

/// The loop in virtual time: a pass each 100 ms, as if something stirred it again and again.
struct Virtual {
    dispatcher: Dispatcher,
    queue: Arc<Queue>,
    vip: crate::mail::VipId,
    uneven: Arc<Uneven>,
    now: Instant,
}

impl Virtual {
    async fn begin(settings: Settings) -> Self {
        let uneven = Arc::new(Uneven::default());
        let (dispatcher, queue, vip) = dispatcher(uneven.clone(), settings).await;
        Self { dispatcher, queue, vip, uneven, now: Instant::now() }
    }

    async fn owe(&self, tenant: u64, domain: &str) {
        let new = message_of(TenantId(tenant), &format!("ann@{domain}"), self.vip);
        self.queue.enqueue(new, Timestamp::now()).await.unwrap();
    }

    async fn step(&mut self) {
        self.now += Duration::from_millis(100);
        self.dispatcher.pass(self.now);
        for _ in 0..20 {
            tokio::task::yield_now().await;
            while let Some(ended) = self.dispatcher.tasks.try_join_next_with_id() {
                self.dispatcher.finished(ended, self.now);
            }
        }
    }

    /// How long mail to that domain, which has just come in, takes.
    async fn delay(&mut self, tenant: u64, domain: &str) -> Duration {
        let began = self.now;
        self.owe(tenant, domain).await;
        let domain = Domain::parse(domain).unwrap();
        while self.now - began < Duration::from_secs(60) {
            self.step().await;
            if self.uneven.0.lock().unwrap().remove(&domain) {
                return self.now - began;
            }
        }
        panic!("mail to {domain} was not delivered in a minute");
    }
}

#[tokio::test]
async fn silent_domains_of_one_tenant_keep_nobody_else_s_lookups_waiting() {
    let mut time = Virtual::begin(Settings::default()).await;
    for number in 0..1_500 {
        time.owe(1, &format!("silent{number}.example")).await;
    }
    for _ in 0..5 {
        time.step().await;
    }
    let most = Duration::from_secs(2);
    for round in 0..30 {
        // Its place is looked up anew each minute.
        let known = time.delay(2, "known.example").await;
        let unknown = time.delay(2, &format!("new{round}.example")).await;
        assert!(known < most && unknown < most, "round {round}: {known:?}, {unknown:?}");
        for _ in 0..45 {
            time.step().await;
        }
    }
    assert_eq!(time.dispatcher.lookups.total(), 75, "and the others have their share");
}

#[tokio::test]
async fn a_tenant_without_a_connection_waits_neither_for_tarpits_nor_for_the_many_lanes_of_others() {
    let settings = Settings { connections_max: 40, connections_per_tenant_max: 30, ..Settings::default() };
    let mut time = Virtual::begin(settings).await;
    for number in 0..2_500 {
        for tenant in [1, 2] {
            time.owe(tenant, &format!("tarpit{number}-{tenant}.example")).await;
        }
    }
    for _ in 0..60 {
        time.step().await;
    }
    assert_eq!(time.dispatcher.jobs.total(), 38, "all but one part in twenty");
    for round in 0..5 {
        let delay = time.delay(3, &format!("shop{round}.example")).await;
        assert!(delay < Duration::from_millis(500), "round {round}: {delay:?}");
    }
}

#[tokio::test]
async fn the_loop_rests_once_a_whole_round_of_looks_began_nothing() {
    let settings = Settings { lookups_max: 10, lookups_per_tenant_max: 10, ..Settings::default() };
    let mut time = Virtual::begin(settings).await;
    for number in 0..2_500 {
        time.owe(1, &format!("silent{number}.example")).await;
    }
    let passes: Vec<bool> = (0..6)
        .map(|_| {
            let now = time.now;
            time.dispatcher.pass(now)
        })
        .collect();
    // The first of three looks began lookups; the next round begins nothing.
    assert_eq!(passes, [true, true, true, true, true, false]);
    let now = time.now;
    assert!(time.dispatcher.pass(now), "stirred, it looks at the first of them again");
}

/// Delivers everything, and notes by which virtual IP.
struct Noting(std::sync::Mutex<Vec<crate::mail::VipId>>);

#[async_trait]
impl Transport for Noting {
    async fn site(&self, _: &Lane, _: Families) -> Result<Site, NoSite> {
        Ok(Site { name: "mx".into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None })
    }

    async fn attempt(&self, mut job: Job) -> Report {
        let mut report = Report::default();
        while report.transactions < job.permit.quota.messages as usize {
            let Some(held) = job.hand.next_claim().await else { break };
            self.0.lock().unwrap().push(job.source.vip);
            let peer = Peer { host: "mx".into(), address: "a".into(), source: "b".into(), tls: "none".into() };
            let reply = Reply::enhanced(250, 0, 0, "ok");
            let outcome = Outcome::Delivered { peer, reply, onward: Onward::Ourselves };
            let outcomes = same_for_all(held.claim().unwrap(), &outcome);
            job.hand.settle(held, outcomes).await;
            (report.messages, report.transactions) = (report.messages + 1, report.transactions + 1);
        }
        report
    }
}

#[tokio::test]
async fn what_a_warm_up_has_no_room_for_leaves_by_shared_ones_in_turn_and_by_no_other() {
    let store = Arc::new(MemoryStore::new());
    let queue = Queue::open(store.clone(), store.clone(), crate::queue::Settings::default()).await.unwrap();
    let vips = Arc::new(Vips::open(store.clone()).unwrap());
    let (of_one, of_two) = (Owner::Tenant(TenantId(1)), Owner::Tenant(TenantId(2)));
    let mut made = Vec::new();
    for (last, owner) in
        [(1, of_one), (2, of_two), (3, Owner::Shared), (4, Owner::Shared), (5, Owner::Shared), (6, Owner::Shared)]
    {
        let ehlo = Domain::parse(&format!("mx{last}.example.com")).unwrap();
        let ipv4 = Some([127, 0, 63, last].into());
        let new = NewVip { ipv4, ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner };
        made.push(vips.add(&Actor::local(0), new, Timestamp::now()).await.unwrap().id);
    }
    // All but the last are named, that of another tenant too: whoever lets that through is not the only one to look.
    let named = made[..5].to_vec();
    let policy = crate::queue::Policy { overflow_to: Arc::new(move |_| named.clone()), ..Default::default() };
    let queue = Arc::new(queue.with_policy(policy));
    let pacing = Arc::new(Pacing::open(store.clone(), &Settings::default(), queue.now()).unwrap());
    let warm = |vip, step| {
        let warmup = crate::delivery::Warmup::new(&[step], queue.now()).unwrap();
        let (path, now) = (Path { site: "mx".into(), vip }, (queue.now(), Timestamp::now()));
        let pacing = Arc::clone(&pacing);
        async move { pacing.warm(&Actor::local(0), &path, Some(warmup), now).await.unwrap() }
    };
    // One message from their own today; the last of the named ones is being warmed, too.
    warm(made[0], 1).await;
    warm(made[4], 1).await;
    let transport = Arc::new(Noting(std::sync::Mutex::default()));
    // The null reverse-path: the EHLO names stand for it.
    let permits = ["2", "3", "4", "5", "6"].map(|last| {
        let (name, address) = (format!("mx{last}.example.com"), format!("127.0.63.{last}"));
        (&*name.leak(), &*address.leak(), crate::net::Spf::Pass)
    });
    let return_path: crate::delivery::ReturnAddress =
        Arc::new(|_, _, name| Address::parse(&format!("t@{name}")).unwrap());
    let (_, settings) = watch::channel(Arc::new(Settings::default()));
    let wiring = Wiring {
        queue: queue.clone(),
        screen: Screen { queue: queue.clone(), suppressed: Arc::new(|_, _, _| Ok(false)) },
        mx: transport.clone(),
        smarthost: transport.clone(),
        delivery: Delivery::open(store.clone()).unwrap(),
        pacing: Arc::clone(&pacing),
        gate: Arc::new(Gate::new(crate::gate::Settings::default())),
        settings,
        overflows: Overflows::new(Records::new(&permits), return_path),
    };
    let stop = Shutdown::new();
    let (keeper, keeping) = (queue.clone(), stop.clone());
    let chores = tokio::spawn(async move { keeper.keep(&keeping).await });
    for _ in 0..21 {
        queue.enqueue(message("ann@shop.example", made[0]), Timestamp::now()).await.unwrap();
    }
    let running = tokio::spawn(Dispatcher::new(wiring, Sources::new(vips, store)).run(stop.clone()));
    until("all have left", || transport.0.lock().unwrap().len() == 21).await;
    let left_by = |vip| transport.0.lock().unwrap().iter().filter(|by| **by == vip).count();
    assert_eq!(made.iter().map(|vip| left_by(*vip)).collect::<Vec<_>>(), [1, 0, 10, 10, 0, 0]);
    let path = Path { site: "mx".into(), vip: made[0] };
    let warmup = pacing.site(&Actor::local(0), &path, queue.now()).unwrap().memory.warmup.unwrap();
    assert_eq!((warmup.sent(), warmup.left()), (1, 0), "only what left by it is counted");
    stop.cancel();
    let _ = tokio::join!(running, chores);
}
