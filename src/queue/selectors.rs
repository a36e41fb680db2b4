//! Which DKIM selectors queued messages were signed with: a selector named here keeps its DNS record.
//!
//! Easy to get wrong: both read every message record. They are for housekeeping and for what shows a
//! domain with old selectors; the room `domains` asks on a blocking thread. Never for the path of a message.

use std::collections::BTreeSet;

use memchr::memmem;

use super::Queue;
use super::record::QueuedMessage;
use crate::store::{StoreError, after_prefix, prefix};

/// Records read at once.
const READ_AT_ONCE: usize = 1_000;

impl Queue {
    /// Every `selector._domainkey.domain` that a queued message names. Blocks on the disk.
    pub fn selectors_in_use(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut names = BTreeSet::new();
        self.each_message(|bytes| {
            // A record that cannot be read may name any selector, but it cannot be delivered either.
            if let Ok(message) = QueuedMessage::from_bytes(bytes) {
                names.extend(message.signatures);
            }
            Search::GoOn
        })?;
        Ok(names)
    }

    /// Whether a queued message names this `selector._domainkey.domain`. Blocks on the disk.
    pub fn selector_is_used(&self, name: &str) -> Result<bool, StoreError> {
        let finder = memmem::Finder::new(name);
        let mut found = false;
        self.each_message(|bytes| {
            found = finder.find(bytes).is_some()
                && QueuedMessage::from_bytes(bytes)
                    .is_ok_and(|message| message.signatures.iter().any(|signature| signature == name));
            if found { Search::Stop } else { Search::GoOn }
        })?;
        Ok(found)
    }

    fn each_message(&self, mut look: impl FnMut(&[u8]) -> Search) -> Result<(), StoreError> {
        let (mut from, end) = (vec![prefix::MESSAGE], after_prefix(&[prefix::MESSAGE]));
        loop {
            let page = self.store.range(&from, &end, READ_AT_ONCE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
            for (_, bytes) in &page {
                if let Search::Stop = look(bytes) {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether to read on.
enum Search {
    GoOn,
    Stop,
}
