//! Certificates of our own listeners: a folder `NAME/fullchain.pem` and `NAME/privkey.pem`
//! (certbot's layout), chosen by SNI, else by the virtual IP's EHLO name, else the default.
//!
//! Recipe: [`Certificates::open`], then [`Certificates::server_config`] per connection, and
//! [`Certificates::watch`] as a task. Every handshake looks at what is loaded at that moment, so a
//! reload touches no session. Easy to get wrong: a renewal is two files, not one; until both fit
//! together the old pair stays in use and the reason is reported.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use crate::background::Shutdown;
use crate::ext::Timestamp;
use crate::mail::Domain;

/// How often the folder is looked at.
pub const CERTIFICATE_POLL: Duration = Duration::from_secs(30);

const CHAIN_FILE: &str = "fullchain.pem";
const KEY_FILE: &str = "privkey.pem";
/// A PEM file larger than this is not a certificate.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// A self-signed certificate lasts this long: it is a stand-in, and must not fail by itself.
const SELF_SIGNED_FOR: Duration = Duration::from_secs(10 * 365 * 86_400);

/// All certificates of the folder, as loaded now.
pub struct Certificates {
    folder: PathBuf,
    provider: Arc<CryptoProvider>,
    table: Arc<RwLock<Table>>,
    configs: Mutex<HashMap<Domain, Arc<rustls::ServerConfig>>>,
    default_name: Domain,
    /// Serialises reloads, and remembers what was already reported.
    reported: Mutex<BTreeMap<String, String>>,
}

/// What doctor shows of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The folder's name.
    pub folder: String,
    /// The names it covers, wildcards included.
    pub names: Vec<String>,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// Whether nobody else vouches for it.
    pub issuer: Issuer,
}

/// Who signed a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// Its own key: a stand-in that clients do not trust.
    Itself,
    /// Somebody else.
    Authority,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Folders whose certificate is new since the last time.
    pub changed: Vec<String>,
    /// Folders that are gone.
    pub removed: Vec<String>,
    /// Folders that could not be loaded, with the reason; an older certificate of theirs stays in use.
    pub problems: Vec<(String, String)>,
}

#[derive(Default)]
struct Table {
    /// By folder name.
    entries: BTreeMap<String, Arc<Entry>>,
}

struct Entry {
    stamp: [Stamp; 2],
    key: Arc<CertifiedKey>,
    expiry: Expiry,
}

/// Changes whenever a file is replaced or rewritten: device, inode, size, modification time.
type Stamp = (u64, u64, u64, i64, i64);

impl Certificates {
    /// Loads the folder. A certificate that cannot be loaded is logged and left out;
    /// [`Certificates::has_default`] says whether there is one to serve.
    ///
    /// # Errors
    /// If the folder itself cannot be read.
    pub fn open(folder: &Path, default_name: &Domain) -> io::Result<Self> {
        let certificates = Self {
            folder: folder.to_owned(),
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            table: Arc::default(),
            configs: Mutex::default(),
            default_name: default_name.clone(),
            reported: Mutex::default(),
        };
        certificates.reload()?;
        Ok(certificates)
    }

