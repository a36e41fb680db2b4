//! One-time links: a random token that is shown once, kept as its digest, and good for one thing.
//!
//! Easy to get wrong: redeeming takes the token away in the batch that does what it is for, so that
//! two who follow one link at the same moment do not both succeed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::users::{self, folded};
use super::{People, User, UserState, digest, email_key, is_self, name_of, password, stored, user_key};
use crate::access::{Action, Actor, Role};
use crate::ext::{self, Timestamp};
use crate::mail::UserId;
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, Key, after_prefix, codec, prefix};

/// How long an invitation may be followed.
pub const ACTIVATION_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a password may be set anew.
pub const RESET_LASTS: Duration = Duration::from_secs(30 * 60);
/// How long the first admin may be made.
pub const SET_UP_LASTS: Duration = Duration::from_secs(24 * 3600);
/// Expired links removed at a time.
const SWEEP_AT_ONCE: usize = 1000;

/// A link, shown once.
#[derive(Clone, Debug)]
pub struct OneTimeLink {
    /// The secret in it.
    pub token: Zeroizing<String>,
    /// Until when it is good.
    pub expires: Timestamp,
}

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Choosing the first password.
    Activate(UserId),
    /// Choosing a new one.
    Reset(UserId),
    /// Making the first admin of the instance.
    SetUp,
}

/// What is stored of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    purpose: Purpose,
    expires: Timestamp,
}

/// Makes a link; its record goes into `batch`.
pub(super) fn make(batch: &mut Batch, purpose: Purpose, lasts: Duration, now: Timestamp) -> OneTimeLink {
    let token = Zeroizing::new(ext::base32(&ext::random_bytes::<20>()));
    let expires = now.plus(lasts);
    batch.set(link_key(&token), codec::encode(&Stored { purpose, expires }));
    OneTimeLink { token, expires }
}

fn link_key(token: &str) -> Key {
    [&[prefix::ONE_TIME][..], &digest(token)].concat()
}

fn unknown() -> AdminError {
    AdminError::Missing("such link: it was used, has expired, or never was".to_owned())
}

