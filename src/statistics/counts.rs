//! What is counted, and which event counts as what. Pure.
//!
//! The unit is a recipient: a message to three recipients is injected three times, and each ends once.
//! Easy to get wrong: a deferral is counted each time it happens, so deferrals and endings never add up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::events::{MailEvent, Why};
use crate::store::{StoreError, codec};

/// What may happen to a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Handed in.
    Injected,
    /// The peer took responsibility.
    Ok,
    /// Given up for a cause that may pass: a full mailbox, DNS, the network, too long a wait.
    SoftBounce,
    /// Given up because the mailbox or the domain does not exist.
    HardBounce,
    /// Given up because the peer dislikes the sender or the content.
    SpamBounce,
    /// On the tenant's suppression list, never mailed.
    Dropped,
    /// Put off, once for each time.
    Deferred,
    /// Dropped by an operator.
    Cancelled,
    /// The message was opened.
    Open,
    /// A link of it was followed.
    Click,
    /// The recipient asked not to be mailed any more.
    Unsubscribe,
    /// The recipient told its provider that it is unwanted.
    Complaint,
}

/// Every status in the order of the API; new ones go to the end.
pub const STATUSES: [Status; 12] = [
    Status::Injected,
    Status::Ok,
    Status::SoftBounce,
    Status::HardBounce,
    Status::SpamBounce,
    Status::Dropped,
    Status::Deferred,
    Status::Cancelled,
    Status::Open,
    Status::Click,
    Status::Unsubscribe,
    Status::Complaint,
];

/// Upper bounds, in seconds, of the classes of delay from acceptance to delivery; a last class has none.
pub const DELAYS_SECS: [u64; 7] = [10, 60, 300, 1_800, 3_600, 14_400, 86_400];

impl Status {
    /// Its name in the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Ok => "ok",
            Self::SoftBounce => "softbounce",
            Self::HardBounce => "hardbounce",
            Self::SpamBounce => "spambounce",
            Self::Dropped => "dropped",
            Self::Deferred => "deferred",
            Self::Cancelled => "cancelled",
            Self::Open => "open",
            Self::Click => "click",
            Self::Unsubscribe => "unsubscribe",
            Self::Complaint => "complaint",
        }
    }

    /// The one with this name.
    pub fn called(word: &str) -> Option<Self> {
        STATUSES.into_iter().find(|status| status.word() == word)
    }

    fn place(self) -> usize {
        STATUSES.iter().position(|status| *status == self).unwrap_or_default()
    }

    /// What giving a recipient up for `why` counts as.
    pub fn of_failure(why: Why) -> Self {
        match why {
            Why::RecipientGone | Why::NoSuchDomain => Self::HardBounce,
            Why::PolicyOrReputation | Why::Content => Self::SpamBounce,
            Why::MailboxFull
            | Why::TooLarge
            | Why::OurConfiguration
            | Why::Dns
            | Why::Network
            | Why::TryLater
            | Why::Unsupported
            | Why::UnknownOutcome
            | Why::Other
            | Why::TlsPolicy => Self::SoftBounce,
        }
    }
}

/// What an event says of recipients; acceptance, which says it of all, is not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Of whom, by number.
    pub recipients: &'a [u16],
    /// What.
    pub status: Status,
    /// The class of the reply or cause, if there is one.
    pub why: Option<Why>,
    /// The host that said it, if one did.
    pub host: Option<&'a str>,
}

