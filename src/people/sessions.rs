//! Stays of people: made at a login, found by the digest of a secret that only the browser has.
//!
//! Easy to get wrong: a session is always new at a login and at a confirmation, so that one that was
//! planted or seen before is worth nothing afterwards (session fixation).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{People, Session, User, UserState, digest, is_allowed, is_self, name_of, session_key};
use crate::access::{Action, Actor, Narrowing, Proof};
use crate::ext::{self, Timestamp};
use crate::mail::{UserId, printable};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, codec};

/// A session ends after this long without a request.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(12 * 3600);
/// A session ends after this long whatever happens.
pub const SESSION_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// The time of the last request is written when it is this much later.
const USED_WRITTEN_EVERY: Duration = Duration::from_secs(5 * 60);
/// Sessions of one person; the oldest ends when one more begins.
const SESSIONS_MAX: usize = 50;
/// Characters of what a browser calls itself.
const AGENT_CHARACTERS_MAX: usize = 200;

/// The token that a request with a session's cookie must carry to change anything: made of the
/// session's secret, so nothing more is stored, and nobody without it can make one.
pub fn csrf_token(secret: &str) -> String {
    ext::base32(&digest(&format!("csrf {secret}"))[..20])
}

impl People {
    /// The actor of a session's secret that comes from `from`; the person is returned too.
    pub fn session_actor(&self, secret: &str, from: Option<IpAddr>, now: Timestamp) -> Option<(Actor, User, Session)> {
        let digest = digest(secret);
        let session = records::read(&self.memory.records).sessions.get(&digest).cloned()?;
        let user = self.user(session.user)?;
        let is_over = now.since(session.began) > SESSION_LASTS || now.since(session.used) > SESSION_IDLE_MAX;
        if is_over || user.state != UserState::Active || !is_allowed(&user.allowed_from, from) {
            return None;
        }
        if now.since(session.used) > USED_WRITTEN_EVERY {
            records::write(&self.memory.records).sessions.entry(digest).and_modify(|known| known.used = now);
        }
        let narrowing = Narrowing { accounts: user.accounts.clone(), ..Narrowing::default() };
        let actor = Actor {
            narrowing: Arc::new(narrowing),
            from,
            proof: Proof::At(session.proved),
            ..Actor::of(name_of(user.id), user.role)
        };
        Some((actor, User::clone(&user), session))
    }

    /// Whether the person must set up a second factor before anything else.
    pub fn must_enrol(&self, user: &User) -> bool {
        !user.has_factor() && self.policy(user.role.tenant()).required_of.iter().any(|word| word == user.role.word())
    }

    /// A new session for a person who gave every factor; `old` ends. Its secret is shown this once.
    pub(super) fn begin_in(
        &self,
        batch: &mut Batch,
        user: UserId,
        (from, agent): (IpAddr, &str),
        now: Timestamp,
    ) -> (Zeroizing<String>, Session, Vec<[u8; 32]>) {
        let secret = Zeroizing::new(ext::base32(&ext::random_bytes::<32>()));
        let agent = printable(agent).chars().take(AGENT_CHARACTERS_MAX).collect();
        let session = Session { user, digest: digest(&secret), began: now, used: now, from, agent, proved: now };
        batch.set(session_key(&session.digest), codec::encode(&session));
        let mut own = self.sessions_of(user);
        let too_many = (own.len() + 1).saturating_sub(SESSIONS_MAX);
        own.truncate(too_many);
        let ended: Vec<[u8; 32]> = own.into_iter().map(|session| session.digest).collect();
        for digest in &ended {
            batch.remove(session_key(digest));
        }
        (secret, session, ended)
    }

    /// Ends sessions of a person in `batch`; the digests of those to forget.
    pub(super) fn end_in(&self, batch: &mut Batch, user: UserId, except: Option<[u8; 32]>) -> Vec<[u8; 32]> {
        let own = self.sessions_of(user).into_iter().map(|session| session.digest);
        let ended: Vec<[u8; 32]> = own.filter(|digest| Some(*digest) != except).collect();
        for digest in &ended {
            batch.remove(session_key(digest));
        }
        ended
    }

