//! The pace of everything that leaves: limits, controllers and warm-ups, by site and virtual IP. Pure.
//!
//! Recipe: [`Pacer::admit`] gives a [`Permit`] or says what holds; every permit comes back through
//! [`Pacer::finished`]; what sites answer is told to [`Pacer::hear`].
//! Easy to get wrong: a site here is the provider where one is recognised, however many MX names
//! it has, and one virtual IP's trouble there is nobody else's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Path;
use super::controller::{Controller, Doing, Pause, Signal, Step};
use super::gate::{Ceiling, Gate, Meter, Quota};
use super::limits::{Knob, Layers, LimitSet, Override, Part, Resolved, Target, UNLIMITED};
use super::providers::Providers;
use super::turns::Turns;
use super::warmup::{Climb, Warmup};
use crate::mail::{Class, Domain, TenantId};
use crate::queue::QueueTime;

/// A site that nothing holds back is forgotten after so long without mail.
const FORGET_AFTER: Duration = Duration::from_secs(2 * 3_600);

/// A job that would like to go.
pub struct Ask<'a> {
    /// Where to, from where.
    pub path: &'a Path,
    /// Whose mail.
    pub tenant: TenantId,
    /// To which domain.
    pub domain: &'a Domain,
    /// Which class.
    pub class: Class,
    /// Messages it could use, at most.
    pub messages: u32,
    /// New connections it cannot do without: none if one is kept.
    pub needs: u32,
}

/// What a job may do; comes back through [`Pacer::finished`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Messages and new connections.
    pub quota: Quota,
    /// Messages over one connection, at most.
    pub messages_per_connection: u32,
    /// Recipients in one transaction, at most.
    pub recipients_per_transaction: u32,
    tenant: TenantId,
    parts: Vec<Part>,
    /// When the day of a warm-up began that this was counted in.
    counted_in: Option<QueueTime>,
}

/// What holds mail back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A limit; with whose it is, and whether the controller made it lower.
    Limit {
        /// Which.
        knob: Knob,
        /// Of all mail there, one domain's, one tenant's.
        part: Part,
        /// Its value now.
        value: u32,
        /// The words that made the controller lower it.
        slowed: Option<String>,
    },
    /// A short rest after trouble.
    Resting(String),
    /// Our address is listed.
    Listed(String),
    /// So many messages today and no more.
    WarmingUp(u32),
}

/// The answer to [`Pacer::admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go.
    Go(Permit),
    /// Not now; `None` is until a job comes back.
    Wait(Hold, Option<QueueTime>),
}

/// What a site is to the pacer, besides its limits. Stored as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The controller.
    pub controller: Controller,
    /// The warm-up, if there is one.
    pub warmup: Option<Warmup>,
}

impl Memory {
    /// Ends days of the warm-up that are over, and the warm-up with its last.
    fn roll(&mut self, now: QueueTime) {
        if self.warmup.as_mut().is_some_and(|warmup| warmup.roll(now) == Climb::Done) {
            self.warmup = None;
        }
    }

    /// As it is stored.
    fn ahead(&self) -> Self {
        Self { controller: self.controller.clone(), warmup: self.warmup.as_ref().map(Warmup::ahead) }
    }
}

#[derive(Debug)]
struct State {
    gates: HashMap<Part, Gate>,
    memory: Memory,
    stored: Memory,
    meter: Meter,
    peak: Meter,
    touched: QueueTime,
    version: u64,
}

/// Everything the pacer knows of one site and virtual IP, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Limits of all mail, and of each domain and tenant that has its own.
    pub parts: Vec<(Part, Resolved)>,
    /// Controller and warm-up.
    pub memory: Memory,
    /// Connections now.
    pub running: u32,
    /// Messages in the last minute.
    pub rate: u32,
    /// What would hold the next job back.
    pub holds: Option<(Hold, Option<QueueTime>)>,
}

/// The pace of all sites.
#[derive(Debug)]
pub struct Pacer {
    providers: Arc<Providers>,
    default: LimitSet,
    overrides: Vec<Override>,
    version: u64,
    states: HashMap<Path, State>,
    /// Whose turn it is.
    pub turns: Turns,
}

