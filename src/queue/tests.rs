//! How the queue behaves, over the engine in memory and with time as a value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::claim::Discovery;
use super::clock::Clock;
use super::*;
use crate::access::Actor;
use crate::events::{Event, EventKind, MailEvent, NoticeKind, Peer, Why};
use crate::mail::{Address, Body, Class, Hold, MailParameters, Notify, Reply, ReversePath, Sealed};
use crate::routing::TransportName;
use crate::store::{MemoryStore, after_prefix, codec, prefix};

pub(super) const WALL: Timestamp = Timestamp(1_795_342_500_000);
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// A queue over memory whose clock the test moves.
pub(super) struct Bench {
    pub(super) store: Arc<MemoryStore>,
    pub(super) queue: Queue,
    pub(super) clock: Arc<AtomicU64>,
    policy: Policy,
}

impl Bench {
    pub(super) async fn new() -> Self {
        Self::with_policy(Policy::default()).await
    }

    pub(super) async fn with_policy(policy: Policy) -> Self {
        let store = Arc::new(MemoryStore::new());
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let queue = open(&store, &clock).await.with_policy(policy.clone());
        Self { store, queue, clock, policy }
    }

    pub(super) async fn reopen(&mut self) {
        self.queue = open(&self.store, &self.clock).await.with_policy(self.policy.clone());
    }

    pub(super) fn pass(&self, millis: u64) {
        self.clock.fetch_add(millis, Ordering::AcqRel);
    }

    /// Owes a message to these, changed before.
    pub(super) async fn owe(&self, to: &[&str], change: impl FnOnce(&mut NewMessage)) -> QueueId {
        let mut new = message(to);
        change(&mut new);
        let id = new.id;
        self.queue.enqueue(new, WALL).await.unwrap();
        id
    }

    /// What an operator finds with that filter, all on one page.
    pub(super) fn listed(&self, filter: &Filter) -> Vec<QueueId> {
        let page = self.queue.list(&Actor::local(0), filter, None, 100).unwrap();
        assert_eq!(page.next, None);
        page.messages.into_iter().map(|listed| listed.id).collect()
    }

    /// Claims everything due.
    pub(super) fn claim_all(&self) -> Vec<Claim> {
        self.queue.lanes().iter().flat_map(|due| self.queue.claim(&due.lane, 1_000)).collect()
    }

    pub(super) fn events(&self) -> Vec<EventKind> {
        let end = after_prefix(&[prefix::EVENT]);
        let all = self.store.range(&[prefix::EVENT], &end, usize::MAX).unwrap();
        all.into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind).collect()
    }

    pub(super) fn mail_events(&self) -> Vec<MailEvent> {
        let of_mail = |kind| if let EventKind::Mail(_, event) = kind { Some(event) } else { None };
        self.events().into_iter().filter_map(of_mail).collect()
    }

    pub(super) fn count(&self, prefix: u8) -> usize {
        self.store.range(&[prefix], &after_prefix(&[prefix]), usize::MAX).unwrap().len()
    }

    /// Nothing but history and events is left.
    pub(super) fn assert_empty(&self) {
        for kind in [prefix::MESSAGE, prefix::LANE, prefix::DUE, prefix::NOTICE] {
            assert_eq!(self.count(kind), 0, "records of kind {}", char::from(kind));
        }
        assert!(self.store.bodies().is_empty());
        let totals = self.queue.totals();
        assert_eq!(totals, Totals { lanes: 0, claimed: 0, notices: 0, unrecorded: 0 });
    }
}

async fn open(store: &Arc<MemoryStore>, clock: &Arc<AtomicU64>) -> Queue {
    let clock = Clock::Manual(Arc::clone(clock));
    Queue::open_with(store.clone(), store.clone(), Settings::default(), clock).await.unwrap()
}

pub(super) fn lane_to(domain: &str) -> Lane {
    Lane {
        vip: VipId(1),
        tenant: TenantId(2),
        class: Class::Transactional,
        transport: TransportName::Mx,
        next_hop: Domain::parse(domain).unwrap(),
    }
}

