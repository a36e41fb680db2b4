//! Events a second that nine endpoints are told of, alone and beside a tenth that takes requests and never answers.
//!
//! Two questions. What they can take: a window of past events is replayed to all of them. And what they get while
//! mail flows: how late each event comes. Nine alone before and after the dead one, so that a machine that
//! changes meanwhile is seen.

use std::time::{Duration, Instant};

use postern::ext::Timestamp;
use serde_json::json;

use super::flow::{End, Flow};
use super::receiver::{Got, HOST, Identity, Mood, Receiver};
use super::{PATIENCE, Stand, describe_machine, runtime, span, wanted};

const HEALTHY: usize = 9;
/// Events of a message: accepted, delivered.
const EVENTS_A_MESSAGE: usize = 2;
/// Messages whose events are replayed.
const MESSAGES: u64 = 2_500;
/// Messages a second while mail flows: what one core carries to nine endpoints besides.
const FLOW: f64 = 50.0;
/// A dead endpoint leaves the others at least this part of their rate.
const KEPT_MIN: f64 = 0.9;

/// The endpoints as the daemon knows them.
struct Endpoints<'a> {
    stand: &'a Stand,
    receivers: Vec<(String, Receiver)>,
}

impl<'a> Endpoints<'a> {
    async fn new(stand: &'a Stand, identity: &Identity) -> Self {
        let mut own = Self { stand, receivers: Vec::new() };
        for _ in 0..HEALTHY {
            own.add(identity, Mood::Answers).await;
        }
        own
    }

    async fn add(&mut self, identity: &Identity, mood: Mood) {
        let receiver = Receiver::start(identity, mood).await;
        let new = json!({
            "url": receiver.url, "name": format!("{mood:?}"), "batch": 1,
            "events": ["message.accepted", "message.delivered"],
        });
        let made = self.stand.caller().await.json("POST", "/tenants/shop/webhooks", Some(new.to_string())).await;
        receiver.learn(made["secret"].as_str().unwrap());
        self.receivers.push((made["webhook"]["id"].as_str().unwrap().to_owned(), receiver));
    }

    /// Removes the last.
    async fn remove_last(&mut self) {
        let (id, _receiver) = self.receivers.pop().unwrap();
        self.stand.caller().await.json("DELETE", &format!("/tenants/shop/webhooks/{id}"), None).await;
    }

    fn healthy(&self) -> impl Iterator<Item = &Receiver> {
        self.receivers.iter().take(HEALTHY).map(|(_, receiver)| receiver)
    }

