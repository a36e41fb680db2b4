//! The room over a store in memory, with a receiver that answers by script and a clock that is a value.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde_json::Value;

use super::*;
use crate::access::{Action, Actor, Role};
use crate::events::{self, Accepted, Entry, Event, EventKind, History, InstanceEvent, MailEvent, Peer, history_key};
use crate::mail::{Address, Class, QueueId, Reply, ReversePath, VipId};
use crate::net::{Answer, Line, Outgoing, PostError, Target};
use crate::records::AdminError;
use crate::store::{MemoryStore, Store, codec, prefix};

const START: Timestamp = Timestamp(1_795_342_500_000);
const TENANT: TenantId = TenantId(1);
const OTHER: TenantId = TenantId(2);
const URL: &str = "https://one.example/in";

/// What a receiver was sent.
#[derive(Clone, Debug)]
struct Sent {
    host: String,
    id: String,
    signature: String,
    authorization: Option<String>,
    body: Value,
}

/// The status to be answered; `None` is never.
type Script = Box<dyn Fn(&Sent) -> Option<u16> + Send + Sync>;

struct Receivers {
    sent: Mutex<Vec<Sent>>,
    script: Mutex<Arc<Script>>,
}

#[async_trait]
impl Post for Receivers {
    async fn post(&self, _: &Line, target: &Target, request: Outgoing, _: Duration) -> Result<Answer, PostError> {
        let field = |name: &str| request.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone());
        let sent = Sent {
            host: target.host(),
            id: field("webhook-id").unwrap(),
            signature: field("webhook-signature").unwrap(),
            authorization: field("authorization"),
            body: serde_json::from_slice(&request.body).unwrap(),
        };
        let script = Arc::clone(&self.script.lock().unwrap());
        self.sent.lock().unwrap().push(sent.clone());
        let Some(status) = (**script)(&sent) else { return std::future::pending().await };
        let peer = ([192, 0, 2, 1], 443).into();
        Ok(Answer { status, retry_after: None, body: b"said".to_vec(), peer })
    }
}

struct World {
    store: Arc<MemoryStore>,
    receivers: Arc<Receivers>,
    room: Arc<Webhooks>,
    clock: Arc<AtomicU64>,
    bell: Bell,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

fn script(answers: impl Fn(&Sent) -> Option<u16> + Send + Sync + 'static) -> Arc<Script> {
    Arc::new(Box::new(answers))
}

impl World {
    fn open(store: Arc<MemoryStore>, clock: Arc<AtomicU64>, receivers: Arc<Receivers>) -> Self {
        Self::open_by(Calendar::default(), store, clock, receivers)
    }

    fn open_by(calendar: Calendar, store: Arc<MemoryStore>, clock: Arc<AtomicU64>, receivers: Arc<Receivers>) -> Self {
        let (bell, told) = (Bell::default(), Arc::clone(&clock));
        let parts = Parts {
            log: EventLog::new(store.clone()),
            bell: bell.clone(),
            key: Arc::new(MasterKey::from_bytes([7; 32])),
            post: receivers.clone(),
            names: Names { tenant: Arc::new(|id| format!("t{}", id.0)), account: Arc::new(|id| format!("a{}", id.0)) },
            clock: Arc::new(move || Timestamp(told.load(Ordering::SeqCst))),
            calendar,
            settings: Settings::default(),
        };
        let (room, shutdown) = (Arc::new(Webhooks::open(parts).unwrap()), Shutdown::new());
        let task = tokio::spawn(Arc::clone(&room).run(shutdown.clone()));
        Self { store, receivers, room, clock, bell, shutdown, task }
    }

    fn new(answers: impl Fn(&Sent) -> Option<u16> + Send + Sync + 'static) -> Self {
        let receivers = Receivers { sent: Mutex::default(), script: Mutex::new(script(answers)) };
        Self::open(Arc::new(MemoryStore::new()), Arc::new(AtomicU64::new(START.0)), Arc::new(receivers))
    }

