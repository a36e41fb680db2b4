//! Turns a draft into final bytes: stages in a fixed order, each of which may refuse, edit or note.
//!
//! Recipe: [`Pipeline::new`] once, then [`Pipeline::prepare`] for each message; what comes back is
//! [`Prepared`], signed and final. Easy to get wrong: the order. `identity` decides who signs before
//! anything is counted, `encoding` runs before `sign`, and `sign` is always last.

mod about;
mod complete;
mod dialects;
mod encoding;
mod identity;
mod labels;
mod limits;
mod returns;
mod rewrite;
#[cfg(test)]
pub(crate) mod samples;
mod sign;
mod signers;
mod suppressed;
mod trace;
mod words;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

pub use labels::ONCE;

pub use about::{About, Counted, HttpFacts, Octets, SmtpFacts, Source, Way};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use rewrite::{fold_long_fields, plan_message};

use crate::accounts::Accounts;
use crate::domains::{Domains, Signer};
use crate::ext::Timestamp;
use crate::mail::dkim::Algorithms;
use crate::mail::{
    Address, Domain, Draft, Envelope, HeaderDialect, Labels, QueueId, Refusal, Sealed, Signed, SmtpAccountId, Smtputf8,
    TenantId, VipId, offers_one_click, printable,
};
use crate::suppression::Suppression;
use crate::vips::Vips;

/// Bytes of a body in memory up to which stages other than `sign` stay on the async worker.
pub const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// Characters kept of Subject, Message-ID and From for people to see.
pub const SHOWN_CHARACTERS_MAX: usize = 250;

/// One step of the pipeline.
#[async_trait]
pub trait Stage: Send + Sync {
    /// For logs and metrics; never changes.
    fn name(&self) -> &'static str;

    /// Whether it has anything to do with such a message.
    fn concerns(&self, about: &About) -> bool {
        let _ = about;
        true
    }

    /// Refuses, edits the draft, or notes something. After a refusal the draft is of no more use.
    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal>;
}

/// Whether a tenant may send as a domain, and what signs it.
pub type SignerLookup = Arc<dyn Fn(TenantId, &Domain) -> Result<Arc<Signer>, Refusal> + Send + Sync>;
/// What signs notices to a tenant from a virtual IP's name.
pub type NameSignerLookup = Arc<dyn Fn(VipId, TenantId) -> Option<Arc<Signer>> + Send + Sync>;
/// Whether mail of a tenant, handed in by this SMTP account, must not go to an address; `Err` is why it cannot be read.
pub type SuppressedLookup =
    Arc<dyn Fn(TenantId, Option<SmtpAccountId>, &Address) -> Result<bool, String> + Send + Sync>;
/// Counts one message against the limits.
pub type Count = Arc<dyn Fn(TenantId, Option<SmtpAccountId>, Timestamp) -> Result<(), Refusal> + Send + Sync>;

/// Whether mail of an SMTP account may be from an address, as far as the account narrows what its tenant may.
pub type SenderLookup = Arc<dyn Fn(SmtpAccountId, &Address) -> Result<(), Refusal> + Send + Sync>;
/// Whose header fields are read in mail of an SMTP account.
pub type DialectsLookup = Arc<dyn Fn(SmtpAccountId) -> Vec<HeaderDialect> + Send + Sync>;

/// Takes back what [`Count`] counted.
pub type Uncount = Arc<dyn Fn(TenantId, Option<SmtpAccountId>) + Send + Sync>;

/// What a message gets so that what comes back about it is known; `None` if its domain has no return-path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The name at which each recipient has a return-path of its own.
    pub return_path: Domain,
    /// The value of its trace field.
    pub trace: String,
    /// The address by which its only recipient unsubscribes.
    pub unsubscribe: Address,
}

/// The marks of a message of a tenant, signed by the domain.
pub type MarksLookup = Arc<dyn Fn(TenantId, &Domain, QueueId) -> Option<Marks> + Send + Sync>;

/// What the stages ask of the rooms that keep records.
#[derive(Clone)]
pub struct Parts {
    /// `Domains::signer`.
    pub signer: SignerLookup,
    /// `Domains::name_signer`.
    pub name_signer: NameSignerLookup,
    /// `Suppression::contains`.
    pub suppressed: SuppressedLookup,
    /// `Accounts::count`.
    pub count: Count,
    /// `Accounts::uncount`.
    pub uncount: Uncount,
    /// `Accounts::may_send_as`.
    pub sender: SenderLookup,
    /// `Accounts::dialects`.
    pub dialects: DialectsLookup,
    /// `Domains::return_name`, and the tags of `Feedback`.
    pub marks: MarksLookup,
}

