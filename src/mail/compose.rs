//! Builds a message from its parts (the API, later notices and campaigns), or reads one that is whole.
//! MIME bodies are written by the mail-builder crate, fields by [`HeaderBlock`]; the pipeline encodes what
//! of them is not ASCII.
//!
//! Easy to get wrong: everything here comes from a client. No name, value or file name may begin a field or
//! a part of its own, and no field that has a meaning for delivery may be given as a free one.

use bytes::Bytes;
use mail_builder::headers::content_type::ContentType;
use mail_builder::mime::MimePart;

use super::header::{HeaderBlock, HeaderError};
use super::mailbox::Mailbox;
use super::message::{Body, Draft};
use super::mime::split_entity;

/// Free fields of a message, at most.
pub const FREE_FIELDS_MAX: usize = 50;
/// Octets of one free field's value, at most.
pub const FREE_FIELD_OCTETS_MAX: usize = 8 * 1024;
/// Files attached to a message, at most.
pub const ATTACHMENTS_MAX: usize = 100;
/// Octets of a file's name, at most.
pub const FILE_NAME_OCTETS_MAX: usize = 255;
/// Octets of a subject, at most.
pub const SUBJECT_OCTETS_MAX: usize = 2000;

/// Fields that are made from other parts, by the pipeline, or by whoever receives.
const FIXED_FIELDS: &[&str] = &[
    "From",
    "To",
    "Cc",
    "Bcc",
    "Subject",
    "Reply-To",
    "Date",
    "Received",
    "Return-Path",
    "DKIM-Signature",
    "Authentication-Results",
    "ARC-Seal",
    "ARC-Message-Signature",
    "ARC-Authentication-Results",
    "MIME-Version",
    "Resent-Bcc",
];

/// The parts of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Composition {
    /// At least one.
    pub from: Vec<Mailbox>,
    /// Shown recipients.
    pub to: Vec<Mailbox>,
    /// Further shown recipients.
    pub cc: Vec<Mailbox>,
    /// Where answers go, if elsewhere.
    pub reply_to: Vec<Mailbox>,
    /// One line.
    pub subject: String,
    /// The plain text.
    pub text: Option<String>,
    /// The HTML.
    pub html: Option<String>,
    /// Free fields.
    pub fields: Vec<(String, String)>,
    /// Files.
    pub attachments: Vec<Attachment>,
}

/// A file of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub name: String,
    /// `type/subtype`.
    pub content_type: String,
    /// Its octets.
    pub content: Vec<u8>,
    /// What the HTML calls it (`cid:`); it is shown there and not listed.
    pub content_id: Option<String>,
}

/// What is wrong with a part; the first value is the part's path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {fault}")]
pub struct ComposeError {
    /// Where: `subject`, `headers.X-A`, `attachments[1].name`.
    pub part: String,
    /// What.
    pub fault: String,
}

fn wrong(part: impl Into<String>, fault: impl Into<String>) -> ComposeError {
    ComposeError { part: part.into(), fault: fault.into() }
}

/// Makes a draft of parts.
///
/// # Errors
/// The first part that is not acceptable.
pub fn compose(composition: Composition) -> Result<Draft, ComposeError> {
    let mut header = HeaderBlock::default();
    for (name, mailboxes) in [
        ("From", &composition.from),
        ("To", &composition.to),
        ("Cc", &composition.cc),
        ("Reply-To", &composition.reply_to),
    ] {
        if !mailboxes.is_empty() {
            header.append(name, &mailboxes.iter().map(shown).collect::<Vec<_>>().join(",\r\n\t"));
        }
    }
    if composition.subject.len() > SUBJECT_OCTETS_MAX {
        return Err(wrong("subject", format!("has more than {SUBJECT_OCTETS_MAX} octets")));
    }
    one_line("subject", &composition.subject)?;
    if !composition.subject.is_empty() {
        header.append("Subject", &composition.subject);
    }
    free_fields(&mut header, &composition.fields)?;
    let mut octets = Vec::new();
    body(composition.text, composition.html, composition.attachments)?.write_part(&mut octets);
    let (mime, body) = split_entity(&octets).ok_or_else(|| wrong("html", "the body could not be written"))?;
    let body = Bytes::copy_from_slice(body);
    header.append("MIME-Version", "1.0");
    for field in mime.fields() {
        header.append(&field.name, field.text().as_str());
    }
    Ok(Draft { header, body: Body::Memory(body) })
}

/// `"Name" <address>`; a name of plain words needs no quotes, and one with encoded words may not have them.
fn shown(mailbox: &Mailbox) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || " !#$%&'*+-/=?^_`{|}~".contains(character);
    let name = mailbox.name.trim();
    if name.is_empty() {
        mailbox.address.to_string()
    } else if name.chars().all(is_plain) {
        format!("{name} <{}>", mailbox.address)
    } else {
        format!("\"{}\" <{}>", name.replace('\\', "\\\\").replace('"', "\\\""), mailbox.address)
    }
}

fn one_line(part: &str, text: &str) -> Result<(), ComposeError> {
    if text.chars().any(|character| character.is_control() && character != '\t') {
        return Err(wrong(part, "holds a line end or another control character"));
    }
    Ok(())
}

