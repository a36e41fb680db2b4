//! Statistics: what happened to recipients, per hour and per day, counted from the event log.
//!
//! Recipe: [`Statistics::open`]; drive it as a [`crate::events::Tally`], which counts each event once whatever
//! crashes; [`Statistics::ask`] answers people. Hours and days are those of UTC. Easy to get wrong: memory is
//! bounded whatever comes, so domains and tags beyond a number are counted together, and the sums stay exact.

mod copy;
mod counts;
mod leaving;
mod query;
mod rows;
mod tally;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::background::{Shutdown, periodically};
use crate::calendar::Calendar;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::store::{Batch, CommitError, Store};

pub use counts::{Counts, DELAYS_SECS, STATUSES, Said, Status};
pub use query::{Answer, Dimension, GROUPS_MAX, Group, Narrow, Question, Row, Step};
pub use rows::{Face, Labels, OTHER, Span};
pub use tally::{
    DOMAINS_PER_DAY_MAX, DOMAINS_PER_HOUR_MAX, ROWS_MAX, SENDING_DOMAIN_ROWS_MAX, SENDING_DOMAINS_MAX, TAGS_MAX,
};

/// Names the cursor.
pub const CURSOR: &str = "statistics";
/// How often old counts are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// Rows removed in one batch, at most.
const FORGOTTEN_AT_ONCE: usize = 2_000;

/// How long counts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Those of hours (62 days).
    pub hours_kept: Duration,
    /// Those of days (1,096 days).
    pub days_kept: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
        Self { hours_kept: days(62), days_kept: days(1_096) }
    }
}

/// The provider of the host that answered, or else of a domain that is known as one's own; `None` if nobody
/// knows.
pub type ProviderOf = Arc<dyn Fn(Option<&str>, &str) -> Option<String> + Send + Sync>;
/// Whether a domain is one of a known provider: it always has a row of its own.
pub type IsKnownDomain = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Whether there is such a tenant: of one that was deleted nothing is counted any more.
pub type IsTenant = Arc<dyn Fn(TenantId) -> bool + Send + Sync>;

/// What the room is built from.
pub struct Parts {
    /// The events and the counts.
    pub store: Arc<dyn Store>,
    /// Who receives.
    pub provider_of: ProviderOf,
    /// Which domains are theirs.
    pub is_known_domain: IsKnownDomain,
    /// Who is still there.
    pub is_tenant: IsTenant,
    /// How long counts are kept.
    pub settings: Settings,
    /// By which they lapse.
    pub calendar: Calendar,
}

/// What was counted.
pub struct Statistics {
    store: Arc<dyn Store>,
    provider_of: ProviderOf,
    is_known_domain: IsKnownDomain,
    is_tenant: IsTenant,
    settings: Settings,
    calendar: Calendar,
    memory: Mutex<tally::Memory>,
    /// Held while what was counted is stored, or removed.
    storing: tokio::sync::Mutex<()>,
}

impl Statistics {
    /// Reads nothing yet.
    pub fn open(parts: Parts) -> Self {
        let Parts { store, provider_of, is_known_domain, is_tenant, settings, calendar } = parts;
        let (memory, storing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { store, provider_of, is_known_domain, is_tenant, settings, calendar, memory, storing }
    }

    /// Forgets counts that are kept no longer, until `shutdown`.
    pub async fn keep_short(self: Arc<Self>, shutdown: Shutdown) {
        periodically(FORGET_EVERY, &tokio::sync::Notify::new(), &shutdown, || async {
            if let Err(error) = self.forget(self.calendar.cap(Timestamp::now())).await {
                tracing::warn!(%error, "old statistics could not be removed yet");
            }
        })
        .await;
    }

    /// Removes rows of hours and days that are kept no longer; returns how many.
    ///
    /// # Errors
    /// If the store refuses; what was removed so far stays removed.
    pub async fn forget(&self, now: Timestamp) -> Result<usize, CommitError> {
        let mut forgotten = 0_usize;
        for (span, kept) in [(Span::Hour, self.settings.hours_kept), (Span::Day, self.settings.days_kept)] {
            let kept = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
            let first = span.number(Timestamp(now.0.saturating_sub(kept)));
            let (from, to) = (rows::from_number(span, 0), rows::from_number(span, first));
            loop {
                let page = self.store.range(&from, &to, FORGOTTEN_AT_ONCE);
                let page = page.map_err(|error| CommitError::Failed(error.to_string()))?;
                if page.is_empty() {
                    break;
                }
                forgotten = forgotten.saturating_add(page.len());
                let mut batch = Batch::new();
                for (key, _) in page {
                    batch.remove(key);
                }
                self.store.commit(batch).await?;
            }
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests;
