//! Receivers of webhooks: HTTPS on loopback, every signature verified, and one that takes requests and never answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use postern::ext::Timestamp;
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::percentile;

/// The name all of them have, at different ports.
pub const HOST: &str = "hook.test";

/// A certificate for [`HOST`] that is its own root.
pub struct Identity {
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Identity {
    pub fn make() -> Self {
        Self { made: rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.made.cert.pem()
    }

    fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(self.made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.made.cert.der().clone()], key.into())
            .unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Answers,
    /// Takes it and says nothing, ever.
    IsDead,
}

#[derive(Default)]
struct Taken {
    events: usize,
    /// Of the signature's key that came wrong.
    wrong: usize,
    first: Option<Instant>,
    last: Option<Instant>,
    /// From what happened to its arrival here, in microseconds.
    lags: Vec<u32>,
    /// How often each event came.
    copies: BTreeMap<String, u8>,
}

/// One endpoint.
pub struct Receiver {
    pub url: String,
    secret: Arc<Mutex<Option<hmac::Key>>>,
    taken: Arc<Mutex<Taken>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an endpoint got since it was last emptied.
pub struct Got {
    pub events: usize,
    pub wrong: usize,
    /// Seconds from the given moment to the last of them.
    pub seconds: f64,
    pub lags: Vec<u32>,
}

impl Got {
    pub fn per_second(&self) -> f64 {
        self.events as f64 / self.seconds.max(0.001)
    }

    pub fn lag(&self, part: f64) -> f64 {
        percentile(&self.lags, part)
    }
}

impl Receiver {
    pub async fn start(identity: &Identity, mood: Mood) -> Self {
        let acceptor = identity.acceptor();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{HOST}:{}/in", listener.local_addr().unwrap().port());
        let (secret, taken) = (Arc::<Mutex<Option<hmac::Key>>>::default(), Arc::<Mutex<Taken>>::default());
        let (key, book) = (Arc::clone(&secret), Arc::clone(&taken));
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, key, book) = (acceptor.clone(), Arc::clone(&key), Arc::clone(&book));
                tokio::spawn(async move {
                    tcp.set_nodelay(true).unwrap();
                    // Whoever goes away in the middle is no matter.
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|request| take(request, mood, &key, &book));
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await);
                });
            }
        });
        Self { url, secret, taken, task }
    }

    /// What it verifies with: `whsec_...`.
    pub fn learn(&self, secret: &str) {
        let octets = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        *self.secret.lock().unwrap() = Some(hmac::Key::new(hmac::HMAC_SHA256, &octets));
    }

    /// Different events it has.
    pub fn events(&self) -> usize {
        self.taken.lock().unwrap().events
    }

    /// What it got from `began` on, and forgets it.
    pub fn empty(&self, began: Instant) -> Got {
        let mut taken = std::mem::take(&mut *self.taken.lock().unwrap());
        taken.lags.sort_unstable();
        let seconds = taken.last.map_or(0.0, |last| (last - began).as_secs_f64());
        Got { events: taken.events, wrong: taken.wrong, seconds, lags: taken.lags }
    }
}

async fn take(
    request: Request<Incoming>,
    mood: Mood,
    secret: &Mutex<Option<hmac::Key>>,
    taken: &Mutex<Taken>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let field = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (id, at) = (field("webhook-id").unwrap_or_default(), field("webhook-timestamp").unwrap_or_default());
    let signature = field("webhook-signature").unwrap_or_default();
    let Ok(body) = request.into_body().collect().await else { return Ok(Response::default()) };
    let body = body.to_bytes();
    let is_good = {
        let key = secret.lock().unwrap();
        let told = signature.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        let signed = [id.as_bytes(), b".", at.as_bytes(), b".", &body].concat();
        key.as_ref().is_some_and(|key| hmac::verify(key, &signed, &told).is_ok())
    };
    note(&mut taken.lock().unwrap(), id, &body, is_good);
    if mood == Mood::IsDead {
        std::future::pending::<()>().await;
    }
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}

fn note(taken: &mut Taken, id: String, body: &[u8], is_good: bool) {
    let now = Instant::now();
    if !is_good {
        taken.wrong += 1;
        return;
    }
    let copies = taken.copies.entry(id).or_default();
    *copies = copies.saturating_add(1);
    if *copies > 1 {
        return;
    }
    taken.events += 1;
    taken.first.get_or_insert(now);
    taken.last = Some(now);
    // "timestamp":"2027-01-31T12:00:00.123Z", without reading all of the JSON.
    let text = String::from_utf8_lossy(body);
    let told = text.split_once("\"timestamp\":\"").and_then(|(_, rest)| rest.split('"').next());
    if let Some(at) = told.and_then(Timestamp::from_rfc3339) {
        let lag = Timestamp::now().since(at).as_micros();
        taken.lags.push(u32::try_from(lag).unwrap_or(u32::MAX));
    }
}
