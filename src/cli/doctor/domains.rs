//! Checks of sending domains: their state, the records in DNS, and who signs notices.
//!
//! It refuses to decide what may be sent; that is the daemon's. Easy to get wrong: SPF and DMARC
//! records are the domain owner's own, so they are looked for, not compared.

use std::net::IpAddr;

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::spf::Service;
use super::{Finding, Grade, spf};
use crate::mail::Domain;
use crate::net::{LookupError, Resolver, is_spf_record, seen_from_outside};
use crate::web::{DomainJson, INSTANCE_NAME, RecordJson, VipJson};

/// Domains looked up at a time.
const AT_A_TIME: usize = 8;

/// What the last look into DNS said about each domain.
pub(super) fn check_domains(domains: &[DomainJson]) -> Vec<Finding> {
    let one = |domain: &DomainJson| {
        let check = format!("domain {} of {}", domain.domain, domain.tenant);
        let remedy = format!("postern domain verify {} {}", domain.tenant, domain.domain);
        match (domain.state.as_str(), &domain.absent_since) {
            (_, Some(since)) => Finding::fail(check, format!("its record is absent since {since}"), remedy),
            ("verified", None) => Finding::ok(check, "verified"),
            ("trusted", None) => Finding::warn(check, "trusted without proof: DKIM may fail at the peers", remedy),
            (state, None) => Finding::fail(check, format!("{state}: its mail is refused"), remedy),
        }
    };
    domains.iter().filter(|domain| domain.tenant != INSTANCE_NAME).map(one).collect()
}

/// What DNS says now about the records of each domain: a line per domain that names what is missing.
pub(super) async fn check_records(
    resolver: &dyn Resolver,
    domains: &[DomainJson],
    (vips, service): (&[VipJson], Option<&Service>),
) -> Vec<Finding> {
    let of_tenants = domains.iter().filter(|domain| domain.tenant != INSTANCE_NAME);
    let asking = Asking { resolver, vips, service, until: Instant::now() + spf::PATIENCE };
    stream::iter(of_tenants.map(|domain| records_of(&asking, domain))).buffered(AT_A_TIME).collect().await
}

/// What the records of domains are judged by.
struct Asking<'a> {
    resolver: &'a dyn Resolver,
    vips: &'a [VipJson],
    /// The record that they include, if there is one and DNS answered.
    service: Option<&'a Service>,
    /// What SPF records come to is asked until then.
    until: Instant,
}

async fn records_of(asking: &Asking<'_>, domain: &DomainJson) -> Finding {
    let (mut worst, mut missing, mut looked_for) = (Grade::Ok, Vec::new(), 0_usize);
    for record in domain.records.iter().filter(|record| record.kind == "TXT") {
        looked_for = looked_for.saturating_add(1);
        if let Some((grade, what)) = lack(asking, domain, record).await {
            worst = worst.max(grade);
            missing.push(what);
        }
    }
    let check = format!("records of {}", domain.domain);
    let remedy = format!("postern domain status {} {}", domain.tenant, domain.domain);
    match worst {
        Grade::Ok => Finding::ok(check, format!("{looked_for} of {looked_for} are in DNS")),
        Grade::Warn => Finding::warn(check, missing.join("; "), remedy),
        Grade::Fail => Finding::fail(check, missing.join("; "), remedy),
    }
}

/// What is wrong with one record, if something is.
async fn lack(asking: &Asking<'_>, domain: &DomainJson, record: &RecordJson) -> Option<(Grade, String)> {
    let name = Domain::parse(&record.name).ok()?;
    let found = match asking.resolver.txt(&name).await {
        Ok(found) => found,
        Err(LookupError::NoRecord | LookupError::NoSuchName) => Vec::new(),
        Err(error) => return Some((Grade::Warn, format!("{name}: {error}"))),
    };
    if record.name.contains("._domainkey.") {
        return key_lack(domain, record, &found);
    }
    if is_spf_record(&record.value) {
        if let Some(lack) = spf_lack(&name, &record.value, &found) {
            return Some(lack);
        }
        let includes = record.value.split(' ').any(|term| term.starts_with("include:"));
        return if includes { include_lack(asking, &name, domain).await } else { None };
    }
    let is_policy = |texts: &[String]| texts.iter().any(|text| text.trim_start().starts_with("v=DMARC1"));
    if is_policy(&found) || inherits(asking.resolver, domain, is_policy).await {
        return None;
    }
    Some((Grade::Warn, format!("no DMARC record at {name}: Gmail and others demand one of bulk senders")))
}

fn key_lack(domain: &DomainJson, record: &RecordJson, found: &[String]) -> Option<(Grade, String)> {
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    if found.iter().any(|text| squeezed(text) == squeezed(&record.value)) {
        return None;
    }
    // Keys that wait for their records sign nothing yet.
    let grade = if record.required && !domain.rotating { Grade::Fail } else { Grade::Warn };
    let what = if found.is_empty() { "no key" } else { "another key" };
    Some((grade, format!("{what} at {}", record.name)))
}

