//! What was said in an attempt, recorded with what it came to.

use std::time::Duration;

use super::record::SAID_OCTETS_MAX;
use super::tests::{Bench, WALL, all, bounced, deferred, delivered, message, peer};
use super::*;
use crate::access::Actor;
use crate::events::{MailEvent, history_key};
use crate::mail::{Dialogue, Heard, Over, Reply, Sent, Step, reached};
use crate::store::prefix;

const TWO: [&str; 2] = ["ann@one.example", "bob@one.example"];

fn line(text: &str, heard: Heard) -> Step {
    Step { sent: Sent::Line(text.to_owned()), heard, took_ms: 1 }
}

/// A transaction for these recipients of [`TWO`].
fn said(recipients: &[u16]) -> Conversation {
    let ok = || Heard::reply(&Reply::enhanced(250, 1, 0, "ok"), 100);
    let to = reached(&peer().host, &peer().address);
    let mut steps = vec![Step { sent: Sent::Connecting(to), heard: Heard::Done, took_ms: 1 }];
    steps.push(line("MAIL FROM:<shop@shop.example>", ok()));
    for number in recipients {
        let address = TWO[usize::from(*number)];
        let quoting = Reply::enhanced(250, 1, 5, format!("<{}> ok", address.to_uppercase()));
        steps.push(line(&format!("RCPT TO:<{address}>"), Heard::reply(&quoting, 100)));
    }
    let end = Heard::reply(&Reply::enhanced(250, 0, 0, "ok"), 100);
    steps.push(Step { sent: Sent::Dot, heard: end, took_ms: 2 });
    Conversation {
        recipients: recipients.to_vec(),
        dialogue: Dialogue { over: Over::New, steps, left_out: 0, took_ms: 9 },
    }
}

/// The recipients of each event in order; attempts with the dialogue that is stored.
fn told(bench: &Bench) -> Vec<(&'static str, Vec<u16>, Option<Dialogue>)> {
    let one = |event| match event {
        MailEvent::Attempted { recipients, dialogue } => Some(("attempted", recipients, dialogue.read())),
        MailEvent::Delivered { recipients, .. } => Some(("delivered", recipients, None)),
        MailEvent::Deferred { recipients, .. } => Some(("deferred", recipients, None)),
        MailEvent::Bounced { recipients, .. } => Some(("bounced", recipients, None)),
        _ => None,
    };
    bench.mail_events().into_iter().filter_map(one).collect()
}

fn kinds(bench: &Bench) -> Vec<(&'static str, Vec<u16>)> {
    told(bench).into_iter().map(|(kind, recipients, _)| (kind, recipients)).collect()
}

async fn claimed(bench: &Bench) -> Claim {
    bench.queue.enqueue(message(&TWO), WALL).await.unwrap();
    bench.claim_all().remove(0)
}

#[tokio::test]
async fn it_is_recorded_once_before_its_outcomes_and_without_what_they_say() {
    let bench = Bench::new().await;
    let mut claim = claimed(&bench).await;
    claim.note(said(&[1, 0]));
    bench.queue.settle(claim, vec![(0, delivered()), (1, deferred())], WALL).await.unwrap();
    assert_eq!(kinds(&bench), [("attempted", vec![1, 0]), ("delivered", vec![0]), ("deferred", vec![1])]);
    let dialogue = told(&bench).remove(0).2.unwrap();
    let sent: Vec<&Sent> = dialogue.steps.iter().map(|step| &step.sent).collect();
    let (mail, rcpt) = (Sent::Mail(String::new()), Sent::Rcpt(String::new()));
    assert_eq!(sent, [&Sent::Connecting(String::new()), &mail, &rcpt, &rcpt, &Sent::Dot]);
    assert!(matches!(&dialogue.steps[2].heard, Heard::Reply(_, _, text) if text == "<recipient> ok"), "{dialogue:?}");
    assert_eq!(dialogue.steps[4].heard, Heard::Outcome);
    // No event names anybody.
    for (key, bytes) in bench.store.range(&[prefix::EVENT], &[prefix::EVENT + 1], usize::MAX).unwrap() {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        assert!(!text.contains("ann@") && !text.contains("bob@") && !text.contains("shop@"), "{key:?} {text}");
    }
}

