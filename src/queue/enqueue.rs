//! Owing a message: message record, lane records, due keys, history, events and the body, in one batch.
//!
//! The body's frame carries an envelope from which the message can be owed again by salvage.
//! Easy to get wrong: until the commit has ended, the new records are marked as being written, since
//! a refill may already see their keys.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::key::{self, Entry};
use super::lanes::Loaded;
use super::record::{
    LANE_RECIPIENTS_MAX, LaneRecord, Needs8bit, NewMessage, NewRecipient, QueueTime, QueuedMessage, QueuedRecipient,
    RecipientState,
};
use super::{Queue, schedule};
use crate::events::{self, Accepted, HistoryRef, MailEvent, history_key};
use crate::ext::Timestamp;
use crate::mail::{
    Address, BodyId, Class, MailParameters, Notify, QueueId, ReversePath, SmtpAccountId, TenantId, VipId,
};
use crate::metrics::ACCEPTED;
use crate::routing::Lane;
use crate::store::{Batch, CommitError, NewBody, codec};

/// Who holds mail that comes in while its SMTP account is paused, as its trail says.
const PAUSED_BY: &str = "its SMTP account is paused";

/// What lies beside a body in its frame: everything needed to owe the message again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyEnvelope {
    pub(super) tenant: TenantId,
    pub(super) account: Option<SmtpAccountId>,
    pub(super) vip: VipId,
    pub(super) class: Class,
    pub(super) source: String,
    pub(super) reverse_path: ReversePath,
    pub(super) parameters: MailParameters,
    pub(super) needs_8bit: Needs8bit,
    pub(super) accepted: Timestamp,
    pub(super) subject: String,
    pub(super) message_id: String,
    pub(super) header_from: String,
    pub(super) signatures: Vec<String>,
    pub(super) recipients: Vec<EnvelopeRecipient>,
}

/// One recipient in a [`BodyEnvelope`], by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeRecipient {
    pub(super) address: Address,
    pub(super) notify: Notify,
    pub(super) orcpt: Option<String>,
    /// `None`: on the suppression list when it was accepted.
    pub(super) lane: Option<Lane>,
}

/// When a message came in, and when it is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) accepted: Timestamp,
    pub(super) accepted_at: QueueTime,
    pub(super) due: QueueTime,
}

/// What a message is owed since, which decides what its trail says.
#[derive(Clone, Debug)]
pub(super) enum Since {
    /// It comes in.
    Accepted(Times),
    /// It came in then, and these recipients are owed again.
    Salvaged(Vec<u16>, Times),
}

impl Queue {
    /// Owes the message: durable when this returns `Ok`.
    ///
    /// A recipient without a lane is recorded as suppressed; if none has one, nothing is queued.
    /// For a notice ([`NewMessage::notice_about`]) the owed notice that [`Queue::owed_notices`] gave
    /// out last for that message is paid in the same batch; [`CommitError::Conflict`] says that it
    /// was paid already or has changed, or that a condition of [`NewMessage::beside`] does not hold, and that
    /// nothing was accepted.
    pub async fn enqueue(&self, message: NewMessage, now: Timestamp) -> Result<(), CommitError> {
        let accepted_at = self.now();
        let due = accepted_at.plus(schedule::held_back(&message.parameters, now));
        self.owe(message, Since::Accepted(Times { accepted: now, accepted_at, due }), now).await
    }

