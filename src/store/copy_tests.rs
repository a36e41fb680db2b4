//! The copy of the records: whatever becomes of the record engine's files, the next opening has
//! everything that was acknowledged; whatever becomes of the copy, the records go on and it is made anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::conformance::{key, read};
use super::copy::{CopyFile, FOLDER, RecordsCopy, copied_ranges, is_copied, is_fact};
use super::layers::Layers;
use super::record::{Before, Operation, POSITION_KEY, Position};
use super::replay::checkpoint;
use super::segment::{SegmentHeader, Use};
use super::sled::Records;
use super::space::Space;
use super::tests::{Place, copy, eventually, writable};
use super::{Batch, Key, OpenError, Opened, Settings, open, prefix, salvage_records, verify};
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

/// Something more in each of so many checkpoints, in one opening; what there is then.
fn with_checkpoints(place: &Place, count: u64) -> (BTreeMap<Key, Vec<u8>>, Bodies) {
    let opened = place.open();
    for number in 0..count {
        place.put(&opened, &format!("Tmore{number:02}"), 2_000);
        let shared = opened.engine.shared();
        let applied = shared.applied.load(Ordering::Acquire);
        eventually("a checkpoint", || shared.checkpointed.load(Ordering::Acquire) >= applied);
    }
    let named = opened.engine.named_bodies().into_iter();
    let bodies = named.map(|id| (id, read(&*opened.bodies, id).unwrap().unwrap())).collect();
    (records(&opened), bodies)
}

