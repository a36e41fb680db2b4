//! The sessions of one recipient domain in one day (UTC), and what became of their report. Pure.
//!
//! Easy to get wrong: a peer chooses its certificates, names and policies, so the number of different things
//! that are counted apart is bounded, and the sums stay exact all the same.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::session::{Applied, Policy, Protection, ResultType, Session};
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId, VipId};

/// Policies of a domain counted apart in a day, at most; sessions under further ones are left out.
pub const POLICIES_MAX: usize = 16;
/// Failures of a policy counted apart in a day, at most; further ones are counted by result type alone.
pub const FAILURES_MAX: usize = 64;
/// A day.
pub(super) const DAY_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// Days since 1970 (UTC).
pub type Day = u32;

/// The day of a moment.
pub fn day_of(moment: Timestamp) -> Day {
    u32::try_from(moment.0 / DAY_MILLIS).unwrap_or(u32::MAX)
}

/// When a day begins.
pub fn begins(day: Day) -> Timestamp {
    Timestamp(u64::from(day).saturating_mul(DAY_MILLIS))
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Of which.
    pub result: ResultType,
    /// From which of our addresses.
    pub source: Option<IpAddr>,
    /// With which mail host.
    pub host: Option<String>,
    /// At which address.
    pub address: Option<IpAddr>,
    /// Why, for people; empty where different ones are counted together.
    pub reason: String,
    /// How many.
    pub sessions: u64,
}

/// Sessions under one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderPolicy {
    /// Which.
    pub policy: Policy,
    /// Those that satisfied it.
    pub successful: u64,
    /// Those that did not.
    pub failed: u64,
    /// The latter by kind.
    pub failures: Vec<Failures>,
}

/// Where a report is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// As the domain published it.
    pub uri: String,
    /// The id of the message that brings it there, if it goes by mail.
    pub id: QueueId,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a report on its way to one recipient. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is tried.
    Open,
    /// It was taken: by our own queue, or by the host it was posted to.
    Taken,
    /// It never will be, and why.
    Refused(String),
}

/// A report that is due and not sent yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// Names the report; the same at each try, so that receivers know it again.
    pub id: QueueId,
    /// When it was tried first.
    pub first: Timestamp,
    /// When it is tried next.
    pub next: Timestamp,
    /// How often it was tried.
    pub tries: u32,
    /// Where it goes; empty until that is known.
    pub recipients: Vec<Recipient>,
    /// Why the last try failed.
    pub error: String,
}

/// A report that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// When.
    pub at: Timestamp,
    /// To whom.
    pub to: Vec<String>,
    /// Sessions that satisfied their policies.
    pub successful: u64,
    /// Sessions that did not.
    pub failed: u64,
}

/// Where a day stands. Append new variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Sessions are counted, or were.
    Counting,
    /// The report is tried.
    Due(Due),
    /// It was sent; the counts are gone.
    Sent(Sent),
}

/// What happened with one recipient domain in one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainDay {
    /// The recipient domain.
    pub domain: Domain,
    /// The day.
    pub day: Day,
    /// The virtual IP of the last session.
    pub vip: VipId,
    /// By policy.
    pub policies: Vec<UnderPolicy>,
    /// Sessions under policies beyond [`POLICIES_MAX`].
    pub left_out: u64,
    /// Where it stands.
    pub stage: Stage,
}

impl DomainDay {
    pub(super) fn new(domain: &Domain, day: Day, vip: VipId) -> Self {
        Self { domain: domain.clone(), day, vip, policies: Vec::new(), left_out: 0, stage: Stage::Counting }
    }

    /// Sessions that satisfied their policies, and those that did not.
    pub fn totals(&self) -> (u64, u64) {
        match &self.stage {
            Stage::Sent(sent) => (sent.successful, sent.failed),
            Stage::Counting | Stage::Due(_) => self.policies.iter().fold((0_u64, 0_u64), |(good, bad), under| {
                (good.saturating_add(under.successful), bad.saturating_add(under.failed))
            }),
        }
    }

    /// Counts a session under one policy that was in force. `room` is how many octets it may take.
    pub(super) fn count(&mut self, session: &Session<'_>, applied: &Applied, protection: &Protection, room: usize) {
        self.vip = session.vip;
        let place = self.policies.iter().position(|under| under.policy == applied.policy);
        let place = place.or_else(|| {
            let has_room = self.policies.len() < POLICIES_MAX && applied.policy.octets() <= room;
            has_room.then(|| {
                let (policy, failures) = (applied.policy.clone(), Vec::new());
                self.policies.push(UnderPolicy { policy, successful: 0, failed: 0, failures });
                self.policies.len().saturating_sub(1)
            })
        });
        let Some(under) = place.and_then(|place| self.policies.get_mut(place)) else {
            self.left_out = self.left_out.saturating_add(1);
            return;
        };
        match applied.judge(protection) {
            Ok(()) => under.successful = under.successful.saturating_add(1),
            Err((result, reason)) => {
                under.failed = under.failed.saturating_add(1);
                under.note(session, (result, reason));
            }
        }
    }

