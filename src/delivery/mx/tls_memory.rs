//! What TLS came to with receivers, remembered: the best level a recipient domain ever gave, so that less is
//! noticed, and hosts with which a handshake fails, so that it is not tried at each message.
//!
//! Recipe: [`TlsMemory::open`]; the client tells and asks; [`TlsMemory::keep`] writes what changed.
//! Easy to get wrong: what is remembered here never lowers what a policy demands. A host is spoken to in the
//! clear only where nobody demands more, and an end of that memory is always near.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::access::{Actor, Permission};
use crate::background::{Shutdown, after_changes};
use crate::events::{Event, EventKind, InstanceEvent, record};
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::metrics;
use crate::records::{self, AdminError, Damage};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// Recipient domains remembered, at most; beyond, others are forgotten first.
const DOMAINS_MAX: usize = 100_000;
/// Hosts with which TLS fails, at most.
const FAILING_MAX: usize = 10_000;
/// How long a host with which TLS failed is spoken to in the clear before TLS is tried again.
const FAILING_FOR: Duration = Duration::from_secs(6 * 60 * 60);
/// From so many failures in a row on it is not tried.
const FAILURES_MIN: u32 = 2;
/// Failures nearer than this to the last that was counted are one: connections that were open at a time share
/// their fate.
const FAILURES_APART: Duration = Duration::from_secs(5 * 60);
/// A domain that goes up and down is told about no more often than this.
const TOLD_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// When a domain was seen last is written no more often than this.
const SEEN_NOTED_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// What changed is written at least this far apart.
const WRITE_GAP: Duration = Duration::from_secs(2);
/// Records written in one batch, at most.
const WRITTEN_MAX: usize = 500;
/// Characters kept of a reason.
const REASON_CHARACTERS_MAX: usize = 300;

/// How well a conversation was protected; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsLevel {
    /// In the clear.
    Plain,
    /// Encrypted; nobody vouches for the peer.
    Encrypted,
    /// Encrypted, and its certificate verifies or matches a TLSA record.
    Verified,
}

impl TlsLevel {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plaintext",
            Self::Encrypted => "encrypted",
            Self::Verified => "verified",
        }
    }
}

/// What TLS came to with a recipient domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenTls {
    /// Whose.
    pub domain: Domain,
    /// The best level there ever was.
    pub best: TlsLevel,
    /// With which host.
    pub best_host: String,
    /// When it was reached first.
    pub since: Timestamp,
    /// The level of the last connection.
    pub last: TlsLevel,
    /// What it was, in words.
    pub last_words: String,
    /// When that was, to the day unless it changed.
    pub seen: Timestamp,
    /// When a downgrade was told last.
    pub told: Option<Timestamp>,
}

/// A host with which TLS fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingTls {
    /// The mail host.
    pub host: String,
    /// Why.
    pub reason: String,
    /// When TLS is tried again.
    pub until: Timestamp,
    /// How often it failed in a row; once may be a broken connection.
    pub failures: u32,
}

/// A new connection, as the client tells it.
pub struct Spoken<'a> {
    /// For which recipient domain.
    pub domain: &'a Domain,
    /// With which host.
    pub host: &'a str,
    /// How well protected.
    pub level: TlsLevel,
    /// In words.
    pub words: &'a str,
}

#[derive(Debug, Default)]
struct Kept {
    domains: HashMap<Domain, SeenTls>,
    failing: HashMap<String, FailingTls>,
    changes: HashMap<Key, Option<Vec<u8>>>,
    events: Vec<InstanceEvent>,
}

/// What TLS came to.
pub struct TlsMemory {
    store: Arc<dyn Store>,
    kept: Mutex<Kept>,
    changed: Notify,
    damaged: Vec<Damage>,
}

