//! `postern domain`. Records are printed twice: in fields to paste into a provider's form, and as
//! lines of a zone file.

use serde_json::{Value, json};

use super::arguments::{Cover, DomainCommand};
use super::client::{Fault, encoded};
use super::output::{Colour, Table, or_dash, print, print_json, read, when};
use super::{Session, return_path, rows};
use crate::mail::Domain;
use crate::web::{
    DomainChangeJson, DomainJson, INSTANCE_NAME, InspectionJson, NewDomainJson, ReadinessJson, RecordJson, TenantJson,
    VerificationJson,
};

/// Carries out one of them.
pub async fn run(session: &Session, command: &DomainCommand) -> Result<(), Fault> {
    match command {
        DomainCommand::Add { tenant, domain } => {
            let new = NewDomainJson { domain: domain.clone() };
            let made = session.client.post(&path(tenant), &new).await?;
            session.show(&made, |session, made: DomainJson| {
                let next = format!("Then: postern domain verify {} {}\n", made.tenant, made.domain);
                format!("domain {} added for {}\n\n", made.domain, made.tenant)
                    + &to_publish(session.colour, &made)
                    + &next
            })
        }
        DomainCommand::List { tenant } => list(session, tenant.as_deref()).await,
        DomainCommand::Verify { tenant: Some(tenant), domain: Some(domain) } => {
            let seen = session.client.post(&format!("{}/verify", one(tenant, domain)), &()).await?;
            session.show(&seen, verified)?;
            failed_unless_usable(&[read(&seen)?])
        }
        DomainCommand::Verify { tenant, .. } => verify_all(session, tenant.as_deref()).await,
        DomainCommand::Rotate { tenant, domain, cancel: true, .. } => {
            let domain = session.client.delete(&format!("{}/rotate", one(tenant, domain))).await?;
            session.show(&domain, |_, domain: DomainJson| {
                format!(
                    "the new keys of {} are gone, its old ones go on signing; take back new records that were published\n",
                    domain.domain
                )
            })
        }
        DomainCommand::Rotate { tenant, domain, status: false, .. } => {
            let domain = session.client.post(&format!("{}/rotate", one(tenant, domain)), &()).await?;
            session.show(&domain, |session, domain: DomainJson| {
                "new keys made; the old ones sign until the new records are found in DNS\n\n".to_owned()
                    + &to_publish(session.colour, &domain)
            })
        }
        DomainCommand::Rotate { tenant, domain, status: true, .. } => {
            let domain = session.client.get(&one(tenant, domain)).await?;
            session.show(&domain, |session, domain: DomainJson| rotation(session, &domain))
        }
        DomainCommand::Status { tenant, domain } => {
            let domain = session.client.get(&one(tenant, domain)).await?;
            session.show(&domain, facts)
        }
        DomainCommand::Records { tenant, domain } => {
            let seen = session.client.get(&format!("{}/records", one(tenant, domain))).await?;
            session.show(&seen, inspected)
        }
        DomainCommand::Zone { tenant, domain } => zone(session, tenant, domain).await,
        DomainCommand::Readiness { tenant, domain } => ready(session, tenant, domain).await,
        DomainCommand::Trust { tenant, domain, revoke } => {
            let change = DomainChangeJson { trusted: Some(!revoke), ..DomainChangeJson::default() };
            changed(session, tenant, domain, &change).await
        }
        DomainCommand::Subdomains { tenant, domain, cover } => {
            let covers_subdomains = Some(matches!(cover, Cover::Covered));
            let change = DomainChangeJson { covers_subdomains, ..DomainChangeJson::default() };
            changed(session, tenant, domain, &change).await
        }
        DomainCommand::ReturnPath { tenant, domain, name, status, verify, off } => {
            let asked = return_path::Asked { name: name.as_ref(), status: *status, verify: *verify, off: *off };
            return_path::run(session, &format!("{}/return-path", one(tenant, domain)), &asked).await
        }
        DomainCommand::Remove { tenant, domain } => {
            let answer = session.client.delete(&one(tenant, domain)).await?;
            session.done(&answer, &format!("domain {domain} removed, its keys are erased"))
        }
    }
}

async fn changed(session: &Session, tenant: &str, domain: &Domain, change: &DomainChangeJson) -> Result<(), Fault> {
    let domain = session.client.patch(&one(tenant, domain), change).await?;
    session.show(&domain, facts)
}

