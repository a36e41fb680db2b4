//! Destinations that an operator blocks, or sends another way: by MX host name, by the network a mail host
//! is in, by recipient domain, by provider. Parked domains and those that catch typing errors, for example.
//!
//! Easy to get wrong: only the best mail hosts count. A spare host may be anybody's, and one at which
//! nobody would knock must not decide where mail goes; a best one that DNS does not tell of now leaves it open.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::access::{Actor, Permission};
use crate::delivery::transport::Host;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::records::{self, AdminError, Damage, Desk};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Rules, at most: they are for people.
const RULES_MAX: usize = 1_000;
/// Characters of a reason, at most.
const REASON_CHARACTERS_MAX: usize = 500;

/// Which destinations a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// A best mail host of this name, or with `*.` before it of a name below.
    MxHost(String),
    /// A best mail host with an address in this network.
    MxNetwork(IpNet),
    /// This recipient domain and those below it.
    Domain(Domain),
    /// Recipient domains of this provider.
    Provider(String),
}

/// What becomes of mail to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Diversion {
    /// It is given up; its senders are told.
    Block,
    /// It goes to the relay of this route instead.
    Reroute(u64),
}

/// A rule about destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRule {
    /// Its number; of several that fit the first counts, those by recipient domain before the others.
    pub number: u64,
    /// About which.
    pub destination: Destination,
    /// What becomes of their mail.
    pub diversion: Diversion,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
}

/// Where a recipient domain's mail would go.
pub(super) struct Whither<'a> {
    pub(super) domain: &'a Domain,
    pub(super) hosts: &'a [Host],
    pub(super) provider: Option<&'a str>,
}

impl Destination {
    /// A rule's destination is what it says only if it can ever fit.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::MxHost(name) => {
                let own = name.strip_prefix("*.").unwrap_or(name);
                match Domain::parse(own) {
                    Ok(_) if own.contains('.') => Ok(()),
                    _ => Err(format!("{name:?} is not a host name; write mx.example.com or *.example.com")),
                }
            }
            Self::MxNetwork(network) if network.prefix_len() == 0 => {
                Err("a network of everything would stop all mail; suspend delivery instead".to_owned())
            }
            Self::MxNetwork(_) | Self::Domain(_) | Self::Provider(_) => Ok(()),
        }
    }

    fn fits(&self, whither: &Whither<'_>) -> bool {
        let best = whither.hosts.iter().map(|host| host.preference).min();
        let mut best = whither.hosts.iter().filter(|host| Some(host.preference) == best);
        match self {
            Self::MxHost(name) => best.any(|host| match name.strip_prefix("*.") {
                Some(below) => host.name.strip_suffix(below).is_some_and(|front| front.ends_with('.')),
                None => host.name == *name,
            }),
            Self::MxNetwork(network) => {
                best.any(|host| host.addresses.iter().any(|address| network.contains(&address.to_canonical())))
            }
            Self::Domain(domain) => whither.domain.is_within(domain),
            Self::Provider(name) => whither.provider == Some(name.as_str()),
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MxHost(name) => write!(formatter, "mail hosts {name}"),
            Self::MxNetwork(network) => write!(formatter, "mail hosts in {network}"),
            Self::Domain(domain) => write!(formatter, "recipient domain {domain}"),
            Self::Provider(name) => write!(formatter, "provider {name}"),
        }
    }
}

/// Every rule about destinations.
pub struct Destinations {
    desk: Desk,
    rules: Arc<Mutex<BTreeMap<u64, DestinationRule>>>,
    revision: Arc<AtomicU64>,
    damaged: Vec<Damage>,
}

impl Destinations {
    /// Reads the rules.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (stored, damaged) = records::load::<DestinationRule>(&*store, &[prefix::SHAPING, b'b'])?;
        let rules = stored.into_iter().map(|(_, rule)| (rule.number, rule)).collect();
        let rules = Arc::new(Mutex::new(rules));
        Ok(Self { desk: Desk::new(store), rules, revision: Arc::default(), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Another number after each change.
    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The rules that send mail by a route.
    pub fn naming(&self, route: u64) -> Vec<u64> {
        let rules = records::lock(&self.rules);
        let naming = rules.values().filter(|rule| rule.diversion == Diversion::Reroute(route));
        naming.map(|rule| rule.number).collect()
    }

    /// The rule for mail that would go there, if there is one; before its hosts are known, by its domain alone.
    pub(super) fn rule_for(&self, whither: &Whither<'_>) -> Option<DestinationRule> {
        records::lock(&self.rules).values().find(|rule| rule.destination.fits(whither)).cloned()
    }

    /// Every rule, by number.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn list(&self, actor: &Actor) -> Result<Vec<DestinationRule>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        Ok(records::lock(&self.rules).values().cloned().collect())
    }

    /// Makes a rule; it holds for every attempt begun after it. That a route it names is not a tenant's own is
    /// the caller's check.
    ///
    /// # Errors
    /// If the actor may not, the rule can never fit, there are too many, or it cannot be written.
    pub async fn add(
        &self,
        actor: &Actor,
        (destination, diversion): (Destination, Diversion),
        reason: &str,
        now: Timestamp,
    ) -> Result<DestinationRule, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let destination = match destination {
            Destination::MxHost(name) => Destination::MxHost(name.to_ascii_lowercase()),
            other => other,
        };
        destination.check().map_err(AdminError::Invalid)?;
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_CHARACTERS_MAX || reason.contains(char::is_control) {
            let text = format!("a rule needs a reason, one line of at most {REASON_CHARACTERS_MAX} characters");
            return Err(AdminError::Invalid(text));
        }
        let turn = self.desk.turn().await;
        let number = {
            let rules = records::lock(&self.rules);
            if rules.len() >= RULES_MAX {
                return Err(AdminError::Invalid(format!("there are {RULES_MAX} rules already, the most there may be")));
            }
            rules.keys().next_back().map_or(1, |last| last.saturating_add(1))
        };
        let (by, reason) = (actor.name.clone(), reason.to_owned());
        let rule = DestinationRule { number, destination, diversion, reason, by, since: now };
        let mut batch = Batch::new();
        batch.set(key(number), codec::encode(&rule));
        records::audit(&mut batch, actor, "destination.add", rule.words(), now);
        let (rules, made) = (Arc::clone(&self.rules), rule.clone());
        let revision = Arc::clone(&self.revision);
        turn.commit(batch, move || {
            records::lock(&rules).insert(number, made);
            revision.fetch_add(1, Ordering::AcqRel);
        })
        .await?;
        Ok(rule)
    }

