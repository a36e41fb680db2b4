//! `postern status`.

use super::Session;
use super::client::Fault;
use super::output::{size, when};
use crate::web::StatusJson;

/// Shows it; fails if storage has stopped, so that scripts may rely on the exit code.
pub async fn run(session: &Session) -> Result<(), Fault> {
    let value = session.client.get("/status").await?;
    let status: StatusJson = super::output::read(&value)?;
    session.show(&value, text)?;
    match (status.storage.as_str(), status.storage_detail) {
        ("stopped", detail) => Err(Fault::Failed(format!("storage has stopped: {}", detail.unwrap_or_default()))),
        _ => Ok(()),
    }
}

fn text(session: &Session, status: StatusJson) -> String {
    let colour = session.colour;
    let storage = match status.storage.as_str() {
        "accepting" => colour.green("accepting mail"),
        "low_space" => colour.yellow("low on space: no new mail is taken"),
        _ => colour.red("stopped: restart the daemon"),
    };
    let missing = match status.vips_missing.as_slice() {
        [] => String::new(),
        names => colour.yellow(&format!(", not on this host: {}", names.join(", "))),
    };
    format!(
        "postern {} on {}\nRunning      since {}\nStorage      {storage}{}\nMail kept    {} in files of {}\n\
         Tenants      {}\nVirtual IPs  {}{missing}\n",
        status.version,
        status.hostname,
        when(&status.started, session.now),
        status.storage_detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default(),
        size(status.body_bytes),
        size(status.file_bytes),
        status.tenants,
        status.vips,
    )
}
