//! Plans and writes the conversion of a message to ASCII with short lines: pure, over slices.
//!
//! The plan comes first because a multipart's Content-Transfer-Encoding is written before its parts
//! and depends on them. Easy to get wrong: whatever cannot be read in exactly one way (two
//! Content-Type fields, an unknown encoding, too deep nesting) is left as it is. So is what would
//! cost more than it is worth: a part whose header is too long, and the whole of a message of too
//! many parts or one that would outgrow the limit of messages.

use std::borrow::Cow;
use std::io;

use super::about::Octets;
use super::words;
use crate::mail::{
    Field, HeaderBlock, LINE_OCTETS_MAX, MediaType, Stretch, has_long_line, repair_base64, repair_quoted_printable,
    split_multipart, split_part, to_base64, to_quoted_printable,
};

/// Multiparts inside each other, at most; deeper ones are left as they are.
pub const NESTING_MAX: u32 = 32;
/// Parts of a message, nested ones included, at most; one with more is left as it is.
pub const PARTS_MAX: usize = 10_000;
/// Where a field that is too long is folded, if white space allows.
const FOLD_OCTETS: usize = 78;

/// What becomes of one body.
pub struct Plan<'a> {
    pieces: Vec<Piece<'a>>,
    octets: Octets,
    is_changed: bool,
}

enum Piece<'a> {
    Bytes(Cow<'a, [u8]>),
    Body(Plan<'a>),
}

impl<'a> Plan<'a> {
    fn untouched(body: &'a [u8]) -> Self {
        Self { pieces: vec![Piece::Bytes(Cow::Borrowed(body))], octets: Octets::of(body), is_changed: false }
    }

    fn encoded(body: Vec<u8>) -> Self {
        Self { pieces: vec![Piece::Bytes(Cow::Owned(body))], octets: Octets::Seven, is_changed: true }
    }

    /// Whether anything is to be written differently.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// What octets it will hold.
    pub fn octets(&self) -> Octets {
        self.octets
    }

    /// Writes it, piece by piece.
    pub fn write(&self, out: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Bytes(bytes) => out(bytes),
            Piece::Body(plan) => plan.write(out),
        })
    }

    /// Octets it will write.
    fn length(&self) -> u64 {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Body(plan) => plan.length(),
        });
        pieces.sum()
    }

    fn push_bytes(&mut self, bytes: Cow<'a, [u8]>) {
        self.octets = self.octets.and(Octets::of(&bytes));
        self.pieces.push(Piece::Bytes(bytes));
    }
}

/// What a message may still cost.
struct Room {
    parts: usize,
    /// Of what is written anew.
    octets: u64,
    is_short: bool,
}

impl Room {
    /// Takes `octets`, if there is as much; else the message is left as it is.
    fn take(&mut self, octets: usize) -> bool {
        match self.octets.checked_sub(octets as u64).filter(|_| !self.is_short) {
            Some(left) => self.octets = left,
            None => self.is_short = true,
        }
        !self.is_short
    }
}

/// Plans a whole message; its header block is changed to match. Message and header stay as they
/// are if there are more than `PARTS_MAX` parts, or the result would be over `message_bytes_max`.
pub fn plan_message<'a>(header: &mut HeaderBlock, body: &'a [u8], message_bytes_max: u64) -> Plan<'a> {
    let mut room = Room { parts: PARTS_MAX, octets: message_bytes_max, is_short: false };
    let mut rewritten = header.clone();
    let plan = plan_whole(&mut rewritten, body, &mut room);
    let length = plan.length() + rewritten.length() as u64 + 2;
    if room.is_short || (plan.is_changed && length > message_bytes_max) {
        return Plan::untouched(body);
    }
    *header = rewritten;
    plan
}

