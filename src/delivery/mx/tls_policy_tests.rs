//! The table `tests/data/tls/demands.txt`: who says what, and what follows.

use super::*;
use crate::net::Tlsa;

fn pins() -> Dane {
    let record = Tlsa { usage: 3, selector: 1, matching: 1, data: vec![1; 32] };
    Dane::of(vec![record], &Domain::parse("mx.shop.example").unwrap())
}

fn words(demand: &Result<Demand, String>) -> String {
    let demand = match demand {
        Ok(demand) => demand,
        Err(why) => return format!("refused: {why}"),
    };
    let tls = match &demand.tls {
        TlsUse::Never => "never",
        TlsUse::Opportunistic => "opportunistic",
        TlsUse::Required(Verify::Opportunistic) => "encrypted",
        TlsUse::Required(Verify::Required) => "verified",
        TlsUse::Required(Verify::Dane(_)) => "dane",
        TlsUse::Implicit => "implicit",
    };
    format!("{tls}, {}", demand.policy.as_deref().unwrap_or("nobody"))
}

#[test]
fn the_strictest_voice_wins_as_the_table_says() {
    let table = include_str!("../../../tests/data/tls/demands.txt");
    let domain = Domain::parse("shop.example").unwrap();
    let mut cases = 0;
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (facts, expected) = line.split_once(" => ").unwrap();
        let [local, operator, sts, dane] = facts.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let policy = |mode, mx: &str| Policy { mode, max_age: std::time::Duration::from_secs(1), mx: vec![mx.into()] };
        let sts = match sts {
            "-" => None,
            "enforce" => Some(policy(Mode::Enforce, "*.shop.example")),
            "enforce others" => Some(policy(Mode::Enforce, "mx.other.example")),
            "testing" => Some(policy(Mode::Testing, "mx.shop.example")),
            "testing others" => Some(policy(Mode::Testing, "mx.other.example")),
            "none" => Some(policy(Mode::None, "mx.shop.example")),
            _ => panic!("{line}"),
        };
        let dane = match dane {
            "-" => None,
            "pins" => Some(pins()),
            "unusable" => Some(Dane::Unusable),
            _ => panic!("{line}"),
        };
        let local = match local {
            "opportunistic" => MxTls::Opportunistic,
            "encrypted" => MxTls::Encrypted,
            "verified" => MxTls::Verified,
            _ => panic!("{line}"),
        };
        let operator = match operator {
            "-" => None,
            "plaintext" => Some(DomainTls::Plaintext),
            "encrypted" => Some(DomainTls::Encrypted),
            "verified" => Some(DomainTls::Verified),
            _ => panic!("{line}"),
        };
        let voices = Voices { domain: &domain, local, operator, sts: sts.as_ref() };
        assert_eq!(words(&demand(&voices, "mx.shop.example", dane.as_ref())), expected.trim(), "{line}");
        cases += 1;
    }
    assert!(cases >= 25, "{cases}");
}

#[test]
fn no_voice_ever_weakens_another_but_an_operator_who_waives_them() {
    let domain = Domain::parse("shop.example").unwrap();
    let policy =
        Policy { mode: Mode::Enforce, max_age: std::time::Duration::from_secs(1), mx: vec!["mx.shop.example".into()] };
    let of = |local, operator, sts, dane: Option<&Dane>| {
        let voices = Voices { domain: &domain, local, operator, sts };
        strength(&demand(&voices, "mx.shop.example", dane).unwrap().tls)
    };
    let pins = pins();
    for local in [MxTls::Opportunistic, MxTls::Encrypted, MxTls::Verified] {
        for operator in [None, Some(DomainTls::Encrypted), Some(DomainTls::Verified)] {
            for sts in [None, Some(&policy)] {
                for dane in [None, Some(&Dane::Unusable), Some(&pins)] {
                    let all = of(local, operator, sts, dane);
                    let alone = [
                        of(local, None, None, None),
                        of(MxTls::Opportunistic, operator, None, None),
                        of(MxTls::Opportunistic, None, sts, None),
                        of(MxTls::Opportunistic, None, None, dane),
                    ];
                    assert!(alone.iter().all(|one| *one <= all), "{local:?} {operator:?} {alone:?} {all}");
                    assert_eq!(of(local, Some(DomainTls::Plaintext), sts, dane), 1);
                }
            }
        }
    }
}

#[test]
fn a_policy_vouches_for_the_hosts_it_names_unless_it_is_gone() {
    let policy = |mode| Policy { mode, max_age: std::time::Duration::from_secs(1), mx: vec!["*.shop.example".into()] };
    assert!(vouches(Some(&policy(Mode::Enforce)), "mx.shop.example"));
    assert!(vouches(Some(&policy(Mode::Testing)), "mx.shop.example"));
    assert!(!vouches(Some(&policy(Mode::None)), "mx.shop.example"));
    assert!(!vouches(Some(&policy(Mode::Enforce)), "mx.other.example"));
    assert!(!vouches(None, "mx.shop.example"));
}
