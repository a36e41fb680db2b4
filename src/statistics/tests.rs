//! Counts are those of the log, whatever crashes, and what is asked is answered within its bounds.

use std::collections::BTreeMap;

use super::rows::Face;
use super::tally::{DOMAINS_PER_HOUR_MAX, SENDING_DOMAIN_ROWS_MAX, SENDING_DOMAINS_MAX, TAGS_MAX};
use super::*;
use crate::access::{Action, Actor, Narrowing, Role};
use crate::events::{Accepted, Bell, Entry, Event, EventKind, History, MailEvent, Peer, Tally, Why, history_key};
use crate::mail::{
    Address, Class, Domain, Labels, QueueId, Reply, ReversePath, Signed, SmtpAccountId, TenantId, VipId,
};
use crate::records::AdminError;
use crate::store::{Key, MemoryStore, after_prefix, codec, prefix};

const NOON: u64 = 1_795_348_800_000;
const HOUR: u64 = 3_600_000;
const SHOP: TenantId = TenantId(1);
/// Was deleted: nobody knows it any more.
const GONE: TenantId = TenantId(66);

fn room(store: &Arc<MemoryStore>) -> Arc<Statistics> {
    let store: Arc<dyn Store> = Arc::clone(store) as Arc<dyn Store>;
    let provider_of: ProviderOf = Arc::new(|host, domain| {
        (host.is_some_and(|host| host.ends_with(".big.example")) || domain == "big.example").then(|| "big".to_owned())
    });
    let is_known_domain: IsKnownDomain = Arc::new(|domain| domain == "big.example");
    Arc::new(Statistics::open(Parts {
        store,
        provider_of,
        is_known_domain,
        is_tenant: Arc::new(|tenant| tenant != GONE),
        settings: Settings::default(),
        calendar: Default::default(),
    }))
}

/// Whoever asks of one face pays for the rows of that one.
#[tokio::test]
async fn rows_of_other_faces_are_passed_over() {
    let store = Arc::new(MemoryStore::new());
    let room = room(&store);
    let mut batch = Batch::new();
    let faces = [Face::Destination, Face::SendingDomain, Face::Tag];
    for (tenant, number) in [(1, 7), (2, 7), (1, 8), (2, 8)] {
        let bucket = rows::Bucket { span: Span::Hour, number, tenant: TenantId(tenant) };
        for (face, count) in faces.into_iter().zip([3, 3000, 2500]) {
            for value in 0..count {
                let (provider, value) = (String::new(), format!("{value}"));
                let labels = rows::Labels { face, account: None, vip: VipId(3), provider, value };
                batch.set(bucket.row(&labels), Vec::new());
            }
        }
    }
    store.commit(batch).await.unwrap();
    for (face, count) in faces.into_iter().zip([3, 3000, 2500]) {
        let (mut rows, mut others) = (0, 0);
        let (from, to) = (rows::from_number(Span::Hour, 7), rows::from_number(Span::Hour, 9));
        let mut take = |key: Key, _| {
            let (_, labels) = rows::read(&key).unwrap();
            *(if labels.face == face { &mut rows } else { &mut others }) += 1;
            Ok(())
        };
        room.each((&from, &to), face, &mut take).unwrap();
        assert_eq!((rows, others), (4 * count, 0), "{face:?}");
    }
}

struct Mail {
    tenant: TenantId,
    account: u64,
    source: &'static str,
    to: Vec<String>,
    tags: Vec<&'static str>,
    signed: Option<Signed>,
    class: Class,
}

fn signed(by: &str, offers_one_click: bool) -> Option<Signed> {
    Some(Signed { by: Domain::parse(by).unwrap(), offers_one_click })
}

fn mail(to: &[&str]) -> Mail {
    let to = to.iter().map(|to| (*to).to_owned()).collect();
    let (signed, class) = (signed("shop.example", false), Class::Transactional);
    Mail { tenant: SHOP, account: 7, source: "smtp", to, tags: Vec::new(), signed, class }
}