pub(crate) fn message(to: &[&str]) -> NewMessage {
    let recipient = |address: &&str| {
        let address = Address::parse(address).unwrap();
        let lane = Some(lane_to(address.domain().as_str()));
        NewRecipient { address, notify: Notify::default(), orcpt: None, lane }
    };
    NewMessage {
        id: QueueId::new(WALL),
        tenant: TenantId(2),
        account: None,
        vip: VipId(1),
        class: Class::Transactional,
        source: "smtp".into(),
        reverse_path: ReversePath(Some(Address::parse("shop@shop.example").unwrap())),
        parameters: MailParameters::default(),
        message: Sealed {
            head: Bytes::from_static(b"Subject: s\r\n\r\n"),
            body: Body::Memory(Bytes::from_static(b"hi\r\n")),
        },
        needs_8bit: Needs8bit::No,
        subject: "s".into(),
        message_id: "<1@shop.example>".into(),
        header_from: "shop@shop.example".into(),
        signatures: vec!["a._domainkey.shop.example".into()],
        recipients: to.iter().map(recipient).collect(),
        labels: Default::default(),
        return_path: None,
        signed: None,
        notice_about: None,
        beside: Default::default(),
    }
}

pub(super) fn peer() -> Peer {
    Peer { host: "mx.example".into(), address: "192.0.2.1:25".into(), source: "192.0.2.9".into(), tls: "none".into() }
}

pub(super) fn delivered() -> Outcome {
    Outcome::Delivered { peer: peer(), reply: Reply::enhanced(250, 0, 0, "ok"), onward: Onward::Ourselves }
}

pub(super) fn deferred() -> Outcome {
    Outcome::Deferred { why: Why::TryLater, detail: "451 4.7.1 later".into(), peer: Some(peer()) }
}

pub(super) fn bounced() -> Outcome {
    Outcome::Bounced { why: Why::RecipientGone, detail: "550 5.1.1 no".into(), peer: Some(peer()) }
}

pub(super) fn all(claim: &Claim, outcome: &Outcome) -> Vec<(u16, Outcome)> {
    claim.record.recipients.iter().map(|recipient| (recipient.number, outcome.clone())).collect()
}

async fn settle_all(bench: &Bench, outcome: &Outcome) -> usize {
    let claims = bench.claim_all();
    let count = claims.len();
    for claim in claims {
        let outcomes = all(&claim, outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    count
}

#[tokio::test]
async fn a_delivered_message_leaves_nothing_but_history_and_events() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example", "b@one.example", "c@two.example"]), WALL).await.unwrap();
    assert_eq!(bench.store.commits(), 2, "one for the clock, one for the message");
    assert_eq!(bench.queue.next_due(), Some(Duration::ZERO));
    assert_eq!(settle_all(&bench, &delivered()).await, 2);
    assert_eq!(bench.store.commits(), 4);
    bench.assert_empty();
    assert_eq!(bench.count(prefix::HISTORY), 1);
    let events = bench.mail_events();
    assert!(matches!(&events[1], MailEvent::Delivered { recipients, .. } if recipients == &[0, 1]), "{events:?}");
    assert_eq!(events.last(), Some(&MailEvent::Retired));
    assert_eq!(bench.store.settled().iter().map(|frame| frame.1.len()).sum::<usize>(), 3);
}

#[tokio::test]
async fn a_claim_is_not_handed_out_twice_and_a_restart_makes_it_due_again() {
    let mut bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    assert_eq!(bench.claim_all().len(), 1);
    assert_eq!(bench.claim_all().len(), 0);
    assert_eq!(bench.queue.next_due(), None);
    bench.reopen().await;
    let claims = bench.claim_all();
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].record.recipients[0].address.to_string(), "a@one.example");
}

