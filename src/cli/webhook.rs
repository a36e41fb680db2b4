//! `postern webhook`.

use serde_json::{Value, json};

use super::arguments::{Switch, Webhook, WebhookAdd, WebhookName, WebhookReplay, WebhookSet};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, read, when};
use super::route::read_password;
use super::{Session, rows};
use crate::web::{
    AttemptJson, MadeWebhookJson, NewWebhookJson, RotationJson, WebhookChangeJson, WebhookJson, WebhookWindowJson,
};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Webhook) -> Result<(), Fault> {
    match command {
        Webhook::Add(add) => {
            let made = session.client.post(&of_tenant(&add.tenant), &new_webhook(add)?).await?;
            session.show(&made, shown)
        }
        Webhook::List { tenant } => {
            let list = session.client.list(&of_tenant(tenant), usize::MAX).await?;
            session.show(&list, table)
        }
        Webhook::Show(which) => {
            let webhook = session.client.get(&path(which)).await?;
            session.show(&webhook, |session, webhook| details(session, &webhook))
        }
        Webhook::Set(set) => {
            let webhook = session.client.patch(&path(&set.which), &change(set)?).await?;
            session.show(&webhook, |session, webhook| details(session, &webhook))
        }
        Webhook::Rotate { which, overlap_hours } => {
            let asked = RotationJson { overlap_hours: Some(*overlap_hours) };
            let made = session.client.post(&format!("{}/rotate", path(which)), &asked).await?;
            session.show(&made, shown)
        }
        Webhook::Test(which) => {
            let made = session.client.post(&format!("{}/test", path(which)), &json!({})).await?;
            let attempts: Vec<AttemptJson> = read(&made)?;
            session.show(&made, |session, made: Vec<AttemptJson>| attempt_table(session, &made))?;
            match attempts.iter().any(|attempt| attempt.taken) {
                true => Ok(()),
                false => Err(Fault::Failed("the test was not taken".to_owned())),
            }
        }
        Webhook::Attempts { which, limit } => {
            let list = session.client.list(&format!("{}/attempts", path(which)), *limit).await?;
            session.show(&list, |session, list: Value| attempt_table(session, &rows(&list).unwrap_or_default()))
        }
        Webhook::Replay(asked) => replay(session, asked).await,
        Webhook::Remove(which) => {
            let answer = session.client.delete(&path(which)).await?;
            session.done(&answer, &format!("webhook {} is removed", which.id))
        }
    }
}

async fn replay(session: &Session, asked: &WebhookReplay) -> Result<(), Fault> {
    let path = path(&asked.which);
    let answer = match (&asked.attempt, &asked.from) {
        (Some(attempt), _) => {
            session.client.post(&format!("{path}/attempts/{}/replay", encoded(attempt)), &json!({})).await?
        }
        (None, from) => {
            let window = WebhookWindowJson { from: from.clone().unwrap_or_default(), to: asked.to.clone() };
            session.client.post(&format!("{path}/replay"), &window).await?
        }
    };
    session.done(&answer, "being sent again; postern webhook attempts shows how it goes")
}

fn of_tenant(tenant: &str) -> String {
    format!("/tenants/{}/webhooks", encoded(tenant))
}

fn path(which: &WebhookName) -> String {
    format!("{}/{}", of_tenant(&which.tenant), encoded(&which.id))
}

fn new_webhook(add: &WebhookAdd) -> Result<NewWebhookJson, Fault> {
    let password = add.password_file.as_ref().map(|path| read_password(path)).transpose()?;
    Ok(NewWebhookJson {
        url: add.url.clone(),
        secondary_url: add.secondary_url.clone(),
        name: add.name.clone(),
        events: add.event.clone(),
        batch: Some(add.batch),
        user: add.user.clone(),
        password: password.map(|password| password.to_string()),
    })
}

/// `none` empties a value.
fn or_none(text: &String) -> String {
    if text == "none" { String::new() } else { text.clone() }
}

