//! `postern messages`: finding messages, and everything about one.

use super::arguments::{Messages, MessagesSearch};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, size, when};
use super::{Session, rows};
use crate::mail::printable;
use crate::web::{FoundMessageJson, MessageAttemptJson, MessageJson, SearchJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Messages) -> Result<(), Fault> {
    match command {
        Messages::Search(asked) => {
            let list = session.client.list(&path(asked), asked.limit.max(1)).await?;
            session.show(&list, table)
        }
        Messages::Show { id } => {
            let shown = session.client.get(&format!("/messages/{}", encoded(id))).await?;
            session.show(&shown, message)
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

fn table(session: &Session, list: serde_json::Value) -> String {
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
    let more = if list.get("next").is_some_and(serde_json::Value::is_string) {
        "There are more; show them with --limit.\n"
    } else {
        ""
    };
    table.text(session.colour, "no message fits") + more
}

fn message(session: &Session, shown: MessageJson) -> String {
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
        shown.attempts.iter().for_each(|attempt| text.push_str(&attempt_lines(session, attempt)));
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
    let mut text = format!(
        "  {}, {} s after acceptance: {}{class}, recipients {}\n    {}\n",
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