    /// As after the daemon was started again, with a calendar that goes on from now.
    async fn restarted_by_calendar(self) -> Self {
        self.shutdown.cancel();
        self.task.await.unwrap();
        let now = Timestamp(self.clock.load(Ordering::SeqCst));
        Self::open_by(Calendar::resume(None, now), self.store, self.clock, self.receivers)
    }

    /// As after the daemon was started again.
    async fn restarted(self) -> Self {
        self.shutdown.cancel();
        self.task.await.unwrap();
        Self::open(self.store, self.clock, self.receivers)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::SeqCst))
    }

    /// Time passes, and every lane looks.
    fn pass(&self, span: Duration) {
        self.clock.fetch_add(u64::try_from(span.as_millis()).unwrap(), Ordering::SeqCst);
        records::read(&self.room.handles).values().for_each(|handle| handle.nudge.notify_one());
    }

    /// The clock is set back, and every lane looks.
    fn set_back(&self, span: Duration) {
        self.clock.fetch_sub(u64::try_from(span.as_millis()).unwrap(), Ordering::SeqCst);
        self.pass(Duration::ZERO);
    }

    fn answer(&self, answers: impl Fn(&Sent) -> Option<u16> + Send + Sync + 'static) {
        *self.receivers.script.lock().unwrap() = script(answers);
    }

    fn sent(&self) -> Vec<Sent> {
        self.receivers.sent.lock().unwrap().clone()
    }

    async fn add(&self, url: &str, change: impl FnOnce(&mut NewWebhook)) -> Made {
        let mut new = NewWebhook {
            name: String::new(),
            url: url.to_owned(),
            secondary_url: None,
            kinds: Kind::usual(),
            batch: 1,
            login: None,
        };
        change(&mut new);
        self.room.add(&Actor::local(0), TENANT, new, self.now()).await.unwrap()
    }

    /// A message of `tenant` is accepted; its id.
    async fn accept(&self, tenant: TenantId, recipients: u16) -> QueueId {
        let (id, now, mut batch) = (QueueId::new(self.now()), self.now(), Batch::new());
        let address = |number| Address::parse(&format!("r{number}@x.example")).unwrap();
        let history = History {
            tenant,
            accepted: now,
            reverse_path: ReversePath(None),
            header_from: "shop@shop.example".to_owned(),
            subject: "Order".to_owned(),
            message_id: "<1@shop.example>".to_owned(),
            recipients: (0..recipients).map(address).collect(),
            labels: labels(),
            entry: Some(Entry {
                account: Some(SmtpAccountId(5)),
                vip: VipId(1),
                class: Class::Transactional,
                source: "smtp".to_owned(),
                size_bytes: 9,
            }),
            returns: None,
            signed: None,
        };
        batch.set(history_key(id), history.to_bytes());
        let accepted = Accepted {
            tenant,
            account: None,
            vip: VipId(1),
            class: Class::Transactional,
            source: "smtp".to_owned(),
            size_bytes: 9,
            recipients,
            signatures: Vec::new(),
        };
        self.record(batch, EventKind::Mail(id, MailEvent::Accepted(accepted))).await;
        id
    }

    async fn deliver(&self, id: QueueId) {
        let text = |text: &str| text.to_owned();
        let peer =
            Peer { host: text("mx"), address: text("192.0.2.1:25"), source: text("192.0.2.9"), tls: text("none") };
        let reply = Reply::enhanced(250, 0, 0, "taken");
        let event = MailEvent::Delivered { recipients: vec![0], peer, reply };
        self.record(Batch::new(), EventKind::Mail(id, event)).await;
    }

    async fn record(&self, mut batch: Batch, kind: EventKind) {
        events::record(&mut batch, &Event { at: self.now(), kind });
        self.store.commit(batch).await.unwrap();
        self.bell.ring();
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..6_000 {
            if is_so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: {:?}", self.sent());
    }

    async fn until_sent(&self, count: usize) -> Vec<Sent> {
        self.until(&format!("{count} requests"), |own| own.sent().len() >= count).await;
        self.sent()
    }

    fn doing(&self, webhook: &Webhook) -> Doing {
        self.room.doing(webhook.id).unwrap()
    }

    fn attempts(&self, webhook: &Webhook) -> Vec<(Key, Attempt)> {
        self.room.attempts(&Actor::local(0), (TENANT, webhook.id), None, 250).unwrap()
    }

    fn logged(&self) -> Vec<EventKind> {
        let all = self.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap();
        all.iter().map(|(_, bytes)| codec::decode::<Event>(bytes).unwrap().kind).collect()
    }
}

