//! The copy of the records: whatever becomes of the record engine's files, the next opening has
//! everything that was acknowledged; whatever becomes of the copy, the records go on and it is made anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::conformance::{key, read};
use super::tests::{Place, copy, eventually, writable};
use super::{Batch, Key, Opened, Settings, open, prefix, salvage_records, verify};
use crate::mail::BodyId;

/// Bodies with their bytes.
type Bodies = Vec<(BodyId, Vec<u8>)>;

/// A store with a bit of everything, closed; what its records and bodies are.
fn filled(place: &Place) -> (BTreeMap<Key, Vec<u8>>, Bodies) {
    let opened = place.open();
    let mut bodies = Vec::new();
    for number in 0..40 {
        let put = place.put(&opened, &format!("T{number:02}"), 1_500 * (number % 7));
        match number % 3 {
            0 => place.free(&opened, put.0),
            _ => bodies.push(put),
        }
        let mut batch = Batch::new();
        batch.append(vec![prefix::EVENT], format!("event {number}").into_bytes());
        batch.chain(key("a"), format!("audit {number}").into_bytes());
        if number > 0 {
            batch.remove(key(&format!("T{:02}", number / 2)));
        }
        place.commit(&opened, batch).unwrap();
    }
    eventually("a copy is there", || !files(&place.settings.folder.join("copy")).is_empty());
    (records(&opened), bodies)
}

