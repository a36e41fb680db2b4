//! What DNS holds beside what should be there, record by record, for people who set a domain up.
//!
//! It decides nothing: whether a domain may be used is in `verification`. Easy to get wrong: a lookup that failed
//! says nothing about a record, and what others published at the same name is not ours to call wrong.

use std::net::IpAddr;

use futures_util::future::join_all;

use super::advice::{DnsRecord, Need, domain_records_with, public_addresses, spf_terms};
use super::record::{INSTANCE, SendingDomain};
use super::return_path::{self, Expected, RecordState};
use super::spf::{UNREADABLE, judge};
use super::{Domains, missing};
use crate::access::{Actor, Permission, Resource};
use crate::mail::{Domain, TenantId, printable};
use crate::net::{LookupError, Resolver, is_spf_record};
use crate::records::AdminError;
use crate::vips::Vip;

/// Records shown of one name, at most.
const FOUND_MAX: usize = 8;
/// Characters shown of one record.
const SHOWN_MAX: usize = 500;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The RSA key at this tenant's own selector: also the proof that the domain is its own.
    Ownership,
    /// A further DKIM key.
    Dkim,
    /// Which addresses may send.
    Spf,
    /// What receivers do with mail that proves nothing.
    Dmarc,
    /// Where bounces go that are sent to the domain.
    Exchanger,
    /// A logo beside the mail.
    Bimi,
    /// Where what comes back to the return-path goes: here.
    ReturnPathExchanger,
    /// Which addresses may send with the return-path.
    ReturnPathSpf,
}

/// Whether what is there is what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Found,
    /// Nothing of the kind is there.
    Missing,
    /// Something else is.
    Different,
    /// DNS did not answer.
    Unknown,
}

/// One record as it should be and as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// What it is for.
    pub purpose: Purpose,
    /// What should be there.
    pub expected: DnsRecord,
    /// What is there, made printable.
    pub found: Vec<String>,
    /// How they compare.
    pub verdict: Verdict,
    /// What to do, or why nothing is known.
    pub advice: Option<String>,
}