impl Pacer {
    /// A pacer that has met no site.
    pub fn new(providers: Arc<Providers>, default: LimitSet, overrides: Vec<Override>) -> Self {
        Self { providers, default, overrides, version: 0, states: HashMap::new(), turns: Turns::default() }
    }

    /// Other limits from now on.
    pub fn set_limits(&mut self, providers: Arc<Providers>, default: LimitSet) {
        if self.default != default || self.providers != providers {
            (self.providers, self.default) = (providers, default);
            self.version = self.version.wrapping_add(1);
        }
    }

    /// Other limits of the operator from now on.
    pub fn set_overrides(&mut self, overrides: Vec<Override>) {
        self.overrides = overrides;
        self.version = self.version.wrapping_add(1);
    }

    /// What was stored of a site.
    pub fn remember(&mut self, path: Path, memory: Memory, now: QueueTime) {
        let state = self.state(&path, now);
        state.stored = memory.clone();
        state.memory = memory;
    }

    /// Connections a site may have from that virtual IP now.
    pub fn connections_max(&self, path: &Path) -> u32 {
        let limit = self.value(path, Knob::Connections);
        let lowered = self.states.get(path).and_then(|state| state.memory.controller.connections);
        limit.min(lowered.unwrap_or(UNLIMITED)).max(1)
    }

    /// When a site said that this address is listed, if mail to it is parked for that.
    pub fn listed_since(&self, path: &Path) -> Option<QueueTime> {
        self.states.get(path)?.memory.controller.listed_since()
    }

    /// The providers it knows.
    pub fn providers(&self) -> &Arc<Providers> {
        &self.providers
    }

    /// The limits the operator set.
    pub fn overrides(&self) -> &[Override] {
        &self.overrides
    }

    /// How much of a tenant's mail goes for each message of others.
    pub fn weight(&self, path: &Path, tenant: TenantId) -> u32 {
        if self.overrides.is_empty() { 1 } else { self.layers(path).weight(&path.site, path.vip, tenant) }
    }

    /// Weights that tenants have at every site.
    pub fn weights(&self) -> HashMap<TenantId, u32> {
        let everywhere =
            self.overrides.iter().filter(|set| set.scope.target == Target::Every && set.scope.vip.is_none());
        everywhere.filter_map(|set| Some((set.scope.tenant?, set.weight?))).collect()
    }

    /// Whether a job may go now.
    pub fn admit(&mut self, ask: &Ask<'_>, now: QueueTime) -> Answer {
        let looked = self.look(ask, now);
        let (quota, parts) = match looked {
            Ok(found) => found,
            Err((hold, until)) => return Answer::Wait(hold, until),
        };
        let state = self.state(ask.path, now);
        state.touched = now;
        let mut per_connection = u32::MAX;
        let mut per_transaction = u32::MAX;
        for part in &parts {
            if let Some(gate) = state.gates.get_mut(part) {
                gate.take(quota);
                per_connection = per_connection.min(gate.limits.value(Knob::MessagesPerConnection));
                per_transaction = per_transaction.min(gate.limits.value(Knob::RecipientsPerTransaction));
            }
        }
        let running = state.gates.get(&Part::Whole).map_or(0, Gate::running);
        state.peak.most(running, now);
        let counted_in = state.memory.warmup.as_mut().map(|warmup| {
            warmup.take(quota.messages);
            warmup.began()
        });
        let weight = self.weight(ask.path, ask.tenant);
        self.turns.granted(ask.path, ask.tenant, quota.messages, weight);
        self.turns.went(ask.path, ask.class);
        Answer::Go(Permit {
            quota,
            messages_per_connection: per_connection.max(1),
            recipients_per_transaction: per_transaction.max(1),
            tenant: ask.tenant,
            parts,
            counted_in,
        })
    }

