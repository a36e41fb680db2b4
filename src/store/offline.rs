//! What can be done with a folder that no daemon has open: check it, and save the mail out of it.
//!
//! `verify` reads everything and changes nothing but what opening the records needs. `salvage` reads
//! the segments alone, for the day the records cannot be opened: every body not known to be dead,
//! with the recipients known to be settled. Easy to get wrong: salvage errs towards owing mail a
//! second time, so a body of a group that was never acknowledged is given out too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::blobs::SegmentReader;
use super::engine::lock_folder;
use super::format;
use super::frame::{self, DeadEntry, Kind, Seal};
use super::rebuild;
use super::record::{self, Location, Operation, Position, location_key_id, locations_range};
use super::replay::bound_ends;
use super::scan::{self, Found, Frames, Group, Placed};
use super::segment::{self, DATA_START, Segment, Use};
use super::sled::{Broken, Records};
use super::{OpenError, Settings, StoreError, prefix};
use crate::mail::{BodyId, QueueId};

/// Records read at a time.
const PAGE: usize = 1000;

/// Makes an empty store in a new folder, whose commits are numbered from `commit` on: keys of facts
/// appended later sort behind those that are put into it.
pub fn create_at(settings: &Settings, commit: u64) -> Result<(), OpenError> {
    let _lock = lock_folder(&settings.folder)?;
    format::check(&settings.folder)?;
    format::stamp(&settings.folder)?;
    let failed = |error: StoreError| OpenError::Records(error.to_string());
    let records = Records::open(&settings.folder.join("records"), settings.cache_bytes, None);
    let records = records.map_err(|error| OpenError::Records(error.text().to_owned()))?;
    if records.position().map_err(failed)? != Position::default() {
        let text = format!("{} holds a store already", settings.folder.display());
        return Err(OpenError::Files(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text)));
    }
    records.apply([], Position { commit, segment: 0, offset: 0 }).and_then(|()| records.flush()).map_err(failed)
}

/// What `verify` counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Records of the rooms.
    pub records: u64,
    /// Records that were compared with their copy, and the places of bodies among them. `None` if there
    /// is no copy of this state: the next opening makes one.
    pub copied: Option<u64>,
    /// Live bodies.
    pub bodies: u64,
    /// Their bytes in the segments.
    pub body_bytes: u64,
    /// Segment files in use.
    pub segments: u64,
    /// Frames whose checksum was computed.
    pub frames: u64,
    /// What is damaged, one sentence each.
    pub damaged: Vec<String>,
}

/// Reads all records, all frames, and every live body of a folder nobody has open.
///
/// After a crash the records are as of the last checkpoint; what the journal holds beyond is laid
/// over them, as the next opening will.
pub fn verify(folder: &Path) -> Result<VerifyReport, OpenError> {
    let _lock = lock_folder(folder)?;
    format::check(folder)?;
    let mut report = VerifyReport::default();
    let used = used_segments(folder, &mut report.damaged)?;
    let records = match folder.join("records").try_exists().map_err(OpenError::Files)? {
        true => rebuild::open_checked(folder, Settings::default().cache_bytes, None),
        // To open them would begin empty ones in their place.
        false => Err(Broken::Damaged("the record files are gone".to_owned())),
    };
    let position = match &records {
        Ok(records) => records.position().map_err(|error| OpenError::Records(error.to_string()))?,
        Err(_) => Position::default(),
    };
    let mut journal = Journal { position, last: position.commit, changes: BTreeMap::new() };
    let mut whole = HashSet::new();
    for segment in used.values() {
        report.segments += 1;
        verify_segment(segment, &mut report, &mut whole, &mut journal).map_err(OpenError::Files)?;
    }
    match records {
        Err(why) => report.damaged.push(why.text().to_owned()),
        Ok(records) => {
            let read = verify_records(&records, &journal, &whole, &mut report)
                .and_then(|()| rebuild::compare(folder, (&records, &journal), &mut report.damaged));
            match read {
                Ok(copied) => report.copied = copied,
                Err(error) => report.damaged.push(format!("the records cannot be read to their end: {error}")),
            }
        }
    }
    Ok(report)
}

