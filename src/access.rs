//! Who may do what: an `Actor` is passed first to every administrative method, which calls
//! [`Actor::require`] before anything else. Pure: no records, no clock.
//!
//! A role says what it may ([`ROLES`]); the scopes of a key and a person's SMTP accounts narrow that
//! further. Easy to get wrong: what an actor may not even see must look like what does not exist,
//! so a refusal says whether it is [`Sight::Hidden`].

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::{Domain, SmtpAccountId, TenantId};

pub use table::{RESOURCES, ROLES, page as permissions_page};

/// A role of a person or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs the instance: everything, every tenant.
    InstanceAdmin,
    /// Runs one tenant, its people included.
    TenantOwner(TenantId),
    /// Runs one tenant, except for its owners.
    TenantAdmin(TenantId),
    /// Sets up sending: domains, SMTP accounts, keys, suppressions, queue.
    Developer(TenantId),
    /// Reads what was sent and how it went.
    Analyst(TenantId),
    /// Reads one tenant and changes nothing.
    Support(TenantId),
}

/// What can be read or changed within a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Resource {
    /// What belongs to no tenant: virtual IPs, routes, tenants themselves, the daemon.
    Instance,
    /// The tenant's own record.
    Tenant,
    /// Its people.
    Users,
    /// Its API keys.
    Keys,
    /// Its SMTP accounts.
    SmtpAccounts,
    /// Its sending domains.
    Domains,
    /// Recipients it never mails.
    Suppressions,
    /// Its mail that is owed.
    Queue,
    /// Its audit log.
    Audit,
    /// Messages: handing them in, and reading what became of them.
    Messages,
    /// Who is told what happens to its mail.
    Webhooks,
    /// What happened to its mail, in numbers.
    Statistics,
}

/// Reading or changing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Looking.
    Read,
    /// Looking and changing.
    Write,
}

/// `resource:action`, as a key's scope is written. `write` includes `read`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// Of what.
    pub resource: Resource,
    /// How far.
    pub action: Action,
}

/// What an act needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Instance-wide changes: virtual IPs, tenants, routes, every queue.
    ManageInstance,
    /// Reading what belongs to the whole instance.
    ReadInstance,
    /// Reading within one tenant.
    Read(Resource, TenantId),
    /// Changes within one tenant.
    Write(Resource, TenantId),
}

/// When an actor last proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The daemon itself, a peer on the local socket, a key: nobody who could be asked again.
    Standing,
    /// A person, who gave every factor asked for at this moment.
    At(Timestamp),
}

/// What narrows a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// Only these; `None` is everything the role may.
    pub scopes: Option<Vec<Scope>>,
    /// Only these sending domains; `None` is all of the tenant.
    pub domains: Option<Vec<Domain>>,
    /// Only these SMTP accounts, each to read or to change; `None` is as the role says.
    pub accounts: Option<BTreeMap<SmtpAccountId, Action>>,
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Shown in the audit log: `uid 0 by local socket`, `user 7k3m9q0c1d2e3`, `system: daily verification`.
    /// Names and ids, never an e-mail address.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What narrows that.
    pub narrowing: Arc<Narrowing>,
    /// Where the request came from, if it came over a network.
    pub from: Option<IpAddr>,
    /// The request, as the daemon's log names it.
    pub request_id: Option<String>,
    /// When it proved itself.
    pub proof: Proof,
}

/// How a refusal looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It may know that the thing exists.
    Seen,
    /// It must not: the same answer as for what does not exist.
    Hidden,
    /// It may do this after proving itself again.
    ProofIsOld,
    /// It may know it, but is bound to some SMTP accounts or sending domains, and this is of the whole tenant.
    Whole,
}

/// The actor may not do that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} may not do this{}", self.advice())]
pub struct Forbidden {
    /// Who asked.
    pub actor: String,
    /// What it lacks, as a scope.
    pub needed: Option<Scope>,
    /// How that looks from outside.
    pub sight: Sight,
}

