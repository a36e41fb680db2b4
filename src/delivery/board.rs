//! What operators may say to delivery, and what delivery says to them: suspensions, drains, and why a
//! lane waits.
//!
//! Of what is suspended mail is taken and waits; of what is drained no new mail is taken, and what is
//! queued goes out. A suspension is a record: it survives a restart, ends by itself if it was given an end, and each
//! change has its audit event in the same batch. Why a lane waits is in memory only.
//! Easy to get wrong: a suspension that has ended counts for nothing from that moment on, whenever its
//! record is removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::shaping::LOGIN_MARK;
use crate::access::{Actor, Forbidden, Permission};
use crate::ext::Timestamp;
use crate::mail::{Domain, SmtpAccountId, TenantId, VipId};
use crate::queue::{LaneWait, Queue};
use crate::records::{self, Act, AdminError, Damage, Desk};
use crate::routing::Lane;
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Lanes whose reason to wait is remembered, at most.
const REASONS_MAX: usize = 100_000;
/// Suspensions at a time, at most: they are for people.
const SUSPENSIONS_MAX: usize = 1_000;
/// Characters of a reason, at most.
const REASON_CHARACTERS_MAX: usize = 500;

/// What is suspended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Everything.
    All,
    /// One lane.
    Lane(Lane),
    /// All mail to a recipient domain.
    Domain(Domain),
    /// All mail to a site, by its name (sorted MX hosts).
    Site(String),
    /// All mail of one virtual IP.
    Vip(VipId),
    /// All mail of a tenant.
    Tenant(TenantId),
    /// All mail handed in with an SMTP account.
    Account(SmtpAccountId),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => formatter.write_str("all mail"),
            Self::Lane(lane) => {
                write!(formatter, "mail of tenant {} from virtual IP {} to {}", lane.tenant, lane.vip, lane.next_hop)
            }
            Self::Domain(domain) => write!(formatter, "mail to {domain}"),
            Self::Site(site) => write!(formatter, "mail to the site {site}"),
            Self::Vip(vip) => write!(formatter, "mail of virtual IP {vip}"),
            Self::Tenant(tenant) => write!(formatter, "mail of tenant {tenant}"),
            Self::Account(account) => write!(formatter, "mail of SMTP account {account}"),
        }
    }
}

/// What stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Halt {
    /// Sending: mail is taken and waits.
    #[default]
    Sending,
    /// Taking: no new mail is taken, what is queued goes out.
    Taking,
}

impl Halt {
    fn acts(self) -> (&'static str, &'static str) {
        match self {
            Self::Sending => ("delivery.suspend", "delivery.resume"),
            Self::Taking => ("delivery.drain", "delivery.drain-end"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Sending => "suspended",
            Self::Taking => "drained",
        }
    }
}

/// One suspension or drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// Of what.
    pub scope: Scope,
    /// Which of the two; its key says it.
    #[serde(skip)]
    pub halt: Halt,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself; `None` is only when somebody says so.
    pub until: Option<Timestamp>,
}

impl Suspension {
    /// For people: which of the two, what, until when, why.
    pub fn words(&self) -> String {
        format!("{}: {}{}: {}", self.halt.word(), self.scope, self.ends(), self.reason)
    }

    /// Who, until when, why.
    fn told(&self) -> String {
        format!("{} by {}{}: {}", self.halt.word(), self.by, self.ends(), self.reason)
    }

