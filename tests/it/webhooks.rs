//! Webhooks of a whole daemon at a real HTTPS receiver, verified by the Standard Webhooks libraries for Python and Node.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern::daemon::{Daemon, Overrides};
use postern::ext::Timestamp;
use postern::mail::TenantId;
use postern::net::{ClientTls, Reach, Zone, ZoneServer};
use postern::submission::{GivenSocket, PortMode};
use postern::vips::Owner;
use postern::webhooks::{Kind, NewWebhook, WebhookChange};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::apart::kept_folder;
use crate::harness::daemon::{Login, Running, config, new_folder, operator};
use crate::harness::not_run;
use crate::harness::peer::{Peer, Script};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A version that was tried; pip gets it and what it needs into a folder of its own.
const LIBRARY: &str = "standardwebhooks==1.1.0";
/// The same for Node; npm gets it and what it needs.
const NODE_LIBRARY: &str = "standardwebhooks@1.1.0";

/// A request as it came.
#[derive(Clone, Debug)]
struct Request {
    headers: Vec<(String, String)>,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// An HTTPS receiver called `hook.test`.
struct Receiver {
    port: u16,
    certificate: CertificateDer<'static>,
    requests: Arc<Mutex<Vec<Request>>>,
    status: Arc<Mutex<u16>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["hook.test".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, status) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(200)));
        let (noted, answers) = (Arc::clone(&requests), Arc::clone(&status));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, noted, answers) = (acceptor.clone(), Arc::clone(&noted), Arc::clone(&answers));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    while let Some(request) = read_request(&mut stream).await {
                        noted.lock().unwrap().push(request);
                        let status = *answers.lock().unwrap();
                        let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n\r\nok");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, certificate, requests, status, task }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn url(&self) -> String {
        format!("https://hook.test:{}/in", self.port)
    }
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
            let headers: Vec<_> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let length = headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
            if body.len() >= length {
                return Some(Request { headers, body: body.to_owned() });
            }
        }
        let mut some = [0; 4096];
        match stream.read(&mut some).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&some[..read]),
        }
    }
}

/// A daemon whose webhooks may lead to this machine, with one tenant that can send.
struct World {
    running: Running,
    receiver: Receiver,
    tenant: TenantId,
    login: Login,
    _peer: Peer,
}

