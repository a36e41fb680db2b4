//! What an attempt's outcomes make of a lane record. Pure: no reads, no clock.
//!
//! Easy to get wrong: the record may have been changed by an operator while it was claimed. A delivery
//! is recorded whatever was asked meanwhile; a deferral leaves it as the operator wants it. Events outlive
//! the history record, so what a peer said goes into them without the message's addresses.

use std::borrow::Cow;

use super::Settings;
use super::record::{
    Conversation, Ending, LaneRecord, Onward, Outcome, QueueTime, QueuedMessage, QueuedRecipient, RecipientState,
};
use super::schedule;
use crate::events::MailEvent;
use crate::ext::Timestamp;
use crate::mail::{Address, Masks, Named, QueueId, StoredDialogue};

/// What there is to judge.
pub(super) struct Case<'a> {
    pub(super) queue_id: QueueId,
    pub(super) number: u16,
    pub(super) message: &'a QueuedMessage,
    /// The record as it is stored.
    pub(super) record: LaneRecord,
    pub(super) outcomes: &'a [(u16, Outcome)],
    /// What was said before them.
    pub(super) said: &'a [Conversation],
    pub(super) now: QueueTime,
    /// When the outcomes were given: what counts for expiry, however late they are recorded.
    pub(super) given: QueueTime,
    /// When the attempt ended, on the wall clock.
    pub(super) at: Timestamp,
    pub(super) settings: &'a Settings,
    /// Whether the tenant wants delay notices nobody asked for.
    pub(super) tells_delays: bool,
}

/// What to write.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The record as it shall be.
    pub(super) record: LaneRecord,
    pub(super) events: Vec<MailEvent>,
    pub(super) failed: Vec<QueuedRecipient>,
    pub(super) delayed: Vec<QueuedRecipient>,
    pub(super) succeeded: Vec<QueuedRecipient>,
    /// Done for good by this verdict.
    pub(super) done: Vec<u16>,
    /// Recipients delivered, deferred, given up.
    pub(super) counts: [u64; 3],
}

impl Verdict {
    /// Whether somebody is still to be tried.
    pub(super) fn waits(&self) -> bool {
        waits(&self.record)
    }

    /// Whether every recipient is done.
    pub(super) fn is_done(&self) -> bool {
        self.record.recipients.iter().all(|recipient| matches!(recipient.state, RecipientState::Done(_)))
    }
}

/// Whether a recipient of the record is to be tried.
pub(super) fn waits(record: &LaneRecord) -> bool {
    record.recipients.iter().any(|recipient| recipient.state == RecipientState::Waiting)
}

/// Applies the outcomes.
pub(super) fn judge(case: Case<'_>) -> Verdict {
    let rest = Rest::of(&case.record, case.outcomes);
    let attempts = case.record.attempts.saturating_add(u32::from(rest.counts_attempt()));
    let pause = schedule::pause(case.settings, attempts, schedule::seed(case.queue_id, case.number, attempts));
    let waited = schedule::waited(case.message, case.now);
    let judgement = Judgement {
        expired: schedule::has_expired(case.settings, schedule::waited(case.message, case.given)),
        late: schedule::is_late(case.settings, waited),
        due_in_secs: pause.as_secs(),
        tells_delays: case.tells_delays,
        notices: case.message.reverse_path.0.is_some(),
        at: case.at,
    };
    let mut verdict = Verdict {
        record: case.record,
        events: Vec::new(),
        failed: Vec::new(),
        delayed: Vec::new(),
        succeeded: Vec::new(),
        done: Vec::new(),
        counts: [0; 3],
    };
    verdict.record.attempts = attempts;
    // Always another due time than before: a repeated commit is known by it.
    let next = verdict.record.due.plus(std::time::Duration::from_millis(1));
    verdict.record.due = if rest.is_due_at_once() { case.now.max(next) } else { case.now.plus(pause) };
    let mut recipients = std::mem::take(&mut verdict.record.recipients);
    // Most replies quote nobody; then nothing is made.
    let quotes = case.outcomes.iter().any(|(_, outcome)| may_quote(outcome));
    let masks = if quotes || case.said.iter().any(|said| said.dialogue.may_quote()) {
        let addresses = recipients.iter().map(|recipient| &recipient.address);
        Masks::of(case.message.reverse_path.0.as_ref(), addresses)
    } else {
        Masks::default()
    };
    // Before what it came to: whoever reads the trail knows then what led there.
    verdict.events.extend(case.said.iter().map(|said| {
        let outcomes = case.outcomes.iter().filter(|(number, _)| said.recipients.contains(number));
        attempted(said, (case.message, &recipients), outcomes.map(|(_, outcome)| outcome), &masks)
    }));
    for (number, outcome) in case.outcomes {
        let found = recipients.iter_mut().find(|recipient| recipient.number == *number);
        let Some(recipient) = found else { continue };
        if takes(recipient.state, outcome) {
            judgement.apply(&mut verdict, recipient, outcome);
            judgement.tell(&mut verdict, recipient, &told(outcome, &masks));
        }
    }
    verdict.record.recipients = recipients;
    verdict
}