/// The `type` of each.
fn types(sent: &[Sent]) -> Vec<String> {
    sent.iter().map(|one| one.body["type"].as_str().unwrap_or("batch").to_owned()).collect()
}

/// What the sender said of a message.
fn labels() -> crate::mail::Labels {
    let mut labels = crate::mail::Labels::default();
    labels.tag("orders").unwrap();
    labels.describe("order", "4711").unwrap();
    labels
}

#[tokio::test]
async fn an_endpoint_is_told_of_its_tenants_mail_once_and_a_restart_repeats_nothing() {
    let world = World::new(|_| Some(200));
    let made = world.add(URL, |_| {}).await;
    world.accept(OTHER, 1).await;
    let id = world.accept(TENANT, 1).await;
    world.deliver(id).await;
    let sent = world.until_sent(2).await;
    let mut told = types(&sent);
    told.sort();
    assert_eq!(told, ["message.accepted", "message.delivered"]);
    let delivered = sent.iter().find(|one| one.body["type"] == "message.delivered").unwrap();
    let data = &delivered.body["data"];
    assert_eq!((&data["tenant"], &data["message"]["id"]), (&"t1".into(), &id.to_string().into()));
    assert_eq!(data["recipients"][0]["address"], "r0@x.example");
    assert_eq!((&data["reply"]["code"], &data["message"]["smtp_account"]), (&250.into(), &"a5".into()));
    assert_eq!(delivered.body["id"].as_str().unwrap(), delivered.id);
    assert!(made.secret.starts_with("whsec_") && delivered.signature.starts_with("v1,"));
    let noted = |own: &World| own.attempts(&made.webhook).len() == 2;
    world.until("attempts are noted", noted).await;
    let world = world.restarted().await;
    world.accept(TENANT, 1).await;
    let sent = world.until_sent(3).await;
    assert_eq!((sent.len(), sent[2].body["type"].as_str().unwrap()), (3, "message.accepted"));
}

#[tokio::test]
async fn a_request_that_failed_is_made_again_with_its_id_while_others_go_on() {
    let world = World::new(|sent| Some(if sent.body["type"] == "message.accepted" { 500 } else { 200 }));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let id = world.accept(TENANT, 1).await;
    world.until_sent(1).await;
    world.deliver(id).await;
    world.until("the other one is taken", |own| own.attempts(&webhook).iter().any(|(_, one)| one.is_success())).await;
    assert_eq!(world.doing(&webhook).waiting, 1);
    let attempts = world.attempts(&webhook);
    let failed = attempts.iter().find(|(_, one)| !one.is_success()).unwrap();
    assert!(matches!(failed.1.after, After::Again(_)) && failed.1.answer == "said", "{failed:?}");
    // The plan survives a restart.
    let world = world.restarted().await;
    world.answer(|_| Some(204));
    world.pass(Duration::from_secs(60));
    world.until("it is made again", |own| own.doing(&webhook).waiting == 0).await;
    let sent = world.sent();
    let same: Vec<_> = sent.iter().filter(|one| one.body["type"] == "message.accepted").map(|one| &one.id).collect();
    assert!(same.len() == 2 && same[0] == same[1], "{same:?}");
    let mine = world.attempts(&webhook).into_iter().filter(|(_, one)| one.id == *same[0]);
    assert_eq!(mine.map(|(_, one)| one.number).collect::<Vec<_>>(), [2, 1], "newest first");
}