fn records(opened: &Opened) -> BTreeMap<Key, Vec<u8>> {
    opened.records.range(&[1], &[255; 8], usize::MAX).unwrap().into_iter().collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // The folder of the copies is made with the first of them.
    for entry in fs::read_dir(folder).into_iter().flatten() {
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

/// The log of the metadata that has most in it, and its length.
fn longest_log(place: &Place) -> (PathBuf, u64) {
    let metadata = files(&place.settings.folder.join("records/metadata")).into_iter();
    let logs = metadata.filter(|path| path.to_string_lossy().contains("log_"));
    logs.map(|path| (path.clone(), path.metadata().unwrap().len())).max_by_key(|(_, length)| *length).unwrap()
}

/// The engine reads its metadata as far as they are whole, and what they point at may have been written to
/// again: only what was noted elsewhere tells.
#[test]
fn metadata_cut_off_or_changed_anywhere_are_found_out_before_they_are_opened() {
    let place = Place::new();
    filled(&place);
    let all = with_checkpoints(&place, 12);
    let (log, length) = longest_log(&place);
    assert!(length > 400, "{length}");
    let mut found = 0;
    for part in 0..10 {
        let at = length * part / 10;
        for is_cut in [true, false] {
            let settings = place.crash_copy("harmed");
            let file = writable(&settings.folder.join(log.strip_prefix(&place.settings.folder).unwrap()));
            match is_cut {
                true => file.set_len(at).unwrap(),
                false => {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                }
            }
            let damage = assert_all_there(&settings, &all, &format!("cut {is_cut} at {at}"));
            found += usize::from(damage.iter().any(|what| what.contains("of the metadata")));
            fs::remove_dir_all(&settings.folder).unwrap();
        }
    }
    // What the last flush of all added was noted nowhere; without it the records are those of the one before.
    assert!(found >= 14, "{found} of 20");
}

#[test]
fn verify_does_not_take_away_what_tells_that_metadata_were_cut_off() {
    let place = Place::new();
    filled(&place);
    let all = with_checkpoints(&place, 12);
    let (log, length) = longest_log(&place);
    writable(&log).set_len(length / 2).unwrap();
    for _ in 0..2 {
        let damaged = verify(&place.settings.folder).unwrap().damaged;
        assert!(damaged.iter().any(|what| what.contains("of the metadata")), "{damaged:?}");
    }
    let damage = assert_all_there(&place.settings, &all, "after verify");
    assert!(damage[0].contains("made anew"), "{damage:?}");
}

/// Damage may show itself only when a record is read: then the store breaks, and the opening after that mends it.
fn settle(settings: &Settings, all: &(BTreeMap<Key, Vec<u8>>, Bodies), what: &str) -> Vec<String> {
    if let Ok(opened) = open(settings.clone()) {
        let pairs = opened.records.range(&[0], &[255; 8], usize::MAX);
        let is_whole = pairs.is_ok_and(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>() == all.0);
        let mut bodies = all.1.iter().map(|(id, whole)| (read(&*opened.bodies, *id), whole));
        let is_whole = is_whole && bodies.all(|(found, whole)| found.is_ok_and(|found| found.as_ref() == Some(whole)));
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
fn a_copy_that_is_behind_is_removed_before_anything_could_be_made_from_it() {
    let place = Place::new();
    filled(&place);
    let earlier = place.crash_copy("earlier").folder.join("copy");
    let opened = place.open();
    place.put(&opened, "Tlater", 100);
    drop(opened);
    fs::remove_dir_all(place.settings.folder.join("copy")).unwrap();
    copy(&earlier, &place.settings.folder.join("copy"));
    let stale = files(&place.settings.folder.join("copy"));
    place.faults.checkpoints_skipped.store(true, Ordering::Release);
    let opened = place.open();
    assert!(!stale.is_empty() && stale.iter().all(|path| !path.exists()), "{stale:?}");
    drop(opened);
    fs::remove_dir_all(place.settings.folder.join("records")).unwrap();
    // From the journal alone, if it goes back so far; else refused, and not silently as they once were.
    if let Ok(opened) = open(place.settings.clone()) {
        assert!(opened.records.get(b"Tlater").unwrap().is_some());
    }
}

#[test]
fn records_that_open_empty_are_made_anew_whatever_else_is_damaged() {
    let place = Place::new();
    let folder = &place.settings.folder;
    let opened = place.open();
    for number in 0..400 {
        let mut batch = Batch::new();
        batch.set(key(&format!("T{number:04}")), vec![7; 2_000]);
        place.commit(&opened, batch).unwrap();
    }
    let is_first = |path: &PathBuf| {
        let head = fs::File::open(path).and_then(|file| SegmentHeader::read(&file));
        matches!(head, Ok(Some(head)) if head.number == 1 && head.usage == Use::Shared)
    };
    eventually("the journal's begin is given back", || !files(&folder.join("segments")).iter().any(is_first));
    eventually("a copy is there", || !files(&folder.join("copy")).is_empty());
    let all = (records(&opened), Vec::new());
    drop(opened);
    // Somebody emptied the folder, so that the engine opens it as a new one; and a file beside is rubbish.
    fs::remove_dir_all(folder.join("records")).unwrap();
    fs::create_dir(folder.join("records")).unwrap();
    let segment = files(&folder.join("segments")).pop().unwrap();
    let rubbish = segment.with_file_name(format!("{:016x}.{}", 0xffff, segment.extension().unwrap().to_str().unwrap()));
    fs::write(&rubbish, vec![0x55; 8192]).unwrap();
    let damage = assert_all_there(&place.settings, &all, "emptied");
    assert!(damage[0].contains("made anew"), "{damage:?}");
    assert!(damage.iter().any(|what| what.contains("unreadable")), "the other damage was met: {damage:?}");
    fs::remove_file(rubbish).unwrap();
    assert_eq!(assert_all_there(&place.settings, &all, "afterwards"), Vec::<String>::new());
}

#[test]
fn a_copy_that_is_given_up_leaves_nothing_that_takes_room() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(&folder.path().join("records"), 1 << 20, None).unwrap();
    let copy = RecordsCopy::open(folder.path()).unwrap();
    copy.begin(Position::default());
    copy.tend(&records, &Space::new(folder.path().to_owned(), 0, 0), &|| true).unwrap();
    assert_eq!(files(&folder.path().join(FOLDER)), Vec::<PathBuf>::new());
    copy.tend(&records, &Space::new(folder.path().to_owned(), u64::MAX, 0), &|| false).unwrap();
    assert_eq!(files(&folder.path().join(FOLDER)), Vec::<PathBuf>::new(), "below the floor none is begun");
    fs::write(folder.path().join(FOLDER).join("new"), b"cut off by a crash").unwrap();
    RecordsCopy::open(folder.path()).unwrap().clear().unwrap();
    assert_eq!(files(&folder.path().join(FOLDER)), Vec::<PathBuf>::new());
}

#[test]
fn a_rebuild_that_leads_to_no_open_store_loses_no_damaged_file_and_is_not_repeated() {
    let place = Place::new();
    filled(&place);
    let folder = &place.settings.folder;
    // The copy ends before commits that the records had, and the journal no longer has them.
    let earlier = place.crash_copy("earlier").folder.join("copy");
    let opened = place.open();
    for number in 0..200 {
        let mut batch = Batch::new();
        batch.set(key(&format!("T{number:04}")), vec![7; 2_000]);
        place.commit(&opened, batch).unwrap();
    }
    drop(opened);
    let segments = files(&folder.join("segments"));
    let newest = |path: &&PathBuf| {
        let head = fs::File::open(path).and_then(|file| SegmentHeader::read(&file));
        head.ok().flatten().filter(|head| head.usage == Use::Shared).map_or(0, |head| head.number)
    };
    let last = segments.iter().max_by_key(newest).unwrap().clone();
    segments.iter().filter(|path| **path != last).for_each(|path| fs::remove_file(path).unwrap());
    fs::remove_dir_all(folder.join("copy")).unwrap();
    copy(&earlier, &folder.join("copy"));
    fs::remove_dir_all(folder.join("records")).unwrap();
    fs::create_dir(folder.join("records")).unwrap();
    fs::write(folder.join("records/evidence"), b"what somebody wants to look at").unwrap();
    for start in 1..=3 {
        let refused = open(place.settings.clone());
        assert!(matches!(refused, Err(OpenError::WentBack { .. })), "start {start}");
        let evidence = files(folder).into_iter().filter(|path| path.ends_with("evidence"));
        assert_eq!(evidence.count(), 1, "start {start}");
    }
    assert_eq!(set_aside(folder), 0, "what would not do was put in no place");
}

/// How many sets of damaged files there are.
fn set_aside(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("records.damaged-")).count()
}

/// The numbers of the journal's segments that are in use.
fn journal(folder: &Path) -> Vec<u64> {
    // One that is given back meanwhile is gone.
    let heads = files(&folder.join("segments")).into_iter().filter_map(|path| fs::File::open(path).ok());
    let heads = heads.filter_map(|file| SegmentHeader::read(&file).unwrap());
    heads.filter(|head| head.usage == Use::Shared).map(|head| head.number).collect()
}

#[test]
fn a_copy_that_is_old_is_not_believed_when_the_journal_has_given_back_all_it_could() {
    let place = Place::new();
    let folder = &place.settings.folder;
    filled(&place);
    let earlier = place.crash_copy("earlier").folder.join("copy");
    let opened = place.open();
    for number in 0..200 {
        let mut batch = Batch::new();
        batch.set(key(&format!("T{number:04}")), vec![7; 2_000]);
        place.commit(&opened, batch).unwrap();
    }
    for (id, _) in opened.engine.named_bodies().into_iter().map(|id| (id, ())) {
        place.free(&opened, id);
    }
    let managed = |opened: &Opened| {
        let all = records(opened).into_iter();
        all.filter(|(key, _)| is_copied(key)).collect::<BTreeMap<_, _>>()
    };
    let all = managed(&opened);
    drop(opened);
    // Opened again and not written to: no segment is at work.
    let opened = place.open();
    eventually("all but the newest is given back", || journal(folder).len() == 1);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(journal(folder).len(), 1);
    drop(opened);
    let whole = place.crash_copy("whole");
    fs::remove_dir_all(folder.join("copy")).unwrap();
    copy(&earlier, &folder.join("copy"));
    fs::remove_dir_all(folder.join("records")).unwrap();
    assert!(open(place.settings.clone()).is_err(), "it went back in time");
    assert!(!folder.join("records").exists(), "nothing was begun in its place");
    fs::remove_dir_all(whole.folder.join("records")).unwrap();
    assert!(managed(&open(whole).unwrap()) == all, "the records differ");
}

#[test]
fn a_rebuild_that_cannot_be_made_leaves_everything_and_is_made_later() {
    let place = Place::new();
    let all = filled(&place);
    let folder = &place.settings.folder;
    let metadata = files(&folder.join("records/metadata"));
    metadata.iter().for_each(|path| writable(path).set_len(0).unwrap());
    // In its way lies something that is no folder.
    fs::write(folder.join("records.partial"), b"x").unwrap();
    for _ in 0..2 {
        let Err(OpenError::Records(why)) = open(place.settings.clone()) else { panic!("it was opened") };
        assert!(why.contains("could not be made anew"), "{why}");
        assert!(metadata.iter().all(|path| path.metadata().unwrap().len() == 0));
        assert_eq!(set_aside(folder), 0);
    }
    fs::remove_file(folder.join("records.partial")).unwrap();
    let damage = assert_all_there(&place.settings, &all, "once it could be made");
    assert!(damage[0].contains("made anew"), "{damage:?}");
    assert_eq!(set_aside(folder), 1);
}

#[test]
fn two_rebuilds_in_a_row_and_one_killed_at_any_step_lose_nothing() {
    let place = Place::new();
    let all = filled(&place);
    let folder = &place.settings.folder;
    for round in 0..2 {
        let metadata = files(&folder.join("records/metadata"));
        metadata.iter().for_each(|path| writable(path).set_len(3).unwrap());
        let damage = assert_all_there(&place.settings, &all, &format!("round {round}"));
        assert!(damage[0].contains("made anew"), "{damage:?}");
        assert_eq!(set_aside(folder), 1, "one set of damaged files is kept");
    }
    let damaged = |settings: &Settings| {
        let metadata = files(&settings.folder.join("records/metadata"));
        metadata.iter().for_each(|path| writable(path).set_len(3).unwrap());
        fs::write(settings.folder.join("records-are-damaged"), b"a test says so").unwrap();
    };
    // What stands beside the damaged records, and whether they have been set aside, when it is killed.
    for (what, made, is_set_aside) in
        [("half", "records.partial", false), ("whole", "records.new", false), ("set aside", "records.new", true)]
    {
        let settings = place.crash_copy("killed");
        copy(&settings.folder.join("records"), &settings.folder.join(made));
        damaged(&settings);
        if is_set_aside {
            fs::rename(settings.folder.join("records"), settings.folder.join("records.damaged-99")).unwrap();
        }
        assert_all_there(&settings, &all, what);
        assert!(!settings.folder.join("records-are-damaged").exists() && !settings.folder.join(made).exists());
        assert_eq!(assert_all_there(&settings, &all, what), Vec::<String>::new(), "{what}: once more");
        assert_eq!(verify(&settings.folder).unwrap().damaged, Vec::<String>::new(), "{what}");
        fs::remove_dir_all(&settings.folder).unwrap();
    }
}

#[test]
fn what_the_system_refuses_replaces_no_records() {
    let place = Place::new();
    filled(&place);
    let folder = &place.settings.folder;
    let metadata = folder.join("records/metadata");
    let log = files(&metadata).into_iter().find(|path| path.to_string_lossy().contains("log_")).unwrap();
    // Reading a folder where a file was is refused by the system; nothing is known about the data.
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    assert!(matches!(open(place.settings.clone()), Err(OpenError::Records(_))));
    assert!(log.is_dir() && !files(folder).iter().any(|path| path.to_string_lossy().contains("records.damaged-")));
}

#[test]
fn without_records_and_with_a_copy_that_cannot_be_read_no_empty_store_is_begun() {
    let place = Place::new();
    filled(&place);
    let folder = &place.settings.folder;
    fs::remove_dir_all(folder.join("records")).unwrap();
    let file = files(&folder.join("copy")).pop().unwrap();
    writable(&file).write_all_at(b"\xff\xff\xff\xff", 8).unwrap();
    writable(&file).write_all_at(b"\xff\xff\xff\xff", 60).unwrap();
    assert!(open(place.settings.clone()).is_err());
    assert!(!folder.join("records").exists() && file.exists(), "nothing was changed");
}

#[test]
fn verify_names_a_copy_that_is_behind_and_changes_nothing_in_it() {
    let place = Place::new();
    filled(&place);
    let earlier = place.crash_copy("earlier").folder.join("copy");
    let opened = place.open();
    place.put(&opened, "Tlater", 100);
    drop(opened);
    let copies = place.settings.folder.join("copy");
    fs::remove_dir_all(&copies).unwrap();
    copy(&earlier, &copies);
    let file = files(&copies).pop().unwrap();
    let length = file.metadata().unwrap().len();
    writable(&file).write_all_at(b"half a group", length).unwrap();
    let report = verify(&place.settings.folder).unwrap();
    assert!(report.damaged.iter().any(|what| what.contains("the copy of the records ends at")), "{report:?}");
    assert_eq!(file.metadata().unwrap().len(), length + 12);
}

#[derive(Clone, Debug)]
enum Step {
    Make,
    Set(u8),
    Remove(u8),
    RemoveMade(u8),
    Checkpoint,
    /// A checkpoint after which a new file is begun.
    NewBase,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Make),
        2 => (0..6_u8).prop_map(Step::Set),
        2 => (0..6_u8).prop_map(Step::Remove),
        4 => any::<u8>().prop_map(Step::RemoveMade),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::NewBase),
    ]
}

