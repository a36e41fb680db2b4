//! What a stage needs of MIME (RFC 2045, RFC 2046): media types, the parts of a multipart as
//! slices of the original bytes, and the two encodings that survive every relay.
//!
//! Easy to get wrong: the CRLF before a delimiter belongs to the delimiter, and a soft line break
//! of ours must never make a line that looks like one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memmem;

use super::header::HeaderBlock;

/// Octets in a line without its CRLF, at most (RFC 5322 s2.1.1, RFC 5321 s4.5.3.1.6).
pub const LINE_OCTETS_MAX: usize = 998;
/// Octets in an encoded line, at most (RFC 2045 s6.7, s6.8).
const ENCODED_LINE_OCTETS_MAX: usize = 76;

/// A media type with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType {
    /// `text`, in lower case.
    pub kind: String,
    /// `plain`, in lower case.
    pub subtype: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Reads an unfolded Content-Type value. Comments are skipped; a broken parameter ends it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = without_comments(text);
        let (essence, mut rest) = text.split_once(';').unwrap_or((&text, ""));
        let (kind, subtype) = essence.trim().split_once('/')?;
        let is_token = |word: &str| !word.is_empty() && word.chars().all(is_token_character);
        let (kind, subtype) = (kind.trim().to_ascii_lowercase(), subtype.trim().to_ascii_lowercase());
        if !is_token(&kind) || !is_token(&subtype) {
            return None;
        }
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let name = name.trim_matches([' ', '\t', ';']).to_ascii_lowercase();
            let after = after.trim_start();
            let (value, left) = match after.strip_prefix('"') {
                Some(quoted) => unquoted(quoted),
                None => {
                    let end = after.find([';', ' ', '\t']).unwrap_or(after.len());
                    let (value, left) = after.split_at_checked(end).unwrap_or_default();
                    (value.to_owned(), left)
                }
            };
            parameters.push((name, value));
            rest = left;
        }
        Some(Self { kind, subtype, parameters })
    }

    /// Whether it is `kind/subtype`.
    pub fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind == kind && self.subtype == subtype
    }

    /// A parameter's value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The boundary of a multipart, if it is one that RFC 2046 s5.1.1 allows.
    pub fn boundary(&self) -> Option<&str> {
        let boundary = self.parameter("boundary")?;
        let is_sound = (1..=70).contains(&boundary.len())
            && boundary.bytes().all(|byte| (32..127).contains(&byte))
            && !boundary.ends_with(' ');
        is_sound.then_some(boundary)
    }
}

fn is_token_character(character: char) -> bool {
    character.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(character)
}

/// The meaning of a quoted string after its opening quote, and what follows it.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The text without what stands in parentheses outside of quotes.
fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut depth, mut is_quoted, mut is_escaped) = (0_u32, false, false);
    for character in text.chars() {
        let was_escaped = std::mem::take(&mut is_escaped);
        match character {
            '\\' if !was_escaped => is_escaped = true,
            '"' if !was_escaped && depth == 0 => is_quoted = !is_quoted,
            '(' if !was_escaped && !is_quoted => depth += 1,
            ')' if !was_escaped && !is_quoted && depth > 0 => {
                depth -= 1;
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            kept.push(character);
        }
    }
    kept
}

/// Octets of a part's header block, at most; with more the part is not looked into.
pub const PART_HEADER_OCTETS_MAX: usize = 64 * 1024;
/// Fields of a part's header block, at most; with more the part is not looked into. A field costs
/// far more than its octets once it is read, so they are counted first.
pub const PART_FIELDS_MAX: usize = 1000;

