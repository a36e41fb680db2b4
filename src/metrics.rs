//! Every metric: its name, kind, unit and help, declared once. Rooms use the constants with the
//! macros of the `metrics` crate; a metric that is not in [`ALL`] does not exist.
//!
//! Recipe: the daemon calls [`exporter`] once and renders it when asked.
//! Labels stay few: never an address, a login, a recipient domain.

use std::sync::{Mutex, PoisonError};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// What kind a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, in seconds or bytes as the name says.
    Histogram,
}

/// Messages for which a 250 was said.
pub const ACCEPTED: &str = "postern_messages_accepted_total";
/// Messages refused by the pipeline, label `code`.
pub const REFUSED: &str = "postern_messages_refused_total";
/// Recipients delivered.
pub const DELIVERED: &str = "postern_recipients_delivered_total";
/// Attempts deferred, by recipient.
pub const DEFERRED: &str = "postern_recipients_deferred_total";
/// Recipients given up.
pub const BOUNCED: &str = "postern_recipients_bounced_total";
/// Sessions open now, label `port`.
pub const SESSIONS: &str = "postern_smtp_sessions";

/// Sessions, messages and connections out that were refused or put off for a shortage, labels
/// `work` and `shortage`.
pub const SHED: &str = "postern_work_shed_total";
/// Connections of the admin port over TLS now.
pub const ADMIN_CONNECTIONS: &str = "postern_admin_connections";
/// Those that began.
pub const ADMIN_BEGUN: &str = "postern_admin_connections_total";
/// Those turned away, label `reason`: `connections-max`.
pub const ADMIN_REFUSED: &str = "postern_admin_connections_refused_total";
/// Idle ones that ended to make room.
pub const ADMIN_DISPLACED: &str = "postern_admin_connections_displaced_total";
/// Sessions that began, label `port`.
pub const SESSIONS_BEGUN: &str = "postern_smtp_sessions_total";
/// Connections turned away before a session began, label `reason`.
pub const SESSIONS_REFUSED: &str = "postern_smtp_connections_refused_total";
/// Logins tried, label `result`.
pub const LOGINS: &str = "postern_smtp_logins_total";
/// Outcomes of attempts by recipient, labels `outcome` and `class`.
pub const OUTCOMES: &str = "postern_attempt_outcomes_total";
/// Connections being worked on by delivery now.
pub const ATTEMPTS: &str = "postern_delivery_connections";
/// Attempts that made no progress and were ended by the watchdog, label `phase`.
pub const STALLED: &str = "postern_delivery_stalled_total";
/// Recipient domains that gave less TLS than ever before, label `to`: `plaintext`, `encrypted`.
pub const TLS_DOWNGRADES: &str = "postern_tls_downgrades_total";
/// Connections of delivery, label `level`: `plaintext`, `encrypted`, `verified`.
pub const TLS_SESSIONS: &str = "postern_delivery_tls_sessions_total";
/// Connections in the clear because TLS failed, label `because`: `failed`, `failed-before`.
pub const TLS_FALLBACKS: &str = "postern_delivery_tls_fallbacks_total";
/// Attempts that ended because the TLS that is demanded was not there, label `by`: `mta-sts`, `dane`, `operator`,
/// `message`.
pub const TLS_UNMET: &str = "postern_delivery_tls_unmet_total";
/// Fetches of MTA-STS policies, label `result`: `fetched`, `failed`.
pub const STS_FETCHES: &str = "postern_mta_sts_fetches_total";
/// MTA-STS policies that are kept.
pub const STS_KEPT: &str = "postern_mta_sts_policies";
/// Lookups of where mail goes that run now.
pub const LOOKUPS: &str = "postern_delivery_lookups";
/// Pairs of site and virtual IP that are being warmed.
pub const WARM_UPS: &str = "postern_warm_ups";
/// What operators suspended or drain, label `kind`: `suspended`, `drained`.
pub const HALTS: &str = "postern_delivery_halts";
/// Acts on many messages that go on.
pub const QUEUE_ACTS: &str = "postern_queue_acts";
/// SMTP accounts that were paused, label `cause`: `failures`, `blocks`, `complaints`, `volume`, `by-hand`.
pub const ACCOUNTS_TRIPPED: &str = "postern_smtp_accounts_tripped_total";
/// Recipients put on suppression lists by what came of mail, label `reason`.
pub const SUPPRESSIONS: &str = "postern_suppressions_total";
/// Reports about TLS to recipient domains, label `result`: `sent`, `given-up`.
pub const TLS_REPORTS: &str = "postern_tls_reports_total";
/// Messages that are owed.
pub const QUEUE_MESSAGES: &str = "postern_queue_messages";
/// Addresses of virtual IPs that are not on this host.
pub const VIPS_MISSING: &str = "postern_virtual_ip_addresses_missing";
/// SMTP accounts that are paused.
pub const ACCOUNTS_PAUSED: &str = "postern_smtp_accounts_paused";
/// Batches that share one sync.
pub const STORE_GROUP: &str = "postern_store_group_batches";
/// How long a sync of the journal takes.
pub const STORE_SYNC: &str = "postern_store_sync_seconds";
/// How long a checkpoint of the records takes.
pub const STORE_CHECKPOINT: &str = "postern_store_checkpoint_seconds";
/// Jobs that had to wait, label `by`: the limit, `resting`, `parked`, `warm-up`.
pub const HELD_BACK: &str = "postern_delivery_held_back_total";
/// Messages that a warm-up had no room for, moved to a shared virtual IP.
pub const OVERFLOWED: &str = "postern_warm_up_overflow_total";
/// Steps of the controllers, label `step`: `slowed`, `parked`, `recovered`.
pub const SITE_STEPS: &str = "postern_site_steps_total";
/// Pairs of site and virtual IP that get less than their limits allow.
pub const SITES_SLOWED: &str = "postern_sites_slowed";
/// Pairs of site and virtual IP that get nothing, because the address is listed.
pub const SITES_PARKED: &str = "postern_sites_parked";

