//! Figures for `docs/benchmarks.md`: `cargo test --release --lib search::bench -- --ignored --nocapture`.
//!
//! Ten million events (`POSTERN_SEARCH_EVENTS`) of 15 days in a store on disk are indexed, and pages of 250 are
//! timed. Not a test of anything but its own bound: it prints. `POSTERN_SEARCH_FOLDER` says where the files go.

use std::time::Instant;

use super::*;
use crate::access::Actor;
use crate::background::Shutdown;
use crate::events::{Accepted, Entry, Event, EventKind, MailEvent, Peer, Why, history_key, record};
use crate::mail::{Address, Class, Labels, Reply, ReversePath, SmtpAccountId, TenantId, VipId};
use crate::statistics::Status;
use crate::store::Batch;

const DAYS: u64 = 15;
const DAY: u64 = 24 * 3_600_000;
const START: u64 = 1_795_262_400_000;
const TENANTS: u64 = 50;
const AT_ONCE: u64 = 2_000;

/// A sequence that is the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn message(chance: &mut Chance, words: &[String], at: u64, batch: &mut Batch) -> u64 {
    let id = QueueId::new(Timestamp(at));
    let tenant = chance.below(TENANTS);
    let domain = match chance.below(3) {
        0 => format!("domain{}.example", chance.below(5_000)),
        _ => format!("big{}.example", chance.below(7)),
    };
    let recipient = Address::parse(&format!("user{}@{domain}", chance.below(900_000))).unwrap();
    let subject: Vec<&str> = (0..6).map(|_| words[chance.below(words.len() as u64) as usize].as_str()).collect();
    let mut labels = Labels::default();
    if chance.below(2) == 0 {
        labels.tag(&format!("tag{}", chance.below(40))).unwrap();
    }
    let (account, vip, class) = (Some(SmtpAccountId(tenant * 3 + chance.below(3))), VipId(1), Class::Transactional);
    let history = History {
        tenant: TenantId(tenant),
        accepted: Timestamp(at),
        reverse_path: ReversePath(Some(Address::parse(&format!("bounce-{id}@rp{tenant}.example")).unwrap())),
        header_from: format!("Shop <shop@shop{tenant}.example>"),
        subject: subject.join(" "),
        message_id: format!("<{id}@shop{tenant}.example>"),
        recipients: vec![recipient],
        labels,
        entry: Some(Entry { account, vip, class, source: "smtp".to_owned(), size_bytes: 20_000 }),
        returns: None,
        signed: None,
    };
    batch.set(history_key(id), history.to_bytes());
    let (tenant, source) = (history.tenant, "smtp".to_owned());
    let accepted =
        Accepted { tenant, account, vip, class, source, size_bytes: 20_000, recipients: 1, signatures: vec![] };
    let host = format!("mx{}.{domain}", chance.below(3));
    let peer = Peer { host, address: "192.0.2.1:25".into(), source: "192.0.2.2".into(), tls: "TLSv1.3".into() };
    let mut events = vec![MailEvent::Accepted(accepted)];
    if chance.below(10) == 0 {
        let detail = "451 4.7.1 Greylisted, please come back later".to_owned();
        let (peer, why) = (Some(peer.clone()), Why::TryLater);
        events.push(MailEvent::Deferred { recipients: vec![0], peer, why, detail, due_in_secs: 300 });
    }
    events.push(if chance.below(50) == 0 {
        let detail = "550 5.1.1 No such user here".to_owned();
        MailEvent::Bounced { recipients: vec![0], peer: Some(peer), why: Why::RecipientGone, detail }
    } else {
        let text = format!("OK queued as {:x}-{:x}", chance.below(u64::MAX), chance.below(u64::MAX));
        MailEvent::Delivered { recipients: vec![0], peer, reply: Reply::enhanced(250, 0, 0, &text) }
    });
    events.push(MailEvent::Retired);
    let count = events.len() as u64;
    for (after, event) in (0..).zip(events) {
        record(batch, &Event { at: Timestamp(at + after * 700), kind: EventKind::Mail(id, event) });
    }
    count
}

fn resident(what: &str) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let lines = status.lines().filter(|line| ["VmHWM", "VmRSS", "RssAnon"].iter().any(|name| line.starts_with(name)));
    println!("{what}: {}", lines.collect::<Vec<_>>().join(" ").replace('\t', " "));
}

