//! From the log of events to a warm-up: each complaint once, over restarts, for the address it is about.

use super::*;
use crate::access::Actor;
use crate::background::Shutdown;
use crate::delivery::Settings;
use crate::delivery::shaping::{Judged, LADDER, Warmup};
use crate::events::{Bell, Entry, drive_exactly, record};
use crate::mail::{Address, Class, Labels, ReversePath, TenantId};
use crate::store::{MemoryStore, Store};

const DAY_MS: u64 = 24 * 3_600_000;

fn path(vip: u64) -> Path {
    Path { site: "gmail".into(), vip: VipId(vip) }
}

/// A pace over `store`, as a daemon that starts opens it.
fn opened(store: &Arc<dyn Store>) -> Arc<Pacing> {
    Arc::new(Pacing::open(Arc::clone(store), &Settings::default(), QueueTime(1_000)).unwrap())
}

async fn warm(pacing: &Pacing, vip: u64) {
    let warmup = Warmup::new(&LADDER, QueueTime(0)).unwrap();
    pacing.warm(&Actor::local(0), &path(vip), Some(warmup), (QueueTime(0), Timestamp(0))).await.unwrap();
}

/// Message of virtual IP 1 to Gmail and to somebody else, and what became of it.
async fn told(store: &Arc<dyn Store>, recipients: Vec<u16>, at: Timestamp) {
    let id = QueueId::new(at);
    let address = |text: &str| Address::parse(text).unwrap();
    let entry = Entry { account: None, vip: VipId(1), class: Class::Marketing, source: "smtp".into(), size_bytes: 1 };
    let history = History {
        tenant: TenantId(1),
        accepted: at,
        reverse_path: ReversePath(None),
        header_from: String::new(),
        subject: String::new(),
        message_id: String::new(),
        recipients: vec![address("ann@gmail.com"), address("bob@there.example")],
        labels: Labels::default(),
        entry: Some(entry),
        returns: None,
        signed: None,
    };
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    let told = MailEvent::Complained { recipients, reporter: "reports.example".to_owned() };
    record(&mut batch, &Event { at, kind: EventKind::Mail(id, told) });
    store.commit(batch).await.unwrap();
}

/// Reads the log to its end, as the daemon does, and stops.
async fn read_log(store: &Arc<dyn Store>, pacing: &Arc<Pacing>) {
    let complaints = Complaints::new(Arc::clone(pacing), Arc::new(|| QueueTime(2_000)));
    let tally: Arc<dyn events::Tally> = Arc::new(complaints);
    let stop = Shutdown::new();
    stop.cancel();
    drive_exactly(&**store, &tally, &Bell::default(), &stop).await;
}

fn counted(pacing: &Pacing, vip: u64) -> Option<u32> {
    pacing.pacer().memory(&path(vip)).warmup.map(|warmup| warmup.complaints())
}

#[tokio::test]
async fn a_complaint_in_the_log_counts_once_for_the_address_it_is_about_and_the_day_steps_back() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let pacing = opened(&store);
    warm(&pacing, 1).await;
    warm(&pacing, 2).await;
    let now = Timestamp::now();
    told(&store, vec![0, 1], now).await;
    told(&store, vec![1], now).await;
    told(&store, vec![0], Timestamp(now.0 - 2 * DAY_MS)).await;
    read_log(&store, &pacing).await;
    assert_eq!((counted(&pacing, 1), counted(&pacing, 2)), (Some(1), Some(0)));
    read_log(&store, &pacing).await;
    assert_eq!(counted(&pacing, 1), Some(1), "it is not read again");
    // What was counted and where it stood in the log are one: a crash loses neither.
    let again = opened(&store);
    assert_eq!(counted(&again, 1), Some(1));
    read_log(&store, &again).await;
    assert_eq!(counted(&again, 1), Some(1));
    let mut warmup = again.pacer().memory(&path(1)).warmup.unwrap();
    warmup.take(50);
    warmup.roll(QueueTime(DAY_MS));
    assert_eq!(warmup.days[0].judged, Judged::Back, "one in 50 is more than 3 in 1,000");
}

#[tokio::test]
async fn what_cannot_be_stored_is_counted_later_and_not_twice() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let pacing = opened(&store);
    warm(&pacing, 1).await;
    told(&store, vec![0], Timestamp::now()).await;
    let all = store.range(&[crate::store::prefix::EVENT], &[crate::store::prefix::EVENT + 1], 10).unwrap();
    let events: Vec<Event> = all.iter().map(|(_, bytes)| crate::store::codec::decode(bytes).unwrap()).collect();
    let complaints = Complaints::new(Arc::clone(&pacing), Arc::new(|| QueueTime(2_000)));
    assert_eq!(events::Tally::take(&complaints, &events).unwrap(), Urgency::Now);
    // Nothing of it reaches the record before the place in the log does.
    pacing.write(Timestamp::now()).await;
    assert_eq!((counted(&pacing, 1), counted(&opened(&store), 1)), (Some(0), Some(0)));
    events::Tally::keep(&complaints, Batch::new()).await.unwrap();
    events::Tally::keep(&complaints, Batch::new()).await.unwrap();
    assert_eq!((counted(&pacing, 1), counted(&opened(&store), 1)), (Some(1), Some(1)));
}