/// What a copy gives.
fn copied(folder: &Path) -> BTreeMap<Key, Vec<u8>> {
    let mut found = BTreeMap::new();
    let file = CopyFile::newest(&folder.join(FOLDER)).unwrap().expect("there is a copy");
    let mut take = |operations: Vec<Operation<'_>>| {
        for operation in operations {
            match operation {
                Operation::Set(key, value) => drop(found.insert(key.to_vec(), value.to_vec())),
                Operation::Remove(key) => drop(found.remove(key)),
            }
        }
        Ok(())
    };
    file.each(&mut take).unwrap();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_made_and_removed_around_a_new_base_leaves_a_copy_that_agrees(steps in prop::collection::vec(step(), 10..60)) {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("records"), 1 << 20, None).unwrap();
        let copy = RecordsCopy::open(folder.path()).unwrap();
        let space = Space::new(folder.path().to_owned(), 0, 0);
        copy.begin(Position::default());
        let (mut commit, mut made, mut next) = (0, Vec::new(), 0_u32);
        for step in steps.into_iter().chain([Step::Make, Step::Checkpoint, Step::Set(0), Step::Checkpoint]) {
            let name = |number: u8| vec![prefix::TENANT, number];
            let (key, value, before) = match step {
                Step::Make => {
                    next += 1;
                    let key = [&[prefix::MESSAGE][..], &next.to_be_bytes()].concat();
                    made.push(key.clone());
                    (key, Some(vec![1; 30]), Before::Absent)
                }
                Step::Set(number) => (name(number), Some(vec![number; 20]), Before::Unknown),
                Step::Remove(number) => (name(number), None, Before::Unknown),
                Step::RemoveMade(_) if made.is_empty() => continue,
                Step::RemoveMade(which) => (made.remove(usize::from(which) % made.len()), None, Before::Unknown),
                Step::Checkpoint | Step::NewBase => {
                    records.flush_after(|layer| checkpoint(&records, &copy, layer)).unwrap();
                    if matches!(step, Step::NewBase) {
                        copy.replayed(commit, false);
                    }
                    copy.tend(&records, &space, &|| false).unwrap();
                    continue;
                }
            };
            commit += 1;
            let operation = match &value {
                Some(value) => Operation::Set(&key, value),
                None => Operation::Remove(&key),
            };
            records.apply([(operation, before)], Position { commit, segment: 1, offset: commit }).unwrap();
        }
        let wanted: BTreeMap<_, _> = records.range(&[1], &[255; 8], usize::MAX).unwrap().into_iter().collect();
        prop_assert_eq!(copied(folder.path()), wanted);
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
    assert_eq!(found.records, tenants, "the journal goes back to the first commit");
}

