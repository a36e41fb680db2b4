//! `postern key`.

use serde_json::Value;

use super::arguments::Key;
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, when};
use super::{Session, rows};
use crate::web::{KeyJson, MadeKeyJson, NewKeyJson, RotationJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Key) -> Result<(), Fault> {
    match command {
        Key::Add { tenant, scope, name, from, domain, expires } => {
            let new = NewKeyJson {
                tenant: tenant.clone(),
                name: name.clone(),
                scopes: scope.clone(),
                allowed_from: from.clone(),
                domains: domain.clone(),
                expires: expires.clone(),
            };
            let made = session.client.post("/keys", &new).await?;
            session.show(&made, shown)
        }
        Key::List { tenant } => {
            let list = session.client.list(&format!("/keys?tenant={}", encoded(tenant)), usize::MAX).await?;
            session.show(&list, table)
        }
        Key::Rotate { id, overlap_hours } => {
            let asked = RotationJson { overlap_hours: Some(*overlap_hours) };
            let made = session.client.post(&format!("/keys/{}/rotate", encoded(id)), &asked).await?;
            session.show(&made, shown)
        }
        Key::Remove { id } => {
            let answer = session.client.delete(&format!("/keys/{}", encoded(id))).await?;
            session.done(&answer, &format!("key {id} is no longer good"))
        }
    }
}

fn shown(_: &Session, made: MadeKeyJson) -> String {
    let until = made.key.old_text_expires.map(|at| format!("The old text is good until {at}.\n")).unwrap_or_default();
    format!(
        "key {} for {}: {}\nIts text is shown this once; send it as Authorization: Bearer\n  {}\n{until}",
        made.key.id,
        made.key.tenant,
        made.key.scopes.join(" "),
        made.text
    )
}

fn table(session: &Session, list: Value) -> String {
    let keys: Vec<KeyJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "NAME", "SCOPES", "ENDS WITH", "EXPIRES", "LAST USED", "FROM"]);
    for key in keys {
        let used = key.last_used.map(|at| when(&at, session.now));
        let (scopes, endings) = (key.scopes.join(" "), key.endings.join(" "));
        table.row([
            key.id,
            key.name,
            scopes,
            endings,
            or_dash(key.expires),
            or_dash(used),
            or_dash(key.last_used_from),
        ]);
    }
    table.text(session.colour, "no keys yet; postern key add")
}
