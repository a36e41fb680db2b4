//! Whether mail is accepted now, and why not: what `/health/ready`, systemd's status line and the
//! gauges say. It only asks; it changes nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::rooms::Rooms;
use crate::breaker::Breaker;
use crate::calendar::Calendar;
use crate::delivery::{Delivery, Halt, TlsPolicies};
use crate::ext::Timestamp;
use crate::gate::{Fill, Gate, Shortage};
use crate::metrics;
use crate::net::{Certificates, Issuer, is_present};
use crate::notifications::Notifications;
use crate::queue::Queue;
use crate::store::{Blobs, Health, Store};
use crate::vips::Vips;
use crate::web::{Readiness, Remark};

/// A certificate that expires within this is a warning: 21 days.
const EXPIRY_WARNING_SECS: u64 = 21 * 86_400;

/// Where the daemon stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Rooms are being opened.
    Starting = 0,
    /// Mail is accepted.
    Serving = 1,
    /// No new sessions; what runs may finish.
    Draining = 2,
}

/// What readiness is read from.
pub(super) struct State {
    phase: AtomicU8,
    store: Arc<dyn Store>,
    blobs: Arc<dyn Blobs>,
    certificates: Arc<Certificates>,
    vips: Arc<Vips>,
    queue: Arc<Queue>,
    breaker: Arc<Breaker>,
    delivery: Arc<Delivery>,
    tls_policies: Arc<TlsPolicies>,
    gate: Arc<Gate>,
    notifications: Arc<Notifications>,
    calendar: Calendar,
    started: Timestamp,
}

