//! The real binary as a process of its own, so that it can be killed: configuration and keys in a
//! folder of the test, everything on loopback, managed by its own command line.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the daemon may take to serve; generous because machines are shared.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// One installation: configuration, data, and a process that may or may not run.
pub struct Instance {
    pub folder: PathBuf,
    pub data: PathBuf,
    /// TLS first.
    pub door: SocketAddr,
    /// STARTTLS.
    pub starttls: SocketAddr,
    child: Option<Child>,
    /// Put before the program: `["strace", ...]`, `["eatmydata"]`.
    pub wrapper: Vec<String>,
}

/// What an SMTP account logs in with.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub login: String,
    pub password: String,
}

impl Instance {
    /// Makes keys and configuration below `folder`, with the data in `data`.
    /// Mail leaves to port `mx_port` of whatever the resolver at `dns` says.
    pub fn make(folder: &Path, data: &Path, dns: SocketAddr, mx_port: u16) -> Self {
        let door = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let starttls = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        Self::make_at(folder, data, (door, starttls), dns, mx_port)
    }

    /// The same with the doors (TLS first, STARTTLS) at given ports of the address that
    /// [`Instance::furnish`] makes a virtual IP.
    pub fn make_at(
        folder: &Path,
        data: &Path,
        (door, starttls): (SocketAddr, SocketAddr),
        dns: SocketAddr,
        mx_port: u16,
    ) -> Self {
        let instance =
            Self { folder: folder.to_owned(), data: data.to_owned(), door, starttls, child: None, wrapper: Vec::new() };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        instance.tool(&["init", "--hostname", "mx.test", "--config-dir", &text(folder), "--data-dir", &text(data)]);
        let config = format!(
            "hostname = \"mx.test\"\ndata = {data:?}\nallow_root = true\n\
             [tls]\ncertificates = {certificates:?}\n\
             [secrets]\nmaster_key = {key:?}\nbackup_key = {backup:?}\n\
             [submission]\ntls_ports = [{port}]\nstarttls_ports = [{starttls_port}]\n\
             [queue]\nretry_first = \"10s\"\nretry_max = \"1m\"\nnotice_gather = \"0s\"\n\
             [delivery]\nport = {mx_port}\nprivate_addresses = \"allow\"\n\
             [dns]\nservers = [\"{dns}\"]\n\
             [store]\nfree_bytes_min = \"16 MiB\"\n\
             [admin]\nsocket = {socket:?}\ngroup = \"\"\nlisten = []\n\
             [monitor]\nlisten = \"\"\n\
             [log]\nlevel = \"warn\"\n",
            certificates = folder.join("certificates"),
            key = folder.join("master.key"),
            backup = folder.join("backup.key"),
            socket = instance.socket(),
            port = door.port(),
            starttls_port = starttls.port(),
        );
        fs::write(instance.config(), config).unwrap();
        instance
    }

    /// Rewrites the configuration; the daemon reads it at its next start.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from:?} is not in the configuration");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// Serves the admin API over TLS from the next start on; where.
    pub fn with_admin(&self) -> SocketAddr {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        self.reconfigure("\nlisten = []\n", &format!("\nlisten = [\"{admin}\"]\n"));
        admin
    }

    /// Serves health and metrics from the next start on; where.
    pub fn with_monitor(&self) -> SocketAddr {
        let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        self.reconfigure("\nlisten = \"\"\n", &format!("\nlisten = \"{monitor}\"\n"));
        monitor
    }

    /// The data lies in `to` from the next start on.
    pub fn use_data(&mut self, to: &Path) {
        self.reconfigure(&format!("data = {:?}", self.data), &format!("data = {to:?}"));
        self.data = to.to_owned();
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("postern.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// Where the daemon's standard error goes, over all its lives.
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// The last lines of the daemon's log, for messages of failed tests.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Starts the daemon and waits until its door answers. How long that took.
    pub fn start(&mut self) -> Duration {
        self.try_start().unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same for a daemon that may be unable to.
    pub fn try_start(&mut self) -> Result<Duration, String> {
        let began = Instant::now();
        self.spawn();
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.ended() {
                return Err(format!("the daemon ended with {status}:\n{}", self.log_tail()));
            }
            if began.elapsed() > START_PATIENCE {
                return Err(format!("the daemon does not serve:\n{}", self.log_tail()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(began.elapsed())
    }

    /// How it ended, if it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Whether it was started and was not seen to end.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the daemon without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut line = self.wrapper.clone();
        line.push(env!("CARGO_BIN_EXE_postern").to_owned());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg("serve").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until the SMTP door accepts; there must be a virtual IP for it.
    pub fn wait_for_door(&self) {
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect(self.door).is_err() {
            assert!(Instant::now() < deadline, "the door stays shut:\n{}", self.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process id of what was started (the wrapper's, if there is one).
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGKILL: nothing is flushed, nothing is said. A wrapper that stays the daemon's parent dies too.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        for daemon in children_of(child.id()) {
            let _ = rustix::process::kill_process(daemon, rustix::process::Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let sent = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
        assert!(sent.success());
        child.wait().unwrap()
    }

    /// Runs a command of the command line, whatever comes of it.
    pub fn try_tool(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    /// Runs a command of the command line; it must succeed. Its standard output.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let output = self.try_tool(arguments);
        assert!(
            output.status.success(),
            "postern {arguments:?}: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A tenant `shop` on the door's address that may send as `shop.test`, and its login.
    pub fn furnish(&self) -> Credentials {
        self.tool(&["tenant", "add", "shop"]);
        self.tool(&["vip", "add", &self.door.ip().to_string(), "--ehlo", "mx.shop.test", "--tenant", "shop"]);
        self.tool(&["domain", "add", "shop", "shop.test"]);
        self.tool(&["domain", "trust", "shop", "shop.test"]);
        let credentials = self.add_account("shop");
        self.wait_for_door();
        credentials
    }

    /// A new SMTP account of a tenant.
    pub fn add_account(&self, tenant: &str) -> Credentials {
        let made = self.tool(&["smtp-account", "add", tenant, "--json"]);
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        let text = |key: &serde_json::Value| key.as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        Credentials { login: text(&made["account"]["login"]), password: text(&made["password"]) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Processes whose parent this is.
fn children_of(parent: u32) -> Vec<rustix::process::Pid> {
    let is_child = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|of| of.trim() == parent.to_string()))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_child).filter_map(rustix::process::Pid::from_raw).collect()
}

/// A port nothing listens on; the kernel does not give it out again soon.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
