//! Files that come and go: `postern suppression import`, `export`, `operations`, `cancel`, `postern tenant export`.
//!
//! Easy to get wrong: whoever interrupts the command does not interrupt the daemon; the operation goes on.

use std::path::Path;
use std::time::Duration;

use super::client::{Fault, encoded};
use super::output::{self, Table, when};
use super::{Session, rows};
use crate::web::OperationJson;

/// How often it is asked how far the daemon is.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// Sends a file, waits until it is dealt with, and prints what was rejected.
pub async fn import(session: &Session, tenant: &str, file: &Path, query: &str) -> Result<(), Fault> {
    let unread = |error| Fault::Failed(format!("{}: {error}", file.display()));
    let opened = tokio::fs::File::open(file).await.map_err(unread)?;
    let path = format!("/tenants/{}/suppression-imports{query}", encoded(tenant));
    let begun = session.client.upload_file(&path, "text/csv", opened).await?;
    let (value, done) = wait(session, tenant, begun).await?;
    if done.rejected > 0 && !session.is_json() {
        let path = format!("{}/rejected", path_of(tenant, &done.id));
        let mut rejected = Vec::new();
        session.client.download(&path, &mut rejected).await?;
        output::print(&String::from_utf8_lossy(&rejected));
    }
    let OperationJson { lines, added, present, rejected, .. } = done;
    session.done(&value, &format!("{lines} lines: {added} added, {present} were there, {rejected} rejected"))
}

/// Has a list written and fetches it.
pub async fn export(session: &Session, tenant: &str, file: &Path, query: &str) -> Result<(), Fault> {
    fetch(session, tenant, file, (&format!("suppression-exports{query}"), "entries")).await
}

/// Has everything of a tenant written and fetches it.
pub async fn export_tenant(session: &Session, tenant: &str, file: &Path) -> Result<(), Fault> {
    fetch(session, tenant, file, ("export", "lines")).await
}

async fn fetch(session: &Session, tenant: &str, file: &Path, (what, parts): (&str, &str)) -> Result<(), Fault> {
    let unwritten = |error| Fault::Failed(format!("{}: {error}", file.display()));
    let mut out = tokio::fs::OpenOptions::new();
    let mut out = out.write(true).create_new(true).mode(0o600).open(file).await.map_err(unwritten)?;
    let path = format!("/tenants/{}/{what}", encoded(tenant));
    let begun = session.client.upload(&path, "text/csv", Vec::new()).await?;
    let (value, done) = wait(session, tenant, begun).await?;
    session.client.download(&format!("{}/result", path_of(tenant, &done.id)), &mut out).await?;
    out.sync_all().await.map_err(unwritten)?;
    session.done(&value, &format!("{} {parts} written to {}", done.written, file.display()))
}

/// Lists operations that fit.
pub async fn list(session: &Session, asked: &[(&str, &Option<String>)], most: usize) -> Result<(), Fault> {
    let given = asked.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_deref()?))));
    let path = format!("/operations?{}", given.collect::<Vec<_>>().join("&"));
    let list = session.client.list(path.trim_end_matches('?'), most.max(1)).await?;
    session.show(&list, |session, list: serde_json::Value| {
        let mut table =
            Table::new(&["ID", "TENANT", "WHAT", "LIST", "BEGUN", "STATE", "LINES", "ADDED", "REJECTED", "WRITTEN"]);
        let operations: Vec<OperationJson> = rows(&list).unwrap_or_default();
        for own in operations {
            let colour = if own.list == crate::web::Colour::White { "white" } else { "black" };
            let list = own.smtp_account.map_or_else(|| colour.to_owned(), |login| format!("{colour} of {login}"));
            let progress = own.progress.filter(|_| own.state == "running").map(|part| format!(" {part} %"));
            table.row([
                own.id,
                own.tenant,
                own.kind,
                list,
                when(&own.began, session.now),
                own.why.unwrap_or(own.state) + &progress.unwrap_or_default(),
                own.lines.to_string(),
                own.added.to_string(),
                own.rejected.to_string(),
                own.written.to_string(),
            ]);
        }
        table.text(session.colour, "there are none")
    })
}

/// Stops one.
pub async fn cancel(session: &Session, tenant: &str, operation: &str) -> Result<(), Fault> {
    let path = format!("{}/cancel", path_of(tenant, operation));
    let answer = session.client.upload(&path, "application/json", Vec::new()).await?;
    session.done(&answer, &format!("operation {operation} stops; what it did stays"))
}

fn path_of(tenant: &str, operation: &str) -> String {
    format!("/tenants/{}/operations/{}", encoded(tenant), encoded(operation))
}

async fn wait(
    session: &Session,
    tenant: &str,
    mut value: serde_json::Value,
) -> Result<(serde_json::Value, OperationJson), Fault> {
    loop {
        let operation: OperationJson = output::read(&value)?;
        match operation.state.as_str() {
            "done" => return Ok((value, operation)),
            "waiting" | "running" => {}
            state => {
                let why = operation.why.map(|why| format!(": {why}")).unwrap_or_default();
                return Err(Fault::Failed(format!("operation {} {state}{why}", operation.id)));
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
        value = session.client.get(&path_of(tenant, &operation.id)).await?;
    }
}
