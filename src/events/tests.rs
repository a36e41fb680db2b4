//! How events are consumed, shown and kept.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::driver::passed;
use super::*;
use crate::background::Shutdown;
use crate::mail::{Address, ReversePath};
use crate::store::{MemoryStore, Store, after_prefix, prefix};

const NOON: Timestamp = Timestamp(1_795_348_800_000);
const HOUR: u64 = 3_600_000;

fn mail(id: QueueId, event: MailEvent, at: Timestamp) -> Event {
    Event { at, kind: EventKind::Mail(id, event) }
}

async fn append(store: &dyn Store, events: &[Event]) {
    let mut batch = Batch::new();
    events.iter().for_each(|event| record(&mut batch, event));
    store.commit(batch).await.unwrap();
}

fn stored(store: &dyn Store) -> usize {
    store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap().len()
}

/// Remembers what it saw; fails as often as it is told first.
#[derive(Default)]
struct Witness {
    seen: Mutex<Vec<Event>>,
    failures: AtomicUsize,
}

#[async_trait]
impl Consumer for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }

    async fn consume(&self, events: &[Event]) -> Result<(), Retry> {
        if self.failures.load(Ordering::Acquire) > 0 {
            self.failures.fetch_sub(1, Ordering::AcqRel);
            return Err(Retry("not now".into()));
        }
        self.seen.lock().unwrap().extend_from_slice(events);
        Ok(())
    }
}

async fn run_until(store: &Arc<MemoryStore>, witness: &Arc<Witness>, bell: &Bell, count: usize) {
    let shutdown = Shutdown::new();
    let consumer: Arc<dyn Consumer> = witness.clone();
    let watch = async {
        while witness.seen.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
    };
    tokio::join!(drive(&**store, &consumer, bell, &shutdown), watch);
}

/// Octets that a release without dialogues stored: variants are numbered, and later ones come behind them.
#[test]
fn events_of_before_are_read_as_they_were_and_an_attempt_is_one_more() {
    let id = [7; 16];
    let mail = |rest: &[u8]| [&[1, 5, 0][..], &id, rest].concat();
    let delivered = mail(&[2, 1, 0, 1, b'h', 1, b'a', 1, b's', 1, b't', 250, 1, 1, 2, 0, 0, 1, 2, b'o', b'k']);
    let stalled = mail(&[25, 1, 3, 4, b'M', b'A', b'I', b'L']);
    let peer = Peer { host: "h".into(), address: "a".into(), source: "s".into(), tls: "t".into() };
    let reply = Reply::enhanced(250, 0, 0, "ok");
    let events = [
        (delivered, MailEvent::Delivered { recipients: vec![0], peer, reply }),
        (stalled, MailEvent::Stalled { recipients: vec![3], phase: "MAIL".to_owned() }),
    ];
    for (bytes, told) in events {
        let event = mail_event(told);
        assert_eq!((codec::encode(&event), codec::decode::<Event>(&bytes)), (bytes.clone(), Ok(event)));
    }
    let dialogue = StoredDialogue::of(&crate::mail::Dialogue::default());
    let event = mail_event(MailEvent::Attempted { recipients: vec![0], dialogue });
    let bytes = mail(&[26, 1, 0, 5, 1, 0, 0, 0, 0]);
    assert_eq!((codec::encode(&event), codec::decode::<Event>(&bytes)), (bytes.clone(), Ok(event)));
}

fn mail_event(told: MailEvent) -> Event {
    mail(QueueId([7; 16]), told, Timestamp(5))
}

#[tokio::test]
async fn a_consumer_sees_every_event_in_order_and_continues_where_it_stopped() {
    let store = Arc::new(MemoryStore::new());
    let (bell, witness) = (Bell::default(), Arc::new(Witness::default()));
    let id = QueueId::new(NOON);
    let events: Vec<Event> =
        (0..1_300).map(|at| mail(id, MailEvent::Suppressed { recipients: vec![at] }, NOON)).collect();
    append(&*store, &events[..1_200]).await;
    witness.failures.store(1, Ordering::Release);
    run_until(&store, &witness, &bell, 1_200).await;
    append(&*store, &events[1_200..]).await;
    bell.ring();
    run_until(&store, &witness, &bell, 1_300).await;
    assert_eq!(*witness.seen.lock().unwrap(), events);
    assert!(passed(&*store, "witness").unwrap().is_some());
}

#[tokio::test]
async fn an_idle_consumer_commits_nothing() {
    let store = Arc::new(MemoryStore::new());
    let consumer: Arc<dyn Consumer> = Arc::new(Witness::default());
    let shutdown = Shutdown::new();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        shutdown.cancel();
    };
    let bell = Bell::default();
    tokio::join!(drive(&*store, &consumer, &bell, &shutdown), stop);
    assert_eq!(store.commits(), 0);
}

