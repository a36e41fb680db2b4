//! How a domain stands against what Gmail, Yahoo and Microsoft ask of whoever sends much (2024 and 2025).
//! [`judge`] is pure: it takes what DNS and the counters said.
//!
//! Easy to get wrong: what is not known is said to be not known, and never that it is well.

use std::net::IpAddr;

use super::inspection::{Inspected, Purpose, Verdict, dmarc_policy};
use super::{Domains, advice};
use crate::access::Actor;
use crate::mail::{Domain, TenantId};
use crate::net::{LookupError, Resolver};
use crate::records::AdminError;
use crate::vips::Vip;

/// Deliveries in a day below which a rate of complaints says nothing.
pub const DELIVERED_MIN: u64 = 100;
/// Complaints of a million deliveries at which it is time to act: 0.1 %.
const WARNING_PER_MILLION: u64 = 1_000;
/// Complaints of a million deliveries that are never to be reached: 0.3 %.
const FAILING_PER_MILLION: u64 = 3_000;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// SPF passes for every address mail leaves by.
    Spf,
    /// Mail is signed, and the key is published.
    Dkim,
    /// There is a DMARC record, at least with `p=none`.
    Dmarc,
    /// SPF or DKIM aligns with the header From.
    Alignment,
    /// Each address has a name that leads back to it, and EHLO says it.
    ReverseName,
    /// Mail is handed over encrypted.
    Tls,
    /// Marketing mail can be unsubscribed from with one click (RFC 8058).
    OneClick,
    /// Few recipients complain.
    Complaints,
    /// The records of the return-path are there, if the domain has one.
    ReturnPath,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// As asked.
    Met,
    /// As asked, but not for long or not for all.
    Warning,
    /// Not as asked.
    Failing,
    /// Nothing is known.
    Unknown,
    /// It depends on the messages, which their sender writes.
    UpToSender,
}

/// One rule and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The rule.
    pub rule: Rule,
    /// Who asks it.
    pub asked_by: &'static [&'static str],
    /// How it stands.
    pub stand: Stand,
    /// Why, and what to do.
    pub detail: String,
}

/// How the last connection to Gmail was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToGmail {
    /// There was none yet.
    #[default]
    Nothing,
    /// Under TLS.
    Encrypted,
    /// In the clear.
    Plain,
}

/// What was counted of the mail a domain signed within a day, and what TLS comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How mail goes to Gmail, whoever sent it.
    pub to_gmail: ToGmail,
    /// Of the domain's mail.
    pub counted: Counted,
}

/// What was counted of the mail that a domain signed within a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counted {
    /// It is not for whoever asks.
    #[default]
    Hidden,
    /// More domains of the tenant sent than are told apart, and mail of this one may be among the others'.
    Together,
    /// Told apart.
    Apart {
        /// Recipients delivered.
        delivered: u64,
        /// Complaints.
        complaints: u64,
        /// Messages of class marketing.
        marketing: u64,
        /// Of these, those with one-click unsubscribing.
        one_click: u64,
    },
}

/// What DNS says of an address mail leaves by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressNames {
    /// The address as the world sees it.
    pub address: IpAddr,
    /// The name said in EHLO.
    pub ehlo: Domain,
    /// Its names, by PTR; `Err` is why DNS did not answer.
    pub names: Result<Vec<Domain>, String>,
    /// Whether one of them leads back to it.
    pub leads_back: bool,
}

const ALL: &[&str] = &["gmail", "yahoo", "microsoft"];
const GMAIL_YAHOO: &[&str] = &["gmail", "yahoo"];

/// How a domain stands, from what was seen.
pub fn judge(records: &[Inspected], addresses: &[AddressNames], traffic: Traffic) -> Vec<Item> {
    let item = |rule, asked_by, (stand, detail)| Item { rule, asked_by, stand, detail };
    let dkim = of_record(records, Purpose::Ownership, "the RSA key at its selector");
    let aligned = match dkim.0 {
        Stand::Met => (Stand::Met, "every message is signed by the domain of its From".to_owned()),
        stand => (stand, "it follows from DKIM: mail is signed by the domain of its From".to_owned()),
    };
    let mut items = vec![
        item(Rule::Spf, ALL, of_record(records, Purpose::Spf, "the v=spf1 record")),
        item(Rule::Dkim, ALL, dkim),
        item(Rule::Dmarc, ALL, dmarc(records)),
        item(Rule::Alignment, ALL, aligned),
        item(Rule::ReverseName, ALL, reverse(addresses)),
        item(Rule::Tls, &["gmail"], tls(traffic.to_gmail)),
        item(Rule::OneClick, GMAIL_YAHOO, one_click(traffic.counted)),
        item(Rule::Complaints, GMAIL_YAHOO, complaints(traffic.counted)),
    ];
    items.extend(return_path(records).map(|stand| item(Rule::ReturnPath, &[], stand)));
    items
}