const TEN_YEARS: Duration = Duration::from_secs(3_650 * 24 * 3_600);

#[tokio::test]
async fn a_clock_ten_years_ahead_gives_up_no_endpoint() {
    let world = World::new(|_| Some(500)).restarted_by_calendar().await;
    let webhook = world.add(URL, |_| {}).await.webhook;
    world.accept(TENANT, 1).await;
    world.until("it fails", |own| own.doing(&webhook).waiting == 1).await;
    world.pass(TEN_YEARS);
    world.until("it fails again", |own| own.attempts(&webhook).len() == 2).await;
    world.accept(TENANT, 1).await;
    world.until("and is probed", |own| own.attempts(&webhook).len() == 3).await;
    assert!(world.room.webhook(webhook.id).unwrap().is_enabled());
    world.answer(|_| Some(200));
    world.set_back(TEN_YEARS);
    world.until("all are taken", |own| own.doing(&webhook).waiting == 0).await;
}

#[tokio::test]
async fn what_failed_under_a_clock_ten_years_ahead_is_made_again_once_the_clock_is_right() {
    let world = World::new(|_| Some(500));
    world.pass(TEN_YEARS);
    let webhook = world.add(URL, |_| {}).await.webhook;
    world.accept(TENANT, 1).await;
    world.until("it fails", |own| own.doing(&webhook).waiting == 1).await;
    world.accept(TENANT, 1).await;
    world.until("one is probed", |own| own.doing(&webhook).waiting == 2).await;
    // The next probe and both repeats are ten years away, in memory and on disk.
    let world = world.restarted().await;
    world.set_back(TEN_YEARS);
    world.until("both are made again", |own| own.attempts(&webhook).len() >= 4).await;
    let since = world.doing(&webhook).progress.failing_since;
    assert!(since.is_some_and(|since| since <= world.now()), "{since:?}");
    world.accept(TENANT, 1).await;
    world.pass(Duration::from_secs(61));
    world.until("a probe at the right time", |own| own.doing(&webhook).waiting == 3).await;
    world.answer(|_| Some(200));
    world.pass(Duration::from_secs(27 * 3_600));
    world.until("all are taken", |own| own.doing(&webhook).waiting == 0).await;
    assert_eq!(world.attempts(&webhook).iter().filter(|(_, one)| one.is_success()).count(), 3);
}

#[tokio::test]
async fn a_request_is_given_up_after_ten_attempts() {
    let world = World::new(|sent| Some(if sent.body["type"] == "message.accepted" { 503 } else { 200 }));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let id = world.accept(TENANT, 1).await;
    for made in 1..=10_usize {
        let tried = |own: &World| own.attempts(&webhook).iter().filter(|(_, one)| !one.is_success()).count() >= made;
        world.until(&format!("attempt {made}"), tried).await;
        // Something succeeds in between, so that the endpoint is not taken for dead.
        let before = world.attempts(&webhook).len();
        world.deliver(id).await;
        world.until("another one is taken", |own| own.attempts(&webhook).len() > before).await;
        world.pass(Duration::from_secs(30 * 3_600));
    }
    world.until("it is given up", |own| own.doing(&webhook).waiting == 0).await;
    let last = world.attempts(&webhook).into_iter().find(|(_, one)| !one.is_success()).unwrap().1;
    assert_eq!((last.number, last.after), (10, After::GivenUp));
    assert!(world.room.webhook(webhook.id).unwrap().is_enabled());
}

