//! A day in virtual time: 12 virtual IPs, 6 receivers that answer as the real ones do under load,
//! three tenants on each pair. What controller and turns come to is asserted by bounds, and drawn:
//! `POSTERN_WRITE_DOCUMENTS=1 cargo test --lib shaping::simulation` writes the plots of
//! docs/operate/shaping.md from the test's own data.

use std::collections::{BTreeMap, VecDeque};

use super::super::outcome::Phase;
use super::super::replies::{Rules, read_reply};
use super::plot::{Line, Plot};
use super::providers::Providers;
use super::{Answer, Ask, Hold, Judged, Knob, LADDER, LimitSet, Pacer, Path, Permit, Quota, Signal, Step, Warmup};
use crate::mail::{Class, Domain, TenantId, VipId};
use crate::queue::QueueTime;

/// Milliseconds of a step of the simulation.
const STEP: u64 = 5_000;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const VIPS: u64 = 12;
/// What one connection does in a step.
const PER_STEP: u32 = 10;

/// Tenants on each pair: one with a batch, one with another batch, one with password resets.
const BATCH: TenantId = TenantId(1);
const OTHER_BATCH: TenantId = TenantId(2);
const RESETS: TenantId = TenantId(3);

/// What a receiver says to a message, `None` for yes.
type Script = fn(&Heard) -> Option<&'static str>;

/// What a receiver sees.
struct Heard {
    vip: u64,
    now: u64,
    /// Messages of this virtual IP in the last minute.
    rate: u32,
    number: u64,
    first_try: bool,
}

struct Receiver {
    name: &'static str,
    /// Messages a minute each virtual IP has for it.
    demand: u32,
    script: Script,
}

fn receivers() -> Vec<Receiver> {
    vec![
        Receiver { name: "gmail", demand: 900, script: gmail },
        Receiver { name: "microsoft-365", demand: 200, script: microsoft_365 },
        Receiver { name: "microsoft-consumer", demand: 120, script: microsoft_consumer },
        Receiver { name: "yahoo", demand: 100, script: yahoo },
        Receiver { name: "wp", demand: 30, script: wp },
        Receiver { name: "seznam", demand: 60, script: seznam },
    ]
}

/// 400 a minute and no more.
fn gmail(heard: &Heard) -> Option<&'static str> {
    const SLOW: &str = "421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP \
                        address. To protect our users from spam, mail sent from your IP address has been temporarily \
                        rate limited.";
    (heard.rate > 400).then_some(SLOW)
}

/// 150 a minute until ten, 300 from then on.
fn microsoft_365(heard: &Heard) -> Option<&'static str> {
    let most = if heard.now < 10 * HOUR { 150 } else { 300 };
    (heard.rate > most).then_some("451 4.7.500 Server busy. Please try again later from [192.0.2.10]. (S77719)")
}

/// Virtual IP 3 is on its list from six to nine.
fn microsoft_consumer(heard: &Heard) -> Option<&'static str> {
    const LISTED: &str = "550 5.7.1 Unfortunately, messages from [192.0.2.3] weren't sent. Please contact your Internet \
                          service provider since part of their network is on our block list (S3140).";
    (heard.vip == 3 && (6 * HOUR..9 * HOUR).contains(&heard.now)).then_some(LISTED)
}

/// Complaints from noon to one: of three messages one is put off.
fn yahoo(heard: &Heard) -> Option<&'static str> {
    const SLOW: &str = "421 4.7.0 [TSS04] Messages from 192.0.2.10 temporarily deferred due to unexpected volume or user \
                        complaints - 4.16.55.1";
    let is_bad = (12 * HOUR..13 * HOUR).contains(&heard.now) && heard.number.is_multiple_of(3);
    is_bad.then_some(SLOW)
}

/// Greylists whatever it sees for the first time.
fn wp(heard: &Heard) -> Option<&'static str> {
    heard.first_try.then_some("450 4.7.1 Greylisted, please try again later")
}

/// Nobody answers from three to four in the afternoon.
fn seznam(heard: &Heard) -> Option<&'static str> {
    (15 * HOUR..16 * HOUR).contains(&heard.now).then_some("")
}

fn signal(provider: &str, said: &str) -> Option<Signal> {
    if said.is_empty() {
        return Some(Signal::Failed("connection refused".to_owned()));
    }
    let reply = read_reply(said).unwrap();
    Rules::built_in().judge(&reply, Phase::Mail, Some(provider)).signal(&reply)
}

