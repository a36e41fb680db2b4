//! What was said in each attempt is kept with it: every step that happened, its reply and its time, whatever the
//! peer does; no address, no secret, and no more than its limits.

use postern::events::{Event, EventKind, MailEvent};
use postern::mail::{CUT, DIALOGUE_OCTETS_MAX, Dialogue, Heard, Over, Place, QueueId, STEP_OCTETS_MAX, Sent, Step};
use postern::net::Zone;
use postern::store::{Store as _, after_prefix, codec, prefix};

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Act, Peer, Script};

fn zone() -> Zone {
    Zone::new().mx("s.example", 10, "mx.s.example").ipv4("mx.s.example", "127.0.1.1".parse().unwrap())
}

async fn world(script: Script) -> (Peer, Outbound) {
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let outbound = Outbound::start("127.0.2.1", zone(), settings(peer.address.port())).await;
    (peer, outbound)
}

/// What was said about a message so far, and about whom.
fn said(outbound: &Outbound, id: QueueId) -> Vec<(Vec<u16>, Dialogue)> {
    let all = outbound.happened(id).into_iter().filter_map(|event| match event {
        MailEvent::Attempted { recipients, dialogue } => Some((recipients, dialogue.read().unwrap())),
        _ => None,
    });
    all.collect()
}

/// Every event as it is stored.
fn stored(outbound: &Outbound) -> Vec<(Vec<u8>, Vec<u8>)> {
    outbound.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap()
}

fn words(sent: &Sent) -> String {
    let named = |place| match place {
        Place::Recipient(place) => format!("recipient {place}"),
        other => format!("{other:?}"),
    };
    match sent {
        Sent::Rcpt(_) => "RCPT".to_owned(),
        Sent::Connecting(_) => "connecting".to_owned(),
        Sent::Handshake | Sent::Greeting | Sent::Text | Sent::Nothing => format!("{sent:?}"),
        _ => sent.words(0, &named),
    }
}

/// What was sent, and the code it had, in order.
fn steps(dialogue: &Dialogue) -> Vec<String> {
    let step = |step: &Step| {
        let heard = match &step.heard {
            Heard::Reply(code, _, _) => code.to_string(),
            Heard::Failed(_) => "failed".to_owned(),
            other => format!("{other:?}"),
        };
        format!("{} {heard}", words(&step.sent))
    };
    dialogue.steps.iter().map(step).collect()
}

const OPENING: [&str; 3] = ["connecting Done", "Greeting 220", "EHLO out.sender.example 250"];
const MAIL: &str = "MAIL FROM:<ReversePath> SIZE=49 250";

fn opened(rest: &[&str]) -> Vec<String> {
    OPENING.iter().chain(rest).map(|&step| step.to_owned()).collect()
}

/// Times add up: each step is within the whole.
fn times_fit(dialogue: &Dialogue) {
    let sum: u64 = dialogue.steps.iter().map(|step| u64::from(step.took_ms)).sum();
    // Each step is rounded down, and so is the whole.
    assert!(sum <= u64::from(dialogue.took_ms) + 1, "{dialogue:?}");
}

