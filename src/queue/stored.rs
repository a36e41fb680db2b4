//! The stored forms of messages, of what lies beside their bodies, of lane records and owed notices.
//!
//! Of messages the second knows REQUIRETLS and the third return-paths, of the others the second knows when each
//! recipient was tried last; earlier forms are still read. Beside a body no return-path is kept: mail that is
//! salvaged goes out with its client's reverse-path.

use serde::{Deserialize, Serialize};

use super::enqueue::{BodyEnvelope, EnvelopeRecipient};
use super::record::{LaneRecord, Needs8bit, NoticeOwed, QueueTime, QueuedMessage, QueuedRecipient, RecipientState};
use crate::events::{NoticeKind, Peer, Why};
use crate::ext::Timestamp;
use crate::mail::{
    Address, BodyId, BodyType, Class, Hold, MailParameters, Notify, QueueId, RequireTls, Ret, ReversePath,
    SmtpAccountId, Smtputf8, TenantId, VipId,
};
use crate::routing::Lane;
use crate::store::{StoreError, codec};

impl QueuedMessage {
    /// As it is stored.
    #[doc(hidden)]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_third(self)
    }

    /// Reads what this or an earlier release stored.
    #[doc(hidden)]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_third::<FirstMessage, SecondMessage, Self>(bytes)
    }
}

impl BodyEnvelope {
    /// Reads what this or an earlier release wrote beside a body.
    #[doc(hidden)]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstEnvelope, Self>(bytes)
    }
}

impl LaneRecord {
    /// As it is stored.
    #[doc(hidden)]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Reads what this or an earlier release stored.
    #[doc(hidden)]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstLaneRecord, Self>(bytes)
    }
}

impl NoticeOwed {
    /// As it is stored.
    #[doc(hidden)]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Reads what this or an earlier release stored.
    #[doc(hidden)]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstNoticeOwed, Self>(bytes)
    }
}

/// MAIL's parameters as they were stored first.
#[derive(Serialize, Deserialize)]
struct FirstParameters {
    body: BodyType,
    smtputf8: Smtputf8,
    ret: Option<Ret>,
    envid: Option<String>,
    hold: Option<Hold>,
}

#[derive(Serialize, Deserialize)]
struct FirstMessage {
    tenant: TenantId,
    account: Option<SmtpAccountId>,
    vip: VipId,
    class: Class,
    source: String,
    reverse_path: ReversePath,
    parameters: FirstParameters,
    needs_8bit: Needs8bit,
    size_bytes: u64,
    accepted: Timestamp,
    accepted_at: QueueTime,
    signatures: Vec<String>,
    lanes: u16,
    recipients: u16,
}

/// As it was stored second: with REQUIRETLS, without return-paths.
#[derive(Serialize, Deserialize)]
struct SecondMessage {
    tenant: TenantId,
    account: Option<SmtpAccountId>,
    vip: VipId,
    class: Class,
    source: String,
    reverse_path: ReversePath,
    parameters: MailParameters,
    needs_8bit: Needs8bit,
    size_bytes: u64,
    accepted: Timestamp,
    accepted_at: QueueTime,
    signatures: Vec<String>,
    lanes: u16,
    recipients: u16,
}

#[derive(Serialize, Deserialize)]
struct FirstEnvelope {
    tenant: TenantId,
    account: Option<SmtpAccountId>,
    vip: VipId,
    class: Class,
    source: String,
    reverse_path: ReversePath,
    parameters: FirstParameters,
    needs_8bit: Needs8bit,
    accepted: Timestamp,
    subject: String,
    message_id: String,
    header_from: String,
    signatures: Vec<String>,
    recipients: Vec<EnvelopeRecipient>,
}

impl From<FirstParameters> for MailParameters {
    fn from(first: FirstParameters) -> Self {
        Self {
            body: first.body,
            smtputf8: first.smtputf8,
            ret: first.ret,
            envid: first.envid,
            hold: first.hold,
            require_tls: RequireTls::NotAsked,
        }
    }
}