impl People {
    /// Follows a link: the person's password is `password` from now on, and all its sessions end.
    /// The set-up link makes the first admin of the instance, called `email`.
    ///
    /// # Errors
    /// `Missing` if the link is not good (any more), `Invalid` if the password or address is not.
    pub async fn redeem(
        &self,
        token: &str,
        password: Zeroizing<String>,
        email: Option<&str>,
        now: Timestamp,
    ) -> Result<User, AdminError> {
        let key = link_key(token);
        let stored = self.desk.store().get(&key)?.ok_or_else(unknown)?;
        let link: Stored = codec::decode(&stored)?;
        if link.expires < now {
            return Err(unknown());
        }
        let mut user = match link.purpose {
            Purpose::Activate(id) | Purpose::Reset(id) => {
                self.user(id).map(|user| User::clone(&user)).ok_or_else(unknown)?
            }
            Purpose::SetUp => {
                let email =
                    email.ok_or_else(|| AdminError::field("email", "give the admin's e-mail address".to_owned()))?;
                users::new_user(folded(email)?, String::new(), Role::InstanceAdmin, now)
            }
        };
        password::check(&password, &user.email)?;
        let hash = self.hashes.hash(password).await?;
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        batch.if_equals(key.clone(), stored).remove(key);
        match link.purpose {
            Purpose::SetUp if self.has_instance_admin() => return Err(unknown()),
            Purpose::SetUp => {
                let name = email_key(None, &user.email);
                batch.if_absent(name.clone()).set(name, codec::encode(&user.id));
                batch.if_absent(user_key(user.id));
            }
            Purpose::Activate(id) | Purpose::Reset(id) => {
                // What changed while the password was hashed stays changed.
                let current = self.user(id).ok_or_else(unknown)?;
                batch.if_equals(user_key(id), stored::user_bytes(&current));
                user = User::clone(&current);
            }
        }
        user.password = Some(hash);
        if user.state == UserState::Invited {
            user.state = UserState::Active;
        }
        batch.set(user_key(user.id), stored::user_bytes(&user));
        // Whoever else has a link for a new password shall not choose another one.
        for key in self.links_for(|purpose| purpose == Purpose::Reset(user.id))? {
            batch.remove(key);
        }
        let ended = self.end_in(&mut batch, user.id, None);
        let act = match link.purpose {
            Purpose::Activate(_) => "user.activate",
            Purpose::Reset(_) => "user.password",
            Purpose::SetUp => "user.set-up",
        };
        let own = Actor::of(name_of(user.id), user.role);
        records::record(&mut batch, &own, users::act_on(act, &user), now);
        let (memory, changed) = (std::sync::Arc::clone(&self.memory), user.clone());
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|session| drop(known.sessions.remove(session)));
            known.users.insert(changed.id, std::sync::Arc::new(changed));
        })
        .await?;
        Ok(user)
    }

    /// Chooses a new password for oneself; the other sessions end, all but `keep`, and so do links for a new one.
    ///
    /// # Errors
    /// If it is somebody else's, the proof is old, or the password is too short or a common one.
    pub async fn change_password(
        &self,
        actor: &Actor,
        (id, keep): (UserId, Option<[u8; 32]>),
        password: Zeroizing<String>,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        if !is_self(actor, id) {
            return Err(AdminError::Invalid("a password is chosen by the person itself".to_owned()));
        }
        actor.require_fresh(now)?;
        let user = self.user_for(actor, id, Action::Read)?;
        password::check(&password, &user.email)?;
        let hash = self.hashes.hash(password).await?;
        let turn = self.desk.turn().await;
        // What changed while the password was hashed stays changed.
        let current = self.user_for(actor, id, Action::Read)?;
        if current.password != user.password {
            return Err(AdminError::Invalid("your password was changed meanwhile".to_owned()));
        }
        let changed = User { password: Some(hash), ..current.clone() };
        let mut batch = Batch::new();
        stored::replace(&mut batch, &current, &changed);
        for key in self.links_for(|purpose| purpose == Purpose::Reset(id))? {
            batch.remove(key);
        }
        let ended = self.end_in(&mut batch, id, keep);
        records::record(&mut batch, actor, users::act_on("user.password", &changed), now);
        let memory = std::sync::Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|session| drop(known.sessions.remove(session)));
            known.users.insert(changed.id, std::sync::Arc::new(changed));
        })
        .await?;
        Ok(())
    }

    /// Whether somebody administers the instance as a person.
    pub fn has_instance_admin(&self) -> bool {
        let known = records::read(&self.memory.records);
        known.users.values().any(|user| user.role == Role::InstanceAdmin && user.state == UserState::Active)
    }

    /// A link to make the instance's first admin with; `None` if there is one.
    ///
    /// # Errors
    /// If the actor may not, or the change could not be made durable.
    pub async fn set_up_link(&self, actor: &Actor, now: Timestamp) -> Result<Option<OneTimeLink>, AdminError> {
        actor.require(crate::access::Permission::ManageInstance)?;
        actor.may_give(Role::InstanceAdmin)?;
        if self.has_instance_admin() {
            return Ok(None);
        }
        let mut batch = Batch::new();
        let link = make(&mut batch, Purpose::SetUp, SET_UP_LASTS, now);
        records::record(&mut batch, actor, Act::new("user.set-up-link", "the instance"), now);
        self.desk.turn().await.commit(batch, || ()).await?;
        Ok(Some(link))
    }

    /// Removes links that have expired. The number of them.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub async fn sweep_links(&self, now: Timestamp) -> Result<usize, AdminError> {
        let links = self.desk.store().range(&[prefix::ONE_TIME], &after_prefix(&[prefix::ONE_TIME]), SWEEP_AT_ONCE)?;
        let is_over = |value: &[u8]| codec::decode::<Stored>(value).is_ok_and(|link| link.expires < now);
        let over: Vec<Key> = links.into_iter().filter(|(_, value)| is_over(value)).map(|(key, _)| key).collect();
        let count = over.len();
        if count > 0 {
            let mut batch = Batch::new();
            for key in over {
                batch.remove(key);
            }
            self.desk.store().commit(batch).await?;
        }
        Ok(count)
    }

    /// The links of people who are gone.
    pub(super) fn links_of_nobody(&self) -> Result<Vec<Key>, AdminError> {
        self.links_for(|purpose| match purpose {
            Purpose::Activate(user) | Purpose::Reset(user) => self.user(user).is_none(),
            Purpose::SetUp => false,
        })
    }

    fn links_for(&self, is_meant: impl Fn(Purpose) -> bool) -> Result<Vec<Key>, AdminError> {
        let (mut from, end) = (vec![prefix::ONE_TIME], after_prefix(&[prefix::ONE_TIME]));
        let mut found = Vec::new();
        loop {
            let page = self.desk.store().range(&from, &end, SWEEP_AT_ONCE)?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            from.clone_from(last);
            from.push(0);
            let is_one = |bytes: &[u8]| codec::decode::<Stored>(bytes).is_ok_and(|link| is_meant(link.purpose));
            found.extend(page.into_iter().filter(|(_, bytes)| is_one(bytes)).map(|(key, _)| key));
        }
    }
}