/// A key that was withdrawn must not come back because its withdrawal is what is missing.
#[test]
fn what_is_salvaged_is_of_one_moment_and_gives_nobody_access_that_may_have_been_withdrawn() {
    let place = Place::new();
    let folder = &place.settings.folder;
    let opened = place.open();
    let granted = |name: u8| vec![prefix::API_KEY, name];
    let mut batch = Batch::new();
    batch.set(granted(1), key("granted")).set(granted(2), key("granted")).set(key("Tfirst"), key("kept"));
    place.commit(&opened, batch).unwrap();
    place.put(&opened, "Theld", 100);
    let applied = opened.engine.shared().applied.load(Ordering::Acquire);
    let copied = || CopyFile::look(&folder.join("copy")).ok().flatten().map_or(0, |file| file.position.commit);
    eventually("a copy is there", || copied() >= applied);
    let old_copy = place.crash_copy("old").folder.join("copy");
    let mut withdrawn = Batch::new();
    withdrawn.remove(granted(1)).set(key("Tsecond"), key("later"));
    place.commit(&opened, withdrawn).unwrap();
    let first = journal(folder).len();
    for number in 0..400 {
        let mut batch = Batch::new();
        batch.set(key(&format!("Tmore{number:04}")), vec![7; 2_000]);
        place.commit(&opened, batch).unwrap();
    }
    eventually("some of the journal is given back", || journal(folder).len() <= first + 1);
    drop(opened);
    fs::remove_dir_all(folder.join("records")).unwrap();
    let all = |key: &[u8]| key.first() != Some(&prefix::ENGINE);
    // With its copy: as it was.
    let found = salvage_records(folder, all).unwrap();
    assert_eq!(found.lacking, Vec::<String>::new());
    assert!(!found.records.contains_key(&granted(1)) && found.records.contains_key(&granted(2)));
    assert_eq!(found.records.keys().filter(|key| key.starts_with(b"Tmore")).count(), 400);
    // With an old one: as it was then, and nobody is let in.
    fs::remove_dir_all(folder.join("copy")).unwrap();
    copy(&old_copy, &folder.join("copy"));
    let found = salvage_records(folder, all).unwrap();
    assert!(found.lacking.iter().any(|what| what.contains("is there again")), "{:?}", found.lacking);
    assert!(!found.records.keys().any(|key| key[0] == prefix::API_KEY), "a key may have been withdrawn");
    assert!(found.records.contains_key(&key("Tfirst")));
    // With none: what the journal has left has no beginning.
    fs::remove_dir_all(folder.join("copy")).unwrap();
    let found = salvage_records(folder, all).unwrap();
    assert!(found.records.is_empty(), "{:?}", found.records.keys());
    assert!(found.lacking.iter().any(|what| what.contains("no copy")), "{:?}", found.lacking);
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
    let damage = assert_all_there(&place.settings, &all, "no copy");
    assert!(damage[0].contains("serve as they are"), "{damage:?}");
    assert!(files(&folder.join("copy")).is_empty(), "what cannot be read would end the process again");
    assert_eq!(assert_all_there(&place.settings, &all, "afterwards"), Vec::<String>::new());
}