async fn accept(store: &MemoryStore, mail: &Mail, at: u64) -> QueueId {
    let id = QueueId::new(Timestamp(at));
    let (account, vip) = (Some(SmtpAccountId(mail.account)), VipId(3));
    let mut labels = Labels::default();
    mail.tags.iter().for_each(|tag| labels.tag(tag).unwrap());
    let (class, source) = (mail.class, mail.source.to_owned());
    let history = History {
        tenant: mail.tenant,
        accepted: Timestamp(at),
        reverse_path: ReversePath(None),
        header_from: String::new(),
        subject: String::new(),
        message_id: String::new(),
        recipients: mail.to.iter().map(|to| Address::parse(to).unwrap()).collect(),
        labels,
        entry: Some(Entry { account, vip, class, source: source.clone(), size_bytes: 100 }),
        returns: None,
        signed: mail.signed.clone(),
    };
    let recipients = u16::try_from(mail.to.len()).unwrap();
    let accepted =
        Accepted { tenant: mail.tenant, account, vip, class, source, size_bytes: 100, recipients, signatures: vec![] };
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    let kind = EventKind::Mail(id, MailEvent::Accepted(accepted));
    crate::events::record(&mut batch, &Event { at: Timestamp(at), kind });
    store.commit(batch).await.unwrap();
    id
}

async fn tell(store: &MemoryStore, id: QueueId, event: MailEvent, at: u64) {
    let mut batch = Batch::new();
    crate::events::record(&mut batch, &Event { at: Timestamp(at), kind: EventKind::Mail(id, event) });
    store.commit(batch).await.unwrap();
}

fn peer(host: &str) -> Peer {
    Peer { host: host.to_owned(), address: String::new(), source: String::new(), tls: String::new() }
}

fn delivered(recipients: &[u16]) -> MailEvent {
    let reply = Reply::enhanced(250, 2, 0, "ok");
    MailEvent::Delivered { recipients: recipients.to_vec(), peer: peer("mx.big.example"), reply }
}

fn bounced(recipients: &[u16], why: Why) -> MailEvent {
    MailEvent::Bounced { recipients: recipients.to_vec(), peer: None, why, detail: String::new() }
}

/// One step of a process that is to stop: what is there is counted and stored, unless the store refuses.
async fn step(store: &Arc<MemoryStore>, room: &Arc<Statistics>) {
    let (tally, stop, bell) = (Arc::clone(room) as Arc<dyn Tally>, Shutdown::new(), Bell::default());
    stop.cancel();
    crate::events::drive_exactly(&**store, &tally, &bell, &stop).await;
}

/// Counts everything that is there.
async fn count(store: &Arc<MemoryStore>, room: &Arc<Statistics>) {
    step(store, room).await;
    let all = store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap();
    let cursor = store.get(&[&[prefix::CURSOR][..], CURSOR.as_bytes()].concat()).unwrap();
    let at: Vec<u8> = codec::decode(&cursor.unwrap()).unwrap();
    assert_eq!(Some(&at), all.last().map(|(key, _)| key), "everything was read");
}

fn question(step: Step, by: Option<Dimension>) -> Question {
    Question {
        tenant: Some(SHOP),
        from: Timestamp(NOON - 12 * HOUR),
        until: Timestamp(NOON + 12 * HOUR),
        step,
        by,
        narrow: Narrow::default(),
        groups_max: 50,
        order: Status::Injected,
    }
}

fn ask(room: &Statistics, question: &Question) -> Answer {
    room.ask(&Actor::local(0), question).unwrap()
}

fn groups(answer: &Answer, status: Status) -> Vec<(String, u64)> {
    let named = |group: &Option<Group>| match group {
        Some(Group::Text(text)) => text.clone(),
        Some(Group::Class(word)) => (*word).to_owned(),
        other => format!("{other:?}"),
    };
    answer.rows.iter().map(|row| (named(&row.group), row.counts.of(status))).collect()
}

