//! A whole daemon in a temporary folder on free loopback ports, with helpers that do what an
//! operator would do by command line, and a small client that hands one message in.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern::access::Actor;
use postern::accounts::{Limits, NewSmtpAccount};
use postern::config::{self, Config, FeedbackDoor};
use postern::daemon::{Daemon, Overrides};
use postern::domains::Trust;
use postern::ext::{Timestamp, random_bytes};
use postern::mail::{Address, Class, Domain, TenantId};
use postern::net::{Certificates, Zone, ZoneServer};
use postern::seal::MasterKey;
use postern::submission::{GivenSocket, PortMode};
use postern::vips::{NewVip, Owner, Vip};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};

/// The machine's name in tests.
pub const HOSTNAME: &str = "mx.postern.test";

/// A daemon and what it stands on. Stop it before it is dropped, or its folder goes while it writes.
pub struct Running {
    /// The daemon.
    pub daemon: Daemon,
    /// Everything on disk.
    pub folder: Arc<TempDir>,
    /// Its DNS.
    pub zone: Arc<ZoneServer>,
    /// Where TLS comes first.
    pub tls: SocketAddr,
    /// With STARTTLS.
    pub starttls: SocketAddr,
}

/// A login.
pub struct Login {
    /// User name.
    pub login: String,
    /// Password.
    pub password: String,
}

/// A folder with key and certificate, as `postern init` would make it.
pub fn new_folder() -> Arc<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    MasterKey::generate(&folder.path().join("master.key")).unwrap();
    Certificates::write_self_signed(&folder.path().join("certificates"), &domain(HOSTNAME)).unwrap();
    Arc::new(folder)
}

/// The text of a configuration whose paths are all in `folder`, followed by `more`.
pub fn config_text(folder: &Path, more: &str) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        "hostname = \"{HOSTNAME}\"\ndata = \"{}\"\nallow_root = true\ntls.certificates = \"{}\"\n\
         secrets.master_key = \"{}\"\nsecrets.backup_key = \"{}\"\nadmin.socket = \"{}\"\nadmin.group = \"\"\nadmin.listen = []\n{more}",
        path("data"),
        path("certificates"),
        path("master.key"),
        path("backup.key"),
        path("admin.sock"),
    )
}

/// A checked configuration for tests: private addresses allowed, mail exchangers at `mx_port`.
pub fn config(folder: &Path, zone: &ZoneServer, mx_port: u16) -> Config {
    let more = format!(
        "dns.servers = [\"{}\"]\ndelivery.port = {mx_port}\ndelivery.private_addresses = \"allow\"\n",
        zone.address()
    );
    let mut config = config::read(&folder.join("postern.toml"), &config_text(folder, &more)).unwrap();
    // Free ports are not for the file: a test binds its own sockets and hands them over.
    config.submission.tls_ports.clear();
    config.submission.starttls_ports.clear();
    config.feedback.submission.starttls_ports.clear();
    config.monitor = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    config
}

impl Running {
    /// Starts in a new folder; its mail exchangers are at `mx_port` of the addresses in `zone`.
    pub async fn start(zone: Zone, mx_port: u16) -> Self {
        let zone = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        Self::start_in(new_folder(), Arc::new(zone), mx_port).await
    }

    /// Starts in a folder that is there already.
    pub async fn start_in(folder: Arc<TempDir>, zone: Arc<ZoneServer>, mx_port: u16) -> Self {
        let config = config(folder.path(), &zone, mx_port);
        Self::start_with(config, folder, zone).await
    }

    /// Starts in a new folder, with a door for what comes back.
    pub async fn start_with_feedback(zone: Zone, mx_port: u16) -> (Self, SocketAddr) {
        let zone = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        let (folder, zone) = (new_folder(), Arc::new(zone));
        let mut config = config(folder.path(), &zone, mx_port);
        // Free at this moment, and at an address that no other test binds to.
        let [a, b, c] = random_bytes::<3>();
        let free =
            TcpListener::bind((Ipv4Addr::new(127, 64 | a, b, c.clamp(1, 254)), 0)).unwrap().local_addr().unwrap();
        config.feedback.door = FeedbackDoor::On;
        config.feedback.listen = vec![free];
        config.feedback.room.forward_to = Some(Address::parse("ops@there.test").unwrap());
        (Self::start_with(config, folder, zone).await, free)
    }

