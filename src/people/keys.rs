//! API keys: `pk_`, the tenant's name or `instance`, the key's id, and 160 random bits.
//!
//! Shown once, kept as SHA-256: with that many bits no slow hash is needed. Easy to get wrong: a key
//! never reaches further than whoever made it, at the moment it was made.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::users::shortened;
use super::{ApiKey, KeySecret, KeyUse, People, api_key_key, check_networks, digest, is_allowed, is_same, key_use_key};
use crate::access::{Action, Actor, Forbidden, Narrowing, Permission, RESOURCES, Resource, Role, Scope, Sight};
use crate::ext::{self, Timestamp};
use crate::mail::{Domain, KeyId, TenantId};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, codec};

/// How long an old secret stays good after a rotation, if nobody says.
pub const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// How long it may stay good, at most.
pub const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Scopes of one key, at most: there are not more of them.
pub const SCOPES_MAX: usize = RESOURCES.len() * 2;
/// Keys of one tenant, at most.
const KEYS_MAX: usize = 500;
/// Domains of one key, at most.
const DOMAINS_MAX: usize = 100;
/// The time of the last use is told anew when it is this much later.
const USE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// What every key begins with, so that scanners of leaked secrets know it.
const PREFIX: &str = "pk_";

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose; `None` for the instance.
    pub tenant: Option<TenantId>,
    /// For people.
    pub name: String,
    /// What it may.
    pub scopes: Vec<Scope>,
    /// Where it may come from.
    pub allowed_from: Vec<IpNet>,
    /// Only these sending domains.
    pub domains: Vec<Domain>,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

/// What is to change; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    /// For people.
    pub name: Option<String>,
    /// Where it may come from.
    pub allowed_from: Option<Vec<IpNet>>,
    /// When it ends; `Some(None)` is never.
    pub expires: Option<Option<Timestamp>>,
}

/// A key with its text, which is shown this once.
pub struct MadeKey {
    /// What is kept.
    pub key: ApiKey,
    /// What the machine presents.
    pub text: Zeroizing<String>,
}

fn new_text(tenant_name: Option<&str>, id: KeyId) -> Zeroizing<String> {
    let secret = Zeroizing::new(ext::base32(&ext::random_bytes::<20>()));
    Zeroizing::new(format!("{PREFIX}{}_{id}_{}", tenant_name.unwrap_or("instance"), secret.as_str()))
}

fn id_in(text: &str) -> Option<KeyId> {
    text.strip_prefix(PREFIX)?.rsplit('_').nth(1)?.parse().ok()
}

fn secret_of(text: &str) -> KeySecret {
    let ending = text.get(text.len().saturating_sub(4)..).unwrap_or_default().to_owned();
    KeySecret { digest: digest(text), ending, expires: None }
}

fn act_on(name: &str, key: &ApiKey) -> Act {
    let act = Act::new(name, format!("key {}", key.id));
    act.of_any(key.tenant)
}

fn words<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn facts(key: &ApiKey) -> Vec<(&'static str, String)> {
    vec![
        ("name", key.name.clone()),
        ("scopes", words(&key.scopes)),
        ("allowed_from", words(&key.allowed_from)),
        ("domains", words(&key.domains)),
        ("expires", key.expires.map_or_else(|| "never".to_owned(), Timestamp::rfc3339)),
        ("secrets", key.secrets.iter().map(|secret| secret.ending.clone()).collect::<Vec<_>>().join(" ")),
    ]
}

impl People {
    /// Makes a key; `tenant_name` is what its text says. The text is shown this once.
    ///
    /// # Errors
    /// If the actor may not make keys, or may not itself do what a scope allows.
    pub async fn add_key(
        &self,
        actor: &Actor,
        (new, tenant_name): (NewKey, Option<&str>),
        now: Timestamp,
    ) -> Result<MadeKey, AdminError> {
        actor.require(Permission::of(Resource::Keys, new.tenant, Action::Write))?;
        actor.require_fresh(now)?;
        self.check_new(actor, &new, now)?;
        let id = KeyId::random();
        let text = new_text(tenant_name, id);
        let key = ApiKey {
            id,
            tenant: new.tenant,
            name: shortened(&new.name),
            scopes: new.scopes,
            allowed_from: new.allowed_from,
            domains: new.domains,
            secrets: vec![secret_of(&text)],
            expires: new.expires,
            created: now,
            created_by: actor.name.clone(),
        };
        let turn = self.desk.turn().await;
        if self.keys_of(key.tenant).len() >= KEYS_MAX {
            return Err(AdminError::Invalid(format!("at most {KEYS_MAX} keys")));
        }
        let mut batch = Batch::new();
        batch.if_absent(api_key_key(id)).set(api_key_key(id), codec::encode(&key));
        let act = act_on("key.add", &key);
        let act = facts(&key).into_iter().fold(act, |act, (field, value)| act.changed(field, None, Some(value)));
        records::record(&mut batch, actor, act, now);
        self.remember_key(turn, batch, key.clone()).await?;
        Ok(MadeKey { key, text })
    }

