//! `postern doctor`: everything that mail depends on, one line each, with a remedy.
//!
//! What needs no daemon is checked without one: the rest says that it was left out. Easy to get
//! wrong: a check that cannot be made is a warning, never an "ok".

mod domains;
mod machine;
mod network;
mod spf;

use std::process::ExitCode;

use serde::Serialize;

use super::arguments::{Doctor, Everywhere};
use super::client::Client;
use super::output::{self, Colour};
use super::{exit, rows};
use crate::config;
use crate::web::{DomainJson, RouteJson, ServiceSpfJson, StatusJson, TenantJson, VipJson};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Mail flows, but something deserves attention, or it could not be checked.
    Warn,
    /// Mail suffers.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: String,
    /// How it is.
    pub(super) grade: Grade,
    /// What was found.
    pub(super) found: String,
    /// What to do.
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), grade: Grade::Ok, found: found.into(), remedy: None }
    }

    pub(super) fn warn(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), grade: Grade::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn fail(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), grade: Grade::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// What the daemon knows, if it runs.
struct Known {
    status: StatusJson,
    vips: Vec<VipJson>,
    domains: Vec<DomainJson>,
    /// The SPF record tenants include, if there is one.
    spf: ServiceSpfJson,
    /// Host and port of the relay that carries all mail, if there is one.
    relay: Option<String>,
}

/// Checks everything; 0 if nothing failed, 1 if something did, 78 if the configuration is wrong.
pub async fn run(everywhere: &Everywhere, asked: &Doctor) -> ExitCode {
    let mut found = Vec::new();
    let loaded = config::load(&everywhere.config);
    match &loaded {
        Ok(_) => found.push(Finding::ok("configuration", format!("{} is fine", everywhere.config.display()))),
        Err(problems) => found.extend(problems.iter().map(|problem| {
            Finding::fail("configuration", problem.to_string(), "correct the file, then: postern check")
        })),
    }
    let configuration = loaded.ok();
    let socket = everywhere.socket.clone().or(configuration.as_ref().map(|config| config.web.socket.clone()));
    let known =
        ask(&Client { socket: socket.unwrap_or_else(|| crate::web::Settings::default().socket) }, &mut found).await;
    if let Some(config) = &configuration {
        found.extend(machine::check(config));
    }
    if let Some(known) = &known {
        found.extend(machine::check_vips(&known.vips, crate::net::is_present));
        if let Some(config) = &configuration {
            found.extend(machine::check_names(config, &known.vips));
        }
    }
    if !asked.offline {
        let dns = configuration.as_ref().map(|config| config.dns.clone()).unwrap_or_default();
        found.extend(network::check(&dns, known.as_ref(), &asked.probe).await);
    }
    if let Some(known) = &known {
        found.extend(domains::check_domains(&known.domains));
        found.extend(domains::check_notices(&known.vips, &known.domains));
    }
    report(everywhere, &found);
    let is_failed = found.iter().any(|finding| finding.grade == Grade::Fail);
    match (configuration.is_some(), is_failed) {
        (false, _) => ExitCode::from(exit::CONFIGURATION),
        (true, true) => ExitCode::from(exit::FAILED),
        (true, false) => ExitCode::SUCCESS,
    }
}

async fn ask(client: &Client, found: &mut Vec<Finding>) -> Option<Known> {
    match known(client).await {
        Ok(known) => {
            let status = &known.status;
            found.push(Finding::ok("daemon", format!("postern {} answers", status.version)));
            let detail = status.storage_detail.clone().unwrap_or_default();
            found.push(match status.storage.as_str() {
                "accepting" => Finding::ok("storage", "accepts mail"),
                "low_space" => Finding::fail("storage", detail, "free some disk space; new mail is refused until then"),
                _ => Finding::fail("storage", detail, "restart the daemon: systemctl restart postern"),
            });
            if !status.accounts_paused.is_empty() {
                let paused = format!("paused: {}", status.accounts_paused.join(", "));
                let remedy = "postern breaker list says why; postern smtp-account release LOGIN";
                found.push(Finding::warn("SMTP accounts", paused, remedy));
            }
            for suspension in &status.suspensions {
                let remedy = "if that is over: postern delivery resume";
                found.push(Finding::warn("delivery", suspension.clone(), remedy));
            }
            found.extend(backup(status));
            if known.vips.is_empty() {
                let remedy = "postern vip add ADDRESS --ehlo NAME --tenant NAME";
                found.push(Finding::warn("virtual IPs", "there are none, nobody can log in", remedy));
            }
            Some(known)
        }
        Err(fault) => {
            let remedy = "systemctl status postern; what only the daemon knows was not checked";
            found.push(Finding::fail("daemon", fault.to_string(), remedy));
            None
        }
    }
}