    /// The TLS settings for a listener on the virtual IP called `vip_name`; the same value for the
    /// same name. TLS 1.2 and 1.3. No session tickets and no resumption: some clients (Microsoft's
    /// mail servers) drop the session when a TLS 1.3 ticket arrives before their own data.
    pub fn server_config(&self, vip_name: &Domain) -> Arc<rustls::ServerConfig> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(vip_name) {
            return Arc::clone(config);
        }
        let config = Arc::new(self.new_server_config(vip_name));
        configs.insert(vip_name.clone(), Arc::clone(&config));
        config
    }

    #[expect(clippy::expect_used, reason = "the provider's default suites cover TLS 1.2 and 1.3")]
    fn new_server_config(&self, vip_name: &Domain) -> rustls::ServerConfig {
        let chooser = Chooser {
            table: Arc::clone(&self.table),
            vip_name: vip_name.as_str().to_owned(),
            default_name: self.default_name.as_str().to_owned(),
        };
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .expect("the default provider supports the default versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(chooser));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config
    }

    /// Looks at the folder and loads what changed. Blocks on the disk.
    ///
    /// # Errors
    /// If the folder itself cannot be read; what was loaded stays in use.
    pub fn reload(&self) -> io::Result<Reloaded> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.read().unwrap_or_else(PoisonError::into_inner).entries.clone();
        let (mut entries, mut done) = (BTreeMap::new(), Reloaded::default());
        for (name, path) in subfolders(&self.folder)? {
            match load(&name, &path, old.get(&name), &self.provider) {
                Ok(entry) => {
                    if !old.get(&name).is_some_and(|known| Arc::ptr_eq(known, &entry)) {
                        done.changed.push(name.clone());
                    }
                    entries.insert(name, entry);
                }
                Err(reason) => {
                    if let Some(known) = old.get(&name) {
                        entries.insert(name.clone(), Arc::clone(known));
                    }
                    done.problems.push((name, reason));
                }
            }
        }
        done.removed = old.keys().filter(|name| !entries.contains_key(*name)).cloned().collect();
        self.table.write().unwrap_or_else(PoisonError::into_inner).entries = entries;
        report(reported, &done);
        Ok(done)
    }

    /// Reloads what changes in the folder, until `shutdown`.
    pub async fn watch(self: Arc<Self>, period: Duration, shutdown: Shutdown) {
        let nudge = tokio::sync::Notify::new();
        crate::background::periodically(period, &nudge, &shutdown, || {
            let certificates = Arc::clone(&self);
            async move {
                match tokio::task::spawn_blocking(move || certificates.reload()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the certificate folder cannot be read"),
                    Err(error) => tracing::error!(%error, "reading the certificate folder failed"),
                }
            }
        })
        .await;
    }

    /// Whether a certificate covers the default name.
    pub fn has_default(&self) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.covering(self.default_name.as_str()).is_some()
    }

    /// Whether a certificate covers `name`, wildcards included.
    pub fn covers(&self, name: &Domain) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).covering(name.as_str()).is_some()
    }

    /// What is loaded, by folder name, for doctor and metrics.
    pub fn expiries(&self) -> Vec<Expiry> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.entries.values().map(|entry| entry.expiry.clone()).collect()
    }

    /// Writes `NAME/fullchain.pem` and `NAME/privkey.pem` (0600) with a new self-signed
    /// certificate (P-256, ten years). What is there already is never overwritten.
    ///
    /// # Errors
    /// `AlreadyExists` if either file is there; otherwise what the disk said.
    pub fn write_self_signed(folder: &Path, name: &Domain) -> io::Result<()> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        let mut parameters = rcgen::CertificateParams::new(vec![name.as_str().to_owned()]).map_err(io::Error::other)?;
        let now = Timestamp::now();
        let moment = |at: Timestamp| UNIX_EPOCH + Duration::from_secs(at.as_secs());
        parameters.not_before = moment(now).into();
        parameters.not_after = moment(now.plus(SELF_SIGNED_FOR)).into();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name.as_str());
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;

        let folder = folder.join(name.as_str());
        fs::create_dir_all(&folder)?;
        write_new(&folder.join(KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&folder.join(CHAIN_FILE), certificate.pem().as_bytes(), 0o644)?;
        fs::File::open(&folder)?.sync_all()
    }
}

impl Table {
    /// The best certificate for `name`: the folder of that name if it covers it, else the one that
    /// lasts longest; an exact name before a wildcard.
    fn covering(&self, name: &str) -> Option<&Arc<Entry>> {
        if let Some(entry) = self.entries.get(name)
            && entry.expiry.names.iter().any(|covered| covers(covered, name))
        {
            return Some(entry);
        }
        let rank = |entry: &&Arc<Entry>| {
            let exact = entry.expiry.names.iter().any(|covered| covered == name);
            (exact, entry.expiry.not_after)
        };
        self.entries
            .values()
            .filter(|entry| entry.expiry.names.iter().any(|covered| covers(covered, name)))
            .max_by_key(rank)
    }
}

