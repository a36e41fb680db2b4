//! Letters to postmaster, abuse and fbl (RFC 5321 s4.5.1, RFC 2142): kept for the operator, bounded in number,
//! in size and in how many come within an hour.
//!
//! Easy to get wrong: anybody may write here, so a letter never costs more than its limits, and the oldest goes
//! before the newest is refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{Actor, Permission};
use crate::ext::{self, Timestamp};
use crate::mail::{Refusal, Reply};
use crate::records::{self, Act, AdminError};
use crate::store::{Batch, Key, Store, StoreError, after_prefix, codec, prefix};

/// Octets of a letter that are kept; the rest is cut.
pub const LETTER_OCTETS_MAX: usize = 64 * 1024;
/// Letters in one page.
pub const PAGE_MAX: usize = 250;
/// Networks whose letters are counted apart; one more, and counting begins anew.
const NETWORKS_MAX: usize = 4_096;
/// One network may send one in so many of all.
const NETWORK_SHARE: u32 = 10;
const HOUR: Duration = Duration::from_secs(3600);
/// Octets of an id: time and chance.
const ID_OCTETS: usize = 12;

/// One letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// Its id.
    pub id: String,
    /// When it came.
    pub at: Timestamp,
    /// To whom.
    pub to: String,
    /// Its reverse-path, as SMTP said it.
    pub from: String,
    /// The peer: address and what it called itself.
    pub peer: String,
    /// Its subject, printable.
    pub subject: String,
    /// How long it was.
    pub size_bytes: u64,
    /// Its beginning, at most `LETTER_OCTETS_MAX` octets.
    pub octets: Vec<u8>,
}

/// Letters and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterPage {
    /// Newest first.
    pub letters: Vec<Letter>,
    /// The id to go on from.
    pub next: Option<String>,
}

#[derive(Default)]
struct Counts {
    since: Option<Timestamp>,
    all: u32,
    by_network: HashMap<IpAddr, u32>,
}

/// All letters.
pub(super) struct Mailbox {
    store: Arc<dyn Store>,
    kept: AtomicUsize,
    counts: Mutex<Counts>,
}

