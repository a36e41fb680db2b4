//! Tenants that leave: a deletion is asked for, may be taken back within its grace period, and then removes
//! what every room keeps of the tenant.
//!
//! Recipe: [`Tenancy::ask`], [`Tenancy::undo`]; [`Tenancy::run`] does what is due. While a deletion is asked for
//! the tenant's sending is suspended and its people still log in. Easy to get wrong: mail that is owed is never
//! dropped by a deletion, so it waits until the queue holds none; and the tenant's own record goes last, so that
//! a crash in between begins the removal again.

mod removal;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::access::{Actor, Permission, Resource};
use crate::accounts::{Accounts, Sending, Tenant};
use crate::background::Shutdown;
use crate::breaker::Breaker;
use crate::calendar::Calendar;
use crate::delivery::Delivery;
use crate::domains::Domains;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::operations::Operations;
use crate::people::People;
use crate::queue::Queue;
use crate::records::{self, Act, AdminError, Damage, Desk};
use crate::routing::Routes;
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};
use crate::suppression::Suppression;
use crate::vips::Vips;
use crate::webhooks::Webhooks;

/// Grace of a deletion for which none was said.
pub const GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Grace of a deletion, at most.
pub const GRACE_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// How often [`Tenancy::run`] looks for what is due.
const KEPT_EVERY: Duration = Duration::from_secs(5 * 60);
/// How often tenants' own retentions are looked after.
const FORGET_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// A tenant that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Which.
    pub tenant: TenantId,
    /// When that was asked for.
    pub asked: Timestamp,
    /// When its grace ends.
    pub due: Timestamp,
    /// Who asked, as the audit log names it.
    pub by: String,
    /// Whether it was sending before.
    before: Sending,
}

/// What a deletion does to one that was asked for before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Earlier {
    Stands,
    IsReplaced,
}

/// What became of a deletion that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left of the tenant.
    Removed,
    /// The queue still holds mail of it.
    MailIsOwed,
    /// It could not be done to the end; it is begun again.
    Failed(String),
}

/// Takes what others keep of a tenant, which this room does not know.
pub type Forgetting =
    Arc<dyn Fn(TenantId) -> futures_util::future::BoxFuture<'static, Result<(), AdminError>> + Send + Sync>;

/// The rooms that keep something of a tenant.
#[derive(Clone)]
pub struct Parts {
    /// Records.
    pub store: Arc<dyn Store>,
    /// The tenant itself and its SMTP accounts.
    pub accounts: Arc<Accounts>,
    /// Its domains and their keys.
    pub domains: Arc<Domains>,
    /// Its virtual IPs.
    pub vips: Arc<Vips>,
    /// Its people and keys.
    pub people: Arc<People>,
    /// Its relays.
    pub routes: Arc<Routes>,
    /// Its webhooks.
    pub webhooks: Arc<Webhooks>,
    /// Its lists.
    pub suppression: Arc<Suppression>,
    /// Its imports and exports.
    pub operations: Arc<Operations>,
    /// Its mail, and what is kept of it.
    pub queue: Arc<Queue>,
    /// Counts and pauses of its SMTP accounts.
    pub breaker: Arc<Breaker>,
    /// Suspensions of its mail.
    pub delivery: Arc<Delivery>,
    /// Further rooms.
    pub further: Vec<Forgetting>,
    /// By which a grace ends, and what is kept of finished messages lapses.
    pub calendar: Calendar,
}

/// All deletions that were asked for.
pub struct Tenancy {
    desk: Desk,
    parts: Parts,
    all: Arc<RwLock<HashMap<TenantId, Deletion>>>,
    nudge: Notify,
    /// Held while one is removed, so that nobody else does it at the same moment.
    removing: tokio::sync::Mutex<()>,
    damaged: Vec<Damage>,
}