fn change(set: &WebhookSet) -> Result<WebhookChangeJson, Fault> {
    let password = set.password_file.as_ref().map(|path| read_password(path)).transpose()?;
    Ok(WebhookChangeJson {
        url: set.url.clone(),
        secondary_url: set.secondary_url.as_ref().map(or_none),
        name: set.name.clone(),
        events: (!set.event.is_empty()).then(|| set.event.clone()),
        batch: set.batch,
        user: set.user.as_ref().map(or_none),
        password: password.map(|password| password.to_string()),
        enabled: set.enabled.map(|switch| switch == Switch::Yes),
    })
}

fn shown(session: &Session, made: MadeWebhookJson) -> String {
    let until = made.webhook.old_secret_expires.as_ref();
    let until =
        until.map(|at| format!("Requests are signed with the old secret too until {at}.\n")).unwrap_or_default();
    format!(
        "{}Its secret is shown this once; the receiver verifies signatures with it:\n  {}\n{until}",
        details(session, &made.webhook),
        made.secret
    )
}

fn state(session: &Session, webhook: &WebhookJson) -> String {
    match (&webhook.disabled_reason, &webhook.progress.failing_since) {
        (Some(reason), _) => session.colour.red(&format!("disabled: {reason}")),
        (None, Some(since)) => {
            let reason = webhook.progress.last_reason.clone().unwrap_or_default();
            session.colour.yellow(&format!("failing since {}: {reason}", when(since, session.now)))
        }
        (None, None) => session.colour.green("fine"),
    }
}

fn details(session: &Session, webhook: &WebhookJson) -> String {
    let progress = &webhook.progress;
    let last = |at: &Option<String>| at.as_ref().map_or_else(|| "never".to_owned(), |at| when(at, session.now));
    format!(
        "webhook {} {}\n  to       {}\n  or to    {}\n  events   {}\n  batch    {}\n  user     {}\n  state    {}\n  \
         waiting  {}\n  taken    {}\n  refused  {}\n",
        webhook.id,
        webhook.name,
        webhook.url,
        or_dash(webhook.secondary_url.clone()),
        webhook.events.join(" "),
        webhook.batch,
        or_dash(webhook.user.clone()),
        state(session, webhook),
        progress.waiting,
        last(&progress.last_success),
        last(&progress.last_failure),
    )
}

fn table(session: &Session, list: Value) -> String {
    let webhooks: Vec<WebhookJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "NAME", "URL", "WAITING", "LAST TAKEN", "STATE"]);
    for webhook in webhooks {
        let taken = webhook.progress.last_success.as_ref().map(|at| when(at, session.now));
        let state = match (webhook.enabled, &webhook.progress.failing_since) {
            (false, _) => "disabled",
            (true, Some(_)) => "failing",
            (true, None) => "fine",
        };
        let waiting = webhook.progress.waiting.to_string();
        table.row([webhook.id, webhook.name, webhook.url, waiting, or_dash(taken), state.to_owned()]);
    }
    table.text(session.colour, "no webhooks yet; postern webhook add")
}

fn attempt_table(session: &Session, attempts: &[AttemptJson]) -> String {
    let mut table = Table::new(&["ID", "AT", "EVENT", "MESSAGE", "TRY", "RESULT", "TOOK", "THEN"]);
    for attempt in attempts {
        let result = match (attempt.status, &attempt.error) {
            (Some(status), _) => status.to_string(),
            (None, error) => error.clone().unwrap_or_default(),
        };
        let place = if attempt.secondary { " secondary" } else { "" };
        let then = attempt.again.as_ref().map(|at| when(at, session.now)).unwrap_or_else(|| attempt.then.clone());
        table.row([
            attempt.id.clone(),
            when(&attempt.at, session.now),
            attempt.event.clone(),
            or_dash(attempt.message.clone()),
            format!("{}{place}", attempt.number),
            result,
            format!("{} ms", attempt.took_ms),
            then,
        ]);
    }
    table.text(session.colour, "nothing was sent yet")
}
