//! Logging in: address and password, and a code or passkey where there is a second factor.
//!
//! Failures slow down the (address, network) they come from, and the network as a whole; nothing a
//! stranger does on another network keeps a person out. A try counts as failed while it is looked at,
//! so that many at once wait for each other. Wrong codes after the right password are counted by
//! person, wrong confirmations by session, which ends. Easy to get wrong: every refusal does the same
//! work, and only a proven login is told apart; and hashing takes long, so the record is read again
//! under the turn, and only that is written back.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ceremonies::Occasion;
use super::factors::{Spent, Taken};
use super::links::{self, OneTimeLink, Purpose, RESET_LASTS};
use super::{People, Session, User, UserState, is_allowed, password, sessions, stored};
use crate::access::{Actor, Proof};
use crate::accounts::{Failed, Failures, Network};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::Timestamp;
use crate::mail::{TenantId, UserId, printable};
use crate::records::{self, AdminError, Turn};
use crate::store::{Batch, codec};

/// Wrong codes of one person within [`CODE_MEMORY`] after which codes are refused for its rest.
const WRONG_CODES_MAX: u32 = 10;
/// How long wrong codes are remembered.
const CODE_MEMORY: Duration = Duration::from_secs(3600);
/// Wrong confirmations after which a session ends: whoever holds it is not the person.
pub const WRONG_CONFIRMATIONS_MAX: u32 = 5;
/// One person is mailed one link for a new password within this, at most.
pub const LINK_MAILED_EVERY: Duration = Duration::from_secs(15 * 60);
/// What a network with too many failures is told to wait.
const SLOWED_FOR: Duration = Duration::from_secs(60);
/// (person, network) pairs that logged in, remembered at most.
const KNOWN_MAX: usize = 65_536;
/// Characters of a tried address that reach the log of events.
const SHOWN_MAX: usize = 64;

/// What somebody who logs in gives.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// The e-mail address.
    pub email: &'a str,
    /// The tenant, if the address is known in several; resolved by the caller, `Some(None)` is the instance.
    pub tenant: Option<Option<TenantId>>,
    /// The password.
    pub password: &'a str,
    /// A code of the second factor, or a recovery code.
    pub code: Option<&'a str>,
    /// What the browser made with a passkey, as JSON; not looked at beside a code.
    pub passkey: Option<&'a [u8]>,
    /// Where it comes from.
    pub from: IpAddr,
    /// What the browser calls itself.
    pub agent: &'a str,
}

/// Somebody is in.
pub struct LoggedIn {
    /// Who.
    pub user: User,
    /// The stay.
    pub session: Session,
    /// Its secret, for the cookie; shown this once.
    pub secret: Zeroizing<String>,
}

/// Why somebody is not in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Address, password or code is wrong; answer after this delay.
    Wrong(Duration),
    /// The password is right and a second factor is needed: a code, or a passkey, for which the browser needs this
    /// JSON if the person has any.
    NeedsFactor(Option<serde_json::Value>),
    /// Too many failures; come back after this long.
    Slowed(Duration),
    /// Our own failure.
    Failed(AdminError),
}

impl From<AdminError> for Refused {
    fn from(error: AdminError) -> Self {
        Self::Failed(error)
    }
}

/// What failed logins have taught us. A moment further away than it is remembered, before or behind, counts no
/// more: the clock was set.
#[derive(Default)]
pub(super) struct Tries {
    failures: Failures,
    wrong_codes: HashMap<UserId, (u32, Timestamp)>,
    /// By session: confirmations that are under way or were wrong.
    confirmations: HashMap<[u8; 32], u32>,
    /// Who logged in from a network.
    known: HashMap<Network, HashSet<UserId>>,
    known_pairs: usize,
    /// When somebody was last mailed a link for a new password.
    links_mailed: HashMap<UserId, Timestamp>,
}

impl Tries {
    fn too_many_codes(&self, user: UserId, now: Timestamp) -> bool {
        let counted = self.wrong_codes.get(&user);
        counted.is_some_and(|(count, since)| *count >= WRONG_CODES_MAX && now.apart(*since) < CODE_MEMORY)
    }

    fn wrong_code(&mut self, user: UserId, now: Timestamp) {
        self.wrong_codes.retain(|_, (_, since)| now.apart(*since) < CODE_MEMORY);
        let (count, _) = self.wrong_codes.entry(user).or_insert((0, now));
        *count = count.saturating_add(1);
    }