/// What the configuration file may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which signatures a message gets; both by default.
    pub algorithms: Algorithms,
    /// Whether Received shows the client's address; not by default.
    pub client_address: ClientAddress,
    /// Received fields a message may come with (100).
    pub received_max: usize,
    /// Bytes of bodies over 64 KiB being scanned or rewritten at once (64 MiB); a longer body is
    /// rewritten alone.
    pub rewrite_bytes_max: u64,
    /// Bytes of a message (25 MiB): one that would be longer after the conversion to ASCII is not converted.
    pub message_bytes_max: u64,
    /// How far ahead `X-Send-At` may be (7 days), as FUTURERELEASE.
    pub hold_max: Duration,
    /// Where rewritten bodies over 256 KiB are spilled; on the disk of the data folder.
    pub spill_folder: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithms: Algorithms::Both,
            client_address: ClientAddress::Hidden,
            received_max: 100,
            rewrite_bytes_max: 64 * 1024 * 1024,
            message_bytes_max: 25 * 1024 * 1024,
            hold_max: Duration::from_secs(7 * 24 * 3600),
            spill_folder: PathBuf::from("/var/lib/postern/spill"),
        }
    }
}

/// The settings that may change while mail flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) algorithms: Algorithms,
    pub(crate) client_address: ClientAddress,
}

impl From<&Settings> for Live {
    fn from(settings: &Settings) -> Self {
        Self { algorithms: settings.algorithms, client_address: settings.client_address }
    }
}

/// What the stages read at each message.
pub(crate) type Lives = Arc<RwLock<Live>>;

pub(crate) fn live(lives: &Lives) -> Live {
    *lives.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether recipients see where a message was handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// Not in Received.
    #[default]
    Hidden,
    /// In Received, as RFC 5321 s4.4 asks.
    Shown,
}

/// A message that is final.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The bytes; they never change again.
    pub sealed: Sealed,
    /// Who it goes to and how, as SMTP said it; SMTPUTF8 only if it is really needed.
    pub envelope: Envelope,
    /// Who handed it in.
    pub source: Source,
    /// Whether it is counted against limits.
    pub counted: Counted,
    /// Whether the peer must offer 8BITMIME.
    pub octets: Octets,
    /// Subject, for people.
    pub subject: String,
    /// The Message-ID field's value.
    pub message_id: String,
    /// The From field's value, for people.
    pub header_from: String,
    /// `selector._domainkey.domain` of each signature; none only on a notice that no key covers.
    pub signatures: Vec<String>,
    /// Numbers of recipients never to be mailed, ascending.
    pub suppressed: Vec<u16>,
    /// What the sender attached for itself.
    pub labels: Labels,
    /// The name at which each recipient has a return-path of its own.
    pub return_path: Option<Domain>,
    /// As what it is sent; `None` for notices.
    pub signed: Option<Signed>,
}

/// The ordered stages.
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
    uncount: Uncount,
    live: Lives,
}

impl Parts {
    /// The real rooms.
    pub fn of_rooms(
        accounts: Arc<Accounts>,
        domains: Arc<Domains>,
        suppression: Arc<Suppression>,
        vips: Arc<Vips>,
    ) -> Self {
        let (names, takes_back) = (Arc::clone(&domains), Arc::clone(&accounts));
        let (narrows, reads) = (Arc::clone(&accounts), Arc::clone(&accounts));
        Self {
            signer: Arc::new(move |tenant, domain| domains.signer(tenant, domain)),
            name_signer: Arc::new(move |vip, tenant| names.name_signer(&vips.get(vip)?, tenant)),
            suppressed: Arc::new(move |tenant, account, address| {
                suppression.contains(tenant, account, address, Timestamp::now()).map_err(|error| error.to_string())
            }),
            count: Arc::new(move |tenant, account, now| accounts.count(tenant, account, now)),
            uncount: Arc::new(move |tenant, account| takes_back.uncount(tenant, account)),
            sender: Arc::new(move |account, address| narrows.may_send_as(account, address)),
            dialects: Arc::new(move |account| reads.dialects(account)),
            marks: Arc::new(|_, _, _| None),
        }
    }
}

