//! How acts on many, counts and shapes behave.

use std::collections::BTreeSet;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::bulk::{Counts, Round};
use super::tests::{Bench, WALL, all, deferred, delivered, message};
use super::walk::Budget;
use super::*;
use crate::access::{Actor, Role};
use crate::events::{EventKind, MailEvent};
use crate::mail::{Address, Class};

/// More than an act notes at once.
const MANY: usize = 1_100;

const ACCOUNT: SmtpAccountId = SmtpAccountId(7);

fn admin() -> Actor {
    Actor::local(0)
}

fn listed_all(bench: &Bench) -> Vec<QueueId> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = bench.queue.list(&admin(), &Filter::default(), after, 100).unwrap();
        all.extend(page.messages.into_iter().map(|listed| listed.id));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

fn held(bench: &Bench) -> usize {
    let sum = bench.queue.sum(&admin(), &Filter::default(), None).unwrap();
    usize::try_from(sum.held).unwrap()
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

/// Begins an act and has it carried out.
async fn carry_out(
    bench: &Bench,
    actor: &Actor,
    act: BulkAct,
    filter: Filter,
) -> Result<Done, crate::records::AdminError> {
    let begun = begin(bench, actor, act, filter, None).await?;
    work(bench).await;
    let sweep = bench.queue.sweep_numbered(&admin(), begun.number)?;
    assert_eq!(sweep.state, SweepState::Done);
    Ok(sweep.done)
}

async fn begin(
    bench: &Bench,
    actor: &Actor,
    act: BulkAct,
    filter: Filter,
    lasting: Option<Duration>,
) -> Result<Sweep, crate::records::AdminError> {
    let asked = NewSweep { act, filter, reason: "a test".to_owned(), lasting };
    bench.queue.begin_sweep(actor, asked, WALL).await
}

async fn work(bench: &Bench) {
    bench.queue.work_off(&crate::background::Shutdown::new(), true).await;
}

fn to(text: &str) -> Filter {
    Filter { recipient_domain: Some(domain(text)), ..Filter::default() }
}

#[tokio::test]
async fn each_filter_finds_what_it_names_and_nothing_else() {
    let bench = Bench::new().await;
    let plain = bench.owe(&["a@one.example"], |_| {}).await;
    let of_account = bench.owe(&["b@two.example"], |new| new.account = Some(ACCOUNT)).await;
    let news = bench
        .owe(&["c@three.example"], |new| {
            new.class = Class::Marketing;
            new.reverse_path.0 = Some(Address::parse("news@mail.other.example").unwrap());
        })
        .await;
    let tried = bench.owe(&["d@four.example"], |_| {}).await;
    let claim = bench.claim_all().into_iter().find(|claim| claim.queue_id == tried).unwrap();
    let outcomes = all(&claim, &deferred());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    bench.queue.name_sites_with(SiteNames {
        called: Box::new(|text| (text == "big").then(|| "big".into())),
        of: Box::new(|domain| ["two.example", "three.example"].contains(&domain.as_str()).then(|| "big".into())),
    });
    let big = Some("big".to_owned());
    let one = |filter: Filter| bench.listed(&filter);
    let none = Filter::default;
    assert_eq!(one(Filter { account: Some(ACCOUNT), ..none() }), [of_account]);
    assert_eq!(one(Filter { class: Some(Class::Marketing), ..none() }), [news]);
    assert_eq!(one(Filter { sender: Some(SenderIs::parse("other.example").unwrap()), ..none() }), [news]);
    assert_eq!(one(Filter { recipient: Some(Address::parse("A@one.example").unwrap()), ..none() }), [plain]);
    assert_eq!(one(Filter { provider: big, ..none() }).len(), 2);
    assert_eq!(one(Filter { provider: Some("small".to_owned()), ..none() }).len(), 0);
    assert_eq!(one(Filter { attempts_min: Some(1), ..none() }), [tried]);
    assert_eq!(one(Filter { last: Some("4.7.1 later".to_owned()), ..none() }), [tried]);
    assert_eq!(one(Filter { accepted_before: Some(WALL), ..none() }), []);
    assert_eq!(one(Filter { accepted_from: Some(WALL), ..none() }).len(), 4);
    assert_eq!(one(Filter { state: Some(Standing::InFlight), ..none() }).len(), 3);
    assert_eq!(one(Filter { vip: Some(VipId(9)), ..none() }), []);
}

#[tokio::test]
async fn a_page_looks_at_so_many_records_and_says_where_to_go_on() {
    let bench = Bench::new().await;
    for number in 0..20 {
        bench.owe(&[if number == 15 { "a@rare.example" } else { "a@one.example" }], |_| {}).await;
    }
    let filter = Filter { recipient_domain: Some(domain("rare.example")), ..Filter::default() };
    let (mut after, mut found, mut walks) = (None, 0, 0);
    loop {
        after = bench
            .queue
            .walk(&filter, after, Budget::of(4, usize::MAX), &mut |_| {
                found += 1;
                Ok(walk::Walk::GoOn)
            })
            .unwrap();
        walks += 1;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((found, walks), (1, 6));
}

#[tokio::test]
async fn an_act_on_many_applies_to_who_fits_and_its_beginning_and_end_are_on_record() {
    let bench = Bench::new().await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(bench.owe(&["a@one.example", "b@two.example"], |_| {}).await);
    }
    let filter = Filter { recipient_domain: Some(domain("one.example")), ..Filter::default() };
    let sum = bench.queue.sum(&admin(), &filter, Some(BulkAct::Hold)).unwrap();
    assert_eq!((sum.messages, sum.waiting, sum.held, sum.oldest), (30, 30, 0, Some(WALL)));
    assert!(
        bench.listed(&Filter { state: Some(Standing::Held), ..Filter::default() }).is_empty(),
        "nothing is changed"
    );
    let done = carry_out(&bench, &admin(), BulkAct::Hold, filter.clone()).await.unwrap();
    assert_eq!(done, Done { messages: 30, recipients: 30, in_flight: 0, failed: 0 });
    let audits: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|kind| if let EventKind::Audit(audit) = kind { Some(audit) } else { None })
        .collect();
    assert_eq!(audits.len(), 2, "{audits:?}");
    assert_eq!((audits[0].act.as_str(), audits[1].act.as_str()), ("queue.hold-matching", "queue.hold-over"));
    assert!(audits[1].subject.contains("one.example: done, 30 recipients; reason: a test"), "{audits:?}");
    assert_eq!(bench.claim_all().len(), 30, "those to the other domain go on");
    let held = bench.mail_events().iter().filter(|event| matches!(event, MailEvent::Held { .. })).count();
    assert_eq!(held, 30, "each trail says it");
    let sum = bench.queue.sum(&admin(), &Filter::default(), Some(BulkAct::Hold)).unwrap();
    assert_eq!((sum.messages, sum.in_flight), (30, 30), "what is held already is left out");
    assert_eq!(carry_out(&bench, &admin(), BulkAct::Release, filter).await.unwrap().recipients, 30);
    assert_eq!(bench.claim_all().len(), 30);
}

