//! What is still owed. Only this room changes it; state and event are in one batch.
//!
//! Recipe: intake calls `enqueue`; the dispatcher asks `lanes`, then `claim`s, and gives every claim
//! back to `settle` or `release` exactly once: the token decides.
//! Easy to get wrong: all times here are [`QueueTime`], which no wall-clock jump moves.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::events::{Peer, Why};
use crate::ext::Timestamp;
use crate::mail::{
    Address, BodyId, Class, Domain, MailParameters, Notify, QueueId, Reply, ReversePath, Sealed, SmtpAccountId,
    TenantId, VipId,
};
use crate::routing::Lane;
use crate::store::{Blobs, CommitError, Store, StoreError};

/// Recipients in one lane record, at most.
pub const LANE_RECIPIENTS_MAX: usize = 100;

/// Milliseconds on the queue's own clock: grows with the monotonic clock while the daemon runs,
/// by at most a day per restart for the time it was down, and never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueTime(pub u64);

/// A message to be owed.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Its id.
    pub id: QueueId,
    /// Whose.
    pub tenant: TenantId,
    /// The login, if by SMTP.
    pub account: Option<SmtpAccountId>,
    /// Leaves by this.
    pub vip: VipId,
    /// Part of the lane.
    pub class: Class,
    /// `smtp`, `notice`.
    pub source: String,
    /// Where notices go.
    pub reverse_path: ReversePath,
    /// MAIL's parameters.
    pub parameters: MailParameters,
    /// Final bytes.
    pub message: Sealed,
    /// Whether 8-bit bytes are in it, so that the peer must offer 8BITMIME.
    pub needs_8bit: Needs8bit,
    /// Subject and Message-ID, for people.
    pub subject: String,
    /// The Message-ID header.
    pub message_id: String,
    /// Header From, for people.
    pub header_from: String,
    /// `selector._domainkey.domain` of each signature.
    pub signatures: Vec<String>,
    /// Every recipient; suppressed ones are recorded and never mailed.
    pub recipients: Vec<NewRecipient>,
    /// The message this one is a notice about, if it is one; set done in the same batch.
    pub notice_about: Option<QueueId>,
}

/// Whether the final bytes have octets over 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Needs8bit {
    /// All ASCII.
    No,
    /// 8BITMIME is needed at the peer.
    Yes,
}

/// One recipient on its way in.
#[derive(Clone, Debug)]
pub struct NewRecipient {
    /// Where to.
    pub address: Address,
    /// Which notices its sender wants.
    pub notify: Notify,
    /// `ORCPT=`.
    pub orcpt: Option<String>,
    /// Its lane, or `None` if it is suppressed.
    pub lane: Option<Lane>,
}

/// One immutable record per message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedMessage {
    /// Whose.
    pub tenant: TenantId,
    /// The login, if by SMTP.
    pub account: Option<SmtpAccountId>,
    /// The virtual IP it was accepted for.
    pub vip: VipId,
    /// Part of the lane.
    pub class: Class,
    /// `smtp`, `notice`.
    pub source: String,
    /// Where notices go.
    pub reverse_path: ReversePath,
    /// MAIL's parameters.
    pub parameters: MailParameters,
    /// Whether the peer must offer 8BITMIME.
    pub needs_8bit: Needs8bit,
    /// Octets.
    pub size_bytes: u64,
    /// When, on the wall clock, for people.
    pub accepted: Timestamp,
    /// When, on the queue clock, for expiry.
    pub accepted_at: QueueTime,
    /// `selector._domainkey.domain` of each signature; a selector named here keeps its DNS record.
    pub signatures: Vec<String>,
    /// How many lane records it was given.
    pub lanes: u16,
    /// How many recipients.
    pub recipients: u16,
}

/// The state of one recipient within its lane record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRecipient {
    /// Its number in the message, from 0.
    pub number: u16,
    /// Where to.
    pub address: Address,
    /// Which notices its sender wants.
    pub notify: Notify,
    /// `ORCPT=`.
    pub orcpt: Option<String>,
    /// Where it stands.
    pub state: RecipientState,
    /// The class of the last failure.
    pub last_why: Option<Why>,
    /// The last reply or cause, whole.
    pub last_detail: Option<String>,
    /// Who answered last.
    pub last_peer: Option<Peer>,
    /// Whether the delay notice was made.
    pub delay_told: bool,
}

/// Where a recipient stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipientState {
    /// To be tried when the lane record is due.
    Waiting,
    /// An operator said wait.
    Held,
    /// Done, and how. Deferred cannot be an ending.
    Done(Ending),
}

/// How a recipient ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The peer took responsibility.
    Delivered,
    /// Given up for good.
    Bounced,
    /// Waited too long.
    Expired,
    /// On the suppression list.
    Suppressed,
    /// An operator dropped it.
    Cancelled,
}

