//! What a script keeps, of what a peer may do to it.

use std::time::Duration;

use super::*;

fn reply(code: u16, text: &str) -> Reply {
    Reply { text: text.split('\n').map(str::to_owned).collect(), ..Reply::new(code, None, "") }
}

fn draft() -> (Draft, Instant) {
    (Draft::default(), Instant::now())
}

fn line(text: &str) -> Sent {
    Sent::Line(text.to_owned())
}

fn times(draft: &Draft) -> Vec<u32> {
    draft.dialogue.steps.iter().map(|step| step.took_ms).collect()
}

#[test]
fn each_reply_belongs_to_the_earliest_line_that_has_none_and_times_add_up() {
    let (mut draft, start) = draft();
    let at = |millis| start + Duration::from_millis(millis);
    for sent in ["MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA"] {
        draft.sent(line(sent), at(0));
    }
    draft.reply(&reply(250, "ok"), at(30));
    draft.reply(&reply(550, "no"), at(35));
    draft.reply(&reply(503, "why"), at(36));
    let codes = draft.dialogue.steps.iter().map(|step| match step.heard {
        Heard::Reply(code, _, _) => code,
        _ => 0,
    });
    assert_eq!(codes.collect::<Vec<_>>(), [250, 550, 503]);
    assert_eq!((times(&draft), draft.dialogue.took_ms), (vec![30, 5, 1], 36));
    // What is ours between two steps counts for neither, only for the whole.
    draft.sent(line("RSET"), at(50));
    draft.reply(&reply(250, "ok"), at(54));
    assert_eq!((times(&draft)[3], draft.dialogue.took_ms), (4, 54));
}

#[test]
fn what_had_no_answer_is_there_without_one_and_what_broke_says_why() {
    let script = Script::new();
    script.begin(Over::Reused);
    script.failed("nothing is waited for: nobody is told");
    assert_eq!(script.take(), None);
    script.concerns(vec![7, 3]);
    for sent in ["MAIL FROM:<a@x>", "RCPT TO:<b@y>"] {
        script.line(sent.to_owned());
    }
    script.failed("connection lost");
    script.reply(&reply(421, "late"));
    let (recipients, dialogue) = script.take().unwrap();
    assert_eq!((recipients, dialogue.over), (vec![7, 3], Over::Reused));
    assert_eq!(dialogue.steps[0].heard, Heard::Failed("connection lost".to_owned()));
    assert_eq!(dialogue.steps[1].heard, Heard::Nothing);
    assert_eq!(dialogue.steps[2].sent, Sent::Nothing, "said without being asked");
    assert_eq!(script.take(), None);
}

