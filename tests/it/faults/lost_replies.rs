//! A 250 that does not arrive: the peer's to us, and ours to a client. Nobody can know then, and
//! RFC 1047 says what is left to do: the sender tries again, and the bytes are the same.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::load::{SinkMood, TlsSession, message};
use crate::harness::promise::Promise;

/// Of so many messages one is taken without a reply.
const NTH: u64 = 4;
const MESSAGES: u64 = 24;
const PATIENCE: Duration = Duration::from_secs(60);

/// Up to the dot; the reply is not read.
fn send_unread(promise: &Promise, serial: u64) -> TlsSession {
    let mut session = TlsSession::open(promise.load.door).unwrap();
    session.login(&promise.load.login, &promise.load.password).unwrap();
    let (to, text) = message(&promise.load, serial);
    session.command(&format!("MAIL FROM:<{}>", promise.load.from), "250").unwrap();
    session.command(&format!("RCPT TO:<{to}>"), "250").unwrap();
    session.command("DATA", "354").unwrap();
    session.say(&format!("{text}.")).unwrap();
    session
}

#[test]
fn a_peer_whose_250_is_lost_gets_one_more_copy_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::SwallowsReplyEvery(NTH));
    for serial in 0..MESSAGES {
        send_unread(&promise, serial).expect("250").unwrap();
        promise.ledger.note(serial);
    }
    let swallowed = (0..MESSAGES).filter(|serial| serial.is_multiple_of(NTH));
    let deadline = Instant::now() + PATIENCE;
    while !swallowed.clone().all(|serial| promise.sink.arrivals.copies(serial) >= 2) {
        assert!(Instant::now() < deadline, "not tried again:\n{}", promise.instance.log_tail());
        thread::sleep(Duration::from_millis(100));
    }
    let missing = promise.settle();
    promise.report("peer's 250 lost", swallowed.clone().count() as u64);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    let copies: Vec<_> = (0..MESSAGES).filter(|serial| promise.sink.arrivals.copies(*serial) != 1).collect();
    assert_eq!(copies, swallowed.collect::<Vec<_>>(), "one more copy of each, of nothing else");
    assert_eq!(promise.sink.arrivals.extra() as u64, MESSAGES / NTH);
    assert_eq!(promise.sink.arrivals.differing(), Vec::<u64>::new(), "a second copy has other bytes");
}

#[test]
fn a_client_that_leaves_before_its_250_has_sent_one_whole_message_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    for serial in 0..MESSAGES {
        let session = send_unread(&promise, serial);
        match serial % 2 {
            // The connection is gone at once.
            0 => drop(session),
            // The client heard nothing and sends it again: a second message, as good as the first.
            _ => {
                drop(session);
                send_unread(&promise, serial).expect("250").unwrap();
                promise.ledger.note(serial);
            }
        }
    }
    let missing = promise.settle();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    // What was taken of the others is delivered too, and then nothing is left.
    assert!(promise.instance.stop().success());
    promise.instance.start();
    promise.settle();
    promise.report("our 250 lost", MESSAGES);
    let copies = |serial: u64| promise.sink.arrivals.copies(serial);
    assert!((0..MESSAGES).all(|serial| copies(serial) <= 1 + usize::from(serial % 2 == 1)), "a copy too many");
    assert_eq!(promise.sink.arrivals.invented(&promise.load), Vec::<u64>::new(), "half a message was taken");
    promise.instance.kill();
    promise.verify();
}
