//! TLS reporting (RFC 8460): what TLS came to with each recipient domain in a day, and one report of it to
//! those domains that ask for one. An operator's switch; off, nothing is counted.
//!
//! Recipe: [`TlsReports::open`]; delivery calls [`TlsReports::count`] for each session; one task runs
//! [`TlsReports::run`], which writes the counts, sends what is due and forgets what is old.
//! Easy to get wrong: only that task writes, so that no older state of a day is written over a newer one; and
//! a report has its id before it is sent, so that a crash in between sends it once.

mod counts;
mod letter;
mod record;
mod report;
mod sending;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

pub use counts::{Day, DomainDay, Due, FAILURES_MAX, Failures, Fate, POLICIES_MAX, Recipient, Sent, Stage};
pub use counts::{UnderPolicy, begins, day_of};
pub use record::RECIPIENTS_MAX;
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use record::{Whereto, recipients, whereto};
pub use report::{DateRange, Detail, Named, Policy as ReportedPolicy, Report, Submitter, Summary};
pub use sending::due_at;
pub use session::{Applied, Lack, LackKind, Policy, PolicyType, Protection, ResultType, Session};

use crate::access::{Actor, Permission};
use crate::background::Shutdown;
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::intake::Intake;
use crate::mail::{Domain, QueueId, TenantId};
use crate::net::{Line, Post, Resolver};
use crate::records::{self, AdminError, Damage};
use crate::store::{Batch, CommitError, Key, Store, StoreError, codec, prefix};
use crate::vips::{Vip, Vips};

/// Recipient domains counted at a time, of all days together, at most; sessions of further ones are left out.
pub const DOMAINS_MAX: usize = 100_000;
/// Memory that counts may take, about.
pub const OCTETS_MAX: usize = 64 * 1024 * 1024;
/// What is known of a day is forgotten this long after its end, sent or not.
pub const KEPT: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// How often counts are written and reports that are due are looked for.
const EVERY: Duration = Duration::from_secs(20);
/// Records written in one batch, at most.
const WRITTEN_MAX: usize = 500;

/// What an operator may set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether sessions are counted and reports sent (no).
    pub sending: Sending,
    /// Who reports (`hostname`).
    pub organization: String,
    /// Whom receivers may ask (postmaster at `hostname`).
    pub contact: String,
}

/// Whether reports are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sending {
    /// No, and nothing is counted.
    #[default]
    Off,
    /// Yes.
    On,
}

/// By which name mail of a tenant from a virtual IP is signed, if there is one.
pub type SignedAs = Arc<dyn Fn(&Vip, TenantId) -> Option<Domain> + Send + Sync>;

/// What the room is built from.
pub struct Parts {
    /// The counts.
    pub store: Arc<dyn Store>,
    /// Who asks for reports.
    pub resolver: Arc<dyn Resolver>,
    /// Reports that go by HTTPS.
    pub post: Arc<dyn Post>,
    /// By which reports go by mail.
    pub vips: Arc<Vips>,
    /// `Domains::name_signer`: reports that nobody signs are ignored.
    pub signed_as: SignedAs,
    /// By which days lapse, and reports are given up.
    pub calendar: Calendar,
}

type Of = (Day, Domain);

/// One domain and day, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The recipient domain.
    pub domain: Domain,
    /// The day.
    pub day: Day,
    /// Sessions that satisfied their policies.
    pub successful: u64,
    /// Sessions that did not.
    pub failed: u64,
    /// Sessions that were not counted, for want of room.
    pub left_out: u64,
    /// When its report is tried next; `None` if it was sent.
    pub next: Option<Timestamp>,
    /// Where it stands.
    pub stage: Stage,
}

impl Listed {
    fn of(day: &DomainDay) -> Self {
        let (successful, failed) = day.totals();
        let next = match &day.stage {
            Stage::Counting => Some(due_at(day.day, &day.domain)),
            Stage::Due(due) => Some(due.next),
            Stage::Sent(_) => None,
        };
        let (domain, stage) = (day.domain.clone(), day.stage.clone());
        Self { domain, day: day.day, successful, failed, left_out: day.left_out, next, stage }
    }
}

#[derive(Default)]
struct Kept {
    days: BTreeMap<Of, DomainDay>,
    /// Not written yet.
    changed: BTreeSet<Of>,
    octets: usize,
    /// Sessions of domains beyond [`DOMAINS_MAX`] or [`OCTETS_MAX`], since the start.
    left_out: u64,
}

/// Everything there is to report.
pub struct TlsReports {
    parts: Parts,
    settings: RwLock<Arc<Settings>>,
    kept: Mutex<Kept>,
    wake: Notify,
    line: Line,
    damaged: Vec<Damage>,
}

