//! What systemd does for the daemon, without systemd as process 1: sockets handed over by its own
//! `systemd-socket-activate`, credentials in a folder, and the renewal hooks of docs/operate/tls.md.
//! Readiness, reload, status and watchdog are in `daemon_life`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use postern::mail::Domain;
use postern::net::Certificates;

use crate::harness::not_run;
use crate::harness::process::Instance;

/// Nobody is asked for names here.
const NO_DNS: ([u8; 4], u16) = ([127, 0, 0, 1], 9);
const PATIENCE: Duration = Duration::from_secs(60);

/// The first line the door says; the first connection makes systemd's helper start the daemon.
fn greeting(door: SocketAddr) -> String {
    let began = Instant::now();
    loop {
        let mut line = String::new();
        if let Ok(stream) = TcpStream::connect(door) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = BufReader::new(stream).read_line(&mut line);
        }
        if !line.is_empty() || began.elapsed() > PATIENCE {
            return line;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn sockets_that_systemd_opened_are_served_by_their_names() {
    let helper = "systemd-socket-activate";
    if !Command::new(helper).arg("--version").output().is_ok_and(|ran| ran.status.success()) {
        return not_run("socket activation", "systemd-socket-activate is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), NO_DNS.into(), 25);
    instance.start();
    instance.furnish();
    assert_eq!(instance.stop().code(), Some(0));
    // The configuration names other ports: what is served there comes from the sockets alone.
    let (tls, starttls) = (instance.door, instance.starttls);
    let ports = format!("tls_ports = [{}]\nstarttls_ports = [{}]", tls.port(), starttls.port());
    instance.reconfigure(&ports, "tls_ports = []\nstarttls_ports = [1]");
    instance.wrapper = [helper, "-l", &tls.to_string(), "-l", &starttls.to_string(), "--fdname=tls:starttls"]
        .map(str::to_owned)
        .to_vec();
    instance.spawn();
    assert!(greeting(starttls).starts_with("220 mx.shop.test "), "{}", instance.log_tail());
    // Where TLS comes first nothing is said before the handshake.
    let stream = TcpStream::connect(tls).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut line = String::new();
    assert!(BufReader::new(stream).read_line(&mut line).is_err(), "{line}");
    let shaken = Command::new("openssl")
        .args(["s_client", "-connect", &tls.to_string(), "-quiet", "-no_ign_eof"])
        .stdin(std::process::Stdio::null())
        .output();
    if let Ok(shaken) = shaken {
        let said = String::from_utf8_lossy(&shaken.stdout).into_owned();
        assert!(said.is_empty() || said.starts_with("220 "), "{said}");
    }
    assert_eq!(instance.stop().code(), Some(0), "{}", instance.log_tail());
}

#[test]
fn the_master_key_may_be_a_credential_and_its_absence_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), NO_DNS.into(), 25);
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::rename(folder.path().join("master.key"), credentials.join("postern-key")).unwrap();
    // As systemd leaves it.
    fs::set_permissions(credentials.join("postern-key"), fs::Permissions::from_mode(0o400)).unwrap();
    let from = format!("master_key = {:?}", folder.path().join("master.key"));
    instance.reconfigure(&from, "master_key = \"credential:postern-key\"");
    instance.spawn();
    let began = Instant::now();
    let status = loop {
        match instance.ended() {
            Some(status) => break status,
            None => assert!(began.elapsed() < PATIENCE, "it runs without its key"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(78), "{}", instance.log_tail());
    assert!(instance.log_tail().contains("LoadCredential="), "{}", instance.log_tail());
    instance.wrapper = vec!["env".to_owned(), format!("CREDENTIALS_DIRECTORY={}", credentials.display())];
    instance.start();
    assert_eq!(instance.stop().code(), Some(0), "{}", instance.log_tail());
}

/// The shell scripts of the page, in its order.
fn hooks() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operate/tls.md");
    let text = fs::read_to_string(page).unwrap();
    text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Runs a hook against folders of the test. `install` there cannot give files to a user that does
/// not exist here, so that part of it is left out, and only that.
fn run_hook(hook: &str, folder: &Path, variables: &[(&str, &Path)]) -> ExitStatus {
    let script = folder.join("hook");
    let certificates = folder.join("certificates");
    assert!(hook.contains("/etc/postern/certificates"), "{hook}");
    fs::write(&script, hook.replace("/etc/postern/certificates", &certificates.to_string_lossy())).unwrap();
    let tools = folder.join("tools");
    fs::create_dir_all(&tools).unwrap();
    let install = "#!/bin/sh\nfor given; do shift; case $given in postern) ;; -o | -g) ;; *) set -- \"$@\" \"$given\" ;; esac; done\n\
                   exec /usr/bin/install \"$@\"\n";
    fs::write(tools.join("install"), install).unwrap();
    fs::set_permissions(tools.join("install"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", tools.display());
    let mut command = Command::new("sh");
    command.arg(&script).env_clear().env("PATH", path);
    variables.iter().for_each(|(name, value)| {
        command.env(name, value);
    });
    command.status().unwrap()
}

#[test]
fn the_renewal_hooks_of_the_documentation_leave_a_pair_that_is_loaded() {
    let name = Domain::parse("mx.example.com").unwrap();
    let hooks = hooks();
    assert_eq!(hooks.len(), 2, "certbot's and lego's");
    for hook in &hooks {
        let folder = tempfile::tempdir().unwrap();
        // certbot's layout, made by whoever can write a certificate.
        Certificates::write_self_signed(&folder.path().join("live"), &name).unwrap();
        let lineage = folder.path().join("live/mx.example.com");
        let (chain, key) = (lineage.join("fullchain.pem"), lineage.join("privkey.pem"));
        let certbot: &[(&str, &Path)] = &[("RENEWED_LINEAGE", &lineage)];
        let lego: &[(&str, &Path)] = &[
            ("LEGO_CERT_DOMAIN", Path::new("mx.example.com")),
            ("LEGO_CERT_PATH", &chain),
            ("LEGO_CERT_KEY_PATH", &key),
        ];
        let variables = if hook.contains("RENEWED_LINEAGE") { certbot } else { lego };
        // A renewal happens again and again.
        for _ in 0..2 {
            assert!(run_hook(hook, folder.path(), variables).success(), "{hook}");
        }
        let made = folder.path().join("certificates");
        let mode =
            |file: &str| fs::metadata(made.join("mx.example.com").join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("privkey.pem"), mode("fullchain.pem")), (0o600, 0o644));
        assert!(Certificates::open(&made, &name).unwrap().has_default(), "the pair is not usable");
        // Without what the program says, nothing is done.
        assert!(!run_hook(hook, folder.path(), &[]).success());
    }
}
