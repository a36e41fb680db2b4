//! A shop's own address is new to a receiver: what its day has no room for leaves by a warm shared address
//! that was named for the shop, if the SPF record of its return-path's domain permits that, and waits otherwise;
//! it leaves neither by another shop's address nor by a shared one that nobody named, whatever SPF says.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use postern::events::{EventKind, MailEvent};
use postern::mail::VipId;
use postern::net::Zone;
use postern::vips::Owner;
use serde_json::{Value, json};

use crate::harness::daemon::{HOSTNAME, Running, domain, operator};
use crate::harness::peer::{Peer, Script};
use crate::sending_by_http::ask;

const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 9);
/// The shop's own, being warmed.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 1);
/// Shared, named, and in the shop's SPF record.
const WARM: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 2);
/// Shared and named, and in nobody's SPF record.
const UNLISTED: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 3);
/// Shared and in the shop's SPF record, and not named for it; it is the oldest.
const UNNAMED: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 5);
/// Another shop's, and in the first one's SPF record.
const FOREIGN: Ipv4Addr = Ipv4Addr::new(127, 0, 62, 4);

/// Waits up to two minutes for something to become true.
async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}

struct Shop {
    running: Running,
    peer: Peer,
}

impl Shop {
    async fn open() -> Self {
        let peer = Peer::start((PEER, 0).into(), Script::polite()).await;
        // Domains of one receiver: mail to each has its lane, and lanes are looked at apart.
        let zone = ["peer.test", "one.test", "two.test", "three.test", "four.test"]
            .into_iter()
            .fold(Zone::new(), |zone, name| zone.mx(name, 10, "mx.peer.test"))
            .ipv4("mx.peer.test", PEER)
            .txt("shop.test", "v=spf1 include:_spf.vips.test ip4:127.0.62.1 ip4:127.0.62.4/31 -all")
            .txt("_spf.vips.test", "v=spf1 ip4:127.0.62.2 ?all")
            .txt("news.test", "v=spf1 ip4:127.0.62.1 ~all")
            // The return-path's own record decides, not that of the domain above it.
            .txt("back.news.test", "v=spf1 ip4:127.0.62.1 a:warm.vips.test -all")
            .ipv4("warm.vips.test", WARM)
            .mx("back.news.test", 10, HOSTNAME);
        let (running, _) = Running::start_with_feedback(zone, peer.address.port()).await;
        let (shop, other) = (running.tenant("shop").await, running.tenant("other").await);
        running.vip(UNNAMED, "unnamed.vips.test", Owner::Shared).await;
        running.vip(UNLISTED, "unlisted.vips.test", Owner::Shared).await;
        running.vip(OWN, "own.vips.test", Owner::Tenant(shop)).await;
        running.vip(FOREIGN, "foreign.vips.test", Owner::Tenant(other)).await;
        running.vip(WARM, "warm.vips.test", Owner::Shared).await;
        for name in ["shop.test", "news.test"] {
            running.trusted_domain(shop, name).await;
        }
        Self { running, peer }
    }

