//! The one thread that writes: it gathers what waits into a group, checks, writes, syncs, applies, answers.
//!
//! Order is everything: conditions in arrival order against the records and the group so far; one
//! append and one sync; only then the records change, and only after that callers hear `Ok`.
//! Easy to get wrong: whatever fails before the sync leaves no trace; a sync that fails stops it all.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::record_bytes;
use super::census::Census;
use super::chain::Heads;
use super::durable;
use super::frame::{self, DeadEntry, Kind};
use super::layout::{Layout, group_synced, seal_bytes};
use super::plan::Plan;
use super::record::{self, Before, Location, Position};
use super::scan;
use super::segment::{DATA_START, InHand, Segment};
use super::shared::{Faults, Shared};
use super::table::Chain;
use super::{Batch, Change, CommitError, Condition, Key};
use crate::mail::{BodyId, QueueId};

/// Batches in one group, at most.
const GROUP_BATCHES_MAX: usize = 512;
/// Bytes in one group beyond which nothing more is taken into it.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the committer sleeps when nothing comes, before it looks whether to stop.
const IDLE: Duration = Duration::from_millis(500);

/// How long the committer sleeps when the records are too far behind, before it looks again.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(5);

/// A body ready to be laid out.
pub struct ReadyBody {
    /// Its name.
    pub id: BodyId,
    /// First part of the payload.
    pub envelope: Vec<u8>,
    /// The message in two parts; empty if it lies in a segment of its own already.
    pub message: [Bytes; 2],
    /// CRC32C of envelope and message.
    pub crc: u32,
    /// Where it was put, if it has a segment of its own.
    pub own: Option<(Location, InHand)>,
}

impl ReadyBody {
    fn journal_bytes(&self) -> usize {
        match self.own {
            Some(_) => 0,
            None => self.envelope.len() + self.message[0].len() + self.message[1].len() + frame::HEADER_BYTES + 8,
        }
    }
}

/// Something for the committer to do.
pub enum Work {
    /// A caller's batch.
    Commit(Box<Waiting>),
    /// Housekeeping moves live bodies out of a segment.
    Move(Vec<MovedBody>, Sender<Result<(), CommitError>>),
    /// Housekeeping carries what salvage must know out of a segment.
    Carry(Vec<DeadEntry>, Vec<(QueueId, Vec<u16>)>, Sender<Result<(), CommitError>>),
    /// The store is closing.
    Close,
}

/// A caller's batch and how to answer.
pub struct Waiting {
    /// Everything but bodies.
    pub batch: Batch,
    /// The bodies.
    pub bodies: Vec<ReadyBody>,
    /// The answer.
    pub reply: oneshot::Sender<Result<(), CommitError>>,
    /// Gives the bytes back to those who wait to send.
    pub permit: OwnedSemaphorePermit,
}

/// A live body on its way into the current segment.
pub struct MovedBody {
    /// Where it must still lie for the move to count.
    pub from: Location,
    /// The body, checksum verified.
    pub body: ReadyBody,
}

/// The committer's own state.
pub struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) current: Option<Arc<Segment>>,
    pub(super) chain: Chain,
    pub(super) end: u64,
    pub(super) group: u64,
    /// Since when commits wait because the records are too far behind.
    pub(super) behind_since: Option<Instant>,
    pub(super) commit: u64,
    pub(super) census: Census,
}

/// What a freed body's place is known to be when it is freed.
pub(super) type Freed = (BodyId, Option<Location>);

/// What became of one piece of work after its conditions were checked.
pub(super) enum Verdict {
    Refused(CommitError),
    Accepted { freed: Vec<Freed>, linked: Vec<(Key, Vec<u8>)> },
    Moves(Vec<usize>),
    Carried,
}

/// Bodies named in this group: where they lie after the work so far.
#[derive(Clone, Copy)]
enum Named {
    InGroup,
    At(Location),
    Gone,
}

/// Counts that change once the group is durable.
pub(super) enum Tally {
    Gained(Location),
    Lost(BodyId, Location),
}

