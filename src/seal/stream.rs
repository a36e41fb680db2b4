//! Long secrets: a stream of any length sealed in chunks with AES-256-GCM, in the STREAM construction
//! (Hoang, Reyhanitabar, Rogaway and Vizár 2015), under a key derived for that one stream.
//!
//! The nonce of a chunk holds its number and whether it is the last, so chunks that are left out, moved,
//! swapped between files, or cut off at the end do not open. The header is authenticated with every chunk.
//! Easy to get wrong: what was read before an error was genuine, but it is not the whole; use nothing
//! of it before the reader said that it is at the end.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

use aes_gcm::aead::Payload;
use aes_gcm::aead::generic_array::GenericArray;
use aes_gcm::aead::stream::{NewStream, StreamBE32, StreamPrimitive};
use aes_gcm::{Aes256Gcm, KeyInit};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::{MasterKey, Octets, SealError, TAG_OCTETS, read_key, write_key, written};
use crate::ext;

/// The first octets of a sealed stream.
const MAGIC: &[u8; 8] = b"PSTNSEAL";
/// The only form there is yet.
const VERSION: u32 = 1;
/// Octets of plain text in every chunk but the last.
const CHUNK_OCTETS: usize = 64 * 1024;
/// Magic, version, key id, salt, nonce prefix, and a zero to fill up.
const HEADER_OCTETS: usize = 8 + 4 + 8 + 32 + 7 + 5;
const KEY_ID_OCTETS: usize = 8;
const SALT_OCTETS: usize = 32;
const NONCE_OCTETS: usize = 7;
const SEALED_OCTETS: usize = CHUNK_OCTETS + TAG_OCTETS;

/// The key under which backups are sealed. Another one than the master key, which lies in the backups.
/// Wiped from memory when dropped.
pub struct BackupKey {
    octets: Octets,
}

/// Why a sealed stream cannot be opened. A variant per different action of whoever holds the file.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It does not begin like one.
    #[error("this is not a postern backup")]
    Foreign,
    /// Sealed by a newer release.
    #[error("this was made by a newer release (format {0}, this release reads up to {VERSION}); use that release")]
    Newer(u32),
    /// Sealed under another key.
    #[error("this was sealed under another backup key ({wanted}, the one given is {given})")]
    WrongKey {
        /// The id of the key it was sealed under.
        wanted: String,
        /// The id of the key given.
        given: String,
    },
    /// A chunk was changed, moved or comes from another file.
    #[error("damaged at byte {0}: a chunk is not what was sealed there")]
    Damaged(u64),
    /// The end is missing.
    #[error("cut off after {0} bytes: the end is missing")]
    CutOff(u64),
}

impl BackupKey {
    /// Takes a key from memory.
    pub fn from_bytes(octets: [u8; super::KEY_OCTETS]) -> Self {
        Self { octets: Zeroizing::new(octets) }
    }

    /// Reads a key file, as [`MasterKey::load`] does.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        Ok(Self { octets: read_key(path)? })
    }

    /// Makes a key and writes it to a new file of mode 0600, synced; never overwrites one.
    pub fn generate(path: &Path) -> Result<Self, SealError> {
        let key = Self::from_bytes(ext::random_bytes());
        write_key(path, &key.octets)?;
        Ok(key)
    }

    /// The line of its file, for people to keep elsewhere.
    pub fn line(&self) -> Zeroizing<String> {
        written(&self.octets)
    }

    /// Names the key without giving anything of it away.
    pub fn id(&self) -> String {
        ext::base32(&self.id_octets())
    }

    fn id_octets(&self) -> [u8; KEY_ID_OCTETS] {
        self.derived(&[], b"postern backup: key id")
    }

    /// HKDF-SHA256 (RFC 5869) of this key.
    ///
    /// # Panics
    /// Never: HKDF refuses only outputs of more than 255 hashes.
    #[expect(clippy::expect_used, reason = "32 octets are one hash, and HKDF gives up to 255")]
    fn derived<const N: usize>(&self, salt: &[u8], purpose: &[u8]) -> [u8; N] {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut octets = [0; N];
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.octets.as_slice());
        let expanded = pseudorandom.expand(&[purpose], Length(N)).and_then(|keying| keying.fill(&mut octets));
        expanded.expect("HKDF gives that many octets");
        octets
    }

    fn stream(&self, header: &Header) -> StreamBE32<Aes256Gcm> {
        let key = Zeroizing::new(self.derived::<{ super::KEY_OCTETS }>(&header.salt, b"postern backup: stream"));
        let cipher = Aes256Gcm::new(GenericArray::from_slice(key.as_slice()));
        StreamBE32::from_aead(cipher, GenericArray::from_slice(&header.nonce))
    }

    /// A master key that can lie beside what it sealed: not even the opened stream shows it.
    pub fn wrap(&self, master: &MasterKey) -> Vec<u8> {
        self.wrapper().wrap(WRAPPED, master)
    }

    /// Opens what [`BackupKey::wrap`] made.
    pub fn unwrap_key(&self, wrapped: &[u8]) -> Result<MasterKey, SealError> {
        self.wrapper().unwrap_key(WRAPPED, wrapped)
    }

    fn wrapper(&self) -> MasterKey {
        MasterKey::from_bytes(self.derived(&[], b"postern backup: master key"))
    }
}

