//! A shop's login mails strangers: it is paused by what becomes of its mail, over a restart, until
//! an operator releases it; another login of the same shop is not.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use postern::breaker::{LimitScope, LimitSet, Override};
use postern::ext::Timestamp;
use postern::net::Zone;
use postern::vips::Owner;

use crate::harness::daemon::{Login, Running, operator};
use crate::harness::peer::{Act, Peer, Script};

const MESSAGE: &str = "From: shop@shop.test\r\nSubject: s\r\n\r\nhello\r\n";

/// Waits up to two minutes for something to become true.
async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_so()
}

/// To another stranger each time: one that does not exist is not mailed twice.
async fn submit(running: &Running, login: &Login) -> String {
    let stranger = format!("{}@strangers.test", postern::ext::base32(&postern::ext::random_bytes::<8>()));
    running.submit(login, "shop@shop.test", &stranger, MESSAGE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_login_is_paused_and_released() {
    let script = Script::polite().times("RCPT", 3, Act::Say("550 5.1.1 no such user"));
    let peer = Peer::start("127.0.1.77:0".parse().unwrap(), script).await;
    let zone = Zone::new()
        .mx("strangers.test", 10, "mx.strangers.test")
        .ipv4("mx.strangers.test", Ipv4Addr::new(127, 0, 1, 77));
    let running = Running::start(zone, peer.address.port()).await;
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "out.shop.test", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.test").await;
    let (stolen, other) = (running.account(tenant).await, running.account(tenant).await);
    let id = running.daemon.accounts.smtp_account_named(&stolen.login).unwrap().id;
    let limits = LimitSet { recipients_min: Some(3), ..LimitSet::default() };
    let set = Override { scope: LimitScope::Account(id), limits };
    running.daemon.breaker.set_limits(&operator(), set, Timestamp::now()).await.unwrap();
    for _ in 0..3 {
        assert!(submit(&running, &stolen).await.starts_with("250"));
    }
    assert!(until(|| running.daemon.breaker.pause_of(id).is_some()).await, "three of three do not exist");
    let refused = submit(&running, &stolen).await;
    assert!(refused.starts_with("451 4.7.1") && refused.contains("3 of 3 recipients"), "{refused}");
    assert!(submit(&running, &other).await.starts_with("250"), "the other login is not touched");
    assert!(until(|| peer.taken().len() == 1).await);
    // It is paused after a restart too.
    assert!(until(|| running.daemon.breaker.pauses(&operator()).iter().all(|pause| pause.stage == HELD)).await);
    let login = stolen.login.clone();
    let (folder, zone) = running.stop().await;
    let running = Running::start_in(folder, zone, peer.address.port()).await;
    let refused = submit(&running, &stolen).await;
    assert!(refused.starts_with("451 4.7.1"), "{refused}");
    let pauses = running.daemon.breaker.pauses(&operator());
    assert_eq!(pauses.iter().map(|pause| pause.login.as_str()).collect::<Vec<_>>(), [login]);
    running.daemon.breaker.release(&operator(), id, Timestamp::now()).await.unwrap();
    assert!(submit(&running, &stolen).await.starts_with("250"));
    assert!(until(|| peer.taken().len() == 2).await, "and its mail is delivered");
    running.stop().await;
}

const HELD: postern::breaker::Stage = postern::breaker::Stage::Held;
