//! The stored forms of lane records and owed notices. The second knows when each recipient was tried
//! last; the first, without that, is still read.

use serde::{Deserialize, Serialize};

use super::record::{LaneRecord, NoticeOwed, QueueTime, QueuedRecipient, RecipientState};
use crate::events::{NoticeKind, Peer, Why};
use crate::mail::{Address, BodyId, Notify, QueueId};
use crate::routing::Lane;
use crate::store::{StoreError, codec};

impl LaneRecord {
    /// As it is stored.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Reads what this or an earlier release stored.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstLaneRecord, Self>(bytes)
    }
}

impl NoticeOwed {
    /// As it is stored.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// Reads what this or an earlier release stored.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstNoticeOwed, Self>(bytes)
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
    use crate::mail::{Class, Domain, TenantId, VipId};
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

    #[test]
    fn a_record_of_a_later_release_is_refused_not_guessed() {
        let error = LaneRecord::from_bytes(&[9, 1, 2]).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}
