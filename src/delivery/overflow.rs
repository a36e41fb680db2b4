//! What the warm-up of a virtual IP has no room for, on its way to a warm shared one that its tenant named.
//!
//! Recipe: the dispatcher says which of these virtual IPs are there and in shape ([`Offer`]); a [`Sweep`]
//! claims some of a lane, asks whether the SPF record of each return-path's domain permits one of them,
//! and lets [`Queue::overflow`] change the lane; [`Overflows`] remembers what came of it.
//! Easy to get wrong: only *pass* counts, for every address the virtual IP may leave by; what is not known
//! waits. Whatever becomes of a sweep, every claim comes back, as does what it holds of the [`Shares`].

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;

use super::client::ReturnAddress;
use super::shaping::Path;
use super::shares::{Shares, Supply};
use super::sources::after;
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId, VipId};
use crate::metrics::OVERFLOWED;
use crate::net::{Resolver, Spf, SpfAnswer, SpfQuestion};
use crate::queue::{Claim, Queue};
use crate::records;
use crate::routing::Lane;

/// Messages that one sweep of a lane looks at, at most; no more wait in the lane they are moved to.
pub(super) const SWEEP_MAX: usize = 200;
/// Sweeps at a time, in all and of one tenant.
const SWEEPS: Supply = Supply { max: 20, per_tenant_max: 15 };
/// Domains that one sweep asks about, at most; mail of further ones is looked at by the next.
const DOMAINS_MAX: usize = 20;
/// Questions asked at a time.
const ASKED_AT_ONCE: usize = 8;
/// What was not answered after this is not known.
const ASKING_MAX: Duration = Duration::from_secs(60);
/// Changes of lanes written at a time.
const MOVED_AT_ONCE: usize = 16;
/// A lane of which something was moved is looked at again after this.
const GAP: Duration = Duration::from_secs(1);
/// A lane of which nothing could be moved is looked at again after this.
const REST: Duration = Duration::from_secs(60);
/// Mail that could not be moved is looked at again after this, unless its day ends before.
const PASSED_OVER: Duration = Duration::from_secs(300);
/// A pass is believed no longer than this, whatever its TTL.
const PASS_KEPT_MAX: Duration = Duration::from_secs(600);
/// Any other judgement is believed no longer than this.
const OTHER_KEPT_MAX: Duration = Duration::from_secs(300);
/// That DNS did not answer is believed so long.
const UNANSWERED_KEPT: Duration = Duration::from_secs(60);
/// Judgements kept, at most.
const JUDGEMENTS_MAX: usize = 10_000;
/// Lanes whose rest is remembered, at most; no further ones are looked at meanwhile.
const RESTING_MAX: usize = 10_000;
/// Pairs of site and virtual IP of which is remembered how much was moved there, at most.
const LENT_MAX: usize = 10_000;

/// A warm shared virtual IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Which.
    pub(super) vip: VipId,
    /// Its EHLO name.
    pub(super) ehlo: Domain,
    /// The addresses the world sees.
    pub(super) addresses: Vec<IpAddr>,
    /// Messages that may be moved there now, at most.
    pub(super) room: usize,
    /// Messages that were moved there for this site so far.
    pub(super) lent: u64,
}

/// What a sweep came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Messages moved, by virtual IP.
    pub(super) moved: HashMap<VipId, u64>,
    /// What keeps the rest, for people.
    pub(super) kept: Option<String>,
    /// The site.
    pub(super) site: Option<Arc<str>>,
}

impl Swept {
    /// How many messages were moved.
    pub(super) fn count(&self) -> u64 {
        self.moved.values().fold(0, |sum, moved| sum.saturating_add(*moved))
    }
}

/// What is known beyond one sweep.
pub(super) struct Overflows {
    resolver: Arc<dyn Resolver>,
    return_path: ReturnAddress,
    judgements: Arc<Judgements>,
    sweeps: Shares,
    resting: HashMap<Lane, (Instant, String)>,
    lent: HashMap<Path, u64>,
}