    /// What a job could be given, or what holds it; takes nothing.
    fn look(&mut self, ask: &Ask<'_>, now: QueueTime) -> Result<(Quota, Vec<Part>), (Hold, Option<QueueTime>)> {
        let parts = self.open_gates(ask, now);
        let state = self.state(ask.path, now);
        state.memory.roll(now);
        match state.memory.controller.pause(now) {
            Some((until, Pause::Listed(reply))) => return Err((Hold::Listed(reply.to_owned()), Some(until))),
            Some((until, Pause::Resting(reply))) => return Err((Hold::Resting(reply.to_owned()), Some(until))),
            None => {}
        }
        let mut wanted = Quota { messages: ask.messages.max(1), connections: UNLIMITED };
        if let Some(warmup) = &state.memory.warmup {
            if warmup.left() == 0 {
                return Err((Hold::WarmingUp(warmup.allowed()), Some(warmup.ends())));
            }
            wanted.messages = wanted.messages.min(warmup.left());
        }
        for part in &parts {
            let ceiling = state.ceiling(part);
            let Some(gate) = state.gates.get_mut(part) else { continue };
            match gate.look(wanted, ask.needs, ceiling, now) {
                Ok(quota) => wanted = quota,
                Err((knob, until)) => {
                    let value = gate.value(knob, ceiling);
                    let is_lower = value < gate.limits.value(knob);
                    let slowed = state.memory.controller.cause.clone().filter(|_| is_lower);
                    return Err((Hold::Limit { knob, part: part.clone(), value, slowed }, until));
                }
            }
        }
        Ok((wanted, parts))
    }

    /// A job came back; `used` is what it really did.
    pub fn finished(&mut self, path: &Path, permit: &Permit, used: Quota, now: QueueTime) {
        let weight = self.weight(path, permit.tenant);
        self.turns.finished(path, permit.tenant, (permit.quota.messages, used.messages), weight);
        let state = self.state(path, now);
        for part in &permit.parts {
            if let Some(gate) = state.gates.get_mut(part) {
                gate.settle(permit.quota, used, now);
            }
        }
        state.memory.roll(now);
        if let Some(warmup) = &mut state.memory.warmup {
            match permit.counted_in {
                Some(day) if day == warmup.began() => warmup.settle(permit.quota.messages, used.messages),
                // The day it was counted in is over, with all it was allowed.
                Some(_) => {}
                // It was given before the warm-up began, and is part of its first day.
                None => warmup.take(used.messages),
            }
        }
        state.meter.add(used.messages, now);
        state.touched = now;
    }

    /// Something was heard from a site.
    pub fn hear(&mut self, path: &Path, signal: Signal, now: QueueTime) -> Option<Step> {
        let rate_max = self.value(path, Knob::MessagesPerMinute);
        let connections_max = self.value(path, Knob::Connections);
        let state = self.state(path, now);
        state.touched = now;
        state.memory.roll(now);
        if let Some(warmup) = &mut state.memory.warmup {
            match &signal {
                Signal::SlowDown(_) => warmup.met_trouble(),
                Signal::Listed(_) => warmup.was_listed(),
                Signal::Served(_) | Signal::Failed(_) | Signal::SentAway(_) => {}
            }
        }
        let doing = Doing { rate_max, connections_max, rate: state.meter.rate(now), connections: state.peak.rate(now) };
        state.memory.controller.hear(signal, doing, now)
    }

    /// How many pairs are being warmed.
    pub fn warming(&self) -> u32 {
        let warmed = self.states.values().filter(|state| state.memory.warmup.is_some()).count();
        u32::try_from(warmed).unwrap_or(u32::MAX)
    }

    /// What is to be stored once so many complaints are counted today; `None` if nothing is warmed there any more.
    pub fn with_complaints(&self, path: &Path, count: u32, now: QueueTime) -> Option<Memory> {
        let mut memory = self.memory(path);
        memory.roll(now);
        memory.warmup.as_mut()?.met_complaints(count);
        Some(memory.ahead())
    }

    /// So many complaints are counted today.
    pub fn complained(&mut self, path: &Path, count: u32, now: QueueTime) {
        let Some(state) = self.states.get_mut(path) else { return };
        state.memory.roll(now);
        if let Some(warmup) = &mut state.memory.warmup {
            warmup.met_complaints(count);
        }
    }

    /// So many messages that today had no room for left by other virtual IPs.
    pub fn overflowed(&mut self, path: &Path, count: u32) {
        if let Some(warmup) = self.states.get_mut(path).and_then(|state| state.memory.warmup.as_mut()) {
            warmup.overflowed(count);
        }
    }

    /// Begins or ends a warm-up.
    pub fn warm(&mut self, path: &Path, warmup: Option<Warmup>, now: QueueTime) {
        self.state(path, now).memory.warmup = warmup;
    }

