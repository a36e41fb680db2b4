//! The pace of what leaves, kept: limits that operators set, and what controllers and warm-ups have
//! come to, both in the store; and the hands of dispatcher and operators on the one [`Pacer`].
//!
//! Recipe: [`Pacing::open`]; the dispatcher asks and tells; [`Pacing::keep`] writes what changed.
//! Easy to get wrong: times are the queue's, so that a restart or a jump of the wall clock neither
//! ends a pause nor begins a day of a warm-up again. The lock is held for moments, never over a wait.

mod complaints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use complaints::Complaints;

use super::Settings;
use super::shaping::{
    Answer, Ask, Hold, Knob, LimitScope, LimitSet, Memory, Override, Pacer, Path, Permit, Picture, Providers, Quota,
    Signal, Step, Target, Warmup,
};
use crate::access::{Actor, Permission};
use crate::background::{Shutdown, after_changes};
use crate::events::{Event, EventKind, InstanceEvent, record};
use crate::ext::Timestamp;
use crate::mail::{Class, Domain, TenantId, VipId};
use crate::metrics;
use crate::queue::{QueueTime, WaitsFor};
use crate::records::{self, AdminError, Damage, Desk};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Recipient domains whose site is remembered, so that people may name a site by them.
const KNOWN_MAX: usize = 50_000;
/// Overrides, at most.
pub const OVERRIDES_MAX: usize = 10_000;
/// What changed is written at least this far apart.
const WRITE_GAP: Duration = Duration::from_secs(1);
/// Sites written in one batch, at most.
const WRITTEN_MAX: usize = 500;

/// As stored under `z s`: which site, and what became of it.
#[derive(Serialize, Deserialize)]
pub struct Record {
    site: String,
    vip: VipId,
    memory: Memory,
}

/// The pace of everything that leaves.
pub struct Pacing {
    desk: Desk,
    pacer: Arc<Mutex<Pacer>>,
    known: Mutex<HashMap<Domain, Arc<str>>>,
    told: Mutex<Vec<InstanceEvent>>,
    changed: Notify,
    released: Notify,
    damaged: Vec<Damage>,
}