impl Overflows {
    pub(super) fn new(resolver: Arc<dyn Resolver>, return_path: ReturnAddress) -> Self {
        let judgements = Arc::new(Judgements::default());
        let (sweeps, resting, lent) = (Shares::default(), HashMap::new(), HashMap::new());
        Self { resolver, return_path, judgements, sweeps, resting, lent }
    }

    /// Until when a lane is left alone, and what is said of it.
    pub(super) fn rests(&self, lane: &Lane, now: Instant) -> Option<(Instant, &str)> {
        self.resting.get(lane).filter(|(until, _)| now < *until).map(|(until, words)| (*until, words.as_str()))
    }

    /// How much was moved to that virtual IP for a site.
    pub(super) fn lent(&self, path: &Path) -> u64 {
        self.lent.get(path).copied().unwrap_or(0)
    }

    /// Leaves a lane alone for a while.
    fn rest(&mut self, lane: &Lane, span: Duration, words: String, now: Instant) {
        self.resting.insert(lane.clone(), (after(now, span), words));
    }

    /// Whether one lane more of that tenant may be looked at.
    pub(super) fn has_room(&self, tenant: TenantId) -> bool {
        self.resting.len() < RESTING_MAX && self.sweeps.room(tenant, SWEEPS).is_ok()
    }

    /// A sweep of the lane, to be run as a task; [`Overflows::ended`] once it has ended, however it did. Meanwhile the
    /// lane rests.
    pub(super) fn begin(
        &mut self,
        (queue, lane, site): (&Arc<Queue>, &Lane, &Arc<str>),
        offers: Vec<Offer>,
        day_left: Duration,
        now: Instant,
    ) -> Sweep {
        self.rest(lane, ASKING_MAX.saturating_add(REST), String::new(), now);
        self.sweeps.take(lane.tenant);
        Sweep {
            queue: Arc::clone(queue),
            resolver: Arc::clone(&self.resolver),
            return_path: Arc::clone(&self.return_path),
            judgements: Arc::clone(&self.judgements),
            lane: lane.clone(),
            site: Arc::clone(site),
            offers,
            pause: PASSED_OVER.min(day_left),
        }
    }

    /// A sweep has ended; `None` is by a fault of ours.
    pub(super) fn ended(&mut self, lane: &Lane, swept: Option<Swept>, now: Instant) {
        self.sweeps.give_back(lane.tenant);
        let Some(swept) = swept else { return self.rest(lane, REST, String::new(), now) };
        let count = swept.count();
        if let Some(site) = swept.site {
            if self.lent.len() >= LENT_MAX {
                self.lent.clear();
            }
            for (vip, moved) in swept.moved {
                let lent = self.lent.entry(Path { site: Arc::clone(&site), vip }).or_default();
                *lent = lent.saturating_add(moved);
            }
        }
        let kept = swept.kept.map(|kept| format!("; not moved to a shared virtual IP: {kept}"));
        if count == 0 {
            return self.rest(lane, REST, kept.unwrap_or_default(), now);
        }
        tracing::info!(from = %lane.vip, to = %lane.next_hop, count, "a warm-up had no room for mail: it leaves by a shared virtual IP");
        metrics::counter!(OVERFLOWED).increment(count);
        let moved = format!("; {count} messages were moved to a shared virtual IP just now");
        self.rest(lane, GAP, moved + &kept.unwrap_or_default(), now);
    }

    /// Forgets what is over.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.resting.retain(|_, (until, _)| now < *until);
        self.judgements.forget_old(now);
    }
}

/// What was said about a domain and an address, for a while.
#[derive(Default)]
struct Judgements(Mutex<HashMap<(Domain, IpAddr), (Spf, Instant)>>);

impl Judgements {
    fn known(&self, domain: &Domain, address: IpAddr, now: Instant) -> Option<Spf> {
        let known = records::lock(&self.0);
        known.get(&(domain.clone(), address)).filter(|(_, until)| now < *until).map(|(spf, _)| *spf)
    }