/// What a wrapped master key is sealed as.
const WRAPPED: &str = "master key in a backup";

impl fmt::Debug for BackupKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BackupKey(..)")
    }
}

#[derive(Clone, Copy)]
struct Header {
    key: [u8; KEY_ID_OCTETS],
    salt: [u8; SALT_OCTETS],
    nonce: [u8; NONCE_OCTETS],
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_OCTETS] {
        let mut bytes = [0; HEADER_OCTETS];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.key);
        bytes[20..52].copy_from_slice(&self.salt);
        bytes[52..59].copy_from_slice(&self.nonce);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_OCTETS]) -> Result<Self, StreamError> {
        if bytes[..8] != *MAGIC {
            return Err(StreamError::Foreign);
        }
        let mut version = [0; 4];
        version.copy_from_slice(&bytes[8..12]);
        match u32::from_le_bytes(version) {
            VERSION => {}
            newer @ 2.. => return Err(StreamError::Newer(newer)),
            _ => return Err(StreamError::Foreign),
        }
        let mut header = Self { key: [0; KEY_ID_OCTETS], salt: [0; SALT_OCTETS], nonce: [0; NONCE_OCTETS] };
        header.key.copy_from_slice(&bytes[12..20]);
        header.salt.copy_from_slice(&bytes[20..52]);
        header.nonce.copy_from_slice(&bytes[52..59]);
        Ok(header)
    }
}

/// Seals what is written to it. Without [`SealingWriter::finish`] the stream has no end and will not open.
pub struct SealingWriter<W> {
    inner: W,
    stream: StreamBE32<Aes256Gcm>,
    header: [u8; HEADER_OCTETS],
    next: u32,
    waiting: Zeroizing<Vec<u8>>,
}

impl<W: Write> SealingWriter<W> {
    /// Begins a stream: the header is written at once.
    pub fn new(mut inner: W, key: &BackupKey) -> io::Result<Self> {
        let header = Header { key: key.id_octets(), salt: ext::random_bytes(), nonce: ext::random_bytes() };
        let bytes = header.to_bytes();
        inner.write_all(&bytes)?;
        let waiting = Zeroizing::new(Vec::with_capacity(CHUNK_OCTETS));
        Ok(Self { inner, stream: key.stream(&header), header: bytes, next: 0, waiting })
    }

    /// Seals the last chunk.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        let payload = Payload { msg: &self.waiting, aad: &self.header };
        let sealed = self.stream.encrypt(self.next, is_last, payload);
        let sealed = sealed.map_err(|_| io::Error::other("a chunk could not be sealed"))?;
        self.inner.write_all(&sealed)?;
        self.waiting.clear();
        // 2^32 chunks of 64 KiB are 256 TiB.
        self.next = self.next.checked_add(1).ok_or_else(|| io::Error::other("the stream is too long"))?;
        Ok(())
    }
}

impl<W: Write> Write for SealingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk is sealed only when more comes: the last one must be known to be the last.
        if self.waiting.len() == CHUNK_OCTETS && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK_OCTETS - self.waiting.len());
        self.waiting.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens a sealed stream. Errors of the kind `InvalidData` hold a [`StreamError`].
pub struct OpeningReader<R> {
    inner: R,
    stream: StreamBE32<Aes256Gcm>,
    header: [u8; HEADER_OCTETS],
    next: u32,
    /// Octets read ahead: one more than a chunk tells that it is not the last.
    ahead: Vec<u8>,
    plain: Zeroizing<Vec<u8>>,
    given: usize,
    is_ended: bool,
}

impl<R: Read> OpeningReader<R> {
    /// Reads the header and compares the key.
    pub fn new(mut inner: R, key: &BackupKey) -> io::Result<Self> {
        let mut bytes = [0; HEADER_OCTETS];
        inner.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid(StreamError::Foreign),
            _ => error,
        })?;
        let header = Header::from_bytes(&bytes).map_err(invalid)?;
        if header.key != key.id_octets() {
            let wanted = ext::base32(&header.key);
            return Err(invalid(StreamError::WrongKey { wanted, given: key.id() }));
        }
        let (ahead, plain) = (Vec::with_capacity(SEALED_OCTETS + 1), Zeroizing::new(Vec::new()));
        Ok(Self { inner, stream: key.stream(&header), header: bytes, next: 0, ahead, plain, given: 0, is_ended: false })
    }

    fn open_next(&mut self) -> io::Result<()> {
        let wanted = (SEALED_OCTETS + 1).saturating_sub(self.ahead.len()) as u64;
        self.inner.by_ref().take(wanted).read_to_end(&mut self.ahead)?;
        let is_last = self.ahead.len() <= SEALED_OCTETS;
        let end = self.ahead.len().min(SEALED_OCTETS);
        let msg = self.ahead.get(..end).unwrap_or_default();
        let open = |is_last: bool| self.stream.decrypt(self.next, is_last, Payload { msg, aad: &self.header });
        let Ok(plain) = open(is_last) else {
            let before = HEADER_OCTETS as u64 + u64::from(self.next) * SEALED_OCTETS as u64;
            // Short of a chunk, or a chunk that others should follow: the file was cut there.
            let is_cut = is_last && (end < SEALED_OCTETS || open(false).is_ok());
            let after = before + end as u64;
            return Err(invalid(if is_cut { StreamError::CutOff(after) } else { StreamError::Damaged(before) }));
        };
        self.plain = Zeroizing::new(plain);
        self.given = 0;
        self.is_ended = is_last;
        self.ahead.drain(..end);
        self.next = self.next.checked_add(1).ok_or_else(|| io::Error::other("the stream is too long"))?;
        Ok(())
    }
}

