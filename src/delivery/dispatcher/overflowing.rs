//! Where mail goes that a warm-up has no room for: which shared virtual IPs are there, warm and in shape.
//!
//! Easy to get wrong: only shared ones are ever offered, whatever a tenant permits, and only to mail that
//! leaves by MX: what a relay sends on does not show our address to anybody's SPF check.

use std::time::{Duration, Instant};

use super::super::overflow::{OFFERS_MAX, Offer, SWEEP_MAX};
use super::super::shaping::Path;
use super::super::sources::earlier;
use super::super::transport::{Site, Source};
use super::{Candidate, Dispatcher, Done, Running};
use crate::ext::Timestamp;
use crate::routing::{Lane, TransportName};
use crate::vips::Vip;

impl Dispatcher {
    /// A warm-up has no room for a lane's mail, and `day_left` is how long that will last: moves what may be
    /// moved. What is said of it for people, behind a semicolon; nothing if there is nothing to say.
    pub(super) fn overflow(&mut self, candidate: &Candidate, day_left: Duration, now: Instant) -> String {
        let lane = &candidate.lane;
        if let Some((until, words)) = self.wiring.overflows.rests(lane, now) {
            let words = words.to_owned();
            self.waits = earlier(self.waits, until);
            return words;
        }
        let is_direct = matches!(lane.transport, TransportName::Mx | TransportName::MxDespiteTls);
        if !is_direct || candidate.site.realm != 0 || self.jobs_of.contains_key(lane) {
            return String::new();
        }
        let offers = match self.offers(candidate, now) {
            Ok(offers) => offers,
            Err(why) => return format!("; not moved to a shared virtual IP: {why}"),
        };
        if !self.wiring.overflows.has_room() {
            return String::new();
        }
        let of = (&self.wiring.queue, lane, &candidate.pace.site);
        let sweep = self.wiring.overflows.begin(of, offers, day_left, now);
        let of = lane.clone();
        let task = self.tasks.spawn(async move { Done::Overflow(of, sweep.run().await) });
        self.count(lane);
        self.running.insert(task.id(), Running::Overflow(lane.clone()));
        self.begun = self.begun.wrapping_add(1);
        "; looking whether a shared virtual IP may have it".to_owned()
    }

    /// The shared virtual IPs that may have mail of that lane; `Err` why there is none.
    fn offers(&mut self, candidate: &Candidate, now: Instant) -> Result<Vec<Offer>, String> {
        let lane = &candidate.lane;
        let mut why = "there is no other shared one".to_owned();
        let mut offers = Vec::new();
        for vip in self.sources.shared().into_iter().filter(|vip| vip.id != lane.vip) {
            // The tenant's word comes first: without it nothing else is looked at.
            self.wiring.queue.may_overflow(lane.tenant, vip.id)?;
            match self.offer(candidate, &vip, now) {
                Ok(offer) => offers.push(offer),
                Err(objection) => why = format!("{} {objection}", vip.ehlo),
            }
        }
        offers.sort_by_key(|offer| (offer.lent, offer.vip));
        offers.truncate(OFFERS_MAX);
        if offers.is_empty() { Err(why) } else { Ok(offers) }
    }

    fn offer(&mut self, candidate: &Candidate, vip: &Vip, now: Instant) -> Result<Offer, String> {
        let source = self.sources.source(vip.id, &self.settings, now).map_err(|_| "is not on this host")?;
        if families(&source) != families(&candidate.source) {
            return Err("has not the same address families".to_owned());
        }
        let there = Lane { vip: vip.id, ..candidate.lane.clone() };
        self.is_open(&there, &candidate.site)?;
        let pace = Path { vip: vip.id, ..candidate.pace.clone() };
        let path = Path { vip: vip.id, ..candidate.path.clone() };
        let takes = self.wiring.pacing.takes_overflow(&pace, self.wiring.queue.now());
        if !takes || self.shaper.pauses(&path, now) {
            return Err(format!("is warmed, slowed down, parked or paused for {}", pace.site));
        }
        let room = SWEEP_MAX.saturating_sub(self.wiring.queue.ready(&there));
        if room == 0 {
            return Err("has enough of it waiting".to_owned());
        }
        let addresses = vip.public_addresses().collect();
        Ok(Offer { vip: vip.id, ehlo: vip.ehlo.clone(), addresses, room, lent: self.wiring.overflows.lent(&pace) })
    }

    /// `Err` if an operator suspended or drains what the mail would be part of there.
    fn is_open(&self, there: &Lane, site: &Site) -> Result<(), String> {
        let (delivery, now) = (&self.wiring.delivery, Timestamp::now());
        let names = [None, Some(&*site.name), site.provider.as_deref()];
        let is_suspended = names.into_iter().any(|name| delivery.suspension(there, name, now).is_err());
        let whose = (there.tenant, None, there.vip);
        let drained = delivery.drained(whose, None, |_| None, now);
        if is_suspended || drained.is_some() { Err("is suspended or drained".to_owned()) } else { Ok(()) }
    }
}

/// Whether a source has IPv4 and IPv6.
fn families(source: &Source) -> (bool, bool) {
    let has = |is: fn(&std::net::IpAddr) -> bool| source.addresses.iter().any(is);
    (has(std::net::IpAddr::is_ipv4), has(std::net::IpAddr::is_ipv6))
}