fn plan_whole<'a>(header: &mut HeaderBlock, body: &'a [u8], room: &mut Room) -> Plan<'a> {
    let is_mime = header.count("MIME-Version") > 0;
    let mut plan = plan_body(header, body, DEFAULT_TYPE, (0, room));
    if plan.is_changed && !is_mime {
        header.append("MIME-Version", "1.0");
    }
    // What goes over SMTP ends with a line end; quoted-printable and base64 can have one for free.
    if let ([Piece::Bytes(Cow::Owned(bytes))], false) = (plan.pieces.as_mut_slice(), body.is_empty())
        && !bytes.ends_with(b"\r\n")
    {
        let is_quoted = header.text(ENCODING).is_some_and(|encoding| encoding.eq_ignore_ascii_case("quoted-printable"));
        bytes.extend_from_slice(if is_quoted { b"=\r\n" } else { b"\r\n" });
    }
    plan
}

fn plan_body<'a>(header: &mut HeaderBlock, body: &'a [u8], default: &str, (depth, room): (u32, &mut Room)) -> Plan<'a> {
    let is_clean = body.is_ascii() && !has_long_line(body);
    if is_clean || depth > NESTING_MAX || header.count("Content-Type") > 1 || header.count(ENCODING) > 1 {
        return Plan::untouched(body);
    }
    let Some(media_type) = MediaType::parse(&header.text("Content-Type").unwrap_or_else(|| default.to_owned())) else {
        return Plan::untouched(body);
    };
    let encoding = header.text(ENCODING).map(|text| text.to_ascii_lowercase()).unwrap_or_default();
    let is_identity = matches!(encoding.as_str(), "" | "7bit" | "8bit" | "binary");
    let plan = match (media_type.kind.as_str(), media_type.subtype.as_str()) {
        ("multipart", "signed" | "encrypted") => return Plan::untouched(body),
        ("multipart", subtype) if is_identity => match media_type.boundary() {
            Some(boundary) => {
                let default = if subtype == "digest" { "message/rfc822" } else { DEFAULT_TYPE };
                let Some(stretches) = split_multipart(body, boundary, room.parts) else {
                    room.is_short = true;
                    return Plan::untouched(body);
                };
                plan_multipart(stretches, default, (depth, room))
            }
            None => return Plan::untouched(body),
        },
        ("message", "rfc822") if is_identity => plan_entity(body, DEFAULT_TYPE, (depth, room)),
        ("multipart" | "message", _) => return Plan::untouched(body),
        _ => return plan_leaf(header, body, (&media_type, &encoding), room),
    };
    // The encoding of a composite is the widest inside it (RFC 2045 s6.4).
    if plan.is_changed && plan.octets == Octets::Seven && matches!(encoding.as_str(), "8bit" | "binary") {
        header.set(ENCODING, "7bit");
    }
    plan
}

fn plan_multipart<'a>(stretches: Vec<Stretch<'a>>, default: &str, (depth, room): (u32, &mut Room)) -> Plan<'a> {
    let parts = stretches.iter().filter(|stretch| matches!(stretch, Stretch::Part(_))).count();
    room.parts = room.parts.saturating_sub(parts);
    let mut whole = Plan { pieces: Vec::with_capacity(stretches.len()), octets: Octets::Seven, is_changed: false };
    let has_parts = parts > 0;
    for stretch in stretches {
        match stretch {
            // Shown to nobody and not convertible: left out. Without any part it is all there is.
            Stretch::Around(text) if has_parts && (!text.is_ascii() || has_long_line(text)) => whole.is_changed = true,
            Stretch::Around(text) | Stretch::Delimiter(text) => whole.push_bytes(Cow::Borrowed(text)),
            Stretch::Part(entity) => {
                let part = plan_entity(entity, default, (depth, &mut *room));
                whole.octets = whole.octets.and(part.octets);
                whole.is_changed |= part.is_changed;
                whole.pieces.push(Piece::Body(part));
            }
        }
    }
    whole
}

/// A part or an attached message: header block, empty line, body.
fn plan_entity<'a>(entity: &'a [u8], default: &str, (depth, room): (u32, &mut Room)) -> Plan<'a> {
    let split = if room.is_short { None } else { split_part(entity) };
    let Some((mut header, body)) = split else {
        return Plan::untouched(entity);
    };
    let is_encoded = words::encode_fields(&mut header);
    let is_folded = fold_long_fields(&mut header);
    let plan = plan_body(&mut header, body, default, (depth + 1, &mut *room));
    if !plan.is_changed && !is_folded && !is_encoded {
        return Plan::untouched(entity);
    }
    if !room.take(header.length() + 2) {
        return Plan::untouched(entity);
    }
    let mut head = header.to_bytes();
    head.extend_from_slice(b"\r\n");
    let octets = Octets::of(&head).and(plan.octets);
    Plan { pieces: vec![Piece::Bytes(Cow::Owned(head)), Piece::Body(plan)], octets, is_changed: true }
}

