//! Everything that is kept of a tenant, written as lines of JSON into one compressed file. Begun anew after a
//! restart. What the lines say is not known here: whoever knows gives them, one after the other.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::record::{Kind, Operation, OperationId};
use super::{Ended, Operations, Part};
use crate::access::{Actor, Permission, Resource, Role};
use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::records::AdminError;
use crate::suppression::Place;

/// Gives the lines of a tenant, each with its line end.
pub type Lines = Arc<dyn Fn(TenantId, mpsc::Sender<Vec<u8>>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Lines on their way at once.
const LINES_WAITING_MAX: usize = 256;
/// Lines after which progress is shown.
const SHOWN_EVERY: u64 = 1_000;
/// Level of compression: that of zstd's default.
const LEVEL: i32 = 3;

impl Operations {
    /// Tells the room how a tenant is written. The first one stays.
    pub fn write_tenants_with(&self, lines: Lines) {
        let _ = self.lines.set(lines);
    }

    /// Begins an export of everything that is kept of a tenant. A dangerous act, for whoever could give somebody
    /// the role of its admin.
    pub async fn export_tenant(
        &self,
        actor: &Actor,
        tenant: TenantId,
        now: Timestamp,
    ) -> Result<Operation, AdminError> {
        require_all(actor, tenant, now)?;
        self.room_for(tenant, 0)?;
        let operation = Operation::new(OperationId::new(now), Place::from(tenant), Kind::Tenant, (actor, now));
        self.begin(actor, operation, now).await
    }

    pub(super) fn write_tenant(
        &self,
        operation: &mut Operation,
        (handle, stop): (&Handle, &Shutdown),
    ) -> io::Result<Ended> {
        let lines = self.lines.get().ok_or_else(|| io::Error::other("nobody said how a tenant is written"))?;
        let path = self.path(operation.id, Part::Result);
        let partial = path.with_extension("part");
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        let mut out = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        let (sender, mut receiver) = mpsc::channel(LINES_WAITING_MAX);
        let giving = handle.spawn(lines(operation.tenant, sender));
        operation.written = 0;
        while let Some(line) = receiver.blocking_recv() {
            if self.is_cancelled(operation) {
                giving.abort();
                fs::remove_file(&partial)?;
                return Ok(Ended::Cancelled);
            }
            if stop.is_cancelled() {
                giving.abort();
                return Ok(Ended::Stopped);
            }
            out.write_all(&line)?;
            operation.written = operation.written.saturating_add(1);
            if operation.written.is_multiple_of(SHOWN_EVERY) {
                self.show(operation);
            }
        }
        handle.block_on(giving).map_err(io::Error::other)?.map_err(io::Error::other)?;
        out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&partial, &path)?;
        Ok(Ended::Done)
    }
}

/// Who may have everything of a tenant, at this moment.
pub(super) fn require_all(actor: &Actor, tenant: TenantId, now: Timestamp) -> Result<(), AdminError> {
    actor.require(Permission::Write(Resource::Tenant, tenant))?;
    actor.may_give(Role::TenantAdmin(tenant))?;
    actor.require_fresh(now)?;
    Ok(())
}