impl TlsMemory {
    /// Reads what was remembered.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (domains, mut damaged) = records::load::<SeenTls>(&*store, &[prefix::TLS_SEEN, b'd'])?;
        let (failing, more) = records::load::<FailingTls>(&*store, &[prefix::TLS_SEEN, b'f'])?;
        damaged.extend(more);
        let kept = Kept {
            domains: domains.into_iter().map(|(_, seen)| (seen.domain.clone(), seen)).collect(),
            failing: failing.into_iter().map(|(_, failing)| (failing.host.clone(), failing)).collect(),
            ..Kept::default()
        };
        Ok(Self { store, kept: Mutex::new(kept), changed: Notify::new(), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// A connection was made.
    pub fn spoke(&self, spoken: &Spoken<'_>, now: Timestamp) {
        let mut kept = records::lock(&self.kept);
        let Kept { domains, changes, events, .. } = &mut *kept;
        let Some(seen) = domains.get_mut(spoken.domain) else {
            make_room(domains, changes);
            let seen = SeenTls {
                domain: spoken.domain.clone(),
                best: spoken.level,
                best_host: spoken.host.to_owned(),
                since: now,
                last: spoken.level,
                last_words: shortened(spoken.words),
                seen: now,
                told: None,
            };
            changes.insert(domain_key(&seen.domain), Some(codec::encode(&seen)));
            domains.insert(seen.domain.clone(), seen);
            return self.changed.notify_one();
        };
        if spoken.level == seen.last && now.since(seen.seen) < SEEN_NOTED_EVERY {
            return;
        }
        let is_told = seen.told.is_some_and(|told| now.since(told) < TOLD_EVERY);
        if spoken.level < seen.best && spoken.level < seen.last && !is_told {
            seen.told = Some(now);
            let (domain, host) = (spoken.domain.to_string(), spoken.host.to_owned());
            let (from, to) = (seen.best.word().to_owned(), spoken.level.word().to_owned());
            tracing::warn!(domain, host, from, to, words = spoken.words, "less TLS than before");
            ::metrics::counter!(metrics::TLS_DOWNGRADES, "to" => spoken.level.word()).increment(1);
            events.push(InstanceEvent::TlsDowngraded { domain, host, from, to, detail: shortened(spoken.words) });
        }
        if spoken.level > seen.best {
            (seen.best, seen.since) = (spoken.level, now);
            seen.best_host = spoken.host.to_owned();
        }
        (seen.last, seen.last_words, seen.seen) = (spoken.level, shortened(spoken.words), now);
        changes.insert(domain_key(&seen.domain), Some(codec::encode(seen)));
        self.changed.notify_one();
    }

    /// TLS with a host failed by what the host said, and it was spoken to in the clear.
    pub fn failed(&self, host: &str, reason: &str, now: Timestamp) {
        let mut kept = records::lock(&self.kept);
        let Kept { failing, changes, .. } = &mut *kept;
        failing.retain(|name, known| {
            let stays = known.until > now;
            if !stays {
                changes.insert(host_key(name), None);
            }
            stays
        });
        if failing.len() >= FAILING_MAX && !failing.contains_key(host) {
            return;
        }
        if failing.get(host).is_some_and(|known| now.plus(FAILING_FOR).since(known.until) < FAILURES_APART) {
            return;
        }
        let failures = failing.get(host).map_or(1, |known| known.failures.saturating_add(1));
        let (host, reason) = (host.to_owned(), shortened(reason));
        let known = FailingTls { host, reason, until: now.plus(FAILING_FOR), failures };
        changes.insert(host_key(&known.host), Some(codec::encode(&known)));
        failing.insert(known.host.clone(), known);
        self.changed.notify_one();
    }

    /// Why TLS with a host need not be tried now, and until when.
    pub fn fails(&self, host: &str, now: Timestamp) -> Option<FailingTls> {
        let kept = records::lock(&self.kept);
        kept.failing.get(host).filter(|known| known.until > now && known.failures >= FAILURES_MIN).cloned()
    }

    /// TLS with a host succeeded.
    pub fn succeeded(&self, host: &str) {
        let mut kept = records::lock(&self.kept);
        if kept.failing.remove(host).is_some() {
            kept.changes.insert(host_key(host), None);
            self.changed.notify_one();
        }
    }

    /// What was seen of a domain.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn seen(&self, actor: &Actor, domain: &Domain) -> Result<Option<SeenTls>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        Ok(records::lock(&self.kept).domains.get(domain).cloned())
    }

    /// Hosts with which TLS fails, by name.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn failing(&self, actor: &Actor, now: Timestamp) -> Result<Vec<FailingTls>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        let kept = records::lock(&self.kept);
        let mut all: Vec<FailingTls> = kept.failing.values().filter(|known| known.until > now).cloned().collect();
        all.sort_by(|one, other| one.host.cmp(&other.host));
        Ok(all)
    }

    /// Writes what changed, until `shutdown`, and once more at its end.
    pub async fn keep(&self, shutdown: &Shutdown) {
        after_changes(&self.changed, WRITE_GAP, shutdown, || self.write(Timestamp::now())).await;
    }

    async fn write(&self, now: Timestamp) {
        let (changes, mut events) = {
            let mut kept = records::lock(&self.kept);
            (std::mem::take(&mut kept.changes), std::mem::take(&mut kept.events))
        };
        let changes: Vec<(Key, Option<Vec<u8>>)> = changes.into_iter().collect();
        let mut parts = changes.chunks(WRITTEN_MAX);
        loop {
            let part = parts.next().unwrap_or_default();
            if part.is_empty() && events.is_empty() {
                return;
            }
            let mut batch = Batch::new();
            for (own, bytes) in part {
                match bytes {
                    Some(bytes) => batch.set(own.clone(), bytes.clone()),
                    None => batch.remove(own.clone()),
                };
            }
            let told = std::mem::take(&mut events);
            for event in &told {
                record(&mut batch, &Event { at: now, kind: EventKind::Instance(event.clone()) });
            }
            if let Err(error) = self.store.commit(batch).await {
                tracing::warn!(%error, "what TLS came to could not be written yet");
                let mut kept = records::lock(&self.kept);
                for (own, bytes) in part.iter().chain(parts.by_ref().flatten()) {
                    kept.changes.entry(own.clone()).or_insert_with(|| bytes.clone());
                }
                kept.events.extend(told);
                return;
            }
        }
    }
}

