//! Notices judged by mail-parser.

use mail_parser::{MessageParser, MimeHeaders, PartType};

use super::*;

const ORIGINAL: &[u8] =
    b"From: a@shop.example\r\nTo: b@x.example\r\nSubject: order\r\nMessage-ID: <1@shop.example>\r\n\
    \r\nthe body\r\n";

fn reported(address: &str) -> Reported {
    Reported {
        address: address.parse().unwrap(),
        orcpt: Some("rfc822;alias@x.example".to_owned()),
        action: Action::Failed,
        status: EnhancedStatus::new(5, 1, 1),
        remote_mta: Some("mx.x.example".to_owned()),
        diagnostic: Some(Diagnostic::Smtp(
            "550-5.1.1 The email account that you tried to reach does not exist. Please try\r\n\
             550-5.1.1 double-checking the address\r\n550 5.1.1 Learn more at https://x.example/?p=NoSuchUser"
                .to_owned(),
        )),
        last_attempt: Some(Timestamp(1_795_342_500_000)),
        will_retry_until: None,
    }
}

struct Given {
    kind: Kind,
    to: &'static str,
    ret: Option<Ret>,
    recipients: Vec<Reported>,
    original: Vec<u8>,
    original_length: Option<u64>,
}

impl Given {
    fn new(recipients: Vec<Reported>) -> Self {
        let (kind, to, ret, original) = (Kind::Failure, "a@shop.example", None, ORIGINAL.to_vec());
        Self { kind, to, ret, recipients, original, original_length: None }
    }

    fn write(&self) -> String {
        let host = Domain::parse("mx.shop.example").unwrap();
        let notice = Notice {
            kind: self.kind,
            reporting_mta: &host,
            to: &self.to.parse().unwrap(),
            about: QueueId([7; 16]),
            envid: Some("env+1"),
            ret: self.ret,
            arrival: Timestamp(1_795_342_000_000),
            recipients: &self.recipients,
            original: &self.original,
            original_length: self.original_length.unwrap_or(self.original.len() as u64),
        };
        let sealed = write(&notice, Timestamp(1_795_342_600_000)).seal();
        let mut bytes = sealed.head.to_vec();
        sealed.body.slices().for_each(|slice| bytes.extend_from_slice(&slice.unwrap()));
        assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() <= 999));
        String::from_utf8(bytes).unwrap()
    }
}

/// The types and decoded contents of the three parts.
fn parts(text: &str) -> Vec<(String, String)> {
    let message = MessageParser::new().parse(text.as_bytes()).unwrap();
    let ids = match &message.parts[0].body {
        PartType::Multipart(ids) => ids.clone(),
        other => panic!("{other:?}"),
    };
    let parts = ids.iter().map(|id| {
        let part = message.part(*id).unwrap();
        let kind = part.content_type().map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap()));
        let content = match &part.body {
            PartType::Message(inner) => String::from_utf8_lossy(inner.raw_message()).into_owned(),
            _ => String::from_utf8_lossy(part.contents()).into_owned(),
        };
        (kind.unwrap(), content)
    });
    parts.collect()
}

#[test]
fn a_failure_tells_people_and_programs_rfc_3464() {
    let text = Given::new(vec![reported("b@x.example")]).write();
    let message = MessageParser::new().parse(text.as_bytes()).unwrap();
    let kind = message.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert_eq!(message.from().unwrap().first().unwrap().address(), Some("MAILER-DAEMON@mx.shop.example"));
    assert!(
        text.contains("\r\nAuto-Submitted: auto-replied\r\n") && text.contains("\r\nReferences: <1@shop.example>\r\n")
    );
    let parts = parts(&text);
    let kinds: Vec<_> = parts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["text/plain", "message/delivery-status", "text/rfc822-headers"]);
    assert!(parts[0].1.contains("mx.x.example answered:\r\n        550-5.1.1 The email account"));
    assert_eq!(
        parts[1].1,
        "Original-Envelope-Id: env+1\r\nReporting-MTA: dns; mx.shop.example\r\n\
         Arrival-Date: Sun, 22 Nov 2026 10:06:40 +0000\r\n\r\n\
         Original-Recipient: rfc822;alias@x.example\r\nFinal-Recipient: rfc822; b@x.example\r\nAction: failed\r\n\
         Status: 5.1.1\r\nRemote-MTA: dns; mx.x.example\r\n\
         Diagnostic-Code: smtp; 550-5.1.1 The email account that you tried to reach\r\n does not exist. Please try\r\n \
         550-5.1.1 double-checking the address\r\n 550 5.1.1 Learn more at https://x.example/?p=NoSuchUser\r\n\
         Last-Attempt-Date: Sun, 22 Nov 2026 10:15:00 +0000\r\n"
    );
    assert!(parts[2].1.contains("Subject: order") && !text.contains("the body"));
}

