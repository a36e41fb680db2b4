//! Finding messages: the newest first, a page at a time, whoever asks sees only what is theirs.
//!
//! Easy to get wrong: a page looks at a bounded number of documents, so it may be short, or empty, and have a
//! next one all the same.

use super::criteria::Criteria;
use super::day::{DayError, Wanted};
use super::{Fate, Search, Standing, day_at, day_of};
use crate::access::{Actor, Permission, Resource};
use crate::events::History;
use crate::ext::Timestamp;
use crate::mail::{Domain, QueueId};
use crate::records::AdminError;
use crate::store::StoreError;

/// Messages in one page, at most.
pub const PAGE_MAX: usize = 250;
/// Documents looked at for one page, about; the day in which they are passed is looked through whole.
const SEEN_MAX: u64 = 2_000_000;
/// An id is made up to so long before its message is accepted: a request that is repeated keeps its id.
const ID_SLACK_MILLIS: u64 = 25 * 3_600_000;

/// One message that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its id.
    pub id: QueueId,
    /// Its addresses and header facts.
    pub history: History,
    /// What became of it.
    pub fate: Fate,
}

/// Some that fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Newest first.
    pub hits: Vec<Hit>,
    /// Ask for what is before this; `None` at the end.
    pub next: Option<QueueId>,
    /// How far the index was.
    pub standing: Standing,
}

impl Search {
    /// Up to `most` messages that fit, newest first, of those with an id before `before`. Blocks on the disk.
    ///
    /// # Errors
    /// If the actor may not see them, or the index cannot be read now.
    pub fn find(
        &self,
        actor: &Actor,
        criteria: Criteria,
        before: Option<QueueId>,
        most: usize,
    ) -> Result<Page, AdminError> {
        let tenant = criteria.tenant.or(actor.role.tenant());
        actor.require(match tenant {
            Some(tenant) => Permission::Read(Resource::Messages, tenant),
            None => Permission::ReadInstance,
        })?;
        let granted = actor.narrowing.accounts.clone();
        let criteria = Criteria { tenant, granted, ..criteria.folded() };
        let may_see = |history: &History| is_of_domains(history, actor.narrowing.domains.as_deref());
        let found = self.gather(&criteria, &may_see, before, most.clamp(1, PAGE_MAX));
        let (hits, next) = found.map_err(|failure| self.refused(failure))?;
        Ok(Page { hits, next, standing: self.standing() })
    }

    fn gather(
        &self,
        criteria: &Criteria,
        may_see: &dyn Fn(&History) -> bool,
        before: Option<QueueId>,
        most: usize,
    ) -> Result<(Vec<Hit>, Option<QueueId>), Failure> {
        let (mut hits, mut before, mut seen) = (Vec::new(), before, 0_u64);
        for name in self.days_of(criteria, before) {
            let Some(day) = self.known_day(&name) else { continue };
            loop {
                let asked = most.saturating_sub(hits.len());
                let found = day.find(&Wanted { criteria, before, most: asked })?;
                seen = seen.saturating_add(found.seen);
                let is_all = found.messages.len() < asked;
                for (id, fate) in found.messages {
                    before = Some(id);
                    if let Some(history) = self.history(id)?.filter(may_see) {
                        hits.push(Hit { id, history, fate });
                    }
                }
                if hits.len() >= most {
                    return Ok((hits, before));
                }
                if is_all {
                    break;
                }
                if seen > SEEN_MAX {
                    return Ok((hits, before));
                }
            }
            if seen > SEEN_MAX {
                return Ok((hits, first_of(&name)));
            }
        }
        Ok((hits, None))
    }

    /// The days that may have what is looked for, the newest first.
    fn days_of(&self, criteria: &Criteria, before: Option<QueueId>) -> Vec<String> {
        let first = criteria.from.map(|from| day_at(Timestamp(from.0.saturating_sub(ID_SLACK_MILLIS))));
        let last = criteria.until.map(day_at);
        let (before, only) = (before.map(day_of), criteria.id.map(day_of));
        let names = crate::records::read(&self.days).keys().rev().cloned().collect::<Vec<_>>().into_iter();
        let may_have = |name: &String| {
            first.as_ref().is_none_or(|first| name >= first)
                && last.as_ref().is_none_or(|last| name <= last)
                && before.as_ref().is_none_or(|before| name <= before)
                && only.as_ref().is_none_or(|only| name == only)
        };
        names.filter(may_have).collect()
    }

    fn refused(&self, failure: Failure) -> AdminError {
        match failure {
            Failure::Day(error @ DayError::Damaged(..)) => {
                self.rebuild();
                AdminError::Store(StoreError::Failed(error.to_string()))
            }
            Failure::Day(error) => AdminError::Store(StoreError::Failed(error.to_string())),
            Failure::Store(error) => AdminError::Store(error),
        }
    }
}

enum Failure {
    Day(DayError),
    Store(StoreError),
}

impl From<DayError> for Failure {
    fn from(error: DayError) -> Self {
        Self::Day(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The first id that a day can have: what is before it is of earlier days.
fn first_of(day: &str) -> Option<QueueId> {
    let midnight = Timestamp::from_rfc3339(&format!("{day}T00:00:00Z"))?;
    let mut id = [0; 16];
    id.first_chunk_mut::<6>()?.copy_from_slice(midnight.0.to_be_bytes().last_chunk::<6>()?);
    Some(QueueId(id))
}

/// Whether a message is from one of these domains, or from one below: of its envelope or its header.
fn is_of_domains(history: &History, domains: Option<&[Domain]>) -> bool {
    let Some(domains) = domains else { return true };
    let of_header = super::words::addresses(&history.header_from);
    let of_header = of_header.iter().filter_map(|address| Domain::parse(address.rsplit_once('@')?.1).ok());
    let of_envelope = history.reverse_path.0.iter().map(|address| address.domain().clone());
    of_header.chain(of_envelope).any(|own| domains.iter().any(|domain| own.is_within(domain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_with_an_id_of_its_own() {
        let first = first_of("2026-11-29").unwrap();
        assert_eq!(day_of(first), "2026-11-29");
        assert!(QueueId::new(Timestamp::from_rfc3339("2026-11-28T23:59:59.999Z").unwrap()) < first);
    }
}