/// Requests to webhooks, label `result`: `taken`, `failed`.
pub const WEBHOOK_REQUESTS: &str = "postern_webhook_requests_total";

/// What came to the port of return-paths, label `kind`: what it was.
pub const FEEDBACK: &str = "postern_feedback_total";
/// How far the search index is behind the event log.
pub const SEARCH_BEHIND: &str = "postern_search_behind_seconds";

/// 1 while mail is accepted, else 0: what `/health/ready` says.
pub const READY: &str = "postern_ready";
/// When this process started.
pub const STARTED: &str = "postern_start_time_seconds";
/// Whether the wall clock is in doubt.
pub const CLOCK_DOUBTED: &str = "postern_clock_doubted";
/// Memory taken, of the tightest limit.
pub const MEMORY_USED: &str = "postern_memory_used_bytes";
/// The tightest limit of memory.
pub const MEMORY_LIMIT: &str = "postern_memory_limit_bytes";
/// Open file descriptors.
pub const DESCRIPTORS_OPEN: &str = "postern_descriptors_open";
/// File descriptors there may be.
pub const DESCRIPTORS_LIMIT: &str = "postern_descriptors_limit";
/// 1 while new work is refused for a shortage, label `shortage`.
pub const SHEDDING: &str = "postern_shedding";
/// Resident memory.
pub const RESIDENT: &str = "postern_resident_bytes";
/// Bytes of bodies that are owed.
pub const BODIES_LIVE: &str = "postern_store_bodies_live_bytes";
/// Bytes of the files that hold them.
pub const BODIES_FILES: &str = "postern_store_bodies_file_bytes";
/// Lanes (virtual IP and receiving site) with mail that waits.
pub const QUEUE_LANES: &str = "postern_queue_lanes";
/// Attempts running now.
pub const QUEUE_IN_FLIGHT: &str = "postern_queue_in_flight";
/// Notices to senders that are owed.
pub const QUEUE_NOTICES: &str = "postern_queue_notices_owed";
/// Outcomes of attempts that could not be written down yet.
pub const QUEUE_UNRECORDED: &str = "postern_queue_outcomes_unrecorded";
/// When a certificate expires, label `certificate`, the folder's name.
pub const CERTIFICATE_EXPIRY: &str = "postern_certificate_expiry_time_seconds";

/// When the last backup was finished; 0 before the first.
pub const BACKUP_LAST: &str = "postern_backup_last_time_seconds";

