//! Return-paths of sending domains: a name below the domain to which notices about its mail come, to us.
//!
//! Its MX must lead here and its SPF record must permit the addresses the tenant's mail leaves by; then, and only
//! then, mail of the domain is sent with return-paths at that name. Easy to get wrong: a lookup that failed
//! changes nothing, and a name stays known while old mail may still come back to it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::advice::{DnsRecord, Need, spf_terms};
use super::record::State;
use super::spf;
use super::{Domains, missing};
use crate::access::{Actor, Permission, Resource};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId};
use crate::net::{LookupError, Resolver, Spf};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, Key, codec, prefix};

/// What a return-path is called unless somebody says otherwise: this below the domain.
pub const USUAL_LABEL: &str = "bounce";
/// Proven absence for so long, and mail is sent with the client's reverse-path again.
const ABSENT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The return-path of one sending domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnPath {
    /// Whose.
    pub tenant: TenantId,
    /// The sending domain.
    pub domain: Domain,
    /// The name below it.
    pub name: Domain,
    /// When it was set.
    pub added: Timestamp,
    /// Whether it is used.
    pub state: State,
    /// Since when a record is proven absent, while it is still used.
    pub absent_since: Option<Timestamp>,
    /// When DNS was last asked.
    pub last_check: Option<Timestamp>,
    /// What was found of its MX.
    pub mx: RecordState,
    /// What was found of its SPF record.
    pub spf: RecordState,
}

/// What was found of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordState {
    /// Nothing yet, or DNS did not answer.
    Unknown,
    /// It is as it should be.
    Found,
    /// It is not, in words.
    Wrong(String),
}

/// What the records must lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Our names: an MX must be one of them.
    pub names: Vec<Domain>,
    /// The public addresses a tenant's mail leaves by: SPF must permit each.
    pub addresses: Vec<IpAddr>,
    /// The name whose SPF record permits them, if the service has one.
    pub include: Option<Domain>,
}

/// Says what the records of a tenant's domains must lead to.
pub type Expectations = Arc<dyn Fn(TenantId) -> Expected + Send + Sync>;

/// All return-paths, in memory.
#[derive(Default)]
pub(super) struct ReturnPaths {
    paths: HashMap<(TenantId, Domain), ReturnPath>,
    /// How many have a name.
    names: HashMap<Domain, usize>,
}

impl ReturnPaths {
    pub(super) fn of(paths: Vec<ReturnPath>) -> Self {
        let mut all = Self::default();
        paths.into_iter().for_each(|path| all.put(path));
        all
    }

    fn put(&mut self, path: ReturnPath) {
        self.forget(path.tenant, &path.domain);
        *self.names.entry(path.name.clone()).or_default() += 1;
        self.paths.insert((path.tenant, path.domain.clone()), path);
    }

    pub(super) fn forget(&mut self, tenant: TenantId, domain: &Domain) {
        let Some(old) = self.paths.remove(&(tenant, domain.clone())) else { return };
        if let Some(count) = self.names.get_mut(&old.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.names.remove(&old.name);
            }
        }
    }

    fn get(&self, tenant: TenantId, domain: &Domain) -> Option<&ReturnPath> {
        self.paths.get(&(tenant, domain.clone()))
    }
}

impl ReturnPath {
    /// The records to publish.
    pub fn records(&self, expected: &Expected) -> Vec<DnsRecord> {
        let host =
            expected.names.first().map_or_else(|| "the name of this server".to_owned(), |name| format!("{name}."));
        let terms = match expected.addresses.as_slice() {
            [] => String::new(),
            some => format!("{} ", spf_terms(&self.name, some, expected.include.as_ref())),
        };
        vec![
            DnsRecord {
                name: self.name.to_string(),
                kind: "MX",
                value: format!("10 {host}"),
                purpose: "return-path: notices about mail come here".to_owned(),
                need: Need::Advised,
            },
            DnsRecord {
                name: self.name.to_string(),
                kind: "TXT",
                value: format!("v=spf1 {terms}-all"),
                purpose: "SPF of the return-path, which is the MAIL FROM of your mail".to_owned(),
                need: Need::Advised,
            },
        ]
    }

    /// Applies what DNS said; whether that turned it on or off, with the reason.
    fn apply(&mut self, mx: RecordState, spf: RecordState, now: Timestamp) -> Option<Result<(), String>> {
        self.last_check = Some(now);
        let was_used = matches!(self.state, State::Verified(_));
        for (found, kept) in [(mx, &mut self.mx), (spf, &mut self.spf)] {
            if found != RecordState::Unknown {
                *kept = found;
            }
        }
        let wrong: Vec<&str> = [&self.mx, &self.spf]
            .into_iter()
            .filter_map(|record| if let RecordState::Wrong(why) = record { Some(why.as_str()) } else { None })
            .collect();
        if wrong.is_empty() {
            self.absent_since = None;
            let is_found = self.mx == RecordState::Found && self.spf == RecordState::Found;
            if is_found && !was_used {
                self.state = State::Verified(now);
                return Some(Ok(()));
            }
            return None;
        }
        let since = *self.absent_since.get_or_insert(now);
        if was_used && now.since(since) >= ABSENT_MAX {
            self.state = State::Unverified(now);
            return Some(Err(wrong.join("; ")));
        }
        None
    }
}

