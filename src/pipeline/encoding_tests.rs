//! Conversions judged by mail-parser: what people see never changes, and what can be ASCII is.

use mail_parser::{MessageParser, MimeHeaders, PartType};
use proptest::prelude::*;

use super::super::samples::{self, smtp_about};
use super::*;
use crate::mail::PART_FIELDS_MAX;

fn stage(spill_folder: &std::path::Path) -> Encoding {
    Encoding {
        spill_folder: spill_folder.to_owned(),
        rewrite_kib: Arc::new(Semaphore::new(64)),
        rewrite_kib_max: 64,
        message_bytes_max: 25 * 1024 * 1024,
    }
}

async fn converted(message: &[u8]) -> (Vec<u8>, Octets) {
    let mut draft = samples::draft_of(message);
    let mut about = smtp_about("a@shop.example", &["b@x.example"]);
    stage(&std::env::temp_dir()).apply(&mut draft, &mut about).await.unwrap();
    (samples::bytes_of(&draft), about.octets)
}

/// Each part as people see it: type, name and decoded content, attached messages included.
fn seen(message: &[u8]) -> Vec<String> {
    fn walk(message: &mail_parser::Message<'_>, out: &mut Vec<String>) {
        out.push(format!("{:?}", message.subject()));
        for part in &message.parts {
            // A part without a type may get the one that every reader assumes.
            let kind = part.content_type().map_or("text/plain utf-8".to_owned(), |kind| {
                let charset = kind.attribute("charset").unwrap_or_default();
                format!("{}/{} {charset}", kind.ctype(), kind.subtype().unwrap_or_default())
            });
            let content = match &part.body {
                PartType::Text(text) | PartType::Html(text) => text.trim_end().to_owned(),
                PartType::Binary(bytes) | PartType::InlineBinary(bytes) => {
                    String::from_utf8_lossy(bytes).trim_end().to_owned()
                }
                PartType::Message(inner) => {
                    walk(inner, out);
                    String::from("message")
                }
                PartType::Multipart(ids) => format!("{} parts", ids.len()),
            };
            out.push(format!("{kind} {:?} {content:?}", part.attachment_name()));
        }
    }
    let mut out = Vec::new();
    walk(&MessageParser::new().parse(message).unwrap(), &mut out);
    out
}

fn longest_line(message: &[u8]) -> usize {
    message.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).len()).max().unwrap()
}

#[tokio::test]
async fn people_see_the_same_and_relays_see_short_ascii_lines() {
    for name in [
        "plain",
        "eight-bit-utf8",
        "eight-bit-latin1",
        "eight-bit-cyrillic",
        "long-lines",
        "multipart",
        "forwarded",
        "calendar",
    ] {
        let message = samples::sample(&format!("{name}.eml"));
        let (out, octets) = converted(&message).await;
        assert_eq!(seen(&out), seen(&message), "{name}\n{}", String::from_utf8_lossy(&out));
        assert!(out.is_ascii() && octets == Octets::Seven, "{name}\n{}", String::from_utf8_lossy(&out));
        assert!(longest_line(&out) <= LINE_OCTETS_MAX, "{name}");
        let (again, _) = converted(&out).await;
        assert!(again == out, "{name}: a second time changes nothing");
    }
}

#[tokio::test]
async fn a_clean_message_keeps_every_byte() {
    let message = samples::sample("plain.eml");
    assert!(converted(&message).await.0 == message);
}

#[tokio::test]
async fn the_encoding_is_chosen_by_what_is_shorter() {
    let encoding = |name: &'static str| async move {
        let (out, _) = converted(&samples::sample(name)).await;
        samples::draft_of(&out).header.text("Content-Transfer-Encoding").unwrap()
    };
    assert_eq!(encoding("eight-bit-utf8.eml").await, "quoted-printable");
    assert_eq!(encoding("eight-bit-cyrillic.eml").await, "base64");
    assert_eq!(encoding("calendar.eml").await, "quoted-printable");
    assert_eq!(encoding("multipart.eml").await, "7bit");
    let (out, _) = converted(&samples::sample("eight-bit-latin1.eml")).await;
    let header = samples::draft_of(&out).header;
    assert_eq!(header.text("Content-Type").as_deref(), Some("text/plain; charset=iso-8859-1"));
}

