//! Brings the records up to what the journal promises, once, when a folder is opened.
//!
//! From the position the records hold, every complete group is applied again in order. What was
//! acknowledged and is damaged is reported and passed over, its whole batches applied alone.
//! Easy to get wrong: what is torn at the end never was acknowledged: it is left out whole. That may be two
//! groups, the one that was being synced and one without a seal behind it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::OpenError;
use super::copy::RecordsCopy;
use super::durable;
use super::frame::Kind;
use super::layers::Layer;
use super::record::{self, Before, Operation, Position};
use super::scan::{self, Frames, Group};
use super::segment::{self, DATA_START, Found, Segment, Use};
use super::sled::Records;
use super::table::Chain;

/// What a replay found out.
pub struct Replayed {
    /// The segments in use.
    pub used: BTreeMap<u64, Arc<Segment>>,
    /// What the next journal segment says about the last.
    pub chain: Chain,
    /// The highest number of any segment.
    pub last_number: u64,
    /// What was damaged, in words.
    pub damage: Vec<String>,
    /// How many batches were applied again.
    pub batches: u64,
}

/// Enters the found segments and replays what the records lack. The records hold it durably after this.
/// If the records `may` be made `anew` and the copy has commits that they and the journal lack, that is
/// an error, whatever else is damaged.
pub fn replay(
    records: &Records,
    copy: &RecordsCopy,
    found: Found,
    may_rebuild: bool,
) -> Result<(Replayed, Vec<(u64, segment::SpareFile)>), OpenError> {
    let position = records.position().map_err(|error| OpenError::Records(error.to_string()))?;
    copy.begin(position);
    let numbers =
        found.used.iter().map(|(header, _)| header.number).chain(found.free.iter().map(|(number, _)| *number));
    let last_number = numbers.max().unwrap_or(0).max(position.segment);
    let unreadable = found.unreadable.iter();
    let mut damage: Vec<_> =
        unreadable.map(|spare| format!("{}: the segment's header is unreadable", spare.path.display())).collect();
    let mut used = BTreeMap::new();
    for (header, spare) in found.used {
        let segment = Segment::new(header, spare);
        segment.end.store(segment.size, Ordering::Release);
        if let Some(other) = used.insert(header.number, segment) {
            damage.push(format!("{}: another segment has the number {}", other.path.display(), header.number));
        }
    }
    bound_ends(&used);
    let mut replayed = Replayed { used, chain: Chain::default(), last_number, damage, batches: 0 };
    let mut applier = Applier { records, copy, position, may_rebuild, missing: 0, damage: Vec::new(), batches: 0 };
    let shared: Vec<_> =
        replayed.used.values().filter(|segment| segment.header.usage == Use::Shared).cloned().collect();
    let mut torn: Torn = Vec::new();
    for segment in shared.iter().filter(|segment| segment.header.number >= position.segment) {
        // What the process before this one had written and not synced, or could not sync, may look whole and
        // not be on the disk: the records must not be told of it, nor of a body that was moved there.
        durable::settle(&segment.file).map_err(OpenError::Files)?;
        applier.segment(segment, &mut torn).map_err(OpenError::Files)??;
    }
    // The copy has what was acknowledged and nothing else: what it has more is missing here.
    if let Some(copied) = copy.commit().filter(|copied| *copied > applier.position.commit)
        && may_rebuild
    {
        let commit = applier.position.commit;
        return Err(OpenError::WentBack { commit, missing: copied - commit });
    }
    for (segment, group) in torn {
        // What it says of bodies that were moved, freed or settled must not be believed once the segment
        // that says where this one ended is gone.
        let (salt, end) = (segment.header.salt, segment.end.load(Ordering::Acquire));
        let says = |kind| matches!(kind, Kind::Dead | Kind::Settled);
        scan::wipe(&segment.file, salt, (end, segment.size), says).map_err(OpenError::Files)?;
        let faults = group.faults.join("; ");
        tracing::info!(
            segment = segment.header.number,
            end = group.end,
            faults,
            "an unfinished group at the end is left out"
        );
    }
    let commits_before = shared.last().map_or(0, |last| last.header.commits_before);
    applier.missing += commits_before.saturating_sub(applier.position.commit);
    replayed.damage.append(&mut applier.damage);
    replayed.batches = applier.batches;
    if applier.missing > 0 && replayed.damage.is_empty() {
        return Err(OpenError::WentBack { commit: applier.position.commit, missing: applier.missing });
    }
    if applier.missing > 0 {
        replayed.damage.push(format!("{} commits are missing from the journal", applier.missing));
    }
    copy.replayed(applier.position.commit, replayed.damage.is_empty());
    copy.clear().map_err(OpenError::Files)?;
    if applier.position != position {
        records
            .flush_after(|layer| {
                append_at_start(records, copy, layer);
                copy.clear()
            })
            .map_err(|error| OpenError::Records(error.to_string()))?;
    }
    replayed.chain = Chain {
        previous: shared.last().map_or(0, |last| last.header.number),
        previous_end: shared.last().map_or(0, |last| last.end.load(Ordering::Acquire)),
        commits: applier.position.commit.max(commits_before),
    };
    Ok((replayed, found.free))
}

