//! `postern messages`: finding messages, and everything about one.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::arguments::{Messages, MessagesSearch, MessagesSend};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, size, when};
use super::{Session, rows};
use crate::mail::printable;
use crate::web::{
    AttachmentJson, BatchSentJson, DialogueJson, DialogueStepJson, FoundMessageJson, MessageAttemptJson, MessageJson,
    NewMessageJson, SearchJson, SentJson,
};

/// Octets of a file that is handed in, at most; what a message may have the daemon says.
const FILE_OCTETS_MAX: u64 = 1024 * 1024 * 1024;

/// Carries out one of them.
pub async fn run(session: &Session, command: &Messages) -> Result<(), Fault> {
    match command {
        Messages::Search(asked) => {
            let list = session.client.list(&path(asked), asked.limit.max(1)).await?;
            session.show(&list, table)
        }
        Messages::Show { id, dialogue } => {
            let shown = session.client.get(&format!("/messages/{}", encoded(id))).await?;
            let said = if *dialogue { Said::Shown } else { Said::LeftOut };
            session.show(&shown, |session, shown| message(session, shown, said))
        }
        Messages::Send(asked) => {
            let key = asked.idempotency_key.as_deref();
            let sent = session.client.post_once("/messages", &new_message(asked)?, key).await?;
            session.show(&sent, |_, sent: SentJson| told(&sent))
        }
        Messages::SendBatch { file, idempotency_key } => {
            let octets = octets_of(file)?;
            let given: Value = serde_json::from_slice(&octets)
                .map_err(|error| Fault::Failed(format!("{} is no JSON: {error}", file.display())))?;
            let whole = if given.is_array() { json!({"messages": given}) } else { given };
            let sent = session.client.post_once("/messages/batch", &whole, idempotency_key.as_deref()).await?;
            session.show(&sent, batch)
        }
        Messages::Index => {
            let answer = session.client.get("/search").await?;
            session.show(&answer, |_, index: SearchJson| {
                let standing = match (index.rebuilding, index.behind_secs) {
                    (true, _) => "the index is being made from the event log; not everything is found yet".to_owned(),
                    (false, 0) => "the index has everything that happened".to_owned(),
                    (false, behind) => format!("the index is {behind} s behind"),
                };
                format!("{standing}: {} messages of {} days\n", index.messages, index.days)
            })
        }
        Messages::Rebuild => {
            let answer = session.client.post("/search/rebuild", &()).await?;
            session.done(&answer, "the index is made anew; postern messages index says when it has everything")
        }
    }
}

/// A file, or standard input.
fn octets_of(file: &Path) -> Result<Vec<u8>, Fault> {
    let mut octets = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(FILE_OCTETS_MAX).read_to_end(&mut octets)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(FILE_OCTETS_MAX).read_to_end(&mut octets))
    };
    match read {
        Ok(length) if length as u64 == FILE_OCTETS_MAX => {
            Err(Fault::Failed(format!("{} is larger than any message may be", file.display())))
        }
        Ok(_) => Ok(octets),
        Err(error) => Err(Fault::Failed(format!("{} cannot be read: {error}", file.display()))),
    }
}

fn text_of(file: &Path) -> Result<String, Fault> {
    String::from_utf8(octets_of(file)?).map_err(|_| Fault::Failed(format!("{} is no UTF-8 text", file.display())))
}

fn attachment(file: &Path) -> Result<AttachmentJson, Fault> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let content = STANDARD.encode(octets_of(file)?);
    Ok(AttachmentJson { name, content_type: None, content, content_id: None })
}

fn pair(text: &str) -> Result<(String, String), Fault> {
    let split = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    split.ok_or_else(|| Fault::Failed(format!("{text:?} is not NAME=VALUE")))
}

