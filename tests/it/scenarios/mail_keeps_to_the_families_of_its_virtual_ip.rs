//! IPv6 from the login to the peer, beside IPv4: mail leaves by the addresses that its virtual IP has,
//! and by no other family. In namespaces of its own, where several IPv6 addresses can be had.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::daemon::{Daemon, Overrides};
use postern::events::{Event, EventKind, InstanceEvent};
use postern::ext::Timestamp;
use postern::net::{Zone, ZoneServer};
use postern::store::{after_prefix, codec, prefix};
use postern::vips::{NewVip, Owner};

use crate::harness::apart::{Apart, add_address, run, run_apart};
use crate::harness::daemon::{Client, Login, Running, config, domain, new_folder, operator};
use crate::harness::peer::{Peer, Script, Taken};

const DUAL: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 6, 0, 1), Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, 1));
const FOUR: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 2);
const SIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, 3);
/// An address of this host that is nobody's virtual IP: what the kernel may choose by itself.
const STRAY: (&str, &str) = ("10.6.0.99", "fd00:6::99");
const PEER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 6, 1, 1), Ipv6Addr::new(0xfd00, 6, 1, 0, 0, 0, 0, 1));
const MX_PORT: u16 = 25;
const TLS_PORT: u16 = 465;

const NAME: &str = concat!(
    "scenarios::mail_keeps_to_the_families_of_its_virtual_ip::",
    "mail_leaves_by_the_families_its_virtual_ip_has_and_by_no_other"
);