/// Records made anew lack the history that the journal no longer has.
#[test]
fn after_a_panic_records_that_can_be_read_are_not_made_anew() {
    let place = Place::new();
    let all = filled(&place);
    let folder = &place.settings.folder;
    fs::write(folder.join("records-are-damaged"), b"sled panicked: a test says so").unwrap();
    assert_eq!(assert_all_there(&place.settings, &all, "a panic"), Vec::<String>::new());
    assert_eq!(set_aside(folder), 0);
    assert!(!folder.join("records-are-damaged").exists());
    let record_files = files(&folder.join("records"));
    for file in record_files.iter().filter(|path| path.to_string_lossy().contains("slabs")) {
        let length = file.metadata().unwrap().len();
        writable(file).write_all_at(&vec![0x55; usize::try_from(length).unwrap()], 0).unwrap();
    }
    fs::write(folder.join("records-are-damaged"), b"sled panicked: a test says so").unwrap();
    let damage = assert_all_there(&place.settings, &all, "a panic over damage");
    assert!(damage[0].contains("made anew"), "{damage:?}");
}

#[test]
fn a_power_cut_that_leaves_only_a_part_of_the_last_change_costs_the_copy_nothing_before_it() {
    let place = Place::new();
    filled(&place);
    with_checkpoints(&place, 2);
    let copies = place.settings.folder.join("copy");
    let before = CopyFile::look(&copies).unwrap().unwrap();
    let (position, end) = (before.position, before.bytes());
    let all = with_checkpoints(&place, 1);
    let after = CopyFile::look(&copies).unwrap().unwrap();
    assert!(after.position.commit > position.commit && after.bytes() > end);
    let file = files(&copies).pop().unwrap();
    for at in [end, end + 70, after.bytes() - 16] {
        let kept = fs::read(&file).unwrap();
        writable(&file).write_all_at(&[0x55; 16], at).unwrap();
        let torn = CopyFile::look(&copies).unwrap().unwrap();
        assert_eq!((torn.position.commit, torn.bytes()), (position.commit, end), "torn at {at}");
        fs::write(&file, kept).unwrap();
    }
    // What the torn change said is in the journal as well.
    writable(&file).write_all_at(&[0x55; 16], end).unwrap();
    fs::remove_dir_all(place.settings.folder.join("records")).unwrap();
    let damage = assert_all_there(&place.settings, &all, "torn");
    assert!(damage[0].contains("made anew"), "{damage:?}");
}

