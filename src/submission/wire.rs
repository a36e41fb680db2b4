//! One peer's octets: TCP, later perhaps TLS over it. Reads wait without a buffer while the
//! session is in the clear, so that thousands of silent peers cost next to nothing.
//!
//! It refuses to know SMTP. Deadlines belong to its caller.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::ahead::ReadAhead;

/// A connection.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<ReadAhead>>),
    /// The handshake failed or is going on.
    Gone,
}

impl Wire {
    /// Reads at least one octet to the end of `input`, with room for `room`; 0 is the end.
    pub(super) async fn read(&mut self, input: &mut BytesMut, room: usize) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => loop {
                stream.readable().await?;
                input.reserve(room);
                match stream.try_read_buf(input) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
            },
            Self::Tls(stream) => {
                input.reserve(room);
                stream.read_buf(input).await
            }
            Self::Gone => Ok(0),
        }
    }

    /// Writes everything.
    pub(super) async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(octets).await,
            Self::Tls(stream) => {
                stream.write_all(octets).await?;
                stream.flush().await
            }
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Ends our side, with close_notify under TLS.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Tls(stream) => stream.shutdown().await,
            Self::Gone => Ok(()),
        }
    }

    /// Shakes hands as a server.
    pub(super) async fn secure(&mut self, config: Arc<rustls::ServerConfig>) -> io::Result<()> {
        let Self::Plain(stream) = std::mem::replace(self, Self::Gone) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let stream = Box::pin(TlsAcceptor::from(config).accept(ReadAhead::new(stream))).await?;
        *self = Self::Tls(Box::new(stream));
        Ok(())
    }

    /// Version and suite, such as `TLSv1.3 TLS13_AES_256_GCM_SHA384`; empty in the clear.
    pub(super) fn tls(&self) -> String {
        let Self::Tls(stream) = self else { return String::new() };
        let (_, connection) = stream.get_ref();
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLS",
        };
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        format!("{version} {}", suite.unwrap_or("unknown"))
    }
}
