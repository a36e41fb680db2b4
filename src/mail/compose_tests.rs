//! Messages made of parts, read by another program's eyes (mail-parser), and parts that want to be more.

use mail_parser::{MessageParser, MimeHeaders};

use super::*;
use crate::mail::parse_mailboxes;

fn mailbox(text: &str) -> Mailbox {
    parse_mailboxes(text.as_bytes()).unwrap().remove(0)
}

fn letter() -> Composition {
    Composition {
        from: vec![mailbox("Shop <orders@shop.example>")],
        to: vec![mailbox("a@x.example")],
        subject: "Hello".to_owned(),
        text: Some("Hi\nthere".to_owned()),
        ..Composition::default()
    }
}

fn octets(draft: &Draft) -> Vec<u8> {
    let mut octets = draft.header.to_bytes();
    octets.extend_from_slice(b"\r\n");
    draft.body.slices().for_each(|slice| octets.extend_from_slice(&slice.unwrap()));
    octets
}

fn file(name: &str, content_id: Option<&str>) -> Attachment {
    Attachment {
        name: name.to_owned(),
        content_type: "image/png".to_owned(),
        content: vec![0, 1, 2, 255],
        content_id: content_id.map(str::to_owned),
    }
}

#[test]
fn a_plain_letter_has_what_it_needs_and_nothing_of_the_builders_own() {
    let octets = octets(&compose(letter()).unwrap());
    let text = String::from_utf8(octets).unwrap();
    assert!(text.starts_with("From: Shop <orders@shop.example>\r\nTo: a@x.example\r\nSubject: Hello\r\n"), "{text}");
    assert!(text.contains("MIME-Version: 1.0\r\n") && text.ends_with("\r\n\r\nHi\r\nthere\r\n"), "{text}");
    for theirs in ["Message-ID", "Date:", "Bcc"] {
        assert!(!text.contains(theirs), "the pipeline decides on {theirs}");
    }
}

#[test]
fn text_html_pictures_and_files_are_where_a_reader_looks_for_them() {
    let composition = Composition {
        html: Some("<p>Grüße <img src=\"cid:logo\"></p>".to_owned()),
        text: Some("Grüße".to_owned()),
        attachments: vec![file("logo.png", Some("logo")), file("Größe \"1\".png", None)],
        ..letter()
    };
    let octets = octets(&compose(composition).unwrap());
    let read = MessageParser::default().parse(&octets[..]).unwrap();
    assert_eq!(read.body_text(0).unwrap().trim(), "Grüße");
    assert!(read.body_html(0).unwrap().contains("cid:logo"));
    assert!(read.content_type().unwrap().subtype().unwrap().eq_ignore_ascii_case("mixed"));
    let names: Vec<_> = read.attachments().filter_map(|part| part.attachment_name()).collect();
    assert!(names.contains(&"Größe \"1\".png"), "{names:?}");
    let picture = read.parts.iter().find(|part| part.content_id() == Some("logo")).unwrap();
    assert_eq!(picture.contents(), [0, 1, 2, 255]);
}

#[test]
fn nothing_begins_a_field_or_a_part_of_its_own() {
    let bad_field =
        |name: &str, value: &str| Composition { fields: vec![(name.to_owned(), value.to_owned())], ..letter() };
    let bad_file = |change: fn(&mut Attachment)| {
        let mut attachment = file("a.png", None);
        change(&mut attachment);
        Composition { attachments: vec![attachment], ..letter() }
    };
    for (composition, part) in [
        (Composition { subject: "a\r\nBcc: x@y.example".to_owned(), ..letter() }, "subject"),
        (Composition { text: Some("a\0b".to_owned()), ..letter() }, "text"),
        (bad_field("X-A", "b\r\nFrom: c@d.example"), "headers.X-A"),
        (bad_field("X-A\r\nFrom", "b"), "headers.X-A\r\nFrom"),
        (bad_field("X A", "b"), "headers.X A"),
        (bad_field("from", "c@d.example"), "headers.from"),
        (bad_field("DKIM-Signature", "x"), "headers.DKIM-Signature"),
        (bad_field("content-type", "text/html"), "headers.content-type"),
        (bad_file(|file| file.name = "a\r\nX: y".to_owned()), "attachments[0].name"),
        (bad_file(|file| file.name.clear()), "attachments[0].name"),
        (bad_file(|file| file.content_type = "text/plain\r\nX: y".to_owned()), "attachments[0].content_type"),
        (bad_file(|file| file.content_type = "multipart/mixed".to_owned()), "attachments[0].content_type"),
        (bad_file(|file| file.content_id = Some("a>\r\nX: y".to_owned())), "attachments[0].content_id"),
    ] {
        let error = compose(composition).expect_err(part);
        assert_eq!(error.part, part);
    }
}

#[test]
fn names_are_quoted_where_they_must_be_and_read_back_as_they_were() {
    for name in ["Shop", "Shop, Ltd.", "A \"B\" C", "Größe & Co", "a\\b", "x@y.example"] {
        let from = Mailbox { name: name.to_owned(), address: "a@shop.example".parse().unwrap() };
        let octets = octets(&compose(Composition { from: vec![from], ..letter() }).unwrap());
        let read = MessageParser::default().parse(&octets[..]).unwrap();
        let first = read.from().unwrap().first().unwrap();
        assert_eq!((first.name(), first.address()), (Some(name), Some("a@shop.example")));
    }
}

#[test]
fn a_whole_message_is_read_with_any_line_ends_and_refused_if_it_is_none() {
    for raw in ["From: a@b.example\nSubject: x\n\nbody\n", "From: a@b.example\r\nSubject: x\r\n\r\nbody"] {
        let draft = read_whole(raw.as_bytes(), 1000).unwrap();
        assert_eq!(octets(&draft), b"From: a@b.example\r\nSubject: x\r\n\r\nbody\r\n");
    }
    let only_header = read_whole(b"From: a@b.example", 1000).unwrap();
    assert_eq!((only_header.header.count("From"), only_header.body.length()), (1, 0));
    for wrong in [&b"no header at all\r\n\r\nx"[..], b"A: b\0\r\n\r\n", &[b'x'; 2000][..]] {
        assert_eq!(read_whole(wrong, 1000).unwrap_err().part, "raw");
    }
}