impl State {
    pub(super) fn new(rooms: &Rooms, certificates: Arc<Certificates>, started: Timestamp) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            store: Arc::clone(&rooms.store),
            blobs: Arc::clone(&rooms.blobs),
            certificates,
            vips: Arc::clone(&rooms.vips),
            queue: Arc::clone(&rooms.queue),
            breaker: Arc::clone(&rooms.breaker),
            delivery: Arc::clone(&rooms.delivery),
            tls_policies: Arc::clone(&rooms.tls_policies),
            gate: Arc::clone(&rooms.gate),
            notifications: Arc::clone(&rooms.notifications),
            calendar: rooms.calendar.clone(),
            started,
        }
    }

    /// Moves on to `phase`.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Virtual IPs' addresses that are not on this host.
    pub(super) fn missing_addresses(&self) -> Vec<IpAddr> {
        self.vips.all().iter().flat_map(|vip| vip.addresses()).filter(|address| !is_present(*address)).collect()
    }

    /// Whether mail is accepted, and what deserves attention.
    pub(super) fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        let against = |code, text: &str| Remark { code, text: text.to_owned() };
        match self.phase.load(Ordering::SeqCst) {
            phase if phase == Phase::Starting as u8 => readiness.reasons.push(against("starting", "still starting")),
            phase if phase == Phase::Draining as u8 => readiness.reasons.push(against("draining", "stopping")),
            _ => {}
        }
        match self.store.health() {
            Health::Accepting => {}
            Health::LowSpace(why) => readiness.reasons.push(Remark { code: "low-space", text: why }),
            Health::Stopped(why) => readiness.reasons.push(Remark { code: "store-stopped", text: why }),
        }
        if let Some(shortage) = self.gate.load().shortage {
            let code = match shortage {
                Shortage::Memory => "short-of-memory",
                Shortage::Descriptors => "short-of-descriptors",
            };
            readiness.reasons.push(Remark { code, text: format!("{}; new sessions are refused", shortage.words()) });
        }
        self.warnings(&mut readiness.warnings);
        readiness
    }

    /// No names and no addresses here: the page has no login.
    fn warnings(&self, warnings: &mut Vec<Remark>) {
        let mut warn = |code, text: String| warnings.push(Remark { code, text });
        if self.vips.all().is_empty() {
            warn("no-virtual-ip", "no virtual IP has been added; nobody can log in".to_owned());
        }
        match self.missing_addresses().len() {
            0 => {}
            count => warn(
                "virtual-ip-missing",
                format!("{count} addresses of virtual IPs are not on this host; their mail waits"),
            ),
        }
        match self.breaker.paused() {
            0 => {}
            count => warn("smtp-account-paused", format!("{count} SMTP accounts are paused; their mail waits")),
        }
        if !self.certificates.has_default() {
            warn("no-certificate", "no certificate covers this machine's name".to_owned());
        }
        let now = Timestamp::now();
        if let Some(doubt) = self.calendar.doubt(now) {
            warn("clock-jumped", doubt.words());
        }
        if self.notifications.backup_standing(now).is_overdue {
            warn("backup-overdue", "no backup was made for too long".to_owned());
        }
        let expiries = self.certificates.expiries();
        let soon = expiries.iter().filter(|expiry| expiry.not_after.since(now).as_secs() < EXPIRY_WARNING_SECS).count();
        if soon > 0 {
            warn("certificate-expires", format!("{soon} certificates expire within 21 days or have expired"));
        }
        let own = expiries.iter().filter(|expiry| expiry.issuer == Issuer::Itself).count();
        if own > 0 {
            warn("certificate-self-signed", format!("{own} certificates are self-signed; clients do not trust them"));
        }
    }

    /// Sets the gauges that nobody else keeps.
    pub(super) fn measure(&self) {
        metrics::set(metrics::READY, if self.readiness().is_ready() { 1.0 } else { 0.0 });
        metrics::set(metrics::STARTED, lossy(self.started.as_secs()));
        let is_doubted = self.calendar.doubt(Timestamp::now()).is_some();
        metrics::set(metrics::CLOCK_DOUBTED, if is_doubted { 1.0 } else { 0.0 });
        let usage = self.blobs.usage();
        metrics::set(metrics::BODIES_LIVE, lossy(usage.live_bytes));
        metrics::set(metrics::QUEUE_MESSAGES, lossy(usage.live_bodies));
        let missing = u64::try_from(self.missing_addresses().len()).unwrap_or(u64::MAX);
        metrics::set(metrics::VIPS_MISSING, lossy(missing));
        let paused = u64::try_from(self.breaker.paused()).unwrap_or(u64::MAX);
        metrics::set(metrics::ACCOUNTS_PAUSED, lossy(paused));
        metrics::set(metrics::BODIES_FILES, lossy(usage.file_bytes));
        let owed = self.queue.totals();
        for (name, number) in [
            (metrics::QUEUE_LANES, owed.lanes),
            (metrics::QUEUE_IN_FLIGHT, owed.claimed),
            (metrics::QUEUE_NOTICES, owed.notices),
            (metrics::QUEUE_UNRECORDED, owed.unrecorded),
            (metrics::QUEUE_ACTS, self.queue.sweeps_running()),
            (metrics::STS_KEPT, self.tls_policies.count()),
        ] {
            metrics::set(name, lossy(u64::try_from(number).unwrap_or(u64::MAX)));
        }
        let last_backup = self.notifications.backup_standing(self.started).last;
        metrics::set(metrics::BACKUP_LAST, lossy(last_backup.map_or(0, Timestamp::as_secs)));
        for (kind, halt) in [("suspended", Halt::Sending), ("drained", Halt::Taking)] {
            let number = self.delivery.halted(halt, Timestamp::now());
            let label = ("kind", kind.to_owned());
            metrics::set_labelled(metrics::HALTS, label, lossy(u64::try_from(number).unwrap_or(u64::MAX)));
        }
        self.measure_load();
        if let Some(bytes) = resident_bytes() {
            metrics::set(metrics::RESIDENT, lossy(bytes));
        }
        for expiry in self.certificates.expiries() {
            metrics::set_labelled(
                metrics::CERTIFICATE_EXPIRY,
                ("certificate", expiry.folder),
                lossy(expiry.not_after.as_secs()),
            );
        }
    }
}

impl State {
    fn measure_load(&self) {
        let load = self.gate.load();
        let fill = |fill: Option<Fill>, used, limit| {
            if let Some(fill) = fill {
                metrics::set(used, lossy(fill.used));
                metrics::set(limit, lossy(fill.limit));
            }
        };
        fill(load.memory, metrics::MEMORY_USED, metrics::MEMORY_LIMIT);
        fill(load.descriptors, metrics::DESCRIPTORS_OPEN, metrics::DESCRIPTORS_LIMIT);
        for shortage in [Shortage::Memory, Shortage::Descriptors] {
            let is_short = load.shortage == Some(shortage);
            let label = ("shortage", shortage.name().to_owned());
            metrics::set_labelled(metrics::SHEDDING, label, if is_short { 1.0 } else { 0.0 });
        }
    }
}

/// A gauge's value; above 2^53 it is rounded, which no reader minds.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn lossy(number: u64) -> f64 {
    number as f64
}

/// Resident memory from `/proc/self/status`; `None` where there is no such file.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