#[tokio::test]
async fn one_dead_endpoint_keeps_none_of_nine_others_waiting() {
    let world = World::new(|sent| if sent.host == "dead.example" { None } else { Some(200) });
    world.add("https://dead.example/", |_| {}).await;
    for number in 0..9 {
        world.add(&format!("https://h{number}.example/"), |_| {}).await;
    }
    for _ in 0..20 {
        world.accept(TENANT, 1).await;
    }
    let told = |own: &World| own.sent().iter().filter(|one| one.host != "dead.example").count() == 9 * 20;
    world.until("nine endpoints are told of everything", told).await;
    assert!(world.sent().iter().any(|one| one.host == "dead.example"));
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_probed_and_everything_comes_when_it_is_back() {
    let world = World::new(|_| Some(500));
    let webhook = world.add(URL, |_| {}).await.webhook;
    world.accept(TENANT, 1).await;
    world.until("it fails", |own| own.doing(&webhook).progress.failing_since.is_some()).await;
    let mut wanted = std::collections::BTreeSet::new();
    for _ in 0..200 {
        wanted.insert(world.accept(TENANT, 1).await.to_string());
    }
    // One of them is the probe; the others stay in the log.
    world.until("a probe", |own| own.attempts(&webhook).len() >= 2).await;
    assert!(world.doing(&webhook).waiting <= 3, "{:?}", world.doing(&webhook));
    world.answer(|_| Some(200));
    world.pass(Duration::from_secs(120));
    let taken = |own: &World| {
        let attempts = own.room.attempts(&Actor::local(0), (TENANT, webhook.id), None, 1_000).unwrap();
        let taken = attempts.iter().filter(|(_, one)| one.is_success()).filter_map(|(_, one)| one.message);
        let taken: std::collections::BTreeSet<String> = taken.map(|id| id.to_string()).collect();
        wanted.is_subset(&taken)
    };
    world.until("everything is told", taken).await;
    world.until("nothing waits", |own| own.doing(&webhook).waiting == 0).await;
    assert_eq!(world.doing(&webhook).progress.failing_since, None);
}

#[tokio::test]
async fn gone_disables_at_once_and_five_days_of_failures_do_and_others_are_told() {
    let world = World::new(|sent| Some(if sent.host == "gone.example" { 410 } else { 200 }));
    let gone = world.add("https://gone.example/", |_| {}).await.webhook;
    let watcher = world.add("https://watch.example/", |new| new.kinds = vec![Kind::WebhookDisabled]).await.webhook;
    world.accept(TENANT, 1).await;
    let told = |own: &World, id: WebhookId| {
        own.sent().iter().any(|one| one.host == "watch.example" && one.body["data"]["webhook"] == id.to_string())
    };
    world.until("the other webhook is told", |own| told(own, gone.id)).await;
    assert!(!world.room.webhook(gone.id).unwrap().is_enabled());
    let asked = world.sent().iter().filter(|one| one.host == "gone.example").count();
    assert_eq!(asked, 1, "410 is final");

    let dead = world.add("https://dead.example/", |_| {}).await.webhook;
    world.answer(|sent| Some(if sent.host == "dead.example" { 500 } else { 200 }));
    world.accept(TENANT, 1).await;
    world.until("it fails", |own| own.doing(&dead).progress.failing_since.is_some()).await;
    world.pass(schedule::FAILING_MAX);
    world.until("the other webhook is told", |own| told(own, dead.id)).await;
    let Standing::Disabled { reason, .. } = &world.room.webhook(dead.id).unwrap().standing else { panic!() };
    assert!(reason.contains("5 days") && reason.contains("answered 500"), "{reason}");
    let disabled = world
        .logged()
        .into_iter()
        .filter(|kind| matches!(kind, EventKind::Instance(InstanceEvent::WebhookDisabled { .. })));
    assert_eq!(disabled.count(), 2);

    // Enabled again, it is told of what happens from then on.
    world.answer(|_| Some(200));
    let before = world.sent().len();
    world.accept(TENANT, 1).await;
    let change = WebhookChange { is_enabled: Some(true), ..WebhookChange::default() };
    let caught_up = |own: &World| own.room.shared.feed.until() == own.room.shared.parts.log.end().unwrap();
    world.until("the feed has read that", caught_up).await;
    world.room.change(&Actor::local(0), (TENANT, dead.id), change, world.now()).await.unwrap();
    let next = world.accept(TENANT, 1).await.to_string();
    let is_next = |one: &Sent| one.host == "dead.example" && one.body["data"]["message"]["id"] == next;
    world.until("the new one", |own| own.sent().iter().any(is_next)).await;
    let own = world.sent().into_iter().skip(before).filter(|one| one.host == "dead.example");
    let new: Vec<_> = own.filter(|one| !is_next(one)).collect();
    // What was to be made again when it was disabled may come; what happened meanwhile does not.
    assert!(new.len() <= 1, "{new:?}");
    assert!(world.room.webhook(watcher.id).unwrap().is_enabled());
}

#[tokio::test]
async fn the_secondary_address_is_asked_when_the_first_does_not_take_it() {
    let world = World::new(|sent| Some(if sent.host == "one.example" { 302 } else { 200 }));
    let login = NewLogin { user: "hook".into(), password: zeroize::Zeroizing::new("pass".into()) };
    let webhook = world
        .add(URL, |new| {
            new.secondary_url = Some("https://two.example/in".to_owned());
            new.login = Some(login);
        })
        .await
        .webhook;
    world.accept(TENANT, 1).await;
    let sent = world.until_sent(2).await;
    assert_eq!((sent[0].host.as_str(), sent[1].host.as_str()), ("one.example", "two.example"));
    assert!(
        sent[0].id == sent[1].id && sent.iter().all(|one| one.authorization.as_deref() == Some("Basic aG9vazpwYXNz"))
    );
    world.until("both are noted", |own| own.attempts(&webhook).len() == 2).await;
    assert_eq!(world.doing(&webhook).waiting, 0);
}

#[tokio::test]
async fn many_events_go_in_one_request_and_many_recipients_in_several() {
    let world = World::new(|_| Some(200));
    world.add(URL, |new| new.batch = 10).await;
    let many = u16::try_from(payload::RECIPIENTS_MAX).unwrap() * 2 + 1;
    world.accept(TENANT, many).await;
    let events = |own: &World| own.sent().iter().map(|one| one.body.as_array().unwrap().len()).sum::<usize>();
    world.until("three parts", |own| events(own) == 3).await;
    let sent = world.sent();
    let parts = sent.iter().flat_map(|one| one.body.as_array().unwrap());
    let told: usize = parts.map(|part| part["data"]["recipients"].as_array().unwrap().len()).sum();
    assert_eq!(told, usize::from(many));
}

#[tokio::test]
async fn a_rotation_signs_with_both_secrets_for_a_while() {
    let world = World::new(|_| Some(200));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let which = (TENANT, webhook.id);
    let rotated = world.room.rotate(&Actor::local(0), which, OVERLAP_DEFAULT, world.now()).await.unwrap();
    assert_eq!(rotated.webhook.secrets.len(), 2);
    world.accept(TENANT, 1).await;
    assert_eq!(world.until_sent(1).await[0].signature.split(' ').count(), 2);
    world.pass(OVERLAP_DEFAULT + Duration::from_secs(1));
    world.accept(TENANT, 1).await;
    assert_eq!(world.until_sent(2).await[1].signature.split(' ').count(), 1);
    let too_long = world.room.rotate(&Actor::local(0), which, OVERLAP_MAX * 2, world.now()).await;
    assert!(matches!(too_long, Err(AdminError::Fields(_))));
    // The store holds neither secret in the clear.
    let secret = signature_octets(&rotated.secret);
    let all = world.store.range(&[0], &[255], usize::MAX).unwrap();
    assert!(!all.iter().any(|(_, value)| memchr::memmem::find(value, &secret).is_some()));
}

fn signature_octets(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text.strip_prefix("whsec_").unwrap()).unwrap()
}