#[test]
fn a_copy_that_cannot_be_removed_stops_nobody() {
    let place = Place::new();
    let all = filled(&place);
    let copies = place.settings.folder.join("copy");
    fs::create_dir(copies.join("ffffffffffffffff.records")).unwrap();
    assert_eq!(assert_all_there(&place.settings, &all, "a folder in its place"), Vec::<String>::new());
    let names = fs::read_dir(&place.settings.folder).unwrap().map(|entry| entry.unwrap().file_name());
    let aside = names.filter(|name| name.to_str().is_some_and(|name| name.starts_with("copy.unusable-")));
    assert_eq!(aside.count(), 1);
}

#[test]
fn a_copy_that_claims_more_than_it_holds_stops_nobody() {
    let place = Place::new();
    let all = filled(&place);
    let folder = &place.settings.folder;
    let there = CopyFile::look(&folder.join("copy")).unwrap().unwrap().position;
    let mut layers = Layers::default();
    let more = Position { commit: there.commit + 10, ..there };
    layers.apply(&Operation::Set(&POSITION_KEY, &more.to_bytes()), Before::Unknown);
    RecordsCopy::open(folder).unwrap().append(&layers.begin(), None).unwrap();
    let file = files(&folder.join("copy")).pop().unwrap();
    writable(&file).write_all_at(&[0x55; 16], 160).unwrap();
    assert_all_there(&place.settings, &all, "a damaged copy of more");
    assert!(verify(folder).unwrap().damaged.is_empty(), "a new one was made");
}

