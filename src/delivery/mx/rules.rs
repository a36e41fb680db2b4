//! What operators say about TLS towards single recipient domains: records with an audit event each.
//!
//! Easy to get wrong: a rule holds for lookups made after it; a site that is known stays as it was for
//! up to a minute.

use serde::{Deserialize, Serialize};

use super::policies::TlsPolicies;
use super::tls_policy::DomainTls;
use crate::access::{Actor, Permission};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::records::{self, AdminError};
use crate::store::{Batch, Key, codec, prefix};

/// Rules, at most: they are for people.
const RULES_MAX: usize = 10_000;

/// An operator's word about one recipient domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRule {
    /// The recipient domain.
    pub domain: Domain,
    /// What is demanded, or waived.
    pub tls: DomainTls,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
}

impl DomainTls {
    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Encrypted => "encrypted",
            Self::Verified => "verified",
        }
    }

    /// The one people call `word`.
    pub fn called(word: &str) -> Option<Self> {
        [Self::Plaintext, Self::Encrypted, Self::Verified].into_iter().find(|tls| tls.word() == word)
    }
}

impl TlsPolicies {
    /// What was said about a domain.
    pub(super) fn rule(&self, domain: &Domain) -> Option<DomainTls> {
        records::lock(&self.rules).get(domain).map(|rule| rule.tls)
    }

    /// Every rule, by domain.
    pub fn rules(&self, actor: &Actor) -> Result<Vec<DomainRule>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        Ok(records::lock(&self.rules).values().cloned().collect())
    }

    /// Says what is demanded of TLS towards a domain; what was said before is replaced.
    ///
    /// # Errors
    /// If the actor may not, there are too many rules, or it cannot be written.
    pub async fn set_rule(
        &self,
        actor: &Actor,
        domain: Domain,
        tls: DomainTls,
        now: Timestamp,
    ) -> Result<DomainRule, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let is_full = {
            let known = records::lock(&self.rules);
            known.len() >= RULES_MAX && !known.contains_key(&domain)
        };
        if is_full {
            return Err(AdminError::Invalid(format!("{RULES_MAX} rules are set already, the most there may be")));
        }
        let rule = DomainRule { domain, tls, by: actor.name.clone(), since: now };
        let mut batch = Batch::new();
        batch.set(key(&rule.domain), codec::encode(&rule));
        records::audit(&mut batch, actor, "tls.set", format!("{}: {}", rule.domain, tls.word()), now);
        let (rules, made) = (self.rules.clone(), rule.clone());
        turn.commit(batch, move || drop(records::lock(&rules).insert(made.domain.clone(), made))).await?;
        Ok(rule)
    }

    /// Takes back what was said about a domain.
    ///
    /// # Errors
    /// If the actor may not, nothing was said, or it cannot be written.
    pub async fn clear_rule(&self, actor: &Actor, domain: &Domain, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        if !records::lock(&self.rules).contains_key(domain) {
            return Err(AdminError::Missing(format!("TLS rule for {domain}")));
        }
        let mut batch = Batch::new();
        batch.remove(key(domain));
        records::audit(&mut batch, actor, "tls.clear", domain.to_string(), now);
        let (rules, gone) = (self.rules.clone(), domain.clone());
        turn.commit(batch, move || drop(records::lock(&rules).remove(&gone))).await?;
        Ok(())
    }
}

fn key(domain: &Domain) -> Key {
    [&[prefix::TLS_POLICY, b'o'][..], domain.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::Role;
    use crate::mail::TenantId;
    use crate::store::MemoryStore;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    #[tokio::test]
    async fn a_rule_holds_over_a_restart_until_it_is_taken_back() {
        let (store, actor) = (Arc::new(MemoryStore::new()), Actor::local(0));
        let policies = TlsPolicies::open(store.clone()).unwrap();
        for tls in [DomainTls::Encrypted, DomainTls::Verified] {
            policies.set_rule(&actor, domain("shop.example"), tls, NOW).await.unwrap();
        }
        let policies = TlsPolicies::open(store.clone()).unwrap();
        assert_eq!(policies.rule(&domain("shop.example")), Some(DomainTls::Verified));
        assert_eq!(policies.rule(&domain("sub.shop.example")), None);
        assert_eq!(policies.rules(&actor).unwrap().len(), 1);
        policies.clear_rule(&actor, &domain("shop.example"), NOW).await.unwrap();
        let gone = policies.clear_rule(&actor, &domain("shop.example"), NOW).await;
        assert!(matches!(gone, Err(AdminError::Missing(_))), "{gone:?}");
        assert_eq!(TlsPolicies::open(store).unwrap().rule(&domain("shop.example")), None);
    }

    #[tokio::test]
    async fn only_those_who_run_the_instance_may_set_rules() {
        let policies = TlsPolicies::open(Arc::new(MemoryStore::new())).unwrap();
        let owner = Actor::of("o", Role::TenantOwner(TenantId(1)));
        assert!(policies.set_rule(&owner, domain("shop.example"), DomainTls::Plaintext, NOW).await.is_err());
        assert!(policies.clear_rule(&owner, &domain("shop.example"), NOW).await.is_err());
        assert!(policies.rules(&owner).is_err());
        assert_eq!(policies.rule(&domain("shop.example")), None);
    }

    #[test]
    fn what_people_write_is_read_back() {
        for tls in [DomainTls::Plaintext, DomainTls::Encrypted, DomainTls::Verified] {
            assert_eq!(DomainTls::called(tls.word()), Some(tls));
        }
        assert_eq!(DomainTls::called("none"), None);
    }
}
