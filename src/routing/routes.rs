//! The routes people manage: kept in the store, with the relay's password sealed, and in memory
//! as one [`RouteTable`] that is swapped whole.
//!
//! It refuses to know whether a relay answers; delivery finds out. Easy to get wrong: a password
//! must never cross the network in the clear, so a login asks for verified TLS or a relay on this host.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{RelayLogin, RelayTls, Route, RouteScope, RouteTable};
use crate::access::{Actor, Permission};
use crate::ext::{self, Timestamp};
use crate::mail::Domain;
use crate::records::{self, AdminError, Damage, Desk};
use crate::seal::MasterKey;
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Octets of a relay's user name or password, at most: what AUTH PLAIN carries in one line with room to spare.
pub const RELAY_LOGIN_OCTETS_MAX: usize = 1024;

/// A route to be made.
pub struct NewRoute {
    /// For which mail.
    pub scope: RouteScope,
    /// Host name or address of the relay.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How to secure it.
    pub tls: RelayTls,
    /// User name and password there.
    pub login: Option<(String, Zeroizing<String>)>,
}

/// What is to change of a route; what is left out stays. Its scope never changes.
#[derive(Default)]
pub struct RouteChange {
    /// Host name or address of the relay.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// How to secure it.
    pub tls: Option<RelayTls>,
    /// What to log in with.
    pub login: LoginChange,
}

/// What becomes of a route's login.
#[derive(Default)]
pub enum LoginChange {
    /// It stays as it is, or not there.
    #[default]
    Kept,
    /// None from now on.
    Removed,
    /// User name, password, or both; a login that was not there needs both.
    Set(Option<String>, Option<Zeroizing<String>>),
}

/// All routes, in memory.
pub struct Routes {
    desk: Desk,
    key: Arc<MasterKey>,
    table: Arc<RwLock<Arc<RouteTable>>>,
    revision: Arc<AtomicU64>,
    damaged: Vec<Damage>,
}

/// As stored: `R i id`. Beside it `R s scope` -> id keeps a scope with one route.
#[derive(Serialize, Deserialize)]
pub struct Record {
    route: Route,
    added: Timestamp,
}

impl Routes {
    /// Reads all records.
    pub fn open(store: Arc<dyn Store>, key: Arc<MasterKey>) -> Result<Self, StoreError> {
        let (records, damaged) = records::load::<Record>(&*store, &[prefix::ROUTE, b'i'])?;
        let mut records: Vec<Record> = records.into_iter().map(|(_, record)| record).collect();
        records.sort_by_key(|record| (record.added, record.route.id));
        let routes = records.into_iter().map(|record| record.route).collect();
        let table = Arc::new(RwLock::new(Arc::new(RouteTable { routes })));
        Ok(Self { desk: Desk::new(store), key, table, revision: Arc::default(), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// The table as it is now, oldest first.
    pub fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&records::read(&self.table))
    }

    /// Another number after each change of a route that mail may be queued for.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// One route.
    pub fn route(&self, id: u64) -> Option<Route> {
        self.table().routes.iter().find(|route| route.id == id).cloned()
    }

    /// User name and password at the relay; `None` if the route has none, or if it cannot be
    /// opened under this master key (logged: the relay will then refuse us, and the mail waits).
    pub fn login(&self, route: &Route) -> Option<(String, Zeroizing<String>)> {
        let login = route.login.as_ref()?;
        let opened = self.key.open(&purpose(route.id), &login.sealed_password);
        let password = opened.map_err(|error| error.to_string()).and_then(|plain| {
            std::str::from_utf8(&plain).map(|text| Zeroizing::new(text.to_owned())).map_err(|error| error.to_string())
        });
        match password {
            Ok(password) => Some((login.user.clone(), password)),
            Err(error) => {
                tracing::error!(route = route.id, error, "the password of a relay cannot be opened");
                None
            }
        }
    }

    /// Makes one. There is one route per scope.
    pub async fn add(&self, actor: &Actor, new: NewRoute, now: Timestamp) -> Result<Route, AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        check(&new.host, new.port)?;
        let login = new.login.as_ref().map(|(user, password)| (user.as_str(), Some(password.as_str())));
        check_login(&new.host, new.tls, login)?;
        let id = u64::from_be_bytes(ext::random_bytes());
        let login = new.login.map(|(user, password)| RelayLogin {
            user,
            sealed_password: self.key.seal(&purpose(id), password.as_bytes()),
        });
        let route = Route { id, scope: new.scope, host: new.host, port: new.port, tls: new.tls, login };
        let turn = self.desk.turn().await;
        if self.table().routes.iter().any(|known| known.scope == route.scope) {
            return Err(AdminError::Exists(format!("a route for {}", scope_words(&route.scope))));
        }
        let mut batch = Batch::new();
        batch.if_absent(key(id)).set(key(id), codec::encode(&Record { route: route.clone(), added: now }));
        batch.if_absent(scope_key(&route.scope)).set(scope_key(&route.scope), codec::encode(&id));
        records::audit(&mut batch, actor, "route.add", describe(&route), now);
        let (table, added) = (Arc::clone(&self.table), route.clone());
        turn.commit(batch, move || Arc::make_mut(&mut records::write(&table)).routes.push(added)).await?;
        Ok(route)
    }

