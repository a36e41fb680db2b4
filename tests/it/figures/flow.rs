//! Mail by SMTP at a steady rate: a schedule of moments, and sessions that take the next of them in turn.
//! What falls behind by more than a second is not made up for, so that one figure does not pay for another.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{DOMAINS, Stand, percentile, recipient_domain};
use crate::harness::load::{Load, TlsSession, message};

/// Sessions at the same time.
const SESSIONS: usize = 20;
/// Octets of a message's body.
const BODY_BYTES: usize = 20 * 1024;
/// A flow that is further behind goes on from here.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// A session says goodbye after so many messages.
const MESSAGES_A_SESSION: usize = 50;

/// Mail under way.
pub struct Flow {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    load: Load,
    /// Between two messages; `None` is as fast as they are taken.
    interval: Option<Duration>,
    /// When the next one is to be sent.
    due: Mutex<Instant>,
    next: AtomicU64,
    until: u64,
    accepted: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
    /// From the end of a message to its 250, in microseconds.
    waits: Mutex<Vec<u32>>,
}

/// What flowed between two looks.
pub struct Flowed {
    pub accepted: u64,
    pub waits: Vec<u32>,
}

impl Flowed {
    pub fn wait(&self, part: f64) -> f64 {
        percentile(&self.waits, part)
    }
}

impl Flow {
    /// Sends the messages of these serials, at a rate if there is one.
    pub fn start(stand: &Stand, serials: std::ops::Range<u64>, rate: Option<f64>) -> Self {
        let load = Load {
            door: stand.instance.door,
            login: stand.credentials.login.clone(),
            password: stand.credentials.password.clone(),
            from: "orders@shop.test".to_owned(),
            domains: (0..DOMAINS).map(recipient_domain).collect(),
            sizes: vec![BODY_BYTES],
            senders: SESSIONS,
            pause: Duration::ZERO,
            http: None,
        };
        let shared = Arc::new(Shared {
            load,
            interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            due: Mutex::new(Instant::now()),
            next: AtomicU64::new(serials.start),
            until: serials.end,
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            waits: Mutex::default(),
        });
        let begin = |_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while shared.goes_on() {
                    if send_some(&shared).is_err() {
                        shared.refused.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            })
        };
        let threads = (0..SESSIONS).map(begin).collect();
        Self { shared, threads }
    }

    /// What was accepted since the last look.
    pub fn look(&self) -> Flowed {
        let mut waits = std::mem::take(&mut *self.shared.waits.lock().unwrap());
        waits.sort_unstable();
        Flowed { accepted: waits.len() as u64, waits }
    }

    /// The serial behind the last.
    pub fn reached(&self) -> u64 {
        self.shared.next.load(Ordering::Relaxed).min(self.shared.until)
    }

    /// Waits until all of them are sent, or ends it at once; how many were accepted, and how often it failed.
    pub async fn end(self, how: End) -> (u64, u64) {
        if how == End::Now {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        let joined = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().for_each(|thread| thread.join().unwrap());
            (self.shared.accepted.load(Ordering::Relaxed), self.shared.refused.load(Ordering::Relaxed))
        });
        joined.await.unwrap()
    }
}

/// How a flow ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Now,
    WhenAllIsSent,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.next.load(Ordering::Relaxed) < self.until
    }

    /// The next serial at its moment.
    fn take(&self) -> Option<u64> {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        if serial >= self.until {
            return None;
        }
        if let Some(interval) = self.interval {
            let at = {
                let mut due = self.due.lock().unwrap();
                let at = Instant::now().checked_sub(BEHIND_MAX).map_or(*due, |behind| behind.max(*due));
                *due = at + interval;
                at
            };
            while Instant::now() < at {
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                thread::sleep(at.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)));
            }
        }
        (!self.stop.load(Ordering::Relaxed)).then_some(serial)
    }
}

fn send_some(shared: &Shared) -> io::Result<()> {
    let door: SocketAddr = shared.load.door;
    let mut session = TlsSession::open(door)?;
    session.login(&shared.load.login, &shared.load.password)?;
    for _ in 0..MESSAGES_A_SESSION {
        let Some(serial) = shared.take() else { break };
        let (to, text) = message(&shared.load, serial);
        // RFC 2920: in one piece, as clients do.
        session.say(&format!("MAIL FROM:<{}>\r\nRCPT TO:<{to}>\r\nDATA", shared.load.from))?;
        for code in ["250", "250", "354"] {
            session.expect(code)?;
        }
        let stuffed = format!("{}.", text.replace("\r\n.", "\r\n.."));
        let began = Instant::now();
        session.command(&stuffed, "250")?;
        let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        shared.waits.lock().unwrap().push(took);
        shared.accepted.fetch_add(1, Ordering::Relaxed);
    }
    session.command("QUIT", "221").map(drop)
}
