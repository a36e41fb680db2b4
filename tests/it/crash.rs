//! The promise of 250 when the process dies: the daemon is killed while senders work; afterwards every
//! acknowledged message is at the sink, and none whose delivery was recorded is there twice.
//!
//! `POSTERN_CRASH_ROUNDS` sets the number of rounds, `POSTERN_CRASH_SEED` their moments; a short run is part of
//! every test run.

use std::fs;
use std::thread;
use std::time::Duration;

use postern::cli::exit;

use crate::harness::load::{SinkMood, TlsSession};
use crate::harness::moments::pause;
use crate::harness::not_run;
use crate::harness::promise::{HTTP_SENDERS, Promise, is_quick, rounds};

/// About 40 s: every fourth one lasts long enough for a checkpoint.
const ROUNDS: u64 = 16;

#[test]
fn nothing_acknowledged_is_lost_when_the_daemon_is_killed_again_and_again() {
    if is_quick() {
        return not_run("kill rounds", "left out of the quick run");
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut promise = Promise::make_with(folder.path(), &data, SinkMood::DefersEvery(10), HTTP_SENDERS);
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        let senders = promise.senders();
        promise.work_until(round);
        promise.instance.kill();
        senders.stop();
        promise.note_recorded();
        promise.verify();
        if round % 4 == 3 {
            // Starting is a time to die, too.
            promise.instance.spawn();
            thread::sleep(pause(round) / 4);
            promise.instance.kill();
            promise.note_recorded();
        }
        promise.start_for(round + 1);
    }
    let missing = promise.settle();
    promise.report("kill", rounds);
    promise.rounds_met_everything(rounds);
    assert!(promise.ledger.len() as u64 > rounds, "senders did work: {} acknowledged", promise.ledger.len());
    let (by_http, repeated) = promise.ledger.by_http();
    println!("kill: {by_http} acknowledged by HTTP, {repeated} of them to a repeat with the same key");
    assert!(by_http > rounds && repeated > 0, "senders by HTTP did work: {by_http}, repeated {repeated}");
    assert!(promise.recorded() as u64 > rounds, "deliveries were recorded: {}", promise.recorded());
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    assert!(promise.sink.arrivals.differing().is_empty(), "a second copy has other bytes");
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.extra_copies_were_in_flight();
}

#[test]
fn a_daemon_killed_in_the_midst_of_a_backup_loses_nothing_and_the_next_backup_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::DefersEvery(3));
    promise.instance.tool(&["backup", "key"]);
    let (rounds, mut cut) = (rounds(4), 0);
    for round in 0..rounds {
        let senders = promise.senders();
        thread::sleep(pause(round) + Duration::from_millis(300));
        let file = folder.path().join(format!("copy-{round}"));
        let name = file.to_string_lossy().into_owned();
        let status = thread::scope(|scope| {
            let instance = &promise.instance;
            let made = scope.spawn(|| instance.try_tool(&["backup", "make", &name]).status);
            thread::sleep(Duration::from_millis(10 + 15 * round));
            let pid = rustix::process::Pid::from_raw(instance.pid().cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            made.join().unwrap()
        });
        promise.instance.kill();
        senders.stop();
        promise.note_recorded();
        promise.verify();
        assert_eq!(status.success(), file.exists(), "round {round}: a file under its name is whole");
        cut += u64::from(!status.success());
        promise.instance.start();
        promise.instance.wait_for_door();
        if !file.exists() {
            promise.instance.tool(&["backup", "make", &name]);
        }
        promise.instance.tool(&["backup", "verify", &name]);
    }
    let missing = promise.settle();
    promise.report("kill in a backup", rounds);
    assert!(cut > 0, "no backup was cut off");
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
}

#[test]
fn an_orderly_stop_loses_nothing_and_sends_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    let rounds = rounds(3);
    for round in 0..rounds {
        let senders = promise.senders();
        thread::sleep(pause(round) + Duration::from_millis(300));
        assert!(promise.instance.stop().success(), "{}", promise.instance.log_tail());
        senders.stop();
        promise.verify();
        promise.instance.start();
        promise.instance.wait_for_door();
    }
    let missing = promise.settle();
    promise.report("orderly stop", rounds);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert!(promise.ledger.len() as u64 > rounds);
    assert_eq!(promise.sink.arrivals.extra(), 0, "an orderly stop sends nothing twice");
}

