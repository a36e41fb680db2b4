//! The API judged by programs of others: a fuzzer that reads its document, and a client made of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use postern::access::{Action, RESOURCES, Role, Scope};
use postern::daemon::{Daemon, Overrides};
use postern::ext::Timestamp;
use postern::net::{Zone, ZoneServer};
use postern::people::{NewKey, NewUser, Site};
use postern::vips::Owner;
use zeroize::Zeroizing;

use crate::harness::apart::{kept_folder, run};
use crate::harness::daemon::{Running, config, new_folder, operator};
use crate::harness::not_run;

/// Versions that were tried.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
const CLIENT_MAKER: &str = "openapi-python-client==0.29.1";
const AUTHENTICATOR: &str = "soft-webauthn==0.1.4";
/// Where people's browsers would reach the API.
const ORIGIN: &str = "https://mx.example.com";
/// Requests made up for one operation: some five hundred in all, in less than a minute.
const EXAMPLES_MAX: &str = "3";
/// What is left out: a copy of the whole folder as an answer; logins, which are slowed when they fail; and what
/// would end the key that asks, since the fuzzer tries the ids it was shown.
const LEFT_OUT: &[&str] = &["backup_take", "session_log_in", "keys_remove", "keys_change", "keys_rotate"];

/// A Python environment with `package` in it, made once.
fn environment(package: &str) -> Result<PathBuf, String> {
    if std::env::var_os("POSTERN_TESTS_QUICK").is_some() {
        return Err("left out of a quick run".to_owned());
    }
    let folder = kept_folder()?.join(package.replace("==", "-"));
    let whole = folder.join("whole");
    if !whole.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", package]))?;
        std::fs::write(&whole, package).map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// A daemon whose API is served over TLS, a key of the instance for it, and a tenant that can send.
async fn served() -> (Running, String, String) {
    let zone = Zone::new().mx("receiver.test", 10, "mx.receiver.test").ipv4("mx.receiver.test", Ipv4Addr::LOCALHOST);
    let zone = Arc::new(ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap());
    let folder = new_folder();
    let mut config = config(folder.path(), &zone, 9);
    config.web.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    config.web.requests_per_minute_max = 1_000_000;
    config.web.site = Site::parse(ORIGIN).ok();
    let daemon = Daemon::start(config, Overrides::default()).await.unwrap();
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let running = Running { daemon, folder, zone, tls: nowhere, starttls: nowhere };
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let scopes = RESOURCES.iter().map(|resource| Scope { resource: *resource, action: Action::Write });
    let new = NewKey {
        tenant: None,
        name: "judge".to_owned(),
        scopes: scopes.collect(),
        allowed_from: Vec::new(),
        domains: Vec::new(),
        expires: None,
    };
    let made = running.daemon.people.add_key(&operator(), (new, None), Timestamp::now()).await.unwrap();
    let address = format!("https://{}", running.daemon.admin[0]);
    (running, address, made.text.to_string())
}

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_that_reads_the_document_finds_no_failing_check() {
    let name = "api_clients::a_fuzzer_that_reads_the_document_finds_no_failing_check";
    let folder = match environment(SCHEMATHESIS) {
        Ok(folder) => folder,
        Err(reason) => return not_run(name, &reason),
    };
    let (running, address, key) = served().await;
    let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/api-client/schemathesis.toml");
    let mut command = Command::new(folder.join("bin/st"));
    // One worker: several in one Python 3.11 stumble over each other's syntax trees ("recursion depth mismatch").
    command
        .args([
            "--config-file",
            settings,
            "run",
            &format!("{address}/api/openapi.json"),
            "--url",
            &format!("{address}/api/v1"),
        ])
        .args(["--header", &format!("Authorization: Bearer {key}"), "--tls-verify", "false"])
        .args(["--phases", "examples,fuzzing", "--max-examples", EXAMPLES_MAX, "--workers", "1", "--seed", "1"])
        .args(["--no-shrink", "--no-color", "--generation-database", "none", "--request-timeout", "40"])
        .args(["--generation-with-security-parameters", "false"]);
    // It keeps what it found beside itself.
    let beside = tempfile::tempdir().unwrap();
    command.current_dir(beside.path());
    for operation in LEFT_OUT {
        command.args(["--exclude-operation-id", operation]);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(running.daemon.fallen().is_none());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_made_of_the_document_does_its_work() {
    let name = "api_clients::a_python_client_made_of_the_document_does_its_work";
    let folder = match environment(CLIENT_MAKER) {
        Ok(folder) => folder,
        Err(reason) => return not_run(name, &reason),
    };
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api/openapi.json");
    let made = tempfile::tempdir().unwrap();
    let mut make = Command::new(folder.join("bin/openapi-python-client"));
    make.args(["generate", "--path", document, "--meta", "none", "--output-path"]).arg(made.path().join("made"));
    let output = make.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let (running, address, key) = served().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/api-client/use.py");
    let mut command = Command::new(folder.join("bin/python"));
    command.arg(script).args([&address, &key]).env("PYTHONPATH", made.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("used: by-client shop-"), "{}", said(&output));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authenticator_of_others_sets_up_a_passkey_and_logs_in_with_it() {
    let name = "api_clients::an_authenticator_of_others_sets_up_a_passkey_and_logs_in_with_it";
    let folder = match environment(AUTHENTICATOR) {
        Ok(folder) => folder,
        Err(reason) => return not_run(name, &reason),
    };
    let (running, address, _) = served().await;
    let (people, email, password) = (&running.daemon.people, "anna@shop.example.com", "correct horse battery");
    let (now, name, role) = (Timestamp::now(), "Anna".to_owned(), Role::InstanceAdmin);
    let new = NewUser { email: email.to_owned(), name, role, accounts: None };
    let (_, link) = people.invite(&operator(), new, now).await.unwrap();
    people.redeem(&link.token, Zeroizing::new(password.to_owned()), None, now).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/api-client/passkey.py");
    let mut command = Command::new(folder.join("bin/python"));
    command.arg(script).args([&address, email, password, ORIGIN]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("passkey used 3 times"), "{}", said(&output));
    running.stop().await;
}
