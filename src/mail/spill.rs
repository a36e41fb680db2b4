//! Writes a body of unknown length: in memory while it is short, then in a spill file.
//!
//! The file has no name from the start (`O_TMPFILE`, or unlinked at once), is never synced, and
//! goes away with its [`Body`]. Blocks on the disk once spilled: not for async workers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use super::message::{BODY_IN_MEMORY_BYTES_MAX, Body, Spill};
use crate::ext;

/// Takes a body piece by piece.
#[derive(Debug)]
pub struct BodyWriter {
    folder: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    length: u64,
}

impl BodyWriter {
    /// Will spill into `folder` beyond [`BODY_IN_MEMORY_BYTES_MAX`].
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), memory: Vec::new(), file: None, length: 0 }
    }

    /// Octets taken so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes the next piece. After an error the writer is of no more use.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.memory.extend_from_slice(piece);
        self.length = self.length.saturating_add(piece.len() as u64);
        if self.memory.len() > BODY_IN_MEMORY_BYTES_MAX {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(nameless(&self.folder)?),
            };
            file.write_all(&self.memory)?;
            self.memory.clear();
        }
        Ok(())
    }

    /// The body.
    pub fn finish(self) -> io::Result<Body> {
        let Some(mut file) = self.file else {
            return Ok(Body::Memory(Bytes::from(self.memory)));
        };
        file.write_all(&self.memory)?;
        Ok(Body::Spilled(Arc::new(Spill { file, length: self.length })))
    }
}

/// A file without a name in `folder`, for its owner only.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(descriptor) = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(descriptor));
    }
    // Not every file system knows O_TMPFILE.
    let path = folder.join(format!("spill-{}", ext::base32(&ext::random_bytes::<10>())));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Body) -> Vec<u8> {
        body.slices().flat_map(|slice| slice.unwrap().to_vec()).collect()
    }

    #[test]
    fn a_short_body_stays_in_memory_and_a_long_one_leaves_no_name_behind() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, BODY_IN_MEMORY_BYTES_MAX, BODY_IN_MEMORY_BYTES_MAX + 1, 1_000_000] {
            let bytes: Vec<u8> = (0..length).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect();
            let mut writer = BodyWriter::new(folder.path());
            bytes.chunks(77_777).for_each(|piece| writer.write(piece).unwrap());
            assert_eq!(writer.length(), length as u64);
            let body = writer.finish().unwrap();
            assert_eq!(matches!(body, Body::Spilled(_)), length > BODY_IN_MEMORY_BYTES_MAX);
            assert_eq!(body.length(), length as u64);
            assert!(read(&body) == bytes);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_not_a_loss() {
        let mut writer = BodyWriter::new(Path::new("/nonexistent/postern"));
        assert!(writer.write(b"short").is_ok());
        assert!(writer.write(&vec![b'x'; BODY_IN_MEMORY_BYTES_MAX]).is_err());
    }
}
