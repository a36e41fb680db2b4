//! Writes delivery status notifications: multipart/report (RFC 6522) with a text for people, a
//! message/delivery-status for programs (RFC 3464) and the original or its header block.
//!
//! It reports only the recipients it is given, quotes replies of peers without letting them write
//! fields, and stays ASCII unless the notice itself goes to an address that is not (RFC 6533).
//! Easy to get wrong: a notice is never about a notice, and goes out with the null reverse-path.

use bytes::Bytes;

use super::address::{Address, Domain};
use super::envelope::Ret;
use super::header::HeaderBlock;
use super::id::QueueId;
use super::message::{Body, Draft};
use super::mime::{split_entity, to_base64, to_quoted_printable};
use super::status::{EnhancedStatus, printable};
use crate::ext::{self, Timestamp};

/// Octets of an original up to which `RET=FULL` returns it whole; a longer one returns its header.
pub const ORIGINAL_BYTES_MAX: usize = 64 * 1024;
/// Octets of the original's header block that are returned; whole fields only.
pub const ORIGINAL_HEADER_BYTES_MAX: usize = 32 * 1024;
/// Characters of one reply that are quoted.
pub const DIAGNOSTIC_CHARACTERS_MAX: usize = 4000;

/// Which notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Given up.
    Failure,
    /// Still trying.
    Delay,
    /// Delivered or relayed.
    Success,
}

/// `Action` of RFC 3464 s2.3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `failed`.
    Failed,
    /// `delayed`.
    Delayed,
    /// `delivered`: to the mailbox, as far as is known.
    Delivered,
    /// `relayed`: to a host that gives no notices of its own.
    Relayed,
}

/// What was said about a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    /// The whole reply of the peer, one line or several.
    Smtp(String),
    /// What went wrong here or on the way, in our words.
    Own(String),
}

/// One reported recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Where we sent to.
    pub address: Address,
    /// `ORCPT=` as `type;address`.
    pub orcpt: Option<String>,
    /// What happened.
    pub action: Action,
    /// Its status code.
    pub status: EnhancedStatus,
    /// The name of the host that answered.
    pub remote_mta: Option<String>,
    /// What it said.
    pub diagnostic: Option<Diagnostic>,
    /// When it was tried last.
    pub last_attempt: Option<Timestamp>,
    /// Until when it will be tried; for delays.
    pub will_retry_until: Option<Timestamp>,
}

/// Everything a notice says.
#[derive(Clone, Debug)]
pub struct Notice<'a> {
    /// Which notice.
    pub kind: Kind,
    /// The virtual IP's EHLO name: Reporting-MTA and the domain of MAILER-DAEMON.
    pub reporting_mta: &'a Domain,
    /// The reverse-path of the message it is about.
    pub to: &'a Address,
    /// The message it is about.
    pub about: QueueId,
    /// `ENVID=` of that message.
    pub envid: Option<&'a str>,
    /// `RET=` of that message; without one only the header block is returned.
    pub ret: Option<Ret>,
    /// When that message was accepted.
    pub arrival: Timestamp,
    /// The recipients to report; no others are named.
    pub recipients: &'a [Reported],
    /// The beginning of that message, at most [`ORIGINAL_BYTES_MAX`] octets; empty if it is gone.
    pub original: &'a [u8],
    /// How long that message is.
    pub original_length: u64,
}

/// Writes the notice. Send it with the null reverse-path and without asking for notices about it
/// (RFC 3461 s5.2.1, RFC 3464 s2).
pub fn write(notice: &Notice<'_>, now: Timestamp) -> Draft {
    let script = if notice.to.needs_smtputf8() { Script::Utf8 } else { Script::Ascii };
    let boundary = format!("=_{}", ext::base32(&ext::random_bytes::<10>()));
    let mut body = String::from("This is a delivery status notification in MIME format.\r\n");
    let mut part = |kind: &str, encoding: &str, content: &[u8]| {
        body.push_str(&format!(
            "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
        ));
        body.push_str(&String::from_utf8_lossy(content));
    };
    let text = human_text(notice);
    if text.is_ascii() {
        part("text/plain; charset=us-ascii", "7bit", text.as_bytes());
    } else {
        part("text/plain; charset=utf-8", "quoted-printable", &to_quoted_printable(text.as_bytes()));
    }
    let status = status_fields(notice, script);
    match script {
        Script::Ascii => part("message/delivery-status", "7bit", status.as_bytes()),
        Script::Utf8 => part("message/global-delivery-status", "8bit", status.as_bytes()),
    }
    if let Some(returned) = returned(notice) {
        part(returned.kind, returned.encoding, &returned.content);
    }
    body.push_str(&format!("\r\n--{boundary}--\r\n"));
    Draft { header: header(notice, &boundary, now), body: Body::Memory(Bytes::from(body)) }
}

/// How addresses and replies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Ascii,
    Utf8,
}

