//! What people should know without looking for it: a domain that fails, an address that is listed, a webhook that
//! was disabled, a paused SMTP account, a limit that is near, backups that are not made. Per tenant and of the instance, each read or not by
//! whoever asks, and mailed to those who wish it.
//!
//! Recipe: it consumes the event log, and [`Notifications::run`] asks the watches now and then; [`Notifications::list`]
//! and [`Notifications::mark`] are for people. Easy to get wrong: the same trouble is told once in
//! [`TOLD_AGAIN`], however often it is met, and a flood of troubles pushes out the oldest, never memory; and whoever is
//! bound to SMTP accounts or sending domains is told of those alone.

mod heard;
mod mailing;
mod overdue;
mod personal;
mod reset;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::access::{Action, Actor, Permission, Resource};
use crate::background::Shutdown;
use crate::ext::{self, Timestamp};
use crate::mail::{Domain, SmtpAccountId, TenantId, VipId, printable};
use crate::records::{self, AdminError, Damage, Desk};
use crate::store::{Batch, Key, Store, StoreError, after_prefix, codec, prefix};

pub use personal::PERSONAL_KEPT_MAX;
pub use reset::NewPassword;

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use mailing::Outbox;
pub use mailing::{Egress, EgressLookup, GATHERED_MAX, HandIn, MAILED_EVERY, Person, PersonLookup, Post, Wish};
#[doc(hidden)]
pub use overdue::Backups;
pub use overdue::{BackupStanding, Settings};

use mailing::Mailing;
use personal::Personal;

/// Whose notifications those of the instance are. Random tenant ids never become this one in practice.
pub const INSTANCE: TenantId = TenantId(0);
/// Notifications kept of one tenant, at most.
pub const KEPT_MAX: usize = 500;
/// How long one is kept.
pub const KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// The same trouble is told again after this.
pub const TOLD_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// Characters of what is told, at most.
const TEXT_CHARACTERS_MAX: usize = 300;
/// How often watches are asked.
const WATCHED_EVERY: Duration = Duration::from_secs(5 * 60);

/// Names a notification: the milliseconds it was made at, then random octets.
pub type NotificationId = [u8; 16];

/// What it is about. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A sending domain or its return-path is failing, or has failed.
    DomainFailing,
    /// A receiver says that an address is listed.
    AddressListed,
    /// A webhook gets nothing more.
    WebhookDisabled,
    /// An SMTP account is paused.
    AccountPaused,
    /// A limit is nearly reached.
    QuotaNear,
    /// A virtual IP is not on this host.
    AddressMissing,
    /// A record could not be read.
    RecordDamaged,
    /// A backup could not be taken.
    BackupFailed,
    /// No backup was made for too long.
    BackupOverdue,
    /// Somebody did something to a person's way in; told to that person alone.
    LoginSecurity,
}

/// Every kind.
pub const KINDS: &[Kind] = &[
    Kind::DomainFailing,
    Kind::AddressListed,
    Kind::WebhookDisabled,
    Kind::AccountPaused,
    Kind::QuotaNear,
    Kind::AddressMissing,
    Kind::RecordDamaged,
    Kind::BackupFailed,
    Kind::BackupOverdue,
    Kind::LoginSecurity,
];

impl Kind {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::DomainFailing => "domain-failing",
            Self::AddressListed => "address-listed",
            Self::WebhookDisabled => "webhook-disabled",
            Self::AccountPaused => "account-paused",
            Self::QuotaNear => "quota-near",
            Self::AddressMissing => "address-missing",
            Self::RecordDamaged => "record-damaged",
            Self::BackupFailed => "backup-failed",
            Self::BackupOverdue => "backup-overdue",
            Self::LoginSecurity => "login-security",
        }
    }

    /// The kind of that word.
    pub fn called(word: &str) -> Option<Self> {
        KINDS.iter().copied().find(|kind| kind.word() == word)
    }
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// To whom; [`INSTANCE`] is whoever runs it.
    pub tenant: TenantId,
    /// What it is about.
    pub kind: Kind,
    /// The thing: a name or an id.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Its id.
    pub id: NotificationId,
    /// To whom.
    pub tenant: TenantId,
    /// When it was met.
    pub at: Timestamp,
    /// What it is about.
    pub kind: Kind,
    /// The thing.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

impl Notification {
    /// Whether no narrowing keeps it from `actor`. Whoever is bound to sending domains is told of those, and whoever
    /// is bound to SMTP accounts of those and of domains, which his accounts send as. A webhook, an address, the
    /// whole tenant's limits are told apart by neither.
    pub(crate) fn concerns(&self, actor: &Actor) -> bool {
        match self.kind {
            // The subject may say more behind the name.
            Kind::DomainFailing => {
                let name = self.subject.split(' ').next().and_then(|name| Domain::parse(name).ok());
                name.map_or_else(|| is_whole(actor), |name| actor.require_domain(&name).is_ok())
            }
            Kind::AccountPaused | Kind::QuotaNear => {
                let account = self.subject.parse::<SmtpAccountId>().ok();
                account.map_or_else(|| is_whole(actor), |account| actor.has_part_in(Action::Read, Some(account), None))
            }
            _ => is_whole(actor),
        }
    }
}