    /// Whether a link may be mailed to somebody now; if so, it is.
    fn mails_link(&mut self, user: UserId, now: Timestamp) -> bool {
        self.links_mailed.retain(|_, mailed| now.apart(*mailed) < LINK_MAILED_EVERY);
        let is_first = !self.links_mailed.contains_key(&user);
        if is_first {
            self.links_mailed.insert(user, now);
        }
        is_first
    }

    fn is_known(&self, user: UserId, network: Network) -> bool {
        self.known.get(&network).is_some_and(|people| people.contains(&user))
    }

    fn know(&mut self, user: UserId, network: Network) {
        if self.known_pairs >= KNOWN_MAX {
            self.known.clear();
            self.known_pairs = 0;
        }
        if self.known.entry(network).or_default().insert(user) {
            self.known_pairs = self.known_pairs.saturating_add(1);
        }
    }

    /// Books a confirmation of a session before it is looked at; `false` if it has had too many.
    fn confirms(&mut self, session: [u8; 32]) -> bool {
        let count = self.confirmations.entry(session).or_insert(0);
        *count = count.saturating_add(1);
        *count <= WRONG_CONFIRMATIONS_MAX
    }

    /// A confirmation of which nothing was looked at.
    fn excuse_confirmation(&mut self, session: &[u8; 32]) {
        if let Some(count) = self.confirmations.get_mut(session) {
            *count = count.saturating_sub(1);
        }
    }

    fn has_confirmed_wrong(&self, session: &[u8; 32]) -> bool {
        self.confirmations.get(session).is_some_and(|count| *count >= WRONG_CONFIRMATIONS_MAX)
    }

    /// Forgets the confirmations of sessions that are over.
    pub(super) fn forget_sessions(&mut self, is_open: impl Fn(&[u8; 32]) -> bool) {
        self.confirmations.retain(|session, _| is_open(session));
    }
}

/// A try to log in that is being looked at.
#[derive(Clone, Copy)]
struct Try<'a> {
    given: &'a Credentials<'a>,
    network: Network,
    /// How long its answer is delayed if it is wrong.
    delay: Duration,
    /// Whether its network has failed too often.
    is_slowed: bool,
    now: Timestamp,
}

/// What failures are counted by: an address that is written in another way is the same.
fn counted(given: &Credentials<'_>) -> String {
    super::users::folded(given.email).unwrap_or_else(|_| given.email.to_lowercase())
}

fn may_come(user: &User, from: IpAddr) -> bool {
    user.state == UserState::Active && is_allowed(&user.allowed_from, Some(from))
}

