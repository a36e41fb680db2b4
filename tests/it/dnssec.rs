//! DANE and MTA-STS as they are in the world: zones signed and served by Knot DNS, validated by unbound, policies
//! at an HTTPS server that is not ours, and peers that are what their domains say, or are not.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::config;
use postern::events::{Event, EventKind, MailEvent, Why};
use postern::mail::QueueId;
use postern::net::{Zone, ZoneServer};
use postern::store::{after_prefix, codec, prefix};
use postern::tlsrpt::Sending;
use postern::vips::Owner;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use crate::dkim_verifiers::runs;
use crate::harness::apart::{Apart, DNS, kept_folder, run, run_apart};
use crate::harness::daemon::{self, Login, Running, new_folder, operator};
use crate::harness::peer::{Peer, Script};

const TEST: &str = "dnssec::what_a_signed_zone_and_a_policy_server_demand_is_kept_and_downgrades_are_refused";
const HTTPS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 100);
/// How long a verdict may take, DNS included.
const PATIENCE: Duration = Duration::from_secs(60);

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// Unpacks Knot and unbound, once per machine. In a mount namespace, so that nothing stays mounted.
fn make_root() -> Result<(), String> {
    if !runs("python3", &["-c", "import http.server, ssl"]) {
        return Err("python3 is not installed".to_owned());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]).arg(peers().join("root.sh"));
    command.arg("make").arg(kept_folder()?.join("dnssec")).args(["knot", "knot-dnssecutils", "unbound"]);
    run(&mut command).map_err(|error| format!("knot and unbound could not be unpacked: {error}"))
}

/// A zone file of a domain whose only mail host is `mx.` before it, at `mx`.
fn zone_file(name: &str, mx: Ipv4Addr, more: &str) -> String {
    format!(
        "$ORIGIN {name}.\n$TTL 300\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.54\n@ MX 10 mx\n\
         mx A {mx}\n{more}"
    )
}

/// The record that pins a certificate's key.
fn pin(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let digest = Sha256::digest(parsed.tbs_certificate.subject_pki.raw);
    let digits: String = digest.iter().map(|octet| format!("{octet:02x}")).collect();
    format!("_25._tcp.mx TLSA 3 1 1 {digits}\n")
}

/// Where policies are, and that there is one.
fn announced() -> String {
    format!("_mta-sts TXT \"v=STSv1; id=1;\"\nmta-sts A {HTTPS}\n")
}

/// The world inside the namespace: peers at port 25, zones, the policy server. Kept while the test runs.
struct World {
    peers: Vec<Peer>,
    roots: PathBuf,
    _policies: Server,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    async fn make(folder: &Path) -> Self {
        let zones = folder.join("zones");
        for kind in ["signed", "forged", "unsigned"] {
            fs::create_dir_all(zones.join(kind)).unwrap();
        }
        let write = |place: &str, name: &str, mx: Ipv4Addr, more: &str| {
            fs::write(zones.join(place).join(format!("{name}.zone")), zone_file(name, mx, more)).unwrap();
        };
        let with_tls = |name: &str| Script::polite().with_tls(&format!("mx.{name}"));
        let (mut peers, mut roots) = (Vec::new(), String::new());
        let (_, of_nobody) = with_tls("nobody.test");
        for (number, (place, name)) in [
            ("signed", "matched.test"),
            ("signed", "wrong.test"),
            ("signed", "stripped.test"),
            ("forged", "forged.test"),
            ("unsigned", "unsigned.test"),
            ("unsigned", "strict.test"),
            ("unsigned", "downgraded.test"),
        ]
        .into_iter()
        .enumerate()
        {
            let address = Ipv4Addr::new(127, 0, 1, u8::try_from(number + 1).unwrap());
            let (script, certificate) = with_tls(name);
            let (script, records) = match name {
                "matched.test" | "forged.test" => (script, pin(&certificate)),
                "wrong.test" | "unsigned.test" => (script, pin(&of_nobody)),
                "stripped.test" => (Script::polite(), pin(&certificate)),
                "strict.test" => {
                    roots.push_str(&pem(&certificate));
                    (script, announced())
                }
                _ => (Script::polite(), announced()),
            };
            write(place, name, address, &records);
            peers.push(Peer::start(SocketAddr::from((address, 25)), script).await);
        }
        let (policies, certificate) = serve_policies(folder, &["strict.test", "downgraded.test"]);
        roots.push_str(&certificate);
        let file = folder.join("roots.pem");
        fs::write(&file, roots).unwrap();
        start_dns(folder, &zones);
        Self { peers, roots: file, _policies: policies }
    }