/// Whether it is bound to no SMTP accounts and no sending domains.
fn is_whole(actor: &Actor) -> bool {
    actor.has_part_in(Action::Read, None, None)
}

/// A notification as somebody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// It.
    pub notification: Notification,
    /// Whether whoever asks has read it.
    pub is_read: bool,
}

/// Whether those that were read are shown too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Only those that were not read.
    Unread,
}

/// Which are marked as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marked {
    /// All there are.
    All,
    /// These.
    These(Vec<NotificationId>),
}

/// Looks for troubles that no event tells of.
pub type Watch = Arc<dyn Fn(Timestamp) -> Vec<News> + Send + Sync>;
/// Whose a virtual IP is, and what it is called.
pub type VipLookup = Arc<dyn Fn(VipId) -> (TenantId, String) + Send + Sync>;

type All = BTreeMap<(TenantId, NotificationId), Notification>;

/// All notifications, in memory.
pub struct Notifications {
    desk: Desk,
    all: Arc<RwLock<All>>,
    personal: Arc<RwLock<Personal>>,
    vips: VipLookup,
    mailing: Arc<RwLock<Mailing>>,
    post: OnceLock<Post>,
    /// Rung when something is owed to somebody.
    owed: Arc<Notify>,
    backups: Arc<RwLock<Option<Backups>>>,
    settings: Settings,
    damaged: Vec<Damage>,
}

