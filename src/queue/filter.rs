//! Which mail is meant: what an operator says about messages and recipients. Pure: no reads, no clock.
//!
//! A message is meant if it has an unfinished recipient that fits everything that was said; an act
//! applies to these recipients and not to its others. Easy to get wrong: a message all of whose
//! recipients are done stays while its sender is owed a notice; only a filter that asks nothing of
//! recipients means it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{LaneRecord, QueuedMessage, QueuedRecipient};
use crate::access::{Action, Actor, Forbidden, Permission};
use crate::ext::Timestamp;
use crate::mail::{Address, Class, Domain, QueueId, ReversePath, SmtpAccountId, TenantId, VipId};
use crate::store::{Key, after_prefix, prefix};

use super::key;

/// An id is made a moment before its message is accepted; keys are bounded with this much room.
const ID_SLACK: Duration = Duration::from_secs(3_600);

/// Which messages are meant; an empty filter is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Handed in with this SMTP account.
    pub account: Option<SmtpAccountId>,
    /// Of this class.
    pub class: Option<Class>,
    /// With this envelope sender.
    pub sender: Option<SenderIs>,
    /// Accepted before this moment.
    pub accepted_before: Option<Timestamp>,
    /// Accepted at this moment or later.
    pub accepted_from: Option<Timestamp>,
    /// With an unfinished recipient of this address.
    pub recipient: Option<Address>,
    /// With an unfinished recipient in this domain or below.
    pub recipient_domain: Option<Domain>,
    /// With an unfinished recipient whose mail goes to this provider or site.
    pub provider: Option<String>,
    /// The site that provider is paced as; found out whenever it is asked.
    #[serde(skip)]
    pub site: Option<Arc<str>>,
    /// With an unfinished recipient in this state.
    pub state: Option<Standing>,
    /// With an unfinished recipient that was tried at least so often.
    pub attempts_min: Option<u32>,
    /// With an unfinished recipient whose last reply or cause, in lower case, has this text in it.
    pub last: Option<String>,
    /// With an unfinished recipient that leaves by this virtual IP; if nothing else is asked of
    /// recipients, also what was accepted for it and is not retired, since notices about that leave by it.
    pub vip: Option<VipId>,
}

/// An envelope sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SenderIs {
    /// The null reverse-path: notices.
    Nobody,
    /// This address, in any case.
    Address(Address),
    /// An address in this domain or below.
    Domain(Domain),
}

/// Whether words may name addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    Shown,
    Left,
}

/// Where an unfinished recipient stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// Waits for its due time.
    Waiting,
    /// Being tried now.
    InFlight,
    /// Held by an operator.
    Held,
    /// Its SMTP account is paused.
    Paused,
}

impl SenderIs {
    /// Reads what a person typed: `a@example.com`, `example.com`, `@example.com` or `<>`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, crate::mail::AddressError> {
        let text = text.trim();
        if text == "<>" {
            return Ok(Self::Nobody);
        }
        if let Some(domain) = text.strip_prefix('@') {
            return Domain::parse(domain).map(Self::Domain);
        }
        if text.contains('@') {
            return Address::parse(text).map(|address| Self::Address(address.folded()));
        }
        Domain::parse(text).map(Self::Domain)
    }

    fn fits(&self, path: &ReversePath) -> bool {
        match (self, &path.0) {
            (Self::Nobody, None) => true,
            (Self::Address(asked), Some(address)) => address.folded() == *asked,
            (Self::Domain(domain), Some(address)) => address.domain().is_within(domain),
            _ => false,
        }
    }
}

impl Filter {
    /// Whether `actor` may see what it means.
    pub(super) fn require(&self, actor: &Actor) -> Result<(), Forbidden> {
        self.require_to(actor, Action::Read)
    }

    /// Whether `actor` may change what it means.
    pub(super) fn require_change(&self, actor: &Actor) -> Result<(), Forbidden> {
        self.require_to(actor, Action::Write)
    }

    fn require_to(&self, actor: &Actor, action: Action) -> Result<(), Forbidden> {
        let Some(tenant) = self.tenant else { return actor.require(Permission::ManageInstance) };
        let sender = match &self.sender {
            Some(SenderIs::Domain(domain)) => Some(domain),
            _ => None,
        };
        actor.require_mail((tenant, action), self.account, sender)
    }

    /// Whether something is asked of recipients, the virtual IP aside.
    pub(super) fn asks_of_recipients(&self) -> bool {
        self.recipient.is_some()
            || self.recipient_domain.is_some()
            || self.provider.is_some()
            || self.state.is_some()
            || self.attempts_min.is_some()
            || self.last.is_some()
    }

    /// Whether a message fits what is asked of messages.
    pub(super) fn fits_message(&self, message: &QueuedMessage) -> bool {
        self.tenant.is_none_or(|tenant| message.tenant == tenant)
            && self.account.is_none_or(|account| message.account == Some(account))
            && self.class.is_none_or(|class| message.class == class)
            && self.accepted_before.is_none_or(|moment| message.accepted < moment)
            && self.accepted_from.is_none_or(|moment| message.accepted >= moment)
            && self.sender.as_ref().is_none_or(|sender| sender.fits(&message.reverse_path))
    }

