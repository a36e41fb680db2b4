//! Mail taken in with the real queue and routes over the store in memory.

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::mail::Smtputf8;
use crate::pipeline::{self, samples};
use crate::queue;
use crate::seal::MasterKey;
use crate::store::{Blobs, MemoryStore, after_prefix, codec, prefix};

struct Bench {
    counted: Arc<AtomicI64>,
    store: Arc<MemoryStore>,
    intake: Intake,
}

async fn bench() -> Bench {
    bench_by(Calendar::default()).await
}

async fn bench_by(calendar: Calendar) -> Bench {
    let store = Arc::new(MemoryStore::new());
    let records: Arc<dyn Store> = store.clone();
    let bodies: Arc<dyn Blobs> = store.clone();
    let queue = Queue::open(Arc::clone(&records), bodies, queue::Settings::default()).await.unwrap();
    let routes = Routes::open(Arc::clone(&records), Arc::new(MasterKey::from_bytes([7; 32]))).unwrap();
    let counted = Arc::new(AtomicI64::new(0));
    let (counts, takes_back) = (Arc::clone(&counted), Arc::clone(&counted));
    let parts = pipeline::Parts {
        signer: samples::signer_for(&["shop.example"]),
        name_signer: Arc::new(|_, _| None),
        suppressed: Arc::new(|_, _, address| Ok(address.local_part() == "no")),
        count: Arc::new(move |_, _, _| {
            counts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }),
        marks: Arc::new(|_, _, _| None),
        uncount: Arc::new(move |_, _| {
            takes_back.fetch_sub(1, Ordering::SeqCst);
        }),
        sender: Arc::new(|_, _| Ok(())),
        dialects: Arc::new(|_| Vec::new()),
    };
    let settings = pipeline::Settings { spill_folder: std::env::temp_dir(), ..pipeline::Settings::default() };
    let pipeline = Arc::new(Pipeline::new(parts, settings));
    let may_enter: MayEnter = Arc::new(|entering, _| match entering.to.map(Domain::as_str) {
        Some("drained.example") => Err(Refusal::plain(Reply::enhanced(451, 3, 2, "not now"))),
        _ => Ok(()),
    });
    let (routes, queue) = (Arc::new(routes), Arc::new(queue));
    let parts = Parts { pipeline, routes, queue, store: records, may_enter, calendar };
    Bench { counted, store, intake: Intake::new(parts) }
}

impl Bench {
    async fn events(&self) -> Vec<EventKind> {
        // Events beside the path of the mail are written soon, not at once.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let pairs = self.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), 100).unwrap();
        pairs.into_iter().map(|(_, value)| codec::decode::<Event>(&value).unwrap().kind).collect()
    }
}

fn submission(recipients: &[&str], message: &str) -> Submission {
    let about = samples::smtp_about("a@shop.example", recipients);
    Submission { envelope: about.envelope, draft: samples::draft(message), source: about.source }
}

#[tokio::test]
async fn an_accepted_message_is_owed_to_each_lane() {
    let bench = bench().await;
    let mut submission = submission(&["b@x.example", "c@y.example", "d@x.example", "no@z.example"], samples::PLAIN);
    submission.envelope.parameters.smtputf8 = Smtputf8::Needed;
    let id = bench.intake.accept(submission, samples::NOW).await.unwrap();
    let lanes = bench.intake.parts.queue.lanes();
    let mut hops: Vec<_> = lanes.iter().map(|due| due.lane.next_hop.as_str()).collect();
    hops.sort_unstable();
    assert_eq!(hops, ["x.example", "y.example"]);
    assert!(lanes.iter().all(|due| due.lane.vip == VipId(3)));
    assert_eq!(bench.store.bodies().len(), 1);
    let events = bench.events().await;
    assert!(events.iter().any(|kind| matches!(kind, EventKind::Mail(of, MailEvent::Accepted(facts))
        if *of == id && facts.recipients == 4 && facts.signatures.len() == 2)));
    assert!(events.contains(&EventKind::Mail(id, MailEvent::Suppressed { recipients: vec![3] })));
}

#[tokio::test]
async fn all_recipients_suppressed_is_accepted_with_events_and_nothing_queued() {
    let bench = bench().await;
    let id = bench.intake.accept(submission(&["no@x.example"], samples::PLAIN), samples::NOW).await.unwrap();
    assert!(bench.intake.parts.queue.lanes().is_empty() && bench.store.bodies().is_empty());
    let suppressed = EventKind::Mail(id, MailEvent::Suppressed { recipients: vec![0] });
    assert!(bench.events().await.contains(&suppressed));
}

