//! What stages know about a message besides its bytes, and what they find out about it.
//!
//! Facts come in with the submission and never change; findings are written by one stage and read
//! by later ones and by intake.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::domains::Signer;
use crate::ext::Timestamp;
use crate::mail::{Class, Domain, Envelope, Labels, QueueId, SmtpAccountId, TenantId, VipId};

/// Who hands a message in, and by which way.
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
    /// The API.
    Http(HttpFacts),
    /// A notice of ours about `about`: null reverse-path, exempt from sender rules and limits.
    Notice {
        /// The message it reports.
        about: QueueId,
    },
    /// The same about something that is not owed any more: what came back, a letter to the postmaster.
    Report,
    /// The same: a report about TLS to a recipient domain. Its delivery heeds no TLS policy of the domain.
    TlsReport,
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

/// What is known of a message that came by the API.
#[derive(Clone, Debug)]
pub struct HttpFacts {
    /// The client's address, if it came over a network; written only if configured.
    pub peer: Option<IpAddr>,
    /// What the sender attached for itself.
    pub labels: Labels,
}

/// Facts of the submission, and findings of the stages so far.
pub struct About {
    /// The id it will be owed under.
    pub id: QueueId,
    /// The moment of acceptance.
    pub now: Timestamp,
    /// Who hands it in.
    pub source: Source,
    /// What SMTP said about it.
    pub envelope: Envelope,
    /// `identity`: what signs it; `None` before that, and for notices.
    pub signer: Option<Arc<Signer>>,
    /// `limits`: whether the message is counted.
    pub counted: Counted,
    /// `labels`: what the sender attached for itself.
    pub labels: Labels,
    /// `returns`: the name at which each recipient has a return-path of its own.
    pub return_path: Option<Domain>,
    /// `suppressed`: numbers of recipients never to be mailed, ascending.
    pub suppressed: Vec<u16>,
    /// `encoding`: what octets the final bytes hold.
    pub octets: Octets,
    /// `encoding`: what octets the header block holds.
    pub header_octets: Octets,
    /// `sign`: `selector._domainkey.domain` of each signature.
    pub signatures: Vec<String>,
}

impl About {
    /// Before the first stage.
    pub fn new(id: QueueId, now: Timestamp, source: Source, envelope: Envelope) -> Self {
        let (signer, suppressed, octets, signatures) = (None, Vec::new(), Octets::Eight, Vec::new());
        let counted = Counted::No;
        let (header_octets, labels) = (Octets::Seven, Labels::default());
        let return_path = None;
        Self {
            id,
            now,
            source,
            envelope,
            signer,
            counted,
            labels,
            return_path,
            suppressed,
            octets,
            header_octets,
            signatures,
        }
    }

    /// Whether it is a notice of ours.
    pub fn is_notice(&self) -> bool {
        matches!(self.source.way, Way::Notice { .. } | Way::Report | Way::TlsReport)
    }
}

/// Whether a message was booked against the limits of its tenant and account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It was, and is given back if it is not accepted after all.
    Yes,
    /// Not yet, or it is exempt.
    No,
}

/// Which octets a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Octets {
    /// ASCII only.
    Seven,
    /// Others too: the peer must offer 8BITMIME.
    Eight,
}

impl Octets {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.is_ascii() { Self::Seven } else { Self::Eight }
    }

    /// Of two things together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Eight { self } else { other }
    }
}