    /// Handed in by HTTP, which is by the shop's own address; the queue id.
    async fn send(&self, sender: &str, to: &str) -> String {
        let (_, said) = self.asked("POST", "/messages", message(sender, to)).await;
        said["id"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    async fn asked(&self, verb: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, _, said) = ask(&self.running, verb, path, None, body).await;
        assert!((200..300).contains(&status), "{verb} {path}: {status} {said}");
        (status, said)
    }

    /// Who connected to hand over the mail to `to`, once it is there.
    async fn left_by(&self, to: &str) -> IpAddr {
        let mut from = None;
        let mut is_there = || {
            let taken = self.peer.taken().into_iter();
            from = taken.filter(|one| one.recipients.iter().any(|line| line.contains(to))).map(|one| one.from).next();
            from.is_some()
        };
        assert!(until(&mut is_there).await, "nothing came for {to}: {}", self.peer.lines().join("\n"));
        from.unwrap()
    }

    async fn why(&self, id: &str, text: &str) -> String {
        let mut said = String::new();
        let mut is_said = || {
            let lines = self.running.daemon.queue.why(&operator(), id.parse().unwrap()).unwrap();
            said = lines.into_iter().map(|line| line.sentence).collect();
            said.contains(text)
        };
        assert!(until(&mut is_said).await, "{text:?} is not in {said:?}");
        said
    }

    fn vip(&self, address: Ipv4Addr) -> VipId {
        self.running.daemon.vips.by_address(address.into()).unwrap().id
    }

    fn moves(&self, id: &str) -> Vec<(VipId, VipId, String)> {
        let events = self.running.daemon.queue.show(&operator(), id.parse().unwrap()).unwrap().events;
        let moved = events.into_iter().filter_map(|event| match event.kind {
            EventKind::Mail(_, MailEvent::Moved { from, to, by, .. }) => Some((from, to, by)),
            _ => None,
        });
        moved.collect()
    }

    /// Messages counted today for an address, of those it may send.
    async fn warmed(&self, address: Ipv4Addr) -> (u64, u64) {
        let (_, site) = self.asked("GET", &format!("/sites/peer.test?vip={address}"), Value::Null).await;
        (site["warm_up"]["sent"].as_u64().unwrap(), site["warm_up"]["allowed"].as_u64().unwrap())
    }
}

fn message(sender: &str, to: &str) -> Value {
    json!({"tenant": "shop", "from": sender, "to": [to], "subject": "s", "text": "hello"})
}

/// What waits as long as no shared address may have it; its id.
async fn waits_for_a_name(shop: &Shop) -> String {
    // Nobody has named anything: it waits, and says so. To permit moves by hand is not to permit these.
    shop.asked("PATCH", "/tenants/shop", json!({"may_move_to_shared": true})).await;
    let waiting = shop.send("a@shop.test", "fourth@peer.test").await;
    let why = shop.why(&waiting, "not moved to a shared virtual IP: its tenant names no other shared one").await;
    assert!(why.contains("warm-up: the 2 messages of this day to mx.peer.test are used"), "{why}");
    for (named, expected) in [(FOREIGN, "is not shared"), (PEER, "there is no virtual IP")] {
        let named = json!({"region": "EU", "warm_up_overflow": [named.to_string()]});
        let (status, _, said) = ask(&shop.running, "PATCH", "/tenants/shop", None, named).await;
        assert!((400..500).contains(&status) && said.to_string().contains(expected), "{status} {said}");
    }
    // One that SPF does not permit does not help.
    shop.asked("PATCH", "/tenants/shop", json!({"warm_up_overflow": [UNLISTED.to_string()]})).await;
    shop.why(&waiting, "SPF of shop.test does not permit 127.0.62.3 (fail)").await;
    assert!(shop.moves(&waiting).is_empty());
    waiting
}

/// What waits because of its domain's record, while the record of its return-path would let it go; its id.
async fn waits_for_a_record(shop: &Shop) -> String {
    // This domain's record names neither shared address.
    let softly = shop.send("a@news.test", "softly@two.test").await;
    let why = shop.why(&softly, "SPF of news.test does not permit").await;
    assert!(why.contains("(softfail)"), "{why}");
    // Its return-path's name does: VERP's domain is what the receiver will see.
    let (domains, news) = (&shop.running.daemon.domains, domain("news.test"));
    let tenant = shop.running.daemon.accounts.tenant_named("shop").unwrap().id;
    let now = postern::ext::Timestamp::now;
    let back = domain("back.news.test");
    domains.set_return_path(&operator(), (tenant, &news), Some(back.clone()), now()).await.unwrap();
    domains.verify_return_path(&operator(), (tenant, &news), now()).await.unwrap();
    assert_eq!(domains.return_name(tenant, &news), Some(back));
    shop.send("a@news.test", "sixth@three.test").await;
    assert_eq!(shop.left_by("sixth@").await, WARM);
    softly
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_day_has_no_room_for_leaves_by_a_warm_shared_address_that_spf_permits_or_waits() {
    let mut shop = Shop::open().await;
    // The first message makes the receiver known; from then on its day has room for two.
    shop.send("a@shop.test", "first@peer.test").await;
    assert_eq!(shop.left_by("first@").await, OWN);
    let warm = json!({"vip": OWN.to_string(), "ladder": [2, 4]});
    shop.asked("POST", "/sites/peer.test/warm-up", warm).await;
    for to in ["second@peer.test", "third@peer.test"] {
        shop.send("a@shop.test", to).await;
        assert_eq!(shop.left_by(to).await, OWN);
    }

    let waiting = waits_for_a_name(&shop).await;
    shop.asked("PATCH", "/tenants/shop", json!({"may_move_to_shared": false})).await;
    let named = json!({"warm_up_overflow": [UNLISTED.to_string(), WARM.to_string()]});
    let (_, tenant) = shop.asked("PATCH", "/tenants/shop", named).await;
    let warm = json!(shop.vip(WARM).to_string());
    assert!(tenant["warm_up_overflow"].as_array().is_some_and(|named| named.contains(&warm)), "{tenant}");
    assert_eq!(tenant["may_move_to_shared"], json!(false), "one is not the other");
    let moved = shop.send("a@shop.test", "fifth@one.test").await;
    assert_eq!(shop.left_by("fifth@").await, WARM);
    let by = "system: warm-up overflow, SPF of shop.test permits 127.0.62.2";
    assert_eq!(shop.moves(&moved), [(shop.vip(OWN), shop.vip(WARM), by.to_owned())]);
    assert!(shop.peer.lines().contains(&"EHLO warm.vips.test".to_owned()));
    let taken = shop.peer.taken().pop().unwrap();
    assert!(String::from_utf8_lossy(&taken.text).contains("DKIM-Signature:"), "it is signed as before");
    for number in 0..20 {
        shop.send("a@shop.test", &format!("more{number}@one.test")).await;
    }
    for number in 0..20 {
        assert_eq!(shop.left_by(&format!("more{number}@")).await, WARM);
    }
    assert_eq!(shop.warmed(OWN).await, (2, 2), "what left by another address is not counted for this one");

    let softly = waits_for_a_record(&shop).await;
    // Over a restart the day goes on, and so does the wait.
    let (folder, zone) = shop.running.stop().await;
    shop.running = Running::start_in(folder, zone, shop.peer.address.port()).await;
    shop.why(&softly, "SPF of news.test does not permit").await;
    assert_eq!(shop.left_by("fourth@").await, WARM, "it rested since nothing permitted it");
    assert_eq!(shop.moves(&waiting), [(shop.vip(OWN), shop.vip(WARM), by.to_owned())]);
    let (sent, allowed) = shop.warmed(OWN).await;
    assert!(sent >= 2 && allowed == 2, "{sent} of {allowed}: what is stored runs ahead of the true count");

    // The shared address is warmed itself now: what is there waits its turn there, and goes nowhere.
    shop.asked("POST", "/sites/peer.test/warm-up", json!({"vip": WARM.to_string(), "ladder": [1]})).await;
    shop.asked("PATCH", "/tenants/shop", json!({"warm_up_overflow": [WARM.to_string()]})).await;
    let later = shop.send("a@shop.test", "seventh@four.test").await;
    let why = shop.why(&later, "is warmed, slowed down, parked or paused for mx.peer.test").await;
    assert!(!why.contains("unnamed.") && !why.contains("foreign."), "{why}");
    assert!(shop.moves(&later).is_empty());
    shop.asked("POST", "/sites/peer.test/warm-up/stop", json!({"vip": WARM.to_string()})).await;
    assert_eq!(shop.left_by("seventh@").await, WARM);

    // Taken back, nothing moves any more.
    shop.asked("PATCH", "/tenants/shop", json!({"warm_up_overflow": []})).await;
    let last = shop.send("a@shop.test", "last@four.test").await;
    shop.why(&last, "its tenant names no other shared one").await;
    assert!(shop.moves(&last).is_empty());
    let callers: Vec<IpAddr> = shop.peer.taken().into_iter().map(|one| one.from).collect();
    assert!(callers.iter().all(|from| [IpAddr::V4(OWN), IpAddr::V4(WARM)].contains(from)), "{callers:?}");
    assert!(
        !shop
            .peer
            .lines()
            .iter()
            .any(|line| ["foreign.", "unnamed.", "unlisted."].iter().any(|name| line.contains(name)))
    );
    shop.running.stop().await;
}
