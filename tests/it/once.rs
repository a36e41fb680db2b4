//! `X-Idempotency-Key` over real SMTP while the daemon dies: what a client hands in again because it saw no reply
//! is one message.

use std::io;
use std::thread;
use std::time::Duration;

use crate::harness::load::{SinkMood, TlsSession, message};
use crate::harness::promise::Promise;

const ROUNDS: u64 = 8;

/// Opens a transaction and says the message with its key; the reply is still to be read.
fn say(promise: &Promise, serial: u64) -> io::Result<TlsSession> {
    let (to, text) = message(&promise.load, serial);
    let mut session = TlsSession::open(promise.load.door)?;
    session.login(&promise.load.login, &promise.load.password)?;
    session.command(&format!("MAIL FROM:<{}>", promise.load.from), "250")?;
    session.command(&format!("RCPT TO:<{to}>"), "250")?;
    session.command("DATA", "354")?;
    let stuffed = text.replace("\r\n.", "\r\n..");
    session.say(&format!("X-Idempotency-Key: order-{serial}\r\n{stuffed}."))?;
    Ok(session)
}

fn hand_in(promise: &Promise, serial: u64) -> String {
    let mut session = say(promise, serial).unwrap();
    let reply = session.expect("250").unwrap();
    promise.ledger.note(serial);
    reply
}

#[test]
fn a_key_said_again_after_the_daemon_died_in_between_is_no_second_message() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing is taken until the end: a copy that arrives is a message of its own, not an attempt that was cut off.
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Shut);
    let (mut unseen, mut serials) = (0, Vec::new());
    for round in 0..ROUNDS {
        let serial = promise.next_serial();
        serials.push(serial);
        let first = if round % 2 == 0 {
            Some(hand_in(&promise, serial))
        } else {
            // It dies while the client waits: before the message is on disk, after it, or after the reply.
            let session = say(&promise, serial).unwrap();
            thread::sleep(Duration::from_millis(2 * round));
            unseen += 1;
            promise.instance.kill();
            drop(session);
            None
        };
        if first.is_some() {
            promise.instance.kill();
        }
        promise.verify();
        promise.instance.start();
        promise.instance.wait_for_door();
        let again = hand_in(&promise, serial);
        assert!(first.as_ref().is_none_or(|first| *first == again), "{first:?} and then {again}");
        assert_eq!(hand_in(&promise, serial), again, "and the same within one life");
    }
    assert_eq!(unseen, ROUNDS / 2);
    let owed: serde_json::Value = serde_json::from_str(&promise.instance.tool(&["queue", "list", "--json"])).unwrap();
    assert_eq!(owed["rows"].as_array().unwrap().len(), serials.len(), "one message for each key: {owed}");
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    let copies: Vec<usize> = serials.iter().map(|serial| promise.sink.arrivals.copies(*serial)).collect();
    assert!(copies.iter().all(|copies| *copies == 1), "{copies:?}");
    promise.nothing_is_sent_again_by_a_restart();
    let delivered = hand_in(&promise, serials[0]);
    assert!(delivered.contains("Queued as"), "{delivered}");
    let owed: serde_json::Value = serde_json::from_str(&promise.instance.tool(&["queue", "list", "--json"])).unwrap();
    assert_eq!(owed["rows"].as_array().unwrap().len(), 0, "what was delivered is not owed again: {owed}");
    promise.instance.stop();
}
