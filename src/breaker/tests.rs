//! The breaker as a whole, over the store in memory.

use super::*;
use crate::accounts::NewSmtpAccount;
use crate::events::{Accepted, Entry, History, MailEvent, Peer, Tally, Urgency, Why, history_key};
use crate::mail::{Address, Class, ReversePath, VipId};
use crate::store::{MemoryStore, after_prefix};

const START: Timestamp = Timestamp(1_800_000_000_000);

fn operator() -> Actor {
    Actor::local(0)
}

struct Room {
    store: Arc<MemoryStore>,
    accounts: Arc<Accounts>,
    breaker: Breaker,
    account: SmtpAccount,
}

impl Room {
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let accounts = Arc::new(Accounts::open(store.clone(), Default::default()).unwrap());
        let tenant = accounts.add_tenant(&operator(), "shop", START).await.unwrap().id;
        let new = NewSmtpAccount::default();
        let (account, _) = accounts.add_smtp_account(&operator(), tenant, new, START).await.unwrap();
        let breaker = Breaker::open(store.clone(), accounts.clone(), Limits::default()).unwrap();
        Self { store, accounts, breaker, account }
    }

    /// What is stored is all that is left.
    fn restarted(self) -> Self {
        let breaker = Breaker::open(self.store.clone(), self.accounts.clone(), Limits::default()).unwrap();
        Self { breaker, ..self }
    }

    fn accepted(&self, id: QueueId, at: Timestamp) -> Event {
        let accepted = Accepted {
            tenant: self.account.tenant,
            account: Some(self.account.id),
            vip: VipId(1),
            class: Class::Transactional,
            source: "smtp".to_owned(),
            size_bytes: 1,
            recipients: 1,
            signatures: Vec::new(),
        };
        Event { at, kind: EventKind::Mail(id, MailEvent::Accepted(accepted)) }
    }

    /// A message whose recipients ended so; its history is stored.
    async fn ended(&self, count: u16, why: Option<Why>, at: Timestamp) -> Event {
        let id = QueueId::new(at);
        let history = History {
            tenant: self.account.tenant,
            accepted: at,
            reverse_path: ReversePath(None),
            header_from: String::new(),
            subject: String::new(),
            message_id: String::new(),
            recipients: vec![Address::parse("a@b.example").unwrap()],
            labels: Default::default(),
            entry: Some(Entry {
                account: Some(self.account.id),
                vip: VipId(1),
                class: Class::Transactional,
                source: "smtp".to_owned(),
                size_bytes: 1,
            }),
            returns: None,
            signed: None,
        };
        let mut batch = Batch::new();
        batch.set(history_key(id), history.to_bytes());
        self.store.commit(batch).await.unwrap();
        let recipients = (0..count).collect();
        let told = match why {
            Some(why) => MailEvent::Bounced { recipients, peer: None, why, detail: "550 5.1.1 no".to_owned() },
            None => MailEvent::Delivered { recipients, peer: peer(), reply: Reply::enhanced(250, 0, 0, "ok") },
        };
        Event { at, kind: EventKind::Mail(id, told) }
    }

    async fn keep(&self) {
        self.breaker.keep(Batch::new()).await.unwrap();
    }

    fn stored_events(&self) -> Vec<InstanceEvent> {
        let end = after_prefix(&[prefix::EVENT]);
        let all = self.store.range(&[prefix::EVENT], &end, usize::MAX).unwrap();
        let kinds = all.into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind);
        kinds.filter_map(|kind| if let EventKind::Instance(event) = kind { Some(event) } else { None }).collect()
    }
}

fn peer() -> Peer {
    Peer { host: "mx.example".into(), address: "192.0.2.1:25".into(), source: "192.0.2.9".into(), tls: "none".into() }
}

#[tokio::test]
async fn an_account_that_mails_strangers_is_paused_at_once_told_of_and_stays_so_over_a_restart() {
    let room = Room::new().await;
    let (fine, gone) = (room.ended(180, None, START).await, room.ended(20, Some(Why::RecipientGone), START).await);
    assert_eq!(room.breaker.take(&[fine, gone]).unwrap(), Urgency::WhenDue);
    assert!(room.breaker.refusal(room.account.id).is_none());
    let one_more = room.ended(1, Some(Why::NoSuchDomain), START).await;
    assert_eq!(room.breaker.take(&[one_more]).unwrap(), Urgency::Now);
    let refusal = room.breaker.refusal(room.account.id).unwrap();
    assert_eq!(refusal.reply.code.0, 451);
    assert!(refusal.reply.one_line().contains("21 of 201 recipients within an hour do not exist"), "{refusal:?}");
    room.keep().await;
    let told = room.stored_events();
    assert!(matches!(&told[..], [InstanceEvent::AccountPaused { login, .. }] if *login == room.account.login));
    let room = room.restarted();
    let pause = room.breaker.pause_of(room.account.id).unwrap();
    assert_eq!(pause.cause, Cause::Failures { gone: 21, of: 201, percent: 10 });
    assert!(room.breaker.why(room.account.id).unwrap().contains("postern smtp-account release"));
    assert_eq!(room.breaker.paused(), 1);
}