/// Nobody asks for a return-path. One that lacks a record fails nothing: mail uses the client's reverse-path then.
fn return_path(records: &[Inspected]) -> Option<(Stand, String)> {
    let is_of_it =
        |record: &&Inspected| matches!(record.purpose, Purpose::ReturnPathExchanger | Purpose::ReturnPathSpf);
    let own: Vec<&Inspected> = records.iter().filter(is_of_it).collect();
    let first = own.first()?;
    let Some(wanting) = own.iter().find(|record| record.verdict != Verdict::Found) else {
        return Some((Stand::Met, format!("MX and SPF of {} are there", first.expected.name)));
    };
    let why = wanting.advice.clone().unwrap_or_else(|| "a record of it is not there".to_owned());
    let stand = if wanting.verdict == Verdict::Unknown { Stand::Unknown } else { Stand::Warning };
    Some((stand, format!("{}: {why}; without it notices go to the client's own reverse-path", first.expected.name)))
}

fn of_record(records: &[Inspected], purpose: Purpose, what: &str) -> (Stand, String) {
    let Some(seen) = records.iter().find(|record| record.purpose == purpose) else {
        return (Stand::Unknown, format!("{what} was not looked for: there is no virtual IP yet"));
    };
    let why = seen.advice.as_ref().map(|advice| format!(": {advice}")).unwrap_or_default();
    match seen.verdict {
        Verdict::Found => (Stand::Met, format!("{what} is there")),
        Verdict::Missing => (Stand::Failing, format!("{what} is missing{why}")),
        Verdict::Different => (Stand::Failing, format!("{what} is another one{why}")),
        Verdict::Unknown => (Stand::Unknown, format!("{what}{why}")),
    }
}

fn dmarc(records: &[Inspected]) -> (Stand, String) {
    let (stand, detail) = of_record(records, Purpose::Dmarc, "the DMARC record");
    let seen = records.iter().find(|record| record.purpose == Purpose::Dmarc).and_then(|record| record.found.first());
    match seen.and_then(|record| dmarc_policy(record)) {
        Some(policy) if stand == Stand::Met => (stand, format!("the DMARC record is there, with p={policy}")),
        _ => (stand, detail),
    }
}

fn reverse(addresses: &[AddressNames]) -> (Stand, String) {
    if addresses.is_empty() {
        return (Stand::Unknown, "there is no virtual IP with a public address yet".to_owned());
    }
    for seen in addresses {
        let address = seen.address;
        let names = match &seen.names {
            Ok(names) => names,
            Err(why) => return (Stand::Unknown, format!("the name of {address}: DNS did not answer: {why}")),
        };
        if names.is_empty() {
            return (Stand::Failing, format!("{address} has no name: its provider sets PTR to {}", seen.ehlo));
        }
        if !seen.leads_back {
            return (Stand::Failing, format!("no name of {address} leads back to it: it needs an address record"));
        }
        if !names.contains(&seen.ehlo) {
            return (Stand::Warning, format!("{address} is not called {}, which is said in EHLO", seen.ehlo));
        }
    }
    (Stand::Met, format!("{} addresses have names that lead back to them", addresses.len()))
}

fn tls(to_gmail: ToGmail) -> (Stand, String) {
    match to_gmail {
        ToGmail::Nothing => {
            (Stand::Unknown, "nothing went to Gmail yet; TLS is used with every receiver that offers it".to_owned())
        }
        ToGmail::Encrypted => (Stand::Met, "mail to Gmail goes under TLS".to_owned()),
        ToGmail::Plain => {
            (Stand::Failing, "mail went to Gmail in the clear: postern tls show gmail.com says why".to_owned())
        }
    }
}

