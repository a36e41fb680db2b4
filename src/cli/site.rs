//! `postern site`: what receivers are sent, how fast, and why not faster.

use super::arguments::{Site, SiteLimits, SiteScope};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, when};
use super::{Session, rows};
use crate::mail::printable;
use crate::web::{SiteActJson, SiteDoneJson, SiteJson, SiteLimitJson, SiteLimitsJson, SiteOverrideJson, SiteScopeJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Site) -> Result<(), Fault> {
    match command {
        Site::List => {
            let list = session.client.list("/sites", usize::MAX).await?;
            session.show(&list, table)
        }
        Site::Show { site, ip } => {
            let shown = session.client.get(&format!("{}?vip={}", path(site), encoded(ip))).await?;
            session.show(&shown, one)
        }
        Site::Limits => {
            let list = session.client.list("/site-limits", usize::MAX).await?;
            session.show(&list, overrides)
        }
        Site::Set { scope, limits } => {
            let made = session.client.post("/site-limits", &asked(scope, limits)).await?;
            session.show(&made, |_, set: SiteOverrideJson| said(&set))
        }
        Site::Clear { scope } => {
            let answer = session.client.post("/site-limits/clear", &scope_of(scope)).await?;
            session.show(&answer, |_, done: SiteDoneJson| format!("the limits set for {} are gone\n", done.site))
        }
        Site::Release { site, ip } => {
            let answer = session.client.post(&format!("{}/release", path(site)), &act(ip, &[])).await?;
            session.show(&answer, |_, done: SiteDoneJson| match done.changed {
                true => format!("{} is sent to as fast as its limits allow\n", done.site),
                false => format!("nothing held {} back but its limits\n", done.site),
            })
        }
        Site::Warm { site, ip, ladder } => {
            let answer = session.client.post(&format!("{}/warm-up", path(site)), &act(ip, ladder)).await?;
            session.show(&answer, |_, done: SiteDoneJson| format!("{ip} is warmed for {} from now on\n", done.site))
        }
        Site::StopWarming { site, ip } => {
            let answer = session.client.post(&format!("{}/warm-up/stop", path(site)), &act(ip, &[])).await?;
            session.show(&answer, |_, done: SiteDoneJson| format!("{ip} is not warmed for {} any more\n", done.site))
        }
    }
}

fn path(site: &str) -> String {
    format!("/sites/{}", encoded(site))
}

fn act(ip: &str, ladder: &[u32]) -> SiteActJson {
    SiteActJson { vip: ip.to_owned(), ladder: ladder.to_vec() }
}

fn scope_of(scope: &SiteScope) -> SiteScopeJson {
    SiteScopeJson {
        site: scope.site.clone(),
        domain: scope.domain.clone(),
        vip: scope.ip.clone(),
        tenant: scope.tenant.clone(),
    }
}

fn asked(scope: &SiteScope, limits: &SiteLimits) -> SiteLimitsJson {
    let of = |limit: Option<super::arguments::Ceiling>| {
        limit.map(|limit| limit.0.map_or(u32::MAX, |most| u32::try_from(most).unwrap_or(u32::MAX)))
    };
    SiteLimitsJson {
        scope: scope_of(scope),
        connections: of(limits.connections),
        messages_per_connection: of(limits.messages_per_connection),
        connections_per_minute: of(limits.connections_per_minute),
        messages_per_minute: of(limits.messages_per_minute),
        recipients_per_transaction: of(limits.recipients_per_transaction),
        weight: limits.weight,
    }
}

fn value(limit: &SiteLimitJson) -> String {
    limit.value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn said(set: &SiteOverrideJson) -> String {
    let limits: Vec<String> = set.limits.iter().map(|limit| format!("{} {}", limit.limit, value(limit))).collect();
    format!("{}: {}\n", printable(&set.scope), limits.join(", "))
}

fn overrides(_: &Session, list: serde_json::Value) -> String {
    let sets: Vec<SiteOverrideJson> = rows(&list).unwrap_or_default();
    if sets.is_empty() { "no limits are set\n".to_owned() } else { sets.iter().map(said).collect() }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let sites: Vec<SiteJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["SITE", "VIRTUAL IP", "STATE", "CONNECTIONS", "MESSAGES/MIN", "BINDS"]);
    for site in sites {
        table.row([
            site.site,
            site.vip,
            site.state,
            site.connections.to_string(),
            site.messages_per_minute.to_string(),
            or_dash(site.binds),
        ]);
    }
    table.text(session.colour, "no mail has gone out lately, and nothing is held back")
}

fn one(session: &Session, site: SiteJson) -> String {
    let mut text = format!(
        "Site         {}\nVirtual IP   {}\nState        {}\nConnections  {}\nLast minute  {} messages\nBinds now    {}\n",
        printable(&site.site),
        site.vip,
        site.state,
        site.connections,
        site.messages_per_minute,
        printable(site.binds.as_deref().unwrap_or("nothing: the next message may go")),
    );
    if let Some(warm) = &site.warm_up {
        let (step, steps, next) = (warm.step, warm.steps, when(&warm.next, session.now));
        text.push_str(&format!(
            "Warm-up      step {step} of {steps}: {} of {} messages and {} complaints today; the next day begins {next}\n",
            warm.sent, warm.allowed, warm.complaints
        ));
    }
    if let Some(controller) = &site.controller {
        let most = |most: Option<u32>| most.map_or_else(|| "its limit".to_owned(), |most| most.to_string());
        text.push_str(&format!(
            "Controller   {} messages a minute, {} connections\nBecause of   {}\n",
            most(controller.messages_per_minute),
            most(controller.connections),
            printable(controller.cause.as_deref().unwrap_or("-")),
        ));
        for said in &controller.said {
            text.push_str(&format!("  {}  {}\n", when(&said.at, session.now), printable(&said.reply)));
        }
    }
    let mut table = Table::new(&["LIMIT", "VALUE", "OF", "FROM"]);
    for limit in &site.limits {
        table.row([limit.limit.replace('_', " "), value(limit), limit.of.clone(), limit.from.clone()]);
    }
    text + "\n" + &table.text(session.colour, "no limits")
}
