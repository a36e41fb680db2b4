//! What a sender or a mail exchanger writes stays where it belongs: no line end, parameter or second
//! message hidden in a name, an address, a reply or a body reaches a header, a command or a notice.

use std::process::Command;

use super::world::{World, hand_in};
use crate::harness::peer::{Act, Script};
use crate::harness::process::Instance;
use crate::harness::zone::zone_of_sink;

/// What must never begin a line anywhere.
const MARK: &str = "X-Evil: 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quoted_local_parts_carry_no_parameter_onto_the_wire() {
    let offers = ["PIPELINING", "8BITMIME", "SIZE 10000000", "DSN"];
    let world = World::open(Script::polite().offering(&offers)).await;
    let locals = [
        r#""a> SIZE=1 ""#,
        r#""a> NOTIFY=NEVER ""#,
        r#""a\"> NOTIFY=NEVER ""#,
        r#""a\\> NOTIFY=NEVER ""#,
        r#""a b""#,
        r#""a>""#,
        r#""<a>""#,
        r#""""#,
        r#"" ""#,
        r#""a\ b""#,
        r#""RCPT TO:<x>""#,
    ];
    let mut taken = 0;
    for local in locals {
        for (from, to) in [
            ("a@shop.test".to_owned(), format!("{local}@there.test")),
            (format!("{local}@shop.test"), "b@there.test".to_owned()),
        ] {
            let mut client = world.session(&world.shop.1).await;
            let message = b"From: <a@shop.test>\r\n\r\nbody\r\n";
            let (mail, rcpt) = (format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}> NOTIFY=FAILURE"));
            let reply = hand_in(&mut client, &mail, &rcpt, message).await;
            // Refused, or carried as it is; nothing between.
            assert!(reply.starts_with(['2', '5']), "{mail} {rcpt}: {reply}");
            taken += usize::from(reply.starts_with('2'));
        }
    }
    assert!(taken >= 8, "{taken}");
    world.taken(taken).await;
    for line in world.peer.lines().iter().filter(|line| line.starts_with("MAIL ") || line.starts_with("RCPT ")) {
        let (path, parameters) = split_path(line);
        for parameter in parameters.split_whitespace() {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let is_ours = match name {
                "SIZE" => value.parse::<u64>().is_ok_and(|size| size > 100),
                "NOTIFY" => value == "FAILURE",
                "BODY" | "RET" | "ENVID" | "ORCPT" => true,
                _ => false,
            };
            assert!(is_ours, "{parameter} after {path} in {line}");
        }
    }
    world.running.stop().await;
}

