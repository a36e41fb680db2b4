//! Every sync of the store's own files, so that one that failed is known as such wherever its error goes.
//!
//! After a failed sync nobody can tell what is on the disk, of other files neither: the kernel has dropped
//! what it could not write, the device may have dropped what its cache held for anybody, and the next sync
//! says that all is well. Whoever meets [`is_failed_sync`] stops the store, whatever the sync was of.
//! Easy to get wrong: an error that was made anew from a text or a kind has lost the mark.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;

use rustix::fs::Advice;

/// The mark of an error that a sync gave.
#[derive(Debug, thiserror::Error)]
#[error("a sync failed: {0}")]
struct NotSynced(#[source] io::Error);

/// Which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `fdatasync` of a file.
    Data,
    /// `fsync` of a file.
    All,
    /// `fsync` of a folder.
    Folder,
}

/// Makes what was written to a file durable.
pub fn sync_data(file: &File) -> io::Result<()> {
    sync(Call::Data, file)
}

/// The same with all that the file system knows of the file.
pub fn sync_all(file: &File) -> io::Result<()> {
    sync(Call::All, file)
}

/// Makes names in a folder durable. A folder that cannot be opened is no failed sync: nothing was tried.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    sync(Call::Folder, &File::open(folder)?)
}

fn sync(call: Call, file: &File) -> io::Result<()> {
    #[cfg(test)]
    if let Some(error) = faults::met(call, file) {
        return Err(marked(error));
    }
    let synced = match call {
        Call::Data => file.sync_data(),
        Call::All | Call::Folder => file.sync_all(),
    };
    synced.map_err(marked)
}

fn marked(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NotSynced(error))
}

/// Whether a sync gave this error.
pub fn is_failed_sync(error: &io::Error) -> bool {
    let Some(inner) = error.get_ref() else { return false };
    inner.is::<NotSynced>() || inner.downcast_ref::<io::Error>().is_some_and(is_failed_sync)
}

/// Whether there was no room for what was to be written.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// For the sync of a file that its caller removes if it fails, and that nothing acknowledged rests on: that
/// there was no room is no failed sync then. File systems that give out blocks only when they write (and
/// quotas over a network) say so here. It is about this file alone, and a full disk heals by itself.
pub fn forgive_full(error: io::Error) -> io::Error {
    if !is_full(&error) {
        return error;
    }
    match error.downcast::<NotSynced>() {
        Ok(NotSynced(error)) | Err(error) => error,
    }
}

/// Makes sure that what is read from a file next is what the disk has of it. A process that was killed
/// leaves what it had not synced in the system's memory, where a power cut would still take it away; and
/// what could not be written stays there too, and no later sync writes it.
pub fn settle(file: &File) -> io::Result<()> {
    sync_data(file)?;
    forget(file, None);
    Ok(())
}

/// Lets the system read the first `octets` of a file (all of it, if `None`) from the disk again, where
/// nothing waits to be written. A system that does not heed this reads what it remembers.
pub fn forget(file: &File, octets: Option<NonZeroU64>) {
    let _ = rustix::fs::fadvise(file, 0, octets, Advice::DontNeed);
}

/// Syncs that a test lets fail, by where the file lies.
#[cfg(test)]
pub mod faults {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd as _;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    use rustix::io::Errno;

    use super::Call;

    struct Planned {
        below: PathBuf,
        call: Call,
        passes: usize,
        errno: Errno,
    }

    static PLANNED: Mutex<Vec<Planned>> = Mutex::new(Vec::new());

    /// The call `passes` calls from now, of this kind, of a file in `below` or of that folder itself, fails.
    pub fn plan(below: &Path, call: Call, passes: usize, errno: Errno) {
        let below = whole(below);
        PLANNED.lock().unwrap_or_else(PoisonError::into_inner).push(Planned { below, call, passes, errno });
    }

    /// Whether everything planned for this folder has been met.
    pub fn are_met(below: &Path) -> bool {
        let below = whole(below);
        !PLANNED.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|planned| planned.below == below)
    }

    /// As the system names it, also when it has another name by now.
    fn whole(folder: &Path) -> PathBuf {
        folder.parent().unwrap().canonicalize().unwrap().join(folder.file_name().unwrap())
    }

    pub(super) fn met(call: Call, file: &File) -> Option<io::Error> {
        let mut planned = PLANNED.lock().unwrap_or_else(PoisonError::into_inner);
        if planned.is_empty() {
            return None;
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let lies_there = |one: &Planned| one.call == call && (path == one.below || path.parent() == Some(&one.below));
        let at = planned.iter().position(lies_there)?;
        let one = planned.get_mut(at)?;
        if one.passes > 0 {
            one.passes -= 1;
            return None;
        }
        Some(planned.remove(at).errno.into())
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_failed_sync_is_known_through_whatever_carries_its_error_and_nothing_else_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        faults::plan(folder.path(), Call::Folder, 0, Errno::IO);
        let error = sync_folder(folder.path()).unwrap_err();
        assert!(is_failed_sync(&error) && is_failed_sync(&io::Error::other(error)));
        assert!(sync_folder(folder.path()).is_ok() && faults::are_met(folder.path()));
        assert!(!is_failed_sync(&Errno::IO.into()) && !is_failed_sync(&io::Error::other("a sync failed")));
        assert!(!is_failed_sync(&sync_folder(&folder.path().join("none")).unwrap_err()));
    }

    #[test]
    fn only_want_of_room_is_forgiven() {
        for (errno, is_forgiven) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
            let error = forgive_full(marked(errno.into()));
            assert_eq!(is_failed_sync(&error), !is_forgiven, "{error}");
            assert_eq!(is_full(&error), is_forgiven, "{error}");
        }
    }
}
