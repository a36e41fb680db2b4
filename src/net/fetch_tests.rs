//! Against a real HTTPS server on loopback, found by a real resolver.

use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;

use super::*;
use crate::net::pages_tests::{Pages, page as answer};
use crate::net::{DnsSettings, SystemResolver, Zone, ZoneServer};

const HOST: &str = "mta-sts.shop.example";

/// Serves `answer` to every request; keeps the connection open afterwards if it `hangs`.
async fn server(named: &str, answer: Vec<u8>, hangs: bool) -> (SocketAddr, CertificateDer<'static>) {
    let pages = Pages::start(named).await;
    pages.say(answer, hangs);
    (pages.address, pages.certificate)
}

async fn fetch(
    address: SocketAddr,
    trusted: Vec<CertificateDer<'static>>,
    change: impl FnOnce(&mut FetchLimits),
) -> Result<Fetched, FetchError> {
    let zone = Zone::new().ipv4(HOST, "127.0.0.1".parse().unwrap());
    let zone = ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone).await.unwrap();
    let dns = DnsSettings { servers: vec![zone.address()], ..DnsSettings::default() };
    let resolver = Arc::new(SystemResolver::new(&dns).unwrap());
    let fetcher = Fetcher::new(resolver, Arc::new(ClientTls::with_roots(trusted).unwrap()));
    let mut limits = FetchLimits {
        port: address.port(),
        reach: Reach::Anywhere,
        patience: Duration::from_secs(20),
        body_bytes_max: 1_000,
    };
    change(&mut limits);
    fetcher.get(&Domain::parse(HOST).unwrap(), "/.well-known/mta-sts.txt", &limits).await
}

#[tokio::test]
async fn an_answer_comes_with_status_kind_and_body() {
    let said = answer("200 OK", "Content-Type: Text/Plain; charset=utf-8\r\n", "version: STSv1\r\n");
    let (address, certificate) = server(HOST, said, false).await;
    let fetched = fetch(address, vec![certificate], |_| {}).await.unwrap();
    assert_eq!((fetched.status, fetched.media_type.as_str()), (200, "text/plain"));
    assert_eq!(fetched.body, b"version: STSv1\r\n");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let said = answer("302 Found", "Location: https://elsewhere.example/\r\n", "");
    let (address, certificate) = server(HOST, said, false).await;
    assert_eq!(fetch(address, vec![certificate], |_| {}).await.unwrap().status, 302);
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_or_for_another_name_is_refused() {
    let said = answer("200 OK", "", "x");
    let (address, _) = server(HOST, said.clone(), false).await;
    assert!(matches!(fetch(address, Vec::new(), |_| {}).await, Err(FetchError::Tls(_))));
    let (address, certificate) = server("www.shop.example", said, false).await;
    assert!(matches!(fetch(address, vec![certificate], |_| {}).await, Err(FetchError::Tls(_))));
}

#[tokio::test]
async fn private_addresses_are_refused_before_anybody_connects() {
    let (address, certificate) = server(HOST, answer("200 OK", "", "x"), false).await;
    let refused = fetch(address, vec![certificate], |limits| limits.reach = Reach::Public).await;
    assert_eq!(refused, Err(FetchError::Private(Domain::parse(HOST).unwrap())));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_not_read_to_its_end() {
    let long = "x".repeat(5_000);
    let (address, certificate) = server(HOST, answer("200 OK", "", &long), false).await;
    assert_eq!(fetch(address, vec![certificate], |_| {}).await, Err(FetchError::TooLarge(1_000)));
    // Without a length, and without an end.
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let endless = [&chunked[..], &b"400\r\n"[..], "x".repeat(1_024).as_bytes(), &b"\r\n"[..]].concat();
    let (address, certificate) = server(HOST, endless, true).await;
    assert_eq!(fetch(address, vec![certificate], |_| {}).await, Err(FetchError::TooLarge(1_000)));
}

#[tokio::test]
async fn silence_nonsense_and_a_broken_answer_are_told_apart() {
    let (address, certificate) = server(HOST, b"HTTP/1.1 200 OK\r\n".to_vec(), true).await;
    let patience = Duration::from_millis(300);
    let late = fetch(address, vec![certificate], |limits| limits.patience = patience).await;
    assert_eq!(late, Err(FetchError::TimedOut(patience)));
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_vec();
    for said in [b"220 mx.example ESMTP\r\n".to_vec(), broken, answer("200 OK", &"X: y\r\n".repeat(9_000), "")] {
        let (address, certificate) = server(HOST, said, false).await;
        let failed = fetch(address, vec![certificate], |_| {}).await;
        assert!(matches!(failed, Err(FetchError::Http(_))), "{failed:?}");
    }
}

#[tokio::test]
async fn a_host_without_address_or_without_server_is_said_to_be_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let failed = fetch(address, Vec::new(), |_| {}).await;
    assert!(matches!(failed, Err(FetchError::Unreachable(_))), "{failed:?}");
}
