//! What other services' header fields say, read as if they were ours: Mailgun, Postmark, SendGrid, Postal and
//! EmailLabs, for the SMTP accounts that asked for it. Pure.
//!
//! Tags, metadata and times are taken over, other switches are read past, and every field of that service is
//! taken out. Easy to get wrong: a field that asks for what is not done here (a test mode, one text per
//! recipient, a template) refuses the message; sending what its sender did not mean is worse than an error.

use serde_json::Value;

use super::labels::{Wishes, refused};
use crate::ext::Timestamp;
use crate::mail::{Address, Field, HeaderBlock, HeaderDialect, Refusal, parse_mailboxes};

/// Prefix of Mailgun's fields.
const MAILGUN: &str = "X-Mailgun-";
/// Prefix of Postmark's fields.
const POSTMARK: &str = "X-PM-";
/// Prefix of Postmark's metadata.
const POSTMARK_METADATA: &str = "X-PM-Metadata-";
/// SendGrid's field: everything in one JSON object; the first one counts.
const SENDGRID: &str = "X-SMTPAPI";
/// Postal's field for a tag, and its switch for tracking.
const POSTAL: [&str; 2] = ["X-Postal-Tag", "X-AMP"];
/// EmailLabs' fields for tags: with `;` between them, or a JSON array.
const EMAILLABS: [&str; 2] = ["X-MAILTAGS", "X-TAGS"];

/// Reads the fields of one service, and notes which are to be taken out.
pub(super) fn read(
    dialect: HeaderDialect,
    header: &HeaderBlock,
    recipients: &[&Address],
    wishes: &mut Wishes,
) -> Result<(), Refusal> {
    match dialect {
        HeaderDialect::Mailgun => each(header, MAILGUN, wishes, mailgun),
        HeaderDialect::Postmark => each(header, POSTMARK, wishes, postmark),
        HeaderDialect::Sendgrid => {
            if let Some(field) = header.all(SENDGRID).next() {
                sendgrid(field, recipients, wishes)?;
            }
            wishes.take(SENDGRID);
            Ok(())
        }
        HeaderDialect::Postal => {
            for field in header.all(POSTAL[0]) {
                wishes.tag(field, &field.text())?;
            }
            POSTAL.iter().for_each(|name| wishes.take(name));
            Ok(())
        }
        HeaderDialect::Emaillabs => emaillabs(header, wishes),
    }
}

/// Shows each field whose name begins with `start` to `read`, and notes it.
fn each(
    header: &HeaderBlock,
    start: &str,
    wishes: &mut Wishes,
    read: impl Fn(&Field, &str, &mut Wishes) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    for field in header.fields() {
        if let Some(rest) = after(&field.name, start) {
            read(field, &rest.to_ascii_lowercase(), wishes)?;
            wishes.take(&field.name);
        }
    }
    Ok(())
}

/// What follows `start` in a name, in any case.
pub(super) fn after<'a>(name: &'a str, start: &str) -> Option<&'a str> {
    let is_there = name.get(..start.len())?.eq_ignore_ascii_case(start);
    if is_there { name.get(start.len()..) } else { None }
}

fn mailgun(field: &Field, name: &str, wishes: &mut Wishes) -> Result<(), Refusal> {
    let text = field.text();
    match name {
        "tag" => wishes.tag(field, &text),
        "variables" => describe_all(field, &object(field, &text)?, wishes),
        "deliver-by" => {
            let moment = mail_parser::DateTime::parse_rfc822(&text).filter(mail_parser::DateTime::is_valid);
            let moment = moment.and_then(|moment| u64::try_from(moment.to_timestamp()).ok());
            let seconds =
                moment.ok_or_else(|| refused(&field.name, "must be a date as in the Date field (RFC 5322)"))?;
            wishes.send_at(&field.name, Timestamp(seconds.saturating_mul(1000)))
        }
        "drop-message" if says_yes(&text) => {
            Err(refused(&field.name, "there is no test mode here, and the message was not sent"))
        }
        "recipient-variables" if !object(field, &text)?.is_empty() => Err(one_text(&field.name)),
        "require-tls" if says_yes(&text) => {
            let text = "is not read here; ask for TLS with REQUIRETLS at MAIL (RFC 8689)";
            Err(refused(&field.name, text))
        }
        _ => Ok(()),
    }
}

fn postmark(field: &Field, name: &str, wishes: &mut Wishes) -> Result<(), Refusal> {
    if let Some(key) = after(&field.name, POSTMARK_METADATA) {
        return wishes.describe(field, key, &field.text());
    }
    match name {
        "tag" => wishes.tag(field, &field.text()),
        _ => Ok(()),
    }
}