#[tokio::test]
async fn what_was_counted_in_memory_only_is_lost_with_the_cursor_and_counted_again() {
    let room = Room::new().await;
    let gone = room.ended(150, Some(Why::RecipientGone), START).await;
    room.breaker.take(std::slice::from_ref(&gone)).unwrap();
    room.keep().await;
    // Taken and not kept: a crash takes both back.
    room.breaker.take(std::slice::from_ref(&gone)).unwrap();
    assert!(room.breaker.pause_of(room.account.id).is_some());
    let room = room.restarted();
    let figures = room.breaker.picture(&operator(), room.account.id, START).unwrap().figures;
    assert_eq!((figures.gone, room.breaker.paused()), (150, 0));
    assert_eq!(room.breaker.take(&[gone]).unwrap(), Urgency::Now, "and it decides the same again");
}

#[tokio::test]
async fn of_a_refusal_of_several_at_once_nobody_counts_as_gone_but_whom_it_names() {
    let room = Room::new().await;
    let told = |event: Event, told: &str| {
        let EventKind::Mail(id, MailEvent::Bounced { recipients, peer, why, .. }) = event.kind else { panic!() };
        let detail = told.to_owned();
        Event { at: event.at, kind: EventKind::Mail(id, MailEvent::Bounced { recipients, peer, why, detail }) }
    };
    let gone = || room.ended(200, Some(Why::RecipientGone), START);
    for detail in [
        "550 5.1.1 gone (after final dot)",
        "550 5.1.1 gone (after DATA for 200 recipients)",
        "550 5.1.1 gone (after MAIL)",
    ] {
        room.breaker.take(&[told(gone().await, detail)]).unwrap();
    }
    let figures = room.breaker.picture(&operator(), room.account.id, START).unwrap().figures;
    assert_eq!((figures.gone, figures.finished), (0, 600));
    let named = told(gone().await, "550 5.1.1 gone (after final dot, naming the recipient)");
    room.breaker.take(&[named]).unwrap();
    assert_eq!(room.breaker.picture(&operator(), room.account.id, START).unwrap().figures.gone, 200);
}

#[tokio::test]
async fn recipients_whose_mail_comes_back_after_delivery_count_too() {
    let room = Room::new().await;
    let delivered = room.ended(200, None, START).await;
    let EventKind::Mail(id, _) = delivered.kind else { panic!() };
    room.breaker.take(&[delivered]).unwrap();
    let back = |why, number| {
        let (reporter, detail) = ("mx.there.example".to_owned(), "550 5.1.1 no such user".to_owned());
        let told = MailEvent::BouncedLater { recipients: vec![number], reporter, why, detail };
        Event { at: Timestamp(START.0 + 60_000), kind: EventKind::Mail(id, told) }
    };
    let full: Vec<Event> = (0..50).map(|number| back(Why::MailboxFull, number)).collect();
    room.breaker.take(&full).unwrap();
    let gone: Vec<Event> = (50..70).map(|number| back(Why::RecipientGone, number)).collect();
    assert_eq!(room.breaker.take(&gone).unwrap(), Urgency::WhenDue, "a tenth is allowed");
    assert_eq!(room.breaker.take(&[back(Why::NoSuchDomain, 70)]).unwrap(), Urgency::Now);
    let pause = room.breaker.pause_of(room.account.id).unwrap();
    assert_eq!(pause.cause, Cause::Failures { gone: 21, of: 200, percent: 10 });
}

#[tokio::test]
async fn complaints_count_by_the_history_of_their_message_however_late_they_come() {
    let room = Room::new().await;
    let fine = room.ended(1_000, None, START).await;
    let EventKind::Mail(id, _) = fine.kind else { panic!("about a message") };
    room.breaker.take(&[fine]).unwrap();
    room.keep().await;
    let room = room.restarted();
    let later = Timestamp(START.0 + 6 * 3_600_000);
    let told = MailEvent::Complained { recipients: (0..5).collect(), reporter: "feedback.example".to_owned() };
    let complaint = Event { at: later, kind: EventKind::Mail(id, told) };
    assert_eq!(room.breaker.take(&[complaint]).unwrap(), Urgency::Now);
    let cause = room.breaker.pause_of(room.account.id).unwrap().cause;
    assert_eq!(cause, Cause::Complaints { complaints: 5, delivered: 1_000, per_thousand: 3 });
}