/// One stretch of a multipart's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch<'a> {
    /// Preamble or epilogue: shown to nobody.
    Around(&'a [u8]),
    /// A delimiter line, with the CRLF before it if that belongs to it.
    Delimiter(&'a [u8]),
    /// A part: header, empty line, body.
    Part(&'a [u8]),
}

/// Cuts a multipart's body at its delimiter lines (RFC 2046 s5.1.1). The stretches in order are
/// exactly the body. Without a single delimiter it is all `Around`. `None` if there are more than
/// `parts_max` parts: each costs far more than its octets.
pub fn split_multipart<'a>(body: &'a [u8], boundary: &str, parts_max: usize) -> Option<Vec<Stretch<'a>>> {
    let needle = format!("--{boundary}");
    let mut stretches = Vec::new();
    let (mut from, mut is_inside, mut parts) = (0, false, 0_usize);
    for at in memmem::find_iter(body, needle.as_bytes()) {
        if at < from || !(at == 0 || body.get(at - 1) == Some(&b'\n')) {
            continue;
        }
        let after = body.get(at + needle.len()..).unwrap_or_default();
        let line = after.get(..memchr::memchr(b'\n', after).map_or(after.len(), |end| end + 1)).unwrap_or_default();
        let is_close = line.starts_with(b"--");
        let blank = if is_close { line.get(2..).unwrap_or_default() } else { line };
        if !blank.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let start =
            if is_inside && body.get(from..at).is_some_and(|text| text.ends_with(b"\r\n")) { at - 2 } else { at };
        let text = body.get(from..start).unwrap_or_default();
        match is_inside {
            true => stretches.push(Stretch::Part(text)),
            false if text.is_empty() => {}
            false => stretches.push(Stretch::Around(text)),
        }
        from = at + needle.len() + line.len();
        stretches.push(Stretch::Delimiter(body.get(start..from).unwrap_or_default()));
        is_inside = !is_close;
        if is_close {
            break;
        }
        parts += 1;
        if parts > parts_max {
            return None;
        }
    }
    let rest = body.get(from..).unwrap_or_default();
    match is_inside {
        true => stretches.push(Stretch::Part(rest)),
        false if rest.is_empty() => {}
        false => stretches.push(Stretch::Around(rest)),
    }
    Some(stretches)
}

/// As [`split_entity`], for a part: `None` also if its header block is over
/// [`PART_HEADER_OCTETS_MAX`] or [`PART_FIELDS_MAX`].
pub fn split_part(entity: &[u8]) -> Option<(HeaderBlock, &[u8])> {
    if entity.starts_with(b"\r\n") {
        return split_entity(entity);
    }
    let head = entity.get(..memmem::find(entity, b"\r\n\r\n")?)?;
    let is_field = |line: &&[u8]| !matches!(line.first(), None | Some(b' ' | b'\t'));
    if head.len() > PART_HEADER_OCTETS_MAX
        || head.split(|octet| *octet == b'\n').filter(is_field).count() > PART_FIELDS_MAX
    {
        return None;
    }
    split_entity(entity)
}

/// Cuts an entity into its header block and its body. `None` if there is no empty line or the
/// header block is not one.
pub fn split_entity(entity: &[u8]) -> Option<(HeaderBlock, &[u8])> {
    if let Some(body) = entity.strip_prefix(b"\r\n") {
        return Some((HeaderBlock::default(), body));
    }
    let end = memmem::find(entity, b"\r\n\r\n")?;
    let header = HeaderBlock::parse(entity.get(..end + 2)?).ok()?;
    Some((header, entity.get(end + 4..)?))
}

/// Whether a line is longer than [`LINE_OCTETS_MAX`].
pub fn has_long_line(text: &[u8]) -> bool {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', text) {
        if end - start > LINE_OCTETS_MAX + 1 {
            return true;
        }
        start = end + 1;
    }
    text.len() - start > LINE_OCTETS_MAX
}

/// Writes text as quoted-printable (RFC 2045 s6.7). CRLF stays a line end, everything else that is
/// not plain is escaped, and so is what a relay or mailbox format might touch.
pub fn to_quoted_printable(text: &[u8]) -> Vec<u8> {
    let mut out = QuotedPrintable::with_capacity(text.len());
    let mut octets = text.iter().enumerate();
    while let Some((at, &octet)) = octets.next() {
        let after = text.get(at + 1..).unwrap_or_default();
        match octet {
            b'\r' if after.first() == Some(&b'\n') => {
                octets.next();
                out.end_line();
            }
            b' ' | b'\t' if after.is_empty() || after.starts_with(b"\r\n") => out.escape(octet),
            b'=' => out.escape(octet),
            // mbox files quote such lines and break signatures with it.
            b'F' if out.column == 0 && after.starts_with(b"rom ") => out.escape(octet),
            b' ' | b'\t' | 33..=126 => out.literal(octet),
            _ => out.escape(octet),
        }
    }
    out.bytes
}

