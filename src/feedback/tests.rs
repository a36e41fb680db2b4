//! The room over a store in memory: whom mail may come to, and what follows from what came.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;

use super::*;
use crate::access::Actor;
use crate::domains::{Expected, State};
use crate::events::{Entry, Event, EventKind, History, MailEvent, NoticeKind, Returns, history_key};
use crate::mail::dkim::{self, Algorithm, Algorithms, SignAs, SigningKeys};
use crate::mail::{Class, Draft, Envelope, ForwardPath, Labels, MailParameters, Notify, TenantId, read_whole};
use crate::net::{LookupError, Mx, Spf, SpfAnswer, SpfQuestion};
use crate::seal::MasterKey;
use crate::store::{Batch, MemoryStore, after_prefix, codec, prefix};

const TENANT: TenantId = TenantId(9);
const NAME: &str = "bounce.shop.example";
const HOST: &str = "mx.host.example";

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

/// TXT and MX records by name.
#[derive(Default)]
struct Dns {
    txt: Mutex<HashMap<String, Vec<String>>>,
    is_silent: AtomicBool,
}

#[async_trait]
impl Resolver for Dns {
    async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
        Ok(vec![Mx { preference: 10, host: Some(domain(HOST)) }])
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError> {
        if self.is_silent.load(Relaxed) {
            return Err(LookupError::Temporary("no answer".to_owned()));
        }
        self.txt.lock().unwrap().get(name.as_str()).cloned().ok_or(LookupError::NoRecord)
    }
    async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn spf(&self, _: &SpfQuestion<'_>) -> SpfAnswer {
        let result = if self.is_silent.load(Relaxed) { Spf::TemporaryError } else { Spf::Fail };
        SpfAnswer { result, good_until: None }
    }
}

struct Room {
    store: Arc<MemoryStore>,
    dns: Arc<Dns>,
    feedback: Arc<Feedback>,
    /// Whether who reports here runs the recipients' mailboxes.
    is_provider: Arc<AtomicBool>,
}

impl Room {
    async fn new() -> Self {
        let (store, key) = (Arc::new(MemoryStore::new()), Arc::new(MasterKey::from_bytes([3; 32])));
        let dns = Arc::new(Dns::default());
        dns.txt.lock().unwrap().insert(NAME.to_owned(), vec!["v=spf1 -all".to_owned()]);
        let domains =
            Domains::open(store.clone(), key.clone(), dns.clone(), crate::domains::Settings::default()).unwrap();
        let (actor, now, own) = (Actor::system("test"), Timestamp::now(), domain("shop.example"));
        domains.expect_return_paths(Arc::new(|_| Expected { names: vec![domain(HOST)], ..Expected::default() }));
        domains.add(&actor, TENANT, &own, now).await.unwrap();
        domains.set_return_path(&actor, (TENANT, &own), None, now).await.unwrap();
        let path = domains.verify_return_path(&actor, (TENANT, &own), now).await.unwrap().unwrap();
        assert!(matches!(path.state, State::Verified(_)), "{path:?}");
        assert_eq!(domains.return_name(TENANT, &own), Some(domain(NAME)));
        let is_provider = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&is_provider);
        let parts = Parts {
            store: store.clone(),
            domains: Arc::new(domains),
            vips: Arc::new(Vips::open(store.clone()).unwrap()),
            resolver: dns.clone(),
            judge: Arc::new(|reply, _, _| {
                if reply.status.is_some_and(|status| status.subject == 1) { Why::RecipientGone } else { Why::Other }
            }),
            speaks_for: Arc::new(move |reporter, domain| {
                asked.load(Relaxed) && (reporter.as_str(), domain.as_str()) == ("reports.example", "there.example")
            }),
            hostname: domain(HOST),
            bell: Bell::default(),
            calendar: Default::default(),
        };
        let feedback = Arc::new(Feedback::open(parts, &key, Settings::default()).await.unwrap());
        Self { store, dns, feedback, is_provider }
    }

    /// A message that was sent and delivered to two recipients.
    async fn sent(&self, notify: Notify) -> QueueId {
        let id = QueueId::new(Timestamp::now());
        let history = History {
            tenant: TENANT,
            accepted: Timestamp::now(),
            reverse_path: ReversePath(Some(address("shop@shop.example"))),
            header_from: "shop@shop.example".to_owned(),
            subject: "Order 17".to_owned(),
            message_id: "<17@shop.example>".to_owned(),
            recipients: vec![address("ann@there.example"), address("bob@there.example")],
            labels: Labels::default(),
            entry: Some(Entry {
                account: None,
                vip: VipId(1),
                class: Class::Marketing,
                source: "smtp".to_owned(),
                size_bytes: 1,
            }),
            returns: Some(Returns { name: domain(NAME), envid: None, notify: vec![notify; 2], orcpt: vec![None; 2] }),
            signed: None,
        };
        let mut batch = Batch::new();
        batch.set(history_key(id), history.to_bytes());
        self.store.commit(batch).await.unwrap();
        id
    }

    async fn arrives(&self, to: &Address, text: &[u8]) -> Result<(), Refusal> {
        let peer: IpAddr = "198.51.100.7".parse().unwrap();
        self.feedback.recipient(peer, to, Timestamp::now())?;
        let arrival = Arrival {
            envelope: Envelope {
                reverse_path: ReversePath(None),
                parameters: MailParameters::default(),
                recipients: vec![ForwardPath::plain(to.clone())],
            },
            draft: draft(text),
            helo: "mx.there.example".to_owned(),
            peer: (peer, 4711).into(),
            vip: None,
        };
        self.feedback.accept(arrival, Timestamp::now()).await
    }

    fn events(&self) -> Vec<MailEvent> {
        let pairs = self.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), 100).unwrap();
        let events = pairs.into_iter().map(|(_, value)| codec::decode::<Event>(&value).unwrap().kind);
        events.filter_map(|kind| if let EventKind::Mail(_, event) = kind { Some(event) } else { None }).collect()
    }

    fn owed(&self) -> usize {
        let beginning = [prefix::FEEDBACK, b'o'];
        self.store.range(&beginning, &after_prefix(&beginning), 100).unwrap().len()
    }

    fn letters(&self) -> Vec<Letter> {
        self.feedback.letters(&Actor::local(0), None, 100).unwrap().letters
    }
}

