//! `postern queue`: where a message is, why, and what an operator may do about it.

use super::arguments::{Queue, QueueList, QueueTarget};
use super::client::{Fault, encoded};
use super::output::{self, Table, or_dash, size, span, when};
use super::{Session, rows};
use crate::mail::{printable, printable_lines};
use crate::web::{QueueActJson, QueueChangeJson, QueueMoveJson, QueueRowJson, QueuedJson, RecipientJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Queue) -> Result<(), Fault> {
    match command {
        Queue::List(asked) => {
            let list = session.client.list(&list_path(asked), asked.limit.max(1)).await?;
            session.show(&list, table)
        }
        Queue::Show { id } => {
            let shown = session.client.get(&path(id)).await?;
            session.show(&shown, message)
        }
        Queue::Why { id } => {
            let why = session.client.get(&format!("{}/why", path(id))).await?;
            session.show(&why, |_, lines: Vec<RecipientJson>| lines.iter().map(why_line).collect())
        }
        Queue::Retry(target) => act(session, "retry", "made due now", target).await,
        Queue::Hold(target) => act(session, "hold", "held", target).await,
        Queue::Release(target) => act(session, "release", "released", target).await,
        Queue::Cancel(target) => act(session, "cancel", "cancelled", target).await,
        Queue::Erase { id } => {
            let answer = session.client.post(&format!("{}/erase", path(id)), &()).await?;
            session.done(&answer, &format!("addresses and header facts of message {id} are erased"))
        }
        Queue::Move { id, to } => {
            let answer = session.client.post(&format!("{}/move", path(id)), &QueueMoveJson { to: to.clone() }).await?;
            tell(session, &answer, id, "moved")
        }
    }
}

async fn act(session: &Session, verb: &str, done: &str, target: &QueueTarget) -> Result<(), Fault> {
    let body = QueueActJson { recipients: target.recipient.clone() };
    let answer = session.client.post(&format!("{}/{verb}", path(&target.id)), &body).await?;
    tell(session, &answer, &target.id, done)
}

/// Says what was done. An act that applied to nobody did not do what was asked: a script must see that.
fn tell(session: &Session, answer: &serde_json::Value, id: &str, done: &str) -> Result<(), Fault> {
    let change: QueueChangeJson = output::read(answer)?;
    session.show(answer, |_, change: QueueChangeJson| said(&change, done))?;
    applied(id, &change, done)
}

fn applied(id: &str, change: &QueueChangeJson, done: &str) -> Result<(), Fault> {
    if change.recipients.is_empty() {
        let text =
            format!("nothing was {done}: no recipient is in a state this applies to; see: postern queue why {id}");
        return Err(Fault::Failed(text));
    }
    Ok(())
}

fn said(change: &QueueChangeJson, done: &str) -> String {
    let count = match change.recipients.len() {
        0 => return String::new(),
        1 => "1 recipient".to_owned(),
        more => format!("{more} recipients"),
    };
    match change.in_flight.len() {
        0 => format!("{count} {done}\n"),
        flying => format!("{count} {done}; {flying} of them when the attempt that is running has ended\n"),
    }
}

fn path(id: &str) -> String {
    format!("/queue/{}", encoded(id))
}

fn list_path(asked: &QueueList) -> String {
    let tenant = asked.tenant.as_ref().map(|name| format!("tenant={}", encoded(name)));
    let to = asked.to.as_ref().map(|domain| format!("to={}", encoded(domain.as_str())));
    let query: Vec<String> = tenant.into_iter().chain(to).collect();
    if query.is_empty() { "/queue".to_owned() } else { format!("/queue?{}", query.join("&")) }
}

fn why_line(line: &RecipientJson) -> String {
    format!("{} <{}>: {}\n", line.number, printable(&line.address), indented(&line.why))
}

/// Printable; the further lines of what a peer said are set in below it.
fn indented(text: &str) -> String {
    printable_lines(text).replace('\n', "\n        ")
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let messages: Vec<QueueRowJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["QUEUE ID", "TENANT", "ACCEPTED", "SIZE", "FROM", "TO", "STATE", "LAST ANSWER"]);
    for message in messages {
        let left_out = usize::from(message.recipients).saturating_sub(message.to.len());
        let more = if left_out > 0 { format!(" +{left_out}") } else { String::new() };
        table.row([
            message.id.clone(),
            message.tenant.clone(),
            when(&message.accepted, session.now),
            size(message.size_bytes),
            message.reverse_path.clone(),
            message.to.join(" ") + &more,
            state(&message),
            or_dash(message.last.map(|last| last.replace('\n', " "))),
        ]);
    }
    let more = if list.get("next").is_some_and(serde_json::Value::is_string) {
        "There are more; show them with --limit.\n"
    } else {
        ""
    };
    table.text(session.colour, "nothing is queued") + more
}