/// RFC 7208 s4.5: more than one record is an error to every receiver.
fn spf_lack(name: &Domain, wanted: &str, found: &[String]) -> Option<(Grade, String)> {
    let records: Vec<&String> = found.iter().filter(|text| is_spf_record(text)).collect();
    let [only] = records.as_slice() else {
        return Some(match records.len() {
            0 => (Grade::Warn, format!("no SPF record at {name}")),
            more => (Grade::Fail, format!("{more} SPF records at {name}: receivers take that for an error")),
        });
    };
    let words: Vec<String> = only.split_whitespace().map(str::to_ascii_lowercase).collect();
    // What an include or a redirect leads to, or a network names, may cover the address.
    let leads_further = |word: &String| {
        let word = word.trim_start_matches('+');
        let is_address = word.starts_with("ip4:") || word.starts_with("ip6:");
        (!is_address || word.contains('/')) && !word.ends_with("all")
    };
    let lacking: Vec<&str> = (wanted.split_whitespace())
        .filter(|word| word.starts_with("ip4:") || word.starts_with("ip6:"))
        .filter(|word| !words.iter().any(|own| own.trim_start_matches('+') == *word))
        .collect();
    if lacking.is_empty() || words.iter().skip(1).any(leads_further) {
        return None;
    }
    Some((Grade::Warn, format!("the SPF record at {name} does not name {}", lacking.join(" "))))
}

/// What a record that should include that of the service does not permit, and whose record is at fault.
async fn include_lack(asking: &Asking<'_>, name: &Domain, domain: &DomainJson) -> Option<(Grade, String)> {
    let own = asking.vips.iter().filter(|vip| vip.tenant.as_ref().is_none_or(|tenant| *tenant == domain.tenant));
    let addresses: Vec<IpAddr> = own
        .flat_map(|vip| seen_from_outside(vip.public_addresses()))
        .filter(|address| !address.is_loopback())
        .collect();
    let judged = spf::judge(asking.resolver, name, &addresses, asking.until).await;
    // Whatever the domain has published: without that of the service its include permits nothing.
    if let Some(service) = asking.service.filter(|service| service.name != *name) {
        let of_service = |address: &IpAddr| service.judged.refused.contains(address);
        let lacking: Vec<IpAddr> = judged.refused.iter().copied().filter(of_service).collect();
        if !lacking.is_empty() {
            let (at, lacking) = (&service.name, spf::some(&lacking));
            return Some((
                Grade::Warn,
                format!(
                    "SPF of {name}: the record of this service at {at}, not the domain's own, does not permit {lacking}"
                ),
            ));
        }
    }
    if judged.is_unreadable {
        return Some((Grade::Fail, format!("the SPF record at {name} cannot be evaluated (permerror)")));
    }
    if !judged.refused.is_empty() {
        return Some((Grade::Warn, format!("the SPF record at {name} does not permit {}", spf::some(&judged.refused))));
    }
    let unanswered = (!judged.unanswered.is_empty()).then(|| format!("SPF of {name}: DNS did not answer"));
    unanswered.map(|text| (Grade::Warn, text))
}

/// Whether a name above the domain has the policy (RFC 7489 s6.6.3).
async fn inherits(resolver: &dyn Resolver, domain: &DomainJson, is_policy: impl Fn(&[String]) -> bool) -> bool {
    let mut name = domain.domain.as_str();
    while let Some((_, above)) = name.split_once('.') {
        if !above.contains('.') {
            return false;
        }
        let Ok(asked) = Domain::parse(&format!("_dmarc.{above}")) else { return false };
        if resolver.txt(&asked).await.is_ok_and(|found| is_policy(&found)) {
            return true;
        }
        name = above;
    }
    false
}

/// Whether notices to senders can be signed: by a verified domain of the virtual IP's owner that covers
/// its EHLO name, else by any verified name of the instance.
pub(super) fn check_notices(vips: &[VipJson], domains: &[DomainJson]) -> Vec<Finding> {
    let is_verified = |domain: &&DomainJson| matches!(domain.state.as_str(), "verified" | "trusted");
    let own = domains.iter().find(|domain| domain.tenant == INSTANCE_NAME);
    if domains.iter().filter(is_verified).any(|domain| domain.tenant == INSTANCE_NAME) {
        return vec![Finding::ok("notices", "are signed, at least with the instance's own key")];
    }
    let covers = |domain: &DomainJson, vip: &VipJson| {
        let is_below = vip.ehlo.strip_suffix(&domain.domain).is_some_and(|rest| rest.ends_with('.'));
        vip.tenant.as_ref() == Some(&domain.tenant)
            && (vip.ehlo == domain.domain || (is_below && domain.covers_subdomains))
    };
    let unsigned = vips.iter().filter(|vip| !domains.iter().filter(is_verified).any(|domain| covers(domain, vip)));
    let names: Vec<&str> = unsigned.map(|vip| vip.ehlo.as_str()).collect();
    if names.is_empty() {
        return vec![Finding::ok("notices", "are signed with the keys of the virtual IPs' owners")];
    }
    let remedy = match own {
        Some(own) => format!("publish the records of: postern domain status {INSTANCE_NAME} {}", own.domain),
        None => format!("postern domain add {INSTANCE_NAME} NAME"),
    };
    vec![Finding::warn("notices", format!("from {} leave unsigned", names.join(", ")), remedy)]
}

#[cfg(test)]
#[path = "domains_tests.rs"]
mod tests;