#[tokio::test]
async fn of_a_delivery_every_step_is_kept_and_of_the_next_over_the_same_connection_its_own() {
    let (peer, outbound) = world(Script::polite()).await;
    let first = outbound.owe(&["ann@s.example"]).await;
    outbound.verdict(first).await;
    let second = outbound.owe(&["ann@s.example"]).await;
    outbound.verdict(second).await;
    assert_eq!(peer.connections(), 1);
    let [(recipients, dialogue)] = &said(&outbound, first)[..] else { panic!() };
    assert_eq!((recipients.as_slice(), dialogue.over, dialogue.left_out), (&[0][..], Over::New, 0));
    let transaction = [MAIL, "RCPT 250", "DATA 354", "Text Done", ". Outcome"];
    assert_eq!(steps(dialogue), opened(&transaction));
    times_fit(dialogue);
    let offers = dialogue.steps.iter().find_map(|step| match &step.heard {
        Heard::Reply(_, _, text) if words(&step.sent).starts_with("EHLO") => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(offers, Some("mx.example\nPIPELINING\n8BITMIME\nSIZE 10000000\nHELP"));
    let [(_, dialogue)] = &said(&outbound, second)[..] else { panic!() };
    assert_eq!((dialogue.over, steps(dialogue)), (Over::Reused, transaction.map(str::to_owned).to_vec()));
    // The outcome comes behind what led to it.
    let happened = outbound.happened(first);
    let place = |wanted: fn(&MailEvent) -> bool| happened.iter().position(wanted);
    let attempted = place(|event| matches!(event, MailEvent::Attempted { .. }));
    assert!(attempted.is_some() && attempted < place(|event| matches!(event, MailEvent::Delivered { .. })));
}

#[tokio::test]
async fn one_transaction_is_kept_once_for_those_it_was_for_with_the_reply_to_each() {
    for offers in [&["PIPELINING"][..], &[]] {
        let script =
            Script::polite().offering(offers).always("RCPT TO:<BOB", Act::Say("450 4.2.1 <bob@s.example> later"));
        let (_peer, outbound) = world(script).await;
        let id = outbound.owe(&["ann@s.example", "bob@s.example"]).await;
        outbound.judged(id, 2).await;
        let [(recipients, dialogue)] = &said(&outbound, id)[..] else { panic!("{:?}", outbound.happened(id)) };
        assert_eq!(recipients, &[0, 1]);
        let mail = MAIL.replace(" SIZE=49", "");
        assert_eq!(
            steps(dialogue),
            opened(&[&mail, "RCPT 250", "RCPT 450", "DATA 354", "Text Done", ". Outcome"]),
            "{offers:?}"
        );
        let later = dialogue.steps.iter().filter(|step| matches!(step.sent, Sent::Rcpt(_))).nth(1).unwrap();
        let Heard::Reply(450, Some(status), text) = &later.heard else { panic!("{later:?}") };
        assert_eq!((status.to_string().as_str(), text.as_str()), ("4.2.1", "<recipient> later"));
        times_fit(dialogue);
    }
}

#[tokio::test]
async fn a_refusal_at_the_end_and_a_connection_that_breaks_are_there_as_they_were() {
    let (_peer, outbound) = world(Script::polite().always(".", Act::Say("554 5.7.1 spam"))).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Bounced { .. }));
    let (_, dialogue) = said(&outbound, id).remove(0);
    assert_eq!(steps(&dialogue), opened(&[MAIL, "RCPT 250", "DATA 354", "Text Done", ". 554"]));

    let (_peer, outbound) = world(Script::polite().always("RCPT", Act::Close)).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { .. }));
    let (_, dialogue) = said(&outbound, id).remove(0);
    assert_eq!(steps(&dialogue), opened(&[MAIL, "RCPT failed", "DATA Nothing"]));
    assert!(matches!(&dialogue.steps[4].heard, Heard::Failed(why) if why.starts_with("connection lost after")));

    let (_peer, outbound) = world(Script::polite().always("DATA", Act::CloseWithinMessage(8))).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { .. }));
    let (_, dialogue) = said(&outbound, id).remove(0);
    let kept = steps(&dialogue);
    assert_eq!(kept[..6], opened(&[MAIL, "RCPT 250", "DATA 354"]));
    // The break may be seen while the text is being written or when the reply to it is waited for.
    assert!(kept.last().unwrap().ends_with(" failed"), "{kept:?}");
    let all = format!("{dialogue:?}");
    assert!(!all.contains("dotted"), "nothing of the message is in it: {all}");
}

#[tokio::test]
async fn a_silent_peer_is_waited_for_and_how_long_is_kept() {
    let (_peer, outbound) = world(Script::polite().always("MAIL", Act::Silence)).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { .. }));
    let (_, dialogue) = said(&outbound, id).remove(0);
    let step = &dialogue.steps[3];
    assert!(matches!(&step.heard, Heard::Failed(why) if why.starts_with("no reply in time")), "{step:?}");
    // The limit for MAIL in these tests is 700 ms.
    assert!(step.took_ms >= 690 && dialogue.took_ms >= step.took_ms, "{step:?}");
}