fn plan_leaf<'a>(
    header: &mut HeaderBlock,
    body: &'a [u8],
    (media_type, encoding): (&MediaType, &str),
    room: &mut Room,
) -> Plan<'a> {
    let is_identity = matches!(encoding, "" | "7bit" | "8bit" | "binary");
    let is_quoted = encoding == "quoted-printable" || is_identity && media_type.kind == "text" && is_mostly_ascii(body);
    // What it takes at least is known before it is made, so that no more memory is taken than there may be.
    let octets = match is_quoted {
        true => body.len() + 2 * body.iter().filter(|octet| !octet.is_ascii()).count(),
        false if is_identity => body.len().div_ceil(3) * 4,
        false => 0,
    };
    if !room.take(octets) {
        return Plan::untouched(body);
    }
    let (encoded, name) = match encoding {
        "quoted-printable" => return Plan::encoded(repair_quoted_printable(body)),
        "base64" => return Plan::encoded(repair_base64(body)),
        _ if is_quoted => (to_quoted_printable(body), "quoted-printable"),
        _ if is_identity => (to_base64(body), "base64"),
        _ => return Plan::untouched(body),
    };
    // Without a type a reader has to guess the charset, and guesses differently once it is encoded.
    if header.count("Content-Type") == 0 && std::str::from_utf8(body).is_ok() {
        header.append("Content-Type", "text/plain; charset=utf-8");
    }
    header.set(ENCODING, name);
    Plan::encoded(encoded)
}

/// Whether quoted-printable comes out shorter than base64, and no NUL or other control is in it.
fn is_mostly_ascii(text: &[u8]) -> bool {
    let escaped = text.iter().filter(|octet| !matches!(octet, b' '..=b'~' | b'\t' | b'\r' | b'\n')).count();
    escaped.saturating_mul(5) < text.len() && !text.contains(&0)
}

/// Folds fields with a line over [`LINE_OCTETS_MAX`] at white space (RFC 5322 s2.2.3), and says
/// whether there were any. A longer word stays: it cannot be folded without changing it.
pub fn fold_long_fields(header: &mut HeaderBlock) -> bool {
    let is_long = |field: &Field| {
        field.name.len() + 1 + field.raw_value.len() > LINE_OCTETS_MAX
            && has_long_line(&[field.name.as_bytes(), b":", &field.raw_value].concat())
    };
    header.edit(|field| {
        let folded = |field: &Field| folded_value(field.name.len() + 1, &field.raw_value);
        is_long(field).then(|| Field { name: field.name.clone(), raw_value: folded(field) })
    })
}

fn folded_value(name_octets: usize, raw_value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw_value.len() + raw_value.len() / 32);
    let mut column = name_octets;
    let mut has_text = false;
    let mut rest = raw_value;
    while let Some(&first) = rest.first() {
        if rest.starts_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
            (column, has_text) = (0, false);
            rest = rest.get(2..).unwrap_or_default();
            continue;
        }
        let blanks = rest.iter().take_while(|octet| matches!(octet, b' ' | b'\t')).count();
        let word = rest.iter().skip(blanks).take_while(|octet| !matches!(octet, b' ' | b'\t' | b'\r')).count();
        // A bare CR is a word of its own, so that this always goes on.
        let length = (blanks + word).max(1);
        let is_blank_led = matches!(first, b' ' | b'\t');
        if is_blank_led && word > 0 && has_text && column + length > FOLD_OCTETS {
            out.extend_from_slice(b"\r\n");
            column = 0;
        }
        let (token, left) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        out.extend_from_slice(token);
        column += token.len();
        has_text |= word > 0;
        rest = left;
    }
    out
}

const DEFAULT_TYPE: &str = "text/plain";
const ENCODING: &str = "Content-Transfer-Encoding";
