//! A folder on disk, real handshakes in memory.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn write(folder: &Path, name: &str, names: &[&str]) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(CHAIN_FILE), certificate.pem()).unwrap();
    fs::write(folder.join(KEY_FILE), key.serialize_pem()).unwrap();
}

fn open(folder: &Path, default: &str) -> Arc<Certificates> {
    Arc::new(Certificates::open(folder, &domain(default)).unwrap())
}

/// Takes every certificate: the tests ask which one was shown.
#[derive(Debug)]
struct TakesAll;

impl ServerCertVerifier for TakesAll {
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
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

type ClientStream = tokio_rustls::client::TlsStream<tokio::io::DuplexStream>;

async fn connect(
    certificates: &Certificates,
    vip: &str,
    asked: Option<&str>,
    version: &'static rustls::SupportedProtocolVersion,
) -> (ClientStream, tokio_rustls::server::TlsStream<tokio::io::DuplexStream>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAll))
        .with_no_client_auth();
    config.enable_sni = asked.is_some();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = tokio_rustls::TlsAcceptor::from(certificates.server_config(&domain(vip)));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(asked.unwrap_or("nobody.test").to_owned()).unwrap();
    let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    (client.unwrap(), server.unwrap())
}

async fn shown(certificates: &Certificates, vip: &str, asked: Option<&str>) -> Vec<String> {
    let (client, _server) = connect(certificates, vip, asked, &rustls::version::TLS13).await;
    let chain = client.get_ref().1.peer_certificates().unwrap();
    expiry("none", &chain[0]).unwrap().names
}

#[tokio::test]
async fn the_certificate_is_chosen_by_sni_then_virtual_ip_then_default() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "mx.example.com", &["mx.example.com"]);
    write(folder.path(), "shop.example.net", &["shop.example.net", "mail.shop.example.net"]);
    write(folder.path(), "wild", &["*.wild.example"]);
    let certificates = open(folder.path(), "mx.example.com");

    assert_eq!(shown(&certificates, "shop.example.net", Some("MX.example.com")).await, ["mx.example.com"]);
    let shop = ["shop.example.net", "mail.shop.example.net"];
    assert_eq!(shown(&certificates, "mx.example.com", Some("mail.shop.example.net")).await, shop);
    assert_eq!(shown(&certificates, "shop.example.net", Some("unknown.test")).await, shop);
    assert_eq!(shown(&certificates, "shop.example.net", None).await, shop);
    assert_eq!(shown(&certificates, "other.test", None).await, ["mx.example.com"]);
    assert_eq!(shown(&certificates, "other.test", Some("a.wild.example")).await, ["*.wild.example"]);
    assert_eq!(shown(&certificates, "other.test", Some("a.b.wild.example")).await, ["mx.example.com"]);
}

#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_sessions_and_old_ones_go_on() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "mx.example.com", &["mx.example.com"]);
    let certificates = open(folder.path(), "mx.example.com");
    let (mut client, mut server) = connect(&certificates, "mx.example.com", None, &rustls::version::TLS12).await;

    write(folder.path(), "mx.example.com", &["mx.example.com", "new.example.com"]);
    assert_eq!(certificates.reload().unwrap().changed, ["mx.example.com"]);
    assert_eq!(shown(&certificates, "mx.example.com", None).await, ["mx.example.com", "new.example.com"]);

    client.write_all(b"QUIT").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"QUIT");
    assert_eq!(certificates.reload().unwrap(), Reloaded::default());
}

#[tokio::test]
async fn half_a_renewal_keeps_the_old_certificate_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mx.example.com");
    write(folder.path(), "mx.example.com", &["mx.example.com"]);
    let certificates = open(folder.path(), "mx.example.com");
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "mx.example.com", &["mx.example.com", "new.example.com"]);

    fs::copy(other.path().join("mx.example.com").join(CHAIN_FILE), path.join(CHAIN_FILE)).unwrap();
    let done = certificates.reload().unwrap();
    assert!(done.problems[0].1.contains("do not fit together"), "{done:?}");
    assert_eq!(shown(&certificates, "mx.example.com", None).await, ["mx.example.com"]);

    fs::write(path.join(CHAIN_FILE), "junk").unwrap();
    assert!(certificates.reload().unwrap().problems[0].1.contains("holds no certificate"));
    fs::remove_file(path.join(KEY_FILE)).unwrap();
    assert!(certificates.reload().unwrap().problems[0].1.starts_with("privkey.pem: "));
    assert_eq!(shown(&certificates, "mx.example.com", None).await, ["mx.example.com"]);

    fs::copy(other.path().join("mx.example.com").join(CHAIN_FILE), path.join(CHAIN_FILE)).unwrap();
    fs::copy(other.path().join("mx.example.com").join(KEY_FILE), path.join(KEY_FILE)).unwrap();
    assert_eq!(certificates.reload().unwrap().changed, ["mx.example.com"]);
    assert!(certificates.covers(&domain("new.example.com")));
}

#[test]
fn a_self_signed_certificate_is_written_once_and_serves() {
    let folder = tempfile::tempdir().unwrap();
    Certificates::write_self_signed(folder.path(), &domain("mx.example.com")).unwrap();
    let again = Certificates::write_self_signed(folder.path(), &domain("mx.example.com")).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let certificates = open(folder.path(), "mx.example.com");
    assert!(certificates.has_default());
    let expiry = certificates.expiries().remove(0);
    assert_eq!((expiry.names, expiry.issuer), (vec!["mx.example.com".to_owned()], Issuer::Itself));
    let days = expiry.not_after.since(Timestamp::now()).as_secs() / 86_400;
    assert!((3640..=3650).contains(&days), "{days}");
    let mode = fs::metadata(folder.path().join("mx.example.com").join(KEY_FILE)).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn one_name_has_one_configuration_without_tickets() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = open(folder.path(), "mx.example.com");
    assert!(!certificates.has_default());
    let config = certificates.server_config(&domain("mx.example.com"));
    assert!(Arc::ptr_eq(&config, &certificates.server_config(&domain("MX.example.com"))));
    assert_eq!(config.send_tls13_tickets, 0);
    assert!(Certificates::open(&folder.path().join("missing"), &domain("mx.example.com")).is_err());
}

#[test]
fn a_folder_that_goes_away_takes_its_certificate_along() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "mx.example.com", &["mx.example.com"]);
    write(folder.path(), "old.example.com", &["old.example.com"]);
    let certificates = open(folder.path(), "mx.example.com");
    fs::remove_dir_all(folder.path().join("old.example.com")).unwrap();
    assert_eq!(certificates.reload().unwrap().removed, ["old.example.com"]);
    assert!(!certificates.covers(&domain("old.example.com")));
}
