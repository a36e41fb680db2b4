//! Notifications by mail, for people who wish it: what is told is owed to them in the batch that tells it, gathered,
//! and handed in like a notice of ours, from nobody and signed.
//!
//! Easy to get wrong: a mail has its id before it is handed in, so that a crash between handing in and forgetting
//! mails once; nobody gets more than one in [`MAILED_EVERY`], whatever happens; and mail goes only to who may read
//! the list of the same things.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{Kind, Notification, Notifications, permission};
use crate::access::{Action, Actor, Narrowing, Permission, Resource, Role};
use crate::background::{Shutdown, periodically};
use crate::events::history_key;
use crate::ext::Timestamp;
use crate::mail::{
    Address, Composition, Domain, Draft, Envelope, ForwardPath, MailParameters, Mailbox, Notify, QueueId, Refusal,
    ReversePath, Severity, Smtputf8, TenantId, UserId, VipId, compose,
};
use crate::records::{self, Act, AdminError, Damage};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

/// One person gets one mail within this, at most; what is told meanwhile is in the next.
pub const MAILED_EVERY: Duration = Duration::from_secs(10 * 60);
/// Notifications in one mail, at most; of more it says how many they are.
pub const GATHERED_MAX: usize = 50;
/// What could not be handed in is tried again after this.
const AGAIN_EVERY: Duration = Duration::from_secs(60);
/// Characters of a subject that are shown in the mail's own.
const SUBJECT_CHARACTERS_MAX: usize = 80;

/// What somebody wants mailed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// These kinds; empty is every kind.
    pub kinds: BTreeSet<Kind>,
}

/// Somebody who may wish for mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Where mail goes.
    pub address: Address,
    /// What it may read, and of whom.
    pub role: Role,
    /// What narrows that.
    pub narrowing: Arc<Narrowing>,
    /// Whether it has followed its link and may log in.
    pub is_active: bool,
    /// Whether it has followed its link, so that the address is its own; it may be locked since.
    pub has_followed_link: bool,
    /// What people call its tenant, or the instance.
    pub place: String,
}

/// By which virtual IP a mail leaves, and as whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// As whose.
    pub tenant: TenantId,
    /// The virtual IP.
    pub vip: VipId,
    /// Its name.
    pub name: Domain,
}

/// Who somebody is; `None` once it was removed.
pub type PersonLookup = Arc<dyn Fn(UserId) -> Option<Person> + Send + Sync>;
/// By what mail for people of a tenant, or of the instance, leaves; `None` if nothing may send it.
pub type EgressLookup = Arc<dyn Fn(TenantId) -> Option<Egress> + Send + Sync>;
/// The way in of mail, under an id that no other message gets.
pub type HandIn =
    Arc<dyn Fn(QueueId, Envelope, Draft, Egress) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;

/// What mail needs of rooms that this one does not know.
#[derive(Clone)]
pub struct Post {
    /// Who somebody is.
    pub person: PersonLookup,
    /// By what it leaves.
    pub egress: EgressLookup,
    /// Where it is handed in.
    pub hand_in: HandIn,
}

/// What is owed to one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    user: UserId,
    /// Oldest first.
    waiting: Vec<Notification>,
    /// Told beyond [`GATHERED_MAX`].
    left_out: u32,
    /// The mail that is being handed in.
    going: Option<Going>,
    /// When the last mail was handed in.
    mailed: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Going {
    id: QueueId,
    /// It tells of so many of those waiting, the first...
    told: u32,
    /// ...and counts so many.
    left_out: u32,
}

/// Wishes and what is owed, in memory.
#[derive(Default)]
pub(super) struct Mailing {
    wishes: BTreeMap<UserId, Wish>,
    outboxes: BTreeMap<UserId, Outbox>,
}

impl Outbox {
    pub(super) fn new(user: UserId) -> Self {
        Self { user, waiting: Vec::new(), left_out: 0, going: None, mailed: None }
    }

