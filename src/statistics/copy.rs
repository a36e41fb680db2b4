//! Everything that was counted of one tenant, hour by hour and day by day, for whoever takes a copy of it.

use super::Statistics;
use super::counts::Counts;
use super::rows::{self, Bucket, Labels, Span};
use crate::access::{Actor, Permission, Resource};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::AdminError;
use crate::store::{StoreError, after_prefix};

/// The rows of one hour or day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// When it begins.
    pub at: Timestamp,
    /// When the next one begins.
    pub until: Timestamp,
    /// What the counts are of; none if nothing of the tenant was counted then.
    pub rows: Vec<(Labels, Counts)>,
}

impl Statistics {
    /// The first hour or day from `from` on of which anything is stored, with the rows of a tenant; `None` behind
    /// the last. A row that cannot be read is left out. Blocks on the disk.
    ///
    /// # Errors
    /// If the actor may not see it, or the store cannot be read.
    pub fn copy_of(
        &self,
        actor: &Actor,
        (tenant, span): (TenantId, Span),
        from: Timestamp,
    ) -> Result<Option<Copied>, AdminError> {
        actor.require_part(Permission::Read(Resource::Statistics, tenant), None)?;
        let Some(number) = self.first_from(span, span.number(from))? else { return Ok(None) };
        let all = Bucket { span, number, tenant }.key();
        let stored = self.store.range(&all, &after_prefix(&all), usize::MAX)?;
        let read = stored.into_iter().filter_map(|(key, bytes)| {
            let (_, labels) = rows::read(&key)?;
            Some((labels, Counts::from_bytes(&bytes).ok()?))
        });
        let at = span.begins(number);
        let until = Timestamp(at.0.saturating_add(span.millis()));
        Ok(Some(Copied { at, until, rows: read.collect() }))
    }

    /// The number of the first hour or day, from `number` on, of which there are counts.
    pub(super) fn first_from(&self, span: Span, number: u32) -> Result<Option<u32>, StoreError> {
        let end = after_prefix(&rows::of_span(span));
        let found = self.store.range(&rows::from_number(span, number), &end, 1)?;
        Ok(found.first().and_then(|(key, _)| rows::number_of(key)))
    }
}