#[tokio::test]
async fn a_connection_that_could_not_be_had_is_kept_with_every_host_that_was_tried() {
    let two = Zone::new()
        .mx("s.example", 10, "mx1.s.example")
        .mx("s.example", 20, "mx2.s.example")
        .ipv4("mx1.s.example", "127.0.1.1".parse().unwrap())
        .ipv4("mx2.s.example", "127.0.1.2".parse().unwrap());
    // Nobody listens at the first, and the second does not serve us.
    let script = Script::polite().always("", Act::SayAndClose("554 5.7.1 we know you"));
    let peer = Peer::start("127.0.1.2:0".parse().unwrap(), script).await;
    let outbound = Outbound::start("127.0.2.1", two, settings(peer.address.port())).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Deferred { .. }));
    let (recipients, dialogue) = said(&outbound, id).remove(0);
    assert_eq!((recipients, dialogue.over), (vec![0], Over::None));
    assert_eq!(steps(&dialogue), ["connecting failed", "connecting Done", "Greeting 554"]);
    let hosts: Vec<String> = dialogue.steps.iter().map(|step| step.sent.words(0, &|_| String::new())).collect();
    assert!(hosts[0].starts_with("mx1.s.example 127.0.1.1:") && hosts[1].starts_with("mx2.s.example"), "{hosts:?}");
}

#[tokio::test]
async fn a_kept_connection_that_was_dead_is_a_dialogue_of_its_own() {
    let script = Script::polite();
    let (peer, outbound) = world(script.clone()).await;
    let first = outbound.owe(&["ann@s.example"]).await;
    outbound.verdict(first).await;
    let _script = script.once("MAIL", Act::Close);
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
    assert_eq!(peer.connections(), 2);
    let all = said(&outbound, id);
    let [(_, dead), (_, new)] = &all[..] else { panic!("{all:?}") };
    assert_eq!((dead.over, new.over), (Over::Reused, Over::New));
    assert_eq!(steps(dead)[0], MAIL.replace("250", "failed"));
    assert_eq!(steps(new), opened(&[MAIL, "RCPT 250", "DATA 354", "Text Done", ". Outcome"]));
}

