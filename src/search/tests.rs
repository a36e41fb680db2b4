//! The index finds what a look at every message finds, from whichever side; and follows the log whatever happens.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::access::{Action, Actor, Narrowing, Role};
use crate::background::Shutdown;
use crate::events::{
    Accepted, AuditEvent, ERASE_ACT, Entry, Event, EventKind, MailEvent, Peer, Why, history_key, record,
};
use crate::mail::{Address, Class, Domain, Labels, Reply, ReversePath, SmtpAccountId, TenantId, VipId};
use crate::records::AdminError;
use crate::statistics::Status;
use crate::store::{Batch, MemoryStore, Store};

const DAY: u64 = 24 * 3_600_000;
/// 2026-11-21, at noon.
const NOON: u64 = 1_795_262_400_000;

struct Bench {
    store: Arc<MemoryStore>,
    search: Arc<Search>,
    folder: tempfile::TempDir,
}

fn parts(store: &Arc<MemoryStore>) -> Parts {
    let forgetting = Arc::clone(store);
    Parts {
        log: EventLog::new(Arc::clone(store) as Arc<dyn Store>),
        bell: Bell::default(),
        provider_of: Arc::new(|host| host.strip_prefix("mx.").map(|rest| rest.replace(".example", ""))),
        clock: Arc::new(|| Timestamp(NOON)),
        days_kept: Arc::new(|tenant| (tenant == TenantId(2)).then_some(3)),
        forget: Arc::new(move |ids| {
            let store = Arc::clone(&forgetting);
            Box::pin(async move {
                let mut batch = Batch::new();
                ids.iter().for_each(|id| {
                    batch.remove(history_key(*id));
                });
                store.commit(batch).await?;
                Ok(ids)
            })
        }),
        settings: Settings::default(),
    }
}

impl Bench {
    fn new() -> Self {
        let (store, folder) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let search = Arc::new(Search::open(parts(&store), folder.path()).unwrap());
        Self { store, search, folder }
    }

    /// As after a restart of the daemon.
    fn reopen(&mut self) {
        self.search = Arc::new(Search::open(parts(&self.store), self.folder.path()).unwrap());
    }