    /// Whether an unfinished recipient fits what is asked of recipients, the provider aside.
    pub(super) fn fits(&self, record: &LaneRecord, recipient: &QueuedRecipient, standing: Standing) -> bool {
        let has_text = |text: &String| {
            let last = recipient.last_detail.as_deref().unwrap_or_default();
            last.to_lowercase().contains(text)
        };
        self.vip.is_none_or(|vip| record.lane.vip == vip)
            && self.state.is_none_or(|state| state == standing)
            && self.attempts_min.is_none_or(|least| record.attempts >= least)
            && self.recipient_domain.as_ref().is_none_or(|domain| recipient.address.domain().is_within(domain))
            && self.recipient.as_ref().is_none_or(|address| recipient.address.folded() == address.folded())
            && self.last.as_ref().is_none_or(has_text)
    }

    /// What is meant, in words, for the record; without addresses and what peers said if they are
    /// to be `Left` out.
    pub(super) fn words(&self, addresses: Addresses) -> String {
        let mut words = Vec::new();
        let mut say = |word: &str, value: Option<String>| words.extend(value.map(|value| format!("{word} {value}")));
        let shown = |text: String| if addresses == Addresses::Shown { text } else { "(an address)".to_owned() };
        say("tenant", self.tenant.map(|tenant| tenant.to_string()));
        say("SMTP account", self.account.map(|account| account.to_string()));
        say("class", self.class.map(|class| format!("{class:?}").to_lowercase()));
        say("virtual IP", self.vip.map(|vip| vip.to_string()));
        say(
            "sender",
            self.sender.as_ref().map(|sender| match sender {
                SenderIs::Nobody => "nobody".to_owned(),
                SenderIs::Address(address) => shown(address.to_string()),
                SenderIs::Domain(domain) => domain.to_string(),
            }),
        );
        say("recipient", self.recipient.as_ref().map(|address| shown(address.to_string())));
        say("recipients in", self.recipient_domain.as_ref().map(Domain::to_string));
        say("recipients of", self.provider.clone());
        say("accepted before", self.accepted_before.map(Timestamp::rfc3339));
        say("accepted from", self.accepted_from.map(Timestamp::rfc3339));
        say("state", self.state.map(|state| format!("{state:?}").to_lowercase()));
        say("attempts at least", self.attempts_min.map(|least| least.to_string()));
        let last = self.last.as_ref().filter(|_| addresses == Addresses::Shown);
        say("last reply with", last.map(|text| format!("{text:?}")));
        if words.is_empty() { "everything".to_owned() } else { words.join(", ") }
    }

    /// The keys of message records between which everything that fits lies.
    pub(super) fn bounds(&self) -> (Key, Key) {
        let slack = u64::try_from(ID_SLACK.as_millis()).unwrap_or(u64::MAX);
        let first = self.accepted_from.map_or_else(
            || vec![prefix::MESSAGE],
            |moment| key::message(first_id(Timestamp(moment.0.saturating_sub(slack)))),
        );
        let end = self
            .accepted_before
            .map_or_else(|| after_prefix(&[prefix::MESSAGE]), |moment| key::message(first_id(moment.plus(ID_SLACK))));
        (first, end)
    }
}

/// The first id that can be made at `moment`.
pub(super) fn first_id(moment: Timestamp) -> QueueId {
    let mut id = [0; 16];
    if let (Some(head), Some(millis)) = (id.first_chunk_mut::<6>(), moment.0.to_be_bytes().last_chunk::<6>()) {
        *head = *millis;
    }
    QueueId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_an_address_a_domain_or_nobody() {
        let path = |text: &str| ReversePath(Some(Address::parse(text).unwrap()));
        for (asked, sender, fits) in [
            ("shop@a.example", "Shop@A.example", true),
            ("shop@a.example", "news@a.example", false),
            ("a.example", "news@a.example", true),
            ("@a.example", "news@mail.a.example", true),
            ("a.example", "news@ba.example", false),
            ("<>", "news@a.example", false),
        ] {
            assert_eq!(SenderIs::parse(asked).unwrap().fits(&path(sender)), fits, "{asked} {sender}");
        }
        assert!(SenderIs::parse("<>").unwrap().fits(&ReversePath(None)));
        assert!(!SenderIs::parse("a.example").unwrap().fits(&ReversePath(None)));
        assert!(SenderIs::parse("a b@c").is_err());
    }

    #[test]
    fn an_age_bounds_the_keys_that_are_read() {
        let moment = Timestamp(1_795_342_500_000);
        let (id, earlier) = (QueueId::new(moment), QueueId::new(Timestamp(moment.0 - 8_000_000)));
        let (first, end) = Filter { accepted_from: Some(moment), ..Filter::default() }.bounds();
        assert!(first <= key::message(id) && key::message(earlier) < first && key::message(id) < end);
        let (first, end) =
            Filter { accepted_before: Some(Timestamp(moment.0 - 7_000_000)), ..Filter::default() }.bounds();
        assert!(first <= key::message(earlier) && key::message(earlier) < end && end < key::message(id));
    }
}