/// What the journal changes in the records: at most what lies between two checkpoints.
pub(super) struct Journal {
    /// Where the records stand.
    pub(super) position: Position,
    /// The last commit in it.
    pub(super) last: u64,
    /// What it sets and removes, the last of each key.
    pub(super) changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Journal {
    /// Enters the batches of a complete group which the records have not heard of.
    fn enter(&mut self, segment: &Segment, group: &Group) -> std::io::Result<()> {
        if (segment.header.number, group.end) <= (self.position.segment, self.position.offset) {
            return Ok(());
        }
        for frame in group.frames.iter().filter(|frame| frame.header.kind == Kind::Batch) {
            let payload = scan::payload(&segment.file, frame)?.unwrap_or_default();
            let Some((commit, operations)) = record::operations(&payload) else { continue };
            if commit <= self.position.commit {
                continue;
            }
            self.last = self.last.max(commit);
            for operation in operations {
                match operation {
                    Operation::Set(key, value) => self.changes.insert(key.to_vec(), Some(value.to_vec())),
                    Operation::Remove(key) => self.changes.insert(key.to_vec(), None),
                };
            }
        }
        Ok(())
    }

    /// Each pair of a range as the next opening will have it.
    pub(super) fn each(
        &self,
        records: &Records,
        (from, to): (Vec<u8>, Vec<u8>),
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        for (key, value) in self.changes.range(from.clone()..to.clone()) {
            if let Some(value) = value {
                visit(key, value);
            }
        }
        each(records, (from, to), |key, value| {
            if !self.changes.contains_key(key) {
                visit(key, value);
            }
        })
    }
}

/// The segments in use, with what is wrong with others.
pub(super) fn used_segments(folder: &Path, damage: &mut Vec<String>) -> Result<BTreeMap<u64, Arc<Segment>>, OpenError> {
    let found = segment::open_all(&folder.join("segments")).map_err(format::files)?;
    damage.extend(found.unreadable.iter().map(|spare| format!("{}: header unreadable", spare.path.display())));
    let mut used = BTreeMap::new();
    for (header, spare) in found.used {
        let segment = Segment::new(header, spare);
        segment.end.store(segment.size, Ordering::Release);
        used.insert(header.number, segment);
    }
    bound_ends(&used);
    Ok(used)
}

fn frames_of(segment: &Segment) -> Frames<'_> {
    Frames::new(&segment.file, segment.header.salt, DATA_START, segment.end.load(Ordering::Acquire))
}

type Whole = HashSet<(u64, u64)>;

fn verify_segment(
    segment: &Segment,
    report: &mut VerifyReport,
    whole: &mut Whole,
    journal: &mut Journal,
) -> std::io::Result<()> {
    let number = segment.header.number;
    let mut frames = frames_of(segment);
    if segment.header.usage == Use::Own {
        while let Some(found) = frames.next_found()? {
            let Found::Frame(placed) = found else { continue };
            report.frames += 1;
            if scan::payload_is_whole(&segment.file, &placed)? {
                whole.insert((number, placed.offset));
            }
        }
        return Ok(());
    }
    let mut unsure: Vec<String> = Vec::new();
    while let Some(group) = scan::next_group(&mut frames)? {
        report.frames += group.frames.len() as u64 + 1;
        for placed in group.frames.iter().filter(|placed| placed.header.kind == Kind::Body) {
            if group.is_complete || scan::payload_is_whole(&segment.file, placed)? {
                whole.insert((number, placed.offset));
            }
        }
        if group.is_complete {
            journal.enter(segment, &group)?;
            report.damaged.append(&mut unsure);
        } else {
            unsure.extend(group.faults.iter().map(|fault| format!("segment {number}: {fault}")));
        }
    }
    // An unfinished group at the very end of the last segment was never acknowledged.
    if segment.end.load(Ordering::Acquire) < segment.size {
        report.damaged.append(&mut unsure);
    }
    Ok(())
}

