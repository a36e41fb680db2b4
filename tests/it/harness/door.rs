//! The SMTP door alone, in this process: real listeners, TLS, accounts and virtual IPs over a
//! store in memory; an intake that keeps what it is given. And a client that says what it is told.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use postern::access::Actor;
use postern::accounts::{self, Accounts, NewSmtpAccount};
use postern::background::Shutdown;
use postern::ext::Timestamp;
use postern::intake::Submission;
use postern::mail::{Class, Domain, QueueId, Refusal, Reply};
use postern::net::Certificates;
use postern::store::MemoryStore;
use postern::submission::{self, Arrival, GivenSocket, PortMode};
use postern::vips::{NewVip, Owner, Vips};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// The EHLO name of the door's only virtual IP.
pub const NAME: &str = "mx.example.com";
/// The domain its tenant may send from.
pub const OWN_DOMAIN: &str = "shop.example";

/// A running door. Dropping it stops it at once.
pub struct Door {
    pub tls_port: SocketAddr,
    pub starttls_port: SocketAddr,
    pub login: String,
    pub password: String,
    pub accepted: Kept<Submission>,
    pub arrived: Kept<Arrival>,
    pub accounts: Arc<Accounts>,
    pub vips: Arc<Vips>,
    pub stop: Shutdown,
    pub drafts_folder: std::path::PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
    finished: Arc<Mutex<bool>>,
    _folder: tempfile::TempDir,
}

