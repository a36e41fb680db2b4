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
    /// A step with the host that is spoken to was left out: so are all of its kind, since the RCPTs that are kept are
    /// the first ones.
    is_full: bool,
    /// What was sent last logs in.
    is_after_login: bool,
}

impl Draft {
    fn sent(&mut self, sent: Sent, now: Instant) {
        self.began.get_or_insert(now);
        if self.waiting.is_empty() {
            self.lap = Some(now);
        }
        let is_login = matches!(&sent, Sent::Line(line) if is_of_login(line));
        self.is_after_login = is_login || (self.is_after_login && sent == Sent::Nothing);
        self.is_full &= !matches!(sent, Sent::Connecting(_));
        let (is_ending, most) = (is_ending(&sent), most_for(&sent));
        let octets = octets_of(&sent);
        while self.octets.saturating_add(octets) > most && !is_ending && self.forget_hosts(&sent) {}
        if self.octets.saturating_add(octets) > most || (self.is_full && !is_ending) {
            (self.is_full, self.dialogue.left_out) = (true, self.dialogue.left_out.saturating_add(1));
            return self.waiting.push_back(None);
        }
        self.octets = self.octets.saturating_add(octets);
        self.waiting.push_back(Some(self.dialogue.steps.len()));
        self.dialogue.steps.push(Step { sent, heard: Heard::Nothing, took_ms: 0 });
    }

    /// Makes room for what is said with the host that is spoken to, or connected to now: it decides. Of the hosts
    /// before it the first is kept, and of what was said with that one, where there is much, how it began and ended:
    /// by a second call, if the first was not enough. Whether anything was forgotten.
    fn forget_hosts(&mut self, sent: &Sent) -> bool {
        let steps = &self.dialogue.steps;
        let is_connecting = |step: &Step| matches!(step.sent, Sent::Connecting(_));
        let own = match sent {
            Sent::Connecting(_) => Some(steps.len()),
            _ => steps.iter().rposition(is_connecting),
        };
        let Some(own) = own.filter(|own| self.waiting.iter().flatten().all(|place| place >= own)) else { return false };
        let before = steps.get(..own).unwrap_or_default();
        let second = before.iter().enumerate().skip(1).find(|(_, step)| is_connecting(step)).map(|(place, _)| place);
        let forgotten = match second {
            Some(second) => second..own,
            None => 1..own.saturating_sub(1),
        };
        if forgotten.is_empty() {
            return false;
        }
        let count = forgotten.len();
        let gone = self.dialogue.steps.drain(forgotten);
        let octets = gone.map(|step| octets_of(&step.sent).saturating_add(step.heard.octets())).sum();
        self.octets = self.octets.saturating_sub(octets);
        let left_out = self.dialogue.left_out.saturating_add(u16::try_from(count).unwrap_or(u16::MAX));
        self.dialogue.left_out = left_out;
        self.waiting.iter_mut().flatten().for_each(|place| *place = place.saturating_sub(count));
        true
    }

    fn reply(&mut self, reply: &Reply, now: Instant) {
        if self.waiting.is_empty() {
            self.sent(Sent::Nothing, now);
        }
        let room = |draft: &Self| {
            let place = draft.waiting.front().copied().flatten();
            let step = place.and_then(|place| draft.dialogue.steps.get(place))?;
            Some((step.sent.clone(), most_for(&step.sent).saturating_sub(draft.octets)))
        };
        let Some((sent, mut left)) = room(self) else { return self.came(Heard::Nothing, now) };
        // What is said to a login, or after it without being asked, may repeat it.
        let is_unasked_after_login = sent == Sent::Nothing && self.is_after_login;
        let line = if let Sent::Line(line) = &sent { line.as_str() } else { "" };
        if is_of_login(line) || is_unasked_after_login {
            return self.came(Heard::Reply(reply.code.0, reply.status, String::new()), now);
        }
        if line.starts_with("EHLO") && reply.is_completion() {
            self.forget_first_hello();
        }
        let wanted = reply.text.iter().map(|line| line.len().saturating_add(1)).sum::<usize>().min(STEP_OCTETS_MAX);
        while left < wanted && !is_ending(&sent) && self.forget_hosts(&sent) {
            left = room(self).map_or(left, |(_, left)| left);
        }
        self.came(Heard::reply(reply, left), now);
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

/// Octets that a step costs without what came of it.
fn octets_of(sent: &Sent) -> usize {
    let text = match sent {
        Sent::Connecting(text) => text.len(),
        Sent::Line(line) => without_address(line).len(),
        _ => 0,
    };
    text.saturating_add(STEP_OCTETS)
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
