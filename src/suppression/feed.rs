//! What happens to mail, as it puts recipients on the list: hard bounces, at once or later, proved complaints,
//! and those who unsubscribed.
//!
//! Recipe: [`Feed`] is a consumer of events. Only what is said of one recipient for good suppresses it; a block
//! of our address, a full mailbox, a doubted complaint never do. Easy to get wrong: events may come twice, so
//! hard bounces are counted by message; and a complaint outweighs an entry for a bounce that is there already,
//! or a whitelist would let its mail through.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::rules::Scope;
use super::{Entry, Origin, Place, Reason, Subject, Suppression, folded, shortened};
use crate::events::{Consumer, Event, EventKind, History, MailEvent, Retry, Why, history_key};
use crate::ext::Timestamp;
use crate::mail::{Address, Domain, QueueId};
use crate::metrics::SUPPRESSIONS;
use crate::store::{Batch, CommitError, Key, StoreError, codec};

/// `Entry::source` of our notices: what becomes of them says nothing about a tenant's recipients.
const NOTICE: &str = "notice";
/// The domain of addresses that were erased.
const ERASED: &str = "erased.invalid";

/// A failure of one recipient, as its event tells it.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'e> {
    /// What was said, with what the trail adds to it.
    pub detail: &'e str,
    /// The mail host that said it, or, of what came back later, who reported it; empty if nobody knows.
    pub host: &'e str,
    /// The recipient's domain.
    pub domain: &'e Domain,
    /// Of how many recipients the event tells it.
    pub recipients: usize,
}

/// Whether a failure is of this recipient for good: what the rules for replies call `suppress`.
pub type Suppresses = Arc<dyn Fn(&Failure<'_>) -> bool + Send + Sync>;

/// The consumer.
pub struct Feed {
    list: Arc<Suppression>,
    suppresses: Suppresses,
}

/// Hard bounces of one address so far: the messages, so that none counts twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    messages: Vec<QueueId>,
}

/// What an event says against recipients.
enum Against<'e> {
    /// Mail could not be delivered.
    Failure { detail: &'e str, host: &'e str, note: String },
    /// Somebody wants no more of it.
    Word(Reason, String),
}

/// One recipient that something happened to.
struct Hit<'a> {
    id: QueueId,
    address: &'a Address,
    reason: Reason,
    note: String,
}

impl Feed {
    /// Feeds `list`.
    pub fn new(list: Arc<Suppression>, suppresses: Suppresses) -> Self {
        Self { list, suppresses }
    }

    /// Whom an event says something against, and what.
    fn reason(event: &MailEvent) -> Option<(&[u16], Against<'_>)> {
        Some(match event {
            MailEvent::Bounced { recipients, why: Why::RecipientGone, detail, peer } => {
                let host = peer.as_ref().map_or("", |peer| peer.host.as_str());
                (recipients, Against::Failure { detail, host, note: detail.clone() })
            }
            MailEvent::BouncedLater { recipients, why: Why::RecipientGone, detail, reporter } => {
                let note = format!("{detail} (later, from {reporter})");
                (recipients, Against::Failure { detail, host: reporter, note })
            }
            MailEvent::Complained { recipients, reporter } => {
                (recipients, Against::Word(Reason::Complaint, format!("reported by {reporter}")))
            }
            MailEvent::Unsubscribed { recipients, way } => {
                (recipients, Against::Word(Reason::Unsubscribe, format!("by {way}")))
            }
            _ => return None,
        })
    }

    async fn heed(&self, id: QueueId, event: &MailEvent) -> Result<(), Retry> {
        let Some((numbers, against)) = Self::reason(event) else { return Ok(()) };
        let again = |error: StoreError| Retry(error.to_string());
        let Some(bytes) = self.list.desk.store().get(&history_key(id)).map_err(again)? else { return Ok(()) };
        let history = match History::from_bytes(&bytes) {
            Ok(history) => history,
            Err(error) => {
                // It will not get better, and the others must not wait for it.
                tracing::warn!(%id, %error, "a history record cannot be read; nobody is suppressed by its events");
                return Ok(());
            }
        };
        let entry = history.entry.as_ref();
        if entry.is_some_and(|entry| entry.source == NOTICE) {
            return Ok(());
        }
        for number in numbers {
            let Some(address) = history.recipients.get(usize::from(*number)) else { continue };
            // What erasing leaves behind.
            if address.domain().as_str() == ERASED {
                continue;
            }
            let (reason, note) = match &against {
                Against::Failure { detail, host, note } => {
                    let failure = Failure { detail, host, domain: address.domain(), recipients: numbers.len() };
                    if !(self.suppresses)(&failure) {
                        continue;
                    }
                    (Reason::HardBounce, note)
                }
                Against::Word(reason, note) => (*reason, note),
            };
            let hit = Hit { id, address, reason, note: note.clone() };
            let account = entry.and_then(|entry| entry.account);
            self.put(&history, account, hit).await?;
        }
        Ok(())
    }