/// One record per (message, lane).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// The lane.
    pub lane: Lane,
    /// Which body.
    pub body: BodyId,
    /// Attempts begun and settled.
    pub attempts: u32,
    /// When it is due next.
    pub due: QueueTime,
    /// At most [`LANE_RECIPIENTS_MAX`].
    pub recipients: Vec<QueuedRecipient>,
}

/// Permission to work on one lane record of a message; give it back exactly once.
#[derive(Debug)]
pub struct Claim {
    /// Which message.
    pub queue_id: QueueId,
    /// Which of its lane records.
    pub number: u16,
    /// The message.
    pub message: Arc<QueuedMessage>,
    /// The record as claimed; only its `Waiting` recipients are to be tried.
    pub record: LaneRecord,
    /// Proof of the claim.
    pub token: u64,
}

/// How one recipient's attempt ended, as delivery sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum Outcome {
    /// The peer said 2xx to everything.
    Delivered { peer: Peer, reply: Reply },
    /// The queue decides when to try again.
    Deferred { why: Why, detail: String, peer: Option<Peer> },
    /// Never again.
    Bounced { why: Why, detail: String, peer: Option<Peer> },
}

/// An unfinished duty towards a sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeOwed {
    /// About this message.
    pub queue_id: QueueId,
    /// Which notice.
    pub kind: crate::events::NoticeKind,
    /// When it is sent at the earliest (failures gather for a while).
    pub due: QueueTime,
    /// The recipients it speaks about, as they stood.
    pub recipients: Vec<QueuedRecipient>,
}

/// When to try, when to give up. Defaults in `config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// First retry after this (5 minutes).
    pub retry_first: Duration,
    /// Longest pause between tries (4 hours).
    pub retry_max: Duration,
    /// Given up after this much waiting (3 days), and only after an attempt beyond it.
    pub expire_after: Duration,
    /// Delay notice after this (4 hours).
    pub delay_notice_after: Duration,
    /// Failures of one message gather this long for one notice (10 minutes).
    pub notice_gather: Duration,
}

/// What is owed.
pub struct Queue {
    store: Arc<dyn Store>,
    blobs: Arc<dyn Blobs>,
    settings: Settings,
}

/// A lane with something due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueLane {
    /// The lane.
    pub lane: Lane,
    /// How many records are known to be ready; a lower bound.
    pub ready: usize,
}

#[expect(clippy::todo, reason = "face first")]
impl Queue {
    /// Opens the queue: reads its clock and its lanes, not its messages.
    pub async fn open(store: Arc<dyn Store>, blobs: Arc<dyn Blobs>, settings: Settings) -> Result<Self, StoreError> {
        Ok(Self { store, blobs, settings })
    }

    /// The queue clock now.
    pub fn now(&self) -> QueueTime {
        let _ = (&self.store, &self.blobs, self.settings);
        todo!("queue room")
    }

    /// Owes the message: durable when this returns `Ok`.
    pub async fn enqueue(&self, message: NewMessage, now: Timestamp) -> Result<(), CommitError> {
        let _ = (message, now);
        todo!("queue room")
    }

    /// Lanes with something due, transactional ones first.
    pub fn lanes(&self) -> Vec<DueLane> {
        todo!("queue room")
    }

    /// When the next record will be due, if nothing is ready now.
    pub fn next_due(&self) -> Option<Duration> {
        todo!("queue room")
    }

    /// Resolves when something may have become ready earlier than [`Queue::next_due`] said.
    pub async fn nudged(&self) {
        todo!("queue room")
    }

    /// Claims up to `most` ready records of a lane.
    pub fn claim(&self, lane: &Lane, most: usize) -> Vec<Claim> {
        let _ = (lane, most);
        todo!("queue room")
    }

    /// Records outcomes by recipient number. A waiting recipient without an outcome stays waiting,
    /// due again like a deferred one but without counting an attempt.
    pub async fn settle(&self, claim: Claim, outcomes: Vec<(u16, Outcome)>, now: Timestamp) -> Result<(), CommitError> {
        let _ = (claim, outcomes, now);
        todo!("queue room")
    }

    /// Gives a claim back untouched, due after `pause` (in memory only, no attempt counted).
    pub fn release(&self, claim: Claim, pause: Duration) {
        let _ = (claim, pause);
        todo!("queue room")
    }

    /// Opens the body of a claim. Blocks on the disk.
    pub fn open_body(&self, claim: &Claim) -> Result<Option<Box<dyn crate::store::BodyReader>>, StoreError> {
        let _ = claim;
        todo!("queue room")
    }

    /// Notices that are due now.
    pub fn owed_notices(&self, most: usize) -> Result<Vec<NoticeOwed>, StoreError> {
        let _ = most;
        todo!("queue room")
    }

    /// The notice cannot be made (null reverse-path, suppressed...): forgets it on record.
    pub async fn drop_notice(&self, notice: &NoticeOwed, now: Timestamp) -> Result<(), CommitError> {
        let _ = (notice, now);
        todo!("queue room")
    }

    /// The domain a lane delivers to.
    pub fn next_hop(lane: &Lane) -> &Domain {
        &lane.next_hop
    }
}