#[tokio::test]
async fn what_happened_is_counted_by_recipient_and_by_what_it_was() {
    let store = Arc::new(MemoryStore::new());
    let room = room(&store);
    let order = Mail { tags: vec!["order", "vip"], ..mail(&["a@one.example", "b@one.example", "c@big.example"]) };
    let id = accept(&store, &order, NOON).await;
    tell(&store, id, MailEvent::Suppressed { recipients: vec![1] }, NOON).await;
    let detail = String::new();
    let deferred =
        MailEvent::Deferred { recipients: vec![0], peer: None, why: Why::TryLater, detail, due_in_secs: 300 };
    tell(&store, id, deferred.clone(), NOON + 1_000).await;
    tell(&store, id, deferred, NOON + HOUR).await;
    tell(&store, id, delivered(&[2]), NOON + 2_000).await;
    tell(&store, id, bounced(&[0], Why::RecipientGone), NOON + HOUR + 1).await;
    tell(&store, id, MailEvent::Retired, NOON + HOUR + 1).await;
    tell(&store, id, MailEvent::Complained { recipients: vec![2], reporter: "big".to_owned() }, NOON + 2 * HOUR).await;
    count(&store, &room).await;

    let totals = ask(&room, &question(Step::Total, None)).totals;
    assert_eq!((totals.messages, totals.bytes), (1, 100));
    let counted: Vec<(&str, u64)> = STATUSES.iter().map(|status| (status.word(), totals.of(*status))).collect();
    let expected = [
        ("injected", 3),
        ("ok", 1),
        ("softbounce", 0),
        ("hardbounce", 1),
        ("spambounce", 0),
        ("dropped", 1),
        ("deferred", 2),
        ("cancelled", 0),
        ("open", 0),
        ("click", 0),
        ("unsubscribe", 0),
        ("complaint", 1),
    ];
    assert_eq!(counted, expected);
    assert_eq!(totals.delays(), [1, 0, 0, 0, 0, 0, 0, 0]);
    let hours = ask(&room, &question(Step::Hour, None));
    let by_hour: Vec<(Option<Timestamp>, u64)> =
        hours.rows.iter().map(|row| (row.at, row.counts.of(Status::Deferred))).collect();
    let at = |hours: u64| Some(Timestamp(NOON + hours * HOUR));
    assert_eq!(by_hour, [(at(0), 1), (at(1), 1), (at(2), 0)]);
    let by = |by| ask(&room, &question(Step::Total, Some(by)));
    assert_eq!(
        groups(&by(Dimension::Domain), Status::Injected),
        [("one.example".to_owned(), 2), ("big.example".to_owned(), 1)]
    );
    assert_eq!(groups(&by(Dimension::Provider), Status::Ok), [("big".to_owned(), 1), ("Some(Other)".to_owned(), 0)]);
    assert_eq!(groups(&by(Dimension::Tag), Status::Ok), [("order".to_owned(), 1), ("vip".to_owned(), 1)]);
    let classes = by(Dimension::Class);
    assert_eq!(groups(&classes, Status::Deferred), [("try-later".to_owned(), 2), ("recipient-gone".to_owned(), 0)]);
    assert_eq!(classes.totals, totals, "the totals are of everything, however rows are told apart");
    assert_eq!(ask(&room, &question(Step::Day, None)).totals, totals);
}

#[tokio::test]
async fn notices_are_not_a_tenants_mail_and_an_erased_message_still_counts() {
    let store = Arc::new(MemoryStore::new());
    let id = accept(&store, &Mail { source: "notice", ..mail(&["a@one.example"]) }, NOON).await;
    tell(&store, id, delivered(&[0]), NOON).await;
    let id = accept(&store, &mail(&["a@one.example"]), NOON).await;
    let mut history = History::from_bytes(&store.get(&history_key(id)).unwrap().unwrap()).unwrap();
    history.recipients = vec![Address::parse("erased@erased.invalid").unwrap()];
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    store.commit(batch).await.unwrap();
    // A message whose history is gone is told of by its acceptance alone.
    let gone = accept(&store, &mail(&["b@one.example", "c@one.example"]), NOON).await;
    let mut batch = Batch::new();
    batch.remove(history_key(gone));
    store.commit(batch).await.unwrap();
    tell(&store, gone, delivered(&[0, 1]), NOON).await;
    let room = room(&store);
    count(&store, &room).await;
    let answer = ask(&room, &question(Step::Total, Some(Dimension::Domain)));
    assert_eq!(groups(&answer, Status::Injected), [("Some(Other)".to_owned(), 3)]);
    assert_eq!((answer.totals.messages, answer.totals.of(Status::Ok)), (2, 2));
}

