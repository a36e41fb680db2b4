//! The pace against plain books: whatever is asked, used, heard and changed, no limit is exceeded at any moment or in
//! any minute, nothing is admitted while a site rests, what waits is told when to come back and then goes, and what
//! was slowed down recovers.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::limits::{Knob, LimitSet, Override, Part, Scope, Target, UNLIMITED};
use super::*;
use crate::mail::{Domain, TenantId};
use crate::queue::QueueTime;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
/// The domain and the tenant with limits of their own.
const DOMAIN: &str = "slow.example";
const TENANT: TenantId = TenantId(1);

fn cases(number: u32) -> ProptestConfig {
    ProptestConfig { cases: number, failure_persistence: None, ..ProptestConfig::default() }
}

/// One random act; numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Act {
    Ask {
        path: u8,
        tenant: u8,
        is_slow: bool,
        messages: u8,
        has_connection: bool,
    },
    /// A job comes back: how much of its quota it used, and whether at its beginning or just now.
    Finish {
        which: u8,
        percent: u8,
        is_late: bool,
    },
    Hear {
        path: u8,
        signal: u8,
    },
    Pass {
        millis: u32,
    },
    /// The operator sets other limits of the site.
    Change {
        connections: u8,
        per_minute: u8,
    },
    Release {
        path: u8,
    },
    Forget,
}

fn acts() -> impl Strategy<Value = Act> {
    let ask = (any::<u8>(), any::<u8>(), any::<bool>(), 1_u8..60, any::<bool>()).prop_map(
        |(path, tenant, is_slow, messages, has_connection)| Act::Ask {
            path,
            tenant,
            is_slow,
            messages,
            has_connection,
        },
    );
    let finish = (any::<u8>(), 0_u8..=100, any::<bool>());
    prop_oneof![
        8 => ask,
        6 => finish.prop_map(|(which, percent, is_late)| Act::Finish { which, percent, is_late }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(path, signal)| Act::Hear { path, signal }),
        4 => (1_u32..40_000).prop_map(|millis| Act::Pass { millis }),
        1 => (1_u8..8, 1_u8..100).prop_map(|(connections, per_minute)| Act::Change { connections, per_minute }),
        1 => any::<u8>().prop_map(|path| Act::Release { path }),
        1 => Just(Act::Forget),
    ]
}

/// Limits of the site, of one tenant and of one domain.
#[derive(Clone, Copy, Debug)]
struct Limited {
    connections: u32,
    messages_per_minute: u32,
    connections_per_minute: u32,
    of_tenant: u32,
    of_domain: u32,
}

fn limits() -> impl Strategy<Value = Limited> {
    (1_u32..8, 1_u32..100, 1_u32..30, 1_u32..40, 1_u32..4).prop_map(
        |(connections, messages_per_minute, connections_per_minute, of_tenant, of_domain)| Limited {
            connections,
            messages_per_minute,
            connections_per_minute,
            of_tenant,
            of_domain,
        },
    )
}

impl Limited {
    fn overrides(self) -> Vec<Override> {
        let set = |scope: Scope, values: &[(Knob, u32)]| {
            let mut limits = LimitSet::default();
            values.iter().for_each(|(knob, value)| limits.set(*knob, Some(*value)));
            Override { scope, limits, weight: None }
        };
        let everywhere = Scope { target: Target::Every, vip: None, tenant: None };
        let of_tenant = Scope { tenant: Some(TENANT), ..everywhere.clone() };
        let of_domain = Scope { target: Target::Domain(Domain::parse(DOMAIN).unwrap()), ..everywhere.clone() };
        let whole = [
            (Knob::Connections, self.connections),
            (Knob::MessagesPerMinute, self.messages_per_minute),
            (Knob::ConnectionsPerMinute, self.connections_per_minute),
        ];
        vec![
            set(everywhere, &whole),
            set(of_tenant, &[(Knob::MessagesPerMinute, self.of_tenant)]),
            set(of_domain, &[(Knob::Connections, self.of_domain)]),
        ]
    }
}

/// A job that is out.
struct Out {
    path: Path,
    tenant: TenantId,
    is_slow: bool,
    permit: Permit,
    at: u64,
}