impl From<FirstMessage> for QueuedMessage {
    fn from(first: FirstMessage) -> Self {
        Self {
            tenant: first.tenant,
            account: first.account,
            vip: first.vip,
            class: first.class,
            source: first.source,
            reverse_path: first.reverse_path,
            parameters: first.parameters.into(),
            needs_8bit: first.needs_8bit,
            size_bytes: first.size_bytes,
            accepted: first.accepted,
            accepted_at: first.accepted_at,
            signatures: first.signatures,
            lanes: first.lanes,
            recipients: first.recipients,
            return_path: None,
        }
    }
}

impl From<SecondMessage> for QueuedMessage {
    fn from(second: SecondMessage) -> Self {
        Self {
            tenant: second.tenant,
            account: second.account,
            vip: second.vip,
            class: second.class,
            source: second.source,
            reverse_path: second.reverse_path,
            parameters: second.parameters,
            needs_8bit: second.needs_8bit,
            size_bytes: second.size_bytes,
            accepted: second.accepted,
            accepted_at: second.accepted_at,
            signatures: second.signatures,
            lanes: second.lanes,
            recipients: second.recipients,
            return_path: None,
        }
    }
}

impl From<FirstEnvelope> for BodyEnvelope {
    fn from(first: FirstEnvelope) -> Self {
        Self {
            tenant: first.tenant,
            account: first.account,
            vip: first.vip,
            class: first.class,
            source: first.source,
            reverse_path: first.reverse_path,
            parameters: first.parameters.into(),
            needs_8bit: first.needs_8bit,
            accepted: first.accepted,
            subject: first.subject,
            message_id: first.message_id,
            header_from: first.header_from,
            signatures: first.signatures,
            recipients: first.recipients,
        }
    }
}

/// A recipient as it was stored first.
#[derive(Serialize, Deserialize)]
struct FirstRecipient {
    number: u16,
    address: Address,
    notify: Notify,
    orcpt: Option<String>,
    state: RecipientState,
    last_why: Option<Why>,
    last_detail: Option<String>,
    last_peer: Option<Peer>,
    delay_told: bool,
}

#[derive(Serialize, Deserialize)]
struct FirstLaneRecord {
    lane: Lane,
    body: BodyId,
    attempts: u32,
    due: QueueTime,
    recipients: Vec<FirstRecipient>,
}

#[derive(Serialize, Deserialize)]
struct FirstNoticeOwed {
    queue_id: QueueId,
    kind: NoticeKind,
    due: QueueTime,
    recipients: Vec<FirstRecipient>,
}

impl From<FirstRecipient> for QueuedRecipient {
    fn from(first: FirstRecipient) -> Self {
        Self {
            number: first.number,
            address: first.address,
            notify: first.notify,
            orcpt: first.orcpt,
            state: first.state,
            last_why: first.last_why,
            last_detail: first.last_detail,
            last_peer: first.last_peer,
            delay_told: first.delay_told,
            last_attempt: None,
        }
    }
}

impl From<FirstLaneRecord> for LaneRecord {
    fn from(first: FirstLaneRecord) -> Self {
        let recipients = first.recipients.into_iter().map(QueuedRecipient::from).collect();
        Self { lane: first.lane, body: first.body, attempts: first.attempts, due: first.due, recipients }
    }
}