fn free_fields(header: &mut HeaderBlock, fields: &[(String, String)]) -> Result<(), ComposeError> {
    if fields.len() > FREE_FIELDS_MAX {
        return Err(wrong("headers", format!("has more than {FREE_FIELDS_MAX} fields")));
    }
    for (name, value) in fields {
        let part = format!("headers.{name}");
        // RFC 5322 s2.2; letters and digits and a hyphen are what is in use.
        let is_name = (1..=76).contains(&name.len())
            && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet));
        if !is_name {
            return Err(wrong(part, "is no name of a header field"));
        }
        let is_fixed = FIXED_FIELDS.iter().any(|fixed| fixed.eq_ignore_ascii_case(name))
            || name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("Content-"));
        if is_fixed {
            return Err(wrong(part, "is made from other parts of the message and cannot be set"));
        }
        if value.len() > FREE_FIELD_OCTETS_MAX {
            return Err(wrong(part, format!("has more than {FREE_FIELD_OCTETS_MAX} octets")));
        }
        one_line(&part, value)?;
        header.append(name, value);
    }
    Ok(())
}

fn body(
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<Attachment>,
) -> Result<MimePart<'static>, ComposeError> {
    if attachments.len() > ATTACHMENTS_MAX {
        return Err(wrong("attachments", format!("are more than {ATTACHMENTS_MAX}")));
    }
    let (mut inline, mut files) = (Vec::new(), Vec::new());
    for (number, attachment) in attachments.into_iter().enumerate() {
        let is_inline = attachment.content_id.is_some() && html.is_some();
        let part = file(number, attachment)?;
        if is_inline { inline.push(part) } else { files.push(part) }
    }
    let mut shown = Vec::new();
    if let Some(text) = text {
        shown.push(MimePart::new("text/plain", lines("text", &text)?));
    }
    if let Some(html) = html {
        let html = MimePart::new("text/html", lines("html", &html)?);
        // RFC 2387: what the HTML shows belongs to it.
        shown.push(together("multipart/related", vec![html], inline));
    }
    let shown = match shown.len() {
        0 => MimePart::new("text/plain", String::new()),
        1 => shown.remove(0),
        _ => MimePart::new("multipart/alternative", shown),
    };
    Ok(together("multipart/mixed", vec![shown], files))
}

fn together(kind: &'static str, mut first: Vec<MimePart<'static>>, more: Vec<MimePart<'static>>) -> MimePart<'static> {
    if more.is_empty() && first.len() == 1 {
        return first.remove(0);
    }
    first.extend(more);
    MimePart::new(kind, first)
}

/// Text with CRLF at the end of each line, as it is sent.
fn lines(part: &str, text: &str) -> Result<String, ComposeError> {
    if text.contains('\0') {
        return Err(wrong(part, "holds a NUL"));
    }
    let mut lines = text.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\r\n");
    if !lines.ends_with("\r\n") {
        lines.push_str("\r\n");
    }
    Ok(lines)
}

fn file(number: usize, attachment: Attachment) -> Result<MimePart<'static>, ComposeError> {
    let part = |field: &str| format!("attachments[{number}].{field}");
    let Attachment { name, content_type, content, content_id } = attachment;
    if name.is_empty() || name.len() > FILE_NAME_OCTETS_MAX {
        return Err(wrong(part("name"), format!("must be 1 to {FILE_NAME_OCTETS_MAX} octets long")));
    }
    one_line(&part("name"), &name)?;
    let is_token = |text: &str| {
        (1..=100).contains(&text.len())
            && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&octet))
    };
    let is_fine = content_type
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype) && !kind.eq_ignore_ascii_case("multipart"));
    if !is_fine {
        return Err(wrong(part("content_type"), "must be of the form type/subtype, and not multipart"));
    }
    let of_kind = MimePart::new(ContentType::new(content_type), content);
    let Some(content_id) = content_id else { return Ok(of_kind.attachment(name)) };
    let is_id_character = |octet: u8| octet.is_ascii_alphanumeric() || b"@._+-".contains(&octet);
    if !(1..=200).contains(&content_id.len()) || !content_id.bytes().all(is_id_character) {
        return Err(wrong(part("content_id"), "must be 1 to 200 letters, digits or @ . _ + -"));
    }
    let disposition = ContentType::new("inline").attribute("filename", name);
    Ok(of_kind.header("Content-Disposition", disposition).cid(content_id))
}

/// Reads a message that is whole. Lines that end in CR or LF alone end in CRLF afterwards.
///
/// # Errors
/// If the header block is none or too long, or there is a NUL.
pub fn read_whole(octets: &[u8], header_octets_max: usize) -> Result<Draft, ComposeError> {
    if memchr::memchr(0, octets).is_some() {
        return Err(wrong("raw", "holds a NUL"));
    }
    let octets = with_line_ends(octets);
    let end = memchr::memmem::find(&octets, b"\r\n\r\n").map_or(octets.len(), |end| end.saturating_add(2));
    if end > header_octets_max {
        return Err(wrong("raw", format!("has a header of more than {header_octets_max} octets")));
    }
    let (block, rest) = octets.split_at_checked(end).unwrap_or((&octets, &[]));
    let header = HeaderBlock::parse(block).map_err(|error: HeaderError| wrong("raw", error.to_string()))?;
    let body = Bytes::copy_from_slice(rest.strip_prefix(b"\r\n").unwrap_or(rest));
    Ok(Draft { header, body: Body::Memory(body) })
}

fn with_line_ends(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len().saturating_add(64));
    let mut rest = octets;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
        let (line, end) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = end.strip_prefix(b"\r\n").or_else(|| end.get(1..)).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    if !rest.is_empty() {
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