impl Pacing {
    /// Reads what operators set and what was learnt. `now` is the queue's time.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(store: Arc<dyn Store>, settings: &Settings, now: QueueTime) -> Result<Self, StoreError> {
        let (overrides, mut damaged) = records::load::<Override>(&*store, &[prefix::SHAPING, b'o'])?;
        let overrides = overrides.into_iter().map(|(_, set)| set).collect();
        let mut pacer = Pacer::new(Arc::clone(&settings.providers), defaults(settings), overrides);
        let (learnt, more) = records::load::<Record>(&*store, &[prefix::SHAPING, b's'])?;
        damaged.extend(more);
        for (_, Record { site, vip, memory }) in learnt {
            pacer.remember(Path { site: site.into(), vip }, memory, now);
        }
        Ok(Self {
            desk: Desk::new(store),
            pacer: Arc::new(Mutex::new(pacer)),
            known: Mutex::default(),
            told: Mutex::default(),
            changed: Notify::new(),
            released: Notify::new(),
            damaged,
        })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    fn pacer(&self) -> MutexGuard<'_, Pacer> {
        records::lock(&self.pacer)
    }

    /// Other settings from now on.
    pub(super) fn adopt(&self, settings: &Settings) {
        self.pacer().set_limits(Arc::clone(&settings.providers), defaults(settings));
    }

    /// Mail to this domain goes to that site.
    pub(super) fn leads_to(&self, domain: &Domain, site: &Arc<str>) {
        let mut known = records::lock(&self.known);
        if known.get(domain).is_none_or(|old| old != site) {
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(domain.clone(), Arc::clone(site));
        }
    }

    /// The provider a domain's mail goes to, if it is known to go to one.
    pub fn provider_of(&self, domain: &Domain) -> Option<Arc<str>> {
        let site = records::lock(&self.known).get(domain).cloned()?;
        self.pacer().providers().named(&site).map(|provider| Arc::clone(&provider.name))
    }

    /// The site a domain's mail goes to, if that was seen or is in the list of providers.
    pub fn site_of(&self, domain: &Domain) -> Option<Arc<str>> {
        let seen = records::lock(&self.known).get(domain).cloned();
        seen.or_else(|| {
            let providers = self.providers();
            providers.of_domain(domain.as_str()).map(|provider| Arc::clone(&provider.name))
        })
    }

    /// Orders what waits by whose turn it is.
    pub(super) fn order<T>(&self, waiting: &mut Vec<T>, facts: impl Fn(&T) -> (Path, TenantId, Class)) {
        self.pacer().turns.order(waiting, facts);
    }

    /// Weights that tenants have at every site; the others' is 1.
    pub(super) fn weights(&self) -> HashMap<TenantId, u32> {
        self.pacer().weights()
    }

    pub(super) fn admit(&self, ask: &Ask<'_>, now: QueueTime) -> Answer {
        let answer = self.pacer().admit(ask, now);
        if let Answer::Wait(hold, _) = &answer {
            ::metrics::counter!(metrics::HELD_BACK, "by" => hold.kind()).increment(1);
        }
        answer
    }

    pub(super) fn takes_overflow(&self, path: &Path, now: QueueTime) -> bool {
        self.pacer().takes_overflow(path, now)
    }

    pub(super) fn overflowed(&self, path: &Path, count: u64) {
        self.pacer().overflowed(path, u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn connections_max(&self, path: &Path) -> usize {
        usize::try_from(self.pacer().connections_max(path)).unwrap_or(usize::MAX)
    }

    /// When a site said that this address is listed, if mail to it is parked for that.
    pub(super) fn listed_since(&self, path: &Path) -> Option<QueueTime> {
        self.pacer().listed_since(path)
    }

    pub(super) fn finished(&self, path: &Path, permit: &Permit, used: Quota, now: QueueTime) {
        self.pacer().finished(path, permit, used, now);
        self.changed.notify_one();
    }

    /// Learns from what a site said; a step that was made becomes an event.
    pub(super) fn hear(&self, path: &Path, signal: Signal, now: QueueTime) {
        let (step, rate) = {
            let mut pacer = self.pacer();
            let step = pacer.hear(path, signal, now);
            (step, pacer.rate(path))
        };
        let (site, vip) = (path.site.to_string(), path.vip);
        let event = match step {
            None | Some(Step::Raised) => None,
            Some(Step::Slowed(reply)) => {
                tracing::warn!(%vip, site, reply, "sending more slowly");
                Some(InstanceEvent::SiteSlowed { vip, site, per_minute: rate, reply })
            }
            Some(Step::Recovered) => Some(InstanceEvent::SiteRecovered { vip, site }),
            Some(Step::Parked(until, reply)) => {
                let secs = until.since(now).as_secs();
                tracing::warn!(%vip, site, secs, reply, "nothing is sent for now: our address is listed");
                Some(InstanceEvent::SiteParked { vip, site, secs, reply })
            }
        };
        if let Some(event) = event {
            let name = match &event {
                InstanceEvent::SiteSlowed { .. } => "slowed",
                InstanceEvent::SiteParked { .. } => "parked",
                _ => "recovered",
            };
            ::metrics::counter!(metrics::SITE_STEPS, "step" => name).increment(1);
            records::lock(&self.told).push(event);
        }
        self.changed.notify_one();
    }

    pub(super) fn forget_quiet(&self, now: QueueTime) {
        self.pacer().forget_quiet(now);
    }

    /// Resolves when an operator changed something that mail may wait for.
    pub(super) async fn nudged(&self) {
        self.released.notified().await;
    }

    /// The site people mean: a provider's name, a recipient domain, or a site's own name.
    pub fn site_called(&self, text: &str) -> Option<Arc<str>> {
        let text = text.to_ascii_lowercase();
        {
            let pacer = self.pacer();
            let providers = pacer.providers();
            if let Some(provider) = providers.named(&text).or_else(|| providers.of_domain(&text)) {
                return Some(Arc::clone(&provider.name));
            }
            let of_override = |set: &&Override| set.scope.target == Target::Site(text.clone());
            if let Some(path) = pacer.paths().into_iter().find(|path| *path.site == *text) {
                return Some(path.site);
            }
            if pacer.overrides().iter().any(|set| of_override(&set)) {
                return Some(text.into());
            }
        }
        let domain = Domain::parse(&text).ok()?;
        records::lock(&self.known).get(&domain).cloned()
    }

    /// The providers it knows.
    pub fn providers(&self) -> Arc<Providers> {
        Arc::clone(self.pacer().providers())
    }

    /// Every site and virtual IP that is known now, with what holds it.
    pub fn sites(&self, actor: &Actor, now: QueueTime) -> Result<Vec<(Path, Picture)>, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let mut pacer = self.pacer();
        let paths = pacer.paths();
        Ok(paths.into_iter().map(|path| (path.clone(), pacer.picture(&path, now))).collect())
    }

    /// All of one site as one virtual IP sees it.
    pub fn site(&self, actor: &Actor, path: &Path, now: QueueTime) -> Result<Picture, AdminError> {
        actor.require(Permission::ManageInstance)?;
        Ok(self.pacer().picture(path, now))
    }

    /// Limits operators set.
    pub fn overrides(&self, actor: &Actor) -> Result<Vec<Override>, AdminError> {
        actor.require(Permission::ManageInstance)?;
        Ok(self.pacer().overrides().to_vec())
    }

    /// Sets limits of a scope; those it does not name stay as they were set before.
    pub async fn set(&self, actor: &Actor, asked: Override, now: Timestamp) -> Result<Override, AdminError> {
        actor.require(Permission::ManageInstance)?;
        check(&asked)?;
        let turn = self.desk.turn().await;
        let mut overrides = self.pacer().overrides().to_vec();
        let count = overrides.len();
        let merged = match overrides.iter_mut().find(|known| known.scope == asked.scope) {
            Some(known) => {
                for knob in Knob::ALL {
                    if let Some(value) = asked.limits.get(knob) {
                        known.limits.set(knob, Some(value));
                    }
                }
                known.weight = asked.weight.or(known.weight);
                known.clone()
            }
            None if count >= OVERRIDES_MAX => {
                return Err(AdminError::Invalid(format!(
                    "{OVERRIDES_MAX} limits are set already, the most there may be"
                )));
            }
            None => {
                overrides.push(asked.clone());
                asked
            }
        };
        let mut batch = Batch::new();
        batch.set(override_key(&merged.scope), codec::encode(&merged));
        records::audit(&mut batch, actor, "site.set", describe(&merged), now);
        let pacer = Arc::clone(&self.pacer);
        turn.commit(batch, move || records::lock(&pacer).set_overrides(overrides)).await?;
        self.released.notify_one();
        Ok(merged)
    }

    /// Takes back the limits of a scope.
    pub async fn clear(&self, actor: &Actor, scope: &LimitScope, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut overrides = self.pacer().overrides().to_vec();
        let found = overrides.iter().position(|known| known.scope == *scope);
        let found = found.ok_or_else(|| AdminError::Missing(format!("limit set for {}", scope_words(scope))))?;
        let gone = overrides.remove(found);
        let mut batch = Batch::new();
        batch.remove(override_key(scope));
        records::audit(&mut batch, actor, "site.clear", describe(&gone), now);
        let pacer = Arc::clone(&self.pacer);
        turn.commit(batch, move || records::lock(&pacer).set_overrides(overrides)).await?;
        self.released.notify_one();
        Ok(())
    }

    /// Ends pauses and slow-downs of a site now; whether there was one.
    pub async fn release(&self, actor: &Actor, path: &Path, now: Timestamp) -> Result<bool, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        records::audit(&mut batch, actor, "site.release", path_words(path), now);
        let (pacer, path) = (Arc::clone(&self.pacer), path.clone());
        let was_held = Arc::new(Mutex::new(false));
        let told = Arc::clone(&was_held);
        turn.commit(batch, move || *records::lock(&told) = records::lock(&pacer).release(&path)).await?;
        self.released.notify_one();
        self.changed.notify_one();
        let was_held = *records::lock(&was_held);
        Ok(was_held)
    }

    /// Begins a warm-up of a virtual IP towards a site, or with `None` ends it.
    pub async fn warm(
        &self,
        actor: &Actor,
        path: &Path,
        warmup: Option<Warmup>,
        (now, at): (QueueTime, Timestamp),
    ) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let mut memory = self.pacer().memory(path);
        if warmup.is_none() && memory.warmup.is_none() {
            return Err(AdminError::Missing(format!("warm-up of {}", path_words(path))));
        }
        memory.warmup = warmup.clone();
        let act = if warmup.is_some() { "site.warm" } else { "site.warm-stop" };
        let mut batch = Batch::new();
        // Stored with the act: a warm-up that was promised holds after any crash.
        batch.set(memory_key(path), stored(path, memory));
        records::audit(&mut batch, actor, act, path_words(path), at);
        let (pacer, path) = (Arc::clone(&self.pacer), path.clone());
        turn.commit(batch, move || records::lock(&pacer).warm(&path, warmup, now)).await?;
        self.released.notify_one();
        Ok(())
    }

    /// Writes what changed, until `shutdown`, and once more at its end.
    pub async fn keep(&self, shutdown: &Shutdown) {
        after_changes(&self.changed, WRITE_GAP, shutdown, || self.write(Timestamp::now())).await;
    }

    async fn write(&self, now: Timestamp) {
        // Not beside an operator's change, which writes the same records.
        let _turn = self.desk.turn().await;
        let changes = self.pacer().take_changes();
        let told = std::mem::take(&mut *records::lock(&self.told));
        self.measure();
        if let Err((events, error)) = self.commit(&[], told, now).await {
            tracing::warn!(%error, "events about sites could not be written yet");
            records::lock(&self.told).extend(events);
        }
        for part in changes.chunks(WRITTEN_MAX) {
            if let Err((_, error)) = self.commit(part, Vec::new(), now).await {
                tracing::warn!(%error, "what was learnt about sites could not be written yet");
                let mut pacer = self.pacer();
                part.iter().for_each(|(path, _)| pacer.was_not_stored(path));
            }
        }
    }

    async fn commit(
        &self,
        changes: &[(Path, Option<Memory>)],
        told: Vec<InstanceEvent>,
        now: Timestamp,
    ) -> Result<(), (Vec<InstanceEvent>, crate::store::CommitError)> {
        if changes.is_empty() && told.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (path, memory) in changes {
            match memory {
                Some(memory) => batch.set(memory_key(path), stored(path, memory.clone())),
                None => batch.remove(memory_key(path)),
            };
        }
        for event in &told {
            record(&mut batch, &Event { at: now, kind: EventKind::Instance(event.clone()) });
        }
        self.desk.store().commit(batch).await.map_err(|error| (told, error))
    }

    /// Gauges: how many sites are slowed, parked, warmed.
    fn measure(&self) {
        let (slowed, parked, warmed) = {
            let pacer = self.pacer();
            let (slowed, parked) = pacer.held();
            (slowed, parked, pacer.warming())
        };
        metrics::set(metrics::WARM_UPS, f64::from(warmed));
        metrics::set(metrics::SITES_SLOWED, f64::from(slowed));
        metrics::set(metrics::SITES_PARKED, f64::from(parked));
    }
}

