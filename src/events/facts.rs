//! The history record of one message: what people ask for and may ask to erase, kept once.
//!
//! The queue writes it in the batch that accepts the message; events name recipients by number only.
//! Easy to get wrong: [`HistoryRef`] is [`History`] without copies and must keep its field order.

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::{
    Address, Class, Domain, Labels, Notify, QueueId, ReversePath, Signed, SmtpAccountId, TenantId, VipId,
};
use crate::store::{Key, StoreError, codec, prefix};

/// What an erased address reads as: local part and domain.
pub const ERASED: (&str, &str) = ("erased", "erased.invalid");

/// Addresses and header facts of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Whose mail.
    pub tenant: TenantId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Where notices go.
    pub reverse_path: ReversePath,
    /// The header From.
    pub header_from: String,
    /// The Subject.
    pub subject: String,
    /// The Message-ID header.
    pub message_id: String,
    /// By recipient number.
    pub recipients: Vec<Address>,
    /// What the sender attached for itself.
    pub labels: Labels,
    /// How it came in; `None` in records of the first shape, which did not say.
    pub entry: Option<Entry>,
    /// What is needed when something comes back; `None` if it had no return-path of ours.
    pub returns: Option<Returns>,
    /// As what it was sent; `None` if it was not signed, and in records of earlier shapes, which did not say.
    pub signed: Option<Signed>,
}

/// What its client asked to be told, of a message with a return-path of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returns {
    /// The name of its return-paths.
    pub name: Domain,
    /// `ENVID=`.
    pub envid: Option<String>,
    /// `NOTIFY=`, by recipient number.
    pub notify: Vec<Notify>,
    /// `ORCPT=`, by recipient number.
    pub orcpt: Vec<Option<String>>,
}

/// How a message came in: what its first event says, for whoever sees a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The login, if it came by SMTP.
    pub account: Option<SmtpAccountId>,
    /// The virtual IP it was accepted for.
    pub vip: VipId,
    /// Transactional or marketing.
    pub class: Class,
    /// `smtp`, `notice`, `api`.
    pub source: String,
    /// Octets of the final message.
    pub size_bytes: u64,
}

/// As the first release stored it: without labels and without how it came in.
#[derive(Serialize, Deserialize)]
struct FirstHistory {
    tenant: TenantId,
    accepted: Timestamp,
    reverse_path: ReversePath,
    header_from: String,
    subject: String,
    message_id: String,
    recipients: Vec<Address>,
}

/// As it was stored third: without as what it was sent.
#[derive(Serialize, Deserialize)]
struct ThirdHistory {
    tenant: TenantId,
    accepted: Timestamp,
    reverse_path: ReversePath,
    header_from: String,
    subject: String,
    message_id: String,
    recipients: Vec<Address>,
    labels: Labels,
    entry: Option<Entry>,
    returns: Option<Returns>,
}

impl From<ThirdHistory> for History {
    fn from(third: ThirdHistory) -> Self {
        Self {
            tenant: third.tenant,
            accepted: third.accepted,
            reverse_path: third.reverse_path,
            header_from: third.header_from,
            subject: third.subject,
            message_id: third.message_id,
            recipients: third.recipients,
            labels: third.labels,
            entry: third.entry,
            returns: third.returns,
            signed: None,
        }
    }
}

/// As it was stored second: without what is needed when something comes back.
#[derive(Serialize, Deserialize)]
struct SecondHistory {
    tenant: TenantId,
    accepted: Timestamp,
    reverse_path: ReversePath,
    header_from: String,
    subject: String,
    message_id: String,
    recipients: Vec<Address>,
    labels: Labels,
    entry: Option<Entry>,
}

impl From<SecondHistory> for History {
    fn from(second: SecondHistory) -> Self {
        Self {
            tenant: second.tenant,
            accepted: second.accepted,
            reverse_path: second.reverse_path,
            header_from: second.header_from,
            subject: second.subject,
            message_id: second.message_id,
            recipients: second.recipients,
            labels: second.labels,
            entry: second.entry,
            returns: None,
            signed: None,
        }
    }
}

impl From<FirstHistory> for History {
    fn from(first: FirstHistory) -> Self {
        Self {
            tenant: first.tenant,
            accepted: first.accepted,
            reverse_path: first.reverse_path,
            header_from: first.header_from,
            subject: first.subject,
            message_id: first.message_id,
            recipients: first.recipients,
            labels: Labels::default(),
            entry: None,
            returns: None,
            signed: None,
        }
    }
}