/// Picks the certificate of one handshake from what is loaded at that moment.
struct Chooser {
    table: Arc<RwLock<Table>>,
    vip_name: String,
    default_name: String,
}

impl Chooser {
    /// By SNI, else by the virtual IP's name, else the default, else any: a client that does not
    /// verify is better served with the wrong name than with no TLS at all.
    fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let asked = server_name.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let entry = asked
            .as_deref()
            .and_then(|name| table.covering(name))
            .or_else(|| table.covering(&self.vip_name))
            .or_else(|| table.covering(&self.default_name))
            .or_else(|| table.entries.values().max_by_key(|entry| entry.expiry.not_after))?;
        Some(Arc::clone(&entry.key))
    }
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Chooser({}, else {})", self.vip_name, self.default_name)
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// Whether a certificate's name covers a host: itself, or `*.` for exactly one label (RFC 6125 s6.4.3).
fn covers(covered: &str, host: &str) -> bool {
    match covered.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => covered == host,
    }
}

fn subfolders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase());
        if let Some(name) = name.filter(|name| !name.starts_with('.'))
            && path.is_dir()
        {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

fn load(name: &str, path: &Path, known: Option<&Arc<Entry>>, provider: &CryptoProvider) -> Result<Arc<Entry>, String> {
    let stamp = [stamp(&path.join(CHAIN_FILE))?, stamp(&path.join(KEY_FILE))?];
    if let Some(known) = known.filter(|known| known.stamp == stamp) {
        return Ok(Arc::clone(known));
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&path.join(CHAIN_FILE))?)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{CHAIN_FILE}: {error}"))?;
    let first = chain.first().ok_or_else(|| format!("{CHAIN_FILE} holds no certificate"))?;
    let expiry = expiry(name, first)?;
    let pem = zeroize::Zeroizing::new(read(&path.join(KEY_FILE))?);
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("{KEY_FILE}: {error}"))?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| format!("{CHAIN_FILE} and {KEY_FILE} do not fit together: {error}"))?;
    Ok(Arc::new(Entry { stamp, key: Arc::new(key), expiry }))
}

fn expiry(name: &str, certificate: &CertificateDer<'_>) -> Result<Expiry, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| format!("{CHAIN_FILE}: {error}"))?;
    let mut names: Vec<String> = match certificate.subject_alternative_name() {
        Ok(Some(alternative)) => alternative
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    if names.is_empty() {
        // Old or hand-made certificates without alternative names: the folder says what it is for.
        names.push(name.to_owned());
    }
    let moment =
        |at: x509_parser::time::ASN1Time| Timestamp(u64::try_from(at.timestamp()).unwrap_or(0).saturating_mul(1000));
    let itself = certificate.issuer().as_raw() == certificate.subject().as_raw();
    Ok(Expiry {
        folder: name.to_owned(),
        names,
        not_before: moment(certificate.validity().not_before),
        not_after: moment(certificate.validity().not_after),
        issuer: if itself { Issuer::Itself } else { Issuer::Authority },
    })
}

fn stamp(path: &Path) -> Result<Stamp, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("{}: {error}", file_name(path)))?;
    if metadata.len() > PEM_BYTES_MAX {
        return Err(format!("{} is larger than {PEM_BYTES_MAX} bytes", file_name(path)));
    }
    Ok((metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", file_name(path)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Logs each new problem once, and what was loaded; forgets problems that are gone.
fn report(mut reported: MutexGuard<'_, BTreeMap<String, String>>, done: &Reloaded) {
    for name in &done.changed {
        tracing::info!(certificate = %name, "certificate loaded");
    }
    for name in &done.removed {
        tracing::warn!(certificate = %name, "certificate folder is gone; it is no longer used");
    }
    let now: BTreeMap<String, String> = done.problems.iter().cloned().collect();
    for (name, reason) in &now {
        if reported.get(name) != Some(reason) {
            tracing::error!(certificate = %name, %reason, "certificate not loaded; an older one stays in use");
        }
    }
    *reported = now;
}

#[cfg(test)]
mod tests;