    /// A person's sessions, oldest first. Everybody may see his own.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn sessions(&self, actor: &Actor, user: UserId) -> Result<Vec<Session>, AdminError> {
        self.user_for(actor, user, Action::Read)?;
        Ok(self.sessions_of(user))
    }

    /// Ends one session of a person, or all (`None`). Everybody may end his own.
    ///
    /// # Errors
    /// If the actor may not, or there is no such session.
    pub async fn end_session(
        &self,
        actor: &Actor,
        user: UserId,
        which: Option<[u8; 32]>,
        now: Timestamp,
    ) -> Result<usize, AdminError> {
        self.end_sessions_as((actor, "session.end"), (user, which), now).await
    }

    pub(super) async fn end_sessions_as(
        &self,
        (actor, act): (&Actor, &str),
        (user, which): (UserId, Option<[u8; 32]>),
        now: Timestamp,
    ) -> Result<usize, AdminError> {
        let needed = if is_self(actor, user) { Action::Read } else { Action::Write };
        let person = self.user_for(actor, user, needed)?;
        let turn = self.desk.turn().await;
        let own = self.sessions_of(user).into_iter().map(|session| session.digest);
        let ended: Vec<[u8; 32]> = own.filter(|digest| which.is_none_or(|which| which == *digest)).collect();
        if ended.is_empty() && which.is_some() {
            return Err(AdminError::Missing("such session".to_owned()));
        }
        let mut batch = Batch::new();
        for digest in &ended {
            batch.remove(session_key(digest));
        }
        let act = super::users::act_on(act, &person);
        let count = ended.len();
        records::record(&mut batch, actor, act.changed("sessions", Some(count.to_string()), None), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|digest| drop(known.sessions.remove(digest)));
        })
        .await?;
        Ok(count)
    }

    /// Writes when sessions and keys were last used, and removes sessions that are over.
    ///
    /// # Errors
    /// If the store cannot be written; what was not written is tried again.
    pub async fn persist(&self, now: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let (mut batch, mut over) = (Batch::new(), Vec::new());
        let unsaved = {
            let mut known = records::write(&self.memory.records);
            for session in known.sessions.values() {
                let is_over = now.since(session.began) > SESSION_LASTS || now.since(session.used) > SESSION_IDLE_MAX;
                if is_over {
                    batch.remove(session_key(&session.digest));
                    over.push(session.digest);
                } else if now.since(session.used) < 2 * USED_WRITTEN_EVERY && session.used > session.began {
                    batch.set(session_key(&session.digest), codec::encode(session));
                }
            }
            let unsaved = std::mem::take(&mut known.unsaved_uses);
            for used in unsaved.iter().filter_map(|id| known.uses.get(id)) {
                batch.set(super::key_use_key(used.id), codec::encode(used));
            }
            unsaved
        };
        {
            let known = records::read(&self.memory.records);
            records::lock(&self.memory.tries).forget_sessions(|session| known.sessions.contains_key(session));
        }
        if batch.changes.is_empty() {
            return Ok(());
        }
        let memory = Arc::clone(&self.memory);
        let written = turn
            .commit(batch, move || {
                let mut known = records::write(&memory.records);
                over.iter().for_each(|digest| drop(known.sessions.remove(digest)));
            })
            .await;
        if written.is_err() {
            records::write(&self.memory.records).unsaved_uses.extend(unsaved);
        }
        Ok(written?)
    }

    fn sessions_of(&self, user: UserId) -> Vec<Session> {
        let known = records::read(&self.memory.records);
        let mut own: Vec<Session> = known.sessions.values().filter(|session| session.user == user).cloned().collect();
        own.sort_by_key(|session| (session.began, session.digest));
        own
    }
}

/// The audit entry of a session that begins.
pub(super) fn began(user: &User) -> Act {
    super::users::act_on("session.begin", user)
}
