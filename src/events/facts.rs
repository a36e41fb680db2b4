//! The history record of one message: what people ask for and may ask to erase, kept once.
//!
//! The queue writes it in the batch that accepts the message; events name recipients by number only.
//! Easy to get wrong: [`HistoryRef`] is [`History`] without copies and must keep its field order.

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::{Address, QueueId, ReversePath, TenantId};
use crate::store::{Key, prefix};

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
}

/// Where the history record of a message is.
pub fn history_key(id: QueueId) -> Key {
    let mut key = Vec::with_capacity(17);
    key.push(prefix::HISTORY);
    key.extend_from_slice(&id.0);
    key
}
