//! Submission by the programs people use: swaks, msmtp, Python's smtplib, PHPMailer, Nodemailer,
//! Symfony Mailer and Django. Each logs in at 465 and at 587 with STARTTLS and sends what shops send;
//! what arrived at the other end is read by Python and its signatures are judged by foreign verifiers.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use postern::mail::Domain;
use postern::net::Certificates;
use postern::sink::{Received, Sink};
use serde_json::json;

use crate::dkim_verifiers::runs;
use crate::harness::apart::{Apart, kept_folder, run, run_apart};
use crate::harness::not_run;
use crate::harness::process::Credentials;
use crate::harness::shop::{SENDER, Shop, VIP, VIP_NAME};
use crate::interop::{dkim_passes, show_mail};

const SINK: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 9);
/// How long a message may take from a client to the sink.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(60);
/// A version that was tried; npm gets nothing else.
const NODEMAILER: &str = "nodemailer@10.6.0";
/// A version that was tried; pip gets it and what it needs into a folder of its own.
const DJANGO: &str = "django==4.2.16";
const RECIPIENTS: &str = "anna@peer.test,bert@peer.test,cora@peer.test";

/// Name, program that runs the script, script, and how to see whether it is there.
const CLIENTS: &[(&str, &str, &str, &[&str])] = &[
    ("swaks", "bash", "swaks.sh", &["swaks", "--version"]),
    ("msmtp", "bash", "msmtp.sh", &["msmtp", "--version"]),
    ("Python smtplib", "python3", "python.py", &["python3", "--version"]),
    (
        "PHPMailer",
        "php",
        "phpmailer.php",
        &["php", "-r", "require '/usr/share/php/libphp-phpmailer/src/PHPMailer.php';"],
    ),
    ("Nodemailer", "node", "nodemailer.js", &["node", "-e", "require('nodemailer')"]),
    ("Symfony Mailer", "php", "symfony.php", &["php", "-r", "require 'Symfony/Component/Mailer/autoload.php';"]),
    ("Django", "python3", "django_mail.py", &["python3", "-c", "import django.core.mail"]),
];

#[test]
fn every_client_sends_by_both_ways_and_reports_a_wrong_password() {
    let test = "clients::every_client_sends_by_both_ways_and_reports_a_wrong_password";
    // Only what npm and pip have to fetch needs the real network; without it the other clients run.
    if run_apart(test, || {
        for (name, fetched) in [("Nodemailer", fetch_nodemailer()), ("Django", fetch_django())] {
            if let Err(reason) = fetched {
                eprintln!("{name} could not be fetched: {reason}");
            }
        }
        Ok(())
    }) == Apart::Done
    {
        return;
    }
    let shop = Shop::open(SINK);
    let sink = start_sink(shop.folder.path());
    let papers = Papers::make(shop.folder.path());
    let mut sent = BTreeMap::new();
    for client in CLIENTS {
        if !runs_here(client) {
            not_run(&format!("submission by {}", client.0), "it is not installed");
            continue;
        }
        let credentials = shop.instance.add_account("shop");
        for (way, port) in [("tls", "465"), ("starttls", "587")] {
            let attempt = Attempt { client, way, port, shop: &shop, papers: &papers };
            attempt.is_refused_with_a_wrong_password(&credentials);
            attempt.send_both_kinds(&credentials, &mut sent);
        }
    }
    let arrived = gather(&sink, &sent);
    compare(&shop, &papers, &sent, &arrived);
    println!("{} messages by {} clients", sent.len(), CLIENTS.len());
}

fn fetch_nodemailer() -> Result<(), String> {
    let folder = kept_folder()?.join("npm");
    if folder.join("node_modules/nodemailer/package.json").exists() {
        return Ok(());
    }
    let mut command = Command::new("npm");
    command.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(folder);
    run(command.arg(NODEMAILER))
}

fn fetch_django() -> Result<(), String> {
    let folder = python_path().ok_or("there is no folder to keep it in")?;
    if folder.join("django/__init__.py").exists() {
        return Ok(());
    }
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&folder);
    run(command.arg(DJANGO))
}

fn python_path() -> Option<PathBuf> {
    Some(kept_folder().ok()?.join("python"))
}

fn node_path() -> PathBuf {
    kept_folder().unwrap().join("npm/node_modules")
}

fn runs_here((_, _, _, check): &(&str, &str, &str, &[&str])) -> bool {
    Command::new(check[0])
        .args(&check[1..])
        .env("NODE_PATH", node_path())
        .env("PYTHONPATH", python_path().unwrap_or_default())
        .output()
        .is_ok_and(|ran| ran.status.success())
        && (check[0] != "python3" || runs("python3", &["-c", "import smtplib"]))
}

fn start_sink(folder: &Path) -> Receiver<Received> {
    let certificates = folder.join("sink-certificates");
    Certificates::write_self_signed(&certificates, &Domain::parse("mx.peer.test").unwrap()).unwrap();
    let sink = Sink::start((SINK, 25).into(), "mx.peer.test", &certificates.join("mx.peer.test")).unwrap();
    sink.received
}

/// What is sent.
struct Papers {
    plain: PathBuf,
    umlauts: PathBuf,
    attachment: PathBuf,
}

