//! `postern top`: what happens at this moment, again and again.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::Session;
use super::arguments::Top;
use super::client::Fault;
use super::output::{self, Table, or_dash};
use crate::web::TopJson;

/// Back to the upper left corner, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows it until it is interrupted, or once.
pub async fn run(session: &Session, asked: &Top) -> Result<(), Fault> {
    loop {
        let answer = session.client.get("/top").await?;
        if !asked.once && !session.is_json() && std::io::stdout().is_terminal() {
            output::print(CLEAR);
        }
        session.show(&answer, page)?;
        if asked.once {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(asked.every)).await;
    }
}

fn page(session: &Session, top: TopJson) -> String {
    let mut text = format!(
        "{}\nLast minute  {} accepted, {} delivered, {} put off, {} given up\nQueue        {} messages, {} lanes, {} being tried\n",
        top.at,
        top.accepted,
        top.delivered,
        top.deferred,
        top.given_up,
        top.queue_messages,
        top.queue_lanes,
        top.queue_in_flight,
    );
    if top.suspensions > 0 || top.accounts_paused > 0 {
        text.push_str(&format!(
            "Stopped      {} suspensions, {} SMTP accounts\n",
            top.suspensions, top.accounts_paused
        ));
    }
    let millis = |took: Option<u64>| or_dash(took.map(|took| format!("{took} ms")));
    let mut table = Table::new(&[
        "PROVIDER",
        "CONNECTIONS",
        "DELIVERED/MIN",
        "PUT OFF",
        "GIVEN UP",
        "HALF IN",
        "99 % IN",
        "SLOWED",
        "PARKED",
    ]);
    for row in top.providers {
        table.row([
            row.provider,
            row.connections.to_string(),
            row.delivered.to_string(),
            row.deferred.to_string(),
            row.given_up.to_string(),
            millis(row.took_half_ms),
            millis(row.took_most_ms),
            row.slowed.to_string(),
            row.parked.to_string(),
        ]);
    }
    text + "\n" + &table.text(session.colour, "nothing goes out")
}