fn draft(text: &[u8]) -> Draft {
    read_whole(text, 1 << 20).unwrap()
}

fn sample(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/returned").join(name);
    std::fs::read_to_string(path).unwrap().replace("\r\n", "\n").replace('\n', "\r\n").into_bytes()
}

#[tokio::test]
async fn mail_comes_to_tags_and_to_postmaster_abuse_and_fbl_of_our_names_only() {
    let room = Room::new().await;
    let peer = "198.51.100.7".parse().unwrap();
    let id = room.sent(Notify::default()).await;
    let own = room.feedback.return_address(id, 0, &domain(NAME));
    let answer = |to: &str| match room.feedback.recipient(peer, &address(to), Timestamp::now()) {
        Ok(()) => "ok".to_owned(),
        Err(refusal) => refusal.reply.one_line(),
    };
    for (to, begins) in [
        (own.to_string(), "ok"),
        (own.to_string().to_uppercase(), "ok"),
        (format!("postmaster@{NAME}"), "ok"),
        (format!("Abuse@{HOST}"), "ok"),
        (format!("fbl@{HOST}"), "ok"),
        (format!("{}@{HOST}", own.local_part()), "550 5.1.1"),
        (format!("{}0@{NAME}", own.local_part()), "550 5.1.1"),
        (format!("someone@{NAME}"), "550 5.1.1"),
        ("someone@elsewhere.example".to_owned(), "550 5.7.1 This server takes no mail for elsewhere.example"),
        ("postmaster@shop.example".to_owned(), "550 5.7.1"),
    ] {
        let found = answer(&to);
        assert!(found.starts_with(begins), "{to}: {found}");
    }
    let old = QueueId::new(Timestamp(Timestamp::now().0 - 31 * 86_400_000));
    let lapsed = room.feedback.return_address(old, 0, &domain(NAME)).to_string();
    assert!(answer(&lapsed).starts_with("550 5.1.6"), "{}", answer(&lapsed));
    assert!(room.feedback.sender(&ReversePath(Some(own))).is_err(), "nothing of ours sends here");
    assert!(room.feedback.sender(&ReversePath(None)).is_ok());
}

#[tokio::test]
async fn a_failure_notice_is_an_event_of_its_own_once_and_the_client_is_told() {
    let room = Room::new().await;
    let id = room.sent(Notify::default()).await;
    let to = room.feedback.return_address(id, 0, &domain(NAME));
    for _ in 0..3 {
        room.arrives(&to, &sample("postfix-bounce.eml")).await.unwrap();
    }
    let expected = MailEvent::BouncedLater {
        recipients: vec![0],
        reporter: "mx.there.example".to_owned(),
        why: Why::RecipientGone,
        detail: "550 5.1.1 <recipient>: Recipient address rejected: User unknown".to_owned(),
    };
    assert_eq!(room.events(), [expected]);
    assert_eq!(room.owed(), 1);
    let delay = room.feedback.return_address(id, 1, &domain(NAME));
    room.arrives(&delay, &sample("postfix-delay.eml")).await.unwrap();
    assert!(
        matches!(&room.events()[1], MailEvent::ReportedLater { kind: NoticeKind::Delay, recipients, .. } if recipients == &[1])
    );
    assert_eq!(room.owed(), 1, "nobody asked to be told of delays");
    let quiet = room.sent(Notify::NEVER).await;
    let to = room.feedback.return_address(quiet, 0, &domain(NAME));
    room.arrives(&to, &sample("qmail.eml")).await.unwrap();
    assert_eq!((room.events().len(), room.owed()), (3, 1), "NOTIFY=NEVER");
}

