//! Mail exchangers that are slow, rude, broken or malicious, over real sockets.

use std::time::Duration;

use postern::events::{MailEvent, Why};
use postern::net::Zone;

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};

/// One mail exchanger behind `shop.example`.
async fn world(script: Script) -> (Peer, Outbound) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let zone =
        Zone::new().mx("shop.example", 10, "mx.shop.example").ipv4("mx.shop.example", "127.0.1.1".parse().unwrap());
    let outbound = Outbound::start("127.0.2.1", zone, settings(peer.address.port())).await;
    (peer, outbound)
}

/// The verdict on one message to one recipient of such a peer.
async fn verdict(script: Script) -> MailEvent {
    let (_peer, outbound) = world(script).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    outbound.verdict(id).await
}

fn deferred(event: &MailEvent) -> (Why, String) {
    match event {
        MailEvent::Deferred { why, detail, .. } => (*why, detail.clone()),
        other => panic!("not deferred: {other:?}"),
    }
}

#[tokio::test]
async fn a_polite_peer_gets_the_message_byte_for_byte_from_the_messages_own_address() {
    let (peer, outbound) = world(Script::polite()).await;
    let id = outbound.owe(&["ann@shop.example"]).await;
    let MailEvent::Delivered { peer: by, reply, .. } = outbound.verdict(id).await else { panic!() };
    assert_eq!(
        (by.host.as_str(), by.source.as_str(), by.tls.as_str()),
        ("mx.shop.example", "127.0.2.1", "none (not offered)")
    );
    assert_eq!(reply.one_line(), "250 2.0.0 queued");
    let taken = peer.taken().remove(0);
    assert_eq!(taken.text, b"Subject: hello\r\n\r\nfirst\r\n.dotted\r\n..twice\r\nlast\r\n");
    assert_eq!(taken.from.to_string(), "127.0.2.1");
    assert!(taken.mail.starts_with("MAIL FROM:<shop@sender.example> SIZE="), "{}", taken.mail);
    assert_eq!(peer.lines()[0], "EHLO out.sender.example");
}

#[tokio::test]
async fn a_peer_without_pipelining_or_ehlo_is_served_step_by_step() {
    for script in [Script::polite().offering(&[]), Script::polite().always("EHLO", Act::Say("502 5.5.1 what?"))] {
        let (peer, outbound) = world(script).await;
        let id = outbound.owe(&["ann@shop.example", "bob@shop.example"]).await;
        let verdicts = outbound.judged(id, 2).await;
        assert!(matches!(verdicts[..], [MailEvent::Delivered { .. }]), "{verdicts:?}");
        assert_eq!(peer.taken()[0].recipients.len(), 2);
        assert!(!peer.taken()[0].mail.contains("SIZE="));
    }
}

#[tokio::test]
async fn greylisting_is_tried_again_later_and_said_so() {
    let (why, detail) = deferred(&verdict(Script::polite().always("RCPT", Act::Say("450 4.2.0 Greylisted"))).await);
    assert_eq!((why, detail.as_str()), (Why::TryLater, "450 4.2.0 Greylisted (after RCPT)"));
}

#[tokio::test]
async fn each_recipient_of_a_mixture_gets_a_verdict_of_its_own() {
    for offers in [&["PIPELINING"][..], &[]] {
        let script = Script::polite()
            .offering(offers)
            .always("RCPT TO:<GONE@", Act::Say("550 5.1.1 no such user"))
            .always("RCPT TO:<FULL@", Act::Say("452 4.2.2 mailbox full"))
            .always("RCPT TO:<ODD@", Act::SayRaw(b"550-5.7.1 go\r\n550 5.7.1 away\r\n"));
        let (peer, outbound) = world(script).await;
        let to = ["ann@shop.example", "gone@shop.example", "full@shop.example", "odd@shop.example", "bob@shop.example"];
        let id = outbound.owe(&to).await;
        let mut found = Vec::new();
        for verdict in outbound.judged(id, 5).await {
            match verdict {
                MailEvent::Delivered { recipients, .. } => {
                    found.extend(recipients.iter().map(|number| (*number, None)))
                }
                MailEvent::Deferred { recipients, why, .. } | MailEvent::Bounced { recipients, why, .. } => {
                    found.extend(recipients.iter().map(|number| (*number, Some(why))));
                }
                other => panic!("{other:?}"),
            }
        }
        found.sort_by_key(|(number, _)| *number);
        let expected = [
            (0, None),
            (1, Some(Why::RecipientGone)),
            (2, Some(Why::MailboxFull)),
            (3, Some(Why::PolicyOrReputation)),
            (4, None),
        ];
        assert_eq!(found, expected);
        assert_eq!(peer.taken().len(), 1);
    }
}