/// What a job did, and when.
struct Done {
    path: Path,
    tenant: TenantId,
    at: u64,
    messages: u32,
    connections: u32,
}

struct World {
    pacer: Pacer,
    limits: Limited,
    /// The highest that were set.
    highest: Limited,
    now: u64,
    out: Vec<Out>,
    done: Vec<Done>,
    paths: Vec<Path>,
    /// Until when nothing may go, by path.
    rests: Vec<u64>,
}

impl World {
    fn new(limits: Limited) -> Self {
        let sites = [("a.example", 1), ("a.example", 2), ("b.example", 1)];
        let paths: Vec<_> = sites.map(|(site, vip)| Path { site: site.into(), vip: VipId(vip) }).into();
        let pacer = Pacer::new(Providers::built_in(), LimitSet::default(), limits.overrides());
        let rests = vec![0; paths.len()];
        Self { pacer, limits, highest: limits, now: HOUR, out: Vec::new(), done: Vec::new(), paths, rests }
    }

    fn act(&mut self, act: Act) {
        let of = |number: u8, count: usize| usize::from(number) % count;
        match act {
            Act::Ask { path, tenant, is_slow, messages, has_connection } => {
                let (path, tenant) = (of(path, self.paths.len()), TenantId(1 + u64::from(tenant % 3)));
                self.ask(path, (tenant, is_slow), u32::from(messages), u32::from(!has_connection));
            }
            Act::Finish { which, percent, is_late } if !self.out.is_empty() => {
                let out = self.out.swap_remove(of(which, self.out.len()));
                self.finish(out, u32::from(percent), is_late);
            }
            Act::Hear { path, signal } => self.hear(of(path, self.paths.len()), signal),
            Act::Pass { millis } => self.now += u64::from(millis),
            Act::Change { connections, per_minute } => {
                self.limits.connections = u32::from(connections);
                self.limits.messages_per_minute = u32::from(per_minute);
                let highest = &mut self.highest;
                highest.messages_per_minute = highest.messages_per_minute.max(u32::from(per_minute));
                self.pacer.set_overrides(self.limits.overrides());
            }
            Act::Release { path } => {
                let path = of(path, self.paths.len());
                self.pacer.release(&self.paths[path]);
                self.rests[path] = 0;
            }
            Act::Forget => self.pacer.forget_quiet(QueueTime(self.now)),
            Act::Finish { .. } => {}
        }
    }

    /// Asks, and compares the answer with the books.
    fn ask(&mut self, number: usize, (tenant, is_slow): (TenantId, bool), messages: u32, needs: u32) -> Answer {
        let path = self.paths[number].clone();
        let domain = Domain::parse(if is_slow { DOMAIN } else { "there.example" }).unwrap();
        let ask = Ask { path: &path, tenant, domain: &domain, class: Class::Transactional, messages, needs };
        let answer = self.pacer.admit(&ask, QueueTime(self.now));
        match &answer {
            Answer::Go(permit) => {
                assert!(self.now >= self.rests[number], "admitted while the site rests");
                let quota = permit.quota;
                assert!((1..=messages).contains(&quota.messages) && quota.connections >= needs, "{quota:?}");
                self.out.push(Out { path: path.clone(), tenant, is_slow, permit: permit.clone(), at: self.now });
                let running = |fits: &dyn Fn(&Out) -> bool| {
                    let own = self.out.iter().filter(|out| out.path == path && fits(out));
                    u32::try_from(own.count()).unwrap()
                };
                assert!(running(&|_| true) <= self.limits.connections, "more at a time than the site's limit");
                assert!(running(&|out| out.is_slow) <= self.limits.of_domain || !is_slow, "more than the domain's");
            }
            Answer::Wait(hold, None) => {
                // Only what is out can open it: somebody must be.
                let is_of = |out: &Out, part: &Part| match part {
                    Part::Whole => true,
                    Part::Tenant(tenant) => out.tenant == *tenant,
                    Part::Domain(_) => out.is_slow,
                };
                let Hold::Limit { part, .. } = hold else { panic!("{hold:?} never ends") };
                assert!(self.out.iter().any(|out| out.path == path && is_of(out, part)), "{hold:?} for nobody");
            }
            Answer::Wait(hold, Some(until)) => assert!(until.0 > self.now, "{hold:?} until a moment that has passed"),
        }
        answer
    }