fn new_message(asked: &MessagesSend) -> Result<NewMessageJson, Fault> {
    let text = asked.text_file.as_deref().map(text_of).transpose()?.or_else(|| asked.text.clone());
    let raw = asked.raw.as_deref().map(|file| octets_of(file).map(|octets| STANDARD.encode(octets))).transpose()?;
    Ok(NewMessageJson {
        tenant: Some(asked.tenant.clone()),
        smtp_account: asked.account.clone(),
        class: None,
        from: asked.from.clone(),
        to: asked.to.clone(),
        cc: asked.cc.clone(),
        bcc: asked.bcc.clone(),
        reply_to: asked.reply_to.clone(),
        return_path: asked.return_path.clone(),
        subject: asked.subject.clone(),
        text,
        html: asked.html_file.as_deref().map(text_of).transpose()?,
        headers: BTreeMap::new(),
        attachments: asked.attach.iter().map(|file| attachment(file)).collect::<Result<_, _>>()?,
        raw,
        tags: asked.tag.clone(),
        metadata: asked.metadata.iter().map(|text| pair(text)).collect::<Result<_, _>>()?,
        send_at: asked.at.clone(),
    })
}

fn told(sent: &SentJson) -> String {
    let at = sent.send_at.as_ref().map(|at| format!(", not before {at}")).unwrap_or_default();
    let mut text = format!("message {} is taken{at}\n", sent.id);
    for recipient in &sent.recipients {
        text.push_str(&format!("  {}: {}\n", printable(&recipient.address), recipient.status));
    }
    text
}

fn batch(_: &Session, sent: BatchSentJson) -> String {
    let mut text = format!("{} taken, {} refused\n", sent.accepted, sent.refused);
    for (number, result) in sent.results.iter().enumerate() {
        match (&result.message, &result.problem) {
            (Some(message), _) => text.push_str(&format!("{number}: {}", told(message))),
            (None, Some(problem)) => text.push_str(&format!("{number}: refused: {}\n", printable(&problem.detail))),
            (None, None) => {}
        }
    }
    text
}

fn path(asked: &MessagesSearch) -> String {
    let pairs = [
        ("tenant", &asked.tenant),
        ("from", &asked.from),
        ("until", &asked.until),
        ("recipient", &asked.to),
        ("sender", &asked.sender),
        ("subject", &asked.subject),
        ("message_id", &asked.message_id),
        ("id", &asked.id),
        ("tag", &asked.tag),
        ("status", &asked.status),
        ("domain", &asked.domain),
        ("provider", &asked.provider),
        ("reply", &asked.reply),
        ("smtp_account", &asked.account),
    ];
    let given = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))));
    let query = given.collect::<Vec<_>>().join("&");
    if query.is_empty() { "/messages".to_owned() } else { format!("/messages?{query}") }
}

fn table(session: &Session, list: Value) -> String {
    let found: Vec<FoundMessageJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["QUEUE ID", "TENANT", "ACCEPTED", "FROM", "TO", "SUBJECT", "STATUS", "LAST ANSWER"]);
    for message in found {
        let left_out = message.recipients.saturating_sub(message.to.len());
        let more = if left_out > 0 { format!(" +{left_out}") } else { String::new() };
        table.row([
            message.id,
            message.tenant,
            when(&message.accepted, session.now),
            message.reverse_path,
            message.to.join(" ") + &more,
            message.subject,
            message.statuses.join(" "),
            or_dash(message.last),
        ]);
    }
    let more =
        if list.get("next").is_some_and(Value::is_string) { "There are more; show them with --limit.\n" } else { "" };
    table.text(session.colour, "no message fits") + more
}

/// Whether what was said in each try is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Shown,
    LeftOut,
}

fn message(session: &Session, shown: MessageJson, said: Said) -> String {
    let queued = shown.queued;
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text.push_str(&format!("{name:<13}{}\n", printable(&value)));
        }
    };
    line("Message", Some(queued.id));
    line("Tenant", queued.tenant);
    line("Account", shown.smtp_account);
    line("Came by", shown.source);
    line("Accepted", queued.accepted.map(|at| when(&at, session.now)));
    line("Done", shown.done_after_secs.map(|secs| format!("after {secs} s")));
    line("Size", queued.size_bytes.map(size));
    line("Virtual IP", queued.vip);
    line("Sender", queued.reverse_path);
    line("From", queued.header_from);
    line("Subject", queued.subject);
    line("Message-ID", queued.message_id);
    line("Tags", Some(queued.tags.join(" ")));
    line("Signed by", Some(queued.signatures.join(" ")));
    text.push('\n');
    for recipient in queued.recipients {
        let (address, why) = (printable(&recipient.address), printable(&recipient.why));
        text.push_str(&format!("{} <{address}> {}: {why}\n", recipient.number, recipient.state));
    }
    if !shown.attempts.is_empty() {
        text.push_str("\nTries\n");
        for attempt in &shown.attempts {
            text.push_str(&attempt_lines(session, attempt));
            let numbers = attempt.dialogues.iter().filter(|_| said == Said::Shown);
            let dialogues = numbers.filter_map(|number| shown.dialogues.get(*number));
            dialogues.for_each(|dialogue| text.push_str(&dialogue_lines(dialogue)));
        }
        let has_more = said == Said::LeftOut && !shown.dialogues.is_empty();
        if has_more {
            text.push_str("  --dialogue shows what was said in them\n");
        }
    }
    text.push_str("\nEvents\n");
    for event in queued.events {
        text.push_str(&format!("  {}  {}\n", when(&event.at, session.now), printable(&event.text)));
    }
    text
}