impl<'a> Said<'a> {
    /// What `event` counts as; `None` if it counts as nothing.
    pub fn by(event: &'a MailEvent) -> Option<Self> {
        let said = |recipients, status| Some(Self { recipients, status, why: None, host: None });
        match event {
            MailEvent::Delivered { recipients, peer, .. } => {
                Some(Self { recipients, status: Status::Ok, why: None, host: Some(&peer.host) })
            }
            MailEvent::Deferred { recipients, peer, why, .. } => {
                let host = peer.as_ref().map(|peer| peer.host.as_str());
                Some(Self { recipients, status: Status::Deferred, why: Some(*why), host })
            }
            MailEvent::Bounced { recipients, peer, why, .. } => {
                let host = peer.as_ref().map(|peer| peer.host.as_str());
                Some(Self { recipients, status: Status::of_failure(*why), why: Some(*why), host })
            }
            MailEvent::Expired { recipients, .. } => said(recipients, Status::SoftBounce),
            MailEvent::Suppressed { recipients } => said(recipients, Status::Dropped),
            MailEvent::Cancelled { recipients, .. } => said(recipients, Status::Cancelled),
            MailEvent::BouncedLater { recipients, why, .. } => {
                Some(Self { recipients, status: Status::of_failure(*why), why: Some(*why), host: None })
            }
            MailEvent::Complained { recipients, .. } => said(recipients, Status::Complaint),
            MailEvent::Unsubscribed { recipients, .. } => said(recipients, Status::Unsubscribe),
            // Acceptance is counted apart; the others change nothing that is counted.
            MailEvent::Accepted(_)
            | MailEvent::Held { .. }
            | MailEvent::Released { .. }
            | MailEvent::Retried { .. }
            | MailEvent::VipMissing { .. }
            | MailEvent::Moved { .. }
            | MailEvent::NoticeSent { .. }
            | MailEvent::NoticeUnsigned
            | MailEvent::Stalled { .. }
            | MailEvent::Attempted { .. }
            | MailEvent::Damaged { .. }
            | MailEvent::Retired
            | MailEvent::NoticeDropped { .. }
            | MailEvent::Salvaged { .. }
            | MailEvent::Faulted { .. }
            | MailEvent::ReportedLater { .. }
            | MailEvent::ComplaintDoubted { .. }
            | MailEvent::AutoReplied { .. } => None,
        }
    }
}

/// Counts of one row as releases stored them that told marketing mail not apart.
#[derive(Serialize, Deserialize)]
struct FirstCounts {
    messages: u64,
    bytes: u64,
    statuses: Vec<u64>,
    delays: Vec<u64>,
    classes: Vec<(Why, u64, u64)>,
}

impl From<FirstCounts> for Counts {
    fn from(first: FirstCounts) -> Self {
        let FirstCounts { messages, bytes, statuses, delays, classes } = first;
        Self { messages, bytes, statuses, delays, classes, marketing: 0, one_click: 0 }
    }
}

/// Counts of one row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages handed in; a message counts in the row of its first recipient.
    pub messages: u64,
    /// Octets of them.
    pub bytes: u64,
    /// By [`STATUSES`]; what is missing at the end is zero.
    statuses: Vec<u64>,
    /// Deliveries by [`DELAYS_SECS`]; what is missing at the end is zero.
    delays: Vec<u64>,
    /// By class of the reply: how often put off, how often given up.
    classes: Vec<(Why, u64, u64)>,
    /// Messages of class marketing, of those that were handed in since this is counted.
    pub marketing: u64,
    /// Of these, how many can be unsubscribed from with one click (RFC 8058).
    pub one_click: u64,
}

