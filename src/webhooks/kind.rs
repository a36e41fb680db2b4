//! The kinds of events people can be told of, and their names: dotted, never changed.
//!
//! Easy to get wrong: the stored form numbers them, so new ones go to the end.

use serde::{Deserialize, Serialize};

use crate::events::{EventKind, InstanceEvent, MailEvent};

/// A kind of event. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// We took responsibility for a message.
    Accepted,
    /// Recipients are on the suppression list and are never mailed.
    Suppressed,
    /// The receiving server took responsibility.
    Delivered,
    /// To be tried again.
    Deferred,
    /// Given up for good.
    Bounced,
    /// Given up because it waited too long.
    Expired,
    /// An operator holds it.
    Held,
    /// A hold ended.
    Released,
    /// An operator dropped it.
    Cancelled,
    /// A sending domain is verified.
    DomainVerified,
    /// A sending domain's records are gone.
    DomainUnverified,
    /// Another webhook of the tenant gets nothing more.
    WebhookDisabled,
    /// It was delivered, and a failure notice came back later.
    BouncedLater,
    /// A recipient complained, and the report is proved.
    Complained,
    /// A recipient asked not to be mailed any more.
    Unsubscribed,
}

/// Every kind with its name and what it says, in the order of the documentation.
pub const KINDS: &[(Kind, &str, &str)] = &[
    (Kind::Accepted, "message.accepted", "a message was taken, and will be delivered or reported"),
    (Kind::Suppressed, "message.suppressed", "recipients are on the suppression list and are never mailed"),
    (Kind::Delivered, "message.delivered", "the receiving server took the message for these recipients"),
    (Kind::Deferred, "message.deferred", "an attempt failed for now, another one will be made"),
    (Kind::Bounced, "message.bounced", "given up for good, with the reason"),
    (Kind::Expired, "message.expired", "given up after waiting too long"),
    (Kind::Held, "message.held", "an operator holds it"),
    (Kind::Released, "message.released", "an operator ended the hold"),
    (Kind::Cancelled, "message.cancelled", "an operator dropped it"),
    (Kind::DomainVerified, "domain.verified", "a sending domain may be used"),
    (Kind::DomainUnverified, "domain.unverified", "a sending domain's records were gone for too long"),
    (Kind::WebhookDisabled, "webhook.disabled", "another webhook of the tenant was disabled, with the reason"),
    (Kind::BouncedLater, "message.bounced_later", "a failure notice came back after delivery, with the reason"),
    (Kind::Complained, "message.complained", "a recipient told its provider that the message is unwanted"),
    (Kind::Unsubscribed, "message.unsubscribed", "a recipient asked not to be mailed any more"),
];

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or("unknown", |(_, name, _)| name)
    }

    /// The kind called `name`.
    pub fn called(name: &str) -> Option<Self> {
        KINDS.iter().find(|(_, own, _)| *own == name).map(|(kind, ..)| *kind)
    }

    /// What an endpoint is told if nobody chooses: all but `message.deferred`, of which there may be many
    /// for one message.
    pub fn usual() -> Vec<Self> {
        KINDS.iter().map(|(kind, ..)| *kind).filter(|kind| *kind != Self::Deferred).collect()
    }

    /// The kind of an event; `None` if nobody is told of it.
    pub fn of(event: &EventKind) -> Option<Self> {
        match event {
            EventKind::Mail(_, event) => Self::of_mail(event),
            EventKind::Instance(InstanceEvent::DomainVerified { .. }) => Some(Self::DomainVerified),
            EventKind::Instance(InstanceEvent::DomainUnverified { .. }) => Some(Self::DomainUnverified),
            EventKind::Instance(InstanceEvent::WebhookDisabled { .. }) => Some(Self::WebhookDisabled),
            EventKind::Instance(_) | EventKind::Audit(_) => None,
        }
    }

    fn of_mail(event: &MailEvent) -> Option<Self> {
        match event {
            // A notice to the sender is not the sender's message.
            MailEvent::Accepted(facts) if facts.source == "notice" => None,
            MailEvent::Accepted(_) => Some(Self::Accepted),
            MailEvent::Suppressed { .. } => Some(Self::Suppressed),
            MailEvent::Delivered { .. } => Some(Self::Delivered),
            MailEvent::Deferred { .. } => Some(Self::Deferred),
            MailEvent::Bounced { .. } => Some(Self::Bounced),
            MailEvent::Expired { .. } => Some(Self::Expired),
            MailEvent::Held { .. } => Some(Self::Held),
            MailEvent::Released { .. } => Some(Self::Released),
            MailEvent::Cancelled { .. } => Some(Self::Cancelled),
            MailEvent::BouncedLater { .. } => Some(Self::BouncedLater),
            MailEvent::Complained { .. } => Some(Self::Complained),
            MailEvent::Unsubscribed { .. } => Some(Self::Unsubscribed),
            // Steps on the way that say nothing about where the mail is.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name_and_is_stored_by_its_place() {
        for (at, (kind, name, _)) in KINDS.iter().enumerate() {
            assert_eq!(Kind::called(name), Some(*kind));
            assert_eq!(kind.name(), *name);
            let stored = crate::store::codec::encode(kind);
            assert_eq!(stored, [1, u8::try_from(at).unwrap()], "{name} keeps its number for ever");
        }
        assert_eq!(Kind::called("message"), None);
        assert!(!Kind::usual().contains(&Kind::Deferred) && Kind::usual().len() == KINDS.len() - 1);
    }
}