    /// About how much memory it takes.
    pub(super) fn octets(&self) -> usize {
        let failures = |under: &UnderPolicy| {
            under.failures.iter().fold(0_usize, |sum, one| {
                let host = one.host.as_ref().map_or(0, String::len);
                sum.saturating_add(160).saturating_add(host).saturating_add(one.reason.len())
            })
        };
        self.policies
            .iter()
            .fold(256_usize, |sum, under| sum.saturating_add(under.policy.octets()).saturating_add(failures(under)))
    }
}

impl UnderPolicy {
    fn note(&mut self, session: &Session<'_>, (result, reason): (ResultType, String)) {
        let host = session.host.map(str::to_owned);
        let (source, address) = (session.source, session.address);
        let mut found = Failures { result, source, host, address, reason, sessions: 0 };
        if !self.failures.iter().any(|one| one.is_like(&found)) && self.failures.len() >= FAILURES_MAX {
            found = Failures { source: None, host: None, address: None, reason: String::new(), ..found };
        }
        match self.failures.iter_mut().find(|one| one.is_like(&found)) {
            Some(one) => one.sessions = one.sessions.saturating_add(1),
            None => self.failures.push(Failures { sessions: 1, ..found }),
        }
    }
}

impl Failures {
    fn is_like(&self, other: &Self) -> bool {
        (self.result, self.source, self.address) == (other.result, other.source, other.address)
            && self.host == other.host
            && self.reason == other.reason
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::{Lack, LackKind};
    use super::*;

    fn domain() -> Domain {
        Domain::parse("shop.example").unwrap()
    }

    fn session<'a>(domain: &'a Domain, host: &'a str, source: u8) -> Session<'a> {
        let source = Some(IpAddr::from([192, 0, 2, source]));
        Session { domain, vip: VipId(1), source, host: Some(host), address: Some([198, 51, 100, 1].into()) }
    }

    fn plain(reason: &str) -> Protection {
        Protection::Plain(Lack { kind: LackKind::NotOffered, reason: reason.to_owned() })
    }

    #[test]
    fn sessions_are_counted_by_policy_and_failures_by_what_they_have_in_common() {
        let (domain, mut day) = (domain(), DomainDay::new(&domain(), 1, VipId(1)));
        let none = Applied::from(Policy::none(&domain));
        let sts = Applied::from(Policy::sts(&domain, vec!["version: STSv1".into()], vec![]));
        for (host, source, applied, protection) in [
            ("mx1", 1, &none, Protection::Verified),
            ("mx1", 1, &none, plain("no")),
            ("mx1", 1, &none, plain("no")),
            ("mx1", 2, &none, plain("no")),
            ("mx2", 1, &sts, plain("no")),
        ] {
            day.count(&session(&domain, host, source), applied, &protection, usize::MAX);
        }
        let counted: Vec<_> = day.policies.iter().map(|one| (one.successful, one.failed, one.failures.len())).collect();
        assert_eq!(counted, [(1, 3, 2), (0, 1, 1)]);
        assert_eq!(day.policies[0].failures.iter().map(|one| one.sessions).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(day.totals(), (1, 4));
    }

    #[test]
    fn a_peer_of_ten_thousand_faces_takes_bounded_room_and_the_sums_stay_exact() {
        let (domain, mut day) = (domain(), DomainDay::new(&domain(), 1, VipId(1)));
        let none = Applied::from(Policy::none(&domain));
        for number in 0..10_000 {
            day.count(&session(&domain, "mx1", 1), &none, &plain(&format!("face {number}")), usize::MAX);
        }
        let under = &day.policies[0];
        assert_eq!((under.failed, under.failures.len()), (10_000, FAILURES_MAX + 1));
        assert_eq!(under.failures.iter().map(|one| one.sessions).sum::<u64>(), 10_000);
        assert_eq!(under.failures.last().map(|one| one.host.clone()), Some(None));
        for number in 0..100 {
            let policy = Policy::sts(&domain, vec![format!("mx: {number}")], vec![]);
            day.count(&session(&domain, "mx1", 1), &policy.into(), &Protection::Verified, usize::MAX);
        }
        assert_eq!((day.policies.len(), day.left_out), (POLICIES_MAX, 85));
        day.count(&session(&domain, "mx1", 1), &none, &Protection::Verified, 0);
        assert_eq!(day.left_out, 85, "what is known already needs no room");
    }
}
