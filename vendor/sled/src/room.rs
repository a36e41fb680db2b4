//! postern: waiting for room on the disk. A write that finds none is made again until there is some, since
//! nothing written before it is wrong; without this a full disk ends the database.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(100);

/// How one database takes a full disk. Until told otherwise it fails.
#[derive(Debug, Default, Clone)]
pub struct Room(Arc<State>);

#[derive(Debug, Default)]
struct State {
    waits: AtomicBool,
    waiting: AtomicUsize,
    is_full_by_order: AtomicBool,
}

impl Room {
    /// From now on writes wait for room.
    pub fn wait(&self) {
        self.0.waits.store(true, Ordering::Release);
    }

    /// From now on nothing waits for room, and what waits fails.
    pub fn give_up(&self) {
        self.0.waits.store(false, Ordering::Release);
    }

    /// Whether a write waits for room at this moment.
    pub fn is_waited_for(&self) -> bool {
        self.0.waiting.load(Ordering::Acquire) > 0
    }

    /// For tests: whether every write finds the disk full.
    pub fn pretend_full(&self, is_full: bool) {
        self.0.is_full_by_order.store(is_full, Ordering::Release);
    }

    /// Does it again for as long as there is no room.
    pub(crate) fn wait_for<T>(&self, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waiter = None;
        loop {
            let done = match self.0.is_full_by_order.load(Ordering::Acquire) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => write(),
            };
            match done {
                Err(error) if is_full(&error) && self.0.waits.load(Ordering::Acquire) => {
                    waiter.get_or_insert_with(|| Waiter::new(&self.0));
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }

    /// `write_all` that goes on where it had to wait.
    pub(crate) fn write_all(&self, file: &mut std::fs::File, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.wait_for(|| file.write(bytes)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Counted for as long as it lives.
struct Waiter<'a>(&'a State);

impl<'a> Waiter<'a> {
    fn new(state: &'a State) -> Self {
        state.waiting.fetch_add(1, Ordering::AcqRel);
        Self(state)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