#[test]
fn mail_leaves_by_the_families_its_virtual_ip_has_and_by_no_other() {
    if run_apart(NAME, || Ok(())) == Apart::Done {
        return;
    }
    for address in [STRAY.0, STRAY.1].map(str::to_owned).into_iter().chain(
        [DUAL.0, FOUR, PEER.0]
            .map(|one| one.to_string())
            .into_iter()
            .chain([DUAL.1, SIX, PEER.1].map(|one| one.to_string())),
    ) {
        add(&address);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(scenario());
}

fn ip(verb: &str, address: &str) {
    let bits = if address.contains(':') { 128 } else { 32 };
    run(Command::new("ip").args(["address", verb, &format!("{address}/{bits}"), "dev", "lo"])).unwrap();
}

fn add(address: &str) {
    add_address(address.parse().unwrap());
}

fn zone() -> Zone {
    let nobody = Ipv6Addr::new(0xfd00, 6, 1, 0, 0, 0, 0, 0xdead);
    add(&nobody.to_string());
    Zone::new()
        .mx("both.test", 10, "mx.both.test")
        .ipv4("mx.both.test", PEER.0)
        .ipv6("mx.both.test", PEER.1)
        .mx("four.test", 10, "mx.four.test")
        .ipv4("mx.four.test", PEER.0)
        .mx("six.test", 10, "mx.six.test")
        .ipv6("mx.six.test", PEER.1)
        // Its IPv6 address answers nobody.
        .mx("half.test", 10, "mx.half.test")
        .ipv4("mx.half.test", PEER.0)
        .ipv6("mx.half.test", nobody)
}

struct World {
    running: Running,
    peers: [Peer; 2],
    login: Login,
}

async fn scenario() {
    let world = World::open().await;
    let (dual4, dual6) = (IpAddr::V4(DUAL.0), IpAddr::V6(DUAL.1));
    // Whichever family the client came by, the mail has both.
    for door in [dual4, dual6] {
        world.submit(door, "a@six.test").await;
        assert_eq!(world.arrived("a@six.test").await.from, dual6);
        world.submit(door, "a@four.test").await;
        assert_eq!(world.arrived("a@four.test").await.from, dual4);
        world.submit(door, "a@both.test").await;
        let taken = world.arrived("a@both.test").await;
        assert!([dual4, dual6].contains(&taken.from), "{taken:?}");
        // One family that does not answer is no reason to wait.
        world.submit(door, "a@half.test").await;
        assert_eq!(world.arrived("a@half.test").await.from, dual4);
    }
    world.submit(FOUR.into(), "b@both.test").await;
    assert_eq!(world.arrived("b@both.test").await.from, IpAddr::V4(FOUR));
    world.submit(SIX.into(), "c@both.test").await;
    let taken = world.arrived("c@both.test").await;
    assert_eq!(taken.from, IpAddr::V6(SIX));
    let text = String::from_utf8(taken.text).unwrap();
    assert!(text.contains("by six.shop.test (postern)") && text.contains("DKIM-Signature:"), "{text}");
    // What only the other family reaches waits, says so, and nobody else's address is lent to it.
    for (door, to) in [(IpAddr::V4(FOUR), "b@six.test"), (SIX.into(), "c@four.test")] {
        let id = world.submit(door, to).await;
        let why = world.why(&id, "of a family this virtual IP has").await;
        assert!(why.contains("451 4.4.4"), "{why}");
    }
    world.without_one_address(dual6).await;
    let all: Vec<(String, IpAddr)> = world.taken().iter().map(|one| (one.mail.clone(), one.from)).collect();
    assert!(all.iter().all(|(_, from)| *from != STRAY.0.parse::<IpAddr>().unwrap()), "{all:?}");
    assert!(all.iter().all(|(_, from)| *from != STRAY.1.parse::<IpAddr>().unwrap()), "{all:?}");
    let helos = world.peers.iter().flat_map(Peer::lines).filter(|line| line.starts_with("EHLO"));
    let helos: std::collections::BTreeSet<String> = helos.collect();
    let known = ["EHLO dual.shop.test", "EHLO four.shop.test", "EHLO six.shop.test"].map(str::to_owned);
    assert_eq!(helos, known.into());
    world.running.stop().await;
}

impl World {
    async fn open() -> Self {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let zone = Arc::new(ZoneServer::bind(loopback, zone()).await.unwrap());
        let four = Peer::start((PEER.0, MX_PORT).into(), Script::polite()).await;
        let six = Peer::start((PEER.1, MX_PORT).into(), Script::polite()).await;
        let folder = new_folder();
        let mut config = config(folder.path(), &zone, MX_PORT);
        config.submission.tls_ports = vec![TLS_PORT];
        config.submission.presence_poll = Duration::from_millis(200);
        config.delivery.vip_check = Duration::from_millis(200);
        config.delivery.connection_idle_max = Duration::from_millis(1);
        let daemon = Daemon::start(config, Overrides::default()).await.unwrap();
        let tls = SocketAddr::from((DUAL.1, TLS_PORT));
        let running = Running { daemon, folder, zone, tls, starttls: tls };
        let tenant = running.tenant("shop").await;
        running.trusted_domain(tenant, "shop.test").await;
        for (ipv4, ipv6, ehlo) in [
            (Some(DUAL.0), Some(DUAL.1), "dual.shop.test"),
            (Some(FOUR), None, "four.shop.test"),
            (None, Some(SIX), "six.shop.test"),
        ] {
            let (ehlo, owner) = (domain(ehlo), Owner::Tenant(tenant));
            let new = NewVip { ipv4, ipv6, public_ipv4: None, public_ipv6: None, ehlo, owner };
            running.daemon.vips.add(&operator(), new, Timestamp::now()).await.unwrap();
        }
        let login = running.account(tenant).await;
        let world = Self { running, peers: [four, six], login };
        for door in [IpAddr::V4(DUAL.0), DUAL.1.into(), FOUR.into(), SIX.into()] {
            let listens = || std::net::TcpStream::connect((door, TLS_PORT)).is_ok();
            assert!(until(listens).await, "nobody listens at {door}");
        }
        world
    }

    /// Logs in at the address and hands one message in; the queue id.
    async fn submit(&self, door: IpAddr, to: &str) -> String {
        let message = "From: shop@shop.test\r\nSubject: s\r\n\r\nhello\r\n";
        let mut client = Client::connect((door, TLS_PORT).into()).await;
        let said = client.hand_in(&self.login, "shop@shop.test", to, message).await;
        let id = said.trim_end().rsplit(' ').next().unwrap().to_owned();
        assert!(said.starts_with("250 2.0.0 Queued as "), "{said}");
        id
    }

    fn taken(&self) -> Vec<Taken> {
        self.peers.iter().flat_map(Peer::taken).collect()
    }

    /// The newest message to this recipient, once it is there; it is taken off nobody.
    async fn arrived(&self, to: &str) -> Taken {
        let wanted = format!("RCPT TO:<{to}>");
        let mut found = None;
        let mut seen = || {
            let is_it = |one: &Taken| one.recipients.iter().any(|line| line.starts_with(&wanted));
            found = self.taken().into_iter().rfind(is_it);
            found.is_some()
        };
        assert!(until(&mut seen).await, "nothing came for {to}");
        // The next one is another message.
        for peer in &self.peers {
            peer.seen.lock().unwrap().taken.retain(|one| !one.recipients.iter().any(|line| line.starts_with(&wanted)));
        }
        found.unwrap()
    }

    /// What `queue why` says of it, once that contains `text`.
    async fn why(&self, id: &str, text: &str) -> String {
        let mut said = String::new();
        let mut told = || {
            let lines = self.running.daemon.queue.why(&operator(), id.parse().unwrap()).unwrap();
            said = lines.into_iter().map(|line| line.sentence).collect();
            said.contains(text)
        };
        assert!(until(&mut told).await, "queue why says {said:?}");
        said
    }

    /// An address goes: mail that needs its family waits, and leaves by it when it is back.
    async fn without_one_address(&self, address: IpAddr) {
        ip("del", &address.to_string());
        let told = || {
            let all = self.running.daemon.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX);
            let kinds = all.unwrap().into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind);
            let text = address.to_string();
            kinds.into_iter().any(|kind| {
                matches!(kind, EventKind::Instance(InstanceEvent::VipMissing { address, .. }) if address == text)
            })
        };
        let id = self.submit(DUAL.0.into(), "d@six.test").await;
        assert!(until(told).await, "it is reported");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let is_there = |one: &Taken| one.recipients.iter().any(|line| line.contains("d@six.test"));
        assert!(!self.taken().iter().any(is_there), "it left by another address");
        self.submit(DUAL.0.into(), "d@four.test").await;
        assert_eq!(self.arrived("d@four.test").await.from, IpAddr::V4(DUAL.0));
        add(&address.to_string());
        tokio::time::sleep(Duration::from_millis(500)).await;
        let retried = self.running.daemon.queue.retry(&operator(), id.parse().unwrap(), &[], Timestamp::now()).await;
        retried.unwrap();
        assert_eq!(self.arrived("d@six.test").await.from, address);
    }
}

async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}
