//! What people do with webhooks: make, change, rotate, test, replay, look, remove.
//!
//! Easy to get wrong: a secret is shown in the answer that made it and nowhere else; and an endpoint that is
//! enabled again is told of what happens from then on, not of everything it missed.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::attempt::{self, Lines};
use super::kind::Kind;
use super::record::{self, After, Attempt, BasicLogin, Pending, Progress, Replay, Secret, Standing, Webhook};
use super::resealing::{password_purpose, secret_purpose};
use super::{BATCH_MAX, Handle, Order, WEBHOOKS_MAX, Webhooks, lane, remove_all, replay, signature};
use crate::access::{Action, Actor, Permission, Resource};
use crate::events::{self, Event, EventKind, InstanceEvent};
use crate::ext::{self, Timestamp};
use crate::mail::{TenantId, WebhookId, printable};
use crate::net::Target;
use crate::records::{self, Act, AdminError, Turn};
use crate::store::{Batch, CommitError, Key, StoreError, after_prefix, codec};

/// How long an old secret stays good after a rotation, if nobody says.
pub const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// How long it may stay good, at most.
pub const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Characters of a name, at most; the rest is cut.
const NAME_CHARACTERS_MAX: usize = 200;
/// Octets of a user name or password, at most.
const LOGIN_OCTETS_MAX: usize = 500;

/// A login by basic authentication, to be stored.
#[derive(Clone)]
pub struct NewLogin {
    /// The user name; it has no colon in it.
    pub user: String,
    /// The password.
    pub password: Zeroizing<String>,
}

/// A webhook to be made.
#[derive(Clone)]
pub struct NewWebhook {
    /// For people.
    pub name: String,
    /// Where requests go.
    pub url: String,
    /// Where they go when that one does not take them.
    pub secondary_url: Option<String>,
    /// What it is told of.
    pub kinds: Vec<Kind>,
    /// Events in one request, at most.
    pub batch: u16,
    /// What it asks for beside the signature.
    pub login: Option<NewLogin>,
}

/// What is to change; `None` stays as it is.
#[derive(Clone, Default)]
pub struct WebhookChange {
    /// For people.
    pub name: Option<String>,
    /// Where requests go.
    pub url: Option<String>,
    /// Where they go when that one does not take them.
    pub secondary_url: Option<Option<String>>,
    /// What it is told of.
    pub kinds: Option<Vec<Kind>>,
    /// Events in one request, at most.
    pub batch: Option<u16>,
    /// What it asks for beside the signature.
    pub login: Option<Option<NewLogin>>,
    /// Whether it is told anything.
    pub is_enabled: Option<bool>,
}

/// A webhook with its secret, which is shown this once.
pub struct Made {
    /// What is kept.
    pub webhook: Arc<Webhook>,
    /// What the receiver verifies with: `whsec_...`.
    pub secret: Zeroizing<String>,
}

/// What is known of a webhook beside its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// How far its lane has come, and how it does.
    pub progress: Progress,
    /// Requests that wait to be made again.
    pub waiting: usize,
    /// Whether a window is being replayed.
    pub is_replaying: bool,
}

fn act_on(name: &str, webhook: &Webhook) -> Act {
    Act::new(name, format!("webhook {}", webhook.id)).of(webhook.tenant)
}

/// What the audit log says of one: the host, but not the rest of an address, which may hold secrets.
fn facts(webhook: &Webhook) -> Vec<(&'static str, String)> {
    let host = |url: &str| Target::parse(url).map_or_else(|_| "unreadable".to_owned(), |target| target.host());
    let kinds: Vec<&str> = webhook.kinds.iter().map(|kind| kind.name()).collect();
    vec![
        ("name", webhook.name.clone()),
        ("host", host(&webhook.url)),
        ("secondary_host", webhook.secondary_url.as_deref().map(host).unwrap_or_default()),
        ("events", kinds.join(" ")),
        ("batch", webhook.batch.to_string()),
        ("user", webhook.login.as_ref().map(|login| login.user.clone()).unwrap_or_default()),
        ("enabled", webhook.is_enabled().to_string()),
        ("secrets", webhook.secrets.len().to_string()),
    ]
}

fn shortened(name: &str) -> String {
    printable(name).chars().take(NAME_CHARACTERS_MAX).collect()
}

