//! Everything the trial puts up: folders, certificates, zone, sink, daemon, and one tenant in it.
//! Dropping it removes the folder; only the sink's thread lasts as long as the process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::client::Login;
use super::{LOOK, Trail};
use crate::access::Actor;
use crate::accounts::{Limits, NewSmtpAccount};
use crate::config::{self, Config};
use crate::daemon::{Daemon, MailLog, Overrides};
use crate::events::Event;
use crate::ext::Timestamp;
use crate::mail::{Class, Domain, TenantId};
use crate::net::{Certificates, Zone, ZoneServer};
use crate::seal::MasterKey;
use crate::sink::{Received, Sink};
use crate::store::{self, Key, after_prefix, codec, prefix};
use crate::vips::{NewVip, Owner};

/// Who sends.
pub(super) const SENDER_DOMAIN: &str = "shop.example";
/// Who receives.
pub(super) const INBOX_DOMAIN: &str = "inbox.example";
/// The virtual IP's EHLO name and the name on the door's certificate.
pub(super) const VIP_NAME: &str = "mx.shop.example";
/// The receiving MX.
const SINK_NAME: &str = "mx.inbox.example";
/// How long the door may take to open.
const DOOR_PATIENCE: Duration = Duration::from_secs(10);
/// How long the stopped daemon's store may take to close.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// Octets of a DNS record shown, at most.
const RECORD_SHOWN_MAX: usize = 40;
/// Events read at once.
const EVENTS_READ_MAX: usize = 200;

/// The running trial.
pub(super) struct Stage {
    /// The door with implicit TLS.
    pub(super) door: SocketAddr,
    /// The door with STARTTLS.
    pub(super) starttls_door: SocketAddr,
    /// The SMTP account.
    pub(super) user: String,
    /// Its password.
    pub(super) password: Zeroizing<String>,
    /// The door's certificate, self-signed.
    pub(super) certificate: PathBuf,
    daemon: Daemon,
    zone: ZoneServer,
    received: Mutex<Receiver<Received>>,
    store_folder: PathBuf,
    folder: TempDir,
}

