//! A throwaway receiving MX for trials, on mailin-embedded: software that is not our own judges
//! what arrives. Never a production listener: `docs/decisions/0004-mailin-embedded-is-the-sink-only.md`
//! has the measurements.
//!
//! It keeps what it received in a channel and answers 250 to everything it can parse.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use mailin_embedded::{Handler, Response, Server, SslConfig, response};

/// Sessions at the same time, one thread each.
const SESSIONS_MAX: u32 = 32;
/// Messages kept until somebody takes them; a sender waits beyond that.
const KEPT_MAX: usize = 1024;
/// Octets of one message, at most; the rest is refused with 552.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One message as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Where the connection came from.
    pub peer: IpAddr,
    /// What the client said in EHLO.
    pub helo: String,
    /// The reverse-path, as the library writes it.
    pub reverse_path: String,
    /// The forward-paths.
    pub recipients: Vec<String>,
    /// Header block and body, dots unstuffed.
    pub message: Vec<u8>,
}

/// A running sink. It has no stop: it ends with the process.
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    /// What arrives.
    pub received: Receiver<Received>,
}

/// Why the sink could not start.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The address could not be bound.
    #[error("the receiving MX cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The certificate could not be used.
    #[error("the receiving MX cannot use its certificate: {0}")]
    Certificate(String),
}

impl Sink {
    /// Listens on `address` (port 0 picks one) as `name`, with STARTTLS from the PEM files of `folder`
    /// (`fullchain.pem`, `privkey.pem`).
    pub fn start(address: SocketAddr, name: &str, folder: &Path) -> Result<Self, SinkError> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let (arrived, received) = sync_channel(KEPT_MAX);
        let mut server = Server::new(Keeper::new(arrived));
        let path = |file: &str| folder.join(file).to_string_lossy().into_owned();
        server
            .with_name(name)
            .with_num_threads(SESSIONS_MAX)
            .with_tcp_listener(listener)
            .with_ssl(SslConfig::SelfSigned { cert_path: path("fullchain.pem"), key_path: path("privkey.pem") })
            .map_err(|error| SinkError::Certificate(error.to_string()))?;
        thread::Builder::new().name("sink".to_owned()).spawn(move || {
            if let Err(error) = server.serve() {
                tracing::error!(%error, "the receiving MX stopped");
            }
        })?;
        Ok(Self { address, received })
    }
}

/// Gathers one transaction at a time; the library clones it for each session.
#[derive(Clone)]
struct Keeper {
    arrived: SyncSender<Received>,
    current: Received,
}

impl Keeper {
    fn new(arrived: SyncSender<Received>) -> Self {
        let current = Received {
            peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            helo: String::new(),
            reverse_path: String::new(),
            recipients: Vec::new(),
            message: Vec::new(),
        };
        Self { arrived, current }
    }
}

impl Handler for Keeper {
    fn mail(&mut self, ip: IpAddr, domain: &str, from: &str) -> Response {
        domain.clone_into(&mut self.current.helo);
        from.clone_into(&mut self.current.reverse_path);
        self.current.peer = ip;
        self.current.recipients.clear();
        self.current.message.clear();
        response::OK
    }

    fn rcpt(&mut self, to: &str) -> Response {
        self.current.recipients.push(to.to_owned());
        response::OK
    }

    fn data(&mut self, buffer: &[u8]) -> io::Result<()> {
        if self.current.message.len() + buffer.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::other("message over the sink's limit"));
        }
        self.current.message.extend_from_slice(buffer);
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        // Nobody listening any more is no reason to refuse mail: the trial is over then.
        let _ = self.arrived.send(self.current.clone());
        response::OK
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_is_sent_is_what_was_received() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["mx.example".to_owned()]).unwrap();
        std::fs::write(folder.path().join("fullchain.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("privkey.pem"), made.signing_key.serialize_pem()).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sink = Sink::start(address, "mx.example", folder.path()).unwrap();

        let stream = TcpStream::connect(sink.address).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut say = |line: &str, code: &str| {
            (&stream).write_all(line.as_bytes()).unwrap();
            loop {
                let reply = lines.next().unwrap().unwrap();
                assert!(reply.starts_with(code), "{line:?} -> {reply:?}");
                if reply.as_bytes().get(3) != Some(&b'-') {
                    break;
                }
            }
        };
        say("", "220");
        say("EHLO client.example\r\n", "250");
        say("MAIL FROM:<a@shop.example>\r\n", "250");
        say("RCPT TO:<b@inbox.example>\r\n", "250");
        say("DATA\r\n", "354");
        say("Subject: x\r\n\r\n..dot\r\n.\r\n", "250");
        let received = sink.received.recv().unwrap();
        assert_eq!(received.message, b"Subject: x\r\n\r\n.dot\r\n");
        assert_eq!(received.recipients, ["b@inbox.example"]);
        assert_eq!(received.helo, "client.example");
    }
}