    /// Ends every pause, and lets the limits alone hold; whether there was anything to end.
    pub fn release(&mut self, path: &Path) -> bool {
        let Some(state) = self.states.get_mut(path) else { return false };
        let was_held = !state.memory.controller.is_idle();
        state.memory.controller.forget();
        was_held
    }

    /// What people are shown of a site.
    pub fn picture(&mut self, path: &Path, now: QueueTime) -> Picture {
        let mut parts = vec![(Part::Whole, self.resolved(path))];
        for set in &self.overrides {
            let part = match (&set.scope.target, set.scope.tenant) {
                (Target::Domain(domain), None) => Part::Domain(domain.clone()),
                (_, Some(tenant)) => Part::Tenant(tenant),
                _ => continue,
            };
            let found = self.layers(path).resolve(&path.site, path.vip, &part);
            if let Some(resolved) = found.filter(|_| parts.iter().all(|(known, _)| *known != part)) {
                parts.push((part, resolved));
            }
        }
        let is_known = self.states.contains_key(path);
        let holds = self.dry_run(path, now);
        let picture = self.states.get_mut(path).map(|state| Picture {
            parts: parts.clone(),
            memory: state.memory.clone(),
            running: state.gates.get(&Part::Whole).map_or(0, Gate::running),
            rate: state.meter.rate(now),
            holds: holds.clone(),
        });
        if !is_known {
            self.states.remove(path);
        }
        picture.unwrap_or_else(|| Picture { parts, memory: Memory::default(), running: 0, rate: 0, holds })
    }

    fn dry_run(&mut self, path: &Path, now: QueueTime) -> Option<(Hold, Option<QueueTime>)> {
        // A domain and a tenant that nobody has: what holds is what holds everybody.
        let domain = Domain::parse("invalid").ok()?;
        let class = Class::Transactional;
        let ask = Ask { path, tenant: TenantId(0), domain: &domain, class, messages: 1, needs: 1 };
        self.look(&ask, now).err()
    }

    /// What is kept of a site.
    pub fn memory(&self, path: &Path) -> Memory {
        self.states.get(path).map(|state| state.memory.clone()).unwrap_or_default()
    }

    /// Messages a minute that a site gets at the most now.
    pub fn rate(&self, path: &Path) -> u32 {
        let limit = self.value(path, Knob::MessagesPerMinute);
        limit.min(self.states.get(path).and_then(|state| state.memory.controller.rate).unwrap_or(UNLIMITED))
    }

    /// How many sites are slowed down, and how many are parked.
    pub fn held(&self) -> (u32, u32) {
        let controllers = self.states.values().map(|state| &state.memory.controller);
        controllers.fold((0, 0), |(slowed, parked), controller| {
            let is_slowed = controller.rate.is_some() || controller.connections.is_some();
            (slowed + u32::from(is_slowed), parked + u32::from(controller.park.is_some()))
        })
    }

    /// Whether a site takes what others have no room for from that virtual IP: nothing is warmed there, and
    /// nothing holds it back but its limits.
    pub fn takes_overflow(&mut self, path: &Path, now: QueueTime) -> bool {
        let Some(state) = self.states.get_mut(path) else { return true };
        state.memory.roll(now);
        let Memory { controller, warmup } = &state.memory;
        let is_slowed = controller.rate.is_some() || controller.connections.is_some();
        warmup.is_none() && !is_slowed && controller.pause(now).is_none()
    }

    /// Every site and virtual IP that is known now.
    pub fn paths(&self) -> Vec<Path> {
        let mut paths: Vec<Path> = self.states.keys().cloned().collect();
        paths.sort();
        paths
    }

    /// What has changed since it was taken last, to be stored; `None` is to be removed.
    pub fn take_changes(&mut self) -> Vec<(Path, Option<Memory>)> {
        let mut changes = Vec::new();
        for (path, state) in &mut self.states {
            let ahead = state.memory.ahead();
            if ahead != state.stored {
                let is_empty = ahead.controller.is_idle() && ahead.warmup.is_none();
                changes.push((path.clone(), (!is_empty).then(|| ahead.clone())));
                state.stored = ahead;
            }
        }
        changes
    }

