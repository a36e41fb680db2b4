//! Secrets at rest: small values sealed with AES-256-GCM under the instance's master key.
//!
//! Recipe: `MasterKey::load` once at start; `seal(purpose, plain)` before storing, `open` after
//! reading. The purpose is authenticated, so that a value sealed as one thing never opens as
//! another. Easy to get wrong: who loses the key file loses every sealed value; back it up apart.

mod stream;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::ext;

pub use stream::{BackupKey, OpeningReader, SealingWriter, StreamError};

/// Octets of the key.
const KEY_OCTETS: usize = 32;
/// Octets of the random nonce (NIST SP 800-38D s8.2.2): good for four thousand million sealings.
const NONCE_OCTETS: usize = 12;
/// Octets of GCM's tag.
const TAG_OCTETS: usize = 16;
/// The only form of a sealed value there is yet: version, nonce, ciphertext with tag.
const VERSION: u8 = 1;
/// A key file is one short line; anything longer is not one.
const KEY_FILE_OCTETS_MAX: u64 = 4096;
/// Permission bits nobody but the owner may have. Reading by the group is let through, because
/// systemd hands credentials over with an access list, which shows as a group bit.
const FORBIDDEN_MODE: u32 = 0o037;

/// Why a key or a sealed value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read or written, is open to others, or holds no key.
    #[error("key file {path}: {detail}")]
    KeyFile {
        /// Which file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// Sealed by a newer release, or not a sealed value at all.
    #[error("this is not a sealed value this release can read")]
    Format,
    /// Sealed under another master key, for another purpose, or damaged.
    #[error("the value was sealed under another master key, for another purpose, or is damaged")]
    Mismatch,
}

/// The octets of a key. Wiped from memory when dropped.
type Octets = Zeroizing<[u8; KEY_OCTETS]>;

/// The key under which the instance's secrets are sealed. Wiped from memory when dropped.
#[derive(Clone)]
pub struct MasterKey {
    octets: Octets,
    /// While the key is being changed: the other one, which part of the values is still sealed under.
    other: Option<Octets>,
}

impl MasterKey {
    /// Takes a key from memory.
    pub fn from_bytes(octets: [u8; KEY_OCTETS]) -> Self {
        Self { octets: Zeroizing::new(octets), other: None }
    }

    /// Makes a key in memory.
    pub fn random() -> Self {
        Self::from_bytes(ext::random_bytes())
    }

    /// The line of its file.
    pub fn line(&self) -> Zeroizing<String> {
        written(&self.octets)
    }

    /// Reads [`MasterKey::line`].
    pub fn from_line(line: &str) -> Result<Self, SealError> {
        Ok(Self { octets: read_line(line).ok_or(SealError::Format)?, other: None })
    }

    /// Reads a key file: one line of base 64. A file that others may read, or the group may
    /// write, is refused.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        Ok(Self { octets: read_key(path)?, other: None })
    }

    /// Makes a key and writes it to a new file of mode 0600, synced; never overwrites one.
    pub fn generate(path: &Path) -> Result<Self, SealError> {
        let key = Self::random();
        key.save(path)?;
        Ok(key)
    }

    /// Writes the key to a new file of mode 0600, synced; never overwrites one.
    pub fn save(&self, path: &Path) -> Result<(), SealError> {
        write_key(path, &self.octets)
    }

    /// This key, which also opens what `other` sealed; it seals under itself alone.
    #[must_use]
    pub fn with_other(mut self, other: &Self) -> Self {
        self.other = Some(other.octets.clone());
        self
    }

    /// Whether both are the same key.
    pub fn is(&self, other: &Self) -> bool {
        self.octets == other.octets
    }

    /// `other`, sealed under this key, for `purpose`.
    pub fn wrap(&self, purpose: &str, other: &Self) -> Vec<u8> {
        self.seal(purpose, other.octets.as_slice())
    }

    /// Opens what [`MasterKey::wrap`] made.
    pub fn unwrap_key(&self, purpose: &str, wrapped: &[u8]) -> Result<Self, SealError> {
        let octets = self.open(purpose, wrapped)?;
        let octets = <[u8; KEY_OCTETS]>::try_from(octets.as_slice()).map_err(|_| SealError::Format)?;
        Ok(Self::from_bytes(octets))
    }

    /// Seals `plain` for `purpose`: `open` needs the same words.
    ///
    /// # Panics
    /// Never: AES-GCM refuses only plain texts of 64 GiB or more.
    #[expect(clippy::expect_used, reason = "secrets are a few kilobytes, GCM's limit is 64 GiB")]
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let nonce = ext::random_bytes::<NONCE_OCTETS>();
        let payload = Payload { msg: plain, aad: purpose.as_bytes() };
        let sealed = cipher(&self.octets).encrypt(Nonce::from_slice(&nonce), payload).expect("the plain text is short");
        let mut value = Vec::with_capacity(1 + NONCE_OCTETS + sealed.len());
        value.push(VERSION);
        value.extend_from_slice(&nonce);
        value.extend_from_slice(&sealed);
        value
    }

    /// Opens what [`MasterKey::seal`] sealed for the same purpose.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Format)?;
        if *version != VERSION || rest.len() < NONCE_OCTETS + TAG_OCTETS {
            return Err(SealError::Format);
        }
        let (nonce, rest) = rest.split_at(NONCE_OCTETS);
        let payload = Payload { msg: rest, aad: purpose.as_bytes() };
        let mut keys = std::iter::once(&self.octets).chain(&self.other);
        let plain = keys.find_map(|key| {
            let payload = Payload { msg: payload.msg, aad: payload.aad };
            cipher(key).decrypt(Nonce::from_slice(nonce), payload).ok()
        });
        plain.map(Zeroizing::new).ok_or(SealError::Mismatch)
    }
}