fn verify_records(
    records: &Records,
    journal: &Journal,
    whole: &Whole,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    journal.each(records, locations_range(), |key, value| {
        let name = location_key_id(key).map(|id| format!("{}/{}", id.queue_id, id.number)).unwrap_or_default();
        report.bodies += 1;
        match Location::from_bytes(value) {
            None => report.damaged.push(format!("the location of body {name} is unreadable")),
            Some(location) => {
                report.body_bytes += location.frame_bytes();
                if !whole.contains(&(location.segment, location.offset)) {
                    report.damaged.push(format!("body {name} is missing or fails its checksum"));
                }
            }
        }
    })?;
    journal.each(records, (vec![prefix::ENGINE + 1], vec![u8::MAX; 64]), |_, _| report.records += 1)
}

fn each(
    records: &Records,
    (mut from, to): (Vec<u8>, Vec<u8>),
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<(), StoreError> {
    loop {
        let page = records.range(&from, &to, PAGE)?;
        for (key, value) in &page {
            visit(key, value);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => {
                from.clone_from(last);
                from.push(0);
            }
            _ => return Ok(()),
        }
    }
}

/// One body that may still be owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// Its name.
    pub id: BodyId,
    /// What the queue wrote beside it.
    pub envelope: Vec<u8>,
    /// Recipients of its message that are settled for good.
    pub settled: BTreeSet<u16>,
    /// The final bytes.
    pub message: Bytes,
}

/// Goes through the bodies that may still be owed. Holds the folder's lock.
pub struct Salvage {
    _lock: File,
    left: std::vec::IntoIter<(Arc<Segment>, Placed)>,
    settled: HashMap<QueueId, BTreeSet<u16>>,
    damage: Vec<String>,
}

/// Reads only the segments of a folder nobody has open. The bodies come in the order they were written.
pub fn salvage(folder: &Path) -> Result<Salvage, OpenError> {
    let lock = lock_folder(folder)?;
    format::check(folder)?;
    let mut damage = Vec::new();
    let used = used_segments(folder, &mut damage)?;
    let mut gathered = Gathered::default();
    for segment in used.values() {
        gathered.segment(segment).map_err(OpenError::Files)?;
    }
    gathered.end().map_err(OpenError::Files)?;
    let Gathered { mut bodies, dead, settled, .. } = gathered;
    bodies.retain(|(segment, placed)| !dead.contains(&(placed.header.body, segment.header.number)));
    Ok(Salvage { _lock: lock, left: bodies.into_iter(), settled, damage })
}

/// What the segments say. What a group says of bodies (moved, freed, settled) counts once it is known to have
/// been durable as a whole: a sealed group follows it, or another segment of the journal. Of the last sealed
/// group every frame is looked at; behind it nothing is true, and there may be two groups without a seal.
#[derive(Default)]
struct Gathered {
    bodies: Vec<(Arc<Segment>, Placed)>,
    dead: HashSet<DeadEntry>,
    settled: HashMap<QueueId, BTreeSet<u16>>,
    /// Number of the group that is being read.
    group: Option<u64>,
    /// Its frames, and what it says.
    frames: Vec<Placed>,
    said: Words,
    /// What groups before it say that have no seal.
    unsealed: Words,
    /// The last sealed group: where it lies, its frames, and what it says.
    sealed: Option<(Arc<Segment>, Vec<Placed>, Words)>,
}

/// `Dead` and `Settled` frames.
type Words = Vec<(Kind, Vec<u8>)>;