impl Counts {
    /// Reads what [`Counts::to_bytes`] or an earlier release wrote.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode_second::<FirstCounts, Self>(bytes)
    }

    /// As they are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode_second(self)
    }

    /// How often a status was counted.
    pub fn of(&self, status: Status) -> u64 {
        self.statuses.get(status.place()).copied().unwrap_or_default()
    }

    /// Deliveries by class of delay: one more than [`DELAYS_SECS`] has.
    pub fn delays(&self) -> [u64; DELAYS_SECS.len() + 1] {
        std::array::from_fn(|place| self.delays.get(place).copied().unwrap_or_default())
    }

    /// By class of the reply: how often put off, how often given up.
    pub fn classes(&self) -> &[(Why, u64, u64)] {
        &self.classes
    }

    /// Recipients given up, for whatever cause.
    pub fn bounced(&self) -> u64 {
        [Status::SoftBounce, Status::HardBounce, Status::SpamBounce]
            .into_iter()
            .fold(0, |sum, status| self.of(status).saturating_add(sum))
    }

    /// Counts a status.
    pub fn count(&mut self, status: Status, times: u64) {
        raise(&mut self.statuses, status.place(), times);
    }

    /// Counts deliveries that took so long.
    pub fn count_delay(&mut self, delay: Duration, times: u64) {
        let place = DELAYS_SECS.iter().position(|bound| delay.as_secs() <= *bound).unwrap_or(DELAYS_SECS.len());
        raise(&mut self.delays, place, times);
    }

    /// Counts the class of a reply.
    pub fn count_class(&mut self, why: Why, status: Status, times: u64) {
        let (put_off, given_up) = if status == Status::Deferred { (times, 0) } else { (0, times) };
        self.add_class((why, put_off, given_up));
    }

    fn add_class(&mut self, (why, put_off, given_up): (Why, u64, u64)) {
        match self.classes.iter_mut().find(|(own, ..)| *own == why) {
            Some((_, own_put_off, own_given_up)) => {
                *own_put_off = own_put_off.saturating_add(put_off);
                *own_given_up = own_given_up.saturating_add(given_up);
            }
            None => self.classes.push((why, put_off, given_up)),
        }
    }

    /// Adds other counts to these.
    pub fn add(&mut self, other: &Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.marketing = self.marketing.saturating_add(other.marketing);
        self.one_click = self.one_click.saturating_add(other.one_click);
        for (place, times) in other.statuses.iter().enumerate() {
            raise(&mut self.statuses, place, *times);
        }
        for (place, times) in other.delays.iter().enumerate() {
            raise(&mut self.delays, place, *times);
        }
        other.classes.iter().for_each(|class| self.add_class(*class));
    }
}

fn raise(list: &mut Vec<u64>, place: usize, times: u64) {
    if list.len() <= place {
        list.resize(place.saturating_add(1), 0);
    }
    if let Some(count) = list.get_mut(place) {
        *count = count.saturating_add(times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_name_that_reads_back() {
        for status in STATUSES {
            assert_eq!(Status::called(status.word()), Some(status));
        }
        assert_eq!(Status::called("delivered"), None);
    }

    #[test]
    fn what_an_earlier_release_counted_is_read() {
        let first = FirstCounts {
            messages: 3,
            bytes: 9,
            statuses: vec![1, 2],
            delays: vec![4],
            classes: vec![(Why::TryLater, 5, 6)],
        };
        let mut read = Counts::from_bytes(&codec::encode(&first)).unwrap();
        assert_eq!((read.messages, read.of(Status::Ok), read.marketing, read.one_click), (3, 2, 0, 0));
        read.marketing = 2;
        assert_eq!(Counts::from_bytes(&read.to_bytes()), Ok(read));
    }

    #[test]
    fn counts_add_up_in_every_part() {
        let mut sum = Counts::default();
        let mut one = Counts { messages: 1, bytes: 9, marketing: 1, one_click: 1, ..Counts::default() };
        one.count(Status::Complaint, 2);
        one.count(Status::Injected, 3);
        one.count_delay(Duration::from_secs(10), 1);
        one.count_delay(Duration::from_secs(11), 1);
        one.count_delay(Duration::from_secs(86_401), 4);
        one.count_class(Why::TryLater, Status::Deferred, 5);
        one.count_class(Why::TryLater, Status::SoftBounce, 1);
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.messages, sum.bytes, sum.marketing, sum.one_click), (2, 18, 2, 2));
        assert_eq!((sum.of(Status::Complaint), sum.of(Status::Injected), sum.of(Status::Ok)), (4, 6, 0));
        assert_eq!(sum.delays(), [2, 2, 0, 0, 0, 0, 0, 8]);
        assert_eq!(sum.classes(), [(Why::TryLater, 10, 2)]);
    }

    #[test]
    fn a_failure_is_hard_only_if_nobody_is_there_and_spam_only_if_the_peer_says_so() {
        for (why, status) in [
            (Why::RecipientGone, Status::HardBounce),
            (Why::NoSuchDomain, Status::HardBounce),
            (Why::PolicyOrReputation, Status::SpamBounce),
            (Why::Content, Status::SpamBounce),
            (Why::MailboxFull, Status::SoftBounce),
            (Why::TlsPolicy, Status::SoftBounce),
        ] {
            assert_eq!(Status::of_failure(why), status, "{why:?}");
        }
    }
}