    fn learn(&self, domain: Domain, address: IpAddr, answer: SpfAnswer, now: Instant) {
        let most = match answer.result {
            Spf::Pass => PASS_KEPT_MAX,
            Spf::TemporaryError => UNANSWERED_KEPT,
            _ => OTHER_KEPT_MAX,
        };
        let most = after(now, most);
        let until = answer.good_until.map_or(most, |good| good.min(most));
        let mut known = records::lock(&self.0);
        if known.len() >= JUDGEMENTS_MAX {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() >= JUDGEMENTS_MAX {
            known.clear();
        }
        // Good for a moment at least, or a TTL of 0 would be asked about for ever.
        known.insert((domain, address), (answer.result, until.max(after(now, GAP))));
    }

    fn forget_old(&self, now: Instant) {
        records::lock(&self.0).retain(|_, (_, until)| now < *until);
    }
}

/// Who says MAIL, as the peer's SPF check will see it.
struct Sender {
    /// The reverse-path; `None` is the null one, for which the EHLO name stands (RFC 7208 s2.4).
    said: Option<(String, Domain)>,
}

impl Sender {
    fn of(claim: &Claim, return_path: &ReturnAddress) -> Self {
        let message = &claim.message;
        let number = claim.record.recipients.first().map_or(0, |recipient| recipient.number);
        let own = message.return_path.as_ref().map(|name| return_path(claim.queue_id, number, name));
        let said = own.or_else(|| message.reverse_path.0.clone());
        Self { said: said.map(|address| (address.to_string(), address.domain().clone())) }
    }

    /// The domain whose record is asked for.
    fn domain<'a>(&'a self, offer: &'a Offer) -> &'a Domain {
        self.said.as_ref().map_or(&offer.ehlo, |(_, domain)| domain)
    }

    fn address(&self, offer: &Offer) -> String {
        self.said.as_ref().map_or_else(|| format!("postmaster@{}", offer.ehlo), |(address, _)| address.clone())
    }
}

/// One look at a lane.
pub(super) struct Sweep {
    queue: Arc<Queue>,
    resolver: Arc<dyn Resolver>,
    return_path: ReturnAddress,
    judgements: Arc<Judgements>,
    lane: Lane,
    site: Arc<str>,
    offers: Vec<Offer>,
    pause: Duration,
}

/// A claim that is released when it is dropped.
struct Held {
    queue: Arc<Queue>,
    claim: Option<Claim>,
    pause: Duration,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.queue.release(claim, self.pause);
        }
    }
}

impl Sweep {
    /// Moves what may be moved; all that was claimed is given back.
    pub(super) async fn run(self) -> Swept {
        self.run_within(ASKING_MAX).await
    }

    async fn run_within(mut self, asking_max: Duration) -> Swept {
        let most = self.offers.iter().map(|offer| offer.room).fold(0, usize::saturating_add).min(SWEEP_MAX);
        let left = self.queue.claim(&self.lane, most);
        // What lies behind gets its look before these are looked at again; if nothing does, they just wait on.
        let pause = if left.len() < most { Duration::ZERO } else { self.pause };
        let senders: Vec<Sender> = left.iter().map(|claim| Sender::of(claim, &self.return_path)).collect();
        let hold = |claim| Held { queue: Arc::clone(&self.queue), claim: Some(claim), pause };
        let held: Vec<Held> = left.into_iter().map(hold).collect();
        // What is not answered by then is not known, and waits.
        let _ = tokio::time::timeout(asking_max, self.ask(&senders)).await;
        let (mut moves, mut kept) = (Vec::new(), None);
        for (held, sender) in held.into_iter().zip(&senders) {
            match held.claim.as_ref().map(|claim| self.choose(claim, sender)) {
                Some(Ok((vip, reason))) => moves.push((held, vip, reason)),
                Some(Err(why)) => {
                    kept.get_or_insert(why);
                }
                None => {}
            }
        }
        let queue = &self.queue;
        let moving = moves.into_iter().map(|(mut held, vip, reason)| async move {
            let Some(claim) = held.claim.take() else { return (vip, Ok(false)) };
            (vip, queue.overflow(claim, (vip, &reason), pause, Timestamp::now()).await)
        });
        let ended: Vec<_> = stream::iter(moving).buffer_unordered(MOVED_AT_ONCE).collect().await;
        let mut swept = Swept { site: Some(self.site), ..Swept::default() };
        for (vip, ended) in ended {
            match ended {
                Ok(true) => {
                    let moved = swept.moved.entry(vip).or_default();
                    *moved = moved.saturating_add(1);
                }
                Ok(false) => {}
                Err(error) => drop(kept.get_or_insert_with(|| error.to_string())),
            }
        }
        Swept { kept, ..swept }
    }