/// Those the outcomes do not speak of.
struct Rest {
    /// There are outcomes, and all of them are final.
    is_all_final: bool,
    has_outcomes: bool,
    /// How many are left to be tried, and how many of these never were.
    waiting: usize,
    untried: usize,
}

impl Rest {
    fn of(record: &LaneRecord, outcomes: &[(u16, Outcome)]) -> Self {
        let left = record.recipients.iter().filter(|recipient| {
            recipient.state == RecipientState::Waiting
                && !outcomes.iter().any(|(number, _)| *number == recipient.number)
        });
        let (mut waiting, mut untried) = (0, 0);
        for recipient in left {
            waiting += 1;
            untried += usize::from(recipient.last_attempt.is_none());
        }
        let has_outcomes = !outcomes.is_empty();
        let is_all_final = has_outcomes && outcomes.iter().all(|(_, outcome)| outcome.is_final());
        Self { is_all_final, has_outcomes, waiting, untried }
    }

    /// Nothing was put off: whoever is left has no reason to wait. Each time somebody is done for good.
    fn is_due_at_once(&self) -> bool {
        self.is_all_final && self.waiting > 0
    }

    /// Pauses grow only once everybody had his try.
    fn counts_attempt(&self) -> bool {
        self.has_outcomes && self.untried == 0 && !self.is_due_at_once()
    }
}

/// Whether the outcome still changes a recipient in this state.
fn takes(state: RecipientState, outcome: &Outcome) -> bool {
    match (state, outcome) {
        (RecipientState::Waiting | RecipientState::Held | RecipientState::Paused, _) => true,
        // Too late to cancel: it is delivered, and the record says so.
        (RecipientState::Done(Ending::Cancelled), Outcome::Delivered { .. }) => true,
        (RecipientState::Done(_), _) => false,
    }
}

struct Judgement {
    expired: bool,
    late: bool,
    due_in_secs: u64,
    tells_delays: bool,
    notices: bool,
    at: Timestamp,
}

impl Judgement {
    fn apply(&self, verdict: &mut Verdict, recipient: &mut QueuedRecipient, outcome: &Outcome) {
        remember(recipient, outcome, self.at);
        match outcome {
            Outcome::Delivered { onward, .. } => {
                recipient.state = RecipientState::Done(Ending::Delivered);
                verdict.counts[0] += 1;
                if self.notices && recipient.notify.success && *onward == Onward::Ourselves {
                    verdict.succeeded.push(recipient.clone());
                }
            }
            Outcome::Bounced { .. } => self.give_up(verdict, recipient, Ending::Bounced),
            Outcome::Suppressed => recipient.state = RecipientState::Done(Ending::Suppressed),
            // Held or paused while it was being tried: it waits for people, and never expires meanwhile.
            Outcome::Deferred { .. } if self.expired && recipient.state == RecipientState::Waiting => {
                self.give_up(verdict, recipient, Ending::Expired);
            }
            Outcome::Deferred { .. } => {
                verdict.counts[1] += 1;
                let wanted = recipient.notify.delay
                    || (self.tells_delays && (recipient.notify.failure || recipient.notify.success));
                if self.notices && self.late && wanted && !recipient.delay_told {
                    recipient.delay_told = true;
                    verdict.delayed.push(recipient.clone());
                }
            }
        }
        if matches!(recipient.state, RecipientState::Done(_)) {
            verdict.done.push(recipient.number);
        }
    }

    fn give_up(&self, verdict: &mut Verdict, recipient: &mut QueuedRecipient, ending: Ending) {
        recipient.state = RecipientState::Done(ending);
        verdict.counts[2] += 1;
        if self.notices && recipient.notify.failure {
            verdict.failed.push(recipient.clone());
        }
    }