impl World {
    async fn start(reach: Reach) -> Self {
        let receiver = Receiver::start().await;
        let peer = Peer::start((LOCALHOST, 0).into(), Script::polite()).await;
        let zone = Zone::new()
            .ipv4("hook.test", LOCALHOST)
            .mx("receiver.test", 10, "mx.receiver.test")
            .ipv4("mx.receiver.test", LOCALHOST);
        let zone = Arc::new(ZoneServer::bind(SocketAddr::from((LOCALHOST, 0)), zone).await.unwrap());
        let folder = new_folder();
        let mut config = config(folder.path(), &zone, peer.address.port());
        config.webhooks.reach = reach;
        let socket = |mode| {
            let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), GivenSocket { listener, mode })
        };
        let (tls, first) = socket(PortMode::TlsFirst);
        let (starttls, second) = socket(PortMode::Starttls);
        let client_tls = Some(ClientTls::with_roots(vec![receiver.certificate.clone()]).unwrap());
        let overrides = Overrides { sockets: vec![first, second], client_tls, ..Overrides::default() };
        let daemon = Daemon::start(config, overrides).await.unwrap();
        let running = Running { daemon, folder, zone, tls, starttls };
        let tenant = running.tenant("shop").await;
        running.vip(LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
        running.trusted_domain(tenant, "shop.example.com").await;
        let login = running.account(tenant).await;
        Self { running, receiver, tenant, login, _peer: peer }
    }

    fn new_webhook(&self) -> NewWebhook {
        NewWebhook {
            name: "shop".to_owned(),
            url: self.receiver.url(),
            secondary_url: None,
            kinds: Kind::usual(),
            batch: 1,
            login: None,
        }
    }

    async fn submit(&self) {
        let message = "From: <orders@shop.example.com>\r\nTo: <a@receiver.test>\r\nSubject: Order 7\r\n\r\nthanks";
        let reply = self.running.submit(&self.login, "orders@shop.example.com", "a@receiver.test", message).await;
        assert!(reply.starts_with("250 "), "{reply}");
    }

    async fn until(&self, what: &str, is_so: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        for _ in 0..3_000 {
            let requests = self.receiver.requests();
            if is_so(&requests) {
                return requests;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: {:?}", self.receiver.requests());
    }
}

fn has(requests: &[Request], kind: &str) -> bool {
    requests.iter().any(|request| request.json()["type"] == kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_receiver_is_told_of_a_delivery_and_the_libraries_verify_every_signature() {
    let world = World::start(Reach::Anywhere).await;
    let webhooks = &world.running.daemon.webhooks;
    let made = webhooks.add(&operator(), world.tenant, world.new_webhook(), Timestamp::now()).await.unwrap();
    world.submit().await;
    let requests =
        world.until("accepted and delivered", |all| has(all, "message.accepted") && has(all, "message.delivered"));
    let requests = requests.await;
    let delivered = requests.iter().find(|one| one.json()["type"] == "message.delivered").unwrap().json();
    let data = &delivered["data"];
    assert_eq!((&data["tenant"], &data["recipients"][0]["address"]), (&json!("shop"), &json!("a@receiver.test")));
    assert_eq!((&data["message"]["subject"], &data["reply"]["code"]), (&json!("Order 7"), &json!(250)));
    assert_eq!(data["message"]["smtp_account"], json!(world.login.login));
    // Two secrets are good while one is being replaced: each verifies what is sent then.
    let which = (world.tenant, made.webhook.id);
    let rotated = webhooks.rotate(&operator(), which, Duration::from_secs(3_600), Timestamp::now()).await.unwrap();
    let tested = webhooks.test(&operator(), which, Timestamp::now()).await.unwrap();
    assert!(tested[0].1.is_success(), "{tested:?}");
    let all = world.until("the test", |all| has(all, "webhook.test")).await;
    let (old, new) = (made.secret.to_string(), rotated.secret.to_string());
    let mut cases = Vec::new();
    for request in &all {
        let is_test = request.json()["type"] == "webhook.test";
        cases.push(case(request, &old, &request.body, true));
        cases.push(case(request, &new, &request.body, is_test));
        cases.push(case(request, &old, &format!("{} ", request.body), false));
    }
    verify(&cases);
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_down_during_a_restart_is_told_in_the_end() {
    let world = World::start(Reach::Anywhere).await;
    let webhooks = &world.running.daemon.webhooks;
    let made = webhooks.add(&operator(), world.tenant, world.new_webhook(), Timestamp::now()).await.unwrap();
    *world.receiver.status.lock().unwrap() = 500;
    world.submit().await;
    let failed = world.until("a first attempt", |all| has(all, "message.accepted")).await;
    let id =
        failed.iter().find(|one| one.json()["type"] == "message.accepted").unwrap().header("webhook-id").to_owned();
    *world.receiver.status.lock().unwrap() = 200;
    // The second attempt is due five seconds after the first.
    let is_again = |all: &[Request]| all.iter().filter(|one| one.header("webhook-id") == id).count() >= 2;
    world.until("the same again", is_again).await;
    world.until("and the rest", |all| has(all, "message.delivered")).await;
    let which = (world.tenant, made.webhook.id);
    for _ in 0..3_000 {
        if webhooks.doing(made.webhook.id).unwrap().waiting == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let attempts = webhooks.attempts(&operator(), which, None, 100).unwrap();
    assert!(attempts.iter().any(|(_, one)| one.id == id && one.is_success()), "{attempts:?}");
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_never_reaches_into_the_own_network() {
    let world = World::start(Reach::Public).await;
    let webhooks = &world.running.daemon.webhooks;
    // A number is refused at once, a name when it is looked up.
    let number = NewWebhook { url: format!("https://127.0.0.1:{}/", world.receiver.port), ..world.new_webhook() };
    let refused = webhooks.add(&operator(), world.tenant, number, Timestamp::now()).await;
    assert!(refused.err().unwrap().to_string().contains("not a public address"));
    let made = webhooks.add(&operator(), world.tenant, world.new_webhook(), Timestamp::now()).await.unwrap();
    let which = (world.tenant, made.webhook.id);
    let tested = webhooks.test(&operator(), which, Timestamp::now()).await.unwrap();
    assert!(format!("{:?}", tested[0].1.ending).contains("127.0.0.1, which is not a public address"), "{tested:?}");
    assert!(world.receiver.requests().is_empty());
    let change = WebhookChange { is_enabled: Some(false), ..WebhookChange::default() };
    webhooks.change(&operator(), which, change, Timestamp::now()).await.unwrap();
    world.running.stop().await;
}

fn case(request: &Request, secret: &str, body: &str, good: bool) -> Value {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), request.header(name).into())).collect();
    json!({"secret": secret, "headers": headers, "body": body, "good": good})
}

/// Where the library is, fetched if need be.
fn library() -> Result<PathBuf, String> {
    let folder = kept_folder()?.join("standardwebhooks");
    if folder.join("standardwebhooks/__init__.py").exists() {
        return Ok(folder);
    }
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&folder);
    let ran = command.arg(LIBRARY).output().map_err(|error| error.to_string())?;
    match ran.status.success() {
        true => Ok(folder),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}

/// The same for Node.
fn node_library() -> Result<PathBuf, String> {
    let folder = kept_folder()?.join("standardwebhooks-node");
    if folder.join("node_modules/standardwebhooks/package.json").exists() {
        return Ok(folder.join("node_modules"));
    }
    let mut command = Command::new("npm");
    command.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(&folder);
    let ran = command.arg(NODE_LIBRARY).output().map_err(|error| error.to_string())?;
    match ran.status.success() {
        true => Ok(folder.join("node_modules")),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}

fn verify(cases: &[Value]) {
    match library() {
        Ok(folder) => verify_by(("python3", "verify_webhook.py"), ("PYTHONPATH", folder), cases),
        Err(reason) => not_run("webhook signatures by Python's standardwebhooks", &reason),
    }
    match node_library() {
        Ok(folder) => verify_by(("node", "verify_webhook.js"), ("NODE_PATH", folder), cases),
        Err(reason) => not_run("webhook signatures by Node's standardwebhooks", &reason),
    }
}

fn verify_by((program, script): (&str, &str), path: (&str, PathBuf), cases: &[Value]) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign").join(script);
    let mut child = Command::new(program)
        .arg(script)
        .env(path.0, path.1)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for case in cases {
        writeln!(input, "{case}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim(), format!("judged: {}", cases.len()), "{program}: {errors}");
}