#[tokio::test]
async fn a_connection_closed_with_421_at_any_point_defers_and_never_bounces() {
    for command in ["", "EHLO", "MAIL", "RCPT", "DATA", "."] {
        for offers in [&["PIPELINING"][..], &[]] {
            let script = Script::polite().offering(offers).always(command, Act::SayAndClose("421 4.3.2 closing"));
            let (why, detail) = deferred(&verdict(script).await);
            assert_eq!(why, Why::TryLater, "at {command:?}: {detail}");
            assert!(detail.contains("421 4.3.2 closing"), "{detail}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_hangs_up_without_a_word_defers() {
    for command in ["", "EHLO", "MAIL", "RCPT", "DATA"] {
        let (why, detail) = deferred(&verdict(Script::polite().always(command, Act::Close)).await);
        assert_eq!(why, Why::Network, "at {command:?}: {detail}");
    }
}

#[tokio::test]
async fn a_peer_that_drops_the_connection_within_the_message_defers() {
    let (why, _) = deferred(&verdict(Script::polite().always("DATA", Act::CloseWithinMessage(5))).await);
    assert!(matches!(why, Why::Network | Why::UnknownOutcome), "{why:?}");
}

#[tokio::test]
async fn a_connection_lost_after_the_final_dot_is_an_unknown_outcome_to_be_tried_again() {
    let (why, detail) = deferred(&verdict(Script::polite().always(".", Act::Close)).await);
    assert_eq!(why, Why::UnknownOutcome);
    assert!(detail.contains("may have taken the message"), "{detail}");
}

#[tokio::test]
async fn a_tarpit_costs_one_timeout_and_not_one_per_octet() {
    let started = std::time::Instant::now();
    let (why, detail) = deferred(&verdict(Script::polite().always("", Act::Drip(Duration::from_millis(200)))).await);
    assert_eq!(why, Why::Network, "{detail}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_peer_that_never_answers_defers_at_each_point() {
    for command in ["", "EHLO", "MAIL", "DATA"] {
        let (why, detail) = deferred(&verdict(Script::polite().always(command, Act::Silence)).await);
        assert_eq!(why, Why::Network, "at {command:?}: {detail}");
    }
    let (why, _) = deferred(&verdict(Script::polite().always(".", Act::Silence)).await);
    assert_eq!(why, Why::UnknownOutcome);
}

#[tokio::test]
async fn endless_and_malformed_replies_end_the_conversation() {
    for act in [
        Act::EndlessLine,
        Act::EndlessLines,
        Act::Say("hello there"),
        Act::Say("25"),
        Act::Say("999 what"),
        Act::Say("099 what"),
        Act::SayRaw(b"250-one\r\n550 two\r\n"),
        Act::SayRaw(b"\0\0\0\0\r\n"),
    ] {
        let (why, detail) = deferred(&verdict(Script::polite().always("MAIL", act.clone())).await);
        assert_eq!(why, Why::Network, "{act:?}: {detail}");
    }
}

#[tokio::test]
async fn replies_without_end_cost_one_timeout_at_most_at_each_stage() {
    for act in [Act::EndlessLine, Act::EndlessLines, Act::EndlessDrip(Duration::from_millis(20))] {
        for command in ["", "EHLO", "MAIL", "RCPT", "DATA", "."] {
            for offers in [&["PIPELINING"][..], &[]] {
                let script = Script::polite().offering(offers).always(command, act.clone());
                let (peer, outbound) = world(script).await;
                let id = outbound.owe(&["ann@shop.example"]).await;
                let (why, detail) = deferred(&outbound.verdict(id).await);
                // Only after the dot may the peer have taken it, and then nothing else is claimed.
                let expected = if command == "." { Why::UnknownOutcome } else { Why::Network };
                assert_eq!(why, expected, "{act:?} at {command:?}: {detail}");
                assert!(peer.taken().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_reply_to_starttls_without_end_is_no_tls_and_nothing_leaves_where_tls_is_demanded() {
    for act in [Act::EndlessLine, Act::EndlessLines, Act::EndlessDrip(Duration::from_millis(20))] {
        let (script, _) = Script::polite().always("STARTTLS", act.clone()).with_tls("mx.shop.example");
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let zone =
            Zone::new().mx("shop.example", 10, "mx.shop.example").ipv4("mx.shop.example", "127.0.1.1".parse().unwrap());
        let mut settings = settings(peer.address.port());
        settings.mx_tls = postern::delivery::MxTls::Encrypted;
        let outbound = Outbound::start("127.0.2.1", zone, settings).await;
        let id = outbound.owe(&["ann@shop.example"]).await;
        let (_, detail) = deferred(&outbound.verdict(id).await);
        assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "{act:?}: {detail}");
    }
}

#[tokio::test]
async fn a_goodbye_without_end_undoes_no_delivery_and_keeps_no_other_mail_waiting() {
    for act in [Act::EndlessLine, Act::EndlessLines, Act::EndlessDrip(Duration::from_millis(20)), Act::Silence] {
        let (peer, outbound) =
            world(Script::polite().offering(&["LIMITS MAILMAX=1"]).always("QUIT", act.clone())).await;
        for _ in 0..3 {
            let id = outbound.owe(&["ann@shop.example"]).await;
            let verdict = outbound.verdict(id).await;
            assert!(matches!(verdict, MailEvent::Delivered { .. }), "{act:?}: {verdict:?}");
        }
        assert!(until(|| peer.lines().iter().any(|line| line == "QUIT")).await, "{act:?}");
        assert_eq!((peer.taken().len(), peer.connections()), (3, 3), "{act:?}");
    }
}

#[tokio::test]
async fn a_3xx_where_a_yes_belongs_is_none() {
    for command in ["", "EHLO", "MAIL", "RCPT", "."] {
        for offers in [&["PIPELINING"][..], &[]] {
            let script = Script::polite().offering(offers).always(command, Act::Say("354 go on"));
            let (why, detail) = deferred(&verdict(script).await);
            assert_eq!(why, Why::Other, "at {command:?}: {detail}");
            assert!(detail.contains("354 go on"), "{detail}");
        }
    }
}

#[tokio::test]
async fn a_reply_before_its_command_is_not_taken_for_an_answer() {
    for (command, bytes) in [
        ("EHLO", &b"250-mx\r\n250 PIPELINING\r\n250 2.0.0 queued\r\n"[..]),
        ("DATA", b"354 go\r\n250 2.0.0 queued already\r\n"),
    ] {
        let (why, detail) = deferred(&verdict(Script::polite().always(command, Act::SayRaw(bytes))).await);
        assert_eq!(why, Why::Network, "{detail}");
        assert!(detail.contains("before it was asked"), "{detail}");
    }
}

#[tokio::test]
async fn a_354_without_any_recipient_is_ended_with_a_lone_dot_and_nothing_is_delivered() {
    let script =
        Script::polite().times("RCPT", 1, Act::Say("550 5.1.1 no such user")).times("DATA", 1, Act::Say("354 anyway"));
    let (peer, outbound) = world(script).await;
    let id = outbound.owe(&["gone@shop.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Bounced { why: Why::RecipientGone, .. }));
    let next = outbound.owe(&["ann@shop.example"]).await;
    assert!(matches!(outbound.verdict(next).await, MailEvent::Delivered { .. }));
    assert_eq!(peer.taken().len(), 1);
}

#[tokio::test]
async fn a_message_refused_after_the_dot_bounces_with_the_whole_reply() {
    let script = Script::polite().always(".", Act::SayRaw(b"554-5.7.1 We think\r\n554 5.7.1 this is spam\r\n"));
    let MailEvent::Bounced { why, detail, peer, .. } = verdict(script).await else { panic!() };
    assert_eq!((why, detail.as_str()), (Why::Content, "554-5.7.1 We think\n554 5.7.1 this is spam (after final dot)"));
    assert_eq!(peer.unwrap().host, "mx.shop.example");
}

#[tokio::test]
async fn a_5xx_greeting_speaks_about_us_and_the_mail_waits() {
    let (why, _) = deferred(&verdict(Script::polite().always("", Act::Say("554 5.7.1 go away"))).await);
    assert_eq!(why, Why::PolicyOrReputation);
}

#[tokio::test]
async fn a_peer_that_takes_few_recipients_at_a_time_gets_several_transactions() {
    for offers in [&["PIPELINING", "LIMITS RCPTMAX=2"][..], &["PIPELINING"][..]] {
        let mut script = Script::polite().offering(offers);
        if offers.len() == 1 {
            for person in ["C", "D"] {
                let command = if person == "C" { "RCPT TO:<C@" } else { "RCPT TO:<D@" };
                script = script.times(command, 1, Act::Say("452 4.5.3 too many recipients"));
            }
        }
        let (peer, outbound) = world(script).await;
        let id = outbound.owe(&["a@shop.example", "b@shop.example", "c@shop.example", "d@shop.example"]).await;
        let verdicts = outbound.judged(id, 4).await;
        assert!(verdicts.iter().all(|verdict| matches!(verdict, MailEvent::Delivered { .. })), "{verdicts:?}");
        assert_eq!(peer.taken().iter().map(|taken| taken.recipients.len()).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(peer.connections(), 1);
    }
}

#[tokio::test]
async fn what_the_peer_lacks_is_a_clear_permanent_failure() {
    let (peer, outbound) = world(Script::polite().offering(&["PIPELINING", "SIZE 20"])).await;
    let mut eight = outbound.message(&["ann@shop.example"]);
    eight.needs_8bit = postern::queue::Needs8bit::Yes;
    let mut utf8 = outbound.message(&["ann@shop.example"]);
    utf8.parameters.smtputf8 = postern::mail::Smtputf8::Needed;
    let large = outbound.message(&["ann@shop.example"]);
    for (message, code, why) in
        [(eight, "5.6.3", Why::Unsupported), (utf8, "5.6.7", Why::Unsupported), (large, "5.3.4", Why::TooLarge)]
    {
        let id = message.id;
        outbound.queue.enqueue(message, postern::ext::Timestamp::now()).await.unwrap();
        let MailEvent::Bounced { why: found, detail, .. } = outbound.verdict(id).await else { panic!() };
        assert_eq!(found, why);
        assert!(detail.contains(code), "{detail}");
    }
    assert!(!peer.lines().iter().any(|line| line.starts_with("MAIL")), "the peer was not even asked");
}

#[tokio::test]
async fn dsn_parameters_are_passed_on_where_they_are_understood() {
    use postern::mail::{Notify, Ret};
    for (offers, expected) in [
        (
            &["DSN"][..],
            [
                "MAIL FROM:<shop@sender.example> RET=HDRS ENVID=a+2Bb+20c",
                "RCPT TO:<ann@shop.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+3Dy@z",
            ],
        ),
        (&[], ["MAIL FROM:<shop@sender.example>", "RCPT TO:<ann@shop.example>"]),
    ] {
        let (peer, outbound) = world(Script::polite().offering(offers)).await;
        let mut message = outbound.message(&["ann@shop.example"]);
        message.parameters.ret = Some(Ret::Headers);
        message.parameters.envid = Some("a+b c".to_owned());
        message.recipients[0].notify = Notify { success: true, failure: false, delay: true };
        message.recipients[0].orcpt = Some("rfc822;x=y@z".to_owned());
        let id = message.id;
        outbound.queue.enqueue(message, postern::ext::Timestamp::now()).await.unwrap();
        outbound.verdict(id).await;
        assert_eq!(peer.lines()[1..3], expected);
    }
}

#[tokio::test]
async fn a_dead_site_defers_everything_that_waits_for_it_with_the_reason() {
    let (peer, outbound) = world(Script::polite()).await;
    drop(peer);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(outbound.owe(&["ann@shop.example"]).await);
    }
    let reached = until(|| ids.iter().filter(|id| !outbound.verdicts(**id).is_empty()).count() >= 1);
    assert!(reached.await);
    let (why, detail) = deferred(&outbound.verdict(ids[0]).await);
    assert_eq!(why, Why::Network);
    assert!(detail.contains("refused"), "{detail}");
}
