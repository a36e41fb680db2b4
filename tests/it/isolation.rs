//! Nothing ever leaves by an address that is not the tenant's: random tenants, virtual IPs,
//! logins, messages by SMTP and by the API, and operators' verbs against a whole daemon, judged at
//! the receiving end by the address a connection came from and the name it gave. Once with IPv4, which
//! works everywhere, and once with both families in a namespace of its own.
//!
//! By hand, with many worlds: `PROPTEST_CASES=100 cargo test --test it isolation`.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern::accounts::{MoveToShared, TenantChange};
use postern::daemon::{Daemon, Overrides};
use postern::ext::Timestamp;
use postern::mail::{QueueId, TenantId};
use postern::net::{Zone, ZoneServer};
use postern::records::AdminError;
use postern::vips::{NewVip, Owner, Vip};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};

use crate::harness::apart::{Apart, add_address, run_apart_within};
use crate::harness::daemon::{Client, Login, Running, config, domain, new_folder, operator};
use crate::sending_by_http::ask;

const TENANTS: usize = 3;
const SLOTS: u8 = 4;
const PEER: Ipv4Addr = Ipv4Addr::new(127, 77, 9, 1);
/// A connection that was being made when its virtual IP was removed may still appear for so long.
const REMOVAL_SLACK: Duration = Duration::from_secs(3);

const PEER_SIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 77, 9, 0, 0, 0, 0, 1);
/// A world takes less, whatever else the machine does.
const WORLD_MAX: Duration = Duration::from_secs(120);

fn address(slot: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, slot + 1)
}

fn address_six(slot: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 77, 0, 0, 0, 0, 0, u16::from(slot) + 1)
}

/// Which families there are in a world.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Families {
    Four,
    Both,
}

/// Which of them a virtual IP has, if there are both.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Has {
    Four,
    Six,
    Both,
}

/// What somebody does.
#[derive(Clone, Debug)]
enum Step {
    /// A virtual IP in this slot, dedicated or shared, unless one is there.
    Add {
        slot: u8,
        owner: Option<usize>,
        has: Has,
    },
    Remove {
        slot: u8,
    },
    /// A login of `tenant` in that slot, a reverse-path and a header From of these tenants' domains.
    Submit {
        tenant: usize,
        slot: u8,
        speaks_as: usize,
        writes_as: usize,
        to: To,
    },
    /// The same by the API, which knows no slot.
    Post {
        tenant: usize,
        writes_as: usize,
        to: To,
    },
    /// What a tenant's mail by the API leaves by; `None`: nothing is chosen.
    Choose {
        tenant: usize,
        slot: Option<u8>,
    },
    Permit {
        tenant: usize,
        moving: bool,
        /// Whether what a warm-up has no room for may leave by the shared ones there are now.
        overflows: bool,
    },
    /// The virtual IP in this slot is warmed for the peer, with room for so many messages a day.
    Warm {
        slot: u8,
        room: u32,
    },
    Move {
        nth: usize,
        slot: u8,
    },
}

/// What becomes of a message at the peer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Open,
    /// Deferred until the end.
    Shut,
    /// Refused, so that a notice is owed.
    Bounce,
}