impl Webhooks {
    /// Makes one. Its secret is shown this once.
    ///
    /// # Errors
    /// If the actor may not, there are [`WEBHOOKS_MAX`] already, or a value is not acceptable.
    pub async fn add(
        &self,
        actor: &Actor,
        tenant: TenantId,
        new: NewWebhook,
        now: Timestamp,
    ) -> Result<Made, AdminError> {
        require(actor, tenant, Action::Write)?;
        actor.require_fresh(now)?;
        let (id, octets) = (WebhookId::random(), signature::new_secret());
        let mut webhook = Webhook {
            id,
            tenant,
            name: shortened(&new.name),
            url: new.url,
            secondary_url: new.secondary_url,
            kinds: new.kinds,
            batch: new.batch,
            secrets: vec![self.sealed(id, &octets)],
            login: None,
            standing: Standing::Enabled,
            created: now,
            created_by: actor.name.clone(),
        };
        webhook.login = self.sealed_login(id, new.login)?;
        self.check(&mut webhook)?;
        let turn = self.desk.turn().await;
        if self.of_tenant(tenant).len() >= WEBHOOKS_MAX {
            return Err(AdminError::Invalid(format!("a tenant has at most {WEBHOOKS_MAX} webhooks")));
        }
        let mut batch = Batch::new();
        batch.if_absent(record::webhook_key(id)).set(record::webhook_key(id), codec::encode(&webhook));
        self.begin_now(&mut batch, id);
        let act = act_on("webhook.add", &webhook);
        let act = facts(&webhook).into_iter().fold(act, |act, (field, value)| act.changed(field, None, Some(value)));
        records::record(&mut batch, actor, act, now);
        let handle = Handle::new(webhook.clone());
        let (handles, changed) = (Arc::clone(&self.handles), Arc::clone(&self.changed));
        turn.commit(batch, move || {
            records::write(&handles).insert(id, handle);
            changed.notify_one();
        })
        .await?;
        Ok(Made { webhook: Arc::new(webhook), secret: signature::text(&octets) })
    }

