//! Media types, multiparts cut and joined, and encodings judged by other decoders.

use proptest::prelude::*;

use super::*;

#[test]
fn media_types_are_read_as_programs_write_them() {
    let read = |text: &str| MediaType::parse(text).unwrap();
    let plain = read("text/plain; charset=UTF-8; format=flowed");
    assert!(plain.is("text", "plain"));
    assert_eq!(plain.parameter("charset"), Some("UTF-8"));
    assert_eq!(plain.parameter("format"), Some("flowed"));
    assert_eq!(read("Multipart/Mixed;\tBoundary=\"a b\\\"c;(d)\" (note; x=y); z=1").boundary(), Some("a b\"c;(d)"));
    assert_eq!(read("multipart/mixed; boundary=----=_Part_1.2").boundary(), Some("----=_Part_1.2"));
    assert_eq!(read("text/html;charset=utf-8;").parameter("charset"), Some("utf-8"));
    assert_eq!(read("multipart/mixed; boundary=\"\"").boundary(), None);
    for text in ["", "text", "text/", "/plain", "te xt/plain", "text plain"] {
        assert_eq!(MediaType::parse(text), None, "{text}");
    }
}

#[test]
fn a_multipart_is_cut_at_its_delimiter_lines_only() {
    let body = b"pre\r\n--b\r\nA: 1\r\n\r\none\r\n--bx\r\n x--b\r\n--b \t\r\n\r\n--b--\r\npost\r\n--b\r\n";
    use Stretch::{Around, Delimiter, Part};
    assert_eq!(
        split_multipart(body, "b", 10).unwrap(),
        [
            Around(b"pre\r\n"),
            Delimiter(b"--b\r\n"),
            Part(b"A: 1\r\n\r\none\r\n--bx\r\n x--b"),
            Delimiter(b"\r\n--b \t\r\n"),
            Part(b""),
            Delimiter(b"\r\n--b--\r\n"),
            Around(b"post\r\n--b\r\n"),
        ]
    );
    assert_eq!(split_multipart(b"none\r\n", "b", 10).unwrap(), [Around(b"none\r\n")]);
    assert_eq!(
        split_multipart(b"--b\r\n--b--", "b", 10).unwrap(),
        [Delimiter(b"--b\r\n"), Part(b""), Delimiter(b"--b--")]
    );
    assert_eq!(split_multipart(b"--b\r\ncut", "b", 10).unwrap(), [Delimiter(b"--b\r\n"), Part(b"cut")]);
}

#[test]
fn a_multipart_of_too_many_parts_is_not_cut() {
    let body = |parts: usize| "--b\r\n\r\n".repeat(parts) + "--b--\r\n";
    assert_eq!(split_multipart(body(3).as_bytes(), "b", 3).unwrap().len(), 7);
    assert_eq!(split_multipart(body(4).as_bytes(), "b", 3), None);
}

#[test]
fn a_part_with_too_long_a_header_is_not_read() {
    let part = |fields: usize| "a:\r\n b\r\n".repeat(fields) + "\r\nbody";
    assert_eq!(split_part(part(PART_FIELDS_MAX).as_bytes()).unwrap().0.fields().len(), PART_FIELDS_MAX);
    assert_eq!(split_part(part(PART_FIELDS_MAX + 1).as_bytes()), None);
    let long = |octets: usize| format!("a:{}\r\n\r\n", "x".repeat(octets - 2));
    assert!(split_part(long(PART_HEADER_OCTETS_MAX).as_bytes()).is_some());
    assert_eq!(split_part(long(PART_HEADER_OCTETS_MAX + 1).as_bytes()), None);
    assert_eq!(split_part(b"\r\nbody"), Some((HeaderBlock::default(), b"body".as_slice())));
}

#[test]
fn lines_are_long_beyond_998_octets() {
    let line = |length: usize| [vec![b'x'; length], b"\r\n".to_vec()].concat();
    assert!(!has_long_line(&line(998)));
    assert!(has_long_line(&line(999)));
    assert!(!has_long_line(&vec![b'x'; 998]));
    assert!(has_long_line(&vec![b'x'; 999]));
    assert!(!has_long_line(b""));
}

#[test]
fn what_relays_and_mailboxes_touch_is_escaped() {
    assert_eq!(to_quoted_printable(b"From me \r\n-- \r\na=b\xe4\t"), b"=46rom me=20\r\n--=20\r\na=3Db=E4=09");
    let wrapped = to_quoted_printable(&[vec![b'x'; 75], b"--boundary".to_vec()].concat());
    assert_eq!(wrapped, [vec![b'x'; 75], b"=\r\n=2D-boundary".to_vec()].concat());
}

#[test]
fn broken_encodings_are_repaired() {
    assert_eq!(repair_quoted_printable(b"a=20\xc3\xa4=\r\nb = =C3=A4"), b"a=20=C3=A4=\r\nb = =C3=A4");
    assert_eq!(repair_quoted_printable(b"a \t\r\n=C3= \r\nb  "), b"a\r\n=C3=\r\nb");
    let blanks = [vec![b'x'; 70], vec![b' '; 20], b"\r\ny".to_vec()].concat();
    assert_eq!(repair_quoted_printable(&blanks), [vec![b'x'; 70], b"\r\ny".to_vec()].concat());
    assert_eq!(repair_base64(b"aGVs\r\nbG8=\r\n"), b"aGVsbG8=");
    assert!(!has_long_line(&repair_base64(&vec![b'A'; 5000])));
}

fn decode_qp(bytes: &[u8]) -> Vec<u8> {
    quoted_printable::decode(bytes, quoted_printable::ParseMode::Robust).unwrap()
}

proptest! {
    #[test]
    fn any_text_comes_back_from_quoted_printable(
        lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
    ) {
        let text = lines.join(b"\r\n".as_slice());
        let encoded = to_quoted_printable(&text);
        prop_assert!(encoded.is_ascii());
        prop_assert!(encoded.split(|byte| *byte == b'\n').all(|line| line.len() <= 77));
        prop_assert_eq!(mail_parser::decoders::quoted_printable::quoted_printable_decode(&encoded), Some(text.clone()));
        prop_assert_eq!(decode_qp(&encoded), text.clone());
        prop_assert_eq!(repair_quoted_printable(&encoded), encoded);
    }

    #[test]
    fn any_octets_come_back_from_base64(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let encoded = to_base64(&octets);
        prop_assert!(encoded.split(|byte| *byte == b'\n').all(|line| line.len() <= 77));
        let joined: Vec<u8> = encoded.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
        prop_assert_eq!(BASE64.decode(joined).unwrap(), octets);
        prop_assert_eq!(repair_base64(&encoded), encoded);
    }

    #[test]
    fn the_stretches_of_a_multipart_are_the_whole_body(
        pieces in proptest::collection::vec(
            prop_oneof![Just("--b"), Just("--b--"), Just("\r\n"), Just("x"), Just("--bb"), Just(" ")], 0..30),
    ) {
        let body = pieces.concat().into_bytes();
        let joined: Vec<u8> = split_multipart(&body, "b", 10).unwrap().into_iter().flat_map(|stretch| match stretch {
            Stretch::Around(text) | Stretch::Delimiter(text) | Stretch::Part(text) => text.to_vec(),
        }).collect();
        prop_assert_eq!(joined, body);
    }
}
