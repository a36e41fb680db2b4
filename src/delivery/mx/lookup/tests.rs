//! The table `tests/data/mx/hosts.txt`: what DNS says, and where mail goes then.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;

use super::*;

/// A zone made of maps, as one case of the table writes it.
#[derive(Default)]
struct Maps {
    mx: HashMap<String, Result<Vec<Mx>, LookupError>>,
    ipv4: HashMap<String, Result<Vec<Ipv4Addr>, LookupError>>,
    ipv6: HashMap<String, Result<Vec<Ipv6Addr>, LookupError>>,
}

fn nothing(word: &str) -> Option<LookupError> {
    match word {
        "nxdomain" => Some(LookupError::NoSuchName),
        "none" => Some(LookupError::NoRecord),
        "fail" => Some(LookupError::Temporary("SERVFAIL".to_owned())),
        _ => None,
    }
}

impl Maps {
    /// `mx shop.example 10 a.example`, `a a.example 192.0.2.1`, `aaaa ...`, or a kind of nothing.
    fn add(&mut self, record: &str) {
        let words: Vec<&str> = record.split_whitespace().collect();
        let (kind, name, value) = (words[0], words[1].to_owned(), words[2]);
        match (kind, nothing(value)) {
            ("mx", Some(error)) => drop(self.mx.insert(name, Err(error))),
            ("a", Some(error)) => drop(self.ipv4.insert(name, Err(error))),
            ("aaaa", Some(error)) => drop(self.ipv6.insert(name, Err(error))),
            ("mx", None) => {
                let host = (words[3] != ".").then(|| Domain::parse(words[3]).unwrap());
                let list = self.mx.entry(name).or_insert_with(|| Ok(Vec::new()));
                list.as_mut().unwrap().push(Mx { preference: value.parse().unwrap(), host });
            }
            ("a", None) => {
                let list = self.ipv4.entry(name).or_insert_with(|| Ok(Vec::new()));
                list.as_mut().unwrap().push(value.parse().unwrap());
            }
            ("aaaa", None) => {
                let list = self.ipv6.entry(name).or_insert_with(|| Ok(Vec::new()));
                list.as_mut().unwrap().push(value.parse().unwrap());
            }
            _ => panic!("{record}"),
        }
    }
}

#[async_trait]
impl Resolver for Maps {
    async fn mx(&self, domain: &Domain) -> Result<Vec<Mx>, LookupError> {
        self.mx.get(domain.as_str()).cloned().unwrap_or(Err(LookupError::NoRecord))
    }
    async fn ipv4(&self, host: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        self.ipv4.get(host.as_str()).cloned().unwrap_or(Err(LookupError::NoRecord))
    }
    async fn ipv6(&self, host: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        self.ipv6.get(host.as_str()).cloned().unwrap_or(Err(LookupError::NoRecord))
    }
    async fn txt(&self, _name: &Domain) -> Result<Vec<String>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ptr(&self, _address: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
}

/// One case: a name, `families`, `private`, records, and `=` the expected text.
async fn judge(case: &str) -> Result<(), String> {
    let mut zone = Maps::default();
    let mut families = Families { ipv4: true, ipv6: false };
    let mut settings = Settings::default();
    let mut expected = "";
    for line in case.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()) {
        match line {
            "both families" => families.ipv6 = true,
            "IPv6 only" => families = Families { ipv4: false, ipv6: true },
            "private addresses allowed" => settings.private_addresses = PrivateAddresses::Allowed,
            _ => match line.strip_prefix("= ") {
                Some(text) => expected = text,
                None => zone.add(line),
            },
        }
    }
    let ourselves = Ourselves {
        names: HashSet::from(["us.example".to_owned()]),
        addresses: HashSet::from(["203.0.114.9".parse().unwrap()]),
    };
    let domain = Domain::parse("shop.example").unwrap();
    let found = match hosts(&zone, &domain, families, &ourselves, &settings).await {
        Ok(Exchangers { hosts, .. }) => {
            let show = |host: &Host| {
                let addresses: Vec<String> = host.addresses.iter().map(IpAddr::to_string).collect();
                format!("{} {}[{}]", host.preference, host.name, addresses.join(" "))
            };
            hosts.iter().map(show).collect::<Vec<_>>().join(", ")
        }
        Err(NoSite::Deferred(why, detail)) => format!("deferred {why:?} {}", &detail[4..].split(' ').next().unwrap()),
        Err(NoSite::Bounced(why, detail)) => format!("bounced {why:?} {}", &detail[4..].split(' ').next().unwrap()),
    };
    if found == expected { Ok(()) } else { Err(format!("{case}\nfound: {found}")) }
}

#[tokio::test]
async fn hosts_are_chosen_as_the_table_says() {
    let table = include_str!("../../../../tests/data/mx/hosts.txt");
    let cases: Vec<&str> = table.split("\n\n").filter(|case| !case.trim().is_empty()).collect();
    assert!(cases.len() > 15, "{}", cases.len());
    for case in cases {
        judge(case.trim()).await.unwrap();
    }
}

#[tokio::test]
async fn hosts_and_addresses_are_bounded() {
    let mut zone = Maps::default();
    for number in 0..60 {
        zone.add(&format!("mx shop.example 10 mx{number}.example"));
        for last in 1..30 {
            zone.add(&format!("a mx{number}.example 203.0.115.{last}"));
        }
    }
    let (domain, settings) = (Domain::parse("shop.example").unwrap(), Settings::default());
    let families = Families { ipv4: true, ipv6: false };
    let Exchangers { hosts, better } = hosts(&zone, &domain, families, &Ourselves::default(), &settings).await.unwrap();
    assert_eq!(better, None);
    assert_eq!(hosts.len(), settings.mx_hosts_max);
    assert!(hosts.iter().all(|host| host.addresses.len() == settings.addresses_per_host_max));
}

#[tokio::test]
async fn a_host_that_is_preferred_and_left_out_is_told_of_unless_it_is_proved_to_be_none() {
    for (best, spare, expected) in [
        ("a a.example fail", "a b.example 203.0.115.2", Some(Why::Dns)),
        ("a a.example 10.0.0.1", "a b.example 203.0.115.2", Some(Why::Dns)),
        ("aaaa a.example 2001:db8::1", "a b.example 203.0.115.2", Some(Why::OurConfiguration)),
        ("a a.example nxdomain", "a b.example 203.0.115.2", None),
        ("a a.example 203.0.115.1", "a b.example fail", None),
    ] {
        let mut zone = Maps::default();
        for record in ["mx shop.example 10 a.example", "mx shop.example 20 b.example", best, spare] {
            zone.add(record);
        }
        let (domain, settings) = (Domain::parse("shop.example").unwrap(), Settings::default());
        let families = Families { ipv4: true, ipv6: false };
        let found = hosts(&zone, &domain, families, &Ourselves::default(), &settings).await.unwrap();
        let better = found.better.map(|no_site| match no_site {
            NoSite::Deferred(why, _) => why,
            NoSite::Bounced(..) => panic!("{best}: given up"),
        });
        assert_eq!(better, expected, "{best}");
    }
}

#[test]
fn the_same_hosts_make_the_same_site() {
    let host = |name: &str| Host {
        name: name.to_owned(),
        preference: 1,
        addresses: Vec::new(),
        tls: TlsUse::Opportunistic,
        policy: None,
        standing: Standing::Claimed,
        reported: Arc::default(),
    };
    assert_eq!(site_name(&[host("b"), host("a"), host("b")]), site_name(&[host("a"), host("b")]));
}