    /// Until when, if it ends by itself, for people.
    fn ends(&self) -> String {
        self.until.map(|until| format!(" until {}", until.rfc3339())).unwrap_or_default()
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Why a lane may not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspended {
    /// For people.
    pub(super) reason: String,
    /// How long, if it ends by itself.
    pub(super) left: Option<Duration>,
}

#[derive(Default)]
struct Board {
    suspended: HashMap<(Halt, Scope), Suspension>,
    waiting: HashMap<Lane, (u64, LaneWait)>,
    resumed: Vec<String>,
    pass: u64,
    /// Records of suspensions that have ended are being removed.
    forgets: bool,
}

/// The operator's hand on delivery.
pub struct Delivery {
    board: Arc<Mutex<Board>>,
    desk: Desk,
    nudge: Arc<Notify>,
    damaged: Vec<Damage>,
}

impl Delivery {
    /// Reads the suspensions.
    pub fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let (stored, damaged) = records::load::<Suspension>(&*store, &[prefix::SUSPENSION])?;
        let known = |(key, suspension): (Key, Suspension)| {
            let halt = if key.get(1) == Some(&DRAIN) { Halt::Taking } else { Halt::Sending };
            ((halt, suspension.scope.clone()), Suspension { halt, ..suspension })
        };
        let suspended = stored.into_iter().map(known).collect();
        let board = Arc::new(Mutex::new(Board { suspended, ..Board::default() }));
        Ok(Arc::new(Self { board, desk: Desk::new(store), nudge: Arc::default(), damaged }))
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No new attempt is begun for what `scope` names, or no new mail is taken of it, until the moment
    /// `until` if there is one; running attempts finish their turn. What was said of the same scope
    /// before is replaced.
    ///
    /// # Errors
    /// If the actor may not, reason or end are none, or there are too many.
    pub async fn suspend(
        &self,
        actor: &Actor,
        (halt, scope): (Halt, Scope),
        (reason, until): (&str, Option<Timestamp>),
        now: Timestamp,
    ) -> Result<Suspension, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_CHARACTERS_MAX || reason.contains(char::is_control) {
            let text = format!("a suspension needs a reason, one line of at most {REASON_CHARACTERS_MAX} characters");
            return Err(AdminError::Invalid(text));
        }
        if until.is_some_and(|until| until <= now) {
            return Err(AdminError::Invalid("a suspension cannot end before it begins".to_owned()));
        }
        let turn = self.desk.turn().await;
        let name = (halt, scope);
        let is_new = !self.board().suspended.contains_key(&name);
        let scope = name.1;
        if is_new && self.board().suspended.len() >= SUSPENSIONS_MAX {
            return Err(AdminError::Invalid(format!(
                "there are {SUSPENSIONS_MAX} suspensions already; end some first"
            )));
        }
        let by = actor.name.clone();
        let suspension = Suspension { scope, halt, reason: reason.to_owned(), by, since: now, until };
        let mut batch = Batch::new();
        batch.set(key(halt, &suspension.scope), codec::encode(&suspension));
        let ends = until.map(|until| format!(" until {}", until.rfc3339())).unwrap_or_default();
        let subject = format!("{}{ends}: {reason}", suspension.scope);
        let act = Act::new(halt.acts().0, suspension.scope.to_string()).shown(subject);
        records::record(&mut batch, actor, act, now);
        let (board, remembered) = (Arc::clone(&self.board), suspension.clone());
        turn.commit(batch, move || {
            let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
            board.suspended.insert((halt, remembered.scope.clone()), remembered);
        })
        .await?;
        Ok(suspension)
    }

    /// Why no new mail of `entering` is taken now, for people; `None` if nothing of it is drained. `site` is
    /// asked for the recipient domain's site only if some site is drained.
    pub fn drained(
        &self,
        (tenant, account, vip): (TenantId, Option<SmtpAccountId>, VipId),
        to: Option<&Domain>,
        site: impl FnOnce(&Domain) -> Option<Arc<str>>,
        now: Timestamp,
    ) -> Option<String> {
        let board = self.board();
        if !board.suspended.keys().any(|(halt, _)| *halt == Halt::Taking) {
            return None;
        }
        let has_sites = board.suspended.keys().any(|(halt, of)| *halt == Halt::Taking && matches!(of, Scope::Site(_)));
        drop(board);
        let site = to.filter(|_| has_sites).and_then(site).map(|site| Scope::Site(site.to_string()));
        let scopes = [Some(Scope::All), Some(Scope::Tenant(tenant)), account.map(Scope::Account)];
        let further = [Some(Scope::Vip(vip)), to.cloned().map(Scope::Domain), site];
        let board = self.board();
        let mut found = scopes.into_iter().chain(further).flatten().filter_map(|scope| {
            board.suspended.get(&(Halt::Taking, scope)).filter(|one| !one.has_ended(now)).map(Suspension::told)
        });
        found.next()
    }

    /// Why nothing of an SMTP account is sent now, for people; `None` if it is not suspended.
    pub fn account_suspended(&self, account: SmtpAccountId, now: Timestamp) -> Option<String> {
        let board = self.board();
        if board.suspended.is_empty() {
            return None;
        }
        let found = board.suspended.get(&(Halt::Sending, Scope::Account(account)));
        found.filter(|one| !one.has_ended(now)).map(Suspension::told)
    }

    /// Ends a suspension and a drain, and for a site its pause after failures too. Whether there was one.
    ///
    /// # Errors
    /// If the actor may not, or it could not be recorded.
    pub async fn resume(&self, actor: &Actor, scope: &Scope, now: Timestamp) -> Result<bool, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let was_drained = self.end(actor, (Halt::Taking, scope), now).await?;
        if let Scope::Account(_) = scope {
            // Its record goes once its mail is let go on: see `forget_ended`.
            return Ok(self.end_now(actor, scope, now).await? || was_drained);
        }
        if let Scope::Site(site) = scope {
            self.board().resumed.push(site.clone());
        }
        let was_suspended = self.end(actor, (Halt::Sending, scope), now).await?;
        self.nudge.notify_one();
        Ok(was_suspended || was_drained)
    }

