//! Well-known receivers, recognised by their MX hosts, from a data file. Pure.
//!
//! Easy to get wrong: a domain belongs to a provider only if *all* of its best MX hosts do; a
//! filter in front of a mailbox is not the mailbox.

use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use super::limits::{Knob, LimitSet};

/// The providers that come with the program.
const BUILT_IN: &str = include_str!("../../../etc/providers.toml");
/// Providers of one file, at most.
const PROVIDERS_MAX: usize = 1_000;

/// A receiver of mail for many domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Its short name.
    pub name: Arc<str>,
    /// Its name for people.
    pub title: String,
    /// Domains people may name it by.
    pub domains: Vec<String>,
    /// Limits to start from.
    pub limits: LimitSet,
    /// Where they come from.
    pub source: String,
    mx: Vec<Pattern>,
}

/// A host name, or everything below one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(String),
    Below(String),
}

impl Pattern {
    fn read(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let (pattern, name) = match text.strip_prefix("*.") {
            Some(below) => (Self::Below(format!(".{below}")), below),
            None => (Self::Exactly(text.clone()), text.as_str()),
        };
        let is_name = name.contains('.') && !name.contains('*') && !name.starts_with('.') && !name.ends_with('.');
        if is_name {
            Ok(pattern)
        } else {
            Err(format!("{text:?} is not a host name; write mx.example.com or *.example.com"))
        }
    }

    /// The name all its hosts are below, or the host itself.
    fn base(&self) -> &str {
        match self {
            Self::Exactly(name) => name,
            Self::Below(suffix) => suffix.trim_start_matches('.'),
        }
    }

    fn fits(&self, host: &str) -> bool {
        match self {
            Self::Exactly(name) => host == name,
            Self::Below(suffix) => host.ends_with(suffix.as_str()),
        }
    }
}

impl Provider {
    /// Whether it is the provider itself that speaks in the name of `domain`: one of its own domains or below one, or
    /// a parent of its mail hosts. What lies below its mail hosts may be a customer's.
    pub fn speaks_as(&self, domain: &str) -> bool {
        let is_within = |name: &str, parent: &str| {
            name == parent || name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
        };
        self.domains.iter().any(|own| is_within(domain, own)) || self.mx.iter().any(|mx| is_within(mx.base(), domain))
    }
}

/// All known providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Providers {
    list: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    provider: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    title: Option<String>,
    mx: Vec<String>,
    #[serde(default)]
    domains: Vec<String>,
    connections: Option<u32>,
    messages_per_connection: Option<u32>,
    connections_per_minute: Option<u32>,
    messages_per_minute: Option<u32>,
    recipients_per_transaction: Option<u32>,
    #[serde(default)]
    source: String,
}

static SHIPPED: LazyLock<Arc<Providers>> = LazyLock::new(|| {
    let list = parse(BUILT_IN).unwrap_or_else(|error| {
        // A test reads the same text, so this cannot be met in a release.
        tracing::error!(error, "the providers that came with the program cannot be read");
        Vec::new()
    });
    Arc::new(Providers { list })
});

impl Providers {
    /// Those that come with the program.
    pub fn built_in() -> Arc<Self> {
        Arc::clone(&SHIPPED)
    }

    /// An operator's providers, in the same form, in front of those that come with the program;
    /// one of the same name replaces the one that comes with it.
    ///
    /// # Errors
    /// What is wrong with the text, with the provider's name.
    pub fn with(text: &str) -> Result<Arc<Self>, String> {
        let mut list = parse(text)?;
        let shipped = SHIPPED.list.iter().filter(|known| list.iter().all(|own| own.name != known.name));
        let shipped: Vec<Provider> = shipped.cloned().collect();
        list.extend(shipped);
        Ok(Arc::new(Self { list }))
    }

    /// All of them.
    pub fn all(&self) -> &[Provider] {
        &self.list
    }

    /// The one called that.
    pub fn named(&self, name: &str) -> Option<&Provider> {
        self.list.iter().find(|provider| *provider.name == *name)
    }

    /// The one people mean by this domain.
    pub fn of_domain(&self, domain: &str) -> Option<&Provider> {
        self.list.iter().find(|provider| provider.domains.iter().any(|own| own == domain))
    }

    /// The one all of these hosts belong to.
    pub fn of_hosts<'a>(&self, hosts: impl Iterator<Item = &'a str>) -> Option<&Provider> {
        let hosts: Vec<String> = hosts.map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect();
        let takes =
            |provider: &&Provider| hosts.iter().all(|host| provider.mx.iter().any(|pattern| pattern.fits(host)));
        if hosts.is_empty() { None } else { self.list.iter().find(takes) }
    }
}

fn parse(text: &str) -> Result<Vec<Provider>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.provider.len() > PROVIDERS_MAX {
        return Err(format!("{} providers; {PROVIDERS_MAX} are the most", file.provider.len()));
    }
    let mut list: Vec<Provider> = Vec::new();
    for written in file.provider {
        let name = written.name.clone();
        let provider = read(written).map_err(|why| format!("provider {name:?}: {why}"))?;
        if list.iter().any(|known| known.name == provider.name) {
            return Err(format!("provider {name:?} is there twice"));
        }
        list.push(provider);
    }
    Ok(list)
}

