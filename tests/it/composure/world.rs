//! A whole daemon in this process, with two tenants behind one shared virtual IP and a scripted mail
//! exchanger for everybody's domains: what the tests of hostile senders share.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use postern::daemon::{Daemon, Overrides};
use postern::mail::TenantId;
use postern::net::{Zone, ZoneServer};
use postern::vips::Owner;

use crate::harness::daemon::{Client, Login, Running, config, new_folder};
use crate::harness::door::plain;
use crate::harness::outbound::until;
use crate::harness::peer::{Peer, Script, Taken};

/// The mail exchanger.
const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);

pub struct World {
    pub running: Running,
    pub peer: Peer,
    pub zone: Zone,
    pub shop: (TenantId, Login),
    pub evil: (TenantId, Login),
}

impl World {
    /// `shop` may send as `shop.test`, `evil` as `evil.test`; the peer takes all mail by `script`.
    pub async fn open(script: Script) -> Self {
        let peer = Peer::start((PEER, 0).into(), script).await;
        let mut zone = Zone::new().ipv4("mx.peer.test", PEER);
        for name in ["there.test", "shop.test", "evil.test"] {
            zone = zone.mx(name, 10, "mx.peer.test");
        }
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Arc::new(ZoneServer::bind(nowhere, zone.clone()).await.unwrap());
        let folder = new_folder();
        let mut config = config(folder.path(), &server, peer.address.port());
        let port = TcpListener::bind(nowhere).unwrap().local_addr().unwrap().port();
        config.submission.tls_ports = vec![port];
        config.queue.notice_gather = Duration::ZERO;
        let daemon = Daemon::start(config, Overrides::default()).await.unwrap();
        let tls = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let running = Running { daemon, folder, zone: server, tls, starttls: tls };
        running.vip(Ipv4Addr::LOCALHOST, "mx.host.test", Owner::Shared).await;
        let (shop, evil) = (running.tenant("shop").await, running.tenant("evil").await);
        running.trusted_domain(shop, "shop.test").await;
        running.trusted_domain(evil, "evil.test").await;
        let (shop, evil) = ((shop, running.account(shop).await), (evil, running.account(evil).await));
        wait_for_door(tls).await;
        Self { running, peer, zone, shop, evil }
    }

    /// Logged in as `login`.
    pub async fn session(&self, login: &Login) -> Client {
        let mut client = Client::connect(self.running.tls).await;
        assert!(client.say("EHLO client.test").await.starts_with("250"));
        let reply = client.say(&format!("AUTH PLAIN {}", plain(&login.login, &login.password))).await;
        assert!(reply.starts_with("235 "), "{reply}");
        client
    }

    /// Waits until the peer has taken so many messages.
    pub async fn taken(&self, count: usize) -> Vec<Taken> {
        until(|| self.peer.taken().len() >= count).await;
        let taken = self.peer.taken();
        assert_eq!(taken.len(), count, "messages at the peer");
        taken
    }

    /// Waits until nothing is owed.
    pub async fn settled(&self) {
        let is_settled = || {
            let owed = self.running.daemon.queue.totals();
            (owed.lanes, owed.claimed, owed.notices) == (0, 0, 0)
        };
        assert!(until(is_settled).await, "{:?}", self.running.daemon.queue.totals().lanes);
    }
}

async fn wait_for_door(door: SocketAddr) {
    for _ in 0..500 {
        if tokio::net::TcpStream::connect(door).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the door stays shut");
}

/// Hands one message in over an open session; the first refusal, or the last reply.
pub async fn hand_in(client: &mut Client, mail: &str, rcpt: &str, message: &[u8]) -> String {
    for line in [mail, rcpt, "DATA"] {
        let reply = client.say(line).await;
        if !reply.starts_with(['2', '3']) {
            return reply;
        }
    }
    client.say_octets(&[message, b"\r\n."].concat()).await
}