    /// Ends a suspension at this moment; its record stays. Whether there was one.
    async fn end_now(&self, actor: &Actor, scope: &Scope, now: Timestamp) -> Result<bool, AdminError> {
        let turn = self.desk.turn().await;
        let name = (Halt::Sending, scope.clone());
        let found = self.board().suspended.get(&name).filter(|one| !one.has_ended(now)).cloned();
        let Some(suspension) = found else { return Ok(false) };
        let ended = Suspension { until: Some(now), ..suspension };
        let mut batch = Batch::new();
        batch.set(key(Halt::Sending, scope), codec::encode(&ended));
        records::record(&mut batch, actor, Act::new("delivery.resume", scope.to_string()), now);
        let (board, nudge) = (Arc::clone(&self.board), Arc::clone(&self.nudge));
        turn.commit(batch, move || {
            let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
            board.suspended.insert(name, ended);
            nudge.notify_one();
        })
        .await?;
        Ok(true)
    }

    /// Removes the suspensions of these scopes, also those that have ended. Nothing they held is let go on, so
    /// that is for a tenant whose mail is done.
    ///
    /// # Errors
    /// If the actor may not, or the records could not be written.
    pub async fn forget(
        &self,
        actor: &Actor,
        is_meant: &(dyn Fn(&Scope) -> bool + Sync),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let meant: Vec<(Halt, Scope)> =
            self.board().suspended.keys().filter(|(_, scope)| is_meant(scope)).cloned().collect();
        for (halt, scope) in meant {
            self.end(actor, (halt, &scope), now).await?;
        }
        Ok(())
    }

    async fn end(&self, actor: &Actor, of: (Halt, &Scope), now: Timestamp) -> Result<bool, AdminError> {
        self.end_if(actor, of, |_| true, now).await
    }

    async fn end_if(
        &self,
        actor: &Actor,
        (halt, scope): (Halt, &Scope),
        is_meant: impl Fn(&Suspension) -> bool,
        now: Timestamp,
    ) -> Result<bool, AdminError> {
        let turn = self.desk.turn().await;
        let name = (halt, scope.clone());
        let found = self.board().suspended.get(&name).filter(|one| is_meant(one)).cloned();
        let Some(suspension) = found else { return Ok(false) };
        let mut batch = Batch::new();
        batch.remove(key(halt, scope));
        records::record(&mut batch, actor, Act::new(halt.acts().1, scope.to_string()), now);
        let (board, nudge) = (Arc::clone(&self.board), Arc::clone(&self.nudge));
        turn.commit(batch, move || {
            board.lock().unwrap_or_else(PoisonError::into_inner).suspended.remove(&name);
            nudge.notify_one();
        })
        .await?;
        Ok(!suspension.has_ended(now))
    }

