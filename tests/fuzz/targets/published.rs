//! What recipient domains publish about TLS, and what their servers say, as strangers write them.

use postern::delivery::{Phase, ReplyRules, StsMode, StsPolicy, Verdict, announced_policy, read_reply};
use postern::tlsrpt::{RECIPIENTS_MAX, Whereto, recipients, whereto};

use super::feed::Feed;

/// The texts of an input, one for each NUL.
fn texts(input: &[u8]) -> Vec<String> {
    input.split(|octet| *octet == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Records at `_smtp._tls`: few URIs, each once, usable, of printable ASCII, and taken from the one record there
/// is; two records are as none.
pub fn tlsrpt_record(input: &[u8]) {
    let records = texts(input);
    let found = recipients(&records);
    assert!(found.len() <= RECIPIENTS_MAX, "{found:?}");
    for (place, uri) in found.iter().enumerate() {
        assert!(!found[..place].contains(uri), "twice: {uri:?}");
        assert!(uri.bytes().all(|octet| octet.is_ascii_graphic() && octet != b',' && octet != b';'), "{uri:?}");
        match whereto(uri).expect("what is found can be used") {
            Whereto::Mail(address) => {
                assert!(!address.to_string().chars().any(char::is_control), "{address}");
                assert!(uri.len() > "mailto:".len() && uri[..7].eq_ignore_ascii_case("mailto:"), "{uri:?}");
            }
            Whereto::Post(_) => assert!(uri[..6].eq_ignore_ascii_case("https:"), "{uri:?}"),
        }
    }
    // A model of a line: only records that begin so count, and only one may.
    let is_of_ours = |text: &&String| {
        text.strip_prefix("v=TLSRPTv1").is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(';'))
    };
    let of_ours: Vec<&String> = records.iter().filter(is_of_ours).collect();
    match of_ours.as_slice() {
        [only] => {
            assert!(found.iter().all(|uri| only.contains(uri)), "{found:?} is not in {only:?}");
            assert_eq!(recipients(&[(*only).clone()]), found, "what stands beside it counts");
            let twice = [(*only).clone(), (*only).clone()];
            assert!(recipients(&twice).is_empty(), "two records are as none");
        }
        _ => assert!(found.is_empty(), "{found:?} of {} records", of_ours.len()),
    }
    // Written as a record of their own they are read as the same.
    if !found.is_empty() {
        assert_eq!(recipients(&[format!("v=TLSRPTv1; rua={}", found.join(","))]), found);
    }
}

/// A policy of MTA-STS: written from what was read it reads as the same, and it names the hosts it lists, and
/// one label below a wildcard.
pub fn mta_sts(input: &[u8]) {
    let mut feed = Feed(input);
    let records = texts(feed.until(1));
    if let Some(id) = announced_policy(&records) {
        assert!((1..=32).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric()), "{id:?}");
        assert_eq!(announced_policy(&[format!("v=STSv1; id={id};")]), Some(id.clone()));
        assert!(records.iter().any(|record| record.contains(&id)));
    }
    let text = String::from_utf8_lossy(feed.rest());
    let Ok(policy) = StsPolicy::parse(&text) else { return };
    assert!(policy.max_age.as_secs() <= 31_557_600);
    assert!(!policy.mx.is_empty() || policy.mode == StsMode::None);
    let lines: String = policy.mx.iter().map(|host| format!("mx: {host}\r\n")).collect();
    let mode = policy.mode.word();
    let written = format!("version: STSv1\r\nmode: {mode}\r\n{lines}max_age: {}\r\n", policy.max_age.as_secs());
    assert_eq!(StsPolicy::parse(&written).as_ref(), Ok(&policy), "{written}");
    for host in &policy.mx {
        assert!(host.bytes().all(|octet| octet.is_ascii_graphic() && !octet.is_ascii_uppercase()), "{host:?}");
        match host.strip_prefix("*.") {
            Some(parent) => {
                assert!(policy.names(&format!("one.{parent}")) && policy.names(&format!("ONE.{parent}.")));
                let exact =
                    policy.mx.iter().any(|other| other == parent || other.strip_prefix("*.") == Some(rest(parent)));
                assert!(exact || !policy.names(parent), "a wildcard stands for one label");
            }
            None => assert!(policy.names(host) && policy.names(&format!("{host}."))),
        }
    }
}

/// What stands behind the first label.
fn rest(name: &str) -> &str {
    name.split_once('.').map_or("", |(_, rest)| rest)
}

/// A reply as it stands in a log: it is judged the same each time, whoever said it; what is temporary is never
/// given up at once, and nothing that is not about a recipient stops one.
pub fn judged(input: &[u8]) {
    let mut feed = Feed(input);
    let phases = [Phase::Greeting, Phase::Mail, Phase::Rcpt, Phase::Data, Phase::FinalDot];
    let phase = phases[feed.below(phases.len())];
    let provider = [None, Some("gmail"), Some("microsoft-365"), Some("yahoo")][feed.below(4)];
    let said = String::from_utf8_lossy(feed.rest());
    let Ok(reply) = read_reply(&said) else { return };
    let rules = ReplyRules::built_in();
    let judgement = rules.judge(&reply, phase, provider);
    let again = rules.judge(&reply, phase, provider);
    assert_eq!((&judgement.verdict, judgement.action, &judgement.rule), (&again.verdict, again.action, &again.rule));
    if (400..500).contains(&reply.code.0) {
        assert!(!matches!(judgement.verdict, Verdict::Bounced(_)), "{said:?}: {judgement:?}");
    }
    if (200..300).contains(&reply.code.0) {
        assert!(judgement.rule.is_none(), "{said:?}: {judgement:?}");
    }
}