impl From<FirstNoticeOwed> for NoticeOwed {
    fn from(first: FirstNoticeOwed) -> Self {
        let recipients = first.recipients.into_iter().map(QueuedRecipient::from).collect();
        Self { queue_id: first.queue_id, kind: first.kind, due: first.due, recipients }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Domain;
    use crate::routing::TransportName;

    fn first_recipient() -> FirstRecipient {
        FirstRecipient {
            number: 3,
            address: Address::parse("ann@shop.example").unwrap(),
            notify: Notify::default(),
            orcpt: Some("rfc822;ann@shop.example".to_owned()),
            state: RecipientState::Waiting,
            last_why: Some(Why::TryLater),
            last_detail: Some("451 4.7.1 later".to_owned()),
            last_peer: None,
            delay_told: true,
        }
    }

    #[test]
    fn what_the_first_release_stored_is_read_and_written_back_in_the_second_form() {
        let lane = Lane {
            vip: VipId(1),
            tenant: TenantId(2),
            class: Class::Marketing,
            transport: TransportName::Mx,
            next_hop: Domain::parse("shop.example").unwrap(),
        };
        let body = BodyId { queue_id: QueueId([7; 16]), number: 0 };
        let first = FirstLaneRecord { lane, body, attempts: 4, due: QueueTime(9), recipients: vec![first_recipient()] };
        let read = LaneRecord::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.attempts, read.due, read.recipients.len()), (4, QueueTime(9), 1));
        assert_eq!(read.recipients[0].last_detail.as_deref(), Some("451 4.7.1 later"));
        assert_eq!(read.recipients[0].last_attempt, None);
        assert_eq!(LaneRecord::from_bytes(&read.to_bytes()).unwrap(), read);
        let kind = NoticeKind::Delay;
        let first =
            FirstNoticeOwed { queue_id: body.queue_id, kind, due: QueueTime(5), recipients: vec![first_recipient()] };
        let read = NoticeOwed::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.kind, read.due, read.recipients[0].number), (kind, QueueTime(5), 3));
        assert_eq!(NoticeOwed::from_bytes(&read.to_bytes()).unwrap(), read);
    }

    fn first_parameters() -> FirstParameters {
        let hold = Some(Hold::Until(Timestamp(5)));
        let (body, smtputf8) = (BodyType::EightBitMime, Smtputf8::Needed);
        FirstParameters { body, smtputf8, ret: Some(Ret::Headers), envid: Some("x".to_owned()), hold }
    }

    #[test]
    fn a_message_of_the_first_release_is_read_as_one_that_did_not_ask_for_tls() {
        let (tenant, vip, class) = (TenantId(2), VipId(1), Class::Marketing);
        let reverse_path = ReversePath(Some(Address::parse("shop@shop.example").unwrap()));
        let first = FirstMessage {
            tenant,
            account: Some(SmtpAccountId(3)),
            vip,
            class,
            source: "smtp".to_owned(),
            reverse_path: reverse_path.clone(),
            parameters: first_parameters(),
            needs_8bit: Needs8bit::Yes,
            size_bytes: 7,
            accepted: Timestamp(8),
            accepted_at: QueueTime(9),
            signatures: vec!["s".to_owned()],
            lanes: 10,
            recipients: 11,
        };
        let read = QueuedMessage::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!(read.parameters, MailParameters::from(first_parameters()));
        assert_eq!(read.parameters.require_tls, RequireTls::NotAsked);
        assert_eq!((read.size_bytes, read.lanes, read.recipients), (7, 10, 11));
        let parameters = MailParameters { require_tls: RequireTls::Asked, ..read.parameters.clone() };
        let return_path = Some(Domain::parse("bounce.shop.example").unwrap());
        let asked = QueuedMessage { parameters, return_path, ..read };
        assert_eq!(QueuedMessage::from_bytes(&asked.to_bytes()).unwrap(), asked);
        let second = SecondMessage {
            tenant: asked.tenant,
            account: asked.account,
            vip: asked.vip,
            class: asked.class,
            source: asked.source.clone(),
            reverse_path: asked.reverse_path.clone(),
            parameters: asked.parameters.clone(),
            needs_8bit: asked.needs_8bit,
            size_bytes: asked.size_bytes,
            accepted: asked.accepted,
            accepted_at: asked.accepted_at,
            signatures: asked.signatures.clone(),
            lanes: asked.lanes,
            recipients: asked.recipients,
        };
        let read = QueuedMessage::from_bytes(&codec::encode_second(&second)).unwrap();
        assert_eq!(read, QueuedMessage { return_path: None, ..asked });
        let first = FirstEnvelope {
            tenant,
            account: None,
            vip,
            class,
            source: "smtp".to_owned(),
            reverse_path,
            parameters: first_parameters(),
            needs_8bit: Needs8bit::No,
            accepted: Timestamp(8),
            subject: "a".to_owned(),
            message_id: "b".to_owned(),
            header_from: "c".to_owned(),
            signatures: Vec::new(),
            recipients: Vec::new(),
        };
        let read = BodyEnvelope::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.parameters, read.subject.as_str()), (MailParameters::from(first_parameters()), "a"));
    }

    #[test]
    fn a_record_of_a_later_release_is_refused_not_guessed() {
        let error = LaneRecord::from_bytes(&[9, 1, 2]).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}
