//! `postern tenant`.

use serde_json::Value;

use super::arguments::{Switch, Tenant, TenantSet};
use super::client::{Fault, encoded};
use super::output::{Table, limits, read, when};
use super::{Session, rows, transfer};
use crate::web::{
    DomainJson, LimitsJson, NewDeletionJson, NewTenantJson, SmtpAccountJson, TenantChangeJson, TenantJson, VipJson,
};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Tenant) -> Result<(), Fault> {
    match command {
        Tenant::Add { name } => {
            let made = session.client.post("/tenants", &NewTenantJson { name: name.clone() }).await?;
            session.show(&made, |_, tenant: TenantJson| {
                format!(
                    "tenant {0} added\nNext: postern vip add ADDRESS --ehlo NAME --tenant {0}\n      \
                     postern domain add {0} DOMAIN\n      postern smtp-account add {0}\n",
                    tenant.name
                )
            })
        }
        Tenant::List => {
            let list = session.client.list("/tenants", usize::MAX).await?;
            session.show(&list, table)
        }
        Tenant::Show { name } => show(session, name).await,
        Tenant::Suspend { name } => {
            let change = TenantChangeJson { suspended: Some(true), ..TenantChangeJson::default() };
            change_one(session, name, &change, "suspended: its new mail is answered 451").await
        }
        Tenant::Resume { name } => {
            let change = TenantChangeJson { suspended: Some(false), ..TenantChangeJson::default() };
            change_one(session, name, &change, "resumed").await
        }
        Tenant::Limits { name, hourly: None, daily: None } => {
            let tenant = session.client.get(&path(name)).await?;
            session.show(&tenant, |_, tenant: TenantJson| format!("{}\n", limits(&tenant.limits, &tenant.used)))
        }
        Tenant::Limits { name, hourly, daily } => {
            let before: TenantJson = read(&session.client.get(&path(name)).await?)?;
            let new = LimitsJson {
                hourly: hourly.map_or(before.limits.hourly, |ceiling| ceiling.0),
                daily: daily.map_or(before.limits.daily, |ceiling| ceiling.0),
            };
            let change = TenantChangeJson { limits: Some(new), ..TenantChangeJson::default() };
            let tenant = session.client.patch(&path(name), &change).await?;
            session.show(&tenant, |_, tenant: TenantJson| format!("{}\n", limits(&tenant.limits, &tenant.used)))
        }
        Tenant::Set(set) => change_treatment(session, set).await,
        Tenant::Remove { name } => {
            let answer = session.client.delete(&path(name)).await?;
            session.done(&answer, &format!("tenant {name} removed"))
        }
        Tenant::Delete { name, undo: true, .. } => {
            let tenant = session.client.delete(&format!("{}/deletion", path(name))).await?;
            session.show(&tenant, |_, tenant: TenantJson| {
                let sends = if tenant.suspended { "is suspended, as before" } else { "sends again" };
                format!("tenant {} is not deleted and {sends}\n", tenant.name)
            })
        }
        Tenant::Delete { name, grace_days, undo: false } => {
            let asked = NewDeletionJson { grace_days: *grace_days };
            let tenant = session.client.post(&format!("{}/deletion", path(name)), &asked).await?;
            session.show(&tenant, |session, tenant: TenantJson| {
                let due = tenant.deletion.map(|deletion| when(&deletion.due, session.now)).unwrap_or_default();
                format!(
                    "tenant {0} no longer sends and is deleted {due}, once its mail is done\n\
                     Until then: postern tenant delete {0} --undo\n",
                    tenant.name
                )
            })
        }
        Tenant::Export { name, file } => transfer::export_tenant(session, name, file).await,
    }
}

async fn change_one(session: &Session, name: &str, change: &TenantChangeJson, said: &str) -> Result<(), Fault> {
    let tenant = session.client.patch(&path(name), change).await?;
    session.show(&tenant, |_, tenant: TenantJson| format!("tenant {} {said}\n", tenant.name))
}