fn attempt_lines(session: &Session, attempt: &MessageAttemptJson) -> String {
    let numbers: Vec<String> = attempt.recipients.iter().map(u16::to_string).collect();
    let class = attempt.class.as_ref().map(|class| format!(" ({class})")).unwrap_or_default();
    let took = attempt.took_ms.map(|took| format!(", took {took} ms")).unwrap_or_default();
    let mut text = format!(
        "  {}, {} s after acceptance: {}{class}, recipients {}{took}\n    {}\n",
        when(&attempt.at, session.now),
        attempt.after_secs,
        attempt.status,
        numbers.join(", "),
        printable(&attempt.reply)
    );
    if let (Some(host), Some(address)) = (&attempt.host, &attempt.address) {
        let (source, tls) = (or_dash(attempt.source.clone()), or_dash(attempt.tls.clone()));
        let line = format!("by {host} ({address}), from {source}, TLS {tls}");
        text.push_str(&format!("    {}\n", printable(&line)));
    }
    text
}

/// What was said: `>` we did, `<` the peer did, with the milliseconds each took.
fn dialogue_lines(dialogue: &DialogueJson) -> String {
    let over = match dialogue.connection.as_str() {
        "new" => "over a new connection",
        "reused" => "over a connection that had carried mail before",
        _ => "where no connection could be had, with all mail that waited for it",
    };
    let numbers: Vec<String> = dialogue.recipients.iter().map(u16::to_string).collect();
    let mut text = format!("    Said for {} {over}, {} ms:\n", numbers.join(", "), dialogue.took_ms);
    dialogue.steps.iter().for_each(|step| text.push_str(&step_lines(step)));
    if dialogue.left_out > 0 {
        text.push_str(&format!("      ({} steps were not kept)\n", dialogue.left_out));
    }
    text
}

fn step_lines(step: &DialogueStepJson) -> String {
    let sent = step.sent.as_deref().map(printable).unwrap_or_default();
    let mut text = match step.step.as_str() {
        "connect" => format!("      > (connecting to {})\n", if sent.is_empty() { "the host" } else { &sent }),
        "tls" => "      > (TLS handshake)\n".to_owned(),
        "message" => "      > (the message)\n".to_owned(),
        "greeting" | "unasked" => String::new(),
        _ => format!("      > {sent}\n"),
    };
    let took = step.took_ms;
    let mut heard: Vec<String> = Vec::new();
    if let Some(code) = step.code {
        let enhanced = step.enhanced.as_ref().map(|enhanced| format!("{enhanced} ")).unwrap_or_default();
        let last = step.text.len().saturating_sub(1);
        let line = |(place, line): (usize, &String)| {
            format!("{code}{}{enhanced}{}", if place == last { ' ' } else { '-' }, printable(line))
        };
        heard.extend(step.text.iter().enumerate().map(line));
        if heard.is_empty() {
            heard.push(format!("{code} {enhanced}"));
        }
    }
    heard.extend(step.failed.as_ref().map(|failed| format!("({})", printable(failed))));
    match heard.split_last() {
        Some((last, before)) => {
            before.iter().for_each(|line| text.push_str(&format!("      < {line}\n")));
            text.push_str(&format!("      < {} [{took} ms]\n", last.trim_end()));
        }
        None => text.push_str(&format!("      < (done) [{took} ms]\n")),
    }
    text
}
