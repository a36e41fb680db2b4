//! A report as the world reads it: JSON (RFC 8460 s4.4), its file's name (s5.1), gzip (s5.2). Pure.
//!
//! Easy to get wrong: members that are not known are left out, never null; and the addresses in it are those
//! the receiver saw, not those behind a NAT.

use std::io::Write as _;
use std::net::IpAddr;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::counts::{DomainDay, Failures, UnderPolicy, begins};
use super::session::PolicyType;
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId};

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Who reports.
    pub organization_name: String,
    /// About when.
    pub date_range: DateRange,
    /// Whom to ask.
    pub contact_info: String,
    /// The same at each try.
    pub report_id: String,
    /// What came of each policy.
    pub policies: Vec<Policy>,
}

/// From when to when, RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DateRange {
    /// The first second.
    pub start_datetime: String,
    /// The last one.
    pub end_datetime: String,
}

/// One policy and its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policy {
    /// Which.
    pub policy: Named,
    /// How many sessions.
    pub summary: Summary,
    /// Those that failed, by kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failure_details: Vec<Detail>,
}

/// A policy by its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Named {
    /// `tlsa`, `sts` or `no-policy-found`.
    pub policy_type: String,
    /// Its lines or records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_string: Vec<String>,
    /// Whose it is.
    pub policy_domain: String,
    /// The hosts an MTA-STS policy names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mx_host: Vec<String>,
}

/// How many sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Satisfied the policy.
    pub total_successful_session_count: u64,
    /// Did not.
    pub total_failure_session_count: u64,
}

/// Failed sessions of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Detail {
    /// Of which (s4.3).
    pub result_type: String,
    /// From which of our addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending_mta_ip: Option<IpAddr>,
    /// With which mail host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_mx_hostname: Option<String>,
    /// At which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_ip: Option<IpAddr>,
    /// How many.
    pub failed_session_count: u64,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason_code: Option<String>,
}

/// Who reports.
#[derive(Clone, Copy, Debug)]
pub struct Submitter<'a> {
    /// The organisation.
    pub organization: &'a str,
    /// Whom to ask.
    pub contact: &'a str,
    /// The name that signs.
    pub domain: &'a Domain,
}

impl Report {
    /// What `day` came to. `seen_as` says what the world sees of an address of ours.
    pub fn of(day: &DomainDay, id: QueueId, by: &Submitter<'_>, seen_as: &dyn Fn(IpAddr) -> IpAddr) -> Self {
        let (start, end) = bounds(day);
        Self {
            organization_name: by.organization.to_owned(),
            date_range: DateRange { start_datetime: whole_second(start), end_datetime: whole_second(end) },
            contact_info: by.contact.to_owned(),
            report_id: report_id(id, by.domain),
            policies: day.policies.iter().map(|under| policy(under, seen_as)).collect(),
        }
    }

    /// As JSON.
    ///
    /// # Panics
    /// Never: it is made of strings and numbers.
    #[expect(clippy::expect_used, reason = "strings and numbers can always be written as JSON")]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers")
    }

    /// The same in gzip (RFC 1952).
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn to_gzip(&self) -> std::io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.to_json())?;
        encoder.finish()
    }
}

/// The name of the file (s5.1).
pub fn file_name(day: &DomainDay, id: QueueId, submitter: &Domain) -> String {
    let (start, end) = bounds(day);
    format!("{submitter}!{}!{}!{}!{id}.json.gz", day.domain, start.as_secs(), end.as_secs())
}

/// Names the report; unique, and the same at each try.
pub fn report_id(id: QueueId, submitter: &Domain) -> String {
    format!("{id}@{submitter}")
}

/// The first and the last second.
fn bounds(day: &DomainDay) -> (Timestamp, Timestamp) {
    let end = begins(day.day.saturating_add(1));
    (begins(day.day), Timestamp(end.0.saturating_sub(1_000)))
}

/// The RFC's examples have no fractions.
fn whole_second(moment: Timestamp) -> String {
    let text = moment.rfc3339();
    format!("{}Z", text.split('.').next().unwrap_or_default())
}

fn policy(under: &UnderPolicy, seen_as: &dyn Fn(IpAddr) -> IpAddr) -> Policy {
    let UnderPolicy { policy, successful, failed, failures } = under;
    Policy {
        policy: Named {
            policy_type: policy.kind.word().to_owned(),
            policy_string: policy.strings.clone(),
            policy_domain: policy.domain.to_string(),
            mx_host: if policy.kind == PolicyType::Sts { policy.mx.clone() } else { Vec::new() },
        },
        summary: Summary { total_successful_session_count: *successful, total_failure_session_count: *failed },
        failure_details: failures.iter().map(|one| detail(one, seen_as)).collect(),
    }
}

fn detail(one: &Failures, seen_as: &dyn Fn(IpAddr) -> IpAddr) -> Detail {
    Detail {
        result_type: one.result.word().to_owned(),
        sending_mta_ip: one.source.map(seen_as),
        receiving_mx_hostname: one.host.clone(),
        receiving_ip: one.address,
        failed_session_count: one.sessions,
        failure_reason_code: Some(one.reason.clone()).filter(|reason| !reason.is_empty()),
    }
}