#[tokio::test]
async fn an_absence_note_is_no_bounce_and_a_person_is_kept_as_a_letter() {
    let room = Room::new().await;
    let id = room.sent(Notify::default()).await;
    let to = room.feedback.return_address(id, 0, &domain(NAME));
    room.arrives(&to, &sample("away-rfc3834.eml")).await.unwrap();
    assert!(matches!(room.events()[..], [MailEvent::AutoReplied { .. }]));
    room.arrives(&to, &sample("person.eml")).await.unwrap();
    let letters = room.letters();
    assert_eq!((letters.len(), letters[0].subject.as_str()), (1, "Re: Order 17"));
    assert_eq!((room.events().len(), room.owed()), (1, 0));
}

#[tokio::test]
async fn mail_to_the_address_to_unsubscribe_at_unsubscribes_that_recipient() {
    let room = Room::new().await;
    let id = room.sent(Notify::default()).await;
    let to = room.feedback.unsubscribe_address(id, 1, &domain(NAME));
    room.arrives(&to, &sample("away-old.eml")).await.unwrap();
    assert!(room.events().is_empty(), "a program that answers wants nothing");
    room.arrives(&to, b"From: bob@there.example\r\nSubject: unsubscribe\r\n\r\n\r\n").await.unwrap();
    let expected = MailEvent::Unsubscribed { recipients: vec![1], way: "mail".to_owned() };
    assert_eq!(room.events(), [expected]);
}

/// A report about `id`, as its reporter would send it, with its signature.
fn complaint(room: &Room, id: QueueId, by_trace: bool) -> (Vec<u8>, SigningKeys) {
    let returned = room.feedback.return_address(id, 1, &domain(NAME));
    let named = if by_trace { String::new() } else { format!("Return-Path: <{returned}>\r\n") };
    let text = format!(
        "From: <fbl@reports.example>\r\nTo: fbl@{NAME}\r\nSubject: x\r\nDate: Sun, 22 Nov 2026 10:15:09 +0000\r\n\
         MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\n\
         Original-Rcpt-To: <bob@there.example>\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n\
         {named}From: shop@shop.example\r\nX-Postern-Trace: {}\r\n\r\nhello\r\n--b--\r\n",
        room.feedback.trace(id)
    );
    let new = dkim::generate().unwrap();
    let keys = SigningKeys::from_pkcs8(&new.rsa, &new.ed25519).unwrap();
    let (mut message, own) = (draft(text.as_bytes()), domain("reports.example"));
    let sign_as = SignAs { domain: &own, rsa_selector: "r", ed25519_selector: "e", keys: &keys };
    for field in dkim::sign(&message, &sign_as, Algorithms::RsaOnly, Timestamp::now()).unwrap() {
        message.header.prepend_field(field);
    }
    let mut octets = message.header.to_bytes();
    octets.extend_from_slice(b"\r\n");
    message.body.slices().for_each(|slice| octets.extend_from_slice(&slice.unwrap()));
    (octets, keys)
}

#[tokio::test]
async fn a_complaint_counts_if_its_reporter_signed_it_and_only_once() {
    let room = Room::new().await;
    let fbl = address(&format!("fbl@{HOST}"));
    for by_trace in [false, true] {
        let id = room.sent(Notify::default()).await;
        let (report, keys) = complaint(&room, id, by_trace);
        let name = "r._domainkey.reports.example".to_owned();
        room.dns.txt.lock().unwrap().insert(name, vec![keys.public_record(Algorithm::Rsa)]);
        let before = room.events().len();
        room.arrives(&fbl, &report).await.unwrap();
        room.arrives(&fbl, &report).await.unwrap();
        let expected = MailEvent::Complained { recipients: vec![1], reporter: "reports.example".to_owned() };
        assert_eq!(room.events()[before..], [expected], "by trace: {by_trace}");
    }
    assert!(room.letters().is_empty());
}

