//! `postern mailbox`: letters to postmaster, abuse and fbl of this server.

use clap::Subcommand;

use super::client::{Fault, encoded};
use super::output::{Table, when};
use super::{Session, rows};
use crate::mail::printable;
use crate::web::LetterJson;

#[derive(Debug, Subcommand)]
pub enum Mailbox {
    /// List letters, newest first
    List {
        /// So many at most
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Show a letter as it came
    Show {
        /// Its id
        id: String,
    },
    /// Remove letters
    Delete {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Carries out one of them.
pub async fn run(session: &Session, command: &Mailbox) -> Result<(), Fault> {
    match command {
        Mailbox::List { limit } => session.show(&session.client.list("/mailbox", *limit).await?, table),
        Mailbox::Show { id } => {
            let letter = session.client.get(&format!("/mailbox/{}", encoded(id))).await?;
            session.show(&letter, one)
        }
        Mailbox::Delete { ids } => {
            for id in ids {
                session.client.delete(&format!("/mailbox/{}", encoded(id))).await?;
            }
            session.done(&serde_json::Value::Null, &format!("{} removed", ids.len()))
        }
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let letters: Vec<LetterJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "CAME", "TO", "FROM", "SUBJECT", "OCTETS"]);
    for letter in letters {
        let size = letter.size_bytes.to_string();
        table.row([letter.id, when(&letter.at, session.now), letter.to, letter.from, letter.subject, size]);
    }
    table.text(session.colour, "no letters")
}

/// A stranger wrote it: nothing of it may move the cursor or change colours.
fn one(session: &Session, letter: LetterJson) -> String {
    let mut text = format!(
        "Letter   {}\nCame     {}\nTo       {}\nFrom     {}\nPeer     {}\nOctets   {}{}\n\n",
        letter.id,
        when(&letter.at, session.now),
        printable(&letter.to),
        printable(&letter.from),
        printable(&letter.peer),
        letter.size_bytes,
        if letter.cut { " (the beginning is shown)" } else { "" },
    );
    for line in letter.text.unwrap_or_default().lines() {
        text.push_str(&printable(line.trim_end()));
        text.push('\n');
    }
    text
}