#[tokio::test]
async fn a_damaged_event_is_skipped_and_stops_nobody() {
    let store = Arc::new(MemoryStore::new());
    let mut batch = Batch::new();
    batch.append(vec![prefix::EVENT], b"\xffgarbage".to_vec());
    store.commit(batch).await.unwrap();
    append(&*store, &[mail(QueueId::new(NOON), MailEvent::Retired, NOON)]).await;
    let witness = Arc::new(Witness::default());
    run_until(&store, &witness, &Bell::default(), 1).await;
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn logged(format: LogFormat, events: &[Event], history: Option<(QueueId, History)>) -> String {
    let store = Arc::new(MemoryStore::new());
    if let Some((id, history)) = history {
        let mut batch = Batch::new();
        batch.set(history_key(id), history.to_bytes());
        store.commit(batch).await.unwrap();
    }
    let paper = Paper::default();
    LogLine::to(store, format, Box::new(paper.clone())).consume(events).await.unwrap();
    let bytes = paper.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn history() -> History {
    History {
        tenant: TenantId(2),
        accepted: NOON,
        reverse_path: ReversePath(Some(Address::parse("shop@shop.example").unwrap())),
        header_from: "shop@shop.example".into(),
        subject: "secret subject".into(),
        message_id: "<1@shop.example>".into(),
        recipients: vec![Address::parse("a@one.example").unwrap(), Address::parse("b@one.example").unwrap()],
        labels: Default::default(),
        entry: None,
        returns: None,
        signed: None,
    }
}

#[tokio::test]
async fn the_log_forgets_the_addresses_of_a_message_when_it_reads_that_it_was_erased() {
    let (id, other) = (QueueId::new(NOON), QueueId::new(NOON));
    let store = Arc::new(MemoryStore::new());
    let mut batch = Batch::new();
    batch.set(history_key(id), history().to_bytes()).set(history_key(other), history().to_bytes());
    store.commit(batch).await.unwrap();
    let paper = Paper::default();
    let log = LogLine::to(store.clone(), LogFormat::Text, Box::new(paper.clone()));
    let done = |id| mail(id, MailEvent::Suppressed { recipients: vec![0] }, NOON);
    log.consume(&[done(id), done(other)]).await.unwrap();
    let mut batch = Batch::new();
    batch.remove(history_key(id)).remove(history_key(other));
    store.commit(batch).await.unwrap();
    let erased = AuditEvent { actor: "root".into(), act: ERASE_ACT.into(), subject: id.to_string() };
    log.consume(&[Event { at: NOON, kind: EventKind::Audit(erased) }, done(id), done(other)]).await.unwrap();
    let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    let lines = |id: QueueId| text.lines().filter(move |line| line.contains(&format!("{id} suppressed")));
    assert_eq!(lines(id).map(|line| line.contains("a@one.example")).collect::<Vec<_>>(), [true, false], "{text}");
    assert_eq!(lines(other).map(|line| line.contains("a@one.example")).collect::<Vec<_>>(), [true, true], "{text}");
}

#[tokio::test]
async fn the_log_has_one_line_per_event_and_nobody_can_forge_one() {
    let id = QueueId::new(NOON);
    let peer = Peer {
        host: "mx.one.example".into(),
        address: "192.0.2.1:25".into(),
        source: "192.0.2.9".into(),
        tls: "none".into(),
    };
    let detail = "550 5.1.1 no\r\n2026 accepted \"x\"".to_owned();
    let bounced = MailEvent::Bounced { recipients: vec![1], peer: Some(peer), why: Why::RecipientGone, detail };
    let text = logged(LogFormat::Text, &[mail(id, bounced.clone(), NOON)], Some((id, history()))).await;
    assert_eq!(
        text,
        format!(
            "2026-11-22T12:00:00.000Z {id} bounced to=<b@one.example> why=RecipientGone \
             reply=\"550 5.1.1 no?\\n2026 accepted \\\"x\\\"\" peer=mx.one.example address=192.0.2.1:25 \
             source=192.0.2.9 tls=none\n"
        )
    );
    let json = logged(LogFormat::Json, &[mail(id, bounced, NOON)], None).await;
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&read["event"], &read["to"]), (&"bounced".into(), &"#1".into()), "erased: numbers only");
}

