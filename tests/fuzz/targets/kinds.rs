//! Every kind of record that is stored, with how it is read and written.

use std::collections::{BTreeSet, VecDeque};

use postern::accounts::{self, LoginSeen, SeenNetwork, UsageCounts};
use postern::calendar::Kept;
use postern::domains::{ReturnPath, SendingDomain};
use postern::events::{Event, History};
use postern::ext::Timestamp;
use postern::feedback::{Letter, Onward, TagKeyRecord};
use postern::intake::OnceRecord;
use postern::keyring::Crossing;
use postern::mail::{TenantId, UserId};
use postern::notifications::{Backups, Notification, NotificationId, Outbox, Wish};
use postern::people::{ApiKey, FactorPolicy, KeyUse, Session, StoredLink};
use postern::queue::{BodyEnvelope, LaneRecord, NoticeOwed, QueuedMessage, StoredClock, Sweep};
use postern::records::AuditEntry;
use postern::routing::Route;
use postern::search::Fate;
use postern::store::lease::Lease;
use postern::store::{Extent, Head, Location, Position, StoreError, codec, prefix};
use postern::suppression::Hits;
use postern::tenancy::Deletion;
use postern::tlsrpt::DomainDay;
use postern::vips::Vip;
use postern::web::ReplayRecord;
use postern::{breaker, delivery, operations, people, routing, statistics, suppression, vips, webhooks};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One kind.
pub struct Kind {
    /// Under which prefix it is stored.
    pub prefix: u8,
    /// The highest version that is read; 0 if it has no version byte.
    pub newest: u8,
    /// Reads it and writes it again; `None` if it cannot be read.
    pub again: fn(&[u8]) -> Option<Vec<u8>>,
}

/// A kind whose shape never changed.
const fn plain<T: Serialize + DeserializeOwned>(prefix: u8) -> Kind {
    Kind { prefix, newest: 1, again: |bytes| Some(codec::encode(&codec::decode::<T>(bytes).ok()?)) }
}

/// A kind that earlier releases wrote in other shapes.
const fn changed(prefix: u8, newest: u8, again: fn(&[u8]) -> Option<Vec<u8>>) -> Kind {
    Kind { prefix, newest, again }
}

/// The octets of the engine's own records, which have a length and a version but no codec.
fn engine<T, W: AsRef<[u8]>>(read: Option<T>, write: impl Fn(T) -> W) -> Option<Vec<u8>> {
    read.map(|read| write(read).as_ref().to_vec())
}

/// The head of a chain is a number and a hash; it has no writer outside its room.
fn head(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = Head::read(Some(bytes.to_vec())).ok()?;
    Some([&head.count.to_be_bytes()[..], &head.hash].concat())
}

/// An entry of the audit log stands behind the hash that links it.
fn audit(bytes: &[u8]) -> Option<Vec<u8>> {
    let (link, entry) = bytes.split_at_checked(32)?;
    Some([link, &codec::encode(&codec::decode::<AuditEntry>(entry).ok()?)].concat())
}

fn written<T>(read: Result<T, StoreError>, write: impl Fn(&T) -> Vec<u8>) -> Option<Vec<u8>> {
    read.ok().map(|read| write(&read))
}