#[tokio::test]
async fn one_request_and_a_window_are_replayed_with_the_ids_they_had() {
    let world = World::new(|_| Some(200));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let which = (TENANT, webhook.id);
    for _ in 0..3 {
        world.accept(TENANT, 1).await;
        world.pass(Duration::from_secs(60));
    }
    world.until("three attempts are noted", |own| own.attempts(&webhook).len() == 3).await;
    let (key, attempt) = world.attempts(&webhook).remove(1);
    world.room.replay_one(&Actor::local(0), which, &attempt_name(&key), world.now()).await.unwrap();
    let sent = world.until_sent(4).await;
    assert_eq!(sent[3].id, attempt.id);
    let same: Vec<_> = sent.iter().filter(|one| one.id == attempt.id).map(|one| &one.body).collect();
    assert!(same.len() == 2 && same[0] == same[1], "{same:?}");
    world.until("it is noted", |own| own.attempts(&webhook).len() == 4).await;
    // The first two minutes hold the first two events.
    let window = (START, START.plus(Duration::from_secs(61)));
    world.room.replay_window(&Actor::local(0), which, window, world.now()).await.unwrap();
    let sent = world.until_sent(6).await;
    world.until("the window is done", |own| !own.doing(&webhook).is_replaying).await;
    let ids = |some: &[Sent]| some.iter().map(|one| one.id.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&sent[4..]), ids(&sent[..2]));
    assert_eq!(world.sent().len(), 6);
    let empty = world.room.replay_window(&Actor::local(0), which, (START, START), world.now()).await;
    assert!(matches!(empty, Err(AdminError::Invalid(_))));
}