fn cipher(octets: &Octets) -> Aes256Gcm {
    Aes256Gcm::new(Key::<Aes256Gcm>::from_slice(octets.as_slice()))
}

fn read_key(path: &Path) -> Result<Octets, SealError> {
    let failed = |detail: String| SealError::KeyFile { path: path.display().to_string(), detail };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mode = file.metadata().map_err(|error| failed(error.to_string()))?.mode() & 0o777;
    if mode & FORBIDDEN_MODE != 0 {
        return Err(failed(format!("its mode is {mode:04o}, so others may use it; chmod 0600 it")));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(KEY_FILE_OCTETS_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    read_line(&text).ok_or_else(|| failed("it does not hold 32 bytes in base 64".into()))
}

fn read_line(text: &str) -> Option<Octets> {
    let octets = STANDARD.decode(text.trim()).map(Zeroizing::new).ok()?;
    <[u8; KEY_OCTETS]>::try_from(octets.as_slice()).ok().map(Zeroizing::new)
}

fn written(octets: &Octets) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(octets.as_slice()))
}

fn write_key(path: &Path, octets: &Octets) -> Result<(), SealError> {
    let failed =
        |error: std::io::Error| SealError::KeyFile { path: path.display().to_string(), detail: error.to_string() };
    let mut line = written(octets);
    line.push('\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MasterKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_sealed_value_opens_under_the_same_key_and_purpose_only() {
        let key = MasterKey::from_bytes([7; 32]);
        let sealed = key.seal("route", b"secret");
        assert_eq!(key.open("route", &sealed).unwrap().as_slice(), b"secret");
        assert_eq!(key.open("domain", &sealed), Err(SealError::Mismatch));
        assert_eq!(MasterKey::from_bytes([8; 32]).open("route", &sealed), Err(SealError::Mismatch));
        assert_ne!(key.seal("route", b"secret"), sealed, "the nonce is fresh each time");
    }

    #[test]
    fn a_damaged_value_is_refused_at_every_byte() {
        let key = MasterKey::from_bytes([7; 32]);
        let sealed = key.seal("route", b"secret");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(key.open("route", &damaged).is_err(), "byte {at}");
            assert!(key.open("route", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn two_keys_open_each_others_values_while_the_key_is_changed_and_not_afterwards() {
        let (old, new) = (MasterKey::from_bytes([7; 32]), MasterKey::from_bytes([8; 32]));
        let (by_old, by_new) = (old.seal("x", b"1"), new.seal("x", b"2"));
        let both = MasterKey::from_bytes([8; 32]).with_other(&old);
        assert_eq!(both.open("x", &by_old).unwrap().as_slice(), b"1");
        assert_eq!(both.open("x", &by_new).unwrap().as_slice(), b"2");
        assert_eq!(new.open("x", &both.seal("x", b"3")).unwrap().as_slice(), b"3");
        assert_eq!(new.open("x", &by_old), Err(SealError::Mismatch));
        let wrapped = old.wrap("key", &new);
        assert!(old.unwrap_key("key", &wrapped).unwrap().is(&new));
        assert!(new.unwrap_key("key", &wrapped).is_err() && old.unwrap_key("other", &wrapped).is_err());
    }

    #[test]
    fn a_key_file_is_made_once_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let key = MasterKey::generate(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let sealed = key.seal("x", b"y");
        assert_eq!(MasterKey::load(&path).unwrap().open("x", &sealed).unwrap().as_slice(), b"y");
        assert!(matches!(MasterKey::generate(&path), Err(SealError::KeyFile { .. })), "never overwritten");
    }

    #[test]
    fn a_key_file_that_others_may_read_or_that_holds_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        MasterKey::generate(&path).unwrap();
        for (mode, is_fine) in [(0o400, true), (0o440, true), (0o644, false), (0o660, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(MasterKey::load(&path).is_ok(), is_fine, "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "c2hvcnQ=\n", "not base 64 at all"] {
            std::fs::write(&path, text).unwrap();
            assert!(MasterKey::load(&path).is_err(), "{text:?}");
        }
    }
}