fn read(written: Written) -> Result<Provider, String> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // Without a dot it cannot be mistaken for a domain or a site.
    if written.name.is_empty() || written.name.len() > 60 || !written.name.bytes().all(is_name) {
        return Err("a name has 1 to 60 lower-case letters, digits and hyphens".to_owned());
    }
    if written.mx.is_empty() {
        return Err("mx must name at least one host".to_owned());
    }
    let limits = [
        (Knob::Connections, written.connections),
        (Knob::MessagesPerConnection, written.messages_per_connection),
        (Knob::ConnectionsPerMinute, written.connections_per_minute),
        (Knob::MessagesPerMinute, written.messages_per_minute),
        (Knob::RecipientsPerTransaction, written.recipients_per_transaction),
    ];
    let mut set = LimitSet::default();
    for (knob, value) in limits {
        if value == Some(0) {
            return Err(format!("{} is 0; nothing would ever be sent", knob.name()));
        }
        set.set(knob, value);
    }
    Ok(Provider {
        title: written.title.unwrap_or_else(|| written.name.clone()),
        name: written.name.into(),
        domains: written.domains.into_iter().map(|domain| domain.to_ascii_lowercase()).collect(),
        limits: set,
        source: written.source,
        mx: written.mx.iter().map(|text| Pattern::read(text)).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hosts: &[&str]) -> Option<String> {
        Providers::built_in().of_hosts(hosts.iter().copied()).map(|provider| provider.name.to_string())
    }

    #[test]
    fn well_known_providers_are_recognised_by_their_hosts() {
        for (hosts, name) in [
            (&["gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com"][..], "gmail"),
            (&["ASPMX.L.GOOGLE.COM."], "gmail"),
            (&["smtp.google.com"], "gmail"),
            (&["hotmail-com.olc.protection.outlook.com"], "microsoft-consumer"),
            (&["shop-example.mail.protection.outlook.com"], "microsoft-365"),
            (&["shop-example.k-v1.mx.microsoft"], "microsoft-365"),
            (&["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"], "yahoo"),
            (&["mx01.mail.icloud.com"], "apple"),
            (&["mx.wp.pl"], "wp"),
            (&["mx.poczta.onet.pl"], "onet"),
            (&["mx.interia.pl"], "interia"),
            (&["mx.tlen.pl"], "o2"),
            (&["mx00.gmx.net"], "gmx"),
            (&["mx-ha02.web.de"], "gmx"),
            (&["mail.protonmail.ch", "mailsec.protonmail.ch"], "proton"),
            (&["mx0.mail.ovh.net"], "ovh"),
            (&["mx.zoho.com"], "zoho"),
            (&["mx.yandex.ru"], "yandex"),
            (&["mxs.mail.ru"], "mail-ru"),
            (&["mx1.seznam.cz"], "seznam"),
            (&["shop.home.pl"], "home-pl"),
            (&["mx.nazwa.pl"], "nazwa-pl"),
        ] {
            assert_eq!(of(hosts).as_deref(), Some(name), "{hosts:?}");
        }
    }

    #[test]
    fn a_provider_speaks_in_its_own_names_and_not_in_others() {
        let speaks = |name: &str, domain: &str| Providers::built_in().named(name).unwrap().speaks_as(domain);
        assert!(speaks("gmail", "gmail.com") && speaks("gmail", "google.com"));
        assert!(speaks("microsoft-consumer", "hotmail.com") && speaks("yahoo", "arf.mail.yahoo.com"));
        assert!(!speaks("gmail", "notgmail.com") && !speaks("gmail", "yahoo.com") && !speaks("wp", "evil.pl"));
        assert!(!speaks("home-pl", "nothome.pl") && !speaks("home-pl", "pl.example"));
    }

    #[test]
    fn a_domain_with_other_hosts_among_its_best_belongs_to_nobody() {
        assert_eq!(of(&["aspmx.l.google.com", "mx.shop.example"]), None);
        assert_eq!(of(&["mx.shop.example"]), None);
        assert_eq!(of(&["notgoogle.com"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn every_provider_says_where_its_figures_come_from() {
        for provider in Providers::built_in().all() {
            assert!(provider.source.len() > 10, "{}", provider.name);
            assert!(Knob::ALL.iter().all(|knob| provider.limits.get(*knob).is_some()), "{}", provider.name);
        }
    }

    #[test]
    fn an_operators_provider_replaces_the_one_of_its_name_and_bad_files_are_explained() {
        let own = "[[provider]]\nname = \"gmail\"\nmx = [\"*.google.com\"]\nconnections = 3\n";
        let providers = Providers::with(own).unwrap();
        assert_eq!(providers.named("gmail").unwrap().limits.get(Knob::Connections), Some(3));
        assert_eq!(providers.named("gmail").unwrap().limits.get(Knob::MessagesPerMinute), None);
        assert_eq!(providers.all().len(), Providers::built_in().all().len());
        let wrong = |text: &str| Providers::with(&format!("[[provider]]\n{text}")).unwrap_err();
        assert!(wrong("name = \"a.b\"\nmx = [\"mx.a.b\"]").contains("lower-case"));
        assert!(wrong("name = \"a\"\nmx = []").contains("at least one host"));
        assert!(wrong("name = \"a\"\nmx = [\"mx*.a.b\"]").contains("not a host name"));
        assert!(wrong("name = \"a\"\nmx = [\"mx.a.b\"]\nconnections = 0").contains("nothing would ever"));
        assert!(wrong("name = \"a\"\nmx = [\"mx.a.b\"]\nspeed = 1").contains("speed"));
        let twice = "name = \"a\"\nmx = [\"mx.a.b\"]\n[[provider]]\nname = \"a\"\nmx = [\"mx.a.b\"]";
        assert!(wrong(twice).contains("twice"));
    }
}
