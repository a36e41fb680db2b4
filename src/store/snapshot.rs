//! Everything a store holds at one point of its history, read while it goes on working.
//!
//! The committer is never stopped. Its position is read first, then every record; what was committed
//! meanwhile is read from the journal and given out behind, in order. An operation of the journal names
//! its final value, so doing all of them over the records read gives the state after the last one,
//! whichever state each record was read in. Then come the bodies which that state names.
//! Easy to get wrong: until the end no segment may be given back and no body moved (see [`Pin`]).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::blobs::SegmentReader;
use super::engine::SledStore;
use super::frame::{Kind, body_id_bytes, body_id_from};
use super::record::{self, LOCATION_PREFIX, Location, Operation, Position, location_key_id, locations_range};
use super::scan::{self, Frames};
use super::segment::{DATA_START, Segment, Use};
use super::shared::Shared;
use super::{BodyReader, Key, Store, StoreError, prefix};
use crate::mail::BodyId;

/// Records read at a time: fewer when they are large, so that a page stays small.
const PAGE: usize = 256;
/// Bytes of one body's place in the list on disk.
const PLACE_BYTES: usize = 18 + Location::BYTES;

/// One piece of a snapshot; what comes later counts.
pub enum Piece<'a> {
    /// The first: commits up to this number are in what follows, and perhaps later ones.
    Begin(u64),
    /// A record has this value.
    Set(&'a [u8], &'a [u8]),
    /// There is no such record any more.
    Remove(&'a [u8]),
    /// A body, with the envelope that lies beside it. Once one was given, no records follow.
    Body(BodyId, &'a [u8], &'a mut dyn BodyReader),
    /// A body that the records name and that cannot be read, and why.
    Unreadable(BodyId, String),
}

/// What [`Snapshots::snapshot`] hands the pieces to. An error of its own ends the snapshot.
pub type Taker<'a> = &'a mut dyn FnMut(Piece<'_>) -> io::Result<()>;

/// While it lives, housekeeping gives no segment back and moves no body.
struct Pin<'a>(&'a Shared);

impl<'a> Pin<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.pins.fetch_add(1, Ordering::AcqRel);
        // A round that began before it was set ends first.
        drop(shared.at_work[1].lock().unwrap_or_else(PoisonError::into_inner));
        Self(shared)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
        self.0.house_bell.ring();
    }
}