    /// Takes a rule back.
    ///
    /// # Errors
    /// If the actor may not, there is none, or it cannot be written.
    pub async fn remove(&self, actor: &Actor, number: u64, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let found = records::lock(&self.rules).get(&number).cloned();
        let rule = found.ok_or_else(|| AdminError::Missing(format!("destination rule {number}")))?;
        let mut batch = Batch::new();
        batch.remove(key(number));
        records::audit(&mut batch, actor, "destination.remove", rule.words(), now);
        let (rules, revision) = (Arc::clone(&self.rules), Arc::clone(&self.revision));
        turn.commit(batch, move || {
            records::lock(&rules).remove(&number);
            revision.fetch_add(1, Ordering::AcqRel);
        })
        .await?;
        Ok(())
    }
}

impl DestinationRule {
    /// For people: what, where to, why.
    pub fn words(&self) -> String {
        let diversion = match self.diversion {
            Diversion::Block => "blocked".to_owned(),
            Diversion::Reroute(route) => format!("sent by route {route}"),
        };
        format!("rule {}: {} {diversion}: {}", self.number, self.destination, self.reason)
    }

    /// What a message to a blocked destination is given up with.
    pub(super) fn refusal(&self, domain: &Domain) -> String {
        format!("550 5.7.1 mail to {domain} is blocked by this service ({}): {}", self.destination, self.reason)
    }
}

fn key(number: u64) -> Key {
    [&[prefix::SHAPING, b'b'][..], &number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::delivery::transport::{Standing, TlsUse};
    use crate::mail::TenantId;
    use crate::store::MemoryStore;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn host(name: &str, preference: u16, address: &str) -> Host {
        Host {
            name: name.to_owned(),
            preference,
            addresses: vec![address.parse().unwrap()],
            tls: TlsUse::Opportunistic,
            policy: None,
            standing: Standing::Claimed,
            reported: Arc::default(),
        }
    }

    fn fits(destination: Destination) -> bool {
        let domain = Domain::parse("mail.shop.example").unwrap();
        let hosts = [host("a.parked.example", 10, "198.51.100.7"), host("spare.elsewhere.example", 20, "203.0.113.9")];
        destination.fits(&Whither { domain: &domain, hosts: &hosts, provider: Some("gmail") })
    }

    #[test]
    fn a_rule_fits_by_host_network_domain_or_provider_and_spare_hosts_do_not_count() {
        for (destination, expected) in [
            (Destination::MxHost("a.parked.example".into()), true),
            (Destination::MxHost("*.parked.example".into()), true),
            (Destination::MxHost("*.arked.example".into()), false),
            (Destination::MxHost("parked.example".into()), false),
            (Destination::MxHost("*.elsewhere.example".into()), false),
            (Destination::MxNetwork("198.51.100.0/24".parse().unwrap()), true),
            (Destination::MxNetwork("203.0.113.0/24".parse().unwrap()), false),
            (Destination::Domain(Domain::parse("shop.example").unwrap()), true),
            (Destination::Domain(Domain::parse("op.example").unwrap()), false),
            (Destination::Provider("gmail".into()), true),
            (Destination::Provider("yahoo".into()), false),
        ] {
            let words = destination.to_string();
            assert_eq!(fits(destination), expected, "{words}");
        }
    }

    #[tokio::test]
    async fn a_rule_holds_over_a_restart_until_it_is_taken_back_and_each_change_is_the_operators() {
        let (store, actor) = (Arc::new(MemoryStore::new()), Actor::local(0));
        let rules = Destinations::open(store.clone()).unwrap();
        let parked = || (Destination::MxHost("*.Parked.example".into()), Diversion::Block);
        let made = rules.add(&actor, parked(), "nobody lives there", NOW).await.unwrap();
        assert_eq!(made.words(), "rule 1: mail hosts *.parked.example blocked: nobody lives there");
        let rules = Destinations::open(store.clone()).unwrap();
        assert_eq!(rules.list(&actor).unwrap(), [made]);
        let owner = Actor::of("o", Role::TenantOwner(TenantId(1)));
        assert!(rules.add(&owner, parked(), "x", NOW).await.is_err());
        assert!(rules.remove(&owner, 1, NOW).await.is_err() && rules.list(&owner).is_err());
        for (destination, reason) in [
            (Destination::MxHost("*.example*".into()), "x"),
            (Destination::MxHost("localhost".into()), "x"),
            (Destination::MxNetwork("0.0.0.0/0".parse().unwrap()), "x"),
            (Destination::Provider("gmail".into()), ""),
        ] {
            let refused = rules.add(&actor, (destination, Diversion::Block), reason, NOW).await;
            assert!(matches!(refused, Err(AdminError::Invalid(_))), "{refused:?}");
        }
        rules.remove(&actor, 1, NOW).await.unwrap();
        assert!(Destinations::open(store).unwrap().list(&actor).unwrap().is_empty());
    }
}
