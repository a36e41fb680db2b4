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
    /// Of our settings: what was asked under the old ones does not answer under the new.
    settings: u64,
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
    /// How often settings have changed.
    settings: u64,
}

impl Places {
    pub(super) fn standing(&self, (lane, revision): (&Lane, u64), source: &Source, now: Instant) -> Standing {
        let families = Families {
            ipv4: source.addresses.iter().any(std::net::IpAddr::is_ipv4),
            ipv6: source.addresses.iter().any(std::net::IpAddr::is_ipv6),
        };
        let is_by_mx = matches!(lane.transport, TransportName::Mx | TransportName::MxDespiteTls);
        let domain = is_by_mx.then(|| lane.next_hop.clone());
        let place = Place { transport: lane.transport, domain, families, revision, settings: self.settings };
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
        if place.settings != self.settings {
            return;
        }
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

    /// Settings changed: everything is looked up anew, also what is being looked up now.
    pub(super) fn forget_all(&mut self) {
        self.settings = self.settings.wrapping_add(1);
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Class, TenantId, VipId};

    #[test]
    fn what_was_asked_before_settings_changed_does_not_answer_after_it() {
        let next_hop = Domain::parse("shop.example").unwrap();
        let (vip, tenant, class) = (VipId(1), TenantId(1), Class::Transactional);
        let lane = Lane { vip, tenant, class, transport: TransportName::Mx, next_hop };
        let ehlo = Domain::parse("mx.example").unwrap();
        let source = Source { vip, ehlo, addresses: vec![[127, 0, 0, 1].into()] };
        let (now, settings, mut places) = (Instant::now(), Settings::default(), Places::default());
        let site = || Site { name: "mx".into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None };
        let unknown = |places: &Places| match places.standing((&lane, 0), &source, now) {
            Standing::Unknown(place) => place,
            _ => panic!("it is known, or being looked up"),
        };
        let before = unknown(&places);
        places.looking_up(before.clone());
        places.forget_all();
        let after = unknown(&places);
        places.looking_up(after.clone());
        places.learn(before.clone(), Ok(site()), &settings, now);
        places.forget(&before);
        assert!(matches!(places.standing((&lane, 0), &source, now), Standing::LookingUp));
        places.learn(after, Ok(site()), &settings, now);
        assert!(matches!(places.standing((&lane, 0), &source, now), Standing::At(_)));
        places.forget_all();
        unknown(&places);
    }
}