#[tokio::test]
async fn a_window_of_more_events_than_one_round_makes_is_replayed_to_its_end() {
    for batch in [1, 7] {
        let world = World::new(|_| Some(200));
        let webhook = world.add(URL, |new| new.batch = batch).await.webhook;
        let count = 700;
        for _ in 0..count {
            world.accept(TENANT, 1).await;
        }
        world.pass(Duration::from_secs(60));
        let events = |own: &World| {
            let bodies = own.sent().into_iter().map(|one| one.body);
            bodies.map(|body| body.as_array().map_or(1, Vec::len)).sum::<usize>()
        };
        world.until("all are told", |own| events(own) == count).await;
        let window = (START, START.plus(Duration::from_secs(30)));
        world.room.replay_window(&Actor::local(0), (TENANT, webhook.id), window, world.now()).await.unwrap();
        world.until("all are told again", |own| events(own) == 2 * count).await;
        world.until("the window is done", |own| !own.doing(&webhook).is_replaying).await;
        assert_eq!(events(&world), 2 * count, "batches of {batch}");
    }
}

#[tokio::test]
async fn a_test_says_what_became_of_it_and_changes_nothing() {
    let world = World::new(|_| Some(503));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let rows = world.room.test(&Actor::local(0), (TENANT, webhook.id), world.now()).await.unwrap();
    assert_eq!((rows.len(), &rows[0].1.ending, rows[0].1.after), (1, &Ending::Answered(503), After::GivenUp));
    assert_eq!(world.sent()[0].body["type"], TEST);
    assert_eq!(world.doing(&webhook).progress.failing_since, None);
}

