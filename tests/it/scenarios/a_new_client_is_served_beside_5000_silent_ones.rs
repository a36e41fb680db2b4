//! 5,000 peers connect and say nothing; the next client is greeted at once and hands in mail, and
//! the silent ones cost little memory.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use postern::submission::Settings;

use crate::harness::door::{Client, Door};
use crate::harness::not_run;

const ALONE: &str = "POSTERN_TEST_ALONE";
const SILENT: usize = 5_000;
/// Of the whole process: what was there before comes on top.
const GROWTH_MIB_MAX: u64 = 150;

/// Runs the named test of this file in a process of its own: the memory of other tests is none of
/// its business. Whether this is that process.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = format!("scenarios::a_new_client_is_served_beside_5000_silent_ones::{name}");
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let status = alone.args([&name, "--exact", "--nocapture"]).env(ALONE, "1").status().unwrap();
    assert!(status.success());
    false
}

#[test]
fn logged_in_idle_sessions_cost_at_most_64_kib_each_both_ends_counted() {
    const SESSIONS: usize = 190;
    if !is_alone("logged_in_idle_sessions_cost_at_most_64_kib_each_both_ends_counted") {
        return;
    }
    let door = Door::start(Settings::default());
    let _warm: Vec<Client> = (0..5).map(|_| door.logged_in()).collect();
    let before = resident_kib();
    let _idle: Vec<Client> = (0..SESSIONS).map(|_| door.logged_in()).collect();
    let each = resident_kib().saturating_sub(before) / SESSIONS as u64;
    eprintln!("{each} KiB for each logged-in idle session, client's side included");
    assert!(each <= 64, "{each} KiB each");
}

#[test]
fn a_new_client_is_served_beside_5000_silent_ones() {
    if !is_alone("a_new_client_is_served_beside_5000_silent_ones") {
        return;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = 2 * SILENT as u64 + 500;
    if limit.maximum.is_some_and(|maximum| maximum < enough) {
        return not_run("5,000 silent sessions", "the limit of open files is too low");
    }
    let raised = rustix::process::Rlimit { current: limit.maximum.or(Some(enough)), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let door = Door::start(Settings { sessions_per_peer_max: SILENT + 10, ..Settings::default() });
    let before = resident_mib();
    let mut silent = Vec::with_capacity(SILENT);
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(door.starttls_port).unwrap());
    }
    // The last of them is greeted, so all of them were accepted.
    let mut last = Client::connect(door.starttls_port);
    last.expect("220");
    let grown = resident_mib().saturating_sub(before);
    let begun = Instant::now();
    let mut client = door.logged_in();
    for line in ["MAIL FROM:<a@shop.example>", "RCPT TO:<b@there.example>"] {
        client.say(line);
        client.expect("250");
    }
    client.say("DATA");
    client.expect("354");
    client.say("From: <a@shop.example>\r\n\r\nhi\r\n.");
    client.expect("250");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(grown < GROWTH_MIB_MAX, "{grown} MiB for {SILENT} silent sessions");
    eprintln!("{SILENT} silent sessions: {grown} MiB, a new client served in {:?}", begun.elapsed());
}

fn resident_mib() -> u64 {
    resident_kib() / 1024
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