fn size(folder: &Path) -> u64 {
    let sizes = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().len() }
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; takes long"]
async fn pages_of_ten_million_events() {
    let wanted = std::env::var("POSTERN_SEARCH_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let base = std::env::var_os("POSTERN_SEARCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(base).unwrap();
    let settings = crate::store::Settings { folder: folder.path().join("store"), ..Default::default() };
    let store = crate::store::open(settings).unwrap().records;
    let mut chance = Chance(42);
    let words: Vec<String> = (0..20_000)
        .map(|_| (0..3 + chance.below(7)).map(|_| char::from(b'a' + chance.below(26) as u8)).collect())
        .collect();
    let (mut events, mut messages, began) = (0, 0_u64, Instant::now());
    // 3.1 events a message.
    let pause = DAYS * DAY * 31 / (wanted * 10).max(1);
    while events < wanted {
        let mut batch = Batch::new();
        for _ in 0..AT_ONCE {
            events += message(&mut chance, &words, START + messages * pause.max(1), &mut batch);
            messages += 1;
        }
        store.commit(batch).await.unwrap();
    }
    println!("{events} events of {messages} messages written in {:.0} s", began.elapsed().as_secs_f64());
    resident("with the store");
    let parts = Parts {
        log: EventLog::new(Arc::clone(&store)),
        bell: Bell::default(),
        provider_of: Arc::new(|host| host.split_once('.').map(|(_, rest)| rest.to_owned())),
        clock: Arc::new(|| Timestamp(START)),
        days_kept: Arc::new(|_| None),
        forget: Arc::new(|_| Box::pin(async { Ok(Vec::new()) })),
        settings: Settings { kept: Duration::from_secs(3_650 * 86_400), ..Settings::default() },
    };
    let index = folder.path().join("search");
    let search = Arc::new(Search::open(parts, &index).unwrap());
    let (stop, began) = (Shutdown::new(), Instant::now());
    let running = tokio::spawn(Arc::clone(&search).run(stop.clone()));
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let standing = search.standing();
        if standing.behind.is_zero() && !standing.is_rebuilding {
            break;
        }
    }
    let (took, octets) = (began.elapsed().as_secs_f64(), size(&index));
    println!("indexed in {took:.0} s, {:.0} messages/s, {:.0} events/s", messages as f64 / took, events as f64 / took);
    println!("index: {} MB, {} octets a message, {} days", octets / 1_000_000, octets / messages, search.size().1);
    resident("indexed");
    let slowest = tokio::task::spawn_blocking(move || time_pages(&search, &words)).await.unwrap();
    resident("after the pages");
    stop.cancel();
    running.await.unwrap();
    println!("slowest warm page: {slowest:.1} ms");
}

/// The slowest of the fastest of five of each kind of page, in milliseconds.
fn time_pages(search: &Search, words: &[String]) -> f64 {
    let text = |text: &str| Some(text.to_owned());
    let tenant = Criteria { tenant: Some(TenantId(7)), ..Criteria::default() };
    let all = Criteria::default();
    let middle = Some(Timestamp(START + DAYS * DAY / 2));
    let newest = search.find(&Actor::local(0), all.clone(), None, 1).unwrap().hits.remove(0);
    let known = |criteria| Criteria { tenant: Some(newest.history.tenant), ..criteria };
    let recipient = Some(newest.history.recipients[0].to_string());
    let cases = [
        ("everything of all tenants", all.clone()),
        ("everything of a tenant", tenant.clone()),
        ("a tenant's, half the days back", Criteria { until: middle, ..tenant.clone() }),
        ("queue id", known(Criteria { id: Some(newest.id), ..all.clone() })),
        ("Message-ID", known(Criteria { message_id: Some(newest.history.message_id.clone()), ..all.clone() })),
        ("recipient", known(Criteria { recipient: recipient.clone(), ..all.clone() })),
        ("recipient, all tenants", Criteria { recipient, ..all.clone() }),
        ("recipient that is not there", Criteria { recipient: text("nobody@big1.example"), ..all.clone() }),
        ("sender's domain", Criteria { sender: text("shop7.example"), ..tenant.clone() }),
        ("bounced", Criteria { status: Some(Status::HardBounce), ..tenant.clone() }),
        ("domain by 1 letter", Criteria { domain: text("d"), ..tenant.clone() }),
        ("domain by 8 letters", Criteria { domain: text("domain12"), ..tenant.clone() }),
        ("provider", Criteria { provider: text("big3"), ..tenant.clone() }),
        ("tag", Criteria { tag: text("tag7"), ..tenant.clone() }),
        ("subject by a word", Criteria { subject: text(&words[5]), ..tenant.clone() }),
        ("subject by 3 letters", Criteria { subject: text(&words[9][..3]), ..tenant.clone() }),
        ("subject by two words", Criteria { subject: text(&format!("{} {}", words[5], words[9])), ..tenant.clone() }),
        ("reply: greylisted", Criteria { reply: text("greylisted"), ..tenant.clone() }),
        ("reply: 5.1.1 user, all tenants", Criteria { reply: text("5.1.1 user"), ..all.clone() }),
        ("reply by 3 letters", Criteria { reply: text("abc"), ..tenant.clone() }),
        ("reply: a word in all, 2 days", Criteria { reply: text("queued"), from: middle, ..tenant.clone() }),
        ("nothing fits", Criteria { subject: text(&words[5]), tag: text("none"), ..tenant }),
    ];
    let mut slowest: f64 = 0.0;
    for (name, criteria) in cases {
        let mut times = Vec::new();
        let mut rows = 0;
        for _ in 0..5 {
            let began = Instant::now();
            rows = search.find(&Actor::local(0), criteria.clone(), None, PAGE_MAX).unwrap().hits.len();
            times.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        let cold = times[0];
        let warm = times.into_iter().fold(f64::MAX, f64::min);
        slowest = slowest.max(warm);
        println!("{name:32} {rows:4} rows  first {cold:8.1} ms  best {warm:8.1} ms");
    }
    slowest
}