/// The limits of every site, from the configuration.
fn defaults(settings: &Settings) -> LimitSet {
    let small = |value: usize| Some(u32::try_from(value).unwrap_or(u32::MAX));
    let mut limits = LimitSet::default();
    limits.set(Knob::Connections, small(settings.shaping.connections_max));
    limits.set(Knob::MessagesPerConnection, small(settings.messages_per_connection_max));
    limits.set(Knob::RecipientsPerTransaction, small(settings.recipients_per_transaction_max));
    limits
}

fn check(asked: &Override) -> Result<(), AdminError> {
    let invalid = |text: &str| Err(AdminError::Invalid(text.to_owned()));
    if asked.limits.is_empty() && asked.weight.is_none() {
        return invalid("name at least one limit");
    }
    if Knob::ALL.iter().any(|knob| asked.limits.get(*knob) == Some(0)) || asked.weight == Some(0) {
        return invalid("a limit of 0 would let nothing leave for ever; hold the mail or suspend the site instead");
    }
    if asked.weight.is_some() && asked.scope.tenant.is_none() {
        return invalid("a weight is one tenant's; name the tenant");
    }
    if matches!(asked.scope.target, Target::Domain(_)) && asked.scope.tenant.is_some() {
        return invalid("limits are for a domain or for a tenant, not for both at once");
    }
    Ok(())
}

