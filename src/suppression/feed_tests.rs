//! The feed over a store in memory: which events stop whom, and for whom.

use super::*;
use crate::access::Actor;
use crate::events::Peer;
use crate::mail::{Class, Labels, ReversePath, SmtpAccountId, TenantId, VipId};
use crate::store::{MemoryStore, Store};
use crate::suppression::{Colour, NewEntry, Rules};

const TENANT: TenantId = TenantId(1);
const ACCOUNT: SmtpAccountId = SmtpAccountId(7);
const NOW: Timestamp = Timestamp(1_800_000_000_000);

struct Room {
    store: Arc<MemoryStore>,
    list: Arc<Suppression>,
    feed: Feed,
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

impl Room {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let list = Arc::new(Suppression::open(store.clone()));
        let feed = Feed::new(Arc::clone(&list), Arc::new(|failure| failure.detail.starts_with("550 5.1.1")));
        Self { store, list, feed }
    }

    async fn message(&self, source: &str) -> QueueId {
        let id = QueueId::new(NOW);
        let history = History {
            tenant: TENANT,
            accepted: NOW,
            reverse_path: ReversePath(Some(address("shop@shop.example"))),
            header_from: String::new(),
            subject: String::new(),
            message_id: String::new(),
            recipients: vec![address("Ann@there.example"), address("bob@there.example")],
            labels: Labels::default(),
            entry: Some(crate::events::Entry {
                account: Some(ACCOUNT),
                vip: VipId(1),
                class: Class::Transactional,
                source: source.to_owned(),
                size_bytes: 1,
            }),
            returns: None,
            signed: None,
        };
        let mut batch = Batch::new();
        batch.set(history_key(id), history.to_bytes());
        self.store.commit(batch).await.unwrap();
        id
    }

    async fn tell(&self, id: QueueId, event: MailEvent) {
        let event = Event { at: NOW, kind: EventKind::Mail(id, event) };
        self.feed.consume(&[event]).await.unwrap();
    }

    fn stops(&self, account: Option<SmtpAccountId>, text: &str) -> bool {
        self.list.contains(TENANT, account, &address(text), Timestamp::now()).unwrap()
    }

    async fn rules(&self, rules: Rules) {
        self.list.set_rules(&Actor::local(0), TENANT, rules, NOW).await.unwrap();
    }
}

fn bounced(detail: &str) -> MailEvent {
    let peer = Peer { host: String::new(), address: String::new(), source: String::new(), tls: String::new() };
    MailEvent::Bounced { recipients: vec![0], peer: Some(peer), why: Why::RecipientGone, detail: detail.to_owned() }
}

fn complained() -> MailEvent {
    MailEvent::Complained { recipients: vec![0], reporter: "reports.example".to_owned() }
}

#[tokio::test]
async fn a_hard_bounce_at_once_or_later_stops_that_recipient_alone() {
    let room = Room::new();
    let id = room.message("smtp").await;
    room.tell(id, bounced("550 5.1.1 no such user (after RCPT)")).await;
    assert!(room.stops(Some(ACCOUNT), "ann@there.example") && !room.stops(None, "bob@there.example"));
    let later = MailEvent::BouncedLater {
        recipients: vec![1],
        reporter: "mx.there.example".to_owned(),
        why: Why::RecipientGone,
        detail: "550 5.1.1 gone".to_owned(),
    };
    room.tell(id, later).await;
    assert!(room.stops(None, "bob@there.example"));
}

#[tokio::test]
async fn a_block_of_our_address_a_doubted_complaint_and_a_notices_fate_stop_nobody() {
    let room = Room::new();
    let id = room.message("smtp").await;
    let blocked = MailEvent::Bounced {
        recipients: vec![0],
        peer: None,
        why: Why::PolicyOrReputation,
        detail: "550 5.1.1 your address is listed".to_owned(),
    };
    let doubted = MailEvent::ComplaintDoubted {
        recipients: vec![0],
        reporter: "x.example".to_owned(),
        doubt: "its reporter did not sign it".to_owned(),
    };
    let replied = MailEvent::AutoReplied { recipients: vec![0], reporter: "x".to_owned() };
    for event in [blocked, doubted, replied, bounced("552 5.2.2 mailbox full (after RCPT)")] {
        room.tell(id, event).await;
    }
    let notice = room.message("notice").await;
    room.tell(notice, bounced("550 5.1.1 no such user (after RCPT)")).await;
    room.tell(QueueId::new(NOW), complained()).await;
    assert!(!room.stops(Some(ACCOUNT), "ann@there.example"));
}

