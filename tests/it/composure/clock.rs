//! The wall clock jumps back a day, ahead a day and ahead ten years under the running daemon, and at a
//! restart: nothing expires, nothing floods, nobody is locked out, and nothing is deleted, given up or
//! taken a second time. The monotonic clock goes on, as it does when somebody sets the time (libfaketime,
//! `FAKETIME_DONT_FAKE_MONOTONIC`).

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use postern::ext::Timestamp;
use serde_json::Value;

use crate::harness::load::{RecordingSink, SinkMood, TlsSession};
use crate::harness::not_run;
use crate::harness::process::{Credentials, Instance};
use crate::harness::zone::zone_of_sink;

const NAME: &str = "composure::clock::a_clock_that_jumps_expires_nothing_floods_nobody_and_locks_nobody_out";
const PATIENCE: Duration = Duration::from_secs(120);
/// Where Debian's libfaketime puts the library for programs with threads.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const WAITING: u64 = 8;
/// Of the message that its client hands in again and again.
const REPEATED: u64 = 5_000;
const DAY_MILLIS: u64 = 86_400_000;

struct World {
    instance: Instance,
    credentials: Credentials,
    sink: RecordingSink,
    folder: tempfile::TempDir,
}

impl World {
    fn jump(&self, offset: &str) {
        std::fs::write(self.folder.path().join("clock"), format!("{offset}\n")).unwrap();
    }

    fn queue(&self) -> Vec<Value> {
        let listed: Value = serde_json::from_str(&self.instance.tool(&["queue", "list", "--json"])).unwrap();
        listed["rows"].as_array().unwrap_or_else(|| panic!("{listed}")).clone()
    }

