//! `postern delivery`: what is left alone for now, because an operator said so.

use clap::{Args, Subcommand};

use super::client::Fault;
use super::output::{self, Table, or_dash, when};
use super::{Session, rows};
use crate::mail::{Domain, printable};
use crate::web::{NewSuspensionJson, ResumedJson, SuspensionJson};

#[derive(Debug, Subcommand)]
pub enum Delivery {
    /// Begin no new attempt for some mail: it is accepted and waits. It survives a restart
    Suspend {
        #[command(flatten)]
        what: Suspended,
        /// Why, in your own words: `queue why` shows it
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// End by itself after this, such as 30m, 2h or 1d; without it, only by `resume`
        #[arg(long = "for", value_name = "SPAN", value_parser = super::output::read_span)]
        lasting: Option<u64>,
    },
    /// End a suspension; for a site, also its pause after failures
    Resume(Suspended),
    /// List what is suspended
    List,
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Suspended {
    /// All mail
    #[arg(long)]
    pub all: bool,
    /// Mail to this recipient domain
    #[arg(long, value_name = "DOMAIN")]
    pub to: Option<Domain>,
    /// Mail that leaves by this virtual IP
    #[arg(long, value_name = "VIP")]
    pub vip: Option<String>,
    /// Mail to this site, as `queue why` names it
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
}

/// Carries out one of them.
pub async fn run(session: &Session, command: &Delivery) -> Result<(), Fault> {
    match command {
        Delivery::Suspend { what, reason, lasting } => {
            let asked = NewSuspensionJson { reason: reason.clone(), seconds: *lasting, ..named(what) };
            let made = session.client.post("/suspensions", &asked).await?;
            session.show(&made, |session, made: SuspensionJson| {
                let ends = made.until.map_or_else(
                    || "until it is resumed".to_owned(),
                    |until| format!("until {}", when(&until, session.now)),
                );
                format!("{} is suspended {ends}; attempts under way finish\n", printable(&made.what))
            })
        }
        Delivery::Resume(what) => {
            let answer = session.client.post("/suspensions/resume", &named(what)).await?;
            let resumed: ResumedJson = output::read(&answer)?;
            if !resumed.was_suspended && what.site.is_none() {
                let text = format!("{} was not suspended; see: postern delivery list", printable(&resumed.what));
                return Err(Fault::Failed(text));
            }
            session.show(&answer, |_, resumed: ResumedJson| format!("{} goes on\n", printable(&resumed.what)))
        }
        Delivery::List => {
            let list = session.client.list("/suspensions", usize::MAX).await?;
            session.show(&list, table)
        }
    }
}

fn named(what: &Suspended) -> NewSuspensionJson {
    NewSuspensionJson {
        all: what.all,
        to: what.to.clone(),
        vip: what.vip.clone(),
        site: what.site.clone(),
        ..NewSuspensionJson::default()
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let suspensions: Vec<SuspensionJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["SUSPENDED", "SINCE", "UNTIL", "BY", "REASON"]);
    for one in suspensions {
        table.row([
            printable(&one.what),
            when(&one.since, session.now),
            or_dash(one.until.map(|until| when(&until, session.now))),
            printable(&one.by),
            printable(&one.reason),
        ]);
    }
    table.text(session.colour, "nothing is suspended")
}
