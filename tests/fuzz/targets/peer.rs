//! What a receiving MX says: replies, and the keywords after EHLO.

use postern::delivery::{Phase, Verdict, classify};
use postern::mail::{Reply, ReplyCode};
use postern::smtp::{Extensions, MalformedReply, REPLY_LINES_MAX, REPLY_OCTETS_MAX, ReplyParser, write_reply};

use super::feed::{Feed, assert_line_ends, pieces};

type Parsed = (Vec<Reply>, Option<MalformedReply>);

fn parse(parts: &[&[u8]]) -> Parsed {
    let (mut parser, mut replies) = (ReplyParser::new(), Vec::new());
    for part in parts {
        let mut left = *part;
        while !left.is_empty() {
            let before = left.len();
            match parser.parse(&mut left) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => assert!(left.is_empty(), "octets left without a reply"),
                Err(error) => return (replies, Some(error)),
            }
            assert!(left.len() < before, "no progress");
        }
    }
    (replies, None)
}

/// Replies do not depend on how octets arrive, are bounded and printable, and a 4xx is never final.
pub fn reply(input: &[u8]) {
    let mut feed = Feed(input);
    let lengths = [feed.byte(), feed.byte()];
    let many = feed.byte();
    let stream = feed.rest().repeat(if many == 255 { 300 } else { 1 });
    let (replies, error) = parse(&pieces(&stream, &lengths));
    assert_eq!(parse(&[&stream]), (replies.clone(), error));
    for reply in &replies {
        assert!((200..600).contains(&reply.code.0));
        assert!((1..=REPLY_LINES_MAX).contains(&reply.text.len()));
        // An octet that is not UTF-8 becomes a mark of three octets.
        assert!(reply.text.iter().map(String::len).sum::<usize>() <= 3 * REPLY_OCTETS_MAX);
        assert!(reply.text.iter().all(|line| !line.chars().any(char::is_control)));
        assert!(reply.status.is_none_or(|status| u16::from(status.class) == reply.code.0 / 100));
        for number in 0..=10 {
            let phase = Phase::from_number(number);
            match classify(reply, phase) {
                Verdict::Delivered => assert!(phase == Phase::FinalDot && (200..300).contains(&reply.code.0)),
                Verdict::Bounced(_) => assert!(reply.code.0 >= 500 && phase >= Phase::Mail, "{reply} in {phase:?}"),
                Verdict::Deferred(_) => {}
            }
        }
        let mut wire = Vec::new();
        write_reply(reply, &mut wire);
        assert_line_ends(&wire, "a reply");
        assert!(wire.is_ascii() && wire.split(|byte| *byte == b'\n').all(|line| line.len() <= 511));
        if reply.text.iter().all(|line| line.is_ascii() && line.len() <= 480) {
            assert_eq!(parse(&[&wire]), (vec![reply.clone()], None));
        }
    }
}

/// What a peer offers is bounded, and said twice it is the same.
pub fn ehlo(input: &[u8]) {
    let text: Vec<String> = String::from_utf8_lossy(input).lines().map(postern::mail::printable).collect();
    let reply = Reply { code: ReplyCode(250), status: None, text };
    let found = Extensions::from_reply(&reply);
    assert!(found.mechanisms.len() <= 32);
    for (at, name) in found.mechanisms.iter().enumerate() {
        assert!(!name.is_empty() && !name.contains(' ') && !found.mechanisms[..at].contains(name));
        assert!(found.offers_mechanism(name) && !name.bytes().any(|byte| byte.is_ascii_lowercase()));
    }
    assert!(found.takes_size || found.size.is_none());
    assert!(found.size != Some(0));
    let limits = found.limits;
    assert!([limits.mail_max, limits.rcpt_max, limits.rcpt_domain_max].iter().all(|limit| *limit != Some(0)));
    let twice = [&reply.text[..], reply.text.get(1..).unwrap_or_default()].concat();
    assert_eq!(Extensions::from_reply(&Reply { text: twice, ..reply }), found);
}
