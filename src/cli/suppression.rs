//! `postern suppression`.

use super::arguments::Suppression;
use super::client::{Fault, encoded};
use super::output::{Table, when};
use super::{Session, rows};
use crate::web::{NewSuppressionJson, SuppressionJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Suppression) -> Result<(), Fault> {
    match command {
        Suppression::Add { tenant, subject, note } => {
            let new = NewSuppressionJson { subject: subject.clone(), note: note.clone() };
            let made = session.client.post(&path(tenant), &new).await?;
            session.show(&made, |_, entry: SuppressionJson| {
                format!("tenant {tenant} never mails {} from now on\n", entry.subject)
            })
        }
        Suppression::Remove { tenant, subject } => {
            let answer = session.client.delete(&format!("{}/{}", path(tenant), encoded(subject))).await?;
            session.done(&answer, &format!("tenant {tenant} may mail {subject} again"))
        }
        Suppression::List { tenant } => {
            let list = session.client.list(&path(tenant), usize::MAX).await?;
            session.show(&list, table)
        }
    }
}

fn path(tenant: &str) -> String {
    format!("/tenants/{}/suppressions", encoded(tenant))
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let entries: Vec<SuppressionJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["NEVER MAILED", "REASON", "BY", "SINCE", "NOTE"]);
    for entry in entries {
        let word = |value: serde_json::Value| value.as_str().unwrap_or("-").replace('_', " ");
        table.row([
            entry.subject,
            word(serde_json::to_value(entry.reason).unwrap_or_default()),
            word(serde_json::to_value(entry.origin).unwrap_or_default()),
            when(&entry.added, session.now),
            entry.note,
        ]);
    }
    table.text(session.colour, "the list is empty")
}