    async fn put(
        &self,
        history: &History,
        account: Option<crate::mail::SmtpAccountId>,
        hit: Hit<'_>,
    ) -> Result<(), Retry> {
        let again = |error: StoreError| Retry(error.to_string());
        let turn = self.list.desk.turn().await;
        let rules = self.list.rules_of(history.tenant).unwrap_or_default();
        let place = match rules.scope {
            Scope::Tenant => Place::from(history.tenant),
            Scope::Account => Place { account, ..Place::from(history.tenant) },
        };
        let (store, now) = (self.list.desk.store(), Timestamp::now());
        let subject = folded(Subject::Address(hit.address.clone()));
        let mut batch = Batch::new();
        if hit.reason == Reason::HardBounce && rules.hard_bounces > 1 {
            let own = hits_key(place, hit.address);
            let mut hits = store.get(&own).map_err(again)?.and_then(|bytes| codec::decode::<Hits>(&bytes).ok());
            let hits = hits.get_or_insert_with(Hits::default);
            if !hits.messages.contains(&hit.id) {
                hits.messages.push(hit.id);
            }
            if hits.messages.len() < usize::from(rules.hard_bounces) {
                batch.set(own, codec::encode(hits));
                return committed(turn.commit(batch, || ()).await);
            }
            batch.remove(own);
        }
        let key = place.of(&subject);
        let before = store.get(&key).map_err(again)?;
        let known = before.as_ref().and_then(|bytes| Entry::from_bytes(bytes).ok());
        let is_outweighed =
            known.as_ref().is_none_or(|known| !known.is_current(now) || weight(hit.reason) > weight(known.reason));
        // One that cannot be read suppresses already, and stays for people to look at.
        if !is_outweighed || (before.is_some() && known.is_none()) {
            return if batch.changes.is_empty() { Ok(()) } else { committed(turn.commit(batch, || ()).await) };
        }
        let entry = Entry {
            subject,
            reason: hit.reason,
            origin: if hit.reason == Reason::HardBounce { Origin::System } else { Origin::Recipient },
            added: now,
            note: shortened(&format!("{}; message {}", hit.note.replace('\n', " "), hit.id)),
            expires: rules.expires(hit.reason, now),
            by: BY.to_owned(),
        };
        batch.set(key, entry.to_bytes());
        let word = hit.reason.word();
        let count = move || metrics::counter!(SUPPRESSIONS, "reason" => word).increment(1);
        committed(turn.commit(batch, count).await)
    }
}

/// Who puts entries there, in [`Entry::by`].
const BY: &str = "system: what came of mail";

/// Which reason outweighs which.
fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::HardBounce => 0,
        Reason::Import => 1,
        Reason::Manual => 2,
        Reason::Unsubscribe => 3,
        Reason::Complaint => 4,
    }
}

fn committed(result: Result<(), CommitError>) -> Result<(), Retry> {
    result.map_err(Retry::from)
}

/// Beside the lists of the tenant: `S tenant h`, then the list and the address.
fn hits_key(place: Place, address: &Address) -> Key {
    let list = place.of_address(address);
    let (tenant, rest) = list.split_at_checked(9).unwrap_or((&list, &[]));
    [tenant, b"h", rest].concat()
}

#[async_trait]
impl Consumer for Feed {
    fn name(&self) -> &'static str {
        "suppression"
    }

    async fn consume(&self, events: &[Event]) -> Result<(), Retry> {
        for event in events {
            if let EventKind::Mail(id, event) = &event.kind {
                self.heed(*id, event).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