#[tokio::test]
async fn a_week_of_retries_passes_in_milliseconds_and_ends_in_one_notice() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let mut attempts = 0;
    while let Some(pause) = bench.queue.next_due() {
        bench.pass(pause.as_millis() as u64);
        attempts += settle_all(&bench, &deferred()).await;
        assert!(attempts < 100);
    }
    assert!((20..30).contains(&attempts), "{attempts}");
    let waited = Duration::from_millis(bench.clock.load(Ordering::Acquire) - 1_000_000);
    assert!(waited >= Duration::from_secs(72 * 3600) && waited < Duration::from_secs(77 * 3600), "{waited:?}");
    assert!(matches!(bench.mail_events().last(), Some(MailEvent::Expired { .. })));
    assert_eq!(bench.queue.owed_notices(10).unwrap(), []);
    bench.pass(10 * MINUTE);
    let notices = bench.queue.owed_notices(10).unwrap();
    assert_eq!((notices.len(), notices[0].kind), (1, NoticeKind::Failure));
    assert!(!bench.store.bodies().is_empty(), "the notice quotes the body");
    bench.queue.drop_notice(&notices[0], WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_restored_queue_holds_its_mail_and_drops_the_notices_it_owed() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example", "b@two.example"]), WALL).await.unwrap();
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &bounced());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    let held = bench.queue.hold_all(&Actor::system("restored from a backup"), WALL).await.unwrap();
    assert_eq!((held.messages, held.notices_dropped), (1, 1));
    bench.pass(10 * MINUTE);
    assert_eq!(bench.queue.owed_notices(10).unwrap(), [], "it may have been sent since");
}