impl Gathered {
    fn segment(&mut self, segment: &Arc<Segment>) -> std::io::Result<()> {
        if segment.header.usage == Use::Shared {
            // Its header was written when all that lies before it was durable.
            self.set_out();
            self.believe_all();
            self.group = None;
        }
        let mut frames = frames_of(segment);
        while let Some(found) = frames.next_found()? {
            let Found::Frame(placed) = found else { continue };
            if segment.header.usage == Use::Own {
                self.bodies.push((Arc::clone(segment), placed));
                continue;
            }
            if self.group.replace(placed.header.group) != Some(placed.header.group) {
                self.set_out();
            }
            match placed.header.kind {
                Kind::Body => self.bodies.push((Arc::clone(segment), placed)),
                kind @ (Kind::Dead | Kind::Settled) => {
                    self.said.push((kind, scan::payload(&segment.file, &placed)?.unwrap_or_default()));
                }
                Kind::Seal => {
                    self.seal(segment, &placed)?;
                    continue;
                }
                Kind::Batch => {}
            }
            self.frames.push(placed);
        }
        Ok(())
    }

    /// Another group begins.
    fn set_out(&mut self) {
        self.frames.clear();
        self.unsealed.append(&mut self.said);
    }

    fn seal(&mut self, segment: &Arc<Segment>, placed: &Placed) -> std::io::Result<()> {
        let seal = scan::payload(&segment.file, placed)?.as_deref().and_then(Seal::from_bytes);
        let start = self.frames.first().map_or(placed.offset, |first| first.offset);
        if seal.is_some_and(|seal| seal.start == start && Ok(seal.frames) == u32::try_from(self.frames.len())) {
            let (frames, said) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.said));
            self.believe_all();
            self.sealed = Some((Arc::clone(segment), frames, said));
        }
        self.group = None;
        Ok(())
    }

    /// Nothing follows: the last sealed group counts if all of it is there.
    fn end(&mut self) -> std::io::Result<()> {
        let Some((segment, frames, said)) = self.sealed.take() else { return Ok(()) };
        for frame in &frames {
            if !scan::payload_is_whole(&segment.file, frame)? {
                return Ok(());
            }
        }
        self.believe(said);
        Ok(())
    }

    /// What was read so far, but for the group that is being read, was durable.
    fn believe_all(&mut self) {
        let unsealed = std::mem::take(&mut self.unsealed);
        self.believe(unsealed);
        if let Some((_, _, said)) = self.sealed.take() {
            self.believe(said);
        }
    }

    fn believe(&mut self, said: Words) {
        for (kind, payload) in said {
            if kind == Kind::Dead {
                self.dead.extend(frame::dead_entries(&payload));
                continue;
            }
            for (queue_id, numbers) in frame::settled_entries(&payload) {
                self.settled.entry(queue_id).or_default().extend(numbers);
            }
        }
    }
}

impl Salvage {
    /// Bodies and segments that could not be read, so far.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }
}

impl Iterator for Salvage {
    type Item = Salvaged;

    fn next(&mut self) -> Option<Salvaged> {
        for (segment, placed) in self.left.by_ref() {
            let id = placed.header.body;
            let envelope_bytes = placed.header.envelope_bytes;
            let message_bytes = placed.header.payload_bytes.saturating_sub(u64::from(envelope_bytes));
            let number = segment.header.number;
            let location = Location { segment: number, offset: placed.offset, envelope_bytes, message_bytes };
            match SegmentReader::new(segment, id, location).whole() {
                Ok((payload, _)) => {
                    let middle = usize::try_from(envelope_bytes).unwrap_or(usize::MAX).min(payload.len());
                    let settled = self.settled.get(&id.queue_id).cloned().unwrap_or_default();
                    let envelope = payload.slice(..middle).to_vec();
                    return Some(Salvaged { id, envelope, settled, message: payload.slice(middle..) });
                }
                Err(error) => self.damage.push(error.to_string()),
            }
        }
        None
    }
}