#[tokio::test]
async fn a_removed_webhook_leaves_nothing_behind() {
    let world = World::new(|_| Some(500));
    let webhook = world.add(URL, |_| {}).await.webhook;
    world.accept(TENANT, 1).await;
    world.until("it fails", |own| own.doing(&webhook).waiting > 0).await;
    world.room.remove(&Actor::local(0), (TENANT, webhook.id), world.now()).await.unwrap();
    let left = world.store.range(&[prefix::WEBHOOK], &after_prefix(&[prefix::WEBHOOK]), usize::MAX).unwrap();
    assert!(left.is_empty(), "{left:?}");
    // Left behind by a removal that was cut off: gone after the next start.
    let mut batch = Batch::new();
    batch.set(record::new_attempt_key(webhook.id, START), vec![1]);
    world.store.commit(batch).await.unwrap();
    let world = world.restarted().await;
    let all = [prefix::WEBHOOK];
    world.until("it is swept", |own| own.store.range(&all, &after_prefix(&all), 1).unwrap().is_empty()).await;
}

#[tokio::test]
async fn what_is_not_acceptable_is_refused_and_others_have_no_part_in_it() {
    let world = World::new(|_| Some(200));
    let webhook = world.add(URL, |_| {}).await.webhook;
    let change = |url: &str| WebhookChange { url: Some(url.to_owned()), ..WebhookChange::default() };
    for url in ["http://one.example/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1:8443/x", "nonsense"] {
        let changed = world.room.change(&Actor::local(0), (TENANT, webhook.id), change(url), START).await;
        assert!(matches!(changed, Err(AdminError::Fields(_))), "{url}");
    }
    let none = WebhookChange { kinds: Some(Vec::new()), ..WebhookChange::default() };
    assert!(world.room.change(&Actor::local(0), (TENANT, webhook.id), none, START).await.is_err());
    let stranger = Actor::of("o", Role::TenantOwner(OTHER));
    assert!(matches!(world.room.list(&stranger, TENANT), Err(AdminError::Forbidden(_))));
    let elsewhere = world.room.one(&stranger, (OTHER, webhook.id), Action::Read);
    assert!(matches!(elsewhere, Err(AdminError::Missing(_))), "another tenant's id does not exist");
    let reader = Actor::of("s", Role::Support(TENANT));
    assert!(world.room.list(&reader, TENANT).is_ok());
    assert!(world.room.remove(&reader, (TENANT, webhook.id), START).await.is_err());
    for _ in 1..WEBHOOKS_MAX {
        world.add(URL, |_| {}).await;
    }
    let new = NewWebhook {
        name: String::new(),
        url: URL.to_owned(),
        secondary_url: None,
        kinds: Kind::usual(),
        batch: 1,
        login: None,
    };
    assert!(matches!(world.room.add(&Actor::local(0), TENANT, new, START).await, Err(AdminError::Invalid(_))));
}

#[tokio::test]
async fn secrets_are_sealed_anew_with_the_master_key() {
    let world = World::new(|_| Some(200));
    let login = NewLogin { user: "hook".into(), password: zeroize::Zeroizing::new("pass".into()) };
    let webhook = world.add(URL, |new| new.login = Some(login)).await.webhook;
    let (old, new) = (MasterKey::from_bytes([7; 32]), MasterKey::from_bytes([8; 32]));
    let both = new.clone().with_other(&old);
    assert_eq!(reseal(&*world.store, &new, &both).await.unwrap(), (2, Vec::new()));
    assert_eq!(reseal(&*world.store, &new, &both).await.unwrap(), (0, Vec::new()));
    let stored = world.store.get(&record::webhook_key(webhook.id)).unwrap().unwrap();
    let stored: Webhook = codec::decode(&stored).unwrap();
    assert!(new.open(&resealing::secret_purpose(webhook.id), &stored.secrets[0].sealed).is_ok());
}

#[tokio::test]
async fn tags_and_metadata_come_back_with_everything_told_of_their_message() {
    let world = World::new(|_| Some(200));
    world.add(URL, |_| {}).await;
    let id = world.accept(TENANT, 1).await;
    world.deliver(id).await;
    for request in &world.until_sent(2).await {
        let message = &request.body["data"]["message"];
        let told = serde_json::json!([message["tags"], message["metadata"]]);
        assert_eq!(told, serde_json::json!([["orders"], {"order": "4711"}]), "{message}");
    }
}
