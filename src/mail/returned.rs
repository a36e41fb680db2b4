//! Reads what comes back: delivery status notifications (RFC 3464) and the forms that mail systems used before
//! and beside it, complaints (RFC 5965 and reports that only attach the original), automatic replies (RFC 3834).
//!
//! It refuses to know whom the mail was for: what is read is the sender's word, and whoever uses it asks a
//! keyed tag first. Easy to get wrong: a delivery status report says `Auto-Submitted` too, so it is looked for
//! before an automatic reply is; and a notice that something still waits must never count as a failure.

use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders, PartType};

use super::address::Address;
use super::header::HeaderBlock;
use super::status::{EnhancedStatus, printable};

/// Recipients of one report that are read.
pub const REPORTED_MAX: usize = 50;
/// Characters of a diagnostic that are kept.
pub const DIAGNOSTIC_CHARACTERS_MAX: usize = 500;
/// Octets of text that are searched for the words of older mail systems.
const TEXT_OCTETS_MAX: usize = 64 * 1024;
/// Octets of a report's fields that are read.
const FIELDS_OCTETS_MAX: usize = 64 * 1024;
/// Lines after an address in which its reason is looked for.
const REASON_LINES_MAX: usize = 12;

/// What a message that came back is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returned {
    /// A report about delivery.
    Report(Report),
    /// A complaint.
    Complaint(Complaint),
    /// A program answered for a person.
    AutoReply,
    /// None of these: perhaps a person wrote.
    Other,
}

/// A report about delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In which form it was written.
    pub form: Form,
    /// The mail system that reports, printable; empty if it does not say.
    pub reporter: String,
    /// At least one.
    pub recipients: Vec<Reported>,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// multipart/report with message/delivery-status.
    Standard,
    /// `X-Failed-Recipients` and text (Exim before it wrote the standard form).
    Exim,
    /// "This is the qmail-send program" (QSBMF), and those who copied it.
    Qmail,
    /// The text of Exchange 5.5 and 2000.
    Exchange,
    /// Text from a mailer daemon, read by its codes.
    Text,
}

/// What a report says of one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Whom it names, if that can be read: not always whom we sent to.
    pub address: Option<Address>,
    /// What became of it.
    pub action: Action,
    /// Its status code.
    pub status: Option<EnhancedStatus>,
    /// What the next mail system said, printable and in one line; may be empty.
    pub diagnostic: String,
}

/// `Action` of RFC 3464 s2.3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Given up.
    Failed,
    /// Still tried.
    Delayed,
    /// Delivered.
    Delivered,
    /// Passed on to where nobody reports.
    Relayed,
    /// Delivered to several addresses in its place.
    Expanded,
}

/// A complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What is complained about.
    pub kind: ComplaintKind,
    /// Whether it is no report but a message with ours attached: a complaint only where complaints go.
    pub is_attached: bool,
    /// Who reports, printable: the domain of the report's From.
    pub reporter: String,
    /// Addresses the report says the message was sent to.
    pub recipients: Vec<Address>,
    /// The reverse-paths it names: of the report, and of the message it carries.
    pub reverse_paths: Vec<Address>,
    /// The trace field of the message it carries, if that is there.
    pub trace: Option<String>,
}

/// `Feedback-Type` (RFC 5965 s7.3, RFC 6650).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComplaintKind {
    /// `abuse`, `fraud`, `virus`, `other`, or a report that only attaches the message.
    Unwanted,
    /// `opt-out`, `opt-out-list`: the recipient unsubscribes.
    OptOut,
    /// `not-spam`: the opposite of a complaint.
    NotSpam,
    /// `auth-failure`: about a forger, not about mail of ours.
    AuthenticationFailure,
}

/// The name of the field that says which message of ours one is.
pub const TRACE_FIELD: &str = "X-Postern-Trace";

/// Reads a message. Never fails: what cannot be read is [`Returned::Other`].
pub fn read(message: &[u8]) -> Returned {
    let Some(parsed) = MessageParser::default().parse(message) else { return Returned::Other };
    if let Some(complaint) = complaint(&parsed) {
        return Returned::Complaint(complaint);
    }
    if let Some(report) = standard(&parsed) {
        return Returned::Report(report);
    }
    if is_automatic(&parsed) && !is_daemon(&parsed) {
        return Returned::AutoReply;
    }
    if let Some(report) = older(&parsed) {
        return Returned::Report(report);
    }
    if is_automatic(&parsed) { Returned::AutoReply } else { Returned::Other }
}

