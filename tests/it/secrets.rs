//! A hunt for secrets: one of every kind is made or planted, each is used, and then everything that leaves the process
//! or stays on its disk is searched for each of them in every form it could have.
//!
//! What is shown on purpose is not hunted for there: a secret in the answer that makes it, the CSRF token in the
//! answer to the session it belongs to, and the link for a new password in the mail that brings it to its owner, whose
//! octets are in the store like those of any mail (bodies are not encrypted at rest).

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use postern::ext::Timestamp;
use postern::mail::TenantId;
use postern::net::{Zone, ZoneServer};
use postern::seal::{BackupKey, MasterKey, OpeningReader};
use postern::store;
use serde_json::{Value, json};

use crate::harness::https::{Answer, Https};
use crate::harness::load::TlsSession;
use crate::harness::peer::{Peer, Script};
use crate::harness::process::{Credentials, Instance, free_port};

const PASSWORD: &str = "a planted password of a person";
const NEW_PASSWORD: &str = "another planted password of that person";
const RELAY_PASSWORD: &str = "a-planted-relay-password";
const HOOK_PASSWORD: &str = "a-planted-webhook-password";
const ANNA: &str = "anna@there.test";

/// A secret, by what it is, and its octets.
struct Secret {
    what: String,
    octets: Vec<u8>,
}

/// All that must not be found.
#[derive(Default)]
struct Secrets(Vec<Secret>);

impl Secrets {
    fn add(&mut self, what: &str, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref().to_vec();
        // Shorter ones would be found by chance.
        assert!(octets.len() >= 10, "{what} is too short to be hunted for");
        self.0.push(Secret { what: what.to_owned(), octets });
    }

    /// Which of them are in `place`: as octets, in base64, in hexadecimal, or as a URL writes them.
    fn found_in(&self, place: &[u8]) -> Vec<&str> {
        let engines =
            [base64::engine::general_purpose::STANDARD_NO_PAD, base64::engine::general_purpose::URL_SAFE_NO_PAD];
        let is_in = |needle: &[u8]| memchr::memmem::find(place, needle).is_some();
        let found = self.0.iter().filter(|secret| {
            let octets = &secret.octets;
            let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            let url: String = octets
                .iter()
                .map(|octet| match octet {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        char::from(*octet).to_string()
                    }
                    other => format!("%{other:02X}"),
                })
                .collect();
            is_in(octets)
                || is_in(hex.as_bytes())
                || is_in(hex.to_uppercase().as_bytes())
                || is_in(url.as_bytes())
                // Within a longer text the first octets of it stand at any of three places.
                || engines.iter().any(|engine| {
                    (0..3).any(|skipped| {
                        let whole = engine.encode(&octets[skipped..]);
                        is_in(&whole.as_bytes()[..whole.len() - 2])
                    })
                })
        });
        found.map(|secret| secret.what.as_str()).collect()
    }

    fn not_in(&self, place: &[u8], called: &str) {
        let found = self.found_in(place);
        assert!(found.is_empty(), "{called}: {found:?}");
    }

    /// Every file below `folder` but those named; how many.
    fn not_below(&self, folder: &Path, but: &[&str]) -> usize {
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if but.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                count += self.not_below(&path, but);
            } else if path.is_file() {
                // Files of the journal are mostly zeros, in which nothing is hidden.
                let blocks = fs::read(&path).unwrap();
                let written = blocks.chunks(4096).filter(|block| block.iter().any(|octet| *octet != 0));
                self.not_in(&written.flatten().copied().collect::<Vec<_>>(), &path.display().to_string());
                count += 1;
            }
        }
        count
    }
}

#[test]
fn the_hunt_finds_what_is_there() {
    let mut secrets = Secrets::default();
    secrets.add("planted", "0123456789abcdef+/?");
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for place in [
        "so 0123456789abcdef+/? so".to_owned(),
        encoded("0123456789abcdef+/?"),
        encoded("\x00user\x000123456789abcdef+/?"),
        encoded("x0123456789abcdef+/?y"),
        "303132333435363738396162636465662b2f3f".to_owned(),
        "?token=0123456789abcdef%2B%2F%3F".to_owned(),
    ] {
        assert_eq!(secrets.found_in(place.as_bytes()), ["planted"], "{place}");
    }
    assert!(secrets.found_in(b"0123456789abcde").is_empty());
}

