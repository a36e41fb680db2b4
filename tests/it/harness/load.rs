//! Senders with a ledger of what was acknowledged, and a sink that records what arrived: both outside
//! the daemon, so that after any fault the two lists can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::door::Anyone;
use super::https::Https;

/// What was acknowledged: the serials whose 250 or 202 the sender read.
#[derive(Clone, Default)]
pub struct Ledger {
    serials: Arc<Mutex<BTreeSet<u64>>>,
    by_http: Arc<AtomicU64>,
    repeated: Arc<AtomicU64>,
    /// What was sent by HTTP and not answered: whether it was taken is known only to who repeats it.
    unanswered: Arc<Mutex<Vec<u64>>>,
}

impl Ledger {
    pub fn note(&self, serial: u64) {
        self.serials.lock().unwrap().insert(serial);
    }

    pub fn serials(&self) -> BTreeSet<u64> {
        self.serials.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.serials.lock().unwrap().len()
    }

    /// How many of them were acknowledged by HTTP, and how many of those not at the first request.
    pub fn by_http(&self) -> (u64, u64) {
        (self.by_http.load(Ordering::Relaxed), self.repeated.load(Ordering::Relaxed))
    }
}

/// Who sends, where, and how much.
#[derive(Clone)]
pub struct Load {
    pub door: SocketAddr,
    pub login: String,
    pub password: String,
    pub from: String,
    /// Messages go to `user<serial>@` each of these in turn.
    pub domains: Vec<String>,
    /// Bodies of these lengths in turn.
    pub sizes: Vec<usize>,
    pub senders: usize,
    /// What each sender waits after each message.
    pub pause: Duration,
    /// Who sends by HTTP beside them.
    pub http: Option<HttpLoad>,
}

/// Senders over the API.
#[derive(Clone)]
pub struct HttpLoad {
    pub admin: SocketAddr,
    /// `Bearer` and an API key.
    pub bearer: String,
    pub senders: usize,
}

/// Senders at work until told to stop; they reconnect when the daemon is gone.
pub struct Senders {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    pub fn start(load: &Load, ledger: &Ledger, next_serial: &Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let by_http = load.http.as_ref().map_or(0, |http| http.senders);
        let threads = (0..load.senders + by_http)
            .map(|number| {
                let (load, ledger, stop, next) = (load.clone(), ledger.clone(), stop.clone(), next_serial.clone());
                match load.http.clone().filter(|_| number >= load.senders) {
                    Some(http) => thread::spawn(move || send_by_http(&load, &http, (&ledger, &stop, &next))),
                    None => thread::spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            if send_until_broken(&load, &ledger, &stop, &next).is_err() {
                                thread::sleep(Duration::from_millis(20));
                            }
                        }
                    }),
                }
            })
            .collect();
        Self { stop, threads }
    }

    /// Lets each sender finish its message, and waits for them.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.threads {
            sender.join().unwrap();
        }
    }
}

/// The serial's message, the same bytes whenever it is made.
pub fn message(load: &Load, serial: u64) -> (String, String) {
    let to = format!("user{serial}@{}", load.domains[usize::try_from(serial).unwrap() % load.domains.len()]);
    let size = load.sizes[usize::try_from(serial).unwrap() % load.sizes.len()];
    let line = format!("{serial:>10} the quick brown fox jumps over the lazy dog .\r\n");
    let body = line.repeat(size / line.len() + 1);
    let text = format!(
        "From: {}\r\nTo: {to}\r\nSubject: serial {serial}\r\nX-Serial: {serial}\r\n\r\n{}",
        load.from,
        &body[..size.min(body.len())]
    );
    (to, if text.ends_with("\r\n") { text } else { format!("{}\r\n", text.trim_end_matches('\r')) })
}

fn send_until_broken(load: &Load, ledger: &Ledger, stop: &AtomicBool, next: &AtomicU64) -> io::Result<()> {
    let mut session = TlsSession::open(load.door)?;
    session.login(&load.login, &load.password)?;
    while !stop.load(Ordering::Relaxed) {
        let serial = next.fetch_add(1, Ordering::Relaxed);
        let (to, text) = message(load, serial);
        session.command(&format!("MAIL FROM:<{}>", load.from), "250")?;
        session.command(&format!("RCPT TO:<{to}>"), "250")?;
        session.command("DATA", "354")?;
        let stuffed = text.replace("\r\n.", "\r\n..");
        session.command(&format!("{stuffed}."), "250")?;
        ledger.note(serial);
        thread::sleep(load.pause);
    }
    Ok(())
}