impl Committer {
    /// Works until told to close or every sender is gone.
    pub fn run(mut self, inbox: &Receiver<Work>) {
        let mut group = Vec::with_capacity(GROUP_BATCHES_MAX);
        loop {
            let wait = if self.census.is_done() { IDLE } else { Duration::ZERO };
            match inbox.recv_timeout(wait) {
                Ok(Work::Close) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(work) => {
                    let closing = gather(inbox, work, &mut group);
                    // A checkpoint that is merely slow is no write that hangs.
                    match self.wait_for_room() {
                        Ok(()) => {
                            self.note_writing(Some(Instant::now()));
                            self.commit_group(&mut group);
                            self.note_writing(None);
                        }
                        Err(error) => answer_all(&mut group, &error),
                    }
                    if closing {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.census.is_done() {
                self.census.count_some(&self.shared);
            }
        }
    }

    fn note_writing(&self, since: Option<Instant>) {
        *self.shared.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn commit_group(&mut self, group: &mut Vec<Work>) {
        if let Some(why) = self.shared.stop_reason() {
            answer_all(group, &CommitError::Stopped(why));
            return;
        }
        assert!(!self.shared.faults.committer_panics.swap(false, Ordering::AcqRel), "a test asked for this panic");
        let verdicts = match self.check(group) {
            Ok(verdicts) => verdicts,
            Err(error) => {
                let error = self.shared.stop(format!("the records cannot be read: {error}"));
                answer_all(group, &error);
                return;
            }
        };
        let outcome = if verdicts.iter().all(|verdict| matches!(verdict, Verdict::Refused(_))) {
            Ok(())
        } else {
            self.write_and_apply(group, &verdicts)
        };
        for (work, verdict) in group.drain(..).zip(verdicts) {
            match (verdict, &outcome) {
                (Verdict::Refused(error), _) => answer(work, Err(error)),
                (_, outcome) => answer(work, outcome.clone()),
            }
        }
    }

    /// Waits while the records are so far behind that memory must not hold more of what they lack: not
    /// at all if it is for want of room on the disk, else until `checkpoint_wait_max` has passed since
    /// the first commit that had to wait.
    fn wait_for_room(&mut self) -> Result<(), CommitError> {
        let wait_max = self.shared.settings.checkpoint_wait_max;
        while self.shared.records.is_full() {
            if let Some(why) = self.shared.stop_reason() {
                return Err(CommitError::Stopped(why));
            }
            if self.shared.flush_bell.is_closing() {
                return Err(CommitError::Stopped("the store is being closed".to_owned()));
            }
            if self.shared.lacks_room() {
                return Err(CommitError::Full("the records' checkpoint waits for room on the disk".to_owned()));
            }
            if self.behind_since.get_or_insert_with(Instant::now).elapsed() >= wait_max {
                return Err(CommitError::Failed(format!("a checkpoint of the records takes longer than {wait_max:?}")));
            }
            self.shared.flush_bell.ring();
            std::thread::sleep(CHECKPOINT_PAUSE);
        }
        self.behind_since = None;
        Ok(())
    }

    /// Checks every condition in arrival order, each against the work accepted before it.
    fn check(&self, group: &[Work]) -> Result<Vec<Verdict>, super::StoreError> {
        let is_alone = group.len() == 1;
        let mut checker = Checker {
            shared: &self.shared,
            is_alone,
            keys: HashMap::new(),
            names: HashMap::new(),
            heads: Heads::default(),
        };
        group
            .iter()
            .map(|work| match work {
                Work::Commit(waiting) => checker.check_batch(waiting),
                Work::Move(bodies, _) => checker.check_moves(bodies),
                Work::Carry(..) | Work::Close => Ok(Verdict::Carried),
            })
            .collect()
    }

    fn write_and_apply(&mut self, group: &[Work], verdicts: &[Verdict]) -> Result<(), CommitError> {
        let bound: usize = group.iter().zip(verdicts).map(|(work, verdict)| bytes_bound(work, verdict)).sum();
        let bound = bound as u64 + seal_bytes();
        let segment = self.room_for(bound).map_err(|error| self.shared.refuse(&error))?;
        let start = self.end;
        self.group += 1;
        let mut tally = Vec::new();
        let mut commit = self.commit;
        let (written, end) = {
            let mut plan = Plan::default();
            let bodies = plan.place(group, verdicts, segment.header.number, start);
            plan.encode(group, verdicts, &mut commit, &mut tally);
            let mut layout = Layout::new(segment.header.salt, self.group, start);
            for (body, location) in bodies.iter().zip(&plan.offsets) {
                let offset = layout.body(*body);
                debug_assert_eq!(offset, *location);
            }
            if !plan.settled.is_empty() {
                layout.plain(Kind::Settled, &plan.settled);
            }
            if !plan.dead.is_empty() {
                layout.plain(Kind::Dead, &plan.dead);
            }
            for payload in &plan.payloads {
                layout.plain(Kind::Batch, payload);
            }
            let end = match self.write(layout, &segment) {
                Ok(end) => end,
                Err(error) => return Err(self.roll_back(&segment, bound, &error)),
            };
            ((plan.payloads, plan.before), end)
        };
        group_synced(group.len(), || self.sync(&segment))?;
        self.end = end;
        self.commit = commit;
        segment.end.store(end, Ordering::Release);
        segment.last_commit.store(commit, Ordering::Release);
        self.apply(&written, &tally, Position { commit, segment: segment.header.number, offset: end })?;
        let unflushed = self.shared.unflushed_bytes.fetch_add(end - start, Ordering::AcqRel) + (end - start);
        if unflushed >= self.shared.settings.checkpoint_bytes {
            self.shared.flush_bell.ring();
        }
        Ok(())
    }

    fn room_for(&mut self, bytes: u64) -> io::Result<Arc<Segment>> {
        if let Some(current) = &self.current
            && self.end.saturating_add(bytes) <= current.size
        {
            return Ok(Arc::clone(current));
        }
        let spare = self.shared.segments.spare_for(bytes)?;
        let begun = self.shared.segments.begin_shared(spare, Chain { commits: self.commit, ..self.chain });
        // Its header says where this one ended, and may be on the disk: nothing may come behind that end.
        let begun = begun.inspect_err(|_| self.leave())?;
        // Its header alone says where the one before ended: kept, even if its own first group fails,
        // until a checkpoint holds what came after that end.
        begun.last_commit.store(self.commit + 1, Ordering::Release);
        if let Some(full) = self.current.replace(Arc::clone(&begun)) {
            full.in_hand.store(false, Ordering::Release);
        }
        self.end = DATA_START;
        self.chain = Chain { previous: begun.header.number, previous_end: DATA_START, commits: 0 };
        self.shared.house_bell.ring();
        Ok(begun)
    }

    fn write(&self, layout: Layout<'_>, segment: &Segment) -> io::Result<u64> {
        let faults = &self.shared.faults;
        let (is_full, fails) = (faults.disk_is_full.load(Ordering::Acquire), Faults::take(&faults.writes_fail));
        let error = if is_full { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
        if is_full && !fails {
            return Err(error.into());
        }
        let end = layout.write(segment)?;
        if fails { Err(error.into()) } else { Ok(end) }
    }

    /// A write that failed: what arrived of it, `bound` octets at most, is made unreadable, and the next
    /// group goes elsewhere unless the disk was merely full. No frame of it may be found later: that a body
    /// was moved is said in frames of their own, and is not true. What was acknowledged lies in this file too:
    /// if what made the frames unreadable cannot be synced, it is a failed sync like any other, on a full disk
    /// as well.
    fn roll_back(&mut self, segment: &Segment, bound: u64, error: &io::Error) -> CommitError {
        let wiped =
            scan::wipe(&segment.file, segment.header.salt, (self.end, self.end.saturating_add(bound)), |_| true);
        if let Err(wipe) = &wiped {
            if durable::is_failed_sync(wipe) {
                return self.shared.refuse(wipe);
            }
            tracing::warn!(%wipe, "a failed group could not be wiped; a new segment is begun");
        }
        let refused = self.shared.refuse(error);
        if wiped.is_err() || !matches!(refused, CommitError::Full(_)) {
            self.leave();
        }
        refused
    }

    /// Nothing more is written to this segment.
    fn leave(&mut self) {
        if let Some(left) = self.current.take() {
            left.in_hand.store(false, Ordering::Release);
        }
    }

    fn sync(&self, segment: &Segment) -> Result<(), CommitError> {
        durable::sync_data(&segment.file).map_err(|error| self.shared.refuse(&error))?;
        // One of another file that failed meanwhile may have cost this one what the device held of it.
        self.shared.stop_reason().map_or(Ok(()), |why| Err(CommitError::Stopped(why)))
    }

    fn apply(
        &mut self,
        (payloads, before): &(Vec<Vec<u8>>, Vec<Before>),
        tally: &[Tally],
        position: Position,
    ) -> Result<(), CommitError> {
        let lists = payloads.iter().map(|payload| record::operations(payload)).collect::<Option<Vec<_>>>();
        let lists = lists.ok_or_else(|| self.shared.stop("a batch of our own cannot be read back".into()))?;
        let operations = lists.into_iter().flat_map(|(_, operations)| operations).zip(before.iter().copied());
        // Counts go up before a body can be found and down after it cannot, so that no segment
        // with a body in it ever looks empty.
        for change in tally {
            if let Tally::Gained(location) = change
                && let Some(segment) = self.shared.segments.get(location.segment)
            {
                segment.gained(location.frame_bytes());
            }
        }
        let applied = self.shared.records.apply(operations, position);
        applied.map_err(|error| self.shared.stop(format!("the records refused a synced batch: {error}")))?;
        for change in tally {
            if let Tally::Lost(id, location) = change {
                self.census.lost(&self.shared, *id, location);
            }
        }
        self.chain.previous_end = position.offset;
        self.shared.applied.store(position.commit, Ordering::Release);
        Ok(())
    }
}

fn gather(inbox: &Receiver<Work>, first: Work, group: &mut Vec<Work>) -> bool {
    let mut bytes = weight(&first);
    group.push(first);
    while group.len() < GROUP_BATCHES_MAX && bytes < GROUP_BYTES_MAX {
        match inbox.try_recv() {
            Ok(Work::Close) => return true,
            Ok(work) => {
                bytes += weight(&work);
                group.push(work);
            }
            Err(_) => break,
        }
    }
    false
}

fn weight(work: &Work) -> usize {
    match work {
        Work::Commit(waiting) => {
            waiting.bodies.iter().map(ReadyBody::journal_bytes).sum::<usize>() + record_bytes(&waiting.batch)
        }
        Work::Move(bodies, _) => bodies.iter().map(|moved| moved.body.journal_bytes()).sum(),
        Work::Carry(dead, settled, _) => {
            26 * dead.len() + settled.iter().map(|(_, list)| 20 + 2 * list.len()).sum::<usize>()
        }
        Work::Close => 0,
    }
}

/// At least what this work takes in the journal, headers and the engine's own records included.
fn bytes_bound(work: &Work, verdict: &Verdict) -> usize {
    let batches = |count: usize| count * (frame::HEADER_BYTES + 8 + record::OPERATIONS_HEAD_BYTES);
    let location = record::OPERATION_EXTRA_BYTES + 20 + Location::BYTES;
    let side_frames = 2 * (frame::HEADER_BYTES + 8);
    let own = match (work, verdict) {
        (_, Verdict::Refused(_)) => 0,
        (Work::Commit(waiting), _) => {
            let batch = &waiting.batch;
            let operations = batch.changes.len() + batch.appends.len() + 2 * batch.chained.len();
            batches(1)
                + operations * record::OPERATION_EXTRA_BYTES
                + waiting.bodies.len() * location
                + batch.freed.len() * 64
        }
        (Work::Move(bodies, _), _) => batches(1) + bodies.len() * (location + 26),
        _ => 0,
    };
    own + weight(work) + side_frames
}

fn answer_all(group: &mut Vec<Work>, error: &CommitError) {
    for work in group.drain(..) {
        answer(work, Err(error.clone()));
    }
}

/// Answers; whoever stopped waiting is not missed.
fn answer(work: Work, result: Result<(), CommitError>) {
    match work {
        Work::Commit(waiting) => {
            let Waiting { batch, bodies, reply, permit } = *waiting;
            let _ = reply.send(result);
            drop((batch, bodies, permit));
        }
        Work::Move(_, reply) | Work::Carry(_, _, reply) => {
            let _ = reply.send(result);
        }
        Work::Close => {}
    }
}

/// The records as the group so far will leave them.
struct Checker<'a> {
    shared: &'a Shared,
    /// Nothing comes after the first piece of work: what it sets need not be remembered.
    is_alone: bool,
    keys: HashMap<&'a [u8], Option<&'a [u8]>>,
    names: HashMap<BodyId, Named>,
    /// Where chains stand after the group so far.
    heads: Heads<'a>,
}

impl<'a> Checker<'a> {
    fn check_batch(&mut self, waiting: &'a Waiting) -> Result<Verdict, super::StoreError> {
        for condition in &waiting.batch.conditions {
            let holds = match condition {
                Condition::Absent(key) => self.value_is(key, None)?,
                Condition::Equals(key, value) => self.value_is(key, Some(value))?,
            };
            if !holds {
                return Ok(Verdict::Refused(CommitError::Conflict));
            }
        }
        for (position, body) in waiting.bodies.iter().enumerate() {
            // A name already used in this group would have two places in it.
            let twice = waiting.bodies.iter().take(position).any(|earlier| earlier.id == body.id);
            if twice || self.names.contains_key(&body.id) || self.shared.location(body.id)?.is_some() {
                return Ok(Verdict::Refused(CommitError::Conflict));
            }
        }
        for body in &waiting.bodies {
            let named = body.own.as_ref().map_or(Named::InGroup, |(location, _)| Named::At(*location));
            self.names.insert(body.id, named);
        }
        let mut freed = Vec::with_capacity(waiting.batch.freed.len());
        for id in &waiting.batch.freed {
            match self.place_of(*id)? {
                Named::InGroup => freed.push((*id, None)),
                Named::At(location) => freed.push((*id, Some(location))),
                Named::Gone => continue,
            }
            self.names.insert(*id, Named::Gone);
        }
        if !self.is_alone {
            for change in &waiting.batch.changes {
                match change {
                    Change::Set(key, value) | Change::Make(key, value) => self.keys.insert(key, Some(value)),
                    Change::Remove(key) => self.keys.insert(key, None),
                };
            }
        }
        let records = &self.shared.records;
        let linked = self.heads.link(&waiting.batch, |key| records.get(key))?;
        Ok(Verdict::Accepted { freed, linked })
    }

    fn check_moves(&mut self, bodies: &[MovedBody]) -> Result<Verdict, super::StoreError> {
        let mut still = Vec::with_capacity(bodies.len());
        for (index, moved) in bodies.iter().enumerate() {
            if matches!(self.place_of(moved.body.id)?, Named::At(location) if location == moved.from) {
                self.names.insert(moved.body.id, Named::InGroup);
                still.push(index);
            }
        }
        Ok(if still.is_empty() { Verdict::Carried } else { Verdict::Moves(still) })
    }

    fn value_is(&self, key: &[u8], wanted: Option<&Vec<u8>>) -> Result<bool, super::StoreError> {
        let wanted = wanted.map(Vec::as_slice);
        match self.keys.get(key) {
            Some(value) => Ok(*value == wanted),
            None => Ok(self.shared.records.get(key)?.as_deref() == wanted),
        }
    }

    fn place_of(&self, id: BodyId) -> Result<Named, super::StoreError> {
        match self.names.get(&id) {
            Some(named) => Ok(*named),
            None => Ok(self.shared.location(id)?.map_or(Named::Gone, Named::At)),
        }
    }
}