    fn finish(&mut self, out: Out, percent: u32, is_late: bool) {
        let Out { path, tenant, permit, at, .. } = out;
        let messages = permit.quota.messages * percent / 100;
        let used = Quota { messages, connections: permit.quota.connections.min(1) };
        self.pacer.finished(&path, &permit, used, QueueTime(self.now));
        let at = if is_late { self.now } else { at };
        self.done.push(Done { path, tenant, at, messages, connections: used.connections });
    }

    fn hear(&mut self, number: usize, signal: u8) {
        let path = self.paths[number].clone();
        let words = "421 4.7.0 slow down".to_owned();
        let signal = match signal % 8 {
            0 => Signal::SlowDown(words),
            1 => Signal::Listed(words),
            2 | 3 => Signal::Failed(words),
            4 => Signal::SentAway(words),
            more => Signal::Served(u32::from(more)),
        };
        let before = self.pacer.rate(&path);
        let step = self.pacer.hear(&path, signal, QueueTime(self.now));
        match step {
            Some(Step::Slowed(_)) => {
                assert!(self.pacer.rate(&path) <= before, "a step down raised the rate");
                // The first rest, and every later one at least.
                self.rests[number] = self.rests[number].max(self.now + 30_000);
            }
            Some(Step::Parked(until, _)) => {
                assert!(until.0 >= self.now + 15 * MINUTE);
                self.rests[number] = self.rests[number].max(until.0);
            }
            // Served after a step down: it takes mail, so the rest is over.
            Some(Step::Raised | Step::Recovered) => self.rests[number] = 0,
            None => {}
        }
        assert!(self.pacer.rate(&path) >= 1 && self.pacer.connections_max(&path) >= 1, "never down to nothing");
    }

    fn finish_all(&mut self) {
        for out in std::mem::take(&mut self.out) {
            self.finish(out, 100, true);
        }
    }

    /// No minute, wherever it begins, held more than the limits.
    fn no_minute_holds_too_much(&self) {
        for path in &self.paths {
            let own = |count: &dyn Fn(&Done) -> u32| {
                let of_path = self.done.iter().filter(|done| done.path == *path);
                let mut at: Vec<u64> =
                    of_path.flat_map(|done| std::iter::repeat_n(done.at, count(done) as usize)).collect();
                at.sort_unstable();
                at
            };
            let of_tenant = |done: &Done| if done.tenant == TENANT { done.messages } else { 0 };
            for (what, at, limit) in [
                ("messages", own(&|done| done.messages), self.highest.messages_per_minute),
                ("messages of the tenant", own(&of_tenant), self.highest.of_tenant),
                ("connections", own(&|done| done.connections), self.highest.connections_per_minute),
            ] {
                let limit = limit as usize;
                for window in at.windows(limit + 1) {
                    assert!(window[limit] - window[0] >= MINUTE, "{what}: more than {limit} in a minute: {window:?}");
                }
            }
        }
    }