/// Sends until told to stop; a request that was not answered with 202 is repeated with its key until it is, by the
/// next senders if these are told to stop.
fn send_by_http(load: &Load, http: &HttpLoad, (ledger, stop, next): (&Ledger, &AtomicBool, &AtomicU64)) {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let again = ledger.unanswered.lock().unwrap().pop();
        let serial = again.unwrap_or_else(|| next.fetch_add(1, Ordering::Relaxed));
        let mut tries = u64::from(again.is_some());
        loop {
            if stop.load(Ordering::Relaxed) {
                return ledger.unanswered.lock().unwrap().push(serial);
            }
            tries += 1;
            match post(&mut client, load, http, serial) {
                Ok(202) => {
                    ledger.note(serial);
                    ledger.by_http.fetch_add(1, Ordering::Relaxed);
                    ledger.repeated.fetch_add(u64::from(tries > 1), Ordering::Relaxed);
                    break;
                }
                Ok(_) => thread::sleep(Duration::from_millis(20)),
                Err(_) => {
                    client = None;
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        thread::sleep(load.pause);
    }
}

/// Hands the serial's message in over `client`, which is connected if there is none; the status it was answered.
pub fn post(client: &mut Option<Https>, load: &Load, http: &HttpLoad, serial: u64) -> io::Result<u16> {
    let (to, text) = message(load, serial);
    let open = match client {
        Some(open) => open,
        None => client.insert(Https::open(http.admin)?),
    };
    let key = format!("serial-{serial}");
    let headers =
        [("Authorization", http.bearer.as_str()), ("Idempotency-Key", &key), ("Content-Type", "message/rfc822")];
    let path = format!("/api/v1/messages?to={to}&return_path={}", load.from);
    Ok(open.ask("POST", &path, &headers, text.as_bytes())?.status)
}

/// Connects; the handshake is made with the first octet read or written. Any certificate is trusted: for tests only.
pub fn connect(door: SocketAddr) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let tcp = TcpStream::connect_timeout(&door, Duration::from_secs(2))?;
    tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
    tcp.set_nodelay(true)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let name = ServerName::try_from("mx.test").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, tcp))
}

/// A blocking client over implicit TLS that trusts any certificate: for tests only.
pub struct TlsSession {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl TlsSession {
    pub fn open(door: SocketAddr) -> io::Result<Self> {
        let mut session = Self { stream: BufReader::new(connect(door)?) };
        session.expect("220")?;
        Ok(session)
    }

    pub fn login(&mut self, login: &str, password: &str) -> io::Result<()> {
        self.command("EHLO sender.test", "250")?;
        let proof = base64::engine::general_purpose::STANDARD.encode(format!("\0{login}\0{password}"));
        self.command(&format!("AUTH PLAIN {proof}"), "235")?;
        Ok(())
    }

    pub fn command(&mut self, line: &str, code: &str) -> io::Result<String> {
        self.say(line)?;
        self.expect(code)
    }

    /// Without waiting for the reply.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        stream.flush()
    }

    pub fn expect(&mut self, code: &str) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !line.starts_with(code) {
                return Err(io::Error::other(format!("{line:?} instead of {code}")));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

/// Digests of one message that arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Arrived {
    /// All of it.
    message: u64,
    /// What follows the header; `None` if nothing did.
    body: Option<u64>,
}

/// What arrived at the sink: serial -> each copy.
#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<BTreeMap<u64, Vec<Arrived>>>>);

impl Arrivals {
    pub fn serials(&self) -> BTreeSet<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    /// Copies beyond the first.
    pub fn extra(&self) -> usize {
        self.0.lock().unwrap().values().map(|copies| copies.len() - 1).sum()
    }

    /// Serials whose copies differ in a byte.
    pub fn differing(&self) -> Vec<u64> {
        let arrived = self.0.lock().unwrap();
        let differs = |copies: &[Arrived]| copies.windows(2).any(|pair| pair[0] != pair[1]);
        arrived.iter().filter(|(_, copies)| differs(copies)).map(|(serial, _)| *serial).collect()
    }

    /// Serials of which something arrived that was never sent so.
    pub fn invented(&self, load: &Load) -> Vec<u64> {
        let sent = |serial: u64| {
            let (_, text) = message(load, serial);
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let mut digest = DefaultHasher::new();
            body.split_inclusive('\n').for_each(|line| line.as_bytes().hash(&mut digest));
            Some(digest.finish())
        };
        let arrived = self.0.lock().unwrap();
        let wrong = arrived.iter().filter(|(serial, copies)| copies.iter().any(|copy| copy.body != sent(**serial)));
        wrong.map(|(serial, _)| *serial).collect()
    }

