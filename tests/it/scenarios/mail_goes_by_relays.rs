//! Smarthosts through a whole daemon, set up by the command line as an operator would: for all mail, a
//! tenant, a recipient domain; every TLS mode and both logins; and what is wrong with a relay, which
//! makes mail wait, is told, and is mended without handing anything in again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use postern::daemon::{Daemon, Overrides};
use postern::events::{Event, EventKind, MailEvent, Why};
use postern::mail::QueueId;
use postern::net::{Zone, ZoneServer};
use postern::store::{after_prefix, codec, prefix};
use postern::submission::{GivenSocket, PortMode};
use postern::vips::Owner;
use rustls_pki_types::CertificateDer;

use crate::harness::daemon::{Client, Login, Running, config, new_folder};
use crate::harness::peer::{Act, Peer, Script};

const MX: &str = "127.0.1.90";
/// The tenants' virtual IPs.
const SHOP: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 81);
const SPARE: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 82);

struct World {
    running: Running,
    /// Where mail goes that no route takes.
    mx: Peer,
    shop: Login,
    spare: Login,
}

impl World {
    async fn open(zone: Zone, trusted: Vec<CertificateDer<'static>>) -> Self {
        let mx = Peer::start(format!("{MX}:0").parse().unwrap(), Script::polite()).await;
        let zone = ["a.test", "b.test", "partner.test", "deep.partner.test"]
            .iter()
            .fold(zone, |zone, name| zone.mx(name, 10, "mx.anywhere.test"));
        let zone = zone.ipv4("mx.anywhere.test", MX.parse().unwrap());
        let zone = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        let folder = new_folder();
        let mut config = config(folder.path(), &zone, mx.address.port());
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, trusted.iter().map(pem).collect::<String>()).unwrap();
        config.trusted_roots = Some(roots);
        config.delivery.shaping.pause_first = Duration::from_millis(10);
        config.delivery.shaping.pause_max = Duration::from_millis(20);
        let sockets: Vec<(SocketAddr, GivenSocket)> = [SHOP, SPARE].map(socket).into();
        let (doors, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        let daemon = Daemon::start(config, Overrides { sockets, ..Overrides::default() }).await.unwrap();
        let zone = std::sync::Arc::new(zone);
        let running = Running { daemon, folder, zone, tls: doors[0], starttls: doors[1] };
        let mut logins = Vec::new();
        for (name, address) in [("shop", SHOP), ("spare", SPARE)] {
            let tenant = running.tenant(name).await;
            running.vip(address, &format!("out.{name}.test"), Owner::Tenant(tenant)).await;
            running.trusted_domain(tenant, &format!("{name}.test")).await;
            logins.push(running.account(tenant).await);
        }
        let spare = logins.pop().unwrap();
        Self { running, mx, shop: logins.pop().unwrap(), spare }
    }