#[tokio::test]
async fn as_many_hard_bounces_as_the_rules_ask_for_of_as_many_messages() {
    let room = Room::new();
    room.rules(Rules { hard_bounces: 3, ..Rules::default() }).await;
    let gone = || bounced("550 5.1.1 no such user (after RCPT)");
    let (first, second, third) = (room.message("smtp").await, room.message("smtp").await, room.message("api").await);
    for id in [first, first, second, second] {
        room.tell(id, gone()).await;
    }
    assert!(!room.stops(None, "ann@there.example"), "two messages, however often they are told of");
    room.tell(third, gone()).await;
    assert!(room.stops(None, "ann@there.example"));
}

#[tokio::test]
async fn the_scope_says_whose_list_and_the_validity_for_how_long() {
    let room = Room::new();
    room.rules(Rules { scope: Scope::Account, hard_bounce_days: 2, ..Rules::default() }).await;
    let id = room.message("smtp").await;
    room.tell(id, bounced("550 5.1.1 no such user (after RCPT)")).await;
    assert!(room.stops(Some(ACCOUNT), "ann@there.example") && !room.stops(None, "ann@there.example"));
    let place = Place { account: Some(ACCOUNT), ..Place::from(TENANT) };
    let subject = Subject::parse("ann@there.example").unwrap();
    let entry = room.list.entry(&Actor::local(0), place, &subject).unwrap().unwrap();
    let good = entry.expires.unwrap().since(entry.added);
    assert_eq!(good.as_secs(), 2 * 24 * 3600);
    assert!(
        room.list
            .set_rules(&Actor::local(0), TENANT, Rules { hard_bounces: 4, ..Rules::default() }, NOW)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_whitelist_wins_over_a_bounce_and_never_over_a_complaint() {
    let room = Room::new();
    let white = Place { colour: Colour::White, ..Place::from(TENANT) };
    let new = NewEntry {
        subject: Subject::parse("ann@there.example").unwrap(),
        reason: Reason::Manual,
        origin: Origin::Operator,
        note: String::new(),
        expires: None,
    };
    room.list.add(&Actor::local(0), white, new, NOW).await.unwrap();
    let id = room.message("smtp").await;
    room.tell(id, bounced("550 5.1.1 no such user (after RCPT)")).await;
    assert!(!room.stops(None, "ann@there.example"));
    room.tell(id, complained()).await;
    room.tell(id, bounced("550 5.1.1 no such user (after RCPT)")).await;
    assert!(room.stops(None, "ann@there.example"), "the complaint outweighs the entry that was there");
    let entry = room.list.entry(&Actor::local(0), TENANT, &Subject::parse("ann@there.example").unwrap());
    assert_eq!(entry.unwrap().unwrap().reason, Reason::Complaint);
}

#[tokio::test]
async fn who_unsubscribed_is_stopped_and_an_erased_recipient_cannot_be() {
    let room = Room::new();
    let id = room.message("smtp").await;
    room.tell(id, MailEvent::Unsubscribed { recipients: vec![1], way: "mail".to_owned() }).await;
    assert!(room.stops(None, "bob@there.example"));
    let erased = room.message("smtp").await;
    let bytes = room.store.get(&history_key(erased)).unwrap().unwrap();
    let mut history = History::from_bytes(&bytes).unwrap();
    history.recipients = vec![address("erased@erased.invalid"); 2];
    let mut batch = Batch::new();
    batch.set(history_key(erased), history.to_bytes());
    room.store.commit(batch).await.unwrap();
    room.tell(erased, complained()).await;
    assert!(!room.stops(None, "erased@erased.invalid"));
}
