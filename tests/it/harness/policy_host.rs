//! A host that publishes an MTA-STS policy over HTTPS, as a test wants it to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The host; it ends when dropped.
pub struct PolicyHost {
    pub address: SocketAddr,
    pub certificate: CertificateDer<'static>,
    said: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl PolicyHost {
    /// `mta-sts.` before `domain`, with a certificate of its own making, on a free port of `address`.
    pub async fn start(address: &str, domain: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![format!("mta-sts.{domain}")]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()));
        let to_say = said.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to_say) = (acceptor.clone(), to_say.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut asked = Vec::new();
                    while !asked.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        asked.push(byte);
                    }
                    let said = to_say.lock().unwrap().clone();
                    let _ = stream.write_all(&said).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { address, certificate, said, task }
    }

    /// Publishes a policy of that mode, naming these hosts, good for a week.
    pub fn publish(&self, mode: &str, hosts: &[&str]) {
        let hosts: String = hosts.iter().map(|host| format!("mx: {host}\r\n")).collect();
        let body = format!("version: STSv1\r\nmode: {mode}\r\n{hosts}max_age: 604800\r\n");
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
        *self.said.lock().unwrap() = (head + &body).into_bytes();
    }
}

impl Drop for PolicyHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}
