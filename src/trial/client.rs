//! The trial's own mail client: one message over implicit TLS with AUTH PLAIN, as a shop would send it.
//!
//! Independent of `smtp` and `delivery` on purpose, so that the trial does not prove our code with itself.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long the trial waits for one reply.
const REPLY_PATIENCE: Duration = Duration::from_secs(30);

/// Where and as whom to send.
pub(super) struct Login<'a> {
    /// The door's address (implicit TLS).
    pub(super) door: SocketAddr,
    /// The name on its certificate.
    pub(super) name: &'a str,
    /// The PEM file with that certificate, which is trusted for this one connection.
    pub(super) certificate: &'a Path,
    /// User name.
    pub(super) login: &'a str,
    /// Password.
    pub(super) password: &'a str,
}

/// Sends one message and gives back the reply that took responsibility, and the TLS version used.
pub(super) async fn send(login: &Login<'_>, from: &str, to: &str, message: &str) -> io::Result<(String, String)> {
    let mut session = Session::open(login).await?;
    let tls = session.tls_version();
    session.expect("220").await?;
    session.command("EHLO laptop.example", "250").await?;
    let proof = STANDARD.encode(format!("\0{}\0{}", login.login, login.password));
    session.command(&format!("AUTH PLAIN {proof}"), "235").await?;
    session.command(&format!("MAIL FROM:<{from}>"), "250").await?;
    session.command(&format!("RCPT TO:<{to}>"), "250").await?;
    session.command("DATA", "354").await?;
    let reply = session.command(&format!("{message}\r\n."), "250").await?;
    session.command("QUIT", "221").await?;
    Ok((reply, tls))
}

struct Session {
    stream: BufReader<TlsStream<TcpStream>>,
}

impl Session {
    async fn open(login: &Login<'_>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(login.certificate).map_err(io::Error::other)? {
            roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(login.name.to_owned()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(login.door).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn tls_version(&self) -> String {
        let (_, connection) = self.stream.get_ref().get_ref();
        connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}").replace('_', "."))
    }

    async fn command(&mut self, line: &str, code: &str) -> io::Result<String> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        self.stream.flush().await?;
        self.expect(code).await
    }

    /// Reads one reply; the text of its last line.
    async fn expect(&mut self, code: &str) -> io::Result<String> {
        loop {
            let mut line = String::new();
            timeout(REPLY_PATIENCE, self.stream.read_line(&mut line)).await??;
            let line = line.trim_end();
            if !line.starts_with(code) {
                return Err(io::Error::other(format!("the door answered {line:?} instead of {code}")));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.get(4..).unwrap_or_default().to_owned());
            }
        }
    }
}
