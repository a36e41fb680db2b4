//! What was said in the attempts of a message, for its page.
//!
//! Easy to get wrong: what is stored has places where addresses were. They are filled from the history record, which
//! follows the tenant's retention; of a message that was erased, or forgotten, nothing of what was said is shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::events::{Event, EventKind, History, MailEvent, Peer};
use crate::ext::Timestamp;
use crate::mail::{Dialogue, Heard, Over, Place, Reply, Sent, Step, StoredDialogue, reached};
use crate::queue::Shown;
use crate::web::Parts;

/// Dialogues on the page of one message, at most; the latest are shown.
const DIALOGUES_MAX: usize = 200;

/// What was said in one transaction, or in an attempt that did not come as far. Secrets and the text of messages are
/// never in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DialogueJson {
    /// When it was recorded.
    pub at: String,
    /// Recipients by number, in the order of their RCPTs.
    pub recipients: Vec<u16>,
    /// `new`: a connection that was opened for it, which is part of it; `reused`: one that had carried mail before;
    /// `none`: none could be had, by an attempt for all mail that waited for it.
    pub connection: String,
    /// Milliseconds from its first step to the end of the last.
    pub took_ms: u32,
    /// In order.
    pub steps: Vec<DialogueStepJson>,
    /// Steps that were not kept, for want of room.
    pub left_out: u16,
}

/// One thing that was sent or done, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DialogueStepJson {
    /// `connect`, `tls` (the handshake), `greeting` (the peer speaks first), `command`, `message`, `dot`, `unasked`
    /// (the peer spoke without being asked).
    pub step: String,
    /// The line that was sent, or what was connected to. ENVID, and an ORCPT that is not the recipient, read `...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The code of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Its enhanced status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enhanced: Option<String>,
    /// The lines of its text, addresses of the message left out; `[...]` where more was said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// What went wrong instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Milliseconds until its reply or end; of commands sent together, from the reply before.
    pub took_ms: u32,
}

/// The dialogues of a message, and which of them led to what.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) dialogues: Vec<DialogueJson>,
    pub(super) left_out: usize,
    /// By the place of the outcome's event: numbers of dialogues, and how long these took.
    leading: BTreeMap<usize, (Vec<usize>, u64)>,
}

impl Told {
    /// The numbers of the dialogues that led to the event at this place, and how long they took together.
    pub(super) fn led_to(&self, place: usize) -> (Vec<usize>, Option<u64>) {
        self.leading.get(&place).map(|(numbers, took)| (numbers.clone(), Some(*took))).unwrap_or_default()
    }
}

/// One that was read from an event.
struct Read {
    at: Timestamp,
    recipients: Vec<u16>,
    dialogue: Dialogue,
}

/// What was said about a message whose addresses are still known.
pub(super) fn told(parts: &Parts, shown: &Shown) -> Told {
    let Some(history) = shown.history.as_ref().filter(|history| !history.is_erased()) else { return Told::default() };
    let (all, leading) = read(&shown.events);
    let left_out = all.len().saturating_sub(DIALOGUES_MAX);
    let leading = leading.into_iter().map(|(place, numbers)| {
        let took =
            numbers.iter().filter_map(|number| all.get(*number)).map(|one| u64::from(one.dialogue.took_ms)).sum();
        let shown = numbers.iter().filter_map(|number| number.checked_sub(left_out)).collect();
        (place, (shown, took))
    });
    let leading = leading.collect();
    let return_path = |number: u16, history: &History| {
        let name = history.returns.as_ref().map(|returns| &returns.name)?;
        Some(parts.feedback.return_address(shown.id, number, name).to_string())
    };
    let dialogues = all.iter().skip(left_out).map(|one| json(one, history, &return_path)).collect();
    Told { dialogues, left_out, leading }
}