#[test]
fn what_a_failed_sync_covered_is_not_acknowledged_and_a_restart_owes_the_rest() {
    let traced = std::process::Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    if !traced.is_ok_and(|status| status.success()) {
        return not_run("failed sync", "strace cannot trace here");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Shut);
    assert!(promise.instance.stop().success());
    let strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync"];
    promise.instance.wrapper = strace.map(str::to_owned).to_vec();
    promise.instance.wrapper.extend(["-e", "inject=fdatasync:error=EIO:when=40"].map(str::to_owned));
    promise.instance.start();
    promise.instance.wait_for_door();
    let senders = promise.senders();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = promise.instance.ended() {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "the daemon goes on after a failed sync");
        thread::sleep(Duration::from_millis(50));
    };
    senders.stop();
    assert_eq!(status.code(), Some(74), "{}", promise.instance.log_tail());
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(log.contains("a sync failed"), "{}", promise.instance.log_tail());
    promise.instance.wrapper.clear();
    promise.verify();
    promise.sink.set_mood(SinkMood::Takes);
    promise.instance.start();
    let missing = promise.settle();
    promise.report("failed sync", 1);
    assert!(promise.ledger.len() > 3, "some were acknowledged before");
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
}

#[test]
fn mail_is_salvaged_from_the_segments_when_the_records_and_their_copy_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    let vips = promise.instance.tool(&["vip", "list", "--json"]);
    let vips: serde_json::Value = serde_json::from_str(&vips).unwrap();
    let vip = vips["rows"][0]["id"].as_str().unwrap_or_else(|| panic!("no id in {vips}")).to_owned();
    // Some are delivered, the others are owed.
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(1));
    promise.sink.set_mood(SinkMood::Shut);
    thread::sleep(Duration::from_secs(1));
    promise.instance.kill();
    senders.stop();
    promise.note_recorded();
    let owed = promise.missing().len();
    assert!(promise.recorded() > 0 && owed > 0, "{} recorded, {owed} owed", promise.recorded());

    let store = promise.instance.data.join("store");
    fs::remove_dir_all(store.join("records")).unwrap();
    fs::remove_dir_all(store.join("copy")).unwrap();
    let saved = folder.path().join("saved");
    // It says that records are missing, and ends so.
    let told = promise.instance.try_tool(&["store", "salvage", "--into", &saved.to_string_lossy()]);
    assert_eq!(told.status.code(), Some(i32::from(exit::FAILED)), "not everything could be saved");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("there is no copy of the records"), "{told}");
    promise.instance.use_data(&saved);
    promise.sink.set_mood(SinkMood::Takes);
    promise.instance.start();
    // A young journal still has the virtual IP; an older one may not.
    promise.instance.try_tool(&["vip", "add", "127.0.0.1", "--ehlo", "mx.shop.test", "--shared", "--id", &vip]);
    let missing = promise.settle();
    promise.report("salvage", 1);
    assert!(missing.is_empty(), "acknowledged and not salvaged: {missing:?}\n{told}\n{}", promise.instance.log_tail());
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "salvaged after its delivery was recorded: {again:?}");
}

#[test]
fn without_its_record_files_the_daemon_starts_with_everything_and_so_does_a_salvaged_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut promise = Promise::make(folder.path(), &folder.path().join("data"), SinkMood::Takes);
    let senders = promise.senders();
    thread::sleep(Duration::from_secs(1));
    promise.sink.set_mood(SinkMood::Shut);
    thread::sleep(Duration::from_secs(1));
    promise.instance.kill();
    senders.stop();
    promise.note_recorded();
    assert!(promise.recorded() > 0 && !promise.missing().is_empty());
    let data = promise.instance.data.clone();
    fs::remove_dir_all(data.join("store").join("records")).unwrap();

    // Salvaged: tenants, logins, domains and virtual IPs are there, and all mail is held.
    let saved = folder.path().join("saved");
    let told = promise.instance.tool(&["store", "salvage", "--into", &saved.to_string_lossy(), "--held"]);
    promise.instance.use_data(&saved);
    promise.instance.start();
    promise.instance.wait_for_door();
    for (list, wanted) in [(["tenant", "list"].as_slice(), "shop"), (&["vip", "list"], "mx.shop.test")] {
        let shown = promise.instance.tool(list);
        assert!(shown.contains(wanted), "{list:?}: {shown}\n{told}");
    }
    assert!(promise.instance.tool(&["domain", "list", "shop"]).contains("shop.test"));
    let mut session = TlsSession::open(promise.instance.door).unwrap();
    session.login(&promise.load.login, &promise.load.password).unwrap();
    promise.instance.kill();
    assert_eq!(promise.store_report().unwrap().damaged, Vec::<String>::new());

    // Not salvaged but started: the records are made anew, and the queue goes on where it was.
    promise.instance.use_data(&data);
    promise.sink.set_mood(SinkMood::Takes);
    promise.instance.start();
    let missing = promise.settle();
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(log.contains("made anew"), "{}", promise.instance.log_tail());
    promise.report("records destroyed, made anew", 1);
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.nothing_is_sent_again_by_a_restart();
    let aside =
        fs::read_dir(data.join("store")).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    assert!(!aside.into_iter().any(|name| name == "records-are-damaged"));
}
