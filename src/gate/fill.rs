//! How much of something is taken, and the mark it shuts at and opens below. Pure.

/// How much of a limit is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Taken: bytes or descriptors.
    pub used: u64,
    /// What there is.
    pub limit: u64,
    /// Whose limit it is, for people.
    pub of: &'static str,
}

/// What may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An SMTP session of a client.
    Session,
    /// A message within a session.
    Message,
    /// A connection to another server, or a question to DNS for it.
    Delivery,
    /// A connection of somebody who administers, or sends, over HTTPS.
    Administration,
}

/// What runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Memory.
    Memory,
    /// File descriptors.
    Descriptors,
}

impl Work {
    /// As a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Message => "message",
            Self::Delivery => "delivery",
            Self::Administration => "administration",
        }
    }
}

impl Shortage {
    /// As a label of metrics and in answers to machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Memory => "memory runs short",
            Self::Descriptors => "file descriptors run short",
        }
    }
}

impl Fill {
    /// With so many more taken.
    #[must_use]
    pub(super) fn with(self, more: u64) -> Self {
        Self { used: self.used.saturating_add(more), ..self }
    }

    fn reaches(self, percent: u8) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.limit) * u128::from(percent)
    }

    /// Whether this is fuller than `other`.
    pub(super) fn is_tighter_than(self, other: Self) -> bool {
        u128::from(self.used) * u128::from(other.limit) > u128::from(other.used) * u128::from(self.limit)
    }
}

/// Shuts at a mark, opens [`OPENS_BELOW_PERCENT`] below it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latch {
    is_shut: bool,
}

/// So far below the mark a latch opens, in hundredths of the limit.
const OPENS_BELOW_PERCENT: u8 = 10;

impl Latch {
    pub(super) fn is_shut(self) -> bool {
        self.is_shut
    }

    /// A limit that nobody can tell never shuts.
    pub(super) fn judge(&mut self, fill: Option<Fill>, percent: u8) {
        let mark = if self.is_shut { percent.saturating_sub(OPENS_BELOW_PERCENT) } else { percent };
        self.is_shut = fill.is_some_and(|fill| fill.reaches(mark));
    }
}