#[tokio::test]
async fn a_part_that_is_recorded_early_takes_it_along_and_it_is_not_told_again() {
    let bench = Bench::new().await;
    let mut claim = claimed(&bench).await;
    claim.note(said(&[0]));
    let (mut claim, left) = bench.queue.settle_part(claim, vec![(0, delivered())], WALL).await.unwrap().unwrap();
    assert!(claim.said.is_empty() && left.is_empty());
    claim.note(said(&[1]));
    // Nothing is final of this one: it is recorded with the others.
    let (claim, left) = bench.queue.settle_part(claim, vec![(1, deferred())], WALL).await.unwrap().unwrap();
    assert_eq!((claim.said.len(), kinds(&bench).len()), (1, 2));
    bench.queue.settle(claim, left, WALL).await.unwrap();
    let each = [("attempted", vec![0]), ("delivered", vec![0]), ("attempted", vec![1]), ("deferred", vec![1])];
    assert_eq!(kinds(&bench), each);
}

#[tokio::test]
async fn what_was_given_back_untouched_forgets_it_and_what_is_repeated_tells_it_once() {
    let bench = Bench::new().await;
    let mut claim = claimed(&bench).await;
    claim.note(said(&[0, 1]));
    bench.queue.release(claim, Duration::ZERO);
    let mut claim = bench.claim_all().remove(0);
    assert!(claim.said.is_empty());
    claim.note(said(&[0, 1]));
    // As of an attempt that was aborted: the chores record it.
    let outcomes = all(&claim, &delivered());
    bench.queue.settle_later((claim, outcomes), WALL, bench.queue.now());
    bench.queue.do_chores(WALL).await;
    bench.queue.do_chores(WALL).await;
    assert_eq!(kinds(&bench), [("attempted", vec![0, 1]), ("delivered", vec![0, 1])]);
    bench.assert_empty();
}

#[tokio::test]
async fn of_very_many_transactions_the_first_are_kept_and_of_the_others_how_much_it_was() {
    let bench = Bench::new().await;
    let mut claim = claimed(&bench).await;
    let one = said(&[0]).dialogue.octets();
    let count = 2 * SAID_OCTETS_MAX / one;
    for _ in 0..count {
        claim.note(said(&[0]));
    }
    claim.note(said(&[1]));
    let kept: usize = claim.said.iter().map(|said| said.dialogue.octets()).sum();
    assert!(kept <= SAID_OCTETS_MAX && kept > SAID_OCTETS_MAX - one, "{kept}");
    let outcomes = all(&claim, &bounced());
    let (steps, whole) = (said(&[0]).dialogue.steps.len(), claim.said.len() - 1);
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert_eq!(kinds(&bench).last().unwrap(), &("bounced", vec![0, 1]));
    let (_, recipients, rest) = told(&bench).into_iter().rfind(|(kind, ..)| *kind == "attempted").unwrap();
    let rest = rest.unwrap();
    assert_eq!((recipients, rest.steps.len()), (vec![0, 1], 0));
    assert_eq!(usize::from(rest.left_out), (count - whole + 1) * steps, "{rest:?}");
}

#[tokio::test]
async fn nothing_of_it_names_anybody_once_the_message_is_erased() {
    let bench = Bench::new().await;
    let mut claim = claimed(&bench).await;
    let id = claim.queue_id;
    claim.note(said(&[0, 1]));
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(!bench.queue.history(id).unwrap().unwrap().is_erased());
    bench.queue.erase(&Actor::local(0), id, WALL).await.unwrap();
    assert!(bench.queue.history(id).unwrap().unwrap().is_erased());
    for (key, bytes) in bench.store.range(&[1], &[u8::MAX], usize::MAX).unwrap() {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        assert!(!text.contains("ann@") && !text.contains("bob@"), "{key:?} {text}");
    }
    assert!(bench.store.get(&history_key(id)).unwrap().is_some());
}