    /// The messages that the peer of the `number`th domain took.
    fn taken(&self, number: usize) -> usize {
        self.peers[number].taken().len()
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Python's server with a certificate for the policy hosts of these domains; its text.
fn serve_policies(folder: &Path, domains: &[&str]) -> (Server, String) {
    let (certificate, key, policies) = (folder.join("sts.pem"), folder.join("sts.key"), folder.join("policies"));
    fs::create_dir_all(&policies).unwrap();
    for domain in domains {
        let text = format!("version: STSv1\r\nmode: enforce\r\nmx: mx.{domain}\r\nmax_age: 604800\r\n");
        fs::write(policies.join(format!("mta-sts.{domain}")), text).unwrap();
    }
    let names = domains.iter().map(|domain| format!("mta-sts.{domain}")).collect::<Vec<_>>();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign/serve_policies.py");
    let mut python = Command::new("python3");
    let child = python.arg(script).arg(HTTPS.to_string()).arg(&certificate).arg(&key).arg(&policies).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect((HTTPS, 443)).is_err() {
        assert!(Instant::now() < deadline, "the policy server does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    (Server(child), fs::read_to_string(certificate).unwrap())
}

fn start_dns(folder: &Path, zones: &Path) {
    let log = fs::File::create(folder.join("dns.log")).unwrap();
    let mut command = Command::new(peers().join("dnssec/start.sh"));
    command.arg(kept_folder().unwrap().join("dnssec")).arg(zones);
    // Its own output goes to a file: a daemon that keeps a pipe open would keep us waiting.
    let status = command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
    assert!(status.success(), "{}", fs::read_to_string(folder.join("dns.log")).unwrap_or_default());
}

/// The daemon, asking unbound, trusting the roots of this world.
async fn start(world: &World) -> (Running, Login) {
    let folder = new_folder();
    let more = format!(
        "dns.servers = [\"{DNS}\"]\ndelivery.private_addresses = \"allow\"\ntls.trusted_roots = \"{}\"\n",
        world.roots.display()
    );
    // Nobody asks it.
    let zone = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Zone::new()).await.unwrap();
    let mut config =
        config::read(&folder.path().join("postern.toml"), &daemon::config_text(folder.path(), &more)).unwrap();
    config.submission.tls_ports.clear();
    config.submission.starttls_ports.clear();
    config.feedback.submission.starttls_ports.clear();
    config.tls_reports.sending = Sending::On;
    let running = Running::start_with(config, folder, Arc::new(zone)).await;
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "out.shop.test", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.test").await;
    let login = running.account(tenant).await;
    (running, login)
}

fn verdict(running: &Running, id: QueueId) -> Option<MailEvent> {
    let all = running.daemon.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap();
    let events = all.into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind);
    let of_it = events.filter_map(|kind| match kind {
        EventKind::Mail(of, event) if of == id => Some(event),
        _ => None,
    });
    let is_verdict = |event: &MailEvent| {
        matches!(event, MailEvent::Delivered { .. } | MailEvent::Deferred { .. } | MailEvent::Bounced { .. })
    };
    of_it.into_iter().find(is_verdict)
}

/// Sends one message to `domain`; `delivered: TLS words`, or `deferred, why: words`.
async fn sent_to(running: &Running, login: &Login, domain: &str) -> String {
    let to = format!("ann@{domain}");
    let said = running.submit(login, "a@shop.test", &to, "From: a@shop.test\r\nSubject: x\r\n\r\nhello\r\n").await;
    let id: QueueId = said.split_whitespace().last().unwrap().parse().unwrap_or_else(|_| panic!("{said}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match verdict(running, id) {
            Some(MailEvent::Delivered { peer, .. }) => return format!("delivered: {}", peer.tls),
            Some(MailEvent::Deferred { why, detail, .. }) => {
                let why = if why == Why::TlsPolicy { "policy".to_owned() } else { format!("{why:?}") };
                return format!("deferred, {why}: {detail}");
            }
            Some(other) => panic!("{domain}: {other:?}"),
            None => {}
        }
        assert!(Instant::now() < deadline, "no verdict on mail to {domain}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Each domain, how its verdict begins and ends, and whether its peer got the message.
const EXPECTED: &[(&str, &str, &str, bool)] = &[
    (
        "matched.test",
        "delivered: TLSv1.3",
        "certificate matches its TLSA record; policy: DANE of mx.matched.test",
        true,
    ),
    ("wrong.test", "deferred, policy: 451 4.7.5 mx.wrong.test: ", "demanded by DANE of mx.wrong.test", false),
    (
        "stripped.test",
        "deferred, policy: 451 4.7.4 mx.stripped.test: required, and the peer does not offer STARTTLS",
        "demanded by DANE of mx.stripped.test",
        false,
    ),
    ("forged.test", "deferred, Dns: 451 4.4.3 TLSA of mx.forged.test: DNSSEC refutes the answer", "", false),
    // No AD, no DANE: a record that nobody proves neither helps nor harms. (Its issuer is called as roots here are.)
    ("unsigned.test", "delivered: TLSv1.3", "certificate not verified: invalid peer certificate: BadSignature", true),
    ("strict.test", "delivered: TLSv1.3", "certificate verified; policy: MTA-STS of strict.test (enforce)", true),
    (
        "downgraded.test",
        "deferred, policy: 451 4.7.4 mx.downgraded.test: required, and the peer does not offer STARTTLS",
        "demanded by MTA-STS of downgraded.test (enforce)",
        false,
    ),
];

#[test]
fn what_a_signed_zone_and_a_policy_server_demand_is_kept_and_downgrades_are_refused() {
    if run_apart(TEST, make_root) == Apart::Done {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let world = World::make(folder.path()).await;
        let (running, login) = start(&world).await;
        for (number, (domain, beginning, end, is_taken)) in EXPECTED.iter().enumerate() {
            let found = sent_to(&running, &login, domain).await;
            assert!(found.starts_with(beginning) && found.ends_with(end), "{domain}: {found}");
            assert_eq!(world.taken(number), usize::from(*is_taken), "{domain}");
        }
        for (name, expected) in [
            ("matched.test", "tlsa 1/0"),
            ("wrong.test", "tlsa 0/1 certificate-host-mismatch"),
            ("stripped.test", "tlsa 0/1 starttls-not-supported"),
            ("forged.test", "tlsa 0/1 dnssec-invalid"),
            ("unsigned.test", "no-policy-found 1/0"),
            ("strict.test", "sts 1/0"),
            ("downgraded.test", "sts 0/1 starttls-not-supported"),
        ] {
            assert_eq!(reported(&running, name), expected, "{name}");
        }
        running.stop().await;
    });
}

/// What its domain will be told.
fn reported(running: &Running, name: &str) -> String {
    let (_, report) = running.daemon.tls_reports.preview(&operator(), &daemon::domain(name)).unwrap();
    let policy = &report.policies[0];
    let (good, bad) = (policy.summary.total_successful_session_count, policy.summary.total_failure_session_count);
    let details = policy.failure_details.iter().map(|detail| format!(" {}", detail.result_type));
    format!("{} {good}/{bad}{}", policy.policy.policy_type, details.collect::<String>())
}