    /// The whole log is indexed.
    async fn catch_up(&self) {
        let stop = Shutdown::new();
        let running = tokio::spawn(Arc::clone(&self.search).run(stop.clone()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        loop {
            let standing = self.search.standing();
            if standing.behind.is_zero() && !standing.is_rebuilding {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        running.await.unwrap();
    }

    fn find(&self, criteria: Criteria) -> Vec<QueueId> {
        let page = self.search.find(&Actor::local(0), criteria, None, PAGE_MAX).unwrap();
        page.hits.into_iter().map(|hit| hit.id).collect()
    }

    async fn tell(&self, id: QueueId, event: MailEvent, at: u64) {
        let mut batch = Batch::new();
        record(&mut batch, &Event { at: Timestamp(at), kind: EventKind::Mail(id, event) });
        self.store.commit(batch).await.unwrap();
    }

    async fn accept(&self, mail: &Mail) -> QueueId {
        let id = QueueId::new(Timestamp(mail.at));
        let history = mail.history();
        let accepted = Accepted {
            tenant: history.tenant,
            account: Some(SmtpAccountId(mail.account)),
            vip: VipId(1),
            class: Class::Transactional,
            source: "smtp".to_owned(),
            size_bytes: 1,
            recipients: u16::try_from(mail.to.len()).unwrap(),
            signatures: Vec::new(),
        };
        let mut batch = Batch::new();
        batch.set(history_key(id), history.to_bytes());
        let kind = EventKind::Mail(id, MailEvent::Accepted(accepted));
        record(&mut batch, &Event { at: Timestamp(mail.at), kind });
        self.store.commit(batch).await.unwrap();
        for event in &mail.events {
            self.tell(id, event.clone(), mail.at + 1).await;
        }
        id
    }
}

#[derive(Clone, Debug)]
struct Mail {
    at: u64,
    tenant: u64,
    account: u64,
    from: String,
    to: Vec<String>,
    subject: String,
    message_id: String,
    tags: Vec<String>,
    events: Vec<MailEvent>,
}

impl Mail {
    fn plain(at: u64) -> Self {
        Self {
            at,
            tenant: 1,
            account: 7,
            from: "shop@shop.example".to_owned(),
            to: vec!["ann@one.example".to_owned()],
            subject: "Your order".to_owned(),
            message_id: "<1@shop.example>".to_owned(),
            tags: Vec::new(),
            events: Vec::new(),
        }
    }

    fn history(&self) -> History {
        let mut labels = Labels::default();
        self.tags.iter().for_each(|tag| labels.tag(tag).unwrap());
        let (account, source) = (Some(SmtpAccountId(self.account)), "smtp".to_owned());
        History {
            tenant: TenantId(self.tenant),
            accepted: Timestamp(self.at),
            reverse_path: ReversePath(Some(Address::parse("bounce@rp.example").unwrap())),
            header_from: format!("Shop <{}>", self.from),
            subject: self.subject.clone(),
            message_id: self.message_id.clone(),
            recipients: self.to.iter().map(|to| Address::parse(to).unwrap()).collect(),
            labels,
            entry: Some(Entry { account, vip: VipId(1), class: Class::Transactional, source, size_bytes: 1 }),
            returns: None,
            signed: None,
        }
    }

    fn fate(&self, provider_of: &dyn Fn(&str) -> Option<String>) -> Fate {
        let mut fate = Fate::new(self.to.len(), Timestamp(self.at));
        self.events.iter().for_each(|event| fate.apply(event, Timestamp(self.at + 1), provider_of));
        fate
    }
}

fn peer(host: &str) -> Peer {
    Peer { host: host.to_owned(), address: String::new(), source: String::new(), tls: String::new() }
}

fn delivered(recipient: u16, host: &str, text: &str) -> MailEvent {
    MailEvent::Delivered { recipients: vec![recipient], peer: peer(host), reply: Reply::enhanced(250, 0, 0, text) }
}

fn bounced(recipient: u16, detail: &str) -> MailEvent {
    let why = Why::RecipientGone;
    MailEvent::Bounced { recipients: vec![recipient], peer: Some(peer("mx.big.example")), why, detail: detail.into() }
}

fn any_event() -> impl Strategy<Value = MailEvent> {
    let text = prop::sample::select(vec!["queued as 4F2A", "5.1.1 no such user", "4.2.2 full", "ok", "a b c"]);
    let host = prop::sample::select(vec!["mx.big.example", "mx.small.example", "elsewhere.example"]);
    (0..5_u8, 0..3_u16, host, text).prop_map(|(kind, recipient, host, text)| match kind {
        0 => delivered(recipient, host, text),
        1 => bounced(recipient, text),
        2 => MailEvent::Deferred {
            recipients: vec![recipient],
            peer: Some(peer(host)),
            why: Why::TryLater,
            detail: text.to_owned(),
            due_in_secs: 1,
        },
        3 => MailEvent::Suppressed { recipients: vec![recipient] },
        _ => MailEvent::Complained { recipients: vec![recipient], reporter: host.to_owned() },
    })
}

fn any_mail() -> impl Strategy<Value = Mail> {
    let address =
        || prop::sample::select(vec!["ann@one.example", "Bob@one.example", "cy@two.example", "d@one.two.example"]);
    let words =
        prop::sample::select(vec!["Your order 4711", "Rechnung", "your invoice", "żółw i order", "", "re: a b"]);
    let tag = prop::sample::select(vec!["order", "Orders-eu", "news"]);
    (
        (0..5 * DAY, 1..3_u64, 7..9_u64, prop::sample::select(vec!["shop@shop.example", "News@news.example"])),
        prop::collection::vec(address(), 1..4),
        (words, 0..6_u8, prop::collection::vec(tag, 0..3)),
        prop::collection::vec(any_event(), 0..4),
    )
        .prop_map(|((after, tenant, account, from), to, (subject, number, tags), events)| Mail {
            at: NOON + after,
            tenant,
            account,
            from: from.to_owned(),
            to: to.into_iter().map(str::to_owned).collect(),
            subject: subject.to_owned(),
            message_id: format!("<{number}@shop.example>"),
            tags: tags.into_iter().map(str::to_owned).collect(),
            events,
        })
}

fn any_criteria() -> impl Strategy<Value = Criteria> {
    let one_of =
        |texts: Vec<&'static str>| prop::option::weighted(0.25, prop::sample::select(texts).prop_map(str::to_owned));
    let status = prop::sample::select(crate::statistics::STATUSES.to_vec());
    let moment = || prop::option::weighted(0.25, (0..5 * DAY).prop_map(|after| Timestamp(NOON + after)));
    (
        (prop::option::of(1..3_u64), prop::option::weighted(0.2, 7..9_u64), moment(), moment()),
        (
            one_of(vec!["1@shop.example", "<2@shop.example>", "9@x"]),
            one_of(vec!["ann@one.example", "BOB@one.example", "no@one.example"]),
            one_of(vec!["shop@shop.example", "news.example", "rp.example", "shop"]),
            one_of(vec!["one", "one.example", "two.example", "t", ""]),
        ),
        (
            one_of(vec!["big", "s", "none"]),
            one_of(vec!["order", "ORDERS-EU", "n", "x"]),
            one_of(vec!["ord", "your ord", "żół", "re", "order 47", "invoices", "a"]),
            one_of(vec!["queued", "5.1.1", "mx.big", "4f2a", "full 4.2", "ab", "b"]),
        ),
        prop::option::weighted(0.25, status),
    )
        .prop_map(|((tenant, account, from, until), (message_id, recipient, sender, domain), texts, status)| {
            let (provider, tag, subject, reply) = texts;
            let (tenant, account) = (tenant.map(TenantId), account.map(SmtpAccountId));
            let (granted, id) = (None, None);
            Criteria {
                tenant,
                granted,
                account,
                from,
                until,
                id,
                message_id,
                recipient,
                sender,
                domain,
                provider,
                tag,
                subject,
                reply,
                status,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_a_look_at_every_message_finds(
        mails in prop::collection::vec(any_mail(), 1..60),
        questions in prop::collection::vec(any_criteria(), 25),
        most in 1..9_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut bench = Bench::new();
        let mut all = Vec::new();
        runtime.block_on(async {
            for mail in &mails {
                all.push((bench.accept(mail).await, mail.clone()));
            }
            bench.catch_up().await;
        });
        all.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let provider_of = Arc::clone(&parts(&bench.store).provider_of);
        for is_reopened in [false, true] {
            for criteria in &questions {
                let folded = criteria.clone().folded();
                let fits = |(id, mail): &&(QueueId, Mail)| folded.fits((*id, &mail.history(), &mail.fate(&*provider_of)));
                let expected: Vec<QueueId> = all.iter().filter(fits).map(|(id, _)| *id).collect();
                prop_assert_eq!(&bench.find(criteria.clone()), &expected, "{:?}", criteria);
                // The same in pages.
                let (mut paged, mut before) = (Vec::new(), None);
                loop {
                    let page = bench.search.find(&Actor::local(0), criteria.clone(), before, most).unwrap();
                    paged.extend(page.hits.into_iter().map(|hit| hit.id));
                    before = page.next;
                    if before.is_none() {
                        break;
                    }
                }
                prop_assert_eq!(&paged, &expected);
            }
            if !is_reopened {
                bench.reopen();
            }
        }
    }
}

#[tokio::test]
async fn a_message_is_found_by_what_became_of_it_later_too_and_by_its_id() {
    let mut bench = Bench::new();
    let id = bench.accept(&Mail::plain(NOON)).await;
    bench.catch_up().await;
    let with = |status| Criteria { status: Some(status), ..Criteria::default() };
    assert_eq!(bench.find(with(Status::Injected)), [id]);
    bench.tell(id, delivered(0, "mx.big.example", "queued as 4F2A"), NOON + DAY).await;
    bench.catch_up().await;
    assert_eq!((bench.find(with(Status::Injected)), bench.find(with(Status::Ok))), (vec![], vec![id]));
    bench.reopen();
    bench.tell(id, MailEvent::Complained { recipients: vec![0], reporter: "x".to_owned() }, NOON + 3 * DAY).await;
    bench.catch_up().await;
    let criteria = Criteria { id: Some(id), reply: Some("4f2a".to_owned()), ..with(Status::Complaint) };
    assert_eq!(bench.find(criteria), [id], "an earlier reply is not forgotten");
    assert_eq!(bench.find(with(Status::Ok)), [id]);
}

#[tokio::test]
async fn an_index_that_is_missing_damaged_or_of_another_form_is_made_again_and_is_the_same() {
    let mut bench = Bench::new();
    for number in 0..30_u64 {
        let mail = Mail { events: vec![delivered(0, "mx.big.example", "ok")], ..Mail::plain(NOON + number * DAY / 10) };
        bench.accept(&mail).await;
    }
    bench.catch_up().await;
    let original = bench.find(Criteria::default());
    assert_eq!(original.len(), 30);
    let own = bench.folder.path().join(FORM);
    for harm in 0..5 {
        match harm {
            0 => fs::remove_dir_all(bench.folder.path()).unwrap(),
            1 => {
                let day = fs::read_dir(&own).unwrap().find(|entry| entry.as_ref().unwrap().path().is_dir());
                fs::write(day.unwrap().unwrap().path().join("meta.json"), b"{").unwrap();
            }
            2 => {
                fs::rename(&own, bench.folder.path().join("0")).unwrap();
            }
            3 => bench.search.rebuild(),
            _ => garble_one_octet(&own),
        }
        if harm != 3 {
            bench.reopen();
        }
        assert!(harm > 2 || bench.find(Criteria::default()).is_empty(), "{harm}");

        bench.catch_up().await;
        assert_eq!(bench.find(Criteria::default()), original, "{harm}");
        assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 1, "{harm}");
        assert!(records::read(&bench.search.days).values().all(|day| day.verify().is_ok()), "{harm}");
    }
}

#[tokio::test]
async fn an_index_that_could_not_be_made_durable_is_made_again_and_not_written_on() {
    let bench = Bench::new();
    let first = bench.accept(&Mail::plain(NOON)).await;
    bench.catch_up().await;
    let own = bench.folder.path().join(FORM);
    let name = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap()).find(|entry| entry.path().is_dir()).unwrap();
    let marker = name.path().join("of-before");
    fs::write(&marker, b"").unwrap();
    let day = bench.search.known_day(name.file_name().to_str().unwrap()).unwrap();
    day.is_to_fail.store(true, std::sync::atomic::Ordering::Relaxed);
    drop(day);

    let second = bench.accept(&Mail::plain(NOON + 1)).await;
    bench.catch_up().await;
    assert_eq!(bench.find(Criteria::default()), [second, first]);
    assert!(!marker.exists(), "nothing of it is left");
}

/// In the middle of the largest file of some day.
fn garble_one_octet(folder: &Path) {
    let days = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = days.flat_map(|day| fs::read_dir(day).unwrap().map(|entry| entry.unwrap().path()));
    let segments = files.filter(|path| path.extension().is_some_and(|ending| ending != "json" && ending != "lock"));
    let largest = segments.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut octets = fs::read(&largest).unwrap();
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    fs::remove_file(&largest).unwrap();
    fs::write(&largest, octets).unwrap();
}

/// Whether the files of some day have a term for this recipient.
fn is_in_the_files(bench: &Bench, recipient: &str) -> bool {
    let days: Vec<_> = records::read(&bench.search.days).values().map(Arc::clone).collect();
    days.iter().any(|day| {
        day.refresh().unwrap();
        day.has_recipient(recipient)
    })
}

#[tokio::test]
async fn what_is_erased_is_neither_found_nor_in_the_files_and_does_not_come_back() {
    let bench = Bench::new();
    let mail = Mail { to: vec!["zacharias@one.example".to_owned()], ..Mail::plain(NOON) };
    let id = bench.accept(&mail).await;
    let other = bench.accept(&Mail::plain(NOON + 1)).await;
    bench.catch_up().await;
    assert!(is_in_the_files(&bench, "zacharias@one.example"));
    let mut history = mail.history();
    history.recipients = vec![Address::parse("erased@erased.invalid").unwrap()];
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    let audit = AuditEvent { actor: "x".to_owned(), act: ERASE_ACT.to_owned(), subject: id.to_string() };
    record(&mut batch, &Event { at: Timestamp(NOON + 2), kind: EventKind::Audit(audit) });
    bench.store.commit(batch).await.unwrap();
    assert_eq!(bench.find(Criteria::default()), [other], "from the moment its record is overwritten");
    bench.catch_up().await;
    for _ in 0..2 {
        assert!(!is_in_the_files(&bench, "zacharias@one.example"));
        assert_eq!(bench.find(Criteria::default()), [other]);
        bench.tell(id, MailEvent::Complained { recipients: vec![0], reporter: "x".to_owned() }, NOON + 3).await;
        bench.search.rebuild();
        bench.catch_up().await;
    }
}

#[tokio::test]
async fn of_a_deleted_tenant_nothing_stays_in_the_files_also_if_the_daemon_stops_before() {
    let mut bench = Bench::new();
    let mail = |at: u64, to: &str| Mail { tenant: 2, to: vec![to.to_owned()], ..Mail::plain(at) };
    let gone = [
        bench.accept(&mail(NOON, "zacharias@one.example")).await,
        bench.accept(&mail(NOON + DAY, "yolanda@one.example")).await,
    ];
    let stays = bench.accept(&Mail::plain(NOON + 2)).await;
    bench.catch_up().await;
    assert!(is_in_the_files(&bench, "zacharias@one.example") && is_in_the_files(&bench, "yolanda@one.example"));
    let mut batch = Batch::new();
    for id in gone {
        batch.remove(history_key(id));
    }
    bench.store.commit(batch).await.unwrap();
    bench.search.forget_tenant(TenantId(2)).await.unwrap();
    bench.reopen();
    bench.catch_up().await;
    for _ in 0..2 {
        assert!(!is_in_the_files(&bench, "zacharias@one.example") && !is_in_the_files(&bench, "yolanda@one.example"));
        assert_eq!(bench.find(Criteria::default()), [stays]);
        let notes = fs::read_dir(&bench.search.folder).unwrap().flatten();
        let notes = notes.filter(|entry| entry.file_name().to_string_lossy().starts_with("gone-"));
        assert_eq!(notes.count(), 0, "it is done");
        bench.tell(gone[0], MailEvent::Complained { recipients: vec![0], reporter: "x".to_owned() }, NOON + 3).await;
        bench.search.rebuild();
        bench.catch_up().await;
    }
}

#[tokio::test]
async fn each_tenants_messages_are_kept_as_long_as_it_says() {
    let bench = Bench::new();
    let mut ids = Vec::new();
    for (tenant, after) in [(1, 0), (2, 0), (1, 4 * DAY), (2, 4 * DAY)] {
        ids.push(bench.accept(&Mail { tenant, ..Mail::plain(NOON + after) }).await);
    }
    bench.catch_up().await;
    let forget = |at: u64| {
        let (search, handle) = (Arc::clone(&bench.search), tokio::runtime::Handle::current());
        tokio::task::spawn_blocking(move || {
            assert!(search.forget_before(&mut None, (&handle, &Shutdown::new()), Timestamp(at)).is_ok());
        })
    };
    let left = |numbers: &[usize]| {
        let mut left: Vec<QueueId> = numbers.iter().map(|number| ids[*number]).collect();
        left.sort_by(|one, two| two.cmp(one));
        left
    };
    forget(NOON + 3 * DAY).await.unwrap();
    assert_eq!(bench.find(Criteria::default()), left(&[0, 1, 2, 3]), "the day is not over for three days yet");
    forget(NOON + 4 * DAY).await.unwrap();
    assert_eq!(bench.find(Criteria::default()), left(&[0, 2, 3]));
    assert_eq!(bench.store.get(&history_key(ids[1])), Ok(None), "its history is gone, too");
    forget(NOON + 17 * DAY).await.unwrap();
    assert_eq!(bench.find(Criteria::default()), left(&[2]));
    assert_eq!(records::read(&bench.search.days).len(), 1, "a day without messages has no index");
}

#[tokio::test]
async fn nobody_finds_what_is_not_theirs() {
    let bench = Bench::new();
    let own = bench.accept(&Mail::plain(NOON)).await;
    let of_account =
        bench.accept(&Mail { account: 8, from: "a@b.shop.example".to_owned(), ..Mail::plain(NOON + 1) }).await;
    let foreign = bench.accept(&Mail { tenant: 2, ..Mail::plain(NOON + 2) }).await;
    bench.catch_up().await;
    let find = |actor: &Actor, criteria: Criteria| {
        let page = bench.search.find(actor, criteria, None, 10)?;
        Ok::<_, AdminError>(page.hits.into_iter().map(|hit| hit.id).collect::<Vec<_>>())
    };
    let analyst = Actor::of("x", Role::Analyst(TenantId(1)));
    assert_eq!(find(&analyst, Criteria::default()).unwrap(), [of_account, own]);
    let by_id = Criteria { id: Some(foreign), ..Criteria::default() };
    assert_eq!(find(&analyst, by_id).unwrap(), Vec::<QueueId>::new());
    let asks_for = Criteria { tenant: Some(TenantId(2)), ..Criteria::default() };
    assert!(matches!(find(&analyst, asks_for), Err(AdminError::Forbidden(_))));
    let narrowed = |narrowing| Actor { narrowing: Arc::new(narrowing), ..analyst.clone() };
    let accounts = Some([(SmtpAccountId(8), Action::Read)].into());
    let actor = narrowed(Narrowing { accounts, ..Narrowing::default() });
    assert_eq!(find(&actor, Criteria::default()).unwrap(), [of_account]);
    let domains = Some(vec![Domain::parse("b.shop.example").unwrap()]);
    let actor = narrowed(Narrowing { domains, ..Narrowing::default() });
    assert_eq!(find(&actor, Criteria::default()).unwrap(), [of_account]);
}

#[tokio::test]
async fn pages_have_neither_gap_nor_repetition_while_mail_comes_in() {
    let bench = Bench::new();
    let mut there = BTreeSet::new();
    for number in 0..40_u64 {
        there.insert(bench.accept(&Mail::plain(NOON + number)).await);
    }
    bench.catch_up().await;
    let (mut seen, mut before, mut more) = (Vec::new(), None, 1_000);
    loop {
        let page = bench.search.find(&Actor::local(0), Criteria::default(), before, 7).unwrap();
        seen.extend(page.hits.into_iter().map(|hit| hit.id));
        before = page.next;
        if before.is_none() {
            break;
        }
        more += 1;
        bench.accept(&Mail::plain(NOON + more)).await;
        bench.catch_up().await;
    }
    assert_eq!(seen.len(), 40);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), there);
}
