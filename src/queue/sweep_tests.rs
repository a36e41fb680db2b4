//! Acts on many messages beside one another: whose turn it is, how many there may be, and what they cost meanwhile.

use super::tests::{Bench, WALL};
use super::*;
use crate::access::{Actor, Role};
use crate::background::Shutdown;
use crate::events::EventKind;
use crate::records::AdminError;

const ACCOUNT: SmtpAccountId = SmtpAccountId(7);
/// Messages an act changes at a time.
const PAGE: usize = 1_024;

fn operator() -> Actor {
    Actor::local(0)
}

fn owner(tenant: TenantId) -> Actor {
    Actor::of(format!("owner of {tenant}"), Role::TenantOwner(tenant))
}

fn of(tenant: TenantId) -> Filter {
    Filter { tenant: Some(tenant), ..Filter::default() }
}

fn asked(act: BulkAct, filter: Filter) -> NewSweep {
    NewSweep { act, filter, reason: "a test".to_owned(), lasting: None }
}

async fn owe(bench: &Bench, to: &str, tenant: TenantId, account: Option<SmtpAccountId>) -> QueueId {
    let of_theirs = |new: &mut NewMessage| {
        (new.tenant, new.account) = (tenant, account);
        new.recipients.iter_mut().filter_map(|one| one.lane.as_mut()).for_each(|lane| lane.tenant = tenant);
    };
    bench.owe(&[to], of_theirs).await
}

async fn work(bench: &Bench) {
    bench.queue.work_off(&Shutdown::new(), true).await;
}

/// Places of audit entries of that act in the log.
fn places(events: &[EventKind], act: &str, number: u64) -> Vec<usize> {
    let is_it = |kind: &EventKind| matches!(kind, EventKind::Audit(audit) if audit.act == act && audit.subject.starts_with(&format!("act {number}:")));
    events.iter().enumerate().filter(|(_, kind)| is_it(kind)).map(|(place, _)| place).collect()
}

#[tokio::test]
async fn a_long_act_of_one_tenant_does_not_stall_anothers() {
    let bench = Bench::new().await;
    let (long, short) = (TenantId(2), TenantId(3));
    for _ in 0..4 * PAGE {
        owe(&bench, "a@one.example", long, None).await;
    }
    owe(&bench, "b@two.example", short, None).await;
    bench.queue.begin_sweep(&owner(long), asked(BulkAct::Hold, of(long)), WALL).await.unwrap();
    bench.queue.begin_sweep(&owner(short), asked(BulkAct::Hold, of(short)), WALL).await.unwrap();
    work(&bench).await;
    let events = bench.events();
    let (first, second) = (places(&events, "queue.hold-over", 1), places(&events, "queue.hold-over", 2));
    assert_eq!((first.len(), second.len()), (1, 1), "both are over");
    let held = |upto: usize| {
        let is_held = |kind: &&EventKind| matches!(kind, EventKind::Mail(_, events::MailEvent::Held { .. }));
        events[..upto].iter().filter(is_held).count()
    };
    assert!(second[0] < first[0] && held(second[0]) <= 2 * PAGE, "{} were held before it", held(second[0]));
    assert_eq!(held(events.len()), 4 * PAGE + 1);
}

#[tokio::test]
async fn acts_that_undo_each_other_keep_the_order_they_were_asked_for() {
    let tenant = TenantId(2);
    for (first, second) in [(of(tenant), of(tenant)), (Filter::default(), of(tenant)), (of(tenant), Filter::default())]
    {
        let bench = Bench::new().await;
        for _ in 0..PAGE + 10 {
            owe(&bench, "a@one.example", tenant, None).await;
        }
        for (act, filter) in [(BulkAct::Hold, first.clone()), (BulkAct::Release, second.clone())] {
            bench.queue.begin_sweep(&operator(), asked(act, filter), WALL).await.unwrap();
        }
        work(&bench).await;
        let sum = bench.queue.sum(&operator(), &Filter::default(), None).unwrap();
        assert_eq!((sum.held, sum.waiting), (0, PAGE as u64 + 10), "{first:?}, then {second:?}");
        let done: Vec<u64> =
            bench.queue.sweeps(&operator(), None).unwrap().iter().map(|sweep| sweep.done.messages).collect();
        assert_eq!(done, [PAGE as u64 + 10; 2]);
    }
}