/// A message waits since then, and has been tried or not.
#[derive(Clone, Copy)]
struct Waiting {
    since: u64,
    due: u64,
    is_tried: bool,
}

/// One receiver and virtual IP.
#[derive(Default)]
struct Pair {
    queues: BTreeMap<TenantId, VecDeque<Waiting>>,
    /// Whose, what it may, and whether its connection is a new one.
    jobs: Vec<(TenantId, Permit, bool)>,
    /// Connections that were used a step ago and are kept.
    kept: usize,
    /// When it was tried, and when it was taken, by minute.
    tried: Vec<u32>,
    taken: Vec<u32>,
    allowed: Vec<u32>,
    recent: VecDeque<u64>,
    taken_of: BTreeMap<TenantId, u64>,
    delays: Vec<u64>,
    steps: Vec<(u64, Step)>,
    refused: u64,
    count: u64,
    most_at_once: usize,
}

impl Pair {
    fn rate(&mut self, now: u64) -> u32 {
        while self.recent.front().is_some_and(|at| at + MINUTE <= now) {
            self.recent.pop_front();
        }
        u32::try_from(self.recent.len()).unwrap()
    }

    fn is_ready(&self, tenant: TenantId, now: u64) -> bool {
        self.queues.get(&tenant).and_then(VecDeque::front).is_some_and(|first| first.due <= now)
    }
}

struct Day {
    pacer: Pacer,
    pairs: BTreeMap<(&'static str, u64), Pair>,
    /// What was judged already: the same words come many times.
    judged: BTreeMap<(&'static str, &'static str), Option<Signal>>,
}

fn pacer() -> Pacer {
    let mut default = LimitSet::default();
    default.set(Knob::Connections, Some(10));
    Pacer::new(Providers::built_in(), default, Vec::new())
}

fn path(site: &str, vip: u64) -> Path {
    Path { site: site.into(), vip: VipId(vip) }
}

impl Day {
    fn simulate() -> Self {
        let mut day = Self { pacer: pacer(), pairs: BTreeMap::new(), judged: BTreeMap::new() };
        let receivers = receivers();
        let domain = Domain::parse("shop.example").unwrap();
        let mut now = 0;
        while now < DAY {
            for receiver in &receivers {
                for vip in 1..=VIPS {
                    day.step(receiver, vip, &domain, now);
                }
            }
            now += STEP;
        }
        day
    }

    fn step(&mut self, receiver: &Receiver, vip: u64, domain: &Domain, now: u64) {
        let pair = self.pairs.entry((receiver.name, vip)).or_default();
        if now.is_multiple_of(MINUTE) {
            pair.tried.push(0);
            pair.taken.push(0);
            pair.allowed.push(self.pacer.rate(&path(receiver.name, vip)));
        }
        arrive(pair, receiver.demand, now);
        self.admit(receiver, vip, domain, now);
        self.work(receiver, vip, now);
    }

    /// Jobs go out as the pacer lets them, by turns.
    fn admit(&mut self, receiver: &Receiver, vip: u64, domain: &Domain, now: u64) {
        let own = path(receiver.name, vip);
        let Some(pair) = self.pairs.get_mut(&(receiver.name, vip)) else { return };
        // Nobody gets a connection for mail that those it has will take.
        let mut planned: BTreeMap<TenantId, usize> = BTreeMap::new();
        loop {
            let has_more = |tenant: &TenantId| {
                let queue = pair.queues.get(tenant).map_or(0, VecDeque::len);
                queue > planned.get(tenant).copied().unwrap_or(0) && pair.is_ready(*tenant, now)
            };
            let mut waiting: Vec<TenantId> = [BATCH, OTHER_BATCH, RESETS].into_iter().filter(has_more).collect();
            self.pacer.turns.order(&mut waiting, |tenant| (own.clone(), *tenant, Class::Transactional));
            let Some(tenant) = waiting.first().copied() else { return };
            let is_new = pair.jobs.len() >= pair.kept;
            let (class, needs) = (Class::Transactional, u32::from(is_new));
            let ask = Ask { path: &own, tenant, domain, class, messages: 10, needs };
            match self.pacer.admit(&ask, QueueTime(now)) {
                Answer::Go(permit) => {
                    *planned.entry(tenant).or_default() += usize::try_from(permit.quota.messages).unwrap();
                    pair.jobs.push((tenant, permit, is_new));
                }
                Answer::Wait(..) => return,
            }
            pair.most_at_once = pair.most_at_once.max(pair.jobs.len());
            // In one step a backlog that is shorter than this has all its connections.
            if pair.jobs.len() > 24 {
                return;
            }
        }
    }