#[tokio::test]
async fn failures_gather_for_ten_minutes_and_the_notice_is_paid_once() {
    let bench = Bench::new().await;
    let about = message(&["a@one.example", "b@two.example", "c@three.example"]);
    let id = about.id;
    bench.queue.enqueue(about, WALL).await.unwrap();
    let claims = bench.claim_all();
    assert_eq!(claims.len(), 3);
    for (claim, outcome) in claims.into_iter().zip([bounced(), bounced(), deferred()]) {
        let outcomes = all(&claim, &outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        bench.pass(MINUTE);
    }
    assert_eq!(bench.queue.next_notice_due(), Some(Duration::from_secs(7 * 60)));
    bench.pass(7 * MINUTE);
    let notice = bench.queue.owed_notices(10).unwrap().remove(0);
    assert_eq!(notice.recipients.len(), 2, "it does not wait for the one still trying");
    // A third failure while the notice is being written starts another one.
    let claim = bench.claim_all().remove(0);
    let outcomes = all(&claim, &bounced());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    let mut dsn = message(&["shop@shop.example"]);
    (dsn.notice_about, dsn.source, dsn.reverse_path) = (Some(id), "notice".into(), ReversePath(None));
    bench.queue.enqueue(dsn.clone(), WALL).await.unwrap();
    dsn.id = QueueId::new(WALL);
    assert_eq!(bench.queue.enqueue(dsn.clone(), WALL).await, Err(CommitError::Conflict));
    bench.pass(10 * MINUTE);
    assert_eq!(bench.queue.owed_notices(10).unwrap()[0].recipients.len(), 1);
    bench.queue.enqueue(dsn, WALL).await.unwrap();
    assert!(bench.mail_events().contains(&MailEvent::Retired));
    assert_eq!(settle_all(&bench, &delivered()).await, 2);
    bench.assert_empty();
}

#[tokio::test]
async fn nothing_is_ever_owed_to_a_null_reverse_path() {
    let bench = Bench::new().await;
    let mut lonely = message(&["a@one.example"]);
    lonely.reverse_path = ReversePath(None);
    bench.queue.enqueue(lonely, WALL).await.unwrap();
    settle_all(&bench, &bounced()).await;
    bench.assert_empty();
}

#[tokio::test]
async fn a_success_that_the_peer_will_tell_of_owes_no_notice() {
    let bench = Bench::new().await;
    let mut wishes = message(&["a@one.example", "b@two.example"]);
    wishes.recipients.iter_mut().for_each(|recipient| recipient.notify = Notify { success: true, ..Notify::NEVER });
    bench.queue.enqueue(wishes, WALL).await.unwrap();
    for claim in bench.claim_all() {
        // RFC 3461 s5.2.1 and s5.2.2.
        let onward =
            if claim.record.lane.next_hop.as_str() == "one.example" { Onward::Peer } else { Onward::Ourselves };
        let outcome = Outcome::Delivered { peer: peer(), reply: Reply::enhanced(250, 0, 0, "ok"), onward };
        let outcomes = all(&claim, &outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    bench.pass(HOUR);
    let owed = bench.queue.owed_notices(10).unwrap();
    let told: Vec<String> =
        owed.iter().flat_map(|notice| &notice.recipients).map(|one| one.address.to_string()).collect();
    assert_eq!(told, ["b@two.example"]);
    assert_eq!(owed[0].recipients[0].last_attempt, Some(WALL));
}

#[tokio::test]
async fn notify_decides_which_notices_are_owed() {
    let bench = Bench::new().await;
    let mut wishes = message(&["a@one.example", "b@two.example", "c@three.example"]);
    wishes.recipients[0].notify = Notify::NEVER;
    wishes.recipients[1].notify = Notify { success: true, ..Notify::NEVER };
    wishes.recipients[2].notify = Notify { delay: true, ..Notify::default() };
    bench.queue.enqueue(wishes, WALL).await.unwrap();
    bench.pass(5 * HOUR);
    for claim in bench.claim_all() {
        let outcome = match claim.record.lane.next_hop.as_str() {
            "one.example" => bounced(),
            "two.example" => delivered(),
            _ => deferred(),
        };
        let outcomes = all(&claim, &outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    bench.pass(HOUR);
    let mut dsn = message(&["shop@shop.example"]);
    let mut kinds = Vec::new();
    while let Some(notice) = bench.queue.owed_notices(1).unwrap().pop() {
        kinds.push(notice.kind);
        (dsn.id, dsn.notice_about) = (QueueId::new(WALL), Some(notice.queue_id));
        bench.queue.enqueue(dsn.clone(), WALL).await.unwrap();
    }
    kinds.sort_by_key(|kind| format!("{kind:?}"));
    assert_eq!(kinds, [NoticeKind::Delay, NoticeKind::Success]);
    bench.pass(5 * HOUR);
    settle_all(&bench, &deferred()).await;
    assert_eq!(bench.queue.totals().notices, 0, "the delay is told once");
}

#[tokio::test]
async fn suppressed_recipients_are_recorded_and_never_queued() {
    let bench = Bench::new().await;
    let mut partly = message(&["a@one.example", "b@one.example"]);
    partly.recipients[0].lane = None;
    bench.queue.enqueue(partly, WALL).await.unwrap();
    let claims = bench.claim_all();
    assert_eq!(claims[0].record.recipients.len(), 1);
    assert_eq!(claims[0].record.recipients[0].number, 1);
    let mut wholly = message(&["a@one.example"]);
    wholly.recipients[0].lane = None;
    bench.queue.enqueue(wholly, WALL).await.unwrap();
    assert_eq!((bench.count(prefix::MESSAGE), bench.store.bodies().len()), (1, 1));
    assert_eq!(bench.mail_events().last(), Some(&MailEvent::Suppressed { recipients: vec![0] }));
}

#[tokio::test]
async fn a_message_held_back_by_its_sender_is_due_later_and_expires_later() {
    let bench = Bench::new().await;
    let mut future = message(&["a@one.example"]);
    future.parameters.hold = Some(Hold::For(Duration::from_millis(100 * HOUR)));
    bench.queue.enqueue(future, WALL).await.unwrap();
    assert_eq!(bench.queue.next_due(), Some(Duration::from_millis(100 * HOUR)));
    assert!(bench.queue.lanes().is_empty());
    bench.pass(100 * HOUR);
    settle_all(&bench, &deferred()).await;
    assert!(matches!(bench.mail_events().last(), Some(MailEvent::Deferred { .. })));
}

#[tokio::test]
async fn two_hundred_fifty_recipients_of_a_lane_make_three_records() {
    let bench = Bench::new().await;
    let many: Vec<String> = (0..250).map(|number| format!("r{number}@one.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    bench.queue.enqueue(message(&many), WALL).await.unwrap();
    let claims = bench.claim_all();
    let sizes: Vec<usize> = claims.iter().map(|claim| claim.record.recipients.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    // Settled at once, only the last one retires the message.
    let all_at_once = claims.into_iter().map(|claim| {
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL)
    });
    for result in futures_util::future::join_all(all_at_once).await {
        result.unwrap();
    }
    bench.assert_empty();
    let retired = bench.mail_events().into_iter().filter(|event| *event == MailEvent::Retired).count();
    assert_eq!(retired, 1);
}

#[tokio::test]
async fn an_outcome_whose_commit_fails_is_kept_and_recorded_before_the_next_claim() {
    for error in [CommitError::Full("full".into()), CommitError::Failed("eio".into())] {
        let bench = Bench::new().await;
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
        let claim = bench.claim_all().remove(0);
        bench.store.fail_next(2, error.clone());
        let outcomes = all(&claim, &delivered());
        assert_eq!(bench.queue.settle(claim, outcomes, WALL).await, Err(error));
        assert_eq!(bench.queue.totals().unrecorded, 1);
        bench.queue.do_chores(WALL).await;
        bench.pass(HOUR);
        assert!(bench.claim_all().is_empty(), "never delivered again before it is recorded");
        bench.queue.do_chores(WALL).await;
        bench.assert_empty();
    }
}

#[tokio::test]
async fn a_message_that_could_not_be_committed_is_not_owed() {
    let bench = Bench::new().await;
    bench.store.fail_next(1, CommitError::Full("full".into()));
    let refused = message(&["a@one.example"]);
    assert!(bench.queue.enqueue(refused.clone(), WALL).await.is_err());
    bench.assert_empty();
    bench.queue.enqueue(refused, WALL).await.unwrap();
    assert_eq!(bench.claim_all().len(), 1);
}

#[tokio::test]
async fn a_released_claim_comes_back_after_its_pause_without_an_attempt() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    let before = bench.store.commits();
    bench.queue.release(bench.claim_all().remove(0), Duration::from_secs(30));
    assert!(bench.claim_all().is_empty());
    assert_eq!(bench.queue.next_due(), Some(Duration::from_secs(30)));
    bench.pass(30_000);
    let claim = bench.claim_all().remove(0);
    assert_eq!((claim.record.attempts, bench.store.commits()), (0, before));
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.assert_empty();
}

#[tokio::test]
async fn a_recipient_without_an_outcome_waits_on_and_costs_no_attempt() {
    let bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example", "b@one.example"]), WALL).await.unwrap();
    bench.queue.settle(bench.claim_all().remove(0), Vec::new(), WALL).await.unwrap();
    bench.pass(6 * MINUTE);
    let claim = bench.claim_all().remove(0);
    assert_eq!(claim.record.attempts, 0);
    bench.queue.settle(claim, vec![(1, delivered())], WALL).await.unwrap();
    bench.pass(1);
    let claim = bench.claim_all().remove(0);
    assert_eq!(claim.record.attempts, 0);
    assert_eq!(claim.record.recipients[1].state, RecipientState::Done(Ending::Delivered));
}

#[tokio::test]
async fn damaged_records_are_set_aside_and_stop_nobody() {
    let mut bench = Bench::new().await;
    let (one, two, three) =
        (message(&["a@one.example"]), message(&["b@one.example"]), message(&["c@one.example", "d@two.example"]));
    for new in [&one, &two, &three] {
        bench.queue.enqueue(new.clone(), WALL).await.unwrap();
    }
    let mut harm = Batch::new();
    harm.set(key::lane_record(one.id, 0), b"\x01garbage".to_vec());
    harm.set(key::message(two.id), Vec::new());
    harm.set(vec![prefix::DUE, 1, 2, 3], Vec::new());
    let mut torn = key::lane(&lane_to("one.example"));
    torn.extend_from_slice(b"torn");
    harm.set(torn, Vec::new());
    bench.store.commit(harm).await.unwrap();
    bench.reopen().await;
    let claims = bench.claim_all();
    assert_eq!(claims.len(), 2);
    bench.queue.do_chores(WALL).await;
    for claim in claims {
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    assert_eq!(bench.count(prefix::DUE), 0);
    assert_eq!(bench.store.bodies().len(), 2, "the bodies of damaged messages are kept");
    let damaged = bench.mail_events().into_iter().filter(|event| matches!(event, MailEvent::Damaged { .. })).count();
    assert_eq!(damaged, 2);
    let reported = bench.events().into_iter().filter(|kind| matches!(kind, EventKind::Instance(_))).count();
    assert_eq!(reported, 2);
}

#[tokio::test]
async fn lanes_of_a_long_queue_are_found_by_and_by_and_none_is_forgotten() {
    let mut bench = Bench::new().await;
    let lanes = 5_000;
    for number in 0..lanes {
        bench.queue.enqueue(message(&[&format!("a@d{number}.example")]), WALL).await.unwrap();
    }
    bench.reopen().await;
    let at_open = bench.queue.totals().lanes;
    assert!((1..lanes).contains(&at_open), "{at_open} lanes at open");
    bench.queue.enqueue(message(&["b@d4999.example"]), WALL).await.unwrap();
    let claims = bench.claim_all();
    let claimed = claims.len();
    assert_eq!(claimed, at_open + 1, "what is known is worked on");
    for claim in claims {
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    }
    while bench.queue.discover_lanes(1).unwrap() == Discovery::GoesOn {}
    assert_eq!(bench.claim_all().len(), lanes + 1 - claimed, "the others are found, once each");
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_pauses_claims_and_loses_nothing() {
    let mut bench = Bench::new().await;
    bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
    bench.reopen().await;
    bench.store.fail_reads(Some(StoreError::Failed("eio".into())));
    assert!(bench.claim_all().is_empty());
    bench.store.fail_reads(None);
    assert!(bench.claim_all().is_empty(), "not asked again at once");
    bench.pass(MINUTE);
    assert_eq!(bench.claim_all().len(), 1);
}

#[tokio::test]
async fn a_lane_with_more_than_fits_its_window_is_read_in_order() {
    let mut bench = Bench::new().await;
    for _ in 0..600 {
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
        bench.pass(1);
    }
    bench.reopen().await;
    assert_eq!(bench.queue.totals().lanes, 1);
    let mut seen = Vec::new();
    while let Some(claim) = bench.queue.claim(&lane_to("one.example"), 7).pop() {
        seen.push(claim.record.due);
    }
    assert!(seen.is_sorted() && !seen.is_empty());
    bench.reopen().await;
    assert_eq!(bench.queue.claim(&lane_to("one.example"), 1_000).len(), 600);
    assert_eq!(bench.queue.claim(&lane_to("one.example"), 1_000).len(), 0);
}

#[tokio::test]
async fn lanes_come_round_and_transactional_ones_first() {
    let bench = Bench::new().await;
    for number in 0..10 {
        let mut new = message(&[&format!("a@d{number}.example")]);
        if number % 2 == 0 {
            new.recipients[0].lane.as_mut().unwrap().class = Class::Marketing;
        }
        bench.queue.enqueue(new, WALL).await.unwrap();
    }
    let all_lanes = bench.queue.lanes();
    assert_eq!(all_lanes.len(), 10);
    assert!(all_lanes[..5].iter().all(|due| due.lane.class == Class::Transactional));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        seen.extend(bench.queue.some_lanes(2).into_iter().map(|due| due.lane));
    }
    assert_eq!(seen.len(), 10, "each lane had its turn");
}

#[tokio::test]
async fn the_queue_clock_goes_on_after_a_restart_and_counts_a_day_of_downtime_at_most() {
    let store = MemoryStore::new();
    let first = Clock::resume(&store, WALL).unwrap();
    let mut batch = Batch::new();
    batch.set(key::clock(), first.stored(WALL));
    store.commit(batch).await.unwrap();
    let from = first.now();
    let after = |wall| Clock::resume(&store, wall).unwrap().now().since(from);
    let near =
        |span: Duration, hours: u64| span.abs_diff(Duration::from_millis(hours * HOUR)) < Duration::from_secs(20);
    assert!(near(after(Timestamp(WALL.0 + HOUR)), 1));
    assert!(near(after(Timestamp(WALL.0 + 1_000 * HOUR)), 24));
    assert!(near(after(Timestamp(WALL.0 - HOUR)), 0), "never back");
}
