//! Delivery into mail servers that are not ours: Postfix, Exim and OpenSMTPD, each from its Debian
//! package in a root of its own, and Haraka from npm. What they stored is read back, judged by two DKIM verifiers and
//! compared with what was handed in; their refusals come back as notices that Python reads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::dkim_verifiers::{runs, script, verdicts};
use crate::harness::apart::{Apart, kept_folder, run, run_apart};
use crate::harness::not_run;
use crate::harness::shop::{SENDER, Shop, VIP, VIP_NAME};

/// How long a message may take from the door into the peer's mailbox.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(60);
/// The longest line of a message without its CR LF (RFC 5322 s2.1.1).
const LINE_MAX: usize = 998;
const ANNA: &str = "anna@peer.test";
const BERT: &str = "bert@peer.test";
const NOBODY: &str = "nobody@peer.test";

struct Peer {
    name: &'static str,
    package: &'static str,
    address: Ipv4Addr,
    /// Whether a handshake after STARTTLS succeeds.
    has_tls: bool,
    /// How it refuses an unknown recipient: the status, and its whole reply.
    refusal: (&'static str, &'static str),
}

#[test]
fn postfix_takes_everything_and_its_refusal_comes_back() {
    let refusal =
        ("5.1.1", "550 5.1.1 <nobody@peer.test>: Recipient address rejected: User unknown in virtual mailbox table");
    let address = Ipv4Addr::new(127, 0, 1, 1);
    let peer = Peer { name: "postfix", package: "postfix", address, has_tls: true, refusal };
    delivers_into(&peer, "interop::postfix_takes_everything_and_its_refusal_comes_back");
}

#[test]
fn exim_takes_everything_and_its_refusal_comes_back() {
    let refusal = ("5.1.1", "550 5.1.1 no such mailbox here");
    let address = Ipv4Addr::new(127, 0, 1, 2);
    let peer = Peer { name: "exim", package: "exim4-daemon-light", address, has_tls: true, refusal };
    delivers_into(&peer, "interop::exim_takes_everything_and_its_refusal_comes_back");
}

/// Debian 12's OpenSMTPD offers STARTTLS and fails every handshake: mail must come without it.
#[test]
fn opensmtpd_takes_everything_without_tls_and_its_refusal_comes_back() {
    // It gives no enhanced status: a refused RCPT is about the recipient.
    let refusal = ("5.1.1", "550 Invalid recipient: <nobody@peer.test>");
    let address = Ipv4Addr::new(127, 0, 1, 3);
    let peer = Peer { name: "opensmtpd", package: "opensmtpd", address, has_tls: false, refusal };
    delivers_into(&peer, "interop::opensmtpd_takes_everything_without_tls_and_its_refusal_comes_back");
}

/// It has no mailboxes: what it takes it passes on, and what it cannot pass on comes back.
#[test]
fn haraka_takes_mail_whose_later_bounce_is_understood() {
    let address = Ipv4Addr::new(127, 0, 1, 4);
    let refusal = ("", "");
    let peer = Peer { name: "haraka", package: "Haraka", address, has_tls: false, refusal };
    if run_apart("interop::haraka_takes_mail_whose_later_bounce_is_understood", install_haraka) == Apart::Done {
        return;
    }
    let shop = Shop::open(peer.address);
    start_haraka(&peer, &shop.folder.path().join("haraka"));
    its_later_bounce_stops_the_address(&peer, &shop);
}

/// From npm into a folder of its own, once per machine.
fn install_haraka() -> Result<(), String> {
    let folder = kept_folder()?.join("haraka");
    if folder.join("node_modules/Haraka/package.json").is_file() {
        return Ok(());
    }
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    fs::copy(peers().join("haraka/package.json"), folder.join("package.json")).map_err(|error| error.to_string())?;
    let mut npm = Command::new("npm");
    // Some registries withhold what is newer than a few weeks, and Haraka names its dependencies loosely.
    npm.current_dir(&folder).args(["install", "--no-audit", "--no-fund", "--before=2026-08-01"]);
    run(&mut npm).map_err(|error| format!("npm cannot install Haraka: {error}"))
}

