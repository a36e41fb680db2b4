//! `postern vip`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::arguments::{Vip, VipAdd, VipSet};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash};
use super::{Session, rows};
use crate::net::seen_from_outside;
use crate::web::{NewVipJson, ServiceSpfJson, VipChangeJson, VipJson};

/// What is said of a virtual IP's address that receivers do not see, and what to do.
pub(super) const HIDDEN: &str = "is not of the public Internet, and what receivers see instead is not known here";
pub(super) const HIDDEN_REMEDY: &str = "postern vip set EHLO-NAME --public ADDRESS";

/// Carries out one of them.
pub async fn run(session: &Session, command: &Vip) -> Result<(), Fault> {
    match command {
        Vip::Add(add) => {
            let new = new_vip(add).map_err(Fault::Failed)?;
            let made = session.client.post("/vips", &new).await?;
            session.show(&made, added)
        }
        Vip::List => {
            let list = session.client.list("/vips", usize::MAX).await?;
            session.show(&list, table)
        }
        Vip::Set(set) => change(session, set).await,
        Vip::Spf => {
            let record = session.client.get("/spf-record").await?;
            session.show(&record, spf)
        }
        Vip::Remove { vip } => {
            let answer = session.client.delete(&format!("/vips/{}", encoded(vip))).await?;
            session.done(&answer, &format!("virtual IP {vip} removed"))
        }
    }
}

/// Changes what was named; nothing named is a look at it.
async fn change(session: &Session, set: &VipSet) -> Result<(), Fault> {
    let path = format!("/vips/{}", encoded(&set.vip));
    let public = if set.no_public { Some(Vec::new()) } else { Some(set.public.clone()).filter(|all| !all.is_empty()) };
    let change = VipChangeJson { ehlo: set.ehlo.clone(), public };
    if change == VipChangeJson::default() {
        let vip = session.client.get(&path).await?;
        return session.show(&vip, |session, vip: VipJson| shown(session, &vip, "is"));
    }
    let vip = session.client.patch(&path, &change).await?;
    session.show(&vip, |session, vip: VipJson| shown(session, &vip, "changed, is"))
}

fn new_vip(add: &VipAdd) -> Result<NewVipJson, String> {
    let (ipv4, mut ipv6) = match add.address.to_canonical() {
        IpAddr::V4(address) => (Some(address), None),
        IpAddr::V6(address) => (None, Some(address)),
    };
    if let Some(address) = add.ipv6 {
        if ipv6.is_some() {
            return Err(format!("{} is an IPv6 address already; leave out --ipv6", add.address));
        }
        ipv6 = Some(address);
    }
    let (mut public_ipv4, mut public_ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (None, None);
    for address in &add.public {
        let twice = match address {
            IpAddr::V4(address) => public_ipv4.replace(*address).is_some(),
            IpAddr::V6(address) => public_ipv6.replace(*address).is_some(),
        };
        if twice {
            return Err("--public takes at most one address of each family".to_owned());
        }
    }
    let (id, ehlo, tenant, shared) = (add.id.clone(), add.ehlo.clone(), add.tenant.clone(), add.shared);
    Ok(NewVipJson { id, ipv4, ipv6, public_ipv4, public_ipv6, ehlo, tenant, shared })
}

fn added(session: &Session, vip: VipJson) -> String {
    shown(session, &vip, "added")
}

/// A line about it, what is wrong with it, the records it needs.
fn shown(session: &Session, vip: &VipJson, how: &str) -> String {
    let mut text = format!("virtual IP {} {how} for {}\n", vip.ehlo, owner(vip));
    for address in &vip.missing {
        let warning = format!("{address} is not on this host yet: its mail waits until it is");
        text.push_str(&format!("{}\n", session.colour.yellow(&warning)));
    }
    text.push_str("DNS records it needs:\n");
    for address in seen_from_outside(vip.public_addresses()) {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        text.push_str(&format!("  {}. {kind} {address}\n", vip.ehlo));
        text.push_str(&format!("  PTR of {address}: {}. (set where you rent the address)\n", vip.ehlo));
    }
    text
}

/// Lines of a zone file; what is to be said besides is a comment there.
fn spf(_: &Session, service: ServiceSpfJson) -> String {
    let Some(name) = &service.name else {
        return "domains.spf_include is not set: tenants are told to name each address\n".to_owned();
    };
    let mut text = format!("; {} addresses; tenants publish include:{name}\n", service.addresses.len());
    if service.records.len() > 1 {
        text.push_str(
            "; publish the names that are new first, then the last line; what was there before may go once that \
             line's TTL is over\n",
        );
    }
    for record in &service.records {
        text.push_str(&format!("{}\n", record.zone_line));
    }
    if service.left_out > 0 {
        text.push_str(&format!(
            "; {} ADDRESSES HAVE NO ROOM: their mail fails SPF. Publish networks that are yours as a whole instead, such \
             as ip4:203.0.113.0/24; postern doctor judges whatever is there\n",
            service.left_out
        ));
    }
    for address in &service.hidden {
        text.push_str(&format!("; {address} {HIDDEN}: {HIDDEN_REMEDY}\n"));
    }
    text
}

fn owner(vip: &VipJson) -> String {
    vip.tenant.as_ref().map_or_else(|| "every tenant".to_owned(), |name| format!("tenant {name}"))
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let vips: Vec<VipJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["EHLO NAME", "IPV4", "IPV6", "PUBLIC", "FOR", "ON THIS HOST", "ID"]);
    for vip in vips {
        let public: Vec<String> = (vip.public_ipv4.map(|address| address.to_string()).into_iter())
            .chain(vip.public_ipv6.map(|address| address.to_string()))
            .collect();
        let present = match vip.missing.as_slice() {
            [] => "yes".to_owned(),
            missing => format!("MISSING {}", missing.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")),
        };
        table.row([
            vip.ehlo.clone(),
            or_dash(vip.ipv4.map(|address| address.to_string())),
            or_dash(vip.ipv6.map(|address| address.to_string())),
            or_dash((!public.is_empty()).then(|| public.join(" "))),
            owner(&vip),
            present,
            vip.id,
        ]);
    }
    table.text(session.colour, "no virtual IPs yet; add one with: postern vip add ADDRESS --ehlo NAME --shared")
}
