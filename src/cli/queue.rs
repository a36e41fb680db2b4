//! `postern queue`: where a message is, why, and what an operator may do about it.

use std::time::Duration;

use super::arguments::{MailClass, Queue, QueueCommand, QueueFilter, QueueList, QueueMany, RecipientStanding};
use super::client::{Fault, encoded};
use super::output::{self, Table, or_dash, size, span, when};
use super::{Session, rows};
use crate::mail::{Class, printable, printable_lines};
use crate::web::{
    NewQueueSweepJson, QueueActJson, QueueChangeJson, QueueFilterJson, QueueMoveJson, QueueRowJson, QueueShapeJson,
    QueueSweepJson, QueueTotalsJson, QueuedJson, RecipientJson, SweepActJson,
};

/// How often it is looked whether an act is done.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Carries out one of them.
pub async fn run(session: &Session, command: &QueueCommand) -> Result<(), Fault> {
    let Some(command) = &command.command else { return list(session, &command.list).await };
    match command {
        Queue::List(asked) => list(session, asked).await,
        Queue::Totals(filter) => {
            let totals = session.client.get(&with_query("/queue-totals", &query(filter))).await?;
            session.show(&totals, totals_text)
        }
        Queue::Shape { filter, limit } => {
            let mut query = query(filter);
            query.push(format!("limit={limit}"));
            let shape = session.client.get(&with_query("/queue-shape", &query)).await?;
            session.show(&shape, |session, shape: QueueShapeJson| shape_text(session, &shape))
        }
        Queue::Show { id } => {
            let shown = session.client.get(&path(id)).await?;
            session.show(&shown, message)
        }
        Queue::Why { id } => why(session, id).await,
        Queue::Retry(asked) => act(session, SweepActJson::Retry, asked).await,
        Queue::Hold(asked) => act(session, SweepActJson::Hold, asked).await,
        Queue::Release(asked) => act(session, SweepActJson::Release, asked).await,
        Queue::Cancel(asked) => act(session, SweepActJson::Cancel, asked).await,
        Queue::Expire(asked) => act(session, SweepActJson::Expire, asked).await,
        Queue::Acts { tenant } => {
            let tenant = tenant.iter().map(|name| format!("tenant={}", encoded(name))).collect::<Vec<_>>();
            let list = session.client.list(&with_query("/queue-sweeps", &tenant), usize::MAX).await?;
            session.show(&list, acts)
        }
        Queue::End { number } => {
            let ended = session.client.post(&format!("/queue-sweeps/{number}/end"), &()).await?;
            session.show(&ended, |_, sweep: QueueSweepJson| format!("act {number} is ended; {}\n", came_to(&sweep)))
        }
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

/// `postern why`.
pub async fn why(session: &Session, id: &str) -> Result<(), Fault> {
    let why = session.client.get(&format!("{}/why", path(id))).await?;
    session.show(&why, |_, lines: Vec<RecipientJson>| lines.iter().map(why_line).collect())
}

async fn list(session: &Session, asked: &QueueList) -> Result<(), Fault> {
    let path = with_query("/queue", &query(&asked.filter));
    let list = session.client.list_from(&path, asked.cursor.clone(), asked.limit.max(1)).await?;
    session.show(&list, table)
}

/// The word of the verb, and of what was done.
fn words(act: SweepActJson) -> (&'static str, &'static str) {
    match act {
        SweepActJson::Retry => ("retry", "made due now"),
        SweepActJson::Hold => ("hold", "held"),
        SweepActJson::Release => ("release", "released"),
        SweepActJson::Cancel => ("cancel", "cancelled"),
        SweepActJson::Expire => ("expire", "given up"),
    }
}

async fn act(session: &Session, act: SweepActJson, asked: &QueueMany) -> Result<(), Fault> {
    let (verb, done) = words(act);
    let mut query = query(&asked.filter);
    if let Some(id) = &asked.id {
        if !query.is_empty() {
            return Err(Fault::Failed("name one message by its id, or say which ones; not both".to_owned()));
        }
        let body = QueueActJson { recipients: asked.recipient.clone() };
        let answer = session.client.post(&format!("{}/{verb}", path(id)), &body).await?;
        return tell(session, &answer, id, done);
    }
    if query.is_empty() != asked.all {
        let text = format!("name a queue id, say which messages, or say --all; see: postern queue {verb} --help");
        return Err(Fault::Failed(text));
    }
    let is_final = matches!(act, SweepActJson::Cancel | SweepActJson::Expire);
    if asked.dry_run || (is_final && !asked.yes) {
        query.push(format!("act={verb}"));
        let totals = session.client.get(&with_query("/queue-totals", &query)).await?;
        session.show(&totals, totals_text)?;
        return match asked.dry_run {
            true => Ok(()),
            false => Err(Fault::Failed(format!("nothing was {done} yet: say --yes to {verb} all of that"))),
        };
    }
    let body =
        NewQueueSweepJson { act, filter: filter(&asked.filter), reason: asked.reason.clone(), seconds: asked.lasting };
    let begun: QueueSweepJson = output::read(&session.client.post("/queue-sweeps", &body).await?)?;
    loop {
        let answer = session.client.get(&format!("/queue-sweeps/{}", begun.number)).await?;
        let sweep: QueueSweepJson = output::read(&answer)?;
        // What is not decided is decided by delivery, in its own time.
        if sweep.state == "running" && sweep.undecided == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        session.show(&answer, |session, sweep: QueueSweepJson| swept(session, &sweep, done))?;
        return match sweep.state.as_str() {
            "failed" | "ended" => Err(Fault::Failed(sweep.why.unwrap_or(sweep.state))),
            _ => Ok(()),
        };
    }
}

fn came_to(sweep: &QueueSweepJson) -> String {
    let flying = match sweep.in_flight {
        0 => String::new(),
        some => format!(", {some} of them while they were being tried"),
    };
    let failed = match sweep.failed {
        0 => String::new(),
        some => format!("; {some} messages were changed by somebody else at the same moment, or are damaged"),
    };
    let undecided = match sweep.undecided {
        0 => String::new(),
        some => format!("; of {some} messages it is not known yet whether they go to that provider"),
    };
    format!("{} messages, {} recipients{flying}{failed}{undecided}", sweep.messages, sweep.recipients)
}

fn swept(session: &Session, sweep: &QueueSweepJson, done: &str) -> String {
    let lasts = match &sweep.until {
        Some(until) if sweep.state == "lasting" => {
            format!("; act {} applies to what comes until {}", sweep.number, when(until, session.now))
        }
        _ => String::new(),
    };
    let goes_on = match sweep.state.as_str() {
        "running" => format!("; act {} goes on (postern queue acts, postern queue end {0})", sweep.number),
        _ => String::new(),
    };
    format!("{} {done}{lasts}{goes_on}\n", came_to(sweep))
}

fn acts(session: &Session, list: serde_json::Value) -> String {
    let sweeps: Vec<QueueSweepJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&[
        "ACT",
        "DOES",
        "TO",
        "STATE",
        "BEGAN",
        "UNTIL",
        "MESSAGES",
        "RECIPIENTS",
        "UNDECIDED",
        "BY",
        "REASON",
    ]);
    for sweep in sweeps {
        table.row([
            sweep.number.to_string(),
            words(sweep.act).0.to_owned(),
            filter_words(&sweep.filter),
            sweep.why.map_or_else(|| sweep.state.clone(), |why| format!("{}: {}", sweep.state, printable(&why))),
            when(&sweep.began, session.now),
            or_dash(sweep.until.map(|until| when(&until, session.now))),
            sweep.messages.to_string(),
            sweep.recipients.to_string(),
            sweep.undecided.to_string(),
            printable(&sweep.by),
            printable(&sweep.reason),
        ]);
    }
    table.text(session.colour, "nobody has acted on many messages lately")
}

/// A filter as it would be typed.
fn filter_words(filter: &QueueFilterJson) -> String {
    let value = serde_json::to_value(filter).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    let words: Vec<String> = fields
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), printable);
            format!("{}={value}", name.replace('_', "-"))
        })
        .collect();
    if words.is_empty() { "everything".to_owned() } else { words.join(" ") }
}