/// Its configuration and our plugin in a folder of its own; it ends with the namespace.
fn start_haraka(peer: &Peer, folder: &Path) {
    let installed = kept_folder().unwrap().join("haraka");
    let package = installed.join("node_modules/Haraka");
    for (from, to) in [(peers().join("haraka/config"), "config"), (peers().join("haraka/plugins"), "plugins")] {
        fs::create_dir_all(folder.join(to)).unwrap();
        for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), folder.join(to).join(file.file_name())).unwrap();
        }
    }
    fs::create_dir_all(folder.join("queue")).unwrap();
    // Its own words for a notice.
    for file in fs::read_dir(package.join("config")).unwrap().map(Result::unwrap) {
        let name = file.file_name();
        if name == "connection.ini" || name.to_string_lossy().starts_with("outbound.bounce_message") {
            fs::copy(file.path(), folder.join("config").join(name)).unwrap();
        }
    }
    std::os::unix::fs::symlink(installed.join("node_modules"), folder.join("node_modules")).unwrap();
    let log = fs::File::create(installed.join("log")).unwrap();
    let mut node = Command::new("node");
    node.arg(package.join("bin/haraka")).arg("-c").arg(folder).current_dir(folder);
    node.stdout(log.try_clone().unwrap()).stderr(log);
    let server = thread::spawn(move || node.status());
    let deadline = Instant::now() + ARRIVAL_PATIENCE;
    while TcpStream::connect((peer.address, 25)).is_err() {
        let said = || fs::read_to_string(installed.join("log")).unwrap_or_default();
        assert!(!server.is_finished() && Instant::now() < deadline, "Haraka does not answer\n{}", said());
        thread::sleep(Duration::from_millis(100));
    }
}

fn delivers_into(peer: &Peer, test: &str) {
    if run_apart(test, || make_root(peer)) == Apart::Done {
        return;
    }
    let shop = Shop::open(peer.address);
    let mailboxes = start(peer, shop.folder.path());
    let cases = Cases::hand_in(&shop);
    let arrived = Arrived::wait(&mailboxes, &cases);
    cases.compare_with(&arrived);
    names_source_and_tls_are_as_configured(peer, &arrived);
    several_recipients_share_a_transaction(&arrived);
    foreign_verifiers_pass(&shop, &arrived);
    python_reads_the_notice(peer, &arrived, shop.folder.path());
    its_later_bounce_stops_the_address(peer, &shop);
    println!("{}: {} messages in {} copies", peer.name, cases.0.len(), arrived.copies());
}

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// Unpacks the package, once per machine. In a mount namespace, so that nothing stays mounted.
fn make_root(peer: &Peer) -> Result<(), String> {
    let folder = kept_folder()?.join(peer.name);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]).arg(peers().join("root.sh"));
    let made = run(command.arg("make").arg(folder).arg(peer.package));
    made.map_err(|error| format!("{} could not be unpacked: {error}", peer.package))
}

/// Starts the server; the folder of its mailboxes.
fn start(peer: &Peer, folder: &Path) -> PathBuf {
    let (certificate, key) = (folder.join("peer-cert.pem"), folder.join("peer-key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mx.peer.test"]);
    run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate)).unwrap();
    let root = kept_folder().unwrap().join(peer.name);
    let mut command = Command::new(peers().join("start"));
    command.arg(peer.name).arg(&root).arg(peer.address.to_string()).arg(certificate).arg(key);
    // Its own output goes to a file: a daemon that keeps a pipe open would keep us waiting.
    let log = fs::File::create(folder.join("peer-start.log")).unwrap();
    let status = command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
    assert!(status.success(), "{}", fs::read_to_string(folder.join("peer-start.log")).unwrap_or_default());
    root.join("root/var/arrivals")
}

/// A message handed in.
struct Case {
    subject: &'static str,
    to: &'static [&'static str],
    header: &'static str,
    body: String,
    /// Whether its body must arrive byte by byte, or was converted because no relay may touch it.
    is_verbatim: bool,
}

struct Cases(Vec<Case>);

