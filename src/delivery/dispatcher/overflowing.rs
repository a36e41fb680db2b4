//! Where mail goes that a warm-up has no room for: which of the virtual IPs its tenant named are there, warm
//! and in shape.
//!
//! Easy to get wrong: only shared ones are ever offered, whatever a tenant named, and only to mail that
//! leaves by MX: what a relay sends on does not show our address to anybody's SPF check.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::overflow::{Offer, SWEEP_MAX, Swept};
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
        if !self.wiring.overflows.has_room(lane.tenant) {
            // The end of what is looked at now stirs the loop.
            return "; other mail is looked at first for a shared virtual IP that may have it".to_owned();
        }
        let of = (&self.wiring.queue, lane, &candidate.pace.site);
        let sweep = self.wiring.overflows.begin(of, offers, day_left, now);
        let task = self.tasks.spawn(async move { Done::Overflow(sweep.run().await) });
        self.count(lane);
        self.running.insert(task.id(), Running::Overflow(lane.clone()));
        self.begun = self.begun.wrapping_add(1);
        "; looking whether a shared virtual IP may have it".to_owned()
    }

    /// A sweep of the lane has ended; `None` is by a fault of ours.
    pub(super) fn swept(&mut self, lane: &Lane, swept: Option<Swept>, now: Instant) {
        if let Some((site, swept)) = swept.as_ref().and_then(|swept| Some((swept.site.as_ref()?, swept))) {
            let from = Path { site: site.clone(), vip: lane.vip };
            self.wiring.pacing.overflowed(&from, swept.count());
        }
        self.wiring.overflows.ended(lane, swept, now);
    }

    /// The shared virtual IPs that may have mail of that lane; `Err` why there is none.
    fn offers(&mut self, candidate: &Candidate, now: Instant) -> Result<Vec<Offer>, String> {
        let lane = &candidate.lane;
        let mut why = "its tenant names no other shared one".to_owned();
        let mut offers = Vec::new();
        let named = self.wiring.queue.overflow_to(lane.tenant);
        let others = named.into_iter().filter(|named| *named != lane.vip);
        for vip in others.filter_map(|named| self.sources.shared(named)).collect::<Vec<_>>() {
            match self.offer(candidate, &vip, now) {
                Ok(offer) => offers.push(offer),
                Err(objection) => why = format!("{} {objection}", vip.ehlo),
            }
        }
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
        let addresses: Vec<IpAddr> = vip.public_addresses().collect();
        if addresses.is_empty() {
            return Err("has no address".to_owned());
        }
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
    let has = |is: fn(&IpAddr) -> bool| source.addresses.iter().any(is);
    (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6))
}
