//! What people do to people: invite, change, lock, reset, remove.
//!
//! Easy to get wrong: nobody may give a role that reaches further than his own, and nobody may
//! shut himself out, by a list of addresses or otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::links::{self, ACTIVATION_LASTS, OneTimeLink, Purpose, RESET_LASTS};
use super::{
    FactorPolicy, People, User, UserState, check_networks, email_key, is_allowed, is_self, policy_key, stored, user_key,
};
use crate::access::{Action, Actor, Permission, ROLES, Resource, Role};
use crate::ext::Timestamp;
use crate::mail::{Address, SmtpAccountId, TenantId, UserId, printable};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, codec};

/// Networks a person or key may be bound to, at most.
pub const NETWORKS_MAX: usize = 50;
/// People of one tenant, at most.
const USERS_MAX: usize = 1000;
/// Characters of a name, at most.
const NAME_CHARACTERS_MAX: usize = 200;
/// SMTP accounts a person may be bound to, at most.
const ACCOUNTS_MAX: usize = 1000;

/// Somebody to be invited.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The e-mail address it logs in with.
    pub email: String,
    /// For people.
    pub name: String,
    /// What it may, and where.
    pub role: Role,
    /// Only these SMTP accounts.
    pub accounts: Option<BTreeMap<SmtpAccountId, Action>>,
}

/// What is to change; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// For people.
    pub name: Option<String>,
    /// A role of the same tenant.
    pub role: Option<Role>,
    /// Lock it, or let it in again.
    pub locked: Option<bool>,
    /// Where it may log in from.
    pub allowed_from: Option<Vec<IpNet>>,
    /// The SMTP accounts it is bound to; `Some(None)` is none in particular.
    pub accounts: Option<Option<BTreeMap<SmtpAccountId, Action>>>,
}

/// A person who may not log in yet.
pub(super) fn new_user(email: String, name: String, role: Role, now: Timestamp) -> User {
    User {
        id: UserId::random(),
        email,
        name,
        role,
        state: UserState::Invited,
        password: None,
        allowed_from: Vec::new(),
        accounts: None,
        totp: None,
        recovery: Vec::new(),
        created: now,
        last_login: None,
        passkeys: Vec::new(),
    }
}

/// An act on a person, in its tenant's log.
pub(super) fn act_on(name: &str, user: &User) -> Act {
    let act = Act::new(name, format!("user {}", user.id));
    match user.role.tenant() {
        Some(tenant) => act.of(tenant),
        None => act,
    }
}

/// An address as it is kept and compared.
pub(super) fn folded(email: &str) -> Result<String, AdminError> {
    let unread = |error| AdminError::field("email", format!("{email:?} is no e-mail address: {error}"));
    Ok(Address::parse(email).map_err(unread)?.folded().to_string().to_lowercase())
}

fn facts(user: &User) -> Vec<(&'static str, String)> {
    let networks: Vec<String> = user.allowed_from.iter().map(ToString::to_string).collect();
    let account = |(id, action): (&SmtpAccountId, &Action)| format!("{id}={}", action.word());
    let accounts = user.accounts.as_ref().map(|own| own.iter().map(account).collect::<Vec<_>>().join(" "));
    vec![
        ("role", user.role.word().to_owned()),
        ("state", format!("{:?}", user.state)),
        ("allowed_from", networks.join(" ")),
        ("accounts", accounts.unwrap_or_else(|| "as the role says".to_owned())),
    ]
}

