//! Two threads beside those that write: the one flusher, and the one that gives space back.
//!
//! Flusher: makes the records and their copy durable every 5 seconds or every 64 MiB of journal; the
//! journal before that is then no longer needed. Housekeeping: empty segments are given back, nearly empty ones
//! emptied first, one file kept ready. Easy to get wrong: before a segment goes, what it alone says
//! about bodies that still lie elsewhere (settled recipients, dead copies) is written again.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::bell::Woken;
use super::blobs::SegmentReader;
use super::committer::{MovedBody, ReadyBody, Work};
use super::durable;
use super::frame::{self, DeadEntry, Kind};
use super::record::{Location, location_key, location_key_id, locations_range};
use super::replay;
use super::scan::{self, Found, Frames};
use super::segment::{DATA_START, Segment, Use};
use super::shared::Shared;
use super::{CommitError, StoreError};
use crate::mail::{BodyId, QueueId};
use crate::metrics::STORE_CHECKPOINT;

/// Housekeeping looks around this often even if nobody calls.
const ROUND: Duration = Duration::from_secs(1);
/// A segment is emptied by copying when at most one part in this many of it is live.
const STRAGGLERS_PART: u64 = 4;
/// A checkpoint is not begun with less than this free, and ...
const CHECKPOINT_FREE_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// ... so many times the bytes of the changed records: their copy takes them once, the record engine writes
/// whole leaves. Bodies are in neither.
const CHECKPOINT_FREE_TIMES: u64 = 3;
/// A new copy is given up when this many times the journal after which there is a checkpoint was written
/// meanwhile: a crash would replay all of it.
const JOURNAL_DURING_BASE: u64 = 4;
/// A store that is being closed waits so long for a new copy of its records; the next opening makes one.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// Bytes of bodies copied with one request to the committer.
const MOVE_BYTES: u64 = 4 * 1024 * 1024;
/// Locations read at a time when looking which messages live.
const LOCATIONS_READ: usize = 256;

/// The flusher's loop.
pub fn flush_loop(shared: &Shared) {
    loop {
        let woken = shared.flush_bell.wait(shared.settings.checkpoint_every);
        if woken == Woken::Closing || shared.stop_reason().is_some() {
            return;
        }
        let _at_work = shared.at_work[0].lock().unwrap_or_else(PoisonError::into_inner);
        checkpoint(shared);
    }
}

/// Makes everything applied so far durable in the records.
pub fn checkpoint(shared: &Shared) {
    let target = shared.applied.load(Ordering::Acquire);
    if shared.faults.checkpoints_skipped.load(Ordering::Acquire) {
        return;
    }
    if target != shared.checkpointed.load(Ordering::Acquire) && !make_durable(shared, target) {
        return;
    }
    if shared.faults.copy_left_out.load(Ordering::Acquire) {
        return;
    }
    let tending = Instant::now();
    // There is no checkpoint while a new copy is begun: rather none is than that commits wait for it.
    let journal_max = shared.settings.checkpoint_bytes.saturating_mul(JOURNAL_DURING_BASE);
    let gives_up = || {
        shared.records.unflushed_bytes() > shared.settings.layer_bytes_max / 2
            || shared.unflushed_bytes.load(Ordering::Acquire) > journal_max
            || (shared.flush_bell.is_closing() && tending.elapsed() > CLOSING_MAX)
    };
    if let Err(error) = shared.copy.tend(&shared.records, &shared.space, &gives_up) {
        shared.refuse(&error);
    }
}

/// Whether the records hold commit `target` durably now.
fn make_durable(shared: &Shared, target: u64) -> bool {
    let bytes = shared.unflushed_bytes.load(Ordering::Acquire);
    // Without room the record engine's writes wait, and this thread with them. The journal holds
    // everything: it grows until there is room again, or until its last segment is full and commits
    // are refused. Not to begin is better than to wait in the middle.
    let changed = CHECKPOINT_FREE_TIMES.saturating_mul(shared.records.unflushed_bytes() as u64);
    let waits = !shared.space.has_room_for(CHECKPOINT_FREE_BYTES_MIN.saturating_add(changed));
    shared.checkpoint_waits.store(waits, Ordering::Release);
    if waits {
        return false;
    }
    let flushing = Instant::now();
    match shared.records.flush_after(|layer| replay::checkpoint(&shared.records, &shared.copy, layer)) {
        Ok(()) => {
            metrics::histogram!(STORE_CHECKPOINT).record(flushing.elapsed().as_secs_f64());
            shared.checkpointed.store(target, Ordering::Release);
            shared.unflushed_bytes.fetch_sub(bytes, Ordering::AcqRel);
            shared.house_bell.ring();
            true
        }
        Err(error) => {
            shared.stop(format!("a checkpoint failed: {error}"));
            false
        }
    }
}