/// All of them, with kind and help.
pub const ALL: &[(&str, Kind, &str)] = &[
    (ACCEPTED, Kind::Counter, "Messages for which a 250 was said"),
    (REFUSED, Kind::Counter, "Messages refused by the pipeline, by reply code"),
    (DELIVERED, Kind::Counter, "Recipients delivered"),
    (DEFERRED, Kind::Counter, "Recipients deferred, once for each attempt"),
    (BOUNCED, Kind::Counter, "Recipients given up for good"),
    (SESSIONS, Kind::Gauge, "SMTP sessions open now, by port"),
    (SHED, Kind::Counter, "Sessions, messages and connections refused or put off for a shortage"),
    (ADMIN_CONNECTIONS, Kind::Gauge, "Connections to the admin port open now"),
    (ADMIN_BEGUN, Kind::Counter, "Connections to the admin port that began"),
    (ADMIN_REFUSED, Kind::Counter, "Connections to the admin port turned away, by reason"),
    (ADMIN_DISPLACED, Kind::Counter, "Idle connections to the admin port that ended to make room"),
    (SESSIONS_BEGUN, Kind::Counter, "SMTP sessions that began, by port"),
    (SESSIONS_REFUSED, Kind::Counter, "Connections turned away before a session began, by reason"),
    (LOGINS, Kind::Counter, "Logins tried, by result"),
    (OUTCOMES, Kind::Counter, "Outcomes of attempts, once for each recipient, by outcome and class"),
    (ATTEMPTS, Kind::Gauge, "Connections that delivery works on now"),
    (STALLED, Kind::Counter, "Attempts that made no progress and were ended by the watchdog, by phase"),
    (
        TLS_DOWNGRADES,
        Kind::Counter,
        "Recipient domains that gave less TLS than the best they ever gave, by what it came to",
    ),
    (TLS_SESSIONS, Kind::Counter, "Connections of delivery, by how well they are protected"),
    (TLS_FALLBACKS, Kind::Counter, "Connections of delivery in the clear because TLS failed, now or before"),
    (TLS_UNMET, Kind::Counter, "Attempts that ended because the TLS that is demanded was not there, by who demands it"),
    (STS_FETCHES, Kind::Counter, "Fetches of MTA-STS policies, by result"),
    (STS_KEPT, Kind::Gauge, "MTA-STS policies that are kept"),
    (LOOKUPS, Kind::Gauge, "Lookups of where mail goes that run now"),
    (WARM_UPS, Kind::Gauge, "Pairs of site and virtual IP that are being warmed"),
    (HALTS, Kind::Gauge, "What operators suspended or drain now, by kind"),
    (QUEUE_ACTS, Kind::Gauge, "Acts on many messages that go on"),
    (ACCOUNTS_TRIPPED, Kind::Counter, "SMTP accounts that were paused, by cause"),
    (SUPPRESSIONS, Kind::Counter, "Recipients put on suppression lists by what came of mail, by reason"),
    (TLS_REPORTS, Kind::Counter, "Reports about TLS to recipient domains, by what became of them"),
    (QUEUE_MESSAGES, Kind::Gauge, "Messages that are owed; counts up for a moment after a start"),
    (VIPS_MISSING, Kind::Gauge, "Addresses of virtual IPs that are not on this host; their mail waits"),
    (ACCOUNTS_PAUSED, Kind::Gauge, "SMTP accounts that are paused; their mail waits"),
    (STORE_GROUP, Kind::Histogram, "Batches that share one sync of the journal"),
    (STORE_SYNC, Kind::Histogram, "How long a sync of the journal takes, in seconds"),
    (STORE_CHECKPOINT, Kind::Histogram, "How long a checkpoint of the records takes, in seconds"),
    (HELD_BACK, Kind::Counter, "Jobs of delivery that had to wait, by what held them"),
    (OVERFLOWED, Kind::Counter, "Messages that a warm-up had no room for, moved to a shared virtual IP"),
    (SITE_STEPS, Kind::Counter, "Steps of the controllers of sites, by step"),
    (SITES_SLOWED, Kind::Gauge, "Pairs of site and virtual IP that get less than their limits allow"),
    (WEBHOOK_REQUESTS, Kind::Counter, "Requests made to webhooks, by result"),
    (SITES_PARKED, Kind::Gauge, "Pairs of site and virtual IP that are paused because the address is listed"),
    (FEEDBACK, Kind::Counter, "What came to the port of return-paths, by kind"),
    (SEARCH_BEHIND, Kind::Gauge, "How far the search index is behind the event log, in seconds"),
    (READY, Kind::Gauge, "1 while mail is accepted, else 0"),
    (STARTED, Kind::Gauge, "When this process started, in seconds since 1970"),
    (CLOCK_DOUBTED, Kind::Gauge, "1 while the clock was set by more than an hour and is not believed yet, else 0"),
    (MEMORY_USED, Kind::Gauge, "Memory taken that cannot be given back, of the tightest limit"),
    (MEMORY_LIMIT, Kind::Gauge, "The tightest limit of memory: control group, resource limit, setting or machine"),
    (DESCRIPTORS_OPEN, Kind::Gauge, "Open file descriptors"),
    (DESCRIPTORS_LIMIT, Kind::Gauge, "File descriptors there may be"),
    (SHEDDING, Kind::Gauge, "1 while new sessions are refused for a shortage, by shortage"),
    (RESIDENT, Kind::Gauge, "Resident memory of this process"),
    (BODIES_LIVE, Kind::Gauge, "Bytes of message bodies that are owed"),
    (BODIES_FILES, Kind::Gauge, "Bytes of the files that hold message bodies"),
    (QUEUE_LANES, Kind::Gauge, "Lanes with mail that waits; a lane is a virtual IP and a receiving site"),
    (QUEUE_IN_FLIGHT, Kind::Gauge, "Delivery attempts running now"),
    (QUEUE_NOTICES, Kind::Gauge, "Notices to senders that are owed"),
    (QUEUE_UNRECORDED, Kind::Gauge, "Outcomes of attempts that could not be written down yet and are repeated"),
    (BACKUP_LAST, Kind::Gauge, "When the last backup was finished, in seconds since 1970; 0 before the first"),
    (CERTIFICATE_EXPIRY, Kind::Gauge, "When a certificate expires, in seconds since 1970, by folder"),
];