    /// Those of a tenant, by name.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn list(&self, actor: &Actor, tenant: TenantId) -> Result<Vec<Arc<Webhook>>, AdminError> {
        require(actor, tenant, Action::Read)?;
        Ok(self.of_tenant(tenant))
    }

    /// One of a tenant.
    ///
    /// # Errors
    /// If the actor may not, or there is none.
    pub fn one(
        &self,
        actor: &Actor,
        (tenant, id): (TenantId, WebhookId),
        action: Action,
    ) -> Result<Arc<Webhook>, AdminError> {
        require(actor, tenant, action)?;
        let found = self.webhook(id).filter(|webhook| webhook.tenant == tenant);
        found.ok_or_else(|| AdminError::Missing(format!("webhook {id}")))
    }

    /// How one does. Blocks on the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn doing(&self, id: WebhookId) -> Result<Doing, AdminError> {
        let store = self.desk.store();
        let progress = store.get(&record::progress_key(id))?.map(|bytes| codec::decode(&bytes)).transpose()?;
        let all = record::pendings(id);
        let waiting = store.range(&all, &after_prefix(&all), usize::MAX)?.len();
        let is_replaying = store.get(&record::replay_key(id))?.is_some();
        Ok(Doing { progress: progress.unwrap_or_default(), waiting, is_replaying })
    }

    /// Changes one.
    ///
    /// # Errors
    /// If the actor may not, or a value is not acceptable.
    pub async fn change(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<Arc<Webhook>, AdminError> {
        let login = change.login.map(|login| self.sealed_login(which.1, login)).transpose()?;
        self.alter((actor, now), which, "webhook.change", |webhook| {
            if let Some(name) = &change.name {
                webhook.name = shortened(name);
            }
            webhook.url = change.url.unwrap_or(webhook.url.clone());
            webhook.secondary_url = change.secondary_url.unwrap_or(webhook.secondary_url.clone());
            webhook.kinds = change.kinds.unwrap_or(webhook.kinds.clone());
            webhook.batch = change.batch.unwrap_or(webhook.batch);
            webhook.login = login.unwrap_or(webhook.login.clone());
            match (change.is_enabled, webhook.is_enabled()) {
                (Some(true), false) => webhook.standing = Standing::Enabled,
                (Some(false), true) => {
                    webhook.standing = Standing::Disabled { at: now, reason: format!("by {}", actor.name) };
                }
                _ => {}
            }
            Ok(())
        })
        .await
    }

    /// Gives one a new secret; the old one stays good for `overlap`.
    ///
    /// # Errors
    /// If the actor may not, or the overlap is longer than [`OVERLAP_MAX`].
    pub async fn rotate(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        overlap: Duration,
        now: Timestamp,
    ) -> Result<Made, AdminError> {
        if overlap > OVERLAP_MAX {
            return Err(AdminError::field(
                "overlap_hours",
                format!("the overlap is at most {} days", OVERLAP_MAX.as_secs() / 86_400),
            ));
        }
        let octets = signature::new_secret();
        let sealed = self.sealed(which.1, &octets);
        let webhook = self
            .alter((actor, now), which, "webhook.rotate", |webhook| {
                webhook.secrets.truncate(1);
                for old in &mut webhook.secrets {
                    old.expires = Some(now.plus(overlap));
                }
                webhook.secrets.insert(0, sealed);
                Ok(())
            })
            .await?;
        Ok(Made { webhook, secret: signature::text(&octets) })
    }

    /// Removes one, and everything known of it.
    ///
    /// # Errors
    /// If the actor may not, or there is none.
    pub async fn remove(
        &self,
        actor: &Actor,
        (tenant, id): (TenantId, WebhookId),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let webhook = self.one(actor, (tenant, id), Action::Write)?;
        actor.require_fresh(now)?;
        let mut batch = Batch::new();
        batch.if_equals(record::webhook_key(id), codec::encode(&*webhook)).remove(record::webhook_key(id));
        batch.remove(record::progress_key(id)).remove(record::replay_key(id));
        records::record(&mut batch, actor, act_on("webhook.remove", &webhook), now);
        let (handles, changed) = (Arc::clone(&self.handles), Arc::clone(&self.changed));
        turn.commit(batch, move || {
            if let Some(handle) = records::write(&handles).remove(&id) {
                handle.removed.cancel();
            }
            changed.notify_one();
        })
        .await?;
        for below in record::MANY {
            // What is left after a failure is removed at the next start.
            remove_all(&self.shared, &record::many(below, Some(id))).await?;
        }
        Ok(())
    }

    /// Makes one request that says it is a test, at once; what became of it at each address.
    ///
    /// # Errors
    /// If the actor may not. A receiver that does not take it is no error.
    pub async fn test(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        now: Timestamp,
    ) -> Result<Vec<(Key, Attempt)>, AdminError> {
        let webhook = self.one(actor, which, Action::Write)?;
        let id = format!("test_{}", ext::base32(&ext::random_bytes::<10>()));
        let names = &self.shared.parts.names;
        let request = Pending { attempts: 1, ..replay::test(names, &webhook, id, now) };
        let tried = attempt::carry_out(&self.shared, &webhook, &Lines::default(), &request).await;
        let after = if tried.iter().any(attempt::Tried::is_success) { After::Done } else { After::GivenUp };
        let rows = lane::attempts(webhook.id, &request, &tried, after);
        let mut batch = Batch::new();
        for (key, attempt) in &rows {
            batch.set(key.clone(), codec::encode(attempt));
        }
        let current = self.webhook(webhook.id).ok_or_else(|| AdminError::Missing(format!("webhook {}", which.1)))?;
        batch.if_equals(record::webhook_key(webhook.id), codec::encode(&*current));
        let act = act_on("webhook.test", &webhook).changed("taken", None, Some((after == After::Done).to_string()));
        records::record(&mut batch, actor, act, now);
        self.shared.commit(batch).await?;
        Ok(rows)
    }

    /// Attempts, newest first: a page of at most `limit` behind `after`. Blocks on the disk.
    ///
    /// # Errors
    /// If the actor may not, or the store cannot be read.
    pub fn attempts(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Attempt)>, AdminError> {
        let webhook = self.one(actor, which, Action::Read)?;
        let all = record::attempts(webhook.id);
        let from = match after {
            None => all.clone(),
            Some(name) => {
                let mut key = attempt_key(webhook.id, name)?;
                key.push(0);
                key
            }
        };
        let found = self.desk.store().range(&from, &after_prefix(&all), limit)?;
        let readable = found.into_iter().filter_map(|(key, bytes)| match codec::decode(&bytes) {
            Ok(attempt) => Some((key, attempt)),
            Err(error) => {
                records::set_aside(&key, &error.to_string());
                None
            }
        });
        Ok(readable.collect())
    }

    /// Makes the request of a past attempt again, now and by the plan; with the id it had.
    ///
    /// # Errors
    /// If the actor may not, the endpoint is disabled, or the event is no longer kept.
    pub async fn replay_one(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        name: &str,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let webhook = self.told(actor, which)?;
        let missing = || AdminError::Missing(format!("attempt {name}"));
        let key = attempt_key(webhook.id, name)?;
        let bytes = self.desk.store().get(&key)?.ok_or_else(missing)?;
        let attempt: Attempt = codec::decode(&bytes)?;
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&webhook));
        let made = tokio::task::spawn_blocking(move || replay::again(&shared, &own, &attempt)).await;
        let made = made.map_err(|error| StoreError::Failed(error.to_string()))?.map_err(AdminError::Invalid)?;
        let (own, made) = (record::new_pending_key(webhook.id), Pending { due: now, ..made });
        let mut batch = Batch::new();
        batch.set(own.clone(), codec::encode(&made));
        records::record(&mut batch, actor, act_on("webhook.replay", &webhook), now);
        self.ordered(&webhook, batch, Order::Send(own, made)).await
    }

    /// Sends every event of a window again that the endpoint would be told of today.
    ///
    /// # Errors
    /// If the actor may not, the endpoint is disabled, the window is empty, or another one is being replayed.
    pub async fn replay_window(
        &self,
        actor: &Actor,
        which: (TenantId, WebhookId),
        (from, to): (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let webhook = self.told(actor, which)?;
        if from >= to {
            return Err(AdminError::Invalid("the window ends before it begins".to_owned()));
        }
        let shared = Arc::clone(&self.shared);
        let made = tokio::task::spawn_blocking(move || replay::window(&shared, from, to)).await;
        let made: Replay = made.map_err(|error| StoreError::Failed(error.to_string()))??;
        let mut batch = Batch::new();
        let key = record::replay_key(webhook.id);
        batch.if_absent(key.clone()).set(key, codec::encode(&made));
        let window = format!("{} to {}", from.rfc3339(), to.rfc3339());
        let act = act_on("webhook.replay", &webhook).changed("window", None, Some(window));
        records::record(&mut batch, actor, act, now);
        match self.ordered(&webhook, batch, Order::Replay(made)).await {
            Err(AdminError::Commit(CommitError::Conflict)) => {
                Err(AdminError::Exists("a replay of a window of this webhook".to_owned()))
            }
            other => other,
        }
    }

    /// Stops telling one anything, because of `reason`, and says so in the event log.
    pub(super) async fn disable(&self, id: WebhookId, reason: String, now: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let Some(before) = self.webhook(id).filter(|webhook| webhook.is_enabled()) else { return Ok(()) };
        let mut webhook = Webhook::clone(&before);
        webhook.standing = Standing::Disabled { at: now, reason: reason.clone() };
        let mut batch = Batch::new();
        let told = InstanceEvent::WebhookDisabled { tenant: webhook.tenant, webhook: id, reason };
        events::record(&mut batch, &Event { at: now, kind: EventKind::Instance(told) });
        let actor = Actor::system("a webhook that fails");
        let act = act_on("webhook.disable", &webhook).changes(facts(&before), facts(&webhook));
        records::record(&mut batch, &actor, act, now);
        self.keep(turn, batch, (&before, webhook)).await?;
        self.shared.parts.bell.ring();
        Ok(())
    }

    /// The endpoint as it is now.
    pub(super) fn webhook(&self, id: WebhookId) -> Option<Arc<Webhook>> {
        records::read(&self.handles).get(&id).map(|handle| handle.now())
    }

    fn of_tenant(&self, tenant: TenantId) -> Vec<Arc<Webhook>> {
        let handles = records::read(&self.handles);
        let mut own: Vec<_> = handles.values().map(|handle| handle.now()).filter(|own| own.tenant == tenant).collect();
        own.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        own
    }

    /// One that may be changed and is told things.
    fn told(&self, actor: &Actor, which: (TenantId, WebhookId)) -> Result<Arc<Webhook>, AdminError> {
        let webhook = self.one(actor, which, Action::Write)?;
        if !webhook.is_enabled() {
            return Err(AdminError::Invalid(format!("webhook {} is disabled: enable it first", webhook.id)));
        }
        Ok(webhook)
    }

    /// Stores an order, then tells the lane.
    async fn ordered(&self, webhook: &Webhook, batch: Batch, order: Order) -> Result<(), AdminError> {
        let missing = || AdminError::Missing(format!("webhook {}", webhook.id));
        let turn = self.desk.turn().await;
        let handle = records::read(&self.handles).get(&webhook.id).cloned().ok_or_else(missing)?;
        Ok(turn.commit(batch, move || handle.order(order)).await?)
    }

    async fn alter(
        &self,
        (actor, now): (&Actor, Timestamp),
        which: (TenantId, WebhookId),
        act: &str,
        change: impl FnOnce(&mut Webhook) -> Result<(), AdminError> + Send,
    ) -> Result<Arc<Webhook>, AdminError> {
        let turn = self.desk.turn().await;
        let before = self.one(actor, which, Action::Write)?;
        actor.require_fresh(now)?;
        let mut webhook = Webhook::clone(&before);
        change(&mut webhook)?;
        self.check(&mut webhook)?;
        let mut batch = Batch::new();
        if webhook.is_enabled() && !before.is_enabled() {
            self.begin_now(&mut batch, webhook.id);
        }
        records::record(&mut batch, actor, act_on(act, &webhook).changes(facts(&before), facts(&webhook)), now);
        self.keep(turn, batch, (&before, webhook)).await
    }

    async fn keep(
        &self,
        turn: Turn,
        mut batch: Batch,
        (before, webhook): (&Webhook, Webhook),
    ) -> Result<Arc<Webhook>, AdminError> {
        let (key, webhook) = (record::webhook_key(webhook.id), Arc::new(webhook));
        batch.if_equals(key.clone(), codec::encode(before)).set(key, codec::encode(&*webhook));
        let (handles, own) = (Arc::clone(&self.handles), Arc::clone(&webhook));
        turn.commit(batch, move || {
            if let Some(handle) = records::read(&handles).get(&own.id) {
                handle.webhook.send_replace(own);
            }
        })
        .await?;
        Ok(webhook)
    }

    /// From what happens next on.
    fn begin_now(&self, batch: &mut Batch, id: WebhookId) {
        let progress = Progress { at: self.shared.feed.until(), ..Progress::default() };
        batch.set(record::progress_key(id), codec::encode(&progress));
    }

    fn sealed(&self, id: WebhookId, octets: &[u8]) -> Secret {
        let key = &self.shared.parts.key;
        Secret { sealed: key.seal(&secret_purpose(id), octets), expires: None }
    }

    fn sealed_login(&self, id: WebhookId, login: Option<NewLogin>) -> Result<Option<BasicLogin>, AdminError> {
        let Some(NewLogin { user, password }) = login else { return Ok(None) };
        for (what, text) in [("user", user.as_str()), ("password", password.as_str())] {
            if text.is_empty() || text.len() > LOGIN_OCTETS_MAX || text.chars().any(char::is_control) {
                let limit = format!("{what} must have 1 to {LOGIN_OCTETS_MAX} octets and no control characters");
                return Err(AdminError::field(what, limit));
            }
        }
        if user.contains(':') {
            return Err(AdminError::field("user", "user must have no colon in it (RFC 7617)".to_owned()));
        }
        let key = &self.shared.parts.key;
        Ok(Some(BasicLogin { user, sealed_password: key.seal(&password_purpose(id), password.as_bytes()) }))
    }

    fn check(&self, webhook: &mut Webhook) -> Result<(), AdminError> {
        let reach = self.shared.parts.settings.reach;
        let mut checks = Vec::new();
        for (field, url) in [("url", Some(&webhook.url)), ("secondary_url", webhook.secondary_url.as_ref())] {
            let Some(url) = url else { continue };
            let checked = Target::parse(url).and_then(|target| target.check(reach));
            checks.push(checked.map_err(|error| AdminError::field(field, format!("{field} {error}"))));
        }
        if !(1..=BATCH_MAX).contains(&webhook.batch) {
            checks.push(Err(AdminError::field("batch", format!("batch must be from 1 to {BATCH_MAX}"))));
        }
        webhook.kinds.sort_unstable();
        webhook.kinds.dedup();
        if webhook.kinds.is_empty() {
            checks.push(Err(AdminError::field("events", "events must name at least one kind")));
        }
        records::all_of(checks)
    }
}

/// An endpoint is told of all of a tenant's mail, so nobody who is narrowed to some of it has a part in one.
fn require(actor: &Actor, tenant: TenantId, action: Action) -> Result<(), AdminError> {
    Ok(actor.require_part(Permission::of(Resource::Webhooks, Some(tenant), action), None)?)
}

fn attempt_key(id: WebhookId, name: &str) -> Result<Key, AdminError> {
    record::attempt_called(id, name).ok_or_else(|| AdminError::Missing(format!("attempt {name}")))
}