    /// Waits until each healthy one has so many events.
    async fn until_each_has(&self, events: usize) {
        let began = Instant::now();
        while self.healthy().any(|receiver| receiver.events() < events) {
            let have: Vec<usize> = self.healthy().map(Receiver::events).collect();
            assert!(began.elapsed() < PATIENCE, "{have:?} of {events}\n{}", self.stand.instance.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn empty(&self, began: Instant) -> Vec<Got> {
        let got: Vec<Got> = self.healthy().map(|receiver| receiver.empty(began)).collect();
        let wrong: usize = got.iter().map(|one| one.wrong).sum();
        assert_eq!(wrong, 0, "signatures that do not verify");
        if let Some((_, dead)) = self.receivers.get(HEALTHY) {
            println!("  the dead one held {} requests", dead.empty(began).events);
        }
        got
    }

    /// The window is sent to all of them, the dead one first; the slowest one's events a second.
    async fn replay(&self, what: &str, (from, to): (Timestamp, Timestamp), events: usize) -> f64 {
        let mut caller = self.stand.caller().await;
        let window = json!({"from": from.rfc3339(), "to": to.rfc3339()}).to_string();
        let (before, began) = (self.stand.use_now(), Instant::now());
        for (id, _) in self.receivers.iter().rev() {
            caller.json("POST", &format!("/tenants/shop/webhooks/{id}/replay"), Some(window.clone())).await;
        }
        self.until_each_has(events).await;
        let (daemon, around) = self.stand.use_now().since(&before);
        let got = self.empty(began);
        let mut rates: Vec<f64> = got.iter().map(Got::per_second).collect();
        rates.sort_by(f64::total_cmp);
        let longest = got.iter().map(|one| one.seconds).fold(0.0, f64::max);
        let all: usize = got.iter().map(|one| one.events).sum();
        println!(
            "| replay, {what} | {all} | {:.0} | {:.0} / {:.0} / {:.0} | - | {daemon:.2} | {around:.2} | {} |",
            all as f64 / longest,
            rates[0],
            rates[HEALTHY / 2],
            rates[HEALTHY - 1],
            self.stand.resident()
        );
        rates[0]
    }

    /// Mail flows, and each endpoint is told of it; serials from `first` on. The serial behind the last.
    async fn while_mail_flows(&self, what: &str, first: u64) -> (u64, f64) {
        let messages = (FLOW * span().as_secs_f64()) as u64;
        let (before, began) = (self.stand.use_now(), Instant::now());
        let flow = Flow::start(self.stand, first..first + messages, Some(FLOW));
        let (accepted, broken) = flow.end(End::WhenAllIsSent).await;
        assert_eq!((accepted, broken), (messages, 0));
        self.until_each_has(usize::try_from(messages).unwrap() * EVENTS_A_MESSAGE).await;
        let (daemon, around) = self.stand.use_now().since(&before);
        let got = self.empty(began);
        let mut rates: Vec<f64> = got.iter().map(Got::per_second).collect();
        rates.sort_by(f64::total_cmp);
        let all: usize = got.iter().map(|one| one.events).sum();
        let longest = got.iter().map(|one| one.seconds).fold(0.0, f64::max);
        let late = |part: f64| got.iter().map(|one| one.lag(part)).fold(0.0, f64::max);
        println!(
            "| {FLOW} messages/s, {what} | {all} | {:.0} | {:.0} / {:.0} / {:.0} | {:.0} / {:.0} | {daemon:.2} | {around:.2} | {} |",
            all as f64 / longest,
            rates[0],
            rates[HEALTHY / 2],
            rates[HEALTHY - 1],
            late(0.5),
            late(0.99),
            self.stand.resident()
        );
        (first + messages, rates[0])
    }
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn nine_endpoints_alone_and_beside_a_dead_one() {
    runtime().block_on(async {
        describe_machine();
        let identity = Identity::make();
        let stand = Stand::start(&[HOST], Some(&identity.pem())).await;
        let messages = wanted("POSTERN_FIGURES_MESSAGES", MESSAGES).max(1);
        let from = Timestamp::now();
        let (accepted, broken) = Flow::start(&stand, 0..messages, None).end(End::WhenAllIsSent).await;
        assert_eq!((accepted, broken), (messages, 0));
        stand.until_nothing_is_queued().await;
        let window = (from, Timestamp::now());
        let events = usize::try_from(messages).unwrap() * EVENTS_A_MESSAGE;
        println!(
            "| what | events in all | events/s in all | events/s of an endpoint: least / middle / most \
             | ms late: p50 / p99, the latest endpoint's | processors: daemon | processors: around it | MiB resident |"
        );
        println!("|{}", "---|".repeat(8));
        let mut endpoints = Endpoints::new(&stand, &identity).await;
        let first = endpoints.replay("nine alone", window, events).await;
        let (next, live_first) = endpoints.while_mail_flows("nine alone", messages).await;
        endpoints.add(&identity, Mood::IsDead).await;
        let beside = endpoints.replay("nine beside a dead one", window, events).await;
        let (next, live_beside) = endpoints.while_mail_flows("nine beside a dead one", next).await;
        endpoints.remove_last().await;
        let again = endpoints.replay("nine alone again", window, events).await;
        let (_, live_again) = endpoints.while_mail_flows("nine alone again", next).await;
        let kept = 2.0 * beside / (first + again);
        let live_kept = 2.0 * live_beside / (live_first + live_again);
        println!("beside a dead one the slowest of nine keeps {kept:.2} of its rate, {live_kept:.2} while mail flows");
        assert!(kept >= KEPT_MIN && live_kept >= KEPT_MIN, "a dead endpoint slows the others");
    });
}
