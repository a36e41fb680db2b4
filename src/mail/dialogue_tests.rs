//! What is stored of a dialogue, and what is not.

use super::*;
use crate::mail::Masks;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn line(text: &str) -> Step {
    Step { sent: Sent::Line(text.to_owned()), heard: Heard::Done, took_ms: 1 }
}

fn said(steps: Vec<Step>) -> Dialogue {
    Dialogue { over: Over::New, steps, left_out: 0, took_ms: 3 }
}

/// What is kept of these lines, of a message of `shop@shop.example` to these recipients.
fn kept(lines: &[&str], (return_name, to): (Option<&Domain>, &[&str])) -> Dialogue {
    let reverse_path = ReversePath(Some(address("shop@shop.example")));
    let recipients: Vec<Address> = to.iter().map(|to| address(to)).collect();
    let recipients: Vec<&Address> = recipients.iter().collect();
    let masks = Masks::of(reverse_path.0.as_ref(), recipients.iter().copied());
    let named = Named { reverse_path: &reverse_path, return_name, recipients: &recipients };
    said(lines.iter().map(|text| line(text)).collect()).hide(&named, &masks)
}

fn shown(dialogue: &Dialogue) -> Vec<String> {
    let named = |place| match place {
        Place::ReversePath => "shop@shop.example".to_owned(),
        Place::ReturnPath => "b123@bounce.shop.example".to_owned(),
        Place::Recipient(place) => ["ann+x@one.example", "\"b > c\"@two.example"][place].to_owned(),
    };
    let mut rcpts = 0;
    let words = dialogue.steps.iter().map(|step| {
        let words = step.sent.words(rcpts, &named);
        rcpts += usize::from(matches!(step.sent, Sent::Rcpt(_)));
        words
    });
    words.collect()
}

#[test]
fn addresses_are_stored_nowhere_and_shown_again_where_they_stood() {
    let lines = [
        "EHLO out.shop.example",
        "MAIL FROM:<shop@shop.example> SIZE=9 BODY=8BITMIME",
        "RCPT TO:<ann+x@one.example> NOTIFY=FAILURE ORCPT=rfc822;ann+2Bx@one.example",
        "RCPT TO:<\"b > c\"@two.example>",
        "DATA",
    ];
    let kept = kept(&lines, (None, &["ann+x@one.example", "\"b > c\"@two.example"]));
    let bytes = String::from_utf8_lossy(&kept.to_bytes()).into_owned();
    assert!(!bytes.contains('@') && bytes.contains("NOTIFY=FAILURE"), "{bytes}");
    assert_eq!(shown(&Dialogue::from_bytes(&kept.to_bytes()).unwrap()), lines);
}

#[test]
fn what_is_the_clients_own_or_names_others_is_left_out() {
    let lines = [
        "MAIL FROM:<shop@shop.example> ENVID=order-for-bob",
        "RCPT TO:<ann+x@one.example> ORCPT=rfc822;bob@private.example",
        // No parameter that we send has an address but ORCPT. If one had, it would not be kept either; that of
        // somebody else with the name before it, since an address may have a `=` in it.
        "MAIL FROM:<shop@shop.example> X=shop@shop.example",
        "RCPT TO:<\"b > c\"@two.example> X=bob@private.example",
    ];
    assert_eq!(
        shown(&kept(&lines, (None, &["ann+x@one.example", "\"b > c\"@two.example"]))),
        [
            "MAIL FROM:<shop@shop.example> ENVID=...",
            "RCPT TO:<ann+x@one.example> ORCPT=rfc822;...",
            "MAIL FROM:<shop@shop.example> X=<sender>",
            "RCPT TO:<\"b > c\"@two.example> <address>"
        ]
    );
}

#[test]
fn a_return_path_of_ours_is_a_place_and_an_address_that_is_not_known_is_never_guessed() {
    let name = Domain::parse("bounce.shop.example").unwrap();
    let lines = ["MAIL FROM:<b123@bounce.shop.example> SIZE=9", "RCPT TO:<ann+x@one.example>"];
    assert_eq!(shown(&kept(&lines, (Some(&name), &["ann+x@one.example"]))), lines);
    let strange = ["MAIL FROM:<eve@evil.example>", "RCPT TO:<eve@evil.example>", "VRFY eve@evil.example"];
    assert_eq!(
        shown(&kept(&strange, (None, &["ann+x@one.example"]))),
        ["MAIL FROM:<[...]>", "RCPT TO:<[...]>", "VRFY <address>"]
    );
}

#[test]
fn what_a_peer_quotes_is_masked_as_in_every_event() {
    let mut dialogue = said(vec![line("RCPT TO:<ann@one.example>"), line("DATA")]);
    dialogue.steps[0].heard = Heard::Reply(550, None, "<ANN@one.example>: no, shop@shop.example".to_owned());
    dialogue.steps[1].heard = Heard::Failed("lost ann@one.example".to_owned());
    assert!(dialogue.may_quote());
    let (path, to) = (ReversePath(Some(address("shop@shop.example"))), address("ann@one.example"));
    let masks = Masks::of(path.0.as_ref(), [&to]);
    let hidden = dialogue.hide(&Named { reverse_path: &path, return_name: None, recipients: &[&to] }, &masks);
    assert_eq!(hidden.steps[0].heard, Heard::Reply(550, None, "<recipient>: no, <sender>".to_owned()));
    assert_eq!(hidden.steps[1].heard, Heard::Failed("lost <recipient>".to_owned()));
}