fn header(notice: &Notice<'_>, boundary: &str, now: Timestamp) -> HeaderBlock {
    let host = notice.reporting_mta;
    let subject = match notice.kind {
        Kind::Failure => "Your message could not be delivered",
        Kind::Delay => "Your message is delayed",
        Kind::Success => "Your message was delivered",
    };
    let mut header = HeaderBlock::default();
    header.append("Date", &now.rfc5322());
    header.append("From", &format!("Mail Delivery System <MAILER-DAEMON@{host}>"));
    header.append("To", &format!("<{}>", notice.to));
    header.append("Subject", subject);
    header.append("Message-ID", &format!("<{}@{host}>", QueueId::new(now)));
    if let Some(id) = original_message_id(notice.original) {
        header.append("References", &id);
    }
    // RFC 3834 s5: other programs must not answer it.
    header.append("Auto-Submitted", "auto-replied");
    header.append("MIME-Version", "1.0");
    header.append(
        "Content-Type",
        &format!("multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\""),
    );
    if notice.to.needs_smtputf8() {
        header.append("Content-Transfer-Encoding", "8bit");
    }
    header
}

/// The original's Message-ID, if it is one that may be repeated.
fn original_message_id(original: &[u8]) -> Option<String> {
    let (header, _) = split_entity(original)?;
    let id = header.text("Message-ID")?;
    let is_plain = id.len() < 250 && id.bytes().all(|byte| byte.is_ascii_graphic());
    (is_plain && id.starts_with('<') && id.ends_with('>')).then_some(id)
}

fn human_text(notice: &Notice<'_>) -> String {
    let mut text = format!("This is the mail system at {}.\r\n\r\n", notice.reporting_mta);
    text.push_str(match notice.kind {
        Kind::Failure => {
            "Your message could not be delivered to the recipients below.\r\n\
             It will not be tried again for them.\r\n"
        }
        Kind::Delay => {
            "Your message could not be delivered to the recipients below yet.\r\n\
             Nothing needs to be done: it will be tried again.\r\n"
        }
        Kind::Success => "Your message was delivered to the recipients below.\r\n",
    });
    for recipient in notice.recipients {
        text.push_str(&format!("\r\n<{}>\r\n", recipient.address));
        let said = match (&recipient.diagnostic, &recipient.remote_mta) {
            (Some(Diagnostic::Smtp(reply)), Some(host)) => Some((format!("{} answered:", printable(host)), reply)),
            (Some(Diagnostic::Smtp(reply)), None) => Some(("The answer was:".to_owned(), reply)),
            (Some(Diagnostic::Own(cause)), _) => Some(("The reason:".to_owned(), cause)),
            (None, _) => None,
        };
        if let Some((who, what)) = said {
            text.push_str(&format!("    {who}\r\n"));
            lines_of(what).for_each(|line| text.push_str(&format!("        {line}\r\n")));
        }
        if let Some(until) = recipient.will_retry_until {
            text.push_str(&format!("    It will be tried until {}.\r\n", until.rfc5322()));
        }
    }
    text.push_str(&format!("\r\nThe message was accepted on {}\r\n", notice.arrival.rfc5322()));
    text.push_str(&format!("and has the queue id {}.\r\n", notice.about));
    text
}

/// The lines of a reply, printable and bounded.
fn lines_of(reply: &str) -> impl Iterator<Item = String> {
    let bounded: String = reply.chars().take(DIAGNOSTIC_CHARACTERS_MAX).collect();
    let lines: Vec<String> = bounded.lines().map(|line| printable(line.trim_end())).collect();
    lines.into_iter().filter(|line| !line.is_empty())
}

/// The fields of RFC 3464 s2.2 and s2.3.
fn status_fields(notice: &Notice<'_>, script: Script) -> String {
    let mut out = String::new();
    if let Some(envid) = notice.envid {
        field(&mut out, "Original-Envelope-Id", &escaped(envid, script));
    }
    field(&mut out, "Reporting-MTA", &format!("dns; {}", notice.reporting_mta));
    field(&mut out, "Arrival-Date", &notice.arrival.rfc5322());
    for recipient in notice.recipients {
        out.push_str("\r\n");
        if let Some(orcpt) = &recipient.orcpt {
            field(&mut out, "Original-Recipient", &escaped(orcpt, script));
        }
        field(&mut out, "Final-Recipient", &typed_address(&recipient.address, script));
        let action = match recipient.action {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
            Action::Delivered => "delivered",
            Action::Relayed => "relayed",
        };
        field(&mut out, "Action", action);
        field(&mut out, "Status", &recipient.status.to_string());
        if let Some(host) = &recipient.remote_mta {
            field(&mut out, "Remote-MTA", &format!("dns; {}", escaped(host, script)));
        }
        match &recipient.diagnostic {
            Some(Diagnostic::Smtp(reply)) => diagnostic(&mut out, "smtp", reply, script),
            Some(Diagnostic::Own(cause)) => diagnostic(&mut out, "x-postern", cause, script),
            None => {}
        }
        if let Some(moment) = recipient.last_attempt {
            field(&mut out, "Last-Attempt-Date", &moment.rfc5322());
        }
        if let Some(moment) = recipient.will_retry_until {
            field(&mut out, "Will-Retry-Until", &moment.rfc5322());
        }
    }
    out
}