/// With very many domains any of them goes: what is lost is that a downgrade of it is noticed.
fn make_room(domains: &mut HashMap<Domain, SeenTls>, changes: &mut HashMap<Key, Option<Vec<u8>>>) {
    if domains.len() < DOMAINS_MAX {
        return;
    }
    let Some(gone) = domains.keys().next().cloned() else { return };
    domains.remove(&gone);
    changes.insert(domain_key(&gone), None);
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON_CHARACTERS_MAX).collect()
}

fn domain_key(domain: &Domain) -> Key {
    [&[prefix::TLS_SEEN, b'd'][..], domain.as_str().as_bytes()].concat()
}

fn host_key(host: &str) -> Key {
    [&[prefix::TLS_SEEN, b'f'][..], host.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryStore, after_prefix};

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn events(store: &MemoryStore) -> Vec<InstanceEvent> {
        let stored = store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), 100).unwrap();
        let kinds = stored.iter().map(|(_, bytes)| codec::decode::<Event>(bytes).unwrap().kind);
        kinds.filter_map(|kind| if let EventKind::Instance(event) = kind { Some(event) } else { None }).collect()
    }

    #[tokio::test]
    async fn the_best_level_is_remembered_over_a_restart_and_less_is_told_once_a_day() {
        let (store, actor) = (Arc::new(MemoryStore::new()), Actor::local(0));
        let domain = Domain::parse("shop.example").unwrap();
        let spoke = |memory: &TlsMemory, level: TlsLevel, hours: u64| {
            let spoken = Spoken { domain: &domain, host: "mx.shop.example", level, words: level.word() };
            memory.spoke(&spoken, NOW.plus(Duration::from_secs(hours * 3_600)));
        };
        let memory = TlsMemory::open(store.clone()).unwrap();
        spoke(&memory, TlsLevel::Encrypted, 0);
        spoke(&memory, TlsLevel::Verified, 1);
        memory.write(NOW).await;
        let memory = TlsMemory::open(store.clone()).unwrap();
        for (level, hours) in [
            (TlsLevel::Plain, 2),
            (TlsLevel::Verified, 3),
            (TlsLevel::Plain, 4),
            (TlsLevel::Verified, 30),
            (TlsLevel::Encrypted, 31),
        ] {
            spoke(&memory, level, hours);
        }
        memory.write(NOW).await;
        let told: Vec<String> = events(&store)
            .into_iter()
            .map(|event| match event {
                InstanceEvent::TlsDowngraded { from, to, .. } => format!("{from} to {to}"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, ["verified to plaintext", "verified to encrypted"]);
        let seen = memory.seen(&actor, &domain).unwrap().unwrap();
        assert_eq!((seen.best, seen.last), (TlsLevel::Verified, TlsLevel::Encrypted));
        let owner = Actor::of("o", crate::access::Role::TenantOwner(crate::mail::TenantId(1)));
        assert!(memory.seen(&owner, &domain).is_err() && memory.failing(&owner, NOW).is_err());
    }

    #[tokio::test]
    async fn a_host_with_which_tls_fails_is_remembered_for_hours_also_over_a_restart() {
        let store = Arc::new(MemoryStore::new());
        let memory = TlsMemory::open(store.clone()).unwrap();
        memory.failed("old.example", "connection reset", NOW);
        assert_eq!(memory.fails("old.example", NOW), None, "once may be the connection");
        memory.succeeded("old.example");
        let refused = |at| memory.failed("old.example", "received fatal alert: ProtocolVersion", at);
        for _ in 0..3 {
            refused(NOW);
        }
        assert_eq!(memory.fails("old.example", NOW), None, "connections side by side fail once");
        let later = NOW.plus(FAILURES_APART);
        refused(later);
        memory.write(later).await;
        let memory = TlsMemory::open(store).unwrap();
        let known = memory.fails("old.example", later).unwrap();
        assert_eq!(known.failures, 2);
        assert!(known.reason.contains("ProtocolVersion"));
        assert_eq!(memory.failing(&Actor::local(0), later).unwrap(), [known]);
        assert_eq!(memory.fails("old.example", later.plus(FAILING_FOR)), None);
        assert_eq!(memory.fails("new.example", NOW), None);
    }
}