#[test]
fn nothing_that_logs_in_and_nothing_said_to_it_is_kept() {
    let tracer = Arc::new(super::super::Tracer::new());
    let peer = "192.0.2.9:25".parse().unwrap();
    let (direction, vip) = (super::super::Direction::Out, crate::mail::VipId(1));
    let mut tap = tracer.tap(super::super::Facts { direction, tenant: None, vip, peer, towards: None });
    let script = Script::new();
    tap.keep(Some(&script));
    tap.commands(super::super::Side::Ours, b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n");
    tap.reply(&reply(535, "no AHVzZXIAc2VjcmV0"));
    tap.commands(super::super::Side::Ours, b"AUTH LOGIN\r\n");
    tap.reply(&reply(334, "c2VjcmV0"));
    tap.secret(super::super::Side::Ours);
    tap.reply(&reply(535, "no c2VjcmV0"));
    let kept = format!("{:?}", script.take().unwrap());
    assert!(!kept.contains("c2VjcmV0"), "{kept}");
    assert!(kept.contains("AUTH PLAIN (a secret)") && kept.contains("AUTH LOGIN") && kept.contains("535"), "{kept}");
    tap.keep(None);
    tap.commands(super::super::Side::Ours, b"NOOP\r\n");
    assert_eq!(script.take(), None);
}

#[test]
fn a_peer_that_says_very_much_leaves_room_for_the_end_of_it() {
    let (mut draft, now) = draft();
    let much = "\u{fffd}\x1b[2J ".repeat(500);
    draft.sent(line("MAIL FROM:<a@x>"), now);
    draft.reply(&reply(250, &much), now);
    let rcpts = 400;
    for number in 0..rcpts {
        draft.sent(line(&format!("RCPT TO:<{number}@y.example>")), now);
    }
    draft.sent(line("DATA"), now);
    for _ in 0..rcpts {
        draft.reply(&reply(250, &much), now);
    }
    draft.reply(&reply(354, "go ahead"), now);
    draft.sent(Sent::Text, now);
    draft.came(Heard::Done, now);
    draft.sent(Sent::Dot, now);
    draft.reply(&reply(250, "queued as 4F2"), now);
    let dialogue = &draft.dialogue;
    assert!(dialogue.left_out > 200, "{}", dialogue.left_out);
    let ending: Vec<&Step> = dialogue.steps.iter().rev().take(3).collect();
    assert_eq!(ending[0].heard, Heard::Reply(250, None, "queued as 4F2".to_owned()));
    assert_eq!(ending[2].heard, Heard::Reply(354, None, "go ahead".to_owned()));
    // The first recipients, in order, each with its own reply.
    for (number, step) in dialogue.steps.iter().skip(1).take(dialogue.steps.len() - 4).enumerate() {
        assert_eq!(step.sent, line(&format!("RCPT TO:<{number}@y.example>")));
        assert!(matches!(&step.heard, Heard::Reply(250, None, text) if text.ends_with(CUT)), "{step:?}");
    }
    let stored: usize = dialogue
        .steps
        .iter()
        .map(|step| match &step.heard {
            Heard::Reply(_, _, text) => text.len() + STEP_OCTETS - CUT.len(),
            _ => STEP_OCTETS,
        })
        .sum();
    assert!(stored <= DIALOGUE_OCTETS_MAX, "{stored}");
}

#[test]
fn of_many_talkative_hosts_the_first_and_the_last_are_kept() {
    let (mut draft, now) = draft();
    let much = "very much to say ".repeat(40);
    let connect = |draft: &mut Draft, host: usize| {
        draft.sent(Sent::Connecting(format!("mx{host}.y.example 192.0.2.{host}:25")), now);
        draft.came(Heard::Done, now);
        draft.sent(Sent::Greeting, now);
        draft.reply(&reply(220, &much), now);
        draft.sent(line("EHLO out.example"), now);
    };
    for host in 1..=4 {
        connect(&mut draft, host);
        draft.reply(&reply(550, &format!("host {host}: {much}")), now);
    }
    connect(&mut draft, 5);
    draft.reply(&reply(250, "mx5.y.example"), now);
    let asked = ["MAIL FROM:<a@x>", "RCPT TO:<b@y.example>", "RCPT TO:<c@y.example>"];
    asked.iter().for_each(|sent| draft.sent(line(sent), now));
    draft.reply(&reply(250, &format!("from {much}")), now);
    draft.reply(&reply(550, &format!("no b {much}")), now);
    draft.reply(&reply(451, "later c"), now);
    let dialogue = &draft.dialogue;
    let places = |text: &str| {
        let has = |step: &Step| format!("{:?}", step.sent).contains(text);
        dialogue.steps.iter().filter(|step| has(step)).collect::<Vec<_>>()
    };
    assert_eq!([1, 2, 3, 4, 5].map(|host| places(&format!("mx{host}.y")).len()), [1, 0, 0, 0, 1], "{dialogue:?}");
    assert!(dialogue.left_out >= 9, "{}", dialogue.left_out);
    let begun = |sent: &str, code: u16, text: &str| {
        let [step] = places(sent)[..] else { panic!("{sent}: {dialogue:?}") };
        assert!(
            matches!(&step.heard, Heard::Reply(own, _, said) if *own == code && said.starts_with(text)),
            "{step:?}"
        );
    };
    begun("MAIL FROM", 250, "from very much");
    begun("RCPT TO:<b", 550, "no b very much");
    begun("RCPT TO:<c", 451, "later c");
    assert!(dialogue.octets() <= DIALOGUE_OCTETS_MAX);
}

#[test]
fn of_a_first_host_that_said_too_much_how_it_began_and_ended_is_kept() {
    let (mut draft, now) = draft();
    let much = "very much to say ".repeat(40);
    draft.sent(Sent::Connecting("mx1.y.example 192.0.2.1:25".to_owned()), now);
    draft.came(Heard::Done, now);
    for _ in 0..5 {
        draft.sent(line("NOOP"), now);
        draft.reply(&reply(250, &much), now);
    }
    draft.sent(line("STARTTLS"), now);
    draft.reply(&reply(454, "not now"), now);
    draft.sent(Sent::Connecting("mx2.y.example 192.0.2.2:25".to_owned()), now);
    draft.came(Heard::Done, now);
    draft.sent(line("EHLO out.example"), now);
    draft.reply(&reply(250, &much), now);
    draft.sent(line("MAIL FROM:<a@x>"), now);
    draft.reply(&reply(250, "ok"), now);
    let sent: Vec<String> = draft.dialogue.steps.iter().map(|step| format!("{:?}", step.sent)).collect();
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert!(sent[0].contains("mx1") && sent[1].contains("STARTTLS") && sent[2].contains("mx2"), "{sent:?}");
    assert_eq!(draft.dialogue.left_out, 5);
    assert_eq!(draft.dialogue.steps[4].heard, Heard::Reply(250, None, "ok".to_owned()));
}

#[test]
fn of_what_is_said_unasked_after_a_login_the_codes_are_kept() {
    let script = Script::new();
    script.begin(Over::New);
    script.line(format!("AUTH PLAIN {SECRET}"));
    script.reply(&reply(235, "hello AG1lAHNlY3JldA=="));
    script.reply(&reply(421, "goodbye AG1lAHNlY3JldA=="));
    script.reply(&reply(421, "AG1lAHNlY3JldA=="));
    script.line("MAIL FROM:<a@b.example>".to_owned());
    script.reply(&reply(250, "ok"));
    script.reply(&reply(421, "too slow"));
    let (_, said) = script.take().unwrap();
    let heard: Vec<&Heard> = said.steps.iter().map(|step| &step.heard).collect();
    let codes = |code: u16| Heard::Reply(code, None, String::new());
    let told = |code: u16, text: &str| Heard::Reply(code, None, text.to_owned());
    assert_eq!(heard, [&codes(235), &codes(421), &codes(421), &told(250, "ok"), &told(421, "too slow")]);
}

#[test]
fn of_what_was_offered_before_tls_the_first_line_is_kept() {
    let (mut draft, now) = draft();
    for said in ["mx.example\nSIZE 9\nSTARTTLS", "mx.example\nSIZE 9\nDSN"] {
        draft.sent(line("EHLO out.example"), now);
        draft.reply(&reply(250, said), now);
    }
    let texts = draft.dialogue.steps.iter().map(|step| match &step.heard {
        Heard::Reply(_, _, text) => text.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(texts.collect::<Vec<_>>(), ["mx.example\n[...]", "mx.example\nSIZE 9\nDSN"]);
}

#[test]
fn what_came_instead_of_a_reply_to_a_login_is_not_kept() {
    let script = Script::new();
    script.begin(Over::New);
    script.line(format!("AUTH PLAIN {SECRET}"));
    script.failed("the peer's reply is not SMTP: AG1lAHNlY3JldA==");
    let (_, said) = script.take().unwrap();
    assert_eq!(said.steps[0].heard, Heard::Failed("no reply to the login".to_owned()));
}

#[test]
fn a_step_that_nothing_came_of_has_taken_until_the_end() {
    let script = Script::new();
    script.begin(Over::New);
    script.line("MAIL FROM:<a@b.example>".to_owned());
    std::thread::sleep(Duration::from_millis(20));
    let (_, said) = script.take().unwrap();
    assert_eq!(said.steps[0].heard, Heard::Nothing);
    assert!(said.steps[0].took_ms >= 20 && said.took_ms >= 20, "{said:?}");
}

#[test]
fn a_small_host_between_a_large_one_and_the_last_is_not_all_that_is_forgotten() {
    let (mut draft, now) = draft();
    let much = "very much to say ".repeat(40);
    draft.sent(Sent::Connecting("mx1.y.example 192.0.2.1:25".to_owned()), now);
    draft.came(Heard::Done, now);
    for _ in 0..4 {
        draft.sent(line("NOOP"), now);
        draft.reply(&reply(250, &much), now);
    }
    draft.sent(Sent::Connecting("mx2.y.example 192.0.2.2:25".to_owned()), now);
    draft.came(Heard::Failed("refused".to_owned()), now);
    draft.sent(Sent::Connecting("mx3.y.example 192.0.2.3:25".to_owned()), now);
    draft.came(Heard::Done, now);
    for _ in 0..4 {
        draft.sent(line("MAIL FROM:<a@x>"), now);
        draft.reply(&reply(550, &much), now);
    }
    let steps = &draft.dialogue.steps;
    let of_the_last = steps.iter().position(|step| format!("{:?}", step.sent).contains("mx3")).unwrap();
    assert_eq!(steps.len() - of_the_last, 5, "{steps:?}");
    let is_whole = |step: &Step| matches!(&step.heard, Heard::Reply(550, _, text) if text.len() > 400);
    assert!(steps[of_the_last + 1..].iter().all(is_whole), "{steps:?}");
}