/// Certificates made once for all tests.
fn certificates() -> Arc<Certificates> {
    static MADE: OnceLock<(tempfile::TempDir, Arc<Certificates>)> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let name = Domain::parse(NAME).unwrap();
        Certificates::write_self_signed(folder.path(), &name).unwrap();
        let certificates = Certificates::open(folder.path(), &name).unwrap();
        (folder, Arc::new(certificates))
    });
    Arc::clone(&made.1)
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl Door {
    pub fn start(settings: submission::Settings) -> Self {
        Self::start_on(settings, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// A door for what comes back: it takes mail to `tag@bounce.example`.
    pub fn start_for_reception(settings: submission::Settings) -> Self {
        Self::start_as(settings, IpAddr::V4(Ipv4Addr::LOCALHOST), For::Reception)
    }

    /// With a virtual IP at `address`; the given sockets are on 127.0.0.1 all the same.
    pub fn start_on(settings: submission::Settings, address: IpAddr) -> Self {
        Self::start_as(settings, address, For::Submission)
    }

    fn start_as(settings: submission::Settings, address: IpAddr, what: For) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let logins = accounts::Settings {
            login_failures_free_max: 1000,
            network_failures_max: 1000,
            login_delay_max: Duration::from_millis(10),
            ..accounts::Settings::default()
        };
        let accounts = Arc::new(Accounts::open(store.clone(), logins).unwrap());
        let vips = Arc::new(Vips::open(store).unwrap());
        let (actor, now) = (Actor::system("test"), Timestamp::now());
        let (login, password) = runtime.block_on(async {
            let tenant = accounts.add_tenant(&actor, "shop", now).await.unwrap();
            let new = NewSmtpAccount {
                class: Class::Transactional,
                allowed_from: Vec::new(),
                limits: accounts::Limits::default(),
                ..Default::default()
            };
            let (account, password) = accounts.add_smtp_account(&actor, tenant.id, new, now).await.unwrap();
            let (IpAddr::V4(ipv4), ehlo) = (address, Domain::parse(NAME).unwrap()) else { panic!("IPv4") };
            let owner = Owner::Tenant(tenant.id);
            let new = NewVip { ipv4: Some(ipv4), ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner };
            vips.add(&actor, new, now).await.unwrap();
            (account.login, password.to_string())
        });
        let ((tls, tls_port), (starttls, starttls_port)) = (listen(), listen());
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let drafts_folder = folder.path().to_owned();
        let parts = submission::Parts {
            settings: tokio::sync::watch::channel(Arc::new(settings)).1,
            gate: Arc::new(postern::gate::Gate::new(postern::gate::Settings::default())),
            duty: what.duty(&accounts, &accepted, &arrived),
            vips: Arc::clone(&vips),
            certificates: certificates(),
            drafts_folder: drafts_folder.clone(),
            tracer: Arc::default(),
            given_sockets: vec![
                GivenSocket { listener: tls, mode: PortMode::TlsFirst },
                GivenSocket { listener: starttls, mode: PortMode::Starttls },
            ],
        };
        let (stop, finished) = (Shutdown::new(), Arc::new(Mutex::new(false)));
        let (token, done) = (stop.clone(), Arc::clone(&finished));
        runtime.spawn(async move {
            submission::run(parts, token).await;
            *done.lock().unwrap() = true;
        });
        let runtime = Some(runtime);
        let _folder = folder;
        Self {
            tls_port,
            starttls_port,
            login,
            password,
            accepted,
            arrived,
            accounts,
            vips,
            stop,
            drafts_folder,
            runtime,
            finished,
            _folder,
        }
    }

    /// Whether the door has returned from its run.
    pub fn is_finished(&self) -> bool {
        *self.finished.lock().unwrap()
    }

    /// Runs something on the door's own runtime.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    /// A client that is connected to the port with TLS first, and logged in.
    pub fn logged_in(&self) -> Client {
        let mut client = Client::connect(self.tls_port);
        client.secure();
        client.expect("220");
        client.say("EHLO c.example");
        client.expect("250");
        client.say(&format!("AUTH PLAIN {}", plain(&self.login, &self.password)));
        client.expect("235");
        client
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a door took, in its order.
type Kept<T> = Arc<Mutex<Vec<T>>>;

/// What a door is for.
enum For {
    Submission,
    Reception,
}

impl For {
    fn duty(self, accounts: &Arc<Accounts>, accepted: &Kept<Submission>, arrived: &Kept<Arrival>) -> submission::Duty {
        match self {
            Self::Submission => submission::Duty::Submission(submission::Submitting {
                accounts: Arc::clone(accounts),
                may_send_from: Arc::new(|_, domain| own_domain_only(domain)),
                may_enter: Arc::new(|_, _| Ok(())),
                accept: keep(accepted),
            }),
            Self::Reception => submission::Duty::Reception(reception(arrived)),
        }
    }
}

/// Takes mail to `tag@bounce.example` and to the postmaster, but not what has the subject `refuse`.
fn reception(arrived: &Kept<Arrival>) -> submission::Reception {
    let arrived = Arc::clone(arrived);
    submission::Reception {
        is_open: Arc::new(|| true),
        addresses: Vec::new(),
        hostname: Domain::parse(NAME).unwrap(),
        sender: Arc::new(|_| Ok(())),
        recipient: Arc::new(|_, path, _| match path.address.to_string().as_str() {
            "tag@bounce.example" => Ok(()),
            // As what comes back is asked: its own name and no other.
            address if address.eq_ignore_ascii_case(&format!("postmaster@{NAME}")) => Ok(()),
            other if other.ends_with("@bounce.example") => {
                Err(Refusal::plain(Reply::enhanced(550, 1, 1, "There is no such address here")))
            }
            _ => Err(Refusal::plain(Reply::enhanced(550, 7, 1, "This server takes no mail for that domain"))),
        }),
        accept: Arc::new(move |arrival, _| {
            let arrived = Arc::clone(&arrived);
            Box::pin(async move {
                if arrival.draft.header.text("Subject").as_deref() == Some("refuse") {
                    return Err(Refusal::with_cause(Reply::enhanced(451, 3, 0, "Try again later"), "by subject"));
                }
                arrived.lock().unwrap().push(arrival);
                Ok(())
            })
        }),
    }
}

fn own_domain_only(domain: &Domain) -> Result<(), Refusal> {
    if domain.as_str() == OWN_DOMAIN {
        return Ok(());
    }
    Err(Refusal::plain(Reply::enhanced(550, 7, 1, format!("{domain} is not verified for this tenant"))))
}

/// An intake that keeps messages, refuses those with the subject `refuse`, and is slow with `slow`.
fn keep(accepted: &Kept<Submission>) -> submission::Accept {
    let accepted = Arc::clone(accepted);
    Arc::new(move |submission, now| {
        let accepted = Arc::clone(&accepted);
        Box::pin(async move {
            match submission.draft.header.text("Subject").as_deref() {
                Some("refuse") => {
                    return Err(Refusal::with_cause(Reply::enhanced(451, 3, 0, "Try again later"), "by subject"));
                }
                Some("slow") => tokio::time::sleep(Duration::from_millis(700)).await,
                _ => {}
            }
            accepted.lock().unwrap().push(submission);
            Ok(QueueId::new(now))
        })
    })
}

/// Base64 of NUL login NUL password.
pub fn plain(login: &str, password: &str) -> String {
    base64_of(format!("\0{login}\0{password}").as_bytes())
}

pub fn base64_of(octets: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(octets)
}

/// A blocking client.
pub struct Client {
    stream: Stream,
    held: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Gone,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream: Stream::Plain(stream), held: Vec::new() }
    }

    /// Shakes hands.
    pub fn secure(&mut self) {
        self.try_secure().expect("the handshake succeeds");
    }

    pub fn try_secure(&mut self) -> io::Result<()> {
        let Stream::Plain(mut stream) = std::mem::replace(&mut self.stream, Stream::Gone) else { panic!("TLS twice") };
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        let name = ServerName::try_from(NAME).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        connection.complete_io(&mut stream)?;
        self.stream = Stream::Tls(Box::new(StreamOwned::new(connection, stream)));
        Ok(())
    }

    pub fn say(&mut self, line: &str) {
        self.send(format!("{line}\r\n").as_bytes()).unwrap();
    }

    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
            Stream::Gone => return Err(io::ErrorKind::NotConnected.into()),
        };
        stream.write_all(octets)?;
        stream.flush()
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
            Stream::Gone => panic!("no connection"),
        }
    }

    pub fn set_patience(&self, patience: Duration) {
        self.socket().set_read_timeout(Some(patience)).unwrap();
    }

    /// The next line without its CR LF; `None` at the end.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(at) = self.held.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.held[..at]).into_owned();
                self.held.drain(..at + 2);
                return Ok(Some(line));
            }
            let mut buffer = [0; 4096];
            let stream: &mut dyn Read = match &mut self.stream {
                Stream::Plain(stream) => stream,
                Stream::Tls(stream) => stream,
                Stream::Gone => return Ok(None),
            };
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.held.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A whole reply, its lines joined by `|`.
    pub fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let Some(line) = self.line().expect("a reply comes") else { return lines.join("|") + "<end>" };
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if is_last {
                return lines.join("|");
            }
        }
    }

    /// Asserts the beginning of the next reply.
    pub fn expect(&mut self, beginning: &str) -> String {
        let reply = self.reply();
        assert!(reply.starts_with(beginning), "expected {beginning:?}, got {reply:?}");
        reply
    }

    /// Whether the server has closed, all replies read.
    pub fn is_at_end(&mut self) -> bool {
        matches!(self.line(), Ok(None))
    }
}

/// Trusts every certificate: for tests that look at something else.
#[derive(Debug)]
pub struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
