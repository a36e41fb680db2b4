//! Figures of the API and of webhooks for `docs/benchmarks.md`, by hand; they print, and judge what has a goal:
//! `cargo test --release --locked --test it figures::api -- --ignored --nocapture`, and `figures::webhooks`.
//!
//! The daemon is the real binary in a process of its own. Clients, receivers and the mail's receiver are in
//! this one and share the machine with it, so both are told: what the daemon used of the processors, and what
//! everything around it used. Variables: `POSTERN_FIGURES_SECONDS` (each figure, 15), `POSTERN_FIGURES_CLIENTS`
//! (16), `POSTERN_FIGURES_RATE` (500), `POSTERN_FIGURES_MESSAGES` (what there is before), and
//! `POSTERN_FIGURES_FOLDER` (the temp folder).

mod api;
mod asking;
mod flow;
mod receiver;
mod webhooks;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use postern::access::RESOURCES;
use postern::net::{Zone, ZoneServer};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::load::{Arrivals, RecordingSink, SinkMood};
use crate::harness::process::{Credentials, Instance, free_port};

use asking::Caller;

/// Recipient domains, each with a mail exchanger.
const DOMAINS: usize = 10;
/// Linux counts processor time for its users in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long the daemon may take for what it still has to do between two figures.
const PATIENCE: Duration = Duration::from_secs(300);

fn wanted(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn span() -> Duration {
    Duration::from_secs(wanted("POSTERN_FIGURES_SECONDS", 15).max(1))
}

fn recipient_domain(number: usize) -> String {
    format!("d{}.test", number % DOMAINS + 1)
}

/// A tenant `shop` in a daemon with an API over TLS, a key of the instance for it, and a receiver of mail.
struct Stand {
    instance: Instance,
    credentials: Credentials,
    api: SocketAddr,
    key: String,
    arrivals: Arrivals,
    _sink: RecordingSink,
    _zone: ZoneServer,
    _folder: TempDir,
}

impl Stand {
    /// Starts one; `names` are more hosts at 127.0.0.1, `trusted` is a certificate that is trusted as a root.
    async fn start(names: &[&str], trusted: Option<&str>) -> Self {
        let folder = match std::env::var_os("POSTERN_FIGURES_FOLDER") {
            Some(folder) => tempfile::tempdir_in(PathBuf::from(folder)).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        let sink = RecordingSink::start((Ipv4Addr::LOCALHOST, 0).into(), SinkMood::Takes).unwrap();
        let zone = (0..DOMAINS).map(recipient_domain).fold(Zone::new(), |zone, domain| {
            let host = format!("mx.{domain}");
            zone.mx(&domain, 10, &host).ipv4(&host, Ipv4Addr::LOCALHOST)
        });
        let zone = names.iter().fold(zone, |zone, name| zone.ipv4(name, Ipv4Addr::LOCALHOST));
        let zone = ZoneServer::bind((Ipv4Addr::LOCALHOST, 0).into(), zone).await.unwrap();
        let api = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let data = folder.path().join("data");
        let mut instance = Instance::make(folder.path(), &data, zone.address(), sink.address.port());
        // The bounds on how often one may ask are for keeping others' time free, which is not the question here.
        let admin = format!("listen = [\"{api}\"]\nrequests_per_minute_max = 1000000");
        instance.reconfigure("listen = []", &admin);
        if let Some(certificate) = trusted {
            let path = folder.path().join("trusted.pem");
            fs::write(&path, certificate).unwrap();
            instance.reconfigure("[tls]\n", &format!("[tls]\ntrusted_roots = {path:?}\n"));
            instance.reconfigure("[store]", "[webhooks]\nprivate_addresses = \"allow\"\n[store]");
        }
        instance.start();
        let credentials = instance.furnish();
        let scopes: Vec<String> = RESOURCES.iter().map(|resource| format!("{}:write", resource.word())).collect();
        let mut words = vec!["key", "add", "@instance", "--json"];
        words.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        let made: Value = serde_json::from_str(&instance.tool(&words)).unwrap();
        let key = made["text"].as_str().unwrap().to_owned();
        let arrivals = sink.arrivals.clone();
        Self { instance, credentials, api, key, arrivals, _sink: sink, _zone: zone, _folder: folder }
    }

    async fn caller(&self) -> Caller {
        Caller::connect(self.api, &self.key).await
    }

    /// Waits until nothing is queued, so that one figure does not pay for another.
    async fn until_nothing_is_queued(&self) {
        let (mut caller, began) = (self.caller().await, Instant::now());
        loop {
            let totals = caller.json("GET", "/queue-totals", None).await;
            if totals["messages"] == 0 {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{totals}\n{}", self.instance.log_tail());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn use_now(&self) -> Use {
        Use { at: Instant::now(), daemon: processor_seconds(self.instance.pid()), around: processor_seconds(0) }
    }

    /// Resident memory of the daemon, in MiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.instance.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

/// Processor time used so far.
struct Use {
    at: Instant,
    daemon: f64,
    around: f64,
}

impl Use {
    /// Processors in use since then: by the daemon, and by all that is around it.
    fn since(&self, before: &Self) -> (f64, f64) {
        let span = (self.at - before.at).as_secs_f64();
        ((self.daemon - before.daemon) / span, (self.around - before.around) / span)
    }
}

/// Of a process; 0 is this one.
fn processor_seconds(pid: u32) -> f64 {
    let name = if pid == 0 { "self".to_owned() } else { pid.to_string() };
    let stat = fs::read_to_string(format!("/proc/{name}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / TICKS_PER_SECOND
}

/// Of sorted microseconds, in milliseconds.
fn percentile(sorted: &[u32], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * part).round() as usize).map_or(0.0, |micros| f64::from(*micros) / 1_000.0)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What the machine is, for whoever copies the figures.
fn describe_machine() {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) { "debug build: not for the record" } else { "release build" };
    println!("{processors} processors, load before {}, {build}", load.split(' ').next().unwrap_or_default());
}