/// Registers the help texts with the installed recorder.
pub fn describe() {
    for (name, kind, help) in ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
}

/// Sets a gauge.
pub fn set(name: &'static str, value: f64) {
    metrics::gauge!(name).set(value);
}

/// Sets a gauge with one label.
pub fn set_labelled(name: &'static str, (label, of): (&'static str, String), value: f64) {
    metrics::gauge!(name, label => of).set(value);
}

/// Upper bounds of every histogram, in seconds: from a commit to a slow peer.
const SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Upper bounds of batches in a group.
const GROUP_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The recorder of the `metrics` crate belongs to the whole process, and so does its exporter.
static EXPORTER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// The Prometheus exporter, installed at the first call; later calls give the same one.
/// Call `run_upkeep` on it every few seconds, `render` when asked.
///
/// # Errors
/// If another recorder was installed before.
pub fn exporter() -> Result<PrometheusHandle, BuildError> {
    let mut installed = EXPORTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let builder = PrometheusBuilder::new().set_buckets(SECONDS_BUCKETS)?;
    let builder = builder.set_buckets_for_metric(Matcher::Full(STORE_GROUP.to_owned()), GROUP_BUCKETS)?;
    let handle = builder.install_recorder()?;
    describe();
    *installed = Some(handle.clone());
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered_with_its_help() {
        let handle = exporter().unwrap();
        metrics::gauge!(READY).set(1.0);
        let page = exporter().unwrap().render();
        assert!(page.contains("# HELP postern_ready 1 while mail is accepted, else 0"), "{page}");
        assert!(page.contains("\npostern_ready 1"), "{page}");
        handle.run_upkeep();
    }

    #[test]
    fn every_metric_is_on_the_operators_page() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operate/metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        for (name, kind, _) in ALL {
            let row = format!("| `{name}` | {} |", format!("{kind:?}").to_lowercase());
            assert!(page.contains(&row), "docs/operate/metrics.md has no row that begins with {row}");
        }
        assert_eq!(page.matches("| `postern_").count(), ALL.len(), "a row of something that does not exist");
    }

    #[test]
    fn every_metric_is_declared_once() {
        let mut names: Vec<_> = ALL.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.starts_with("postern_")));
    }
}