    /// Whether a suspension has ended whose record is still there, and nobody sees to it yet: then
    /// [`Delivery::forget_ended`] is to be called.
    pub(super) fn begins_to_forget(&self, now: Timestamp) -> bool {
        let mut board = self.board();
        let begins = !board.forgets && board.suspended.values().any(|one| one.has_ended(now));
        board.forgets |= begins;
        begins
    }

    /// Removes the records of suspensions that have ended; mail that was held with an SMTP account is let go
    /// on before its record goes, so that a crash forgets nobody. Blocks on the disk.
    pub(super) async fn forget_ended(&self, queue: &Queue, now: Timestamp) {
        let ended: Vec<(Halt, Scope)> = {
            let board = self.board();
            board.suspended.iter().filter(|(_, one)| one.has_ended(now)).map(|(name, _)| name.clone()).collect()
        };
        for (halt, scope) in ended {
            let by = Actor::system("end of a suspension");
            let let_go = match scope {
                Scope::Account(account) if halt == Halt::Sending => queue.resume_whole_account(&by, account, now).await,
                _ => Ok(()),
            };
            let ended = match let_go {
                // It may have been suspended anew while its mail was let go on.
                Ok(()) => self.end_if(&by, (halt, &scope), |one| one.has_ended(now), now).await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(%scope, %error, "a suspension that has ended could not be removed yet");
            }
        }
        self.board().forgets = false;
    }

    /// How many suspensions or drains are in force.
    pub fn halted(&self, halt: Halt, now: Timestamp) -> usize {
        self.board().suspended.values().filter(|one| one.halt == halt && !one.has_ended(now)).count()
    }

    /// What is suspended or drained now, the oldest first.
    pub fn suspensions(&self, actor: &Actor, now: Timestamp) -> Result<Vec<Suspension>, Forbidden> {
        actor.require(Permission::ReadInstance)?;
        let board = self.board();
        let mut all: Vec<Suspension> = board.suspended.values().filter(|one| !one.has_ended(now)).cloned().collect();
        all.sort_by_key(|one| (one.since, one.scope.to_string()));
        Ok(all)
    }

    /// Why the lane waited when it was last looked at; `None` if nothing holds it.
    pub fn why(&self, lane: &Lane) -> Option<LaneWait> {
        self.board().waiting.get(lane).map(|(_, wait)| wait.clone())
    }

    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// `Err` is why the lane may not run.
    pub(super) fn suspension(&self, lane: &Lane, site: Option<&str>, now: Timestamp) -> Result<(), Suspended> {
        let board = self.board();
        if board.suspended.is_empty() {
            return Ok(());
        }
        let scopes = match site {
            // A login at a relay is meant by the relay's name too.
            Some(site) => std::iter::once(site)
                .chain(site.split_once(LOGIN_MARK).map(|(relay, _)| relay))
                .map(|name| Scope::Site(name.to_owned()))
                .collect(),
            None => {
                let (domain, tenant) = (Scope::Domain(lane.next_hop.clone()), Scope::Tenant(lane.tenant));
                vec![Scope::All, Scope::Lane(lane.clone()), domain, Scope::Vip(lane.vip), tenant]
            }
        };
        let named = scopes.into_iter().filter_map(|scope| board.suspended.get(&(Halt::Sending, scope)));
        let found = named.into_iter().find(|one| !one.has_ended(now));
        let Some(found) = found else { return Ok(()) };
        let left = found.until.map(|until| until.since(now));
        Err(Suspended { reason: found.told(), left })
    }

    /// The lane waits for that, as of this pass.
    pub(super) fn waits(&self, lane: &Lane, wait: LaneWait) {
        let mut board = self.board();
        let pass = board.pass;
        if board.waiting.len() < REASONS_MAX || board.waiting.contains_key(lane) {
            board.waiting.insert(lane.clone(), (pass, wait));
        }
    }

    /// Nothing holds the lane.
    pub(super) fn runs(&self, lane: &Lane) {
        self.board().waiting.remove(lane);
    }

    /// Reasons that no pass repeated for a while are forgotten.
    pub(super) fn pass_done(&self) {
        let mut board = self.board();
        board.pass = board.pass.saturating_add(1);
        if board.pass.is_multiple_of(PASSES_KEPT) {
            let oldest = board.pass.saturating_sub(PASSES_KEPT);
            board.waiting.retain(|_, (pass, _)| *pass >= oldest);
        }
    }

