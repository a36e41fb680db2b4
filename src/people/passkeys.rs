//! Passkeys (WebAuthn) of a person, as second factors beside TOTP: set up, named, used and taken away by the
//! person itself.
//!
//! Easy to get wrong: what comes after the password is one factor of several, so recovery codes come with the
//! first of them and go with the last; and a credential belongs to one person, whoever offers it again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::ceremonies::{self, Occasion, Refusal};
use super::factors::{Spent, Taken, new_codes, recovery_digests};
use super::users::{act_on, shortened};
use super::{People, Site, User, is_self, stored};
use crate::access::{Action, Actor};
use crate::events;
use crate::ext::{self, Timestamp};
use crate::mail::UserId;
use crate::records::{self, AdminError};
use crate::store::Batch;

/// Passkeys of one person, at most.
pub const PASSKEYS_MAX: usize = 10;
/// Octets of the digest that names a passkey in lists.
const ID_OCTETS: usize = 10;

/// A passkey, which no secret is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passkey {
    /// What the person calls it.
    pub name: String,
    /// What its authenticator calls it.
    pub credential: Vec<u8>,
    /// The public key and what else never changes, as the library writes it.
    pub public_key: Vec<u8>,
    /// The signature counter and what else changes with use, as the library writes it.
    pub state: [u8; 7],
    /// How its authenticator is reached, as the library writes it.
    pub transports: u8,
    /// When it was set up.
    pub created: Timestamp,
    /// When it was last used.
    pub last_used: Option<Timestamp>,
    /// When it last came with an older counter than before: somebody may have a copy.
    pub copied: Option<Timestamp>,
    /// The host it was made for. A browser uses it for no other: should `admin.origin` name another one, it counts
    /// as a second factor, so that nobody gets in by the password alone, and is asked for no longer.
    pub host: String,
}

impl Passkey {
    /// Its name in paths: made of the credential.
    pub fn id(&self) -> String {
        let digest = Sha256::digest(&self.credential);
        ext::base32(digest.get(..ID_OCTETS).unwrap_or_default())
    }
}

impl People {
    /// The same people, whose browsers reach the admin API there; without it nobody sets up a passkey.
    #[must_use]
    pub fn reached_at(mut self, site: Option<Site>) -> Self {
        self.site = site;
        self
    }

    fn site(&self) -> Result<&Site, AdminError> {
        self.site.as_ref().ok_or_else(|| AdminError::Invalid("there is no place passkeys could be bound to".to_owned()))
    }

    /// What the browser of a person needs to make a passkey: for oneself only, within
    /// [`CHALLENGE_LASTS`](super::CHALLENGE_LASTS) and in this session.
    ///
    /// # Errors
    /// If it is somebody else's, the proof is old, or there are as many as may be.
    pub fn offer_passkey(
        &self,
        actor: &Actor,
        (id, session): (UserId, [u8; 32]),
        now: Timestamp,
    ) -> Result<Value, AdminError> {
        actor.require_fresh(now)?;
        let user = self.own(actor, id)?;
        check_count(&user)?;
        let site = self.site()?;
        let offered = records::lock(&self.memory.ceremonies).invite(site, &user, session, now);
        offered.map_err(|refusal| AdminError::Invalid(format!("a passkey cannot be set up: {}", said(refusal))))
    }

    /// Ends setting a passkey up with what the browser made. The recovery codes are shown this once, if it is the
    /// first second factor; all other sessions of the person end.
    ///
    /// # Errors
    /// If the proof is old, there are as many as may be, or what the browser made is not what was asked for.
    pub async fn add_passkey(
        &self,
        actor: &Actor,
        (id, session): (UserId, [u8; 32]),
        (name, answer): (&str, &[u8]),
        now: Timestamp,
    ) -> Result<(Passkey, Vec<Zeroizing<String>>), AdminError> {
        actor.require_fresh(now)?;
        let name = named(name)?;
        let turn = self.desk.turn().await;
        let user = self.own_within(actor, (id, session))?;
        check_count(&user)?;
        let site = self.site()?;
        let made = ceremonies::register(&self.memory.ceremonies, site, (id, session, name), answer, now);
        let made = made.map_err(|refusal| {
            AdminError::field("credential", format!("this is not the passkey that was asked for: {}", said(refusal)))
        })?;
        if self.is_taken(&made.credential) {
            return Err(AdminError::Exists("this passkey".to_owned()));
        }
        let mut changed = user.clone();
        let codes = if user.has_factor() { Vec::new() } else { new_codes() };
        if !user.has_factor() {
            changed.recovery = recovery_digests(&codes);
        }
        changed.passkeys.push(made.clone());
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        let ended = self.end_in(&mut batch, id, Some(session));
        let act = act_on("second-factor.passkey-add", &changed).changed("passkey", None, Some(made.id()));
        records::record(&mut batch, actor, act, now);
        self.remember_without(turn, batch, changed, ended).await?;
        Ok((made, codes))
    }