impl Domains {
    /// Tells the room what the records of return-paths must lead to. Until then none is verified.
    pub fn expect_return_paths(&self, expectations: Expectations) {
        if self.expectations.set(expectations).is_err() {
            tracing::debug!("what return-paths must lead to was said twice");
        }
    }

    /// What the records of a tenant's return-paths must lead to.
    pub fn expected(&self, tenant: TenantId) -> Expected {
        let expected = self.expectations.get().map(|expectations| expectations(tenant)).unwrap_or_default();
        Expected { include: self.settings.spf_include.clone(), ..expected }
    }

    /// The name in use for mail of `domain`, a sending domain of the tenant's: its records are there.
    pub fn return_name(&self, tenant: TenantId, domain: &Domain) -> Option<Domain> {
        let returns = records::read(&self.returns);
        let path = returns.get(tenant, domain)?;
        matches!(path.state, State::Verified(_)).then(|| path.name.clone())
    }

    /// Whether `name` is a return-path's, in use or not.
    pub fn is_return_name(&self, name: &Domain) -> bool {
        records::read(&self.returns).names.contains_key(name)
    }

    /// Whether there is any return-path.
    pub fn has_return_paths(&self) -> bool {
        !records::read(&self.returns).paths.is_empty()
    }

    /// The return-path of a domain, for people.
    pub fn return_path(
        &self,
        actor: &Actor,
        tenant: TenantId,
        domain: &Domain,
    ) -> Result<Option<ReturnPath>, AdminError> {
        actor.require(Permission::Read(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        Ok(records::read(&self.returns).get(tenant, domain).cloned())
    }

    /// Sets the return-path of a domain: `name`, or the usual name below it. Mail uses it once its records are found.
    ///
    /// # Errors
    /// If there is no such domain, the name is not below it, or the actor may not.
    pub async fn set_return_path(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        name: Option<Domain>,
        now: Timestamp,
    ) -> Result<ReturnPath, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let name = match name {
            Some(name) => name,
            None => Domain::parse(&format!("{USUAL_LABEL}.{domain}"))
                .map_err(|error| AdminError::Invalid(error.to_string()))?,
        };
        if name == *domain || !name.is_within(domain) {
            return Err(AdminError::Invalid(format!(
                "a return-path of {domain} is a name below it, and {name} is not"
            )));
        }
        let turn = self.desk.turn().await;
        self.entry(tenant, domain).ok_or_else(|| missing(domain))?;
        let path = ReturnPath {
            tenant,
            domain: domain.clone(),
            name,
            added: now,
            state: State::Pending,
            absent_since: None,
            last_check: None,
            mx: RecordState::Unknown,
            spf: RecordState::Unknown,
        };
        let before = records::read(&self.returns).get(tenant, domain).map(|old| old.name.to_string());
        let mut batch = Batch::new();
        batch.set(key(tenant, domain), codec::encode(&path));
        let act = Act::new("domain.return-path", domain.to_string()).of(tenant);
        let act = act.changes(
            vec![("return-path", before.unwrap_or_else(|| "none".to_owned()))],
            vec![("return-path", path.name.to_string())],
        );
        records::record(&mut batch, actor, act, now);
        let (returns, made) = (Arc::clone(&self.returns), path.clone());
        turn.commit(batch, move || records::write(&returns).put(made)).await?;
        Ok(path)
    }

    /// Removes it: mail is sent with the client's reverse-path, and what comes to the old name is refused.
    ///
    /// # Errors
    /// If there is none, or the actor may not.
    pub async fn remove_return_path(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let turn = self.desk.turn().await;
        let old = records::read(&self.returns).get(tenant, domain).cloned();
        let old = old.ok_or_else(|| AdminError::Missing(format!("return-path of {domain}")))?;
        let mut batch = Batch::new();
        batch.remove(key(tenant, domain));
        let act = Act::new("domain.return-path", domain.to_string()).of(tenant);
        let act = act.changes(vec![("return-path", old.name.to_string())], vec![("return-path", "none".to_owned())]);
        records::record(&mut batch, actor, act, now);
        let (returns, domain) = (Arc::clone(&self.returns), domain.clone());
        turn.commit(batch, move || records::write(&returns).forget(tenant, &domain)).await?;
        Ok(())
    }

    /// Asks DNS for the records of a domain's return-path, if it has one.
    ///
    /// # Errors
    /// If the actor may not, or what was found cannot be recorded.
    pub async fn verify_return_path(
        &self,
        actor: &Actor,
        (tenant, domain): (TenantId, &Domain),
        now: Timestamp,
    ) -> Result<Option<ReturnPath>, AdminError> {
        actor.require(Permission::Write(Resource::Domains, tenant))?;
        actor.require_domain(domain)?;
        let asked = records::read(&self.returns).get(tenant, domain).cloned();
        let Some(asked) = asked else { return Ok(None) };
        let expected = self.expected(tenant);
        let (mx, spf) = tokio::join!(
            look_mx(&*self.resolver, &asked.name, &expected),
            look_spf(&*self.resolver, &asked.name, &expected)
        );
        let turn = self.desk.turn().await;
        let before = records::read(&self.returns).get(tenant, domain).cloned();
        let Some(before) = before.filter(|before| before.name == asked.name) else { return Ok(None) };
        let mut path = before.clone();
        let turned = path.apply(mx, spf, now);
        let mut batch = Batch::new();
        batch.set(key(tenant, domain), codec::encode(&path));
        let (owner, name) = (domain.clone(), path.name.clone());
        let told = turned.map(|turned| match turned {
            Ok(()) => InstanceEvent::ReturnPathVerified { tenant, domain: owner, name },
            Err(reason) => InstanceEvent::ReturnPathUnverified { tenant, domain: owner, name, reason },
        });
        if let Some(told) = told {
            events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
        }
        if !actor.is_system() {
            let act = Act::new("domain.return-path-verify", domain.to_string()).of(tenant);
            let state = |path: &ReturnPath| vec![("state", format!("{:?}", path.state))];
            records::record(&mut batch, actor, act.changes(state(&before), state(&path)), now);
        }
        let (returns, made) = (Arc::clone(&self.returns), path.clone());
        turn.commit(batch, move || records::write(&returns).put(made)).await?;
        Ok(Some(path))
    }

    /// Return-paths that are to be looked up again.
    pub(super) fn returns_due(&self, now: Timestamp) -> Vec<(TenantId, Domain)> {
        let returns = records::read(&self.returns);
        let is_due = |path: &&ReturnPath| {
            let is_calm = matches!(path.state, State::Verified(_)) && path.absent_since.is_none();
            let again = if is_calm { self.settings.verified_again } else { self.settings.pending_again };
            path.last_check.is_none_or(|last| now.since(last) >= again || now < last)
        };
        returns.paths.values().filter(is_due).map(|path| (path.tenant, path.domain.clone())).collect()
    }
}

pub(super) async fn look_mx(resolver: &dyn Resolver, name: &Domain, expected: &Expected) -> RecordState {
    let hosts = match resolver.mx(name).await {
        Ok(hosts) => hosts,
        Err(LookupError::NoSuchName | LookupError::NoRecord) => {
            return RecordState::Wrong(format!("{name} has no MX record"));
        }
        Err(LookupError::Temporary(_) | LookupError::Bogus(_)) => return RecordState::Unknown,
    };
    let hosts: Vec<Domain> = hosts.into_iter().filter_map(|exchanger| exchanger.host).collect();
    // Every one: what goes elsewhere is lost to us.
    let foreign: Vec<String> =
        hosts.iter().filter(|host| !expected.names.contains(host)).map(ToString::to_string).collect();
    match (hosts.is_empty(), foreign.is_empty()) {
        (true, _) => RecordState::Wrong(format!("{name} has a null MX")),
        (_, true) => RecordState::Found,
        (_, false) => RecordState::Wrong(format!("the MX of {name} leads to {}, not here", foreign.join(", "))),
    }
}

pub(super) async fn look_spf(resolver: &dyn Resolver, name: &Domain, expected: &Expected) -> RecordState {
    // Without a public address there must be a record all the same, whatever it permits.
    let (addresses, include) = match expected.addresses.as_slice() {
        [] => (vec![IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)], None),
        some => (some.to_vec(), expected.include.as_ref()),
    };
    let Ok(judged) = spf::judge(resolver, name, (&addresses, include)).await else { return RecordState::Unknown };
    match (judged.refused.first(), judged.of_service) {
        (None, _) => RecordState::Found,
        (Some((_, Spf::None)), _) => RecordState::Wrong(format!("{name} has no SPF record")),
        (_, Some(of_service)) => RecordState::Wrong(of_service),
        (Some((_, Spf::PermanentError)), None) => {
            RecordState::Wrong(format!("the SPF record of {name}: {}", spf::UNREADABLE))
        }
        (Some(_), None) if expected.addresses.is_empty() => RecordState::Found,
        (Some((address, _)), None) => RecordState::Wrong(format!("the SPF record of {name} does not permit {address}")),
    }
}

/// Where it is stored.
pub(super) fn key(tenant: TenantId, domain: &Domain) -> Key {
    [&[prefix::RETURN_PATH][..], &tenant.0.to_be_bytes(), domain.as_str().as_bytes()].concat()
}

#[cfg(test)]
#[path = "return_path_tests.rs"]
mod tests;
