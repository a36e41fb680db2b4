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
use crate::harness::not_run;
use crate::harness::promise::{IN_FLIGHT_MAX, Promise, is_quick, pause, rounds, row};

/// About 75 s; a round is mostly mounting, checking and starting.
const ROUNDS: u64 = 20;
/// The disk; a segment has 64 MiB, and two are kept in reserve.
const DISK_MIB: u64 = 2048;
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
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::DefersEvery(10));
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        // In every second round nothing is delivered, so that the queue itself must survive.
        promise.sink.set_mood(if round % 2 == 0 { SinkMood::DefersEvery(10) } else { SinkMood::Shut });
        let extra = promise.sink.arrivals.extra();
        let senders = promise.senders();
        thread::sleep(pause(round));
        disk.cut_power();
        // The daemon lives on for a while: a 250 that it says now is judged like any other.
        thread::sleep(AFTERLIFE * u32::try_from(round % 3).unwrap());
        promise.instance.kill();
        senders.stop();
        promise.note_recorded();
        disk.restore_power();
        promise.verify();
        promise.instance.start();
        promise.instance.wait_for_door();
        let extra = promise.sink.arrivals.extra() - extra;
        assert!(extra <= 2 * IN_FLIGHT_MAX, "{extra} extra copies in round {round}");
    }
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    promise.report("power cut", rounds);
    assert!(promise.ledger.len() as u64 > rounds, "senders did work: {} acknowledged", promise.ledger.len());
    assert!(promise.recorded() as u64 > rounds, "deliveries were recorded: {}", promise.recorded());
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}\n{}", promise.instance.log_tail());
    assert!(promise.sink.arrivals.differing().is_empty(), "a second copy has other bytes");
    promise.nothing_is_sent_again_by_a_restart();
    let again = promise.again_after_recording();
    assert!(again.is_empty(), "delivered again after its delivery was recorded: {again:?}");
    promise.instance.kill();
}

#[test]
fn without_syncs_the_same_cut_loses_mail() {
    loses_mail("power-cut negative control", &["eatmydata"]);
}

/// The same with nothing removed but what the committer rests on: the kernel is told to answer
/// `fdatasync` with success and to do nothing.
#[test]
fn without_the_journals_sync_the_same_cut_loses_mail() {
    let strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync"];
    loses_mail(
        "power-cut control of the journal's sync",
        &[&strace[..], &["-e", "inject=fdatasync:retval=0"]].concat(),
    );
}

/// Runs the daemon below `wrapper`, which takes syncs away, and cuts the power until mail is lost.
fn loses_mail(name: &str, wrapper: &[&str]) {
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
        disk.cut_power();
        promise.instance.kill();
        senders.stop();
        disk.restore_power();
        promise.instance.wrapper.clear();
        let acknowledged = promise.ledger.len();
        assert!(acknowledged > 0, "{}", promise.instance.log_tail());
        if promise.instance.try_start().is_err() {
            println!("{name}: the store does not even open again");
            row(&[format!("CONTROL, must lose: {name}"), "1".into(), acknowledged.to_string(), "all".into()]);
            return;
        }
        // Nothing was delivered, so each acknowledged message must have its body in the store.
        assert!(promise.instance.stop().success());
        let report = promise.store_report().unwrap();
        println!("{name}: {acknowledged} acknowledged, {} in the store", report.bodies);
        let lost = acknowledged.saturating_sub(usize::try_from(report.bodies).unwrap());
        row(&[format!("CONTROL, must lose: {name}"), "1".into(), acknowledged.to_string(), lost.to_string()]);
        if (report.bodies as usize) < acknowledged || !report.damaged.is_empty() {
            return;
        }
    }
    panic!("nothing was lost without syncs: the power-cut rounds prove nothing here");
}