/// Housekeeping's loop.
pub fn house_loop(shared: &Shared, committer: &Sender<Work>) {
    let mut lacks_room = false;
    loop {
        if shared.house_bell.wait(ROUND) == Woken::Closing || shared.stop_reason().is_some() {
            return;
        }
        // Said here because the flusher, which finds no room, waits for it in the midst of a write.
        let lacked_room = std::mem::replace(&mut lacks_room, shared.lacks_room());
        if lacked_room != lacks_room {
            match lacks_room {
                true => tracing::warn!("the disk is full or nearly so; the records' checkpoints wait for room"),
                false => tracing::info!("there is room for the records' checkpoints again"),
            }
        }
        let _at_work = shared.at_work[1].lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = round(shared, committer) {
            // Also of a file that was only to be used later: see `durable`.
            if durable::is_failed_sync(&error) {
                shared.refuse(&error);
                return;
            }
            tracing::warn!(%error, "housekeeping of the segments failed; it will try again");
        }
    }
}

fn round(shared: &Shared, committer: &Sender<Work>) -> io::Result<()> {
    if shared.is_counted.load(Ordering::Acquire) && shared.pins.load(Ordering::Acquire) == 0 {
        let segments = shared.segments.all();
        // The newest tells how many commits there were: records and copies that lack some are known by it.
        let newest = segments.iter().filter(|segment| segment.header.usage == Use::Shared);
        let newest = newest.map(|segment| segment.header.number).max();
        for segment in segments {
            if shared.house_bell.is_closing() {
                return Ok(());
            }
            if Some(segment.header.number) != newest
                && is_needless(shared, &segment)
                && carry_over(shared, committer, &segment)?
            {
                let number = segment.header.number;
                drop(segment);
                shared.segments.give_back(number)?;
            }
        }
        if let Some(segment) = straggling(shared) {
            empty(shared, committer, &segment)?;
        }
    }
    if shared.space.shortage().is_none() { shared.segments.prepare_spare() } else { Ok(()) }
}

fn is_needless(shared: &Shared, segment: &Segment) -> bool {
    !segment.in_hand.load(Ordering::Acquire)
        && segment.live_bodies.load(Ordering::Acquire) == 0
        && segment.last_commit.load(Ordering::Acquire) <= shared.checkpointed.load(Ordering::Acquire)
}

/// Writes again what salvage must still find after this segment is gone. `false` if it could not.
fn carry_over(shared: &Shared, committer: &Sender<Work>, segment: &Segment) -> io::Result<bool> {
    if segment.header.usage == Use::Own {
        return Ok(true);
    }
    let others =
        shared.segments.all().iter().any(|other| other.header.number != segment.header.number && has_bodies(other));
    if !others {
        return Ok(true);
    }
    let (dead, settled) = still_needed(shared, segment)?;
    if dead.is_empty() && settled.is_empty() {
        return Ok(true);
    }
    match ask(shared, committer, |reply| Work::Carry(dead, settled, reply)) {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::debug!(%error, "a segment stays for now");
            Ok(false)
        }
    }
}

/// Whether frames of bodies, live or dead, may lie there.
fn has_bodies(segment: &Segment) -> bool {
    segment.end.load(Ordering::Acquire) > DATA_START
}

type Needed = (Vec<DeadEntry>, Vec<(QueueId, Vec<u16>)>);

fn still_needed(shared: &Shared, segment: &Segment) -> io::Result<Needed> {
    let (mut dead, mut settled) = (Vec::new(), Vec::new());
    let mut frames = Frames::new(&segment.file, segment.header.salt, DATA_START, segment.end.load(Ordering::Acquire));
    while let Some(found) = frames.next_found()? {
        let Found::Frame(placed) = found else { continue };
        if !matches!(placed.header.kind, Kind::Settled | Kind::Dead) {
            continue;
        }
        let Some(payload) = scan::payload(&segment.file, &placed)? else { continue };
        if placed.header.kind == Kind::Dead {
            let here = segment.header.number;
            let lies = |entry: &DeadEntry| entry.1 != here && shared.segments.get(entry.1).is_some();
            dead.extend(frame::dead_entries(&payload).into_iter().filter(lies));
        } else {
            settled.extend(frame::settled_entries(&payload));
        }
    }
    let live = live_messages(shared, settled.iter().map(|(queue_id, _)| *queue_id)).map_err(io::Error::other)?;
    settled.retain(|(queue_id, _)| live.contains(queue_id));
    Ok((dead, settled))
}

