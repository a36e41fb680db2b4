//! 200 mail exchangers that never say a word, and 5,000 senders that drip: both take time and none of
//! the room of others.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postern::net::{Zone, ZoneServer};

use super::latency::{Bystander, COUNT, send_small};
use crate::harness::load::{RecordingSink, SinkMood, TlsSession};
use crate::harness::process::{Credentials, Instance};

const PATIENCE: Duration = Duration::from_secs(120);
/// Tenant `shop`'s virtual IP is the harness's; this is the other tenant's.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);
/// A further tenant's.
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// Two tenants, a sink for `there.test`, and what else is in the zone.
struct World {
    instance: Instance,
    shop: Credentials,
    other: Credentials,
    sink: RecordingSink,
    _zone: ZoneServer,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl World {
    fn open(more_zone: impl FnOnce(Zone) -> Zone, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let zone = Zone::new().mx("there.test", 10, "mx.there.test").ipv4("mx.there.test", Ipv4Addr::LOCALHOST);
        let zone = runtime.block_on(ZoneServer::bind("127.0.0.1:0".parse().unwrap(), more_zone(zone))).unwrap();
        let sink = RecordingSink::start("127.0.0.1:0".parse().unwrap(), SinkMood::Takes).unwrap();
        let data = folder.path().join("data");
        let mut instance = Instance::make(folder.path(), &data, zone.address(), sink.address.port());
        for (section, line) in settings {
            instance.reconfigure(&format!("{section}\n"), &format!("{section}\n{line}\n"));
        }
        instance.start();
        let shop = instance.furnish();
        let other = Credentials { login: String::new(), password: String::new() };
        let mut world = Self { instance, shop, other, sink, _zone: zone, _runtime: runtime, _folder: folder };
        world.other = world.add_tenant("other", OTHER);
        world
    }

    /// A tenant on an address of its own that may send as `NAME.test`, and its login.
    fn add_tenant(&self, name: &str, address: Ipv4Addr) -> Credentials {
        let (domain, host) = (format!("{name}.test"), format!("mx.{name}.test"));
        self.instance.tool(&["tenant", "add", name]);
        self.instance.tool(&["vip", "add", &address.to_string(), "--ehlo", &host, "--tenant", name]);
        self.instance.tool(&["domain", "add", name, &domain]);
        self.instance.tool(&["domain", "trust", name, &domain]);
        let door = SocketAddr::from((address, self.instance.door.port()));
        self.wait_for(|| TcpStream::connect(door).is_ok(), "a tenant's door");
        self.instance.add_account(name)
    }

    fn others_door(&self) -> SocketAddr {
        (OTHER, self.instance.door.port()).into()
    }

    fn other_session(&self) -> TlsSession {
        let mut session = TlsSession::open(self.others_door()).unwrap();
        session.login(&self.other.login, &self.other.password).unwrap();
        session
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.instance.tool(&["status", "--json"])).unwrap()
    }

    fn wait_for(&self, mut is_so: impl FnMut() -> bool, what: &str) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}: {}", self.instance.log_tail());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn send(session: &mut TlsSession, from: &str, to: &str, serial: u64) {
    session.command(&format!("MAIL FROM:<{from}>"), "250").unwrap();
    session.command(&format!("RCPT TO:<{to}>"), "250").unwrap();
    session.command("DATA", "354").unwrap();
    session.command(&format!("From: <{from}>\r\nX-Serial: {serial}\r\n\r\nhello\r\n."), "250").unwrap();
}

/// Takes connections and never says a word.
fn tarpit(address: Ipv4Addr, port: u16, held: &Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    let held = Arc::clone(held);
    thread::spawn(move || {
        let mut streams = Vec::new();
        for stream in listener.incoming().flatten() {
            held.fetch_add(1, Ordering::SeqCst);
            streams.push(stream);
        }
    });
}

/// Hands 200 messages in, one for each tarpit.
fn feed(door: SocketAddr, login: &Credentials, from: &str, serials: u64) {
    let mut session = TlsSession::open(door).unwrap();
    session.login(&login.login, &login.password).unwrap();
    for number in 0..TARPITS {
        send(&mut session, from, &format!("x@pit{number}.test"), serials + u64::from(number));
    }
}

const TARPITS: u8 = 200;