/// The dialogues of a trail, and the numbers of those that led to the outcome at each place of it.
fn read(events: &[Event]) -> (Vec<Read>, BTreeMap<usize, Vec<usize>>) {
    let (mut all, mut leading) = (Vec::<Read>::new(), BTreeMap::new());
    // Of each recipient, what was said since his last outcome.
    let mut open: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let EventKind::Mail(_, told) = &event.kind else { continue };
        if let MailEvent::Attempted { recipients, dialogue } = told {
            let Some(dialogue) = dialogue.read() else { continue };
            recipients.iter().for_each(|number| open.entry(*number).or_default().push(all.len()));
            all.push(Read { at: event.at, recipients: recipients.clone(), dialogue });
            continue;
        }
        let outcome = match told {
            MailEvent::Delivered { recipients, peer, reply } => Some((recipients, Some((peer, reply)))),
            MailEvent::Deferred { recipients, .. }
            | MailEvent::Bounced { recipients, .. }
            | MailEvent::Expired { recipients, .. } => Some((recipients, None)),
            _ => None,
        };
        let Some((recipients, delivered)) = outcome else { continue };
        let mut numbers: Vec<usize> = recipients.iter().filter_map(|number| open.remove(number)).flatten().collect();
        numbers.sort_unstable();
        numbers.dedup();
        if let Some((peer, reply)) = delivered {
            for number in &numbers {
                all.get_mut(*number).into_iter().for_each(|one| complete(&mut one.dialogue, peer, reply));
            }
        }
        leading.insert(place, numbers);
    }
    (all, leading)
}

/// With what was left out because the record of the delivery says it.
fn complete(dialogue: &mut Dialogue, peer: &Peer, reply: &Reply) {
    for step in &mut dialogue.steps {
        if step.heard == Heard::Outcome {
            step.heard = Heard::Reply(reply.code.0, reply.status, reply.text.join("\n"));
        }
        if let Sent::Connecting(to) = &mut step.sent
            && to.is_empty()
        {
            *to = reached(&peer.host, &peer.address);
        }
    }
}

fn json(one: &Read, history: &History, return_path: &dyn Fn(u16, &History) -> Option<String>) -> DialogueJson {
    let recipient = |place: usize| {
        let number = one.recipients.get(place).copied();
        number.and_then(|number| history.recipients.get(usize::from(number))).map(ToString::to_string)
    };
    let named = |place: Place| match place {
        Place::ReversePath => history.reverse_path.0.as_ref().map(ToString::to_string).unwrap_or_default(),
        Place::ReturnPath => {
            let first = one.recipients.first().and_then(|number| return_path(*number, history));
            first.unwrap_or_else(|| "...".to_owned())
        }
        Place::Recipient(place) => recipient(place).unwrap_or_else(|| "...".to_owned()),
    };
    let mut rcpts = 0;
    let steps = one.dialogue.steps.iter().map(|step| {
        let words = step.sent.words(rcpts, &named);
        rcpts += usize::from(matches!(step.sent, Sent::Rcpt(_)));
        step_json(step, words)
    });
    DialogueJson {
        at: one.at.rfc3339(),
        recipients: one.recipients.clone(),
        connection: word(one.dialogue.over).to_owned(),
        took_ms: one.dialogue.took_ms,
        steps: steps.collect(),
        left_out: one.dialogue.left_out,
    }
}

fn step_json(step: &Step, sent: String) -> DialogueStepJson {
    let kind = match &step.sent {
        Sent::Connecting(_) => "connect",
        Sent::Handshake => "tls",
        Sent::Greeting => "greeting",
        Sent::Line(_) | Sent::Mail(_) | Sent::MailReturn(_) | Sent::Rcpt(_) => "command",
        Sent::Text => "message",
        Sent::Dot => "dot",
        Sent::Nothing => "unasked",
    };
    let (mut code, mut enhanced, mut text, mut failed) = (None, None, Vec::new(), None);
    match &step.heard {
        Heard::Reply(own, status, said) => {
            (code, enhanced) = (Some(*own), status.map(|status| status.to_string()));
            text = said.split('\n').map(str::to_owned).collect();
        }
        Heard::Failed(reason) => failed = Some(reason.clone()),
        Heard::Nothing => failed = Some("no answer".to_owned()),
        Heard::Done | Heard::Outcome => {}
    }
    let sent = Some(sent).filter(|sent| !sent.is_empty());
    DialogueStepJson { step: kind.to_owned(), sent, code, enhanced, text, failed, took_ms: step.took_ms }
}

fn word(over: Over) -> &'static str {
    match over {
        Over::New => "new",
        Over::Reused => "reused",
        Over::None => "none",
    }
}

/// A dialogue in one line of a trail.
pub(super) fn summary(stored: &StoredDialogue) -> String {
    let Some(dialogue) = stored.read() else { return "tried".to_owned() };
    let over = match dialogue.over {
        Over::New => "tried over a new connection",
        Over::Reused => "tried over a connection that was open",
        Over::None => "no connection could be had",
    };
    let steps = dialogue.steps.len().saturating_add(usize::from(dialogue.left_out));
    format!("{over}: {steps} steps in {} ms", dialogue.took_ms)
}

#[cfg(test)]
#[path = "dialogues_tests.rs"]
mod tests;