/// Brings broken quoted-printable (8-bit octets, endless lines) into its proper form without
/// changing what it decodes to. White space at the end of a line decodes to nothing (RFC 2045 s6.7
/// rule 3) and is left out: a soft break of ours behind a part of it would make that part count.
pub fn repair_quoted_printable(encoded: &[u8]) -> Vec<u8> {
    let mut out = QuotedPrintable::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&first, after)) = rest.split_first() {
        let (blanks, left) = split_blanks(rest);
        if !blanks.is_empty() {
            if !(left.is_empty() || left.starts_with(b"\r\n")) {
                blanks.iter().for_each(|octet| out.literal(*octet));
            }
            rest = left;
            continue;
        }
        if first == b'='
            && let Some(left) = split_blanks(after).1.strip_prefix(b"\r\n")
        {
            out.soft_break();
            rest = left;
            continue;
        }
        rest = match (first, after) {
            (b'=', [high, low, left @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.token(&[b'=', *high, *low]);
                left
            }
            (b'\r', [b'\n', left @ ..]) => {
                out.end_line();
                left
            }
            (33..=126, left) => {
                out.literal(first);
                left
            }
            (_, left) => {
                out.escape(first);
                left
            }
        };
    }
    out.bytes
}

/// The spaces and tabs at the start of `octets`, and the rest.
fn split_blanks(octets: &[u8]) -> (&[u8], &[u8]) {
    let count = octets.iter().take_while(|octet| matches!(octet, b' ' | b'\t')).count();
    octets.split_at_checked(count).unwrap_or((octets, &[]))
}

struct QuotedPrintable {
    bytes: Vec<u8>,
    column: usize,
    is_after_soft_break: bool,
}

impl QuotedPrintable {
    fn with_capacity(text: usize) -> Self {
        Self { bytes: Vec::with_capacity(text + text / 8), column: 0, is_after_soft_break: false }
    }

    fn end_line(&mut self) {
        self.bytes.extend_from_slice(b"\r\n");
        self.column = 0;
        self.is_after_soft_break = false;
    }

    fn soft_break(&mut self) {
        self.bytes.extend_from_slice(b"=\r\n");
        self.column = 0;
        self.is_after_soft_break = true;
    }

    fn literal(&mut self, octet: u8) {
        if self.column + 1 >= ENCODED_LINE_OCTETS_MAX {
            self.soft_break();
        }
        // A line that our own break began must not look like a delimiter or an mbox separator.
        if self.column == 0 && self.is_after_soft_break && matches!(octet, b'-' | b'F') {
            return self.escape(octet);
        }
        self.token(&[octet]);
    }

    fn escape(&mut self, octet: u8) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
        self.token(&[b'=', digit(octet >> 4), digit(octet & 15)]);
    }

    fn token(&mut self, token: &[u8]) {
        if self.column + token.len() >= ENCODED_LINE_OCTETS_MAX {
            self.soft_break();
        }
        self.bytes.extend_from_slice(token);
        self.column += token.len();
    }
}

/// Writes octets as base64 in lines of 76, joined by CRLF, without one at the end.
pub fn to_base64(octets: &[u8]) -> Vec<u8> {
    const OCTETS_PER_LINE: usize = ENCODED_LINE_OCTETS_MAX / 4 * 3;
    let mut out = String::with_capacity(octets.len() / 3 * 4 + octets.len() / OCTETS_PER_LINE * 2 + 8);
    for (number, line) in octets.chunks(OCTETS_PER_LINE).enumerate() {
        if number > 0 {
            out.push_str("\r\n");
        }
        BASE64.encode_string(line, &mut out);
    }
    out.into_bytes()
}

/// Brings base64 into lines of 76 and drops what does not belong to it, which every decoder
/// ignores (RFC 2045 s6.8).
pub fn repair_base64(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len() + encoded.len() / 32);
    let mut column = 0;
    for octet in encoded.iter().filter(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'/' | b'=')) {
        if column == ENCODED_LINE_OCTETS_MAX {
            out.extend_from_slice(b"\r\n");
            column = 0;
        }
        out.push(*octet);
        column += 1;
    }
    out
}

#[cfg(test)]
#[path = "mime_tests.rs"]
mod tests;