async fn change_treatment(session: &Session, set: &TenantSet) -> Result<(), Fault> {
    let is_yes = |switch: Switch| switch == Switch::Yes;
    let change = TenantChangeJson {
        may_move_to_shared: set.move_to_shared.map(is_yes),
        warm_up_overflow: set.warm_up_overflow.as_deref().map(|named| match named {
            [none] if none == "none" => Vec::new(),
            named => named.to_vec(),
        }),
        delay_notices_always: set.delay_notices.map(is_yes),
        default_vip: set.default_vip.as_ref().map(|vip| if vip == "none" { String::new() } else { vip.clone() }),
        region: set.region.clone(),
        retention_days: set.retention_days,
        ..TenantChangeJson::default()
    };
    let tenant = session.client.patch(&path(&set.name), &change).await?;
    session.show(&tenant, facts)
}

async fn show(session: &Session, name: &str) -> Result<(), Fault> {
    let tenant = session.client.get(&path(name)).await?;
    if session.is_json() {
        return session.done(&tenant, "");
    }
    let called: TenantJson = read(&tenant)?;
    session.show(&tenant, facts)?;
    let name = called.name;
    let vips: Vec<VipJson> = rows(&session.client.list("/vips", usize::MAX).await?)?;
    let serving = vips.iter().filter(|vip| vip.tenant.as_ref().is_none_or(|owner| *owner == name));
    let vips: Vec<String> = serving.map(|vip| vip.ehlo.clone()).collect();
    let accounts = session.client.list(&format!("/smtp-accounts?tenant={}", encoded(&name)), usize::MAX).await?;
    let accounts: Vec<SmtpAccountJson> = rows(&accounts)?;
    let logins: Vec<String> = accounts.into_iter().map(|account| account.login).collect();
    let domains = session.client.list(&format!("{}/domains", path(&name)), usize::MAX).await?;
    let domains: Vec<DomainJson> = rows(&domains)?;
    let domains: Vec<String> = domains.iter().map(|domain| format!("{} ({})", domain.domain, domain.state)).collect();
    let listed = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    super::output::print(&format!(
        "Virtual IPs    {}\nDomains        {}\nSMTP accounts  {}\n",
        listed(vips),
        listed(domains),
        listed(logins)
    ));
    Ok(())
}

fn path(name: &str) -> String {
    format!("/tenants/{}", encoded(name))
}

fn facts(session: &Session, tenant: TenantJson) -> String {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    format!(
        "Tenant         {}\nId             {}\nSending        {}\nLimits         {}\nDelay notices  {}\n\
         Move to shared {}\nOverflow to    {}\nDefault VIP    {}\nRegion         {}\nRetention      {}\nAdded          {}\n{}",
        tenant.name,
        tenant.id,
        if tenant.suspended { session.colour.yellow("suspended") } else { session.colour.green("allowed") },
        limits(&tenant.limits, &tenant.used),
        if tenant.delay_notices_always { "always" } else { "when asked for" },
        yes_no(tenant.may_move_to_shared),
        if tenant.warm_up_overflow.is_empty() { "-".to_owned() } else { tenant.warm_up_overflow.join(", ") },
        tenant.default_vip.as_deref().unwrap_or("the oldest of its own"),
        if tenant.region.is_empty() { "-" } else { &tenant.region },
        tenant.retention_days.map_or_else(|| "as the instance".to_owned(), |days| format!("{days} days")),
        when(&tenant.created, session.now),
        tenant.deletion.map_or_else(String::new, |deletion| {
            format!("Deleted        {}, asked for by {}\n", when(&deletion.due, session.now), deletion.by)
        })
    )
}

fn table(session: &Session, list: Value) -> String {
    let tenants: Vec<TenantJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["TENANT", "SENDING", "LIMITS", "ADDED"]);
    for tenant in tenants {
        let sending = if tenant.suspended { "suspended" } else { "allowed" };
        table.row([
            tenant.name.clone(),
            sending.to_owned(),
            limits(&tenant.limits, &tenant.used),
            when(&tenant.created, session.now),
        ]);
    }
    table.text(session.colour, "no tenants yet; make one with: postern tenant add NAME")
}
