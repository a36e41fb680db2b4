//! Tests that need low ports, addresses of their own or a mail server's root: the test runs itself
//! again in new network, mount and process namespaces. Nothing leaves the machine from there, and
//! when the test ends, however it ends, every process and mount in there is gone.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::not_run;

/// Set inside.
const INSIDE: &str = "POSTERN_TEST_INSIDE";
/// A test that hangs is ended after this.
const PATIENCE: Duration = Duration::from_secs(300);
/// The zone's server inside, at port 53; the resolver configuration inside names it.
pub const DNS: &str = "127.0.0.53:53";

/// What [`run_apart`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Apart {
    /// Here we are: run the checks.
    Inside,
    /// They have run and passed, or cannot run here, which has been said.
    Done,
}

/// Runs the test with the full name `test` (`module::function`) again in namespaces of its own,
/// after `prepare`, which may use the real network and says why the test cannot run if it cannot.
///
/// # Panics
/// If the test fails in there.
pub fn run_apart(test: &str, prepare: impl FnOnce() -> Result<(), String>) -> Apart {
    run_apart_within(PATIENCE, test, prepare)
}

/// The same, for a test that takes longer than others.
pub fn run_apart_within(patience: Duration, test: &str, prepare: impl FnOnce() -> Result<(), String>) -> Apart {
    if std::env::var_os(INSIDE).is_some() {
        furnish_namespace();
        return Apart::Inside;
    }
    let prepared = possible().and_then(|()| prepare());
    if let Err(reason) = prepared {
        not_run(test, &reason);
        return Apart::Done;
    }
    let program = std::env::current_exe().unwrap();
    let output = Command::new("timeout")
        .args(["-k", "5"])
        .arg(patience.as_secs().to_string())
        .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} inside: {}\n{said}\n{complained}", output.status);
    // A name that is misspelt would run nothing and succeed.
    assert!(said.contains("1 passed"), "no test is called {test}\n{said}");
    eprint!("{complained}");
    Apart::Done
}

fn possible() -> Result<(), String> {
    if std::env::var_os("POSTERN_TESTS_QUICK").is_some() {
        return Err("left out of a quick run".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("needs root for namespaces of its own".to_owned());
    }
    run(Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]))
        .map_err(|error| format!("no namespaces here: {error}"))?;
    run(Command::new("ip").arg("-V")).map_err(|error| format!("iproute2 is not installed: {error}"))
}

/// Runs a command; what it complained of if it failed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let complained = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let from = complained.floor_char_boundary(complained.len().saturating_sub(2000));
    Err(format!("{}: {}", output.status, &complained[from..]))
}

/// Gives the namespace an address, and waits until it can be used: an IPv6 address is looked at by the kernel first.
pub fn add_address(address: IpAddr) {
    let bits = if address.is_ipv6() { 128 } else { 32 };
    run(Command::new("ip").args(["address", "add", &format!("{address}/{bits}"), "dev", "lo"])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !postern::net::is_present(address) {
        assert!(Instant::now() < deadline, "{address} cannot be used");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Loopback up, and names from the test's own zone for programs that ask the system's resolver.
fn furnish_namespace() {
    run(Command::new("ip").args(["link", "set", "lo", "up"])).unwrap();
    let mut resolver = tempfile::NamedTempFile::new().unwrap();
    writeln!(resolver, "nameserver {}", DNS.trim_end_matches(":53")).unwrap();
    // It may be a link: what is bound over is what it leads to. The mount outlives the file's name.
    let real = std::fs::canonicalize("/etc/resolv.conf").expect("the system has a resolver's configuration");
    run(Command::new("mount").arg("--bind").arg(resolver.path()).arg(real)).unwrap();
}

/// A folder for what is made once and used by later runs too: roots of mail servers, packages.
/// Only its owner can write to it.
pub fn kept_folder() -> Result<std::path::PathBuf, String> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    let release = std::fs::read_to_string("/etc/debian_version").map_err(|_| "not a Debian system".to_owned())?;
    let folder = std::env::temp_dir().join(format!("postern-peers-{}", release.trim().replace('/', "-")));
    match std::fs::DirBuilder::new().mode(0o755).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(format!("{}: {error}", folder.display()))
        }
        _ => {
            let found = std::fs::symlink_metadata(&folder).map_err(|error| error.to_string())?;
            let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
            if !is_ours || found.permissions().mode() & 0o022 != 0 {
                return Err(format!("{} belongs to somebody else", folder.display()));
            }
            Ok(folder)
        }
    }
}