/// What a marketing message needs to be unsubscribed from with one click.
const ONE_CLICK_NEEDS: &str = "it needs List-Unsubscribe with an https address and List-Unsubscribe-Post: \
                               List-Unsubscribe=One-Click; both are signed where a message has them";

fn one_click(counted: Counted) -> (Stand, String) {
    let (of, with) = match counted {
        Counted::Apart { marketing, one_click, .. } => (marketing, one_click),
        Counted::Hidden | Counted::Together => {
            return (Stand::UpToSender, format!("for each marketing message {ONE_CLICK_NEEDS}"));
        }
    };
    let told =
        format!("{with} of {of} marketing messages of the domain within a day can be unsubscribed from with one click");
    match (of, with) {
        (0, _) => {
            let why = "no marketing message of the domain was counted within a day";
            (Stand::UpToSender, format!("{why}; when there is one, {ONE_CLICK_NEEDS}"))
        }
        (_, 0) => (Stand::Failing, format!("{told}; {ONE_CLICK_NEEDS}")),
        _ if with < of => (Stand::Warning, format!("{told}; {ONE_CLICK_NEEDS}")),
        _ => (Stand::Met, told),
    }
}

fn complaints(counted: Counted) -> (Stand, String) {
    let (of, about) = match counted {
        Counted::Apart { delivered, complaints, .. } => (delivered, complaints),
        Counted::Hidden => {
            let why = "complaints are counted for all mail of the domain, and you see a part of it";
            return (Stand::Unknown, why.to_owned());
        }
        Counted::Together => {
            let why = "more domains of the tenant sent within an hour than are counted apart";
            return (Stand::Unknown, why.to_owned());
        }
    };
    if of < DELIVERED_MIN {
        let why = format!("{of} deliveries of the domain within a day; fewer than {DELIVERED_MIN} say nothing");
        return (Stand::Unknown, why);
    }
    let per_million = about.saturating_mul(1_000_000) / of;
    let counted = format!("{about} complaints about {of} deliveries of the domain within a day");
    match per_million {
        FAILING_PER_MILLION.. => (Stand::Failing, format!("{counted}: 0.3 % is never to be reached")),
        WARNING_PER_MILLION.. => (Stand::Warning, format!("{counted}: stay below 0.1 %")),
        _ => (Stand::Met, counted),
    }
}

impl Domains {
    /// Looks at everything and judges it.
    ///
    /// # Errors
    /// If the actor may not, or there is no such domain.
    pub async fn readiness(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        vips: &[Vip],
        traffic: Traffic,
    ) -> Result<Vec<Item>, AdminError> {
        let records = self.inspect(actor, (tenant, domain), vips).await?;
        let looks = vips.iter().flat_map(|vip| {
            advice::public_addresses(vip).into_iter().map(|address| names(&*self.resolver, address, &vip.ehlo))
        });
        let addresses = futures_util::future::join_all(looks).await;
        Ok(judge(&records, &addresses, traffic))
    }
}