    /// Everything waits, none of it for years and none of it being tried over and over.
    fn all_wait(&self, after: &str) {
        let began = Instant::now();
        loop {
            let rows = self.queue();
            // One more may be on its way out of the queue; one less would be lost.
            assert!(rows.len() as u64 >= WAITING, "after {after}: {rows:?}");
            let waits = |row: &Value| row["due_in_secs"].as_u64().is_some_and(|secs| (60..=7_300).contains(&secs));
            if rows.len() as u64 == WAITING && rows.iter().all(waits) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "after {after}: {rows:?}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn send(&self, serial: u64) {
        self.send_with(serial, "");
    }

    /// The same message with the same key each time.
    fn repeat(&self) {
        self.send_with(REPEATED, "X-Idempotency-Key: order-1\r\n");
    }

    fn send_with(&self, serial: u64, field: &str) {
        let mut session = TlsSession::open(self.instance.door).unwrap();
        session.login(&self.credentials.login, &self.credentials.password).unwrap();
        session.command("MAIL FROM:<a@shop.test>", "250").unwrap();
        session.command(&format!("RCPT TO:<user{serial}@there.test>"), "250").unwrap();
        session.command("DATA", "354").unwrap();
        session.command(&format!("{field}From: <a@shop.test>\r\nX-Serial: {serial}\r\n\r\nhello\r\n."), "250").unwrap();
    }

    /// What a clock ten years ahead would take if it were believed.
    fn leaves_something_to_lose(&self) {
        self.instance.tool(&["tenant", "add", "leaving"]);
        self.instance.tool(&["tenant", "delete", "leaving", "--grace-days", "7"]);
        // Nobody has that name: whatever it is told fails.
        self.instance.tool(&["webhook", "add", "shop", "https://nobody.test/"]);
        std::fs::write(self.past_events(), b"").unwrap();
    }

    /// Where past events of yesterday are.
    fn past_events(&self) -> PathBuf {
        let yesterday = Timestamp(Timestamp::now().0 - DAY_MILLIS).rfc3339();
        self.instance.data.join("history").join(format!("{}.events", &yesterday[..10]))
    }

    fn has_lost_nothing(&self, after: &str) {
        self.instance.tool(&["tenant", "show", "leaving"]);
        assert!(self.past_events().exists(), "after {after}: past events are gone");
        let webhook = self.webhook();
        assert!(webhook["enabled"] == true, "after {after}: {webhook}");
        self.repeat();
    }

    fn webhook(&self) -> Value {
        let listed: Value = serde_json::from_str(&self.instance.tool(&["webhook", "list", "shop", "--json"])).unwrap();
        let found = listed["rows"].as_array().and_then(|rows| rows.first().cloned());
        found.unwrap_or_else(|| panic!("{listed}"))
    }

    fn fails_to_log_in(&self) {
        let mut session = TlsSession::open(self.instance.door).unwrap();
        assert!(session.login(&self.credentials.login, "wrong").is_err());
    }
}

fn open() -> World {
    let folder = tempfile::tempdir().unwrap();
    let zone = zone_of_sink(&["there.test", "shop.test"]);
    let sink = RecordingSink::start("127.0.0.1:0".parse().unwrap(), SinkMood::Shut).unwrap();
    let data = folder.path().join("data");
    let mut instance = Instance::make(folder.path(), &data, zone.address, sink.address.port());
    instance.reconfigure("retry_first = \"10s\"\nretry_max = \"1m\"", "retry_first = \"1h\"\nretry_max = \"2h\"");
    let clock = folder.path().join("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    instance.wrapper = [
        "env".to_owned(),
        format!("LD_PRELOAD={LIBRARY}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ]
    .to_vec();
    instance.start();
    let credentials = instance.furnish();
    instance.tool(&["tenant", "limits", "shop", "--hourly", "200", "--daily", "400"]);
    // The zone lives as long as the test: it is leaked with its runtime.
    std::mem::forget(zone);
    World { instance, credentials, sink, folder }
}

#[test]
fn a_clock_that_jumps_expires_nothing_floods_nobody_and_locks_nobody_out() {
    if !Path::new(LIBRARY).exists() {
        return not_run(NAME, "the package faketime is not installed");
    }
    let mut world = open();
    world.leaves_something_to_lose();
    (0..WAITING).for_each(|serial| world.send(serial));
    world.all_wait("the start");
    world.sink.set_mood(SinkMood::Takes);
    world.repeat();
    arrives(&world, REPEATED);
    world.sink.set_mood(SinkMood::Shut);
    let mut next = 1_000;
    for (step, offset) in ["-1d", "+0", "+1d", "+0", "+3650d", "+0", "-1d", "+3650d", "-1d"].into_iter().enumerate() {
        world.jump(offset);
        // Twice the gauges' and counters' rhythm is not needed: the queue looks every second.
        thread::sleep(Duration::from_millis(1_500));
        world.all_wait(offset);
        // Whoever has the password gets in, before and after somebody without it tries.
        world.fails_to_log_in();
        world.sink.set_mood(SinkMood::Takes);
        world.send(next);
        arrives(&world, next);
        world.sink.set_mood(SinkMood::Shut);
        next += 1;
        world.has_lost_nothing(offset);
        world.all_wait(&format!("mail at {offset}, step {step}"));
        assert_eq!(world.sink.arrivals.extra(), 0);
    }
    // The same at a restart: the queue's clock goes on by a day at most, so everything is tried once.
    for offset in ["+3650d", "-1d", "+0"] {
        assert!(world.instance.stop().success());
        world.jump(offset);
        world.instance.start();
        world.instance.wait_for_door();
        world.all_wait(&format!("a restart at {offset}"));
        // The webhook is tried again, and past events and tenants were looked at.
        thread::sleep(Duration::from_secs(6));
        world.has_lost_nothing(&format!("a restart at {offset}"));
        if offset == "+3650d" {
            let log = std::fs::read_to_string(world.instance.log()).unwrap();
            assert!(log.contains("the clock was set"), "{log}");
        }
    }
    world.sink.set_mood(SinkMood::Takes);
    for row in world.queue() {
        world.instance.tool(&["queue", "retry", row["id"].as_str().unwrap()]);
    }
    (0..WAITING).for_each(|serial| arrives(&world, serial));
    assert_eq!(world.sink.arrivals.extra(), 0, "nothing was delivered twice");
    assert_eq!(world.sink.arrivals.len() as u64, WAITING + 1 + next - 1_000, "and nobody got a notice");
    assert!(world.instance.stop().success());
}

fn arrives(world: &World, serial: u64) {
    let began = Instant::now();
    while world.sink.arrivals.copies(serial) == 0 {
        assert!(began.elapsed() < PATIENCE, "{serial} does not arrive: {}", world.instance.log_tail());
        thread::sleep(Duration::from_millis(20));
    }
}