#[tokio::test]
async fn the_log_never_shows_the_subject() {
    let id = QueueId::new(NOON);
    let accepted = Accepted {
        tenant: TenantId(2),
        account: None,
        vip: VipId(1),
        class: Class::Transactional,
        source: "smtp".into(),
        size_bytes: 9,
        recipients: 2,
        signatures: Vec::new(),
    };
    let text = logged(LogFormat::Text, &[mail(id, MailEvent::Accepted(accepted), NOON)], Some((id, history()))).await;
    assert!(text.contains("from=<shop@shop.example> to=<a@one.example>,<b@one.example>"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

async fn pass_all(store: &dyn Store) {
    let end = after_prefix(&[prefix::EVENT]);
    let last = store.range(&[prefix::EVENT], &end, usize::MAX).unwrap().pop().unwrap().0;
    let mut batch = Batch::new();
    let mut key = vec![prefix::CURSOR];
    key.extend_from_slice(b"witness");
    batch.set(key, codec::encode(&last));
    store.commit(batch).await.unwrap();
}

#[tokio::test]
async fn past_events_move_into_the_file_of_their_day_once_every_consumer_passed() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let archive = Arc::new(Archive::open(folder.path()).unwrap());
    let (one, two) = (QueueId::new(NOON), QueueId::new(NOON));
    let next_day = Timestamp(NOON.0 + 24 * HOUR);
    append(&*store, &[mail(one, MailEvent::NoticeUnsigned, NOON), mail(two, MailEvent::Retired, NOON)]).await;
    append(&*store, &[mail(one, MailEvent::Retired, next_day)]).await;
    let later = Timestamp(next_day.0 + HOUR);
    assert_eq!(archive.move_some(&store, &["witness"], later).await, Ok(0), "the consumer has not begun");
    pass_all(&*store).await;
    assert_eq!(archive.move_some(&store, &["witness"], NOON).await, Ok(0), "recent events stay");
    assert_eq!(archive.move_some(&store, &["witness"], later).await, Ok(3));
    assert_eq!((stored(&*store), archive.days().unwrap().len()), (0, 2));
    let trail = Trail::new(Arc::clone(&store)).with_archive(Arc::clone(&archive));
    let told: Vec<EventKind> = trail.of_message(one).unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(told, [EventKind::Mail(one, MailEvent::NoticeUnsigned), EventKind::Mail(one, MailEvent::Retired)]);
    assert_eq!(trail.of_message(QueueId::new(NOON)).unwrap(), []);
    archive.expire(Timestamp(later.0 + 24 * HOUR), Duration::from_millis(24 * HOUR + 2 * HOUR)).unwrap();
    assert_eq!(archive.days().unwrap().len(), 1);
}

#[tokio::test]
async fn events_that_come_back_after_they_were_moved_are_removed_again() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let archive = Arc::new(Archive::open(folder.path()).unwrap());
    let id = QueueId::new(NOON);
    let later = Timestamp(NOON.0 + HOUR);
    append(&*store, &[mail(id, MailEvent::NoticeUnsigned, NOON)]).await;
    let end = after_prefix(&[prefix::EVENT]);
    let moved = store.range(&[prefix::EVENT], &end, usize::MAX).unwrap();
    pass_all(&*store).await;
    assert_eq!(archive.move_some(&store, &["witness"], later).await, Ok(1));
    append(&*store, &[mail(id, MailEvent::Retired, NOON)]).await;
    let mut batch = Batch::new();
    for (key, value) in moved {
        batch.set(key, value);
    }
    store.commit(batch).await.unwrap();
    assert_eq!(stored(&*store), 2);
    archive.drop_moved(&store).await.unwrap();
    assert_eq!(stored(&*store), 1, "what was not moved stays");
}

#[tokio::test]
async fn a_crash_between_file_and_store_repeats_nothing_and_damage_hides_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = memory.clone();
    let id = QueueId::new(NOON);
    let later = Timestamp(NOON.0 + HOUR);
    append(&*store, &[mail(id, MailEvent::NoticeUnsigned, NOON)]).await;
    pass_all(&*store).await;
    memory.fail_next(1, CommitError::Failed("eio".into()));
    let archive = Arc::new(Archive::open(folder.path()).unwrap());
    assert!(archive.move_some(&store, &["witness"], later).await.is_err());
    // As after a restart: what the file has is read from the file.
    let archive = Arc::new(Archive::open(folder.path()).unwrap());
    assert_eq!(archive.move_some(&store, &["witness"], later).await, Ok(1));
    assert_eq!(archive.of_message(id).unwrap().len(), 1);
    // A torn frame, then a sound one behind it.
    let path = folder.path().join("2026-11-22.events");
    let whole = std::fs::read(&path).unwrap();
    let torn = whole.get(..whole.len() - 3).unwrap();
    std::fs::write(&path, [torn, &whole].concat()).unwrap();
    assert_eq!(archive.of_message(id).unwrap().len(), 1);
}