    /// The passkeys of a person, oldest first. Everybody may see his own.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn passkeys(&self, actor: &Actor, id: UserId) -> Result<Vec<Passkey>, AdminError> {
        Ok(self.user_for(actor, id, Action::Read)?.passkeys)
    }

    /// Gives one of one's own passkeys another name.
    ///
    /// # Errors
    /// If it is somebody else's, or there is none of that id.
    pub async fn rename_passkey(
        &self,
        actor: &Actor,
        (id, passkey): (UserId, &str),
        name: &str,
        now: Timestamp,
    ) -> Result<Passkey, AdminError> {
        let name = named(name)?;
        let turn = self.desk.turn().await;
        let user = self.own(actor, id)?;
        let mut changed = user.clone();
        let own = changed.passkeys.iter_mut().find(|known| known.id() == passkey);
        let own = own.ok_or_else(|| AdminError::Missing(format!("passkey {passkey}")))?;
        let before = std::mem::replace(&mut own.name, name);
        let renamed = own.clone();
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        let said = |name: &str| Some(format!("{} {name}", renamed.id()));
        let act = act_on("second-factor.passkey-rename", &changed);
        records::record(&mut batch, actor, act.changed("passkey", said(&before), said(&renamed.name)), now);
        self.remember(turn, batch, changed).await?;
        Ok(renamed)
    }

    /// Takes one of one's own passkeys away, and the recovery codes with the last second factor; all other sessions
    /// of the person end.
    ///
    /// # Errors
    /// If it is somebody else's, the proof is old, or there is none of that id.
    pub async fn remove_passkey(
        &self,
        actor: &Actor,
        (id, session): (UserId, [u8; 32]),
        passkey: &str,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = self.own_within(actor, (id, session))?;
        let mut changed = user.clone();
        changed.passkeys.retain(|known| known.id() != passkey);
        if changed.passkeys.len() == user.passkeys.len() {
            return Err(AdminError::Missing(format!("passkey {passkey}")));
        }
        if !changed.has_factor() {
            changed.recovery.clear();
        }
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        let ended = self.end_in(&mut batch, id, Some(session));
        let name = if changed.has_factor() { events::PASSKEY_REMOVED_ACT } else { events::LAST_PASSKEY_REMOVED_ACT };
        let act = act_on(name, &changed).changed("passkey", Some(passkey.to_owned()), None);
        records::record(&mut batch, actor, act, now);
        self.remember_without(turn, batch, changed, ended).await
    }

    /// What the browser needs to prove a passkey, if the person has any.
    pub(super) fn ask_for_passkey(&self, user: &User, occasion: Occasion, now: Timestamp) -> Option<Value> {
        let site = self.site.as_ref().filter(|site| user.passkeys.iter().any(|passkey| site.is_of(passkey)))?;
        let asked = records::lock(&self.memory.ceremonies).ask(site, user, occasion, now);
        // Codes still let the person in.
        asked.inspect_err(|refusal| tracing::error!(user = %user.id, ?refusal, "passkeys cannot be asked for")).ok()
    }

    /// Takes an answer of a browser for the second factor of `user`, which the caller stores.
    pub(super) fn take_passkey(&self, user: &mut User, occasion: Occasion, answer: &[u8], now: Timestamp) -> Taken {
        let Some(site) = &self.site else { return Taken::Wrong };
        let id = user.id;
        match ceremonies::prove(&self.memory.ceremonies, site, (user, occasion), answer, now) {
            Ok(()) => Taken::Right(Spent::Passkey),
            Err(Refusal::Copied) => Taken::Copied,
            Err(Refusal::Wrong(why)) => {
                tracing::info!(user = %id, why, "a passkey was refused");
                Taken::Wrong
            }
        }
    }

    /// Writes down that a passkey of `user` may have been copied; the person is told.
    pub(super) async fn suspect(
        &self,
        turn: records::Turn,
        (user, changed): (&User, User),
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let mut batch = Batch::new();
        stored::replace(&mut batch, user, &changed);
        records::record(&mut batch, actor, act_on(events::PASSKEY_COPIED_ACT, &changed), now);
        self.remember(turn, batch, changed).await
    }

    fn is_taken(&self, credential: &[u8]) -> bool {
        let known = records::read(&self.memory.records);
        known.users.values().any(|user| user.passkeys.iter().any(|passkey| passkey.credential == credential))
    }

    pub(super) fn own(&self, actor: &Actor, id: UserId) -> Result<User, AdminError> {
        if !is_self(actor, id) {
            return Err(AdminError::Invalid("a second factor is set up by the person itself".to_owned()));
        }
        self.user_for(actor, id, Action::Read)
    }

    /// The same under the turn, while the session it is done in is still open: whoever ended it meanwhile, by a new
    /// password or by hand, has ended what was under way in it.
    pub(super) fn own_within(&self, actor: &Actor, (id, session): (UserId, [u8; 32])) -> Result<User, AdminError> {
        let is_open = records::read(&self.memory.records).sessions.contains_key(&session);
        if is_open { self.own(actor, id) } else { Err(AdminError::Missing("session".to_owned())) }
    }

    /// Commits a change of one person and remembers it; the sessions `ended` are forgotten.
    pub(super) async fn remember_without(
        &self,
        turn: records::Turn,
        batch: Batch,
        user: User,
        ended: Vec<[u8; 32]>,
    ) -> Result<(), AdminError> {
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|session| drop(known.sessions.remove(session)));
            known.users.insert(user.id, Arc::new(user));
        })
        .await?;
        Ok(())
    }
}

fn said(refusal: Refusal) -> String {
    match refusal {
        Refusal::Wrong(why) => why,
        Refusal::Copied => "its counter went back".to_owned(),
    }
}

fn check_count(user: &User) -> Result<(), AdminError> {
    if user.passkeys.len() >= PASSKEYS_MAX {
        return Err(AdminError::Invalid(format!("at most {PASSKEYS_MAX} passkeys: take one away first")));
    }
    Ok(())
}

fn named(name: &str) -> Result<String, AdminError> {
    let name = shortened(name.trim());
    if name.is_empty() {
        return Err(AdminError::field("name", "give it a name you will know it by, such as the device's".to_owned()));
    }
    Ok(name)
}