#[tokio::test]
async fn a_tenant_that_has_as_many_as_may_be_keeps_neither_others_nor_the_operator_out() {
    let bench = Bench::new().await;
    let begin = async |actor: &Actor, filter: Filter| {
        let lasting = Some(LASTING_MAX);
        bench.queue.begin_sweep(actor, NewSweep { lasting, ..asked(BulkAct::Hold, filter) }, WALL).await
    };
    let full = |begun: Result<Sweep, AdminError>| match begun {
        Err(AdminError::Full(text, secs)) => (text, secs),
        other => panic!("{other:?}"),
    };
    let tenants = SWEEPS_OF_TENANTS_MAX / SWEEPS_PER_TENANT_MAX;
    for tenant in (1..).map(TenantId).take(tenants) {
        for _ in 0..SWEEPS_PER_TENANT_MAX {
            begin(&owner(tenant), of(tenant)).await.unwrap();
        }
        let (text, secs) = full(begin(&owner(tenant), of(tenant)).await);
        assert!(text.starts_with("20 acts on the tenant's mail are not over") && secs > 0, "{text}");
    }
    let late = TenantId(1_000);
    let (text, _) = full(begin(&owner(late), of(late)).await);
    assert!(text.starts_with("180 acts on the queue are not over"), "{text}");
    // Who runs the instance has room of its own, on whosever mail.
    for place in 0..SWEEPS_MAX - SWEEPS_OF_TENANTS_MAX {
        let filter = if place % 2 == 0 { of(TenantId(1)) } else { Filter::default() };
        begin(&operator(), filter).await.unwrap();
    }
    full(begin(&operator(), Filter::default()).await);
    let own = bench.queue.sweeps(&owner(TenantId(1)), Some(TenantId(1))).unwrap();
    bench.queue.end_sweep(&operator(), own[0].number, WALL).await.unwrap();
    begin(&operator(), Filter::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_kept_of_acts_that_are_over_is_shared_out_among_tenants() {
    let bench = Bench::new().await;
    bench.queue.begin_sweep(&owner(TenantId(3)), asked(BulkAct::Retry, of(TenantId(3))), WALL).await.unwrap();
    work(&bench).await;
    for _ in 0..150 {
        bench.queue.begin_sweep(&owner(TenantId(2)), asked(BulkAct::Retry, of(TenantId(2))), WALL).await.unwrap();
        work(&bench).await;
    }
    let count = |tenant| bench.queue.sweeps(&operator(), Some(tenant)).unwrap().len();
    assert_eq!((count(TenantId(2)), count(TenantId(3))), (100, 1));
}

/// Asks for claims as delivery's jobs do, until no lane is due; how often, and what was handed out.
fn claim_by_jobs(bench: &Bench) -> (usize, Vec<QueueId>) {
    let (mut asked, mut found) = (0, Vec::new());
    loop {
        let due = bench.queue.lanes();
        if due.is_empty() {
            return (asked, found);
        }
        for due in due {
            asked += 1;
            assert!(asked < 1_000, "lanes are due for ever");
            found.extend(bench.queue.claim(&due.lane, 10).iter().map(|claim| claim.queue_id));
        }
    }
}

/// While a hold has begun and has not reached its mail yet, that mail is put back at each claim. Without a bound
/// on that, each of these would be claimed by a job of its own, every five seconds, and noted in memory.
#[tokio::test]
async fn a_hold_that_has_not_reached_its_mail_yet_costs_a_bounded_number_of_claims() {
    let bench = Bench::new().await;
    let mut meant = Vec::new();
    for _ in 0..3_000 {
        meant.push(owe(&bench, "a@one.example", TenantId(2), Some(ACCOUNT)).await);
    }
    let same_lane = owe(&bench, "b@one.example", TenantId(2), None).await;
    let other_lane = owe(&bench, "c@two.example", TenantId(2), None).await;
    let filter = Filter { account: Some(ACCOUNT), ..Filter::default() };
    bench.queue.begin_sweep(&operator(), asked(BulkAct::Hold, filter.clone()), WALL).await.unwrap();
    let mut handed_out = Vec::new();
    for round in 0..10 {
        let (asked, found) = claim_by_jobs(&bench);
        handed_out.extend(found);
        let paused = bench.queue.in_memory().paused();
        assert!(asked <= 16 && paused <= 1_500, "round {round}: asked {asked} times, {paused} are put back");
        if round == 0 {
            assert!(handed_out.contains(&other_lane), "other lanes go on");
            assert!(bench.queue.next_due().unwrap() > Duration::ZERO, "and this one rests");
        }
        bench.pass(5_000);
    }
    work(&bench).await;
    handed_out.extend(claim_by_jobs(&bench).1);
    assert_eq!(bench.queue.in_memory().paused(), 0);
    handed_out.sort_unstable();
    let mut expected = vec![same_lane, other_lane];
    expected.sort_unstable();
    assert_eq!(handed_out, expected, "each once, and nothing that is held");
    // Released, all of it goes.
    bench.queue.begin_sweep(&operator(), asked(BulkAct::Release, filter), WALL).await.unwrap();
    work(&bench).await;
    let mut released = claim_by_jobs(&bench).1;
    released.sort_unstable();
    meant.sort_unstable();
    assert_eq!(released, meant);
}