#[tokio::test]
async fn a_crash_at_any_moment_counts_nothing_twice_and_forgets_nothing() {
    let store = Arc::new(MemoryStore::new());
    let mut expected = BTreeMap::<(u64, String), u64>::new();
    let mut of_senders = BTreeMap::<String, [u64; 4]>::new();
    for round in 0..12_u64 {
        for number in 0..20_u64 {
            let (account, domain) = (number % 3, format!("d{}.example", (round + number) % 5));
            let by = format!("s{}.example", (round * number) % 4);
            let (signed, class) = (signed(&by, number % 2 == 0), Class::Marketing);
            let own = Mail { account, signed, class, ..mail(&[&format!("a@{domain}")]) };
            let id = accept(&store, &own, NOON + round * 600_000).await;
            tell(&store, id, delivered(&[0]), NOON + round * 600_000 + 5).await;
            let counted = of_senders.entry(by).or_default();
            counted[0] += 1;
            counted[2] += 1;
            counted[3] += u64::from(number % 2 == 0);
            if number % 5 == 0 {
                counted[1] += 1;
                let complaint = MailEvent::Complained { recipients: vec![0], reporter: "big".to_owned() };
                tell(&store, id, complaint, NOON + round * 600_000 + 9).await;
            }
            *expected.entry((account, domain)).or_default() += 1;
        }
        let fallen = room(&store);
        match round % 3 {
            // It fell before anything was stored: with what it counted.
            0 => {
                let all = store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap();
                let events: Vec<Event> = all.iter().map(|(_, bytes)| codec::decode(bytes).unwrap()).collect();
                fallen.take(&events).unwrap();
            }
            1 => count(&store, &fallen).await,
            // The store refused, and then it fell.
            _ => {
                store.fail_next(1, CommitError::Failed("no".into()));
                step(&store, &fallen).await;
            }
        }
    }
    let room = room(&store);
    count(&store, &room).await;
    for (account, domain) in expected.keys() {
        let narrow = Narrow {
            account: Some(SmtpAccountId(*account)).filter(|account| account.0 != 0),
            domain: Some(domain.clone()),
            ..Narrow::default()
        };
        if narrow.account.is_none() {
            continue;
        }
        let totals = ask(&room, &Question { narrow, ..question(Step::Total, None) }).totals;
        let wanted = expected[&(*account, domain.clone())];
        assert_eq!((totals.of(Status::Injected), totals.of(Status::Ok)), (wanted, wanted), "{account} {domain}");
    }
    let totals = ask(&room, &question(Step::Total, None)).totals;
    assert_eq!((totals.of(Status::Injected), totals.of(Status::Ok)), (240, 240));
    for (by, expected) in of_senders {
        let narrow = Narrow { sending_domain: Some(by.clone()), ..Narrow::default() };
        let counts = ask(&room, &Question { narrow, ..question(Step::Total, None) }).totals;
        let counted = [counts.of(Status::Ok), counts.of(Status::Complaint), counts.marketing, counts.one_click];
        assert_eq!(counted, expected, "{by}");
    }
}

