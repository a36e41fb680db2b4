//! How long others wait while somebody else is served badly: from MAIL to the reply to their message.
//!
//! Held against the same messages to a second daemon, which has no trouble, on the same machine in the same moments:
//! what a machine that does much else costs, it costs both.

use std::time::{Duration, Instant};

use crate::harness::load::{RecordingSink, SinkMood, TlsSession};
use crate::harness::process::Instance;
use crate::harness::zone::{SinkZone, zone_of_sink};

/// 99 of 100 messages of others are answered within this, whatever else goes on ...
pub const P99_MAX: Duration = Duration::from_millis(500);
/// ... or, on a machine that is slow anyway, within so many times what they take without any trouble.
const TIMES: u32 = 5;
/// Messages of each measurement; fewer say nothing about one in a hundred.
pub const COUNT: usize = 100;

/// How long each message took.
#[derive(Default)]
pub struct Latency {
    spans: Vec<Duration>,
}

impl Latency {
    fn clock<R>(&mut self, act: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = act();
        self.spans.push(began.elapsed());
        result
    }

    /// The span within which so many of a hundred were answered.
    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.spans.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * percent / 100]
    }
}

/// A daemon that nothing happens to, and somebody who sends by it.
pub struct Bystander {
    session: TlsSession,
    sent: u64,
    others: Latency,
    own: Latency,
    _instance: Instance,
    _sink: RecordingSink,
    _zone: SinkZone,
    _folder: tempfile::TempDir,
}

impl Bystander {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let zone = zone_of_sink(&["there.test"]);
        let sink = RecordingSink::start("127.0.0.1:0".parse().unwrap(), SinkMood::Takes).unwrap();
        let mut instance =
            Instance::make(folder.path(), &folder.path().join("data"), zone.address, sink.address.port());
        instance.start();
        let credentials = instance.furnish();
        let mut session = TlsSession::open(instance.door).unwrap();
        session.login(&credentials.login, &credentials.password).unwrap();
        let (others, own) = (Latency::default(), Latency::default());
        Self { session, sent: 0, others, own, _instance: instance, _sink: sink, _zone: zone, _folder: folder }
    }

    /// Clocks a message to the daemon in trouble, and one to the other.
    pub fn clock<R>(&mut self, act: impl FnOnce() -> R) -> R {
        let result = self.others.clock(act);
        self.sent += 1;
        let (session, serial) = (&mut self.session, self.sent);
        self.own.clock(|| send_small(session, "a@shop.test", serial)).unwrap();
        result
    }

    /// How many were clocked.
    pub fn count(&self) -> usize {
        self.others.spans.len()
    }

    /// None of those clocked had to wait because of `trouble`.
    pub fn nobody_waited(self, trouble: &str) {
        self.nobody_waited_longer(P99_MAX, trouble);
    }

    /// The same with a limit of the test's own.
    pub fn nobody_waited_longer(self, limit: Duration, trouble: &str) {
        assert!(self.count() >= COUNT, "{} messages", self.count());
        for (how, latency) in [("beside", &self.others), ("without", &self.own)] {
            let (count, half, most) = (latency.spans.len(), latency.at(50), latency.at(99));
            eprintln!("{how} {trouble}: {count} messages, p50 {half:?}, p99 {most:?} from MAIL to the reply");
        }
        let limit = limit.max(TIMES * self.own.at(99));
        assert!(self.others.at(99) <= limit, "{trouble}: p99 {:?} of others, at most {limit:?}", self.others.at(99));
    }
}

/// Hands in a message of a few octets.
pub fn send_small(session: &mut TlsSession, from: &str, serial: u64) -> std::io::Result<()> {
    session.command(&format!("MAIL FROM:<{from}>"), "250")?;
    session.command(&format!("RCPT TO:<user{serial}@there.test>"), "250")?;
    session.command("DATA", "354")?;
    session.command(&format!("From: <{from}>\r\nX-Serial: {serial}\r\n\r\nhello\r\n."), "250")?;
    Ok(())
}