impl People {
    /// Logs somebody in, with a new session.
    ///
    /// # Errors
    /// [`Refused`]; the caller waits for the delay in it before it answers.
    pub async fn log_in(&self, given: Credentials<'_>, now: Timestamp) -> Result<LoggedIn, Refused> {
        let attempt = self.begin_try(&given, now)?;
        let user = self.find(given.email, given.tenant);
        let stored = user.as_ref().and_then(|user| user.password.clone());
        let typed = Zeroizing::new(given.password.to_owned());
        let is_proven = self.hashes.matches(stored, typed).await.inspect_err(|_| self.excuse(attempt))?;
        let Some(user) = user.filter(|user| is_proven && may_come(user, given.from)) else {
            return Err(self.failed(attempt).await);
        };
        let turn = self.desk.turn().await;
        let Some(current) = self.still(&user, given.from) else {
            drop(turn);
            return Err(self.failed(attempt).await);
        };
        if attempt.is_slowed && !records::lock(&self.memory.tries).is_known(current.id, attempt.network) {
            return Err(Refused::Slowed(SLOWED_FOR));
        }
        let mut changed = User::clone(&current);
        let taken =
            self.take_factor((turn, &current, &mut changed), &given, Occasion::Login(attempt.network), now).await;
        let Some((turn, spent)) = taken.inspect_err(|_| self.excuse(attempt))? else {
            return Err(self.failed(attempt).await);
        };
        let mut batch = Batch::new();
        changed.last_login = Some(now);
        stored::replace(&mut batch, &current, &changed);
        let (secret, session, ended) = self.begin_in(&mut batch, current.id, (given.from, given.agent), now);
        let actor = Actor { from: Some(given.from), ..Actor::of(super::name_of(current.id), current.role) };
        records::record(&mut batch, &actor, sessions::began(&changed), now);
        if let Some(spent) = spent {
            spent.record(&mut batch, &actor, &changed, now);
        }
        let (memory, kept, begun) = (Arc::clone(&self.memory), changed.clone(), session.clone());
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|digest| drop(known.sessions.remove(digest)));
            known.users.insert(kept.id, Arc::new(kept));
            known.sessions.insert(begun.digest, begun);
        })
        .await
        .inspect_err(|_| self.excuse(attempt))
        .map_err(AdminError::from)?;
        self.succeeded(&changed, attempt, spent);
        self.renew_hash(&changed, given.password).await;
        Ok(LoggedIn { user: changed, session, secret })
    }

    /// Books a try before it is looked at. A network that failed too often is answered at once if nobody
    /// ever logged in from it; else whether somebody did is told by the right password only.
    fn begin_try<'a>(&self, given: &'a Credentials<'a>, now: Timestamp) -> Result<Try<'a>, Refused> {
        let network = Network::of(given.from);
        let mut tries = records::lock(&self.memory.tries);
        let is_slowed = tries.failures.is_slowed(network, &self.settings, now);
        if is_slowed && !tries.known.contains_key(&network) {
            return Err(Refused::Slowed(SLOWED_FOR));
        }
        let delay = tries.failures.tries(&counted(given), network, &self.settings, now);
        let delay = delay.map_err(|wait| Refused::Slowed(wait.max(Duration::from_secs(1))))?;
        Ok(Try { given, network, delay, is_slowed, now })
    }

    /// A try that did not fail does not count as one.
    fn excuse(&self, attempt: Try<'_>) {
        records::lock(&self.memory.tries).failures.excused(&counted(attempt.given), attempt.network);
    }

    /// Takes the second factor that was given, where there is one, into `changed`, which the caller stores in the
    /// turn that comes back; `None` if it is wrong.
    async fn take_factor(
        &self,
        (turn, current, changed): (Turn, &User, &mut User),
        given: &Credentials<'_>,
        occasion: Occasion,
        now: Timestamp,
    ) -> Result<Option<(Turn, Option<Spent>)>, Refused> {
        if !current.has_factor() {
            return Ok(Some((turn, None)));
        }
        let taken = match (given.code, given.passkey) {
            (Some(code), _) => self.take_code(changed, code, now)?,
            (None, Some(answer)) => self.take_passkey(changed, occasion, answer, now),
            (None, None) => return Err(Refused::NeedsFactor(self.ask_for_passkey(current, occasion, now))),
        };
        match taken {
            Taken::Right(spent) => Ok(Some((turn, Some(spent)))),
            Taken::Wrong => Ok(None),
            Taken::Copied => {
                let actor = Actor { from: Some(given.from), ..Actor::system("a passkey's counter") };
                self.suspect(turn, (current, changed.clone()), &actor, now).await?;
                Ok(None)
            }
        }
    }

    fn take_code(&self, user: &mut User, code: &str, now: Timestamp) -> Result<Taken, Refused> {
        if records::lock(&self.memory.tries).too_many_codes(user.id, now) {
            return Err(Refused::Slowed(CODE_MEMORY));
        }
        let Some(spent) = self.spend_code(user, code, now)? else {
            records::lock(&self.memory.tries).wrong_code(user.id, now);
            return Ok(Taken::Wrong);
        };
        Ok(Taken::Right(spent))
    }

    /// A fresh proof for a session: a code or passkey where there is a second factor, else the password. The
    /// session gets a new secret; the old one is worth nothing. After [`WRONG_CONFIRMATIONS_MAX`] wrong
    /// ones it ends.
    ///
    /// # Errors
    /// As [`People::log_in`].
    pub async fn confirm(&self, old: &Session, given: Credentials<'_>, now: Timestamp) -> Result<LoggedIn, Refused> {
        let user = self.user(old.user).ok_or(Refused::Wrong(Duration::ZERO))?;
        if user.has_factor() && given.code.is_none() && given.passkey.is_none() {
            return Err(Refused::NeedsFactor(self.ask_for_passkey(&user, Occasion::Confirm(old.digest), now)));
        }
        let given = Credentials { email: &user.email, ..given };
        if !records::lock(&self.memory.tries).confirms(old.digest) {
            return Err(self.failed_to_confirm(old, &given, now).await);
        }
        match self.prove_again(old, (&user, &given), now).await {
            Err(Refused::Wrong(_)) => Err(self.failed_to_confirm(old, &given, now).await),
            Err(unproved) => {
                records::lock(&self.memory.tries).excuse_confirmation(&old.digest);
                Err(unproved)
            }
            Ok(done) => {
                records::lock(&self.memory.tries).confirmations.remove(&old.digest);
                Ok(done)
            }
        }
    }

    async fn prove_again(
        &self,
        old: &Session,
        (user, given): (&User, &Credentials<'_>),
        now: Timestamp,
    ) -> Result<LoggedIn, Refused> {
        let wrong = || Refused::Wrong(Duration::ZERO);
        let had_factor = user.has_factor();
        if !had_factor {
            let typed = Zeroizing::new(given.password.to_owned());
            if !self.hashes.matches(user.password.clone(), typed).await? {
                return Err(wrong());
            }
        }
        let turn = self.desk.turn().await;
        let is_open = records::read(&self.memory.records).sessions.contains_key(&old.digest);
        // A factor that was taken away meanwhile leaves nothing that was proved.
        let current = self.still(user, given.from).filter(|current| is_open && (current.has_factor() || !had_factor));
        let current = current.ok_or_else(wrong)?;
        let mut changed = User::clone(&current);
        let taken = self.take_factor((turn, &current, &mut changed), given, Occasion::Confirm(old.digest), now).await?;
        let (turn, spent) = taken.ok_or_else(wrong)?;
        let mut batch = Batch::new();
        stored::replace(&mut batch, &current, &changed);
        let (secret, mut session, mut ended) = self.begin_in(&mut batch, user.id, (given.from, given.agent), now);
        session.began = old.began;
        batch.set(super::session_key(&session.digest), codec::encode(&session));
        batch.remove(super::session_key(&old.digest));
        ended.push(old.digest);
        let replaced = old.digest;
        let actor =
            Actor { from: Some(given.from), proof: Proof::At(now), ..Actor::of(super::name_of(user.id), user.role) };
        records::record(&mut batch, &actor, super::users::act_on("session.confirm", &changed), now);
        if let Some(spent) = spent {
            spent.record(&mut batch, &actor, &changed, now);
        }
        let (memory, kept, begun) = (Arc::clone(&self.memory), changed.clone(), session.clone());
        turn.commit(batch, move || {
            let mut known = records::write(&memory.records);
            ended.iter().for_each(|digest| drop(known.sessions.remove(digest)));
            known.users.insert(kept.id, Arc::new(kept));
            records::lock(&memory.ceremonies).session_became(replaced, begun.digest);
            known.sessions.insert(begun.digest, begun);
        })
        .await
        .map_err(AdminError::from)?;
        Ok(LoggedIn { user: changed, session, secret })
    }

    /// Books that somebody says he has forgotten his password, as one failed login of his network, whatever the
    /// address.
    ///
    /// # Errors
    /// If that network failed too often.
    pub fn book_forgotten(&self, from: IpAddr, now: Timestamp) -> Result<(), Refused> {
        let network = Network::of(from);
        let mut tries = records::lock(&self.memory.tries);
        if tries.failures.is_slowed(network, &self.settings, now) {
            return Err(Refused::Slowed(SLOWED_FOR));
        }
        tries.failures.failed_from(network, Duration::ZERO, &self.settings, now);
        Ok(())
    }

    /// A link by which somebody who has forgotten his password chooses a new one, to be mailed to him and shown to
    /// nobody else. `None` if nobody of that address may log in from there, or was mailed one within
    /// [`LINK_MAILED_EVERY`]. Whoever runs the instance gets none: a mailbox is not to open every tenant.
    ///
    /// # Errors
    /// If the link could not be made durable.
    pub async fn forgotten(
        &self,
        (email, tenant): (&str, Option<Option<TenantId>>),
        from: IpAddr,
        now: Timestamp,
    ) -> Result<Option<(User, OneTimeLink)>, AdminError> {
        let Some(found) = self.find(email, tenant) else { return Ok(None) };
        let turn = self.desk.turn().await;
        let may_have_one = |user: &Arc<User>| may_come(user, from) && user.role.tenant().is_some();
        let Some(user) = self.user(found.id).filter(may_have_one) else { return Ok(None) };
        if !records::lock(&self.memory.tries).mails_link(user.id, now) {
            return Ok(None);
        }
        let mut batch = Batch::new();
        let link = links::make(&mut batch, Purpose::Reset(user.id), RESET_LASTS, now);
        let actor = Actor { from: Some(from), ..Actor::of(super::name_of(user.id), user.role) };
        records::record(&mut batch, &actor, super::users::act_on("user.reset-link", &user), now);
        turn.commit(batch, || ()).await?;
        Ok(Some((User::clone(&user), link)))
    }

    /// The person as it is under the turn, if what was found right before it still is: whatever was
    /// done to the person meanwhile (a lock, a new password, a list of networks) holds.
    fn still(&self, found: &User, from: IpAddr) -> Option<Arc<User>> {
        self.user(found.id).filter(|current| may_come(current, from) && current.password == found.password)
    }

    /// The only person of that address, in that tenant if one is named.
    fn find(&self, email: &str, tenant: Option<Option<TenantId>>) -> Option<Arc<User>> {
        let email = super::users::folded(email).ok()?;
        let known = records::read(&self.memory.records);
        let is_meant =
            |user: &&Arc<User>| user.email == email && tenant.is_none_or(|tenant| tenant == user.role.tenant());
        let mut found = known.users.values().filter(is_meant);
        match (found.next(), found.next()) {
            (Some(user), None) => Some(Arc::clone(user)),
            _ => None,
        }
    }

    /// A passkey says nothing about codes: wrong ones go on to be counted.
    fn succeeded(&self, user: &User, attempt: Try<'_>, spent: Option<Spent>) {
        let mut tries = records::lock(&self.memory.tries);
        tries.failures.succeeded(&counted(attempt.given), attempt.network);
        if spent != Some(Spent::Passkey) {
            tries.wrong_codes.remove(&user.id);
        }
        tries.know(user.id, attempt.network);
    }

    /// The answer to a wrong login. From a network that failed too often it is the one everybody gets.
    async fn failed(&self, attempt: Try<'_>) -> Refused {
        let Try { given, network, delay, is_slowed, now } = attempt;
        if is_slowed {
            return Refused::Slowed(SLOWED_FOR);
        }
        let failed = records::lock(&self.memory.tries).failures.failed_from(network, delay, &self.settings, now);
        self.told_of(failed, given, now).await
    }

    /// The answer to a wrong confirmation; the session ends if it was one too many.
    async fn failed_to_confirm(&self, session: &Session, given: &Credentials<'_>, now: Timestamp) -> Refused {
        let (failed, is_over) = {
            let mut tries = records::lock(&self.memory.tries);
            let failed = tries.failures.failed(&counted(given), Network::of(given.from), &self.settings, now);
            (failed, tries.has_confirmed_wrong(&session.digest))
        };
        if is_over {
            let actor = Actor::system("too many wrong confirmations");
            let ended = (session.user, Some(session.digest));
            match self.end_sessions_as((&actor, events::SESSION_UNPROVED_ACT), ended, now).await {
                Ok(_) | Err(AdminError::Missing(_)) => {}
                Err(error) => return Refused::Failed(error),
            }
        }
        self.told_of(failed, given, now).await
    }

    async fn told_of(&self, failed: Failed, given: &Credentials<'_>, now: Timestamp) -> Refused {
        if failed.tell {
            let told = InstanceEvent::LoginRefused {
                login: printable(given.email).chars().take(SHOWN_MAX).collect(),
                peer: given.from.to_string(),
                vip: None,
                reason: "admin login: wrong address, password or code".to_owned(),
            };
            let mut batch = Batch::new();
            events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
            if let Err(error) = self.desk.store().commit(batch).await {
                tracing::warn!(%error, "a refused login could not be recorded");
            }
        }
        Refused::Wrong(failed.delay)
    }

    /// A hash made with older parameters is made anew while the password is at hand.
    async fn renew_hash(&self, user: &User, typed: &str) {
        if !user.password.as_deref().is_some_and(password::is_outdated) {
            return;
        }
        let Ok(hash) = self.hashes.hash(Zeroizing::new(typed.to_owned())).await else { return };
        let turn = self.desk.turn().await;
        let Some(current) = self.user(user.id).filter(|current| current.password == user.password) else { return };
        let mut renewed = User::clone(&current);
        renewed.password = Some(hash);
        let mut batch = Batch::new();
        stored::replace(&mut batch, &current, &renewed);
        if let Err(error) = self.remember(turn, batch, renewed).await {
            tracing::warn!(%error, "a password hash could not be renewed");
        }
    }
}