    /// Changes of that site could not be stored: they are to be taken again.
    pub fn was_not_stored(&mut self, path: &Path) {
        if let Some(state) = self.states.get_mut(path) {
            // Never equal to what there is: a day longer than any ladder.
            state.stored = Memory::default();
            state.stored.controller.rate = Some(0);
        }
    }

    /// Forgets sites that have been quiet, so that memory follows what is used.
    pub fn forget_quiet(&mut self, now: QueueTime) {
        self.states.retain(|_, state| {
            let is_stored = state.stored.controller.is_idle() && state.stored.warmup.is_none();
            let is_needed = !state.memory.controller.is_idle() || state.memory.warmup.is_some() || !is_stored;
            let runs = state.gates.values().any(|gate| gate.running() > 0);
            runs || is_needed || now.since(state.touched) < FORGET_AFTER
        });
        let states = &self.states;
        self.turns.forget(|path| states.contains_key(path));
    }

    fn layers(&self, path: &Path) -> Layers<'_> {
        let provider = self.providers.named(&path.site);
        Layers { default: self.default, provider, overrides: &self.overrides }
    }

    /// The value of a limit of all mail; from the gate, where there is one that is up to date.
    fn value(&self, path: &Path, knob: Knob) -> u32 {
        let state = self.states.get(path).filter(|state| state.version == self.version);
        let gate = state.and_then(|state| state.gates.get(&Part::Whole));
        gate.map_or_else(|| self.resolved(path).value(knob), |gate| gate.limits.value(knob))
    }

    fn resolved(&self, path: &Path) -> Resolved {
        let whole = self.layers(path).resolve(&path.site, path.vip, &Part::Whole);
        whole.unwrap_or_else(Resolved::unlimited)
    }

    /// The gates a job must pass, made or brought up to date.
    fn open_gates(&mut self, ask: &Ask<'_>, now: QueueTime) -> Vec<Part> {
        let version = self.version;
        let is_current = self.states.get(ask.path).is_some_and(|state| state.version == version);
        if !is_current {
            let layers = self.layers(ask.path);
            let known = self.states.get(ask.path).map(|state| state.gates.keys().cloned().collect::<Vec<_>>());
            let fresh: Vec<(Part, Option<Resolved>)> = known
                .unwrap_or_default()
                .into_iter()
                .map(|part| (part.clone(), layers.resolve(&ask.path.site, ask.path.vip, &part)))
                .collect();
            let state = self.state(ask.path, now);
            state.version = version;
            for (part, resolved) in fresh {
                if let Some(gate) = state.gates.get_mut(&part) {
                    gate.set_limits(resolved.unwrap_or_else(Resolved::unlimited));
                }
            }
        }
        let mut parts = Vec::with_capacity(3);
        // Without limits of the operator no domain and no tenant has its own.
        let own = (!self.overrides.is_empty()).then(|| [Part::Domain(ask.domain.clone()), Part::Tenant(ask.tenant)]);
        for part in std::iter::once(Part::Whole).chain(own.into_iter().flatten()) {
            let is_there = self.states.get(ask.path).is_some_and(|state| state.gates.contains_key(&part));
            if !is_there {
                let Some(resolved) = self.layers(ask.path).resolve(&ask.path.site, ask.path.vip, &part) else {
                    continue;
                };
                self.state(ask.path, now).gates.insert(part.clone(), Gate::new(resolved, now));
            }
            parts.push(part);
        }
        parts
    }

    fn state(&mut self, path: &Path, now: QueueTime) -> &mut State {
        self.states.entry(path.clone()).or_insert_with(|| State {
            gates: HashMap::new(),
            memory: Memory::default(),
            stored: Memory::default(),
            meter: Meter::default(),
            peak: Meter::default(),
            touched: now,
            version: self.version,
        })
    }
}

impl State {
    /// The controller's say: about all mail, not about a part of it.
    fn ceiling(&self, part: &Part) -> Ceiling {
        match part {
            Part::Whole => {
                Ceiling { rate: self.memory.controller.rate, connections: self.memory.controller.connections }
            }
            Part::Domain(_) | Part::Tenant(_) => Ceiling::default(),
        }
    }
}

#[cfg(test)]
#[path = "pacer_tests.rs"]
mod tests;