#[tokio::test]
async fn a_message_without_mime_gets_what_it_needs() {
    let (out, octets) = converted(&samples::sample("eight-bit-no-mime.eml")).await;
    let header = samples::draft_of(&out).header;
    assert_eq!(header.text("Content-Type").as_deref(), Some("text/plain; charset=utf-8"));
    assert_eq!(header.text("MIME-Version").as_deref(), Some("1.0"));
    assert_eq!(octets, Octets::Seven);
    assert_eq!(MessageParser::new().parse(&out).unwrap().body_text(0).unwrap().trim_end(), "Grüße ohne MIME");
}

#[tokio::test]
async fn what_is_signed_or_encrypted_is_never_touched() {
    for kind in ["signed", "encrypted"] {
        let message = String::from_utf8(samples::sample("signed-smime.eml")).unwrap();
        let message = message.replace("multipart/signed", &format!("multipart/{kind}")).into_bytes();
        let (out, octets) = converted(&message).await;
        assert!(out == message);
        assert_eq!(octets, Octets::Eight);
    }
}

#[tokio::test]
async fn beside_a_signed_part_others_are_converted_and_the_message_stays_8_bit() {
    let message = samples::sample("mixed-with-signed.eml");
    let (out, octets) = converted(&message).await;
    let text = String::from_utf8(out.clone()).unwrap();
    assert_eq!(octets, Octets::Eight);
    assert_eq!(samples::draft_of(&out).header.text("Content-Transfer-Encoding").as_deref(), Some("8bit"));
    let original = String::from_utf8(message.clone()).unwrap();
    let signed = |text: &str| text[text.find("--sig").unwrap()..text.find("--sig--").unwrap()].to_owned();
    assert_eq!(signed(&text), signed(&original));
    assert!(text.contains("Fu=C3=9Fzeile"));
    assert_eq!(seen(&out), seen(&message));
}

#[tokio::test]
async fn raw_utf8_in_the_header_is_encoded_and_reads_the_same() {
    let message = samples::sample("utf8-headers.eml");
    let (out, octets) = converted(&message).await;
    assert!(out.is_ascii(), "{}", String::from_utf8_lossy(&out));
    assert_eq!(octets, Octets::Seven);
    let parsed = MessageParser::default().parse(&out).unwrap();
    assert_eq!(parsed.subject(), Some("Grüße an alle"));
    assert_eq!(parsed.from().unwrap().first().unwrap().name(), Some("Jürgen Müller"));
    assert_eq!(parsed.to().unwrap().first().unwrap().address(), Some("b@x.example"));
}

#[tokio::test]
async fn an_address_in_utf8_in_the_header_needs_an_8_bit_path() {
    let message = String::from_utf8(samples::sample("utf8-headers.eml")).unwrap().replace("b@x", "zoë@x");
    let (out, octets) = converted(message.as_bytes()).await;
    assert_eq!(octets, Octets::Eight);
    assert!(String::from_utf8(out).unwrap().contains("To: Zoë <zoë@x.example>\r\n"));
}

#[tokio::test]
async fn raw_utf8_in_the_header_of_a_part_is_encoded_too() {
    let message = "From: a@shop.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
        --b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=\"Größe.pdf\"\r\n\
        Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n";
    let (out, octets) = converted(message.as_bytes()).await;
    let text = String::from_utf8(out).unwrap();
    assert!(octets == Octets::Seven && text.contains("filename*=utf-8''Gr%C3%B6%C3%9Fe.pdf\r\n"), "{text}");
}

