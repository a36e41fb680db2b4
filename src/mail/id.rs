//! Names of things that travel between rooms: queue ids, body ids, and the ids of the records
//! people manage. Ids are made without coordination, so that two nodes never argue about one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ext::{self, Timestamp};

/// Our id of one accepted message. Not the `Message-ID` header.
///
/// 48 bits of wall-clock milliseconds, then 80 random bits: sorts roughly by time, never repeats.
/// Shown to people as 26 characters of base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueId(pub [u8; 16]);

impl QueueId {
    /// A new id; `now` only gives the order.
    pub fn new(now: Timestamp) -> Self {
        let mut bytes = ext::random_bytes::<16>();
        bytes[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// When it was made, which is when its message was accepted.
    pub fn made(self) -> Timestamp {
        let [a, b, c, d, e, f, ..] = self.0;
        Timestamp(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&ext::base32(&self.0))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "QueueId({self})")
    }
}

impl FromStr for QueueId {
    type Err = IdUnreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ext::from_base32(text).map(Self).ok_or_else(|| IdUnreadable(text.to_owned()))
    }
}

/// Names one body: a message has body 0, and further ones only if a stage personalised it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BodyId {
    /// The message.
    pub queue_id: QueueId,
    /// Which of its bodies.
    pub number: u16,
}

/// The text is not an id of that kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {0:?}")]
pub struct IdUnreadable(pub String);

macro_rules! record_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// A new random id; the record's creation is conditional, so a clash is refused there.
            pub fn random() -> Self {
                Self(u64::from_be_bytes(ext::random_bytes()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&ext::base32(&self.0.to_be_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdUnreadable;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                ext::from_base32::<8>(text)
                    .map(|bytes| Self(u64::from_be_bytes(bytes)))
                    .ok_or_else(|| IdUnreadable(text.to_owned()))
            }
        }
    };
}

record_id!(
    /// A tenant (the paying customer of the operator; `Account` in the architecture's words).
    TenantId
);
record_id!(
    /// One SMTP account: a machine's login.
    SmtpAccountId
);
record_id!(
    /// A virtual IP.
    VipId
);
record_id!(
    /// A person who administers.
    UserId
);
record_id!(
    /// An API key.
    KeyId
);
record_id!(
    /// A webhook: an endpoint that is told of events.
    WebhookId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_from_their_text() {
        let id = QueueId::new(Timestamp(1_795_342_500_123));
        assert_eq!(id.to_string().parse(), Ok(id));
        let tenant = TenantId::random();
        assert_eq!(tenant.to_string().parse(), Ok(tenant));
        assert!("zz".parse::<QueueId>().is_err());
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        assert!(QueueId::new(Timestamp(2)) > QueueId::new(Timestamp(1)));
    }
}
