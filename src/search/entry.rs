//! What is known of a message besides its history record, and how events change it. Pure.
//!
//! It is kept in the index and made again from the log. Easy to get wrong: events may be read again, so one
//! applied a second time in the same order must change nothing; and no address is kept in it, so that erasing
//! the history record is erasing it here.

use serde::{Deserialize, Serialize};

use crate::events::{MailEvent, Peer};
use crate::ext::Timestamp;
use crate::statistics::{Said, Status};

/// Replies and causes kept of a message, at most; the latest ones.
pub const REPLIES_MAX: usize = 8;
/// Octets of one of them, at most.
const REPLY_OCTETS_MAX: usize = 400;
/// Providers kept of a message, at most.
const PROVIDERS_MAX: usize = 8;

/// What became of a message so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// By recipient number.
    pub recipients: Vec<Status>,
    /// What some recipient did with it, beside its state: complained, unsubscribed.
    pub signs: Vec<Status>,
    /// Who received, or was to.
    pub providers: Vec<String>,
    /// What peers said, or what went wrong, the latest last.
    pub replies: Vec<String>,
    /// When the last of these happened.
    pub changed: u64,
}

impl Fate {
    /// Of a message that was just handed in.
    pub fn new(recipients: usize, at: Timestamp) -> Self {
        Self { recipients: vec![Status::Injected; recipients], changed: at.0, ..Self::default() }
    }

    /// Whether some recipient is in this state or did this.
    pub fn has(&self, status: Status) -> bool {
        self.recipients.contains(&status) || self.signs.contains(&status)
    }

    /// The states and signs there are, each once.
    pub fn statuses(&self) -> std::collections::BTreeSet<Status> {
        self.recipients.iter().chain(&self.signs).copied().collect()
    }

    /// What an event changes. `provider_of` knows whose a host is.
    pub fn apply(&mut self, event: &MailEvent, at: Timestamp, provider_of: &dyn Fn(&str) -> Option<String>) {
        let Some(said) = Said::by(event) else { return };
        self.changed = self.changed.max(at.0);
        match said.status {
            Status::Open | Status::Click | Status::Unsubscribe | Status::Complaint => {
                if !self.signs.contains(&said.status) {
                    self.signs.push(said.status);
                }
            }
            status => {
                for number in said.recipients {
                    if let Some(own) = self.recipients.get_mut(usize::from(*number)) {
                        *own = status;
                    }
                }
            }
        }
        if let Some(provider) = said.host.and_then(provider_of)
            && !self.providers.contains(&provider)
            && self.providers.len() < PROVIDERS_MAX
        {
            self.providers.push(provider);
        }
        if let Some(reply) = reply(event) {
            self.note(reply);
        }
    }

    fn note(&mut self, mut reply: String) {
        if reply.len() > REPLY_OCTETS_MAX {
            let end = (0..=REPLY_OCTETS_MAX).rev().find(|at| reply.is_char_boundary(*at)).unwrap_or_default();
            reply.truncate(end);
        }
        self.replies.retain(|own| *own != reply);
        if self.replies.len() >= REPLIES_MAX {
            self.replies.remove(0);
        }
        self.replies.push(reply);
    }
}

/// The text by which an attempt is found: who said it and what.
fn reply(event: &MailEvent) -> Option<String> {
    let by = |peer: Option<&Peer>, text: &str| match peer {
        Some(peer) => format!("{}: {text}", peer.host),
        None => text.to_owned(),
    };
    match event {
        MailEvent::Delivered { peer, reply, .. } => Some(by(Some(peer), &reply.one_line())),
        MailEvent::Deferred { peer, detail, .. } | MailEvent::Bounced { peer, detail, .. } => {
            Some(by(peer.as_ref(), detail))
        }
        MailEvent::BouncedLater { reporter, detail, .. } => Some(format!("{reporter}: {detail}")),
        MailEvent::Expired { last, .. } => Some(last.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Why;
    use crate::mail::Reply;

    fn peer() -> Peer {
        Peer {
            host: "mx.big.example".to_owned(),
            address: "192.0.2.1:25".to_owned(),
            source: String::new(),
            tls: String::new(),
        }
    }

    fn story() -> Vec<MailEvent> {
        let deferred = |number: u64| MailEvent::Deferred {
            recipients: vec![0, 1],
            peer: Some(peer()),
            why: Why::TryLater,
            detail: format!("451 come back later {number}"),
            due_in_secs: 300,
        };
        let mut story: Vec<MailEvent> = (0..10).map(deferred).collect();
        story.push(MailEvent::Delivered {
            recipients: vec![0],
            peer: peer(),
            reply: Reply::enhanced(250, 2, 0, "queued as 4F"),
        });
        story.push(MailEvent::Expired { recipients: vec![1], last: "451 come back later 9".to_owned() });
        story.push(MailEvent::Complained { recipients: vec![0], reporter: "big".to_owned() });
        story
    }

    #[test]
    fn a_message_is_in_the_states_its_recipients_are_in_and_keeps_the_latest_replies() {
        let mut fate = Fate::new(3, Timestamp(1));
        story().iter().for_each(|event| fate.apply(event, Timestamp(2), &|_| Some("big".to_owned())));
        let statuses: Vec<Status> = fate.statuses().into_iter().collect();
        assert_eq!(statuses, [Status::Injected, Status::Ok, Status::SoftBounce, Status::Complaint]);
        assert_eq!((fate.replies.len(), fate.providers.as_slice()), (REPLIES_MAX, &["big".to_owned()][..]));
        assert!(
            fate.replies
                .iter()
                .any(|reply| reply == "mx.big.example: 250 2.2.0 queued as 4F"
                    || reply.starts_with("mx.big.example: 250"))
        );
        assert!(fate.has(Status::Complaint) && !fate.has(Status::Deferred));
    }

    #[test]
    fn events_that_are_read_again_change_nothing() {
        let apply = |fate: &mut Fate, events: &[MailEvent]| {
            events.iter().for_each(|event| fate.apply(event, Timestamp(2), &|_| None));
        };
        let mut once = Fate::new(2, Timestamp(1));
        apply(&mut once, &story());
        for from in 0..story().len() {
            let mut again = once.clone();
            apply(&mut again, &story()[from..]);
            assert_eq!(again, once, "from {from}");
        }
    }
}