    /// Sites whose pause an operator ended.
    pub(super) fn take_resumed(&self) -> Vec<String> {
        std::mem::take(&mut self.board().resumed)
    }
}

/// A reason is remembered for so many passes.
const PASSES_KEPT: u64 = 1_000;

/// What follows the prefix in keys of drains; a scope's first octet is its number, far below.
const DRAIN: u8 = b'd';

fn key(halt: Halt, scope: &Scope) -> Key {
    let mut key = vec![prefix::SUSPENSION];
    if halt == Halt::Taking {
        key.push(DRAIN);
    }
    key.extend(codec::encode(scope));
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, EventKind};
    use crate::mail::Class;
    use crate::routing::TransportName;
    use crate::store::{MemoryStore, after_prefix};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn lane() -> Lane {
        Lane {
            vip: VipId(1),
            tenant: TenantId(1),
            class: Class::Transactional,
            transport: TransportName::Mx,
            next_hop: Domain::parse("shop.example").unwrap(),
        }
    }

    fn acts(store: &MemoryStore) -> Vec<String> {
        let events = store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), 100).unwrap();
        let events = events.iter().map(|(_, bytes)| codec::decode::<Event>(bytes).unwrap().kind);
        let audits = events.filter_map(|kind| match kind {
            EventKind::Audit(audit) => Some(format!("{} by {}: {}", audit.act, audit.actor, audit.subject)),
            _ => None,
        });
        audits.collect()
    }

    #[tokio::test]
    async fn a_suspension_holds_what_it_names_and_says_who_and_why() {
        let (delivery, actor) = (Delivery::open(Arc::new(MemoryStore::new())).unwrap(), Actor::local(0));
        let domain = Scope::Domain(lane().next_hop);
        for scope in [Scope::All, Scope::Lane(lane()), domain, Scope::Vip(VipId(1)), Scope::Tenant(TenantId(1))] {
            delivery.suspend(&actor, (Halt::Sending, scope.clone()), ("they asked us to", None), NOW).await.unwrap();
            let reason = "suspended by uid 0 by local socket: they asked us to".to_owned();
            assert_eq!(delivery.suspension(&lane(), None, NOW), Err(Suspended { reason, left: None }));
            assert!(delivery.resume(&actor, &scope, NOW).await.unwrap());
            assert_eq!(delivery.suspension(&lane(), None, NOW), Ok(()));
            assert!(!delivery.resume(&actor, &scope, NOW).await.unwrap());
        }
        delivery
            .suspend(&actor, (Halt::Sending, Scope::Site("mx.example".to_owned())), ("x", None), NOW)
            .await
            .unwrap();
        assert!(delivery.suspension(&lane(), Some("mx.example"), NOW).is_err());
        assert!(delivery.suspension(&lane(), Some("other.example"), NOW).is_ok());
        delivery
            .suspend(&actor, (Halt::Sending, Scope::Site("relay.example:587".to_owned())), ("x", None), NOW)
            .await
            .unwrap();
        assert!(delivery.suspension(&lane(), Some("relay.example:587/route"), NOW).is_err(), "a login there");
        assert!(delivery.suspension(&lane(), Some("relay.example:25/route"), NOW).is_ok());
    }

    #[tokio::test]
    async fn a_suspension_survives_a_restart_ends_by_itself_and_each_change_is_on_record() {
        let (store, actor) = (Arc::new(MemoryStore::new()), Actor::local(0));
        let before = Delivery::open(store.clone()).unwrap();
        let until = NOW.plus(Duration::from_secs(60));
        before.suspend(&actor, (Halt::Sending, Scope::All), ("new rack", Some(until)), NOW).await.unwrap();
        drop(before);
        let delivery = Delivery::open(store.clone()).unwrap();
        let held = delivery.suspension(&lane(), None, NOW).unwrap_err();
        assert_eq!(held.left, Some(Duration::from_secs(60)));
        assert!(held.reason.ends_with(": new rack"), "{}", held.reason);
        assert_eq!(delivery.suspensions(&actor, NOW).unwrap().len(), 1);
        // From that moment on, whether or not anybody has removed the record.
        assert_eq!(delivery.suspension(&lane(), None, until), Ok(()));
        assert!(delivery.suspensions(&actor, until).unwrap().is_empty());
        let queue = Queue::open(store.clone(), store.clone(), Default::default()).await.unwrap();
        delivery.forget_ended(&queue, until).await;
        assert!(Delivery::open(store.clone()).unwrap().suspensions(&actor, NOW).unwrap().is_empty());
        let acts = acts(&store);
        assert!(acts[0].starts_with("delivery.suspend by uid 0 by local socket: all mail until "), "{acts:?}");
        assert!(acts[1].starts_with("delivery.resume by "), "{acts:?}");
    }

    #[tokio::test]
    async fn a_suspension_without_a_reason_or_with_an_end_in_the_past_is_refused() {
        let (delivery, actor) = (Delivery::open(Arc::new(MemoryStore::new())).unwrap(), Actor::local(0));
        for (reason, until) in [("", None), ("two\nlines", None), ("late", Some(NOW))] {
            assert!(
                delivery.suspend(&actor, (Halt::Sending, Scope::All), (reason, until), NOW).await.is_err(),
                "{reason}"
            );
        }
        assert_eq!(delivery.suspension(&lane(), None, NOW), Ok(()));
    }

    #[tokio::test]
    async fn only_those_who_run_the_instance_may_suspend() {
        let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
        let delivery = Delivery::open(Arc::new(MemoryStore::new())).unwrap();
        assert!(delivery.suspend(&owner, (Halt::Sending, Scope::All), ("x", None), NOW).await.is_err());
        assert!(delivery.resume(&owner, &Scope::All, NOW).await.is_err());
    }

    #[tokio::test]
    async fn a_drain_takes_no_new_mail_of_what_it_names_and_lets_the_queued_go() {
        let (store, actor) = (Arc::new(MemoryStore::new()), Actor::local(0));
        let to = Domain::parse("shop.example").unwrap();
        let whose = (TenantId(1), Some(SmtpAccountId(2)), VipId(1));
        let site = |_: &Domain| Some(Arc::from("mx.example"));
        let scopes = [
            Scope::All,
            Scope::Tenant(TenantId(1)),
            Scope::Account(SmtpAccountId(2)),
            Scope::Vip(VipId(1)),
            Scope::Domain(to.clone()),
            Scope::Site("mx.example".to_owned()),
        ];
        for scope in scopes {
            let delivery = Delivery::open(store.clone()).unwrap();
            let until = Some(NOW.plus(Duration::from_secs(60)));
            delivery.suspend(&actor, (Halt::Taking, scope.clone()), ("it moves", until), NOW).await.unwrap();
            // Also after a restart.
            let delivery = Delivery::open(store.clone()).unwrap();
            let why = delivery.drained(whose, Some(&to), site, NOW).unwrap();
            assert!(why.starts_with("drained by ") && why.ends_with(": it moves"), "{scope}: {why}");
            assert_eq!(delivery.suspension(&lane(), None, NOW), Ok(()), "{scope}");
            assert_eq!(delivery.suspension(&lane(), Some("mx.example"), NOW), Ok(()), "{scope}");
            assert_eq!(delivery.account_suspended(SmtpAccountId(2), NOW), None, "{scope}");
            assert!(delivery.suspensions(&actor, NOW).unwrap()[0].words().starts_with("drained: "));
            let later = NOW.plus(Duration::from_secs(60));
            assert_eq!(delivery.drained(whose, Some(&to), site, later), None, "{scope}: it has ended");
            assert!(delivery.resume(&actor, &scope, NOW).await.unwrap());
            assert_eq!(delivery.drained(whose, Some(&to), site, NOW), None, "{scope}");
        }
        let delivery = Delivery::open(store).unwrap();
        let other = Domain::parse("other.example").unwrap();
        delivery.suspend(&actor, (Halt::Taking, Scope::Domain(other)), ("x", None), NOW).await.unwrap();
        assert_eq!(delivery.drained(whose, Some(&to), site, NOW), None);
        assert_eq!(delivery.drained(whose, None, site, NOW), None);
    }
}