    /// How many copies of this message arrived.
    pub fn copies(&self, serial: u64) -> usize {
        self.0.lock().unwrap().get(&serial).map_or(0, Vec::len)
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// How the sink treats mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkMood {
    /// Takes everything.
    Takes,
    /// Answers the first try of every `n`th recipient with 450.
    DefersEvery(u64),
    /// Answers every recipient with 450.
    Shut,
    /// Takes everything, but hangs up after the dot without a reply the first time it takes every
    /// `n`th message.
    SwallowsReplyEvery(u64),
}

/// A plain SMTP receiver with PIPELINING; one thread per connection.
pub struct RecordingSink {
    pub address: SocketAddr,
    pub arrivals: Arrivals,
    mood: Arc<Mutex<SinkMood>>,
    open: Arc<AtomicUsize>,
}

impl RecordingSink {
    pub fn start(address: SocketAddr, mood: SinkMood) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let mood = Arc::new(Mutex::new(mood));
        let (arrivals, open) = (Arrivals::default(), Arc::new(AtomicUsize::new(0)));
        let sink = Self { address: listener.local_addr()?, arrivals, mood: mood.clone(), open: open.clone() };
        let (arrivals, deferred) = (sink.arrivals.clone(), Arc::new(Mutex::new(BTreeSet::new())));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (arrivals, mood, deferred, open) = (arrivals.clone(), mood.clone(), deferred.clone(), open.clone());
                open.fetch_add(1, Ordering::AcqRel);
                // A connection that breaks is the tested daemon's death; the sink goes on.
                thread::spawn(move || {
                    drop(receive(&stream, &arrivals, &mood, &deferred));
                    open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
        Ok(sink)
    }

    /// Waits until everything that a dead daemon had sent has been read: it speaks only after our greeting, so
    /// nothing of it is in a connection that was not taken yet.
    pub fn finish_reading(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.open.load(Ordering::Acquire) > 0 {
            assert!(Instant::now() < deadline, "a dead daemon's connections stay open");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Treats the next recipients so.
    pub fn set_mood(&self, mood: SinkMood) {
        *self.mood.lock().unwrap() = mood;
    }
}

fn receive(
    stream: &TcpStream,
    arrivals: &Arrivals,
    mood: &Mutex<SinkMood>,
    deferred: &Mutex<BTreeSet<String>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut line = String::new();
    writer.write_all(b"220 sink.test ESMTP\r\n")?;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply: &[u8] = match verb.as_str() {
            "EHLO" => b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 52428800\r\n",
            "RCPT" if defers(*mood.lock().unwrap(), &line, deferred) => b"450 4.2.0 greylisted, try again\r\n",
            "DATA" => {
                writer.write_all(b"354 go\r\n")?;
                let serial = read_data(&mut reader, arrivals)?;
                if swallows(*mood.lock().unwrap(), serial, arrivals) {
                    return Ok(());
                }
                b"250 2.0.0 taken\r\n"
            }
            "QUIT" => {
                writer.write_all(b"221 bye\r\n")?;
                return Ok(());
            }
            _ => b"250 2.0.0 ok\r\n",
        };
        writer.write_all(reply)?;
    }
}

fn defers(mood: SinkMood, line: &str, deferred: &Mutex<BTreeSet<String>>) -> bool {
    let nth = match mood {
        SinkMood::Takes | SinkMood::SwallowsReplyEvery(_) => return false,
        SinkMood::Shut => return true,
        SinkMood::DefersEvery(nth) => nth,
    };
    let serial =
        line.split("user").nth(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    let serial: u64 = serial.and_then(|digits| digits.parse().ok()).unwrap_or(1);
    serial.is_multiple_of(nth) && deferred.lock().unwrap().insert(line.to_owned())
}

fn swallows(mood: SinkMood, serial: Option<u64>, arrivals: &Arrivals) -> bool {
    let (SinkMood::SwallowsReplyEvery(nth), Some(serial)) = (mood, serial) else { return false };
    serial.is_multiple_of(nth) && arrivals.copies(serial) == 1
}

/// Reads one message and notes it; its serial. Its bytes must never differ between copies.
fn read_data(reader: &mut BufReader<&TcpStream>, arrivals: &Arrivals) -> io::Result<Option<u64>> {
    let mut serial = None;
    let (mut digest, mut body) = (DefaultHasher::new(), None);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            break;
        }
        line.hash(&mut digest);
        match &mut body {
            None if line == b"\r\n" => body = Some(DefaultHasher::new()),
            None => {}
            Some(body) => line.strip_prefix(b".").unwrap_or(&line).hash(body),
        }
        if serial.is_none() && line.starts_with(b"X-Serial: ") {
            serial = String::from_utf8_lossy(&line[10..]).trim().parse::<u64>().ok();
        }
    }
    if let Some(serial) = serial {
        let copy = Arrived { message: digest.finish(), body: body.map(|body| body.finish()) };
        arrivals.0.lock().unwrap().entry(serial).or_default().push(copy);
    }
    Ok(serial)
}