impl<R: Read> Read for OpeningReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.plain.len() && !self.is_ended {
            self.open_next()?;
        }
        let left = self.plain.get(self.given..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        let (into, from) = (buffer.get_mut(..count).unwrap_or_default(), left.get(..count).unwrap_or_default());
        into.copy_from_slice(from);
        self.given += count;
        Ok(count)
    }
}

fn invalid(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let mut writer = SealingWriter::new(Vec::new(), &BackupKey::from_bytes(KEY)).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn opened(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let reader = OpeningReader::new(bytes, &BackupKey::from_bytes(KEY));
        let read = reader.and_then(|mut reader| reader.read_to_end(&mut plain));
        read.map(|_| plain).map_err(|error| error.to_string())
    }

    fn plain(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn any_length_comes_back_as_it_was() {
        for length in [0, 1, CHUNK_OCTETS - 1, CHUNK_OCTETS, CHUNK_OCTETS + 1, 3 * CHUNK_OCTETS, 200_000] {
            assert_eq!(opened(&sealed(&plain(length))).unwrap(), plain(length), "{length}");
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_refused_at_a_chunk_boundary_too() {
        let whole = sealed(&plain(2 * CHUNK_OCTETS + 100));
        for cut in [0, 10, HEADER_OCTETS, HEADER_OCTETS + 5, HEADER_OCTETS + SEALED_OCTETS, whole.len() - 1] {
            assert!(opened(&whole[..cut]).is_err(), "{cut}");
        }
        let error = opened(&whole[..HEADER_OCTETS + 2 * SEALED_OCTETS]).unwrap_err();
        assert!(error.starts_with("cut off after"), "{error}");
        assert!(opened(&[&whole[..], b"x"].concat()).is_err(), "more than was sealed");
    }

    #[test]
    fn chunks_moved_left_out_or_from_another_stream_are_refused() {
        let whole = sealed(&plain(3 * CHUNK_OCTETS));
        let chunk =
            |number: usize| HEADER_OCTETS + number * SEALED_OCTETS..HEADER_OCTETS + (number + 1) * SEALED_OCTETS;
        let mut swapped = whole.clone();
        swapped[chunk(0)].copy_from_slice(&whole[chunk(1)]);
        swapped[chunk(1)].copy_from_slice(&whole[chunk(0)]);
        assert!(opened(&swapped).unwrap_err().starts_with("damaged at byte"));
        let left_out = [&whole[..HEADER_OCTETS], &whole[chunk(1)], &whole[chunk(2)]].concat();
        assert!(opened(&left_out).is_err());
        let mut foreign = whole.clone();
        foreign[chunk(1)].copy_from_slice(&sealed(&plain(3 * CHUNK_OCTETS))[chunk(1)]);
        assert!(opened(&foreign).is_err(), "the same plain text under the same key in another file");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let whole = sealed(&plain(CHUNK_OCTETS + 50));
        for at in (0..whole.len()).step_by(997).chain(0..HEADER_OCTETS).chain([whole.len() - 1]) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(opened(&flipped).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_key_and_a_newer_form_are_told_from_damage() {
        let whole = sealed(b"x");
        let other = OpeningReader::new(&whole[..], &BackupKey::from_bytes([8; 32])).err().unwrap().to_string();
        assert!(other.contains("another backup key") && other.contains(&BackupKey::from_bytes(KEY).id()), "{other}");
        let mut newer = whole.clone();
        newer[8] = 2;
        assert!(opened(&newer).unwrap_err().contains("newer release (format 2"));
        assert!(opened(b"PK\x03\x04 something else altogether, and long enough to be a header").is_err());
    }

    #[test]
    fn a_wrapped_master_key_opens_under_the_backup_key_only() {
        let (key, master) = (BackupKey::from_bytes(KEY), MasterKey::from_bytes([1; 32]));
        let wrapped = key.wrap(&master);
        assert!(key.unwrap_key(&wrapped).unwrap().is(&master));
        assert!(BackupKey::from_bytes([9; 32]).unwrap_key(&wrapped).is_err());
    }
}
