//! Real sockets and real TLS on loopback; names from a resolver that says what a test wants.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::net::Mx;

const PATIENCE: Duration = Duration::from_secs(20);

/// Every name leads to these.
struct Names(Mutex<Vec<IpAddr>>);

#[async_trait]
impl Resolver for Names {
    async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        let all = self.0.lock().unwrap();
        let found = all.iter().filter_map(|one| if let IpAddr::V4(one) = one { Some(*one) } else { None });
        Some(found.collect()).filter(|found: &Vec<_>| !found.is_empty()).ok_or(LookupError::NoRecord)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        let all = self.0.lock().unwrap();
        let found = all.iter().filter_map(|one| if let IpAddr::V6(one) = one { Some(*one) } else { None });
        Some(found.collect()).filter(|found: &Vec<_>| !found.is_empty()).ok_or(LookupError::NoRecord)
    }
    async fn txt(&self, _: &Domain) -> Result<Vec<String>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
}

fn names(all: &[&str]) -> Arc<Names> {
    Arc::new(Names(Mutex::new(all.iter().map(|one| one.parse().unwrap()).collect())))
}

/// A receiver called `hook.test` on loopback.
struct Receiver {
    port: u16,
    certificate: rustls_pki_types::CertificateDer<'static>,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is answered to the nth request of all; then the connection stays, or not.
type Script = fn(usize) -> (&'static [u8], bool);

async fn receiver(script: Script) -> Receiver {
    let made = rcgen::generate_simple_self_signed(vec!["hook.test".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, noted) = (connections.clone(), requests.clone());
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let (acceptor, noted) = (acceptor.clone(), noted.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Some(request) = read_request(&mut stream).await {
                    let count = noted.lock().unwrap().len();
                    noted.lock().unwrap().push(request);
                    let (answer, stays) = script(count);
                    if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() || !stays {
                        let _ = stream.shutdown().await;
                        return;
                    }
                }
            });
        }
    });
    Receiver { port, certificate, connections, requests, task }
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= field.unwrap_or("0").parse().unwrap() {
                return Some(text.into_owned());
            }
        }
        let mut some = [0; 1024];
        match stream.read(&mut some).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&some[..read]),
        }
    }
}

impl Receiver {
    fn poster(&self, names: Arc<Names>) -> Poster {
        let tls = ClientTls::with_roots(vec![self.certificate.clone()]).unwrap();
        Poster::new(names, tls, Reach::Anywhere)
    }

    fn target(&self) -> Target {
        Target::parse(&format!("https://hook.test:{}/in?x=1", self.port)).unwrap()
    }
}

fn outgoing() -> Outgoing {
    Outgoing { fields: vec![("webhook-id", "evt_1".to_owned())], body: Bytes::from_static(b"{\"a\":1}") }
}

const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn only_an_https_address_of_a_host_is_a_target() {
    for text in [
        "https://hook.example/in",
        "https://hook.example",
        "https://hook.example:8443/a?b=c",
        "https://[2a00:1450::1]/",
        "https://8.8.8.8/x",
        "HTTPS://Hook.Example/x",
    ] {
        assert!(Target::parse(text).is_ok(), "{text}: {:?}", Target::parse(text));
    }
    let long = format!("https://hook.example/{}", "x".repeat(TARGET_OCTETS_MAX));
    for text in [
        "http://hook.example/in",
        "ftp://hook.example/",
        "hook.example/in",
        "//hook.example/in",
        "https://",
        "https:///in",
        "https://user:password@hook.example/",
        "https://hook.example/#x",
        "https://hook.example:25/",
        "https://hook.example:0/",
        "https://hook.example:/",
        "https://hook.example:99999/",
        "https://hook example/",
        "https://hook.example/\r\nx: y",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://[::1/",
        "file:///etc/passwd",
        &long,
    ] {
        assert!(Target::parse(text).is_err(), "{text}");
    }
}

/// What must never be reached, however it is written.
const PRIVATE: &[&str] = &[
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "100::1",
];

#[tokio::test]
async fn no_name_and_no_number_leads_to_an_address_that_is_not_public() {
    let receiver = receiver(|_| (FINE, true)).await;
    let tls = ClientTls::with_roots(vec![receiver.certificate.clone()]).unwrap();
    for address in PRIVATE {
        // Alone, and hidden behind an address that is fine.
        for all in [vec![*address], vec!["8.8.8.8", address]] {
            let poster = Poster::new(names(&all), tls.clone(), Reach::Public);
            let posted = poster.post(&Line::default(), &receiver.target(), outgoing(), PATIENCE).await;
            assert!(matches!(posted, Err(PostError::Private(..))), "{address}: {posted:?}");
        }
        let number = if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
        let target = Target::parse(&format!("https://{number}:{}/", receiver.port)).unwrap();
        assert!(target.check(Reach::Public).is_err(), "{address}");
        let poster = Poster::new(names(&[]), tls.clone(), Reach::Public);
        let posted = poster.post(&Line::default(), &target, outgoing(), PATIENCE).await;
        assert!(matches!(posted, Err(PostError::Private(..))), "{address}: {posted:?}");
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 0, "nobody was connected to");
}