impl To {
    fn domain(self) -> &'static str {
        match self {
            Self::Open => "open.test",
            Self::Shut => "shut.test",
            Self::Bounce => "bounce.test",
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let tenant = || 0..TENANTS;
    let slot = || 0..SLOTS;
    let mostly = |tenant: usize| prop_oneof![6 => Just(tenant), 1 => 0..TENANTS];
    let submit = (tenant(), slot(), prop_oneof![3 => Just(To::Open), 3 => Just(To::Shut), 1 => Just(To::Bounce)])
        .prop_flat_map(move |(tenant, slot, to)| {
            (mostly(tenant), mostly(tenant)).prop_map(move |(speaks_as, writes_as)| Step::Submit {
                tenant,
                slot,
                speaks_as,
                writes_as,
                to,
            })
        });
    let to = || prop_oneof![3 => Just(To::Open), 3 => Just(To::Shut), 1 => Just(To::Bounce)];
    let post = (tenant(), to()).prop_flat_map(move |(tenant, to)| {
        mostly(tenant).prop_map(move |writes_as| Step::Post { tenant, writes_as, to })
    });
    let has = prop_oneof![Just(Has::Four), Just(Has::Six), Just(Has::Both)];
    let add = (slot(), proptest::option::weighted(0.7, tenant()), has);
    prop_oneof![
        3 => add.prop_map(|(slot, owner, has)| Step::Add { slot, owner, has }),
        3 => post,
        1 => (tenant(), proptest::option::weighted(0.8, slot())).prop_map(|(tenant, slot)| Step::Choose { tenant, slot }),
        1 => slot().prop_map(|slot| Step::Remove { slot }),
        8 => submit,
        2 => (tenant(), any::<bool>(), proptest::bool::weighted(0.7))
            .prop_map(|(tenant, moving, overflows)| Step::Permit { tenant, moving, overflows }),
        2 => (slot(), 1_u32..3).prop_map(|(slot, room)| Step::Warm { slot, room }),
        2 => (any::<usize>(), slot()).prop_map(|(nth, slot)| Step::Move { nth, slot }),
    ]
}

/// One message as the peer got it.
#[derive(Debug)]
struct Received {
    from: IpAddr,
    helo: String,
    /// The number in the sender's local part, or in a notice's recipient.
    message: usize,
    at: Instant,
}

#[derive(Default)]
struct Peer {
    is_open: AtomicBool,
    received: Mutex<Vec<Received>>,
    /// Every connection that got as far as EHLO.
    callers: Mutex<Vec<(IpAddr, String)>>,
}

impl Peer {
    async fn listen(self: Arc<Self>, listener: tokio::net::TcpListener) {
        loop {
            let (stream, from) = listener.accept().await.unwrap();
            tokio::spawn(Arc::clone(&self).converse(BufStream::new(stream), from.ip()));
        }
    }

    async fn converse(self: Arc<Self>, mut stream: BufStream<tokio::net::TcpStream>, from: IpAddr) {
        let (mut helo, mut message, mut is_data) = (String::new(), None, false);
        let mut answer = "220 mx.peer.test".to_owned();
        loop {
            if !answer.is_empty() {
                let _ = stream.write_all(format!("{answer}\r\n").as_bytes()).await;
                let _ = stream.flush().await;
            }
            let mut line = String::new();
            if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
                return;
            }
            let line = line.trim_end();
            if is_data {
                answer = String::new();
                if line == "." {
                    (is_data, answer) = (false, "250 taken".to_owned());
                    let message = message.take().expect("every message has a number");
                    let got = Received { from, helo: helo.clone(), message, at: Instant::now() };
                    self.received.lock().unwrap().push(got);
                }
                continue;
            }
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            message = number_in(rest).or(message);
            answer = match verb {
                "EHLO" => {
                    helo = rest.to_owned();
                    self.callers.lock().unwrap().push((from, helo.clone()));
                    "250 mx.peer.test".to_owned()
                }
                "RCPT" if rest.contains("@bounce.") => "550 5.1.1 nobody".to_owned(),
                "RCPT" if rest.contains("@shut.") && !self.is_open.load(Ordering::SeqCst) => {
                    "450 4.2.0 later".to_owned()
                }
                "DATA" => {
                    is_data = true;
                    "354 go".to_owned()
                }
                "QUIT" => "221 bye".to_owned(),
                _ => "250 fine".to_owned(),
            };
        }
    }
}

/// The number of `<m12@t1.test>`.
fn number_in(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("<m")?;
    rest.split_once('@')?.0.parse().ok()
}

/// One virtual IP from its making to its removal; its EHLO name says which it is.
struct Generation {
    vip: Vip,
    slot: u8,
    owner: Option<usize>,
    removed: Option<Instant>,
}

struct Message {
    tenant: usize,
    id: QueueId,
    to: To,
    /// Logged in on, then moved to: the last is where it is now.
    lanes: Vec<usize>,
}

struct World {
    families: Families,
    running: Running,
    port: u16,
    peer: Arc<Peer>,
    tenants: Vec<(TenantId, Login)>,
    may_move: [bool; TENANTS],
    /// The generation chosen for each tenant's mail by the API.
    chosen: [Option<usize>; TENANTS],
    /// Where what a tenant's warm-ups have no room for may ever have gone.
    named: [HashSet<usize>; TENANTS],
    generations: Vec<Generation>,
    /// Numbered by the attempt to hand them in.
    messages: Vec<Option<Message>>,
}

impl World {
    async fn new(families: Families) -> Self {
        Self::gathering_notices(families, Duration::ZERO).await
    }