#[tokio::test]
async fn who_got_one_copy_of_a_message_cannot_complain_for_the_others_by_its_trace() {
    let room = Room::new().await;
    room.is_provider.store(false, Relaxed);
    let fbl = address(&format!("fbl@{HOST}"));
    for by_trace in [true, false] {
        let id = room.sent(Notify::default()).await;
        let (report, keys) = complaint(&room, id, by_trace);
        let name = "r._domainkey.reports.example".to_owned();
        room.dns.txt.lock().unwrap().insert(name, vec![keys.public_record(Algorithm::Rsa)]);
        room.arrives(&fbl, &report).await.unwrap();
    }
    let events = room.events();
    assert!(
        matches!(&events[..], [MailEvent::ComplaintDoubted { recipients, doubt, .. }, MailEvent::Complained { .. }]
            if *recipients == [1] && doubt.contains("went to several")),
        "a return-path is one recipient's own, and proves who got it: {events:?}"
    );
}

#[tokio::test]
async fn a_complaint_that_nothing_proves_counts_for_nothing() {
    let room = Room::new().await;
    let fbl = address(&format!("fbl@{HOST}"));
    let id = room.sent(Notify::default()).await;
    let (report, keys) = complaint(&room, id, false);
    // While DNS does not answer it is not judged.
    room.dns.is_silent.store(true, Relaxed);
    let refused = room.arrives(&fbl, &report).await.unwrap_err();
    assert!(refused.reply.one_line().starts_with("451 4.4.3"), "{refused}");
    room.dns.is_silent.store(false, Relaxed);
    // The key of somebody else.
    let other = dkim::generate().unwrap();
    let other = SigningKeys::from_pkcs8(&other.rsa, &other.ed25519).unwrap();
    let name = "r._domainkey.reports.example".to_owned();
    room.dns.txt.lock().unwrap().insert(name.clone(), vec![other.public_record(Algorithm::Rsa)]);
    room.arrives(&fbl, &report).await.unwrap();
    assert!(
        matches!(&room.events()[..], [MailEvent::ComplaintDoubted { doubt, .. }] if doubt.contains("does not verify"))
    );
    // Changed on its way.
    room.dns.txt.lock().unwrap().insert(name, vec![keys.public_record(Algorithm::Rsa)]);
    let second = room.sent(Notify::default()).await;
    let (report, _) = complaint(&room, second, false);
    let unsigned =
        report.windows(6).position(|window| window == b"\r\nFrom").map(|at| report[at + 2..].to_vec()).unwrap();
    room.arrives(&fbl, &unsigned).await.unwrap();
    assert!(matches!(&room.events()[1], MailEvent::ComplaintDoubted { doubt, .. } if doubt.contains("did not sign")));
    // About nothing of ours: a person reads it.
    room.arrives(&fbl, &sample("arf-abuse.eml")).await.unwrap();
    assert_eq!((room.events().len(), room.letters().len()), (2, 1));
}

#[tokio::test]
async fn letters_are_bounded_in_number_in_size_and_in_time() {
    let room = Room::new().await;
    let settings = Settings { letters_max: 5, letters_per_hour_max: 200, ..Settings::default() };
    room.feedback.adjust(settings);
    let to = address(&format!("postmaster@{HOST}"));
    let long = format!("From: a@x.example\r\nSubject: long\r\n\r\n{}\r\n", "x".repeat(200_000));
    let mut refused = None;
    for _ in 0..30 {
        if let Err(refusal) = room.arrives(&to, long.as_bytes()).await {
            refused = Some(refusal.reply.one_line());
        }
    }
    assert!(refused.unwrap().starts_with("452 4.7.1"), "20 of one network within an hour");
    let letters = room.letters();
    assert_eq!(letters.len(), 5, "the oldest goes");
    assert!(
        letters.iter().all(|letter| letter.octets.len() <= mailbox::LETTER_OCTETS_MAX && letter.size_bytes > 200_000)
    );
    room.feedback.remove_letter(&Actor::local(0), &letters[0].id, Timestamp::now()).await.unwrap();
    assert_eq!(room.letters().len(), 4);
    let analyst = Actor::of("x", crate::access::Role::TenantOwner(TENANT));
    assert!(room.feedback.letters(&analyst, None, 10).is_err(), "the instance's alone");
}

#[tokio::test]
async fn tags_are_good_after_a_restart() {
    let room = Room::new().await;
    let id = QueueId::new(Timestamp::now());
    let before = room.feedback.return_address(id, 0, &domain(NAME));
    let key = key::open(&*room.store, &MasterKey::from_bytes([3; 32])).await.unwrap();
    let again = Tags::new(&key);
    let tagged = Tagged { purpose: Return, id, number: 0 };
    assert_eq!(again.address(tagged, &domain(NAME)), before);
}
