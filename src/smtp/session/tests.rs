//! Tests of the session: sequences, logins, limits, and arbitrary lines without a login.

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_795_342_500_000);
/// Base64 of NUL `shop` NUL `secret`.
const PLAIN: &str = "AHNob3AAc2VjcmV0";

fn session(security: Security) -> Session {
    Session::new(Arc::new(Settings::default()), Domain::parse("mx.example.com").unwrap(), security)
}

/// Feeds one line and answers each question with yes; the replies and the last step.
fn say_line(session: &mut Session, line: &str) -> (String, Step) {
    let mut out = Vec::new();
    let step = match session.line(line.as_bytes(), NOW, &mut out) {
        Step::CheckLogin(credentials) => {
            let is_right = credentials.login == "shop" && credentials.password.as_str() == "secret";
            session.login_checked(if is_right { LoginAnswer::Accepted } else { LoginAnswer::Refused }, &mut out)
        }
        Step::CheckSender(_) => session.sender_checked(Ok(()), &mut out),
        Step::CheckRecipient(_) => session.recipient_checked(Ok(()), &mut out),
        other => other,
    };
    (String::from_utf8(out).unwrap(), step)
}

fn logged_in() -> Session {
    let mut session = session(Security::Tls);
    for line in ["EHLO c.example", &format!("AUTH PLAIN {PLAIN}")] {
        say_line(&mut session, line);
    }
    assert!(session.is_logged_in());
    session
}

#[test]
fn starttls_forgets_everything() {
    let mut session = session(Security::Plain);
    say_line(&mut session, "EHLO c.example");
    assert_eq!(say_line(&mut session, "STARTTLS").1, Step::UpgradeTls);
    session.secured();
    assert_eq!(session.helo(), "");
    assert!(say_line(&mut session, &format!("AUTH PLAIN {PLAIN}")).0.starts_with("503 "));
    assert!(say_line(&mut session, "STARTTLS").0.starts_with("503 "));
}

#[test]
fn rset_forgets_the_message_and_keeps_the_login() {
    let mut session = logged_in();
    say_line(&mut session, "MAIL FROM:<a@b.example>");
    assert!(session.is_in_transaction());
    assert!(say_line(&mut session, "RSET").0.starts_with("250 "));
    assert!(!session.is_in_transaction() && session.is_logged_in());
    assert!(say_line(&mut session, "MAIL FROM:<a@b.example>").0.starts_with("250 "));
}

#[test]
fn an_answer_within_auth_is_never_a_command() {
    let mut session = session(Security::Tls);
    say_line(&mut session, "EHLO c.example");
    assert_eq!(say_line(&mut session, "AUTH LOGIN").0, "334 VXNlcm5hbWU6\r\n");
    assert_eq!(say_line(&mut session, "QUIT").0, "334 UGFzc3dvcmQ6\r\n");
    assert!(say_line(&mut session, "*").0.starts_with("501 5.7.0"));
    assert_eq!(say_line(&mut session, "NOOP").0, "250 2.0.0 OK\r\n");
}

#[test]
fn six_failed_logins_end_the_session() {
    let mut session = session(Security::Tls);
    say_line(&mut session, "EHLO c.example");
    for step in [Step::Next, Step::Next, Step::Next, Step::Next, Step::Next, Step::Close] {
        let (reply, end) = say_line(&mut session, "AUTH PLAIN AHgAeQ==");
        assert!(reply.starts_with("535 5.7.8"));
        assert_eq!(end, step);
    }
}

#[test]
fn a_foreign_authorization_identity_looks_like_a_wrong_password() {
    let mut session = session(Security::Tls);
    say_line(&mut session, "EHLO c.example");
    // admin NUL shop NUL secret
    let foreign = say_line(&mut session, "AUTH PLAIN YWRtaW4Ac2hvcABzZWNyZXQ=").0;
    assert_eq!(foreign, say_line(&mut session, "AUTH PLAIN AHgAeQ==").0);
}

#[test]
fn a_recipient_given_twice_is_kept_once() {
    let mut session = logged_in();
    for line in ["MAIL FROM:<>", "RCPT TO:<a@b.example>", "RCPT TO:<a@B.example>", "RCPT TO:<c@b.example>"] {
        assert!(say_line(&mut session, line).0.starts_with("250 "));
    }
    assert_eq!(say_line(&mut session, "DATA").1, Step::ReadData);
    assert_eq!(session.take_envelope().map(|envelope| envelope.recipients.len()), Some(2));
}

#[test]
fn the_octets_after_a_refused_bdat_are_skipped() {
    let mut session = logged_in();
    assert_eq!(say_line(&mut session, "BDAT 10 LAST").1, Step::SkipChunk { octets: 10 });
    say_line(&mut session, "MAIL FROM:<a@b.example>");
    assert_eq!(say_line(&mut session, "BDAT 10").1, Step::SkipChunk { octets: 10 });
    say_line(&mut session, "RCPT TO:<a@b.example>");
    assert_eq!(say_line(&mut session, "BDAT 10").1, Step::ReadChunk { octets: 10, last: false });
    assert!(say_line(&mut session, "DATA").0.starts_with("503 "));
    assert!(say_line(&mut session, "RCPT TO:<x@b.example>").0.starts_with("503 "));
    assert_eq!(say_line(&mut session, "BDAT 0 LAST").1, Step::ReadChunk { octets: 0, last: true });
}