impl History {
    /// Reads what [`History::to_bytes`], [`HistoryRef::to_bytes`] or an earlier release wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_fourth::<FirstHistory, SecondHistory, ThirdHistory, Self>(bytes)
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_fourth(self)
    }

    /// Whether its addresses were erased.
    pub fn is_erased(&self) -> bool {
        let mut parts = self.recipients.iter().map(|address| (address.local_part(), address.domain().as_str()));
        self.reverse_path.0.is_none() && !self.recipients.is_empty() && parts.all(|parts| parts == ERASED)
    }
}

/// A [`History`] to be written.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryRef<'a> {
    /// Whose mail.
    pub tenant: TenantId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Where notices go.
    pub reverse_path: &'a ReversePath,
    /// The header From.
    pub header_from: &'a str,
    /// The Subject.
    pub subject: &'a str,
    /// The Message-ID header.
    pub message_id: &'a str,
    /// By recipient number.
    pub recipients: Vec<&'a Address>,
    /// What the sender attached for itself.
    pub labels: &'a Labels,
    /// How it came in.
    pub entry: Option<Entry>,
    /// What is needed when something comes back.
    pub returns: Option<Returns>,
    /// As what it was sent.
    pub signed: Option<Signed>,
}

impl HistoryRef<'_> {
    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_fourth(self)
    }
}

/// Where the history record of a message is.
pub fn history_key(id: QueueId) -> Key {
    let mut key = Vec::with_capacity(17);
    key.push(prefix::HISTORY);
    key.extend_from_slice(&id.0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_earlier_releases_stored_is_read() {
        let first = FirstHistory {
            tenant: TenantId(1),
            accepted: Timestamp(2),
            reverse_path: ReversePath(None),
            header_from: "a@shop.example".to_owned(),
            subject: "s".to_owned(),
            message_id: "<1@shop.example>".to_owned(),
            recipients: vec![Address::parse("b@x.example").unwrap()],
        };
        let mut read = History::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.subject.as_str(), read.recipients.len()), ("s", 1));
        assert_eq!(read.labels, Labels::default());
        assert_eq!(read.entry, None);
        read.labels.tag("order").unwrap();
        assert_eq!(read.returns, None);
        let second = SecondHistory {
            tenant: read.tenant,
            accepted: read.accepted,
            reverse_path: read.reverse_path.clone(),
            header_from: read.header_from.clone(),
            subject: read.subject.clone(),
            message_id: read.message_id.clone(),
            recipients: read.recipients.clone(),
            labels: read.labels.clone(),
            entry: None,
        };
        assert_eq!(History::from_bytes(&codec::encode_second(&second)).unwrap(), read);
        read.returns = Some(Returns {
            name: Domain::parse("bounce.shop.example").unwrap(),
            envid: Some("x".to_owned()),
            notify: vec![Notify::NEVER],
            orcpt: vec![None],
        });
        read.entry = Some(Entry {
            account: Some(SmtpAccountId(3)),
            vip: VipId(4),
            class: Class::Marketing,
            source: "smtp".to_owned(),
            size_bytes: 9,
        });
        let third = ThirdHistory {
            tenant: read.tenant,
            accepted: read.accepted,
            reverse_path: read.reverse_path.clone(),
            header_from: read.header_from.clone(),
            subject: read.subject.clone(),
            message_id: read.message_id.clone(),
            recipients: read.recipients.clone(),
            labels: read.labels.clone(),
            entry: read.entry.clone(),
            returns: read.returns.clone(),
        };
        assert_eq!(History::from_bytes(&codec::encode_third(&third)).unwrap(), read);
        read.signed = Some(Signed { by: Domain::parse("shop.example").unwrap(), offers_one_click: true });
        assert_eq!(History::from_bytes(&read.to_bytes()).unwrap(), read);
        let of_ref = HistoryRef {
            tenant: read.tenant,
            accepted: read.accepted,
            reverse_path: &read.reverse_path,
            header_from: &read.header_from,
            subject: &read.subject,
            message_id: &read.message_id,
            recipients: read.recipients.iter().collect(),
            labels: &read.labels,
            entry: read.entry.clone(),
            returns: read.returns.clone(),
            signed: read.signed.clone(),
        };
        assert_eq!(of_ref.to_bytes(), read.to_bytes());
        assert!(History::from_bytes(&[9, 1]).is_err(), "a later form is refused, not guessed");
    }
}