    /// Changes one. Mail that is queued for it goes the new way: what was wrong with a relay is mended
    /// here, and nothing has to be handed in again.
    pub async fn change(
        &self,
        actor: &Actor,
        id: u64,
        change: RouteChange,
        now: Timestamp,
    ) -> Result<Route, AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let missing = || AdminError::Missing(format!("route {id}"));
        let before = self.desk.store().get(&key(id))?.ok_or_else(missing)?;
        let mut record: Record = codec::decode(&before)?;
        let route = &mut record.route;
        route.host = change.host.unwrap_or_else(|| route.host.clone());
        route.port = change.port.unwrap_or(route.port);
        route.tls = change.tls.unwrap_or(route.tls);
        check(&route.host, route.port)?;
        let (login, password) = changed_login(route.login.take(), change.login)?;
        let shown = login.as_ref().map(|login| (login.user.as_str(), password.as_ref().map(|text| text.as_str())));
        check_login(&route.host, route.tls, shown)?;
        route.login = login.map(|login| match password {
            Some(password) => RelayLogin { sealed_password: self.key.seal(&purpose(id), password.as_bytes()), ..login },
            None => login,
        });
        let changed = record.route.clone();
        let mut batch = Batch::new();
        batch.if_equals(key(id), before).set(key(id), codec::encode(&record));
        records::audit(&mut batch, actor, "route.change", describe(&changed), now);
        let (table, route) = (Arc::clone(&self.table), changed.clone());
        let revision = Arc::clone(&self.revision);
        turn.commit(batch, move || {
            let mut table = records::write(&table);
            let known = Arc::make_mut(&mut table).routes.iter_mut().filter(|known| known.id == id);
            known.for_each(|known| known.clone_from(&route));
            revision.fetch_add(1, Ordering::AcqRel);
        })
        .await?;
        Ok(changed)
    }

    /// Removes one. That no mail is queued for it is the caller's check
    /// ([`crate::queue::Queue::has_mail_by`]): it would go no other way.
    pub async fn remove(&self, actor: &Actor, id: u64, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let route = self.route(id).ok_or_else(|| AdminError::Missing(format!("route {id}")))?;
        let mut batch = Batch::new();
        batch.remove(key(id)).remove(scope_key(&route.scope));
        records::audit(&mut batch, actor, "route.remove", describe(&route), now);
        let (table, revision) = (Arc::clone(&self.table), Arc::clone(&self.revision));
        turn.commit(batch, move || {
            Arc::make_mut(&mut records::write(&table)).routes.retain(|route| route.id != id);
            revision.fetch_add(1, Ordering::AcqRel);
        })
        .await?;
        Ok(())
    }

    /// All routes, for people.
    pub fn list(&self, actor: &Actor) -> Result<Vec<Route>, AdminError> {
        actor.require(Permission::ManageInstance)?;
        Ok(self.table().routes.clone())
    }
}