/// multipart/report with message/delivery-status, or with its part alone, as some gateways leave it.
fn standard(message: &Message<'_>) -> Option<Report> {
    let is_status = |part: &&MessagePart<'_>| {
        part.is_content_type("message", "delivery-status") || part.is_content_type("message", "global-delivery-status")
    };
    let fields = octets(message.parts.iter().find(is_status)?)?;
    let mut blocks = blocks(&fields).into_iter();
    let about = blocks.next()?;
    let mut recipients: Vec<Reported> =
        blocks.by_ref().filter_map(|block| reported(&block)).take(REPORTED_MAX).collect();
    if recipients.is_empty() {
        // A system that writes one block for all.
        recipients.extend(reported(&about));
    }
    let reporter = about.text("Reporting-MTA").or_else(|| about.text("Received-From-MTA"));
    let reporter = reporter.map(|name| typed(&name).to_owned()).unwrap_or_default();
    if recipients.is_empty() {
        return None;
    }
    let text = own_text(message);
    for one in recipients.iter_mut().filter(|one| one.diagnostic.is_empty()) {
        one.diagnostic = said(&text).unwrap_or_default();
    }
    Some(Report { form: Form::Standard, reporter: line(&reporter), recipients })
}

fn reported(block: &HeaderBlock) -> Option<Reported> {
    let action = match block.text("Action")?.trim().split([' ', '(', ';']).next()?.to_ascii_lowercase().as_str() {
        "failed" | "failure" => Action::Failed,
        "delayed" => Action::Delayed,
        "delivered" => Action::Delivered,
        "relayed" => Action::Relayed,
        "expanded" => Action::Expanded,
        _ => return None,
    };
    let address = block.text("Final-Recipient").or_else(|| block.text("Original-Recipient"));
    let status = block.text("Status").unwrap_or_default();
    let status = EnhancedStatus::split_from(status.trim()).map(|(status, _)| status);
    let diagnostic = block.text("Diagnostic-Code").map(|text| line(typed(&text))).unwrap_or_default();
    // RFC 3464 s2.3.4: a delay has a 4, a failure a 5; who writes "failed" and 4.x.x has given up after trying.
    Some(Reported { address: address.and_then(|text| address_in(typed(&text))), action, status, diagnostic })
}

/// Fields of RFC 3464 in blocks, with empty lines between.
fn blocks(fields: &[u8]) -> Vec<HeaderBlock> {
    let text = String::from_utf8_lossy(fields.get(..FIELDS_OCTETS_MAX).unwrap_or(fields));
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        let is_begun = blocks.last().is_some_and(|last| !last.is_empty());
        if line.trim().is_empty() {
            if blocks.len() > REPORTED_MAX {
                break;
            }
            if is_begun {
                blocks.push(String::new());
            }
        } else if let Some(last) = blocks.last_mut() {
            last.push_str(line.trim_end());
            last.push_str("\r\n");
        }
    }
    blocks.iter().filter(|block| !block.is_empty()).filter_map(|block| header(block)).collect()
}

/// A header block of what may have lines in it that are no fields: those are left out.
fn header(block: &str) -> Option<HeaderBlock> {
    let mut kept = String::with_capacity(block.len());
    let mut is_field = false;
    for line in block.lines() {
        is_field = match line.starts_with([' ', '\t']) {
            true => is_field,
            false => line
                .split_once(':')
                .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_graphic())),
        };
        if is_field {
            // What no field may hold is no reason to lose the others.
            kept.push_str(&line.replace(['\r', '\0'], " "));
            kept.push_str("\r\n");
        }
    }
    HeaderBlock::parse(kept.as_bytes()).ok().filter(|header| !header.fields().is_empty())
}

/// What stands behind `type;`.
fn typed(text: &str) -> &str {
    text.split_once(';').map_or(text, |(_, rest)| rest).trim()
}

fn address_in(text: &str) -> Option<Address> {
    let text = text.trim();
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or(text, |(inner, _)| inner);
    let inner = inner.trim().trim_matches(|character| matches!(character, '\'' | '"' | ',' | ';' | ':' | '(' | ')'));
    Address::parse(inner).ok()
}

fn octets(part: &MessagePart<'_>) -> Option<Vec<u8>> {
    match &part.body {
        PartType::Text(text) | PartType::Html(text) => Some(text.as_bytes().to_vec()),
        PartType::Binary(octets) | PartType::InlineBinary(octets) => Some(octets.to_vec()),
        // A status part that was taken for a message: its fields are that message's.
        PartType::Message(inner) => Some(inner.raw_message().to_vec()),
        PartType::Multipart(_) => None,
    }
}