/// Those of the messages that still have a body. A read of the records costs a whole leaf however
/// little is asked for, so each one answers for all the messages it passes.
fn live_messages(shared: &Shared, messages: impl Iterator<Item = QueueId>) -> Result<HashSet<QueueId>, StoreError> {
    let mut sorted: Vec<QueueId> = messages.collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut asked = sorted.as_slice();
    let mut live = HashSet::new();
    while let Some(first) = asked.first().copied() {
        let from = location_key(BodyId { queue_id: first, number: 0 });
        let page = shared.records.range(&from, &locations_range().1, LOCATIONS_READ)?;
        let found: Vec<QueueId> =
            page.iter().filter_map(|(key, _)| location_key_id(key)).map(|body| body.queue_id).collect();
        live.extend(found.iter().filter(|queue_id| asked.binary_search(queue_id).is_ok()));
        if page.len() < LOCATIONS_READ {
            break;
        }
        let unreadable = || StoreError::Damaged("the locations of bodies".into());
        let last = *found.last().ok_or_else(unreadable)?;
        // Should the last one have more bodies behind this page: it is known to live.
        asked = asked.get(asked.partition_point(|queue_id| *queue_id <= last)..).unwrap_or_default();
    }
    Ok(live)
}

/// The emptiest journal segment that is worth copying out.
fn straggling(shared: &Shared) -> Option<Arc<Segment>> {
    let candidates = shared.segments.all().into_iter().filter(|segment| {
        let live = segment.live_bytes.load(Ordering::Acquire);
        segment.header.usage == Use::Shared
            && !segment.in_hand.load(Ordering::Acquire)
            && !segment.stuck.load(Ordering::Acquire)
            && live > 0
            && live <= segment.size / STRAGGLERS_PART
            && segment.last_commit.load(Ordering::Acquire) <= shared.checkpointed.load(Ordering::Acquire)
    });
    candidates.min_by_key(|segment| segment.live_bytes.load(Ordering::Acquire))
}

/// Copies the live bodies of a segment to the end of the journal.
fn empty(shared: &Shared, committer: &Sender<Work>, segment: &Arc<Segment>) -> io::Result<()> {
    let end = segment.end.load(Ordering::Acquire);
    let mut frames = Frames::new(&segment.file, segment.header.salt, DATA_START, end);
    let (mut moved, mut bytes) = (Vec::new(), 0);
    while let Some(found) = frames.next_found()? {
        let Found::Frame(placed) = found else { continue };
        if placed.header.kind != Kind::Body || shared.house_bell.is_closing() {
            continue;
        }
        let location = shared.location(placed.header.body).map_err(io::Error::other)?;
        let here = |location: &Location| location.segment == segment.header.number && location.offset == placed.offset;
        let Some(location) = location.filter(here) else { continue };
        match lift(segment, &placed, location) {
            Ok(body) => {
                bytes += location.frame_bytes();
                moved.push(MovedBody { from: location, body });
            }
            Err(StoreError::Damaged(what)) => {
                shared.damaged(what);
                segment.stuck.store(true, Ordering::Release);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        if bytes >= MOVE_BYTES {
            bytes = 0;
            let batch = std::mem::take(&mut moved);
            ask(shared, committer, |reply| Work::Move(batch, reply)).map_err(io::Error::other)?;
        }
    }
    if !moved.is_empty() {
        ask(shared, committer, |reply| Work::Move(moved, reply)).map_err(io::Error::other)?;
    }
    // Nothing live was found although some is counted: a frame in it is unreadable. Leave it be.
    if segment.live_bodies.load(Ordering::Acquire) > 0 {
        segment.stuck.store(true, Ordering::Release);
    }
    shared.house_bell.ring();
    Ok(())
}

fn lift(segment: &Arc<Segment>, placed: &scan::Placed, location: Location) -> Result<ReadyBody, StoreError> {
    let id = placed.header.body;
    let (payload, crc) = SegmentReader::new(Arc::clone(segment), id, location).whole()?;
    let envelope_bytes = usize::try_from(location.envelope_bytes).unwrap_or(usize::MAX).min(payload.len());
    let message = [payload.slice(envelope_bytes..), bytes::Bytes::new()];
    Ok(ReadyBody { id, envelope: payload.slice(..envelope_bytes).to_vec(), message, crc, own: None })
}

fn ask(
    shared: &Shared,
    committer: &Sender<Work>,
    work: impl FnOnce(Sender<Result<(), CommitError>>) -> Work,
) -> Result<(), CommitError> {
    let (reply, answer) = channel();
    let gone = || CommitError::Stopped(shared.stop_reason().unwrap_or_else(|| "the committer is gone".into()));
    committer.send(work(reply)).map_err(|_| gone())?;
    answer.recv().unwrap_or_else(|_| Err(gone()))
}