#[tokio::test]
async fn a_sending_domain_is_told_apart_however_its_mail_came_in_and_whenever_it_was_accepted() {
    let store = Arc::new(MemoryStore::new());
    let room = room(&store);
    let told = |recipients: Vec<u16>| MailEvent::Complained { recipients, reporter: "big".to_owned() };
    for (by, source, account) in [("a.example", "api", 0), ("a.example", "smtp", 7), ("b.example", "smtp", 7)] {
        let own = Mail { signed: signed(by, false), source, account, ..mail(&["x@one.example", "y@two.example"]) };
        let id = accept(&store, &own, NOON).await;
        tell(&store, id, delivered(&[0, 1]), NOON).await;
        tell(&store, id, told(vec![1]), NOON + HOUR).await;
    }
    // Of the time before it was recorded who signed: what the header From says.
    let id = accept(&store, &Mail { signed: None, ..mail(&["x@one.example"]) }, NOON).await;
    let mut history = History::from_bytes(&store.get(&history_key(id)).unwrap().unwrap()).unwrap();
    history.header_from = "\"Shop, the\" <news@b.example>".to_owned();
    let mut batch = Batch::new();
    batch.set(history_key(id), history.to_bytes());
    store.commit(batch).await.unwrap();
    tell(&store, id, told(vec![0]), NOON).await;
    count(&store, &room).await;
    let answer = ask(&room, &question(Step::Total, Some(Dimension::SendingDomain)));
    let counted = |status| groups(&answer, status);
    let named = |a, b| [("a.example".to_owned(), a), ("b.example".to_owned(), b)];
    assert_eq!(counted(Status::Injected), named(4, 3));
    assert_eq!(counted(Status::Ok), named(4, 2));
    assert_eq!(counted(Status::Complaint), named(2, 2));
    let narrow =
        Narrow { account: Some(SmtpAccountId(7)), sending_domain: Some("a.example".to_owned()), ..Narrow::default() };
    assert_eq!(ask(&room, &Question { narrow, ..question(Step::Hour, None) }).totals.of(Status::Complaint), 1);
}

#[tokio::test]
async fn sending_domains_beyond_a_number_are_counted_together_and_take_no_room_from_others() {
    let store = Arc::new(MemoryStore::new());
    let room = room(&store);
    let (of_vips, more) = (SENDING_DOMAIN_ROWS_MAX - 1, 5);
    // One domain by more SMTP accounts than there are rows, then more domains than are told apart.
    for number in 0..of_vips + more {
        accept(&store, &Mail { account: number as u64 + 1, ..mail(&["a@one.example"]) }, NOON).await;
    }
    for number in 0..SENDING_DOMAINS_MAX + more {
        let signed = signed(&format!("s{number}.example"), false);
        accept(&store, &Mail { signed, ..mail(&["a@one.example"]) }, NOON).await;
    }
    for _page in 0..4 {
        step(&store, &room).await;
    }
    count(&store, &room).await;
    let of = |sender: &str, account| {
        let narrow = Narrow { sending_domain: Some(sender.to_owned()), account, ..Narrow::default() };
        let hour = Question { from: Timestamp(NOON), until: Timestamp(NOON + HOUR), ..question(Step::Total, None) };
        ask(&room, &Question { narrow, ..hour }).totals.of(Status::Injected)
    };
    assert_eq!(of("shop.example", None), (of_vips + more) as u64, "exact, with and without a row for each account");
    assert_eq!((of("shop.example", Some(SmtpAccountId(1))), of("shop.example", Some(SmtpAccountId(1_002)))), (1, 0));
    assert_eq!((of("s0.example", None), of("s998.example", None), of("s999.example", None)), (1, 1, 0));
    assert_eq!(of(OTHER, None), more as u64 + 1);
    let rows = store.range(&[prefix::STATISTICS, b'h'], &[prefix::STATISTICS, b'i'], usize::MAX).unwrap();
    let of_senders = rows.iter().filter(|(key, _)| rows::read(key).unwrap().1.face == Face::SendingDomain).count();
    assert!(of_senders <= SENDING_DOMAIN_ROWS_MAX + SENDING_DOMAINS_MAX + 1, "{of_senders}");
    assert!(rows.len() - of_senders > 900, "destinations have the room they always had");
}