    async fn gathering_notices(families: Families, gather: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind((PEER, 0)).await.unwrap();
        let mx_port = listener.local_addr().unwrap().port();
        let peer = Arc::new(Peer::default());
        tokio::spawn(Arc::clone(&peer).listen(listener));
        let mut zone = Zone::new().ipv4("mx.peer.test", PEER);
        if families == Families::Both {
            let listener = tokio::net::TcpListener::bind((PEER_SIX, mx_port)).await.unwrap();
            tokio::spawn(Arc::clone(&peer).listen(listener));
            zone = zone.ipv6("mx.peer.test", PEER_SIX);
        }
        for name in ["open.test", "shut.test", "bounce.test", "t0.test", "t1.test", "t2.test"] {
            zone = zone.mx(name, 10, "mx.peer.test");
        }
        // SPF permits every address there is, those of other tenants too: that must not matter.
        for name in ["t0.test", "t1.test"] {
            zone = zone.txt(name, "v=spf1 ip4:127.77.0.0/16 ip6:fd00::/16 -all");
        }
        let zone = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        let (folder, zone) = (new_folder(), Arc::new(zone));
        let mut config = config(folder.path(), &zone, mx_port);
        let port = TcpListener::bind((address(0), 0)).unwrap().local_addr().unwrap().port();
        config.submission.tls_ports = vec![port];
        config.queue.notice_gather = gather;
        config.accounts.login_failures_free_max = 10_000;
        config.accounts.network_failures_max = 10_000;
        let daemon = Daemon::start(config, Overrides::default()).await.unwrap();
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let running = Running { daemon, folder, zone, tls: nowhere, starttls: nowhere };
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            let tenant = running.tenant(&format!("t{number}")).await;
            running.trusted_domain(tenant, &format!("t{number}.test")).await;
            tenants.push((tenant, running.account(tenant).await));
        }
        let (may_move, named) = ([false; TENANTS], [(); TENANTS].map(|()| HashSet::new()));
        let (chosen, generations, messages) = ([None; TENANTS], Vec::new(), Vec::new());
        Self { families, running, port, peer, tenants, may_move, named, chosen, generations, messages }
    }

    fn current(&self, slot: u8) -> Option<usize> {
        self.generations.iter().rposition(|generation| generation.slot == slot && generation.removed.is_none())
    }

    fn serves(&self, generation: usize, tenant: usize) -> bool {
        self.generations[generation].owner.is_none_or(|owner| owner == tenant)
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Add { slot, owner, has } => self.add(slot, owner, has).await,
            Step::Post { tenant, writes_as, to } => self.post(tenant, writes_as, to).await,
            Step::Choose { tenant, slot } => self.choose(tenant, slot).await,
            Step::Remove { slot } => self.remove(slot).await,
            Step::Submit { tenant, slot, speaks_as, writes_as, to } => {
                self.submit(tenant, slot, (speaks_as, writes_as), to).await;
            }
            Step::Permit { tenant, moving, overflows } => self.permit(tenant, (moving, overflows)).await,
            Step::Warm { slot, room } => self.warm(slot, room).await,
            Step::Move { nth, slot } => self.move_one(nth, slot).await,
        }
    }

    async fn permit(&mut self, tenant: usize, (moving, overflows): (bool, bool)) {
        let is_named = |number: &usize| {
            let generation = &self.generations[*number];
            overflows && generation.owner.is_none() && generation.removed.is_none()
        };
        let named: Vec<usize> = (0..self.generations.len()).filter(is_named).collect();
        let overflow_to = Some(named.iter().map(|number| self.generations[*number].vip.clone()).collect());
        let permission = if moving { MoveToShared::Permitted } else { MoveToShared::Forbidden };
        let (id, now) = (self.tenants[tenant].0, Timestamp::now());
        self.running
            .daemon
            .accounts
            .change_tenant(
                &operator(),
                id,
                TenantChange { move_to_shared: Some(permission), overflow_to, ..TenantChange::default() },
                now,
            )
            .await
            .unwrap();
        self.may_move[tenant] = moving;
        self.named[tenant].extend(named);
    }

    async fn add(&mut self, slot: u8, owner: Option<usize>, has: Has) {
        if self.current(slot).is_some() {
            return;
        }
        let has = if self.families == Families::Four { Has::Four } else { has };
        let new = NewVip {
            ipv4: (has != Has::Six).then(|| address(slot)),
            ipv6: (has != Has::Four).then(|| address_six(slot)),
            public_ipv4: None,
            public_ipv6: None,
            ehlo: domain(&format!("g{}.vips.test", self.generations.len())),
            owner: owner.map_or(Owner::Shared, |tenant| Owner::Tenant(self.tenants[tenant].0)),
        };
        let vip = self.running.daemon.vips.add(&operator(), new, Timestamp::now()).await.unwrap();
        self.generations.push(Generation { vip, slot, owner, removed: None });
    }

    async fn choose(&mut self, tenant: usize, slot: Option<u8>) {
        let current = slot.and_then(|slot| self.current(slot));
        if slot.is_some() && current.is_none() {
            return;
        }
        let vip = current.map(|generation| self.generations[generation].vip.clone());
        let (id, accounts) = (self.tenants[tenant].0, &self.running.daemon.accounts);
        let change = TenantChange { default_vip: Some(vip), ..TenantChange::default() };
        let done = accounts.change_tenant(&operator(), id, change, Timestamp::now()).await;
        assert_eq!(done.is_ok(), current.is_none_or(|generation| self.serves(generation, tenant)), "{done:?}");
        if done.is_ok() {
            self.chosen[tenant] = current;
        }
    }

    /// What mail by the API leaves by: what was chosen while it is there, else the oldest of the tenant's own.
    fn default_of(&self, tenant: usize) -> Option<usize> {
        let is_there = |generation: &usize| self.generations[*generation].removed.is_none();
        let is_own = |generation: &usize| self.generations[*generation].owner == Some(tenant);
        let own = || (0..self.generations.len()).find(|generation| is_there(generation) && is_own(generation));
        self.chosen[tenant].filter(is_there).or_else(own)
    }

    async fn post(&mut self, tenant: usize, writes_as: usize, to: To) {
        let number = self.messages.len();
        self.messages.push(None);
        let letter = json!({
            "tenant": format!("t{tenant}"),
            "from": format!("m{number}@t{writes_as}.test"),
            "to": [format!("r{number}@{}", to.domain())],
            "subject": "x",
            "text": "x",
        });
        let (status, _, answer) = ask(&self.running, "POST", "/messages", None, letter).await;
        if writes_as != tenant {
            return assert!((400..500).contains(&status), "{status} {answer}");
        }
        let Some(generation) = self.default_of(tenant) else {
            return assert_eq!((status, &answer["code"]), (503, &json!("no_virtual_ip")));
        };
        assert_eq!(status, 202, "{answer}");
        let id = answer["id"].as_str().unwrap().parse().unwrap();
        self.messages[number] = Some(Message { tenant, id, to, lanes: vec![generation] });
    }

    async fn remove(&mut self, slot: u8) {
        let Some(current) = self.current(slot) else { return };
        let id = self.generations[current].vip.id;
        self.running.daemon.vips.remove(&operator(), id, Timestamp::now()).await.unwrap();
        self.generations[current].removed = Some(Instant::now());
    }

    async fn warm(&self, slot: u8, room: u32) {
        let Some(current) = self.current(slot) else { return };
        let asked = json!({"vip": self.generations[current].vip.id.to_string(), "ladder": [room, 1_000]});
        // Nobody knows the peer before something went there.
        let (status, _, said) = ask(&self.running, "POST", "/sites/mx.peer.test/warm-up", None, asked).await;
        assert!(status == 200 || status == 404, "{status} {said}");
    }

    /// Ends what would keep mail waiting for a day.
    async fn end_warm_ups(&self) {
        for current in (0..SLOTS).filter_map(|slot| self.current(slot)) {
            let asked = json!({"vip": self.generations[current].vip.id.to_string()});
            ask(&self.running, "POST", "/sites/mx.peer.test/warm-up/stop", None, asked).await;
        }
    }

    /// Connected to the slot, once somebody listens there.
    async fn connect(&self, slot: u8) -> Client {
        let current = self.current(slot).expect("somebody has it");
        let mut addresses = self.generations[current].vip.addresses().collect::<Vec<IpAddr>>();
        // By each of its addresses in turn.
        let turn = self.messages.len() % addresses.len();
        addresses.rotate_left(turn);
        let target = SocketAddr::from((addresses[0], self.port));
        let began = Instant::now();
        while tokio::net::TcpStream::connect(target).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "nobody listens on {target}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Client::connect(target).await
    }

    async fn log_in(&self, tenant: usize, slot: u8) -> (Client, String) {
        let mut client = self.connect(slot).await;
        let reply = client.say("EHLO client.test").await;
        assert!(reply.starts_with("250"), "{reply}");
        let login = &self.tenants[tenant].1;
        let plain = crate::harness::door::plain(&login.login, &login.password);
        let reply = client.say(&format!("AUTH PLAIN {plain}")).await;
        (client, reply)
    }

    async fn submit(&mut self, tenant: usize, slot: u8, (speaks_as, writes_as): (usize, usize), to: To) {
        let Some(generation) = self.current(slot) else { return };
        let (mut client, reply) = self.log_in(tenant, slot).await;
        if !self.serves(generation, tenant) {
            assert_eq!(
                reply, "535 5.7.8 Login or password is wrong\r\n",
                "a foreign address looks like a wrong password"
            );
            let reply = client.say("MAIL FROM:<>").await;
            assert!(reply.starts_with("530 "), "{reply}");
            return;
        }
        assert!(reply.starts_with("235 "), "{reply}");
        let number = self.messages.len();
        self.messages.push(None);
        let reply = client.say(&format!("MAIL FROM:<m{number}@t{speaks_as}.test>")).await;
        if speaks_as != tenant {
            return assert!(reply.starts_with("550 5.7.1 "), "{reply}");
        }
        let domain = to.domain();
        // Each to another one: who does not exist is not mailed twice.
        for line in [format!("RCPT TO:<r{number}@{domain}>"), "DATA".to_owned()] {
            let reply = client.say(&line).await;
            assert!(reply.starts_with(['2', '3']), "{reply}");
        }
        let reply = client.say(&format!("From: <m{number}@t{writes_as}.test>\r\nSubject: x\r\n\r\nx\r\n.")).await;
        if writes_as != tenant {
            return assert!(reply.starts_with("550 5.7.1 "), "{reply}");
        }
        let id = reply.strip_prefix("250 2.0.0 Queued as ").expect(&reply).trim_end().parse().unwrap();
        self.messages[number] = Some(Message { tenant, id, to, lanes: vec![generation] });
    }

    async fn move_one(&mut self, nth: usize, slot: u8) {
        let Some(generation) = self.current(slot) else { return };
        let (to, is_shared) = (self.generations[generation].vip.id, self.generations[generation].owner.is_none());
        let count = self.messages.iter().flatten().count();
        let Some(message) = self.messages.iter_mut().flatten().nth(nth.checked_rem(count).unwrap_or(0)) else { return };
        let is_permitted = self.may_move[message.tenant] && is_shared;
        match self.running.daemon.queue.move_to(&operator(), message.id, to, Timestamp::now()).await {
            Ok(changed) => {
                assert!(is_permitted, "moved without permission, or to a dedicated address");
                if !changed.recipients.is_empty() {
                    message.lanes.push(generation);
                }
            }
            Err(AdminError::Missing(_)) => {}
            Err(error) => assert!(!is_permitted, "{error}"),
        }
    }

    /// Those that must have arrived in the end: nothing they leave by was removed.
    fn outstanding(&self) -> Vec<usize> {
        let is_there = |lane: &usize| self.generations[*lane].removed.is_none();
        // What overflowed may be at any that was named.
        let are_there = |message: &Message| self.named[message.tenant].iter().all(is_there);
        let received: Vec<usize> = self.peer.received.lock().unwrap().iter().map(|got| got.message).collect();
        let numbered =
            self.messages.iter().enumerate().filter_map(|(number, message)| Some((number, message.as_ref()?)));
        numbered
            .filter(|(_, message)| are_there(message))
            .filter(|(number, message)| message.lanes.iter().all(is_there) && !received.contains(number))
            .map(|(number, _)| number)
            .collect()
    }

    async fn finish(self) {
        self.peer.is_open.store(true, Ordering::SeqCst);
        self.end_warm_ups().await;
        let began = Instant::now();
        loop {
            let outstanding = self.outstanding();
            if outstanding.is_empty() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "never arrived: {outstanding:?}");
            for message in self.messages.iter().flatten() {
                // What is gone, or being tried now, needs no push.
                let _ = self.running.daemon.queue.retry(&operator(), message.id, &[], Timestamp::now()).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.judge();
        self.running.stop().await;
    }

    /// The generation a connection says it comes from; its address must be that one's.
    fn generation(&self, from: IpAddr, helo: &str) -> usize {
        let number = helo.strip_prefix('g').and_then(|rest| rest.strip_suffix(".vips.test"));
        let number: usize = number.expect(helo).parse().unwrap();
        let mut own = self.generations[number].vip.addresses();
        assert!(own.any(|own| own == from.to_canonical()), "{helo} from a foreign address: {from}");
        number
    }

    fn judge(&self) {
        for (from, helo) in self.peer.callers.lock().unwrap().iter() {
            self.generation(*from, helo);
        }
        for got in self.peer.received.lock().unwrap().iter() {
            let generation = self.generation(got.from, &got.helo);
            let message = self.messages[got.message].as_ref().expect("only what was accepted arrives");
            assert!(self.serves(generation, message.tenant), "left by another tenant's address: {got:?}");
            // What a warm-up has no room for leaves by one that was named, notices too.
            let is_overflow = self.named[message.tenant].contains(&generation);
            let is_given = is_overflow
                || match message.to {
                    // Its notice leaves by the address it was handed in at.
                    To::Bounce => generation == message.lanes[0],
                    To::Open | To::Shut => message.lanes.contains(&generation),
                };
            assert!(is_given, "left by an address it was never given: {got:?}");
            if let Some(removed) = self.generations[generation].removed {
                assert!(got.at <= removed + REMOVAL_SLACK, "left by a removed address: {got:?}");
            }
        }
    }
}

