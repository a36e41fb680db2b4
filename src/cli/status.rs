//! `postern status`.

use super::Session;
use super::client::Fault;
use super::output::{size, when};
use crate::mail::printable;
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
    let mut text = format!(
        "postern {} on {}\nRunning      since {}\nStorage      {storage}{}\nLoad         {}\nMail kept    {} in files of {}\n\
         Queue        {}\nTenants      {}\nVirtual IPs  {}{missing}\n",
        status.version,
        status.hostname,
        when(&status.started, session.now),
        status.storage_detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default(),
        load(session, &status),
        size(status.body_bytes),
        size(status.file_bytes),
        queue(&status),
        status.tenants,
        status.vips,
    );
    text.push_str(&format!("Backup       {}\n", backup(session, &status)));
    if !status.accounts_paused.is_empty() {
        let paused = colour.yellow(&status.accounts_paused.join(", "));
        text.push_str(&format!("Paused       {paused}; see: postern breaker list\n"));
    }
    for suspension in &status.suspensions {
        text.push_str(&format!("Delivery     {}\n", colour.yellow(&printable(suspension))));
    }
    text
}

fn backup(session: &Session, status: &StatusJson) -> String {
    let last = status.last_backup.as_ref().map(|at| format!("the last finished {}", when(at, session.now)));
    let last = last.unwrap_or_else(|| "none was made yet".to_owned());
    if status.backup_overdue { session.colour.yellow(&format!("{last}: too long ago")) } else { last }
}

fn load(session: &Session, status: &StatusJson) -> String {
    let mut parts = Vec::new();
    if let (Some(used), Some(limit)) = (status.memory_used, status.memory_limit) {
        let of = status.memory_limit_of.as_deref().unwrap_or("the machine");
        parts.push(format!("memory {} of {} ({of})", size(used), size(limit)));
    }
    if let (Some(open), Some(limit)) = (status.descriptors_open, status.descriptors_limit) {
        parts.push(format!("descriptors {open} of {limit}"));
    }
    if let Some(shortage) = &status.shortage {
        parts.push(session.colour.yellow(&format!("short of {shortage}: new sessions are refused")));
    }
    if parts.is_empty() { "unknown".to_owned() } else { parts.join(", ") }
}

fn queue(status: &StatusJson) -> String {
    let some = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        more => Some(format!("{more} {many}")),
    };
    let parts = [
        some(status.queue_lanes, "lane with waiting mail", "lanes with waiting mail"),
        some(status.queue_in_flight, "attempt running", "attempts running"),
        some(status.queue_notices, "notice to a sender owed", "notices to senders owed"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "nothing waits".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_told_in_words_and_an_empty_one_says_so() {
        let mut status = StatusJson {
            version: String::new(),
            hostname: String::new(),
            started: String::new(),
            storage: "accepting".into(),
            storage_detail: None,
            shortage: None,
            memory_used: None,
            memory_limit: None,
            memory_limit_of: None,
            descriptors_open: None,
            descriptors_limit: None,
            body_bytes: 0,
            file_bytes: 0,
            queue_lanes: 0,
            queue_in_flight: 0,
            queue_notices: 0,
            accounts_paused: Vec::new(),
            suspensions: Vec::new(),
            tenants: 0,
            vips: 0,
            vips_missing: Vec::new(),
            last_backup: None,
            backup_overdue: false,
        };
        assert_eq!(queue(&status), "nothing waits");
        (status.queue_lanes, status.queue_notices) = (2, 1);
        assert_eq!(queue(&status), "2 lanes with waiting mail, 1 notice to a sender owed");
    }
}