    fn check_new(&self, actor: &Actor, new: &NewKey, now: Timestamp) -> Result<(), AdminError> {
        if new.scopes.is_empty() || new.scopes.len() > SCOPES_MAX {
            return Err(AdminError::field("scopes", format!("a key has 1 to {SCOPES_MAX} scopes")));
        }
        if new.domains.len() > DOMAINS_MAX {
            return Err(AdminError::field("domains", format!("at most {DOMAINS_MAX} domains for one key")));
        }
        if let (Some(_), Some(scope)) =
            (new.tenant, new.scopes.iter().find(|scope| scope.resource == Resource::Instance))
        {
            return Err(AdminError::field("scopes", format!("{scope} is not for a tenant's key")));
        }
        may_give(actor, new.tenant, (&new.scopes, &new.domains))?;
        if new.expires.is_some_and(|expires| expires <= now) {
            return Err(AdminError::field("expires", "this key would have ended already".to_owned()));
        }
        check_networks(&new.allowed_from)
    }

    /// The keys of a tenant, or of the instance, by name.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn keys(&self, actor: &Actor, tenant: Option<TenantId>) -> Result<Vec<ApiKey>, AdminError> {
        actor.require(Permission::of(Resource::Keys, tenant, Action::Read))?;
        Ok(self.keys_of(tenant))
    }

    /// One key.
    ///
    /// # Errors
    /// `Missing`, also if the actor may not see it.
    pub fn key_for(&self, actor: &Actor, id: KeyId, action: Action) -> Result<ApiKey, AdminError> {
        let missing = || AdminError::Missing(format!("key {id}"));
        let key = records::read(&self.memory.records).keys.get(&id).cloned().ok_or_else(missing)?;
        let is_seen = match key.tenant {
            Some(tenant) => actor.sees(tenant),
            None => actor.role.tenant().is_none(),
        };
        if !is_seen {
            return Err(missing());
        }
        actor.require(Permission::of(Resource::Keys, key.tenant, action))?;
        Ok(ApiKey::clone(&key))
    }

    /// When and from where a key was last used.
    pub fn key_use(&self, id: KeyId) -> Option<KeyUse> {
        records::read(&self.memory.records).uses.get(&id).copied()
    }

    /// Changes a key's name, networks or end.
    ///
    /// # Errors
    /// If the actor may not.
    pub async fn change_key(
        &self,
        actor: &Actor,
        id: KeyId,
        change: KeyChange,
        now: Timestamp,
    ) -> Result<ApiKey, AdminError> {
        self.alter_key((actor, now), id, "key.change", |key| {
            if let Some(name) = &change.name {
                key.name = shortened(name);
            }
            if change.allowed_from.is_some() || change.expires.is_some() {
                may_give(actor, key.tenant, (&key.scopes, &key.domains))?;
            }
            if let Some(networks) = change.allowed_from {
                check_networks(&networks)?;
                key.allowed_from = networks;
            }
            if let Some(expires) = change.expires {
                key.expires = expires;
            }
            Ok(())
        })
        .await
    }

    /// Gives a key a new secret; the old one stays good for `overlap`.
    ///
    /// # Errors
    /// If the actor may not, or the key reaches further than the actor.
    pub async fn rotate_key(
        &self,
        actor: &Actor,
        (id, tenant_name): (KeyId, Option<&str>),
        overlap: Duration,
        now: Timestamp,
    ) -> Result<MadeKey, AdminError> {
        if overlap > OVERLAP_MAX {
            return Err(AdminError::field(
                "overlap_hours",
                format!("the overlap is at most {} days", OVERLAP_MAX.as_secs() / 86_400),
            ));
        }
        let text = new_text(tenant_name, id);
        let secret = secret_of(&text);
        let key = self
            .alter_key((actor, now), id, "key.rotate", |key| {
                may_give(actor, key.tenant, (&key.scopes, &key.domains))?;
                key.secrets.truncate(1);
                for old in &mut key.secrets {
                    old.expires = Some(old.expires.map_or(now.plus(overlap), |ends| ends.min(now.plus(overlap))));
                }
                key.secrets.insert(0, secret);
                Ok(())
            })
            .await?;
        Ok(MadeKey { key, text })
    }

    /// Ends a key at once.
    ///
    /// # Errors
    /// If the actor may not.
    pub async fn remove_key(&self, actor: &Actor, id: KeyId, now: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let key = self.key_for(actor, id, Action::Write)?;
        actor.require_fresh(now)?;
        let mut batch = Batch::new();
        batch.if_equals(api_key_key(id), codec::encode(&key)).remove(api_key_key(id)).remove(key_use_key(id));
        records::record(&mut batch, actor, act_on("key.remove", &key), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            known.keys.remove(&id);
            known.uses.remove(&id);
        })
        .await?;
        Ok(())
    }

    /// The actor of a key's text; `None` if it is not good, or not from there.
    pub fn key_actor(&self, text: &str, from: Option<IpAddr>, now: Timestamp) -> Option<Actor> {
        let id = id_in(text)?;
        let key = records::read(&self.memory.records).keys.get(&id).cloned()?;
        let typed = digest(text);
        let is_current = |ends: Option<Timestamp>| ends.is_none_or(|ends| now < ends);
        let mut is_good = false;
        for secret in &key.secrets {
            is_good |= is_same(&secret.digest, &typed) && is_current(secret.expires);
        }
        if !is_good || !is_current(key.expires) || !is_allowed(&key.allowed_from, from) {
            return None;
        }
        self.used(id, from, now);
        let domains = (!key.domains.is_empty()).then(|| key.domains.clone());
        let narrowing = Narrowing { scopes: Some(key.scopes.clone()), domains, accounts: None };
        let role = key.tenant.map_or(Role::InstanceAdmin, Role::TenantAdmin);
        Some(Actor { narrowing: Arc::new(narrowing), from, ..Actor::of(format!("key {id}"), role) })
    }

    fn used(&self, id: KeyId, from: Option<IpAddr>, now: Timestamp) {
        let is_told = |used: &KeyUse| used.from == from && now.since(used.at) < USE_TOLD_EVERY;
        if records::read(&self.memory.records).uses.get(&id).is_some_and(is_told) {
            return;
        }
        let mut known = records::write(&self.memory.records);
        known.uses.insert(id, KeyUse { id, at: now, from });
        if !known.unsaved_uses.contains(&id) {
            known.unsaved_uses.push(id);
        }
    }

    fn keys_of(&self, tenant: Option<TenantId>) -> Vec<ApiKey> {
        let known = records::read(&self.memory.records);
        let own = known.keys.values().filter(|key| key.tenant == tenant);
        let mut keys: Vec<ApiKey> = own.map(|key| ApiKey::clone(key)).collect();
        keys.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        keys
    }

    async fn alter_key(
        &self,
        (actor, now): (&Actor, Timestamp),
        id: KeyId,
        act: &str,
        change: impl FnOnce(&mut ApiKey) -> Result<(), AdminError> + Send,
    ) -> Result<ApiKey, AdminError> {
        let turn = self.desk.turn().await;
        let before = self.key_for(actor, id, Action::Write)?;
        actor.require_fresh(now)?;
        let mut key = before.clone();
        change(&mut key)?;
        let mut batch = Batch::new();
        batch.if_equals(api_key_key(id), codec::encode(&before)).set(api_key_key(id), codec::encode(&key));
        records::record(&mut batch, actor, act_on(act, &key).changes(facts(&before), facts(&key)), now);
        self.remember_key(turn, batch, key.clone()).await?;
        Ok(key)
    }

    async fn remember_key(&self, turn: records::Turn, batch: Batch, key: ApiKey) -> Result<(), AdminError> {
        let memory = Arc::clone(&self.memory);
        let remember = move || drop(records::write(&memory.records).keys.insert(key.id, Arc::new(key)));
        Ok(turn.commit(batch, remember).await?)
    }
}

/// Whether a key of these scopes and domains reaches no further than the actor.
fn may_give(
    actor: &Actor,
    tenant: Option<TenantId>,
    (scopes, domains): (&[Scope], &[Domain]),
) -> Result<(), AdminError> {
    scopes.iter().try_for_each(|scope| actor.may_give_scope(tenant, *scope))?;
    if actor.narrowing.domains.is_some() && domains.is_empty() {
        return Err(AdminError::field("domains", "name the domains this key is for: you have only some".to_owned()));
    }
    domains.iter().try_for_each(|domain| actor.require_domain(domain))?;
    if actor.narrowing.accounts.is_some() {
        // A key cannot be bound to SMTP accounts.
        let (needed, sight) = (None, Sight::Seen);
        return Err(Forbidden { actor: actor.name.clone(), needed, sight }.into());
    }
    Ok(())
}