fn totals_text(session: &Session, totals: QueueTotalsJson) -> String {
    let oldest = or_dash(totals.oldest.map(|oldest| when(&oldest, session.now)));
    format!(
        "Messages    {}\nSize        {}\nOldest      {oldest}\nRecipients  {} waiting, {} being tried, {} held, {} paused\n",
        totals.messages,
        size(totals.bytes),
        totals.waiting,
        totals.in_flight,
        totals.held,
        totals.paused
    )
}

fn shape_text(session: &Session, shape: &QueueShapeJson) -> String {
    let mut table = Table::new(&["TO", "TOTAL", "5 MIN", "10", "20", "40", "80", "160", "320", "640", "1280", "OLDER"]);
    let others = Some(&shape.others).filter(|others| others.total > 0);
    for row in std::iter::once(&shape.total).chain(&shape.rows).chain(others) {
        let counts = std::iter::once(row.total).chain(row.by_age.iter().copied());
        table.row(std::iter::once(row.to.clone()).chain(counts.map(|count| count.to_string())));
    }
    table.text(session.colour, "nothing is queued")
}

fn filter(asked: &QueueFilter) -> QueueFilterJson {
    let state = |state: RecipientStanding| {
        let word = match state {
            RecipientStanding::Waiting => "waiting",
            RecipientStanding::InFlight => "in-flight",
            RecipientStanding::Held => "held",
            RecipientStanding::Paused => "paused",
        };
        word.to_owned()
    };
    QueueFilterJson {
        tenant: asked.tenant.clone(),
        smtp_account: asked.account.clone(),
        vip: asked.vip.clone(),
        class: asked.class.map(|class| match class {
            MailClass::Transactional => Class::Transactional,
            MailClass::Marketing => Class::Marketing,
        }),
        sender: asked.from.clone(),
        recipient: asked.to_address.clone(),
        to: asked.to.clone(),
        provider: asked.provider.clone(),
        state: asked.state.map(state),
        older_secs: asked.older,
        newer_secs: asked.newer,
        attempts_min: asked.attempts,
        last: asked.last.clone(),
    }
}

