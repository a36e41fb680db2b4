//! Whether there is room for more mail: free bytes and inodes against their floors.
//!
//! Asked before a batch with bodies is written, so that a full disk is refused before it is reached.
//! It refuses to know what is written. The file system is asked at most once a second.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How old an answer may be.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Inodes that a checkpoint may need.
const INODES_TO_GO_ON: u64 = 16;

/// The floors of one folder, and the last answer.
pub struct Space {
    folder: PathBuf,
    free_bytes_min: u64,
    free_inodes_min: u64,
    last: Mutex<Option<(Instant, Option<String>)>>,
}

impl Space {
    /// Watches the file system that holds `folder`.
    pub fn new(folder: PathBuf, free_bytes_min: u64, free_inodes_min: u64) -> Self {
        Self { folder, free_bytes_min, free_inodes_min, last: Mutex::new(None) }
    }

    /// What is lacking, in words; `None` if there is room.
    pub fn shortage(&self) -> Option<String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, answer)) = &*last
            && asked.elapsed() < ASK_EVERY
        {
            return answer.clone();
        }
        let answer = self.ask();
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Whether so many bytes and a few inodes are free at this moment; `true` if nobody can tell.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        let Ok(free) = rustix::fs::statvfs(&self.folder) else { return true };
        let has_inodes = free.f_files == 0 || free.f_favail >= INODES_TO_GO_ON;
        free.f_bavail.saturating_mul(free.f_frsize) >= bytes && has_inodes
    }

    /// Whether so many bytes may be taken without anybody being refused for it.
    pub fn has_room_above_floor(&self, bytes: u64) -> bool {
        self.has_room_for(self.free_bytes_min.saturating_add(bytes))
    }

    fn ask(&self) -> Option<String> {
        let Ok(free) = rustix::fs::statvfs(&self.folder) else { return None };
        let bytes = free.f_bavail.saturating_mul(free.f_frsize);
        if bytes < self.free_bytes_min {
            return Some(format!("{bytes} bytes free, the floor is {}", self.free_bytes_min));
        }
        // Some file systems count no inodes and report zero of zero.
        if free.f_files > 0 && free.f_favail < self.free_inodes_min {
            return Some(format!("{} inodes free, the floor is {}", free.f_favail, self.free_inodes_min));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_a_byte_but_not_for_everything() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path().to_owned(), 0, 0);
        assert!(space.has_room_for(1) && !space.has_room_for(u64::MAX));
        assert_eq!(space.shortage(), None);
        assert!(Space::new(folder.path().to_owned(), u64::MAX, 0).shortage().is_some());
    }
}
