//! What people do to SMTP accounts. A password is returned once, when it is made, and never again.
//!
//! Easy to get wrong: rotating must not cut off clients that still have the old password, so an
//! account may have two until the old one is dropped.

use std::sync::Arc;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::rules::{check_name, check_senders};
use super::stored::{account_bytes, stored_account, stored_tenant};
use super::{
    Accounts, AllowedSender, Limits, LoginSeen, LoginState, SECRETS_MAX, SmtpAccount, Tenant, account_key, limits,
    login_key, secret, tenant_key,
};
use crate::access::{Action, Actor, Permission, Resource};
use crate::ext::{self, Timestamp};
use crate::mail::{Class, HeaderDialect, SmtpAccountId, TenantId};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, codec};

/// Source networks an account may be bound to, at most.
pub const ALLOWED_FROM_MAX: usize = 50;
/// Random characters after the tenant's name in a login: room for a thousand million.
const LOGIN_CHARACTERS: usize = 6;
/// Logins tried before giving up on finding a free one.
const LOGIN_TRIES: usize = 16;

/// An SMTP account to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSmtpAccount {
    /// Part of every lane.
    pub class: Class,
    /// Where it may log in from; empty is anywhere.
    pub allowed_from: Vec<IpNet>,
    /// Messages it may submit.
    pub limits: Limits,
    /// What people call it; may be empty.
    pub name: String,
    /// Whom it may send as; empty is everybody its tenant may.
    pub allowed_senders: Vec<AllowedSender>,
    /// From when on it may neither log in nor send.
    pub expires: Option<Timestamp>,
    /// Whose header fields are read beside our own.
    pub dialects: Vec<HeaderDialect>,
}

/// What of an account is to change; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountChange {
    /// Whether it may log in.
    pub login_state: Option<LoginState>,
    /// Where it may log in from; empty is anywhere.
    pub allowed_from: Option<Vec<IpNet>>,
    /// Whether its mail is transactional or marketing, from its next login on.
    pub class: Option<Class>,
    /// How many messages it may submit.
    pub limits: Option<Limits>,
    /// Another name.
    pub name: Option<String>,
    /// Other senders; empty is everybody its tenant may.
    pub allowed_senders: Option<Vec<AllowedSender>>,
    /// Another end; `Some(None)` is none.
    pub expires: Option<Option<Timestamp>>,
    /// Other dialects.
    pub dialects: Option<Vec<HeaderDialect>>,
}

impl AccountChange {
    fn check(&self) -> Result<(), AdminError> {
        records::all_of([
            self.allowed_from.as_deref().map_or(Ok(()), check_networks),
            self.name.as_deref().map_or(Ok(()), check_name),
            self.allowed_senders.as_deref().map_or(Ok(()), check_senders),
        ])
    }

    /// A step for each act of the audit log, with its name.
    fn steps(self) -> Vec<(&'static str, Self)> {
        let none = Self::default;
        let mut rest = self;
        let state_act = match rest.login_state {
            Some(LoginState::Disabled) => "smtp-account.disable",
            _ => "smtp-account.enable",
        };
        let allowed_from = rest.allowed_from.take();
        let (class, limits, login_state) = (rest.class.take(), rest.limits.take(), rest.login_state.take());
        let steps = [
            allowed_from.map(|from| ("smtp-account.allowed-from", Self { allowed_from: Some(from), ..none() })),
            class.map(|class| ("smtp-account.class", Self { class: Some(class), ..none() })),
            limits.map(|limits| ("smtp-account.limits", Self { limits: Some(limits), ..none() })),
            (rest != none()).then_some(("smtp-account.change", rest)),
            login_state.map(|state| (state_act, Self { login_state: Some(state), ..none() })),
        ];
        steps.into_iter().flatten().collect()
    }

    fn apply(self, account: &mut SmtpAccount) {
        account.login_state = self.login_state.unwrap_or(account.login_state);
        account.allowed_from = self.allowed_from.unwrap_or_else(|| std::mem::take(&mut account.allowed_from));
        account.class = self.class.unwrap_or(account.class);
        account.limits = self.limits.unwrap_or(account.limits);
        account.name = self.name.unwrap_or_else(|| std::mem::take(&mut account.name));
        account.allowed_senders = self.allowed_senders.unwrap_or_else(|| std::mem::take(&mut account.allowed_senders));
        account.expires = self.expires.unwrap_or(account.expires);
        account.dialects = self.dialects.unwrap_or_else(|| std::mem::take(&mut account.dialects));
    }
}