impl Forbidden {
    fn advice(&self) -> String {
        match (self.sight, self.needed) {
            (Sight::ProofIsOld, _) => ": it needs a fresh proof of who you are (POST /session/confirm)".to_owned(),
            (Sight::Whole, _) => {
                ": it is bound to some SMTP accounts or sending domains, and this is not told apart by \
                                  them"
                    .to_owned()
            }
            (_, Some(scope)) => format!(": it needs {scope}"),
            (_, None) => ": nobody gives more than he has".to_owned(),
        }
    }
}

/// How the name of the daemon as an actor begins.
const SYSTEM: &str = "system: ";
/// A proof older than this is asked for again before a dangerous act.
pub const PROOF_FRESH: Duration = Duration::from_secs(10 * 60);

impl Role {
    /// The tenant it is of; `None` for the instance.
    pub fn tenant(self) -> Option<TenantId> {
        match self {
            Self::InstanceAdmin => None,
            Self::TenantOwner(tenant)
            | Self::TenantAdmin(tenant)
            | Self::Developer(tenant)
            | Self::Analyst(tenant)
            | Self::Support(tenant) => Some(tenant),
        }
    }

    /// Its name in the API and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::InstanceAdmin => "instance-admin",
            Self::TenantOwner(_) => "owner",
            Self::TenantAdmin(_) => "admin",
            Self::Developer(_) => "developer",
            Self::Analyst(_) => "analyst",
            Self::Support(_) => "support",
        }
    }

    /// The role called `word` in `tenant`; `None` if there is none, or if it needs or forbids a tenant.
    pub fn called(word: &str, tenant: Option<TenantId>) -> Option<Self> {
        match (word, tenant) {
            ("instance-admin", None) => Some(Self::InstanceAdmin),
            ("owner", Some(tenant)) => Some(Self::TenantOwner(tenant)),
            ("admin", Some(tenant)) => Some(Self::TenantAdmin(tenant)),
            ("developer", Some(tenant)) => Some(Self::Developer(tenant)),
            ("analyst", Some(tenant)) => Some(Self::Analyst(tenant)),
            ("support", Some(tenant)) => Some(Self::Support(tenant)),
            _ => None,
        }
    }

    /// How far it may go with `resource`; `None` is not at all.
    pub fn reach(self, resource: Resource) -> Option<Action> {
        table::reach(self, resource)
    }

    /// Whether somebody of this role may give `other` to somebody, or take it away: nobody hands
    /// out more than he has.
    pub fn may_grant(self, other: Self) -> bool {
        let reaches_as_far = RESOURCES.iter().all(|resource| other.reach(*resource) <= self.reach(*resource));
        let is_inside = match (self.tenant(), other.tenant()) {
            (None, _) => true,
            (Some(own), Some(asked)) => own == asked,
            (Some(_), None) => false,
        };
        let outranks = !matches!((self, other), (Self::TenantAdmin(_), Self::TenantOwner(_)));
        reaches_as_far && is_inside && outranks
    }
}

impl Actor {
    /// An actor of `role` without narrowing, for which nobody can be asked again.
    pub fn of(name: impl Into<String>, role: Role) -> Self {
        let narrowing = Arc::default();
        Self { name: name.into(), role, narrowing, from: None, request_id: None, proof: Proof::Standing }
    }

    /// The daemon itself, for `reason`.
    pub fn system(reason: &str) -> Self {
        Self::of(format!("{SYSTEM}{reason}"), Role::InstanceAdmin)
    }

    /// Whether it is the daemon itself: nobody asked for what it does.
    pub fn is_system(&self) -> bool {
        self.name.starts_with(SYSTEM)
    }

    /// A peer on the local socket, which its credentials made an instance admin.
    pub fn local(uid: u32) -> Self {
        Self::of(format!("uid {uid} by local socket"), Role::InstanceAdmin)
    }

    /// Whether this actor may do what `permission` names.
    ///
    /// # Errors
    /// [`Forbidden`]; hidden if the actor has nothing to do with that tenant.
    pub fn require(&self, permission: Permission) -> Result<(), Forbidden> {
        let (needed, tenant) = permission.needed();
        match (self.role.tenant(), tenant) {
            (Some(own), Some(asked)) if own != asked => return Err(self.forbidden(Sight::Hidden, needed)),
            (Some(_), None) => return Err(self.forbidden(Sight::Seen, needed)),
            _ => {}
        }
        let by_role = self.role.reach(needed.resource) >= Some(needed.action);
        if by_role && self.has_scope(needed) { Ok(()) } else { Err(self.forbidden(Sight::Seen, needed)) }
    }