impl TlsReports {
    /// Reads what was counted.
    ///
    /// # Errors
    /// If the records cannot be read at all; single ones that cannot be are set aside.
    pub fn open(parts: Parts, settings: Settings) -> Result<Self, StoreError> {
        let (stored, damaged) = records::load::<DomainDay>(&*parts.store, &[prefix::TLS_REPORT, b'd'])?;
        let days: BTreeMap<Of, DomainDay> =
            stored.into_iter().map(|(_, day)| ((day.day, day.domain.clone()), day)).collect();
        let octets = days.values().map(DomainDay::octets).sum();
        let kept = Mutex::new(Kept { days, octets, ..Kept::default() });
        let (settings, wake, line) = (RwLock::new(Arc::new(settings)), Notify::new(), Line::default());
        Ok(Self { parts, settings, kept, wake, line, damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on by other settings, and looks at once for what is due.
    pub fn adjust(&self, settings: &Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings.clone());
        self.wake.notify_one();
    }

    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        self.settings().sending == Sending::On
    }

    /// Counts a session under each policy that was in force.
    pub fn count(&self, session: &Session<'_>, policies: &[Applied], protection: &Protection, now: Timestamp) {
        if policies.is_empty() || !self.is_on() {
            return;
        }
        let of = (day_of(now), session.domain.clone());
        let mut kept = records::lock(&self.kept);
        let room = OCTETS_MAX.saturating_sub(kept.octets);
        let is_known = kept.days.contains_key(&of);
        if !is_known && (kept.days.len() >= DOMAINS_MAX || room == 0) {
            if kept.left_out == 0 {
                tracing::warn!(domain = %session.domain, "too much to count for TLS reports; further domains are left out");
            }
            kept.left_out = kept.left_out.saturating_add(1);
            return;
        }
        let day = kept.days.entry(of.clone()).or_insert_with(|| DomainDay::new(session.domain, of.0, session.vip));
        // Only after a clock that went back.
        if day.stage != Stage::Counting {
            return;
        }
        let before = if is_known { day.octets() } else { 0 };
        for applied in policies {
            day.count(session, applied, protection, room);
        }
        let after = day.octets();
        kept.octets = kept.octets.saturating_sub(before).saturating_add(after);
        kept.changed.insert(of);
    }

    /// Every domain and day there is something of, in no order.
    ///
    /// # Errors
    /// If the actor may not.
    pub fn list(&self, actor: &Actor) -> Result<Vec<Listed>, AdminError> {
        actor.require(Permission::ReadInstance)?;
        let kept = records::lock(&self.kept);
        Ok(kept.days.values().map(Listed::of).collect())
    }

    /// What would be reported about a domain's latest day that is not reported yet.
    ///
    /// # Errors
    /// If the actor may not, or there is nothing to report.
    pub fn preview(&self, actor: &Actor, domain: &Domain) -> Result<(DomainDay, Report), AdminError> {
        actor.require(Permission::ReadInstance)?;
        let day = {
            let kept = records::lock(&self.kept);
            let open = kept.days.values().filter(|day| day.domain == *domain);
            open.filter(|day| !matches!(day.stage, Stage::Sent(_))).max_by_key(|day| day.day).cloned()
        };
        let day = day.ok_or_else(|| AdminError::Missing(format!("TLS report about {domain}")))?;
        let id = match &day.stage {
            Stage::Due(due) => due.id,
            Stage::Counting | Stage::Sent(_) => QueueId::new(begins(day.day)),
        };
        let egress = self.egress(day.vip).ok();
        let settings = self.settings();
        let domain = egress.map_or_else(|| day.domain.clone(), |egress| egress.signed_as);
        let by = Submitter { organization: &settings.organization, contact: &settings.contact, domain: &domain };
        let report = Report::of(&day, id, &by, &|address| self.seen_as(address));
        Ok((day, report))
    }

    /// What the world sees of an address of ours.
    fn seen_as(&self, address: IpAddr) -> IpAddr {
        let Some(vip) = self.parts.vips.by_address(address) else { return address };
        match address.to_canonical() {
            IpAddr::V4(_) => vip.public_ipv4.map_or(address, IpAddr::V4),
            IpAddr::V6(_) => vip.public_ipv6.map_or(address, IpAddr::V6),
        }
    }

    /// Writes counts, sends reports, forgets, until `shutdown`; writes once more at its end.
    pub async fn run(&self, intake: Arc<Intake>, shutdown: Shutdown) {
        loop {
            self.write().await;
            if shutdown.is_cancelled() {
                return;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.round(&intake, Timestamp::now()) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// Writes what changed since it was written last.
    async fn write(&self) {
        loop {
            let (written, batch) = {
                let mut kept = records::lock(&self.kept);
                let mut batch = Batch::new();
                let written: Vec<Of> = kept.changed.iter().take(WRITTEN_MAX).cloned().collect();
                for of in &written {
                    kept.changed.remove(of);
                    match kept.days.get(of) {
                        Some(day) => batch.set(key(of), codec::encode(day)),
                        None => batch.remove(key(of)),
                    };
                }
                (written, batch)
            };
            if written.is_empty() {
                return;
            }
            if let Err(error) = self.parts.store.commit(batch).await {
                tracing::warn!(%error, "counts for TLS reports could not be written yet");
                return records::lock(&self.kept).changed.extend(written);
            }
        }
    }

    /// Puts a day in its new state, or removes it, on disk too if the disk lets us; else soon.
    async fn put(&self, of: Of, day: Option<DomainDay>) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        match &day {
            Some(day) => batch.set(key(&of), codec::encode(day)),
            None => batch.remove(key(&of)),
        };
        {
            let mut kept = records::lock(&self.kept);
            let after = day.as_ref().map_or(0, DomainDay::octets);
            let before = match day {
                Some(day) => kept.days.insert(of.clone(), day),
                None => kept.days.remove(&of),
            };
            let before = before.as_ref().map_or(0, DomainDay::octets);
            kept.octets = kept.octets.saturating_sub(before).saturating_add(after);
        }
        let written = self.parts.store.commit(batch).await;
        if let Err(error) = &written {
            tracing::warn!(domain = %of.1, %error, "where a TLS report stands could not be written yet");
            records::lock(&self.kept).changed.insert(of);
        }
        written
    }
}

fn key((day, domain): &Of) -> Key {
    [&[prefix::TLS_REPORT, b'd'][..], &day.to_be_bytes(), domain.as_str().as_bytes()].concat()
}

/// A room that counts nothing, for tests of other rooms.
#[cfg(test)]
pub(crate) fn idle(store: Arc<crate::store::MemoryStore>) -> TlsReports {
    tests::room(store, Sending::Off).reports
}

#[cfg(test)]
mod tests;
