//! One installation under load, and the books that prove the promise of 250: what was acknowledged,
//! what arrived, and what the daemon had recorded as delivered when it died. Its log lines are read
//! for the last: they are written only from events that are durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use postern::store::{OpenError, VerifyReport};

use super::load::{HttpLoad, Ledger, Load, RecordingSink, Senders, SinkMood};
use super::moments::{self, Moment, Seen, Watch, lasts, moment, watch_until};
use super::process::Instance;
use super::zone::{SinkZone, zone_of_sink};

const DOMAINS: [&str; 3] = ["one.test", "two.test", "three.test"];
/// Deliveries that may be in flight at one death: 10 connections to each of three sites, each with a
/// message under way and one whose outcome waits for the disk.
const IN_FLIGHT_MAX: usize = 60;
/// Senders at the same time.
const SENDERS: usize = 8;
/// Senders by HTTP beside those of SMTP; each repeats what was not answered, with the same Idempotency-Key.
pub const HTTP_SENDERS: usize = 3;
/// How long everything acknowledged may take to arrive after the last fault.
const SETTLE_PATIENCE: Duration = Duration::from_secs(120);

/// An installation with one sender's login, its mail exchanger, and the books.
pub struct Promise {
    pub instance: Instance,
    pub sink: RecordingSink,
    pub ledger: Ledger,
    pub load: Load,
    next: Arc<AtomicU64>,
    /// Serial -> copies that had arrived when its delivery was first seen recorded.
    recorded: BTreeMap<u64, usize>,
    /// Serial -> the faults at which it had arrived and its delivery was not seen recorded.
    in_flight: BTreeMap<u64, Vec<u64>>,
    faults: u64,
    log_read: u64,
    seen: Seen,
    _zone: SinkZone,
}

impl Promise {
    /// Keys and configuration below `folder`, the data in `data`; the daemon runs.
    pub fn make(folder: &Path, data: &Path, mood: SinkMood) -> Self {
        Self::make_with(folder, data, mood, 0)
    }

    /// The same with so many senders who use the API beside those of SMTP.
    pub fn make_with(folder: &Path, data: &Path, mood: SinkMood, by_http: usize) -> Self {
        moments::tell_seed(moments::seed());
        let sink = RecordingSink::start("127.0.0.1:0".parse().unwrap(), mood).unwrap();
        let zone = zone_of_sink(&DOMAINS);
        let mut instance = Instance::make(folder, data, zone.address, sink.address.port());
        let admin = (by_http > 0).then(|| {
            instance.reconfigure("[admin]\n", "[admin]\nrequests_per_minute_max = 1000000\n");
            instance.with_admin()
        });
        instance.start();
        let credentials = instance.furnish();
        let http = admin.map(|admin| {
            let made = instance.tool(&["key", "add", "shop", "--scope", "messages:write", "--json"]);
            let made: serde_json::Value = serde_json::from_str(&made).unwrap();
            let key = made["text"].as_str().unwrap_or_else(|| panic!("no key in {made}"));
            HttpLoad { admin, bearer: format!("Bearer {key}"), senders: by_http }
        });
        let load = Load {
            door: instance.door,
            login: credentials.login,
            password: credentials.password,
            from: "orders@shop.test".to_owned(),
            domains: DOMAINS.map(str::to_owned).to_vec(),
            sizes: sizes(),
            senders: SENDERS,
            pause: Duration::ZERO,
            http,
        };
        let (ledger, next) = (Ledger::default(), Arc::default());
        let (recorded, in_flight, seen) = (BTreeMap::new(), BTreeMap::new(), Seen::default());
        Self { instance, sink, ledger, load, next, recorded, in_flight, faults: 0, log_read: 0, seen, _zone: zone }
    }