    pub(super) fn add(&mut self, one: Notification) {
        // A flood of other things does not push out what concerns the person itself.
        let most = if is_personal(&one) { 2 * GATHERED_MAX } else { GATHERED_MAX };
        if self.waiting.len() < most {
            self.waiting.push(one);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// Puts it into the store.
    pub(super) fn put(&self, batch: &mut Batch) {
        batch.set(outbox_key(self.user), codec::encode(self));
    }

    /// Forgets all but what concerns the person itself.
    fn keep_personal(&mut self) {
        self.keep(is_personal);
    }

    /// Forgets all but these, and of what was left out, which nobody knows, that it was.
    fn keep(&mut self, is_kept: impl Fn(&Notification) -> bool) {
        if let Some(going) = &mut self.going {
            let told = self.waiting.iter().take(going.told as usize).filter(|one| is_kept(one)).count();
            *going = Going { told: u32::try_from(told).unwrap_or(u32::MAX), left_out: 0, ..*going };
        }
        self.going = self.going.filter(|going| going.told > 0);
        self.waiting.retain(is_kept);
        self.left_out = 0;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let is_near = |mailed: Timestamp| now.since(mailed) < MAILED_EVERY && mailed.since(now) < MAILED_EVERY;
        self.going.is_some() || (!self.waiting.is_empty() && !self.mailed.is_some_and(is_near))
    }

    /// Forgets what the mail that was handed in told of.
    fn told(&mut self, at: Option<Timestamp>) {
        if let Some(going) = self.going.take() {
            self.waiting.drain(..(going.told as usize).min(self.waiting.len()));
            self.left_out = self.left_out.saturating_sub(going.left_out);
        }
        self.mailed = at.or(self.mailed);
    }
}

fn is_personal(one: &Notification) -> bool {
    one.kind == Kind::LoginSecurity
}

impl Mailing {
    /// Reads them.
    pub(super) fn load(store: &dyn Store) -> Result<(Self, Vec<Damage>), StoreError> {
        let (wishes, mut damaged) = records::load::<(UserId, Wish)>(store, &[prefix::NOTIFICATION, b'w'])?;
        let (outboxes, more) = records::load::<Outbox>(store, &[prefix::NOTIFICATION, b'o'])?;
        damaged.extend(more);
        let wishes = wishes.into_iter().map(|(_, wish)| wish).collect();
        let outboxes = outboxes.into_iter().map(|(_, outbox)| (outbox.user, outbox)).collect();
        Ok((Self { wishes, outboxes }, damaged))
    }
}

impl Notifications {
    /// Says who people are and how mail leaves; until then nothing is mailed.
    pub fn mail_with(&self, post: Post) {
        if self.post.set(post).is_err() {
            tracing::debug!("how notifications are mailed was said twice");
        }
    }

    /// What somebody wants mailed; `None` is nothing.
    ///
    /// # Errors
    /// If the actor is somebody else and may not read people.
    pub fn wish(&self, actor: &Actor, user: UserId) -> Result<Option<Wish>, AdminError> {
        self.of_person(actor, user, Action::Read)?;
        Ok(records::read(&self.mailing).wishes.get(&user).cloned())
    }

    /// Sets what somebody wants mailed; `None` is nothing, and what was owed is not mailed either, unless it
    /// concerns the person itself.
    ///
    /// # Errors
    /// If the actor is somebody else and may not change people.
    pub async fn set_wish(
        &self,
        actor: &Actor,
        user: UserId,
        wish: Option<Wish>,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let person = self.of_person(actor, user, Action::Write)?;
        let turn = self.desk.turn().await;
        let (before, mut owed) = {
            let mailing = records::read(&self.mailing);
            (mailing.wishes.get(&user).cloned(), mailing.outbox(user))
        };
        let mut batch = Batch::new();
        match (&wish, &mut owed) {
            (Some(wish), _) => {
                batch.set(wish_key(user), codec::encode(&(user, wish)));
            }
            (None, None) => {
                batch.remove(wish_key(user));
            }
            (None, Some(outbox)) => {
                outbox.keep_personal();
                batch.remove(wish_key(user));
                outbox.put(&mut batch);
            }
        }
        let act = Act::new("notifications.mail", format!("user {user}"));
        let act = act.of_any(person.role.tenant());
        let act = act.changed("kinds", Some(words(before.as_ref())), Some(words(wish.as_ref())));
        records::record(&mut batch, actor, act, now);
        let mailing = Arc::clone(&self.mailing);
        turn.commit(batch, move || {
            let mut mailing = records::write(&mailing);
            match wish {
                Some(wish) => drop(mailing.wishes.insert(user, wish)),
                None => {
                    mailing.wishes.remove(&user);
                    mailing.remember(owed.into_iter().collect());
                }
            }
        })
        .await?;
        Ok(())
    }

    /// Who somebody is, if that can be told.
    pub(super) fn person(&self, user: UserId) -> Option<Person> {
        self.post.get().and_then(|post| (post.person)(user))
    }

    pub(super) fn of_person(&self, actor: &Actor, user: UserId, action: Action) -> Result<Person, AdminError> {
        let missing = || AdminError::Missing(format!("user {user}"));
        let person = self.person(user).ok_or_else(missing)?;
        if actor.name != format!("user {user}") {
            actor.require(Permission::of(Resource::Users, person.role.tenant(), action))?;
        }
        Ok(person)
    }

    /// Owes one to everybody who wishes for it, in the batch that tells it. Called under the turn; what is to be
    /// remembered.
    pub(super) fn owe(&self, batch: &mut Batch, one: &Notification) -> Vec<Outbox> {
        let Some(post) = self.post.get() else { return Vec::new() };
        let mailing = records::read(&self.mailing);
        let wanting = mailing.wishes.iter().filter(|(_, wish)| wish.kinds.is_empty() || wish.kinds.contains(&one.kind));
        let told = wanting.filter(|(user, _)| (post.person)(**user).is_some_and(|person| person.is_told_of(one)));
        let owed = told.map(|(user, _)| {
            let mut outbox = mailing.outboxes.get(user).cloned().unwrap_or_else(|| Outbox::new(*user));
            outbox.add(one.clone());
            batch.set(outbox_key(*user), codec::encode(&outbox));
            outbox
        });
        owed.collect()
    }

    /// Mails what is owed while the daemon lives.
    pub async fn run_mailing(&self, shutdown: Shutdown) {
        periodically(AGAIN_EVERY, &self.owed, &shutdown, || async {
            if let Err(error) = self.pay(Timestamp::now()).await {
                tracing::warn!(%error, "notifications could not be mailed yet");
            }
        })
        .await;
    }

    /// Mails what is due.
    pub(super) async fn pay(&self, now: Timestamp) -> Result<(), AdminError> {
        let Some(post) = self.post.get() else { return Ok(()) };
        let due: Vec<UserId> = {
            let mailing = records::read(&self.mailing);
            mailing.outboxes.values().filter(|outbox| outbox.is_due(now)).map(|outbox| outbox.user).collect()
        };
        for user in due {
            match (post.person)(user) {
                None => self.forget_person(user).await?,
                Some(person) if !person.is_told(person.tenant()) => {
                    tracing::info!(%user, "notifications are not mailed: the person may not log in now");
                    let kept = self.alter_outbox(user, Outbox::keep_personal).await?;
                    if person.has_followed_link && kept.is_some_and(|outbox| outbox.is_due(now)) {
                        self.mail(post, (user, &person), now).await?;
                    }
                }
                Some(person) => {
                    if self.keep_what_it_sees((user, &person), now).await? {
                        self.mail(post, (user, &person), now).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets what was owed to a person that was bound to some SMTP accounts since; whether anything is due still.
    async fn keep_what_it_sees(&self, (user, person): (UserId, &Person), now: Timestamp) -> Result<bool, AdminError> {
        let is_kept = |one: &Notification| is_personal(one) || person.sees(one);
        let sees_all = |outbox: &Outbox| outbox.waiting.iter().all(is_kept);
        if records::read(&self.mailing).outboxes.get(&user).is_none_or(sees_all) {
            return Ok(true);
        }
        let kept = self.alter_outbox(user, |outbox| outbox.keep(is_kept)).await?;
        Ok(kept.is_some_and(|outbox| outbox.is_due(now)))
    }

    async fn mail(&self, post: &Post, (user, person): (UserId, &Person), now: Timestamp) -> Result<(), AdminError> {
        let begun = self.alter_outbox(user, |outbox| {
            if outbox.going.is_none() {
                let told = u32::try_from(outbox.waiting.len()).unwrap_or(u32::MAX);
                outbox.going = Some(Going { id: QueueId::new(now), told, left_out: outbox.left_out });
            }
        });
        let Some((outbox, going)) = begun.await?.and_then(|outbox| outbox.going.map(|going| (outbox, going))) else {
            return Ok(());
        };
        // Handed in by an earlier run that did not come to forget it.
        if self.desk.store().get(&history_key(going.id))?.is_none() {
            let told = outbox.waiting.get(..going.told as usize).unwrap_or(&outbox.waiting);
            // What concerns a person itself does not wait for its tenant to have a virtual IP.
            let by_instance = || told.iter().all(is_personal).then(|| (post.egress)(super::INSTANCE)).flatten();
            let Some(egress) = (post.egress)(person.tenant()).or_else(by_instance) else {
                tracing::warn!(%user, "notifications wait to be mailed: no virtual IP may send to people of {}", person.place);
                return Ok(());
            };
            let draft = draft((user, person), (told, going), &egress.name, now)?;
            match (post.hand_in)(going.id, envelope(&person.address), draft, egress).await {
                Ok(()) => {}
                Err(refusal) if refusal.reply.severity() == Severity::Permanent => {
                    tracing::warn!(%user, "notifications cannot be mailed: {refusal}");
                }
                Err(refusal) => {
                    tracing::warn!(%user, "notifications wait to be mailed: {refusal}");
                    return Ok(());
                }
            }
        }
        self.alter_outbox(user, |outbox| outbox.told(Some(now))).await?;
        Ok(())
    }

    /// One change of what is owed to somebody; `None` if nothing is, for the wish was taken back.
    async fn alter_outbox(
        &self,
        user: UserId,
        change: impl FnOnce(&mut Outbox) + Send,
    ) -> Result<Option<Outbox>, AdminError> {
        let turn = self.desk.turn().await;
        let Some(mut outbox) = records::read(&self.mailing).outboxes.get(&user).cloned() else { return Ok(None) };
        change(&mut outbox);
        let mut batch = Batch::new();
        batch.set(outbox_key(user), codec::encode(&outbox));
        let (mailing, kept) = (Arc::clone(&self.mailing), outbox.clone());
        turn.commit(batch, move || drop(records::write(&mailing).outboxes.insert(user, kept))).await?;
        Ok(Some(outbox))
    }

    /// Forgets what somebody who is gone wished for, was owed and was told alone.
    pub(super) async fn forget_person(&self, user: UserId) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        batch.remove(wish_key(user)).remove(outbox_key(user));
        self.remove_personal(&mut batch, user);
        let (mailing, personal) = (Arc::clone(&self.mailing), Arc::clone(&self.personal));
        turn.commit(batch, move || {
            records::write(&mailing).forget(user);
            records::write(&personal).retain(|(of, _), _| *of != user);
        })
        .await?;
        Ok(())
    }

    /// Forgets wishes of people who are gone.
    pub(super) async fn forget_gone(&self) -> Result<(), AdminError> {
        let Some(post) = self.post.get() else { return Ok(()) };
        let known: BTreeSet<UserId> = {
            let (mailing, personal) = (records::read(&self.mailing), records::read(&self.personal));
            let told = personal.keys().map(|(user, _)| user);
            mailing.wishes.keys().chain(mailing.outboxes.keys()).chain(told).copied().collect()
        };
        for user in known.into_iter().filter(|user| (post.person)(*user).is_none()) {
            self.forget_person(user).await?;
        }
        Ok(())
    }
}

impl Mailing {
    /// What is owed to somebody.
    pub(super) fn outbox(&self, user: UserId) -> Option<Outbox> {
        self.outboxes.get(&user).cloned()
    }

    fn forget(&mut self, user: UserId) {
        self.wishes.remove(&user);
        self.outboxes.remove(&user);
    }

    /// What [`Notifications::owe`] put into the batch is committed.
    pub(super) fn remember(&mut self, owed: Vec<Outbox>) {
        self.outboxes.extend(owed.into_iter().map(|outbox| (outbox.user, outbox)));
    }
}

impl Person {
    pub(super) fn tenant(&self) -> TenantId {
        self.role.tenant().unwrap_or(super::INSTANCE)
    }

    /// Whether mail about `tenant` may go to it: what it could read itself, were it to log in now.
    fn is_told(&self, tenant: TenantId) -> bool {
        self.is_active && self.tenant() == tenant && self.reader().require(permission(tenant)).is_ok()
    }

    fn is_told_of(&self, one: &Notification) -> bool {
        self.is_told(one.tenant) && self.sees(one)
    }

    fn sees(&self, one: &Notification) -> bool {
        one.concerns(&self.reader())
    }

    fn reader(&self) -> Actor {
        Actor { narrowing: Arc::clone(&self.narrowing), ..Actor::of("notifications by mail", self.role) }
    }
}

/// From nobody, and nobody is told of it (RFC 3834 s3): mail that tells of trouble makes none.
pub(super) fn envelope(to: &Address) -> Envelope {
    let smtputf8 = if to.needs_smtputf8() { Smtputf8::Needed } else { Smtputf8::NotNeeded };
    Envelope {
        reverse_path: ReversePath(None),
        parameters: MailParameters { smtputf8, ..MailParameters::default() },
        recipients: vec![ForwardPath { address: to.clone(), notify: Notify::NEVER, orcpt: None }],
    }
}

fn draft(
    (user, person): (UserId, &Person),
    (told, going): (&[Notification], Going),
    host: &Domain,
    now: Timestamp,
) -> Result<Draft, AdminError> {
    let text = text((user, person), told, going.left_out);
    composed(person, (subject(person, told), text), (going.id, host), now)
}

/// A mail of ours to a person.
pub(super) fn composed(
    person: &Person,
    (subject, text): (String, String),
    (id, host): (QueueId, &Domain),
    now: Timestamp,
) -> Result<Draft, AdminError> {
    let invalid = |error: &dyn std::fmt::Display| AdminError::Invalid(error.to_string());
    let from = Address::parse(&format!("postmaster@{host}")).map_err(|error| invalid(&error))?;
    let composition = Composition {
        from: vec![Mailbox { name: "Notifications".to_owned(), address: from }],
        to: vec![Mailbox { name: String::new(), address: person.address.clone() }],
        subject,
        text: Some(text),
        ..Composition::default()
    };
    let mut draft = compose(composition).map_err(|error| invalid(&error))?;
    draft.header.append("Date", &now.rfc5322());
    draft.header.append("Message-ID", &format!("<{id}@{host}>"));
    // RFC 3834 s5: other programs must not answer it.
    draft.header.append("Auto-Submitted", "auto-generated");
    Ok(draft)
}

fn subject(person: &Person, told: &[Notification]) -> String {
    let what = match told {
        [one] => format!("{}: {}", one.kind.word(), one.subject),
        several => {
            let kinds: BTreeSet<&str> = several.iter().map(|one| one.kind.word()).collect();
            let kinds: Vec<&str> = kinds.into_iter().collect();
            format!("{} notifications: {}", several.len(), kinds.join(", "))
        }
    };
    subject_of(person, &what)
}

pub(super) fn subject_of(person: &Person, what: &str) -> String {
    let shown = |character: char| if character.is_ascii_graphic() { character } else { ' ' };
    let text: String = what.chars().map(shown).take(SUBJECT_CHARACTERS_MAX).collect();
    format!("[{}] {}", person.place.chars().map(shown).collect::<String>(), text.trim_end())
}

fn text((user, person): (UserId, &Person), told: &[Notification], left_out: u32) -> String {
    let mut text = format!("What {} should know:\r\n\r\n", person.place);
    for one in told {
        text.push_str(&format!("{}  {}\r\n    {}\r\n", one.at.rfc3339(), one.kind.word(), one.text));
    }
    if left_out > 0 {
        text.push_str(&format!("\r\nand {left_out} more, which are in the list.\r\n"));
    }
    text.push_str("\r\nAll of them: postern notification list, or GET /api/v1/notifications.\r\n");
    if told.iter().any(is_personal) {
        text.push_str(&format!(
            "\r\nWhat is done to your login is told whether you wish for mail or not. If it was not you: choose a new \
             password\r\n(POST /api/v1/session/password), end your sessions (DELETE /api/v1/users/{user}/sessions),\r\n\
             and tell whoever manages the people of {}.\r\n",
            person.place
        ));
    }
    if !told.iter().all(is_personal) {
        text.push_str(&format!(
            "\r\nYou asked for this mail. To get no more of it: postern notification mail {user} --off,\r\nor PUT \
             /api/v1/users/{user}/notification-mail with {{\"mail\": false}}.\r\n"
        ));
    }
    text
}

fn words(wish: Option<&Wish>) -> String {
    match wish {
        None => "none".to_owned(),
        Some(wish) if wish.kinds.is_empty() => "all".to_owned(),
        Some(wish) => wish.kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(" "),
    }
}

fn wish_key(user: UserId) -> Key {
    [&[prefix::NOTIFICATION, b'w'][..], &user.0.to_be_bytes()].concat()
}

fn outbox_key(user: UserId) -> Key {
    [&[prefix::NOTIFICATION, b'o'][..], &user.0.to_be_bytes()].concat()
}

#[cfg(test)]
#[path = "mailing_tests.rs"]
pub(super) mod tests;
