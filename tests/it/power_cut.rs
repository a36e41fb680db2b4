//! The promise of 250 when the power goes: the data lies on a disk that forgets what was not synced.
//! Every acknowledgement a client read is judged, also one that it read after the cut.
//!
//! The negative control runs the same cut without syncs and must lose mail; if it does not, the
//! rounds prove nothing on this machine and the suite fails.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::disk::Disk;
use crate::harness::load::SinkMood;
use crate::harness::moments::pause;
use crate::harness::not_run;
use crate::harness::promise::{HTTP_SENDERS, Promise, is_quick, rounds, row};

/// About 85 s; a round is mostly mounting, checking and starting, and every fourth one lasts long enough for a
/// checkpoint.
const ROUNDS: u64 = 16;
/// The disk; a segment has 64 MiB, and two are kept in reserve.
const DISK_MIB: u64 = 2048;
/// Failed syncs, each with a cut after it.
const FAILED_SYNCS: u64 = 2;
/// How long the daemon may take to end after the disk began to refuse.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Installations the negative control loses, at most, until one has lost mail.
const CONTROLS: u64 = 3;
/// A machine without power runs no daemon; here it may go on for none, one or two of these.
const AFTERLIFE: Duration = Duration::from_millis(100);

/// A disk that can really lose power, or a line that says why not.
fn disk(name: &str, folder: &Path) -> Option<Disk> {
    if is_quick() {
        not_run(name, "left out of the quick run");
        return None;
    }
    Disk::make_volatile(folder, DISK_MIB).map_err(|why| not_run(name, &why)).ok()
}

#[test]
fn the_disk_keeps_what_was_synced_forgets_the_rest_and_lets_no_sync_succeed_after_the_cut() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = disk("power-cut disk", folder.path()) else { return };
    let file = |name: &str| fs::File::create(disk.mount.join(name)).unwrap();
    let (mut synced, mut forgotten) = (file("synced"), file("forgotten"));
    synced.write_all(&[1; 100_000]).unwrap();
    synced.sync_all().unwrap();
    fs::File::open(&disk.mount).unwrap().sync_all().unwrap();
    forgotten.write_all(&[2; 100_000]).unwrap();
    disk.cut_power();
    // The page cache may take a write; no sync may say that it arrived.
    let _ = synced.write_all(&[3; 100_000]);
    assert!(synced.sync_data().is_err() && synced.sync_data().is_err() && forgotten.sync_all().is_err());
    drop((synced, forgotten));
    disk.restore_power();
    assert_eq!(fs::read(disk.mount.join("synced")).unwrap(), [1; 100_000]);
    let left = fs::read(disk.mount.join("forgotten")).unwrap_or_default();
    assert!(!left.contains(&2), "what was never synced survived: this disk proves nothing");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = disk("power-cut rounds", folder.path()) else { return };
    let (data, mood) = (disk.mount.join("data"), SinkMood::DefersEvery(10));
    let mut promise = Promise::make_with(folder.path(), &data, mood, HTTP_SENDERS);
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        // In every second round nothing is delivered, so that the queue itself must survive.
        promise.sink.set_mood(if round % 2 == 0 { SinkMood::DefersEvery(10) } else { SinkMood::Shut });
        let senders = promise.senders();
        promise.work_until(round);
        disk.cut_power();
        // The daemon lives on for a while: a 250 that it says now is judged like any other.
        thread::sleep(AFTERLIFE * u32::try_from(round % 3).unwrap());
        promise.instance.kill();
        senders.stop();
        promise.note_recorded();
        disk.restore_power();
        promise.verify();
        promise.start_for(round + 1);
    }
    judge(&mut promise, "power cut", rounds);
    promise.rounds_met_everything(rounds);
    let (by_http, repeated) = promise.ledger.by_http();
    println!("power cut: {by_http} acknowledged by HTTP, {repeated} of them to a repeat with the same key");
    assert!(by_http > rounds && repeated > 0, "senders by HTTP did work: {by_http}, repeated {repeated}");
}

/// Everything acknowledged arrives, the same bytes each time, and again only what was in flight.
fn judge(promise: &mut Promise, name: &str, rounds: u64) {
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    promise.report(name, rounds);
    assert!(promise.ledger.len() as u64 > rounds, "senders did work: {} acknowledged", promise.ledger.len());
    assert!(promise.recorded() as u64 > rounds, "deliveries were recorded: {}", promise.recorded());
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    assert!(promise.sink.arrivals.differing().is_empty(), "a second copy has other bytes");
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.extra_copies_were_in_flight();
    promise.instance.kill();
}