/// A store whose records and bodies can be copied while it works.
pub trait Snapshots: Store {
    /// Gives every record and body to `take`, as they are after one commit, which is returned. Blocks on
    /// the disk, for as long as `take` takes; commits go on, and the space of what is freed meanwhile
    /// returns afterwards.
    ///
    /// # Errors
    /// Of `take`, of the disk, or if the journal is damaged between begin and end.
    fn snapshot(&self, take: Taker<'_>) -> io::Result<u64>;
}

impl Snapshots for SledStore {
    fn snapshot(&self, take: Taker<'_>) -> io::Result<u64> {
        let shared = self.shared();
        let _pin = Pin::new(shared);
        let begin = shared.records.position().map_err(io::Error::other)?;
        take(Piece::Begin(begin.commit))?;
        let mut places = Places::new(&shared.settings.folder)?;
        each_record(shared, &mut |key, value| match location_key_id(key) {
            Some(id) => places.add(id, value),
            None if key.first() == Some(&prefix::ENGINE) => Ok(()),
            None => take(Piece::Set(key, value)),
        })?;
        let mut gone = HashSet::new();
        let end = each_change(shared, begin, &mut |operation| match operation {
            Operation::Set(key, value) => match location_key_id(key) {
                Some(id) => {
                    gone.insert(id);
                    places.late.insert(id, value.to_vec());
                    Ok(())
                }
                None if key.first() == Some(&prefix::ENGINE) => Ok(()),
                None => take(Piece::Set(key, value)),
            },
            Operation::Remove(key) => match location_key_id(key) {
                Some(id) => {
                    gone.insert(id);
                    places.late.remove(&id);
                    Ok(())
                }
                None => take(Piece::Remove(key)),
            },
        })?;
        places.each(&gone, &mut |id, place| give_body(shared, (id, place), take))?;
        Ok(end)
    }
}

/// Takes a key and a value.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

fn each_record(shared: &Shared, visit: Visit<'_>) -> io::Result<()> {
    let ranges: [(Key, Key); 2] = [locations_range(), (vec![prefix::ENGINE + 1], vec![u8::MAX; 64])];
    for (mut from, to) in ranges {
        loop {
            let page = shared.records.range(&from, &to, PAGE).map_err(io::Error::other)?;
            for (key, value) in &page {
                visit(key, value)?;
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => break,
            }
        }
    }
    Ok(())
}

/// The operations of every group behind `begin` that was synced by now; the last commit among them.
///
/// A segment's end moves on before its group is applied, so whatever of a group was seen in the
/// records, the group lies before the ends read here.
fn each_change(
    shared: &Shared,
    begin: Position,
    visit: &mut dyn FnMut(Operation<'_>) -> io::Result<()>,
) -> io::Result<u64> {
    let mut last = begin.commit;
    let journal = shared.segments.all().into_iter().filter(|segment| segment.header.usage == Use::Shared);
    // Ends are read from the newest segment back: a group in it is behind all of those before.
    let mut journal: Vec<_> = journal.filter(|segment| segment.header.number >= begin.segment).collect();
    journal.reverse();
    let ends: Vec<u64> = journal.iter().map(|segment| segment.end.load(Ordering::Acquire)).collect();
    for (segment, end) in journal.iter().zip(ends).rev() {
        let from = if segment.header.number == begin.segment { begin.offset } else { DATA_START };
        let mut frames = Frames::new(&segment.file, segment.header.salt, from, end);
        while let Some(group) = scan::next_group(&mut frames)? {
            if !group.is_complete {
                let text = format!("segment {}: {}", segment.header.number, group.faults.join("; "));
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            for frame in group.frames.iter().filter(|frame| frame.header.kind == Kind::Batch) {
                last = batch(segment, frame, last, visit)?;
            }
        }
    }
    Ok(last)
}

fn batch(
    segment: &Segment,
    frame: &scan::Placed,
    last: u64,
    visit: &mut dyn FnMut(Operation<'_>) -> io::Result<()>,
) -> io::Result<u64> {
    let payload = scan::payload(&segment.file, frame)?.unwrap_or_default();
    let Some((commit, operations)) = record::operations(&payload) else {
        let text = format!("segment {}: a batch that cannot be read", segment.header.number);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    };
    if commit <= last {
        return Ok(last);
    }
    operations.into_iter().try_for_each(visit)?;
    Ok(commit)
}

/// Where the bodies lie: a list in a file without a name, however many there are, and those of the
/// journal's last moments.
struct Places {
    list: BufWriter<File>,
    late: HashMap<BodyId, Vec<u8>>,
}

impl Places {
    fn new(folder: &std::path::Path) -> io::Result<Self> {
        Ok(Self { list: BufWriter::new(tempfile::tempfile_in(folder)?), late: HashMap::new() })
    }

    fn add(&mut self, id: BodyId, place: &[u8]) -> io::Result<()> {
        let mut entry = [0; PLACE_BYTES];
        let (name, value) = entry.split_at_mut(18);
        name.copy_from_slice(&body_id_bytes(id));
        // A place of another length is unreadable: zeros are too, and are reported with the body.
        if place.len() == value.len() {
            value.copy_from_slice(place);
        }
        self.list.write_all(&entry)
    }

    fn each(self, gone: &HashSet<BodyId>, visit: &mut dyn FnMut(BodyId, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut list = self.list.into_inner().map_err(io::IntoInnerError::into_error)?;
        list.rewind()?;
        let mut list = BufReader::new(list);
        let mut entry = [0; PLACE_BYTES];
        loop {
            match list.read_exact(&mut entry) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            let (name, place) = entry.split_at(18);
            if let Some(id) = body_id_from(name).filter(|id| !gone.contains(id)) {
                visit(id, place)?;
            }
        }
        self.late.iter().try_for_each(|(id, place)| visit(*id, place))
    }
}

fn give_body(shared: &Shared, (id, place): (BodyId, &[u8]), take: Taker<'_>) -> io::Result<()> {
    let location = Location::from_bytes(place);
    let segment = location.and_then(|location| shared.segments.get(location.segment));
    let (Some(location), Some(segment)) = (location, segment) else {
        return take(Piece::Unreadable(id, "its place in the segments is not known".to_owned()));
    };
    let mut reader = SegmentReader::new(segment, id, location);
    match reader.envelope() {
        Ok(envelope) => take(Piece::Body(id, &envelope, &mut reader)),
        Err(StoreError::Damaged(why)) => take(Piece::Unreadable(id, why)),
        Err(error) => Err(io::Error::other(error)),
    }
}

const _: () = assert!(LOCATION_PREFIX[0] == prefix::ENGINE, "places of bodies are the engine's own records");