#[tokio::test]
async fn header_lines_that_are_too_long_are_folded_at_white_space() {
    let message = samples::sample("huge-header.eml");
    let (out, _) = converted(&message).await;
    let (before, after) = (samples::draft_of(&message).header, samples::draft_of(&out).header);
    for name in ["References", "X-Many", "X-No-Blank", "Subject"] {
        assert_eq!(before.text(name), after.text(name));
        let longest = after.all(name).map(|field| longest_line(&field.raw_value)).max().unwrap();
        assert!(longest <= 100 || name == "X-No-Blank", "{name}: {longest}");
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_left_alone() {
    for header in [
        "Content-Type: text/plain\r\nContent-Type: text/html\r\n",
        "Content-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: base64\r\n",
        "Content-Transfer-Encoding: x-uuencode\r\n",
        "Content-Type: multipart/mixed\r\n",
        "Content-Type: message/partial; id=1\r\n",
        "Content-Type: nonsense\r\n",
    ] {
        let message = format!("From: a@shop.example\r\n{header}\r\nä\r\n").into_bytes();
        let (out, octets) = converted(&message).await;
        assert!(out == message, "{header}");
        assert_eq!(octets, Octets::Eight);
    }
}

#[tokio::test]
async fn nesting_has_an_end() {
    let mut message = String::from("From: a@shop.example\r\nMIME-Version: 1.0\r\n");
    for depth in 0..5000 {
        message.push_str(&format!("Content-Type: multipart/mixed; boundary=b{depth}\r\n\r\n--b{depth}\r\n"));
    }
    message.push_str("\r\nä\r\n");
    let (out, octets) = converted(message.as_bytes()).await;
    assert!(out == message.as_bytes());
    assert_eq!(octets, Octets::Eight);
}

const MULTIPART: &str =
    "From: a@shop.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n";

#[tokio::test]
async fn a_part_with_too_many_fields_is_left_alone_and_the_others_are_not() {
    let part =
        |fields: usize| format!("{MULTIPART}--x\r\n{}\r\n\r\n--x\r\n\r\nä\r\n--x--\r\n", "a:ä\r\n".repeat(fields));
    let (out, octets) = converted(part(PART_FIELDS_MAX).as_bytes()).await;
    assert!(out.is_ascii() && octets == Octets::Seven);
    let (out, octets) = converted(part(50 * PART_FIELDS_MAX).as_bytes()).await;
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.matches("a:ä\r\n").count(), 50 * PART_FIELDS_MAX);
    assert!(out.contains("=C3=A4") || out.contains("w6Q"), "the other part is converted");
    assert_eq!(octets, Octets::Eight);
}

#[tokio::test]
async fn a_message_of_too_many_parts_is_left_alone_nested_ones_counted() {
    let many = |parts: usize| format!("{MULTIPART}{}ä\r\n--x--\r\n", "--x\r\n\r\n".repeat(parts));
    assert!(converted(many(rewrite::PARTS_MAX).as_bytes()).await.0.is_ascii());
    let message = many(rewrite::PARTS_MAX + 1);
    let (out, octets) = converted(message.as_bytes()).await;
    assert!(out == message.as_bytes() && octets == Octets::Eight);
    let inner = "--y\r\n\r\nä\r\n".repeat(100);
    let part = format!("--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n{inner}--y--\r\n");
    let message = format!("{MULTIPART}{}--x--\r\n", part.repeat(rewrite::PARTS_MAX / 100));
    let (out, octets) = converted(message.as_bytes()).await;
    assert!(out == message.as_bytes() && octets == Octets::Eight, "each multipart is within the limit, all are not");
}

#[test]
fn what_would_outgrow_the_limit_of_messages_is_not_rewritten() {
    let long = "x".repeat(1000);
    for message in [
        format!("From: a@shop.example\r\n\r\n{}\r\n", "日本語".repeat(300)),
        format!("{MULTIPART}--x\r\na: ä\r\n\r\n{long}\r\n--x--\r\n"),
        format!("{MULTIPART}{}--x--\r\n", "--x\r\nContent-Type: text/x; n=ä\r\n\r\n\r\n".repeat(200)),
        format!("Content-Transfer-Encoding: quoted-printable\r\n\r\n{}\r\n", "ä".repeat(600)),
    ] {
        let given = samples::draft(&message);
        let body = &message.as_bytes()[given.header.length() + 2..];
        let mut header = given.header.clone();
        let plan = rewrite::plan_message(&mut header, body, u64::MAX);
        let mut length = header.length() as u64 + 2;
        plan.write(&mut |piece| {
            length += piece.len() as u64;
            Ok(())
        })
        .unwrap();
        assert!(plan.is_changed() && length > message.len() as u64);
        let mut header = given.header.clone();
        assert!(rewrite::plan_message(&mut header, body, length).is_changed(), "at the limit");
        let mut header = given.header.clone();
        let plan = rewrite::plan_message(&mut header, body, length - 1);
        assert!(!plan.is_changed() && header == given.header && plan.octets() == Octets::of(body), "over it");
    }
}

#[tokio::test]
async fn a_spilled_body_is_rewritten_into_another_spill() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BodyWriter::new(folder.path());
    let text = "Grüße aus der großen Datei\r\n".repeat(20_000);
    writer.write(text.as_bytes()).unwrap();
    let mut draft =
        samples::draft("From: a@shop.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n");
    draft.body = writer.finish().unwrap();
    let mut about = smtp_about("a@shop.example", &["b@x.example"]);
    stage(folder.path()).apply(&mut draft, &mut about).await.unwrap();
    assert!(matches!(draft.body, Body::Spilled(_)));
    let out = samples::bytes_of(&draft);
    assert!(out.is_ascii() && about.octets == Octets::Seven);
    assert!(
        MessageParser::new().parse(&out).unwrap().body_text(0).unwrap().replace('\r', "") == text.replace('\r', "")
    );
}

