//! What large receivers say about our pace or our address, in their own words: from the connection to the pace
//! of that site, its event, `why`, and over a restart; mail to others goes on.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use postern::delivery::{Pacing, Picture, Settings};
use postern::events::{Event, EventKind, InstanceEvent};
use postern::net::Zone;
use postern::queue::Filter;
use postern::store::{after_prefix, codec, prefix};
use postern::vips::Owner;

use crate::harness::daemon::{Login, Running, domain, operator};
use crate::harness::peer::{Act, Peer, Script};

const MESSAGE: &str = "From: shop@shop.test\r\nSubject: s\r\n\r\nhello\r\n";
const GMAIL: &str = "421-4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from\r\n\
                     421-4.7.28 your IP address. To protect our users from spam, mail sent from your IP\r\n\
                     421 4.7.28 address has been temporarily rate limited.";
const MICROSOFT: &str = "550 5.7.1 Unfortunately, messages from [127.0.0.1] weren't sent. Please contact your Internet \
                         service provider since part of their network is on our block list (S3140).";
const YAHOO: &str = "421 4.7.0 [TSS04] Messages from 127.0.0.1 temporarily deferred due to unexpected volume or user \
                     complaints - 4.16.55.1; see the error codes page";

/// Waits up to two minutes for something to become true.
async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}

/// Sites that were slowed down or parked, with the words of the site.
fn told(running: &Running) -> Vec<(&'static str, String, String)> {
    let end = after_prefix(&[prefix::EVENT]);
    let all = running.daemon.store.range(&[prefix::EVENT], &end, usize::MAX).unwrap();
    let of_site = |bytes: Vec<u8>| match codec::decode::<Event>(&bytes).unwrap().kind {
        EventKind::Instance(InstanceEvent::SiteSlowed { site, reply, .. }) => Some(("slowed", site, reply)),
        EventKind::Instance(InstanceEvent::SiteParked { site, reply, .. }) => Some(("parked", site, reply)),
        _ => None,
    };
    all.into_iter().filter_map(|(_, bytes)| of_site(bytes)).collect()
}

fn is_told(running: &Running, what: &str, site: &str, words: &str) -> bool {
    told(running).iter().any(|(step, of, reply)| *step == what && of == site && reply.contains(words))
}

/// What the mail to a domain waits for, the oldest first.
fn why(running: &Running, to: &str) -> Vec<String> {
    let filter = Filter { recipient_domain: Some(domain(to)), ..Filter::default() };
    let page = running.daemon.queue.list(&operator(), &filter, None, 10).unwrap();
    let sentence = |id| running.daemon.queue.why(&operator(), id).unwrap().remove(0).sentence;
    page.messages.into_iter().map(|listed| sentence(listed.id)).collect()
}

/// What is kept of a site's pace, as a start would read it.
fn kept(running: &Running, site: &str) -> Option<Picture> {
    let now = running.daemon.queue.now();
    let pacing = Pacing::open(running.daemon.store.clone(), &Settings::default(), now).unwrap();
    let sites = pacing.sites(&operator(), now).unwrap();
    sites.into_iter().find(|(path, _)| &*path.site == site).map(|(_, picture)| picture)
}

async fn hand_in(running: &Running, login: &Login, to: &str) {
    let reply = running.submit(login, "shop@shop.test", to, MESSAGE).await;
    assert!(reply.starts_with("250"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_large_receivers_say_is_heeded_told_and_kept() {
    let gmail = Script::polite().always(".", Act::Say(GMAIL));
    let gmail = Peer::start("127.0.1.81:0".parse().unwrap(), gmail).await;
    let port = gmail.address.port();
    let at = |last: u8| (Ipv4Addr::new(127, 0, 1, last), port).into();
    let microsoft = Peer::start(at(82), Script::polite().always("MAIL", Act::Say(MICROSOFT))).await;
    let yahoo = Peer::start(at(83), Script::polite().always("", Act::SayAndClose(YAHOO))).await;
    let other = Peer::start(at(84), Script::polite()).await;
    let hosts = [
        ("gmail.com", "gmail-smtp-in.l.google.com", 81),
        ("outlook.com", "outlook-com.olc.protection.outlook.com", 82),
        ("yahoo.com", "mta5.am0.yahoodns.net", 83),
        ("there.test", "mx.there.test", 84),
    ];
    let zone = hosts.into_iter().fold(Zone::new(), |zone, (domain, host, last)| {
        zone.mx(domain, 10, host).ipv4(host, Ipv4Addr::new(127, 0, 1, last))
    });
    let running = Running::start(zone, port).await;
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "out.shop.test", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.test").await;
    let login = running.account(tenant).await;

    let (sites, words) = (["gmail.com", "outlook.com", "yahoo.com"], ["4.7.28", "S3140", "TSS04"]);
    for to in sites {
        hand_in(&running, &login, &format!("ann@{to}")).await;
    }
    let steps = [("slowed", "gmail"), ("parked", "microsoft-consumer"), ("slowed", "yahoo")];
    for ((step, site), words) in steps.into_iter().zip(words) {
        assert!(until(|| is_told(&running, step, site, words)).await, "{site}: {:?}", told(&running));
    }
    // What comes in now waits for the same, and nobody tries the one whose list we are on.
    let before = microsoft.connections();
    for to in sites.into_iter().chain(["there.test"]) {
        hand_in(&running, &login, &format!("bob@{to}")).await;
    }
    for (to, words) in sites.into_iter().zip(words) {
        let said = || why(&running, to);
        assert!(until(|| said().len() == 2 && said().iter().all(|why| why.contains(words))).await, "{:?}", said());
    }
    assert!(until(|| other.taken().len() == 1).await, "others' mail goes on");
    assert_eq!(microsoft.connections(), before);
    let yahoo_before = yahoo.connections();
    assert!(yahoo_before >= 1 && gmail.taken().is_empty());

    let (folder, zone) = running.stop().await;
    let running = Running::start_in(folder, zone, port).await;
    for (site, words) in ["gmail", "microsoft-consumer", "yahoo"].into_iter().zip(words) {
        let controller = kept(&running, site).unwrap().memory.controller;
        assert!(controller.rate.is_some() && controller.connections.is_some(), "{site} {controller:?}");
        assert!(controller.cause.as_ref().is_some_and(|cause| cause.contains(words)), "{site} {controller:?}");
    }
    hand_in(&running, &login, "cleo@outlook.com").await;
    let said = || why(&running, "outlook.com");
    assert!(until(|| said().len() == 3 && said().iter().all(|why| why.contains("S3140"))).await, "{:?}", said());
    assert_eq!(microsoft.connections(), before, "it is parked after the restart too");
    running.stop().await;
}