#[tokio::test]
async fn whoever_is_bound_to_sending_domains_sees_theirs_and_nothing_else() {
    let store = Arc::new(MemoryStore::new());
    for by in ["shop.example", "news.shop.example", "other.example"] {
        accept(&store, &Mail { signed: signed(by, false), ..mail(&["a@one.example"]) }, NOON).await;
    }
    let room = room(&store);
    count(&store, &room).await;
    let domains = Some(vec![Domain::parse("shop.example").unwrap()]);
    let narrowing = Narrowing { domains, ..Narrowing::default() };
    let bound = Actor { narrowing: Arc::new(narrowing), ..Actor::of("k", Role::Analyst(SHOP)) };
    let own = room.ask(&bound, &question(Step::Total, Some(Dimension::SendingDomain))).unwrap();
    let named = |name: &str| (name.to_owned(), 1);
    assert_eq!(groups(&own, Status::Injected), [named("news.shop.example"), named("shop.example")]);
    assert_eq!(own.totals.of(Status::Injected), 2);
    let narrow = Narrow { sending_domain: Some("other.example".to_owned()), ..Narrow::default() };
    let foreign = Question { narrow, ..question(Step::Total, None) };
    assert_eq!(room.ask(&bound, &foreign).unwrap().totals, Counts::default());
    for by in [None, Some(Dimension::Domain), Some(Dimension::Tag), Some(Dimension::Account)] {
        assert!(matches!(room.ask(&bound, &question(Step::Total, by)), Err(AdminError::Forbidden(_))), "{by:?}");
    }
    let elsewhere = Question { tenant: Some(TenantId(2)), ..question(Step::Total, Some(Dimension::SendingDomain)) };
    assert!(matches!(room.ask(&bound, &elsewhere), Err(AdminError::Forbidden(_))));
}

#[tokio::test]
async fn domains_and_tags_beyond_a_number_are_counted_together_and_the_sums_stay_exact() {
    let store = Arc::new(MemoryStore::new());
    let many = DOMAINS_PER_HOUR_MAX + 40;
    for number in 0..many {
        accept(&store, &mail(&[&format!("a@d{number}.example")]), NOON).await;
    }
    // One of a known provider comes late and has its own row all the same.
    accept(&store, &mail(&["a@big.example"]), NOON).await;
    let room = room(&store);
    count(&store, &room).await;
    let hour = Question { from: Timestamp(NOON), until: Timestamp(NOON + HOUR), ..question(Step::Hour, None) };
    let by_domain = |groups_max| ask(&room, &Question { by: Some(Dimension::Domain), groups_max, ..hour.clone() });
    let answer = by_domain(GROUPS_MAX);
    assert_eq!(answer.totals.of(Status::Injected), many as u64 + 1);
    let other: u64 =
        groups(&answer, Status::Injected).iter().filter(|row| row.0 == "Some(Other)").map(|row| row.1).sum();
    assert_eq!((other, answer.groups_left_out), (40 + 1, 1), "a group more than fits into the answer");
    let narrow = Narrow { domain: Some("big.example".to_owned()), ..Narrow::default() };
    assert_eq!(ask(&room, &Question { narrow, ..hour.clone() }).totals.of(Status::Injected), 1);
    let few = by_domain(3);
    assert_eq!((few.rows.len(), few.groups_left_out), (4, DOMAINS_PER_HOUR_MAX + 1 - 3));
    let sum: u64 = few.rows.iter().map(|row| row.counts.of(Status::Injected)).sum();
    assert_eq!(sum, many as u64 + 1, "what is left out is in the row of the rest");
    // In the day there is room for all of them.
    let day = ask(&room, &Question { groups_max: GROUPS_MAX, ..question(Step::Day, Some(Dimension::Domain)) });
    assert_eq!(day.groups_left_out, many + 1 - GROUPS_MAX);
    assert!(TAGS_MAX < ROWS_MAX && Face::Tag != Face::Destination);
}