async fn zone(session: &Session, tenant: &str, domain: &Domain) -> Result<(), Fault> {
    let mut text = Vec::new();
    session.client.download(&format!("{}/zone", one(tenant, domain)), &mut text).await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = Value::from(text.clone());
    session.show(&lines, |_, _: Value| text)
}

fn inspected(session: &Session, seen: InspectionJson) -> String {
    let mut table = Table::new(&["WHAT", "NAME", "VERDICT", "FOUND"]);
    for record in &seen.records {
        let found = or_dash(record.found.first().cloned());
        table.row([record.what.clone(), record.name.clone(), record.verdict.clone(), found]);
    }
    let mut text = table.text(session.colour, "there are none");
    for record in seen.records.iter().filter(|record| record.verdict != "found") {
        let advice = record.advice.as_ref().map(|advice| format!(" ({advice})")).unwrap_or_default();
        text.push_str(&format!("\n{} {}{advice}\n  {}\n", record.kind, record.name, record.expected));
    }
    text
}

async fn ready(session: &Session, tenant: &str, domain: &Domain) -> Result<(), Fault> {
    let judged = session.client.get(&format!("{}/readiness", one(tenant, domain))).await?;
    session.show(&judged, readiness)
}

fn readiness(session: &Session, judged: ReadinessJson) -> String {
    let mut table = Table::new(&["RULE", "STANDS", "ASKED BY", "WHY"]);
    for rule in judged.rules {
        table.row([rule.rule, rule.stand, rule.asked_by.join(", "), rule.detail]);
    }
    table.text(session.colour, "there are no rules")
}

fn path(tenant: &str) -> String {
    format!("/tenants/{}/domains", encoded(tenant))
}

fn one(tenant: &str, domain: &Domain) -> String {
    format!("{}/{}", path(tenant), encoded(domain.as_str()))
}

/// The domains of one tenant, or of everybody and the instance.
async fn all(session: &Session, tenant: Option<&str>) -> Result<Vec<Value>, Fault> {
    let names = match tenant {
        Some(name) => vec![name.to_owned()],
        None => {
            let tenants: Vec<TenantJson> = rows(&session.client.list("/tenants", usize::MAX).await?)?;
            let names = tenants.into_iter().map(|tenant| tenant.name);
            names.chain([INSTANCE_NAME.to_owned()]).collect()
        }
    };
    let mut found = Vec::new();
    for name in names {
        found.extend(rows::<Value>(&session.client.list(&path(&name), usize::MAX).await?)?);
    }
    Ok(found)
}

async fn list(session: &Session, tenant: Option<&str>) -> Result<(), Fault> {
    let found = json!({ "rows": all(session, tenant).await?, "next": null });
    session.show(&found, |session, found: Value| {
        let domains: Vec<DomainJson> = rows(&found).unwrap_or_default();
        let mut table = Table::new(&["DOMAIN", "TENANT", "STATE", "SUBDOMAINS", "LAST CHECK"]);
        for domain in domains {
            table.row([
                domain.domain.clone(),
                domain.tenant.clone(),
                state(&domain),
                if domain.covers_subdomains { "covered" } else { "separate" }.to_owned(),
                or_dash(domain.last_check.map(|moment| when(&moment, session.now))),
            ]);
        }
        table.text(session.colour, "no domains yet; add one with: postern domain add TENANT DOMAIN")
    })
}

async fn verify_all(session: &Session, tenant: Option<&str>) -> Result<(), Fault> {
    let mut seen = Vec::new();
    for domain in all(session, tenant).await? {
        let domain: DomainJson = read(&domain)?;
        let path = format!("{}/{}/verify", path(&domain.tenant), encoded(&domain.domain));
        seen.push(session.client.post(&path, &()).await?);
    }
    let read_all: Vec<VerificationJson> = seen.iter().map(read).collect::<Result<_, _>>()?;
    if session.is_json() {
        print_json(&Value::from(seen));
    } else if read_all.is_empty() {
        print("no domains yet; add one with: postern domain add TENANT DOMAIN\n");
    } else {
        read_all.iter().for_each(|seen| print(&(verified(session, seen.clone()) + "\n")));
    }
    failed_unless_usable(&read_all)
}

/// Scripts learn from the exit code whether all domains may be used.
fn failed_unless_usable(seen: &[VerificationJson]) -> Result<(), Fault> {
    let unusable: Vec<&str> = (seen.iter().map(|seen| &seen.domain))
        .filter(|domain| !matches!(domain.state.as_str(), "verified" | "trusted"))
        .map(|domain| domain.domain.as_str())
        .collect();
    if unusable.is_empty() {
        return Ok(());
    }
    Err(Fault::Failed(format!("not verified: {}", unusable.join(", "))))
}