#[tokio::test]
async fn a_refusal_leaves_an_event_and_nothing_else() {
    let bench = bench().await;
    let foreign = "From: a@evil.example\r\n\r\nx\r\n";
    let refusal = bench.intake.accept(submission(&["b@x.example"], foreign), samples::NOW).await.unwrap_err();
    assert!(refusal.reply.one_line().starts_with("550 5.7.1 "));
    assert!(bench.store.bodies().is_empty());
    let events = bench.events().await;
    assert!(matches!(&events[..], [EventKind::Instance(InstanceEvent::Refused { reply, cause, .. })]
        if reply.starts_with("550 5.7.1 ") && cause.starts_with("identity: ")));
}

#[tokio::test]
async fn a_store_that_does_not_take_it_gives_a_reply_that_keeps_the_message_with_the_client() {
    for (error, reply) in [
        (CommitError::Full("disk".to_owned()), "452 4.3.1 "),
        (CommitError::Failed("write".to_owned()), "451 4.3.0 "),
        (CommitError::Stopped("sync".to_owned()), "451 4.3.0 "),
        (CommitError::Conflict, "451 4.3.0 "),
    ] {
        let bench = bench().await;
        bench.store.fail_next(1, error);
        let refusal =
            bench.intake.accept(submission(&["b@x.example"], samples::PLAIN), samples::NOW).await.unwrap_err();
        assert!(refusal.reply.one_line().starts_with(reply), "{refusal}");
        assert!(bench.intake.parts.queue.lanes().is_empty());
        assert_eq!(bench.counted.load(Ordering::SeqCst), 0, "what was not taken is not counted");
    }
}

#[tokio::test]
async fn what_fails_behind_the_limits_is_not_counted_and_what_is_taken_is_once() {
    let bench = bench().await;
    let mut broken = submission(&["b@x.example"], samples::PLAIN);
    broken.draft.body = samples::unreadable_body();
    bench.intake.accept(broken, samples::NOW).await.unwrap_err();
    assert_eq!(bench.counted.load(Ordering::SeqCst), 0);
    bench.intake.accept(submission(&["b@x.example"], samples::PLAIN), samples::NOW).await.unwrap();
    assert_eq!(bench.counted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_message_one_of_whose_recipients_may_not_enter_is_refused_before_anything_is_counted() {
    let bench = bench().await;
    let refused = bench.intake.accept(submission(&["b@x.example", "c@drained.example"], samples::PLAIN), samples::NOW);
    assert_eq!(refused.await.unwrap_err().reply.code.0, 451);
    assert_eq!(bench.counted.load(Ordering::SeqCst), 0);
    assert!(bench.store.bodies().is_empty() && bench.intake.parts.queue.lanes().is_empty());
    // A notice of our own is owed all the same.
    let mut notice = submission(&["c@drained.example"], samples::PLAIN);
    notice.source.way = Way::Report;
    bench.intake.accept(notice, samples::NOW).await.unwrap();
}

#[tokio::test]
async fn a_message_for_nobody_is_refused() {
    let bench = bench().await;
    let refusal = bench.intake.accept(submission(&[], samples::PLAIN), samples::NOW).await.unwrap_err();
    assert_eq!(refusal.reply.code.0, 554);
}

fn keyed(recipients: &[&str], key: &str, subject: &str) -> Submission {
    let message =
        format!("X-Idempotency-Key: {key}\r\nFrom: A <a@shop.example>\r\nSubject: {subject}\r\n\r\nplain\r\n");
    submission(recipients, &message)
}

#[tokio::test]
async fn a_message_that_comes_again_with_its_key_is_taken_once_and_answered_the_same() {
    let bench = bench().await;
    let first = bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), samples::NOW).await.unwrap();
    let later = samples::NOW.plus(std::time::Duration::from_secs(3600));
    let second = bench.intake.accept(keyed(&["B@x.example"], "order-1", "one"), later).await.unwrap();
    assert_eq!(second, first);
    assert_eq!((bench.store.bodies().len(), bench.counted.load(Ordering::SeqCst)), (1, 1));
    let other = bench.intake.accept(keyed(&["b@x.example"], "order-2", "one"), later).await.unwrap();
    assert_ne!(other, first);
    let mut foreign = keyed(&["b@x.example"], "order-1", "one");
    foreign.source.account = Some(SmtpAccountId(77));
    assert_ne!(bench.intake.accept(foreign, later).await.unwrap(), first, "a key is of one SMTP account");
    let next_day = samples::NOW.plus(once::KEYS_TIME);
    assert_ne!(bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), next_day).await.unwrap(), first);
}

