//! The only way mail gets in. The 250 that ends DATA is said only after [`Intake::accept`]
//! returned `Ok`: body and records are on disk then.

use std::net::SocketAddr;

use crate::mail::{Class, Domain, Draft, Envelope, QueueId, SmtpAccountId, TenantId, VipId};

/// Everything known about a message on its way in.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What SMTP (or the API) said about it.
    pub envelope: Envelope,
    /// The message.
    pub draft: Draft,
    /// Where it comes from.
    pub source: Source,
}

/// Who hands it in, and by which way.
#[derive(Clone, Debug)]
pub struct Source {
    /// Whose mail.
    pub tenant: TenantId,
    /// The login; `None` for notices.
    pub account: Option<SmtpAccountId>,
    /// Leaves by this virtual IP and no other.
    pub vip: VipId,
    /// The virtual IP's EHLO name, for Received and generated Message-IDs.
    pub vip_name: Domain,
    /// Part of the lane.
    pub class: Class,
    /// By which way.
    pub way: Way,
}

/// By which way a message came; a stage says which ways it concerns.
#[derive(Clone, Debug)]
pub enum Way {
    /// Authenticated SMTP.
    Smtp(SmtpFacts),
    /// A notice of ours about `about`: null reverse-path, exempt from sender rules and limits.
    Notice {
        /// The message it reports.
        about: QueueId,
    },
}

/// What the Received field needs (RFC 5321 s4.4).
#[derive(Clone, Debug)]
pub struct SmtpFacts {
    /// What the client said in EHLO, made printable.
    pub helo: String,
    /// The client's address; written only if configured.
    pub peer: SocketAddr,
    /// `TLSv1.3` and the suite's name.
    pub tls: String,
}

use std::sync::Arc;

use crate::ext::Timestamp;
use crate::mail::Refusal;
use crate::queue::Queue;

/// The way in.
pub struct Intake {
    queue: Arc<Queue>,
}

impl Intake {
    /// Takes responsibility for a message: when this returns `Ok` it survives a power cut.
    /// All recipients suppressed is `Ok` too, with events and nothing queued.
    #[expect(clippy::todo, reason = "face first")]
    pub async fn accept(&self, submission: Submission, now: Timestamp) -> Result<QueueId, Refusal> {
        let _ = (&self.queue, submission, now);
        todo!("intake")
    }
}