impl Notifications {
    /// Reads them.
    pub fn open(store: Arc<dyn Store>, vips: VipLookup) -> Result<Self, StoreError> {
        let (stored, mut damaged) = records::load::<Notification>(&*store, &[prefix::NOTIFICATION, b'n'])?;
        let all = stored.into_iter().map(|(_, one)| ((one.tenant, one.id), one)).collect();
        let (stored, more) =
            records::load::<(crate::mail::UserId, Notification)>(&*store, &[prefix::NOTIFICATION, b'p'])?;
        damaged.extend(more);
        let personal = stored.into_iter().map(|(_, (user, one))| ((user, one.id), one)).collect();
        let (mailing, more) = Mailing::load(&*store)?;
        damaged.extend(more);
        let (backups, more) = overdue::load(&*store)?;
        damaged.extend(more);
        let (all, mailing) = (Arc::new(RwLock::new(all)), Arc::new(RwLock::new(mailing)));
        let personal = Arc::new(RwLock::new(personal));
        let (desk, post, owed) = (Desk::new(store), OnceLock::new(), Arc::default());
        let (backups, settings) = (Arc::new(RwLock::new(backups)), Settings::default());
        Ok(Self { desk, all, personal, vips, mailing, post, owed, backups, settings, damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Those of a tenant, or of the instance, newest first, as far as the actor has a part in what they are about: see
    /// `Notification::concerns`; with them what concerns only the person who asks, if
    /// it is of that tenant.
    pub fn list(&self, actor: &Actor, tenant: TenantId, which: Which) -> Result<Vec<Shown>, AdminError> {
        actor.require(permission(tenant))?;
        let read = self.read_by(actor, tenant)?;
        let shown = self.shown_to(actor, tenant).into_iter();
        let shown = shown.map(|one| Shown { is_read: read.contains(&one.id), notification: one });
        Ok(shown.filter(|shown| which == Which::All || !shown.is_read).collect())
    }

    /// Marks some as read by whoever asks; how many were not before. It is nobody else's matter, so it is not
    /// in the audit log.
    pub async fn mark(&self, actor: &Actor, tenant: TenantId, marked: Marked) -> Result<usize, AdminError> {
        actor.require(permission(tenant))?;
        let turn = self.desk.turn().await;
        let mut read = self.read_by(actor, tenant)?;
        let known: BTreeSet<NotificationId> = self.shown_to(actor, tenant).into_iter().map(|one| one.id).collect();
        read.retain(|id| known.contains(id));
        let before = read.len();
        match marked {
            Marked::All => read = known,
            Marked::These(ids) => read.extend(ids.into_iter().filter(|id| known.contains(id))),
        }
        let mut batch = Batch::new();
        batch.set(read_key(tenant, actor), codec::encode(&read));
        turn.commit(batch, || ()).await?;
        Ok(read.len() - before)
    }

    /// Tells of something, unless it was told within [`TOLD_AGAIN`] before or after.
    pub async fn tell(&self, news: News, at: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let is_near = |other: Timestamp| at.since(other) < TOLD_AGAIN && other.since(at) < TOLD_AGAIN;
        let is_told = records::read(&self.all)
            .range(bounds(news.tenant))
            .any(|(_, one)| one.kind == news.kind && one.subject == news.subject && is_near(one.at));
        if is_told {
            return Ok(());
        }
        let (batch, told) = self.telling(news, at);
        turn.commit(batch, told).await?;
        Ok(())
    }

    /// What tells of something and makes room for it, and what is to be remembered then. Called under the turn.
    fn telling(&self, news: News, at: Timestamp) -> (Batch, impl FnOnce() + Send + use<>) {
        let News { tenant, kind, subject, text } = news;
        let gone: Vec<NotificationId> = {
            let all = records::read(&self.all);
            let own: Vec<&Notification> = all.range(bounds(tenant)).map(|(_, one)| one).collect();
            let excess = own.len().saturating_sub(KEPT_MAX - 1);
            let gone = own.iter().enumerate().filter(|(place, one)| *place < excess || at.since(one.at) > KEPT);
            gone.map(|(_, one)| one.id).collect()
        };
        let text = printable(&text.chars().take(TEXT_CHARACTERS_MAX).collect::<String>());
        let one = Notification { id: new_id(at), tenant, at, kind, subject, text };
        let mut batch = Batch::new();
        batch.set(key(tenant, one.id), codec::encode(&one));
        for id in &gone {
            batch.remove(key(tenant, *id));
        }
        let outboxes = self.owe(&mut batch, &one);
        let (all, mailing, owed) = (Arc::clone(&self.all), Arc::clone(&self.mailing), Arc::clone(&self.owed));
        let told = move || {
            let mut all = records::write(&all);
            for id in gone {
                all.remove(&(tenant, id));
            }
            all.insert((tenant, one.id), one);
            if !outboxes.is_empty() {
                records::write(&mailing).remember(outboxes);
                owed.notify_one();
            }
        };
        (batch, told)
    }

    /// Asks the watches while the daemon lives.
    pub async fn run(&self, watches: Vec<Watch>, shutdown: Shutdown) {
        let never = Notify::new();
        crate::background::periodically(WATCHED_EVERY, &never, &shutdown, || async {
            let now = Timestamp::now();
            for news in watches.iter().flat_map(|watch| watch(now)) {
                if let Err(error) = self.tell(news, now).await {
                    tracing::warn!(%error, "a notification could not be written");
                }
            }
            if let Err(error) = self.look_for_backups(now).await {
                tracing::warn!(%error, "whether backups are made could not be noted");
            }
        })
        .await;
    }

    /// Forgets what a tenant that is deleted was told.
    pub async fn forget_tenant(&self, tenant: TenantId) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        for kind in [b'n', b'r'] {
            let own = [&[prefix::NOTIFICATION, kind][..], &tenant.0.to_be_bytes()].concat();
            let mut from = own.clone();
            loop {
                let page = self.desk.store().range(&from, &after_prefix(&own), KEPT_MAX)?;
                let Some((last, _)) = page.last() else { break };
                from = [&last[..], &[0]].concat();
                page.into_iter().for_each(|(key, _)| batch.changes.push(crate::store::Change::Remove(key)));
            }
        }
        let all = Arc::clone(&self.all);
        turn.commit(batch, move || records::write(&all).retain(|(of, _), _| *of != tenant)).await?;
        // Its people were removed before.
        self.forget_gone().await
    }

    /// What an actor who may read a tenant's sees, newest first.
    fn shown_to(&self, actor: &Actor, tenant: TenantId) -> Vec<Notification> {
        let mut shown: Vec<Notification> =
            records::read(&self.all).range(bounds(tenant)).map(|(_, one)| one.clone()).collect();
        shown.retain(|one| one.concerns(actor));
        if actor.role.tenant().unwrap_or(INSTANCE) == tenant {
            shown.extend(self.personal_of(actor));
        }
        shown.sort_by_key(|one| std::cmp::Reverse(one.id));
        shown
    }

    fn read_by(&self, actor: &Actor, tenant: TenantId) -> Result<BTreeSet<NotificationId>, AdminError> {
        let bytes = self.desk.store().get(&read_key(tenant, actor))?;
        Ok(bytes.map(|bytes| codec::decode(&bytes)).transpose()?.unwrap_or_default())
    }
}

fn permission(tenant: TenantId) -> Permission {
    if tenant == INSTANCE { Permission::ReadInstance } else { Permission::Read(Resource::Tenant, tenant) }
}

fn bounds(tenant: TenantId) -> std::ops::RangeInclusive<(TenantId, NotificationId)> {
    (tenant, [0; 16])..=(tenant, [u8::MAX; 16])
}

fn new_id(at: Timestamp) -> NotificationId {
    let mut octets = ext::random_bytes::<16>();
    octets[..6].copy_from_slice(&at.0.to_be_bytes()[2..]);
    octets
}

fn key(tenant: TenantId, id: NotificationId) -> Key {
    [&[prefix::NOTIFICATION, b'n'][..], &tenant.0.to_be_bytes(), &id].concat()
}

/// Who has read what: by a digest of the name, so that the store shows no name.
fn read_key(tenant: TenantId, actor: &Actor) -> Key {
    let digest = Sha256::digest(actor.name.as_bytes());
    [&[prefix::NOTIFICATION, b'r'][..], &tenant.0.to_be_bytes(), digest.get(..16).unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests;
