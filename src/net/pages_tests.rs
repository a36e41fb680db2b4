//! A real HTTPS server on loopback that says what a test wants, for tests of rooms that fetch.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What it says to every request.
#[derive(Clone)]
struct Said {
    bytes: Vec<u8>,
    /// Whether it keeps the connection open afterwards.
    hangs: bool,
}

/// The server; it ends with the runtime of its test.
pub(crate) struct Pages {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: CertificateDer<'static>,
    said: Arc<Mutex<Said>>,
    asked: Arc<AtomicUsize>,
}

impl Pages {
    /// With a certificate of its own making for `name`. Says 404 until told otherwise.
    pub(crate) async fn start(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(Said { bytes: page("404 Not Found", "", ""), hangs: false }));
        let asked = Arc::new(AtomicUsize::new(0));
        let (to_say, count) = (said.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to_say, count) = (acceptor.clone(), to_say.clone(), count.clone());
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let said = to_say.lock().unwrap().clone();
                    serve(acceptor, stream, said).await;
                });
            }
        });
        Self { address, certificate, said, asked }
    }

    /// From now on exactly these bytes, and the connection is closed after them unless it `hangs`.
    pub(crate) fn say(&self, bytes: Vec<u8>, hangs: bool) {
        *self.said.lock().unwrap() = Said { bytes, hangs };
    }

    /// Connections so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream, said: Said) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        asked.push(byte);
    }
    // What is not the one request that is expected gets no answer.
    if !asked.starts_with(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n") {
        return;
    }
    let _ = stream.write_all(&said.bytes).await;
    let _ = stream.flush().await;
    if said.hangs {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

/// An answer as HTTP writes it; each of `fields` ends in CR LF.
pub(crate) fn page(status: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len()).into_bytes()
}
