//! Tests of the data reader: smuggling sequences at every split, and a model under proptest.

use proptest::prelude::*;

use super::*;

const LIMITS: DataLimits =
    DataLimits { message_bytes_max: 10_000, header_bytes_max: 2_000, bare_line_ends: BareLineEnds::Normalise };

type Parts = (Vec<u8>, Vec<u8>, Vec<u8>);

/// Reads `wire` in pieces: header, body, what is left; `None` if DATA did not end.
fn read(wire: &[u8], piece: usize, limits: DataLimits) -> Option<Result<Parts, DataFault>> {
    let mut reader = DataReader::dotted(limits);
    let mut body = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        let end = (at + piece).min(wire.len());
        let mut input = &wire[at..end];
        let progress = reader.read(&mut input);
        body.extend(reader.take_body());
        at = end - input.len();
        if progress == Progress::Ended {
            return Some(reader.finish().map(|(header, rest)| {
                body.extend(rest);
                (header, body, wire[at..].to_vec())
            }));
        }
        assert!(input.is_empty());
    }
    None
}

/// What must be stored and what must be left.
fn model(wire: &str) -> Option<(String, String)> {
    let text = format!("\r\n{wire}");
    let (lines, left) = text.split_once("\r\n.\r\n")?;
    let unstuffed =
        lines.replace("\r\n.", "\r\n").strip_prefix("\r\n").map_or(String::new(), |text| format!("{text}\r\n"));
    Some((unstuffed.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\r\n"), left.to_owned()))
}

#[test]
fn only_crlf_dot_crlf_ends_data() {
    for end in [
        "\n.\r\n",
        "\r\n.\n",
        "\n.\n",
        "\r.\r",
        "\r\n.\r",
        "\r.\r\n",
        "\n.\r",
        "\r.\n",
        "\r\n.\r\r\n",
        "\r\n.\0\r\n",
        "\r\n\0.\r\n",
        "\r\n.\r\0\n",
        "\r\0\n.\r\n",
        "\r\n..\r\n",
        "\r\r\n\n.\r\n",
        "\r\n. \r\n",
        "\r\n.\n\r\n",
    ] {
        let wire = format!("A: b\r\n\r\ntext{end}MAIL FROM:<a@b.example>\r\n");
        for piece in 1..wire.len() {
            assert!(read(wire.as_bytes(), piece, LIMITS).is_none(), "{end:?} in pieces of {piece}");
        }
    }
}

#[test]
fn the_true_end_is_found_at_any_split_and_what_follows_is_left() {
    let wire = b"A: b\r\n\r\none\r\n..two\r\n.\r\nNOOP\r\n";
    for piece in 1..wire.len() {
        let (header, body, left) = read(wire, piece, LIMITS).unwrap().unwrap();
        assert_eq!(
            (header.as_slice(), body.as_slice(), left.as_slice()),
            (&b"A: b\r\n"[..], &b"one\r\n.two\r\n"[..], &b"NOOP\r\n"[..])
        );
    }
}

#[test]
fn an_empty_message_ends_at_once() {
    for piece in 1..4 {
        assert_eq!(read(b".\r\n", piece, LIMITS), Some(Ok((vec![], vec![], vec![]))));
    }
    assert_eq!(read(b"\r\n.\r\n", 1, LIMITS), Some(Ok((vec![], vec![], vec![]))));
}

#[test]
fn bare_line_ends_are_stored_as_crlf_or_refused() {
    let wire = b"A: b\n\nx\ry\n.z\r\n.\r\n";
    let (header, body, _) = read(wire, 3, LIMITS).unwrap().unwrap();
    assert_eq!((header.as_slice(), body.as_slice()), (&b"A: b\r\n"[..], &b"x\r\ny\r\n.z\r\n"[..]));
    let strict = DataLimits { bare_line_ends: BareLineEnds::Refuse, ..LIMITS };
    assert_eq!(read(wire, 3, strict), Some(Err(DataFault::BareLineEnd)));
}

#[test]
fn a_nul_refuses_the_message_and_the_rest_is_drained() {
    assert_eq!(read(b"A: b\r\n\r\nx\0y\r\n.\r\n", 2, LIMITS), Some(Err(DataFault::Nul)));
}

#[test]
fn an_oversize_message_is_drained_to_its_end_and_nothing_is_kept() {
    let mut reader = DataReader::dotted(LIMITS);
    let line = [b'x'; 1000];
    for _ in 0..1000 {
        assert_eq!(reader.read(&mut line.as_slice()), Progress::More);
        assert!(reader.out.capacity() <= 4 * 10_000);
    }
    assert_eq!(reader.received(), 1_000_000);
    assert_eq!(reader.read(&mut b"\r\n.\r\n".as_slice()), Progress::Ended);
    assert!(reader.finish().is_err());
}

#[test]
fn the_size_limit_counts_the_octets_of_the_message_exactly() {
    let limits = DataLimits { message_bytes_max: 10, ..LIMITS };
    assert!(read(b"A: b\r\n\r\n.\r\n", 5, limits).unwrap().is_ok());
    assert!(read(b"A: b\r\n\r\n..\r\n.\r\n", 5, limits).unwrap().is_err());
    assert!(read(b"A: b\r\n\r\n\r\n.\r\n", 5, limits).unwrap().is_ok());
}

#[test]
fn a_header_block_over_its_limit_is_refused_with_or_without_an_end() {
    for tail in ["", "\r\n\r\nbody"] {
        let wire = format!("A: {}{tail}\r\n.\r\n", "x".repeat(2_000));
        for piece in [1, 7, 5_000] {
            assert_eq!(read(wire.as_bytes(), piece, LIMITS), Some(Err(DataFault::HeaderTooLarge)));
        }
    }
}

#[test]
fn chunks_are_taken_as_they_stand_and_line_ends_may_be_split_between_them() {
    let mut reader = DataReader::chunked(LIMITS);
    for chunk in [&b"A: b\r"[..], b"\n\r\n.\r\n", b"..x\r", b"y"] {
        assert_eq!(reader.read(&mut &*chunk), Progress::More);
    }
    reader.end_chunks();
    assert_eq!(reader.finish(), Ok((b"A: b\r\n".to_vec(), b".\r\n..x\r\ny\r\n".to_vec())));
}

#[test]
fn a_chunked_message_that_ends_in_a_bare_cr_gets_one_line_end() {
    for (chunk, body) in [(&b"\r\nx\r"[..], &b"x\r\n"[..]), (b"\r\nx\n", b"x\r\n"), (b"\r\nx\r\n", b"x\r\n")] {
        let mut reader = DataReader::chunked(LIMITS);
        reader.read(&mut &*chunk);
        reader.end_chunks();
        assert_eq!(reader.finish(), Ok((vec![], body.to_vec())));
    }
}

proptest! {
    #[test]
    fn the_reader_agrees_with_the_model_at_any_split(
        parts in proptest::collection::vec(
            prop_oneof![Just("\r\n"), Just("\r"), Just("\n"), Just("."), Just("\r\n."), Just("\r\n.\r\n"), Just("a"), Just("bc")],
            0..24,
        ),
        piece in 1_usize..9,
    ) {
        let wire = parts.concat();
        let found = read(wire.as_bytes(), piece, LIMITS);
        match model(&wire) {
            None => prop_assert!(found.is_none()),
            Some((message, left)) => {
                let (header, body, rest) = found.unwrap().unwrap();
                prop_assert_eq!(String::from_utf8(rest).unwrap(), left);
                let (header, body) = (String::from_utf8(header).unwrap(), String::from_utf8(body).unwrap());
                let whole = [header.as_str(), "\r\n", body.as_str()].concat();
                prop_assert!(whole == message || (body.is_empty() && header == message));
            }
        }
    }

    #[test]
    fn what_is_stuffed_is_read_back_the_same(
        parts in proptest::collection::vec(prop_oneof![Just("\r\n"), Just("."), Just("a"), Just("\r\n..")], 0..24),
        piece in 1_usize..9,
    ) {
        let message = format!("A: b\r\n\r\n{}\r\n", parts.concat());
        let mut stuffer = DotStuffer::new();
        let mut wire = Vec::new();
        for part in message.as_bytes().chunks(piece) {
            stuffer.write(part, &mut wire);
        }
        stuffer.end(&mut wire);
        let (header, body, left) = read(&wire, piece, LIMITS).unwrap().unwrap();
        prop_assert!(left.is_empty());
        prop_assert_eq!([&header[..], b"\r\n", &body[..]].concat(), message.into_bytes());
    }
}