    /// Whether it may read or change this SMTP account.
    ///
    /// # Errors
    /// As [`Actor::require`]; hidden if it has no part in that account.
    pub fn require_account(&self, account: (TenantId, SmtpAccountId), action: Action) -> Result<(), Forbidden> {
        let (tenant, id) = account;
        let needed = Scope { resource: Resource::SmtpAccounts, action };
        if let Some(granted) = &self.narrowing.accounts {
            self.require(Permission::Read(Resource::SmtpAccounts, tenant))?;
            return match granted.get(&id) {
                None => Err(self.forbidden(Sight::Hidden, needed)),
                Some(granted) if *granted < action => Err(self.forbidden(Sight::Seen, needed)),
                Some(_) => Ok(()),
            };
        }
        self.require(Permission::of(Resource::SmtpAccounts, Some(tenant), action))
    }

    /// Whether a list of domains keeps it from `domain`.
    ///
    /// # Errors
    /// [`Forbidden`], hidden.
    pub fn require_domain(&self, domain: &Domain) -> Result<(), Forbidden> {
        if self.is_listed(Some(domain)) {
            return Ok(());
        }
        Err(self.forbidden(Sight::Hidden, Scope { resource: Resource::Domains, action: Action::Read }))
    }

    fn is_listed(&self, domain: Option<&Domain>) -> bool {
        let listed = self.narrowing.domains.as_ref();
        listed.is_none_or(|listed| domain.is_some_and(|domain| listed.iter().any(|own| domain.is_within(own))))
    }

    /// Whether no narrowing keeps it from mail handed in by `account` from the domain `sender`. Whoever is
    /// narrowed to some SMTP accounts or sending domains needs one of them said.
    pub fn has_part_in(&self, action: Action, account: Option<SmtpAccountId>, sender: Option<&Domain>) -> bool {
        let granted = self.narrowing.accounts.as_ref();
        let is_granted = granted.is_none_or(|granted| {
            account.and_then(|account| granted.get(&account)).is_some_and(|granted| *granted >= action)
        });
        is_granted && self.is_listed(sender)
    }

    /// Whether it may read or change queued mail of a tenant: all that was handed in by `account` or from the
    /// domain `sender`, as far as that is said; see [`Actor::has_part_in`].
    ///
    /// # Errors
    /// As [`Actor::require`]; hidden if what keeps it away is its narrowing.
    pub fn require_mail(
        &self,
        (tenant, action): (TenantId, Action),
        account: Option<SmtpAccountId>,
        sender: Option<&Domain>,
    ) -> Result<(), Forbidden> {
        let needed = Scope { resource: Resource::Queue, action };
        self.require(Permission::of(Resource::Queue, Some(tenant), action))?;
        if self.has_part_in(action, account, sender) { Ok(()) } else { Err(self.forbidden(Sight::Hidden, needed)) }
    }

    /// Whether it may do that with something that is of no sending domain, such as counts: whoever is bound to
    /// some has no part in it. Where SMTP accounts tell it apart, [`Actor::has_part_in`] says which parts it sees.
    ///
    /// # Errors
    /// As [`Actor::require`]; [`Sight::Whole`] if it is bound to sending domains.
    pub fn require_undivided(&self, permission: Permission) -> Result<(), Forbidden> {
        self.require(permission)?;
        match self.narrowing.domains {
            None => Ok(()),
            Some(_) => Err(self.forbidden(Sight::Whole, permission.needed().0)),
        }
    }

