//! MIME: media types, multiparts, encodings, and the rewriting of whole messages.

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;
use mail_parser::{MessageParser, MimeHeaders, PartType};
use postern::mail::{
    HeaderBlock, LINE_OCTETS_MAX, MediaType, Stretch, has_long_line, repair_base64, repair_quoted_printable,
    split_entity, split_multipart, to_base64, to_quoted_printable,
};
use postern::pipeline::{Octets, fold_long_fields, plan_message};

use super::feed::{Feed, assert_line_ends, with_line_ends};

/// A type is of tokens, a boundary is one that may be written, the stretches are the whole body.
pub fn media_type(input: &[u8]) {
    let mut feed = Feed(input);
    let text = feed.text();
    let body = feed.rest();
    let Some(read) = MediaType::parse(&text) else { return };
    for word in [&read.kind, &read.subtype] {
        assert!(!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    }
    assert!(read.is(&read.kind, &read.subtype));
    let plain = format!("{}/{}", read.kind, read.subtype);
    let again = MediaType::parse(&plain).expect("a type without parameters");
    assert!(again.is(&read.kind, &read.subtype));
    let Some(boundary) = read.boundary() else { return };
    assert!((1..=70).contains(&boundary.len()) && !boundary.ends_with(' '));
    let Some(stretches) = split_multipart(body, boundary, 10_000) else { return };
    let mut joined = Vec::new();
    let mut may_be_part = false;
    for stretch in &stretches {
        match stretch {
            Stretch::Around(text) => joined.extend_from_slice(text),
            Stretch::Delimiter(text) => {
                assert!(text.windows(boundary.len()).any(|part| part == boundary.as_bytes()));
                joined.extend_from_slice(text);
            }
            Stretch::Part(text) => {
                assert!(may_be_part, "a part without a delimiter before it");
                joined.extend_from_slice(text);
            }
        }
        may_be_part = matches!(stretch, Stretch::Delimiter(_));
    }
    assert_eq!(joined, body);
}

/// Encodings decode to what was given, in short lines of ASCII; repairs change no meaning.
pub fn encodings(input: &[u8]) {
    let text = with_line_ends(input);
    let quoted = to_quoted_printable(&text);
    assert_encoded(&quoted, text.len());
    assert_eq!(quoted_printable_decode(&quoted).as_deref(), Some(&text[..]));
    assert_eq!(quoted_printable::decode(&quoted, quoted_printable::ParseMode::Strict).ok().as_deref(), Some(&text[..]));
    assert_eq!(repair_quoted_printable(&quoted), quoted, "what is sound is left alone");

    let encoded = to_base64(input);
    assert_encoded(&encoded, input.len());
    if !input.is_empty() {
        assert_eq!(base64_decode(&encoded).as_deref(), Some(input));
    }
    assert_eq!(repair_base64(&encoded), encoded, "what is sound is left alone");

    let repaired = repair_quoted_printable(&text);
    assert_encoded(&repaired, text.len());
    assert_eq!(repair_quoted_printable(&repaired), repaired, "repaired twice");
    assert_eq!(meaning(&repaired), meaning(&text), "{:?}", String::from_utf8_lossy(&repaired));
    let repaired = repair_base64(&text);
    assert_encoded(&repaired, text.len());
    assert_eq!(repair_base64(&repaired), repaired);
}

/// What a lenient reader makes of quoted-printable: white space at the end of a line does not
/// count (RFC 2045 s6.7 rule 3), and an `=` that starts nothing stands for itself.
fn meaning(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut lines = encoded.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_last = lines.peek().is_none();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(0, |at| at + 1);
        let text = &line[..end];
        let (text, is_soft) = match text.strip_suffix(b"=") {
            Some(text) if !is_last => (text, true),
            _ => (text, false),
        };
        let mut rest = text;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            let octet = match (first, after) {
                (b'=', [high, low, left @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    rest = left;
                    u8::from_str_radix(&String::from_utf8_lossy(&[*high, *low]), 16).unwrap()
                }
                _ => *first,
            };
            out.push(octet);
        }
        if !is_soft && !is_last {
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

fn assert_encoded(encoded: &[u8], length: usize) {
    assert!(encoded.is_ascii());
    assert_line_ends(encoded, "an encoded text");
    assert!(encoded.split(|byte| *byte == b'\n').all(|line| line.len() <= 77), "a long line");
    assert!(encoded.len() <= length * 4 + 80, "{} octets from {length}", encoded.len());
}

/// Folds and rewrites a message as the pipeline does.
fn rewritten(header: &mut HeaderBlock, body: &[u8]) -> (Vec<u8>, Octets, bool) {
    fold_long_fields(header);
    let plan = plan_message(header, body, u64::MAX);
    let mut out = Vec::new();
    plan.write(&mut |piece| {
        out.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    (out, plan.octets(), plan.is_changed())
}

const TOUCHED: [&str; 3] = ["Content-Transfer-Encoding", "Content-Type", "MIME-Version"];

/// Rewriting changes encodings only, keeps its word about the octets, ends, and is done once.
pub fn rewrite(input: &[u8]) {
    let message = with_line_ends(input);
    let Some((given, body)) = split_entity(&message) else { return };
    let mut header = given.clone();
    let (out, octets, is_changed) = rewritten(&mut header, body);
    assert_line_ends(&out, "a rewritten body");
    HeaderBlock::parse(&header.to_bytes()).expect("a header block");
    let shown = |block: &HeaderBlock| {
        let fields =
            block.fields().iter().filter(|field| !TOUCHED.iter().any(|name| field.name.eq_ignore_ascii_case(name)));
        fields.map(|field| (field.name.clone(), field.text())).collect::<Vec<_>>()
    };
    assert_eq!(shown(&header), shown(&given));
    assert_eq!(octets == Octets::Seven, out.is_ascii(), "it lies about its octets");
    assert!(is_changed || out == body);
    assert!(out.len() <= body.len() * 20 + 4_096, "{} octets from {}", out.len(), body.len());
    if out.is_ascii() && !has_long_line(&out) {
        let mut again = header.clone();
        let (twice, _, is_changed) = rewritten(&mut again, &out);
        assert!(!is_changed && twice == out && again == header, "rewritten twice it is another");
    }
}

/// What a reader shows of a message: types, names and contents of its leaves.
fn leaves(message: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let parsed = MessageParser::default().parse(message).expect("a message");
    let mut leaves = Vec::new();
    for part in &parsed.parts {
        let content = match &part.body {
            PartType::Text(text) | PartType::Html(text) => text.as_bytes().to_vec(),
            PartType::Binary(bytes) | PartType::InlineBinary(bytes) => bytes.to_vec(),
            PartType::Message(_) | PartType::Multipart(_) => continue,
        };
        let kind = part.content_type().map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default()));
        leaves.push((kind.unwrap_or_default(), part.attachment_name().unwrap_or_default().to_owned(), content));
    }
    leaves
}

/// A well-formed tree of parts, made of the input, reads the same before and after rewriting, and
/// comes out as ASCII with short lines.
pub fn tree(input: &[u8]) {
    let mut feed = Feed(input);
    let mut message = b"From: a@shop.example\r\nMIME-Version: 1.0\r\n".to_vec();
    let mut boundaries = 0;
    entity(&mut feed, 0, &mut boundaries, &mut message);
    let (given, body) = split_entity(&message).expect("an entity");
    let mut header = given.clone();
    let (out, octets, _) = rewritten(&mut header, body);
    let whole = [&header.to_bytes()[..], b"\r\n", &out].concat();
    assert_eq!(octets, Octets::Seven, "{}", String::from_utf8_lossy(&message));
    assert!(whole.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE_OCTETS_MAX + 1), "a long line");
    assert_eq!(leaves(&whole), leaves(&message), "{}", String::from_utf8_lossy(&message));
}

/// Writes one entity: its remaining header fields, the empty line, its body.
fn entity(feed: &mut Feed<'_>, depth: usize, boundaries: &mut usize, out: &mut Vec<u8>) {
    let kind = feed.byte();
    if kind & 3 == 0 && depth < 5 {
        *boundaries += 1;
        let boundary = format!("b{boundaries}_=");
        let subtype = ["mixed", "alternative", "related"][feed.below(3)];
        let encoding =
            ["", "Content-Transfer-Encoding: 8bit\r\n", "Content-Transfer-Encoding: binary\r\n"][feed.below(3)];
        out.extend_from_slice(
            format!("Content-Type: multipart/{subtype}; boundary=\"{boundary}\"\r\n{encoding}\r\n").as_bytes(),
        );
        for _ in 0..=feed.below(4) {
            out.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
            entity(feed, depth + 1, boundaries, out);
        }
        out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        return;
    }
    let content = content(feed);
    let encoding = ["8bit", "binary", "quoted-printable", "base64"][usize::from(kind >> 2) % 4];
    let (media, is_text) = match kind >> 5 {
        0 | 1 => ("text/plain; charset=utf-8", true),
        2 | 3 => ("text/html; charset=utf-8", true),
        4 => ("application/octet-stream; name=\"a.bin\"", false),
        5 => ("image/png", false),
        _ => ("text/csv; charset=utf-8", true),
    };
    let text = if is_text { String::from_utf8_lossy(&content).into_owned().into_bytes() } else { content };
    out.extend_from_slice(format!("Content-Type: {media}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n").as_bytes());
    match encoding {
        "quoted-printable" => out.extend(to_quoted_printable(&text)),
        "base64" => out.extend(to_base64(&text)),
        _ => out.extend(text),
    }
}

/// Lines that hold no delimiter of the tree, some of them long.
fn content(feed: &mut Feed<'_>) -> Vec<u8> {
    let repeat = [1, 1, 1, 40][feed.below(4)];
    let mut text = with_line_ends(feed.until(0xfe)).repeat(repeat);
    while let Some(at) = text.windows(3).position(|three| three == b"--b") {
        text[at] = b'+';
    }
    // A reader takes the last line end for the delimiter's; one that stays makes both read the same.
    text.extend_from_slice(b"x");
    text
}
