//! What a peer says on several lines is on several lines wherever people look: events, `queue why`, the
//! command line, the notice; and one line of the log.

use postern::events::MailEvent;
use postern::net::Zone;

use crate::harness::outbound::{Outbound, settings};
use crate::harness::peer::{Act, Peer, Script};

const SAID: &str = "550-5.7.26 Your email has been blocked because the sender is\r\n\
    550-5.7.26 unauthenticated. See\r\n550 5.7.26 https://support.example/mail/?p=81126 x1-gsmtp";

async fn detail(act: Act) -> String {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), Script::polite().always(".", act)).await;
    let zone = Zone::new().mx("s.example", 10, "mx.s.example").ipv4("mx.s.example", "127.0.1.1".parse().unwrap());
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    let event = outbound.verdict(id).await;
    let why = outbound.queue.why(&postern::access::Actor::local(0), id).unwrap().remove(0).sentence;
    match event {
        MailEvent::Bounced { detail, .. } | MailEvent::Deferred { detail, .. } => {
            assert!(why.contains(&detail), "{why}");
            detail
        }
        MailEvent::Delivered { reply, .. } => {
            assert!(why.contains(&reply.whole()), "{why}");
            reply.whole()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_and_a_deferral_keep_every_line() {
    let kept = SAID.replace("\r\n", "\n");
    assert_eq!(detail(Act::Say(SAID)).await, format!("{kept} (after final dot)"));
    let deferred = "451-4.7.1 slow down\r\n451-4.7.1\r\n451 4.7.1 (really)";
    assert_eq!(
        detail(Act::Say(deferred)).await,
        "451-4.7.1 slow down\n451-4.7.1 \n451 4.7.1 (really) (after final dot)"
    );
    assert_eq!(
        detail(Act::Say("250-2.0.0 ok\r\n250 2.0.0 queued as 4F2")).await,
        "250-2.0.0 ok\n250 2.0.0 queued as 4F2"
    );
}

#[tokio::test]
async fn of_an_endless_tale_the_beginning_is_kept_and_marked() {
    let line = "550-5.7.1 we have told you again and again and again and again and again and again and again\r\n";
    let tale: &'static str = Box::leak(format!("{}550 5.7.1 no", line.repeat(100)).into_boxed_str());
    let kept = detail(Act::Say(tale)).await;
    assert!(kept.ends_with(" [...] (after final dot)") && kept.len() < 2200, "{} {kept}", kept.len());
    assert!(kept.lines().count() > 15);
}