async fn names(resolver: &dyn Resolver, address: IpAddr, ehlo: &Domain) -> AddressNames {
    let names = match resolver.ptr(address).await {
        Ok(names) => Ok(names),
        Err(LookupError::NoSuchName | LookupError::NoRecord) => Ok(Vec::new()),
        Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => Err(why),
    };
    let mut leads_back = false;
    for name in names.iter().flatten() {
        let found = match address {
            IpAddr::V4(own) => resolver.ipv4(name).await.is_ok_and(|all| all.contains(&own)),
            IpAddr::V6(own) => resolver.ipv6(name).await.is_ok_and(|all| all.contains(&own)),
        };
        leads_back |= found;
    }
    AddressNames { address, ehlo: ehlo.clone(), names, leads_back }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domains::{DnsRecord, Need};

    fn seen(purpose: Purpose, verdict: Verdict, found: &str) -> Inspected {
        let expected =
            DnsRecord { name: "x".into(), kind: "TXT", value: "v".into(), purpose: "p".into(), need: Need::Advised };
        Inspected { purpose, expected, found: vec![found.to_owned()], verdict, advice: None }
    }

    fn stand(items: &[Item], rule: Rule) -> Stand {
        items.iter().find(|item| item.rule == rule).unwrap().stand
    }

    fn address(names: Result<Vec<&str>, &str>, leads_back: bool) -> AddressNames {
        let names = names.map(|names| names.into_iter().map(|name| Domain::parse(name).unwrap()).collect());
        AddressNames {
            address: "192.0.2.1".parse().unwrap(),
            ehlo: Domain::parse("mx.example").unwrap(),
            names: names.map_err(str::to_owned),
            leads_back,
        }
    }

    #[test]
    fn what_is_there_is_met_and_what_is_not_known_is_not_called_well() {
        let records = [
            seen(Purpose::Ownership, Verdict::Found, "k"),
            seen(Purpose::Spf, Verdict::Different, "v=spf1 -all"),
            seen(Purpose::Dmarc, Verdict::Found, "v=DMARC1; p=reject"),
        ];
        let items = judge(&records, &[], Traffic::default());
        assert_eq!(stand(&items, Rule::Dkim), Stand::Met);
        assert_eq!(stand(&items, Rule::Alignment), Stand::Met);
        assert_eq!(stand(&items, Rule::Spf), Stand::Failing);
        assert_eq!(stand(&items, Rule::ReverseName), Stand::Unknown);
        assert_eq!(stand(&items, Rule::Complaints), Stand::Unknown);
        assert!(items.iter().any(|item| item.detail.contains("p=reject")));
        let items = judge(&[seen(Purpose::Ownership, Verdict::Unknown, "")], &[], Traffic::default());
        assert_eq!(stand(&items, Rule::Dkim), Stand::Unknown);
        assert_eq!(stand(&items, Rule::Spf), Stand::Unknown, "not looked for");
    }

    #[test]
    fn an_address_needs_a_name_that_leads_back_and_is_said() {
        for (seen, expected) in [
            (address(Ok(vec!["mx.example"]), true), Stand::Met),
            (address(Ok(vec!["other.example"]), true), Stand::Warning),
            (address(Ok(vec!["mx.example"]), false), Stand::Failing),
            (address(Ok(vec![]), false), Stand::Failing),
            (address(Err("timeout"), false), Stand::Unknown),
        ] {
            assert_eq!(
                stand(&judge(&[], std::slice::from_ref(&seen), Traffic::default()), Rule::ReverseName),
                expected
            );
        }
    }

    #[test]
    fn complaints_are_judged_by_the_rules_of_2024() {
        for (delivered, complaints, expected) in [
            (99, 50, Stand::Unknown),
            (10_000, 9, Stand::Met),
            (10_000, 10, Stand::Warning),
            (10_000, 29, Stand::Warning),
            (10_000, 30, Stand::Failing),
        ] {
            let counted = Counted::Apart { delivered, complaints, marketing: 0, one_click: 0 };
            let items = judge(&[], &[], Traffic { counted, ..Traffic::default() });
            assert_eq!(stand(&items, Rule::Complaints), expected, "{complaints} of {delivered}");
        }
        for counted in [Counted::Hidden, Counted::Together] {
            let items = judge(&[], &[], Traffic { counted, ..Traffic::default() });
            assert_eq!(stand(&items, Rule::Complaints), Stand::Unknown);
        }
    }

    #[test]
    fn one_click_is_judged_by_what_was_sent() {
        for (marketing, one_click, expected) in
            [(0, 0, Stand::UpToSender), (1, 0, Stand::Failing), (500, 499, Stand::Warning), (500, 500, Stand::Met)]
        {
            let counted = Counted::Apart { delivered: 0, complaints: 0, marketing, one_click };
            let items = judge(&[], &[], Traffic { counted, ..Traffic::default() });
            assert_eq!(stand(&items, Rule::OneClick), expected, "{one_click} of {marketing}");
        }
        assert_eq!(stand(&judge(&[], &[], Traffic::default()), Rule::OneClick), Stand::UpToSender);
    }

    #[test]
    fn tls_is_met_only_if_it_was_seen() {
        for (to_gmail, stand) in
            [(ToGmail::Nothing, Stand::Unknown), (ToGmail::Encrypted, Stand::Met), (ToGmail::Plain, Stand::Failing)]
        {
            let items = judge(&[], &[], Traffic { to_gmail, ..Traffic::default() });
            let found = items.iter().find(|item| item.rule == Rule::Tls).unwrap();
            assert_eq!(found.stand, stand, "{}", found.detail);
        }
    }
}
