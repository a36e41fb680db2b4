//! The pacer as a whole: limits beside each other, controllers and warm-ups apart, nothing forgotten.

use super::super::limits::{Scope, Target};
use super::super::warmup::LADDER;
use super::*;
use crate::mail::VipId;

const MINUTE: u64 = 60_000;

fn path(site: &str, vip: u64) -> Path {
    Path { site: site.into(), vip: VipId(vip) }
}

fn pacer(overrides: Vec<Override>) -> Pacer {
    let mut default = LimitSet::default();
    default.set(Knob::Connections, Some(10));
    Pacer::new(Providers::built_in(), default, overrides)
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn ask(pacer: &mut Pacer, path: &Path, tenant: u64, to: &str, now: u64) -> Answer {
    let domain = domain(to);
    let class = Class::Transactional;
    let ask = Ask { path, tenant: TenantId(tenant), domain: &domain, class, messages: 100, needs: 1 };
    pacer.admit(&ask, QueueTime(now))
}

fn go(answer: Answer) -> Permit {
    match answer {
        Answer::Go(permit) => permit,
        Answer::Wait(hold, until) => panic!("{hold:?} {until:?}"),
    }
}

fn limit(scope: Scope, knob: Knob, value: u32) -> Override {
    let mut limits = LimitSet::default();
    limits.set(knob, Some(value));
    Override { scope, limits, weight: None }
}

#[test]
fn a_site_gets_no_more_connections_than_its_limit_from_each_virtual_ip() {
    let mut pacer = pacer(Vec::new());
    for _ in 0..5 {
        go(ask(&mut pacer, &path("yahoo", 1), 1, "yahoo.com", 0));
    }
    let held = ask(&mut pacer, &path("yahoo", 1), 2, "aol.com", 0);
    assert!(matches!(held, Answer::Wait(Hold::Limit { knob: Knob::Connections, value: 5, .. }, None)), "{held:?}");
    let permit = go(ask(&mut pacer, &path("yahoo", 2), 1, "yahoo.com", 0));
    assert_eq!((permit.messages_per_connection, permit.recipients_per_transaction), (20, 50));
    pacer.finished(&path("yahoo", 1), &permit, Quota { messages: 1, connections: 1 }, QueueTime(0));
    go(ask(&mut pacer, &path("yahoo", 1), 2, "aol.com", 0));
}

#[test]
fn no_minute_holds_more_messages_than_the_limit() {
    let scope = Scope { target: Target::Site("gmail".into()), vip: None, tenant: None };
    let mut pacer = pacer(vec![limit(scope, Knob::MessagesPerMinute, 30)]);
    let gmail = path("gmail", 1);
    let mut sent = Vec::new();
    for second in 0..600 {
        let now = second * 1_000;
        while let Answer::Go(permit) = ask(&mut pacer, &gmail, 1, "gmail.com", now) {
            let used = Quota { messages: permit.quota.messages, connections: 0 };
            sent.extend((0..used.messages).map(|_| now));
            pacer.finished(&gmail, &permit, used, QueueTime(now));
        }
    }
    assert!(sent.windows(31).all(|window| window[30] - window[0] >= MINUTE), "{sent:?}");
    assert!(sent.len() > 250, "{}", sent.len());
}

#[test]
fn limits_of_a_tenant_and_of_a_domain_hold_beside_those_of_the_site() {
    let of_tenant = Scope { target: Target::Every, vip: None, tenant: Some(TenantId(7)) };
    let of_domain = Scope { target: Target::Domain(domain("slow.example")), vip: None, tenant: None };
    let rules = vec![limit(of_tenant, Knob::Connections, 1), limit(of_domain, Knob::Connections, 2)];
    let (mut pacer, site) = (pacer(rules), path("mx.example", 1));
    go(ask(&mut pacer, &site, 7, "a.example", 0));
    let held = ask(&mut pacer, &site, 7, "a.example", 0);
    assert!(matches!(&held, Answer::Wait(Hold::Limit { part: Part::Tenant(TenantId(7)), .. }, None)), "{held:?}");
    go(ask(&mut pacer, &site, 8, "slow.example", 0));
    go(ask(&mut pacer, &site, 9, "slow.example", 0));
    let held = ask(&mut pacer, &site, 8, "slow.example", 0);
    assert!(matches!(&held, Answer::Wait(Hold::Limit { part: Part::Domain(_), .. }, None)), "{held:?}");
    for _ in 0..7 {
        go(ask(&mut pacer, &site, 8, "a.example", 0));
    }
    let held = ask(&mut pacer, &site, 8, "a.example", 0);
    assert!(matches!(&held, Answer::Wait(Hold::Limit { part: Part::Whole, .. }, None)), "{held:?}");
}

#[test]
fn an_operators_change_holds_from_the_next_job_on() {
    let (mut pacer, site) = (pacer(Vec::new()), path("mx.example", 1));
    go(ask(&mut pacer, &site, 1, "a.example", 0));
    let scope = Scope { target: Target::Site("mx.example".into()), vip: Some(VipId(1)), tenant: None };
    pacer.set_overrides(vec![limit(scope, Knob::Connections, 1)]);
    let held = ask(&mut pacer, &site, 1, "a.example", 0);
    assert!(matches!(held, Answer::Wait(Hold::Limit { value: 1, .. }, None)), "{held:?}");
    pacer.set_overrides(Vec::new());
    go(ask(&mut pacer, &site, 1, "a.example", 0));
}

#[test]
fn a_listing_parks_one_virtual_ip_at_one_site_and_nobody_else() {
    let mut pacer = pacer(Vec::new());
    let parked = path("microsoft-365", 1);
    let step = pacer.hear(&parked, Signal::Listed("550 5.7.1 listed".into()), QueueTime(0));
    assert!(matches!(step, Some(Step::Parked(..))));
    let held = ask(&mut pacer, &parked, 1, "shop.example", 0);
    let until = Some(QueueTime(15 * MINUTE));
    assert_eq!(held, Answer::Wait(Hold::Listed("550 5.7.1 listed".into()), until));
    go(ask(&mut pacer, &path("microsoft-365", 2), 1, "shop.example", 0));
    go(ask(&mut pacer, &path("gmail", 1), 1, "gmail.com", 0));
    go(ask(&mut pacer, &parked, 1, "shop.example", 15 * MINUTE));
    let second = ask(&mut pacer, &parked, 1, "shop.example", 15 * MINUTE);
    assert!(matches!(second, Answer::Wait(Hold::Limit { value: 1, .. }, None)), "one connection probes: {second:?}");
}

#[test]
fn trouble_lowers_the_rate_and_the_hold_says_why() {
    let (mut pacer, gmail) = (pacer(Vec::new()), path("gmail", 1));
    pacer.hear(&gmail, Signal::SlowDown("421 4.7.28 slow".into()), QueueTime(0));
    let held = ask(&mut pacer, &gmail, 1, "gmail.com", 0);
    assert_eq!(held, Answer::Wait(Hold::Resting("421 4.7.28 slow".into()), Some(QueueTime(30_000))));
    let permit = go(ask(&mut pacer, &gmail, 1, "gmail.com", 30_000));
    let held = ask(&mut pacer, &gmail, 1, "gmail.com", 30_000);
    let Answer::Wait(Hold::Limit { knob: Knob::Connections, slowed: Some(slowed), .. }, None) = held else {
        panic!("{held:?}")
    };
    assert_eq!(slowed, "421 4.7.28 slow");
    assert_eq!(permit.quota.messages, 2, "a tenth of the lowest rate, 24 a minute");
    assert!(pacer.release(&gmail));
    ask(&mut pacer, &gmail, 1, "gmail.com", 31_000);
    go(ask(&mut pacer, &gmail, 1, "gmail.com", 32_000));
}

#[test]
fn a_warm_up_lets_so_many_go_a_day_and_no_more() {
    let (mut pacer, gmail) = (pacer(Vec::new()), path("gmail", 1));
    pacer.warm(&gmail, Some(Warmup::new(&LADDER, QueueTime(0)).unwrap()), QueueTime(0));
    let mut sent = [0_u32; 4];
    for minute in 0..4 * 24 * 60 {
        let now = minute * MINUTE;
        while let Answer::Go(permit) = ask(&mut pacer, &gmail, 1, "gmail.com", now) {
            let messages = permit.quota.messages;
            sent[usize::try_from(minute / (24 * 60)).unwrap()] += messages;
            pacer.finished(&gmail, &permit, Quota { messages, connections: 1 }, QueueTime(now));
        }
        let held = ask(&mut pacer, &gmail, 1, "gmail.com", now);
        assert!(matches!(held, Answer::Wait(..)), "{held:?}");
    }
    assert_eq!(sent, [50, 100, 200, 400]);
}

#[test]
fn what_was_stored_goes_on_after_a_restart_and_a_warm_up_never_begins_its_day_again() {
    let (mut before, gmail) = (pacer(Vec::new()), path("gmail", 1));
    before.warm(&gmail, Some(Warmup::new(&LADDER, QueueTime(0)).unwrap()), QueueTime(0));
    let permit = go(ask(&mut before, &gmail, 1, "gmail.com", 0));
    before.finished(&gmail, &permit, permit.quota, QueueTime(0));
    before.hear(&gmail, Signal::SlowDown("421 slow".into()), QueueTime(0));
    let changes = before.take_changes();
    assert!(before.take_changes().is_empty());
    let [(stored_path, Some(memory))] = &changes[..] else { panic!("{changes:?}") };
    let bytes = crate::store::codec::encode(memory);
    let read: Memory = crate::store::codec::decode(&bytes).unwrap();
    let mut after = pacer(Vec::new());
    after.remember(stored_path.clone(), read, QueueTime(1_000));
    assert!(matches!(ask(&mut after, &gmail, 1, "gmail.com", 1_000), Answer::Wait(Hold::Resting(_), _)));
    let mut sent = permit.quota.messages;
    for minute in 1..24 * 60 {
        while let Answer::Go(permit) = ask(&mut after, &gmail, 1, "gmail.com", minute * MINUTE) {
            sent += permit.quota.messages;
            after.finished(&gmail, &permit, permit.quota, QueueTime(minute * MINUTE));
        }
    }
    assert!((45..=50).contains(&sent), "{sent}");
    after.was_not_stored(&gmail);
    assert_eq!(after.take_changes().len(), 1);
}

#[test]
fn what_holds_nothing_back_is_forgotten_and_what_does_is_not() {
    let mut pacer = pacer(Vec::new());
    let (quiet, parked) = (path("mx.example", 1), path("gmail", 1));
    let permit = go(ask(&mut pacer, &quiet, 1, "a.example", 0));
    pacer.hear(&parked, Signal::Listed("listed".into()), QueueTime(0));
    let later = QueueTime(10 * 60 * MINUTE);
    pacer.forget_quiet(later);
    assert_eq!(pacer.paths().len(), 2, "a job is out");
    pacer.finished(&quiet, &permit, permit.quota, QueueTime(0));
    pacer.forget_quiet(later);
    assert_eq!(pacer.paths(), [parked]);
    let picture = pacer.picture(&quiet, later);
    assert_eq!((picture.running, picture.holds), (0, None));
    assert_eq!(pacer.paths().len(), 1, "looking changes nothing");
}

#[test]
fn a_warm_up_counts_what_was_under_way_when_it_began_and_no_day_takes_back_what_another_counted() {
    const DAY: u64 = 24 * 60 * MINUTE;
    let (mut pacer, gmail) = (pacer(Vec::new()), path("gmail", 1));
    let sent = |pacer: &Pacer| pacer.memory(&gmail).warmup.unwrap().sent();
    let used = |messages| Quota { messages, connections: 1 };
    let early = go(ask(&mut pacer, &gmail, 1, "gmail.com", 0));
    pacer.warm(&gmail, Some(Warmup::new(&LADDER, QueueTime(0)).unwrap()), QueueTime(0));
    pacer.finished(&gmail, &early, used(30), QueueTime(MINUTE));
    assert_eq!(sent(&pacer), 30, "it is part of the first day");
    let late = go(ask(&mut pacer, &gmail, 1, "gmail.com", DAY - MINUTE));
    assert_eq!(late.quota.messages, 20, "what the first day had left");
    let next = go(ask(&mut pacer, &gmail, 1, "gmail.com", DAY + MINUTE));
    let taken = next.quota.messages;
    assert_eq!(sent(&pacer), taken);
    pacer.finished(&gmail, &late, used(1), QueueTime(DAY + 2 * MINUTE));
    assert_eq!(sent(&pacer), taken, "what was not used was another day's");
    pacer.finished(&gmail, &next, used(1), QueueTime(DAY + 3 * MINUTE));
    assert_eq!(sent(&pacer), 1);
}