impl Stage {
    /// Puts everything up.
    pub(super) async fn set(trail: &Trail, log: MailLog) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("postern-try-").tempdir().map_err(text)?;
        let certificates = folder.path().join("certificates");
        for name in [VIP_NAME, SINK_NAME] {
            Certificates::write_self_signed(&certificates, &domain(name)?).map_err(text)?;
        }
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sink = Sink::start(anywhere, SINK_NAME, &certificates.join(SINK_NAME)).map_err(text)?;
        let zone = ZoneServer::bind(anywhere, first_zone()).await.map_err(text)?;
        let ports = [free_port().map_err(text)?, free_port().map_err(text)?];
        let config = configuration(&folder, ports, sink.address.port(), zone.address())?;
        MasterKey::generate(&folder.path().join("master.key")).map_err(text)?;
        let store_folder = config.store.folder.clone();
        let daemon = Daemon::start(config, Overrides { mail_log: log, ..Overrides::default() }).await.map_err(text)?;
        let (user, password) = furnish(&daemon, &zone, trail).await?;
        let stage = Self {
            door: SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0])),
            starttls_door: SocketAddr::from((Ipv4Addr::LOCALHOST, ports[1])),
            user,
            password,
            certificate: certificates.join(VIP_NAME).join("fullchain.pem"),
            daemon,
            zone,
            received: Mutex::new(sink.received),
            store_folder,
            folder,
        };
        stage.wait_for_door().await?;
        Ok(stage)
    }

    /// Takes everything down; what is still owed goes with the folder.
    pub(super) async fn strike(self) {
        let Self { daemon, folder, store_folder, .. } = self;
        daemon.stop().await;
        drop(daemon);
        // Its store writes when it closes, which is when nobody holds it any more; a reader on its way may.
        if !store::closed(&store_folder, STORE_PATIENCE).await {
            eprintln!("postern try: the store is still open after {} s", STORE_PATIENCE.as_secs());
        }
        if let Err(error) = folder.close() {
            eprintln!("postern try: the temporary folder is left behind: {error}");
        }
    }

    /// The zone's address.
    pub(super) fn dns(&self) -> SocketAddr {
        self.zone.address()
    }

    /// How to log in.
    pub(super) fn login(&self) -> Login<'_> {
        Login {
            door: self.door,
            name: VIP_NAME,
            certificate: &self.certificate,
            login: &self.user,
            password: &self.password,
        }
    }

    /// The newest event's key: facts after it are new.
    pub(super) fn newest_event(&self) -> Result<Key, String> {
        let mut seen = vec![prefix::EVENT];
        while !self.read_events(&mut seen)?.is_empty() {}
        Ok(seen)
    }

    /// Events after `seen`, which moves on.
    pub(super) fn events_after(&self, seen: &mut Key) -> Result<Vec<Event>, String> {
        self.read_events(seen)
    }

    fn read_events(&self, seen: &mut Key) -> Result<Vec<Event>, String> {
        let mut from = seen.clone();
        from.push(0);
        let stored = self.daemon.store.range(&from, &after_prefix(&[prefix::EVENT]), EVENTS_READ_MAX).map_err(text)?;
        if let Some((last, _)) = stored.last() {
            seen.clone_from(last);
        }
        stored.iter().map(|(_, value)| codec::decode(value).map_err(text)).collect()
    }

    /// The next message that arrives at the sink, without blocking the runtime.
    pub(super) async fn next_arrival(&self, patience: Duration) -> Result<Received, RecvTimeoutError> {
        let began = Instant::now();
        loop {
            match self.arrived_now() {
                Ok(received) => return Ok(received),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if began.elapsed() > patience => return Err(RecvTimeoutError::Timeout),
                Err(TryRecvError::Empty) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// What has arrived and was not looked at yet.
    pub(super) fn arrived_now(&self) -> Result<Received, TryRecvError> {
        self.received.lock().unwrap_or_else(std::sync::PoisonError::into_inner).try_recv()
    }

    async fn wait_for_door(&self) -> Result<(), String> {
        let began = Instant::now();
        while TcpStream::connect(self.door).await.is_err() {
            if began.elapsed() > DOOR_PATIENCE {
                return Err(format!("nothing listens on {}", self.door));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Tenant, virtual IP, domain with its keys in the zone, SMTP account.
async fn furnish(daemon: &Daemon, zone: &ZoneServer, trail: &Trail) -> Result<(String, Zeroizing<String>), String> {
    let actor = Actor::system("trial");
    let now = Timestamp::now();
    let tenant = daemon.accounts.add_tenant(&actor, "shop", now).await.map_err(text)?;
    daemon.vips.add(&actor, new_vip(tenant.id)?, now).await.map_err(text)?;
    let name = domain(SENDER_DOMAIN)?;
    let added = daemon.domains.add(&actor, tenant.id, &name, now).await.map_err(text)?;
    let mut records = first_zone();
    for record in crate::domains::domain_records(&added, &[]) {
        if record.kind == "TXT" {
            records = records.txt(&record.name, &record.value);
            trail.line("published", &format!("{} TXT {}", record.name, shortened(&record.value)));
        }
    }
    zone.replace(records);
    let verified = daemon.domains.verify(&actor, tenant.id, &name, now).await.map_err(text)?;
    if !verified.domain.is_usable() {
        return Err(format!("{SENDER_DOMAIN} was not verified in the trial's own zone"));
    }
    trail.line("verified", &format!("{SENDER_DOMAIN} belongs to tenant shop: its key is in DNS"));
    let new = NewSmtpAccount {
        class: Class::Transactional,
        allowed_from: Vec::new(),
        limits: Limits::default(),
        ..Default::default()
    };
    let (account, password) = daemon.accounts.add_smtp_account(&actor, tenant.id, new, now).await.map_err(text)?;
    Ok((account.login, password))
}

/// The beginning of a long record.
fn shortened(value: &str) -> String {
    if value.len() > RECORD_SHOWN_MAX { format!("{value:.RECORD_SHOWN_MAX$}...") } else { value.to_owned() }
}

fn new_vip(tenant: TenantId) -> Result<NewVip, String> {
    Ok(NewVip {
        ipv4: Some(Ipv4Addr::LOCALHOST),
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: domain(VIP_NAME)?,
        owner: Owner::Tenant(tenant),
    })
}

/// What does not depend on keys.
fn first_zone() -> Zone {
    Zone::new()
        .mx(INBOX_DOMAIN, 10, SINK_NAME)
        .ipv4(SINK_NAME, Ipv4Addr::LOCALHOST)
        .ipv4(VIP_NAME, Ipv4Addr::LOCALHOST)
        .ptr(Ipv4Addr::LOCALHOST.into(), VIP_NAME)
}

fn configuration(folder: &TempDir, ports: [u16; 2], mx_port: u16, dns: SocketAddr) -> Result<Config, String> {
    let path = |name: &str| toml_text(&folder.path().join(name).to_string_lossy());
    let file = format!(
        "hostname = \"{VIP_NAME}\"\ndata = {data}\nallow_root = true\n\
         [tls]\ncertificates = {certificates}\n[secrets]\nmaster_key = {key}\n\
         [submission]\ntls_ports = [{tls}]\nstarttls_ports = [{starttls}]\n\
         [delivery]\nport = {mx_port}\nprivate_addresses = \"allow\"\n\
         [dns]\nservers = [\"{dns}\"]\n[store]\nfree_bytes_min = \"16 MiB\"\n\
         [admin]\nsocket = {socket}\nlisten = []\n[monitor]\nlisten = \"\"\n",
        data = path("data"),
        certificates = path("certificates"),
        key = path("master.key"),
        socket = path("admin.sock"),
        tls = ports[0],
        starttls = ports[1],
    );
    config::read(&folder.path().join("postern.toml"), &file)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// A basic string of TOML; paths of temporary folders hold no control characters.
fn toml_text(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}

fn free_port() -> std::io::Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(|address| address.port())
}

fn domain(name: &str) -> Result<Domain, String> {
    Domain::parse(name).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