impl Cases {
    fn hand_in(shop: &Shop) -> Self {
        let plain = "Content-Type: text/plain; charset=UTF-8\r\nMIME-Version: 1.0\r\n";
        let case = |subject, to, body: &str, is_verbatim| Case {
            subject,
            to,
            header: if is_verbatim { "" } else { plain },
            body: body.to_owned(),
            is_verbatim,
        };
        let large: String = (0..20_000).map(|line| format!("line {line} of a body that is spilled\r\n")).collect();
        let long = format!("{}\r\nshort\r\n", "a long line without an end ".repeat(120));
        let cases = vec![
            case("dots", &[ANNA][..], ".\r\n..\r\n.x\r\n...three\r\n\r\n . \r\nFrom here on\r\n.\r\n", true),
            case("empty", &[ANNA], "", true),
            case("blanks", &[ANNA], "text  \r\n\t\r\n\r\n\r\n", true),
            case("large", &[ANNA], &large, true),
            case("eight bits", &[ANNA], "Grüße aus Köln, 日本語 too\r\nFrom the start of a line\r\n", false),
            case("long lines", &[ANNA], &long, false),
            case("several", &[ANNA, BERT], "for both\r\n", true),
            case("unknown", &[ANNA, NOBODY], "for one of them\r\n", true),
        ];
        for case in &cases {
            shop.submit(case.to, &case.message());
        }
        Self(cases)
    }

    /// Every copy has the header as given and the body as given, or one that Python decodes to it.
    fn compare_with(&self, arrived: &Arrived) {
        for case in &self.0 {
            let copy = arrived.one("anna", case.subject);
            for line in case.given_header().split_terminator("\r\n") {
                // A conversion replaces the fields that describe the body.
                let describes_body = line.starts_with("Content-");
                assert!(describes_body || copy.header.contains(&format!("{line}\r\n")), "{line}\n{}", copy.header);
            }
            if case.is_verbatim {
                assert_eq!(copy.body, case.body.as_bytes(), "{}", case.subject);
                continue;
            }
            assert!(copy.body.is_ascii(), "{}", case.subject);
            assert!(copy.body.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE_MAX + 1), "{}", case.subject);
            let shown = &show_mail(std::slice::from_ref(&copy.path))[0];
            assert_eq!(shown["text"], case.body.replace("\r\n", "\n"), "{}", case.subject);
            assert_eq!(shown["defects"], serde_json::json!([]), "{}", case.subject);
        }
    }
}

impl Case {
    fn given_header(&self) -> String {
        let (subject, header) = (self.subject, self.header);
        let id = subject.replace(' ', "-");
        format!(
            "From: Shop <{SENDER}>\r\nTo: {}\r\nSubject: {subject}\r\nMessage-ID: <{id}@shop.test>\r\n\
             Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n{header}X-Twice:  two  spaces \r\n",
            self.to.join(", "),
        )
    }

    fn message(&self) -> String {
        format!("{}\r\n{}", self.given_header(), self.body)
    }
}

/// A message in a mailbox, its line ends CR LF again.
struct Copy {
    path: PathBuf,
    header: String,
    body: Vec<u8>,
}

/// Mailbox and subject -> copies.
struct Arrived(BTreeMap<(String, String), Vec<Copy>>);

