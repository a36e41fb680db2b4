//! The mail with a link for a new password, for who has forgotten his.
//!
//! Easy to get wrong: what is in it lets somebody in, so it is kept nowhere but in the mail itself, which is handed in
//! once; if that fails, the person asks again.

use super::mailing::{composed, envelope, subject_of};
use super::{INSTANCE, Notifications};
use crate::ext::Timestamp;
use crate::mail::{QueueId, UserId};
use crate::records::AdminError;

/// What somebody who has forgotten his password is sent.
pub struct NewPassword<'a> {
    /// Whose.
    pub user: UserId,
    /// What the link says: it lets him choose a password, once.
    pub token: &'a str,
    /// Until when.
    pub expires: Timestamp,
}

impl Notifications {
    /// Mails it to the person, by its tenant's virtual IP or else a shared one.
    ///
    /// # Errors
    /// If the person is gone, no virtual IP may send to it, or the mail was not taken.
    pub async fn mail_new_password(&self, asked: NewPassword<'_>, now: Timestamp) -> Result<(), AdminError> {
        let missing = |what: &str| AdminError::Missing(what.to_owned());
        let post = self.post.get().ok_or_else(|| missing("way to mail people"))?;
        let person = (post.person)(asked.user).ok_or_else(|| missing("such person"))?;
        let egress = (post.egress)(person.tenant()).or_else(|| (post.egress)(INSTANCE));
        let egress = egress.ok_or_else(|| missing("virtual IP that may send to the person"))?;
        let (id, host) = (QueueId::new(now), egress.name.clone());
        let text = format!(
            "Somebody said that the password of {address} at {place} is forgotten.\r\n\r\nTo choose a new one, until \
             {until}, once:\r\n\r\n    POST /api/v1/session/redeem\r\n    {{\"token\": \"{token}\", \"password\": \
             \"...\"}}\r\n\r\nIf it was not you, do nothing: your password is what it was, and nobody else has got \
             this mail.\r\n",
            address = person.address,
            place = person.place,
            until = asked.expires.rfc3339(),
            token = asked.token,
        );
        let draft = composed(&person, (subject_of(&person, "a new password"), text), (id, &host), now)?;
        let handed = (post.hand_in)(id, envelope(&person.address), draft, egress).await;
        handed.map_err(|refusal| AdminError::Invalid(format!("the mail was not taken: {refusal}")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::mailing::tests::*;
    use super::*;
    use crate::store::{MemoryStore, Store};

    #[tokio::test]
    async fn the_link_goes_to_the_persons_address_and_is_kept_nowhere_here() {
        let (store, world) = (Arc::new(MemoryStore::new()), World::new());
        let room = open(&store, &world);
        let asked = |user| NewPassword { user, token: "abcdefgh12345678", expires: minutes(30) };
        room.mail_new_password(asked(OWNER), START).await.unwrap();
        let (id, to, text) = world.sent().remove(0);
        assert_eq!(to, "owner@people.example");
        for expected in [
            "Subject: [shop] a new password\r\n".to_owned(),
            "Auto-Submitted: auto-generated\r\n".to_owned(),
            format!("Message-ID: <{id}@mx.shop.example>\r\n"),
            "abcdefgh12345678".to_owned(),
            minutes(30).rfc3339(),
        ] {
            assert!(text.contains(&expected), "{expected} is not in {text}");
        }
        assert!(store.range(&[0], &[255], 10).unwrap().is_empty());
        assert!(room.mail_new_password(asked(UserId(77)), START).await.is_err());
        assert_eq!(world.sent().len(), 1);
    }
}