#[test]
fn what_the_record_of_a_delivery_says_is_not_stored_twice() {
    let reply = Reply::enhanced(250, 0, 0, "queued as 4F2");
    let to = reached("mx.one.example", "192.0.2.1:25");
    let connecting = |to: &str| Step { sent: Sent::Connecting(to.to_owned()), heard: Heard::Done, took_ms: 1 };
    let dot = Step { sent: Sent::Dot, heard: Heard::reply(&reply, STEP_OCTETS_MAX), took_ms: 2 };
    let mut dialogue = said(vec![connecting("mx.other.example 192.0.2.2:25"), connecting(&to), dot]);
    dialogue.shorten(("mx.one.example", "192.0.2.1:25"), &Reply::enhanced(250, 0, 0, "another"));
    assert!(matches!(dialogue.steps[2].heard, Heard::Reply(..)), "said of somebody else");
    dialogue.shorten(("mx.one.example", "192.0.2.1:25"), &reply);
    assert_eq!(dialogue.steps[2].heard, Heard::Outcome);
    let texts: Vec<String> = dialogue.steps.iter().map(|step| step.sent.words(0, &|_| String::new())).collect();
    assert_eq!(texts, ["mx.other.example 192.0.2.2:25", "", "."]);
}

#[test]
fn a_long_text_is_cut_with_a_mark_and_controls_are_gone() {
    assert_eq!(cut("short\nline", 20), "short\nline");
    assert_eq!(cut("a\x1b[31m\u{9b}b\rc", 20), "a?[31m?b?c");
    let long = cut(&"\u{fffd}".repeat(400), 512);
    assert!(long.ends_with(CUT) && long.len() <= 512, "{}", long.len());
    assert_eq!(cut("long enough", 0), CUT);
}

#[test]
fn a_form_of_a_later_release_is_not_guessed() {
    let dialogue = said(vec![line("DATA")]);
    let mut bytes = dialogue.to_bytes();
    assert_eq!(Dialogue::from_bytes(&bytes), Some(dialogue));
    assert_eq!(Dialogue::from_bytes(&[&bytes[..], &[0]].concat()), None, "octets behind it are damage");
    bytes[0] = 2;
    assert_eq!(Dialogue::from_bytes(&bytes), None);
    assert_eq!(Dialogue::from_bytes(&[]), None);
    assert_eq!(Dialogue::from_bytes(&[1, 9, 9, 9, 9]), None);
}

#[test]
fn the_stored_form_keeps_its_numbers() {
    // Over, a step of each kind, what came of each, times: as version 1 was first stored.
    let steps = vec![
        Step { sent: Sent::Connecting(String::new()), heard: Heard::Done, took_ms: 1 },
        Step { sent: Sent::Handshake, heard: Heard::Failed("x".to_owned()), took_ms: 2 },
        Step { sent: Sent::Greeting, heard: Heard::Reply(220, None, "a".to_owned()), took_ms: 3 },
        Step { sent: Sent::Mail(String::new()), heard: Heard::Nothing, took_ms: 4 },
        Step { sent: Sent::MailReturn(String::new()), heard: Heard::Nothing, took_ms: 5 },
        Step { sent: Sent::Rcpt(String::new()), heard: Heard::Nothing, took_ms: 6 },
        Step { sent: Sent::Text, heard: Heard::Done, took_ms: 7 },
        Step { sent: Sent::Dot, heard: Heard::Outcome, took_ms: 8 },
        Step { sent: Sent::Nothing, heard: Heard::Nothing, took_ms: 9 },
        Step { sent: Sent::Line("b".to_owned()), heard: Heard::Nothing, took_ms: 10 },
    ];
    let dialogue = Dialogue { over: Over::None, steps, left_out: 11, took_ms: 12 };
    #[rustfmt::skip]
    let stored = [
        1, 2, 10,
        0, 0, 1, 1,
        1, 4, 1, b'x', 2,
        2, 2, 220, 1, 0, 1, b'a', 3,
        4, 0, 0, 4,
        5, 0, 0, 5,
        6, 0, 0, 6,
        7, 1, 7,
        8, 3, 8,
        9, 0, 9,
        3, 1, b'b', 0, 10,
        11, 12,
    ];
    assert_eq!(dialogue.to_bytes(), stored);
    assert_eq!(Dialogue::from_bytes(&stored), Some(dialogue));
}

proptest::proptest! {
    #[test]
    fn whatever_a_peer_says_is_cut_and_read_back(said in "(?s).{0,700}", room in 0_usize..600) {
        let kept = cut(&said, room);
        proptest::prop_assert!(kept.len() <= room.max(CUT.len()));
        proptest::prop_assert!(!kept.contains(|c: char| c.is_control() && c != '\n'));
    }

    #[test]
    fn damaged_octets_never_panic(bytes in proptest::collection::vec(0_u8..=255, 0..80)) {
        let _ = Dialogue::from_bytes(&bytes);
    }
}

proptest::proptest! {
    /// Half an address is nothing that [`Masks`] would know.
    #[test]
    fn what_is_cut_has_no_half_of_an_address(
        before in "[a-z ]{0,40}",
        quoted in proptest::prop_oneof![proptest::strategy::Just("<ann.smith@shop.example>"), proptest::strategy::Just("\"ann b. smith\"@shop.example,"), proptest::strategy::Just("(ann.smith@shop.example)")],
        after in "[a-z ]{0,40}",
        room in 0_usize..120,
    ) {
        let text = format!("{before} {quoted} {after}");
        let kept = cut(&text, room);
        proptest::prop_assert!(kept.len() <= room.max(CUT.len()));
        let is_there = kept.contains("ann.smith@shop.example") || kept.contains("smith\"@shop.example");
        proptest::prop_assert!(is_there || !(kept.contains("ann") && !before.contains("ann") && !after.contains("ann")), "{kept}");
    }
}