#[tokio::test]
async fn only_who_may_change_a_tenants_queue_acts_on_many_of_it() {
    let bench = Bench::new().await;
    bench.owe(&["a@one.example"], |_| {}).await;
    let own = Filter { tenant: Some(TenantId(2)), ..Filter::default() };
    for (role, filter, may) in [
        (Role::Developer(TenantId(2)), own.clone(), true),
        (Role::Support(TenantId(2)), own.clone(), false),
        (Role::TenantOwner(TenantId(3)), own, false),
        (Role::TenantOwner(TenantId(2)), Filter::default(), false),
    ] {
        let actor = Actor::of("x", role);
        let retried = begin(&bench, &actor, BulkAct::Retry, filter, None).await;
        assert_eq!(retried.is_ok(), may, "{role:?} {retried:?}");
        if let Ok(sweep) = retried {
            let stranger = Actor::of("y", Role::TenantOwner(TenantId(3)));
            for asked in [
                bench.queue.sweep_numbered(&stranger, sweep.number),
                bench.queue.end_sweep(&stranger, sweep.number, WALL).await,
            ] {
                assert!(matches!(asked, Err(crate::records::AdminError::Missing(_))), "{asked:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_act_that_lasts_reaches_what_comes_later_also_after_a_restart_and_until_its_end() {
    let mut bench = Bench::new().await;
    let hour = Some(LASTING_MAX);
    let first = bench.owe(&["a@one.example"], |_| {}).await;
    let hold = begin(&bench, &admin(), BulkAct::Hold, to("one.example"), hour).await.unwrap();
    assert!(bench.claim_all().is_empty(), "nothing is handed out even before it was reached");
    work(&bench).await;
    assert_eq!(bench.queue.sweep_numbered(&admin(), hold.number).unwrap().state, SweepState::Lasting);
    bench.reopen().await;
    let later = bench.owe(&["b@one.example", "c@two.example"], |_| {}).await;
    let other = bench.owe(&["d@two.example"], |_| {}).await;
    let claims = bench.claim_all();
    assert!(claims.iter().all(|claim| claim.record.lane.next_hop == domain("two.example")), "{claims:?}");
    work(&bench).await;
    let held = Filter { state: Some(Standing::Held), ..Filter::default() };
    // Both were made in the same millisecond, so either id may be the lower one.
    assert_eq!(BTreeSet::from_iter(bench.listed(&held)), BTreeSet::from([first, later]));
    drop(claims);
    assert_ne!(other, later);
    bench.queue.end_sweep(&admin(), hold.number, WALL).await.unwrap();
    let after = bench.owe(&["e@one.example"], |_| {}).await;
    assert_eq!(bench.claim_all().iter().map(|claim| claim.queue_id).collect::<Vec<_>>(), [after]);
    assert!(bench.queue.end_sweep(&admin(), hold.number, WALL).await.is_err(), "it is over");
}

#[tokio::test]
async fn acts_on_a_deleted_tenants_mail_end_and_of_the_last_one_only_its_number_stays() {
    let mut bench = Bench::new().await;
    let tenant = message(&["a@one.example"]).tenant;
    let hour = Some(LASTING_MAX);
    let of_tenant = Filter { tenant: Some(tenant), ..to("secret.example") };
    let of_account = Filter { account: Some(ACCOUNT), ..to("secret.example") };
    for filter in [of_tenant.clone(), to("others.example"), of_account, of_tenant] {
        begin(&bench, &admin(), BulkAct::Hold, filter, hour).await.unwrap();
    }
    bench.queue.forget_sweeps_of((tenant, &[ACCOUNT]), WALL).await.unwrap();
    for _ in 0..2 {
        let left = bench.queue.sweeps(&admin(), None).unwrap();
        let shown: Vec<_> = left.iter().map(|sweep| (sweep.number, sweep.state.is_over())).collect();
        assert_eq!(shown, [(4, true), (2, false)]);
        assert_eq!((left[0].filter.clone(), left[0].by.as_str()), (Filter::default(), ""));
        bench.owe(&["a@secret.example"], |_| {}).await;
        assert_eq!(bench.claim_all().len(), 1, "nothing holds it any more");
        bench.reopen().await;
        bench.claim_all();
    }
    let next = begin(&bench, &admin(), BulkAct::Hold, to("others.example"), None).await.unwrap();
    assert_eq!(next.number, 5);
}

#[tokio::test]
async fn an_act_on_what_is_there_leaves_alone_what_comes_later() {
    let bench = Bench::new().await;
    let there = bench.owe(&["b@one.example"], |_| {}).await;
    begin(&bench, &admin(), BulkAct::Cancel, to("one.example"), None).await.unwrap();
    let later = message(&["a@one.example"]);
    let id = later.id;
    bench.queue.enqueue(later, Timestamp(WALL.0 + 1)).await.unwrap();
    assert_eq!(bench.claim_all().first().map(|claim| claim.queue_id), Some(id));
    work(&bench).await;
    let is_queued = |id| bench.queue.message(id).unwrap().is_some();
    assert!(!is_queued(there) && is_queued(id));
}

#[tokio::test]
async fn an_act_that_comes_back_from_a_backup_is_over_and_lets_go_of_nothing() {
    let mut bench = Bench::new().await;
    let held = bench.owe(&["a@one.example"], |_| {}).await;
    bench.queue.hold(&admin(), held, &[], WALL).await.unwrap();
    let release = begin(&bench, &admin(), BulkAct::Release, to("one.example"), None).await.unwrap();
    let own = [&[prefix::SWEEP][..], &release.number.to_be_bytes()].concat();
    let stored = bench.store.get(&own).unwrap().unwrap();
    let mut batch = Batch::new();
    batch.set(own, ended_sweep(&stored, "restored from a backup", WALL).unwrap());
    bench.store.commit(batch).await.unwrap();
    bench.reopen().await;
    work(&bench).await;
    assert!(bench.claim_all().is_empty());
    let sweep = bench.queue.sweep_numbered(&admin(), release.number).unwrap();
    assert_eq!(sweep.state, SweepState::Ended("restored from a backup".to_owned()));
    assert_eq!(ended_sweep(b"nonsense", "x", WALL), None);
}

#[tokio::test]
async fn an_act_goes_on_behind_what_it_has_passed_after_a_stop_and_after_a_crash() {
    for is_crash in [false, true] {
        let mut bench = Bench::new().await;
        for _ in 0..MANY {
            bench.owe(&["a@one.example"], |_| {}).await;
        }
        let hold = begin(&bench, &admin(), BulkAct::Hold, to("one.example"), None).await.unwrap();
        // The second page fails: a crash, or a full disk, in the middle of the act.
        let shutdown = crate::background::Shutdown::new();
        let stop = shutdown.clone();
        let all_but_few = listed_all(&bench).len() - MANY % 1_024;
        let watch = async {
            while held(&bench) < all_but_few {
                tokio::task::yield_now().await;
            }
            if is_crash {
                bench.store.fail_next(10_000, CommitError::Full("the test".into()));
            } else {
                stop.cancel();
            }
        };
        tokio::join!(bench.queue.work_off(&shutdown, true), watch);
        bench.store.reopen();
        let first = listed_all(&bench)[0];
        bench.queue.release_hold(&admin(), first, &[], WALL).await.unwrap();
        bench.reopen().await;
        work(&bench).await;
        let done = bench.queue.sweep_numbered(&admin(), hold.number).unwrap();
        assert_eq!(done.state, SweepState::Done);
        let left: Vec<QueueId> = bench.claim_all().iter().map(|claim| claim.queue_id).collect();
        assert_eq!(left, [first], "what people decided since stays so; crash: {is_crash}");
        assert_eq!(done.done.messages, u64::try_from(MANY).unwrap());
    }
}

#[tokio::test]
async fn an_act_ends_between_two_messages_and_says_up_to_where_it_came() {
    let bench = Bench::new().await;
    for _ in 0..90 {
        bench.owe(&["a@one.example"], |_| {}).await;
    }
    let (asked, counts, filter, actor) = (AtomicUsize::new(0), Counts::default(), to("one.example"), admin());
    let is_over = || asked.fetch_add(1, Ordering::AcqRel) >= 10;
    let only_to = BTreeSet::new();
    let round = Round {
        actor: &actor,
        verb: BulkAct::Hold.verb(),
        filter: &filter,
        counts: &counts,
        is_over: &is_over,
        only_to: &only_to,
    };
    let passed = bench.queue.sweep_page(&round, None, WALL).await.unwrap();
    assert!(!passed.is_end && counts.done().messages == 10, "{:?}", counts.done());
    assert_eq!(passed.reached, bench.listed(&Filter::default()).get(9).copied());
    let passed = bench.queue.sweep_page(&Round { is_over: &|| false, ..round }, passed.reached, WALL).await.unwrap();
    assert!(passed.is_end && counts.done().messages == 90, "{:?}", counts.done());
}

#[tokio::test]
async fn an_act_waits_out_a_full_disk_and_says_so_and_a_conflict_is_counted() {
    for lasting in [None, Some(LASTING_MAX)] {
        let bench = Bench::new().await;
        bench.owe(&["a@one.example"], |_| {}).await;
        let cancel = begin(&bench, &admin(), BulkAct::Cancel, to("one.example"), lasting).await.unwrap();
        let now = || bench.queue.sweep_numbered(&admin(), cancel.number).unwrap();
        bench.store.fail_next(1, CommitError::Full("the test".into()));
        work(&bench).await;
        assert_eq!(now().state, SweepState::Running);
        assert!(now().trouble.is_some_and(|trouble| trouble.contains("the test")));
        work(&bench).await;
        let after = if lasting.is_some() { SweepState::Lasting } else { SweepState::Done };
        assert_eq!((now().state, now().done.messages, now().trouble), (after, 1, None));
        if lasting.is_some() {
            bench.owe(&["b@one.example"], |_| {}).await;
            assert!(bench.claim_all().is_empty());
            bench.store.fail_next(1, CommitError::Conflict);
            bench.queue.work_off(&crate::background::Shutdown::new(), false).await;
            assert_eq!((now().state, now().done.failed), (SweepState::Lasting, 1));
        }
    }
}

#[tokio::test]
async fn an_act_on_a_provider_goes_on_until_it_is_known_where_all_mail_goes() {
    let mut bench = Bench::new().await;
    let known = Arc::new(StdMutex::new(Vec::from([("one.example", "big")])));
    let names = |known: &Arc<StdMutex<Vec<(&'static str, &'static str)>>>| {
        let asked = Arc::clone(known);
        let of = move |domain: &Domain| {
            let known = asked.lock().unwrap();
            let found = known.iter().find(|(own, _)| *own == domain.as_str()).map(|(_, site)| *site);
            found.map(Arc::from)
        };
        SiteNames { called: Box::new(|text| (text == "big").then(|| "big".into())), of: Box::new(of) }
    };
    bench.queue.name_sites_with(names(&known));
    let first = bench.owe(&["a@one.example"], |_| {}).await;
    let later = bench.owe(&["b@two.example"], |_| {}).await;
    let other = bench.owe(&["c@three.example"], |_| {}).await;
    let filter = Filter { provider: Some("big".to_owned()), ..Filter::default() };
    let hold = begin(&bench, &admin(), BulkAct::Hold, filter, None).await.unwrap();
    work(&bench).await;
    let now = |bench: &Bench| bench.queue.sweep_numbered(&admin(), hold.number).unwrap();
    assert_eq!((now(&bench).state, now(&bench).done.messages, now(&bench).undecided), (SweepState::Running, 1, 2));
    // Somebody lets the first one go; the act has passed it.
    bench.queue.release_hold(&admin(), first, &[], WALL).await.unwrap();
    known.lock().unwrap().push(("two.example", "big"));
    bench.reopen().await;
    bench.queue.name_sites_with(names(&known));
    work(&bench).await;
    assert_eq!((now(&bench).state, now(&bench).done.messages, now(&bench).undecided), (SweepState::Running, 2, 1));
    known.lock().unwrap().push(("three.example", "small"));
    work(&bench).await;
    assert_eq!((now(&bench).state, now(&bench).done.messages, now(&bench).undecided), (SweepState::Done, 2, 0));
    let free: BTreeSet<QueueId> = bench.claim_all().iter().map(|claim| claim.queue_id).collect();
    assert_eq!(free, BTreeSet::from([first, other]));
    assert_eq!(bench.listed(&Filter { state: Some(Standing::Held), ..Filter::default() }), [later]);
}

#[tokio::test]
async fn a_look_begins_where_the_last_one_began_however_long_ago_that_was() {
    let bench = Bench::new().await;
    let cancel = begin(&bench, &admin(), BulkAct::Cancel, to("one.example"), Some(LASTING_MAX)).await.unwrap();
    work(&bench).await;
    // Held mail never comes up for delivery: only a look finds it.
    let hour_ago = Timestamp(Timestamp::now().0 - 3_600_000);
    bench.queue.looked_last(cancel.number, hour_ago);
    let at = Timestamp(hour_ago.0 + 60_000);
    let id = QueueId::new(at);
    bench.queue.enqueue(NewMessage { id, ..message(&["a@one.example"]) }, at).await.unwrap();
    bench.queue.hold(&admin(), id, &[], WALL).await.unwrap();
    work(&bench).await;
    assert!(bench.queue.message(id).unwrap().is_none());
}

#[tokio::test]
async fn what_is_expired_by_an_operator_is_told_to_its_sender_and_what_is_being_tried_is_left_alone() {
    let bench = Bench::new().await;
    let waits = bench.owe(&["a@one.example"], |_| {}).await;
    let tried = bench.owe(&["b@one.example"], |_| {}).await;
    let claims = bench.claim_all();
    let (mine, others): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim.queue_id == tried);
    others.into_iter().for_each(|claim| bench.queue.release(claim, Duration::ZERO));
    let done = carry_out(&bench, &admin(), BulkAct::Expire, to("one.example")).await.unwrap();
    assert_eq!((done.recipients, done.in_flight), (1, 1));
    let expired = bench.mail_events().into_iter().any(|event| matches!(event, MailEvent::Expired { .. }));
    assert!(expired);
    bench.pass(24 * 3_600_000);
    let notices = bench.queue.owed_notices(10).unwrap();
    assert_eq!(notices.len(), 1);
    assert_eq!((notices[0].queue_id, notices[0].kind), (waits, events::NoticeKind::Failure));
    let claim = mine.into_iter().next().unwrap();
    let outcomes = all(&claim, &delivered());
    bench.queue.settle(claim, outcomes, WALL).await.unwrap();
    assert!(bench.queue.message(tried).unwrap().is_none(), "delivered, and nobody is told otherwise");
    assert!(bench.queue.message(waits).unwrap().is_some(), "kept until its notice is paid");
}

#[tokio::test]
async fn of_a_provider_nobody_knows_nothing_is_meant() {
    let bench = Bench::new().await;
    bench.owe(&["a@one.example"], |_| {}).await;
    let filter = Filter { provider: Some("gmail".to_owned()), ..Filter::default() };
    assert!(bench.listed(&filter).is_empty());
    begin(&bench, &admin(), BulkAct::Hold, filter, None).await.unwrap();
    assert_eq!(bench.claim_all().len(), 1);
}

#[tokio::test]
async fn an_act_that_cannot_last_or_has_no_sense_is_refused() {
    let bench = Bench::new().await;
    let hour = Some(Duration::from_secs(3_600));
    let old = Filter { accepted_before: Some(WALL), ..Filter::default() };
    for (act, filter, lasting) in [
        (BulkAct::Release, Filter::default(), hour),
        (BulkAct::Retry, Filter::default(), hour),
        (BulkAct::Hold, old, hour),
        (BulkAct::Hold, Filter::default(), Some(LASTING_MAX * 2)),
    ] {
        assert!(begin(&bench, &admin(), act, filter, lasting).await.is_err(), "{act:?}");
    }
}

#[tokio::test]
async fn the_shape_counts_recipients_by_destination_and_age() {
    let bench = Bench::new().await;
    bench.owe(&["a@one.example", "b@one.example", "c@two.example"], |_| {}).await;
    let shape = bench.queue.shape(&admin(), &Filter::default(), Timestamp(WALL.0 + 12 * 60_000)).unwrap();
    let rows: Vec<(&str, u64)> = shape.destinations.iter().map(|(to, row)| (to.as_str(), row.by_age[2])).collect();
    assert_eq!(rows, [("one.example", 2), ("two.example", 1)]);
    assert_eq!((shape.total.total(), shape.total.by_age[2], shape.others.total()), (3, 3, 0));
    let shape = bench.queue.shape(&admin(), &Filter::default(), Timestamp(WALL.0 + 100_000 * 60_000)).unwrap();
    assert_eq!(shape.total.by_age[AGES_MINUTES.len()], 3, "the oldest have a column of their own");
}