    /// Owes a message that came in now or before.
    pub(super) async fn owe(&self, message: NewMessage, since: Since, now: Timestamp) -> Result<(), CommitError> {
        let id = message.id;
        let from_smtp = message.source != "notice";
        // The new message's lock first: nobody who waits for it can hold another one.
        let _new = self.locks.lock(id).await;
        let _about = match message.notice_about {
            Some(about) => Some(self.locks.lock(about).await),
            None => None,
        };
        let mut message = message;
        let mut batch = std::mem::take(&mut message.beside);
        let paid = match message.notice_about {
            Some(about) => {
                self.sure_of_notices(about).await?;
                Some(self.pay_notice(&mut batch, about, id, now)?)
            }
            None => None,
        };
        let times = match since {
            Since::Salvaged(recipients, times) => {
                Self::note(&mut batch, id, MailEvent::Salvaged { recipients }, now);
                times
            }
            Since::Accepted(times) => {
                note_acceptance(&mut batch, &message, now);
                times
            }
        };
        // Held until the commit has ended, so that the walk at the end of the pause sees it.
        let pausing = self.pausing(message.account).await;
        let state = if pausing.is_some() {
            note_pause(&mut batch, &message, now);
            RecipientState::Paused
        } else {
            RecipientState::Waiting
        };
        let owed = write_message(&mut batch, message, (state, times));
        self.in_memory().expect(owed.iter().map(|loaded| (id, loaded.0)));
        let mut marks = Marks { queue: self, id, numbers: owed.iter().map(|loaded| loaded.0).collect() };
        let committed = self.commit(batch).await;
        let numbers = std::mem::take(&mut marks.numbers);
        if let Err(error) = committed {
            let mut lanes = self.in_memory();
            numbers.iter().for_each(|number| lanes.gone((id, *number)));
            return Err(error);
        }
        self.publish(id, owed);
        if let Some(paid) = paid {
            self.notices_owed().paid(&paid);
        }
        self.beat(&super::Beat::Accepted);
        if from_smtp {
            metrics::counter!(ACCEPTED).increment(1);
        }
        Ok(())
    }

    fn publish(&self, id: QueueId, owed: Vec<(u16, Box<Loaded>)>) {
        if owed.is_empty() {
            return;
        }
        let mut lanes = self.in_memory();
        for (number, loaded) in owed {
            let lane = loaded.record.lane.clone();
            lanes.put(&lane, Entry { due: loaded.record.due, queue_id: id, number }, Some(loaded));
        }
        drop(lanes);
        self.nudge.notify_one();
    }
}

/// Fills the batch with recipients in that state; returns the lane records that are to be tried.
fn write_message(
    batch: &mut Batch,
    message: NewMessage,
    (state, times): (RecipientState, Times),
) -> Vec<(u16, Box<Loaded>)> {
    let (id, due) = (message.id, times.due);
    batch.append_history(&message, times.accepted);
    let envelope = envelope(&message, times.accepted);
    let (message, recipients, sealed) = split(message, times);
    let mut records = lane_records(id, (due, state), recipients);
    if records.is_empty() {
        return Vec::new();
    }
    let message = Arc::new(QueuedMessage { lanes: u16::try_from(records.len()).unwrap_or(u16::MAX), ..message });
    batch.if_absent(key::message(id)).make(key::message(id), message.to_bytes());
    batch.bodies.push(NewBody { id: BodyId { queue_id: id, number: 0 }, envelope, message: sealed });
    let mut owed = Vec::with_capacity(records.len());
    for (number, record) in records.drain(..) {
        // Its id was drawn for this message: nothing has been under these keys.
        batch.make(key::lane_record(id, number), record.to_bytes());
        if state != RecipientState::Waiting {
            continue;
        }
        batch.make(key::due(&record.lane, Entry { due, queue_id: id, number }), Vec::new());
        owed.push((number, Box::new(Loaded { message: Arc::clone(&message), record })));
    }
    owed
}

/// If the caller goes away before the commit ended, it may still succeed: the chores look at what
/// is stored then.
struct Marks<'a> {
    queue: &'a Queue,
    id: QueueId,
    numbers: Vec<u16>,
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        for number in &self.numbers {
            self.queue.look_again((self.id, *number));
        }
    }
}

trait AppendHistory {
    fn append_history(&mut self, message: &NewMessage, now: Timestamp);
}

impl AppendHistory for Batch {
    fn append_history(&mut self, message: &NewMessage, now: Timestamp) {
        let history = HistoryRef {
            tenant: message.tenant,
            accepted: now,
            reverse_path: &message.reverse_path,
            header_from: &message.header_from,
            subject: &message.subject,
            message_id: &message.message_id,
            recipients: message.recipients.iter().map(|recipient| &recipient.address).collect(),
            labels: &message.labels,
            entry: Some(events::Entry {
                account: message.account,
                vip: message.vip,
                class: message.class,
                source: message.source.clone(),
                size_bytes: message.message.length(),
            }),
            returns: message.return_path.as_ref().map(|name| events::Returns {
                name: name.clone(),
                envid: message.parameters.envid.clone(),
                notify: message.recipients.iter().map(|recipient| recipient.notify).collect(),
                orcpt: message.recipients.iter().map(|recipient| recipient.orcpt.clone()).collect(),
            }),
            signed: message.signed.clone(),
        };
        self.set(history_key(message.id), history.to_bytes());
    }
}

