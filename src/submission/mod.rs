//! The SMTP doors: submission (ports 465, 587, 2525), and reception of what comes back (port 25): listeners on
//! every present virtual IP, one task for each session, which drives a [`crate::smtp::Session`] and hands whole
//! messages to whoever takes them.
//!
//! Recipe: build [`Parts`], optionally with [`inherited_sockets`], and await [`run`]; it returns
//! when the shutdown token is cancelled and the sessions have ended or their grace is over.
//! Easy to get wrong: nothing a peer sends may grow memory, and each wait has a deadline.

mod ahead;
mod authorize;
mod connection;
mod counts;
mod draft;
mod line;
mod listener;
mod message;
mod reception;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::accounts::Accounts;
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::gate::Gate;
use crate::intake::{MayEnter, Submission};
use crate::mail::{Domain, QueueId, Refusal, TenantId};
use crate::net::Certificates;
use crate::smtp::{self, BareLineEnds};
use crate::trace::Tracer;
use crate::vips::Vips;

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use line::{Front, LineReader};
pub use listener::{GivenSocket, PortMode, inherited_sockets};
pub use reception::{Arrival, Reception};

/// What the operator may set for the door. Defaults in parentheses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ports where TLS comes first (465).
    pub tls_ports: Vec<u16>,
    /// Ports where the client says STARTTLS (587, 2525).
    pub starttls_ports: Vec<u16>,
    /// Limits within a session.
    pub session: smtp::Settings,
    /// Octets of a header block (256 KiB); more: `552 5.3.4`.
    pub header_bytes_max: usize,
    /// Fields of a header block (2,000); more: `552 5.3.4`.
    pub header_fields_max: usize,
    /// What a bare CR or LF in a message does (normalised); if refused: `554 5.6.0`.
    pub bare_line_ends: BareLineEnds,
    /// Octets of all messages being handed in at one moment, in memory and in spill files
    /// (1 GiB); more: `452 4.3.1`.
    pub drafts_bytes_max: u64,
    /// Of these, octets of one tenant's messages (512 MiB); more: `452 4.3.1`.
    pub drafts_bytes_per_tenant_max: u64,
    /// Sessions at one moment (10,000); more: `421 4.3.2`.
    pub sessions_max: usize,
    /// Sessions of one peer address, or one IPv6 /64, at one moment (200); more: `421 4.7.0`.
    pub sessions_per_peer_max: usize,
    /// Sessions of one SMTP account at one moment (200); more: `421 4.7.0` after its login.
    pub sessions_per_account_max: usize,
    /// How long a TLS handshake may take (30 s); longer: closed.
    pub handshake_timeout: Duration,
    /// From connection to login (2 min); longer: `421 4.4.2`.
    pub login_timeout: Duration,
    /// The same while new sessions are refused for a shortage, and of the handshake too (10 s).
    pub login_timeout_short: Duration,
    /// From our reply to the end of the next command (5 min, RFC 5321 s4.5.3.2.7); longer: `421 4.4.2`.
    pub command_timeout: Duration,
    /// A whole session (1 h), then `421 4.4.2`; a message in progress may go on for as long again.
    pub session_time_max: Duration,
    /// How long a peer may take to read our replies (1 min); longer: closed.
    pub write_timeout: Duration,
    /// Head start of a message before [`Settings::data_bytes_per_second_min`] counts (1 min).
    pub data_grace: Duration,
    /// The slowest a message may come, on average (512 octets a second); slower: `421 4.4.2`.
    pub data_bytes_per_second_min: u64,
    /// How long messages and other commands in progress may go on after a stop (30 s).
    pub stop_grace: Duration,
    /// How often it is looked whether virtual IPs came or went on this host (10 s).
    pub presence_poll: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls_ports: vec![465],
            starttls_ports: vec![587, 2525],
            session: smtp::Settings::default(),
            header_bytes_max: 256 * 1024,
            header_fields_max: 2000,
            bare_line_ends: BareLineEnds::Normalise,
            drafts_bytes_max: 1024 * 1024 * 1024,
            drafts_bytes_per_tenant_max: 512 * 1024 * 1024,
            sessions_max: 10_000,
            sessions_per_peer_max: 200,
            sessions_per_account_max: 200,
            handshake_timeout: Duration::from_secs(30),
            login_timeout: Duration::from_secs(120),
            login_timeout_short: Duration::from_secs(10),
            command_timeout: Duration::from_secs(300),
            session_time_max: Duration::from_secs(3600),
            write_timeout: Duration::from_secs(60),
            data_grace: Duration::from_secs(60),
            data_bytes_per_second_min: 512,
            stop_grace: Duration::from_secs(30),
            presence_poll: Duration::from_secs(10),
        }
    }
}

/// Whether a tenant may use a domain in MAIL; the refusal names the domain and what to do.
pub type SenderRule = Arc<dyn Fn(TenantId, &Domain) -> Result<(), Refusal> + Send + Sync>;

/// Takes responsibility for a message: `Ok` means that it survives a power cut.
pub type Accept = Arc<dyn Fn(Submission, Timestamp) -> BoxFuture<'static, Result<QueueId, Refusal>> + Send + Sync>;

/// What a door is for.
#[derive(Clone)]
pub enum Duty {
    /// Mail of those who log in.
    Submission(Submitting),
    /// What comes back to ourselves.
    Reception(Reception),
}

/// Whom a door for submission asks.
#[derive(Clone)]
pub struct Submitting {
    /// Checks logins.
    pub accounts: Arc<Accounts>,
    /// Decides who may use which domain in MAIL: the domains room.
    pub may_send_from: SenderRule,
    /// Whether new mail is taken of a sender, asked at MAIL, and for a recipient's domain, asked at RCPT.
    pub may_enter: MayEnter,
    /// Takes the messages: the intake.
    pub accept: Accept,
}

/// What the door is built from.
pub struct Parts {
    /// Limits and ports, followed as they change: a session keeps those it began with, ports stay.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Whether there is room for a session or a message now.
    pub gate: Arc<Gate>,
    /// What the door is for.
    pub duty: Duty,
    /// Where to listen.
    pub vips: Arc<Vips>,
    /// What to show there.
    pub certificates: Arc<Certificates>,
    /// An existing folder of our own for bodies over 256 KiB while they are handed in.
    pub drafts_folder: PathBuf,
    /// Shows sessions to whoever follows them.
    pub tracer: Arc<Tracer>,
    /// Sockets that are open already: from systemd, or of a trial. They are served beside those
    /// of the virtual IPs; a session belongs to the virtual IP of its local address.
    pub given_sockets: Vec<GivenSocket>,
}

/// Serves until `shutdown`; then no new session is taken, idle ones are told 421, and the rest
/// may finish within [`Settings::stop_grace`].
pub async fn run(parts: Parts, shutdown: Shutdown) {
    listener::run(parts, shutdown).await;
}
