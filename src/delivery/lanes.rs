//! What the dispatcher remembers about where lanes go: looked-up sites, for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Settings;
use super::transport::{Families, NoSite, Site, Source};
use crate::mail::Domain;
use crate::routing::{Lane, TransportName};

/// Places remembered, at most; the oldest answers go first.
const PLACES_MAX: usize = 50_000;

/// What decides where a lane goes: lanes of all tenants with the same place share one lookup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    transport: TransportName,
    /// `None` for a relay, which takes mail for any domain.
    domain: Option<Domain>,
    pub(super) families: Families,
    /// Of the transport; see [`super::transport::Transport::revision`].
    revision: u64,
}

/// What is known of a place.
pub(super) enum Standing {
    At(Arc<Site>),
    Nowhere(NoSite),
    LookingUp,
    Unknown(Place),
}

enum Entry {
    LookingUp,
    Known(Result<Arc<Site>, NoSite>, Instant),
}

/// Looked-up places.
#[derive(Default)]
pub(super) struct Places {
    known: HashMap<Place, Entry>,
}

impl Places {
    pub(super) fn standing(&self, (lane, revision): (&Lane, u64), source: &Source, now: Instant) -> Standing {
        let families = Families {
            ipv4: source.addresses.iter().any(std::net::IpAddr::is_ipv4),
            ipv6: source.addresses.iter().any(std::net::IpAddr::is_ipv6),
        };
        let domain = (lane.transport == TransportName::Mx).then(|| lane.next_hop.clone());
        let place = Place { transport: lane.transport, domain, families, revision };
        match self.known.get(&place) {
            Some(Entry::LookingUp) => Standing::LookingUp,
            Some(Entry::Known(found, until)) if now < *until => match found {
                Ok(site) => Standing::At(site.clone()),
                Err(no_site) => Standing::Nowhere(no_site.clone()),
            },
            _ => Standing::Unknown(place),
        }
    }

    pub(super) fn looking_up(&mut self, place: Place) {
        self.known.insert(place, Entry::LookingUp);
    }

    pub(super) fn learn(&mut self, place: Place, found: Result<Site, NoSite>, settings: &Settings, now: Instant) {
        let kept = match &found {
            Err(NoSite::Deferred(..)) => settings.lookup_pause,
            _ => settings.site_kept,
        };
        let until = now.checked_add(kept).unwrap_or(now);
        if self.known.len() >= PLACES_MAX {
            self.forget_old(now);
        }
        if self.known.len() >= PLACES_MAX {
            self.known.retain(|_, entry| matches!(entry, Entry::LookingUp));
        }
        self.known.insert(place, Entry::Known(found.map(Arc::new), until));
    }

    pub(super) fn forget(&mut self, place: &Place) {
        self.known.remove(place);
    }

    pub(super) fn forget_old(&mut self, now: Instant) {
        self.known.retain(|_, entry| match entry {
            Entry::LookingUp => true,
            Entry::Known(_, until) => now < *until,
        });
    }

    /// Settings changed: everything is looked up anew; what is being looked up stays.
    pub(super) fn forget_all(&mut self) {
        self.known.retain(|_, entry| matches!(entry, Entry::LookingUp));
    }
}
