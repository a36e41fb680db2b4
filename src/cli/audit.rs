//! `postern audit`.

use serde_json::Value;

use super::arguments::Audit;
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, print, read, when};
use super::{Session, rows};
use crate::web::{AuditEntryJson, AuditVerifiedJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Audit) -> Result<(), Fault> {
    match command {
        Audit::List { tenant, limit } => {
            let of = tenant.as_ref().map(|name| format!("?tenant={}", encoded(name))).unwrap_or_default();
            let list = session.client.list(&format!("/audit{of}"), *limit).await?;
            session.show(&list, table)
        }
        Audit::Verify { tenant, expect } => {
            let mut query: Vec<String> = tenant.iter().map(|name| format!("tenant={}", encoded(name))).collect();
            if let Some(expect) = expect {
                let (number, hash) = expect.split_once(':').ok_or_else(|| {
                    Fault::Failed("--expect is NUMBER:HASH, as an earlier audit verify printed it".to_owned())
                })?;
                query.push(format!("number={}&hash={}", encoded(number), encoded(hash)));
            }
            let path = format!("/audit/verify?{}", query.join("&"));
            let answer = session.client.get(&path).await?;
            let verified: AuditVerifiedJson = read(&answer)?;
            if session.is_json() {
                session.done(&answer, "")?;
            } else if verified.whole {
                print(&format!(
                    "the audit log is whole: {0} entries\nKeep this elsewhere, to compare with later (--expect): {0}:{1}\n",
                    verified.count, verified.hash
                ));
            }
            match verified.broken {
                None => Ok(()),
                Some(what) => Err(Fault::Failed(format!(
                    "the audit log was tampered with or is damaged: {what}; sound up to entry {}",
                    verified.count
                ))),
            }
        }
    }
}

fn table(session: &Session, list: Value) -> String {
    let entries: Vec<AuditEntryJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["NO", "WHEN", "WHO", "FROM", "ACT", "SUBJECT", "CHANGES"]);
    for entry in entries {
        let change = |before: Option<String>, after: Option<String>| {
            format!("{} -> {}", before.unwrap_or_else(|| "none".into()), after.unwrap_or_else(|| "none".into()))
        };
        let changes = entry.changes.into_iter();
        let changes: Vec<String> =
            changes.map(|one| format!("{}: {}", one.field, change(one.before, one.after))).collect();
        table.row([
            entry.number.to_string(),
            when(&entry.at, session.now),
            entry.actor,
            or_dash(entry.from),
            entry.act,
            entry.subject,
            changes.join("; "),
        ]);
    }
    table.text(session.colour, "nothing was changed yet")
}
