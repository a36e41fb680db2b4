//! What the dispatcher remembers about where lanes go: looked-up sites, for a while.
//!
//! Easy to get wrong: an answer that is too old is asked for anew and not used before that has answered, or
//! has taken so long that mail would wait for somebody else's lookups; then it is used, for a bounded time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Settings;
use super::sources::after;
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
    /// The answer is too old and being asked for anew; it is used from that moment on.
    Refreshing(Instant),
    /// The answer is too old. It is used if it cannot be asked for anew now.
    Old(Arc<Site>, Place),
    Unknown(Place),
}

enum Entry {
    LookingUp,
    Known { found: Result<Arc<Site>, NoSite>, until: Instant, refreshed: Option<Instant> },
}

impl Entry {
    /// Whether it is of use after its time.
    fn may_serve(&self, stale_max: Duration, now: Instant) -> bool {
        match self {
            Self::LookingUp => true,
            Self::Known { found: Ok(_), until, .. } => now < after(*until, stale_max),
            Self::Known { until, .. } => now < *until,
        }
    }
}

/// Looked-up places.
#[derive(Default)]
pub(super) struct Places {
    known: HashMap<Place, Entry>,
    /// How often settings have changed.
    settings: u64,
}

impl Places {
    pub(super) fn standing(
        &self,
        (lane, revision): (&Lane, u64),
        (source, settings): (&Source, &Settings),
        now: Instant,
    ) -> Standing {
        let families = Families {
            ipv4: source.addresses.iter().any(std::net::IpAddr::is_ipv4),
            ipv6: source.addresses.iter().any(std::net::IpAddr::is_ipv6),
        };
        let is_by_mx = matches!(lane.transport, TransportName::Mx | TransportName::MxDespiteTls);
        let domain = is_by_mx.then(|| lane.next_hop.clone());
        let place = Place { transport: lane.transport, domain, families, revision, settings: self.settings };
        let entry = self.known.get(&place);
        match entry {
            Some(Entry::LookingUp) => Standing::LookingUp,
            Some(Entry::Known { found: Ok(site), until, .. }) if now < *until => Standing::At(site.clone()),
            Some(Entry::Known { found: Err(no_site), until, .. }) if now < *until => Standing::Nowhere(no_site.clone()),
            Some(known @ Entry::Known { found: Ok(site), refreshed, .. })
                if known.may_serve(settings.site_stale_max, now) =>
            {
                match refreshed.map(|since| after(since, settings.refresh_patience)) {
                    None => Standing::Old(site.clone(), place),
                    Some(until) if now < until => Standing::Refreshing(until),
                    Some(_) => Standing::At(site.clone()),
                }
            }
            Some(Entry::Known { refreshed: Some(_), .. }) => Standing::LookingUp,
            _ => Standing::Unknown(place),
        }
    }

    /// It is being looked up from now on, anew if there is an answer that may be used meanwhile.
    pub(super) fn looking_up(&mut self, place: Place, settings: &Settings, now: Instant) {
        match self.known.get_mut(&place) {
            Some(known @ Entry::Known { found: Ok(_), .. }) if known.may_serve(settings.site_stale_max, now) => {
                if let Entry::Known { refreshed, .. } = known {
                    *refreshed = Some(now);
                }
            }
            _ => {
                self.known.insert(place, Entry::LookingUp);
            }
        }
    }

    pub(super) fn learn(&mut self, place: Place, found: Result<Site, NoSite>, settings: &Settings, now: Instant) {
        if place.settings != self.settings {
            return;
        }
        let kept = match &found {
            Err(NoSite::Deferred(..)) => settings.lookup_pause,
            _ => settings.site_kept,
        };
        let until = after(now, kept);
        if self.known.len() >= PLACES_MAX {
            self.forget_old(settings.site_stale_max, now);
        }
        if self.known.len() >= PLACES_MAX {
            self.known.retain(|_, entry| matches!(entry, Entry::LookingUp));
        }
        self.known.insert(place, Entry::Known { found: found.map(Arc::new), until, refreshed: None });
    }

    /// Looking it up came to nothing.
    pub(super) fn forget(&mut self, place: &Place) {
        self.known.remove(place);
    }

    pub(super) fn forget_old(&mut self, stale_max: Duration, now: Instant) {
        // What is being asked for anew is not asked for once more beside that.
        let is_asked_for = |entry: &Entry| matches!(entry, Entry::Known { refreshed: Some(_), .. });
        self.known.retain(|_, entry| entry.may_serve(stale_max, now) || is_asked_for(entry));
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
        let unknown = |places: &Places| match places.standing((&lane, 0), (&source, &settings), now) {
            Standing::Unknown(place) => place,
            _ => panic!("it is known, or being looked up"),
        };
        let before = unknown(&places);
        places.looking_up(before.clone(), &settings, now);
        places.forget_all();
        let after = unknown(&places);
        places.looking_up(after.clone(), &settings, now);
        places.learn(before.clone(), Ok(site()), &settings, now);
        places.forget(&before);
        assert!(matches!(places.standing((&lane, 0), (&source, &settings), now), Standing::LookingUp));
        places.learn(after, Ok(site()), &settings, now);
        assert!(matches!(places.standing((&lane, 0), (&source, &settings), now), Standing::At(_)));
        places.forget_all();
        unknown(&places);
    }

    #[test]
    fn an_old_answer_is_asked_for_anew_and_used_only_if_that_takes_long_and_not_for_ever() {
        let next_hop = Domain::parse("gmail.com").unwrap();
        let (vip, tenant, class) = (VipId(1), TenantId(1), Class::Transactional);
        let lane = Lane { vip, tenant, class, transport: TransportName::Mx, next_hop };
        let ehlo = Domain::parse("mx.example").unwrap();
        let source = Source { vip, ehlo, addresses: vec![[127, 0, 0, 1].into()] };
        let (start, settings, mut places) = (Instant::now(), Settings::default(), Places::default());
        let site =
            |name: &str| Site { name: name.into(), provider: None, hosts: Vec::new(), port: 25, realm: 0, login: None };
        let at = |secs: u64| start + Duration::from_secs(secs);
        let standing = |places: &Places, secs| places.standing((&lane, 0), (&source, &settings), at(secs));
        let Standing::Unknown(place) = standing(&places, 0) else { panic!("nothing is known") };
        places.looking_up(place.clone(), &settings, at(0));
        places.learn(place.clone(), Ok(site("old")), &settings, at(0));
        assert!(matches!(standing(&places, 59), Standing::At(_)));
        assert!(matches!(standing(&places, 60), Standing::Old(..)));
        places.looking_up(place.clone(), &settings, at(100));
        assert!(matches!(standing(&places, 100), Standing::Refreshing(until) if until == at(101)));
        assert!(matches!(standing(&places, 101), Standing::At(site) if &*site.name == "old"));
        places.forget_old(settings.site_stale_max, at(200));
        assert!(matches!(standing(&places, 359), Standing::At(_)));
        places.forget_old(settings.site_stale_max, at(360));
        assert!(matches!(standing(&places, 360), Standing::LookingUp), "older than it may be");
        places.learn(place.clone(), Ok(site("new")), &settings, at(361));
        assert!(matches!(standing(&places, 361), Standing::At(site) if &*site.name == "new"));
        places.forget_old(settings.site_stale_max, at(800));
        assert!(matches!(standing(&places, 800), Standing::Unknown(_)));
    }
}