    /// Starts with a configuration of the test's own.
    pub async fn start_with(config: Config, folder: Arc<TempDir>, zone: Arc<ZoneServer>) -> Self {
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = |mode| {
            let listener = TcpListener::bind(bind).unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), GivenSocket { listener, mode })
        };
        let (tls, first) = socket(PortMode::TlsFirst);
        let (starttls, second) = socket(PortMode::Starttls);
        let overrides = Overrides { sockets: vec![first, second], ..Overrides::default() };
        let daemon = Daemon::start(config, overrides).await.unwrap();
        Self { daemon, folder, zone, tls, starttls }
    }

    /// Stops it; what it stood on, to start again.
    pub async fn stop(self) -> (Arc<TempDir>, Arc<ZoneServer>) {
        assert_eq!(self.daemon.stop().await, 0, "tasks did not end in time");
        (self.folder, self.zone)
    }

    /// `postern tenant add`.
    pub async fn tenant(&self, name: &str) -> TenantId {
        self.daemon.accounts.add_tenant(&operator(), name, Timestamp::now()).await.unwrap().id
    }

    /// `postern vip add`, with a local IPv4 address.
    pub async fn vip(&self, address: Ipv4Addr, ehlo: &str, owner: Owner) -> Vip {
        let new =
            NewVip { ipv4: Some(address), ipv6: None, public_ipv4: None, public_ipv6: None, ehlo: domain(ehlo), owner };
        self.daemon.vips.add(&operator(), new, Timestamp::now()).await.unwrap()
    }

    /// `postern domain add` and `trust`: no DNS is asked.
    pub async fn trusted_domain(&self, tenant: TenantId, name: &str) {
        let (domains, name, now) = (&self.daemon.domains, domain(name), Timestamp::now());
        domains.add(&operator(), tenant, &name, now).await.unwrap();
        domains.set_trust(&operator(), (tenant, &name), Trust::ByOperator, now).await.unwrap();
    }

    /// `postern smtp-account add`.
    pub async fn account(&self, tenant: TenantId) -> Login {
        let new = NewSmtpAccount {
            class: Class::Transactional,
            allowed_from: Vec::new(),
            limits: Limits::default(),
            ..Default::default()
        };
        let made = self.daemon.accounts.add_smtp_account(&operator(), tenant, new, Timestamp::now()).await.unwrap();
        Login { login: made.0.login, password: made.1.to_string() }
    }

    /// Hands a message in at the port where TLS comes first; the reply to its end, or the first
    /// refusal on the way.
    pub async fn submit(&self, login: &Login, from: &str, to: &str, message: &str) -> String {
        Client::connect(self.tls).await.hand_in(login, from, to, message).await
    }
}

/// A client of the submission port.
pub struct Client {
    stream: BufStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
}

impl Client {
    /// Connects with TLS first, takes any certificate, reads the greeting.
    pub async fn connect(address: SocketAddr) -> Self {
        let tls = postern::net::ClientTls::new(None).unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (stream, _) = tls.connect(&postern::net::Verify::Opportunistic, HOSTNAME, stream).await.unwrap();
        let mut client = Self { stream: BufStream::new(stream) };
        let greeting = client.reply().await;
        assert!(greeting.starts_with("220 "), "{greeting}");
        client
    }

    /// Logs in and hands a message in; the reply to its end, or the first refusal on the way.
    pub async fn hand_in(&mut self, login: &Login, from: &str, to: &str, message: &str) -> String {
        let plain = base64(format!("\0{}\0{}", login.login, login.password).as_bytes());
        let commands = ["EHLO client.test".to_owned(), format!("AUTH PLAIN {plain}")];
        let rest = [format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>"), "DATA".to_owned()];
        for command in commands.into_iter().chain(rest) {
            let reply = self.say(&command).await;
            if !reply.starts_with(['2', '3']) {
                return reply;
            }
        }
        let stuffed = message.replace("\r\n.", "\r\n..");
        self.say(&format!("{stuffed}\r\n.")).await
    }

    /// Says a line (or a whole message) and reads the reply, all its lines.
    pub async fn say(&mut self, line: &str) -> String {
        self.say_octets(line.as_bytes()).await
    }

    /// The same with octets that need not be text.
    pub async fn say_octets(&mut self, line: &[u8]) -> String {
        self.stream.write_all(line).await.unwrap();
        self.stream.write_all(b"\r\n").await.unwrap();
        self.stream.flush().await.unwrap();
        self.reply().await
    }

    async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            let read = self.stream.read_line(&mut reply).await.unwrap();
            if read == 0 || reply.as_bytes()[start..].get(3) != Some(&b'-') {
                return reply;
            }
        }
    }
}

/// The answer of the monitor to `GET path`, headers included.
pub async fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A sink's folder needs a certificate of its own.
pub fn certificate_folder(folder: &Path, name: &str) -> PathBuf {
    Certificates::write_self_signed(folder, &domain(name)).unwrap();
    folder.join(name)
}

/// The operator.
pub fn operator() -> Actor {
    Actor::local(0)
}

/// A domain known to be one.
pub fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