    /// Each job sends what it can in a step and comes back.
    fn work(&mut self, receiver: &Receiver, vip: u64, now: u64) {
        let own = path(receiver.name, vip);
        let Some(pair) = self.pairs.get_mut(&(receiver.name, vip)) else { return };
        pair.kept = pair.jobs.len();
        for (tenant, permit, is_new) in std::mem::take(&mut pair.jobs) {
            let (mut sent, mut served, mut heard) = (0, 0, None);
            while sent < permit.quota.messages.min(PER_STEP) && heard.is_none() && pair.is_ready(tenant, now) {
                let Some(message) = pair.queues.get_mut(&tenant).and_then(VecDeque::pop_front) else { break };
                sent += 1;
                pair.count += 1;
                pair.recent.push_back(now);
                let seen = Heard { vip, now, rate: pair.rate(now), number: pair.count, first_try: !message.is_tried };
                if let Some(minute) = pair.tried.last_mut() {
                    *minute += 1;
                }
                match (receiver.script)(&seen) {
                    None => {
                        served += 1;
                        if let Some(minute) = pair.taken.last_mut() {
                            *minute += 1;
                        }
                        *pair.taken_of.entry(tenant).or_default() += 1;
                        if tenant == RESETS && !message.is_tried {
                            pair.delays.push(now - message.since);
                        }
                    }
                    Some(said) => {
                        pair.refused += 1;
                        let judge = || signal(receiver.name, said);
                        heard = self.judged.entry((receiver.name, said)).or_insert_with(judge).clone();
                        let again = Waiting { due: now + 5 * MINUTE, is_tried: true, ..message };
                        pair.queues.entry(tenant).or_default().push_back(again);
                        if !said.is_empty() && heard.is_none() {
                            served += 1;
                        }
                    }
                }
            }
            let used = Quota { messages: sent, connections: u32::from(is_new) };
            self.pacer.finished(&own, &permit, used, QueueTime(now));
            for signal in heard.into_iter().chain((served > 0).then_some(Signal::Served(served))) {
                if let Some(step) = self.pacer.hear(&own, signal, QueueTime(now)) {
                    pair.steps.push((now, step));
                }
            }
        }
    }