    /// The command line, with a password in a file.
    fn postern(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> std::process::Output {
        let password = self.running.folder.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(arguments).arg("--json").arg("--socket").arg(&self.running.daemon.socket);
        if arguments.contains(&"--user") {
            command.arg("--password-file").arg(&password);
        }
        command.output().unwrap()
    }

    /// Hands a message of the shop in; its queue id.
    async fn submit(&self, to: &str) -> QueueId {
        let said = self.hand_in(to, (&self.shop, self.running.tls, "shop")).await;
        queued(&said)
    }

    async fn hand_in(&self, to: &str, (login, door, tenant): (&Login, SocketAddr, &str)) -> String {
        let from = format!("orders@{tenant}.test");
        let message = format!("From: {from}\r\nSubject: s\r\n\r\nhello\r\n");
        Client::connect(door).await.hand_in(login, &from, to, &message).await
    }

    /// The last verdict on a message, once there is one that fits.
    async fn verdict(&self, id: QueueId, fits: impl Fn(&MailEvent) -> bool) -> MailEvent {
        let mut found = None;
        let seen = || {
            let all = self.running.daemon.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX);
            let kinds = all.unwrap().into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind);
            let of_it = kinds.filter_map(|kind| match kind {
                EventKind::Mail(of, event) if of == id => Some(event),
                _ => None,
            });
            found = of_it.filter(|event| fits(event)).last();
            found.is_some()
        };
        assert!(until(seen).await, "no such verdict: {:?}", self.why(id));
        found.unwrap()
    }

    /// What was said about a message, as it is kept.
    async fn said(&self, id: QueueId) -> String {
        match self.verdict(id, |event| matches!(event, MailEvent::Attempted { .. })).await {
            MailEvent::Attempted { dialogue, .. } => format!("{:?}", dialogue.read().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// In no event, in whatever form it was sent.
    fn nothing_kept_has_the_password(&self) {
        let all = self.running.daemon.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX);
        for (_, bytes) in all.unwrap() {
            let text = String::from_utf8_lossy(&bytes);
            for form in ["c2VjcmV0", "AG1lAHNlY3JldA==", "\0me\0secret"] {
                assert!(!text.contains(form), "{text}");
            }
        }
    }

    async fn delivered(&self, id: QueueId) -> postern::events::Peer {
        match self.verdict(id, |event| matches!(event, MailEvent::Delivered { .. })).await {
            MailEvent::Delivered { peer, .. } => peer,
            other => panic!("{other:?}"),
        }
    }

    fn why(&self, id: QueueId) -> String {
        let lines = self.running.daemon.queue.why(&crate::harness::daemon::operator(), id).unwrap();
        lines.into_iter().map(|line| line.sentence).collect()
    }

    /// A message that waits for a reason: its class and what `queue why` says.
    async fn waits(&self, id: QueueId) -> (Why, String) {
        let event = self.verdict(id, |event| matches!(event, MailEvent::Deferred { .. })).await;
        let MailEvent::Deferred { why, .. } = event else { panic!("{event:?}") };
        assert!(until(|| self.why(id).contains("due in")).await, "{}", self.why(id));
        (why, self.why(id))
    }

    /// `postern queue retry`, until it has come through.
    async fn mended(&self, id: QueueId) {
        let id_text = id.to_string();
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.postern(&["queue", "retry", &id_text]);
        self.delivered(id).await;
    }
}

fn pem(certificate: &CertificateDer<'static>) -> String {
    let lines: Vec<String> = crate::harness::door::base64_of(certificate)
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8(line.to_vec()).unwrap())
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn socket(address: Ipv4Addr) -> (SocketAddr, GivenSocket) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener.local_addr().unwrap(), GivenSocket { listener, mode: PortMode::TlsFirst })
}

/// The id that was told.
fn queued(said: &str) -> QueueId {
    let id = said.strip_prefix("250 2.0.0 Queued as ").unwrap_or_else(|| panic!("{said}"));
    id.trim_end().parse().unwrap()
}

async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}

async fn relay(address: &str, script: Script) -> Peer {
    Peer::start(format!("{address}:0").parse().unwrap(), script).await
}

fn port(peer: &Peer) -> String {
    peer.address.port().to_string()
}

