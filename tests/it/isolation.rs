//! Nothing ever leaves by an address that is not the tenant's: random tenants, virtual IPs,
//! logins, messages and operators' verbs against a whole daemon, judged at the receiving end by
//! the address a connection came from and the name it gave.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern::accounts::{MoveToShared, TenantChange};
use postern::daemon::{Daemon, Overrides};
use postern::ext::Timestamp;
use postern::mail::{QueueId, TenantId, VipId};
use postern::net::{Zone, ZoneServer};
use postern::records::AdminError;
use postern::vips::Owner;
use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};

use crate::harness::daemon::{Client, Login, Running, config, new_folder, operator};

const TENANTS: usize = 3;
const SLOTS: u8 = 4;
const PEER: Ipv4Addr = Ipv4Addr::new(127, 77, 9, 1);
/// A connection that was being made when its virtual IP was removed may still appear for so long.
const REMOVAL_SLACK: Duration = Duration::from_secs(3);

fn address(slot: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, slot + 1)
}

/// What somebody does.
#[derive(Clone, Debug)]
enum Step {
    /// A virtual IP in this slot, dedicated or shared, unless one is there.
    Add {
        slot: u8,
        owner: Option<usize>,
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
    Permit {
        tenant: usize,
        moving: bool,
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
    prop_oneof![
        3 => (slot(), proptest::option::weighted(0.7, tenant())).prop_map(|(slot, owner)| Step::Add { slot, owner }),
        1 => slot().prop_map(|slot| Step::Remove { slot }),
        8 => submit,
        1 => (tenant(), any::<bool>()).prop_map(|(tenant, moving)| Step::Permit { tenant, moving }),
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
    id: VipId,
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
    running: Running,
    port: u16,
    peer: Arc<Peer>,
    tenants: Vec<(TenantId, Login)>,
    may_move: [bool; TENANTS],
    generations: Vec<Generation>,
    /// Numbered by the attempt to hand them in.
    messages: Vec<Option<Message>>,
}

impl World {
    async fn new() -> Self {
        Self::gathering_notices(Duration::ZERO).await
    }

    async fn gathering_notices(gather: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind((PEER, 0)).await.unwrap();
        let mx_port = listener.local_addr().unwrap().port();
        let peer = Arc::new(Peer::default());
        tokio::spawn(Arc::clone(&peer).listen(listener));
        let mut zone = Zone::new().ipv4("mx.peer.test", PEER);
        for name in ["open.test", "shut.test", "bounce.test", "t0.test", "t1.test", "t2.test"] {
            zone = zone.mx(name, 10, "mx.peer.test");
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
        let may_move = [false; TENANTS];
        Self { running, port, peer, tenants, may_move, generations: Vec::new(), messages: Vec::new() }
    }

    fn current(&self, slot: u8) -> Option<usize> {
        self.generations.iter().rposition(|generation| generation.slot == slot && generation.removed.is_none())
    }

    fn serves(&self, generation: usize, tenant: usize) -> bool {
        self.generations[generation].owner.is_none_or(|owner| owner == tenant)
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Add { slot, owner } => self.add(slot, owner).await,
            Step::Remove { slot } => self.remove(slot).await,
            Step::Submit { tenant, slot, speaks_as, writes_as, to } => {
                self.submit(tenant, slot, (speaks_as, writes_as), to).await;
            }
            Step::Permit { tenant, moving } => {
                let permission = if moving { MoveToShared::Permitted } else { MoveToShared::Forbidden };
                let (id, now) = (self.tenants[tenant].0, Timestamp::now());
                self.running
                    .daemon
                    .accounts
                    .change_tenant(
                        &operator(),
                        id,
                        TenantChange { move_to_shared: Some(permission), ..TenantChange::default() },
                        now,
                    )
                    .await
                    .unwrap();
                self.may_move[tenant] = moving;
            }
            Step::Move { nth, slot } => self.move_one(nth, slot).await,
        }
    }

    async fn add(&mut self, slot: u8, owner: Option<usize>) {
        if self.current(slot).is_some() {
            return;
        }
        let of = owner.map_or(Owner::Shared, |tenant| Owner::Tenant(self.tenants[tenant].0));
        let name = format!("g{}.vips.test", self.generations.len());
        let id = self.running.vip(address(slot), &name, of).await.id;
        self.generations.push(Generation { id, slot, owner, removed: None });
    }

    async fn remove(&mut self, slot: u8) {
        let Some(current) = self.current(slot) else { return };
        let id = self.generations[current].id;
        self.running.daemon.vips.remove(&operator(), id, Timestamp::now()).await.unwrap();
        self.generations[current].removed = Some(Instant::now());
    }

    /// Connected to the slot, once somebody listens there.
    async fn connect(&self, slot: u8) -> Client {
        let target = SocketAddr::from((address(slot), self.port));
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
        let domain = match to {
            To::Open => "open.test",
            To::Shut => "shut.test",
            To::Bounce => "bounce.test",
        };
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
        let (to, is_shared) = (self.generations[generation].id, self.generations[generation].owner.is_none());
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
        let received: Vec<usize> = self.peer.received.lock().unwrap().iter().map(|got| got.message).collect();
        let numbered =
            self.messages.iter().enumerate().filter_map(|(number, message)| Some((number, message.as_ref()?)));
        numbered
            .filter(|(number, message)| message.lanes.iter().all(is_there) && !received.contains(number))
            .map(|(number, _)| number)
            .collect()
    }

    async fn finish(self) {
        self.peer.is_open.store(true, Ordering::SeqCst);
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
        assert_eq!(from, IpAddr::V4(address(self.generations[number].slot)), "{helo} from a foreign address");
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
            let is_given = match message.to {
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

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        max_shrink_iters: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_ever_leaves_by_an_address_that_is_not_the_tenants(
        steps in proptest::collection::vec(step(), 30..60),
    ) {
        in_a_runtime(async {
            let mut world = World::new().await;
            // Something to log in on from the start: one of the first tenant's, one for all.
            world.add(0, Some(0)).await;
            world.add(1, None).await;
            for step in steps {
                world.act(step).await;
            }
            world.finish().await;
        });
    }
}

#[test]
fn a_session_from_before_its_address_changed_hands_sends_nothing_more() {
    in_a_runtime(async {
        let mut world = World::new().await;
        world.add(0, Some(0)).await;
        let (mut waiting, reply) = world.log_in(0, 0).await;
        assert!(reply.starts_with("235 "), "{reply}");
        let (mut midway, _) = world.log_in(0, 0).await;
        for line in ["MAIL FROM:<m0@t0.test>", "RCPT TO:<r@open.test>", "DATA"] {
            let reply = midway.say(line).await;
            assert!(reply.starts_with(['2', '3']), "{reply}");
        }
        world.remove(0).await;
        world.add(0, Some(1)).await;
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
        let mut world = World::gathering_notices(Duration::from_secs(2)).await;
        world.add(0, None).await;
        world.add(1, Some(0)).await;
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