impl Pipeline {
    /// The stages in their order.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, |count| count.get());
        let rewrite_kib_max = u32::try_from((settings.rewrite_bytes_max / 1024).max(1)).unwrap_or(u32::MAX >> 4);
        let rewrite_kib_max = rewrite_kib_max.min(u32::MAX >> 4); // what a semaphore can count on any machine
        let live = Arc::new(RwLock::new(Live::from(&settings)));
        let stages: Vec<Box<dyn Stage>> = vec![
            Box::new(identity::Identity { signer: parts.signer, sender: parts.sender }),
            // Before the limits: a message refused for a label is not counted.
            Box::new(labels::Labels { hold_max: settings.hold_max, dialects: parts.dialects }),
            Box::new(limits::Limits { count: parts.count }),
            Box::new(suppressed::Suppressed { contains: parts.suppressed }),
            Box::new(complete::Complete),
            Box::new(returns::Returns { marks: parts.marks }),
            Box::new(encoding::Encoding {
                spill_folder: settings.spill_folder,
                rewrite_kib: Arc::new(Semaphore::new(rewrite_kib_max as usize)),
                rewrite_kib_max,
                message_bytes_max: settings.message_bytes_max,
            }),
            Box::new(trace::Trace { live: Arc::clone(&live), received_max: settings.received_max }),
            Box::new(sign::Sign {
                live: Arc::clone(&live),
                name_signer: parts.name_signer,
                signers: signers::Signers::new(processors),
                large_signers: signers::Signers::new(processors.div_ceil(2)),
            }),
        ];
        Self { stages, uncount: parts.uncount, live }
    }

    /// The signatures and the client's address in Received as these settings say, from the next message on.
    pub fn adjust(&self, settings: &Settings) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Live::from(settings);
    }

    /// Makes a draft final, or says why not. The reply of a refusal is for the peer. A message that
    /// is prepared and then not owed must be given to [`Pipeline::not_accepted`].
    pub async fn prepare(&self, mut draft: Draft, mut about: About) -> Result<Prepared, Refusal> {
        for stage in &self.stages {
            if stage.concerns(&about) {
                stage.apply(&mut draft, &mut about).await.map_err(|mut refusal| {
                    self.not_accepted(about.counted, about.source.tenant, about.source.account);
                    refusal.cause = format!("{}: {}", stage.name(), refusal.cause);
                    refusal
                })?;
            }
        }
        let shown = |name: &str| {
            let text = draft.header.text(name).unwrap_or_default();
            printable(&text).chars().take(SHOWN_CHARACTERS_MAX).collect::<String>()
        };
        let (subject, message_id, header_from) = (shown("Subject"), shown("Message-ID"), shown("From"));
        // Clients ask for SMTPUTF8 always, or forget to: what the message needs decides, and one that
        // does not need it can go to more peers.
        let needs_utf8 = about.header_octets == Octets::Eight
            || about.envelope.reverse_path.0.as_ref().is_some_and(Address::needs_smtputf8)
            || about.envelope.recipients.iter().any(|recipient| recipient.address.needs_smtputf8());
        about.envelope.parameters.smtputf8 = if needs_utf8 { Smtputf8::Needed } else { Smtputf8::NotNeeded };
        // Whatever of it a message has is signed: `mail::dkim` leaves neither field out.
        let signed = about
            .signer
            .as_ref()
            .map(|signer| Signed { by: signer.domain.clone(), offers_one_click: offers_one_click(&draft.header) });
        Ok(Prepared {
            sealed: draft.seal(),
            envelope: about.envelope,
            source: about.source,
            counted: about.counted,
            octets: about.octets,
            subject,
            message_id,
            header_from,
            signatures: about.signatures,
            suppressed: about.suppressed,
            labels: about.labels,
            return_path: about.return_path,
            signed,
        })
    }

    /// Gives back what was counted for a message that is not accepted after all.
    pub fn not_accepted(&self, counted: Counted, tenant: TenantId, account: Option<SmtpAccountId>) {
        if counted == Counted::Yes {
            (self.uncount)(tenant, account);
        }
    }
}

#[cfg(test)]
mod tests;