/// Makes a layer durable in the copy, and what is no copy any more disappear, before the records have it.
pub fn checkpoint(records: &Records, copy: &RecordsCopy, layer: &Layer) -> io::Result<()> {
    copy.append(layer, records.extent().as_ref())?;
    copy.clear()
}

/// The same while a folder is being opened. A failed sync costs the copy alone then, which has said so: what
/// was written before was synced by itself, one after the other, and nobody has been told anything. It
/// would fail again at each start if the place on the disk is bad.
fn append_at_start(records: &Records, copy: &RecordsCopy, layer: &Layer) {
    let _ = copy.append(layer, records.extent().as_ref());
}

/// A segment's successor says where its last acknowledged group ended.
pub fn bound_ends(used: &BTreeMap<u64, Arc<Segment>>) {
    for next in used.values().filter(|segment| segment.header.usage == Use::Shared) {
        if let Some(segment) = used.get(&next.header.previous) {
            segment.end.store(next.header.previous_end.min(segment.size), Ordering::Release);
        }
    }
}

/// Groups that are not whole and may never have been acknowledged.
type Torn = Vec<(Arc<Segment>, Group)>;

struct Applier<'a> {
    records: &'a Records,
    copy: &'a RecordsCopy,
    position: Position,
    may_rebuild: bool,
    missing: u64,
    damage: Vec<String>,
    batches: u64,
}

impl Applier<'_> {
    /// Applies a segment's groups. `torn` are the last groups seen if they were not complete: a
    /// complete group that follows proves that they had been acknowledged.
    fn segment(&mut self, segment: &Arc<Segment>, torn: &mut Torn) -> io::Result<Result<(), OpenError>> {
        let number = segment.header.number;
        let from = if number == self.position.segment { self.position.offset } else { DATA_START };
        let bound = segment.end.load(Ordering::Acquire);
        let mut frames = Frames::new(&segment.file, segment.header.salt, from, bound);
        let mut end = from;
        while let Some(group) = scan::next_group(&mut frames)? {
            if !group.is_complete {
                torn.push((Arc::clone(segment), group));
                continue;
            }
            for (earlier, group) in torn.drain(..) {
                if let Err(error) = self.damaged(&earlier, &group)? {
                    return Ok(Err(error));
                }
            }
            end = group.end;
            if let Err(error) = self.group(segment, &group)? {
                return Ok(Err(error));
            }
        }
        segment.last_commit.store(self.position.commit, Ordering::Release);
        // Behind the last complete group of the last segment lies nothing that counts.
        let is_bounded = bound < segment.size;
        segment.end.store(if is_bounded { bound } else { end }, Ordering::Release);
        Ok(Ok(()))
    }

    fn damaged(&mut self, segment: &Arc<Segment>, group: &Group) -> io::Result<Result<(), OpenError>> {
        self.damage.push(format!("segment {}: {}", segment.header.number, group.faults.join("; ")));
        self.group(segment, group)
    }

    /// Commits that the journal lacks. If the copy has some of them it is not passed over them, nor may it
    /// be added to as if they had never been.
    fn pass_over(&mut self, missing: u64) -> Result<(), OpenError> {
        let commit = self.position.commit;
        if missing > 0 && self.copy.commit().is_some_and(|copied| copied > commit) {
            if self.may_rebuild {
                return Err(OpenError::WentBack { commit, missing });
            }
            self.copy.replayed(commit, false);
        }
        self.missing += missing;
        Ok(())
    }

    fn group(&mut self, segment: &Segment, group: &Group) -> io::Result<Result<(), OpenError>> {
        let mut payloads = Vec::new();
        for frame in group.frames.iter().filter(|frame| frame.header.kind == Kind::Batch) {
            if let Some(payload) = scan::payload(&segment.file, frame)? {
                payloads.push(payload);
            }
        }
        let mut operations: Vec<Operation<'_>> = Vec::new();
        for payload in &payloads {
            let Some((commit, list)) = record::operations(payload) else {
                self.damage.push(format!("segment {}: a batch of an unknown format", segment.header.number));
                continue;
            };
            if commit <= self.position.commit {
                continue;
            }
            if let Err(error) = self.pass_over(commit - self.position.commit - 1) {
                return Ok(Err(error));
            }
            self.position.commit = commit;
            self.batches += 1;
            operations.extend(list);
        }
        (self.position.segment, self.position.offset) = (segment.header.number, group.end);
        // Even without operations the position must move on: what lies before it will be given back.
        let operations = operations.into_iter().map(|operation| (operation, Before::Unknown));
        let applied = self.records.apply(operations, self.position);
        // However long the journal is, so much of it is held in memory.
        let applied = applied.and_then(|()| {
            if !self.records.is_full() {
                return Ok(());
            }
            // Nothing of the journal is given back before the whole replay is durable.
            self.records.flush_after(|layer| {
                append_at_start(self.records, self.copy, layer);
                Ok(())
            })
        });
        Ok(applied.map_err(|error| OpenError::Records(error.to_string())))
    }
}