fn records(opened: &Opened) -> BTreeMap<Key, Vec<u8>> {
    opened.records.range(&[1], &[255; 8], usize::MAX).unwrap().into_iter().collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn assert_all_there(
    settings: &Settings,
    (wanted, bodies): &(BTreeMap<Key, Vec<u8>>, Bodies),
    what: &str,
) -> Vec<String> {
    let opened = open(settings.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(records(&opened) == *wanted, "{what}: the records differ");
    for (id, whole) in bodies {
        assert_eq!(read(&*opened.bodies, *id).unwrap().as_ref(), Some(whole), "{what}");
    }
    opened.engine.damage()
}

#[test]
fn whatever_file_of_the_records_is_damaged_cut_off_or_gone_nothing_is_lost() {
    let place = Place::new();
    let all = filled(&place);
    let report = verify(&place.settings.folder).unwrap();
    assert_eq!(report.damaged, Vec::<String>::new());
    assert!(report.copied.is_some_and(|copied| copied > 40), "{report:?}");
    let record_files = files(&place.settings.folder.join("records"));
    assert!(record_files.len() > 3);
    let mut rebuilt = 0;
    for (number, path) in record_files.iter().enumerate() {
        // Every harm to the files that say where everything is, and each in its turn to the many others.
        let is_metadata = path.to_string_lossy().contains("metadata");
        let harms = ["flip", "cut", "gone"];
        let is_empty = fs::read(path).unwrap().iter().all(|byte| *byte == 0);
        let chosen = harms.iter().enumerate().filter(|(turn, _)| is_metadata || (number % 3 == *turn && !is_empty));
        for (_, harm) in chosen {
            let settings = place.crash_copy("harmed");
            let file = settings.folder.join(path.strip_prefix(&place.settings.folder).unwrap());
            let length = file.metadata().unwrap().len();
            match *harm {
                "flip" if length > 0 => {
                    let at = (number as u64 * 37) % length;
                    let mut byte = [0];
                    writable(&file).read_exact_at(&mut byte, at).unwrap();
                    writable(&file).write_all_at(&[byte[0] ^ 0x20], at).unwrap();
                }
                "cut" => writable(&file).set_len(length / 2).unwrap(),
                "gone" => fs::remove_file(&file).unwrap(),
                _ => {}
            }
            let what = format!("{harm} {}", file.display());
            let damage = settle(&settings, &all, &what);
            rebuilt += usize::from(damage.iter().any(|text| text.contains("made anew")));
            assert_eq!(verify(&settings.folder).unwrap().damaged, Vec::<String>::new(), "{what}");
            fs::remove_dir_all(&settings.folder).unwrap();
        }
    }
    assert!(rebuilt > 3, "{rebuilt} of them mattered");
    let settings = place.crash_copy("harmed");
    fs::remove_dir_all(settings.folder.join("records")).unwrap();
    let damage = settle(&settings, &all, "no records at all");
    assert!(damage[0].contains("made anew"), "{damage:?}");
}

/// Damage may show itself only when a record is read: then the store breaks, and the opening after that mends it.
fn settle(settings: &Settings, all: &(BTreeMap<Key, Vec<u8>>, Bodies), what: &str) -> Vec<String> {
    if let Ok(opened) = open(settings.clone()) {
        let read = opened.records.range(&[0], &[255; 8], usize::MAX);
        let is_whole = read.is_ok_and(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>() == all.0);
        let damage = opened.engine.damage();
        drop(opened);
        if is_whole {
            assert_all_there(settings, all, what);
            return damage;
        }
    }
    assert_all_there(settings, all, what)
}

#[test]
fn a_damaged_or_missing_copy_is_made_anew_beside_the_work() {
    let place = Place::new();
    let all = filled(&place);
    let name = files(&place.settings.folder.join("copy")).pop().unwrap();
    let length = name.metadata().unwrap().len();
    for at in [3, 20, 64, 100, length / 2, length - 30] {
        let settings = place.crash_copy("harmed");
        let file = settings.folder.join(name.strip_prefix(&place.settings.folder).unwrap());
        writable(&file).write_all_at(b"\xff\x00\xff", at).unwrap();
        assert_all_there(&settings, &all, &format!("damage at {at}"));
        let report = verify(&settings.folder).unwrap();
        assert_eq!(report.damaged, Vec::<String>::new(), "damage at {at}");
        assert!(report.copied.is_some(), "damage at {at}: no copy was made");
        // It is good for something again.
        fs::remove_dir_all(settings.folder.join("records")).unwrap();
        assert_all_there(&settings, &all, "after the copy was made anew");
        fs::remove_dir_all(&settings.folder).unwrap();
    }
}

#[test]
fn a_crash_at_any_moment_leaves_a_copy_that_agrees() {
    let place = Place::new();
    let opened = place.open();
    let mut agreed = 0;
    for round in 0..12 {
        for number in 0..20 {
            let (id, _) = place.put(&opened, &format!("T{}", (round * 7 + number) % 31), 700);
            if number % 2 == 0 {
                place.free(&opened, id);
            }
        }
        // Neither a checkpoint nor housekeeping is under way, so the copy is of one moment.
        let crashed = opened.engine.at_rest(|| place.crash_copy(&format!("round{round}")));
        let report = verify(&crashed.folder).unwrap();
        assert_eq!(report.damaged, Vec::<String>::new(), "round {round}");
        agreed += usize::from(report.copied.is_some());
        let wanted = records(&open(crashed.clone()).unwrap());
        let without = place.folder.path().join("without records");
        copy(&crashed.folder, &without);
        fs::remove_dir_all(without.join("records")).unwrap();
        let rebuilt = open(Settings { folder: without.clone(), ..crashed }).unwrap();
        assert!(records(&rebuilt) == wanted, "round {round}");
        drop(rebuilt);
        fs::remove_dir_all(without).unwrap();
    }
    assert!(agreed > 2, "{agreed} of 12 were compared");
}

#[test]
fn what_people_manage_is_salvaged_from_copy_and_journal_without_the_records() {
    let place = Place::new();
    let (wanted, _) = filled(&place);
    place.faults.checkpoints_skipped.store(true, Ordering::Release);
    let opened = place.open();
    let mut late = Batch::new();
    late.set(key("Tlate"), key("only in the journal"));
    place.commit(&opened, late).unwrap();
    let crashed = place.crash_copy("crashed");
    fs::remove_dir_all(crashed.folder.join("records")).unwrap();
    let found = salvage_records(&crashed.folder, |key| key.starts_with(b"T")).unwrap();
    assert_eq!(found.lacking, Vec::<String>::new());
    let mut tenants: BTreeMap<_, _> = wanted.into_iter().filter(|(key, _)| key.starts_with(b"T")).collect();
    tenants.insert(key("Tlate"), key("only in the journal"));
    assert_eq!(found.records, tenants);
    assert!(!crashed.folder.join("records").exists(), "nothing was changed");
    fs::remove_dir_all(crashed.folder.join("copy")).unwrap();
    let found = salvage_records(&crashed.folder, |key| key.starts_with(b"T")).unwrap();
    assert!(found.lacking[0].contains("no copy"), "{:?}", found.lacking);
    assert!(found.records.contains_key(&key("Tlate")), "what the journal has is given all the same");
}

#[test]
fn a_rebuild_cut_off_between_its_last_steps_is_finished_by_the_next_opening() {
    let place = Place::new();
    let all = filled(&place);
    let folder = &place.settings.folder;
    fs::rename(folder.join("records"), folder.join("records.new")).unwrap();
    assert_eq!(assert_all_there(&place.settings, &all, "cut off"), Vec::<String>::new());
    // And half of one is thrown away.
    fs::create_dir(folder.join("records.partial")).unwrap();
    fs::write(folder.join("records.partial/rubbish"), b"x").unwrap();
    fs::remove_dir_all(folder.join("records")).unwrap();
    fs::write(folder.join("records-are-damaged"), b"a test says so").unwrap();
    fs::create_dir(folder.join("records")).unwrap();
    let damage = assert_all_there(&place.settings, &all, "half a rebuild");
    assert!(damage[0].contains("a test says so"), "{damage:?}");
    for gone in ["records-are-damaged", "records.new", "records.partial"] {
        assert!(!folder.join(gone).exists(), "{gone} is left over");
    }
    assert_eq!(assert_all_there(&place.settings, &all, "afterwards"), Vec::<String>::new());
    // A note without a copy to mend from is no reason to stay away.
    fs::write(folder.join("records-are-damaged"), b"a test says so").unwrap();
    fs::remove_dir_all(folder.join("copy")).unwrap();
    assert_eq!(assert_all_there(&place.settings, &all, "no copy"), Vec::<String>::new());
}