#[tokio::test]
async fn a_clock_ten_years_ahead_makes_no_second_message_of_a_repeat() {
    let bench = bench_by(Calendar::resume(None, samples::NOW)).await;
    let first = bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), samples::NOW).await.unwrap();
    let jumped = samples::NOW.plus(std::time::Duration::from_secs(3_650 * 86_400));
    assert_eq!(bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), jumped).await.unwrap(), first);
    let second = bench.intake.accept(keyed(&["b@x.example"], "order-2", "one"), jumped).await.unwrap();
    let lapsing = bench.intake.parts.calendar.cap(jumped);
    assert_eq!(once::sweep(&*bench.store, lapsing).await.unwrap(), 0);
    for now in [jumped, samples::NOW] {
        assert_eq!(bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), now).await.unwrap(), first);
        assert_eq!(bench.intake.accept(keyed(&["b@x.example"], "order-2", "one"), now).await.unwrap(), second);
    }
    let next_day = samples::NOW.plus(once::KEYS_TIME);
    assert_eq!(bench.intake.accept(keyed(&["b@x.example"], "order-1", "one"), next_day).await.unwrap(), first);
}

#[tokio::test]
async fn another_message_with_the_same_key_is_refused_and_never_swallowed() {
    let bench = bench().await;
    bench.intake.accept(keyed(&["b@x.example"], "k", "one"), samples::NOW).await.unwrap();
    for other in [keyed(&["c@x.example"], "k", "one"), keyed(&["b@x.example"], "k", "two")] {
        let reply = bench.intake.accept(other, samples::NOW).await.unwrap_err().reply.one_line();
        assert!(reply.starts_with("550 5.6.0 X-Idempotency-Key"), "{reply}");
    }
    let long = "x".repeat(once::KEY_CHARACTERS_MAX + 1);
    for wrong in ["", "two words", "a\r\nX-Idempotency-Key: b", long.as_str()] {
        let refusal = bench.intake.accept(keyed(&["b@x.example"], wrong, "one"), samples::NOW).await.unwrap_err();
        assert!(refusal.reply.one_line().starts_with("550 5.6.0 X-Idempotency-Key"), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_message_that_was_not_stored_leaves_no_key_behind() {
    let bench = bench().await;
    bench.store.fail_next(1, CommitError::Failed("write".to_owned()));
    bench.intake.accept(keyed(&["b@x.example"], "k", "one"), samples::NOW).await.unwrap_err();
    bench.intake.accept(keyed(&["b@x.example"], "k", "one"), samples::NOW).await.unwrap();
    assert_eq!(bench.store.bodies().len(), 1);
}

#[tokio::test]
async fn two_at_the_same_time_with_one_key_are_one_message() {
    let bench = bench().await;
    let each = (0..20).map(|_| bench.intake.accept(keyed(&["b@x.example"], "k", "one"), samples::NOW));
    let ids: std::collections::HashSet<_> =
        futures_util::future::join_all(each).await.into_iter().map(|id| id.unwrap()).collect();
    assert_eq!((ids.len(), bench.store.bodies().len(), bench.counted.load(Ordering::SeqCst)), (1, 1, 1));
}

#[tokio::test]
async fn lapsed_keys_are_removed_and_current_ones_stay() {
    let bench = bench().await;
    let keys = || {
        let own = [prefix::REPLAY];
        bench.store.range(&own, &after_prefix(&own), 100).unwrap().len()
    };
    bench.intake.accept(keyed(&["b@x.example"], "old", "one"), samples::NOW).await.unwrap();
    let next_day = samples::NOW.plus(once::KEYS_TIME).plus(std::time::Duration::from_secs(1));
    bench.intake.accept(keyed(&["b@x.example"], "young", "one"), next_day).await.unwrap();
    assert_eq!(keys(), 4);
    assert_eq!(once::sweep(&*bench.store, next_day).await.unwrap(), 1);
    assert_eq!(keys(), 2);
    assert_eq!(once::sweep(&*bench.store, next_day).await.unwrap(), 0);
}