    /// Whoever comes back when told to goes in the end, whatever was heard before.
    fn whoever_waits_goes(&mut self, number: usize) {
        let began = self.now;
        for _ in 0..20 {
            match self.ask(number, (TENANT, true), 1, 1) {
                Answer::Go(_) => return self.finish_all(),
                Answer::Wait(hold, until) => {
                    let until = until.unwrap_or_else(|| panic!("{hold:?} for ever, though nothing is out"));
                    assert!(until.0 - began <= 13 * HOUR, "{hold:?} until {until:?}");
                    self.now = until.0;
                }
            }
        }
        panic!("it comes back twenty times when told to, and never goes");
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn no_limit_is_exceeded_and_nobody_waits_for_ever(limits in limits(), acts in prop::collection::vec(acts(), 1..400)) {
        let mut world = World::new(limits);
        for act in acts {
            world.act(act);
        }
        world.finish_all();
        for number in 0..world.paths.len() {
            world.whoever_waits_goes(number);
        }
        world.no_minute_holds_too_much();
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn after_any_trouble_a_site_that_serves_has_its_limits_back_within_two_days(
        limits in limits(),
        acts in prop::collection::vec(acts(), 1..200),
    ) {
        let mut world = World::new(limits);
        for act in acts {
            world.act(act);
        }
        world.finish_all();
        for number in 0..world.paths.len() {
            let (path, until) = (world.paths[number].clone(), world.now + 48 * HOUR);
            while world.now < until && world.pacer.held() != (0, 0) {
                world.now += 10_000;
                if let Answer::Go(permit) = world.ask(number, (TenantId(2), false), 50, 1) {
                    let served = permit.quota.messages;
                    world.finish_all();
                    world.pacer.hear(&path, Signal::Served(served), QueueTime(world.now));
                    world.rests[number] = 0;
                }
            }
            let memory = world.pacer.memory(&path);
            prop_assert!(memory.controller.is_idle(), "{memory:?}");
            prop_assert_eq!(world.pacer.rate(&path), world.limits.messages_per_minute);
            prop_assert_eq!(world.pacer.connections_max(&path), world.limits.connections);
        }
    }

    #[test]
    fn each_step_down_in_a_row_rests_longer_and_one_message_served_ends_the_row(
        limits in limits(),
        gaps in prop::collection::vec(61_u64..600, 2..12),
    ) {
        let mut world = World::new(limits);
        let (path, mut before, mut rate) = (world.paths[0].clone(), 0, UNLIMITED);
        for gap in gaps {
            let step = world.pacer.hear(&path, Signal::SlowDown("450 4.7.1 slow".into()), QueueTime(world.now));
            prop_assert!(matches!(step, Some(Step::Slowed(_))), "{step:?}");
            let rest = world.pacer.memory(&path).controller.rest.unwrap().0 - world.now;
            prop_assert!(rest == (2 * before).clamp(30_000, 15 * MINUTE), "{rest} after {before}");
            prop_assert!(world.pacer.rate(&path) <= rate && world.pacer.rate(&path) >= 1);
            (before, rate) = (rest, world.pacer.rate(&path));
            world.now += rest.max(gap * 1_000);
        }
        world.pacer.hear(&path, Signal::Served(1), QueueTime(world.now));
        world.now += 2 * MINUTE;
        world.pacer.hear(&path, Signal::SlowDown("450 4.7.1 slow".into()), QueueTime(world.now));
        let rest = world.pacer.memory(&path).controller.rest.unwrap().0 - world.now;
        prop_assert_eq!(rest, 30_000, "the first again");
    }

    /// Tenants that always have mail, of any weights: none waits longer than the others together need for its share.
    #[test]
    fn no_tenant_starves_whatever_the_others_have_waiting(
        limits in limits(),
        weights in prop::collection::vec(1_u32..5, 2..6),
    ) {
        let messages_per_minute = limits.messages_per_minute.max(20);
        let limits = Limited { of_tenant: UNLIMITED, messages_per_minute, ..limits };
        let mut overrides = limits.overrides();
        for (number, weight) in weights.iter().enumerate() {
            let scope = Scope { target: Target::Every, vip: None, tenant: Some(TenantId(number as u64 + 1)) };
            overrides.push(Override { scope, limits: LimitSet::default(), weight: Some(*weight) });
        }
        let mut world = World::new(limits);
        world.pacer.set_overrides(overrides);
        let (path, mut sent) = (world.paths[0].clone(), vec![0_u32; weights.len()]);
        for _ in 0..2_000 {
            let mut waiting: Vec<usize> = (0..weights.len()).collect();
            world.pacer.turns.order(&mut waiting, |number| {
                (path.clone(), TenantId(*number as u64 + 1), Class::Transactional)
            });
            if let Answer::Go(permit) = world.ask(0, (TenantId(waiting[0] as u64 + 1), false), 5, 0) {
                sent[waiting[0]] += permit.quota.messages;
                world.finish_all();
            }
            world.now += 1_000;
        }
        let (all, share): (u32, u32) = (sent.iter().sum(), weights.iter().sum());
        for (own, weight) in sent.iter().zip(&weights) {
            // A job of five messages may be one too many, or the next one that is due.
            prop_assert!(own.abs_diff(all * weight / share) <= 5 * (weight + 1), "{sent:?} by {weights:?}");
        }
        world.no_minute_holds_too_much();
    }
}

/// One random act on the pace of a site's MX hosts.
#[derive(Clone, Copy, Debug)]
enum Contact {
    Ask { messages: u16, is_marketing: bool },
    Finish { how: u8 },
    Pass { seconds: u16 },
    Resume,
}

fn contacts() -> impl Strategy<Value = Contact> {
    prop_oneof![
        5 => (1_u16..300, any::<bool>()).prop_map(|(messages, is_marketing)| Contact::Ask { messages, is_marketing }),
        5 => any::<u8>().prop_map(|how| Contact::Finish { how }),
        3 => (1_u16..900).prop_map(|seconds| Contact::Pass { seconds }),
        1 => Just(Contact::Resume),
    ]
}

proptest! {
    #![proptest_config(cases(200))]

    /// The plain model: how many run, how many failures in a row, until when it pauses.
    #[test]
    fn a_site_that_cannot_be_reached_is_left_alone_longer_each_time_and_probed_by_one(
        most in 1_usize..12,
        contacts in prop::collection::vec(contacts(), 1..300),
    ) {
        let limits =
            Limits { connections_max: most, pause_first: Duration::from_secs(30), pause_max: Duration::from_secs(600) };
        let (mut shaper, mut now) = (Shaper::new(limits), Instant::now());
        let path = Path { site: "a.example".into(), vip: VipId(1) };
        let (mut running, mut failures, mut until) = (0_usize, 0_u32, now);
        for contact in contacts {
            match contact {
                Contact::Ask { messages, is_marketing } => {
                    let class = if is_marketing { Class::Marketing } else { Class::Transactional };
                    let waiting = Backlog { messages: usize::from(messages), connections_max: most };
                    match shaper.admit(&path, class, waiting, now) {
                        Admission::Admitted => {
                            prop_assert!(now >= until, "admitted during a pause");
                            prop_assert!(running < most.min(usize::from(messages)), "more than the limit or the backlog");
                            prop_assert!(failures == 0 || running == 0, "more than one probe");
                            running += 1;
                        }
                        Admission::Enough => prop_assert!(running > 0, "enough, and none runs"),
                        Admission::Wait(told, _) => prop_assert!(told == until && until > now, "told {told:?}"),
                    }
                }
                Contact::Finish { how } if running > 0 => {
                    running -= 1;
                    match how % 4 {
                        0 => {
                            shaper.finished(&path, Use::Served, now);
                            (failures, until) = (0, now);
                        }
                        1 => shaper.finished(&path, Use::Crowded, now),
                        2 => shaper.returned(&path),
                        _ => {
                            shaper.finished(&path, Use::Failed("refused".into()), now);
                            // Those that fail during a pause were made before it.
                            failures += u32::from(now >= until);
                            let pause = 30 * 2_u64.pow(failures.clamp(1, 8) - 1);
                            until = now + Duration::from_secs(pause.min(600));
                        }
                    }
                }
                Contact::Pass { seconds } => now += Duration::from_secs(u64::from(seconds)),
                Contact::Resume => {
                    shaper.resume("a.example");
                    (failures, until) = (0, now);
                }
                Contact::Finish { .. } => {}
            }
            prop_assert_eq!(shaper.running(&path), running);
            prop_assert_eq!(shaper.pauses(&path, now), now < until);
        }
        // Served once, it is open at once to as many as there may be.
        for _ in 0..running {
            shaper.finished(&path, Use::Served, now);
        }
        now += Duration::from_secs(600);
        let waiting = Backlog { messages: 10_000, connections_max: most };
        prop_assert_eq!(shaper.admit(&path, Class::Transactional, waiting, now), Admission::Admitted);
        shaper.finished(&path, Use::Served, now);
        for _ in 0..most {
            prop_assert_eq!(shaper.admit(&path, Class::Transactional, waiting, now), Admission::Admitted);
        }
        prop_assert_eq!(shaper.admit(&path, Class::Transactional, waiting, now), Admission::Enough);
    }
}
