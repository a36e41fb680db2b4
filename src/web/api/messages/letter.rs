//! Reads what a client wants sent into an envelope, a draft and labels, with the path of what is wrong.
//!
//! It knows no records: who may send as whom is asked elsewhere. Easy to get wrong: blind copies are in the
//! envelope and nowhere in the header, and an address given twice is one recipient.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{AttachmentJson, NewMessageJson};
use crate::ext::Timestamp;
use crate::mail::{
    Address, Attachment, BodyType, Composition, Domain, Draft, Envelope, ForwardPath, Hold, Labels, MailParameters,
    Mailbox, ReversePath, compose, parse_mailboxes, read_whole,
};
use crate::web::SendingLimits;
use crate::web::problem::Problem;

/// What was asked, with the whole message if that was the body.
pub struct Asked {
    /// The fields.
    pub asked: NewMessageJson,
    /// The message.
    pub whole: Option<Vec<u8>>,
}

/// What is to be handed in.
#[derive(Debug)]
pub struct Letter {
    /// Who it is from and to.
    pub envelope: Envelope,
    /// The message.
    pub draft: Draft,
    /// What the sender attached for itself.
    pub labels: Labels,
    /// When it is tried first, if that is later.
    pub send_at: Option<Timestamp>,
}

impl Letter {
    /// Reads it; blocks for as long as a large message takes.
    pub fn read(asked: Asked, limits: &SendingLimits, now: Timestamp) -> Result<Self, Problem> {
        let Asked { mut asked, mut whole } = asked;
        if let Some(text) = asked.raw.take() {
            whole = Some(STANDARD.decode(text).map_err(|_| Problem::field("raw", "is not base64"))?);
        }
        let labels = labels(&asked)?;
        let send_at = asked.send_at.as_deref().map(|text| moment(text, limits, now)).transpose()?;
        let return_path = asked.return_path.as_deref().map(|text| address("return_path", text)).transpose()?;
        let (draft, from, recipients) = match whole {
            Some(octets) => whole_message(&octets, &asked, limits)?,
            None => composed(asked)?,
        };
        check_size(&draft, limits)?;
        let recipients = envelope_recipients(recipients, limits)?;
        let parameters = MailParameters {
            body: BodyType::EightBitMime,
            hold: send_at.map(Hold::Until),
            ..MailParameters::default()
        };
        let envelope =
            Envelope { reverse_path: ReversePath(Some(return_path.unwrap_or(from))), parameters, recipients };
        Ok(Self { envelope, draft, labels, send_at })
    }

    /// Every domain it says it is from. A field that cannot be read is refused by the pipeline.
    pub fn domains(&self) -> Vec<Domain> {
        let mut domains: Vec<Domain> =
            self.envelope.reverse_path.0.iter().map(|address| address.domain().clone()).collect();
        for name in ["From", "Sender", "Resent-From", "Resent-Sender"] {
            for field in self.draft.header.all(name) {
                let mailboxes = parse_mailboxes(&field.raw_value).unwrap_or_default();
                domains.extend(mailboxes.into_iter().map(|mailbox| mailbox.address.domain().clone()));
            }
        }
        domains.sort();
        domains.dedup();
        domains
    }
}

type Read = (Draft, Address, Vec<(String, Address)>);

/// From its parts.
fn composed(asked: NewMessageJson) -> Result<Read, Problem> {
    let from = asked.from.as_deref().ok_or_else(|| Problem::field("from", "is missing"))?;
    let from = mailbox("from".to_owned(), from)?;
    let mut recipients = Vec::new();
    let mut read = |field: &str, texts: &[String]| -> Result<Vec<Mailbox>, Problem> {
        let all: Result<Vec<Mailbox>, Problem> =
            texts.iter().enumerate().map(|(at, text)| mailbox(format!("{field}[{at}]"), text)).collect();
        let all = all?;
        if field != "reply_to" {
            let named = all.iter().enumerate();
            recipients.extend(named.map(|(at, mailbox)| (format!("{field}[{at}]"), mailbox.address.clone())));
        }
        Ok(all)
    };
    let (to, cc) = (read("to", &asked.to)?, read("cc", &asked.cc)?);
    read("bcc", &asked.bcc)?;
    let reply_to = read("reply_to", &asked.reply_to)?;
    if asked.text.is_none() && asked.html.is_none() && asked.attachments.is_empty() {
        return Err(Problem::field("text", "is missing: a message has text, html, attachments, or is raw"));
    }
    let attachments = asked.attachments.into_iter().enumerate().map(|(at, file)| attachment(at, file));
    let composition = Composition {
        from: vec![from.clone()],
        to,
        cc,
        reply_to,
        subject: asked.subject.unwrap_or_default(),
        text: asked.text,
        html: asked.html,
        fields: asked.headers.into_iter().collect(),
        attachments: attachments.collect::<Result<_, _>>()?,
    };
    let draft = compose(composition).map_err(|error| Problem::field(error.part, error.fault))?;
    Ok((draft, from.address, recipients))
}