    fn pair(&self, name: &'static str, vip: u64) -> &Pair {
        &self.pairs[&(name, vip)]
    }
}

/// The demand of a minute, a part each step: half each from the batches, and resets besides.
fn arrive(pair: &mut Pair, demand: u32, now: u64) {
    let steps = MINUTE / STEP;
    let step = now / STEP;
    let due = |per_minute: u64| (step + 1) * per_minute / steps - step * per_minute / steps;
    let fresh = Waiting { since: now, due: now, is_tried: false };
    let batches = [(BATCH, u64::from(demand) / 2), (OTHER_BATCH, u64::from(demand) / 2), (RESETS, 6)];
    for (tenant, per_minute) in batches {
        let queue = pair.queues.entry(tenant).or_default();
        // A batch that is far behind needs no more to be far behind.
        if queue.len() < 20_000 {
            (0..due(per_minute)).for_each(|_| queue.push_back(fresh));
        }
    }
}

/// The mean of some minutes.
fn mean(minutes: &[u32], from: u64, to: u64) -> u32 {
    let range = usize::try_from(from / MINUTE).unwrap()..usize::try_from(to / MINUTE).unwrap();
    let part = &minutes[range];
    part.iter().sum::<u32>() / u32::try_from(part.len()).unwrap()
}

#[test]
fn a_day_converges_recovers_and_stays_fair() {
    let day = Day::simulate();
    the_limits_hold(&day);
    gmail_converges(&day);
    microsoft_recovers(&day);
    a_listing_parks_one_and_nobody_else(&day);
    yahoo_and_seznam_recover(&day);
    tenants_are_served_fairly(&day);
    draw(&day);
}

fn the_limits_hold(day: &Day) {
    for ((name, vip), pair) in &day.pairs {
        let limits = Providers::built_in().named(name).unwrap().limits;
        let most = limits.get(Knob::MessagesPerMinute).unwrap();
        assert!(pair.tried.iter().all(|minute| *minute <= most), "{name} {vip}");
        let connections = usize::try_from(limits.get(Knob::Connections).unwrap()).unwrap();
        assert!(pair.most_at_once <= connections, "{name} {vip} {}", pair.most_at_once);
    }
}

fn gmail_converges(day: &Day) {
    for vip in 1..=VIPS {
        let pair = day.pair("gmail", vip);
        let taken = mean(&pair.taken, 12 * HOUR, DAY);
        assert!((300..=400).contains(&taken), "vip {vip}: {taken} of the 400 it takes");
        assert!(pair.refused * 100 <= pair.count, "vip {vip}: {} of {} refused", pair.refused, pair.count);
        let late = pair.steps.iter().filter(|(at, step)| *at > 12 * HOUR && matches!(step, Step::Slowed(_))).count();
        assert!(late <= 18, "vip {vip} does not flap: {late} steps down in twelve hours");
    }
}

fn microsoft_recovers(day: &Day) {
    for vip in 1..=VIPS {
        let taken = &day.pair("microsoft-365", vip).taken;
        let (before, after) = (mean(taken, 5 * HOUR, 10 * HOUR), mean(taken, 18 * HOUR, DAY));
        assert!((105..=150).contains(&before), "vip {vip}: {before} of the 150 it takes");
        assert!(after >= 190, "vip {vip} does not stay down: {after} of the 200 there are");
    }
}

fn a_listing_parks_one_and_nobody_else(day: &Day) {
    let parked = day.pair("microsoft-consumer", 3);
    let while_listed = mean(&parked.taken, 6 * HOUR + 5 * MINUTE, 9 * HOUR);
    let tries: u32 = parked.tried[6 * 60..9 * 60].iter().sum();
    assert_eq!(while_listed, 0);
    assert!((2..=40).contains(&tries), "{tries} tries in three hours of listing");
    let parks: Vec<u64> =
        parked.steps.iter().filter(|(_, step)| matches!(step, Step::Parked(..))).map(|(at, _)| *at).collect();
    assert!((3..=5).contains(&parks.len()), "{parks:?}");
    let back = mean(&parked.taken, 15 * HOUR, DAY);
    assert!(back >= 120, "it came back: {back}");
    for vip in (1..=VIPS).filter(|vip| *vip != 3) {
        let other = day.pair("microsoft-consumer", vip);
        assert!(other.steps.is_empty(), "vip {vip} {:?}", other.steps);
        assert!(mean(&other.taken, 6 * HOUR, 9 * HOUR) >= 119, "vip {vip}");
    }
    assert!(mean(&day.pair("wp", 3).taken, 6 * HOUR, 9 * HOUR) >= 29, "its mail to others went on");
}

fn yahoo_and_seznam_recover(day: &Day) {
    for vip in 1..=VIPS {
        let (yahoo, seznam) = (day.pair("yahoo", vip), day.pair("seznam", vip));
        assert!(mean(&yahoo.taken, 8 * HOUR, 12 * HOUR) >= 100, "vip {vip}");
        assert!(mean(&yahoo.tried, 12 * HOUR + 10 * MINUTE, 13 * HOUR) <= 70, "vip {vip} slows down");
        assert!(mean(&yahoo.taken, 17 * HOUR, DAY) >= 100, "vip {vip} {}", mean(&yahoo.taken, 17 * HOUR, DAY));
        let back = mean(&seznam.taken, 16 * HOUR + 45 * MINUTE, 18 * HOUR);
        assert!(back >= 60, "vip {vip}: {back} of the 60 there are, soon after an hour's outage");
        assert!(mean(&seznam.taken, 18 * HOUR, DAY) >= 60, "vip {vip} {}", mean(&seznam.taken, 18 * HOUR, DAY));
        assert!(day.pair("wp", vip).steps.is_empty(), "greylisting is no trouble");
    }
}

fn tenants_are_served_fairly(day: &Day) {
    for vip in 1..=VIPS {
        let pair = day.pair("gmail", vip);
        let [one, other] = [BATCH, OTHER_BATCH].map(|tenant| pair.taken_of[&tenant]);
        assert!(one.abs_diff(other) * 20 <= one, "vip {vip}: {one} and {other}");
        // Both batches are hours behind here; resets go as soon as anything goes.
        let mut delays = pair.delays.clone();
        delays.sort_unstable();
        let p95 = delays[delays.len() * 95 / 100];
        assert!(p95 <= 2 * STEP, "vip {vip}: {p95} ms");
    }
}

#[test]
fn weeks_of_warming_climb_hold_and_step_back() {
    let mut pacer = pacer();
    let gmail = path("gmail", 1);
    pacer.warm(&gmail, Some(Warmup::new(&LADDER, QueueTime(0)).unwrap()), QueueTime(0));
    let domain = Domain::parse("gmail.com").unwrap();
    let (mut sent, mut held) = (vec![0_u32; 24], 0);
    // In the second week the receiver puts one in five off for two days.
    let is_bad = |day: u64| (8..10).contains(&day);
    for minute in 0..24 * 24 * 60 {
        let (now, day) = (minute * MINUTE, minute / (24 * 60));
        let ask =
            Ask { path: &gmail, tenant: BATCH, domain: &domain, class: Class::Transactional, messages: 100, needs: 1 };
        match pacer.admit(&ask, QueueTime(now)) {
            Answer::Go(permit) => {
                let messages = permit.quota.messages;
                sent[usize::try_from(day).unwrap()] += messages;
                pacer.finished(&gmail, &permit, Quota { messages, connections: 1 }, QueueTime(now));
                for number in 0..messages {
                    let is_put_off = is_bad(day) && number % 5 == 0;
                    let signal = if is_put_off { Signal::SlowDown("421 slow".to_owned()) } else { Signal::Served(1) };
                    pacer.hear(&gmail, signal, QueueTime(now));
                }
            }
            Answer::Wait(Hold::WarmingUp(_), _) => held += 1,
            Answer::Wait(..) => {}
        }
    }
    let days: Vec<super::Day> = pacer.memory(&gmail).warmup.unwrap().days.into_iter().collect();
    assert!(days.iter().all(|day| day.sent <= day.allowed), "{days:?}");
    assert!(held > 0);
    let judged: Vec<Judged> = days.iter().map(|day| day.judged).collect();
    assert!(judged[..6].iter().all(|judged| *judged == Judged::Advance), "{judged:?}");
    assert_eq!((judged[8], judged[9]), (Judged::Back, Judged::Back), "{days:?}");
    assert!(days.last().unwrap().allowed >= 6_000, "it climbs again: {days:?}");
    let points = |value: fn(&super::Day) -> u32| -> Vec<(f64, f64)> {
        (1_u32..).zip(&days).map(|(number, day)| (f64::from(number), f64::from(value(day)))).collect()
    };
    let lines = vec![
        Line { name: "allowed", points: points(|day| day.allowed) },
        Line { name: "sent", points: points(|day| day.sent) },
    ];
    let title = "Warming one virtual IP for Gmail: trouble on days 9 and 10";
    Plot { title, x: "day", y: "messages a day", lines }.write("warm-up");
}

fn draw(day: &Day) {
    let line = |name: &'static str, minutes: &[u32]| Line {
        name,
        points: minutes
            .chunks(10)
            .zip(0_u32..)
            .map(|(part, at)| {
                let count = u32::try_from(part.len()).unwrap();
                (f64::from(at) / 6.0, f64::from(part.iter().sum::<u32>()) / f64::from(count))
            })
            .collect(),
    };
    let plot = |file: &str, title: &'static str, lines: Vec<Line>| {
        Plot { title, x: "hour", y: "messages a minute", lines }.write(file);
    };
    let gmail = day.pair("gmail", 1);
    let lines = vec![line("allowed", &gmail.allowed), line("taken", &gmail.taken)];
    plot("gmail", "Gmail takes 400 a minute from each address, 900 are waiting", lines);
    let microsoft = day.pair("microsoft-365", 1);
    let title = "Microsoft 365 takes 150 a minute, and 300 from ten o'clock; 200 are waiting";
    plot("microsoft-365", title, vec![line("taken", &microsoft.taken)]);
    let [parked, other] = [3, 4].map(|vip| &day.pair("microsoft-consumer", vip).taken);
    let title = "Outlook.com lists one of twelve addresses from six to nine o'clock";
    plot("listed", title, vec![line("the listed address", parked), line("another address", other)]);
    let lines = vec![line("Yahoo", &day.pair("yahoo", 1).taken), line("Seznam", &day.pair("seznam", 1).taken)];
    plot("trouble", "Yahoo puts mail off from 12 to 13, Seznam cannot be reached from 15 to 16", lines);
}