/// All of them. The first octet of an input is a place in this list: append at the end.
pub const KINDS: &[Kind] = &[
    changed(prefix::MESSAGE, 3, |bytes| written(QueuedMessage::from_bytes(bytes), QueuedMessage::to_bytes)),
    changed(prefix::LANE, 2, |bytes| written(LaneRecord::from_bytes(bytes), LaneRecord::to_bytes)),
    changed(prefix::NOTICE, 2, |bytes| written(NoticeOwed::from_bytes(bytes), NoticeOwed::to_bytes)),
    plain::<Event>(prefix::EVENT),
    changed(prefix::HISTORY, 4, |bytes| written(History::from_bytes(bytes), History::to_bytes)),
    changed(prefix::SUPPRESSION, 2, |bytes| {
        written(suppression::Entry::from_bytes(bytes), suppression::Entry::to_bytes)
    }),
    plain::<Vip>(prefix::VIP),
    changed(prefix::TENANT, 3, |bytes| written(accounts::read_tenant(bytes), accounts::tenant_bytes)),
    changed(prefix::SMTP_ACCOUNT, 2, |bytes| written(accounts::read_account(bytes), accounts::account_bytes)),
    plain::<SendingDomain>(prefix::DOMAIN),
    plain::<Route>(prefix::ROUTE),
    plain::<vips::Record>(prefix::VIP),
    plain::<routing::Record>(prefix::ROUTE),
    // What an index points at: an id.
    plain::<u64>(prefix::NAME),
    plain::<u64>(prefix::VIP),
    plain::<u64>(prefix::ROUTE),
    plain::<u64>(prefix::USER),
    plain::<UsageCounts>(prefix::USAGE),
    plain::<SeenNetwork>(prefix::USAGE),
    plain::<VecDeque<LoginSeen>>(prefix::USAGE),
    plain::<delivery::Suspension>(prefix::SUSPENSION),
    plain::<Hits>(prefix::SUPPRESSION),
    plain::<suppression::Rules>(prefix::SUPPRESSION),
    plain::<operations::Operation>(prefix::OPERATION),
    plain::<StoredClock>(prefix::QUEUE_STATE),
    plain::<Kept>(prefix::QUEUE_STATE),
    plain::<Timestamp>(prefix::QUEUE_STATE),
    plain::<Lease>(prefix::QUEUE_STATE),
    changed(prefix::SWEEP, 2, |bytes| written(Sweep::from_bytes(bytes), Sweep::to_bytes)),
    // Beside a body, in its frame.
    changed(prefix::ENGINE, 2, |bytes| written(BodyEnvelope::from_bytes(bytes), codec::encode_second::<BodyEnvelope>)),
    plain::<Crossing>(prefix::KEYRING),
    plain::<delivery::Override>(prefix::SHAPING),
    plain::<delivery::SiteRecord>(prefix::SHAPING),
    plain::<delivery::DestinationRule>(prefix::SHAPING),
    plain::<delivery::KeptPolicy>(prefix::TLS_POLICY),
    plain::<delivery::DomainRule>(prefix::TLS_POLICY),
    plain::<delivery::SeenTls>(prefix::TLS_SEEN),
    plain::<delivery::FailingTls>(prefix::TLS_SEEN),
    plain::<DomainDay>(prefix::TLS_REPORT),
    plain::<breaker::Watch>(prefix::BREAKER),
    plain::<breaker::Pause>(prefix::BREAKER),
    plain::<breaker::Override>(prefix::BREAKER),
    plain::<breaker::Waiver>(prefix::BREAKER),
    plain::<Vec<u8>>(prefix::CURSOR),
    plain::<AuditEntry>(prefix::AUDIT),
    changed(prefix::AUDIT, 0, audit),
    changed(prefix::AUDIT, 0, head),
    plain::<Deletion>(prefix::TENANCY),
    plain::<Notification>(prefix::NOTIFICATION),
    plain::<(UserId, Notification)>(prefix::NOTIFICATION),
    plain::<(UserId, Wish)>(prefix::NOTIFICATION),
    plain::<Outbox>(prefix::NOTIFICATION),
    plain::<Backups>(prefix::NOTIFICATION),
    plain::<BTreeSet<NotificationId>>(prefix::NOTIFICATION),
    changed(prefix::USER, 2, |bytes| written(people::read_user(bytes), people::user_bytes)),
    plain::<(Option<TenantId>, FactorPolicy)>(prefix::USER),
    plain::<ApiKey>(prefix::API_KEY),
    plain::<KeyUse>(prefix::API_KEY),
    plain::<Session>(prefix::SESSION),
    plain::<StoredLink>(prefix::ONE_TIME),
    plain::<webhooks::Webhook>(prefix::WEBHOOK),
    plain::<webhooks::Progress>(prefix::WEBHOOK),
    plain::<webhooks::Pending>(prefix::WEBHOOK),
    plain::<webhooks::Replay>(prefix::WEBHOOK),
    plain::<webhooks::Attempt>(prefix::WEBHOOK),
    plain::<ReturnPath>(prefix::RETURN_PATH),
    plain::<TagKeyRecord>(prefix::FEEDBACK),
    plain::<Timestamp>(prefix::FEEDBACK),
    plain::<Letter>(prefix::FEEDBACK),
    plain::<Onward>(prefix::FEEDBACK),
    changed(prefix::STATISTICS, 2, |bytes| {
        written(statistics::Counts::from_bytes(bytes), statistics::Counts::to_bytes)
    }),
    plain::<ReplayRecord>(prefix::REPLAY),
    plain::<OnceRecord>(prefix::REPLAY),
    // In the index of messages, made from the log again.
    plain::<Fate>(prefix::EVENT),
    changed(prefix::ENGINE, 0, |bytes| engine(Location::from_bytes(bytes), Location::to_bytes)),
    changed(prefix::ENGINE, 0, |bytes| engine(Position::from_bytes(bytes), Position::to_bytes)),
    changed(prefix::ENGINE, 0, |bytes| engine(Extent::from_bytes(bytes), |extent| extent.to_bytes())),
];