#[tokio::test]
async fn a_request_arrives_whole_and_the_connection_serves_the_next_one() {
    let receiver = receiver(|_| (FINE, true)).await;
    let (poster, line) = (receiver.poster(names(&["127.0.0.1"])), Line::default());
    for _ in 0..3 {
        let answer = poster.post(&line, &receiver.target(), outgoing(), PATIENCE).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 1);
    let requests = receiver.requests.lock().unwrap();
    let request = requests.first().unwrap();
    assert!(request.starts_with("POST /in?x=1 HTTP/1.1\r\n"), "{request}");
    for part in
        [format!("host: hook.test:{}\r\n", receiver.port), "webhook-id: evt_1\r\n".into(), "\r\n\r\n{\"a\":1}".into()]
    {
        assert!(request.contains(&part), "{part}: {request}");
    }
}

#[tokio::test]
async fn a_kept_connection_is_not_used_for_a_name_that_leads_elsewhere_by_then() {
    // The receiver closes after each answer, so that the name is looked up anew: a rebinding is seen.
    let receiver = receiver(|_| (FINE, false)).await;
    let where_to = names(&["127.0.0.1"]);
    let (poster, line) = (receiver.poster(where_to.clone()), Line::default());
    assert_eq!(poster.post(&line, &receiver.target(), outgoing(), PATIENCE).await.unwrap().status, 200);
    *where_to.0.lock().unwrap() = vec!["169.254.169.254".parse().unwrap()];
    let guarded = Poster { reach: Reach::Public, ..poster };
    // Whatever is left of the closed connection must be gone before it can be taken again.
    let mut posted = guarded.post(&line, &receiver.target(), outgoing(), PATIENCE).await;
    if posted.is_ok() {
        posted = guarded.post(&line, &receiver.target(), outgoing(), PATIENCE).await;
    }
    assert!(matches!(posted, Err(PostError::Private(..))), "{posted:?}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let receiver = receiver(|_| {
        (
            b"HTTP/1.1 302 Found\r\nlocation: https://169.254.169.254/\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            true,
        )
    })
    .await;
    let poster = receiver.poster(names(&["127.0.0.1"]));
    let answer = poster.post(&Line::default(), &receiver.target(), outgoing(), PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.retry_after), (302, Some(Duration::from_secs(7))));
    assert_eq!(receiver.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_name_or_of_nobody_is_refused() {
    let receiver = receiver(|_| (FINE, true)).await;
    let target = Target::parse(&format!("https://other.test:{}/", receiver.port)).unwrap();
    let poster = receiver.poster(names(&["127.0.0.1"]));
    let posted = poster.post(&Line::default(), &target, outgoing(), PATIENCE).await;
    assert!(matches!(posted, Err(PostError::Tls(_))), "{posted:?}");
    let strangers = Poster::new(names(&["127.0.0.1"]), ClientTls::new(None).unwrap(), Reach::Anywhere);
    let posted = strangers.post(&Line::default(), &receiver.target(), outgoing(), PATIENCE).await;
    assert!(matches!(posted, Err(PostError::Tls(_))), "{posted:?}");
    assert_eq!(receiver.requests.lock().unwrap().len(), 0, "nothing was said to whoever that was");
}

#[tokio::test]
async fn a_receiver_that_says_too_much_or_nothing_costs_little() {
    const ENDLESS: &[u8] = &[b'x'; 100_000];
    let long = receiver(|_| {
        static ANSWER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let answer =
            ANSWER.get_or_init(|| [&b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"[..], ENDLESS].concat());
        (answer.as_slice(), true)
    })
    .await;
    let poster = long.poster(names(&["127.0.0.1"]));
    let answer = poster.post(&Line::default(), &long.target(), outgoing(), PATIENCE).await.unwrap();
    assert_eq!(answer.body.len(), ANSWER_OCTETS_MAX);

    let headers = receiver(|_| {
        static ANSWER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        (ANSWER.get_or_init(|| [&b"HTTP/1.1 200 OK\r\nx: "[..], ENDLESS].concat()).as_slice(), true)
    })
    .await;
    let poster = headers.poster(names(&["127.0.0.1"]));
    let posted = poster.post(&Line::default(), &headers.target(), outgoing(), PATIENCE).await;
    assert!(matches!(posted, Err(PostError::Http(_))), "{posted:?}");

    let silent = receiver(|_| (b"", true)).await;
    let poster = silent.poster(names(&["127.0.0.1"]));
    let short = Duration::from_millis(300);
    let posted = poster.post(&Line::default(), &silent.target(), outgoing(), short).await;
    assert_eq!(posted, Err(PostError::TimedOut(short)));

    let nonsense = receiver(|_| (b"250 ok\r\n", true)).await;
    let poster = nonsense.poster(names(&["127.0.0.1"]));
    let posted = poster.post(&Line::default(), &nonsense.target(), outgoing(), PATIENCE).await;
    assert!(matches!(posted, Err(PostError::Http(_))), "{posted:?}");
}

#[tokio::test]
async fn a_connection_the_receiver_closed_is_replaced_without_a_failure() {
    let receiver = receiver(|_| (FINE, false)).await;
    let (poster, line) = (receiver.poster(names(&["127.0.0.1"])), Line::default());
    for _ in 0..5 {
        assert_eq!(poster.post(&line, &receiver.target(), outgoing(), PATIENCE).await.unwrap().status, 200);
    }
}