#[test]
fn a_long_line_is_found_across_slices() {
    let folder = tempfile::tempdir().unwrap();
    for (line, is_long) in [(998, false), (999, true)] {
        let mut writer = BodyWriter::new(folder.path());
        writer.write("short\r\n".repeat(100_000).as_bytes()).unwrap();
        let left = 65_536 - usize::try_from(writer.length() % 65_536).unwrap();
        writer
            .write(format!("{}\r\n", "y".repeat(left - 402)).replace("yyyyyyyyyy", "yyyyyyyy\r\n").as_bytes())
            .unwrap();
        writer.write(format!("{}\r\n", "x".repeat(line)).as_bytes()).unwrap();
        assert_eq!(needs_work(&writer.finish().unwrap()).unwrap(), is_long);
    }
    assert!(needs_work(&samples::body(&"x".repeat(999))).unwrap());
    assert!(!needs_work(&samples::body(&"x".repeat(998))).unwrap());
}

fn text_part() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("a"),
        Just("ä"),
        Just("€"),
        Just("="),
        Just(" "),
        Just("\t"),
        Just("."),
        Just("From "),
        Just("--"),
        Just("\r\n"),
        Just("\r\n\r\n"),
        Just("Здравствуйте "),
        Just("=C3"),
        Just("--b"),
        Just("looooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooong"),
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.concat().replace("--b", "--c"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn conversion_never_changes_what_people_see(
        parts in proptest::collection::vec((text_part(), any::<bool>(), any::<bool>(), 0_usize..3), 1..4),
    ) {
        let mut message = String::from(
            "From: a@shop.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b.1\"\r\n\r\n",
        );
        for (text, is_html, is_long, encoding) in &parts {
            let kind = if *is_html { "html" } else { "plain" };
            let encoding = ["", "Content-Transfer-Encoding: 8bit\r\n", "Content-Transfer-Encoding: binary\r\n"][*encoding];
            let text = if *is_long { text.repeat(30) } else { text.clone() };
            message.push_str(&format!("--b.1\r\nContent-Type: text/{kind}; charset=utf-8\r\n{encoding}\r\n{text}\r\n"));
        }
        message.push_str("--b.1--\r\n");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (out, octets) = runtime.block_on(converted(message.as_bytes()));
        prop_assert!(out.is_ascii());
        prop_assert_eq!(octets, Octets::Seven);
        prop_assert!(longest_line(&out) <= LINE_OCTETS_MAX);
        prop_assert_eq!(seen(&out), seen(message.as_bytes()));
    }
}