impl People {
    /// Makes a person who chooses its password by the link, which is shown this once.
    ///
    /// # Errors
    /// If the actor may not give that role, or the address is known in that tenant already.
    pub async fn invite(&self, actor: &Actor, new: NewUser, now: Timestamp) -> Result<(User, OneTimeLink), AdminError> {
        let tenant = new.role.tenant();
        actor.require(Permission::of(Resource::Users, tenant, Action::Write))?;
        actor.require_fresh(now)?;
        actor.may_give(new.role)?;
        check_accounts(actor, new.role, new.accounts.as_ref())?;
        let email = folded(&new.email)?;
        let turn = self.desk.turn().await;
        if self.users_of(tenant).len() >= USERS_MAX {
            return Err(AdminError::Invalid(format!("at most {USERS_MAX} people")));
        }
        if self.users_of(tenant).iter().any(|user| user.email == email) {
            return Err(AdminError::Exists("a person with that address".to_owned()));
        }
        let mut user = new_user(email, shortened(&new.name), new.role, now);
        user.accounts = new.accounts;
        let mut batch = Batch::new();
        let name = email_key(tenant, &user.email);
        batch.if_absent(name.clone()).set(name, codec::encode(&user.id));
        batch.if_absent(user_key(user.id)).set(user_key(user.id), stored::user_bytes(&user));
        let link = links::make(&mut batch, Purpose::Activate(user.id), ACTIVATION_LASTS, now);
        let act = act_on("user.invite", &user).changed("role", None, Some(user.role.word().to_owned()));
        records::record(&mut batch, actor, act, now);
        self.remember(turn, batch, user.clone()).await?;
        Ok((user, link))
    }