impl Accounts {
    /// Makes an SMTP account and returns it with its password, which is shown this once.
    /// The login is the tenant's name and six random characters: `shop-7k3m9q`.
    pub async fn add_smtp_account(
        &self,
        actor: &Actor,
        tenant: TenantId,
        new: NewSmtpAccount,
        now: Timestamp,
    ) -> Result<(SmtpAccount, Zeroizing<String>), AdminError> {
        actor.require(Permission::Write(Resource::SmtpAccounts, tenant))?;
        actor.may_give_login()?;
        // A person bound to some accounts has no part in a new one.
        let id = SmtpAccountId::random();
        actor.require_account((tenant, id), Action::Write)?;
        records::all_of([
            check_networks(&new.allowed_from),
            check_name(&new.name),
            check_senders(&new.allowed_senders),
        ])?;
        let turn = self.desk.turn().await;
        let owner = self.tenant(tenant).ok_or_else(|| AdminError::Missing(format!("tenant {tenant}")))?;
        let password = secret::generate();
        let account = SmtpAccount {
            id,
            tenant,
            login: self.free_login(&owner)?,
            secrets: vec![secret::digest(&password)],
            class: new.class,
            allowed_from: new.allowed_from,
            limits: new.limits,
            login_state: LoginState::Enabled,
            created: now,
            name: new.name,
            allowed_senders: new.allowed_senders,
            expires: new.expires,
            old_until: None,
            dialects: new.dialects,
        };
        let mut batch = Batch::new();
        batch.if_equals(tenant_key(tenant), stored_tenant(&**self.desk.store(), tenant)?);
        batch.if_absent(account_key(account.id)).set(account_key(account.id), account_bytes(&account));
        batch.if_absent(login_key(&account.login)).set(login_key(&account.login), codec::encode(&account.id));
        let act = Act::new("smtp-account.add", account.login.clone()).of(tenant);
        records::record(&mut batch, actor, act, now);
        let (memory, added) = (Arc::clone(&self.memory), account.clone());
        turn.commit(batch, move || records::write(&memory.records).put_account(added)).await?;
        Ok((account, password))
    }

    /// A tenant's SMTP accounts, by login.
    pub fn smtp_accounts(&self, actor: &Actor, tenant: TenantId) -> Result<Vec<SmtpAccount>, AdminError> {
        actor.require(Permission::Read(Resource::SmtpAccounts, tenant))?;
        let mut accounts = self.accounts_of(tenant);
        accounts.retain(|account| actor.require_account((tenant, account.id), Action::Read).is_ok());
        Ok(accounts)
    }

    /// Changes an account: all that is given, or, if any of it is not acceptable, nothing.
    ///
    /// # Errors
    /// If the actor may not, there is no such account, or a value is not acceptable.
    pub async fn change_smtp_account(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        change: AccountChange,
        now: Timestamp,
    ) -> Result<SmtpAccount, AdminError> {
        let turn = self.desk.turn().await;
        let mut account = self.account_for(actor, id)?;
        change.check()?;
        let (steps, mut batch) = (change.steps(), Batch::new());
        if steps.is_empty() {
            return Ok(account);
        }
        for (act, step) in steps {
            let before = facts(&account);
            step.apply(&mut account);
            let act = Act::new(act, account.login.clone()).of(account.tenant).changes(before, facts(&account));
            records::record(&mut batch, actor, act, now);
        }
        self.keep_account(turn, batch, account).await
    }

    /// The last logins of an account, the latest first.
    pub fn last_logins(&self, actor: &Actor, id: SmtpAccountId) -> Result<Vec<LoginSeen>, AdminError> {
        let Some(account) = self.smtp_account(id) else {
            actor.require(Permission::ManageInstance)?;
            return Err(AdminError::Missing(format!("SMTP account {id}")));
        };
        actor.require_account((account.tenant, id), Action::Read)?;
        Ok(records::lock(&self.memory.logins).last_of(id))
    }

    /// Makes a new password beside the old one, which is valid until `old_until`, or without that until
    /// `drop_old_password`.
    pub async fn rotate_password(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        old_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(SmtpAccount, Zeroizing<String>), AdminError> {
        let password = secret::generate();
        let digest = secret::digest(&password);
        let account = self
            .change_account((actor, now), id, "smtp-account.rotate", |account| {
                let valid = account.valid_secrets(now).len();
                if valid >= SECRETS_MAX {
                    return Err(AdminError::Invalid("two passwords are valid already: drop the old one first".into()));
                }
                account.secrets.truncate(valid);
                account.secrets.insert(0, digest);
                account.old_until = old_until;
                Ok(())
            })
            .await?;
        Ok((account, password))
    }

    /// Ends the validity of the older password, if there are two.
    pub async fn drop_old_password(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        now: Timestamp,
    ) -> Result<SmtpAccount, AdminError> {
        self.change_account((actor, now), id, "smtp-account.drop-old", |account| {
            if account.valid_secrets(now).len() < SECRETS_MAX {
                return Err(AdminError::Missing("old password: only one is valid".into()));
            }
            account.secrets.truncate(1);
            account.old_until = None;
            Ok(())
        })
        .await
    }

    /// Removes an account. Mail it has submitted stays owed.
    pub async fn remove_smtp_account(
        &self,
        actor: &Actor,
        id: SmtpAccountId,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let account = self.account_for(actor, id)?;
        let mut batch = Batch::new();
        batch.if_equals(account_key(id), stored_account(&**self.desk.store(), id)?).remove(account_key(id));
        batch.remove(login_key(&account.login)).remove(limits::key(limits::Counted::Account(id)));
        let act = Act::new("smtp-account.remove", account.login.clone()).of(account.tenant);
        records::record(&mut batch, actor, act, now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            known.accounts.remove(&id);
            known.logins.remove(&account.login);
            records::lock(&memory.counters).forget(limits::Counted::Account(id));
            records::lock(&memory.logins).forget_account(id);
        })
        .await?;
        Ok(())
    }

