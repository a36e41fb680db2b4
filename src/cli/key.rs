//! `postern key`.

use serde_json::Value;

use super::arguments::Key;
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, when};
use super::{Session, rows};
use crate::web::{KeyChangeJson, KeyJson, MadeKeyJson, NewKeyJson, RotationJson};

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
        Key::Show { id } => {
            let key = session.client.get(&format!("/keys/{}", encoded(id))).await?;
            session.show(&key, facts)
        }
        Key::Set { id, name, from, from_anywhere, expires } => {
            let change = KeyChangeJson {
                name: name.clone(),
                allowed_from: (*from_anywhere || !from.is_empty()).then(|| from.clone()),
                // For the API no end at all is an empty one.
                expires: expires.as_ref().map(|end| if end == "never" { String::new() } else { end.clone() }),
            };
            if change == KeyChangeJson::default() {
                return Err(Fault::Failed("nothing was given to change; see postern key set --help".to_owned()));
            }
            let key = session.client.patch(&format!("/keys/{}", encoded(id)), &change).await?;
            session.show(&key, facts)
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

fn facts(session: &Session, key: KeyJson) -> String {
    let listed = |all: Vec<String>, none: &str| if all.is_empty() { none.to_owned() } else { all.join(", ") };
    let used = key.last_used.map_or_else(|| "never".to_owned(), |at| when(&at, session.now));
    format!(
        "Id         {}\nTenant     {}\nName       {}\nScopes     {}\nFrom       {}\nDomains    {}\nEnds with  {}\n\
         Expires    {}\nMade       {} by {}\nLast used  {used}\n",
        key.id,
        key.tenant,
        key.name,
        key.scopes.join(" "),
        listed(key.allowed_from, "anywhere"),
        listed(key.domains, "all"),
        listed(key.endings, "-"),
        key.expires.unwrap_or_else(|| "never".to_owned()),
        when(&key.created, session.now),
        key.created_by,
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
