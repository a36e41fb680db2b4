//! The TLS of every listener, judged by sslyze against Mozilla's intermediate profile.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::apart::{kept_folder, run};
use crate::harness::not_run;
use crate::harness::process::{Instance, free_port};
use crate::harness::zone::zone_of_sink;

/// A version that was tried.
const SSLYZE: &str = "sslyze==6.3.1";
const PATIENCE: Duration = Duration::from_secs(60);

/// sslyze in an environment of its own, made once.
fn sslyze() -> Result<PathBuf, String> {
    let folder = kept_folder()?.join(SSLYZE.replace("==", "-"));
    let program = folder.join("bin/sslyze");
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", SSLYZE]))?;
    }
    Ok(program)
}

#[test]
fn every_listener_has_mozillas_intermediate_profile() {
    let name = "composure::tls::every_listener_has_mozillas_intermediate_profile";
    if std::env::var_os("POSTERN_TESTS_QUICK").is_some() {
        return not_run(name, "left out of a quick run");
    }
    let program = match sslyze() {
        Ok(program) => program,
        Err(reason) => return not_run(name, &reason),
    };
    let folder = tempfile::tempdir().unwrap();
    let zone = zone_of_sink(&["there.test"]);
    let mut instance = Instance::make(folder.path(), &folder.path().join("data"), zone.address, 25);
    let began = Instant::now();
    // The judge opens many sessions and ends few of them.
    instance.reconfigure("[submission]\n", "[submission]\nsessions_per_peer_max = 5000\n");
    let admin = instance.with_admin();
    let returned = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let feedback = format!("[feedback]\ndoor = \"on\"\nports = [{}]\n[admin]\n", returned.port());
    instance.reconfigure("[admin]\n", &feedback);
    instance.start();
    instance.furnish();
    while TcpStream::connect(returned).is_err() {
        assert!(began.elapsed() < PATIENCE, "the port for what comes back stays shut: {}", instance.log_tail());
        thread::sleep(Duration::from_millis(50));
    }
    // Every listener with TLS: 465, 587 and 2525, 25 for what comes back, the admin API.
    let listeners = [(instance.door, false), (instance.starttls, true), (returned, true), (admin, false)];
    for (door, starttls) in listeners {
        let mut command = Command::new(&program);
        command.arg("--mozilla_config=intermediate");
        if starttls {
            command.arg("--starttls=smtp");
        }
        let output = command.arg(door.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, judged) = said.split_once("COMPLIANCE AGAINST").unwrap_or_else(|| panic!("no verdict:\n{said}"));
        assert!(judged.contains(&door.to_string()), "{said}");
        // `init` writes a self-signed certificate; only a real one can pass these two.
        let of_the_certificate = ["* certificate_path_validation:", "* maximum_certificate_lifespan:"];
        let faults: Vec<&str> = judged.lines().map(str::trim).filter(|line| line.starts_with("* ")).collect();
        let ours = faults.iter().filter(|line| !of_the_certificate.iter().any(|known| line.starts_with(known)));
        assert_eq!(ours.count(), 0, "{door}: {faults:#?}");
        // The judge did reach it: a scan that failed has no suites to tell of.
        assert!(said.contains("TLS_AES_256_GCM_SHA384") && said.contains("ECDHE_ECDSA"), "{said}");
    }
    assert!(instance.stop().success());
}