fn describe(set: &Override) -> String {
    let limits = Knob::ALL.iter().filter_map(|knob| Some(format!("{} {}", knob.name(), words(set.limits.get(*knob)?))));
    let weight = set.weight.map(|weight| format!("weight {weight}"));
    let limits: Vec<String> = limits.chain(weight).collect();
    format!("{}: {}", scope_words(&set.scope), limits.join(", "))
}

/// A limit's value as people read it.
pub fn words(value: u32) -> String {
    if value == super::shaping::UNLIMITED { "none".to_owned() } else { value.to_string() }
}

/// A scope as people read it.
pub fn scope_words(scope: &LimitScope) -> String {
    let target = match &scope.target {
        Target::Every => "every site".to_owned(),
        Target::Site(site) => site.clone(),
        Target::Domain(domain) => format!("domain {domain}"),
    };
    let vip = scope.vip.map(|vip| format!(" from virtual IP {vip}")).unwrap_or_default();
    let tenant = scope.tenant.map(|tenant| format!(" of tenant {tenant}")).unwrap_or_default();
    format!("{target}{vip}{tenant}")
}

fn path_words(path: &Path) -> String {
    format!("{} from virtual IP {}", path.site, path.vip)
}

fn override_key(scope: &LimitScope) -> Key {
    [&[prefix::SHAPING, b'o'][..], &codec::encode(scope)].concat()
}

