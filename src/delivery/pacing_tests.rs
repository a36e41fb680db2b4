//! Limits of operators and what was learnt: kept over restarts, on record, refused where they make no sense.

use super::*;
use crate::access::Role;
use crate::delivery::shaping::LADDER;
use crate::store::MemoryStore;

fn path() -> Path {
    Path { site: "gmail".into(), vip: VipId(1) }
}

fn open(store: &Arc<dyn Store>, now: u64) -> Pacing {
    Pacing::open(Arc::clone(store), &Settings::default(), QueueTime(now)).unwrap()
}

fn limit(target: Target, knob: Knob, value: u32) -> Override {
    let mut limits = LimitSet::default();
    limits.set(knob, Some(value));
    Override { scope: LimitScope { target, vip: None, tenant: None }, limits, weight: None }
}

fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

fn holds(pacing: &Pacing, now: u64) -> Option<Hold> {
    pacing.site(&Actor::local(0), &path(), QueueTime(now)).unwrap().holds.map(|(hold, _)| hold)
}

#[tokio::test]
async fn an_operators_limits_are_kept_merged_and_taken_back() {
    let (store, actor) = (store(), Actor::local(0));
    let gmail = || Target::Site("gmail".to_owned());
    let pacing = open(&store, 0);
    pacing.set(&actor, limit(gmail(), Knob::Connections, 3), Timestamp(0)).await.unwrap();
    pacing.set(&actor, limit(gmail(), Knob::MessagesPerMinute, 60), Timestamp(0)).await.unwrap();
    assert_eq!(pacing.connections_max(&path()), 3);
    drop(pacing);
    let again = open(&store, 0);
    assert_eq!(again.connections_max(&path()), 3);
    let [set] = &again.overrides(&actor).unwrap()[..] else { panic!("one scope") };
    assert_eq!(describe(set), "gmail: connections 3, messages_per_minute 60");
    let scope = set.scope.clone();
    again.clear(&actor, &scope, Timestamp(0)).await.unwrap();
    assert_eq!(again.connections_max(&path()), 10);
    assert!(matches!(again.clear(&actor, &scope, Timestamp(0)).await, Err(AdminError::Missing(_))));
    assert_eq!(open(&store, 0).connections_max(&path()), 10);
}

#[tokio::test]
async fn only_those_who_run_the_instance_may_and_senseless_limits_are_refused() {
    let pacing = open(&store(), 0);
    let mut owner = Actor::local(0);
    owner.role = Role::TenantOwner(TenantId(1));
    let three = limit(Target::Every, Knob::Connections, 3);
    assert!(matches!(pacing.set(&owner, three.clone(), Timestamp(0)).await, Err(AdminError::Forbidden(_))));
    assert!(pacing.sites(&owner, QueueTime(0)).is_err());
    let mut wrong = vec![limit(Target::Every, Knob::Connections, 0)];
    wrong.push(Override { limits: LimitSet::default(), ..three.clone() });
    wrong.push(Override { weight: Some(2), ..three.clone() });
    let domain = Target::Domain(Domain::parse("shop.example").unwrap());
    let scope = LimitScope { target: domain, vip: None, tenant: Some(TenantId(1)) };
    wrong.push(Override { scope, ..three });
    for asked in wrong {
        let refused = pacing.set(&Actor::local(0), asked.clone(), Timestamp(0)).await;
        assert!(matches!(refused, Err(AdminError::Invalid(_))), "{asked:?} {refused:?}");
    }
}

#[tokio::test]
async fn a_pause_survives_a_restart_with_its_reason_and_events_are_written_once() {
    let store = store();
    let pacing = open(&store, 0);
    pacing.hear(&path(), Signal::Listed("550 5.7.1 listed".to_owned()), QueueTime(0));
    pacing.write(Timestamp(5)).await;
    pacing.write(Timestamp(6)).await;
    let end = crate::store::after_prefix(&[prefix::EVENT]);
    let events = store.range(&[prefix::EVENT], &end, 10).unwrap();
    let event: Event = codec::decode(&events[0].1).unwrap();
    let reply = "550 5.7.1 listed".to_owned();
    let parked = InstanceEvent::SiteParked { vip: VipId(1), site: "gmail".to_owned(), secs: 900, reply };
    assert_eq!((events.len(), event.kind), (1, EventKind::Instance(parked)));
    let again = open(&store, 60_000);
    assert_eq!(holds(&again, 60_000), Some(Hold::Listed("550 5.7.1 listed".to_owned())));
    assert_eq!(holds(&again, 901_000), None);
    assert!(again.release(&Actor::local(0), &path(), Timestamp(7)).await.unwrap());
    assert_eq!(holds(&again, 60_000), None);
    again.write(Timestamp(8)).await;
    assert_eq!(holds(&open(&store, 60_000), 60_000), None);
}

#[tokio::test]
async fn a_warm_up_is_stored_with_the_act_that_begins_it() {
    let (store, actor) = (store(), Actor::local(0));
    let warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
    open(&store, 0).warm(&actor, &path(), Some(warmup), (QueueTime(0), Timestamp(0))).await.unwrap();
    let again = open(&store, 0);
    let picture = again.site(&actor, &path(), QueueTime(0)).unwrap();
    assert_eq!(picture.memory.warmup.map(|warmup| warmup.allowed()), Some(50));
    again.warm(&actor, &path(), None, (QueueTime(0), Timestamp(0))).await.unwrap();
    assert_eq!(open(&store, 0).site(&actor, &path(), QueueTime(0)).unwrap().memory.warmup, None);
    let ended = again.warm(&actor, &path(), None, (QueueTime(0), Timestamp(0))).await;
    assert!(matches!(ended, Err(AdminError::Missing(_))));
}

#[tokio::test]
async fn a_site_is_found_by_provider_domain_and_name() {
    let pacing = open(&store(), 0);
    let site: Arc<str> = "mx1.shop.example,mx2.shop.example".into();
    pacing.leads_to(&Domain::parse("shop.example").unwrap(), &site);
    for (text, found) in [("gmail", "gmail"), ("GMAIL.com", "gmail"), ("shop.example", &*site)] {
        assert_eq!(pacing.site_called(text).as_deref(), Some(found), "{text}");
    }
    assert_eq!(pacing.site_called("unknown.example"), None);
}

#[test]
fn a_hold_is_told_in_one_sentence() {
    let hold = Hold::Limit {
        knob: Knob::MessagesPerMinute,
        part: crate::delivery::shaping::Part::Whole,
        value: 24,
        slowed: Some("421 4.7.28 slow".to_owned()),
    };
    let text = hold.describe("gmail", Some(Timestamp(0)));
    let expected = "limit: messages per minute to gmail is 24 (lowered because of: 421 4.7.28 slow); the next at 1970";
    assert!(text.starts_with(expected), "{text}");
}