    /// Whether it may do that with something that is of the SMTP account `account`, or, without one, of the
    /// whole tenant: a list, an operation on one, an endpoint that is told of all mail, the audit log. Whoever is
    /// bound to SMTP accounts has a part in what is of his only; whoever is bound to sending domains has none.
    ///
    /// # Errors
    /// As [`Actor::require_undivided`]; [`Sight::Whole`] for what is of the whole tenant, hidden for what is of
    /// an account it has no part in.
    pub fn require_part(&self, permission: Permission, account: Option<SmtpAccountId>) -> Result<(), Forbidden> {
        self.require_undivided(permission)?;
        let Some(granted) = &self.narrowing.accounts else { return Ok(()) };
        let (needed, _) = permission.needed();
        match account.map(|account| granted.get(&account)) {
            None => Err(self.forbidden(Sight::Whole, needed)),
            Some(None) => Err(self.forbidden(Sight::Hidden, needed)),
            Some(Some(granted)) if *granted < needed.action => Err(self.forbidden(Sight::Seen, needed)),
            Some(Some(_)) => Ok(()),
        }
    }

    /// For dangerous acts: a person must have proved itself within [`PROOF_FRESH`].
    ///
    /// # Errors
    /// [`Forbidden`] with [`Sight::ProofIsOld`].
    pub fn require_fresh(&self, now: Timestamp) -> Result<(), Forbidden> {
        match self.proof {
            Proof::At(moment) if now.since(moment) > PROOF_FRESH => {
                Err(Forbidden { actor: self.name.clone(), needed: None, sight: Sight::ProofIsOld })
            }
            Proof::Standing | Proof::At(_) => Ok(()),
        }
    }

    /// Whether it may give somebody `role`, or open the way to what somebody of that role has (a new
    /// password, one factor less): its own role reaches as far, its scopes hold all that the role
    /// may, and it is not bound to some domains or SMTP accounts, which a role does not pass on.
    ///
    /// # Errors
    /// [`Forbidden`], naming the scope it lacks if that is why.
    pub fn may_give(&self, role: Role) -> Result<(), Forbidden> {
        let more = |needed| Forbidden { actor: self.name.clone(), needed, sight: Sight::Seen };
        if !self.role.may_grant(role) || self.narrowing.domains.is_some() || self.narrowing.accounts.is_some() {
            return Err(more(None));
        }
        for resource in RESOURCES {
            let Some(action) = role.reach(*resource) else { continue };
            let needed = Scope { resource: *resource, action };
            if !self.has_scope(needed) {
                return Err(more(Some(needed)));
            }
        }
        Ok(())
    }

    /// Whether it may give a key of `tenant`, or of the instance, this scope: it may itself do that.
    ///
    /// # Errors
    /// As [`Actor::require`], naming the scope.
    pub fn may_give_scope(&self, tenant: Option<TenantId>, scope: Scope) -> Result<(), Forbidden> {
        // For an instance key a scope on a tenant's resource holds in every tenant.
        let needed = Permission::of(scope.resource, tenant, scope.action);
        self.require(needed).map_err(|refused| Forbidden { needed: Some(scope), ..refused })?;
        if self.has_scope(scope) { Ok(()) } else { Err(self.forbidden(Sight::Seen, scope)) }
    }

    /// Whether it may make, change, renew or remove a login by which mail is sent as any domain of its tenant: not if
    /// it is bound to some of them.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn may_give_login(&self) -> Result<(), Forbidden> {
        if self.narrowing.domains.is_none() {
            return Ok(());
        }
        Err(Forbidden { actor: self.name.clone(), needed: None, sight: Sight::Whole })
    }

    fn has_scope(&self, needed: Scope) -> bool {
        self.narrowing.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|own| own.covers(needed)))
    }

    /// Whether it may know that `tenant` exists.
    pub fn sees(&self, tenant: TenantId) -> bool {
        self.role.tenant().is_none_or(|own| own == tenant)
    }

    fn forbidden(&self, sight: Sight, needed: Scope) -> Forbidden {
        Forbidden { actor: self.name.clone(), needed: Some(needed), sight }
    }
}

impl Permission {
    /// To read or change something of a tenant, or the instance's own.
    pub fn of(resource: Resource, tenant: Option<TenantId>, action: Action) -> Self {
        match (tenant, action) {
            (None, Action::Read) => Self::ReadInstance,
            (None, Action::Write) => Self::ManageInstance,
            (Some(tenant), Action::Read) => Self::Read(resource, tenant),
            (Some(tenant), Action::Write) => Self::Write(resource, tenant),
        }
    }

