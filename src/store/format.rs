//! The one number that says how everything in a store's folder is written: segments, frames, records, and the
//! files of past events beside it.
//!
//! A release that changes any of them raises [`FORMAT`] and still reads what is lower. A folder with a
//! higher number is refused before anything in it is opened. Easy to get wrong: the number is written
//! before the first byte in the new form, never after.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::OpenError;
use super::durable::sync_folder;

/// What this release writes, and the highest it reads.
///
/// 1: the first fixture. 2: the copy of the records, people, webhooks, statistics, what came back; several records
/// in a second and third form.
pub const FORMAT: u32 = 2;

const NAME: &str = "format";
const WORDS: &str = "postern store ";
/// A longer file is not ours.
const BYTES_MAX: u64 = 100;

/// A file in the store was written in a form this release does not know.
#[derive(Debug, thiserror::Error)]
#[error("{what} has format {found}, and this release reads up to {known}")]
pub struct Newer {
    /// Which file.
    pub what: String,
    /// Its format.
    pub found: u32,
    /// Ours.
    pub known: u32,
}

/// Refuses a folder written by a newer release. One without a number was made before there were any.
pub fn check(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join(NAME);
    let text = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpenError::Files(error)),
        Ok(found) if found.len() > BYTES_MAX => String::new(),
        Ok(_) => String::from_utf8_lossy(&fs::read(&path).map_err(OpenError::Files)?).into_owned(),
    };
    let found = text.strip_prefix(WORDS).and_then(|number| number.trim().parse().ok());
    match found {
        Some(found) if found <= FORMAT => Ok(()),
        Some(found) => Err(files(io::Error::other(Newer { what: folder.display().to_string(), found, known: FORMAT }))),
        None => {
            let text = format!(
                "{} does not say which format the store has; if this release wrote the store, put the line \
                 `{WORDS}{FORMAT}` there (each segment names its own format and is checked too)",
                path.display()
            );
            Err(OpenError::Files(io::Error::new(io::ErrorKind::InvalidData, text)))
        }
    }
}

/// Writes the number, durably, if it is not there or lower.
pub fn stamp(folder: &Path) -> Result<(), OpenError> {
    let (path, line) = (folder.join(NAME), format!("{WORDS}{FORMAT}\n"));
    if fs::read_to_string(&path).is_ok_and(|text| text == line) {
        return Ok(());
    }
    let new = folder.join("format.new");
    let written = fs::File::create(&new).and_then(|mut file| {
        file.write_all(line.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, &path)).and_then(|()| sync_folder(folder)).map_err(OpenError::Files)
}

/// What an error of the files means to whoever opens the folder.
pub fn files(error: io::Error) -> OpenError {
    match error.downcast::<Newer>() {
        Ok(newer) => OpenError::Newer(newer.to_string()),
        Err(error) => OpenError::Files(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_newer_format_is_refused_and_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check(folder.path()).is_ok(), "made before there were numbers");
        stamp(folder.path()).unwrap();
        assert!(check(folder.path()).is_ok());
        fs::write(folder.path().join(NAME), format!("{WORDS}{}\n", FORMAT + 1)).unwrap();
        let text = check(folder.path()).unwrap_err().to_string();
        assert!(text.contains(&format!("format {}", FORMAT + 1)) && text.contains("newer release"), "{text}");
        for strange in [&b""[..], b"postern store \n", b"something else\n", b"post\xe5rn store 1\n"] {
            fs::write(folder.path().join(NAME), strange).unwrap();
            assert!(matches!(check(folder.path()), Err(OpenError::Files(_))), "{strange:?}");
        }
    }
}
