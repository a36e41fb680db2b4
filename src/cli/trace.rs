//! `postern trace`: live sessions, line by line, until it is interrupted.

use super::Session;
use super::arguments::Trace;
use super::client::Fault;
use super::output;
use crate::mail::printable;
use crate::web::{NewTraceJson, TraceJson, TracedJson, TracedLineJson};

/// Follows.
pub async fn run(session: &Session, asked: &Trace) -> Result<(), Fault> {
    let new = NewTraceJson {
        direction: asked.direction.map(|direction| match direction {
            super::arguments::TraceDirection::In => "in".to_owned(),
            super::arguments::TraceDirection::Out => "out".to_owned(),
        }),
        tenant: asked.tenant.clone(),
        vip: asked.vip.clone(),
        peer: asked.peer,
        to: asked.to.clone(),
        address: asked.address.clone(),
    };
    let made: TraceJson = output::read(&session.client.post("/traces", &new).await?)?;
    let path = format!("/traces/{}", made.trace);
    loop {
        let answer = tokio::select! {
            answer = session.client.get(&path) => answer?,
            _ = tokio::signal::ctrl_c() => {
                session.client.delete(&path).await?;
                return Ok(());
            }
        };
        let traced: TracedJson = output::read(&answer)?;
        if session.is_json() {
            // One line each, so that a script may read along.
            for line in &traced.lines {
                output::print(&format!("{}\n", serde_json::to_string(line).unwrap_or_default()));
            }
            continue;
        }
        if traced.left_out > 0 {
            output::print(&format!("({} lines were left out)\n", traced.left_out));
        }
        traced.lines.iter().for_each(|line| output::print(&said(line)));
    }
}

fn said(line: &TracedLineJson) -> String {
    let arrow = match line.side.as_str() {
        "ours" => ">",
        "theirs" => "<",
        _ => " ",
    };
    let at = line.at.get(11..23).unwrap_or(&line.at);
    let with = line.to.as_deref().unwrap_or(&line.peer);
    let tenant = line.tenant.as_deref().unwrap_or("-");
    format!(
        "{at} {:>3}#{} {} {tenant} {} {arrow} {}\n",
        line.direction,
        line.session,
        line.vip,
        printable(with),
        printable(&line.text)
    )
}