impl Tenancy {
    /// Reads what was asked for.
    pub fn open(parts: Parts) -> Result<Self, StoreError> {
        let (stored, damaged) = records::load::<Deletion>(&*parts.store, &[prefix::TENANCY, b'd'])?;
        let all = stored.into_iter().map(|(_, deletion)| (deletion.tenant, deletion)).collect();
        let (desk, all) = (Desk::new(Arc::clone(&parts.store)), Arc::new(RwLock::new(all)));
        Ok(Self { desk, parts, all, nudge: Notify::new(), removing: tokio::sync::Mutex::default(), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// The deletion of a tenant, if one was asked for.
    pub fn deletion(&self, actor: &Actor, tenant: TenantId) -> Result<Option<Deletion>, AdminError> {
        actor.require(Permission::Read(Resource::Tenant, tenant))?;
        Ok(records::read(&self.all).get(&tenant).cloned())
    }

    /// Whether a deletion was asked for, for whoever would let the tenant send again.
    pub fn is_leaving(&self, tenant: TenantId) -> bool {
        records::read(&self.all).contains_key(&tenant)
    }

    /// Asks for a tenant to be deleted after `grace`, and suspends its sending. A dangerous act.
    ///
    /// # Errors
    /// If the actor may not, if a fresh proof is needed, or if it was asked for already.
    pub async fn ask(
        &self,
        actor: &Actor,
        tenant: TenantId,
        grace: Duration,
        now: Timestamp,
    ) -> Result<Deletion, AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        if grace > GRACE_MAX {
            let days = GRACE_MAX.as_secs() / 86_400;
            return Err(AdminError::field("grace_days", format!("the grace of a deletion is at most {days} days")));
        }
        let (known, due) = (self.known(tenant)?, self.parts.calendar.cap(now).plus(grace));
        let (deletion, _) = self.write_down(actor, &known, (due, now), Earlier::Stands).await?;
        self.suspend(tenant, now).await?;
        self.nudge.notify_one();
        Ok(deletion)
    }

    /// Removes a tenant that has nothing any more, at once, with what is still kept of its past: finished
    /// operations, what became of messages, counts, notifications. `held` are the words for what somebody would
    /// miss (domains, lists, queued mail); the caller has asked the rooms. A dangerous act. What an interruption
    /// leaves is removed by [`Tenancy::run`].
    ///
    /// # Errors
    /// If the actor may not, a fresh proof is needed, or the tenant still has something.
    pub async fn remove_emptied(
        &self,
        actor: &Actor,
        (tenant, held): (TenantId, &[String]),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let known = self.known(tenant)?;
        if !held.is_empty() {
            return Err(AdminError::Invalid(format!("tenant {} still has {}", known.name, held.join(", "))));
        }
        let _alone = self.removing.lock().await;
        let (deletion, earlier) = self.write_down(actor, &known, (now, now), Earlier::IsReplaced).await?;
        self.suspend(tenant, now).await?;
        if self.remove(tenant, now).await? {
            return Ok(());
        }
        // Mail came in since the rooms were asked: what is refused is not to be done later.
        self.put_back(actor, (&deletion, earlier), now).await?;
        Err(AdminError::Invalid(format!("tenant {} still has queued mail", known.name)))
    }

    fn known(&self, tenant: TenantId) -> Result<Tenant, AdminError> {
        self.parts.accounts.tenant(tenant).ok_or_else(|| AdminError::Missing(format!("tenant {tenant}")))
    }

    /// Writes down that a tenant is to be removed; also what was asked for before.
    async fn write_down(
        &self,
        actor: &Actor,
        known: &Tenant,
        (due, now): (Timestamp, Timestamp),
        if_asked: Earlier,
    ) -> Result<(Deletion, Option<Deletion>), AdminError> {
        let (tenant, turn) = (known.id, self.desk.turn().await);
        let earlier = records::read(&self.all).get(&tenant).cloned();
        if earlier.is_some() && if_asked == Earlier::Stands {
            return Err(AdminError::Exists(format!("a deletion of tenant {}", known.name)));
        }
        let before = earlier.as_ref().map_or(known.sending, |earlier| earlier.before);
        let deletion = Deletion { tenant, asked: now, due, by: actor.name.clone(), before };
        let mut batch = Batch::new();
        match &earlier {
            Some(earlier) => batch.if_equals(key(tenant), codec::encode(earlier)),
            None => batch.if_absent(key(tenant)),
        };
        batch.set(key(tenant), codec::encode(&deletion));
        let act = Act::new("tenant.delete", format!("{} {tenant}", known.name)).of(tenant);
        let was = earlier.as_ref().map(|earlier| earlier.due.rfc3339());
        records::record(&mut batch, actor, act.changed("due", was, Some(due.rfc3339())), now);
        let (all, remembered) = (Arc::clone(&self.all), deletion.clone());
        turn.commit(batch, move || drop(records::write(&all).insert(tenant, remembered))).await?;
        Ok((deletion, earlier))
    }

    /// Takes a deletion back that came to nothing: what was asked for before stands again, or the tenant sends
    /// again if it did.
    async fn put_back(
        &self,
        actor: &Actor,
        (deletion, earlier): (&Deletion, Option<Deletion>),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let (tenant, turn) = (deletion.tenant, self.desk.turn().await);
        let mut batch = Batch::new();
        batch.if_equals(key(tenant), codec::encode(deletion));
        match &earlier {
            Some(earlier) => batch.set(key(tenant), codec::encode(earlier)),
            None => batch.remove(key(tenant)),
        };
        records::record(&mut batch, actor, Act::new("tenant.delete-undo", tenant.to_string()).of(tenant), now);
        let (all, sends) = (Arc::clone(&self.all), earlier.is_none() && deletion.before == Sending::Allowed);
        turn.commit(batch, move || {
            let mut all = records::write(&all);
            match earlier {
                Some(earlier) => all.insert(tenant, earlier),
                None => all.remove(&tenant),
            };
        })
        .await?;
        if sends {
            self.parts.accounts.set_sending(&own_actor(), tenant, Sending::Allowed, now).await?;
        }
        Ok(())
    }

    /// Takes a deletion back, while nothing has been removed; the tenant sends again if it did before.
    ///
    /// # Errors
    /// If there is none, or its grace is over.
    pub async fn undo(&self, actor: &Actor, tenant: TenantId, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let deletion = self.deletion(actor, tenant)?;
        let deletion = deletion.ok_or_else(|| AdminError::Missing(format!("deletion of tenant {tenant}")))?;
        if deletion.due <= self.parts.calendar.cap(now) {
            return Err(AdminError::Invalid("its grace is over, and the removal may have begun".to_owned()));
        }
        self.put_back(actor, (&deletion, None), now).await
    }

    /// Does what is due; what became of each deletion whose grace is over.
    pub async fn keep(&self, now: Timestamp) -> Vec<(TenantId, Outcome)> {
        let leaving: Vec<TenantId> = records::read(&self.all).keys().copied().collect();
        let mut ended = Vec::new();
        for tenant in leaving {
            let _alone = self.removing.lock().await;
            // It may have been removed or taken back meanwhile.
            let Some(deletion) = records::read(&self.all).get(&tenant).cloned() else { continue };
            if let Err(error) = self.suspend(tenant, now).await {
                tracing::warn!(%tenant, %error, "a tenant that is to be deleted could not be suspended yet");
                continue;
            }
            if deletion.due > self.parts.calendar.cap(now) {
                continue;
            }
            let outcome = match self.remove(tenant, now).await {
                Ok(true) => Outcome::Removed,
                Ok(false) => Outcome::MailIsOwed,
                Err(error) => Outcome::Failed(error.to_string()),
            };
            match &outcome {
                Outcome::Removed => tracing::info!(%tenant, "a tenant was deleted"),
                Outcome::MailIsOwed => tracing::info!(%tenant, "a tenant is to be deleted once its mail is done"),
                Outcome::Failed(error) => tracing::warn!(%tenant, error, "a tenant could not be deleted yet"),
            }
            ended.push((tenant, outcome));
        }
        ended
    }

    /// Forgets what is kept of finished messages of tenants whose own retention is over.
    pub async fn forget_old(&self, now: Timestamp) {
        let now = self.parts.calendar.cap(now);
        let own: HashMap<TenantId, Timestamp> = self
            .parts
            .accounts
            .retentions()
            .into_iter()
            .map(|(tenant, days)| (tenant, Timestamp(now.0.saturating_sub(u64::from(days).saturating_mul(86_400_000)))))
            .collect();
        let Some(latest) = own.values().max().copied() else { return };
        match self.parts.queue.forget_histories_of(&|tenant| own.get(&tenant).copied(), latest).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "history records past their tenants' retention were removed"),
            Err(error) => tracing::warn!(%error, "history records past their tenants' retention are still there"),
        }
    }

    /// Does both while the daemon lives.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut forgotten = None::<Instant>;
        loop {
            let now = Timestamp::now();
            self.keep(now).await;
            if forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
                forgotten = Some(Instant::now());
                self.forget_old(now).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(KEPT_EVERY) => {}
            }
        }
    }

    async fn suspend(&self, tenant: TenantId, now: Timestamp) -> Result<(), AdminError> {
        let sends = |tenant| self.parts.accounts.tenant(tenant).is_some_and(|known| known.sending == Sending::Allowed);
        if sends(tenant) {
            self.parts.accounts.set_sending(&own_actor(), tenant, Sending::Suspended, now).await?;
        }
        Ok(())
    }
}

fn own_actor() -> Actor {
    Actor::system("deletion of a tenant")
}

fn key(tenant: TenantId) -> Key {
    [&[prefix::TENANCY, b'd'][..], &tenant.0.to_be_bytes()].concat()
}
