//! `postern tls`: what is demanded of TLS towards recipient domains, and by whom.

use clap::{Subcommand, ValueEnum};

use super::client::{Fault, encoded};
use super::output::{Table, or_dash, when};
use super::{Session, rows};
use crate::mail::{Domain, printable};
use crate::web::{NewTlsRuleJson, TlsFailingJson, TlsPolicyJson, TlsReportJson, TlsReportRowJson, TlsRuleJson};

#[derive(Debug, Subcommand)]
pub enum Tls {
    /// List what was set for recipient domains
    List,
    /// Demand, or waive, TLS for one recipient domain; it holds within a minute
    Set {
        /// The recipient domain
        domain: Domain,
        /// What is demanded
        demand: Demand,
    },
    /// Take back what was set for a recipient domain
    Clear {
        /// The recipient domain
        domain: Domain,
    },
    /// List mail hosts with which TLS fails, and until when they are spoken to in the clear
    Failing,
    /// List what is counted for reports to recipient domains about TLS, by domain and day (tls_reports.send)
    Reports,
    /// Show the report about TLS as it would be sent to a recipient domain now
    Report {
        /// The recipient domain
        domain: Domain,
    },
    /// Show what was set for a recipient domain, the MTA-STS policy kept for it, and the best TLS it ever gave
    Show {
        /// The recipient domain
        domain: Domain,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Demand {
    /// Nothing, not even what its own policies demand: mail may leave in plain text
    Plaintext,
    /// Encryption or nothing, with any certificate
    Encrypted,
    /// A certificate that verifies, or nothing
    Verified,
}

impl Demand {
    fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Encrypted => "encrypted",
            Self::Verified => "verified",
        }
    }
}

/// Carries out one of them.
pub async fn run(session: &Session, command: &Tls) -> Result<(), Fault> {
    match command {
        Tls::List => session.show(&session.client.list("/tls-rules", usize::MAX).await?, table),
        Tls::Set { domain, demand } => {
            let asked = NewTlsRuleJson { domain: domain.clone(), tls: demand.word().to_owned() };
            let made = session.client.post("/tls-rules", &asked).await?;
            session.show(&made, |_, made: TlsRuleJson| format!("mail to {}: {}\n", made.domain, made.tls))
        }
        Tls::Clear { domain } => {
            let answer = session.client.delete(&format!("/tls-rules/{}", encoded(domain.as_str()))).await?;
            session.done(&answer, &format!("nothing is set for {domain} any more"))
        }
        Tls::Failing => session.show(&session.client.list("/tls-failing", usize::MAX).await?, failing),
        Tls::Reports => session.show(&session.client.list("/tls-reports", usize::MAX).await?, reports),
        Tls::Report { domain } => {
            let shown = session.client.get(&format!("/tls-reports/{}", encoded(domain.as_str()))).await?;
            session.show(&shown, report)
        }
        Tls::Show { domain } => {
            let shown = session.client.get(&format!("/tls-policies/{}", encoded(domain.as_str()))).await?;
            session.show(&shown, one)
        }
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let rules: Vec<TlsRuleJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["DOMAIN", "TLS", "SINCE", "BY"]);
    for rule in rules {
        table.row([rule.domain, rule.tls, when(&rule.since, session.now), rule.by]);
    }
    table.text(session.colour, "nothing is set: delivery.tls and the domains' own policies decide")
}

fn failing(session: &Session, list: serde_json::Value) -> String {
    let hosts: Vec<TlsFailingJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["HOST", "IN THE CLEAR UNTIL", "BECAUSE"]);
    for known in hosts {
        table.row([known.host, when(&known.until, session.now), printable(&known.reason)]);
    }
    table.text(session.colour, "TLS fails with no host")
}

fn reports(session: &Session, list: serde_json::Value) -> String {
    let days: Vec<TlsReportRowJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["DATE", "DOMAIN", "STATE", "GOOD", "FAILED", "WHEN", "TO"]);
    for day in days {
        let at = day.sent.or(day.next).map(|at| when(&at, session.now));
        let what = day.error.unwrap_or_else(|| day.to.join(" "));
        let (good, failed) = (day.successful.to_string(), day.failed.to_string());
        table.row([day.date, day.domain, day.state, good, failed, or_dash(at), printable(&what)]);
    }
    table.text(session.colour, "nothing is counted; tls_reports.send switches it on")
}

/// JSON for machines and people alike: it is what the domain gets.
fn report(_: &Session, shown: TlsReportJson) -> String {
    let text = serde_json::to_string_pretty(&shown.report).unwrap_or_default();
    format!("{}\n", text.lines().map(printable).collect::<Vec<_>>().join("\n"))
}

fn one(session: &Session, known: TlsPolicyJson) -> String {
    let rule = known.rule.map_or_else(|| "nothing".to_owned(), |rule| format!("{} (by {})", rule.tls, rule.by));
    let mut text = format!("Domain   {}\nSet      {}\n", known.domain, printable(&rule));
    match known.mta_sts {
        None => text.push_str("MTA-STS  no policy is kept\n"),
        Some(policy) => {
            let (fetched, until) = (when(&policy.fetched, session.now), when(&policy.until, session.now));
            text.push_str(&format!(
                "MTA-STS  {}, id {}, fetched {fetched}, good until {until}\nHosts    {}\n",
                policy.mode,
                printable(&policy.id),
                printable(&policy.mx.join(", ")),
            ));
        }
    }
    match known.seen {
        None => text.push_str("Seen     no mail went there\n"),
        Some(seen) => text.push_str(&format!(
            "Seen     best {} ({}, since {}), last {}: {}\n",
            seen.best,
            printable(&seen.best_host),
            when(&seen.since, session.now),
            seen.last,
            printable(&seen.last_words),
        )),
    }
    text
}