impl Papers {
    fn make(folder: &Path) -> Self {
        let file = |name: &str, octets: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, octets).unwrap();
            path
        };
        Self {
            plain: file("plain.txt", b"Your order is on its way.\n.\n..dots\n  three lines.\n"),
            umlauts: file("umlauts.txt", "Grüße aus Köln, 日本語, и всё.\nZweite Zeile.\n".as_bytes()),
            attachment: file("invoice.pdf", &(0..50_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
        }
    }
}

/// What must be found in a message, by its subject.
struct Sent {
    text: PathBuf,
    has_attachment: bool,
    recipients: usize,
}

struct Attempt<'a> {
    client: &'a (&'a str, &'a str, &'a str, &'a [&'a str]),
    way: &'a str,
    port: &'a str,
    shop: &'a Shop,
    papers: &'a Papers,
}

impl Attempt<'_> {
    fn run(&self, login: &Credentials, to: &str, subject: &str, papers: &[&Path]) -> Output {
        let (_, program, script, _) = self.client;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign/clients").join(script);
        let mut command = Command::new(program);
        command.env("NODE_PATH", node_path()).env("PYTHONPATH", python_path().unwrap_or_default());
        command.arg(script).args([VIP_NAME, self.port, self.way]);
        command.arg(&self.shop.certificate).args([&login.login, &login.password]).args([SENDER, to, subject]);
        command.args(papers).output().unwrap()
    }

    fn is_refused_with_a_wrong_password(&self, credentials: &Credentials) {
        let wrong = Credentials { password: "not-the-password".to_owned(), ..credentials.clone() };
        let output = self.run(&wrong, "anna@peer.test", "must not arrive", &[&self.papers.plain]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let name = self.client.0;
        assert!(!output.status.success(), "{name} took a wrong password for good: {said}");
        assert!(said.contains("535"), "{name} does not report the refusal: {said}");
    }

    fn send_both_kinds(&self, credentials: &Credentials, sent: &mut BTreeMap<String, Sent>) {
        let (name, way, papers) = (self.client.0, self.way, self.papers);
        let mut send = |subject: String, to: &str, text: &Path, attachment: Option<&Path>| {
            let given: Vec<_> = std::iter::once(text).chain(attachment).collect();
            let output = self.run(credentials, to, &subject, &given);
            let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let log = self.shop.instance.log_tail();
            assert!(output.status.success(), "{name}, {way}: {said}{complained}\n{log}");
            let recipients = to.split(',').count();
            sent.insert(subject, Sent { text: text.to_owned(), has_attachment: attachment.is_some(), recipients });
        };
        send(format!("plain by {name} {way}"), "anna@peer.test", &papers.plain, None);
        send(format!("8 bits: Grüße by {name} {way}"), "anna@peer.test", &papers.umlauts, None);
        send(format!("Rechnung für 日本 by {name} {way}"), RECIPIENTS, &papers.umlauts, Some(&papers.attachment));
    }
}

/// Everything that was sent, once.
fn gather(sink: &Receiver<Received>, sent: &BTreeMap<String, Sent>) -> Vec<Received> {
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        match sink.recv_timeout(ARRIVAL_PATIENCE) {
            Ok(received) => arrived.push(received),
            Err(_) => panic!("{} of {} messages arrived", arrived.len(), sent.len()),
        }
    }
    assert!(sink.recv_timeout(Duration::from_secs(1)).is_err(), "more arrived than was sent");
    arrived
}

fn compare(shop: &Shop, papers: &Papers, sent: &BTreeMap<String, Sent>, arrived: &[Received]) {
    let mut paths = Vec::new();
    for (number, received) in arrived.iter().enumerate() {
        assert_eq!((received.peer, received.helo.as_str()), (VIP.into(), VIP_NAME));
        let path = shop.folder.path().join(format!("arrived-{number}"));
        fs::write(&path, &received.message).unwrap();
        paths.push(path);
    }
    let digest = digest_of(&papers.attachment);
    let mut seen = Vec::new();
    for (shown, received) in show_mail(&paths).iter().zip(arrived) {
        let subject = shown["subject"].as_str().unwrap().to_owned();
        let expected = sent.get(&subject).unwrap_or_else(|| panic!("nobody sent {subject:?}"));
        let text = fs::read_to_string(&expected.text).unwrap();
        let arrived_text = shown["text"].as_str().unwrap_or_default();
        // Clients differ in the blank lines they end a part with.
        assert_eq!(arrived_text.trim_end(), text.trim_end(), "{subject}");
        assert_eq!(received.recipients.len(), expected.recipients, "{subject}");
        let attachments = if expected.has_attachment { json!({"invoice.pdf": digest}) } else { json!({}) };
        assert_eq!(shown["attachments"], attachments, "{subject}");
        assert_eq!(shown["defects"], json!([]), "{subject}");
        assert!(shown["message_id"] != "None" && shown["date"] != "None", "{subject}");
        assert!(received.message.is_ascii(), "{subject}: 8-bit text must have been converted before it was signed");
        seen.push(subject);
    }
    seen.sort();
    assert!(seen.iter().eq(sent.keys()), "{seen:?}");
    dkim_passes(&paths, &shop.dkim_zone);
}

fn digest_of(path: &Path) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(fs::read(path).unwrap()).iter().map(|octet| format!("{octet:02x}")).collect()
}
