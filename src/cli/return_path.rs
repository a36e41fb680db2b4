//! `postern domain return-path`.

use super::Session;
use super::client::Fault;
use super::output::{or_dash, when};
use crate::mail::{Domain, printable};
use crate::web::{NewReturnPathJson, ReturnPathJson};

/// What is asked of it.
pub(super) struct Asked<'a> {
    pub(super) name: Option<&'a Domain>,
    pub(super) status: bool,
    pub(super) verify: bool,
    pub(super) off: bool,
}

/// Carries it out.
pub(super) async fn run(session: &Session, path: &str, asked: &Asked<'_>) -> Result<(), Fault> {
    if asked.off {
        let answer = session.client.delete(path).await?;
        return session.done(&answer, "removed: mail of the domain is sent with the client's reverse-path");
    }
    let shown = if asked.status {
        session.client.get(path).await?
    } else if asked.verify {
        session.client.post(&format!("{path}/verify"), &()).await?
    } else {
        session.client.put(path, &NewReturnPathJson { name: asked.name.cloned() }).await?
    };
    session.show(&shown, text)
}

fn text(session: &Session, path: ReturnPathJson) -> String {
    let mut text = format!(
        "Return-path  {}\nState        {}\nLast check   {}\n",
        path.name,
        path.state,
        or_dash(path.last_check.map(|moment| when(&moment, session.now))),
    );
    for (what, problem) in [("MX           ", &path.mx_problem), ("SPF          ", &path.spf_problem)] {
        if let Some(problem) = problem {
            text.push_str(&format!("{what}{}\n", printable(problem)));
        }
    }
    if path.records.iter().any(|record| record.published != Some(true)) {
        text.push_str("\nPublish these records, then verify:\n");
        path.records.iter().for_each(|record| text.push_str(&format!("{}\n", record.zone_line)));
    }
    text
}
