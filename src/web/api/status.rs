//! `/status`: whether the daemon runs well, in one answer.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, require_instance};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::net;
use crate::records::AdminError;
use crate::store::Health;

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusJson {
    /// The running release.
    pub version: String,
    /// The machine's name.
    pub hostname: String,
    /// Since when it serves.
    pub started: String,
    /// `accepting`, `low_space` or `stopped`.
    pub storage: String,
    /// What is wrong with storage, if anything is.
    pub storage_detail: Option<String>,
    /// Why new mail is refused for a shortage (`memory`, `descriptors`), if it is.
    pub shortage: Option<String>,
    /// Bytes of memory taken, of the tightest limit.
    pub memory_used: Option<u64>,
    /// That limit, in bytes.
    pub memory_limit: Option<u64>,
    /// Whose limit it is, in words.
    pub memory_limit_of: Option<String>,
    /// Open file descriptors.
    pub descriptors_open: Option<u64>,
    /// File descriptors there may be.
    pub descriptors_limit: Option<u64>,
    /// Octets of mail that is kept.
    pub body_bytes: u64,
    /// Octets of the files that hold it.
    pub file_bytes: u64,
    /// Lanes (virtual IP and receiving site) with mail that waits.
    pub queue_lanes: usize,
    /// Delivery attempts running now.
    pub queue_in_flight: usize,
    /// Notices to senders that are owed.
    pub queue_notices: usize,
    /// Logins of SMTP accounts that are paused.
    pub accounts_paused: Vec<String>,
    /// What delivery leaves alone because an operator said so, in words.
    pub suspensions: Vec<String>,
    /// Tenants.
    pub tenants: usize,
    /// Virtual IPs.
    pub vips: usize,
    /// Virtual IPs of which an address is not on this host.
    pub vips_missing: Vec<String>,
    /// When the last backup was finished; absent before the first.
    #[serde(default)]
    pub last_backup: Option<String>,
    /// Whether none was made for as long as `backup.overdue_after` says.
    #[serde(default)]
    pub backup_overdue: bool,
}

#[utoipa::path(
    get,
    path = "/status",
    operation_id = "status_show",
    tag = "status",
    summary = "Show: status.",
    responses((status = 200, body = StatusJson, description = "done"))
)]
pub(super) async fn show(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Answer<StatusJson> {
    require_instance(&actor)?;
    let (storage, storage_detail) = match parts.store.health() {
        Health::Accepting => ("accepting", None),
        Health::LowSpace(detail) => ("low_space", Some(detail)),
        Health::Stopped(detail) => ("stopped", Some(detail)),
    };
    let suspensions = parts.delivery.suspensions(&actor, Timestamp::now()).map_err(AdminError::from)?;
    let usage = parts.blobs.usage();
    let owed = parts.queue.totals();
    let load = parts.gate.load();
    let vips = parts.vips.all();
    let backup = parts.notifications.backup_standing(Timestamp::now());
    let is_missing = |vip: &&crate::vips::Vip| vip.addresses().any(|address| !net::is_present(address));
    Ok(Json(StatusJson {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: parts.about.hostname.to_string(),
        started: parts.about.started.rfc3339(),
        storage: storage.to_owned(),
        storage_detail,
        shortage: load.shortage.map(|shortage| shortage.name().to_owned()),
        memory_used: load.memory.map(|fill| fill.used),
        memory_limit: load.memory.map(|fill| fill.limit),
        memory_limit_of: load.memory.map(|fill| fill.of.to_owned()),
        descriptors_open: load.descriptors.map(|fill| fill.used),
        descriptors_limit: load.descriptors.map(|fill| fill.limit),
        body_bytes: usage.live_bytes,
        file_bytes: usage.file_bytes,
        queue_lanes: owed.lanes,
        queue_in_flight: owed.claimed,
        queue_notices: owed.notices,
        accounts_paused: parts.breaker.pauses(&actor).into_iter().map(|pause| pause.login).collect(),
        suspensions: suspensions.iter().map(|suspension| suspension.words()).collect(),
        tenants: parts.accounts.tenants(&actor).len(),
        vips: vips.len(),
        vips_missing: vips.iter().filter(is_missing).map(|vip| vip.ehlo.to_string()).collect(),
        last_backup: backup.last.map(Timestamp::rfc3339),
        backup_overdue: backup.is_overdue,
    }))
}