/// The real binary at its most talkative, with everything in it that has a secret.
struct World {
    folder: tempfile::TempDir,
    instance: Instance,
    admin: SocketAddr,
    peer: Peer,
    secrets: Secrets,
    _zone: ZoneServer,
    _runtime: tokio::runtime::Runtime,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

impl World {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let zone = Zone::new()
            .mx("there.test", 10, "mx.there.test")
            .ipv4("mx.there.test", Ipv4Addr::LOCALHOST)
            .ipv4("hook.test", Ipv4Addr::LOCALHOST);
        let zone = runtime.block_on(ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone)).unwrap();
        let peer = runtime.block_on(Peer::start((Ipv4Addr::LOCALHOST, 0).into(), Script::polite()));
        let data = folder.path().join("data");
        let mut instance = Instance::make(folder.path(), &data, zone.address(), peer.address.port());
        let admin = instance.with_admin();
        instance.reconfigure("level = \"warn\"", "level = \"trace\"");
        instance.reconfigure("[log]\n", "[webhooks]\nprivate_addresses = \"allow\"\n[log]\n");
        instance.start();
        Self { folder, instance, admin, peer, secrets: Secrets::default(), _zone: zone, _runtime: runtime }
    }

    fn json_tool(&self, arguments: &[&str]) -> Value {
        let said = self.instance.tool(&[arguments, &["--json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    }

    /// One request over HTTPS, on a connection of its own.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let headers = [headers, &[("Content-Type", "application/json")]].concat();
        let mut client = Https::open(self.admin).unwrap();
        client.ask(method, &format!("/api/v1{path}"), &headers, &body).unwrap()
    }

    /// Logs in as a person; the cookie and the CSRF token.
    fn log_in(&mut self, login: Value) -> (String, String) {
        let answer = self.ask("POST", "/session", &[], login);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        self.secrets.add("a session's token", cookie.split_once('=').unwrap().1);
        (cookie, text(&answer.json()["csrf_token"]))
    }

    /// The messages that arrived, once what is looked for is among them.
    fn mail(&self, is_there: impl Fn(&[String]) -> bool) -> Vec<String> {
        let began = Instant::now();
        loop {
            let taken = self.peer.taken();
            let mail: Vec<_> = taken.iter().map(|taken| String::from_utf8_lossy(&taken.text).into_owned()).collect();
            if is_there(&mail) {
                return mail;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{mail:#?}\n{}", self.instance.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn plant_beside_mail(&mut self) -> Credentials {
        self.json_tool(&["backup", "key"]);
        for (what, file) in [("the master key", "master.key"), ("the backup key", "backup.key")] {
            let line = fs::read_to_string(self.folder.path().join(file)).unwrap();
            self.secrets.add(what, line.trim());
            // What stands in the file is a name and the octets in base64.
            let octets = line.trim().rsplit([':', ' ']).next().unwrap();
            let octets = base64::engine::general_purpose::STANDARD.decode(octets);
            octets.into_iter().for_each(|octets| self.secrets.add(&format!("{what}, its octets"), octets));
        }
        let credentials = self.instance.furnish();
        self.secrets.add("an SMTP account's password", &credentials.password);
        let exchange = format!("\0{}\0{}", credentials.login, credentials.password);
        self.secrets.add("what is said after AUTH PLAIN", exchange);
        let file = self.folder.path().join("typed");
        fs::write(&file, format!("{RELAY_PASSWORD}\n")).unwrap();
        let file = file.display().to_string();
        let route = ["route", "add", "relay.test", "--to", "relayed.test", "--user", "u", "--password-file", &file];
        self.json_tool(&route);
        self.secrets.add("a relay's password", RELAY_PASSWORD);
        fs::remove_file(&file).unwrap();
        credentials
    }

    /// Mail by SMTP with the password, and by HTTP with a key, both signed; the id of the latter.
    fn send(&mut self, credentials: &Credentials, bearer: &str) -> String {
        let mut session = TlsSession::open(self.instance.door).unwrap();
        session.login(&credentials.login, &credentials.password).unwrap();
        session.command("MAIL FROM:<orders@shop.test>", "250").unwrap();
        session.command("RCPT TO:<ann@there.test>", "250").unwrap();
        session.command("DATA", "354").unwrap();
        session.command("From: <orders@shop.test>\r\nSubject: by SMTP\r\n\r\nx\r\n.", "250").unwrap();
        let letter = json!({"from": "orders@shop.test", "to": ["ann@there.test"], "subject": "by HTTP", "text": "x"});
        let headers = [("Authorization", bearer), ("Idempotency-Key", "once")];
        let sent = self.ask("POST", "/messages", &headers, letter);
        assert_eq!(sent.status, 202, "{}", sent.text());
        let by = |mail: &String, way: &str| mail.contains(&format!("Subject: by {way}"));
        let ours = self.mail(|all| all.iter().any(|mail| by(mail, "SMTP")) && all.iter().any(|mail| by(mail, "HTTP")));
        for mail in ours.iter().filter(|mail| mail.contains("Subject: by ")) {
            assert_eq!(mail.matches("DKIM-Signature:").count(), 2, "the DKIM keys are used: {mail}");
        }
        text(&sent.json()["id"])
    }

    /// Exports everything of the tenant; the operation's id once its file is there.
    fn export(&self, headers: &[(&str, &str)]) -> String {
        let begun = self.ask("POST", "/tenants/shop/export", headers, Value::Null);
        assert_eq!(begun.status, 202, "{}", begun.text());
        let id = text(&begun.json()["id"]);
        let began = Instant::now();
        loop {
            let answer = self.ask("GET", &format!("/tenants/shop/operations/{id}/result"), headers, Value::Null);
            if answer.status == 200 {
                let unpacked = unpacked(&answer);
                assert!(unpacked.contains("shop.test"), "{unpacked}");
                return id;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{}", answer.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The keys the mail was signed with, as whoever has disk and master key would find them.
    fn collect_dkim_keys(&mut self, tenant: TenantId, selectors: &[String]) {
        let master = MasterKey::load(&self.folder.path().join("master.key")).unwrap();
        let opened =
            store::open(store::Settings { folder: self.instance.data.join("store"), ..Default::default() }).unwrap();
        let prefix = [store::prefix::DOMAIN];
        let records = opened.records.range(&prefix, &store::after_prefix(&prefix), 1000).unwrap();
        for selector in selectors {
            let purpose = format!("DKIM key {selector} of {tenant}");
            let plain = records.iter().find_map(|(_, value)| opened_within(&master, &purpose, value));
            let plain = plain.unwrap_or_else(|| panic!("no key for {purpose}"));
            self.secrets.add(&format!("the DKIM key {selector}"), &plain);
            // Also its middle alone, whatever stands around it.
            let half = plain.len() / 2;
            self.secrets.add(&format!("a part of the DKIM key {selector}"), &plain[half..half + 16]);
        }
    }
}

/// An answer as it came, and the file in it unpacked.
fn unpacked(answer: &Answer) -> String {
    let mut text = answer.text();
    if answer.body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        text.push_str(&String::from_utf8_lossy(&zstd::stream::decode_all(&*answer.body).unwrap()));
    }
    text
}

/// What `key` opens within a record: sealed values stand there as their length and their octets.
fn opened_within(key: &MasterKey, purpose: &str, record: &[u8]) -> Option<Vec<u8>> {
    (0..record.len()).find_map(|start| {
        let (mut length, mut shift) = (0_usize, 0);
        for (position, octet) in record[start..].iter().enumerate().take(3) {
            length |= usize::from(octet & 0x7f) << shift;
            shift += 7;
            if octet & 0x80 == 0 {
                let sealed = record.get(start + position + 1..start + position + 1 + length)?;
                return key.open(purpose, sealed).ok().map(|plain| plain.to_vec());
            }
        }
        None
    })
}

/// A second factor of the person who is logged in; the octets its codes are made from.
fn set_up_factor(world: &mut World, headers: &[(&str, &str)]) -> Vec<u8> {
    let offer = world.ask("POST", "/session/second-factor", headers, Value::Null);
    assert_eq!(offer.status, 200, "{}", offer.text());
    let written = text(&offer.json()["secret"]);
    let bits: String = written
        .bytes()
        .filter_map(|letter| {
            let value = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".iter().position(|known| *known == letter)?;
            Some(format!("{value:05b}"))
        })
        .collect();
    let octets: Vec<u8> =
        (0..bits.len() / 8).map(|at| u8::from_str_radix(&bits[8 * at..8 * at + 8], 2).unwrap()).collect();
    world.secrets.add("a TOTP secret as it is typed", &written);
    world.secrets.add("a TOTP secret", &octets);
    let code = json!({"code": postern::people::totp_code_at(&octets, Timestamp::now())});
    let proved = world.ask("POST", "/session/second-factor/prove", headers, code);
    assert_eq!(proved.status, 200, "{}", proved.text());
    let codes = proved.json();
    let codes = codes["codes"].as_array().or(codes["recovery_codes"].as_array()).unwrap_or_else(|| panic!("{codes}"));
    codes.iter().for_each(|code| world.secrets.add("a recovery code", text(code)));
    octets
}

/// Where the answers are that list and read, with the ids of what is there.
fn readable(world: &World, ids: &[(&str, String)]) -> Vec<String> {
    let mut client = Https::open(world.admin).unwrap();
    let document = client.ask("GET", "/api/openapi.json", &[], b"").unwrap().json();
    let paths = document["paths"].as_object().unwrap_or_else(|| panic!("no paths: {document}"));
    let reading = paths.iter().filter(|(_, operations)| operations.get("get").is_some());
    reading
        .map(|(path, _)| ids.iter().fold(path.clone(), |path, (name, id)| path.replace(&format!("{{{name}}}"), id)))
        .collect()
}

/// What a backup holds once its seal is opened with its key.
fn opened_backup(file: &Path, key: &Path) -> Vec<u8> {
    let key = BackupKey::load(key).unwrap();
    let sealed = OpeningReader::new(fs::File::open(file).unwrap(), &key).unwrap();
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(sealed).unwrap().read_to_end(&mut plain).unwrap();
    plain
}

/// Everything that has a secret is made and used; the ids of what was made, and the cookie of an instance admin.
fn plant_and_use(world: &mut World) -> (Vec<(&'static str, String)>, String) {
    let credentials = world.plant_beside_mail();
    // A key, made by a request that is kept for repeats.
    let scopes = json!({"tenant": "shop", "scopes": ["messages:write", "queue:read"]});
    let root = world.json_tool(&["user", "set-up-link"]);
    let token = text(&root["token"]);
    world.secrets.add("the token of the set-up link", &token);
    let redeem = json!({"token": token, "email": "root@there.test", "password": PASSWORD});
    assert_eq!(world.ask("POST", "/session/redeem", &[], redeem).status, 200);
    world.secrets.add("a person's password", PASSWORD);
    let (cookie, csrf) = world.log_in(json!({"email": "root@there.test", "password": PASSWORD}));
    let as_root = [("Cookie", cookie.as_str()), ("X-CSRF-Token", csrf.as_str()), ("Idempotency-Key", "a-key")];
    let made = world.ask("POST", "/keys", &as_root, scopes.clone());
    assert_eq!(made.status, 201, "{}", made.text());
    let again = world.ask("POST", "/keys", &as_root, scopes);
    assert!(again.status < 500, "{}", again.text());
    let (key, key_id) = (text(&made.json()["text"]), text(&made.json()["key"]["id"]));
    world.secrets.add("an API key", &key);
    world.secrets.add("an API key's secret part", key.rsplit('_').next().unwrap());
    world.secrets.not_in(again.text().as_bytes(), "the answer to a repeat");
    // Somebody follows the sessions, logins and all.
    let trace = world.ask("POST", "/traces", &as_root[..2], json!({"direction": "in"}));
    assert_eq!(trace.status, 201, "{}", trace.text());
    let message = world.send(&credentials, &format!("Bearer {key}"));
    // A webhook: its requests are signed, with a password beside, and nobody is there to take them.
    let url = format!("https://hook.test:{}/in", free_port());
    let hook = json!({"name": "w", "url": url, "user": "u", "password": HOOK_PASSWORD});
    let made = world.ask("POST", "/tenants/shop/webhooks", &as_root[..2], hook);
    assert_eq!(made.status, 201, "{}", made.text());
    let (secret, hook_id) = (text(&made.json()["secret"]), text(&made.json()["webhook"]["id"]));
    let octets = base64::engine::general_purpose::STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    world.secrets.add("a webhook's secret", &secret["whsec_".len()..]);
    world.secrets.add("a webhook's secret, its octets", octets);
    world.secrets.add("a webhook's password", HOOK_PASSWORD);
    let hook = format!("/tenants/shop/webhooks/{hook_id}");
    world.ask("POST", &format!("{hook}/test"), &as_root[..2], Value::Null);
    let attempts = world.ask("GET", &format!("{hook}/attempts"), &as_root[..2], Value::Null);
    assert!(attempts.text().contains("refused"), "signed, and sent to a port where nobody is: {}", attempts.text());
    // A person: invited, with a second factor, and a new password by a link each way.
    let invited = world.json_tool(&["user", "invite", "shop", ANNA, "--role", "owner"]);
    let (token, anna) = (text(&invited["token"]), text(&invited["user"]["id"]));
    world.secrets.add("the token of an invitation", &token);
    assert_eq!(world.ask("POST", "/session/redeem", &[], json!({"token": token, "password": PASSWORD})).status, 200);
    let (own, token) = world.log_in(json!({"email": ANNA, "password": PASSWORD}));
    let totp = set_up_factor(world, &[("Cookie", &own), ("X-CSRF-Token", &token)]);
    let reset = text(&world.json_tool(&["user", "reset", &anna])["token"]);
    world.secrets.add("the token of a link for a new password", &reset);
    let redeem = json!({"token": reset, "password": NEW_PASSWORD});
    assert_eq!(world.ask("POST", "/session/redeem", &[], redeem).status, 200);
    world.secrets.add("a person's new password", NEW_PASSWORD);
    // The code of the proof is spent; the next step's is good already.
    let code = postern::people::totp_code_at(&totp, Timestamp::now().plus(Duration::from_secs(30)));
    world.log_in(json!({"email": ANNA, "password": NEW_PASSWORD, "code": code}));
    let spare = text(&world.json_tool(&["user", "reset", &anna])["token"]);
    world.secrets.add("the token of a link nobody followed", &spare);
    let login = credentials.login;
    let ids = [("tenant", "shop".to_owned()), ("domain", "shop.test".to_owned()), ("user", anna), ("key", key_id)];
    let vip = text(&world.json_tool(&["vip", "list"])["rows"][0]["id"]);
    let more = [
        ("webhook", hook_id),
        ("login", login),
        ("id", message),
        ("vip", vip),
        ("operation", world.export(&as_root[..2])),
        ("trace", trace.json()["trace"].to_string()),
    ];
    (ids.into_iter().chain(more).collect(), cookie)
}

/// In every answer that lists or reads, as the instance's admin is given it; all of them.
fn hunt_in_answers(world: &World, (ids, cookie): (&[(&str, String)], &str), of_mail: &Secrets) -> String {
    let export = world.json_tool(&["audit", "list", "--tenant", "shop"]);
    assert!(export.to_string().contains("webhook"), "{export}");
    let (mut read, mut all) = (0, String::new());
    for path in readable(world, ids) {
        let answer = world.ask("GET", &path, &[("Cookie", cookie)], Value::Null);
        let with_tenant = world.ask("GET", &format!("{path}?tenant=shop"), &[("Cookie", cookie)], Value::Null);
        for answer in [answer, with_tenant] {
            read += usize::from(answer.status == 200);
            let answer = unpacked(&answer);
            all.push_str(&answer);
            world.secrets.not_in(answer.as_bytes(), &path);
            of_mail.not_in(answer.as_bytes(), &path);
        }
    }
    assert!(read >= 60, "only {read} answers were read");
    assert!(all.contains("AUTH "), "the session that was followed is shown, without what proves who it is");
    for (command, what) in [("key", "list"), ("user", "list"), ("smtp-account", "list"), ("domain", "list")] {
        let said = world.instance.tool(&[command, what, "shop"]);
        world.secrets.not_in(said.as_bytes(), command);
    }
    all
}

#[test]
fn a_planted_secret_is_in_no_log_no_answer_no_file_no_backup_and_no_core() {
    let mut world = World::open();
    let (ids, cookie) = plant_and_use(&mut world);

    // The mail for whoever has forgotten a password brings its token to the person alone.
    let asked = world.ask("POST", "/session/forgotten", &[], json!({"email": ANNA}));
    assert_eq!(asked.status, 202, "{}", asked.text());
    let token = |mail: &String| {
        let (_, rest) = mail.split_once("\"token\": \"")?;
        Some(rest.split('"').next().unwrap().to_owned())
    };
    let mailed = world.mail(|all| all.iter().any(|mail| token(mail).is_some()));
    let mut of_mail = Secrets::default();
    of_mail.add("the token of a link by mail", mailed.iter().find_map(token).unwrap());

    let answers = hunt_in_answers(&world, (&ids, &cookie), &of_mail);

    // A backup as a file, what it is made of beside it, and what is in it once it is opened.
    let copies = world.folder.path().join("copies");
    fs::create_dir(&copies).unwrap();
    let file = copies.join("copy.postern");
    world.instance.tool(&["backup", "make", &file.display().to_string()]);
    assert_eq!(fs::read_dir(&copies).unwrap().count(), 1, "nothing is left beside the backup");
    let opened = opened_backup(&file, &world.folder.path().join("backup.key"));
    assert!(memchr::memmem::find(&opened, b"shop.test").is_some(), "the backup was opened");

    // What others on the machine see of the process, and how it dies.
    let (tenant, keys) = signing(&world);
    let pid = world.instance.pid();
    for name in ["cmdline", "environ"] {
        world.secrets.not_in(&fs::read(format!("/proc/{pid}/{name}")).unwrap(), name);
    }
    assert!(Command::new("kill").args(["-ABRT", &pid.to_string()]).status().unwrap().success());
    let ended = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        world.instance.ended()
    });
    let ended = ended.flatten().next().unwrap();
    assert!(!std::os::unix::process::ExitStatusExt::core_dumped(&ended), "{ended}");

    // With the keys that sign at last, which only disk and master key together give.
    world.collect_dkim_keys(tenant, &keys);
    world.secrets.not_in(answers.as_bytes(), "the answers");
    world.secrets.not_in(&opened, "the opened backup");
    world.secrets.not_in(&fs::read(&file).unwrap(), "the backup");
    of_mail.not_in(&fs::read(&file).unwrap(), "the backup");
    let log = fs::read(world.instance.log()).unwrap();
    assert!(memchr::memmem::find(&log, b"DEBUG").is_some(), "the log is not at its most talkative");
    world.secrets.not_in(&log, "the log");
    of_mail.not_in(&log, "the log");
    let files = world.secrets.not_below(world.folder.path(), &["master.key", "backup.key", "certificates"]);
    assert!(files > 10, "{files} files");
    // The same on a machine on which the backup was restored.
    let restored = world.folder.path().join("restored");
    let (file, key) = (file.display().to_string(), world.folder.path().join("backup.key").display().to_string());
    let into = restored.display().to_string();
    world.instance.tool(&["restore", &file, "--key", &key, "--into", &into, "--with-queue"]);
    assert!(world.secrets.not_below(&restored, &["master.key", "certificates"]) > 3);
    is_in_its_own_segment_only(&of_mail, &world.instance.data);
}

/// Bodies are not encrypted: what is in a mail is in that mail's own segment, and in no other file.
fn is_in_its_own_segment_only(of_mail: &Secrets, data: &Path) {
    of_mail.not_below(data, &["segments"]);
    let segments = fs::read_dir(data.join("store/segments")).unwrap();
    let there = segments.filter(|segment| {
        let path = segment.as_ref().unwrap().path();
        !of_mail.found_in(&fs::read(path).unwrap()).is_empty()
    });
    assert_eq!(there.count(), 1, "what is on the disk is found there");
}

/// The tenant, and `selector._domainkey.domain` of the keys it signs with.
fn signing(world: &World) -> (TenantId, Vec<String>) {
    let tenant = world.json_tool(&["tenant", "show", "shop"]);
    let domains = world.json_tool(&["domain", "list", "shop"]);
    let records = domains["rows"][0]["records"].as_array().unwrap_or_else(|| panic!("{domains}"));
    let names = records.iter().map(|record| text(&record["name"]).trim_end_matches('.').to_owned());
    let names: Vec<_> = names.filter(|name| name.contains("._domainkey.")).collect();
    assert_eq!(names.len(), 2, "{domains}");
    (text(&tenant["id"]).parse().unwrap(), names)
}