fn state(domain: &DomainJson) -> String {
    let rotating = if domain.rotating { ", rotating" } else { "" };
    let absent = if domain.absent_since.is_some() { ", record absent" } else { "" };
    format!("{}{rotating}{absent}", domain.state)
}

fn verified(session: &Session, seen: VerificationJson) -> String {
    let colour = session.colour;
    let mut text = format!("{} of {}: {}\n", seen.domain.domain, seen.domain.tenant, state(&seen.domain));
    for found in &seen.found {
        let finding = match found.finding.as_str() {
            "published" => colour.green("published"),
            "unknown" => colour.yellow("DNS did not answer"),
            other => colour.red(other),
        };
        let detail = found.detail.as_ref().map(|detail| format!(" ({})", crate::mail::printable(detail)));
        text.push_str(&format!("  {}: {finding}{}\n", found.what, detail.unwrap_or_default()));
    }
    seen.turns.iter().for_each(|turn| text.push_str(&format!("  {turn}\n")));
    if seen.domain.records.iter().any(|record| record.published == Some(false)) {
        text.push_str(&format!(
            "  what to publish: postern domain status {} {}\n",
            seen.domain.tenant, seen.domain.domain
        ));
    }
    text
}

fn to_publish(colour: Colour, domain: &DomainJson) -> String {
    let mut text = format!("{}\n", colour.bold("Records to publish"));
    for record in &domain.records {
        text.push_str(&record_text(colour, record));
    }
    text.push_str(&format!("\n{}\n", colour.bold("The same for a zone file")));
    domain.records.iter().for_each(|record| text.push_str(&format!("{}\n", record.zone_line)));
    text.push('\n');
    domain.hints.iter().for_each(|hint| text.push_str(&format!("{hint}\n")));
    text
}

fn record_text(colour: Colour, record: &RecordJson) -> String {
    let state = match (record.published, record.required) {
        (Some(true), _) => colour.green("found in DNS"),
        (Some(false), true) => colour.yellow("needed, not found yet"),
        (Some(false), false) => colour.yellow("advised, not found yet"),
        (None, true) => "needed".to_owned(),
        (None, false) => "advised".to_owned(),
    };
    format!(
        "\n  {} ({state})\n  Name:  {}\n  Type:  {}\n  Value: {}\n",
        record.purpose, record.name, record.kind, record.value
    )
}

fn rotation(session: &Session, domain: &DomainJson) -> String {
    let mut text = if domain.rotating {
        format!(
            "{}: new keys wait for their records; the old ones sign until then\n{}",
            domain.domain,
            to_publish(session.colour, domain)
        )
    } else {
        format!("{}: no rotation is under way\n", domain.domain)
    };
    for retired in &domain.retired {
        let verdict = match (retired.may_go_now, &retired.may_go_at) {
            (true, _) => session.colour.green("may be taken out of DNS now"),
            (false, Some(moment)) => format!("may be taken out of DNS {}", when(moment, session.now)),
            (false, None) => session.colour.yellow("must stay: queued mail still names it"),
        };
        text.push_str(&format!("old records {}: {verdict}\n", retired.names.join(" and ")));
    }
    text
}

fn facts(session: &Session, domain: DomainJson) -> String {
    let when = |moment: &Option<String>| moment.as_ref().map(|moment| when(moment, session.now));
    let colour = session.colour;
    let state = match domain.state.as_str() {
        "verified" | "trusted" => colour.green(&state(&domain)),
        _ => colour.yellow(&state(&domain)),
    };
    format!(
        "Domain      {}\nTenant      {}\nState       {state}\nSince       {}\nLast check  {}\nSubdomains  {}\n\n",
        domain.domain,
        domain.tenant,
        or_dash(when(&domain.since)),
        or_dash(when(&domain.last_check)),
        if domain.covers_subdomains { "covered" } else { "separate" },
    ) + &to_publish(colour, &domain)
        + &rotation_line(session, &domain)
}

fn rotation_line(session: &Session, domain: &DomainJson) -> String {
    if domain.retired.is_empty() {
        String::new()
    } else {
        rotation(session, &DomainJson { rotating: false, ..domain.clone() })
    }
}