/// The message's own text, not that of what it carries.
fn own_text(message: &Message<'_>) -> String {
    let Some(text) = message.body_text(0) else { return String::new() };
    let mut end = text.len().min(TEXT_OCTETS_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Printable, in one line, not too long.
fn line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    printable(&words.join(" ")).chars().take(DIAGNOSTIC_CHARACTERS_MAX).collect()
}

fn field(message: &Message<'_>, name: &'static str) -> String {
    message.header_raw(name).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn from_address(message: &Message<'_>) -> String {
    let from = message.from().and_then(|from| from.first()).and_then(|from| from.address());
    from.unwrap_or_default().to_ascii_lowercase()
}

/// RFC 3834 s5, and what programs wrote before it.
fn is_automatic(message: &Message<'_>) -> bool {
    let auto = field(message, "Auto-Submitted").to_ascii_lowercase();
    if !auto.is_empty() && !auto.starts_with("no") {
        return true;
    }
    let precedence = field(message, "Precedence").to_ascii_lowercase();
    let has = |name| !field(message, name).is_empty();
    let subject = message.subject().unwrap_or_default().trim().to_lowercase();
    matches!(precedence.as_str(), "auto_reply" | "auto-reply")
        || has("X-Autoreply")
        || has("X-Autorespond")
        || has("X-Autoresponder")
        || has("X-AutoReply-From")
        || field(message, "X-Auto-Response-Suppress").to_ascii_lowercase().contains("all") && !is_daemon(message)
        || AUTOMATIC_SUBJECTS.iter().any(|beginning| subject.starts_with(beginning))
}

/// What subjects of absence notes begin with.
const AUTOMATIC_SUBJECTS: &[&str] = &[
    "automatic reply",
    "auto reply",
    "auto-reply",
    "autoreply",
    "auto:",
    "out of office",
    "out of the office",
    "automatische antwort",
    "abwesenheit",
    "réponse automatique",
    "absence du bureau",
    "respuesta automática",
    "risposta automatica",
    "automatisch antwoord",
    "afwezigheid",
    "odpowiedź automatyczna",
    "autosvar",
    "automaattinen vastaus",
    "automatická odpověď",
    "resposta automática",
    "vacation",
];

/// Whether a mail system wrote it.
fn is_daemon(message: &Message<'_>) -> bool {
    let from = from_address(message);
    let local = from.split('@').next().unwrap_or_default();
    let names =
        ["mailer-daemon", "postmaster", "mail-daemon", "mdaemon", "mail-delivery", "maildaemon", "mailerdaemon"];
    names.iter().any(|name| local.starts_with(name)) || !field(message, "X-Failed-Recipients").is_empty()
}

/// The forms without message/delivery-status.
fn older(message: &Message<'_>) -> Option<Report> {
    let text = own_text(message);
    let folded = text.to_lowercase();
    let failed = field(message, "X-Failed-Recipients");
    if !failed.is_empty() {
        let addresses = failed.split(',').filter_map(address_in).take(REPORTED_MAX);
        let recipients: Vec<Reported> =
            addresses.map(|address| of_text(&text, Some(address), Action::Failed)).collect();
        return report(Form::Exim, message, recipients);
    }
    if folded.contains("this is the qmail-send program") || folded.contains("i'm afraid i wasn't able to deliver") {
        return report(Form::Qmail, message, paragraphs(&text));
    }
    if folded.contains("did not reach some or all of the intended recipients")
        || folded.contains("did not reach the following recipient(s)")
        || folded.contains("could not be reached:")
    {
        return report(Form::Exchange, message, exchange(&text));
    }
    // From nobody, and no answering program: a mail system under a name of its own.
    let is_from_nobody = field(message, "Return-Path") == "<>" && !is_automatic(message);
    if !is_daemon(message) && !is_from_nobody {
        return None;
    }
    let is_delay = DELAYS.iter().any(|words| folded.contains(words)) || is_delay_subject(message);
    let is_failure = FAILURES.iter().any(|words| folded.contains(words)) || said(&text).is_some();
    match (is_delay, is_failure) {
        (true, _) => report(Form::Text, message, vec![of_text(&text, None, Action::Delayed)]),
        (false, true) => report(Form::Text, message, vec![of_text(&text, None, Action::Failed)]),
        (false, false) => None,
    }
}

fn is_delay_subject(message: &Message<'_>) -> bool {
    let subject = message.subject().unwrap_or_default().to_lowercase();
    ["delayed", "warning:", "still being retried", "(delay)"].iter().any(|word| subject.contains(word))
}

/// Words of notices about mail that still waits.
const DELAYS: &[&str] = &[
    "this is a warning message only",
    "you do not need to resend your message",
    "will be retried",
    "will continue to try",
    "has not yet been delivered",
    "has been delayed",
    "delivery attempts will continue",
    "no action is required on your part",
];

/// Words of notices about mail that was given up.
const FAILURES: &[&str] = &[
    "could not be delivered",
    "couldn't be delivered",
    "undeliverable",
    "delivery failed",
    "delivery has failed",
    "permanent error",
    "permanent fatal errors",
    "following address failed",
    "following addresses had",
    "unknown user",
    "user unknown",
    "no such user",
    "mailbox not found",
    "recipient rejected",
    "konnte nicht zugestellt werden",
    "nie można dostarczyć",
];

fn report(form: Form, message: &Message<'_>, recipients: Vec<Reported>) -> Option<Report> {
    let from = from_address(message);
    let reporter = line(from.rsplit('@').next().unwrap_or_default());
    (!recipients.is_empty()).then_some(Report { form, reporter, recipients })
}

/// Reads the text that follows `address`, or all of it.
fn of_text(text: &str, address: Option<Address>, action: Action) -> Reported {
    let around = address.as_ref().and_then(|address| {
        let named = address.to_string();
        let at = text.find(&named)?;
        text.get(at.saturating_add(named.len())..)
    });
    let reason = |text: &str| text.lines().take(REASON_LINES_MAX).collect::<Vec<_>>().join("\n");
    let near = around.map(reason);
    let diagnostic = near.as_deref().and_then(said).or_else(|| said(text));
    let diagnostic = diagnostic.or_else(|| near.as_deref().and_then(first_line)).unwrap_or_default();
    let address = address.or_else(|| text.split_whitespace().filter(|word| word.contains('@')).find_map(address_in));
    Reported { address, action, status: status_in(&diagnostic), diagnostic }
}

fn first_line(text: &str) -> Option<String> {
    text.lines().map(line).find(|line| line.len() > 3)
}

/// qmail: `<address>:` on a line of its own, the reason below (QSBMF).
fn paragraphs(text: &str) -> Vec<Reported> {
    let mut found = Vec::new();
    for paragraph in text.replace("\r\n", "\n").split("\n\n") {
        if paragraph.trim_start().starts_with("---") || found.len() >= REPORTED_MAX {
            break;
        }
        let Some((first, reason)) = paragraph.trim_start().split_once('\n') else { continue };
        let is_address = first.starts_with('<') && first.trim_end().ends_with(">:");
        if let (true, Some(address)) = (is_address, address_in(first)) {
            let diagnostic = said(reason).unwrap_or_else(|| line(reason));
            let status = status_in(&diagnostic).or_else(|| status_in(reason));
            found.push(Reported { address: Some(address), action: Action::Failed, status, diagnostic });
        }
    }
    found
}

/// Exchange: the address and a date on one line, the reason on the next.
fn exchange(text: &str) -> Vec<Reported> {
    // The addressees are named above too.
    let folded = text.to_ascii_lowercase();
    let from = folded.rfind("following recipient").unwrap_or(0);
    let lines: Vec<&str> = text.get(from..).unwrap_or(text).lines().collect();
    let mut found = Vec::new();
    for (at, candidate) in lines.iter().enumerate() {
        let mut words = candidate.split_whitespace();
        let Some(address) = words.find(|word| word.contains('@')).and_then(address_in) else { continue };
        let below = lines.get(at.saturating_add(1)..).unwrap_or_default().iter().take(REASON_LINES_MAX);
        let below: Vec<&str> = below.copied().take_while(|line| !line.contains('@') || line.contains('<')).collect();
        let below = below.join("\n");
        let diagnostic = said(&below).or_else(|| first_line(&below)).unwrap_or_default();
        let status = status_in(&diagnostic).or_else(|| status_in(&below)).or_else(|| in_words(&below));
        found.push(Reported { address: Some(address), action: Action::Failed, status, diagnostic });
        if found.len() >= REPORTED_MAX {
            break;
        }
    }
    found
}

/// What Exchange says without a code.
fn in_words(text: &str) -> Option<EnhancedStatus> {
    let text = text.to_lowercase();
    let is_unknown = ["not recognized", "does not exist", "unknown address", "no such recipient"];
    is_unknown.iter().any(|words| text.contains(words)).then(|| EnhancedStatus::new(5, 1, 1))
}

/// The first reply in the text: three digits, and what follows on its line.
fn said(text: &str) -> Option<String> {
    text.lines().find_map(|whole| {
        let at = whole.match_indices(['4', '5']).map(|(at, _)| at).find(|at| {
            let is_first = whole.get(..*at).is_none_or(|before| {
                before.chars().next_back().is_none_or(|character| !character.is_alphanumeric() && character != '.')
            });
            is_first && is_reply(whole.get(*at..).unwrap_or_default())
        })?;
        Some(line(whole.get(at..)?))
    })
}

fn is_reply(text: &str) -> bool {
    let digits = text.as_bytes().get(..3).is_some_and(|code| {
        code.iter().all(u8::is_ascii_digit) && code.get(1).is_some_and(|second| (b'0'..=b'7').contains(second))
    });
    let rest = text.get(3..).unwrap_or_default();
    digits && rest.starts_with([' ', '-']) && rest.trim_start_matches([' ', '-']).len() > 2
}

/// A status within a text: `5.1.1`, also in `#5.1.1`.
fn status_in(text: &str) -> Option<EnhancedStatus> {
    let words = text.split(|character: char| character.is_whitespace() || "()<>[];:#,\"'".contains(character));
    words.filter(|word| word.starts_with(['4', '5']) && word.contains('.')).find_map(|word| {
        EnhancedStatus::split_from(&format!("{} x", word.trim_end_matches('.'))).map(|(status, _)| status)
    })
}

/// A complaint: message/feedback-report, or a report that carries a message of ours and nothing else that counts.
fn complaint(message: &Message<'_>) -> Option<Complaint> {
    let is_report = |part: &&MessagePart<'_>| part.is_content_type("message", "feedback-report");
    let fields = message.parts.iter().find(is_report).and_then(octets);
    let fields = fields.as_deref().map(blocks).unwrap_or_default().into_iter().next();
    let reporter = line(from_address(message).rsplit('@').next().unwrap_or_default());
    let original = original(message);
    let (kind, mut recipients, mut reverse_paths) = match &fields {
        Some(fields) => {
            let kind = match fields.text("Feedback-Type").unwrap_or_default().trim().to_ascii_lowercase().as_str() {
                "not-spam" => ComplaintKind::NotSpam,
                "auth-failure" => ComplaintKind::AuthenticationFailure,
                "opt-out" | "opt-out-list" => ComplaintKind::OptOut,
                _ => ComplaintKind::Unwanted,
            };
            let all = |name: &str| -> Vec<Address> {
                fields.all(name).filter_map(|field| address_in(&field.text())).take(REPORTED_MAX).collect()
            };
            let mut recipients = all("Original-Rcpt-To");
            recipients.extend(all("Removal-Recipient"));
            (kind, recipients, all("Original-Mail-From"))
        }
        // Microsoft's junk reports, and whoever forwards a message to its sender's complaint address.
        None if is_bare_complaint(message, original.as_ref()) => (ComplaintKind::Unwanted, Vec::new(), Vec::new()),
        None => return None,
    };
    let mut trace = None;
    if let Some(original) = &original {
        reverse_paths.extend(original.text("Return-Path").and_then(|text| address_in(&text)));
        recipients.extend(original.text("X-HmXmrOriginalRecipient").and_then(|text| address_in(&text)));
        trace = original.text(TRACE_FIELD).map(|text| text.trim().to_owned());
    }
    recipients.extend(address_in(&field(message, "X-HmXmrOriginalRecipient")));
    Some(Complaint { kind, is_attached: fields.is_none(), reporter, recipients, reverse_paths, trace })
}

/// A message attached whole, with our trace in it, in something that no mail daemon wrote.
fn is_bare_complaint(message: &Message<'_>, original: Option<&HeaderBlock>) -> bool {
    let has_status = message.parts.iter().any(|part| {
        part.is_content_type("message", "delivery-status") || part.is_content_type("message", "global-delivery-status")
    });
    let is_traced = original.is_some_and(|original| original.count(TRACE_FIELD) > 0);
    !has_status && is_traced && !is_daemon(message) && !is_automatic(message)
}

/// The header of the message that a report carries.
fn original(message: &Message<'_>) -> Option<HeaderBlock> {
    message.parts.iter().skip(1).find_map(|part| match &part.body {
        PartType::Message(inner) => {
            let raw = inner.raw_message();
            let raw = raw.get(..FIELDS_OCTETS_MAX).unwrap_or(raw);
            header(beginning(&String::from_utf8_lossy(raw)))
        }
        PartType::Text(text) if part.is_content_type("text", "rfc822-headers") => header(beginning(text)),
        _ => None,
    })
}

/// Up to the first empty line.
fn beginning(text: &str) -> &str {
    let end = [text.find("\r\n\r\n"), text.find("\n\n")].into_iter().flatten().min().unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
#[path = "returned_tests.rs"]
mod tests;