    fn needed(self) -> (Scope, Option<TenantId>) {
        let scope = |resource, action| Scope { resource, action };
        match self {
            Self::ManageInstance => (scope(Resource::Instance, Action::Write), None),
            Self::ReadInstance => (scope(Resource::Instance, Action::Read), None),
            Self::Read(resource, tenant) => (scope(resource, Action::Read), Some(tenant)),
            Self::Write(resource, tenant) => (scope(resource, Action::Write), Some(tenant)),
        }
    }
}

impl Scope {
    /// Whether whoever has this scope may do what `other` names.
    pub fn covers(self, other: Self) -> bool {
        self.resource == other.resource && self.action >= other.action
    }
}

impl Resource {
    /// Its name in scopes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Tenant => "tenant",
            Self::Users => "users",
            Self::Keys => "keys",
            Self::SmtpAccounts => "smtp-accounts",
            Self::Domains => "domains",
            Self::Suppressions => "suppressions",
            Self::Queue => "queue",
            Self::Audit => "audit",
            Self::Messages => "messages",
            Self::Webhooks => "webhooks",
            Self::Statistics => "statistics",
        }
    }
}

impl Action {
    /// Its name in scopes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.resource.word(), self.action.word())
    }
}

/// The text is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope; write resource:action, such as domains:read or queue:write")]
pub struct ScopeUnreadable(pub String);

impl FromStr for Scope {
    type Err = ScopeUnreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unreadable = || ScopeUnreadable(text.to_owned());
        let (resource, action) = text.split_once(':').ok_or_else(unreadable)?;
        let resource = RESOURCES.iter().find(|known| known.word() == resource).ok_or_else(unreadable)?;
        let action = match action {
            "read" => Action::Read,
            "write" => Action::Write,
            _ => return Err(unreadable()),
        };
        Ok(Self { resource: *resource, action })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: TenantId = TenantId(1);
    const OTHER: TenantId = TenantId(2);

    #[test]
    fn a_tenants_people_reach_their_own_tenant_only_and_the_other_is_hidden() {
        let owner = Actor::of("o", Role::TenantOwner(OWN));
        assert!(owner.require(Permission::Write(Resource::Domains, OWN)).is_ok());
        let refused = owner.require(Permission::Read(Resource::Domains, OTHER)).unwrap_err();
        assert_eq!(refused.sight, Sight::Hidden);
        assert_eq!(owner.require(Permission::ManageInstance).unwrap_err().sight, Sight::Seen);
        let support = Actor::of("r", Role::Support(OWN));
        assert!(support.require(Permission::Read(Resource::Queue, OWN)).is_ok());
        assert_eq!(support.require(Permission::Write(Resource::Queue, OWN)).unwrap_err().sight, Sight::Seen);
        assert!(Actor::system("test").require(Permission::ManageInstance).is_ok());
    }

    #[test]
    fn a_scope_narrows_the_role_and_never_widens_it() {
        let scoped = |role, scopes: &[&str]| {
            let scopes = scopes.iter().map(|text| text.parse().unwrap()).collect();
            let narrowing = Narrowing { scopes: Some(scopes), ..Narrowing::default() };
            Actor { narrowing: Arc::new(narrowing), ..Actor::of("k", role) }
        };
        let key = scoped(Role::Developer(OWN), &["domains:write", "users:write"]);
        assert!(key.require(Permission::Read(Resource::Domains, OWN)).is_ok(), "write includes read");
        assert!(key.require(Permission::Read(Resource::Queue, OWN)).is_err());
        assert!(key.require(Permission::Write(Resource::Users, OWN)).is_err(), "developers manage no users");
        assert!(scoped(Role::InstanceAdmin, &["domains:read"]).require(Permission::ManageInstance).is_err());
    }