#[tokio::test]
async fn a_release_begins_to_count_anew_and_is_on_record() {
    let room = Room::new().await;
    let gone = room.ended(300, Some(Why::RecipientGone), START).await;
    room.breaker.take(&[gone]).unwrap();
    room.keep().await;
    let owner = Actor::of("o", crate::access::Role::TenantOwner(room.account.tenant));
    assert_eq!(room.breaker.pauses(&owner).len(), 1, "its tenant sees it");
    assert!(room.breaker.release(&owner, room.account.id, START).await.is_err(), "and does not end it");
    let later = Timestamp(START.0 + 60_000);
    room.breaker.release(&operator(), room.account.id, later).await.unwrap();
    assert!(room.breaker.refusal(room.account.id).is_none());
    assert!(room.breaker.release(&operator(), room.account.id, later).await.is_err(), "it is not paused any more");
    let late = room.ended(300, Some(Why::RecipientGone), START).await;
    assert_eq!(room.breaker.take(&[late]).unwrap(), Urgency::WhenDue, "what happened before does not count");
    let room = room.restarted();
    let figures = room.breaker.picture(&operator(), room.account.id, later).unwrap().figures;
    assert_eq!((figures.gone, room.breaker.paused()), (0, 0));
    assert!(matches!(room.stored_events().last(), Some(InstanceEvent::AccountReleased { .. })));
}

#[tokio::test]
async fn limits_of_the_account_and_waivers_hold_and_survive_a_restart() {
    let room = Room::new().await;
    let scope = LimitScope::Account(room.account.id);
    let limits = LimitSet { failures_percent: Some(50), ..LimitSet::default() };
    room.breaker.set_limits(&operator(), Override { scope, limits }, START).await.unwrap();
    let room = room.restarted();
    let (fine, gone) = (room.ended(200, None, START).await, room.ended(150, Some(Why::RecipientGone), START).await);
    assert_eq!(room.breaker.take(&[fine, gone]).unwrap(), Urgency::WhenDue);
    room.breaker.clear_limits(&operator(), scope, START).await.unwrap();
    let until = Timestamp(START.0 + 60_000);
    let waived = ("yearly mailing", Some(until));
    room.breaker.waive(&operator(), room.account.id, waived, START).await.unwrap();
    let room = room.restarted();
    let gone = room.ended(150, Some(Why::RecipientGone), START).await;
    assert_eq!(room.breaker.take(&[gone]).unwrap(), Urgency::WhenDue);
    let late = room.ended(1, Some(Why::RecipientGone), until).await;
    room.keep().await;
    let room = room.restarted();
    let gone = room.ended(300, Some(Why::RecipientGone), until).await;
    assert_eq!(room.breaker.take(&[late, gone]).unwrap(), Urgency::Now, "the waiver has ended");
    assert!(room.breaker.end_waiver(&operator(), room.account.id, until).await.is_ok());
}

#[tokio::test]
async fn ten_times_the_usual_volume_pauses_an_account() {
    let room = Room::new().await;
    let hour = |hour: u64| Timestamp(START.0 + hour * 3_600_000);
    let mail = |at: Timestamp, count: usize| -> Vec<Event> {
        std::iter::repeat_with(|| room.accepted(QueueId::new(at), at)).take(count).collect()
    };
    for day in 0..30 {
        assert_eq!(room.breaker.take(&mail(hour(day), 60)).unwrap(), Urgency::WhenDue);
    }
    assert_eq!(room.breaker.take(&mail(hour(40), 600)).unwrap(), Urgency::WhenDue);
    assert_eq!(room.breaker.take(&mail(hour(40), 1)).unwrap(), Urgency::Now);
    let cause = room.breaker.pause_of(room.account.id).unwrap().cause;
    assert_eq!(cause, Cause::Volume { messages: 601, usual: 60, factor: 10 });
}

#[tokio::test]
async fn a_pause_by_hand_needs_a_reason_and_accounts_ask_the_breaker() {
    let room = Room::new().await;
    let Room { accounts, breaker, account, .. } = room;
    for reason in ["", "two\nlines"] {
        assert!(breaker.pause(&operator(), account.id, reason, START).await.is_err(), "{reason:?}");
    }
    breaker.pause(&operator(), account.id, "password found on the web", START).await.unwrap();
    assert!(breaker.pause(&operator(), account.id, "again", START).await.is_err());
    let breaker = Arc::new(breaker);
    let asked = Arc::clone(&breaker);
    accounts.stop_with(Box::new(move |account| asked.refusal(account)));
    let refused = accounts.may_send(account.tenant, Some(account.id)).unwrap_err();
    assert!(refused.reply.one_line().contains("password found on the web"), "{refused:?}");
    let refused = accounts.count(account.tenant, Some(account.id), START).unwrap_err();
    assert_eq!(refused.reply.code.0, 451, "also of a message that is under way");
    assert!(accounts.may_send(account.tenant, None).is_ok());
    breaker.release(&operator(), account.id, START).await.unwrap();
    assert!(accounts.may_send(account.tenant, Some(account.id)).is_ok());
}