/// `rfc822;` for an ASCII address, else `utf-8;` in the form the script allows (RFC 6533 s3).
fn typed_address(address: &Address, script: Script) -> String {
    let kind = if address.needs_smtputf8() { "utf-8" } else { "rfc822" };
    format!("{kind}; {}", escaped(&address.to_string(), script))
}

/// A reply with its lines kept apart by folding, so that a program sees one value and a person all
/// lines.
fn diagnostic(out: &mut String, kind: &str, reply: &str, script: Script) {
    let lines: Vec<String> = lines_of(reply).map(|line| escaped(&line, script)).collect();
    field(out, "Diagnostic-Code", &format!("{kind}; {}", lines.join("\r\n ")));
}

/// Writes a field; each line of `value` is folded at spaces before column 78 where that is possible
/// and cut where it would pass 900 octets.
fn field(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push(':');
    let mut column = name.len() + 1;
    for (number, line) in value.split("\r\n").enumerate() {
        if number > 0 {
            out.push_str("\r\n");
            column = 0;
        }
        for word in line.split(' ').filter(|word| !word.is_empty()) {
            if column > 1 && column + 1 + word.len() > FOLD_COLUMN && column > name.len() + 1 {
                out.push_str("\r\n");
                column = 0;
            }
            let word: String = word.chars().take(WORD_CHARACTERS_MAX).collect();
            out.push(' ');
            out.push_str(&word);
            column += 1 + word.len();
        }
    }
    out.push_str("\r\n");
}

const FOLD_COLUMN: usize = 78;
const WORD_CHARACTERS_MAX: usize = 200;

/// Text without control characters; in ASCII every other character as `\x{HEX}` (RFC 6533 s3).
fn escaped(text: &str, script: Script) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().take(DIAGNOSTIC_CHARACTERS_MAX) {
        match character {
            _ if character.is_control() => out.push('?'),
            _ if character.is_ascii() || script == Script::Utf8 => out.push(character),
            _ => out.push_str(&format!("\\x{{{:X}}}", u32::from(character))),
        }
    }
    out
}

/// The third part.
struct Returned {
    kind: &'static str,
    encoding: &'static str,
    content: Vec<u8>,
}

/// The whole original for a failure if `RET=FULL` asked for it and it is not too long, else its
/// header block (RFC 3461 s4.3).
fn returned(notice: &Notice<'_>) -> Option<Returned> {
    let header = match split_entity(notice.original) {
        Some((header, _)) => header,
        None => split_entity(&whole_fields(notice.original))?.0,
    };
    if header.fields().is_empty() {
        return None;
    }
    let is_whole = notice.original_length == notice.original.len() as u64;
    let is_wanted = notice.ret == Some(Ret::Full) && notice.kind == Kind::Failure;
    if is_wanted && is_whole && notice.original.len() <= ORIGINAL_BYTES_MAX {
        return Some(whole(notice.original));
    }
    let mut content = Vec::new();
    for field in header.fields() {
        if content.len() + field.name.len() + 1 + field.raw_value.len() > ORIGINAL_HEADER_BYTES_MAX {
            break;
        }
        content.extend_from_slice(field.name.as_bytes());
        content.push(b':');
        content.extend_from_slice(&field.raw_value);
    }
    Some(match content.is_ascii() {
        true => Returned { kind: "text/rfc822-headers", encoding: "7bit", content },
        // RFC 6533 s6.3; unlike message/rfc822 it may be encoded, so that it passes every relay.
        false => Returned {
            kind: "message/global-headers",
            encoding: "quoted-printable",
            content: to_quoted_printable(&content),
        },
    })
}

fn whole(original: &[u8]) -> Returned {
    if original.is_ascii() {
        return Returned { kind: "message/rfc822", encoding: "7bit", content: original.to_vec() };
    }
    // RFC 6532 s3.7: message/global may be encoded. It is for headers in UTF-8, and serves for a
    // body in 8 bits as well, which as message/rfc822 could not pass a 7-bit relay.
    Returned { kind: "message/global", encoding: "base64", content: to_base64(original) }
}

/// The whole fields of a header block that was cut off, and its end.
fn whole_fields(cut: &[u8]) -> Vec<u8> {
    let end = cut
        .windows(3)
        .rposition(|three| three.starts_with(b"\r\n") && !matches!(three.last(), Some(b' ' | b'\t')))
        .map_or(0, |at| at + 2);
    [cut.get(..end).unwrap_or_default(), b"\r\n"].concat()
}

#[cfg(test)]
#[path = "dsn_tests.rs"]
mod tests;
