//! A disk that fills up while mail comes in: senders are put off, what was acknowledged is delivered
//! all the same, and mail is taken again by itself once there is room.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::disk::Disk;
use crate::harness::load::{SinkMood, TlsSession, message};
use crate::harness::not_run;
use crate::harness::promise::Promise;

/// The disk, and what the configuration of the tests keeps free of it.
const DISK_MIB: u64 = 512;
const FLOOR_BYTES: u64 = 16 * 1024 * 1024;

/// Sends one message; the reply to it, whatever it is, and whether it was a yes.
fn send_one(promise: &Promise) -> (bool, String) {
    let mut session = TlsSession::open(promise.load.door).unwrap();
    session.login(&promise.load.login, &promise.load.password).unwrap();
    let serial = promise.next_serial();
    let (to, text) = message(&promise.load, serial);
    let sent = [format!("MAIL FROM:<{}>", promise.load.from), format!("RCPT TO:<{to}>"), "DATA".to_owned()];
    for (command, code) in sent.iter().zip(["250", "250", "354"]) {
        if let Err(error) = session.command(command, code) {
            return (false, error.to_string());
        }
    }
    match session.command(&format!("{text}."), "250") {
        Ok(reply) => {
            promise.ledger.note(serial);
            (true, reply)
        }
        Err(error) => (false, error.to_string()),
    }
}

fn wait_until_taken(promise: &Promise, is_taken: bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (taken, reply) = send_one(promise);
        if taken == is_taken {
            return reply;
        }
        assert!(Instant::now() < deadline, "still {reply}\n{}", promise.instance.log_tail());
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_full_disk_puts_senders_off_loses_nothing_and_clears_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Disk::make(folder.path(), DISK_MIB) {
        Ok(disk) => disk,
        Err(why) => return not_run("disk full", &why),
    };
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::Shut);
    let pid = promise.instance.pid();
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(1));
    // Below the floor while senders work.
    let ballast = disk.fill_but(FLOOR_BYTES / 2);
    let reply = wait_until_taken(&promise, false);
    assert!(reply.contains("\"452 "), "{reply}");
    senders.stop();
    let acknowledged = promise.ledger.len();
    assert!(acknowledged > 3);
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    assert!(missing.is_empty(), "not delivered while the disk is full: {missing:?}");
    std::fs::remove_file(&ballast).unwrap();
    wait_until_taken(&promise, true);

    // Somebody else fills the disk to its last byte, against the floor.
    promise.sink.set_mood(SinkMood::Shut);
    let senders = promise.senders();
    thread::sleep(Duration::from_millis(500));
    let ballast = disk.fill_but(0);
    let reply = wait_until_taken(&promise, false);
    assert!(reply.contains("\"452 ") || reply.contains("\"451 "), "{reply}");
    thread::sleep(Duration::from_secs(5));
    assert!(promise.instance.ended().is_none(), "it ended: {}", promise.instance.log_tail());
    senders.stop();
    std::fs::remove_file(&ballast).unwrap();
    wait_until_taken(&promise, true);
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    promise.report("disk full", 2);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert_eq!(promise.instance.pid(), pid, "all of it without a restart");
    promise.instance.kill();
    promise.verify();
}