    /// The people of a tenant, or of the instance, by address.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn users(&self, actor: &Actor, tenant: Option<TenantId>) -> Result<Vec<User>, AdminError> {
        actor.require(Permission::of(Resource::Users, tenant, Action::Read))?;
        Ok(self.users_of(tenant))
    }

    /// One person. Everybody may read himself.
    ///
    /// # Errors
    /// `Missing`, also if the actor may not see it.
    pub fn user_for(&self, actor: &Actor, id: UserId, action: Action) -> Result<User, AdminError> {
        let missing = || AdminError::Missing(format!("user {id}"));
        let user = self.user(id).ok_or_else(missing)?;
        let tenant = user.role.tenant();
        let is_seen =
            tenant.is_none_or(|tenant| actor.sees(tenant)) && (tenant.is_some() || actor.role.tenant().is_none());
        if !is_seen {
            return Err(missing());
        }
        if !(action == Action::Read && is_self(actor, id)) {
            actor.require(Permission::of(Resource::Users, tenant, action))?;
        }
        Ok(User::clone(&user))
    }

    /// Changes a person. Whoever lets somebody in again, or from elsewhere, opens the way to what that person
    /// has, so he needs what it takes to give that role.
    ///
    /// # Errors
    /// If the actor may not, or would shut himself out.
    pub async fn change_user(
        &self,
        actor: &Actor,
        id: UserId,
        change: UserChange,
        now: Timestamp,
    ) -> Result<User, AdminError> {
        self.alter((actor, now), id, "user.change", |user| {
            if let Some(name) = &change.name {
                user.name = shortened(name);
            }
            if let Some(role) = change.role {
                actor.may_give(role)?;
                if is_self(actor, id) && role != user.role {
                    return Err(AdminError::field("role", "nobody changes his own role".to_owned()));
                }
                if role.tenant() != user.role.tenant() {
                    return Err(AdminError::field("role", "a person stays in its tenant".to_owned()));
                }
                user.role = role;
            }
            if let Some(locked) = change.locked {
                if locked && is_self(actor, id) {
                    return Err(AdminError::field("locked", "nobody locks himself out".to_owned()));
                }
                if !locked && user.state == UserState::Locked {
                    actor.may_give(user.role)?;
                }
                user.state = match (locked, user.password.is_some()) {
                    (true, _) => UserState::Locked,
                    (false, true) => UserState::Active,
                    (false, false) => UserState::Invited,
                };
            }
            if let Some(networks) = change.allowed_from {
                check_networks(&networks)?;
                if !is_self(actor, id) {
                    actor.may_give(user.role)?;
                }
                if is_self(actor, id) && !is_allowed(&networks, actor.from) {
                    return Err(AdminError::field(
                        "allowed_from",
                        format!(
                            "you are at {}, which is in none of these networks: you would lock yourself out",
                            actor.from.map(|from| from.to_string()).unwrap_or_default()
                        ),
                    ));
                }
                user.allowed_from = networks;
            }
            if let Some(accounts) = change.accounts {
                actor.may_give(user.role)?;
                check_accounts(actor, user.role, accounts.as_ref())?;
                user.accounts = accounts;
            }
            Ok(())
        })
        .await
    }

    /// A link by which the person chooses a new password; until then the old one stays. For somebody
    /// who has not followed his invitation, a new invitation.
    ///
    /// # Errors
    /// If the actor may not.
    pub async fn reset_link(&self, actor: &Actor, id: UserId, now: Timestamp) -> Result<OneTimeLink, AdminError> {
        let turn = self.desk.turn().await;
        let user = self.user_for(actor, id, Action::Write)?;
        actor.may_give(user.role)?;
        actor.require_fresh(now)?;
        let mut batch = Batch::new();
        let (purpose, lasts) = match user.state {
            UserState::Invited => (Purpose::Activate(id), ACTIVATION_LASTS),
            UserState::Active | UserState::Locked => (Purpose::Reset(id), RESET_LASTS),
        };
        let link = links::make(&mut batch, purpose, lasts, now);
        records::record(&mut batch, actor, act_on("user.reset-link", &user), now);
        turn.commit(batch, || ()).await?;
        Ok(link)
    }

    /// Removes a person and ends its sessions.
    ///
    /// # Errors
    /// If the actor may not, or is that person.
    pub async fn remove_user(&self, actor: &Actor, id: UserId, now: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let user = self.user_for(actor, id, Action::Write)?;
        check_grant(actor, user.role)?;
        actor.require_fresh(now)?;
        if is_self(actor, id) {
            return Err(AdminError::Invalid("nobody removes himself".to_owned()));
        }
        let mut batch = Batch::new();
        batch.if_equals(user_key(id), stored::user_bytes(&user)).remove(user_key(id));
        batch.remove(email_key(user.role.tenant(), &user.email));
        let ended = self.end_in(&mut batch, id, None);
        records::record(&mut batch, actor, act_on("user.remove", &user), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            known.users.remove(&id);
            ended.iter().for_each(|session| drop(known.sessions.remove(session)));
        })
        .await?;
        Ok(())
    }

    /// Which roles must have a second factor.
    ///
    /// # Errors
    /// If the actor may not read the people.
    pub fn factor_policy(&self, actor: &Actor, tenant: Option<TenantId>) -> Result<FactorPolicy, AdminError> {
        actor.require(Permission::of(Resource::Users, tenant, Action::Read))?;
        Ok(self.policy(tenant))
    }

    /// Sets which roles must have a second factor: at their next request they may do nothing but
    /// set one up.
    ///
    /// # Errors
    /// If the actor may not, names no role, asks it of a role he could not take away, or takes the duty off
    /// one he could not give.
    pub async fn set_factor_policy(
        &self,
        actor: &Actor,
        tenant: Option<TenantId>,
        policy: FactorPolicy,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::of(Resource::Users, tenant, Action::Write))?;
        actor.require_fresh(now)?;
        let is_role = |word: &String| ROLES.iter().any(|(known, _)| known == word);
        if let Some(unknown) = policy.required_of.iter().find(|word| !is_role(word)) {
            return Err(AdminError::field("required_of", format!("{unknown:?} is no role")));
        }
        let turn = self.desk.turn().await;
        let stands = self.policy(tenant);
        for (word, _) in ROLES {
            let Some(role) = Role::called(word, tenant) else { continue };
            let holds = |policy: &FactorPolicy| policy.required_of.iter().any(|known| known == word);
            match (holds(&stands), holds(&policy)) {
                (true, false) => actor.may_give(role)?,
                (false, true) => check_grant(actor, role)?,
                _ => {}
            }
        }
        let mut batch = Batch::new();
        batch.set(policy_key(tenant), codec::encode(&(tenant, policy.clone())));
        let before = stands.required_of.join(" ");
        let act = Act::new("users.second-factor-policy", "who must have a second factor");
        let act = act.of_any(tenant);
        let act = act.changed("required_of", Some(before), Some(policy.required_of.join(" ")));
        records::record(&mut batch, actor, act, now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || drop(records::write(&memory.records).policies.insert(tenant, policy))).await?;
        Ok(())
    }

    /// Forgets which roles of a tenant that is deleted must have a second factor, and the links of its people,
    /// who were removed before.
    ///
    /// # Errors
    /// If the actor may not.
    pub async fn forget_tenant(&self, actor: &Actor, tenant: TenantId) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        batch.remove(policy_key(Some(tenant)));
        for key in self.links_of_nobody()? {
            batch.remove(key);
        }
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || drop(records::write(&memory.records).policies.remove(&Some(tenant)))).await?;
        Ok(())
    }

    /// How many people and keys a tenant has, for whoever removes it.
    pub fn held_for(&self, tenant: TenantId) -> (usize, usize) {
        let known = records::read(&self.memory.records);
        let keys = known.keys.values().filter(|key| key.tenant == Some(tenant)).count();
        (known.users.values().filter(|user| user.role.tenant() == Some(tenant)).count(), keys)
    }

    pub(super) fn users_of(&self, tenant: Option<TenantId>) -> Vec<User> {
        let known = records::read(&self.memory.records);
        let own = known.users.values().filter(|user| user.role.tenant() == tenant);
        let mut users: Vec<User> = own.map(|user| User::clone(user)).collect();
        users.sort_by(|one, other| one.email.cmp(&other.email));
        users
    }

    /// One change of one person by somebody who manages people, with its audit entry.
    pub(super) async fn alter(
        &self,
        (actor, now): (&Actor, Timestamp),
        id: UserId,
        act: &str,
        change: impl FnOnce(&mut User) -> Result<(), AdminError> + Send,
    ) -> Result<User, AdminError> {
        let turn = self.desk.turn().await;
        let before = self.user_for(actor, id, Action::Write)?;
        check_grant(actor, before.role)?;
        actor.require_fresh(now)?;
        let mut user = before.clone();
        change(&mut user)?;
        let mut batch = Batch::new();
        stored::replace(&mut batch, &before, &user);
        records::record(&mut batch, actor, act_on(act, &user).changes(facts(&before), facts(&user)), now);
        let ended = if user.state == UserState::Locked || user.role != before.role {
            self.end_in(&mut batch, id, None)
        } else {
            Vec::new()
        };
        let (memory, changed) = (Arc::clone(&self.memory), user.clone());
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|session| drop(known.sessions.remove(session)));
            known.users.insert(changed.id, Arc::new(changed));
        })
        .await?;
        Ok(user)
    }

    /// Commits a change of one person and remembers it.
    pub(super) async fn remember(&self, turn: records::Turn, batch: Batch, user: User) -> Result<(), AdminError> {
        let memory = Arc::clone(&self.memory);
        let remember = move || drop(records::write(&memory.records).users.insert(user.id, Arc::new(user)));
        Ok(turn.commit(batch, remember).await?)
    }
}

/// For what takes away and gives nothing: only the roles count.
fn check_grant(actor: &Actor, role: Role) -> Result<(), AdminError> {
    if actor.role.may_grant(role) {
        return Ok(());
    }
    let needed = None;
    let sight = crate::access::Sight::Seen;
    Err(crate::access::Forbidden { actor: actor.name.clone(), needed, sight }.into())
}

/// Accounts are granted beyond the role, so each must be the actor's to grant.
fn check_accounts(
    actor: &Actor,
    role: Role,
    accounts: Option<&BTreeMap<SmtpAccountId, Action>>,
) -> Result<(), AdminError> {
    let Some(accounts) = accounts else { return Ok(()) };
    if accounts.len() > ACCOUNTS_MAX {
        return Err(AdminError::field("smtp_accounts", format!("at most {ACCOUNTS_MAX} SMTP accounts for one person")));
    }
    let Some(tenant) = role.tenant() else { return Ok(()) };
    accounts.iter().try_for_each(|(id, action)| actor.require_account((tenant, *id), *action))?;
    Ok(())
}

pub(super) fn shortened(name: &str) -> String {
    printable(name).chars().take(NAME_CHARACTERS_MAX).collect()
}
