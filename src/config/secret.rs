//! Where a secret comes from: a file of its own, or a systemd credential. The configuration names
//! the place and never holds the secret, so that it can be shown, copied and kept in a repository.

use std::path::{Path, PathBuf};

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// A file, readable by the daemon's user only.
    File(PathBuf),
    /// `LoadCredential=NAME:...` in the unit; systemd shows it in a folder of its own.
    Credential(String),
}

impl SecretPlace {
    /// Reads `credential:NAME` or a path.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("credential:") {
            Some(name) => Self::Credential(name.to_owned()),
            None => Self::File(PathBuf::from(text)),
        }
    }

    /// The file to open; `credentials` is what `CREDENTIALS_DIRECTORY` says.
    ///
    /// # Errors
    /// A sentence, if it is a credential and the daemon was not started with any.
    pub fn path(&self, credentials: Option<&Path>) -> Result<PathBuf, String> {
        match (self, credentials) {
            (Self::File(path), _) => Ok(path.clone()),
            (Self::Credential(name), Some(folder)) => Ok(folder.join(name)),
            (Self::Credential(name), None) => Err(format!(
                "the credential {name:?} is only there when systemd starts the daemon with LoadCredential="
            )),
        }
    }
}
