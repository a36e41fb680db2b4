//! Messages past their time go: history records and index alike.
//!
//! Easy to get wrong: a message that is still owed stays, however old it is, and is looked at again later.

use tokio::runtime::Handle;

use super::Search;
use super::day::Writer;
use super::feed::{Failure, PURGE};
use crate::background::Shutdown;
use crate::ext::Timestamp;

/// Messages forgotten in one batch, at most.
const AT_ONCE: usize = 2_000;
const DAY_MILLIS: u64 = 24 * 3_600_000;

impl Search {
    /// Forgets what is past its tenant's time.
    pub(super) fn forget_past(
        &self,
        kept_writer: &mut Option<(String, Writer)>,
        (handle, shutdown): (&Handle, &Shutdown),
    ) -> Result<(), Failure> {
        self.forget_before(kept_writer, (handle, shutdown), (self.parts.clock)())
    }

    /// As [`Search::forget_past`], at `now`.
    pub(super) fn forget_before(
        &self,
        kept_writer: &mut Option<(String, Writer)>,
        (handle, shutdown): (&Handle, &Shutdown),
        now: Timestamp,
    ) -> Result<(), Failure> {
        let names: Vec<String> = crate::records::read(&self.days).keys().cloned().collect();
        for name in names {
            let (Some(day), Some(end)) = (self.known_day(&name), end_of(&name)) else { continue };
            for tenant in day.tenants()? {
                if now.since(end) < self.kept(tenant) || now <= end {
                    continue;
                }
                let mut is_changed = false;
                let mut before = None;
                while !shutdown.is_cancelled() {
                    let ids = day.ids_of(tenant, before, AT_ONCE)?;
                    let Some(last) = ids.last().copied() else { break };
                    before = Some(last);
                    let forgotten = handle.block_on((self.parts.forget)(ids));
                    let forgotten = forgotten.map_err(|error| Failure::Other(error.to_string()))?;
                    if forgotten.is_empty() {
                        // All of them are still owed; older ones may not be.
                        continue;
                    }
                    std::fs::File::create(self.folder.join(format!("{PURGE}{name}")))?;
                    is_changed = true;
                    self.change(kept_writer, &name, |writer| {
                        forgotten.iter().for_each(|id| writer.remove(*id));
                        Ok(())
                    })?;
                }
                if is_changed {
                    tracing::info!(day = name, %tenant, "messages past their time were forgotten");
                }
            }
            let is_past = now.since(end) >= self.parts.settings.kept && now > end;
            if is_past && day.messages() == 0 {
                self.remove_day(kept_writer, &name)?;
            }
        }
        Ok(())
    }

    fn remove_day(&self, kept_writer: &mut Option<(String, Writer)>, name: &str) -> Result<(), Failure> {
        if kept_writer.as_ref().is_some_and(|(own, _)| own == name) {
            *kept_writer = None;
        }
        crate::records::write(&self.days).remove(name);
        std::fs::remove_dir_all(self.folder.join(name))?;
        let _ = std::fs::remove_file(self.folder.join(format!("{PURGE}{name}")));
        Ok(())
    }
}

/// When a day ends.
fn end_of(name: &str) -> Option<Timestamp> {
    let begins = Timestamp::from_rfc3339(&format!("{name}T00:00:00Z"))?;
    Some(Timestamp(begins.0.saturating_add(DAY_MILLIS)))
}