/// Every connection that two tenants may have between them is held by a tarpit, so all workers but those in reserve
/// are; mail of a third is delivered by one of these, without a tarpit having been given up.
#[test]
fn two_hundred_tarpits_hold_every_worker_and_others_mail_is_delivered() {
    let pit = |number: u8| Ipv4Addr::new(127, 9, 0, number + 1);
    let world = World::open(
        |zone| {
            (0..TARPITS).fold(zone, |zone, number| {
                let domain = format!("pit{number}.test");
                let host = format!("mx.{domain}");
                zone.mx(&domain, 10, &host).ipv4(&host, pit(number))
            })
        },
        // A twentieth of 210 is for tenants that have none: 200 are for the two.
        &[("[delivery]", "connections_max = 210\nconnections_per_tenant_max = 100")],
    );
    let held = Arc::new(AtomicUsize::new(0));
    (0..TARPITS).for_each(|number| tarpit(pit(number), world.sink.address.port(), &held));
    let second = world.add_tenant("second", SECOND);
    feed(world.instance.door, &world.shop, "a@shop.test", 1_000);
    feed((SECOND, world.instance.door.port()).into(), &second, "a@second.test", 2_000);
    world.wait_for(|| held.load(Ordering::SeqCst) >= usize::from(TARPITS), "every worker to be held");
    let status = world.status();
    assert_eq!(status["queue_in_flight"], 200, "{status}");

    let began = Instant::now();
    others_do_not_wait(&world, "200 tarpits");
    world.wait_for(|| world.sink.arrivals.len() == COUNT, "the other tenant's mail");
    eprintln!("beside 200 tarpits: all delivered {:?} after the first MAIL", began.elapsed());
    // None of it waited for a worker that a tarpit held: every one of them still holds what it held, and not one
    // attempt at them has ended.
    assert_eq!(held.load(Ordering::SeqCst), usize::from(TARPITS), "not one connection more than the two may have");
    let log = std::fs::read_to_string(world.instance.log()).unwrap();
    let ended = log.lines().filter(|line| line.contains("@pit")).filter(|line| !line.contains(" accepted "));
    assert_eq!(ended.collect::<Vec<_>>(), Vec::<&str>::new());
    world.wait_for(|| world.status()["queue_in_flight"] == 200, "the other tenant's connection to be given back");
    assert_eq!(world.status()["shortage"], serde_json::Value::Null);
    let mut world = world;
    // A stop gives back what the tarpits hold.
    assert!(world.instance.stop().success());
}

/// Peers that say `EHLO` one octet a second until told to stop; gives how many are connected.
struct Drips {
    stop: Arc<AtomicBool>,
    alive: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Drips {
    fn start(door: SocketAddr, count: usize) -> Self {
        let (stop, alive) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut streams: Vec<TcpStream> = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(door).unwrap();
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting, b"220 ");
            streams.push(stream);
        }
        alive.store(count, Ordering::SeqCst);
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&alive));
        let dripping = thread::spawn(move || {
            let text = b"EHLO a-name-that-never-ends".iter().chain(std::iter::repeat(&b'x'));
            for octet in text {
                streams.retain_mut(|stream| stream.write_all(&[*octet]).is_ok());
                counted.store(streams.len(), Ordering::SeqCst);
                for _ in 0..10 {
                    if told.load(Ordering::SeqCst) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        Self { stop, alive, threads: vec![dripping] }
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// The other tenant sends its messages as soon as without the trouble.
fn others_do_not_wait(world: &World, trouble: &str) {
    let (mut session, mut bystander) = (world.other_session(), Bystander::start());
    for serial in 0..COUNT as u64 {
        bystander.clock(|| send_small(&mut session, "a@other.test", serial)).unwrap();
    }
    bystander.nobody_waited(trouble);
}

#[test]
fn every_message_of_others_is_taken_and_arrives_beside_5000_dripping_senders() {
    const DRIPS: usize = 5_000;
    let world = World::open(|zone| zone, &[("[submission]", "sessions_per_peer_max = 20000\nsessions_max = 20000")]);
    let drips = Drips::start(world.instance.starttls, DRIPS);
    others_do_not_wait(&world, "5,000 drips");
    assert_eq!(drips.alive(), DRIPS, "the drips dripped all the while");
    world.wait_for(|| world.sink.arrivals.len() == COUNT, "all mail to arrive");
    assert_eq!(world.status()["shortage"], serde_json::Value::Null);
    drips.end();
}