/// Whether backups are made; nothing of a daemon too young to have one.
fn backup(status: &StatusJson) -> Option<Finding> {
    let last = status.last_backup.as_ref().map(|at| format!("the last was finished at {at}"));
    if status.backup_overdue {
        let text = last.unwrap_or_else(|| "none was ever made".to_owned());
        let remedy = "postern backup make FILE, and every night: docs/operate/backup.md";
        return Some(Finding::warn("backup", text, remedy));
    }
    last.map(|text| Finding::ok("backup", text))
}

async fn known(client: &Client) -> Result<Known, super::client::Fault> {
    let status = output::read(&client.get("/status").await?)?;
    let vips = rows(&client.list("/vips", usize::MAX).await?)?;
    let tenants: Vec<TenantJson> = rows(&client.list("/tenants", usize::MAX).await?)?;
    let names = tenants.into_iter().map(|tenant| tenant.name).chain([crate::web::INSTANCE_NAME.to_owned()]);
    let mut domains = Vec::new();
    for name in names {
        let path = format!("/tenants/{}/domains", super::client::encoded(&name));
        domains.extend(rows::<DomainJson>(&client.list(&path, usize::MAX).await?)?);
    }
    let routes: Vec<RouteJson> = rows(&client.list("/routes", usize::MAX).await?)?;
    let of_all = routes.into_iter().find(|route| route.tenant.is_none() && route.to.is_none());
    let relay = of_all.map(|route| format!("{}:{}", route.host, route.port));
    let spf = output::read(&client.get("/spf-record").await?)?;
    Ok(Known { status, vips, domains, spf, relay })
}

fn report(everywhere: &Everywhere, found: &[Finding]) {
    if everywhere.json {
        output::print_json(&serde_json::to_value(found).unwrap_or_default());
    } else {
        let widest = found.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
        found.iter().for_each(|finding| output::print(&line(Colour::of_output(), widest, finding)));
        output::print(&summary(found));
    }
}

/// The last line: whether anything needs a hand.
fn summary(found: &[Finding]) -> String {
    let count = |grade| found.iter().filter(|finding| finding.grade == grade).count();
    match (count(Grade::Fail), count(Grade::Warn)) {
        (0, 0) => "everything is as it should be\n".to_owned(),
        (failed, warned) => format!("{failed} failed, {warned} to look at\n"),
    }
}

/// Checks are padded to `widest`, so that what was found stands in one column.
fn line(colour: Colour, widest: usize, finding: &Finding) -> String {
    let grade = match finding.grade {
        Grade::Ok => colour.green("ok  "),
        Grade::Warn => colour.yellow("warn"),
        Grade::Fail => colour.red("FAIL"),
    };
    let remedy = finding.remedy.as_ref().map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
    let found = crate::mail::printable(&format!("{}{remedy}", finding.found));
    format!("{grade}  {:<widest$}  {found}\n", finding.check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_one_line_with_its_remedy() {
        let finding = Finding::fail("clock", "stands\nstill", "wind it up");
        assert_eq!(line(Colour::Plain, 5, &finding), "FAIL  clock  stands?still -> wind it up\n");
        assert_eq!(line(Colour::Plain, 5, &Finding::ok("disk", "fine")), "ok    disk   fine\n");
        assert_eq!(summary(&[finding, Finding::ok("disk", "fine")]), "1 failed, 0 to look at\n");
        assert_eq!(summary(&[]), "everything is as it should be\n");
    }

    #[tokio::test]
    async fn without_a_daemon_what_needs_none_is_still_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        let client = Client { socket: folder.path().join("none") };
        assert!(ask(&client, &mut found).await.is_none());
        assert_eq!((found.len(), found.first().map(|finding| finding.grade)), (1, Some(Grade::Fail)));
    }
}
