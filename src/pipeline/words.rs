//! Header fields with raw UTF-8 become ASCII before signing, so that no relay has to convert them and
//! breaks the signature: encoded words (RFC 2047) in unstructured fields and names, RFC 2231 values
//! in parameters.
//!
//! What cannot be written in ASCII stays: an address with UTF-8 in it needs SMTPUTF8 (RFC 6531), and
//! so does a field whose form is not known to be text. Pure: values in, values out.
//! Easy to get wrong: white space between two encoded words is not shown (RFC 2047 s6.2), so what
//! stands between two of them goes inside one.

use crate::mail::{Field, HeaderBlock};

/// Octets of text in one encoded word: with all of them as `=XX` it keeps within 75 (RFC 2047 s2).
const WORD_OCTETS_MAX: usize = 20;
/// Where lines are folded.
const FOLD_OCTETS: usize = 76;
/// Characters of one percent-encoded stretch of a parameter; longer values continue (RFC 2231 s3).
const STRETCH_MAX: usize = 60;

/// Fields of addresses: names in them are text, addresses are not.
const ADDRESS_FIELDS: &[&str] = &[
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
    "List-Id",
    "Disposition-Notification-To",
];
/// Fields of a value and parameters.
const PARAMETER_FIELDS: &[&str] = &["Content-Type", "Content-Disposition"];
/// Fields with a form of their own in which text has no place.
const FIXED_FIELDS: &[&str] = &[
    "Date",
    "Resent-Date",
    "Message-ID",
    "Resent-Message-ID",
    "In-Reply-To",
    "References",
    "Received",
    "Return-Path",
    "MIME-Version",
    "Content-Transfer-Encoding",
    "Content-ID",
    "Content-Location",
    "DKIM-Signature",
    "Authentication-Results",
    "ARC-Seal",
    "ARC-Message-Signature",
    "ARC-Authentication-Results",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Help",
    "List-Post",
    "List-Subscribe",
    "List-Owner",
    "List-Archive",
    "Auto-Submitted",
    "Autocrypt",
];

/// Makes every field ASCII that can be; says whether anything was changed.
pub fn encode_fields(header: &mut HeaderBlock) -> bool {
    header.edit(|field| if field.raw_value.is_ascii() { None } else { encoded(field) })
}

/// The field in ASCII, `None` if it has to stay as it is.
fn encoded(field: &Field) -> Option<Field> {
    let is_one_of = |names: &[&str]| names.iter().any(|name| field.name.eq_ignore_ascii_case(name));
    if is_one_of(FIXED_FIELDS) {
        return None;
    }
    let (text, charset) = match std::str::from_utf8(&field.raw_value) {
        Ok(text) => (unfolded(text), "utf-8"),
        // RFC 1428 s3: eight bits of nobody knows which charset. Only where they are plain text.
        Err(_) if !is_one_of(ADDRESS_FIELDS) && !is_one_of(PARAMETER_FIELDS) => {
            let bytes: Vec<u8> =
                field.raw_value.iter().copied().filter(|octet| !matches!(octet, b'\r' | b'\n')).collect();
            return Some(from_words(&field.name, unknown_words(bytes.trim_ascii())));
        }
        Err(_) => return None,
    };
    if text.chars().any(|character| character.is_control() && character != '\t') {
        return None;
    }
    if is_one_of(PARAMETER_FIELDS) {
        return parameters(&text).map(|lines| Field::new(&field.name, &lines.join(";\r\n\t")));
    }
    let words = if is_one_of(ADDRESS_FIELDS) { addresses(&text)? } else { text_words(&text, charset) };
    Some(from_words(&field.name, words))
}

fn unfolded(text: &str) -> String {
    text.replace("\r\n", "").trim().to_owned()
}

/// A field of these words, folded between them.
fn from_words(name: &str, words: Vec<String>) -> Field {
    let (mut value, mut column) = (String::new(), name.len() + 1);
    for (number, word) in words.into_iter().enumerate() {
        if number > 0 && column + 1 + word.len() > FOLD_OCTETS {
            value.push_str("\r\n");
            column = 0;
        }
        // `Field::new` writes the white space before each line.
        if number > 0 && column > 0 {
            value.push(' ');
        }
        column += 1 + word.len();
        value.push_str(&word);
    }
    Field::new(name, &value)
}

