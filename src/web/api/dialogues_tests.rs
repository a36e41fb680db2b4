//! Which dialogue led to which outcome.

use super::*;
use crate::events::Why;
use crate::mail::QueueId;

const SAID: Timestamp = Timestamp(5);

fn event(told: MailEvent) -> Event {
    Event { at: SAID, kind: EventKind::Mail(QueueId([1; 16]), told) }
}

fn attempted(recipients: &[u16], took_ms: u32, last: Heard) -> Event {
    let connecting = Step { sent: Sent::Connecting(String::new()), heard: Heard::Done, took_ms: 1 };
    let steps = vec![connecting, Step { sent: Sent::Dot, heard: last, took_ms: 2 }];
    let dialogue = Dialogue { over: Over::New, steps, left_out: 0, took_ms };
    event(MailEvent::Attempted { recipients: recipients.to_vec(), dialogue: StoredDialogue::of(&dialogue) })
}

fn deferred(recipients: &[u16]) -> Event {
    let (detail, due_in_secs) = ("451 later".to_owned(), 300);
    event(MailEvent::Deferred { recipients: recipients.to_vec(), peer: None, why: Why::TryLater, detail, due_in_secs })
}

fn delivered(recipients: &[u16]) -> Event {
    let peer = Peer { host: "mx.x".into(), address: "192.0.2.1:25".into(), source: "".into(), tls: "".into() };
    let reply = Reply::enhanced(250, 0, 0, "queued as 4F2");
    event(MailEvent::Delivered { recipients: recipients.to_vec(), peer, reply })
}

#[test]
fn each_outcome_has_what_was_said_before_it_and_since_the_one_before() {
    let events = [
        attempted(&[0, 1], 7, Heard::Outcome),
        delivered(&[0]),
        deferred(&[1]),
        deferred(&[1]),
        attempted(&[1], 2, Heard::Failed("lost".to_owned())),
        attempted(&[1], 3, Heard::Nothing),
        delivered(&[1]),
    ];
    let (all, leading) = read(&events);
    assert_eq!(all.len(), 3);
    let expected = [(1, vec![0]), (2, vec![0]), (3, Vec::new()), (6, vec![1, 2])];
    assert_eq!(leading, BTreeMap::from(expected), "one dialogue for both, none for what was not tried");
    let first = &all[0].dialogue.steps;
    assert_eq!(first[0].sent, Sent::Connecting("mx.x 192.0.2.1:25".to_owned()));
    let status = crate::mail::EnhancedStatus::new(2, 0, 0);
    assert_eq!(first[1].heard, Heard::Reply(250, Some(status), "queued as 4F2".to_owned()));
}
