//! `postern suppression`.

use serde_json::Value;

use super::arguments::{ListName, Suppression};
use super::client::{Fault, encoded};
use super::output::{Table, when};
use super::{Session, rows, transfer};
use crate::web::{
    NewSuppressionJson, SuppressionChangesJson, SuppressionJson, SuppressionRulesChangeJson, SuppressionRulesJson,
};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Suppression) -> Result<(), Fault> {
    match command {
        Suppression::Add { tenant, subjects, reason, expires, note, list } => {
            let add = subjects.iter().map(|subject| new(subject, (reason, expires, note)));
            let add = add.collect::<Result<Vec<_>, Fault>>()?;
            let mail = if list.white { "mails" } else { "never mails" };
            if let [only] = add.as_slice() {
                let made = session.client.post(&path(tenant, "", list, &[]), only).await?;
                return session.show(&made, |_, entry: SuppressionJson| {
                    format!("tenant {tenant} {mail} {} from now on\n", entry.subject)
                });
            }
            let changes = SuppressionChangesJson { add, ..SuppressionChangesJson::default() };
            let answer = session.client.patch(&path(tenant, "", list, &[]), &changes).await?;
            session.done(&answer, &format!("{} entries added, the others were there", answer["added"]))
        }
        Suppression::Remove { tenant, subjects, list } => {
            if let [only] = subjects.as_slice() {
                let one = format!("/{}", encoded(only));
                let answer = session.client.delete(&path(tenant, &one, list, &[])).await?;
                return session.done(&answer, &format!("{only} is off that list of tenant {tenant}"));
            }
            let changes = SuppressionChangesJson { remove: subjects.clone(), ..SuppressionChangesJson::default() };
            let answer = session.client.patch(&path(tenant, "", list, &[]), &changes).await?;
            session.done(&answer, &format!("{} entries removed, the others were not there", answer["removed"]))
        }
        Suppression::Import { tenant, file, reason, list } => {
            transfer::import(session, tenant, file, &query(list, &[("reason", reason.as_deref())])).await
        }
        Suppression::Export { tenant, file, hashed, list } => {
            let form = [("form", hashed.then_some("hashed"))];
            transfer::export(session, tenant, file, &query(list, &form)).await
        }
        Suppression::Rules { tenant, hard_bounces, scope, hard_bounce_days, complaint_days, unsubscribe_days } => {
            let scope = scope.as_deref().map(|word| serde_json::from_value(word.into())).transpose();
            let scope = scope.map_err(|error: serde_json::Error| Fault::Failed(format!("--scope: {error}")))?;
            let change = SuppressionRulesChangeJson {
                hard_bounces: *hard_bounces,
                scope,
                hard_bounce_days: *hard_bounce_days,
                complaint_days: *complaint_days,
                unsubscribe_days: *unsubscribe_days,
            };
            let path = format!("/tenants/{}/suppression-rules", encoded(tenant));
            let shown = match change == SuppressionRulesChangeJson::default() {
                true => session.client.get(&path).await?,
                false => session.client.patch(&path, &change).await?,
            };
            session.show(&shown, |_, rules: SuppressionRulesJson| rules_text(&rules))
        }
        Suppression::Operations { tenant, kind, state, text, limit } => {
            let asked = [("tenant", tenant), ("kind", kind), ("state", state), ("text", text)];
            transfer::list(session, &asked, *limit).await
        }
        Suppression::Cancel { tenant, operation } => transfer::cancel(session, tenant, operation).await,
        Suppression::List { tenant, beginning, reason, list } => {
            let search = [("beginning", beginning.as_deref()), ("reason", reason.as_deref())];
            let list = session.client.list(&path(tenant, "", list, &search), usize::MAX).await?;
            session.show(&list, table)
        }
    }
}

fn rules_text(rules: &SuppressionRulesJson) -> String {
    let scope = serde_json::to_value(rules.scope).unwrap_or_default();
    let whose = match scope.as_str() {
        Some("account") => "the SMTP account that sent the message",
        _ => "all of the tenant's mail",
    };
    let good = |days: u32| if days == 0 { "for ever".to_owned() } else { format!("{days} days") };
    format!(
        "Stopped after  {} hard bounces\nStopped for    {whose}\nHard bounces   {}\nComplaints     {}\nUnsubscribed   {}\n",
        rules.hard_bounces,
        good(rules.hard_bounce_days),
        good(rules.complaint_days),
        good(rules.unsubscribe_days),
    )
}

fn new(
    subject: &str,
    (reason, expires, note): (&Option<String>, &Option<String>, &String),
) -> Result<NewSuppressionJson, Fault> {
    let read = |word: &String| serde_json::from_value(Value::from(word.as_str()));
    let reason = reason.as_ref().map(read).transpose();
    let reason = reason.map_err(|error: serde_json::Error| Fault::Failed(format!("--reason: {error}")))?;
    Ok(NewSuppressionJson { subject: subject.to_owned(), reason, expires: expires.clone(), note: note.clone() })
}

fn path(tenant: &str, more: &str, list: &ListName, search: &[(&str, Option<&str>)]) -> String {
    format!("/tenants/{}/suppressions{more}{}", encoded(tenant), query(list, search))
}

fn query(list: &ListName, search: &[(&str, Option<&str>)]) -> String {
    let colour = list.white.then_some("white");
    let all = [("list", colour), ("smtp_account", list.account.as_deref())].into_iter().chain(search.iter().copied());
    let given: Vec<String> =
        all.filter_map(|(name, value)| value.map(|value| format!("{name}={}", encoded(value)))).collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

fn table(session: &Session, list: Value) -> String {
    let entries: Vec<SuppressionJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ADDRESS OR DOMAIN", "REASON", "BY", "SINCE", "UNTIL", "NOTE"]);
    for entry in entries {
        let word = |value: Value| value.as_str().unwrap_or("-").replace('_', " ");
        let until = match (&entry.expires, entry.lapsed) {
            (_, true) => "lapsed".to_owned(),
            (Some(expires), false) => when(expires, session.now),
            (None, false) => "-".to_owned(),
        };
        table.row([
            entry.subject,
            word(serde_json::to_value(entry.reason).unwrap_or_default()),
            word(serde_json::to_value(entry.origin).unwrap_or_default()),
            when(&entry.added, session.now),
            until,
            entry.note,
        ]);
    }
    table.text(session.colour, "the list is empty")
}