#[tokio::test]
async fn the_handshake_is_a_step_and_what_was_offered_before_it_is_not_kept() {
    let (script, certificate) = Script::polite().with_tls("mx.s.example");
    let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
    let settings = settings(peer.address.port());
    let outbound = Outbound::start_trusting("127.0.2.1", zone(), settings, vec![certificate]).await;
    let id = outbound.owe(&["ann@s.example"]).await;
    assert!(matches!(outbound.verdict(id).await, MailEvent::Delivered { .. }));
    let (_, dialogue) = said(&outbound, id).remove(0);
    let tls = ["STARTTLS 220", "Handshake Done", OPENING[2], MAIL, "RCPT 250", "DATA 354", "Text Done", ". Outcome"];
    assert_eq!(steps(&dialogue), opened(&tls));
    let hellos: Vec<&str> = dialogue
        .steps
        .iter()
        .filter_map(|step| match &step.heard {
            Heard::Reply(_, _, text) if words(&step.sent).starts_with("EHLO") => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(hellos[0], format!("mx.example\n{CUT}"));
    assert!(hellos[1].contains("PIPELINING"), "{hellos:?}");
}

#[tokio::test]
async fn a_peer_that_says_very_much_and_controls_costs_no_more_than_the_limits() {
    let line = "250-2.1.5 \u{1b}[2J\u{7}ok and then some more of it\u{9b}31m, again and again and again and again";
    let tale: &'static str = Box::leak(format!("{}250 2.1.5 end", format!("{line}\r\n").repeat(150)).into_boxed_str());
    let script = Script::polite()
        .always("", Act::Say("220-mx.example\u{1b}]0;owned\u{7}\r\n220 ESMTP\u{0}"))
        .always("MAIL", Act::Say(tale))
        .times("RCPT", 39, Act::Say(tale));
    let (_peer, outbound) = world(script).await;
    let to: Vec<String> = (0..40).map(|number| format!("r{number}@s.example")).collect();
    let id = outbound.owe(&to.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(until(|| !said(&outbound, id).is_empty()).await);
    let (_, dialogue) = said(&outbound, id).remove(0);
    let mut cut = 0;
    for step in &dialogue.steps {
        let Heard::Reply(_, _, text) = &step.heard else { continue };
        assert!(text.len() <= STEP_OCTETS_MAX, "{}", text.len());
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        cut += usize::from(text.ends_with(CUT));
    }
    assert!(cut >= 2, "{dialogue:?}");
    let stored = dialogue.to_bytes().len();
    assert!(stored <= DIALOGUE_OCTETS_MAX, "{stored}");
    let last = steps(&dialogue).pop().unwrap();
    assert!(last.starts_with(". "), "what it came to is there: {last}");
}

#[tokio::test]
async fn no_event_has_an_address_of_the_message_in_it() {
    let script = Script::polite()
        .always("MAIL", Act::Say("250 2.1.0 <shop@sender.example>... Sender ok"))
        .always("RCPT TO:<BOB", Act::Say("550 5.1.1 <BOB@s.example>... User unknown"));
    let (_peer, outbound) = world(script).await;
    let id = outbound.owe(&["ann@s.example", "bob@s.example"]).await;
    outbound.judged(id, 2).await;
    for (_, bytes) in stored(&outbound) {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        for address in ["ann@s.example", "bob@s.example", "shop@sender.example"] {
            assert!(!text.contains(address), "{text}");
        }
    }
}

#[tokio::test]
async fn with_a_return_path_each_recipient_has_a_dialogue_of_his_own() {
    let (_peer, outbound) = world(Script::polite()).await;
    let mut message = outbound.message(&["ann@s.example", "bob@s.example"]);
    message.return_path = Some(postern::mail::Domain::parse("bounce.sender.example").unwrap());
    let id = message.id;
    outbound.queue.enqueue(message, postern::ext::Timestamp::now()).await.unwrap();
    outbound.judged(id, 2).await;
    let all = said(&outbound, id);
    let of: Vec<&[u16]> = all.iter().map(|(recipients, _)| recipients.as_slice()).collect();
    assert_eq!(of, [[0], [1]]);
    for (_, dialogue) in &all {
        assert!(steps(dialogue).contains(&"MAIL FROM:<ReturnPath> SIZE=49 250".to_owned()), "{:?}", steps(dialogue));
    }
    assert_eq!((all[0].1.over, all[1].1.over), (Over::New, Over::Reused));
}

/// What a large receiver says, about as long as what the largest say.
fn talkative() -> Script {
    let offers = ["SIZE 157286400", "8BITMIME", "PIPELINING", "CHUNKING", "SMTPUTF8", "ENHANCEDSTATUSCODES"];
    Script::polite()
        .offering(&offers)
        .always("", Act::Say("220 mx.s.example ESMTP 4fb4d7f45d1cf-6491abc1234si812a12.345 - gsmtp"))
        .always("MAIL", Act::Say("250 2.1.0 OK 4fb4d7f45d1cf-6491abc1234si812a12.345 - gsmtp"))
        .always("RCPT", Act::Say("250 2.1.5 OK 4fb4d7f45d1cf-6491abc1234si812a12.345 - gsmtp"))
        .always("DATA", Act::Say("354 anyway"))
}

#[tokio::test]
async fn for_a_message_delivered_at_the_first_try_it_costs_below_500_octets() {
    let (secured, certificate) = talkative().with_tls("mx.s.example");
    for (name, script) in [("short replies", Script::polite()), ("long replies and TLS", secured)] {
        let peer = Peer::start("127.0.1.1:0".parse().unwrap(), script).await;
        let (settings, roots) = (settings(peer.address.port()), vec![certificate.clone()]);
        let outbound = Outbound::start_trusting("127.0.2.1", zone(), settings, roots).await;
        let mut costs = Vec::new();
        for _ in 0..2 {
            let before = stored(&outbound).len();
            let id = outbound.owe(&["ann@s.example"]).await;
            outbound.verdict(id).await;
            assert!(until(|| outbound.happened(id).contains(&MailEvent::Retired)).await);
            let (mut with, mut without) = (0, 0);
            for (key, bytes) in stored(&outbound).into_iter().skip(before) {
                let event = codec::decode::<Event>(&bytes).unwrap().kind;
                let is_said = matches!(event, EventKind::Mail(_, MailEvent::Attempted { .. }));
                with += key.len() + bytes.len();
                without += if is_said { 0 } else { key.len() + bytes.len() };
            }
            costs.push((without, with - without));
        }
        let [(first, new), (second, reused)] = costs[..] else { panic!() };
        eprintln!(
            "{name}: {new} octets beside {first} over a new connection, {reused} beside {second} over an open one"
        );
        assert!(new > 0 && new < 500 && reused > 0 && reused < 250, "{costs:?}");
    }
}