/// What becomes of each kind of record when the records are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// In the copy.
    Copied,
    /// In the journal as far as it goes back, and in files of their own.
    Fact,
    /// The engine's own: where bodies lie is in the copy, the rest is made anew.
    Own,
}

/// Every kind. Whoever adds one decides here: what is not copied and no fact is lost with the records.
const KINDS: &[(&str, Kept)] = &[
    ("ENGINE", Kept::Own),
    ("VIP", Kept::Copied),
    ("TENANT", Kept::Copied),
    ("SMTP_ACCOUNT", Kept::Copied),
    ("NAME", Kept::Copied),
    ("USAGE", Kept::Copied),
    ("DOMAIN", Kept::Copied),
    ("ROUTE", Kept::Copied),
    ("SUSPENSION", Kept::Copied),
    ("SUPPRESSION", Kept::Copied),
    ("OPERATION", Kept::Copied),
    ("MESSAGE", Kept::Copied),
    ("LANE", Kept::Copied),
    // Could be made from the lanes; but a start must not read all of them.
    ("DUE", Kept::Copied),
    ("NOTICE", Kept::Copied),
    ("HISTORY", Kept::Fact),
    ("QUEUE_STATE", Kept::Copied),
    ("SWEEP", Kept::Copied),
    ("KEYRING", Kept::Copied),
    ("SHAPING", Kept::Copied),
    ("TLS_POLICY", Kept::Copied),
    ("TLS_SEEN", Kept::Copied),
    ("TLS_REPORT", Kept::Copied),
    ("BREAKER", Kept::Copied),
    ("EVENT", Kept::Fact),
    ("CURSOR", Kept::Copied),
    // A chain with a gap would say that somebody removed something.
    ("AUDIT", Kept::Copied),
    ("TENANCY", Kept::Copied),
    ("NOTIFICATION", Kept::Copied),
    ("USER", Kept::Copied),
    ("API_KEY", Kept::Copied),
    ("SESSION", Kept::Copied),
    ("ONE_TIME", Kept::Copied),
    ("WEBHOOK", Kept::Copied),
    ("RETURN_PATH", Kept::Copied),
    // The key of tags: without it nothing that comes back is believed.
    ("FEEDBACK", Kept::Copied),
    // Counted from events, of which not all are kept: they cannot be counted again.
    ("STATISTICS", Kept::Copied),
    ("REPLAY", Kept::Copied),
];

