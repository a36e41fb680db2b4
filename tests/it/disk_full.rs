//! A disk that fills up while mail comes in: senders are put off, what was acknowledged is delivered
//! all the same, and mail is taken again by itself once there is room.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::disk::Disk;
use crate::harness::load::{SinkMood, TlsSession, message, post};
use crate::harness::moments::pause;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_long};

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

#[test]
fn a_full_disk_refuses_by_http_too_and_the_same_request_is_taken_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Disk::make(folder.path(), DISK_MIB) {
        Ok(disk) => disk,
        Err(why) => return not_run("disk full, by HTTP", &why),
    };
    let mut promise = Promise::make_with(folder.path(), &disk.mount.join("data"), SinkMood::Takes, 1);
    let pid = promise.instance.pid();
    let http = promise.load.http.clone().unwrap();
    let (mut client, serial) = (None, promise.next_serial());
    assert_eq!(post(&mut client, &promise.load, &http, serial).unwrap(), 202);
    promise.ledger.note(serial);
    let ballast = disk.fill_but(FLOOR_BYTES / 2);
    wait_until_taken(&promise, false);
    // Refused as documented, over a connection that goes on, however often; nothing of it is kept.
    let serial = promise.next_serial();
    for _ in 0..5 {
        assert_eq!(post(&mut client, &promise.load, &http, serial).unwrap(), 503);
    }
    let refused = client
        .as_mut()
        .unwrap()
        .ask(
            "POST",
            "/api/v1/messages?to=a@one.test",
            &[("Authorization", http.bearer.as_str()), ("Content-Type", "message/rfc822")],
            b"From: orders@shop.test\r\n\r\nx\r\n",
        )
        .unwrap();
    assert_eq!(refused.json()["code"], "storage_full", "{}", refused.text());
    assert!(promise.settle().is_empty());
    assert_eq!(promise.sink.arrivals.copies(serial), 0);
    // Others by the same door read on: only new mail is refused.
    promise.instance.tool(&["queue", "list"]);
    std::fs::remove_file(&ballast).unwrap();
    wait_until_taken(&promise, true);
    assert_eq!(post(&mut client, &promise.load, &http, serial).unwrap(), 202);
    assert_eq!(post(&mut client, &promise.load, &http, serial).unwrap(), 202, "a repeat is answered as the first");
    promise.ledger.note(serial);
    let missing = promise.settle();
    promise.report("disk full, by HTTP", 1);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert_eq!(promise.sink.arrivals.copies(serial), 1, "taken once");
    assert_eq!(promise.instance.pid(), pid, "all of it without a restart");
    promise.instance.kill();
    promise.verify();
}

#[test]
fn a_disk_without_inodes_puts_senders_off_loses_nothing_and_clears_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Disk::make(folder.path(), DISK_MIB) {
        Ok(disk) => disk,
        Err(why) => return not_run("inodes gone", &why),
    };
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::Shut);
    let pid = promise.instance.pid();
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(1));
    let litter = disk.use_up_inodes();
    let reply = wait_until_taken(&promise, false);
    assert!(reply.contains("\"452 "), "{reply}");
    senders.stop();
    assert!(promise.ledger.len() > 3);
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    assert!(missing.is_empty(), "not delivered while inodes are lacking: {missing:?}");
    std::fs::remove_dir_all(&litter).unwrap();
    wait_until_taken(&promise, true);
    let missing = promise.settle();
    promise.report("inodes gone", 1);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert_eq!(promise.instance.pid(), pid, "all of it without a restart");
    promise.instance.kill();
    promise.verify();
}

/// Filled to its last byte at any moment, also between the look for room and the write it was for: then the
/// record engine's write waits for room, and the process goes on.
#[test]
fn a_disk_that_fills_up_at_any_moment_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Disk::make(folder.path(), DISK_MIB) {
        Ok(disk) => disk,
        Err(why) => return not_run("disk full at any moment", &why),
    };
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::Takes);
    let rounds = if is_long() { 40 } else { 4 };
    for round in 0..rounds {
        let senders = promise.senders();
        thread::sleep(pause(round));
        let ballast = disk.fill_but(0);
        thread::sleep(2 * pause(round));
        std::fs::remove_file(&ballast).unwrap();
        thread::sleep(pause(round));
        if let Some(status) = promise.instance.ended() {
            panic!("it ended with {status}\n{}", promise.instance.log_tail());
        }
        wait_until_taken(&promise, true);
        senders.stop();
    }
    let missing = promise.settle();
    promise.report("disk full at any moment", rounds);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    promise.instance.kill();
    promise.verify();
}
