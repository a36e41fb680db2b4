//! What is kept of a conversation with a receiving server.

use postern::mail::{
    Address, Dialogue, Domain, Heard, Masks, Named, Over, Place, ReversePath, STEP_OCTETS_MAX, Sent, Step,
    StoredDialogue, cut,
};

use super::feed::Feed;

const SENDER: &str = "shop@shop.example";
const RECIPIENTS: [&str; 2] = ["ann+x@one.example", "\"b > c\"@two.example"];

/// Stored octets are read whole or not at all; what is stored of a conversation names nobody.
pub fn dialogue(input: &[u8]) {
    read(input);
    hidden(input);
}

fn read(input: &[u8]) {
    let Some(read) = Dialogue::from_bytes(input) else { return };
    let written = read.to_bytes();
    assert_eq!(Dialogue::from_bytes(&written).as_ref(), Some(&read));
    assert_eq!(StoredDialogue::of(&read).read().as_ref(), Some(&read));
    assert!(read.octets() <= input.len(), "texts out of nothing");
    assert_eq!(Dialogue::from_bytes(&[&written[..], &[0]].concat()), None, "octets behind it are damage");
    assert_eq!(Dialogue::from_bytes(&[&[2], &written[1..]].concat()), None, "a later form is never guessed");
    let mut left_out = read.clone();
    left_out.leave_out();
    assert!(left_out.steps.is_empty() && left_out.octets() == 0 && !left_out.may_quote());
    assert!(left_out.left_out >= read.left_out);
    assert_eq!(left_out.is_left_out(), !read.steps.is_empty() || read.left_out > 0);
    // An address is put in where there is a place for it, and nowhere else.
    for step in &read.steps {
        let words = step.sent.words(7, &|place| format!("{place:?}"));
        let is_named = match &step.sent {
            Sent::Mail(_) => words.starts_with("MAIL FROM:<ReversePath>"),
            Sent::MailReturn(_) => words.starts_with("MAIL FROM:<ReturnPath>"),
            Sent::Rcpt(_) => words.starts_with("RCPT TO:<Recipient(7)>"),
            Sent::Connecting(text) | Sent::Line(text) => words == *text,
            _ => words.len() <= 1,
        };
        assert!(is_named, "{:?} is shown as {words:?}", step.sent);
    }
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

/// Lines and what came of them, as a session notes them.
fn noted(feed: &mut Feed<'_>) -> Dialogue {
    let mut steps = Vec::new();
    while !feed.is_empty() && steps.len() < 64 {
        let (kind, room) = (feed.below(8), 16 + 2 * usize::from(feed.byte()));
        let text = feed.text();
        let heard = match kind {
            0 => Heard::Failed(cut(&text, room)),
            1..=3 => Heard::Reply(550, None, cut(&text, room)),
            _ => Heard::Done,
        };
        let sent = if kind < 4 { Sent::Line("NOOP".to_owned()) } else { Sent::Line(cut(&text, room)) };
        steps.push(Step { sent, heard, took_ms: 1 });
    }
    Dialogue { over: Over::New, steps, left_out: 0, took_ms: 9 }
}

fn hidden(input: &[u8]) {
    let mut feed = Feed(input);
    let name = Domain::parse("bounce.shop.example").unwrap();
    let return_name = feed.flag().then_some(&name);
    let noted = noted(&mut feed);
    let reverse_path = ReversePath(Some(address(SENDER)));
    let recipients = RECIPIENTS.map(address);
    let recipients: Vec<&Address> = recipients.iter().collect();
    let masks = Masks::of(reverse_path.0.as_ref(), recipients.iter().copied());
    let kept = noted.hide(&Named { reverse_path: &reverse_path, return_name, recipients: &recipients }, &masks);
    assert_eq!(kept.steps.len(), noted.steps.len());
    for (kept, said) in kept.steps.iter().zip(&noted.steps) {
        let Sent::Line(line) = &said.sent else { panic!("only lines were sent") };
        assert!(line.len() <= STEP_OCTETS_MAX + 16);
        let text = match &kept.sent {
            Sent::Line(text) | Sent::Mail(text) | Sent::MailReturn(text) | Sent::Rcpt(text) => text,
            other => panic!("a line became {other:?}"),
        };
        assert!(!masks.are_in(text), "{line:?} is kept as {text:?}");
        if let Heard::Reply(_, _, text) | Heard::Failed(text) = &kept.heard {
            assert!(!masks.are_in(text), "{:?} is kept as {text:?}", said.heard);
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
        // What is put back is what was sent.
        let shown = |place| match place {
            Place::Recipient(number) => recipients[number].to_string(),
            _ => SENDER.to_owned(),
        };
        let parameters = line.split_once('>').map_or("", |(_, parameters)| parameters);
        if matches!(kept.sent, Sent::Mail(_)) && !line.contains("ENVID=") && !parameters.contains('@') {
            assert_eq!(kept.sent.words(0, &shown), *line);
        }
    }
    assert_eq!(Dialogue::from_bytes(&kept.to_bytes()).as_ref(), Some(&kept));
}
