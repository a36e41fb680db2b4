//! Encoded fields, read back by a parser that is not ours (mail-parser).

use mail_parser::{MessageParser, MimeHeaders};
use proptest::prelude::*;

use super::*;

fn encoded(header: &str) -> String {
    let mut block = HeaderBlock::parse(header.as_bytes()).unwrap();
    encode_fields(&mut block);
    String::from_utf8(block.to_bytes()).unwrap()
}

fn ascii_lines(header: &str) {
    assert!(header.is_ascii(), "{header}");
    for line in header.split("\r\n") {
        assert!(line.len() <= 78 || !line.contains("=?"), "{line}");
    }
}

#[test]
fn unstructured_text_reads_back_as_it_was() {
    for subject in [
        "Grüße",
        "Ihre Bestellung Nr. 7 ist unterwegs – vielen Dank für Ihr Vertrauen, Frau Müller-Lüdenscheidt aus Köln",
        "ascii first, dann größer, then ascii again",
        "日本語の件名はとても長いのでいくつかの符号化された語に分けなければならない",
        "a ü",
        "ü a",
        "=?utf-8?Q?schon?= ü",
        "ü =?utf-8?Q?schon?=",
        "emoji 🎉🎉 x",
    ] {
        let out = encoded(&format!("Subject: {subject}\r\n"));
        ascii_lines(&out);
        let text = format!("{out}\r\nx\r\n");
        let message = MessageParser::default().parse(text.as_bytes()).unwrap();
        let expected = subject.replace("=?utf-8?Q?schon?=", "schon");
        assert_eq!(message.subject(), Some(expected.as_str()), "{out}");
    }
}

#[test]
fn names_are_encoded_and_addresses_stay_as_they_are() {
    for (given, names) in [
        ("To: Jörg Müller <j@x.example>\r\n", vec![("Jörg Müller", "j@x.example")]),
        (
            "To: \"Müller, Jörg\" <j@x.example>, b@y.example\r\n",
            vec![("Müller, Jörg", "j@x.example"), ("", "b@y.example")],
        ),
        (
            "Cc: Plain Name <a@x.example>,\r\n Ö <b@x.example>\r\n",
            vec![("Plain Name", "a@x.example"), ("Ö", "b@x.example")],
        ),
        ("From: Büro \"Ann\" <a@x.example>\r\n", vec![("Büro Ann", "a@x.example")]),
        ("From: =?utf-8?Q?B=C3=BCro?= Zoë <a@x.example>\r\n", vec![("Büro Zoë", "a@x.example")]),
    ] {
        let out = encoded(given);
        ascii_lines(&out);
        let text = format!("{out}\r\nx\r\n");
        let message = MessageParser::default().parse(text.as_bytes()).unwrap();
        let list = message.to().or(message.cc()).or(message.from()).unwrap();
        let found: Vec<(String, String)> = list
            .iter()
            .map(|one| (one.name().unwrap_or_default().to_owned(), one.address().unwrap_or_default().to_owned()))
            .collect();
        let expected: Vec<(String, String)> =
            names.into_iter().map(|(name, address)| (name.to_owned(), address.to_owned())).collect();
        assert_eq!(found, expected, "{out}");
    }
}

#[test]
fn an_address_in_utf_8_stays_for_smtputf8() {
    for given in ["To: Jörg <jörg@x.example>\r\n", "To: jörg@x.example\r\n", "To: \"jörg\"@x.example\r\n"] {
        assert_eq!(encoded(given), given);
    }
}

#[test]
fn parameters_take_the_form_of_rfc_2231() {
    let out = encoded("Content-Disposition: attachment; filename=\"Größe; 1.pdf\"; size=3\r\n");
    assert!(out.contains("filename*=utf-8''Gr%C3%B6%C3%9Fe%3B%201.pdf;\r\n\tsize=3\r\n"), "{out}");
    let long = "ü".repeat(80);
    let out = encoded(&format!("Content-Type: application/pdf; name={long}.pdf\r\n"));
    ascii_lines(&out);
    let text = format!("{out}\r\nx\r\n");
    let message = MessageParser::default().parse(text.as_bytes()).unwrap();
    assert_eq!(message.attachment_name(), Some(format!("{long}.pdf").as_str()), "{out}");
}

#[test]
fn fields_with_a_form_of_their_own_and_ascii_ones_are_not_touched() {
    for given in ["Message-ID: <ü@x.example>\r\n", "Subject: plain  text\r\n\twith folds\r\n"] {
        assert_eq!(encoded(given), given);
    }
}

#[test]
fn octets_of_no_known_charset_are_marked_as_such_rfc_1428() {
    let mut block = HeaderBlock::parse(b"Subject: caf\xe9 au lait\r\n").unwrap();
    assert!(encode_fields(&mut block));
    assert_eq!(block.to_bytes(), b"Subject: =?unknown-8bit?Q?caf=E9_au_lait?=\r\n");
}

proptest! {
    #[test]
    fn whatever_the_text_it_reads_back_and_is_ascii(words in proptest::collection::vec("[a-zA-Z0-9,.()äöü日本🎉\"<>=?_]{1,30}", 1..12)) {
        prop_assume!(words.iter().all(|word| !word.contains("=?")));
        let subject = words.join(" ");
        let out = encoded(&format!("Subject: {subject}\r\n"));
        prop_assert!(out.is_ascii());
        let text = format!("{out}\r\nx\r\n");
        let message = MessageParser::default().parse(text.as_bytes()).unwrap();
        prop_assert_eq!(message.subject(), Some(subject.as_str()), "{}", out);
    }

    #[test]
    fn no_address_field_panics(text in "[a-z@<>,;:()\"\\\\ äö=?]{0,60}") {
        let mut block = HeaderBlock::parse(format!("To: {text}\r\n").as_bytes()).unwrap();
        encode_fields(&mut block);
    }

    #[test]
    fn no_address_gets_lost_or_added(text in "[a-z@<>,;:() äö]{0,60}") {
        let given = format!("To: {text}\r\n");
        let mut block = HeaderBlock::parse(given.as_bytes()).unwrap();
        encode_fields(&mut block);
        let angles = |bytes: &[u8]| bytes.iter().filter(|octet| **octet == b'@').count();
        prop_assert_eq!(angles(&block.to_bytes()), angles(given.as_bytes()));
    }
}
