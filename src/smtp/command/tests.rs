//! Tests of command parsing: what clients send, and every mistake with its reply.

use super::*;

fn here() -> Domain {
    Domain::parse("mx.example.com").unwrap()
}

fn parse(line: &str) -> Result<Command, CommandError> {
    Command::parse(line.as_bytes(), &here())
}

fn mail_of(line: &str) -> MailCommand {
    match parse(line) {
        Ok(Command::Mail(mail)) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn rcpt_of(line: &str) -> ForwardPath {
    match parse(line) {
        Ok(Command::Rcpt(path)) => path,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn what_clients_really_send_is_understood() {
    for line in [
        "MAIL FROM:<a@b.example>",
        "mail from:<a@b.example>",
        "MAIL FROM: <a@b.example>",
        "MAIL  FROM :  <a@b.example>  ",
        "MAIL FROM:< a@b.example >",
        "MAIL FROM:<a@b.example> AUTH=<>",
        "MAIL FROM:<a@b.example> auth=a+40b.example",
    ] {
        assert_eq!(mail_of(line).reverse_path.to_string(), "<a@b.example>", "{line}");
    }
    assert_eq!(mail_of("MAIL FROM:<>").reverse_path, ReversePath(None));
    for (line, command) in [
        ("quit ", Command::Quit),
        ("noop hi", Command::Noop),
        ("HELP", Command::Help),
        ("EHLO   c.example", Command::Ehlo("c.example".into())),
        ("ehlo [192.0.2.1]", Command::Ehlo("[192.0.2.1]".into())),
        ("BDAT 86 last", Command::Bdat { octets: 86, last: true }),
        ("BDAT 0", Command::Bdat { octets: 0, last: false }),
        ("AUTH LOGIN", Command::Auth { mechanism: Mechanism::Login, initial: None }),
        (
            "auth plain AGEAYg==",
            Command::Auth { mechanism: Mechanism::Plain, initial: Some("AGEAYg==".to_owned().into()) },
        ),
        ("AUTH CRAM-MD5", Command::Auth { mechanism: Mechanism::Other, initial: None }),
        (
            "AUTH X-UNKNOWN-LONG-MECHANISM abc",
            Command::Auth { mechanism: Mechanism::Other, initial: Some("abc".to_owned().into()) },
        ),
    ] {
        assert_eq!(parse(line), Ok(command), "{line}");
    }
}

#[test]
fn lines_that_are_no_command_get_their_reply() {
    for (line, code) in [
        ("", 500),
        ("FOO", 500),
        ("MAILFROM:<a@b.example>", 500),
        ("EHLO", 501),
        ("DATA now", 501),
        ("RSET x", 501),
        ("STARTTLS x", 501),
        ("AUTH", 501),
        ("AUTH PLAIN a b", 501),
        ("BDAT", 501),
        ("BDAT -1", 501),
        ("BDAT 1 LAST x", 501),
        ("BDAT 99999999999999999999", 501),
        ("LHLO x", 502),
        ("ETRN x", 502),
        ("MAIL", 501),
        ("MAIL FROM", 501),
        ("MAIL FROM:", 501),
        ("MAIL TO:<a@b.example>", 501),
        ("MAIL FROM:a@b.example", 501),
        ("MAIL FROM:<a@b.example", 501),
        ("MAIL FROM:<a@b.example>SIZE=1", 501),
        ("MAIL FROM:<\"a@b.example>", 501),
        ("MAIL FROM:<a b@c.example>", 553),
        ("MAIL FROM:<a@[192.0.2.1]>", 553),
        ("MAIL FROM:<@x.example:a@b.example>", 553),
        ("RCPT TO:<>", 501),
        ("RCPT TO:<a>", 553),
        ("RCPT TO:<@x,@y:a@b.example>", 553),
        ("RCPT TO:<a@b.example> SIZE=1", 555),
        ("RCPT TO:<a@b.example> NOTIFY", 501),
        ("RCPT TO:<a@b.example> NOTIFY=NEVER,DELAY", 501),
        ("RCPT TO:<a@b.example> NOTIFY=DELAY,DELAY", 501),
        ("RCPT TO:<a@b.example> NOTIFY=DELAY NOTIFY=DELAY", 501),
        ("RCPT TO:<a@b.example> ORCPT=a@b.example", 501),
        ("RCPT TO:<a@b.example> ORCPT=rfc822;a+4", 501),
        ("RCPT TO:<a@b.example> ORCPT=rfc822;a+0D+0A", 501),
        ("RCPT TO:<a@b.example> ORCPT=utf-8;\u{85}ą", 501),
        ("MAIL FROM:<a@b.example> FOO=1", 555),
        ("MAIL FROM:<a@b.example> BODY=BINARYMIME", 501),
        ("MAIL FROM:<a@b.example> MT-PRIORITY=3", 555),
        ("MAIL FROM:<a@b.example> SIZE=", 501),
        ("MAIL FROM:<a@b.example> SIZE=-1", 501),
        ("MAIL FROM:<a@b.example> SIZE=1 SIZE=2", 501),
        ("MAIL FROM:<a@b.example> SMTPUTF8=yes", 501),
        ("MAIL FROM:<a@b.example> RET=SOME", 501),
        ("MAIL FROM:<a@b.example> ENVID=", 501),
        ("MAIL FROM:<a@b.example> HOLDFOR=x", 501),
        ("MAIL FROM:<a@b.example> HOLDFOR=1234567890", 501),
        ("MAIL FROM:<a@b.example> HOLDUNTIL=tomorrow", 501),
        ("MAIL FROM:<a@b.example> HOLDUNTIL=2026-11-22T10:15:00", 501),
        ("MAIL FROM:<a@b.example> HOLDFOR=1 HOLDUNTIL=2026-11-22T10:15:00Z", 501),
        ("MAIL FROM:<a@b.example>\0", 500),
        ("NOOP\rMAIL", 500),
        ("NOOP\nMAIL", 500),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.reply().code.0, code, "{line:?}: {}", error.reply());
    }
    assert_eq!(Command::parse(b"NOOP \xff", &here()), Err(CommandError::Characters));
}

#[test]
fn quotes_of_a_local_part_are_kept_by_meaning() {
    assert_eq!(mail_of("MAIL FROM:<\"a b\"@c.example>").reverse_path.to_string(), "<\"a b\"@c.example>");
    let path = rcpt_of("RCPT TO:<\"a> NOTIFY=NEVER \\\"<\"@c.example> NOTIFY=DELAY");
    assert_eq!(path.address.local_part(), "a> NOTIFY=NEVER \"<");
    assert_eq!(path.notify, Notify { failure: false, delay: true, success: false });
}

#[test]
fn the_parameters_of_mail_are_kept() {
    let mail = mail_of(
        "MAIL FROM:<a@b.example> SIZE=1000 body=8bitmime SMTPUTF8 RET=hdrs RequireTLS ENVID=QQ+2B1 HOLDUNTIL=2026-11-22T11:15:00+01:00",
    );
    assert_eq!(mail.size, Some(1000));
    let expected = MailParameters {
        body: BodyType::EightBitMime,
        smtputf8: Smtputf8::Needed,
        ret: Some(Ret::Headers),
        envid: Some("QQ+1".into()),
        hold: Some(Hold::Until(Timestamp(1_795_342_500_000))),
        require_tls: RequireTls::Asked,
    };
    assert_eq!(mail.parameters, expected);
    let held = mail_of("MAIL FROM:<a@b.example> HOLDFOR=60").parameters.hold;
    assert_eq!(held, Some(Hold::For(Duration::from_secs(60))));
    assert_eq!(mail_of("MAIL FROM:<a@b.example> SIZE=99999999999999999999").size, Some(u64::MAX));
}

#[test]
fn orcpt_is_decoded_and_keeps_its_type() {
    let path = rcpt_of("RCPT TO:<a@b.example> ORCPT=RFC822;a+2Bx@b.example NOTIFY=SUCCESS,FAILURE");
    assert_eq!(path.orcpt.as_deref(), Some("rfc822;a+x@b.example"));
    assert_eq!(path.notify, Notify { failure: true, delay: false, success: true });
    let path = rcpt_of("RCPT TO:<é@b.example> ORCPT=utf-8;é@b.example");
    assert_eq!(path.orcpt.as_deref(), Some("utf-8;é@b.example"));
}

#[test]
fn xtext_reads_back_what_was_written() {
    for text in ["a+b=c", "é €", "plain", "\"a b\"@c"] {
        assert_eq!(decode_xtext(&encode_xtext(text)).as_deref(), Some(text));
    }
    for text in ["a=b", "+4", "+4x", "+3d", "a b", "+00", "+FF"] {
        assert_eq!(decode_xtext(text), None, "{text}");
    }
}

#[test]
fn the_postmaster_needs_no_domain_and_nobody_else_does_without_one() {
    // RFC 5321 s4.5.1, in any case; s4.1.1.3.
    for line in ["RCPT TO:<postmaster>", "RCPT TO:<Postmaster> NOTIFY=NEVER"] {
        let address = rcpt_of(line).address;
        assert_eq!(address.domain().as_str(), "mx.example.com", "{line}");
        assert!(address.local_part().eq_ignore_ascii_case("postmaster"), "{line}");
    }
    for line in ["RCPT TO:<abuse>", "RCPT TO:<\"postmaster\">", "RCPT TO:<postmaster@>", "MAIL FROM:<postmaster>"] {
        assert!(matches!(parse(line), Err(CommandError::Path(..))), "{line} {:?}", parse(line));
    }
}