/// A message whose first chunk was refused for its size.
fn refused_midway() -> Session {
    let mut session = logged_in();
    say_line(&mut session, "MAIL FROM:<a@b.example>");
    say_line(&mut session, "RCPT TO:<a@b.example>");
    assert_eq!(say_line(&mut session, "BDAT 10").1, Step::ReadChunk { octets: 10, last: false });
    let mut out = Vec::new();
    assert_eq!(session.message_answered(&Reply::enhanced(552, 3, 4, "too large"), &mut out), Step::Next);
    session
}

#[test]
fn chunks_behind_a_refused_one_are_no_errors_of_their_own_up_to_a_bound_and_the_last() {
    let mut session = refused_midway();
    for _ in 0..CHUNKS_BEHIND_MAX {
        let (reply, step) = say_line(&mut session, "BDAT 10");
        assert!(reply.starts_with("503 5.5.1") && step == Step::SkipChunk { octets: 10 }, "{reply}");
    }
    assert_eq!(session.errors, 1, "the refusal");
    say_line(&mut session, "BDAT 10");
    assert_eq!(session.errors, 2);

    let mut session = refused_midway();
    say_line(&mut session, "BDAT 10 LAST");
    assert_eq!(session.errors, 1);
    say_line(&mut session, "BDAT 10 LAST");
    assert_eq!(session.errors, 2, "it belongs to nothing");

    let mut session = refused_midway();
    let octets = session.settings.drained_octets_max();
    say_line(&mut session, &format!("BDAT {octets}"));
    assert_eq!(session.errors, 1);
    say_line(&mut session, "BDAT 1");
    assert_eq!(session.errors, 2);

    let mut session = refused_midway();
    say_line(&mut session, "NOOP");
    say_line(&mut session, "BDAT 10");
    assert_eq!(session.errors, 2, "nothing was pipelined");
}

#[test]
fn chunks_pipelined_behind_refused_recipients_count_once() {
    let mut session = logged_in();
    say_line(&mut session, "MAIL FROM:<a@b.example>");
    for _ in 0..30 {
        assert_eq!(say_line(&mut session, "BDAT 10").1, Step::SkipChunk { octets: 10 });
    }
    assert_eq!(say_line(&mut session, "BDAT 10 LAST").1, Step::SkipChunk { octets: 10 });
    assert_eq!(session.errors, 1);
}

#[test]
fn commands_without_effect_and_errors_end_a_session() {
    let mut session = logged_in();
    for _ in 0..100 {
        assert_eq!(say_line(&mut session, "NOOP").1, Step::Next);
    }
    assert!(say_line(&mut session, "NOOP").0.starts_with("421 4.7.0"));
    let mut session = logged_in();
    for _ in 0..19 {
        assert_eq!(say_line(&mut session, "FOO").1, Step::Next);
    }
    let (reply, step) = say_line(&mut session, "FOO");
    assert!(reply.contains("\r\n421 4.7.0") && step == Step::Close);
}

#[test]
fn the_driver_cannot_answer_what_was_not_asked() {
    let mut session = session(Security::Tls);
    let mut out = Vec::new();
    assert_eq!(session.login_checked(LoginAnswer::Accepted, &mut out), Step::Close);
    assert_eq!(session.sender_checked(Ok(()), &mut out), Step::Close);
    assert_eq!(session.recipient_checked(Ok(()), &mut out), Step::Close);
    assert!(!session.is_logged_in() && session.take_envelope().is_none());
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        Just("EHLO c.example"),
        Just("HELO c"),
        Just("STARTTLS"),
        Just("AUTH PLAIN"),
        Just("AUTH LOGIN"),
        Just("*"),
        Just("AUTH PLAIN AHgAeQ=="),
        Just("eA=="),
        Just("MAIL FROM:<a@b.example>"),
        Just("RCPT TO:<a@b.example>"),
        Just("DATA"),
        Just("BDAT 5 LAST"),
        Just("RSET"),
        Just("NOOP"),
        Just("QUIT"),
        Just("VRFY x"),
    ];
    prop_oneof![
        4 => words.prop_map(|line| line.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn no_line_panics_and_nothing_is_accepted_without_a_login(
        lines in proptest::collection::vec(any_line(), 0..60),
        security in prop_oneof![Just(Security::Plain), Just(Security::Tls)],
    ) {
        let mut session = session(security);
        for line in lines {
            let mut out = Vec::new();
            match session.line(&line, NOW, &mut out) {
                Step::UpgradeTls => session.secured(),
                Step::CheckLogin(_) => { session.login_checked(LoginAnswer::Refused, &mut out); }
                step @ (Step::CheckSender(_) | Step::CheckRecipient(_) | Step::ReadData | Step::ReadChunk { .. }) => {
                    prop_assert!(false, "{:?} without a login", step);
                }
                Step::Next | Step::SkipChunk { .. } | Step::Close => {}
            }
            prop_assert!(!session.is_logged_in() && session.take_envelope().is_none());
            prop_assert!(out.is_empty() || out.ends_with(b"\r\n"));
            prop_assert!(!out.starts_with(b"235"));
        }
    }
}
