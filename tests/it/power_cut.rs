//! The promise of 250 when the power goes: the data lies on a disk that forgets what was not synced.
//!
//! The negative control runs the same cut without syncs and must lose mail; if it does not, the
//! rounds prove nothing on this machine and the suite fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::disk::Disk;
use crate::harness::load::SinkMood;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_quick, pause, rounds};

const ROUNDS: u64 = 20;
/// The disk; a segment has 64 MiB, and two are kept in reserve.
const DISK_MIB: u64 = 1024;
/// Installations the negative control loses, at most, until one has lost mail.
const CONTROLS: u64 = 3;

/// A disk that can really lose power, or a line that says why not.
fn disk(name: &str, folder: &Path) -> Option<Disk> {
    if is_quick() {
        not_run(name, "left out of the quick run");
        return None;
    }
    let made = Disk::make(folder, DISK_MIB);
    let cut = made.and_then(|disk| disk.cut_power().map(|_| disk));
    match cut {
        Ok(mut disk) => {
            disk.restore_power();
            Some(disk)
        }
        Err(why) => {
            not_run(name, &why);
            None
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = disk("power-cut rounds", folder.path()) else { return };
    let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::DefersEvery(10));
    let rounds = rounds(ROUNDS);
    let mut after_the_cut = BTreeSet::new();
    for round in 0..rounds {
        // In every second round nothing is delivered, so that the queue itself must survive.
        promise.sink.set_mood(if round % 2 == 0 { SinkMood::DefersEvery(10) } else { SinkMood::Shut });
        let senders = promise.senders();
        thread::sleep(pause(round));
        let logged = promise.log_bytes();
        let cut = disk.cut_power().unwrap();
        promise.instance.kill();
        senders.stop();
        // What was acknowledged or logged once the cut was being made may rest on a sync that was none.
        after_the_cut.append(&mut promise.ledger.take_after(cut));
        promise.note_recorded_before(logged);
        disk.restore_power();
        promise.verify();
        promise.instance.start();
        promise.instance.wait_for_door();
    }
    promise.sink.set_mood(SinkMood::Takes);
    let missing = promise.settle();
    promise.report("power cut", rounds);
    println!(
        "acknowledged while the cut was made: {}, of which never arrived: {:?}",
        after_the_cut.len(),
        after_the_cut.difference(&promise.sink.arrivals.serials()).collect::<Vec<_>>()
    );
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
    let name = "power-cut negative control";
    let probe = std::process::Command::new("eatmydata").arg("true").status();
    if !probe.is_ok_and(|status| status.success()) {
        return not_run(name, "eatmydata is not installed");
    }
    for round in 0..CONTROLS {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut disk) = disk(name, folder.path()) else { return };
        let mut promise = Promise::make(folder.path(), &disk.mount.join("data"), SinkMood::Shut);
        assert!(promise.instance.stop().success());
        disk.sync();
        promise.instance.wrapper = vec!["eatmydata".to_owned()];
        promise.instance.start();
        promise.instance.wait_for_door();
        let senders = promise.senders();
        thread::sleep(pause(round) + Duration::from_millis(500));
        disk.cut_power().unwrap();
        promise.instance.kill();
        senders.stop();
        disk.restore_power();
        promise.instance.wrapper.clear();
        let acknowledged = promise.ledger.len();
        assert!(acknowledged > 0, "{}", promise.instance.log_tail());
        if promise.instance.try_start().is_err() {
            println!("power cut without syncs: the store does not even open again");
            return;
        }
        // Nothing was delivered, so each acknowledged message must have its body in the store.
        assert!(promise.instance.stop().success());
        let report = promise.store_report().unwrap();
        println!("power cut without syncs: {acknowledged} acknowledged, {} in the store", report.bodies);
        if (report.bodies as usize) < acknowledged || !report.damaged.is_empty() {
            return;
        }
    }
    panic!("nothing was lost without syncs: the power-cut rounds prove nothing here");
}
