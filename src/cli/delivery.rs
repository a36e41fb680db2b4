//! `postern delivery`: what is left alone for now, because an operator said so.

use clap::{Args, Subcommand};

use super::client::Fault;
use super::output::{self, Table, or_dash, when};
use super::{Session, rows};
use crate::mail::{Domain, printable};
use crate::web::{DestinationRuleJson, NewSuspensionJson, ResumedJson, SuspensionJson};

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
    /// Take no new mail of something (451 4.3.2), and send what is queued. It survives a restart
    Drain {
        #[command(flatten)]
        what: Suspended,
        /// Why, in your own words
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// End by itself after this, such as 30m, 2h or 1d; without it, only by `resume`
        #[arg(long = "for", value_name = "SPAN", value_parser = super::output::read_span)]
        lasting: Option<u64>,
    },
    /// End a suspension or a drain; for a site, also its pause after failures
    Resume(Suspended),
    /// List what is suspended or drained
    List,
    /// Give up mail to some destinations at once; senders are told the reason
    Block {
        #[command(flatten)]
        destination: DestinationArgs,
        /// Why; senders of such mail read it
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Send mail to some destinations by a relay
    Reroute {
        #[command(flatten)]
        destination: DestinationArgs,
        /// The relay's id, as `postern route list` prints it; see `route add --on-demand`
        #[arg(long, value_name = "ROUTE")]
        route: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// List destinations that are blocked or rerouted
    Rules,
    /// Take back a rule about destinations
    Unblock {
        /// Its number, as `delivery rules` prints it
        number: u64,
    },
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct DestinationArgs {
    /// Domains with a best mail host of this name; `*.parked.example` is all names below
    #[arg(long, value_name = "HOST")]
    pub mx: Option<String>,
    /// Domains with a best mail host in this network
    #[arg(long, value_name = "CIDR")]
    pub network: Option<String>,
    /// This recipient domain and those below
    #[arg(long, value_name = "DOMAIN")]
    pub to: Option<Domain>,
    /// Recipient domains of this provider
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
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
    /// Mail to this provider, or to this site, as `queue why` names it
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
    /// Mail of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Mail handed in with this SMTP account, which still takes mail
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
}

/// Carries out one of them.
pub async fn run(session: &Session, command: &Delivery) -> Result<(), Fault> {
    match command {
        Delivery::Suspend { what, reason, lasting } => halt(session, what, (reason, *lasting), false).await,
        Delivery::Drain { what, reason, lasting } => halt(session, what, (reason, *lasting), true).await,
        Delivery::Resume(what) => {
            let answer = session.client.post("/suspensions/resume", &named(what)).await?;
            let resumed: ResumedJson = output::read(&answer)?;
            if !resumed.was_suspended && what.site.is_none() {
                let text = format!(
                    "{} was neither suspended nor drained; see: postern delivery list",
                    printable(&resumed.what)
                );
                return Err(Fault::Failed(text));
            }
            session.show(&answer, |_, resumed: ResumedJson| format!("{} goes on\n", printable(&resumed.what)))
        }
        Delivery::List => {
            let list = session.client.list("/suspensions", usize::MAX).await?;
            session.show(&list, table)
        }
        Delivery::Block { destination, reason } => add_rule(session, destination, None, reason).await,
        Delivery::Reroute { destination, route, reason } => add_rule(session, destination, Some(route), reason).await,
        Delivery::Rules => {
            let list = session.client.list("/destination-rules", usize::MAX).await?;
            session.show(&list, rules_table)
        }
        Delivery::Unblock { number } => {
            let answer = session.client.delete(&format!("/destination-rules/{number}")).await?;
            session.done(&answer, &format!("rule {number} is gone; mail goes its usual way within a minute"))
        }
    }
}

async fn halt(
    session: &Session,
    what: &Suspended,
    (reason, lasting): (&str, Option<u64>),
    drain: bool,
) -> Result<(), Fault> {
    let asked = NewSuspensionJson { drain, reason: reason.to_owned(), seconds: lasting, ..named(what) };
    let made = session.client.post("/suspensions", &asked).await?;
    session.show(&made, |session, made: SuspensionJson| {
        let ends = made
            .until
            .map_or_else(|| "until it is resumed".to_owned(), |until| format!("until {}", when(&until, session.now)));
        let what = printable(&made.what);
        if made.drains {
            format!("no new {what} is taken {ends}; what is queued goes out\n")
        } else {
            format!("{what} is suspended {ends}; attempts under way finish\n")
        }
    })
}

async fn add_rule(session: &Session, of: &DestinationArgs, route: Option<&String>, reason: &str) -> Result<(), Fault> {
    let asked = serde_json::json!({
        "mx": of.mx, "network": of.network, "to": of.to, "provider": of.provider, "route": route, "reason": reason,
    });
    let made = session.client.post("/destination-rules", &asked).await?;
    session.show(&made, |_, made: DestinationRuleJson| {
        let becomes = made.route.map_or_else(|| "given up".to_owned(), |route| format!("sent by route {route}"));
        format!("rule {}: mail for {} is {becomes}, within a minute\n", made.number, printable(&made.what))
    })
}

fn rules_table(session: &Session, list: serde_json::Value) -> String {
    let rules: Vec<DestinationRuleJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["RULE", "DESTINATIONS", "DOES", "SINCE", "BY", "REASON"]);
    for rule in rules {
        table.row([
            rule.number.to_string(),
            printable(&rule.what),
            rule.route.map_or(rule.act, |route| format!("reroute {route}")),
            when(&rule.since, session.now),
            printable(&rule.by),
            printable(&rule.reason),
        ]);
    }
    table.text(session.colour, "no destination is blocked or rerouted")
}

fn named(what: &Suspended) -> NewSuspensionJson {
    NewSuspensionJson {
        all: what.all,
        to: what.to.clone(),
        vip: what.vip.clone(),
        site: what.site.clone(),
        tenant: what.tenant.clone(),
        smtp_account: what.account.clone(),
        ..NewSuspensionJson::default()
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let suspensions: Vec<SuspensionJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["WHAT", "IS", "SINCE", "UNTIL", "BY", "REASON"]);
    for one in suspensions {
        table.row([
            printable(&one.what),
            if one.drains { "drained" } else { "suspended" }.to_owned(),
            when(&one.since, session.now),
            or_dash(one.until.map(|until| when(&until, session.now))),
            printable(&one.by),
            printable(&one.reason),
        ]);
    }
    table.text(session.colour, "nothing is suspended or drained")
}