    #[test]
    fn a_persons_smtp_accounts_are_the_only_ones_it_sees() {
        let (read, write, none) = (SmtpAccountId(1), SmtpAccountId(2), SmtpAccountId(3));
        let accounts = Some(BTreeMap::from([(read, Action::Read), (write, Action::Write)]));
        let narrowing = Arc::new(Narrowing { accounts, ..Narrowing::default() });
        let person = Actor { narrowing, ..Actor::of("p", Role::Analyst(OWN)) };
        assert!(person.require_account((OWN, read), Action::Read).is_ok());
        assert_eq!(person.require_account((OWN, read), Action::Write).unwrap_err().sight, Sight::Seen);
        assert!(person.require_account((OWN, write), Action::Write).is_ok(), "granted beyond the role, by an admin");
        assert_eq!(person.require_account((OWN, none), Action::Read).unwrap_err().sight, Sight::Hidden);
        assert_eq!(person.require_account((OTHER, read), Action::Read).unwrap_err().sight, Sight::Hidden);
    }

    #[test]
    fn whoever_is_narrowed_sees_and_changes_only_that_mail() {
        let (read, write) = (SmtpAccountId(1), SmtpAccountId(2));
        let accounts = Some(BTreeMap::from([(read, Action::Read), (write, Action::Write)]));
        let narrowed = |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("d", Role::Developer(OWN)) };
        let person = narrowed(Narrowing { accounts, ..Narrowing::default() });
        for (action, account, is_fine) in [
            (Action::Read, Some(read), true),
            (Action::Write, Some(read), false),
            (Action::Write, Some(write), true),
            (Action::Read, Some(SmtpAccountId(3)), false),
            (Action::Read, None, false),
        ] {
            let answer = person.require_mail((OWN, action), account, None);
            assert_eq!(answer.is_ok(), is_fine, "{action:?} {account:?}");
        }
        let (own, below, other) = ("a.example", "b.a.example", "c.example");
        let domain = |text: &str| Domain::parse(text).unwrap();
        let key = narrowed(Narrowing { domains: Some(vec![domain(own)]), ..Narrowing::default() });
        for (sender, is_fine) in [(Some(own), true), (Some(below), true), (Some(other), false), (None, false)] {
            let sender = sender.map(domain);
            assert_eq!(key.require_mail((OWN, Action::Read), None, sender.as_ref()).is_ok(), is_fine, "{sender:?}");
        }
        assert!(Actor::of("d", Role::Developer(OWN)).require_mail((OWN, Action::Write), None, None).is_ok());
        assert!(Actor::of("d", Role::Developer(OTHER)).require_mail((OWN, Action::Read), None, None).is_err());
    }

    #[test]
    fn whoever_is_narrowed_has_no_part_in_what_is_of_the_whole_tenant() {
        let narrowed = |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("d", Role::Developer(OWN)) };
        let (read, write, none) = (SmtpAccountId(1), SmtpAccountId(2), SmtpAccountId(3));
        let accounts = Some(BTreeMap::from([(read, Action::Read), (write, Action::Write)]));
        let person = narrowed(Narrowing { accounts, ..Narrowing::default() });
        let sight = |actor: &Actor, action, account| {
            let permission = Permission::of(Resource::Suppressions, Some(OWN), action);
            actor.require_part(permission, account).err().map(|refused| refused.sight)
        };
        for (action, account, seen) in [
            (Action::Read, None, Some(Sight::Whole)),
            (Action::Read, Some(none), Some(Sight::Hidden)),
            (Action::Read, Some(read), None),
            (Action::Write, Some(read), Some(Sight::Seen)),
            (Action::Write, Some(write), None),
        ] {
            assert_eq!(sight(&person, action, account), seen, "{action:?} {account:?}");
        }
        assert!(person.require_undivided(Permission::Read(Resource::Statistics, OWN)).is_ok());
        let domains = Some(vec![Domain::parse("a.example").unwrap()]);
        let key = narrowed(Narrowing { domains, ..Narrowing::default() });
        for account in [None, Some(read)] {
            assert_eq!(sight(&key, Action::Read, account), Some(Sight::Whole));
        }
        let refused = key.require_undivided(Permission::Read(Resource::Statistics, OWN)).unwrap_err();
        assert!(refused.to_string().contains("bound to some SMTP accounts or sending domains"), "{refused}");
        let other = Permission::Read(Resource::Statistics, OTHER);
        assert_eq!(key.require_undivided(other).unwrap_err().sight, Sight::Hidden, "before what it is bound to");
        assert_eq!(sight(&Actor::of("d", Role::Developer(OWN)), Action::Write, None), None);
        assert_eq!(sight(&Actor::of("s", Role::Support(OWN)), Action::Write, None), Some(Sight::Seen));
    }

    #[test]
    fn nobody_hands_out_more_than_he_has() {
        assert!(Role::InstanceAdmin.may_grant(Role::TenantOwner(OWN)));
        assert!(Role::TenantOwner(OWN).may_grant(Role::TenantOwner(OWN)));
        assert!(!Role::TenantAdmin(OWN).may_grant(Role::TenantOwner(OWN)));
        assert!(Role::TenantAdmin(OWN).may_grant(Role::Developer(OWN)));
        assert!(!Role::Support(OWN).may_grant(Role::Developer(OWN)));
        assert!(!Role::TenantOwner(OWN).may_grant(Role::Support(OTHER)));
        assert!(!Role::TenantOwner(OWN).may_grant(Role::InstanceAdmin));
    }

    #[test]
    fn whoever_is_narrowed_gives_only_what_the_narrowing_leaves() {
        let narrowed = |role, narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("k", role) };
        let scopes = |texts: &[&str]| Some(texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Scope>>());
        let small =
            narrowed(Role::TenantAdmin(OWN), Narrowing { scopes: scopes(&["users:write"]), ..Narrowing::default() });
        for role in [Role::TenantAdmin(OWN), Role::Developer(OWN), Role::Analyst(OWN), Role::Support(OWN)] {
            assert!(small.may_give(role).is_err(), "{role:?}");
            assert!(Actor::of("a", Role::TenantAdmin(OWN)).may_give(role).is_ok(), "{role:?}");
        }
        let own = RESOURCES.iter().filter(|resource| **resource != Resource::Instance);
        let read: Vec<String> = own.map(|resource| format!("{}:read", resource.word())).collect();
        let read: Vec<&str> = read.iter().map(String::as_str).collect();
        let reader = narrowed(Role::TenantAdmin(OWN), Narrowing { scopes: scopes(&read), ..Narrowing::default() });
        assert!(reader.may_give(Role::Support(OWN)).is_ok());
        let refused = reader.may_give(Role::Developer(OWN)).unwrap_err();
        assert!(refused.needed.is_some_and(|scope| scope.action == Action::Write), "{refused}");
        let domains = Some(vec![Domain::parse("a.example").unwrap()]);
        for narrowing in [
            Narrowing { domains, ..Narrowing::default() },
            Narrowing { accounts: Some(BTreeMap::new()), ..Narrowing::default() },
        ] {
            let refused = narrowed(Role::TenantOwner(OWN), narrowing).may_give(Role::Support(OWN)).unwrap_err();
            assert!(refused.to_string().ends_with("nobody gives more than he has"), "{refused}");
        }
        let instance =
            narrowed(Role::InstanceAdmin, Narrowing { scopes: scopes(&["instance:write"]), ..Narrowing::default() });
        assert!(instance.may_give_scope(None, "instance:read".parse().unwrap()).is_ok());
        assert!(instance.may_give_scope(None, "queue:write".parse().unwrap()).is_err(), "that is every tenant's queue");
        assert!(instance.may_give(Role::InstanceAdmin).is_err());
    }

    #[test]
    fn a_person_proves_itself_again_after_a_while_and_a_key_need_not() {
        let now = Timestamp(1_800_000_000_000);
        let person = Actor { proof: Proof::At(now), ..Actor::of("p", Role::InstanceAdmin) };
        assert!(person.require_fresh(now.plus(PROOF_FRESH)).is_ok());
        let refused = person.require_fresh(now.plus(PROOF_FRESH + Duration::from_millis(1))).unwrap_err();
        assert_eq!(refused.sight, Sight::ProofIsOld);
        assert!(Actor::of("k", Role::InstanceAdmin).require_fresh(now.plus(PROOF_FRESH * 9)).is_ok());
    }
}