impl Arrived {
    /// Waits for all copies and for the notice, and then a moment for what should not come.
    fn wait(mailboxes: &Path, cases: &Cases) -> Self {
        let deadline = Instant::now() + ARRIVAL_PATIENCE;
        let expected = cases.0.iter().map(|case| case.to.len()).sum::<usize>();
        loop {
            let files = files_in_maildirs(mailboxes);
            if files.len() >= expected {
                thread::sleep(Duration::from_secs(1));
                let arrived = Self::read(&files_in_maildirs(mailboxes));
                assert_eq!(arrived.copies(), expected, "a copy too many:\n{}", arrived.repeated());
                return arrived;
            }
            let seen = Self::read(&files);
            assert!(Instant::now() < deadline, "arrived: {:?}", seen.0.keys());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn read(files: &[PathBuf]) -> Self {
        let mut found: BTreeMap<_, Vec<Copy>> = BTreeMap::new();
        for path in files {
            let stored = fs::read(path).unwrap();
            let lines = stored.split_inclusive(|byte| *byte == b'\n');
            let message: Vec<u8> =
                lines.flat_map(|line| [line.strip_suffix(b"\n").unwrap_or(line), b"\r\n"].concat()).collect();
            let end = message.windows(4).position(|four| four == b"\r\n\r\n").expect("a header ends");
            let header = String::from_utf8(message[..end + 2].to_vec()).unwrap();
            let mailbox = path.parent().and_then(Path::parent).and_then(Path::file_name).unwrap().to_string_lossy();
            let subject = header.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default().to_owned();
            let copy = Copy { path: path.clone(), header, body: message[end + 4..].to_vec() };
            found.entry((mailbox.into_owned(), subject)).or_default().push(copy);
        }
        Self(found)
    }

    /// The headers of whatever arrived more than once.
    fn repeated(&self) -> String {
        let several = self.0.values().filter(|copies| copies.len() > 1);
        several.flatten().map(|copy| format!("{}\n{}\n", copy.path.display(), copy.header)).collect()
    }

    fn copies(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    fn one(&self, mailbox: &str, subject: &str) -> &Copy {
        let found = self.0.get(&(mailbox.to_owned(), subject.to_owned()));
        match found.map(Vec::as_slice) {
            Some([one]) => one,
            other => panic!("{} copies of {subject} for {mailbox}", other.map_or(0, <[Copy]>::len)),
        }
    }

    fn of(&self, mailbox: &str) -> Vec<&Copy> {
        self.0.iter().filter(|((name, _), _)| name == mailbox).flat_map(|(_, copies)| copies).collect()
    }
}

fn files_in_maildirs(mailboxes: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mailbox in ["anna", "bert", "nobody", "orders"] {
        let Ok(entries) = fs::read_dir(mailboxes.join(mailbox).join("new")) else { continue };
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    found.sort();
    found
}

/// The peer's own trace field, in one line.
fn received_by_peer(copy: &Copy) -> String {
    let unfolded = copy.header.replace("\r\n\t", " ").replace("\r\n ", " ");
    let field = unfolded.lines().find(|line| line.starts_with("Received: ")).map(str::to_owned);
    field.unwrap_or_else(|| panic!("no Received in {}", copy.header))
}

fn names_source_and_tls_are_as_configured(peer: &Peer, arrived: &Arrived) {
    for copy in arrived.0.values().flatten() {
        let received = received_by_peer(copy);
        assert!(received.contains(VIP_NAME), "{received}");
        assert!(received.contains(&format!("[{VIP}]")), "{received}");
        assert_eq!(received.to_ascii_uppercase().contains("TLS"), peer.has_tls, "{received}");
    }
}

/// The peer gave both copies one id, so they were recipients of one transaction.
fn several_recipients_share_a_transaction(arrived: &Arrived) {
    let id = |mailbox| {
        let received = received_by_peer(arrived.one(mailbox, "several"));
        let rest = received.split(" id ").nth(1).unwrap_or_else(|| panic!("{received}"));
        rest.split([';', ' ']).next().unwrap().to_owned()
    };
    assert_eq!(id("anna"), id("bert"));
}

/// What the peer stored, with all it added, still verifies; the notice too.
fn foreign_verifiers_pass(shop: &Shop, arrived: &Arrived) {
    let mut paths = Vec::new();
    for (number, copy) in arrived.0.values().flatten().enumerate() {
        let path = shop.folder.path().join(format!("delivered-{number}"));
        fs::write(&path, [copy.header.as_bytes(), b"\r\n", &copy.body].concat()).unwrap();
        paths.push(path);
    }
    dkim_passes(&paths, &shop.dkim_zone);
}

/// Both signatures of each message pass with dkimpy, and with Mail::DKIM those it can judge.
pub fn dkim_passes(messages: &[PathBuf], zone: &Path) {
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|program| runs(program, &["-c", "import dkim"]));
    match python {
        None => not_run("DKIM of delivered mail verified by dkimpy", "python3-dkim is not installed"),
        Some(python) => {
            let has_ed25519 = runs(python, &["-c", "import nacl.signing"]);
            let mut command = Command::new(python);
            check_verdicts(&verdicts(command.arg(script("verify_dkim.py")), zone, messages), has_ed25519, messages);
        }
    }
    if !runs("perl", &["-MMail::DKIM::Verifier", "-e", "1"]) {
        return not_run("DKIM of delivered mail verified by Mail::DKIM", "libmail-dkim-perl is not installed");
    }
    let has_ed25519 = runs("perl", &["-MMail::DKIM::Algorithm::ed25519_sha256", "-e", "1"]);
    let mut command = Command::new("perl");
    check_verdicts(&verdicts(command.arg(script("verify_dkim.pl")), zone, messages), has_ed25519, messages);
}

fn check_verdicts(lines: &[Vec<String>], has_ed25519: bool, messages: &[PathBuf]) {
    for (line, path) in lines.iter().zip(messages) {
        assert_eq!(line.len(), 2, "{line:?}\n{}", fs::read_to_string(path).unwrap_or_default());
        let passed = line.iter().filter(|verdict| *verdict == "pass").count();
        assert_eq!(
            passed,
            if has_ed25519 { 2 } else { 1 },
            "{line:?}\n{}",
            fs::read_to_string(path).unwrap_or_default()
        );
    }
}

/// Where the peer forwards what it took, and is refused.
const REFUSES: &str = "127.0.1.9:25";
const LATER: &str = "later@peer.test";

/// With a return-path: mail the peer takes, forwards, and cannot get rid of comes back as a notice of its own
/// making; we read it, and the address is stopped.
fn its_later_bounce_stops_the_address(peer: &Peer, shop: &Shop) {
    let listener = TcpListener::bind(REFUSES).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(refuse_everybody(stream))));
    shop.instance.tool(&["domain", "return-path", "shop", "shop.test"]);
    shop.instance.tool(&["domain", "return-path", "shop", "shop.test", "--verify"]);
    let deadline = Instant::now() + ARRIVAL_PATIENCE;
    while TcpStream::connect((VIP, 25)).is_err() {
        assert!(Instant::now() < deadline, "the door for what comes back did not open");
        thread::sleep(Duration::from_millis(100));
    }
    shop.submit(&[LATER], &format!("From: Shop <{SENDER}>\r\nTo: {LATER}\r\nSubject: later\r\n\r\nhello\r\n"));
    let deadline = Instant::now() + ARRIVAL_PATIENCE;
    loop {
        let list = shop.instance.tool(&["suppression", "list", "shop", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let rows = list.as_array().or_else(|| list["rows"].as_array()).unwrap_or_else(|| panic!("{list}"));
        if let Some(entry) = rows.iter().find(|entry| entry["subject"] == LATER) {
            assert_eq!(entry["reason"], "hard_bounce", "{entry}");
            println!("{}: {}", peer.name, entry["note"]);
            return;
        }
        let log = fs::read_to_string(kept_folder().unwrap().join(peer.name).join("log")).unwrap_or_default();
        let letters = shop.instance.tool(&["mailbox", "list"]);
        assert!(Instant::now() < deadline, "{}: no bounce was understood\n{letters}\n{log}", peer.name);
        thread::sleep(Duration::from_millis(200));
    }
}

/// A mail server without mailboxes.
fn refuse_everybody(stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    stream.write_all(b"220 mx.gone.test ESMTP\r\n")?;
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let answer: &[u8] = match line.get(..4).map(str::to_ascii_uppercase).as_deref() {
            Some("EHLO" | "HELO") => b"250 mx.gone.test\r\n",
            Some("RCPT") => b"550 5.1.1 nobody lives here\r\n",
            Some("DATA") => b"503 5.5.1 no recipients\r\n",
            Some("QUIT") => b"221 2.0.0 bye\r\n",
            _ => b"250 2.0.0 ok\r\n",
        };
        stream.write_all(answer)?;
        line.clear();
    }
    Ok(())
}

/// What Python's email package finds in messages.
pub fn show_mail(paths: &[PathBuf]) -> Vec<serde_json::Value> {
    let output = Command::new("python3").arg(script("show_mail.py")).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The refusal of one recipient came back as one notice, by the same way.
fn python_reads_the_notice(peer: &Peer, arrived: &Arrived, folder: &Path) {
    let notices = arrived.of("orders");
    let [notice] = notices.as_slice() else { panic!("{} notices", notices.len()) };
    let path = folder.join("notice");
    fs::write(&path, [notice.header.as_bytes(), b"\r\n", &notice.body].concat()).unwrap();
    let output = Command::new("python3").arg(script("read_notice.py")).arg(&path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}\n{}", String::from_utf8_lossy(&output.stderr), notice.header);
    let (status, reply) = peer.refusal;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with(&format!("about: dns; {VIP_NAME} ")), "{text}");
    let recipient = format!("| rfc822; {NOBODY} | failed | {status} | dns; mx.peer.test | smtp; {reply}");
    assert!(lines[1].ends_with(&recipient), "{text}\nwithout {recipient}");
    assert_eq!(lines[2], "original: text/rfc822-headers unknown", "{text}");
    assert_eq!(lines.len(), 4, "only the refused recipient is reported: {text}");
    assert!(notice.header.contains("Auto-Submitted: auto-replied\r\n"), "{}", notice.header);
    // OpenSMTPD does not write the reverse-path down.
    let header = notice.header.to_ascii_lowercase();
    assert!(!header.contains("return-path:") || header.contains("return-path: <>\r\n"), "{header}");
}