fn note_acceptance(batch: &mut Batch, message: &NewMessage, now: Timestamp) {
    let accepted = Accepted {
        tenant: message.tenant,
        account: message.account,
        vip: message.vip,
        class: message.class,
        source: message.source.clone(),
        size_bytes: message.message.length(),
        recipients: u16::try_from(message.recipients.len()).unwrap_or(u16::MAX),
        signatures: message.signatures.clone(),
    };
    Queue::note(batch, message.id, MailEvent::Accepted(accepted), now);
    let numbered = (0_u16..).zip(&message.recipients);
    let suppressed: Vec<u16> =
        numbered.filter(|(_, recipient)| recipient.lane.is_none()).map(|(number, _)| number).collect();
    if !suppressed.is_empty() {
        Queue::note(batch, message.id, MailEvent::Suppressed { recipients: suppressed }, now);
    }
}

/// Its SMTP account is paused: it waits with that.
fn note_pause(batch: &mut Batch, message: &NewMessage, now: Timestamp) {
    let numbered = (0_u16..).zip(&message.recipients).filter(|(_, recipient)| recipient.lane.is_some());
    let recipients: Vec<u16> = numbered.map(|(number, _)| number).collect();
    if !recipients.is_empty() {
        Queue::note(batch, message.id, MailEvent::Held { recipients, by: PAUSED_BY.to_owned() }, now);
    }
}

/// The envelope, written field by field in [`BodyEnvelope`]'s order without copying the message.
fn envelope(message: &NewMessage, now: Timestamp) -> Vec<u8> {
    let recipient = |recipient: &NewRecipient| EnvelopeRecipient {
        address: recipient.address.clone(),
        notify: recipient.notify,
        orcpt: recipient.orcpt.clone(),
        lane: recipient.lane.clone(),
    };
    let head = (message.tenant, message.account, message.vip, message.class, &message.source);
    let path = (&message.reverse_path, &message.parameters, message.needs_8bit, now);
    let header = (&message.subject, &message.message_id, &message.header_from, &message.signatures);
    let recipients: Vec<EnvelopeRecipient> = message.recipients.iter().map(recipient).collect();
    codec::encode_second(&(head, path, header, recipients))
}

fn split(message: NewMessage, times: Times) -> (QueuedMessage, Vec<NewRecipient>, crate::mail::Sealed) {
    let queued = QueuedMessage {
        tenant: message.tenant,
        account: message.account,
        vip: message.vip,
        class: message.class,
        source: message.source,
        reverse_path: message.reverse_path,
        parameters: message.parameters,
        needs_8bit: message.needs_8bit,
        size_bytes: message.message.length(),
        accepted: times.accepted,
        accepted_at: times.accepted_at,
        signatures: message.signatures,
        lanes: 0,
        recipients: u16::try_from(message.recipients.len()).unwrap_or(u16::MAX),
        return_path: message.return_path,
    };
    (queued, message.recipients, message.message)
}

/// Groups recipients by lane, in order of first appearance, at most [`LANE_RECIPIENTS_MAX`] each.
fn lane_records(
    id: QueueId,
    (due, state): (QueueTime, RecipientState),
    recipients: Vec<NewRecipient>,
) -> Vec<(u16, LaneRecord)> {
    let mut records: Vec<LaneRecord> = Vec::new();
    let mut open = std::collections::HashMap::<Lane, usize>::new();
    for (number, recipient) in (0_u16..).zip(recipients) {
        let Some(lane) = recipient.lane else { continue };
        let queued = QueuedRecipient {
            number,
            address: recipient.address,
            notify: recipient.notify,
            orcpt: recipient.orcpt,
            state,
            last_why: None,
            last_detail: None,
            last_peer: None,
            delay_told: false,
            last_attempt: None,
        };
        let place = open.get(&lane).and_then(|place| records.get_mut(*place));
        match place.filter(|record| record.recipients.len() < LANE_RECIPIENTS_MAX) {
            Some(record) => record.recipients.push(queued),
            None => {
                open.insert(lane.clone(), records.len());
                let body = BodyId { queue_id: id, number: 0 };
                records.push(LaneRecord { lane, body, attempts: 0, due, recipients: vec![queued] });
            }
        }
    }
    (0_u16..).zip(records).collect()
}