fn state(message: &QueueRowJson) -> String {
    let due = match message.due_in_secs {
        Some(0) => ", due now".to_owned(),
        Some(seconds) => format!(", due in {}", span(seconds)),
        None => String::new(),
    };
    let counts = [(message.waiting, "waiting"), (message.in_flight, "being tried"), (message.held, "held")];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if counts.is_empty() {
        // Every recipient is done; the message is kept because its sender has not been told yet.
        return "ended, notice owed".to_owned();
    }
    counts.join(", ") + &due
}

fn message(session: &Session, shown: QueuedJson) -> String {
    let colour = session.colour;
    let plain = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let mut text = format!(
        "Message     {}{}\nTenant      {}\nAccepted    {}\nEnvelope    from {}\nFrom        {}\nSubject     {}\n\
         Message-ID  {}\nSize        {}\nVirtual IP  {}\nSigned      {}\n",
        shown.id,
        if shown.retired { " (done; its body is gone)" } else { "" },
        plain(&shown.tenant),
        or_dash(shown.accepted.as_ref().map(|moment| when(moment, session.now))),
        plain(&shown.reverse_path),
        plain(&shown.header_from),
        plain(&shown.subject),
        plain(&shown.message_id),
        or_dash(shown.size_bytes.map(size)),
        plain(&shown.vip),
        if shown.signatures.is_empty() { "-".to_owned() } else { shown.signatures.join(", ") },
    );
    if !shown.tags.is_empty() {
        text.push_str(&format!("Tags        {}\n", printable(&shown.tags.join(", "))));
    }
    for (name, value) in &shown.metadata {
        text.push_str(&format!("Metadata    {}: {}\n", printable(name), printable(value)));
    }
    text.push_str(&format!("\n{}\n", colour.bold("Recipients")));
    shown.recipients.iter().for_each(|line| text.push_str(&why_line(line)));
    text.push_str(&format!("\n{}\n", colour.bold("What happened")));
    for event in &shown.events {
        text.push_str(&format!("{}  {}\n", when(&event.at, session.now), indented(&event.text)));
    }
    shown.damaged.iter().for_each(|text_| text.push_str(&format!("{}\n", colour.red(&printable(text_)))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_says_what_it_did_and_what_waits_for_a_running_attempt() {
        let change = |recipients: &[u16], in_flight: &[u16]| QueueChangeJson {
            recipients: recipients.to_vec(),
            in_flight: in_flight.to_vec(),
        };
        assert_eq!(said(&change(&[0], &[]), "held"), "1 recipient held\n");
        assert!(said(&change(&[0, 1], &[1]), "held").contains("1 of them when the attempt"));
        assert!(applied("ID", &change(&[0], &[]), "held").is_ok());
        let nobody = applied("ID", &change(&[], &[]), "held").unwrap_err();
        assert_eq!(nobody.code(), super::super::exit::FAILED);
        assert!(nobody.to_string().starts_with("nothing was held: no recipient is in a state"), "{nobody}");
    }

    #[test]
    fn a_message_of_which_only_a_notice_is_owed_says_so() {
        let mut row: QueueRowJson = serde_json::from_value(serde_json::json!({
            "id": "x", "tenant": "shop", "accepted": "", "size_bytes": 1, "reverse_path": "<>", "subject": null,
            "to": [], "recipients": 1, "waiting": 0, "in_flight": 0, "held": 0, "due_in_secs": null, "last": null,
        }))
        .unwrap();
        assert_eq!(state(&row), "ended, notice owed");
        (row.waiting, row.due_in_secs) = (1, Some(300));
        assert_eq!(state(&row), "1 waiting, due in 5 min");
    }

    #[test]
    fn a_reply_of_several_lines_is_shown_line_by_line_and_forges_none() {
        let why = "given up: 550-5.7.1 no\n550 5.7.1 \u{1b}[2Jnever".to_owned();
        let line = RecipientJson { number: 0, address: "a@x.example".to_owned(), state: "bounced".to_owned(), why };
        assert_eq!(why_line(&line), "0 <a@x.example>: given up: 550-5.7.1 no\n        550 5.7.1 ?[2Jnever\n");
    }

    #[test]
    fn filters_go_into_the_query() {
        let mut asked = QueueList { tenant: None, to: None, limit: 1 };
        assert_eq!(list_path(&asked), "/queue");
        asked.tenant = Some("a&b".into());
        asked.to = Some(crate::mail::Domain::parse("example.com").unwrap());
        assert_eq!(list_path(&asked), "/queue?tenant=a%26b&to=example.com");
    }
}