fn sendgrid(field: &Field, recipients: &[&Address], wishes: &mut Wishes) -> Result<(), Refusal> {
    let said = object(field, &field.text())?;
    for name in ["sub", "substitutions", "section", "send_each_at"] {
        if said.get(name).is_some_and(is_something) {
            return Err(one_text(&field.name));
        }
    }
    let template = |name: &str| said.get("filters").and_then(|filters| filters.pointer(name));
    if ["/template/settings/enable", "/templates/settings/enable"].iter().any(|name| template(name).is_some_and(is_on))
    {
        return Err(refused(&field.name, "templates are not kept here; send the finished message"));
    }
    if let Some(named) = said.get("to").filter(|named| is_something(named))
        && !are_the_same(&texts(field, "to", named)?, recipients)
    {
        return Err(refused(&field.name, "\"to\" must name the recipients given at RCPT, or be left out"));
    }
    if let Some(categories) = said.get("category").filter(|categories| is_something(categories)) {
        for tag in texts(field, "category", categories)? {
            wishes.tag(field, &tag)?;
        }
    }
    if let Some(arguments) = said.get("unique_args").filter(|arguments| is_something(arguments)) {
        let pairs = arguments.as_object().ok_or_else(|| refused(&field.name, "\"unique_args\" must be an object"))?;
        describe_all(field, pairs, wishes)?;
    }
    if let Some(moment) = said.get("send_at").filter(|moment| is_something(moment)) {
        let seconds = moment.as_u64().or_else(|| moment.as_str()?.trim().parse().ok());
        let seconds =
            seconds.ok_or_else(|| refused(&field.name, "\"send_at\" must be a number: seconds since 1970"))?;
        wishes.send_at(&field.name, Timestamp(seconds.saturating_mul(1000)))?;
    }
    Ok(())
}

fn emaillabs(header: &HeaderBlock, wishes: &mut Wishes) -> Result<(), Refusal> {
    let [plain, listed] = EMAILLABS;
    for field in header.all(plain) {
        for tag in field.text().split(';').filter(|tag| !tag.trim().is_empty()) {
            wishes.tag(field, tag)?;
        }
    }
    for field in header.all(listed) {
        // Some programs escape the quotation marks of the array once more.
        let text = field.text().replace("\\\"", "\"");
        let tags = serde_json::from_str::<Value>(&text)
            .map_err(|_| refused(&field.name, "must be a JSON array such as [\"order\", \"news\"]"))?;
        for tag in texts(field, "the field", &tags)? {
            wishes.tag(field, &tag)?;
        }
    }
    EMAILLABS.iter().for_each(|name| wishes.take(name));
    Ok(())
}

fn object(field: &Field, text: &str) -> Result<serde_json::Map<String, Value>, Refusal> {
    match serde_json::from_str(text) {
        Ok(Value::Object(pairs)) => Ok(pairs),
        _ => Err(refused(&field.name, "must be a JSON object")),
    }
}

/// One text, or several.
fn texts(field: &Field, name: &str, value: &Value) -> Result<Vec<String>, Refusal> {
    let wrong = || refused(&field.name, &format!("{name} must be text, or an array of texts"));
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(values) => {
            values.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// Pairs as metadata; what is no text is written as its JSON.
fn describe_all(field: &Field, pairs: &serde_json::Map<String, Value>, wishes: &mut Wishes) -> Result<(), Refusal> {
    for (name, value) in pairs {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        wishes.describe(field, &as_a_name(name), &value)?;
    }
    Ok(())
}

/// Other services take any text as a name; what no name of ours may hold becomes a hyphen.
fn as_a_name(name: &str) -> String {
    name.trim()
        .chars()
        .map(|each| if each.is_ascii_alphanumeric() || "-_.".contains(each) { each } else { '-' })
        .collect()
}

fn are_the_same(named: &[String], recipients: &[&Address]) -> bool {
    let mut addresses = Vec::new();
    for text in named {
        match parse_mailboxes(text.as_bytes()) {
            Ok(mailboxes) => addresses.extend(mailboxes.into_iter().map(|mailbox| mailbox.address.folded())),
            Err(_) => return false,
        }
    }
    let is_in = |address: &Address| addresses.iter().any(|named| *named == address.folded());
    recipients.iter().all(|address| is_in(address))
        && addresses.iter().all(|named| recipients.iter().any(|address| address.folded() == *named))
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(pairs) => !pairs.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_on(value: &Value) -> bool {
    value.as_bool().unwrap_or(false) || value.as_i64() == Some(1) || value.as_str().is_some_and(says_yes)
}

fn says_yes(text: &str) -> bool {
    ["yes", "true", "1"].iter().any(|word| text.trim().eq_ignore_ascii_case(word))
}

fn one_text(field: &str) -> Refusal {
    refused(field, "asks for a text of its own for each recipient, which is not made here; send one message each")
}

#[cfg(test)]
#[path = "dialects_tests.rs"]
mod tests;