    /// Waits until the daemon has ended by itself, and says how.
    pub fn wait_for_end(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.instance.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.instance.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn senders(&self) -> Senders {
        Senders::start(&self.load, &self.ledger, &self.next)
    }

    /// Starts the daemon for a round; without a copy of its records, if it is to die while it makes one.
    pub fn start_for(&mut self, round: u64) {
        if moment(round) == Moment::InNewCopy {
            match fs::remove_dir_all(self.instance.data.join("store").join("copy")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
        self.instance.start();
        self.instance.wait_for_door();
    }

    /// Lets the senders work until the daemon of this round is to die.
    pub fn work_until(&mut self, round: u64) {
        let mut watch = Watch::begin(&self.instance.data.join("store"));
        let seen = &mut self.seen;
        let look = Duration::from_millis(10);
        let done = match moment(round) {
            Moment::Early => watch_until(&mut watch, seen, look, |watch, _| watch.has_copy()),
            Moment::Late => Ok(()),
            // The first round's may have been made while the installation was furnished.
            Moment::InNewCopy => watch_until(&mut watch, seen, Duration::from_millis(1), |watch, _| {
                watch.has_copy() || watch.saw_new_copy()
            }),
        };
        let until = Instant::now() + lasts(round);
        while Instant::now() < until {
            watch.look(seen);
            thread::sleep(look.min(until.saturating_duration_since(Instant::now())));
        }
        // It is old enough for both; a slow machine gets the time it needs.
        let done = done.and_then(|()| match moment(round) {
            Moment::Late => watch_until(&mut watch, seen, look, |_, seen| seen.checkpoints > 0 && seen.given_back > 0),
            _ => Ok(()),
        });
        assert!(
            done.is_ok(),
            "round {round}: no copy, checkpoint or free segment: {seen:?}\n{}",
            self.instance.log_tail()
        );
    }

    /// Daemons died with a copy of their records, beside checkpoints and reclaimed segments, and while they made
    /// the copy anew.
    pub fn rounds_met_everything(&self, rounds: u64) {
        let seen = self.seen;
        println!("{rounds} rounds: {seen:?}");
        assert!(2 * seen.compared > rounds, "most deaths left records and a copy to compare: {seen:?}");
        if (0..rounds).any(|round| moment(round) == Moment::Late) {
            assert!(seen.checkpoints > 0 && seen.copies > 0 && seen.given_back > 0, "{seen:?}");
        }
    }

    /// The number of the next message, for tests that send by hand.
    pub fn next_serial(&self) -> u64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Notes which deliveries the daemon has recorded, and which were in flight: those that had arrived and are
    /// not known to be recorded. For every moment at which it is dead.
    pub fn note_recorded(&mut self) {
        self.sink.finish_reading();
        let mut log = File::open(self.instance.log()).unwrap();
        log.seek(SeekFrom::Start(self.log_read)).unwrap();
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).unwrap();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.log_read += whole as u64;
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            let Some((_, to)) = line.split_once(" delivered to=<user") else { continue };
            let serial: u64 = to.split('@').next().unwrap().parse().unwrap();
            let copies = self.sink.arrivals.copies(serial);
            self.recorded.entry(serial).or_insert(copies);
        }
        self.faults += 1;
        for serial in self.sink.arrivals.serials() {
            if !self.recorded.contains_key(&serial) {
                self.in_flight.entry(serial).or_default().push(self.faults);
            }
        }
    }

    /// Every copy beyond the first is of a message that was in flight at a fault before it, one for each such
    /// fault at most, and no fault caused more of them than deliveries can be in flight.
    pub fn extra_copies_were_in_flight(&self) {
        let (none, mut caused) = (Vec::new(), BTreeMap::<u64, usize>::new());
        for serial in self.sink.arrivals.serials() {
            let extra = self.sink.arrivals.copies(serial) - 1;
            let faults = self.in_flight.get(&serial).unwrap_or(&none);
            assert!(extra <= faults.len(), "{serial} arrived {extra} times again, and was in flight at {faults:?}");
            for fault in &faults[..extra] {
                *caused.entry(*fault).or_default() += 1;
            }
        }
        let worst = caused.iter().max_by_key(|(_, extra)| **extra);
        assert!(worst.is_none_or(|(_, extra)| *extra <= IN_FLIGHT_MAX), "extra copies by fault: {caused:?}");
    }

    /// How many deliveries were seen recorded so far.
    pub fn recorded(&self) -> usize {
        self.recorded.len()
    }

    /// What arrived again after its delivery had been recorded.
    pub fn again_after_recording(&self) -> BTreeSet<u64> {
        let again = self.recorded.iter().filter(|(serial, copies)| self.sink.arrivals.copies(**serial) > **copies);
        again.map(|(serial, _)| *serial).collect()
    }

    /// What is acknowledged and not at the sink.
    pub fn missing(&self) -> BTreeSet<u64> {
        self.ledger.serials().difference(&self.sink.arrivals.serials()).copied().collect()
    }

    /// Waits until everything acknowledged has arrived; what is missing when patience ends.
    pub fn settle(&self) -> BTreeSet<u64> {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        loop {
            let missing = self.missing();
            if missing.is_empty() || Instant::now() > deadline {
                return missing;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The store as the fault left it is sound, and its records are those of their copy where there is one. The
    /// daemon must not run.
    pub fn verify(&mut self) {
        let report = self.store_report().unwrap();
        assert_eq!(report.damaged, Vec::<String>::new(), "{}", self.instance.log_tail());
        match report.copied {
            Some(_) => self.seen.compared += 1,
            None => self.seen.without_copy += 1,
        }
    }

    /// What `postern store verify` sees. The daemon must not run.
    pub fn store_report(&self) -> Result<VerifyReport, OpenError> {
        postern::store::verify(&self.instance.data.join("store"))
    }

    /// After settling, a restart sends nothing again whose delivery was recorded. What an earlier fault left
    /// in doubt may be tried again at any moment.
    pub fn nothing_is_sent_again_by_a_restart(&mut self) {
        // Recording follows the sink's 250; give the last group its sync.
        thread::sleep(Duration::from_secs(1));
        self.instance.kill();
        self.note_recorded();
        self.instance.start();
        thread::sleep(Duration::from_secs(3));
        let again = self.again_after_recording();
        assert!(again.is_empty(), "a restart delivered again what was recorded: {again:?}");
    }

    /// Starts the daemon and stops it again: what says that acknowledged mail is lost, if anything does. Only
    /// where nothing was delivered, so that each acknowledged message must have its body in the store, and
    /// only a refusal that names damage or what is missing counts, not that it did not start.
    pub fn evidence_of_loss(&mut self) -> Option<String> {
        assert_eq!(self.sink.arrivals.len(), 0, "something was delivered");
        if let Err(why) = self.instance.try_start() {
            return match self.store_report() {
                Err(error @ OpenError::WentBack { .. }) => Some(error.to_string()),
                Err(OpenError::Records(text)) if text.contains("damaged") => Some(text),
                other => {
                    println!("it did not start, and nothing says that mail is lost: {other:?}\n{why}");
                    None
                }
            };
        }
        assert!(self.instance.stop().success());
        let (report, acknowledged) = (self.store_report().unwrap(), self.ledger.len() as u64);
        let lost = acknowledged.checked_sub(report.bodies).filter(|lost| *lost > 0);
        lost.map(|lost| format!("{lost} of {acknowledged}"))
    }

    /// One line of figures, seen with `--nocapture`, and a row in the table of `tests/faults/run`.
    pub fn report(&self, kind: &str, rounds: u64) {
        row(&[
            kind.to_owned(),
            rounds.to_string(),
            self.ledger.len().to_string(),
            self.missing().len().to_string(),
            self.recorded().to_string(),
            self.again_after_recording().len().to_string(),
            self.sink.arrivals.extra().to_string(),
        ]);
        println!(
            "{kind}: {rounds} rounds, {} acknowledged, {} lost, {} deliveries seen recorded at a fault, \
             {} delivered again after that, {} extra copies in all",
            self.ledger.len(),
            self.missing().len(),
            self.recorded(),
            self.again_after_recording().len(),
            self.sink.arrivals.extra()
        );
    }
}

/// Mostly mail of usual sizes; now and then one that gets a segment of its own.
fn sizes() -> Vec<usize> {
    let mut sizes = [1, 400, 2_000, 20_000, 60_000, 300_000].repeat(20);
    sizes.extend([5_000_000, 10_000_000]);
    sizes
}

/// Adds a row to the table that `tests/faults/run` prints: fault, rounds, acknowledged, lost,
/// deliveries seen recorded, made again after that, extra copies; what does not apply is left out.
pub fn row(cells: &[String]) {
    let Some(path) = std::env::var_os("POSTERN_FAULTS_TABLE") else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{}\n", cells.join("\t")).as_bytes()).unwrap();
}

/// Whether the long round was asked for: `tests/faults/run --long`.
pub fn is_long() -> bool {
    std::env::var_os("POSTERN_FAULTS_LONG").is_some()
}

/// Rounds of each kind: `POSTERN_CRASH_ROUNDS`, else `usual`, five times that in a long round.
pub fn rounds(usual: u64) -> u64 {
    let usual = if is_long() { 5 * usual } else { usual };
    std::env::var("POSTERN_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Whether `tests/run --quick` left this out.
pub fn is_quick() -> bool {
    std::env::var_os("POSTERN_TESTS_QUICK").is_some()
}