/// The login as it shall be, its password still as it was sealed, and the new password if there is one.
fn changed_login(
    before: Option<RelayLogin>,
    change: LoginChange,
) -> Result<(Option<RelayLogin>, Option<Zeroizing<String>>), AdminError> {
    let (user, password) = match change {
        LoginChange::Kept => return Ok((before, None)),
        LoginChange::Removed => return Ok((None, None)),
        LoginChange::Set(user, password) => (user, password),
    };
    let login = match (before, user) {
        (Some(before), user) => RelayLogin { user: user.unwrap_or(before.user), ..before },
        (None, Some(user)) if password.is_some() => RelayLogin { user, sealed_password: Vec::new() },
        (None, _) => return Err(AdminError::Invalid("the route has no login yet: give user and password".into())),
    };
    Ok((Some(login), password))
}

fn check(host: &str, port: u16) -> Result<(), AdminError> {
    if host.parse::<IpAddr>().is_err() && Domain::parse(host).is_err() {
        return Err(AdminError::field("host", format!("{host:?} is neither a host name nor an address")));
    }
    if port == 0 {
        return Err(AdminError::field("port", "a relay's port is 1 to 65535, often 587 or 465"));
    }
    Ok(())
}

/// A password that stays as it is was looked at before.
fn check_login(host: &str, tls: RelayTls, login: Option<(&str, Option<&str>)>) -> Result<(), AdminError> {
    let invalid = |text: String| Err(AdminError::Invalid(text));
    let Some((user, password)) = login else { return Ok(()) };
    for (what, text) in std::iter::once(("user name", user)).chain(password.map(|password| ("password", password))) {
        if text.is_empty() || text.len() > RELAY_LOGIN_OCTETS_MAX || text.contains('\0') {
            return invalid(format!("the relay's {what} must have 1 to {RELAY_LOGIN_OCTETS_MAX} octets and no NUL"));
        }
    }
    let address = host.parse::<IpAddr>().ok();
    let is_here = address.is_some_and(|address| address.is_loopback()) || host.eq_ignore_ascii_case("localhost");
    match tls {
        RelayTls::Implicit | RelayTls::Starttls => Ok(()),
        RelayTls::Opportunistic | RelayTls::None if is_here => Ok(()),
        RelayTls::Opportunistic | RelayTls::None => {
            invalid("a login is sent over verified TLS only: choose starttls or implicit".into())
        }
    }
}

/// The scope in words: `all mail`, `tenant ...`, `mail to example.com`.
fn scope_words(scope: &RouteScope) -> String {
    match scope {
        RouteScope::Instance => "all mail".to_owned(),
        RouteScope::Tenant(tenant) => format!("tenant {tenant}"),
        RouteScope::RecipientDomain(domain) => format!("mail to {domain}"),
        RouteScope::OnDemand => "mail that a rule sends here".to_owned(),
    }
}

fn describe(route: &Route) -> String {
    format!("{} by {}:{} for {}", route.id, route.host, route.port, scope_words(&route.scope))
}

/// Seals every password of a relay that `new` alone does not open under `new`; `both` opens what either
/// sealed. How many were sealed anew, and which open under neither: those are left as they are.
pub async fn reseal(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), AdminError> {
    let (routes, damaged) = records::load::<Record>(store, &[prefix::ROUTE, b'i'])?;
    let mut unopened: Vec<String> = damaged.into_iter().map(|damage| damage.key).collect();
    let mut values = 0;
    for (own, mut record) in routes {
        let before = codec::encode(&record);
        let Some(login) = &mut record.route.login else { continue };
        let purpose = purpose(record.route.id);
        if new.open(&purpose, &login.sealed_password).is_ok() {
            continue;
        }
        let Ok(plain) = both.open(&purpose, &login.sealed_password) else {
            unopened.push(purpose);
            continue;
        };
        login.sealed_password = new.seal(&purpose, &plain);
        let mut batch = Batch::new();
        batch.if_equals(own.clone(), before).set(own, codec::encode(&record));
        store.commit(batch).await?;
        values += 1;
    }
    Ok((values, unopened))
}

/// Bound to the route, so that a sealed password cannot be moved to another relay's record.
fn purpose(id: u64) -> String {
    format!("password of route {id}")
}

fn key(id: u64) -> Key {
    [&[prefix::ROUTE, b'i'][..], &id.to_be_bytes()].concat()
}

fn scope_key(scope: &RouteScope) -> Key {
    [&[prefix::ROUTE, b's'][..], &codec::encode(scope)].concat()
}

#[cfg(test)]
mod tests;