#[tokio::test]
async fn nobody_sees_another_tenants_counts_and_some_see_some_accounts_only() {
    let store = Arc::new(MemoryStore::new());
    accept(&store, &mail(&["a@one.example"]), NOON).await;
    accept(&store, &Mail { account: 8, ..mail(&["a@one.example"]) }, NOON).await;
    accept(&store, &Mail { tenant: TenantId(2), account: 9, ..mail(&["a@one.example"]) }, NOON).await;
    let room = room(&store);
    count(&store, &room).await;
    let everybody = Question { tenant: None, ..question(Step::Total, Some(Dimension::Tenant)) };
    assert_eq!(ask(&room, &everybody).rows.len(), 2);
    let analyst = Actor::of("x", Role::Analyst(SHOP));
    let own = room.ask(&analyst, &everybody).unwrap();
    assert_eq!((own.rows.len(), own.totals.of(Status::Injected)), (1, 2), "without a tenant it is one's own");
    let theirs = Question { tenant: Some(TenantId(2)), ..everybody.clone() };
    assert!(matches!(room.ask(&analyst, &theirs), Err(AdminError::Forbidden(_))));
    let narrowing = Narrowing { accounts: Some([(SmtpAccountId(8), Action::Read)].into()), ..Narrowing::default() };
    let narrowed = Actor { narrowing: Arc::new(narrowing), ..analyst };
    assert_eq!(room.ask(&narrowed, &everybody).unwrap().totals.of(Status::Injected), 1);
}

#[tokio::test]
async fn an_answer_has_bounds_and_says_how_to_stay_within() {
    let room = room(&Arc::new(MemoryStore::new()));
    let refused = |question: &Question| room.ask(&Actor::local(0), question).unwrap_err().to_string();
    let year = Question { from: Timestamp(NOON - 9_000 * HOUR), ..question(Step::Hour, None) };
    assert!(refused(&year).contains("shorter period or for days"));
    let wide = Question { from: Timestamp(NOON - 1_000 * HOUR), ..question(Step::Hour, Some(Dimension::Domain)) };
    assert!(refused(&wide).contains("at most 50000 rows"), "{}", refused(&wide));
    let backwards = Question { until: Timestamp(0), ..question(Step::Day, None) };
    assert!(refused(&backwards).contains("end after it begins"));
    let narrow = Narrow { tag: Some("x".to_owned()), ..Narrow::default() };
    let both = Question { narrow, ..question(Step::Day, Some(Dimension::Domain)) };
    assert!(refused(&both).contains("ask for one of them"));
    let narrow = Narrow { sending_domain: Some("x".to_owned()), ..Narrow::default() };
    let both = Question { narrow, ..question(Step::Day, Some(Dimension::Provider)) };
    assert!(refused(&both).contains("ask for one of them"));
}

#[tokio::test]
async fn hours_are_forgotten_before_days() {
    let store = Arc::new(MemoryStore::new());
    accept(&store, &mail(&["a@one.example"]), NOON).await;
    let room = room(&store);
    count(&store, &room).await;
    let day = 24 * HOUR;
    assert_eq!(room.forget(Timestamp(NOON + 62 * day)).await, Ok(0));
    assert_eq!(room.forget(Timestamp(NOON + 63 * day)).await, Ok(2));
    assert_eq!(ask(&room, &question(Step::Hour, None)).totals.messages, 0);
    assert_eq!(ask(&room, &question(Step::Day, None)).totals.messages, 1);
    assert_eq!(room.forget(Timestamp(NOON + 1_098 * day)).await, Ok(2));
    assert_eq!(ask(&room, &question(Step::Day, None)).totals.messages, 0);
}

/// Rows of a tenant that are stored.
fn stored(store: &MemoryStore, tenant: TenantId) -> usize {
    let all = store.range(&[prefix::STATISTICS], &after_prefix(&[prefix::STATISTICS]), usize::MAX).unwrap();
    all.iter().filter(|(key, _)| rows::read(key).is_some_and(|(bucket, _)| bucket.tenant == tenant)).count()
}