/// A name for each relay: certificates are checked against it.
fn zone() -> Zone {
    let relays = [("all", 91), ("own", 92), ("good", 94), ("stranger", 95), ("bare", 96)];
    relays.into_iter().fold(Zone::new(), |zone, (name, last)| {
        zone.ipv4(&format!("{name}.relay.test"), Ipv4Addr::new(127, 0, 1, last))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_narrowest_route_takes_the_mail_and_it_leaves_by_the_tenants_own_address() {
    let (starttls, first) = Script::polite().with_tls("all.relay.test");
    let starttls = starttls.offering(&["PIPELINING", "AUTH PLAIN LOGIN", "STARTTLS"]);
    // Offers LOGIN only, with TLS first.
    let (implicit, second) = Script::polite().with_tls("own.relay.test");
    let implicit = implicit.offering(&["AUTH LOGIN"]).implicit().times("AUTH LOGIN", 9, Act::Say("334 VXNlcm5hbWU6"));
    let implicit = implicit.times("BWU=", 9, Act::Say("334 UGFzc3dvcmQ6"));
    let implicit = implicit.times("C2VJCMV0", 9, Act::Say("235 2.7.0 ok"));
    let all = relay("127.0.1.91", starttls).await;
    let tenants = relay("127.0.1.92", implicit).await;
    let partners = relay("127.0.1.93", Script::polite()).await;
    let world = World::open(zone(), vec![first, second]).await;
    let id = world.submit("ann@a.test").await;
    assert_eq!(world.delivered(id).await.host, "mx.anywhere.test", "without a route it goes straight");

    world.postern(&["route", "add", "all.relay.test", "--all", "--port", &port(&all), "--user", "me"]);
    let id = world.submit("ann@a.test").await;
    let peer = world.delivered(id).await;
    assert_eq!((peer.host.as_str(), peer.source.as_str()), ("all.relay.test", "127.0.2.81"));
    assert!(peer.tls.ends_with("certificate verified"), "{peer:?}");
    assert!(all.lines().contains(&"AUTH PLAIN AG1lAHNlY3JldA==".to_owned()), "{:?}", all.lines());
    let said = world.said(id).await;
    assert!(said.contains("AUTH PLAIN (a secret)"), "{said}");
    let text = String::from_utf8(all.taken()[0].text.clone()).unwrap();
    assert!(text.starts_with("DKIM-Signature:"), "a relay gets the signed message: {text}");

    let host = ["route", "add", "127.0.1.93", "--to", "partner.test", "--tls", "opportunistic", "--port"];
    world.postern(&[&host[..], &[&port(&partners)]].concat());
    for to in ["ann@partner.test", "ann@deep.partner.test"] {
        let id = world.submit(to).await;
        let peer = world.delivered(id).await;
        assert_eq!((peer.host.as_str(), peer.tls.as_str()), ("127.0.1.93", "none (not offered)"));
    }
    assert!(!partners.lines().iter().any(|line| line.starts_with("AUTH")));

    let spare = (&world.spare, world.running.starttls, "spare");
    let id = queued(&world.hand_in("bob@b.test", spare).await);
    let peer = world.delivered(id).await;
    assert_eq!((peer.host.as_str(), peer.source.as_str()), ("all.relay.test", "127.0.2.82"), "each by its own address");
    let own = ["route", "add", "own.relay.test", "--tenant", "spare", "--tls", "implicit", "--user", "me", "--port"];
    world.postern(&[&own[..], &[&port(&tenants)]].concat());
    let id = queued(&world.hand_in("bob@b.test", spare).await);
    let peer = world.delivered(id).await;
    assert_eq!((peer.host.as_str(), peer.source.as_str()), ("own.relay.test", "127.0.2.82"));
    assert!(peer.tls.ends_with("certificate verified"), "{peer:?}");
    assert_eq!(tenants.taken().len(), 1);
    assert!(tenants.lines().contains(&"c2VjcmV0".to_owned()), "AUTH LOGIN: {:?}", tenants.lines());
    let said = world.said(id).await;
    assert!(said.contains("AUTH LOGIN") && said.contains("(a secret)"), "{said}");
    world.nothing_kept_has_the_password();
    assert_eq!(world.mx.taken().len(), 1, "nothing but the first went straight");
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_relay_makes_mail_wait_is_told_and_is_mended_in_place() {
    let (script, certificate) = Script::polite().with_tls("good.relay.test");
    let script = script.offering(&["AUTH PLAIN", "STARTTLS"]);
    let wrong = Act::Say("535-5.7.8 wrong password AG1lAHNlY3JldA== (secret)\r\n535 5.7.8 ask your admin");
    let good = relay("127.0.1.94", script.always("AUTH PLAIN AG1LAHNLY3JLDA==", wrong)).await;
    let (script, _) = Script::polite().with_tls("stranger.relay.test");
    let stranger = relay("127.0.1.95", script.offering(&["AUTH PLAIN", "STARTTLS"])).await;
    let bare = relay("127.0.1.96", Script::polite().offering(&["AUTH PLAIN"])).await;
    let world = World::open(zone(), vec![certificate]).await;
    // The user `me` with that password gets 535 there.
    let made = world.postern(&["route", "add", "good.relay.test", "--all", "--port", &port(&good), "--user", "me"]);
    let route = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let set = |more: &[&str]| world.postern(&[&["route", "set", &route], more].concat());
    let first = world.submit("ann@a.test").await;
    let (why, told) = world.waits(first).await;
    assert_eq!(why, Why::OurConfiguration);
    assert!(told.contains("535-5.7.8 wrong password [...] ([...])\n535 5.7.8 ask your admin (after AUTH)"), "{told}");
    assert!(good.taken().is_empty());
    // Its mail could go no other way.
    let refused = world.command(&["route", "remove", &route]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && told.contains("postern route set"), "{told}");
    set(&["--user", "you"]);
    world.mended(first).await;
    assert_eq!(good.taken().len(), 1, "once");

    // A certificate nobody vouches for: no password is shown, nothing leaves.
    set(&["--host", "stranger.relay.test", "--port", &port(&stranger)]);
    let second = world.submit("ann@a.test").await;
    let (_, told) = world.waits(second).await;
    assert!(told.contains("TLS:") && told.contains("certificate"), "{told}");
    // STARTTLS is not offered where it is required.
    set(&["--host", "bare.relay.test", "--port", &port(&bare)]);
    let third = world.submit("ann@a.test").await;
    let (_, told) = world.waits(third).await;
    assert!(told.contains("does not offer STARTTLS"), "{told}");
    for peer in [&stranger, &bare] {
        assert!(!peer.lines().iter().any(|line| line.starts_with("AUTH") || line.starts_with("MAIL")));
    }
    // A name that leads nowhere, and a relay that is away.
    set(&["--host", "nowhere.relay.test"]);
    let fourth = world.submit("ann@a.test").await;
    let (why, told) = world.waits(fourth).await;
    assert_eq!(why, Why::OurConfiguration);
    assert!(told.contains("relay nowhere.relay.test has no address"), "{told}");
    set(&["--host", "127.0.1.97", "--port", "1", "--no-login"]);
    let fifth = world.submit("ann@a.test").await;
    let (_, told) = world.waits(fifth).await;
    assert!(told.contains("connect:"), "{told}");
    assert_eq!((good.taken().len(), world.mx.taken().len()), (1, 0), "nothing went around the relay");
    // All of them come through once it is right.
    set(&["--host", "good.relay.test", "--port", &port(&good), "--user", "you"]);
    for id in [second, third, fourth, fifth] {
        world.mended(id).await;
    }
    assert_eq!(good.taken().len(), 5, "each once");
    assert!(until(|| world.running.daemon.queue.totals().lanes == 0).await);
    world.postern(&["route", "remove", &route]);
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_says_to_a_login_repeats_it_nowhere() {
    let login = "AUTH PLAIN AG1LAHNLY3JLDA==";
    let (script, first) = Script::polite().with_tls("all.relay.test");
    let refuses = Act::Say("535 5.7.8 AG1lAHNlY3JldA== is wrong: secret");
    let refuses = relay("127.0.1.91", script.offering(&["AUTH PLAIN", "STARTTLS"]).always(login, refuses)).await;
    let (script, second) = Script::polite().with_tls("own.relay.test");
    let garbles = Act::Say("AG1lAHNlY3JldA== what?");
    let garbles = relay("127.0.1.92", script.offering(&["AUTH PLAIN", "STARTTLS"]).always(login, garbles)).await;
    // A goodbye that nobody asked for.
    let (script, third) = Script::polite().with_tls("good.relay.test");
    let leaves = Act::Say("235 2.7.0 hello\r\n421 4.7.0 goodbye AG1lAHNlY3JldA== (secret)");
    let leaves = relay("127.0.1.94", script.offering(&["AUTH PLAIN", "STARTTLS"]).always(login, leaves)).await;
    let world = World::open(zone(), vec![first, second, third]).await;
    let made = world.postern(&["route", "add", "all.relay.test", "--all", "--port", &port(&refuses), "--user", "me"]);
    let route = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    for (host, peer, wanted) in [
        ("good.relay.test", &leaves, "421 4.7.0 goodbye [...] ([...])"),
        ("all.relay.test", &refuses, "535 5.7.8 [...] is wrong: [...]"),
        ("own.relay.test", &garbles, "what the peer said to the login is not SMTP"),
    ] {
        world.postern(&["route", "set", &route, "--host", host, "--port", &port(peer)]);
        let id = world.submit("ann@a.test").await;
        let (_, told) = world.waits(id).await;
        assert!(told.contains(wanted), "{told}");
        assert!(!world.said(id).await.contains("AG1l"));
    }
    world.nothing_kept_has_the_password();
    world.running.stop().await;
}
