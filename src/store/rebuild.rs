//! The records made anew when their files are damaged: from the copy, and the journal behind it.
//!
//! What comes out is what was acknowledged, to the last commit: the copy says where in the journal it
//! ends, and the replay that follows finds out whether the journal goes on from there without a gap.
//! Easy to get wrong: the damaged files are set aside and never written to; the new ones get their
//! name only when they are whole and durable.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copy::{self, CopyFile, is_copied, is_fact};
use super::durable::sync_folder;
use super::engine::lock_folder;
use super::format;
use super::frame::{Kind, Seal};
use super::offline::{Journal, used_segments};
use super::record::{self, Before, Operation, Position};
use super::scan::{self, Found, Frames};
use super::segment::{DATA_START, Segment, Use};
use super::sled::{Broken, PANICKED, Records};
use super::space::Space;
use super::{Key, OpenError, Settings, StoreError, prefix};
use crate::ext::Timestamp;

const RECORDS: &str = "records";
/// While they are being made.
const PARTIAL: &str = "records.partial";
/// When they are whole and wait for their name.
const WHOLE: &str = "records.new";
/// Before the moment at which they were set aside.
const ASIDE: &str = "records.damaged-";
/// Written when the record engine met damage in the midst of its work, with what it said.
const NOTE: &str = "records-are-damaged";

/// Opened records, and what had to be done for it.
pub struct OpenedRecords {
    /// The map.
    pub records: Records,
    /// In words, if they had to be made anew.
    pub rebuilt: Option<String>,
    /// Why they may be damaged, if they were opened as they are all the same.
    pub doubt: Option<String>,
}

/// Opens the records of a store's folder, made anew if they are damaged and their copy is there.
pub fn open_records(settings: &Settings) -> Result<OpenedRecords, OpenError> {
    let folder = &settings.folder;
    let (place, whole, note) = (folder.join(RECORDS), folder.join(WHOLE), folder.join(NOTE));
    refuse_newer(folder)?;
    let mut is_there = is_there(&place)?;
    if !is_there && self::is_there(&whole)? {
        // Cut off between the last two steps of a rebuild.
        fs::rename(&whole, &place).and_then(|()| sync_folder(folder)).map_err(OpenError::Files)?;
        forget(folder)?;
        is_there = true;
    }
    if !is_there {
        match CopyFile::look(&folder.join(copy::FOLDER)) {
            Ok(None) => {}
            Ok(Some(_)) => return rebuild(settings, "the record files are gone"),
            // Not a new store: nothing is begun in its place.
            Err(error) => return Err(OpenError::Records(format!("the record files are gone, and {error}"))),
        }
    }
    let mut doubt = None;
    if is_there && let Some(why) = noted(&note)? {
        if !(why.contains(PANICKED) && can_be_read(settings)) {
            match rebuild(settings, why.trim()) {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    tracing::error!(%error, "the records are opened as they are");
                    doubt = Some(format!("the record files met damage and serve as they are: {error}"));
                }
            }
        }
        forget(folder)?;
    }
    match open_checked(folder, settings.cache_bytes, Some(note)) {
        Ok(records) => Ok(OpenedRecords { records, rebuilt: None, doubt }),
        Err(Broken::Damaged(why)) => rebuild(settings, &why),
        Err(Broken::Failed(why)) => Err(OpenError::Records(why)),
    }
}

/// Refuses a copy that a later release wrote, before anything is touched: what is made without it would lack what
/// that release put there. Whatever else is wrong with a copy is found out when it is used.
fn refuse_newer(folder: &Path) -> Result<(), OpenError> {
    let looked = CopyFile::look(&folder.join(copy::FOLDER)).map_err(format::files);
    looked.map(drop).or_else(|error| if matches!(error, OpenError::Newer(_)) { Err(error) } else { Ok(()) })
}