/// Every kind of record with its prefix, as the source names them.
fn prefixes() -> Vec<(String, u8)> {
    let text = include_str!("mod.rs");
    let of = |line: &str| {
        let (name, value) = line.trim().strip_prefix("pub const ")?.strip_suffix(';')?.split_once(": u8 = ")?;
        let byte = match value.strip_prefix("b'").and_then(|value| value.strip_suffix('\'')) {
            Some(letter) => letter.bytes().next()?,
            None => u8::from_str_radix(value.strip_prefix("0x")?, 16).ok()?,
        };
        Some((name.to_owned(), byte))
    };
    text.lines().filter_map(of).collect()
}

#[test]
fn of_every_kind_of_record_it_is_decided_what_the_copy_does_with_it() {
    let prefixes = prefixes();
    let decided: Vec<_> = KINDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let named: Vec<_> = prefixes.iter().map(|(name, _)| name.clone()).collect();
    for name in &named {
        assert!(decided.contains(name), "prefix {name} is new: decide in KINDS whether the copy holds it");
    }
    assert_eq!(named.len(), KINDS.len(), "a kind that is gone is still decided upon");
    let ranges = copied_ranges();
    for (name, byte) in prefixes {
        let kept = KINDS.iter().find(|(decided, _)| *decided == name).unwrap().1;
        let record = [byte, b'x'];
        let is_in_a_range = ranges.iter().any(|(from, to)| from[..] <= record[..] && record[..] < to[..]);
        assert_eq!(is_copied(&record), kept == Kept::Copied, "{name}");
        assert_eq!(is_in_a_range, kept == Kept::Copied, "{name}: what a new copy begins with");
        assert_eq!(is_fact(byte), kept == Kept::Fact, "{name}");
    }
}
