//! Tenants that were deleted: nothing of their messages stays in the index.
//!
//! The index is changed by its own thread alone, so what is to go is a file beside it until that has been done.
//! Easy to get wrong: the histories go first, since a message without one is never put into the index again.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use super::Search;
use super::feed::{Failure, PURGE, Work};
use crate::mail::TenantId;
use crate::records;

/// Begins the names of files that say: of this tenant nothing may stay.
const GONE: &str = "gone-";

impl Search {
    /// Has everything of a tenant taken out of the index, whose histories are gone already. It is found no more
    /// from that moment; the index's thread takes it off the disk soon after, also if the daemon stops before.
    ///
    /// # Errors
    /// If that could not be noted on the disk.
    pub async fn forget_tenant(self: &Arc<Self>, tenant: TenantId) -> io::Result<()> {
        let own = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            File::create(own.folder.join(format!("{GONE}{tenant}")))?.sync_all()?;
            File::open(&own.folder)?.sync_all()
        })
        .await
        .map_err(io::Error::other)??;
        self.parts.bell.ring();
        Ok(())
    }

    /// Takes out what is of tenants that are gone. Their days are rewritten afterwards, by the files that
    /// begin with [`PURGE`].
    pub(super) fn take_out_gone(&self, work: &mut Work) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(tenant) = file.strip_prefix(GONE) else { continue };
            if let Ok(tenant) = tenant.parse::<TenantId>() {
                self.take_out(work, tenant)?;
                tracing::info!(%tenant, "a deleted tenant's messages were taken out of the search index");
            }
            fs::remove_file(entry.path())?;
        }
        Ok(())
    }

    fn take_out(&self, work: &mut Work, tenant: TenantId) -> Result<(), Failure> {
        let days: Vec<_> =
            records::read(&self.days).iter().map(|(name, day)| (name.clone(), Arc::clone(day))).collect();
        for (name, day) in days {
            if day.tenants()?.contains(&tenant) {
                File::create(self.folder.join(format!("{PURGE}{name}")))?.sync_all()?;
                self.change(&mut work.writer, &name, |writer| {
                    writer.remove_tenant(tenant);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}