impl Mailbox {
    pub(super) fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (mut kept, mut from) = (0, beginning());
        let end = after_prefix(&beginning());
        loop {
            let page = store.range(&from, &end, PAGE_MAX)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            kept += page.len();
        }
        Ok(Self { store, kept: AtomicUsize::new(kept), counts: Mutex::default() })
    }

    /// Whether a letter of `peer` may come now.
    pub(super) fn has_room(&self, peer: IpAddr, per_hour: u32, now: Timestamp) -> Result<(), Refusal> {
        let mut counts = records::lock(&self.counts);
        counts.begin_anew(now);
        let own = counts.by_network.get(&network_of(peer)).copied().unwrap_or(0);
        if counts.all >= per_hour || own >= (per_hour / NETWORK_SHARE).max(1) {
            let reply = Reply::enhanced(452, 7, 1, "Too many letters just now; try again in an hour");
            return Err(Refusal::with_cause(reply, "feedback.letters_per_hour_max reached"));
        }
        Ok(())
    }

    /// Counts one.
    pub(super) fn count(&self, peer: IpAddr, now: Timestamp) {
        let mut counts = records::lock(&self.counts);
        counts.begin_anew(now);
        counts.all = counts.all.saturating_add(1);
        if counts.by_network.len() >= NETWORKS_MAX {
            counts.by_network.clear();
        }
        let own = counts.by_network.entry(network_of(peer)).or_default();
        *own = own.saturating_add(1);
    }

    /// Puts a letter into `batch`, and takes the oldest out if there are too many. Its id.
    pub(super) fn put(&self, batch: &mut Batch, mut letter: Letter, most: usize) -> Result<String, StoreError> {
        let mut id = letter.at.0.to_be_bytes().to_vec();
        id.extend_from_slice(&ext::random_bytes::<4>());
        letter.id = ext::base32(&id);
        letter.octets.truncate(LETTER_OCTETS_MAX);
        batch.set([&beginning()[..], &id].concat(), codec::encode(&letter));
        let kept = self.kept.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let too_many = kept.saturating_sub(most.max(1)).min(PAGE_MAX);
        for (key, _) in self.store.range(&beginning(), &after_prefix(&beginning()), too_many)? {
            batch.remove(key);
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(letter.id)
    }

    pub(super) fn get(&self, id: &str) -> Result<Option<Letter>, StoreError> {
        let Some(key) = key_of(id) else { return Ok(None) };
        self.store.get(&key)?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    fn list(&self, before: Option<&str>, limit: usize) -> Result<LetterPage, AdminError> {
        let end = match before {
            Some(id) => key_of(id).ok_or_else(|| AdminError::Invalid(format!("{id} is no letter's id")))?,
            None => after_prefix(&beginning()),
        };
        // There are a few thousand at most, and newest first is what people ask for.
        let (mut keys, mut from) = (Vec::new(), beginning());
        loop {
            let page = self.store.range(&from, &end, PAGE_MAX)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            keys.extend(page.into_iter().map(|(key, _)| key));
        }
        let limit = limit.clamp(1, PAGE_MAX);
        let has_more = keys.len() > limit;
        let mut letters = Vec::new();
        for key in keys.iter().rev().take(limit) {
            match self.store.get(key)?.map(|bytes| codec::decode::<Letter>(&bytes)) {
                Some(Ok(letter)) => letters.push(letter),
                Some(Err(error)) => {
                    records::set_aside(key, &error.to_string());
                }
                None => {}
            }
        }
        let next = letters.last().filter(|_| has_more).map(|letter| letter.id.clone());
        Ok(LetterPage { letters, next })
    }

    async fn remove(&self, actor: &Actor, id: &str, now: Timestamp) -> Result<(), AdminError> {
        let missing = || AdminError::Missing(format!("letter {id}"));
        let key = key_of(id).ok_or_else(missing)?;
        let bytes = self.store.get(&key)?.ok_or_else(missing)?;
        let mut batch = Batch::new();
        batch.if_equals(key.clone(), bytes).remove(key);
        records::record(&mut batch, actor, Act::new("mailbox.delete", id.to_owned()), now);
        self.store.commit(batch).await?;
        self.kept.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Counts {
    fn begin_anew(&mut self, now: Timestamp) {
        let is_over = self.since.is_none_or(|since| now.since(since) >= HOUR || now < since);
        if is_over {
            *self = Self { since: Some(now), ..Self::default() };
        }
    }
}

impl super::Feedback {
    /// Letters, newest first, from before the one called `before`.
    ///
    /// # Errors
    /// If the actor may not, or they cannot be read.
    pub fn letters(&self, actor: &Actor, before: Option<&str>, limit: usize) -> Result<LetterPage, AdminError> {
        actor.require(Permission::ReadInstance)?;
        self.mailbox.list(before, limit)
    }

    /// One letter.
    ///
    /// # Errors
    /// If there is none, or the actor may not.
    pub fn letter(&self, actor: &Actor, id: &str) -> Result<Letter, AdminError> {
        actor.require(Permission::ReadInstance)?;
        self.mailbox.get(id)?.ok_or_else(|| AdminError::Missing(format!("letter {id}")))
    }

    /// Removes a letter.
    ///
    /// # Errors
    /// If there is none, or the actor may not.
    pub async fn remove_letter(&self, actor: &Actor, id: &str, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        self.mailbox.remove(actor, id, now).await
    }
}

fn beginning() -> Key {
    vec![prefix::FEEDBACK, b'm']
}

fn key_of(id: &str) -> Option<Key> {
    let octets = ext::from_base32::<ID_OCTETS>(id)?;
    Some([&beginning()[..], &octets].concat())
}

/// An IPv4 /24 or an IPv6 /48.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    }
}