    pub(super) fn accounts_of(&self, tenant: TenantId) -> Vec<SmtpAccount> {
        let known = records::read(&self.memory.records);
        let own = known.accounts.values().filter(|account| account.tenant == tenant);
        let mut accounts: Vec<SmtpAccount> = own.map(|account| SmtpAccount::clone(account)).collect();
        accounts.sort_by(|one, other| one.login.cmp(&other.login));
        accounts
    }

    /// The account, if `actor` may manage its tenant. Whoever may manage no tenant at all is not
    /// told whether it exists.
    fn account_for(&self, actor: &Actor, id: SmtpAccountId) -> Result<SmtpAccount, AdminError> {
        let Some(account) = self.smtp_account(id) else {
            actor.require(Permission::ManageInstance)?;
            return Err(AdminError::Missing(format!("SMTP account {id}")));
        };
        actor.require_account((account.tenant, id), Action::Write)?;
        actor.may_give_login()?;
        Ok(account)
    }

    async fn change_account(
        &self,
        (actor, now): (&Actor, Timestamp),
        id: SmtpAccountId,
        act: &str,
        change: impl FnOnce(&mut SmtpAccount) -> Result<(), AdminError> + Send,
    ) -> Result<SmtpAccount, AdminError> {
        let turn = self.desk.turn().await;
        let before = self.account_for(actor, id)?;
        let mut account = before.clone();
        change(&mut account)?;
        let mut batch = Batch::new();
        let act = Act::new(act, account.login.clone()).of(account.tenant).changes(facts(&before), facts(&account));
        records::record(&mut batch, actor, act, now);
        self.keep_account(turn, batch, account).await
    }

    async fn keep_account(
        &self,
        turn: records::Turn,
        mut batch: Batch,
        account: SmtpAccount,
    ) -> Result<SmtpAccount, AdminError> {
        let (key, stored) = (account_key(account.id), stored_account(&**self.desk.store(), account.id)?);
        batch.if_equals(key.clone(), stored).set(key, account_bytes(&account));
        let (memory, changed) = (Arc::clone(&self.memory), account.clone());
        turn.commit(batch, move || records::write(&memory.records).put_account(changed)).await?;
        Ok(account)
    }

    fn free_login(&self, tenant: &Tenant) -> Result<String, AdminError> {
        for _ in 0..LOGIN_TRIES {
            let mut random = ext::base32(&ext::random_bytes::<4>());
            random.truncate(LOGIN_CHARACTERS);
            let login = format!("{}-{random}", tenant.name);
            if self.smtp_account_named(&login).is_none() {
                return Ok(login);
            }
        }
        Err(AdminError::Exists("every login tried".into()))
    }
}

/// What an audit entry may tell of an SMTP account before and after.
fn facts(account: &SmtpAccount) -> Vec<(&'static str, String)> {
    let networks: Vec<String> = account.allowed_from.iter().map(ToString::to_string).collect();
    // Domains may be told; an address may be a person's.
    let senders = account.allowed_senders.iter().map(|sender| match sender {
        AllowedSender::Domain(domain) => domain.to_string(),
        AllowedSender::Address(address) => format!("an address in {}", address.domain()),
    });
    let moment = |at: Option<Timestamp>| at.map_or_else(|| "none".to_owned(), Timestamp::rfc3339);
    let dialects: Vec<&str> = account.dialects.iter().map(|dialect| dialect.word()).collect();
    vec![
        ("login_state", format!("{:?}", account.login_state)),
        ("class", format!("{:?}", account.class)),
        ("allowed_from", networks.join(" ")),
        ("limits", account.limits.words()),
        ("passwords", account.secrets.len().to_string()),
        ("name", account.name.clone()),
        ("allowed_senders", senders.collect::<Vec<_>>().join(" ")),
        ("expires", moment(account.expires)),
        ("old_password_until", moment(account.old_until)),
        ("dialects", dialects.join(" ")),
    ]
}

fn check_networks(networks: &[IpNet]) -> Result<(), AdminError> {
    if networks.len() > ALLOWED_FROM_MAX {
        return Err(AdminError::field(
            "allowed_from",
            format!("at most {ALLOWED_FROM_MAX} source networks for one account"),
        ));
    }
    Ok(())
}
