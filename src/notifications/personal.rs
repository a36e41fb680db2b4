//! What concerns one person alone: somebody did something to its way in. Told to nobody else, and mailed to it
//! whether it wishes for mail or not, since whoever got in would be the one to switch that off.
//!
//! Easy to get wrong: events are read at least once, so the id is made of what happened; and who does something with
//! a stolen session does it in the person's name, so that what people do themselves is told too.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::mailing::Outbox;
use super::{INSTANCE, KEPT, Kind, Notification, NotificationId, Notifications, TEXT_CHARACTERS_MAX};
use crate::access::Actor;
use crate::events::{self, AuditEvent};
use crate::ext::Timestamp;
use crate::mail::{UserId, printable};
use crate::records::{self, AdminError};
use crate::store::{Batch, Key, codec, prefix};

/// Kept of one person, at most.
pub const PERSONAL_KEPT_MAX: usize = 100;

/// By person.
pub(super) type Personal = BTreeMap<(UserId, NotificationId), Notification>;

/// What an entry of the audit log says to the person it is about.
pub(super) enum Heard {
    /// This is to be told.
    Tell(UserId, String),
    /// It is gone.
    Removed(UserId),
}

/// The person an actor or a subject is: `user 7k3m9q0c1d2e3`.
pub(super) fn person_called(name: &str) -> Option<UserId> {
    name.strip_prefix("user ")?.parse().ok()
}

/// Whether it is about a person's way in.
pub(super) fn heard_of(told: &AuditEvent) -> Option<Heard> {
    let user = person_called(&told.subject)?;
    let is_own = told.actor == told.subject;
    let text = match told.act.as_str() {
        "user.remove" => return Some(Heard::Removed(user)),
        "second-factor.add" => "a second factor was set up for you: its codes are asked for from now on".to_owned(),
        "second-factor.remove" if is_own => "you took your second factor away".to_owned(),
        "second-factor.remove" => format!(
            "your second factor was taken away by {}: your password alone lets you in until you set up another one",
            told.actor
        ),
        "second-factor.passkey-add" => "a passkey was set up for you: it opens what your password does not".to_owned(),
        events::PASSKEY_REMOVED_ACT => "one of your passkeys was taken away".to_owned(),
        events::LAST_PASSKEY_REMOVED_ACT => {
            "your last passkey was taken away: your password alone lets you in until you set up another second factor"
                .to_owned()
        }
        events::PASSKEY_COPIED_ACT => {
            "one of your passkeys was refused: it counted less than before, so somebody may have a copy; see which it is \
             and take it away"
                .to_owned()
        }
        "second-factor.recovery-codes" => "new recovery codes were made; the old ones are worth nothing".to_owned(),
        events::RECOVERY_USED_ACT => "a recovery code was used in the place of your second factor".to_owned(),
        "user.password" => "your password was changed, and your other sessions ended".to_owned(),
        "user.reset-link" if !is_own => format!("a link to choose a new password for you was made by {}", told.actor),
        events::SESSION_UNPROVED_ACT => {
            "one of your sessions was ended: whoever used it gave a wrong password or code too often".to_owned()
        }
        _ => return None,
    };
    Some(Heard::Tell(user, text))
}

impl Notifications {
    /// What an entry of the audit log means for a person.
    pub(super) async fn heard_of_person(&self, told: &AuditEvent, at: Timestamp) -> Result<(), AdminError> {
        match heard_of(told) {
            None => Ok(()),
            Some(Heard::Removed(user)) => self.forget_person(user).await,
            Some(Heard::Tell(user, text)) => self.tell_person(user, text, at).await,
        }
    }

    async fn tell_person(&self, user: UserId, text: String, at: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let person = self.person(user);
        let tenant = person.as_ref().map_or(INSTANCE, |person| person.role.tenant().unwrap_or(INSTANCE));
        let text = printable(&text.chars().take(TEXT_CHARACTERS_MAX).collect::<String>());
        let id = id_of(user, &text, at);
        let gone = {
            let personal = records::read(&self.personal);
            if personal.contains_key(&(user, id)) {
                return Ok(());
            }
            let own: Vec<&Notification> = personal.range(bounds(user)).map(|(_, one)| one).collect();
            let excess = own.len().saturating_sub(PERSONAL_KEPT_MAX - 1);
            let is_old = |(place, one): &(usize, &&Notification)| *place < excess || at.since(one.at) > KEPT;
            own.iter().enumerate().filter(is_old).map(|(_, one)| one.id).collect::<Vec<_>>()
        };
        let one = Notification { id, tenant, at, kind: Kind::LoginSecurity, subject: format!("user {user}"), text };
        let mut batch = Batch::new();
        batch.set(personal_key(user, id), codec::encode(&(user, &one)));
        for id in &gone {
            batch.remove(personal_key(user, *id));
        }
        let outbox = person.filter(|person| person.has_followed_link).map(|_| self.owe_to(&mut batch, user, &one));
        let (personal, mailing, owed) = (Arc::clone(&self.personal), Arc::clone(&self.mailing), Arc::clone(&self.owed));
        turn.commit(batch, move || {
            let mut personal = records::write(&personal);
            gone.into_iter().for_each(|id| drop(personal.remove(&(user, id))));
            personal.insert((user, id), one);
            if let Some(outbox) = outbox {
                records::write(&mailing).remember(vec![outbox]);
                owed.notify_one();
            }
        })
        .await?;
        Ok(())
    }

    fn owe_to(&self, batch: &mut Batch, user: UserId, one: &Notification) -> Outbox {
        let known = records::read(&self.mailing).outbox(user);
        let mut outbox = known.unwrap_or_else(|| Outbox::new(user));
        outbox.add(one.clone());
        outbox.put(batch);
        outbox
    }

    /// What only the actor is told, if it is a person.
    pub(super) fn personal_of(&self, actor: &Actor) -> Vec<Notification> {
        let Some(user) = person_called(&actor.name) else { return Vec::new() };
        records::read(&self.personal).range(bounds(user)).map(|(_, one)| one.clone()).collect()
    }

    /// Takes what a person was told out of the store; the ids to forget once that is done.
    pub(super) fn remove_personal(&self, batch: &mut Batch, user: UserId) {
        for ((_, id), _) in records::read(&self.personal).range(bounds(user)) {
            batch.remove(personal_key(user, *id));
        }
    }
}

pub(super) fn bounds(user: UserId) -> std::ops::RangeInclusive<(UserId, NotificationId)> {
    (user, [0; 16])..=(user, [u8::MAX; 16])
}

/// The moment, and what happened then: the same event has the same id.
fn id_of(user: UserId, text: &str, at: Timestamp) -> NotificationId {
    let digest = Sha256::new().chain_update(user.0.to_be_bytes()).chain_update(text.as_bytes()).finalize();
    let mut id = super::new_id(at);
    for (octet, of_digest) in id.iter_mut().skip(6).zip(digest) {
        *octet = of_digest;
    }
    id
}

fn personal_key(user: UserId, id: NotificationId) -> Key {
    [&[prefix::NOTIFICATION, b'p'][..], &user.0.to_be_bytes(), &id].concat()
}

#[cfg(test)]
#[path = "personal_tests.rs"]
mod tests;
