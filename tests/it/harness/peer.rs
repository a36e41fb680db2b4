//! A scripted mail exchanger over real sockets: polite by default, hostile by rules.
//!
//! A rule names the beginning of a command (upper case; `""` is the greeting, `.` the final dot),
//! how often it applies, and what is done instead of the polite reply.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What a peer does where a rule applies.
#[derive(Clone, Debug)]
pub enum Act {
    /// These bytes, with CR LF added.
    Say(&'static str),
    /// These bytes, exactly.
    SayRaw(&'static [u8]),
    /// Say and hang up.
    SayAndClose(&'static str),
    /// Hang up without a word.
    Close,
    /// Break the connection off, so that the other side sees a reset.
    Reset,
    /// The polite reply, one octet at a time with this pause.
    Drip(Duration),
    /// Never answer.
    Silence,
    /// Bytes without end, no line end among them.
    EndlessLine,
    /// Lines without end.
    EndlessLines,
    /// Octets without end, this pause after each, no line end among them.
    EndlessDrip(Duration),
    /// 354, then hang up after so many octets of the message.
    CloseWithinMessage(usize),
    /// 220, then something that is no TLS.
    BrokenHandshake,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    command: &'static str,
    times: usize,
    act: Act,
}

/// One message as a peer took it.
#[derive(Clone, Debug)]
pub struct Taken {
    /// MAIL's line.
    pub mail: String,
    /// RCPT's lines that were accepted.
    pub recipients: Vec<String>,
    /// The text, dots unstuffed.
    pub text: Vec<u8>,
    /// Whether it came under TLS.
    pub tls: bool,
    /// Where it came from.
    pub from: IpAddr,
}

/// What a peer saw.
#[derive(Default)]
pub struct Seen {
    /// Messages with a 250 to the final dot.
    pub taken: Vec<Taken>,
    /// Every command line.
    pub lines: Vec<String>,
    /// Connections.
    pub connections: usize,
}

/// How a peer is to behave.
#[derive(Clone)]
pub struct Script {
    offers: Vec<&'static str>,
    rules: Arc<Mutex<Vec<Rule>>>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    implicit_tls: bool,
}

impl Script {
    /// Polite, with PIPELINING and 8BITMIME.
    pub fn polite() -> Self {
        Self {
            offers: vec!["PIPELINING", "8BITMIME", "SIZE 10000000"],
            rules: Arc::default(),
            tls: None,
            implicit_tls: false,
        }
    }

    /// Offers exactly these extensions.
    pub fn offering(mut self, offers: &[&'static str]) -> Self {
        self.offers = offers.to_vec();
        self
    }

    /// From now on, whenever a line begins with `command`.
    pub fn always(self, command: &'static str, act: Act) -> Self {
        self.times(command, usize::MAX, act)
    }

    /// The next time only.
    pub fn once(self, command: &'static str, act: Act) -> Self {
        self.times(command, 1, act)
    }

    /// The next `times` times.
    pub fn times(self, command: &'static str, times: usize, act: Act) -> Self {
        self.rules.lock().unwrap().push(Rule { command, times, act });
        self
    }

    /// Offers STARTTLS with a certificate of its own making for `name`; gives the certificate too.
    pub fn with_tls(self, name: &str) -> (Self, CertificateDer<'static>) {
        self.secured(name, rustls::DEFAULT_VERSIONS, None)
    }

    /// The same, over this version, to nobody who shows no certificate of his own.
    pub fn with_tls_for_known_clients(
        self,
        name: &str,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> (Self, CertificateDer<'static>) {
        let known = rcgen::generate_simple_self_signed(vec!["client.example".to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(known.cert.der().clone()).unwrap();
        self.secured(name, &[version], Some(Arc::new(roots)))
    }

    fn secured(
        mut self,
        name: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
        clients: Option<Arc<rustls::RootCertStore>>,
    ) -> (Self, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = match clients {
            None => rustls::server::WebPkiClientVerifier::no_client_auth(),
            Some(roots) => {
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().unwrap()
            }
        };
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        self.tls = Some(Arc::new(config).into());
        self.offers.push("STARTTLS");
        (self, certificate)
    }

    /// TLS from the first byte.
    pub fn implicit(mut self) -> Self {
        self.implicit_tls = true;
        self
    }

    fn ehlo(&self, is_tls: bool) -> String {
        let mut lines = vec!["250-mx.example".to_owned()];
        let offers = self.offers.iter().filter(|offer| !is_tls || **offer != "STARTTLS");
        lines.extend(offers.map(|offer| format!("250-{offer}")));
        lines.push("250 HELP".to_owned());
        lines.join("\r\n")
    }

    fn act(&self, line: &str) -> Option<Act> {
        let mut rules = self.rules.lock().unwrap();
        let matches = |rule: &&mut Rule| {
            rule.times > 0 && if rule.command.is_empty() { line.is_empty() } else { line.starts_with(rule.command) }
        };
        let rule = rules.iter_mut().find(matches)?;
        rule.times = rule.times.saturating_sub(1);
        Some(rule.act.clone())
    }
}

/// A running peer.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it saw.
    pub seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Peer {
    /// Listens on `address` (port 0 picks one).
    pub async fn start(address: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, from.ip(), script.clone(), shared.clone()));
            }
        });
        Self { address, seen, task }
    }

    /// Messages taken so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.seen.lock().unwrap().taken.clone()
    }

    /// Command lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().lines.clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Turn {
    Go,
    StartTls,
}

async fn serve(stream: TcpStream, from: IpAddr, script: Script, seen: Arc<Mutex<Seen>>) {
    let tls = script.tls.clone();
    if script.implicit_tls {
        if let Ok(stream) = tls.unwrap().accept(stream).await {
            let _ = converse(&mut BufReader::new(stream), from, &script, &seen, (true, true)).await;
        }
        return;
    }
    let mut plain = BufReader::new(stream);
    match converse(&mut plain, from, &script, &seen, (false, true)).await {
        Ok(Turn::StartTls) => match tls.unwrap().accept(plain.into_inner()).into_fallible().await {
            Ok(stream) => {
                let _ = converse(&mut BufReader::new(stream), from, &script, &seen, (true, false)).await;
            }
            // Closed with octets unread, the alert might be lost on its way.
            Err((_, mut stream)) => {
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
            let _ = plain.get_ref().set_zero_linger();
        }
        Ok(Turn::Go) | Err(_) => {}
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    from: IpAddr,
    script: &Script,
    seen: &Arc<Mutex<Seen>>,
    (is_tls, greets): (bool, bool),
) -> std::io::Result<Turn> {
    if greets {
        answer(stream, script.act(""), "220 mx.example ESMTP").await?;
    }
    let (mut mail, mut recipients) = (String::new(), Vec::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(Turn::Go);
        }
        let line = line.trim_end().to_owned();
        seen.lock().unwrap().lines.push(line.clone());
        let upper = line.to_ascii_uppercase();
        let act = script.act(&upper);
        let verb = upper.split(' ').next().unwrap_or_default();
        match verb {
            "EHLO" => {
                answer(stream, act, &script.ehlo(is_tls)).await?;
            }
            "STARTTLS" => {
                let goes_on = act.is_none();
                let breaks = matches!(act, Some(Act::BrokenHandshake));
                answer(stream, act, "220 go ahead").await?;
                if goes_on {
                    return Ok(Turn::StartTls);
                }
                if breaks {
                    // After the first bytes of the handshake, or it would be injection.
                    stream.read_exact(&mut [0; 5]).await?;
                    stream.write_all(b"this is no TLS at all\r\n").await?;
                    stream.flush().await?;
                    return Err(std::io::ErrorKind::Other.into());
                }
            }
            "MAIL" => {
                let said = answer(stream, act, "250 2.1.0 ok").await?;
                (mail, recipients) = (if said { line } else { String::new() }, Vec::new());
            }
            "RCPT" => {
                if answer(stream, act, "250 2.1.5 ok").await? {
                    recipients.push(line);
                }
            }
            "DATA" if recipients.is_empty() && act.is_none() => {
                answer(stream, None, "503 5.5.1 RCPT first").await?;
            }
            "DATA" => {
                if let Some(text) = take_message(stream, act, script).await? {
                    let (mail, recipients) = (mail.clone(), recipients.clone());
                    if !recipients.is_empty() {
                        seen.lock().unwrap().taken.push(Taken { mail, recipients, text, tls: is_tls, from });
                    }
                }
                recipients.clear();
            }
            "QUIT" => {
                answer(stream, act, "221 bye").await?;
                return Ok(Turn::Go);
            }
            "AUTH" => drop(answer(stream, act, "235 2.7.0 welcome").await?),
            _ => drop(answer(stream, act, "250 ok").await?),
        }
    }
}

/// DATA and what follows; the text if the final dot was answered politely.
async fn take_message<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    act: Option<Act>,
    script: &Script,
) -> std::io::Result<Option<Vec<u8>>> {
    if let Some(Act::CloseWithinMessage(octets)) = act {
        stream.write_all(b"354 go\r\n").await?;
        stream.read_exact(&mut vec![0; octets]).await?;
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    let is_open = matches!(&act, None | Some(Act::Say("354 anyway")));
    answer(stream, act, "354 go").await?;
    if !is_open {
        return Ok(None);
    }
    let text = read_text(stream).await?;
    let is_taken = answer(stream, script.act("."), "250 2.0.0 queued").await?;
    Ok(is_taken.then_some(text))
}

/// Answers; true if it was the polite answer.
async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, act: Option<Act>, polite: &str) -> std::io::Result<bool> {
    let closed = || Err(std::io::ErrorKind::ConnectionAborted.into());
    let mut is_polite = false;
    match act {
        None => {
            stream.write_all(format!("{polite}\r\n").as_bytes()).await?;
            is_polite = true;
        }
        Some(Act::Say(text)) => stream.write_all(format!("{text}\r\n").as_bytes()).await?,
        Some(Act::SayRaw(bytes)) => stream.write_all(bytes).await?,
        Some(Act::SayAndClose(text)) => {
            stream.write_all(format!("{text}\r\n").as_bytes()).await?;
            stream.flush().await?;
            return closed();
        }
        Some(Act::Close | Act::CloseWithinMessage(_)) => return closed(),
        Some(Act::Reset) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Some(Act::BrokenHandshake) => stream.write_all(b"220 go ahead\r\n").await?,
        Some(Act::Drip(pause)) => {
            for byte in format!("{polite}\r\n").bytes() {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
            is_polite = true;
        }
        Some(Act::Silence) => std::future::pending().await,
        Some(Act::EndlessLine) => loop {
            stream.write_all(&[b'x'; 4096]).await?;
        },
        Some(Act::EndlessLines) => loop {
            stream.write_all(b"250-and another thing\r\n").await?;
        },
        Some(Act::EndlessDrip(pause)) => loop {
            stream.write_all(b"2").await?;
            stream.flush().await?;
            tokio::time::sleep(pause).await;
        },
    }
    stream.flush().await?;
    Ok(is_polite)
}

async fn read_text<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            return Ok(text);
        }
        text.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}
