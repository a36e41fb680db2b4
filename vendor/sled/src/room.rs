//! postern: waiting for room on the disk. A write that finds none is made again until there is some, since
//! nothing written before it is wrong; without this a full disk ends the database.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(100);

static GIVES_UP: AtomicBool = AtomicBool::new(false);

/// From now on nothing waits for room: for a process that is ending.
pub fn give_up() {
    GIVES_UP.store(true, Ordering::Release);
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Does it again for as long as there is no room.
pub(crate) fn wait_for<T>(mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if is_full(&error) && !GIVES_UP.load(Ordering::Acquire) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// `write_all` that goes on where it had to wait.
pub(crate) fn write_all(file: &mut std::fs::File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match wait_for(|| file.write(bytes)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