    /// Asks DNS what is not known about these senders.
    async fn ask(&self, senders: &[Sender]) {
        let now = Instant::now();
        let mut asked: HashMap<(Domain, IpAddr), (String, Domain)> = HashMap::new();
        let mut domains = HashSet::new();
        for sender in senders {
            for offer in &self.offers {
                let domain = sender.domain(offer);
                let is_new = |address: &&IpAddr| self.judgements.known(domain, **address, now).is_none();
                let unknown: Vec<IpAddr> = offer.addresses.iter().filter(is_new).copied().collect();
                if unknown.is_empty() || (domains.len() >= DOMAINS_MAX && !domains.contains(domain)) {
                    continue;
                }
                domains.insert(domain.clone());
                let questions = unknown.into_iter().map(|address| (domain.clone(), address));
                let said = (sender.address(offer), offer.ehlo.clone());
                asked.extend(questions.map(|question| (question, said.clone())));
            }
        }
        let questions = asked.into_iter().map(|((domain, address), (sender, helo))| async move {
            let question = SpfQuestion { address, sender: &sender, helo: &helo };
            let answer = self.resolver.spf(&question).await;
            self.judgements.learn(domain, address, answer, Instant::now());
        });
        stream::iter(questions).buffer_unordered(ASKED_AT_ONCE).for_each(|()| std::future::ready(())).await;
    }

    /// By which virtual IP a claim leaves, and what its trail says of it; `Err` why it stays. Of those that
    /// may have it the one that got least so far takes it.
    fn choose(&mut self, claim: &Claim, sender: &Sender) -> Result<(VipId, String), String> {
        if claim.message.vip != self.lane.vip {
            return Err("it was moved here already".to_owned());
        }
        let now = Instant::now();
        let mut why = None;
        let mut fitting = Vec::new();
        for (place, offer) in self.offers.iter().enumerate().filter(|(_, offer)| offer.room > 0) {
            let domain = sender.domain(offer);
            let objection =
                offer.addresses.iter().find_map(|address| match self.judgements.known(domain, *address, now) {
                    Some(Spf::Pass) => None,
                    Some(spf) => Some(format!("SPF of {domain} does not permit {address} ({})", spf.word())),
                    None => Some(format!("SPF of {domain} is not known yet")),
                });
            match objection {
                None => fitting.push((offer.lent, offer.vip, place)),
                Some(objection) => drop(why.get_or_insert(objection)),
            }
        }
        let least = fitting.into_iter().min();
        let chosen = least.and_then(|(_, _, place)| self.offers.get_mut(place));
        let Some(offer) = chosen else {
            return Err(why.unwrap_or_else(|| "enough of it waits there".to_owned()));
        };
        offer.room = offer.room.saturating_sub(1);
        offer.lent = offer.lent.saturating_add(1);
        let reason = format!("warm-up overflow, SPF of {} permits {}", sender.domain(offer), words(&offer.addresses));
        Ok((offer.vip, reason))
    }
}

fn words(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
#[path = "overflow_tests.rs"]
pub(super) mod tests;