/// The filter as parts of a query.
fn query(asked: &QueueFilter) -> Vec<String> {
    let value = serde_json::to_value(filter(asked)).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.map(|(name, value)| format!("{name}={}", encoded(&text(value)))).collect()
}

fn with_query(path: &str, query: &[String]) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
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
        "There are more: --limit shows more of them, --cursor goes on (`next` of --json).\n"
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
    let counts = [
        (message.waiting, "waiting"),
        (message.in_flight, "being tried"),
        (message.held, "held"),
        (message.paused, "paused"),
    ];
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
        let line = RecipientJson {
            number: 0,
            address: "a@x.example".to_owned(),
            state: "bounced".to_owned(),
            why,
            waits_for: String::new(),
        };
        assert_eq!(why_line(&line), "0 <a@x.example>: given up: 550-5.7.1 no\n        550 5.7.1 ?[2Jnever\n");
    }

    #[test]
    fn filters_go_into_the_query() {
        let mut asked = QueueFilter::default();
        assert_eq!(with_query("/queue", &query(&asked)), "/queue");
        asked.tenant = Some("a&b".into());
        asked.attempts = Some(3);
        asked.state = Some(RecipientStanding::InFlight);
        assert_eq!(with_query("/queue", &query(&asked)), "/queue?attempts_min=3&state=in-flight&tenant=a%26b");
        assert_eq!(filter_words(&filter(&asked)), "attempts-min=3 state=in-flight tenant=a&b");
    }
}