    /// Adds the recipient to the event of an equal outcome, or makes one.
    fn tell(&self, verdict: &mut Verdict, recipient: &QueuedRecipient, outcome: &Outcome) {
        for event in &mut verdict.events {
            if let Some(recipients) = same(event, recipient, outcome) {
                recipients.push(recipient.number);
                return;
            }
        }
        let recipients = vec![recipient.number];
        verdict.events.push(match outcome {
            Outcome::Delivered { peer, reply, .. } => {
                MailEvent::Delivered { recipients, peer: peer.clone(), reply: reply.clone() }
            }
            Outcome::Suppressed => MailEvent::Suppressed { recipients },
            Outcome::Bounced { why, detail, peer } => {
                MailEvent::Bounced { recipients, peer: peer.clone(), why: *why, detail: detail.clone() }
            }
            Outcome::Deferred { detail, .. } if recipient.state == RecipientState::Done(Ending::Expired) => {
                MailEvent::Expired { recipients, last: detail.clone() }
            }
            Outcome::Deferred { why, detail, peer } => MailEvent::Deferred {
                recipients,
                peer: peer.clone(),
                why: *why,
                detail: detail.clone(),
                due_in_secs: self.due_in_secs,
            },
        });
    }
}

/// What was said, as its event tells it: without addresses, and without what the event of a delivery has.
fn attempted<'o>(
    said: &Conversation,
    (message, recipients): (&QueuedMessage, &[QueuedRecipient]),
    outcomes: impl Iterator<Item = &'o Outcome>,
    masks: &Masks,
) -> MailEvent {
    let mut dialogue = said.dialogue.clone();
    for outcome in outcomes {
        if let Outcome::Delivered { peer, reply, .. } = outcome {
            dialogue.shorten((&peer.host, &peer.address), reply);
        }
    }
    let address = |number: &u16| {
        let own = recipients.iter().find(|recipient| recipient.number == *number);
        own.map(|recipient| &recipient.address)
    };
    let addresses: Vec<&Address> = said.recipients.iter().filter_map(address).collect();
    let named = Named {
        reverse_path: &message.reverse_path,
        return_name: message.return_path.as_ref(),
        recipients: &addresses,
    };
    let dialogue = StoredDialogue::of(&dialogue.hide(&named, masks));
    MailEvent::Attempted { recipients: said.recipients.clone(), dialogue }
}

/// Whether a peer's words in the outcome may hold an address.
fn may_quote(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Delivered { reply, .. } => reply.text.iter().any(|line| line.contains('@')),
        Outcome::Deferred { detail, .. } | Outcome::Bounced { detail, .. } => detail.contains('@'),
        Outcome::Suppressed => false,
    }
}

/// The outcome as its event tells it.
fn told<'o>(outcome: &'o Outcome, masks: &Masks) -> Cow<'o, Outcome> {
    if !may_quote(outcome) {
        return Cow::Borrowed(outcome);
    }
    let mut told = outcome.clone();
    match &mut told {
        Outcome::Delivered { reply, .. } => {
            reply.text.iter_mut().for_each(|line| *line = masks.apply(line).into_owned());
        }
        Outcome::Deferred { detail, .. } | Outcome::Bounced { detail, .. } => {
            *detail = masks.apply(detail).into_owned();
        }
        Outcome::Suppressed => {}
    }
    Cow::Owned(told)
}

fn remember(recipient: &mut QueuedRecipient, outcome: &Outcome, at: Timestamp) {
    if *outcome != Outcome::Suppressed {
        recipient.last_attempt = Some(at);
    }
    match outcome {
        Outcome::Suppressed => {}
        Outcome::Delivered { peer, reply, .. } => {
            recipient.last_why = None;
            recipient.last_detail = Some(reply.whole());
            recipient.last_peer = Some(peer.clone());
        }
        Outcome::Deferred { why, detail, peer } | Outcome::Bounced { why, detail, peer } => {
            recipient.last_why = Some(*why);
            recipient.last_detail = Some(detail.clone());
            recipient.last_peer.clone_from(peer);
        }
    }
}

/// The recipients of `event`, if it tells exactly this outcome.
fn same<'a>(event: &'a mut MailEvent, recipient: &QueuedRecipient, outcome: &Outcome) -> Option<&'a mut Vec<u16>> {
    let expired = recipient.state == RecipientState::Done(Ending::Expired);
    match (event, outcome) {
        (MailEvent::Delivered { recipients, peer, reply }, Outcome::Delivered { peer: by, reply: said, .. }) => {
            (peer == by && reply == said).then_some(recipients)
        }
        (MailEvent::Bounced { recipients, peer, why, detail }, Outcome::Bounced { why: w, detail: d, peer: p }) => {
            (why == w && detail == d && peer == p).then_some(recipients)
        }
        (MailEvent::Expired { recipients, last }, Outcome::Deferred { detail, .. }) => {
            (expired && last == detail).then_some(recipients)
        }
        (
            MailEvent::Deferred { recipients, peer, why, detail, .. },
            Outcome::Deferred { why: w, detail: d, peer: p },
        ) => (!expired && why == w && detail == d && peer == p).then_some(recipients),
        (MailEvent::Suppressed { recipients }, Outcome::Suppressed) => Some(recipients),
        _ => None,
    }
}
