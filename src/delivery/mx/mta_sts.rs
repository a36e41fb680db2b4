//! MTA-STS (RFC 8461) as text: the record in DNS that says there is a policy, the policy itself, and
//! which hosts it names. Pure.
//!
//! It refuses to know where a policy came from and whether it is still good. Easy to get wrong: two
//! records are as none, and of a field that stands twice the first counts (s3.1, s3.2).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest a policy may ask to be kept (s3.2: a year).
const MAX_AGE_MAX: Duration = Duration::from_secs(31_557_600);
/// Hosts a policy may name, at most.
const HOSTS_MAX: usize = 200;
/// Octets of the id of a policy (s3.1).
const ID_OCTETS_MAX: usize = 32;

/// What is done about a host that does not satisfy the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It gets no mail.
    Enforce,
    /// It gets mail; the domain wants to hear of it.
    Testing,
    /// There is no policy any more.
    None,
}

impl Mode {
    /// As it is written in policies.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What it asks for.
    pub mode: Mode,
    /// How long it may be kept.
    pub max_age: Duration,
    /// The hosts, lower case; `*.` stands for one label.
    pub mx: Vec<String>,
}

impl Policy {
    /// Whether it names `host` (s4.1).
    pub fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => *pattern == host,
        })
    }

    /// Its lines, as a report tells them: what we took from it.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec!["version: STSv1".to_owned(), format!("mode: {}", self.mode.word())];
        lines.extend(self.mx.iter().map(|host| format!("mx: {host}")));
        lines.push(format!("max_age: {}", self.max_age.as_secs()));
        lines
    }

    /// Reads a policy file (s3.2).
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
            if line.trim_matches([' ', '\t']).is_empty() {
                continue;
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| format!("a line without a colon: {}", shown(line)))?;
            let value = value.trim_matches([' ', '\t']);
            match name {
                "version" => drop(version.get_or_insert(value)),
                "mode" => drop(mode.get_or_insert(value)),
                "max_age" => drop(max_age.get_or_insert(value)),
                "mx" if mx.len() >= HOSTS_MAX => return Err(format!("more than {HOSTS_MAX} hosts")),
                "mx" => mx.push(pattern(value)?),
                _ if is_field_name(name) => {}
                _ => return Err(format!("not the name of a field: {}", shown(name))),
            }
        }
        if version != Some("STSv1") {
            return Err(format!("its version is {}, not STSv1", version.map_or_else(|| "missing".to_owned(), shown)));
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            other => return Err(format!("its mode is {}", other.map_or_else(|| "missing".to_owned(), shown))),
        };
        let seconds = max_age.ok_or("its max_age is missing")?;
        let is_number = (1..=10).contains(&seconds.len()) && seconds.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = seconds.parse().ok().filter(|_| is_number);
        let max_age = Duration::from_secs(seconds.ok_or("its max_age is not a number")?).min(MAX_AGE_MAX);
        if mx.is_empty() && mode != Mode::None {
            return Err("it names no host".to_owned());
        }
        Ok(Self { mode, max_age, mx })
    }
}

/// The id of the policy that the TXT records of `_mta-sts` announce; `None` if there is none, or if
/// they cannot be told apart (s3.1).
pub fn announced(records: &[String]) -> Option<String> {
    let mut of_ours = records.iter().filter(|record| {
        let rest = record.strip_prefix("v=STSv1");
        rest.is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(';'))
    });
    let (Some(record), None) = (of_ours.next(), of_ours.next()) else { return None };
    let mut fields = record.split(';').skip(1).map(|field| field.trim_matches([' ', '\t']));
    let id = fields.find_map(|field| field.strip_prefix("id="))?;
    let is_sound = (1..=ID_OCTETS_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_sound.then(|| id.to_owned())
}

fn is_field_name(name: &str) -> bool {
    let is_first = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    is_first && name.len() <= 32 && name.bytes().all(is_sound)
}

/// A host's name, or `*.` and one.
fn pattern(value: &str) -> Result<String, String> {
    let wrong = || format!("not the name of a host: {}", shown(value));
    let name = value.strip_prefix("*.").unwrap_or(value);
    let domain = crate::mail::Domain::parse(name).map_err(|_| wrong())?;
    if !value.is_ascii() {
        return Err(wrong());
    }
    Ok(if value.starts_with("*.") { format!("*.{domain}") } else { domain.to_string() })
}

/// A stranger's words, short and printable.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{:?}", crate::mail::printable(&short))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str =
        "version: STSv1\r\nmode: enforce\r\nmx: mail.shop.example\r\nmx: *.Shop.example\r\nmax_age: 604800\r\n";

    #[test]
    fn the_policy_of_the_rfc_is_read_with_either_line_end() {
        for text in [FINE.to_owned(), FINE.replace("\r\n", "\n"), FINE.trim_end().to_owned()] {
            let policy = Policy::parse(&text).unwrap();
            assert_eq!((policy.mode, policy.max_age), (Mode::Enforce, Duration::from_secs(604_800)));
            assert_eq!(policy.mx, ["mail.shop.example", "*.shop.example"]);
        }
    }

    #[test]
    fn policies_are_read_as_the_table_says() {
        let table = include_str!("../../../tests/data/tls/mta-sts-policies.txt");
        let mut cases = 0;
        for case in table.split("\n\n").map(str::trim).filter(|case| !case.is_empty() && !case.starts_with('#')) {
            let (name, rest) = case.split_once('\n').unwrap();
            let (text, expected) = rest.rsplit_once("= ").unwrap();
            let found = match Policy::parse(text) {
                Ok(policy) => format!("{} {} {}", policy.mode.word(), policy.max_age.as_secs(), policy.mx.join(" ")),
                Err(error) => format!("error: {error}"),
            };
            assert_eq!(found.trim(), expected.trim(), "{name}");
            cases += 1;
        }
        assert!(cases >= 20, "{cases}");
    }

    #[test]
    fn a_star_stands_for_exactly_one_label() {
        let policy = Policy::parse(FINE).unwrap();
        for host in ["mail.shop.example", "MX1.shop.example", "mx1.shop.example."] {
            assert!(policy.names(host), "{host}");
        }
        for host in
            ["shop.example", "a.b.shop.example", "mailshop.example", ".shop.example", "shop.example.evil.example"]
        {
            assert!(!policy.names(host), "{host}");
        }
    }

    #[test]
    fn records_in_dns_are_read_as_the_table_says() {
        let table = include_str!("../../../tests/data/tls/mta-sts-records.txt");
        let mut cases = 0;
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (records, expected) = line.rsplit_once(" => ").unwrap();
            let records: Vec<String> = records.split(" | ").map(|record| record.trim().to_owned()).collect();
            assert_eq!(announced(&records).as_deref().unwrap_or("none"), expected.trim(), "{line}");
            cases += 1;
        }
        assert!(cases >= 12, "{cases}");
    }
}