/// The path with its angles, read as RFC 5321 has it, and what follows it.
fn split_path(line: &str) -> (&str, &str) {
    let begin = line.find('<').unwrap();
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, character) in line[begin..].char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '>' if !is_quoted => return line[begin..].split_at(at + 1),
            _ => {}
        }
    }
    panic!("the path does not end: {line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_a_client_or_a_peer_says_becomes_a_line_of_a_message_or_a_notice() {
    let refusal: &'static [u8] = b"550-5.1.1 gone\x0bX-Evil: 1\x7f\x85X-Evil: 1\r\n550 5.1.1 \xe2\x80\xa8X-Evil: 1\r\n";
    let script = Script::polite().offering(&["PIPELINING", "DSN"]).always("RCPT TO:<GONE", Act::SayRaw(refusal));
    let world = World::open(script).await;
    let cr = |text: &str| text.replace("~", "\r").replace("^", "\u{b}");
    let fields = [
        ("EHLO", cr("client.test~X-Evil: 1")),
        ("EHLO", cr("client.test^X-Evil: 1")),
        ("EHLO", "client.test(\u{2028}X-Evil: 1)".to_owned()),
        ("EHLO", "[IPv6:X-Evil: 1]".to_owned()),
        ("ENVID", "a+0D+0AX-Evil:+201".to_owned()),
        ("ENVID", "a+0AX-Evil:+201".to_owned()),
        ("ENVID", "a+00".to_owned()),
        ("ORCPT", "rfc822;a+0D+0AX-Evil:+201".to_owned()),
        ("ORCPT", "rfc822;a+0D+0A+0D+0AX-Evil:+201".to_owned()),
        ("ORCPT", "rfc822+0D+0AX-Evil:;a".to_owned()),
        ("MAIL", cr("\"a~X-Evil: 1\"@shop.test")),
        ("RCPT", cr("\"gone~X-Evil: 1\"@there.test")),
        ("Subject", "=?utf-8?Q?a=0D=0AX-Evil:_1?=".to_owned()),
        ("Subject", "a\u{2028}X-Evil: 1\u{85}X-Evil: 1".to_owned()),
        ("From", "=?utf-8?Q?a=0D=0AX-Evil:_1?= <a@shop.test>".to_owned()),
        ("From", "\"a\u{2028}X-Evil: 1\" <a@shop.test>".to_owned()),
        ("Message-ID", cr("<a^X-Evil: 1@shop.test>")),
        ("nothing", String::new()),
    ];
    let mut taken = 0;
    for (number, (field, text)) in fields.iter().enumerate() {
        let is = |name: &str| *field == name;
        let with = |name: &str, own: &str| if is(name) { text.clone() } else { own.to_owned() };
        let mut client = world.session(&world.shop.1).await;
        let greeted = client.say(&format!("EHLO {}", with("EHLO", "client.test"))).await;
        if !greeted.starts_with('2') {
            assert!(greeted.starts_with('5'), "{field}: {greeted}");
            continue;
        }
        let envid = if is("ENVID") { format!(" ENVID={text}") } else { String::new() };
        let orcpt = if is("ORCPT") { format!(" ORCPT={text}") } else { String::new() };
        let mail = format!("MAIL FROM:<{}>{envid}", with("MAIL", "a@shop.test"));
        // Who has bounced is not tried again: each message has a recipient of its own.
        let gone = with("RCPT", &format!("gone{number}@there.test"));
        let rcpt = format!("RCPT TO:<{gone}>{orcpt} NOTIFY=FAILURE");
        let message = format!(
            "From: {}\r\nSubject: {}\r\nMessage-ID: {}\r\n\r\nbody\r\n",
            with("From", "<a@shop.test>"),
            with("Subject", "hello"),
            with("Message-ID", "<1@shop.test>"),
        );
        let reply = hand_in(&mut client, &mail, &rcpt, message.as_bytes()).await;
        assert!(reply.starts_with(['2', '5']), "{field} {text:?}: {reply}");
        taken += usize::from(reply.starts_with('2'));
    }
    assert!(taken >= 3, "{taken} of {}", fields.len());
    eprintln!("{taken} of {} were taken, and bounced", fields.len());
    world.settled().await;
    // Each was refused by the peer, so each comes back as a notice.
    for notice in world.taken(taken).await {
        let text = String::from_utf8_lossy(&notice.text).into_owned();
        assert!(text.contains("multipart/report") && text.contains("message/delivery-status"), "{text}");
        assert!(!text.lines().any(|line| line.starts_with(MARK)), "{text}");
        // No reader's idea of a line end makes one of it either; the sender's own header fields,
        // which come back as they were, are the sender's affair.
        let returned = ["text/rfc822-headers", "message/rfc822", "message/global"];
        let parts = returned.iter().filter_map(|kind| text.find(&format!("Content-Type: {kind}")));
        let end = parts.min().unwrap_or(text.len());
        assert!(!text[..end].contains(['\u{b}', '\u{7f}', '\0']), "{text:?}");
        assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{text:?}");
    }
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_hidden_in_a_body_is_neither_taken_here_nor_carried_on() {
    let world = World::open(Script::polite()).await;
    let hidden =
        "MAIL FROM:<ceo@evil.test>\r\nRCPT TO:<x@there.test>\r\nDATA\r\nFrom: <ceo@evil.test>\r\n\r\nhidden\r\n";
    let endings = [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\n.\r",
        "\r.\n",
        "\r\n\r.\r\n",
        "\r\r\n.\r\r\n",
        "\n\n.\n\n",
        "\r\n.\r\r\n",
        "\n\r\n.\n\r\n",
    ];
    let mut taken = 0;
    for ending in endings {
        for chunked in [false, true] {
            let mut client = world.session(&world.shop.1).await;
            let message = format!("From: <a@shop.test>\r\n\r\none{ending}{hidden}");
            let reply = if chunked {
                for line in ["MAIL FROM:<a@shop.test>", "RCPT TO:<b@there.test>"] {
                    assert!(client.say(line).await.starts_with("250"));
                }
                // `say` ends the line, so the last CRLF of the chunk is its.
                let text = message.strip_suffix("\r\n").unwrap();
                client.say(&format!("BDAT {} LAST\r\n{text}", message.len())).await
            } else {
                hand_in(&mut client, "MAIL FROM:<a@shop.test>", "RCPT TO:<b@there.test>", message.as_bytes()).await
            };
            assert!(reply.starts_with(['2', '5']), "{ending:?}: {reply}");
            taken += usize::from(reply.starts_with('2'));
            // The very next command is answered as such: no hidden one was.
            let reply = client.say("NOOP").await;
            assert!(reply.starts_with("250"), "after {ending:?}: {reply}");
        }
    }
    assert!(taken >= endings.len(), "{taken}");
    for message in world.taken(taken).await {
        assert_eq!(message.mail.split('>').next(), Some("MAIL FROM:<a@shop.test"));
        let text = String::from_utf8_lossy(&message.text).replace("\r\n", "");
        assert!(!text.contains(['\r', '\n', '\0']), "a bare line end left: {text:?}");
    }
    world.running.stop().await;
}

#[test]
fn names_given_on_the_command_line_hold_no_line_end_and_no_control_character() {
    let folder = tempfile::tempdir().unwrap();
    let zone = zone_of_sink(&["there.test"]);
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), zone.address, 25);
    instance.start();
    instance.furnish();
    let run = |arguments: &[&str]| {
        let config = instance.config();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(arguments).arg("--config").arg(config).output().unwrap()
    };
    let evil = [
        "x\r\nX-Evil: 1",
        "x\nX-Evil: 1",
        "x\rX-Evil: 1",
        "x\u{b}y",
        "x\u{7f}",
        "x\u{2028}y",
        "x y",
        "x@shop.test\nX-Evil: 1",
    ];
    let before = run(&["tenant", "list", "--json"]).stdout;
    for text in evil {
        let name = format!("{text}.shop.test");
        let acts: &[&[&str]] = &[
            &["tenant", "add", text],
            &["vip", "add", "127.0.0.77", "--shared", "--ehlo", &name],
            &["domain", "add", "shop", &name],
            &["domain", "trust", "shop", &name],
            &["suppression", "add", "shop", text],
            &["route", "add", "--to", &name, "relay.test"],
            &["route", "add", "--all", &name],
            &["smtp-account", "add", text],
            &["smtp-account", "disable", text],
            &["queue", "show", text],
        ];
        for act in acts {
            let output = run(act);
            assert!(!output.status.success(), "{act:?} was taken");
            assert!(!output.stderr.is_empty(), "{act:?} fails without a word");
            // A complaint may repeat the argument to whoever typed it; what is for programs may not.
            assert!(output.stdout.is_empty(), "{act:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
    assert_eq!(run(&["tenant", "list", "--json"]).stdout, before, "nothing was made");
    assert!(instance.stop().success());
}