/// From a message that is whole; its recipients are those given, else those in its header.
fn whole_message(octets: &[u8], asked: &NewMessageJson, limits: &SendingLimits) -> Result<Read, Problem> {
    let parts = [
        ("from", asked.from.is_some()),
        ("subject", asked.subject.is_some()),
        ("text", asked.text.is_some()),
        ("html", asked.html.is_some()),
        ("reply_to", !asked.reply_to.is_empty()),
        ("headers", !asked.headers.is_empty()),
        ("attachments", !asked.attachments.is_empty()),
    ];
    if let Some((name, _)) = parts.iter().find(|(_, is_given)| *is_given) {
        return Err(Problem::field(*name, "cannot be given beside a message that is whole"));
    }
    let draft = read_whole(octets, limits.header_bytes_max).map_err(|error| Problem::field(error.part, error.fault))?;
    let first = |name: &str| -> Result<Vec<Mailbox>, Problem> {
        let mut all = Vec::new();
        for field in draft.header.all(name) {
            if field.text().is_empty() {
                continue;
            }
            let read = parse_mailboxes(&field.raw_value);
            all.extend(read.map_err(|error| Problem::field("raw", format!("the {name} field {error}")))?);
        }
        Ok(all)
    };
    let from = first("From")?.into_iter().next().ok_or_else(|| Problem::field("raw", "has no From field"))?;
    let mut recipients = Vec::new();
    for (field, texts) in [("to", &asked.to), ("cc", &asked.cc), ("bcc", &asked.bcc)] {
        for (at, text) in texts.iter().enumerate() {
            let path = format!("{field}[{at}]");
            recipients.push((path.clone(), mailbox(path, text)?.address));
        }
    }
    if recipients.is_empty() {
        for name in ["To", "Cc", "Bcc"] {
            recipients.extend(first(name)?.into_iter().map(|mailbox| ("raw".to_owned(), mailbox.address)));
        }
    }
    Ok((draft, from.address, recipients))
}

fn check_size(draft: &Draft, limits: &SendingLimits) -> Result<(), Problem> {
    if draft.length() > limits.message_bytes_max {
        let detail = format!("the message is too large; the limit is {} octets", limits.message_bytes_max);
        return Err(Problem::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
    }
    if draft.header.length() > limits.header_bytes_max {
        let detail = format!("the header is too large; the limit is {} octets", limits.header_bytes_max);
        return Err(Problem::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
    }
    Ok(())
}

fn envelope_recipients(named: Vec<(String, Address)>, limits: &SendingLimits) -> Result<Vec<ForwardPath>, Problem> {
    let mut seen = std::collections::HashSet::new();
    let mut recipients = Vec::new();
    for (path, address) in named {
        if !seen.insert(address.folded()) {
            continue;
        }
        let forward_path = ForwardPath::plain(address);
        if forward_path.routes_on() {
            let text = "addresses that route by %, ! or @ in the local part are not accepted here";
            return Err(Problem::field(path, text));
        }
        recipients.push(forward_path);
    }
    if recipients.is_empty() {
        return Err(Problem::field("to", "is missing: nobody is to get the message"));
    }
    if recipients.len() > limits.recipients_max {
        return Err(Problem::field("to", format!("a message has at most {} recipients", limits.recipients_max)));
    }
    Ok(recipients)
}

fn mailbox(path: String, text: &str) -> Result<Mailbox, Problem> {
    match parse_mailboxes(text.as_bytes()) {
        Ok(mut all) if all.len() == 1 => Ok(all.remove(0)),
        Ok(_) => Err(Problem::field(path, "names several addresses; give each its own entry")),
        Err(error) => Err(Problem::field(path, format!("{error}"))),
    }
}

fn address(path: &str, text: &str) -> Result<Address, Problem> {
    Address::parse(text.trim()).map_err(|error| Problem::field(path, error.to_string()))
}

fn attachment(at: usize, file: AttachmentJson) -> Result<Attachment, Problem> {
    let not_base64 = |_| Problem::field(format!("attachments[{at}].content"), "is not base64");
    Ok(Attachment {
        name: file.name,
        content_type: file.content_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
        content: STANDARD.decode(file.content).map_err(not_base64)?,
        content_id: file.content_id,
    })
}

fn labels(asked: &NewMessageJson) -> Result<Labels, Problem> {
    let mut labels = Labels::default();
    for (at, tag) in asked.tags.iter().enumerate() {
        labels.tag(tag).map_err(|error| Problem::field(format!("tags[{at}]"), error.to_string()))?;
    }
    for (name, value) in &asked.metadata {
        let wrong = |error: crate::mail::LabelError| Problem::field(format!("metadata.{name}"), error.to_string());
        labels.describe(name, value).map_err(wrong)?;
    }
    Ok(labels)
}

fn moment(text: &str, limits: &SendingLimits, now: Timestamp) -> Result<Timestamp, Problem> {
    let moment = Timestamp::from_rfc3339(text)
        .ok_or_else(|| Problem::field("send_at", "must be a time such as 2027-01-31T12:00:00Z"))?;
    if moment.since(now) > limits.hold_max {
        let hours = limits.hold_max.as_secs() / 3600;
        return Err(Problem::field("send_at", format!("may be at most {hours} hours ahead")));
    }
    Ok(moment)
}
