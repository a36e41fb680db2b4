//! Idle connections, kept for a short while by peer, virtual IP, TLS and login.
//!
//! One owner (the dispatcher), no lock. Easy to get wrong: a peer may have said 421 or hung up
//! meanwhile, so a connection is looked at before it is given out again.

use std::collections::HashMap;
use std::time::Instant;

use super::connection::{Connection, PoolKey};
use crate::delivery::Settings;
use crate::mail::Domain;

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Idle connections.
#[derive(Default)]
pub struct Pool {
    idle: HashMap<PoolKey, Vec<Idle>>,
    count: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A usable connection for one of `keys`, the earlier the better, that takes recipients in `domain`.
    pub fn take(
        &mut self,
        (keys, domain): (impl Iterator<Item = PoolKey>, &Domain),
        settings: &Settings,
        now: Instant,
    ) -> Option<Connection> {
        for key in keys {
            let Some(kept) = self.idle.get_mut(&key) else { continue };
            // The latest first: it is the least likely to have been closed by the peer.
            while let Some(at) = kept.iter().rposition(|idle| idle.connection.takes_domain(domain)) {
                let Idle { mut connection, since } = kept.remove(at);
                self.count = self.count.saturating_sub(1);
                let is_recent = now.duration_since(since) < settings.connection_idle_max;
                if is_recent && connection.is_fresh(settings, now) && connection.is_quiet() {
                    return Some(connection);
                }
            }
            if kept.is_empty() {
                self.idle.remove(&key);
            }
        }
        None
    }

    /// Whether one is kept for one of `keys` that takes recipients in `domain`; it may turn out to be closed.
    pub fn has(&self, mut keys: impl Iterator<Item = PoolKey>, domain: &Domain) -> bool {
        let takes = |kept: &Vec<Idle>| kept.iter().any(|idle| idle.connection.takes_domain(domain));
        keys.any(|key| self.idle.get(&key).is_some_and(takes))
    }

    /// Keeps a connection, or hands it back to be closed if there is no room or it has served enough.
    pub fn put(&mut self, connection: Connection, settings: &Settings, now: Instant) -> Option<Connection> {
        if self.count >= settings.idle_connections_max || !connection.is_fresh(settings, now) {
            return Some(connection);
        }
        self.count = self.count.saturating_add(1);
        self.idle.entry(connection.key().clone()).or_default().push(Idle { connection, since: now });
        None
    }

    /// Takes out what has been idle for too long, to be closed.
    pub fn sweep(&mut self, settings: &Settings, now: Instant) -> Vec<Connection> {
        let mut old = Vec::new();
        for kept in self.idle.values_mut() {
            let (gone, stay): (Vec<Idle>, Vec<Idle>) = std::mem::take(kept)
                .into_iter()
                .partition(|idle| now.duration_since(idle.since) >= settings.connection_idle_max);
            *kept = stay;
            old.extend(gone.into_iter().map(|idle| idle.connection));
        }
        self.idle.retain(|_, kept| !kept.is_empty());
        self.count = self.count.saturating_sub(old.len());
        old
    }

    /// Takes out everything, to be closed.
    pub fn drain(&mut self) -> Vec<Connection> {
        self.count = 0;
        self.idle.drain().flat_map(|(_, kept)| kept).map(|idle| idle.connection).collect()
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