/// Whether every record can be read. A panic of the engine may have been its own fault, and records made
/// anew lack the history that the journal no longer has.
fn can_be_read(settings: &Settings) -> bool {
    open_checked(&settings.folder, settings.cache_bytes, None).is_ok_and(|records| records.read_all().is_ok())
}

/// Opens the records as they are, if their files reach as far as the copy says that they did. An open makes
/// one file of many, and who opens files that are cut off takes from everybody the means to tell.
pub fn open_checked(store: &Path, cache_bytes: usize, note: Option<PathBuf>) -> Result<Records, Broken> {
    let place = store.join(RECORDS);
    if let Ok(Some(CopyFile { extent: Some(extent), .. })) = CopyFile::look(&store.join(copy::FOLDER)) {
        extent.check(&place)?;
    }
    let records = Records::open(&place, cache_bytes, note)?;
    match records.position() {
        Ok(_) => Ok(records),
        Err(StoreError::Failed(why)) if !records.is_damaged() => Err(Broken::Failed(why)),
        Err(StoreError::Damaged(why) | StoreError::Failed(why)) => Err(Broken::Damaged(why)),
    }
}

/// Whether there is something of this name; that the system does not tell is not a no.
fn is_there(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(OpenError::Files)
}

/// What the note says, if there is one.
fn noted(note: &Path) -> Result<Option<String>, OpenError> {
    match fs::read(note) {
        Ok(why) => Ok(Some(String::from_utf8_lossy(&why).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::Files(error)),
    }
}

/// Makes the records anew, and opens them. `why` they had to be is for people.
pub fn rebuild(settings: &Settings, why: &str) -> Result<OpenedRecords, OpenError> {
    let folder = &settings.folder;
    tracing::error!(why, "the record files are damaged; they are made anew from their copy and the journal");
    let made = make_anew(settings).and_then(|()| put_in_place(folder)).inspect_err(|_| {
        // It would take room, and the next try begins at the beginning.
        if let Err(error) = remove_folder(&folder.join(PARTIAL)) {
            tracing::warn!(%error, "records that were made in part could not be removed");
        }
    });
    let aside = made.map_err(|error| {
        OpenError::Records(format!("{why}; they could not be made anew from their copy and the journal: {error}"))
    })?;
    forget(folder)?;
    let records = Records::open(&folder.join(RECORDS), settings.cache_bytes, Some(folder.join(NOTE)));
    let records = records.map_err(|error| OpenError::Records(error.text().to_owned()))?;
    let rebuilt = Some(format!(
        "the record files were damaged ({why}) and have been made anew from their copy and the journal; the damaged ones \
         are in {}; of the history of finished mail and of events, what the journal no longer had is there alone",
        aside.display()
    ));
    Ok(OpenedRecords { records, rebuilt, doubt: None })
}

/// Removes the note that the records are damaged.
fn forget(folder: &Path) -> Result<(), OpenError> {
    let forgotten = match fs::remove_file(folder.join(NOTE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    forgotten.and_then(|()| sync_folder(folder)).map_err(OpenError::Files)
}

/// Makes whole and durable records beside the damaged ones. An error if there is no copy, if it is damaged,
/// or if the journal does not go on where it ends: nothing is replaced then.
fn make_anew(settings: &Settings) -> io::Result<()> {
    let folder = &settings.folder;
    let file = CopyFile::look(&folder.join(copy::FOLDER))?;
    let file = file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no copy"))?;
    let (partial, whole) = (folder.join(PARTIAL), folder.join(WHOLE));
    remove_folder(&partial)?;
    remove_folder(&whole)?;
    let space = Space::new(folder.clone(), settings.free_bytes_min, settings.free_inodes_min);
    if !space.has_room_above_floor(file.bytes()) {
        let text = format!("there is no room for another {} octets above store.free_bytes_min", file.bytes());
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    check_journal_behind(folder, file.position)?;
    let records = Records::open(&partial, settings.cache_bytes, None);
    let records = records.map_err(|error| io::Error::other(error.text().to_owned()))?;
    file.each(&mut |operations| put(&records, operations))?;
    each_fact_before(folder, file.position, &mut |mut operations| {
        // What was erased since must not come back: only mail that is owed cannot have been.
        let is_owed = |key: &[u8]| match key.split_first() {
            Some((&prefix::HISTORY, id)) => records.get(&[&[prefix::MESSAGE], id].concat()).map(|owed| owed.is_some()),
            _ => Ok(true),
        };
        let owed = operations.iter().map(|operation| is_owed(operation.key())).collect::<Result<Vec<_>, _>>();
        let mut owed = owed.map_err(failed)?.into_iter();
        operations.retain(|_| owed.next().unwrap_or(false));
        put(&records, operations)
    })?;
    records.apply([], file.position).and_then(|()| records.flush()).map_err(failed)?;
    drop(records);
    fs::rename(&partial, &whole)?;
    sync_folder(folder)
}

/// Sets the damaged files aside and gives the whole ones their name; where the damaged ones are then.
fn put_in_place(folder: &Path) -> io::Result<PathBuf> {
    let (place, whole) = (folder.join(RECORDS), folder.join(WHOLE));
    let mut moment = Timestamp::now().0 / 1000;
    let mut aside = folder.join(format!("{ASIDE}{moment}"));
    while aside.try_exists()? {
        moment += 1;
        aside = folder.join(format!("{ASIDE}{moment}"));
    }
    match fs::rename(&place, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => sync_folder(folder)?,
    }
    fs::rename(&whole, &place)?;
    sync_folder(folder)?;
    Ok(aside)
}

/// Whether the journal has every commit behind `position`.
fn check_journal_behind(folder: &Path, position: Position) -> io::Result<()> {
    let used = used_segments(folder, &mut Vec::new()).map_err(io::Error::other)?;
    let behind = used.values().filter(|segment| segment.header.number >= position.segment);
    let (last, gap) = each_commit_behind(behind, position.commit, &mut |_| Ok(()))?;
    let Some(next) = gap else { return Ok(()) };
    let text = format!("the journal lacks {} commits behind the copy, which ends at {last}", next - last);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// The store is open: what an earlier rebuild left behind goes, and once one has led to an open store, all
/// but one set of damaged files, which is kept to be looked at; more would fill the disk. Of those of one
/// day it is the first: it has most of the history.
pub fn clear_up(folder: &Path, is_rebuilt: bool) -> io::Result<()> {
    remove_folder(&folder.join(PARTIAL))?;
    remove_folder(&folder.join(WHOLE))?;
    if is_rebuilt {
        let mut aside = set_aside(folder)?;
        aside.sort();
        let day_ago = (Timestamp::now().0 / 1000).saturating_sub(24 * 60 * 60);
        let kept = aside.iter().position(|path| moment_of(path) >= day_ago).unwrap_or(aside.len().saturating_sub(1));
        let others = aside.iter().enumerate().filter(|(number, _)| *number != kept);
        others.map(|(_, path)| path).try_for_each(|path| remove_folder(path))?;
    }
    Ok(())
}

/// Into the new records; so much of it waits in memory for the disk as in the daemon's work.
fn put(records: &Records, operations: Vec<Operation<'_>>) -> io::Result<()> {
    let unknown = operations.into_iter().map(|operation| (operation, Before::Unknown));
    let put = records.apply(unknown, Position::default());
    put.and_then(|()| if records.is_full() { records.flush() } else { Ok(()) }).map_err(failed)
}

fn set_aside(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let is_aside = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(ASIDE));
    Ok(entries.iter().filter(|entry| is_aside(&entry.file_name())).map(fs::DirEntry::path).collect())
}

/// The second at which damaged files were set aside.
fn moment_of(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix(ASIDE)?.parse().ok()).unwrap_or(0)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn failed(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

/// The facts in all groups of the journal up to `position`; the replay gives those behind it.
fn each_fact_before(
    folder: &Path,
    position: Position,
    take: &mut dyn FnMut(Vec<Operation<'_>>) -> io::Result<()>,
) -> io::Result<()> {
    let used = used_segments(folder, &mut Vec::new()).map_err(io::Error::other)?;
    for segment in used.values().filter(|segment| segment.header.usage == Use::Shared) {
        each_batch(segment, &mut |end, _, operations| {
            if (segment.header.number, end) > (position.segment, position.offset) {
                return Ok(());
            }
            let is_about_past = |key: &[u8]| key.first().is_some_and(|first| is_fact(*first));
            let facts = operations.into_iter().filter(|operation| is_about_past(operation.key()));
            let facts: Vec<_> = facts.collect();
            if facts.is_empty() { Ok(()) } else { take(facts) }
        })?;
    }
    Ok(())
}

/// Takes a batch of a whole group: where the group ends, the commit's number, what it does.
type TakeBatch<'a> = &'a mut dyn FnMut(u64, u64, Vec<Operation<'_>>) -> io::Result<()>;

/// Gives what the journal's commits behind `last` do, as far as there is no gap; the last of them, and if there
/// is a gap the last commit that is missing in it.
fn each_commit_behind<'a>(
    segments: impl Iterator<Item = &'a Arc<Segment>>,
    mut last: u64,
    take: &mut dyn FnMut(Vec<Operation<'_>>) -> io::Result<()>,
) -> io::Result<(u64, Option<u64>)> {
    let mut gap = None;
    for segment in segments.filter(|segment| segment.header.usage == Use::Shared) {
        if segment.header.commits_before > last {
            gap.get_or_insert(segment.header.commits_before);
        }
        each_batch(segment, &mut |_, commit, operations| {
            if commit > last + 1 {
                gap.get_or_insert(commit - 1);
            }
            if commit <= last || gap.is_some() {
                return Ok(());
            }
            last = commit;
            take(operations)
        })?;
        if gap.is_some() {
            break;
        }
    }
    Ok((last, gap))
}

/// Of bodies nothing but the headers is read, so one that is damaged hides no batch.
fn each_batch(segment: &Segment, take: TakeBatch<'_>) -> io::Result<()> {
    let end = segment.end.load(Ordering::Acquire);
    let mut frames = Frames::new(&segment.file, segment.header.salt, DATA_START, end);
    let (mut number, mut start, mut count, mut batches) = (None, 0, 0_u32, Vec::new());
    while let Some(found) = frames.next_found()? {
        let Found::Frame(placed) = found else { continue };
        if number != Some(placed.header.group) {
            (number, start, count) = (Some(placed.header.group), placed.offset, 0);
            batches.clear();
        }
        if placed.header.kind != Kind::Seal {
            count += 1;
            batches.extend(Some(placed).filter(|placed| placed.header.kind == Kind::Batch));
            continue;
        }
        number = None;
        let seal = scan::payload(&segment.file, &placed)?.as_deref().and_then(Seal::from_bytes);
        if !seal.is_some_and(|seal| seal.start == start && seal.frames == count) {
            continue;
        }
        for frame in &batches {
            let payload = scan::payload(&segment.file, frame)?.unwrap_or_default();
            if let Some((commit, operations)) = record::operations(&payload) {
                take(frames.position(), commit, operations)?;
            }
        }
    }
    Ok(())
}

/// Records that were found without the record engine.
#[derive(Debug, Default)]
pub struct FoundRecords {
    /// What they hold.
    pub records: BTreeMap<Key, Vec<u8>>,
    /// The highest number of a commit seen.
    pub commit: u64,
    /// Why they may not be all, in words.
    pub lacking: Vec<String>,
}

/// Reads the records that `wanted` names out of the copy and the journal of a folder nobody has open,
/// whatever state they are in. Changes nothing.
///
/// What comes out is as it was at one moment: behind a gap in the journal nothing is taken. What gives access without a password is left out then, for it may have been withdrawn.
pub fn salvage_records(folder: &Path, wanted: impl Fn(&[u8]) -> bool) -> Result<FoundRecords, OpenError> {
    let _lock = lock_folder(folder)?;
    format::check(folder)?;
    let mut found = FoundRecords::default();
    let enter = |records: &mut BTreeMap<Key, Vec<u8>>, operation: Operation<'_>| match operation {
        Operation::Set(key, value) if wanted(key) => drop(records.insert(key.to_vec(), value.to_vec())),
        Operation::Remove(key) => drop(records.remove(key)),
        Operation::Set(..) => {}
    };
    let read = CopyFile::look(&folder.join(copy::FOLDER)).and_then(|file| {
        let file = file.ok_or_else(|| io::Error::other("there is no copy of the records"))?;
        file.each(&mut |operations| {
            operations.into_iter().for_each(|operation| enter(&mut found.records, operation));
            Ok(())
        })?;
        Ok(file.position.commit)
    });
    // Without it the journal is believed if it goes back to the first commit of all.
    found.commit = read.unwrap_or_else(|error| {
        found.records.clear();
        found.lacking.push(error.to_string());
        0
    });
    let mut damage = Vec::new();
    let used = used_segments(folder, &mut damage)?;
    found.lacking.append(&mut damage);
    let read = each_commit_behind(used.values(), found.commit, &mut |operations| {
        operations.into_iter().for_each(|operation| enter(&mut found.records, operation));
        Ok(())
    });
    let (last, gap) = read.map_err(OpenError::Files)?;
    found.commit = last;
    if let Some(missing) = gap {
        let grants = [prefix::API_KEY, prefix::SESSION, prefix::ONE_TIME];
        found.records.retain(|key, _| !key.first().is_some_and(|first| grants.contains(first)));
        found.lacking.push(format!(
            "commits {} to {missing} are gone: what people manage is as it was before them, and an account, a password or \
             an address that was removed or changed since is there again; API keys, sessions and links are left out",
            found.commit + 1
        ));
    }
    Ok(found)
}

/// Compares the copy with the records as the next opening will have them; how many records were
/// compared, or `None` if there is no copy of this state: the next opening makes one.
pub(super) fn compare(
    folder: &Path,
    (records, journal): (&Records, &Journal),
    damaged: &mut Vec<String>,
) -> Result<Option<u64>, StoreError> {
    let file = match CopyFile::look(&folder.join(copy::FOLDER)) {
        Ok(None) => return Ok(None),
        Ok(Some(file)) => file,
        Err(error) => {
            damaged.push(error.to_string());
            return Ok(None);
        }
    };
    let mut copied = HashMap::new();
    let mut enter = |key: &[u8], value: Option<&[u8]>| match value {
        Some(value) => drop(copied.insert(digest(key), digest(value))),
        None => drop(copied.remove(&digest(key))),
    };
    let read = file.each(&mut |operations| {
        for operation in operations {
            match operation {
                Operation::Set(key, value) => enter(key, Some(value)),
                Operation::Remove(key) => enter(key, None),
            }
        }
        Ok(())
    });
    if let Err(error) = read {
        damaged.push(error.to_string());
        return Ok(None);
    }
    let (copied_to, last) = (file.position.commit, journal.last);
    if copied_to < journal.position.commit || copied_to > last {
        let text = format!("the copy of the records ends at commit {copied_to}, the records and the journal at {last}");
        damaged.push(text);
        return Ok(None);
    }
    let changes = journal.changes.iter().filter(|(key, _)| is_copied(key));
    changes.for_each(|(key, value)| enter(key, value.as_deref()));
    let (mut count, mut differing) = (0, 0_u64);
    for range in copy::copied_ranges() {
        journal.each(records, range, |key, value| {
            if is_copied(key) {
                count += 1;
                differing += u64::from(copied.remove(&digest(key)) != Some(digest(value)));
            }
        })?;
    }
    differing += copied.len() as u64;
    if differing > 0 {
        damaged.push(format!("{differing} records differ from their copy"));
    }
    Ok(Some(count))
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