fn memory_key(path: &Path) -> Key {
    use sha2::Digest as _;
    // A site's name may be longer than a key: it is in the record.
    let name = sha2::Sha256::digest(path.site.as_bytes());
    [&[prefix::SHAPING, b's'][..], &path.vip.0.to_be_bytes(), &name].concat()
}

fn stored(path: &Path, memory: Memory) -> Vec<u8> {
    codec::encode(&Record { site: path.site.to_string(), vip: path.vip, memory })
}

impl Hold {
    /// The kind in one word, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Limit { knob, .. } => knob.name(),
            Self::Resting(_) => "resting",
            Self::Listed(_) => "parked",
            Self::WarmingUp(_) => "warm-up",
        }
    }

    /// What mail waits for then.
    pub(super) fn waits_for(&self) -> WaitsFor {
        match self {
            Self::Limit { .. } | Self::WarmingUp(_) => WaitsFor::Limit,
            Self::Resting(_) => WaitsFor::Pause,
            Self::Listed(_) => WaitsFor::Parked,
        }
    }

    /// What holds mail to `site`, as people read it; `until` is on the wall clock.
    pub fn describe(&self, site: &str, until: Option<Timestamp>) -> String {
        use super::shaping::Part;
        let until = until.map(|until| until.rfc3339());
        match self {
            Self::Limit { knob, part, value, slowed } => {
                let whose = match part {
                    Part::Whole => format!("to {site}"),
                    Part::Domain(domain) => format!("to the domain {domain}"),
                    Part::Tenant(_) => format!("of this tenant to {site}"),
                };
                let limit = knob.name().replace('_', " ");
                let slowed = slowed.as_ref().map(|reply| format!(" (lowered because of: {reply})")).unwrap_or_default();
                let until = until.map(|until| format!("; the next at {until}")).unwrap_or_default();
                format!("limit: {limit} {whose} is {}{slowed}{until}", words(*value))
            }
            Self::Resting(reply) => {
                format!("{site} asked to slow down: nothing until {}, because of: {reply}", until.unwrap_or_default())
            }
            Self::Listed(reply) => {
                format!("parked for {site} until {}, because of: {reply}", until.unwrap_or_default())
            }
            Self::WarmingUp(allowed) => format!(
                "warm-up: the {allowed} messages of this day to {site} are used; it goes on at {}",
                until.unwrap_or_default()
            ),
        }
    }
}

#[cfg(test)]
#[path = "pacing_tests.rs"]
mod tests;