/// Unstructured text: stretches of words that are not ASCII become encoded words.
fn text_words(text: &str, charset: &str) -> Vec<String> {
    let words: Vec<&str> = text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word.is_ascii() {
            out.push((*word).to_owned());
            at += 1;
            continue;
        }
        let mut stretch = (*word).to_owned();
        // A space that an encoded word before or behind this one would swallow.
        if at > 0 && words.get(at - 1).is_some_and(|before| is_encoded_word(before)) {
            stretch.insert(0, ' ');
        }
        at += 1;
        while let Some(next) = words.get(at).filter(|next| !next.is_ascii()) {
            stretch.push(' ');
            stretch.push_str(next);
            at += 1;
        }
        if words.get(at).is_some_and(|next| is_encoded_word(next)) {
            stretch.push(' ');
        }
        out.extend(encoded_words(&stretch, charset));
    }
    out
}

fn is_encoded_word(word: &str) -> bool {
    word.len() > 6 && word.starts_with("=?") && word.ends_with("?=")
}

/// Encoded words for a text, cut between characters.
fn encoded_words(text: &str, charset: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut piece = String::new();
    for character in text.chars() {
        if piece.len() + character.len_utf8() > WORD_OCTETS_MAX {
            words.push(encoded_word(piece.as_bytes(), charset));
            piece.clear();
        }
        piece.push(character);
    }
    if !piece.is_empty() {
        words.push(encoded_word(piece.as_bytes(), charset));
    }
    words
}

fn unknown_words(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(WORD_OCTETS_MAX).map(|piece| encoded_word(piece, "unknown-8bit")).collect()
}

/// The Q encoding with the few characters that may stand everywhere (RFC 2047 s4.2, s5).
fn encoded_word(octets: &[u8], charset: &str) -> String {
    let mut word = format!("=?{charset}?Q?");
    for octet in octets {
        match octet {
            b' ' => word.push('_'),
            b'!' | b'*' | b'+' | b'-' | b'/' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => word.push(char::from(*octet)),
            _ => word.push_str(&format!("={octet:02X}")),
        }
    }
    word.push_str("?=");
    word
}

/// One piece of an address field.
enum Token {
    /// A word of a name, as it reads, and as it was written.
    Name(String, String),
    /// Anything else, as written.
    Other(String),
}

/// Names encoded, everything else as it is; `None` if something that is not a name is not ASCII.
fn addresses(text: &str) -> Option<Vec<String>> {
    let tokens = tokens(text)?;
    let mut out: Vec<String> = Vec::new();
    let mut joins = false;
    for phrase in tokens.chunk_by(|one, next| matches!((one, next), (Token::Name(..), Token::Name(..)))) {
        let mut pieces = match phrase {
            // A comma belongs to what stands before it; nothing else is glued to anything.
            [Token::Other(text)] if matches!(text.as_str(), "," | ";" | ":" | ")") && !out.is_empty() => {
                out.last_mut()?.push_str(text);
                continue;
            }
            [Token::Other(text)] => vec![text.clone()],
            names => name_words(names),
        }
        .into_iter();
        if joins && let (Some(last), Some(piece)) = (out.last_mut(), pieces.next()) {
            last.push_str(&piece);
        }
        out.extend(pieces);
        joins = matches!(phrase, [Token::Other(text)] if text == "(");
    }
    Some(out)
}