impl Domains {
    /// Asks DNS for every record of a domain whose mail leaves by `vips`.
    ///
    /// # Errors
    /// If the actor may not, or there is no such domain.
    pub async fn inspect(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        vips: &[Vip],
    ) -> Result<Vec<Inspected>, AdminError> {
        actor.require(Permission::Read(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let entry = self.entry(tenant, domain).ok_or_else(|| missing(domain))?;
        let record = &entry.record;
        let keys = record.key_names();
        let mut asked = Vec::new();
        for expected in domain_records_with(record, vips, self.spf_include()) {
            let purpose = match keys.iter().position(|name| *name == expected.name) {
                Some(0) => Purpose::Ownership,
                Some(_) => Purpose::Dkim,
                None if expected.name.starts_with("_dmarc.") => Purpose::Dmarc,
                None => Purpose::Spf,
            };
            asked.push((purpose, expected));
        }
        if tenant != INSTANCE {
            asked.extend(further(record));
        }
        if let Some(path) = self.return_path(actor, tenant, domain)? {
            let purposes = [Purpose::ReturnPathExchanger, Purpose::ReturnPathSpf];
            asked.extend(purposes.into_iter().zip(path.records(&self.expected(tenant))));
        }
        let looks = asked.into_iter().map(|(purpose, expected)| self.look((record, vips), purpose, expected));
        Ok(join_all(looks).await)
    }

    /// Every record to publish for a domain whose mail leaves by `vips`, those of its return-path included.
    ///
    /// # Errors
    /// If the actor may not, or there is no such domain.
    pub fn records_to_publish(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        vips: &[Vip],
    ) -> Result<Vec<DnsRecord>, AdminError> {
        let mut records = domain_records_with(&self.get(actor, tenant, domain)?, vips, self.spf_include());
        if let Some(path) = self.return_path(actor, tenant, domain)? {
            records.extend(path.records(&self.expected(tenant)));
        }
        Ok(records)
    }

    async fn look(&self, (record, vips): (&SendingDomain, &[Vip]), purpose: Purpose, expected: DnsRecord) -> Inspected {
        let resolver = &*self.resolver;
        let (found, verdict, advice) = match purpose {
            Purpose::Ownership | Purpose::Dkim => key(resolver, &expected).await,
            Purpose::Spf => {
                let addresses: Vec<IpAddr> = vips.iter().flat_map(public_addresses).collect();
                spf(resolver, &record.domain, (&addresses, self.spf_include())).await
            }
            Purpose::Dmarc => dmarc(resolver, &record.domain).await,
            Purpose::Exchanger => exchanger(resolver, &record.domain).await,
            Purpose::Bimi => bimi(resolver, &expected).await,
            Purpose::ReturnPathExchanger | Purpose::ReturnPathSpf => {
                returning(resolver, (purpose, &expected), &self.expected(record.tenant)).await
            }
        };
        Inspected { purpose, expected, found, verdict, advice }
    }
}

type Look = (Vec<String>, Verdict, Option<String>);

/// Records that are not needed for sending and cannot be written for somebody.
fn further(record: &SendingDomain) -> [(Purpose, DnsRecord); 2] {
    let domain = &record.domain;
    let exchanger = DnsRecord {
        name: domain.to_string(),
        kind: "MX",
        value: "10 the server that takes mail of this domain".to_owned(),
        purpose: "answers and bounces to addresses of this domain go there".to_owned(),
        need: Need::Advised,
    };
    let bimi = DnsRecord {
        name: format!("default._bimi.{domain}"),
        kind: "TXT",
        value: "v=BIMI1; l=https://.../logo.svg; a=https://.../certificate.pem".to_owned(),
        purpose: "BIMI: a logo beside the mail at some providers; needs DMARC at quarantine or reject".to_owned(),
        need: Need::Advised,
    };
    [(Purpose::Exchanger, exchanger), (Purpose::Bimi, bimi)]
}

async fn texts(resolver: &dyn Resolver, name: &str) -> Result<Vec<String>, String> {
    let name = Domain::parse(name).map_err(|error| error.to_string())?;
    match resolver.txt(&name).await {
        Ok(texts) => Ok(texts),
        Err(LookupError::NoSuchName | LookupError::NoRecord) => Ok(Vec::new()),
        Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => Err(why),
    }
}

fn shown(texts: &[String]) -> Vec<String> {
    let short = |text: &String| printable(&text.chars().take(SHOWN_MAX).collect::<String>());
    texts.iter().take(FOUND_MAX).map(short).collect()
}

fn unknown(why: String) -> Look {
    (Vec::new(), Verdict::Unknown, Some(format!("DNS did not answer: {}", printable(&why))))
}

async fn key(resolver: &dyn Resolver, expected: &DnsRecord) -> Look {
    let texts = match texts(resolver, &expected.name).await {
        Ok(texts) => texts,
        Err(why) => return unknown(why),
    };
    let same = |text: &String| without_spaces(text) == without_spaces(&expected.value);
    let verdict = match (texts.is_empty(), texts.iter().any(same)) {
        (true, _) => Verdict::Missing,
        (false, true) => Verdict::Found,
        (false, false) => Verdict::Different,
    };
    let advice = match verdict {
        Verdict::Missing => Some("publish it; some providers add the domain to the name by themselves".to_owned()),
        Verdict::Different => Some("another key is there; publish exactly this value".to_owned()),
        Verdict::Found | Verdict::Unknown => None,
    };
    (shown(&texts), verdict, advice)
}

/// White space may stand anywhere between the tags of a key record (RFC 6376 s3.2).
fn without_spaces(text: &str) -> String {
    text.chars().filter(|each| !each.is_whitespace()).collect::<String>().trim_end_matches(';').to_owned()
}

async fn spf(resolver: &dyn Resolver, domain: &Domain, (addresses, include): (&[IpAddr], Option<&Domain>)) -> Look {
    let texts = match texts(resolver, domain.as_str()).await {
        Ok(texts) => texts,
        Err(why) => return unknown(why),
    };
    let records: Vec<String> = texts.into_iter().filter(|text| is_spf_record(text)).collect();
    let found = shown(&records);
    if records.is_empty() {
        return (found, Verdict::Missing, Some("publish it".to_owned()));
    }
    if records.len() > 1 {
        let advice = "there is more than one v=spf1 record, so none counts (RFC 7208 s4.5); make them one";
        return (found, Verdict::Different, Some(advice.to_owned()));
    }
    match wanting(resolver, domain, (addresses, include)).await {
        Ok(None) => (found, Verdict::Found, None),
        Ok(Some(advice)) => (found, Verdict::Different, Some(advice)),
        Err(why) => (found, Verdict::Unknown, Some(format!("DNS did not answer: {}", printable(&why)))),
    }
}

/// What the only SPF record of a domain lacks to permit every address; `Err` is what DNS did not answer.
async fn wanting(
    resolver: &dyn Resolver,
    domain: &Domain,
    (addresses, include): (&[IpAddr], Option<&Domain>),
) -> Result<Option<String>, String> {
    let judged = judge(resolver, domain, (addresses, include)).await?;
    if judged.refused.is_empty() || judged.of_service.is_some() {
        return Ok(judged.of_service);
    }
    if judged.is_unreadable() {
        return Ok(Some(UNREADABLE.to_owned()));
    }
    let wanting: Vec<IpAddr> = judged.refused.iter().map(|(address, _)| *address).collect();
    Ok(Some(format!("it does not permit every address; add {}", spf_terms(domain, &wanting, include))))
}

fn begins(text: &str, tag: &str) -> bool {
    let start = text.trim_start().get(..tag.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(tag))
}

/// The policy of a DMARC record: `none`, `quarantine`, `reject`.
pub fn dmarc_policy(record: &str) -> Option<&str> {
    let tags = record.split(';').filter_map(|tag| tag.split_once('='));
    tags.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == "p").map(|(_, value)| value)
}

/// The record of the domain, else of a name above it (RFC 7489 s6.6.3).
async fn dmarc(resolver: &dyn Resolver, domain: &Domain) -> Look {
    let mut at = Some(domain.clone());
    while let Some(name) = at.filter(|name| name.as_str().contains('.')) {
        let texts = match texts(resolver, &format!("_dmarc.{name}")).await {
            Ok(texts) => texts,
            Err(why) => return unknown(why),
        };
        let records: Vec<String> = texts.into_iter().filter(|text| begins(text, "v=DMARC1")).collect();
        if records.len() > 1 {
            let advice = "there is more than one DMARC record, so none counts (RFC 7489 s6.6.3); make them one";
            return (shown(&records), Verdict::Different, Some(advice.to_owned()));
        }
        if let Some(record) = records.first() {
            let advice = match dmarc_policy(record) {
                Some("none" | "quarantine" | "reject") if name != *domain => Some(format!("it is that of {name}")),
                Some("none" | "quarantine" | "reject") => None,
                _ => Some("its p= is none of none, quarantine, reject".to_owned()),
            };
            let is_sound = advice.as_ref().is_none_or(|advice| advice.starts_with("it is that of"));
            return (shown(&records), if is_sound { Verdict::Found } else { Verdict::Different }, advice);
        }
        at = name.parent();
    }
    (Vec::new(), Verdict::Missing, Some("publish it; p=none changes nothing and is enough to begin with".to_owned()))
}

async fn exchanger(resolver: &dyn Resolver, domain: &Domain) -> Look {
    match resolver.mx(domain).await {
        Ok(all) if all.iter().any(|exchanger| exchanger.host.is_some()) => {
            let line = |exchanger: &crate::net::Mx| {
                let host = exchanger.host.as_ref().map_or_else(|| ".".to_owned(), ToString::to_string);
                format!("{} {host}", exchanger.preference)
            };
            (all.iter().take(FOUND_MAX).map(line).collect(), Verdict::Found, None)
        }
        Ok(_) => (vec!["0 .".to_owned()], Verdict::Different, Some("the domain says that it takes no mail".to_owned())),
        Err(LookupError::NoSuchName | LookupError::NoRecord) => {
            (Vec::new(), Verdict::Missing, Some("without it nobody can answer, and some receivers refuse".to_owned()))
        }
        Err(LookupError::Temporary(why) | LookupError::Bogus(why)) => unknown(why),
    }
}

/// A record of a return-path, judged as for its use; what is there is shown beside that.
async fn returning(resolver: &dyn Resolver, (purpose, record): (Purpose, &DnsRecord), expected: &Expected) -> Look {
    let name = match Domain::parse(&record.name) {
        Ok(name) => name,
        Err(error) => return unknown(error.to_string()),
    };
    let (found, state) = if purpose == Purpose::ReturnPathExchanger {
        let ((found, ..), state) =
            tokio::join!(exchanger(resolver, &name), return_path::look_mx(resolver, &name, expected));
        (found, state)
    } else {
        let (texts, state) =
            tokio::join!(texts(resolver, name.as_str()), return_path::look_spf(resolver, &name, expected));
        let records: Vec<String> = texts.unwrap_or_default().into_iter().filter(|text| is_spf_record(text)).collect();
        (shown(&records), state)
    };
    match state {
        RecordState::Found => (found, Verdict::Found, None),
        RecordState::Unknown => (found, Verdict::Unknown, Some("DNS did not answer".to_owned())),
        RecordState::Wrong(why) if found.is_empty() => (found, Verdict::Missing, Some(printable(&why))),
        RecordState::Wrong(why) => (found, Verdict::Different, Some(printable(&why))),
    }
}

async fn bimi(resolver: &dyn Resolver, expected: &DnsRecord) -> Look {
    match texts(resolver, &expected.name).await {
        Ok(texts) => {
            let records: Vec<String> = texts.into_iter().filter(|text| begins(text, "v=BIMI1")).collect();
            let verdict = if records.is_empty() { Verdict::Missing } else { Verdict::Found };
            (shown(&records), verdict, records.is_empty().then(|| "only for those who want a logo shown".to_owned()))
        }
        Err(why) => unknown(why),
    }
}