fn in_a_runtime<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// How many worlds; each takes a few seconds.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

fn play(families: Families) {
    let settings =
        ProptestConfig { cases: cases(), max_shrink_iters: 24, failure_persistence: None, ..ProptestConfig::default() };
    let played = TestRunner::new(settings).run(&proptest::collection::vec(step(), 30..60), |steps| {
        in_a_runtime(async {
            let mut world = World::new(families).await;
            // Something to log in on from the start: one of the first tenant's, one for all.
            world.add(0, Some(0), Has::Both).await;
            world.add(1, None, Has::Both).await;
            for step in steps {
                world.act(step).await;
            }
            world.finish().await;
        });
        Ok(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}

#[test]
fn nothing_ever_leaves_by_an_address_that_is_not_the_tenants() {
    play(Families::Four);
}

#[test]
fn nothing_ever_leaves_by_an_address_of_either_family_that_is_not_the_tenants() {
    let name = "isolation::nothing_ever_leaves_by_an_address_of_either_family_that_is_not_the_tenants";
    if run_apart_within(WORLD_MAX * cases(), name, || Ok(())) == Apart::Done {
        return;
    }
    for slot in 0..SLOTS {
        add_address(address_six(slot).into());
    }
    add_address(PEER_SIX.into());
    play(Families::Both);
}

#[test]
fn a_session_from_before_its_address_changed_hands_sends_nothing_more() {
    in_a_runtime(async {
        let mut world = World::new(Families::Four).await;
        world.add(0, Some(0), Has::Four).await;
        let (mut waiting, reply) = world.log_in(0, 0).await;
        assert!(reply.starts_with("235 "), "{reply}");
        let (mut midway, _) = world.log_in(0, 0).await;
        for line in ["MAIL FROM:<m0@t0.test>", "RCPT TO:<r@open.test>", "DATA"] {
            let reply = midway.say(line).await;
            assert!(reply.starts_with(['2', '3']), "{reply}");
        }
        world.remove(0).await;
        world.add(0, Some(1), Has::Four).await;
        let reply = waiting.say("MAIL FROM:<m1@t0.test>").await;
        assert!(reply.starts_with("451 4.7.1 "), "{reply}");
        let reply = midway.say("From: <m0@t0.test>\r\n\r\nx\r\n.").await;
        assert!(reply.starts_with("451 4.7.1 "), "{reply}");
        let (_, reply) = world.log_in(0, 0).await;
        assert!(reply.starts_with("535 "), "{reply}");
        world.finish().await;
    });
}

#[test]
fn a_notice_whose_address_was_removed_leaves_by_no_other_and_does_not_wait_for_ever() {
    in_a_runtime(async {
        let mut world = World::gathering_notices(Families::Four, Duration::from_secs(2)).await;
        world.add(0, None, Has::Four).await;
        world.add(1, Some(0), Has::Four).await;
        world.submit(0, 0, (0, 0), To::Bounce).await;
        let began = Instant::now();
        while world.running.daemon.queue.totals().notices == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "it is refused");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.remove(0).await;
        while world.running.daemon.queue.totals().notices > 0 {
            assert!(began.elapsed() < Duration::from_secs(40), "no notice waits for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.running.stop().await;
        assert!(world.peer.received.lock().unwrap().is_empty());
    });
}
