//! Keeps what is said in an attempt, for its record: bounded, with times, secrets masked.
//!
//! Recipe: one [`Script`] serves a job; [`Script::begin`] for each message, [`Script::take`] once its transaction is
//! judged. A session's `Tap` writes into it. Easy to get wrong: an attempt may be aborted at any moment, and what was
//! said by then is asked for by others, so all hands share one; a reply belongs to the earliest line that has none;
//! and nothing here may fail or wait, since mail does not depend on it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::SECRET;
use crate::mail::{CUT, DIALOGUE_OCTETS_MAX, Dialogue, Heard, Over, Reply, STEP_OCTETS_MAX, Sent, Step, cut};

/// Octets that a step costs beside its texts, at most, with a mark for a text that has no room.
const STEP_OCTETS: usize = 16;
/// Octets of a dialogue that are kept for what comes after the recipients: DATA, the message, what it came to.
const ENDING_OCTETS: usize = 1_024;

/// What is kept of a job, in the hands of all that speak in it.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<Draft>>);

impl Script {
    /// Nothing was said.
    pub fn new() -> Self {
        Self::default()
    }

    fn draft(&self) -> MutexGuard<'_, Draft> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes now is about another message; what was not taken is dropped.
    pub fn begin(&self, over: Over) {
        *self.draft() = Draft { dialogue: Dialogue { over, ..Dialogue::default() }, ..Draft::default() };
    }

    /// The transaction that begins is for these recipients, by number, in this order.
    pub fn concerns(&self, recipients: Vec<u16>) {
        self.draft().recipients = recipients;
    }

    /// What was said since the beginning or the last time, and of whom: of nobody in particular where no recipient
    /// was named yet. `None` if nothing was. What follows is over the same connection.
    pub fn take(&self) -> Option<(Vec<u16>, Dialogue)> {
        let mut draft = self.draft();
        draft.end(Instant::now());
        let next = Draft { dialogue: Dialogue { over: Over::Reused, ..Dialogue::default() }, ..Draft::default() };
        let Draft { dialogue, recipients, .. } = std::mem::replace(&mut *draft, next);
        (!dialogue.steps.is_empty() || dialogue.left_out > 0).then_some((recipients, dialogue))
    }

    /// Something is sent or done now, and what comes of it is waited for.
    pub fn sent(&self, sent: Sent) {
        self.draft().sent(sent, Instant::now());
    }

    /// A line is sent, its secret masked.
    pub(super) fn line(&self, line: String) {
        let sent = if line == "." { Sent::Dot } else { Sent::Line(cut(&line, STEP_OCTETS_MAX)) };
        self.sent(sent);
    }

    /// The peer replied.
    pub(super) fn reply(&self, reply: &Reply) {
        self.draft().reply(reply, Instant::now());
    }

    /// What is waited for went well.
    pub fn done(&self) {
        self.draft().came(Heard::Done, Instant::now());
    }

    /// What is waited for went wrong; nothing is noted where nothing is.
    pub fn failed(&self, reason: &str) {
        let mut draft = self.draft();
        if !draft.waiting.is_empty() {
            // What came instead of a reply to a login may repeat it.
            let reason = if draft.is_at_login() { "no reply to the login" } else { reason };
            draft.came(Heard::Failed(cut(reason, STEP_OCTETS_MAX)), Instant::now());
            draft.waiting.clear();
        }
    }
}

#[derive(Debug, Default)]
struct Draft {
    dialogue: Dialogue,
    recipients: Vec<u16>,
    /// Steps that nothing has come of yet, by their places; `None` for one that was left out.
    waiting: VecDeque<Option<usize>>,
    octets: usize,
    began: Option<Instant>,
    /// When something came of a step last, or one was begun while nothing was waited for.
    lap: Option<Instant>,
}

impl Draft {
    fn sent(&mut self, sent: Sent, now: Instant) {
        self.began.get_or_insert(now);
        if self.waiting.is_empty() {
            self.lap = Some(now);
        }
        let texts = match &sent {
            Sent::Connecting(text) => text.len(),
            Sent::Line(line) => without_address(line).len(),
            _ => 0,
        };
        let (is_ending, most) = (is_ending(&sent), most_for(&sent));
        let octets = self.octets.saturating_add(texts).saturating_add(STEP_OCTETS);
        // Once something was left out, so is all of its kind: the RCPTs that are kept are the first ones.
        if octets > most || (self.dialogue.left_out > 0 && !is_ending) {
            self.dialogue.left_out = self.dialogue.left_out.saturating_add(1);
            return self.waiting.push_back(None);
        }
        self.octets = octets;
        self.waiting.push_back(Some(self.dialogue.steps.len()));
        self.dialogue.steps.push(Step { sent, heard: Heard::Nothing, took_ms: 0 });
    }

