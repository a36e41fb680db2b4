//! The body of a message on its way in: in memory up to 256 KiB (64 KiB while memory runs short),
//! beyond that in a spill file that is unlinked at once, so that no crash leaves it behind. Never synced: no 250 was said yet.
//!
//! Easy to get wrong: file writes block, so they leave the async workers.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::ext;
use crate::gate::{Gate, Work};
use crate::mail::{BODY_IN_MEMORY_BYTES_MAX, Body, SLICE_BYTES, Spill};
use crate::smtp::DataReader;

/// The spilled part of one body.
#[derive(Debug)]
pub(super) struct Spilling {
    folder: PathBuf,
    gate: Arc<Gate>,
    file: Option<File>,
    length: u64,
}

impl Spilling {
    pub(super) fn new(folder: &Path, gate: &Arc<Gate>) -> Self {
        Self { folder: folder.to_owned(), gate: Arc::clone(gate), file: None, length: 0 }
    }

    /// Moves what `reader` holds to the file, if it is enough to be worth it.
    pub(super) async fn relieve(&mut self, reader: &mut DataReader) -> io::Result<()> {
        let pending = reader.body_pending();
        let is_enough = pending > BODY_IN_MEMORY_BYTES_MAX
            || (pending >= SLICE_BYTES && (self.file.is_some() || !self.gate.is_open_to(Work::Message)));
        if !is_enough {
            return Ok(());
        }
        self.append(reader.take_body()).await
    }

    /// The whole body: what was spilled and `rest`.
    pub(super) async fn end(mut self, rest: Vec<u8>) -> io::Result<Body> {
        if self.file.is_none() && rest.len() <= BODY_IN_MEMORY_BYTES_MAX {
            return Ok(Body::Memory(Bytes::from(rest)));
        }
        self.append(rest).await?;
        let file = self.file.ok_or_else(|| io::Error::other("the spill file was lost"))?;
        Ok(Body::Spilled(Arc::new(Spill { file, length: self.length })))
    }

    async fn append(&mut self, octets: Vec<u8>) -> io::Result<()> {
        let (file, folder) = (self.file.take(), self.folder.clone());
        let count = octets.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => create_unlinked(&folder)?,
            };
            file.write_all(&octets)?;
            Ok::<_, io::Error>(file)
        });
        self.file = Some(written.await.map_err(io::Error::other)??);
        self.length += count;
        Ok(())
    }
}

fn create_unlinked(folder: &Path) -> io::Result<File> {
    let path = folder.join(ext::base32(&ext::random_bytes::<16>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::{BareLineEnds, DataLimits};

    fn gate(memory_bytes_max: u64) -> Arc<Gate> {
        Arc::new(Gate::new(crate::gate::Settings { memory_bytes_max, ..Default::default() }))
    }

    const LIMITS: DataLimits =
        DataLimits { message_bytes_max: 10_000_000, header_bytes_max: 1000, bare_line_ends: BareLineEnds::Normalise };

    async fn body_of(length: usize, folder: &Path, gate: &Arc<Gate>) -> Body {
        let text = [b"A: b\r\n\r\n".to_vec(), vec![b'x'; length], b"\r\n.\r\n".to_vec()].concat();
        let (mut reader, mut spilling) = (DataReader::dotted(LIMITS), Spilling::new(folder, gate));
        for part in text.chunks(16_000) {
            reader.read(&mut &*part);
            spilling.relieve(&mut reader).await.unwrap();
        }
        let (_, rest) = reader.finish().unwrap();
        spilling.end(rest).await.unwrap()
    }

    #[tokio::test]
    async fn while_memory_runs_short_shorter_bodies_are_spilled_too() {
        let folder = tempfile::tempdir().unwrap();
        for (memory_max, is_spilled) in [(0, false), (1, true)] {
            let body = body_of(100_000, folder.path(), &gate(memory_max)).await;
            assert_eq!(matches!(body, Body::Spilled(_)), is_spilled);
            assert_eq!(body.length(), 100_002);
        }
    }

    #[tokio::test]
    async fn a_long_body_is_spilled_to_a_file_that_is_gone_from_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, BODY_IN_MEMORY_BYTES_MAX - 2, BODY_IN_MEMORY_BYTES_MAX - 1, 1_000_000] {
            let body = body_of(length, folder.path(), &gate(0)).await;
            assert_eq!(body.length(), length as u64 + 2);
            assert_eq!(matches!(body, Body::Memory(_)), length <= BODY_IN_MEMORY_BYTES_MAX - 2);
            let octets: Vec<u8> = body.slices().flat_map(|slice| slice.unwrap().to_vec()).collect();
            assert!(octets.ends_with(b"\r\n") && octets[..length].iter().all(|octet| *octet == b'x'));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
