//! The records of the queue and the values its face speaks in: what is stored for a message,
//! a lane and a notice, what a claim and an outcome are.
//!
//! Easy to get wrong: these structs are stored in postcard's form, so fields and variants are only
//! ever changed together with a new record version.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::events::{Peer, Why};
use crate::ext::Timestamp;
use crate::mail::{
    Address, BodyId, Class, Dialogue, Domain, Labels, MailParameters, Notify, QueueId, Reply, ReversePath, Sealed,
    Signed, SmtpAccountId, TenantId, VipId,
};
use crate::routing::Lane;
use crate::store::Batch;

/// Recipients in one lane record, at most.
pub const LANE_RECIPIENTS_MAX: usize = 100;

/// Octets of dialogues that are recorded with one settlement, at most: of further transactions the number of steps is kept.
pub const SAID_OCTETS_MAX: usize = 32 * 1024;

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
    /// What the sender attached for itself; kept with the history.
    pub labels: Labels,
    /// The name at which each recipient has a return-path of its own; without one the reverse-path is said.
    pub return_path: Option<Domain>,
    /// As what it is sent, if it is a tenant's mail; kept with the history.
    pub signed: Option<Signed>,
    /// The message this one is a notice about, if it is one; set done in the same batch.
    pub notice_about: Option<QueueId>,
    /// Conditions and changes of whoever hands it in, for the same batch: if one of those does not hold,
    /// nothing is accepted.
    pub beside: Batch,
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
    /// The name at which each recipient has a return-path of its own, in a transaction of its own; without one
    /// the client's reverse-path is said.
    pub return_path: Option<Domain>,
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
    /// When it was tried last, on the wall clock, for notices.
    pub last_attempt: Option<Timestamp>,
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
    /// Its SMTP account is paused: it waits until that is released.
    Paused,
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
    /// What was said while it was worked on and is not recorded yet.
    pub said: Vec<Conversation>,
}

/// What was said about some recipients of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// By number, in the order of their RCPTs.
    pub recipients: Vec<u16>,
    /// What was said, addresses included: they are taken out as it is recorded.
    pub dialogue: Dialogue,
}

impl Claim {
    /// This was said; it is recorded with the outcomes. Beyond [`SAID_OCTETS_MAX`] how much it was is kept alone,
    /// in one for all that comes then.
    pub fn note(&mut self, conversation: Conversation) {
        let kept: usize = self.said.iter().map(|said| said.dialogue.octets()).sum();
        let over = self.said.last_mut().filter(|last| last.dialogue.is_left_out());
        if over.is_none() && kept.saturating_add(conversation.dialogue.octets()) <= SAID_OCTETS_MAX {
            return self.said.push(conversation);
        }
        let Conversation { recipients, mut dialogue } = conversation;
        dialogue.leave_out();
        let Some(last) = over else { return self.said.push(Conversation { recipients, dialogue }) };
        for number in recipients {
            if !last.recipients.contains(&number) {
                last.recipients.push(number);
            }
        }
        last.dialogue.left_out = last.dialogue.left_out.saturating_add(dialogue.left_out);
        last.dialogue.took_ms = last.dialogue.took_ms.saturating_add(dialogue.took_ms);
    }
}

/// How one recipient's attempt ended, as delivery sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's sentence speaks of its fields")]
pub enum Outcome {
    /// The peer said 2xx to everything; `onward` is who tells the sender of the success.
    Delivered { peer: Peer, reply: Reply, onward: Onward },
    /// The queue decides when to try again.
    Deferred { why: Why, detail: String, peer: Option<Peer> },
    /// Never again.
    Bounced { why: Why, detail: String, peer: Option<Peer> },
    /// Put on the suppression list since it was accepted: not tried, and nobody is told.
    Suppressed,
}

impl Outcome {
    /// Whether the recipient is not tried again, however long the message waited.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Deferred { .. })
    }
}

/// Who tells a sender that asked for it (`NOTIFY=SUCCESS`) of the success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// The peer offers DSN and was told what the sender wants: it, or whoever comes after it,
    /// gives the notice, and we must not (RFC 3461 s5.2.1).
    Peer,
    /// The peer does not offer DSN: a `relayed` notice of ours is the last the sender hears
    /// (RFC 3461 s5.2.2).
    Ourselves,
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