    fn reply(&mut self, reply: &Reply, now: Instant) {
        if self.waiting.is_empty() {
            self.sent(Sent::Nothing, now);
        }
        let place = self.waiting.front().copied().flatten();
        let Some(step) = place.and_then(|place| self.dialogue.steps.get(place)) else {
            return self.came(Heard::Nothing, now);
        };
        let room = most_for(&step.sent).saturating_sub(self.octets);
        let line = if let Sent::Line(line) = &step.sent { line.as_str() } else { "" };
        // What is said to a login may repeat it.
        if is_of_login(line) {
            return self.came(Heard::Reply(reply.code.0, reply.status, String::new()), now);
        }
        if line.starts_with("EHLO") && reply.is_completion() {
            self.forget_first_hello();
        }
        self.came(Heard::reply(reply, room), now);
    }

    fn is_at_login(&self) -> bool {
        let step = self.waiting.front().copied().flatten().and_then(|place| self.dialogue.steps.get(place));
        step.is_some_and(|step| matches!(&step.sent, Sent::Line(line) if is_of_login(line)))
    }

    /// Nothing more comes: what is waited for has taken until now.
    fn end(&mut self, now: Instant) {
        let place = self.waiting.front().copied().flatten();
        if let (false, Some(lap)) = (self.waiting.is_empty(), self.lap) {
            self.dialogue.took_ms = self.began.map_or(0, |began| millis(began, now));
            if let Some(step) = place.and_then(|place| self.dialogue.steps.get_mut(place)) {
                step.took_ms = millis(lap, now);
            }
        }
    }

    /// What the peer offered before TLS counts no more (RFC 3207 s4.2): its first line is kept.
    fn forget_first_hello(&mut self) {
        for step in &mut self.dialogue.steps {
            let (Sent::Line(line), Heard::Reply(_, _, text)) = (&step.sent, &mut step.heard) else { continue };
            if line.starts_with("EHLO")
                && let Some((first, rest)) = text.split_once('\n')
            {
                self.octets = self.octets.saturating_sub(rest.len());
                *text = format!("{first}\n{CUT}");
                self.octets = self.octets.saturating_add(CUT.len());
            }
        }
    }

    fn came(&mut self, heard: Heard, now: Instant) {
        let Some(place) = self.waiting.pop_front() else { return };
        let lap = self.lap.replace(now).unwrap_or(now);
        self.dialogue.took_ms = self.began.map_or(0, |began| millis(began, now));
        let Some(step) = place.and_then(|place| self.dialogue.steps.get_mut(place)) else { return };
        step.took_ms = millis(lap, now);
        if let Heard::Reply(_, _, text) | Heard::Failed(text) = &heard {
            self.octets = self.octets.saturating_add(text.len());
        }
        step.heard = heard;
    }
}

/// Whether such a line logs in.
fn is_of_login(line: &str) -> bool {
    line.starts_with("AUTH") || line == SECRET
}

/// Whether it comes after the recipients.
fn is_ending(sent: &Sent) -> bool {
    match sent {
        Sent::Text | Sent::Dot => true,
        Sent::Line(line) => line == "DATA",
        _ => false,
    }
}

/// Octets of the whole up to which there is room for such a step and its reply.
fn most_for(sent: &Sent) -> usize {
    if is_ending(sent) { DIALOGUE_OCTETS_MAX } else { DIALOGUE_OCTETS_MAX - ENDING_OCTETS }
}

/// What is stored of a line: of MAIL and RCPT what comes behind the address.
fn without_address(line: &str) -> &str {
    let names = line.starts_with("MAIL FROM:<") || line.starts_with("RCPT TO:<");
    if names { line.rsplit_once('>').map_or(line, |(_, rest)| rest) } else { line }
}

fn millis(from: Instant, to: Instant) -> u32 {
    u32::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
