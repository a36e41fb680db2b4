//! postern: an end to looking for a leaf again. Upstream looks again for as long as leaves and index do not
//! fit together, which is an instant while another thread splits or merges, and for ever in damaged files.

use std::io;
use std::time::{Duration, Instant};

/// Longer than any split or merge takes, also of a thread that waits for a processor meanwhile.
const LOOKED_FOR_MAX: Duration = Duration::from_secs(5);
/// The clock is asked after so many looks, and the processor is given away.
const LOOKS: u32 = 4096;

/// How long one leaf has been looked for.
#[derive(Default)]
pub(crate) struct Patience {
    looks: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Before each look: an error when there have been too many.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        self.looks += 1;
        if self.looks % LOOKS != 0 {
            return Ok(());
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > LOOKED_FOR_MAX {
            let text = "leaves and index do not fit together";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        std::thread::yield_now();
        Ok(())
    }
}