/// The words of one name. Between words that are encoded already, all of a stretch is encoded or
/// nothing: some readers lose the space between an encoded word and a quoted one.
fn name_words(names: &[Token]) -> Vec<String> {
    let is_done = |token: &Token| matches!(token, Token::Name(plain, _) if is_encoded_word(plain));
    let stretches: Vec<&[Token]> = names.chunk_by(|one, next| is_done(one) == is_done(next)).collect();
    let mut out = Vec::new();
    for (number, stretch) in stretches.iter().enumerate() {
        let texts = stretch.iter().filter_map(|token| match token {
            Token::Name(plain, written) => Some((plain.as_str(), written.as_str())),
            Token::Other(_) => None,
        });
        let (plain, written): (Vec<&str>, Vec<&str>) = texts.unzip();
        if plain.iter().all(|word| word.is_ascii()) {
            out.extend(written.into_iter().map(str::to_owned));
            continue;
        }
        let before = if number > 0 { " " } else { "" };
        let after = if number + 1 < stretches.len() { " " } else { "" };
        out.extend(encoded_words(&format!("{before}{}{after}", plain.join(" ")), "utf-8"));
    }
    out
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            ' ' | '\t' => first.len_utf8(),
            '"' => {
                let length = quoted_length(rest)?;
                let written = rest.get(..length)?;
                let plain = unquoted(written);
                let is_local_part = rest.get(length..)?.starts_with('@');
                if is_local_part {
                    let whole = length + rest.get(length..)?.find(is_end).unwrap_or(rest.len() - length);
                    tokens.push(Token::Other(ascii(rest.get(..whole)?)?));
                    whole
                } else {
                    tokens.push(Token::Name(plain, written.to_owned()));
                    length
                }
            }
            '<' => {
                let length = rest.find('>')? + 1;
                tokens.push(Token::Other(ascii(rest.get(..length)?)?));
                length
            }
            ',' | ';' | ':' | '(' | ')' => {
                tokens.push(Token::Other(first.to_string()));
                1
            }
            _ => {
                let length = rest.find(is_end).unwrap_or(rest.len());
                let word = rest.get(..length)?;
                tokens.push(match word.contains('@') {
                    true => Token::Other(ascii(word)?),
                    false => Token::Name(word.to_owned(), word.to_owned()),
                });
                length
            }
        };
        rest = rest.get(length..)?;
    }
    Some(tokens)
}

fn is_end(character: char) -> bool {
    matches!(character, ' ' | '\t' | '"' | '<' | ',' | ';' | ':' | '(' | ')')
}

fn ascii(text: &str) -> Option<String> {
    text.is_ascii().then(|| text.to_owned())
}

/// Octets of the quoted string that `text` begins with, quotes included.
fn quoted_length(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn unquoted(written: &str) -> String {
    let inner = written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(written);
    let (mut plain, mut is_escaped) = (String::with_capacity(inner.len()), false);
    for character in inner.chars() {
        if character == '\\' && !is_escaped {
            is_escaped = true;
        } else {
            plain.push(character);
            is_escaped = false;
        }
    }
    plain
}

/// The value and its parameters, those with UTF-8 in the form of RFC 2231; `None` if it is no such value.
fn parameters(text: &str) -> Option<Vec<String>> {
    let parts = split_parameters(text)?;
    let (value, rest) = parts.split_first()?;
    let mut out = vec![ascii(value.trim())?];
    for part in rest.iter().map(|part| part.trim()).filter(|part| !part.is_empty()) {
        if part.is_ascii() {
            out.push(part.to_owned());
            continue;
        }
        let (name, value) = part.split_once('=')?;
        let name = ascii(name.trim())?;
        if name.contains('*') {
            return None;
        }
        out.extend(extended(&name, &unquoted(value.trim())));
    }
    Some(out)
}

fn split_parameters(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(character) = text.get(at..)?.chars().next() {
        match character {
            '"' => at += quoted_length(text.get(at..)?)?,
            ';' => {
                parts.push(text.get(start..at)?);
                at += 1;
                start = at;
            }
            _ => at += character.len_utf8(),
        }
    }
    parts.push(text.get(start..)?);
    Some(parts)
}

/// `name*=utf-8''...`, in several pieces if it is long.
fn extended(name: &str, value: &str) -> Vec<String> {
    let mut stretches = vec![String::new()];
    for octet in value.bytes() {
        let written = match octet {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' => char::from(octet).to_string(),
            _ => format!("%{octet:02X}"),
        };
        match stretches.last_mut().filter(|stretch| stretch.len() + written.len() <= STRETCH_MAX) {
            Some(stretch) => stretch.push_str(&written),
            None => stretches.push(written),
        }
    }
    match stretches.as_slice() {
        [only] => vec![format!("{name}*=utf-8''{only}")],
        _ => {
            let numbered = stretches.iter().enumerate();
            numbered
                .map(|(number, stretch)| match number {
                    0 => format!("{name}*0*=utf-8''{stretch}"),
                    _ => format!("{name}*{number}*={stretch}"),
                })
                .collect()
        }
    }
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