/// The disk refuses writes for a moment, so that a sync fails and the next one would succeed although its
/// data are gone; the kernel goes on to show them. The daemon must end by itself. In every second round it
/// is started again at once, as by a supervisor, and goes on upon what the kernel shows; then the power goes.
#[test]
fn nothing_acknowledged_is_lost_when_a_sync_fails_and_the_power_is_cut_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = disk("failed sync and power cut", folder.path()) else { return };
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::DefersEvery(10));
    let rounds = rounds(FAILED_SYNCS);
    let mut went_on = 0;
    for round in 0..rounds {
        promise.sink.set_mood(if round % 3 == 2 { SinkMood::Shut } else { SinkMood::DefersEvery(10) });
        let senders = promise.senders();
        thread::sleep(pause(round) + Duration::from_millis(800));
        disk.refuse_writes(true);
        let status = promise.wait_for_end(END_PATIENCE);
        disk.refuse_writes(false);
        assert_eq!(status.code(), Some(74), "round {round}: {}", promise.instance.log_tail());
        promise.note_recorded();
        // The file system may have had enough too, and then nothing can start on it.
        if round % 2 == 0 && promise.instance.try_start().is_ok() {
            went_on += 1;
            thread::sleep(pause(round) + Duration::from_millis(500));
        }
        disk.cut_power();
        if promise.instance.is_running() {
            promise.instance.kill();
            promise.note_recorded();
        }
        senders.stop();
        disk.restore_power();
        promise.verify();
        promise.instance.start();
        promise.instance.wait_for_door();
    }
    println!("{went_on} times it went on before the cut");
    let log = fs::read_to_string(promise.instance.log()).unwrap();
    assert!(log.contains("a sync failed"), "{}", promise.instance.log_tail());
    judge(&mut promise, "failed sync, then a power cut", rounds);
}

#[test]
fn without_syncs_the_same_cut_loses_mail() {
    loses_mail("power-cut negative control", &["eatmydata"], |_| ());
}

/// The same with nothing removed but what the committer rests on: the kernel is told to answer
/// `fdatasync` with success and to do nothing.
#[test]
fn without_the_journals_sync_the_same_cut_loses_mail() {
    let strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync"];
    loses_mail(
        "power-cut control of the journal's sync",
        &[&strace[..], &["-e", "inject=fdatasync:retval=0"]].concat(),
        |_| (),
    );
}

/// Every sync is made, and one that fails is believed: a library before libc's says that it succeeded.
#[test]
fn a_failed_sync_that_is_believed_loses_mail_when_the_power_is_cut_after_it() {
    let name = "control of the failed sync";
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("believe.c"), folder.path().join("believe.so"));
    fs::write(&source, BELIEVES).unwrap();
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    if !built.is_ok_and(|status| status.success()) {
        return not_run(name, "gcc does not work here");
    }
    let preload = format!("LD_PRELOAD={}", library.display());
    loses_mail(name, &["env", &preload], |disk| {
        disk.refuse_writes(true);
        thread::sleep(Duration::from_millis(400));
        disk.refuse_writes(false);
        thread::sleep(Duration::from_millis(200));
    });
}

/// Makes the call and forgets what came of it.
const BELIEVES: &str = "#include <unistd.h>\n#include <sys/syscall.h>\n\
    int fdatasync(int fd) { syscall(SYS_fdatasync, fd); return 0; }\n\
    int fsync(int fd) { syscall(SYS_fsync, fd); return 0; }\n";

/// Runs the daemon below `wrapper`, which takes syncs away, and cuts the power after `fault` until mail is lost.
fn loses_mail(name: &str, wrapper: &[&str], fault: impl Fn(&Disk)) {
    let probe = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status();
    if !probe.is_ok_and(|status| status.success()) {
        return not_run(name, &format!("{} does not work here", wrapper[0]));
    }
    for round in 0..CONTROLS {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut disk) = disk(name, folder.path()) else { return };
        let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::Shut);
        assert!(promise.instance.stop().success());
        disk.sync();
        promise.instance.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        promise.instance.start();
        promise.instance.wait_for_door();
        let senders = promise.senders();
        thread::sleep(pause(round) + Duration::from_millis(500));
        fault(&disk);
        disk.cut_power();
        promise.instance.kill();
        senders.stop();
        disk.restore_power();
        promise.instance.wrapper.clear();
        let acknowledged = promise.ledger.len();
        assert!(acknowledged > 0, "{}", promise.instance.log_tail());
        if let Some(evidence) = promise.evidence_of_loss() {
            println!("{name}: {acknowledged} acknowledged, lost: {evidence}");
            row(&[format!("CONTROL, must lose: {name}"), "1".into(), acknowledged.to_string(), evidence]);
            return;
        }
    }
    panic!("nothing was lost without syncs: the power-cut rounds prove nothing here");
}