#[tokio::test]
async fn of_a_deleted_tenant_no_count_stays_and_none_comes() {
    let store = Arc::new(MemoryStore::new());
    let running = room(&store);
    let theirs = |to: &[&str]| Mail { tenant: GONE, tags: vec!["secret"], ..mail(to) };
    let id = accept(&store, &theirs(&["a@one.example", "b@two.example"]), NOON).await;
    accept(&store, &theirs(&["a@one.example"]), NOON + 30 * HOUR).await;
    accept(&store, &mail(&["a@one.example"]), NOON).await;
    count(&store, &running).await;
    assert_eq!((stored(&store, GONE), stored(&store, SHOP)), (14, 4));
    // Counted in memory, not stored yet.
    let event = MailEvent::Suppressed { recipients: vec![0] };
    running.take(&[Event { at: Timestamp(NOON), kind: EventKind::Mail(id, event.clone()) }]).unwrap();
    assert_eq!(running.forget_tenant(GONE).await, Ok(14));
    assert_eq!(running.forget_tenant(GONE).await, Ok(0), "again is nothing");
    running.keep(Batch::new()).await.unwrap();
    // Not counted when it went: by who ran then, and by who runs later, when no history is there either.
    let late = accept(&store, &theirs(&["c@one.example"]), NOON + HOUR).await;
    tell(&store, id, event, NOON + HOUR).await;
    count(&store, &running).await;
    assert_eq!((stored(&store, GONE), stored(&store, SHOP)), (0, 4));
    let mut batch = Batch::new();
    batch.remove([&[prefix::CURSOR][..], CURSOR.as_bytes()].concat());
    for id in [id, late] {
        batch.remove(history_key(id));
    }
    let all = store.range(&[prefix::HISTORY], &after_prefix(&[prefix::HISTORY]), usize::MAX).unwrap();
    for (key, bytes) in all {
        if History::from_bytes(&bytes).unwrap().tenant == GONE {
            batch.remove(key);
        }
    }
    store.commit(batch).await.unwrap();
    count(&store, &room(&store)).await;
    assert_eq!((stored(&store, GONE), stored(&store, SHOP)), (0, 4));
}

#[tokio::test]
async fn a_copy_of_a_tenant_has_every_row_of_it_and_of_nobody_else() {
    let store = Arc::new(MemoryStore::new());
    let room = room(&store);
    accept(&store, &Mail { tags: vec!["t"], ..mail(&["a@one.example", "b@big.example"]) }, NOON).await;
    accept(&store, &mail(&["a@one.example"]), NOON + 50 * HOUR).await;
    accept(&store, &Mail { tenant: TenantId(2), ..mail(&["a@other.example"]) }, NOON + 26 * HOUR).await;
    count(&store, &room).await;
    let copy = |actor: &Actor, span: Span| {
        let (mut from, mut all) = (Timestamp(0), Vec::new());
        while let Some(copied) = room.copy_of(actor, (SHOP, span), from)? {
            assert!(copied.at >= from && copied.until > copied.at);
            all.extend(copied.rows.into_iter().map(|(labels, _)| (copied.at, labels.value)));
            from = copied.until;
        }
        Ok::<_, AdminError>(all)
    };
    for span in [Span::Hour, Span::Day] {
        let at = |hours: u64| span.begins(span.number(Timestamp(NOON + hours * HOUR)));
        let mut all = copy(&Actor::of("x", Role::TenantOwner(SHOP)), span).unwrap();
        all.sort();
        let expected = [
            (0, "big.example"),
            (0, "one.example"),
            (0, "shop.example"),
            (0, "t"),
            (50, "one.example"),
            (50, "shop.example"),
        ];
        assert_eq!(all, expected.map(|(hours, value)| (at(hours), value.to_owned())));
    }
    assert!(copy(&Actor::of("x", Role::TenantOwner(TenantId(2))), Span::Day).is_err());
}