#[test]
fn a_delay_says_until_when_and_a_success_how() {
    let mut delayed = reported("b@x.example");
    delayed.action = Action::Delayed;
    delayed.status = EnhancedStatus::new(4, 4, 1);
    delayed.diagnostic = Some(Diagnostic::Own("connection to mx.x.example timed out".to_owned()));
    delayed.will_retry_until = Some(Timestamp(1_795_602_000_000));
    let mut given = Given::new(vec![delayed]);
    given.kind = Kind::Delay;
    let parts = parts(&given.write());
    assert!(parts[1].1.contains("Action: delayed\r\nStatus: 4.4.1\r\n"));
    assert!(parts[1].1.contains("Diagnostic-Code: x-postern; connection to"));
    assert!(parts[1].1.ends_with("Will-Retry-Until: Wed, 25 Nov 2026 10:20:00 +0000\r\n"));
    assert!(parts[0].1.contains("It will be tried until Wed, 25 Nov 2026"));
    let mut given = Given::new(vec![Reported { action: Action::Relayed, diagnostic: None, ..reported("b@x.example") }]);
    given.kind = Kind::Success;
    assert!(given.write().contains("\r\nAction: relayed\r\n"));
}

#[test]
fn ret_decides_what_comes_back_rfc_3461_s4_3() {
    let third = |given: &Given| parts(&given.write()).remove(2);
    let mut given = Given::new(vec![reported("b@x.example")]);
    given.ret = Some(Ret::Full);
    assert_eq!(third(&given), ("message/rfc822".to_owned(), String::from_utf8(ORIGINAL.to_vec()).unwrap()));
    given.kind = Kind::Delay;
    assert_eq!(third(&given).0, "text/rfc822-headers", "only failures return the whole");
    given.kind = Kind::Failure;
    given.original_length = Some(1_000_000);
    assert_eq!(third(&given).0, "text/rfc822-headers", "too long");
    given.original = [ORIGINAL, &vec![b'x'; ORIGINAL_BYTES_MAX]].concat();
    given.original_length = None;
    assert_eq!(third(&given).0, "text/rfc822-headers", "too long");
    given.original_length = Some(10_000);
    given.original = b"From: a@shop.example\r\nSubject: cut\r\n off\r\nTo: every".to_vec();
    assert_eq!(third(&given).1.trim_end(), "From: a@shop.example\r\nSubject: cut\r\n off");
    given.original = Vec::new();
    assert_eq!(parts(&given.write()).len(), 2, "gone");
}

#[test]
fn a_huge_header_comes_back_in_whole_fields_only() {
    let mut given = Given::new(vec![reported("b@x.example")]);
    given.original =
        [b"From: a@shop.example\r\n".to_vec(), b"X-Many: yes\r\n".repeat(10_000), b"\r\n".to_vec()].concat();
    let third = parts(&given.write()).remove(2).1;
    assert!(third.len() <= ORIGINAL_HEADER_BYTES_MAX && third.trim_end().ends_with("X-Many: yes"));
}

#[test]
fn originals_that_are_not_ascii_come_back_encoded_rfc_6533() {
    let mut given = Given::new(vec![reported("b@x.example")]);
    given.original = "From: a@shop.example\r\nSubject: Grüße\r\n\r\nä\r\n".as_bytes().to_vec();
    let text = given.write();
    assert!(text.is_ascii());
    let (kind, content) = parts(&text).remove(2);
    assert_eq!(kind, "message/global-headers");
    assert!(content.contains("Subject: Grüße") || content.contains("Gr=C3=BC=C3=9Fe"), "{content}");
    given.ret = Some(Ret::Full);
    let text = given.write();
    assert!(text.is_ascii() && text.contains("Content-Type: message/global\r\nContent-Transfer-Encoding: base64\r\n"));
}

#[test]
fn addresses_in_utf8_are_escaped_unless_the_notice_itself_needs_smtputf8() {
    let mut given = Given::new(vec![reported("jürgen@x.example")]);
    let text = given.write();
    assert!(text.is_ascii() && text.contains("\r\nFinal-Recipient: utf-8; j\\x{FC}rgen@x.example\r\n"));
    given.to = "zoë@shop.example";
    let text = given.write();
    assert!(text.contains("\r\nTo: <zoë@shop.example>\r\n"));
    assert!(text.contains("\r\nContent-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n"));
    assert!(text.contains("\r\nFinal-Recipient: utf-8; jürgen@x.example\r\n"));
}

#[test]
fn a_reply_cannot_write_fields_or_parts_and_is_bounded() {
    let mut nasty = reported("b@x.example");
    nasty.diagnostic = Some(Diagnostic::Smtp(format!(
        "550 no\r\n\r\nFinal-Recipient: rfc822; x@evil.example\r\n\u{1}\0 b\u{f6}se {} {}",
        "y".repeat(20_000),
        "z ".repeat(50_000)
    )));
    nasty.remote_mta = Some("mx\r\nAction: delivered".to_owned());
    nasty.orcpt = Some("rfc822;x\r\n\r\ny".to_owned());
    let text = Given::new(vec![nasty]).write();
    let status = parts(&text).remove(1).1;
    assert_eq!(status.matches("\r\nFinal-Recipient:").count(), 1);
    assert_eq!(status.matches("\r\nAction:").count(), 1);
    assert_eq!(status.matches("\r\n\r\n").count(), 1);
    assert!(text.len() < 20_000, "{}", text.len());
}

#[test]
fn only_the_recipients_reported_are_named() {
    let text = Given::new(vec![reported("b@x.example"), reported("c@x.example")]).write();
    let status = parts(&text).remove(1).1;
    assert_eq!(status.matches("Final-Recipient: ").count(), 2);
    assert_eq!(status.matches("\r\n\r\n").count(), 2);
}
